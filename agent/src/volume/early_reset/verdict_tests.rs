use proptest::prelude::*;

use super::*;

const GOOD: OtherPath = OtherPath { live: true, optimized: true, answers: true };

fn address(n: u8) -> IpAddr {
    IpAddr::from([10, 0, n, 1])
}

fn signs(unacknowledged: bool, probe: bool, link: bool) -> Signs {
    Signs { unacknowledged, probe, link }
}

fn path(others: &[&[OtherPath]]) -> PathFacts {
    PathFacts { live: true, busy: false, others: others.iter().map(|one| one.to_vec()).collect() }
}

#[test]
fn two_sources_suffice_whichever_they_are_and_one_never_does() {
    let decide = |signs| of_address(address(1), signs, false, &Budget::default(), Duration::ZERO);
    for (seen, expected) in [
        (signs(false, false, false), Err(Refusal::OneSign)),
        (signs(true, false, false), Err(Refusal::OneSign)),
        (signs(false, true, false), Err(Refusal::OneSign)),
        (signs(false, false, true), Err(Refusal::OneSign)),
        (signs(true, true, false), Ok(())),
        (signs(true, false, true), Ok(())),
        (signs(false, true, true), Ok(())),
        (signs(true, true, true), Ok(())),
    ] {
        assert_eq!(decide(seen), expected, "{seen:?}");
    }
}

#[test]
fn a_second_address_that_looks_dead_is_the_networks_or_the_targets_fault() {
    let all = signs(true, true, true);
    let decided = of_address(address(1), all, true, &Budget::default(), Duration::ZERO);
    assert_eq!(decided, Err(Refusal::SeveralAddresses));
}

#[test]
fn each_namespace_needs_another_path_that_is_live_optimized_and_answers() {
    let with = |live, optimized, answers| OtherPath { live, optimized, answers };
    for (facts, expected) in [
        (path(&[&[GOOD]]), Ok(())),
        (path(&[&[with(false, true, true), GOOD]]), Ok(())),
        (path(&[&[GOOD], &[GOOD]]), Ok(())),
        (path(&[]), Err(Refusal::NoDevice)),
        (path(&[&[]]), Err(Refusal::LastPath)),
        (path(&[&[GOOD], &[]]), Err(Refusal::LastPath)),
        (path(&[&[with(false, true, true)]]), Err(Refusal::LastPath)),
        (path(&[&[with(true, false, true)]]), Err(Refusal::NotOptimized)),
        (path(&[&[with(true, true, false)]]), Err(Refusal::OtherDoesNotAnswer)),
        // One path each is not the same as one path with all of it.
        (path(&[&[with(true, true, false), with(true, false, true)]]), Err(Refusal::OtherDoesNotAnswer)),
        (PathFacts { live: false, ..path(&[&[GOOD]]) }, Err(Refusal::NotLive)),
        (PathFacts { busy: true, ..path(&[&[GOOD]]) }, Err(Refusal::Busy)),
    ] {
        assert_eq!(of_path(&facts), expected, "{facts:?}");
    }
}

#[test]
fn an_address_has_its_turn_again_only_after_a_minute() {
    let mut budget = Budget::default();
    let begun = Duration::from_secs(1000);
    assert_eq!(budget.allows(address(1), begun), Ok(()));
    budget.spend(address(1), begun);
    for (later, expected) in
        [(0, Err(Refusal::AddressTooSoon)), (59, Err(Refusal::AddressTooSoon)), (60, Ok(()))]
    {
        assert_eq!(budget.allows(address(1), begun + Duration::from_secs(later)), expected, "{later} s");
    }
    assert_eq!(budget.allows(address(2), begun), Ok(()));
}

fn some_path() -> impl Strategy<Value = OtherPath> {
    any::<(bool, bool, bool)>().prop_map(|(live, optimized, answers)| OtherPath { live, optimized, answers })
}

proptest! {
    #[test]
    fn nothing_is_given_up_without_another_way_for_each_namespace(
        live: bool, busy: bool,
        others in prop::collection::vec(prop::collection::vec(some_path(), 0..4), 0..4),
    ) {
        let facts = PathFacts { live, busy, others };
        let has_a_way = |others: &Vec<OtherPath>| others.contains(&GOOD);
        let allowed = live && !busy && !facts.others.is_empty() && facts.others.iter().all(has_a_way);
        prop_assert_eq!(of_path(&facts).is_ok(), allowed);
    }

    #[test]
    fn another_good_path_never_makes_a_yes_a_no(
        others in prop::collection::vec(prop::collection::vec(some_path(), 1..4), 1..4), at in 0_usize..4,
    ) {
        let facts = PathFacts { live: true, busy: false, others };
        let mut more = facts.clone();
        let at = at % more.others.len();
        more.others[at].push(GOOD);
        prop_assert!(of_path(&facts).is_err() || of_path(&more).is_ok());
    }

    #[test]
    fn in_any_ten_minutes_no_more_than_the_bound_is_given_up(
        tries in prop::collection::vec((0_u8..6, 0_u64..120_000), 1..120),
    ) {
        let (mut budget, mut now, mut given_up) = (Budget::default(), Duration::ZERO, Vec::new());
        for (which, pause) in tries {
            now += Duration::from_millis(pause);
            let decided = of_address(address(which), signs(true, true, false), false, &budget, now);
            if decided.is_ok() {
                budget.spend(address(which), now);
                given_up.push((which, now));
            }
        }
        for (index, (which, at)) in given_up.iter().enumerate() {
            let since = |from: Duration| from.saturating_sub(*at);
            let later = &given_up[index + 1..];
            prop_assert!(later.iter().filter(|(_, other)| since(*other) < IN_ALL.1).count() < IN_ALL.0);
            prop_assert!(later.iter().all(|(other, then)| other != which || since(*then) >= PER_ADDRESS));
        }
    }
}
