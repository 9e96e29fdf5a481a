//! What is done on a person's word: to fence a node, to declare one gone.
//!
//! In come a node and a reason; out goes the controller's answer. The reason is kept with the evidence that rests on it,
//! and so is who gave it: the name in the certificate with which the controller was called, never one that is typed.

use std::time::Duration;

use cleat_proto::cleat::v1 as wire;

use crate::client::{AskError, Controller};
use crate::output::Output;
use crate::{explain, json};

/// Why it is wanted. Who wants it is what the certificate says.
#[derive(clap::Args, Debug)]
pub(crate) struct Word {
    /// Why: kept with the evidence, and shown wherever that is
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// What to fence from what.
#[derive(clap::Args, Debug)]
pub(crate) struct Fence {
    /// The volume's id
    volume: String,

    /// The node that must not write to it any more
    node: String,

    #[command(flatten)]
    word: Word,

    /// How long to wait for the proof
    #[arg(long, value_name = "DURATION", default_value = "3m", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// Things about one node.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum NodeCommand {
    /// Says that a node is gone for good, or off and kept off: whatever waits for a proof that it cannot write goes on
    /// without one. If it is running after all, it can destroy what another node writes
    DeclareGone {
        /// The node
        node: String,

        #[command(flatten)]
        word: Word,
    },
}

pub(crate) async fn fence(
    controller: &mut Controller,
    out: &mut Output<'_, '_>,
    fence: Fence,
) -> Result<(), AskError> {
    let Fence { volume, node, word, wait } = fence;
    let request =
        wire::FenceRequest { volume_id: volume.clone(), node_id: node.clone(), reason: word.reason };
    let after = controller.fence(request, wait).await?;
    out.show(
        || serde_json::json!({"fenced": true, "volume": after.as_ref().map(json::volume)}),
        || {
            let after = after.as_ref().map(|volume| format!("\n\n{}", explain::volume(volume)));
            format!(
                "It is proven that node {node} cannot write to volume {volume}.{}",
                after.unwrap_or_default()
            )
        },
    )
}

pub(crate) async fn node(
    controller: &mut Controller,
    out: &mut Output<'_, '_>,
    command: NodeCommand,
) -> Result<(), AskError> {
    match command {
        NodeCommand::DeclareGone { node, word } => {
            let request = wire::DeclareGoneRequest { node_id: node.clone(), reason: word.reason };
            controller.declare_gone(request).await?;
            out.show(
                || serde_json::json!({"declared_gone": node}),
                || format!("Recorded: node {node} is gone. It is quarantined until its own agent shows otherwise."),
            )
        }
    }
}
