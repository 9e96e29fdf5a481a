//! `cleatctl rds probe` on a real node, against an RDS that plays the different answers.
//!
//! One RDS machine and one node are booted once and shared by all tests, which run one after the other; each starts
//! rds-sim anew with the answers that it is about, runs the probe, compares the file that it has written, and looks
//! that nothing of it is left on either machine ([`probing`]).
//!
//! Boots machines, so it runs only with `CLEAT_MACHINES=1` (which `hack/test` sets), and says so when it does not.
//! `CLEAT_KERNEL` chooses the node's kernel and `CLEAT_TARGET_KERNEL` the target's (the node's without it); what only
//! newer kernels have is expected only of those. `CLEAT_SAID=1` shows what each probe said. Names given as arguments filter as with `cargo test`.

mod answers;
mod probing;
mod stopped;
mod suite;

use std::io::Write;
use std::process::ExitCode;

use libtest_mimic::Arguments;

use suite::{Suite, tests};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if std::env::var_os("CLEAT_MACHINES").is_none_or(|value| value != "1") && !arguments.list {
        let line =
            "probe: NOT RUN: they boot virtual machines; run them with CLEAT_MACHINES=1 (hack/test does)";
        // A test whose output nobody reads still has its exit code.
        let _ = writeln!(std::io::stderr(), "{line}");
        return ExitCode::SUCCESS;
    }
    let all = tests![
        answers::a_target_that_does_everything_is_found_to_and_nobody_else_is_touched,
        answers::a_target_that_keeps_nobody_out_and_forgets_its_uuid,
        answers::a_target_that_takes_one_host_and_only_says_that_it_cuts,
        answers::a_target_that_only_says_that_it_takes_its_namespace_down,
        answers::what_cannot_be_seen_is_assumed_only_where_asked_for,
        stopped::an_interrupted_probe_removes_everything_and_writes_nothing,
        stopped::an_rds_that_goes_away_is_told_with_what_is_left,
    ];
    // One after the other: they share the machines.
    arguments.test_threads = Some(1);
    if arguments.list {
        let listed = all.into_iter().map(|test| test.listed()).collect();
        return libtest_mimic::run(&arguments, listed).exit_code();
    }
    // Before any thread is started; in a namespace of its own this returns, outside of it never.
    match Suite::enter() {
        Ok(suite) => suite.run(&arguments, all),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "probe: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}
