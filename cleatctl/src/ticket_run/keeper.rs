//! Whether a ticket is still ours, by what is heard of it.
//!
//! Comes in: answers and failures, with their times. Goes out: that the command has to end, and why. What always holds: only an
//! answer that says "satisfied" for our generation on our node counts as ours; what is not heard, or not understood, counts
//! for a limited time.

use std::fmt;
use std::ops::ControlFlow;
use std::time::Duration;

use cleat_proto::cleat::v1::TicketInfo;
use tokio::time::Instant;

/// What was heard of a ticket.
#[derive(Debug)]
pub(super) enum Heard {
    /// How it stands.
    Ticket(Box<TicketInfo>),
    /// There was no answer, for this reason.
    Nothing(String),
}

/// Why the command has to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The volume is needed, by whom this says.
    Interrupted(String),
    /// The ticket is not ours any more, for this reason.
    Lost(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interrupted(whom) if whom.is_empty() => f.write_str("interrupted"),
            Self::Interrupted(whom) => write!(f, "interrupted for {whom}"),
            Self::Lost(why) => write!(f, "the ticket is lost: {why}"),
        }
    }
}

/// What is known of a ticket.
#[derive(Debug)]
pub(super) struct Keeper {
    node: String,
    generation: u64,
    /// A ticket that is not renewed for so long is lost.
    renew: Duration,
    /// When the controller has answered last.
    answered: Instant,
    /// When it is to be renewed next.
    renew_at: Instant,
    /// Since when it is not satisfied, as answers say.
    unsatisfied: Option<Instant>,
}

impl Keeper {
    pub(super) fn new(node: &str, generation: u64, renew: Duration, now: Instant) -> Self {
        let node = node.to_owned();
        Self { node, generation, renew, answered: now, renew_at: now + renew / 3, unsatisfied: None }
    }

    /// Whether the device is on our node, for this ticket as it is.
    pub(super) fn has(&self, ticket: &TicketInfo) -> bool {
        self.is_satisfied(ticket) && ticket.node_id == self.node && ticket.interrupted_until_unix_ms == 0
    }

    /// Whether it is on another node.
    pub(super) fn is_elsewhere(&self, ticket: &TicketInfo) -> bool {
        self.is_satisfied(ticket) && ticket.node_id != self.node
    }

    fn is_satisfied(&self, ticket: &TicketInfo) -> bool {
        ticket.satisfied && ticket.satisfied_generation == self.generation
    }

