//! What comes into the core and what goes out of it.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use crate::{
    DeviceIdentity, DeviceShown, Epoch, HostNqn, NodeId, NodeIdentity, NodeRecord, NodeSeen, Notice,
    OperationId, RdsFailure, RdsRequest, Refusal, RequestId, SessionId, SessionRefusal, Ticket, TicketId,
    TicketStanding, VmMigration, VolumeId, VolumeRecord, VolumeSpec,
};

/// Something that happened in the world.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// A caller wants a volume on a node. Answered by one [`Effect::Reply`].
    Publish {
        /// The request.
        request: RequestId,
        /// The node.
        node: NodeId,
        /// What, as the RDS and the caller describe it now.
        spec: VolumeSpec,
        /// The device is to be read-only.
        read_only: bool,
    },
    /// A caller wants a volume off a node. Answered by one [`Effect::Reply`].
    Unpublish {
        /// The request.
        request: RequestId,
        /// The volume.
        volume: VolumeId,
        /// From where; `None`: from all nodes.
        node: Option<NodeId>,
    },
    /// A caller wants to delete a volume. Answered by one [`Effect::Reply`]; if that is [`Reply::MayDelete`], nobody
    /// is granted the volume until [`Event::DeleteEnded`].
    DeleteBegins {
        /// The request.
        request: RequestId,
        /// The volume.
        volume: VolumeId,
    },
    /// The deletion has ended.
    DeleteEnded {
        /// The volume.
        volume: VolumeId,
        /// What is known of it.
        deletion: VolumeDeletion,
    },
    /// The RDS has listed volumes, with the hosts that may connect to them.
    RdsListed {
        /// The volumes that were listed.
        volumes: Vec<ListedVolume>,
        /// They are all that it has.
        whole: bool,
    },
    /// This process has made a volume just now: nobody can have it.
    RdsMade {
        /// The volume.
        volume: VolumeId,
    },
    /// These nodes are to have a volume, and nobody can tell which. Comes once, right after a start.
    DesiredUnclear {
        /// The nodes.
        nodes: BTreeSet<NodeId>,
    },
    /// The RDS was asked for its list of volumes, and gave none.
    RdsNotListed {
        /// Why.
        error: String,
    },
    /// A volume's record takes no grant, since a person has deleted it. It is not durable as it was decided; so these grants
    /// never were, and nothing that rests on them was done. What was asked of the RDS or an agent is answered as usual.
    GrantsRefused {
        /// The volume.
        volume: VolumeId,
        /// The grants: to which node, under which epoch.
        grants: Vec<(NodeId, Epoch)>,
    },
    /// The RDS's answer to [`Effect::Rds`].
    RdsDone {
        /// The request's operation.
        operation: OperationId,
        /// The RDS's answer.
        result: Result<(), RdsFailure>,
    },
    /// An agent has said Hello on a new stream.
    SessionUp {
        /// The node.
        node: NodeId,
        /// The session.
        session: SessionId,
        /// As it describes itself.
        identity: NodeIdentity,
        /// How many volumes the node may have at once, where it says so.
        max_volumes: Option<NonZeroU32>,
        /// What others say of the node.
        seen: NodeSeen,
    },
    /// All that a node's kernel holds under our prefix. A volume that is not listed is absent.
    Inventory {
        /// The node.
        node: NodeId,
        /// The session that it concerns.
        session: SessionId,
        /// Each volume that it holds.
        volumes: Vec<Observed>,
    },
    /// One volume of a node has changed.
    Delta {
        /// The node.
        node: NodeId,
        /// The session that it concerns.
        session: SessionId,
        /// What it is now.
        observed: Observed,
    },
    /// The agent's answer to a directive.
    AgentDone {
        /// The node.
        node: NodeId,
        /// The session that it concerns.
        session: SessionId,
        /// The directive's operation.
        operation: OperationId,
        /// The volume.
        volume: VolumeId,
        /// The grant's epoch.
        epoch: Epoch,
        /// How the directive ended.
        outcome: Outcome,
    },
    /// The agent has counted writes, as [`Directive::Count`] asks. Says nothing of who can write.
    Counted {
        /// The node.
        node: NodeId,
        /// The session that it concerns.
        session: SessionId,
        /// The directive's operation.
        operation: OperationId,
        /// The volume.
        volume: VolumeId,
        /// The grant's epoch.
        epoch: Epoch,
        /// Completed since this counting began.
        writes: u64,
        /// How long ago the last one was, in milliseconds; where there was none, since when none was.
        age_ms: u64,
        /// A process has the device open.
        open: bool,
    },
    /// A stream is over.
    SessionLost {
        /// The node.
        node: NodeId,
        /// The session.
        session: SessionId,
    },
    /// A person wants a node fenced from a volume. Answered by one [`Effect::Reply`], when it is proven.
    Fence {
        /// The request.
        request: RequestId,
        /// The volume from which the node is fenced.
        volume: VolumeId,
        /// The node that is to be fenced.
        node: NodeId,
        /// The person who asks for it.
        by: String,
        /// Why, in that person's words.
        reason: String,
    },
    /// A person says that a node is gone and stays so. Answered by one [`Effect::Reply`], when it is recorded.
    DeclareGone {
        /// The request.
        request: RequestId,
        /// The node that is gone.
        node: NodeId,
        /// The person who says so.
        by: String,
        /// Why, in that person's words.
        reason: String,
    },
    /// The orchestrator says that a node is out of service, on the statement of whoever has marked it so. May come again as
    /// long as it says so. Not answered.
    OutOfService {
        /// The node.
        node: NodeId,
        /// The mark that says so.
        by: String,
        /// What it says.
        reason: String,
    },
    /// KubeVirt reports the live migration of a volume's VM, as far as it has come. Comes again after a start, may come late,
    /// doubled or false, and says nothing of who can write. `None`: there is none, or nobody knows of one. Not answered.
    MigrationSeen {
        /// The volume.
        volume: VolumeId,
        /// The migration.
        vm: Option<Box<VmMigration>>,
    },
    /// Somebody wants a volume attached, for something that is no workload of the orchestrator's. Comes again after a start,
    /// and as often as it is looked at: a generation that is known already renews nothing. Answered by [`Effect::Ticket`], as
    /// often as the ticket comes to stand otherwise.
    TicketWanted {
        /// What, as the RDS and the orchestrator describe it now.
        spec: VolumeSpec,
        /// Why, and where.
        ticket: Box<Ticket>,
    },
    /// A ticket's holder is there. Of one that is not known it says that the attachments that are there for it are rightly.
    TicketRenewed {
        /// The volume.
        volume: VolumeId,
        /// The ticket.
        ticket: TicketId,
    },
    /// Nobody wants the volume for this any more, or never did.
    TicketGone {
        /// The volume.
        volume: VolumeId,
        /// The ticket.
        ticket: TicketId,
    },
    /// Time passes.
    Tick,
}

