//! What the operators' Watch has said, with the host's time of each word.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use cleat_proto::cleat::v1::WatchEvent;
use cleat_proto::cleat::v1::{Notice, watch_event::Kind};
use tokio::task::JoinHandle;
use tonic::Streaming;

use super::{Look, NotInTime, START, wait_for};

/// An event and when it came.
#[derive(Debug, Clone)]
pub struct Heard {
    /// On the host's monotonic clock.
    pub at: Instant,
    /// What came.
    pub kind: Kind,
}

/// A watch on the controller. It ends with the stream, for example when the controller is killed; what was heard
/// stays. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    heard: Arc<Mutex<Vec<Heard>>>,
    task: JoinHandle<()>,
}

impl Watch {
    pub(super) async fn begin(mut stream: Streaming<WatchEvent>) -> anyhow::Result<Self> {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&heard);
        let (synced, is_synced) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let mut synced = Some(synced);
            while let Ok(Some(WatchEvent { kind: Some(kind) })) = stream.message().await {
                if matches!(kind, Kind::Synced(true))
                    && let Some(synced) = synced.take()
                {
                    // Nobody waits any more: then nobody wants to know.
                    let _ = synced.send(());
                }
                let event = Heard { at: Instant::now(), kind };
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            }
        });
        let watch = Self { heard, task };
        let first =
            tokio::time::timeout(START, is_synced).await.context("the watch's first state does not come")?;
        first.context("the watch ended before its first state had come")?;
        Ok(watch)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything heard so far.
    #[must_use]
    pub fn heard(&self) -> Vec<Heard> {
        self.lock().clone()
    }

    /// How much was heard so far: a place to look for notices from.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.lock().len()
    }

    /// The notices from `mark` on.
    #[must_use]
    pub fn notices(&self, mark: usize) -> Vec<(Instant, Notice)> {
        let heard = self.lock();
        let from_mark = heard.iter().skip(mark);
        from_mark
            .filter_map(|event| match &event.kind {
                Kind::Notice(notice) => Some((event.at, notice.clone())),
                _ => None,
            })
            .collect()
    }

    /// Waits for a notice of this reason (such as `volume_degraded`) about this volume, from `mark` on.
    ///
    /// # Errors
    /// If none comes in time; the message names those that came.
    pub async fn notice(
        &self,
        mark: usize,
        reason: &str,
        volume_id: &str,
        limit: Duration,
    ) -> Result<(Instant, Notice), NotInTime> {
        wait_for(format!("a notice {reason} about {volume_id}"), limit, async || {
            let notices = self.notices(mark);
            let found = notices.iter().find(|(_, n)| n.reason == reason && n.volume_id == volume_id);
            let others: Vec<&str> = notices.iter().map(|(_, n)| n.reason.as_str()).collect();
            let instead = if others.is_empty() { "no notice".to_owned() } else { others.join(", ") };
            Ok(Look::some(found.cloned(), instead))
        })
        .await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
