//! The two processes around every run, so that nothing of it outlives it or is seen outside.
//!
//! ```text
//! keeper    the process that the user started; makes user, network, mount and PID namespaces; owns the run's folder
//!   init    first process of the PID namespace: when it ends, the kernel kills all the others
//!     program   the test or the demo itself, with the machines below it
//! ```
//! All three are the same executable, told apart by an environment variable and checked against the process tree.
//! What always holds: when the keeper dies, by whatever signal, the kernel kills init and so everything else,
//! unless the program asked for the run to be kept and has ended well; then init alone holds it.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, exit};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::run_dir::RunDir;

/// Says which of the three a process is: `init:FOLDER` or `program:FOLDER`.
const STAGE: &str = "CLEAT_RIG_STAGE";
/// After a polite signal a run has this long before it is killed.
const GRACE: Duration = Duration::from_secs(15);

/// Which of the three processes this is.
pub(crate) enum Stage {
    Keeper,
    Init(RunDir),
    Program(RunDir),
}

impl Stage {
    pub(crate) fn here() -> Stage {
        let value = std::env::var(STAGE).unwrap_or_default();
        match value.split_once(':') {
            Some(("init", folder)) if std::process::id() == 1 => Stage::Init(RunDir::at(folder)),
            // A program that a program starts has the variable, too, but not that parent.
            Some(("program", folder)) if nix::unistd::getppid().as_raw() == 1 => {
                Stage::Program(RunDir::at(folder))
            }
            _ => Stage::Keeper,
        }
    }
}

fn handled() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT].into_iter().collect()
}

/// Undoes in the program what the other two need: it takes signals as any process does.
pub(crate) fn unblock_signals() -> Result<()> {
    handled().thread_unblock().map_err(failed("cannot unblock signals"))
}

/// A signal that was read, and whether a process sent it. What the kernel sends on a terminal's behalf has reached
/// the program as well as its parents; only the rest is passed on to it.
#[derive(Clone, Copy)]
struct Received {
    signal: Signal,
    from_process: bool,
}

fn failed(what: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::Namespace { what: format!("{what}: {errno}") }
}

fn say(line: &str) {
    // There is nobody left to tell if this fails.
    let _ = writeln!(std::io::stderr(), "rig: {line}");
}

/// The same executable again, as another stage.
fn next_stage(stage: &str, run: &RunDir) -> Command {
    let mut words = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    command.args(words).env(STAGE, format!("{stage}:{}", run.path().display()));
    command
}

