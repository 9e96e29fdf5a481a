//! Each text once, whole.

#![allow(clippy::unwrap_used)]

use cleat_core::{
    Access, Agent, AttachmentWait, BoundCause, Claim, Condition, DeviceDifference, DeviceIdentity,
    Difference, DrainCause, Drained, Epoch, Evidence, ExportFence, Fence, Heard, HolderWait, HostId, HostNqn,
    InterruptedBy, LaterTerm, ListDoubt, MinFence, NamespaceUuid, NodeTrouble, NodeUid, OlderBy, Outcome,
    Overtaking, PinHolds, QuarantineCause, RdsFailure, RdsTask, Refusal, Rung, SessionId, SessionRefusal,
    Source, TicketId, TicketWait, Trouble, VmRef, VolumeId, Wait,
};
use serde_json::json;

use super::*;

/// 2000-02-29T00:00:00Z.
const DAY: UnixMillis = UnixMillis(951_782_400_000);

fn v() -> VolumeId {
    VolumeId::new("vol").unwrap()
}

fn n(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn nqn(name: &str) -> HostNqn {
    HostNqn::new(format!("nqn.2026-01.test:{name}")).unwrap()
}

fn host_id(last: u8) -> HostId {
    HostId::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]).unwrap()
}

fn epoch(seq: u64) -> Epoch {
    Epoch { term: 7, seq }
}

fn tried(rung: Rung, result: &str) -> Tried {
    Tried { rung, result: result.to_owned() }
}

fn later() -> LaterTerm {
    LaterTerm { volume: v(), highest: Epoch { term: 99, seq: 1 }, term: 7 }
}

fn fence(rung: &str, step: &str, tried: &[(&str, &str)]) -> Box<Fence> {
    let tried: Vec<_> = tried.iter().map(|(rung, result)| json!({"rung": rung, "result": result})).collect();
    let fence = json!({
        "rung": rung, "step": step, "tried": tried, "since": 0, "touched": true, "preemptedBy": null,
    });
    serde_json::from_value(fence).unwrap()
}

fn identity(last: u8) -> Box<DeviceIdentity> {
    let uuid = format!("00000000-0000-0000-0000-{last:012x}");
    Box::new(DeviceIdentity { namespace_uuid: NamespaceUuid::parse(&uuid).unwrap(), nguid: None })
}

fn clause() -> NodeTrouble {
    NodeTrouble::Clause { clause: "live-paths".into(), message: "0 of 2 portals are live".into() }
}

fn other_device(difference: DeviceDifference) -> Refusal {
    let unready = NodeTrouble::OtherDevice { node: n("bb"), difference };
    Refusal::NotReady { volume: v(), node: n("a"), unready }
}

fn vm() -> VmRef {
    VmRef { namespace: "prod".into(), name: "web".into(), uid: "5f0c".into() }
}

fn cannot_fence(min_fence: MinFence, heard: Heard, tried: Vec<Tried>) -> Refusal {
    let last = Some(Box::new(Trouble::Progress("the kernel has been deleting nvme0 for 12.0 s".into())));
    let agent = Agent { node: n("a"), heard };
    Refusal::CannotFence { volume: v(), agent, since: DAY, last, tried, min_fence }
}

fn check<T: std::fmt::Debug>(explain: impl Fn(&T) -> String, cases: Vec<(T, &str)>) {
    for (reason, text) in cases {
        assert_eq!(explain(&reason), text, "{reason:?}");
    }
}

#[test]
fn moments_read_as_utc_dates() {
    assert_eq!(when(UnixMillis(0)), "1970-01-01T00:00:00Z");
    assert_eq!(when(UnixMillis(951_782_399_000)), "2000-02-28T23:59:59Z");
    assert_eq!(when(DAY), "2000-02-29T00:00:00Z");
    assert_eq!(when(UnixMillis(1_798_761_599_999)), "2026-12-31T23:59:59Z");
}

