//! Persistent reservations as an agent gives them: the host's `Reservations` over the world's target.
//!
//! They behave as Linux' target does: keyed by host, forgotten when it restarts, and preempt-and-abort waits for what
//! the victim has on its way only where the target is such a one.

use std::time::Duration;

use cleat_host::fabrics::Pending;
use cleat_host::reservations::{
    Abilities, Command, Kind, Registrant, Report, ReservationError, ReservationKey, Reservations,
};
use cleat_host::work::WorkError;
use cleat_host::{DevT, HostId};

use crate::host::Machine;
use crate::world::target::Lun;
use crate::world::{self, NODES, NodeIx, VolumeIx};

/// How long a command takes.
const TAKES: Duration = Duration::from_millis(5);

fn path(volume: VolumeIx) -> std::path::PathBuf {
    format!("/dev/nvme{volume}n1").into()
}

fn report(lun: &Lun) -> Report {
    let registrants = lun.registrants.iter().map(|(node, key)| Registrant {
        key: *key,
        host: HostId::parse(&world::host_id(*node)).ok(),
        holds: lun.held,
    });
    Report {
        generation: lun.generation,
        kind: lun.held.then_some(Kind::WriteExclusiveAllRegistrants),
        persists: false,
        registrants: registrants.collect(),
    }
}

/// What a command does to a volume: its answer, or a conflict.
type Does<T> = Box<dyn FnOnce(&mut Lun, NodeIx) -> Option<T> + Send>;

impl Machine {
    fn command<T: Send + 'static>(
        &self,
        dev: DevT,
        command: Command,
        deadline: Duration,
        does: Does<T>,
    ) -> Pending<'_, Result<T, ReservationError>> {
        Box::pin(async move {
            let (volume, node) = (dev.minor as usize, self.node);
            tokio::time::sleep(TAKES).await;
            if !self.reads(volume) {
                tokio::time::sleep(deadline).await;
                let source = WorkError::Overdue { what: command.to_string(), deadline };
                return Err(ReservationError::Work { command, dev, source });
            }
            let mut world = self.universe.lock();
            if !world.target.abilities.reservations {
                return match command {
                    Command::Identify => does(&mut world.target.luns[volume], node)
                        .ok_or(ReservationError::Conflict { command, path: path(volume) }),
                    _ => Err(ReservationError::Unsupported { command, path: path(volume) }),
                };
            }
            let lun = &mut world.target.luns[volume];
            let before = (lun.registrants.clone(), lun.held);
            let done = does(lun, node);
            if before != (lun.registrants.clone(), lun.held) {
                lun.generation += 1;
                let (of, keys) = (world::volume_id(volume), lun.registrants.clone());
                world.note(format_args!("{}: {command} on {of}: {keys:x?}", NODES[node]));
            }
            done.ok_or(ReservationError::Conflict { command, path: path(volume) })
        })
    }

    /// Waits until nothing of these nodes is on its way to a volume.
    async fn aborted(&self, volume: VolumeIx, victims: &[NodeIx]) {
        self.until(|world| {
            let mut received = world.target.luns[volume].received.iter();
            (!received.any(|write| victims.contains(&write.node))).then_some(())
        })
        .await;
    }
}

impl Reservations for Machine {
    fn abilities(&self, dev: DevT, deadline: Duration) -> Pending<'_, Result<Abilities, ReservationError>> {
        let rescap = if self.universe.lock().target.abilities.reservations { 0xfe } else { 0 };
        self.command(dev, Command::Identify, deadline, Box::new(move |_, _| Some(Abilities { rescap })))
    }

    fn report(&self, dev: DevT, deadline: Duration) -> Pending<'_, Result<Report, ReservationError>> {
        self.command(dev, Command::Report, deadline, Box::new(|lun, _| Some(report(lun))))
    }

    fn register(
        &self,
        dev: DevT,
        old: Option<ReservationKey>,
        key: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        let does = move |lun: &mut Lun, node| {
            if lun.registrants.get(&node).copied() != old.map(ReservationKey::get) {
                return None;
            }
            lun.registrants.insert(node, key.get());
            Some(())
        };
        self.command(dev, Command::Register, deadline, Box::new(does))
    }

    fn unregister(
        &self,
        dev: DevT,
        key: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        let does = move |lun: &mut Lun, node| {
            if lun.registrants.get(&node) != Some(&key.get()) {
                return None;
            }
            lun.registrants.remove(&node);
            lun.held &= !lun.registrants.is_empty();
            Some(())
        };
        self.command(dev, Command::Unregister, deadline, Box::new(does))
    }

    fn reserve(
        &self,
        dev: DevT,
        key: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        let does = move |lun: &mut Lun, node| {
            if lun.held || lun.registrants.get(&node) != Some(&key.get()) {
                return None;
            }
            lun.held = true;
            Some(())
        };
        self.command(dev, Command::Reserve, deadline, Box::new(does))
    }

    fn preempt_and_abort(
        &self,
        dev: DevT,
        key: ReservationKey,
        victim: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        let does = move |lun: &mut Lun, node| {
            let own = lun.registrants.get(&node) == Some(&key.get());
            let victims: Vec<NodeIx> = lun
                .registrants
                .iter()
                .filter(|(_, it)| **it == victim.get())
                .map(|(node, _)| *node)
                .collect();
            if !own || victims.is_empty() {
                return None;
            }
            lun.registrants.retain(|_, it| *it != victim.get());
            Some(victims)
        };
        let commanded = self.command(dev, Command::PreemptAndAbort, deadline, Box::new(does));
        Box::pin(async move {
            let victims = commanded.await?;
            let waits = {
                let mut world = self.universe.lock();
                world.count("preempted and aborted");
                world.target.abilities.abort_waits
            };
            if waits
                && tokio::time::timeout(deadline, self.aborted(dev.minor as usize, &victims)).await.is_err()
            {
                let command = Command::PreemptAndAbort;
                let source = WorkError::Overdue { what: command.to_string(), deadline };
                return Err(ReservationError::Work { command, dev, source });
            }
            Ok(())
        })
    }

    fn release(
        &self,
        dev: DevT,
        _: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        let does = |lun: &mut Lun, _| {
            lun.held = false;
            Some(())
        };
        self.command(dev, Command::Release, deadline, Box::new(does))
    }

    fn clear(
        &self,
        dev: DevT,
        _: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        let does = |lun: &mut Lun, _| {
            lun.registrants.clear();
            lun.held = false;
            Some(())
        };
        self.command(dev, Command::Clear, deadline, Box::new(does))
    }
}
