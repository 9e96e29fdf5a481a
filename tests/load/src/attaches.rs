//! Publishes, many a second: how long each decision takes, and each answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cleat_proto::csi::v1 as csi;
use csi::controller_client::ControllerClient;
use csi::volume_capability::access_mode::Mode;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tonic::Status;
use tonic::transport::Channel;

use crate::agents::Fleet;
use crate::scale::{self, Scale};

/// What any call may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// What came of them.
#[derive(Debug, Default)]
pub(crate) struct Attaches {
    /// From each call until the directive that it led to had reached the agent.
    pub(crate) decided: Vec<Duration>,
    /// From each call until its answer.
    pub(crate) answered: Vec<Duration>,
    /// Why calls were answered otherwise.
    pub(crate) failed: Vec<String>,
}

fn publish(scale: &Scale, volume: usize) -> tonic::Request<csi::ControllerPublishVolumeRequest> {
    let capability = csi::VolumeCapability {
        access_mode: Some(csi::volume_capability::AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(csi::volume_capability::AccessType::Block(Default::default())),
    };
    let mut request = tonic::Request::new(csi::ControllerPublishVolumeRequest {
        volume_id: scale::volume(volume),
        node_id: scale::node(scale.node_of(volume)),
        volume_capability: Some(capability),
        ..Default::default()
    });
    request.set_timeout(DEADLINE);
    request
}

/// Asks once for a volume that its node has.
pub(crate) async fn ask(csi: &ControllerClient<Channel>, scale: &Scale, volume: usize) -> Result<(), Status> {
    csi.clone().controller_publish_volume(publish(scale, volume)).await.map(drop)
}

/// Attaches all volumes that nobody has, so many a second, however long each takes.
pub(crate) async fn attach_all(
    csi: &ControllerClient<Channel>,
    scale: &Scale,
    a_second: u32,
    fleet: &Arc<Fleet>,
) -> Attaches {
    let mut turns = tokio::time::interval(Duration::from_secs(1) / a_second);
    turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut calls = JoinSet::new();
    for volume in scale.spare() {
        turns.tick().await;
        let (mut csi, request, fleet) = (csi.clone(), publish(scale, volume), Arc::clone(fleet));
        calls.spawn(async move {
            let began = Instant::now();
            csi.controller_publish_volume(request).await?;
            let answered = began.elapsed();
            let decided = fleet.directed(&scale::volume(volume)).map(|at| at.duration_since(began));
            Ok::<_, Status>((decided, answered))
        });
    }
    let mut attaches = Attaches::default();
    while let Some(ended) = calls.join_next().await {
        match ended {
            Ok(Ok((decided, answered))) => {
                attaches.decided.extend(decided);
                attaches.answered.push(answered);
            }
            Ok(Err(status)) => attaches.failed.push(format!("{:?}: {}", status.code(), status.message())),
            Err(error) => attaches.failed.push(error.to_string()),
        }
    }
    attaches
}
