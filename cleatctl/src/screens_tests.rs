//! Whole screens, as they are shown: without a terminal, at 80 columns, in colour.

use cleat_proto::cleat::v1::volume_state::Phase;
use cleat_proto::cleat::v1::{
    AttachmentInfo, Capabilities, DriftInfo, Epoch, EvidenceInfo, FenceInfo, FencedInfo, Identity,
    MigrationInfo, MigrationStep, NodeIdentity, NodeInfo, Path, Staging, TriedRung, Unready, VolumeInfo,
    VolumeState, WaitInfo,
};

use crate::page::painted;
use crate::{explain, screens};

const NOON: u64 = 951_825_600_000;
const CLAIM: &str = "pvc-7c9e6679-7425-40de-944b-e07fc1f90ae7";

/// A screen as it is shown, with its colours named.
fn shown(screen: &str, color: bool) -> String {
    let text = painted(screen, color).replace("\u{1b}[0m", "</>");
    let text = text.replace("\u{1b}[32m", "<green>").replace("\u{1b}[33m", "<yellow>");
    format!("\n{}\n", text.replace("\u{1b}[31m", "<red>").trim_end())
}

fn epoch(seq: u64) -> Option<Epoch> {
    Some(Epoch { term: 5, seq })
}

fn attachment(node: &str, phase: &str, seq: u64, reported: Phase, live: usize) -> AttachmentInfo {
    let path = |number: usize| Path {
        portal: format!("10.0.{number}.100:4420"),
        controller: format!("nvme{number}"),
        state: if number <= live { "live" } else { "connecting" }.into(),
        ana_state: "optimized".into(),
    };
    let state = VolumeState {
        phase: reported.into(),
        paths: vec![path(1), path(2)],
        device: "nvme0n1".into(),
        writes: 42,
        ..Default::default()
    };
    AttachmentInfo {
        node_id: node.into(),
        epoch: epoch(seq),
        role: "primary".into(),
        phase: phase.into(),
        since_unix_ms: NOON,
        may_write: true,
        reported: Some(state),
        ..Default::default()
    }
}

fn volume(id: &str, attachments: Vec<AttachmentInfo>) -> VolumeInfo {
    let identity = Identity {
        namespace_uuid: "0f3c1a52-5a0e-4b8e-9d2e-3f9b8a7c6d5e".into(),
        size_bytes: 16 << 30,
        ..Default::default()
    };
    VolumeInfo {
        volume_id: id.into(),
        access: "RWO".into(),
        identity: Some(identity),
        attachments,
        min_fence: "acl".into(),
        ..Default::default()
    }
}

fn fenced(node: &str) -> FencedInfo {
    FencedInfo {
        node_id: node.into(),
        host_nqn: format!("nqn.2026-01.test:{node}"),
        epoch: epoch(1),
        evidence: Some(EvidenceInfo {
            source: "TargetCut".into(),
            verdict: "Fenced".into(),
            drained_by: "the drain bound has passed".into(),
            assumption: "the target lands what it has within 60 s".into(),
            at_unix_ms: NOON,
            wanted_by: "bob".into(),
            wanted_because: "its guest hangs".into(),
            ..Default::default()
        }),
        since_unix_ms: NOON,
        ..Default::default()
    }
}

/// Ready, degraded, draining under a fence, fenced, deleted, detached.
fn volumes() -> Vec<VolumeInfo> {
    let mut draining = attachment("worker-3", "Draining", 3, Phase::Lost, 0);
    draining.waits_for = "the drain bound, which ends at 2000-02-29T12:01:00Z".into();
    draining.fence = Some(FenceInfo { rung: "acl".into(), step: "hide".into(), ..Default::default() });
    let mut deleted = VolumeInfo { deleted: true, ..volume("vm-3", vec![]) };
    deleted.fenced.push(fenced("worker-4"));
    vec![
        volume("vm-1", vec![attachment("worker-1", "Ready", 1, Phase::Ready, 2)]),
        volume("vm-2", vec![attachment("worker-2", "Ready", 2, Phase::Degraded, 1), draining]),
        deleted,
        volume("vm-4", vec![]),
    ]
}

