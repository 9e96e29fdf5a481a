//! What the REST API answers: items, lists, and errors in RouterOS' shape.
//!
//! In: typed outcomes of an operation. Out: HTTP status and JSON. An error body's `error` is the one number in the
//! whole API (observed); `detail` is there on 400 and 500, and absent on 401 and on a GET of an unknown id
//! (observed on 7.23), while facts collected elsewhere show a 404 with `no such item`. Both forms occur here.
//!
//! PUT is answered by 201, DELETE by 204 (as MikroTik documents them); published surveys also report 200 for both,
//! so a client has to take any 2xx.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

/// One item: property names to strings.
pub type Item = Map<String, Value>;

/// A successful answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// A list of items, `[]` when there is none.
    List(Vec<Item>),
    /// One item.
    One(Item),
    /// One item, just made (PUT).
    Created(Item),
    /// Nothing to say (DELETE).
    Empty,
    /// What a console command returned, such as the new id of `add`.
    Returned(String),
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        match self {
            Self::List(items) => Json(items).into_response(),
            Self::One(item) => Json(item).into_response(),
            Self::Created(item) => (StatusCode::CREATED, Json(item)).into_response(),
            Self::Empty => StatusCode::NO_CONTENT.into_response(),
            Self::Returned(value) => Json(json!({ "ret": value })).into_response(),
        }
    }
}

/// A refusal or failure, in RouterOS' shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {}", detail.as_deref().unwrap_or("no detail"))]
pub struct ApiError {
    status: StatusCode,
    detail: Option<String>,
}

impl ApiError {
    /// 400 with the console's complaint.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, detail: Some(detail.into()) }
    }

    /// 404 as a GET of an unknown id gives it: without a detail.
    pub fn not_found() -> Self {
        Self { status: StatusCode::NOT_FOUND, detail: None }
    }

    /// 404 as PATCH and DELETE of an unknown id give it.
    pub fn no_such_item() -> Self {
        Self { status: StatusCode::NOT_FOUND, detail: Some("no such item".to_owned()) }
    }

    /// 401, for missing and for wrong credentials alike.
    pub fn unauthorised() -> Self {
        Self { status: StatusCode::UNAUTHORIZED, detail: None }
    }

    /// 406, which RouterOS answers to a method that a path does not have.
    pub fn not_acceptable(detail: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_ACCEPTABLE, detail: Some(detail.into()) }
    }

    /// 500 with an internal failure's text.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, detail: Some(detail.into()) }
    }

    /// 501, which RouterOS answers to HEAD.
    pub fn not_implemented() -> Self {
        Self { status: StatusCode::NOT_IMPLEMENTED, detail: None }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What the console complained about, where it says.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut body = json!({
            "error": self.status.as_u16(),
            "message": self.status.canonical_reason().unwrap_or("Unknown"),
        });
        if let Some(detail) = &self.detail {
            body["detail"] = Value::from(detail.as_str());
        }
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            // The realm is assumed; clients that send credentials unasked never see it.
            let realm = HeaderValue::from_static("Basic realm=\"RouterOS\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, realm);
        }
        response
    }
}
