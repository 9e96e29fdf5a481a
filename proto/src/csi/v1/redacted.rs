//! Debug output of the requests that carry secrets: what they are about, never the secrets.

use std::fmt::{Debug, Formatter, Result};

use super::{
    ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, CreateVolumeRequest,
    DeleteVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, ValidateVolumeCapabilitiesRequest,
};

macro_rules! debug_without_secrets {
    ($($message:ident { $($field:ident),+ })+) => {$(
        impl Debug for $message {
            fn fmt(&self, f: &mut Formatter<'_>) -> Result {
                f.debug_struct(stringify!($message))$(.field(stringify!($field), &self.$field))+.finish_non_exhaustive()
            }
        }
    )+};
}

debug_without_secrets! {
    CreateVolumeRequest { name, capacity_range, volume_capabilities, parameters }
    DeleteVolumeRequest { volume_id }
    ControllerPublishVolumeRequest { volume_id, node_id, volume_capability, readonly, volume_context }
    ControllerUnpublishVolumeRequest { volume_id, node_id }
    ValidateVolumeCapabilitiesRequest { volume_id, volume_context, volume_capabilities, parameters }
    NodeStageVolumeRequest { volume_id, publish_context, staging_target_path, volume_capability, volume_context }
    NodePublishVolumeRequest { volume_id, publish_context, staging_target_path, target_path, volume_capability, readonly }
}
