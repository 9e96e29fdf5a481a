//! Block devices among the files that processes have open or mapped.
//!
//! Comes in: a process's directory in `/proc`, and the mounts of the host. Goes out: device numbers.
//!
//! Always holds: it never waits for a file on a server or behind a FUSE daemon. `fdinfo` and `mountinfo` show
//! which kind of file system a descriptor is on without asking anybody. A descriptor that only names a file
//! (`O_PATH`) does not use it. Where such a server is silent, its files do not count as block devices: device
//! nodes are in devtmpfs or in a container's tmpfs, and the kernel opens none on a mount with `nodev`, which
//! every mount of an ordinary user has.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::mounts::MountTable;
use super::scans::{Key, Looking};
use super::{Blind, Places, has_gone};
use crate::name::DevT;

/// `O_PATH` on every architecture that Cleat runs on, as `fdinfo` shows it.
const O_PATH: u64 = 0o1000_0000;

/// How often each block device was found.
pub(super) type Uses = BTreeMap<DevT, usize>;

/// The descriptors of a process that are one block device.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) descriptors: usize,
    /// The path by which the first of them was opened, as the process names it. A process may have as many names for a
    /// device as it likes; one is kept.
    pub(super) name: PathBuf,
}

/// Mapped files found so far, by file system and inode: every process maps the same libraries.
pub(super) type Mapped = BTreeMap<(DevT, u64), Option<DevT>>;

/// Block devices behind the descriptors in `dir/fd`. `None` where the process has none that could be listed:
/// it has ended, it is the kernel's, or its first thread has ended before the others.
pub(super) fn open(
    places: &Places,
    looking: &Looking,
    mounts: &MountTable,
    dir: &Path,
    blind: &mut Vec<Blind>,
) -> Option<BTreeMap<DevT, Opened>> {
    let fds = dir.join("fd");
    let entries = match std::fs::read_dir(&fds) {
        Ok(entries) => entries,
        Err(error) if has_gone(&error) => return None,
        Err(error) => {
            blind.push(Blind::at(&fds, error));
            return Some(BTreeMap::new());
        }
    };
    let (mut opened, mut any) = (BTreeMap::new(), false);
    for entry in entries {
        any = true;
        let device = entry
            .map_err(|error| Blind::at(&fds, error))
            .and_then(|entry| device_behind(places, looking, mounts, dir, &entry.path()));
        match device {
            Ok(Some((dev, name))) => {
                opened.entry(dev).or_insert(Opened { descriptors: 0, name }).descriptors += 1;
            }
            Ok(None) => {}
            Err(why) => {
                blind.push(why);
                break;
            }
        }
    }
    any.then_some(opened)
}

fn device_behind(
    places: &Places,
    looking: &Looking,
    mounts: &MountTable,
    dir: &Path,
    fd: &Path,
) -> Result<Option<(DevT, PathBuf)>, Blind> {
    let gone = |error: io::Error| if has_gone(&error) { Ok(None) } else { Err(Blind::at(fd, error)) };
    let target = match std::fs::read_link(fd) {
        Ok(target) => target,
        Err(error) => return gone(error),
    };
    // Sockets, pipes and the like (`socket:[1]`) have no path and are no block devices.
    if !target.has_root() {
        return Ok(None);
    }
    let info = dir.join("fdinfo").join(fd.file_name().unwrap_or_default());
    let info = match std::fs::read(&info) {
        Ok(text) => text,
        Err(error) if has_gone(&error) => return Ok(None),
        Err(error) => return Err(Blind::at(&info, error)),
    };
    if field(&info, b"flags:", 8).is_some_and(|flags| flags & O_PATH != 0) {
        return Ok(None);
    }
    let mount = field(&info, b"mnt_id:", 10).unwrap_or_default();
    match looking.call(&Key::Mount(mount), || (places.rdev)(fd)) {
        Ok(Ok(dev)) => Ok(dev.map(|dev| (dev, target))),
        // A server may answer anything about its files, but that says nothing of a device of this host.
        Ok(Err(_)) | Err(_) if mounts.is_remote(mount) => Ok(None),
        Ok(Err(error)) => gone(error),
        Err(stuck) => {
            Err(Blind { what: format!("{} ({})", fd.display(), Key::Mount(mount)), why: stuck.to_string() })
        }
    }
}

/// A number in `fdinfo`.
fn field(info: &[u8], name: &[u8], radix: u32) -> Option<u64> {
    let value = info.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name))?;
    u64::from_str_radix(std::str::from_utf8(value).ok()?.trim(), radix).ok()
}

