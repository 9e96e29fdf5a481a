//! Deletes one controller, and only that one.
//!
//! Comes in: a [`ExactController`] and a deadline. Goes out: what was seen around the deletion.
//!
//! Always holds: the verification, the reading of the state and the write go through one open directory. A
//! deletion goes on without its caller. A second call for the same target joins the first and gets the same
//! facts, even when the first has ended between the two calls.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{DeletionFacts, Disconnected, ExactController, HowDeleted};
use crate::name::ControllerName;
use crate::sysfs::{Address, Attribute, ControllerState, Incarnation, PinnedDir, Sysfs, list};
use crate::work::{self, WorkError};

/// How long a worker follows a deletion. The kernel's timeouts end a deletion within a minute or two. One
/// that takes longer than this is stuck, and a later call tries again.
const FOLLOW: Duration = Duration::from_secs(15 * 60);
/// How often sysfs is read while a controller goes: the pause doubles from the first value to the second.
const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// Most finished deletions that are kept for callers who come back.
const MAX_KEPT: usize = 1024;
/// The kernel's default of `nvme_core.io_timeout`.
const IO_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a deletion did not end with the controller gone.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DisconnectError {
    /// The controller of that name is another one. Nothing was written.
    #[error("cannot delete {controller}: it is not the expected controller: {found}")]
    NotTheTarget {
        /// The name that was to be deleted, such as `nvme3`.
        controller: ControllerName,
        /// Which subsystem NQN or host NQN it has instead.
        found: String,
    },
    /// The deadline passed, and the kernel is still deleting. Call again with the same target to join.
    #[error("{controller} is still detaching after {:.1} s (its state was {})", since.as_secs_f64(), state_text(state))]
    StillDetaching {
        /// The name of the controller that is going, such as `nvme3`.
        controller: ControllerName,
        /// Its state right before the deletion was asked for; `None` where that was not read yet.
        state: Option<ControllerState>,
        /// For how long the deletion has been running.
        since: Duration,
    },
    /// Its attributes could not be read, so it was not deleted.
    #[error("cannot verify {controller} before deleting it ({path})")]
    Inspect {
        /// The name of the controller that is still there, such as `nvme3`.
        controller: ControllerName,
        /// The attribute or directory that was read.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The kernel, or nvme-cli, refused the deletion and the controller is still there.
    #[error("cannot delete {controller}")]
    Refused {
        /// The name of the controller that is still there, such as `nvme3`.
        controller: ControllerName,
        /// What the kernel, or nvme-cli, answered.
        #[source]
        source: Arc<io::Error>,
    },
    /// No thread could be started, or it was lost. Nobody knows whether the controller was deleted.
    #[error("cannot delete {controller}: its thread did not start, or was lost ({reason})")]
    Work {
        /// The name of the controller that may be there, such as `nvme3`.
        controller: ControllerName,
        /// Why the work gave no result, as text for a person.
        reason: String,
    },
}

fn state_text(state: &Option<ControllerState>) -> String {
    state.as_ref().map_or_else(|| "not read yet".to_owned(), ToString::to_string)
}

/// How the deletion is asked for, once the controller has been verified.
pub(super) type Means = Box<dyn FnOnce(&PinnedDir, &ControllerName) -> io::Result<()> + Send>;

/// Writes to `delete_controller` in the open directory.
pub(super) fn kernel_means() -> Means {
    Box::new(|dir, _| {
        let end = Instant::now() + FOLLOW;
        loop {
            let written = OpenOptions::new()
                .write(true)
                .open(dir.path().join("delete_controller"))
                .and_then(|mut file| file.write_all(b"1"));
            match written {
                // Since 6.2 a controller refuses in its first moments (`nvme_sysfs_delete`).
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                    std::thread::park_timeout(LOOK.1);
                }
                other => return other,
            }
        }
    })
}

/// How far a deletion has come.
#[derive(Debug, Clone)]
enum Progress {
    Verifying,
    Asked(ControllerState),
    Done(Result<Disconnected, DisconnectError>),
}

#[derive(Debug)]
struct Running {
    since: Instant,
    progress: watch::Receiver<Progress>,
}

/// Deletions under way, and finished ones whose result no caller has taken yet.
#[derive(Debug)]
pub(super) struct Deletions {
    sysfs: Sysfs,
    table: Mutex<HashMap<ExactController, Running>>,
}

