//! What each [`Action`] does to the world.

use cleat_core::{Epoch, Event, RdsRequest};

use crate::check::Violation;
use crate::host::{Held, Host, Path};
use crate::kinds::Action;
use crate::names::{N, P, PORTALS, V, node_id, volume_id, volume_of};
use crate::world::{QUANTUM_MS, World};

/// The volume whose lane a request goes in.
#[must_use]
pub fn lane(request: &RdsRequest) -> V {
    match request {
        RdsRequest::Allow { volume, .. }
        | RdsRequest::Deny { volume, .. }
        | RdsRequest::Close { volume, .. }
        | RdsRequest::Hide { volume }
        | RdsRequest::Show { volume }
        | RdsRequest::SetSecret { volume, .. } => volume_of(volume),
    }
}

impl World {
    pub(crate) fn act(&mut self, action: Action) {
        match action {
            Action::Publish(v, n) => self.publish(v, n),
            Action::Unpublish(v, n) => self.unpublish(v, Some(n)),
            Action::UnpublishAll(v) => self.unpublish(v, None),
            Action::Rds(which, v, answer) => self.rds_answers(which, v, answer),
            Action::ToAgent(n) => self.agent_hears(n, false),
            Action::ToAgentMishap(n) => self.agent_hears(n, true),
            Action::ToController(n) => self.controller_hears(n),
            Action::Durable(which, v) => self.becomes_durable(which, v),
            Action::LateDirective(n, i) => {
                if i < self.hosts[n].late.len() {
                    let (operation, directive) = self.host(n).late.remove(i);
                    self.agent_does(n, operation, &directive, false);
                }
            }
            Action::EchoDirective(n) => {
                if let Some((operation, directive)) = self.hosts[n].heard.clone() {
                    self.agent_does(n, operation, &directive, false);
                }
            }
            Action::LateEvent(n) => {
                let (process, event) = self.host(n).late_events.remove(0);
                if let Some(which) = self.leader_of(process) {
                    self.event(which, event);
                }
            }
            Action::EchoAnswer(n) => self.echo_answer(n),
            Action::Connect(n, which) => self.connect(n, which),
            Action::Drop(n) => self.drop_stream(n),
            Action::Cut(n) => self.cut(n),
            Action::Mend(n) => self.host(n).cut = false,
            Action::PathDies(v, n, p) => self.paths_die(v, n, |path| path == p, Path::HalfOpen),
            Action::PathReturns(v, n, p) => self.path_returns(v, n, p),
            Action::KernelGivesUp(v, n) => self.kernel_gives_up(v, n),
            Action::Stray(v, n) => self.stray_comes(v, n),
            Action::Open(v, n) => self.set_open(v, n, true),
            Action::Close(v, n) => self.set_open(v, n, false),
            Action::Wedge(n) => self.host(n).wedged = true,
            Action::Unwedge(n) => self.unwedge(n),
            Action::PowerOff(n) => self.power_off(n),
            Action::PowerOn(n) => {
                let host = self.host(n);
                host.off = false;
                host.boot += 1;
            }
            Action::TakeOver { old_lives, rds_done } => {
                self.take_over(old_lives, rds_done, self.leaders[0].ahead, None);
            }
            Action::TakeOverAt(quanta) => {
                self.take_over(false, true, i64::from(quanta) * QUANTUM_MS.cast_signed(), None);
            }
            Action::CopyRecords => self.copy_records(),
            Action::StartWithout { lost, old_lives } => {
                self.take_over(old_lives, true, self.leaders[0].ahead, Some(lost));
            }
            Action::Lists => self.lists(),
            Action::Vanishes(v, n) => self.cluster().attachments[v][n] = None,
            Action::LosesName(v, n) => {
                if let Some(attachment) = &mut self.cluster().attachments[v][n] {
                    attachment.nameless = true;
                }
            }
            Action::NobodyAsks(v, n) => self.unpublish(v, Some(n)),
            Action::OutOfService(n) => self.marks(n),
            Action::Delete(v) => self.delete(v),
            Action::Deleted(v, answer) => self.delete_answered(v, answer),
            Action::DeletesLate(v) => self.is_deleted(v),
            Action::Lacks(v) => self.export(v).lacking = true,
            Action::HasAgain(v) => self.export(v).lacking = false,
            Action::LandsLate(v) => self.lands_late(v),
            Action::DiesAfter(effects) => {
                std::sync::Arc::make_mut(&mut self.leaders[0]).dies_after = Some(effects);
            }
            Action::TargetRestart => self.target_restarts(),
            Action::Reassert(v, n) => {
                self.registers(v, n);
            }
            Action::Fence(v, n) => self.fence(v, n),
            Action::DeclareGone(n) => self.declare_gone(n),
            Action::Reported(v, way, stage) => self.reported(v, way, stage),
            Action::TicketComes(v, t, node) => self.ticket_comes(v, t, node),
            Action::TicketGoes(v, t) => self.ticket_goes(v, t),
            Action::TicketSilent(v, t) => self.ticket_falls_silent(v, t),
            Action::TicketSeen(v, t) => self.ticket_seen(v, t),
            Action::Tick => self.pass(QUANTUM_MS),
            Action::Pass(ms) => self.pass(ms.into()),
        }
    }

    pub(crate) fn agent_hears(&mut self, n: N, mishap: bool) {
        let Some(stream) = self.host(n).stream.as_mut().filter(|s| !s.to_agent.is_empty()) else {
            return;
        };
        let (operation, directive) = stream.to_agent.remove(0);
        self.host(n).heard = Some((operation, directive.clone()));
        self.agent_does(n, operation, &directive, mishap);
    }

