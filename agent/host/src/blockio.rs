//! What a block device itself answers: its size, its read-only flag, direct reads of its first and last
//! block. Also flushes it.
//!
//! Comes in: a device number (never a name). Goes out: [`IoFacts`], in which a failure is a fact too.
//!
//! Always holds: each call runs on a thread of its own with a deadline, one per device at a time. Reads
//! bypass the page cache. The number is compared on the open descriptor. Nothing is ever written.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::devnode::{self, DevNodeError, OpenFor};
use crate::name::DevT;
use crate::openers::LoopUse;
use crate::sysfs::{Holder, Sysfs};
use crate::work::{WorkError, Workers};

/// Alignment of the buffer for direct reads: a page, at least the logical block size of any device here.
const ALIGNMENT: usize = 4096;

/// What one [`probe`] of a device showed, failures included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IoFacts {
    /// The device node under `/dev`, and whether it is the device with the number that was asked for.
    pub node: NodeFact,
    /// Size in bytes by `BLKGETSIZE64`; `None` where the device could not be asked.
    pub size_bytes: Option<u64>,
    /// Read-only by `BLKROGET`; `None` where the device could not be asked.
    pub read_only: Option<bool>,
    /// Direct read of the first block.
    pub first_read: ReadFact,
    /// Direct read of the last block.
    pub last_read: ReadFact,
    /// Loop devices over it; [`probe`] leaves this empty.
    pub loops: Vec<LoopUse>,
    /// Why the search for loop devices failed; `None` where it did not.
    pub loops_unknown: Option<String>,
    /// Holders of the device in use, where that is a dm-multipath map; [`probe`] leaves this empty.
    pub map_holders: Vec<Holder>,
}

impl IoFacts {
    /// Facts of a device that was not asked, with what is known of its node.
    pub fn none(node: NodeFact) -> Self {
        Self {
            node,
            size_bytes: None,
            read_only: None,
            first_read: ReadFact::NotTried,
            last_read: ReadFact::NotTried,
            loops: Vec::new(),
            loops_unknown: None,
            map_holders: Vec::new(),
        }
    }
}

/// What is at the device node's path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeFact {
    /// The node is there, and the device has that number.
    Verified {
        /// Where it is, below `/dev`.
        path: PathBuf,
        /// The number that was asked for and found.
        dev: DevT,
    },
    /// There is no node, or the kernel has no such device.
    Missing {
        /// Where the node should be, or where sysfs would show the device.
        looked_for: PathBuf,
    },
    /// Another file or another device is at that path.
    Wrong {
        /// Where it is, below `/dev`.
        path: PathBuf,
        /// What it is, as text for a person.
        found: String,
    },
    /// The node could not be read or opened.
    Unreadable {
        /// The path, and what the operating system said.
        reason: String,
    },
}

/// How a direct read (`O_DIRECT`) of one logical block ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadFact {
    /// The whole block was read.
    Done {
        /// From the call until the block was there.
        took: Duration,
    },
    /// The device or the kernel refused, or the block size is of no use.
    Failed {
        /// What the operating system said, with the offset in bytes.
        error: String,
    },
    /// The read has not come back; it goes on without anybody waiting for it.
    Overdue {
        /// How long it had been waited for.
        after: Duration,
    },
    /// It was not tried, because something before it failed.
    NotTried,
}

impl fmt::Display for ReadFact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done { took } => write!(f, "done in {} ms", took.as_millis()),
            Self::Failed { error } => write!(f, "failed: {error}"),
            Self::Overdue { after } => write!(f, "no answer within {:.1} s", after.as_secs_f64()),
            Self::NotTried => f.write_str("not tried"),
        }
    }
}

