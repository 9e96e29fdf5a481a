//! Files that show whether they are whole or torn, and are replaced whole.
//!
//! Comes in: a record. Goes out: the record that is on disk, or why it cannot be trusted.
//!
//! A file is two lines of JSON: the record, and the SHA-256 of that line. A new one is written beside it,
//! synced, renamed over the old one, and the directory is synced. After a crash either the old or the new
//! record is there, whole.
//!
//! Space can be reserved for a record ([`keep_room`]): a file whose blocks the disk has allocated already.
//! Where the disk allocates no more, the record is written into it.
//!
//! Always holds: a missing file is told from every other failure to read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::errors::{LedgerError, io_error};

/// Space that is reserved for a record. One is some 500 to 800 bytes of text, and more where much is
/// published.
const ROOM_BYTES: u64 = 8 << 10;

#[derive(Serialize, Deserialize)]
struct Seal {
    sha256: String,
}

fn digest(line: &str) -> String {
    Sha256::digest(line.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a record; `None` where there is no file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LedgerError> {
    let damaged = |reason: String| LedgerError::Damaged { path: path.to_owned(), reason };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(damaged("it is not text".into()));
        }
        Err(error) => return Err(io_error("read", path)(error)),
    };
    decode(&text).map(Some).map_err(damaged)
}

fn decode<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let mut lines = text.split_inclusive('\n');
    let (Some(line), Some(seal), None) = (lines.next(), lines.next(), lines.next()) else {
        return Err("it does not have two lines".into());
    };
    let seal: Seal = serde_json::from_str(seal).map_err(|error| format!("cannot read its seal: {error}"))?;
    if seal.sha256 != digest(line) {
        return Err("its checksum is wrong".into());
    }
    serde_json::from_str(line).map_err(|error| format!("cannot read it: {error}"))
}

/// Replaces the file `name` in `dir`. After `Ok` the record survives a crash of the machine.
pub(crate) fn write<T: Serialize>(dir: &Path, name: &str, record: &T) -> Result<(), LedgerError> {
    let (path, beside) = (dir.join(name), dir.join(format!(".{name}.tmp")));
    let encoded = || -> Result<String, serde_json::Error> {
        let line = serde_json::to_string(record)? + "\n";
        let seal = serde_json::to_string(&Seal { sha256: digest(&line) })?;
        Ok(format!("{line}{seal}\n"))
    };
    let text = encoded().map_err(|error| io_error("encode", &path)(error.into()))?;
    let written = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    let replacement = match written() {
        Ok(()) => beside,
        Err(error) => {
            let room = room(dir, name);
            // The cause is a full disk, so that is the error to report.
            write_into(&room, &text).map_err(|_| io_error("write", &beside)(error))?;
            room
        }
    };
    fs::rename(&replacement, &path).map_err(io_error("replace", &path))?;
    sync_dir(dir)
}

fn room(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!(".{name}.room"))
}

fn write_into(room: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(room)?;
    file.write_all(text.as_bytes())?;
    file.set_len(u64::try_from(text.len()).map_err(io::Error::other)?)?;
    file.sync_all()
}

/// Reserves space for the record `name` in `dir`, so that it can be written once more when the disk is full.
pub(super) fn keep_room(dir: &Path, name: &str) -> Result<(), LedgerError> {
    let path = room(dir, name);
    if fs::metadata(&path).is_ok_and(|there| there.len() >= ROOM_BYTES) {
        return Ok(());
    }
    let made = || -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        nix::fcntl::posix_fallocate(&file, 0, i64::try_from(ROOM_BYTES).map_err(io::Error::other)?)?;
        Ok(())
    };
    made().map_err(io_error("keep room in", &path))
}

/// Removes the file `name` in `dir`, if it exists. After `Ok` it stays removed.
pub(super) fn remove(dir: &Path, name: &str) -> Result<(), LedgerError> {
    let path = dir.join(name);
    // Not worth an error: it contains nothing.
    let _ = fs::remove_file(room(dir, name));
    match fs::remove_file(&path) {
        Ok(()) => sync_dir(dir),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("remove", &path)(error)),
    }
}

/// Makes changes to a directory's entries durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), LedgerError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync", dir))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NAME: &str = "v.json";

    #[test]
    fn where_the_disk_gives_nothing_more_the_room_that_was_kept_is_used() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), NAME, &1).unwrap();
        keep_room(dir.path(), NAME).unwrap();
        // A file cannot be made there now.
        fs::create_dir(dir.path().join(".v.json.tmp")).unwrap();
        write(dir.path(), NAME, &2).unwrap();
        assert_eq!(read::<u32>(&dir.path().join(NAME)).unwrap(), Some(2));
        let error = write(dir.path(), NAME, &3).unwrap_err().to_string();
        assert!(error.contains(".v.json.tmp"), "the room is used up: {error}");
        assert_eq!(read::<u32>(&dir.path().join(NAME)).unwrap(), Some(2), "and nothing is torn");
        keep_room(dir.path(), NAME).unwrap();
        write(dir.path(), NAME, &4).unwrap();
        assert_eq!(read::<u32>(&dir.path().join(NAME)).unwrap(), Some(4));
        remove(dir.path(), NAME).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only what the test made is left");
    }
}
