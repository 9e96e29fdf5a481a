//! Nodes that are to have a volume which nobody can name. Records may be lost while that is known: so after a start nobody
//! is let in to a volume that no record describes before those nodes have said what they hold.
//!
//! In come their names ([`Event::DesiredUnclear`](crate::Event)), once, at a start; out go waits of requests, and a notice
//! for each. What holds: a node is not waited for any more once its agent has sent its inventory, or once a person has
//! declared it gone where the volume's owner lets that suffice; what it had sent before then may land for the drain bound.
//! A volume that was made since is nobody's.

use std::collections::{BTreeMap, BTreeSet};

use super::requests::RequestKind;
use super::{Core, Transition};
use crate::{ListDoubt, NodeId, Notice, Rung, UnixMillis, VolumeId, VolumeRecord, Wait};

/// Who is to have what cannot be named.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Unclear {
    /// `true`: a person has declared the node gone.
    nodes: BTreeMap<NodeId, bool>,
    /// What those that are waited for no more had sent may land until then.
    lands_until: Option<UnixMillis>,
    /// Volumes that were made since.
    made: BTreeSet<VolumeId>,
}

/// Whether a record says who may write to the volume: it was described by a Publish, or made without anybody having had it.
/// Where somebody was only found with it, others may have it, too.
fn is_described(record: &VolumeRecord) -> bool {
    let nobody_had_it =
        record.attachments.is_empty() && record.fenced.is_empty() && record.past_evidence.is_empty();
    record.spec.subsystem_nqn.is_some() || nobody_had_it
}

impl Core {
    /// What a request waits for because a node may have the volume that is to have some.
    pub(super) fn awaits_unclear(
        &self,
        volume: &VolumeId,
        kind: &RequestKind,
        now: UnixMillis,
    ) -> Option<Wait> {
        let unclear = &self.unclear;
        if unclear.made.contains(volume) || self.volumes.get(volume).is_some_and(is_described) {
            return None;
        }
        let is_waited_for = |node: &NodeId, gone: bool| match kind {
            RequestKind::Publish { node: about, spec, .. } => {
                node != about && !(gone && Rung::NodeGone.suffices_for(spec.min_fence))
            }
            RequestKind::Unpublish { node: Some(about) } | RequestKind::Fence { node: about } => {
                node == about && !gone
            }
            RequestKind::Unpublish { node: None } => !gone,
        };
        let nodes = unclear.nodes.iter().filter(|(node, gone)| is_waited_for(node, **gone));
        let nodes: Vec<NodeId> = nodes.map(|(node, _)| node.clone()).collect();
        let (volume, doubt) = (volume.clone(), ListDoubt::Unclear);
        if !nodes.is_empty() {
            return Some(Wait::Reports { volume, nodes, doubt });
        }
        // A node's detach is about what that node has sent alone.
        let of_one = matches!(kind, RequestKind::Unpublish { node: Some(_) } | RequestKind::Fence { .. });
        let until = unclear.lands_until.filter(|until| now < *until && !of_one)?;
        Some(Wait::ListDrainBound { volume, until, doubt })
    }

    /// Whether the node is to have a volume which nobody can name, and was not heard since.
    pub(super) fn is_unclear(&self, node: &NodeId) -> bool {
        self.unclear.nodes.contains_key(node)
    }
}

impl Transition<'_> {
    /// Takes in who they are.
    pub(super) fn desired_unclear(&mut self, nodes: BTreeSet<NodeId>) {
        for node in nodes {
            self.notice(Notice::DesiredUnclear { node: node.clone() });
            self.core.unclear.nodes.insert(node, false);
        }
    }

    /// The node has said what it holds.
    pub(super) fn unclear_reported(&mut self, node: &NodeId) {
        if self.core.unclear.nodes.remove(node).is_some() {
            self.unclear_lands();
        }
    }

    /// A person has declared the node gone.
    pub(super) fn unclear_gone(&mut self, node: &NodeId) {
        if let Some(gone) = self.core.unclear.nodes.get_mut(node) {
            *gone = true;
            self.unclear_lands();
        }
    }

    fn unclear_lands(&mut self) {
        self.core.unclear.lands_until = Some(self.now.plus(self.core.config.drain_bound_ms));
        self.touched.extend(self.core.waiters.keys().cloned());
    }

    /// A volume was made: nobody has it.
    pub(super) fn unclear_made(&mut self, volume: &VolumeId) {
        let unclear = &mut self.core.unclear;
        let is_over = unclear.lands_until.is_none_or(|until| until <= self.now);
        if !(unclear.nodes.is_empty() && is_over) {
            unclear.made.insert(volume.clone());
        }
    }
}

#[cfg(test)]
#[path = "unclear_tests.rs"]
mod tests;