/// Block devices that a process has mapped into its memory, with or without a descriptor.
pub(super) fn mapped(
    places: &Places,
    looking: &Looking,
    mounts: &MountTable,
    (dir, pid): (&Path, u32),
    known: &mut Mapped,
    blind: &mut Vec<Blind>,
) -> Uses {
    let path = dir.join("maps");
    // The kernel waits here for whoever is changing this process's memory.
    let text = match looking.call(&Key::Maps(pid), || std::fs::read(&path)) {
        Ok(Ok(text)) => text,
        Ok(Err(error)) if has_gone(&error) => return Uses::new(),
        Ok(Err(error)) => {
            blind.push(Blind::at(&path, error));
            return Uses::new();
        }
        Err(stuck) => {
            blind.push(Blind { what: path.display().to_string(), why: stuck.to_string() });
            return Uses::new();
        }
    };
    let mut uses = Uses::new();
    for map in text.split(|byte| *byte == b'\n').filter_map(Map::parse) {
        let file = (map.dev, map.inode);
        if let Some(device) = known.get(&file) {
            if let Some(device) = device {
                *uses.entry(*device).or_default() += 1;
            }
            continue;
        }
        let link = dir.join("map_files").join(map.range);
        let device = match looking.call(&Key::FileSystem(map.dev), || (places.rdev)(&link)) {
            Ok(Ok(device)) => device,
            Ok(Err(_)) | Err(_) if mounts.is_remote_file_system(map.dev) => None,
            // Unmapped meanwhile, or its process has ended.
            Ok(Err(error)) if has_gone(&error) => continue,
            Ok(Err(error)) => {
                blind.push(Blind::at(&link, error));
                continue;
            }
            Err(stuck) => {
                blind.push(Blind { what: link.display().to_string(), why: stuck.to_string() });
                continue;
            }
        };
        known.insert(file, device);
        if let Some(device) = device {
            *uses.entry(device).or_default() += 1;
        }
    }
    uses
}

/// One mapped file in `/proc/PID/maps`.
#[derive(Debug, PartialEq, Eq)]
struct Map {
    /// Its name in `map_files`.
    range: String,
    /// Number of the file system that the file lies in, which is not the number of a device that the file may be.
    dev: DevT,
    inode: u64,
}

impl Map {
    /// Reads a line such as `7f0a-7f0b rw-s 00000000 00:06 323   /dev/nvme0n1`; `None` for a map without a
    /// file.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
        let mut text = || std::str::from_utf8(fields.next()?).ok();
        let (start, end) = text()?.split_once('-')?;
        let (_permissions, _offset) = (text()?, text()?);
        let (major, minor) = text()?.split_once(':')?;
        let inode = text()?.parse().ok().filter(|inode| *inode != 0)?;
        let hex = |text: &str| u32::from_str_radix(text, 16).ok();
        let dev = DevT { major: hex(major)?, minor: hex(minor)? };
        // The names in that directory have no leading zeros; zero itself is one digit.
        let bare = |text: &str| Some(format!("{:x}", u64::from_str_radix(text, 16).ok()?));
        fields.next()?.starts_with(b"/").then_some(())?;
        Some(Self { range: format!("{}-{}", bare(start)?, bare(end)?), dev, inode })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_is_read_from_its_line_and_other_memory_is_not() {
        let line = b"00400000-7f2d1a800000 rw-s 00010000 fd:06 323        /dev/nvme0n1 (deleted)";
        let dev = DevT { major: 0xfd, minor: 6 };
        assert_eq!(Map::parse(line), Some(Map { range: "400000-7f2d1a800000".to_owned(), dev, inode: 323 }));
        for other in [
            &b"7ffc-7ffd rw-p 00000000 00:00 0          [stack]"[..],
            b"7ffc-7ffd rw-s 00000000 00:0e 1041       anon_inode:[perf_event]",
            b"7ffc-7ffd rw-p 00000000 00:00 0",
            b"garbage",
            b"",
        ] {
            assert_eq!(Map::parse(other), None, "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn fields_of_fdinfo_are_read_in_their_own_base() {
        let info = b"pos:\t0\nflags:\t012100000\nmnt_id:\t29\nino:\t7\n";
        assert_eq!(field(info, b"mnt_id:", 10), Some(29));
        assert_eq!(field(info, b"flags:", 8), Some(0o12_100_000));
        assert_ne!(0o12_100_000 & O_PATH, 0);
        assert_eq!(field(info, b"lock:", 10), None);
    }
}
