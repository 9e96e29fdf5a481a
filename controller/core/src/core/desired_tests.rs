use super::super::testing::*;
use super::*;
use crate::*;

fn desired(name: &str, access: Access, since: u64) -> Desired {
    Desired {
        volume: v(),
        node: n(name),
        access,
        min_fence: MinFence::default(),
        migration_timeout_ms: VolumeSpec::DEFAULT_MIGRATION_TIMEOUT_MS,
        require_migration: false,
        since: UnixMillis(since),
        attached: true,
        epoch: None,
    }
}

/// A start with these records, of volumes and of nodes, and who is to have the volume.
fn begin(b: &mut Harness, volumes: bool, nodes: bool, desired: Vec<Desired>, lists_first: bool) {
    let volumes = if volumes { b.stored.values().cloned().collect() } else { Vec::new() };
    let nodes = if nodes { b.core.registry.values().cloned().collect() } else { Vec::new() };
    let remembered = Remembered { volumes, nodes, desired, lists_first };
    let term = b.core.term() + 1;
    (b.core, b.effects) = Core::rebuild(b.config.clone(), term, remembered, UnixMillis(b.now));
}

/// The same, once the lists were read and what may have been on its way has landed.
fn start(b: &mut Harness, volumes: bool, nodes: bool, desired: Vec<Desired>) {
    begin(b, volumes, nodes, desired, true);
    list(b);
    // What was on its way when nobody looked has landed.
    b.pass(b.config.drain_bound_ms);
}

/// A target that keeps no list of hosts: nothing but what is desired says who may write.
fn list(b: &mut Harness) {
    let none = ListedVolume {
        volume: v(),
        hosts: Vec::new(),
        exported: true,
        keeps_list: false,
        problem: None,
        at_rest: false,
    };
    b.event(Event::RdsListed { volumes: vec![none], whole: true });
}

/// Attached on `a` under this access, whose agent is silent from then on.
fn attached(access: Access) -> Harness {
    let mut b = Harness::new();
    b.up("a", "1", vec![]);
    b.attach("a", access);
    b.silent("a");
    b
}

fn waits_for_reports_of(b: &Harness, name: &str) -> bool {
    let waiting = b.core.waiting(&v(), UnixMillis(b.now));
    waiting.first().is_some_and(|w| matches!(&w.wait, Wait::Reports { nodes, .. } if *nodes == [n(name)]))
}

#[test]
fn who_is_to_have_a_volume_without_a_record_keeps_others_out() {
    let mut b = attached(Access::Rwo);
    start(&mut b, false, true, vec![desired("a", Access::Rwo, 1)]);
    assert_eq!((b.phase("a"), b.core.volumes[&v()].holders()), (Some("Stray"), vec![n("a")]));
    b.up("bb", "1", vec![]);
    b.up("a", "1", vec![]);
    // It holds nothing any more: that is proven, and drained after the bound.
    b.rds_does_all();
    let publish = b.publish_waits("bb", Access::Rwo);
    assert_eq!(b.reply(publish), None);
}

#[test]
fn one_that_nobody_knows_is_waited_for_and_counts_once_it_is_heard() {
    let mut b = attached(Access::Rwo);
    start(&mut b, false, false, vec![desired("a", Access::Rwo, 1)]);
    b.up("bb", "1", vec![]);
    b.publish_waits("bb", Access::Rwo);
    assert!(waits_for_reports_of(&b, "a"), "{:?}", b.core.waiting(&v(), UnixMillis(b.now)));
    b.hello("a", identity("a", "1"));
    assert_eq!(b.phase("a"), Some("Stray"), "before its inventory");
}

#[test]
fn a_detach_of_one_that_nobody_knows_goes_on_once_it_is_heard() {
    let mut b = attached(Access::Rwo);
    start(&mut b, false, false, vec![desired("a", Access::Rwo, 1)]);
    let unpublish = b.unpublish_waits("a");
    assert!(waits_for_reports_of(&b, "a"));
    b.up("a", "1", vec![observed_of(ObservedPhase::Ready)]);
    assert_eq!(b.phase("a"), Some("Draining"));
    assert_eq!(b.reply(unpublish), None);
}

