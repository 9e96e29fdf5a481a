#![allow(clippy::unwrap_used)]

use cleat_core::{
    Agent, Difference, Heard, MinFence, NodeId, NodeTrouble, Overtaking, QuarantineCause, RdsFailure,
    Refusal, Rung, Tried, UnixMillis, Wait,
};
use cleat_kubernetes::api::ApiError;

use super::*;
use crate::cluster::NoMove;

fn volume() -> VolumeId {
    VolumeId::new("pvc-1").unwrap()
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn not_ready(clause: &str) -> Refusal {
    Refusal::NotReady {
        volume: volume(),
        node: node("a"),
        unready: NodeTrouble::Clause { clause: clause.into(), message: "facts".into() },
    }
}

fn rds(error: RdsFailure) -> Refusal {
    Refusal::Rds { volume: volume(), node: node("a"), error }
}

/// Every variant, with the code and what the text must say.
fn every_refusal() -> Vec<(Refusal, Code, &'static [&'static str])> {
    vec![
        (
            Refusal::AttachedElsewhere { volume: volume(), node: node("a") },
            Code::FailedPrecondition,
            &["already attached to node a. For multi-node access, use RWX with block volumes."],
        ),
        (
            Refusal::MigrationLimit { volume: volume(), nodes: vec![node("a"), node("b")] },
            Code::FailedPrecondition,
            &[
                "already attached to 2 nodes (migration limit). Wait for migration to complete. Attached nodes: a, b",
            ],
        ),
        (
            Refusal::MigrationOverdue {
                volume: volume(),
                nodes: vec![node("a"), node("b")],
                since: UnixMillis(0),
                timeout_ms: 300_000,
            },
            Code::FailedPrecondition,
            &["longer than the 300 s that it may", "detach one of its nodes: a, b"],
        ),
        (
            Refusal::NodeFull { volume: volume(), node: node("a"), limit: 16 },
            Code::ResourceExhausted,
            &["node a", "16 volumes", "--max-volumes"],
        ),
        (
            Refusal::Incompatible {
                volume: volume(),
                node: node("a"),
                difference: Difference::ReadOnly { is: false, asked: true },
            },
            Code::AlreadyExists,
            &["readonly is false"],
        ),
        (
            Refusal::Silent { node: node("a"), since: UnixMillis(951_782_400_000) },
            Code::Unavailable,
            &["node a has no session", "2000-02-29T00:00:00Z"],
        ),
        (
            Refusal::Quarantined {
                node: node("a"),
                causes: vec![QuarantineCause::Fenced {
                    volume: volume(),
                    since: UnixMillis(0),
                    source: "TargetCut",
                }],
            },
            Code::FailedPrecondition,
            &["it was fenced"],
        ),
        (not_ready("namespace-identity"), Code::FailedPrecondition, &["namespace-identity", "facts"]),
        (not_ready("holders"), Code::FailedPrecondition, &["holders"]),
        (not_ready("live-paths"), Code::Unavailable, &["live-paths"]),
        (not_ready("lost"), Code::Unavailable, &["lost"]),
        (not_ready("superseded"), Code::Aborted, &["superseded"]),
        (not_ready("internal"), Code::Internal, &["internal"]),
        (
            Refusal::InUse { volume: volume(), node: node("a"), holders: vec!["pid 3 (qemu)".into()] },
            Code::FailedPrecondition,
            &["pid 3 (qemu)", "Nothing was changed"],
        ),
        (rds(RdsFailure::NotFound("gone".into())), Code::NotFound, &["gone"]),
        (rds(RdsFailure::Refused("no".into())), Code::FailedPrecondition, &["no"]),
        (rds(RdsFailure::Full("no room".into())), Code::ResourceExhausted, &["no room"]),
        (rds(RdsFailure::Unreachable("timeout".into())), Code::Unavailable, &["timeout"]),
        (rds(RdsFailure::Unauthorised("user x".into())), Code::FailedPrecondition, &["user x"]),
        (
            Refusal::StillWaiting {
                volume: volume(),
                wait: Box::new(Wait::Inventory { node: node("a") }),
                waited_ms: 60_000,
            },
            Code::Aborted,
            &["the inventory of node a", "60000 ms", "a repeated call joins it"],
        ),
        (
            Refusal::Overtaken { volume: volume(), node: node("a"), by: Overtaking::Detach },
            Code::Aborted,
            &["a detach was asked for"],
        ),
        (Refusal::Deleting { volume: volume() }, Code::Aborted, &["a deletion is under way"]),
        (
            Refusal::RecordDeleted { volume: volume(), node: node("a") },
            Code::FailedPrecondition,
            &["somebody has deleted its record", "then repeat the call"],
        ),
        (
            Refusal::CannotFence {
                volume: volume(),
                agent: Agent { node: node("a"), heard: Heard::SilentSince(UnixMillis(0)) },
                since: UnixMillis(951_782_400_000),
                last: None,
                tried: vec![Tried { rung: Rung::Acl, result: "the target has no list".into() }],
                min_fence: MinFence::NodeGone,
            },
            Code::Unavailable,
            &["node a may still write", "acl (the target has no list)", "declare-gone a", "cleatctl fence"],
        ),
        (
            Refusal::ExportOff { volume: volume(), node: node("a"), since: UnixMillis(951_782_400_000) },
            Code::FailedPrecondition,
            &["not exported", "node a", "2000-02-29"],
        ),
        (
            Refusal::NotAttached { volume: volume(), node: node("a") },
            Code::FailedPrecondition,
            &["not attached to node a"],
        ),
        (Refusal::UnknownNode { node: node("a") }, Code::NotFound, &["node a is unknown", "check the name"]),
        (
            Refusal::NotGone { node: node("a"), since: UnixMillis(951_782_400_000) },
            Code::FailedPrecondition,
            &["cannot declare node a gone", "2000-02-29"],
        ),
        (
            Refusal::StillAttached { volume: volume(), nodes: vec![node("a")] },
            Code::FailedPrecondition,
            &["attached to a"],
        ),
    ]
}

