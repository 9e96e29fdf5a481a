//! Random histories of the real core against a model of the world.
//!
//! The world says who *could write*: a node whose kernel holds the volume, or whose writes the target has received
//! and not landed yet. The core's own opinion is never asked. Messages are delayed, lost with their session and
//! doubled; agents, nodes, the RDS and the controller fail at any point; what was stored is all that a restarted
//! controller begins with. At the end everything heals, and every request must have been answered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cleat_core::{
    Absence, Access, Config, Core, Deleted, Directive, Drained, Effect, Epoch, Event, HostNqn, Identity,
    NodeId, NodeIdentity, Notice, Observed, ObservedPhase, OperationId, Outcome, RdsError, RdsRequest,
    Refusal, Reply, RequestId, SessionId, UnixMillis, VolumeId, VolumeRecord, VolumeSpec,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

const NODES: u8 = 3;
const VOLUMES: u8 = 2;

#[derive(Debug, Clone)]
enum Action {
    Publish(u8, u8),
    Unpublish(u8, u8),
    UnpublishAll(u8),
    /// The RDS answers its oldest request: done, refused, or done with the answer lost (a time-out).
    Rds(RdsAnswer),
    ToAgent(u8),
    ToController(u8),
    Connect(u8),
    Drop(u8),
    /// Something said on an older session reaches the agent after all.
    Echo(u8),
    /// An answer that the controller has had already comes once more, on the newest session.
    EchoAnswer(u8),
    AgentRestart(u8),
    Reboot(u8),
    PathsDie(u8, u8),
    PathsReturn(u8, u8),
    /// The kernel takes a connection away that has been dead for too long.
    KernelGivesUp(u8, u8),
    /// The node cannot reach the target: what is not connected yet does not connect.
    Cut(u8, bool),
    Open(u8, u8),
    Close(u8, u8),
    /// The controller dies, in the middle of the effects of its next step.
    Crash(u8),
    Pass(u32),
    /// So many rounds in which everything that is on its way arrives: histories get deep only if things succeed.
    Flow(u8),
}

#[derive(Debug, Clone, Copy)]
enum RdsAnswer {
    Done,
    Refused,
    DoneUnheard,
}

#[derive(Default)]
struct Ledger {
    epoch: Option<Epoch>,
    ended: bool,
    deleted: Vec<Deleted>,
}

struct Connection {
    live: bool,
    open: bool,
}

struct Stream {
    id: SessionId,
    to_agent: VecDeque<(OperationId, Directive)>,
    to_controller: VecDeque<Event>,
}

struct Host {
    boot: u32,
    cut: bool,
    kernel: BTreeMap<VolumeId, Connection>,
    ledger: BTreeMap<VolumeId, Ledger>,
    stream: Option<Stream>,
    heard: Vec<(OperationId, Directive)>,
    answered: Vec<(OperationId, VolumeId, Epoch, Outcome)>,
}

struct World {
    now: u64,
    core: Core,
    config: Config,
    term: u64,
    stored: BTreeMap<VolumeId, VolumeRecord>,
    hosts: BTreeMap<NodeId, Host>,
    rds: VecDeque<(OperationId, RdsRequest)>,
    allowed: BTreeSet<(VolumeId, HostNqn)>,
    /// Writes that the target has received and not landed: until when.
    in_flight: BTreeMap<(VolumeId, NodeId), u64>,
    /// Whom callers have been told that they may use a volume. Nobody writes before.
    handed_out: BTreeSet<(VolumeId, NodeId)>,
    /// Which agents have proven, under which epoch, that they can use a volume.
    proven: BTreeSet<(VolumeId, NodeId, Epoch)>,
    open_requests: BTreeMap<RequestId, (VolumeId, Option<NodeId>)>,
    requests: u64,
    sessions: u64,
    /// What has been seen, so that a test which sees nothing can be told from one that finds nothing.
    seen: BTreeMap<&'static str, u32>,
    /// The controller dies after so many more effects.
    crash_after: Option<usize>,
}

