//! A model of the world around the real core: kernels, agents, a target with its list of hosts, secrets, registrations
//! and sessions, writes that it has received and not landed, an export that goes off and on, callers.
//!
//! [`World`] is a value: cloned, compared and hashed, it can be explored as well as lived through. [`World::act`] does
//! one [`Action`], and gives what must never be seen. The world says who *could write*: a session that the target
//! takes writes of, a kernel that would get one by itself, or a write that is still to land. The core's own opinion is
//! never asked. Messages are delayed, lost with their session and doubled; everything fails at any point; what was
//! stored is all that a restarted controller begins with.

// Another test takes it in with `#[path = "../world/model/mod.rs"] mod model;`. Each test that uses the model uses another part of it.
#![allow(dead_code)]

mod agents;
mod controller;
pub(crate) mod host;
pub(crate) mod names;
pub(crate) mod target;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};

use cleat_core::{
    Config, Core, Epoch, Event, NodeId, OperationId, RdsRequest, RequestId, UnixMillis, VolumeId,
    VolumeRecord,
};

use host::{Connection, Host};
pub(crate) use names::{Action, RdsAnswer, Setup, Violation};
use names::{node, spec, volume};
use target::Export;

/// What has been seen, so that a test which sees nothing can be told from one that finds nothing. No part of the
/// state: two worlds that differ in it alone are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen(pub(crate) BTreeMap<&'static str, u32>);

impl Seen {
    fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }
}

impl PartialEq for Seen {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Seen {}

impl Hash for Seen {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// Everything there is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) now: u64,
    pub(crate) core: Core,
    pub(crate) config: Config,
    pub(crate) term: u64,
    pub(crate) stored: BTreeMap<VolumeId, VolumeRecord>,
    pub(crate) hosts: BTreeMap<NodeId, Host>,
    pub(crate) exports: BTreeMap<VolumeId, Export>,
    /// What the RDS was asked and has not answered, oldest first.
    pub(crate) rds: VecDeque<(OperationId, RdsRequest)>,
    /// Volumes whose Hide is not done yet: the oldest request is that one.
    pub(crate) draining: BTreeSet<VolumeId>,
    /// Whom callers have been told that they may use a volume. Nobody writes before.
    pub(crate) handed_out: BTreeSet<(VolumeId, NodeId)>,
    /// Whom a caller wants a volume on: published, and not unpublished since.
    pub(crate) wanted: BTreeSet<(VolumeId, NodeId)>,
    /// Who was detached or fenced by a caller's request that succeeded, and was not asked for since.
    pub(crate) released: BTreeSet<(VolumeId, NodeId)>,
    /// Which agents have proven, under which epoch, that they can use a volume.
    pub(crate) proven: BTreeSet<(VolumeId, NodeId, Epoch)>,
    pub(crate) open_requests: BTreeMap<RequestId, (VolumeId, Option<NodeId>)>,
    requests: u64,
    sessions: u64,
    /// The controller dies after so many more effects.
    crash_after: Option<usize>,
    violation: Option<Violation>,
    pub(crate) seen: Seen,
}

impl World {
    /// Nodes that no agent has connected from yet, volumes that nobody has.
    pub(crate) fn new(setup: Setup) -> Self {
        let config = Config {
            detach_grace_ms: 5_000,
            request_limit_ms: 8_000,
            drain_bound_ms: 3_000,
            retry_ms: 500,
            fence_after_ms: 2_000,
            target: setup.target.clone(),
        };
        Self {
            now: 1_000,
            core: Core::rebuild(config.clone(), 1, Vec::new(), UnixMillis(1_000)).0,
            config,
            term: 1,
            stored: BTreeMap::new(),
            hosts: (0..setup.nodes).map(|n| (node(n), Host::default())).collect(),
            exports: (0..setup.volumes).map(|v| (volume(v), Export::default())).collect(),
            rds: VecDeque::new(),
            draining: BTreeSet::new(),
            handed_out: BTreeSet::new(),
            wanted: BTreeSet::new(),
            released: BTreeSet::new(),
            proven: BTreeSet::new(),
            open_requests: BTreeMap::new(),
            requests: 0,
            sessions: 0,
            crash_after: None,
            violation: None,
            seen: Seen::default(),
            setup,
        }
    }

