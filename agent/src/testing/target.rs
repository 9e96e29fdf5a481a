//! The reservations of a target made of memory: one namespace, kept by `cleat_world::reservations`.

use std::time::Duration;

use cleat_host::fabrics::Pending;
use cleat_host::reservations::{
    Change, Command, Registrant, ReservationCapabilities, ReservationError, ReservationKey, ReservationKind,
    ReservationReport, Reservations,
};
use cleat_host::work::WorkError;
use cleat_host::{DevT, HostId};
use cleat_world::reservations::Conflict;

use super::kernel::{HOST_ID, Kernel};

pub(crate) const OTHER_HOST: &str = "22222222-2222-2222-2222-222222222222";

pub(crate) fn key(number: u64) -> ReservationKey {
    ReservationKey::new(number).unwrap()
}

pub(crate) fn host(id: &str) -> HostId {
    HostId::parse(id).unwrap()
}

#[derive(Debug, Default)]
pub(crate) struct Reservation {
    /// Who is registered, by the rules that every target of a test keeps.
    pub(crate) kept: Kept,
    /// The target knows no reservations.
    pub(crate) incapable: bool,
    /// Commands wait until this is false.
    pub(crate) hangs: bool,
    /// Commands that changed something, in order.
    pub(crate) done: Vec<Command>,
    /// What happens to the target right after a report was read, once.
    pub(crate) interferes: Option<fn(&mut Reservation)>,
}

impl Reservation {
    /// Another host registers, and takes the reservation if nobody has it.
    pub(crate) fn join(&mut self, id: &str, number: u64) {
        self.join_without_holding(id, number);
        if !self.kept.is_held() {
            self.kept.reserve(host(id), number).expect("it is registered");
        }
    }

    /// Another host registers, and leaves it at that.
    pub(crate) fn join_without_holding(&mut self, id: &str, number: u64) {
        self.kept.register(host(id), None, number).expect("it is not registered");
    }

    /// Takes a registration away, as another host's preemption does.
    pub(crate) fn lose(&mut self, number: u64) {
        let registered = self.kept.registrants().iter();
        let by = registered.copied().find(|(_, key)| *key != number);
        let of = self.kept.registrants().iter().copied().find(|(_, key)| *key == number);
        match (by, of) {
            (Some((by, key)), _) => drop(self.kept.preempt(by, key, number)),
            (None, Some((last, key))) => drop(self.kept.unregister(last, key)),
            (None, None) => {}
        }
    }

    /// The target restarts: everything is forgotten.
    pub(crate) fn forget(&mut self) {
        self.kept.forget();
    }

    pub(crate) fn keys(&self) -> Vec<u64> {
        self.kept.registrants().iter().map(|(_, key)| *key).collect()
    }

    fn report(&self) -> ReservationReport {
        let registrants = self.kept.registrants().iter();
        let holds = self.kept.is_held();
        ReservationReport {
            generation: self.kept.generation(),
            kind: holds.then_some(ReservationKind::WriteExclusiveAllRegistrants),
            persists: false,
            registrants: registrants
                .map(|(host, key)| Registrant { key: *key, host: Some(*host), holds })
                .collect(),
        }
    }
}

type Kept = cleat_world::reservations::Reservations<HostId>;

impl Kernel {
    fn command<T: Send>(
        &self,
        dev: DevT,
        command: Command,
        deadline: Duration,
        run: impl FnOnce(&mut Reservation) -> Result<T, ReservationError> + Send + 'static,
    ) -> Pending<'_, Result<T, ReservationError>> {
        Box::pin(async move {
            let free = self.until(|world| (!world.reservation.hangs).then_some(()));
            if tokio::time::timeout(deadline, free).await.is_err() {
                let source = WorkError::Overdue { what: command.to_string(), deadline };
                return Err(ReservationError::Work { command, dev, source });
            }
            let mut world = self.world();
            if !world.controllers.iter().any(|one| one.state.is_live()) {
                let source = std::io::Error::from(std::io::ErrorKind::WouldBlock);
                return Err(ReservationError::Kernel { command, path: "/dev/nvme0n1".into(), source });
            }
            if world.reservation.incapable && command != Command::Identify {
                return Err(ReservationError::Unsupported { command, path: "/dev/nvme0n1".into() });
            }
            let done = run(&mut world.reservation);
            if done.is_ok() && !matches!(command, Command::Identify | Command::Report) {
                world.reservation.done.push(command);
            }
            done
        })
    }
}

impl Reservations for Kernel {
    fn abilities(
        &self,
        dev: DevT,
        deadline: Duration,
    ) -> Pending<'_, Result<ReservationCapabilities, ReservationError>> {
        self.command(dev, Command::Identify, deadline, |target| {
            Ok(ReservationCapabilities { rescap: if target.incapable { 0 } else { 0xfe } })
        })
    }

    fn report(
        &self,
        dev: DevT,
        deadline: Duration,
    ) -> Pending<'_, Result<ReservationReport, ReservationError>> {
        self.command(dev, Command::Report, deadline, |target| {
            let report = target.report();
            if let Some(interfere) = target.interferes.take() {
                interfere(target);
            }
            Ok(report)
        })
    }

    fn change(
        &self,
        dev: DevT,
        change: Change,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        let command = change.command();
        self.command(dev, command, deadline, move |target| {
            let (kept, own) = (&mut target.kept, host(HOST_ID));
            let done = match change {
                Change::Register { old, key } => kept.register(own, old.map(ReservationKey::get), key.get()),
                Change::Unregister(key) => kept.unregister(own, key.get()),
                Change::Reserve(key) => kept.reserve(own, key.get()),
                Change::PreemptAndAbort { key, victim } => {
                    kept.preempt(own, key.get(), victim.get()).map(drop)
                }
                Change::Release(key) => kept.release(own, key.get()),
                Change::Clear(key) => kept.clear(own, key.get()),
            };
            done.map_err(|Conflict| ReservationError::Conflict { command, path: "/dev/nvme0n1".into() })
        })
    }
}
