//! Tickets by RPC: what is asked is checked, and handed to the core.
//!
//! In come messages; out go events for the core, once what they rest on is known. What always holds: what is kept of a ticket
//! has a greatest length, and there are so many of them at most; an id names one ticket; nobody asks here for a workload's
//! own ticket. In a cluster, where tickets are objects, nobody asks here for any.

use std::ops::RangeInclusive;

use cleat_core::{Access, Event, NodeId, Ticket, TicketId, TicketType, VolumeId};
use cleat_proto::cleat::v1 as proto;
use tonic::Status;

use super::service::invalid;
use crate::csi::TicketVolumes;
use crate::engine::Engine;

/// The longest holder.
const HOLDER_BYTES: usize = 253;
/// Within which time a ticket may have to be renewed.
const RENEW_MS: RangeInclusive<u64> = 10_000..=3_600_000;
/// Within which time it has to be, where that is not said.
const USUAL_RENEW_MS: u64 = 60_000;
/// What the ids of workloads' own tickets begin with.
const OF_WORKLOADS: &str = "csi.";

/// What somebody wants of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) volume: VolumeId,
    pub(super) id: TicketId,
    pub(super) kind: TicketType,
    node: Option<NodeId>,
    holder: String,
    generation: u64,
    renew_ms: Option<u64>,
    access: Option<Access>,
}

impl Wish {
    #[allow(clippy::result_large_err)] // tonic's own
    pub(super) fn check(request: proto::PutTicketRequest) -> Result<Self, Status> {
        let proto::PutTicketRequest { id, volume_id, kind, node_id, holder, generation, renew_ms, access } =
            request;
        let id = ticket_id(id)?;
        if id.as_str().starts_with(OF_WORKLOADS) {
            return Err(Status::invalid_argument(format!(
                "id: {id} is a workload's own ticket, as each that begins with {OF_WORKLOADS}; use another id"
            )));
        }
        let kind = kind_named(&kind)?;
        let node = Some(node_id).filter(|node| !node.is_empty());
        let node = node.map(NodeId::new).transpose().map_err(invalid("node_id"))?;
        if kind.is_workload() && node.is_none() {
            return Err(Status::invalid_argument(format!(
                "node_id: must be given for a ticket of type {}, which is for one node and no other",
                kind.name()
            )));
        }
        if holder.trim().is_empty() || holder.len() > HOLDER_BYTES || holder.chars().any(char::is_control) {
            return Err(Status::invalid_argument(format!(
                "holder: must be given, as one line of at most {HOLDER_BYTES} bytes"
            )));
        }
        if generation == 0 {
            return Err(Status::invalid_argument("generation: must be at least 1"));
        }
        let renew_ms = if renew_ms == 0 { USUAL_RENEW_MS } else { renew_ms };
        if !RENEW_MS.contains(&renew_ms) {
            return Err(Status::invalid_argument(format!(
                "renew_ms: {renew_ms} is not from {} to {}",
                RENEW_MS.start(),
                RENEW_MS.end()
            )));
        }
        Ok(Self {
            volume: VolumeId::new(volume_id).map_err(invalid("volume_id"))?,
            id,
            kind,
            node,
            holder: holder.trim().to_owned(),
            generation,
            renew_ms: kind.is_interruptible().then_some(renew_ms),
            access: access_named(&access)?,
        })
    }
}

#[allow(clippy::result_large_err)] // tonic's own
pub(super) fn ticket_id(id: String) -> Result<TicketId, Status> {
    TicketId::new(id).map_err(invalid("id"))
}

#[allow(clippy::result_large_err)] // tonic's own
fn kind_named(name: &str) -> Result<TicketType, Status> {
    let open = || TicketType::ALL.into_iter().filter(|kind| *kind != TicketType::Csi);
    open().find(|kind| kind.name() == name).ok_or_else(|| {
        let names: Vec<&str> = open().map(TicketType::name).collect();
        Status::invalid_argument(format!("kind: must be one of {}", names.join(", ")))
    })
}

