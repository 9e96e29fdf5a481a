#![allow(clippy::unwrap_used)]

use cleat_core::{
    Agent, Difference, Heard, MinFence, NodeId, NodeTrouble, Overtaking, QuarantineCause, RdsFailure,
    Refusal, Rung, Tried, UnixMillis, Wait,
};

use super::*;

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

#[test]
fn every_other_failure_has_its_code() {
    let cause = || cleat_rds::Cause::new("x");
    let from_rds = |source| CallError::Rds { volume: volume(), source };
    let unreachable = |way| RdsError::Unreachable { what: "list".into(), way, cause: cause() };
    let cases = [
        (CallError::Invalid(Invalid::new("name", "x")), Code::InvalidArgument),
        (CallError::OutOfRange("x".into()), Code::OutOfRange),
        (CallError::Engine(RequestError::Ended(EngineEnded)), Code::Unavailable),
        (CallError::Engine(RequestError::Stalled { reason: "x".into() }), Code::Unavailable),
        (CallError::Engine(RequestError::SetAside { volume: volume(), reason: "x".into() }), Code::Internal),
        (CallError::NoSuchVolume(volume()), Code::NotFound),
        (CallError::Exists { volume: volume(), difference: "size".into() }, Code::AlreadyExists),
        (CallError::Unusable { volume: volume(), problem: "x".into() }, Code::FailedPrecondition),
        (
            CallError::InProgress { volume: volume(), operation: "CreateVolume", since: "x".into() },
            Code::Aborted,
        ),
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
    ];
    for (error, code) in cases {
        assert_eq!(error.code(), code, "{error}");
    }
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
    };
    let seen: std::collections::BTreeSet<i32> =
        every_refusal().iter().map(|(refusal, ..)| name(refusal)).collect();
    assert_eq!(seen, (0..17).collect());
}
