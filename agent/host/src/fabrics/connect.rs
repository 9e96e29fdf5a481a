//! What both ways to connect share: the check in sysfs, and what the kernel's refusals mean.

use std::io;
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use super::{ConnectRequest, Connected};
use crate::name::{ControllerName, Portal, SubsystemNqn};
use crate::sysfs::{Controller, SubsystemView, Sysfs, SysfsError};
use crate::work::WorkError;

/// How long a portal that refused may take to accept a plain TCP connection.
const REACH: Duration = Duration::from_secs(1);

/// Why a connect failed. Whatever it made is deleted in the background: at once, or (`Overdue`) as soon as
/// the kernel returns. The next connect of the same subsystem, host and portal waits for that.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kernel or the target refused.
    #[error("cannot connect to {subsystem} at {portal}: {failure}{hint}")]
    Refused {
        /// The NQN that was to be connected.
        subsystem: SubsystemNqn,
        /// The address and port that were tried.
        portal: Portal,
        /// What kind of refusal it was.
        failure: ConnectFailure,
        /// What else was found that explains it, with its leading punctuation; empty where there is nothing.
        hint: String,
        /// What the kernel said, or nvme-cli's stderr.
        #[source]
        source: io::Error,
    },
    /// The portal's address does not answer, so the kernel was not asked: it would have held up every other
    /// connect of this host for seconds.
    #[error(
        "cannot connect to {subsystem} at {portal}: cannot reach the portal ({reason}); the kernel was not \
         asked"
    )]
    Silent {
        /// The NQN that was to be connected.
        subsystem: SubsystemNqn,
        /// The address and port that do not answer.
        portal: Portal,
        /// What the attempt to reach it showed.
        reason: String,
    },
    /// The deadline passed. The attempt goes on in the background and is undone if it succeeds late.
    #[error("cannot connect to {subsystem} at {portal}: no answer within {deadline:?}")]
    Overdue {
        /// The NQN that was to be connected.
        subsystem: SubsystemNqn,
        /// The address and port that were tried.
        portal: Portal,
        /// The deadline that passed.
        deadline: Duration,
    },
    /// An earlier connect of the same subsystem, host and portal has not ended yet.
    #[error("cannot connect to {subsystem} at {portal}: an earlier attempt has not ended after {deadline:?}")]
    EarlierAttempt {
        /// The NQN that was to be connected.
        subsystem: SubsystemNqn,
        /// The address and port of both attempts.
        portal: Portal,
        /// The deadline that passed while it waited for its turn.
        deadline: Duration,
    },
    /// The interface to the kernel could not be opened or started.
    #[error(
        "cannot use {path}; check that it is there, and that the module nvme-tcp is loaded (`modprobe nvme-tcp`)"
    )]
    Interface {
        /// The device, or the program.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A secret was given, and this way to the kernel cannot hide it.
    #[error(
        "cannot connect to {subsystem} at {portal}: it needs a secret, and nvme-cli would show it to every \
         process of this host; pass `--fabrics kernel`"
    )]
    SecretUnsafe {
        /// The NQN that was to be connected.
        subsystem: SubsystemNqn,
        /// The address and port that were to be used.
        portal: Portal,
    },
    /// The kernel reported success, but sysfs does not show what was asked for.
    #[error("cannot connect to {subsystem} at {portal}: reported as done, but {found}")]
    NotAsAsked {
        /// The NQN that was to be connected.
        subsystem: SubsystemNqn,
        /// The address and port that were asked for.
        portal: Portal,
        /// What sysfs shows instead.
        found: String,
    },
    /// Sysfs could not be read, so the outcome is unknown. A controller that this call made is deleted.
    #[error("cannot read whether {subsystem} was connected at {portal}")]
    Unverified {
        /// The NQN that may be connected.
        subsystem: SubsystemNqn,
        /// The address and port that were asked for.
        portal: Portal,
        /// What could not be read.
        #[source]
        source: SysfsError,
    },
    /// No thread could be started, or it ended without a result.
    #[error("cannot connect to {subsystem} at {portal}")]
    Work {
        /// The NQN that was to be connected.
        subsystem: SubsystemNqn,
        /// The address and port that were asked for.
        portal: Portal,
        /// Why the work gave no result.
        #[source]
        source: WorkError,
    },
}

