//! What agents send, checked.
//!
//! In come messages; out go core types that cannot hold anything invalid, or [`Malformed`] with the field and the value.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::str::FromStr;

use cleat_core::{
    Absence, BootId, Deleted, DeviceIdentity, DeviceShown, Epoch, HostId, HostNqn, IdError, NamespaceUuid,
    Nguid, NodeId, NodeIdentity, Observed, ObservedPhase, OperationId, Outcome, StorageAddress, VolumeId,
};
use cleat_ids::NqnPrefix;
use cleat_proto::cleat::v1 as proto;
use cleat_proto::session_protocol_with;
use uuid::Uuid;

use super::limits;
use super::malformed::Malformed;

fn field(field: &'static str, value: impl Into<String>, rule: &'static str) -> Malformed {
    let mut value = value.into();
    limits::name(&mut value);
    Malformed::Field { field, value, rule }
}

fn name(field: &'static str) -> impl Fn(IdError) -> Malformed {
    move |source| Malformed::Name { field, source }
}

/// An agent that has said who it is.
#[derive(Debug, Clone)]
pub(super) struct Introduced {
    pub(super) node: NodeId,
    pub(super) identity: NodeIdentity,
    pub(super) capabilities: proto::Capabilities,
    pub(super) agent_version: String,
    /// The version of the session's protocol that the agent speaks.
    pub(super) protocol: u32,
    pub(super) max_volumes: Option<NonZeroU32>,
}

pub(super) fn hello(mut hello: proto::Hello, prefix: &NqnPrefix) -> Result<Introduced, Malformed> {
    // First: the rest is for who speaks our language.
    if let Err(apart) = session_protocol_with("agent", "controller", hello.protocol) {
        limits::name(&mut hello.agent_version);
        return Err(Malformed::Protocol { apart, agent: hello.agent_version });
    }
    limits::hello(&mut hello)?;
    let proto::Hello { protocol, node_id, identity, capabilities, agent_version, max_volumes } = hello;
    let node = NodeId::new(node_id).map_err(name("hello.node_id"))?;
    let identity = node_identity(identity.ok_or(Malformed::Missing("hello.identity"))?)?;
    let capabilities = capabilities.ok_or(Malformed::Missing("hello.capabilities"))?;
    if capabilities.nqn_prefix != prefix.as_str() {
        return Err(Malformed::Prefix { agent: capabilities.nqn_prefix, ours: prefix.to_string() });
    }
    let max_volumes = NonZeroU32::new(max_volumes);
    Ok(Introduced { node, identity, capabilities, agent_version, protocol, max_volumes })
}

fn node_identity(identity: proto::NodeIdentity) -> Result<NodeIdentity, Malformed> {
    let proto::NodeIdentity { host_nqn, host_id, storage_addresses, boot_id } = identity;
    let storage_addresses = storage_addresses
        .iter()
        .map(|address| StorageAddress::parse(address).map_err(name("hello.identity.storage_addresses")))
        .collect::<Result<_, _>>()?;
    // As Linux gives it in /proc/sys/kernel/random/boot_id.
    let boot_id = match Uuid::parse_str(&boot_id) {
        Ok(boot_id) if !boot_id.is_nil() => boot_id.to_string(),
        _ => return Err(field("hello.identity.boot_id", boot_id, "a UUID that is not zero")),
    };
    Ok(NodeIdentity {
        host_nqn: HostNqn::new(host_nqn).map_err(name("hello.identity.host_nqn"))?,
        host_id: HostId::parse(&host_id).map_err(name("hello.identity.host_id"))?,
        storage_addresses,
        boot_id: BootId::new(boot_id).map_err(name("hello.identity.boot_id"))?,
    })
}

