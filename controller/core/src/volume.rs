//! Volumes, and their attachments: what is granted to whom, and how far that has come.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::core::Verified;
use crate::counting::{CountGoal, Counting};
use crate::{
    BootId, DeviceIdentity, DeviceShown, Epoch, Evidence, Fence, FenceStep, Fenced, HostNqn, InterruptedBy,
    Interruption, Migration, MinFence, NodeId, OperationId, Portal, Rung, SessionId, Source, Statement,
    SubsystemNqn, Trouble, UnixMillis, Verdict, VmMigration, VolumeId, Wanted,
};

/// How many nodes may have the volume at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Access {
    /// One node. Any access mode that is not known to be something else counts as this.
    #[serde(rename = "RWO")]
    Rwo,
    /// A raw block volume that two nodes may have while a VM moves from one to the other.
    #[serde(rename = "RWX block")]
    RwxBlock,
}

impl Access {
    /// How many nodes at once.
    #[must_use]
    pub fn limit(self) -> usize {
        match self {
            Self::Rwo => 1,
            Self::RwxBlock => 2,
        }
    }

    /// The name by which people know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rwo => "RWO",
            Self::RwxBlock => "RWX block",
        }
    }
}

/// What an agent needs to know to attach a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VolumeSpec {
    /// The volume.
    pub id: VolumeId,
    /// How many nodes may have it.
    pub access: Access,
    /// The subsystem that exports it, where that is known: a volume that was only found has no Publish to say so.
    pub subsystem_nqn: Option<SubsystemNqn>,
    /// Where the target exports it.
    pub portals: Vec<Portal>,
    /// Exact size, in bytes.
    pub size_bytes: u64,
    /// The weakest fence that suffices.
    #[serde(default)]
    pub min_fence: MinFence,
    /// How long a live migration of it is to take at most.
    #[serde(default = "default_migration_timeout_ms")]
    pub migration_timeout_ms: u64,
    /// A second node is to get it only for a live migration that is known.
    #[serde(default)]
    pub require_migration: bool,
}

fn default_migration_timeout_ms() -> u64 {
    VolumeSpec::DEFAULT_MIGRATION_TIMEOUT_MS
}

impl VolumeSpec {
    /// What a live migration may take where the volume's owner has not said otherwise.
    pub const DEFAULT_MIGRATION_TIMEOUT_MS: u64 = 300_000;
}

/// Which of two nodes is the source of a migration: as KubeVirt says, else by who had the volume first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The node where the workload runs.
    Primary,
    /// The second node of an RWX block volume.
    MigrationTarget,
}

impl Role {
    /// The name by which people know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::MigrationTarget => "migration-target",
        }
    }
}

/// Why an attachment is being taken down.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum DrainCause {
    /// A caller asked. If the node refuses because the device is in use, nothing has changed.
    Requested,
    /// The attach did not succeed and was never reported as done.
    Rollback,
    /// The tickets that it was there for have gone, and nobody else wants it there.
    Unwanted,
    /// The tickets that it was there for have had their time to let go of it.
    Interrupted {
        /// For whom.
        // In a definition of a resource all causes share their fields: `by` is a person there.
        #[serde(rename = "interruptedFor")]
        by: InterruptedBy,
    },
    /// A person wants the node fenced, whatever it is doing.
    Forced {
        /// The person who says so.
        by: String,
        /// Why, in that person's words.
        reason: String,
    },
    /// A person has declared the node gone.
    Gone {
        /// The person who says so.
        by: String,
        /// Why, in that person's words.
        reason: String,
    },
}

impl DrainCause {
    /// The person's who wants it, where one does.
    pub(crate) fn statement(&self) -> Option<Statement> {
        match self {
            Self::Requested | Self::Rollback | Self::Unwanted | Self::Interrupted { .. } => None,
            Self::Forced { by, reason } | Self::Gone { by, reason } => {
                Some(Statement { by: by.clone(), reason: reason.clone() })
            }
        }
    }

