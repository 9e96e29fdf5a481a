//! The last that each agent said, in full, for people. Nothing decides by it: the core has its own, smaller view.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use cleat_core::{NodeId, VolumeId};
use cleat_proto::cleat::v1::volume_state::Phase;
use cleat_proto::cleat::v1::{Capabilities, VolumeState};
use tokio::time::Instant;

use super::limits::{KEPT_NODES, KEPT_VOLUMES, VOLUMES};
use super::malformed::Malformed;

/// What one agent said last.
#[derive(Clone, Debug, Default)]
pub struct AgentReport {
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
pub struct Reports {
    kept: Arc<Mutex<Kept>>,
}

/// How much was said: what is said later has a higher one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReportNumber(u64);

#[derive(Debug, Default)]
struct Kept {
    nodes: HashMap<NodeId, AgentReport>,
    /// When each node's volumes were last spoken of, both ways: who asks what is new does not look at all of them.
    spoken: BTreeMap<ReportNumber, NodeId>,
    last: HashMap<NodeId, ReportNumber>,
    latest: ReportNumber,
}

impl Kept {
    /// A node's report, to be replaced by what it says of its volumes now.
    fn speaks(&mut self, node: &NodeId) -> &mut AgentReport {
        self.latest.0 += 1;
        if let Some(before) = self.last.insert(node.clone(), self.latest) {
            self.spoken.remove(&before);
        }
        self.spoken.insert(self.latest, node.clone());
        self.nodes.entry(node.clone()).or_default()
    }
}

impl Reports {
    /// What a node's agent said last; empty if it has never been heard.
    #[must_use]
    pub fn of(&self, node: &NodeId) -> AgentReport {
        self.lock().nodes.get(node).cloned().unwrap_or_default()
    }

    /// What a node's agent said last of one volume.
    #[must_use]
    pub fn about(&self, node: &NodeId, volume: &VolumeId) -> Option<VolumeState> {
        self.lock().nodes.get(node)?.volumes.get(volume).cloned()
    }

    pub(super) fn hello(
        &self,
        node: &NodeId,
        capabilities: Capabilities,
        agent_version: String,
        proven_until: Option<SystemTime>,
    ) {
        let mut kept = self.lock();
        let reports = kept.nodes.entry(node.clone()).or_default();
        reports.capabilities = Some(capabilities);
        reports.agent_version = agent_version;
        reports.proven_until = proven_until;
        reports.refused = None;
    }

    /// The core does not let an agent speak for that node.
    pub(super) fn refused(&self, node: &NodeId, reason: &str) {
        let nodes = &mut self.lock().nodes;
        if nodes.len() < KEPT_NODES || nodes.contains_key(node) {
            nodes.entry(node.clone()).or_default().refused = Some((Instant::now(), reason.to_owned()));
        }
    }

    /// Everything that was last said, by node.
    #[must_use]
    pub fn all(&self) -> BTreeMap<NodeId, AgentReport> {
        self.lock().nodes.iter().map(|(node, reports)| (node.clone(), reports.clone())).collect()
    }

    /// The reports of nodes that have spoken of their volumes after `before`, and the number of the newest.
    #[must_use]
    pub fn since(&self, before: ReportNumber) -> (ReportNumber, Vec<(NodeId, AgentReport)>) {
        let kept = self.lock();
        let since = kept.spoken.range((Bound::Excluded(before), Bound::Unbounded));
        let reports = |node: &NodeId| Some((node.clone(), kept.nodes.get(node)?.clone()));
        (kept.latest, since.filter_map(|(_, node)| reports(node)).collect())
    }

    /// Shows each node's report without a copy; no report can come in meanwhile.
    pub(crate) fn each(&self, mut show: impl FnMut(&NodeId, &AgentReport)) {
        self.lock().nodes.iter().for_each(|(node, reports)| show(node, reports));
    }

    /// An inventory replaces everything said before.
    pub(crate) fn inventory(&self, node: &NodeId, volumes: BTreeMap<VolumeId, VolumeState>) {
        self.lock().speaks(node).volumes = volumes;
    }

    /// What it says of one volume replaces what it said of that before.
    pub(super) fn volume(
        &self,
        node: &NodeId,
        volume: VolumeId,
        state: VolumeState,
    ) -> Result<(), Malformed> {
        let mut kept = self.lock();
        let volumes = &mut kept.speaks(node).volumes;
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

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // It is whole after every operation on it.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