/// How a deletion has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VolumeDeletion {
    /// The RDS has it no more.
    Done,
    /// The RDS has it, and nothing that was asked of it can still take effect.
    NotDone,
    /// An answer was lost: it may be gone, or go at any time. The volume counts as being deleted until a repeat has
    /// come to its end.
    Unknown,
}

/// What the RDS says of who may connect to a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListedVolume {
    /// The volume.
    pub volume: VolumeId,
    /// The hosts that may connect.
    pub hosts: Vec<HostNqn>,
    /// Whether the export is on.
    pub exported: bool,
    /// Hosts are kept on a list: who is not on it was not let in.
    pub keeps_list: bool,
    /// Why it cannot be understood, as text for a person.
    pub problem: Option<String>,
    /// Nothing of ours about it was under way while it was read: what it says is to be what the record says.
    pub at_rest: bool,
}

/// What an agent says of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Observed {
    /// The volume.
    pub volume: VolumeId,
    /// The highest epoch that the node has seen for it.
    pub epoch: Option<Epoch>,
    /// That epoch's grant was ended there.
    pub ended: bool,
    /// How far the kernel has come with it.
    pub phase: ObservedPhase,
    /// How many paths are live.
    pub live_paths: u32,
    /// The clause that fails and the facts; empty where none does.
    pub unready: String,
    /// What the device is like, where there is one and the agent says so.
    pub shown: Option<DeviceShown>,
    /// The agent shows that since this grant came to the node no connection of the volume has broken or gone, whether or not
    /// anybody heard of it; or that none has for longer than any drain bound.
    pub unbroken: bool,
}

