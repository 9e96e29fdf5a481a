//! Which state a volume is in. Pure, from what the kernel shows, what the ledger says and what is being done.
//!
//! Always holds: Absent only for a subsystem without any controller of ours and without a connect that could
//! make one; Ready and Degraded only while the structural clauses hold now.

use std::collections::BTreeMap;

use cleat_host::fabrics::ExactController;
use cleat_host::readiness::{Clause, Expectation, Selected, Unready, select};
use cleat_host::sysfs::{Controller, Namespace, NamespaceKind, SubsystemView};
use cleat_host::{HostNqn, Portal};

use crate::ledger::LedgerEntry;
use crate::name::VolumeId;
use crate::volume::clause::{self, FailedClause};
use crate::volume::plan;
use crate::volume::state::{Absence, Path, ShownIdentity, Staging, VolumePhase, VolumeState};

/// What an operation of this agent is doing to the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::volume) enum Activity {
    /// No operation is changing its connections.
    #[default]
    None,
    /// An attach is connecting it.
    Connecting,
    /// A detach or revoke is deleting its controllers.
    Detaching,
}

/// All that a state follows from.
#[derive(Debug)]
pub(in crate::volume) struct Seen<'a> {
    /// The id under which the state is reported.
    pub(in crate::volume) volume: &'a VolumeId,
    /// What the kernel shows.
    pub(in crate::volume) view: &'a SubsystemView,
    /// Whether a connect was in the kernel when the observation began.
    pub(in crate::volume) connecting: bool,
    /// This node's host NQN: only its controllers count.
    pub(in crate::volume) host_nqn: &'a HostNqn,
    /// What the ledger says; where it cannot be read, the error as text.
    pub(in crate::volume) entry: Result<Option<&'a LedgerEntry>, &'a str>,
    /// What the volume must be; `None` without a grant.
    pub(in crate::volume) expectation: Option<&'a Expectation>,
    /// What an operation is doing to it.
    pub(in crate::volume) activity: Activity,
    /// Whether it was ready under this grant.
    pub(in crate::volume) was_ready: bool,
    /// What failed at the last judgement of the whole predicate; `None` if nothing did.
    pub(in crate::volume) failing: Option<&'a Unready>,
    /// Why this node is not registered as it should be; `None` if it is, or if that was not seen.
    pub(in crate::volume) unregistered: Option<&'a str>,
    /// This node is registered, but does not reserve the namespace before others had time to register again.
    pub(in crate::volume) unheld: bool,
    /// What was seen where the volume is published.
    pub(in crate::volume) staging: &'a [Staging],
    /// Portals whose address does not answer, each with that as text.
    pub(in crate::volume) silent: &'a BTreeMap<Portal, String>,
    /// Who has a device of the volume that is gone.
    pub(in crate::volume) dead_users: &'a [String],
    /// What pods hold in its place.
    pub(in crate::volume) held: &'a [String],
    /// The boot of this node, to tell records of an earlier one.
    pub(in crate::volume) boot_id: &'a str,
}

/// Derives the state from all of it.
pub(in crate::volume) fn judge(seen: &Seen<'_>) -> VolumeState {
    let mine: Vec<&Controller> = seen
        .view
        .controllers
        .iter()
        .filter(|one| ExactController::of(one, &seen.view.nqn, seen.host_nqn).is_some())
        .collect();
    let entry = seen.entry.ok().flatten();
    let ended = entry.is_some_and(|entry| entry.ended);
    let (phase, unready) = phase(seen, &mine, ended);
    let namespace = device(seen.view);
    VolumeState {
        volume: seen.volume.clone(),
        epoch: entry.map(|entry| entry.epoch),
        epoch_ended: ended,
        phase,
        identity: namespace.map(identity),
        paths: paths(&mine, &seen.view.namespaces),
        unready,
        openers: Vec::new(),
        device: namespace.map(|namespace| namespace.name.clone()),
        writes: namespace.map(|namespace| namespace.written().0).unwrap_or_default(),
        absence: (phase == VolumePhase::Absent)
            .then(|| entry.and_then(|entry| entry.proof_of_absence(seen.boot_id)))
            .flatten()
            .map(|deleted| Absence { deleted: deleted.to_vec(), times: None }),
        staging: seen.staging.to_vec(),
        held_elsewhere: if ended { Vec::new() } else { seen.held.to_vec() },
        unbroken: false,
    }
}

