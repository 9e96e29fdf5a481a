//! The RPCs.

use std::pin::Pin;
use std::sync::Arc;

use cleat_core::{Core, IdError, NodeId, Statement, TicketId, UnixMillis, VolumeId};
use cleat_proto::cleat::v1 as proto;
use cleat_proto::cleat::v1::operator_server::Operator;
use cleat_rds::secret::Keys;
use cleat_runtime::tls::renew::{Expiry, Renewable};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{drift, info, rights, ticket_calls, tickets, watch};
use crate::agents::Reports;
use crate::clients::Caller;
use crate::csi::TicketVolumes;
use crate::engine::Engine;

/// Events that may wait for one watcher.
const WATCH_QUEUE: usize = 64;

/// The `Operator` service.
#[derive(Clone)]
pub struct Operators {
    engine: Engine,
    reports: Reports,
    certificates: Vec<Arc<dyn Renewable>>,
    secrets: Option<Arc<Keys>>,
    volumes: Option<TicketVolumes>,
    stop: CancellationToken,
}

impl Operators {
    /// The service; every open watch ends when `stop` is cancelled. `volumes`: those that tickets are put for here; `None` in a
    /// cluster, where tickets are objects.
    #[must_use]
    pub fn new(
        engine: Engine,
        reports: Reports,
        certificates: Vec<Arc<dyn Renewable>>,
        secrets: Option<Arc<Keys>>,
        volumes: Option<TicketVolumes>,
        stop: CancellationToken,
    ) -> Self {
        Self { engine, reports, certificates, secrets, volumes, stop }
    }

    /// The tickets that are to be shown, of one volume or (`None`) of all, each as it stands.
    async fn tickets(&self, of: Option<VolumeId>) -> Result<Vec<proto::TicketInfo>, Status> {
        let standings = self.engine.tickets().all();
        let look = move |core: &Core, _: UnixMillis| tickets::tickets(core, &standings, of.as_ref());
        let tickets = self.engine.view(look).await.map_err(Status::from)?;
        Ok(tickets.into_iter().map(|ticket| tickets::with_device(ticket, &self.reports)).collect())
    }

    /// One ticket, of which the volume is known.
    async fn ticket(&self, volume: VolumeId, id: &TicketId) -> Result<Response<proto::TicketInfo>, Status> {
        let mut of_volume = self.tickets(Some(volume)).await?.into_iter();
        let found = of_volume.find(|ticket| ticket.id == id.as_str());
        found.map(Response::new).ok_or_else(|| Status::not_found(format!("ticket {id} has ended")))
    }
}

pub(super) fn invalid(field: &'static str) -> impl Fn(IdError) -> Status {
    move |error| Status::invalid_argument(format!("{field}: {error}"))
}

/// The longest that a reason may be; it is kept with every evidence that rests on it.
const REASON_BYTES: usize = 500;

/// Who states it, and why: the first is what the caller's certificate or token says, the second may not be left out. That is all
/// there will be to ask about later.
fn statement(caller: &Caller, reason: String) -> Result<Statement, Status> {
    if reason.trim().is_empty() || reason.len() > REASON_BYTES || reason.chars().any(char::is_control) {
        return Err(Status::invalid_argument(format!(
            "reason {reason:?}: must be given, as one line of at most {REASON_BYTES} bytes"
        )));
    }
    Ok(Statement { by: caller.name(), reason: reason.trim().to_owned() })
}

fn panicked(error: tokio::task::JoinError) -> Status {
    Status::internal(format!("the operation ended without an answer: {error}; repeat the call"))
}

#[tonic::async_trait]
impl Operator for Operators {
    type WatchStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<proto::WatchEvent, Status>> + Send>>;

    async fn list_volumes(
        &self,
        request: Request<proto::ListVolumesRequest>,
    ) -> Result<Response<proto::ListVolumesResponse>, Status> {
        Caller::of(&request)?.may(rights::list(rights::VOLUMES)).await?;
        let volumes = self.engine.view(info::volumes).await.map_err(Status::from)?;
        let volumes = volumes.into_iter().map(|volume| info::with_reports(volume, &self.reports)).collect();
        Ok(Response::new(proto::ListVolumesResponse { volumes }))
    }

