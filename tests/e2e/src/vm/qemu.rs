//! QEMU on a node: how it is started, and what it has said.
//!
//! In: a node's machine that has the image of `hack/setup qemu-image` at `/image`, and where the volume is published. Out: a
//! [`Vm`] whose monitor answers; its guest runs once it is let. What always holds: QEMU ends with its handle, so that
//! a volume can be detached from its node; errors have the end of what QEMU wrote.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use cleat_rig::{Command, Daemon, Forward, Machine};
use serde_json::json;

use super::guest::{GuestProgram, Said};
use super::qmp::Qmp;

/// QEMU loads and greets within this time on a busy emulated node.
const START: Duration = Duration::from_secs(60);
/// It ends within this time once it has agreed to.
const END: Duration = Duration::from_secs(60);
/// A hundred megabytes of records come out of an emulated node in less.
const READ: Duration = Duration::from_secs(120);
/// Runs it in mounts of its own.
const LAUNCH: &str = include_str!("launch.sh");

/// The image with QEMU in it, which goes into a node as [`crate::world::WorldOptions::node_image`].
///
/// # Errors
/// If it was not made.
pub fn image() -> anyhow::Result<PathBuf> {
    let link = cleat_rig::cache_folder().join("qemu/image");
    let image = std::fs::canonicalize(&link);
    image.with_context(|| {
        format!("no image with QEMU at {}; make it with: hack/setup qemu-image", link.display())
    })
}

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// Its name, of letters, digits and dashes; one of the name on a node.
    pub name: String,
    /// Its memory.
    pub memory_mib: u32,
    /// Where on the node the volume is published.
    pub disk: String,
    /// Disks may come while it runs, as KubeVirt adds them: on a SCSI bus.
    pub takes_disks: bool,
}

impl VmSpec {
    /// One with 64 MiB, which is more than its guest needs.
    #[must_use]
    pub fn new(name: impl Into<String>, disk: impl Into<String>) -> Self {
        Self { name: name.into(), memory_mib: 64, disk: disk.into(), takes_disks: false }
    }

    /// QEMU's arguments. Its guest is halted at first: it waits for a migration, or to be let run.
    #[must_use]
    pub fn arguments(&self, entry: Entry, talk: Talk) -> Vec<String> {
        let memory = self.memory_mib.to_string();
        let monitor = match talk {
            Talk::Files => "unix:/run/qmp,server=on,wait=off".to_owned(),
            Talk::Network { port } => format!("tcp:0.0.0.0:{port},server=on,wait=off"),
        };
        let mut words = vec!["-name", &self.name, "-machine", "q35", "-accel", "tcg", "-cpu", "qemu64"];
        words.extend(["-m", &memory, "-smp", "1", "-nodefaults", "-no-user-config"]);
        words.extend(["-display", "none", "-vga", "none"]);
        words.extend(match talk {
            Talk::Files => &["-serial", "file:/run/serial"][..],
            Talk::Network { .. } => &["-chardev", SERIAL, "-serial", "chardev:serial"],
        });
        words.extend(["-qmp", &monitor, "-blockdev", BLOCKDEV, "-device", DEVICE, "-S"]);
        if self.takes_disks {
            words.extend(["-device", "virtio-scsi-pci,id=scsi0"]);
        }
        if entry == Entry::Incoming {
            words.extend(["-incoming", "defer"]);
        }
        words.into_iter().map(str::to_owned).collect()
    }
}

/// As KubeVirt has it for a volume of mode Block and `cache: none`.
const BLOCKDEV: &str = "driver=host_device,node-name=disk0,filename=/dev/disk0,cache.direct=on,\
                        cache.no-flush=off,aio=native,discard=unmap";
/// The BIOS boots from disks with sectors of 512 bytes alone, whatever the target's blocks are.
const DEVICE: &str = "virtio-blk-pci,drive=disk0,bootindex=1,write-cache=on,werror=stop,rerror=stop,\
                      share-rw=off,logical_block_size=512";

/// Room for as many dots as a guest says in hours; [`super::in_pods`] reads them.
const SERIAL: &str = "ringbuf,id=serial,size=65536";

/// How one speaks with a QEMU, and hears of its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Talk {
    /// By files in its `/run`, as libvirt does.
    Files,
    /// Where nobody has its files: by its monitor alone.
    Network {
        /// At which the monitor listens.
        port: u16,
    },
}

