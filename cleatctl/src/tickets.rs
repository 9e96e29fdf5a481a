//! Tickets, as a table and one by one: why volumes should be attached somewhere, and for whom each of them waits.
//!
//! Comes in: the controller's answer. Goes out: texts with marked state words. What always holds: a ticket counts as
//! satisfied only for its own generation, whatever else the answer says.

use cleat_proto::cleat::v1::TicketInfo;
use cleat_runtime::date::rfc3339;

use crate::page::Page;
use crate::table::{Cell, Table};

/// How a ticket stands, in one word.
fn standing(ticket: &TicketInfo) -> &'static str {
    if ticket.interrupted_until_unix_ms > 0 {
        "interrupted"
    } else if ticket.satisfied && ticket.satisfied_generation == ticket.generation {
        "satisfied"
    } else {
        "waits"
    }
}

/// The name under which people know it: in a cluster with its namespace.
pub(crate) fn name(ticket: &TicketInfo) -> String {
    match (&*ticket.namespace, &*ticket.name) {
        ("", _) | (_, "") => ticket.id.clone(),
        (namespace, name) => format!("{namespace}/{name}"),
    }
}

/// What a ticket waits for, and for whom; or what its holder has to do.
fn waits_for(ticket: &TicketInfo) -> String {
    let TicketInfo { holder, waits_on, waits_for, interrupted_until_unix_ms, .. } = ticket;
    let whom = if waits_on.is_empty() { String::new() } else { format!(" (for {waits_on})") };
    match standing(ticket) {
        "satisfied" => String::new(),
        "interrupted" => {
            let until = rfc3339(*interrupted_until_unix_ms);
            format!("{holder} to let go of the device; cut off at {until}{whom}")
        }
        _ if waits_for.is_empty() => String::new(),
        _ => format!("{waits_for}{whom}"),
    }
}

pub(crate) fn table(tickets: &[TicketInfo], width: Option<usize>) -> String {
    if tickets.is_empty() {
        return "There are no tickets.".to_owned();
    }
    let columns = [
        ("VOLUME", 0),
        ("TICKET", 0),
        ("TYPE", 0),
        ("PRIORITY", 5),
        ("NODE", 0),
        ("STANDING", 0),
        ("SINCE", 2),
        ("HOLDER", 3),
        ("CLAIM", 4),
    ];
    let mut table = Table::new(columns, "WAITS FOR");
    for ticket in tickets {
        let cells = [
            Cell::from(&ticket.volume_id),
            name(ticket).into(),
            Cell::from(&ticket.kind),
            ticket.priority.to_string().into(),
            Cell::from(&ticket.node_id),
            Cell::state(standing(ticket)),
            rfc3339(ticket.since_unix_ms).into(),
            Cell::from(&ticket.holder),
            Cell::from(&ticket.claim),
        ];
        table.row(cells, waits_for(ticket));
    }
    table.render(width)
}

