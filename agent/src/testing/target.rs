//! The reservations of a target made of memory: one namespace, as Linux's target keeps them.

use std::time::Duration;

use cleat_host::fabrics::Pending;
use cleat_host::reservations::{
    Abilities, Command, Kind, Registrant, Report, ReservationError, ReservationKey, Reservations,
};
use cleat_host::work::WorkError;
use cleat_host::{DevT, HostId};

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
    pub(crate) registrants: Vec<(HostId, u64)>,
    pub(crate) held: bool,
    pub(crate) generation: u32,
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
        self.registrants.push((host(id), number));
        self.held = true;
        self.generation += 1;
    }

    /// Takes a registration away, as another host's preemption does.
    pub(crate) fn lose(&mut self, number: u64) {
        self.registrants.retain(|(_, key)| *key != number);
        self.held &= !self.registrants.is_empty();
        self.generation += 1;
    }

    /// The target restarts: everything is forgotten.
    pub(crate) fn forget(&mut self) {
        (self.registrants, self.held, self.generation) = (Vec::new(), false, 0);
    }

    pub(crate) fn keys(&self) -> Vec<u64> {
        self.registrants.iter().map(|(_, key)| *key).collect()
    }

    fn key_of(&self, host: HostId) -> Option<u64> {
        self.registrants.iter().find(|(id, _)| *id == host).map(|(_, key)| *key)
    }

    fn report(&self) -> Report {
        let registrants = self.registrants.iter();
        Report {
            generation: self.generation,
            kind: self.held.then_some(Kind::WriteExclusiveAllRegistrants),
            persists: false,
            registrants: registrants
                .map(|(host, key)| Registrant { key: *key, host: Some(*host), holds: self.held })
                .collect(),
        }
    }
}

fn conflict(command: Command) -> ReservationError {
    ReservationError::Conflict { command, path: "/dev/nvme0n1".into() }
}

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
                // As the standard has it: not by taking or releasing the reservation.
                let counts = !matches!(command, Command::Reserve | Command::Release);
                world.reservation.generation += u32::from(counts);
                world.reservation.done.push(command);
            }
            done
        })
    }
}

impl Reservations for Kernel {
    fn abilities(&self, dev: DevT, deadline: Duration) -> Pending<'_, Result<Abilities, ReservationError>> {
        self.command(dev, Command::Identify, deadline, |target| {
            Ok(Abilities { rescap: if target.incapable { 0 } else { 0xfe } })
        })
    }

    fn report(&self, dev: DevT, deadline: Duration) -> Pending<'_, Result<Report, ReservationError>> {
        self.command(dev, Command::Report, deadline, |target| {
            let report = target.report();
            if let Some(interfere) = target.interferes.take() {
                interfere(target);
            }
            Ok(report)
        })
    }

    fn register(
        &self,
        dev: DevT,
        old: Option<ReservationKey>,
        key: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        self.command(dev, Command::Register, deadline, move |target| {
            if target.key_of(host(HOST_ID)) != old.map(ReservationKey::get) {
                return Err(conflict(Command::Register));
            }
            target.registrants.retain(|(id, _)| *id != host(HOST_ID));
            target.registrants.push((host(HOST_ID), key.get()));
            Ok(())
        })
    }

    fn unregister(
        &self,
        dev: DevT,
        key: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        self.command(dev, Command::Unregister, deadline, move |target| {
            if target.key_of(host(HOST_ID)) != Some(key.get()) {
                return Err(conflict(Command::Unregister));
            }
            target.registrants.retain(|(id, _)| *id != host(HOST_ID));
            target.held &= !target.registrants.is_empty();
            Ok(())
        })
    }

    fn reserve(
        &self,
        dev: DevT,
        key: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        self.command(dev, Command::Reserve, deadline, move |target| {
            if target.held || target.key_of(host(HOST_ID)) != Some(key.get()) {
                return Err(conflict(Command::Reserve));
            }
            target.held = true;
            Ok(())
        })
    }

    fn preempt_and_abort(
        &self,
        dev: DevT,
        key: ReservationKey,
        victim: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        self.command(dev, Command::PreemptAndAbort, deadline, move |target| {
            let own = target.key_of(host(HOST_ID)) == Some(key.get());
            if !own || !target.keys().contains(&victim.get()) {
                return Err(conflict(Command::PreemptAndAbort));
            }
            target.registrants.retain(|(_, key)| *key != victim.get());
            Ok(())
        })
    }

    fn release(
        &self,
        dev: DevT,
        _: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        self.command(dev, Command::Release, deadline, |target| {
            target.held = false;
            Ok(())
        })
    }

    fn clear(
        &self,
        dev: DevT,
        _: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        self.command(dev, Command::Clear, deadline, |target| {
            target.registrants.clear();
            target.held = false;
            Ok(())
        })
    }
}
