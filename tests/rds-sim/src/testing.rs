//! A whole device in the test's own process: HTTPS on a loopback port, a target in memory.
//!
//! In: [`start`] or [`start_with`], inside a tokio runtime. Out: a [`Sim`] with what a client needs to connect, and
//! a hand on everything that a test wants to see or break. What always holds: each has a directory, a certificate
//! and a port of its own; dropping it ends it.

use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::control::{self, StateReport};
use crate::faults::{Action, Fault, Faults, Requests};
use crate::pretend::Pretend;
use crate::rds::{Options, Rds};
use crate::rest::Credentials;
use crate::server::serve_rest;
use crate::target::FakeTarget;
use crate::tls::Identity;

/// A device under test.
#[derive(Debug)]
pub struct Sim {
    /// `https://127.0.0.1:PORT`, without trailing slash and without `/rest`.
    pub url: String,
    /// The certificate, for a client to trust or pin.
    pub ca_pem: String,
    /// SHA-256 of the certificate in lower-case hex.
    pub fingerprint: String,
    /// The account's name.
    pub user: String,
    /// The account's password.
    pub password: String,
    /// The target in memory.
    pub target: Arc<FakeTarget>,
    /// Faults and counts.
    pub faults: Arc<Faults>,
    /// The device itself.
    pub rds: Arc<Mutex<Rds>>,
    options: Options,
    shutdown: CancellationToken,
    _directory: TempDir,
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A device with two portals (10.77.1.1 and 10.77.2.1, port 4420) and everything else at its defaults.
pub async fn start() -> anyhow::Result<Sim> {
    start_with(|_| {}).await
}

/// A device with other options.
pub async fn start_with(adjust: impl FnOnce(&mut Options)) -> anyhow::Result<Sim> {
    let directory = tempfile::tempdir()?;
    let mut options = Options::with_files(directory.path().join("files"));
    options.portals = ["10.77.1.1:4420".parse()?, "10.77.2.1:4420".parse()?].into();
    adjust(&mut options);
    let target = Arc::new(FakeTarget::new());
    let rds = Arc::new(Mutex::new(Rds::open(options.clone(), target.clone())?));
    let faults = Arc::new(Faults::default());
    let credentials = Credentials { user: "admin".to_owned(), password: "secret with: colon".to_owned() };
    let identity = Identity::make(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let shutdown = CancellationToken::new();
    let sim = Sim {
        url: format!("https://{}", listener.local_addr()?),
        ca_pem: identity.certificate_pem().to_owned(),
        fingerprint: identity.fingerprint()?,
        user: credentials.user.clone(),
        password: credentials.password.clone(),
        target,
        faults: Arc::clone(&faults),
        rds: Arc::clone(&rds),
        options,
        shutdown: shutdown.clone(),
        _directory: directory,
    };
    let tls = identity.server_config()?;
    tokio::spawn(async move {
        if let Err(error) = serve_rest(listener, tls, rds, credentials, faults, shutdown).await {
            tracing::error!(%error, "rds-sim ended");
        }
    });
    Ok(sim)
}

impl Sim {
    /// The device, locked.
    pub fn device(&self) -> MutexGuard<'_, Rds> {
        self.rds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a fault.
    pub fn fault(&self, fault: Fault) {
        self.faults.add(fault);
    }

    /// Adds a fault for the next request, whichever it is.
    pub fn next_request(&self, action: Action) {
        self.faults.add(Fault::next(1, action));
    }

    /// Leaves a step of a fence out from now on, and says that it was taken.
    pub fn pretend(&self, what: Pretend) {
        self.device().pretend(what);
    }

    /// What was asked so far.
    pub fn requests(&self) -> Requests {
        self.faults.requests()
    }

    /// How often this was asked (`GET /rest/disk`, `PATCH /rest/disk/*`).
    pub fn count(&self, request: &str) -> u64 {
        self.requests().by_path.get(request).copied().unwrap_or(0)
    }

    /// The state, as `GET /state` of the test control gives it.
    pub fn state(&self) -> anyhow::Result<StateReport> {
        Ok(control::report(&self.device(), &self.faults)?)
    }

    /// The device's program ends and starts again, with these options changed; the target stays as it is, unless
    /// it was told to reboot.
    pub fn restart(&self, adjust: impl FnOnce(&mut Options)) -> anyhow::Result<()> {
        let mut options = self.options.clone();
        adjust(&mut options);
        let mut device = self.device();
        *device = Rds::open(options, self.target.clone())?;
        Ok(())
    }
}
