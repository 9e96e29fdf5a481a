//! Bind mounts of block device nodes: how a published block volume appears at its target path.
//!
//! Comes in: a device node with its number, and a target path. Goes out: what is at the target now.
//!
//! Always holds:
//! - Nothing is removed but one empty regular file, one device node or one empty directory, by `unlink` or `rmdir`:
//!   never recursively, never while something is mounted there.
//! - Nothing outside the kubelet's directory is touched, and no link is followed below it (`mounts/target.rs`).
//! - Success means that the target was looked at afterwards, also from where the kubelet sees it.
//! - A target with another device on it is never taken over: it is named in the error.
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

/// How many mounts stacked on one target are taken off in one call.
const MAX_STACK: usize = 8;

/// What is at a target path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetState {
    /// Nothing.
    Missing,
    /// An empty regular file, nothing mounted on it: a leftover of an earlier call, or made for it.
    EmptyFile,
    /// A directory, nothing mounted on it.
    Directory,
    /// A block device node is mounted there.
    Device(DevT),
    /// A block device node with nothing mounted on it: left by a crash.
    Node(DevT),
    /// Something else, in words: mounted or not, it is not ours to touch.
    Other(String),
}

/// Why an operation on a target failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The target could not be looked at.
    #[error("cannot inspect {path}")]
    Look {
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The list of mounts could not be read.
    #[error("cannot read {path}")]
    MountInfo {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: UnexpectedLine,
    },
    /// The target is not where targets are.
    #[error(
        "{target} is not below {below}, where this agent publishes volumes; set --kubelet-dir to the kubelet's \
         --root-dir"
    )]
    Outside {
        /// The target.
        target: PathBuf,
        /// Where it should be.
        below: PathBuf,
    },
    /// It is mounted here, and the kubelet does not see it.
    #[error(
        "{target} is mounted in the agent's mount namespace alone, and the node sees {found} there; mount \
         {below} into the agent with mountPropagation: Bidirectional (a shared mount)"
    )]
    Unseen {
        /// The target.
        target: PathBuf,
        /// What process 1 sees there.
        found: String,
        /// What has to be shared.
        below: PathBuf,
    },
    /// There is another device on the target, or something that is not ours.
    #[error("{target} holds {found}, expected {expected}")]
    Occupied {
        /// The target.
        target: PathBuf,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// The device node is not what it should be.
    #[error("cannot publish the device")]
    Node {
        /// The cause.
        #[source]
        source: DevNodeError,
    },
    /// A system call failed.
    #[error("{call} {path} failed")]
    Call {
        /// The call, such as `mount --bind`.
        call: &'static str,
        /// What it acted on.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It was done, and looking afterwards shows something else.
    #[error("{target} holds {found} afterwards, expected {expected}")]
    NotAsDone {
        /// The target.
        target: PathBuf,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// Not in time, or no thread.
    #[error("cannot finish the work on {target}")]
    Work {
        /// The target.
        target: PathBuf,
        /// The cause.
        #[source]
        source: WorkError,
    },
}

/// Works on targets in our own mount namespace.
#[derive(Debug, Clone)]
pub struct Mounts {
    below: PathBuf,
    init: PathBuf,
    workers: Workers,
}

impl Mounts {
    /// Works below this directory only, and looks at what it made as process 1 sees it.
    pub fn new(workers: Workers, below: impl Into<PathBuf>) -> Self {
        Self { below: below.into(), init: PathBuf::from("/proc/1"), workers }
    }

    /// The directory that targets have to be in.
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

    /// What is at a target.
    ///
    /// # Errors
    /// [`MountError`] when it could not be looked at.
    pub async fn state(&self, target: &Path, deadline: Duration) -> Result<TargetState, MountError> {
        self.work(target, deadline, |this, target| this.look(target)).await
    }

    /// Every mount of our own namespace.
    ///
    /// # Errors
    /// [`MountError`] when the list could not be read.
    pub fn list(&self) -> Result<Vec<MountEntry>, MountError> {
        // Of this very thread, whatever namespace the others are in.
        let path = || PathBuf::from("/proc/thread-self/mountinfo");
        let bytes = std::fs::read(path()).map_err(|source| MountError::Look { path: path(), source })?;
        mountinfo::parse(&bytes).map_err(|source| MountError::MountInfo { path: path(), source })
    }

    /// Binds a device node on a target file, which is made if it is missing (its directory must exist). With
    /// `read_only` the mount says so; that keeps nobody from writing to the device, whose node is no file of the file
    /// system that it lies in. Repeating it with the same device is a success that changes nothing.
    ///
    /// # Errors
    /// [`MountError`]; `Occupied` when another device is there, also one whose number has been reused; `Unseen` when
    /// the machine does not see what was mounted, which is then taken off again.
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

    /// Whether the mount at a target says that it is read-only; nothing there says no.
    ///
    /// # Errors
    /// [`MountError`] when it could not be looked at.
    pub async fn is_read_only(&self, target: &Path, deadline: Duration) -> Result<bool, MountError> {
        self.work(target, deadline, |this, target| {
            let Some(found) = this.spot(target)?.map(|spot| spot.look()).transpose()?.flatten() else {
                return Ok(false);
            };
            Ok(this.list()?.into_iter().any(|entry| entry.id == found.mount && entry.read_only))
        })
        .await
    }

    /// Takes off whatever device node is mounted on a target, and removes the file or node. A target that is missing
    /// is a success. With `expected`, a device of another number is left alone.
    ///
    /// # Errors
    /// [`MountError`]; `Occupied` for anything that is not a device node or an empty file.
    pub async fn release_device(
        &self,
        target: &Path,
        expected: Option<DevT>,
        deadline: Duration,
    ) -> Result<(), MountError> {
        self.work(target, deadline, move |this, target| this.release(target, expected)).await
    }

    /// Removes an empty directory with nothing mounted on it; missing is a success.
    ///
    /// # Errors
    /// [`MountError`]; `Occupied` when it is mounted or no directory; `Call` when it is not empty.
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
            // Nothing is left that nobody was told of.
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

    /// What has to hold of a mount before it is reported.
    fn finish(&self, spot: &Spot, dev: DevT, target: &Path, read_only: bool) -> Result<(), MountError> {
        if read_only && let Some(mounted) = spot.look()? {
            // What a bind mount says of itself is set by mounting it again. A node needs neither of the other two.
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
