//! Persistent reservations of a namespace: who is registered, and who may write.
//!
//! Comes in: a device number, keys, a deadline. Goes out: what the target answered, above all its report
//! ([`ReservationReport`]), which is the only proof of who may write.
//!
//! Always holds:
//! - A successful command proves nothing by itself; callers read the report afterwards.
//! - A conflict is an answer of its own ([`ReservationError::Conflict`]): somebody else's registration
//!   prevents the command, or ours is gone.
//! - Every command runs on a thread of its own with a deadline, one per device at a time. An overdue command
//!   goes on and may still take effect: its outcome is unknown, never "not done".
//!
//! A target may forget all of it when it restarts (Linux does: `ptpls` 0); then anybody may write again.

mod linux;
mod one_path;
mod report;

use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use linux::BlockReservations;
pub use one_path::PathReservations;
pub use report::{BadReport, Registrant, ReservationKind, ReservationReport};

use crate::devnode::DevNodeError;
use crate::fabrics::Pending;
use crate::name::DevT;
use crate::work::WorkError;

/// A registration's key. Never 0, which in a command means "no key".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReservationKey(NonZeroU64);

impl ReservationKey {
    /// The key of that number; `None` for 0.
    pub fn new(key: u64) -> Option<Self> {
        NonZeroU64::new(key).map(Self)
    }

    /// The key as the number that commands and reports carry.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for ReservationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// Which reservations a namespace can hold: the field RESCAP of Identify Namespace (NVM command set, byte 31).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ReservationCapabilities {
    /// The field as the target reports it; 0 where it has no reservations at all.
    pub rescap: u8,
}

impl ReservationCapabilities {
    /// Whether the namespace can have any kind of reservation (bits 1 to 6).
    pub fn any(self) -> bool {
        self.rescap & 0x7e != 0
    }

    /// Whether it can have Write Exclusive – All Registrants (bit 5), the kind that Cleat uses.
    pub fn write_exclusive_all_registrants(self) -> bool {
        self.rescap & (1 << 5) != 0
    }

    /// Whether reservations can survive the target's loss of power (bit 0).
    pub fn persists(self) -> bool {
        self.rescap & 1 != 0
    }
}

/// A command that changes who is registered or what is reserved. Each `key` is the one that this host has, or gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// [`Reservations::register`].
    Register {
        /// The key that this host has now, if the report shows one.
        old: Option<ReservationKey>,
        /// The key that it gets.
        key: ReservationKey,
    },
    /// [`Reservations::unregister`].
    Unregister(ReservationKey),
    /// [`Reservations::reserve`].
    Reserve(ReservationKey),
    /// [`Reservations::preempt_and_abort`].
    PreemptAndAbort {
        /// This host's key.
        key: ReservationKey,
        /// The key of the registrations that go.
        victim: ReservationKey,
    },
    /// [`Reservations::release`].
    Release(ReservationKey),
    /// [`Reservations::clear`].
    Clear(ReservationKey),
}

impl Change {
    /// The command that does it.
    pub fn command(self) -> Command {
        match self {
            Self::Register { .. } => Command::Register,
            Self::Unregister(_) => Command::Unregister,
            Self::Reserve(_) => Command::Reserve,
            Self::PreemptAndAbort { .. } => Command::PreemptAndAbort,
            Self::Release(_) => Command::Release,
            Self::Clear(_) => Command::Clear,
        }
    }
}

/// A command of this module, for errors and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Identify Namespace (admin opcode 06h): reads what the namespace can do.
    Identify,
    /// Reservation Report (opcode 0Eh): reads who is registered.
    Report,
    /// Reservation Register, action register or replace.
    Register,
    /// Reservation Register, action unregister.
    Unregister,
    /// Reservation Acquire, action acquire.
    Reserve,
    /// Reservation Acquire, action preempt and abort.
    PreemptAndAbort,
    /// Reservation Release, action release.
    Release,
    /// Reservation Release, action clear.
    Clear,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Identify => "identify namespace",
            Self::Report => "reservation report",
            Self::Register => "reservation register",
            Self::Unregister => "reservation unregister",
            Self::Reserve => "reservation acquire",
            Self::PreemptAndAbort => "reservation preempt-and-abort",
            Self::Release => "reservation release",
            Self::Clear => "reservation clear",
        })
    }
}

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ReservationError {
    /// The device has no usable node.
    #[error("{command} on block device {dev} failed")]
    Node {
        /// The command that was not sent.
        command: Command,
        /// The number that was asked for.
        dev: DevT,
        /// What is wrong with its node.
        #[source]
        source: DevNodeError,
    },
    /// Somebody else's registration or reservation prevents it, or ours does not exist.
    #[error("{command} on {path}: reservation conflict")]
    Conflict {
        /// The command that was refused.
        command: Command,
        /// The device node that it was sent through.
        path: PathBuf,
    },
    /// The target or the kernel does not know this command.
    #[error("{command} on {path}: not supported")]
    Unsupported {
        /// The command that was refused.
        command: Command,
        /// The device node that it was sent through.
        path: PathBuf,
    },
    /// The target answered with another NVMe status, or the kernel with a code of its own.
    #[error("{command} on {path}: status {status:#x}")]
    Status {
        /// The command that failed.
        command: Command,
        /// The device node that it was sent through.
        path: PathBuf,
        /// What `ioctl` returned: an NVMe status, or since 6.4 a `pr_status` of the generic ioctls.
        status: i32,
    },
    /// The kernel did not carry it out, or had no path for it.
    #[error("{command} on {path} failed")]
    Kernel {
        /// The command that failed.
        command: Command,
        /// The device node that it was sent through.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The target's report breaks the rules of its layout.
    #[error("{command} on {path} failed")]
    BadReport {
        /// The command that returned it.
        command: Command,
        /// The device node that it was sent through.
        path: PathBuf,
        /// The rule that it breaks.
        #[source]
        source: BadReport,
    },
    /// The deadline passed, earlier work still runs, or no thread could be started. The command may still
    /// take effect.
    #[error("{command} on block device {dev} failed")]
    Work {
        /// The command whose outcome is unknown.
        command: Command,
        /// The number that was asked for.
        dev: DevT,
        /// Why the work gave no result.
        #[source]
        source: WorkError,
    },
}

impl ReservationError {
    /// Whether a conflict prevented it.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }

    /// Whether kernel or target do not know the command, so that repeating it is useless.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Unsupported { .. })
    }
}

