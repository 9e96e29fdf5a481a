//! Whether the controller is heard: what the session knows and volumes have to ask.
//!
//! What this node does without being asked is done only while a session is up: one that has been fenced has lost it,
//! or has been told.

/// Whether a session with the controller is established.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Established.
    Up,
    /// Not established.
    Down,
}
