//! Whole drawings, as they are shown, and what a hostile name comes to.

use cleat_proto::cleat::v1::{AttachmentInfo, Epoch, MigrationInfo, MigrationStep, VolumeInfo, WaitInfo};

use super::*;
use crate::page::painted;

const NOON: u64 = 951_825_600_000;
const MIGRATION: &str = "6f1c3f0e-2f4b-4a1e-9a53-0d8a2b8c1f11";
const MIGRATION_OBJECT: &str = "prod/kubevirt-migrate-web-x7";
const VM: &str = "3b0c5a0e-6a5f-4f5e-9d3e-0d8a2b8c1f11";

/// A record of which nobody says whose it is; times in milliseconds after noon.
fn alone(volume: &str, result: &str, steps: &[(&str, u64)]) -> MigrationInfo {
    let step = |(name, after): &(&str, u64)| MigrationStep {
        name: (*name).into(),
        at_unix_ms: NOON + after,
        ..Default::default()
    };
    MigrationInfo {
        volume_id: volume.into(),
        source_node_id: "worker-1".into(),
        target_node_id: "worker-2".into(),
        target_epoch: Some(Epoch { term: 5, seq: 1 }),
        result: result.into(),
        attributed_to: "unattributed".into(),
        steps: steps.iter().map(step).collect(),
        granted_at_unix_ms: NOON,
        timeout_ms: 300_000,
        ..Default::default()
    }
}

/// The same as a part of the VM's migration.
pub(super) fn of_vm(volume: &str, result: &str, steps: &[(&str, u64)]) -> MigrationInfo {
    MigrationInfo {
        vm_namespace: "prod".into(),
        vm_name: "web".into(),
        vm_uid: VM.into(),
        migration_uid: MIGRATION.into(),
        attributed_to: MIGRATION_OBJECT.into(),
        ..alone(volume, result, steps)
    }
}

pub(super) fn left(record: MigrationInfo, side: &str) -> MigrationInfo {
    MigrationInfo { left: side.into(), ..record }
}

pub(super) fn drawn(records: &[MigrationInfo], volumes: &[VolumeInfo], name: &str, after: u64) -> Timeline {
    let selected = select(&records.iter().collect::<Vec<_>>(), name).expect("a migration");
    Timeline::new(&selected, volumes, NOON + after)
}

fn shown(timeline: &Timeline, width: Option<usize>) -> String {
    format!("\n{}", painted(&text(timeline, width), false))
}

fn completed() -> [MigrationInfo; 2] {
    let one = [
        ("granted", 0),
        ("target_connecting", 30),
        ("target_connected", 440),
        ("target_ready", 500),
        ("switchover", 20_500),
        ("releasing", 21_000),
        ("released", 22_000),
        ("evidence", 22_500),
        ("done", 22_500),
    ];
    let two = [
        ("granted", 10),
        ("target_connecting", 60),
        ("target_connected", 2_960),
        ("target_ready", 3_000),
        ("switchover", 20_520),
        ("releasing", 21_000),
        ("released", 24_000),
        ("evidence", 24_800),
        ("done", 24_800),
    ];
    [left(of_vm("pvc-b", "completed", &two), "source"), left(of_vm("pvc-a", "completed", &one), "source")]
}

#[test]
fn a_completed_migration_shows_each_volumes_phases_and_the_slowest() {
    let timeline = drawn(&completed(), &[], "web", 99_000);
    assert_eq!(
        shown(&timeline, None),
        r#"
VM prod/web from node worker-1 to node worker-2: completed
  Completed: node worker-2 has it, and node worker-1 cannot write to it any more.
  It began at 2000-02-29T12:00:00Z and lasted 24.800 s; its time limit was 5 min.
  Migration object prod/kubevirt-migrate-web-x7, UID 6f1c3f0e-2f4b-4a1e-9a53-0d8a2b8c1f11; VM UID 3b0c5a0e-6a5f-4f5e-9d3e-0d8a2b8c1f11.
  2 volumes side by side; the slowest is pvc-b: 6.790 s of handoff, most of it in detach (3 s).

pvc-a: completed, lasted 22.500 s
  |cmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmldddpp.......|
  allow 0.030 s, connect 0.410 s, check 0.060 s, move 20 s, leave 0.500 s, detach 1 s, prove 0.500 s

pvc-b: completed, lasted 24.790 s
  |cccccccccmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmlddddddddddpp|
  allow 0.050 s, connect 2.900 s, check 0.040 s, move 17.520 s, leave 0.480 s, detach 3 s, prove 0.800 s

One letter of a bar is 0.327 s.
  a  allow: the RDS lets the target in
  c  connect: the target connects its paths
  k  check: the target proves that the device is the right one and can be used
  m  move: both nodes have it, and the VM moves
  l  leave: the VM runs on the target, and the source still has it
  d  detach: one of the two nodes detaches
  p  prove: it is being proven that that node cannot write any more
"#
    );
}

