//! What stands in the place of HTTP where there is no network, as in a simulation.
//!
//! In come requests as they would go out; out go answers as they would come in, or that there was none. Everything
//! else of the client (turns, deadlines, reads before and after each write, writes in doubt) is the one that ships.

use std::fmt;

use reqwest::StatusCode;
use serde_json::{Map, Value};

use super::error::Way;

/// One request on its way out.
#[derive(Clone, Copy, Debug)]
pub struct OutgoingRequest<'a> {
    /// Its method, such as `PATCH`.
    pub method: &'a str,
    /// Below `/rest`, such as `disk/*1F`.
    pub path: &'a str,
    /// Which items, and what of them.
    pub query: &'a [(&'static str, String)],
    /// Properties to set. A password may be among them.
    pub body: Option<&'a Map<String, Value>>,
}

/// Brings requests to an RDS, and its answers back.
#[async_trait::async_trait]
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// Brings one, and its answer: status and body. It is dropped where nobody waits for the answer any more;
    /// what was sent may take effect all the same.
    ///
    /// # Errors
    /// Which part of the way failed.
    async fn exchange(&self, request: OutgoingRequest<'_>) -> Result<(StatusCode, Vec<u8>), Way>;
}
