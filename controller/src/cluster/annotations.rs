//! Who has a volume and since when, as annotations of its PersistentVolume: for people. Nothing rests on them, and one that
//! cannot be written fails nothing. What the leader before has written is not written again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cleat_core::{Phase, VolumeId};
use cleat_kubernetes::attachments::Attachments;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, WatchedChange};
use crate::explain;

/// What changes within this time is written once.
const TOGETHER: Duration = Duration::from_millis(500);

/// What a PersistentVolume says.
type Said = (Vec<String>, Option<String>);

/// Writes until it is stopped.
pub(crate) async fn keep(attachments: Arc<Attachments>, engine: Engine, stop: CancellationToken) {
    tokio::select! {
        () = write(&attachments, &engine) => {}
        () = stop.cancelled() => {}
    }
}

async fn write(attachments: &Attachments, engine: &Engine) {
    let mut changes = engine.changes();
    let mut said: BTreeMap<VolumeId, Said> = BTreeMap::new();
    let mut whole = true;
    loop {
        let mut changed = BTreeSet::new();
        if !whole {
            match changes.recv().await {
                Ok(WatchedChange::Volume(volume)) => drop(changed.insert(volume)),
                Ok(_) => continue,
                Err(RecvError::Lagged(_)) => whole = true,
                Err(RecvError::Closed) => return,
            }
            tokio::time::sleep(TOGETHER).await;
            while let Ok(change) = changes.try_recv() {
                if let WatchedChange::Volume(volume) = change {
                    changed.insert(volume);
                }
            }
        }
        let everything = std::mem::take(&mut whole);
        let looked = engine.view(move |core, _| {
            let of = |volume: &VolumeId| (volume.clone(), has(core, volume));
            match everything {
                true => core.volumes().keys().map(of).collect::<Vec<_>>(),
                false => changed.iter().map(of).collect(),
            }
        });
        let Ok(looked) = looked.await else { return };
        let mut all = if everything { attachments.by_volume() } else { BTreeMap::new() };
        for (volume, now) in looked {
            if said.get(&volume) == Some(&now) {
                continue;
            }
            let pv = match everything {
                true => all.remove(volume.as_str()),
                false => attachments.volume(volume.as_str()),
            };
            let Some(pv) = pv else { continue };
            // The leader before has written most of them.
            if !said.contains_key(&volume) && pv.says(&now.0, now.1.as_deref()) {
                said.insert(volume, now);
                continue;
            }
            match attachments.annotate(&pv.name, &now.0, now.1.as_deref()).await {
                Ok(()) => drop(said.insert(volume, now)),
                Err(error) => {
                    tracing::debug!(%volume, pv = pv.name, "its annotations are not written: {error}")
                }
            }
        }
    }
}

fn has(core: &cleat_core::Core, volume: &VolumeId) -> Said {
    let ready = core.volumes().get(volume).into_iter().flat_map(|record| &record.attachments);
    let ready: Vec<_> = ready.filter(|a| a.phase == Phase::Ready).collect();
    let since = ready.iter().map(|a| a.since).max();
    (ready.iter().map(|a| a.node.to_string()).collect(), since.map(explain::when))
}
