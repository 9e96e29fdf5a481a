//! Refusals. The two about who has a volume are fixed texts of the design.

use cleat_core::{Difference, MinFence, NodeId, Overtaking, QuarantineCause, Refusal};

use super::node::{later_term, who};
use super::{nodes, rungs, trouble, wait, when};

/// Why a request was refused, and what to do.
pub(crate) fn refusal(refusal: &Refusal) -> String {
    match refusal {
        Refusal::AttachedElsewhere { volume, node } => format!(
            "Volume {volume} already attached to node {node}. For multi-node access, use RWX with block volumes."
        ),
        Refusal::MigrationLimit { volume, nodes: holders } => format!(
            "Volume {volume} already attached to 2 nodes (migration limit). Wait for migration to complete. \
             Attached nodes: {}",
            nodes(holders)
        ),
        Refusal::MigrationOverdue { volume, nodes: holders, since, timeout_ms } => format!(
            "cannot attach volume {volume} to one more node: its migration began {} and has taken longer than the {} s \
             that it may; see what keeps the VM, and detach one of its nodes: {}",
            when(*since),
            timeout_ms.div_ceil(1_000),
            nodes(holders)
        ),
        Refusal::NodeFull { volume, node, limit } => format!(
            "cannot attach volume {volume} to node {node}: it has {limit} volumes, which is its limit (--max-volumes of its \
             agent); detach one there, use another node, or raise the limit"
        ),
        Refusal::Incompatible { volume, node, difference } => format!(
            "cannot attach volume {volume} to node {node}: it is attached there with other arguments: {}; unpublish it \
             first, or ask for what it is",
            argument(difference)
        ),
        Refusal::Silent { node, since } => format!(
            "cannot attach to node {node}: node {node} has no session with the controller since {}; check that \
             cleat-agent runs there and reaches the controller",
            when(*since)
        ),
        Refusal::Quarantined { node, causes } => {
            format!("cannot attach to node {node}: it is quarantined: {}", quarantine(causes))
        }
        Refusal::NotReady { volume, node, unready } => {
            let why = trouble::unready(unready);
            format!("cannot attach volume {volume} to node {node}: {why}; see cleatctl explain {volume}")
        }
        Refusal::InUse { volume, node, holders } => format!(
            "cannot detach: volume {volume} is in use on node {node}: {}. Nothing was changed; stop what \
             uses it, then \
             detach again",
            holders.join("; ")
        ),
        Refusal::Rds { volume, node, error } => {
            format!("cannot change the access of node {node} to volume {volume}: the RDS: {error}")
        }
        Refusal::StillWaiting { volume, wait: waits_for, waited_ms } => format!(
            "volume {volume} still waits for {} (waited {waited_ms} ms); it goes on, and a repeated call joins it",
            wait(waits_for)
        ),
        Refusal::Overtaken { volume, node, by } => format!(
            "cannot attach volume {volume} to node {node}: {} meanwhile; publish it again if it is wanted there",
            match by {
                Overtaking::Detach => "a detach was asked for",
                Overtaking::Fence => "a fence was asked for",
                Overtaking::DeclaredGone => "the node was declared gone",
            }
        ),
        Refusal::Deleting { volume } => format!(
            "cannot grant or delete volume {volume}: a deletion is under way; if it was not answered, repeat \
             DeleteVolume"
        ),
        Refusal::RecordDeleted { volume, node } => format!(
            "cannot attach volume {volume} to node {node}: somebody has deleted its record, which takes no new node and goes \
             once no node may write any more; detach the volume from the nodes that have it, then repeat the call"
        ),
        Refusal::StillAttached { volume, nodes: holders } => {
            format!("cannot delete volume {volume}: it is attached to {}; detach it first", nodes(holders))
        }
        Refusal::CannotFence { volume, agent, since, last, tried, min_fence } => {
            let node = &agent.node;
            let last = last.as_ref().map(|last| format!(" (last: {})", trouble(last))).unwrap_or_default();
            let tried = match &tried[..] {
                [] => "nothing: the target has no way to fence".to_owned(),
                tried => rungs(tried),
            };
            format!(
                "cannot free volume {volume}: node {node} may still write to it and could not be fenced. {} since {}{last}. \
                 Tried: {tried}; the controller goes on trying. {}. After changing the target: \
                 cleatctl fence {volume} {node} --reason …",
                capital(&who(agent, "has not detached it")),
                when(*since),
                way_out(*min_fence, node)
            )
        }
        Refusal::ExportOff { volume, node, since } => format!(
            "cannot attach: volume {volume} is not exported: node {node} was fenced by that alone at {}. \
             Bring the agent \
             of {node} back: once it shows that it holds none of the volume, the export comes back; if the node \
             is off for good: cleatctl node declare-gone {node} --reason …",
            when(*since)
        ),
        Refusal::NotAttached { volume, node } => {
            format!(
                "cannot fence: volume {volume} is not attached to node {node}, so there is nothing to fence"
            )
        }
        Refusal::UnknownNode { node } => format!(
            "node {node} is unknown: it has no volume, and no agent of that name has connected since the controller \
             began; check the name, and that cleat-agent runs there"
        ),
        Refusal::NotGone { node, since } => format!(
            "cannot declare node {node} gone: its agent has been connected since {}; detach or fence its \
             volumes instead",
            when(*since)
        ),
    }
}

/// Why a node is granted nothing.
pub(crate) fn quarantine(causes: &[QuarantineCause]) -> String {
    let cause = |cause: &QuarantineCause| match cause {
        QuarantineCause::Fenced { volume, since, source } => format!(
            "it was fenced from volume {volume} at {} ({source}) and has not shown yet that it holds none of it; \
             bring its agent back to show it",
            when(*since)
        ),
        QuarantineCause::ClaimsTooMuch { volume, since } => format!(
            "it reports that it holds volume {volume}, which it was not let in to, and has not shown since {} that it does \
             not; check nvme list-subsys there, and its agent",
            when(*since)
        ),
        QuarantineCause::LaterTerm(later) => later_term(later),
    };
    causes.iter().map(cause).collect::<Vec<_>>().join("; ")
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
        "Bring its agent back: its own proof always suffices, and a person's statement does not for minFence={min}{unless}"
    )
}

fn argument(difference: &Difference) -> String {
    match difference {
        Difference::ReadOnly { is, asked } => format!("readonly is {is}, asked for {asked}"),
        Difference::Access { is, asked } => format!("access is {}, asked for {}", is.name(), asked.name()),
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
