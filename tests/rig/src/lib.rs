//! A rig of virtual machines: real kernels, real NVMe over TCP, no cluster, nothing left behind.
//!
//! A run lives in namespaces of its own: runs side by side do not see each other, nothing of them is seen from the
//! host, and all of it dies with the process that began it. Being root is not needed where `/dev/net/tun` is open
//! to users. Kernels and tools come from `hack/setup`; the programs under test from cargo.
//!
//! ```no_run
//! use std::time::Duration;
//! use cleat_rig::{Command, Initramfs, KernelImage, MachineSpec, Namespace, Network, program};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // First thing in main, while there is only one thread: begins the run, and goes on inside it.
//!     let run = Namespace::enter("example")?;
//!
//!     let kernel = KernelImage::find("6.1")?;
//!     let image = Initramfs::for_kernel(&kernel).program(program("cleat-agent")?).build()?;
//!     let machines = run.boot_all(&[
//!         MachineSpec::new("rds", 1, &kernel, &image).memory_mib(1024),
//!         MachineSpec::new("node-a", 11, &kernel, &image).disk_mib(256),
//!     ])?;
//!     let [rds, node] = &machines[..] else { unreachable!("two were asked for") };
//!
//!     // Commands: `sh` and `run` must succeed, `exec` gives the exit code, `spawn` is followed live.
//!     assert_eq!(node.sh("uname -r")?, kernel.release());
//!     let ping = Command::new("ping").args(["-c", "1", "10.77.1.1"]).deadline(Duration::from_secs(5));
//!     assert!(node.exec(&ping)?.success());
//!     let mut writer = node.spawn(&Command::shell("while echo tick; do sleep 1; done"))?;
//!     assert_eq!(writer.next_line(Duration::from_secs(5))?.as_deref(), Some("tick"));
//!
//!     // A daemon, and its Unix socket reachable from here: connect tonic to `csi.path()`.
//!     let agent = node.daemon(&Command::new("cleat-agent").arg("--help"), "/run/agent.log")?;
//!     let csi = node.forward_unix("/run/csi.sock")?;
//!     agent.kill(9)?;
//!
//!     // Trouble. The rig reaches the machine over a network of its own, whatever is cut.
//!     node.cut_path(Network::Storage1)?;
//!     node.restore_path(Network::Storage1)?;
//!     node.cut_all()?;
//!     node.restore_all()?;
//!     rds.freeze()?;
//!     rds.resume()?;
//!     node.reset()?;
//!     Ok(())
//! }
//! ```
//!
//! From async code call it by `tokio::task::spawn_blocking`; start tokio only after [`Namespace::enter`] (so no
//! `#[tokio::main]`). Addresses: the host side is `.254`, machine N is `.N` in each [`Network`].

mod client;
mod command;
mod cpio;
mod error;
mod forward;
mod host;
mod initramfs;
mod keeper;
mod kernel;
mod machine;
mod modules;
mod namespace;
mod net;
mod qemu;
mod qmp;
mod run_dir;
pub mod wait;
pub mod wire;

pub use client::{Input, Process};
pub use command::{Command, Output};
pub use error::{Error, Result};
pub use forward::Forward;
pub use host::{cache_folder, program};
pub use initramfs::{Builder, Initramfs};
pub use kernel::KernelImage;
pub use machine::{Daemon, Machine, MachineSpec, SlowLink};
pub use namespace::{Attachment, Namespace};
pub use net::Network;
pub use qemu::Accelerator;
pub use run_dir::{MachineRecord, Record, RunDir};
pub use wire::Exit;
