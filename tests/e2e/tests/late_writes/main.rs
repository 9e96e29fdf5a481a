//! Writes that are still on their way: what happens to them when their host is fenced, on real kernels.
//!
//! A target lands what it has received, whatever has become of the host. The first tests show, without any part of
//! Cleat, that fences which do not wait for that let a write land later ([`controls`]: a test there passes if the
//! fence is *seen to fail*), and that the ladder which takes the namespace down holds ([`ladder`]). The others fence
//! a writing node by Cleat, on every rung, with its agent dead or stopped or its machine frozen, let it come back, and
//! look for a block that landed after the proof; in [`crashes`] another program dies in the middle of the fence. Beside
//! them, [`reservations`] compares the target's reservations with the model that the other checks believe.
//!
//! Boots machines, so it runs only with `CLEAT_MACHINES=1` (which `hack/test` sets), and says so when it does not.
//! `CLEAT_KERNEL` chooses the hosts' kernel and `CLEAT_TARGET_KERNEL` the target's (the hosts' without it); a test
//! that the kernels cannot be part of is listed as ignored, and named at the end with what it needs. Without
//! `CLEAT_MATRIX=full` it is a sample: `cleat-demo fence` goes through every rung besides. Names given as arguments filter
//! as with `cargo test`.

mod controls;
mod crashes;
mod empty_list;
mod fenced;
mod figures;
mod flood;
mod ladder;
mod own_ground;
mod reservations;
mod scene;
mod suite;

use std::process::ExitCode;

use cleat_e2e::suite::run;
use cleat_e2e::tests;
use cleat_e2e::world::Rung::{Acl, Reservation, Secret};

use crashes::Who::{Controller, Rds, SurvivorsAgent};
use scene::Silence::{AgentDead, AgentStopped, MachineFrozen, Partition};
use suite::LateWrites;
use suite::Need::{self, HastyAbort, Reservations, Secrets, WaitingAbort};

fn main() -> anyhow::Result<ExitCode> {
    let suite = LateWrites::from_env()?;
    let need = |need: Need| need.lacking(suite.kernels);
    let mut all = tests![
        controls::a_plain_cut_lets_a_write_land_later;
        ladder::taking_the_namespace_down_waits_for_what_was_received;
        reservations::after_each_command_the_target_holds_what_the_model_holds, need(Reservations);
        fenced::with_a_successor(Acl, Partition) "_partition";
        fenced::beside_a_survivor(Acl, MachineFrozen, 2) "_acl_machine_frozen";
        empty_list::is_no_proof_against_a_silent_writer;
        own_ground::a_reservation_that_the_target_forgot_is_asserted_again, need(Reservations);
        crashes::fence_goes_on(Reservation, &[("preempt", SurvivorsAgent), ("hide", Controller)]) "_reservation_agent_controller", need(Reservations);
    ];
    if std::env::var_os("CLEAT_MATRIX").is_some_and(|value| value == "full") {
        all.extend(tests![
            controls::an_abort_that_does_not_wait_lets_a_write_land_later, need(HastyAbort);
            fenced::with_the_export_off(Partition, 2) "_partition";
            fenced::beside_a_survivor(Secret, AgentStopped, 2) "_secret_agent_stopped", need(Secrets);
            own_ground::the_old_secret_lets_nobody_back_in, need(Secrets);
            fenced::beside_a_survivor(Reservation, Partition, 2) "_reservation_partition", need(Reservations);
            controls::deleting_dead_controllers_lets_a_write_land_later;
            controls::a_plain_cut_with_full_sockets_lets_writes_land_later;
            ladder::with_full_sockets_nothing_lands_after_the_namespace_was_down;
            ladder::an_abort_that_waits_is_a_barrier, need(WaitingAbort);
            fenced::beside_a_survivor(Acl, Partition, 2) "_acl_partition";
            fenced::beside_a_survivor(Acl, AgentStopped, 2) "_acl_agent_stopped";
            fenced::beside_a_survivor(Acl, AgentDead, 2) "_acl_agent_dead";
            fenced::beside_a_survivor(Acl, Partition, 1) "_acl_partition_one_portal";
            fenced::with_the_export_off(Partition, 1) "_partition_one_portal";
            fenced::beside_a_survivor(Reservation, AgentStopped, 2) "_reservation_agent_stopped", need(Reservations);
            own_ground::an_abort_that_waits_drains, need(WaitingAbort);
            crashes::fence_goes_on(Acl, &[("deny", Controller), ("hide", Controller)]) "_acl_controller";
            crashes::fence_goes_on(Secret, &[("set-secret", Controller), ("hide", Rds)]) "_secret_controller_rds", need(Secrets);
            fenced::with_the_export_off(AgentStopped, 2) "_agent_stopped";
            fenced::with_the_export_off(AgentDead, 2) "_agent_dead";
            fenced::with_the_export_off(MachineFrozen, 2) "_machine_frozen";
            fenced::beside_a_survivor(Secret, Partition, 2) "_secret_partition", need(Secrets);
            fenced::beside_a_survivor(Secret, AgentDead, 2) "_secret_agent_dead", need(Secrets);
            fenced::beside_a_survivor(Secret, MachineFrozen, 2) "_secret_machine_frozen", need(Secrets);
            fenced::beside_a_survivor(Secret, Partition, 1) "_secret_partition_one_portal", need(Secrets);
            crashes::fence_goes_on(Acl, &[("deny", Rds), ("hide", Rds)]) "_acl_rds";
            crashes::fence_goes_on(Secret, &[("rekey", Controller), ("hide", Controller)]) "_secret_controller", need(Secrets);
            crashes::fence_goes_on(Secret, &[("rekey", SurvivorsAgent)]) "_secret_agent", need(Secrets);
            crashes::fence_goes_on(Reservation, &[("preempt", Controller), ("hide", Rds)]) "_reservation_controller_rds", need(Reservations);
            fenced::beside_a_survivor(Reservation, AgentDead, 2) "_reservation_agent_dead", need(Reservations);
            fenced::beside_a_survivor(Reservation, MachineFrozen, 2) "_reservation_machine_frozen", need(Reservations);
            fenced::beside_a_survivor(Reservation, Partition, 1) "_reservation_partition_one_portal", need(Reservations);
        ]);
    }
    Ok(run(suite, all))
}
