//! Invariant 5, where nothing is mended: every request ends in its time, and until then it is said what it waits for.
//!
//! In comes a world; out goes the first request that names nothing, or that names something which is not outstanding.
//! What counts as outstanding is read off the world: a request that the RDS has not answered, an agent that is not
//! heard, has something to hear still, or cannot do what it was told. What always holds of what is checked: a request
//! that is not answered is listed among those that wait, with a node, the RDS or a drain bound named.

use cleat_core::{AttachmentWait, Condition, NodeId, Refusal, Reply, Wait};

use crate::check::Violation;
use crate::kinds::Answer;
use crate::names::{N, V, node_id, volume_id};
use crate::world::{Ask, Budget, QUANTUM_MS, World};

/// Rounds, each of a quantum: more than any request may wait.
const ROUNDS: usize = 8;

/// What a wait names: what a person could go and look at.
#[derive(Default)]
struct Named {
    nodes: Vec<NodeId>,
    /// It waits for what an agent does or reports.
    agents: bool,
    /// It waits for what the RDS does or says.
    rds: bool,
    /// It waits for a drain bound, so nobody named is late.
    bound: bool,
}

impl Named {
    fn by(wait: &Wait) -> Self {
        let mut named = Self::default();
        match wait {
            Wait::FirstList { .. } | Wait::ListOf { .. } | Wait::ReadableList { .. } => named.rds = true,
            Wait::Reports { nodes, .. } => (named.nodes, named.agents) = (nodes.clone(), true),
            Wait::ListDrainBound { .. } => named.bound = true,
            Wait::Inventory { node } => (named.nodes, named.agents) = (vec![node.clone()], true),
            // Of another volume, so who is late with that is not looked at.
            Wait::Room { node, .. } => {
                (named.nodes, named.agents, named.bound) = (vec![node.clone()], true, true);
            }
            Wait::Leaving { node, wait, .. } => {
                named.nodes.push(node.clone());
                if let Some(AttachmentWait { condition, .. }) = wait {
                    named.attachment(condition);
                }
            }
            // Its holder may be late, and lets go when it does.
            Wait::Ticket { node, .. } => (named.nodes, named.bound) = (vec![node.clone()], true),
            Wait::Holders(holders) => {
                for holder in holders {
                    named.nodes.push(holder.node.clone());
                    if let Some(AttachmentWait { condition, .. }) = &holder.wait {
                        named.attachment(condition);
                    }
                }
            }
        }
        named
    }

    fn attachment(&mut self, condition: &Condition) {
        match condition {
            Condition::DeviceBack { .. }
            | Condition::CallAboutStray { .. }
            | Condition::RepeatedPublish { .. }
            | Condition::Drained { .. } => {}
            Condition::FencedNodeClean { node, .. } => {
                self.nodes.push(node.clone());
                self.agents = true;
            }
            Condition::Ready(agent) | Condition::Detached { agent, .. } => {
                self.nodes.push(agent.node.clone());
                self.agents = true;
            }
            Condition::ExportOn { fences, .. } => {
                self.nodes.extend(fences.iter().map(|fence| fence.node.clone()));
                self.rds = true;
            }
            Condition::HostAllowed | Condition::GrantAnswered | Condition::HostDenied => self.rds = true,
            Condition::DrainBound { .. } => self.bound = true,
        }
    }

    fn something(&self) -> bool {
        self.rds || self.bound || !self.nodes.is_empty()
    }
}

fn names_something(wait: &Wait) -> bool {
    Named::by(wait).something()
}

impl World {
    /// A request was refused: it has to name something that a person can go by.
    pub(crate) fn check_reason(&mut self, result: &Result<Reply, Refusal>) {
        let Err(refusal) = result else {
            return;
        };
        let named = match refusal {
            Refusal::StillWaiting { wait, .. } => names_something(wait),
            Refusal::CannotFence { tried, .. } => !tried.is_empty(),
            _ => true,
        };
        if !named {
            self.breaks(Violation::NamesNothing { what: format!("refused: {refusal:?}") });
        }
    }

    /// What the core says that a request waits for; `None`: the request is not among those that wait.
    fn wait_of(&self, v: V, about: Option<N>, ask: Ask) -> Option<Wait> {
        let kind = match ask {
            Ask::Publish => "publish",
            Ask::Unpublish => "unpublish",
            Ask::Fence => "fence",
            Ask::Gone | Ask::Delete => return None,
        };
        let node = about.map(node_id);
        let waiting = self.leaders[0].core.waiting(&volume_id(v), self.now_of(0));
        waiting.into_iter().find(|w| w.request == kind && w.node == node).map(|w| w.wait)
    }

