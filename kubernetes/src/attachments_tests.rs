use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::Value;

use super::*;

#[test]
fn a_volume_attachment_has_the_name_that_kubernetes_gives_it() {
    // getAttachmentName of pkg/volume/csi/csi_attacher.go (1.36): the SHA-256 of "pvc-1cleat.ionode-a".
    assert_eq!(
        usual_name("pvc-1", "cleat.io", "node-a"),
        "csi-ca7c3b2144b6b4da6e06556e73657ac496794c436d8ff0c208431c7726770066"
    );
}

#[test]
fn a_volume_attachment_of_ours_names_its_volume_by_what_was_answered() {
    let object = |attacher: &str| -> VolumeAttachment {
        serde_json::from_value(json!({
            "metadata": {"name": "csi-1"},
            "spec": {"attacher": attacher, "nodeName": "node-a", "source": {"persistentVolumeName": "gone"}},
            "status": {"attached": true, "attachmentMetadata": {VOLUME_KEY: "vol-1"}},
        }))
        .unwrap_or_default()
    };
    let seen = attachment(object("cleat.io"), "cleat.io");
    let all = AllAttachments { attachments: seen.into_iter().collect(), ..AllAttachments::default() };
    assert_eq!(all.attachments.len(), 1);
    assert_eq!(all.volume_of(&all.attachments[0]).0, Some("vol-1"));
    assert_eq!(attachment(object("other.io"), "cleat.io"), None);
}

#[test]
fn a_volume_is_shared_only_where_it_is_read_write_many_and_block() {
    let of = |modes: Value, mode: Value| {
        let spec = json!({
            "accessModes": modes, "volumeMode": mode, "csi": {"driver": "cleat.io", "volumeHandle": "vol-1"},
        });
        let object = json!({"metadata": {"name": "pv-1"}, "spec": spec});
        volume(serde_json::from_value(object).unwrap_or_default(), "cleat.io").map(|seen| seen.shared_block)
    };
    let (many, once) = (json!(["ReadWriteOnce", "ReadWriteMany"]), json!(["ReadWriteOnce"]));
    assert_eq!(of(many.clone(), json!("Block")), Some(true));
    for (modes, mode) in [
        (many.clone(), json!("Filesystem")),
        // Kubernetes takes that for Filesystem.
        (many, Value::Null),
        (once, json!("Block")),
        (json!(["ReadOnlyMany"]), json!("Block")),
        (Value::Null, json!("Block")),
        (Value::Null, Value::Null),
    ] {
        assert_eq!(of(modes.clone(), mode.clone()), Some(false), "{modes} {mode}");
    }
    let other =
        json!({"metadata": {"name": "pv-1"}, "spec": {"csi": {"driver": "other.io", "volumeHandle": "x"}}});
    assert_eq!(volume(serde_json::from_value(other).unwrap_or_default(), "cleat.io"), None);
}

const VOLUME: &str = "pv-1";
const NODE: &str = "node-a";

/// An API server whose list of VolumeAttachments is not what it answers for one of them. Its watches are silent.
struct Server {
    listed: Vec<Value>,
    /// By name; what is not here is not there.
    now: Mutex<BTreeMap<String, Value>>,
}

impl Server {
    async fn call(self: Arc<Self>, request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let list = |kind: &str, items: &[Value]| json!({"apiVersion": "v1", "kind": kind, "metadata": {"resourceVersion": "5"}, "items": items});
        let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default());
        if query.contains("watch=true") {
            return std::future::pending().await;
        }
        let (code, answer) = match path.rsplit_once('/') {
            Some((_, "persistentvolumes")) => (200, list("PersistentVolumeList", &[persistent_volume()])),
            Some((_, "volumeattachments")) => (200, list("VolumeAttachmentList", &self.listed)),
            Some((_, name)) => match self.now.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
                Some(object) => (200, object.clone()),
                None => (404, status(404)),
            },
            None => (400, Value::Null),
        };
        let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
        *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
        Ok(response)
    }

    fn answers(&self, object: Option<Value>) {
        let named = object.into_iter().map(|object| (name_of(&object), object)).collect();
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = named;
    }
}

fn status(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "code": code})
}

fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn persistent_volume() -> Value {
    json!({"metadata": {"name": VOLUME}, "spec": {"csi": {"driver": "cleat.io", "volumeHandle": VOLUME}}})
}

fn asks(name: &str, deleting: bool) -> Value {
    let mut object = json!({
        "metadata": {"name": name},
        "spec": {"attacher": "cleat.io", "nodeName": NODE, "source": {"persistentVolumeName": VOLUME}},
    });
    if deleting {
        object["metadata"]["deletionTimestamp"] = json!("2026-11-30T09:00:00Z");
    }
    object
}

/// Its watch has these VolumeAttachments.
async fn watching(listed: Vec<Value>) -> (Arc<Server>, Attachments) {
    let server = Arc::new(Server { listed, now: Mutex::default() });
    let answering = Arc::clone(&server);
    let service = tower::service_fn(move |request| Arc::clone(&answering).call(request));
    let api = ApiServer::answered_by(Client::new(service, "default"));
    let attachments = Attachments::watch(api, "cleat.io");
    attachments.whole().await;
    (server, attachments)
}

#[tokio::test]
async fn what_only_the_watch_still_has_is_not_wanted() {
    let usual = usual_name(VOLUME, "cleat.io", NODE);
    for name in [usual.as_str(), "by-hand"] {
        let (server, attachments) = watching(vec![asks(name, false)]).await;
        assert_eq!(attachments.wanting(VOLUME), Some(vec![NODE.to_owned()]), "the watch has it");
        assert_eq!(attachments.live(VOLUME, NODE).await, Ok(Live::Nobody), "{name}");
        server.answers(Some(asks(name, true)));
        assert_eq!(attachments.live(VOLUME, NODE).await, Ok(Live::Leaving), "{name}");
        server.answers(Some(asks(name, false)));
        assert_eq!(attachments.live(VOLUME, NODE).await, Ok(Live::Wanted), "{name}");
    }
}

#[tokio::test]
async fn what_the_watch_has_not_seen_yet_is_wanted() {
    let (server, attachments) = watching(Vec::new()).await;
    assert_eq!(attachments.live(VOLUME, NODE).await, Ok(Live::Nobody));
    server.answers(Some(asks(&usual_name(VOLUME, "cleat.io", NODE), false)));
    assert_eq!(attachments.wanting(VOLUME), Some(Vec::new()), "the watch has nothing");
    assert_eq!(attachments.live(VOLUME, NODE).await, Ok(Live::Wanted));
}
