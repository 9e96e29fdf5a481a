//! The target: who it lets connect, whose sessions are up, what it has received and not landed, who is registered.

use std::collections::{BTreeMap, BTreeSet};

use cleat_core::{Epoch, HostNqn, NodeId, RdsRequest, Target};

use super::names::nqn;

/// One volume at the target.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Export {
    pub(crate) on: bool,
    pub(crate) allowed: BTreeSet<HostNqn>,
    pub(crate) secret: Option<Epoch>,
    /// Whose connections are up.
    pub(crate) sessions: BTreeSet<NodeId>,
    /// Writes that were received and not landed, by their host: until when.
    pub(crate) in_flight: BTreeMap<NodeId, u64>,
    /// Keys of hosts; once there is one, only registrants write.
    pub(crate) registered: BTreeMap<NodeId, u64>,
    pub(crate) reserved: bool,
    /// The keys that were aborted since everybody was forgotten.
    pub(crate) aborted: BTreeSet<u64>,
    /// Changes when the target forgets everybody.
    pub(crate) generation: u32,
}

impl Default for Export {
    fn default() -> Self {
        Self {
            on: true,
            allowed: BTreeSet::new(),
            secret: None,
            sessions: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            registered: BTreeMap::new(),
            reserved: false,
            aborted: BTreeSet::new(),
            generation: 0,
        }
    }
}

impl Export {
    /// Whether a host that knows this secret could connect now.
    pub(crate) fn admits(&self, target: &Target, node: &NodeId, secret: Option<Epoch>) -> bool {
        let listed = !target.acl || self.allowed.contains(&nqn(node));
        let knows = !target.secret || self.secret.is_none() || self.secret == secret;
        self.on && listed && knows
    }

    /// Whether it would take a write of a host that is connected.
    pub(crate) fn takes_writes_of(&self, node: &NodeId) -> bool {
        !self.reserved || self.registered.contains_key(node)
    }

    pub(crate) fn lands(&self, node: &NodeId, now: u64) -> bool {
        self.in_flight.get(node).is_some_and(|until| *until > now)
    }

    /// Anything at all that is still to land.
    pub(crate) fn drains(&self, now: u64) -> bool {
        self.in_flight.values().any(|until| *until > now)
    }

    /// Does what the RDS was asked; gives the sessions that end by it.
    pub(crate) fn does(&mut self, target: &Target, request: &RdsRequest) -> BTreeSet<NodeId> {
        match request {
            // Whoever is allowed is to get in: an export that is off goes on.
            RdsRequest::Allow { host_nqn, .. } => {
                self.allowed.insert(host_nqn.clone());
                self.on = true;
            }
            RdsRequest::Deny { host_nqn, .. } => drop(self.allowed.remove(host_nqn)),
            RdsRequest::Hide { .. } => {
                self.on = false;
                if target.export_cuts {
                    return std::mem::take(&mut self.sessions);
                }
            }
            RdsRequest::Show { .. } => self.on = true,
            RdsRequest::SetSecret { generation, .. } => self.secret = Some(*generation),
        }
        BTreeSet::new()
    }

    /// The namespace is made anew, after all sessions have ended.
    pub(crate) fn restarts(&mut self) {
        self.registered.clear();
        self.aborted.clear();
        self.reserved = false;
        self.generation += 1;
    }
}
