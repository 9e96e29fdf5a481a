//! The CSI Controller service: one shape for every call.
//!
//! Each call is checked, runs in a task of its own (its caller's deadline drops the handler, not the work), is
//! awaited, measured, logged once, and has its error mapped once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use cleat_core::{Portal, SubsystemNqn, VolumeId};
use cleat_ids::NqnPrefix;
use cleat_proto::csi::v1 as csi;
use cleat_proto::csi::v1::controller_server::Controller;
use cleat_rds::{Freshness, Priority, Rds, RdsError, Volume};
use csi::controller_service_capability::rpc::Type;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use super::in_progress::InProgress;
use super::overtaking::Publishes;
use super::status::CallError;
use super::{provision, publish, request};
use crate::engine::{Engine, EngineEnded};
use crate::metrics::{self, RdsCall};

/// How volumes are served to hosts.
#[derive(Clone, Debug)]
pub struct Serving {
    /// What precedes the volume id in a subsystem NQN.
    pub nqn_prefix: NqnPrefix,
    /// Where the RDS serves volumes to hosts.
    pub portals: Vec<Portal>,
}

impl Serving {
    /// The subsystem NQN of a volume.
    pub(super) fn subsystem_nqn(&self, volume: &VolumeId) -> SubsystemNqn {
        self.nqn_prefix.subsystem(volume)
    }

    /// Where a volume is served: at its own port, on all addresses.
    pub(super) fn portals(&self, volume: &Volume) -> Vec<Portal> {
        let at = |portal: &Portal| {
            let address = SocketAddr::new(portal.ip(), volume.port.unwrap_or(portal.port()));
            // Refused is port 0 alone, at which nothing is served.
            Portal::from_address(address).unwrap_or(*portal)
        };
        self.portals.iter().map(at).collect()
    }
}

/// What every call needs.
pub(super) struct Shared {
    pub(super) engine: Engine,
    pub(super) rds: Arc<dyn Rds>,
    pub(super) serving: Serving,
    pub(super) in_progress: InProgress,
    pub(super) publishes: Publishes,
}

impl Shared {
    /// The volume; `None` only if the RDS has said that it has none.
    pub(super) async fn find(
        &self,
        volume: &VolumeId,
        freshness: Freshness,
    ) -> Result<Option<Volume>, CallError> {
        match measured(RdsCall::Find, self.rds.volume(volume, Priority::Attach, freshness)).await {
            Ok(found) => {
                // Also so that the core holds who may connect against what is on record.
                self.engine.listed(&found).await?;
                Ok(Some(found))
            }
            Err(RdsError::NotFound { .. }) => Ok(None),
            Err(source) => Err(CallError::Rds { volume: volume.clone(), source }),
        }
    }

    /// Has the core hold who may connect to a volume, by the RDS's list of now, against what is on record. What one list
    /// lacks the core does not take for absent.
    pub(super) async fn compare_with_list(&self, volume: &VolumeId) -> Result<(), CallError> {
        let listed = measured(RdsCall::Find, self.rds.listed(volume, Priority::Detach)).await;
        match listed.map_err(|source| CallError::Rds { volume: volume.clone(), source })? {
            Some(listed) => Ok(self.engine.listed(&listed).await?),
            None => Ok(()),
        }
    }
}

/// Measures a call to the RDS.
pub(super) async fn measured<T>(
    call: RdsCall,
    asking: impl Future<Output = Result<T, RdsError>>,
) -> Result<T, RdsError> {
    let began = Instant::now();
    let answer = asking.await;
    let error = answer.as_ref().err().map(crate::engine::rds_failure);
    metrics::rds_call(call, began.elapsed(), error.as_ref());
    answer
}

/// The CSI Controller service.
pub struct CsiController {
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl CsiController {
    /// The service. Calls that wait are answered at once when `stop` is cancelled; what they began goes on at the
    /// next start.
    #[must_use]
    pub fn new(engine: Engine, rds: Arc<dyn Rds>, serving: Serving, stop: CancellationToken) -> Self {
        let shared = Shared {
            engine,
            rds,
            serving,
            in_progress: InProgress::default(),
            publishes: Publishes::default(),
        };
        Self { shared: Arc::new(shared), stop }
    }

    /// Runs a call to its end, whether or not its caller waits.
    async fn call<T, F>(
        &self,
        call: Call<'_>,
        work: impl FnOnce(Arc<Shared>) -> Result<F, CallError>,
    ) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CallError>> + Send + 'static,
    {
        let measure = Measure { call, began: Instant::now(), answered: false };
        let result = match work(Arc::clone(&self.shared)) {
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
            tracing::info!(rpc, volume, node, "the caller went; what it asked for goes on");
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
        self.call(call, |shared| {
            let create = request::Create::check(&request)?;
            Ok(async move {
                let volume = provision::create(&shared, create).await?;
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
        self.call(call, |shared| {
            let volume = request::volume("volume_id", &request.volume_id)?;
            Ok(async move {
                provision::delete(&shared, volume).await?;
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
        self.call(call, |shared| {
            let publish = request::Publish::check(&request)?;
            // Before anything is awaited: in the order of the calls.
            let on_its_way = shared.publishes.begin(publish.volume.clone(), publish.node.clone());
            Ok(async move {
                let publish_context = publish::publish(&shared, publish, on_its_way).await?;
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
        self.call(call, |shared| {
            let unpublish = request::Unpublish::check(&request)?;
            Ok(async move {
                publish::unpublish(&shared, unpublish).await?;
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
        self.call(call, |shared| {
            let volume = request::volume("volume_id", &request.volume_id)?;
            if request.volume_capabilities.is_empty() {
                request::capabilities(&[])?;
            }
            Ok(async move { validate(&shared, volume, request).await })
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
        let capabilities =
            [Type::CreateDeleteVolume, Type::PublishUnpublishVolume, Type::PublishReadonly].map(capability);
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }
}

/// Confirms what could be created and published so; says which could not.
async fn validate(
    shared: &Shared,
    volume: VolumeId,
    request: csi::ValidateVolumeCapabilitiesRequest,
) -> Result<csi::ValidateVolumeCapabilitiesResponse, CallError> {
    if shared.find(&volume, Freshness::Now).await?.is_none() {
        return Err(CallError::NoSuchVolume(volume));
    }
    let checked = request::capabilities(&request.volume_capabilities)
        .and_then(|_| request::parameters("parameters", &request.parameters))
        .and_then(|_| request::parameters("mutable_parameters", &request.mutable_parameters))
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
