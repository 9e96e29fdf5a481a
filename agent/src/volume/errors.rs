//! Why a call of the kubelet failed: one error per call, and one place where each becomes a status.
//!
//! Always holds: the match is exhaustive, so that a new failure cannot get a code by accident; codes follow the CSI
//! specification, and tell the kubelet what it may do (only Unavailable and Aborted get better by themselves).

use std::path::PathBuf;
use std::time::Duration;

use cleat_host::NamespaceUuid;
use cleat_host::sysfs::SysfsError;
use cleat_runtime::exit::Causes;
use tonic::{Code, Status};

use super::gate::InProgress;
use super::host::HostError;
use crate::csi::request::InvalidRequest;
use crate::ledger::LedgerError;
use crate::ledger::rules::Stale;
use crate::name::Epoch;

/// Why the device of a volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A field of the request cannot be used.
    #[error(transparent)]
    Request(#[from] InvalidRequest),
    /// Another operation holds the volume.
    #[error(transparent)]
    InProgress(#[from] InProgress),
    /// The grant in PublishContext is over.
    #[error("the volume is not granted to this node under epoch {asked} any more")]
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
    /// The controller has not told this node of the grant.
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
    #[error("whether the grant is over cannot be told")]
    Ledger(#[from] LedgerError),
    /// The operation ended without a result.
    #[error("the operation was lost; this is a defect")]
    Lost,
}

impl StageError {
    /// The status code, by the CSI specification.
    pub fn code(&self) -> Code {
        match self {
            Self::Request(_) => Code::InvalidArgument,
            Self::InProgress(_) => Code::Aborted,
            Self::Over { .. } | Self::OtherNamespace { .. } => Code::FailedPrecondition,
            Self::NotGranted { .. } | Self::NotReady { .. } => Code::Unavailable,
            Self::Ledger(_) | Self::Lost => Code::Internal,
        }
    }
}

/// Why a volume cannot be unstaged.
#[derive(Debug, thiserror::Error)]
pub enum UnstageError {
    /// A field of the request cannot be used.
    #[error(transparent)]
    Request(#[from] InvalidRequest),
    /// Another operation holds the volume.
    #[error(transparent)]
    InProgress(#[from] InProgress),
    /// It is still published.
    #[error("the volume is still published at {}", join(.0))]
    Published(Vec<PathBuf>),
    /// It could not be looked at.
    #[error("whether the volume is still published cannot be told")]
    Look(#[from] SysfsError),
    /// It could not be looked at.
    #[error("whether the volume is still published cannot be told")]
    Host(#[from] HostError),
    /// The operation ended without a result.
    #[error("the operation was lost; this is a defect")]
    Lost,
}

impl UnstageError {
    /// The status code, by the CSI specification.
    pub fn code(&self) -> Code {
        match self {
            Self::Request(_) => Code::InvalidArgument,
            Self::InProgress(_) => Code::Aborted,
            Self::Published(_) => Code::FailedPrecondition,
            Self::Look(_) | Self::Host(_) | Self::Lost => Code::Internal,
        }
    }
}

/// Why a volume cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] StageError),
    /// The staging path is missing, for which the specification has a code of its own.
    #[error("staging_target_path must be given: this driver stages volumes")]
    NotStaged,
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
    #[error("target_path {} holds {found}, which is not ours to replace", target.display())]
    Occupied {
        /// The target.
        target: PathBuf,
        /// What is there.
        found: String,
    },
    /// There is another device at the target, and it is in use.
    #[error("target_path {} holds another device, {found}, which could not be taken off", target.display())]
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

impl PublishError {
    /// The status code, by the CSI specification.
    pub fn code(&self) -> Code {
        match self {
            Self::Device(error) => error.code(),
            Self::NotStaged | Self::Occupied { .. } | Self::OtherDevice { .. } => Code::FailedPrecondition,
            Self::OtherMode { .. } => Code::AlreadyExists,
            Self::Host(_) => Code::Internal,
        }
    }
}

/// Why a volume cannot be unpublished.
#[derive(Debug, thiserror::Error)]
pub enum UnpublishError {
    /// A field of the request cannot be used.
    #[error(transparent)]
    Request(#[from] InvalidRequest),
    /// Another operation holds the volume.
    #[error(transparent)]
    InProgress(#[from] InProgress),
    /// There is something else at the target.
    #[error("target_path {} holds {found}, which is not ours to remove", target.display())]
    Occupied {
        /// The target.
        target: PathBuf,
        /// What is there.
        found: String,
    },
    /// It was taken off, and is still there.
    #[error("target_path {} still holds {found} after it was taken off", target.display())]
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
    #[error("the operation was lost; this is a defect")]
    Lost,
}

impl UnpublishError {
    /// The status code, by the CSI specification.
    pub fn code(&self) -> Code {
        match self {
            Self::Request(_) => Code::InvalidArgument,
            Self::InProgress(_) => Code::Aborted,
            Self::Occupied { .. } => Code::FailedPrecondition,
            Self::Left { .. } | Self::Host(_) | Self::Lost => Code::Internal,
        }
    }
}

macro_rules! to_status {
    ($($error:ty),+) => {$(
        impl From<$error> for Status {
            fn from(error: $error) -> Self {
                Status::new(error.code(), Causes(&error).to_string())
            }
        }
    )+};
}

to_status!(StageError, UnstageError, PublishError, UnpublishError);

fn join(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_can_tell_what_gets_better_by_itself() {
        let epoch: Epoch = "5.2".parse().unwrap();
        let in_progress = || InProgress { what: "attach op-1".into(), since: Duration::from_secs(3) };
        let host = || HostError::new("umount /x", std::io::Error::from_raw_os_error(16));
        let missing = || InvalidRequest::Missing { field: "volume_id" };
        let over =
            StageError::Over { asked: epoch, stale: Stale { highest: "6.1".parse().unwrap(), ended: false } };
        let not_granted = StageError::NotGranted {
            asked: epoch,
            seen: "none".into(),
            session: "down",
            waited: Duration::from_secs(10),
        };
        let cases: Vec<(Status, Code, &str)> = vec![
            (StageError::from(missing()).into(), Code::InvalidArgument, "volume_id"),
            (StageError::from(in_progress()).into(), Code::Aborted, "attach op-1 in progress since 3.0 s"),
            (over.into(), Code::FailedPrecondition, "6.1"),
            (not_granted.into(), Code::Unavailable, "Attach of epoch 5.2"),
            (StageError::Lost.into(), Code::Internal, "defect"),
            (
                PublishError::OtherMode { target: "/t".into(), read_only: true }.into(),
                Code::AlreadyExists,
                "readonly true, asked for false",
            ),
            (PublishError::NotStaged.into(), Code::FailedPrecondition, "staging_target_path"),
            (PublishError::from(StageError::from(in_progress())).into(), Code::Aborted, "attach op-1"),
            (PublishError::from(host()).into(), Code::Internal, "umount /x"),
            (
                PublishError::OtherDevice { target: "/t".into(), found: "259:3".into(), source: host() }
                    .into(),
                Code::FailedPrecondition,
                "259:3",
            ),
            (
                UnstageError::Published(vec!["/a".into(), "/b".into()]).into(),
                Code::FailedPrecondition,
                "/a, /b",
            ),
            (UnstageError::from(host()).into(), Code::Internal, "cannot be told"),
            (
                UnpublishError::Occupied { target: "/t".into(), found: "a directory".into() }.into(),
                Code::FailedPrecondition,
                "a directory",
            ),
            (UnpublishError::from(in_progress()).into(), Code::Aborted, "attach op-1"),
            (
                UnpublishError::Left { target: "/t".into(), found: "259:3".into() }.into(),
                Code::Internal,
                "still holds 259:3",
            ),
        ];
        for (status, code, said) in cases {
            assert_eq!(status.code(), code, "{status:?}");
            assert!(status.message().contains(said), "{status:?}");
        }
    }
}
