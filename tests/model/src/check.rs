//! The invariants of the design, stated over the world alone.
//!
//! In come worlds; out goes the first invariant that one breaks. A node *could write* to a volume if its kernel holds
//! it and the target would carry its writes out, now or once the kernel has connected again by itself, or if writes
//! of it that the target has received may still land.

use cleat_core::{Access, Core, Refusal, Reply};

use crate::names::{N, NODES, V, VOLUMES, node_id, node_of, volume_id};
use crate::world::World;

/// An invariant that a world breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// 1: more nodes can write than may.
    TooManyWriters {
        /// The volume.
        v: V,
        /// Who can.
        writers: Vec<N>,
    },
    /// 2: a successful Unpublish of a node that can write, then or later, with no Publish between.
    UnpublishedCanWrite {
        /// The volume.
        v: V,
        /// Who can.
        n: N,
    },
    /// 2: writes that were queued under a grant that was proven to be over are sent after all.
    QueuedWritesLand {
        /// The volume.
        v: V,
        /// Whose.
        n: N,
    },
    /// 3: a node connects under a grant that was proven to be over.
    ConnectedUnderAnOldEpoch {
        /// The volume.
        v: V,
        /// Which node.
        n: N,
    },
    /// 3: an old leader's epoch made the newest one give up.
    NewestSteppedDown,
    /// 4: somebody can write, or is let in, of whom nothing is stored: a crash now would forget it.
    NotStored {
        /// The volume.
        v: V,
        /// Who.
        n: N,
    },
    /// 4: a rebuilt core has other attachments than were stored.
    RebuiltOtherwise {
        /// The volume.
        v: V,
    },
    /// 5: a request was not answered although everything worked again for long.
    NeverAnswered {
        /// Which requests, in words.
        open: String,
    },
    /// 5: something is left of attachments that were all taken down.
    LeftBehind {
        /// What.
        what: String,
    },
    /// A node is granted a volume although it still holds one that it was fenced from.
    GrantedInQuarantine {
        /// The node.
        n: N,
    },
    /// A caller was told that a volume is attached, and no agent had proven it.
    PublishedWithoutProof {
        /// The volume.
        v: V,
        /// Where.
        n: N,
    },
    /// A request was answered twice.
    AnsweredTwice,
    /// The core panicked.
    Panicked {
        /// Its words.
        message: String,
    },
}

impl Violation {
    /// Which invariant of the design it is, or what the core promises besides.
    #[must_use]
    pub fn invariant(&self) -> &'static str {
        match self {
            Self::TooManyWriters { .. } => "invariant 1",
            Self::UnpublishedCanWrite { .. } | Self::QueuedWritesLand { .. } => "invariant 2",
            Self::ConnectedUnderAnOldEpoch { .. } | Self::NewestSteppedDown => "invariant 3",
            Self::NotStored { .. } | Self::RebuiltOtherwise { .. } => "invariant 4",
            Self::NeverAnswered { .. } | Self::LeftBehind { .. } => "invariant 5",
            Self::GrantedInQuarantine { .. } => "the quarantine",
            Self::PublishedWithoutProof { .. } => "the meaning of attached",
            Self::AnsweredTwice | Self::Panicked { .. } => "the core's promises",
        }
    }
}

/// The kind of an answer, to be counted.
#[must_use]
pub fn kind(result: &Result<Reply, Refusal>) -> &'static str {
    match result {
        Ok(Reply::Published(_)) => "published",
        Ok(Reply::Unpublished) => "unpublished",
        Ok(Reply::Fenced) => "fenced",
        Ok(Reply::Declared) => "declared",
        Ok(Reply::MayDelete) => "may delete",
        Err(Refusal::AttachedElsewhere { .. }) => "attached elsewhere",
        Err(Refusal::MigrationLimit { .. }) => "migration limit",
        Err(Refusal::Silent { .. }) => "silent",
        Err(Refusal::Quarantined { .. }) => "quarantined",
        Err(Refusal::NotReady { .. }) => "not ready",
        Err(Refusal::InUse { .. }) => "in use",
        Err(Refusal::Rds { .. }) => "rds",
        Err(Refusal::StillWaiting { .. }) => "still waiting",
        Err(Refusal::Overtaken { .. }) => "overtaken",
        Err(Refusal::CannotFence { .. }) => "cannot fence",
        Err(Refusal::ExportOff { .. }) => "export off",
        Err(Refusal::NotAttached { .. }) => "not attached",
        Err(Refusal::NotGone { .. }) => "not gone",
        Err(_) => "refused",
    }
}

/// How many nodes at once: the design's numbers, not the core's.
fn may_write(access: Access) -> usize {
    match access {
        Access::Rwo => 1,
        Access::RwxBlock => 2,
    }
}

impl World {
    /// Whether a node could write to a volume.
    #[must_use]
    pub fn can_write(&self, v: V, n: N) -> bool {
        let export = &self.exports[v];
        if export.lands_until[n].max(export.aborted_until[n]) > self.now {
            return true;
        }
        self.hosts[n].held[v].as_ref().is_some_and(|held| {
            let connected = held.live || held.half_open || export.accepts(self.setup.truth, n, held.secret);
            connected && export.lets_write(n)
        })
    }

    /// Checks what has to hold at every moment.
    pub fn check(&mut self) {
        for v in 0..self.setup.access.len() {
            let writers: Vec<N> = (0..self.setup.nodes).filter(|n| self.can_write(v, *n)).collect();
            let record = self.stored.get(&volume_id(v));
            let unknown =
                writers.iter().find(|n| record.is_none_or(|r| r.attachment(&node_id(**n)).is_none()));
            let released = writers.iter().find(|n| self.told.released[v][**n]);
            let violation = if let Some(&n) = released {
                Violation::UnpublishedCanWrite { v, n }
            } else if writers.len() > may_write(self.setup.access[v]) {
                Violation::TooManyWriters { v, writers }
            } else if let Some(&n) = unknown {
                Violation::NotStored { v, n }
            } else {
                continue;
            };
            return self.breaks(violation);
        }
    }

    /// A host is put on the list: it has to be stored before, or a crash would leave it there for ever.
    pub(crate) fn check_allow(&mut self, v: V, n: N) {
        if self.stored.get(&volume_id(v)).is_none_or(|r| r.attachment(&node_id(n)).is_none()) {
            self.breaks(Violation::NotStored { v, n });
        }
    }

    /// A node is granted something: it must not hold what it was fenced from.
    pub(crate) fn check_grant(&mut self, n: N) {
        let fenced_from = |v: V| {
            let held = self.hosts[n].held[v].as_ref().filter(|h| h.ending.is_none());
            held.is_some_and(|h| Some(h.epoch) <= self.told.over[v][n])
        };
        if (0..VOLUMES).any(fenced_from) {
            self.breaks(Violation::GrantedInQuarantine { n });
        }
    }

    /// A core that begins anew admits nobody that was not admitted, and forgets nobody.
    pub(crate) fn check_rebuilt(&mut self, core: &Core) {
        for v in 0..VOLUMES {
            let id = volume_id(v);
            let mut has = [[false; NODES]; 2];
            for (which, record) in [self.stored.get(&id), core.volumes().get(&id)].into_iter().enumerate() {
                for a in record.iter().flat_map(|r| &r.attachments) {
                    has[which][node_of(&a.node)] = true;
                }
            }
            if has[0] != has[1] {
                self.breaks(Violation::RebuiltOtherwise { v });
            }
        }
    }
}
