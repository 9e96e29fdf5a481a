//! The CSI Identity service.

use cleat_proto::csi::v1 as csi;
use cleat_proto::csi::v1::identity_server::Identity;
use cleat_runtime::readiness::Readiness;
use csi::plugin_capability::service::Type;
use tonic::{Request, Response, Status};

use crate::leadership::Leadership;

/// The CSI Identity service.
pub struct CsiIdentity {
    name: String,
    conditions: [Readiness; 2],
    leadership: Leadership,
}

impl CsiIdentity {
    /// The service, under the driver's name. Ready is a leader for which all conditions hold.
    #[must_use]
    pub fn new(name: String, conditions: [Readiness; 2], leadership: Leadership) -> Self {
        Self { name, conditions, leadership }
    }
}

#[tonic::async_trait]
impl Identity for CsiIdentity {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        Ok(Response::new(csi::GetPluginInfoResponse {
            name: self.name.clone(),
            vendor_version: cleat_runtime::VERSION.to_owned(),
            ..Default::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        let controller = csi::PluginCapability {
            r#type: Some(csi::plugin_capability::Type::Service(csi::plugin_capability::Service {
                r#type: Type::ControllerService.into(),
            })),
        };
        Ok(Response::new(csi::GetPluginCapabilitiesResponse { capabilities: vec![controller] }))
    }

    /// Not an error while not ready: the sidecars wait on it, and an error would have them give up.
    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        let ready = self.leadership.serves() && self.conditions.iter().all(|all| all.missing().is_empty());
        Ok(Response::new(csi::ProbeResponse { ready: Some(ready) }))
    }
}
