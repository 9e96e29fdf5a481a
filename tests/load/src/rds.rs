//! An RDS with very many disks, in memory: `rds_sim`'s disks, and its certificate, behind the few requests that a
//! controller makes of them.
//!
//! `rds_sim` itself reads all its disks for each request and writes all of them down at each change, which is right for a few
//! and would be most of what is measured with many. Here a disk is found by its slot or number, and is text already.

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use axum_server::tls_rustls::RustlsConfig;
use rds_sim::disk::{Change, Disk, Version};
use rds_sim::query::Selection;
use rds_sim::reply::{ApiError, Item};
use rds_sim::tls::Identity;
use rds_sim::value::ItemId;
use serde_json::Value;

use crate::scale::{self, Scale};

const VERSION: Version = Version { major: 7, minor: 24 };
/// The number of the first volume's disk; before it is the pool.
const FIRST: u32 = 2;
/// What a list is asked for.
const PROPLIST: &str = ".proplist";

/// One that serves.
pub(crate) struct LoadRds {
    pub(crate) url: String,
    pub(crate) fingerprint: String,
    disks: Arc<Mutex<Disks>>,
}

/// How often it was asked what.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) lists: u64,
    pub(crate) listed_bytes: u64,
    pub(crate) questions: u64,
    pub(crate) changes: u64,
}

struct Disks {
    disks: Vec<Disk>,
    by_slot: HashMap<String, usize>,
    /// The properties that the last list asked for, and each disk's text with those.
    properties: String,
    texts: Vec<Option<String>>,
    asked: Asked,
}

type Shared = Arc<Mutex<Disks>>;

impl LoadRds {
    /// Serves on loopback until the process ends.
    pub(crate) async fn serve(scale: &Scale) -> anyhow::Result<Self> {
        let disks = Arc::new(Mutex::new(Disks::new(scale)));
        let identity = Identity::make(vec!["127.0.0.1".to_owned()]).context("cannot make a certificate")?;
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot serve the RDS")?;
        listener.set_nonblocking(true)?;
        let url = format!("https://{}", listener.local_addr()?);
        let fingerprint = identity.fingerprint()?;
        let router = Router::new()
            .route("/rest/disk", get(list))
            .route("/rest/disk/print", post(print))
            .route("/rest/disk/{id}", patch(change).get(one))
            .route("/rest/system/resource", get(resource))
            .with_state(Arc::clone(&disks));
        let tls = RustlsConfig::from_config(Arc::new(identity.server_config()?));
        let server = axum_server::from_tcp_rustls(listener, tls)?;
        tokio::spawn(server.serve(router.into_make_service()));
        Ok(Self { url, fingerprint, disks })
    }

    /// What it was asked since this was asked last.
    pub(crate) fn take_asked(&self) -> Asked {
        std::mem::take(&mut lock(&self.disks).asked)
    }
}

fn lock(disks: &Mutex<Disks>) -> MutexGuard<'_, Disks> {
    disks.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn list(State(disks): State<Shared>, Query(pairs): Query<Vec<(String, String)>>) -> Response {
    let mut disks = lock(&disks);
    let filters: Vec<&(String, String)> = pairs.iter().filter(|(name, _)| name != PROPLIST).collect();
    let properties = pairs.iter().find(|(name, _)| name == PROPLIST).map(|(_, value)| value.clone());
    let chosen = match filters.as_slice() {
        [] => {
            disks.asked.lists += 1;
            None
        }
        [(name, slot)] if name == "slot" => {
            disks.asked.questions += 1;
            Some(disks.by_slot.get(slot).copied().into_iter().collect())
        }
        _ => return refused("this RDS finds disks by their slot alone"),
    };
    disks.answer(properties.unwrap_or_default(), chosen)
}

