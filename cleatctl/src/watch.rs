//! What happens, as it happens.

use cleat_proto::cleat::v1 as wire;
use wire::watch_event::Kind;

use crate::client::{AskError, Controller};
use crate::json;
use crate::output::Output;
use crate::table::time;

/// Shows events until the controller ends the stream, or somebody interrupts us.
pub(crate) async fn run(controller: &mut Controller, out: &mut Output<'_, '_>) -> Result<(), AskError> {
    let mut events = controller.watch().await?;
    loop {
        let event = tokio::select! {
            event = controller.next(&mut events) => event?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let Some(kind) = event.map(|event| event.kind) else { return Ok(()) };
        if let Some(kind) = kind {
            out.event(|| json::event(&kind), || line(&kind))?;
        }
    }
}

/// For people: what happened. The states behind it are what `volumes` and `nodes` show.
fn line(kind: &Kind) -> Option<String> {
    match kind {
        Kind::Notice(notice) => {
            let wire::Notice { at_unix_ms, reason, volume_id, node_id, message } = notice;
            let node = if node_id.is_empty() { "-" } else { node_id };
            Some(format!("{}  {reason:<18}  {volume_id}  {node}  {message}", time(*at_unix_ms)))
        }
        Kind::Synced(_) => Some("(everything up to now has been read; what follows is new)".to_owned()),
        Kind::VolumeGone(volume) => Some(format!("volume {volume} is no longer tracked")),
        Kind::Volume(_) | Kind::Node(_) | Kind::Migration(_) | Kind::Ticket(_) | Kind::TicketGone(_) => None,
    }
}
