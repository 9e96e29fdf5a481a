//! `bench-guest`: the floor under every figure of `hack/bench attach`, and bare nvme-cli beside it.
//!
//! Runs in a node machine. It is built of the standard library's threads and shares no code with the agent, so that
//! what it measures is what the kernel alone takes. In: subsystems and portals. Out: one JSON object. What always
//! holds: a time is taken with all volumes begun at the same moment, until the last of them is really there (its
//! head's device node) or really gone (no controller in sysfs); what failed is counted, never left out.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::Serialize;

/// Measures connecting and disconnecting NVMe/TCP volumes without Cleat.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Write all portals of all volumes to /dev/nvme-fabrics side by side, until the device nodes are there
    FloorConnect(Connect),
    /// Delete all controllers of the volumes side by side, until sysfs shows none
    FloorDelete(Volumes),
    /// `nvme connect` for each portal of each volume, volumes side by side, until the device nodes are there
    CliConnect(Connect),
    /// `nvme disconnect` for each volume, side by side, until sysfs shows no controller
    CliDisconnect(Volumes),
    /// Start so many processes that do nothing, for as long as this one is there; say when all are
    Crowd {
        #[arg(long)]
        processes: u32,
        #[command(flatten)]
        each: Stand,
    },
    /// Be one of them
    Stand(Stand),
}

#[derive(Debug, Args)]
struct Stand {
    /// Open files of a process
    #[arg(long)]
    descriptors: u32,
}

#[derive(Debug, Args)]
struct Volumes {
    /// Subsystem of a volume
    #[arg(long = "nqn", required = true)]
    nqns: Vec<String>,
    /// Seconds after which what is not done is a failure
    #[arg(long, default_value_t = 60)]
    deadline_s: u64,
}

#[derive(Debug, Args)]
struct Connect {
    #[command(flatten)]
    volumes: Volumes,
    /// Portal, ADDRESS:PORT
    #[arg(long = "portal", required = true)]
    portals: Vec<String>,
    #[arg(long)]
    hostnqn: String,
    #[arg(long)]
    hostid: String,
    #[arg(long, default_value_t = 4)]
    nr_io_queues: u32,
    /// Seconds after which the kernel takes a silent connection for lost
    #[arg(long, default_value_t = 5)]
    keep_alive_s: u32,
}

/// The result of one measurement.
#[derive(Debug, Default, Serialize)]
struct Measured {
    /// From the common start until the last volume was there, or gone.
    total_ms: f64,
    /// Volumes that were not, or commands that failed.
    failures: u32,
    /// What the first failures said.
    errors: Vec<String>,
}

const MAX_ERRORS: usize = 5;
const FABRICS: &str = "/dev/nvme-fabrics";

fn main() -> ExitCode {
    let tell = |measured: Measured| {
        let line = serde_json::to_string(&measured)?;
        writeln!(io::stdout(), "{line}")
    };
    let done = match Cli::parse().what {
        What::FloorConnect(connect) => floor_connect(&connect).and_then(tell),
        What::FloorDelete(volumes) => floor_delete(&volumes).and_then(tell),
        What::CliConnect(connect) => cli_connect(&connect).and_then(tell),
        What::CliDisconnect(volumes) => cli_disconnect(&volumes).and_then(tell),
        What::Crowd { processes, each } => crowd(processes, &each),
        What::Stand(each) => stand(&each),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "bench-guest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn crowd(processes: u32, each: &Stand) -> io::Result<()> {
    let program = std::env::current_exe()?;
    // Nobody writes: it ends with this process, and all of them with it.
    let (end, _held) = io::pipe()?;
    let mut all = Vec::new();
    for _ in 0..processes {
        let mut one = Command::new(&program);
        one.args(["stand", "--descriptors", &each.descriptors.to_string()]);
        all.push(one.stdin(end.try_clone()?).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    }
    writeln!(io::stdout(), "all there")?;
    match all.first_mut() {
        Some(first) => Err(io::Error::other(format!("one has ended: {}", first.wait()?))),
        None => Ok(()),
    }
}

fn stand(each: &Stand) -> io::Result<()> {
    let others = each.descriptors.saturating_sub(3);
    let _open = (0..others).map(|_| fs::File::open("/dev/null")).collect::<io::Result<Vec<_>>>()?;
    io::stdin().read(&mut [0]).map(drop)
}

impl Measured {
    fn add(&mut self, outcomes: Vec<Result<(), String>>) {
        for error in outcomes.into_iter().filter_map(Result::err) {
            self.failures += 1;
            if self.errors.len() < MAX_ERRORS {
                self.errors.push(error);
            }
        }
    }
}

/// Runs one job per item, all begun at the same moment; answers with that moment and the outcomes.
fn side_by_side<T: Sync>(
    items: &[T],
    job: impl Fn(&T) -> Result<(), String> + Sync,
) -> (Instant, Vec<Result<(), String>>) {
    let gate = Barrier::new(items.len() + 1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = items
            .iter()
            .map(|item| {
                scope.spawn(|| {
                    gate.wait();
                    job(item)
                })
            })
            .collect();
        gate.wait();
        let begun = Instant::now();
        let outcomes =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("it panicked".into())));
        (begun, outcomes.collect())
    })
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn other(what: impl std::fmt::Display) -> io::Error {
    io::Error::other(what.to_string())
}

