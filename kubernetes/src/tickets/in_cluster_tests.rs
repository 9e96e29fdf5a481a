use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::Value;

use super::*;

const DRIVER: &str = "cleat.io";
const TICKETS: &str = "/apis/cleat.io/v1alpha1/tickets";
const TICKET: &str = "/apis/cleat.io/v1alpha1/namespaces/shop/tickets/nightly";
const CLAIM: &str = "/api/v1/namespaces/shop/persistentvolumeclaims/database";
const PV: &str = "/api/v1/persistentvolumes/pv-1";

/// An API server whose watches have nothing to say.
struct Server {
    /// By path; what is not here is not there.
    now: Mutex<BTreeMap<String, (u16, Value)>>,
    patches: Mutex<Vec<(String, Value)>>,
}

fn locked<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn status(code: u16) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "code": code,
    });
    (code, status)
}

fn ticket(uid: &str) -> Value {
    json!({
        "apiVersion": "cleat.io/v1alpha1", "kind": "Ticket",
        "metadata": {"namespace": "shop", "name": "nightly", "uid": uid, "generation": 2, "resourceVersion": "7"},
        "spec": {"type": "backup", "claim": "database", "holder": "velero"},
    })
}

fn volume(namespace: &str, uid: &str, driver: &str) -> Value {
    json!({
        "metadata": {"name": "pv-1"},
        "spec": {
            "csi": {"driver": driver, "volumeHandle": "vol-1", "volumeAttributes": {"cleat.io/min-fence": "acl"}},
            "accessModes": ["ReadWriteMany"], "volumeMode": "Block",
            "claimRef": {"namespace": namespace, "name": "database", "uid": uid},
        },
    })
}

impl Server {
    fn begin() -> (Arc<Self>, ClusterTickets, Attachments) {
        let list = |items: Value| (200, json!({"metadata": {"resourceVersion": "5"}, "items": items}));
        let claim = json!({
            "metadata": {"namespace": "shop", "name": "database", "uid": "c1"}, "spec": {"volumeName": "pv-1"},
        });
        let now = [
            (TICKETS, list(json!([ticket("t1")]))),
            (TICKET, (200, ticket("t1"))),
            ("/apis/storage.k8s.io/v1/volumeattachments", list(json!([]))),
            ("/api/v1/persistentvolumes", list(json!([volume("shop", "c1", DRIVER)]))),
            (CLAIM, (200, claim)),
            (PV, (200, volume("shop", "c1", DRIVER))),
        ];
        let now = now.map(|(path, answer)| (path.to_owned(), answer));
        let server = Arc::new(Self { now: Mutex::new(now.into()), patches: Mutex::default() });
        let answering = Arc::clone(&server);
        let service = tower::service_fn(move |request| Arc::clone(&answering).call(request));
        let api = ApiServer::answered_by(Client::new(service, "default"));
        (server, ClusterTickets::watch(api.clone()), Attachments::watch(api, DRIVER))
    }

    async fn call(self: Arc<Self>, request: Request<Body>) -> Result<Response<Body>, Infallible> {
        if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
            return std::future::pending().await;
        }
        let (path, is_patch) = (request.uri().path().to_owned(), request.method() == Method::PATCH);
        if is_patch {
            let body = request.into_body().collect_bytes().await.unwrap_or_default();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            locked(&self.patches).push((path.clone(), body));
        }
        let (code, answer) = locked(&self.now).get(&path).cloned().unwrap_or_else(|| status(404));
        let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
        *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
        Ok(response)
    }

    fn answers(&self, path: &str, answer: (u16, Value)) {
        locked(&self.now).insert(path.to_owned(), answer);
    }
}