/// Past its limit: one volume whose target does not connect, one that is ready.
fn overdue() -> (Vec<MigrationInfo>, Vec<VolumeInfo>) {
    let stuck = [("granted", 0), ("target_connecting", 100), ("timed_out", 300_000)];
    let ready = [("granted", 20), ("target_connecting", 80), ("target_ready", 1_500), ("timed_out", 300_020)];
    let overdue = |record: MigrationInfo| MigrationInfo { overdue: true, ..record };
    let records =
        vec![overdue(of_vm("pvc-a", "timed_out", &stuck)), overdue(of_vm("pvc-b", "timed_out", &ready))];
    let attachment = |node: &str, phase: &str, waits_for: &str| AttachmentInfo {
        node_id: node.into(),
        phase: phase.into(),
        waits_for: waits_for.into(),
        ..Default::default()
    };
    let volume = VolumeInfo {
        volume_id: "pvc-a".into(),
        attachments: vec![
            attachment("worker-1", "Ready", ""),
            attachment("worker-2", "Connecting", "the agent of node worker-2 to connect"),
        ],
        waiting: vec![
            WaitInfo {
                request: "publish".into(),
                node_id: "worker-2".into(),
                waits_for: "the agent of node worker-2 to connect".into(),
                ..Default::default()
            },
            WaitInfo {
                request: "publish".into(),
                node_id: "worker-3".into(),
                waits_for: "node worker-1".into(),
                ..Default::default()
            },
        ],
        ..Default::default()
    };
    (records, vec![volume])
}

#[test]
fn an_overdue_migration_says_so_and_what_each_volume_waits_for() {
    let (records, volumes) = overdue();
    let timeline = drawn(&records, &volumes, "prod/web", 400_000);
    assert_eq!(
        shown(&timeline, Some(60)),
        r#"
VM prod/web from node worker-1 to node worker-2: overdue
  Overdue: it is past its time limit, and both nodes still
    have it. No node is cut off for that, and no third one
    is let in until one of the two has given it up.
  It began at 2000-02-29T12:00:00Z and has lasted 6 min 40
    s; its time limit of 5 min ended at
    2000-02-29T12:05:00Z.
  Migration object prod/kubevirt-migrate-web-x7, UID
    6f1c3f0e-2f4b-4a1e-9a53-0d8a2b8c1f11; VM UID
    3b0c5a0e-6a5f-4f5e-9d3e-0d8a2b8c1f11.
  2 volumes side by side; the slowest is pvc-a: 6 min 40 s
    of handoff, most of it in connect (6 min 39 s).

pvc-a: overdue, 6 min 40 s so far
  |cccccccccccccccccccccccccccccccccccccccccc!cccccccccccc>|
  allow 0.100 s, connect 6 min 39 s so far
  node worker-2 (Connecting) waits for the agent of node
    worker-2 to connect
  publish for node worker-3 waits for node worker-1

pvc-b: overdue, 6 min 39 s so far
  |mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm!mmmmmmmmmmmm>|
  allow 0.060 s, connect 1.420 s, move 6 min 38 s so far
  waits for nothing of the storage: the VM is moving, or
    KubeVirt has not let the source go

One letter of a bar is 7.143 s.
  a  allow: the RDS lets the target in
  c  connect: the target connects its paths
  m  move: both nodes have it, and the VM moves
  !  here its time limit ended
  >  it goes on
"#
    );
}