#[test]
fn refusals() {
    check(
        refusal,
        vec![
            (
                Refusal::AttachedElsewhere { volume: v(), node: n("a") },
                "Volume vol already attached to node a. For multi-node access, use RWX with block volumes.",
            ),
            (
                Refusal::MigrationLimit { volume: v(), nodes: vec![n("a"), n("bb")] },
                "Volume vol already attached to 2 nodes (migration limit). Wait for migration to \
                 complete. Attached nodes: a, bb",
            ),
            (
                Refusal::MigrationOverdue {
                    volume: v(),
                    nodes: vec![n("a"), n("bb")],
                    since: DAY,
                    timeout_ms: 300_000,
                },
                "cannot attach volume vol to one more node: its migration began 2000-02-29T00:00:00Z and has taken longer \
                 than the 300 s that it may; see what keeps the VM, and detach one of its nodes: a, bb",
            ),
            (
                Refusal::NodeFull { volume: v(), node: n("a"), limit: 16 },
                "cannot attach volume vol to node a: it has 16 volumes, which is its limit (--max-volumes of its agent); \
                 detach one there, use another node, or raise the limit",
            ),
            (
                Refusal::Incompatible {
                    volume: v(),
                    node: n("a"),
                    difference: Difference::ReadOnly { is: false, asked: true },
                },
                "cannot attach volume vol to node a: it is attached there with other arguments: readonly \
                 is false, asked for true; unpublish it first, or ask for what it is",
            ),
            (
                Refusal::Incompatible {
                    volume: v(),
                    node: n("a"),
                    difference: Difference::Access { is: Access::Rwo, asked: Access::RwxBlock },
                },
                "cannot attach volume vol to node a: it is attached there with other arguments: access is \
                 RWO, asked for RWX block; unpublish it first, or ask for what it is",
            ),
            (
                Refusal::Silent { node: n("a"), since: DAY },
                "cannot attach to node a: node a has no session with the controller since \
                 2000-02-29T00:00:00Z; check that cleat-agent runs there and reaches the controller",
            ),
            (
                Refusal::Quarantined {
                    node: n("a"),
                    causes: vec![
                        QuarantineCause::Fenced { volume: v(), since: DAY, source: "TargetCut" },
                        QuarantineCause::ClaimsTooMuch { volume: v(), since: DAY },
                    ],
                },
                "cannot attach to node a: it is quarantined: it was fenced from volume vol at \
                 2000-02-29T00:00:00Z (TargetCut) and has not shown yet that it holds none of it; bring its agent back to \
                 show it; it reports that it holds volume vol, which it was not let in to, and has not shown since \
                 2000-02-29T00:00:00Z that it does not; check nvme list-subsys there, and its agent",
            ),
            (
                Refusal::Quarantined { node: n("a"), causes: vec![QuarantineCause::LaterTerm(later())] },
                "cannot attach to node a: it is quarantined: it has seen epoch 99.1 of volume vol, and \
                 this controller's term is only 7: another controller grants, or this one's clock was set back and \
                 its store lost or an older one restored; stop the other controller, or set the clock and restart \
                 this one; restart the agent if its state is wrong",
            ),
            (
                Refusal::NotReady { volume: v(), node: n("a"), unready: clause() },
                "cannot attach volume vol to node a: live-paths: 0 of 2 portals are live; see cleatctl explain vol",
            ),
            (
                Refusal::NotReady {
                    volume: v(),
                    node: n("a"),
                    unready: NodeTrouble::OtherNamespace { found: identity(1), pinned: identity(2) },
                },
                "cannot attach volume vol to node a: identity: the namespace is not the one that was attached \
                 before: found UUID 00000000-0000-0000-0000-000000000001, no NGUID, expected UUID \
                 00000000-0000-0000-0000-000000000002, no NGUID; see cleatctl explain vol",
            ),
            (
                other_device(DeviceDifference::Size { found: 1 << 30, other: 2 << 30 }),
                "cannot attach volume vol to node a: size: the device has 1073741824 bytes here, and has 2147483648 on node \
                 bb, which has the volume, too; see cleatctl explain vol",
            ),
            (
                other_device(DeviceDifference::ReadOnly { found: true }),
                "cannot attach volume vol to node a: read-only: the device is read-only here, and is writable on node bb, \
                 which has the volume, too; see cleatctl explain vol",
            ),
            (
                other_device(DeviceDifference::BlockSize { found: 512, other: 4096 }),
                "cannot attach volume vol to node a: block-size: the device has blocks of 512 bytes here, and has blocks of \
                 4096 on node bb, which has the volume, too; see cleatctl explain vol",
            ),
            (
                Refusal::NotReady {
                    volume: v(),
                    node: n("a"),
                    unready: NodeTrouble::OtherEpoch { highest: epoch(3), ended: true, granted: epoch(2) },
                },
                "cannot attach volume vol to node a: epoch: the node has seen epoch 7.3, which has ended, not 7.2; \
                 see cleatctl explain vol",
            ),
            (
                Refusal::NotReady { volume: v(), node: n("a"), unready: NodeTrouble::LaterTerm(later()) },
                "cannot attach volume vol to node a: epoch: it has seen epoch 99.1 of volume vol, and this \
                 controller's term is only 7: another controller grants, or this one's clock was set back \
                 and its store lost or an older one restored; stop the other controller, or set the clock \
                 and restart this one; restart the agent if its state is wrong; see cleatctl explain vol",
            ),
            (
                Refusal::NotReady {
                    volume: v(),
                    node: n("a"),
                    unready: NodeTrouble::Lost { unready: Some("live-paths: none".into()) },
                },
                "cannot attach volume vol to node a: lost: live-paths: none; see cleatctl explain vol",
            ),
            (
                Refusal::NotReady { volume: v(), node: n("a"), unready: NodeTrouble::Lost { unready: None } },
                "cannot attach volume vol to node a: lost: the agent does not list it; see cleatctl explain vol",
            ),
            (
                Refusal::InUse {
                    volume: v(),
                    node: n("a"),
                    holders: vec!["pid 312 (qemu)".into(), "mount /x".into()],
                },
                "cannot detach: volume vol is in use on node a: pid 312 (qemu); mount /x. Nothing was changed; \
                 stop what uses it, then detach again",
            ),
            (
                Refusal::Rds { volume: v(), node: n("a"), error: RdsFailure::Unreachable("timeout".into()) },
                "cannot change the access of node a to volume vol: the RDS: unreachable: timeout",
            ),
            (
                Refusal::StillWaiting {
                    volume: v(),
                    wait: Box::new(Wait::Inventory { node: n("a") }),
                    waited_ms: 60_000,
                },
                "volume vol still waits for the inventory of node a (waited 60000 ms); it goes on, and a \
                 repeated call joins it",
            ),
            (
                Refusal::Overtaken { volume: v(), node: n("a"), by: Overtaking::Detach },
                "cannot attach volume vol to node a: a detach was asked for meanwhile; publish it again \
                 if it is wanted there",
            ),
            (
                Refusal::Overtaken { volume: v(), node: n("a"), by: Overtaking::Fence },
                "cannot attach volume vol to node a: a fence was asked for meanwhile; publish it again if \
                 it is wanted there",
            ),
            (
                Refusal::Overtaken { volume: v(), node: n("a"), by: Overtaking::DeclaredGone },
                "cannot attach volume vol to node a: the node was declared gone meanwhile; publish it \
                 again if it is wanted there",
            ),
            (
                Refusal::Deleting { volume: v() },
                "cannot grant or delete volume vol: a deletion is under way; if it was not answered, repeat \
                 DeleteVolume",
            ),
            (
                Refusal::RecordDeleted { volume: v(), node: n("a") },
                "cannot attach volume vol to node a: somebody has deleted its record, which takes no new node and \
                 goes once no node may write any more; detach the volume from the nodes that have it, then repeat \
                 the call",
            ),
            (
                Refusal::StillAttached { volume: v(), nodes: vec![n("a"), n("bb")] },
                "cannot delete volume vol: it is attached to a, bb; detach it first",
            ),
            (
                cannot_fence(
                    MinFence::NodeGone,
                    Heard::SilentSince(DAY),
                    vec![
                        tried(Rung::Acl, "the target keeps to no list of hosts"),
                        tried(Rung::NodeGone, "nobody has declared the node gone"),
                    ],
                ),
                "cannot free volume vol: node a may still write to it and could not be fenced. The agent \
                 of node a, silent since 2000-02-29T00:00:00Z, has not detached it since \
                 2000-02-29T00:00:00Z (last: the kernel has been deleting nvme0 for 12.0 s). Tried: acl \
                 (the target keeps to no list of hosts); node-gone (nobody has declared the node gone); \
                 the controller goes on trying. If the node comes back it is detached as usual. If it is \
                 known to be off: cleatctl node declare-gone a --reason …, or the taint \
                 node.kubernetes.io/out-of-service. After changing the target: cleatctl fence vol a \
                 --reason …",
            ),
            (
                cannot_fence(MinFence::Reservation, Heard::Ready, vec![]),
                "cannot free volume vol: node a may still write to it and could not be fenced. The agent \
                 of node a has not detached it since 2000-02-29T00:00:00Z (last: the kernel has been \
                 deleting nvme0 for 12.0 s). Tried: nothing: the target has no way to fence; the \
                 controller goes on trying. Bring its agent back: its own proof always suffices, and a \
                 person's statement does not for minFence=reservation; or, where two nodes may have it, \
                 attach the volume to a second node, which can preempt this one. After changing the \
                 target: cleatctl fence vol a --reason …",
            ),
            (
                cannot_fence(MinFence::Acl, Heard::NeverSince(DAY), vec![]),
                "cannot free volume vol: node a may still write to it and could not be fenced. The agent \
                 of node a, not heard since 2000-02-29T00:00:00Z, has not detached it since \
                 2000-02-29T00:00:00Z (last: the kernel has been deleting nvme0 for 12.0 s). Tried: \
                 nothing: the target has no way to fence; the controller goes on trying. Bring its agent \
                 back: its own proof always suffices, and a person's statement does not for minFence=acl. \
                 After changing the target: cleatctl fence vol a --reason …",
            ),
            (
                Refusal::ExportOff { volume: v(), node: n("a"), since: DAY },
                "cannot attach: volume vol is not exported: node a was fenced by that alone at \
                 2000-02-29T00:00:00Z. Bring the agent of a back: once it shows that it holds none of the \
                 volume, the export comes back; if the node is off for good: cleatctl node declare-gone a --reason …",
            ),
            (
                Refusal::NotAttached { volume: v(), node: n("a") },
                "cannot fence: volume vol is not attached to node a, so there is nothing to fence",
            ),
            (
                Refusal::UnknownNode { node: n("a") },
                "node a is unknown: it has no volume, and no agent of that name has connected since the \
                 controller began; check the name, and that cleat-agent runs there",
            ),
            (
                Refusal::NotGone { node: n("a"), since: DAY },
                "cannot declare node a gone: its agent has been connected since 2000-02-29T00:00:00Z; \
                 detach or fence its volumes instead",
            ),
        ],
    );
}

