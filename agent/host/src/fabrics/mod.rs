//! NVMe over TCP connections: makes them and deletes them.
//!
//! Comes in: a [`ConnectRequest`], or the [`ExactController`] of a deletion, and a deadline. Goes out: a controller
//! that sysfs shows with exactly the names asked for, or proof that one is gone, with the state that it had
//! at that moment.
//!
//! Always holds:
//! - Success means that sysfs showed it, not that a call or a command returned zero.
//! - Every connect gives both the host NQN and the host identifier: the kernel's defaults identify nobody
//!   (and 7.2 refuses a connect without `/etc/nvme/hostid`).
//! - A connect whose caller has gone away or run out of time leaves nothing behind. It is finished in the
//!   background, and if it succeeds late, its controller is deleted again. A later connect for the same
//!   subsystem, host and portal waits until that is over.
//! - Before a controller is deleted, its subsystem NQN and host NQN are read again *through the same open
//!   directory* to which the deletion is written: numbers are reused, open directories are not.
//! - A deletion that does not end in time goes on and is reported as [`DisconnectError::StillDetaching`]. A
//!   repeated call joins it, so that the state seen when it began is not lost.

mod attempt;
mod choice;
mod connect;
mod delete;
mod kernel;
mod nvme_cli;
mod reset;
mod secret;
mod timeouts;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use serde::Serialize;

pub use choice::{Choice, UnavailableFabrics, UnknownChoice, open};
pub use connect::{ConnectError, ConnectFailure};
pub use delete::DisconnectError;
pub use kernel::KernelFabrics;
#[cfg(any(test, feature = "fixtures"))]
pub(crate) use kernel::{FabricsDevice, SubmitError};
pub use nvme_cli::{CliError, NvmeCli};
pub use reset::{ResetEnd, ResetError, reset};
pub use secret::{DhchapSecret, InvalidSecret, RekeyError};
pub use timeouts::TimeoutsError;

use crate::name::{ControllerName, HostId, HostNqn, Portal, SubsystemNqn};
use crate::sysfs::{Controller, ControllerState, Incarnation};

/// A boxed future, so that [`Fabrics`] can be used as `dyn`.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Makes and deletes NVMe/TCP controllers.
///
/// Every operation may be called at any time from any task. Dropping a returned future never leaves work half
/// done (see this module's head).
pub trait Fabrics: Send + Sync + std::fmt::Debug {
    /// Connects one portal and waits until sysfs shows the controller, at most for `deadline`.
    ///
    /// A connection that exists already with the same names is a success with [`Connected::adopted`] set, in
    /// whatever state it is.
    ///
    /// # Errors
    /// [`ConnectError`]; nothing stays behind then.
    fn connect<'a>(
        &'a self,
        request: &'a ConnectRequest,
        deadline: Duration,
    ) -> Pending<'a, Result<Connected, ConnectError>>;

    /// Waits until the kernel has no connect of this subsystem, portal and host under way, and until one that
    /// nobody waited for has been undone. After `Overdue` and `EarlierAttempt` that can take minutes; until
    /// then a controller may still appear. Cancel safe.
    fn settled<'a>(&'a self, _request: &'a ConnectRequest) -> Pending<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Deletes one controller and waits until sysfs no longer shows it, at most for `deadline`.
    ///
    /// # Errors
    /// [`DisconnectError`]: `NotTheTarget` when another controller has that name; `StillDetaching` when the
    /// deadline passed (call again to join).
    fn disconnect<'a>(
        &'a self,
        target: &'a ExactController,
        deadline: Duration,
    ) -> Pending<'a, Result<Disconnected, DisconnectError>>;

    /// Gives a controller another secret in place, under I/O, and reads it back. A controller that has it
    /// already is not written to. The next connection will use it; only that connection shows whether the
    /// target accepts it.
    ///
    /// # Errors
    /// [`RekeyError`]; after `Work` the kernel may still take the secret.
    fn rekey<'a>(
        &'a self,
        target: &'a ExactController,
        secret: &'a DhchapSecret,
        deadline: Duration,
    ) -> Pending<'a, Result<(), RekeyError>>;

    /// Gives an existing controller the times of `options` for getting its connection back, and reads them
    /// back. True if it had other times. The default implementation keeps no times and changes nothing.
    ///
    /// # Errors
    /// [`TimeoutsError`], with the times that the controller keeps.
    fn set_timeouts<'a>(
        &'a self,
        _target: &'a ExactController,
        _options: &'a ConnectOptions,
        _deadline: Duration,
    ) -> Pending<'a, Result<bool, TimeoutsError>> {
        Box::pin(std::future::ready(Ok(false)))
    }

    /// The secret that a controller has; `None` where it was connected without one.
    ///
    /// # Errors
    /// [`RekeyError`].
    fn secret<'a>(
        &'a self,
        target: &'a ExactController,
        deadline: Duration,
    ) -> Pending<'a, Result<Option<DhchapSecret>, RekeyError>>;

    /// Whether connects can authenticate in band: the kernel can, and the secret reaches it without other
    /// processes seeing it.
    fn authenticates(&self) -> bool;

    /// Which implementation this is, for logs: `kernel` or `nvme-cli`.
    fn name(&self) -> &'static str;
}

