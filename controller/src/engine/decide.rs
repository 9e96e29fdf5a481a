//! The task that owns the core: one event in, one step out, in order. No I/O and no decision of its own.

use std::time::{Duration, Instant};

use cleat_core::{Core, Effect, Event, StoredNode};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::input::{Hello, Input, Shown};
use super::records::{Committed, NodeMark};
use super::{Decision, WatchedChange};
use crate::clock::Clock;
use crate::metrics;

/// The core wants to hear of the time at least each second.
const TICK: Duration = Duration::from_millis(250);

pub(super) struct Decider {
    pub(super) core: Core,
    pub(super) committed: Committed,
    pub(super) clock: Clock,
    pub(super) events: mpsc::Receiver<Input>,
    pub(super) steps: mpsc::Sender<Decision>,
}

/// Runs until `stop` or until nobody takes the steps any more (the effects' task says why).
pub(super) async fn run(mut decider: Decider, first: Vec<Effect>, stop: CancellationToken) {
    decider.committed.decided(&first);
    let first =
        Decision { now: decider.clock.now(), waiter: None, effects: first, changed: None, view: None };
    if decider.steps.send(first).await.is_err() {
        return;
    }
    let mut turns = Turns::new();
    loop {
        let input = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            input = turns.next(&mut decider.events) => match input {
                Some(input) => input,
                None => return,
            },
        };
        let Some(step) = decider.take(input) else { continue };
        if decider.steps.send(step).await.is_err() {
            return;
        }
    }
}

/// Whose turn it is, the time's or the events'. Neither keeps the other waiting for more than one input: a flood of events
/// does not stop the time, and a core that needs longer for a tick than ticks are apart still hears everybody.
struct Turns {
    ticks: Interval,
    ticked: bool,
}

impl Turns {
    fn new() -> Self {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ticks, ticked: false }
    }

    async fn next(&mut self, events: &mut mpsc::Receiver<Input>) -> Option<Input> {
        let tick = if self.ticked {
            tokio::select! {
                biased;
                input = events.recv() => Err(input),
                _ = self.ticks.tick() => Ok(()),
            }
        } else {
            tokio::select! {
                biased;
                _ = self.ticks.tick() => Ok(()),
                input = events.recv() => Err(input),
            }
        };
        self.ticked = tick.is_ok();
        match tick {
            Ok(()) => Some(Input::Event { event: Box::new(Event::Tick), waiter: None }),
            Err(input) => input,
        }
    }
}

impl Decider {
    fn take(&mut self, input: Input) -> Option<Decision> {
        let now = self.clock.now();
        let (event, waiter) = match input {
            Input::View { of, view } => {
                let behind = match &of {
                    Shown::All => self.committed.behind(),
                    Shown::Durable(volume) => self.committed.behind_of(volume),
                    Shown::Decided(_) | Shown::Nodes => Vec::new(),
                };
                let deliver = self.core.with_records(behind, |core| view(core, now));
                let once_durable = match of {
                    Shown::Decided(volume) => Some(volume),
                    Shown::All | Shown::Durable(_) | Shown::Nodes => None,
                };
                let view = Some((once_durable, deliver));
                return Some(Decision { now, waiter: None, effects: Vec::new(), changed: None, view });
            }
            Input::Event { event, waiter } => (*event, waiter),
            Input::Hello { hello, mark } => (self.up(*hello, mark), None),
        };
        let changed = change(&event);
        let began = Instant::now();
        let effects = self.core.step(now, event);
        metrics::core_step(began.elapsed());
        self.committed.decided(&effects);
        if effects.is_empty() && waiter.is_none() && changed.is_none() {
            return None;
        }
        Some(Decision { now, waiter, effects, changed, view: None })
    }
}

impl Decider {
    /// Of what was read of the node's record the core hears where it is not older than what was decided here.
    fn up(&self, hello: Hello, mark: Option<NodeMark>) -> Event {
        let Hello { node, session, identity, max_volumes, mut seen } = hello;
        let by_others = |read: &StoredNode| mark.is_some_and(|m| self.committed.is_by_others(&node, m, read));
        seen.stored = seen.stored.filter(by_others);
        Event::SessionUp { node, session, identity, max_volumes, seen }
    }
}