    /// Whether it takes the place of the cause under which a taking down has begun.
    pub(crate) fn outweighs(&self, before: &Self) -> bool {
        let weight = |cause: &Self| match cause {
            Self::Requested | Self::Rollback | Self::Unwanted => 0,
            Self::Interrupted { .. } => 1,
            Self::Forced { .. } => 2,
            Self::Gone { .. } => 3,
        };
        weight(self) > weight(before)
    }

    /// Whether the tickets of the node have had their time. One that was withdrawn was given none: who uses the device for it
    /// still is waited for.
    pub(crate) fn cuts_tickets(&self) -> bool {
        matches!(self, Self::Interrupted { .. })
    }

    /// Whether nothing has changed if the node refuses because the device is in use: the orchestrator has asked, and may
    /// have asked too early.
    pub(crate) fn is_undone_by_use(&self) -> bool {
        matches!(self, Self::Requested | Self::Interrupted { by: InterruptedBy::Unpublish })
    }
}

/// How far an attachment has come.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Phase {
    /// The RDS is being asked to allow the host.
    Granting,
    /// The agent is asked to connect and to prove that it can use the device.
    Connecting,
    /// The agent has proven it.
    Ready,
    /// The node's kernel holds the volume without a grant of ours. It counts as able to write until proven gone.
    Stray,
    /// It is being taken down; over when the evidence says Fenced and the RDS no longer allows the host.
    Draining {
        /// Why.
        cause: DrainCause,
        /// The proof, once there is one. It may still be waiting for its drain bound.
        evidence: Option<Evidence>,
        /// The fence under way, where the node's own proof does not come or does not suffice.
        #[serde(default)]
        fence: Option<Box<Fence>>,
    },
}

impl Phase {
    /// The name by which people and metrics know it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Granting => "Granting",
            Self::Connecting => "Connecting",
            Self::Ready => "Ready",
            Self::Stray => "Stray",
            Self::Draining { .. } => "Draining",
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        matches!(self, Self::Draining { .. })
    }
}

/// What was asked of the world for an attachment and not answered yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) enum Pending {
    #[default]
    Nothing,
    /// The RDS, to allow the host.
    Allow(OperationId),
    /// The RDS, to stop allowing the host.
    Deny(OperationId),
    /// The RDS, to stop allowing the host and to take the export off, for nobody else has the volume; `true`: no earlier
    /// try can be under way still.
    Close(OperationId, bool),
    /// The agent, on that session, to do that.
    Agent(OperationId, SessionId, DirectiveKind),
}

/// What an agent was directed to do, and with which generation of the secret: another one is another directive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum DirectiveKind {
    Attach(Option<Epoch>),
    Detach,
    Revoke,
    Rekey(Epoch),
    Preempt,
}

/// What the RDS was asked for a volume as a whole, and has not answered yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum VolumeRequest {
    Hide {
        /// The fences that it is a step of. One that comes to this step later needs another.
        of: Vec<NodeId>,
        /// No earlier try can be under way still: the answer says that this one has drained.
        fresh: bool,
    },
    Show,
    /// Of this generation.
    SetSecret(Epoch),
}

impl Pending {
    pub(crate) fn is_rds(&self) -> bool {
        matches!(self, Self::Allow(_) | Self::Deny(_) | Self::Close(..))
    }
}

