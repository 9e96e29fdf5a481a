//! The backing files, below one directory that plays the device's root.
//!
//! In: names without leading slash, checked by [`crate::disk::file_path`]. Out: sparse files of an exact size,
//! their listing, and what space is left. What always holds: a file that exists is never cut or emptied; removing
//! a disk leaves its file; symbolic links are not followed out of the directory.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A file or directory as `/rest/file` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name from the root, without leading slash.
    pub name: String,
    /// It is a directory.
    pub directory: bool,
    /// Its size; a sparse file counts whole.
    pub size_bytes: u64,
    /// When it was last changed.
    pub modified: SystemTime,
}

/// Bytes in all and bytes left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// In all.
    pub total_bytes: u64,
    /// Left.
    pub free_bytes: u64,
}

/// A system call about a file failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub struct IoError {
    /// What was tried.
    pub action: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Why a file was not made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is no room.
    #[error("{path}: {wanted_bytes} bytes wanted, {free_bytes} left")]
    Full {
        /// The file.
        path: PathBuf,
        /// The bytes that it would take.
        wanted_bytes: u64,
        /// The bytes that are left.
        free_bytes: u64,
    },
    /// The file is there already, with another size.
    #[error("{path} exists with {found_bytes} bytes")]
    OtherSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        found_bytes: u64,
    },
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// The directory of the backing files.
#[derive(Debug)]
pub struct Files {
    root: PathBuf,
    capacity_bytes: Option<u64>,
}

impl Files {
    /// The files below `root`, which is made if it is missing. With a capacity, their sizes may not add up to more;
    /// without one they may (they are sparse), and the space of the file system is reported.
    pub fn open(root: PathBuf, capacity_bytes: Option<u64>) -> Result<Self, FileError> {
        fs::create_dir_all(&root).map_err(failed("create", &root))?;
        Ok(Self { root, capacity_bytes })
    }

    /// Where a file is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes a sparse file of exactly this size, or takes the one that is there if its size agrees (or none is
    /// asked for). Returns its size and whether it is new.
    pub fn create(&self, name: &str, size_bytes: Option<u64>) -> Result<Option<(u64, bool)>, FileError> {
        let path = self.path(name);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() && size_bytes.is_none_or(|size| size == found.len()) => {
                return Ok(Some((found.len(), false)));
            }
            Ok(found) => {
                return Err(FileError::OtherSize { path, found_bytes: found.len() });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed("look at", &path)(source)),
        }
        let Some(size_bytes) = size_bytes else {
            return Ok(None);
        };
        self.room_for(&path, size_bytes)?;
        if let Some(directory) = path.parent() {
            // RouterOS may want the directory to exist; assumed that it makes it.
            fs::create_dir_all(directory).map_err(failed("create", directory))?;
        }
        let file =
            OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed("create", &path))?;
        file.set_len(size_bytes).and_then(|()| file.sync_all()).map_err(failed("size", &path))?;
        Ok(Some((size_bytes, true)))
    }

    /// Makes a file larger.
    pub fn grow(&self, name: &str, from_bytes: u64, to_bytes: u64) -> Result<(), FileError> {
        let path = self.path(name);
        self.room_for(&path, to_bytes.saturating_sub(from_bytes))?;
        let file = OpenOptions::new().write(true).open(&path).map_err(failed("open", &path))?;
        file.set_len(to_bytes).and_then(|()| file.sync_all()).map_err(failed("grow", &path))
    }

    /// Removes one file or one empty directory.
    pub fn remove(&self, entry: &Entry) -> Result<(), FileError> {
        let path = self.path(&entry.name);
        let removed = if entry.directory { fs::remove_dir(&path) } else { fs::remove_file(&path) };
        removed.map_err(failed("remove", &path))
    }

    /// Everything below the root, by name; hidden files (our own) excepted.
    pub fn list(&self) -> Result<Vec<Entry>, FileError> {
        let mut found = Vec::new();
        self.walk(Path::new(""), &mut found)?;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// What space there is.
    pub fn space(&self) -> Result<Space, FileError> {
        if let Some(total_bytes) = self.capacity_bytes {
            let used: u64 = self.list()?.iter().map(|entry| entry.size_bytes).sum();
            return Ok(Space { total_bytes, free_bytes: total_bytes.saturating_sub(used) });
        }
        let found = nix::sys::statvfs::statvfs(&self.root)
            .map_err(|errno| failed("statvfs", &self.root)(io::Error::from(errno)))?;
        let block = found.fragment_size();
        Ok(Space { total_bytes: found.blocks() * block, free_bytes: found.blocks_available() * block })
    }

    fn room_for(&self, path: &Path, wanted_bytes: u64) -> Result<(), FileError> {
        if self.capacity_bytes.is_none() {
            return Ok(());
        }
        let free_bytes = self.space()?.free_bytes;
        if wanted_bytes <= free_bytes {
            return Ok(());
        }
        Err(FileError::Full { path: path.to_owned(), wanted_bytes, free_bytes })
    }

    fn walk(&self, below: &Path, found: &mut Vec<Entry>) -> Result<(), FileError> {
        let directory = self.root.join(below);
        for entry in fs::read_dir(&directory).map_err(failed("list", &directory))? {
            let entry = entry.map_err(failed("list", &directory))?;
            let name = below.join(entry.file_name());
            let path = entry.path();
            let about = entry.metadata().map_err(failed("look at", &path))?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") || about.is_symlink() {
                continue;
            }
            found.push(Entry {
                name: name.to_string_lossy().into_owned(),
                directory: about.is_dir(),
                size_bytes: if about.is_dir() { 0 } else { about.len() },
                modified: about.modified().map_err(failed("look at", &path))?,
            });
            if about.is_dir() {
                self.walk(&name, found)?;
            }
        }
        Ok(())
    }
}

