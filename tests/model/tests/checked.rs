//! Runs the model: `cargo test -p cleat-model`; with `CLEAT_MODEL=full` to deeper bounds, too, in about twenty minutes;
//! with `CLEAT_MODEL=dangers` through what real worlds do besides, all of it, whatever is found;
//! with `CLEAT_MODEL=mutant` until the first violation or a minute is over (for `hack/mutations`; `CLEAT_MODEL_SECONDS`
//! and `CLEAT_MODEL_SEED` say how long and from which seed, `CLEAT_MODEL_INVARIANT=N` looks at no other invariant than
//! that, and `CLEAT_MODEL_AS_FOUND=1` spares the time in which a finding is made short). `CLEAT_MODEL_WORLD=NAME` keeps to
//! one world (`NAME*`: to those whose names begin so), `CLEAT_MODEL_NARRATE=1` adds every event and effect of the leaders to a finding.
//! `CLEAT_MODEL_SAMPLE=N` tries other states for whether all ends well than without it. Prints what was reached, and ends with 1 if
//! anything was found.

#![allow(clippy::print_stdout)] // This is what a person runs to see what was checked.

use std::collections::{BTreeMap, VecDeque};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use cleat_model::explore::{Finding, Report, at_random, exhaustively, narrated};
use cleat_model::{canon, setups};
use cleat_world::world::Setup;

fn main() -> ExitCode {
    // A panic of the core is a finding, and told as one.
    std::panic::set_hook(Box::new(|_| {}));
    let mode = std::env::var("CLEAT_MODEL").unwrap_or_default();
    if mode == "dangers" {
        return dangers();
    }
    println!("sample      {} (CLEAT_MODEL_SAMPLE) of the states that are mended", *canon::SAMPLE);
    if mode != "mutant" && !reductions_are_sound(if mode == "full" { 5_000 } else { 500 }) {
        return ExitCode::FAILURE;
    }
    let found = match mode.as_str() {
        "mutant" => until_found(number("CLEAT_MODEL_SECONDS", 60), number("CLEAT_MODEL_SEED", 0)),
        mode => everything(mode == "full"),
    };
    match found {
        Some(finding) => {
            let as_found = std::env::var_os("CLEAT_MODEL_AS_FOUND").is_some();
            tell_finding(&if as_found { finding } else { finding.shortened() });
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

/// What real worlds do besides, each in its own: goes on after a finding, so that one run tells all.
fn dangers() -> ExitCode {
    let mut clean = true;
    for mut exhaustive in setups::dangers(true).into_iter().filter(|e| chosen(e.setup.name)) {
        exhaustive.limits.time = Duration::from_secs(60);
        let name = exhaustive.setup.name;
        let report = exhaustively(exhaustive.setup, exhaustive.limits);
        let (states, complete) = (report.states, if report.complete { "complete" } else { "NOT complete" });
        println!("dangers     {name}: {states} states, {complete}, {:.1} s", report.took.as_secs_f64());
        if let Some(finding) = report.finding {
            clean = false;
            tell_finding(&finding.shortened());
        }
    }
    for setup in setups::dangerous_walks().into_iter().filter(|setup| chosen(setup.name)) {
        let report = at_random(|_| setup.clone(), 0..400, 250, Duration::from_secs(10));
        tell_walks(setup.name, &report);
        if let Some(finding) = report.finding {
            clean = false;
            tell_finding(&finding.shortened());
        }
    }
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What counts as one state really is one.
fn reductions_are_sound(states: usize) -> bool {
    let all = setups::exhaustive(false).into_iter().chain(setups::dangers(false));
    for exhaustive in all.filter(|e| chosen(e.setup.name)) {
        let name = exhaustive.setup.name;
        match canon::merges_are_sound(exhaustive.setup, states) {
            Ok(compared) => {
                println!("reductions  {name}: {compared} pairs of states that count as one compared")
            }
            Err(difference) => {
                println!(
                    "UNSOUND reduction in {name}: two states that count as one differ after {difference}"
                );
                return false;
            }
        }
    }
    true
}

fn everything(full: bool) -> Option<Finding> {
    // The larger bounds are not gone through to the end everywhere; the smaller ones are, unless the machine is busy.
    let larger = || setups::exhaustive(true).into_iter().chain(setups::dangers(true));
    let larger: Vec<_> = if full { larger().collect() } else { Vec::new() };
    let all = setups::exhaustive(false).into_iter().chain(setups::dangers(false)).chain(larger);
    let all = all.filter(|e| chosen(e.setup.name)).collect();
    let found = side_by_side(all, |exhaustive| {
        let name = exhaustive.setup.name;
        let budget = exhaustive.setup.budget;
        let report = exhaustively(exhaustive.setup, exhaustive.limits);
        let complete = if report.complete { "complete" } else { "NOT complete (limit)" };
        println!(
            "exhaustive  {name}: {} requests, {} faults, {} ticks: {} states, {} steps, depth {}, {} healed, {complete}, {:.1} s",
            budget.requests,
            budget.faults,
            budget.ticks,
            report.states,
            report.steps,
            report.depth,
            report.healed,
            report.took.as_secs_f64(),
        );
        report.finding
    });
    if found.is_some() {
        return found;
    }
    let (walks, seconds) = if full { (200_000, 8) } else { (400, 2) };
    let all = setups::walks().into_iter().filter(|setup| chosen(setup.name)).collect();
    let found = side_by_side(all, |setup: Setup| {
        let report = at_random(|_| setup.clone(), 0..walks, 250, Duration::from_secs(seconds));
        tell_walks(setup.name, &report);
        report.finding
    });
    if found.is_some() {
        return found;
    }
    if !chosen(setups::MIXTURE) {
        return None;
    }
    let report =
        at_random(setups::mixture, 0..if full { 20_000 } else { 2_000 }, 250, Duration::from_secs(600));
    tell_walks(setups::MIXTURE, &report);
    if report.finding.is_none() {
        // The walks do reach what they are meant to try.
        let hardly = REACHED.iter().filter(|kind| report.seen.get(*kind).is_none_or(|times| *times < 5));
        let hardly: Vec<_> = hardly.collect();
        assert!(hardly.is_empty(), "{hardly:?} were hardly ever seen: {:?}", report.seen);
        let readmitted = report.seen_before_healing.get("readmitted").copied().unwrap_or_default();
        assert!(readmitted >= 5, "hardly a node was fenced and came back within a walk: {readmitted}");
    }
    report.finding
}

/// Looks into all of them, on every core; after a finding nothing new is begun. The first of what was found, in their
/// order.
fn side_by_side<T: Send>(all: Vec<T>, look: impl Fn(T) -> Option<Finding> + Sync) -> Option<Finding> {
    let queue = Mutex::new(all.into_iter().enumerate().collect::<VecDeque<_>>());
    let found = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while found.lock().is_ok_and(|found| found.is_empty()) {
                    let Some((place, one)) = queue.lock().ok().and_then(|mut queue| queue.pop_front()) else {
                        return;
                    };
                    if let (Some(finding), Ok(mut found)) = (look(one), found.lock()) {
                        found.insert(place, finding);
                    }
                }
            });
        }
    });
    found.into_inner().ok()?.into_values().next()
}

