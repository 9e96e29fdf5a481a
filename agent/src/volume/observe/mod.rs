//! What the kernel shows of a volume, and what that amounts to.

pub(super) mod disconnects;
pub(super) mod events;
pub(super) mod judge;
pub(super) mod observation;
pub(super) mod verify;
