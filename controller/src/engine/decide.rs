//! The task that owns the core: one event in, one step out, in order. No I/O and no decision of its own.

use std::time::{Duration, Instant};

use cleat_core::{Core, Effect, Event};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::handle::Input;
use super::{Change, Step};
use crate::clock::Clock;
use crate::metrics;

/// The core wants to hear of the time at least each second.
const TICK: Duration = Duration::from_millis(250);

pub(super) struct Decider {
    pub(super) core: Core,
    pub(super) clock: Clock,
    pub(super) events: mpsc::Receiver<Input>,
    pub(super) steps: mpsc::Sender<Step>,
}

/// Runs until `stop` or until nobody takes the steps any more (the effects' task tells why).
pub(super) async fn run(mut decider: Decider, first: Vec<Effect>, stop: CancellationToken) {
    let first = Step { now: decider.clock.now(), waiter: None, effects: first, changed: None, view: None };
    if decider.steps.send(first).await.is_err() {
        return;
    }
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // In this order: a flood of events must not keep the core from the time.
        let input = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => Input::Event { event: Box::new(Event::Tick), waiter: None },
            input = decider.events.recv() => match input {
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

impl Decider {
    fn take(&mut self, input: Input) -> Option<Step> {
        let now = self.clock.now();
        let (event, waiter) = match input {
            Input::View(view) => {
                return Some(Step {
                    now,
                    waiter: None,
                    effects: Vec::new(),
                    changed: None,
                    view: Some(view(&self.core, now)),
                });
            }
            Input::Event { event, waiter } => (*event, waiter),
        };
        let changed = change(&event);
        let began = Instant::now();
        let effects = self.core.step(now, event);
        metrics::core_step(began.elapsed());
        if effects.is_empty() && waiter.is_none() && changed.is_none() {
            return None;
        }
        Some(Step { now, waiter, effects, changed, view: None })
    }
}

/// What an event changes beyond what its effects tell.
fn change(event: &Event) -> Option<Change> {
    match event {
        Event::SessionUp { node, .. }
        | Event::Inventory { node, .. }
        | Event::SessionLost { node, .. }
        | Event::DeclareGone { node, .. } => Some(Change::Node(node.clone())),
        Event::Delta { observed, .. } => Some(Change::Volume(observed.volume.clone())),
        Event::AgentDone { volume, .. } => Some(Change::Volume(volume.clone())),
        Event::Publish { .. }
        | Event::Unpublish { .. }
        | Event::DeleteBegins { .. }
        | Event::DeleteEnded { .. }
        | Event::RdsDone { .. }
        | Event::Fence { .. }
        | Event::RdsListed { .. }
        | Event::RdsMade { .. }
        | Event::RdsNotListed { .. }
        | Event::Tick => None,
    }
}
