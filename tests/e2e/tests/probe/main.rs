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

use std::process::ExitCode;

use cleat_e2e::suite::run;
use cleat_e2e::tests;

fn main() -> anyhow::Result<ExitCode> {
    let all = tests![
        answers::a_target_that_does_everything_is_found_to_and_nobody_else_is_touched;
        answers::a_target_that_keeps_nobody_out_and_forgets_its_uuid;
        answers::a_target_that_takes_one_host_and_only_says_that_it_cuts;
        answers::a_target_that_only_says_that_it_takes_its_namespace_down;
        answers::what_cannot_be_seen_is_assumed_only_on_request;
        stopped::an_interrupted_probe_removes_everything_and_writes_nothing;
        stopped::an_rds_that_goes_away_is_reported_with_what_is_left;
    ];
    Ok(run(suite::Probes::from_env()?, all))
}