#[test]
fn waits_of_requests() {
    let holder = |name: &str, condition| HolderWait {
        node: n(name),
        wait: Some(AttachmentWait { condition, last: None }),
    };
    check(
        wait,
        vec![
            (
                Wait::FirstList { since: DAY, last: Some("connection refused".into()) },
                "the RDS to list its volumes and who may connect to them, which it has not since the \
                 controller began at 2000-02-29T00:00:00Z (last: connection refused)",
            ),
            (
                Wait::ListOf { volume: v(), lacked_for_ms: 10_000, last: None },
                "the RDS to list volume vol, or to go on lacking it for 10 s: a list may lack a volume \
                 for a moment",
            ),
            (
                Wait::ReadableList { volume: v(), problem: "two disks of that name".into() },
                "the RDS to say who may connect to volume vol: two disks of that name",
            ),
            (
                Wait::Reports { volume: v(), nodes: vec![n("a"), n("bb")], doubt: ListDoubt::FoundOff },
                "the agent of a, bb to report what it holds of volume vol: its export was found off, and \
                 no record says why",
            ),
            (
                Wait::Reports { volume: v(), nodes: vec![n("a")], doubt: ListDoubt::NoList },
                "the agent of a to report what it holds of volume vol: there is no record of it, and the \
                 RDS keeps no list of hosts",
            ),
            (
                Wait::ListDrainBound { volume: v(), until: DAY, doubt: ListDoubt::FoundOn },
                "the drain bound of the target, until 2000-02-29T00:00:00Z: volume vol: by its record its \
                 export is off, and it was found on",
            ),
            (
                Wait::Reports { volume: v(), nodes: vec![n("a")], doubt: ListDoubt::Unclear },
                "the agent of a to report what it holds of volume vol: there is no record of it, and a \
                 VolumeAttachment of a node does not say which volume it is about",
            ),
            (Wait::Inventory { node: n("a") }, "the inventory of node a"),
            (
                Wait::Room { node: n("a"), limit: 16 },
                "one of the 16 volumes of node a, which may have no more (--max-volumes), to be detached there",
            ),
            (
                Wait::Leaving { node: n("a"), vm: vm(), wait: None },
                "node a to be detached, where VM prod/web does not need it any more since its migration is over: no \
                 Unpublish has come yet",
            ),
            (
                Wait::Leaving {
                    node: n("a"),
                    vm: vm(),
                    wait: Some(AttachmentWait { condition: Condition::HostDenied, last: None }),
                },
                "node a to be detached, where VM prod/web does not need it any more since its migration is over: it waits \
                 for the RDS to take the host of node a off its list",
            ),
            (
                Wait::Ticket {
                    node: n("a"),
                    ticket: TicketId::new("nightly").unwrap(),
                    holder: "velero".into(),
                    until: Some(DAY),
                },
                "ticket nightly of velero to let go of the volume on node a, which is cut off from it at \
                 2000-02-29T00:00:00Z",
            ),
            (
                Wait::Ticket {
                    node: n("a"),
                    ticket: TicketId::new("copy").unwrap(),
                    holder: String::new(),
                    until: None,
                },
                "ticket copy to be done with the volume on node a: it is not interrupted",
            ),
            (
                Wait::Holders(vec![
                    holder("a", Condition::HostDenied),
                    HolderWait { node: n("bb"), wait: None },
                ]),
                "the RDS to take the host of node a off its list; and for an Unpublish of node bb: it was \
                 granted the volume since",
            ),
        ],
    );
}

