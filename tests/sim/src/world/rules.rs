//! The invariants of the design, read off the world.
//!
//! Comes in: what clients were told, and the world at every tick. Goes out: the first violation, in words.
//!
//! 1. RWO: never two nodes that can write (or whose writes are on their way); RWX block: never three.
//! 2. After a successful Unpublish that node cannot write, and nothing that it wrote is on its way.
//! 3. No epoch is given to two nodes, none comes back after its end, none is followed by a lower one on that node;
//!    clients are never told of more holders than there may be.
//! 4. Whoever could write is in the controller's durable records.
//! 5. After faults stop, every request ends within a bound.
//! 6. Who is refused, or told to wait, is told about what.
//!
//! A person's fence is an Unpublish to rule 2, unless somebody asks for the volume on that node at the same time.

use std::collections::{BTreeMap, BTreeSet};

use tonic::Code;

use super::{NodeIx, VolumeIx, World};

/// The longest that a request may take once nothing fails any more, in ms: a controller's limit, the drain bound and
/// a fence, each twice.
pub const ENDS_WITHIN: u64 = 45_000;

/// What clients were told.
#[derive(Debug, Default)]
pub struct Told {
    /// Published, and not asked back since.
    published: BTreeMap<(VolumeIx, NodeIx), (u64, u64)>,
    /// Unpublished, and not asked for again since.
    unpublished: BTreeSet<(VolumeIx, NodeIx)>,
    /// The last epoch given out for each volume and node, and whether an Unpublish has ended it.
    last: BTreeMap<(VolumeIx, NodeIx), ((u64, u64), bool)>,
    /// Given out: to whom.
    epochs: BTreeMap<(VolumeIx, (u64, u64)), NodeIx>,
    /// How often each was asked for, and whether the last time has not come to its end.
    asked: BTreeMap<(VolumeIx, NodeIx), (u64, bool)>,
}

impl World {
    /// A client is about to ask for a volume on a node.
    pub fn asks(&mut self, volume: VolumeIx, node: NodeIx) {
        self.told.unpublished.remove(&(volume, node));
        let asked = self.told.asked.entry((volume, node)).or_default();
        *asked = (asked.0 + 1, true);
    }

    /// Nodes that are named as having a volume which nobody wants there any more: a store that was set back tells of
    /// attachments that have ended since, and only who knows what is wanted can have them detached.
    #[must_use]
    pub fn not_wanted(&self, volume: VolumeIx, words: &str) -> Vec<NodeIx> {
        let named = |node: &NodeIx| words.contains(super::NODES[*node]);
        let not_wanted = |node: &NodeIx| self.told.unpublished.contains(&(volume, *node));
        let all = 0..super::NODES.len();
        all.filter(|node| self.disk.set_back && named(node) && not_wanted(node)).collect()
    }

    /// What clients have been told that they have.
    #[must_use]
    pub fn in_use(&self) -> Vec<(VolumeIx, NodeIx)> {
        self.told.published.keys().copied().collect()
    }

    /// A person is about to fence a node: from now on another one may be told that it has the volume. Gives how often
    /// the volume was asked for there.
    pub fn fence_asked(&mut self, volume: VolumeIx, node: NodeIx) -> u64 {
        self.told.published.remove(&(volume, node));
        self.told.asked.get(&(volume, node)).map_or(0, |(asked, _)| *asked)
    }

    /// The person was told that it is fenced.
    pub fn fenced(&mut self, volume: VolumeIx, node: NodeIx, asked_before: u64) {
        self.count("fenced on a person's word");
        let asked = self.told.asked.get(&(volume, node)).copied().unwrap_or_default();
        if asked == (asked_before, false) {
            self.over(volume, node);
        }
    }

    /// A person is about to say that a node is gone: another one may be told that it has what it had.
    pub fn said_to_be_gone(&mut self, node: NodeIx) {
        self.told.published.retain(|(_, of), _| *of != node);
    }

    /// A client is about to give a volume back from a node: from now on another one may be told that it has it.
    pub fn gives_back(&mut self, volume: VolumeIx, node: NodeIx) {
        self.told.published.remove(&(volume, node));
    }

