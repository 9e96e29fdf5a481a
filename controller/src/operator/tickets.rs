//! Tickets as messages for people: what the core keeps of each, how it was said to stand last, and the device that its node
//! has reported.

use std::collections::BTreeMap;

use cleat_core::{Core, InterruptedBy, NodeId, Ticket, TicketId, TicketStanding, VolumeId};
use cleat_proto::cleat::v1 as proto;

use crate::agents::Reports;
use crate::engine::{Stands, TicketName};
use crate::explain;

/// All tickets that the core keeps, of one that nothing could be said of without how it stands; and those that only an
/// attachment says that it is there for. Of one volume, or (`None`) of all.
pub(super) fn tickets(
    core: &Core,
    standings: &BTreeMap<(VolumeId, TicketId), Stands>,
    of_volume: Option<&VolumeId>,
) -> Vec<proto::TicketInfo> {
    let is_asked = |volume: &VolumeId| of_volume.is_none_or(|only| only == volume);
    let of =
        |volume: &VolumeId, ticket: &Ticket| standings.get(&(volume.clone(), ticket.id.clone())).cloned();
    let known = core.tickets().filter(|(volume, ..)| is_asked(volume));
    let known = known.map(|(volume, ticket, _)| info(volume, ticket, of(volume, ticket)));
    let kept = core.kept_tickets().filter(|(volume, ..)| is_asked(volume));
    let kept = kept.map(|(volume, node, ticket)| proto::TicketInfo {
        node_id: node.to_string(),
        waits_for: explain::TICKET_OF_BEFORE.to_owned(),
        since_unix_ms: ticket.waits_since.0,
        ..info(volume, &ticket, None)
    });
    known.chain(kept).collect()
}

/// Adds the device of a ticket that is satisfied, as the agent of its node has reported it.
pub(super) fn with_device(mut ticket: proto::TicketInfo, reports: &Reports) -> proto::TicketInfo {
    let named = (NodeId::new(ticket.node_id.as_str()), VolumeId::new(ticket.volume_id.as_str()));
    if ticket.satisfied
        && let (Ok(node), Ok(volume)) = named
        && let Some(device) = reports.about(&node, &volume).map(|state| state.device)
        && !device.is_empty()
    {
        ticket.device = format!("/dev/{device}");
    }
    ticket
}

/// Names a ticket that is an object, and the one for which it waits, as people know them.
pub(super) fn with_name(
    mut ticket: proto::TicketInfo,
    names: &BTreeMap<TicketId, TicketName>,
) -> proto::TicketInfo {
    let named = |id: &str| TicketId::new(id).ok().and_then(|id| names.get(&id));
    if let Some(id) = ticket.waits_on.strip_prefix("ticket ").map(str::to_owned)
        && let Some(TicketName { namespace, name, .. }) = named(&id)
    {
        let name = format!("{namespace}/{name}");
        ticket.waits_for = ticket.waits_for.replace(&id, &name);
        ticket.waits_on = ticket.waits_on.replace(&id, &name);
    }
    if let Some(TicketName { namespace, name, claim }) = named(&ticket.id).cloned() {
        (ticket.namespace, ticket.name, ticket.claim) = (namespace, name, claim);
    }
    ticket
}