#[test]
fn a_grant_that_is_over_by_its_record_is_not_taken_up_again() {
    let mut b = Harness::new();
    b.up("a", "1", vec![]);
    b.attach("a", Access::Rwo);
    let epoch = b.core.volumes[&v()].attachments[0].epoch;
    b.detach("a", "live");
    b.rds_does_all();
    assert_eq!(b.core.volumes[&v()].holders(), []);
    let answered = Desired { epoch: Some(epoch), ..desired("a", Access::Rwo, 1) };
    start(&mut b, true, true, vec![answered.clone()]);
    assert_eq!(b.core.volumes[&v()].holders(), []);
    // A later grant than the one that is over is not told by the record.
    let later = Epoch { seq: epoch.seq + 1, ..epoch };
    start(&mut b, true, true, vec![Desired { epoch: Some(later), ..answered }]);
    assert_eq!(b.core.volumes[&v()].holders(), [n("a")]);
}

#[test]
fn one_that_was_never_answered_is_taken_up_only_without_a_record() {
    let mut b = attached(Access::Rwo);
    b.up("bb", "1", vec![]);
    let asked = Desired { attached: false, ..desired("bb", Access::Rwo, 2) };
    start(&mut b, true, true, vec![desired("a", Access::Rwo, 1), asked.clone()]);
    assert_eq!(b.core.volumes[&v()].holders(), [n("a")]);
    start(&mut b, false, true, vec![desired("a", Access::Rwo, 1), asked]);
    assert_eq!(b.core.volumes[&v()].holders(), [n("a"), n("bb")]);
}

#[test]
fn two_that_are_to_have_a_shared_volume_are_a_migration_since_the_second() {
    let mut b = attached(Access::RwxBlock);
    b.up("bb", "1", vec![]);
    let both = vec![desired("bb", Access::RwxBlock, 70), desired("a", Access::RwxBlock, 5)];
    start(&mut b, false, true, both);
    let record = &b.core.volumes[&v()];
    assert_eq!((record.spec.access, record.holders()), (Access::RwxBlock, vec![n("a"), n("bb")]));
    let migration = record.migration.as_ref().expect("two nodes that share it");
    assert_eq!((&migration.source, &migration.target), (&n("a"), &n("bb")));
    assert_eq!(migration.steps, [StepTaken { step: MigrationStep::Granted, at: UnixMillis(70), by: None }]);
    b.up("ccc", "1", vec![]);
    let third = b.publish("ccc", Access::RwxBlock);
    assert!(matches!(b.refusal(third), Refusal::MigrationLimit { .. }));
}

#[test]
fn the_older_is_the_source_whichever_is_heard_first() {
    for [first, second] in [["a", "bb"], ["bb", "a"]] {
        let mut b = attached(Access::RwxBlock);
        let both = vec![desired("bb", Access::RwxBlock, 70), desired("a", Access::RwxBlock, 5)];
        start(&mut b, false, false, both);
        b.up(first, "1", vec![observed_of(ObservedPhase::Ready)]);
        assert_eq!(b.core.volumes[&v()].migration, None, "one alone is none");
        b.up(second, "1", vec![observed_of(ObservedPhase::Ready)]);
        let record = &b.core.volumes[&v()];
        let migration = record.migration.as_ref().expect("two nodes that share it");
        assert_eq!((&migration.source, &migration.target), (&n("a"), &n("bb")), "{first} was heard first");
        assert_eq!(
            migration.steps,
            [StepTaken { step: MigrationStep::Granted, at: UnixMillis(70), by: None }]
        );
        assert_eq!(migration.granted_at, UnixMillis(70), "since the second was to have it");
        assert_eq!(record.holders(), [n("a"), n("bb")], "oldest first");
        let roles: Vec<_> = record.attachments.iter().map(|a| a.role).collect();
        assert_eq!(roles, [Role::Primary, Role::MigrationTarget]);
        assert_eq!(b.core.unheard, Unheard::default(), "and nothing is kept of it beside the record");
    }
}

#[test]
fn an_older_one_without_a_record_is_the_source_beside_a_recorded_one() {
    let mut b = Harness::new();
    b.up("bb", "1", vec![]);
    b.attach("bb", Access::RwxBlock);
    let both = vec![desired("bb", Access::RwxBlock, 70), desired("a", Access::RwxBlock, 5)];
    start(&mut b, true, false, both);
    b.up("a", "1", vec![observed_of(ObservedPhase::Ready)]);
    let migration = b.core.volumes[&v()].migration.as_ref().expect("two nodes that share it");
    assert_eq!((&migration.source, &migration.target), (&n("a"), &n("bb")));
}

