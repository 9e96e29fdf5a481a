//! What agents are sent about time and paths, the same for all.

use std::sync::Arc;
use std::time::Duration;

use cleat_core::{Epoch, VolumeId};
use cleat_ids::NqnPrefix;
use cleat_rds::secret::{self, Keys, NoSecret};

/// How many of a volume's portals must have a live path for it to count as ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum PathPolicy {
    /// One.
    #[default]
    Any,
    /// More than half.
    Quorum,
    /// Every one.
    All,
}

/// What agents are sent.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// Only subsystems whose NQN begins so are ever touched.
    pub nqn_prefix: NqnPrefix,
    /// When a volume is ready.
    pub path_policy: PathPolicy,
    /// How long an agent may take to attach, from the directive's receipt.
    pub attach_deadline: Duration,
    /// How long an agent may take to detach before it says what it waits for.
    pub detach_deadline: Duration,
    /// Between two heartbeats, both ways.
    pub heartbeat_interval: Duration,
    /// A side that has heard nothing for so long takes the session for lost.
    pub silence_deadline: Duration,
    /// The keys from which the secrets of in-band authentication are made, where there are any.
    pub secrets: Option<Arc<Keys>>,
}

impl AgentSettings {
    /// The secret of a volume in a generation, as it goes to an agent; empty without a generation, and never with one.
    pub(super) fn secret(&self, volume: &VolumeId, generation: Option<Epoch>) -> Result<String, NoSecret> {
        let Some(generation) = generation else { return Ok(String::new()) };
        let secret = secret::secret(self.secrets.as_deref(), volume, generation)?;
        Ok(secret.reveal().to_owned())
    }
}
