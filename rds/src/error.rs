//! What can go wrong with an RDS, kept apart: each kind calls for something else to be done.
//!
//! What always holds: [`RdsError::NotFound`] is made only from a positive answer of the RDS (a list without the
//! volume, or its own 404), never from an error on the way; and [`RdsError::outcome_unknown`] is true for every
//! error after which a write may still have happened, or may happen later.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cleat_ids::VolumeId;

/// What an operation on the RDS ends with if not with success.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RdsError {
    /// The RDS said that there is no such thing.
    #[error("the RDS has no {what}")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// The RDS refused the request.
    #[error("cannot {what}: the RDS refused: {status} {message}: {detail}")]
    Refused {
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// RouterOS' `message`.
        message: String,
        /// RouterOS' `detail`, empty where it gave none.
        detail: String,
    },
    /// The RDS has no room.
    #[error("cannot {what}: the RDS has no room: {detail}")]
    Full {
        /// What was asked for.
        what: String,
        /// RouterOS' `detail`.
        detail: String,
    },
    /// The RDS was not reached, or did not answer.
    #[error("cannot {what}: the RDS is unreachable ({way})")]
    Unreachable {
        /// What was asked for.
        what: String,
        /// How far it came.
        way: Way,
        /// What failed below.
        #[source]
        cause: Cause,
    },
    /// The RDS did not accept user and password, also after the password file was read again.
    #[error("cannot {what}: the RDS does not accept user {user}: {detail}")]
    Unauthorised {
        /// What was asked for.
        what: String,
        /// As whom.
        user: String,
        /// What it said, or what is wrong with the password file.
        detail: String,
    },
    /// The answer is not one that RouterOS gives, or does not agree with itself.
    #[error("cannot {what}: the RDS's answer makes no sense: {problem}")]
    Malformed {
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// What is there stands in the way, and is left alone.
    #[error("volume {volume}: {problem}")]
    Conflict {
        /// Which volume.
        volume: VolumeId,
        /// What is there and why it is in the way.
        problem: String,
    },
    /// An earlier write whose answer was lost could still undo this one. Nothing is proven until it cannot.
    #[error("volume {volume}: the RDS did not answer an earlier request ({earlier}), which may still take \
             effect; ask again in {} s", wait.as_secs() + 1)]
    InDoubt {
        /// Which volume.
        volume: VolumeId,
        /// The write without an answer.
        earlier: String,
        /// For how long it may still take effect.
        wait: Duration,
    },
    /// A secret was to be sent where others could read it. It was not.
    #[error("volume {volume}: cannot send its secret: the connection to the RDS is not encrypted; use https")]
    Cleartext {
        /// Which volume.
        volume: VolumeId,
    },
}

/// How far a request came that the RDS did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It waited too long for its turn; nothing was sent.
    Queue,
    /// No connection; nothing was sent.
    Connect,
    /// No TLS session: wrong certificate, or none; nothing was sent.
    Tls,
    /// No answer within the deadline; what the RDS did is not known.
    Timeout,
    /// The connection ended before the answer; what the RDS did is not known.
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

/// A cause that many callers can share: one failed list fails all who waited for it.
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
    /// Whether a write that ended so may have happened, or may still happen.
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

    /// The value of the `outcome` label in metrics.
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
