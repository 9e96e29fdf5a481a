//! What is remembered of a volume between operations. Decides nothing that safety rests on.
//!
//! Each part is private to the file that owns it. They share one lock, so that a report sees all of them as they are at
//! one moment; here is what becomes of them together when a grant begins and ends.

use crate::volume::attach::backoff::Backoff;
use crate::volume::attach::revive::Dead;
use crate::volume::credentials::Secret;
use crate::volume::detach::Deleting;
use crate::volume::detach::leftovers::Leftovers;
use crate::volume::forget::Over;
use crate::volume::keep_heads::Staying;
use crate::volume::observe::judge::Activity;
use crate::volume::observe::verify::Judged;
use crate::volume::publish::staging::Staged;
use crate::volume::record::Record;
use crate::volume::reservation::Registration;

/// What is remembered of a volume.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// What is being done to it.
    pub(super) activity: Activity,
    /// Deletions that the kernel is at.
    pub(super) deleting: Deleting,
    /// What came of judging the whole predicate.
    pub(super) judged: Judged,
    /// What is known of the record, and what is owed to it.
    pub(super) record: Record,
    /// Since when its grant is known to be over.
    pub(super) over: Over,
    /// When missing paths may be connected again.
    pub(super) repair: Backoff,
    /// A device of the volume that is gone.
    pub(super) dead: Dead,
    /// When what is left of a grant that has ended may be taken away again.
    pub(super) leftovers: Leftovers,
    /// Heads that stay for a while without a path.
    pub(super) staying: Staying,
    /// With which secret connects authenticate.
    pub(super) secret: Secret,
    /// What is known of this node's registration.
    pub(super) registration: Registration,
    /// What was seen where it is published.
    pub(super) staged: Staged,
}

impl Memory {
    /// What was known of the device of an earlier grant says nothing of this one's.
    pub(super) fn grant_begins(&mut self) {
        self.judged.grant_begins();
        self.registration = Registration::default();
        self.dead = Dead::default();
    }

    /// Nothing that was known under the grant holds any more.
    pub(super) fn grant_ends(&mut self) {
        self.judged = self.judged.ended();
        self.secret = Secret::default();
        self.registration = Registration::default();
        self.dead = Dead::default();
    }
}
