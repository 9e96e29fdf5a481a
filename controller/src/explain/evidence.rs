//! Evidence that a node cannot write, and why an attachment is taken down.

use cleat_core::{DrainCause, Drained, Evidence, InterruptedBy, Source, UnixMillis, Verdict};

/// What the proof takes for granted, for people; `None` where it rests on what was seen alone.
pub(crate) fn assumption(evidence: &Evidence) -> Option<String> {
    let source = match &evidence.source {
        Source::AgentAbsent { .. } | Source::NeverAllowed => None,
        Source::TargetCut { secret: Some(_), .. } => {
            Some("the target refuses a host without the secret, and export off ends its sessions".into())
        }
        Source::TargetCut { .. } => {
            Some("the target refuses a host that is not on its list, and export off ends its sessions".into())
        }
        Source::Reservation { .. } => Some(
            "the target refuses writes without a registration, and a host that is not on its list; \
             and the node's agent does not register again where it was preempted"
                .into(),
        ),
        Source::ExportOff => Some("export off ends all sessions, and nobody else turns it on".into()),
        Source::NodeGone { by, reason } => {
            Some(format!("{by} is right that the node is gone and stays so ({reason}); nothing proves it"))
        }
    };
    let drained = match evidence.drained {
        Drained::Bound { .. } => {
            Some("the target lands or drops every write it has received within the drain bound")
        }
        Drained::Barrier => Some("the target's export off waits for every write it has received"),
        Drained::Abort => Some("the target's preempt-and-abort waits for what is in flight"),
        Drained::NeverHandedOut | Drained::LiveDeletion => None,
    };
    match (source, drained) {
        (Some(source), Some(drained)) => Some(format!("{source}; {drained}")),
        (source, drained) => source.or_else(|| drained.map(str::to_owned)),
    }
}

/// By what it is known that nothing the node wrote is on its way; empty while that is not known.
pub(crate) fn drained_by(evidence: &Evidence, now: UnixMillis) -> &'static str {
    match (&evidence.drained, evidence.verdict(now)) {
        (_, Verdict::NotFenced | Verdict::Unknown) => "",
        (Drained::NeverHandedOut, Verdict::Fenced) => "the volume was never handed out",
        (Drained::LiveDeletion, Verdict::Fenced) => "every controller was live when it was deleted",
        (Drained::Barrier, Verdict::Fenced) => {
            "the target took the namespace down, which waits for every write"
        }
        (Drained::Abort, Verdict::Fenced) => "the target's abort waits for what is in flight",
        (Drained::Bound { .. }, Verdict::Fenced) => "the drain bound has passed",
    }
}

/// Why an attachment is taken down.
pub(crate) fn drain_cause(cause: &DrainCause) -> String {
    match cause {
        DrainCause::Requested => "a detach was asked for".to_owned(),
        DrainCause::Rollback => "the attach did not succeed, or was given up".to_owned(),
        DrainCause::Unwanted => "the tickets that it was there for have gone".to_owned(),
        DrainCause::Interrupted { by } => {
            format!("its tickets have had their time to let go: {}", interrupted_by(by))
        }
        DrainCause::Forced { by, reason } => format!("forced by {by}: {reason}"),
        DrainCause::Gone { by, reason } => format!("the node was declared gone by {by}: {reason}"),
    }
}

/// For whom tickets are interrupted.
pub(crate) fn interrupted_by(by: &InterruptedBy) -> String {
    match by {
        InterruptedBy::Workload { ticket, node } => {
            format!("a workload wants it on node {node} (ticket {ticket})")
        }
        InterruptedBy::Unpublish => "a detach was asked for".to_owned(),
        InterruptedBy::Silence => "none of them is renewed any more".to_owned(),
    }
}