/// `YYYY-MM-DD HH:MM:SS` in UTC, RouterOS' form since 7.10.
pub fn timestamp(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}", second % 60)
}

/// Year, month and day of a number of days since 1970 (Gregorian, counted in years that begin in March).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    move |source| match source.raw_os_error() {
        Some(nix::libc::ENOSPC) => FileError::Full { path: path.to_owned(), wanted_bytes: 0, free_bytes: 0 },
        _ => IoError { action, path: path.to_owned(), source }.into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_file_that_exists_is_taken_as_it_is_or_refused() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path().to_owned(), None).unwrap();
        assert_eq!(files.create("pool/a.img", Some(4097)).unwrap(), Some((4097, true)));
        assert_eq!(fs::metadata(files.path("pool/a.img")).unwrap().len(), 4097);
        assert_eq!(files.create("pool/a.img", Some(4097)).unwrap(), Some((4097, false)));
        assert_eq!(files.create("pool/a.img", None).unwrap(), Some((4097, false)));
        assert!(matches!(files.create("pool/a.img", Some(1)), Err(FileError::OtherSize { .. })));
        assert_eq!(files.create("pool/b.img", None).unwrap(), None);
    }

    #[test]
    fn a_capacity_counts_sparse_files_whole() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path().to_owned(), Some(1 << 30)).unwrap();
        files.create("a.img", Some(1 << 29)).unwrap();
        let full = files.create("b.img", Some((1 << 29) + 1)).unwrap_err();
        assert!(matches!(full, FileError::Full { free_bytes, .. } if free_bytes == 1 << 29), "{full}");
        assert!(!files.path("b.img").exists());
        files.create("b.img", Some(1 << 29)).unwrap();
        assert!(matches!(files.grow("a.img", 1 << 29, 1 << 30), Err(FileError::Full { .. })));
    }

    #[test]
    fn timestamps_are_those_of_the_calendar() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00:00");
        assert_eq!(at(951_868_799), "2000-02-29 23:59:59");
        assert_eq!(at(1_795_219_200), "2026-11-21 00:00:00");
    }
}
