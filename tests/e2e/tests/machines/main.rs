//! The machine tests: Cleat on real kernels, in virtual machines of their own network namespace.
//!
//! One RDS machine and three nodes are booted once and shared by all tests, which run one after the other, each with
//! volumes of its own; after each test nothing may be left of it (see [`suite`]). A test that fails leaves its logs
//! in the run's folder, which is kept and named, and the next one gets a fresh world.
//!
//! Boots machines, so it runs only with `CLEAT_MACHINES=1` (which `hack/test` sets), and says so when it does not.
//! `CLEAT_KERNEL=6.12` chooses the kernel (6.1 without it), `CLEAT_LOG=debug` what the programs log, and
//! `CLEAT_MATRIX=full` has what is repeated repeated as often as it should, not a sample of it, and nothing left out for its time.
//! Names given as arguments filter as with `cargo test`.

mod admission;
mod agent_crash;
mod attach;
mod controller_crash;
mod dead_portal;
mod detach;
mod disagreement;
mod fixture;
mod identity;
mod in_use;
mod lost_device;
mod node_target;
mod old_epoch;
mod paths;
mod rds_trouble;
mod reboot;
mod store_lost;
mod suite;
mod target_trouble;
mod ticket_run;

use std::process::ExitCode;

use cleat_e2e::suite::run;
use cleat_e2e::tests;

fn main() -> ExitCode {
    let all = tests![
        attach::both_paths_are_live_and_everybody_says_the_same;
        attach::a_repeated_attach_changes_nothing;
        attach::staging_again_while_in_use_changes_nothing;
        attach::nvme_cli_does_the_same_as_the_kernels_interface;
        detach::is_refused_while_the_device_is_open_and_names_the_opener;
        detach::removes_its_own_controllers_and_leaves_a_foreign_connection_alone;
        detach::an_unfinished_kernel_call_shows_its_age_and_delays_nothing_else;
        detach::without_a_node_id_takes_the_volume_off_all_nodes;
        detach::of_a_node_that_holds_nothing_succeeds_and_changes_nothing;
        in_use::an_external_journal_is_refused_as_in_use;
        in_use::a_file_system_that_was_unmounted_lazily_is_refused_as_in_use;
        in_use::a_mount_in_a_namespace_without_a_process_is_refused_as_in_use;
        in_use::a_memory_map_without_a_descriptor_is_refused_with_its_process;
        in_use::a_users_fuse_mount_does_not_keep_a_volume_from_being_detached;
        ticket_run::a_backup_reads_under_a_writer_and_cannot_write;
        ticket_run::a_backup_and_an_exclusive_user_keep_each_other_from_nothing;
        ticket_run::a_volume_that_is_attached_nowhere_is_there_for_the_command_alone;
        ticket_run::an_unpublish_interrupts_the_backup_and_waits_until_it_is_gone;
        ticket_run::a_backup_that_does_not_end_when_asked_is_cut_off;
        ticket_run::a_publish_elsewhere_interrupts_the_backup_and_is_granted;
        admission::a_second_node_is_refused_an_rwo_volume_with_a_hint;
        admission::a_third_node_is_refused_an_rwx_volume_with_both_holders_named;
        admission::a_move_waits_for_the_detach_under_way_and_is_granted_at_once;
        admission::a_handoff_loses_no_write;
        admission::a_volume_that_is_attached_is_not_deleted;
        paths::a_lost_path_degrades_and_comes_back_without_a_failed_write;
        paths::a_connection_that_was_back_at_once_is_not_taken_for_unbroken;
        paths::a_path_that_is_cut_in_silence_is_reset_before_its_keep_alive_ends;
        lost_device::is_named_while_it_is_held_and_made_again_once_it_is_free;
        lost_device::a_path_that_blinks_under_a_writer_comes_back_each_time;
        dead_portal::holds_up_neither_attaches_nor_detaches_and_fences_nobody;
        target_trouble::another_namespace_under_the_same_name_is_refused;
        target_trouble::a_target_that_cannot_be_reached_leaves_nothing_behind;
        target_trouble::a_target_that_refuses_leaves_nothing_behind;
        rds_trouble::an_rds_that_is_down_is_unavailable_until_it_is_back;
        rds_trouble::an_rds_that_hangs_is_unavailable_until_it_answers;
        rds_trouble::an_rds_that_is_slow_is_waited_for;
        rds_trouble::a_reply_of_the_rds_that_is_lost_is_made_good_by_the_repeat;
        agent_crash::a_killed_agent_disturbs_no_io_and_knows_everything_again;
        agent_crash::a_detach_after_a_restart_is_proven_by_what_did_not_break, fixture::sampled();
        controller_crash::a_detach_after_its_restart_is_proven_as_ever;
        controller_crash::killed_while_the_rds_is_to_allow_the_host, fixture::sampled();
        controller_crash::killed_after_the_rds_has_allowed_the_host;
        controller_crash::killed_while_the_agent_is_to_attach, fixture::sampled();
        controller_crash::killed_after_the_agent_has_attached;
        controller_crash::killed_after_it_has_answered_an_attach, fixture::sampled();
        controller_crash::killed_while_the_agent_is_to_detach;
        controller_crash::killed_after_the_agent_has_detached, fixture::sampled();
        controller_crash::killed_after_the_rds_has_taken_the_host_off;
        controller_crash::killed_after_it_has_answered_a_detach;
        store_lost::a_silent_writer_keeps_others_out;
        disagreement::an_attach_whose_answer_was_lost_is_the_same_attach_when_repeated;
        disagreement::a_detach_whose_answer_was_lost_is_proven_when_repeated;
        old_epoch::directives_of_an_old_epoch_change_nothing;
        old_epoch::a_publish_context_of_an_earlier_grant_is_refused;
        reboot::a_rebooted_node_gets_its_volume_back_under_the_same_epoch;
        node_target::a_stale_device_at_the_target_is_not_taken_for_the_volume;
        node_target::removing_a_target_never_deletes_what_is_mounted_there;
        identity::that_is_lost_while_attached_comes_back_and_everything_goes_on;
        identity::a_second_node_with_the_same_host_identity_is_refused_with_both_names;
    ];
    run(suite::Machines, all)
}
