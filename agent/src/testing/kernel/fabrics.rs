//! How the kernel made of memory connects and deletes controllers.

use std::time::Duration;

use cleat_host::fabrics::{
    ConnectError, ConnectFailure, ConnectOptions, ConnectRequest, Connected, DeletionFacts, DhchapSecret,
    DisconnectError, Disconnected, ExactController, Fabrics, HowDeleted, LossTimeout, Pending, RekeyError,
    TimeoutsError,
};
use cleat_host::sysfs::{NamespaceKind, SubsystemNamespace};
use cleat_host::uevents::Action;

use super::{ConnectAnswer, Kernel, World, made};

/// How long the kernel is at a connect whose packets are dropped.
const DROPPED: Duration = Duration::from_secs(3);

fn connect_now(world: &mut World, request: &ConnectRequest) -> Option<Result<Connected, ConnectError>> {
    let (portal, nqn) = (request.portal, request.subsystem.clone());
    let there = world.controllers.iter().find(|one| {
        one.portal() == Some(portal)
            && one.subsystem_nqn.as_deref() == Some(nqn.as_str())
            && one.host_nqn.as_deref() == Some(request.host_nqn.as_str())
    });
    if let Some(there) = there {
        return Some(Ok(Connected { controller: there.clone(), adopted: true, took: Duration::ZERO }));
    }
    match world.answers.get(&portal).copied().unwrap_or(ConnectAnswer::Accept) {
        ConnectAnswer::Hang => None,
        ConnectAnswer::Overdue => {
            Some(Err(ConnectError::Overdue { subsystem: nqn, portal, deadline: Duration::from_secs(180) }))
        }
        ConnectAnswer::Refuse | ConnectAnswer::Drop => Some(Err(ConnectError::Refused {
            subsystem: nqn,
            portal,
            failure: ConnectFailure::Unreachable,
            hint: String::new(),
            source: std::io::Error::from_raw_os_error(111),
        })),
        ConnectAnswer::Accept if world.wanted_secret.is_some() && request.secret != world.wanted_secret => {
            let (failure, number) = match request.secret {
                Some(_) => (ConnectFailure::Authentication, 129),
                None => (ConnectFailure::SecretRequired, 126),
            };
            let source = std::io::Error::from_raw_os_error(number);
            Some(Err(ConnectError::Refused { subsystem: nqn, portal, failure, hint: String::new(), source }))
        }
        ConnectAnswer::Accept => {
            let one = made(world.next, &nqn, portal, request.host_nqn.as_str(), "live");
            world.next += 1;
            world.controllers.push(one.clone());
            if let Some(secret) = &request.secret {
                world.secrets.insert(one.name.to_string(), secret.clone());
            }
            Some(Ok(Connected { controller: one, adopted: false, took: Duration::ZERO }))
        }
    }
}

