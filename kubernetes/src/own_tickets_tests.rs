use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::Value;

use super::*;

/// What is asked: a method, a path and a body.
type Asked = Vec<(Method, String, Value)>;

/// Tickets of the namespace `shop`, of an API server that answers everything like this; and what it was asked.
fn tickets(code: u16, answer: Value) -> (OwnTickets, Arc<Mutex<Asked>>) {
    let asked = Arc::new(Mutex::new(Asked::new()));
    let notes = Arc::clone(&asked);
    let service = tower::service_fn(move |request: Request<Body>| {
        let (notes, answer) = (Arc::clone(&notes), answer.to_string());
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap_or_default();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            let one = (parts.method, parts.uri.path().to_owned(), body);
            notes.lock().unwrap_or_else(PoisonError::into_inner).push(one);
            let mut response = Response::new(Body::from(answer.into_bytes()));
            *response.status_mut() = StatusCode::from_u16(code).unwrap_or_default();
            Ok::<_, Infallible>(response)
        }
    });
    let server = ApiServer::answered_by(Client::new(service, "default"));
    (OwnTickets { server, namespace: "shop".into() }, asked)
}

fn asked(of: &Arc<Mutex<Asked>>) -> (Method, String, Value) {
    of.lock().unwrap_or_else(PoisonError::into_inner).remove(0)
}

fn refusal(code: u16, reason: &str, details: Value) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "so it is", "reason": reason,
        "code": code, "details": details,
    })
}

fn object(uid: &str) -> Value {
    json!({
        "apiVersion": "cleat.io/v1alpha1", "kind": "Ticket",
        "metadata": {"namespace": "shop", "name": "run-1", "uid": uid, "generation": 1},
    })
}

fn wish() -> OwnWish {
    OwnWish {
        volume: "pvc-1".into(),
        kind: "backup".into(),
        node: "node-a".into(),
        holder: "me".into(),
        renew_seconds: 30,
    }
}

const TICKET: &str = "/apis/cleat.io/v1alpha1/namespaces/shop/tickets/run-1";

#[tokio::test]
async fn a_refusal_says_what_it_is_about_and_what_to_do() {
    let about_tickets = json!({"group": "cleat.io", "kind": "tickets"});
    let goes = json!({
        "name": "run-1", "group": "cleat.io", "kind": "tickets",
        "causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace", "message": "it goes"}],
    });
    let no_namespace = json!({"name": "shop", "kind": "namespaces"});
    for (answer, error, says) in [
        (
            refusal(404, "NotFound", no_namespace),
            NotMade::NoNamespace("shop".into()),
            "no namespace shop; name",
        ),
        (refusal(404, "NotFound", json!({})), NotMade::NoKind, "does not know tickets"),
        (refusal(403, "Forbidden", goes), NotMade::NamespaceGoes("shop".into()), "is being deleted"),
        (
            refusal(403, "Forbidden", about_tickets.clone()),
            NotMade::NotAllowed { namespace: "shop".into(), why: "so it is".into() },
            "cleat-tickets-edit granted in namespace shop",
        ),
        (
            refusal(409, "AlreadyExists", about_tickets.clone()),
            NotMade::NameTaken { namespace: "shop".into(), name: "run-1".into() },
            "left as it is",
        ),
        (
            refusal(422, "Invalid", about_tickets),
            NotMade::Api(ApiError::Refused("so it is".into())),
            "refuses: so it is",
        ),
    ] {
        let code = answer["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or_default();
        let (tickets, _) = tickets(code, answer);
        let refused = tickets.make("run-1", &wish()).await;
        assert_eq!(refused, Err(error.clone()));
        assert!(error.to_string().contains(says) && error.is_certain(), "{error}");
    }
    let (tickets, _) = tickets(503, refusal(503, "ServiceUnavailable", json!({})));
    let unanswered = tickets.make("run-1", &wish()).await;
    assert!(unanswered.is_err_and(|error| !error.is_certain()), "it may have been made");
}

#[tokio::test]
async fn a_renewal_and_a_deletion_are_of_the_ticket_that_was_made() {
    let (tickets, requests) = tickets(200, object("u1"));
    let made = tickets.make("run-1", &wish()).await;
    assert_eq!(made, Ok(OwnTicket { uid: "u1".into(), generation: 1 }));
    let (_, _, sent) = asked(&requests);
    assert_eq!(sent["spec"]["renewSeconds"], 30);

    assert_eq!(tickets.renew("run-1", "u1", 0).await, Ok(()));
    let (method, path, sent) = asked(&requests);
    assert_eq!((method, path.as_str()), (Method::PATCH, TICKET));
    let renewed = json!({"uid": "u1", "annotations": {RENEWED: "1970-01-01T00:00:00Z"}});
    assert_eq!(sent, json!({"metadata": renewed}), "and nothing else");

    assert_eq!(tickets.delete("run-1", Some("u1")).await, Ok(()));
    let (method, path, sent) = asked(&requests);
    assert_eq!((method, path.as_str()), (Method::DELETE, TICKET));
    assert_eq!(sent["preconditions"], json!({"uid": "u1"}));
}

#[tokio::test]
async fn another_ones_ticket_of_the_name_leaves_nothing_to_delete() {
    let (there, _) = tickets(409, refusal(409, "Conflict", json!({})));
    assert_eq!(there.delete("run-1", Some("u1")).await, Ok(()));
    assert_eq!(there.delete("run-1", None).await, Err(ApiError::Conflict));
    let (gone, _) = tickets(404, refusal(404, "NotFound", json!({})));
    assert_eq!(gone.delete("run-1", Some("u1")).await, Ok(()));
}
