//! Commands in the guest: run one for as long as its client is there, start a daemon, send a signal.
//!
//! Each command leads a process group of its own. The group is killed when the client's connection ends before
//! the command does, or when its deadline passes; a daemon's is not.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cleat_rig::wire::{Decoder, Exit, Frame, Kind, Reply, Run};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::Connection;

/// After its end a command's streams are read on for this long, should a process that it left behind hold them.
const LEFTOVER: Duration = Duration::from_secs(1);
/// A process that got SIGKILL is gone within this time, or it sits in the kernel (state D).
const DYING: Duration = Duration::from_secs(5);
/// Binaries of the rig before busybox's applets of the same name.
const PATH: &str = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

enum Event {
    Output(Frame),
    StreamEnded,
    Exited(io::Result<ExitStatus>),
    ClientGone,
}

fn command(run: &Run) -> io::Result<Command> {
    let (program, arguments) = run.argv.split_first().ok_or_else(|| io::Error::other("no command"))?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(run.directory.as_deref().unwrap_or("/"));
    command.env("PATH", PATH).env("HOME", "/root").envs(run.env.iter().map(|(k, v)| (k, v)));
    command.process_group(0);
    Ok(command)
}

fn started(run: &Run, command: &mut Command) -> io::Result<Child> {
    command.spawn().map_err(|error| io::Error::other(format!("cannot start {}: {error}", run.argv.join(" "))))
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or(0)),
    }
}

fn kill_group(pid: u32) {
    if let Ok(group) = i32::try_from(pid) {
        // ESRCH means that all of it is gone, which is what was wanted.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

/// Runs a command with its streams on `connection`.
pub(crate) fn run(connection: &mut Connection, run: &Run) -> io::Result<()> {
    let child = command(run).and_then(|mut command| {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        started(run, &mut command)
    });
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return connection.reply(&Reply::Refused(error.to_string())),
    };
    let pid = child.id();
    let (events, inbox) = sync_channel(16);
    let streams = [
        child.stdout.take().map(|s| (Kind::Output, Box::new(s) as Box<dyn Read + Send>)),
        child.stderr.take().map(|s| (Kind::Error, Box::new(s) as Box<dyn Read + Send>)),
    ];
    let mut open_streams = 0;
    for (kind, stream) in streams.into_iter().flatten() {
        open_streams += 1;
        let events = events.clone();
        std::thread::spawn(move || pump(kind, stream, &events));
    }
    if let Some(stdin) = child.stdin.take() {
        let client = connection.stream.try_clone()?;
        let decoder = std::mem::take(&mut connection.decoder);
        let events = events.clone();
        std::thread::spawn(move || feed(client, decoder, stdin, &events));
    }
    std::thread::spawn(move || events.send(Event::Exited(child.wait())));

    connection.reply(&Reply::Started { pid })?;
    let exit =
        attend(&mut connection.stream, &inbox, pid, Duration::from_millis(run.deadline_ms), open_streams);
    let last = match exit {
        Ok(exit) => Frame::new(Kind::Exit, serde_json::to_vec(&exit)?),
        Err(error) => Frame::new(Kind::Failed, error.to_string()),
    };
    last.write(&mut connection.stream)?;
    connection.stream.shutdown(std::net::Shutdown::Both)
}

/// Passes a command's output on until it has ended, or its deadline has passed, or its client has gone.
fn attend(
    client: &mut TcpStream,
    inbox: &Receiver<Event>,
    pid: u32,
    limit: Duration,
    mut open_streams: u32,
) -> io::Result<Exit> {
    let mut deadline = Instant::now() + limit;
    let (mut exit, mut killed_for) = (None, None);
    loop {
        match inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Output(frame)) => {
                if killed_for.is_none() && frame.write(client).is_err() {
                    kill_group(pid);
                    (killed_for, deadline) = (Some("the client is gone"), Instant::now() + DYING);
                }
            }
            Ok(Event::StreamEnded) => open_streams -= 1,
            Ok(Event::Exited(status)) => {
                exit = Some(exit_of(status?));
                deadline = Instant::now() + LEFTOVER;
            }
            Ok(Event::ClientGone) if exit.is_none() => {
                kill_group(pid);
                (killed_for, deadline) = (Some("the client is gone"), Instant::now() + DYING);
            }
            Ok(Event::ClientGone) => {}
            Err(RecvTimeoutError::Timeout) if exit.is_some() => break,
            Err(RecvTimeoutError::Timeout) if killed_for.is_none() => {
                kill_group(pid);
                (killed_for, deadline) = (Some("its deadline has passed"), Instant::now() + DYING);
            }
            Err(_) => break,
        }
        if exit.is_some() && open_streams == 0 {
            break;
        }
    }
    match (killed_for, exit) {
        (None, Some(exit)) => Ok(exit),
        (Some(_), exit) => Ok(Exit::TimedOut { gone: exit.is_some() }),
        (None, None) => Err(io::Error::other("lost sight of the command")),
    }
}

