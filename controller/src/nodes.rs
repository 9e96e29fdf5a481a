//! Nodes that the cluster says are out of service, handed to the core as long as they are marked so.
//!
//! In comes the list of Nodes, again and again; out go [`Event::OutOfService`]. What holds: what a mark is worth the core
//! decides; a Node that is not ready, or deleted, is no event at all; a list that cannot be had ends nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use cleat_core::{Event, NodeId};
use cleat_kubernetes::api::ApiServer;
use cleat_kubernetes::nodes::{self, Marked};
use cleat_runtime::hush::Hush;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, EngineEnded};

/// Between two looks. A mark is set by a person, or minutes after a node fell silent.
const EVERY: Duration = Duration::from_secs(5);
/// What is kept as the reason with whatever rests on the mark.
const REASON: &str = "it is marked as out of service";

/// Looks until the engine ends.
pub(crate) async fn watch(server: ApiServer, engine: Engine, stop: CancellationToken) {
    let hush = Hush::default();
    let mut known = BTreeSet::new();
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        let marked = match nodes::out_of_service(&server).await {
            Ok(marked) => marked,
            Err(error) => {
                hush.warn(|skipped| {
                    tracing::warn!(
                        skipped,
                        "cannot list Nodes, so out-of-service taints are not seen: {error}"
                    );
                });
                continue;
            }
        };
        let mut now = BTreeSet::new();
        for Marked { node, taint } in marked {
            let Ok(node) = NodeId::new(node) else { continue };
            if !known.contains(&node) {
                tracing::warn!(%node, taint, "the cluster says that the node is out of service: it is fenced");
            }
            if hand_over(&engine, node.clone(), taint).await.is_err() {
                return;
            }
            now.insert(node);
        }
        known = now;
    }
}

async fn hand_over(engine: &Engine, node: NodeId, taint: String) -> Result<(), EngineEnded> {
    let (by, reason) = (format!("the taint {taint}"), REASON.to_owned());
    engine.submit(Event::OutOfService { node, by, reason }).await
}
