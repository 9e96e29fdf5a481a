//! Why a call of the kubelet failed: one error per call. Which status each becomes is said in `csi/status.rs`.

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
    /// Another operation holds the volume.
    #[error(transparent)]
    InProgress(#[from] InProgress),
    /// The grant in PublishContext is over.
    #[error("this node's grant of the volume under epoch {asked} has ended")]
    Over {
        /// The epoch in PublishContext.
        asked: Epoch,
        /// What this node has seen.
        #[source]
        stale: Stale,
    },
    /// The grant names another namespace than PublishContext.
    #[error("PublishContext names namespace {asked}, the grant of epoch {epoch} names {granted}")]
    OtherNamespace {
        /// In PublishContext.
        asked: NamespaceUuid,
        /// The epoch of both.
        epoch: Epoch,
        /// By the controller's Attach.
        granted: NamespaceUuid,
    },
    /// The controller has not sent this node the grant.
    #[error(
        "waits for the controller's Attach of epoch {asked} (waited {:.1} s; this node has seen {seen}; the session \
         with the controller is {session})",
        waited.as_secs_f64()
    )]
    NotGranted {
        /// The epoch in PublishContext.
        asked: Epoch,
        /// The highest epoch that this node has seen, or "none".
        seen: String,
        /// Whether there is a session.
        session: &'static str,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The predicate does not hold.
    #[error("waits for the device (waited {:.1} s): {clause}: {message}", waited.as_secs_f64())]
    NotReady {
        /// The clause that fails.
        clause: String,
        /// What was seen.
        message: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The ledger cannot be read.
    #[error("cannot read the ledger, so cannot tell whether the grant has ended")]
    Ledger(#[from] LedgerError),
    /// The operation ended without a result.
    #[error("the operation was lost; this is a bug, please report it")]
    Lost,
}

/// Why a volume cannot be unstaged.
#[derive(Debug, thiserror::Error)]
pub enum UnstageError {
    /// Another operation holds the volume.
    #[error(transparent)]
    InProgress(#[from] InProgress),
    /// It is still published.
    #[error("the volume is still published at {}", join(.0))]
    Published(Vec<PathBuf>),
    /// It could not be looked at.
    #[error("cannot tell whether the volume is still published")]
    Observation(#[from] SysfsError),
    /// It could not be looked at.
    #[error("cannot tell whether the volume is still published")]
    Host(#[from] HostError),
    /// The operation ended without a result.
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
        /// The target.
        target: PathBuf,
        /// Whether it is read-only there.
        read_only: bool,
    },
    /// There is something else at the target.
    #[error("target_path {} holds {found}, which Cleat did not put there; remove it", target.display())]
    Occupied {
        /// The target.
        target: PathBuf,
        /// What is there.
        found: String,
    },
    /// There is another device at the target, and it is in use.
    #[error("target_path {} holds another device, {found}, and cannot be freed of it", target.display())]
    OtherDevice {
        /// The target.
        target: PathBuf,
        /// What is there.
        found: String,
        /// Why it could not be taken off.
        #[source]
        source: HostError,
    },
    /// Looking or mounting failed.
    #[error("cannot publish the volume")]
    Host(#[from] HostError),
}

/// Why a volume cannot be unpublished.
#[derive(Debug, thiserror::Error)]
pub enum UnpublishError {
    /// Another operation holds the volume.
    #[error(transparent)]
    InProgress(#[from] InProgress),
    /// There is something else at the target.
    #[error("target_path {} holds {found}, which Cleat did not put there; remove it", target.display())]
    Occupied {
        /// The target.
        target: PathBuf,
        /// What is there.
        found: String,
    },
    /// It was taken off, and is still there.
    #[error("target_path {} still holds {found} after it was unmounted", target.display())]
    Left {
        /// The target.
        target: PathBuf,
        /// What is there.
        found: String,
    },
    /// Looking or unmounting failed.
    #[error("cannot unpublish the volume")]
    Host(#[from] HostError),
    /// The operation ended without a result.
    #[error("the operation was lost; this is a bug, please report it")]
    Lost,
}

fn join(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
