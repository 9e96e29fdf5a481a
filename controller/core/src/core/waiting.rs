//! What waits for what, read off the state. Decides nothing; the shell renders it.

use std::collections::BTreeSet;

use super::Core;
use super::admission::{Admission, Counted, Leaver, Room, admission};
use super::requests::RequestKind;
use crate::volume::Pending;
use crate::{
    Agent, Attachment, AttachmentWait, BoundCause, Condition, Drained, ExportFence, Heard, HolderWait,
    NodeId, ObservedPhase, Phase, Rung, SessionState, Source, UnixMillis, VolumeId, VolumeRecord, Wait,
};

/// A request that has not been answered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// "publish", "unpublish" or "fence".
    pub request: &'static str,
    /// For which node; `None`: all.
    pub node: Option<NodeId>,
    /// When it began.
    pub since: UnixMillis,
    /// What it waits for.
    pub wait: Wait,
}

impl Core {
    /// What a volume's attachment on a node waits for; `None` if for nothing.
    #[must_use]
    pub fn waits_for(&self, volume: &VolumeId, node: &NodeId) -> Option<AttachmentWait> {
        let lost = self.volumes.get(volume)?.attachment(node).and_then(|a| self.lost(volume, a));
        match lost {
            Some(unready) => {
                let condition = Condition::DeviceBack { node: node.clone(), unready: unready.to_owned() };
                Some(AttachmentWait { condition, last: None })
            }
            None => self.next_step_waits_for(volume, node),
        }
    }