/// Reservation commands on a block device: a multipath head, a bare NVMe device, or a dm-multipath map.
///
/// A namespace knows this host by its host identifier: over whichever path a command goes, the registrant is
/// the same.
pub trait Reservations: Send + Sync + fmt::Debug {
    /// Reads what the namespace can do, by Identify Namespace.
    ///
    /// # Errors
    /// [`ReservationError`].
    fn abilities(
        &self,
        dev: DevT,
        deadline: Duration,
    ) -> Pending<'_, Result<ReservationCapabilities, ReservationError>>;

    /// Reads who is registered, and what is reserved.
    ///
    /// # Errors
    /// [`ReservationError`].
    fn report(
        &self,
        dev: DevT,
        deadline: Duration,
    ) -> Pending<'_, Result<ReservationReport, ReservationError>>;

    /// Sends one command; the functions below say what each of them does.
    ///
    /// # Errors
    /// [`ReservationError`].
    fn change(
        &self,
        dev: DevT,
        change: Change,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>>;

    /// Registers this host under `key`. `old` is the key that it has now, if the report shows one: one
    /// command replaces it.
    ///
    /// # Errors
    /// [`ReservationError`]: `Conflict` where this host is registered under another key than `old`.
    fn register(
        &self,
        dev: DevT,
        old: Option<ReservationKey>,
        key: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        self.change(dev, Change::Register { old, key }, deadline)
    }

    /// Removes this host's registration under `key`. With the last registrant the reservation goes too.
    ///
    /// # Errors
    /// [`ReservationError`]: `Conflict` where it is not registered under that key.
    fn unregister(
        &self,
        dev: DevT,
        key: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        self.change(dev, Change::Unregister(key), deadline)
    }

    /// Takes the reservation Write Exclusive – All Registrants. `key` must be registered.
    ///
    /// # Errors
    /// [`ReservationError`]: `Conflict` where anybody has a reservation already, even of the same kind.
    fn reserve(
        &self,
        dev: DevT,
        key: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        self.change(dev, Change::Reserve(key), deadline)
    }

    /// Removes the registrations under `victim` and aborts their commands; the reservation stays with the
    /// registrants that are left. `key` must be registered.
    ///
    /// Whether it waits for writes that the target has already received from the victim depends on the
    /// target: Linux 7.2 waits, 6.18 answers at once and lands them later.
    ///
    /// # Errors
    /// [`ReservationError`]: `Conflict` where `victim` is not registered (any more), or `key` is not.
    fn preempt_and_abort(
        &self,
        dev: DevT,
        key: ReservationKey,
        victim: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        self.change(dev, Change::PreemptAndAbort { key, victim }, deadline)
    }

    /// Releases the reservation for everybody; registrations stay.
    ///
    /// # Errors
    /// [`ReservationError`].
    fn release(
        &self,
        dev: DevT,
        key: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        self.change(dev, Change::Release(key), deadline)
    }

    /// Removes the reservation and everybody's registration. For tests and for repairs by hand only.
    ///
    /// # Errors
    /// [`ReservationError`].
    fn clear(
        &self,
        dev: DevT,
        key: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        self.change(dev, Change::Clear(key), deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abilities_are_read_bit_by_bit() {
        // Linux's target says 0xfe: all kinds, no persistence, version 1.3 of ignoring keys.
        let linux = ReservationCapabilities { rescap: 0xfe };
        assert!(linux.any() && linux.write_exclusive_all_registrants() && !linux.persists());
        let none = ReservationCapabilities { rescap: 0x80 };
        assert!(!none.any(), "how keys are ignored says nothing about reservations");
        assert!(!ReservationCapabilities { rescap: 0b0000_0110 }.write_exclusive_all_registrants());
    }

    #[test]
    fn a_key_is_never_zero_and_reads_as_one_number() {
        assert_eq!(ReservationKey::new(0), None);
        let key = ReservationKey::new(0x19_f3c0_0001).expect("not zero");
        assert_eq!(key.to_string(), "0x00000019f3c00001");
        let text = serde_json::to_string(&key).expect("serializes");
        assert_eq!(serde_json::from_str::<ReservationKey>(&text).expect("reads"), key);
        assert!(serde_json::from_str::<ReservationKey>("0").is_err());
    }
}
