//! The connects of one volume that are under way, so that none is ever forgotten.
//!
//! A connect waits until its portal has answered and its turn in this node's queue has come. After that it
//! can be in the kernel for more than a minute (TCP, the first exchange, the Connect command), longer than
//! any operation waits. So each runs in a task of its own that outlives the operation, and whoever ends the
//! grant calls them back.
//!
//! Comes in: portals to connect. Goes out: how each attempt ended, and which portals are still under way.
//!
//! Always holds: a connect that was called back leaves no controller behind, and counts as under way until
//! that is proven. One that has not reached the kernel ends at once. A connect never deletes a controller
//! that existed before it.
//! proven; one that the kernel has not been given yet is over at once; a controller that existed before is never taken
//! away by it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cleat_host::Portal;
use cleat_host::fabrics::{ConnectError, ConnectRequest, DisconnectError, ExactController};
use cleat_runtime::exit::Causes;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::link::Link;
use crate::volume::VolumeContext;
use crate::volume::attach::connect_queue::{Place, Purpose};
use crate::volume::host::Host;

/// The kernel gives up a connect after at most about 73 s (3 s TCP, 10 s first exchange, 60 s Connect), and
/// makes all connects of the host one after the other. What comes later than this is undone by the fabrics
/// layer, and waited for.
const LONGEST_CONNECT: Duration = Duration::from_secs(180);
/// One wait for the deletion of a called-back connect's controller; repeated until the controller is gone.
const UNDO_SLICE: Duration = Duration::from_secs(30);
/// How often such a deletion is tried after a failure that is not "still detaching".
const UNDO_TRIES: u32 = 5;

/// How an attempt ended.
#[derive(Debug, Clone)]
pub(in crate::volume) enum ConnectEnd {
    /// It connected; the controller did not exist before.
    Made(ExactController),
    /// A controller with these names existed already.
    Adopted,
    /// It did not connect; the error says why.
    Failed(Arc<ConnectError>),
}

/// What a connect is made for.
#[derive(Debug, Clone)]
pub(in crate::volume) enum Why {
    /// An attach waits for it.
    Attach,
    /// A path is missing. It goes to the kernel only while there is a session with the controller.
    Repair(watch::Receiver<Link>),
}

/// How far a connect has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has not reached the kernel.
    Waiting,
    /// The kernel has had it since then.
    InKernel(Instant),
    /// Its controller has been under deletion since then.
    Undone(Instant),
}