    /// A client was told that a node has a volume.
    pub fn published(&mut self, volume: VolumeIx, node: NodeIx, epoch: (u64, u64)) {
        self.count("published");
        let may_write = self.may_write(volume);
        let told = &mut self.told;
        let mut wrong = None;
        if let Some((_, open)) = told.asked.get_mut(&(volume, node)) {
            *open = false;
        }
        told.published.insert((volume, node), epoch);
        let owner = *told.epochs.entry((volume, epoch)).or_insert(node);
        if owner != node {
            wrong = Some(format!("epoch {epoch:?} was given to {} before", super::NODES[owner]));
        }
        if let Some((last, ended)) = told.last.insert((volume, node), (epoch, false))
            && (epoch < last || (ended && epoch == last))
        {
            wrong = Some(format!("epoch {epoch:?} comes after {last:?} (ended: {ended})"));
        }
        let holders: Vec<_> = told.published.keys().filter(|(of, _)| *of == volume).collect();
        if holders.len() > may_write {
            let names: Vec<_> = holders.iter().map(|(_, node)| super::NODES[*node]).collect();
            wrong = Some(format!("published on {} at once", names.join(", ")));
        }
        if let Some(wrong) = wrong {
            self.violated("3", format!("{} on {}: {wrong}", self.volume(volume), super::NODES[node]));
        }
    }

    /// A client was told that a node cannot write to a volume any more.
    pub fn unpublished(&mut self, volume: VolumeIx, node: NodeIx) {
        self.count("unpublished");
        if let Some((_, open)) = self.told.asked.get_mut(&(volume, node)) {
            *open = false;
        }
        self.over(volume, node);
    }

    /// From now on the node must not be able to write.
    fn over(&mut self, volume: VolumeIx, node: NodeIx) {
        self.told.unpublished.insert((volume, node));
        if let Some((_, ended)) = self.told.last.get_mut(&(volume, node)) {
            *ended = true;
        }
        self.judge_unpublished(volume, node);
    }

    /// A client was told to wait, or that it may not.
    pub fn refused(&mut self, what: &str, volume: VolumeIx, code: Code, words: &str) {
        self.count("refused");
        let by_the_core = matches!(code, Code::Aborted | Code::FailedPrecondition | Code::AlreadyExists);
        let named =
            super::NODES.iter().any(|node| words.contains(node)) || words.contains(&self.volume(volume));
        if by_the_core && !named {
            self.violated("6", format!("{what}: {code:?} about nothing: {words:?}"));
        }
    }

    fn may_write(&self, volume: VolumeIx) -> usize {
        if super::is_shared(volume) { 2 } else { 1 }
    }

    /// Judges the world as it is now.
    pub(super) fn judge(&mut self) {
        for volume in 0..self.target.luns.len() {
            let can: BTreeSet<NodeIx> =
                (0..self.nodes.len()).filter(|node| self.could_write(*node, volume)).collect();
            let mut writers = can.clone();
            writers.extend(self.target.luns[volume].volume.received.iter().map(|write| write.host));
            if writers.len() > self.may_write(volume) {
                let names: Vec<_> = writers.iter().map(|node| super::NODES[*node]).collect();
                self.violated("1", format!("{}: {} can write", self.volume(volume), names.join(" and ")));
            }
            for node in can {
                if !self.disk.set_back && !self.disk.knows(&self.volume(volume), super::NODES[node]) {
                    let (volume, node) = (self.volume(volume), super::NODES[node]);
                    self.violated("4", format!("{volume}: {node} can write and is in no record"));
                }
            }
        }
        for (volume, node) in self.told.unpublished.clone() {
            self.judge_unpublished(volume, node);
        }
    }

    fn judge_unpublished(&mut self, volume: VolumeIx, node: NodeIx) {
        let (of, name) = (self.volume(volume), super::NODES[node]);
        if self.could_write(node, volume) {
            self.violated("2", format!("{of} was unpublished from {name}, which can write"));
        }
        if self.target.luns[volume].volume.lands_last(node).is_some() {
            self.violated("2", format!("{of} was unpublished from {name}, whose write is on its way"));
        }
    }

    /// Judges a request that has gone on for so long since nothing fails any more.
    pub fn judge_patience(&mut self, what: &str, healed_for: u64, last: &str) {
        if healed_for > ENDS_WITHIN {
            self.violated("5", format!("{what} has not ended {healed_for} ms after the last fault: {last}"));
        }
    }
}
