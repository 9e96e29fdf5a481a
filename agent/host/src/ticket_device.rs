//! The device that a ticket's command reads: a loop device over the volume's head.
//!
//! Comes in: a ticket's id, the volume's subsystem NQN and identity. Goes out: a [`TicketDevice`], which is there until it
//! is closed.
//!
//! Always holds: it is the volume's head, found by NQN, then by namespace identity, then by device number on the open
//! descriptor, and looked for again once that is open, for then the number can be nobody else's. Nothing can be written
//! through it: the head is opened for reading, and the kernel holds the loop device read-only. It reads past the page cache,
//! so that it reads what the target has. It goes with its last user, whatever becomes of us. Whoever looks at the loop
//! devices of the host sees by its backing file, `/run/cleat/tickets/ID/device`, which ticket it is for; that node itself is
//! removed as soon as it was opened.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::statvfs::{FsFlags, statvfs};
use tokio::time::Instant;

use crate::devnode::{self, DevNodeError, OpenFor};
use crate::loop_device;
use crate::name::{DevT, NamespaceIdentity, SubsystemNqn};
use crate::openers::{CutError, Openers};
use crate::sysfs::{Namespace, SubsystemView, Sysfs, SysfsError};
use crate::work::{self, WorkError, Workers};

/// Where tickets have their devices, each in a folder of its id.
const TICKETS: &str = "/run/cleat/tickets";
/// The longest id of a ticket.
const ID_BYTES: usize = 128;
/// How often another free loop device is taken, where somebody else was faster.
const TRIES: usize = 16;

/// The ticket whose device a loop device is, by its backing file.
pub(crate) fn ticket_of(backing_file: &str) -> Option<String> {
    let path = backing_file.strip_suffix(" (deleted)").unwrap_or(backing_file);
    let id = path.strip_prefix(TICKETS)?.strip_prefix('/')?.strip_suffix("/device")?;
    is_id(id).then(|| id.to_owned())
}

/// A ticket's id, as the controller takes them.
fn is_id(text: &str) -> bool {
    let end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let (bytes, inner) = (text.as_bytes(), |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte));
    bytes.len() <= ID_BYTES && end(bytes.first()) && end(bytes.last()) && bytes.iter().all(inner)
}