/// One grant of a volume to a node, until it is proven to be over.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The node.
    pub node: NodeId,
    /// As the RDS's list of hosts has it.
    pub host_nqn: HostNqn,
    /// The fencing token of the grant.
    pub epoch: Epoch,
    /// Whether the workload runs there, as far as that is known.
    pub role: Role,
    /// The device is to be read-only.
    pub read_only: bool,
    /// How far it has come.
    pub phase: Phase,
    /// When it came to this phase.
    pub since: UnixMillis,
    /// It was reported as attached once: somebody may have been using it.
    pub proven: bool,
    /// The boot of the node under which that was last proven.
    pub boot_id: Option<BootId>,
    /// The device went away under its user without a deletion that waited (a reboot, a connection that the kernel
    /// gave up): until then, writes from before may still land, whatever has been attached and detached since.
    pub may_land_until: Option<UnixMillis>,
    /// The generation of the volume's secret that the node was sent last.
    #[serde(default)]
    pub secret: Option<Epoch>,
    /// The agent may have been sent an Attach under this epoch. False only where this very process made the grant
    /// and has not sent it yet; after a restart nobody can know.
    #[serde(skip, default = "yes")]
    pub(crate) directed: bool,
    #[serde(skip)]
    pub(crate) pending: Pending,
    /// What went wrong last; what it waits for is said with it.
    #[serde(skip)]
    pub(crate) trouble: Option<Trouble>,
    /// Not before then is the next try.
    #[serde(skip)]
    pub(crate) retry_at: Option<UnixMillis>,
    /// The RDS, asked to take the host off its list, has said that it has no such volume.
    #[serde(skip)]
    pub(crate) unlisted: bool,
    /// Its host is not let in before the caller asks again: this process has it from a record that may be older than
    /// what the caller was answered since.
    #[serde(skip)]
    pub(crate) unasked: bool,
    /// The writes that its agent was last asked to count.
    #[serde(skip)]
    pub(crate) counting: Option<Counting>,
    /// For whom its agent was last asked to look.
    #[serde(skip)]
    pub(crate) verified: Option<Verified>,
    /// Its proof is of a record that may be older than what was granted since: it counts once the RDS's list was read.
    #[serde(skip)]
    pub(crate) old_proof: bool,
    /// By its record nobody was sent an Attach, and the record may be older than that.
    #[serde(skip)]
    pub(crate) used_since: bool,
    /// It was never granted: the node held the volume when it was heard.
    #[serde(default)]
    pub stray: bool,
    /// What its device was like when it was proven last; `None`: not known.
    #[serde(default)]
    pub shown: Option<DeviceShown>,
    /// For whom it is there.
    #[serde(default)]
    pub wanted: Wanted,
    /// Its tickets were asked to let go of it.
    #[serde(default)]
    pub interrupted: Option<Interruption>,
}

fn yes() -> bool {
    true
}

impl Attachment {
    /// What a node holds, or may hold, that this controller has not handed out: it counts as used.
    pub(crate) fn found(
        node: NodeId,
        host_nqn: HostNqn,
        epoch: Epoch,
        phase: Phase,
        now: UnixMillis,
    ) -> Self {
        Self {
            node,
            host_nqn,
            epoch,
            role: Role::Primary,
            read_only: false,
            phase,
            since: now,
            proven: true,
            boot_id: None,
            may_land_until: None,
            secret: None,
            directed: true,
            pending: Pending::Nothing,
            trouble: None,
            retry_at: None,
            unlisted: false,
            unasked: false,
            counting: None,
            verified: None,
            old_proof: false,
            used_since: false,
            stray: false,
            shown: None,
            wanted: Wanted::default(),
            interrupted: None,
        }
    }

    pub(crate) fn enter(&mut self, phase: Phase, now: UnixMillis) {
        self.phase = phase;
        self.since = now;
        self.trouble = None;
        self.retry_at = None;
    }

    /// Somebody may have been using it: what was written may still be on its way.
    pub(crate) fn may_have_written(&self) -> bool {
        self.proven || self.used_since
    }

    /// The proof that it is over, where there is one.
    #[must_use]
    pub fn evidence(&self) -> Option<&Evidence> {
        match &self.phase {
            Phase::Draining { evidence, .. } => evidence.as_ref(),
            _ => None,
        }
    }

    /// The node's own report proves that it is over; only the RDS's list is not read back, since the RDS has no such
    /// volume.
    /// The host may be on it when the volume is back, so nobody else is let in before; but a caller that wants the
    /// node off need not wait for a volume that somebody has removed for good.
    #[must_use]
    pub fn is_over_but_for_the_list(&self, now: UnixMillis) -> bool {
        self.unlisted
            && self.evidence().is_some_and(|e| {
                matches!(e.source, Source::AgentAbsent { .. } | Source::NeverAllowed)
                    && e.verdict(now) == Verdict::Fenced
            })
    }

