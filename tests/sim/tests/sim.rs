//! Seeds, one process each, and faults that are planted to see them caught.
//!
//! | variable | |
//! | --- | --- |
//! | `CLEAT_SEEDS=N` | so many seeds instead of 200 |
//! | `CLEAT_SEED=X` | this seed alone, with its trace |
//! | `CLEAT_SIM_LOG=FILTER` | with `CLEAT_SEED`: also what the programs log |

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use cleat_sim::run::{Report, run};
use cleat_sim::world::Planted;
use libtest_mimic::{Arguments, Failed, Trial};

/// In a process of its own: which seed, and what is planted.
const CHILD: &str = "CLEAT_SIM_CHILD";
const SEEDS: u64 = 200;
/// Seeds in which a planted fault has to be caught at least once; the first that does ends the search.
const TO_CATCH: u64 = 320;
/// The same for those whose occasion is made: it comes in each seed.
const TO_CATCH_MADE: u64 = 40;
/// Lines of the trace that are shown of a seed that failed.
const SHOWN: usize = 60;

fn main() -> ExitCode {
    if let Ok(child) = std::env::var(CHILD) {
        return one(&child);
    }
    let mut trials = vec![
        Trial::test("every_seed_keeps_the_invariants", seeds),
        Trial::test("the_same_seed_gives_the_same_trace", same_trace),
    ];
    for (name, _) in Planted::ALL {
        trials
            .push(Trial::test(format!("planted_{}_is_caught", name.replace('-', "_")), move || caught(name)));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Runs one seed in this process, and says in one line of JSON what came of it.
#[allow(clippy::print_stdout, clippy::print_stderr)]
fn one(child: &str) -> ExitCode {
    let (seed, planted) = child.split_once(' ').unwrap_or((child, ""));
    let Ok(seed) = seed.parse() else { return ExitCode::FAILURE };
    let planted = Planted::ALL.iter().find(|(name, _)| *name == planted).map(|(_, planted)| *planted);
    if let Ok(filter) = std::env::var("CLEAT_SIM_LOG") {
        let filter = tracing_subscriber::EnvFilter::new(filter);
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
    }
    let (report, trace) = run(seed, planted);
    let skipped = match std::env::var("CLEAT_SEED") {
        Ok(_) => 0,
        Err(_) if report.violation.is_some() => trace.len().saturating_sub(SHOWN),
        Err(_) => trace.len(),
    };
    for line in &trace[skipped..] {
        eprintln!("{line}");
    }
    match serde_json::to_string(&report) {
        Ok(line) => println!("{line}"),
        Err(_) => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}

/// Runs one seed in a process of its own. Gives its report and what it wrote.
fn child(seed: u64, planted: &str) -> Result<(Report, String), Failed> {
    let output =
        Command::new(std::env::current_exe()?).env(CHILD, format!("{seed} {planted}").trim()).output()?;
    let written = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = String::from_utf8_lossy(&output.stdout);
    match serde_json::from_str(line.lines().last().unwrap_or_default()) {
        Ok(report) => Ok((report, written)),
        Err(error) => Err(format!("seed {seed} ended without a report ({error}):\n{written}").into()),
    }
}

/// Runs seeds on all processors, until one of them is judged to be the last.
fn each(seeds: std::ops::RangeInclusive<u64>, judge: impl Fn(u64) -> bool + Sync) {
    let next = AtomicU64::new(*seeds.start());
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > *seeds.end() || judge(seed) {
                        next.store(*seeds.end() + 1, Ordering::Relaxed);
                        return;
                    }
                }
            });
        }
    });
}

fn asked_for(variable: &str) -> Result<Option<u64>, Failed> {
    match std::env::var(variable) {
        Ok(text) => Ok(Some(text.parse().map_err(|_| format!("{variable}={text:?} is not a number"))?)),
        Err(_) => Ok(None),
    }
}

#[allow(clippy::print_stderr)]
fn seeds() -> Result<(), Failed> {
    let seeds = match asked_for("CLEAT_SEED")? {
        Some(seed) => seed..=seed,
        None => 1..=asked_for("CLEAT_SEEDS")?.unwrap_or(SEEDS),
    };
    let failures = Mutex::new(Vec::new());
    let seen = Mutex::new(BTreeMap::<String, u64>::new());
    let targets = Mutex::new(BTreeMap::<String, u64>::new());
    each(seeds.clone(), |seed| {
        let failure = match child(seed, "") {
            Ok((report, written)) => {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                *targets.lock().unwrap_or_else(PoisonError::into_inner).entry(report.target).or_default() +=
                    1;
                for (what, count) in &report.seen {
                    *seen.entry(what.clone()).or_default() += count;
                }
                report.violation.map(|violation| {
                    format!(
                        "{written}seed {seed}: {violation}\nreplay it with: CLEAT_SEED={seed} cargo test -p cleat-sim \
                         --test sim every_seed -- --nocapture"
                    )
                })
            }
            Err(error) => Some(error.message().unwrap_or_default().to_owned()),
        };
        let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.extend(failure);
        failures.len() >= 3
    });
    eprintln!("{} seeds", seeds.end() - seeds.start() + 1);
    for (of, what) in [("targets", targets), ("seen", seen)] {
        let counted = what.into_inner().unwrap_or_else(PoisonError::into_inner);
        let counted: Vec<_> = counted.iter().map(|(what, count)| format!("{what} {count}")).collect();
        eprintln!("{of}: {}", counted.join(" · "));
    }
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n\n").into()) }
}

fn same_trace() -> Result<(), Failed> {
    for seed in [3, 17, 42] {
        let (first, second) = (child(seed, "")?.0, child(seed, "")?.0);
        if first != second {
            return Err(format!("seed {seed} gave two traces: {first:?} and {second:?}").into());
        }
    }
    if child(3, "")?.0.trace_hash == child(17, "")?.0.trace_hash {
        return Err("two seeds gave one trace".into());
    }
    Ok(())
}

/// Faults of the store that its versions show to the controller itself: the volume is set aside, and nothing is done
/// on what another has written.
const STORE_NOTICES: [&str; 2] = ["disk-forgets", "lock-ignored"];

/// Caught by what it breaks: not by something that broke along with it, for which other seeds are looked at.
fn is_what_it_breaks(planted: &str, violation: &str) -> bool {
    let unsafe_ones = ["invariant 1", "invariant 2", "invariant 3", "invariant 4"];
    unsafe_ones.iter().any(|it| violation.starts_with(it))
        || (STORE_NOTICES.contains(&planted) && violation.contains("somebody else has written it"))
}

fn caught(planted: &str) -> Result<(), Failed> {
    let looked_at = if planted == "lands-too-late" { TO_CATCH_MADE } else { TO_CATCH };
    let (by, besides) = (Mutex::new(None), Mutex::new(None));
    each(1..=looked_at, |seed| {
        let Ok((report, _)) = child(seed, planted) else { return false };
        let Some(violation) = report.violation else { return false };
        let is_it = is_what_it_breaks(planted, &violation);
        let place = if is_it { &by } else { &besides };
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{violation} (seed {seed})"));
        is_it
    });
    if by.into_inner().unwrap_or_else(PoisonError::into_inner).is_some() {
        return Ok(());
    }
    match besides.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(violation) => Err(format!("{planted} was caught by {violation} alone").into()),
        None => Err(format!("{planted} was not caught in {looked_at} seeds").into()),
    }
}
