//! nvme-cli as a way to the kernel, for hosts where we cannot open `/dev/nvme-fabrics`.
//!
//! Always holds:
//! - One nvme-cli runs at a time: in parallel it crashes and hangs (seen with 2.4: double free, walks of
//!   sysfs while others change it).
//! - Its exit code and output are hints; what counts is what sysfs shows afterwards.
//! - It opens block devices while it searches, those of other volumes too: an opener that is found while it
//!   runs may be nvme-cli (seen with 2.3).
//! - It reads the attribute `address` of every controller of the host. That can panic the kernel when the
//!   controller is being deleted (see [`crate::sysfs::Address`]): a reason to prefer the kernel's own
//!   interface.
//! - It gets no secret: every process of the host can see its command line. A connect with a secret is
//!   refused.
//! - It is killed at its deadline or with its runtime, and the error keeps its stderr.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::Mutex;

use super::attempt::{self, Attempts, Outcome, Turn};
use super::connect::{self, ConnectError, Reported};
use super::delete::{Deletions, DisconnectError, Means};
use super::kernel::numeric_options;
use super::{
    ConnectOptions, ConnectRequest, Connected, DhchapSecret, Disconnected, ExactController, Fabrics, Pending,
    RekeyError, TimeoutsError, secret, timeouts,
};
use crate::name::ControllerName;
use crate::sysfs::{PinnedDir, SubsystemView, Sysfs, SysfsError};
use crate::work::Workers;

/// How long one nvme-cli may run before it is killed, even where the caller allows more.
const LONGEST_RUN: Duration = Duration::from_secs(90);
/// How long the next nvme-cli waits for a killed one. That one can be blocked in the kernel, where no signal
/// reaches it, and must not hold up every other volume.
const KILL_GRACE: Duration = Duration::from_secs(2);
/// How long a killed connect is followed, so that a late success can be undone.
const FOLLOW: Duration = Duration::from_secs(600);
/// The kernel's name of an option that older versions of nvme-cli lack.
const FAST_IO_FAIL: &str = "fast_io_fail_tmo";
/// How much of its output is kept, in bytes.
const MAX_OUTPUT: usize = 4096;

/// [`Fabrics`] through nvme-cli.
#[derive(Debug)]
pub struct NvmeCli {
    cli: Cli,
    sysfs: Sysfs,
    attempts: Attempts,
    deletions: Deletions,
    workers: Workers,
}

impl NvmeCli {
    /// Uses the program at `program` (a path, or a name that is found through `PATH`) and the topology in
    /// `sysfs`.
    pub fn new(program: impl Into<PathBuf>, sysfs: Sysfs) -> Self {
        let deletions = Deletions::new(sysfs.clone());
        let cli = Cli { program: program.into(), one_at_a_time: Arc::default() };
        Self { cli, sysfs, attempts: Attempts::default(), deletions, workers: Workers::new() }
    }

    /// Runs the program and returns the first line of its version.
    ///
    /// # Errors
    /// [`CliError`].
    pub async fn probe(program: &Path) -> Result<String, CliError> {
        let cli = Cli { program: program.to_owned(), one_at_a_time: Arc::default() };
        let output = cli.run(vec!["version".to_owned()], Duration::from_secs(5)).await?;
        Ok(output.lines().next().unwrap_or_default().to_owned())
    }
}

