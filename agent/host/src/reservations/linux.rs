//! Reservation commands by Linux's interfaces.
//!
//! Registering, reserving, preempting, releasing and clearing use the block layer's generic ioctls
//! (`linux/pr.h`), which a dm-multipath map accepts too. What those cannot express uses the NVMe pass-through
//! (`linux/nvme_ioctl.h`): the report with host identifiers, Identify, and removing a registration (the
//! generic register with a new key of 0 reaches an NVMe target as "replace by key 0",
//! `drivers/nvme/host/pr.c`).
//!
//! Always holds: the device is opened read-only, which is enough for a privileged caller and reports no
//! change to udev. Its number is compared on the descriptor. Commands have the kernel's own timeout, since a
//! shorter one would end in a reset of the path.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::report::{BadReport, ReservationReport};
use super::{Change, Command, ReservationCapabilities, ReservationError, ReservationKey, Reservations};
use crate::devnode::{self, OpenFor};
use crate::fabrics::Pending;
use crate::name::DevT;
use crate::sysfs::Sysfs;
use crate::work::Workers;

/// First size of a report's buffer: a header and 63 registrants.
const REPORT_BYTES: usize = 4096;
/// Largest size that a target can make us allocate: one of our namespaces has two registrants, and perhaps
/// some old ones.
const MOST_REPORT_BYTES: usize = 64 * 1024;
/// `enum pr_type`, PR_WRITE_EXCLUSIVE_ALL_REGS.
const WRITE_EXCLUSIVE_ALL_REGS: u32 = 5;
/// NVMe opcodes and fields (base specification).
const IDENTIFY: u8 = 0x06;
const RESERVATION_REGISTER: u8 = 0x0d;
const RESERVATION_REPORT: u8 = 0x0e;
const UNREGISTER: u32 = 1;
const EXTENDED_DATA_STRUCTURE: u32 = 1;
/// Identify Namespace: its length, and the byte of RESCAP.
const IDENTIFY_BYTES: usize = 4096;
const RESCAP: usize = 31;

/// [`Reservations`] of this host's block devices.
#[derive(Debug, Clone)]
pub struct BlockReservations {
    sysfs: Sysfs,
    dev_root: PathBuf,
    workers: Workers,
}

impl BlockReservations {
    /// Finds device nodes under `dev_root` (`/dev`) by `sysfs`, and runs commands on `workers`.
    pub fn at(dev_root: impl Into<PathBuf>, sysfs: Sysfs, workers: Workers) -> Self {
        Self { sysfs, dev_root: dev_root.into(), workers }
    }

    /// Runs a command on the open device, on a thread of its own; one command per device at a time.
    fn run<T: Send + 'static>(
        &self,
        dev: DevT,
        command: Command,
        deadline: Duration,
        work: impl FnOnce(&Device) -> Result<T, ReservationError> + Send + 'static,
    ) -> Pending<'_, Result<T, ReservationError>> {
        let (sysfs, dev_root) = (self.sysfs.clone(), self.dev_root.clone());
        let open_and_work = move || work(&Device::open(&sysfs, &dev_root, dev, command)?);
        Box::pin(async move {
            let done = self.workers.run(&format!("reservation {dev}"), deadline, open_and_work).await;
            done.unwrap_or_else(|source| Err(ReservationError::Work { command, dev, source }))
        })
    }
}

