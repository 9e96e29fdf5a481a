//! Views of many volumes that are looked at together, from few readings.
//!
//! Comes in: who wants to see a subsystem. Goes out: a view of it. Which controllers and subsystems there are, and whose, has to be
//! read for each view, and is most of the work with many volumes: it is read once for all who wait.
//!
//! Always holds: a view is from a reading that began after it was asked for. One reading is under way at a time; whoever
//! cannot be served by it within a second reads alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::{SubsystemView, Sysfs, SysfsError};
use crate::name::SubsystemNqn;
use crate::work;

/// How long to wait for the reading of all who ask together: it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whoever waits, and whether somebody reads for them. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct SharedViews {
    sysfs: Sysfs,
    shared: Arc<Mutex<Waiting>>,
}

type Asked = (SubsystemNqn, oneshot::Sender<SubsystemView>);

#[derive(Debug, Default)]
struct Waiting {
    all: Vec<Asked>,
    is_read: bool,
    #[cfg(test)]
    readings: u64,
}

impl SharedViews {
    /// Views of this tree.
    #[must_use]
    pub fn of(sysfs: Sysfs) -> Self {
        Self { sysfs, shared: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Each change under this lock is whole by itself.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Sysfs::view`].
    ///
    /// # Errors
    /// As [`Sysfs::view`].
    pub async fn view(&self, nqn: &SubsystemNqn, deadline: Duration) -> Result<SubsystemView, SysfsError> {
        let until = Instant::now() + deadline;
        if let Ok(Ok(view)) = timeout(PATIENCE.min(deadline), self.ask(nqn)).await {
            return Ok(view);
        }
        // What went wrong is told by a reading of one's own.
        let left = until.saturating_duration_since(Instant::now()).max(PATIENCE);
        self.sysfs.view(nqn, left).await
    }

    fn ask(&self, nqn: &SubsystemNqn) -> oneshot::Receiver<SubsystemView> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.lock();
        waiting.all.push((nqn.clone(), sender));
        if !std::mem::replace(&mut waiting.is_read, true) {
            let reader = Reader { views: self.clone(), done: false };
            // Where there is no thread for it the reader is dropped, and with it who waits.
            drop(waiting);
            let _ = work::spawn("read sysfs", move || reader.read_for_all());
        }
        receiver
    }

    /// How often sysfs was read.
    #[cfg(test)]
    fn readings(&self) -> u64 {
        self.lock().readings
    }
}

/// Reads for all who wait, until nobody does. However it ends, the next one who asks begins another.
struct Reader {
    views: SharedViews,
    done: bool,
}

impl Reader {
    fn read_for_all(mut self) {
        while let Some(batch) = self.next() {
            let nqns: Vec<SubsystemNqn> = batch.iter().map(|(nqn, _)| nqn.clone()).collect();
            // On an error all senders are dropped.
            let Ok(topology) = self.views.sysfs.read_among(&nqns) else { continue };
            for (nqn, sender) in batch {
                // Who has gone away does not need it.
                let _ = sender.send(topology.view_among_others(self.views.sysfs.root(), &nqn));
            }
        }
    }

    /// All who wait now; `None`, and the end, where nobody does.
    fn next(&mut self) -> Option<Vec<Asked>> {
        let mut waiting = self.views.lock();
        if waiting.all.is_empty() {
            // Under the same lock: whoever asks from here on starts another reader.
            (waiting.is_read, self.done) = (false, true);
            return None;
        }
        #[cfg(test)]
        {
            waiting.readings += 1;
        }
        Some(std::mem::take(&mut waiting.all))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.done {
            let mut waiting = self.views.lock();
            waiting.is_read = false;
            waiting.all.clear();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::fixtures::{ControllerSpec, NamespaceSpec, Tree};
    use crate::sysfs::Unreadable;

    const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000011";
    const LONG: Duration = Duration::from_secs(20);

    fn nqn(volume: u32) -> SubsystemNqn {
        SubsystemNqn::parse(&format!("nqn.2026-01.test:v{volume}")).unwrap()
    }

    fn tree(volumes: u32) -> Tree {
        let tree = Tree::new();
        for volume in 0..volumes {
            let subsystem = nqn(volume).to_string();
            tree.subsystem(volume, &subsystem);
            for (instance, ip) in [(2 * volume, "10.77.1.1"), (2 * volume + 1, "10.77.2.1")] {
                tree.controller(
                    volume,
                    &ControllerSpec {
                        instance,
                        subsystem: &subsystem,
                        host_nqn: HOST,
                        host_id: "00000000-0000-0000-0000-000000000011",
                        portal: (ip, 4420),
                        state: "live",
                    },
                );
            }
            let (uuid, dev) = (format!("01234567-89ab-cdef-0123-{volume:012}"), format!("259:{volume}"));
            let spec = NamespaceSpec { nsid: 1, uuid: &uuid, dev: &dev, size_bytes: 1 << 30 };
            tree.head(volume, &spec, &[2 * volume, 2 * volume + 1]);
        }
        tree
    }

    #[tokio::test]
    async fn views_that_are_asked_for_together_are_those_of_readings_alone() {
        let tree = tree(20);
        let (sysfs, views) = (tree.sysfs(), SharedViews::of(tree.sysfs()));
        let nqns: Vec<SubsystemNqn> = (0..20).map(nqn).collect();
        let together: Vec<_> = nqns
            .iter()
            .map(|nqn| {
                let (views, nqn) = (views.clone(), nqn.clone());
                // Asked for before any of them is waited for.
                (views.ask(&nqn), nqn)
            })
            .collect();
        for (asked, nqn) in together {
            assert_eq!(timeout(LONG, asked).await.unwrap().unwrap(), sysfs.view_blocking(&nqn).unwrap());
        }
        assert!(views.readings() <= 10, "{} readings", views.readings());
        let before = views.readings();
        let gone = nqn(30);
        assert!(views.view(&gone, LONG).await.unwrap().is_proven_absent());
        assert_eq!(views.readings(), before + 1, "the next one asks the kernel again");
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_an_error_of_a_reading_alone() {
        let views = SharedViews::of(Sysfs::at("/nowhere"));
        for _ in 0..2 {
            views.view(&nqn(0), LONG).await.unwrap_err();
        }
    }

    #[test]
    fn what_could_not_be_read_of_one_volume_is_no_doubt_about_another() {
        let tree = tree(2);
        let mut topology = tree.sysfs().read_among(&[nqn(0), nqn(1)]).unwrap();
        let class = tree.root().join("class");
        let unreadable = |path: &str| Unreadable { path: class.join(path), error: "EIO".into() };
        topology.unreadable =
            vec![unreadable("nvme/nvme2/state"), unreadable("nvme-subsystem/nvme-subsys1/x")];
        let of = |volume| topology.view_among_others(tree.root(), &nqn(volume)).unreadable.len();
        assert_eq!((of(0), of(1)), (0, 2));
        topology.unreadable = vec![unreadable("nvme/nvme9/subsysnqn")];
        let of = |volume| topology.view_among_others(tree.root(), &nqn(volume)).unreadable.len();
        assert_eq!((of(0), of(1)), (1, 1), "nobody knows whose it is");
    }
}