/// Why nvme-cli did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The operating system could not start it.
    #[error("cannot run {program}")]
    Start {
        /// The program, as a path or a name.
        program: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Waiting for its end failed.
    #[error("cannot wait for {program}")]
    Wait {
        /// The program, as a path or a name.
        program: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// It did not end in time and was killed.
    #[error("`{command}` did not end within {deadline:?} and was killed")]
    Overdue {
        /// The program and its arguments; never a secret.
        command: String,
        /// How long it was allowed to run.
        deadline: Duration,
    },
    /// It ended with an exit code other than zero, or by a signal.
    #[error("`{command}` ended with {status}: {stderr}")]
    Failed {
        /// The program and its arguments; never a secret.
        command: String,
        /// Exit code or signal.
        status: std::process::ExitStatus,
        /// What it wrote to stderr.
        stderr: String,
    },
}

/// Runs nvme-cli, one process at a time.
#[derive(Debug, Clone)]
struct Cli {
    program: PathBuf,
    one_at_a_time: Arc<Mutex<()>>,
}

impl Cli {
    fn command_line(&self, arguments: &[String]) -> String {
        format!("{} {}", self.program.display(), arguments.join(" "))
    }

    /// Runs it to its end, at most for `deadline` once its turn has come; returns stdout.
    async fn run(&self, arguments: Vec<String>, deadline: Duration) -> Result<String, CliError> {
        let turn = Arc::clone(&self.one_at_a_time).lock_owned().await;
        let child = Command::new(&self.program)
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| CliError::Start { program: self.program.clone(), source })?;
        let result = self.finish(child, &arguments, deadline).await;
        drop(turn);
        result
    }

    async fn finish(
        &self,
        mut child: Child,
        arguments: &[String],
        deadline: Duration,
    ) -> Result<String, CliError> {
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let wait = |source| CliError::Wait { program: self.program.clone(), source };
        let all = async { tokio::join!(child.wait(), bounded(stdout), bounded(stderr)) };
        let Ok((status, stdout, stderr)) = tokio::time::timeout(deadline, all).await else {
            child.start_kill().map_err(wait)?;
            if tokio::time::timeout(KILL_GRACE, child.wait()).await.is_err() {
                // Blocked in the kernel: it is reaped in the background when the kernel lets it go.
                tokio::spawn(async move { child.wait().await });
            }
            return Err(CliError::Overdue { command: self.command_line(arguments), deadline });
        };
        let status = status.map_err(wait)?;
        if status.success() {
            return Ok(stdout);
        }
        let stderr = if stderr.trim().is_empty() { stdout } else { stderr };
        let stderr = stderr.trim().to_owned();
        Err(CliError::Failed { command: self.command_line(arguments), status, stderr })
    }
}

/// Reads a pipe to its end and keeps the first part: a full pipe would block the program.
async fn bounded(pipe: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    use tokio::io::AsyncReadExt;
    let Some(mut pipe) = pipe else { return String::new() };
    let (mut kept, mut buffer) = (Vec::new(), [0_u8; 1024]);
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        let room = MAX_OUTPUT.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

impl Fabrics for NvmeCli {
    fn connect<'a>(
        &'a self,
        request: &'a ConnectRequest,
        deadline: Duration,
    ) -> Pending<'a, Result<Connected, ConnectError>> {
        if request.secret.is_some() {
            let (subsystem, portal) = (request.subsystem.clone(), request.portal);
            return Box::pin(async move { Err(ConnectError::SecretUnsafe { subsystem, portal }) });
        }
        let (cli, sysfs, runtime) = (self.cli.clone(), self.sysfs.clone(), Handle::current());
        Box::pin(attempt::run(&self.attempts, request, deadline, move |request, turn| {
            connect_blocking(&cli, &runtime, sysfs, &request, deadline, turn)
        }))
    }

    fn settled<'a>(&'a self, request: &'a ConnectRequest) -> Pending<'a, ()> {
        Box::pin(self.attempts.settled(request))
    }

    fn disconnect<'a>(
        &'a self,
        target: &'a ExactController,
        deadline: Duration,
    ) -> Pending<'a, Result<Disconnected, DisconnectError>> {
        let (cli, runtime) = (self.cli.clone(), Handle::current());
        let means: Means = Box::new(move |dir, name| {
            // The program gets a name only. While the open directory still has its entries, the name belongs
            // to this controller; so this is checked as late as possible.
            std::fs::metadata(dir.path().join("delete_controller"))?;
            let arguments = vec!["disconnect".to_owned(), format!("--device={name}")];
            runtime.block_on(cli.run(arguments, LONGEST_RUN)).map(drop).map_err(io::Error::other)
        });
        Box::pin(self.deletions.run(target, deadline, means))
    }

    fn rekey<'a>(
        &'a self,
        target: &'a ExactController,
        secret: &'a DhchapSecret,
        deadline: Duration,
    ) -> Pending<'a, Result<(), RekeyError>> {
        // Through sysfs: a controller that the kernel's own interface made earlier may have a secret.
        Box::pin(secret::rekey(&self.workers, &self.sysfs, target, secret, deadline))
    }

    fn set_timeouts<'a>(
        &'a self,
        target: &'a ExactController,
        options: &'a ConnectOptions,
        deadline: Duration,
    ) -> Pending<'a, Result<bool, TimeoutsError>> {
        Box::pin(timeouts::set(&self.workers, &self.sysfs, target, options, deadline))
    }

    fn secret<'a>(
        &'a self,
        target: &'a ExactController,
        deadline: Duration,
    ) -> Pending<'a, Result<Option<DhchapSecret>, RekeyError>> {
        Box::pin(secret::of(&self.workers, &self.sysfs, target, deadline))
    }

    fn authenticates(&self) -> bool {
        false
    }

    fn name(&self) -> &'static str {
        "nvme-cli"
    }
}

