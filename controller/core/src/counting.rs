//! Which writes of an attachment its agent was asked to count, and what it has said since. For people: nothing of it says who
//! can write.

use crate::{OperationId, SessionId};

/// What a counting is to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum CountGoal {
    /// That the VM writes at the target, or has let go of the source.
    Switchover,
    /// That the target has the device open, now that the source has let go of it.
    TargetHasIt,
    /// Whether the source still writes, now that the VM has moved.
    LateWrites,
}

/// One counting, on one session. Each of the next goal is another one: what it counts comes after the question.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Counting {
    pub(crate) operation: OperationId,
    pub(crate) session: SessionId,
    pub(crate) goal: CountGoal,
    /// The writes so far.
    pub(crate) writes: u64,
    /// Somebody has the device open.
    open: bool,
    /// Somebody had it open before.
    was_open: bool,
}

impl Counting {
    pub(crate) fn begin(operation: OperationId, session: SessionId, goal: CountGoal) -> Self {
        Self { operation, session, goal, writes: 0, open: false, was_open: false }
    }

    /// Takes in a report; says whether it is the first that has a write. One that is older than the last says less.
    pub(crate) fn take(&mut self, writes: u64, open: bool) -> bool {
        let first = self.writes == 0 && writes > 0;
        self.writes = self.writes.max(writes);
        (self.open, self.was_open) = (open, self.was_open || open);
        first
    }

    /// Somebody had the device open, and nobody has it open any more. That nobody had it open yet is nothing.
    pub(crate) fn was_let_go(&self) -> bool {
        self.was_open && !self.open
    }
}
