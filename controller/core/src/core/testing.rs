//! A core and what a test does to it, one event at a time, without a world.

use super::*;
use crate::*;

#[derive(Clone)]
pub(super) struct Harness {
    pub(super) core: Core,
    pub(super) now: u64,
    pub(super) config: Config,
    /// Of every volume that is published.
    pub(super) min_fence: MinFence,
    /// Of every node that is heard.
    pub(super) max_volumes: Option<std::num::NonZeroU32>,
    /// Of every node that says Hello.
    pub(super) seen: NodeSeen,
    pub(super) requests: u64,
    sessions: u64,
    /// As a store would have it.
    pub(super) stored: BTreeMap<VolumeId, VolumeRecord>,
    pub(super) effects: Vec<Effect>,
}

pub(super) fn v() -> VolumeId {
    VolumeId::new("vol").expect("a volume id")
}

pub(super) fn n(name: &str) -> NodeId {
    NodeId::new(name).expect("a node id")
}

pub(super) fn nqn(name: &str) -> HostNqn {
    HostNqn::new(format!("nqn.2026-01.test:{name}")).expect("a host NQN")
}

pub(super) fn host_id(name: &str) -> HostId {
    let number = name.bytes().fold(1_u128, |number, byte| number << 8 | u128::from(byte));
    HostId::from_bytes(number.to_be_bytes()).expect("a host id")
}

pub(super) fn boot_id(name: &str) -> BootId {
    BootId::new(name).expect("a boot id")
}

pub(super) fn address(text: &str) -> StorageAddress {
    StorageAddress::parse(text).expect("a storage address")
}

/// A namespace with this last digit.
pub(super) fn namespace(digit: u8) -> DeviceIdentity {
    let uuid = format!("00000000-0000-0000-0000-{digit:012x}");
    DeviceIdentity { namespace_uuid: NamespaceUuid::parse(&uuid).expect("a UUID"), nguid: None }
}

pub(super) fn identity(name: &str, boot: &str) -> NodeIdentity {
    NodeIdentity {
        host_nqn: nqn(name),
        host_id: host_id(name),
        storage_addresses: vec![address(&format!("192.0.2.{}", name.len()))],
        boot_id: boot_id(boot),
    }
}

pub(super) fn spec(access: Access) -> VolumeSpec {
    VolumeSpec {
        id: v(),
        access,
        subsystem_nqn: SubsystemNqn::parse("nqn.2026-01.io.cleat:vol").ok(),
        portals: vec![Portal::parse("192.0.2.100:4420").expect("a portal")],
        size_bytes: 1 << 30,
        min_fence: MinFence::default(),
        migration_timeout_ms: VolumeSpec::DEFAULT_MIGRATION_TIMEOUT_MS,
        require_migration: false,
    }
}

pub(super) fn ready() -> Outcome {
    Outcome::Ready { identity: namespace(1), shown: None }
}

pub(super) fn absent(state: &str) -> Outcome {
    let deleted = vec![Deleted { controller: "nvme0".into(), state: state.into() }];
    Outcome::Absent(Absence { deleted })
}

pub(super) fn observed_of(phase: ObservedPhase) -> Observed {
    Observed {
        volume: v(),
        epoch: None,
        ended: false,
        phase,
        live_paths: 2,
        unready: String::new(),
        shown: None,
    }
}

/// A migration of the VM, by its number, as far as it has come.
pub(super) fn seen(number: u8, source: &str, target: &str, stage: VmStage) -> VmMigration {
    VmMigration {
        uid: MigrationUid::new(format!("uid-{number}")).expect("a UID"),
        name: format!("move-{number}"),
        vm: VmRef { namespace: "vms".into(), name: "vm".into(), uid: "vm-uid".into() },
        source: n(source),
        target: Some(n(target)),
        stage,
        switched_at: None,
        target_pod: None,
    }
}

/// KubeVirt reports it.
pub(super) fn report(b: &mut Harness, seen: VmMigration) {
    b.event(Event::MigrationSeen { volume: v(), vm: Some(Box::new(seen)) });
}

