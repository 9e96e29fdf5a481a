//! A RouterOS in memory, as far as these tests need one, with faults on demand: lost, late and odd answers.

use std::sync::{Arc, Mutex};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;

/// What happens to the next request that matches.
#[derive(Clone)]
pub(super) enum Fault {
    /// It is carried out, and its answer never comes.
    LoseAnswer,
    /// It is carried out only once notified; its answer never comes.
    Late(Arc<Notify>),
    /// It waits until notified, then goes on as usual.
    Hold(Arc<Notify>),
    /// It is not carried out, and gets this answer.
    Answer(u16, &'static str),
}

#[derive(Default)]
pub(super) struct Router {
    pub(super) disks: Mutex<Vec<Map<String, Value>>>,
    pub(super) files: Mutex<Vec<Map<String, Value>>>,
    pub(super) password: Mutex<String>,
    /// Every request as it came: `PATCH disk/*1 nvme-tcp-export=no`.
    pub(super) log: Mutex<Vec<String>>,
    /// After each write: who could connect to each volume, by the rule that an empty list admits all.
    pub(super) admitted: Mutex<Vec<String>>,
    /// Slots that the list of disks lacks, although the disks are there.
    pub(super) lacking: Mutex<Vec<String>>,
    faults: Mutex<Vec<(&'static str, Fault)>>,
    ids: Mutex<u32>,
    pub(super) arrived: Notify,
}

impl Router {
    /// Does this to the next request whose log line begins so.
    pub(super) fn fault(&self, begins: &'static str, fault: Fault) {
        self.faults.lock().unwrap().push((begins, fault));
    }

    pub(super) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    /// The disk in this slot.
    pub(super) fn disk(&self, slot: &str) -> Option<Map<String, Value>> {
        self.disks.lock().unwrap().iter().find(|disk| disk["slot"] == slot).cloned()
    }

    pub(super) fn add_disk(&self, properties: Value) -> Map<String, Value> {
        let mut disk = properties.as_object().unwrap().clone();
        disk.insert(".id".into(), json!(self.next_id()));
        let size = disk.get("file-size").cloned().unwrap_or(json!("1"));
        disk.insert("size".into(), size);
        if let Some(path) = disk.get("file-path").and_then(Value::as_str) {
            self.add_file(path.trim_start_matches('/'));
        }
        self.disks.lock().unwrap().push(disk.clone());
        disk
    }

    pub(super) fn add_file(&self, name: &str) {
        let id = self.next_id();
        let mut files = self.files.lock().unwrap();
        if !files.iter().any(|file| file["name"] == name) {
            let file = json!({".id": id, "name": name, "type": "file"});
            files.push(file.as_object().unwrap().clone());
        }
    }

    fn next_id(&self) -> String {
        let mut ids = self.ids.lock().unwrap();
        *ids += 1;
        format!("*{:X}", *ids)
    }

