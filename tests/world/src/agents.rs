//! Agents: their streams, what they do with directives, and what they say.
//!
//! In come directives as they arrive; out go changes of the node's kernel and of the target, and answers. What always
//! holds: a stream delivers in order; what was on a stream that broke may still arrive, later, or never.

use cleat_core::{
    Directive, Epoch, Event, Grant, NodeSeen, Observed, ObservedPhase, OperationId, Outcome, SessionId,
};

use crate::check::Violation;
use crate::export::Over;
use crate::host::{Held, Path, Reach, Stream, failed};
use crate::names::{N, V, VOLUMES, identity, node_id, volume_id, volume_of};
use crate::world::World;

impl World {
    /// The agent opens a stream to a leader.
    pub(crate) fn connect(&mut self, n: N, which: usize) {
        if !self.may_connect(n, which) {
            return;
        }
        self.drop_stream(n);
        let id = SessionId::new(format!("s-{}", self.number())).expect("a session id");
        let (process, term) = (self.leaders[which].process, self.leaders[which].core.term());
        for v in (0..VOLUMES).filter(|v| self.told.unheard_stray[*v][n].is_some()).collect::<Vec<_>>() {
            self.told().unheard_stray[v][n] = Some(0);
        }
        let inventory =
            Event::Inventory { node: node_id(n), session: id.clone(), volumes: self.hosts[n].inventory() };
        let host = self.host(n);
        let boot = host.boot;
        host.term = term;
        host.stream =
            Some(Stream { id: id.clone(), process, to_agent: Vec::new(), to_controller: vec![inventory] });
        let max_volumes = self.setup.max_volumes;
        let (identity, seen) = (identity(n, boot), NodeSeen::default());
        self.event(which, Event::SessionUp { node: node_id(n), session: id, identity, max_volumes, seen });
        if self.setup.atomic_hello {
            self.controller_hears(n);
        }
    }

    /// Agents begin no stream to a leader of an earlier term than they have had one to; and one that was declared gone "stays so",
    /// so it is not heard by who has not heard of that.
    pub(crate) fn may_connect(&self, n: N, which: usize) -> bool {
        let newest = which == 0 || !self.told.gone[n];
        newest && self.leaders[which].core.term() >= self.hosts[n].term
    }

    /// The stream breaks. What was on it may still arrive, late.
    pub(crate) fn drop_stream(&mut self, n: N) {
        let Some(stream) = self.host(n).stream.take() else {
            return;
        };
        let lost = Event::SessionLost { node: node_id(n), session: stream.id };
        let alive = self.leader_of(stream.process).is_some();
        let host = self.host(n);
        host.late.extend(stream.to_agent);
        // Two are enough to have one overtake the other.
        let too_many = host.late.len().saturating_sub(2);
        host.late.drain(..too_many);
        if alive {
            let unheard = stream.to_controller.into_iter().chain([lost]);
            host.late_events.extend(unheard.map(|event| (stream.process, event)));
        }
    }

    /// The controller hears the next thing that an agent said.
    pub(crate) fn controller_hears(&mut self, n: N) {
        let Some(stream) = self.host(n).stream.as_mut().filter(|s| !s.to_controller.is_empty()) else {
            return;
        };
        let (process, event) = (stream.process, stream.to_controller.remove(0));
        let held = match &event {
            Event::Inventory { volumes, .. } => volumes.clone(),
            Event::Delta { observed, .. } => vec![observed.clone()],
            _ => Vec::new(),
        };
        let Some(which) = self.leader_of(process) else {
            return;
        };
        self.event(which, event);
        // From now on it can be known that somebody has it who was not granted it.
        let newest = which == 0 && self.leaders[0].process == process;
        for v in 0..self.setup.access.len() {
            let Some(older) = self.told.unheard_stray[v][n] else { continue };
            // One that an Attach has taken over meanwhile looks like any other device under its grant.
            let record = self.stored.get(&volume_id(v)).and_then(|r| r.attachment(&node_id(n)));
            let granted = |o: &Observed| {
                let goes_on = !o.ended || o.phase == ObservedPhase::Detaching;
                goes_on && record.is_some_and(|a| o.epoch == Some(a.epoch))
            };
            let of_it =
                |o: &Observed| o.phase != ObservedPhase::Absent && o.volume == volume_id(v) && !granted(o);
            // Of one that is cut off already nothing can be called back, and nothing more was promised.
            let fenced =
                self.stored.get(&volume_id(v)).is_some_and(|r| r.fenced.iter().any(|f| f.node == node_id(n)));
            let cut_off = fenced && !self.could_send(v, n);
            let heard = older == 0 && newest && !cut_off && held.iter().any(of_it);
            self.told().unheard_stray[v][n] = (!heard).then_some(older.saturating_sub(1));
        }
    }