#[allow(clippy::result_large_err)] // tonic's own
fn access_named(name: &str) -> Result<Option<Access>, Status> {
    let all = [Access::Rwo, Access::RwxBlock];
    let known = all.into_iter().find(|access| access.name() == name);
    if known.is_some() || name.is_empty() {
        return Ok(known);
    }
    Err(Status::invalid_argument(format!(
        "access: must be one of {}, or empty",
        all.map(Access::name).join(", ")
    )))
}

/// Which volume a ticket is for; an error if there is no such ticket.
pub(super) async fn volume_of(engine: &Engine, id: &TicketId) -> Result<VolumeId, Status> {
    known_volume_of(engine, id).await?.ok_or_else(|| {
        Status::not_found(format!(
            "ticket {id} is not known: it was lost, has ended, or is still to be put; put it again"
        ))
    })
}

async fn known_volume_of(engine: &Engine, id: &TicketId) -> Result<Option<VolumeId>, Status> {
    let id = id.clone();
    engine.view(move |core, _| core.volume_of_ticket(&id)).await.map_err(Status::from)
}

/// Why a ticket is not changed by RPC in a cluster: what an object says would take its place at once.
pub(super) fn of_objects() -> Status {
    Status::failed_precondition(
        "cannot change tickets here: in a cluster they are objects (tickets.cleat.io) of their claims' namespaces; use kubectl, or \
         cleatctl ticket run --in NAMESPACE",
    )
}

/// Hands a wish to the core. It is durable when this returns, as far as anything comes of it at once.
pub(super) async fn put(engine: &Engine, volumes: &TicketVolumes, wish: Wish) -> Result<(), Status> {
    let Wish { volume, id, kind, node, holder, generation, renew_ms, access } = wish;
    if let Some(other) = known_volume_of(engine, &id).await?.filter(|other| *other != volume) {
        return Err(Status::already_exists(format!(
            "ticket {id} is one for volume {other}; use another id, or delete that one first"
        )));
    }
    let spec = volumes.spec(&volume, access).await?;
    if kind == TicketType::Api && spec.access == Access::RwxBlock && spec.require_migration {
        return Err(Status::failed_precondition(format!(
            "volume {volume} asks for a live migration for each second node (requireMigration), and a ticket of type api is \
             none; use a volume that does not, or a pod"
        )));
    }
    let now = engine.now();
    let (since, renewed, waits_since) = (now, now, now);
    let ticket =
        Ticket { id: id.clone(), kind, node, holder, generation, since, renewed, renew_ms, waits_since };
    engine.submit(Event::TicketWanted { spec, ticket: Box::new(ticket) }).await?;
    let (of, wanted) = (volume.clone(), id.clone());
    if engine.decided(volume.clone(), move |core, _| core.ticket(&of, &wanted).is_some()).await? {
        return Ok(());
    }
    // Nothing that was said of it is to stay either.
    engine.submit(Event::TicketGone { volume: volume.clone(), ticket: id.clone() }).await?;
    Err(Status::resource_exhausted(format!(
        "ticket {id} cannot be kept: volume {volume}, or the controller, has as many as it may have; end another one first"
    )))
}

/// Notes that a ticket's holder is there still.
pub(super) async fn renew(engine: &Engine, volume: &VolumeId, id: &TicketId) -> Result<(), Status> {
    engine.submit(Event::TicketRenewed { volume: volume.clone(), ticket: id.clone() }).await?;
    Ok(engine.decided(volume.clone(), |_, _| ()).await?)
}

/// Ends a ticket; one that is not known has ended.
pub(super) async fn delete(engine: &Engine, id: &TicketId) -> Result<(), Status> {
    let Some(volume) = known_volume_of(engine, id).await? else { return Ok(()) };
    engine.submit(Event::TicketGone { volume: volume.clone(), ticket: id.clone() }).await?;
    Ok(engine.decided(volume, |_, _| ()).await?)
}

#[cfg(test)]
#[path = "ticket_calls_tests.rs"]
mod tests;
