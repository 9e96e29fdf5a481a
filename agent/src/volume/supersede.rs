//! Directives that take the place of what is under way.
//!
//! Owns: the directives of a volume that have come and have not ended, whether they have their turn or wait
//! for it. Comes in: a directive, as soon as it arrives. Goes out: to operations, a wait that ends as soon as
//! a directive makes them pointless.
//!
//! Always holds: an operation that has the volume's gate waits under [`Volume::unless_superseded`] or
//! [`Volume::unless_revoked`] for everything but a record on its way to the disk and a deletion in the
//! kernel. So a Revoke waits for nobody else, not even behind others that wait for their turn: each gives
//! that up when the Revoke arrives.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::name::Epoch;
use crate::volume::Volume;
use crate::volume::directive::{Directive, DirectiveKind};
use crate::volume::gate::InProgress;
use crate::volume::host::Host;

/// Directives that have come and have not ended.
#[derive(Debug, Clone)]
pub(super) struct Arrivals {
    table: Arc<watch::Sender<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    arrivals: Vec<(u64, ArrivedDirective)>,
}

/// What matters of a directive here.
#[derive(Debug, Clone, Copy)]
struct ArrivedDirective {
    kind: DirectiveKind,
    epoch: Epoch,
}

impl ArrivedDirective {
    /// Whether it makes work for a grant pointless. A directive of an older grant does not.
    fn supersedes(self, epoch: Epoch) -> bool {
        match self.kind {
            DirectiveKind::Detach | DirectiveKind::Revoke => self.epoch >= epoch,
            DirectiveKind::Attach => self.epoch > epoch,
            DirectiveKind::Verify | DirectiveKind::Preempt | DirectiveKind::Rekey => false,
        }
    }

    /// Whether it ends a grant, whatever else is being done to the volume.
    fn revokes(self, epoch: Option<Epoch>) -> bool {
        self.kind == DirectiveKind::Revoke && epoch.is_none_or(|epoch| self.epoch >= epoch)
    }
}

/// While it lives, the directive has not ended.
#[derive(Debug)]
pub(super) struct Arrival {
    arrivals: Arrivals,
    number: u64,
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.arrivals.table.send_modify(|table| table.arrivals.retain(|(number, _)| *number != self.number));
    }
}

impl Default for Arrivals {
    fn default() -> Self {
        Self { table: Arc::new(watch::Sender::new(Table::default())) }
    }
}

impl Arrivals {
    /// Notes that a directive has come.
    pub(super) fn arrive(&self, directive: &Directive) -> Arrival {
        let order = ArrivedDirective { kind: directive.ask.kind(), epoch: directive.epoch };
        let mut number = 0;
        self.table.send_modify(|table| {
            number = table.next;
            table.next += 1;
            table.arrivals.push((number, order));
        });
        Arrival { arrivals: self.clone(), number }
    }

    /// The newest grant of which an Attach has come and has not ended: it may be begun yet, whoever leads by then.
    pub(super) fn newest_attach(&self) -> Option<Epoch> {
        let table = self.table.borrow();
        let attaches = table.arrivals.iter().filter(|(_, order)| order.kind == DirectiveKind::Attach);
        attaches.map(|(_, order)| order.epoch).max()
    }

    /// Waits until such a directive has come.
    async fn until(&self, is: impl Fn(ArrivedDirective) -> bool) {
        let found = |table: &Table| table.arrivals.iter().any(|(_, order)| is(*order));
        if self.table.subscribe().wait_for(found).await.is_err() {
            // The sender lives in `self`.
            std::future::pending().await
        }
    }
}

/// A later directive has taken the place of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Superseded;

impl<H: Host> Volume<H> {
    /// Waits for work under a grant until a directive comes that ends or replaces the grant. What the kernel
    /// or the target was asked to do goes on by itself.
    pub(super) async fn unless_superseded<T>(
        &self,
        epoch: Epoch,
        work: impl Future<Output = T>,
    ) -> Result<T, Superseded> {
        tokio::select! {
            biased;
            () = self.arrivals.until(|order| order.supersedes(epoch)) => Err(Superseded),
            done = work => Ok(done),
        }
    }

    /// Waits for work that only a Revoke makes pointless: one of this epoch or a later one, or, with `None`,
    /// any.
    pub(super) async fn unless_revoked<T>(
        &self,
        epoch: Option<Epoch>,
        work: impl Future<Output = T>,
    ) -> Result<T, InProgress> {
        tokio::select! {
            biased;
            () = self.arrivals.until(|order| order.revokes(epoch)) => {
                Err(InProgress { what: DirectiveKind::Revoke.as_str().to_owned(), since: Duration::ZERO })
            }
            done = work => Ok(done),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn order(kind: DirectiveKind, seq: u64) -> ArrivedDirective {
        ArrivedDirective { kind, epoch: Epoch::new(1, seq).unwrap() }
    }

    #[test]
    fn only_what_ends_or_replaces_the_grant_overtakes_and_nothing_of_the_past() {
        let epoch = Epoch::new(1, 5).unwrap();
        for (kind, seq, supersedes, revokes) in [
            (DirectiveKind::Revoke, 5, true, true),
            (DirectiveKind::Revoke, 4, false, false),
            (DirectiveKind::Detach, 5, true, false),
            (DirectiveKind::Detach, 4, false, false),
            (DirectiveKind::Attach, 6, true, false),
            (DirectiveKind::Attach, 5, false, false),
            (DirectiveKind::Rekey, 6, false, false),
            (DirectiveKind::Preempt, 6, false, false),
            (DirectiveKind::Verify, 6, false, false),
        ] {
            let order = order(kind, seq);
            assert_eq!(
                (order.supersedes(epoch), order.revokes(Some(epoch))),
                (supersedes, revokes),
                "{order:?}"
            );
        }
        assert!(order(DirectiveKind::Revoke, 1).revokes(None));
    }
}
