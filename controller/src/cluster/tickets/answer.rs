//! How a ticket stands, as its object says it: to who waits for it, and to people.
//!
//! In comes what was found of a ticket and what the core has said of it; out goes the status that its object is to have. What
//! holds: what was said of an earlier generation satisfies nobody; tickets are named as people know them.

use std::collections::BTreeMap;
use std::sync::Arc;

use cleat_core::{InterruptedBy, NodeId, TicketId, TicketStanding, TicketWait, UnixMillis, VolumeId};
use cleat_kubernetes::tickets::{TicketSeen, TicketStatus};

use super::book::{Book, Subject};
use crate::agents::Reports;
use crate::engine::Stands;
use crate::explain::{self, when};

/// All tickets, by id.
pub(super) type Naming<'a> = BTreeMap<TicketId, &'a Arc<TicketSeen>>;

/// What is said of a ticket, and in one word why.
struct Said {
    status: TicketStatus,
    reason: &'static str,
    lost: bool,
}

/// The status that an object is to have. `None`: nothing is known of it yet.
pub(super) fn answer(
    seen: &TicketSeen,
    book: &Book,
    board: &BTreeMap<(VolumeId, TicketId), Stands>,
    names: &Naming<'_>,
    reports: &Reports,
    now: UnixMillis,
) -> Option<TicketStatus> {
    let (subject, given) = book.about(&seen.uid)?;
    let stands = given.and_then(|(volume, of)| {
        let stands = board.get(&(volume.clone(), seen.uid.clone()))?;
        let device = |node: &NodeId| device(reports, node, volume);
        Some(said(stands, (of, seen.generation), device))
    });
    let waits = |reason, why: &str| Said {
        status: TicketStatus {
            observed_generation: seen.generation,
            waits_for: Some(why.to_owned()),
            ..TicketStatus::default()
        },
        reason,
        lost: false,
    };
    let Said { mut status, reason, lost } = match (subject, stands) {
        (Subject::None { reason, why }, _) => waits(reason, why),
        (_, Some(said)) => said,
        (Subject::Unknown { why }, None) => {
            waits("Unknown", &format!("its volume to be looked up, which did not succeed: {why}"))
        }
        (Subject::NotAsked | Subject::Volume(_), None) => return None,
    };
    if let Some((id, name)) = other(&status, seen, names) {
        for text in [&mut status.waits_for, &mut status.waits_on].into_iter().flatten() {
            *text = text.replace(id.as_str(), name);
        }
    }
    Some(status.concluded(reason, lost, &when(now), seen.status.as_ref()))
}

/// As the core has said it, of that generation; the object is of this one.
fn said(stands: &Stands, (of, is): (u64, u64), device: impl Fn(&NodeId) -> Option<String>) -> Said {
    let Stands { standing, since } = stands;
    let status =
        TicketStatus { observed_generation: of, since: Some(when(*since)), ..TicketStatus::default() };
    let on = |node: &NodeId, status: TicketStatus| TicketStatus {
        node: Some(node.to_string()),
        device: device(node),
        ..status
    };
    let (status, reason, lost) = match standing {
        TicketStanding::Satisfied { node, generation } => {
            let status = TicketStatus {
                satisfied: *generation == is,
                satisfied_generation: Some(*generation),
                ..on(node, status)
            };
            match status.satisfied {
                true => (status, "Satisfied", false),
                false => {
                    let why =
                        format!("its change to be looked at: it is attached for generation {generation}");
                    (TicketStatus { waits_for: Some(why), ..status }, "Changed", false)
                }
            }
        }
        TicketStanding::AttachOn(node) => {
            let why = format!("node {node} to connect and prove that it can use the device");
            let on = Some(format!("node {node}"));
            (TicketStatus { waits_for: Some(why), waits_on: on, ..status }, "Attaching", false)
        }
        TicketStanding::Interrupt { node, by, until } => {
            let (why, reason) = match by {
                InterruptedBy::Workload { .. } => ("a workload on another node", "Interrupted"),
                InterruptedBy::Unpublish => ("the detach of the volume from this node", "Interrupted"),
                InterruptedBy::Silence => ("nobody: its holder did not renew it", "Lost"),
            };
            let why = format!("its holder to let go of the device, until {}; for {why}", when(*until));
            let waits_on = Some(explain::interrupted_for(by)).filter(|on| !on.is_empty());
            let interrupted_until = Some(when(*until));
            let status =
                TicketStatus { waits_for: Some(why), waits_on, interrupted_until, ..on(node, status) };
            (status, reason, *by == InterruptedBy::Silence)
        }
        TicketStanding::Waits { wait, since } => {
            let waits_on = Some(explain::ticket_waits_on(wait)).filter(|on| !on.is_empty());
            let status = TicketStatus {
                waits_for: Some(explain::ticket_wait(wait)),
                waits_on,
                since: Some(when(*since)),
                ..status
            };
            let lost = matches!(wait, TicketWait::Renewal { .. });
            (status, if lost { "Lost" } else { "Waits" }, lost)
        }
    };
    Said { status, reason, lost }
}

/// Where the device is, as the node's agent says it.
fn device(reports: &Reports, node: &NodeId, volume: &VolumeId) -> Option<String> {
    let name = reports.about(node, volume)?.device;
    match name.as_str() {
        "" => None,
        path if path.starts_with('/') => Some(path.to_owned()),
        name => Some(format!("/dev/{name}")),
    }
}

/// The ticket of the same namespace for which one waits, and the name by which people know it.
fn other<'a>(
    status: &TicketStatus,
    of: &TicketSeen,
    names: &'a Naming<'_>,
) -> Option<(&'a TicketId, &'a str)> {
    let id = TicketId::new(status.waits_on.as_deref()?.strip_prefix("ticket ")?).ok()?;
    let (id, other) = names.get_key_value(&id).filter(|(_, other)| other.namespace == of.namespace)?;
    Some((id, &other.name))
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