#[test]
fn waits_of_attachments() {
    let agent = |heard| Agent { node: n("a"), heard };
    let bound = |why| Condition::DrainBound { node: n("a"), until: DAY, why };
    let plain = |condition| AttachmentWait { condition, last: None };
    let acl = ExportFence { node: n("bb"), rung: Rung::Acl, since: DAY };
    let fenced = |rung, step, tried: &[_]| {
        let fence = Some(fence(rung, step, tried));
        plain(Condition::Detached { agent: agent(Heard::Ready), fence })
    };
    check(
        |wait| attachment_wait(&n("a"), wait),
        vec![
            (
                plain(Condition::DeviceBack { node: n("a"), unready: "live-paths: lost".into() }),
                "node a to have its device back (live-paths: lost)",
            ),
            (
                plain(Condition::CallAboutStray { node: n("a") }),
                "a call about node a, which holds it without a grant: publish it there, or unpublish it",
            ),
            (
                plain(Condition::RepeatedPublish { node: n("a") }),
                "a Publish on node a: it was being granted when the controller started",
            ),
            (
                plain(Condition::FencedNodeClean { volume: v(), node: n("bb"), since: DAY }),
                "the agent of node bb to show that it holds none of volume vol: it was fenced by taking \
                 the export off alone, at 2000-02-29T00:00:00Z, which stays off until then",
            ),
            (
                plain(Condition::ExportOn { volume: v(), fences: vec![acl.clone(), acl] }),
                "the RDS to bring the export of volume vol back, which was taken off for the fence of \
                 node bb (rung acl, since 2000-02-29T00:00:00Z) and the fence of node bb (rung acl, since \
                 2000-02-29T00:00:00Z)",
            ),
            (
                plain(Condition::ExportOn { volume: v(), fences: vec![] }),
                "the RDS to bring the export of volume vol back, which was taken off for a fence that is \
                 over",
            ),
            (plain(Condition::HostAllowed), "the RDS to allow the host of node a"),
            (
                plain(Condition::Ready(agent(Heard::Ready))),
                "the agent of node a to connect and prove that it can use the device",
            ),
            (
                plain(Condition::Ready(agent(Heard::NoInventory))),
                "the agent of node a, whose inventory is not in yet, to connect and prove that it can use \
                 the device",
            ),
            (
                plain(Condition::Ready(agent(Heard::SilentSince(DAY)))),
                "the agent of node a, silent since 2000-02-29T00:00:00Z, to connect and prove that it can \
                 use the device",
            ),
            (
                plain(Condition::GrantAnswered),
                "the RDS's answer to the grant of node a, which is being taken back",
            ),
            (
                AttachmentWait {
                    condition: Condition::Detached { agent: agent(Heard::NeverSince(DAY)), fence: None },
                    last: Some(clause_trouble()),
                },
                "the agent of node a, not heard since 2000-02-29T00:00:00Z, to detach and prove that \
                 nothing of it is left (last: live-paths: 0 of 2 portals are live)",
            ),
            (
                fenced("export-off", "hide", &[("acl", "the target keeps to no list of hosts")]),
                "the agent of node a to detach and prove that nothing of it is left; and for its fence: \
                 rung export-off, the RDS to take the export off, after acl (the target keeps to no list \
                 of hosts)",
            ),
            (
                fenced("acl", "deny", &[]),
                "the agent of node a to detach and prove that nothing of it is left; and for its fence: \
                 rung acl, the RDS to take the host off its list",
            ),
            (
                fenced("reservation", "preempt", &[]),
                "the agent of node a to detach and prove that nothing of it is left; and for its fence: \
                 rung reservation, another node to preempt the registration",
            ),
            (
                fenced("secret", "set-secret", &[]),
                "the agent of node a to detach and prove that nothing of it is left; and for its fence: \
                 rung secret, the RDS to put another secret in force",
            ),
            (
                fenced("secret", "rekey", &[]),
                "the agent of node a to detach and prove that nothing of it is left; and for its fence: \
                 rung secret, the other nodes to take over the new secret",
            ),
            (
                fenced("acl", "refused", &[("acl", "x"), ("node-gone", "y")]),
                "the agent of node a to detach and prove that nothing of it is left; and for its fence: \
                 all fencing methods failed, the controller will retry: acl (x); node-gone (y)",
            ),
            (
                plain(Condition::Drained { node: n("a"), fence: fence("barrier", "hide", &[]) }),
                "what node a wrote to be drained: rung barrier, the RDS to take the export off",
            ),
            (
                plain(bound(BoundCause::MayHaveBroken)),
                "the drain bound of the target, until 2000-02-29T00:00:00Z: node a holds none of it, but \
                 a connection may have broken under its user, so writes may still be on their way",
            ),
            (
                plain(bound(BoundCause::DeclaredGone)),
                "the drain bound of the target, until 2000-02-29T00:00:00Z: node a was declared gone, so \
                 writes may still be on their way",
            ),
            (
                plain(bound(BoundCause::CutWithoutDrain)),
                "the drain bound of the target, until 2000-02-29T00:00:00Z: node a was cut off by a \
                 target that is not known to wait for received writes, so writes may still be on their \
                 way",
            ),
            (plain(Condition::HostDenied), "the RDS to take the host of node a off its list"),
        ],
    );
}

