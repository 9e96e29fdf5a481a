//! Starting a machine, knowing when it is up, and starting it again.
//!
//! A machine is up when its server has answered, and not before. What ends the wait early: QEMU's end, or a word of
//! despair on the console.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::spec::{BOOT, BOOT_ATTEMPTS};
use super::{Machine, MachineSpec, locked};
use crate::client::ANSWER;
use crate::error::{Error, Result};
use crate::qemu::{Accelerator, Launch};
use crate::run_dir::RunDir;
use crate::{host, net, wait};

/// Pause between two looks at a machine that is coming up.
const LOOK: Duration = Duration::from_millis(50);
/// A connection attempt to a machine that is not up yet is lost: a fresh one is sooner than the kernel's second
/// try after 1 s.
const CONNECT: Duration = Duration::from_millis(400);

impl Machine {
    pub(crate) fn boot(run: &RunDir, spec: &MachineSpec) -> Result<Machine> {
        spec.check()?;
        let mut machine = Machine::attached(run, &spec.name, spec.number);
        net::make_taps(spec.number)?;
        let launch = machine.launch(spec)?;
        loop {
            *locked(&machine.qemu) = Some(machine.start_qemu(&launch)?);
            match machine.wait_ready(None, spec.boot_limit) {
                Ok(()) => return Ok(machine),
                Err(error) if machine.boots == spec.boot_attempts => return Err(error),
                Err(_) => {
                    machine.end_qemu();
                    // The console of the failed attempt stays for whoever wonders why it took so long.
                    let kept = machine.file(&format!("console.failed-{}", machine.boots));
                    std::fs::rename(&launch.console, &kept)
                        .map_err(Error::io("cannot keep", &launch.console))?;
                    machine.boots += 1;
                }
            }
        }
    }

    fn launch(&self, spec: &MachineSpec) -> Result<Launch> {
        let disk = spec.disk_mib.map(|size| self.make_disk(size)).transpose()?;
        Ok(Launch {
            name: spec.name.clone(),
            number: spec.number,
            accelerator: spec.accelerator.unwrap_or_else(Accelerator::choose),
            cpus: spec.cpus,
            memory_mib: spec.memory_mib,
            vmlinuz: spec.kernel.vmlinuz(),
            initramfs: spec.initramfs.path().to_owned(),
            console: self.console(),
            monitor: self.file("qmp"),
            disk,
            image: spec.image.clone(),
            machine_id: spec.machine_id.clone(),
            kernel_arguments: spec.kernel_arguments.clone(),
        })
    }

    fn make_disk(&self, size_mib: u32) -> Result<PathBuf> {
        let path = self.file("disk");
        let file = std::fs::File::create(&path).map_err(Error::io("cannot make", &path))?;
        file.set_len(u64::from(size_mib) << 20).map_err(Error::io("cannot size", &path))?;
        let path_text = path.to_string_lossy();
        host::run("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=1,nodiscard", "-m", "0", &path_text])?;
        Ok(path)
    }

    fn start_qemu(&self, launch: &Launch) -> Result<Child> {
        use std::os::unix::process::CommandExt;
        let log = self.file("qemu");
        let file = std::fs::File::create(&log).map_err(Error::io("cannot write", &log))?;
        let errors = file.try_clone().map_err(Error::io("cannot write", &log))?;
        std::process::Command::new(host::tool("qemu-system-x86_64")?)
            .args(launch.arguments())
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            // A terminal's interrupt is for the test, which decides what becomes of its machines.
            .process_group(0)
            .spawn()
            .map_err(|error| Error::HostCommand {
                command: "qemu-system-x86_64".to_owned(),
                outcome: format!("cannot start: {error}"),
                stderr: String::new(),
            })
    }

    pub(super) fn end_qemu(&self) {
        if let Some(mut child) = locked(&self.qemu).take() {
            // It is our child and not reaped yet: both can fail only if it is gone.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Leaves QEMU to the run instead of ending it with this handle.
    pub(crate) fn release(&self) {
        drop(locked(&self.qemu).take());
    }

    /// Waits until the guest's server answers under another boot id than `before`.
    fn wait_ready(&self, before: Option<&str>, limit: Duration) -> Result<()> {
        let what = format!("machine {}: coming up", self.name());
        let began = Instant::now();
        let console_from = if before.is_some() { self.console_length() } else { 0 };
        let answered = wait::until(&what, limit, LOOK, || {
            if let Some(status) = self.qemu_ended() {
                return Err(self.boot_error(format!("QEMU ended ({status}): {}", self.tail("qemu"))));
            }
            if let Some(line) = self.console_trouble(console_from) {
                return Err(self.boot_error(format!("its kernel says: {line}")));
            }
            // Not up yet and cut off look the same; the deadline tells them apart from never.
            Ok(self.guest.ping(CONNECT, ANSWER).ok().filter(|id| Some(id.as_str()) != before))
        });
        match answered {
            Ok(_) => Ok(()),
            Err(Error::Deadline { .. }) => {
                Err(self.boot_error(format!("no answer within {:?}", began.elapsed())))
            }
            Err(error) => Err(error),
        }
    }

    fn boot_error(&self, what: String) -> Error {
        Error::Boot { machine: self.name().to_owned(), what, console: self.tail("console") }
    }

    fn qemu_ended(&self) -> Option<std::process::ExitStatus> {
        locked(&self.qemu).as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    fn console_length(&self) -> usize {
        std::fs::metadata(self.console()).map_or(0, |m| usize::try_from(m.len()).unwrap_or(usize::MAX))
    }

    fn console_trouble(&self, from: usize) -> Option<String> {
        let bytes = std::fs::read(self.console()).ok()?;
        let text = String::from_utf8_lossy(bytes.get(from..)?).into_owned();
        let bad = ["Kernel panic", "BUG: ", "Oops: ", "Unable to mount root"];
        text.lines().find(|line| bad.iter().any(|b| line.contains(b))).map(|line| line.trim().to_owned())
    }

    fn tail(&self, file: &str) -> String {
        let bytes = std::fs::read(self.file(file)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    /// Pulls the reset line: nothing is flushed, all but `/data` is as at the first boot. Returns when it is up.
    ///
    /// # Errors
    /// If QEMU does not obey, or the machine does not come up.
    pub fn reset(&self) -> Result<()> {
        let before = self.boot_id()?;
        self.reset_from(&before)
    }

    /// [`Machine::reset`] of a machine that may not be able to answer; `before` is the boot id that it had.
    ///
    /// # Errors
    /// As [`Machine::reset`].
    pub fn reset_from(&self, before: &str) -> Result<()> {
        self.monitor("system_reset")?;
        // One that was frozen would stay so.
        self.monitor("cont")?;
        // An emulated kernel that oopses in early boot is no finding of the test: again, as at the first boot.
        for _ in 1..BOOT_ATTEMPTS {
            match self.wait_ready(Some(before), BOOT) {
                Err(Error::Boot { .. }) if self.qemu_ended().is_none() => self.monitor("system_reset")?,
                outcome => return outcome,
            };
        }
        self.wait_ready(Some(before), BOOT)
    }
}