impl Reservations for BlockReservations {
    fn abilities(
        &self,
        dev: DevT,
        deadline: Duration,
    ) -> Pending<'_, Result<ReservationCapabilities, ReservationError>> {
        self.run(dev, Command::Identify, deadline, |device| {
            let mut data = vec![0_u8; IDENTIFY_BYTES];
            let nsid = device.namespace()?;
            let identify = PassthroughCommand { opcode: IDENTIFY, nsid, ..PassthroughCommand::default() };
            device.admin(identify, &mut data)?;
            Ok(ReservationCapabilities { rescap: data[RESCAP] })
        })
    }

    fn report(
        &self,
        dev: DevT,
        deadline: Duration,
    ) -> Pending<'_, Result<ReservationReport, ReservationError>> {
        self.run(dev, Command::Report, deadline, |device| {
            let mut bytes = REPORT_BYTES;
            loop {
                match ReservationReport::parse(&device.report(bytes)?) {
                    // At most once or twice: a host can register between two reports, and the size only
                    // grows.
                    Err(BadReport::Truncated { needed, .. })
                        if needed > bytes && needed <= MOST_REPORT_BYTES =>
                    {
                        bytes = needed.next_power_of_two();
                    }
                    Ok(report) => return Ok(report),
                    Err(source) => {
                        let (command, path) = (device.command, device.path.clone());
                        return Err(ReservationError::BadReport { command, path, source });
                    }
                }
            }
        })
    }

    fn change(
        &self,
        dev: DevT,
        change: Change,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        self.run(dev, change.command(), deadline, move |device| match change {
            Change::Register { old, key } => {
                let old_key = old.map_or(0, ReservationKey::get);
                device.registration(&Registration { old_key, new_key: key.get(), flags: 0, pad: 0 })
            }
            Change::Unregister(key) => {
                // Current key, then new key, which is ignored here.
                let mut keys = [0_u8; 16];
                keys[..8].copy_from_slice(&key.get().to_le_bytes());
                let unregister = PassthroughCommand {
                    opcode: RESERVATION_REGISTER,
                    nsid: device.namespace()?,
                    cdw10: UNREGISTER,
                    ..PassthroughCommand::default()
                };
                device.io(unregister, &mut keys)
            }
            Change::Reserve(key) => device.reservation(&Reservation::of(key)),
            // The kernel's names: `old_key` is sent as the current key, `new_key` as the key to preempt.
            Change::PreemptAndAbort { key, victim } => device.preempt(&Preemption {
                old_key: key.get(),
                new_key: victim.get(),
                kind: WRITE_EXCLUSIVE_ALL_REGS,
                flags: 0,
            }),
            Change::Release(key) => device.release(&Reservation::of(key)),
            Change::Clear(key) => device.clear(&Clearing { key: key.get(), flags: 0, pad: 0 }),
        })
    }
}

/// The kernel's `struct pr_reservation` (`linux/pr.h`).
#[repr(C)]
#[derive(Debug)]
struct Reservation {
    key: u64,
    kind: u32,
    flags: u32,
}

impl Reservation {
    fn of(key: ReservationKey) -> Self {
        Self { key: key.get(), kind: WRITE_EXCLUSIVE_ALL_REGS, flags: 0 }
    }
}

/// The kernel's `struct pr_registration` (`linux/pr.h`).
#[repr(C)]
#[derive(Debug)]
struct Registration {
    old_key: u64,
    new_key: u64,
    flags: u32,
    pad: u32,
}

/// The kernel's `struct pr_preempt` (`linux/pr.h`).
#[repr(C)]
#[derive(Debug)]
struct Preemption {
    old_key: u64,
    new_key: u64,
    kind: u32,
    flags: u32,
}

/// The kernel's `struct pr_clear` (`linux/pr.h`).
#[repr(C)]
#[derive(Debug)]
struct Clearing {
    key: u64,
    flags: u32,
    pad: u32,
}

/// The kernel's `struct nvme_passthru_cmd`. A timeout of 0 means the kernel's own.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct PassthroughCommand {
    opcode: u8,
    flags: u8,
    reserved: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    address: u64,
    metadata_bytes: u32,
    data_bytes: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

/// An open device, and the command that is being sent to it.
pub(super) struct Device {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) command: Command,
}

impl Device {
    fn open(sysfs: &Sysfs, dev_root: &Path, dev: DevT, command: Command) -> Result<Self, ReservationError> {
        let opened = devnode::find(sysfs, dev_root, dev)
            .and_then(|path| Ok((devnode::open(&path, dev, OpenFor::Flush)?, path)));
        let (file, path) = opened.map_err(|source| ReservationError::Node { command, dev, source })?;
        Ok(Self { file, path, command })
    }

