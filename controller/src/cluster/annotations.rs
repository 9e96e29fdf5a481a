//! Who has a volume and since when, as annotations of its PersistentVolume: for people. Nothing reads them, and one that
//! cannot be written fails nothing: whatever a PersistentVolume says is compared again and again with what it is to say, so
//! neither a write that failed nor one of an earlier leader stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cleat_core::{Phase, VolumeId};
use cleat_kubernetes::api::ApiError;
use cleat_kubernetes::attachments::{Attachments, PersistentVolumeSeen, SaysWho};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, WatchedChange};
use crate::explain;

/// What changes within this time is written once.
const TOGETHER: Duration = Duration::from_millis(500);
/// Between two comparisons of all that PersistentVolumes say.
const ALL_AGAIN: Duration = Duration::from_secs(10);

/// What the PersistentVolumes of volumes that somebody has are to say.
type Wanted = BTreeMap<VolumeId, SaysWho>;

/// Writes until it is stopped.
pub(crate) async fn keep(attachments: Arc<Attachments>, engine: Engine, stop: CancellationToken) {
    tokio::select! {
        () = write(&attachments, &engine) => {}
        () = stop.cancelled() => {}
    }
}

async fn write(attachments: &Attachments, engine: &Engine) {
    let mut changes = engine.changes();
    let (mut wanted, mut whole) = (Wanted::new(), true);
    let mut again = tokio::time::interval(ALL_AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut changed = BTreeSet::new();
        let mut compare_all = whole;
        if !whole {
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(WatchedChange::Volume(volume)) => drop(changed.insert(volume)),
                    Ok(_) => continue,
                    Err(RecvError::Lagged(_)) => whole = true,
                    Err(RecvError::Closed) => return,
                },
                _ = again.tick() => compare_all = true,
            }
            if !compare_all {
                tokio::time::sleep(TOGETHER).await;
            }
            loop {
                match changes.try_recv() {
                    Ok(WatchedChange::Volume(volume)) => drop(changed.insert(volume)),
                    Ok(_) => {}
                    Err(TryRecvError::Lagged(_)) => whole = true,
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
        }
        let everything = std::mem::take(&mut whole);
        let only = (!compare_all && !everything).then(|| changed.clone());
        if everything {
            wanted.clear();
        }
        let looked = engine.view(move |core, _| {
            let of = |volume: &VolumeId| (volume.clone(), has(core, volume));
            match everything {
                true => core.volumes().keys().map(of).collect::<Vec<_>>(),
                false => changed.iter().map(of).collect(),
            }
        });
        let Ok(looked) = looked.await else { return };
        wanted.extend(looked);
        wanted.retain(|_, says| *says != SaysWho::default());
        for (pv, says) in differing(attachments.volumes(), &wanted, only.as_ref()) {
            let Err(error) = attachments.annotate(&pv, &says).await else { continue };
            tracing::debug!(pv, "its annotations are not written: {error}; trying again later");
            // It is the same for the others, each for as long as a call may take.
            if matches!(error, ApiError::Unanswered(_) | ApiError::Forbidden(_)) {
                break;
            }
        }
    }
}

/// The PersistentVolumes that say something else than they are to, each with that. `only`: of these volumes.
fn differing(
    all: Vec<Arc<PersistentVolumeSeen>>,
    wanted: &Wanted,
    only: Option<&BTreeSet<VolumeId>>,
) -> Vec<(String, SaysWho)> {
    let differs = |pv: Arc<PersistentVolumeSeen>| {
        let volume = VolumeId::new(&pv.handle).ok().filter(|id| only.is_none_or(|only| only.contains(id)))?;
        let says = wanted.get(&volume).cloned().unwrap_or_default();
        (pv.says != says).then(|| (pv.name.clone(), says))
    };
    all.into_iter().filter_map(differs).collect()
}

fn has(core: &cleat_core::Core, volume: &VolumeId) -> SaysWho {
    let ready = core.volumes().get(volume).into_iter().flat_map(|record| &record.attachments);
    let ready: Vec<_> = ready.filter(|a| a.phase == Phase::Ready).collect();
    let since = ready.iter().map(|a| a.since).max();
    let nodes: Vec<String> = ready.iter().map(|a| a.node.to_string()).collect();
    SaysWho::of(&nodes, since.map(explain::when))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn says(node: &str) -> SaysWho {
        SaysWho::of(&[node.to_owned()], Some("2026-11-30".into()))
    }

    fn pv(volume: &str, says: SaysWho) -> Arc<PersistentVolumeSeen> {
        let (name, handle) = (format!("pv-{volume}"), volume.to_owned());
        let (claim, attributes) = (None, BTreeMap::new());
        Arc::new(PersistentVolumeSeen { name, handle, shared_block: false, claim, attributes, says })
    }

    #[test]
    fn what_was_not_written_or_is_of_an_earlier_leader_is_written_again() {
        let id = |volume: &str| VolumeId::new(volume).unwrap();
        let wanted = Wanted::from([(id("v-1"), says("node-a")), (id("v-2"), says("node-a"))]);
        let all = || {
            vec![
                pv("v-1", says("node-a")),
                pv("v-2", SaysWho::default()),
                pv("v-3", says("node-b")),
                pv("v-4", SaysWho::default()),
            ]
        };
        let due = [("pv-v-2".to_owned(), says("node-a")), ("pv-v-3".to_owned(), SaysWho::default())];
        assert_eq!(differing(all(), &wanted, None), due);
        let changed = BTreeSet::from([id("v-2"), id("v-4")]);
        assert_eq!(differing(all(), &wanted, Some(&changed)), due[..1]);
    }
}
