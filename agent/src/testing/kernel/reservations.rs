//! How the kernel made of memory sends reservation commands to its target.

use std::time::Duration;

use cleat_host::DevT;
use cleat_host::fabrics::Pending;
use cleat_host::reservations::{
    Change, Command, ReservationCapabilities, ReservationError, ReservationKey, ReservationReport,
    Reservations,
};
use cleat_host::work::WorkError;
use cleat_world::reservations::Conflict;

use super::{HOST_ID, Kernel};
use crate::testing::target::{Reservation, host};

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