impl Deletions {
    pub(super) fn new(sysfs: Sysfs) -> Self {
        Self { sysfs, table: Mutex::default() }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<ExactController, Running>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes the target, or joins a deletion that is under way.
    pub(super) async fn run(
        &self,
        target: &ExactController,
        deadline: Duration,
        means: Means,
    ) -> Result<Disconnected, DisconnectError> {
        let (mut progress, since) = self.join_or_start(target, means)?;
        let done = progress.wait_for(|progress| matches!(progress, Progress::Done(_)));
        let waited = tokio::time::timeout(deadline, done).await.map(|done| done.map(|done| done.clone()));
        match waited {
            Ok(done) => {
                self.table().remove(target);
                let Ok(Progress::Done(result)) = done else { return Err(lost(target)) };
                result
            }
            Err(_) => {
                let state = match &*progress.borrow() {
                    Progress::Asked(state) => Some(state.clone()),
                    _ => None,
                };
                let controller = target.controller.clone();
                Err(DisconnectError::StillDetaching { controller, state, since: since.elapsed() })
            }
        }
    }

    fn join_or_start(
        &self,
        target: &ExactController,
        means: Means,
    ) -> Result<(watch::Receiver<Progress>, Instant), DisconnectError> {
        let mut table = self.table();
        if let Some(running) = table.get(target)
            && self.still_applies(target, running)
        {
            return Ok((running.progress.clone(), running.since));
        }
        if table.len() >= MAX_KEPT {
            table.retain(|_, running| !matches!(&*running.progress.borrow(), Progress::Done(_)));
        }
        let (sender, receiver) = watch::channel(Progress::Verifying);
        let (sysfs, owned) = (self.sysfs.clone(), target.clone());
        let work = move || {
            let result = run(&sysfs, &owned, means, |state| {
                sender.send_replace(Progress::Asked(state));
            });
            sender.send_replace(Progress::Done(result));
        };
        work::spawn("nvme delete", work).map_err(|error| unstarted(target, &error))?;
        let since = Instant::now();
        table.insert(target.clone(), Running { since, progress: receiver.clone() });
        Ok((receiver, since))
    }

    /// Whether a finished deletion answers for its target. It does not when the name is in use again and the
    /// caller did not say which incarnation it means.
    fn still_applies(&self, target: &ExactController, running: &Running) -> bool {
        match &*running.progress.borrow() {
            Progress::Done(Ok(_)) => {
                target.incarnation.is_some() || incarnation(&self.sysfs, &target.controller).is_none()
            }
            // A failure is not an answer to a new request: try again.
            Progress::Done(Err(_)) => false,
            // A worker that ended without a result does not answer.
            _ => running.progress.has_changed().is_ok(),
        }
    }
}

fn lost(target: &ExactController) -> DisconnectError {
    let reason = "ended without a result".to_owned();
    DisconnectError::Work { controller: target.controller.clone(), reason }
}

fn unstarted(target: &ExactController, error: &WorkError) -> DisconnectError {
    DisconnectError::Work { controller: target.controller.clone(), reason: error.to_string() }
}

/// The incarnation that sysfs shows now under a controller's name; `None` where it shows none or could not be
/// read.
pub(super) fn incarnation(sysfs: &Sysfs, name: &ControllerName) -> Option<Incarnation> {
    life(sysfs, name).ok().flatten()
}

/// The same, but a failure to read is an error: a process that has run out of descriptors sees nothing.
fn life(sysfs: &Sysfs, name: &ControllerName) -> io::Result<Option<Incarnation>> {
    let opened = PinnedDir::open(&sysfs.controller_dir(name)).and_then(|dir| dir.incarnation());
    match opened {
        Ok(life) => Ok(Some(life)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Deletes through the kernel's interface on the calling thread: for a deletion that nobody waits for.
pub(super) fn run_kernel(sysfs: &Sysfs, target: &ExactController) -> Result<Disconnected, DisconnectError> {
    run(sysfs, target, kernel_means(), |_| {})
}

/// Verifies, asks, follows. May block for as long as the kernel does.
fn run(
    sysfs: &Sysfs,
    target: &ExactController,
    means: Means,
    asked: impl FnOnce(ControllerState),
) -> Result<Disconnected, DisconnectError> {
    run_for(sysfs, target, means, asked, FOLLOW)
}

/// The same, but follows the deletion for `follow`.
fn run_for(
    sysfs: &Sysfs,
    target: &ExactController,
    means: Means,
    asked: impl FnOnce(ControllerState),
    follow: Duration,
) -> Result<Disconnected, DisconnectError> {
    let gone = || Disconnected { controller: target.controller.clone(), how: HowDeleted::AlreadyGone };
    let Some((dir, incarnation)) = open_verified(sysfs, target)? else { return Ok(gone()) };
    let mut facts = read_facts(sysfs, &dir);
    if facts.state == unreadable_state() && !still_there(sysfs, target, incarnation) {
        return Ok(gone());
    }
    asked(facts.state.clone());
    let since = Instant::now();
    let answer = means(&dir, &target.controller);
    drop(dir);
    if let Err(source) = answer {
        // It is gone all the same: somebody else deleted it, and its state when that began is unknown.
        if !still_there(sysfs, target, incarnation) {
            return Ok(gone());
        }
        let controller = target.controller.clone();
        return Err(DisconnectError::Refused { controller, source: Arc::new(source) });
    }
    let mut pause = LOOK.0;
    while still_there(sysfs, target, incarnation) {
        if since.elapsed() > follow {
            let (controller, state) = (target.controller.clone(), Some(facts.state));
            return Err(DisconnectError::StillDetaching { controller, state, since: since.elapsed() });
        }
        std::thread::park_timeout(pause);
        pause = (pause * 2).min(LOOK.1);
    }
    facts.took = since.elapsed();
    Ok(Disconnected { controller: target.controller.clone(), how: HowDeleted::Deleted(facts) })
}

/// Says true where sysfs could not be read.
fn still_there(sysfs: &Sysfs, target: &ExactController, meant: Incarnation) -> bool {
    life(sysfs, &target.controller).map_or(true, |found| found == Some(meant))
}

/// Opens the controller's directory and compares its names; `None` when the one meant is gone.
pub(super) fn open_verified(
    sysfs: &Sysfs,
    target: &ExactController,
) -> Result<Option<(PinnedDir, Incarnation)>, DisconnectError> {
    let path = sysfs.controller_dir(&target.controller);
    let inspect = |path: PathBuf, source: io::Error| DisconnectError::Inspect {
        controller: target.controller.clone(),
        path,
        source: Arc::new(source),
    };
    let dir = match PinnedDir::open(&path) {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(inspect(path, error)),
    };
    let life = dir.incarnation().map_err(|error| inspect(path.clone(), error))?;
    if target.incarnation.is_some_and(|meant| meant != life) {
        // The name belongs to another controller now, so the one meant is gone.
        return Ok(None);
    }
    for (attribute, expected) in
        [("subsysnqn", target.subsystem.as_str()), ("hostnqn", target.host_nqn.as_str())]
    {
        match std::fs::read_to_string(dir.path().join(attribute)) {
            Ok(found) if found.trim_end() == expected => {}
            Ok(found) => {
                let found = format!("its {attribute} is {:?}, expected {expected:?}", found.trim_end());
                let controller = target.controller.clone();
                return Err(DisconnectError::NotTheTarget { controller, found });
            }
            Err(_) if !still_there(sysfs, target, life) => return Ok(None),
            Err(error) => return Err(inspect(path.join(attribute), error)),
        }
    }
    Ok(Some((dir, life)))
}

/// The state of a controller that does not show one. It is not live, so nothing is concluded from it.
fn unreadable_state() -> ControllerState {
    ControllerState::Other("unreadable".to_owned())
}

/// What has to be remembered of a controller before it goes.
fn read_facts(sysfs: &Sysfs, dir: &PinnedDir) -> DeletionFacts {
    let mut unreadable = Vec::new();
    let in_flight = read_in_flight(dir);
    let mut from = Attribute { dir: dir.path(), unreadable: &mut unreadable };
    let portal = from.text(Address::ATTRIBUTE).and_then(|text| Address::parse(&text)?.portal);
    // The state is read last: what counts is the state at the moment of the write.
    let state = from.value("state").unwrap_or_else(unreadable_state);
    DeletionFacts { state, in_flight, portal, took: Duration::ZERO, io_timeout: read_io_timeout(sysfs) }
}

/// Requests in flight on the controller's path devices (or bare devices), reads and writes together. `None`
/// where there is no such device, or where one does not say: the kernel counts only while it keeps the
/// statistics.
fn read_in_flight(dir: &PinnedDir) -> Option<u64> {
    let names = list(&dir.path()).ok()?;
    let mut devices = names.iter().filter(|name| name.starts_with("nvme")).peekable();
    devices.peek()?;
    let count = |name: &String| -> Option<u64> {
        let device = dir.path().join(name);
        if std::fs::read_to_string(device.join("queue/iostats")).is_ok_and(|counted| counted.trim() == "0") {
            return None;
        }
        let text = std::fs::read_to_string(device.join("inflight")).ok()?;
        text.split_whitespace().map(|word| word.parse::<u64>().ok()).sum()
    };
    devices.map(count).sum()
}

fn read_io_timeout(sysfs: &Sysfs) -> Duration {
    let path = sysfs.root().join("module/nvme_core/parameters/io_timeout");
    let seconds = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    seconds.map_or(IO_TIMEOUT, Duration::from_secs)
}

#[cfg(test)]
mod tests;