    /// An agent says something, if there is a stream.
    pub(crate) fn says(&mut self, n: N, event: impl FnOnce(SessionId) -> Event) {
        if let Some(stream) = self.host(n).stream.as_mut() {
            let id = stream.id.clone();
            stream.to_controller.push(event(id));
        }
    }

    pub(crate) fn says_delta(&mut self, n: N, v: V) {
        let observed = self.hosts[n].observe(v);
        self.says(n, |session| Event::Delta { node: node_id(n), session, observed });
    }

    /// Writes that the target has received from a host will land some time until the bound is over.
    pub(crate) fn may_land(&mut self, v: V, n: N) {
        // Whose writes the target refuses has none on their way, but for those that an abort did not wait for.
        if self.exports[v].lets_write(n) || self.exports[v].lands_over(n, Over::Aborted, self.now) {
            let until = self.now + self.setup.config().drain_bound_ms;
            self.export(v).receives(n, Over::Ended, until);
        }
    }

    /// An agent carries out a directive and answers on the stream that it has.
    pub(crate) fn agent_does(&mut self, n: N, operation: OperationId, directive: &Directive, mishap: bool) {
        let (v, epoch, outcome) = match directive {
            Directive::Attach { grant } => {
                let v = volume_of(&grant.spec.id);
                (v, grant.epoch, self.agent_attaches(n, v, grant, mishap))
            }
            Directive::Detach { volume, epoch, .. } => {
                let v = volume_of(volume);
                (v, *epoch, self.agent_detaches(n, v, operation, *epoch, false))
            }
            Directive::Revoke { volume, epoch } => {
                let v = volume_of(volume);
                (v, *epoch, self.agent_detaches(n, v, operation, *epoch, true))
            }
            Directive::Preempt { volume, epoch, victims } => {
                let v = volume_of(volume);
                (v, *epoch, self.agent_preempts(n, v, *epoch, victims))
            }
            Directive::Rekey { volume, epoch, generation } => {
                let v = volume_of(volume);
                (v, *epoch, self.host(n).rekey(v, *epoch, *generation))
            }
            Directive::Count { .. } | Directive::Verify { .. } => return,
        };
        self.agent_answers(n, operation, v, epoch, outcome);
    }

    fn agent_detaches(&mut self, n: N, v: V, operation: OperationId, epoch: Epoch, force: bool) -> Outcome {
        let before = self.hosts[n].held[v].clone();
        let outcome = self.host(n).detach(v, operation, epoch, force);
        let ends = matches!(outcome, Outcome::Absent(_) | Outcome::Pending { .. });
        if ends && self.setup.dangers.unregisters_first {
            self.takes_its_key_off(v, n, before.as_ref());
        }
        self.device_gone(v, n, before);
        outcome
    }

    /// The end of a grant begins with the registration. What the target has received before it lands all the same; the
    /// deletion waits for what is on a live connection, if it comes to its end.
    fn takes_its_key_off(&mut self, v: V, n: N, before: Option<&Held>) {
        if let Some(before) = before.filter(|before| before.live())
            && self.exports[v].key_of(n).is_some()
        {
            let until = self.now + self.setup.config().drain_bound_ms;
            self.export(v).unregister(n);
            if before.used {
                self.export(v).receives(n, Over::Aborted, until);
            }
        }
    }

    /// A device was deleted. The kernel waits for what is on a live connection; what is on one that has broken may
    /// still land, unless the target had ended it.
    pub(crate) fn device_gone(&mut self, v: V, n: N, before: Option<Held>) {
        if let Some(before) = before
            && self.hosts[n].held[v].is_none()
        {
            if before.live() {
                self.export(v).unregister(n);
            }
            if before.whole() {
                self.export(v).lets_go_of(n, Over::Aborted);
            } else if before.paths.contains(&Path::HalfOpen) && before.used {
                self.may_land(v, n);
            }
        }
    }

