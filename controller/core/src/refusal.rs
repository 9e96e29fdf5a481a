//! Why a request was not granted: what, on what, what it waits for, and what a person can do.

use crate::{MinFence, NodeId, RdsFailure, Tried, UnixMillis, VolumeId};

/// A request's end without success. The shell maps each to a status code; the words are for people.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// An RWO volume that another node has.
    #[error(
        "Volume {volume} already attached to node {node}. For multi-node access, use RWX with block volumes."
    )]
    AttachedElsewhere {
        /// The volume.
        volume: VolumeId,
        /// Who has it.
        node: NodeId,
    },
    /// An RWX block volume that two other nodes have.
    #[error(
        "Volume {volume} already attached to 2 nodes (migration limit). Wait for migration to complete. \
         Attached nodes: {}",
        list(nodes)
    )]
    MigrationLimit {
        /// The volume.
        volume: VolumeId,
        /// Who has it, oldest first.
        nodes: Vec<NodeId>,
    },
    /// The same attachment exists with other arguments.
    #[error("volume {volume} is already attached to node {node} with other arguments: {difference}")]
    Incompatible {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// Which argument, what it is and what was asked for.
        difference: String,
    },
    /// The node's agent is not heard.
    #[error(
        "node {node} has no session with the controller since {}: {waits_for}. Check that cleat-agent runs there and \
         reaches the controller", when(*since)
    )]
    Silent {
        /// The node.
        node: NodeId,
        /// Since when.
        since: UnixMillis,
        /// What the request would need from it.
        waits_for: String,
    },
    /// The node may not be granted anything.
    #[error("node {node} is quarantined: {reason}")]
    Quarantined {
        /// The node.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// The agent could not make the device ready.
    #[error("node {node} cannot use volume {volume}: {clause}: {message}")]
    NotReady {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// The clause of the readiness predicate that failed.
        clause: String,
        /// The facts.
        message: String,
    },
    /// The device is in use on the node; nothing was changed.
    #[error(
        "volume {volume} is in use on node {node}: {}. Nothing was changed; stop what uses it, then detach again",
        holders.join("; ")
    )]
    InUse {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// By whom.
        holders: Vec<String>,
    },
    /// The RDS did not do what was asked of it.
    #[error("volume {volume}, node {node}: the RDS: {error}")]
    Rds {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// What it said, or that it said nothing.
        error: RdsFailure,
    },
    /// The time a request may wait is over. What it waits for goes on, and a repeat joins it.
    #[error("volume {volume}: {waits_for} (waited {waited_ms} ms; it goes on, and a repeated call joins it)")]
    StillWaiting {
        /// The volume.
        volume: VolumeId,
        /// For what, and since when.
        waits_for: String,
        /// How long the request waited, in milliseconds.
        waited_ms: u64,
    },
    /// A later request overtook it.
    #[error("volume {volume}, node {node}: given up, because {because}")]
    Overtaken {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// Which.
        because: &'static str,
    },
    /// The volume is being deleted.
    #[error(
        "volume {volume} is being deleted: nobody gets it before the RDS itself has said that it is gone. Where the answer \
         was lost, repeat DeleteVolume"
    )]
    Deleting {
        /// The volume.
        volume: VolumeId,
    },
    /// The volume cannot be deleted while somebody may use it.
    #[error("volume {volume} is attached to {}: detach it first", list(nodes))]
    StillAttached {
        /// The volume.
        volume: VolumeId,
        /// Who has it.
        nodes: Vec<NodeId>,
    },
    /// A node that may still write could not be fenced.
    #[error(
        "volume {volume}: node {node} may still write to it, and could not be fenced: {doubt}, being detached since \
         {}. Tried: {}. It is tried again. {}. After changing the target: cleatctl fence {volume} {node} --reason …",
        when(*since), rungs(tried), way_out(*min_fence, node)
    )]
    CannotFence {
        /// The volume.
        volume: VolumeId,
        /// The node in doubt.
        node: NodeId,
        /// Since when it is being detached.
        since: UnixMillis,
        /// What is known of its agent, in words.
        doubt: String,
        /// The rungs of the ladder, each with its last result.
        tried: Vec<Tried>,
        /// The weakest fence that would do.
        min_fence: MinFence,
    },
    /// The only fence was to take the export off, and it stays off until the fenced node is clean.
    #[error(
        "volume {volume} is not exported: node {node} was fenced by that alone at {}. It is exported again when the \
         agent of {node} has shown that it holds none of it; if the node is known to be off for good: cleatctl node \
         declare-gone {node} --reason …",
        when(*since)
    )]
    ExportOff {
        /// The volume.
        volume: VolumeId,
        /// The fenced node.
        node: NodeId,
        /// Since when.
        since: UnixMillis,
    },
    /// Nothing to fence.
    #[error("volume {volume} is not attached to node {node}: there is nothing to fence")]
    NotAttached {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
    },
    /// Nothing is known of the node.
    #[error(
        "node {node} is unknown: it has no volume, and no agent of that name was heard since the controller began. Check \
         the name, and that cleat-agent runs there"
    )]
    UnknownNode {
        /// The node.
        node: NodeId,
    },
    /// A node that is heard is not gone.
    #[error(
        "node {node} is not gone: its agent has been connected since {}. Detach or fence its volumes instead",
        when(*since)
    )]
    NotGone {
        /// The node.
        node: NodeId,
        /// Since when it is heard.
        since: UnixMillis,
    },
}

/// What a person can do about a node that could not be fenced.
fn way_out(min_fence: MinFence, node: &NodeId) -> String {
    let unless = match min_fence {
        MinFence::NodeGone => {
            return format!(
                "If the node comes back it is detached as usual. If it is known to be off: cleatctl node declare-gone \
                 {node} --reason …, or the taint node.kubernetes.io/out-of-service"
            );
        }
        MinFence::Reservation => {
            "; or, where two nodes may have it, attach the volume to a second node, which can preempt this one"
        }
        MinFence::ExportOff | MinFence::Acl | MinFence::Secret => "",
    };
    let min = min_fence.name();
    format!(
        "Bring its agent back: its own proof always does, and a person's word does not for a minFence of {min}{unless}"
    )
}

fn rungs(tried: &[Tried]) -> String {
    if tried.is_empty() { "nothing, for the target can do nothing".into() } else { Tried::list(tried) }
}

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}

/// A moment, as people read it: RFC 3339, UTC, whole seconds.
pub(crate) fn when(at: UnixMillis) -> String {
    let seconds = at.0 / 1000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a civil date, counting years from March, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_read_as_utc_dates() {
        assert_eq!(when(UnixMillis(0)), "1970-01-01T00:00:00Z");
        assert_eq!(when(UnixMillis(951_782_399_000)), "2000-02-28T23:59:59Z");
        assert_eq!(when(UnixMillis(951_782_400_000)), "2000-02-29T00:00:00Z");
        assert_eq!(when(UnixMillis(1_798_761_599_999)), "2026-12-31T23:59:59Z");
    }
}
