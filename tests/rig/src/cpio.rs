//! Writes the archive format that the kernel unpacks at boot ("newc", Documentation/driver-api/early-userspace).
//!
//! Written here so that everything in it belongs to root and has no times: the same inputs give the same bytes, and
//! nobody needs to be root to make it.

use std::collections::BTreeSet;

const FOLDER: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;
const FILE: u32 = 0o100_000;

/// An archive in the making.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    present: BTreeSet<String>,
}

impl Archive {
    /// Adds a folder and those above it, unless they are there. Paths have no leading slash.
    pub(crate) fn folder(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.present.contains(path) {
            return;
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above);
        }
        self.entry(path, FOLDER, b"");
    }

    /// Adds a file with these permission bits, unless something of that path is there.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.leaf(path, FILE | mode, content);
    }

    /// Adds a symbolic link, unless something of that path is there.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        self.leaf(path, SYMLINK, target.as_bytes());
    }

    /// Whether something of that path is there.
    pub(crate) fn contains(&self, path: &str) -> bool {
        self.present.contains(path.trim_matches('/'))
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, b"");
        self.bytes
    }

    fn leaf(&mut self, path: &str, mode: u32, content: &[u8]) {
        let path = path.trim_matches('/');
        if self.contains(path) {
            return;
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above);
        }
        self.entry(path, mode, content);
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        self.present.insert(path.to_owned());
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields =
            [self.inode, mode, 0, 0, links, 0, content.len() as u32, 0, 0, 0, 0, path.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn folders_come_once_and_before_what_is_in_them() {
        let mut archive = Archive::default();
        archive.file("usr/sbin/nvme", 0o755, b"binary");
        archive.file("/usr/sbin/nvme", 0o755, b"another");
        archive.symlink("bin/sh", "busybox");
        assert!(archive.contains("usr/sbin") && archive.contains("bin/sh"));
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(text.find("usr\0").unwrap() < text.find("usr/sbin\0").unwrap());
        assert_eq!(text.matches("usr/sbin/nvme\0").count(), 1);
        assert!(text.contains("binary") && !text.contains("another"));
    }

    #[test]
    fn the_systems_own_cpio_reads_it() {
        let mut archive = Archive::default();
        archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n");
        let Ok(mut cpio) = Command::new("cpio")
            .args(["-it", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            return; // cpio is only a second opinion: nothing else needs it
        };
        cpio.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        let listed = cpio.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&listed.stdout), "etc\netc/hosts\n");
    }
}
