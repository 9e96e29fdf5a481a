//! Has the kernel give up a connection and make it again, on a controller that exists.
//!
//! A reset cancels what waits on the connection, so that native multipath sends it on another path at once. What
//! the target has received is not called back (docs/decisions/0021). The controller stays, and with it its name and
//! what is open on its head.
//!
//! Always holds: subsystem NQN, host NQN and state are read through the open directory to which the reset is
//! written; nothing but a live controller is reset. The kernel may take a minute to answer, as it writes to
//! the dead connection on its way: one reset of a controller at a time, on a thread of its own.

use std::io;
use std::time::Duration;

use super::{DisconnectError, ExactController, delete};
use crate::name::ControllerName;
use crate::sysfs::{ControllerState, Sysfs};
use crate::work::{WorkError, Workers};

/// Why a controller was not reset, or may not have been.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// The controller of that name is another one, or could not be read. Nothing was written.
    #[error("cannot reset {controller}: it cannot be verified")]
    Verify {
        /// The controller that was to be reset, such as `nvme3`.
        controller: ControllerName,
        /// What it has instead, or what could not be read.
        #[source]
        source: Box<DisconnectError>,
    },
    /// The kernel refused.
    #[error("cannot reset {controller}")]
    Refused {
        /// The controller that was to be reset, such as `nvme3`.
        controller: ControllerName,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The deadline passed, earlier work on the same controller still runs, or no thread could be started. The
    /// kernel may still reset it.
    #[error("cannot wait for the reset of {controller}")]
    Work {
        /// The controller that may be reset, such as `nvme3`.
        controller: ControllerName,
        /// Why the work gave no result.
        #[source]
        source: WorkError,
    },
}

/// What became of a reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResetEnd {
    /// The kernel has reset it: the connection was made again, or is being made.
    Done,
    /// It was not live any more, so nothing was written; its state.
    NotLive(ControllerState),
    /// It was gone.
    Gone,
}

/// Resets a live controller, and waits for the kernel's answer at most for `deadline`.
///
/// # Errors
/// [`ResetError`]; after `Work` the kernel may still be at it.
pub async fn reset(
    workers: &Workers,
    sysfs: &Sysfs,
    target: &ExactController,
    deadline: Duration,
) -> Result<ResetEnd, ResetError> {
    let (sysfs, owned) = (sysfs.clone(), target.clone());
    let work = move || reset_blocking(&sysfs, &owned);
    let done = workers.run(&format!("reset {}", target.controller), deadline, work).await;
    done.unwrap_or_else(|source| Err(ResetError::Work { controller: target.controller.clone(), source }))
}

fn reset_blocking(sysfs: &Sysfs, target: &ExactController) -> Result<ResetEnd, ResetError> {
    let controller = || target.controller.clone();
    let opened = delete::open_verified(sysfs, target)
        .map_err(|source| ResetError::Verify { controller: controller(), source: Box::new(source) })?;
    let Some((dir, _)) = opened else { return Ok(ResetEnd::Gone) };
    let refused = |source| ResetError::Refused { controller: controller(), source };
    let state = match std::fs::read_to_string(dir.path().join("state")) {
        Ok(text) => text.parse().unwrap_or(ControllerState::Other(text)),
        Err(error) if is_gone(&error) => return Ok(ResetEnd::Gone),
        Err(error) => return Err(refused(error)),
    };
    if !state.is_live() {
        return Ok(ResetEnd::NotLive(state));
    }
    match std::fs::write(dir.path().join("reset_controller"), "1") {
        Ok(()) => Ok(ResetEnd::Done),
        Err(error) => match how(&error) {
            Some(end) => Ok(end),
            None => Err(refused(error)),
        },
    }
}

/// What an error of the write means, where it is none (`nvme_reset_ctrl_sync`).
fn how(error: &io::Error) -> Option<ResetEnd> {
    match error.raw_os_error()? {
        // It was reset, and could not be connected again: the kernel goes on trying.
        libc::ENETRESET => Some(ResetEnd::Done),
        // The kernel was faster.
        libc::EBUSY => Some(ResetEnd::NotLive(ControllerState::Resetting)),
        libc::ENOENT | libc::ENODEV | libc::ENXIO => Some(ResetEnd::Gone),
        _ => None,
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::fixtures::{ControllerSpec, Tree};

    const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000011";
    const NQN: &str = "nqn.2026-01.test:v1";
    const LONG: Duration = Duration::from_secs(20);

    fn one(state: &str) -> (Tree, ExactController) {
        let tree = Tree::new();
        tree.subsystem(0, NQN);
        let spec = ControllerSpec {
            instance: 0,
            subsystem: NQN,
            host_nqn: HOST,
            host_id: "00000000-0000-0000-0000-000000000011",
            portal: ("10.77.1.1", 4420),
            state,
        };
        tree.controller(0, &spec);
        let target = ExactController {
            controller: ControllerName::from_instance(0),
            subsystem: NQN.parse().unwrap(),
            host_nqn: HOST.parse().unwrap(),
            incarnation: None,
        };
        (tree, target)
    }

    /// What was written to the controller's `reset_controller`.
    fn written(tree: &Tree) -> String {
        let dir = tree.sysfs().controller_dir(&ControllerName::from_instance(0));
        std::fs::read_to_string(dir.join("reset_controller")).unwrap_or_default()
    }

    #[tokio::test]
    async fn a_live_controller_is_reset_and_no_other() {
        let workers = Workers::new();
        let (tree, target) = one("live");
        assert_eq!(reset(&workers, &tree.sysfs(), &target, LONG).await.unwrap(), ResetEnd::Done);
        assert_eq!(written(&tree), "1");
        let (tree, target) = one("connecting");
        let found = reset(&workers, &tree.sysfs(), &target, LONG).await.unwrap();
        assert_eq!(found, ResetEnd::NotLive(ControllerState::Connecting));
        assert_eq!(written(&tree), "");
        tree.remove_controller(0, 0);
        assert_eq!(reset(&workers, &tree.sysfs(), &target, LONG).await.unwrap(), ResetEnd::Gone);
    }

    #[test]
    fn a_reset_that_cannot_connect_again_is_a_reset() {
        let of = |number| how(&io::Error::from_raw_os_error(number));
        assert_eq!(of(libc::ENETRESET), Some(ResetEnd::Done));
        assert_eq!(of(libc::EBUSY), Some(ResetEnd::NotLive(ControllerState::Resetting)));
        assert_eq!(of(libc::ENODEV), Some(ResetEnd::Gone));
        assert_eq!(of(libc::EACCES), None);
    }

    #[tokio::test]
    async fn a_controller_of_another_host_is_left_alone() {
        let (tree, target) = one("live");
        let target = ExactController { host_nqn: "nqn.2026-01.test:other".parse().unwrap(), ..target };
        let error = reset(&Workers::new(), &tree.sysfs(), &target, LONG).await.unwrap_err();
        assert!(matches!(error, ResetError::Verify { .. }), "{error}");
        assert_eq!(written(&tree), "");
    }
}