    /// The same of what the core itself has to do next: it does nothing for a device that was lost, and nothing that was
    /// asked waits for that one.
    fn next_step_waits_for(&self, volume: &VolumeId, node: &NodeId) -> Option<AttachmentWait> {
        let record = self.volumes.get(volume)?;
        let a = record.attachment(node)?;
        let node = node.clone();
        let condition = match &a.phase {
            Phase::Ready => return None,
            Phase::Stray => Condition::CallAboutStray { node },
            Phase::Granting if a.unasked => Condition::RepeatedPublish { node },
            Phase::Granting if record.shut() => export_on(record),
            Phase::Connecting if record.hidden => export_on(record),
            Phase::Granting => Condition::HostAllowed,
            Phase::Connecting => Condition::Ready(self.agent_of(a)),
            Phase::Draining { evidence: None, .. } if matches!(a.pending, Pending::Allow(_)) => {
                Condition::GrantAnswered
            }
            Phase::Draining { evidence: None, fence, .. } => {
                Condition::Detached { agent: self.agent_of(a), fence: fence.clone() }
            }
            Phase::Draining { evidence: Some(_), fence: Some(fence), .. } if fence.rung == Rung::Barrier => {
                Condition::Drained { node, fence: fence.clone() }
            }
            Phase::Draining { evidence: Some(e), .. } => match e.drained {
                Drained::Bound { until } if !matches!(a.pending, Pending::Deny(_) | Pending::Close(..)) => {
                    let why = match &e.source {
                        Source::AgentAbsent { .. } | Source::NeverAllowed => BoundCause::MayHaveBroken,
                        Source::NodeGone { .. } => BoundCause::DeclaredGone,
                        Source::TargetCut { .. } | Source::Reservation { .. } | Source::ExportOff => {
                            BoundCause::CutWithoutDrain
                        }
                    };
                    Condition::DrainBound { node, until, why }
                }
                _ => Condition::HostDenied,
            },
        };
        Some(AttachmentWait { condition, last: a.trouble().cloned() })
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

    /// The agent of an attachment's node, and how it is heard.
    pub(super) fn agent_of(&self, a: &Attachment) -> Agent {
        let heard = match self.nodes.get(&a.node).map(|n| &n.session) {
            Some(SessionState::Up { inventoried: true, .. }) => Heard::Ready,
            Some(SessionState::Up { .. }) => Heard::NoInventory,
            Some(SessionState::Silent { since }) => Heard::SilentSince(*since),
            None => Heard::NeverSince(self.began),
        };
        Agent { node: a.node.clone(), heard }
    }

    /// The requests about a volume that are not answered yet, oldest first.
    #[must_use]
    pub fn waiting(&self, volume: &VolumeId, now: UnixMillis) -> Vec<Waiting> {
        let waiters = self.waiters.get(volume).into_iter().flat_map(|w| w.values());
        waiters
            .map(|waiter| {
                let (request, node) = match &waiter.kind {
                    RequestKind::Publish { node, .. } => ("publish", Some(node.clone())),
                    RequestKind::Unpublish { node } => ("unpublish", node.clone()),
                    RequestKind::Fence { node } => ("fence", Some(node.clone())),
                };
                let wait = self.request_waits_for(volume, &waiter.kind, now);
                Waiting { request, node, since: waiter.since, wait }
            })
            .collect()
    }

    /// Its agent has said Hello, and not yet what its kernel holds.
    fn awaits_inventory(&self, node: &NodeId) -> bool {
        let session = self.nodes.get(node).map(|n| &n.session);
        matches!(session, Some(SessionState::Up { inventoried: false, .. }))
    }

    pub(super) fn request_waits_for(&self, volume: &VolumeId, kind: &RequestKind, now: UnixMillis) -> Wait {
        if let Some(wait) = self.awaits_lists(volume, kind, now) {
            return wait;
        }
        let holders = self.volumes.get(volume).map(VolumeRecord::holders).unwrap_or_default();
        let detaches = matches!(kind, RequestKind::Unpublish { .. } | RequestKind::Fence { .. });
        let waits_for_holders = |pick: &dyn Fn(&NodeId) -> bool| {
            let waited_for = holders.iter().filter(|h| pick(h)).filter_map(|h| {
                let wait = self.next_step_waits_for(volume, h);
                // A detach from everywhere reaches those who had it; this one was let in after the call.
                (wait.is_some() || detaches).then(|| HolderWait { node: h.clone(), wait })
            });
            Wait::Holders(waited_for.collect())
        };
        if let Some(wait) = self.waits_for_ticket(volume, kind, now) {
            return wait;
        }
        match kind {
            RequestKind::Unpublish { node } => {
                waits_for_holders(&|h| node.as_ref().is_none_or(|n| self.may_be(h, n)))
            }
            RequestKind::Fence { node } => waits_for_holders(&|h| h == node),
            RequestKind::Publish { node, .. } if self.awaits_inventory(node) => {
                Wait::Inventory { node: node.clone() }
            }
            RequestKind::Publish { node, .. } if holders.contains(node) => waits_for_holders(&|h| h == node),
            RequestKind::Publish { node, spec, .. } => {
                if let Admission::WaitForLeaver(leaver) = admission(self.volumes.get(volume), node, spec) {
                    return self.leaving(volume, leaver);
                }
                match self.room_on(node, volume, Counted::Published, &BTreeSet::new()) {
                    Room::WaitForDetach { limit } => Wait::Room { node: node.clone(), limit },
                    _ if holders.is_empty() => Wait::Inventory { node: node.clone() },
                    _ => waits_for_holders(&|_| true),
                }
            }
        }
    }

    fn leaving(&self, volume: &VolumeId, Leaver { node, vm, is_draining }: Leaver) -> Wait {
        let wait = is_draining.then(|| self.next_step_waits_for(volume, &node)).flatten();
        Wait::Leaving { node, vm, wait }
    }
}

/// Why the export is off, and what brings it back.
fn export_on(record: &VolumeRecord) -> Condition {
    let volume = record.spec.id.clone();
    if let Some(entry) = record.fenced.iter().find(|f| f.blocks()) {
        return Condition::FencedNodeClean { volume, node: entry.node.clone(), since: entry.since };
    }
    let of = record.attachments.iter().filter_map(|a| Some((a, record.fence(&a.node)?)));
    let fences =
        of.map(|(a, fence)| ExportFence { node: a.node.clone(), rung: fence.rung, since: fence.since });
    Condition::ExportOn { volume, fences: fences.collect() }
}