    /// What an ioctl's answer means.
    fn answer(&self, answered: nix::Result<i32>) -> Result<(), ReservationError> {
        let (command, path) = (self.command, self.path.clone());
        match answered {
            Ok(0) => Ok(()),
            Ok(status) if is_conflict(status) => Err(ReservationError::Conflict { command, path }),
            Ok(status) if is_unknown_command(status) => Err(ReservationError::Unsupported { command, path }),
            Ok(status) => Err(ReservationError::Status { command, path, status }),
            Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOTTY) => {
                Err(ReservationError::Unsupported { command, path })
            }
            Err(errno) => Err(ReservationError::Kernel { command, path, source: io::Error::from(errno) }),
        }
    }

    fn report(&self, bytes: usize) -> Result<Vec<u8>, ReservationError> {
        let mut data = vec![0_u8; bytes];
        let dwords = u32::try_from(bytes / 4).unwrap_or(u32::MAX);
        let report = PassthroughCommand {
            opcode: RESERVATION_REPORT,
            nsid: self.namespace()?,
            // Number of dwords, counted from 0.
            cdw10: dwords.saturating_sub(1),
            cdw11: EXTENDED_DATA_STRUCTURE,
            ..PassthroughCommand::default()
        };
        self.io(report, &mut data)?;
        Ok(data)
    }
}

/// The ioctls of `linux/pr.h` and `linux/nvme_ioctl.h`, and nothing else that is unsafe.
#[allow(unsafe_code)]
mod ioctl {
    use super::{Clearing, PassthroughCommand, Preemption, Registration, Reservation};

    nix::ioctl_write_ptr!(pr_register, b'p', 200, Registration);
    nix::ioctl_write_ptr!(pr_reserve, b'p', 201, Reservation);
    nix::ioctl_write_ptr!(pr_release, b'p', 202, Reservation);
    nix::ioctl_write_ptr!(pr_preempt_abort, b'p', 204, Preemption);
    nix::ioctl_write_ptr!(pr_clear, b'p', 205, Clearing);
    nix::ioctl_none!(nvme_id, b'N', 0x40);
    nix::ioctl_readwrite!(nvme_admin_cmd, b'N', 0x41, PassthroughCommand);
    nix::ioctl_readwrite!(nvme_io_cmd, b'N', 0x43, PassthroughCommand);
}

#[allow(unsafe_code)]
impl Device {
    fn fd(&self) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(&self.file)
    }

    /// The namespace's identifier (NSID), from the kernel.
    fn namespace(&self) -> Result<u32, ReservationError> {
        // SAFETY: `fd` is open for the whole call, which takes no argument.
        let answered = unsafe { ioctl::nvme_id(self.fd()) };
        match answered.map(u32::try_from) {
            Ok(Ok(nsid @ 1..)) => Ok(nsid),
            Ok(_) => self.answer(Err(nix::errno::Errno::ENXIO)).map(|()| 0),
            Err(errno) => self.answer(Err(errno)).map(|()| 0),
        }
    }

    fn registration(&self, registration: &Registration) -> Result<(), ReservationError> {
        // SAFETY: `fd` is open for the whole call; the kernel reads one `pr_registration`, which outlives it.
        self.answer(unsafe { ioctl::pr_register(self.fd(), registration) })
    }

    fn reservation(&self, reservation: &Reservation) -> Result<(), ReservationError> {
        // SAFETY: as above, for one `pr_reservation`.
        self.answer(unsafe { ioctl::pr_reserve(self.fd(), reservation) })
    }

    fn release(&self, reservation: &Reservation) -> Result<(), ReservationError> {
        // SAFETY: as above, for one `pr_reservation`.
        self.answer(unsafe { ioctl::pr_release(self.fd(), reservation) })
    }

    fn preempt(&self, preemption: &Preemption) -> Result<(), ReservationError> {
        // SAFETY: as above, for one `pr_preempt`.
        self.answer(unsafe { ioctl::pr_preempt_abort(self.fd(), preemption) })
    }

    fn clear(&self, clearing: &Clearing) -> Result<(), ReservationError> {
        // SAFETY: as above, for one `pr_clear`.
        self.answer(unsafe { ioctl::pr_clear(self.fd(), clearing) })
    }

    fn admin(&self, mut command: PassthroughCommand, data: &mut [u8]) -> Result<(), ReservationError> {
        command.point_to(data);
        // SAFETY: `fd` is open for the whole call. The kernel reads and writes one `nvme_passthru_cmd`, and at most
        // `data_bytes` at `address`, which is exactly `data`, borrowed for the call.
        self.answer(unsafe { ioctl::nvme_admin_cmd(self.fd(), &mut command) })
    }

    pub(super) fn io(
        &self,
        mut command: PassthroughCommand,
        data: &mut [u8],
    ) -> Result<(), ReservationError> {
        command.point_to(data);
        // SAFETY: as for an admin command.
        self.answer(unsafe { ioctl::nvme_io_cmd(self.fd(), &mut command) })
    }
}