#[test]
fn an_unattributed_migration_is_of_one_volume_and_says_why() {
    let records = [
        alone("vm-1", "running", &[("granted", 0), ("target_connecting", 10), ("target_ready", 400)]),
        alone("vm-2", "running", &[("granted", 0)]),
    ];
    let timeline = drawn(&records, &[], "vm-1", 4_000);
    assert_eq!(
        shown(&timeline, Some(80)),
        r#"
Volume vm-1 from node worker-1 to node worker-2: running
  Under way, in move: both nodes have it, and the VM moves.
  It began at 2000-02-29T12:00:00Z and has lasted 4 s.
  Unattributed: no migration object of KubeVirt names this move, so the node
    that had the volume first counts as the source, and no time limit applies.

vm-1: running, 4 s so far
  |ccccccccmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm>|
  allow 0.010 s, connect 0.390 s, move 3.600 s so far
  waits for nothing of the storage: it goes on once one of the two nodes is
    asked to give it up

One letter of a bar is 0.053 s.
  a  allow: the RDS lets the target in
  c  connect: the target connects its paths
  m  move: both nodes have it, and the VM moves
  >  it goes on
"#
    );
}

#[test]
fn volumes_that_ended_differently_are_counted_and_each_says_its_own() {
    let records = [
        left(of_vm("pvc-a", "completed", &[("granted", 0), ("done", 10)]), "source"),
        left(of_vm("pvc-b", "failed", &[("granted", 0), ("done", 10)]), "target"),
        left(of_vm("pvc-c", "completed", &[("granted", 0), ("done", 10)]), "source"),
    ];
    let text = shown(&drawn(&records, &[], "web", 0), None);
    assert!(text.starts_with("\nVM prod/web from node worker-1 to node worker-2: mixed\n"), "{text}");
    assert!(text.contains("  The volumes ended differently: 2 completed, 1 failed.\n"), "{text}");
    assert!(text.contains("pvc-b: failed, lasted 0.010 s\n  Failed: it stays with node worker-1;"), "{text}");
}

#[test]
fn a_step_of_a_newer_controller_is_a_phase_of_its_name() {
    let steps = [("granted", 0), ("parked", 100), ("done", 300)];
    let text = shown(&drawn(&[of_vm("pvc-a", "completed", &steps)], &[], "web", 0), None);
    assert!(text.contains("  allow 0.100 s, parked 0.200 s\n"), "{text}");
    assert!(text.contains("  ?  parked: something that this cleatctl does not know\n"), "{text}");
}

#[test]
fn clocks_that_are_set_back_make_no_time_and_no_panic() {
    let steps = [("granted", 5_000), ("target_connecting", 1_000), ("target_ready", 7_000)];
    // Our own clock is behind the controller's.
    let timeline = drawn(&[of_vm("pvc-a", "running", &steps)], &[], "web", 0);
    assert_eq!((timeline.began, timeline.until), (NOON + 5_000, NOON + 7_000));
    let lasts: Vec<u64> =
        timeline.volumes[0].phases.iter().map(|phase| phase.lasts(timeline.until)).collect();
    assert_eq!(lasts, [0, 2_000, 0]);
    for now in [0, u64::MAX - NOON] {
        let bare = MigrationInfo { steps: Vec::new(), ..of_vm("pvc-a", "running", &[]) };
        let timeline = drawn(&[bare], &[], "web", now);
        assert!(text(&timeline, Some(1)).contains("prod/web"));
        assert!(html(&timeline).contains("VM prod/web"));
    }
}

#[test]
fn a_bar_is_true_to_time_and_covers_it() {
    let [two, one] = completed();
    let timeline = drawn(&[one, two], &[], "web", 0);
    for cells in [1, 2, 7, 24_800] {
        for line in &timeline.volumes {
            let bar = text::bar(&timeline, line, cells);
            assert_eq!(bar.chars().count(), cells);
            // One letter a millisecond leaves nothing out.
            for phase in line.phases.iter().filter(|_| cells == 24_800) {
                let letters = bar.chars().filter(|letter| *letter == phase.letter()).count();
                assert_eq!(letters as u64, phase.lasts(timeline.until), "{}", phase.name());
            }
        }
    }
}

