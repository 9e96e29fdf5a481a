//! A target path, opened once and worked on through what was opened.
//!
//! Comes in: a path below the kubelet's directory. Goes out: the directory that it is in, held open, and what
//! has its name there.
//!
//! Always holds: nothing outside the kubelet's directory is reached. The operator names that directory
//! (`--kubelet-dir`), and the path to it may have links. Below it no link is followed, on the way or at the
//! end, even when somebody swaps a directory for a link at that very moment (`openat2` with
//! `RESOLVE_BENEATH`).

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;

use super::{MountError, TargetState};
use crate::devnode;
use crate::name::DevT;

/// Opens nothing for reading or writing: such a descriptor only says which file it is.
const BARE: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The part of a target below a directory. Checks once more that it has no `..`.
///
/// # Errors
/// [`MountError::Outside`].
pub(super) fn inside<'a>(target: &'a Path, below: &Path) -> Result<&'a Path, MountError> {
    let rest = target.strip_prefix(below).ok().filter(|rest| {
        rest.file_name().is_some() && rest.components().all(|part| matches!(part, Component::Normal(_)))
    });
    rest.ok_or_else(|| MountError::Outside { target: target.to_owned(), below: below.to_owned() })
}

/// A name in a directory that is held open.
#[derive(Debug)]
pub(super) struct Spot {
    target: PathBuf,
    parent: OwnedFd,
    name: OsString,
}

/// What is at a spot.
#[derive(Debug)]
pub(super) struct Found {
    file: File,
    /// Identifier of the mount that it is on.
    pub(super) mount: u64,
}

impl Spot {
    /// Opens the directory of a target; `None` where there is none.
    pub(super) fn open(target: &Path, below: &Path) -> Result<Option<Self>, MountError> {
        let rest = inside(target, below)?;
        let look = |source: io::Error| MountError::Look { path: target.to_owned(), source };
        let base = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC)
            .open(below);
        let base = match base {
            Ok(base) => OwnedFd::from(base),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(look(error)),
        };
        let directory = rest.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = match directory.map(|directory| beneath(&base, directory, OFlag::O_DIRECTORY)) {
            None => base,
            Some(Ok(parent)) => parent,
            Some(Err(Errno::ENOENT)) => return Ok(None),
            Some(Err(errno)) => return Err(look(errno.into())),
        };
        let name = rest.file_name().unwrap_or(OsStr::new("")).to_owned();
        Ok(Some(Self { target: target.to_owned(), parent, name }))
    }

    /// What is there now; `None` for nothing.
    pub(super) fn look(&self) -> Result<Option<Found>, MountError> {
        match nix::fcntl::openat(&self.parent, self.name.as_os_str(), BARE, Mode::empty()) {
            Ok(file) => {
                let file = File::from(file);
                let mount = mount_of(&file).map_err(|source| self.cannot_look(source))?;
                Ok(Some(Found { file, mount }))
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(self.cannot_look(errno.into())),
        }
    }

    /// The same as a [`TargetState`].
    pub(super) fn state(&self) -> Result<TargetState, MountError> {
        let Some(found) = self.look()? else { return Ok(TargetState::Missing) };
        let metadata = found.file.metadata().map_err(|source| self.cannot_look(source))?;
        let around = mount_of(&self.parent).map_err(|source| self.cannot_look(source))?;
        let kind = metadata.file_type();
        Ok(match found.mount != around {
            true if kind.is_block_device() => TargetState::Device(DevT::from_raw(metadata.rdev())),
            true => TargetState::Other(format!("a mount with {}", devnode::describe(&metadata))),
            false if kind.is_dir() => TargetState::Directory,
            false if kind.is_file() && metadata.len() == 0 => TargetState::EmptyFile,
            false if kind.is_symlink() => TargetState::Other("a symbolic link".to_owned()),
            false if kind.is_block_device() => TargetState::Node(DevT::from_raw(metadata.rdev())),
            false => TargetState::Other(format!("{} (not a mount)", devnode::describe(&metadata))),
        })
    }

    fn cannot_look(&self, source: io::Error) -> MountError {
        MountError::Look { path: self.target.clone(), source }
    }

    /// Makes the empty file, exclusively: never through a link that somebody has put there meanwhile.
    pub(super) fn create(&self) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        nix::fcntl::openat(&self.parent, self.name.as_os_str(), flags, mode)?;
        Ok(())
    }

    /// Removes a file or node. Fails with EBUSY on what is mounted.
    pub(super) fn unlink(&self) -> io::Result<()> {
        Ok(nix::unistd::unlinkat(&self.parent, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir)?)
    }

    /// Removes an empty directory.
    pub(super) fn rmdir(&self) -> io::Result<()> {
        Ok(nix::unistd::unlinkat(&self.parent, self.name.as_os_str(), UnlinkatFlags::RemoveDir)?)
    }

    /// Unmounts the topmost mount, by name in the open directory: an open descriptor on the mount would keep
    /// it busy, and a name on which something is mounted can be neither renamed nor replaced.
    pub(super) fn unmount(&self) -> io::Result<()> {
        let path = by_descriptor(&self.parent).join(&self.name);
        Ok(nix::mount::umount2(&path, nix::mount::MntFlags::UMOUNT_NOFOLLOW)?)
    }
}

impl Found {
    /// A path that leads to this very file.
    pub(super) fn path(&self) -> PathBuf {
        by_descriptor(&self.file)
    }
}

/// Opens a block device's node, to be bound.
pub(super) fn node(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path)
}

/// A path that leads to the file that a descriptor has open.
pub(super) fn by_descriptor(file: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn beneath(base: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    nix::fcntl::openat2(base, path, OpenHow::new().flags(BARE | flags).resolve(resolve))
}

/// The mount that a descriptor's file is on, by its number in `mountinfo`.
fn mount_of(file: &impl AsRawFd) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::Error::other("the kernel does not say on which mount it is"))
}

/// Checks the target as process 1 of the machine sees it, which has the kubelet's mounts. Does nothing where
/// this process has the same ones.
pub(super) fn is_seen_by(init: &Path, target: &Path, below: &Path, dev: DevT) -> Result<(), MountError> {
    let look = |path: PathBuf| move |source: io::Error| MountError::Look { path, source };
    let space = |process: &Path| {
        let path = process.join("ns/mnt");
        std::fs::read_link(&path).map_err(look(path))
    };
    if space(Path::new("/proc/thread-self"))? == space(init)? {
        return Ok(());
    }
    let root = init.join("root");
    let top = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(&root)
        .map_err(look(root))?;
    let rest = inside(target, below)?;
    let in_root = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(in_root);
    let found = nix::fcntl::openat2(&top, below, how)
        .and_then(|base| beneath(&base, rest, OFlag::empty()))
        .map_err(io::Error::from)
        .and_then(|file| File::from(file).metadata());
    let found = match found {
        Ok(metadata) if metadata.file_type().is_block_device() && DevT::from_raw(metadata.rdev()) == dev => {
            return Ok(());
        }
        Ok(metadata) => devnode::describe(&metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "nothing".to_owned(),
        Err(source) => return Err(MountError::Look { path: init.join("root").join(rest), source }),
    };
    Err(MountError::Unseen { target: target.to_owned(), found, below: below.to_owned() })
}
