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

use std::process::ExitCode;
use std::time::Duration;

use cleat_e2e::suite::{Suite, run};
use cleat_e2e::tests;
use cleat_rig::Namespace;

use scene::Scene;

/// The tests of the store.
struct Stores;

impl Suite for Stores {
    type World = Scene;
    const NAME: &'static str = "store";

    fn limit(&self) -> Duration {
        Duration::from_secs(1800)
    }

    async fn boot(&self, run: &Namespace) -> anyhow::Result<Scene> {
        Scene::boot(run)
    }

    async fn tidy(&self, _: &Scene) -> anyhow::Result<()> {
        // Each test has a disk of its own.
        Ok(())
    }

    async fn clues(&self, scene: &Scene, _: &str) -> String {
        format!("seed {}", scene.seed)
    }
}

fn main() -> ExitCode {
    let all = tests![
        trouble::a_full_disk_ends_by_itself_when_there_is_room_again;
        trouble::a_disk_that_fails_writes_for_a_while_loses_nothing;
        trouble::a_failed_file_system_serves_after_a_restart;
        trouble::a_power_cut_of_the_disk_loses_nothing_acknowledged;
        trouble::a_reset_of_the_machine_loses_nothing_acknowledged;
    ];
    run(Stores, all)
}
