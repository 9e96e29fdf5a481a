//! The topology as a whole, and the part of it that belongs to one subsystem.

use std::collections::BTreeMap;
use std::path::{Path as FsPath, PathBuf};

use serde::Serialize;

use super::attribute::list;
use super::controller::{self, Controller};
use super::namespace::{self, Namespace, NamespaceKind};
use super::unreadable::Unreadable;
use crate::name::{ControllerName, SubsystemNqn};
use crate::work::WorkError;

/// Why the topology could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SysfsError {
    /// A directory of the tree could not be listed.
    #[error("cannot list {path}")]
    List {
        /// The directory that could not be listed, or does not exist.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The reading did not end in time, or no thread could be started.
    #[error("cannot read sysfs")]
    Work {
        /// Why the work gave no result.
        #[source]
        source: WorkError,
    },
}

/// Whether the kernel makes one device of several paths by itself (`nvme_core.multipath`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NativeMultipath {
    /// The kernel joins paths: one device, the head, for each namespace.
    On,
    /// Switched off: each controller has its own device; dm-multipath may join them.
    Off,
    /// The kernel was built without it, or `nvme-core` is not loaded.
    Absent,
}

/// All NVMe controllers and namespaces of this host at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Topology {
    /// Whether the kernel joins paths by itself.
    pub multipath: NativeMultipath,
    /// Every controller, by name.
    pub controllers: Vec<Controller>,
    /// Every namespace that can be opened, with the NQN of its subsystem.
    pub namespaces: Vec<SubsystemNamespace>,
    /// What exists but could not be read: with an entry here, nobody can conclude "there is none".
    pub unreadable: Vec<Unreadable>,
}

/// A namespace and the subsystem that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SubsystemNamespace {
    /// NQN of the subsystem, as sysfs shows it, not validated.
    pub subsystem_nqn: String,
    /// The block device that the kernel made for it.
    pub namespace: Namespace,
}

/// What belongs to one subsystem NQN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SubsystemView {
    /// The NQN that was asked for.
    pub nqn: SubsystemNqn,
    /// Whether the kernel joins paths by itself.
    pub multipath: NativeMultipath,
    /// Controllers connected to it, under any host NQN.
    pub controllers: Vec<Controller>,
    /// Its namespaces that can be opened: heads, or bare devices.
    pub namespaces: Vec<Namespace>,
    /// What could not be read anywhere in the topology.
    pub unreadable: Vec<Unreadable>,
}

impl SubsystemView {
    /// Whether this host has nothing of the subsystem any more, and everything could be read.
    pub fn is_proven_absent(&self) -> bool {
        self.controllers.is_empty() && self.namespaces.is_empty() && self.unreadable.is_empty()
    }

    /// The controller with a name, if the subsystem has it.
    pub fn controller(&self, name: &ControllerName) -> Option<&Controller> {
        self.controllers.iter().find(|controller| controller.name == *name)
    }
}

impl Topology {
    /// What belongs to one subsystem NQN. A controller whose NQN cannot be read yet (it is being made) is in
    /// no view.
    pub fn view(&self, nqn: &SubsystemNqn) -> SubsystemView {
        let controllers =
            self.controllers.iter().filter(|c| c.subsystem_nqn.as_deref() == Some(nqn.as_str()));
        let namespaces = self.namespaces.iter().filter(|n| *nqn == *n.subsystem_nqn.as_str());
        SubsystemView {
            nqn: nqn.clone(),
            multipath: self.multipath,
            controllers: controllers.cloned().collect(),
            namespaces: namespaces.map(|n| n.namespace.clone()).collect(),
            unreadable: self.unreadable.clone(),
        }
    }