    /// Whether callers are to see the volume as published on the node: from the step on that answers its Publish, until
    /// there is evidence that answers its Unpublish. So one that is being taken down still is, and one whose device has
    /// to come back after a reboot; what was only found is not, for nobody was answered that it is there, nor is what is
    /// there for tickets alone.
    #[must_use]
    pub fn is_published(&self, now: UnixMillis) -> bool {
        self.boot_id.is_some() && self.wanted.csi && !self.stray && !self.is_over_but_for_the_list(now)
    }

    /// Nothing but the export keeps the node out, or is about to.
    pub(crate) fn is_fenced_by_export(&self) -> bool {
        match &self.phase {
            Phase::Draining { evidence: Some(e), .. } if e.source == Source::ExportOff => true,
            Phase::Draining { fence: Some(fence), .. } => {
                fence.rung == Rung::ExportOff && fence.step == FenceStep::Hide
            }
            _ => false,
        }
    }

    /// Its agent has counted writes after the VM had moved to the other node.
    #[must_use]
    pub fn writes_late(&self) -> bool {
        self.counting.as_ref().is_some_and(|c| c.goal == CountGoal::LateWrites && c.writes > 0)
    }

    /// What went wrong last.
    #[must_use]
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }
}

/// The in-band secret of a volume. The secret itself is derived from its generation, and is not known here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SecretState {
    /// The generation from which the secret is derived.
    pub generation: Epoch,
    /// The RDS has said that it asks for this one.
    pub in_force: bool,
}

/// All that is kept of one volume: what is stored, and what a restart begins with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VolumeRecord {
    /// The volume's properties.
    pub spec: VolumeSpec,
    /// Pinned at the first attach.
    pub identity: Option<DeviceIdentity>,
    /// Oldest first. Nobody is taken off this list without evidence.
    pub attachments: Vec<Attachment>,
    /// The live migration under way, or the last one.
    pub migration: Option<Migration>,
    /// Those before it, newest first; at most [`VolumeRecord::PAST_MIGRATIONS`].
    #[serde(default)]
    pub past_migrations: Vec<Migration>,
    /// Nodes that were fenced and have not shown yet that they hold nothing of it.
    #[serde(default)]
    pub fenced: Vec<Fenced>,
    /// The export may be off at the RDS, by our doing: it is while nobody has the volume, and while a fence needs it. To be
    /// brought back as soon as somebody needs it and no fence keeps it off.
    #[serde(default)]
    pub hidden: bool,
    /// The secret that the RDS asks hosts for.
    #[serde(default)]
    pub secret: Option<SecretState>,
    /// Its deletion was begun, and may take effect at any time: nobody is granted it before the RDS itself has said that
    /// it is gone, or that it is not.
    #[serde(default)]
    pub deleting: bool,
    /// The RDS has it no more. The record is kept for those that were cut off from it and have not shown yet that they
    /// hold nothing of it: they are still to be sent a Revoke, and a volume may be made again under its name.
    #[serde(default)]
    pub deleted: bool,
    /// The last proofs that ended attachments, newest first; at most [`VolumeRecord::PAST_EVIDENCE`].
    pub past_evidence: Vec<Evidence>,
    #[serde(skip)]
    pub(crate) asked: Option<(OperationId, VolumeRequest)>,
    /// The RDS has said that the export is off.
    #[serde(skip)]
    pub(crate) hidden_heard: bool,
    /// Not before then is the RDS asked again for the volume as a whole.
    #[serde(skip)]
    pub(crate) retry_at: Option<UnixMillis>,
    /// What KubeVirt has reported of a migration to a node that does not have the volume yet.
    #[serde(skip)]
    pub(crate) reported: Option<Box<VmMigration>>,
    /// Hosts that can be connected, where that is known for certain: this process has heard that the export was off, which
    /// ended every session, and that the target keeps to its list; these it has let in since.
    #[serde(skip)]
    pub(crate) let_in: Option<BTreeSet<HostNqn>>,
}