#[test]
fn every_refusal_has_its_code_and_says_what_it_is_about() {
    for (refusal, code, says) in every_refusal() {
        let status = Status::from(CallError::from(RequestError::Refused(refusal.clone())));
        assert_eq!(status.code(), code, "{refusal:?}");
        for words in says {
            assert!(status.message().contains(words), "{:?} should say {words:?}", status.message());
        }
    }
}

fn no_migration(why: NoMove) -> NotAsClustered {
    let (others, why) = (vec![node("a")], Box::new(why));
    NotAsClustered::NoMigration { volume: volume(), node: node("b"), others, why }
}

fn migration_not_answered() -> NotAsClustered {
    let source = ApiError::Unanswered("it took too long".into());
    NotAsClustered::MigrationNotAnswered { volume: volume(), node: node("b"), source }
}

#[test]
fn a_second_node_without_a_migration_is_refused_with_what_was_found() {
    let stays = Status::from(CallError::from(no_migration(NoMove::Stays { vm: "vms/web".into() })));
    assert_eq!(stays.code(), Code::FailedPrecondition);
    for words in [
        "cannot attach volume pvc-1 to node b beside node a",
        "(requireMigration)",
        "VM vms/web has it, and has no VirtualMachineInstanceMigration",
        "migrate the VM by KubeVirt, or detach the volume from there first",
    ] {
        assert!(stays.message().contains(words), "{:?} should say {words:?}", stays.message());
    }
    for why in [NoMove::NoCluster, NoMove::NoKubeVirt] {
        let status = Status::from(CallError::from(no_migration(why)));
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().ends_with("; detach it from there first"), "{}", status.message());
    }
    let silent = Status::from(CallError::from(migration_not_answered()));
    assert_eq!(silent.code(), Code::Unavailable);
    let words = "(requireMigration): no certain answer of the API server: it took too long; repeat the call";
    assert!(silent.message().ends_with(words), "{}", silent.message());
}