/// The one detach that a request waits for, and the fence beside it.
pub(super) fn detached(wait: &Wait) -> (&Agent, Option<&Fence>) {
    match wait {
        Wait::Holders(holders) => match &holders[..] {
            [HolderWait { wait: Some(AttachmentWait { condition, .. }), .. }] => match condition {
                Condition::Detached { agent, fence } => (agent, fence.as_deref()),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// A target that lets only listed hosts connect, and whose export off cuts and drains.
pub(super) fn able() -> TargetAbilities {
    TargetAbilities { acl: true, export_cuts: true, export_drains: true, ..TargetAbilities::default() }
}

/// Nodes a, bb and ccc are heard; the target can do this.
pub(super) fn bench(target: TargetAbilities) -> Harness {
    let mut b = Harness::with(Config { target, ..Config::default() });
    for name in ["a", "bb", "ccc"] {
        b.up(name, "boot", vec![]);
    }
    b
}

/// As [`bench`], and node a alone has the volume.
pub(super) fn alone(target: TargetAbilities) -> Harness {
    let mut b = bench(target);
    b.attach("a", Access::Rwo);
    b
}

/// As [`bench`], and nodes a and bb both have the volume.
pub(super) fn shared(target: TargetAbilities) -> Harness {
    let mut b = bench(target);
    b.attach("a", Access::RwxBlock);
    b.attach("bb", Access::RwxBlock);
    b
}

/// What came of a rung, by a refusal that names all that were tried.
pub(super) fn result_of(refusal: &Refusal, rung: Rung) -> &str {
    let Refusal::CannotFence { tried, .. } = refusal else { panic!("{refusal:?}") };
    tried.iter().find(|tried| tried.rung == rung).map(|tried| tried.result.as_str()).expect("it was tried")
}

impl Harness {
    pub(super) fn new() -> Self {
        Self::with(Config::default())
    }

    /// These nodes are heard.
    pub(super) fn hearing(names: &[&str]) -> Self {
        let mut b = Self::new();
        for name in names {
            b.up(name, "boot", vec![]);
        }
        b
    }

    pub(super) fn with(config: Config) -> Self {
        let (core, effects) = Core::rebuild(config.clone(), 7, Vec::new(), UnixMillis(0));
        assert!(effects.is_empty());
        Self {
            core,
            now: 0,
            config,
            min_fence: MinFence::default(),
            max_volumes: None,
            seen: NodeSeen::default(),
            requests: 0,
            sessions: 0,
            stored: BTreeMap::new(),
            effects: Vec::new(),
        }
    }

    pub(super) fn pass(&mut self, ms: u64) {
        self.now += ms;
        self.event(Event::Tick);
    }

    pub(super) fn all_rds_asked(&self) -> Vec<RdsRequest> {
        let asked = |e: &Effect| match e {
            Effect::Rds { request, .. } => Some(request.clone()),
            _ => None,
        };
        self.effects.iter().filter_map(asked).collect()
    }

    /// Takes the event in; `self.effects` are what came of it.
    pub(super) fn event(&mut self, event: Event) {
        self.now += 1;
        self.effects = self.core.step(UnixMillis(self.now), event);
        for effect in &self.effects {
            match effect {
                Effect::Persist(record) => {
                    drop(self.stored.insert(record.spec.id.clone(), (**record).clone()))
                }
                Effect::Forget(volume) => drop(self.stored.remove(volume)),
                _ => {}
            }
        }
    }

    pub(super) fn restart(&mut self) {
        let records: Vec<VolumeRecord> = self.stored.values().cloned().collect();
        let (core, effects) =
            Core::rebuild(self.config.clone(), self.core.term() + 1, records, UnixMillis(self.now));
        (self.core, self.effects) = (core, effects);
    }

    pub(super) fn session(&self, name: &str) -> SessionId {
        match &self.core.nodes[&n(name)].session {
            SessionState::Up { id, .. } => id.clone(),
            SessionState::Silent { .. } => SessionId::new("gone").expect("a session id"),
        }
    }

    pub(super) fn hello(&mut self, name: &str, identity: NodeIdentity) {
        self.sessions += 1;
        let session = SessionId::new(format!("s{}", self.sessions)).expect("a session id");
        let (max_volumes, seen) = (self.max_volumes, self.seen.clone());
        self.event(Event::SessionUp { node: n(name), session, identity, max_volumes, seen });
    }

    pub(super) fn up(&mut self, name: &str, boot: &str, volumes: Vec<Observed>) {
        self.up_as(name, identity(name, boot), volumes);
    }

    /// A host with this identity is heard under that name.
    pub(super) fn up_as(&mut self, name: &str, identity: NodeIdentity, volumes: Vec<Observed>) {
        self.hello(name, identity);
        self.event(Event::Inventory { node: n(name), session: self.session(name), volumes });
    }

    pub(super) fn silent(&mut self, name: &str) {
        let session = self.session(name);
        self.event(Event::SessionLost { node: n(name), session });
    }

    pub(super) fn publish(&mut self, name: &str, access: Access) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.event(Event::Publish {
            request,
            node: n(name),
            spec: VolumeSpec { min_fence: self.min_fence, ..spec(access) },
            read_only: false,
        });
        request
    }

    pub(super) fn unpublish(&mut self, name: &str) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.event(Event::Unpublish { request, volume: v(), node: Some(n(name)) });
        request
    }

    /// As [`Self::publish`], which is not answered yet.
    pub(super) fn publish_waits(&mut self, name: &str, access: Access) -> RequestId {
        let request = self.publish(name, access);
        assert_eq!(self.reply(request), None, "{:?}", self.effects);
        request
    }

    /// As [`Self::unpublish`], which is not answered yet.
    pub(super) fn unpublish_waits(&mut self, name: &str) -> RequestId {
        let request = self.unpublish(name);
        assert_eq!(self.reply(request), None, "{:?}", self.effects);
        request
    }

    /// Unpublishes; the agent deletes its controller, which is in this state then.
    pub(super) fn detach(&mut self, name: &str, controller: &str) -> RequestId {
        let request = self.unpublish(name);
        self.agent(absent(controller));
        request
    }

    /// A person has the node fenced.
    pub(super) fn fence(&mut self, request: u64, name: &str) {
        let (request, by, reason) = (RequestId(request), "ann".into(), "it writes nonsense".into());
        self.event(Event::Fence { request, volume: v(), node: n(name), by, reason });
    }

    /// A person says that the node is gone.
    pub(super) fn declare_gone(&mut self, request: u64, name: &str) {
        let (request, by, reason) = (RequestId(request), "ann".into(), "unplugged".into());
        self.event(Event::DeclareGone { request, node: n(name), by, reason });
    }

    /// The agent says how the volume is there now.
    pub(super) fn says(&mut self, name: &str, observed: Observed) {
        let session = self.session(name);
        self.event(Event::Delta { node: n(name), session, observed });
    }

    /// The RDS does all that it is asked for.
    pub(super) fn rds_does_all(&mut self) {
        while self.rds_asked().is_some() {
            self.rds(Ok(()));
        }
    }

    pub(super) fn rds(&mut self, result: Result<(), RdsFailure>) {
        let operation = self.rds_asked().expect("the RDS was asked").0;
        self.event(Event::RdsDone { operation, result });
    }

    pub(super) fn rds_asked(&self) -> Option<(OperationId, RdsRequest)> {
        self.effects.iter().find_map(|e| match e {
            Effect::Rds { operation, request } => Some((*operation, request.clone())),
            _ => None,
        })
    }

    pub(super) fn directed(&self) -> Option<(NodeId, OperationId, Directive)> {
        self.effects.iter().find_map(|e| match e {
            Effect::Direct { directive: Directive::Count { .. }, .. } => None,
            Effect::Direct { node, operation, directive, .. } => {
                Some((node.clone(), *operation, directive.clone()))
            }
            _ => None,
        })
    }

    /// Which agents were asked to count writes in the last step, and under which operation.
    pub(super) fn asked_to_count(&self) -> Vec<(&str, OperationId)> {
        let asked = self.effects.iter().filter_map(|effect| match effect {
            Effect::Direct { node, operation, directive: Directive::Count { .. }, .. } => {
                Some((node.as_str(), *operation))
            }
            _ => None,
        });
        asked.collect()
    }

    /// The agent answers what it was told in the last step.
    pub(super) fn agent(&mut self, outcome: Outcome) {
        let (node, operation, directive) = self.directed().expect("an agent was told something");
        let epoch = match directive {
            Directive::Attach { grant } => grant.epoch,
            Directive::Detach { epoch, .. }
            | Directive::Revoke { epoch, .. }
            | Directive::Preempt { epoch, .. }
            | Directive::Rekey { epoch, .. }
            | Directive::Count { epoch, .. }
            | Directive::Verify { epoch, .. } => epoch,
        };
        let session = self.session(node.as_str());
        self.event(Event::AgentDone { node, session, operation, volume: v(), epoch, outcome });
    }

    pub(super) fn reply(&self, request: RequestId) -> Option<Result<Reply, Refusal>> {
        self.effects.iter().find_map(|e| match e {
            Effect::Reply { request: r, result } if *r == request => Some(result.clone()),
            _ => None,
        })
    }

    pub(super) fn refusal(&self, request: RequestId) -> Refusal {
        self.reply(request).expect("an answer").expect_err("a refusal")
    }

    pub(super) fn attach(&mut self, name: &str, access: Access) {
        let request = self.publish(name, access);
        self.rds(Ok(()));
        self.agent(ready());
        assert!(matches!(self.reply(request), Some(Ok(Reply::Published(_)))), "{:?}", self.effects);
    }

    /// As [`Self::attach`], of a volume that gets its first secret before anybody connects.
    pub(super) fn attach_with_secret(&mut self, name: &str, access: Access) {
        self.publish(name, access);
        self.rds(Ok(()));
        self.rds(Ok(()));
        self.agent(ready());
    }

    pub(super) fn phase(&self, name: &str) -> Option<&'static str> {
        self.core.volumes.get(&v())?.attachment(&n(name)).map(|a| a.phase.name())
    }

    pub(super) fn observed(&self, phase: ObservedPhase) -> Observed {
        let epoch = self.core.volumes[&v()].attachments.first().map(|a| a.epoch);
        Observed { epoch, ..observed_of(phase) }
    }
}

/// Tickets.
impl Harness {
    /// Somebody wants the volume, of this access and by a ticket of this kind and generation, on a node or anywhere.
    pub(super) fn wants(
        &mut self,
        id: &str,
        (kind, generation): (TicketType, u64),
        node: Option<&str>,
        access: Access,
    ) {
        let now = UnixMillis(self.now);
        let ticket = Ticket {
            id: ticket_id(id),
            kind,
            node: node.map(n),
            holder: format!("holder of {id}"),
            generation,
            since: now,
            renewed: now,
            renew_ms: Some(60_000),
            waits_since: now,
        };
        self.event(Event::TicketWanted { spec: spec(access), ticket: Box::new(ticket) });
    }

    /// A backup has the volume on a node, and nobody else.
    pub(super) fn backup_on(&mut self, name: &str, access: Access) {
        self.wants("backup", (TicketType::Backup, 1), Some(name), access);
        self.rds(Ok(()));
        self.agent(ready());
        assert_eq!(self.stands("backup"), satisfied(name, 1));
    }

    pub(super) fn renews(&mut self, id: &str) {
        self.event(Event::TicketRenewed { volume: v(), ticket: ticket_id(id) });
    }

    pub(super) fn ticket_goes(&mut self, id: &str) {
        self.event(Event::TicketGone { volume: v(), ticket: ticket_id(id) });
    }

    /// How a ticket was said to stand last.
    pub(super) fn stands(&self, id: &str) -> TicketStanding {
        let all: Vec<_> = self.core.tickets().collect();
        let mut of_it = all.iter().filter(|(_, ticket, _)| ticket.id == ticket_id(id));
        let standing = of_it.next().and_then(|(_, _, standing)| *standing);
        standing.unwrap_or_else(|| panic!("nothing was said of {id}: {all:?}")).clone()
    }

    /// What a ticket waits for.
    pub(super) fn ticket_waits(&self, id: &str) -> TicketWait {
        match self.stands(id) {
            TicketStanding::Waits { wait, .. } => wait,
            other => panic!("{id} does not wait: {other:?}"),
        }
    }

    /// The agent that was directed to detach does so, and the RDS takes its host off the list.
    pub(super) fn lets_go(&mut self) {
        self.agent(absent("live"));
        self.rds(Ok(()));
    }

    /// What the one request that waits says that it waits for.
    pub(super) fn request_waits(&self) -> Wait {
        let waiting = self.core.waiting(&v(), UnixMillis(self.now));
        assert_eq!(waiting.len(), 1, "{waiting:?}");
        waiting[0].wait.clone()
    }
}

pub(super) fn ticket_id(name: &str) -> TicketId {
    TicketId::new(name).expect("a ticket id")
}

pub(super) fn satisfied(node: &str, generation: u64) -> TicketStanding {
    TicketStanding::Satisfied { node: n(node), generation }
}