// ---- floor -----------------------------------------------------------------------------------------------------

fn floor_connect(connect: &Connect) -> io::Result<Measured> {
    let pairs: Vec<(&String, &String)> = connect
        .volumes
        .nqns
        .iter()
        .flat_map(|nqn| connect.portals.iter().map(move |portal| (nqn, portal)))
        .collect();
    let devices = DeviceWatch::new()?;
    let (begun, outcomes) = side_by_side(&pairs, |(nqn, portal)| {
        write_fabrics(connect, nqn, portal).map_err(|error| format!("{nqn} at {portal}: {error}"))
    });
    finish_connect(connect, &devices, begun, outcomes)
}

fn finish_connect(
    connect: &Connect,
    devices: &DeviceWatch,
    begun: Instant,
    outcomes: Vec<Result<(), String>>,
) -> io::Result<Measured> {
    let mut measured = Measured::default();
    measured.add(outcomes);
    let missing = devices.wait_for(&connect.volumes, begun)?;
    measured.total_ms = ms(begun.elapsed());
    measured.add(missing.into_iter().map(|nqn| Err(format!("{nqn}: no device node"))).collect());
    Ok(measured)
}

fn write_fabrics(connect: &Connect, nqn: &str, portal: &str) -> io::Result<()> {
    let (address, port) = portal.rsplit_once(':').ok_or_else(|| other("no ADDRESS:PORT"))?;
    let options = format!(
        "transport=tcp,traddr={address},trsvcid={port},nqn={nqn},hostnqn={},hostid={},nr_io_queues={},\
         reconnect_delay=1,ctrl_loss_tmo=600,keep_alive_tmo={}",
        connect.hostnqn, connect.hostid, connect.nr_io_queues, connect.keep_alive_s
    );
    let mut fabrics = fs::OpenOptions::new().read(true).write(true).open(FABRICS)?;
    fabrics.write_all(options.as_bytes())?;
    // The kernel answers with the controller it made.
    let mut answer = [0; 256];
    let length = fabrics.read(&mut answer)?;
    if answer[..length].starts_with(b"instance=") {
        Ok(())
    } else {
        Err(other("no controller in the answer"))
    }
}

fn floor_delete(volumes: &Volumes) -> io::Result<Measured> {
    let controllers: Vec<PathBuf> = controllers_of(&volumes.nqns)?;
    let (begun, outcomes) = side_by_side(&controllers, |controller| {
        let path = controller.join("delete_controller");
        fs::write(&path, "1").map_err(|error| format!("{}: {error}", path.display()))
    });
    finish_delete(volumes, begun, outcomes)
}

fn finish_delete(
    volumes: &Volumes,
    begun: Instant,
    outcomes: Vec<Result<(), String>>,
) -> io::Result<Measured> {
    let mut measured = Measured::default();
    measured.add(outcomes);
    let deadline = begun + Duration::from_secs(volumes.deadline_s);
    let mut left = controllers_of(&volumes.nqns)?;
    while !left.is_empty() && Instant::now() < deadline {
        // Sysfs has no way to wait for a controller's end but uevents, which would cost more than this look does.
        pause(Duration::from_millis(2))?;
        left = controllers_of(&volumes.nqns)?;
    }
    measured.total_ms = ms(begun.elapsed());
    measured.add(left.iter().map(|path| Err(format!("{} is still there", path.display()))).collect());
    Ok(measured)
}

/// The controllers of these subsystems, by their folders in sysfs.
fn controllers_of(nqns: &[String]) -> io::Result<Vec<PathBuf>> {
    let wanted: BTreeSet<&str> = nqns.iter().map(String::as_str).collect();
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/class/nvme")? {
        let path = entry?.path();
        // One that goes away while we look is not there.
        let nqn = fs::read_to_string(path.join("subsysnqn")).unwrap_or_default();
        if wanted.contains(nqn.trim_end()) {
            found.push(path);
        }
    }
    Ok(found)
}

