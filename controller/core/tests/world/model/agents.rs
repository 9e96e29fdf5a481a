//! Agents, sessions, and what happens to kernels and to the target.

use std::collections::{BTreeSet, VecDeque};

use cleat_core::{
    Directive, Epoch, Event, NodeId, NodeIdentity, OperationId, Outcome, RdsError, RdsRequest, Reservations,
    SessionId, VolumeId,
};

use super::World;
use super::host::{Stream, about, failed};
use super::names::{RdsAnswer, nqn};

impl World {
    pub(super) fn rds_does(&mut self, request: &RdsRequest) {
        let volume = match request {
            RdsRequest::Allow { volume, .. }
            | RdsRequest::Deny { volume, .. }
            | RdsRequest::Hide { volume }
            | RdsRequest::Show { volume }
            | RdsRequest::SetSecret { volume, .. } => volume.clone(),
        };
        let ended = self.exports.get_mut(&volume).expect("a volume").does(&self.setup.target, request);
        self.sessions_end(&volume, ended);
    }

    /// The target ends sessions; the hosts see it, with what was on its way.
    pub(super) fn sessions_end(&mut self, volume: &VolumeId, ended: BTreeSet<NodeId>) {
        for node in ended {
            if let Some(c) = self.hosts.get_mut(&node).and_then(|h| h.kernel.get_mut(volume)) {
                c.live = false;
            }
            self.breaks(volume, &node);
            self.says(volume, &node);
        }
    }

    pub(super) fn rds_answers(&mut self, answer: RdsAnswer) {
        let Some((operation, request)) = self.rds.pop_front() else {
            return;
        };
        if matches!(answer, RdsAnswer::Done | RdsAnswer::DoneUnheard) && !self.rds_performs(&request, answer)
        {
            self.rds.push_front((operation, request));
            return;
        }
        let result = match answer {
            RdsAnswer::Done => Ok(()),
            RdsAnswer::Refused => Err(RdsError::Refused("not today".into())),
            RdsAnswer::DoneUnheard | RdsAnswer::Lost => {
                Err(RdsError::Unreachable("no answer in time".into()))
            }
        };
        self.event(Event::RdsDone { operation, result });
    }

    /// Whether the RDS is done with it: one that drains takes its time with the first Hide, and says of a second one
    /// at once that the export is off. Bringing the export back waits for all of it.
    fn rds_performs(&mut self, request: &RdsRequest, answer: RdsAnswer) -> bool {
        let (now, unheard) = (self.now, answer == RdsAnswer::DoneUnheard);
        match request {
            RdsRequest::Hide { volume } if self.setup.target.export_drains => {
                let first = self.exports[volume].on;
                if first {
                    self.rds_does(request);
                    self.draining.insert(volume.clone());
                }
                let mine = self.draining.contains(volume);
                if unheard || !mine || !self.exports[volume].drains(now) {
                    // Whoever asks again does not wait for it.
                    self.draining.remove(volume);
                    return true;
                }
                false
            }
            RdsRequest::Show { volume } if self.setup.target.export_drains => {
                let busy = !self.exports[volume].on && self.exports[volume].drains(now) && !unheard;
                if !busy {
                    self.rds_does(request);
                }
                !busy
            }
            _ => {
                self.rds_does(request);
                true
            }
        }
    }

    pub(super) fn connect(&mut self, n: &NodeId) {
        self.drop_session(n);
        let host = self.hosts.get_mut(n).expect("a known host");
        if host.off || host.mute {
            return;
        }
        self.sessions += 1;
        let id = SessionId::new(format!("s-{}", self.sessions)).expect("a session id");
        let identity = NodeIdentity {
            host_nqn: nqn(n),
            host_id: n.to_string(),
            storage_addresses: Vec::new(),
            boot_id: format!("boot-{}", host.boot),
        };
        let names: BTreeSet<VolumeId> = host.kernel.keys().chain(host.ledger.keys()).cloned().collect();
        let volumes = names.iter().map(|v| host.observe(v)).collect();
        let inventory = Event::Inventory { node: n.clone(), session: id.clone(), volumes };
        host.stream = Some(Stream {
            id: id.clone(),
            to_agent: VecDeque::new(),
            to_controller: VecDeque::from([inventory]),
        });
        self.event(Event::SessionUp { node: n.clone(), session: id, identity });
    }

    pub(super) fn drop_session(&mut self, n: &NodeId) {
        if let Some(stream) = self.hosts.get_mut(n).and_then(|h| h.stream.take()) {
            self.event(Event::SessionLost { node: n.clone(), session: stream.id });
        }
    }

