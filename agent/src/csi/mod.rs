//! CSI on the Unix socket: Identity, Node and health. Only the edge: the volume decides what a call does.
//!
//! Always holds: a request is checked before anything is read. An error gets its status in one place
//! (`status`) and is logged once, here.

mod identity;
mod node;
pub mod registration;
pub mod request;
mod status;

use cleat_proto::csi::v1::identity_server::IdentityServer;
use cleat_proto::csi::v1::node_server::NodeServer;
use cleat_runtime::grpc::{self, Keepalive};
use cleat_runtime::unix::UnixIncoming;
use tokio_util::sync::CancellationToken;

use crate::name::NodeId;
use crate::volume::Fleet;
use crate::volume::host::Host;

pub use identity::IdentityService;
pub use node::NodeService;

/// The transport failed, so CSI is not served any more.
#[derive(Debug, thiserror::Error)]
#[error("the CSI server failed")]
pub struct ServeError(#[from] tonic::transport::Error);

/// Serves until it is asked to stop; calls that are under way are answered first.
///
/// # Errors
/// [`ServeError`].
pub async fn serve<H: Host>(
    incoming: UnixIncoming,
    driver_name: String,
    node_id: NodeId,
    max_volumes: u32,
    fleet: Fleet<H>,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<NodeServer<NodeService<H>>>().await;
    reporter.set_serving::<IdentityServer<IdentityService>>().await;
    grpc::server(Keepalive::default())
        .add_service(health)
        .add_service(IdentityServer::new(IdentityService::new(driver_name)))
        .add_service(NodeServer::new(NodeService::new(node_id, max_volumes, fleet)))
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "csi_tests.rs"]
mod tests;
