//! Reading a device or a backing file, holes left out.
//!
//! In: a path. Out: every block that may hold something, once, in order. What always holds: a hole is left out only
//! on the file system's own word (`SEEK_DATA`); where it gives none, everything is read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::record::{BLOCK_BYTES, Block};

/// Blocks that are read at once: 1 MiB.
const CHUNK_BLOCKS: usize = 256;

/// A device or file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}", path.display())]
pub struct ScanError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Gives every block of `path` that is not a hole to `take`, with its number. A last piece shorter than a block is
/// none of the writer's and is left out.
///
/// # Errors
/// If the file cannot be opened or read.
pub fn scan(path: &Path, mut take: impl FnMut(u64, &Block)) -> Result<(), ScanError> {
    let failed = |what| move |source| ScanError { what, path: path.to_owned(), source };
    let file = File::open(path).map_err(failed("open"))?;
    let end = lseek(&file, 0, Whence::SeekEnd).map_err(|errno| failed("find the size of")(errno.into()))?;
    let blocks = u64::try_from(end).unwrap_or(0) / BLOCK_BYTES as u64;
    let mut buffer = vec![0_u8; CHUNK_BLOCKS * BLOCK_BYTES];
    let mut next = 0;
    while let Some(first) =
        data_from(&file, next).map_err(failed("look for data in"))?.filter(|b| *b < blocks)
    {
        let count = usize::try_from(blocks - first).unwrap_or(usize::MAX).min(CHUNK_BLOCKS);
        let bytes = &mut buffer[..count * BLOCK_BYTES];
        file.read_exact_at(bytes, first * BLOCK_BYTES as u64).map_err(failed("read"))?;
        for (number, block) in (first..).zip(bytes.as_chunks::<BLOCK_BYTES>().0) {
            take(number, block);
        }
        next = first + count as u64;
    }
    Ok(())
}

/// The first block at or after `block` that may hold data; `None` past the last.
fn data_from(file: &File, block: u64) -> io::Result<Option<u64>> {
    let offset = i64::try_from(block * BLOCK_BYTES as u64).map_err(io::Error::other)?;
    match lseek(file, offset, Whence::SeekData) {
        Ok(data) => Ok(Some(u64::try_from(data).map_err(io::Error::other)? / BLOCK_BYTES as u64)),
        Err(Errno::ENXIO) => Ok(None),
        // A device, or a file system that does not tell.
        Err(Errno::EINVAL) => Ok(Some(block)),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use super::*;

    #[test]
    fn blocks_after_holes_are_found_with_their_numbers() {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        file.as_file().set_len(64 << 20).expect("sparse");
        for number in [0_u64, 1, 5000, 16383] {
            file.seek(SeekFrom::Start(number * BLOCK_BYTES as u64)).expect("seek");
            file.write_all(&[number as u8 | 1; BLOCK_BYTES]).expect("write");
        }
        let mut seen = Vec::new();
        scan(file.path(), |number, block| {
            if block[0] != 0 {
                seen.push((number, block[BLOCK_BYTES - 1]));
            }
        })
        .expect("reads");
        assert_eq!(seen, [(0, 1), (1, 1), (5000, 5000_u64 as u8 | 1), (16383, 255)]);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = scan(Path::new("/nonexistent/pvc.img"), |_, _| {}).expect_err("none");
        assert!(error.to_string().contains("/nonexistent/pvc.img"));
    }
}
