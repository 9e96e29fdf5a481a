//! How to reach an RDS: where it is, which user logs in, and what proves that it is the one.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use super::trust::{Trust, TrustError};

/// Where an RDS is, and how to log in to it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its base URL, `https://HOST` or `https://HOST:PORT`.
    pub url: Url,
    /// The RouterOS user that requests log in as.
    pub user: String,
    /// The file with the user's password.
    pub password_file: PathBuf,
    /// What proves that the server is the RDS.
    pub trust: Trust,
    /// The deadline of one request, from its turn to its answer.
    pub timeout: Duration,
}

/// Why an endpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The URL has another scheme than the trust allows, or more than host and port.
    #[error("cannot use RDS URL {url}: {rule}")]
    Url {
        /// The URL that was given.
        url: Url,
        /// The form that it must have.
        rule: &'static str,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The password file cannot be read.
    #[error("cannot read password file {}", path.display())]
    Password {
        /// The password file that was named.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The HTTP client cannot be made.
    #[error("cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
}