    /// The same, of a reading that is for others, too: without what could not be read of what is known to be theirs.
    pub(super) fn view_among_others(&self, root: &FsPath, nqn: &SubsystemNqn) -> SubsystemView {
        let mut view = self.view(nqn);
        let others = self
            .controllers
            .iter()
            .filter(|one| one.subsystem_nqn.as_deref().is_some_and(|other| *nqn != *other));
        let dirs = |one: &Controller| {
            let own = root.join("class/nvme").join(one.name.as_str());
            let subsystem = one.subsystem.as_ref().map(|name| root.join("class/nvme-subsystem").join(name));
            [Some(own), subsystem].into_iter().flatten()
        };
        let theirs: Vec<PathBuf> =
            if view.unreadable.is_empty() { Vec::new() } else { others.flat_map(dirs).collect() };
        view.unreadable.retain(|one| !theirs.iter().any(|dir| one.path.starts_with(dir)));
        view
    }

    /// NQNs of all subsystems with a controller or namespace, as sysfs shows them, sorted, without
    /// repetition.
    pub fn subsystem_nqns(&self) -> Vec<&str> {
        let of_controllers = self.controllers.iter().filter_map(|c| c.subsystem_nqn.as_deref());
        let of_namespaces = self.namespaces.iter().map(|n| n.subsystem_nqn.as_str());
        let mut nqns: Vec<&str> = of_controllers.chain(of_namespaces).collect();
        nqns.sort_unstable();
        nqns.dedup();
        nqns
    }
}

/// Directories of one subsystem, before its namespaces are read.
struct SubsystemDir {
    nqn: String,
    dir: PathBuf,
    controllers: Vec<ControllerName>,
}

/// How much to read. With many volumes connected, reading what nobody asked for would take most of the time
/// of a readiness check.
#[derive(Clone, Copy)]
pub(super) enum Scope<'a> {
    /// Every controller and every namespace of the host.
    All,
    /// All that belongs to these subsystems, including controllers that are still being made.
    Among(&'a [SubsystemNqn]),
    /// What is linked into the directory of this subsystem: controllers once they have been live. With the
    /// directory's name, no other directory is read, if it still is this subsystem's.
    Linked(&'a SubsystemNqn, Option<&'a str>),
}

impl Scope<'_> {
    fn wants(self, nqn: &str) -> bool {
        match self {
            Self::All => true,
            Self::Among(wanted) => wanted.iter().any(|wanted| *wanted == *nqn),
            Self::Linked(wanted, _) => *wanted == *nqn,
        }
    }
}

pub(super) fn read(root: &FsPath, scope: Scope<'_>) -> Result<Topology, SysfsError> {
    check_that_it_is_there(root)?;
    let mut unreadable = Vec::new();
    let subsystems = read_subsystems(root, scope, &mut unreadable)?;
    let mut subsystem_of: BTreeMap<&ControllerName, String> = BTreeMap::new();
    for subsystem in &subsystems {
        let name = subsystem.dir.file_name().unwrap_or_default().to_string_lossy();
        subsystem_of.extend(subsystem.controllers.iter().map(|c| (c, name.clone().into_owned())));
    }
    let class = root.join("class/nvme");
    let names: Vec<ControllerName> = match scope {
        Scope::Linked(..) => subsystem_of.keys().map(|name| (*name).clone()).collect(),
        _ => listed(&class)?.iter().filter_map(|name| ControllerName::parse(name).ok()).collect(),
    };
    let mut controllers = Vec::new();
    for name in names {
        if let Scope::Among(_) = scope {
            let mut from = super::Attribute { dir: class.join(name.as_str()), unreadable: &mut unreadable };
            // A controller whose NQN could not be read is in the list of unreadable ones by now.
            if !from.text("subsysnqn").is_some_and(|nqn| scope.wants(&nqn)) {
                continue;
            }
        }
        let subsystem = subsystem_of.get(&name).cloned();
        controllers.extend(controller::read(&class, name, subsystem, &mut unreadable));
    }
    let mut namespaces = Vec::new();
    for subsystem in &subsystems {
        for namespace in read_namespaces(root, subsystem, &mut unreadable)? {
            namespaces.push(SubsystemNamespace { subsystem_nqn: subsystem.nqn.clone(), namespace });
        }
    }
    Ok(Topology { multipath: read_multipath(root), controllers, namespaces, unreadable })
}

