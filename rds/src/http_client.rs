//! The HTTP client to the RDS, and what it accepts as the RDS.
//!
//! Comes in: a [`Trust`] and the deadline of a request. Goes out: a client whose connections depend on the CA
//! file as it was last read. Always holds: a changed file, or the end of the certificate that the RDS has
//! shown, ends the connections that depend on it once their requests have ended. A file that cannot be used
//! changes nothing. No session is resumed, so each connection has seen a certificate.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use cleat_runtime::tls::renew::{Expiry, Renewable, Unusable};
use reqwest::Client;
use rustls::pki_types::CertificateDer;

use super::endpoint::EndpointError;
use super::trust::{Shown, Trust};

/// We close idle connections before a peer or firewall forgets them.
const IDLE: Duration = Duration::from_secs(30);

/// Makes HTTP clients for one RDS, a new one when the CA file changes.
#[derive(Debug)]
pub(super) struct HttpClient {
    trust: Trust,
    timeout: Duration,
    shown: Arc<Shown>,
    current: Mutex<Current>,
}

/// What was made when the CA file was last read.
#[derive(Debug)]
struct Current {
    client: Client,
    cas: Vec<CertificateDer<'static>>,
    /// The end of a certificate because of which its connections were given up.
    ended: Option<SystemTime>,
}

impl HttpClient {
    /// Reads the CA file and makes the client; connects to nothing yet.
    pub(super) fn new(trust: Trust, timeout: Duration) -> Result<Self, EndpointError> {
        let shown = Arc::new(Shown::default());
        let cas = trust.read()?;
        let client = client(&trust, &cas, timeout, &shown)?;
        Ok(Self { trust, timeout, shown, current: Mutex::new(Current { client, cas, ended: None }) })
    }

    /// The client, for one request.
    pub(super) fn client(&self) -> Client {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).client.clone()
    }
}

impl Renewable for HttpClient {
    fn refresh(&self) -> Result<bool, Unusable> {
        let cas = self.trust.read()?;
        let over = self.shown.until().filter(|until| *until <= SystemTime::now());
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let renewed = current.cas != cas;
        if renewed || over.is_some_and(|_| current.ended != over) {
            let client = client(&self.trust, &cas, self.timeout, &self.shown)?;
            *current = Current { client, cas, ended: over };
        }
        Ok(renewed)
    }

    fn expiries(&self) -> Vec<Expiry> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let ca = Expiry::of_cas("rds-ca", "--rds-ca", &current.cas);
        let shown = self.shown.until().map(|at| Expiry { of: "rds", option: "shown by the RDS", at });
        ca.into_iter().chain(shown).collect()
    }
}

/// The certificates of a substitute for an RDS: none.
pub(super) struct Nothing;

impl Renewable for Nothing {
    fn refresh(&self) -> Result<bool, Unusable> {
        Ok(false)
    }

    fn expiries(&self) -> Vec<Expiry> {
        Vec::new()
    }
}

fn client(
    trust: &Trust,
    cas: &[CertificateDer<'static>],
    timeout: Duration,
    shown: &Arc<Shown>,
) -> Result<Client, EndpointError> {
    let mut builder = Client::builder()
        .http1_only()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .tcp_nodelay(true)
        .tcp_user_timeout(timeout)
        .tcp_keepalive(IDLE / 2)
        .pool_max_idle_per_host(1)
        .pool_idle_timeout(IDLE)
        .connect_timeout(timeout / 2);
    if let Some(tls) = trust.tls_config(cas, shown)? {
        builder = builder.https_only(true).tls_backend_preconfigured(tls);
    }
    builder.build().map_err(EndpointError::Client)
}
