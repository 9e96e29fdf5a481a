//! For whom an attachment is there, as it is kept with the attachment.
//!
//! Nothing here says who may write: an attachment that nobody wants is taken down like any other, and is there until it is
//! proven gone.

use serde::{Deserialize, Serialize};

use crate::{NodeId, Ticket, TicketId, TicketType, UnixMillis};

/// For whom a node has a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    /// The orchestrator published it there. Where a record does not say, it did.
    #[serde(default = "yes")]
    pub csi: bool,
    /// The orchestrator wants it off the node, and tickets have it there still.
    #[serde(default)]
    pub unpublishing: bool,
    /// The tickets that it is there for, by id.
    #[serde(default)]
    pub tickets: Vec<WantedTicket>,
}

fn yes() -> bool {
    true
}

/// For the orchestrator alone.
impl Default for Wanted {
    fn default() -> Self {
        Self { csi: true, unpublishing: false, tickets: Vec::new() }
    }
}

/// A ticket that an attachment is there for: enough to know it again after a start.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct WantedTicket {
    /// Which one.
    pub id: TicketId,
    /// What it is for.
    pub kind: TicketType,
    /// The generation of the wish that this is for.
    pub generation: u64,
    /// Who wants it, for people.
    pub holder: String,
    /// Since when it is wished for.
    pub since: UnixMillis,
    /// How long after it was renewed last it is lost; `None`: it need not be renewed.
    #[serde(default)]
    pub renew_ms: Option<u64>,
}

impl WantedTicket {
    pub(crate) fn of(ticket: &Ticket) -> Self {
        Self {
            id: ticket.id.clone(),
            kind: ticket.kind,
            generation: ticket.generation,
            holder: ticket.holder.clone(),
            since: ticket.since,
            renew_ms: ticket.renew_ms,
        }
    }

    /// The ticket, of which nothing else is known than that it had the volume on this node; last renewed then.
    pub(crate) fn ticket(&self, node: &NodeId, renewed: UnixMillis) -> Ticket {
        Ticket {
            id: self.id.clone(),
            kind: self.kind,
            node: self.kind.is_workload().then(|| node.clone()),
            holder: self.holder.clone(),
            generation: self.generation,
            since: self.since,
            renewed,
            renew_ms: self.renew_ms,
            waits_since: renewed,
        }
    }

    /// Whether it is lost if nobody renews it.
    pub(crate) fn lapses(&self) -> Option<u64> {
        self.renew_ms.filter(|_| self.kind.is_interruptible())
    }
}

impl Wanted {
    /// For a ticket alone.
    pub(crate) fn by(ticket: &Ticket) -> Self {
        Self { csi: false, unpublishing: false, tickets: vec![WantedTicket::of(ticket)] }
    }

    /// The orchestrator has it there, and nobody else has anything to do with it.
    pub(crate) fn is_csi_alone(&self) -> bool {
        *self == Self::default()
    }

    /// The orchestrator has it there, and wants to keep it.
    pub(crate) fn is_published(&self) -> bool {
        self.csi && !self.unpublishing
    }

    /// Also for this ticket from now on. Whether that is new.
    pub(crate) fn join(&mut self, ticket: &Ticket) -> bool {
        let joining = WantedTicket::of(ticket);
        match self.tickets.binary_search_by(|known| known.id.cmp(&joining.id)) {
            Ok(at) if self.tickets[at] == joining => false,
            Ok(at) => {
                self.tickets[at] = joining;
                true
            }
            Err(at) => {
                self.tickets.insert(at, joining);
                true
            }
        }
    }

    /// Not for this ticket any more. Whether it was.
    pub(crate) fn leave(&mut self, ticket: &TicketId) -> bool {
        let before = self.tickets.len();
        self.tickets.retain(|known| known.id != *ticket);
        self.tickets.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attachment_from_before_there_were_tickets_is_the_orchestrators() {
        let before: Wanted = serde_json::from_str("{}").expect("an older record");
        assert!(before.is_csi_alone());
    }

    #[test]
    fn what_is_written_of_a_ticket_is_read_again() {
        let ticket =
            r#"{"id":"t","kind":"backup","generation":2,"holder":"velero","since":7,"renewMs":60000}"#;
        let text = format!(r#"{{"csi":false,"unpublishing":true,"tickets":[{ticket}]}}"#);
        let wanted: Wanted = serde_json::from_str(&text).expect("a record");
        assert_eq!(serde_json::to_string(&wanted).expect("a record"), text);
        assert_eq!(wanted.tickets[0].lapses(), Some(60_000));
    }
}