    /// Whether a node could write to a volume, now or without anybody's doing but its own kernel's and the network's.
    pub(crate) fn can_write(&self, volume: &VolumeId, node: &NodeId) -> bool {
        let export = &self.exports[volume];
        let connected = export.sessions.contains(node);
        let would_connect = self.hosts[node]
            .kernel
            .get(volume)
            .is_some_and(|c| export.admits(&self.setup.target, node, c.secret));
        export.lands(node, self.now) || ((connected || would_connect) && export.takes_writes_of(node))
    }

    /// Invariants 1 and 2, over the world.
    fn check(&mut self) {
        for volume in self.exports.keys().cloned().collect::<Vec<_>>() {
            let writers: Vec<&NodeId> = self.hosts.keys().filter(|n| self.can_write(&volume, n)).collect();
            let limit = names::limit(&volume);
            if writers.len() > limit {
                let words = format!("{volume}: {writers:?} can all write, {limit} may");
                self.violated(words);
            }
        }
        let back = self.released.iter().find(|(volume, node)| self.can_write(volume, node)).cloned();
        if let Some((volume, node)) = back {
            self.violated(format!("{node} was said to be off {volume}, and can write to it"));
        }
    }

    fn violated(&mut self, words: String) {
        self.violation.get_or_insert(Violation(words));
    }

    /// Does one thing, and looks.
    ///
    /// # Errors
    /// What must never be seen, and was.
    pub(crate) fn act(&mut self, action: Action) -> Result<(), Violation> {
        self.happen(action);
        self.check();
        self.violation.clone().map_or(Ok(()), Err)
    }

    fn happen(&mut self, action: Action) {
        match action {
            Action::Publish(v, n) => {
                let (volume, n) = (volume(v), node(n));
                self.released.remove(&(volume.clone(), n.clone()));
                self.wanted.insert((volume.clone(), n.clone()));
                let request = self.request(&volume, Some(n.clone()));
                let spec = spec(&volume, self.setup.min_fence);
                self.event(Event::Publish { request, node: n, spec, read_only: false });
            }
            Action::Unpublish(v, n) => {
                let volume = volume(v);
                self.wanted.remove(&(volume.clone(), node(n)));
                let request = self.request(&volume, Some(node(n)));
                self.event(Event::Unpublish { request, volume, node: Some(node(n)) });
            }
            Action::UnpublishAll(v) => {
                let volume = volume(v);
                self.wanted.retain(|(of, _)| *of != volume);
                let request = self.request(&volume, None);
                self.event(Event::Unpublish { request, volume, node: None });
            }
            Action::Fence(v, n) => {
                let volume = volume(v);
                self.wanted.remove(&(volume.clone(), node(n)));
                let request = self.request(&volume, Some(node(n)));
                let (by, reason) = ("an operator".to_owned(), "a test".to_owned());
                self.event(Event::Fence { request, volume, node: node(n), by, reason });
            }
            Action::DeclareGone(n) => {
                self.happen(Action::Power(n, false));
                let request = self.request(&volume(0), Some(node(n)));
                let (by, reason) = ("an operator".to_owned(), "it is off".to_owned());
                self.event(Event::DeclareGone { request, node: node(n), by, reason });
            }
            Action::Power(n, on) => {
                if !on {
                    self.reboot(&node(n));
                }
                self.host(&node(n)).off = !on;
            }
            Action::Rds(answer) => self.rds_answers(answer),
            Action::ToController(n) => self.controller_hears(&node(n)),
            Action::Connect(n) | Action::AgentRestart(n) => self.connect(&node(n)),
            Action::Drop(n) => self.drop_session(&node(n)),
            Action::Mute(n, mute) => {
                if mute {
                    self.drop_session(&node(n));
                }
                self.host(&node(n)).mute = mute;
            }
            Action::Partition(n) => {
                self.happen(Action::Mute(n, true));
                self.host(&node(n)).cut = true;
                for volume in self.exports.keys().cloned().collect::<Vec<_>>() {
                    self.path_dies(&volume, &node(n), false);
                }
            }
            Action::Crash(after) => self.crash_after = Some(after.into()),
            Action::Pass(ms) => {
                self.now += u64::from(ms);
                for export in self.exports.values_mut() {
                    export.in_flight.retain(|_, until| *until > self.now);
                }
                self.event(Event::Tick);
            }
            Action::Flow(rounds) => (0..rounds).for_each(|_| self.flow()),
            Action::TargetRestart => {
                for volume in self.exports.keys().cloned().collect::<Vec<_>>() {
                    let ended = std::mem::take(&mut agents::export_of(self, &volume).sessions);
                    self.sessions_end(&volume, ended);
                    agents::export_of(self, &volume).restarts();
                }
            }
            other => self.happen_to_node(other),
        }
    }

