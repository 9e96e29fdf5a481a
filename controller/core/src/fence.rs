//! Fencing: what a target can do, the ladder's rungs and steps, and the nodes that were cut off.
//!
//! A fence under way is part of the attachment that it takes down ([`crate::Phase::Draining`]) and is stored with it,
//! so that every step can be asked for again after a crash. What a fence changes for the *volume* (the export is off,
//! another secret is in force) is kept with the volume, and so is put right whatever becomes of the fence.

use serde::{Deserialize, Serialize};

use crate::rung_result::RungResult;
use crate::{Epoch, Evidence, HostNqn, NodeId, OperationId, SessionId, UnixMillis};

/// What the target was probed to do. What was not probed counts as not done: the default is nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct TargetAbilities {
    /// It was probed: what is not said of it below it does not do. Else that is unknown.
    pub probed: bool,
    /// A host that is not on the list cannot connect.
    pub acl: bool,
    /// Taking the export off ends the sessions that are live.
    pub export_cuts: bool,
    /// Taking the export off is answered only when every write that was received has landed.
    pub export_drains: bool,
    /// A host that does not know the volume's secret cannot connect.
    pub secret: bool,
    /// What its reservations are worth.
    pub reservations: ReservationAbility,
}

impl TargetAbilities {
    /// Whether the target is known to do a fence that suffices for a volume.
    ///
    /// # Errors
    ///
    /// Every fence that would suffice, with what the target lacks for it.
    pub fn meets(&self, min: MinFence) -> Result<(), Vec<Tried>> {
        let mut lacking = Vec::new();
        for rung in Rung::LADDER.into_iter().filter(|rung| rung.suffices_for(min)) {
            let Some(lack) = rung.lacks(self) else { return Ok(()) };
            lacking.push(Tried { rung, result: lack.to_string() });
        }
        Err(lacking)
    }
}

/// What a target's reservations are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ReservationAbility {
    /// The target has no reservations.
    #[default]
    None,
    /// They are held, but preempt-and-abort does not wait for what is in flight.
    Held,
    /// Preempt-and-abort answers only when what was in flight has landed.
    AbortWaits,
}

/// The weakest fence that suffices for a volume. A node's own proof that it holds nothing always does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MinFence {
    /// A person's declaration.
    #[default]
    NodeGone,
    /// The export is off.
    ExportOff,
    /// The target lets only listed hosts connect.
    Acl,
    /// The target lets only hosts connect that know the secret.
    Secret,
    /// The target lets only registrants write.
    Reservation,
}

impl MinFence {
    /// The name by which people and StorageClasses know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NodeGone => "node-gone",
            Self::ExportOff => "export-off",
            Self::Acl => "acl",
            Self::Secret => "secret",
            Self::Reservation => "reservation",
        }
    }
}

/// A way to fence, strongest first: the order in which they are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// The host is taken off the list, another node preempts its registration, then cut and drained.
    Reservation,
    /// The host is taken off the list, then cut and drained.
    Acl,
    /// The secret is changed, the other nodes get the new one, then cut and drained.
    Secret,
    /// The export is off, and stays off until the node has shown that it holds nothing.
    ExportOff,
    /// A person has declared the node gone.
    NodeGone,
    /// Not a fence: the node holds nothing any more, and what it sent is drained by taking the export off and on.
    Barrier,
}

impl Rung {
    /// The name by which people and metrics know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Reservation => "reservation",
            Self::Acl => "acl",
            Self::Secret => "secret",
            Self::ExportOff => "export-off",
            Self::NodeGone => "node-gone",
            Self::Barrier => "barrier",
        }
    }
}

impl Rung {
    /// In the order in which they are tried.
    pub const LADDER: [Self; 5] =
        [Self::Reservation, Self::Acl, Self::Secret, Self::ExportOff, Self::NodeGone];

    pub(crate) fn suffices_for(self, min: MinFence) -> bool {
        let strength = match self {
            Self::Reservation => MinFence::Reservation,
            Self::Secret => MinFence::Secret,
            Self::Acl => MinFence::Acl,
            Self::ExportOff => MinFence::ExportOff,
            Self::NodeGone => MinFence::NodeGone,
            // It adds to a proof that always suffices.
            Self::Barrier => return true,
        };
        strength >= min
    }

    /// What the target is not known to do for it; `None`: nothing is missing there.
    pub(crate) fn lacks(self, target: &TargetAbilities) -> Option<RungResult> {
        let no_list = || (!target.acl).then_some(RungResult::NoList);
        let no_cut = || (!target.export_cuts).then_some(RungResult::NoCut);
        match self {
            Self::Reservation if target.reservations == ReservationAbility::None => {
                Some(RungResult::NoReservations)
            }
            Self::Reservation | Self::Acl => no_list().or_else(no_cut),
            Self::Secret if !target.secret => Some(RungResult::NoSecret),
            Self::Secret | Self::ExportOff => no_cut(),
            Self::Barrier if !target.export_drains => Some(RungResult::NoDrain),
            Self::Barrier => no_cut(),
            Self::NodeGone => None,
        }
    }

    /// What has to be done, in this order.
    pub(crate) fn steps(self, target: &TargetAbilities) -> Vec<FenceStep> {
        use FenceStep::{Deny, Hide, Preempt, Rekey, SetSecret};
        match self {
            // The list comes first: a target that restarts forgets its registrations, not its list.
            // And the cut last: registrations hold only as long as somebody else stays registered, and a host whose
            // session is up can register again.
            Self::Reservation => vec![Deny, Preempt, Hide],
            Self::Acl => vec![Deny, Hide],
            Self::Secret if target.acl => vec![Deny, SetSecret, Rekey, Hide],
            Self::Secret => vec![SetSecret, Rekey, Hide],
            Self::ExportOff | Self::Barrier => vec![Hide],
            Self::NodeGone => Vec::new(),
        }
    }

