//! Persistent reservations as an agent gives them: the host's `Reservations` over the world's target.
//!
//! What they do is `cleat_world::reservations`'; here is how long it takes, whether the target is reached, and that
//! preempt-and-abort waits for what the victim has on its way only where the target is such a one.

use std::time::Duration;

use cleat_host::fabrics::Pending;
use cleat_host::reservations::{
    Abilities, Command, Kind, Registrant, Report, ReservationError, ReservationKey, Reservations,
};
use cleat_host::work::WorkError;
use cleat_host::{DevT, HostId};
use cleat_world::reservations::Conflict;

use crate::host::Machine;
use crate::world::{self, NODES, NodeIx, VolumeIx};

/// How long a command takes.
const TAKES: Duration = Duration::from_millis(5);

fn path(volume: VolumeIx) -> std::path::PathBuf {
    format!("/dev/nvme{volume}n1").into()
}

type Kept = cleat_world::reservations::Reservations<NodeIx>;

fn report(kept: &Kept) -> Report {
    let registrants = kept.registrants().iter().map(|(node, key)| Registrant {
        key: *key,
        host: HostId::parse(&world::host_id(*node)).ok(),
        holds: kept.is_held(),
    });
    Report {
        generation: kept.generation(),
        kind: kept.is_held().then_some(Kind::WriteExclusiveAllRegistrants),
        persists: false,
        registrants: registrants.collect(),
    }
}

/// What a command does to a volume: its answer, or a conflict.
type Does<T> = Box<dyn FnOnce(&mut Kept, NodeIx) -> Result<T, Conflict> + Send>;

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
            let conflict = |Conflict| ReservationError::Conflict { command, path: path(volume) };
            if !world.target.abilities.reservations && command != Command::Identify {
                return Err(ReservationError::Unsupported { command, path: path(volume) });
            }
            let kept = &mut world.target.luns[volume].volume.reservations;
            let before = kept.clone();
            let done = does(kept, node);
            if before != *kept {
                let (of, keys) = (world::volume_id(volume), kept.registrants().to_vec());
                world.note(format_args!("{}: {command} on {of}: {keys:x?}", NODES[node]));
            }
            done.map_err(conflict)
        })
    }

    /// Waits until nothing of these nodes is on its way to a volume.
    async fn aborted(&self, volume: VolumeIx, victims: &[NodeIx]) {
        self.until(|world| {
            let mut received = world.target.luns[volume].volume.received.iter();
            (!received.any(|write| victims.contains(&write.host))).then_some(())
        })
        .await;
    }
}

impl Reservations for Machine {
    fn abilities(&self, dev: DevT, deadline: Duration) -> Pending<'_, Result<Abilities, ReservationError>> {
        let rescap = if self.universe.lock().target.abilities.reservations { 0xfe } else { 0 };
        self.command(dev, Command::Identify, deadline, Box::new(move |_, _| Ok(Abilities { rescap })))
    }

    fn report(&self, dev: DevT, deadline: Duration) -> Pending<'_, Result<Report, ReservationError>> {
        self.command(dev, Command::Report, deadline, Box::new(|kept, _| Ok(report(kept))))
    }

    fn register(
        &self,
        dev: DevT,
        old: Option<ReservationKey>,
        key: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        let old = old.map(ReservationKey::get);
        let does = move |kept: &mut Kept, node| kept.register(node, old, key.get());
        self.command(dev, Command::Register, deadline, Box::new(does))
    }

    fn unregister(
        &self,
        dev: DevT,
        key: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        let does = move |kept: &mut Kept, node| kept.unregister(node, key.get());
        self.command(dev, Command::Unregister, deadline, Box::new(does))
    }

    fn reserve(
        &self,
        dev: DevT,
        key: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        let does = move |kept: &mut Kept, node| kept.reserve(node, key.get());
        self.command(dev, Command::Reserve, deadline, Box::new(does))
    }

    fn preempt_and_abort(
        &self,
        dev: DevT,
        key: ReservationKey,
        victim: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        let does = move |kept: &mut Kept, node| kept.preempt(node, key.get(), victim.get());
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
        key: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        let does = move |kept: &mut Kept, node| kept.release(node, key.get());
        self.command(dev, Command::Release, deadline, Box::new(does))
    }

    fn clear(
        &self,
        dev: DevT,
        key: ReservationKey,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        let does = move |kept: &mut Kept, node| kept.clear(node, key.get());
        self.command(dev, Command::Clear, deadline, Box::new(does))
    }
}