/// What an event changes beyond what its effects say.
fn change(event: &Event) -> Option<WatchedChange> {
    match event {
        Event::SessionUp { node, .. }
        | Event::Inventory { node, .. }
        | Event::SessionLost { node, .. }
        | Event::OutOfService { node, .. }
        | Event::DeclareGone { node, .. } => Some(WatchedChange::Node(node.clone())),
        Event::Delta { observed, .. } => Some(WatchedChange::Volume(observed.volume.clone())),
        Event::AgentDone { volume, .. } => Some(WatchedChange::Volume(volume.clone())),
        Event::Publish { .. }
        | Event::Unpublish { .. }
        | Event::DeleteBegins { .. }
        | Event::DeleteEnded { .. }
        | Event::GrantsRefused { .. }
        | Event::RdsDone { .. }
        | Event::Fence { .. }
        | Event::RdsListed { .. }
        | Event::RdsMade { .. }
        | Event::RdsNotListed { .. }
        | Event::DesiredUnclear { .. }
        | Event::MigrationSeen { .. }
        | Event::Counted { .. }
        | Event::TicketWanted { .. }
        | Event::TicketRenewed { .. }
        | Event::TicketGone { .. }
        | Event::Tick => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn is_tick(input: &Input) -> bool {
        matches!(input, Input::Event { event, .. } if matches!(**event, Event::Tick))
    }

    /// Takes so many inputs, each of which needs `each`, with events always waiting; how many of them were ticks.
    async fn ticks_among(inputs: usize, each: Duration) -> usize {
        let (send, mut events) = mpsc::channel(inputs);
        for _ in 0..inputs {
            assert!(
                send.try_send(Input::View { of: Shown::All, view: Box::new(|_, _| Box::new(|| {})) }).is_ok()
            );
        }
        let mut turns = Turns::new();
        let mut ticks = 0;
        for _ in 0..inputs {
            ticks += usize::from(is_tick(&turns.next(&mut events).await.unwrap()));
            tokio::time::advance(each).await;
        }
        ticks
    }

    #[test]
    fn what_was_read_without_a_mark_or_before_a_decision_is_not_heard() {
        let committed = Committed::default();
        let (_, events) = mpsc::channel(1);
        let (steps, _) = mpsc::channel(1);
        let (core, _) =
            Core::rebuild(cleat_core::Config::default(), 1, Vec::new(), cleat_core::UnixMillis(0));
        let decider = Decider { core, committed: committed.clone(), clock: Clock::start(), events, steps };
        let record: cleat_core::NodeRecord = serde_json::from_value(serde_json::json!({
            "node": "a", "identity": {
                "hostNqn": "nqn.2014-08.org.example:a", "hostId": "00000000-0000-0000-0000-000000000001",
                "storageAddresses": [], "bootId": "b",
            },
        }))
        .unwrap();
        let hears = |mark| {
            let stored = Some(StoredNode::Record(Box::new(record.clone())));
            let seen = cleat_core::NodeSeen { uid: None, stored };
            let session = cleat_core::SessionId::new("s").unwrap();
            let (node, identity) = (record.node.clone(), record.identity.clone());
            let hello = Hello { node, session, identity, max_volumes: None, seen };
            matches!(decider.up(hello, mark), Event::SessionUp { seen, .. } if seen.stored.is_some())
        };
        let mark = committed.mark(&record.node);
        assert!(hears(mark) && !hears(None));
        committed.decided(&[Effect::ForgetNode(record.node.clone())]);
        assert!(!hears(mark));
    }

    #[tokio::test(start_paused = true)]
    async fn events_are_taken_however_long_a_tick_needs() {
        assert_eq!(ticks_among(100, 4 * TICK).await, 50);
    }

    #[tokio::test(start_paused = true)]
    async fn ticks_come_however_many_events_wait() {
        assert_eq!(ticks_among(100, TICK / 10).await, 10);
    }
}