fn phase(seen: &Seen<'_>, mine: &[&Controller], ended: bool) -> (VolumePhase, Option<FailedClause>) {
    if mine.is_empty() {
        return match seen.activity {
            Activity::Connecting => {
                (VolumePhase::Connecting, Some(clause::failed(clause::CONNECT, "no controller yet")))
            }
            _ if !seen.view.unreadable.is_empty() => {
                let (path, error) = (&seen.view.unreadable[0].path, &seen.view.unreadable[0].error);
                let message = format!("cannot read {}: {error}", path.display());
                (VolumePhase::Lost, Some(clause::failed(clause::LOOK, message)))
            }
            _ if !seen.view.controllers.is_empty() => {
                let message = "the subsystem's only controllers have another host NQN than this node's";
                (VolumePhase::Connecting, Some(clause::failed(Clause::HostNqn.as_str(), message)))
            }
            _ if !seen.view.namespaces.is_empty() && (ended || seen.activity == Activity::Detaching) => {
                (VolumePhase::Detaching, None)
            }
            _ if (seen.was_ready || !seen.dead_users.is_empty()) && !ended => {
                let users = seen.dead_users.join("; ");
                let message = match users.is_empty() {
                    true => "the kernel has given up every controller".to_owned(),
                    false => format!(
                        "lost while held: the kernel has given up every controller, and the dead device is still in \
                         use: {users}; stop that, and it is made again"
                    ),
                };
                (VolumePhase::Lost, Some(clause::failed(Clause::LivePaths.as_str(), message)))
            }
            _ if seen.connecting && (ended || seen.activity == Activity::Detaching) => {
                (VolumePhase::Detaching, None)
            }
            _ if seen.connecting => {
                let message = "no controller, and a connect is still in the kernel";
                (VolumePhase::Connecting, Some(clause::failed(clause::CONNECT, message)))
            }
            // A head that outlives its controllers queues writes, and sends them once it has a controller
            // again.
            _ if !seen.view.namespaces.is_empty() => {
                let heads: Vec<&str> = seen.view.namespaces.iter().map(|one| one.name.as_str()).collect();
                let message = format!("{} is there without a controller", heads.join(", "));
                (VolumePhase::Lost, Some(clause::failed(Clause::LivePaths.as_str(), message)))
            }
            _ => (VolumePhase::Absent, None),
        };
    }
    if seen.activity == Activity::Detaching || ended {
        return (VolumePhase::Detaching, None);
    }
    let expectation = match (seen.entry, seen.expectation) {
        (Err(error), _) => return (VolumePhase::Connecting, Some(clause::failed(clause::LEDGER, error))),
        (Ok(_), None) => {
            let message = "this node knows of no grant for what its kernel holds";
            return (VolumePhase::Connecting, Some(clause::failed(clause::GRANT, message)));
        }
        (Ok(_), Some(expectation)) => expectation,
    };
    // While an attach is under way, only its own full judgement says Ready.
    if seen.activity == Activity::Connecting && !seen.was_ready {
        let unready = select(seen.view, expectation).err();
        return (VolumePhase::Connecting, unready.as_ref().map(FailedClause::from));
    }
    match select(seen.view, expectation) {
        Ok(selected) => standing(seen, expectation, &selected),
        Err(unready) => {
            let some_live = mine.iter().any(|one| one.state.is_live());
            let phase = match unready.clause {
                Clause::LivePaths if some_live && device(seen.view).is_some() => VolumePhase::Degraded,
                // A head exists: the namespace was scanned once, so it was in use or could have been.
                _ if seen.was_ready || device(seen.view).is_some() => VolumePhase::Lost,
                _ => VolumePhase::Connecting,
            };
            (phase, Some(FailedClause::from(&unready)))
        }
    }
}

/// The phase while the structural clauses hold.
fn standing(
    seen: &Seen<'_>,
    expectation: &Expectation,
    selected: &Selected,
) -> (VolumePhase, Option<FailedClause>) {
    let failing = seen.failing.map(FailedClause::from);
    let unregistered = seen.unregistered.map(|why| clause::failed(clause::RESERVATION, why));
    if let Some(failing) = failing.or(unregistered) {
        let phase = if seen.was_ready { VolumePhase::Lost } else { VolumePhase::Connecting };
        return (phase, Some(failing));
    }
    if selected.live_paths.len() < expectation.portals.len() {
        let live = |portal| selected.live_paths.iter().any(|path| path.portal == portal);
        let why = |portal: &Portal| match seen.silent.get(portal) {
            Some(silent) => format!("{portal} ({silent})"),
            None => portal.to_string(),
        };
        let dead: Vec<String> =
            expectation.portals.iter().filter(|portal| !live(**portal)).map(why).collect();
        let message = format!("no live path to {}", dead.join(", "));
        return (VolumePhase::Degraded, Some(clause::failed(Clause::LivePaths.as_str(), message)));
    }
    if seen.unheld {
        let message = "the target has forgotten all registrations; this node is registered again, and holds the \
                       namespace once other nodes had time to register";
        return (VolumePhase::Degraded, Some(clause::failed(clause::RESERVATION, message)));
    }
    (VolumePhase::Ready, None)
}

/// The device of a view: its head, or its first bare device.
pub(in crate::volume) fn device(view: &SubsystemView) -> Option<&Namespace> {
    let head = view.namespaces.iter().find(|one| matches!(one.kind, NamespaceKind::Head { .. }));
    head.or_else(|| view.namespaces.first())
}

fn identity(namespace: &Namespace) -> ShownIdentity {
    ShownIdentity {
        uuid: namespace.identity.uuid,
        nguid: namespace.identity.nguid,
        size_bytes: namespace.size_bytes,
        block_size_bytes: namespace.logical_block_bytes,
        read_only: namespace.read_only,
    }
}

fn paths(mine: &[&Controller], namespaces: &[Namespace]) -> Vec<Path> {
    let ana = |controller: &Controller| {
        namespaces.iter().find_map(|namespace| match &namespace.kind {
            NamespaceKind::Head { paths } => paths
                .iter()
                .find(|path| path.controller == controller.name)
                .and_then(|path| path.ana_state.as_ref()),
            NamespaceKind::Bare { controller: name, ana_state } => {
                (*name == controller.name).then_some(ana_state.as_ref()).flatten()
            }
        })
    };
    let mut paths: Vec<Path> = mine
        .iter()
        .map(|controller| Path {
            portal: plan::portal_text(controller),
            controller: controller.name.to_string(),
            state: controller.state.to_string(),
            ana_state: ana(controller).map(ToString::to_string),
        })
        .collect();
    paths.sort_by(|a, b| (&a.portal, &a.controller).cmp(&(&b.portal, &b.controller)));
    paths
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "judge_tests.rs"]
mod tests;
