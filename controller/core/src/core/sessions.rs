//! Agents that come, go, and say what their kernels hold.

use std::num::NonZeroU32;

use super::rds_lists::is_unknown_host;
use super::{Core, Transition};
use crate::{
    Attachment, Claim, DrainCause, Drained, Effect, Evidence, Fenced, Node, NodeId, NodeIdentity, NodeSeen,
    Notice, Observed, ObservedPhase, OlderBy, Phase, SessionId, SessionRefusal, SessionState, Source,
    Trouble, VolumeId, VolumeRecord,
};

/// Every other node that claims what only one may have. A storage address is a hint: only its NQN and its id distinguish
/// a host.
fn clashes_with(core: &Core, node: &NodeId, identity: &NodeIdentity) -> Vec<(NodeId, Claim)> {
    let registered = core.registry.iter().filter(|(id, _)| !core.nodes.contains_key(*id));
    let known = core.nodes.iter().map(|(id, known)| (id, &known.identity));
    let known = known.chain(registered.map(|(id, record)| (id, &record.identity)));
    let clash = |(id, other): (&NodeId, &NodeIdentity)| Some((id.clone(), other.clash(identity)?));
    known.filter(|(id, _)| *id != node).filter_map(clash).collect()
}

impl Transition<'_> {
    pub(super) fn session_up(
        &mut self,
        node: NodeId,
        session: SessionId,
        identity: NodeIdentity,
        max_volumes: Option<NonZeroU32>,
        NodeSeen { uid, stored }: NodeSeen,
    ) {
        let pin = self.core.registry.get(&node).cloned();
        let held = stored.and_then(|stored| self.take_over_pin(&node, stored));
        let clashes = clashes_with(self.core, &node, &identity);
        let objection = self.objection(&node, &identity, &clashes);
        let objection = objection.or_else(|| self.objection_of_pin(&node, &identity, uid.as_ref(), held));
        if let Some(refusal) = objection {
            // Who is refused changes nothing. What a person has made of the pin is read again with the next Hello.
            match pin {
                Some(pin) => drop(self.core.registry.insert(node, pin)),
                None => drop(self.core.registry.remove(&node)),
            }
            self.effects.push(Effect::RefuseSession { session, refusal: Box::new(refusal) });
            return;
        }
        // A host that was renamed: the old name holds nothing and is not heard.
        for (other, _) in clashes {
            self.core.nodes.remove(&other);
        }
        self.drop_entries_of_other_hosts(&node, &identity.host_nqn);
        self.recognise(&node, &identity);
        if self.may_name(&node, &identity, uid.as_ref()) {
            self.register(&node, &identity, uid);
        }
        self.desired_heard(&node, &identity.host_nqn);
        self.not_gone(&node, &session);
        self.not_cut_off(&node, &session);
        let up = SessionState::Up { id: session, since: self.now, inventoried: false };
        let replaced = self.core.nodes.remove(&node);
        if let Some(SessionState::Up { id, .. }) = replaced.as_ref().map(|n| &n.session) {
            let refusal = Box::new(SessionRefusal::Replaced { node: node.clone() });
            self.effects.push(Effect::RefuseSession { session: id.clone(), refusal });
        }
        self.core.nodes.insert(node.clone(), Node::new(identity, up, max_volumes));
        self.refresh_standing(&node);
        self.touched.extend(self.volumes_about(&node));
    }

    /// Why this agent may not speak for this node, naming both sides.
    fn objection(
        &self,
        node: &NodeId,
        identity: &NodeIdentity,
        clashes: &[(NodeId, Claim)],
    ) -> Option<SessionRefusal> {
        if is_unknown_host(node) {
            return Some(SessionRefusal::ReservedName { node: node.clone() });
        }
        let silent = |other| {
            self.core.nodes.get(other).is_none_or(|n| matches!(n.session, SessionState::Silent { .. }))
        };
        let two_hosts = clashes.iter().find(|(other, _)| !silent(other) || self.holds_anything(other));
        if let Some((other, claim)) = two_hosts {
            let (node, other, claim) = (node.clone(), other.clone(), claim.clone());
            return Some(SessionRefusal::SharedIdentity { node, other, claim });
        }
        // No agent makes another node's record that of its own host: under another name it is the same boot of one kernel.
        let is_a_holder = self.is_a_holder(node, &identity.host_nqn);
        if let Some(other) = self.another_host_of(node, identity).filter(|_| !is_a_holder) {
            let (node, claim) = (node.clone(), Claim::HostNqn(identity.host_nqn.clone()));
            return Some(SessionRefusal::SharedIdentity { node, other, claim });
        }
        if let Some(refusal) = self.objection_of_records(node, identity) {
            return Some(refusal);
        }
        let known = self.core.nodes.get(node)?;
        if known.identity.is_same_host(identity) {
            return None;
        }
        let heard = matches!(known.session, SessionState::Up { .. });
        let same_boot = known.identity.boot_id == identity.boot_id && !self.is_consented_to(node, identity);
        (heard || same_boot).then(|| SessionRefusal::TwoHosts {
            node: node.clone(),
            known: known.identity.host(),
            new: identity.host(),
        })
    }

    /// The node whose record has this host NQN, where that may be another host.
    fn another_host_of(&self, node: &NodeId, identity: &NodeIdentity) -> Option<NodeId> {
        let same_boot =
            |kept: &NodeIdentity| kept.boot_id == identity.boot_id && kept.host_id == identity.host_id;
        let mut others = self.core.registry.iter().filter(|(id, kept)| {
            *id != node && kept.identity.host_nqn == identity.host_nqn && !same_boot(&kept.identity)
        });
        others.next().map(|(id, _)| id.clone())
    }

    /// What is granted, and what was cut off, belongs to a host: neither may pass to another one, for its proofs would
    /// be about the wrong kernel.
    fn objection_of_records(&self, node: &NodeId, identity: &NodeIdentity) -> Option<SessionRefusal> {
        let index = &self.core.index;
        let about = index.of_node(node).chain(index.of_host(&identity.host_nqn));
        let records: Vec<&VolumeRecord> = about.filter_map(|id| self.core.volumes.get(id)).collect();
        let granted = records.iter().flat_map(|v| &v.attachments).map(|a| (&a.node, &a.host_nqn, false));
        let fenced = records.iter().flat_map(|v| &v.fenced).map(|f| (&f.node, &f.host_nqn, f.is_gone()));
        // A host that no node was known to be is whoever is heard with its NQN.
        let mut claims = granted.chain(fenced).filter(|(owner, ..)| !is_unknown_host(owner));
        let nqn = &identity.host_nqn;
        claims.find_map(|(owner, owned, gone)| match (owner == node, owned == nqn) {
            (false, true) => Some(SessionRefusal::HolderHasHostNqn {
                node: node.clone(),
                other: owner.clone(),
                host_nqn: nqn.clone(),
            }),
            (true, false) if !gone => Some(SessionRefusal::OtherHostMayHold {
                node: node.clone(),
                host_nqn: nqn.clone(),
                holder: owned.clone(),
            }),
            _ => None,
        })
    }

    pub(super) fn holds_anything(&self, node: &NodeId) -> bool {
        self.core.index.of_node(node).next().is_some()
    }

    pub(super) fn inventory(&mut self, node: &NodeId, session: &SessionId, volumes: Vec<Observed>) {
        let Some(known) = self.core.nodes.get_mut(node).filter(|n| n.is_session(session)) else {
            return;
        };
        if let SessionState::Up { inventoried, .. } = &mut known.session {
            *inventoried = true;
        }
        known.observed = volumes.into_iter().map(|o| (o.volume.clone(), o)).collect();
        let listed: Vec<VolumeId> = known.observed.keys().cloned().collect();
        // Nobody has heard of this node's paths since its last session: one may have been lost and come back, and what
        // was on it then may still land, unless the agent shows that none was.
        for volume in self.volumes_about(node) {
            let may_land = !self.is_shown_unbroken(&volume, node);
            if may_land && self.attachment_mut(&volume, node).is_some_and(|a| a.may_have_written()) {
                self.may_still_land(&volume, node);
            }
        }
        for volume in self.volumes_about(node).into_iter().chain(listed) {
            self.reconcile(&volume, node);
            self.observed_for_migration(&volume, node);
            self.touched.insert(volume);
        }
        self.unclear_reported(node);
    }

    pub(super) fn delta(&mut self, node: &NodeId, session: &SessionId, observed: Observed) {
        let Some(known) = self.core.nodes.get_mut(node).filter(|n| n.is_session(session)) else {
            return;
        };
        // Before the inventory a delta has nothing to be a difference to.
        if known.ready_session().is_none() {
            return;
        }
        let (volume, to) = (observed.volume.clone(), observed.phase);
        let (live_paths, unready) = (observed.live_paths, observed.unready.clone());
        let before = known.observed.insert(volume.clone(), observed);
        let from = before.map_or(ObservedPhase::Absent, |o| o.phase);
        if from != to {
            let (volume, node) = (volume.clone(), node.clone());
            self.notice(Notice::Health { volume, node, from, to, live_paths, unready });
        }
        self.reconcile(&volume, node);
        self.observed_for_migration(&volume, node);
        self.touched.insert(volume);
    }

    pub(super) fn session_lost(&mut self, node: &NodeId, session: &SessionId) {
        let now = self.now;
        let Some(known) = self.core.nodes.get_mut(node).filter(|n| n.is_session(session)) else {
            return;
        };
        known.session = SessionState::Silent { since: now };
        self.touched.extend(self.volumes_about(node));
    }

    /// Brings what is granted and what the node's kernel holds together.
    pub(super) fn reconcile(&mut self, volume: &VolumeId, node: &NodeId) {
        let observed = self.core.nodes.get(node).and_then(|n| n.observed.get(volume)).cloned();
        let phase = observed.as_ref().map_or(ObservedPhase::Absent, |o| o.phase);
        let held = phase != ObservedPhase::Absent;
        let ended = observed.as_ref().is_some_and(|o| o.ended);
        let Some(a) = self.core.volumes.get(volume).and_then(|v| v.attachment(node)) else {
            let cut_off = self.core.volumes.get(volume).is_some_and(|v| v.knows(node));
            match observed {
                // It cannot write, and is sent a Revoke.
                Some(observed) if cut_off => self.entry_observed(volume, node, &observed),
                Some(_) if held && self.cannot_be_in(volume, node) => self.claims_too_much(volume, node),
                Some(_) if held => self.adopt_stray(volume, node),
                _ => {}
            }
            return;
        };
        let granted = matches!(a.phase, Phase::Granting | Phase::Connecting | Phase::Ready);
        if granted && observed.as_ref().is_some_and(|o| o.epoch > Some(a.epoch)) {
            self.record_is_older(volume, node, OlderBy::LaterGrant);
        }
        let Some(a) = self.core.volumes.get(volume).and_then(|v| v.attachment(node)) else {
            return;
        };
        let by_another_hand =
            |o: &Observed| o.epoch != Some(a.epoch) || (o.ended && o.phase != ObservedPhase::Detaching);
        if held && !a.proven && observed.as_ref().is_some_and(by_another_hand) {
            self.held_otherwise(volume, node);
        }
        let Some(a) = self.core.volumes.get(volume).and_then(|v| v.attachment(node)) else {
            return;
        };
        // A path that is down may have had a write on it, which the target lands whenever it does; the kernel's own
        // repeat on another path does not call it back.
        // Gone with its end recorded is a detach; gone without is the kernel's own doing.
        let taken_down = a.phase.is_draining() && ended;
        let broken =
            matches!(phase, ObservedPhase::Degraded | ObservedPhase::Lost | ObservedPhase::Connecting)
                || !(held || taken_down);
        if a.may_have_written() && broken {
            self.may_still_land(volume, node);
        }
        let Some(a) = self.core.volumes.get(volume).and_then(|v| v.attachment(node)) else {
            return;
        };
        let over = observed.is_some_and(|o| o.epoch == Some(a.epoch) && o.ended);
        match &a.phase {
            // Its end was recorded by the node, so no Attach under this epoch will ever be accepted again.
            Phase::Ready if over => self.begin_drain(volume, node, DrainCause::Rollback),
            // A reboot, or somebody else's hand: the grant stands, the device has to be made and proven again.
            Phase::Ready if !held => self.enter(volume, node, Phase::Connecting),
            Phase::Stray if !held => self.begin_drain(volume, node, DrainCause::Rollback),
            // It was proven gone, and is there: the proof is worth nothing any more.
            Phase::Draining { cause, evidence: Some(e), fence }
                if held && phase != ObservedPhase::Detaching && e.source.says_nothing_is_held() =>
            {
                let (cause, fence) = (cause.clone(), fence.clone());
                self.dirty.insert(volume.clone());
                self.enter(volume, node, Phase::Draining { cause, evidence: None, fence });
            }
            Phase::Granting | Phase::Connecting | Phase::Ready | Phase::Stray | Phase::Draining { .. } => {}
        }
    }

    /// A node holds the volume that it is being granted, and not by that grant, or its ledger would say so: somebody
    /// has connected it by hand, and may be using it. That it was never sent an Attach, or never proven, is worth nothing then.
    fn held_otherwise(&mut self, volume: &VolumeId, node: &NodeId) {
        let until = self.now.plus(self.core.config.drain_bound_ms);
        if let Some(a) = self.attachment_mut(volume, node) {
            (a.directed, a.proven) = (true, true);
            if let Phase::Draining { evidence: Some(evidence), .. } = &mut a.phase
                && evidence.drained == Drained::NeverHandedOut
            {
                evidence.drained = Drained::Bound { until };
            }
        }
        self.may_still_land(volume, node);
        self.notice(Notice::StrayFound { volume: volume.clone(), node: node.clone() });
    }

    /// The node's agent shows that nothing of this grant has broken while nobody heard of it: what it had on its way is on a
    /// connection that is still there. It is about this boot and this grant alone, and takes back no bound that was begun: a
    /// cut at the target may not have come to the node's notice yet.
    fn is_shown_unbroken(&self, volume: &VolumeId, node: &NodeId) -> bool {
        let attachment = self.core.volumes.get(volume).and_then(|record| record.attachment(node));
        let Some((a, known)) = attachment.zip(self.core.nodes.get(node)) else {
            return false;
        };
        let this_boot = a.boot_id.as_ref() == Some(&known.identity.boot_id);
        known.observed.get(volume).is_some_and(|o| {
            let of_this_grant = o.epoch == Some(a.epoch) && !o.ended;
            this_boot && of_this_grant && o.phase == ObservedPhase::Ready && o.unbroken
        })
    }

    /// A bound that has passed is not kept: after the next start it would be counted again, since that one's clock may be
    /// another.
    pub(super) fn lands_no_more(&mut self, volume: &VolumeId) {
        let now = self.now;
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        for a in &mut record.attachments {
            if a.may_land_until.take_if(|until| *until <= now).is_some() {
                self.dirty.insert(volume.clone());
            }
        }
    }

    /// The device has gone from under its user: what was on its way then may land until the drain bound has passed.
    pub(super) fn may_still_land(&mut self, volume: &VolumeId, node: &NodeId) {
        let until = self.now.plus(self.core.config.drain_bound_ms);
        if let Some(a) = self.attachment_mut(volume, node) {
            a.may_land_until = Some(until);
            self.dirty.insert(volume.clone());
        }
    }

    /// The target has ended all sessions since this node could have had one, and has not let its host in again.
    fn cannot_be_in(&self, volume: &VolumeId, node: &NodeId) -> bool {
        let host = self.core.nodes.get(node).map(|n| &n.identity.host_nqn);
        let let_in = self.core.volumes.get(volume).and_then(|record| record.let_in.as_ref());
        host.zip(let_in).is_some_and(|(host, let_in)| !let_in.contains(host))
    }

    /// A node says that it holds what it cannot be connected to. It keeps nobody else out by that; it is directed to revoke
    /// it, and is granted nothing until it has shown that it does not hold it.
    fn claims_too_much(&mut self, volume: &VolumeId, node: &NodeId) {
        let Some(host_nqn) = self.core.nodes.get(node).map(|n| n.identity.host_nqn.clone()) else {
            return;
        };
        let (epoch, at) = (self.next_epoch(), self.now);
        let (source, drained) = (Source::NeverAllowed, Drained::NeverHandedOut);
        let evidence = Evidence { node: node.clone(), epoch, source, drained, at, statement: None };
        if let Some(record) = self.core.volumes.get_mut(volume) {
            record.fenced.push(Fenced::new(node.clone(), host_nqn, evidence, at));
        }
        self.dirty.insert(volume.clone());
        self.touched.insert(volume.clone());
        self.refresh_standing(node);
        self.tell_trouble(volume, node, Trouble::ClaimsTooMuch);
        self.notice(Notice::Quarantined { volume: volume.clone(), node: node.clone() });
    }

    /// A node holds a volume that it was not granted: from now on it counts as able to write.
    fn adopt_stray(&mut self, volume: &VolumeId, node: &NodeId) {
        let Some(host_nqn) = self.core.nodes.get(node).map(|n| n.identity.host_nqn.clone()) else {
            return;
        };
        let epoch = self.next_epoch();
        let now = self.now;
        // Nobody knows since when it is there: a path may have broken before it was heard of, and come back.
        let may_land_until = Some(now.plus(self.core.config.drain_bound_ms));
        let found = self.core.found_volume(volume);
        let record = self.core.volumes.entry(volume.clone()).or_insert(found);
        let mut stray = Attachment::found(node.clone(), host_nqn, epoch, Phase::Stray, now);
        (stray.stray, stray.may_land_until) = (true, may_land_until);
        stray.trouble = Some(Trouble::HeldWithoutGrant);
        record.join(stray);
        self.dirty.insert(volume.clone());
        self.notice(Notice::StrayFound { volume: volume.clone(), node: node.clone() });
    }
}

#[cfg(test)]
#[path = "stray_tests.rs"]
mod tests;
