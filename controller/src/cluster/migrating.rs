//! Which live migration of a VM a volume's nodes are the sides of, as KubeVirt has it, handed to the core.
//!
//! In comes what the watches have, joined by UID; out go [`Event::MigrationSeen`]: what differs from what was handed over
//! before, and what the core does not have although both nodes have the volume (after a start, or where a record was made
//! since). What holds: it is for people, and behind by an unknown time; who can write is not asked here, and nothing that
//! proves it follows from it. A cluster without KubeVirt has nobody who migrates by it, which is said once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cleat_core::{
    Core, Event, IdError, Migration, MigrationUid, NodeId, UnixMillis, VmMigration, VmRef, VmStage, VolumeId,
    VolumeRecord,
};
use cleat_kubernetes::api::ApiServer;
use cleat_kubernetes::attachments::Attachments;
use cleat_kubernetes::kubevirt::KubeVirt;
use cleat_kubernetes::kubevirt::mover::{MoveSeen, MoveStage, MoverSeen};
use cleat_kubernetes::watch::Presence;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::app::Movers;
use crate::engine::{Engine, EngineEnded};

/// What changes within this time is looked at once.
const TOGETHER: Duration = Duration::from_millis(500);
/// Between two comparisons of all of it with what the core has.
const ALL_AGAIN: Duration = Duration::from_secs(10);

/// The migrations of VMs that have volumes, by volume.
type Moves = BTreeMap<VolumeId, VmMigration>;

/// Hands over until it is stopped.
pub(crate) async fn follow(
    server: ApiServer,
    attachments: Arc<Attachments>,
    engine: Engine,
    stop: CancellationToken,
) {
    let kubevirt = KubeVirt::watch(&server);
    tokio::select! {
        // The engine has ended.
        _ = hand_over(&kubevirt, &attachments, &engine) => {}
        () = stop.cancelled() => {}
    }
}

