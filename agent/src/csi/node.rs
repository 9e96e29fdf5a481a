//! CSI Node: checks the request, passes it to the volume, maps the error.

use std::path::Path;

use cleat_proto::csi::v1 as csi;
use csi::node_server::Node as Service;
use csi::node_service_capability::{Rpc, Type as Capability, rpc};
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

use super::request::{self, InvalidRequest};
use crate::metrics::{self, CsiRpc};
use crate::name::{NodeId, NqnPrefix};
use crate::volume::Fleet;
use crate::volume::host::Host;

/// The CSI Node service of one node's volumes.
#[derive(Debug)]
pub struct NodeService<H> {
    node_id: NodeId,
    max_volumes: u32,
    fleet: Fleet<H>,
}

impl<H: Host> NodeService<H> {
    /// The Node service of a node that may have so many volumes at once (zero: any number).
    pub fn new(node_id: NodeId, max_volumes: u32, fleet: Fleet<H>) -> Self {
        Self { node_id, max_volumes, fleet }
    }

    async fn stage(&self, request: csi::NodeStageVolumeRequest) -> Result<(), Status> {
        let request = request::stage(&request, self.prefix())?;
        Ok(self.fleet.stage(request).await?)
    }

    async fn unstage(&self, request: csi::NodeUnstageVolumeRequest) -> Result<(), Status> {
        Ok(self.fleet.unstage(request::unstage(&request)?).await?)
    }

    async fn publish(&self, request: csi::NodePublishVolumeRequest) -> Result<(), Status> {
        let request = request::publish(&request, self.prefix())?;
        self.is_below(&request.target)?;
        Ok(self.fleet.publish(request).await?)
    }

    async fn unpublish(&self, request: csi::NodeUnpublishVolumeRequest) -> Result<(), Status> {
        let request = request::unpublish(&request)?;
        self.is_below(&request.target)?;
        Ok(self.fleet.unpublish(request).await?)
    }

    fn prefix(&self) -> &NqnPrefix {
        &self.fleet.shared().identity.prefix
    }

    fn is_below(&self, target: &Path) -> Result<(), InvalidRequest> {
        request::below(target, self.fleet.shared().host.kubelet_dir())
    }
}

/// Counts and logs the end of a call.
fn ended<T>(
    method: CsiRpc,
    volume: &str,
    began: Instant,
    result: Result<(), Status>,
    reply: T,
) -> Result<Response<T>, Status> {
    let code = result.as_ref().err().map_or(Code::Ok, Status::code);
    let took = began.elapsed();
    metrics::csi_call(method, code, took);
    match result {
        Ok(()) => {
            tracing::info!(method = method.as_str(), volume, ?took, "done");
            Ok(Response::new(reply))
        }
        Err(status) => {
            let error = status.message();
            tracing::warn!(method = method.as_str(), volume, ?took, ?code, error, "failed");
            Err(status)
        }
    }
}

#[tonic::async_trait]
impl<H: Host> Service for NodeService<H> {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let (began, request) = (Instant::now(), request.into_inner());
        let volume = request.volume_id.clone();
        let result = self.stage(request).await;
        ended(CsiRpc::Stage, &volume, began, result, csi::NodeStageVolumeResponse {})
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let (began, request) = (Instant::now(), request.into_inner());
        let volume = request.volume_id.clone();
        let result = self.unstage(request).await;
        ended(CsiRpc::Unstage, &volume, began, result, csi::NodeUnstageVolumeResponse {})
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let (began, request) = (Instant::now(), request.into_inner());
        let volume = request.volume_id.clone();
        let result = self.publish(request).await;
        ended(CsiRpc::Publish, &volume, began, result, csi::NodePublishVolumeResponse {})
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let (began, request) = (Instant::now(), request.into_inner());
        let volume = request.volume_id.clone();
        let result = self.unpublish(request).await;
        ended(CsiRpc::Unpublish, &volume, began, result, csi::NodeUnpublishVolumeResponse {})
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        let staging = Rpc { r#type: rpc::Type::StageUnstageVolume.into() };
        let capabilities = vec![csi::NodeServiceCapability { r#type: Some(Capability::Rpc(staging)) }];
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        Ok(Response::new(csi::NodeGetInfoResponse {
            node_id: self.node_id.to_string(),
            // Zero is CSI's own way to say that there is no limit.
            max_volumes_per_node: self.max_volumes.into(),
            accessible_topology: None,
        }))
    }
}
