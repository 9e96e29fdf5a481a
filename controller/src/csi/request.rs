//! CSI requests, checked once: in come messages, out go values that cannot hold anything invalid, or [`CallError`]
//! with the field, the value and the rule.

use cleat_core::{Access, MinFence, NodeId, VolumeId};
use cleat_proto::csi::v1 as csi;
use csi::volume_capability::AccessType;
use csi::volume_capability::access_mode::Mode;

use super::MIN_FENCE;
use super::demands::{VolumeDemands, shown};
use super::status::{CallError, Invalid};

/// Volumes are made of whole blocks of this size, so that no device of any host shows less than was asked for: the
/// kernel's target rounds a file down to whole blocks, of at most 4096 bytes.
pub(super) const BLOCK_BYTES: u64 = 4096;
/// What a volume gets for which no size was asked for.
pub(super) const DEFAULT_BYTES: u64 = 1 << 30;

/// CreateVolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Create {
    pub(super) volume: VolumeId,
    pub(super) capacity: Capacity,
    pub(super) demands: VolumeDemands,
}

/// How large a volume may be, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capacity {
    /// Made so, in whole blocks.
    pub(super) wanted_bytes: u64,
    /// At least this; what was asked for, exactly.
    required_bytes: u64,
    /// At most this, if anything was said.
    limit_bytes: Option<u64>,
}

/// ControllerPublishVolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Publish {
    pub(super) volume: VolumeId,
    pub(super) node: NodeId,
    pub(super) access: Access,
    pub(super) read_only: bool,
    pub(super) demands: VolumeDemands,
}

/// ControllerUnpublishVolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unpublish {
    pub(super) volume: VolumeId,
    pub(super) node: Option<NodeId>,
}

/// ListVolumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Page {
    /// At most so many entries.
    pub(super) most: usize,
    /// Those after this one.
    pub(super) after: Option<VolumeId>,
}

impl Page {
    /// What precedes, in a token, the last volume of the page before. Volumes are listed by their ids in order: so a token
    /// stays good whatever is made or deleted meanwhile, also by another controller.
    const TOKEN: &str = "after=";
    /// So many entries fit in a message of 4 MiB, the most that gRPC takes if it is not asked for more.
    pub(super) const MOST: usize = 1_000;

    pub(super) fn check(request: &csi::ListVolumesRequest) -> Result<Self, CallError> {
        let csi::ListVolumesRequest { max_entries, starting_token } = request;
        let most = match usize::try_from(*max_entries) {
            Err(_) => return Err(invalid("max_entries", format!("{max_entries} is negative"))),
            Ok(0) => Self::MOST,
            Ok(most) => most.min(Self::MOST),
        };
        let last = |token: &str| VolumeId::new(token.strip_prefix(Self::TOKEN)?).ok();
        let after = match starting_token.as_str() {
            "" => None,
            token => Some(last(token).ok_or_else(|| CallError::UnknownToken { token: shown(token) })?),
        };
        Ok(Self { most, after })
    }

    /// The token of the page that begins after this volume.
    pub(super) fn token(last: &VolumeId) -> String {
        format!("{}{last}", Self::TOKEN)
    }
}

impl Create {
    pub(super) fn check(request: &csi::CreateVolumeRequest) -> Result<Self, CallError> {
        let volume = super::name::volume_of(&request.name)?;
        let most = capabilities(&request.volume_capabilities)?;
        let demands = VolumeDemands::of_parameters("parameters", &request.parameters)?;
        if demands.min_fence == Some(MinFence::Reservation) && most == Access::Rwo {
            return Err(invalid(
                format!("parameters[{MIN_FENCE:?}]"),
                "reservation is for volumes that two nodes may have (RWX): of one node alone there is nobody to \
                 preempt the reservation, and nothing else would suffice. Use acl or secret.",
            ));
        }
        if let Some(key) = request.mutable_parameters.keys().min() {
            return Err(invalid(
                format!("mutable_parameters[{key:?}]"),
                "not supported: nothing about a volume can be changed later",
            ));
        }
        if let Some(source) = &request.volume_content_source {
            let what = match &source.r#type {
                Some(csi::volume_content_source::Type::Snapshot(_)) => "a snapshot",
                Some(csi::volume_content_source::Type::Volume(_)) => "another volume",
                None => "an unknown source",
            };
            return Err(invalid(
                "volume_content_source",
                format!("making a volume from {what} is not supported"),
            ));
        }
        let capacity = Capacity::check(request.capacity_range.as_ref())?;
        Ok(Self { volume, capacity, demands })
    }
}

