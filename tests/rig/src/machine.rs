//! A machine: boot it, run things in it, break it.
//!
//! What always holds: a [`Machine`] that exists has answered once after its boot; every operation has a deadline;
//! every error names the machine. A machine ends with its handle, or at the latest with its run.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::client::{ANSWER, Guest, Process};
use crate::command::{Command, Output};
use crate::error::{Error, Result};
use crate::forward::Forward;
use crate::initramfs::Initramfs;
use crate::kernel::KernelImage;
use crate::net::{self, Network};
use crate::qemu::{Accelerator, Launch};
use crate::run_dir::RunDir;
use crate::wire::{Exit, Reply, Request, Target};
use crate::{host, qmp, wait};

/// A boot takes 3 s on an idle host; several at once on a busy one take their time.
const BOOT: Duration = Duration::from_secs(90);
/// Emulated kernels oops now and then in early boot: such a machine is started again.
const BOOT_ATTEMPTS: u32 = 3;
/// Pause between two looks at a machine that is coming up.
const LOOK: Duration = Duration::from_millis(50);
/// Files may be large and machines slow.
const TRANSFER: Duration = Duration::from_secs(120);

/// What a machine is to be.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    pub(crate) name: String,
    pub(crate) number: u8,
    pub(crate) kernel: KernelImage,
    pub(crate) initramfs: Initramfs,
    cpus: u8,
    memory_mib: u32,
    disk_mib: Option<u32>,
    machine_id: Option<String>,
    kernel_arguments: Vec<String>,
    accelerator: Option<Accelerator>,
}

impl MachineSpec {
    /// A machine with one CPU and 512 MiB. `number`, 1 to 253 and unique in a run, is the last byte of all its
    /// addresses.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        number: u8,
        kernel: &KernelImage,
        initramfs: &Initramfs,
    ) -> MachineSpec {
        MachineSpec {
            name: name.into(),
            number,
            kernel: kernel.clone(),
            initramfs: initramfs.clone(),
            cpus: 1,
            memory_mib: 512,
            disk_mib: None,
            machine_id: None,
            kernel_arguments: Vec::new(),
            accelerator: None,
        }
    }

    /// Number of CPUs.
    #[must_use]
    pub fn cpus(mut self, count: u8) -> MachineSpec {
        self.cpus = count;
        self
    }

    /// Memory in MiB. Everything outside `/data` lives in it.
    #[must_use]
    pub fn memory_mib(mut self, size: u32) -> MachineSpec {
        self.memory_mib = size;
        self
    }

    /// A disk of this size in MiB, ext4, mounted at `/data`: what is synced there survives a reset.
    #[must_use]
    pub fn disk_mib(mut self, size: u32) -> MachineSpec {
        self.disk_mib = Some(size);
        self
    }

    /// Content of `/etc/machine-id`, 32 hexadecimal digits.
    #[must_use]
    pub fn machine_id(mut self, id: impl Into<String>) -> MachineSpec {
        self.machine_id = Some(id.into());
        self
    }

    /// Adds a word to the kernel's command line, such as `nvme_core.multipath=N`.
    #[must_use]
    pub fn kernel_argument(mut self, word: impl AsRef<str>) -> MachineSpec {
        self.kernel_arguments.push(word.as_ref().to_owned());
        self
    }

    /// Runs it on this accelerator instead of [`Accelerator::choose`]'s.
    #[must_use]
    pub fn accelerator(mut self, accelerator: Accelerator) -> MachineSpec {
        self.accelerator = Some(accelerator);
        self
    }

    fn check(&self) -> Result<()> {
        let error = |what: String| Error::Boot { machine: self.name.clone(), what, console: String::new() };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if self.name.is_empty() || self.name.len() > 32 || !self.name.chars().all(plain) {
            return Err(error("a name is 1 to 32 letters, digits and dashes".to_owned()));
        }
        if !(1..=253).contains(&self.number) {
            return Err(error(format!("its number is {}, not 1 to 253", self.number)));
        }
        if self.initramfs.release() != self.kernel.release() {
            let (theirs, ours) = (self.initramfs.release(), self.kernel.release());
            return Err(error(format!("its initramfs is for {theirs}, its kernel is {ours}")));
        }
        Ok(())
    }
}

/// A machine that is up. Can be shared between threads.
#[derive(Debug)]
pub struct Machine {
    guest: Guest,
    run: RunDir,
    /// QEMU, if this process started it.
    qemu: Mutex<Option<Child>>,
    /// QEMU's monitor takes one client at a time.
    monitor: Mutex<()>,
    forwards: AtomicU32,
    boots: u32,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    /// A machine of a run that another process began.
    pub(crate) fn attached(run: &RunDir, name: &str, number: u8) -> Machine {
        let guest = Guest { name: name.to_owned(), number };
        Machine {
            guest,
            run: run.clone(),
            qemu: Mutex::new(None),
            monitor: Mutex::new(()),
            forwards: AtomicU32::new(0),
            boots: 1,
        }
    }