    /// Every request that is not answered says what it waits for. One whose answer waits for a record alone does not.
    pub(crate) fn check_names(&mut self) {
        let decided = self.decided_requests();
        let waiting = self.open.iter().filter(|(request, _)| !decided.contains(request));
        for (v, about, ask) in waiting.map(|(_, open)| *open).collect::<Vec<_>>() {
            let wait = self.wait_of(v, about, ask);
            if !wait.as_ref().is_some_and(names_something) {
                let what = format!("{ask:?} of volume {v} for node {about:?} waits for {wait:?}");
                return self.breaks(Violation::NamesNothing { what });
            }
        }
    }

    /// What this world comes to if time passes, what is on its way arrives, the RDS does what it is asked, and nothing
    /// that is broken is mended.
    #[must_use]
    pub fn left_alone(&self) -> Self {
        let mut world = self.clone();
        if world.open.is_empty() {
            return world;
        }
        world.budget = Budget { requests: 0, faults: 0, ticks: u8::MAX };
        for round in 0..ROUNDS {
            if world.setup.in_cluster() {
                world.lists();
            }
            world.all_tickets_seen();
            world.deliver_what_can_be();
            if world.broken.is_none() {
                world.check();
            }
            if world.broken.is_none() && round > 1 {
                world.check_outstanding();
            }
            if world.broken.is_some() || world.open.is_empty() {
                return world;
            }
            world.pass(QUANTUM_MS);
        }
        let open = format!("{:?}", world.open);
        world.breaks(Violation::NeverAnswered { open });
        world
    }

    fn deliver_what_can_be(&mut self) {
        // Each message begets few others; the bound is for a mistake in that.
        for _ in 0..64 {
            let mut quiet = true;
            for which in 0..self.leaders.len() {
                for v in 0..self.setup.access.len() {
                    while self.waits_for_its_record(which, v) {
                        self.becomes_durable(which, v);
                        quiet = false;
                    }
                    let asked = self.leaders.get(which).map(|l| &l.asked);
                    if asked.is_some_and(|a| a.iter().any(|a| crate::act::lane(&a.request) == v)) {
                        self.rds_answers(which, v, Answer::Done);
                        quiet = false;
                    }
                }
            }
            for n in self.nodes() {
                let stream = self.hosts[n].stream.as_ref();
                let (hears, is_heard) =
                    stream.map_or((false, false), |s| (!s.to_agent.is_empty(), !s.to_controller.is_empty()));
                if hears && !self.hosts[n].off {
                    self.agent_hears(n, false);
                    quiet = false;
                }
                if is_heard {
                    self.controller_hears(n);
                    quiet = false;
                }
            }
            if quiet {
                return;
            }
        }
    }

    /// When all has arrived that can: what the requests name is what they wait for. The RDS has answered everything by
    /// now (if only that it has no such volume), and what had to be asked of it again has been, so nobody can be
    /// waiting for it alone; an agent that is heard and can do what it is told has done it.
    fn check_outstanding(&mut self) {
        for (v, about, ask) in self.open.values().copied().collect::<Vec<_>>() {
            let Some(wait) = self.wait_of(v, about, ask).filter(names_something) else {
                return self.check_names();
            };
            let named = Named::by(&wait);
            let able = |n: N| named.nodes.contains(&node_id(n)) && self.is_able(v, n);
            // One that says each time that it has no such volume is waited for rightly.
            let of_rds = !self.exports[v].lacking && named.rds;
            let of_nobody = named.agents && !named.bound && self.nodes().any(able);
            if of_nobody || (of_rds && !named.agents) {
                return self.breaks(Violation::NamesSomethingElse { what: format!("{wait:?}") });
            }
        }
    }

    /// Its agent is heard, and nothing keeps it from doing what it is told.
    fn is_able(&self, v: V, n: N) -> bool {
        let host = &self.hosts[n];
        let heard = host.stream.as_ref().is_some_and(|s| s.process == self.leaders[0].process);
        let connects = host.held[v].as_ref().map_or(!host.cut, |h| h.live() && !h.open && h.ending.is_none());
        heard && !host.off && !host.wedged && connects
    }
}
