//! The outbox: results of directives, kept until the controller must have read them.
//!
//! Comes in: results, whenever an operation has one. Goes out: to the current session, in order.
//!
//! The protocol has no acknowledgement. A result counts as read if the controller still sends on the same
//! stream a whole silence deadline later: a controller that had received nothing for so long would have
//! dropped the stream. Everything younger is sent again on the next stream. The controller recognises results
//! by their operation id, so twice does no harm.
//!
//! Always holds: at most one result per operation (a later one replaces a Pending), and a limited number in
//! all.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::decode::RefusedDirective;
use crate::volume::outcome::{DirectiveResult, Results};

/// Most results that are kept; beyond it the oldest goes. The next session's inventory still shows the true
/// state of its volume.
const CAPACITY: usize = 4096;

/// Results that wait to be delivered.
#[derive(Debug, Default)]
pub struct Outbox {
    items: Mutex<VecDeque<Item>>,
    arrived: Notify,
}

/// An answer that has to be delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// The result of a directive.
    Result(DirectiveResult),
    /// The answer to a directive that could not be read.
    Refusal(RefusedDirective),
}

impl Outgoing {
    /// The id of the operation that it answers.
    pub fn operation(&self) -> String {
        match self {
            Self::Result(result) => result.operation.to_string(),
            Self::Refusal(refusal) => refusal.operation.clone(),
        }
    }

    /// The id of the volume that it is about.
    pub fn volume(&self) -> &str {
        match self {
            Self::Result(result) => result.volume.as_str(),
            Self::Refusal(refusal) => &refusal.volume,
        }
    }
}

impl Results for Outbox {
    fn deliver(&self, result: DirectiveResult) {
        self.push(Outgoing::Result(result));
    }
}

#[derive(Debug)]
struct Item {
    operation: String,
    result: Outgoing,
    /// When it was put on the current stream; `None` if it was not yet.
    sent: Option<Instant>,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Item>> {
        // Every operation on the queue is whole before anything could panic.
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a result; it replaces an earlier one of the same operation.
    pub fn push(&self, result: Outgoing) {
        let operation = result.operation();
        let mut items = self.lock();
        items.retain(|item| item.operation != operation);
        if items.len() >= CAPACITY
            && let Some(oldest) = items.pop_front()
        {
            tracing::error!(
                operation = oldest.operation,
                volume = oldest.result.volume(),
                "more than {CAPACITY} results could not be delivered: dropping the oldest"
            );
        }
        items.push_back(Item { operation, result, sent: None });
        drop(items);
        self.arrived.notify_one();
    }

    /// A new stream begins: whatever was put on an earlier one, and may not have been read, is sent again.
    pub fn rewind(&self) {
        for item in self.lock().iter_mut() {
            item.sent = None;
        }
        self.arrived.notify_one();
    }

    /// Waits for the next result that is not on the current stream yet, and marks it as sent. Cancel safe: it
    /// marks a result only when it returns it.
    pub async fn next(&self) -> Outgoing {
        loop {
            let arrived = self.arrived.notified();
            if let Some(item) = self.lock().iter_mut().find(|item| item.sent.is_none()) {
                item.sent = Some(Instant::now());
                return item.result.clone();
            }
            arrived.await;
        }
    }

    /// The controller sent something: results that have been on the stream for longer than `silence_deadline`
    /// were read.
    pub fn heard(&self, silence_deadline: Duration) {
        self.lock().retain(|item| item.sent.is_none_or(|sent| sent.elapsed() <= silence_deadline));
    }

    /// How many results are waiting or may not have been read.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::clause;
    use crate::volume::outcome::DirectiveFailure;

    const SILENCE: Duration = Duration::from_secs(10);

    fn result(operation: &str, volume: &str) -> Outgoing {
        let failure =
            DirectiveFailure { unready: clause::failed(clause::REQUEST, "no"), nothing_left: false };
        Outgoing::Refusal(RefusedDirective {
            operation: operation.into(),
            volume: volume.into(),
            epoch: None,
            failure,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_result_is_sent_again_on_the_next_stream_until_it_must_have_been_read() {
        let outbox = Outbox::default();
        outbox.push(result("op-1", "a"));
        assert_eq!(outbox.next().await.operation(), "op-1");
        outbox.heard(SILENCE);
        outbox.rewind();
        assert_eq!(outbox.next().await.operation(), "op-1");
        tokio::time::advance(SILENCE * 2).await;
        outbox.heard(SILENCE);
        assert!(outbox.is_empty());
    }

    #[tokio::test]
    async fn the_final_result_replaces_the_pending_one() {
        let outbox = Outbox::default();
        outbox.push(result("op-1", "pending"));
        outbox.push(result("op-2", "other"));
        outbox.push(result("op-1", "final"));
        assert_eq!(outbox.len(), 2);
        assert_eq!(outbox.next().await.volume(), "other");
        assert_eq!(outbox.next().await.volume(), "final");
    }

    #[tokio::test]
    async fn waiting_ends_when_a_result_arrives() {
        let outbox = std::sync::Arc::new(Outbox::default());
        let waiting = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.next().await }
        });
        tokio::task::yield_now().await;
        outbox.push(result("op-3", "c"));
        assert_eq!(waiting.await.expect("no panic").operation(), "op-3");
    }
}
