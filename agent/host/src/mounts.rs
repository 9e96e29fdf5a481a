//! Bind mounts of block device nodes: how a published block volume appears at its target path.
//!
//! Comes in: a device node with its number, and a target path. Goes out: what is at the target now.
//!
//! Always holds:
//! - Nothing is removed but one empty regular file or one empty directory, by `unlink` or `rmdir`: never
//!   recursively, never while something is mounted there.
//! - Success means that the target was looked at afterwards.
//! - A target with another device on it is never taken over: it is named in the error.
//! - Everything runs on a thread of its own with a deadline, one per target at a time.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags};

use crate::devnode::{self, DevNodeError};
use crate::mountinfo::{self, MountEntry, UnexpectedLine};
use crate::name::DevT;
use crate::work::{WorkError, Workers};

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
    /// Something else, in words: mounted or not, it is not ours to touch.
    Other(String),
}

/// Why an operation on a target failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The target could not be looked at.
    #[error("cannot look at {path}")]
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
    #[error("{call} {path}")]
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
    #[error("{target} holds {found} after it was to hold {expected}")]
    NotAsDone {
        /// The target.
        target: PathBuf,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// Not in time, or no thread.
    #[error("cannot work on {target}")]
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
    mountinfo: PathBuf,
    workers: Workers,
}

impl Mounts {
    /// Uses `/proc/self/mountinfo`.
    pub fn new(workers: Workers) -> Self {
        Self { mountinfo: PathBuf::from("/proc/self/mountinfo"), workers }
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
        let path = || self.mountinfo.clone();
        let bytes =
            std::fs::read(&self.mountinfo).map_err(|source| MountError::Look { path: path(), source })?;
        mountinfo::parse(&bytes).map_err(|source| MountError::MountInfo { path: path(), source })
    }

    /// Binds a device node on a target file, which is made if it is missing (its directory must exist). With
    /// `read_only` the mount says so; that keeps nobody from writing to the device, whose node is no file of the file
    /// system that it lies in. Repeating it with the same device is a success that changes nothing.
    ///
    /// # Errors
    /// [`MountError`]; `Occupied` when another device is there, also one whose number has been reused.
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

    /// Whether the mount at a target says that it is read-only; nothing mounted there says no.
    ///
    /// # Errors
    /// [`MountError`] when it could not be looked at.
    pub async fn is_read_only(&self, target: &Path, deadline: Duration) -> Result<bool, MountError> {
        self.work(target, deadline, |this, target| {
            let target = resolve_parent(target)?;
            // Of several on one target the last is on top.
            let top = this.list()?.into_iter().rfind(|entry| entry.mount_point == target);
            Ok(top.is_some_and(|entry| entry.read_only))
        })
        .await
    }

    /// Takes off whatever device node is mounted on a target, and removes the file. A target that is missing
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
        self.work(target, deadline, |this, target| match this.look(target)? {
            TargetState::Missing => Ok(()),
            TargetState::Directory => call("rmdir", target, std::fs::remove_dir(target)),
            found => Err(occupied(target, &found, "an empty directory")),
        })
        .await
    }

    fn is_mounted(&self, target: &Path) -> Result<bool, MountError> {
        Ok(self.list()?.iter().any(|entry| entry.mount_point == target))
    }

    fn look(&self, target: &Path) -> Result<TargetState, MountError> {
        let target = &resolve_parent(target)?;
        let metadata = match std::fs::symlink_metadata(target) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(TargetState::Missing),
            Err(source) => return Err(MountError::Look { path: target.clone(), source }),
        };
        let kind = metadata.file_type();
        Ok(match self.is_mounted(target)? {
            true if kind.is_block_device() => TargetState::Device(DevT::from_raw(metadata.rdev())),
            true => TargetState::Other(format!("a mount with {}", devnode::describe(&metadata))),
            false if kind.is_dir() => TargetState::Directory,
            false if kind.is_file() && metadata.len() == 0 => TargetState::EmptyFile,
            false if kind.is_symlink() => TargetState::Other("a symbolic link".to_owned()),
            false => TargetState::Other(format!("{} (not a mount)", devnode::describe(&metadata))),
        })
    }

    fn bind(&self, node: &Path, dev: DevT, target: &Path, read_only: bool) -> Result<(), MountError> {
        devnode::verify(node, dev).map_err(|source| MountError::Node { source })?;
        match self.look(target)? {
            TargetState::Device(found) if found == dev => return Ok(()),
            TargetState::EmptyFile => {}
            TargetState::Missing => {
                // Exclusive: never through a link that somebody put there meanwhile.
                let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target);
                call("create", target, made.map(drop))?;
            }
            found => return Err(occupied(target, &found, &format!("block device {dev}"))),
        }
        let mounted = nix::mount::mount(Some(node), target, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        call("mount --bind", target, mounted.map_err(io::Error::from))?;
        if read_only {
            // What a bind mount says of itself is set by mounting it again. A node needs neither of the other two.
            let flags = MsFlags::MS_BIND
                | MsFlags::MS_REMOUNT
                | MsFlags::MS_RDONLY
                | MsFlags::MS_NOSUID
                | MsFlags::MS_NOEXEC;
            let mounted = nix::mount::mount(None::<&str>, target, None::<&str>, flags, None::<&str>);
            if let Err(error) = mounted {
                let _ = nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW);
                return call("mount -o remount,bind,ro", target, Err(error.into()));
            }
        }
        match self.look(target)? {
            TargetState::Device(found) if found == dev => Ok(()),
            found => {
                // The node was replaced between the check and the mount: take off what was put on.
                let _ = nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW);
                let (found, expected) = (found.to_string(), format!("block device {dev}"));
                Err(MountError::NotAsDone { target: target.to_owned(), found, expected })
            }
        }
    }

    fn release(&self, target: &Path, expected: Option<DevT>) -> Result<(), MountError> {
        for _ in 0..MAX_STACK {
            match self.look(target)? {
                TargetState::Missing => return Ok(()),
                TargetState::EmptyFile => return call("unlink", target, std::fs::remove_file(target)),
                TargetState::Device(found) if expected.is_none_or(|dev| dev == found) => {
                    let done = nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW);
                    call("umount", target, done.map_err(io::Error::from))?;
                }
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

/// The mount table names real paths: links in the directories above the target are followed first.
fn resolve_parent(target: &Path) -> Result<PathBuf, MountError> {
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        let source = io::Error::from(io::ErrorKind::InvalidInput);
        return Err(MountError::Look { path: target.to_owned(), source });
    };
    match parent.canonicalize() {
        Ok(parent) => Ok(parent.join(name)),
        // Then the target is missing as well, which looking at it will say.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(target.to_owned()),
        Err(source) => Err(MountError::Look { path: parent.to_owned(), source }),
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
            Self::Other(what) => f.write_str(what),
        }
    }
}

#[cfg(test)]
mod tests;
