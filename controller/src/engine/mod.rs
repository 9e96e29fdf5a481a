//! The engine: the one place where the core runs, and where its effects are carried out.
//!
//! In come events from RPCs, agent sessions, the RDS and the clock; out go durable records, RDS requests,
//! directives, answers and notices. Two tasks, one queue between them:
//!
//! ```text
//! events ──> decide (owns the core) ──> steps, in order ──> carry out (owns the store)
//! ```
//!
//! `decide` takes one event at a time and goes on while the store writes; `carry_out` takes all steps that wait and has
//! a lane for each volume and each node (`lanes`): records go to the store side by side, and what rests on one is done once
//! it is durable. What holds:
//!
//! - the order of a volume's records and effects is the order of the steps; between volumes there is none, but where the
//!   core asks for it (`cleat_core::Effect`);
//! - nothing is done about a volume before every earlier record of it is durable;
//! - so a crash at any point leaves each volume as if the steps whose effects did not run had never been taken, or
//!   as if their messages had been lost, and the core is made for both;
//! - nobody is shown a state that a crash could take back: a view shows what is durable, and one of a single volume waits
//!   until what it shows is;
//! - while a record cannot be stored (a full disk, a silent API server), what rests on it waits, bounded, and callers get an
//!   error that says so; nothing else waits. A store that was taken over or can be relied on no more ends the engine, and
//!   with it the process: what is not durable must not be acted on. A volume whose record somebody else has written is set
//!   aside, and ends nobody else.

mod carry_out;
mod decide;
mod fences;
mod handle;
mod input;
mod lanes;
mod list_volumes;
mod notices;
mod overdue;
mod ports;
mod rds_in_doubt;
mod rds_queue;
mod records;
mod request_error;
mod storing;
mod ticket_board;

use std::sync::Arc;
use std::time::Duration;

use cleat_core::{Config, Core, Event, NodeId, Remembered, UnixMillis, VolumeId};
use cleat_rds::Rds;
use cleat_rds::secret::Keys;
use cleat_runtime::readiness::ReadyFlag;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::leadership::Leadership;
use crate::store::{CommitError, Store};

pub use handle::{Engine, Publishing, Unpublishing};
pub(crate) use input::Hello;
pub(crate) use notices::LATE_WRITE;
pub use notices::NoticeText;
pub use ports::Agents;
pub(crate) use rds_queue::rds_failure;
pub(crate) use records::NodeMark;
pub use records::{RecordError, Records, read as read_records, read_what_can_be};
pub use request_error::{EngineEnded, RequestError};
pub(crate) use ticket_board::Stands;

/// Events that may wait for the core. Who sends more waits: a session, an RPC.
const INBOX: usize = 1024;
/// Steps that may wait for the store.
const QUEUE: usize = 1024;
/// Changes that a slow watcher may lag behind before it is sent everything again.
const CHANGES: usize = 1024;

/// A change that watchers are sent, after it has become durable.
#[derive(Debug, Clone)]
pub enum WatchedChange {
    /// A volume's record has changed; it may be gone.
    Volume(VolumeId),
    /// A node, or what it holds, has changed.
    Node(NodeId),
    /// Something happened.
    Notice(Arc<NoticeText>),
}

/// What the engine begins with.
pub struct Start {
    /// Times that decide.
    pub config: Config,
    /// The term: taken in the store, and higher than any that the records show.
    pub term: u64,
    /// What was stored.
    pub records: Records,
    /// Where records go.
    pub store: Arc<dyn Store>,
    /// Up as long as the store takes what it is given in time.
    pub storing: ReadyFlag,
    /// Whether this process leads.
    pub leadership: Leadership,
    /// Where the RDS's host lists are changed.
    pub rds: Arc<dyn Rds>,
    /// How long a change of a host list may take, with all its requests and their turns.
    pub rds_deadline: Duration,
    /// From which secrets are made, where there are any.
    pub secrets: Option<Arc<Keys>>,
    /// How directives reach agents.
    pub agents: Arc<dyn Agents>,
    /// Wall-clock time that never goes back.
    pub clock: Clock,
}

