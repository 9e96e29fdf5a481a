//! An agent without sockets around a kernel made of memory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::volume::outcome::{Outcome, StillRunning};
use cleat_host::fabrics::{ConnectOptions, DhchapSecret, LossTimeout};
use cleat_host::uevents::Uevents;
use cleat_host::work::Workers;
use cleat_host::{HostId, HostNqn, NamespaceIdentity, NamespaceUuid};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::kernel::{HOST, HOST_ID, Kernel, UUID, World, portal};
use crate::ledger::{Grant, Ledger, LedgerEntry};
use crate::link::Link;
use crate::name::{Epoch, NqnPrefix, OperationId, VolumeId};
use crate::session::outbox::{Outbox, Outgoing};
use crate::volume::board::Board;
use crate::volume::directive::{Ask, Directive};
use crate::volume::outcome::DirectiveResult;
use crate::volume::state::VolumeState;
use crate::volume::{ConnectIdentity, Fleet, Times, VolumeContext};

pub(crate) const BOOT: &str = "boot-1";
/// Longest that a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Agent {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) fleet: Fleet<Kernel>,
    pub(crate) outbox: Arc<Outbox>,
    _link: watch::Sender<Link>,
    _hearing: (Uevents, AbortOnDropHandle<()>),
    operations: std::sync::atomic::AtomicU32,
}

/// What outlives an agent's process: the kernel, and the directory of the ledger.
pub(crate) struct Machine {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) dir: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self { kernel: Arc::default(), dir: tempfile::tempdir().unwrap() }
    }

    /// With an agent.
    pub(crate) fn started() -> (Self, Agent) {
        let machine = Self::new();
        let agent = machine.agent();
        (machine, agent)
    }

    /// With an agent that has the volume over these portals.
    pub(crate) async fn holding(seq: u64, portals: &[u8]) -> (Self, Agent) {
        let (machine, agent) = Self::started();
        agent.ready(seq, portals).await;
        (machine, agent)
    }

    /// Another process of the agent.
    pub(crate) fn agent(&self) -> Agent {
        Agent::start(&self.kernel, self.dir.path(), BOOT)
    }

    /// The same with a copy of the ledger: the lock of a process that was killed is free at once; one that is dropped
    /// here has tasks that still end.
    pub(crate) fn agent_on_a_copy(&self) -> Agent {
        let copy = self.dir.path().join("copy");
        std::fs::create_dir_all(copy.join("ledger")).unwrap();
        for file in std::fs::read_dir(self.dir.path().join("ledger")).unwrap().flatten() {
            std::fs::copy(file.path(), copy.join("ledger").join(file.file_name())).unwrap();
        }
        Agent::start(&self.kernel, &copy, BOOT)
    }

    /// Waits for a condition of the kernel.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&World) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(&self.kernel.world()) {
            assert!(Instant::now() < end, "{what}");
            tokio::task::yield_now().await;
        }
    }
}

/// States at deletion by portal.
pub(crate) fn absent(outcome: Outcome) -> Vec<(String, String)> {
    let Outcome::Absent(absent) = outcome else { panic!("not absent: {outcome:?}") };
    let mut deleted: Vec<_> = absent.deleted.into_iter().map(|one| (one.portal, one.state)).collect();
    deleted.sort();
    deleted
}

/// What [`absent`] gives of controllers that were in these states.
pub(crate) fn states(states: &[(u8, &str)]) -> Vec<(String, String)> {
    states.iter().map(|(n, state)| (portal(*n).to_string(), (*state).to_owned())).collect()
}

/// The clause, its message, and whether nothing is left.
pub(crate) fn failed(outcome: Outcome) -> (&'static str, String, bool) {
    let Outcome::Failed(failed) = outcome else { panic!("did not fail: {outcome:?}") };
    (failed.unready.clause, failed.unready.message, failed.nothing_left)
}

pub(crate) fn pending(outcome: Outcome) -> StillRunning {
    let Outcome::Pending(pending) = outcome else { panic!("not pending: {outcome:?}") };
    pending
}

pub(crate) fn ready(outcome: Outcome) -> VolumeState {
    let Outcome::Ready(ready) = outcome else { panic!("not ready: {outcome:?}") };
    *ready.state
}

pub(crate) fn secret(letter: char) -> DhchapSecret {
    DhchapSecret::parse(&format!("DHHC-1:00:{}:", letter.to_string().repeat(48))).unwrap()
}

pub(crate) fn volume() -> VolumeId {
    VolumeId::parse("v").unwrap()
}

pub(crate) fn epoch(seq: u64) -> Epoch {
    Epoch::new(1, seq).unwrap()
}

pub(crate) fn grant(portals: &[u8]) -> Grant {
    Grant {
        portals: portals.iter().copied().map(portal).collect(),
        identity: NamespaceIdentity { uuid: NamespaceUuid::parse(UUID).ok(), nguid: None },
        size_bytes: super::kernel::SIZE,
        read_only: false,
        policy: cleat_host::readiness::PathPolicy::Any,
        reserve: None,
    }
}

