//! The gRPC status of each failure.
//!
//! Always holds: the match is exhaustive, so that a new failure cannot get a code by accident. Codes follow
//! the CSI specification and show the kubelet what it may do (only Unavailable and Aborted heal by
//! themselves).

use cleat_runtime::exit::Causes;
use tonic::{Code, Status};

use super::request::InvalidRequest;
use crate::volume::{PublishError, StageError, UnpublishError, UnstageError};

/// A failure with a code of the CSI specification.
trait Coded: std::error::Error {
    fn code(&self) -> Code;
}

impl Coded for InvalidRequest {
    fn code(&self) -> Code {
        match self {
            Self::Missing { .. } | Self::Value { .. } => Code::InvalidArgument,
            Self::NotStaged => Code::FailedPrecondition,
        }
    }
}

impl Coded for StageError {
    fn code(&self) -> Code {
        match self {
            Self::InProgress(_) => Code::Aborted,
            Self::Over { .. } | Self::OtherNamespace { .. } => Code::FailedPrecondition,
            Self::NotGranted { .. } | Self::NotReady { .. } => Code::Unavailable,
            Self::Ledger(_) | Self::Lost => Code::Internal,
        }
    }
}

impl Coded for UnstageError {
    fn code(&self) -> Code {
        match self {
            Self::InProgress(_) => Code::Aborted,
            Self::Published(_) => Code::FailedPrecondition,
            Self::Observation(_) | Self::Host(_) | Self::Lost => Code::Internal,
        }
    }
}

impl Coded for PublishError {
    fn code(&self) -> Code {
        match self {
            Self::Device(error) => error.code(),
            Self::Occupied { .. } | Self::OtherDevice { .. } => Code::FailedPrecondition,
            Self::OtherMode { .. } => Code::AlreadyExists,
            Self::Host(_) => Code::Internal,
        }
    }
}

impl Coded for UnpublishError {
    fn code(&self) -> Code {
        match self {
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
                Self::new(error.code(), Causes(&error).to_string())
            }
        }
    )+};
}

to_status!(InvalidRequest, StageError, UnstageError, PublishError, UnpublishError);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ledger::rules::Stale;
    use crate::name::Epoch;
    use crate::volume::gate::InProgress;
    use crate::volume::host::HostError;

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
            (missing().into(), Code::InvalidArgument, "volume_id"),
            (
                StageError::from(in_progress()).into(),
                Code::Aborted,
                "attach op-1 has been in progress for 3.0 s",
            ),
            (over.into(), Code::FailedPrecondition, "6.1"),
            (not_granted.into(), Code::Unavailable, "Attach of epoch 5.2"),
            (StageError::Lost.into(), Code::Internal, "this is a bug"),
            (
                PublishError::OtherMode { target: "/t".into(), read_only: true }.into(),
                Code::AlreadyExists,
                "readonly true, asked for false",
            ),
            (InvalidRequest::NotStaged.into(), Code::FailedPrecondition, "staging_target_path"),
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
            (UnstageError::from(host()).into(), Code::Internal, "cannot tell"),
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

    /// One of each variant that can be made here; the table of docs/csi.md has its row for it.
    fn documented(error: &impl Coded) {
        let kind = std::any::type_name_of_val(error).rsplit("::").next().unwrap().to_owned();
        let variant: String = format!("{error:?}").chars().take_while(char::is_ascii_alphanumeric).collect();
        let code = cleat_runtime::metrics::code_name(error.code());
        let row = format!("| `{kind}::{variant}` | `{code}` |");
        let (_, of_agent) = include_str!("../../../docs/csi.md").split_once("## Codes of the agent").unwrap();
        assert!(of_agent.contains(&row), "docs/csi.md lacks {row}");
    }

    #[test]
    fn the_documents_have_every_failure_with_its_code() {
        let epoch: Epoch = "5.2".parse().unwrap();
        let in_progress = || InProgress { what: "attach op-1".into(), since: Duration::from_secs(3) };
        let host = || HostError::new("umount /x", std::io::Error::from_raw_os_error(16));
        let stale = Stale { highest: "6.1".parse().unwrap(), ended: false };
        documented(&InvalidRequest::Missing { field: "volume_id" });
        documented(&InvalidRequest::NotStaged);
        for error in [StageError::Lost, in_progress().into(), StageError::Over { asked: epoch, stale }] {
            documented(&error);
        }
        documented(&StageError::NotGranted {
            asked: epoch,
            seen: "none".into(),
            session: "down",
            waited: Duration::from_secs(10),
        });
        for error in [UnstageError::Published(Vec::new()), UnstageError::Lost, host().into()] {
            documented(&error);
        }
        let (target, found) = (|| "/t".into(), || "259:3".to_owned());
        documented(&PublishError::OtherMode { target: target(), read_only: true });
        documented(&PublishError::OtherDevice { target: target(), found: found(), source: host() });
        documented(&PublishError::from(host()));
        documented(&UnpublishError::Occupied { target: target(), found: found() });
        documented(&UnpublishError::Left { target: target(), found: found() });
        documented(&UnpublishError::from(in_progress()));
        documented(&UnpublishError::Lost);
    }
}
