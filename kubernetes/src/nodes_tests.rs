use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::*;

const SHUT_DOWN: &str = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute";

/// An API server whose one watch says something once, when it is let.
struct Server {
    /// By path; what is not here is not there.
    now: BTreeMap<String, Value>,
    to_say: Mutex<Vec<Value>>,
    goes_on: Notify,
    asked: Mutex<Vec<String>>,
}

fn locked<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    async fn call(self: Arc<Self>, request: Request<Body>) -> Result<Response<Body>, Infallible> {
        if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
            self.goes_on.notified().await;
            let said = std::mem::take(&mut *locked(&self.to_say));
            let lines: String = said.iter().map(|event| format!("{event}\n")).collect();
            return Ok(Response::new(Body::from(lines.into_bytes())));
        }
        locked(&self.asked).push(request.uri().path().to_owned());
        let not_found = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "code": 404,
        });
        let found = self.now.get(request.uri().path());
        let mut response = Response::new(Body::from(found.unwrap_or(&not_found).to_string().into_bytes()));
        if found.is_none() {
            *response.status_mut() = http::StatusCode::NOT_FOUND;
        }
        Ok(response)
    }
}

fn tainted(name: &str, taints: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "resourceVersion": "6"},
        "spec": {"taints": taints},
    })
}

fn shut_down() -> Value {
    json!([{"key": OUT_OF_SERVICE, "value": "nodeshutdown", "effect": "NoExecute"}])
}

fn node(taints: Value) -> Node {
    serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"taints": taints}})).unwrap_or_default()
}

async fn until(nodes: &Nodes, marked: &[&str]) {
    let mut changes = nodes.changes();
    let seen = async {
        while nodes.marked().is_none_or(|now| now != marked) {
            changes.changed().await.expect("it goes on");
        }
    };
    tokio::time::timeout(Duration::from_secs(60), seen).await.expect("in time");
}

#[test]
fn a_node_is_marked_by_that_taint_alone_and_not_by_ours() {
    let taint = |key: &str, value: &str| json!({"key": key, "value": value, "effect": "NoExecute"});
    let shown = |taints| mark(&node(taints));
    assert_eq!(
        shown(json!([taint("x", "y"), taint(OUT_OF_SERVICE, "nodeshutdown")])).as_deref(),
        Some(SHUT_DOWN)
    );
    assert_eq!(shown(json!([taint(OUT_OF_SERVICE, OURS)])), None);
    for other in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        assert_eq!(shown(json!([taint(other, "")])), None);
    }
    assert_eq!(mark(&Node::default()), None);
}

#[tokio::test(start_paused = true)]
async fn a_mark_is_seen_by_the_watch_and_read_once_more_of_its_node_alone() {
    // The mark of "b" was taken back since, and "c" is not there any more.
    let listed = json!([tainted("a", &json!([])), tainted("b", &shut_down()), tainted("c", &shut_down())]);
    let now = [
        ("/api/v1/nodes", json!({"metadata": {"resourceVersion": "5"}, "items": listed})),
        ("/api/v1/nodes/a", tainted("a", &shut_down())),
        ("/api/v1/nodes/b", tainted("b", &json!([]))),
    ];
    let says = |what: &str, node: Value| json!({"type": what, "object": node});
    let to_say = vec![
        says("MODIFIED", tainted("a", &shut_down())),
        says("MODIFIED", tainted("b", &json!([]))),
        says("DELETED", tainted("c", &shut_down())),
    ];
    let server = Arc::new(Server {
        now: now.map(|(path, answer)| (path.to_owned(), answer)).into(),
        to_say: Mutex::new(to_say),
        goes_on: Notify::new(),
        asked: Mutex::default(),
    });
    let answering = Arc::clone(&server);
    let service = tower::service_fn(move |request| Arc::clone(&answering).call(request));
    let nodes = Nodes::watch(ApiServer::answered_by(Client::new(service, "default")));
    assert_eq!(nodes.marked(), None, "nothing was listed yet");
    until(&nodes, &["b", "c"]).await;
    for gone in ["b", "c"] {
        assert_eq!(nodes.mark_now(gone).await, Ok(None), "{gone}");
    }
    server.goes_on.notify_one();
    until(&nodes, &["a"]).await;
    assert_eq!(nodes.mark_now("a").await.unwrap_or_default().as_deref(), Some(SHUT_DOWN));
    let lists = locked(&server.asked).iter().filter(|path| *path == "/api/v1/nodes").count();
    assert_eq!(lists, 1, "all of them are read once, and not at each look");
}