fn volume(v: u8) -> VolumeId {
    VolumeId::new(format!("vol-{v}")).expect("a volume id")
}

fn node(n: u8) -> NodeId {
    NodeId::new(format!("node-{n}")).expect("a node id")
}

fn nqn(node: &NodeId) -> HostNqn {
    HostNqn::new(format!("nqn.2014-08.org.nvmexpress:uuid:{node}")).expect("a host NQN")
}

/// Volume 0 is RWO, volume 1 RWX block.
fn spec(v: &VolumeId) -> VolumeSpec {
    VolumeSpec {
        id: v.clone(),
        access: if v.as_str() == "vol-0" { Access::Rwo } else { Access::RwxBlock },
        subsystem_nqn: format!("nqn.2026-01.io.cleat:{v}"),
        portals: vec!["192.0.2.1:4420".into()],
        size_bytes: 1 << 30,
        min_fence: cleat_core::MinFence::default(),
    }
}

fn kind(result: &Result<Reply, Refusal>) -> &'static str {
    match result {
        Ok(Reply::Published(_)) => "published",
        Ok(Reply::Unpublished) => "unpublished",
        Ok(Reply::MayDelete) => "may delete",
        Ok(Reply::Fenced) => "fenced",
        Ok(Reply::Declared) => "declared",
        Err(Refusal::AttachedElsewhere { .. }) => "attached elsewhere",
        Err(Refusal::MigrationLimit { .. }) => "migration limit",
        Err(Refusal::Silent { .. }) => "silent",
        Err(Refusal::NotReady { .. }) => "not ready",
        Err(Refusal::InUse { .. }) => "in use",
        Err(Refusal::Rds { .. }) => "rds",
        Err(Refusal::StillWaiting { .. }) => "still waiting",
        Err(Refusal::Overtaken { .. }) => "overtaken",
        Err(_) => "other",
    }
}

impl World {
    fn new() -> Self {
        let config = Config {
            detach_grace_ms: 5_000,
            request_limit_ms: 8_000,
            drain_bound_ms: 3_000,
            retry_ms: 500,
            ..Config::default()
        };
        let host = || Host {
            boot: 0,
            cut: false,
            kernel: BTreeMap::new(),
            ledger: BTreeMap::new(),
            stream: None,
            heard: Vec::new(),
            answered: Vec::new(),
        };
        Self {
            now: 1_000,
            core: Core::rebuild(config.clone(), 1, Vec::new(), UnixMillis(1_000)).0,
            config,
            term: 1,
            stored: BTreeMap::new(),
            hosts: (0..NODES).map(|n| (node(n), host())).collect(),
            rds: VecDeque::new(),
            allowed: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            handed_out: BTreeSet::new(),
            proven: BTreeSet::new(),
            open_requests: BTreeMap::new(),
            requests: 0,
            sessions: 0,
            seen: BTreeMap::new(),
            crash_after: None,
        }
    }

