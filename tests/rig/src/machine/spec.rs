//! What a machine is to be: said before it boots, checked when it does.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::initramfs::Initramfs;
use crate::kernel::KernelImage;
use crate::qemu::Accelerator;

/// A boot takes 3 s on an idle host; several at once on a busy one take their time.
pub(super) const BOOT: Duration = Duration::from_secs(90);
/// Emulated kernels oops now and then in early boot: such a machine is started again.
pub(super) const BOOT_ATTEMPTS: u32 = 3;

/// What a machine is to be.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    pub(crate) name: String,
    pub(crate) number: u8,
    pub(crate) kernel: KernelImage,
    pub(crate) initramfs: Initramfs,
    pub(crate) cpus: u8,
    pub(crate) memory_mib: u32,
    pub(crate) disk_mib: Option<u32>,
    pub(crate) image: Option<PathBuf>,
    pub(crate) machine_id: Option<String>,
    pub(crate) kernel_arguments: Vec<String>,
    pub(crate) accelerator: Option<Accelerator>,
    pub(crate) boot_limit: Duration,
    pub(crate) boot_attempts: u32,
}

impl MachineSpec {
    /// A machine with one CPU and 512 MiB. `number`, 1 to 253 and unique in a run, is the last byte of all its
    /// addresses.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        number: u8,
        kernel: &KernelImage,
        initramfs: &Initramfs,
    ) -> MachineSpec {
        MachineSpec {
            name: name.into(),
            number,
            kernel: kernel.clone(),
            initramfs: initramfs.clone(),
            cpus: 1,
            memory_mib: 512,
            disk_mib: None,
            image: None,
            machine_id: None,
            kernel_arguments: Vec::new(),
            accelerator: None,
            boot_limit: BOOT,
            boot_attempts: BOOT_ATTEMPTS,
        }
    }

    /// Number of CPUs.
    #[must_use]
    pub fn cpus(mut self, count: u8) -> MachineSpec {
        self.cpus = count;
        self
    }

    /// Memory in MiB. Everything outside `/data` lives in it.
    #[must_use]
    pub fn memory_mib(mut self, size: u32) -> MachineSpec {
        self.memory_mib = size;
        self
    }

    /// A disk of this size in MiB, ext4, mounted at `/data`: what is synced there survives a reset.
    #[must_use]
    pub fn disk_mib(mut self, size: u32) -> MachineSpec {
        self.disk_mib = Some(size);
        self
    }

    /// A file of this host with an ext4 file system, mounted at `/image`: larger programs than a machine's memory has
    /// room for. It is never written to, and machines may share one.
    #[must_use]
    pub fn image(mut self, file: impl Into<PathBuf>) -> MachineSpec {
        self.image = Some(file.into());
        self
    }

    /// Content of `/etc/machine-id`, 32 hexadecimal digits.
    #[must_use]
    pub fn machine_id(mut self, id: impl Into<String>) -> MachineSpec {
        self.machine_id = Some(id.into());
        self
    }

    /// Adds a word to the kernel's command line, such as `nvme_core.multipath=N`.
    #[must_use]
    pub fn kernel_argument(mut self, word: impl AsRef<str>) -> MachineSpec {
        self.kernel_arguments.push(word.as_ref().to_owned());
        self
    }

    /// Runs it on this accelerator instead of [`Accelerator::choose`]'s.
    #[must_use]
    pub fn accelerator(mut self, accelerator: Accelerator) -> MachineSpec {
        self.accelerator = Some(accelerator);
        self
    }

    /// Gives it one attempt to come up, within `limit`, instead of three of 90 s each.
    #[must_use]
    pub fn boot_once_within(mut self, limit: Duration) -> MachineSpec {
        (self.boot_limit, self.boot_attempts) = (limit, 1);
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let error = |what: String| Error::Boot { machine: self.name.clone(), what, console: String::new() };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if self.name.is_empty() || self.name.len() > 32 || !self.name.chars().all(plain) {
            return Err(error("a name is 1 to 32 letters, digits and dashes".to_owned()));
        }
        if !(1..=253).contains(&self.number) {
            return Err(error(format!("its number is {}, not 1 to 253", self.number)));
        }
        if self.initramfs.release() != self.kernel.release() {
            let (theirs, ours) = (self.initramfs.release(), self.kernel.release());
            return Err(error(format!("its initramfs is for {theirs}, its kernel is {ours}")));
        }
        Ok(())
    }
}
