//! CSI requests, checked once.
//!
//! Comes in: the kubelet's messages. Goes out: values that cannot be built wrong, or an [`InvalidRequest`]
//! that names the field and the value.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use cleat_host::{NamespaceUuid, SubsystemNqn};
use cleat_proto::csi::v1 as csi;
use csi::volume_capability::AccessType;
use csi::volume_capability::access_mode::Mode;

use crate::name::{Epoch, NqnPrefix, VolumeId};
use crate::volume::publish::request::{Granted, Publish, Stage, Unpublish, Unstage};

pub use cleat_ids::{EPOCH_KEY, NAMESPACE_KEY, SUBSYSTEM_KEY};

/// Longest path that is accepted: the kernel's `PATH_MAX`, without the terminating NUL.
const LONGEST_PATH: usize = 4095;

/// A field of a request that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// The field is missing or empty.
    #[error("{field} must be given")]
    Missing {
        /// Its name in the CSI specification, such as `volume_id`.
        field: &'static str,
    },
    /// A publication without a staging path, for which the specification has a code of its own.
    #[error("staging_target_path must be given: this driver stages volumes")]
    NotStaged,
    /// The field's value breaks a rule.
    #[error("{field} {value:?}: {problem}")]
    Value {
        /// Its name in the CSI specification, with the key for an entry of a map.
        field: &'static str,
        /// The value that was given, cut at 300 characters.
        value: String,
        /// The rule that it breaks.
        problem: String,
    },
}

fn missing(field: &'static str) -> InvalidRequest {
    InvalidRequest::Missing { field }
}

fn wrong(field: &'static str, value: &str, problem: impl std::fmt::Display) -> InvalidRequest {
    InvalidRequest::Value { field, value: value.chars().take(300).collect(), problem: problem.to_string() }
}

/// Checks NodeStageVolume.
///
/// # Errors
/// The first field that cannot be used.
pub fn stage(request: &csi::NodeStageVolumeRequest, prefix: &NqnPrefix) -> Result<Stage, InvalidRequest> {
    let volume = volume(&request.volume_id)?;
    path("staging_target_path", &request.staging_target_path)?;
    capability(request.volume_capability.as_ref())?;
    let granted = granted(&request.publish_context, &volume, prefix)?;
    Ok(Stage { volume, granted })
}

/// Checks NodePublishVolume.
///
/// # Errors
/// The first field that cannot be used.
pub fn publish(
    request: &csi::NodePublishVolumeRequest,
    prefix: &NqnPrefix,
) -> Result<Publish, InvalidRequest> {
    let volume = volume(&request.volume_id)?;
    let target = path("target_path", &request.target_path)?;
    let reader = capability(request.volume_capability.as_ref())?;
    if request.staging_target_path.is_empty() {
        return Err(InvalidRequest::NotStaged);
    }
    path("staging_target_path", &request.staging_target_path)?;
    let granted = granted(&request.publish_context, &volume, prefix)?;
    Ok(Publish { volume, granted, target, read_only: request.readonly || reader })
}

/// Checks NodeUnstageVolume.
///
/// # Errors
/// The first field that cannot be used.
pub fn unstage(request: &csi::NodeUnstageVolumeRequest) -> Result<Unstage, InvalidRequest> {
    let volume = volume(&request.volume_id)?;
    path("staging_target_path", &request.staging_target_path)?;
    Ok(Unstage { volume })
}

/// Checks NodeUnpublishVolume.
///
/// # Errors
/// The first field that cannot be used.
pub fn unpublish(request: &csi::NodeUnpublishVolumeRequest) -> Result<Unpublish, InvalidRequest> {
    Ok(Unpublish { volume: volume(&request.volume_id)?, target: path("target_path", &request.target_path)? })
}

/// Refuses a target that is not below the directory in which this agent publishes.
///
/// # Errors
/// [`InvalidRequest::Value`].
pub fn below(target: &Path, kubelet_dir: Option<&Path>) -> Result<(), InvalidRequest> {
    match kubelet_dir {
        Some(dir) if target == dir || !target.starts_with(dir) => {
            let problem = format!(
                "not below {}, where this agent publishes volumes; set --kubelet-dir to the kubelet's --root-dir",
                dir.display()
            );
            Err(wrong("target_path", &target.to_string_lossy(), problem))
        }
        Some(_) | None => Ok(()),
    }
}

