//! What happens, as it happens.

use cleat_proto::cleat::v1::Notice;
use cleat_proto::cleat::v1::watch_event::Kind;
use cleat_runtime::date::rfc3339;

use crate::client::{AskError, Controller};
use crate::json;
use crate::output::Output;
use crate::page::harmless;

/// Shows events until the controller ends the stream, or an interrupt does.
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

/// What happened, for a person. `volumes` and `nodes` show the states behind it.
fn line(kind: &Kind) -> Option<String> {
    let text = match kind {
        Kind::Notice(Notice { at_unix_ms, reason, volume_id, node_id, message }) => {
            let [volume, node] = [volume_id, node_id].map(|id| if id.is_empty() { "-" } else { id });
            format!("{}  {reason:<18}  {volume}  {node}  {message}", rfc3339(*at_unix_ms))
        }
        Kind::Synced(true) => "(up to date; new events follow)".to_owned(),
        Kind::Synced(false) => "(fell behind; some events are missing)".to_owned(),
        Kind::VolumeGone(volume) => format!("volume {volume} is no longer tracked"),
        Kind::Volume(_) | Kind::Node(_) | Kind::Migration(_) | Kind::Ticket(_) | Kind::TicketGone(_) => {
            return None;
        }
    };
    Some(harmless(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_one_line_with_dashes_for_what_it_is_not_about() {
        let notice = Notice {
            at_unix_ms: 951_782_400_000,
            reason: "node_silent".into(),
            node_id: "worker-1".into(),
            message: "no word\nfor 20 s".into(),
            ..Default::default()
        };
        let expected = "2000-02-29T00:00:00Z  node_silent         -  worker-1  no word\\nfor 20 s";
        assert_eq!(line(&Kind::Notice(notice)).as_deref(), Some(expected));
        let gone = line(&Kind::VolumeGone("vm-1".into()));
        assert_eq!(gone.as_deref(), Some("volume vm-1 is no longer tracked"));
        assert_eq!(line(&Kind::Synced(true)).as_deref(), Some("(up to date; new events follow)"));
        let behind = line(&Kind::Synced(false));
        assert_eq!(behind.as_deref(), Some("(fell behind; some events are missing)"));
    }
}