/// The connects of one volume that are under way, and how the last ones ended.
#[derive(Debug, Clone)]
pub(in crate::volume) struct Connects {
    shared: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    table: Mutex<Table>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Table {
    running: BTreeMap<Portal, Attempt>,
    ended: BTreeMap<Portal, ConnectEnd>,
    begun: u64,
}

#[derive(Debug)]
struct Attempt {
    number: u64,
    request: ConnectRequest,
    stage: Stage,
    called_back: bool,
}

impl Default for Connects {
    fn default() -> Self {
        Self { shared: Arc::new(Inner { table: Mutex::default(), changed: watch::Sender::new(0) }) }
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Every operation on the table is whole before anything could panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn news(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Marks an attempt as about to reach the kernel. False if it was called back.
    fn hand_over(&self, portal: Portal, number: u64) -> bool {
        match self.table().running.get_mut(&portal).filter(|attempt| attempt.number == number) {
            Some(attempt) => {
                attempt.stage = Stage::InKernel(Instant::now());
                true
            }
            None => false,
        }
    }

    /// Takes note of an attempt's end. `None` if it was called back: then it is still under way, and has to
    /// be undone.
    fn settle(&self, portal: Portal, number: u64, connect_end: ConnectEnd) -> Option<()> {
        let mut table = self.table();
        let attempt = table.running.get_mut(&portal).filter(|attempt| attempt.number == number);
        let called_back = attempt.is_none_or(|attempt| {
            if attempt.called_back && matches!(connect_end, ConnectEnd::Made(_)) {
                attempt.stage = Stage::Undone(Instant::now());
            }
            attempt.called_back
        });
        if called_back && matches!(connect_end, ConnectEnd::Made(_)) {
            return None;
        }
        table.forget(portal, number);
        if !called_back {
            table.ended.insert(portal, connect_end);
        }
        drop(table);
        self.news();
        Some(())
    }

    /// Waits until an attempt is no longer under way.
    async fn over(&self, portal: Portal, number: u64) {
        let mut changed = self.changed.subscribe();
        while self.table().running.get(&portal).is_some_and(|attempt| attempt.number == number) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Table {
    fn forget(&mut self, portal: Portal, number: u64) -> bool {
        let found = self.running.get(&portal).is_some_and(|attempt| attempt.number == number);
        if found {
            self.running.remove(&portal);
        }
        found
    }
}

/// Removes an attempt from the running ones, however its task ends.
struct Running {
    shared: Arc<Inner>,
    portal: Portal,
    number: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.shared.table().forget(self.portal, self.number) {
            self.shared.news();
        }
    }
}

impl Connects {
    /// Begins to connect a portal. False if a connect of it is under way already.
    pub(in crate::volume) fn start<H: Host>(
        &self,
        node: &Arc<VolumeContext<H>>,
        request: ConnectRequest,
        why: Why,
    ) -> bool {
        let portal = request.portal;
        let number = {
            let mut table = self.shared.table();
            if table.running.contains_key(&portal) {
                return false;
            }
            table.begun += 1;
            let number = table.begun;
            let (request, stage) = (request.clone(), Stage::Waiting);
            table.running.insert(portal, Attempt { number, request, stage, called_back: false });
            table.ended.remove(&portal);
            number
        };
        let running = Running { shared: self.shared.clone(), portal, number };
        tokio::spawn(run(node.clone(), running, request, why));
        true
    }

    /// Portals whose connect, or its undoing, is under way.
    pub(in crate::volume) fn running(&self) -> BTreeSet<Portal> {
        self.shared.table().running.keys().copied().collect()
    }

    /// Whether any connect, or its undoing, is under way.
    pub(in crate::volume) fn are_running(&self) -> bool {
        !self.shared.table().running.is_empty()
    }

    /// Returns how attempts have ended since the last call.
    pub(in crate::volume) fn take_ended(&self) -> BTreeMap<Portal, ConnectEnd> {
        std::mem::take(&mut self.shared.table().ended)
    }

    /// A channel that reports every attempt that ends.
    pub(in crate::volume) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Calls back every connect that is under way. One that has not reached the kernel ends with this call.
    pub(in crate::volume) fn call_back(&self) {
        {
            let mut table = self.shared.table();
            table.running.retain(|_, attempt| attempt.stage != Stage::Waiting);
            for attempt in table.running.values_mut() {
                attempt.called_back = true;
            }
        }
        self.shared.news();
    }

    /// An attach takes over what is under way. Connects that wait make room for its own. A connect that was
    /// called back and is in the kernel is wanted again if it is exactly what the attach would ask for; the
    /// portals of those are returned.
    pub(in crate::volume) fn take_over(
        &self,
        wanted: impl Fn(Portal) -> Option<ConnectRequest>,
    ) -> BTreeSet<Portal> {
        let mut again = BTreeSet::new();
        {
            let mut table = self.shared.table();
            table.running.retain(|_, attempt| attempt.stage != Stage::Waiting);
            for (portal, attempt) in &mut table.running {
                let same = || wanted(*portal).is_some_and(|wanted| wanted == attempt.request);
                if attempt.called_back && matches!(attempt.stage, Stage::InKernel(_)) && same() {
                    attempt.called_back = false;
                    again.insert(*portal);
                }
            }
        }
        self.shared.news();
        again
    }

    /// What is under way, each as text for a person.
    pub(in crate::volume) fn in_words(&self) -> Vec<String> {
        let table = self.shared.table();
        let words = |(portal, attempt): (&Portal, &Attempt)| match attempt.stage {
            Stage::Waiting => format!("connect to {portal}: waits for its turn"),
            Stage::InKernel(since) => format!(
                "connect to {portal}: no answer yet, in the kernel for {:.1} s",
                since.elapsed().as_secs_f64()
            ),
            Stage::Undone(since) => format!(
                "connect to {portal}: came late; undoing it since {:.1} s ago",
                since.elapsed().as_secs_f64()
            ),
        };
        table.running.iter().map(words).collect()
    }

    /// Waits until nothing is under way. Cancel safe.
    pub(in crate::volume) async fn quiet(&self) {
        let mut changes = self.changes();
        // The sender lives in `self`, so this can only end by the condition.
        while self.are_running() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// One attempt, from beginning to end.
async fn run<H: Host>(node: Arc<VolumeContext<H>>, running: Running, request: ConnectRequest, why: Why) {
    let (table, portal, number) = (running.shared.clone(), running.portal, running.number);
    let ready = tokio::select! {
        biased;
        () = table.over(portal, number) => return,
        ready = turn(&node, portal, &why) => ready,
    };
    let place = match ready {
        Ok(place) => place,
        Err(reason) => {
            let subsystem = request.subsystem;
            let silent = ConnectError::Silent { subsystem, portal, reason };
            table.settle(portal, number, ConnectEnd::Failed(Arc::new(silent)));
            return;
        }
    };
    let permitted = match &why {
        Why::Attach => true,
        Why::Repair(link) => *link.borrow() == Link::Up,
    };
    if !permitted || !table.hand_over(portal, number) {
        return;
    }
    let began = Instant::now();
    let connect_end = connect(node.host.as_ref(), &request).await;
    node.portals.note_connect(portal, began.elapsed(), !matches!(connect_end, ConnectEnd::Failed(_)));
    drop(place);
    if table.settle(portal, number, connect_end.clone()).is_none()
        && let ConnectEnd::Made(target) = connect_end
    {
        undo(node.host.as_ref(), &target).await;
    }
}

/// Waits until the portal has answered and the kernel may get the connect.
async fn turn<H: Host>(node: &VolumeContext<H>, portal: Portal, why: &Why) -> Result<Place, String> {
    node.portals.ask(&node.host, portal).await?;
    let purpose = match why {
        Why::Attach => Purpose::Attach,
        Why::Repair(_) => Purpose::Repair,
    };
    let place = node.queue.place(purpose, node.portals.is_slow(portal)).await;
    // The turn may have come long after the answer.
    node.portals.ask(&node.host, portal).await?;
    Ok(place)
}

async fn connect(host: &impl Host, request: &ConnectRequest) -> ConnectEnd {
    match host.fabrics().connect(request, LONGEST_CONNECT).await {
        Ok(connected) if connected.adopted => ConnectEnd::Adopted,
        Ok(connected) => {
            match ExactController::of(&connected.controller, &request.subsystem, &request.host_nqn) {
                Some(target) => ConnectEnd::Made(target),
                // The fabrics layer verifies the names before it reports success.
                None => ConnectEnd::Adopted,
            }
        }
        Err(error) => {
            if matches!(error, ConnectError::Overdue { .. } | ConnectError::EarlierAttempt { .. }) {
                // The kernel is still connecting, behind other connects of this host, and may still make a
                // controller.
                tracing::warn!(error = %Causes(&error), "waiting for the kernel to end a connect");
                host.fabrics().settled(request).await;
            }
            ConnectEnd::Failed(Arc::new(error))
        }
    }
}

async fn undo(host: &impl Host, target: &ExactController) {
    let mut tries = 0;
    while tries < UNDO_TRIES {
        match host.fabrics().disconnect(target, UNDO_SLICE).await {
            Ok(_) => {
                tracing::info!(controller = %target.controller, "a cancelled connect has been undone");
                return;
            }
            Err(DisconnectError::StillDetaching { since, .. }) => {
                tracing::warn!(controller = %target.controller, ?since, "still undoing a connect");
                // The worker in the kernel goes on; joining it costs nothing and needs no limit of its own.
            }
            Err(error) => {
                tries += 1;
                tracing::warn!(controller = %target.controller, error = %Causes(&error), "cannot undo a connect");
            }
        }
    }
    tracing::error!(controller = %target.controller, "a controller was left behind; the next detach deletes \
                                                      it");
}