fn clause_trouble() -> Trouble {
    Trouble::Unready(clause())
}

#[test]
fn troubles() {
    let rds = |task| Trouble::Rds { task, error: RdsFailure::NotFound("volume vol".into()) };
    let (by, reason) = ("ann".to_owned(), "unplugged".to_owned());
    let session = SessionId::new("s1").unwrap();
    check(
        trouble,
        vec![
            (rds(RdsTask::Allow), "the RDS did not allow the host: not found: volume vol"),
            (rds(RdsTask::Deny), "the RDS did not take the host off its list: not found: volume vol"),
            (rds(RdsTask::ExportOff), "the RDS did not take the export off: not found: volume vol"),
            (rds(RdsTask::ExportOn), "the RDS did not bring the export back: not found: volume vol"),
            (rds(RdsTask::SetSecret), "the RDS did not put the secret in force: not found: volume vol"),
            (clause_trouble(), "live-paths: 0 of 2 portals are live"),
            (
                Trouble::Progress("the kernel has been deleting nvme0 for 20.0 s".into()),
                "the kernel has been deleting nvme0 for 20.0 s",
            ),
            (
                Trouble::InUse { holders: vec!["pid 312 (qemu)".into(), "mount /x".into()] },
                "in use: pid 312 (qemu); mount /x",
            ),
            (
                Trouble::UnexpectedOutcome(Box::new(Outcome::Rekeyed)),
                "the agent's outcome does not belong to its directive: Rekeyed",
            ),
            (
                Trouble::RungFailed { rung: Rung::Acl, result: "the RDS did not".into() },
                "fencing by acl failed: the RDS did not",
            ),
            (
                Trouble::ProofOlderThanList,
                "the record of its end may be older than the RDS's list, which its host is on",
            ),
            (
                Trouble::RecordOlder(OlderBy::NotListed),
                "the record is out of date: its host is not on the RDS's list any more",
            ),
            (
                Trouble::RecordOlder(OlderBy::LaterGrant),
                "the record is out of date: the node has had a later grant of it",
            ),
            (Trouble::ListedWithoutRecord, "its host is on the RDS's list without a record"),
            (Trouble::KeptOut, "somebody else has taken its host off the RDS's list; it is put there again"),
            (Trouble::HeldWithoutGrant, "held without a grant"),
            (
                Trouble::ClaimsTooMuch,
                "it reports that it holds the volume, but the RDS has ended all sessions since and not \
                 let it in",
            ),
            (
                Trouble::FenceAsked { by: by.clone(), reason: reason.clone() },
                "ann asked for a fence: unplugged",
            ),
            (Trouble::DeclaredGone { by, reason }, "ann declared the node gone: unplugged"),
            (
                Trouble::HeardThoughGone { session: session.clone(), may_write_again: false },
                "declared gone, and connected again on session s1",
            ),
            (
                Trouble::HeardThoughGone { session, may_write_again: true },
                "declared gone, and connected again on session s1: it counts as able to write again",
            ),
        ],
    );
}

