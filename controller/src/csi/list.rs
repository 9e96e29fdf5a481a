//! ListVolumes and ControllerGetVolume: what the RDS has, where it is published, and how it is.
//!
//! In come the RDS's list and a view of the core; out go entries in the order of their ids. What always holds:
//! - where a volume is published comes from durable state alone, and from one moment for all of a page;
//! - what either side knows of is there: a volume of the RDS that nobody ever had is published nowhere, and one that
//!   somebody still has is there although the RDS lacks it, which is said as its condition. A record of a volume that the
//!   RDS lacks and nobody has says nothing that a caller could use, and is left out;
//! - of a volume that was set aside nobody knows who may write to it: it is there, published where it was known to be or
//!   where the cluster has it as attached, and abnormal;
//! - without a list of the RDS there is no answer: a volume that is left out would be taken for one that is gone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::time::Duration;

use cleat_core::{Core, NodeId, UnixMillis, VolumeId, VolumeRecord};
use cleat_proto::csi::v1 as csi;
use cleat_rds::{Freshness, Inventory, Priority, RdsVolume};

use super::call_context::{CallContext, measured};
use super::demands::volume_context;
use super::health;
use super::request::Page;
use super::status::CallError;
use crate::metrics::RdsCall;

/// All pages of a list have to come within one time-out of the caller's: they share a list of the RDS. What this process
/// has changed since is read again in any case.
const SHARED_FOR: Duration = Duration::from_secs(5);

/// What the core knows of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    size_bytes: u64,
    /// Nobody has it, and nobody may.
    unused: bool,
    published: Vec<NodeId>,
    complaints: Vec<String>,
}

impl Known {
    fn of(core: &Core, record: &VolumeRecord, now: UnixMillis) -> Self {
        let published = record.attachments.iter().filter(|a| a.is_published(now)).map(|a| a.node.clone());
        Self {
            size_bytes: record.spec.size_bytes,
            unused: is_unused(record, now),
            published: published.collect(),
            complaints: health::complaints(core, record),
        }
    }
}

/// Nobody has it, and nobody may: what an RDS that lacks the volume has still to confirm is nobody's.
fn is_unused(record: &VolumeRecord, now: UnixMillis) -> bool {
    record.attachments.iter().all(|a| a.is_over_but_for_the_list(now))
}

/// What else there is of a volume that was set aside.
#[derive(Debug)]
struct Aside {
    /// Why nobody knows who may write to it.
    reason: String,
    /// Nodes that the cluster has as attached.
    nodes: Vec<String>,
}

impl Aside {
    fn of(context: &CallContext, volume: &VolumeId, all: &BTreeMap<VolumeId, String>) -> Option<Self> {
        let reason = all.get(volume)?.clone();
        let nodes = context.attachments.as_ref().map(|cluster| cluster.answered(volume.as_str()));
        Some(Self { reason, nodes: nodes.unwrap_or_default() })
    }
}

/// One volume, as a caller is to see it.
struct Entry {
    volume: csi::Volume,
    published: Vec<String>,
    condition: csi::VolumeCondition,
}

/// A page of all volumes.
pub(super) async fn page(context: &CallContext, page: Page) -> Result<csi::ListVolumesResponse, CallError> {
    let Page { most, after } = page;
    let listing = context.rds.volumes(Priority::List, Freshness::Within(SHARED_FOR));
    let inventory = measured(RdsCall::Find, listing).await.map_err(CallError::NoList)?;
    let set_aside = context.engine.set_aside();
    let (from, mut listed) = (after.clone(), ids(&inventory));
    listed.extend(set_aside.keys().cloned());
    let looked = context.engine.consult(move |core, now| {
        core.has_read_lists().then(|| select(core, &listed, from.as_ref(), most, now))
    });
    let (known, more) = looked.await?.ok_or(CallError::NotListedYet)?;
    let next_token = match known.last_key_value() {
        Some((last, _)) if more => Page::token(last),
        _ => String::new(),
    };
    let entries = known.iter().map(|(id, known)| {
        let aside = Aside::of(context, id, &set_aside);
        let Entry { volume, published, condition } = entry(id, find(&inventory, id), known.as_ref(), aside);
        let volume_condition = Some(condition);
        let status =
            csi::list_volumes_response::VolumeStatus { published_node_ids: published, volume_condition };
        csi::list_volumes_response::Entry { volume: Some(volume), status: Some(status) }
    });
    Ok(csi::ListVolumesResponse { entries: entries.collect(), next_token })
}

