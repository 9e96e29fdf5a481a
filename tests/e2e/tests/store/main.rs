//! The store on a real kernel: its disk fails, fills up or loses power, and its machine is reset, while it commits.
//!
//! One machine is booted once and shared by all tests, which run one after the other, each with a disk of its own
//! ([`scene`]). The shipped store runs in it (`store-guest`); what it acknowledges is recorded outside. After each
//! trouble every acknowledged commit has to be there, at most the one that was under way beside it, and nothing by
//! halves.
//!
//! Boots a machine, so it runs only with `CLEAT_MACHINES=1` (which `hack/test` sets), and says so when it does not.
//! `CLEAT_KERNEL` chooses the kernel (6.1 without it), `CLEAT_CRASHES` how many times power is cut and the machine is
//! reset, `CLEAT_SEED` at which points. Names given as arguments filter as with `cargo test`.

mod scene;
mod trouble;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use cleat_rig::Namespace;
use libtest_mimic::{Arguments, Trial};

use scene::Scene;

type Test = (&'static str, fn(&Scene) -> anyhow::Result<()>);

const TESTS: &[Test] = &[
    ("a_full_disk_ends_by_itself_when_there_is_room_again", trouble::full_disk),
    ("a_disk_that_fails_writes_for_a_while_loses_nothing", trouble::disk_fails_for_a_while),
    ("a_failed_file_system_serves_after_a_restart", trouble::file_system_gives_up),
    ("a_power_cut_of_the_disk_loses_nothing_acknowledged", trouble::power_cut),
    ("a_reset_of_the_machine_loses_nothing_acknowledged", trouble::machine_reset),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if std::env::var_os("CLEAT_MACHINES").is_none_or(|value| value != "1") && !arguments.list {
        let line =
            "store: NOT RUN: they boot a virtual machine; run them with CLEAT_MACHINES=1 (hack/test does)";
        // A test whose output nobody reads still has its exit code.
        let _ = writeln!(std::io::stderr(), "{line}");
        return ExitCode::SUCCESS;
    }
    // One after the other: they share the machine.
    arguments.test_threads = Some(1);
    if arguments.list {
        let listed = TESTS.iter().map(|(name, _)| Trial::test(*name, || Err("only listed".into())));
        return libtest_mimic::run(&arguments, listed.collect()).exit_code();
    }
    // Before any thread is started; in a namespace of its own this returns, outside of it never.
    let scene = Namespace::enter("store").map_err(anyhow::Error::from).and_then(Scene::boot);
    let scene = match scene {
        Ok(scene) => Arc::new(scene),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "store: FAILED: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let trial = |(name, test): &Test| {
        let (scene, test) = (Arc::clone(&scene), *test);
        let body = move || test(&scene).map_err(|error| format!("{error:#}; seed {}", scene.seed).into());
        Trial::test(*name, body)
    };
    libtest_mimic::run(&arguments, TESTS.iter().map(trial).collect()).exit_code()
}