/// A kernel without NVMe has no such class, and no controllers. Where the module exists without the class, or
/// where there is nothing at all, this is not the kernel's tree, and it says nothing of controllers.
fn check_that_it_is_there(root: &FsPath) -> Result<(), SysfsError> {
    let wanted = if root.join("module/nvme_core").exists() { "class/nvme" } else { "class" };
    let path = root.join(wanted);
    std::fs::metadata(&path).map(drop).map_err(|source| SysfsError::List { path, source })
}

fn listed(dir: &FsPath) -> Result<Vec<String>, SysfsError> {
    list(dir).map_err(|source| SysfsError::List { path: dir.to_owned(), source })
}

fn read_multipath(root: &FsPath) -> NativeMultipath {
    match std::fs::read_to_string(root.join("module/nvme_core/parameters/multipath")) {
        Ok(text) if text.trim() == "Y" => NativeMultipath::On,
        Ok(_) => NativeMultipath::Off,
        Err(_) => NativeMultipath::Absent,
    }
}

fn read_subsystems(
    root: &FsPath,
    scope: Scope<'_>,
    unreadable: &mut Vec<Unreadable>,
) -> Result<Vec<SubsystemDir>, SysfsError> {
    let class = root.join("class/nvme-subsystem");
    if let Scope::Linked(_, Some(name)) = scope
        && let Some(found) = read_subsystem(class.join(name), scope, unreadable)?
    {
        return Ok(vec![found]);
    }
    let mut subsystems = Vec::new();
    for name in listed(&class)? {
        subsystems.extend(read_subsystem(class.join(&name), scope, unreadable)?);
    }
    Ok(subsystems)
}

fn read_subsystem(
    dir: PathBuf,
    scope: Scope<'_>,
    unreadable: &mut Vec<Unreadable>,
) -> Result<Option<SubsystemDir>, SysfsError> {
    let nqn = super::Attribute { dir: dir.clone(), unreadable }.text("subsysnqn");
    let Some(nqn) = nqn.filter(|nqn| scope.wants(nqn)) else { return Ok(None) };
    let controllers = listed(&dir)?.iter().filter_map(|name| ControllerName::parse(name).ok()).collect();
    Ok(Some(SubsystemDir { nqn, dir, controllers }))
}

/// Heads are in the subsystem's directory, paths and bare devices in their controller's.
fn read_namespaces(
    root: &FsPath,
    subsystem: &SubsystemDir,
    unreadable: &mut Vec<Unreadable>,
) -> Result<Vec<Namespace>, SysfsError> {
    let mut bare = Vec::new();
    // (name of the head, path): `nvme0c1n2` is a path of `nvme0n2`.
    let mut paths = Vec::new();
    for controller in &subsystem.controllers {
        let dir = root.join("class/nvme").join(controller.as_str());
        for name in listed(&dir)? {
            let device = dir.join(&name);
            if let Some(through) = namespace::path_controller(&name) {
                let head = head_of(&name);
                paths.extend(namespace::read_path(&device, &name, through, unreadable).map(|p| (head, p)));
            } else if namespace::is_namespace(&name) {
                let ana_state = namespace::read_ana(&device, unreadable);
                let kind = NamespaceKind::Bare { controller: controller.clone(), ana_state };
                bare.extend(namespace::read(root, &device, &name, kind, unreadable));
            }
        }
    }
    let mut namespaces = Vec::new();
    for name in listed(&subsystem.dir)?.into_iter().filter(|name| namespace::is_namespace(name)) {
        let (own, others) = paths.into_iter().partition(|(head, _)| *head == name);
        paths = others;
        let own: Vec<(String, namespace::NamespacePath)> = own;
        let kind = NamespaceKind::Head { paths: own.into_iter().map(|(_, path)| path).collect() };
        namespaces.extend(namespace::read(root, &subsystem.dir.join(&name), &name, kind, unreadable));
    }
    namespaces.append(&mut bare);
    Ok(namespaces)
}

/// The head of a path: `nvme0n2` for `nvme0c1n2`.
fn head_of(path: &str) -> String {
    let Some((subsystem, rest)) = path.split_once('c') else { return path.to_owned() };
    let namespace = rest.split_once('n').map_or("", |(_, namespace)| namespace);
    format!("{subsystem}n{namespace}")
}