/// One volume.
pub(super) async fn one(
    context: &CallContext,
    volume: VolumeId,
) -> Result<csi::ControllerGetVolumeResponse, CallError> {
    let mut found = context.find(&volume, Freshness::Within(SHARED_FOR)).await?;
    if found.is_none() {
        found = context.find(&volume, Freshness::Now).await?;
    }
    let id = volume.clone();
    let looked = context.engine.consult(move |core, now| {
        let known = || core.volumes().get(&id).map(|record| Known::of(core, record, now));
        core.has_read_lists().then(known)
    });
    let known = looked.await?.ok_or(CallError::NotListedYet)?;
    let aside = Aside::of(context, &volume, &context.engine.set_aside());
    if found.is_none() && aside.is_none() && known.as_ref().is_none_or(|known| known.unused) {
        return Err(CallError::NoSuchVolume(volume));
    }
    let on_rds = found.as_ref().map_or(OnRds::Missing, OnRds::Found);
    let Entry { volume, published, condition } = entry(&volume, on_rds, known.as_ref(), aside);
    let volume_condition = Some(condition);
    let status =
        csi::controller_get_volume_response::VolumeStatus { published_node_ids: published, volume_condition };
    Ok(csi::ControllerGetVolumeResponse { volume: Some(volume), status: Some(status) })
}

/// What the RDS's list says of a volume.
#[derive(Clone, Copy)]
enum OnRds<'a> {
    Found(&'a RdsVolume),
    /// It is there, and what the list says of it cannot be understood.
    Unreadable(&'a str),
    Missing,
}

fn ids(inventory: &Inventory) -> BTreeSet<VolumeId> {
    let unreadable = inventory.unreadable().map(|(id, _)| id);
    inventory.volumes().map(|volume| &volume.id).chain(unreadable).cloned().collect()
}

fn find<'a>(inventory: &'a Inventory, id: &VolumeId) -> OnRds<'a> {
    if let Ok(Some(volume)) = inventory.find(id) {
        return OnRds::Found(volume);
    }
    let problem = inventory.unreadable().find(|(unreadable, _)| *unreadable == id);
    problem.map_or(OnRds::Missing, |(_, problem)| OnRds::Unreadable(problem))
}

/// The volumes of a page, with what is known of each, and whether there are more after them.
fn select(
    core: &Core,
    listed: &BTreeSet<VolumeId>,
    after: Option<&VolumeId>,
    most: usize,
    now: UnixMillis,
) -> (BTreeMap<VolumeId, Option<Known>>, bool) {
    let range: (Bound<&VolumeId>, Bound<&VolumeId>) =
        (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
    let used = core.volumes().range::<VolumeId, _>(range).filter(|(_, record)| !is_unused(record, now));
    // No more than one page of each side can be on it, and one to see whether there are more.
    let used = used.map(|(id, _)| id).take(most + 1);
    let ids: BTreeSet<&VolumeId> = listed.range::<VolumeId, _>(range).take(most + 1).chain(used).collect();
    let known = |id: &VolumeId| core.volumes().get(id).map(|record| Known::of(core, record, now));
    let more = ids.len() > most;
    (ids.into_iter().take(most).map(|id| (id.clone(), known(id))).collect(), more)
}

fn entry(id: &VolumeId, on_rds: OnRds<'_>, known: Option<&Known>, aside: Option<Aside>) -> Entry {
    let mut complaints = known.map(|known| known.complaints.clone()).unwrap_or_default();
    let (size_bytes, volume_context) = match on_rds {
        OnRds::Found(volume) => (volume.size.0, volume_context(&volume.parameters)),
        OnRds::Unreadable(problem) => {
            complaints.insert(0, format!("what the RDS says of it cannot be understood: {problem}"));
            (known.map_or(0, |known| known.size_bytes), HashMap::new())
        }
        OnRds::Missing => {
            complaints.insert(0, "the RDS has no such volume, and somebody still has it, or may".to_owned());
            (known.map_or(0, |known| known.size_bytes), HashMap::new())
        }
    };
    let volume = csi::Volume {
        capacity_bytes: i64::try_from(size_bytes).unwrap_or(i64::MAX),
        volume_id: id.to_string(),
        volume_context,
        ..Default::default()
    };
    let mut published: Vec<String> =
        known.into_iter().flat_map(|known| &known.published).map(ToString::to_string).collect();
    if let Some(Aside { reason, nodes }) = aside {
        complaints.insert(0, format!("nobody knows who may write to it: it was set aside: {reason}"));
        published.extend(nodes);
        let mut seen = BTreeSet::new();
        published.retain(|node| seen.insert(node.clone()));
    }
    Entry { volume, published, condition: health::condition(&complaints) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_was_set_aside_is_abnormal_and_published_where_known() {
        let id = VolumeId::new("vol-1").unwrap();
        let aside = |nodes: &[&str]| {
            let nodes = nodes.iter().map(ToString::to_string).collect();
            Some(Aside { reason: "somebody else has written it".into(), nodes })
        };
        let known = Known { published: vec![NodeId::new("node-a").unwrap()], ..Known::default() };
        let seen = entry(&id, OnRds::Missing, Some(&known), aside(&["node-a", "node-b"]));
        assert_eq!(seen.published, ["node-a", "node-b"]);
        assert!(seen.condition.abnormal);
        let message = seen.condition.message;
        assert!(message.starts_with("nobody knows who may write to it"), "{message}");
        assert!(message.contains("somebody else has written it; the RDS has no such volume"), "{message}");
        assert_eq!(entry(&id, OnRds::Missing, None, aside(&["node-b"])).published, ["node-b"]);
    }
}
