//! What to do about a volume. Pure, from what the kernel shows and what is wanted.
//!
//! Comes in: a view of the volume's subsystem and a [`Want`]. Goes out: [`PlannedStep`]s, and what they
//! cannot change. Any step may be left undone: the caller observes again and plans again.
//!
//! Always holds: no step ever names a controller of another subsystem or another host NQN.

use std::collections::BTreeSet;

use cleat_host::fabrics::ExactController;
use cleat_host::sysfs::{Controller, SubsystemView};
use cleat_host::{HostNqn, Portal};

/// What is wanted of a volume.
#[derive(Debug, Clone, Copy)]
pub enum Want<'a> {
    /// One controller of ours to each of these portals.
    Connected(&'a [Portal]),
    /// No controller of ours at all.
    Gone,
}

/// One thing to do; each can be left undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlannedStep {
    /// Connect this portal, which has none and no connect under way.
    Connect(Portal),
    /// Delete this controller of ours.
    Delete(Doomed),
}

/// A controller that is to be deleted, with what has to be remembered of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doomed {
    /// Which controller, with the names that are verified before it is deleted.
    pub target: ExactController,
    /// The portal that it is connected to, as [`portal_text`] gives it.
    pub portal: String,
}

/// Steps, and what they cannot change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In no particular order: they may be done in parallel.
    pub steps: Vec<PlannedStep>,
    /// Controllers of the subsystem that are not ours, as text for a person. They are left alone.
    pub foreign: Vec<String>,
}

/// Plans for one volume. `under_way` are the portals whose connect is under way.
pub fn plan(view: &SubsystemView, host_nqn: &HostNqn, under_way: &BTreeSet<Portal>, want: Want<'_>) -> Plan {
    let (mine, others): (Vec<&Controller>, Vec<&Controller>) =
        view.controllers.iter().partition(|one| ExactController::of(one, &view.nqn, host_nqn).is_some());
    let foreign = others.into_iter().map(foreign_text).collect();
    let steps = match want {
        Want::Connected(portals) => {
            let there: BTreeSet<Portal> =
                mine.iter().filter(|one| !one.state.is_going()).filter_map(|one| one.portal()).collect();
            let missing =
                portals.iter().filter(|portal| !there.contains(portal) && !under_way.contains(portal));
            missing.copied().map(PlannedStep::Connect).collect()
        }
        Want::Gone => mine
            .into_iter()
            .filter_map(|one| {
                let target = ExactController::of(one, &view.nqn, host_nqn)?;
                Some(PlannedStep::Delete(Doomed { target, portal: portal_text(one) }))
            })
            .collect(),
    };
    Plan { steps, foreign }
}

/// The portal of a controller as it is reported: normalised where it is a TCP one, else the kernel's text.
pub fn portal_text(controller: &Controller) -> String {
    match (controller.portal(), &controller.address) {
        (Some(portal), _) => portal.to_string(),
        (None, Some(address)) => address.raw.clone(),
        (None, None) => String::new(),
    }
}

fn foreign_text(controller: &Controller) -> String {
    let host = controller.host_nqn.as_deref().unwrap_or("none");
    format!("{} at {} (host NQN {host})", controller.name, portal_text(controller))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::kernel::{HOST, controller, view};

    fn host() -> HostNqn {
        HostNqn::parse(HOST).unwrap()
    }

    fn portal(n: u8) -> Portal {
        Portal::parse(&format!("10.0.{n}.1:4420")).unwrap()
    }

    fn steps(view: &SubsystemView, want: Want<'_>) -> Vec<PlannedStep> {
        plan(view, &host(), &BTreeSet::new(), want).steps
    }

    #[test]
    fn only_missing_portals_are_connected() {
        let view = view(vec![
            controller(0, 1, "live"),
            controller(1, 2, "connecting"),
            controller(2, 3, "deleting"),
        ]);
        let wanted = [portal(1), portal(2), portal(3), portal(4)];
        let plan = plan(&view, &host(), &BTreeSet::from([portal(4)]), Want::Connected(&wanted));
        assert_eq!(plan.steps, [PlannedStep::Connect(portal(3))]);
    }

    #[test]
    fn what_is_complete_needs_nothing() {
        let view = view(vec![controller(0, 1, "live"), controller(1, 2, "live")]);
        assert!(steps(&view, Want::Connected(&[portal(1), portal(2)])).is_empty());
    }

    #[test]
    fn a_deletion_names_all_controllers_of_ours_and_no_other() {
        let mut other = controller(7, 1, "live");
        other.host_nqn = Some("nqn.2014-08.org.nvmexpress:uuid:99999999-0000-0000-0000-000000000000".into());
        let view = view(vec![controller(0, 1, "live"), controller(1, 2, "connecting"), other]);
        let plan = plan(&view, &host(), &BTreeSet::new(), Want::Gone);
        let names: Vec<_> = plan
            .steps
            .iter()
            .map(|step| match step {
                PlannedStep::Delete(doomed) => (doomed.target.controller.to_string(), doomed.portal.clone()),
                PlannedStep::Connect(portal) => panic!("connects {portal}"),
            })
            .collect();
        assert_eq!(
            names,
            [("nvme0".into(), "10.0.1.1:4420".into()), ("nvme1".into(), "10.0.2.1:4420".into())]
        );
        assert_eq!(plan.foreign.len(), 1);
        assert!(plan.foreign[0].contains("nvme7"), "{:?}", plan.foreign);
    }
}
