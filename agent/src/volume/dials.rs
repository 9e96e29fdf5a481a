//! Connects under way for one volume, so that none is ever lost sight of.
//!
//! A connect can sit in the kernel for more than a minute (TCP, the first exchange, the Connect command, one after
//! the other for all connects of the host), longer than any operation waits. So each runs in a task of its own that
//! outlives the operation, and whoever ends the grant calls them back.
//!
//! Comes in: portals to connect. Goes out: how each attempt ended, and the portals still under way.
//!
//! Always holds: a connect that was called back leaves no controller behind, and counts as under way until that is
//! proven; a controller that existed before is never taken away by it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cleat_host::Portal;
use cleat_host::fabrics::{ConnectError, ConnectRequest, DisconnectError, Target};
use cleat_runtime::exit::Causes;
use tokio::sync::watch;

use super::host::Host;

/// The kernel gives a connect up after at most about 73 s (3 s TCP, 10 s first exchange, 60 s Connect), all connects
/// of the host one after the other; what comes later than this is undone by the fabrics layer, and waited for.
const LONGEST_CONNECT: Duration = Duration::from_secs(180);
/// One wait for the deletion of a controller that was called back; repeated until it is gone.
const UNDO_SLICE: Duration = Duration::from_secs(30);
/// How often such a deletion is tried after a failure that is not "still detaching".
const UNDO_TRIES: u32 = 5;

/// How an attempt ended.
#[derive(Debug, Clone)]
pub enum Dialled {
    /// Connected; the controller did not exist before.
    Made(Target),
    /// A controller with these names existed.
    Adopted,
    /// Not connected.
    Failed(Arc<ConnectError>),
}

/// Connects under way and how the last ones ended.
#[derive(Debug, Clone)]
pub struct Dials {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Table {
    /// Under way; the value says whether it was called back.
    running: BTreeMap<Portal, bool>,
    ended: BTreeMap<Portal, Dialled>,
}

impl Default for Dials {
    fn default() -> Self {
        Self { shared: Arc::new(Shared { table: Mutex::default(), changed: watch::Sender::new(0) }) }
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Every operation on the table is whole before anything could panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn news(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Takes an attempt's end in. `None` if it was called back: then it is still under way, and has to be undone.
    fn settle(&self, portal: Portal, dialled: Dialled) -> Option<()> {
        let mut table = self.table();
        let called_back = table.running.get(&portal).copied().unwrap_or(false);
        if called_back && matches!(dialled, Dialled::Made(_)) {
            return None;
        }
        table.running.remove(&portal);
        if !called_back {
            table.ended.insert(portal, dialled);
        }
        drop(table);
        self.news();
        Some(())
    }
}

/// Takes a portal out of the running ones whatever becomes of its task.
struct Running {
    shared: Arc<Shared>,
    portal: Portal,
}

impl Drop for Running {
    fn drop(&mut self) {
        let unsettled = self.shared.table().running.remove(&self.portal).is_some();
        if unsettled {
            self.shared.news();
        }
    }
}

impl Dials {
    /// Begins to connect a portal, unless that is under way. False if it is.
    pub fn start<H: Host>(&self, host: &Arc<H>, request: ConnectRequest) -> bool {
        let portal = request.portal;
        {
            let mut table = self.shared.table();
            if table.running.contains_key(&portal) {
                return false;
            }
            table.running.insert(portal, false);
            table.ended.remove(&portal);
        }
        let running = Running { shared: self.shared.clone(), portal };
        let host = host.clone();
        tokio::spawn(async move {
            let shared = &running.shared;
            let dialled = connect(host.as_ref(), &request).await;
            if shared.settle(portal, dialled.clone()).is_none()
                && let Dialled::Made(target) = dialled
            {
                undo(host.as_ref(), &target).await;
            }
        });
        true
    }

    /// Portals whose connect, or its undoing, is under way.
    pub fn running(&self) -> BTreeSet<Portal> {
        self.shared.table().running.keys().copied().collect()
    }

    /// Whether any connect, or its undoing, is under way.
    pub fn are_running(&self) -> bool {
        !self.shared.table().running.is_empty()
    }

    /// Takes out how attempts ended since the last call.
    pub fn take_ended(&self) -> BTreeMap<Portal, Dialled> {
        std::mem::take(&mut self.shared.table().ended)
    }

    /// Hears of attempts that end.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Calls back every connect that is under way.
    pub fn call_back(&self) {
        for called_back in self.shared.table().running.values_mut() {
            *called_back = true;
        }
    }

    /// Waits until nothing is under way. Cancel safe.
    pub async fn quiet(&self) {
        let mut changes = self.changes();
        // The sender lives in `self`, so this can only end by the condition.
        while self.are_running() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

async fn connect(host: &impl Host, request: &ConnectRequest) -> Dialled {
    match host.fabrics().connect(request, LONGEST_CONNECT).await {
        Ok(connected) if connected.adopted => Dialled::Adopted,
        Ok(connected) => match Target::of(&connected.controller, &request.subsystem, &request.host_nqn) {
            Some(target) => Dialled::Made(target),
            // The fabrics layer verifies names before it says connected.
            None => Dialled::Adopted,
        },
        Err(error) => {
            if matches!(error, ConnectError::Overdue { .. } | ConnectError::EarlierAttempt { .. }) {
                // The kernel is still at it, behind other connects of this host, and can make a controller yet.
                tracing::warn!(error = %Causes(&error), "waiting for the kernel to let go of a connect");
                host.fabrics().settled(request).await;
            }
            Dialled::Failed(Arc::new(error))
        }
    }
}

async fn undo(host: &impl Host, target: &Target) {
    let mut tries = 0;
    while tries < UNDO_TRIES {
        match host.fabrics().disconnect(target, UNDO_SLICE).await {
            Ok(_) => {
                tracing::info!(controller = %target.controller, "a connect that was called back has been undone");
                return;
            }
            Err(DisconnectError::StillDetaching { since, .. }) => {
                tracing::warn!(controller = %target.controller, ?since, "still undoing a connect");
                // The worker in the kernel goes on; joining it costs nothing and needs no bound of its own.
            }
            Err(error) => {
                tries += 1;
                tracing::warn!(controller = %target.controller, error = %Causes(&error), "cannot undo a connect");
            }
        }
    }
    tracing::error!(controller = %target.controller, "a controller was left behind; the next detach takes it away");
}
