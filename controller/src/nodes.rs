//! Nodes that the cluster says are out of service, handed to the core as long as they are marked so.
//!
//! In come the Nodes, watched; out go [`Event::OutOfService`], again and again, each after the API server itself has said that
//! the Node is marked now. What holds: what a mark is worth the core decides; a Node that is not ready, or deleted, is no event
//! at all; what cannot be asked ends nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use cleat_core::{Event, NodeId};
use cleat_kubernetes::api::ApiServer;
use cleat_kubernetes::nodes::Nodes;
use cleat_runtime::hush::Hush;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, EngineEnded};

/// Between two looks at Nodes that stay marked. One that is marked now is looked at as soon as the watch says so.
const EVERY: Duration = Duration::from_secs(5);
/// What is kept as the reason with whatever rests on the mark.
const REASON: &str = "it is marked as out of service";

/// Looks until the engine ends.
pub(crate) async fn watch(server: ApiServer, engine: Engine, stop: CancellationToken) {
    let (nodes, hush) = (Nodes::watch(server), Hush::default());
    let mut changes = nodes.changes();
    let mut known = BTreeSet::new();
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            // Its sender is ours.
            _ = changes.changed() => {}
            _ = every.tick() => {}
        }
        let marked = nodes.marked().unwrap_or_default().into_iter().filter_map(|name| NodeId::new(name).ok());
        let nodes = &nodes;
        let ask = |node: NodeId| async move {
            let mark = nodes.mark_now(node.as_str()).await;
            (node, mark)
        };
        // Side by side: one whose answer takes long is waited for by no other.
        let mut asked = FuturesUnordered::from_iter(marked.map(ask));
        let mut now = BTreeSet::new();
        while let Some((node, mark)) = asked.next().await {
            let taint = match mark {
                Ok(Some(taint)) => taint,
                // The watch is behind.
                Ok(None) => continue,
                Err(error) => {
                    hush.warn(|skipped| {
                        tracing::warn!(
                            %node, skipped,
                            "cannot read the Node, so nobody knows whether it is out of service: {error}"
                        );
                    });
                    if known.contains(&node) {
                        now.insert(node);
                    }
                    continue;
                }
            };
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
