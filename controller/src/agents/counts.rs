//! What one session may say of writes: what it was asked for, and no more often than that is worth.
//!
//! In come what is sent and what is heard; out goes whether the core is to hear of it. What always holds: a report is about a
//! volume that this session was asked about, under the operation that it was asked with last; of each volume four a second
//! are taken, and a few at once. It is for people: what is left out is lost.

use std::collections::HashMap;

use cleat_core::{OperationId, VolumeId};
use cleat_proto::cleat::v1 as proto;
use tokio::time::Instant;

/// Of one volume, in a second.
const A_SECOND: f64 = 4.0;
/// Of one volume, at once: the first look, the first write, the end, and who has opened it.
const BURST: f64 = 8.0;

/// What a session was asked to count.
#[derive(Debug, Default)]
pub(super) struct CountsAsked {
    volumes: HashMap<VolumeId, Asked>,
}

#[derive(Debug)]
struct Asked {
    operation: String,
    left: f64,
    at: Instant,
}

/// What a report is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Worth {
    /// The core is to hear of it.
    Taken,
    /// One more than is taken, or about what was asked before: it says nothing.
    Nothing,
    /// Nobody has asked for it.
    Unasked,
}

impl CountsAsked {
    /// A directive goes out.
    pub(super) fn sent(&mut self, message: &proto::ToAgent) {
        let Some(proto::to_agent::Kind::Count(count)) = &message.kind else { return };
        if let Ok(volume) = VolumeId::new(count.volume_id.as_str()) {
            let operation = count.operation_id.clone();
            self.volumes.insert(volume, Asked { operation, left: BURST, at: Instant::now() });
        }
    }

    /// A report has come in.
    pub(super) fn heard(&mut self, volume: &VolumeId, operation: OperationId) -> Worth {
        let Some(asked) = self.volumes.get_mut(volume) else { return Worth::Unasked };
        // What was on its way when the next question was sent.
        if asked.operation != operation.to_string() {
            return Worth::Nothing;
        }
        let now = Instant::now();
        let gained = now.duration_since(asked.at).as_secs_f64() * A_SECOND;
        (asked.left, asked.at) = ((asked.left + gained).min(BURST), now);
        if asked.left < 1.0 {
            return Worth::Nothing;
        }
        asked.left -= 1.0;
        Worth::Taken
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn count(volume: &str, number: u64) -> proto::ToAgent {
        let operation_id = OperationId { term: 1, number }.to_string();
        let count = proto::Count { operation_id, volume_id: volume.into(), ..Default::default() };
        proto::ToAgent { kind: Some(proto::to_agent::Kind::Count(count)), about: None }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_asked_last_is_taken_at_four_a_second() {
        let (v, w) = (VolumeId::new("v").unwrap(), VolumeId::new("w").unwrap());
        let operation = |number| OperationId { term: 1, number };
        let mut asked = CountsAsked::default();
        assert_eq!(asked.heard(&v, operation(7)), Worth::Unasked);
        asked.sent(&count("v", 7));
        assert_eq!(asked.heard(&w, operation(7)), Worth::Unasked);
        let taken = |asked: &mut CountsAsked, number| {
            (0..100).filter(|_| asked.heard(&v, operation(number)) == Worth::Taken).count()
        };
        assert_eq!(taken(&mut asked, 7), 8);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(taken(&mut asked, 7), 4);
        asked.sent(&count("v", 8));
        assert_eq!((taken(&mut asked, 7), taken(&mut asked, 8)), (0, 8));
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(taken(&mut asked, 8), 8);
    }
}
