//! A third node wants what both sides of a migration have: it waits for who leaves, and gets it by a proof alone.

use std::collections::VecDeque;

use super::testing::*;
use crate::*;

/// Nodes a and bb have the volume, and KubeVirt has reported that the VM moved from a to bb, with this end.
fn moved(end: VmStage) -> Harness {
    let mut b = shared(able());
    report(&mut b, seen(1, "a", "bb", VmStage::Running));
    report(&mut b, seen(1, "a", "bb", end));
    b
}

fn vm() -> VmRef {
    seen(1, "a", "bb", VmStage::Running).vm
}

/// What the one request waits for.
fn waits_for(b: &Harness) -> Wait {
    let waiting = b.core.waiting(&v(), UnixMillis(b.now));
    let [waiting] = &waiting[..] else { panic!("{waiting:?}") };
    waiting.wait.clone()
}

fn nobody_leaves_yet(name: &str) -> Wait {
    Wait::Leaving { node: n(name), vm: vm(), wait: None }
}

/// This one is let in at the RDS now, and nobody was before.
fn let_in(b: &Harness, name: &str) -> bool {
    matches!(b.rds_asked(), Some((_, RdsRequest::Allow { host_nqn, .. })) if host_nqn == nqn(name))
}

#[test]
fn a_third_waits_for_who_leaves_and_is_granted_with_the_proof() {
    for (end, leaves) in [(VmStage::Completed, "a"), (VmStage::Failed, "bb"), (VmStage::Aborted, "bb")] {
        let mut b = moved(end);
        let third = b.publish_waits("ccc", Access::RwxBlock);
        assert_eq!((waits_for(&b), b.effects.len()), (nobody_leaves_yet(leaves), 0), "{end:?}");
        b.unpublish(leaves);
        let asked = b.effects.clone();
        let waiting = b.core.waiting(&v(), UnixMillis(b.now));
        let Wait::Leaving { node, wait: Some(wait), .. } = &waiting[0].wait else { panic!("{waiting:?}") };
        assert_eq!(*node, n(leaves));
        assert!(matches!(&wait.condition, Condition::Detached { agent, .. } if agent.node == n(leaves)));
        b.effects = asked;
        b.agent(absent("live"));
        assert!(!let_in(&b, "ccc"), "{end:?}: its host is still on the list");
        b.rds(Ok(()));
        assert!(let_in(&b, "ccc"), "{end:?}: {:?}", b.effects);
        b.rds(Ok(()));
        b.agent(ready());
        assert!(matches!(b.reply(third), Some(Ok(Reply::Published(_)))), "{end:?}");
    }
}

#[test]
fn it_waits_no_longer_than_a_request_may() {
    let mut b = moved(VmStage::Completed);
    let third = b.publish_waits("ccc", Access::RwxBlock);
    b.pass(b.config.request_limit_ms - 1_000);
    assert_eq!(b.reply(third), None);
    b.pass(1_000);
    let Refusal::StillWaiting { wait, .. } = b.refusal(third) else { panic!("{:?}", b.effects) };
    assert_eq!(*wait, nobody_leaves_yet("a"));
    assert_eq!((b.phase("a"), b.phase("bb")), (Some("Ready"), Some("Ready")), "nobody is cut for it");
}

#[test]
fn a_detach_that_begins_late_is_waited_for_as_long() {
    let mut b = moved(VmStage::Completed);
    let third = b.publish_waits("ccc", Access::RwxBlock);
    b.pass(b.config.detach_grace_ms + 1_000);
    b.unpublish("a");
    let asked = b.effects.clone();
    assert_eq!(b.reply(third), None);
    b.pass(1_000);
    assert_eq!(b.reply(third), None);
    b.effects = asked;
    b.agent(absent("live"));
    b.rds(Ok(()));
    assert!(let_in(&b, "ccc"), "{:?}", b.effects);
}