/// How a virtual machine comes to be on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// It boots here.
    Boot,
    /// It comes from another node.
    Incoming,
}

/// A QEMU that runs on a node.
#[derive(Debug)]
pub struct Vm {
    name: String,
    machine: Arc<Machine>,
    daemon: Daemon,
    qmp: Qmp,
    // Held for as long as the monitor is spoken with.
    _forward: Forward,
    ended: bool,
}

impl Vm {
    /// Starts QEMU; blocks until its monitor answers.
    ///
    /// # Errors
    /// If the node has no image, or QEMU does not come up: with what it wrote.
    pub fn start(machine: &Arc<Machine>, spec: &VmSpec, entry: Entry) -> anyhow::Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        ensure!(!spec.name.is_empty() && spec.name.chars().all(plain), "{:?} is no name of a VM", spec.name);
        let label = format!("{} on {}", spec.name, machine.name());
        let program = Command::new("unshare")
            .args(["-m", "sh", "-c", LAUNCH, &spec.name, &spec.disk])
            .args(spec.arguments(entry, Talk::Files));
        let log = format!("/run/vm-{}.log", spec.name);
        let daemon = machine.daemon(&program, &log).with_context(|| format!("start {label}"))?;
        let connected = (|| {
            let forward = machine.forward_unix(&format!("/run/vm/{}/qmp", spec.name))?;
            let qmp = Qmp::connect(label.clone(), forward.path(), START)?;
            anyhow::Ok((forward, qmp))
        })();
        let (forward, qmp) = connected.map_err(|error| {
            // It may have ended by itself, which its log explains.
            let _ = daemon.kill(9);
            error.context(format!("{label} wrote: {}", end_of(&daemon)))
        })?;
        let name = spec.name.clone();
        Ok(Self { name, machine: Arc::clone(machine), daemon, qmp, _forward: forward, ended: false })
    }

    /// Its monitor.
    #[must_use]
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// The node's machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// If QEMU refuses.
    pub fn run(&self) -> anyhow::Result<()> {
        self.qmp.execute("cont", json!({})).map(drop)
    }

    /// Halts the guest.
    ///
    /// # Errors
    /// If QEMU refuses.
    pub fn halt(&self) -> anyhow::Result<()> {
        self.qmp.execute("stop", json!({})).map(drop)
    }

    /// Adds a disk, whose number is not 0, which is the one it began with. It has the same number on the node that the
    /// machine moves to.
    ///
    /// # Errors
    /// If the volume is not published there, or QEMU refuses.
    pub fn plug(&self, number: u32, published: &str) -> anyhow::Result<()> {
        // What QEMU sees as its /run is a folder of the node: a device of the volume is made there, as of the first disk.
        let node = format!("/run/vm/{}/disk{number}", self.name);
        self.machine
            .sh(&format!("set -- $(stat -L -c '%t %T' {published}) && mknod {node} b $((0x$1)) $((0x$2))"))?;
        let (disk, id) = (format!("disk{number}"), plugged(number));
        let disk_of_host = json!({
            "driver": "host_device", "node-name": disk, "filename": format!("/run/{disk}"),
            "cache": { "direct": true, "no-flush": false }, "aio": "native", "discard": "unmap",
        });
        self.qmp.execute("blockdev-add", disk_of_host)?;
        let disk_of_guest = json!({
            "driver": "scsi-hd", "id": id, "drive": disk, "bus": "scsi0.0", "channel": 0, "scsi-id": number, "lun": 0,
        });
        self.qmp.execute("device_add", disk_of_guest).map(drop)
    }

    /// Has QEMU write 4 KiB of this byte to a disk that was added, in the guest's place, which knows of the first one alone.
    ///
    /// # Errors
    /// If QEMU does not take the command; whether the write was done the disk shows.
    pub fn write_block(&self, number: u32, block: u64, byte: u8) -> anyhow::Result<()> {
        let line = format!("qemu-io -d {} \"write -P {byte:#x} {} 4096\"", plugged(number), block * 4096);
        let said = self.qmp.execute("human-monitor-command", json!({ "command-line": line }))?;
        let said = said.as_str().unwrap_or_default().trim();
        ensure!(!said.starts_with("Error"), "{line}: {said}");
        Ok(())
    }

    /// What the guest has said since this QEMU began.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn said(&self) -> anyhow::Result<Said> {
        let serial = self.machine.download(&format!("/run/vm/{}/serial", self.name))?;
        Ok(Said::of(&serial))
    }

    /// What QEMU has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        end_of(&self.daemon)
    }

    /// Ends QEMU and waits until its process is gone, and with it all that it has open.
    ///
    /// # Errors
    /// If it does not end.
    pub fn quit(mut self) -> anyhow::Result<()> {
        self.qmp.quit()?;
        self.daemon.wait(END).with_context(|| format!("it wrote: {}", self.log()))?;
        self.ended = true;
        Ok(())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if !self.ended {
            // The machine may be gone, or QEMU may.
            let _ = self.daemon.kill(9);
        }
    }
}

