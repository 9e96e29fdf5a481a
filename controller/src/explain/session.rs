//! Why an agent may not speak for a node, naming both sides.

use cleat_core::{Claim, PinHolds, SessionRefusal};

/// Why the session is refused or ended.
pub(crate) fn session_refusal(refusal: &SessionRefusal) -> String {
    match refusal {
        SessionRefusal::Replaced { node } => format!("node {node} has opened a new session"),
        SessionRefusal::ReservedName { node } => format!(
            "no node may be called {node}: names that begin so stand for hosts that no node is known to be; give it another \
             --node-id"
        ),
        SessionRefusal::SharedIdentity { node, other, claim } => format!(
            "nodes {node} and {other} both claim {}: give each host its own /etc/nvme/hostnqn and hostid; or, if it is one \
             host that was called {other} before: cleatctl node declare-gone {other} --reason …",
            match claim {
                Claim::HostNqn(nqn) => format!("host NQN {nqn}"),
                Claim::HostId(id) => format!("host id {id}"),
            }
        ),
        SessionRefusal::HolderHasHostNqn { node, other, host_nqn } => format!(
            "nodes {node} and {other} both claim host NQN {host_nqn}, and {other} holds a volume under it; give each host \
             its own /etc/nvme/hostnqn"
        ),
        SessionRefusal::OtherHostMayHold { node, host_nqn, holder } => format!(
            "two hosts claim to be node {node}: {host_nqn}, and {holder}, which may still hold a volume; if that one is off \
             for good: cleatctl node declare-gone {node} --reason …"
        ),
        SessionRefusal::TwoHosts { node, known, new } => format!(
            "two hosts claim to be node {node}: {} (host id {}) and {} (host id {}); give each its own --node-id",
            known.0, known.1, new.0, new.1
        ),
        SessionRefusal::Pinned { node, pinned, new, holds } => format!(
            "node {node} is host NQN {} with host id {} by its record, and its agent says host NQN {} with host id {}; {}; \
             give it the first pair in /etc/nvme/hostnqn and hostid; or, if it is to be the second one and the first is off \
             for good: {}cleatctl node declare-gone {node} --reason …",
            pinned.0,
            pinned.1,
            new.0,
            new.1,
            match holds {
                PinHolds::SameNode(uid) => format!("its Node is the one that it was (UID {uid})"),
                PinHolds::NodeUnknown => "it is not known that its Node is another one".to_owned(),
                PinHolds::InDoubt { volume: None } =>
                    "the first one may write to any volume, for the RDS's lists were not read yet, or a VolumeAttachment \
                     of the node does not say which volume it is about"
                        .to_owned(),
                PinHolds::InDoubt { volume: Some(volume) } =>
                    format!("it is not known that the first one may not write to volume {volume}"),
                PinHolds::Holds { volume } =>
                    format!("the first one may write to volume {volume}, under the NQN that both have"),
            },
            match holds {
                PinHolds::SameNode(_) | PinHolds::NodeUnknown =>
                    format!("kubectl edit cleatnode {node} (in a cluster), or "),
                PinHolds::InDoubt { .. } | PinHolds::Holds { .. } => String::new(),
            },
        ),
    }
}