/// An inventory, as the core sees it and in full.
pub(super) fn inventory(
    mut inventory: proto::Inventory,
) -> Result<(Vec<Observed>, BTreeMap<VolumeId, proto::VolumeState>), Malformed> {
    limits::inventory(&mut inventory)?;
    let mut observed = Vec::with_capacity(inventory.volumes.len());
    let mut full = BTreeMap::new();
    for state in inventory.volumes {
        let seen = volume_state(&state)?;
        if full.insert(seen.volume.clone(), state).is_some() {
            return Err(field("inventory.volumes", seen.volume, "each volume once"));
        }
        observed.push(seen);
    }
    Ok((observed, full))
}

/// A change of one volume's state, as the core sees it and in full.
pub(super) fn delta(mut state: proto::VolumeState) -> Result<(Observed, proto::VolumeState), Malformed> {
    limits::state(&mut state)?;
    Ok((volume_state(&state)?, state))
}

/// One volume's state, as the core sees it.
pub(super) fn volume_state(state: &proto::VolumeState) -> Result<Observed, Malformed> {
    let volume = VolumeId::new(state.volume_id.as_str()).map_err(name("volume_id"))?;
    let phase = match proto::volume_state::Phase::try_from(state.phase) {
        Ok(proto::volume_state::Phase::Absent) => ObservedPhase::Absent,
        Ok(proto::volume_state::Phase::Connecting) => ObservedPhase::Connecting,
        Ok(proto::volume_state::Phase::Ready) => ObservedPhase::Ready,
        Ok(proto::volume_state::Phase::Degraded) => ObservedPhase::Degraded,
        Ok(proto::volume_state::Phase::Lost) => ObservedPhase::Lost,
        Ok(proto::volume_state::Phase::Detaching) => ObservedPhase::Detaching,
        Ok(proto::volume_state::Phase::Unspecified) | Err(_) => {
            return Err(field("phase", state.phase.to_string(), "a phase that this controller knows"));
        }
    };
    let live = state.paths.iter().filter(|path| path.state == "live").count();
    Ok(Observed {
        volume,
        epoch: state.epoch.map(epoch),
        ended: state.epoch_ended,
        phase,
        live_paths: u32::try_from(live).unwrap_or(u32::MAX),
        unready: state
            .unready
            .as_ref()
            .map(|unready| format!("{}: {}", unready.clause, unready.message))
            .unwrap_or_default(),
        shown: state.identity.as_ref().and_then(shown),
        unbroken: state.unbroken,
    })
}

/// What the device is like. One without a size is that of an agent which does not say it.
fn shown(identity: &proto::Identity) -> Option<DeviceShown> {
    let proto::Identity { size_bytes, block_size_bytes, read_only, .. } = *identity;
    let block_size_bytes = (block_size_bytes > 0).then_some(block_size_bytes);
    (size_bytes > 0).then_some(DeviceShown { size_bytes, block_size_bytes, read_only })
}

/// An outcome that a newer agent has and this controller does not know: it proves nothing, and whoever waits learns why.
pub(super) fn outcome_not_known() -> proto::directive_result::Outcome {
    let message =
        "the agent answered with an outcome that this controller does not know; upgrade the controller";
    let unready = proto::Unready { clause: "unknown-outcome".into(), message: message.into() };
    proto::directive_result::Outcome::Failed(proto::FailedOutcome {
        unready: Some(unready),
        nothing_left: false,
    })
}

/// A directive's answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    pub(super) operation: OperationId,
    pub(super) volume: VolumeId,
    pub(super) epoch: Epoch,
    pub(super) outcome: Outcome,
    /// What it says of the volume in full, where it does.
    pub(super) state: Option<proto::VolumeState>,
    pub(super) times: Times,
}

/// Where the agent's time went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Times {
    None,
    Attach(proto::AttachTimes),
    Detach(proto::DetachTimes),
}

