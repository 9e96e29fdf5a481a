//! The attachment state machine of Cleat.
//!
//! One function in spirit: [`Core::step`]`(event) -> effects`. Everything that decides who may use a volume lives
//! here; everything that touches the world is an [`Effect`], carried out by the shell, whose result comes back as
//! an [`Event`]. Time comes in with each event. There is no I/O, no clock, no task and no lock in this crate, so
//! the code that is tested against a model of the world is the code that ships.
//!
//! What the shell owes the core:
//! - events one at a time, with `now` never going back;
//! - the effects of one step in their order; [`Effect::Persist`] and [`Effect::Forget`] are durable before any
//!   later effect of that step begins, and if they cannot be made durable the process ends;
//! - an answer to each RDS effect ([`Event::RdsDone`]), and a [`Event::Tick`] at least every second.
//!
//! What always holds (checked over the *world* in `tests/world/`, not over this crate's opinion):
//! 1. RWO: never two nodes that can write. RWX block: never three.
//! 2. A successful Unpublish of a node means that it cannot write and that nothing it wrote is still on its way.
//! 3. No old epoch, doubled or reordered message changes who can write.
//! 4. After a crash, [`Core::rebuild`] admits nobody that was not admitted and forgets nobody that may still write.
//! 5. Every request ends: granted, refused with a reason, or refused naming what it waited for.

mod core;
mod counting;
mod device;
mod evidence;
mod fence;
mod ids;
mod io;
mod migration;
mod node;
mod notice;
mod rds;
mod refusal;
mod rung_result;
mod session_refusal;
mod tickets;
mod trouble;
mod vm_migration;
mod volume;
mod wait;
mod wanted;

pub use crate::core::{Config, Core, Desired, Remembered, Waiting};
pub use device::{DeviceDifference, DeviceIdentity, DeviceShown};
pub use evidence::{Drained, Evidence, Source, Statement, Verdict};
pub use fence::{Fence, FenceStep, Fenced, MinFence, ReservationAbility, Rung, TargetAbilities, Tried};
pub use ids::{
    BootId, Epoch, HostId, HostNqn, IdError, MigrationUid, NamespaceUuid, Nguid, NodeId, NodeUid,
    OperationId, Portal, RequestId, SessionId, StorageAddress, SubsystemNqn, TicketId, UnixMillis, VolumeId,
};
pub use io::{
    Absence, Deleted, Directive, Effect, Event, Grant, ListedVolume, Observed, ObservedPhase, Outcome, Reply,
    VolumeDeletion,
};
pub(crate) use migration::Taken;
pub use migration::{Migration, MigrationResult, MigrationStep, Side, StepTaken, SwitchoverBy};
pub use node::{
    Node, NodeIdentity, NodeRecord, NodeSeen, QuarantineCause, SessionState, Standing, StoredNode,
};
pub use notice::Notice;
pub use rds::{RdsFailure, RdsRequest};
pub use refusal::{Difference, Overtaking, Refusal};
pub use session_refusal::{Claim, PinHolds, SessionRefusal};
pub use tickets::{InterruptedBy, Interruption, Ticket, TicketStanding, TicketType, TicketWait};
pub use trouble::{LaterTerm, NodeTrouble, OlderBy, RdsTask, Trouble};
pub use vm_migration::{VmMigration, VmRef, VmStage};
pub use volume::{Access, Attachment, DrainCause, Phase, Role, SecretState, VolumeRecord, VolumeSpec};
pub use wait::{
    Agent, AttachmentWait, BoundCause, Condition, ExportFence, Heard, HolderWait, ListDoubt, Wait,
};
pub use wanted::{Wanted, WantedTicket};
