use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::{Method, Request, Response, StatusCode};
use kube::client::Body;

use super::*;

/// An API server that has one record, and takes down what it was asked. It refuses patches with `patched`, where that is no 200.
struct Server {
    patched: u16,
    asked: Mutex<Vec<Method>>,
}

impl Server {
    async fn call(self: Arc<Self>, request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let method = request.method().clone();
        let code = if method == Method::PATCH { self.patched } else { 200 };
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(method);
        let answer = if code == 200 {
            json!({
                "apiVersion": "cleat.io/v1alpha1", "kind": "CleatVolume",
                "metadata": {"name": "v", "uid": "u", "resourceVersion": "5", "finalizers": [FINALIZER]},
                "spec": spec(7, &value(false)),
            })
        } else {
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "code": code})
        };
        let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
        *response.status_mut() = StatusCode::from_u16(code).unwrap_or_default();
        Ok(response)
    }
}

fn value(unsettled: bool) -> Map<String, Value> {
    json!({"unsettled": unsettled, "record": null}).as_object().cloned().unwrap_or_default()
}

/// What came of a write with a claim that holds for so many questions, and what the API server was asked for it.
async fn written(
    patched: u16,
    there: bool,
    stays: bool,
    claimed: u32,
) -> (Result<Written, WriteError>, Vec<Method>) {
    let server = Arc::new(Server { patched, asked: Mutex::default() });
    let answering = Arc::clone(&server);
    let service = tower::service_fn(move |request| Arc::clone(&answering).call(request));
    let records = ClusterRecords::new(ApiServer::answered_by(Client::new(service, "default")));
    let (was, is) = (value(false), value(true));
    let before = there.then_some(Before { version: 5, value: &was, deleting: false, unguarded: None });
    let write =
        RecordWrite { kind: Kind::Volume, name: "v", before, value: stays.then_some(&is), lets_in: false };
    let questions = AtomicU32::new(0);
    let made = records.write(7, &write, || questions.fetch_add(1, Ordering::Relaxed) < claimed).await;
    let asked = server.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
    (made, asked)
}

#[tokio::test]
async fn without_a_claim_a_write_sends_nothing() {
    for (there, stays) in [(false, true), (true, true), (true, false)] {
        let (made, asked) = written(200, there, stays, 0).await;
        assert_eq!(made, Err(WriteError::NotOurs), "{there} {stays}");
        assert_eq!(asked, Vec::<Method>::new(), "{there} {stays}");
    }
}

#[tokio::test]
async fn a_claim_that_ends_during_a_removal_ends_it_there() {
    let all = [Method::GET, Method::PATCH, Method::DELETE];
    // Before the read, before the finalizer is taken off, before what is left is deleted.
    for (claimed, asked_for) in [(0, &all[..0]), (1, &all[..1]), (2, &all[..2])] {
        let (made, asked) = written(200, true, false, claimed).await;
        assert_eq!((made, asked.as_slice()), (Err(WriteError::NotOurs), asked_for), "{claimed}");
    }
    assert_eq!(written(200, true, false, 3).await, (Ok(Written::GONE), all.to_vec()));
}

#[tokio::test]
async fn a_claim_that_ends_at_a_conflict_sends_no_second_write() {
    let changed = [Method::PATCH, Method::GET];
    let removed = [Method::GET, Method::PATCH, Method::GET];
    for (stays, claimed, asked_for) in [(true, 1, &changed[..]), (false, 2, &removed)] {
        let (made, asked) = written(409, true, stays, claimed).await;
        assert_eq!((made, asked.as_slice()), (Err(WriteError::NotOurs), asked_for), "{stays}");
    }
}
