//! Which operations of a volume are running, and how the last ones ended: so that a directive that comes
//! twice is carried out once.
//!
//! Always holds: an operation id runs at most once at a time. A failed attach that comes again is answered
//! from memory, since the controller may have dropped the grant. Everything else observes again (the ledger
//! keeps an ended grant from being carried out again).

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::name::OperationId;
use crate::volume::directive::DirectiveKind;
use crate::volume::outcome::{DirectiveResult, Outcome};

/// How many ended operations are remembered. A repeated message comes soon, or on the next stream.
const REMEMBERED: usize = 32;

/// The operations of one volume.
#[derive(Debug, Default)]
pub(super) struct Operations {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    running: BTreeSet<OperationId>,
    ended: VecDeque<(OperationId, DirectiveKind, DirectiveResult)>,
}

/// What to do with a directive that has come.
#[derive(Debug, PartialEq)]
pub(super) enum Begin {
    /// Carry it out.
    Start,
    /// It is being carried out already; its result will be sent.
    Joined,
    /// It has ended before, with this result.
    Known(Box<DirectiveResult>),
}

impl Operations {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, operation: &OperationId, kind: DirectiveKind) -> Begin {
        let mut table = self.table();
        let last = table.ended.iter().rev().find(|(id, was, _)| id == operation && *was == kind);
        if let Some((_, DirectiveKind::Attach, result)) = last
            && is_final_failure(result)
        {
            return Begin::Known(Box::new(result.clone()));
        }
        if table.running.insert(*operation) { Begin::Start } else { Begin::Joined }
    }

    pub(super) fn end(&self, operation: &OperationId, kind: DirectiveKind, result: &DirectiveResult) {
        let mut table = self.table();
        table.running.remove(operation);
        if table.ended.len() >= REMEMBERED {
            table.ended.pop_front();
        }
        table.ended.push_back((*operation, kind, result.clone()));
    }
}

fn is_final_failure(result: &DirectiveResult) -> bool {
    match &result.outcome {
        Outcome::Failed(_) | Outcome::StaleEpoch(_) => true,
        Outcome::Ready(_) | Outcome::Absent(_) | Outcome::Busy(_) | Outcome::Pending(_) => false,
        Outcome::Preempted(_) | Outcome::Rekeyed => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::name::{Epoch, VolumeId};
    use crate::volume::clause;
    use crate::volume::state::Absence;

    fn result(outcome: Outcome) -> DirectiveResult {
        DirectiveResult {
            operation: OperationId::parse("op-1-1").unwrap(),
            volume: VolumeId::parse("v").unwrap(),
            epoch: Epoch::new(1, 1).unwrap(),
            outcome,
        }
    }

    #[test]
    fn a_repeated_operation_joins_and_a_failed_attach_is_not_tried_again() {
        let operations = Operations::default();
        let id = OperationId::parse("op-1-1").unwrap();
        let attach = DirectiveKind::Attach;
        assert_eq!(operations.begin(&id, attach), Begin::Start);
        assert_eq!(operations.begin(&id, attach), Begin::Joined);
        let failed = result(Outcome::failed(clause::failed(clause::CONNECT, "no answer")));
        operations.end(&id, attach, &failed);
        assert_eq!(operations.begin(&id, attach), Begin::Known(Box::new(failed)));
        let other = OperationId::parse("op-1-2").unwrap();
        assert_eq!(operations.begin(&other, attach), Begin::Start);
        operations.end(
            &other,
            attach,
            &result(Outcome::Absent(Absence { deleted: Vec::new(), times: None })),
        );
        assert_eq!(operations.begin(&other, attach), Begin::Start, "looked at afresh");
    }
}