    fn event(&mut self, event: Event) {
        let effects = self.core.step(UnixMillis(self.now), event);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            if let Some(left) = &mut self.crash_after {
                if *left == 0 {
                    self.restart_controller();
                    return;
                }
                *left -= 1;
            }
            match effect {
                Effect::Persist(record) => {
                    // Through its stored form, as a restart sees it.
                    let json = serde_json::to_string(&record).expect("a record is JSON");
                    let record: VolumeRecord = serde_json::from_str(&json).expect("and reads back");
                    self.stored.insert(record.spec.id.clone(), record);
                }
                Effect::Forget(volume) => {
                    self.stored.remove(&volume);
                }
                Effect::Rds { operation, request } => self.rds.push_back((operation, request)),
                Effect::Direct { node, session, operation, directive } => {
                    let host = self.hosts.get_mut(&node).expect("a known host");
                    if let Some(stream) = host.stream.as_mut().filter(|s| s.id == session) {
                        stream.to_agent.push_back((operation, directive));
                    }
                }
                Effect::Reply { request, result } => self.answered(request, result),
                Effect::RefuseSession { session, .. } => {
                    for host in self.hosts.values_mut() {
                        if host.stream.as_ref().is_some_and(|s| s.id == session) {
                            host.stream = None;
                        }
                    }
                }
                Effect::Notice(Notice::Detached { evidence, .. }) => {
                    let kind = match evidence.drained {
                        Drained::NeverHandedOut => "never handed out",
                        Drained::LiveDeletion => "live deletion",
                        Drained::Bound { .. } => "bound",
                        Drained::Barrier => "barrier",
                        Drained::Abort => "abort",
                    };
                    *self.seen.entry(kind).or_default() += 1;
                }
                Effect::StepDown { reason } => panic!("one controller alone stepped down: {reason}"),
                Effect::Notice(_) => {}
            }
        }
    }

    fn answered(&mut self, request: RequestId, result: Result<Reply, Refusal>) {
        let (volume, about) = self.open_requests.remove(&request).expect("each request is answered once");
        *self.seen.entry(kind(&result)).or_default() += 1;
        match result {
            Ok(Reply::Unpublished) => {
                let gone: Vec<NodeId> =
                    about.map_or_else(|| self.hosts.keys().cloned().collect(), |n| vec![n]);
                for node in gone {
                    self.handed_out.remove(&(volume.clone(), node.clone()));
                    assert!(
                        !self.can_write(&volume, &node),
                        "Unpublish({volume}, {node}) succeeded, but it can still write"
                    );
                }
            }
            Ok(Reply::Published(grant)) => {
                let node = about.expect("a Publish names its node");
                let proof = (volume.clone(), node.clone(), grant.epoch);
                assert!(self.proven.contains(&proof), "Publish({volume}, {node}) succeeded without a proof");
                self.handed_out.insert((volume, node));
            }
            Ok(Reply::MayDelete | Reply::Fenced | Reply::Declared) | Err(_) => {}
        }
    }

    fn can_write(&self, volume: &VolumeId, node: &NodeId) -> bool {
        let on_its_way =
            self.in_flight.get(&(volume.clone(), node.clone())).is_some_and(|until| *until > self.now);
        self.hosts[node].kernel.contains_key(volume) || on_its_way
    }

    fn check(&self) {
        for v in 0..VOLUMES {
            let volume = volume(v);
            let writers: Vec<&NodeId> = self.hosts.keys().filter(|n| self.can_write(&volume, n)).collect();
            let limit = if v == 0 { 1 } else { 2 };
            assert!(writers.len() <= limit, "{volume}: {writers:?} can all write, {limit} may");
        }
    }

    fn restart_controller(&mut self) {
        self.crash_after = None;
        // Callers see their connection break; they will ask again or not.
        self.open_requests.clear();
        // What the RDS was asked may still be done by it, unheard.
        for (_, request) in std::mem::take(&mut self.rds) {
            self.rds_does(&request);
        }
        for host in self.hosts.values_mut() {
            host.stream = None;
        }
        self.term += 1;
        let records = self.stored.values().cloned().collect();
        let (core, effects) = Core::rebuild(self.config.clone(), self.term, records, UnixMillis(self.now));
        self.core = core;
        self.carry_out(effects);
    }

    fn rds_does(&mut self, request: &RdsRequest) {
        match request {
            RdsRequest::Allow { volume, host_nqn } => self.allowed.insert((volume.clone(), host_nqn.clone())),
            RdsRequest::Deny { volume, host_nqn } => self.allowed.remove(&(volume.clone(), host_nqn.clone())),
            RdsRequest::Hide { .. } | RdsRequest::Show { .. } | RdsRequest::SetSecret { .. } => {
                unreachable!("this target can do none of it")
            }
        };
    }

    fn rds_answers(&mut self, answer: RdsAnswer) {
        let Some((operation, request)) = self.rds.pop_front() else {
            return;
        };
        if !matches!(answer, RdsAnswer::Refused) {
            self.rds_does(&request);
        }
        let result = match answer {
            RdsAnswer::Done => Ok(()),
            RdsAnswer::Refused => Err(RdsError::Refused("not today".into())),
            RdsAnswer::DoneUnheard => Err(RdsError::Unreachable("no answer in time".into())),
        };
        self.event(Event::RdsDone { operation, result });
    }

    fn connect(&mut self, n: &NodeId) {
        self.drop_session(n);
        self.sessions += 1;
        let id = SessionId::new(format!("s-{}", self.sessions)).expect("a session id");
        let host = self.hosts.get_mut(n).expect("a known host");
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

    fn drop_session(&mut self, n: &NodeId) {
        if let Some(stream) = self.hosts.get_mut(n).and_then(|h| h.stream.take()) {
            self.event(Event::SessionLost { node: n.clone(), session: stream.id });
        }
    }

    fn agent_hears(&mut self, n: &NodeId) {
        let host = self.hosts.get_mut(n).expect("a known host");
        let Some(message) = host.stream.as_mut().and_then(|s| s.to_agent.pop_front()) else {
            return;
        };
        host.heard.push(message.clone());
        self.agent_does(n, message);
    }

    /// What an agent does with a directive, by the rules that agents are held to.
    fn agent_does(&mut self, n: &NodeId, (operation, directive): (OperationId, Directive)) {
        let (volume, epoch) = match &directive {
            Directive::Attach { grant } => (grant.spec.id.clone(), grant.epoch),
            Directive::Detach { volume, epoch }
            | Directive::Revoke { volume, epoch }
            | Directive::Preempt { volume, epoch, .. }
            | Directive::Rekey { volume, epoch, .. } => (volume.clone(), *epoch),
        };
        let allowed = self.allowed.contains(&(volume.clone(), nqn(n)));
        let host = self.hosts.get_mut(n).expect("a known host");
        let outcome = match directive {
            Directive::Attach { .. } => host.attach(&volume, epoch, allowed),
            Directive::Detach { .. } => host.detach(&volume, epoch),
            _ => unreachable!("this target can do none of it"),
        };
        if let Outcome::Absent(absence) = &outcome
            && absence.deleted.iter().any(|d| d.state != "live")
            && self.handed_out.contains(&(volume.clone(), n.clone()))
        {
            let until = self.now + self.config.drain_bound_ms;
            self.in_flight.entry((volume.clone(), n.clone())).or_insert(until);
        }
        if matches!(outcome, Outcome::Ready { .. }) {
            self.proven.insert((volume.clone(), n.clone(), epoch));
        }
        let host = self.hosts.get_mut(n).expect("a known host");
        host.answered.push((operation, volume.clone(), epoch, outcome.clone()));
        let Some(stream) = host.stream.as_ref() else {
            return;
        };
        let session = stream.id.clone();
        let observed = host.observe(&volume);
        let delta = Event::Delta { node: n.clone(), session: session.clone(), observed };
        let done = Event::AgentDone { node: n.clone(), session, operation, volume, epoch, outcome };
        if let Some(stream) = host.stream.as_mut() {
            stream.to_controller.extend([done, delta]);
        }
    }

    fn controller_hears(&mut self, n: &NodeId) {
        let stream = self.hosts.get_mut(n).and_then(|h| h.stream.as_mut());
        if let Some(event) = stream.and_then(|s| s.to_controller.pop_front()) {
            self.event(event);
        }
    }

    fn request(&mut self, volume: &VolumeId, about: Option<NodeId>) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.open_requests.insert(request, (volume.clone(), about));
        request
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Publish(v, n) => {
                let (volume, n) = (volume(v), node(n));
                let request = self.request(&volume, Some(n.clone()));
                self.event(Event::Publish { request, node: n, spec: spec(&volume), read_only: false });
            }
            Action::Unpublish(v, n) => {
                let volume = volume(v);
                let request = self.request(&volume, Some(node(n)));
                self.event(Event::Unpublish { request, volume, node: Some(node(n)) });
            }
            Action::UnpublishAll(v) => {
                let volume = volume(v);
                let request = self.request(&volume, None);
                self.event(Event::Unpublish { request, volume, node: None });
            }
            Action::Rds(answer) => self.rds_answers(answer),
            Action::ToAgent(n) => self.agent_hears(&node(n)),
            Action::ToController(n) => self.controller_hears(&node(n)),
            Action::Connect(n) => self.connect(&node(n)),
            Action::Drop(n) => self.drop_session(&node(n)),
            Action::Echo(n) => {
                let host = &self.hosts[&node(n)];
                let old = host.heard.get(host.heard.len().wrapping_sub(2)).cloned();
                if let Some(old) = old {
                    self.agent_does(&node(n), old);
                }
            }
            Action::EchoAnswer(n) => {
                let host = &self.hosts[&node(n)];
                let (Some(stream), Some(answer)) = (&host.stream, host.answered.last().cloned()) else {
                    return;
                };
                let (operation, volume, epoch, outcome) = answer;
                let (node, session) = (node(n), stream.id.clone());
                self.event(Event::AgentDone { node, session, operation, volume, epoch, outcome });
            }
            Action::AgentRestart(n) => self.connect(&node(n)),
            Action::Reboot(n) => self.reboot(&node(n)),
            Action::PathsDie(v, n) => self.path_event(&volume(v), &node(n), |h, v| {
                h.kernel.get_mut(v).map(|c| c.live = false).is_some()
            }),
            Action::PathsReturn(v, n) => self.connection(v, n, |c| c.live = true),
            Action::KernelGivesUp(v, n) => {
                self.path_event(&volume(v), &node(n), |h, v| h.kernel.remove(v).is_some())
            }
            Action::Cut(n, cut) => self.hosts.get_mut(&node(n)).expect("a known host").cut = cut,
            Action::Open(v, n) if self.handed_out.contains(&(volume(v), node(n))) => {
                self.connection(v, n, |c| c.open = true);
            }
            Action::Open(..) => {}
            Action::Close(v, n) => self.connection(v, n, |c| c.open = false),
            Action::Crash(after) => self.crash_after = Some(after.into()),
            Action::Pass(ms) => {
                self.now += u64::from(ms);
                self.event(Event::Tick);
            }
            Action::Flow(rounds) => (0..rounds).for_each(|_| self.flow()),
        }
        self.check();
    }

    fn connection(&mut self, v: u8, n: u8, change: impl FnOnce(&mut Connection)) {
        if let Some(c) = self.hosts.get_mut(&node(n)).and_then(|h| h.kernel.get_mut(&volume(v))) {
            change(c);
        }
    }

    /// The kernel loses a connection, with what was on its way; the agent sees it, and says so if it can.
    fn path_event(&mut self, v: &VolumeId, n: &NodeId, happen: impl FnOnce(&mut Host, &VolumeId) -> bool) {
        let host = self.hosts.get_mut(n).expect("a known host");
        if !happen(host, v) {
            return;
        }
        if let Some(session) = host.stream.as_ref().map(|s| s.id.clone()) {
            let delta = Event::Delta { node: n.clone(), session, observed: host.observe(v) };
            if let Some(stream) = host.stream.as_mut() {
                stream.to_controller.push_back(delta);
            }
        }
        if self.handed_out.contains(&(v.clone(), n.clone())) {
            self.in_flight.insert((v.clone(), n.clone()), self.now + self.config.drain_bound_ms);
        }
    }

    /// The kernel dies; what it had sent may still land.
    fn reboot(&mut self, n: &NodeId) {
        self.drop_session(n);
        let until = self.now + self.config.drain_bound_ms;
        let host = self.hosts.get_mut(n).expect("a known host");
        host.boot += 1;
        for volume in std::mem::take(&mut host.kernel).into_keys() {
            if self.handed_out.contains(&(volume.clone(), n.clone())) {
                self.in_flight.insert((volume, n.clone()), until);
            }
        }
        for ledger in host.ledger.values_mut() {
            ledger.deleted.clear();
        }
    }

    fn flow(&mut self) {
        self.rds_answers(RdsAnswer::Done);
        for n in 0..NODES {
            if self.hosts[&node(n)].stream.is_none() {
                self.connect(&node(n));
            }
            self.agent_hears(&node(n));
            self.controller_hears(&node(n));
            self.controller_hears(&node(n));
            self.check();
        }
    }

    /// Everything works again, nothing is open: whatever was asked has to come to an end.
    fn heal(&mut self) {
        self.crash_after = None;
        for n in 0..NODES {
            for v in 0..VOLUMES {
                self.connection(v, n, |c| (c.live, c.open) = (true, false));
            }
            self.act(Action::Cut(n, false));
            self.connect(&node(n));
        }
        for _ in 0..200 {
            self.act(Action::Pass(200));
            self.flow();
        }
    }
}

