//! The CSI Controller service: one shape for every call.
//!
//! Each call is checked, runs in a task of its own (its caller's deadline drops the handler, not the work), is
//! awaited, measured, logged once, and has its error mapped once.

use std::sync::Arc;
use std::time::Instant;

use cleat_core::VolumeId;
use cleat_kubernetes::attachments::Attachments;
use cleat_proto::csi::v1 as csi;
use cleat_proto::csi::v1::controller_server::Controller;
use cleat_rds::{Freshness, Rds};
use csi::controller_service_capability::rpc::Type;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use super::call_context::{CallContext, Serving};
use super::demands::VolumeDemands;
use super::status::CallError;
use super::{list, provision, publish, request};
use crate::engine::{Engine, EngineEnded};
use crate::metrics;

/// The CSI Controller service.
pub struct CsiController {
    context: Arc<CallContext>,
    stop: CancellationToken,
}

impl CsiController {
    /// The service. Calls that wait are answered at once when `stop` is cancelled; what they began goes on at the
    /// next start.
    #[must_use]
    pub fn new(
        engine: Engine,
        rds: Arc<dyn Rds>,
        serving: Serving,
        attachments: Option<Arc<Attachments>>,
        stop: CancellationToken,
    ) -> Self {
        Self { context: Arc::new(CallContext::new(engine, rds, serving, attachments)), stop }
    }

    /// Runs a call to its end, whether or not its caller waits.
    async fn call<T, F>(
        &self,
        call: Call<'_>,
        work: impl FnOnce(Arc<CallContext>) -> Result<F, CallError>,
    ) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CallError>> + Send + 'static,
    {
        let measure = Measure { call, began: Instant::now(), answered: false };
        let result = match work(Arc::clone(&self.context)) {
            Err(invalid) => Err(invalid),
            Ok(work) => {
                let work = tokio::spawn(work);
                tokio::select! {
                    ended = work => ended.unwrap_or_else(|panicked| Err(panicked.into())),
                    () = self.stop.cancelled() => Err(EngineEnded.into()),
                }
            }
        };
        measure.answer(result.as_ref().err());
        Ok(Response::new(result?))
    }
}

/// What a call is about, for logs.
#[derive(Clone, Copy)]
struct Call<'a> {
    rpc: &'static str,
    volume: &'a str,
    node: &'a str,
}

/// Logs and measures a call once, also if its caller went before the answer.
struct Measure<'a> {
    call: Call<'a>,
    began: Instant,
    answered: bool,
}

impl Measure<'_> {
    fn answer(mut self, error: Option<&CallError>) {
        self.answered = true;
        let Call { rpc, volume, node } = self.call;
        let took = self.began.elapsed();
        let duration_ms = took.as_millis();
        let code = error.map_or(Code::Ok, CallError::code);
        metrics::csi_call(rpc, took, code);
        let name = cleat_runtime::metrics::code_name(code);
        match error {
            None => tracing::info!(rpc, volume, node, code = name, duration_ms, "answered"),
            Some(error) => tracing::warn!(rpc, volume, node, code = name, duration_ms, %error, "answered"),
        }
    }
}

impl Drop for Measure<'_> {
    fn drop(&mut self) {
        if !self.answered {
            let Call { rpc, volume, node } = self.call;
            metrics::csi_call(rpc, self.began.elapsed(), Code::Cancelled);
            tracing::info!(rpc, volume, node, "the caller left; its request goes on");
        }
    }
}