#[test]
fn refusals_of_sessions_name_both_sides() {
    let shared = |claim| SessionRefusal::SharedIdentity { node: n("bb"), other: n("a"), claim };
    let (host_nqn, holder) = (nqn("b"), nqn("a"));
    let pinned = |holds| SessionRefusal::Pinned {
        node: n("a"),
        pinned: (nqn("a"), host_id(1)),
        new: (nqn("b"), host_id(2)),
        holds,
    };
    check(
        session_refusal,
        vec![
            (SessionRefusal::Replaced { node: n("a") }, "node a has opened a new session"),
            (
                SessionRefusal::ReservedName { node: n("unknown-host.x") },
                "no node may be called unknown-host.x: names that begin so stand for hosts that no node \
                 is known to be; give it another --node-id",
            ),
            (
                shared(Claim::HostNqn(nqn("a"))),
                "nodes bb and a both claim host NQN nqn.2026-01.test:a: give each host its own \
                 /etc/nvme/hostnqn and hostid; or, if it is one host that was called a before: cleatctl \
                 node declare-gone a --reason …",
            ),
            (
                shared(Claim::HostId(host_id(1))),
                "nodes bb and a both claim host id 00000000-0000-0000-0000-000000000001: give each host \
                 its own /etc/nvme/hostnqn and hostid; or, if it is one host that was called a before: \
                 cleatctl node declare-gone a --reason …",
            ),
            (
                SessionRefusal::HolderHasHostNqn { node: n("bb"), other: n("a"), host_nqn: nqn("a") },
                "nodes bb and a both claim host NQN nqn.2026-01.test:a, and a holds a volume under it; \
                 give each host its own /etc/nvme/hostnqn",
            ),
            (
                SessionRefusal::OtherHostMayHold { node: n("a"), host_nqn, holder },
                "two hosts claim to be node a: nqn.2026-01.test:b, and nqn.2026-01.test:a, which may \
                 still hold a volume; if that one is off for good: cleatctl node declare-gone a --reason \
                 …",
            ),
            (
                SessionRefusal::TwoHosts {
                    node: n("a"),
                    known: (nqn("a"), host_id(1)),
                    new: (nqn("b"), host_id(2)),
                },
                "two hosts claim to be node a: nqn.2026-01.test:a (host id \
                 00000000-0000-0000-0000-000000000001) and nqn.2026-01.test:b (host id \
                 00000000-0000-0000-0000-000000000002); give each its own --node-id",
            ),
            (
                pinned(PinHolds::SameNode(NodeUid::new("u1").unwrap())),
                "node a is host NQN nqn.2026-01.test:a with host id \
                 00000000-0000-0000-0000-000000000001 by its record, and its agent says host NQN \
                 nqn.2026-01.test:b with host id 00000000-0000-0000-0000-000000000002; its Node is the \
                 one that it was (UID u1); give it the first pair in /etc/nvme/hostnqn and hostid; or, \
                 if it is to be the second one and the first is off for good: kubectl edit cleatnode a \
                 (in a cluster), or cleatctl node declare-gone a --reason …",
            ),
            (
                pinned(PinHolds::NodeUnknown),
                "node a is host NQN nqn.2026-01.test:a with host id \
                 00000000-0000-0000-0000-000000000001 by its record, and its agent says host NQN \
                 nqn.2026-01.test:b with host id 00000000-0000-0000-0000-000000000002; it is not known \
                 that its Node is another one; give it the first pair in /etc/nvme/hostnqn and hostid; \
                 or, if it is to be the second one and the first is off for good: kubectl edit \
                 cleatnode a (in a cluster), or cleatctl node declare-gone a --reason …",
            ),
            (
                pinned(PinHolds::InDoubt { volume: None }),
                "node a is host NQN nqn.2026-01.test:a with host id \
                 00000000-0000-0000-0000-000000000001 by its record, and its agent says host NQN \
                 nqn.2026-01.test:b with host id 00000000-0000-0000-0000-000000000002; the first one may \
                 write to any volume, for the RDS's lists were not read yet, or a VolumeAttachment of the \
                 node does not say which volume it is about; give it the first \
                 pair in /etc/nvme/hostnqn and hostid; or, if it is to be the second one and the first \
                 is off for good: cleatctl node declare-gone a --reason …",
            ),
            (
                pinned(PinHolds::Holds { volume: v() }),
                "node a is host NQN nqn.2026-01.test:a with host id \
                 00000000-0000-0000-0000-000000000001 by its record, and its agent says host NQN \
                 nqn.2026-01.test:b with host id 00000000-0000-0000-0000-000000000002; the first one may \
                 write to volume vol, under the NQN that both have; give it the first pair in \
                 /etc/nvme/hostnqn and hostid; or, if it is to be the second one and the first is off \
                 for good: cleatctl node declare-gone a --reason …",
            ),
            (
                pinned(PinHolds::InDoubt { volume: Some(v()) }),
                "node a is host NQN nqn.2026-01.test:a with host id \
                 00000000-0000-0000-0000-000000000001 by its record, and its agent says host NQN \
                 nqn.2026-01.test:b with host id 00000000-0000-0000-0000-000000000002; it is not known \
                 that the first one may not write to volume vol; give it the \
                 first pair in /etc/nvme/hostnqn and hostid; or, if it is to be the second one and the \
                 first is off for good: cleatctl node declare-gone a --reason …",
            ),
        ],
    );
}