/// What to connect, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectRequest {
    /// The NQN of the subsystem to connect to.
    pub subsystem: SubsystemNqn,
    /// The address and port where the target listens.
    pub portal: Portal,
    /// The host NQN under which the target will know this host.
    pub host_nqn: HostNqn,
    /// The host identifier that goes with it.
    pub host_id: HostId,
    /// How the kernel treats the connection.
    pub options: ConnectOptions,
    /// The secret to authenticate with; `None` connects without authentication.
    pub secret: Option<DhchapSecret>,
}

/// How the kernel treats a connection. `None` leaves the kernel's default (`drivers/nvme/host/fabrics.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ConnectOptions {
    /// Number of I/O queues; the kernel takes at most one per CPU, and its default is that. Every queue is a
    /// TCP connection and a part of the connect time.
    pub nr_io_queues: Option<u32>,
    /// Time between two attempts to reconnect, in whole seconds; kernel's default 10 s.
    pub reconnect_delay: Option<Duration>,
    /// How long the kernel tries to reconnect before it gives the controller up.
    pub ctrl_loss_tmo: Option<LossTimeout>,
    /// Keep-alive timeout in whole seconds; kernel's default 5 s.
    pub keep_alive_tmo: Option<Duration>,
    /// Time after which I/O on a lost controller fails instead of waiting, in whole seconds; kernel's
    /// default is to wait.
    pub fast_io_fail_tmo: Option<Duration>,
}

/// How long the kernel tries to reconnect before it gives a controller up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossTimeout {
    /// In whole seconds; kernel's default 600 s.
    After(Duration),
    /// For ever. Queued writes are repeated when the network returns, so use it only behind a fence at the
    /// target.
    Never,
}

/// A connection that sysfs shows with the names that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// The controller as sysfs showed it right after the connect.
    pub controller: Controller,
    /// Whether it existed before this call (the kernel's EALREADY).
    pub adopted: bool,
    /// Time from the call until sysfs showed it.
    pub took: Duration,
}

/// Which controller to delete. All of it is verified before anything is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ExactController {
    /// The name under which sysfs shows it, such as `nvme3`. A name is reused after a deletion.
    pub controller: ControllerName,
    /// The subsystem that it must be connected to.
    pub subsystem: SubsystemNqn,
    /// The host NQN that it must have connected with.
    pub host_nqn: HostNqn,
    /// Which incarnation of that name is meant, as read from the topology. `None` means whichever has these
    /// names.
    pub incarnation: Option<Incarnation>,
}

impl ExactController {
    /// The target for a controller that was read from the topology; `None` if it belongs to another subsystem
    /// or host.
    pub fn of(controller: &Controller, subsystem: &SubsystemNqn, host_nqn: &HostNqn) -> Option<Self> {
        let ours = controller.subsystem_nqn.as_deref() == Some(subsystem.as_str())
            && controller.host_nqn.as_deref() == Some(host_nqn.as_str());
        ours.then(|| Self {
            controller: controller.name.clone(),
            subsystem: subsystem.clone(),
            host_nqn: host_nqn.clone(),
            incarnation: Some(controller.incarnation),
        })
    }
}

/// What became of a deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disconnected {
    /// The controller that is gone.
    pub controller: ControllerName,
    /// Who deleted it, with what was seen.
    pub how: HowDeleted,
}

/// How a controller went away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HowDeleted {
    /// This process deleted it.
    Deleted(DeletionFacts),
    /// It was not there when the call came. Somebody else deleted it; its state at that moment is unknown.
    AlreadyGone,
}

/// The limit that tells a slow target from a healthy one, for a deletion with requests in flight: one that
/// takes longer has waited for a target that is slow to answer. A healthy one takes 85 ms for a volume under
/// emulation, and 2.4 s for 32 of them at once, with nothing in flight.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What was seen around a deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeletionFacts {
    /// State of the controller right before the deletion was asked for.
    pub state: ControllerState,
    /// Requests in flight on its paths at that moment; `None` where no path device was seen.
    pub in_flight: Option<u64>,
    /// Portal that it was connected to; `None` where its address could not be read.
    pub portal: Option<Portal>,
    /// Time from the write until sysfs no longer showed it.
    pub took: Duration,
    /// The kernel's I/O timeout at that time (`nvme_core.io_timeout`; 30 s if it could not be read).
    pub io_timeout: Duration,
}

impl DeletionFacts {
    /// Whether the deletion waited for all writes that this controller had sent (measured on Linux 6.1 to
    /// 7.2). The kernel waits for a live controller's writes, unless a request reaches the I/O timeout
    /// meanwhile: that completes the request on this side only, and the target may still land it.
    ///
    /// - With nothing in flight at the beginning, no later request can have reached the timeout in less than
    ///   that time.
    /// - With something in flight, its age is unknown: only a deletion that was over at once counts. This
    ///   cannot see a request that was within a second of its timeout.
    pub fn drained(&self) -> bool {
        let limit = if self.in_flight == Some(0) { self.io_timeout } else { AT_ONCE.min(self.io_timeout) };
        self.state.is_live() && self.took < limit
    }
}

impl Disconnected {
    /// Whether this deletion proves that nothing of this controller is still on its way.
    pub fn drained(&self) -> bool {
        match &self.how {
            HowDeleted::Deleted(facts) => facts.drained(),
            HowDeleted::AlreadyGone => false,
        }
    }
}