/// The disks of some slots: `slot=a`, `slot=b`, `#|`, and so on.
async fn print(State(disks): State<Shared>, Json(body): Json<Value>) -> Response {
    let mut disks = lock(&disks);
    disks.asked.questions += 1;
    let words = body[".query"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let slots = words.filter_map(|word| word.strip_prefix("slot="));
    let chosen = slots.filter_map(|slot| disks.by_slot.get(slot).copied()).collect();
    let properties = match &body[PROPLIST] {
        Value::String(list) => list.clone(),
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
        _ => String::new(),
    };
    disks.answer(properties, Some(chosen))
}

async fn one(State(disks): State<Shared>, Path(id): Path<String>) -> Response {
    let disks = lock(&disks);
    match disks.find(&id) {
        Some(at) => Json(Value::from(disks.disks[at].item(VERSION))).into_response(),
        None => ApiError::not_found().into_response(),
    }
}

async fn change(
    State(disks): State<Shared>,
    Path(id): Path<String>,
    Json(properties): Json<Item>,
) -> Response {
    let mut disks = lock(&disks);
    disks.asked.changes += 1;
    let (Some(at), change) = (disks.find(&id), Change::parse(&properties, VERSION)) else {
        return ApiError::no_such_item().into_response();
    };
    match change {
        Ok(change) => {
            let changed = disks.disks[at].changed(&change);
            let item = changed.item(VERSION);
            disks.disks[at] = changed;
            disks.texts[at] = None;
            Json(Value::from(item)).into_response()
        }
        Err(error) => error.into_response(),
    }
}

async fn resource() -> Response {
    Json(serde_json::json!({"version": "7.24 (stable)", "board-name": "RDS2216"})).into_response()
}

fn refused(why: &str) -> Response {
    ApiError::bad_request(why).into_response()
}

impl Disks {
    fn new(scale: &Scale) -> Self {
        let disks: Vec<Disk> = scale.all().map(|number| disk(scale, number)).collect();
        let by_slot = disks.iter().enumerate().map(|(at, disk)| (disk.slot.clone(), at)).collect();
        let texts = vec![None; disks.len()];
        Self { disks, by_slot, properties: String::new(), texts, asked: Asked::default() }
    }

    fn find(&self, id: &str) -> Option<usize> {
        let number = u32::from_str_radix(id.strip_prefix('*')?, 16).ok()?;
        let at = usize::try_from(number.checked_sub(FIRST)?).ok()?;
        (at < self.disks.len()).then_some(at)
    }

    /// Those, or all, with these properties.
    fn answer(&mut self, properties: String, chosen: Option<Vec<usize>>) -> Response {
        if chosen.is_none() && properties != self.properties {
            self.properties.clone_from(&properties);
            self.texts.fill(None);
        }
        // Who names none gets all.
        let wanted = (!properties.is_empty()).then(|| (PROPLIST.to_owned(), properties));
        let selection = Selection::from_pairs(wanted.into_iter().collect());
        let text = |disk: &Disk| Value::from(selection.project(disk.item(VERSION))).to_string();
        let mut body = String::from("[");
        match chosen {
            Some(chosen) => {
                let texts: Vec<String> = chosen.into_iter().map(|at| text(&self.disks[at])).collect();
                body.push_str(&texts.join(","));
            }
            None => {
                for (disk, kept) in self.disks.iter().zip(&mut self.texts) {
                    if body.len() > 1 {
                        body.push(',');
                    }
                    body.push_str(kept.get_or_insert_with(|| text(disk)));
                }
                self.asked.listed_bytes += body.len() as u64;
            }
        }
        body.push(']');
        ([(CONTENT_TYPE, "application/json")], body).into_response()
    }
}

fn disk(scale: &Scale, number: usize) -> Disk {
    let (slot, is_spare) = (scale::volume(number), number >= scale.volumes);
    // On every list is a host that nobody is.
    let nobody = format!("{}{slot}.{:032x}", cleat_rds::NOBODY, number + 1);
    let host = scale::host_nqn(scale.node_of(number));
    Disk {
        id: ItemId(FIRST + u32::try_from(number).unwrap_or(0)),
        file_path: format!("pool/cleat/{slot}.img"),
        size_bytes: scale::SIZE_BYTES,
        mount_filesystem: false,
        mount_read_only: false,
        compress: false,
        export: !is_spare,
        port: Some(4420),
        nqn: Some(format!("{}{slot}", scale::NQN_PREFIX)),
        allow_host_name: Some(if is_spare { nobody } else { format!("{host},{nobody}") }),
        password: None,
        comment: Some("cleat cluster=one".to_owned()),
        uuid: scale::namespace(number),
        slot,
    }
}