fn selected(records: &[MigrationInfo], name: &str) -> Result<Vec<String>, NoMigration> {
    let records: Vec<&MigrationInfo> = records.iter().collect();
    let volumes = |found: Selected<'_>| found.records.iter().map(|record| record.volume_id.clone()).collect();
    select(&records, name).map(volumes)
}

#[test]
fn a_name_of_any_kind_means_all_volumes_of_the_migration() {
    let records = completed();
    for name in ["web", "prod/web", VM, MIGRATION, MIGRATION_OBJECT, "pvc-a", "pvc-b"] {
        assert_eq!(selected(&records, name), Ok(vec!["pvc-a".to_owned(), "pvc-b".to_owned()]), "{name}");
    }
    for name in ["", "we", "test/web", "/", "worker-1", "unattributed"] {
        assert_eq!(selected(&records, name), Err(NoMigration::Unrecorded(name.to_owned())), "{name}");
    }
    let unnamed = [alone("vm-1", "running", &[("granted", 0)])];
    for nobody in ["", "/", "unattributed"] {
        assert!(selected(&unnamed, nobody).is_err(), "{nobody:?}");
    }
}

#[test]
fn a_name_of_two_vms_is_refused_with_both() {
    let other = MigrationInfo {
        vm_namespace: "test".into(),
        vm_uid: "uid-2".into(),
        migration_uid: "uid-3".into(),
        ..of_vm("pvc-c", "running", &[("granted", 0)])
    };
    let records = [of_vm("pvc-a", "running", &[("granted", 0)]), other];
    let refused = selected(&records, "web").expect_err("refused");
    assert_eq!(
        refused.to_string(),
        "cannot show a migration of web: VMs prod/web and test/web have one; name the VM with its namespace"
    );
    assert_eq!(selected(&records, "test/web"), Ok(vec!["pvc-c".to_owned()]));
}

#[test]
fn of_several_migrations_of_a_vm_the_newest_is_shown_and_others_are_named() {
    let back = MigrationInfo {
        migration_uid: "uid-2".into(),
        attributed_to: "prod/back".into(),
        source_node_id: "worker-2".into(),
        target_node_id: "worker-1".into(),
        ..of_vm("pvc-a", "running", &[("granted", 60_000)])
    };
    let records = [back, left(of_vm("pvc-b", "completed", &[("granted", 0), ("done", 10)]), "source")];
    let text = shown(&drawn(&records, &[], "web", 61_000), None);
    assert!(text.starts_with("\nVM prod/web from node worker-2 to node worker-1: running\n"), "{text}");
    assert!(!text.contains("\npvc-b:"), "it is no part of this one: {text}");
    let other = "\nOthers of this name\n  migration prod/kubevirt-migrate-web-x7 from node worker-1 to node \
                 worker-2, begun at 2000-02-29T12:00:00Z: completed\n";
    assert!(text.ends_with(other), "{text}");
    assert_eq!(selected(&records, MIGRATION), Ok(vec!["pvc-b".to_owned()]));
}

#[test]
fn vms_of_one_name_and_different_uids_are_never_drawn_together() {
    let again = MigrationInfo { vm_uid: "uid-2".into(), ..of_vm("pvc-b", "running", &[("granted", 5)]) };
    let records = [of_vm("pvc-a", "running", &[("granted", 0)]), again];
    assert_eq!(selected(&records, "web"), Ok(vec!["pvc-b".to_owned()]));
}

