//! Sets how long the kernel tries to get a connection back, on a controller that exists.
//!
//! A controller that somebody else made (by hand, or a distribution's autoconnect) has times of its own and
//! keeps them when Cleat takes it over. One that gives up after 30 s takes a VM's disk away in an outage that
//! ours would survive.
//!
//! Always holds: what was written is read back; what cannot be set is reported with its value.

use std::io;
use std::time::Duration;

use super::{ConnectOptions, ExactController, LossTimeout, delete};
use crate::name::ControllerName;
use crate::sysfs::{PinnedDir, Sysfs};
use crate::work::Workers;

/// Why a controller kept other times.
#[derive(Debug, thiserror::Error)]
#[error("{controller} has other timeouts than ours: {why}")]
pub struct TimeoutsError {
    /// The controller that keeps them, such as `nvme3`.
    pub controller: ControllerName,
    /// Which attributes could not be set, and why; `; ` separates them.
    pub why: String,
}

/// Sets the times of a controller to those of `options` where they differ; true if anything was changed.
pub(super) async fn set(
    workers: &Workers,
    sysfs: &Sysfs,
    target: &ExactController,
    options: &ConnectOptions,
    deadline: Duration,
) -> Result<bool, TimeoutsError> {
    let failed = |why: String| TimeoutsError { controller: target.controller.clone(), why };
    let (sysfs, owned, wanted) = (sysfs.clone(), target.clone(), wanted(options));
    let work = move || match delete::open_verified(&sysfs, &owned) {
        Ok(Some((dir, _))) => set_all(&dir, &wanted),
        // Gone: there are no times to set.
        Ok(None) => Ok(false),
        Err(error) => Err(error.to_string()),
    };
    let done = workers.run(&format!("times of {}", target.controller), deadline, work).await;
    done.map_err(|error| failed(error.to_string()))?.map_err(failed)
}

/// Attributes, each with the text to write and the text that it reads afterwards.
fn wanted(options: &ConnectOptions) -> Vec<(&'static str, String, String)> {
    let seconds = |time: Duration| time.as_secs().to_string();
    let same = |name, time: Option<Duration>| time.map(|time| (name, seconds(time), seconds(time)));
    // The kernel keeps a number of attempts, so it shows a multiple of the delay.
    let rounded = |time: Duration| {
        let delay = options.reconnect_delay.map_or(1, |delay| delay.as_secs().max(1));
        (time.as_secs().div_ceil(delay) * delay).to_string()
    };
    let loss = options.ctrl_loss_tmo.map(|limit| match limit {
        LossTimeout::After(time) => ("ctrl_loss_tmo", seconds(time), rounded(time)),
        LossTimeout::Never => ("ctrl_loss_tmo", "-1".to_owned(), "off".to_owned()),
    });
    // How many attempts fit into the time depends on the delay, so the delay comes first.
    [same("reconnect_delay", options.reconnect_delay), loss].into_iter().flatten().collect()
}

fn set_all(dir: &PinnedDir, wanted: &[(&'static str, String, String)]) -> Result<bool, String> {
    let (mut changed, mut failures) = (false, Vec::new());
    for (name, write, read) in wanted {
        match set_one(dir, name, write, read) {
            Ok(done) => changed |= done,
            Err(why) => failures.push(format!("cannot set {name} to {read}: {why}")),
        }
    }
    if failures.is_empty() { Ok(changed) } else { Err(failures.join("; ")) }
}

fn set_one(dir: &PinnedDir, name: &str, write: &str, expected: &str) -> Result<bool, String> {
    let path = dir.path().join(name);
    let found = || std::fs::read_to_string(&path).map(|text| text.trim().to_owned());
    let words = |error: io::Error| error.to_string();
    if found().map_err(words)? == expected {
        return Ok(false);
    }
    std::fs::write(&path, write).map_err(words)?;
    match found().map_err(words)? {
        now if now == expected => Ok(true),
        other => Err(format!("it reads {other}")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::fixtures::{ControllerSpec, Tree};

    const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000011";
    const NQN: &str = "nqn.2026-01.test:v1";

    #[tokio::test]
    async fn a_controller_with_other_times_gets_ours_or_says_why_not() {
        let tree = Tree::new();
        tree.subsystem(0, NQN);
        let spec = ControllerSpec {
            instance: 0,
            subsystem: NQN,
            host_nqn: HOST,
            host_id: "00000000-0000-0000-0000-000000000011",
            portal: ("10.77.1.1", 4420),
            state: "live",
        };
        tree.controller(0, &spec);
        let sysfs = Sysfs::at(tree.root());
        let target = ExactController {
            controller: ControllerName::from_instance(0),
            subsystem: NQN.parse().unwrap(),
            host_nqn: HOST.parse().unwrap(),
            incarnation: None,
        };
        let dir = sysfs.controller_dir(&target.controller);
        std::fs::write(dir.join("reconnect_delay"), "10\n").unwrap();
        std::fs::write(dir.join("ctrl_loss_tmo"), "30\n").unwrap();
        let options = ConnectOptions {
            reconnect_delay: Some(Duration::from_secs(1)),
            ctrl_loss_tmo: Some(LossTimeout::After(Duration::from_secs(600))),
            ..ConnectOptions::default()
        };
        let workers = Workers::new();
        let set = |options: ConnectOptions| {
            let (workers, sysfs, target) = (workers.clone(), sysfs.clone(), target.clone());
            async move { set(&workers, &sysfs, &target, &options, Duration::from_secs(20)).await }
        };
        assert!(set(options).await.unwrap());
        assert_eq!(std::fs::read_to_string(dir.join("ctrl_loss_tmo")).unwrap(), "600");
        assert_eq!(std::fs::read_to_string(dir.join("reconnect_delay")).unwrap(), "1");
        assert!(!set(options).await.unwrap(), "nothing to change");
        // A plain file reads what was written, as no kernel does for "never".
        let never = ConnectOptions { ctrl_loss_tmo: Some(LossTimeout::Never), ..options };
        let error = set(never).await.unwrap_err().to_string();
        assert_eq!(error, "nvme0 has other timeouts than ours: cannot set ctrl_loss_tmo to off: it reads -1");
        std::fs::write(dir.join("ctrl_loss_tmo"), "off\n").unwrap();
        assert!(!set(never).await.unwrap());
    }
}
