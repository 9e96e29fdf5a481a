//! `use-guest`: uses a device in ways that no shell can, says `ready`, and holds on until it is killed.
//!
//! `map PATH` maps a page of a device shared, writes to it and closes the descriptor. `fuse FOLDER` becomes an ordinary
//! user, mounts FUSE without a daemon on the folder in namespaces of its own, and holds a descriptor that only names it.
//! `claim PATH` opens a device exclusively.

use std::error::Error;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::prctl::set_dumpable;
use nix::unistd::{Gid, Uid, pause, setgid, setuid};

const PAGE: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
/// `nobody`.
const USER: u32 = 65_534;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [what, path] = &words[..] else {
        return Err("use-guest map PATH | use-guest claim PATH | use-guest fuse FOLDER".into());
    };
    let path = PathBuf::from(path);
    let _held = match what.to_str() {
        Some("map") => map(&path).map(|()| Vec::new())?,
        Some("fuse") => fuse(&path)?,
        Some("claim") => vec![OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&path)?],
        _ => return Err(format!("{} is neither map nor claim nor fuse", what.display()).into()),
    };
    let mut out = io::stdout();
    writeln!(out, "ready")?;
    out.flush()?;
    loop {
        pause();
    }
}

#[allow(unsafe_code)]
fn map(device: &Path) -> Result<(), Box<dyn Error>> {
    let file = OpenOptions::new().read(true).write(true).open(device)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: the kernel chooses the place, so nothing of this program lies there; the page is written to below only.
    let page = unsafe { mmap(None, PAGE, access, MapFlags::MAP_SHARED, &file, 0) }?;
    drop(file);
    // SAFETY: the page was mapped for writing and is never unmapped.
    unsafe { page.cast::<u8>().write_volatile(1) };
    Ok(())
}

fn fuse(folder: &Path) -> Result<Vec<File>, Box<dyn Error>> {
    setgid(Gid::from_raw(USER))?;
    setuid(Uid::from_raw(USER))?;
    // Whoever has changed its user may not write its own maps before that.
    set_dumpable(true)?;
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {USER} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {USER} 1"))?;
    let daemon = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", daemon.as_raw_fd());
    mount(Some("nobody"), folder, Some("fuse"), MsFlags::empty(), Some(options.as_str()))?;
    let named = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(folder)?;
    Ok(vec![daemon, named])
}
