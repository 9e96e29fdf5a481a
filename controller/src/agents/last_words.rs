//! The last that each agent said, in full, for people. Nothing decides by it: the core has its own, smaller view.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use cleat_core::{NodeId, VolumeId};
use cleat_proto::cleat::v1::volume_state::Phase;
use cleat_proto::cleat::v1::{Capabilities, VolumeState};
use tokio::time::Instant;

use super::limits::{KEPT_NODES, KEPT_VOLUMES, VOLUMES};
use super::wire::Malformed;

/// What one agent said last.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// What its host can do.
    pub capabilities: Option<Capabilities>,
    /// Its version.
    pub agent_version: String,
    /// Its volumes, as it last described them.
    pub volumes: BTreeMap<VolumeId, VolumeState>,
    /// Until when its session's certificates prove its name.
    pub proven_until: Option<SystemTime>,
    /// When an agent of that name was turned away last, and why; none since one was let in.
    pub refused: Option<(Instant, String)>,
}

/// What all agents said last. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LastWords {
    nodes: Arc<Mutex<HashMap<NodeId, Words>>>,
}

impl LastWords {
    /// What a node's agent said last; empty if it has never been heard.
    #[must_use]
    pub fn of(&self, node: &NodeId) -> Words {
        self.lock().get(node).cloned().unwrap_or_default()
    }

    /// What a node's agent said last of one volume.
    #[must_use]
    pub fn about(&self, node: &NodeId, volume: &VolumeId) -> Option<VolumeState> {
        self.lock().get(node)?.volumes.get(volume).cloned()
    }

    pub(super) fn hello(
        &self,
        node: &NodeId,
        capabilities: Capabilities,
        agent_version: String,
        proven_until: Option<SystemTime>,
    ) {
        let mut nodes = self.lock();
        let words = nodes.entry(node.clone()).or_default();
        words.capabilities = Some(capabilities);
        words.agent_version = agent_version;
        words.proven_until = proven_until;
        words.refused = None;
    }

    /// The core does not let an agent speak for that node.
    pub(super) fn refused(&self, node: &NodeId, reason: &str) {
        let mut nodes = self.lock();
        if nodes.len() < KEPT_NODES || nodes.contains_key(node) {
            nodes.entry(node.clone()).or_default().refused = Some((Instant::now(), reason.to_owned()));
        }
    }

    /// Everything that was last said, by node.
    #[must_use]
    pub fn all(&self) -> BTreeMap<NodeId, Words> {
        self.lock().iter().map(|(node, words)| (node.clone(), words.clone())).collect()
    }

    /// An inventory replaces everything said before.
    pub(super) fn inventory(&self, node: &NodeId, volumes: BTreeMap<VolumeId, VolumeState>) {
        self.lock().entry(node.clone()).or_default().volumes = volumes;
    }

    /// What it says of one volume replaces what it said of that before.
    pub(super) fn volume(
        &self,
        node: &NodeId,
        volume: VolumeId,
        state: VolumeState,
    ) -> Result<(), Malformed> {
        let mut nodes = self.lock();
        let volumes = &mut nodes.entry(node.clone()).or_default().volumes;
        volumes.insert(volume, state);
        if volumes.len() <= KEPT_VOLUMES {
            return Ok(());
        }
        // What it does not hold any more is not worth keeping; more than that no node has.
        volumes.retain(|_, state| state.phase() != Phase::Absent);
        let found = volumes.len();
        if found <= VOLUMES {
            return Ok(());
        }
        volumes.clear();
        Err(Malformed::TooMany { field: "volumes of this node (held)", found, most: VOLUMES })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Words>> {
        // The map is whole after every operation on it.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
