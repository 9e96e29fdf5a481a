//! The controller's own certificate: signed by the CA that all replicas share, renewed in memory long before it ends.
//!
//! In come the CA and the cluster's client CA, each read again and again; out goes what both listeners serve. What holds: a
//! certificate that works is served until its end, whatever the API server answers; without a valid one nobody is served, and
//! the program is not ready.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use cleat_kubernetes::api::ApiServer;
use cleat_kubernetes::client_ca;
use cleat_kubernetes::serving_ca::{Authority, CaTimes, ServingCa};
use cleat_runtime::exit::Causes;
use cleat_runtime::readiness::ReadyFlag;
use cleat_runtime::tls::renew::{Expiry, Renewable, Unusable};
use cleat_runtime::tls::{IssueError, IssuedTls, certificates_of};
use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

/// Between two tries of what failed.
const AGAIN: Duration = Duration::from_secs(2);

/// How long certificates are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServingTimes {
    /// How long the controller's own is valid; it is renewed after half of that.
    pub certificate: Duration,
    /// Between two readings of what the cluster says.
    pub read_every: Duration,
    /// Those of the CA.
    pub ca: CaTimes,
}

impl Default for ServingTimes {
    fn default() -> Self {
        Self {
            certificate: Duration::from_secs(86_400),
            read_every: Duration::from_secs(60),
            ca: CaTimes::default(),
        }
    }
}

/// What is served, and by whom it is signed.
pub(super) struct Serving {
    ca: ServingCa,
    server: ApiServer,
    names: Vec<String>,
    times: ServingTimes,
    listeners: [IssuedTls; 2],
    ends: Arc<Ends>,
    authority: Option<Authority>,
    served: Option<Served>,
    client_cas: Vec<CertificateDer<'static>>,
    /// Why operators with client certificates are not served, since the last renewal.
    clients_unusable: Option<String>,
    complaint: String,
}

struct Served {
    renew_at: SystemTime,
    until: SystemTime,
}

/// When the CA ends, for those who watch over certificates.
#[derive(Default)]
struct Ends(Mutex<Option<SystemTime>>);

impl Renewable for Ends {
    fn refresh(&self) -> Result<bool, Unusable> {
        Ok(false)
    }

    fn expiries(&self) -> Vec<Expiry> {
        let ca = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ca.map(|at| Expiry { of: "server-ca", option: "--ca-secret", at }).into_iter().collect()
    }
}

impl Serving {
    pub(super) fn new(
        ca: ServingCa,
        server: ApiServer,
        names: Vec<String>,
        times: ServingTimes,
        listeners: [IssuedTls; 2],
    ) -> Self {
        let (ends, client_cas, complaint) = (Arc::default(), Vec::new(), String::new());
        Self {
            ca,
            server,
            names,
            times,
            listeners,
            ends,
            authority: None,
            served: None,
            client_cas,
            clients_unusable: None,
            complaint,
        }
    }

    pub(super) fn ends(&self) -> Arc<dyn Renewable> {
        self.ends.clone()
    }

    /// Serves until `stop`.
    pub(super) async fn keep(mut self, ready: ReadyFlag, stop: CancellationToken) {
        loop {
            let done = tokio::select! {
                done = self.turn() => done,
                () = stop.cancelled() => return,
            };
            ready.set(self.served.is_some());
            let pause = if done { self.times.read_every } else { AGAIN };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Reads everything again and renews what is due; whether all of it went well.
    async fn turn(&mut self) -> bool {
        let mut complaints = Vec::new();
        let mut due = false;
        match self.ca.tend(SystemTime::now()).await {
            Ok(authority) => {
                if !self.authority.as_ref().is_some_and(|known| known.is(&authority)) {
                    let until = humantime::format_rfc3339_seconds(authority.until());
                    tracing::info!(%until, "the controller's certificates are signed by this CA from now on");
                    due = true;
                }
                *self.ends.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(authority.until());
                self.authority = Some(authority);
            }
            Err(error) => complaints.push(Causes(&error).to_string()),
        }
        match client_ca::read(&self.server)
            .await
            .map(|pem| certificates_of(pem.as_deref().unwrap_or_default()))
        {
            Ok(Some(read)) => {
                due |= read != self.client_cas;
                self.client_cas = read;
            }
            Ok(None) => complaints.push(format!("ConfigMap {} holds no usable CA", client_ca::WHERE)),
            Err(error) => complaints.push(format!(
                "cannot read ConfigMap {}, by which operators with client certificates are known: {error}",
                client_ca::WHERE
            )),
        }
        let now = SystemTime::now();
        due |= self.served.as_ref().is_none_or(|served| served.renew_at <= now);
        if due && let Err(error) = self.renew(now) {
            complaints.push(error);
        }
        // Until others are served: nothing is well because it was said once.
        complaints.extend(self.clients_unusable.clone());
        if self.served.as_ref().is_some_and(|served| served.until <= now) {
            self.served = None;
            self.listeners.iter().for_each(IssuedTls::withdraw);
        }
        self.complain(complaints.join("; "))
    }

    fn renew(&mut self, now: SystemTime) -> Result<(), String> {
        let Some(authority) = self.authority.as_ref().filter(|authority| authority.until() > now) else {
            // What is in the way was said.
            return Ok(());
        };
        let make = || authority.issue(&self.names, now, self.times.certificate);
        let said = |error: &(dyn std::error::Error + 'static)| Causes(error).to_string();
        let [agents, operators] = &self.listeners;
        self.clients_unusable = None;
        let mut until = None;
        for (listener, client_cas) in [(agents, &[][..]), (operators, &*self.client_cas)] {
            let made = make().map_err(|error| said(&error))?;
            until = Some(made.until);
            match listener.serve(made.chain, made.key, client_cas) {
                Err(error @ IssueError::Clients(_)) => {
                    // Operators with a token are served all the same.
                    self.clients_unusable = Some(said(&error));
                    let made = make().map_err(|error| said(&error))?;
                    listener.serve(made.chain, made.key, &[]).map_err(|error| said(&error))?;
                }
                served => served.map_err(|error| said(&error))?,
            }
        }
        self.served = until.map(|until| {
            let half = until.duration_since(now).unwrap_or_default() / 2;
            Served { renew_at: now + half, until }
        });
        Ok(())
    }

    /// Says what is in the way, once; whether nothing is.
    fn complain(&mut self, complaint: String) -> bool {
        if complaint != self.complaint {
            if complaint.is_empty() {
                tracing::info!("the controller's certificate can be renewed again");
            } else {
                tracing::error!("{complaint}");
            }
            self.complaint = complaint;
        }
        self.complaint.is_empty()
    }
}
