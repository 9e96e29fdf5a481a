//! The invariants of the design, stated over the world alone.
//!
//! In come worlds; out goes the first invariant that one breaks. A node *could write* to a volume if its kernel holds
//! it and the target would carry its writes out, now or once the kernel has connected again by itself, or if writes
//! of it that the target has received may still land.

use cleat_core::{Access, Core, Directive, MinFence, OperationId, Refusal, Reply, UnixMillis, Verdict};

use crate::host::Held;
use crate::names::{N, NODES, V, VOLUMES, node_of, volume_id};
use crate::records::attachment_of;
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
    /// A node's kernel has more volumes than the node may have, and not by a person's hand.
    TooManyOnNode {
        /// The node.
        n: N,
    },
    /// 1, at the moment of a grant: as many others as may can write already, with or without a grant, and it is known.
    OneGrantTooMany {
        /// The volume.
        v: V,
        /// Who was granted it.
        n: N,
    },
    /// 2: a node that is said to be cut off neither has shown its own end of it nor is kept off by anything as strong
    /// as the volume's owner demands.
    TooWeaklyFenced {
        /// The volume.
        v: V,
        /// Who.
        n: N,
        /// What keeps it off.
        by: Option<MinFence>,
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
    /// 3: a node has seen an epoch of an old leader that is higher than any of the newest one's.
    NewestIsBehind,
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
    /// 5: a request waits and does not say for what, or was refused without a reason.
    NamesNothing {
        /// Which request, and what was said of it.
        what: String,
    },
    /// 5: a request says that it waits for something that is not outstanding.
    NamesSomethingElse {
        /// Its words.
        what: String,
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
    /// A volume was deleted while somebody used it.
    DeletedUnderUser {
        /// The volume.
        v: V,
        /// Who.
        n: N,
    },
    /// A node is taken off a volume that it was answered to have, and nobody has asked for that.
    CutUnasked {
        /// The volume.
        v: V,
        /// Who.
        n: N,
    },
    /// A ticket is said to be satisfied, and no agent had proven it.
    SatisfiedWithoutProof {
        /// The volume.
        v: V,
        /// Where.
        n: N,
    },
    /// A ticket is said to be satisfied for a wish that no record says the node has the volume for.
    StaleSatisfied {
        /// The volume.
        v: V,
        /// Where.
        n: N,
    },
    /// A node is taken off a volume that an interruptible ticket has there, and its holder had not the time that it has.
    InterruptedTooEarly {
        /// The volume.
        v: V,
        /// Where.
        n: N,
    },
    /// A ticket that is not interruptible is interrupted.
    WorkloadInterrupted {
        /// The volume.
        v: V,
        /// Where.
        n: N,
    },
    /// A node is granted a volume for a ticket while another one has it.
    MovedForATicket {
        /// The volume.
        v: V,
        /// Who was granted it.
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
            Self::TooManyWriters { .. } | Self::OneGrantTooMany { .. } => "invariant 1",
            Self::UnpublishedCanWrite { .. }
            | Self::QueuedWritesLand { .. }
            | Self::TooWeaklyFenced { .. } => "invariant 2",
            Self::ConnectedUnderAnOldEpoch { .. } | Self::NewestIsBehind => "invariant 3",
            Self::NotStored { .. } | Self::RebuiltOtherwise { .. } => "invariant 4",
            Self::NeverAnswered { .. }
            | Self::NamesNothing { .. }
            | Self::NamesSomethingElse { .. }
            | Self::LeftBehind { .. } => "invariant 5",
            Self::GrantedInQuarantine { .. } => "the quarantine",
            Self::TooManyOnNode { .. } => "the node's limit",
            Self::PublishedWithoutProof { .. } | Self::DeletedUnderUser { .. } => "the meaning of attached",
            Self::CutUnasked { .. } => "who may be cut",
            Self::SatisfiedWithoutProof { .. } | Self::StaleSatisfied { .. } => "the meaning of satisfied",
            Self::InterruptedTooEarly { .. }
            | Self::WorkloadInterrupted { .. }
            | Self::MovedForATicket { .. } => "what a ticket may rely on",
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
        Err(Refusal::MigrationOverdue { .. }) => "migration overdue",
        Err(Refusal::NodeFull { .. }) => "node full",
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
        Err(Refusal::Incompatible { .. }) => "incompatible",
        Err(Refusal::Deleting { .. }) => "deleting",
        Err(Refusal::RecordDeleted { .. }) => "record deleted",
        Err(Refusal::StillAttached { .. }) => "still attached",
        Err(Refusal::UnknownNode { .. }) => "unknown node",
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
        if export.lands(n, self.now) {
            return true;
        }
        self.could_send(v, n)
    }

    /// Whether the target would take writes of a node now, or once its kernel has connected again by itself.
    pub(crate) fn could_send(&self, v: V, n: N) -> bool {
        self.hosts[n].held[v].as_ref().is_some_and(|held| {
            (held.reaches() || self.would_connect(v, n, held)) && self.exports[v].lets_write(n)
        })
    }

    /// Its kernel would come to be connected with no hand of anybody's but the network's.
    fn would_connect(&self, v: V, n: N, held: &Held) -> bool {
        let export = &self.exports[v];
        held.broken().any(|p| export.accepts_at(p, self.setup.truth, n, held.secret))
    }

    /// Can write, and it is nobody's secret: a volume that was connected by hand a moment ago is one.
    fn writes_and_is_known(&self, v: V, n: N) -> bool {
        self.can_write(v, n) && self.told.unheard_stray[v][n].is_none()
    }

    /// Checks what has to hold at every moment.
    pub fn check(&mut self) {
        self.forget_strays();
        if let Some(n) = self.nodes().find(|n| self.has_too_many(*n)) {
            return self.breaks(Violation::TooManyOnNode { n });
        }
        for v in 0..self.setup.access.len() {
            let writers: Vec<N> = (0..self.setup.nodes).filter(|n| self.writes_and_is_known(v, *n)).collect();
            let record = self.stored.get(&volume_id(v));
            // What somebody had sent by hand, and took away again before it was heard of, nobody can know of.
            let unknown = writers
                .iter()
                .filter(|n| !self.told.by_hand[v][**n] || self.could_send(v, **n))
                // A VolumeAttachment says it as well, or nobody can.
                .filter(|n| !self.cluster.lost[v][**n])
                .find(|n| record.is_none_or(|r| attachment_of(r, **n).is_none()));
            let released = writers.iter().find(|n| self.told.released[v][**n]);
            let violation = if let Some(&n) = released {
                Violation::UnpublishedCanWrite { v, n }
            } else if writers.iter().filter(|n| !self.told.by_hand[v][**n]).count()
                > may_write(self.setup.access[v])
            {
                Violation::TooManyWriters { v, writers }
            } else if let Some(&n) = unknown {
                Violation::NotStored { v, n }
            } else if let Some((n, by)) = self.too_weakly_fenced(v) {
                Violation::TooWeaklyFenced { v, n, by }
            } else {
                continue;
            };
            return self.breaks(violation);
        }
    }

    fn has_too_many(&self, n: N) -> bool {
        let granted = |v: &V| self.hosts[n].held[*v].is_some() && !self.told.by_hand[*v][n];
        let held = (0..self.setup.access.len()).filter(granted).count();
        self.setup.max_volumes.is_some_and(|limit| held > limit.get() as usize)
    }

    /// A person says of a node that lives that it is gone. Until its own agent is heard again that is that person's fault,
    /// and nobody's after.
    pub(crate) fn said_wrongly(&mut self, n: N) {
        self.told().wrongly_gone[n] = true;
        let older = self.hosts[n].stream.as_ref().map_or(0, |s| s.to_controller.len());
        for v in 0..self.setup.access.len() {
            if self.can_write(v, n) || self.is_told_to_attach(v, n) {
                let told = self.told();
                (told.by_hand[v][n], told.unheard_stray[v][n]) = (true, Some(older));
                told.released[v][n] = false;
            }
        }
    }

    /// One that an Attach has taken over before it was heard of is a secret still.
    fn forget_strays(&mut self) {
        for v in 0..self.setup.access.len() {
            for n in self.nodes().filter(|n| self.told.by_hand[v][*n]).collect::<Vec<_>>() {
                let export = &self.exports[v];
                let lands = export.lands(n, self.now);
                let held = self.hosts[n].held[v].as_ref();
                let granted = |epoch| self.told.handed_out[v][n] == Some(epoch);
                let older_has =
                    self.cluster.unknown[v][n] && self.leaders.iter().skip(1).any(|older| older.has(v, n));
                let could_come = self.could_send(v, n) || self.is_told_to_attach(v, n) || older_has;
                let lives = (self.told.wrongly_gone[n] || self.cluster.unknown[v][n]) && could_come;
                if !lands && !lives && !held.is_some_and(|h| h.stray || (h.used && !granted(h.epoch))) {
                    (self.told().by_hand[v][n], self.told().unheard_stray[v][n]) = (false, None);
                    if self.cluster.unknown[v][n] {
                        self.cluster().unknown[v][n] = false;
                    }
                }
            }
        }
    }

    /// A node that was said to be cut off, by less than it has to be. Its own word suffices, and so does never having
    /// been told to attach; anything else is kept up at the target until it has given it.
    fn too_weakly_fenced(&self, v: V) -> Option<(N, Option<MinFence>)> {
        let min = if self.told.specified[v] { self.setup.min_fence } else { MinFence::default() };
        let released = (0..self.setup.nodes)
            .filter(|n| self.told.released[v][*n] && self.told.unheard_stray[v][*n].is_none())
            .filter(|n| !self.has_ended(v, *n));
        for n in released {
            let knows = self.hosts[n].held[v].as_ref().and_then(|held| held.secret);
            let gone = self.told.said_gone[n].then_some(MinFence::NodeGone);
            let by = self.exports[v].guard(self.setup.truth, n, knows).or(gone);
            if by.is_none_or(|by| by < min) {
                return Some((n, by));
            }
        }
        None
    }

    /// The node holds nothing, and nothing that it was told or may still hear of can make it: by its own ledger.
    fn has_ended(&self, v: V, n: N) -> bool {
        let (host, Some(over)) = (&self.hosts[n], self.told.over[v][n]) else {
            return true;
        };
        let ledger = &host.ledger[v];
        let ended = ledger.epoch.is_some_and(|at| at > over || (at == over && ledger.ended));
        let tells = |(_, directive): &(OperationId, Directive)| match directive {
            Directive::Attach { grant } => grant.spec.id == volume_id(v) && grant.epoch == over,
            _ => false,
        };
        let on_its_way = host.stream.iter().flat_map(|s| &s.to_agent).chain(&host.late).any(tells);
        let never = ledger.epoch.is_none_or(|at| at < over) && !on_its_way;
        host.held[v].is_none() && (ended || never)
    }

    /// An Attach is on its way to the node.
    pub(crate) fn is_told_to_attach(&self, v: V, n: N) -> bool {
        let host = &self.hosts[n];
        host.stream.iter().flat_map(|s| &s.to_agent).chain(&host.late).any(|(_, directive)| {
            matches!(directive, Directive::Attach { grant } if grant.spec.id == volume_id(v))
        })
    }

    /// A host is put on the list: it has to be stored before, or a crash would leave it there for ever.
    pub(crate) fn check_allow(&mut self, v: V, n: N) {
        if self.stored.get(&volume_id(v)).is_none_or(|r| attachment_of(r, n).is_none()) {
            self.breaks(Violation::NotStored { v, n });
        }
    }

    /// A node is granted a volume: it must not hold what it was fenced from, and of the others there must not be as
    /// many already that are known to be able to write.
    pub(crate) fn check_grant(&mut self, v: V, n: N) {
        let fenced_from = |v: V| {
            let held = self.hosts[n].held[v].as_ref().filter(|h| h.ending.is_none() && !h.stray);
            held.is_some_and(|h| Some(h.epoch) <= self.told.over[v][n])
        };
        if (0..VOLUMES).any(fenced_from) {
            self.breaks(Violation::GrantedInQuarantine { n });
        }
        let others = self.nodes().filter(|m| *m != n && self.writes_and_is_known(v, *m)).count();
        if others >= may_write(self.setup.access[v]) {
            self.breaks(Violation::OneGrantTooMany { v, n });
        }
    }

    /// A core that begins anew admits nobody that was not admitted or is to have the volume, and forgets nobody whose end
    /// was not proven: one that was may end as soon as nothing of the RDS is waited for any more.
    pub(crate) fn check_rebuilt(&mut self, core: &Core, now: UnixMillis) {
        for v in 0..VOLUMES {
            let id = volume_id(v);
            let (mut had, mut proven, mut has) = ([false; NODES], [false; NODES], [false; NODES]);
            for a in self.stored.get(&id).iter().flat_map(|r| &r.attachments) {
                let n = node_of(&a.node);
                (had[n], proven[n]) = (true, a.evidence().is_some_and(|e| e.verdict(now) == Verdict::Fenced));
            }
            for a in core.volumes().get(&id).iter().flat_map(|r| &r.attachments) {
                has[node_of(&a.node)] = true;
            }
            let wanted = |n: N| self.cluster.attachments[v][n].is_some();
            let otherwise = |n: N| match (had[n], has[n]) {
                (true, false) => !proven[n],
                (false, true) => !wanted(n),
                _ => false,
            };
            if (0..NODES).any(otherwise) {
                self.breaks(Violation::RebuiltOtherwise { v });
            }
        }
    }
}
