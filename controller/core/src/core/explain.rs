//! What waits for what, in words for people. Reads the state; decides nothing.

use super::Core;
use super::requests::Want;
use crate::refusal::when;
use crate::volume::Pending;
use crate::{
    Attachment, Drained, Fence, FenceStep, NodeId, ObservedPhase, Phase, Rung, Session, Source, UnixMillis,
    VolumeId, VolumeRecord,
};

/// A request that has not been answered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// "publish", "unpublish" or "fence".
    pub request: &'static str,
    /// For which node; `None`: all.
    pub node: Option<NodeId>,
    /// Since when.
    pub since: UnixMillis,
    /// For what, in words.
    pub waits_for: String,
}

impl Core {
    /// What a volume's attachment on a node waits for, in words; `None` if for nothing.
    #[must_use]
    pub fn waits_for(&self, volume: &VolumeId, node: &NodeId) -> Option<String> {
        let lost = self.volumes.get(volume)?.attachment(node).and_then(|a| self.lost(volume, a));
        match lost {
            Some(why) => Some(format!("node {node} to have its device back ({why})")),
            None => self.next_step_waits_for(volume, node),
        }
    }

    /// The same of what the core itself has to do next: it does nothing for a device that was lost, and nothing that was
    /// asked waits for that one.
    fn next_step_waits_for(&self, volume: &VolumeId, node: &NodeId) -> Option<String> {
        let record = self.volumes.get(volume)?;
        let a = record.attachment(node)?;
        let mut words = match &a.phase {
            Phase::Ready => return None,
            Phase::Stray => {
                format!("node {node} holds it without a grant: publish it there, or unpublish it from there")
            }
            Phase::Granting if a.unasked => {
                format!("a Publish on node {node}: it was being granted when the controller was started")
            }
            Phase::Granting if record.shut() => export_off_in_words(record),
            Phase::Connecting if record.hidden => export_off_in_words(record),
            Phase::Granting => "the RDS to allow the host".into(),
            Phase::Connecting => self.waits_for_agent(a, "to connect and prove that it can use the device"),
            Phase::Draining { evidence: None, .. } if matches!(a.pending, Pending::Allow(_)) => {
                "the RDS's answer to the grant that is being taken back".into()
            }
            Phase::Draining { evidence: None, fence: Some(fence), .. } => {
                format!(
                    "{}; and for its fence: {}",
                    self.waits_for_agent(a, "to detach and prove that nothing of it is left"),
                    fence_in_words(fence)
                )
            }
            Phase::Draining { evidence: None, .. } => {
                self.waits_for_agent(a, "to detach and prove that nothing of it is left")
            }
            Phase::Draining { evidence: Some(_), fence: Some(fence), .. } if fence.rung == Rung::Barrier => {
                format!("what node {node} wrote to be drained: {}", fence_in_words(fence))
            }
            Phase::Draining { evidence: Some(e), .. } => match e.drained {
                Drained::Bound { until } if !matches!(a.pending, Pending::Deny(_) | Pending::Close(..)) => {
                    let why = match &e.source {
                        Source::AgentAbsent { .. } | Source::NeverAllowed => {
                            "has it no more, but a connection may have broken under its user"
                        }
                        Source::NodeGone { .. } => "was declared gone",
                        _ => "was cut off, by a target that is not known to wait for what it has received",
                    };
                    format!(
                        "the drain bound of the target, until {}: node {node} {why}, so writes may still be on their way",
                        when(until)
                    )
                }
                _ => "the RDS to take the host off its list".into(),
            },
        };
        if let Some(trouble) = a.trouble() {
            words.push_str(&format!(" (last: {trouble})"));
        }
        Some(words)
    }