/// Why a flush did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// The device has no usable node.
    #[error("cannot flush block device {dev}")]
    Node {
        /// The device number that was to be flushed.
        dev: DevT,
        /// What is wrong with its node.
        #[source]
        source: DevNodeError,
    },
    /// The kernel reported an error for the flush.
    #[error("cannot flush {path}")]
    Flush {
        /// The path of the node that was flushed.
        path: PathBuf,
        /// What `fsync` returned.
        #[source]
        source: io::Error,
    },
    /// The deadline passed, an earlier flush still runs, or no thread could be started.
    #[error("cannot flush block device {dev}")]
    Work {
        /// The device number that was to be flushed.
        dev: DevT,
        /// Why the work gave no result.
        #[source]
        source: WorkError,
    },
}

/// Asks a device for its size and read-only flag, and reads its first and last block; all of it within
/// `deadline`.
///
/// Leaves loop devices and holders of the map empty: [`crate::readiness::Checker`] adds them.
pub async fn probe(
    workers: &Workers,
    sysfs: &Sysfs,
    dev_root: &Path,
    dev: DevT,
    deadline: Duration,
) -> IoFacts {
    let (owned_sysfs, owned_root) = (sysfs.clone(), dev_root.to_owned());
    let work = move || probe_blocking(&owned_sysfs, &owned_root, dev);
    match workers.run(&format!("read {dev}"), deadline, work).await {
        Ok(facts) => facts,
        Err(error) => overdue(sysfs, dev_root, dev, &error),
    }
}

/// A read that does not come back says nothing about the node, so the node is checked again without opening
/// it.
fn overdue(sysfs: &Sysfs, dev_root: &Path, dev: DevT, error: &WorkError) -> IoFacts {
    let node = match devnode::find(sysfs, dev_root, dev) {
        Ok(path) => NodeFact::Verified { path, dev },
        Err(error) => node_fact(error),
    };
    let first_read = match error {
        WorkError::Overdue { deadline, .. } => ReadFact::Overdue { after: *deadline },
        WorkError::Busy { running, .. } => ReadFact::Overdue { after: *running },
        other => ReadFact::Failed { error: other.to_string() },
    };
    IoFacts { first_read, ..IoFacts::none(node) }
}

fn node_fact(error: DevNodeError) -> NodeFact {
    match error {
        DevNodeError::Missing { path } | DevNodeError::NoDevice { path, .. } => {
            NodeFact::Missing { looked_for: path }
        }
        DevNodeError::Wrong { path, found, .. } => NodeFact::Wrong { path, found },
        DevNodeError::Access { path, source } => {
            NodeFact::Unreadable { reason: format!("{}: {source}", path.display()) }
        }
    }
}

fn probe_blocking(sysfs: &Sysfs, dev_root: &Path, dev: DevT) -> IoFacts {
    let opened = devnode::find(sysfs, dev_root, dev)
        .and_then(|path| Ok((devnode::open(&path, dev, OpenFor::DirectRead)?, path)));
    let (file, path) = match opened {
        Ok(opened) => opened,
        Err(error) => return IoFacts::none(node_fact(error)),
    };
    let mut facts = IoFacts::none(NodeFact::Verified { path, dev });
    let geometry = geometry(&file);
    match &geometry {
        Ok(geometry) => {
            facts.size_bytes = Some(geometry.size_bytes);
            facts.read_only = Some(geometry.read_only);
            let block = u64::from(geometry.logical_block_bytes);
            facts.first_read = read_block(&file, 0, block);
            if matches!(facts.first_read, ReadFact::Done { .. }) {
                facts.last_read = match geometry.size_bytes.checked_sub(block) {
                    Some(offset) => read_block(&file, offset, block),
                    None => ReadFact::Failed { error: format!("{} bytes in all", geometry.size_bytes) },
                };
            }
        }
        Err(error) => facts.first_read = ReadFact::Failed { error: error.to_string() },
    }
    facts
}