    async fn get_volume(
        &self,
        request: Request<proto::GetVolumeRequest>,
    ) -> Result<Response<proto::VolumeInfo>, Status> {
        let caller = Caller::of(&request)?;
        let volume = VolumeId::new(request.into_inner().volume_id).map_err(invalid("volume_id"))?;
        caller.may(rights::get(rights::VOLUMES, volume.as_str())).await?;
        let id = volume.clone();
        let found =
            self.engine.view(move |core, now| info::volume(core, &id, now)).await.map_err(Status::from)?;
        let found = found.ok_or_else(|| {
            Status::not_found(format!(
                "volume {volume} is not tracked: it is attached nowhere, and no proof about it is kept. Whether the \
                 RDS has it is another question"
            ))
        })?;
        Ok(Response::new(info::with_reports(found, &self.reports)))
    }

    async fn list_nodes(
        &self,
        request: Request<proto::ListNodesRequest>,
    ) -> Result<Response<proto::ListNodesResponse>, Status> {
        Caller::of(&request)?.may(rights::list(rights::NODES)).await?;
        let nodes = self.engine.view(info::nodes).await.map_err(Status::from)?;
        let nodes = nodes.into_iter().map(|node| info::node_with_report(node, &self.reports)).collect();
        Ok(Response::new(proto::ListNodesResponse { nodes }))
    }

    async fn get_node(
        &self,
        request: Request<proto::GetNodeRequest>,
    ) -> Result<Response<proto::NodeInfo>, Status> {
        let caller = Caller::of(&request)?;
        let node = NodeId::new(request.into_inner().node_id).map_err(invalid("node_id"))?;
        caller.may(rights::get(rights::NODES, node.as_str())).await?;
        let id = node.clone();
        let found = self.engine.view(move |core, now| info::node(core, &id, now));
        let found = found.await.map_err(Status::from)?;
        let found = found.ok_or_else(|| {
            Status::not_found(format!("node {node} has not been heard since this controller started"))
        })?;
        Ok(Response::new(info::node_with_report(found, &self.reports)))
    }

    async fn list_migrations(
        &self,
        request: Request<proto::ListMigrationsRequest>,
    ) -> Result<Response<proto::ListMigrationsResponse>, Status> {
        Caller::of(&request)?.may(rights::list(rights::VOLUMES)).await?;
        let migrations = self.engine.view(|core, _| info::migrations(core)).await.map_err(Status::from)?;
        Ok(Response::new(proto::ListMigrationsResponse { migrations }))
    }

    async fn list_tickets(
        &self,
        request: Request<proto::ListTicketsRequest>,
    ) -> Result<Response<proto::ListTicketsResponse>, Status> {
        Caller::of(&request)?.may(rights::list(rights::TICKETS)).await?;
        let of = Some(request.into_inner().volume_id).filter(|id| !id.is_empty());
        let of = of.map(VolumeId::new).transpose().map_err(invalid("volume_id"))?;
        Ok(Response::new(proto::ListTicketsResponse { tickets: self.tickets(of).await? }))
    }

    async fn get_ticket(
        &self,
        request: Request<proto::GetTicketRequest>,
    ) -> Result<Response<proto::TicketInfo>, Status> {
        let caller = Caller::of(&request)?;
        let id = ticket_calls::ticket_id(request.into_inner().id)?;
        caller.may(rights::get(rights::TICKETS, id.as_str())).await?;
        let volume = ticket_calls::volume_of(&self.engine, &id).await?;
        self.ticket(volume, &id).await
    }

    async fn put_ticket(
        &self,
        request: Request<proto::PutTicketRequest>,
    ) -> Result<Response<proto::TicketInfo>, Status> {
        let caller = Caller::of(&request)?;
        let wish = ticket_calls::Wish::check(request.into_inner())?;
        for right in rights::put_ticket(wish.kind) {
            caller.may(right).await?;
        }
        let volumes = self.volumes.as_ref().ok_or_else(ticket_calls::of_objects)?;
        let (volume, id) = (wish.volume.clone(), wish.id.clone());
        tracing::info!(%volume, ticket = %id, kind = wish.kind.name(), by = caller.name(), "a ticket is put");
        ticket_calls::put(&self.engine, volumes, wish).await?;
        self.ticket(volume, &id).await
    }

