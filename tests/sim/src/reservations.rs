//! Persistent reservations as an agent gives them: the host's `Reservations` over the world's target.
//!
//! What they do is `cleat_world::reservations`'; here is how long it takes, whether the target is reached, and that
//! preempt-and-abort waits for what the victim has on its way only where the target is such a one.

use std::time::Duration;

use cleat_host::fabrics::Pending;
use cleat_host::reservations::{
    Change, Command, Registrant, ReservationCapabilities, ReservationError, ReservationKey, ReservationKind,
    ReservationReport, Reservations,
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

fn report(kept: &Kept) -> ReservationReport {
    let registrants = kept.registrants().iter().map(|(node, key)| Registrant {
        key: *key,
        host: HostId::parse(&world::host_id(*node)).ok(),
        holds: kept.is_held(),
    });
    ReservationReport {
        generation: kept.generation(),
        kind: kept.is_held().then_some(ReservationKind::WriteExclusiveAllRegistrants),
        persists: false,
        registrants: registrants.collect(),
    }
}

impl Machine {
    fn command<T: Send + 'static>(
        &self,
        dev: DevT,
        command: Command,
        deadline: Duration,
        does: impl FnOnce(&mut Kept, NodeIx) -> Result<T, Conflict> + Send + 'static,
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
    fn abilities(
        &self,
        dev: DevT,
        deadline: Duration,
    ) -> Pending<'_, Result<ReservationCapabilities, ReservationError>> {
        let rescap = if self.universe.lock().target.abilities.reservations { 0xfe } else { 0 };
        self.command(dev, Command::Identify, deadline, move |_, _| Ok(ReservationCapabilities { rescap }))
    }

    fn report(
        &self,
        dev: DevT,
        deadline: Duration,
    ) -> Pending<'_, Result<ReservationReport, ReservationError>> {
        self.command(dev, Command::Report, deadline, |kept, _| Ok(report(kept)))
    }

    fn change(
        &self,
        dev: DevT,
        change: Change,
        deadline: Duration,
    ) -> Pending<'_, Result<(), ReservationError>> {
        let command = change.command();
        let changed = self.command(dev, command, deadline, move |kept, node| {
            let done = match change {
                Change::Register { old, key } => kept.register(node, old.map(ReservationKey::get), key.get()),
                Change::Unregister(key) => kept.unregister(node, key.get()),
                Change::Reserve(key) => kept.reserve(node, key.get()),
                Change::PreemptAndAbort { key, victim } => {
                    return kept.preempt(node, key.get(), victim.get());
                }
                Change::Release(key) => kept.release(node, key.get()),
                Change::Clear(key) => kept.clear(node, key.get()),
            };
            done.map(|()| Vec::new())
        });
        Box::pin(async move {
            let victims = changed.await?;
            if command != Command::PreemptAndAbort {
                return Ok(());
            }
            let waits = {
                let mut world = self.universe.lock();
                world.count("preempted and aborted");
                world.target.abilities.abort_waits
            };
            if waits
                && tokio::time::timeout(deadline, self.aborted(dev.minor as usize, &victims)).await.is_err()
            {
                let source = WorkError::Overdue { what: command.to_string(), deadline };
                return Err(ReservationError::Work { command, dev, source });
            }
            Ok(())
        })
    }
}