    /// The phase of a volume's attachment as it is to be shown: one whose node says that it cannot use the device is not
    /// Ready, whatever was proven before. The grant stands, and the node may write again at any moment.
    #[must_use]
    pub fn phase_shown(&self, volume: &VolumeId, a: &Attachment) -> &'static str {
        if self.lost(volume, a).is_some() { "Lost" } else { a.phase.name() }
    }

    /// Why a node that was ready cannot use the device, if its agent says so.
    fn lost(&self, volume: &VolumeId, a: &Attachment) -> Option<&str> {
        let observed = self.nodes.get(&a.node)?.observed.get(volume)?;
        let unusable = matches!(observed.phase, ObservedPhase::Lost | ObservedPhase::Connecting);
        (a.phase == Phase::Ready && unusable).then_some(observed.unready.as_str())
    }

    pub(super) fn waits_for_agent(&self, a: &Attachment, to_do: &str) -> String {
        let node = &a.node;
        match self.nodes.get(node).map(|n| &n.session) {
            Some(Session::Up { inventoried: true, .. }) => format!("the agent of node {node} {to_do}"),
            Some(Session::Up { .. }) => format!("the inventory of node {node}, then for its agent {to_do}"),
            Some(Session::Silent { since }) => {
                format!("the agent of node {node}, silent since {}, {to_do}", when(*since))
            }
            None => format!("the agent of node {node}, not heard since {}, {to_do}", when(self.began)),
        }
    }

    /// The requests about a volume that are not answered yet, oldest first.
    #[must_use]
    pub fn waiting(&self, volume: &VolumeId, now: UnixMillis) -> Vec<Waiting> {
        let waiters = self.waiters.get(volume).into_iter().flat_map(|w| w.values());
        waiters
            .map(|waiter| {
                let (request, node) = match &waiter.want {
                    Want::Publish { node, .. } => ("publish", Some(node.clone())),
                    Want::Unpublish { node } => ("unpublish", node.clone()),
                    Want::Fence { node } => ("fence", Some(node.clone())),
                };
                let waits_for = self.waits_for_in_words(volume, &waiter.want, now);
                Waiting { request, node, since: waiter.since, waits_for }
            })
            .collect()
    }

    /// Its agent has said Hello, and not yet what its kernel holds.
    fn awaits_inventory(&self, node: &NodeId) -> bool {
        let session = self.nodes.get(node).map(|n| &n.session);
        matches!(session, Some(Session::Up { inventoried: false, .. }))
    }

    pub(super) fn waits_for_in_words(&self, volume: &VolumeId, want: &Want, now: UnixMillis) -> String {
        if let Some(words) = self.must_look(volume, want, now) {
            return words;
        }
        let holders = self.volumes.get(volume).map(VolumeRecord::holders).unwrap_or_default();
        let detaches = matches!(want, Want::Unpublish { .. } | Want::Fence { .. });
        let waits_for_holders = |pick: &dyn Fn(&NodeId) -> bool| {
            let words: Vec<String> = holders
                .iter()
                .filter(|h| pick(h))
                .filter_map(|h| match self.next_step_waits_for(volume, h) {
                    Some(words) => Some(format!("on node {h}: waits for {words}")),
                    // A detach from everywhere tells those who had it; this one was let in after it was asked for.
                    None => detaches
                        .then(|| format!("on node {h}: it was granted there since: unpublish it from there")),
                })
                .collect();
            words.join("; ")
        };
        match want {
            Want::Unpublish { node } => {
                waits_for_holders(&|h| node.as_ref().is_none_or(|n| self.may_be(h, n)))
            }
            Want::Fence { node } => waits_for_holders(&|h| h == node),
            Want::Publish { node, .. } if self.awaits_inventory(node) => {
                format!("the inventory of node {node}")
            }
            Want::Publish { node, .. } if holders.contains(node) => waits_for_holders(&|h| h == node),
            Want::Publish { node, .. } if holders.is_empty() => format!("the inventory of node {node}"),
            Want::Publish { .. } => waits_for_holders(&|_| true),
        }
    }
}

/// Why the export is off, and what brings it back.
fn export_off_in_words(record: &VolumeRecord) -> String {
    let id = &record.spec.id;
    if let Some(entry) = record.fenced.iter().find(|f| f.blocks()) {
        let (node, since) = (&entry.node, when(entry.since));
        return format!(
            "the agent of node {node} to show that it holds none of volume {id}: it was fenced by taking the export off \
             alone, at {since}, which stays off until then"
        );
    }
    let of = record.attachments.iter().filter_map(|a| Some((a, record.fence(&a.node)?)));
    let fences: Vec<String> = of
        .map(|(a, fence)| {
            format!("the fence of node {} (rung {}, since {})", a.node, fence.rung.name(), when(fence.since))
        })
        .collect();
    let whose = if fences.is_empty() { "a fence that is over".to_owned() } else { fences.join(" and ") };
    format!("the RDS to bring the export of volume {id} back, which was taken off for {whose}")
}

/// A fence's rung and step, and what was tried before, in words.
fn fence_in_words(fence: &Fence) -> String {
    let step = match fence.step {
        FenceStep::Deny => "the RDS to take the host off its list",
        FenceStep::Preempt => "another node to preempt the registration",
        FenceStep::SetSecret => "the RDS to put another secret in force",
        FenceStep::Rekey => "the other nodes to take over the new secret",
        FenceStep::Hide => "the RDS to take the export off",
        FenceStep::Refused => "nothing: no rung was left, and the ladder is tried again later",
    };
    let tried: Vec<String> =
        fence.tried.iter().map(|t| format!("{} ({})", t.rung.name(), t.result)).collect();
    let mut words = format!("rung {}, {step}", fence.rung.name());
    if !tried.is_empty() {
        words.push_str(&format!(", after {}", tried.join("; ")));
    }
    words
}