fn info(volume: &VolumeId, ticket: &Ticket, stands: Option<Stands>) -> proto::TicketInfo {
    let node = ticket.node.as_ref().map(ToString::to_string).unwrap_or_default();
    let wished = proto::TicketInfo {
        id: ticket.id.to_string(),
        kind: ticket.kind.name().to_owned(),
        volume_id: volume.to_string(),
        node_id: node,
        priority: ticket.kind.priority(),
        holder: ticket.holder.clone(),
        generation: ticket.generation,
        since_unix_ms: ticket.since.0,
        ..Default::default()
    };
    let Some(Stands { standing, since }) = stands else { return wished };
    let wished = proto::TicketInfo { since_unix_ms: since.0, ..wished };
    match standing {
        TicketStanding::Satisfied { node, generation } => proto::TicketInfo {
            node_id: node.to_string(),
            satisfied: true,
            satisfied_generation: generation,
            ..wished
        },
        TicketStanding::AttachOn(node) => proto::TicketInfo {
            waits_for: format!("node {node} to connect and prove that it can use the device"),
            waits_on: format!("node {node}"),
            ..wished
        },
        TicketStanding::Interrupt { node, by, until } => proto::TicketInfo {
            node_id: node.to_string(),
            waits_on: explain::interrupted_for(&by),
            waits_for: match by {
                InterruptedBy::Silence => "its holder to renew it".to_owned(),
                InterruptedBy::Workload { .. } | InterruptedBy::Unpublish => String::new(),
            },
            interrupted_until_unix_ms: until.0,
            ..wished
        },
        TicketStanding::Waits { wait, since } => proto::TicketInfo {
            waits_for: explain::ticket_wait(&wait),
            waits_on: explain::ticket_waits_on(&wait),
            since_unix_ms: since.0,
            ..wished
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use cleat_core::{
        Access, Config, Event, InterruptedBy, MinFence, NodeId, Remembered, TicketType, TicketWait,
        UnixMillis, VolumeSpec,
    };

    use super::*;

    fn core_with_a_ticket() -> Core {
        let (mut core, _) = Core::rebuild(Config::default(), 1, Remembered::default(), UnixMillis(1));
        let spec = VolumeSpec {
            id: VolumeId::new("v").unwrap(),
            access: Access::Rwo,
            subsystem_nqn: None,
            portals: Vec::new(),
            size_bytes: 4096,
            min_fence: MinFence::default(),
            migration_timeout_ms: VolumeSpec::DEFAULT_MIGRATION_TIMEOUT_MS,
            require_migration: false,
        };
        let ticket = Ticket {
            id: TicketId::new("t").unwrap(),
            kind: TicketType::Backup,
            node: None,
            holder: "velero".into(),
            generation: 2,
            since: UnixMillis(5),
            renewed: UnixMillis(5),
            renew_ms: None,
            waits_since: UnixMillis(5),
        };
        drop(core.step(UnixMillis(6), Event::TicketWanted { spec, ticket: Box::new(ticket) }));
        core
    }

    fn shown(standing: Option<TicketStanding>) -> proto::TicketInfo {
        let key = (VolumeId::new("v").unwrap(), TicketId::new("t").unwrap());
        let stands = standing.map(|standing| (key, Stands { standing, since: UnixMillis(9) }));
        tickets(&core_with_a_ticket(), &stands.into_iter().collect(), None).remove(0)
    }

    #[test]
    fn tickets_that_are_objects_are_shown_by_their_names() {
        let name =
            |name: &str| TicketName { namespace: "shop".into(), name: name.into(), claim: "database".into() };
        let id = |id: &str| TicketId::new(id).unwrap();
        let names = BTreeMap::from([(id("t"), name("nightly")), (id("other"), name("weekly"))]);
        let wait = TicketWait::Queue { behind: id("other") };
        let waits = || shown(Some(TicketStanding::Waits { wait: wait.clone(), since: UnixMillis(8) }));
        let named = with_name(waits(), &names);
        assert_eq!((&*named.namespace, &*named.name, &*named.claim), ("shop", "nightly", "database"));
        assert_eq!(named.waits_on, "ticket shop/weekly");
        assert_eq!(named.waits_for, "ticket shop/weekly, which comes first");
        assert_eq!(with_name(waits(), &BTreeMap::new()), waits(), "outside of a cluster");
    }

    #[test]
    fn a_ticket_is_shown_as_it_was_said_to_stand() {
        let node = NodeId::new("a").unwrap();
        let plain = shown(None);
        assert_eq!((&*plain.id, &*plain.kind, plain.priority, plain.since_unix_ms), ("t", "backup", 800, 5));
        assert!(!plain.satisfied && plain.waits_for.is_empty());
        let satisfied = shown(Some(TicketStanding::Satisfied { node: node.clone(), generation: 2 }));
        assert_eq!(
            (&*satisfied.node_id, satisfied.satisfied_generation, satisfied.since_unix_ms),
            ("a", 2, 9)
        );
        let by = InterruptedBy::Workload { ticket: TicketId::new("csi.b").unwrap(), node: node.clone() };
        let until = UnixMillis(77);
        let interrupted = shown(Some(TicketStanding::Interrupt { node: node.clone(), by, until }));
        assert_eq!((&*interrupted.waits_on, interrupted.interrupted_until_unix_ms), ("ticket csi.b", 77));
        let silent = TicketStanding::Interrupt { node: node.clone(), by: InterruptedBy::Silence, until };
        let silent = shown(Some(silent));
        assert_eq!((&*silent.waits_for, &*silent.waits_on), ("its holder to renew it", ""));
        let wait = TicketWait::Elsewhere { nodes: vec![node] };
        let waits = shown(Some(TicketStanding::Waits { wait, since: UnixMillis(8) }));
        assert_eq!(
            (&*waits.waits_for, &*waits.waits_on, waits.since_unix_ms),
            ("a, which keeps the volume", "node a", 8)
        );
    }
}