impl Fabrics for Kernel {
    fn connect<'a>(
        &'a self,
        request: &'a ConnectRequest,
        _: Duration,
    ) -> Pending<'a, Result<Connected, ConnectError>> {
        Box::pin(async move {
            self.change(|world| world.connects.push(request.portal));
            let serial = self.world().serial;
            let _turn = match serial {
                Some(takes) => {
                    let turn = self.one_connect.lock().await;
                    tokio::time::sleep(takes).await;
                    Some(turn)
                }
                None => None,
            };
            if self.answer_of(request.portal) == ConnectAnswer::Drop {
                tokio::time::sleep(DROPPED).await;
            }
            let connect_end = self.until(|world| connect_now(world, request)).await;
            if let Ok(Connected { controller, adopted: false, .. }) = &connect_end {
                self.tell(&controller.name, Action::Add, None);
                self.tell(&controller.name, Action::Change, Some("connected"));
            }
            self.changed.send_modify(|count| *count += 1);
            connect_end
        })
    }

    fn settled<'a>(&'a self, request: &'a ConnectRequest) -> Pending<'a, ()> {
        let overdue = |world: &mut World| world.answers.get(&request.portal) == Some(&ConnectAnswer::Overdue);
        Box::pin(self.until(move |world| (!overdue(world)).then_some(())))
    }

    fn disconnect<'a>(
        &'a self,
        target: &'a ExactController,
        deadline: Duration,
    ) -> Pending<'a, Result<Disconnected, DisconnectError>> {
        Box::pin(async move {
            let found = self.world().controllers.iter().find(|one| one.name == target.controller).cloned();
            let gone = |how| Ok(Disconnected { controller: target.controller.clone(), how });
            let Some(found) = found else { return gone(HowDeleted::AlreadyGone) };
            assert_eq!(
                found.subsystem_nqn.as_deref(),
                Some(target.subsystem.as_str()),
                "another's controller"
            );
            assert_eq!(found.host_nqn.as_deref(), Some(target.host_nqn.as_str()), "another's controller");
            let state = found.state.clone();
            let subsystem = target.subsystem.as_str();
            let hangs = |world: &World| world.deletions_hang || world.wedged.as_deref() == Some(subsystem);
            let free = self.until(|world| (!hangs(world)).then_some(()));
            if tokio::time::timeout(deadline, free).await.is_err() {
                return Err(DisconnectError::StillDetaching {
                    controller: target.controller.clone(),
                    state: Some(state),
                    since: deadline,
                });
            }
            self.change(|world| {
                let head = world.device(subsystem);
                world.controllers.retain(|one| one.name != target.controller);
                let last = world.is_without_a_path(subsystem);
                if last {
                    world.heads.retain(|head| head.subsystem_nqn != subsystem);
                }
                if world.delayed_removal
                    && last
                    && let Some(mut namespace) = head
                {
                    namespace.kind = NamespaceKind::Head { paths: Vec::new() };
                    world.heads.push(SubsystemNamespace { subsystem_nqn: subsystem.to_owned(), namespace });
                }
                world.deleted.push(target.controller.to_string());
            });
            self.tell(&target.controller, Action::Remove, None);
            gone(HowDeleted::Deleted(DeletionFacts {
                state,
                in_flight: Some(0),
                portal: found.portal(),
                took: Duration::ZERO,
                io_timeout: Duration::from_secs(30),
            }))
        })
    }

    fn rekey<'a>(
        &'a self,
        target: &'a ExactController,
        secret: &'a DhchapSecret,
        _: Duration,
    ) -> Pending<'a, Result<(), RekeyError>> {
        Box::pin(async move {
            let controller = target.controller.clone();
            let mut world = self.world();
            if !world.controllers.iter().any(|one| one.name == controller) {
                return Err(RekeyError::Gone { controller });
            }
            match world.secrets.get_mut(controller.as_str()) {
                Some(has) => {
                    *has = secret.clone();
                    Ok(())
                }
                None => Err(RekeyError::WithoutSecret { controller }),
            }
        })
    }

    fn set_timeouts<'a>(
        &'a self,
        target: &'a ExactController,
        options: &'a ConnectOptions,
        _: Duration,
    ) -> Pending<'a, Result<bool, TimeoutsError>> {
        Box::pin(async move {
            let mut world = self.world();
            world.retimed += 1;
            for one in world.controllers.iter_mut().filter(|one| one.name == target.controller) {
                one.reconnect_delay_s =
                    options.reconnect_delay.and_then(|time| time.as_secs().try_into().ok());
                one.ctrl_loss_tmo = options.ctrl_loss_tmo.map(|limit| match limit {
                    LossTimeout::After(time) => time.as_secs().to_string(),
                    LossTimeout::Never => "off".to_owned(),
                });
            }
            Ok(true)
        })
    }

    fn secret<'a>(
        &'a self,
        target: &'a ExactController,
        _: Duration,
    ) -> Pending<'a, Result<Option<DhchapSecret>, RekeyError>> {
        Box::pin(async move { Ok(self.world().secrets.get(target.controller.as_str()).cloned()) })
    }

    fn authenticates(&self) -> bool {
        true
    }

    fn name(&self) -> &'static str {
        "memory"
    }
}