impl VolumeRecord {
    /// How many past proofs are kept.
    pub const PAST_EVIDENCE: usize = 8;
    /// How many past migrations are kept.
    pub const PAST_MIGRATIONS: usize = 4;

    pub(crate) fn new(spec: VolumeSpec) -> Self {
        Self {
            spec,
            identity: None,
            attachments: Vec::new(),
            migration: None,
            past_migrations: Vec::new(),
            fenced: Vec::new(),
            hidden: false,
            secret: None,
            deleting: false,
            deleted: false,
            past_evidence: Vec::new(),
            asked: None,
            hidden_heard: false,
            retry_at: None,
            reported: None,
            let_in: None,
        }
    }

    /// Of a volume that was never granted: what it is nobody has said, so the narrowest is assumed.
    pub(crate) fn unknown(id: VolumeId) -> Self {
        Self::new(VolumeSpec {
            id,
            access: Access::Rwo,
            subsystem_nqn: None,
            portals: Vec::new(),
            size_bytes: 0,
            min_fence: MinFence::default(),
            migration_timeout_ms: VolumeSpec::DEFAULT_MIGRATION_TIMEOUT_MS,
            require_migration: false,
        })
    }

    /// What is left of it once the RDS has it no more.
    pub(crate) fn after_deletion(self) -> Self {
        let (fenced, hidden) = (self.fenced, self.hidden);
        Self { fenced, hidden, deleted: true, ..Self::unknown(self.spec.id) }
    }

    /// One more node that has it, or may.
    pub(crate) fn join(&mut self, attachment: Attachment) {
        self.attachments.push(attachment);
        self.set_roles();
    }

    /// The highest term under which anything of it was granted or ended.
    #[must_use]
    pub fn highest_term(&self) -> u64 {
        let granted = self.attachments.iter().map(|a| a.epoch);
        let ended = self.fenced.iter().map(|f| f.epoch);
        let secret = self.secret.as_ref().map(|s| s.generation);
        granted.chain(ended).chain(secret).map(|epoch| epoch.term).max().unwrap_or(0)
    }

    /// The attachment on a node, if there is one.
    #[must_use]
    pub fn attachment(&self, node: &NodeId) -> Option<&Attachment> {
        self.attachments.iter().find(|a| a.node == *node)
    }

    pub(crate) fn attachment_mut(&mut self, node: &NodeId) -> Option<&mut Attachment> {
        self.attachments.iter_mut().find(|a| a.node == *node)
    }

    /// The fence under way against a node, if there is one.
    #[must_use]
    pub fn fence(&self, node: &NodeId) -> Option<&Fence> {
        match &self.attachment(node)?.phase {
            Phase::Draining { fence, .. } => fence.as_deref(),
            _ => None,
        }
    }

    pub(crate) fn fence_mut(&mut self, node: &NodeId) -> Option<&mut Fence> {
        match &mut self.attachment_mut(node)?.phase {
            Phase::Draining { fence, .. } => fence.as_deref_mut(),
            _ => None,
        }
    }

    /// All sessions were ended, and hosts come in by the list alone: those that are on it now.
    pub(crate) fn nobody_else_is_in(&mut self) {
        self.let_in = Some(self.attachments.iter().map(|a| a.host_nqn.clone()).collect());
    }

    /// It has the volume, or was cut off from it.
    pub(crate) fn knows(&self, node: &NodeId) -> bool {
        #[cfg(test)]
        looks::count();
        self.attachment(node).is_some() || self.fenced.iter().any(|f| f.node == *node)
    }

