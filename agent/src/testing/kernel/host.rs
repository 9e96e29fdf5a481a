//! What the machine around the kernel made of memory says: looks, judgements, users, mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cleat_host::blockio::ReadFact;
use cleat_host::fabrics::{ExactController, Fabrics, ResetEnd, ResetError};
use cleat_host::fixtures::shown;
use cleat_host::openers::HeldDescriptor;
use cleat_host::reach::Reached;
use cleat_host::readiness::{Expectation, evaluate, select};
use cleat_host::reservations::Reservations;
use cleat_host::sockets::SocketsByPortal;
use cleat_host::sysfs::{ControllerState, SubsystemView, SysfsError, Topology};
use cleat_host::tcp::Unacknowledged;
use cleat_host::work::WorkError;
use cleat_host::{DevT, Portal, SubsystemNqn};
use tokio::time::Instant;

use super::{ConnectAnswer, Kernel};
use crate::volume::host::{AtTarget, Checked, Host, HostError, Later};

impl Host for Kernel {
    fn fabrics(&self) -> &dyn Fabrics {
        self
    }

    fn reach(&self, portal: Portal, patience: Duration) -> Later<'_, Reached> {
        Box::pin(async move {
            self.world().asked.push(portal);
            if self.answer_of(portal) != ConnectAnswer::Drop {
                return Reached::Answers;
            }
            tokio::time::sleep(patience).await;
            Reached::Silent("no answer to TCP".into())
        })
    }

    fn timeouts(&self) -> Later<'_, Result<u64, HostError>> {
        let counted = self.world().timeouts;
        Box::pin(std::future::ready(Ok(counted)))
    }

    fn unacknowledged<'a>(
        &'a self,
        portals: &'a BTreeSet<SocketAddr>,
    ) -> Later<'a, Result<BTreeMap<IpAddr, Unacknowledged>, HostError>> {
        let world = self.world();
        let waiting =
            world.waiting.iter().filter(|(address, _)| portals.contains(&SocketAddr::new(**address, 4420)));
        let found = waiting.map(|(address, times)| {
            (*address, Unacknowledged { connections: 1, timeouts: *times, port: 4420 })
        });
        let found = found.collect();
        Box::pin(std::future::ready(Ok(found)))
    }

    fn reset<'a>(
        &'a self,
        target: &'a ExactController,
        deadline: Duration,
    ) -> Later<'a, Result<ResetEnd, ResetError>> {
        Box::pin(async move {
            self.change(|world| {
                world.resets.push(target.controller.to_string());
                let of = world.controllers.iter_mut().find(|one| one.name == target.controller);
                if let Some(one) = of {
                    one.state = ControllerState::Resetting;
                    let address = one.portal().unwrap().ip();
                    world.waiting.remove(&address);
                }
            });
            let free = self.until(|world| (!world.resets_hang).then_some(()));
            let waited = tokio::time::timeout(deadline, free).await;
            let (what, controller) = ("reset".to_owned(), target.controller.clone());
            waited
                .map(|()| ResetEnd::Done)
                .map_err(|_| ResetError::Work { controller, source: WorkError::Overdue { what, deadline } })
        })
    }

    fn sockets(&self) -> Later<'_, Result<SocketsByPortal, HostError>> {
        Box::pin(async { Ok(self.world().sockets()) })
    }

    fn reservations(&self) -> &dyn Reservations {
        self
    }

    fn topology(&self) -> Later<'_, Result<Topology, SysfsError>> {
        Box::pin(async {
            self.world().topologies += 1;
            self.broken().map(|()| self.world().topology())
        })
    }

    fn view<'a>(&'a self, nqn: &'a SubsystemNqn) -> Later<'a, Result<SubsystemView, SysfsError>> {
        Box::pin(async {
            let mut world = self.world();
            world.views += 1;
            drop(world);
            self.broken().map(|()| self.world().topology().view(nqn))
        })
    }

    fn check<'a>(
        &'a self,
        expectation: &'a Expectation,
        deadline: Duration,
    ) -> Later<'a, Result<Checked, HostError>> {
        self.check_since(expectation, Instant::now(), deadline)
    }

    fn check_since<'a>(
        &'a self,
        expectation: &'a Expectation,
        since: Instant,
        _: Duration,
    ) -> Later<'a, Result<Checked, HostError>> {
        Box::pin(async move {
            self.until(|world| (!world.reads_hang).then_some(())).await;
            let mut world = self.world();
            world.checks += 1;
            if world.scanned.is_none_or(|last| last < since) {
                world.scans += 1;
                world.scanned = Some(Instant::now());
            }
            let view = world.topology().view(&expectation.subsystem);
            let selected = match select(&view, expectation) {
                Ok(selected) => selected,
                Err(unready) => return Ok(Err(unready)),
            };
            let read = match world.reads_fail {
                true => ReadFact::Failed { error: "Input/output error".into() },
                false => ReadFact::Done { took: Duration::ZERO },
            };
            Ok(evaluate(&view, expectation, &shown::probed(&selected, read)))
        })
    }

    fn users<'a>(&'a self, _: &'a SubsystemView) -> Later<'a, Result<Vec<String>, HostError>> {
        Box::pin(async {
            self.until(|world| (!world.users_hang).then_some(())).await;
            let world = self.world();
            match world.users_unknown {
                true => Err(HostError::new("could not look for users", "/proc/1/fd: Permission denied")),
                false => Ok(world.users.iter().chain(&world.ticket_users).cloned().collect()),
            }
        })
    }

    fn cut_tickets<'a>(
        &'a self,
        _: &'a SubsystemView,
        _: Instant,
    ) -> Later<'a, Result<Vec<String>, HostError>> {
        Box::pin(async {
            self.world().cuts += 1;
            self.until(|world| (!world.cuts_hang).then_some(())).await;
            let mut world = self.world();
            match world.tickets_stay {
                true => Err(HostError::new("cannot cut tickets off", "still there after 10s")),
                false => Ok(std::mem::take(&mut world.ticket_users)),
            }
        })
    }

    fn held_by<'a>(
        &'a self,
        pods: &'a BTreeSet<String>,
    ) -> Later<'a, Result<(Vec<HeldDescriptor>, bool), HostError>> {
        Box::pin(async move {
            let world = self.world();
            let is_theirs =
                |held: &&HeldDescriptor| held.pod_uid.as_ref().is_some_and(|uid| pods.contains(uid));
            match world.users_unknown {
                true => Err(HostError::new("could not look at what pods have open", "it took too long")),
                false => Ok((world.held.iter().filter(is_theirs).cloned().collect(), !world.held_unread)),
            }
        })
    }

    fn users_of_device(&self, _: DevT) -> Later<'_, Result<Vec<String>, HostError>> {
        Box::pin(async {
            let world = self.world();
            match world.users_unknown {
                true => Err(HostError::new("could not look for users", "/proc/1/fd: Permission denied")),
                false => Ok(world.users.clone()),
            }
        })
    }

    fn stay_without_paths(&self, _: DevT, stay: Duration) -> Later<'_, Result<Option<Duration>, HostError>> {
        Box::pin(async move {
            let mut world = self.world();
            if world.delay_is_stuck {
                return Err(HostError::new("the multipath head may outlive its paths", "Input/output error"));
            }
            let before = std::mem::take(&mut world.stay);
            world.delayed_removal = world.knows_delay && !stay.is_zero();
            world.stay = stay;
            Ok(world.knows_delay.then_some(before))
        })
    }

    fn flush(&self, _: DevT, _: Duration) -> Later<'_, Result<(), HostError>> {
        Box::pin(async {
            self.until(|world| (!world.flushes_hang).then_some(())).await;
            self.world().flushed += 1;
            Ok(())
        })
    }

    fn publications(&self, dev: DevT) -> Later<'_, Result<Vec<PathBuf>, HostError>> {
        Box::pin(async move {
            let world = self.world();
            let published = world.targets.iter().filter(|(_, at)| **at == AtTarget::Device(dev));
            Ok(published.map(|(target, _)| target.clone()).collect())
        })
    }

    fn device_name(&self, dev: DevT) -> Later<'_, Result<Option<String>, HostError>> {
        Box::pin(async move { Ok(self.world().disks.get(&dev).cloned()) })
    }

    fn at_target<'a>(&'a self, target: &'a Path) -> Later<'a, Result<AtTarget, HostError>> {
        Box::pin(async move { Ok(self.world().targets.get(target).cloned().unwrap_or(AtTarget::Nothing)) })
    }

    fn publish<'a>(
        &'a self,
        _: &'a Path,
        dev: DevT,
        target: &'a Path,
        read_only: bool,
    ) -> Later<'a, Result<(), HostError>> {
        Box::pin(async move {
            self.change(|world| {
                world.targets.insert(target.to_owned(), AtTarget::Device(dev));
                if read_only {
                    world.read_only_targets.insert(target.to_owned());
                }
            });
            Ok(())
        })
    }

    fn is_read_only<'a>(&'a self, target: &'a Path) -> Later<'a, Result<bool, HostError>> {
        Box::pin(async move { Ok(self.world().read_only_targets.contains(target)) })
    }

    fn unpublish<'a>(&'a self, target: &'a Path) -> Later<'a, Result<(), HostError>> {
        Box::pin(async move {
            if self.world().mounts_busy {
                let busy = std::io::Error::from_raw_os_error(16);
                return Err(HostError::new(format!("umount {}", target.display()), busy));
            }
            self.change(|world| {
                world.targets.remove(target);
                world.read_only_targets.remove(target);
            });
            Ok(())
        })
    }
}
