//! What can happen next in a world, and what it costs.
//!
//! In comes a world; out come the [`Action`]s that are possible in it and change something. Faults cost one of the
//! fault budget, requests of callers one of theirs, and the clock one of its own; all that heals or delivers is free.
//! Nodes are alike, so one that nothing has happened to yet is taken only after those with lower numbers.

use std::sync::Arc;

use cleat_core::{Event, RdsFailure, RdsRequest, RequestId};

use crate::export::VolumeDeletion;
use crate::host::Path;
use crate::kinds::{Action, Answer};
use crate::names::{N, NODES, P, PORTALS, V, node_id, volume_id};
use crate::world::{Ask, World};

impl World {
    /// All that can happen next.
    #[must_use]
    pub fn actions(&self) -> Vec<Action> {
        let mut all = Vec::new();
        if self.broken.is_some() {
            return all;
        }
        self.of_callers(&mut all);
        self.of_messages(&mut all);
        self.of_nodes(&mut all);
        if self.setup.dangers.kubevirt_errs {
            self.of_kubevirt(&mut all);
        }
        if self.setup.in_cluster() {
            self.of_cluster(&mut all);
        }
        if self.setup.dangers.tickets {
            self.of_tickets(&mut all);
        }
        if self.budget.faults > 0 && !self.setup.dangers.nothing_else {
            self.faults(&mut all);
        }
        if self.budget.ticks > 0 {
            all.push(Action::Tick);
        }
        all
    }

    /// Whether it can happen next. What ends the day of callers is theirs alone, so it always can.
    #[must_use]
    pub fn can_happen(&self, action: Action) -> bool {
        match action {
            Action::Pass(_) | Action::UnpublishAll(_) => self.broken.is_none(),
            action => self.actions().contains(&action),
        }
    }

    fn of_callers(&self, all: &mut Vec<Action>) {
        if self.budget.requests == 0 {
            return;
        }
        for v in 0..self.setup.access.len() {
            for n in (0..self.setup.nodes).take_while(|n| *n == 0 || !self.is_fresh(n - 1)) {
                let open = |ask| self.open.values().any(|o| *o == (v, Some(n), ask));
                // There is no second VolumeAttachment of that name while one is being deleted.
                let going = self.cluster.attachments[v][n].as_ref().is_some_and(|a| a.deleting);
                if !open(Ask::Publish) && !going {
                    all.push(Action::Publish(v, n));
                }
                if self.is_fresh(n) {
                    continue;
                }
                if !open(Ask::Unpublish) {
                    all.push(Action::Unpublish(v, n));
                }
                if self.setup.persons && !open(Ask::Fence) {
                    all.push(Action::Fence(v, n));
                }
            }
        }
        if self.setup.persons {
            let wrong =
                |n: &N| self.setup.dangers.wrong_words && !self.told.said_gone[*n] && !self.is_fresh(*n);
            let gone = self.nodes().filter(|n| self.hosts[*n].off || wrong(n));
            all.extend(gone.map(Action::DeclareGone));
        }
        if self.setup.dangers.deletes {
            let free = |v: &V| self.exports[*v].deletion.is_none() && self.told.specified[*v];
            let asked = |v: &V| self.open.values().any(|o| *o == (*v, None, Ask::Delete));
            let volumes = 0..self.setup.access.len();
            all.extend(volumes.filter(|v| free(v) && !asked(v)).map(Action::Delete));
        }
    }

    /// Nothing has happened to this node yet, as far as volumes go.
    pub(crate) fn is_fresh(&self, n: N) -> bool {
        let granted = self.told.granted.iter().any(|v| !v[n].is_empty());
        let held = self.hosts[n].held.iter().any(Option::is_some);
        let asked = self.open.values().any(|(_, node, _)| *node == Some(n));
        let host = &self.hosts[n];
        let befell = host.boot != 0 || host.off || host.cut || host.wedged || host.broke.contains(&true);
        !granted && !asked && !held && !befell
    }