#[tonic::async_trait]
impl Controller for CsiController {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        let call = Call { rpc: "CreateVolume", volume: &request.name, node: "" };
        self.call(call, |context| {
            let create = request::Create::check(&request)?;
            Ok(async move {
                let volume = provision::create(&context, create).await?;
                Ok(csi::CreateVolumeResponse { volume: Some(volume) })
            })
        })
        .await
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        let request = request.into_inner();
        let call = Call { rpc: "DeleteVolume", volume: &request.volume_id, node: "" };
        self.call(call, |context| {
            let volume = request::volume("volume_id", &request.volume_id)?;
            Ok(async move {
                provision::delete(&context, volume).await?;
                Ok(csi::DeleteVolumeResponse {})
            })
        })
        .await
    }

    async fn controller_publish_volume(
        &self,
        request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerPublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let call =
            Call { rpc: "ControllerPublishVolume", volume: &request.volume_id, node: &request.node_id };
        self.call(call, |context| {
            let publish = request::Publish::check(&request)?;
            // Before anything is awaited: in the order of the calls.
            let on_its_way = context.publishes.begin(publish.volume.clone(), publish.node.clone());
            Ok(async move {
                let publish_context = publish::publish(&context, publish, on_its_way).await?;
                Ok(csi::ControllerPublishVolumeResponse { publish_context })
            })
        })
        .await
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let call =
            Call { rpc: "ControllerUnpublishVolume", volume: &request.volume_id, node: &request.node_id };
        self.call(call, |context| {
            let unpublish = request::Unpublish::check(&request)?;
            Ok(async move {
                publish::unpublish(&context, unpublish).await?;
                Ok(csi::ControllerUnpublishVolumeResponse {})
            })
        })
        .await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        let id = request.volume_id.clone();
        let call = Call { rpc: "ValidateVolumeCapabilities", volume: &id, node: "" };
        self.call(call, |context| {
            let volume = request::volume("volume_id", &request.volume_id)?;
            if request.volume_capabilities.is_empty() {
                request::capabilities(&[])?;
            }
            Ok(async move { validate(&context, volume, request).await })
        })
        .await
    }

    async fn list_volumes(
        &self,
        request: Request<csi::ListVolumesRequest>,
    ) -> Result<Response<csi::ListVolumesResponse>, Status> {
        let request = request.into_inner();
        let call = Call { rpc: "ListVolumes", volume: "", node: "" };
        self.call(call, |context| {
            let page = request::Page::check(&request)?;
            Ok(async move { list::page(&context, page).await })
        })
        .await
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>, Status> {
        let request = request.into_inner();
        let call = Call { rpc: "ControllerGetVolume", volume: &request.volume_id, node: "" };
        self.call(call, |context| {
            let volume = request::volume("volume_id", &request.volume_id)?;
            Ok(async move { list::one(&context, volume).await })
        })
        .await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        let capability = |kind: Type| csi::ControllerServiceCapability {
            r#type: Some(csi::controller_service_capability::Type::Rpc(
                csi::controller_service_capability::Rpc { r#type: kind.into() },
            )),
        };
        let capabilities = [
            Type::CreateDeleteVolume,
            Type::PublishUnpublishVolume,
            Type::PublishReadonly,
            Type::ListVolumes,
            Type::ListVolumesPublishedNodes,
            Type::GetVolume,
            Type::VolumeCondition,
        ]
        .map(capability);
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }
}

/// Confirms what could be created and published so; says which could not.
async fn validate(
    context: &CallContext,
    volume: VolumeId,
    request: csi::ValidateVolumeCapabilitiesRequest,
) -> Result<csi::ValidateVolumeCapabilitiesResponse, CallError> {
    if context.find(&volume, Freshness::Now).await?.is_none() {
        return Err(CallError::NoSuchVolume(volume));
    }
    let in_cluster = context.attachments.is_some();
    let known = |field, all| {
        let demands = VolumeDemands::of_parameters(field, all);
        demands.and_then(|demands| demands.kept_to(field, in_cluster)).map_err(CallError::from)
    };
    let checked = request::capabilities(&request.volume_capabilities)
        .and_then(|_| known("parameters", &request.parameters))
        .and_then(|_| known("mutable_parameters", &request.mutable_parameters))
        .map(drop);
    Ok(match checked {
        Ok(()) => csi::ValidateVolumeCapabilitiesResponse {
            confirmed: Some(csi::validate_volume_capabilities_response::Confirmed {
                volume_context: request.volume_context,
                volume_capabilities: request.volume_capabilities,
                parameters: request.parameters,
                mutable_parameters: request.mutable_parameters,
            }),
            message: String::new(),
        },
        Err(not) => csi::ValidateVolumeCapabilitiesResponse { confirmed: None, message: not.to_string() },
    })
}
