//! Reads single attributes. "Does not exist" is an ordinary answer.

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::unreadable::Unreadable;

/// A directory whose attributes are read, and the list of those that could not be.
pub(crate) struct Attribute<'a> {
    pub(crate) dir: PathBuf,
    pub(crate) unreadable: &'a mut Vec<Unreadable>,
}

/// Whether an error means that the entry is gone (ENOENT), that its device is going (ENODEV, ENXIO), or that
/// this kind of device has no such value.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::ENOTDIR))
}

impl Attribute<'_> {
    /// Text without surrounding white space; `None` where the attribute does not exist or is empty.
    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        let path = self.dir.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes).trim().to_owned();
                (!text.is_empty()).then_some(text)
            }
            Err(error) if is_absent(&error) => None,
            Err(error) => {
                self.unreadable.push(Unreadable { path, error: error.to_string() });
                None
            }
        }
    }

    /// A value of a type that parses text. Text that does not fit is listed as unreadable.
    pub(crate) fn value<T: FromStr>(&mut self, name: &str) -> Option<T> {
        let text = self.text(name)?;
        let value = text.parse().ok();
        if value.is_none() {
            let error = format!("unexpected content {text:?}");
            self.unreadable.push(Unreadable { path: self.dir.join(name), error });
        }
        value
    }

    /// A flag written `0` or `1`.
    pub(crate) fn flag(&mut self, name: &str) -> Option<bool> {
        self.value::<u8>(name).map(|number| number != 0)
    }
}

/// Names in a directory, sorted; none where the directory does not exist.
///
/// # Errors
/// What the operating system said, when the directory exists but cannot be listed.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) => names.extend(entry.file_name().into_string()),
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(error),
        }
    }
    names.sort_unstable();
    Ok(names)
}
