//! `statx` that never waits for a server: a dead NFS mount must not block the search for openers.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::name::DevT;

/// Device number of the block device that a path leads to; `None` when it leads to something else.
///
/// A FUSE file system of a user who does not let root in refuses to say what a file is, but still says which
/// file system it is in. Its files are no block devices: an ordinary user's mounts are `nodev`.
///
/// # Errors
/// What the operating system said.
pub(super) fn block_rdev(path: &Path) -> io::Result<Option<DevT>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    match statx(&path, libc::STATX_TYPE) {
        Ok(found) => {
            let block = u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFBLK;
            Ok(block.then_some(DevT { major: found.stx_rdev_major, minor: found.stx_rdev_minor }))
        }
        Err(error) if error.raw_os_error() == Some(libc::EACCES) && statx(&path, 0).is_ok() => Ok(None),
        Err(error) => Err(error),
    }
}

#[allow(unsafe_code)]
fn statx(path: &CStr, mask: libc::c_uint) -> io::Result<libc::statx> {
    // SAFETY: all zero is a valid `statx`: it holds integers only.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT;
    // SAFETY: `path` is a NUL-terminated string and `found` a `statx`, both of which outlive the call.
    let code = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, mask, &mut found) };
    if code == 0 { Ok(found) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_block_device_has_no_number() {
        assert_eq!(block_rdev(Path::new("/dev/null")).ok(), Some(None));
        assert_eq!(block_rdev(Path::new("/")).ok(), Some(None));
        let missing = block_rdev(Path::new("/nowhere/at/all")).expect_err("missing");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
