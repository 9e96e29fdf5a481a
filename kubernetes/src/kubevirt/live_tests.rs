use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::live::{MoverNow, mover_now};
use super::mover::{MoveStage, MoverSeen};
use super::objects_tests::{VM, fixture};
use super::testing::{pair, seen};
use crate::api::{ApiError, ApiServer};
use crate::attachments::{Attachments, usual_name};

const DRIVER: &str = "cleat.io";
const HANDLE: &str = "vol-0";
const NODE: &str = "node-b";
const IN_NAMESPACE: &str = "/apis/kubevirt.io/v1/namespaces/vms";
const CLAIM: &str = "/api/v1/namespaces/vms/persistentvolumeclaims/disk-0";
const PODS: &str = "/api/v1/namespaces/vms/pods";

/// An API server whose watches have nothing to say.
struct Server {
    /// By path; what is not here is not there.
    now: Mutex<BTreeMap<String, (u16, Value)>>,
    /// Each answer takes that long.
    takes: Mutex<Duration>,
    asked: Mutex<Vec<String>>,
}

fn locked<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn list(items: &[Value]) -> (u16, Value) {
    (200, json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "5"}, "items": items}))
}

fn status(code: u16) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "code": code,
    });
    (code, status)
}

impl Server {
    /// A VM on node-a, whose first disk is asked for on node-b, to which it moves.
    fn begin() -> (Arc<Self>, Attachments) {
        let attachment = json!({
            "metadata": {"name": usual_name(HANDLE, DRIVER, NODE)},
            "spec": {"attacher": DRIVER, "nodeName": NODE, "source": {"persistentVolumeName": "pv-vol-0"}},
        });
        let volume = json!({
            "metadata": {"name": "pv-vol-0"},
            "spec": {
                "csi": {"driver": DRIVER, "volumeHandle": HANDLE},
                "claimRef": {"namespace": "vms", "name": "disk-0", "uid": "e1"},
            },
        });
        let claim = json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {"namespace": "vms", "name": "disk-0", "uid": "e1"},
        });
        let path = |kind: &str| format!("{IN_NAMESPACE}/{kind}");
        let now = [
            (
                format!("/apis/storage.k8s.io/v1/volumeattachments/{}", usual_name(HANDLE, DRIVER, NODE)),
                (200, attachment),
            ),
            ("/apis/storage.k8s.io/v1/volumeattachments".into(), list(&[])),
            ("/api/v1/persistentvolumes/pv-vol-0".into(), (200, volume)),
            ("/api/v1/persistentvolumes".into(), list(&[])),
            (CLAIM.into(), (200, claim)),
            (PODS.into(), list(&pair()[..3])),
            (path("virtualmachineinstances"), list(&[fixture!("instance")])),
            (path("virtualmachineinstancemigrations"), list(&[fixture!("migration-pending")])),
        ];
        let (now, takes) = (Mutex::new(now.into()), Mutex::default());
        let server = Arc::new(Self { now, takes, asked: Mutex::default() });
        let answering = Arc::clone(&server);
        let service = tower::service_fn(move |request| Arc::clone(&answering).call(request));
        let api = ApiServer::answered_by(Client::new(service, "default"));
        (server, Attachments::watch(api, DRIVER))
    }

    async fn call(self: Arc<Self>, request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        if query.contains("watch=true") {
            return std::future::pending().await;
        }
        let path = request.uri().path().to_owned();
        locked(&self.asked).push(format!("{path}?{query}"));
        let takes = *locked(&self.takes);
        tokio::time::sleep(takes).await;
        let (code, answer) = locked(&self.now).get(&path).cloned().unwrap_or_else(|| status(404));
        let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
        *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
        Ok(response)
    }

    fn answers(&self, path: &str, answer: (u16, Value)) {
        locked(&self.now).insert(path.to_owned(), answer);
    }

    fn has_no(&self, path: &str) {
        locked(&self.now).remove(path);
    }
}

