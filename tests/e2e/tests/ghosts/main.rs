//! Writes that are still on their way: what happens to them when their host is fenced, on real kernels.
//!
//! A target lands what it has received, whatever has become of the host. The first tests show, without any part of
//! Cleat, that fences which do not wait for that let a write land later ([`controls`]: a test there passes if the
//! fence is *seen to fail*), and that the ladder which takes the namespace down holds ([`ladder`]). The others fence
//! a writing node by Cleat, on every rung, with its agent dead or stopped or its machine frozen, let it come back,
//! and look for a block that landed after the proof.
//!
//! Boots machines, so it runs only with `CLEAT_MACHINES=1` (which `hack/test` sets), and says so when it does not.
//! `CLEAT_KERNEL` chooses the hosts' kernel and `CLEAT_TARGET_KERNEL` the target's (the hosts' without it); a test
//! that a target cannot be part of is listed as ignored. Names given as arguments filter as with `cargo test`.

mod controls;
mod fenced;
mod figures;
mod flood;
mod ladder;
mod suite;

use std::io::Write;
use std::process::ExitCode;

use libtest_mimic::Arguments;

use suite::{Need, Suite, tests};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if std::env::var_os("CLEAT_MACHINES").is_none_or(|value| value != "1") && !arguments.list {
        let line =
            "ghosts: NOT RUN: they boot virtual machines; run them with CLEAT_MACHINES=1 (hack/test does)";
        // A test whose output nobody reads still has its exit code.
        let _ = writeln!(std::io::stderr(), "{line}");
        return ExitCode::SUCCESS;
    }
    let all = tests![
        controls::a_plain_cut_lets_a_write_land_later, Need::Nothing;
        controls::an_abort_that_does_not_wait_lets_a_write_land_later, Need::HastyAbort;
        controls::deleting_dead_controllers_lets_a_write_land_later, Need::Nothing;
        controls::a_plain_cut_with_full_sockets_lets_writes_land_later, Need::Nothing;
        ladder::taking_the_namespace_down_waits_for_what_was_received, Need::Nothing;
        ladder::with_full_sockets_nothing_lands_after_the_namespace_was_down, Need::Nothing;
        ladder::an_abort_that_waits_is_a_barrier, Need::WaitingAbort;
        fenced::a_partitioned_writer_lands_nothing_after_the_proof, Need::Nothing;
        fenced::a_survivor_stalls_once_and_sees_no_error, Need::Nothing;
        fenced::without_lists_nobody_gets_the_volume_until_the_node_is_clean, Need::Nothing;
        fenced::a_writer_whose_agent_is_stopped_lands_nothing_after_the_proof, Need::Nothing;
        fenced::a_writer_whose_agent_is_dead_lands_nothing_after_the_proof, Need::Nothing;
        fenced::a_frozen_machine_that_goes_on_lands_nothing_after_the_proof, Need::Nothing;
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
            let _ = writeln!(std::io::stderr(), "ghosts: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}