/// What `nvme connect --output-format=json` prints (since 2.0).
#[derive(Deserialize)]
struct ConnectOutput {
    device: String,
}

/// One attempt, on a thread that may block.
fn connect_blocking(
    cli: &Cli,
    runtime: &Handle,
    sysfs: Sysfs,
    request: &ConnectRequest,
    deadline: Duration,
    turn: Turn,
) -> Outcome {
    let since = Instant::now();
    let unread = |source: SysfsError| ConnectError::Unverified {
        subsystem: request.subsystem.clone(),
        portal: request.portal,
        source,
    };
    let before = match sysfs.view_blocking(&request.subsystem) {
        Ok(topology) => topology,
        Err(source) => return Outcome::new(sysfs, turn, Err(unread(source)), None),
    };
    let ran = runtime.block_on(cli.run(arguments(request), deadline.min(LONGEST_RUN)));
    let overdue = matches!(ran, Err(CliError::Overdue { .. }));
    let follow_until = Instant::now() + if overdue { FOLLOW } else { Duration::ZERO };
    // After a kill the kernel may still be connecting, and nothing shows for how long: sysfs is watched
    // instead.
    let after = loop {
        match sysfs.view_blocking(&request.subsystem) {
            Ok(after) if Instant::now() >= follow_until || fresh(request, &before, &after).is_some() => {
                break after;
            }
            Ok(_) => std::thread::park_timeout(Duration::from_millis(200)),
            Err(source) => return Outcome::new(sysfs, turn, Err(unread(source)), None),
        }
    };
    let made = fresh(request, &before, &after);
    let result = judge(&sysfs, request, ran, &after, made.is_none(), since)
        .and_then(|connected| set_fast_io_fail(&sysfs, request, connected));
    Outcome::new(sysfs, turn, result, made)
}

/// A controller that has what was asked for and did not exist before.
fn fresh(request: &ConnectRequest, before: &SubsystemView, after: &SubsystemView) -> Option<ExactController> {
    let found = connect::existing(request, after)?;
    let known = before.controllers.iter().any(|c| c.incarnation == found.incarnation);
    (!known).then(|| ExactController::of(found, &request.subsystem, &request.host_nqn))?
}

/// Sets what nvme-cli has no option for. A controller that existed before keeps its own value.
fn set_fast_io_fail(
    sysfs: &Sysfs,
    request: &ConnectRequest,
    connected: Connected,
) -> Result<Connected, ConnectError> {
    let Some(limit) = request.options.fast_io_fail_tmo.filter(|_| !connected.adopted) else {
        return Ok(connected);
    };
    let dir = PinnedDir::open(&sysfs.controller_dir(&connected.controller.name));
    let set = dir.and_then(|dir| match dir.incarnation()? == connected.controller.incarnation {
        true => std::fs::write(dir.path().join(FAST_IO_FAIL), limit.as_secs().to_string()),
        false => Err(io::Error::from(io::ErrorKind::NotFound)),
    });
    match set {
        Ok(()) => Ok(connected),
        Err(error) => Err(ConnectError::NotAsAsked {
            subsystem: request.subsystem.clone(),
            portal: request.portal,
            found: format!("{FAST_IO_FAIL} of {} could not be set: {error}", connected.controller.name),
        }),
    }
}

