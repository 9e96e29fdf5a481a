//! Why a call of the kubelet failed: one error type per call. `csi/status.rs` maps each to its status.

use std::path::PathBuf;
use std::time::Duration;

use cleat_host::NamespaceUuid;
use cleat_host::sysfs::SysfsError;

use crate::ledger::LedgerError;
use crate::ledger::rules::Stale;
use crate::name::Epoch;
use crate::volume::gate::InProgress;
use crate::volume::host::HostError;

/// Why the device of a volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// Another operation has the volume.
    #[error(transparent)]
    InProgress(#[from] InProgress),
    /// The grant that PublishContext names has ended.
    #[error("this node's grant of the volume under epoch {asked} has ended")]
    Over {
        /// The epoch that PublishContext names.
        asked: Epoch,
        /// What this node has on record.
        #[source]
        stale: Stale,
    },
    /// The grant names another namespace than PublishContext.
    #[error("PublishContext names namespace {asked}, the grant of epoch {epoch} names {granted}")]
    OtherNamespace {
        /// The namespace that PublishContext names.
        asked: NamespaceUuid,
        /// The epoch that both name.
        epoch: Epoch,
        /// The namespace that the controller's Attach named.
        granted: NamespaceUuid,
    },
    /// The controller has not sent this node the grant.
    #[error(
        "waits for the controller's Attach of epoch {asked} (waited {:.1} s; this node has seen {seen}; the session \
         with the controller is {session})",
        waited.as_secs_f64()
    )]
    NotGranted {
        /// The epoch that PublishContext names.
        asked: Epoch,
        /// The highest epoch that this node has seen, or "none".
        seen: String,
        /// Whether there is a session with the controller: "up" or "down".
        session: &'static str,
        /// How long the call has waited.
        waited: Duration,
    },
    /// The device is not proven usable: a clause of the predicate fails.
    #[error("waits for the device (waited {:.1} s): {clause}: {message}", waited.as_secs_f64())]
    NotReady {
        /// The stable name of the clause that fails.
        clause: String,
        /// What was expected and what was seen.
        message: String,
        /// How long the call has waited.
        waited: Duration,
    },
    /// The ledger cannot be read, so nobody knows whether the grant has ended.
    #[error("cannot read the ledger, so cannot tell whether the grant has ended")]
    Ledger(#[from] LedgerError),
    /// The operation panicked; its result is unknown.
    #[error("the operation was lost; this is a bug, please report it")]
    Lost,
}

/// Why a volume cannot be unstaged.
#[derive(Debug, thiserror::Error)]
pub enum UnstageError {
    /// Another operation has the volume.
    #[error(transparent)]
    InProgress(#[from] InProgress),
    /// It is still published, at these paths.
    #[error("the volume is still published at {}", join(.0))]
    Published(Vec<PathBuf>),
    /// Sysfs could not be read.
    #[error("cannot tell whether the volume is still published")]
    Observation(#[from] SysfsError),
    /// The mounts could not be read.
    #[error("cannot tell whether the volume is still published")]
    Host(#[from] HostError),
    /// The operation panicked; its result is unknown.
    #[error("the operation was lost; this is a bug, please report it")]
    Lost,
}

/// Why a volume cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] StageError),
    /// The volume is published there already, in the other mode.
    #[error(
        "readonly: the volume is published at {} with readonly {read_only}, asked for {}; unpublish it there first",
        target.display(),
        !read_only
    )]
    OtherMode {
        /// The path that the kubelet named.
        target: PathBuf,
        /// Whether the mount there is read-only.
        read_only: bool,
    },
    /// Something other than a device of Cleat is at the target.
    #[error("target_path {} holds {found}, which Cleat did not put there; remove it", target.display())]
    Occupied {
        /// The path that the kubelet named.
        target: PathBuf,
        /// What is there, as text for a person.
        found: String,
    },
    /// Another device is at the target, and somebody uses it.
    #[error("target_path {} holds another device, {found}, and cannot be freed of it", target.display())]
    OtherDevice {
        /// The path that the kubelet named.
        target: PathBuf,
        /// The device that is there, as text for a person.
        found: String,
        /// Why it could not be unmounted.
        #[source]
        source: HostError,
    },
    /// The target could not be read, or the mount failed.
    #[error("cannot publish the volume")]
    Host(#[from] HostError),
}

/// Why a volume cannot be unpublished.
#[derive(Debug, thiserror::Error)]
pub enum UnpublishError {
    /// Another operation has the volume.
    #[error(transparent)]
    InProgress(#[from] InProgress),
    /// Something other than a device of Cleat is at the target.
    #[error("target_path {} holds {found}, which Cleat did not put there; remove it", target.display())]
    Occupied {
        /// The path that the kubelet named.
        target: PathBuf,
        /// What is there, as text for a person.
        found: String,
    },
    /// It was unmounted, but something is still there.
    #[error("target_path {} still holds {found} after it was unmounted", target.display())]
    Left {
        /// The path that the kubelet named.
        target: PathBuf,
        /// What is there, as text for a person.
        found: String,
    },
    /// The target could not be read, or the unmount failed.
    #[error("cannot unpublish the volume")]
    Host(#[from] HostError),
    /// The operation panicked; its result is unknown.
    #[error("the operation was lost; this is a bug, please report it")]
    Lost,
}

fn join(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