async fn listed(tickets: &ClusterTickets, attachments: &Attachments) -> Vec<Arc<TicketSeen>> {
    let mut changes = tickets.changes();
    let all = async {
        attachments.whole().await;
        loop {
            if let Some(all) = tickets.all() {
                return all;
            }
            changes.changed().await.expect("it goes on");
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("in time")
}

fn of(subject: Value) -> TicketObject {
    let mut object = ticket("t1");
    object["spec"] = subject;
    object["spec"]["type"] = json!("backup");
    object["spec"]["holder"] = json!("h");
    TicketObject::read(&serde_json::from_value(object).expect("an object")).expect("a ticket")
}

#[tokio::test]
async fn a_ticket_is_about_the_volume_of_a_claim_of_its_namespace() {
    let (server, tickets, attachments) = Server::begin();
    let all = listed(&tickets, &attachments).await;
    assert_eq!((all.len(), all[0].uid.as_str(), all[0].generation), (1, "t1", 2));
    let wanted = VolumeWanted {
        handle: "vol-1".into(),
        shared_block: true,
        attributes: [("cleat.io/min-fence".to_owned(), "acl".to_owned())].into(),
    };
    for subject in [json!({"claim": "database"}), json!({"volume": "vol-1"})] {
        let found = tickets.volume_of(&of(subject.clone()), &attachments).await;
        assert_eq!(found, Ok(Ok(wanted.clone())), "{subject}");
    }
    server.answers(CLAIM, status(503));
    let found = tickets.volume_of(&of(json!({"claim": "database"})), &attachments).await;
    assert!(matches!(found, Err(ApiError::Unanswered(_))), "nothing is known: {found:?}");
}

#[tokio::test]
async fn a_claim_that_only_says_so_has_no_volume() {
    let (server, tickets, attachments) = Server::begin();
    listed(&tickets, &attachments).await;
    let reason = async |subject: Value| {
        let found = tickets.volume_of(&of(subject), &attachments).await;
        found.expect("an answer").expect_err("no volume").reason()
    };
    let (claim, by_id) = (json!({"claim": "database"}), json!({"volume": "vol-1"}));
    // Another namespace's, an earlier claim of that name, and another driver's.
    for (now, of_claim) in [
        (volume("bank", "c1", DRIVER), "ClaimNotBound"),
        (volume("shop", "c0", DRIVER), "ClaimNotBound"),
        (volume("shop", "c1", "other.io"), "OtherDriver"),
    ] {
        server.answers(PV, (200, now));
        assert_eq!(reason(claim.clone()).await, of_claim);
        assert_eq!(reason(by_id.clone()).await, "VolumeNotOfNamespace");
    }
    server.answers(PV, (200, volume("shop", "c1", DRIVER)));
    assert_eq!(reason(json!({"volume": "vol-2"})).await, "VolumeNotOfNamespace");
    let unbound = json!({"metadata": {"namespace": "shop", "name": "database", "uid": "c1"}, "spec": {}});
    server.answers(CLAIM, (200, unbound));
    assert_eq!(reason(claim.clone()).await, "ClaimNotBound");
    server.answers(CLAIM, status(404));
    assert_eq!(reason(claim).await, "ClaimNotFound");
    assert_eq!(reason(by_id).await, "VolumeNotOfNamespace", "the claim is deleted, and its volume is left");
}

#[tokio::test]
async fn a_status_is_for_the_object_that_was_seen_and_its_version() {
    let (server, tickets, attachments) = Server::begin();
    let seen = listed(&tickets, &attachments).await.remove(0);
    let said = TicketStatus { observed_generation: 2, ..TicketStatus::default() };
    let path = format!("{TICKET}/status");
    server.answers(&path, (200, ticket("t1")));
    assert_eq!(tickets.answer(&seen, &said).await, Ok(()));
    server.answers(&path, status(409));
    assert_eq!(tickets.answer(&seen, &said).await, Err(ApiError::Conflict));
    let patches = locked(&server.patches).clone();
    assert!(patches.iter().all(|(at, _)| *at == path), "{patches:?}");
    assert_eq!(patches[0].1["metadata"], json!({"uid": "t1", "resourceVersion": "7"}));
    assert_eq!(patches[0].1["status"], said.patch()["status"]);

    assert_eq!(tickets.now(&seen).await.map(|now| now.map(|now| now.uid)), Ok(Some(seen.uid.clone())));
    server.answers(TICKET, (200, ticket("t2")));
    assert_eq!(tickets.now(&seen).await, Ok(None), "one that was made again is another");
}