    fn of_messages(&self, all: &mut Vec<Action>) {
        for (which, leader) in self.leaders.iter().enumerate() {
            for v in 0..self.setup.access.len() {
                if self.waits_for_its_record(which, v) {
                    all.push(Action::Durable(which, v));
                }
                if let Some(asked) = leader.asked.iter().find(|a| crate::act::lane(&a.request) == v) {
                    all.push(Action::Rds(which, v, Answer::Done));
                    if self.budget.faults > 0 && !asked.done {
                        let unhappy = [Answer::Refused, Answer::DoneUnheard, Answer::UndoneUnheard];
                        all.extend(unhappy.map(|answer| Action::Rds(which, v, answer)));
                        let everywhere = |r: &RdsRequest| {
                            use RdsRequest::{Close, Hide, Show};
                            matches!(r, Hide { .. } | Close { .. } | Show { .. })
                        };
                        if self.setup.portals > 1 && everywhere(&asked.request) {
                            let half = [Answer::HalfRefused, Answer::HalfUnheard];
                            all.extend(half.map(|answer| Action::Rds(which, v, answer)));
                        }
                    }
                }
            }
        }
        for v in 0..self.setup.access.len() {
            match self.exports[v].deletion {
                Some(VolumeDeletion::Asked) => {
                    all.push(Action::Deleted(v, Answer::Done));
                    if self.budget.faults > 0 {
                        let unhappy = [Answer::Refused, Answer::DoneUnheard, Answer::UndoneUnheard];
                        all.extend(unhappy.map(|answer| Action::Deleted(v, answer)));
                    }
                }
                Some(VolumeDeletion::Late) => all.push(Action::DeletesLate(v)),
                None => {}
            }
            if self.exports[v].lacking {
                all.push(Action::HasAgain(v));
            }
            if !self.exports[v].late.is_empty() {
                all.push(Action::LandsLate(v));
            }
        }
        for n in 0..self.setup.nodes {
            let host = &self.hosts[n];
            let stream = host.stream.as_ref();
            if !host.off && stream.is_some_and(|s| !s.to_agent.is_empty()) {
                all.push(Action::ToAgent(n));
            }
            if stream.is_some_and(|s| !s.to_controller.is_empty()) {
                all.push(Action::ToController(n));
            }
            if !host.late_events.is_empty() {
                all.push(Action::LateEvent(n));
            }
        }
    }

    fn of_nodes(&self, all: &mut Vec<Action>) {
        for n in 0..self.setup.nodes {
            let host = &self.hosts[n];
            if host.off {
                all.push(Action::PowerOn(n));
                continue;
            }
            if host.stream.is_none() {
                let leaders = (0..self.leaders.len()).filter(|which| self.may_connect(n, *which));
                all.extend(leaders.map(|which| Action::Connect(n, which)));
            }
            if host.cut {
                all.push(Action::Mend(n));
            }
            if host.wedged {
                all.push(Action::Unwedge(n));
            }
            for v in 0..self.setup.access.len() {
                let Some(held) = &host.held[v] else { continue };
                if held.open {
                    all.push(Action::Close(v, n));
                }
                let export = &self.exports[v];
                let ledger = &host.ledger[v];
                let forgotten =
                    export.key_of(n).is_none() && ledger.registered.is_some_and(|at| at < export.restarts);
                if held.live() && held.reserve && forgotten && !ledger.ended && host.stream.is_some() {
                    all.push(Action::Reassert(v, n));
                }
                all.extend(self.returning(v, n).map(|p| Action::PathReturns(v, n, p)));
            }
        }
    }

    /// The portals at which a kernel's own attempt to connect again would succeed. What it has given up, the agent's
    /// repair connects again under a grant that has not ended.
    pub(crate) fn returning(&self, v: V, n: N) -> impl Iterator<Item = P> {
        let (host, export) = (&self.hosts[n], &self.exports[v]);
        let held = host.held[v].as_ref().filter(|h| h.ending.is_none() && !host.cut);
        held.into_iter().flat_map(move |held| {
            let repaired = !held.stray && !host.ledger[v].ended && host.ledger[v].epoch == Some(held.epoch);
            let by_itself = move |p: &P| held.paths[*p] != Path::Gone || repaired;
            let accepted = move |p: &P| export.accepts_at(*p, self.setup.truth, n, held.secret);
            held.broken().filter(by_itself).filter(accepted)
        })
    }