fn volume(id: &str) -> Result<VolumeId, InvalidRequest> {
    if id.is_empty() {
        return Err(missing("volume_id"));
    }
    VolumeId::parse(id).map_err(|error| wrong("volume_id", id, error.rule))
}

/// A path that needs no file system to be understood: absolute, and without `.` or `..`.
fn path(field: &'static str, text: &str) -> Result<PathBuf, InvalidRequest> {
    if text.is_empty() {
        return Err(missing(field));
    }
    if text.len() > LONGEST_PATH || text.contains('\0') {
        return Err(wrong(field, text, "longer than 4095 bytes, or with a NUL"));
    }
    let path = Path::new(text);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || text.split('/').any(|part| part == ".") {
        return Err(wrong(field, text, "not an absolute path without . and .."));
    }
    if path.file_name().is_none() {
        return Err(wrong(field, text, "the root directory"));
    }
    // Without a trailing slash, so that it equals the kernel's form.
    Ok(path.components().collect())
}

/// Checks the capability; returns whether it only allows reading.
fn capability(capability: Option<&csi::VolumeCapability>) -> Result<bool, InvalidRequest> {
    let capability = capability.ok_or_else(|| missing("volume_capability"))?;
    match &capability.access_type {
        Some(AccessType::Block(_)) => {}
        Some(AccessType::Mount(mount)) => {
            let problem = "file systems are not served, only block volumes (volumeMode: Block)";
            return Err(wrong("volume_capability.mount", &mount.fs_type, problem));
        }
        None => return Err(missing("volume_capability.block")),
    }
    let mode = capability.access_mode.as_ref().ok_or_else(|| missing("volume_capability.access_mode"))?.mode;
    match Mode::try_from(mode) {
        Ok(Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly) => Ok(true),
        Ok(
            Mode::SingleNodeWriter
            | Mode::SingleNodeSingleWriter
            | Mode::SingleNodeMultiWriter
            | Mode::MultiNodeSingleWriter
            | Mode::MultiNodeMultiWriter,
        ) => Ok(false),
        Ok(Mode::Unknown) | Err(_) => {
            Err(wrong("volume_capability.access_mode", &mode.to_string(), "not a known access mode"))
        }
    }
}

