//! What is remembered of a volume between operations. Safety does not depend on it.
//!
//! Each part is private to the file that owns it. They share one lock, so that a report sees all of them at
//! one moment. This file changes them together when a grant begins and ends.

use crate::name::Epoch;
use crate::volume::attach::backoff::Backoff;
use crate::volume::attach::revive::Dead;
use crate::volume::credentials::Secret;
use crate::volume::detach::Deleting;
use crate::volume::detach::leftovers::Leftovers;
use crate::volume::forget::Over;
use crate::volume::keep_heads::Staying;
use crate::volume::observe::held::Held;
use crate::volume::observe::judge::Activity;
use crate::volume::observe::verify::Judged;
use crate::volume::publish::staging::Staged;
use crate::volume::record::Record;
use crate::volume::reservation::Registration;

/// What is remembered of a volume.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// What is being done to the volume.
    pub(super) activity: Activity,
    /// Controllers that the kernel is deleting.
    pub(super) deleting: Deleting,
    /// The grant that came to this node in this process's time.
    pub(super) begun_here: Option<Epoch>,
    /// The last verdict of the whole predicate.
    pub(super) judged: Judged,
    /// The record as this process last had it, and what it still has to write.
    pub(super) record: Record,
    /// Since when this process has known that its grant is over.
    pub(super) over: Over,
    /// When missing paths may be connected again.
    pub(super) repair: Backoff,
    /// A device of the volume that is gone.
    pub(super) dead: Dead,
    /// When to delete, again, what is left of an ended grant.
    pub(super) leftovers: Leftovers,
    /// Heads that stay for a while without a path.
    pub(super) staying: Staying,
    /// The secret that connects authenticate with.
    pub(super) secret: Secret,
    /// This node's registration, as it was last seen.
    pub(super) registration: Registration,
    /// What pods hold in its place.
    pub(super) held: Held,
    /// What was seen where it is published.
    pub(super) staged: Staged,
}

impl Memory {
    /// The device of an earlier grant says nothing of this one's.
    pub(super) fn grant_begins(&mut self, epoch: Epoch) {
        self.begun_here = Some(epoch);
        self.judged.grant_begins();
        self.registration = Registration::default();
        self.held = Held::default();
        self.dead = Dead::default();
    }

    /// Nothing that held under the grant holds any more.
    pub(super) fn grant_ends(&mut self) {
        self.judged = self.judged.ended();
        self.secret = Secret::default();
        self.registration = Registration::default();
        self.held = Held::default();
        self.dead = Dead::default();
    }
}