/// How a volume stands in a node's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ObservedPhase {
    /// No controller.
    Absent,
    /// Controllers, not ready (yet).
    Connecting,
    /// Ready on all paths.
    Ready,
    /// Ready on some paths.
    Degraded,
    /// It was ready, and is not any more.
    Lost,
    /// Controllers are being deleted.
    Detaching,
}

/// One controller that an agent deleted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Deleted {
    /// Its name in sysfs.
    pub controller: String,
    /// Its state right before: "live", "connecting", ...
    pub state: String,
}

/// A node's proof that nothing of a volume is left in its kernel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Absence {
    /// What was deleted since the grant began, under this boot.
    pub deleted: Vec<Deleted>,
}

/// An agent's answer to a directive.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The device can be used.
    Ready {
        /// What it says of itself.
        identity: DeviceIdentity,
        /// What it is like, where the agent says so.
        shown: Option<DeviceShown>,
    },
    /// Nothing of it is left.
    Absent(Absence),
    /// It is in use; nothing was touched.
    Busy {
        /// Its users, each as text for a person.
        holders: Vec<String>,
    },
    /// It did not succeed.
    Failed {
        /// The clause of the readiness predicate, or the step.
        clause: String,
        /// What was seen.
        message: String,
        /// Proven that no controller of the subsystem is left.
        nothing_left: bool,
    },
    /// The node has seen a higher epoch, or the end of this one.
    Stale {
        /// The highest epoch that it has seen.
        highest: Epoch,
        /// Whether the node has ended it.
        ended: bool,
    },
    /// It goes on; a further answer follows.
    Pending {
        /// What it waits for.
        message: String,
    },
    /// The victims' registrations were preempted and aborted.
    Preempted {
        /// The keys that the report of registrations showed afterwards.
        left: Vec<u64>,
        /// The victims' keys that were registered, and whose preemption the target has answered. A victim that was not
        /// registered is not among them: nothing of it was aborted.
        aborted: Vec<u64>,
    },
    /// The node knows the new secret, and its controllers use it.
    Rekeyed,
}

/// Something to be done in the world.
///
/// The effects of all steps are one sequence. Records of different volumes may become durable in any order, and what is
/// about different volumes may be done in any order, as long as
/// - what is about a volume (its record, its requests to the RDS, its directives, answers to requests about it) is done
///   in the order of the sequence, and each only after every earlier record of that volume is durable;
/// - [`Reply::Declared`], which is about a node, comes after every earlier record of any volume: it says that they are;
/// - a node's record is durable before anything later that is sent to this node, or lets its host in.
///
/// [`Effect::RefuseSession`] and [`Effect::Notice`] rest on no record. Where a record cannot be made durable because
/// somebody else has written it, nothing later about its volume is done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Make durable before any later effect that is about this volume; if that fails, do none of them.
    Persist(Box<VolumeRecord>),
    /// Forget what was stored of a volume; durable like [`Effect::Persist`].
    Forget(VolumeId),
    /// Keep who a node is; durable like [`Effect::Persist`].
    PersistNode(Box<NodeRecord>),
    /// Forget a node; durable like [`Effect::Persist`].
    ForgetNode(NodeId),
    /// Ask the RDS; answered by [`Event::RdsDone`].
    Rds {
        /// Comes back with the answer.
        operation: OperationId,
        /// The change that is asked for.
        request: RdsRequest,
    },
    /// Send an agent a directive. If its session has ended, drop it.
    Direct {
        /// The node.
        node: NodeId,
        /// The session that it concerns.
        session: SessionId,
        /// Comes back with the answer.
        operation: OperationId,
        /// The directive.
        directive: Directive,
    },
    /// Answer a caller's request.
    Reply {
        /// The request that is answered.
        request: RequestId,
        /// The answer.
        result: Result<Reply, Refusal>,
    },
    /// End a stream: its agent may not speak for that node.
    RefuseSession {
        /// The session.
        session: SessionId,
        /// Why, naming both sides.
        refusal: Box<SessionRefusal>,
    },
    /// A ticket has come to stand otherwise: what was said of it before counts no more. About its volume; that it is
    /// satisfied rests on the volume's record.
    Ticket {
        /// The volume.
        volume: VolumeId,
        /// The ticket.
        ticket: TicketId,
        /// How it stands; `None`: it is not known any more.
        standing: Option<Box<TicketStanding>>,
    },
    /// Notify people.
    Notice(Notice),
}

