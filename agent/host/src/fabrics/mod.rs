//! NVMe over TCP connections: making them and taking them down.
//!
//! Comes in: a [`ConnectRequest`] or the [`Target`] of a deletion, and a deadline. Goes out: a controller
//! that sysfs shows with exactly the names asked for, or proof that one is gone, with the state that it was
//! in at that moment.
//!
//! Always holds:
//! - Success means that sysfs was looked at, not that a call or a command returned zero.
//! - Both host NQN and host identifier are always given: the kernel's defaults are nobody's identity (and
//!   7.2 refuses a connect without `/etc/nvme/hostid`).
//! - A connect whose caller has gone away or run out of time leaves nothing behind: it is finished in the
//!   background, and if it succeeds late, its controller is deleted again. A later connect for the same
//!   subsystem, host and portal waits until that is over.
//! - A controller is deleted only after its subsystem NQN and host NQN were read again *through the same open
//!   directory* that the deletion is written to: numbers are reused, open directories are not.
//! - A deletion that does not end in time goes on, is reported as [`DisconnectError::StillDetaching`], and a
//!   repeated call joins it, so that the state seen at its beginning is not lost.

mod attempt;
mod choice;
mod connect;
mod delete;
mod kernel;
mod nvme_cli;
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
pub use secret::{DhchapSecret, InvalidSecret, RekeyError};
pub use timeouts::TimeoutsError;

use crate::name::{ControllerName, HostId, HostNqn, Portal, SubsystemNqn};
use crate::sysfs::{Controller, ControllerState, Incarnation};

/// A boxed future, so that [`Fabrics`] can be used as `dyn`.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Makes and deletes NVMe/TCP controllers.
///
/// Both operations may be called at any time from any task; dropping a returned future never leaves work
/// half done (see this module's head).
pub trait Fabrics: Send + Sync + std::fmt::Debug {
    /// Connects one portal and waits until sysfs shows the controller, at most for `deadline`.
    ///
    /// A connection that exists already with the same names is a success with
    /// [`Connected::adopted`] set, whatever state it is in.
    ///
    /// # Errors
    /// [`ConnectError`]; nothing stays behind then.
    fn connect<'a>(
        &'a self,
        request: &'a ConnectRequest,
        deadline: Duration,
    ) -> Pending<'a, Result<Connected, ConnectError>>;

    /// Waits until no connect of this subsystem, portal and host is in the kernel any more, nor the undoing of one
    /// that nobody waited for: after `Overdue` and `EarlierAttempt` that can take minutes, and until then a controller
    /// may come to be. Cancel safe.
    fn settled<'a>(&'a self, _request: &'a ConnectRequest) -> Pending<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Deletes one controller and waits until sysfs no longer shows it, at most for `deadline`.
    ///
    /// # Errors
    /// [`DisconnectError`]; `NotTheTarget` when the controller of that name is not the one meant, and
    /// `StillDetaching` when the deadline passed: call again to join.
    fn disconnect<'a>(
        &'a self,
        target: &'a Target,
        deadline: Duration,
    ) -> Pending<'a, Result<Disconnected, DisconnectError>>;

    /// Gives a controller another secret in place, under I/O, and reads it back. A controller that has it already is
    /// left in peace. The next connection will use it; whether the target has accepted it shows only then.
    ///
    /// # Errors
    /// [`RekeyError`]; after `Work` it may still be taken.
    fn rekey<'a>(
        &'a self,
        target: &'a Target,
        secret: &'a DhchapSecret,
        deadline: Duration,
    ) -> Pending<'a, Result<(), RekeyError>>;

    /// Gives a controller that exists the times of `options` for getting its connection back, and reads them back; true
    /// if it had others. What keeps no such times has nothing to change.
    ///
    /// # Errors
    /// [`TimeoutsError`] with what it keeps.
    fn set_timeouts<'a>(
        &'a self,
        _target: &'a Target,
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
        target: &'a Target,
        deadline: Duration,
    ) -> Pending<'a, Result<Option<DhchapSecret>, RekeyError>>;

    /// Whether connects can authenticate in band: the kernel can, and its secret reaches it without being seen by
    /// other processes.
    fn authenticates(&self) -> bool;

    /// Which implementation this is, for logs: `kernel` or `nvme-cli`.
    fn name(&self) -> &'static str;
}

