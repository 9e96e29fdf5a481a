//! What a machine boots into: an archive with busybox, nvme-cli, dmsetup, tc, the rig's server, a kernel's modules
//! and the programs that the caller adds, each with the libraries it needs.
//!
//! An archive is named by the SHA-256 of everything that went into it and kept in the cache: the same inputs boot
//! the same file, and a rebuilt program makes another one.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::cpio::Archive;
use crate::error::{Error, Result};
use crate::host;
use crate::kernel::KernelImage;
use crate::modules::{Selection, WANTED, uncompressed};

/// Tools of the host that every machine has.
const TOOLS: [&str; 4] = ["nvme", "dmsetup", "ip", "tc"];
/// Tools that a machine has where the host has them: busybox's own losetup, mount and umount know too little for
/// a kubelet, and its mke2fs makes no journals.
const EXTRA_TOOLS: [&str; 4] = ["losetup", "mount", "umount", "mke2fs"];
/// So many archives are kept; the ones that were not used for longest go.
const KEPT: usize = 24;
/// Raise it when the layout changes in a way that the inputs do not show.
const LAYOUT: u32 = 1;

/// An archive to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initramfs {
    path: PathBuf,
    release: String,
}

impl Initramfs {
    /// Begins an archive for `kernel`.
    #[must_use]
    pub fn for_kernel(kernel: &KernelImage) -> Builder {
        Builder { kernel: kernel.clone(), files: Vec::new() }
    }

    /// The archive's file on the host.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kernel release whose modules it holds.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }
}

/// An archive in the making.
#[derive(Debug, Clone)]
pub struct Builder {
    kernel: KernelImage,
    files: Vec<Added>,
}

#[derive(Debug, Clone)]
struct Added {
    source: PathBuf,
    /// Without a leading slash.
    target: String,
    program: bool,
}

impl Builder {
    /// Adds a program of the host as `/usr/sbin/NAME`, without its debug information, with the libraries it needs.
    #[must_use]
    pub fn program(self, source: impl Into<PathBuf>) -> Builder {
        let source = source.into();
        let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.add(source, format!("usr/sbin/{name}"), true)
    }

    /// Adds a file of the host as it is, with its permissions, as `target`.
    #[must_use]
    pub fn file(self, source: impl Into<PathBuf>, target: &str) -> Builder {
        self.add(source.into(), target.trim_start_matches('/').to_owned(), false)
    }

    fn add(mut self, source: PathBuf, target: String, program: bool) -> Builder {
        self.files.push(Added { source, target, program });
        self
    }

    /// Makes the archive, or finds it made.
    ///
    /// # Errors
    /// If a program is missing, a file cannot be read, or the cache cannot be written.
    pub fn build(mut self) -> Result<Initramfs> {
        self.files.insert(
            0,
            Added {
                source: host::program("rig-guest")?,
                target: "usr/sbin/rig-guest".to_owned(),
                program: true,
            },
        );
        self.files.insert(
            0,
            Added { source: host::tool("busybox")?, target: "bin/busybox".to_owned(), program: false },
        );
        for (name, needed) in TOOLS.map(|t| (t, true)).into_iter().chain(EXTRA_TOOLS.map(|t| (t, false))) {
            match host::tool(name) {
                Ok(source) => self = self.program(source),
                Err(error) if needed => return Err(error),
                Err(_) => {}
            }
        }
        let key = self.key()?;
        let folder = host::cache_folder().join("initramfs");
        let path = folder.join(format!("{}-{}.cpio", self.kernel.version(), &key[..32]));
        let made = Initramfs { path, release: self.kernel.release().to_owned() };
        if let Ok(file) = std::fs::File::options().append(true).open(&made.path) {
            // The time of last use decides what is thrown away; losing this update costs a rebuild at most.
            let _ = file.set_modified(SystemTime::now());
            return Ok(made);
        }
        std::fs::create_dir_all(&folder).map_err(Error::io("cannot make the folder", &folder))?;
        let bytes = self.archive()?;
        let mut staged =
            tempfile::NamedTempFile::new_in(&folder).map_err(Error::io("cannot write in", &folder))?;
        staged.write_all(&bytes).map_err(Error::io("cannot write in", &folder))?;
        staged.persist(&made.path).map_err(|e| Error::io("cannot put in place", &made.path)(e.error))?;
        discard_oldest(&folder, KEPT);
        Ok(made)
    }