impl PassthroughCommand {
    /// A command with these fields; all others are 0.
    pub(super) fn new(opcode: u8, nsid: u32, cdw10: u32) -> Self {
        Self { opcode, nsid, cdw10, ..Self::default() }
    }

    /// Transfers from or to `data`, in whichever direction the opcode says.
    fn point_to(&mut self, data: &mut [u8]) {
        // Lossless: an address has at most 64 bits, and no buffer here has more than 64 KiB.
        self.address = data.as_mut_ptr() as usize as u64;
        self.data_bytes = u32::try_from(data.len()).unwrap_or(0);
    }
}

/// The NVMe status without "do not retry" and "more" (`status & 0x7ff` in `drivers/nvme/host`), or what
/// kernels since 6.4 make of it for the generic ioctls (`enum pr_status`, a SCSI status).
fn is_conflict(status: i32) -> bool {
    const NVME_SC_RESERVATION_CONFLICT: i32 = 0x83;
    const PR_STS_RESERVATION_CONFLICT: i32 = 0x18;
    status & 0x7ff == NVME_SC_RESERVATION_CONFLICT || status == PR_STS_RESERVATION_CONFLICT
}

fn is_unknown_command(status: i32) -> bool {
    const NVME_SC_INVALID_OPCODE: i32 = 0x01;
    status & 0x7ff == NVME_SC_INVALID_OPCODE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::Tree;

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<Reservation>(), 16);
        assert_eq!(size_of::<Registration>(), 24);
        assert_eq!(size_of::<Preemption>(), 24);
        assert_eq!(size_of::<Clearing>(), 16);
        assert_eq!(size_of::<PassthroughCommand>(), 72);
        assert_eq!(std::mem::offset_of!(PassthroughCommand, address), 24);
        assert_eq!(std::mem::offset_of!(PassthroughCommand, cdw10), 40);
        assert_eq!(std::mem::offset_of!(PassthroughCommand, timeout_ms), 64);
    }

    fn device() -> Device {
        Device {
            file: tempfile::tempfile().expect("a file"),
            path: "/dev/nvme0n1".into(),
            command: Command::Register,
        }
    }

    #[test]
    fn every_kernels_conflict_is_understood_and_names_device_and_command() {
        for status in [0x83, 0x4083, 0x18] {
            let error = device().answer(Ok(status)).expect_err("a conflict");
            assert!(error.is_conflict(), "{status:#x}");
            assert_eq!(error.to_string(), "reservation register on /dev/nvme0n1: reservation conflict");
        }
        assert!(device().answer(Ok(0x4001)).expect_err("unknown").is_unsupported());
        let other = device().answer(Ok(0x4002)).expect_err("invalid field");
        assert_eq!(other.to_string(), "reservation register on /dev/nvme0n1: status 0x4002");
        assert!(device().answer(Ok(0)).is_ok());
    }

    #[test]
    fn what_is_no_nvme_device_takes_no_command() {
        let device = device();
        assert!(device.namespace().expect_err("a file").is_unsupported());
        let key = ReservationKey::new(1).expect("not zero");
        assert!(device.reservation(&Reservation::of(key)).expect_err("a file").is_unsupported());
    }

    #[tokio::test]
    async fn a_device_that_is_not_there_is_named() {
        let tree = Tree::new();
        let reservations = BlockReservations::at("/nowhere", tree.sysfs(), Workers::new());
        let dev = DevT { major: 259, minor: 9 };
        let error = reservations.report(dev, Duration::from_secs(20)).await.expect_err("no device");
        assert_eq!(error.to_string(), "reservation report on block device 259:9 failed");
    }
}
