//! `/proc/PID/mountinfo`, parsed (`Documentation/filesystems/proc.rst`, section 3.5).
//!
//! Always holds: the names in it (paths, sources, types) may be any bytes. That is why it is parsed here: the
//! crate `procfs` reads text, so one mount of an ordinary user with a name that is no text would make all
//! others unreadable.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use serde::Serialize;

use crate::name::DevT;

/// One mount as its namespace sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MountEntry {
    /// Mount identifier, unique in the namespace while it is mounted.
    pub id: u64,
    /// Device number of the file system (`st_dev` of files in it), not of a device node that is bound.
    pub dev: DevT,
    /// Path within that file system which forms the root of this mount.
    pub root: PathBuf,
    /// Where it is mounted, as that namespace names it.
    pub mount_point: PathBuf,
    /// Type of the file system, such as `ext4` or `devtmpfs`.
    pub fs_type: String,
    /// What was mounted, such as `/dev/nvme0n1`, or whatever else the file system shows there.
    pub source: String,
    /// Whether this mount is read-only.
    pub read_only: bool,
}

/// A line of another form than mountinfo's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unexpected line in mountinfo: {0:?}")]
pub struct UnexpectedLine(String);

/// Parses a whole file.
///
/// # Errors
/// [`UnexpectedLine`] for the first line that cannot be read: leaving it out could overlook a mount.
pub fn parse(text: &[u8]) -> Result<Vec<MountEntry>, UnexpectedLine> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| entry(line).ok_or_else(|| UnexpectedLine(String::from_utf8_lossy(line).into_owned())))
        .collect()
}

fn entry(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = text(fields.next()?)?.parse().ok()?;
    let _parent = fields.next()?;
    let dev = DevT::parse(text(fields.next()?)?).ok()?;
    let root = path(fields.next()?);
    let mount_point = path(fields.next()?);
    let read_only = fields.next()?.split(|byte| *byte == b',').any(|option| option == b"ro");
    // Optional fields end at a single dash.
    fields.by_ref().find(|field| *field == b"-")?;
    let name = |field: &[u8]| path(field).to_string_lossy().into_owned();
    let fs_type = name(fields.next()?);
    let source = name(fields.next().unwrap_or_default());
    Some(MountEntry { id, dev, root, mount_point, fs_type, source, read_only })
}

fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field).ok()
}

/// Undoes the kernel's escapes: space, tab, line feed and backslash as `\` and three octal digits.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = (*first == b'\\').then(|| octal(tail.get(..3)?)).flatten();
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_optional_fields_and_escapes_are_read() {
        let text = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
            90 36 0:6 /nvme0n1 /var/lib/a\\040b\\134c ro,nosuid - devtmpfs udev rw\n\
            91 36 0:7 / / rw shared:1 master:2 - tmpfs  rw\n";
        let entries = parse(text).expect("valid");
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[0].dev.to_string(), "98:0");
        assert_eq!(entries[1].mount_point, PathBuf::from("/var/lib/a b\\c"));
        assert!(entries[1].read_only && !entries[0].read_only);
        assert_eq!(entries[1].root, PathBuf::from("/nvme0n1"));
        assert_eq!(entries[2].fs_type, "tmpfs");
    }

    #[test]
    fn names_may_be_any_bytes() {
        let entries = parse(b"36 35 0:44 / /m\xff rw - fuse.\xff s\xfe rw\n").expect("valid");
        assert_eq!(entries[0].mount_point.as_os_str().len(), 3);
        assert_eq!((entries[0].fs_type.as_str(), entries[0].source.as_str()), ("fuse.\u{fffd}", "s\u{fffd}"));
    }

    #[test]
    fn a_line_that_cannot_be_read_is_not_left_out() {
        assert!(parse(b"36 35 98:0 /mnt1\n").is_err());
        assert!(parse(b"garbage\n").is_err());
        assert_eq!(parse(b""), Ok(Vec::new()));
    }
}
