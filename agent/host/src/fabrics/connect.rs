//! What is common to both ways to connect: the check in sysfs, what the kernel's refusals mean.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::nvme_cli::Reported;
use super::{ConnectRequest, Connected};
use crate::name::{ControllerName, Portal, SubsystemNqn};
use crate::sysfs::{Controller, SubsystemView, Sysfs, SysfsError};
use crate::work::WorkError;

/// Why a connect failed. What it made, if anything, is taken away in the background: at once, or (`Overdue`)
/// as soon as the kernel lets go; the next connect of the same subsystem, host and portal waits for that.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kernel or the target refused.
    #[error("connect to {subsystem} at {portal}: {failure}{hint}")]
    Refused {
        /// The subsystem.
        subsystem: SubsystemNqn,
        /// The portal.
        portal: Portal,
        /// What kind of refusal.
        failure: ConnectFailure,
        /// What else was found that explains it, or nothing.
        hint: String,
        /// What the kernel said, or nvme-cli's stderr.
        #[source]
        source: io::Error,
    },
    /// Not connected in time; goes on in the background and is undone if it succeeds late.
    #[error("connect to {subsystem} at {portal}: no answer within {deadline:?}")]
    Overdue {
        /// The subsystem.
        subsystem: SubsystemNqn,
        /// The portal.
        portal: Portal,
        /// The deadline that passed.
        deadline: Duration,
    },
    /// An earlier connect of the same subsystem, host and portal has not ended yet.
    #[error(
        "connect to {subsystem} at {portal}: an earlier attempt is still being finished or undone after \
         {deadline:?}"
    )]
    EarlierAttempt {
        /// The subsystem.
        subsystem: SubsystemNqn,
        /// The portal.
        portal: Portal,
        /// The deadline that passed while waiting.
        deadline: Duration,
    },
    /// The interface to the kernel cannot be used.
    #[error("cannot use {path}; is the nvme-tcp module loaded (`modprobe nvme-tcp`)?")]
    Interface {
        /// The device or program.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel said that it has connected, and sysfs does not show what was asked for.
    #[error("connect to {subsystem} at {portal}: reported as done, but {found}")]
    NotAsAsked {
        /// The subsystem.
        subsystem: SubsystemNqn,
        /// The portal.
        portal: Portal,
        /// What sysfs shows instead.
        found: String,
    },
    /// Sysfs could not be read, so the outcome is not known; a controller that this call made is deleted.
    #[error("connect to {subsystem} at {portal}: the outcome could not be read")]
    Unverified {
        /// The subsystem.
        subsystem: SubsystemNqn,
        /// The portal.
        portal: Portal,
        /// The cause.
        #[source]
        source: SysfsError,
    },
    /// No thread, or it was lost.
    #[error("connect to {subsystem} at {portal}")]
    Work {
        /// The subsystem.
        subsystem: SubsystemNqn,
        /// The portal.
        portal: Portal,
        /// The cause.
        #[source]
        source: WorkError,
    },
}

impl ConnectError {
    /// What kind of refusal it was, if it was one.
    pub fn failure(&self) -> Option<ConnectFailure> {
        match self {
            Self::Refused { failure, .. } => Some(*failure),
            _ => None,
        }
    }
}

/// Kinds of refusals, each of which asks for something else to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ConnectFailure {
    /// No TCP connection: refused, no route, timed out.
    #[error("the portal cannot be reached")]
    Unreachable,
    /// The target answered and refused. The kernel does not say why: this host is not allowed, or the
    /// subsystem does not exist there.
    #[error("the target refused: this host is not on its access list, or it has no such subsystem")]
    Rejected,
    /// In-band authentication failed or is required.
    #[error("authentication failed or a secret is required")]
    Authentication,
    /// The kernel did not take the options.
    #[error("the kernel did not accept the options")]
    Options,
    /// The kernel has no NVMe/TCP.
    #[error("the kernel has no NVMe/TCP transport (`modprobe nvme-tcp`)")]
    NoTransport,
    /// Not permitted.
    #[error("not permitted")]
    Permission,
    /// Anything else.
    #[error("failed")]
    Other,
}

impl ConnectFailure {
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
            Some(libc::ENOKEY | libc::EKEYREJECTED | libc::EKEYEXPIRED | libc::EKEYREVOKED) => {
                Self::Authentication
            }
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

/// The controller that has what was asked for and is not on its way out.
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

/// A refusal as an error, with what the topology adds to it.
pub(super) fn refused(sysfs: &Sysfs, request: &ConnectRequest, source: io::Error) -> ConnectError {
    let failure = ConnectFailure::of(&source);
    let hint = match failure {
        ConnectFailure::Options => identity_clash(sysfs, request).unwrap_or_default(),
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

/// Newer kernels (6.12 does, 6.1 does not) refuse a host NQN that is already in use with another host
/// identifier, and the other way round, with a bare EINVAL.
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

/// Builds the successful answer.
pub(super) fn connected(controller: Controller, adopted: bool, since: std::time::Instant) -> Connected {
    Connected { controller, adopted, took: since.elapsed() }
}
