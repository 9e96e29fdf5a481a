//! Names of the small world, and what a history can do in it.

use cleat_core::{Access, HostNqn, MinFence, NodeId, Refusal, Reply, Target, VolumeId, VolumeSpec};

/// The world that a history begins with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Setup {
    /// How many nodes.
    pub(crate) nodes: u8,
    /// How many volumes: volume 0 is RWO, the others RWX block.
    pub(crate) volumes: u8,
    /// What the target does; the controller knows it.
    pub(crate) target: Target,
    /// The weakest fence that suffices, for each volume.
    pub(crate) min_fence: MinFence,
}

/// Something that happens in the world. Volumes first, then nodes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Publish(u8, u8),
    Unpublish(u8, u8),
    UnpublishAll(u8),
    /// A person wants a node fenced.
    Fence(u8, u8),
    /// A node is switched off, and a person says so.
    DeclareGone(u8),
    /// The node is switched off (its agent is not heard until it is on again), or on.
    Power(u8, bool),
    /// The RDS answers its oldest request.
    Rds(RdsAnswer),
    ToAgent(u8),
    ToController(u8),
    Connect(u8),
    Drop(u8),
    /// Something said on an older session reaches the agent after all.
    Echo(u8),
    /// A directive of a controller that has died reaches the agent late.
    Late(u8),
    /// An answer that the controller has had already comes once more, on the newest session.
    EchoAnswer(u8),
    AgentRestart(u8),
    /// The agent does not reach the controller, or does again.
    Mute(u8, bool),
    /// The node reaches neither the controller nor the target.
    Partition(u8),
    Reboot(u8),
    PathsDie(u8, u8),
    /// The network is back: what the kernel holds connects again where the target lets it, and its queue is sent.
    PathsReturn(u8, u8),
    /// The kernel takes a connection away that has been dead for too long.
    KernelGivesUp(u8, u8),
    /// The node cannot reach the target: what is not connected yet does not connect.
    Cut(u8, bool),
    Open(u8, u8),
    Close(u8, u8),
    /// Deleting a controller blocks in the node's kernel, or does so no longer.
    Wedge(u8, u8, bool),
    /// The target forgets registrations, and every session ends.
    TargetRestart,
    /// The controller dies, in the middle of the effects of its next step.
    Crash(u8),
    Pass(u32),
    /// So many rounds in which everything that is on its way arrives: histories get deep only if things succeed.
    Flow(u8),
}

/// How the RDS answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RdsAnswer {
    Done,
    Refused,
    /// Done, and the answer is lost.
    DoneUnheard,
    /// Not done, and no answer.
    Lost,
}

/// What the world must never show. In words, for people.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Violation(pub(crate) String);

pub(crate) fn volume(v: u8) -> VolumeId {
    VolumeId::new(format!("vol-{v}")).expect("a volume id")
}

pub(crate) fn node(n: u8) -> NodeId {
    NodeId::new(format!("node-{n}")).expect("a node id")
}

pub(crate) fn nqn(node: &NodeId) -> HostNqn {
    HostNqn::new(format!("nqn.2026-01.test:{node}")).expect("a host NQN")
}

/// How many nodes may write to a volume.
pub(crate) fn limit(v: &VolumeId) -> usize {
    if v.as_str() == "vol-0" { 1 } else { 2 }
}

pub(crate) fn spec(v: &VolumeId, min_fence: MinFence) -> VolumeSpec {
    VolumeSpec {
        id: v.clone(),
        access: if limit(v) == 1 { Access::Rwo } else { Access::RwxBlock },
        subsystem_nqn: format!("nqn.2026-01.io.cleat:{v}"),
        portals: vec!["192.0.2.1:4420".into()],
        size_bytes: 1 << 30,
        min_fence,
    }
}

/// The kind of an answer, to be counted.
pub(crate) fn kind(result: &Result<Reply, Refusal>) -> &'static str {
    match result {
        Ok(Reply::Published(_)) => "published",
        Ok(Reply::Unpublished) => "unpublished",
        Ok(Reply::MayDelete) => "may delete",
        Ok(Reply::Fenced) => "fenced",
        Ok(Reply::Declared) => "declared",
        Err(Refusal::AttachedElsewhere { .. }) => "attached elsewhere",
        Err(Refusal::MigrationLimit { .. }) => "migration limit",
        Err(Refusal::Silent { .. }) => "silent",
        Err(Refusal::NotReady { .. }) => "not ready",
        Err(Refusal::InUse { .. }) => "in use",
        Err(Refusal::Rds { .. }) => "rds",
        Err(Refusal::StillWaiting { .. }) => "still waiting",
        Err(Refusal::Overtaken { .. }) => "overtaken",
        Err(Refusal::Quarantined { .. }) => "quarantined",
        Err(Refusal::CannotFence { .. }) => "cannot fence",
        Err(Refusal::ExportOff { .. }) => "export off",
        Err(Refusal::NotAttached { .. }) => "not attached",
        Err(Refusal::NotGone { .. }) => "not gone",
        Err(Refusal::UnknownNode { .. }) => "unknown node",
        Err(_) => "other",
    }
}