/// Why a ticket has no device.
#[derive(Debug, thiserror::Error)]
pub enum TicketDeviceError {
    /// The ticket's id cannot be the name of a folder.
    #[error("cannot use {0:?} as the id of a ticket")]
    Id(String),
    /// Sysfs could not be read.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// The node does not show the volume.
    #[error("cannot find the volume's device: {0}")]
    NoHead(String),
    /// The volume's device has changed while it was opened.
    #[error(
        "cannot use {name}: it was block device {opened} when it was opened, and the volume is {now} now"
    )]
    Changed {
        /// Kernel name of the volume's device.
        name: String,
        /// What was opened.
        opened: DevT,
        /// What the volume is now.
        now: DevT,
    },
    /// The volume's device could not be opened.
    #[error("cannot open the volume's device")]
    Head(#[from] DevNodeError),
    /// A file or folder could not be made or opened.
    #[error("cannot {what} {}", path.display())]
    Call {
        /// What was being done.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The kernel has made something else of the loop device.
    #[error("cannot use {}: it is not read-only, past the page cache and gone with its last user (flags {flags:#x})", path.display())]
    NotAsAsked {
        /// The loop device.
        path: PathBuf,
        /// What the kernel says of it (`LO_FLAGS_…`).
        flags: u32,
    },
    /// The deadline has passed, or no thread could be started.
    #[error(transparent)]
    Work(#[from] WorkError),
}

fn failed<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> TicketDeviceError {
    let path = path.to_owned();
    move |source| TicketDeviceError::Call { what, path, source: source.into() }
}

/// The device of a ticket, while it is there.
#[derive(Debug)]
pub struct TicketDevice {
    ticket: String,
    path: PathBuf,
    head: DevT,
    /// Keeps the loop device; `None` once it was let go of.
    open: Option<File>,
    /// Removed with this.
    _folder: Folder,
}

impl TicketDevice {
    /// Makes the device of a ticket over the head of the volume that has this NQN and identity, at most for `deadline`.
    ///
    /// # Errors
    /// [`TicketDeviceError`]; then nothing is left of it.
    pub async fn make(
        ticket: &str,
        subsystem: &SubsystemNqn,
        identity: NamespaceIdentity,
        deadline: Duration,
    ) -> Result<Self, TicketDeviceError> {
        let (ticket, subsystem) = (ticket.to_owned(), subsystem.clone());
        let made = move || make(ticket, &subsystem, &identity);
        work::once("make a ticket's device", deadline, made).await?
    }

    /// Its path, such as `/dev/loop3`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// It, open, until it is let go of: whoever inherits this keeps it.
    pub fn open(&self) -> Option<BorrowedFd<'_>> {
        self.open.as_ref().map(AsFd::as_fd)
    }

    /// Lets go of it: from now on it is there only for whoever has it open. Whoever cuts the ticket off ends those who have.
    pub fn let_go(&mut self) {
        self.open = None;
    }

    /// Gives it up, ends whoever has it open still, and waits until it is gone, at most for `within`. Returns who was ended.
    ///
    /// # Errors
    /// [`CutError`] where it is not gone then, or nobody can see whether it is.
    pub async fn close(self, within: Duration) -> Result<Vec<String>, CutError> {
        let Self { ticket, head, open, _folder, .. } = self;
        drop(open);
        let openers = Openers::new(Sysfs::default(), Workers::new());
        openers.cut_tickets(head, Some(&ticket), Instant::now() + within).await
    }
}

fn make(
    ticket: String,
    subsystem: &SubsystemNqn,
    identity: &NamespaceIdentity,
) -> Result<TicketDevice, TicketDeviceError> {
    if !is_id(&ticket) {
        return Err(TicketDeviceError::Id(ticket));
    }
    let sysfs = Sysfs::default();
    let found = head(&sysfs.view_blocking(subsystem)?, identity)?;
    let place = Path::new(TICKETS);
    let folder = Folder::make(place, &ticket)?;
    let backing = folder.open(found.dev)?;
    let now = head(&sysfs.view_blocking(subsystem)?, identity)?;
    if now.dev != found.dev {
        return Err(TicketDeviceError::Changed { name: now.name, opened: found.dev, now: now.dev });
    }
    let (path, open) = looped(&backing, found.logical_block_bytes.unwrap_or_default())?;
    Ok(TicketDevice { ticket, path, head: found.dev, open: Some(open), _folder: folder })
}

/// The one device of a volume.
fn head(view: &SubsystemView, identity: &NamespaceIdentity) -> Result<Namespace, TicketDeviceError> {
    let no = |why: String| Err(TicketDeviceError::NoHead(why));
    if let Some(unread) = view.unreadable.first() {
        return no(format!("cannot read {}: {}", unread.path.display(), unread.error));
    }
    let (meant, others): (Vec<&Namespace>, Vec<&Namespace>) =
        view.namespaces.iter().partition(|one| identity.contradiction(&one.identity).is_none());
    match (&meant[..], &others[..]) {
        ([head], _) => Ok((*head).clone()),
        ([], []) => no(format!("this node shows no namespace of {}", view.nqn)),
        ([], [other, ..]) => {
            let why = identity.contradiction(&other.identity).unwrap_or_default();
            no(format!("{} is not the volume's: {why}", other.name))
        }
        (several, _) => {
            let names: Vec<&str> = several.iter().map(|one| one.name.as_str()).collect();
            no(format!("{} are one namespace each, and no multipath head joins them", names.join(", ")))
        }
    }
}

/// The folder of a ticket, for as long as its device is there.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn make(tickets: &Path, ticket: &str) -> Result<Self, TicketDeviceError> {
        let private = |recursive| {
            let mut folders = DirBuilder::new();
            folders.mode(0o700).recursive(recursive);
            folders
        };
        private(true).create(tickets).map_err(failed("make the folder", tickets))?;
        allow_devices(tickets)?;
        let folder = tickets.join(ticket);
        match private(false).create(&folder) {
            // Left by one that was killed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(failed("make the folder", &folder))?,
        }
        Ok(Self(folder))
    }

    fn node(&self) -> PathBuf {
        self.0.join("device")
    }

    /// Opens the device of that number under the ticket's name, and removes the name.
    fn open(&self, dev: DevT) -> Result<File, TicketDeviceError> {
        let node = self.node();
        remove(&node)?;
        let number = makedev(dev.major.into(), dev.minor.into());
        mknod(&node, SFlag::S_IFBLK, Mode::S_IRUSR, number).map_err(failed("make the device node", &node))?;
        let opened = devnode::open(&node, dev, OpenFor::DirectRead);
        remove(&node)?;
        Ok(opened?)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left is an empty folder, in memory.
        let _ = remove(&self.node());
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn remove(file: &Path) -> Result<(), TicketDeviceError> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(failed("remove", file)),
    }
}

/// Sees to it that device nodes can be opened in a folder: `/run` is mounted so that they cannot on most hosts. What is mounted
/// there stays, for the next ticket.
fn allow_devices(tickets: &Path) -> Result<(), TicketDeviceError> {
    let folder = File::open(tickets).map_err(failed("open", tickets))?;
    // Two at once would mount one over the other's folder.
    let _turn =
        Flock::lock(folder, FlockArg::LockExclusive).map_err(|(_, error)| failed("lock", tickets)(error))?;
    let flags = statvfs(tickets).map_err(failed("look at", tickets))?.flags();
    if !flags.contains(FsFlags::ST_NODEV) {
        return Ok(());
    }
    let (kind, options) = (Some("tmpfs"), Some("mode=0700,size=1m"));
    mount(Some("cleat-tickets"), tickets, kind, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, options)
        .map_err(failed("mount a file system for device nodes at", tickets))
}