    pub(crate) fn boot(run: &RunDir, spec: &MachineSpec) -> Result<Machine> {
        spec.check()?;
        let mut machine = Machine::attached(run, &spec.name, spec.number);
        net::make_taps(spec.number)?;
        let launch = machine.launch(spec)?;
        loop {
            *locked(&machine.qemu) = Some(machine.start_qemu(&launch)?);
            match machine.wait_ready(None, BOOT) {
                Ok(()) => return Ok(machine),
                Err(error) if machine.boots == BOOT_ATTEMPTS => return Err(error),
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

    fn end_qemu(&self) {
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
            Ok(self.guest.ping(Duration::from_secs(2)).ok().filter(|id| Some(id.as_str()) != before))
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

    fn file(&self, kind: &str) -> PathBuf {
        self.run.path().join(format!("{}.{kind}", self.guest.name))
    }

    // ---- who it is ----

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.guest.name
    }

    /// The last byte of its addresses.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.guest.number
    }

    /// How often it was started until it came up, at most 3: more than 1 is worth a line in a test's output. The
    /// consoles of the other attempts are in the run's folder.
    #[must_use]
    pub fn boots(&self) -> u32 {
        self.boots
    }

    /// Its address in a network.
    #[must_use]
    pub fn address(&self, network: Network) -> std::net::Ipv4Addr {
        network.address(self.guest.number)
    }

    /// The file that its serial console is written to.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.file("console")
    }

    /// The kernel's boot id: another one after every reset.
    ///
    /// # Errors
    /// If it does not answer within 20 s.
    pub fn boot_id(&self) -> Result<String> {
        self.guest.ping(ANSWER)
    }

    // ---- running things in it ----

    /// Runs a command to its end. One that fails is no error here: see [`Machine::run`].
    ///
    /// # Errors
    /// If the machine does not answer, or the command cannot be started.
    pub fn exec(&self, command: &Command) -> Result<Output> {
        self.guest.exec(command)
    }

    /// Runs a command that must succeed; its standard output, without white space at the end.
    ///
    /// # Errors
    /// [`Error::GuestCommand`] with what it wrote if it ends with anything but 0.
    pub fn run(&self, command: &Command) -> Result<String> {
        let output = self.exec(command)?;
        if output.success() {
            return Ok(output.stdout_text().trim_end().to_owned());
        }
        let errors = output.stderr_text();
        Err(Error::GuestCommand {
            machine: self.name().to_owned(),
            command: command.to_string(),
            outcome: output.exit.to_string(),
            output: if errors.trim().is_empty() { output.stdout_text() } else { errors },
        })
    }

    /// [`Machine::run`] of a shell script.
    ///
    /// # Errors
    /// As [`Machine::run`].
    pub fn sh(&self, script: &str) -> Result<String> {
        self.run(&Command::shell(script))
    }

    /// Starts a command and follows it live. It is killed when the handle is dropped.
    ///
    /// # Errors
    /// If the machine does not answer, or the command cannot be started.
    pub fn spawn(&self, command: &Command) -> Result<Process> {
        let process = self.guest.spawn(command)?;
        if !command.stdin.is_empty() {
            process.input()?.write(&command.stdin)?;
        }
        Ok(process)
    }

    /// Starts a command that runs on by itself; its output is appended to the file `log` in the machine.
    ///
    /// # Errors
    /// If the machine does not answer, or the command cannot be started.
    pub fn daemon(&self, command: &Command, log: &str) -> Result<Daemon> {
        let label = command.to_string();
        let request = Request::Daemon { run: command.to_wire(), log: log.to_owned() };
        match self.guest.ask(&label, &request, ANSWER)? {
            (_, Reply::Started { pid }) => {
                Ok(Daemon { guest: self.guest.clone(), pid, label, log: log.to_owned() })
            }
            (_, other) => Err(self.unexpected(&label, &other)),
        }
    }

    /// Sends a signal to a process of the machine.
    ///
    /// # Errors
    /// If there is no such process, or the machine does not answer.
    pub fn kill(&self, pid: u32, signal: i32) -> Result<()> {
        kill(&self.guest, pid, signal)
    }

    /// Writes a file in the machine, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written, or the machine does not answer.
    pub fn upload(&self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        self.guest.put(path, mode, content, TRANSFER)
    }

    /// Reads a file of the machine; from /proc and /sys, too.
    ///
    /// # Errors
    /// If it cannot be read, or the machine does not answer.
    pub fn download(&self, path: &str) -> Result<Vec<u8>> {
        self.guest.get(path, TRANSFER)
    }

    /// A Unix socket on the host whose connections lead to one in the machine.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn forward_unix(&self, path_in_machine: &str) -> Result<Forward> {
        self.forward(Target::Unix(path_in_machine.to_owned()))
    }

