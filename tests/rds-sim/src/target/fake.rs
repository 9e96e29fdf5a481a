//! A target in memory that refuses what nvmet refuses.
//!
//! In: steps. Out: observations, the list of steps taken, and, on demand, a failure of the next step of a kind.
//! What always holds: the order rules of the kernel (drivers/nvme/target/configfs.c) are kept, so that a plan that
//! passes here is not refused there for its order.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::secret::Secret;

use super::{
    Connection, Namespace, Observed, ObservedNamespace, ObservedPort, ObservedSubsystem, Portal, Step,
    TargetError, TargetKernel,
};

/// An NVMe target in memory.
#[derive(Debug, Default)]
pub struct FakeTarget {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ports: BTreeMap<u16, (Portal, BTreeSet<String>)>,
    subsystems: BTreeMap<String, ObservedSubsystem>,
    secrets: BTreeMap<String, Secret>,
    taken: Vec<Step>,
    fail: Option<String>,
}

impl FakeTarget {
    /// A target with no ports and no subsystems.
    pub fn new() -> Self {
        Self::default()
    }

    /// The steps taken since the last call.
    pub fn take_steps(&self) -> Vec<Step> {
        std::mem::take(&mut self.lock().taken)
    }

    /// Makes the next step whose name starts so (such as `EnableNamespace`) fail with EIO.
    pub fn fail_next(&self, step: &str) {
        self.lock().fail = Some(step.to_owned());
    }

    /// Forgets everything, as a reboot does.
    pub fn reboot(&self) {
        *self.lock() = State::default();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TargetKernel for FakeTarget {
    fn probe(&self) -> Result<(), TargetError> {
        Ok(())
    }

    fn observe(&self, nqn: &str) -> Result<Observed, TargetError> {
        let state = self.lock();
        let port = |(id, (portal, links)): (&u16, &(Portal, BTreeSet<String>))| {
            (*id, ObservedPort { portal: Some(*portal), linked: links.contains(nqn) })
        };
        Ok(Observed {
            ports: state.ports.iter().map(port).collect(),
            subsystem: state.subsystems.get(nqn).cloned().map(|subsystem| {
                let known = |host: &String| Some((host.clone(), state.secrets.get(host)?.clone()));
                let secrets = subsystem.hosts.iter().filter_map(known).collect();
                ObservedSubsystem { secrets, ..subsystem }
            }),
        })
    }

    fn apply(&self, step: &Step) -> Result<(), TargetError> {
        let mut state = self.lock();
        let name = format!("{step:?}");
        let failed = match &state.fail {
            Some(fail) if name.starts_with(fail.as_str()) => {
                state.fail = None;
                Err(nix::Error::EIO)
            }
            _ => state.take(step),
        };
        state.taken.push(step.clone());
        failed.map_err(|errno| TargetError::Configfs {
            action: name,
            path: "fake target".into(),
            source: io::Error::from(errno),
        })
    }

    fn connections(&self, _portals: &BTreeSet<Portal>) -> Result<Vec<Connection>, TargetError> {
        Ok(Vec::new())
    }
}

impl State {
    fn take(&mut self, step: &Step) -> Result<(), nix::Error> {
        use nix::Error;
        match step {
            Step::CreatePort(id, portal) => {
                if self.ports.contains_key(id) {
                    return Err(Error::EEXIST);
                }
                self.ports.insert(*id, (*portal, BTreeSet::new()));
            }
            Step::CreateSubsystem { nqn, .. } => {
                if self.subsystems.contains_key(nqn) {
                    return Err(Error::EEXIST);
                }
                let fresh = ObservedSubsystem {
                    any_host: false,
                    hosts: BTreeSet::new(),
                    secrets: BTreeMap::new(),
                    namespace: None,
                };
                self.subsystems.insert(nqn.clone(), fresh);
            }
            Step::RemoveSubsystem(nqn) => {
                let subsystem = self.subsystem(nqn)?;
                if subsystem.namespace.is_some() || !subsystem.hosts.is_empty() || self.is_linked(nqn) {
                    return Err(Error::ENOTEMPTY);
                }
                self.subsystems.remove(nqn);
            }
            Step::Link(id, nqn) => {
                self.subsystem(nqn)?;
                let (_, links) = self.ports.get_mut(id).ok_or(Error::ENOENT)?;
                if !links.insert(nqn.clone()) {
                    return Err(Error::EEXIST);
                }
            }
            Step::Unlink(id, nqn) => {
                let (_, links) = self.ports.get_mut(id).ok_or(Error::ENOENT)?;
                if !links.remove(nqn) {
                    return Err(Error::ENOENT);
                }
            }
            Step::SetAnyHost(nqn, any) => {
                let subsystem = self.subsystem(nqn)?;
                if *any && !subsystem.hosts.is_empty() {
                    return Err(Error::EINVAL);
                }
                subsystem.any_host = *any;
            }
            Step::AllowHost(nqn, host) => {
                let subsystem = self.subsystem(nqn)?;
                if subsystem.any_host {
                    return Err(Error::EINVAL);
                }
                if !subsystem.hosts.insert(host.clone()) {
                    return Err(Error::EEXIST);
                }
            }
            Step::DisallowHost(nqn, host) => {
                if !self.subsystem(nqn)?.hosts.remove(host) {
                    return Err(Error::ENOENT);
                }
                // The kernel's entry of a host goes with its last subsystem, and the secret with it.
                if !self.subsystems.values().any(|subsystem| subsystem.hosts.contains(host)) {
                    self.secrets.remove(host);
                }
            }
            Step::SetSecret(host, secret) => {
                self.secrets.insert(host.clone(), secret.clone());
            }
            Step::SetNamespace(nqn, namespace, _) => self.set_namespace(nqn, namespace)?,
            Step::EnableNamespace(nqn) => self.namespace(nqn)?.enabled = true,
            Step::DisableNamespace(nqn) => self.namespace(nqn)?.enabled = false,
            Step::RemoveNamespace(nqn) => {
                self.namespace(nqn)?;
                self.subsystem(nqn)?.namespace = None;
            }
            Step::Revalidate(nqn) => {
                if !self.namespace(nqn)?.enabled {
                    return Err(Error::EINVAL);
                }
            }
        }
        Ok(())
    }

    fn set_namespace(&mut self, nqn: &str, namespace: &Namespace) -> Result<(), nix::Error> {
        let subsystem = self.subsystem(nqn)?;
        if subsystem.namespace.as_ref().is_some_and(|have| have.enabled) {
            return Err(nix::Error::EBUSY);
        }
        let down = ObservedNamespace {
            enabled: false,
            namespace: namespace.clone(),
            buffered: false,
            reservations: None,
        };
        subsystem.namespace = Some(down);
        Ok(())
    }

    fn is_linked(&self, nqn: &str) -> bool {
        self.ports.values().any(|(_, links)| links.contains(nqn))
    }

    fn subsystem(&mut self, nqn: &str) -> Result<&mut ObservedSubsystem, nix::Error> {
        self.subsystems.get_mut(nqn).ok_or(nix::Error::ENOENT)
    }

    fn namespace(&mut self, nqn: &str) -> Result<&mut ObservedNamespace, nix::Error> {
        self.subsystem(nqn)?.namespace.as_mut().ok_or(nix::Error::ENOENT)
    }
}
