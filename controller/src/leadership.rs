//! Whether this process is the one that may act, and for how long still.
//!
//! With a store in a file the file's lock says so, for as long as the process lives. In a cluster the Lease says so, for a
//! time. What holds: whatever sends something asks here at its turn, whether the claim outlives the time within which that is
//! usually delivered. It is no proof: a connection may take longer to be made, a message may wait in a session's queue, and a
//! machine may stand still in between. What arrives late all the same meets what a crash would leave, too: marks in the
//! records, lists that are read again, epochs that agents compare (docs/decisions/0015).

use std::convert::Infallible;
use std::fmt;
use std::future::ready;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use cleat_kubernetes::lease::{Leader, LeaseClaim, Standby};
use http::{Request, Response};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

/// A directive or an answer that has left this process has arrived after that, or its connection is broken.
pub(crate) const ARRIVES: Duration = Duration::from_secs(1);

/// What this process may do. Cheap to clone.
#[derive(Clone)]
pub struct Leadership {
    by_lease: Option<Arc<ByLease>>,
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Leadership")
    }
}

struct ByLease {
    claim: OnceLock<LeaseClaim>,
    /// What a leader has is there.
    serves: AtomicBool,
    /// How it stands while another one leads.
    standby: watch::Sender<Standby>,
}

impl Leadership {
    /// Nobody else can lead while this process runs.
    #[must_use]
    pub fn alone() -> Self {
        Self { by_lease: None }
    }

    /// Who holds the Lease leads.
    #[must_use]
    pub fn by_lease() -> Self {
        let (standby, _) = watch::channel(Standby::default());
        Self {
            by_lease: Some(Arc::new(ByLease {
                claim: OnceLock::new(),
                serves: AtomicBool::new(false),
                standby,
            })),
        }
    }

    /// Where it is said how it stands while another one leads.
    pub(crate) fn standby(&self) -> Option<&watch::Sender<Standby>> {
        self.by_lease.as_ref().map(|by_lease| &by_lease.standby)
    }

    /// Whether it would take over from the leader; `None` once it leads itself, and where nobody else can.
    pub(crate) fn stands_by(&self) -> Option<bool> {
        let by_lease = self.by_lease.as_ref().filter(|by_lease| by_lease.claim.get().is_none())?;
        Some(by_lease.standby.borrow().is_ready())
    }

    /// From now on this process leads. A process leads once.
    pub(crate) fn begin(&self, claim: LeaseClaim) {
        if let Some(by_lease) = &self.by_lease {
            let _ = by_lease.claim.set(claim);
        }
    }

    fn claim(&self) -> Option<&LeaseClaim> {
        self.by_lease.as_ref()?.claim.get()
    }

    /// Whether this process leads for so long still.
    #[must_use]
    pub fn outlives(&self, time: Duration) -> bool {
        self.by_lease.is_none() || self.claim().is_some_and(|claim| claim.outlives(time))
    }

    /// From now on this process serves, as long as it leads.
    pub(crate) fn serve(&self) {
        if let Some(by_lease) = &self.by_lease {
            by_lease.serves.store(true, Ordering::Release);
        }
    }

    /// Whether calls are answered here, and not by another replica.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.by_lease.as_ref().is_none_or(|by_lease| by_lease.serves.load(Ordering::Acquire))
            && self.outlives(Duration::ZERO)
    }

    /// The name under which this process leads; empty where nobody else can.
    #[must_use]
    pub fn identity(&self) -> String {
        self.claim().map(|claim| claim.identity().to_owned()).unwrap_or_default()
    }

    /// Ends once this process has lost what it had.
    pub async fn lost(&self) {
        match self.claim() {
            Some(claim) => claim.lost().cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Lets go of the Lease, once nothing is done any more.
    pub(crate) async fn end(&self) {
        if let Some(claim) = self.claim() {
            claim.clone().release().await;
        }
    }

    /// What a standby answers.
    pub(crate) fn elsewhere(&self) -> Status {
        let leader = self.by_lease.as_ref().and_then(|by_lease| by_lease.standby.borrow().leader.clone());
        Status::unavailable(match leader.as_ref().and_then(Leader::seen) {
            Some((leader, ago)) => format!(
                "this replica is a standby: {leader} leads; ask that one (its Lease was seen renewed {} s ago)",
                ago.as_secs()
            ),
            None => "this replica does not lead, and it is not known which one does; ask again".to_owned(),
        })
    }
}

/// A service that only a leader has: there once this process leads; until then each call is told who does.
pub(crate) struct OfLeader<S> {
    there: Arc<OnceLock<S>>,
    leadership: Leadership,
}

impl<S> Clone for OfLeader<S> {
    fn clone(&self) -> Self {
        Self { there: Arc::clone(&self.there), leadership: self.leadership.clone() }
    }
}

impl<S> OfLeader<S> {
    /// Not there yet.
    pub(crate) fn none_yet(leadership: &Leadership) -> Self {
        Self { there: Arc::default(), leadership: leadership.clone() }
    }

    /// Now it is there.
    pub(crate) fn begin(&self, service: S) {
        let _ = self.there.set(service);
    }
}

impl<S: NamedService> NamedService for OfLeader<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for OfLeader<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        // As tonic's services are, always.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.there.get() {
            Some(service) => Box::pin(service.clone().call(request)),
            None => Box::pin(ready(Ok(self.leadership.elsewhere().into_http()))),
        }
    }
}