/// Answers, proofs and rungs that have to be seen in walks through any mixture.
const REACHED: [&str; 34] = [
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
    "drained: abort",
    "AgentAbsent",
    "TargetCut",
    "ExportOff",
    "Reservation",
    "NodeGone",
    "readmitted",
    "unattributed",
    "completed",
    "timed_out",
    "rung: acl",
    "rung: secret",
    "rung: export-off",
    "interrupted",
    "satisfied",
];

fn tell_walks(name: &str, report: &Report) {
    println!(
        "random      {name}: {} walks (seeds from 0), {} steps, longest {}, {:.1} s; seen: {:?}",
        report.states,
        report.steps,
        report.depth,
        report.took.as_secs_f64(),
        report.seen,
    );
}

/// Only worlds of this name, or whose names begin so, where somebody wants only those.
fn chosen(name: &str) -> bool {
    std::env::var("CLEAT_MODEL_WORLD").map_or(true, |wanted| match wanted.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => wanted == name,
    })
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// What finds most comes first: a few walks in each world, then all that is soon gone through, then walks and walks.
fn until_found(seconds: u64, first_seed: u64) -> Option<Finding> {
    let mut seed = first_seed;
    let began = std::time::Instant::now();
    let time = Duration::from_secs(seconds);
    let left = || time.saturating_sub(began.elapsed()).max(Duration::from_secs(1));
    let only = std::env::var("CLEAT_MODEL_INVARIANT").ok().and_then(|n| n.parse().ok());
    // On a machine that is busy with something else so much time may be very little.
    while began.elapsed() < time || seed - first_seed < 5 * seconds {
        let first = seed == first_seed;
        let walks = if first { 10 } else { 50 };
        for mut setup in setups::walks().into_iter().filter(|setup| chosen(setup.name)) {
            setup.only = only;
            let report = at_random(|_| setup.clone(), seed..seed + walks, 250, left());
            if report.finding.is_some() {
                return report.finding;
            }
        }
        if chosen(setups::MIXTURE) {
            let mixture = |seed| Setup { only, ..setups::mixture(seed) };
            let report = at_random(mixture, seed..seed + 4 * walks, 250, left());
            if report.finding.is_some() {
                return report.finding;
            }
        }
        seed += walks;
        let all = setups::exhaustive(false).into_iter().chain(setups::dangers(false));
        for mut exhaustive in all.filter(|e| first && chosen(e.setup.name)) {
            // By states, so that how busy the machine is does not decide what is found.
            (exhaustive.limits.states, exhaustive.limits.time) = (60_000, time);
            exhaustive.setup.only = only;
            let report = exhaustively(exhaustive.setup, exhaustive.limits);
            if report.finding.is_some() {
                return report.finding;
            }
        }
    }
    println!("nothing found in {} walks of each world", seed - first_seed);
    None
}

fn tell_finding(finding: &Finding) {
    let (world, violation) = (finding.setup.name, &finding.violation);
    println!(
        "VIOLATION of {}: {violation:?}, in {world}, after {} actions:",
        violation.invariant(),
        finding.trace.len()
    );
    for (at, action) in finding.trace.iter().enumerate() {
        println!("  {:3}  {action:?}", at + 1);
    }
    if finding.healed {
        println!("       then everything works again, and all is unpublished");
    }
    if std::env::var_os("CLEAT_MODEL_NARRATE").is_some() {
        narrated(finding).iter().for_each(|line| println!("{line}"));
    }
}
