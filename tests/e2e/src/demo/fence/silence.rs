//! How node-a stops being heard, and how it comes back.
//!
//! What always holds: the same rung begins in the same way, sabotaged or not, so that a sabotage differs from the
//! plain run in the step that is left out and in nothing else.

use std::time::Duration;

use cleat_rig::Network;

use crate::world::{Look, Node, NotInTime, Rung, wait_for};

/// The kernel finds out by its keep-alive (3 s here) and some seconds of patience.
const NOTICED: Duration = Duration::from_secs(15);

/// What node-a is cut off from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// The management network: its agent is not heard, and its kernel goes on writing at full speed. Nothing but the
    /// target can stop it, and each step of a fence that is left out shows.
    Management,
    /// Everything, with writes in flight: it comes back with what it had queued.
    Everything,
}

impl Silence {
    pub(super) fn of(rung: Rung) -> Self {
        match rung {
            Rung::Acl => Self::Management,
            Rung::Reservation | Rung::Secret | Rung::ExportOff => Self::Everything,
        }
    }

    pub(super) fn begin(self, node: &Node) -> anyhow::Result<()> {
        match self {
            Self::Management => node.machine().cut_path(Network::Management)?,
            Self::Everything => node.machine().cut_all()?,
        }
        Ok(())
    }

    pub(super) fn in_words(self) -> &'static str {
        match self {
            Self::Management => "the management network; its kernel writes on",
            Self::Everything => "all networks",
        }
    }

    /// Waits until the node's own kernel takes none of its connections for live: what a partition that lasts comes to.
    /// (Deleting one that it still takes for live takes Linux 6.18 up to 90 s: 30 for the writes, 60 for the shutdown.)
    pub(super) async fn sunk_in(self, node: &Node) -> Result<(), NotInTime> {
        wait_for(format!("{} to notice that it is cut off", node.name()), NOTICED, async || {
            let found = node.nvme_controllers().await?;
            let live = found.iter().any(|(_, _, _, state)| state == "live");
            Ok(Look::holds(!live, format!("{found:?}")))
        })
        .await
    }
}