#[test]
fn evidence_names_what_it_assumes_and_how_it_is_drained() {
    let proof = |source, drained| Evidence {
        node: n("a"),
        epoch: epoch(1),
        source,
        drained,
        at: DAY,
        statement: None,
    };
    let gone = || Source::NodeGone { by: "ann".into(), reason: "unplugged".into() };
    let bound = Drained::Bound { until: DAY };
    let cut = |secret| Source::TargetCut { acl: true, secret };
    check(
        |evidence| format!("{} / {}", assumption(evidence).unwrap_or_default(), drained_by(evidence, DAY)),
        vec![
            (proof(Source::NeverAllowed, Drained::NeverHandedOut), " / the volume was never handed out"),
            (
                proof(Source::NeverAllowed, Drained::LiveDeletion),
                " / every controller was live when it was deleted",
            ),
            (
                proof(cut(None), Drained::Barrier),
                "the target refuses a host that is not on its list, and export off ends its sessions; the \
                 target's export off waits for every write it has received / the target took the \
                 namespace down, which waits for every write",
            ),
            (
                proof(cut(Some(epoch(1))), Drained::Barrier),
                "the target refuses a host without the secret, and export off ends its sessions; the \
                 target's export off waits for every write it has received / the target took the \
                 namespace down, which waits for every write",
            ),
            (
                proof(Source::Reservation { by: n("bb") }, Drained::Abort),
                "the target refuses writes without a registration, and a host that is not on its list; \
                 and the node's agent does not register again where it was preempted; the target's \
                 preempt-and-abort waits for what is in flight / the target's abort waits for what is in \
                 flight",
            ),
            (
                proof(Source::ExportOff, Drained::Barrier),
                "export off ends all sessions, and nobody else turns it on; the target's export off waits \
                 for every write it has received / the target took the namespace down, which waits for \
                 every write",
            ),
            (
                proof(gone(), bound.clone()),
                "ann is right that the node is gone and stays so (unplugged); nothing proves it; the \
                 target lands or drops every write it has received within the drain bound / the drain \
                 bound has passed",
            ),
        ],
    );
    assert_eq!(drained_by(&proof(gone(), bound), UnixMillis(0)), "", "the bound has not passed");
}

