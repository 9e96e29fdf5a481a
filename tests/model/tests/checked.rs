//! Runs the model: `cargo test -p cleat-model`; with `CLEAT_MODEL=full` to deeper bounds; with `CLEAT_MODEL=mutant`
//! until the first violation or a minute is over (for `hack/mutations`). Prints what was reached, and ends with 1 if
//! anything was found.

#![allow(clippy::print_stdout)] // This is what a person runs to see what was checked.

use std::process::ExitCode;
use std::time::Duration;

use cleat_model::explore::{Finding, Report, at_random, exhaustively};
use cleat_model::setups;

fn main() -> ExitCode {
    // A panic of the core is a finding, and told as one.
    std::panic::set_hook(Box::new(|_| {}));
    let mode = std::env::var("CLEAT_MODEL").unwrap_or_default();
    let found = match mode.as_str() {
        "mutant" => until_found(Duration::from_secs(60)),
        mode => everything(mode == "full"),
    };
    match found {
        Some(finding) => {
            tell_finding(&finding);
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

fn everything(full: bool) -> Option<Finding> {
    for exhaustive in setups::exhaustive(full) {
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
        if report.finding.is_some() {
            return report.finding;
        }
    }
    let (walks, seconds) = if full { (200_000, 300) } else { (2_000, 6) };
    for setup in setups::walks() {
        let report = at_random(&setup, 0..walks, 250, Duration::from_secs(seconds));
        tell_walks(setup.name, &report);
        if report.finding.is_some() {
            return report.finding;
        }
    }
    None
}

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

fn until_found(time: Duration) -> Option<Finding> {
    let began = std::time::Instant::now();
    let mut seed = 0;
    while began.elapsed() < time {
        for setup in setups::walks() {
            let report = at_random(&setup, seed..seed + 200, 250, time.saturating_sub(began.elapsed()));
            if report.finding.is_some() {
                return report.finding;
            }
        }
        seed += 200;
    }
    println!("nothing found in {seed} walks of each world");
    None
}

fn tell_finding(finding: &Finding) {
    println!("VIOLATION of {}: {:?}", finding.violation.invariant(), finding.violation);
    for (at, action) in finding.trace.iter().enumerate() {
        println!("  {:3}  {action:?}", at + 1);
    }
    if finding.healed {
        println!("       then everything works again, and all is unpublished");
    }
}