    /// It proves nothing without the host having been taken off the list.
    pub(crate) fn needs_the_list(self) -> bool {
        matches!(self, Self::Reservation | Self::Acl)
    }
}

impl Fence {
    pub(crate) fn new(rung: Rung, now: UnixMillis) -> Self {
        Self {
            rung,
            step: FenceStep::Refused,
            tried: Vec::new(),
            since: now,
            touched: false,
            denied: false,
            preempted_by: None,
            aborted: false,
            pending: None,
            retry_at: None,
            old: false,
        }
    }

    /// Keeps the last result of a rung.
    pub(crate) fn note(&mut self, rung: Rung, result: &RungResult) {
        self.tried.retain(|t| t.rung != rung);
        self.tried.push(Tried { rung, result: result.to_string() });
    }
}

/// A step of a rung. Bringing the export back is not one of them: the volume remembers that it is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum FenceStep {
    /// The host is taken off the RDS's list, and the list read back without it.
    Deny,
    /// Another node preempts and aborts the registration of the grant.
    Preempt,
    /// The next generation of the secret is put in force at the RDS.
    SetSecret,
    /// The other nodes are sent the new secret.
    Rekey,
    /// The export is taken off: sessions end, received writes land.
    Hide,
    /// No rung was left. Tried again after a while, or when somebody asks again.
    Refused,
}

impl FenceStep {
    /// The name by which people and metrics know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Preempt => "preempt",
            Self::SetSecret => "set-secret",
            Self::Rekey => "rekey",
            Self::Hide => "hide",
            Self::Refused => "refused",
        }
    }
}

/// A rung that could not be taken, or did not hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Tried {
    /// The rung that was tried.
    pub rung: Rung,
    /// Its result, as text for a person.
    pub result: String,
}

/// A fence under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Fence {
    /// The rung that is being taken.
    pub rung: Rung,
    /// Its step that is being done; asked for again after a restart.
    pub step: FenceStep,
    /// The last result of each rung before it.
    pub tried: Vec<Tried>,
    /// When it began.
    pub since: UnixMillis,
    /// Something was asked of the target: the node cannot simply go on as if nothing had been.
    pub touched: bool,
    /// The RDS has read its list back without the host, in this fence.
    #[serde(default)]
    pub denied: bool,
    /// Who preempted the registration, once that is done.
    pub preempted_by: Option<NodeId>,
    /// It was there to be aborted, and the target is one whose abort waits for what is in flight.
    #[serde(default)]
    pub aborted: bool,
    /// The RDS, to take the host off its list.
    #[serde(skip)]
    pub(crate) pending: Option<OperationId>,
    /// Not before then is the next try.
    #[serde(skip)]
    pub(crate) retry_at: Option<UnixMillis>,
    /// It is of a record from before this process.
    #[serde(skip)]
    pub(crate) old: bool,
}

/// A node that was cut off from a volume. It is granted nothing until its own report shows that it holds none of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Fenced {
    /// The node.
    pub node: NodeId,
    /// The host that was cut off.
    pub host_nqn: HostNqn,
    /// The grant that was ended.
    pub epoch: Epoch,
    /// The proof that it was cut off.
    pub evidence: Evidence,
    /// When it began.
    pub since: UnixMillis,
    /// A person has said that the node is gone, so another host may take over its name.
    #[serde(default)]
    pub gone: bool,
    /// The agent, to revoke what it holds.
    #[serde(skip)]
    pub(crate) pending: Option<(OperationId, SessionId)>,
    /// Not before then is the next try.
    #[serde(skip)]
    pub(crate) retry_at: Option<UnixMillis>,
}

impl Fenced {
    pub(crate) fn new(node: NodeId, host_nqn: HostNqn, evidence: Evidence, now: UnixMillis) -> Self {
        let epoch = evidence.epoch;
        Self { node, host_nqn, epoch, evidence, since: now, gone: false, pending: None, retry_at: None }
    }

    /// A person has said that the node is gone: nobody waits for its report.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone || matches!(self.evidence.source, crate::Source::NodeGone { .. })
    }

    /// The fence holds only while the export is off, so nobody else can be granted the volume.
    #[must_use]
    pub fn blocks(&self) -> bool {
        matches!(self.evidence.source, crate::Source::ExportOff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_meets_what_it_can_do_or_better_and_says_what_it_lacks() {
        let acl = TargetAbilities { acl: true, export_cuts: true, ..TargetAbilities::default() };
        assert_eq!(
            TargetAbilities::default().meets(MinFence::NodeGone),
            Ok(()),
            "a person can always say so"
        );
        for min in [MinFence::ExportOff, MinFence::Acl] {
            assert_eq!(acl.meets(min), Ok(()));
        }
        let tried = |rung, result: &str| Tried { rung, result: result.to_owned() };
        assert_eq!(
            acl.meets(MinFence::Secret),
            Err(vec![
                tried(Rung::Reservation, "the target has no reservations"),
                tried(Rung::Secret, "the target asks for no secret"),
            ])
        );
        let reserves =
            TargetAbilities { reservations: ReservationAbility::AbortWaits, ..TargetAbilities::default() };
        assert_eq!(
            reserves.meets(MinFence::Reservation),
            Err(vec![tried(Rung::Reservation, "the target has no list of hosts that it keeps to")])
        );
    }
}