fn stays() -> MoverSeen {
    MoverSeen::Vm { namespace: "vms".into(), name: "web".into(), uid: VM.into(), migration: None }
}

#[tokio::test]
async fn who_moves_now_is_read_of_the_claims_namespace_alone() {
    let (server, attachments) = Server::begin();
    let moves = MoverSeen::Vm {
        namespace: "vms".into(),
        name: "web".into(),
        uid: VM.into(),
        migration: Some(Box::new(seen(MoveStage::Preparing, None))),
    };
    let now = mover_now(&attachments, HANDLE, NODE).await;
    assert_eq!(now, Ok(MoverNow { answered: false, mover: Some(moves) }));
    let asked = locked(&server.asked).clone();
    let lists: Vec<_> = asked.iter().filter(|asked| asked.contains("/namespaces/")).collect();
    assert_eq!(lists.len(), 4, "the claim, pods, VMs and migrations: {lists:?}");
    assert!(lists.iter().all(|asked| asked.contains("/namespaces/vms/")), "{lists:?}");
    let pods = lists.iter().find(|asked| asked.starts_with(PODS)).unwrap_or(&lists[0]);
    assert!(pods.contains("labelSelector="), "{pods}");

    server.answers(PODS, list(&pair()[..2]));
    let now = mover_now(&attachments, HANDLE, NODE).await;
    assert_eq!(now, Ok(MoverNow { answered: false, mover: Some(stays()) }), "the target pod has gone");
}

#[tokio::test]
async fn a_claim_or_a_request_that_is_not_there_now_has_no_vm() {
    for (case, path, answer) in [
        (
            "another claim of that name",
            CLAIM,
            Some((
                200,
                json!({
                    "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                    "metadata": {"namespace": "vms", "name": "disk-0", "uid": "e9"},
                }),
            )),
        ),
        ("no claim", CLAIM, None),
        ("no PersistentVolume", "/api/v1/persistentvolumes/pv-vol-0", None),
    ] {
        let (server, attachments) = Server::begin();
        match answer {
            Some(answer) => server.answers(path, answer),
            None => server.has_no(path),
        }
        let now = mover_now(&attachments, HANDLE, NODE).await;
        assert_eq!(now, Ok(MoverNow { answered: false, mover: Some(MoverSeen::Nobody) }), "{case}");
    }
}

#[tokio::test]
async fn without_kubevirts_kinds_nothing_moves_and_that_is_no_failure() {
    for kind in ["virtualmachineinstances", "virtualmachineinstancemigrations"] {
        let (server, attachments) = Server::begin();
        server.has_no(&format!("{IN_NAMESPACE}/{kind}"));
        let now = mover_now(&attachments, HANDLE, NODE).await;
        assert_eq!(now, Ok(MoverNow { answered: false, mover: None }), "{kind}");
    }
}

#[tokio::test]
async fn what_the_api_server_does_not_say_is_not_known() {
    for path in [CLAIM.into(), PODS.into(), format!("{IN_NAMESPACE}/virtualmachineinstancemigrations")] {
        let (server, attachments) = Server::begin();
        server.answers(&path, status(403));
        let now = mover_now(&attachments, HANDLE, NODE).await;
        assert!(matches!(now, Err(ApiError::Forbidden(_))), "{path}: {now:?}");
        server.answers(&path, status(500));
        let now = mover_now(&attachments, HANDLE, NODE).await;
        assert!(matches!(now, Err(ApiError::Unanswered(_))), "{path}: {now:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_or_slow_api_server_is_given_up_in_time() {
    // Each answer takes longer than one may, or all of them together do.
    for (takes, least, most) in [(60_000, 2, 4), (2_900, 9, 11)] {
        let (server, attachments) = Server::begin();
        *locked(&server.takes) = Duration::from_millis(takes);
        let began = tokio::time::Instant::now();
        let now = mover_now(&attachments, HANDLE, NODE).await;
        assert!(matches!(now, Err(ApiError::Unanswered(_))), "{now:?}");
        assert!((least..=most).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    }
}