impl ConnectError {
    /// Which kind of refusal it was; `None` for an error of another sort.
    pub fn failure(&self) -> Option<ConnectFailure> {
        match self {
            Self::Refused { failure, .. } => Some(*failure),
            Self::Silent { .. } => Some(ConnectFailure::Unreachable),
            _ => None,
        }
    }

    /// Whether in-band authentication was the cause: the secret is missing, refused, or cannot be used here.
    pub fn is_authentication(&self) -> bool {
        let failure = self.failure();
        matches!(self, Self::SecretUnsafe { .. }) || failure.is_some_and(ConnectFailure::is_authentication)
    }
}

/// Kinds of refusals. Each needs a different remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ConnectFailure {
    /// No TCP connection: refused, no route, timed out.
    #[error("cannot reach the portal")]
    Unreachable,
    /// The target answered and refused. The kernel does not say why: either this host is not allowed, or the
    /// target has no such subsystem.
    #[error("the target refused: this host is not on its access list, or it has no such subsystem")]
    Rejected,
    /// The target did not accept the secret.
    #[error("authentication failed: the target did not accept the secret")]
    Authentication,
    /// The target asks for a secret, and none was given ("Required key not available").
    #[error("the target asks for authentication, but no secret was given")]
    SecretRequired,
    /// The target asks for a secret, and the kernel has no DH-HMAC-CHAP.
    #[error("the target asks for authentication, which this kernel cannot do (CONFIG_NVME_HOST_AUTH)")]
    NoAuthentication,
    /// The kernel refused the option string (EINVAL).
    #[error("the kernel did not accept the options")]
    Options,
    /// The kernel has no NVMe/TCP.
    #[error("the kernel has no NVMe/TCP transport (`modprobe nvme-tcp`)")]
    NoTransport,
    /// The kernel refused this process (EPERM, EACCES).
    #[error("not permitted")]
    Permission,
    /// An error number without a kind of its own; the error's source has it.
    #[error("failed")]
    Other,
}

/// A failure that came as text, with the error number that the text stands for.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct Reported {
    number: i32,
    text: Box<dyn std::error::Error + Send + Sync>,
}

impl Reported {
    pub(super) fn new(number: i32, text: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { number, text: Box::new(text) }
    }
}

impl ConnectFailure {
    /// Whether it is about in-band authentication.
    pub fn is_authentication(self) -> bool {
        matches!(self, Self::Authentication | Self::SecretRequired | Self::NoAuthentication)
    }

    /// What an error number from `/dev/nvme-fabrics` means. NVMe status codes arrive as EIO
    /// (`drivers/nvme/host/tcp.c`, `nvme_tcp_create_ctrl`).
    pub(super) fn of(error: &io::Error) -> Self {
        let reported = || error.get_ref()?.downcast_ref::<Reported>().map(|reported| reported.number);
        match error.raw_os_error().or_else(reported) {
            Some(
                libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::ETIMEDOUT
                | libc::ECONNRESET
                | libc::ENOTCONN
                | libc::EHOSTDOWN
                | libc::ENETDOWN
                | libc::EPIPE
                | libc::EAGAIN
                | libc::EADDRNOTAVAIL,
            ) => Self::Unreachable,
            Some(libc::EIO) => Self::Rejected,
            Some(libc::ENOKEY) => Self::SecretRequired,
            Some(libc::EKEYREJECTED | libc::EKEYEXPIRED | libc::EKEYREVOKED) => Self::Authentication,
            Some(libc::EPROTONOSUPPORT) => Self::NoAuthentication,
            Some(libc::EINVAL) => Self::Options,
            Some(libc::ENODEV | libc::EOPNOTSUPP | libc::ENXIO) => Self::NoTransport,
            Some(libc::EPERM | libc::EACCES) => Self::Permission,
            _ => Self::Other,
        }
    }
}

