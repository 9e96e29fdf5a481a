//! The part of a kernel's modules that goes into a machine: what the rig needs, and all that those depend on.
//!
//! Comes in: the text of `modules.dep` (made by depmod when the kernel was fetched) and wanted names. Goes out: the
//! files to copy, and the index files cut down to them. Names that a kernel does not have (built in, or of another
//! version) are left out: the init loads what is there, and a test that needs more says so by failing.

use std::collections::{BTreeMap, BTreeSet};

/// What the machines use. A trailing `*` stands for anything.
pub(crate) const WANTED: &[&str] = &[
    // the machine itself
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "virtio-rng",
    "configfs",
    "ext4",
    "loop",
    "overlay",
    "fuse",
    // NVMe over TCP, both ends, with in-band authentication
    "nvme-core",
    "nvme-fabrics",
    "nvme-tcp",
    "nvme-auth",
    "nvme-keyring",
    "nvmet",
    "nvmet-tcp",
    "nvme-loop",
    "hmac",
    "sha256*",
    "sha512*",
    "dh_generic",
    "ecdh_generic",
    "hkdf",
    "tls",
    "gcm",
    "crc32c*",
    "libcrc32c",
    "crct10dif*",
    "crc-t10dif",
    "crc64-rocksoft*",
    // backing stores, slow and broken ones too, and the other kind of multipath
    "null_blk",
    "brd",
    "dm-mod",
    "dm-delay",
    "dm-flakey",
    "dm-multipath",
    "dm-round-robin",
    "dm-service-time",
    // slow links
    "sch_netem",
];

/// The files a machine gets, as paths below the modules' folder, each with what it depends on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    dependencies: BTreeMap<String, Vec<String>>,
}

impl Selection {
    /// Picks `wanted` and everything below it from the text of a `modules.dep`.
    pub(crate) fn of(modules_dep: &str, wanted: &[&str]) -> Selection {
        let all: BTreeMap<&str, Vec<&str>> = modules_dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(file, needs)| (file, needs.split_whitespace().collect()))
            .collect();
        let mut queue: Vec<&str> =
            all.keys().copied().filter(|file| wanted.iter().any(|w| matches(w, &name(file)))).collect();
        let mut selection = Selection::default();
        while let Some(file) = queue.pop() {
            let needs = all.get(file).cloned().unwrap_or_default();
            queue.extend(needs.iter().filter(|n| !selection.dependencies.contains_key(**n)));
            selection.dependencies.insert(file.to_owned(), needs.into_iter().map(str::to_owned).collect());
        }
        selection
    }

    /// The files, in order.
    pub(crate) fn files(&self) -> impl Iterator<Item = &str> {
        self.dependencies.keys().map(String::as_str)
    }

    /// `modules.dep` for these files, uncompressed as the machine has them.
    pub(crate) fn modules_dep(&self) -> String {
        let plain =
            |files: &[String]| files.iter().map(|f| format!(" {}", uncompressed(f))).collect::<String>();
        self.dependencies
            .iter()
            .map(|(file, needs)| format!("{}:{}\n", uncompressed(file), plain(needs)))
            .collect()
    }

    /// Lines of `modules.alias` or `modules.softdep` that are about these files.
    pub(crate) fn cut(&self, index: &str) -> String {
        let names: BTreeSet<String> = self.files().map(name).collect();
        let kept = index.lines().filter(|line| {
            let mut words = line.split_whitespace();
            let module = match words.next() {
                Some("alias") => words.next_back(),
                Some("softdep") => words.next(),
                _ => None,
            };
            module.is_some_and(|m| names.contains(&m.replace('-', "_")))
        });
        kept.map(|line| format!("{line}\n")).collect()
    }
}

/// The path of a module file without the compression's ending.
pub(crate) fn uncompressed(file: &str) -> &str {
    file.strip_suffix(".xz").or_else(|| file.strip_suffix(".zst")).unwrap_or(file)
}

/// A module's name as the kernel writes it: with underscores only.
fn name(file: &str) -> String {
    let base = uncompressed(file).rsplit('/').next().unwrap_or_default();
    base.strip_suffix(".ko").unwrap_or(base).replace('-', "_")
}

fn matches(wanted: &str, name: &str) -> bool {
    let wanted = wanted.replace('-', "_");
    wanted.strip_suffix('*').map_or(wanted == name, |start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/a/nvme-tcp.ko.xz: kernel/a/nvme-fabrics.ko.xz kernel/a/nvme-core.ko.xz\n\
        kernel/a/nvme-fabrics.ko.xz: kernel/a/nvme-core.ko.xz\n\
        kernel/a/nvme-core.ko.xz: kernel/b/t10-pi.ko.xz\n\
        kernel/b/t10-pi.ko.xz:\n\
        kernel/b/sha256_generic.ko.xz:\n\
        kernel/c/sound.ko.xz:\n";

    #[test]
    fn everything_that_a_wanted_module_needs_comes_along_and_nothing_else() {
        let selection = Selection::of(DEP, &["nvme_tcp", "sha256*", "not-there"]);
        let files: Vec<_> = selection.files().collect();
        assert_eq!(
            files,
            [
                "kernel/a/nvme-core.ko.xz",
                "kernel/a/nvme-fabrics.ko.xz",
                "kernel/a/nvme-tcp.ko.xz",
                "kernel/b/sha256_generic.ko.xz",
                "kernel/b/t10-pi.ko.xz",
            ]
        );
        assert!(
            selection
                .modules_dep()
                .contains("kernel/a/nvme-tcp.ko: kernel/a/nvme-fabrics.ko kernel/a/nvme-core.ko\n")
        );
    }

    #[test]
    fn indexes_are_cut_to_the_modules_that_are_there() {
        let selection = Selection::of(DEP, &["nvme-core"]);
        let aliases = "# comment\nalias pci:v* nvme_core\nalias snd sound\nsoftdep nvme-core pre: t10-pi\n";
        assert_eq!(selection.cut(aliases), "alias pci:v* nvme_core\nsoftdep nvme-core pre: t10-pi\n");
    }
}
