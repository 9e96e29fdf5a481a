//! Ends who has tickets' loop devices open, so that these go by themselves.
//!
//! Comes in: a block device, and until when. Goes out: who was ended, or what is left.
//!
//! Always holds: nobody is signalled but a process that two looks, [`PASSING`] apart, have found with such a loop device
//! open (udev opens every device for a moment), and it is signalled by a descriptor that was taken of it before the second
//! look: a process id that was given away again meanwhile hits nobody. SIGTERM comes first, SIGKILL after a third of the
//! time. The loop device itself is left alone: it goes with its last user, and until then the kernel reads for them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::{Instant, sleep};

use super::{AGAIN, DeviceUser, LoopUse, Openers, PASSING, ProcessUse, processes};
use crate::name::DevT;
use crate::work::WorkError;

/// The shortest time for one look.
const LOOK: Duration = Duration::from_secs(1);

/// Why a ticket's loop device is still there.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// The processes or loop devices of this host could not be looked at.
    #[error("cannot see who has a ticket's device open")]
    Look(#[source] WorkError),
    /// The process ids that we see are not the host's.
    #[error("cannot end who has a ticket's device open: {0}")]
    NotTheHosts(String),
    /// A process could not be signalled.
    #[error("cannot end {process}")]
    Signal {
        /// The process, as text for a person.
        process: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The time has passed.
    #[error("still there after {after:?}: {}", left.join("; "))]
    Left {
        /// For how long it was tried.
        after: Duration,
        /// The loop devices and their users, as text for a person.
        left: Vec<String>,
    },
}

/// A process that was found with a ticket's loop device open.
#[derive(Debug)]
struct Opener {
    process: OwnedFd,
    found: Instant,
    asked: bool,
}

impl Openers {
    /// Ends the processes that have loop devices of tickets over `dev` open (those of one ticket, where `ticket` names
    /// one), and waits until the loop devices are gone. Our own process is left out.
    ///
    /// # Errors
    /// [`CutError`]; who was signalled before stays so.
    pub async fn cut_tickets(
        &self,
        dev: DevT,
        ticket: Option<&str>,
        until: Instant,
    ) -> Result<Vec<String>, CutError> {
        let began = Instant::now();
        let kill_from = began + until.saturating_duration_since(began) / 3;
        let (mut openers, mut ended) = (BTreeMap::<u32, Opener>::new(), Vec::new());
        loop {
            let left = until.saturating_duration_since(Instant::now()).max(LOOK);
            let (loops, _) = self.loops(dev, Instant::now(), left).await.map_err(CutError::Look)?;
            let meant =
                |one: &LoopUse| one.ticket.as_deref().is_some_and(|of| ticket.is_none_or(|id| id == of));
            let loops: Vec<LoopUse> = loops.into_iter().filter(meant).collect();
            if loops.is_empty() {
                return Ok(ended);
            }
            if let Some(why) = processes::not_the_hosts(&self.places) {
                return Err(CutError::NotTheHosts(why.to_string()));
            }
            let devices: BTreeSet<DevT> = loops.iter().map(|one| one.dev).collect();
            let using = self.processes_with(&devices, left).await?;
            openers.retain(|pid, _| using.iter().any(|process| process.pid == *pid));
            for process in using.iter().filter(|process| process.pid > 1) {
                if end(process, &mut openers, Instant::now() >= kill_from)? {
                    ended.push(DeviceUser::Process(process.clone()).to_string());
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let users = using.into_iter().map(|process| DeviceUser::Process(process).to_string());
                let left = loops.iter().map(ToString::to_string).chain(users).collect();
                return Err(CutError::Left { after: began.elapsed(), left });
            }
            sleep(AGAIN.min(left)).await;
        }
    }

    async fn processes_with(
        &self,
        devices: &BTreeSet<DevT>,
        deadline: Duration,
    ) -> Result<Vec<ProcessUse>, CutError> {
        let found = self.processes.fresh(&self.places, deadline).await.map_err(CutError::Look)?;
        let process = |user| match user {
            DeviceUser::Process(process) => Some(process),
            _ => None,
        };
        Ok(found.users_of(devices).filter_map(process).collect())
    }
}

/// Takes note of a process, or signals one that was noted before; true where this was the first signal.
fn end(process: &ProcessUse, openers: &mut BTreeMap<u32, Opener>, kill: bool) -> Result<bool, CutError> {
    let failed = |source: rustix::io::Errno| CutError::Signal {
        process: DeviceUser::Process(process.clone()).to_string(),
        source: source.into(),
    };
    let Some(opener) = openers.get_mut(&process.pid) else {
        let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
        match pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            Some(Ok(descriptor)) => {
                openers
                    .insert(process.pid, Opener { process: descriptor, found: Instant::now(), asked: false });
            }
            None | Some(Err(rustix::io::Errno::SRCH)) => {}
            Some(Err(error)) => return Err(failed(error)),
        }
        return Ok(false);
    };
    if opener.found.elapsed() < PASSING || (opener.asked && !kill) {
        return Ok(false);
    }
    match pidfd_send_signal(&opener.process, if kill { Signal::KILL } else { Signal::TERM }) {
        Ok(()) => Ok(!std::mem::replace(&mut opener.asked, true)),
        // It has ended; who has its number now is somebody else.
        Err(rustix::io::Errno::SRCH) => {
            openers.remove(&process.pid);
            Ok(false)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
#[path = "cut_tests.rs"]
mod tests;
