//! What the kubelet can ask of a volume, checked by who takes it in (`csi/request.rs`).

use std::path::PathBuf;

use cleat_host::NamespaceUuid;

use crate::name::{Epoch, VolumeId};

/// What PublishContext says the volume was granted as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// Under which epoch.
    pub epoch: Epoch,
    /// As which namespace.
    pub namespace: NamespaceUuid,
}

/// NodeStageVolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// The volume.
    pub volume: VolumeId,
    /// Its grant.
    pub granted: Granted,
}

/// NodePublishVolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The volume.
    pub volume: VolumeId,
    /// Its grant.
    pub granted: Granted,
    /// Where the device is to appear.
    pub target: PathBuf,
    /// Whether it may only be read there.
    pub read_only: bool,
}

/// NodeUnstageVolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unstage {
    /// The volume.
    pub volume: VolumeId,
}

/// NodeUnpublishVolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpublish {
    /// The volume.
    pub volume: VolumeId,
    /// Where the device is to disappear.
    pub target: PathBuf,
}
