//! CSI as a kubelet and the sidecars call it, with the time that each call took.

use std::collections::HashMap;
use std::ops::Deref;
use std::time::{Duration, Instant};

use anyhow::Context;
use cleat_proto::csi::v1::volume_capability::access_mode::Mode;
use cleat_proto::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume};
use cleat_proto::csi::v1::{
    CapacityRange, ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, CreateVolumeRequest,
    DeleteVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability,
};
use tonic::{Request, Status};

use super::{Node, World};

/// A call's own deadline: the attacher's, raised as the chart raises it.
const DEADLINE: Duration = Duration::from_secs(60);

/// What PublishContext holds.
pub type PublishContext = HashMap<String, String>;

/// A result and how long it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timed<T> {
    /// The result.
    pub value: T,
    /// From the call to its answer.
    pub took: Duration,
}

impl<T> Deref for Timed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

async fn timed<T>(call: impl Future<Output = Result<T, Status>>) -> Result<Timed<T>, Status> {
    let begun = Instant::now();
    let value = call.await?;
    Ok(Timed { value, took: begun.elapsed() })
}

fn request<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// How a volume may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A block volume for one node.
    RwoBlock,
    /// A block volume that may be on two nodes while a VM migrates.
    RwxBlock,
}

impl Access {
    /// As CSI says it.
    #[must_use]
    pub fn capability(self) -> VolumeCapability {
        let mode = match self {
            Self::RwoBlock => Mode::SingleNodeWriter,
            Self::RwxBlock => Mode::MultiNodeMultiWriter,
        };
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Block(BlockVolume {})),
        }
    }
}

/// A volume that was created.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume {
    /// Its id.
    pub id: String,
    /// How it may be used.
    pub access: Access,
    /// Its size.
    pub size_bytes: u64,
    /// What CreateVolume gave for later calls.
    pub context: HashMap<String, String>,
}

/// A volume that is published on a node, as a pod would have it.
#[derive(Debug, Clone, PartialEq)]
pub struct Attached {
    /// The volume.
    pub volume: Volume,
    /// The node's name.
    pub node: String,
    /// What ControllerPublish gave.
    pub context: PublishContext,
    /// Where its device is on the node.
    pub target_path: String,
    /// How long it took.
    pub times: AttachTimes,
}

/// The parts of an attach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttachTimes {
    /// ControllerPublishVolume.
    pub publish: Duration,
    /// NodeStageVolume.
    pub stage: Duration,
    /// NodePublishVolume.
    pub node_publish: Duration,
}

impl AttachTimes {
    /// All of it.
    #[must_use]
    pub fn total(self) -> Duration {
        self.publish + self.stage + self.node_publish
    }
}

/// The parts of a detach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DetachTimes {
    /// NodeUnpublishVolume.
    pub node_unpublish: Duration,
    /// NodeUnstageVolume.
    pub unstage: Duration,
    /// ControllerUnpublishVolume.
    pub unpublish: Duration,
}

impl DetachTimes {
    /// All of it.
    #[must_use]
    pub fn total(self) -> Duration {
        self.node_unpublish + self.unstage + self.unpublish
    }
}

impl World {
    /// CreateVolume. The volume's id is the RDS's to choose.
    ///
    /// # Errors
    /// The controller's.
    pub async fn create_volume(
        &self,
        name: &str,
        access: Access,
        size_bytes: u64,
    ) -> Result<Timed<Volume>, Status> {
        self.create_volume_with(name, access, size_bytes, &[]).await
    }