    /// A Unix socket on the host whose connections lead to a port on the machine's loopback. (Ports on its other
    /// addresses are reached directly: see [`Machine::address`].)
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn forward_tcp(&self, port: u16) -> Result<Forward> {
        self.forward(Target::Tcp(port))
    }

    fn forward(&self, target: Target) -> Result<Forward> {
        let number = self.forwards.fetch_add(1, Ordering::Relaxed);
        let path = self.file(&format!("{}-{number}.sock", std::process::id()));
        Forward::begin(self.guest.clone(), path, target)
    }

    // ---- breaking it ----

    /// Cuts it off one network: packets are lost both ways, and its interface stays up.
    ///
    /// # Errors
    /// If the host's `ip` fails.
    pub fn cut_path(&self, network: Network) -> Result<()> {
        net::set_ports(self.number(), &[network], false)
    }

    /// Undoes [`Machine::cut_path`].
    ///
    /// # Errors
    /// If the host's `ip` fails.
    pub fn restore_path(&self, network: Network) -> Result<()> {
        net::set_ports(self.number(), &[network], true)
    }

    /// Cuts it off storage and management at once. It runs on, and the rig still reaches it.
    ///
    /// # Errors
    /// If the host's `ip` fails.
    pub fn cut_all(&self) -> Result<()> {
        net::set_ports(self.number(), &Network::CUTTABLE, false)
    }

    /// Undoes [`Machine::cut_all`].
    ///
    /// # Errors
    /// If the host's `ip` fails.
    pub fn restore_all(&self) -> Result<()> {
        net::set_ports(self.number(), &Network::CUTTABLE, true)
    }

    /// Slows what the machine *sends* on a network, by its own kernel's netem (hosts often lack it).
    ///
    /// # Errors
    /// If `tc` fails in the machine.
    pub fn slow_path(&self, network: Network, link: &SlowLink) -> Result<()> {
        self.sh("modprobe sch_netem")?;
        let words = ["qdisc", "replace", "dev", network.interface(), "root", "netem"];
        self.run(&Command::new("tc").args(words).args(link.words())).map(drop)
    }

    /// Undoes [`Machine::slow_path`].
    ///
    /// # Errors
    /// If the path was not slow, or `tc` fails in the machine.
    pub fn quicken_path(&self, network: Network) -> Result<()> {
        self.run(&Command::new("tc").args(["qdisc", "del", "dev", network.interface(), "root"])).map(drop)
    }

    /// Stops all its CPUs at once, as a hypervisor may: it does not notice.
    ///
    /// # Errors
    /// If QEMU does not obey.
    pub fn freeze(&self) -> Result<()> {
        self.monitor("stop").map(drop)
    }

    /// Undoes [`Machine::freeze`].
    ///
    /// # Errors
    /// If QEMU does not obey.
    pub fn resume(&self) -> Result<()> {
        self.monitor("cont").map(drop)
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
        // An emulated kernel that oopses in early boot is no finding of the test: again, as at the first boot.
        for _ in 1..BOOT_ATTEMPTS {
            match self.wait_ready(Some(before), BOOT) {
                Err(Error::Boot { .. }) if self.qemu_ended().is_none() => self.monitor("system_reset")?,
                outcome => return outcome,
            };
        }
        self.wait_ready(Some(before), BOOT)
    }

    /// Pulls the plug for good: QEMU is killed. Only for a machine that this process booted.
    ///
    /// # Errors
    /// [`Error::NoRun`] for a machine of another process.
    pub fn power_off(&self) -> Result<()> {
        if locked(&self.qemu).is_none() {
            return Err(Error::NoRun {
                what: format!("machine {} is not this process's to power off", self.name()),
            });
        }
        self.end_qemu();
        Ok(())
    }

    fn monitor(&self, command: &str) -> Result<serde_json::Value> {
        let _one_at_a_time = locked(&self.monitor);
        qmp::execute(self.name(), &self.file("qmp"), command)
    }

    // ---- afterwards ----

