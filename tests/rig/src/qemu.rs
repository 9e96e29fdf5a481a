//! QEMU's command line for a machine, and which accelerator it runs on.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::host;
use crate::net::Network;

/// How a machine's instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// In software: slower by an order of magnitude, and works everywhere.
    Emulation,
    /// By the processor. There are hosts where /dev/kvm is there and machines hang: used only where a probe has
    /// booted one before.
    Kvm,
}

impl Accelerator {
    /// The one to use: `$CLEAT_ACCELERATOR` (`kvm` or `tcg`) if it is set; else KVM if `hack/rig probe` has booted
    /// a machine with it since this host was started; else emulation.
    #[must_use]
    pub fn choose() -> Accelerator {
        match std::env::var("CLEAT_ACCELERATOR").as_deref() {
            Ok("kvm") => Accelerator::Kvm,
            Ok("tcg") => Accelerator::Emulation,
            _ if probe_file().is_some_and(|file| file.is_file()) => Accelerator::Kvm,
            _ => Accelerator::Emulation,
        }
    }

    /// Remembers whether a machine was seen to boot with KVM, until the host is started anew.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub fn remember_kvm(works: bool) -> std::io::Result<()> {
        let Some(file) = probe_file() else { return Ok(()) };
        if works {
            std::fs::create_dir_all(host::cache_folder())?;
            std::fs::write(file, "")
        } else if file.is_file() {
            std::fs::remove_file(file)
        } else {
            Ok(())
        }
    }

    fn words(self) -> [&'static str; 4] {
        match self {
            // cmpxchg16b of QEMU 7.2's emulation spoils the flags register: kernels oops in early boot.
            Accelerator::Emulation => ["-accel", "tcg,thread=multi", "-cpu", "max,-cx16"],
            Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
        }
    }
}

/// Named by the host's boot: another kernel or another host is probed again.
fn probe_file() -> Option<PathBuf> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(host::cache_folder().join(format!("kvm-works-{}", boot.trim())))
}

/// Everything that QEMU is told.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) name: String,
    pub(crate) number: u8,
    pub(crate) accelerator: Accelerator,
    pub(crate) cpus: u8,
    pub(crate) memory_mib: u32,
    pub(crate) vmlinuz: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) console: PathBuf,
    pub(crate) monitor: PathBuf,
    pub(crate) disk: Option<PathBuf>,
    pub(crate) image: Option<PathBuf>,
    pub(crate) machine_id: Option<String>,
    pub(crate) kernel_arguments: Vec<String>,
}

impl Launch {
    /// QEMU's arguments.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = self.accelerator.words().map(OsString::from).into();
        let mut push = |text: &str| words.push(text.into());
        for word in ["-nodefaults", "-no-user-config", "-display", "none", "-name", &self.name] {
            push(word);
        }
        push("-smp");
        push(&self.cpus.to_string());
        push("-m");
        push(&self.memory_mib.to_string());
        // What nvme-cli and others take for the host's identity.
        push("-uuid");
        push(&format!("636c6561-7400-4000-8000-0000000000{:02x}", self.number));
        push("-device");
        push("virtio-rng-pci");
        for network in Network::ALL {
            let (id, tap) = (network.interface(), network.tap(self.number));
            push("-netdev");
            push(&format!("tap,id={id},ifname={tap},script=no,downscript=no"));
            push("-device");
            push(&format!("virtio-net-pci,netdev={id},romfile=,mac={}", network.mac(self.number)));
        }
        if let Some(disk) = &self.disk {
            // The disk is thrown away with the run: what the host has in memory is safe enough, also across a reset.
            push("-drive");
            push(&format!("file={},if=virtio,format=raw,cache=unsafe", escaped(disk)));
        }
        if let Some(image) = &self.image {
            push("-drive");
            push(&format!("file={},if=virtio,format=raw,readonly=on", escaped(image)));
        }
        push("-chardev");
        push(&format!("file,id=console,append=on,path={}", escaped(&self.console)));
        push("-serial");
        push("chardev:console");
        push("-qmp");
        push(&format!("unix:{},server=on,wait=off", escaped(&self.monitor)));
        push("-append");
        push(&self.command_line());
        words.push("-kernel".into());
        words.push(self.vmlinuz.clone().into());
        words.push("-initrd".into());
        words.push(self.initramfs.clone().into());
        words
    }

    fn command_line(&self) -> String {
        let mut words = vec![
            "console=ttyS0".to_owned(),
            "quiet loglevel=4".to_owned(),
            // A panic stays on the console for the rig to see, instead of a loop of reboots.
            "panic=0 oops=panic".to_owned(),
            // Names by order of the slots, whatever the kernel's naming policy.
            "net.ifnames=0".to_owned(),
            format!("cleat.name={} cleat.number={}", self.name, self.number),
        ];
        words.extend(self.disk.as_ref().map(|_| "cleat.data=1".to_owned()));
        // Disks are named in the order of the drives above.
        let image = if self.disk.is_some() { "vdb" } else { "vda" };
        words.extend(self.image.as_ref().map(|_| format!("cleat.image={image}")));
        words.extend(self.machine_id.as_ref().map(|id| format!("cleat.machine_id={id}")));
        words.extend(self.kernel_arguments.iter().cloned());
        words.join(" ")
    }
}