impl Host {
    fn observe(&self, volume: &VolumeId) -> Observed {
        let ledger = self.ledger.get(volume);
        let phase = match self.kernel.get(volume) {
            None => ObservedPhase::Absent,
            Some(c) if c.live => ObservedPhase::Ready,
            Some(_) => ObservedPhase::Lost,
        };
        Observed {
            volume: volume.clone(),
            epoch: ledger.and_then(|l| l.epoch),
            ended: ledger.is_some_and(|l| l.ended),
            phase,
            live_paths: u32::from(phase == ObservedPhase::Ready),
            unready: String::new(),
        }
    }

    fn attach(&mut self, volume: &VolumeId, epoch: Epoch, allowed: bool) -> Outcome {
        let ledger = self.ledger.entry(volume.clone()).or_default();
        match ledger.epoch {
            Some(highest) if epoch < highest || (epoch == highest && ledger.ended) => {
                return Outcome::Stale { highest, ended: ledger.ended };
            }
            Some(highest) if epoch == highest => {}
            _ => *ledger = Ledger { epoch: Some(epoch), ended: false, deleted: Vec::new() },
        }
        let failed = |nothing_left| Outcome::Failed {
            clause: "paths".into(),
            message: "no live path".into(),
            nothing_left,
        };
        match self.kernel.get(volume) {
            Some(c) if c.live => {}
            Some(_) => return failed(false),
            None if allowed && !self.cut => {
                self.kernel.insert(volume.clone(), Connection { live: true, open: false });
            }
            None => return failed(true),
        }
        let identity = Identity { namespace_uuid: format!("uuid-{volume}"), nguid: String::new() };
        Outcome::Ready { identity }
    }