    /// Copies its console, its kernel's log and the files named into `folder`; what is there to be had. Answers
    /// with what could not be had.
    pub fn collect_logs(&self, folder: &Path, files: &[&str]) -> Vec<Error> {
        let mut missing = Vec::new();
        let mut keep = |name: String, content: Result<Vec<u8>>| {
            let path = folder.join(format!("{}.{name}", self.name()));
            let written = content
                .and_then(|bytes| std::fs::write(&path, bytes).map_err(Error::io("cannot write", &path)));
            missing.extend(written.err());
        };
        let console = self.console();
        if console.parent() != Some(folder) {
            keep("console".to_owned(), std::fs::read(&console).map_err(Error::io("cannot read", &console)));
        }
        let dmesg = Command::new("dmesg").deadline(Duration::from_secs(10));
        keep("dmesg".to_owned(), self.exec(&dmesg).map(|output| output.stdout));
        for file in files {
            keep(
                file.trim_start_matches('/').replace('/', "-"),
                self.guest.get(file, Duration::from_secs(20)),
            );
        }
        missing
    }

    fn unexpected(&self, request: &str, reply: &Reply) -> Error {
        let what = format!("unexpected answer {reply:?}");
        Error::Guest { machine: self.name().to_owned(), request: request.to_owned(), what }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if locked(&self.qemu).is_some() {
            self.end_qemu();
            // They go with the namespace at the latest.
            let _ = net::remove_taps(self.guest.number);
        }
    }
}

fn kill(guest: &Guest, pid: u32, signal: i32) -> Result<()> {
    let label = format!("kill -{signal} {pid}");
    guest.ask(&label, &Request::Kill { pid, signal }, ANSWER).map(drop)
}

/// How a slow link is slow.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SlowLink {
    /// Each packet comes this much later.
    pub delay: Duration,
    /// So many of a hundred packets are lost.
    pub loss_percent: f32,
    /// At most so many kilobits a second.
    pub rate_kbit: Option<u32>,
}

impl SlowLink {
    fn words(&self) -> Vec<String> {
        let mut words = vec!["delay".to_owned(), format!("{}us", self.delay.as_micros())];
        if self.loss_percent > 0.0 {
            words.extend(["loss".to_owned(), format!("{}%", self.loss_percent)]);
        }
        if let Some(rate) = self.rate_kbit {
            words.extend(["rate".to_owned(), format!("{rate}kbit")]);
        }
        // The default queue of 1000 packets would itself lose some of what is delayed.
        words.extend(["limit".to_owned(), "20000".to_owned()]);
        words
    }
}

/// A command that runs by itself in a machine, until it ends, is killed or the machine is reset.
#[derive(Debug, Clone)]
pub struct Daemon {
    guest: Guest,
    pid: u32,
    label: String,
    log: String,
}

impl Daemon {
    /// Its process id in the machine.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended; `None` while it runs.
    ///
    /// # Errors
    /// If the machine does not answer, or has been reset since.
    pub fn exit(&self) -> Result<Option<Exit>> {
        self.status(Duration::ZERO)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`Error::Deadline`] if it still runs after `limit`; else as [`Daemon::exit`].
    pub fn wait(&self, limit: Duration) -> Result<Exit> {
        let still = || Error::Deadline {
            what: format!("machine {}: the end of `{}`", self.guest.name, self.label),
            after: limit,
        };
        self.status(limit)?.ok_or_else(still)
    }

    /// Sends it a signal (9 is the one that nothing survives).
    ///
    /// # Errors
    /// If it has ended, or the machine does not answer.
    pub fn kill(&self, signal: i32) -> Result<()> {
        kill(&self.guest, self.pid, signal)
    }

    /// What it has written so far, together with whatever else went to the same file.
    ///
    /// # Errors
    /// If the file cannot be read, or the machine does not answer.
    pub fn log(&self) -> Result<String> {
        self.guest.get(&self.log, TRANSFER).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn status(&self, limit: Duration) -> Result<Option<Exit>> {
        let wait_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let request = Request::DaemonStatus { pid: self.pid, wait_ms };
        match self.guest.ask(&self.label, &request, limit + ANSWER)? {
            (_, Reply::Daemon(exit)) => Ok(exit),
            (_, other) => Err(Error::Guest {
                machine: self.guest.name.clone(),
                request: self.label.clone(),
                what: format!("unexpected answer {other:?}"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_link_says_only_what_is_slow_about_it() {
        let delayed = SlowLink { delay: Duration::from_millis(20), ..SlowLink::default() };
        assert_eq!(delayed.words().join(" "), "delay 20000us limit 20000");
        let bad = SlowLink { loss_percent: 1.5, rate_kbit: Some(800), ..delayed };
        assert_eq!(bad.words().join(" "), "delay 20000us loss 1.5% rate 800kbit limit 20000");
    }

    #[test]
    fn machines_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Machine>();
        shared::<Daemon>();
        shared::<Forward>();
    }
}
