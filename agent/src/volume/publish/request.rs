//! What the kubelet can ask of a volume. `csi/request.rs` checks it.

use std::path::PathBuf;

use cleat_host::NamespaceUuid;

use crate::name::{Epoch, VolumeId};

/// The grant that PublishContext names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// The epoch of the grant.
    pub epoch: Epoch,
    /// UUID of the namespace that was granted.
    pub namespace: NamespaceUuid,
}

/// Arguments of NodeStageVolume, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Id of the volume to stage.
    pub volume: VolumeId,
    /// What the controller granted to this node.
    pub granted: Granted,
}

/// Arguments of NodePublishVolume, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Id of the volume to publish.
    pub volume: VolumeId,
    /// What the controller granted to this node.
    pub granted: Granted,
    /// The path at which the device is to appear.
    pub target: PathBuf,
    /// Whether the mount is to be read-only.
    pub read_only: bool,
}

/// Arguments of NodeUnstageVolume, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unstage {
    /// Id of the volume to unstage.
    pub volume: VolumeId,
}

/// Arguments of NodeUnpublishVolume, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpublish {
    /// Id of the volume to unpublish.
    pub volume: VolumeId,
    /// The path from which the device is to disappear.
    pub target: PathBuf,
}
