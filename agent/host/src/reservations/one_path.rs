//! Reservation commands through one controller: as exactly one host, where a head has paths of several.
//!
//! A kernel that is connected to a subsystem as two hosts makes one head for both, and the head sends its
//! commands over any of their paths. A controller's own character device takes a command for its only
//! namespace (`nvme_dev_user_cmd` in drivers/nvme/host/ioctl.c). This is for probing a target from one node;
//! an agent is one host.
//!
//! Always holds: the node is compared with the controller's number in sysfs, and the controller's names are
//! read again while it is open, so its number cannot have passed to another controller.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::linux::{Device, PassthroughCommand};
use super::{Command, ReservationError, ReservationKey};
use crate::devnode::DevNodeError;
use crate::fabrics::ExactController;
use crate::name::DevT;
use crate::sysfs::Sysfs;
use crate::work::Workers;

/// NVMe opcodes and fields (base specification).
const RESERVATION_REGISTER: u8 = 0x0d;
const RESERVATION_ACQUIRE: u8 = 0x11;
const PREEMPT_AND_ABORT: u32 = 2;
const WRITE_EXCLUSIVE_ALL_REGISTRANTS: u32 = 5;

/// Reservation commands of one host through one of its controllers.
#[derive(Debug, Clone)]
pub struct PathReservations {
    sysfs: Sysfs,
    dev_root: PathBuf,
    workers: Workers,
    target: ExactController,
    nsid: u32,
}

impl PathReservations {
    /// Through the controller `target`, for its only namespace, which has the identifier `nsid`.
    pub fn at(
        dev_root: impl Into<PathBuf>,
        sysfs: Sysfs,
        workers: Workers,
        target: ExactController,
        nsid: u32,
    ) -> Self {
        Self { sysfs, dev_root: dev_root.into(), workers, target, nsid }
    }

    /// Registers this host under `key`; it must not be registered yet.
    ///
    /// # Errors
    /// [`ReservationError`].
    pub async fn register(&self, key: ReservationKey, deadline: Duration) -> Result<(), ReservationError> {
        // Current key (none), new key.
        self.run(Command::Register, RESERVATION_REGISTER, 0, [0, key.get()], deadline).await
    }

    /// As [`super::Reservations::preempt_and_abort`].
    ///
    /// # Errors
    /// [`ReservationError`]: `Conflict` where `victim` is not registered (any more), or `key` is not.
    pub async fn preempt_and_abort(
        &self,
        key: ReservationKey,
        victim: ReservationKey,
        deadline: Duration,
    ) -> Result<(), ReservationError> {
        let action = PREEMPT_AND_ABORT | WRITE_EXCLUSIVE_ALL_REGISTRANTS << 8;
        let keys = [key.get(), victim.get()];
        self.run(Command::PreemptAndAbort, RESERVATION_ACQUIRE, action, keys, deadline).await
    }

    async fn run(
        &self,
        command: Command,
        opcode: u8,
        cdw10: u32,
        keys: [u64; 2],
        deadline: Duration,
    ) -> Result<(), ReservationError> {
        let (sysfs, dev_root, target, nsid) =
            (self.sysfs.clone(), self.dev_root.clone(), self.target.clone(), self.nsid);
        let work = move || {
            let device = open(&sysfs, &dev_root, &target, command)?;
            let mut data = [0_u8; 16];
            data[..8].copy_from_slice(&keys[0].to_le_bytes());
            data[8..].copy_from_slice(&keys[1].to_le_bytes());
            device.io(PassthroughCommand::new(opcode, nsid, cdw10), &mut data)
        };
        let key = format!("reservation {}", self.target.controller);
        let done = self.workers.run(&key, deadline, work).await;
        done.unwrap_or_else(|source| {
            let path = self.dev_root.join(self.target.controller.as_str());
            Err(ReservationError::Kernel { command, path, source: io::Error::other(source) })
        })
    }
}

/// Opens the controller's character device and verifies it.
fn open(
    sysfs: &Sysfs,
    dev_root: &Path,
    target: &ExactController,
    command: Command,
) -> Result<Device, ReservationError> {
    let path = dev_root.join(target.controller.as_str());
    let kernel = |source: io::Error| ReservationError::Kernel { command, path: path.clone(), source };
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(kernel)?;
    let metadata = file.metadata().map_err(kernel)?;
    let number = DevT::from_raw(metadata.rdev());
    let expected = std::fs::read_to_string(sysfs.controller_dir(&target.controller).join("dev"));
    let expected = expected.map_err(kernel)?;
    if !metadata.file_type().is_char_device() || expected.trim() != number.to_string() {
        let dev = number;
        let source = DevNodeError::Wrong { path, found: "another device".to_owned(), expected: dev };
        return Err(ReservationError::Node { command, dev, source });
    }
    let (controller, _) = sysfs.controller_blocking(&target.controller);
    let ours = controller.and_then(|found| ExactController::of(&found, &target.subsystem, &target.host_nqn));
    match ours {
        Some(found) if target.incarnation.is_none() || found.incarnation == target.incarnation => {
            Ok(Device { file, path, command })
        }
        _ => Err(kernel(io::Error::other("it is not the controller meant any more"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::Tree;
    use crate::name::{ControllerName, HostNqn, SubsystemNqn};

    #[tokio::test]
    async fn what_is_no_such_controller_is_sent_nothing() {
        let (tree, dev_root) = (Tree::new(), tempfile::tempdir().expect("a directory"));
        std::fs::write(dev_root.path().join("nvme0"), "").expect("a file");
        tree.write("class/nvme/nvme0/dev", "240:0\n");
        let target = ExactController {
            controller: ControllerName::from_instance(0),
            subsystem: SubsystemNqn::parse("nqn.2026-01.test:v").expect("valid"),
            host_nqn: HostNqn::parse("nqn.2026-01.test:h").expect("valid"),
            incarnation: None,
        };
        let path = PathReservations::at(dev_root.path(), tree.sysfs(), Workers::new(), target, 1);
        let key = ReservationKey::new(1).expect("not zero");
        let error = path.register(key, Duration::from_secs(20)).await.expect_err("a file");
        assert!(matches!(error, ReservationError::Node { .. }), "{error:?}");
    }
}
