//! Sysfs trees for tests, with the layout of Linux 6.1 and 6.12 as they were read on real kernels.
//!
//! What a test does not make is not there. `device`, `subsystem`, `power` and the like are left out; the
//! links from the class directories to the devices are as in the original.

#![allow(clippy::expect_used, missing_docs)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::sysfs::Sysfs;

/// A sysfs tree in a temporary directory, removed when it is dropped.
#[derive(Debug)]
pub struct Tree {
    dir: tempfile::TempDir,
}

/// A controller to be made.
#[derive(Debug, Clone)]
pub struct ControllerSpec<'a> {
    pub instance: u32,
    pub subsystem: &'a str,
    pub host_nqn: &'a str,
    pub host_id: &'a str,
    pub portal: (&'a str, u16),
    pub state: &'a str,
}

/// A namespace to be made.
#[derive(Debug, Clone)]
pub struct NamespaceSpec<'a> {
    pub nsid: u32,
    pub uuid: &'a str,
    pub dev: &'a str,
    pub size_bytes: u64,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// A host with native multipath and no NVMe device.
    pub fn new() -> Self {
        let tree = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        for class in ["class/nvme", "class/nvme-subsystem", "class/block", "dev/block"] {
            fs::create_dir_all(tree.root().join(class)).expect("made");
        }
        tree.write("module/nvme_core/parameters/multipath", "Y\n");
        tree
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn sysfs(&self) -> Sysfs {
        Sysfs::at(self.root())
    }

    /// Writes a file below the root, with its directories; returns its path.
    pub fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("made");
        fs::write(&path, text).expect("written");
        path
    }

    /// Makes subsystem number `number` of that NQN.
    pub fn subsystem(&self, number: u32, nqn: &str) {
        let device = format!("devices/virtual/nvme-subsystem/nvme-subsys{number}");
        self.write(&format!("{device}/subsysnqn"), &format!("{nqn}\n"));
        self.write(&format!("{device}/iopolicy"), "numa\n");
        self.link(&format!("class/nvme-subsystem/nvme-subsys{number}"), &format!("../../{device}"));
    }

    /// Makes a controller and links it from subsystem number `number`.
    pub fn controller(&self, number: u32, spec: &ControllerSpec<'_>) {
        let name = format!("nvme{}", spec.instance);
        let device = format!("devices/virtual/nvme-fabrics/ctl/{name}");
        let (ip, port) = spec.portal;
        let address = format!("traddr={ip},trsvcid={port},src_addr=10.77.1.11");
        for (attribute, value) in [
            ("subsysnqn", spec.subsystem),
            ("hostnqn", spec.host_nqn),
            ("hostid", spec.host_id),
            ("transport", "tcp"),
            ("cntrltype", "io"),
            ("address", address.as_str()),
            ("state", spec.state),
            ("cntlid", "1"),
            ("numa_node", "-1"),
            ("queue_count", "3"),
            ("reconnect_delay", "10"),
            ("ctrl_loss_tmo", "600"),
        ] {
            self.write(&format!("{device}/{attribute}"), &format!("{value}\n"));
        }
        self.write(&format!("{device}/delete_controller"), "");
        self.link(&format!("class/nvme/{name}"), &format!("../../{device}"));
        let subsystem = format!("devices/virtual/nvme-subsystem/nvme-subsys{number}");
        self.link(&format!("{subsystem}/{name}"), &format!("../../nvme-fabrics/ctl/{name}"));
    }

    /// Changes an attribute of a controller.
    pub fn set(&self, controller: u32, attribute: &str, value: &str) {
        let device = format!("devices/virtual/nvme-fabrics/ctl/nvme{controller}");
        self.write(&format!("{device}/{attribute}"), &format!("{value}\n"));
    }

    /// Makes the multipath head of subsystem `number` with a path through each of `controllers`.
    pub fn head(&self, number: u32, spec: &NamespaceSpec<'_>, controllers: &[u32]) {
        let name = format!("nvme{number}n{}", spec.nsid);
        let subsystem = format!("devices/virtual/nvme-subsystem/nvme-subsys{number}");
        self.block(&format!("{subsystem}/{name}"), &name, spec, true);
        for controller in controllers {
            let path = format!("nvme{number}c{controller}n{}", spec.nsid);
            let device = format!("devices/virtual/nvme-fabrics/ctl/nvme{controller}/{path}");
            self.block(&device, &path, spec, false);
            self.write(&format!("{device}/ana_state"), "optimized\n");
        }
    }

    /// Makes the bare device of a controller, as without native multipath.
    pub fn bare(&self, controller: u32, spec: &NamespaceSpec<'_>) {
        let name = format!("nvme{controller}n{}", spec.nsid);
        self.block(&format!("devices/virtual/nvme-fabrics/ctl/nvme{controller}/{name}"), &name, spec, true);
    }

    fn block(&self, device: &str, name: &str, spec: &NamespaceSpec<'_>, visible: bool) {
        let (nsid, sectors) = (spec.nsid, spec.size_bytes / 512);
        for (attribute, value) in [
            ("nsid", nsid.to_string()),
            ("uuid", spec.uuid.to_owned()),
            ("wwid", format!("uuid.{}", spec.uuid)),
            ("size", sectors.to_string()),
            ("ro", "0".to_owned()),
            ("diskseq", "6".to_owned()),
            ("queue/logical_block_size", "512".to_owned()),
            ("stat", " 1 0 8 1 0 0 0 0 0 0 1 0 0 0 0 0 0".to_owned()),
            ("inflight", "       0        0".to_owned()),
        ] {
            self.write(&format!("{device}/{attribute}"), &format!("{value}\n"));
        }
        fs::create_dir_all(self.root().join(device).join("holders")).expect("made");
        self.link(&format!("class/block/{name}"), &format!("../../{device}"));
        if visible {
            self.write(&format!("{device}/dev"), &format!("{}\n", spec.dev));
            let uevent = format!("DEVNAME={name}\nDEVTYPE=disk\n");
            self.write(&format!("{device}/uevent"), &uevent);
            self.link(&format!("dev/block/{}", spec.dev), &format!("../../{device}"));
        }
    }

    /// Puts a device-mapper device on block devices.
    pub fn dm(&self, name: &str, dev: &str, uuid: &str, map: &str, over: &[&str]) {
        let device = format!("devices/virtual/block/{name}");
        self.write(&format!("{device}/dev"), &format!("{dev}\n"));
        self.write(&format!("{device}/dm/uuid"), &format!("{uuid}\n"));
        self.write(&format!("{device}/dm/name"), &format!("{map}\n"));
        self.write(&format!("{device}/uevent"), &format!("DEVNAME={name}\n"));
        fs::create_dir_all(self.root().join(&device).join("holders")).expect("made");
        self.link(&format!("class/block/{name}"), &format!("../../{device}"));
        self.link(&format!("dev/block/{dev}"), &format!("../../{device}"));
        for under in over {
            self.link(&format!("class/block/{under}/holders/{name}"), &format!("../../{name}"));
        }
    }

    /// Takes a controller away, with its paths, as the kernel does.
    pub fn remove_controller(&self, number: u32, controller: u32) {
        remove_controller(self.root(), number, controller);
    }

    fn link(&self, link: &str, target: &str) {
        let link = self.root().join(link);
        if fs::symlink_metadata(&link).is_err() {
            symlink(target, &link).expect("linked");
        }
    }
}

/// Takes a controller out of the tree at `root`; for a thread that plays the kernel.
pub fn remove_controller(root: &Path, number: u32, controller: u32) {
    let name = format!("nvme{controller}");
    let device = root.join("devices/virtual/nvme-fabrics/ctl").join(&name);
    let _ = fs::remove_file(root.join(format!("devices/virtual/nvme-subsystem/nvme-subsys{number}/{name}")));
    let _ = fs::remove_file(root.join("class/nvme").join(&name));
    for entry in fs::read_dir(&device).into_iter().flatten().flatten() {
        let _ = fs::remove_file(root.join("class/block").join(entry.file_name()));
    }
    let _ = fs::remove_dir_all(&device);
}