#[test]
fn one_that_is_to_have_it_beside_a_detach_is_no_migration() {
    let mut b = attached(Access::RwxBlock);
    b.unpublish("a");
    let both = vec![desired("bb", Access::RwxBlock, 70), desired("a", Access::RwxBlock, 5)];
    start(&mut b, true, false, both);
    b.up("bb", "1", vec![observed_of(ObservedPhase::Ready)]);
    let record = &b.core.volumes[&v()];
    assert_eq!((record.holders().len(), &record.migration), (2, &None));
}

#[test]
fn more_than_two_are_all_kept_and_nobody_is_admitted() {
    let mut b = attached(Access::RwxBlock);
    for name in ["bb", "ccc", "dddd"] {
        b.up(name, "1", vec![]);
    }
    let all = ["a", "bb", "ccc"].map(|name| desired(name, Access::RwxBlock, name.len() as u64));
    begin(&mut b, false, true, all[1..].to_vec(), true);
    let too_many = Notice::TooManyDesired { volume: v(), nodes: ["a", "bb", "ccc"].map(n).to_vec() };
    let is_said = |b: &Harness| b.effects.contains(&Effect::Notice(too_many.clone()));
    assert!(!is_said(&b), "two may have it");
    begin(&mut b, false, true, all.to_vec(), true);
    assert!(is_said(&b), "{:?}", b.effects);
    start(&mut b, false, true, all.to_vec());
    assert_eq!(b.core.volumes[&v()].holders().len(), 3);
    b.up("dddd", "1", vec![]);
    let fourth = b.publish("dddd", Access::RwxBlock);
    assert!(matches!(b.refusal(fourth), Refusal::MigrationLimit { .. }));
}

#[test]
fn one_that_a_person_has_declared_gone_is_waited_for_no_more() {
    let mut b = attached(Access::Rwo);
    start(&mut b, false, false, vec![desired("a", Access::Rwo, 1)]);
    b.up("bb", "1", vec![]);
    b.publish_waits("bb", Access::Rwo);
    b.declare_gone(77, "a");
    let waiting = b.core.waiting(&v(), UnixMillis(b.now));
    assert!(
        matches!(waiting[0].wait, Wait::ListDrainBound { .. }),
        "what it wrote may still land: {waiting:?}"
    );
}

#[test]
fn a_statement_ends_no_wait_where_the_volume_demands_a_fence() {
    let mut b = attached(Access::Rwo);
    let demanding = Desired { min_fence: MinFence::Acl, ..desired("a", Access::Rwo, 1) };
    start(&mut b, false, false, vec![demanding]);
    b.up("bb", "1", vec![]);
    b.publish_waits("bb", Access::Rwo);
    b.declare_gone(77, "a");
    assert!(waits_for_reports_of(&b, "a"), "{:?}", b.core.waiting(&v(), UnixMillis(b.now)));
}

#[test]
fn a_declaration_about_an_answer_without_an_epoch_outlives_a_restart() {
    let mut b = attached(Access::Rwo);
    b.stored.clear();
    let answered = desired("a", Access::Rwo, 1);
    start(&mut b, false, false, vec![answered.clone()]);
    b.declare_gone(77, "a");
    let later = Desired { since: UnixMillis(b.now + 1), ..answered.clone() };
    for (desired, waits) in [(answered, false), (later, true)] {
        start(&mut b, true, false, vec![desired]);
        b.up("bb", "1", vec![]);
        b.publish_waits("bb", Access::Rwo);
        assert_eq!(waits_for_reports_of(&b, "a"), waits, "{:?}", b.core.waiting(&v(), UnixMillis(b.now)));
    }
}

#[test]
fn a_proof_of_this_process_outlasts_the_next_list_of_a_target_without_any() {
    let mut b = attached(Access::Rwo);
    start(&mut b, false, true, vec![desired("a", Access::Rwo, 1)]);
    let unpublish = b.unpublish_waits("a");
    b.pass(b.config.fence_after_ms);
    assert!(matches!(b.refusal(unpublish), Refusal::CannotFence { .. }), "and a fence was begun");
    b.up("a", "1", vec![observed_of(ObservedPhase::Ready)]);
    b.agent(absent("live"));
    let proven = |b: &Harness| b.core.volumes[&v()].attachments[0].evidence().is_some();
    assert!(proven(&b));
    // Each call for another node looks the volume up.
    list(&mut b);
    assert!(proven(&b), "else it waits for its drain bound again and again");
}

