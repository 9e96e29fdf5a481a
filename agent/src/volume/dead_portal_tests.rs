//! A portal that drops packets, in a kernel that makes one connect at a time: whom it holds up.

use std::sync::Arc;
use std::time::Duration;

use crate::volume::outcome::Outcome;
use crate::volume::state::VolumePhase;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ledger::Grant;
use crate::link::Link;
use crate::name::VolumeId;
use crate::testing::agent::{Agent, grant};
use crate::testing::kernel::{ConnectAnswer, Kernel, World, portal};
use crate::volume::Volume;
use crate::volume::directive::{Ask, Directive};
use crate::volume::watch::Watch;

/// What the controller gives an attach or a detach.
const DEADLINE: Duration = Duration::from_secs(15);
/// How long the kernel is at a connect.
const TAKES: Duration = Duration::from_millis(80);

struct Machine {
    kernel: Arc<Kernel>,
    agent: Agent,
    _dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let (kernel, dir) = (Arc::<Kernel>::default(), tempfile::tempdir().unwrap());
        kernel.change(|world| world.serial = Some(TAKES));
        let agent = Agent::with_stopped_clock(&kernel, dir.path());
        Self { kernel, agent, _dir: dir }
    }

    fn answer(&self, at: u8, answer: ConnectAnswer) {
        self.kernel.change(|world| world.answer(at, answer));
    }

    fn directive(&self, volume: usize, seq: u64, ask: Ask) -> Directive {
        Directive { volume: id(volume), ..self.agent.directive(seq, ask) }
    }

    fn attach(&self, volume: usize, grant: Grant) -> Directive {
        self.directive(volume, 1, Ask::Attach { grant, secret: None, deadline: Instant::now() + DEADLINE })
    }

    fn detach(&self, volume: usize) -> Directive {
        self.directive(volume, 1, Ask::Detach { deadline: Instant::now() + DEADLINE, cut_tickets: false })
    }

    /// Gives directives at once; their results in whatever order, each within the deadline.
    async fn all(&self, directives: Vec<Directive>) -> Vec<Outcome> {
        directives.iter().for_each(|directive| self.agent.submit(directive));
        let mut outcomes = Vec::new();
        let began = Instant::now();
        for _ in directives {
            outcomes.push(self.agent.result().await.outcome);
        }
        // One that fails takes away what it made first.
        assert!(began.elapsed() <= DEADLINE + Duration::from_secs(2), "{:?}", began.elapsed());
        outcomes
    }

    fn volume(&self, volume: usize) -> Arc<Volume<Kernel>> {
        self.agent.fleet.volume(&id(volume))
    }

    fn given_to_the_kernel(&self, at: u8) -> usize {
        self.kernel.world().connects.iter().filter(|one| **one == portal(at)).count()
    }

    fn asked(&self, at: u8) -> usize {
        self.kernel.world().asked.iter().filter(|one| **one == portal(at)).count()
    }

    /// Waits, at most for an hour of the stopped clock.
    async fn until(&self, what: &str, holds: impl Fn(&World) -> bool) {
        let until = self.kernel.until(|world| holds(world).then_some(()));
        assert!(tokio::time::timeout(Duration::from_secs(3600), until).await.is_ok(), "{what}");
    }
}