    /// What can only happen to a node that runs.
    fn happen_to_node(&mut self, action: Action) {
        match action {
            Action::ToAgent(n) if self.runs(n) => self.agent_hears(&node(n)),
            Action::Echo(n) if self.runs(n) => {
                if let Some(old) = self.hosts[&node(n)].heard.front().cloned() {
                    self.agent_does(&node(n), old);
                }
            }
            Action::Late(n) if self.runs(n) => {
                if let Some(late) = self.host(&node(n)).late.pop_front() {
                    self.agent_does(&node(n), late);
                }
            }
            Action::EchoAnswer(n) => {
                let host = &self.hosts[&node(n)];
                if let (Some(stream), Some(answer)) = (&host.stream, host.answered.clone()) {
                    let (operation, volume, epoch, outcome) = answer;
                    let (node, session) = (node(n), stream.id.clone());
                    self.event(Event::AgentDone { node, session, operation, volume, epoch, outcome });
                }
            }
            Action::Reboot(n) if self.runs(n) => self.reboot(&node(n)),
            Action::PathsDie(v, n) => self.path_dies(&volume(v), &node(n), false),
            Action::PathsReturn(v, n) => self.path_returns(&volume(v), &node(n)),
            Action::KernelGivesUp(v, n) => self.path_dies(&volume(v), &node(n), true),
            Action::Cut(n, cut) => self.host(&node(n)).cut = cut,
            Action::Open(v, n) if self.handed_out.contains(&(volume(v), node(n))) => {
                self.connection(v, n, |c| c.open = true);
            }
            Action::Close(v, n) => self.connection(v, n, |c| c.open = false),
            Action::Wedge(v, n, true) => self.connection(v, n, |c| c.wedged = true),
            Action::Wedge(v, n, false) => self.unwedge(&volume(v), &node(n)),
            _ => {}
        }
    }

    fn runs(&self, n: u8) -> bool {
        !self.hosts[&node(n)].off
    }

    fn connection(&mut self, v: u8, n: u8, change: impl FnOnce(&mut Connection)) {
        if let Some(c) = self.host(&node(n)).kernel.get_mut(&volume(v)) {
            change(c);
        }
    }

    fn flow(&mut self) {
        self.rds_answers(RdsAnswer::Done);
        for n in 0..self.setup.nodes {
            if self.hosts[&node(n)].stream.is_none() {
                self.connect(&node(n));
            }
            if self.runs(n) {
                self.agent_hears(&node(n));
                self.unstick(&node(n));
            }
            self.controller_hears(&node(n));
            self.controller_hears(&node(n));
            self.check();
        }
    }

    /// Everything works again, nothing is open: whatever was asked has to come to an end.
    ///
    /// # Errors
    /// What must never be seen, and was.
    pub(crate) fn heal(&mut self) -> Result<(), Violation> {
        self.crash_after = None;
        for n in 0..self.setup.nodes {
            self.act(Action::Power(n, true))?;
            self.act(Action::Cut(n, false))?;
            self.act(Action::Mute(n, false))?;
            self.connect(&node(n));
        }
        for _ in 0..200 {
            for n in 0..self.setup.nodes {
                for v in 0..self.setup.volumes {
                    self.connection(v, n, |c| c.open = false);
                    self.path_returns(&volume(v), &node(n));
                    self.unwedge(&volume(v), &node(n));
                }
                self.unstick(&node(n));
            }
            self.act(Action::Pass(200))?;
            self.flow();
        }
        if self.open_requests.is_empty() {
            return Ok(());
        }
        Err(Violation(format!("not answered: {:?}", self.open_requests)))
    }

    /// After everything was detached in a world that works: nothing is left of it anywhere.
    ///
    /// # Errors
    /// What is left.
    pub(crate) fn at_rest(&self) -> Result<(), Violation> {
        for (id, record) in self.core.volumes() {
            if !record.attachments.is_empty() || !record.fenced.is_empty() || record.hidden {
                return Err(Violation(format!("{id} is not at rest: {record:?}")));
            }
        }
        for (id, export) in &self.exports {
            if !export.allowed.is_empty() || !export.on {
                return Err(Violation(format!("the RDS: {id}: {export:?}")));
            }
        }
        Ok(())
    }
}
