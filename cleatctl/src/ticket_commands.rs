//! `cleatctl ticket`: tickets shown, made, renewed and ended.
//!
//! Comes in: a command. Goes out: the controller's answer. Always holds: what is made here is asked of the controller. In a
//! cluster tickets are objects, which are shown here, and made, renewed and ended elsewhere.

use std::time::Duration;

use clap::builder::PossibleValuesParser;
use cleat_proto::cleat::v1 as proto;
use cleat_runtime::options::duration;

use crate::client::{AskError, Controller};
use crate::output::Output;
use crate::page::Page;
use crate::ticket_run::TicketRun;
use crate::{json, tickets};

/// The types that somebody may ask for.
const TYPES: [&str; 6] = ["backup", "snapshot", "clone", "api", "restore", "expansion"];

/// Commands about tickets.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum TicketCommand {
    /// List tickets: how each stands, and for whom it waits
    Ls {
        /// Those of this volume alone
        volume: Option<String>,

        #[command(flatten)]
        form: Form,
    },
    /// Show one ticket
    Show {
        #[command(flatten)]
        ticket: Named,

        #[command(flatten)]
        form: Form,
    },
    /// Ask for a volume, or change what was asked for; does not wait until it is there. Not in a cluster, where tickets are
    /// objects
    Create(Box<Create>),
    /// Say that a ticket's holder is there still
    Renew {
        #[command(flatten)]
        ticket: Named,

        #[command(flatten)]
        form: Form,
    },
    /// Run a command that reads a volume, on the node where the volume is, as root
    Run(Box<TicketRun>),
    /// End a ticket. With the last one the volume is detached
    Delete {
        #[command(flatten)]
        ticket: Named,

        #[command(flatten)]
        form: Form,
    },
}

/// How to show the answer.
#[derive(clap::Args, Debug)]
pub(crate) struct Form {
    /// The same as --output json
    #[arg(long)]
    json: bool,
}

/// Which ticket.
#[derive(clap::Args, Debug)]
pub(crate) struct Named {
    /// Id of the ticket; of an object of the cluster also NAMESPACE/NAME
    #[arg(value_name = "TICKET")]
    ticket: String,
}

/// What to ask for.
#[derive(clap::Args, Debug)]
pub(crate) struct Create {
    /// Id of the volume
    volume: String,

    /// What it is wanted for. backup and snapshot give way to a workload on another node; api is a workload, for one node
    #[arg(long = "type", value_name = "TYPE", value_parser = PossibleValuesParser::new(TYPES))]
    kind: String,

    /// Id of the ticket [default: TYPE.VOLUME]
    #[arg(long)]
    id: Option<String>,

    /// Node on which it is wanted; the volume goes there if no node has it. Without it: where the volume is
    #[arg(long)]
    node: Option<String>,

    /// Who wants it, for people
    #[arg(long, default_value = "cleatctl")]
    holder: String,

    /// Which change of the ticket this is; a higher one takes the place of what was asked for before
    #[arg(long, value_name = "N", default_value_t = 1)]
    generation: u64,

    /// A backup or snapshot ticket that is not renewed for so long is lost
    #[arg(long, value_name = "DURATION", default_value = "1min", value_parser = duration)]
    renew_within: Duration,

    /// How many nodes may have the volume at once [default: as it was used last, else rwo]
    #[arg(long, value_enum)]
    access: Option<AccessMode>,

    #[command(flatten)]
    form: Form,
}

/// How many nodes may have a volume.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum AccessMode {
    /// One
    Rwo,
    /// Two, as a block device, while a VM moves
    RwxBlock,
}

impl AccessMode {
    fn name(self) -> &'static str {
        match self {
            Self::Rwo => "RWO",
            Self::RwxBlock => "RWX block",
        }
    }
}