/// A loop device over an open head.
fn looped(backing: &File, block_bytes: u32) -> Result<(PathBuf, File), TicketDeviceError> {
    let control = Path::new("/dev/loop-control");
    let opened = OpenOptions::new().read(true).write(true).open(control);
    let opened = opened.map_err(failed("open (is the kernel module `loop` there?)", control))?;
    for left in (0..TRIES).rev() {
        let number = loop_device::free(&opened).map_err(failed("get a loop device from", control))?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).custom_flags(libc::O_CLOEXEC).open(&path);
        let device = device.map_err(failed("open", &path))?;
        match loop_device::configure(&device, backing, block_bytes) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && left > 0 => continue,
            done => done.map_err(failed("set up", &path))?,
        }
        let flags = loop_device::status(&device).map_err(failed("look at", &path))?.lo_flags;
        if flags & loop_device::READ_ONLY_DIRECT != loop_device::READ_ONLY_DIRECT {
            return Err(TicketDeviceError::NotAsAsked { path, flags });
        }
        return Ok((path, device));
    }
    let busy = io::Error::from_raw_os_error(libc::EBUSY);
    Err(failed("get a loop device from", control)(busy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::shown;
    use crate::name::NamespaceUuid;
    use crate::sysfs::{NamespaceKind, NativeMultipath, Unreadable};

    const OURS: &str = "01234567-89ab-cdef-0123-456789abcdef";
    const OTHER: &str = "11111111-89ab-cdef-0123-456789abcdef";

    fn identity() -> NamespaceIdentity {
        NamespaceIdentity { uuid: NamespaceUuid::parse(OURS).ok(), nguid: None }
    }

    fn view(uuids: &[&str]) -> SubsystemView {
        let head = |(minor, uuid): (u32, &&str)| {
            shown::namespace(minor, uuid, 4096, NamespaceKind::Head { paths: Vec::new() })
        };
        SubsystemView {
            nqn: SubsystemNqn::parse("nqn.2026-01.test:v").expect("valid"),
            multipath: NativeMultipath::On,
            controllers: Vec::new(),
            namespaces: (1..).zip(uuids).map(head).collect(),
            unreadable: Vec::new(),
        }
    }

    fn no_head(view: &SubsystemView) -> String {
        head(view, &identity()).expect_err("no device").to_string()
    }

    #[test]
    fn a_tickets_backing_file_is_known_by_its_place_and_nothing_else_is() {
        for (file, id) in [
            ("/run/cleat/tickets/run.1/device", Some("run.1")),
            ("/run/cleat/tickets/run.1/device (deleted)", Some("run.1")),
            ("/home/x/run/cleat/tickets/run.1/device", None),
            ("/run/cleat/tickets/run.1/x/device", None),
            ("/run/cleat/tickets/../device", None),
            ("/run/cleat/tickets//device", None),
            ("/run/cleat/tickets/run.1", None),
            ("/dev/nvme0n1", None),
        ] {
            assert_eq!(ticket_of(file).as_deref(), id, "{file}");
        }
        assert!(is_id(&"a".repeat(ID_BYTES)) && !is_id(&"a".repeat(ID_BYTES + 1)));
    }

    #[test]
    fn the_device_is_found_by_its_identity_and_not_by_its_place() {
        assert_eq!(head(&view(&[OTHER, OURS]), &identity()).expect("found").dev.minor, 2);
        let none = no_head(&view(&[]));
        assert!(none.ends_with("shows no namespace of nqn.2026-01.test:v"), "{none}");
        let other = no_head(&view(&[OTHER]));
        assert!(other.contains("nvme1n1 is not the volume's: expected UUID"), "{other}");
        let several = no_head(&view(&[OURS, OURS]));
        assert!(several.contains("nvme1n1, nvme2n1"), "{several}");
        let unknown = head(&view(&[OURS]), &NamespaceIdentity { uuid: None, nguid: None });
        assert!(unknown.is_err(), "nothing is known to find it by");
    }

    #[test]
    fn where_something_could_not_be_read_no_device_is_taken() {
        let unread = Unreadable { path: "/sys/x".into(), error: "Input/output error".into() };
        let view = SubsystemView { unreadable: vec![unread], ..view(&[OURS]) };
        assert!(no_head(&view).contains("/sys/x: Input/output error"));
    }

    #[test]
    fn a_folder_goes_with_its_device_and_one_left_behind_is_taken_over() {
        let tickets = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(tickets.path().join("run.1")).expect("left behind");
        std::fs::write(tickets.path().join("run.1/device"), "").expect("left behind");
        // Where device nodes cannot be opened, one has to be root to change that.
        if let Ok(folder) = Folder::make(tickets.path(), "run.1") {
            assert!(folder.0.is_dir());
            drop(folder);
            assert!(!tickets.path().join("run.1").exists());
        }
    }
}
