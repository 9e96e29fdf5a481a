//! What a block device itself answers: size, read-only flag, direct reads of its first and last block; and
//! flushing it.
//!
//! Comes in: a device number (never a name). Goes out: [`IoFacts`], in which a failure is a fact as well.
//!
//! Always holds: everything runs on a thread of its own with a deadline, one per device at a time; reads go
//! past the page cache; the number is compared on the open descriptor; nothing is ever written.

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

/// What the device answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IoFacts {
    /// Its node.
    pub node: NodeFact,
    /// Size in bytes by `BLKGETSIZE64`, if it could be asked.
    pub size_bytes: Option<u64>,
    /// Read-only by `BLKROGET`, if it could be asked.
    pub read_only: Option<bool>,
    /// Direct read of the first block.
    pub first_read: ReadFact,
    /// Direct read of the last block.
    pub last_read: ReadFact,
    /// Loop devices over it.
    pub loops: Vec<LoopUse>,
    /// Why loop devices could not be looked for, if so.
    pub loops_unknown: Option<String>,
    /// Holders of the device that is used, where that is a dm-multipath map.
    pub map_holders: Vec<Holder>,
}

impl IoFacts {
    /// Facts of a device that has not been looked at.
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

/// The device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeFact {
    /// It is there, and the descriptor opened from it has that number.
    Verified {
        /// Its path.
        path: PathBuf,
        /// The number on the descriptor.
        dev: DevT,
    },
    /// There is none.
    Missing {
        /// Where it should be.
        looked_for: PathBuf,
    },
    /// It is something else.
    Wrong {
        /// Its path.
        path: PathBuf,
        /// What it is, in words.
        found: String,
    },
    /// It could not be looked at or opened.
    Unreadable {
        /// Why.
        reason: String,
    },
}

/// A direct read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadFact {
    /// It succeeded.
    Done {
        /// How long it took.
        took: Duration,
    },
    /// It failed.
    Failed {
        /// What the operating system said.
        error: String,
    },
    /// It has not come back; it is left to itself.
    Overdue {
        /// After how long that was said.
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
    /// No node to open.
    #[error("cannot flush block device {dev}")]
    Node {
        /// The device.
        dev: DevT,
        /// The cause.
        #[source]
        source: DevNodeError,
    },
    /// The flush itself failed.
    #[error("cannot flush {path}")]
    Flush {
        /// The node.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Not in time, or no thread.
    #[error("cannot flush block device {dev}")]
    Work {
        /// The device.
        dev: DevT,
        /// The cause.
        #[source]
        source: WorkError,
    },
}

/// Asks a device: node, size, flag, first and last block; all of it within `deadline`.
///
/// Loops and holders of the map are left empty: [`crate::readiness::Checker`] adds them.
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

/// A read that does not come back says nothing about the node, which is looked at again without opening it.
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
    // Room to begin at an aligned address: direct reads need one.
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
/// [`FlushError`]; past the deadline the flush goes on by itself and nothing is known about it.
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
