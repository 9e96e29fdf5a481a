//! What the kernel shows of a volume, and which state follows from that.

pub(super) mod disconnects;
pub(super) mod events;
pub(super) mod held;
pub(super) mod judge;
pub(super) mod observation;
pub(super) mod verify;