/// What differs between a controller and what was asked for; `None` when nothing does.
pub(super) fn difference(request: &ConnectRequest, controller: &Controller) -> Option<String> {
    let name = &controller.name;
    let raw = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
    if controller.subsystem_nqn.as_deref() != Some(request.subsystem.as_str()) {
        return Some(format!("{name} is connected to subsystem {}", raw(&controller.subsystem_nqn)));
    }
    if controller.host_nqn.as_deref() != Some(request.host_nqn.as_str()) {
        return Some(format!("{name} has host NQN {}", raw(&controller.host_nqn)));
    }
    let host_id = controller.host_id.as_deref().and_then(|text| text.parse().ok());
    if host_id != Some(request.host_id) {
        return Some(format!("{name} has host id {}", raw(&controller.host_id)));
    }
    if controller.portal() != Some(request.portal) {
        let address = controller.address.as_ref().map_or("none", |address| address.raw.as_str());
        return Some(format!("{name} has address {address}"));
    }
    None
}

/// A controller that has what was asked for and is not being deleted.
pub(super) fn existing<'a>(request: &ConnectRequest, view: &'a SubsystemView) -> Option<&'a Controller> {
    view.controllers.iter().find(|c| !c.state.is_going() && difference(request, c).is_none())
}

/// Reads a controller that was just made and compares it with what was asked for.
pub(super) fn verify(
    sysfs: &Sysfs,
    request: &ConnectRequest,
    name: &ControllerName,
) -> Result<Controller, ConnectError> {
    let not_as_asked = |found: String| ConnectError::NotAsAsked {
        subsystem: request.subsystem.clone(),
        portal: request.portal,
        found,
    };
    match sysfs.controller_blocking(name) {
        (Some(controller), _) => match difference(request, &controller) {
            None => Ok(controller),
            Some(found) => Err(not_as_asked(found)),
        },
        (None, _) => Err(not_as_asked(format!("there is no controller {name}"))),
    }
}

/// Makes an error of a refusal, with what the topology and the request add to it.
pub(super) fn refused(sysfs: &Sysfs, request: &ConnectRequest, source: io::Error) -> ConnectError {
    let authenticating = request.secret.is_some();
    let failure = match ConnectFailure::of(&source) {
        // Since 6.9 the kernel also says "connection refused" when a secret was not accepted
        // (`drivers/nvme/host/auth.c`); the portal itself takes connections then.
        ConnectFailure::Unreachable
            if authenticating
                && source.raw_os_error() == Some(libc::ECONNREFUSED)
                && TcpStream::connect_timeout(&request.portal.address(), REACH).is_ok() =>
        {
            ConnectFailure::Authentication
        }
        failure => failure,
    };
    let hint = match failure {
        ConnectFailure::Options => {
            let auth = || authenticating.then(|| " (it may know no DH-HMAC-CHAP)".to_owned());
            identity_clash(sysfs, request).or_else(auth).unwrap_or_default()
        }
        // Kernels before 6.9 say only this much.
        ConnectFailure::Rejected if authenticating => ", or it did not accept the secret".to_owned(),
        _ => String::new(),
    };
    ConnectError::Refused {
        subsystem: request.subsystem.clone(),
        portal: request.portal,
        failure,
        hint,
        source,
    }
}

/// Newer kernels (6.12 does, 6.1 does not) refuse a host NQN that is in use with another host identifier, and
/// the other way round, with a plain EINVAL.
fn identity_clash(sysfs: &Sysfs, request: &ConnectRequest) -> Option<String> {
    let topology = sysfs.read_blocking().ok()?;
    let host_id = request.host_id.to_string();
    topology.controllers.iter().find_map(|controller| {
        let nqn = controller.host_nqn.as_deref()?;
        let id = controller.host_id.as_deref()?;
        let clash = (nqn == request.host_nqn.as_str()) != id.eq_ignore_ascii_case(&host_id);
        clash.then(|| {
            format!(
                " ({} is connected as host NQN {nqn} with host id {id}; the kernel wants one host id per \
                 host NQN)",
                controller.name
            )
        })
    })
}

/// The answer for a controller that was verified.
pub(super) fn connected(controller: Controller, adopted: bool, since: std::time::Instant) -> Connected {
    Connected { controller, adopted, took: since.elapsed() }
}