    pub(super) fn agent_hears(&mut self, n: &NodeId) {
        let host = self.hosts.get_mut(n).expect("a known host");
        let Some(message) = host.stream.as_mut().and_then(|s| s.to_agent.pop_front()) else {
            return;
        };
        host.heard.push_back(message.clone());
        if host.heard.len() > 2 {
            host.heard.pop_front();
        }
        self.agent_does(n, message);
    }

    /// What an agent does with a directive, by the rules that agents are held to.
    pub(super) fn agent_does(&mut self, n: &NodeId, (operation, directive): (OperationId, Directive)) {
        let (volume, epoch) = about(&directive);
        let outcome = match &directive {
            Directive::Attach { grant } => {
                let admitted = self.exports[&volume].admits(&self.setup.target, n, grant.secret);
                let mut outcome = self.host(n).attach(grant, admitted);
                if matches!(outcome, Outcome::Ready { .. }) {
                    export_of(self, &volume).sessions.insert(n.clone());
                    if !self.registers(n, &volume) {
                        outcome = failed("preempted", false);
                    }
                }
                if matches!(outcome, Outcome::Ready { .. }) {
                    self.proven.insert((volume.clone(), n.clone(), epoch));
                }
                outcome
            }
            Directive::Detach { .. } => self.takes_down(n, &volume, epoch, false),
            Directive::Revoke { .. } => self.takes_down(n, &volume, epoch, true),
            Directive::Rekey { generation, .. } => self.host(n).rekey(&volume, *generation),
            Directive::Preempt { victims, .. } => self.preempts(n, &volume, epoch, victims),
        };
        let host = self.host(n);
        if matches!(outcome, Outcome::Pending { .. }) && !host.stuck.contains(&(operation, directive.clone()))
        {
            host.stuck.push((operation, directive));
        }
        host.answered = Some((operation, volume.clone(), epoch, outcome.clone()));
        if let Some(stream) = host.stream.as_mut() {
            let session = stream.id.clone();
            let done = Event::AgentDone {
                node: n.clone(),
                session,
                operation,
                volume: volume.clone(),
                epoch,
                outcome,
            };
            stream.to_controller.push_back(done);
        }
        self.says(&volume, n);
    }

    fn takes_down(&mut self, n: &NodeId, volume: &VolumeId, epoch: Epoch, force: bool) -> Outcome {
        let held = self.host(n).kernel.contains_key(volume);
        let outcome = self.host(n).detach(volume, epoch, force);
        if held && !self.host(n).kernel.contains_key(volume) {
            let export = self.exports.get_mut(volume).expect("a volume");
            export.sessions.remove(n);
            export.registered.remove(n);
            // The last registrant's leaving releases the reservation: everybody who is connected writes again.
            export.reserved = !export.registered.is_empty();
        }
        outcome
    }

    /// The agent registers under the epoch of its grant: once, and again only at a target that has forgotten
    /// everybody. Says whether it is registered, or need not be.
    fn registers(&mut self, n: &NodeId, volume: &VolumeId) -> bool {
        if self.setup.target.reservations == Reservations::None {
            return true;
        }
        let export = self.exports.get_mut(volume).expect("a volume");
        let host = self.hosts.get_mut(n).expect("a known host");
        let Some(ledger) = host.ledger.get_mut(volume).filter(|l| !l.ended) else {
            return false;
        };
        let (Some(epoch), generation) = (ledger.epoch, export.generation) else {
            return false;
        };
        if ledger.registered != Some(generation) {
            ledger.registered = Some(generation);
            export.registered.insert(n.clone(), epoch.reservation_key());
            export.reserved = true;
        }
        export.registered.contains_key(n)
    }