#[test]
fn the_document_has_phases_in_milliseconds_and_the_slowest_by_id() {
    let value = json(&drawn(&completed(), &[], "web", 0));
    assert_eq!(value["vm"]["name"], "web");
    assert_eq!(value["migration_uid"], MIGRATION);
    assert_eq!((&value["result"], &value["slowest_volume_id"]), (&"completed".into(), &"pvc-b".into()));
    assert_eq!(value["due_unix_ms"], NOON + 300_000);
    let volume = &value["volumes"][1];
    assert_eq!((&volume["volume_id"], &volume["handoff_ms"]), (&"pvc-b".into(), &6_790.into()));
    let connect = &volume["phases"][1];
    assert_eq!((&connect["name"], &connect["lasts_ms"]), (&"connect".into(), &2_900.into()));
    assert_eq!(connect["began_unix_ms"], NOON + 60);

    let (records, volumes) = overdue();
    let value = json(&drawn(&records, &volumes, "web", 400_000));
    assert_eq!((&value["result"], &value["ended_unix_ms"]), (&"overdue".into(), &serde_json::Value::Null));
    assert_eq!(value["volumes"][0]["waits"][0]["node_id"], "worker-2");
    let value = json(&drawn(&[alone("vm-1", "running", &[("granted", 0)])], &[], "vm-1", 0));
    assert_eq!((&value["vm"], &value["due_unix_ms"]), (&serde_json::Value::Null, &serde_json::Value::Null));
}

/// The elements of a page, each of which has to be closed in its turn; gives how many there are of each name.
fn elements(page: &str) -> std::collections::BTreeMap<String, usize> {
    let (mut open, mut count) = (Vec::new(), std::collections::BTreeMap::new());
    let body = page.strip_prefix("<!doctype html>").expect("a document");
    for tag in body.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("a whole tag");
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop().as_deref(), Some(name), "{page}"),
            None => {
                let name = tag.split(' ').next().unwrap_or_default().to_owned();
                *count.entry(name.clone()).or_default() += 1;
                if name != "meta" {
                    open.push(name);
                }
            }
        }
    }
    assert!(open.is_empty(), "{open:?}");
    count
}

#[test]
fn the_page_is_one_document_that_asks_for_nothing_else() {
    let (records, volumes) = overdue();
    for timeline in [drawn(&completed(), &[], "web", 0), drawn(&records, &volumes, "web", 400_000)] {
        let page = html(&timeline);
        let count = elements(&page);
        assert_eq!(count["section"], 2);
        for foreign in
            ["http:", "https:", "//", "src=", "href", "url(", "@import", "<script", "<link", "<img"]
        {
            assert!(!page.contains(foreign), "{foreign} in {page}");
        }
        for sentence in sentences::summary(&timeline) {
            assert!(page.contains(&sentence), "{sentence} in {page}");
        }
    }
    let page = html(&drawn(&completed(), &[], "web", 0));
    let connect = r#"<i class="connect" style="left:0.242%;width:11.694%" title="connect 2.900 s: the target connects its paths"></i>"#;
    assert!(page.contains(connect), "{page}");
}

#[test]
fn names_of_others_neither_command_a_terminal_nor_mark_up_a_page() {
    let evil = "\"'><script>x</script>&\u{1b}[2J\u{202e}\n";
    let record = MigrationInfo {
        source_node_id: evil.into(),
        target_node_id: evil.into(),
        vm_namespace: evil.into(),
        vm_name: evil.into(),
        vm_uid: evil.into(),
        migration_uid: evil.into(),
        attributed_to: evil.into(),
        left: evil.into(),
        ..of_vm(evil, evil, &[("granted", 0), (evil, 10)])
    };
    let other = MigrationInfo {
        migration_uid: format!("{evil}2"),
        steps: Vec::new(),
        granted_at_unix_ms: NOON - 1,
        ..record.clone()
    };
    let waits = VolumeInfo {
        volume_id: evil.into(),
        attachments: vec![AttachmentInfo {
            node_id: evil.into(),
            phase: evil.into(),
            waits_for: evil.into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    for overdue in [false, true] {
        let records = [MigrationInfo { overdue, ..record.clone() }, other.clone()];
        let timeline = drawn(&records, std::slice::from_ref(&waits), evil, 20);
        let harmful = |c: char| cleat_runtime::text::is_harmful(c) && c != '\n';
        let text = shown(&timeline, None);
        assert!(!text.contains(harmful), "{text}");
        let page = html(&timeline);
        assert!(!page.contains(harmful) && !page.contains("<script") && !page.contains("'>"), "{page}");
        elements(&page);
    }
    let refused = selected(&[record], "\u{1b}").expect_err("refused").to_string();
    assert!(!crate::page::harmless(&refused).contains('\u{1b}'));
}