    async fn renew_ticket(
        &self,
        request: Request<proto::RenewTicketRequest>,
    ) -> Result<Response<proto::TicketInfo>, Status> {
        let caller = Caller::of(&request)?;
        let id = ticket_calls::ticket_id(request.into_inner().id)?;
        caller.may(rights::renew_ticket(id.as_str())).await?;
        self.volumes.as_ref().ok_or_else(ticket_calls::of_objects)?;
        let volume = ticket_calls::volume_of(&self.engine, &id).await?;
        ticket_calls::renew(&self.engine, &volume, &id).await?;
        self.ticket(volume, &id).await
    }

    async fn delete_ticket(
        &self,
        request: Request<proto::DeleteTicketRequest>,
    ) -> Result<Response<proto::DeleteTicketResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = ticket_calls::ticket_id(request.into_inner().id)?;
        caller.may(rights::delete_ticket(id.as_str())).await?;
        self.volumes.as_ref().ok_or_else(ticket_calls::of_objects)?;
        tracing::info!(ticket = %id, by = caller.name(), "a ticket is ended");
        ticket_calls::delete(&self.engine, &id).await?;
        Ok(Response::new(proto::DeleteTicketResponse {}))
    }

    async fn fence(
        &self,
        request: Request<proto::FenceRequest>,
    ) -> Result<Response<proto::FenceResponse>, Status> {
        let caller = Caller::of(&request)?;
        let proto::FenceRequest { volume_id, node_id, reason } = request.into_inner();
        let volume = VolumeId::new(volume_id).map_err(invalid("volume_id"))?;
        let node = NodeId::new(node_id).map_err(invalid("node_id"))?;
        caller.may(rights::fence(volume.as_str())).await?;
        let statement = statement(&caller, reason)?;
        tracing::warn!(%volume, %node, by = statement.by, reason = statement.reason, "an operator requests a fence");
        let (engine, id) = (self.engine.clone(), volume.clone());
        // In a task of its own: it goes on when the caller has gone.
        let fencing = tokio::spawn(async move { engine.fence(id, node, statement).await });
        fencing.await.map_err(panicked)?.map_err(Status::from)?;
        let found = self
            .engine
            .view(move |core, now| info::volume(core, &volume, now))
            .await
            .map_err(Status::from)?;
        let volume = found.map(|found| info::with_reports(found, &self.reports));
        Ok(Response::new(proto::FenceResponse { volume }))
    }

    async fn declare_gone(
        &self,
        request: Request<proto::DeclareGoneRequest>,
    ) -> Result<Response<proto::DeclareGoneResponse>, Status> {
        let caller = Caller::of(&request)?;
        let proto::DeclareGoneRequest { node_id, reason } = request.into_inner();
        let node = NodeId::new(node_id).map_err(invalid("node_id"))?;
        caller.may(rights::declare_gone(node.as_str())).await?;
        let statement = statement(&caller, reason)?;
        tracing::warn!(%node, by = statement.by, reason = statement.reason, "an operator declares a node gone");
        let engine = self.engine.clone();
        let declaring = tokio::spawn(async move { engine.declare_gone(node, statement).await });
        declaring.await.map_err(panicked)?.map_err(Status::from)?;
        Ok(Response::new(proto::DeclareGoneResponse {}))
    }

    async fn list_drift(
        &self,
        request: Request<proto::ListDriftRequest>,
    ) -> Result<Response<proto::ListDriftResponse>, Status> {
        let caller = Caller::of(&request)?;
        for resource in [rights::VOLUMES, rights::NODES] {
            caller.may(rights::list(resource)).await?;
        }
        let drift =
            drift::look(&self.engine, &self.reports, self.secrets.clone()).await.map_err(Status::from)?;
        let mut expiries: Vec<Expiry> = Vec::new();
        for expiry in self.certificates.iter().flat_map(|renewed| renewed.expiries()) {
            // Both listeners have the same files.
            if !expiries.contains(&expiry) {
                expiries.push(expiry);
            }
        }
        let mut drift: Vec<_> = drift.into_iter().map(drift::Drift::into_proto).collect();
        drift.extend(expiries.into_iter().filter_map(drift::expires));
        Ok(Response::new(proto::ListDriftResponse { drift }))
    }

    async fn watch(
        &self,
        request: Request<proto::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = Caller::of(&request)?;
        for resource in [rights::VOLUMES, rights::NODES] {
            caller.may(rights::watch(resource)).await?;
        }
        let (out, events) = mpsc::channel(WATCH_QUEUE);
        let watch = watch::Watch::new(self.engine.clone(), self.reports.clone(), out);
        tokio::spawn(watch.run(self.stop.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(events))))
    }
}