/// Sysfs decides; the program's answer only explains.
fn judge(
    sysfs: &Sysfs,
    request: &ConnectRequest,
    ran: Result<String, CliError>,
    after: &SubsystemView,
    adopted: bool,
    since: Instant,
) -> Result<Connected, ConnectError> {
    if let Some(controller) = connect::existing(request, after) {
        if let Err(error) = &ran {
            tracing::debug!(error = error as &dyn std::error::Error, "connected in spite of the failure");
        }
        return Ok(connect::connected(controller.clone(), adopted, since));
    }
    match ran {
        Ok(stdout) => {
            let device = serde_json::from_str::<ConnectOutput>(&stdout).map(|output| output.device);
            let named = device.ok().and_then(|device| ControllerName::parse(&device).ok());
            let shown = named.and_then(|name| after.controllers.iter().find(|c| c.name == name));
            let found = shown.and_then(|controller| connect::difference(request, controller));
            Err(ConnectError::NotAsAsked {
                subsystem: request.subsystem.clone(),
                portal: request.portal,
                found: found.unwrap_or_else(|| "sysfs shows no such controller".to_owned()),
            })
        }
        Err(CliError::Start { program, source }) => Err(ConnectError::Interface { path: program, source }),
        Err(CliError::Overdue { deadline, .. }) => Err(ConnectError::Overdue {
            subsystem: request.subsystem.clone(),
            portal: request.portal,
            deadline,
        }),
        Err(error) => Err(connect::refused(sysfs, request, as_io_error(error))),
    }
}

/// nvme-cli reports the kernel's reason as text only.
fn as_io_error(error: CliError) -> io::Error {
    const KNOWN: [(&str, i32); 10] = [
        ("Connection refused", libc::ECONNREFUSED),
        ("No route to host", libc::EHOSTUNREACH),
        ("Network is unreachable", libc::ENETUNREACH),
        ("Connection timed out", libc::ETIMEDOUT),
        ("Input/output error", libc::EIO),
        ("Required key not available", libc::ENOKEY),
        ("Key was rejected by service", libc::EKEYREJECTED),
        ("Protocol not supported", libc::EPROTONOSUPPORT),
        ("Invalid argument", libc::EINVAL),
        ("Operation not permitted", libc::EPERM),
    ];
    let CliError::Failed { stderr, .. } = &error else { return io::Error::other(error) };
    let lower = stderr.to_lowercase();
    let known = KNOWN.iter().find(|(text, _)| lower.contains(&text.to_lowercase()));
    match known {
        // Keeps the number for the classification, and the text for the reader.
        Some((_, number)) => {
            io::Error::new(io::Error::from_raw_os_error(*number).kind(), Reported::new(*number, error))
        }
        None => io::Error::other(error),
    }
}

fn arguments(request: &ConnectRequest) -> Vec<String> {
    let mut arguments = vec![
        "connect".to_owned(),
        "--transport=tcp".to_owned(),
        format!("--traddr={}", request.portal.ip()),
        format!("--trsvcid={}", request.portal.port()),
        format!("--nqn={}", request.subsystem),
        format!("--hostnqn={}", request.host_nqn),
        format!("--hostid={}", request.host_id),
        "--output-format=json".to_owned(),
    ];
    // nvme-cli up to 2.3 has no option for fast_io_fail_tmo; sysfs sets it afterwards.
    for (name, value) in
        numeric_options(&request.options).into_iter().filter(|(name, _)| *name != FAST_IO_FAIL)
    {
        arguments.push(format!("--{}={value}", name.replace('_', "-")));
    }
    arguments
}

#[cfg(test)]
mod tests;
