//! The machine itself. (Being filled in.)

use std::collections::BTreeMap;

use crate::{Effect, Event, Node, NodeId, UnixMillis, VolumeId, VolumeRecord};

/// Times that decide, all in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Config {
    /// How long a Publish waits for a detach elsewhere that is under way (`--detach-grace-period`).
    pub detach_grace_ms: u64,
    /// How long any request may wait before it is refused naming what it waits for.
    pub request_limit_ms: u64,
    /// The longest that the target's backing store may hold a write it has received.
    pub drain_bound_ms: u64,
    /// Between two tries of something that failed.
    pub retry_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            detach_grace_ms: 30_000,
            request_limit_ms: 60_000,
            drain_bound_ms: 60_000,
            retry_ms: 2_000,
        }
    }
}

/// A request that has not been answered yet, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// "publish" or "unpublish".
    pub request: &'static str,
    /// For which node; `None`: all.
    pub node: Option<NodeId>,
    /// Since when.
    pub since: UnixMillis,
    /// For what, in words.
    pub waits_for: String,
}

/// All that the controller knows and decides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Core {
    config: Config,
    term: u64,
    nodes: BTreeMap<NodeId, Node>,
    volumes: BTreeMap<VolumeId, VolumeRecord>,
}

impl Core {
    /// Begins from what was stored. All that was granted stays granted; nobody is admitted, nobody forgotten.
    #[must_use]
    pub fn rebuild(
        config: Config,
        term: u64,
        records: Vec<VolumeRecord>,
        now: UnixMillis,
    ) -> (Self, Vec<Effect>) {
        let _ = now;
        let volumes = records.into_iter().map(|r| (r.spec.id.clone(), r)).collect();
        (
            Self {
                config,
                term,
                nodes: BTreeMap::new(),
                volumes,
            },
            Vec::new(),
        )
    }

    /// Takes in one event; says what is to be done.
    pub fn step(&mut self, now: UnixMillis, event: Event) -> Vec<Effect> {
        let _ = (now, event, &self.config);
        Vec::new()
    }

    /// The term under which this core grants.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Every node that was heard in this term.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeId, Node> {
        &self.nodes
    }

    /// Every volume that is tracked.
    #[must_use]
    pub fn volumes(&self) -> &BTreeMap<VolumeId, VolumeRecord> {
        &self.volumes
    }

    /// What a volume's attachment on a node waits for, in words; `None` if for nothing.
    #[must_use]
    pub fn waits_for(&self, volume: &VolumeId, node: &NodeId) -> Option<String> {
        let _ = (volume, node);
        None
    }

    /// The requests about a volume that are not answered yet.
    #[must_use]
    pub fn waiting(&self, volume: &VolumeId) -> Vec<Waiting> {
        let _ = volume;
        Vec::new()
    }
}