#[test]
fn volumes_without_a_terminal_show_every_column_on_one_line_each() {
    assert_eq!(
        shown(&screens::volumes(&volumes(), None), false),
        r#"
VOLUME  ACCESS  SIZE    NODE      ROLE     PHASE     FENCE      EPOCH  PATHS  WAITS FOR
vm-1    RWO     16 GiB  worker-1  primary  Ready     -          5.1    2/2    -
vm-2    RWO     16 GiB  worker-2  primary  Degraded  -          5.2    1/2    -
vm-2    RWO     16 GiB  worker-3  primary  Draining  acl, hide  5.3    0/2    the drain bound, which ends at 2000-02-29T12:01:00Z
vm-3    RWO     16 GiB  worker-4  -        fenced    TargetCut  5.1    -      node's agent to report it absent; the volume is deleted
vm-4    RWO     16 GiB  -         -        detached  -          -      -      -
"#
    );
}

#[test]
fn volumes_at_80_columns_say_below_a_row_what_it_waits_for() {
    assert_eq!(
        shown(&screens::volumes(&volumes(), Some(80)), false),
        r#"
VOLUME  ACCESS  SIZE    NODE      ROLE     PHASE     FENCE      EPOCH  PATHS
vm-1    RWO     16 GiB  worker-1  primary  Ready     -          5.1    2/2
vm-2    RWO     16 GiB  worker-2  primary  Degraded  -          5.2    1/2
vm-2    RWO     16 GiB  worker-3  primary  Draining  acl, hide  5.3    0/2
    waits for: the drain bound, which ends at 2000-02-29T12:01:00Z
vm-3    RWO     16 GiB  worker-4  -        fenced    TargetCut  5.1    -
    waits for: node's agent to report it absent; the volume is deleted
vm-4    RWO     16 GiB  -         -        detached  -          -      -
"#
    );
}

#[test]
fn long_ids_at_80_columns_stay_whole_and_lesser_columns_go() {
    let mut long = volumes().remove(1);
    long.volume_id = CLAIM.into();
    assert_eq!(
        shown(&screens::volumes(&[long], Some(80)), false),
        r#"
VOLUME                                    NODE      PHASE     FENCE      PATHS
pvc-7c9e6679-7425-40de-944b-e07fc1f90ae7  worker-2  Degraded  -          1/2
pvc-7c9e6679-7425-40de-944b-e07fc1f90ae7  worker-3  Draining  acl, hide  0/2
    waits for: the drain bound, which ends at 2000-02-29T12:01:00Z

Left out to fit 80 columns: EPOCH, ROLE, SIZE, ACCESS. Use a wider terminal or
  -o json.
"#
    );
}

#[test]
fn colour_paints_state_words_and_moves_nothing() {
    let text = screens::volumes(&volumes(), None);
    assert_eq!(
        shown(&text, true),
        r#"
VOLUME  ACCESS  SIZE    NODE      ROLE     PHASE     FENCE      EPOCH  PATHS  WAITS FOR
vm-1    RWO     16 GiB  worker-1  primary  <green>Ready</>     -          5.1    2/2    -
vm-2    RWO     16 GiB  worker-2  primary  <yellow>Degraded</>  -          5.2    1/2    -
vm-2    RWO     16 GiB  worker-3  primary  <yellow>Draining</>  acl, hide  5.3    0/2    the drain bound, which ends at 2000-02-29T12:01:00Z
vm-3    RWO     16 GiB  worker-4  -        <red>fenced</>    TargetCut  5.1    -      node's agent to report it absent; the volume is deleted
vm-4    RWO     16 GiB  -         -        detached  -          -      -      -
"#
    );
}

fn nodes() -> Vec<NodeInfo> {
    let node = |name: &str, session: &str, standing: &str, reason: &str| NodeInfo {
        node_id: name.into(),
        identity: Some(NodeIdentity {
            storage_addresses: vec!["10.0.1.1".into(), "10.0.2.1".into()],
            ..Default::default()
        }),
        capabilities: Some(Capabilities {
            kernel_release: "6.12.1".into(),
            fabrics: "kernel".into(),
            ..Default::default()
        }),
        session: session.into(),
        session_since_unix_ms: NOON,
        standing: standing.into(),
        standing_reason: reason.into(),
        agent_version: "0.1.0".into(),
        volumes: vec![VolumeState { phase: Phase::Ready.into(), ..Default::default() }],
        ..Default::default()
    };
    vec![
        node("worker-1", "connected", "Admitted", ""),
        node("worker-4", "silent", "Quarantined", "it was fenced from volume vm-3 at 2000-02-29T12:00:00Z"),
    ]
}