#[test]
fn a_cut_before_the_answered_grant_does_not_say_that_it_is_over() {
    let mut b = Harness::new();
    b.up("a", "1", vec![]);
    b.attach("a", Access::Rwo);
    let first = b.core.volumes[&v()].attachments[0].epoch;
    b.silent("a");
    b.declare_gone(77, "a");
    b.unpublish("a");
    b.pass(b.config.drain_bound_ms);
    b.rds_does_all();
    assert_eq!(b.core.volumes[&v()].fenced.len(), 1, "{:?}", b.core.volumes);
    // It may have been let in again after the copy of the record that a start has.
    let later = Epoch { seq: first.seq + 1, ..first };
    for (epoch, may_write) in [(Some(first), false), (Some(later), true), (None, false)] {
        start(&mut b, true, true, vec![Desired { epoch, ..desired("a", Access::Rwo, 1) }]);
        assert_eq!(b.core.unheard_of(&v()) > 0, may_write, "{epoch:?}");
    }
    // What it has by the later grant is not revoked for the earlier one.
    start(&mut b, true, true, vec![Desired { epoch: Some(later), ..desired("a", Access::Rwo, 1) }]);
    b.up("a", "1", vec![observed_of(ObservedPhase::Ready)]);
    let record = &b.core.volumes[&v()];
    assert_eq!((b.phase("a"), record.fenced.len()), (Some("Stray"), 0), "{record:?}");
}

#[test]
fn a_cut_by_the_target_alone_says_nothing_of_an_answer_without_an_epoch() {
    let mut b = alone(able());
    b.silent("a");
    b.unpublish("a");
    b.pass(b.config.fence_after_ms);
    b.rds_does_all();
    assert_eq!(b.core.volumes[&v()].fenced.len(), 1, "{:?}", b.core.volumes);
    start(&mut b, true, true, vec![desired("a", Access::Rwo, 1)]);
    let waits = b.core.unheard_of(&v()) > 0 || b.phase("a").is_some();
    assert!(waits, "{:?}", b.core.volumes);
}

#[test]
fn what_a_declared_node_wrote_lands_by_the_clock_of_who_leads() {
    let mut b = attached(Access::Rwo);
    b.stored.clear();
    let answered = Desired { epoch: Some(Epoch { term: 1, seq: 1 }), ..desired("a", Access::Rwo, 1) };
    start(&mut b, false, false, vec![answered.clone()]);
    b.declare_gone(77, "a");
    // The clock of the next one is an hour ahead.
    b.now += 3_600_000;
    begin(&mut b, true, false, vec![answered], false);
    let until = UnixMillis(b.now + b.config.drain_bound_ms);
    b.up("bb", "1", vec![]);
    b.publish_waits("bb", Access::Rwo);
    let waiting = b.core.waiting(&v(), UnixMillis(b.now));
    let bound = Wait::ListDrainBound { volume: v(), until, doubt: ListDoubt::Desired };
    assert_eq!(waiting.iter().map(|w| &w.wait).collect::<Vec<_>>(), [&bound]);
}

#[test]
fn a_declaration_about_one_that_nobody_knows_outlives_a_restart() {
    let mut b = attached(Access::Rwo);
    b.stored.clear();
    let epoch = Some(Epoch { term: 1, seq: 1 });
    let answered = Desired { epoch, ..desired("a", Access::RwxBlock, 1) };
    start(&mut b, false, false, vec![answered.clone()]);
    b.declare_gone(77, "a");
    assert_eq!(b.reply(RequestId(77)), Some(Ok(Reply::Declared)));
    let until = UnixMillis(b.now + b.config.drain_bound_ms);
    let evidence = &b.stored[&v()].past_evidence[0];
    assert_eq!((&evidence.node, evidence.source.name()), (&n("a"), "NodeGone"), "it is recorded");
    assert_eq!(b.stored[&v()].spec.access, Access::RwxBlock);
    // What it wrote before may land as long as without a restart.
    begin(&mut b, true, false, vec![answered], false);
    b.up("bb", "1", vec![]);
    b.publish_waits("bb", Access::RwxBlock);
    let waiting = b.core.waiting(&v(), UnixMillis(b.now));
    let bound = Wait::ListDrainBound { volume: v(), until, doubt: ListDoubt::Desired };
    assert_eq!(waiting.iter().map(|w| &w.wait).collect::<Vec<_>>(), [&bound]);
    b.pass(b.config.drain_bound_ms);
    b.rds(Ok(()));
    b.agent(ready());
    assert_eq!(b.phase("bb"), Some("Ready"), "nobody waits for the node");
}

