//! The counters of one device and its paths, for whoever reads them many times a second.
//!
//! Comes in: a view and a device in it. Goes out: what was counted, by three small files instead of a whole view.
//!
//! Always holds: a number belongs to the device that the view showed. Its directories are held open, so whatever has its
//! name later is not read; once one of them has gone there is no reading at all.

use std::path::Path;

use super::namespace::{IoCounters, Namespace, NamespaceKind};
use super::{PinnedDir, SubsystemView, Sysfs};
use crate::name::ControllerName;

/// The files of one device and of each of its paths.
#[derive(Debug)]
pub struct CounterFiles {
    device: Pinned,
    paths: Vec<Pinned>,
}

#[derive(Debug)]
struct Pinned {
    name: String,
    dir: PinnedDir,
}

impl Pinned {
    fn open(above: &PinnedDir, name: &str) -> Option<Self> {
        let dir = PinnedDir::open(&above.path().join(name)).ok()?;
        Some(Self { name: name.to_owned(), dir })
    }

    fn read(&self) -> Option<(String, IoCounters)> {
        let text = std::fs::read_to_string(self.dir.path().join("stat")).ok()?;
        Some((self.name.clone(), IoCounters::parse(&text)?))
    }
}

/// What a device and its paths have counted, each by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountersRead {
    /// The head, or the bare device.
    pub device: (String, IoCounters),
    /// The paths of a head.
    pub paths: Vec<(String, IoCounters)>,
}

impl CounterFiles {
    /// Reads them; `None` where one of them has gone, so the device is to be looked for again.
    #[must_use]
    pub fn read(&self) -> Option<CountersRead> {
        let paths = self.paths.iter().map(Pinned::read).collect::<Option<_>>()?;
        Some(CountersRead { device: self.device.read()?, paths })
    }
}

impl Sysfs {
    /// Opens the counters of a device of this view; `None` where it is not there any more as the view shows it. Blocks.
    #[must_use]
    pub fn counter_files(&self, view: &SubsystemView, device: &Namespace) -> Option<CounterFiles> {
        let controller = |name: &ControllerName| {
            let shown = view.controller(name)?;
            let dir = PinnedDir::open(&self.controller_dir(name)).ok()?;
            (dir.incarnation().ok()? == shown.incarnation).then_some(dir)
        };
        let above = match &device.kind {
            NamespaceKind::Bare { controller: through, .. } => controller(through)?,
            NamespaceKind::Head { .. } => {
                let name = view.controllers.iter().find_map(|one| one.subsystem.as_deref())?;
                let dir = PinnedDir::open(&self.root().join("class/nvme-subsystem").join(name)).ok()?;
                (text(&dir.path().join("subsysnqn"))? == view.nqn.as_str()).then_some(dir)?
            }
        };
        let path = |name: &str, through: &ControllerName| Pinned::open(&controller(through)?, name);
        let paths =
            device.paths().iter().map(|one| path(&one.name, &one.controller)).collect::<Option<_>>()?;
        Some(CounterFiles { device: Pinned::open(&above, &device.name)?, paths })
    }
}

fn text(path: &Path) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{ControllerSpec, NamespaceSpec, Tree};

    const NQN: &str = "nqn.2026-01.test:v1";
    const CTL: &str = "devices/virtual/nvme-fabrics/ctl";

    fn connect(tree: &Tree, instance: u32) {
        tree.controller(
            0,
            &ControllerSpec {
                instance,
                subsystem: NQN,
                host_nqn: "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000011",
                host_id: "00000000-0000-0000-0000-000000000011",
                portal: ("10.77.1.1", 4420),
                state: "live",
            },
        );
    }

    fn head(tree: &Tree, paths: &[u32]) {
        let uuid = "01234567-89ab-cdef-0123-456789abcdef";
        tree.head(0, &NamespaceSpec { nsid: 1, uuid, dev: "259:1", size_bytes: 1 << 30 }, paths);
    }

    fn files(tree: &Tree) -> Option<CounterFiles> {
        let view = tree.sysfs().view_blocking(&NQN.parse().ok()?).ok()?;
        tree.sysfs().counter_files(&view, view.namespaces.first()?)
    }

    fn writes(read: Option<CountersRead>) -> Option<Vec<(String, u64)>> {
        let CountersRead { device, paths } = read?;
        Some([device].into_iter().chain(paths).map(|(name, counted)| (name, counted.writes)).collect())
    }

    #[test]
    fn what_a_device_and_its_paths_have_counted_is_read_again_and_again() {
        let tree = Tree::new();
        tree.subsystem(0, NQN);
        (0..2).for_each(|instance| connect(&tree, instance));
        head(&tree, &[0, 1]);
        let files = files(&tree).expect("a device");
        let counted = |one, two| {
            Some(vec![
                ("nvme0n1".to_owned(), 0),
                ("nvme0c0n1".to_owned(), one),
                ("nvme0c1n1".to_owned(), two),
            ])
        };
        assert_eq!(writes(files.read()), counted(0, 0));
        tree.write(&format!("{CTL}/nvme1/nvme0c1n1/stat"), "1 0 8 1 7 0 16 2 0 0 1\n");
        assert_eq!(writes(files.read()), counted(0, 7));
    }

    #[test]
    fn whatever_has_the_name_later_is_not_read() {
        let tree = Tree::new();
        tree.subsystem(0, NQN);
        connect(&tree, 0);
        head(&tree, &[0]);
        let files = files(&tree).expect("a device");
        let view = tree.sysfs().view_blocking(&NQN.parse().expect("valid")).expect("readable");
        tree.remove_controller(0, 0);
        tree.subsystem(0, NQN);
        connect(&tree, 0);
        head(&tree, &[0]);
        tree.write(&format!("{CTL}/nvme0/nvme0c0n1/stat"), "1 0 8 1 900 0 16 2 0 0 1\n");
        // The tree keeps what it takes away readable; a kernel does not, and then there is no reading.
        assert!(writes(files.read()).is_none_or(|read| read[1].1 == 0));
        assert!(tree.sysfs().counter_files(&view, &view.namespaces[0]).is_none(), "not what the view shows");
    }
}
