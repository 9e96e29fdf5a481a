//! How to reach an RDS: where, as whom, and whom to take for it.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use super::trust::{Trust, TrustError};

/// How to reach an RDS.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its base URL, `https://HOST` or `https://HOST:PORT`.
    pub url: Url,
    /// The RouterOS user.
    pub user: String,
    /// The file that holds the user's password.
    pub password_file: PathBuf,
    /// Whom to take for the RDS.
    pub trust: Trust,
    /// The deadline of one request.
    pub timeout: Duration,
}

/// Why an endpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The URL has another scheme than the trust calls for, or more than host and port.
    #[error("cannot use RDS URL {url}: {rule}")]
    Url {
        /// The URL.
        url: Url,
        /// What it should be.
        rule: &'static str,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The password file cannot be read.
    #[error("cannot read password file {}", path.display())]
    Password {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The HTTP client cannot be made.
    #[error("cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
}