impl Agent {
    /// A new process on a machine: `kernel` and `dir` are what survives one.
    pub(crate) fn start(kernel: &Arc<Kernel>, dir: &Path, boot: &str) -> Self {
        let times = Times {
            poll: Duration::from_millis(5),
            sweep: Duration::from_millis(20),
            stragglers: Duration::from_millis(50),
            stage: Duration::from_secs(2),
            turn: Duration::from_millis(200),
            settled: Duration::from_millis(50),
            ..Times::default()
        };
        Self::begin(kernel, Ledger::open(dir).unwrap(), times, boot, ConnectOptions::default())
    }

    /// One whose connections have these times, in seconds.
    pub(crate) fn with_times(kernel: &Arc<Kernel>, dir: &Path, reconnect: u64, loss: u64) -> Self {
        let connect = ConnectOptions {
            reconnect_delay: Some(Duration::from_secs(reconnect)),
            ctrl_loss_tmo: Some(LossTimeout::After(Duration::from_secs(loss))),
            ..ConnectOptions::default()
        };
        Self::begin(kernel, Ledger::open(dir).unwrap(), Times::default(), BOOT, connect)
    }

    /// One with the times of the real one, for tests whose clock is stopped: no thread runs beside it.
    pub(crate) fn with_stopped_clock(kernel: &Arc<Kernel>, dir: &Path) -> Self {
        let workers = Workers::in_place(Duration::from_millis(1));
        Self::begin(
            kernel,
            Ledger::open_with(dir, workers).unwrap(),
            Times::default(),
            BOOT,
            ConnectOptions::default(),
        )
    }

    fn begin(
        kernel: &Arc<Kernel>,
        ledger: Ledger,
        times: Times,
        boot: &str,
        connect: ConnectOptions,
    ) -> Self {
        let identity = ConnectIdentity {
            host_nqn: HostNqn::parse(HOST).unwrap(),
            host_id: HostId::parse(HOST_ID).unwrap(),
            boot_id: boot.to_owned(),
            prefix: NqnPrefix::parse("nqn.2026-01.io.cleat:").unwrap(),
            connect,
        };
        let shared = VolumeContext {
            host: kernel.clone(),
            ledger,
            board: Board::default(),
            identity,
            times,
            uevents: None,
            observations: Default::default(),
            disconnects: Default::default(),
            portals: Default::default(),
            queue: Default::default(),
        };
        let (uevents, events) = Uevents::scripted();
        kernel.heard_by(events);
        shared.disconnects.events_arrive();
        let hearing = shared.disconnects.listen(Some(&uevents));
        let outbox = Arc::new(Outbox::default());
        let (link, linked) = watch::channel(Link::Up);
        let fleet = Fleet::new(Arc::new(shared), outbox.clone(), linked);
        fleet.load();
        Self {
            kernel: kernel.clone(),
            fleet,
            outbox,
            _link: link,
            _hearing: (uevents, hearing),
            operations: Default::default(),
        }
    }

    pub(crate) fn directive(&self, seq: u64, ask: Ask) -> Directive {
        let number = self.operations.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Directive {
            operation: OperationId::parse(&format!("op-1-{number}")).unwrap(),
            volume: volume(),
            epoch: epoch(seq),
            ask,
            received: Instant::now(),
        }
    }

    pub(crate) fn submit(&self, directive: &Directive) {
        self.fleet.begin(directive.clone());
    }

    /// The next result, whatever it is about.
    pub(crate) async fn result(&self) -> DirectiveResult {
        match timeout(PATIENCE, self.outbox.next()).await.expect("no result") {
            Outgoing::Result(result) => result,
            Outgoing::Refusal(refusal) => panic!("refused: {refusal:?}"),
        }
    }

    pub(crate) async fn ask(&self, seq: u64, ask: Ask) -> Outcome {
        let directive = self.directive(seq, ask);
        self.submit(&directive);
        let result = self.result().await;
        assert_eq!(result.operation, directive.operation);
        result.outcome
    }

    pub(crate) async fn attach(&self, seq: u64, grant: Grant) -> Outcome {
        self.attach_by(seq, grant, PATIENCE).await
    }

    pub(crate) async fn attach_by(&self, seq: u64, grant: Grant, by: Duration) -> Outcome {
        self.ask(seq, Ask::Attach { grant, secret: None, deadline: Instant::now() + by }).await
    }

    pub(crate) async fn detach(&self, seq: u64) -> Outcome {
        self.ask(seq, Ask::Detach { deadline: Instant::now() + PATIENCE, cut_tickets: false }).await
    }

    /// As [`Agent::detach`], with tickets cut off first.
    pub(crate) async fn detach_from_tickets(&self, seq: u64) -> Outcome {
        self.ask(seq, Ask::Detach { deadline: Instant::now() + PATIENCE, cut_tickets: true }).await
    }

    pub(crate) async fn revoke(&self, seq: u64) -> Outcome {
        self.ask(seq, Ask::Revoke { deadline: Instant::now() + PATIENCE }).await
    }

    pub(crate) async fn ready(&self, seq: u64, portals: &[u8]) -> VolumeState {
        ready(self.attach(seq, grant(portals)).await)
    }

    pub(crate) async fn entry(&self) -> Option<LedgerEntry> {
        self.fleet.shared().ledger.load(&volume()).await.unwrap()
    }

    /// The state in a fresh inventory.
    pub(crate) async fn state(&self) -> VolumeState {
        let states = self.fleet.inventory().await.unwrap();
        states.into_iter().find(|state| state.volume == volume()).expect("the volume is known")
    }
}
