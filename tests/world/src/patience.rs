//! Invariant 5, where nothing is mended: every request ends in its time, and until then it is said what it waits for.
//!
//! In comes a world; out goes the first request that names nothing, or that names something which is not outstanding.
//! What counts as outstanding is read off the world: a request that the RDS has not answered, an agent that is not
//! heard, has something to hear still, or cannot do what it was told. What always holds of what is checked: a request
//! that is not answered is listed among those that wait, with words that name a node or the RDS.

use cleat_core::{Refusal, Reply};

use crate::check::Violation;
use crate::kinds::Answer;
use crate::names::{N, V, node_id, volume_id};
use crate::world::{Ask, Budget, QUANTUM_MS, World};

/// Rounds, each of a quantum: more than any request may wait.
const ROUNDS: usize = 8;

/// A node or the RDS: what a person could go and look at.
fn names_something(words: &str) -> bool {
    words.contains("node-") || words.contains("RDS")
}

impl World {
    /// A request was refused: the words have to say something that a person can go by.
    pub(crate) fn check_reason(&mut self, result: &Result<Reply, Refusal>) {
        let Err(refusal) = result else {
            return;
        };
        let named = match refusal {
            Refusal::StillWaiting { waits_for, .. } => names_something(waits_for),
            Refusal::CannotFence { doubt, tried, .. } => names_something(doubt) && !tried.is_empty(),
            _ => true,
        };
        if !named {
            self.breaks(Violation::NamesNothing { what: format!("refused: {refusal}") });
        }
    }

    /// What the core says that a request waits for; `None`: the request is not among those that wait.
    fn words_of(&self, v: V, about: Option<N>, ask: Ask) -> Option<String> {
        let kind = match ask {
            Ask::Publish => "publish",
            Ask::Unpublish => "unpublish",
            Ask::Fence => "fence",
            Ask::Gone | Ask::Delete => return None,
        };
        let node = about.map(node_id);
        let waiting = self.leaders[0].core.waiting(&volume_id(v), self.now_of(0));
        waiting.into_iter().find(|w| w.request == kind && w.node == node).map(|w| w.waits_for)
    }

    /// Every request that is not answered says what it waits for. One whose answer waits for a record alone does not.
    pub(crate) fn check_names(&mut self) {
        let decided = self.decided_requests();
        let waiting = self.open.iter().filter(|(request, _)| !decided.contains(request));
        for (v, about, ask) in waiting.map(|(_, open)| *open).collect::<Vec<_>>() {
            let words = self.words_of(v, about, ask);
            if !words.as_deref().is_some_and(names_something) {
                let what = format!("{ask:?} of volume {v} for node {about:?} waits for {words:?}");
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
            let Some(words) = self.words_of(v, about, ask).filter(|words| names_something(words)) else {
                return self.check_names();
            };
            // What happened last is no part of what it waits for.
            let now = words.split(" (last: ").next().unwrap_or_default();
            let agents = now.contains("agent of node") || now.contains("inventory of node");
            let able = |n: N| now.contains(node_id(n).as_str()) && self.is_able(v, n);
            // One that says each time that it has no such volume is waited for rightly.
            let answers = !self.exports[v].lacking;
            let of_rds = answers && (now.starts_with("the RDS") || now.contains("waits for the RDS"));
            let of_nobody = agents && !now.contains("drain bound") && self.nodes().any(able);
            if of_nobody || (of_rds && !agents) {
                return self.breaks(Violation::NamesSomethingElse { what: words });
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