/// What to connect, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectRequest {
    /// The subsystem.
    pub subsystem: SubsystemNqn,
    /// Where it listens.
    pub portal: Portal,
    /// As which host.
    pub host_nqn: HostNqn,
    /// With which host identifier.
    pub host_id: HostId,
    /// How the kernel treats the connection.
    pub options: ConnectOptions,
    /// With which secret to authenticate, where the target asks for one.
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

/// How long the kernel tries to reconnect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossTimeout {
    /// In whole seconds; kernel's default 600 s.
    After(Duration),
    /// For ever. Queued writes are replayed when the network returns: only behind a fence at the target.
    Never,
}

/// A connection that sysfs shows with the names that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// The controller as sysfs showed it right after.
    pub controller: Controller,
    /// Whether it existed before this call (the kernel's EALREADY).
    pub adopted: bool,
    /// Time from the call to the reading in sysfs.
    pub took: Duration,
}

/// Which controller a deletion is meant for. All of it is verified before anything is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Its name.
    pub controller: ControllerName,
    /// The subsystem that it must be connected to.
    pub subsystem: SubsystemNqn,
    /// The host NQN that it must have connected with.
    pub host_nqn: HostNqn,
    /// Which life of that name is meant, as read from the topology. `None` means whichever has these names.
    pub incarnation: Option<Incarnation>,
}

impl Target {
    /// The target for a controller that was read from the topology, if it belongs to that subsystem and
    /// host; `None` if it is somebody else's.
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
    /// How it went.
    pub how: Deletion,
}

/// How a controller went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deletion {
    /// It was deleted by this process.
    Deleted(DeletionFacts),
    /// It was not there when the call came. Whoever deleted it, its state at that moment is not known.
    AlreadyGone,
}

/// A deletion with requests in flight that takes longer than this has waited for a target that is slow to answer: a
/// healthy one takes 85 ms for a volume under emulation, 2.4 s for 32 of them at once, with nothing in flight.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What was seen around a deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeletionFacts {
    /// State of the controller right before the deletion was asked for.
    pub state: ControllerState,
    /// Requests in flight on its paths at that moment; `None` where no path device was seen.
    pub in_flight: Option<u64>,
    /// Portal that it was connected to.
    pub portal: Option<Portal>,
    /// From the write until sysfs no longer showed it.
    pub took: Duration,
    /// The kernel's I/O timeout at that time (`nvme_core.io_timeout`; 30 s if it could not be read).
    pub io_timeout: Duration,
}

impl DeletionFacts {
    /// Whether the deletion waited for all writes that this controller had sent (measured on Linux 6.1 to 7.2): the
    /// kernel does so for a live controller, unless a request runs into the I/O timeout meanwhile, which completes it
    /// on this side only while the target may land it yet.
    ///
    /// - Nothing was in flight when it began: whatever came since has run into no timeout in less than that time.
    /// - Something was, and how old it was is not known: only a deletion that was over at once counts. What this
    ///   cannot see is a request that was within a second of its timeout.
    pub fn drained(&self) -> bool {
        let limit = if self.in_flight == Some(0) { self.io_timeout } else { AT_ONCE.min(self.io_timeout) };
        self.state.is_live() && self.took < limit
    }
}

impl Disconnected {
    /// Whether this deletion proves that nothing of this controller is still on its way.
    pub fn drained(&self) -> bool {
        match &self.how {
            Deletion::Deleted(facts) => facts.drained(),
            Deletion::AlreadyGone => false,
        }
    }
}