fn pump(kind: Kind, mut stream: Box<dyn Read + Send>, events: &SyncSender<Event>) {
    let mut buffer = [0; 64 << 10];
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 || events.send(Event::Output(Frame::new(kind, &buffer[..count]))).is_err() {
            break;
        }
    }
    // Nobody listens any more: the command is over.
    let _ = events.send(Event::StreamEnded);
}

fn feed(mut client: TcpStream, mut decoder: Decoder, stdin: impl Write, events: &SyncSender<Event>) {
    let mut stdin = Some(stdin);
    let mut buffer = [0; 64 << 10];
    loop {
        while let Ok(Some(frame)) = decoder.frame() {
            // A command that does not read its input, or has closed it, is in its right.
            if frame.body.is_empty() || stdin.as_mut().is_some_and(|s| s.write_all(&frame.body).is_err()) {
                stdin = None;
            }
        }
        match client.read(&mut buffer) {
            Ok(count) if count > 0 => decoder.push(&buffer[..count]),
            _ => break,
        }
    }
    let _ = events.send(Event::ClientGone);
}

/// The daemons of this boot and how they ended.
#[derive(Default)]
pub(crate) struct Daemons {
    board: Arc<Board>,
}

/// Where the end of a daemon is written down, and who waits for it is woken.
#[derive(Default)]
struct Board {
    ends: Mutex<HashMap<u32, Option<Exit>>>,
    changed: Condvar,
}

impl Board {
    fn set(&self, pid: u32, end: Option<Exit>) {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, end);
        self.changed.notify_all();
    }
}

impl Daemons {
    /// Starts a command whose output goes to the end of the file `log`; answers with its process id.
    pub(crate) fn start(&self, run: &Run, log: &str) -> io::Result<u32> {
        let mut command = command(run)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .map_err(|error| io::Error::other(format!("cannot open {log}: {error}")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = started(run, &mut command)?;
        let pid = child.id();
        self.board.set(pid, None);
        let board = Arc::clone(&self.board);
        std::thread::spawn(move || board.set(pid, Some(child.wait().map_or(Exit::Code(-1), exit_of))));
        Ok(pid)
    }

    /// How daemon `pid` ended, waiting for it for at most `limit`.
    pub(crate) fn wait(&self, pid: u32, limit: Duration) -> io::Result<Option<Exit>> {
        let ends = self.board.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let running = |ends: &mut HashMap<u32, Option<Exit>>| matches!(ends.get(&pid), Some(None));
        let waited = self.board.changed.wait_timeout_while(ends, limit, running);
        let (ends, _) = waited.unwrap_or_else(PoisonError::into_inner);
        ends.get(&pid).copied().ok_or_else(|| io::Error::other(format!("no daemon {pid} since this boot")))
    }
}

/// Sends a signal; to a daemon only while it runs, since its number may be another process's by now.
pub(crate) fn kill(pid: u32, signal: i32, daemons: &Daemons) -> io::Result<()> {
    if let Ok(Some(exit)) = daemons.wait(pid, Duration::ZERO) {
        return Err(io::Error::other(format!("process {pid} is gone: {exit}")));
    }
    let signal = Signal::try_from(signal)?;
    let target = i32::try_from(pid).map_err(io::Error::other)?;
    nix::sys::signal::kill(Pid::from_raw(target), signal)
        .map_err(|error| io::Error::other(format!("cannot send {signal} to process {pid}: {error}")))
}