    /// Streams deliver in order, so the doubled answer comes after all that was said before.
    fn echo_answer(&mut self, n: N) {
        let Some((operation, v, epoch, outcome)) = self.hosts[n].answered.clone() else {
            return;
        };
        let (node, volume) = (node_id(n), volume_id(v));
        self.says(n, |session| Event::AgentDone { node, session, operation, volume, epoch, outcome });
    }

    fn set_open(&mut self, v: V, n: N, open: bool) {
        if let Some(held) = &mut self.host(n).held[v] {
            held.open = open;
        }
    }

    fn cut(&mut self, n: N) {
        self.host(n).cut = true;
        for v in 0..self.setup.access.len() {
            self.paths_die(v, n, |_| true, Path::HalfOpen);
        }
    }

    /// Connections break: what the target has received lands some time; what the kernel still has it repeats on another
    /// path, or keeps. `to` says whether the target has noticed.
    pub(crate) fn paths_die(&mut self, v: V, n: N, which: impl Fn(P) -> bool, to: Path) {
        let hit = |(p, path): (P, &Path)| match path {
            Path::Live => which(p),
            Path::HalfOpen => which(p) && to != Path::HalfOpen,
            _ => false,
        };
        let held = self.hosts[n].held[v].as_ref();
        if !held.is_some_and(|held| held.paths.iter().enumerate().any(hit)) {
            return;
        }
        if let Some(held) = &mut self.host(n).held[v] {
            for p in 0..held.paths.len() {
                if hit((p, &held.paths[p])) {
                    held.paths[p] = to;
                }
            }
            held.queued |= held.used && !held.live();
            if held.used {
                self.may_land(v, n);
            }
        }
        self.says_delta(n, v);
    }

    /// The kernel's own connect: queued writes are sent, under whatever grant they were made.
    pub(crate) fn path_returns(&mut self, v: V, n: N, p: P) {
        let Some(held) = &mut self.host(n).held[v] else {
            return;
        };
        held.paths[p] = Path::Live;
        let (queued, epoch, stray) = (std::mem::take(&mut held.queued), held.epoch, held.stray);
        let over = !stray && Some(epoch) <= self.told.over[v][n];
        if queued && over && self.exports[v].lets_write(n) {
            self.breaks(Violation::QueuedWritesLand { v, n });
        }
        self.says_delta(n, v);
    }

    /// Where another path is live the device stays.
    fn kernel_gives_up(&mut self, v: V, n: N) {
        let host = self.host(n);
        let Some(held) = host.held[v].as_mut() else {
            return;
        };
        if held.live() {
            let lost = held.used && held.paths.contains(&Path::HalfOpen);
            for path in held.paths.iter_mut().filter(|path| matches!(path, Path::Down | Path::HalfOpen)) {
                *path = Path::Gone;
            }
            if lost {
                self.may_land(v, n);
            }
        } else {
            let before = host.held[v].take();
            self.device_gone(v, n, before);
        }
        self.says_delta(n, v);
    }

    /// Somebody connects a volume on a node by hand and uses it. It cannot be known before the agent has said it.
    fn stray_comes(&mut self, v: V, n: N) {
        let paths = self.paths_at(v, n, None);
        let held = Held { stray: true, used: true, ..Held::new(paths, Epoch { term: 0, seq: 0 }) };
        self.host(n).held[v] = Some(held);
        let older = self.hosts[n].stream.as_ref().map_or(0, |s| s.to_controller.len());
        (self.told().by_hand[v][n], self.told().unheard_stray[v][n]) = (true, Some(older));
        self.says_delta(n, v);
    }

    /// What would become of new connections of a host, by portal.
    pub(crate) fn paths_at(&self, v: V, n: N, secret: Option<Epoch>) -> [Path; PORTALS] {
        let (export, truth) = (&self.exports[v], self.setup.truth);
        std::array::from_fn(|p| match p < self.setup.portals {
            false => Path::Unused,
            true if !self.hosts[n].cut && export.accepts_at(p, truth, n, secret) => Path::Live,
            true => Path::Gone,
        })
    }

    fn unwedge(&mut self, n: N) {
        self.host(n).wedged = false;
        for v in 0..self.setup.access.len() {
            let before = self.hosts[n].held[v].clone();
            let Some(operation) = before.as_ref().and_then(|h| h.ending) else {
                continue;
            };
            self.host(n).held[v] = None;
            // A connection that died in the middle of the deletion: the agent sees how long it took, and does not
            // call it live.
            if before.as_ref().is_some_and(|h| !h.whole())
                && let Some(state) = self.host(n).ledger[v].deletions.last_mut()
            {
                *state = "unknown";
            }
            self.device_gone(v, n, before);
            let outcome = self.hosts[n].absent(v);
            if let Some(epoch) = self.hosts[n].ledger[v].epoch {
                self.agent_answers(n, operation, v, epoch, outcome);
            }
        }
    }

    /// The kernel dies; what it had sent may still land. Disks stay.
    fn power_off(&mut self, n: N) {
        self.drop_stream(n);
        for v in 0..self.setup.access.len() {
            if self.host(n).held[v].take().is_some_and(|h| h.used && h.reaches()) {
                self.may_land(v, n);
            }
        }
        let host = self.host(n);
        let (boot, ledger) = (host.boot, std::mem::take(&mut host.ledger));
        let (proven, late_events) = (host.proven, std::mem::take(&mut host.late_events));
        *host = Host { boot, off: true, ledger, proven, late_events, ..Host::default() };
    }
}