/// What an agent is sent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Directive {
    /// Connect, and prove that the device can be used.
    Attach {
        /// The grant.
        grant: Box<Grant>,
    },
    /// Take it down unless it is in use.
    Detach {
        /// The volume.
        volume: VolumeId,
        /// The grant's epoch.
        epoch: Epoch,
        /// Tickets have had their time there: who uses the device for one of them is ended first.
        cut_tickets: bool,
    },
    /// Take it down even while it is in use: its user gets I/O errors.
    Revoke {
        /// The volume.
        volume: VolumeId,
        /// The grant's epoch.
        epoch: Epoch,
    },
    /// Preempt and abort the registrations of other grants, and report what is left.
    Preempt {
        /// The volume.
        volume: VolumeId,
        /// The agent's own grant.
        epoch: Epoch,
        /// The grants whose registrations go.
        victims: Vec<Epoch>,
    },
    /// Use another secret from now on, in place.
    Rekey {
        /// The volume.
        volume: VolumeId,
        /// The agent's own grant.
        epoch: Epoch,
        /// The secret's generation.
        generation: Epoch,
    },
    /// Count the writes of the volume, in the place of an earlier counting. It is not answered, and changes nothing:
    /// [`Event::Counted`] comes as there is something to say.
    Count {
        /// The volume.
        volume: VolumeId,
        /// The agent's own grant.
        epoch: Epoch,
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// Look at the volume again, and at what these pods have open in its place. What the agent finds is in its report of the
    /// volume.
    Verify {
        /// The volume.
        volume: VolumeId,
        /// The agent's own grant.
        epoch: Epoch,
        /// UIDs of the pods that are to have it open.
        pods: Vec<String>,
        /// Other volumes that these pods have.
        others: Vec<VolumeId>,
    },
}

impl Directive {
    /// Under which grant.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        match self {
            Self::Attach { grant } => grant.epoch,
            Self::Detach { epoch, .. }
            | Self::Revoke { epoch, .. }
            | Self::Preempt { epoch, .. }
            | Self::Rekey { epoch, .. }
            | Self::Count { epoch, .. }
            | Self::Verify { epoch, .. } => *epoch,
        }
    }

    /// What it is about.
    #[must_use]
    pub fn volume(&self) -> &VolumeId {
        match self {
            Self::Attach { grant } => &grant.spec.id,
            Self::Detach { volume, .. }
            | Self::Revoke { volume, .. }
            | Self::Preempt { volume, .. }
            | Self::Rekey { volume, .. }
            | Self::Count { volume, .. }
            | Self::Verify { volume, .. } => volume,
        }
    }
}

/// A volume granted to a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Grant {
    /// The fencing token.
    pub epoch: Epoch,
    /// The volume's properties.
    pub spec: VolumeSpec,
    /// The device is to be read-only.
    pub read_only: bool,
    /// What must be found, once it was learned.
    pub identity: Option<DeviceIdentity>,
    /// The generation of the secret to connect with, where the target asks for one.
    pub secret: Option<Epoch>,
    /// Register at the target under [`Epoch::reservation_key`].
    pub reserve: bool,
}

/// A request's success.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reply {
    /// The node has proven that it can use the volume.
    Published(Box<Grant>),
    /// It is proven that the node cannot write to it.
    Unpublished,
    /// Nobody has it, and nobody gets it until the deletion has ended.
    MayDelete,
    /// It is proven that the node cannot write to it.
    Fenced,
    /// The declaration is recorded, and everything that it suffices for rests on it.
    Declared,
}
