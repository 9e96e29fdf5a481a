//! Bind mounts of block device nodes: how a published block volume appears at its target path.
//!
//! Comes in: a device node with its number, and a target path. Goes out: what is at the target now.
//!
//! Always holds:
//! - It removes only one empty regular file, one device node or one empty directory, by `unlink` or `rmdir`:
//!   never recursively, and never while something is mounted there.
//! - It touches nothing outside the kubelet's directory, and follows no link below it (`mounts/target.rs`).
//! - Success means that the target was read afterwards, also from where the kubelet sees it.
//! - A target with another device on it is never taken over: the error names that device.
//! - Everything runs on a thread of its own with a deadline, one per target at a time.

mod target;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::MsFlags;

use crate::devnode::{self, DevNodeError};
use crate::mountinfo::{self, MountEntry, UnexpectedLine};
use crate::name::DevT;
use crate::work::{WorkError, Workers};
use target::Spot;

/// How many mounts, stacked on one target, one call unmounts at most.
const MAX_STACK: usize = 8;

/// What is at a target path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetState {
    /// No file of that name exists.
    Missing,
    /// An empty regular file with nothing mounted on it: left by an earlier call, or made for it.
    EmptyFile,
    /// A directory with nothing mounted on it.
    Directory,
    /// A block device node is mounted there.
    Device(DevT),
    /// A block device node with nothing mounted on it: left by a crash.
    Node(DevT),
    /// Something else, as text for a person: mounted or not, it is not ours to touch.
    Other(String),
}

/// Why an operation on a target failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The target, or what is at it, could not be read.
    #[error("cannot inspect {path}")]
    Look {
        /// The path that was read.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The list of mounts has a line of an unknown form.
    #[error("cannot read {path}")]
    MountInfo {
        /// The mountinfo file that was read.
        path: PathBuf,
        /// The line that was not understood.
        #[source]
        source: UnexpectedLine,
    },
    /// The target is not below the directory where this agent publishes.
    #[error(
        "{target} is not below {below}, where this agent publishes volumes; set --kubelet-dir to the kubelet's \
         --root-dir"
    )]
    Outside {
        /// The path that the kubelet asked for.
        target: PathBuf,
        /// The directory that it has to be below (`--kubelet-dir`).
        below: PathBuf,
    },
    /// The device is mounted in the agent's mount namespace, but the kubelet does not see it there.
    #[error(
        "{target} is mounted in the agent's mount namespace alone, and the node sees {found} there; mount \
         {below} into the agent with mountPropagation: Bidirectional (a shared mount)"
    )]
    Unseen {
        /// The path that the kubelet asked for.
        target: PathBuf,
        /// What process 1 sees there, as text for a person.
        found: String,
        /// The directory that has to be shared.
        below: PathBuf,
    },
    /// The target has another device on it, or something that is not ours.
    #[error("{target} holds {found}, expected {expected}")]
    Occupied {
        /// The path that the kubelet asked for.
        target: PathBuf,
        /// What is there, as text for a person.
        found: String,
        /// What should be there, as text for a person.
        expected: String,
    },
    /// The device's node is missing, or is not the device that was meant.
    #[error("cannot publish the device")]
    Node {
        /// What is wrong with it.
        #[source]
        source: DevNodeError,
    },
    /// A system call on the target failed.
    #[error("{call} {path} failed")]
    Call {
        /// The call, such as `mount --bind`.
        call: &'static str,
        /// The target or the node that it acted on.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The call succeeded, but the target shows something else afterwards.
    #[error("{target} holds {found} afterwards, expected {expected}")]
    NotAsDone {
        /// The path that the kubelet asked for.
        target: PathBuf,
        /// What is there, as text for a person.
        found: String,
        /// What should be there, as text for a person.
        expected: String,
    },
    /// The deadline passed, earlier work on the same target still runs, or no thread could be started.
    #[error("cannot finish the work on {target}")]
    Work {
        /// The path that the kubelet asked for.
        target: PathBuf,
        /// Why the work gave no result.
        #[source]
        source: WorkError,
    },
}

/// Binds and releases devices on targets, in our own mount namespace. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Mounts {
    below: PathBuf,
    init: PathBuf,
    workers: Workers,
}

impl Mounts {
    /// Works below this directory only, and checks its mounts as process 1 sees them.
    pub fn new(workers: Workers, below: impl Into<PathBuf>) -> Self {
        Self { below: below.into(), init: PathBuf::from("/proc/1"), workers }
    }