    fn detach(&mut self, volume: &VolumeId, epoch: Epoch) -> Outcome {
        let ledger = self.ledger.entry(volume.clone()).or_default();
        if let Some(highest) = ledger.epoch.filter(|highest| epoch < *highest) {
            return Outcome::Stale { highest, ended: ledger.ended };
        }
        if self.kernel.get(volume).is_some_and(|c| c.open) {
            return Outcome::Busy { holders: vec!["pid 1".into()] };
        }
        (ledger.epoch, ledger.ended) = (Some(epoch), true);
        if let Some(c) = self.kernel.remove(volume) {
            let state = if c.live { "live" } else { "connecting" }.into();
            ledger.deleted.push(Deleted { controller: "nvme0".into(), state });
        }
        Outcome::Absent(Absence { deleted: ledger.deleted.clone() })
    }
}

fn action() -> impl Strategy<Value = Action> {
    let v = || 0..VOLUMES;
    let n = || 0..NODES;
    prop_oneof![
        4 => (v(), n()).prop_map(|(v, n)| Action::Publish(v, n)),
        4 => (v(), n()).prop_map(|(v, n)| Action::Unpublish(v, n)),
        1 => v().prop_map(Action::UnpublishAll),
        8 => prop_oneof![
            8 => Just(RdsAnswer::Done),
            1 => Just(RdsAnswer::Refused),
            1 => Just(RdsAnswer::DoneUnheard),
        ].prop_map(Action::Rds),
        8 => n().prop_map(Action::ToAgent),
        8 => n().prop_map(Action::ToController),
        4 => n().prop_map(Action::Connect),
        1 => n().prop_map(Action::Drop),
        1 => n().prop_map(Action::Echo),
        2 => n().prop_map(Action::EchoAnswer),
        1 => n().prop_map(Action::AgentRestart),
        1 => n().prop_map(Action::Reboot),
        1 => (v(), n()).prop_map(|(v, n)| Action::PathsDie(v, n)),
        1 => (v(), n()).prop_map(|(v, n)| Action::PathsReturn(v, n)),
        1 => (v(), n()).prop_map(|(v, n)| Action::KernelGivesUp(v, n)),
        1 => (n(), any::<bool>()).prop_map(|(n, cut)| Action::Cut(n, cut)),
        1 => (v(), n()).prop_map(|(v, n)| Action::Open(v, n)),
        2 => (v(), n()).prop_map(|(v, n)| Action::Close(v, n)),
        1 => (0..4u8).prop_map(Action::Crash),
        3 => (1..4_000u32).prop_map(Action::Pass),
        5 => (1..8u8).prop_map(Action::Flow),
    ]
}