    fn faults(&self, all: &mut Vec<Action>) {
        for n in (0..self.setup.nodes).filter(|n| !self.is_fresh(*n)) {
            let host = &self.hosts[n];
            all.extend((0..host.late.len()).map(|i| Action::LateDirective(n, i)));
            if host.off {
                continue;
            }
            if let Some(stream) = &host.stream {
                all.push(Action::Drop(n));
                let attach = |d: &cleat_core::Directive| matches!(d, cleat_core::Directive::Attach { .. });
                if stream.to_agent.first().is_some_and(|(_, d)| attach(d)) {
                    all.push(Action::ToAgentMishap(n));
                }
                if host.answered.is_some() {
                    all.push(Action::EchoAnswer(n));
                }
                // An agent that was not heard to go: also to the older of two leaders.
                let leaders = (0..self.leaders.len()).filter(|which| self.may_connect(n, *which));
                all.extend(leaders.map(|which| Action::Connect(n, which)));
            }
            if host.heard.is_some() {
                all.push(Action::EchoDirective(n));
            }
            if !host.wedged {
                all.push(Action::Wedge(n));
            }
            if host.held.iter().any(Option::is_some) {
                all.push(Action::PowerOff(n));
            }
            if !host.cut {
                all.push(Action::Cut(n));
            }
            for v in 0..self.setup.access.len() {
                if self.setup.strays && host.held[v].is_none() && !self.told.said_gone[n] {
                    let finds = self.paths_at(v, n, None).contains(&Path::Live);
                    all.extend(finds.then_some(Action::Stray(v, n)));
                }
                let Some(held) = host.held[v].as_ref().filter(|h| h.ending.is_none()) else { continue };
                let live = (0..PORTALS).filter(|p| held.paths[*p] == Path::Live);
                all.extend(live.map(|p| Action::PathDies(v, n, p)));
                if held.paths.iter().any(|path| matches!(path, Path::Down | Path::HalfOpen)) {
                    all.push(Action::KernelGivesUp(v, n));
                }
                if !held.open && held.used {
                    all.push(Action::Open(v, n));
                }
            }
        }
        if self.setup.dangers.lists_lack {
            let there = (0..self.setup.access.len()).filter(|v| !self.exports[*v].lacking);
            all.extend(there.map(Action::Lacks));
        }
        if self.setup.dangers.clocks_jump {
            all.extend([-3, 3].map(Action::TakeOverAt));
        }
        for (old_lives, rds_done) in [(false, true), (false, false), (true, true), (true, false)] {
            all.push(Action::TakeOver { old_lives, rds_done });
        }
        // Registrations alone, with no list of hosts, do not survive a restart of the target: known, and documented.
        if self.setup.truth.acl || !self.setup.truth.reservations {
            all.push(Action::TargetRestart);
        }
        if self.leaders[0].dies_after.is_none() {
            all.extend((0..3).map(Action::DiesAfter));
        }
    }

    fn costs(&self, action: Action) -> (u8, u8, u8) {
        match action {
            Action::Publish(..)
            | Action::Unpublish(..)
            | Action::UnpublishAll(_)
            | Action::Fence(..)
            | Action::OutOfService(_)
            | Action::CopyRecords
            | Action::TicketComes(..)
            | Action::TicketGoes(..)
            | Action::Delete(_)
            | Action::DeclareGone(_) => (1, 0, 0),
            Action::Tick | Action::Pass(_) => (0, 0, 1),
            Action::Rds(_, _, Answer::Done)
            | Action::ToAgent(_)
            | Action::ToController(_)
            | Action::Durable(..)
            | Action::LateEvent(_)
            | Action::Mend(_)
            | Action::PathReturns(..)
            | Action::Reassert(..)
            | Action::Close(..)
            | Action::Unwedge(_)
            | Action::Deleted(_, Answer::Done)
            | Action::DeletesLate(_)
            | Action::HasAgain(_)
            | Action::LandsLate(_)
            | Action::Lists
            | Action::NobodyAsks(..)
            | Action::Reported(..)
            | Action::TicketSeen(..)
            | Action::PowerOn(_) => (0, 0, 0),
            Action::Connect(n, _) => (0, u8::from(self.hosts[n].stream.is_some()), 0),
            _ => (0, 1, 0),
        }
    }