pub(super) fn result(mut result: proto::DirectiveResult) -> Result<Answer, Malformed> {
    use proto::directive_result::Outcome as Said;
    limits::result(&mut result)?;
    let proto::DirectiveResult { operation_id, volume_id, epoch: said_epoch, outcome } = result;
    let volume = VolumeId::new(volume_id).map_err(name("result.volume_id"))?;
    let mut state = None;
    let mut times = Times::None;
    let outcome = match outcome.ok_or(Malformed::Missing("result.outcome"))? {
        Said::Ready(ready) => {
            times = ready.times.map_or(Times::None, Times::Attach);
            let full = ready.state.ok_or(Malformed::Missing("result.ready.state"))?;
            let outcome = proven(&full, &volume)?;
            state = Some(full);
            outcome
        }
        Said::Absent(absent) => {
            times = absent.times.map_or(Times::None, Times::Detach);
            Outcome::Absent(absence(absent))
        }
        Said::Busy(busy) => Outcome::Busy { holders: busy.holders },
        Said::Failed(failed) => {
            let unready = failed.unready.ok_or(Malformed::Missing("result.failed.unready"))?;
            Outcome::Failed {
                clause: unready.clause,
                message: unready.message,
                nothing_left: failed.nothing_left,
            }
        }
        Said::StaleEpoch(stale) => Outcome::Stale {
            highest: stale.highest.map(epoch).ok_or(Malformed::Missing("result.stale_epoch.highest"))?,
            ended: stale.ended,
        },
        Said::Pending(pending) => Outcome::Pending { message: pending.message },
        Said::Preempted(preempted) => {
            Outcome::Preempted { left: preempted.left_keys, aborted: preempted.aborted_keys }
        }
        Said::Rekeyed(_) => Outcome::Rekeyed,
    };
    Ok(Answer {
        operation: OperationId::from_str(&operation_id).map_err(name("result.operation_id"))?,
        volume,
        epoch: said_epoch.map(epoch).ok_or(Malformed::Missing("result.epoch"))?,
        outcome,
        state,
        times,
    })
}

/// What a ready device says of itself. Without a UUID there would be nothing to compare the other node's with, so that
/// counts as the clause that it is; of this volume alone, for the session has others to look after.
fn proven(state: &proto::VolumeState, volume: &VolumeId) -> Result<Outcome, Malformed> {
    if state.volume_id != volume.as_str() {
        return Err(field(
            "result.ready.state.volume_id",
            state.volume_id.as_str(),
            "the volume that the result is about",
        ));
    }
    volume_state(state)?;
    let identity = state.identity.clone().unwrap_or_default();
    Ok(match NamespaceUuid::parse(&identity.namespace_uuid) {
        // A text that is no NGUID identifies nothing, like an empty one.
        Ok(namespace_uuid) => Outcome::Ready {
            identity: DeviceIdentity { namespace_uuid, nguid: Nguid::parse(&identity.nguid).ok() },
            shown: shown(&identity),
        },
        Err(_) => Outcome::Failed {
            clause: "namespace-identity".to_owned(),
            message: format!(
                "the namespace gives {:?} for its UUID: the RDS has to give each one of its own",
                identity.namespace_uuid
            ),
            nothing_left: false,
        },
    })
}

/// What an agent has counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Writes {
    pub(super) operation: OperationId,
    pub(super) volume: VolumeId,
    pub(super) epoch: Epoch,
    pub(super) writes: u64,
    pub(super) age_ms: u64,
    pub(super) open: bool,
}

pub(super) fn writes(said: &proto::WritesCounted) -> Result<Writes, Malformed> {
    Ok(Writes {
        operation: OperationId::from_str(&said.operation_id).map_err(name("writes.operation_id"))?,
        volume: VolumeId::new(said.volume_id.as_str()).map_err(name("writes.volume_id"))?,
        epoch: said.epoch.map(epoch).ok_or(Malformed::Missing("writes.epoch"))?,
        writes: said.writes,
        age_ms: said.last_write_age_us / 1000,
        open: said.open,
    })
}

fn absence(absent: proto::AbsentOutcome) -> Absence {
    let deleted = absent.deleted.into_iter();
    Absence {
        deleted: deleted
            .map(|gone| Deleted { controller: gone.controller, state: gone.state_at_deletion })
            .collect(),
    }
}

fn epoch(epoch: proto::Epoch) -> Epoch {
    Epoch { term: epoch.term, seq: epoch.seq }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