#[test]
fn without_a_migration_that_is_over_it_is_refused_at_once() {
    let unattributed = shared(able());
    let [preparing, running] = [VmStage::Preparing, VmStage::Running].map(|stage| {
        let mut b = shared(able());
        report(&mut b, seen(1, "a", "bb", stage));
        b
    });
    let mut of_nobody = shared(able());
    report(&mut of_nobody, seen(1, "a", "ccc", VmStage::Completed));
    for mut b in [unattributed, preparing, running, of_nobody] {
        let third = b.publish("ccc", Access::RwxBlock);
        assert!(matches!(b.refusal(third), Refusal::MigrationLimit { .. }));
    }
}

#[test]
fn the_side_that_stays_is_waited_for_as_before_while_it_is_detached() {
    let mut b = moved(VmStage::Completed);
    b.unpublish("bb");
    let third = b.publish_waits("ccc", Access::RwxBlock);
    let waiting = b.core.waiting(&v(), UnixMillis(b.now));
    let of_third = waiting.iter().find(|w| w.node == Some(n("ccc"))).expect("it waits");
    assert!(matches!(&of_third.wait, Wait::Holders(holders) if holders.iter().any(|h| h.node == n("bb"))));
    b.pass(b.config.detach_grace_ms);
    assert!(matches!(b.refusal(third), Refusal::StillWaiting { .. }));
}

#[test]
fn the_next_migration_of_the_vm_says_that_the_one_before_is_over() {
    for (begins, leaves) in [("bb", "a"), ("a", "bb")] {
        let mut b = shared(able());
        report(&mut b, seen(1, "a", "bb", VmStage::Running));
        report(&mut b, seen(2, begins, "ccc", VmStage::Preparing));
        b.publish_waits("ccc", Access::RwxBlock);
        assert_eq!(waits_for(&b), nobody_leaves_yet(leaves));
        let other = VmRef { uid: "other".into(), ..vm() };
        report(&mut b, VmMigration { vm: other, ..seen(3, begins, "ccc", VmStage::Preparing) });
        assert!(b.core.waiting(&v(), UnixMillis(b.now)).is_empty(), "another VM says nothing of this one");
    }
}

#[test]
fn a_vm_that_goes_back_ends_the_wait() {
    let mut b = moved(VmStage::Completed);
    let third = b.publish_waits("ccc", Access::RwxBlock);
    report(&mut b, seen(2, "bb", "a", VmStage::Preparing));
    assert!(matches!(b.refusal(third), Refusal::MigrationLimit { .. }));
}

#[test]
fn one_that_is_overdue_is_waited_for_once_kubevirt_is_done() {
    let mut b = shared(able());
    report(&mut b, seen(1, "a", "bb", VmStage::Running));
    b.pass(VolumeSpec::DEFAULT_MIGRATION_TIMEOUT_MS);
    let third = b.publish("ccc", Access::RwxBlock);
    assert!(matches!(b.refusal(third), Refusal::MigrationOverdue { .. }));
    report(&mut b, seen(1, "a", "bb", VmStage::Completed));
    b.publish_waits("ccc", Access::RwxBlock);
    assert_eq!((waits_for(&b), b.core.overdue()), (nobody_leaves_yet("a"), 1));
}

#[test]
fn beside_a_third_that_may_write_nobody_waits_for_one_to_leave() {
    let mut b = moved(VmStage::Completed);
    b.says("ccc", observed_of(ObservedPhase::Ready));
    assert_eq!(b.phase("ccc"), Some("Stray"));
    b.up("dddd", "boot", vec![]);
    let fourth = b.publish("dddd", Access::RwxBlock);
    assert!(matches!(b.refusal(fourth), Refusal::MigrationLimit { .. }));
}