    /// Preempt-and-abort, and the report after it. Where the abort waits, so does the answer.
    fn preempts(&mut self, n: &NodeId, volume: &VolumeId, epoch: Epoch, victims: &[Epoch]) -> Outcome {
        let now = self.now;
        let ledger = self.host(n).ledger.get(volume).cloned().unwrap_or_default();
        if ledger.epoch != Some(epoch) || ledger.ended {
            return Outcome::Stale { highest: ledger.epoch.unwrap_or(epoch), ended: ledger.ended };
        }
        if !self.exports[volume].sessions.contains(n) || !self.registers(n, volume) {
            return failed("not connected, or preempted", false);
        }
        let export = &self.exports[volume];
        let keys: Vec<u64> = victims.iter().map(|v| v.reservation_key()).collect();
        let hit: Vec<NodeId> =
            export.registered.iter().filter(|(_, key)| keys.contains(key)).map(|(n, _)| n.clone()).collect();
        for victim in &hit {
            // What it had sent before that.
            if self.exports[volume].sessions.contains(victim) {
                self.breaks(volume, victim);
            }
            let export = export_of(self, volume);
            let key = export.registered.remove(victim);
            export.aborted.extend(key);
        }
        let export = &self.exports[volume];
        if self.setup.target.reservations == Reservations::AbortWaits && export.drains(now) {
            return Outcome::Pending { message: "the abort waits".into() };
        }
        let aborted = keys.into_iter().filter(|key| export.aborted.contains(key)).collect();
        Outcome::Preempted { left: export.registered.values().copied().collect(), aborted }
    }

    /// A connection with a user breaks: what was on its way may land for as long as the backing store may hold it.
    pub(super) fn breaks(&mut self, v: &VolumeId, n: &NodeId) {
        if self.handed_out.contains(&(v.clone(), n.clone())) && self.exports[v].takes_writes_of(n) {
            let until = self.now + self.config.drain_bound_ms;
            export_of(self, v).in_flight.insert(n.clone(), until);
        }
    }

    /// The agent says what a volume is now, if it is heard.
    pub(super) fn says(&mut self, v: &VolumeId, n: &NodeId) {
        let host = self.host(n);
        let observed = host.observe(v);
        if let Some(stream) = host.stream.as_mut() {
            let delta = Event::Delta { node: n.clone(), session: stream.id.clone(), observed };
            stream.to_controller.push_back(delta);
        }
    }

    pub(super) fn controller_hears(&mut self, n: &NodeId) {
        let stream = self.hosts.get_mut(n).and_then(|h| h.stream.as_mut());
        if let Some(event) = stream.and_then(|s| s.to_controller.pop_front()) {
            self.event(event);
        }
    }

    /// The session of a connection ends with no hand of the target's.
    pub(super) fn path_dies(&mut self, v: &VolumeId, n: &NodeId, gone: bool) {
        let host = self.host(n);
        let Some(c) = host.kernel.get_mut(v).filter(|c| !(gone && c.wedged)) else {
            return;
        };
        let was_live = std::mem::replace(&mut c.live, false);
        if gone {
            host.kernel.remove(v);
        }
        export_of(self, v).sessions.remove(n);
        if was_live {
            self.breaks(v, n);
        }
        self.says(v, n);
    }

    /// The kernel connects again, where the target lets it; its queue is sent.
    pub(super) fn path_returns(&mut self, v: &VolumeId, n: &NodeId) {
        let Some(secret) = self.hosts[n].kernel.get(v).map(|c| c.secret) else {
            return;
        };
        if self.hosts[n].cut || !self.exports[v].admits(&self.setup.target, n, secret) {
            return;
        }
        export_of(self, v).sessions.insert(n.clone());
        self.registers(n, v);
        if let Some(c) = self.host(n).kernel.get_mut(v) {
            c.live = true;
        }
        self.says(v, n);
    }

    pub(super) fn unwedge(&mut self, v: &VolumeId, n: &NodeId) {
        if let Some(c) = self.host(n).kernel.get_mut(v) {
            c.wedged = false;
        }
        self.unstick(n);
    }

    /// What blocked goes on.
    pub(super) fn unstick(&mut self, n: &NodeId) {
        for directive in std::mem::take(&mut self.host(n).stuck) {
            self.agent_does(n, directive);
        }
    }

    /// The kernel dies; what it had sent may still land.
    pub(super) fn reboot(&mut self, n: &NodeId) {
        self.drop_session(n);
        let host = self.host(n);
        host.boot += 1;
        host.stuck.clear();
        // What was said to the machine before died with its sockets.
        host.heard.clear();
        host.late.clear();
        let held = std::mem::take(&mut host.kernel);
        for ledger in host.ledger.values_mut() {
            ledger.deleted.clear();
        }
        for (volume, connection) in held {
            export_of(self, &volume).sessions.remove(n);
            if connection.live {
                self.breaks(&volume, n);
            }
        }
    }

    pub(super) fn host(&mut self, n: &NodeId) -> &mut super::host::Host {
        self.hosts.get_mut(n).expect("a known host")
    }
}

pub(super) fn export_of<'w>(world: &'w mut World, v: &VolumeId) -> &'w mut super::target::Export {
    world.exports.get_mut(v).expect("a volume")
}