/// One ticket in plain words.
pub(crate) fn ticket(ticket: &TicketInfo, width: Option<usize>) -> String {
    let mut page = Page::new(width);
    let TicketInfo { kind, volume_id, node_id, holder, generation, satisfied_generation, .. } = ticket;
    let (word, since) = (standing(ticket), format!(" since {}", rfc3339(ticket.since_unix_ms)));
    page.state(0, &format!("Ticket {} ({kind}) for volume {volume_id}: ", name(ticket)), word, &since);
    page.line(2, format!("priority {}, generation {generation}", ticket.priority));
    if !holder.is_empty() {
        page.line(2, format!("holder {holder}"));
    }
    if !ticket.claim.is_empty() {
        page.line(2, format!("claim {}/{}", ticket.namespace, ticket.claim));
    }
    match word {
        "waits" if node_id.is_empty() => page.line(2, "wants it where the volume is"),
        "waits" => page.line(2, format!("wants it on node {node_id}")),
        _ if ticket.device.is_empty() => page.line(2, format!("attached on node {node_id}")),
        _ => page.line(2, format!("device {} on node {node_id}", ticket.device)),
    }
    if ticket.satisfied && satisfied_generation != generation {
        page.line(2, format!("changed since it was satisfied as generation {satisfied_generation}"));
    }
    let waits_for = waits_for(ticket);
    if word != "satisfied" {
        let nothing = "the controller, which has not said anything of it yet";
        page.line(2, format!("waits for {}", if waits_for.is_empty() { nothing } else { &waits_for }));
    }
    page.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::painted;

    const NOON: u64 = 951_825_600_000;

    fn backup() -> TicketInfo {
        TicketInfo {
            id: "0b7c1d1e-9f59-4c3a-8a43-6c0a3a3a4c5d".into(),
            namespace: "shop".into(),
            name: "nightly".into(),
            claim: "database".into(),
            kind: "backup".into(),
            priority: 800,
            volume_id: "pvc-1".into(),
            node_id: "worker-1".into(),
            holder: "velero".into(),
            generation: 2,
            satisfied_generation: 2,
            satisfied: true,
            device: "/run/cleat/tickets/0b7c1d1e/device".into(),
            since_unix_ms: NOON,
            ..Default::default()
        }
    }

    fn csi() -> TicketInfo {
        TicketInfo {
            id: "csi-ca7c3b21".into(),
            kind: "csi".into(),
            priority: 900,
            volume_id: "pvc-1".into(),
            node_id: "worker-2".into(),
            generation: 1,
            since_unix_ms: NOON + 1000,
            waits_for: "shop/nightly on worker-1 to let go of it".into(),
            waits_on: "ticket shop/nightly".into(),
            ..Default::default()
        }
    }

    fn interrupted() -> TicketInfo {
        TicketInfo {
            interrupted_until_unix_ms: NOON + 30_000,
            waits_on: "ticket csi-ca7c3b21".into(),
            ..backup()
        }
    }

    fn shown(screen: &str) -> String {
        format!("\n{}\n", painted(screen, false).trim_end())
    }

    #[test]
    fn no_tickets_are_said_to_be_none() {
        assert_eq!(table(&[], None), "There are no tickets.");
    }

    #[test]
    fn tickets_without_a_terminal_are_one_line_each() {
        assert_eq!(
            shown(&table(&[csi(), interrupted()], None)),
            "
VOLUME  TICKET        TYPE    PRIORITY  NODE      STANDING     SINCE                 HOLDER  CLAIM     WAITS FOR
pvc-1   csi-ca7c3b21  csi     900       worker-2  waits        2000-02-29T12:00:01Z  -       -         shop/nightly on worker-1 to let go of it (for ticket shop/nightly)
pvc-1   shop/nightly  backup  800       worker-1  interrupted  2000-02-29T12:00:00Z  velero  database  velero to let go of the device; cut off at 2000-02-29T12:00:30Z (for ticket csi-ca7c3b21)
"
        );
    }

    #[test]
    fn a_satisfied_ticket_says_where_its_device_is() {
        assert_eq!(
            shown(&ticket(&backup(), None)),
            "
Ticket shop/nightly (backup) for volume pvc-1: satisfied since 2000-02-29T12:00:00Z
  priority 800, generation 2
  holder velero
  claim shop/database
  device /run/cleat/tickets/0b7c1d1e/device on node worker-1
"
        );
    }

    #[test]
    fn an_interrupted_ticket_says_until_when_and_for_whom() {
        assert_eq!(
            shown(&ticket(&interrupted(), None)),
            "
Ticket shop/nightly (backup) for volume pvc-1: interrupted since 2000-02-29T12:00:00Z
  priority 800, generation 2
  holder velero
  claim shop/database
  device /run/cleat/tickets/0b7c1d1e/device on node worker-1
  waits for velero to let go of the device; cut off at 2000-02-29T12:00:30Z (for ticket csi-ca7c3b21)
"
        );
    }

    #[test]
    fn a_ticket_that_waits_says_for_what_and_for_whom() {
        assert_eq!(
            shown(&ticket(&csi(), None)),
            "
Ticket csi-ca7c3b21 (csi) for volume pvc-1: waits since 2000-02-29T12:00:01Z
  priority 900, generation 1
  wants it on node worker-2
  waits for shop/nightly on worker-1 to let go of it (for ticket shop/nightly)
"
        );
    }

    #[test]
    fn a_ticket_that_was_changed_is_not_shown_as_satisfied() {
        let changed = TicketInfo { generation: 3, device: String::new(), node_id: String::new(), ..backup() };
        assert_eq!(
            shown(&ticket(&changed, None)),
            "
Ticket shop/nightly (backup) for volume pvc-1: waits since 2000-02-29T12:00:00Z
  priority 800, generation 3
  holder velero
  claim shop/database
  wants it where the volume is
  changed since it was satisfied as generation 2
  waits for the controller, which has not said anything of it yet
"
        );
        assert!(table(&[changed], None).contains("waits"));
    }

    #[test]
    fn what_a_holder_calls_itself_commands_no_terminal() {
        let strange = TicketInfo { holder: "x\u{1b}[2J\u{2066}".into(), ..interrupted() };
        for screen in [table(std::slice::from_ref(&strange), Some(80)), ticket(&strange, Some(80))] {
            let text = painted(&screen, false);
            assert!(!text.contains('\u{1b}') && !text.contains('\u{2066}'), "{text:?}");
        }
    }
}