fn id(volume: usize) -> VolumeId {
    VolumeId::parse(&format!("v{volume}")).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_dead_portal_holds_up_neither_attaches_nor_detaches() {
    let machine = Machine::new();
    machine.answer(2, ConnectAnswer::Drop);
    let attaches = (0..20).map(|volume| machine.attach(volume, grant(&[1, 2]))).collect();
    for outcome in machine.all(attaches).await {
        assert!(matches!(outcome, Outcome::Ready(_)), "{outcome:?}");
    }
    assert_eq!(machine.given_to_the_kernel(2), 0);
    assert!(machine.asked(2) <= 5, "asked {} times for twenty volumes", machine.asked(2));

    // Ten minutes of repairs.
    let stop = CancellationToken::new();
    let watching = tokio::spawn(Watch::new(machine.agent.fleet.clone()).run(stop.clone()));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(machine.given_to_the_kernel(2), 0);
    assert!((50..150).contains(&machine.asked(2)), "asked {} times in ten minutes", machine.asked(2));
    for state in machine.agent.fleet.inventory().await.unwrap() {
        let why = state.unready.as_ref().unwrap().message.as_str();
        let said = "no live path to 10.0.2.1:4420 (10.0.2.1 does not answer)";
        assert_eq!((state.phase, why), (VolumePhase::Degraded, said));
    }

    let detaches = (0..10).map(|volume| machine.detach(volume)).collect();
    for outcome in machine.all(detaches).await {
        assert!(matches!(outcome, Outcome::Absent(_)), "{outcome:?}");
    }
    // It comes back: what is left is made whole.
    machine.answer(2, ConnectAnswer::Accept);
    machine.until("the paths are repaired", |world| world.controllers.len() == 20).await;
    stop.cancel();
    watching.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_portal_that_dies_while_connects_wait_costs_the_kernel_two() {
    let machine = Machine::new();
    for volume in 0..20 {
        machine.agent.submit(&machine.attach(volume, grant(&[1, 2])));
    }
    machine.until("the first connect", |world| !world.controllers.is_empty()).await;
    machine.answer(2, ConnectAnswer::Drop);
    let given = machine.given_to_the_kernel(2);
    for _ in 0..20 {
        let outcome = machine.agent.result().await.outcome;
        assert!(matches!(outcome, Outcome::Ready(_)), "{outcome:?}");
    }
    let more = machine.given_to_the_kernel(2) - given;
    // What answered within the last second is given to the kernel; the first that takes long is the last.
    assert!(more <= 2, "{more} connects were given to the kernel in vain");
}

#[tokio::test(start_paused = true)]
async fn a_detach_waits_for_no_connect_that_the_kernel_has_not_been_given() {
    let machine = Machine::new();
    machine.answer(2, ConnectAnswer::Refuse);
    let outcomes = machine.all(vec![machine.attach(0, grant(&[1, 2]))]).await;
    assert!(matches!(outcomes[..], [Outcome::Ready(_)]), "{outcomes:?}");
    // The kernel is at the connects of others, and comes to no end.
    machine.answer(3, ConnectAnswer::Hang);
    for volume in 1..4 {
        machine.agent.submit(&machine.attach(volume, grant(&[3])));
    }
    machine.until("the kernel is busy", |world| world.connects.contains(&portal(3))).await;
    machine.answer(2, ConnectAnswer::Accept);
    let volume = machine.volume(0);
    volume.memory().repair = crate::volume::attach::backoff::Backoff::overdue([portal(2)]);
    let (_link, linked) = tokio::sync::watch::channel(Link::Up);
    volume.repair(&linked).await;
    assert!(volume.connects.are_running());
    let before = Instant::now();
    let detach = machine.detach(0);
    machine.agent.submit(&detach);
    let result = machine.agent.result().await;
    assert_eq!(result.operation, detach.operation);
    assert!(matches!(result.outcome, Outcome::Absent(_)), "{result:?}");
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
    assert_eq!(
        machine.given_to_the_kernel(2),
        3,
        "the attach's own tries, no repair: {:?}",
        machine.kernel.world().connects
    );
}

#[tokio::test(start_paused = true)]
async fn a_repair_that_waits_is_dropped_with_the_session() {
    let machine = Machine::new();
    machine.answer(2, ConnectAnswer::Refuse);
    machine.all(vec![machine.attach(0, grant(&[1, 2]))]).await;
    machine.answer(2, ConnectAnswer::Accept);
    let given = machine.given_to_the_kernel(2);
    let volume = machine.volume(0);
    volume.memory().repair = crate::volume::attach::backoff::Backoff::overdue([portal(2)]);
    let (link, linked) = tokio::sync::watch::channel(Link::Up);
    volume.repair(&linked).await;
    link.send_replace(Link::Down);
    volume.connects.quiet().await;
    assert_eq!(machine.given_to_the_kernel(2), given);
}

#[tokio::test(start_paused = true)]
async fn a_repeated_attach_keeps_the_connect_that_the_first_called_back() {
    let machine = Machine::new();
    machine.answer(1, ConnectAnswer::Hang);
    let outcomes = machine.all(vec![machine.attach(0, grant(&[1]))]).await;
    let [Outcome::Failed(failed)] = &outcomes[..] else { panic!("{outcomes:?}") };
    assert!(!failed.nothing_left && failed.unready.message.contains("no answer yet"));
    machine.agent.submit(&machine.attach(0, grant(&[1])));
    tokio::time::sleep(Duration::from_secs(1)).await;
    machine.answer(1, ConnectAnswer::Accept);
    let outcome = machine.agent.result().await.outcome;
    assert!(matches!(outcome, Outcome::Ready(_)), "{outcome:?}");
    assert_eq!((machine.given_to_the_kernel(1), machine.kernel.world().deleted.len()), (1, 0));
    // Should this one fail, it is this one's to take away.
    machine.kernel.change(|world| world.controllers.clear());
}
