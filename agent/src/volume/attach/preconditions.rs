//! Reasons why this node cannot attach at all, whatever is connected. Pure, from what the kernel shows.
//!
//! Comes in: a view of the volume's subsystem, its grant, this node's identity. Goes out: the reason, and
//! what to do about it. While there is one, nothing is connected.

use cleat_host::readiness::Clause;
use cleat_host::sysfs::{NativeMultipath, SubsystemView};
use cleat_host::{HostId, HostNqn};

use crate::ledger::Grant;
use crate::volume::clause::{self, FailedClause};

/// What keeps the grant from being attached here; `None` where nothing does.
pub(in crate::volume) fn unmet(
    view: &SubsystemView,
    grant: &Grant,
    host_nqn: &HostNqn,
    host_id: HostId,
) -> Option<FailedClause> {
    if view.multipath != NativeMultipath::On && grant.portals.len() > 1 {
        let message = format!(
            "native NVMe multipath is off on this node, and the volume has {} portals: each would be a device of its \
             own; boot the node with nvme_core.multipath=Y",
            grant.portals.len()
        );
        return Some(clause::failed(clause::MULTIPATH, message));
    }
    let same = |text: Option<&str>| text.and_then(|id| HostId::parse(id).ok()) == Some(host_id);
    view.controllers.iter().find_map(|one| {
        let (nqn, id) = (one.host_nqn.as_deref()?, one.host_id.as_deref()?);
        ((nqn == host_nqn.as_str()) != same(Some(id))).then(|| {
            let message = format!(
                "{} is connected to the volume as host NQN {nqn} with host id {id}, but this node is {host_nqn} with \
                 host id {host_id}; disconnect it, or make /etc/nvme/hostnqn and hostid the same pair",
                one.name
            );
            clause::failed(Clause::HostNqn.as_str(), message)
        })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::agent::{Machine, grant};
    use crate::testing::kernel::{HOST, HOST_ID, controller, view};
    use crate::volume::outcome::Outcome;

    fn found(view: &SubsystemView, portals: &[u8]) -> Option<FailedClause> {
        unmet(view, &grant(portals), &HostNqn::parse(HOST).unwrap(), HostId::parse(HOST_ID).unwrap())
    }

    #[test]
    fn without_native_multipath_only_one_portal_is_attached() {
        let mut view = view(Vec::new());
        assert_eq!(found(&view, &[1, 2]), None);
        for off in [NativeMultipath::Off, NativeMultipath::Absent] {
            view.multipath = off;
            let unready = found(&view, &[1, 2]).unwrap();
            assert_eq!(unready.clause, clause::MULTIPATH);
            assert!(unready.message.contains("nvme_core.multipath=Y"), "{}", unready.message);
            assert_eq!(found(&view, &[1]), None);
        }
    }

    #[test]
    fn a_controller_with_half_of_this_nodes_identity_is_named_with_both() {
        const OTHER: &str = "99999999-0000-0000-0000-000000000000";
        let mut half = controller(7, 1, "live");
        half.host_id = Some(OTHER.into());
        let unready = found(&view(vec![controller(0, 1, "live"), half]), &[1]).unwrap();
        assert_eq!(unready.clause, Clause::HostNqn.as_str());
        assert!(
            ["nvme7", HOST, OTHER, HOST_ID].iter().all(|one| unready.message.contains(one)),
            "{unready:?}"
        );
        let mut other_half = controller(7, 1, "live");
        other_half.host_nqn = Some(format!("nqn.2014-08.org.nvmexpress:uuid:{OTHER}"));
        assert!(found(&view(vec![other_half.clone()]), &[1]).is_some());
        // Somebody else's altogether.
        other_half.host_id = Some(OTHER.into());
        assert_eq!(found(&view(vec![other_half]), &[1]), None);
    }

    #[tokio::test]
    async fn where_it_stands_in_the_way_nothing_is_connected() {
        let machine = Machine::new();
        machine.kernel.change(|world| {
            world.connect("nqn.2026-01.io.cleat:v", 1, HOST);
            world.controllers[0].host_id = Some("99999999-0000-0000-0000-000000000000".into());
        });
        let agent = machine.agent();
        let outcome = agent.attach_by(1, grant(&[1, 2]), Duration::from_millis(300)).await;
        let Outcome::Failed(failed) = outcome else { panic!("{outcome:?}") };
        assert_eq!(failed.unready.clause, Clause::HostNqn.as_str());
        assert!(machine.kernel.world().connects.is_empty());
        // Its end is not held up.
        assert!(matches!(agent.revoke(1).await, Outcome::Absent(_)));
    }
}
