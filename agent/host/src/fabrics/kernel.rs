//! The kernel's own interface: an option string is written to `/dev/nvme-fabrics`; sysfs deletes.
//!
//! The kernel makes one connection at a time (`nvmf_dev_mutex` in `drivers/nvme/host/fabrics.c`), so parallel
//! connects queue inside it. A connect to a portal that drops packets holds up the others: about 3 s for the
//! TCP handshake (one repetition of the SYN), 10 s for the first NVMe/TCP exchange, and 60 s for a Connect
//! command. Callers' deadlines should allow for that.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::attempt::{self, Attempts, Outcome, Turn};
use super::connect::{self, ConnectError};
use super::delete::{self, Deletions, DisconnectError};
use super::{
    ConnectOptions, ConnectRequest, Connected, DhchapSecret, Disconnected, ExactController, Fabrics,
    LossTimeout, Pending, RekeyError, TimeoutsError, secret, timeouts,
};
use crate::name::ControllerName;
use crate::sysfs::Sysfs;
use crate::work::Workers;

/// How often a connect is written again: when a signal interrupted it, or when the kernel says that it exists
/// already but sysfs shows none (that one was being deleted).
const MAX_WRITES: u32 = 3;
/// Room for the longest secret with the name of its option.
const SECRET_ROOM: usize = 128;

/// Where the option string goes. A trait, so that a test can take the kernel's place.
pub(crate) trait FabricsDevice: Send + Sync + std::fmt::Debug {
    /// Writes the option string, waits for the kernel, and returns its answer, such as `instance=3,cntlid=1`.
    fn submit(&self, options: &str) -> Result<String, SubmitError>;

    /// The options that the kernel knows, as it lists them; empty where it lists none (before 5.17).
    fn known_options(&self) -> io::Result<String>;
}

/// Why the kernel gave no answer.
#[derive(Debug)]
pub(crate) enum SubmitError {
    /// The device could not be opened.
    Open(PathBuf, io::Error),
    /// The option string was refused or the connect failed.
    Write(io::Error),
    /// The option string was accepted, but the answer could not be read.
    Read(io::Error),
}

/// The real device in `/dev`.
#[derive(Debug)]
struct CharacterDevice {
    path: PathBuf,
}

impl FabricsDevice for CharacterDevice {
    fn submit(&self, options: &str) -> Result<String, SubmitError> {
        let opened = OpenOptions::new().read(true).write(true).open(&self.path);
        let mut device = opened.map_err(|error| SubmitError::Open(self.path.clone(), error))?;
        // One write with everything: the kernel parses what a single call brings.
        let written = device.write(options.as_bytes()).map_err(SubmitError::Write)?;
        if written != options.len() {
            return Err(SubmitError::Write(io::Error::from(io::ErrorKind::WriteZero)));
        }
        let mut answer = String::new();
        device.take(4096).read_to_string(&mut answer).map_err(SubmitError::Read)?;
        Ok(answer)
    }

    fn known_options(&self) -> io::Result<String> {
        let mut options = String::new();
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.path)?
            .take(4096)
            .read_to_string(&mut options)?;
        Ok(options)
    }
}

/// [`Fabrics`] through the kernel's own interface. Any number of operations may run in parallel.
#[derive(Debug)]
pub struct KernelFabrics {
    sysfs: Sysfs,
    device: Arc<dyn FabricsDevice>,
    attempts: Attempts,
    deletions: Deletions,
    workers: Workers,
}

impl KernelFabrics {
    /// Uses the fabrics device at `device` (`/dev/nvme-fabrics`) and the topology in `sysfs`.
    pub fn new(device: impl Into<PathBuf>, sysfs: Sysfs) -> Self {
        Self::with_device(Arc::new(CharacterDevice { path: device.into() }), sysfs)
    }

    pub(crate) fn with_device(device: Arc<dyn FabricsDevice>, sysfs: Sysfs) -> Self {
        let deletions = Deletions::new(sysfs.clone());
        Self { sysfs, device, attempts: Attempts::default(), deletions, workers: Workers::new() }
    }

    /// Checks that the fabrics device at `device` can be opened for reading and writing.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn probe(device: &Path) -> io::Result<()> {
        OpenOptions::new().read(true).write(true).open(device).map(drop)
    }
}

impl Fabrics for KernelFabrics {
    fn connect<'a>(
        &'a self,
        request: &'a ConnectRequest,
        deadline: Duration,
    ) -> Pending<'a, Result<Connected, ConnectError>> {
        let (device, sysfs) = (Arc::clone(&self.device), self.sysfs.clone());
        Box::pin(attempt::run(&self.attempts, request, deadline, move |request, turn| {
            connect_blocking(device.as_ref(), sysfs, &request, turn)
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
        Box::pin(self.deletions.run(target, deadline, delete::kernel_means()))
    }

    fn rekey<'a>(
        &'a self,
        target: &'a ExactController,
        secret: &'a DhchapSecret,
        deadline: Duration,
    ) -> Pending<'a, Result<(), RekeyError>> {
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
        self.device.known_options().is_ok_and(|options| options.contains("dhchap_secret="))
    }

    fn name(&self) -> &'static str {
        "kernel"
    }
}