async fn hand_over(
    kubevirt: &KubeVirt,
    attachments: &Attachments,
    engine: &Engine,
) -> Result<(), EngineEnded> {
    let (mut of_kubevirt, mut of_attachments) = (kubevirt.changes(), attachments.changes());
    let mut again = tokio::time::interval(ALL_AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut handed = HandedOver::default();
    loop {
        let compare_all = tokio::select! {
            goes_on = of_kubevirt.next() => { if !goes_on { return Ok(()) } false }
            goes_on = of_attachments.next() => { if !goes_on { return Ok(()) } false }
            _ = again.tick() => true,
        };
        if !compare_all {
            tokio::time::sleep(TOGETHER).await;
        }
        of_kubevirt.catch_up();
        of_attachments.catch_up();
        handed.heard.presence(kubevirt.presence());
        // Before all of it was listed nothing is known, and nothing is taken back.
        let Some(movers) = attachments.all().and_then(|all| kubevirt.movers(&all)) else { continue };
        handed.take(movers, compare_all, engine).await?;
    }
}

/// Hands over what somebody else than the cluster has, until that ends.
pub(crate) async fn follow_movers(mut movers: Movers, engine: Engine, stop: CancellationToken) {
    let (mut handed, mut compared) = (HandedOver::default(), None::<Instant>);
    let all = async {
        while let Some(seen) = movers.next().await {
            let compare_all = compared.is_none_or(|at| at.elapsed() >= ALL_AGAIN);
            compared = if compare_all { Some(Instant::now()) } else { compared };
            handed.take(seen, compare_all, &engine).await?;
        }
        Ok::<(), EngineEnded>(())
    };
    tokio::select! {
        // The engine has ended, or there is nothing more to hand over.
        _ = all => {}
        () = stop.cancelled() => {}
    }
}

/// What was handed over, and what people have been notified of.
#[derive(Default)]
struct HandedOver {
    said: Moves,
    heard: Heard,
}

impl HandedOver {
    /// Hands over what of this differs from before, and on request what the core does not have.
    async fn take(
        &mut self,
        movers: BTreeMap<String, MoverSeen>,
        compare_all: bool,
        engine: &Engine,
    ) -> Result<(), EngineEnded> {
        let (seen, unseen) = moves(movers);
        self.heard.unseen(unseen);
        let mut news = differences(&self.said, &seen);
        if compare_all {
            let all = seen.clone();
            let lost = engine.view(move |core, _| lost(core, all)).await?;
            news.extend(lost.into_iter().map(|(volume, vm)| (volume, Some(vm))));
        }
        for (volume, vm) in news {
            engine.submit(Event::MigrationSeen { volume, vm: vm.map(Box::new) }).await?;
        }
        self.said = seen;
        Ok(())
    }
}

/// What people have been notified of.
#[derive(Default)]
struct Heard {
    presence: Option<Presence>,
    unseen: BTreeMap<String, String>,
}

impl Heard {
    fn presence(&mut self, presence: Presence) {
        if presence == Presence::Unknown || self.presence == Some(presence) {
            return;
        }
        if presence == Presence::There {
            tracing::info!("the cluster has KubeVirt: it says which VM migrates");
        } else {
            tracing::info!(
                "the cluster has no KubeVirt: nobody migrates by it, so migrations are unattributed, and never overdue"
            );
        }
        self.presence = Some(presence);
    }

    /// Why it is not known of these volumes which VM migrates with them.
    fn unseen(&mut self, all: BTreeMap<String, String>) {
        for (volume, why) in all.iter().filter(|(volume, why)| self.unseen.get(*volume) != Some(*why)) {
            tracing::warn!(
                volume,
                why,
                "cannot see which VM migrates with this volume; its migration is unattributed"
            );
        }
        self.unseen = all;
    }
}

/// Those of them that the core can take in, and why it cannot take in the others.
fn moves(movers: BTreeMap<String, MoverSeen>) -> (Moves, BTreeMap<String, String>) {
    let (mut seen, mut unseen) = (Moves::new(), BTreeMap::new());
    for (volume, mover) in movers {
        match move_of(&volume, mover) {
            Ok(Some((id, vm))) => drop(seen.insert(id, vm)),
            Ok(None) => {}
            Err(why) => drop(unseen.insert(volume, why)),
        }
    }
    (seen, unseen)
}

fn move_of(volume: &str, mover: MoverSeen) -> Result<Option<(VolumeId, VmMigration)>, String> {
    let (vm, seen) = match mover {
        MoverSeen::Vm { namespace, name, uid, migration: Some(seen) } => {
            (VmRef { namespace, name, uid }, seen)
        }
        MoverSeen::Vm { migration: None, .. } | MoverSeen::Nobody => return Ok(None),
        MoverSeen::Contradiction { why } => return Err(why),
    };
    of_core(volume, vm, *seen).map(Some).map_err(|refused| refused.to_string())
}

fn of_core(volume: &str, vm: VmRef, seen: MoveSeen) -> Result<(VolumeId, VmMigration), IdError> {
    let migration = VmMigration {
        // Where its object is gone, the UID is what is left to name it by.
        name: seen.name.unwrap_or_else(|| seen.uid.clone()),
        uid: MigrationUid::new(seen.uid)?,
        vm,
        source: NodeId::new(seen.source)?,
        target: seen.target.map(NodeId::new).transpose()?,
        stage: match seen.stage {
            MoveStage::Preparing => VmStage::Preparing,
            MoveStage::Running => VmStage::Running,
            MoveStage::Completed => VmStage::Completed,
            MoveStage::Failed => VmStage::Failed,
            MoveStage::Aborted => VmStage::Aborted,
        },
        switched_at: seen.switched_ms.map(UnixMillis),
        target_pod: seen.target_launcher,
    };
    Ok((VolumeId::new(volume)?, migration))
}

/// What is new or has changed, and what is no more.
fn differences(said: &Moves, seen: &Moves) -> Vec<(VolumeId, Option<VmMigration>)> {
    let new = seen.iter().filter(|(volume, vm)| said.get(*volume) != Some(*vm));
    let new = new.map(|(volume, vm)| (volume.clone(), Some(vm.clone())));
    let gone = said.keys().filter(|volume| !seen.contains_key(*volume));
    new.chain(gone.map(|volume| (volume.clone(), None))).collect()
}

/// Those of them that no record has, although both nodes have the volume.
fn lost(core: &Core, mut all: Moves) -> Moves {
    all.retain(|volume, vm| core.volumes().get(volume).is_some_and(|record| lacks(record, vm)));
    all
}

fn lacks(record: &VolumeRecord, vm: &VmMigration) -> bool {
    let has_it = |node: &NodeId| record.attachment(node).is_some();
    if !has_it(&vm.source) || !vm.target.as_ref().is_some_and(has_it) {
        return false;
    }
    let knows = |migration: &Migration| {
        let known = migration.vm.as_ref().filter(|known| known.uid == vm.uid);
        known.is_some_and(|known| {
            known.stage >= vm.stage && (known.switched_at.is_some() || vm.switched_at.is_none())
        })
    };
    !record.migration.iter().chain(&record.past_migrations).any(knows)
}

#[cfg(test)]
#[path = "migrating_tests.rs"]
mod tests;
