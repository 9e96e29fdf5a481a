//! What takes the place of HTTP where there is no network, as in a simulation.
//!
//! Comes in: requests as they would be sent. Goes out: answers as they would arrive, or that there was none.
//! The rest of the client (turns, deadlines, reads before and after each write, writes in doubt) is the one
//! that ships.

use std::fmt;

use reqwest::StatusCode;
use serde_json::{Map, Value};

use super::error::Way;

/// One request as it would be sent.
#[derive(Clone, Copy, Debug)]
pub struct OutgoingRequest<'a> {
    /// Its method, such as `PATCH`.
    pub method: &'a str,
    /// The part after `/rest/`, such as `disk/*1F`.
    pub path: &'a str,
    /// Selects items and properties, by RouterOS' names.
    pub query: &'a [(&'static str, String)],
    /// Properties to set, one of which may be a password; `None` for a read or a deletion.
    pub body: Option<&'a Map<String, Value>>,
}

/// Carries requests to an RDS, and its answers back.
#[async_trait::async_trait]
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// Carries one request, and its answer: status and body. The future is dropped where nobody waits for the
    /// answer any more; what was sent may take effect all the same.
    ///
    /// # Errors
    /// Which part of the way failed.
    async fn exchange(&self, request: OutgoingRequest<'_>) -> Result<(StatusCode, Vec<u8>), Way>;
}
