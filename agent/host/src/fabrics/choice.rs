//! Chooses the way to the kernel: its own interface, nvme-cli, or whichever can be used.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use super::nvme_cli::CliError;
use super::{Fabrics, KernelFabrics, NvmeCli};
use crate::sysfs::Sysfs;

/// What an operator chose: `kernel`, `nvme-cli` or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The kernel's own interface, and nothing else.
    Kernel,
    /// The program nvme-cli, and nothing else: for a host that does not let the agent open the kernel's
    /// interface.
    NvmeCli,
    /// The kernel's own interface where it can be opened, else nvme-cli.
    #[default]
    Auto,
}

/// A text that names no choice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of kernel, nvme-cli, auto")]
pub struct UnknownChoice(String);

impl FromStr for Choice {
    type Err = UnknownChoice;

    fn from_str(text: &str) -> Result<Self, UnknownChoice> {
        match text {
            "kernel" => Ok(Self::Kernel),
            "nvme-cli" => Ok(Self::NvmeCli),
            "auto" => Ok(Self::Auto),
            other => Err(UnknownChoice(other.to_owned())),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::NvmeCli => "nvme-cli",
            Self::Auto => "auto",
        })
    }
}

/// Why no way to the kernel can be used.
#[derive(Debug, thiserror::Error)]
pub enum UnavailableFabrics {
    /// The kernel's interface cannot be opened.
    #[error("cannot open {path}; load the module with `modprobe nvme-tcp`")]
    Kernel {
        /// The device that could not be opened, usually `/dev/nvme-fabrics`.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// nvme-cli cannot be run.
    #[error("cannot use nvme-cli")]
    NvmeCli {
        /// How the attempt to run it failed.
        #[source]
        source: CliError,
    },
    /// `auto` was chosen, and neither of the two can be used.
    #[error("cannot use {path} ({kernel}), nor nvme-cli; load the module with `modprobe nvme-tcp`")]
    Neither {
        /// The device that could not be opened, usually `/dev/nvme-fabrics`.
        path: PathBuf,
        /// Why the device cannot be opened.
        kernel: io::Error,
        /// Why nvme-cli cannot be run.
        #[source]
        source: CliError,
    },
}

/// Opens the way that was chosen. `device` is usually `/dev/nvme-fabrics`, and `program` is `nvme`.
///
/// # Errors
/// [`UnavailableFabrics`] when it cannot be used.
pub async fn open(
    choice: Choice,
    device: &Path,
    program: &Path,
    sysfs: &Sysfs,
) -> Result<Arc<dyn Fabrics>, UnavailableFabrics> {
    let kernel = || -> Result<Arc<dyn Fabrics>, io::Error> {
        KernelFabrics::probe(device)?;
        Ok(Arc::new(KernelFabrics::new(device, sysfs.clone())))
    };
    let path = || device.to_owned();
    match choice {
        Choice::Kernel => kernel().map_err(|source| UnavailableFabrics::Kernel { path: path(), source }),
        Choice::NvmeCli => {
            NvmeCli::probe(program).await.map_err(|source| UnavailableFabrics::NvmeCli { source })?;
            Ok(Arc::new(NvmeCli::new(program, sysfs.clone())))
        }
        Choice::Auto => match kernel() {
            Ok(fabrics) => Ok(fabrics),
            Err(kernel) => match NvmeCli::probe(program).await {
                Ok(_) => Ok(Arc::new(NvmeCli::new(program, sysfs.clone()))),
                Err(source) => Err(UnavailableFabrics::Neither { path: path(), kernel, source }),
            },
        },
    }
}