    /// When something about it may change by time alone: a try after a while, a bound that passes, a migration that runs out of
    /// time; a detach, whose fence is due by more than one clock, at any moment. A try that is due already has been made, or
    /// waits for something that will be heard of.
    pub(crate) fn due(&self, now: UnixMillis) -> Option<UnixMillis> {
        if self.attachments.iter().any(|a| a.phase.is_draining()) {
            return Some(UnixMillis::default());
        }
        let of_attachments = self.attachments.iter().flat_map(|a| [a.retry_at, a.may_land_until]);
        let of_fenced = self.fenced.iter().map(|f| f.retry_at);
        let of_migration = self.migration.as_ref().and_then(Migration::due);
        let all = of_attachments.chain(of_fenced).chain([self.retry_at, of_migration]);
        all.flatten().filter(|at| now < *at).min()
    }

    /// Every node and host that has it, or was cut off from it.
    pub(crate) fn hosts(&self) -> BTreeSet<(NodeId, HostNqn)> {
        let attached = self.attachments.iter().map(|a| (&a.node, &a.host_nqn));
        let fenced = self.fenced.iter().map(|f| (&f.node, &f.host_nqn));
        attached.chain(fenced).map(|(node, host)| (node.clone(), host.clone())).collect()
    }

    /// Everybody else who has it.
    pub(crate) fn others<'a>(&'a self, node: &'a NodeId) -> impl Iterator<Item = &'a Attachment> {
        self.attachments.iter().filter(move |a| a.node != *node)
    }

    /// The export has to stay off for now: a fence needs it, or rests on it.
    pub(crate) fn kept_hidden_by_a_fence(&self) -> bool {
        let needed = |a: &Attachment| match &a.phase {
            Phase::Draining { evidence: Some(e), .. } if e.source == Source::ExportOff => true,
            Phase::Draining { fence: Some(fence), .. } => fence.step == FenceStep::Hide,
            _ => false,
        };
        self.attachments.iter().any(needed) || self.fenced.iter().any(Fenced::blocks)
    }

    /// Somebody has it, or goes on having it if its detach is refused, and cannot do without the export. Who is only
    /// being let in gets it with that.
    pub(crate) fn needs_the_export(&self) -> bool {
        self.attachments.iter().any(|a| match &a.phase {
            Phase::Connecting | Phase::Ready | Phase::Stray => true,
            Phase::Draining { cause, evidence: None, fence } if cause.is_undone_by_use() => {
                fence.as_ref().is_none_or(|f| !f.touched)
            }
            Phase::Granting | Phase::Draining { .. } => false,
        })
    }

    /// Nobody may be let in now: that would bring the export back under a fence, or under somebody who waits for it
    /// to come back first.
    pub(crate) fn shut(&self) -> bool {
        self.hidden && (self.kept_hidden_by_a_fence() || self.needs_the_export() || self.asked.is_some())
    }

    /// A new connection needs a secret that is not in force yet.
    pub(crate) fn secret_unsettled(&self) -> bool {
        self.secret.as_ref().is_some_and(|s| !s.in_force)
    }

    /// Those who have it, oldest first.
    #[must_use]
    pub fn holders(&self) -> Vec<NodeId> {
        self.attachments.iter().map(|a| a.node.clone()).collect()
    }
}

/// How often records were looked at for a node.
#[cfg(test)]
pub(crate) mod looks {
    use std::cell::Cell;

    thread_local! {
        static LOOKS: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn count() {
        LOOKS.set(LOOKS.get() + 1);
    }

    /// Since this was asked last.
    pub(crate) fn take() -> usize {
        LOOKS.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_from_before_migrations_had_demands_has_the_defaults() {
        let before =
            r#"{"id": "v", "access": "RWX block", "subsystemNqn": null, "portals": [], "sizeBytes": 4096}"#;
        let mut spec: VolumeSpec = serde_json::from_str(before).expect("an older record");
        assert_eq!((spec.migration_timeout_ms, spec.require_migration), (300_000, false));
        (spec.migration_timeout_ms, spec.require_migration) = (30_000, true);
        let written = serde_json::to_string(&spec).expect("a record");
        assert!(written.contains(r#""migrationTimeoutMs":30000,"requireMigration":true"#), "{written}");
        assert_eq!(serde_json::from_str::<VolumeSpec>(&written).expect("what was written"), spec);
    }
}