    /// The directory that targets have to be below.
    pub fn below(&self) -> &Path {
        &self.below
    }

    async fn work<T: Send + 'static>(
        &self,
        target: &Path,
        deadline: Duration,
        work: impl FnOnce(&Self, &Path) -> Result<T, MountError> + Send + 'static,
    ) -> Result<T, MountError> {
        let (this, owned) = (self.clone(), target.to_owned());
        let key = format!("mount {}", target.display());
        match self.workers.run(&key, deadline, move || work(&this, &owned)).await {
            Ok(result) => result,
            Err(source) => Err(MountError::Work { target: target.to_owned(), source }),
        }
    }

    /// Reads what is at a target.
    ///
    /// # Errors
    /// [`MountError`] when that could not be read.
    pub async fn state(&self, target: &Path, deadline: Duration) -> Result<TargetState, MountError> {
        self.work(target, deadline, |this, target| this.look(target)).await
    }

    /// Every mount of our own namespace.
    ///
    /// # Errors
    /// [`MountError`] when the list could not be read.
    pub fn list(&self) -> Result<Vec<MountEntry>, MountError> {
        // This thread's own, in whatever namespace the others are.
        let path = || PathBuf::from("/proc/thread-self/mountinfo");
        let bytes = std::fs::read(path()).map_err(|source| MountError::Look { path: path(), source })?;
        mountinfo::parse(&bytes).map_err(|source| MountError::MountInfo { path: path(), source })
    }

    /// Binds a device node on a target file, and makes the file if it is missing (its directory must exist).
    /// With `read_only` the mount says that it is read-only. That keeps nobody from writing to the device:
    /// its node is no file of the file system that it is in. Repeating it with the same device succeeds and
    /// changes nothing.
    ///
    /// # Errors
    /// [`MountError`]: `Occupied` when another device is there, even one whose number has been reused;
    /// `Unseen` when the machine does not see the mount, which is then unmounted again.
    pub async fn bind_device(
        &self,
        node: &Path,
        dev: DevT,
        target: &Path,
        read_only: bool,
        deadline: Duration,
    ) -> Result<(), MountError> {
        let node = node.to_owned();
        self.work(target, deadline, move |this, target| this.bind(&node, dev, target, read_only)).await
    }

    /// Whether the mount at a target says that it is read-only; false where there is none.
    ///
    /// # Errors
    /// [`MountError`] when that could not be read.
    pub async fn is_read_only(&self, target: &Path, deadline: Duration) -> Result<bool, MountError> {
        self.work(target, deadline, |this, target| {
            let Some(found) = this.spot(target)?.map(|spot| spot.look()).transpose()?.flatten() else {
                return Ok(false);
            };
            Ok(this.list()?.into_iter().any(|entry| entry.id == found.mount && entry.read_only))
        })
        .await
    }

    /// Unmounts whatever device node is mounted on a target, and removes the file or node. A missing target
    /// is a success. With `expected`, a device of another number is left alone.
    ///
    /// # Errors
    /// [`MountError`]: `Occupied` for anything but a device node or an empty file.
    pub async fn release_device(
        &self,
        target: &Path,
        expected: Option<DevT>,
        deadline: Duration,
    ) -> Result<(), MountError> {
        self.work(target, deadline, move |this, target| this.release(target, expected)).await
    }

    /// Removes an empty directory with nothing mounted on it. A missing one is a success.
    ///
    /// # Errors
    /// [`MountError`]: `Occupied` when something is mounted or it is no directory; `Call` when it is not
    /// empty.
    pub async fn remove_directory(&self, target: &Path, deadline: Duration) -> Result<(), MountError> {
        self.work(target, deadline, |this, target| {
            let Some(spot) = this.spot(target)? else { return Ok(()) };
            match spot.state()? {
                TargetState::Missing => Ok(()),
                TargetState::Directory => call("rmdir", target, spot.rmdir()),
                found => Err(occupied(target, &found, "an empty directory")),
            }
        })
        .await
    }

    fn spot(&self, target: &Path) -> Result<Option<Spot>, MountError> {
        Spot::open(target, &self.below)
    }

    fn look(&self, target: &Path) -> Result<TargetState, MountError> {
        self.spot(target)?.map_or(Ok(TargetState::Missing), |spot| spot.state())
    }

    fn bind(&self, node: &Path, dev: DevT, target: &Path, read_only: bool) -> Result<(), MountError> {
        devnode::verify(node, dev).map_err(|source| MountError::Node { source })?;
        let Some(spot) = self.spot(target)? else {
            return call("open the directory of", target, Err(io::ErrorKind::NotFound.into()));
        };
        match spot.state()? {
            TargetState::Device(found) if found == dev => {
                return target::is_seen_by(&self.init, target, &self.below, dev);
            }
            TargetState::EmptyFile => {}
            TargetState::Missing => call("create", target, spot.create())?,
            found => return Err(occupied(target, &found, &format!("block device {dev}"))),
        }
        self.mount(node, &spot, target)?;
        let finished = self.finish(&spot, dev, target, read_only);
        if finished.is_err() {
            // A mount that was not reported must not stay.
            let _ = spot.unmount();
        }
        finished
    }

    fn mount(&self, node: &Path, spot: &Spot, target: &Path) -> Result<(), MountError> {
        let file = target::node(node).map_err(|source| MountError::Look { path: node.to_owned(), source })?;
        let Some(place) = spot.look()? else {
            return call("mount --bind", target, Err(io::ErrorKind::NotFound.into()));
        };
        let (source, onto) = (target::by_descriptor(&file), place.path());
        let mounted = nix::mount::mount(Some(&source), &onto, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        call("mount --bind", target, mounted.map_err(io::Error::from))
    }

    /// Checks what has to hold of a mount before it is reported.
    fn finish(&self, spot: &Spot, dev: DevT, target: &Path, read_only: bool) -> Result<(), MountError> {
        if read_only && let Some(mounted) = spot.look()? {
            // A bind mount gets its own flags only by a second mount. A node needs neither of the other two.
            let flags = MsFlags::MS_BIND
                | MsFlags::MS_REMOUNT
                | MsFlags::MS_RDONLY
                | MsFlags::MS_NOSUID
                | MsFlags::MS_NOEXEC;
            let done = nix::mount::mount(None::<&str>, &mounted.path(), None::<&str>, flags, None::<&str>);
            call("mount -o remount,bind,ro", target, done.map_err(io::Error::from))?;
        }
        match spot.state()? {
            TargetState::Device(found) if found == dev => {
                target::is_seen_by(&self.init, target, &self.below, dev)
            }
            // The node was replaced between the check and the mount.
            found => {
                let (found, expected) = (found.to_string(), format!("block device {dev}"));
                Err(MountError::NotAsDone { target: target.to_owned(), found, expected })
            }
        }
    }

    fn release(&self, target: &Path, expected: Option<DevT>) -> Result<(), MountError> {
        let Some(spot) = self.spot(target)? else { return Ok(()) };
        let ours = |found: DevT| expected.is_none_or(|dev| dev == found);
        for _ in 0..MAX_STACK {
            match spot.state()? {
                TargetState::Missing => return Ok(()),
                TargetState::EmptyFile => return call("unlink", target, spot.unlink()),
                TargetState::Node(found) if ours(found) => return call("unlink", target, spot.unlink()),
                TargetState::Device(found) if ours(found) => call("umount", target, spot.unmount())?,
                found => {
                    let expected =
                        expected.map_or_else(|| "a device node".to_owned(), |d| format!("block device {d}"));
                    return Err(occupied(target, &found, &expected));
                }
            }
        }
        let (found, expected) = (format!("more than {MAX_STACK} mounts"), "nothing".to_owned());
        Err(MountError::NotAsDone { target: target.to_owned(), found, expected })
    }
}

fn call(call: &'static str, path: &Path, result: io::Result<()>) -> Result<(), MountError> {
    result.map_err(|source| MountError::Call { call, path: path.to_owned(), source })
}

fn occupied(target: &Path, found: &TargetState, expected: &str) -> MountError {
    let (found, expected) = (found.to_string(), expected.to_owned());
    MountError::Occupied { target: target.to_owned(), found, expected }
}

impl std::fmt::Display for TargetState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("nothing"),
            Self::EmptyFile => f.write_str("an empty file"),
            Self::Directory => f.write_str("a directory"),
            Self::Device(dev) => write!(f, "block device {dev}"),
            Self::Node(dev) => write!(f, "block device {dev} (not a mount)"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

#[cfg(test)]
mod tests;