/// A comma in a path would begin the next option.
fn escaped(path: &std::path::Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch() -> Launch {
        Launch {
            name: "node-a".into(),
            number: 11,
            accelerator: Accelerator::Emulation,
            cpus: 2,
            memory_mib: 512,
            vmlinuz: "/k/vmlinuz".into(),
            initramfs: "/k/init.cpio".into(),
            console: "/run/a,b/console".into(),
            monitor: "/run/qmp".into(),
            disk: None,
            image: None,
            machine_id: None,
            kernel_arguments: vec!["nvme_core.multipath=N".into()],
        }
    }

    fn line(launch: &Launch) -> String {
        launch.arguments().iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn emulation_avoids_the_instruction_that_crashes_guests() {
        assert!(line(&launch()).starts_with("-accel tcg,thread=multi -cpu max,-cx16 "));
    }

    #[test]
    fn interfaces_come_in_the_documented_order_with_their_own_addresses() {
        let line = line(&launch());
        let order: Vec<usize> = ["tap-11-3", "tap-11-1", "tap-11-2", "tap-11-9"]
            .iter()
            .filter_map(|tap| line.find(tap))
            .collect();
        assert_eq!(order.len(), 4, "{line}");
        assert!(order.is_sorted(), "{line}");
        assert!(line.contains("netdev=eth1,romfile=,mac=52:54:00:77:01:0b"), "{line}");
    }

    #[test]
    fn the_command_line_reaches_the_kernel_and_commas_are_no_options() {
        let mut with_disk = launch();
        with_disk.disk = Some("/run/disk".into());
        with_disk.machine_id = Some("0123".into());
        let line = line(&with_disk);
        assert!(line.contains("cleat.data=1 cleat.machine_id=0123 nvme_core.multipath=N"), "{line}");
        assert!(line.contains("path=/run/a,,b/console"), "{line}");
        assert!(!launch().command_line().contains("cleat.data"));
    }

    #[test]
    fn an_image_comes_after_the_disk_and_is_never_written_to() {
        let mut with_image = launch();
        with_image.image = Some("/cache/a.img".into());
        assert!(line(&with_image).contains("cleat.image=vda"));
        with_image.disk = Some("/run/disk".into());
        let line = line(&with_image);
        assert!(line.contains("cleat.image=vdb"), "{line}");
        assert!(line.contains("file=/cache/a.img,if=virtio,format=raw,readonly=on"), "{line}");
        assert!(line.find("/run/disk") < line.find("/cache/a.img"), "{line}");
        assert!(!launch().command_line().contains("cleat.image"));
    }

    #[test]
    fn a_reset_restarts_the_machine_and_a_panic_does_not() {
        let line = line(&launch());
        assert!(!line.contains("-no-reboot") && line.contains("panic=0"), "{line}");
    }
}