#[test]
fn nodes_without_a_terminal_show_every_column_on_one_line_each() {
    assert_eq!(
        shown(&screens::nodes(&nodes(), None), false),
        r#"
NODE      AGENT      SINCE                 STANDING     VOLUMES  STORAGE ADDRESSES  KERNEL  FABRICS  VERSION  REASON
worker-1  connected  2000-02-29T12:00:00Z  Admitted     1        10.0.1.1,10.0.2.1  6.12.1  kernel   0.1.0    -
worker-4  silent     2000-02-29T12:00:00Z  Quarantined  1        10.0.1.1,10.0.2.1  6.12.1  kernel   0.1.0    it was fenced from volume vm-3 at 2000-02-29T12:00:00Z
"#
    );
}

#[test]
fn nodes_at_80_columns_keep_standing_and_its_reason() {
    assert_eq!(
        shown(&screens::nodes(&nodes(), Some(80)), true),
        r#"
NODE      AGENT      SINCE                 STANDING     VOLUMES
worker-1  <green>connected</>  2000-02-29T12:00:00Z  <green>Admitted</>     1
worker-4  <red>silent</>     2000-02-29T12:00:00Z  <red>Quarantined</>  1
    reason: it was fenced from volume vm-3 at 2000-02-29T12:00:00Z

Left out to fit 80 columns: FABRICS, VERSION, KERNEL, STORAGE ADDRESSES. Use a
  wider terminal or -o json.
"#
    );
}

fn migration() -> MigrationInfo {
    let step = |name: &str, after_ms| MigrationStep {
        name: name.into(),
        at_unix_ms: NOON + after_ms,
        ..Default::default()
    };
    MigrationInfo {
        volume_id: "vm-1".into(),
        source_node_id: "worker-1".into(),
        target_node_id: "worker-2".into(),
        result: "completed".into(),
        steps: vec![step("granted", 0), step("target_ready", 412), step("done", 2500)],
        ..Default::default()
    }
}

#[test]
fn migrations_show_the_time_since_their_first_step() {
    assert_eq!(
        shown(&screens::migrations(&[migration()], None), false),
        r#"
VOLUME  FROM      TO        RESULT     BEGAN                 VM  TIMELINE
vm-1    worker-1  worker-2  completed  2000-02-29T12:00:00Z  -   granted, target_ready +0.412s, done +2.500s
"#
    );
    assert_eq!(
        shown(&screens::migrations(&[migration()], Some(80)), true),
        r#"
VOLUME  FROM      TO        RESULT     BEGAN
vm-1    worker-1  worker-2  <green>completed</>  2000-02-29T12:00:00Z
    timeline: granted, target_ready +0.412s, done +2.500s
"#
    );
}

#[test]
fn migrations_name_the_vm_and_those_that_are_overdue() {
    let moved = MigrationInfo {
        result: "timed_out".into(),
        overdue: true,
        vm_namespace: "prod".into(),
        vm_name: "web".into(),
        ..migration()
    };
    assert_eq!(
        shown(&screens::migrations(&[moved, migration()], Some(80)), true),
        r#"
VOLUME  FROM      TO        RESULT     BEGAN                 VM
vm-1    worker-1  worker-2  <red>overdue</>    2000-02-29T12:00:00Z  prod/web
    timeline: granted, target_ready +0.412s, done +2.500s
vm-1    worker-1  worker-2  <green>completed</>  2000-02-29T12:00:00Z  -
    timeline: granted, target_ready +0.412s, done +2.500s
"#
    );
}