fn pause(time: Duration) -> io::Result<()> {
    poll(&mut [], PollTimeout::try_from(time).map_err(other)?)?;
    Ok(())
}

/// Sees device nodes come to be, without asking again and again.
struct DeviceWatch {
    inotify: Inotify,
}

impl DeviceWatch {
    fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch("/dev", AddWatchFlags::IN_CREATE)?;
        Ok(Self { inotify })
    }

    /// Waits until each subsystem's head has its device node; answers with the subsystems that have none in time.
    fn wait_for(&self, volumes: &Volumes, begun: Instant) -> io::Result<Vec<String>> {
        let deadline = begun + Duration::from_secs(volumes.deadline_s);
        let mut missing: BTreeSet<String> = volumes.nqns.iter().cloned().collect();
        for entry in fs::read_dir("/dev")? {
            missing.remove(&subsystem_of(&entry?.path()));
        }
        while !missing.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let mut watched = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
            poll(&mut watched, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))?;
            match self.inotify.read_events() {
                Ok(events) => {
                    for name in events.into_iter().filter_map(|event| event.name) {
                        missing.remove(&subsystem_of(&Path::new("/dev").join(name)));
                    }
                }
                Err(nix::errno::Errno::EAGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(missing.into_iter().collect())
    }
}

/// The subsystem that a device node is the head of; empty if it is none.
fn subsystem_of(node: &Path) -> String {
    let name = node.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let numbers = name.strip_prefix("nvme").and_then(|rest| rest.split_once('n'));
    let is_head = numbers.is_some_and(|(a, b)| {
        [a, b].iter().all(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
    });
    if !is_head {
        return String::new();
    }
    // The head's parent is the subsystem.
    fs::canonicalize(Path::new("/sys/block").join(name))
        .ok()
        .and_then(|head| fs::read_to_string(head.parent()?.join("subsysnqn")).ok())
        .map(|nqn| nqn.trim_end().to_owned())
        .unwrap_or_default()
}

// ---- nvme-cli --------------------------------------------------------------------------------------------------

fn cli_connect(connect: &Connect) -> io::Result<Measured> {
    let devices = DeviceWatch::new()?;
    let limit = Duration::from_secs(connect.volumes.deadline_s);
    let (begun, outcomes) = side_by_side(&connect.volumes.nqns, |nqn| {
        // As a driver that wraps it would: one portal of a volume after the other, volumes side by side.
        connect.portals.iter().try_for_each(|portal| {
            let (address, port) = portal.rsplit_once(':').ok_or("no ADDRESS:PORT")?;
            let (queues, keep_alive) = (connect.nr_io_queues.to_string(), connect.keep_alive_s.to_string());
            nvme(
                &[
                    "connect",
                    "-t",
                    "tcp",
                    "-a",
                    address,
                    "-s",
                    port,
                    "-n",
                    nqn,
                    "--hostnqn",
                    &connect.hostnqn,
                    "--hostid",
                    &connect.hostid,
                    "--nr-io-queues",
                    &queues,
                    "--reconnect-delay",
                    "1",
                    "--ctrl-loss-tmo",
                    "600",
                    "--keep-alive-tmo",
                    &keep_alive,
                ],
                limit,
            )
        })
    });
    finish_connect(connect, &devices, begun, outcomes)
}

fn cli_disconnect(volumes: &Volumes) -> io::Result<Measured> {
    let limit = Duration::from_secs(volumes.deadline_s);
    let (begun, outcomes) = side_by_side(&volumes.nqns, |nqn| nvme(&["disconnect", "-n", nqn], limit));
    finish_delete(volumes, begun, outcomes)
}

/// Runs nvme-cli to its end, or kills it at the deadline: under concurrency it hangs now and then.
fn nvme(arguments: &[&str], limit: Duration) -> Result<(), String> {
    let child = Command::new("nvme")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("nvme: {error}"))?;
    ended(child, limit).map_err(|what| format!("nvme {}: {what}", arguments[0]))
}

fn ended(mut child: Child, limit: Duration) -> Result<(), String> {
    let deadline = Instant::now() + limit;
    let mut stderr = child.stderr.take();
    // The end of its standard error is its end, but for a crash that leaves a child behind.
    let mut words = Vec::new();
    while let Some(stream) = &mut stderr {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut watched = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut watched, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        if left.is_zero() || ready.is_err() {
            let _ = child.kill();
            let _ = child.wait();
            return Err("hung past the deadline, killed".to_owned());
        }
        if ready == Ok(0) {
            continue;
        }
        let mut buffer = [0; 1024];
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => stderr = None,
            Ok(length) => words.extend_from_slice(&buffer[..length]),
        }
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{status}: {}", String::from_utf8_lossy(&words).trim()))
}
