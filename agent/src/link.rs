//! Whether there is a session with the controller: the session sets it, and volumes read it.
//!
//! What this node does without being asked, it does only while a session is up: a fenced node has lost its
//! session, or has been sent the end of its grant.

/// Whether a session with the controller is established.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The inventory of a session is on its stream.
    Up,
    /// No session, or not that far yet.
    Down,
}
