//! CSI Identity: what this plug-in is.

use cleat_proto::csi::v1 as csi;
use csi::identity_server::Identity as Service;
use csi::plugin_capability::{Service as Offers, Type as Capability, service};
use tonic::{Request, Response, Status};

/// The CSI Identity service under one driver name.
#[derive(Debug)]
pub struct IdentityService {
    driver_name: String,
}

impl IdentityService {
    /// Identity under the driver's name.
    pub fn new(driver_name: String) -> Self {
        Self { driver_name }
    }
}

#[tonic::async_trait]
impl Service for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        Ok(Response::new(csi::GetPluginInfoResponse {
            name: self.driver_name.clone(),
            vendor_version: cleat_runtime::VERSION.to_owned(),
            manifest: [("component".to_owned(), "agent".to_owned())].into(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        // The driver as a whole has a controller service, in another process.
        let offers = Offers { r#type: service::Type::ControllerService.into() };
        let capabilities = vec![csi::PluginCapability { r#type: Some(Capability::Service(offers)) }];
        Ok(Response::new(csi::GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        // The socket is served only once the kernel and the ledger have been read: whoever reaches this may call.
        Ok(Response::new(csi::ProbeResponse { ready: Some(true) }))
    }
}