/// Every variant but the core's refusals.
async fn every_other_failure() -> Vec<(CallError, Code)> {
    let panicked = tokio::spawn(async { panic!("a defect") }).await.unwrap_err();
    let lacking = vec![Tried { rung: Rung::Acl, result: "x".into() }];
    let cause = || cleat_rds::Cause::new("x");
    let from_rds = |source| CallError::Rds { volume: volume(), source };
    let unreachable = |way| RdsError::Unreachable { what: "list".into(), way, cause: cause() };
    vec![
        (CallError::Panicked(panicked), Code::Internal),
        (CallError::NoSuchFence { min_fence: MinFence::Acl, lacking }, Code::FailedPrecondition),
        (CallError::NoList(unreachable(cleat_rds::Way::Timeout)), Code::Unavailable),
        (CallError::Invalid(Invalid::new("name", "x")), Code::InvalidArgument),
        (CallError::OutOfRange("x".into()), Code::OutOfRange),
        (CallError::Engine(RequestError::Ended(EngineEnded)), Code::Unavailable),
        (CallError::Engine(RequestError::Stalled { reason: "x".into() }), Code::Unavailable),
        (CallError::Engine(RequestError::SetAside { volume: volume(), reason: "x".into() }), Code::Internal),
        (
            CallError::Engine(RequestError::NodeSetAside { node: node("a"), reason: "x".into() }),
            Code::Internal,
        ),
        (NotAsClustered::NotAsked { volume: volume(), node: node("a") }.into(), Code::FailedPrecondition),
        (NotAsClustered::StillAsked { volume: volume(), node: node("a") }.into(), Code::FailedPrecondition),
        (
            NotAsClustered::NotAnswered { volume: volume(), source: ApiError::NotFound }.into(),
            Code::Unavailable,
        ),
        (no_migration(NoMove::NoKubeVirt).into(), Code::FailedPrecondition),
        (migration_not_answered().into(), Code::Unavailable),
        (CallError::NoSuchVolume(volume()), Code::NotFound),
        (CallError::Exists { volume: volume(), difference: "size".into() }, Code::AlreadyExists),
        (CallError::Unusable { volume: volume(), problem: "x".into() }, Code::FailedPrecondition),
        (
            CallError::InProgress { volume: volume(), operation: "CreateVolume", since: "x".into() },
            Code::Aborted,
        ),
        (CallError::UnknownToken { token: "x".into() }, Code::Aborted),
        (CallError::NotListedYet, Code::Unavailable),
        (from_rds(RdsError::NotFound { what: "x".into() }), Code::NotFound),
        (from_rds(unreachable(cleat_rds::Way::Timeout)), Code::Unavailable),
        (from_rds(unreachable(cleat_rds::Way::Connect)), Code::Unavailable),
        (from_rds(RdsError::Full { what: "x".into(), detail: "x".into() }), Code::ResourceExhausted),
        (
            from_rds(RdsError::Refused {
                what: "x".into(),
                status: 500,
                message: "x".into(),
                detail: "x".into(),
            }),
            Code::FailedPrecondition,
        ),
        (
            from_rds(RdsError::Unauthorised { what: "x".into(), user: "u".into(), detail: "x".into() }),
            Code::FailedPrecondition,
        ),
        // What it did is not known: the caller must take it for "may still be under way".
        (from_rds(RdsError::Malformed { what: "x".into(), problem: "x".into() }), Code::Unavailable),
        (
            from_rds(RdsError::InDoubt {
                volume: volume(),
                earlier: "x".into(),
                wait: std::time::Duration::from_secs(1),
            }),
            Code::Unavailable,
        ),
        (from_rds(RdsError::Conflict { volume: volume(), problem: "x".into() }), Code::FailedPrecondition),
    ]
}

#[tokio::test]
async fn every_other_failure_has_its_code() {
    for (error, code) in every_other_failure().await {
        assert_eq!(error.code(), code, "{error}");
    }
}