#[test]
fn causes_of_a_detach() {
    let (by, reason) = ("ann".to_owned(), "it hangs".to_owned());
    let ticket = TicketId::new("csi.bb").unwrap();
    let workload = InterruptedBy::Workload { ticket, node: n("bb") };
    check(
        drain_cause,
        vec![
            (DrainCause::Requested, "a detach was asked for"),
            (DrainCause::Rollback, "the attach did not succeed, or was given up"),
            (DrainCause::Unwanted, "the tickets that it was there for have gone"),
            (
                DrainCause::Interrupted { by: workload },
                "its tickets have had their time to let go: a workload wants it on node bb (ticket csi.bb)",
            ),
            (
                DrainCause::Interrupted { by: InterruptedBy::Unpublish },
                "its tickets have had their time to let go: a detach was asked for",
            ),
            (
                DrainCause::Interrupted { by: InterruptedBy::Silence },
                "its tickets have had their time to let go: none of them is renewed any more",
            ),
            (DrainCause::Forced { by: by.clone(), reason: reason.clone() }, "forced by ann: it hangs"),
            (DrainCause::Gone { by, reason }, "the node was declared gone by ann: it hangs"),
        ],
    );
}

#[test]
fn waits_of_tickets() {
    let id = |name: &str| TicketId::new(name).unwrap();
    check(
        ticket_wait,
        vec![
            (TicketWait::Detaches { node: n("a") }, "node a to be proven off the volume"),
            (
                TicketWait::Yielding { node: n("a"), ticket: id("nightly"), until: DAY },
                "ticket nightly to let go of the volume on node a, until 2000-02-29T00:00:00Z",
            ),
            (
                TicketWait::YieldsTo { ticket: id("csi.bb"), node: n("bb") },
                "ticket csi.bb, which comes first, to have the volume on node bb",
            ),
            (TicketWait::Elsewhere { nodes: vec![n("a"), n("bb")] }, "a, bb, which keeps the volume"),
            (TicketWait::Queue { behind: id("csi.bb") }, "ticket csi.bb, which comes first"),
            (TicketWait::AnyNode, "any node to have the volume: it names none"),
            (
                TicketWait::Room { limit: 32 },
                "another ticket of the volume to go: it has 32, and may have no more",
            ),
            (
                TicketWait::RoomOfAll { limit: 4096 },
                "another ticket to go: the controller keeps 4096 in all, and no more",
            ),
            (
                TicketWait::Renewal { since: DAY },
                "its holder to renew it, who did so last at 2000-02-29T00:00:00Z",
            ),
        ],
    );
    let deleting = TicketWait::Node(Box::new(Refusal::Deleting { volume: v() }));
    assert!(ticket_wait(&deleting).starts_with("its node: cannot"), "{}", ticket_wait(&deleting));
    assert_eq!(ticket_waits_on(&deleting), "");
    assert_eq!(ticket_waits_on(&TicketWait::Queue { behind: id("csi.bb") }), "ticket csi.bb");
}
