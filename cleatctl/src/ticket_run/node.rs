//! Which node this machine is, by its boot id: a name may be anybody's.

use cleat_proto::cleat::v1::NodeInfo;

use super::TicketRunError;
use crate::client::{AskError, Controller};

/// Another one with each start of the machine, and the same in each container of it.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The node that this machine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ThisNode {
    pub(super) name: String,
    /// What the NQNs of its volumes begin with.
    pub(super) nqn_prefix: String,
}

/// Finds it; `named` is what it is said to be.
pub(super) async fn this(controller: &mut Controller, named: Option<&str>) -> Result<ThisNode, AskError> {
    let boot = std::fs::read_to_string(BOOT_ID).map_err(TicketRunError::BootId)?;
    let nodes = match named {
        Some(node) => vec![controller.node(node.to_owned()).await?],
        None => controller.nodes().await?,
    };
    Ok(of_boot(nodes, boot.trim(), named)?)
}

fn of_boot(nodes: Vec<NodeInfo>, boot: &str, named: Option<&str>) -> Result<ThisNode, TicketRunError> {
    let boot_of =
        |node: &NodeInfo| node.identity.as_ref().map(|identity| identity.boot_id.clone()).unwrap_or_default();
    if let (Some(name), [node]) = (named, &nodes[..])
        && boot_of(node) != boot
    {
        return Err(TicketRunError::OtherMachine { node: name.to_owned(), theirs: boot_of(node) });
    }
    let mut ours: Vec<NodeInfo> = nodes.into_iter().filter(|node| boot_of(node) == boot).collect();
    let names = || ours.iter().map(|node| node.node_id.clone()).collect::<Vec<_>>();
    if ours.len() > 1 {
        return Err(TicketRunError::SeveralNodes(names()));
    }
    let Some(node) = ours.pop() else { return Err(TicketRunError::NoNode(boot.to_owned())) };
    let nqn_prefix = node.capabilities.map(|capabilities| capabilities.nqn_prefix).unwrap_or_default();
    match nqn_prefix.is_empty() {
        true => Err(TicketRunError::NoPrefix(node.node_id)),
        false => Ok(ThisNode { name: node.node_id, nqn_prefix }),
    }
}

#[cfg(test)]
mod tests {
    use cleat_proto::cleat::v1::{Capabilities, NodeIdentity};

    use super::*;

    const PREFIX: &str = "nqn.2026-01.io.cleat:";

    fn node(name: &str, boot_id: &str) -> NodeInfo {
        let capabilities = Capabilities { nqn_prefix: PREFIX.to_owned(), ..Default::default() };
        NodeInfo {
            node_id: name.to_owned(),
            identity: Some(NodeIdentity { boot_id: boot_id.to_owned(), ..Default::default() }),
            capabilities: Some(capabilities),
            ..Default::default()
        }
    }

    #[test]
    fn this_machine_is_the_node_with_its_boot_id() {
        let found = of_boot(vec![node("a", "1"), node("b", "2")], "2", None);
        assert_eq!(found.ok(), Some(ThisNode { name: "b".into(), nqn_prefix: PREFIX.into() }));
        let none = of_boot(vec![node("a", "1")], "2", None);
        assert!(matches!(none, Err(TicketRunError::NoNode(_))), "{none:?}");
        let both = of_boot(vec![node("a", "2"), node("b", "2")], "2", None);
        assert!(matches!(both, Err(TicketRunError::SeveralNodes(_))), "{both:?}");
    }

    #[test]
    fn a_node_that_is_another_machine_is_refused_by_name() {
        let other = of_boot(vec![node("a", "1")], "2", Some("a"));
        assert!(matches!(other, Err(TicketRunError::OtherMachine { .. })), "{other:?}");
        assert!(of_boot(vec![node("a", "2")], "2", Some("a")).is_ok());
    }

    #[test]
    fn a_node_whose_agent_was_not_heard_has_no_devices_to_find() {
        let silent = NodeInfo { capabilities: None, ..node("a", "2") };
        let refused = of_boot(vec![silent], "2", None);
        assert!(matches!(refused, Err(TicketRunError::NoPrefix(_))), "{refused:?}");
    }
}