fn exit_code(status: std::process::ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

// ---- keeper ----------------------------------------------------------------------------------------------------

/// Keeps a run until it has ended, then ends this process with its exit code. Returns only if it cannot begin.
pub(crate) fn keep(name: &str) -> Result<std::convert::Infallible> {
    check_tun()?;
    check_single_threaded()?;
    let run = RunDir::create(name)?;
    match Keeper::begin(&run) {
        Ok(keeper) => exit(keeper.attend()),
        Err(error) => {
            let _ = run.remove();
            Err(error)
        }
    }
}

struct Keeper {
    run: RunDir,
    child: Child,
    signals: SignalFd,
    link: UnixStream,
}

impl Keeper {
    fn begin(run: &RunDir) -> Result<Keeper> {
        handled().thread_block().map_err(failed("cannot block signals"))?;
        let signals = SignalFd::with_flags(&handled(), SfdFlags::SFD_CLOEXEC)
            .map_err(failed("cannot make a signalfd"))?;
        let socket = run.path().join("keeper.sock");
        let listener = UnixListener::bind(&socket).map_err(Error::io("cannot listen on", &socket))?;
        let uid = nix::unistd::getuid();
        enter_namespaces()?;
        let mut child = next_stage("init", run)
            .env("CLEAT_RIG_UID", std::env::var("CLEAT_RIG_UID").unwrap_or_else(|_| uid.to_string()))
            .spawn()
            .map_err(|e| Error::Namespace { what: format!("cannot start the run's first process: {e}") })?;
        let pid = run.path().join("init_pid");
        std::fs::write(&pid, child.id().to_string()).map_err(Error::io("cannot write", &pid))?;
        let link = accept(&listener, &signals, &mut child)?;
        Ok(Keeper { run: run.clone(), child, signals, link })
    }

    /// Waits for the run's end, or until it is kept by init alone; answers with the exit code to end with.
    fn attend(mut self) -> i32 {
        let mut kill_at = None::<Instant>;
        loop {
            let link_readable = wait_for(&self.signals, Some(&self.link), kill_at);
            if kill_at.is_some_and(|at| at <= Instant::now()) {
                say("the run did not end in time and is killed");
                let _ = self.child.kill();
                kill_at = None;
            }
            if link_readable && self.handed_over() {
                return 0;
            }
            while let Ok(Some(received)) = self.signals.read_signal_nonblocking() {
                if received.signal == Signal::SIGCHLD {
                    continue;
                }
                kill_at.get_or_insert_with(|| Instant::now() + GRACE);
                if received.from_process {
                    let _ = kill(Pid::from_raw(self.child.id().cast_signed()), received.signal);
                }
            }
            match self.child.try_wait() {
                Ok(Some(status)) => return self.conclude(exit_code(status)),
                Ok(None) => {}
                Err(error) => {
                    say(&format!("cannot wait for the run: {error}"));
                    return self.conclude(1);
                }
            }
        }
    }

    /// Whether init says that the program has ended well and wants the run to go on.
    fn handed_over(&mut self) -> bool {
        let mut word = [0; 4];
        matches!(self.link.read(&mut word), Ok(4)) && word == *b"kept"
    }

    fn conclude(&self, code: i32) -> i32 {
        if code == 0 && std::env::var_os("CLEAT_KEEP_LOGS").is_none() {
            if let Err(error) = self.run.remove() {
                say(&error.to_string());
            }
        } else {
            // A mark that cannot be set only means that the logs go earlier.
            let _ = self.run.mark("failed");
            say(&format!("logs are in {}", self.run.path().display()));
        }
        code
    }
}

/// Waits for a signal or for something on the link, until `deadline`; whether it was the link.
fn wait_for(signals: &SignalFd, link: Option<&UnixStream>, deadline: Option<Instant>) -> bool {
    let mut watched = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    watched.extend(link.map(|link| PollFd::new(link.as_fd(), PollFlags::POLLIN)));
    let timeout = deadline.map_or(PollTimeout::NONE, |at| {
        let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut watched, timeout) {
        Ok(count) if count > 0 => watched.get(1).is_some_and(|fd| fd.any().unwrap_or(false)),
        _ => false,
    }
}

/// Waits for init to call, or for its death.
fn accept(listener: &UnixListener, signals: &SignalFd, child: &mut Child) -> Result<UnixStream> {
    let deadline = Instant::now() + GRACE;
    loop {
        let mut watched = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        let left = deadline.saturating_duration_since(Instant::now());
        poll(&mut watched, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO))
            .map_err(failed("poll"))?;
        if watched[0].any().unwrap_or(false) {
            let accepted = listener.accept().map(|(stream, _)| stream);
            return accepted
                .map_err(|e| Error::Namespace { what: format!("no link to the run's first process: {e}") });
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(Error::Namespace {
                what: format!("the run's first process ended at once: {status}"),
            });
        }
        if left.is_zero() {
            let _ = child.kill();
            return Err(Error::Namespace { what: "the run's first process did not answer".to_owned() });
        }
        // Signals this early end the run before it began.
        if let Some(Received { signal, .. }) =
            signals.read_signal_nonblocking()?.filter(|r| r.signal != Signal::SIGCHLD)
        {
            let _ = child.kill();
            return Err(Error::Namespace { what: format!("{signal} came while it began") });
        }
    }
}

trait ReadSignal {
    fn read_signal_nonblocking(&self) -> Result<Option<Received>>;
}

impl ReadSignal for SignalFd {
    fn read_signal_nonblocking(&self) -> Result<Option<Received>> {
        let mut watched = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut watched, PollTimeout::ZERO), Ok(1)) {
            return Ok(None);
        }
        let info = self.read_signal().map_err(failed("cannot read a signal"))?;
        Ok(info.and_then(|info| {
            let signal =
                i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok())?;
            // SI_USER and its like are 0 and below, SI_KERNEL and its like above.
            Some(Received { signal, from_process: info.ssi_code <= 0 })
        }))
    }
}

fn check_tun() -> Result<()> {
    let tun = Path::new("/dev/net/tun");
    match std::fs::File::options().read(true).write(true).open(tun) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Namespace {
            what: format!(
                "{} cannot be opened ({error}): machines get their network through it; as root: `modprobe tun`, and \
                 `chmod 0666 {}` to let users in (as on an ordinary Debian), or run this as root",
                tun.display(),
                tun.display()
            ),
        }),
    }
}

