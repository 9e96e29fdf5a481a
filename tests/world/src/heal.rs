//! Invariant 5: once everything works again and goes on working, every request ends, and what is taken down is gone.
//!
//! In comes a world; out goes what it comes to when every message arrives, every answer of the RDS is "done", nobody
//! has a device open and time passes; then everything is unpublished. That is one fair future of many, so this shows
//! that a world is not stuck; the walks on the way show the others. What comes of requests where nothing is mended is
//! `patience`'s.

use crate::check::Violation;
use crate::export::VolumeDeletion;
use crate::kinds::Answer;
use crate::world::{Budget, QUANTUM_MS, World};

/// Rounds, each of a quantum: more than all bounds of the core together.
const ROUNDS: usize = 24;

impl World {
    /// What this world comes to.
    #[must_use]
    pub fn healed(&self) -> Self {
        let mut world = self.clone();
        world.budget = Budget { requests: u8::MAX, faults: 0, ticks: u8::MAX };
        world.leaders.truncate(1);
        std::sync::Arc::make_mut(&mut world.leaders[0]).dies_after = None;
        world.mend_all();
        world.all_tickets_seen();
        world.flow();
        if world.broken.is_none() && !world.open.is_empty() {
            let open = format!("{:?}", world.open);
            world.breaks(Violation::NeverAnswered { open });
        }
        world.tickets_end(false);
        world.flow();
        if world.broken.is_none()
            && let Some(what) = world.attached_for_nobody()
        {
            world.breaks(Violation::LeftBehind { what });
        }
        world.tickets_end(true);
        for v in 0..world.setup.access.len() {
            world.unpublish(v, None);
        }
        world.flow();
        if world.broken.is_none() {
            world.check_nothing_left();
        }
        world
    }

    fn mend_all(&mut self) {
        if self.setup.in_cluster() {
            self.cluster().out_of_service = Default::default();
        }
        for n in self.nodes() {
            let late_events = std::mem::take(&mut self.host(n).late_events);
            let process = self.leaders[0].process;
            for (_, event) in late_events.into_iter().filter(|(to, _)| *to == process) {
                self.event(0, event);
            }
            let host = self.host(n);
            host.late.clear();
            (host.cut, host.off, host.boot) = (false, false, host.boot + u8::from(host.off));
            for held in host.held.iter_mut().flatten() {
                held.open = false;
            }
            if self.hosts[n].wedged {
                self.act(crate::kinds::Action::Unwedge(n));
            }
            self.connect(n, 0);
        }
    }

    fn flow(&mut self) {
        for _ in 0..ROUNDS {
            self.pass(QUANTUM_MS);
            if self.setup.in_cluster() {
                self.lists();
            }
            self.deliver_all();
            if self.broken.is_none() {
                self.check();
            }
            if self.broken.is_some() {
                return;
            }
        }
    }

    fn deliver_all(&mut self) {
        // Each message begets few others; the bound is for a mistake in that.
        for _ in 0..64 {
            let mut quiet = true;
            for v in 0..self.setup.access.len() {
                while self.waits_for_its_record(0, v) {
                    self.becomes_durable(0, v);
                    quiet = false;
                }
                self.export(v).lacking = false;
                while !self.exports[v].late.is_empty() {
                    self.lands_late(v);
                }
                match self.exports[v].deletion {
                    Some(VolumeDeletion::Asked) => self.delete_answered(v, Answer::Done),
                    Some(VolumeDeletion::Late) => self.is_deleted(v),
                    None => {}
                }
                if self.leaders[0].asked.iter().any(|a| crate::act::lane(&a.request) == v) {
                    self.rds_answers(0, v, Answer::Done);
                    quiet = false;
                }
            }
            for n in self.nodes() {
                quiet &= !self.node_goes_on(n);
            }
            if quiet {
                return;
            }
        }
    }

    fn node_goes_on(&mut self, n: usize) -> bool {
        if self.hosts[n].stream.is_none() {
            self.connect(n, 0);
            return true;
        }
        for v in 0..self.setup.access.len() {
            let Some(held) = &self.hosts[n].held[v] else { continue };
            if !held.whole() {
                for p in self.returning(v, n).collect::<Vec<_>>() {
                    self.path_returns(v, n, p);
                }
            }
        }
        let stream = self.hosts[n].stream.as_ref();
        let (hears, is_heard) =
            stream.map_or((false, false), |s| (!s.to_agent.is_empty(), !s.to_controller.is_empty()));
        if hears {
            self.agent_hears(n, false);
        }
        if is_heard {
            self.controller_hears(n);
        }
        hears || is_heard
    }

    fn check_nothing_left(&mut self) {
        let open = (!self.open.is_empty()).then(|| format!("not answered: {:?}", self.open));
        let held =
            self.hosts.iter().flat_map(|h| h.held.iter().flatten()).next().map(|h| format!("held: {h:?}"));
        // Where lists are not kept to, nobody reads them either: what was lost with the records stays on them.
        let read = self.setup.truth.acl || !self.setup.in_cluster();
        let allowed = read && self.exports.iter().any(|e| e.lists_anybody());
        let allowed = allowed.then(|| "a host on the list".into());
        let core = &self.leaders[0].core;
        let tracked = |v: &usize| core.volumes().contains_key(&crate::names::volume_id(*v));
        let exported = (0..self.setup.access.len())
            .filter(tracked)
            .any(|v| self.exports[v].volume.on.contains(&true))
            .then(|| "a volume that is exported, and nobody has it".to_owned());
        let records = || self.leaders[0].core.volumes().values();
        let attached = records().flat_map(|r| &r.attachments).next().map(|a| format!("attached: {a:?}"));
        let fenced = records().flat_map(|r| &r.fenced).next().map(|f| format!("fenced: {f:?}"));
        let attached = attached.or(fenced);
        if let Some(what) = attached.or(open).or(held).or(allowed).or(exported) {
            self.breaks(Violation::LeftBehind { what });
        }
    }
}