    /// The world after an action, checked.
    #[must_use]
    pub fn after(&self, action: Action) -> Self {
        let mut next = self.clone();
        let (requests, faults, ticks) = self.costs(action);
        next.budget.requests = next.budget.requests.saturating_sub(requests);
        next.budget.faults = next.budget.faults.saturating_sub(faults);
        next.budget.ticks = next.budget.ticks.saturating_sub(ticks);
        next.act(action);
        if next.broken.is_none() {
            next.check();
        }
        if next.broken.is_none() {
            next.check_names();
        }
        next
    }

    pub(crate) fn request(&mut self, v: V, about: Option<N>, ask: Ask) -> RequestId {
        let request = RequestId(self.number());
        Arc::make_mut(&mut self.open).insert(request, (v, about, ask));
        request
    }

    pub(crate) fn publish(&mut self, v: V, n: N) {
        self.is_to_be_on(v, n);
        let request = self.request(v, Some(n), Ask::Publish);
        let spec = self.setup.spec(v);
        self.event(0, Event::Publish { request, node: node_id(n), spec, read_only: false });
    }

    pub(crate) fn unpublish(&mut self, v: V, about: Option<N>) {
        self.is_to_go_from(v, about);
        self.asks_off(v, about);
        let request = self.request(v, about, Ask::Unpublish);
        self.event(0, Event::Unpublish { request, volume: volume_id(v), node: about.map(node_id) });
    }

    pub(crate) fn fence(&mut self, v: V, n: N) {
        self.asks_off(v, Some(n));
        self.tickets_are_cut(v, n);
        let request = self.request(v, Some(n), Ask::Fence);
        let (by, reason) = ("a person".into(), "the model".into());
        self.event(0, Event::Fence { request, volume: volume_id(v), node: node_id(n), by, reason });
    }

    pub(crate) fn declare_gone(&mut self, n: N) {
        self.told().said_gone[n] = true;
        self.asks_off_all(n);
        if !self.hosts[n].off {
            self.said_wrongly(n);
        }
        let request = self.request(0, Some(n), Ask::Gone);
        let (by, reason) = ("a person".into(), "it has no power".into());
        self.event(0, Event::DeclareGone { request, node: node_id(n), by, reason });
    }

    pub(crate) fn pass(&mut self, ms: u64) {
        self.marks_are_statements();
        self.now += ms;
        for v in 0..self.setup.access.len() {
            let now = self.now;
            let export = self.export(v);
            export.volume.land(now);
            export.late.retain(|late| late.until > now);
        }
        self.renew_tickets();
        for which in (0..self.leaders.len()).rev() {
            self.event(which, Event::Tick);
        }
        self.sees_marks();
    }

    pub(crate) fn rds_answers(&mut self, which: usize, v: V, answer: Answer) {
        let Some(leader) = self.leaders.get_mut(which).map(Arc::make_mut) else {
            return;
        };
        let Some(at) = leader.asked.iter().position(|a| crate::act::lane(&a.request) == v) else {
            return;
        };
        let asked = leader.asked.remove(at);
        let v = crate::act::lane(&asked.request);
        if self.exports[v].lacking && !asked.done && answer != Answer::UndoneUnheard {
            let result = Err(RdsFailure::NotFound(String::new()));
            return self.event(which, Event::RdsDone { operation: asked.operation, result });
        }
        if matches!(answer, Answer::Done | Answer::DoneUnheard) && !asked.done {
            self.rds_does(&asked.request, answer == Answer::Done);
        }
        if matches!(answer, Answer::HalfRefused | Answer::HalfUnheard) && !asked.done {
            self.rds_does_half(&asked.request);
        }
        if answer == Answer::UndoneUnheard && !asked.done {
            self.may_land_late(&asked.request);
        }
        let result = match answer {
            Answer::Done if self.is_in_doubt(&asked.request) => Err(RdsFailure::Unreachable(String::new())),
            Answer::Done => Ok(()),
            Answer::Refused | Answer::HalfRefused => Err(RdsFailure::Refused(String::new())),
            Answer::DoneUnheard | Answer::UndoneUnheard | Answer::HalfUnheard => {
                Err(RdsFailure::Unreachable(String::new()))
            }
        };
        self.event(which, Event::RdsDone { operation: asked.operation, result });
    }

    /// Every node of the world, in order.
    pub(crate) fn nodes(&self) -> std::ops::Range<N> {
        0..self.setup.nodes.min(NODES)
    }
}