fn problems() -> Vec<DriftInfo> {
    let problem = |kind: &str, node_id: &str, volume_id: &str, message: &str| DriftInfo {
        kind: kind.into(),
        node_id: node_id.into(),
        volume_id: volume_id.into(),
        message: message.into(),
    };
    vec![
        problem(
            "staging-elsewhere",
            "worker-2",
            CLAIM,
            "/staging/vm-2 is on 8:16, not on nvme0n1; restage it",
        ),
        problem("certificate-expires", "", "", "server.pem ends at 2000-02-29T12:00:00Z; replace it"),
    ]
}

#[test]
fn problems_without_a_terminal_are_one_line_each() {
    assert_eq!(
        shown(&screens::problems(&problems(), None), false),
        r#"
PROBLEM              NODE      VOLUME                                    DETAILS AND ACTION
staging-elsewhere    worker-2  pvc-7c9e6679-7425-40de-944b-e07fc1f90ae7  /staging/vm-2 is on 8:16, not on nvme0n1; restage it
certificate-expires  -         -                                         server.pem ends at 2000-02-29T12:00:00Z; replace it
"#
    );
}

#[test]
fn problems_at_80_columns_say_what_to_do_below_each() {
    assert_eq!(
        shown(&screens::problems(&problems(), Some(80)), true),
        r#"
PROBLEM              NODE      VOLUME
staging-elsewhere    worker-2  pvc-7c9e6679-7425-40de-944b-e07fc1f90ae7
    details and action: /staging/vm-2 is on 8:16, not on nvme0n1; restage it
certificate-expires  -         -
    details and action: server.pem ends at 2000-02-29T12:00:00Z; replace it
"#
    );
}

#[test]
fn empty_answers_are_said_in_words() {
    assert_eq!(screens::volumes(&[], None), "No volumes are tracked.");
    assert_eq!(screens::nodes(&[], None), "No agent has connected since this controller started.");
    assert_eq!(screens::migrations(&[], None), "No migrations are recorded.");
    assert_eq!(screens::problems(&[], None), "No problems found.");
}

/// A migration whose source is being fenced.
fn in_trouble() -> VolumeInfo {
    let mut draining = attachment("worker-1", "Draining", 2, Phase::Lost, 0);
    draining.cause = "forced by alice: hangs".into();
    draining.waits_for = "the drain bound, which ends at 2000-02-29T12:01:00Z".into();
    draining.fence = Some(FenceInfo {
        rung: "acl".into(),
        step: "hide".into(),
        tried: vec![TriedRung { rung: "reservation".into(), result: "no other node has the volume".into() }],
        since_unix_ms: NOON,
    });
    draining.evidence = Some(EvidenceInfo {
        source: "AgentAbsent".into(),
        verdict: "Unknown".into(),
        at_unix_ms: NOON,
        ..Default::default()
    });
    let state = draining.reported.as_mut().expect("a report");
    state.unready = Some(Unready { clause: "paths".into(), message: "no live path is left".into() });
    state.staging = vec![Staging { path: "/staging/vm-1".into(), device: "8:16".into(), same: false }];
    state.openers = vec!["pid 7 (qemu)".into()];
    let mut stuck = attachment("worker-2", "Draining", 3, Phase::Ready, 2);
    stuck.role = "migration-target".into();
    stuck.reported = None;
    stuck.fence = Some(FenceInfo { step: "refused".into(), since_unix_ms: NOON, ..Default::default() });
    let gone = EvidenceInfo {
        node_id: "worker-5".into(),
        epoch: epoch(1),
        source: "NodeGone".into(),
        verdict: "Fenced".into(),
        drained_by: "the drain bound has passed".into(),
        at_unix_ms: NOON,
        by: "alice".into(),
        reason: "rack 4 burnt".into(),
        wanted_by: "alice".into(),
        ..Default::default()
    };
    VolumeInfo {
        fenced: vec![fenced("worker-4")],
        waiting: vec![WaitInfo {
            request: "unpublish".into(),
            node_id: "worker-1".into(),
            since_unix_ms: NOON,
            waits_for: "the drain bound".into(),
        }],
        migration: Some(MigrationInfo {
            result: "running".into(),
            vm_namespace: "prod".into(),
            vm_name: "web".into(),
            ..migration()
        }),
        past_evidence: vec![gone],
        ..volume("vm-1", vec![draining, stuck])
    }
}