    /// CreateVolume with parameters, as a StorageClass has them.
    ///
    /// # Errors
    /// The controller's.
    pub async fn create_volume_with(
        &self,
        name: &str,
        access: Access,
        size_bytes: u64,
        parameters: &[(&str, &str)],
    ) -> Result<Timed<Volume>, Status> {
        let size = i64::try_from(size_bytes).map_err(|_| Status::invalid_argument("a size beyond CSI's"))?;
        let message = CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: size, limit_bytes: 0 }),
            volume_capabilities: vec![access.capability()],
            parameters: parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..CreateVolumeRequest::default()
        };
        timed(async {
            let answer = self.controller.csi().create_volume(request(message, DEADLINE)).await?.into_inner();
            let volume =
                answer.volume.ok_or_else(|| Status::internal("CreateVolume answers without a volume"))?;
            let size_bytes = u64::try_from(volume.capacity_bytes).unwrap_or(0);
            Ok(Volume { id: volume.volume_id, access, size_bytes, context: volume.volume_context })
        })
        .await
    }

    /// DeleteVolume.
    ///
    /// # Errors
    /// The controller's.
    pub async fn delete_volume(&self, volume: &Volume) -> Result<Timed<()>, Status> {
        let message = DeleteVolumeRequest { volume_id: volume.id.clone(), ..DeleteVolumeRequest::default() };
        timed(async { self.controller.csi().delete_volume(request(message, DEADLINE)).await.map(drop) }).await
    }

    /// ControllerPublishVolume.
    ///
    /// # Errors
    /// The controller's.
    pub async fn publish(&self, volume: &Volume, node: &Node) -> Result<Timed<PublishContext>, Status> {
        self.publish_within(volume, node, DEADLINE).await
    }

    /// ControllerPublishVolume with a deadline of the caller's. In a cluster a VolumeAttachment asks for it first.
    ///
    /// # Errors
    /// The controller's, or that the deadline passed.
    pub async fn publish_within(
        &self,
        volume: &Volume,
        node: &Node,
        deadline: Duration,
    ) -> Result<Timed<PublishContext>, Status> {
        if let Some(cluster) = self.cluster() {
            cluster.wanted(volume, node).map_err(|error| Status::internal(format!("{error:#}")))?;
        }
        let message = ControllerPublishVolumeRequest {
            volume_id: volume.id.clone(),
            node_id: node.name().to_owned(),
            volume_capability: Some(volume.access.capability()),
            volume_context: volume.context.clone(),
            ..ControllerPublishVolumeRequest::default()
        };
        timed(async {
            let answer = self.controller.csi().controller_publish_volume(request(message, deadline)).await?;
            Ok(answer.into_inner().publish_context)
        })
        .await
    }

    /// ControllerUnpublishVolume.
    ///
    /// # Errors
    /// The controller's.
    pub async fn unpublish(&self, volume: &Volume, node: &Node) -> Result<Timed<()>, Status> {
        self.unpublish_within(volume, node, DEADLINE).await
    }

    /// ControllerUnpublishVolume with a deadline of the caller's. In a cluster its VolumeAttachment goes first.
    ///
    /// # Errors
    /// The controller's, or that the deadline passed.
    pub async fn unpublish_within(
        &self,
        volume: &Volume,
        node: &Node,
        deadline: Duration,
    ) -> Result<Timed<()>, Status> {
        if let Some(cluster) = self.cluster() {
            cluster.unwanted(volume, node).map_err(|error| Status::internal(format!("{error:#}")))?;
        }
        let message = ControllerUnpublishVolumeRequest {
            volume_id: volume.id.clone(),
            node_id: node.name().to_owned(),
            ..ControllerUnpublishVolumeRequest::default()
        };
        timed(async {
            self.controller.csi().controller_unpublish_volume(request(message, deadline)).await.map(drop)
        })
        .await
    }

    /// ControllerPublish, NodeStage and NodePublish: the volume as a pod gets it.
    ///
    /// # Errors
    /// The first call's that failed, with its name. What went before it is not undone.
    pub async fn attach(&self, volume: &Volume, node: &Node) -> anyhow::Result<Attached> {
        let on = |call: &str| format!("{call} of {} on {}", volume.id, node.name());
        let context = self.publish(volume, node).await.with_context(|| on("ControllerPublishVolume"))?;
        let stage = node.stage(volume, &context).await.with_context(|| on("NodeStageVolume"))?;
        let published = node.publish(volume, &context).await.with_context(|| on("NodePublishVolume"))?;
        let times = AttachTimes { publish: context.took, stage: stage.took, node_publish: published.took };
        Ok(Attached {
            volume: volume.clone(),
            node: node.name().to_owned(),
            context: context.value,
            target_path: node.target_path(volume),
            times,
        })
    }

    /// NodeUnpublish, NodeUnstage and ControllerUnpublish.
    ///
    /// # Errors
    /// The first call's that failed, with its name.
    pub async fn detach(&self, attached: &Attached, node: &Node) -> anyhow::Result<DetachTimes> {
        let volume = &attached.volume;
        let on = |call: &str| format!("{call} of {} on {}", volume.id, node.name());
        let removed = node.unpublish(volume).await.with_context(|| on("NodeUnpublishVolume"))?;
        let unstaged = node.unstage(volume).await.with_context(|| on("NodeUnstageVolume"))?;
        let unpublished =
            self.unpublish(volume, node).await.with_context(|| on("ControllerUnpublishVolume"))?;
        Ok(DetachTimes { node_unpublish: removed.took, unstage: unstaged.took, unpublish: unpublished.took })
    }
}

impl Node {
    /// NodeStageVolume, in a staging folder as the kubelet makes it.
    ///
    /// # Errors
    /// The agent's, or the rig's as `Internal`.
    pub async fn stage(&self, volume: &Volume, context: &PublishContext) -> Result<Timed<()>, Status> {
        self.make_folders(volume).await.map_err(|error| Status::internal(format!("{error:#}")))?;
        let message = NodeStageVolumeRequest {
            volume_id: volume.id.clone(),
            publish_context: context.clone(),
            staging_target_path: self.staging_path(volume),
            volume_capability: Some(volume.access.capability()),
            volume_context: volume.context.clone(),
            ..NodeStageVolumeRequest::default()
        };
        timed(async { self.csi().node_stage_volume(request(message, DEADLINE)).await.map(drop) }).await
    }

    /// NodeUnstageVolume.
    ///
    /// # Errors
    /// The agent's.
    pub async fn unstage(&self, volume: &Volume) -> Result<Timed<()>, Status> {
        let message = NodeUnstageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: self.staging_path(volume),
        };
        timed(async { self.csi().node_unstage_volume(request(message, DEADLINE)).await.map(drop) }).await
    }

    /// NodePublishVolume, to [`Node::target_path`].
    ///
    /// # Errors
    /// The agent's.
    pub async fn publish(&self, volume: &Volume, context: &PublishContext) -> Result<Timed<()>, Status> {
        let message = NodePublishVolumeRequest {
            volume_id: volume.id.clone(),
            publish_context: context.clone(),
            staging_target_path: self.staging_path(volume),
            target_path: self.target_path(volume),
            volume_capability: Some(volume.access.capability()),
            volume_context: volume.context.clone(),
            ..NodePublishVolumeRequest::default()
        };
        timed(async { self.csi().node_publish_volume(request(message, DEADLINE)).await.map(drop) }).await
    }

    /// NodeUnpublishVolume.
    ///
    /// # Errors
    /// The agent's.
    pub async fn unpublish(&self, volume: &Volume) -> Result<Timed<()>, Status> {
        let message = NodeUnpublishVolumeRequest {
            volume_id: volume.id.clone(),
            target_path: self.target_path(volume),
        };
        timed(async { self.csi().node_unpublish_volume(request(message, DEADLINE)).await.map(drop) }).await
    }
}
