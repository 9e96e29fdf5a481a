//! The command that reads a ticket's device.
//!
//! Comes in: its words and the device. Goes out: how it ended, as a shell says it. What always holds: a command that does not
//! end when it is asked to is killed; signals of a terminal reach it once.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::os::fd::BorrowedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::{Pid, dup};
use tokio::process::{Child, Command};
use tokio::signal::unix::{self, SignalKind};
use tokio::time::timeout;

/// The device shows what a machine would find that lost power, and no application has agreed to the moment.
const CONSISTENCY: &str = "crash";
/// What a shell adds to a signal's number.
const BY_SIGNAL: u8 = 128;

/// Signals that are meant for the command.
pub(super) struct Signals {
    hangup: unix::Signal,
    interrupt: unix::Signal,
    quit: unix::Signal,
    terminate: unix::Signal,
}

impl Signals {
    /// From now on they do not end this process.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            hangup: unix::signal(SignalKind::hangup())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
            quit: unix::signal(SignalKind::quit())?,
            terminate: unix::signal(SignalKind::terminate())?,
        })
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.hangup.recv() => Signal::SIGHUP,
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.quit.recv() => Signal::SIGQUIT,
            _ = self.terminate.recv() => Signal::SIGTERM,
        }
    }
}

/// The exit code of a process that a signal has ended.
pub(super) fn code_of_signal(signal: Signal) -> u8 {
    u8::try_from(signal as i32).map_or(u8::MAX, |number| BY_SIGNAL.saturating_add(number))
}

/// The exit code of a command that could not be started.
pub(super) fn code_of_start(error: &io::Error) -> u8 {
    if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
}

/// The exit code of one that has ended.
pub(super) fn code(status: ExitStatus) -> u8 {
    let by_signal = || {
        status
            .signal()
            .map_or(u8::MAX, |signal| BY_SIGNAL.saturating_add(u8::try_from(signal).unwrap_or(u8::MAX)))
    };
    status.code().map_or_else(by_signal, |code| u8::try_from(code).unwrap_or(u8::MAX))
}

/// A command that runs.
pub(super) struct Running {
    child: Child,
    /// A terminal sends its signals to the command as well.
    terminal: bool,
}

impl Running {
    /// Starts it. Killed with this process's own end, where that comes first and in order. It inherits `open`: for as long as
    /// it runs, the device under that path is no other one, whether we are there or not.
    pub(super) fn start(words: &[OsString], device: &Path, open: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let [program, arguments @ ..] = words else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no command is given"));
        };
        let mut command = Command::new(program);
        command.args(arguments).env("CLEAT_DEVICE", device).env("CLEAT_CONSISTENCY", CONSISTENCY);
        // Ours is closed in what we start; this one is not, and we have it for the start alone.
        let inherited = open.map(dup).transpose()?;
        let child = command.kill_on_drop(true).spawn()?;
        drop(inherited);
        let terminal = io::stdin().is_terminal() || io::stdout().is_terminal() || io::stderr().is_terminal();
        Ok(Self { child, terminal })
    }

    /// Waits for its end. May be dropped and called again.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Passes a signal on that came to us.
    pub(super) fn pass_on(&self, signal: Signal) {
        let typed = matches!(signal, Signal::SIGINT | Signal::SIGQUIT);
        if !(typed && self.terminal) {
            self.send(signal);
        }
    }

    fn send(&self, signal: Signal) {
        // None once it has been waited for: then there is nobody to send it to.
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended by now, and is waited for next.
            let _ = signal::kill(Pid::from_raw(pid), signal);
        }
    }

    /// Asks it to end, and kills it where it has not ended within `grace`.
    pub(super) async fn end(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        self.send(Signal::SIGTERM);
        // One that was stopped at a terminal hears nothing before it goes on.
        self.send(Signal::SIGCONT);
        match timeout(grace, self.child.wait()).await {
            Ok(ended) => ended,
            Err(_) => {
                self.child.start_kill()?;
                self.child.wait().await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Running {
        has_open(script, None)
    }

    fn has_open(script: &str, open: Option<BorrowedFd<'_>>) -> Running {
        let words: [OsString; 3] = ["sh".into(), "-c".into(), script.into()];
        Running::start(&words, Path::new("/dev/loop7"), open).expect("a shell")
    }

    async fn ended(mut running: Running) -> u8 {
        code(timeout(LONG, running.ended()).await.expect("it ends").expect("a child of ours"))
    }

    #[tokio::test]
    async fn a_command_has_its_device_by_name_and_its_own_exit_code() {
        let right = r#"[ "$CLEAT_DEVICE $CLEAT_CONSISTENCY" = "/dev/loop7 crash" ] && exit 7"#;
        assert_eq!(ended(shell(right)).await, 7);
        assert_eq!(ended(shell("kill -9 $$")).await, 137);
    }

    #[tokio::test]
    async fn a_command_has_the_device_open_for_as_long_as_it_runs() {
        let device = File::open("/dev/zero").expect("it is everywhere");
        let finds =
            r#"for fd in /proc/$$/fd/*; do [ "$(readlink "$fd")" = /dev/zero ] && exit 7; done; exit 1"#;
        assert_eq!(ended(has_open(finds, Some(device.as_fd()))).await, 7);
        assert_eq!(ended(shell(finds)).await, 1, "nothing else has it");
    }

    #[tokio::test]
    async fn a_signal_that_comes_to_us_reaches_the_command() {
        let running = shell("exec sleep 1000");
        running.pass_on(Signal::SIGTERM);
        assert_eq!(ended(running).await, 143);
        assert_eq!((code_of_signal(Signal::SIGINT), code_of_signal(Signal::SIGTERM)), (130, 143));
    }

    #[tokio::test]
    async fn a_command_that_does_not_end_when_asked_is_killed() {
        let mut asked = shell("exec sleep 1000");
        assert_eq!(code(asked.end(LONG).await.expect("a child of ours")), 143);
        let folder = std::env::temp_dir().join(format!("cleat-ignores-{}", std::process::id()));
        let mut ignores = shell(&format!("trap '' TERM; mkdir {}; exec sleep 1000", folder.display()));
        let until = tokio::time::Instant::now() + LONG;
        while !folder.exists() {
            assert!(tokio::time::Instant::now() < until, "it does not begin");
            tokio::task::yield_now().await;
        }
        std::fs::remove_dir(folder).expect("made by the command");
        assert_eq!(code(ignores.end(Duration::from_millis(50)).await.expect("a child of ours")), 137);
    }

    #[tokio::test]
    async fn what_is_no_command_is_said_as_a_shell_says_it() {
        let missing = Running::start(&["/nowhere/at/all".into()], Path::new("/dev/loop7"), None);
        assert_eq!(missing.err().map(|error| code_of_start(&error)), Some(127));
        let folder = Running::start(&["/".into()], Path::new("/dev/loop7"), None);
        assert_eq!(folder.err().map(|error| code_of_start(&error)), Some(126));
    }
}