    /// Whether it is time to renew the ticket; then it counts as renewed, as far as this goes.
    pub(super) fn renewal_is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.renew_at;
        if due {
            self.renew_at = now + self.renew / 3;
        }
        due
    }

    /// Takes in what was heard.
    pub(super) fn heard(&mut self, now: Instant, heard: Heard) -> Option<Verdict> {
        let ticket = match heard {
            Heard::Ticket(ticket) => ticket,
            Heard::Nothing(why) => {
                // A renewal that failed is tried again at once.
                self.renew_at = now;
                let silent = now.saturating_duration_since(self.answered);
                return (silent >= self.renew)
                    .then(|| Verdict::Lost(format!("it was not renewed in time: {why}")));
            }
        };
        self.answered = now;
        if ticket.interrupted_until_unix_ms > 0 {
            // One that is interrupted waits for something only where its holder counts as silent.
            return Some(match ticket.waits_for.is_empty() {
                true => Verdict::Interrupted(ticket.waits_on),
                false => Verdict::Lost(ticket.waits_for),
            });
        }
        if self.is_elsewhere(&ticket) {
            return Some(Verdict::Lost(format!("the volume is on node {} now", ticket.node_id)));
        }
        if self.has(&ticket) {
            self.unsatisfied = None;
            return None;
        }
        // A controller that has just started has yet to hear what nodes have.
        let since = *self.unsatisfied.get_or_insert(now);
        let long = now.saturating_duration_since(since) >= self.renew / 2;
        let why =
            if ticket.waits_for.is_empty() { "it is not satisfied any more" } else { &ticket.waits_for };
        long.then(|| Verdict::Lost(why.to_owned()))
    }

    /// Takes in what was heard once the command has ended: goes on as long as that does not say whether the ticket was ours
    /// until then, and breaks with the reason where it was not.
    pub(super) fn at_end(&mut self, now: Instant, heard: Heard) -> ControlFlow<Option<Verdict>> {
        let answered = matches!(heard, Heard::Ticket(_));
        match self.heard(now, heard) {
            Some(verdict) => ControlFlow::Break(Some(verdict)),
            None if answered && self.unsatisfied.is_none() => ControlFlow::Break(None),
            None => ControlFlow::Continue(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RENEW: Duration = Duration::from_secs(30);

    fn ours() -> TicketInfo {
        TicketInfo {
            node_id: "a".into(),
            generation: 1,
            satisfied: true,
            satisfied_generation: 1,
            ..Default::default()
        }
    }

    fn waits() -> TicketInfo {
        TicketInfo { satisfied: false, waits_for: "node a to connect".into(), ..ours() }
    }

    /// What a keeper says of these, each so many seconds after its beginning.
    fn heard(all: Vec<(u64, Option<TicketInfo>)>) -> Vec<Option<Verdict>> {
        let began = Instant::now();
        let mut keeper = Keeper::new("a", 1, RENEW, began);
        let answer = |ticket: Option<TicketInfo>| match ticket {
            Some(ticket) => Heard::Ticket(Box::new(ticket)),
            None => Heard::Nothing("connection refused".into()),
        };
        all.into_iter()
            .map(|(at, ticket)| keeper.heard(began + Duration::from_secs(at), answer(ticket)))
            .collect()
    }

    fn lost(why: &str) -> Option<Verdict> {
        Some(Verdict::Lost(why.to_owned()))
    }

    #[test]
    fn a_ticket_that_is_satisfied_here_for_its_generation_is_ours() {
        assert_eq!(heard(vec![(1, Some(ours())), (40, Some(ours()))]), [None, None]);
        let keeper = Keeper::new("a", 2, RENEW, Instant::now());
        assert!(!keeper.has(&ours()) && !keeper.is_elsewhere(&ours()), "satisfied as it was before");
    }

    #[test]
    fn an_interruption_ends_it_at_once_and_says_for_whom() {
        let interrupted =
            TicketInfo { interrupted_until_unix_ms: 77, waits_on: "ticket csi.b".into(), ..ours() };
        assert_eq!(heard(vec![(1, Some(interrupted))]), [Some(Verdict::Interrupted("ticket csi.b".into()))]);
    }

    #[test]
    fn one_that_nobody_is_said_to_renew_is_lost() {
        let silent = TicketInfo {
            interrupted_until_unix_ms: 77,
            waits_for: "its holder to renew it".into(),
            ..ours()
        };
        assert_eq!(heard(vec![(1, Some(silent))]), [lost("its holder to renew it")]);
    }

    #[test]
    fn a_volume_that_is_on_another_node_is_lost_here() {
        let moved = TicketInfo { node_id: "b".into(), ..ours() };
        assert_eq!(heard(vec![(1, Some(moved))]), [lost("the volume is on node b now")]);
    }

    #[test]
    fn a_silent_controller_is_waited_for_as_long_as_a_renewal_lasts() {
        let all = heard(vec![(1, Some(ours())), (30, None), (31, None)]);
        assert_eq!(all, [None, None, lost("it was not renewed in time: connection refused")]);
        assert_eq!(heard(vec![(29, None), (29, Some(ours())), (58, None)]), [None, None, None]);
    }

    #[test]
    fn unsatisfied_for_long_is_lost_and_for_a_moment_is_nothing() {
        let all = heard(vec![(1, Some(waits())), (15, Some(waits())), (16, Some(waits()))]);
        assert_eq!(all, [None, None, lost("node a to connect")]);
        let again = heard(vec![(1, Some(waits())), (10, Some(ours())), (16, Some(waits()))]);
        assert_eq!(again, [None, None, None]);
    }

    #[test]
    fn a_command_has_ended_well_only_where_an_answer_says_ours_after_it() {
        let began = Instant::now();
        let mut keeper = Keeper::new("a", 1, RENEW, began);
        let mut end = |at, ticket: Option<TicketInfo>| {
            let heard = ticket.map_or(Heard::Nothing("x".into()), |ticket| Heard::Ticket(Box::new(ticket)));
            keeper.at_end(began + Duration::from_secs(at), heard)
        };
        assert_eq!(end(1, Some(ours())), ControlFlow::Break(None));
        assert_eq!(end(2, None), ControlFlow::Continue(()), "it may have been cut off unheard");
        assert_eq!(end(3, Some(waits())), ControlFlow::Continue(()), "of a controller that has just started");
        assert_eq!(end(18, Some(waits())), ControlFlow::Break(lost("node a to connect")));
        let interrupted = TicketInfo { interrupted_until_unix_ms: 77, ..ours() };
        let verdict = Verdict::Interrupted(String::new());
        assert_eq!(end(19, Some(interrupted)), ControlFlow::Break(Some(verdict)));
        assert_eq!(end(49, None), ControlFlow::Break(lost("it was not renewed in time: x")));
    }

    #[test]
    fn a_ticket_is_renewed_at_a_third_and_at_once_after_a_failure() {
        let began = Instant::now();
        let mut keeper = Keeper::new("a", 1, RENEW, began);
        let due = |keeper: &mut Keeper, at| keeper.renewal_is_due(began + Duration::from_secs(at));
        assert!(!due(&mut keeper, 9) && due(&mut keeper, 10) && !due(&mut keeper, 11));
        assert_eq!(keeper.heard(began + Duration::from_secs(11), Heard::Nothing("x".into())), None);
        assert!(due(&mut keeper, 11), "what was not answered has renewed nothing");
    }
}
