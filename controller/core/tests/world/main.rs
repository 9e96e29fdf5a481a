//! Random histories of the real core against a model of the world. At the end everything heals, every request must
//! have been answered, and everything can be detached.

mod model;

use std::collections::BTreeMap;

use cleat_core::{MinFence, Reservations, Target};
use model::{Action, RdsAnswer, Setup, Violation, World};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

const NODES: u8 = 3;
const VOLUMES: u8 = 2;

fn action() -> impl Strategy<Value = Action> {
    let v = || 0..VOLUMES;
    let n = || 0..NODES;
    prop_oneof![
        12 => (v(), n()).prop_map(|(v, n)| Action::Publish(v, n)),
        5 => (v(), n()).prop_map(|(v, n)| Action::Unpublish(v, n)),
        1 => v().prop_map(Action::UnpublishAll),
        1 => (v(), n()).prop_map(|(v, n)| Action::Fence(v, n)),
        2 => n().prop_map(Action::DeclareGone),
        2 => (n(), prop::bool::weighted(0.75)).prop_map(|(n, on)| Action::Power(n, on)),
        8 => prop_oneof![
            8 => Just(RdsAnswer::Done),
            1 => Just(RdsAnswer::Refused),
            1 => Just(RdsAnswer::DoneUnheard),
            1 => Just(RdsAnswer::Lost),
        ].prop_map(Action::Rds),
        8 => n().prop_map(Action::ToAgent),
        8 => n().prop_map(Action::ToController),
        4 => n().prop_map(Action::Connect),
        2 => n().prop_map(Action::Drop),
        1 => n().prop_map(Action::Echo),
        1 => n().prop_map(Action::Late),
        2 => n().prop_map(Action::EchoAnswer),
        1 => n().prop_map(Action::AgentRestart),
        3 => (n(), prop::bool::weighted(0.35)).prop_map(|(n, mute)| Action::Mute(n, mute)),
        1 => n().prop_map(Action::Partition),
        1 => n().prop_map(Action::Reboot),
        1 => (v(), n()).prop_map(|(v, n)| Action::PathsDie(v, n)),
        2 => (v(), n()).prop_map(|(v, n)| Action::PathsReturn(v, n)),
        1 => (v(), n()).prop_map(|(v, n)| Action::KernelGivesUp(v, n)),
        2 => (n(), prop::bool::weighted(0.35)).prop_map(|(n, cut)| Action::Cut(n, cut)),
        6 => (v(), n()).prop_map(|(v, n)| Action::Open(v, n)),
        2 => (v(), n()).prop_map(|(v, n)| Action::Close(v, n)),
        1 => (v(), n(), any::<bool>()).prop_map(|(v, n, wedged)| Action::Wedge(v, n, wedged)),
        1 => Just(Action::TargetRestart),
        1 => (0..4u8).prop_map(Action::Crash),
        4 => (1..4_000u32).prop_map(Action::Pass),
        16 => (1..8u8).prop_map(Action::Flow),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let reservations = prop_oneof![
        2 => Just(Reservations::None),
        1 => Just(Reservations::Held),
        1 => Just(Reservations::AbortWaits),
    ];
    let min_fence = prop_oneof![
        4 => Just(MinFence::NodeGone),
        1 => Just(MinFence::ExportOff),
        1 => Just(MinFence::Acl),
        1 => Just(MinFence::Secret),
        1 => Just(MinFence::Reservation),
    ];
    let often = || prop::bool::weighted(0.75);
    let any_target = (often(), often(), often(), any::<bool>(), reservations).prop_map(
        |(acl, export_cuts, export_drains, secret, reservations)| Target {
            acl,
            export_cuts,
            export_drains,
            secret,
            reservations,
        },
    );
    // Each rung where it is the first one that there is, as often as all the mixtures.
    let cuts = Target { export_cuts: true, export_drains: true, ..Target::default() };
    let acl = Target { acl: true, ..cuts.clone() };
    let target = prop_oneof![
        5 => any_target,
        1 => Just(Target { secret: true, ..cuts.clone() }),
        1 => Just(Target { reservations: Reservations::Held, ..acl.clone() }),
        2 => Just(Target { reservations: Reservations::AbortWaits, export_drains: false, ..acl.clone() }),
        1 => Just(acl),
        1 => Just(cuts),
    ];
    (target, min_fence).prop_map(|(target, min_fence)| Setup {
        nodes: NODES,
        volumes: VOLUMES,
        target,
        min_fence,
    })
}

/// How histories begin. Random ones seldom come by themselves to where a fence begins.
fn beginning() -> impl Strategy<Value = Vec<Action>> {
    let silence = prop_oneof![Just(Action::Mute(0, true)), Just(Action::Partition(0))];
    let detached = |volume, before: Vec<Action>| {
        move |silence| {
            let after = [silence, Action::Unpublish(volume, 0), Action::Pass(2_000)];
            before.iter().cloned().chain(after).collect::<Vec<_>>()
        }
    };
    let alone = |volume| vec![Action::Publish(volume, 0), Action::Flow(4)];
    let migration = [alone(1), vec![Action::Publish(1, 1), Action::Flow(4)]].concat();
    prop_oneof![
        3 => Just(Vec::new()),
        1 => silence.clone().prop_map(detached(0, alone(0))),
        2 => silence.prop_map(detached(1, migration)),
    ]
}

fn history() -> impl Strategy<Value = (Setup, Vec<Action>)> {
    let actions = (beginning(), prop::collection::vec(action(), 1..160));
    (setup(), actions.prop_map(|(first, then)| [first, then].concat()))
}

/// How many histories: enough to find each of the mistakes that were tried by hand; more with `CLEAT_HISTORIES`.
fn histories() -> u32 {
    std::env::var("CLEAT_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000)
}

fn live_through(setup: Setup, actions: Vec<Action>) -> Result<World, Violation> {
    let mut world = World::new(setup);
    for n in 0..NODES {
        world.act(Action::Connect(n))?;
        world.act(Action::ToController(n))?;
    }
    for action in actions {
        world.act(action)?;
    }
    world.heal()?;
    // And whatever is attached can be detached.
    for v in 0..VOLUMES {
        world.act(Action::UnpublishAll(v))?;
    }
    world.heal()?;
    world.at_rest()?;
    Ok(world)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: histories(),
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn nobody_writes_who_may_not_and_every_request_ends((setup, actions) in history()) {
        if let Err(Violation(words)) = live_through(setup, actions) {
            prop_assert!(false, "{}", words);
        }
    }
}

/// The histories do reach what they are meant to try.
#[test]
fn histories_reach_every_kind_of_answer() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen: BTreeMap<&'static str, u32> = BTreeMap::new();
    for _ in 0..600 {
        let (setup, actions) = history().new_tree(&mut runner).expect("a history").current();
        let world = live_through(setup, actions).expect("nothing that must not be seen");
        for (kind, count) in world.seen.0 {
            *seen.entry(kind).or_default() += count;
        }
    }
    for kind in [
        "published",
        "unpublished",
        "fenced",
        "declared",
        "attached elsewhere",
        "migration limit",
        "silent",
        "quarantined",
        "cannot fence",
        "not attached",
        "not ready",
        "in use",
        "rds",
        "still waiting",
        "overtaken",
        "never handed out",
        "live deletion",
        "bound",
        "barrier",
        "AgentAbsent",
        "TargetCut",
        "ExportOff",
        "Reservation",
        "NodeGone",
        "readmitted",
        "acl",
        "secret",
        "export-off",
    ] {
        assert!(seen.get(kind).is_some_and(|n| *n >= 5), "{kind} was hardly ever seen: {seen:?}");
    }
    assert!(seen.contains_key("abort"), "no abort that waits was ever seen to prove: {seen:?}");
}