impl Create {
    fn request(self) -> proto::PutTicketRequest {
        let Self { volume, kind, id, node, holder, generation, renew_within, access, form: _ } = self;
        proto::PutTicketRequest {
            id: id.unwrap_or_else(|| format!("{kind}.{volume}")),
            volume_id: volume,
            kind,
            node_id: node.unwrap_or_default(),
            holder,
            generation,
            renew_ms: u64::try_from(renew_within.as_millis()).unwrap_or(u64::MAX),
            access: access.map(AccessMode::name).unwrap_or_default().to_owned(),
        }
    }
}

impl TicketCommand {
    pub(crate) fn wants_json(&self) -> bool {
        match self {
            Self::Create(create) => create.form.json,
            Self::Run(_) => false,
            Self::Ls { form, .. }
            | Self::Show { form, .. }
            | Self::Renew { form, .. }
            | Self::Delete { form, .. } => form.json,
        }
    }

    pub(crate) async fn run(
        self,
        controller: &mut Controller,
        out: &mut Output<'_, '_>,
    ) -> Result<(), AskError> {
        let ticket = match self {
            Self::Ls { volume, .. } => {
                let found = controller.tickets(volume.unwrap_or_default()).await?;
                return out.show(|| json::tickets(&found), |width| tickets::table(&found, width));
            }
            Self::Show { ticket: Named { ticket }, .. } => find(controller, ticket).await?,
            Self::Create(create) => controller.put_ticket(create.request()).await?,
            // Done before there was a place to show it.
            Self::Run(_) => return Ok(()),
            Self::Renew { ticket: Named { ticket }, .. } => controller.renew_ticket(ticket).await?,
            Self::Delete { ticket: Named { ticket }, .. } => {
                controller.delete_ticket(ticket.clone()).await?;
                return out.show(
                    || serde_json::json!({"ended": ticket}),
                    |width| {
                        let mut page = Page::new(width);
                        page.line(0, format!("Ticket {ticket} has ended."));
                        page.text()
                    },
                );
            }
        };
        out.show(|| json::ticket(&ticket), |width| tickets::ticket(&ticket, width))
    }
}

/// The ticket of that id or name.
async fn find(controller: &mut Controller, name: String) -> Result<proto::TicketInfo, AskError> {
    if !name.contains('/') {
        return controller.ticket(name).await;
    }
    let found = controller.tickets(String::new()).await?;
    found.into_iter().find(|ticket| tickets::name(ticket) == name).ok_or(AskError::NoTicket(name))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: TicketCommand,
    }

    fn asked(words: &str) -> proto::PutTicketRequest {
        let line = Line::try_parse_from(["ticket"].into_iter().chain(words.split(' '))).unwrap();
        match line.command {
            TicketCommand::Create(create) => create.request(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_said_of_a_ticket_has_its_usual_value() {
        let expected = proto::PutTicketRequest {
            id: "backup.pvc-1".into(),
            volume_id: "pvc-1".into(),
            kind: "backup".into(),
            holder: "cleatctl".into(),
            generation: 1,
            renew_ms: 60_000,
            ..Default::default()
        };
        assert_eq!(asked("create pvc-1 --type backup"), expected);
    }

    #[test]
    fn what_is_said_of_a_ticket_is_what_is_asked_for() {
        let expected = proto::PutTicketRequest {
            id: "t".into(),
            volume_id: "pvc-1".into(),
            kind: "api".into(),
            node_id: "node-a".into(),
            holder: "me".into(),
            generation: 3,
            renew_ms: 20_000,
            access: "RWX block".into(),
        };
        let words = "create pvc-1 --type api --id t --node node-a --holder me --generation 3 --renew-within 20s \
                     --access rwx-block";
        assert_eq!(asked(words), expected);
    }

    #[test]
    fn a_workloads_own_ticket_is_none_that_can_be_asked_for() {
        assert!(Line::try_parse_from(["ticket", "create", "pvc-1", "--type", "csi"]).is_err());
    }
}