/// The variant's name, as the documents have it.
fn variant(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").chars().take_while(char::is_ascii_alphanumeric).collect()
}

fn name(error: &CallError) -> String {
    match error {
        CallError::Engine(RequestError::Refused(Refusal::Rds { error, .. })) => {
            format!("Rds{}", variant(error))
        }
        CallError::Engine(RequestError::Refused(refusal)) => variant(refusal),
        CallError::Engine(other) => variant(other),
        CallError::Cluster(error) => variant(error),
        CallError::Rds { source, .. } | CallError::NoList(source) => format!("Rds{}", variant(source)),
        other => variant(other),
    }
}

const DOCUMENT: &str = include_str!("../../../docs/csi.md");

/// The rows of the table below a heading, each as its cells without backquotes.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let (_, after) = DOCUMENT.split_once(&format!("# {heading}\n")).expect("the heading is there");
    let table = after.lines().skip_while(|line| !line.starts_with('|')).take_while(|l| l.starts_with('|'));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|c| c.trim().replace('`', "")).collect();
    table.skip(2).map(cells).collect()
}

#[tokio::test]
async fn the_documents_have_every_failure_with_its_code_and_no_other() {
    let refusals = every_refusal().into_iter().map(|(refusal, ..)| RequestError::Refused(refusal).into());
    let others = every_other_failure().await.into_iter().map(|(error, _)| error);
    let named = |error: CallError| (name(&error), cleat_runtime::metrics::code_name(error.code()).to_owned());
    let mut real: std::collections::BTreeSet<(String, String)> = refusals.chain(others).map(named).collect();
    let standby = crate::leadership::Leadership::by_lease().elsewhere();
    real.insert(("Standby".into(), cleat_runtime::metrics::code_name(standby.code()).into()));
    let documented = rows("Codes of the controller").into_iter().map(|row| (row[0].clone(), row[1].clone()));
    assert_eq!(documented.collect::<std::collections::BTreeSet<_>>(), real);
}

#[test]
fn the_documents_say_of_each_call_the_codes_of_its_failures() {
    let mut of_calls = std::collections::BTreeMap::<String, std::collections::BTreeSet<String>>::new();
    for row in rows("Codes of the controller") {
        for call in row[2].split(", ") {
            of_calls.entry(call.to_owned()).or_default().insert(row[1].clone());
        }
    }
    let by_call = rows("By call").into_iter().map(|row| {
        (row[0].clone(), row[1].split(' ').map(str::to_owned).collect::<std::collections::BTreeSet<_>>())
    });
    assert_eq!(by_call.collect::<std::collections::BTreeMap<_, _>>(), of_calls);
}

/// The compiler asks for a case above when the core gets a new refusal.
#[test]
fn no_refusal_is_left_out() {
    let name = |refusal: &Refusal| match refusal {
        Refusal::AttachedElsewhere { .. } => 0,
        Refusal::MigrationLimit { .. } => 1,
        Refusal::Incompatible { .. } => 2,
        Refusal::Silent { .. } => 3,
        Refusal::Quarantined { .. } => 4,
        Refusal::NotReady { .. } => 5,
        Refusal::InUse { .. } => 6,
        Refusal::Rds { .. } => 7,
        Refusal::StillWaiting { .. } => 8,
        Refusal::Overtaken { .. } => 9,
        Refusal::Deleting { .. } => 10,
        Refusal::StillAttached { .. } => 11,
        Refusal::CannotFence { .. } => 12,
        Refusal::ExportOff { .. } => 13,
        Refusal::NotAttached { .. } => 14,
        Refusal::NotGone { .. } => 15,
        Refusal::UnknownNode { .. } => 16,
        Refusal::NodeFull { .. } => 17,
        Refusal::RecordDeleted { .. } => 18,
        Refusal::MigrationOverdue { .. } => 19,
    };
    let seen: std::collections::BTreeSet<i32> =
        every_refusal().iter().map(|(refusal, ..)| name(refusal)).collect();
    assert_eq!(seen, (0..20).collect());
}
