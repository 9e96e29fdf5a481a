//! What keeps `cleatctl ticket run` from running its command, and what to do about it.

use std::time::Duration;

use cleat_host::ticket_device::TicketDeviceError;
use cleat_kubernetes::api::{ApiError, NoClient};
use cleat_kubernetes::own_tickets::NotMade;

/// Why the command did not run, or what became of it is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TicketRunError {
    #[error("cannot read this machine's boot id")]
    BootId(#[source] std::io::Error),
    #[error(
        "cannot tell which node this machine is: no agent has its boot id {0}; run this on a node whose agent is connected"
    )]
    NoNode(String),
    #[error("cannot tell which node this machine is: {} have its boot id; name one with --node", .0.join(", "))]
    SeveralNodes(Vec<String>),
    #[error("cannot run this for node {node}: that is another machine, with boot id {theirs}; run it there")]
    OtherMachine { node: String, theirs: String },
    #[error(
        "cannot find the volume's device: the agent of node {0} is not connected; run this again when it is"
    )]
    NoPrefix(String),
    #[error("cannot find the volume's device")]
    Name(#[source] cleat_host::InvalidName),
    #[error("cannot read volume {volume} here: it is attached to node {node}; run this there")]
    Elsewhere { volume: String, node: String },
    #[error("cannot wait for volume {volume} any longer than {}: {why}; allow more with --wait", humantime::format_duration(*.wait))]
    NotInTime { volume: String, wait: Duration, why: String },
    #[error(
        "cannot find the volume's device: the controller does not know what volume {0} is yet; run this again"
    )]
    NoIdentity(String),
    #[error("cannot make a device for the command")]
    Device(#[from] TicketDeviceError),
    #[error("cannot make the ticket as an object (--in)")]
    NotMade(#[source] NotMade),
    #[error("cannot renew the ticket as an object (--in)")]
    Object(#[source] ApiError),
    #[error(transparent)]
    NoClient(#[from] NoClient),
    #[error("cannot hear signals")]
    Signals(#[source] std::io::Error),
    #[error("cannot wait for the command")]
    Wait(#[source] std::io::Error),
}