fn plugged(number: u32) -> String {
    format!("plugged{number}")
}

/// The last lines that it wrote.
fn end_of(daemon: &Daemon) -> String {
    let text = daemon.log().unwrap_or_else(|error| error.to_string());
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { "nothing".to_owned() } else { lines[lines.len().saturating_sub(5)..].join(" | ") }
}

/// Writes the guest to the beginning of a volume that is published on a node; nobody else may use it then.
///
/// # Errors
/// If the device does not take it.
pub fn install(machine: &Machine, disk: &str, program: &GuestProgram) -> anyhow::Result<()> {
    machine.upload("/run/vm-boot", &program.first_block(), 0o600)?;
    machine.sh(&format!("dd if=/run/vm-boot of={disk} bs=4096 count=1 oflag=direct conv=notrunc 2>&1"))?;
    Ok(())
}

/// Reads so many records and one more from a volume that is published on a node, past every cache.
///
/// # Errors
/// If the device does not give them.
pub fn read_records(
    machine: &Machine,
    disk: &str,
    program: &GuestProgram,
    records: u64,
) -> anyhow::Result<Vec<u8>> {
    let first = program.first_byte / 4096;
    let place = [format!("skip={first}"), format!("count={}", records + 1)];
    let read = Command::new("dd")
        .args([format!("if={disk}"), "bs=4096".to_owned(), "iflag=direct".to_owned()])
        .args(place)
        .deadline(READ);
    let output = machine.exec(&read)?;
    ensure!(output.success(), "read {disk} on {}: {}", machine.name(), output.stderr_text().trim());
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_is_opened_as_kubevirt_opens_it() {
        let line = VmSpec::new("vm-1", "/pods/disk").arguments(Entry::Boot, Talk::Files).join(" ");
        for wanted in [
            "cache.direct=on",
            "aio=native",
            "driver=host_device",
            "werror=stop",
            "-qmp unix:/run/qmp,",
            " -S",
        ] {
            assert!(line.contains(wanted), "{wanted} is not in {line}");
        }
        assert!(!line.contains("-incoming") && !line.contains("scsi"), "{line}");
        // A node of the volume is made in the VM's own /dev: the kubelet's path is nothing to QEMU.
        assert!(!line.contains("/pods/disk") && line.contains("filename=/dev/disk0"), "{line}");
    }

    #[test]
    fn where_nobody_has_its_files_the_monitor_says_it_all() {
        let words = VmSpec::new("vm-1", "/disk").arguments(Entry::Boot, Talk::Network { port: 4444 });
        let line = words.join(" ");
        let says =
            "-chardev ringbuf,id=serial,size=65536 -serial chardev:serial -qmp tcp:0.0.0.0:4444,server=on";
        assert!(line.contains(says) && !line.contains("/run/"), "{line}");
    }

    #[test]
    fn disks_that_come_later_find_a_bus() {
        let spec = VmSpec { takes_disks: true, ..VmSpec::new("vm-1", "/pods/disk") };
        assert!(
            spec.arguments(Entry::Boot, Talk::Files).join(" ").contains("-device virtio-scsi-pci,id=scsi0")
        );
    }

    #[test]
    fn the_target_node_waits_for_the_migration() {
        let words = VmSpec::new("vm-1", "/disk").arguments(Entry::Incoming, Talk::Files);
        assert_eq!(words[words.len() - 3..], ["-S", "-incoming", "defer"]);
    }
}