fn granted(
    context: &HashMap<String, String>,
    volume: &VolumeId,
    prefix: &NqnPrefix,
) -> Result<Granted, InvalidRequest> {
    let get = |key: &'static str, field: &'static str| {
        context.get(key).map(String::as_str).filter(|value| !value.is_empty()).ok_or_else(|| missing(field))
    };
    let field = "publish_context[\"cleat.io/epoch\"]";
    let text = get(EPOCH_KEY, field)?;
    let epoch: Epoch =
        text.parse().map_err(|error: crate::name::NameError| wrong(field, text, error.rule))?;

    let field = "publish_context[\"cleat.io/subsystem-nqn\"]";
    let text = get(SUBSYSTEM_KEY, field)?;
    let subsystem = SubsystemNqn::parse(text).map_err(|error| wrong(field, text, error.rule))?;
    let ours = prefix.subsystem(volume);
    if subsystem != ours {
        return Err(wrong(field, text, format!("this volume's is {ours}")));
    }

    let field = "publish_context[\"cleat.io/namespace-uuid\"]";
    let text = get(NAMESPACE_KEY, field)?;
    let namespace = NamespaceUuid::parse(text).map_err(|error| wrong(field, text, error.rule))?;
    Ok(Granted { epoch, namespace })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use csi::volume_capability::{AccessMode, BlockVolume, MountVolume};

    const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";

    fn prefix() -> NqnPrefix {
        NqnPrefix::parse("nqn.2026-01.io.cleat:").unwrap()
    }

    fn block(mode: Mode) -> Option<csi::VolumeCapability> {
        Some(csi::VolumeCapability {
            access_type: Some(AccessType::Block(BlockVolume {})),
            access_mode: Some(AccessMode { mode: mode.into() }),
        })
    }

    fn good() -> csi::NodePublishVolumeRequest {
        csi::NodePublishVolumeRequest {
            volume_id: "pvc-1".into(),
            publish_context: HashMap::from([
                (EPOCH_KEY.into(), "5.1".into()),
                (SUBSYSTEM_KEY.into(), "nqn.2026-01.io.cleat:pvc-1".into()),
                (NAMESPACE_KEY.into(), UUID.into()),
            ]),
            staging_target_path: "/staging/pvc-1".into(),
            target_path: "/pods/x/volumeDevices/pvc-1/".into(),
            volume_capability: block(Mode::MultiNodeMultiWriter),
            ..Default::default()
        }
    }

    #[test]
    fn a_good_request_is_taken_and_a_reader_may_only_read() {
        let request = publish(&good(), &prefix()).unwrap();
        assert_eq!(request.target, Path::new("/pods/x/volumeDevices/pvc-1"));
        assert!(!request.read_only);
        let reader =
            csi::NodePublishVolumeRequest { volume_capability: block(Mode::MultiNodeReaderOnly), ..good() };
        assert!(publish(&reader, &prefix()).unwrap().read_only);
    }

    #[test]
    fn a_target_outside_the_kubelets_directory_is_named_with_the_option() {
        let kubelet = Some(Path::new("/var/lib/kubelet"));
        below(Path::new("/var/lib/kubelet/pods/x"), kubelet).unwrap();
        below(Path::new("/anywhere"), None).unwrap();
        for target in ["/etc/x", "/var/lib/kubelet", "/var/lib/kubelet-2/pods"] {
            let error = below(Path::new(target), kubelet).unwrap_err().to_string();
            for part in ["target_path", target, "/var/lib/kubelet", "--kubelet-dir"] {
                assert!(error.contains(part), "{error}");
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_field_and_value() {
        type Spoil = fn(&mut csi::NodePublishVolumeRequest);
        let cases: [(Spoil, &str, &str); 15] = [
            (|r| r.staging_target_path = "run/../x".into(), "staging_target_path", "run/../x"),
            (
                |r| drop(r.publish_context.insert(SUBSYSTEM_KEY.into(), "nqn.2014-08.org.boot:x".into())),
                "cleat.io/subsystem-nqn",
                "nqn.2014-08.org.boot:x",
            ),
            (|r| r.staging_target_path.clear(), "staging_target_path", "this driver stages volumes"),
            (|r| r.volume_id.clear(), "volume_id", "must be given"),
            (|r| r.volume_id = "../../etc".into(), "volume_id", "../../etc"),
            (|r| r.target_path.clear(), "target_path", "must be given"),
            (|r| r.target_path = "pods/x".into(), "target_path", "pods/x"),
            (|r| r.target_path = "/pods/../etc/passwd".into(), "target_path", "/pods/../etc/passwd"),
            (|r| r.target_path = "/".into(), "target_path", "root"),
            (|r| r.volume_capability = None, "volume_capability", "must be given"),
            (|r| r.volume_capability = block(Mode::Unknown), "access_mode", "\"0\""),
            (
                |r| {
                    let access_type =
                        AccessType::Mount(MountVolume { fs_type: "ext4".into(), ..Default::default() });
                    let capability = r.volume_capability.as_mut().unwrap();
                    capability.access_type = Some(access_type);
                },
                "volume_capability.mount",
                "ext4",
            ),
            (|r| drop(r.publish_context.remove(EPOCH_KEY)), "cleat.io/epoch", "must be given"),
            (|r| drop(r.publish_context.insert(EPOCH_KEY.into(), "5".into())), "cleat.io/epoch", "\"5\""),
            (
                |r| drop(r.publish_context.insert(SUBSYSTEM_KEY.into(), "nqn.2026-01.io.cleat:pvc-2".into())),
                "cleat.io/subsystem-nqn",
                "pvc-2",
            ),
        ];
        for (spoil, field, value) in cases {
            let mut request = good();
            spoil(&mut request);
            let error = publish(&request, &prefix()).unwrap_err().to_string();
            assert!(error.contains(field) && error.contains(value), "{field}: {error}");
            if field == "target_path" || error.contains("this driver stages volumes") {
                continue;
            }
            let staging = csi::NodeStageVolumeRequest {
                volume_id: request.volume_id,
                publish_context: request.publish_context,
                staging_target_path: request.staging_target_path,
                volume_capability: request.volume_capability,
                ..Default::default()
            };
            assert_eq!(stage(&staging, &prefix()).unwrap_err().to_string(), error, "staging says the same");
        }
    }
}
