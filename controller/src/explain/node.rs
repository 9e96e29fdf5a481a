//! A node that is waited for, and one that has seen a later term.

use cleat_core::{Agent, Heard, LaterTerm};

use super::when;

/// What it means that a node has seen an epoch of a later term, and what to do.
pub(super) fn later_term(LaterTerm { volume, highest, term }: &LaterTerm) -> String {
    format!(
        "it has seen epoch {highest} of volume {volume}, and this controller's term is only {term}: another controller \
         grants, or this one's clock was set back and its store lost or an older one restored; stop the other controller, \
         or set the clock and restart this one; restart the agent if its state is wrong"
    )
}

/// An agent that is waited for, how it is heard, and what it has to do or has not done.
pub(super) fn who(Agent { node, heard }: &Agent, does: &str) -> String {
    match heard {
        Heard::Ready => format!("the agent of node {node} {does}"),
        Heard::NoInventory => format!("the agent of node {node}, whose inventory is not in yet, {does}"),
        Heard::SilentSince(since) => {
            format!("the agent of node {node}, silent since {}, {does}", when(*since))
        }
        Heard::NeverSince(since) => {
            format!("the agent of node {node}, not heard since {}, {does}", when(*since))
        }
    }
}