/// Why the engine ended. The process must end too.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// What was decided cannot be made durable.
    #[error("cannot make anything durable; the controller ends")]
    Store(#[source] CommitError),
    /// A record cannot be written down. A defect: every record can.
    #[error("cannot encode the record of volume {volume}")]
    Record {
        /// The volume.
        volume: VolumeId,
        /// The encoder's error.
        #[source]
        source: serde_json::Error,
    },
    /// The same of a node.
    #[error("cannot encode the record of node {node}")]
    Node {
        /// The node.
        node: NodeId,
        /// The encoder's error.
        #[source]
        source: serde_json::Error,
    },
    /// Another controller has granted under a higher term.
    #[error("this controller does not lead any more: {reason}")]
    SteppedDown {
        /// How it is known.
        reason: String,
    },
    /// A task panicked.
    #[error("the engine's {task} task panicked")]
    Panicked {
        /// The task's name.
        task: &'static str,
        /// How the task ended.
        #[source]
        source: tokio::task::JoinError,
    },
}

/// A started engine.
pub struct Started {
    /// The engine's handle.
    pub engine: Engine,
    /// The term under which it grants: the one given, or one above what the records show.
    pub term: u64,
    /// All that changes, from the first on.
    pub changes: broadcast::Receiver<WatchedChange>,
}

/// Starts the engine. The future that is returned ends when `stop` is cancelled and all that was decided has been
/// carried out, or with the error that ends the process.
pub fn start(
    start: Start,
    stop: CancellationToken,
) -> (Started, impl Future<Output = Result<(), EngineError>> + Send + 'static) {
    let Start {
        config,
        term,
        records,
        store,
        storing,
        leadership,
        rds,
        rds_deadline,
        secrets,
        agents,
        clock,
    } = start;
    let (inbox, events) = mpsc::channel(INBOX);
    let (steps, queue) = mpsc::channel(QUEUE);
    let (changes, all_changes) = broadcast::channel(CHANGES);
    let (stalling, stalled) = watch::channel(storing::Stalled::default());
    let Records { volumes: records, unsettled, nodes, desired, unclear, kept, set_aside } = records;
    let unsettled = rds_in_doubt::RdsInDoubt::new(unsettled, rds.settle(), rds_deadline);
    let shown = (fences::Fences::new(&records), overdue::Overdue::new(&records));
    let remembered = Remembered {
        volumes: records,
        nodes: nodes.values().map(|n| n.record.clone()).collect(),
        desired,
        lists_first: true,
    };
    let book = records::Book::new(kept, nodes, set_aside);
    let tickets = ticket_board::TicketBoard::default();
    let engine =
        Engine::new(inbox.clone(), changes.clone(), clock, stalled, book.committed(), tickets.clone());
    let (mut core, mut first) = Core::rebuild(config, term, remembered, clock.now());
    if !unclear.is_empty() {
        first.extend(core.step(clock.now(), Event::DesiredUnclear { nodes: unclear }));
    }
    let term = core.term();
    tokio::spawn(list_volumes::run(Arc::clone(&rds), inbox.clone(), unsettled.clone(), stop.clone()));
    let rds_queue = rds_queue::RdsQueue::new(rds, secrets, inbox, rds_deadline, unsettled.clone());
    let storing = storing::Storing::new(store, storing, stalling, leadership, stop.clone());
    let decider = decide::Decider { core, committed: book.committed(), clock, events, steps };
    let deciding = tokio::spawn(decide::run(decider, first, stop));
    let carrying = tokio::spawn(
        carry_out::Executor::new(
            (storing, book),
            rds_queue,
            agents,
            changes,
            clock,
            (shown, unsettled, tickets),
        )
        .run(queue),
    );
    let ended = async move {
        // `carry_out` ends by itself once `decide` has, and ends early only with an error.
        let carried = carrying.await.map_err(|source| EngineError::Panicked { task: "effects", source })?;
        carried?;
        deciding.await.map_err(|source| EngineError::Panicked { task: "decisions", source })
    };
    (Started { engine, term, changes: all_changes }, ended)
}

/// One step on its way from the core to the world.
struct Decision {
    now: UnixMillis,
    waiter: Option<input::Waiter>,
    effects: Vec<cleat_core::Effect>,
    changed: Option<WatchedChange>,
    /// Once this volume's record is durable; `None`: at once.
    view: Option<(Option<VolumeId>, input::Deliver)>,
}