fn read_block(file: &File, offset: u64, block: u64) -> ReadFact {
    let since = Instant::now();
    let Ok(length) = usize::try_from(block) else {
        return ReadFact::Failed { error: format!("block size {block}") };
    };
    // Extra room, so that the read can begin at an aligned address: direct reads need one.
    let mut buffer = vec![0_u8; length + ALIGNMENT];
    let start = buffer.as_ptr().align_offset(ALIGNMENT);
    let Some(aligned) = buffer.get_mut(start..start.saturating_add(length)) else {
        return ReadFact::Failed { error: "no aligned buffer".to_owned() };
    };
    match file.read_exact_at(aligned, offset) {
        Ok(()) => ReadFact::Done { took: since.elapsed() },
        Err(error) => ReadFact::Failed { error: format!("at offset {offset}: {error}") },
    }
}

struct Geometry {
    size_bytes: u64,
    read_only: bool,
    logical_block_bytes: u32,
}

/// The ioctls of `linux/fs.h`, and nothing else that is unsafe.
#[allow(unsafe_code)]
mod ioctl {
    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
    nix::ioctl_read_bad!(blkroget, nix::request_code_none!(0x12, 94), libc::c_int);
    nix::ioctl_read_bad!(blksszget, nix::request_code_none!(0x12, 104), libc::c_int);
}

#[allow(unsafe_code)]
fn geometry(file: &File) -> io::Result<Geometry> {
    let (mut size_bytes, mut read_only, mut block) = (0_u64, 0, 0);
    let fd = file.as_raw_fd();
    // SAFETY: `fd` is open for the whole call, and each request writes one value of the type that its
    // pointer has, to a local that outlives the call (linux/fs.h).
    unsafe {
        ioctl::blkgetsize64(fd, &mut size_bytes)?;
        ioctl::blkroget(fd, &mut read_only)?;
        ioctl::blksszget(fd, &mut block)?;
    }
    let block = u32::try_from(block).ok().filter(|block| block.is_power_of_two());
    let invalid = || io::Error::other("the device reports no logical block size");
    Ok(Geometry { size_bytes, read_only: read_only != 0, logical_block_bytes: block.ok_or_else(invalid)? })
}

/// Writes back what the page cache holds for a device and flushes its volatile cache.
///
/// # Errors
/// [`FlushError`]. Past the deadline the flush goes on without its caller, and its result is unknown.
pub async fn flush(
    workers: &Workers,
    sysfs: &Sysfs,
    dev_root: &Path,
    dev: DevT,
    deadline: Duration,
) -> Result<(), FlushError> {
    let (sysfs, dev_root) = (sysfs.clone(), dev_root.to_owned());
    let work = move || {
        let path =
            devnode::find(&sysfs, &dev_root, dev).map_err(|source| FlushError::Node { dev, source })?;
        let file =
            devnode::open(&path, dev, OpenFor::Flush).map_err(|source| FlushError::Node { dev, source })?;
        file.sync_all().map_err(|source| FlushError::Flush { path, source })
    };
    match workers.run(&format!("flush {dev}"), deadline, work).await {
        Ok(result) => result,
        Err(source) => Err(FlushError::Work { dev, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::Tree;

    #[test]
    fn a_read_lands_in_an_aligned_buffer_and_a_short_file_is_a_failure() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image");
        std::fs::write(&path, vec![7_u8; 8192]).expect("a file");
        let file = File::open(&path).expect("opens");
        assert!(matches!(read_block(&file, 4096, 4096), ReadFact::Done { .. }));
        assert!(matches!(read_block(&file, 8192, 512), ReadFact::Failed { .. }));
    }

    #[test]
    fn a_file_has_no_geometry() {
        let file = tempfile::tempfile().expect("a file");
        assert_eq!(geometry(&file).map(|_| ()).map_err(|e| e.raw_os_error()), Err(Some(libc::ENOTTY)));
    }

    #[tokio::test]
    async fn a_device_without_a_node_is_a_fact_and_no_panic() {
        let tree = Tree::new();
        let dev = DevT { major: 259, minor: 9 };
        let facts =
            probe(&Workers::new(), &tree.sysfs(), Path::new("/nowhere"), dev, Duration::from_secs(20)).await;
        assert!(matches!(facts.node, NodeFact::Missing { .. }), "{facts:?}");
        assert_eq!(facts.first_read, ReadFact::NotTried);
    }
}