#[test]
fn explain_shows_fences_evidence_and_waiting_requests() {
    assert_eq!(
        shown(&explain::volume(&in_trouble(), None), false),
        r#"
Volume vm-1 (RWO)
  namespace 0f3c1a52-5a0e-4b8e-9d2e-3f9b8a7c6d5e, 16 GiB
  minimum fence: acl
  Only nodes worker-1 and worker-2 may write to it.

Node worker-1 (primary): Draining since 2000-02-29T12:00:00Z
  epoch 5.2
  cause: forced by alice: hangs
  fence since 2000-02-29T12:00:00Z: acl, step hide
    tried reservation: no other node has the volume
  waits for the drain bound, which ends at 2000-02-29T12:01:00Z
  evidence AgentAbsent at 2000-02-29T12:00:00Z: Unknown
  not drained: its writes may still arrive
  agent reports lost, device nvme0n1, 42 writes completed
    path 10.0.1.100:4420 (nvme1): connecting, optimized
    path 10.0.2.100:4420 (nvme2): connecting, optimized
    not ready: paths: no live path is left
    WRONG DEVICE staged at /staging/vm-1: 8:16
    used by pid 7 (qemu)

Node worker-2 (migration-target): Draining since 2000-02-29T12:00:00Z
  epoch 5.3
  fence since 2000-02-29T12:00:00Z: all fencing methods failed; will retry
  waits for nothing
  agent reports nothing

Fenced nodes, quarantined until their agents report the volume absent
  node worker-4 (nqn.2026-01.test:worker-4), epoch 5.1, since 2000-02-29T12:00:00Z
    evidence TargetCut at 2000-02-29T12:00:00Z: Fenced
    drained: the drain bound has passed
    assumes: the target lands what it has within 60 s
    forced by bob: its guest hangs

Waiting requests
  unpublish for node worker-1 since 2000-02-29T12:00:00Z: waits for the drain bound

Migration of VM prod/web from worker-1 to worker-2: running
  granted, target_ready +0.412s, done +2.500s

Past attachments, and the evidence that ended them
  node worker-5, epoch 5.1
    evidence NodeGone at 2000-02-29T12:00:00Z: Fenced
    drained: the drain bound has passed
    declared gone by alice: rack 4 burnt
"#
    );
}

#[test]
fn explain_at_80_columns_wraps_between_words_and_colours_states() {
    let (wide, narrow) = (explain::volume(&in_trouble(), None), explain::volume(&in_trouble(), Some(80)));
    let (wide, narrow) = (shown(&wide, false), shown(&narrow, true));
    let differ: Vec<&str> = narrow.lines().filter(|line| !wide.lines().any(|other| other == *line)).collect();
    assert_eq!(
        differ.join("\n"),
        "\
Node worker-1 (primary): <yellow>Draining</> since 2000-02-29T12:00:00Z
  agent reports <red>lost</>, device nvme0n1, 42 writes completed
Node worker-2 (migration-target): <yellow>Draining</> since 2000-02-29T12:00:00Z
  node worker-4 (nqn.2026-01.test:worker-4), epoch 5.1, since
    2000-02-29T12:00:00Z
  unpublish for node worker-1 since 2000-02-29T12:00:00Z: waits for the drain
    bound
Migration of VM prod/web from worker-1 to worker-2: <yellow>running</>"
    );
}

#[test]
fn explain_of_a_deleted_volume_says_why_it_is_kept() {
    let deleted = VolumeInfo {
        deleted: true,
        identity: None,
        fenced: vec![fenced("worker-4")],
        ..volume("vm-3", vec![])
    };
    assert_eq!(
        shown(&explain::volume(&deleted, None), false),
        r#"
Volume vm-3 (RWO)
  minimum fence: acl
  deleted; kept until the fenced nodes' agents report it absent
  No node can write to it.

Fenced nodes, quarantined until their agents report the volume absent
  node worker-4 (nqn.2026-01.test:worker-4), epoch 5.1, since 2000-02-29T12:00:00Z
    evidence TargetCut at 2000-02-29T12:00:00Z: Fenced
    drained: the drain bound has passed
    assumes: the target lands what it has within 60 s
    forced by bob: its guest hangs

No request waits.
"#
    );
}
