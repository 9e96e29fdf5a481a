//! Random histories of the real core in the world that `tests/model` goes through to the end: long ones, over targets of
//! any mixture, with clocks that do not go by whole units. At the end everything heals, every request must have been
//! answered, everything can be detached, and nothing is left of it.
//!
//! `CLEAT_HISTORIES` says how many.

use std::collections::BTreeMap;
use std::sync::Arc;

use cleat_core::{Access, MinFence};
use cleat_world::kinds::{Action, Answer, Manner};
use cleat_world::names::{N, V};
use cleat_world::target::Abilities;
use cleat_world::world::{Budget, Dangers, Setup, World};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

const NODES: N = 3;
const VOLUMES: V = 2;

/// What a history consists of.
#[derive(Debug, Clone)]
enum Part {
    /// Something happens, if it can.
    Happens(Action),
    /// A node's agent is not heard from now on, or is again.
    Mute(N, bool),
    /// So many rounds in which everything that is on its way arrives: histories get deep only if things succeed.
    Flow(u8),
}

fn part() -> impl Strategy<Value = Part> {
    let v = || 0..VOLUMES;
    let n = || 0..NODES;
    let action = prop_oneof![
        12 => (v(), n()).prop_map(|(v, n)| Action::Publish(v, n)),
        5 => (v(), n()).prop_map(|(v, n)| Action::Unpublish(v, n)),
        1 => v().prop_map(Action::UnpublishAll),
        1 => (v(), n()).prop_map(|(v, n)| Action::Fence(v, n)),
        2 => n().prop_map(Action::DeclareGone),
        2 => n().prop_map(Action::PowerOff),
        4 => n().prop_map(Action::PowerOn),
        8 => (v(), prop_oneof![
            8 => Just(Answer::Done),
            1 => Just(Answer::Refused),
            1 => Just(Answer::DoneUnheard),
            1 => Just(Answer::UndoneUnheard),
            1 => Just(Answer::HalfRefused),
            1 => Just(Answer::HalfUnheard),
        ]).prop_map(|(v, answer)| Action::Rds(0, v, answer)),
        8 => n().prop_map(Action::ToAgent),
        1 => n().prop_map(Action::ToAgentMishap),
        8 => n().prop_map(Action::ToController),
        2 => n().prop_map(Action::LateEvent),
        4 => n().prop_map(|n| Action::Connect(n, 0)),
        2 => n().prop_map(Action::Drop),
        1 => n().prop_map(Action::EchoDirective),
        1 => (n(), 0..2usize).prop_map(|(n, i)| Action::LateDirective(n, i)),
        2 => n().prop_map(Action::EchoAnswer),
        1 => (v(), n(), 0..2usize).prop_map(|(v, n, p)| Action::PathDies(v, n, p)),
        2 => (v(), n(), 0..2usize).prop_map(|(v, n, p)| Action::PathReturns(v, n, p)),
        1 => (v(), n()).prop_map(|(v, n)| Action::KernelGivesUp(v, n)),
        1 => n().prop_map(Action::Cut),
        3 => n().prop_map(Action::Mend),
        6 => (v(), n()).prop_map(|(v, n)| Action::Open(v, n)),
        2 => (v(), n()).prop_map(|(v, n)| Action::Close(v, n)),
        1 => n().prop_map(Action::Wedge),
        2 => n().prop_map(Action::Unwedge),
        1 => Just(Action::TargetRestart),
        2 => (v(), n()).prop_map(|(v, n)| Action::Reassert(v, n)),
        1 => (0..4u8).prop_map(Action::DiesAfter),
        1 => any::<bool>().prop_map(|rds_done| Action::TakeOver { old_lives: false, rds_done }),
        4 => (1..4_000u16).prop_map(Action::Pass),
    ];
    prop_oneof![
        84 => action.prop_map(Part::Happens),
        3 => (n(), prop::bool::weighted(0.35)).prop_map(|(n, mute)| Part::Mute(n, mute)),
        16 => (1..8u8).prop_map(Part::Flow),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let reservations =
        prop_oneof![2 => Just((false, false)), 1 => Just((true, false)), 1 => Just((true, true))];
    let min_fence = prop_oneof![
        4 => Just(MinFence::NodeGone),
        1 => Just(MinFence::ExportOff),
        1 => Just(MinFence::Acl),
        1 => Just(MinFence::Secret),
        1 => Just(MinFence::Reservation),
    ];
    let often = || prop::bool::weighted(0.75);
    let any_target = (often(), often(), often(), any::<bool>(), reservations).prop_map(
        |(acl, cuts, drains, secret, (reservations, abort_waits))| Abilities {
            acl,
            cuts,
            drains,
            secret,
            reservations,
            abort_waits,
        },
    );
    // Each rung where it is the first one that there is, as often as all the mixtures.
    let cuts = Abilities { cuts: true, drains: true, ..Abilities::default() };
    let acl = Abilities { acl: true, ..cuts };
    let target = prop_oneof![
        5 => any_target,
        1 => Just(Abilities { secret: true, ..cuts }),
        1 => Just(Abilities { reservations: true, ..acl }),
        2 => Just(Abilities { reservations: true, abort_waits: true, drains: false, ..acl }),
        1 => Just(acl),
        1 => Just(cuts),
    ];
    (target, min_fence, 1..3usize).prop_map(|(truth, min_fence, portals)| Setup {
        name: "histories",
        access: vec![Access::Rwo, Access::RwxBlock],
        nodes: NODES,
        truth,
        portals,
        min_fence,
        strays: false,
        budget: Budget { requests: u8::MAX, faults: u8::MAX, ticks: u8::MAX },
        persons: true,
        dangers: Dangers::default(),
        atomic_hello: false,
        only: None,
    })
}

/// How histories begin. Random ones seldom come by themselves to where a fence begins.
fn beginning() -> impl Strategy<Value = Vec<Part>> {
    let mute = vec![Part::Mute(0, true)];
    let partition = vec![Part::Mute(0, true), Part::Happens(Action::Cut(0))];
    let silence = prop_oneof![Just(mute), Just(partition)];
    let detached = |v, before: Vec<Part>| {
        move |silence: Vec<Part>| {
            let after = [Part::Happens(Action::Unpublish(v, 0)), Part::Happens(Action::Pass(2_000))];
            before.iter().cloned().chain(silence).chain(after).collect::<Vec<_>>()
        }
    };
    let on = |v, n| vec![Part::Happens(Action::Publish(v, n)), Part::Flow(4)];
    let migration = [on(1, 0), on(1, 1)].concat();
    prop_oneof![
        3 => Just(Vec::new()),
        1 => silence.clone().prop_map(detached(0, on(0, 0))),
        2 => silence.prop_map(detached(1, migration)),
    ]
}

fn history() -> impl Strategy<Value = (Setup, Vec<Part>)> {
    let parts = (beginning(), prop::collection::vec(part(), 1..160));
    (setup(), parts.prop_map(|(first, then)| [first, then].concat()))
}

/// How many histories: enough to find each of the mistakes that were tried by hand; more with `CLEAT_HISTORIES`.
fn histories() -> u32 {
    std::env::var("CLEAT_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000)
}

/// One history, as it goes.
struct Life {
    world: World,
    mute: [bool; NODES],
}

impl Life {
    fn happens(&mut self, action: Action) -> Result<(), String> {
        let muted = matches!(action, Action::Connect(n, _) if self.mute[n]);
        if !muted && self.world.can_happen(action) {
            // A history is as long as it is: its budget does not run out.
            self.world.budget = Budget { requests: u8::MAX, faults: u8::MAX, ticks: u8::MAX };
            self.world = self.world.after(action);
        }
        self.world.broken.as_ref().map_or(Ok(()), |violation| Err(format!("{violation:?}")))
    }

    fn flow(&mut self) -> Result<(), String> {
        let arrives = |a: &Action| Action::manner(a.kind()) == Manner::Message;
        let streams = |a: &Action| matches!(a, Action::Connect(..) | Action::PathReturns(..));
        let hosts = self.world.hosts.clone();
        let opens = |a: &Action| !matches!(a, Action::Connect(n, _) if hosts[*n].stream.is_some());
        let due: Vec<Action> =
            self.world.actions().into_iter().filter(|a| (arrives(a) || streams(a)) && opens(a)).collect();
        due.into_iter().try_for_each(|action| self.happens(action))
    }

    fn goes_through(&mut self, part: Part) -> Result<(), String> {
        match part {
            Part::Happens(action) => self.happens(action),
            Part::Mute(n, mute) => {
                self.mute[n] = mute;
                if mute { self.happens(Action::Drop(n)) } else { Ok(()) }
            }
            Part::Flow(rounds) => (0..rounds).try_for_each(|_| self.flow()),
        }
    }
}

fn live_through(setup: Setup, parts: Vec<Part>) -> Result<World, String> {
    let mut life = Life { world: World::new(&Arc::new(setup)), mute: [false; NODES] };
    parts.into_iter().try_for_each(|part| life.goes_through(part))?;
    let end = life.world.healed();
    match end.broken {
        None => Ok(end),
        Some(violation) => Err(format!("when everything works again: {violation:?}")),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: histories(),
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn nobody_writes_who_may_not_and_every_request_ends((setup, parts) in history()) {
        if let Err(words) = live_through(setup, parts) {
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
        let (setup, parts) = history().new_tree(&mut runner).expect("a history").current();
        let world = live_through(setup, parts).expect("nothing that must not be seen");
        for (kind, count) in world.seen.iter() {
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
        "drained: never handed out",
        "drained: live deletion",
        "drained: bound",
        "drained: barrier",
        "AgentAbsent",
        "TargetCut",
        "ExportOff",
        "Reservation",
        "NodeGone",
        "readmitted",
        "rung: acl",
        "rung: secret",
        "rung: export-off",
    ] {
        assert!(seen.get(kind).is_some_and(|n| *n >= 5), "{kind} was hardly ever seen: {seen:?}");
    }
    assert!(seen.contains_key("drained: abort"), "no abort that waits was ever seen to prove: {seen:?}");
}
