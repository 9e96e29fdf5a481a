//! The test control: plain HTTP on an address of its own, for tests only.
//!
//! In: `GET /state`, `GET|DELETE /requests`, `GET|POST|DELETE /faults`, `POST /portals/down|up`, `POST /uuid`,
//! `POST|DELETE /pretend`, `POST /hold-writes`. Out:
//! JSON. What always holds: the state is what the kernel says at that moment, not what was asked of it; nothing here
//! passes through the faults, so a test can always take them back.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::faults::{Fault, Faults, Requests};
use crate::held;
use crate::pretend::{Pretend, PretendRequest};
use crate::rds::{Hold, Rds, chain};
use crate::reply::ApiError;
use crate::target::{Connection, ObservedSubsystem, Portal, TargetError};
use crate::value::ItemId;

/// A disk as recorded and as the kernel has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Its item id.
    pub id: ItemId,
    /// Its slot.
    pub slot: String,
    /// The NQN that hosts connect to.
    pub nqn: String,
    /// `nvme-tcp-export`, as recorded.
    pub export: bool,
    /// `nvme-tcp-server-allow-host-name`, as recorded.
    pub allow_host_name: Option<String>,
    /// Its namespace's UUID, as recorded.
    pub uuid: Uuid,
    /// Its backing file.
    #[serde(default)]
    pub file: std::path::PathBuf,
    /// How its writes are held, if they are.
    #[serde(default)]
    pub writes_held: Option<held::Hold>,
    /// Why it could not be exported at start.
    pub broken: Option<String>,
    /// The portals that the kernel has linked it to.
    pub linked: Vec<Portal>,
    /// Its subsystem in the kernel, with the host list in force.
    pub subsystem: Option<ObservedSubsystem>,
}

/// Everything that a test may want to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StateReport {
    /// The disks, in the order of their making.
    pub disks: Vec<DiskReport>,
    /// The TCP connections at the portals; which disk one is for, the kernel does not say.
    pub connections: Vec<Connection>,
    /// The portals held down.
    pub holds: Vec<Hold>,
    /// What is only pretended.
    #[serde(default)]
    pub pretends: Vec<Pretend>,
    /// The faults in force.
    pub faults: Vec<Fault>,
    /// What was asked so far.
    pub requests: Requests,
}

/// Another UUID for a disk's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewUuid {
    /// The disk's slot.
    pub slot: String,
    /// The UUID; the pinned one again if absent.
    #[serde(default)]
    pub uuid: Option<Uuid>,
}

/// Reads the state, from the kernel where the kernel has it.
pub fn report(rds: &Rds, faults: &Faults) -> Result<StateReport, TargetError> {
    let mut portals: BTreeSet<Portal> = rds.options.portals.clone();
    let mut disks = Vec::new();
    for disk in rds.records() {
        let observed = rds.target.observe(disk.effective_nqn())?;
        portals.extend(observed.ports.values().filter_map(|port| port.portal));
        let linked =
            observed.ports.values().filter(|port| port.linked).filter_map(|port| port.portal).collect();
        disks.push(DiskReport {
            id: disk.id,
            slot: disk.slot.clone(),
            nqn: disk.effective_nqn().to_owned(),
            export: disk.export,
            allow_host_name: disk.allow_host_name.clone(),
            uuid: disk.uuid,
            file: rds.backing_file(disk),
            writes_held: rds.writes_held.get(&disk.slot).cloned(),
            broken: rds.broken.get(&disk.id).cloned(),
            linked,
            subsystem: observed.subsystem,
        });
    }
    Ok(StateReport {
        disks,
        connections: rds.target.connections(&portals)?,
        holds: rds.holds.iter().cloned().collect(),
        pretends: rds.pretends.iter().copied().collect(),
        faults: faults.list(),
        requests: faults.requests(),
    })
}

#[derive(Clone)]
struct Shared {
    rds: Arc<Mutex<Rds>>,
    faults: Arc<Faults>,
}

/// The test control of a device.
pub fn router(rds: Arc<Mutex<Rds>>, faults: Arc<Faults>) -> Router {
    Router::new()
        .route("/state", get(state))
        .route("/requests", get(requests).delete(reset_requests))
        .route("/faults", get(list_faults).post(add_fault).delete(clear_faults))
        .route("/portals/down", post(|shared, hold| hold_portals(shared, hold, true)))
        .route("/portals/up", post(|shared, hold| hold_portals(shared, hold, false)))
        .route("/uuid", post(set_uuid))
        .route("/pretend", post(pretend).delete(pretend_nothing))
        .route("/hold-writes", post(hold_writes))
        .with_state(Shared { rds, faults })
}

async fn state(State(shared): State<Shared>) -> Response {
    let faults = Arc::clone(&shared.faults);
    match with(shared, move |rds| report(rds, &faults)).await {
        Ok(Ok(report)) => Json(report).into_response(),
        Ok(Err(error)) => failed(&error),
        Err(panicked) => failed(&panicked),
    }
}

async fn requests(State(shared): State<Shared>) -> Json<Requests> {
    Json(shared.faults.requests())
}

async fn reset_requests(State(shared): State<Shared>) -> StatusCode {
    shared.faults.reset_requests();
    StatusCode::NO_CONTENT
}

async fn list_faults(State(shared): State<Shared>) -> Json<Vec<Fault>> {
    Json(shared.faults.list())
}

async fn add_fault(State(shared): State<Shared>, Json(fault): Json<Fault>) -> StatusCode {
    shared.faults.add(fault);
    StatusCode::NO_CONTENT
}

async fn clear_faults(State(shared): State<Shared>) -> StatusCode {
    shared.faults.clear();
    StatusCode::NO_CONTENT
}

async fn hold_portals(State(shared): State<Shared>, Json(hold): Json<Hold>, down: bool) -> Response {
    done(with(shared, move |rds| rds.hold(hold, down)).await)
}

async fn set_uuid(State(shared): State<Shared>, Json(new): Json<NewUuid>) -> Response {
    match with(shared, move |rds| rds.set_uuid(&new.slot, new.uuid)).await {
        Ok(Ok(())) => StatusCode::NO_CONTENT.into_response(),
        Ok(Err(error)) => ApiError::into_response(error),
        Err(panicked) => failed(&panicked),
    }
}

async fn pretend(State(shared): State<Shared>, Json(request): Json<PretendRequest>) -> Response {
    match with(shared, move |rds| rds.pretend(request.pretend)).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(panicked) => failed(&panicked),
    }
}

async fn pretend_nothing(State(shared): State<Shared>) -> Response {
    done(with(shared, Rds::pretend_nothing).await)
}

async fn hold_writes(State(shared): State<Shared>, Json(hold): Json<held::Hold>) -> Response {
    done(with(shared, move |rds| rds.hold_writes(hold)).await)
}

fn done(outcome: Result<Result<(), TargetError>, tokio::task::JoinError>) -> Response {
    match outcome {
        Ok(Ok(())) => StatusCode::NO_CONTENT.into_response(),
        Ok(Err(error)) => failed(&error),
        Err(panicked) => failed(&panicked),
    }
}

async fn with<T: Send + 'static>(
    shared: Shared,
    operation: impl FnOnce(&mut Rds) -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    let locked = move || operation(&mut shared.rds.lock().unwrap_or_else(PoisonError::into_inner));
    tokio::task::spawn_blocking(locked).await
}

fn failed(error: &dyn std::error::Error) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, chain(error)).into_response()
}