#[test]
fn a_restart_does_not_forget_whom_a_third_waits_for() {
    let mut b = moved(VmStage::Failed);
    b.restart();
    for name in ["a", "bb", "ccc"] {
        let held: Vec<Observed> = match name {
            "ccc" => vec![],
            name => {
                let epoch = b.core.volumes[&v()].attachment(&n(name)).map(|a| a.epoch);
                vec![Observed { epoch, ..observed_of(ObservedPhase::Ready) }]
            }
        };
        b.up(name, "boot", held);
    }
    b.publish_waits("ccc", Access::RwxBlock);
    assert_eq!(waits_for(&b), nobody_leaves_yet("bb"));
}

/// Ten volumes of one VM, whose RDS and agents do all that they are asked for.
struct TenVolumes {
    b: Harness,
    answered: Vec<Result<Reply, Refusal>>,
    results: Vec<MigrationResult>,
}

impl TenVolumes {
    fn event(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.b.event(event);
            for effect in std::mem::take(&mut self.b.effects) {
                match effect {
                    Effect::Rds { operation, .. } => {
                        events.push_back(Event::RdsDone { operation, result: Ok(()) });
                    }
                    Effect::Direct { node, session, operation, directive } => {
                        let (volume, epoch) = (directive.volume().clone(), directive.epoch());
                        let outcome = match directive {
                            Directive::Attach { .. } => ready(),
                            _ => absent("live"),
                        };
                        events.push_back(Event::AgentDone {
                            node,
                            session,
                            operation,
                            volume,
                            epoch,
                            outcome,
                        });
                    }
                    Effect::Reply { result, .. } => self.answered.push(result),
                    Effect::Notice(Notice::Migration { migration, step: MigrationStep::Done, .. }) => {
                        self.results.push(migration.result);
                    }
                    _ => {}
                }
            }
        }
    }

    fn of_all(&mut self, event: impl Fn(RequestId, VolumeId) -> Event) -> Vec<Result<Reply, Refusal>> {
        for number in 0..10 {
            self.b.requests += 1;
            let volume = VolumeId::new(format!("vol-{number}")).expect("a volume id");
            self.event(event(RequestId(self.b.requests), volume));
        }
        std::mem::take(&mut self.answered)
    }

    fn publish(&mut self, name: &str) -> Vec<Result<Reply, Refusal>> {
        self.of_all(|request, id| {
            let spec = VolumeSpec { id, ..spec(Access::RwxBlock) };
            Event::Publish { request, node: n(name), spec, read_only: false }
        })
    }

    fn unpublish(&mut self, name: &str) -> Vec<Result<Reply, Refusal>> {
        self.of_all(|request, volume| Event::Unpublish { request, volume, node: Some(n(name)) })
    }

    fn report(&mut self, migration: &VmMigration) {
        let vm = || Some(Box::new(migration.clone()));
        self.of_all(|_, volume| Event::MigrationSeen { volume, vm: vm() });
    }
}

#[test]
fn two_drains_of_ten_volumes_refuse_nobody() {
    let mut all = TenVolumes { b: bench(able()), answered: vec![], results: vec![] };
    let granted = |answers: &[Result<Reply, Refusal>]| {
        answers.iter().filter(|answer| matches!(answer, Ok(Reply::Published(_)))).count()
    };
    assert_eq!(granted(&all.publish("a")), 10);
    assert_eq!(granted(&all.publish("bb")), 10);
    for stage in [VmStage::Running, VmStage::Completed] {
        all.report(&seen(1, "a", "bb", stage));
    }
    // The second drain begins before the first node is off.
    all.report(&seen(2, "bb", "ccc", VmStage::Preparing));
    assert_eq!(all.publish("ccc"), []);
    all.b.now += 5_000;
    all.event(Event::Tick);
    let answers = all.unpublish("a");
    assert_eq!((granted(&answers), answers.len()), (10, 20), "{answers:?}");
    for stage in [VmStage::Running, VmStage::Completed] {
        all.report(&seen(2, "bb", "ccc", stage));
    }
    assert_eq!(all.unpublish("bb"), vec![Ok(Reply::Unpublished); 10]);
    assert_eq!(all.results, [MigrationResult::Completed; 20]);
}