    fn agent_attaches(&mut self, n: N, v: V, grant: &Grant, mishap: bool) -> Outcome {
        let paths = self.paths_at(v, n, grant.secret);
        let held_before = self.hosts[n].held[v].is_some();
        let used = self.told.handed_out[v][n] == Some(grant.epoch);
        let reach = Reach { paths, secret: grant.secret, reserve: grant.reserve, used };
        let outcome = self.host(n).attach(v, grant.epoch, reach, mishap);
        if !held_before && self.hosts[n].held[v].is_some() && Some(grant.epoch) <= self.told.over[v][n] {
            self.breaks(Violation::ConnectedUnderAnOldEpoch { v, n });
        }
        // Told by somebody who has not heard that a person says it is gone: that person's fault, too.
        let newest = self.leaders[0].process;
        let unheard = self.hosts[n].stream.as_ref().is_none_or(|s| s.process != newest);
        if self.told.wrongly_gone[n] && unheard && self.hosts[n].held[v].is_some() {
            (self.told().by_hand[v][n], self.told().unheard_stray[v][n]) = (true, Some(0));
        }
        if !matches!(outcome, Outcome::Ready { .. }) {
            return outcome;
        }
        if grant.reserve && !self.registers(v, n) {
            return failed("reservation", false);
        }
        let host = self.host(n);
        host.proven[v] = Some((grant.epoch, host.boot));
        outcome
    }

    /// An agent registers its key, and takes the reservation if nobody has; false if it may not: it was registered under
    /// this grant before and is no more, although the target has not started anew since, so somebody has preempted it.
    pub(crate) fn registers(&mut self, v: V, n: N) -> bool {
        let restarts = self.exports[v].restarts;
        let Some(held) = self.hosts[n].held[v].as_ref().filter(|h| h.live()) else {
            return false;
        };
        let key = held.epoch.reservation_key();
        let preempted =
            self.exports[v].key_of(n) != Some(key) && self.hosts[n].ledger[v].registered == Some(restarts);
        if preempted {
            return false;
        }
        self.host(n).ledger[v].registered = Some(restarts);
        let reservations = &mut self.export(v).volume.reservations;
        let old = reservations.key_of(n).filter(|old| *old != key);
        let registered = reservations.key_of(n) == Some(key) || reservations.register(n, old, key).is_ok();
        registered && (reservations.is_held() || reservations.reserve(n, key).is_ok())
    }

    fn agent_preempts(&mut self, n: N, v: V, epoch: Epoch, victims: &[Epoch]) -> Outcome {
        if let Some(refused) = self.hosts[n].speaks_for(v, epoch) {
            return refused;
        }
        let Some(own) = self.exports[v].key_of(n) else {
            return failed("reservation", false);
        };
        if !self.hosts[n].held[v].as_ref().is_some_and(Held::live) {
            return failed("reservation", false);
        }
        let mut aborted = Vec::new();
        for victim in victims {
            let key = victim.reservation_key();
            let preempted = self.export(v).volume.reservations.preempt(n, own, key);
            aborted.extend(preempted.is_ok().then_some(key));
            for m in preempted.into_iter().flatten() {
                if self.setup.truth.abort_waits {
                    self.export(v).lets_go_of(m, Over::Ended);
                } else if self.hosts[m].held[v].as_ref().is_some_and(|h| h.used && h.reaches()) {
                    // What came over connections that have ended is on its way already, or was waited for.
                    let until = self.now + self.setup.config().drain_bound_ms;
                    self.export(v).receives(m, Over::Aborted, until);
                }
            }
        }
        let left = self.exports[v].volume.reservations.registrants().iter();
        Outcome::Preempted { left: left.map(|(_, key)| *key).collect(), aborted }
    }

    pub(crate) fn agent_answers(
        &mut self,
        n: N,
        operation: OperationId,
        v: V,
        epoch: Epoch,
        outcome: Outcome,
    ) {
        self.host(n).answered = Some((operation, v, epoch, outcome.clone()));
        self.says(n, |session| Event::AgentDone {
            node: node_id(n),
            session,
            operation,
            volume: volume_id(v),
            epoch,
            outcome,
        });
        self.says_delta(n, v);
    }
}
