//! Which host a node is: its record pins a host NQN and a host id.
//!
//! In comes what an agent says of itself, with what the store and the orchestrator say of its node at that moment; out
//! goes whether the pin lets go. What holds: no agent changes a pin. A person does, in the node's record or by a
//! declaration; and where the orchestrator has another Node under the name, the pin lets go by itself, but only of a
//! host that may write to nothing. What is not known lets go of nothing. Storage addresses are not pinned.

use super::Transition;
use crate::{HostNqn, NodeId, NodeIdentity, NodeRecord, NodeUid, PinHolds, SessionRefusal, StoredNode};

impl Transition<'_> {
    /// A person may have changed what the store has of the node. A host that is taken off the record is kept apart by what
    /// is kept of its volumes, and goes on to be heard as long as there is any of it. Gives why a change does not count yet.
    pub(super) fn take_over_pin(&mut self, node: &NodeId, stored: StoredNode) -> Option<PinHolds> {
        let kept = self.core.registry.get(node);
        match stored {
            // Before the lists were read, who is on one is known by the record as it was.
            StoredNode::Record(_) if kept.is_some() && !self.core.has_read_lists() => {
                return Some(PinHolds::InDoubt { volume: None });
            }
            // Attachments have the NQN alone: with another host id another host would speak for what this one has.
            StoredNode::Record(record) if self.holds_with_another_id(node, &record.identity) => {}
            StoredNode::Record(record) if record.node == *node => {
                let other = kept.filter(|kept| !kept.identity.is_same_host(&record.identity));
                // Another host that is heard under this name would count as heard for the one of which nobody knows what it
                // may write to.
                let in_doubt = other.and_then(|other| self.is_in_doubt(node, &other.identity.host_nqn));
                if in_doubt.is_some() {
                    return in_doubt;
                }
                if kept.is_none() || other.is_some() {
                    self.core.registry.insert(node.clone(), *record);
                }
            }
            StoredNode::Nothing if !self.holds_anything(node) => {
                let in_doubt = kept.and_then(|kept| self.is_in_doubt(node, &kept.identity.host_nqn));
                if in_doubt.is_some() {
                    return in_doubt;
                }
                self.core.registry.remove(node);
            }
            StoredNode::Record(_) | StoredNode::Nothing => {}
        }
        None
    }

    /// Why the host that connects is not the one that the node's record pins, and does not become it.
    pub(super) fn objection_of_pin(
        &self,
        node: &NodeId,
        identity: &NodeIdentity,
        uid: Option<&NodeUid>,
        held: Option<PinHolds>,
    ) -> Option<SessionRefusal> {
        if self.may_name(node, identity, uid) {
            return None;
        }
        let pin = self.core.registry.get(node)?;
        // Whoever may write has to be heard, or nobody could prove that he does not any more.
        let has_another_id = self.holds_with_another_id(node, identity);
        let is_a_holder = !has_another_id && self.is_a_holder(node, &identity.host_nqn);
        if pin.identity.host_nqn != identity.host_nqn && is_a_holder {
            return None;
        }
        let another_id = || {
            let held = self.core.index.of_node(node).next().filter(|_| has_another_id)?;
            Some(PinHolds::Holds { volume: held.clone() })
        };
        let another = || if is_another(pin, uid) { self.may_write(node, pin) } else { None };
        let holds = held.or_else(another_id).or_else(another).unwrap_or_else(|| match uid {
            Some(is) if pin.uid.as_ref() == Some(is) => PinHolds::SameNode(is.clone()),
            _ => PinHolds::NodeUnknown,
        });
        let (node, pinned, new) = (node.clone(), pin.identity.host(), identity.host());
        Some(SessionRefusal::Pinned { node, pinned, new, holds })
    }

    /// Whether the node's record may name this host from now on.
    pub(super) fn may_name(&self, node: &NodeId, identity: &NodeIdentity, uid: Option<&NodeUid>) -> bool {
        let Some(pin) = self.core.registry.get(node) else { return true };
        pin.identity.is_same_host(identity) || (is_another(pin, uid) && self.may_write(node, pin).is_none())
    }

    /// Whether that host may be the node within one boot of its kernel: a person says so, and the host that the node was
    /// before has left nothing.
    pub(super) fn is_consented_to(&self, node: &NodeId, identity: &NodeIdentity) -> bool {
        let pin = self.core.registry.get(node);
        pin.is_none_or(|pin| pin.identity.is_same_host(identity)) && !self.holds_anything(node)
    }

    /// To what the pinned host may write, or nobody can say that it may not.
    fn may_write(&self, node: &NodeId, pin: &NodeRecord) -> Option<PinHolds> {
        let (host, index) = (&pin.identity.host_nqn, &self.core.index);
        let volume =
            index.of_node(node).chain(index.of_host(host)).next().or_else(|| self.core.is_to_have(node));
        let known = volume.map(|volume| PinHolds::InDoubt { volume: Some(volume.clone()) });
        known.or_else(|| self.is_in_doubt(node, host))
    }

    /// Where nobody knows whether the host may write, or to what.
    fn is_in_doubt(&self, node: &NodeId, host: &HostNqn) -> Option<PinHolds> {
        let unclear = self.core.is_unclear(node).then_some(PinHolds::InDoubt { volume: None });
        unclear.or_else(|| self.in_doubt(host))
    }

    /// Whether the node has something, and its host is known with this NQN and another host id.
    fn holds_with_another_id(&self, node: &NodeId, identity: &NodeIdentity) -> bool {
        let kept = self.core.registry.get(node).map(|kept| &kept.identity);
        let mut known = kept.into_iter().chain(self.core.nodes.get(node).map(|known| &known.identity));
        self.holds_anything(node)
            && known.any(|k| k.host_nqn == identity.host_nqn && k.host_id != identity.host_id)
    }

    pub(super) fn is_a_holder(&self, node: &NodeId, host: &HostNqn) -> bool {
        let here = (node.clone(), host.clone());
        self.core.volumes_of(node).any(|record| record.hosts().contains(&here))
    }
}

/// Whether the orchestrator has another Node under the name by now.
fn is_another(pin: &NodeRecord, uid: Option<&NodeUid>) -> bool {
    pin.uid.as_ref().zip(uid).is_some_and(|(was, is)| was != is)
}
