//! A machine: boot it, run things in it, break it.
//!
//! What always holds: a [`Machine`] that exists has answered once after its boot; every operation has a deadline;
//! every error names the machine. A machine ends with its handle, or at the latest with its run.

mod boot;
mod daemon;
mod spec;
mod trouble;

use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use self::daemon::Daemon;
pub use self::spec::MachineSpec;
pub use self::trouble::SlowLink;
use crate::client::{ANSWER, Guest, Process};
use crate::command::{Command, Output};
use crate::error::{Error, Result};
use crate::forward::Forward;
use crate::net::{self, Network};
use crate::run_dir::RunDir;
use crate::wire::{Reply, Request, Target};

/// Files may be large and machines slow.
const TRANSFER: Duration = Duration::from_secs(120);

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
        self.guest.ping(ANSWER, ANSWER)
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
            (_, Reply::Started { pid }) => Ok(Daemon::new(self.guest.clone(), pid, label, log.to_owned())),
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