/// One attempt. Runs on a thread that may block.
fn connect_blocking(
    device: &dyn FabricsDevice,
    sysfs: Sysfs,
    request: &ConnectRequest,
    turn: Turn,
) -> Outcome {
    let since = Instant::now();
    let options = option_string(request);
    let mut made = None;
    let result = (|| {
        let mut last = io::Error::from_raw_os_error(libc::EALREADY);
        for _ in 0..MAX_WRITES {
            match device.submit(&options) {
                Ok(answer) => {
                    let name = read_answer(&answer).ok_or_else(|| unreadable_answer(request, &answer))?;
                    made = Some(target_of(request, &name, &sysfs));
                    let controller = connect::verify(&sysfs, request, &name)?;
                    return Ok(connect::connected(controller, false, since));
                }
                Err(SubmitError::Open(path, source)) => {
                    return Err(ConnectError::Interface { path, source });
                }
                Err(SubmitError::Read(source)) => {
                    // It connected, but the answer is lost: sysfs shows which controller it is.
                    return adopt(&sysfs, request, since, &mut made)?
                        .ok_or_else(|| unreadable_answer(request, &source.to_string()));
                }
                Err(SubmitError::Write(error)) if error.raw_os_error() == Some(libc::EALREADY) => {
                    if let Some(connected) = adopt(&sysfs, request, since, &mut None)? {
                        return Ok(connected);
                    }
                    last = error;
                }
                Err(SubmitError::Write(error)) if error.kind() == io::ErrorKind::Interrupted => last = error,
                Err(SubmitError::Write(error)) => return Err(connect::refused(&sysfs, request, error)),
            }
        }
        Err(connect::refused(&sysfs, request, last))
    })();
    Outcome::new(sysfs, turn, result, made)
}

/// Finds a controller that has what was asked for, and notes it in `made` so that a failure undoes it.
fn adopt(
    sysfs: &Sysfs,
    request: &ConnectRequest,
    since: Instant,
    made: &mut Option<ExactController>,
) -> Result<Option<Connected>, ConnectError> {
    let view = sysfs.view_blocking(&request.subsystem).map_err(|source| ConnectError::Unverified {
        subsystem: request.subsystem.clone(),
        portal: request.portal,
        source,
    })?;
    Ok(connect::existing(request, &view).map(|controller| {
        *made = ExactController::of(controller, &request.subsystem, &request.host_nqn);
        connect::connected(controller.clone(), true, since)
    }))
}

fn target_of(request: &ConnectRequest, name: &ControllerName, sysfs: &Sysfs) -> ExactController {
    ExactController {
        controller: name.clone(),
        subsystem: request.subsystem.clone(),
        host_nqn: request.host_nqn.clone(),
        incarnation: delete::incarnation(sysfs, name),
    }
}

fn unreadable_answer(request: &ConnectRequest, answer: &str) -> ConnectError {
    ConnectError::NotAsAsked {
        subsystem: request.subsystem.clone(),
        portal: request.portal,
        found: format!("the kernel's answer {answer:?} names no controller"),
    }
}

/// The controller's name out of an answer such as `instance=3,cntlid=1`.
fn read_answer(answer: &str) -> Option<ControllerName> {
    let instance = answer.trim().split(',').find_map(|part| part.strip_prefix("instance="))?;
    Some(ControllerName::from_instance(instance.parse().ok()?))
}

/// The option string (`drivers/nvme/host/fabrics.c`, `opt_tokens`). Names and secrets were validated to
/// contain no comma. It may contain a secret: it must never be printed, and its memory is wiped.
fn option_string(request: &ConnectRequest) -> Zeroizing<String> {
    let ConnectRequest { subsystem, portal, host_nqn, host_id, options, secret } = request;
    let mut text = format!(
        "nqn={subsystem},transport=tcp,traddr={},trsvcid={},hostnqn={host_nqn},hostid={host_id}",
        portal.ip(),
        portal.port()
    );
    for (name, value) in numeric_options(options) {
        text.push_str(&format!(",{name}={value}"));
    }
    let Some(secret) = secret else { return Zeroizing::new(text) };
    // Reserved in one piece: growing would leave a copy of the secret behind.
    let mut whole = Zeroizing::new(String::with_capacity(text.len() + SECRET_ROOM));
    for part in [&text, ",dhchap_secret=", secret.expose()] {
        whole.push_str(part);
    }
    whole
}

/// The options that were set, under the kernel's names.
pub(super) fn numeric_options(options: &ConnectOptions) -> Vec<(&'static str, i64)> {
    let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::from(i32::MAX));
    let loss = |limit| match limit {
        LossTimeout::After(time) => seconds(time),
        LossTimeout::Never => -1,
    };
    [
        ("nr_io_queues", options.nr_io_queues.map(i64::from)),
        ("reconnect_delay", options.reconnect_delay.map(seconds)),
        ("ctrl_loss_tmo", options.ctrl_loss_tmo.map(loss)),
        ("keep_alive_tmo", options.keep_alive_tmo.map(seconds)),
        ("fast_io_fail_tmo", options.fast_io_fail_tmo.map(seconds)),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

#[cfg(test)]
mod tests;