/// How many histories: enough to find each of the mistakes that were tried by hand; more with `CLEAT_HISTORIES`.
fn histories() -> u32 {
    std::env::var("CLEAT_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000)
}

fn live_through(actions: Vec<Action>) -> World {
    let mut world = World::new();
    for n in 0..NODES {
        world.connect(&node(n));
        world.controller_hears(&node(n));
    }
    for action in actions {
        world.act(action);
    }
    world.heal();
    assert!(world.open_requests.is_empty(), "not answered: {:?}", world.open_requests);
    // And whatever is attached can be detached.
    for v in 0..VOLUMES {
        world.act(Action::UnpublishAll(v));
    }
    world.heal();
    assert!(world.open_requests.is_empty(), "not answered: {:?}", world.open_requests);
    for (id, record) in world.core.volumes() {
        assert!(record.attachments.is_empty(), "{id} is still attached: {:?}", record.attachments);
    }
    assert!(world.allowed.is_empty(), "the RDS still allows {:?}", world.allowed);
    world
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: histories(),
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn nobody_writes_who_may_not_and_every_request_ends(actions in prop::collection::vec(action(), 1..160)) {
        live_through(actions);
    }
}

/// The histories do reach what they are meant to try.
#[test]
fn histories_reach_every_kind_of_answer() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen: BTreeMap<&'static str, u32> = BTreeMap::new();
    for _ in 0..200 {
        let tree = prop::collection::vec(action(), 1..160).new_tree(&mut runner).expect("a history");
        for (kind, count) in live_through(tree.current()).seen {
            *seen.entry(kind).or_default() += count;
        }
    }
    for kind in [
        "published",
        "unpublished",
        "attached elsewhere",
        "migration limit",
        "silent",
        "not ready",
        "in use",
        "rds",
        "still waiting",
        "overtaken",
        "never handed out",
        "live deletion",
        "bound",
    ] {
        assert!(seen.get(kind).is_some_and(|n| *n >= 5), "{kind} was hardly ever seen: {seen:?}");
    }
}