    /// SHA-256, in hexadecimal, over everything that decides what the archive holds.
    fn key(&self) -> Result<String> {
        let mut hash = Sha256::new();
        let mut part = |name: &str, content: &[u8]| {
            hash.update((name.len() as u64).to_be_bytes());
            hash.update(name);
            hash.update((content.len() as u64).to_be_bytes());
            hash.update(content);
        };
        part("layout", &LAYOUT.to_be_bytes());
        part("init", INIT.as_bytes());
        part("etc", ETC.iter().flat_map(|(p, c)| [*p, *c]).collect::<String>().as_bytes());
        part("release", self.kernel.release().as_bytes());
        part("wanted", WANTED.join(" ").as_bytes());
        for added in &self.files {
            part(&format!("{} {}", added.target, added.program), &read(&added.source)?);
            // Libraries change with the host's packages: by path, size and time, they are many and large.
            for library in if added.program { libraries(&added.source)? } else { Vec::new() } {
                let meta = std::fs::metadata(&library).map_err(Error::io("cannot read", &library))?;
                part(
                    &library.to_string_lossy(),
                    format!("{} {:?}", meta.len(), meta.modified().ok()).as_bytes(),
                );
            }
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn archive(&self) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        for folder in [
            "bin", "dev", "etc/nvme", "data", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin",
            "usr/sbin", "usr/lib", "var/lib", "var/log", "lib64",
        ] {
            archive.folder(folder);
        }
        archive.file("init", 0o755, INIT.as_bytes());
        for (path, content) in ETC {
            archive.file(path, 0o644, content.as_bytes());
        }
        for added in &self.files {
            let content = if added.program { stripped(&added.source)? } else { read(&added.source)? };
            let mode = std::fs::metadata(&added.source).map_or(0o755, |m| m.permissions().mode() & 0o777);
            archive.file(&added.target, mode | 0o400, &content);
            for library in if added.program { libraries(&added.source)? } else { Vec::new() } {
                let target = library.to_string_lossy().into_owned();
                if !archive.contains(&target) {
                    archive.file(&target, 0o755, &read(&library)?);
                }
            }
        }
        add_applets(&mut archive)?;
        self.add_modules(&mut archive)?;
        Ok(archive.finish())
    }

    fn add_modules(&self, archive: &mut Archive) -> Result<()> {
        let source = self.kernel.modules();
        let target = format!("lib/modules/{}", self.kernel.release());
        let index =
            |name: &str| Ok::<_, Error>(String::from_utf8_lossy(&read(&source.join(name))?).into_owned());
        let selection = Selection::of(&index("modules.dep")?, WANTED);
        for file in selection.files() {
            let from = source.join(file);
            let content = match from.extension().and_then(|e| e.to_str()) {
                Some("xz") => host::run("xz", &[OsString::from("-dc"), from.into()])?,
                Some("zst") => host::run("zstd", &[OsString::from("-dcq"), from.into()])?,
                _ => read(&from)?,
            };
            archive.file(&format!("{target}/{}", uncompressed(file)), 0o644, &content);
        }
        archive.file(&format!("{target}/modules.dep"), 0o644, selection.modules_dep().as_bytes());
        for name in ["modules.alias", "modules.softdep"] {
            let text = index(name).unwrap_or_default();
            archive.file(&format!("{target}/{name}"), 0o644, selection.cut(&text).as_bytes());
        }
        for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
            if let Ok(content) = read(&source.join(name)) {
                archive.file(&format!("{target}/{name}"), 0o644, &content);
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(Error::io("cannot read", path))
}

/// A link for each of busybox's applets. Programs of their own lie in /usr/sbin, which comes first on PATH: a file
/// that were written over one of these links would be written over busybox itself.
fn add_applets(archive: &mut Archive) -> Result<()> {
    let listed = host::run("busybox", &["--list"])?;
    for applet in String::from_utf8_lossy(&listed).lines().filter(|a| *a != "busybox") {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    // Where the kernel looks for it when it loads a module by itself, and where scripts look for a shell.
    archive.symlink("sbin/modprobe", "/bin/busybox");
    archive.symlink("sbin/init", "/bin/busybox");
    archive.symlink("usr/bin/env", "/bin/busybox");
    Ok(())
}

/// The program without debug information, which is most of it and of no use in a machine.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let out = tempfile::NamedTempFile::new().map_err(Error::io("cannot write in", &std::env::temp_dir()))?;
    let words = [OsString::from("--strip-debug"), "-o".into(), out.path().into(), program.into()];
    match host::run("strip", &words) {
        Ok(_) => read(out.path()),
        // No binutils, or a script: then as it is.
        Err(_) => read(program),
    }
}

/// The libraries that the dynamic linker would load for a program, by ldd. A static program has none.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    match host::run("ldd", &[program]) {
        Ok(listed) => Ok(library_paths(&String::from_utf8_lossy(&listed))),
        Err(Error::HostCommand { ref stderr, .. }) if stderr.contains("not a dynamic executable") => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn library_paths(ldd: &str) -> Vec<PathBuf> {
    ldd.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

fn discard_oldest(folder: &Path, kept: usize) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut archives: Vec<(SystemTime, PathBuf)> = entries
        .filter(|entry| entry.path().extension().is_some_and(|e| e == "cpio"))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    archives.sort();
    let surplus = archives.len().saturating_sub(kept);
    for (_, path) in archives.into_iter().take(surplus) {
        // Another run may have been quicker: what counts is that it goes.
        let _ = std::fs::remove_file(path);
    }
}

/// Small files of the machine's /etc. Names are resolved from files only: there is no DNS.
const ETC: [(&str, &str); 5] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    ("etc/group", "root:x:0:\ndisk:x:6:\nnogroup:x:65534:\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
    ("etc/inittab", "::respawn:/usr/sbin/rig-guest\n::ctrlaltdel:/bin/reboot -f\n"),
    ("etc/modprobe.conf", ""),
];

/// The machine's first process: file systems, modules, addresses, then busybox's init, which reaps orphans and
/// keeps the server running. What it needs to know is on the kernel's command line; NICs are told apart by the
/// fifth byte of their MAC address.
const INIT: &str = include_str!("guest-init.sh");

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\
            \tlibgone.so => not found\n";
        assert_eq!(
            library_paths(ldd),
            [PathBuf::from("/lib/x86_64-linux-gnu/libc.so.6"), PathBuf::from("/lib64/ld-linux-x86-64.so.2"),]
        );
    }

    fn builder(folder: &Path, content: &str) -> Builder {
        let kernels = folder.join("kernels");
        let modules = kernels.join("6.1/lib/modules/6.1.0-x");
        std::fs::create_dir_all(&modules).unwrap();
        std::fs::write(kernels.join("6.1/release"), "6.1.0-x").unwrap();
        std::fs::write(kernels.join("6.1/vmlinuz"), "").unwrap();
        std::fs::write(modules.join("modules.dep"), "").unwrap();
        std::fs::write(folder.join("added"), content).unwrap();
        let kernel = KernelImage::find_in(&kernels, "6.1").unwrap();
        Initramfs::for_kernel(&kernel).file(folder.join("added"), "/etc/added")
    }

    #[test]
    fn the_same_inputs_have_the_same_name_and_any_other_content_another() {
        let folder = tempfile::tempdir().unwrap();
        let first = builder(folder.path(), "one").key().unwrap();
        assert_eq!(builder(folder.path(), "one").key().unwrap(), first);
        assert_ne!(builder(folder.path(), "two").key().unwrap(), first);
        let elsewhere = builder(folder.path(), "one").file(folder.path().join("added"), "/etc/other");
        assert_ne!(elsewhere.key().unwrap(), first);
        assert_eq!(first.len(), 64);
    }

    #[test]
    fn only_the_archives_used_last_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        for age in 0..4_u64 {
            let file = std::fs::File::create(folder.path().join(format!("{age}.cpio"))).unwrap();
            file.set_modified(now - std::time::Duration::from_secs(age)).unwrap();
        }
        discard_oldest(folder.path(), 2);
        let mut left: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["0.cpio", "1.cpio"]);
    }
}
