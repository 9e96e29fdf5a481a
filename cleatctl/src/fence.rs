//! What a person asks for: a node fenced, or declared gone.
//!
//! Comes in: a node and a reason. Goes out: the controller's answer. The evidence keeps the reason and who
//! gave it: the name in the certificate with which the controller was called, never a name that was typed.

use std::time::Duration;

use cleat_proto::cleat::v1 as proto;
use cleat_runtime::options::duration;

use crate::client::{AskError, Controller};
use crate::output::Output;
use crate::page::Page;
use crate::{explain, json};

/// Why a person wants it. Who wants it is what the certificate says.
#[derive(clap::Args, Debug)]
pub(crate) struct Reason {
    /// Why; kept and shown with the evidence
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// What to fence from what.
#[derive(clap::Args, Debug)]
pub(crate) struct Fence {
    /// Id of the volume
    volume: String,

    /// Node that must no longer write to it
    node: String,

    #[command(flatten)]
    reason: Reason,

    /// Time limit for the proof
    #[arg(long, value_name = "DURATION", default_value = "3min", value_parser = duration)]
    wait: Duration,
}

/// Commands about one node.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum NodeCommand {
    /// Declare that a node is off and stays off. Whatever waits for a proof that it cannot write goes on without one. If
    /// the node runs after all, it can destroy what another node writes
    DeclareGone {
        /// Node that is gone
        node: String,

        #[command(flatten)]
        reason: Reason,
    },
}

pub(crate) async fn fence(
    controller: &mut Controller,
    out: &mut Output<'_, '_>,
    fence: Fence,
) -> Result<(), AskError> {
    let Fence { volume, node, reason: Reason { reason }, wait } = fence;
    let request = proto::FenceRequest { volume_id: volume.clone(), node_id: node.clone(), reason };
    let after = controller.fence(request, wait).await?;
    out.show(
        || serde_json::json!({"fenced": true, "volume": after.as_ref().map(json::volume)}),
        |width| {
            let mut page = Page::new(width);
            page.line(0, format!("Proven: node {node} cannot write to volume {volume}."));
            if let Some(after) = &after {
                page.blank();
                return page.text() + &explain::volume(after, width);
            }
            page.text()
        },
    )
}

pub(crate) async fn node(
    controller: &mut Controller,
    out: &mut Output<'_, '_>,
    command: NodeCommand,
) -> Result<(), AskError> {
    match command {
        NodeCommand::DeclareGone { node, reason: Reason { reason } } => {
            let request = proto::DeclareGoneRequest { node_id: node.clone(), reason };
            controller.declare_gone(request).await?;
            out.show(
                || serde_json::json!({"declared_gone": node}),
                |width| {
                    let mut page = Page::new(width);
                    page.line(0, format!("Node {node} is declared gone. It stays quarantined until its agent shows that it holds nothing."));
                    page.text()
                },
            )
        }
    }
}