fn check_single_threaded() -> Result<()> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads == 1 {
        return Ok(());
    }
    Err(Error::Namespace {
        what: format!(
            "this process has {threads} threads; it must be asked for first thing in main, before any starts"
        ),
    })
}

fn enter_namespaces() -> Result<()> {
    let own = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    match if uid.is_root() { unshare(own) } else { Err(Errno::EPERM) } {
        Ok(()) => return Ok(()),
        // An ordinary user, or root of a container without the rights: root of a user namespace may do it.
        Err(Errno::EPERM) => {}
        Err(errno) => return Err(failed("unshare")(errno)),
    }
    unshare(own | CloneFlags::CLONE_NEWUSER).map_err(|errno| Error::Namespace {
        what: format!(
            "{errno}; as an ordinary user this needs unprivileged user namespaces (sysctl \
             kernel.unprivileged_userns_clone, user.max_user_namespaces, apparmor), or root"
        ),
    })?;
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {uid} 1")),
        ("gid_map", format!("0 {gid} 1")),
    ] {
        let path = Path::new("/proc/self").join(file);
        std::fs::write(&path, text).map_err(Error::io("cannot write", &path))?;
    }
    Ok(())
}

// ---- init ------------------------------------------------------------------------------------------------------

/// What the first process of the run does: start the program, reap, pass signals on, and end all by ending.
pub(crate) fn be_init(run: &RunDir) -> Result<std::convert::Infallible> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed("prctl"))?;
    let socket = run.path().join("keeper.sock");
    // Refused if the keeper died before the line above took effect.
    let mut link = Some(UnixStream::connect(&socket).map_err(Error::io("no keeper at", &socket))?);
    let _lock = run.lock()?;
    // For the eyes of `ps` and `ls` only, and not to be had in some containers and chroots: the rig does without.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    if mount(None::<&str>, "/", None::<&str>, private, None::<&str>).is_ok() {
        let _ = mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>);
    }
    let signals =
        SignalFd::with_flags(&handled(), SfdFlags::SFD_CLOEXEC).map_err(failed("cannot make a signalfd"))?;
    let program = next_stage("program", run)
        .spawn()
        .map_err(|e| Error::Namespace { what: format!("cannot start the program again: {e}") })?;
    let program_pid = Pid::from_raw(program.id().cast_signed());
    let mut asked = false;
    loop {
        // The keeper says nothing: what can be read is the end of the link, which is the end of the keeper.
        if wait_for(&signals, link.as_ref(), None) {
            exit(1);
        }
        while let Some(received) = signals.read_signal_nonblocking()? {
            match received.signal {
                Signal::SIGCHLD => {}
                _ if link.is_none() => exit(0),
                signal if received.from_process && !asked => asked = kill(program_pid, signal).is_ok(),
                _ => {}
            }
        }
        if let Some(code) = reap(program_pid) {
            if code != 0 || !run.is_marked("kept") {
                exit(code);
            }
            link = hand_over(link)?;
        }
    }
}

/// Reaps all that have ended; the program's exit code if it is among them.
fn reap(program: Pid) -> Option<i32> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, exit)) if pid == program => code = Some(exit),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == program => code = Some(128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(_) => return code,
            Ok(_) => {}
        }
    }
}

/// From here on the run lives without a keeper, a terminal or anybody's pipes.
fn hand_over(link: Option<UnixStream>) -> Result<Option<UnixStream>> {
    nix::sys::prctl::set_pdeathsig(None).map_err(failed("prctl"))?;
    nix::unistd::setsid().map_err(failed("setsid"))?;
    let nowhere = Path::new("/dev/null");
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open(nowhere)
        .map_err(Error::io("cannot open", nowhere))?;
    nix::unistd::dup2_stdin(&null).map_err(failed("dup2"))?;
    nix::unistd::dup2_stdout(&null).map_err(failed("dup2"))?;
    nix::unistd::dup2_stderr(&null).map_err(failed("dup2"))?;
    if let Some(mut link) = link {
        link.write_all(b"kept").map_err(|e| Error::Namespace { what: format!("the keeper is gone: {e}") })?;
    }
    Ok(None)
}