impl Capacity {
    fn check(range: Option<&csi::CapacityRange>) -> Result<Self, CallError> {
        let csi::CapacityRange { required_bytes, limit_bytes } = range.copied().unwrap_or_default();
        let bytes = |field: &str, value: i64| {
            u64::try_from(value)
                .map_err(|_| invalid(format!("capacity_range.{field}"), format!("{value} is negative")))
        };
        let required_bytes = bytes("required_bytes", required_bytes)?;
        let limit_bytes = Some(bytes("limit_bytes", limit_bytes)?).filter(|limit| *limit > 0);
        let wanted_bytes = match (required_bytes, limit_bytes) {
            (0, Some(limit)) => DEFAULT_BYTES.min(limit / BLOCK_BYTES * BLOCK_BYTES),
            (0, None) => DEFAULT_BYTES,
            (required, _) => required.next_multiple_of(BLOCK_BYTES),
        };
        if wanted_bytes == 0 || limit_bytes.is_some_and(|limit| wanted_bytes > limit) {
            return Err(CallError::OutOfRange(format!(
                "no multiple of {BLOCK_BYTES} bytes is at least {required_bytes} (required_bytes) and at most {} \
                 (limit_bytes)",
                limit_bytes.unwrap_or_default()
            )));
        }
        if i64::try_from(wanted_bytes).is_err() {
            return Err(CallError::OutOfRange(format!(
                "required_bytes {required_bytes}: larger than any volume can be"
            )));
        }
        Ok(Self { wanted_bytes, required_bytes, limit_bytes })
    }

    /// Whether a volume of this size is what was asked for.
    pub(super) fn admits(&self, size_bytes: u64) -> bool {
        size_bytes >= self.required_bytes && self.limit_bytes.is_none_or(|limit| size_bytes <= limit)
    }
}

impl Publish {
    pub(super) fn check(request: &csi::ControllerPublishVolumeRequest) -> Result<Self, CallError> {
        let volume = volume("volume_id", &request.volume_id)?;
        let node = node(&request.node_id)?;
        let capability = request.volume_capability.as_ref();
        let capability = capability.ok_or_else(|| invalid("volume_capability", "must be given"))?;
        let (access, reader) = access("volume_capability", capability)?;
        let demands = VolumeDemands::of_context("volume_context", &request.volume_context)?;
        Ok(Self { volume, node, access, read_only: request.readonly || reader, demands })
    }
}

impl Unpublish {
    pub(super) fn check(request: &csi::ControllerUnpublishVolumeRequest) -> Result<Self, CallError> {
        let volume = volume("volume_id", &request.volume_id)?;
        let node = Some(request.node_id.as_str()).filter(|id| !id.is_empty()).map(node).transpose()?;
        Ok(Self { volume, node })
    }
}

pub(super) fn volume(field: &str, id: &str) -> Result<VolumeId, CallError> {
    if id.is_empty() {
        return Err(invalid(field, "must be given"));
    }
    VolumeId::new(shown(id)).map_err(|error| invalid(field, error.to_string()))
}

fn node(id: &str) -> Result<NodeId, CallError> {
    if id.is_empty() {
        return Err(invalid("node_id", "must be given"));
    }
    NodeId::new(shown(id)).map_err(|error| invalid("node_id", error.to_string()))
}

/// Checks that there are capabilities and that each can be served; gives the widest access among them.
pub(super) fn capabilities(all: &[csi::VolumeCapability]) -> Result<Access, CallError> {
    if all.is_empty() {
        return Err(invalid("volume_capabilities", "must be given"));
    }
    let mut most = Access::Rwo;
    for (place, capability) in all.iter().enumerate() {
        if let (Access::RwxBlock, _) = access(&format!("volume_capabilities[{place}]"), capability)? {
            most = Access::RwxBlock;
        }
    }
    Ok(most)
}

/// How many nodes may have a volume under a capability, and whether they only read. A mode that is not known to
/// allow two nodes allows one.
fn access(field: &str, capability: &csi::VolumeCapability) -> Result<(Access, bool), CallError> {
    let mode = capability
        .access_mode
        .as_ref()
        .ok_or_else(|| invalid(format!("{field}.access_mode"), "must be given"))?;
    let mode = Mode::try_from(mode.mode).unwrap_or(Mode::Unknown);
    let many = match mode {
        Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => true,
        Mode::Unknown
        | Mode::SingleNodeWriter
        | Mode::SingleNodeReaderOnly
        | Mode::SingleNodeSingleWriter
        | Mode::SingleNodeMultiWriter => false,
    };
    match &capability.access_type {
        None => return Err(invalid(field, "access_type must be given")),
        Some(AccessType::Mount(_)) if many => {
            return Err(invalid(
                field,
                format!(
                    "{} with a file system: two nodes that mount one file system destroy it. For multi-node access, \
                     use RWX with block volumes.",
                    mode.as_str_name()
                ),
            ));
        }
        Some(AccessType::Mount(_)) => {
            return Err(invalid(
                field,
                "volumes with a file system are not supported yet: use block volumes",
            ));
        }
        Some(AccessType::Block(_)) => {}
    }
    match mode {
        Mode::MultiNodeReaderOnly => Err(invalid(
            field,
            "MULTI_NODE_READER_ONLY is not supported: a volume is on at most two nodes, for the time of a migration",
        )),
        Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => Ok((Access::RwxBlock, false)),
        Mode::SingleNodeReaderOnly => Ok((Access::Rwo, true)),
        Mode::Unknown
        | Mode::SingleNodeWriter
        | Mode::SingleNodeSingleWriter
        | Mode::SingleNodeMultiWriter => Ok((Access::Rwo, false)),
    }
}

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> CallError {
    Invalid::new(field, problem).into()
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