    /// Serves on the loopback; gives the port.
    pub(super) async fn serve(self: Arc<Self>) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, self.app()).await.unwrap() });
        port
    }

    pub(super) fn app(self: Arc<Self>) -> axum::Router {
        axum::Router::new().fallback(answer).with_state(self)
    }

    fn authorised(&self, request: &Request) -> bool {
        use base64::Engine as _;
        let expected = format!("cleat:{}", self.password.lock().unwrap());
        let expected = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(expected));
        request.headers().get(header::AUTHORIZATION).is_some_and(|found| found == expected.as_str())
    }

    fn carry_out(&self, method: &Method, path: &str, query: &str, body: &Map<String, Value>) -> Response {
        let (menu, item) = path.split_once('/').map_or((path, None), |(menu, item)| (menu, Some(item)));
        if path == "system/resource" {
            return axum::Json(json!({"version": "7.24 (stable)", "board-name": "RDS2216"})).into_response();
        }
        if *method == Method::PUT {
            if self.disk(body["slot"].as_str().unwrap()).is_some() {
                return error(400, "failure: slot already in use");
            }
            return (StatusCode::CREATED, axum::Json(self.add_disk(json!(body)))).into_response();
        }
        let items = if menu == "disk" { &self.disks } else { &self.files };
        let mut items = items.lock().unwrap();
        let Some(item) = item else {
            let asked = |key: &str| {
                let value = query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
                value.map(|value| value.replace("%2F", "/"))
            };
            let (name, slot) = (asked("name"), asked("slot"));
            let is = |item: &Map<String, Value>, key: &str, value: &Option<String>| {
                value.as_ref().is_none_or(|value| item.get(key).and_then(Value::as_str) == Some(value))
            };
            let mut found: Vec<_> = items
                .iter()
                .filter(|item| is(item, "name", &name) && is(item, "slot", &slot))
                .cloned()
                .collect();
            if menu == "disk" && slot.is_none() {
                let lacking = self.lacking.lock().unwrap();
                found.retain(|disk| !lacking.iter().any(|slot| disk["slot"] == **slot));
                // What the files are on.
                found.extend(json!({".id": "*FF", "slot": "pool", "type": "raid"}).as_object().cloned());
            }
            return axum::Json(&found).into_response();
        };
        let Some(place) = items.iter().position(|found| found[".id"] == item) else {
            return error(404, "no such item");
        };
        if *method == Method::GET {
            return axum::Json(&items[place]).into_response();
        }
        if *method == Method::DELETE {
            items.remove(place);
            return StatusCode::NO_CONTENT.into_response();
        }
        items[place].extend(body.clone());
        self.note_admitted(&items[place]);
        axum::Json(&items[place]).into_response()
    }

    fn note_admitted(&self, disk: &Map<String, Value>) {
        let exported = disk["nvme-tcp-export"] == "yes";
        let list = disk.get("nvme-tcp-server-allow-host-name").and_then(Value::as_str).unwrap_or("");
        let who = match (exported, list) {
            (false, _) => "nobody",
            (true, "") => "EVERYBODY",
            (true, list) => list,
        };
        self.admitted.lock().unwrap().push(who.to_owned());
    }
}

fn error(status: u16, detail: &str) -> Response {
    let body = json!({"error": status, "message": "Message", "detail": detail});
    (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response()
}

async fn answer(State(router): State<Arc<Router>>, request: Request) -> Response {
    let authorised = router.authorised(&request);
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().strip_prefix("/rest/").unwrap().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let body: Map<String, Value> =
        if body.is_empty() { Map::new() } else { serde_json::from_slice(&body).unwrap() };
    let mut line = format!("{} {path}", parts.method);
    if parts.method == Method::PATCH {
        for (name, value) in &body {
            line += &format!(" {name}={}", value.as_str().unwrap());
        }
    }
    router.log.lock().unwrap().push(line.clone());
    router.arrived.notify_waiters();
    let fault = {
        let mut faults = router.faults.lock().unwrap();
        let place = faults.iter().position(|(begins, _)| line.starts_with(begins));
        place.map(|place| faults.remove(place).1)
    };
    match &fault {
        Some(Fault::Hold(until)) => until.notified().await,
        Some(Fault::Answer(status, body)) => {
            return (StatusCode::from_u16(*status).unwrap(), Body::from(*body)).into_response();
        }
        _ => {}
    }
    if !authorised {
        return error(401, "");
    }
    if let Some(Fault::Late(when)) = fault {
        // The client hangs up and with it this handler ends: what is late must outlive it.
        let router = Arc::clone(&router);
        tokio::spawn(async move {
            when.notified().await;
            router.carry_out(&parts.method, &path, &query, &body);
        });
        return std::future::pending().await;
    }
    let answer = router.carry_out(&parts.method, &path, &query, &body);
    if matches!(fault, Some(Fault::LoseAnswer)) {
        return std::future::pending().await;
    }
    answer
}
