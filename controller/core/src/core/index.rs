//! Which volumes a node, a host or the time is about, so that none of them makes every volume be looked at.
//!
//! Says nothing that the records do not say: it is brought up to date for each volume that an event has touched, when
//! that volume has been settled, and is no part of what makes two cores the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{Hash, Hasher};

use crate::{HostNqn, NodeId, UnixMillis, VolumeId, VolumeRecord};

/// The volumes by what they are about.
#[derive(Clone, Default)]
pub(super) struct Index {
    by_node: BTreeMap<NodeId, BTreeSet<VolumeId>>,
    by_host: BTreeMap<HostNqn, BTreeSet<VolumeId>>,
    /// As it was put in, to be taken out again.
    about: BTreeMap<VolumeId, BTreeSet<(NodeId, HostNqn)>>,
    /// When something about them is due, and the same by that moment.
    due: BTreeMap<VolumeId, UnixMillis>,
    by_time: BTreeSet<(UnixMillis, VolumeId)>,
}

impl Index {
    /// Takes note of a volume as it is now; `None`: it is not tracked any more.
    pub(super) fn update(&mut self, volume: &VolumeId, record: Option<&VolumeRecord>, now: UnixMillis) {
        let about: BTreeSet<(NodeId, HostNqn)> = record.map(VolumeRecord::hosts).unwrap_or_default();
        if self.about.get(volume).unwrap_or(&BTreeSet::new()) != &about {
            self.is_about(volume, about);
        }
        self.is_due(volume, record.and_then(|record| record.due(now)));
    }

    fn is_due(&mut self, volume: &VolumeId, at: Option<UnixMillis>) {
        let before = self.due.get(volume).copied();
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.due.remove(volume);
            self.by_time.remove(&(before, volume.clone()));
        }
        if let Some(at) = at {
            self.due.insert(volume.clone(), at);
            self.by_time.insert((at, volume.clone()));
        }
    }

    fn is_about(&mut self, volume: &VolumeId, about: BTreeSet<(NodeId, HostNqn)>) {
        let before = self.about.remove(volume).unwrap_or_default();
        for (node, host) in before.difference(&about) {
            remove(&mut self.by_node, node, volume);
            remove(&mut self.by_host, host, volume);
        }
        for (node, host) in &about {
            self.by_node.entry(node.clone()).or_default().insert(volume.clone());
            self.by_host.entry(host.clone()).or_default().insert(volume.clone());
        }
        if !about.is_empty() {
            self.about.insert(volume.clone(), about);
        }
    }

    /// Whether the volume is in here as it is.
    pub(super) fn knows(&self, volume: &VolumeId, record: &VolumeRecord) -> bool {
        self.about.get(volume).unwrap_or(&BTreeSet::new()) == &record.hosts()
    }

    /// Volumes that a node has, or was cut off from.
    pub(super) fn of_node(&self, node: &NodeId) -> impl Iterator<Item = &VolumeId> {
        self.by_node.get(node).into_iter().flatten()
    }

    /// Volumes that were granted to a host, or from which it was cut off.
    pub(super) fn of_host(&self, host: &HostNqn) -> impl Iterator<Item = &VolumeId> {
        self.by_host.get(host).into_iter().flatten()
    }

    /// Volumes about which something is due by then.
    pub(super) fn awake(&self, now: UnixMillis) -> impl Iterator<Item = &VolumeId> {
        self.by_time.iter().take_while(move |(at, _)| *at <= now).map(|(_, volume)| volume)
    }
}

fn remove<K: Ord>(map: &mut BTreeMap<K, BTreeSet<VolumeId>>, key: &K, volume: &VolumeId) {
    if let Some(volumes) = map.get_mut(key) {
        volumes.remove(volume);
        if volumes.is_empty() {
            map.remove(key);
        }
    }
}

impl PartialEq for Index {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Index {}

impl Hash for Index {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Index")
    }
}