#[test]
fn what_its_owner_demands_counts_for_whoever_is_found_before_it_is_known() {
    let demanding = Desired {
        min_fence: MinFence::Acl,
        migration_timeout_ms: 30_000,
        require_migration: true,
        ..desired("a", Access::RwxBlock, 1)
    };
    let demanded = |b: &Harness| {
        let spec = &b.core.volumes[&v()].spec;
        (spec.min_fence, spec.migration_timeout_ms, spec.require_migration)
    };
    let all = (MinFence::Acl, 30_000, true);
    let mut b = attached(Access::RwxBlock);
    start(&mut b, false, false, vec![demanding.clone()]);
    b.up("bb", "1", vec![observed_of(ObservedPhase::Ready)]);
    assert_eq!((b.phase("bb"), demanded(&b)), (Some("Stray"), all));
    start(&mut b, false, false, vec![demanding]);
    let hosts = vec![nqn("a")];
    let (exported, keeps_list, problem) = (true, true, None);
    let list = ListedVolume { volume: v(), hosts, exported, keeps_list, problem, at_rest: false };
    b.event(Event::RdsListed { volumes: vec![list], whole: true });
    assert_eq!((b.core.volumes[&v()].attachments.len(), demanded(&b)), (1, all));
    b.up("a", "1", vec![observed_of(ObservedPhase::Ready)]);
    assert_eq!((b.phase("a"), demanded(&b)), (Some("Stray"), all));
}

#[test]
fn what_a_grant_was_made_with_counts_and_not_who_is_to_have_it() {
    let mut b = attached(Access::RwxBlock);
    let demanding = Desired {
        migration_timeout_ms: 30_000,
        require_migration: true,
        ..desired("bb", Access::RwxBlock, 1)
    };
    start(&mut b, true, false, vec![demanding]);
    b.up("bb", "1", vec![observed_of(ObservedPhase::Ready)]);
    let record = &b.core.volumes[&v()];
    assert_eq!(record.holders(), [n("a"), n("bb")]);
    assert_eq!((record.spec.migration_timeout_ms, record.spec.require_migration), (300_000, false));
}

#[test]
fn an_export_that_was_found_off_is_not_seen_to_drain() {
    let mut b = alone(able());
    b.silent("a");
    let nodes = b.core.registry.values().cloned().collect();
    let desired = vec![desired("a", Access::Rwo, 1)];
    let remembered = Remembered { volumes: Vec::new(), nodes, desired, lists_first: true };
    (b.core, b.effects) = Core::rebuild(b.config.clone(), b.core.term() + 1, remembered, UnixMillis(b.now));
    // A controller before has cut it off, and nobody knows whether what it had sent has landed.
    let (hosts, exported, keeps_list, problem) = (Vec::new(), false, true, None);
    let list = ListedVolume { volume: v(), hosts, exported, keeps_list, problem, at_rest: false };
    b.event(Event::RdsListed { volumes: vec![list], whole: true });
    b.up("bb", "boot", vec![]);
    b.up("a", "boot", vec![]);
    b.agent(Outcome::Absent(Absence::default()));
    b.publish_waits("bb", Access::Rwo);
    assert_eq!(b.rds_asked(), None, "to take off what is off waits for nothing");
    b.pass(b.config.drain_bound_ms);
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Close { .. }))), "{:?}", b.effects);
}

#[test]
fn a_pair_that_is_only_to_have_it_has_the_time_that_its_owner_gives() {
    let mut b = attached(Access::RwxBlock);
    let both = ["a", "bb"]
        .map(|node| Desired { migration_timeout_ms: 30_000, ..desired(node, Access::RwxBlock, 1) });
    start(&mut b, false, false, both.to_vec());
    for node in ["a", "bb"] {
        b.up(node, "1", vec![observed_of(ObservedPhase::Ready)]);
    }
    let migration = b.core.volumes[&v()].migration.as_ref().expect("two nodes that share it");
    assert_eq!(migration.timeout_ms, 30_000);
}
