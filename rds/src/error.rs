//! What can go wrong with an RDS. Each kind needs a different reaction.
//!
//! Always holds: [`RdsError::NotFound`] is made only from a positive answer of the RDS (a list without the
//! volume, or its own 404), never from an error on the way. [`RdsError::outcome_unknown`] is true for every
//! error after which a write may have happened, or may still happen.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cleat_ids::VolumeId;

/// Why an operation on the RDS did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RdsError {
    /// The RDS said that it has no such thing.
    #[error("the RDS has no {what}")]
    NotFound {
        /// The thing that was asked for.
        what: String,
    },
    /// The RDS refused the request.
    #[error("cannot {what}: the RDS refused: {status} {message}: {detail}")]
    Refused {
        /// What the request was to do, as the end of "cannot".
        what: String,
        /// The HTTP status code.
        status: u16,
        /// The field `message` of RouterOS' error body, such as `Bad Request`.
        message: String,
        /// The field `detail` of RouterOS' error body; empty where it gave none.
        detail: String,
    },
    /// The RDS has no space left, or no free port.
    #[error("cannot {what}: the RDS has no room: {detail}")]
    Full {
        /// What the request was to do, as the end of "cannot".
        what: String,
        /// What is full: RouterOS' `detail`, or the range of ports.
        detail: String,
    },
    /// The RDS was not reached, or did not answer.
    #[error("cannot {what}: the RDS is unreachable ({way})")]
    Unreachable {
        /// What the request was to do, as the end of "cannot".
        what: String,
        /// How far the request came.
        way: Way,
        /// What failed below HTTP.
        #[source]
        cause: Cause,
    },
    /// The RDS did not accept user and password, even after the password file was read again.
    #[error("cannot {what}: the RDS does not accept user {user}: {detail}")]
    Unauthorised {
        /// What the request was to do, as the end of "cannot".
        what: String,
        /// The RouterOS user that the request logged in as.
        user: String,
        /// What the RDS said, or what is wrong with the password file.
        detail: String,
    },
    /// The answer is not one that RouterOS gives, or contradicts itself.
    #[error("cannot {what}: the RDS's answer makes no sense: {problem}")]
    Malformed {
        /// What the request was to do, as the end of "cannot".
        what: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// Something on the RDS prevents it, and is left alone.
    #[error("volume {volume}: {problem}")]
    Conflict {
        /// The volume that the operation was about.
        volume: VolumeId,
        /// What is there, and why it prevents the operation.
        problem: String,
    },
    /// An earlier write whose answer was lost could still undo this one. Until it cannot, nothing is proven.
    #[error("volume {volume}: the RDS did not answer an earlier request ({earlier}), which may still take \
             effect; ask again in {} s", wait.as_secs() + 1)]
    InDoubt {
        /// The volume that both writes are about.
        volume: VolumeId,
        /// What the write without an answer was to do.
        earlier: String,
        /// How long it may still take effect.
        wait: Duration,
    },
    /// A secret would have gone where others could read it. It was not sent.
    #[error("volume {volume}: cannot send its secret: the connection to the RDS is not encrypted; use https")]
    Cleartext {
        /// The volume whose secret it is.
        volume: VolumeId,
    },
}

/// How far an unanswered request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It waited too long for its turn; nothing was sent.
    Queue,
    /// No connection; nothing was sent.
    Connect,
    /// No TLS session: wrong certificate, or none; nothing was sent.
    Tls,
    /// No answer within the deadline; nobody knows what the RDS did.
    Timeout,
    /// The connection ended before the answer; nobody knows what the RDS did.
    Lost,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queue => "no turn in time",
            Self::Connect => "no connection",
            Self::Tls => "no TLS session",
            Self::Timeout => "no answer in time",
            Self::Lost => "connection lost before the answer",
        })
    }
}

/// A cause that many callers can share: one failed list fails everybody who waited for it.
#[derive(Clone)]
pub struct Cause(Arc<dyn Error + Send + Sync>);

impl Cause {
    /// Wraps any error, or a text.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(Arc::from(error.into()))
    }
}

impl Cause {
    pub(super) fn as_error(&self) -> &(dyn Error + 'static) {
        self.0.as_ref()
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

impl RdsError {
    /// Whether a write that ended like this may have happened, or may still happen.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Unreachable { way, .. } => matches!(way, Way::Timeout | Way::Lost),
            Self::Malformed { .. } | Self::InDoubt { .. } => true,
            Self::NotFound { .. }
            | Self::Refused { .. }
            | Self::Full { .. }
            | Self::Unauthorised { .. }
            | Self::Conflict { .. }
            | Self::Cleartext { .. } => false,
        }
    }

    /// The value of the label `outcome` in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::Refused { .. } => "refused",
            Self::Full { .. } => "full",
            Self::Unreachable { way, .. } => match way {
                Way::Queue => "queue",
                Way::Connect => "connect",
                Way::Tls => "tls",
                Way::Timeout => "timeout",
                Way::Lost => "lost",
            },
            Self::Unauthorised { .. } => "unauthorised",
            Self::Malformed { .. } => "malformed",
            Self::Conflict { .. } => "conflict",
            Self::InDoubt { .. } => "in_doubt",
            Self::Cleartext { .. } => "cleartext",
        }
    }

    pub(super) fn unreachable(what: &str, way: Way, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unreachable { what: what.to_owned(), way, cause: Cause::new(cause) }
    }

    pub(super) fn malformed(what: &str, problem: impl Into<String>) -> Self {
        Self::Malformed { what: what.to_owned(), problem: problem.into() }
    }

    pub(super) fn conflict(volume: &VolumeId, problem: impl Into<String>) -> Self {
        Self::Conflict { volume: volume.clone(), problem: problem.into() }
    }
}
