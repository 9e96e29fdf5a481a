//! The one leader: who holds the Lease, under which term, and until when by this machine's own clock.
//!
//! What holds:
//! - each change of the Lease is made against the version that was seen, so of two candidates one gets it;
//! - a holder's claim ends, by its own clock, before anybody else may take the Lease: it counts from *before* the call
//!   that renewed it, and others count from when they have *seen* that. No two clocks are ever compared;
//! - the term rises with every holder and is stored before the claim begins. It is never below the wall clock in
//!   milliseconds, so a Lease that was deleted cannot send it back;
//! - a holder that cannot renew in time, or finds another in its place, has lost its claim for good;
//! - who finds an older Lease than it has seen has an older store before it, as after a restore of etcd: what it knows of
//!   other objects, and its watches, are of another past. A holder has lost its claim, and nobody asks for it any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::{ApiError, ApiServer};

mod standby;

use standby::Answered;
pub use standby::{NotAnswered, Standby, WaitEnded};

/// Where the term is kept.
pub const TERM: &str = "cleat.io/term";
/// How often its holders have written it.
const RENEWALS: &str = "cleat.io/renewals";
/// Which term was let go of in good order.
const RELEASED: &str = "cleat.io/released";
/// How much of a claim is not used: clocks do not all run alike.
const UNUSED_PART: u32 = 50;
/// Between two looks of a standby, at most.
const LOOK: Duration = Duration::from_millis(500);
/// So often it is said why the Lease cannot be had.
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// Which Lease, and who asks for it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The Lease's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who asks: a name that no other process ever has.
    pub identity: String,
    /// How long a claim holds that is not renewed.
    pub duration: Duration,
}

/// The Lease is this process's. Cheap to clone.
#[derive(Clone)]
pub struct LeaseClaim {
    held: Arc<Held>,
}

struct Held {
    api: Api<Lease>,
    server: ApiServer,
    candidate: Candidate,
    /// As it was written last.
    lease: Mutex<Lease>,
    /// Until when it holds, in milliseconds since this machine started.
    until: AtomicU64,
    term: AtomicU64,
    lost: CancellationToken,
}

/// Another one who holds the Lease, as far as it was seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    identity: String,
    /// When its Lease was seen as it is now for the first time, by the time since this machine started.
    since: Duration,
    /// How long its claim holds that is not renewed.
    holds: Duration,
}

impl Leader {
    /// Its name, and how long ago its Lease was seen new, or renewed; `None` once that has expired: whether it leads, or runs at
    /// all, is not known then.
    #[must_use]
    pub fn seen(&self) -> Option<(&str, Duration)> {
        self.seen_at(now())
    }

    fn seen_at(&self, now: Duration) -> Option<(&str, Duration)> {
        let ago = now.saturating_sub(self.since);
        (ago < self.holds).then_some((self.identity.as_str(), ago))
    }
}

/// Why a term was not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// The claim has ended.
    #[error("the Lease is another's, or was not renewed in time")]
    Lost,
    /// What the API server has is older than what it had.
    #[error(transparent)]
    SetBack(#[from] SetBack),
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// The API server has an older state than it has shown before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot go on: the Lease is older than it was, as after a restore of etcd; the next start goes by what is stored; see \
     \"If etcd is set back\" in docs/operating.md"
)]
pub struct SetBack;

/// Time since this machine started, sleep included.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or_else(|_| Duration::MAX, Duration::from)
}

fn wall_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What a candidate has seen of the Lease, and since when, by its own clock.
#[derive(Debug, Default)]
struct Seen {
    /// The version; inner `None`: there was no Lease.
    version: Option<Option<String>>,
    since: Duration,
    /// The last term under which somebody held it.
    held: Option<u64>,
    /// How far it had come.
    progress: (u64, u64),
}

impl Seen {
    /// Whether the Lease may be taken: its holder has let go of it, or it has not changed for as long as its holder has
    /// said. One that is not there, or that says no holder, may have been held a moment ago, for somebody can delete or
    /// change it by hand or bring an older etcd back: only what its own holder has marked counts as let go.
    fn is_free(&mut self, lease: Option<&Lease>, now: Duration, ours: Duration) -> bool {
        let version = lease.and_then(|lease| lease.metadata.resource_version.clone());
        if self.version.as_ref() != Some(&version) {
            (self.version, self.since) = (Some(version), now);
        }
        let unchanged = now.saturating_sub(self.since);
        let Some(lease) = lease else { return unchanged >= ours };
        if holder(lease).is_some() {
            self.held = Some(term(lease));
        } else if self.held == Some(term(lease)) && annotation(lease, RELEASED) == Some(term(lease)) {
            return true;
        }
        unchanged >= holds(lease, ours)
    }

    /// Takes in how far it has come.
    fn goes_on(&mut self, lease: Option<&Lease>) -> Result<(), SetBack> {
        let Some(now) = lease.map(progress) else { return Ok(()) };
        if now < self.progress {
            return Err(SetBack);
        }
        self.progress = now;
        Ok(())
    }

    /// Who has it, where it says so.
    fn leader(&self, lease: Option<&Lease>, ours: Duration) -> Option<Leader> {
        let lease = lease?;
        let identity = holder(lease)?.to_owned();
        Some(Leader { identity, since: self.since, holds: holds(lease, ours) })
    }
}

/// How long the claim on it holds that is not renewed.
fn holds(lease: &Lease, ours: Duration) -> Duration {
    let said = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
    let said = said.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    said.unwrap_or_default().max(ours)
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

fn annotation(lease: &Lease, name: &str) -> Option<u64> {
    lease.metadata.annotations.as_ref()?.get(name)?.parse().ok()
}

fn term(lease: &Lease) -> u64 {
    annotation(lease, TERM).unwrap_or_default()
}

/// What only rises: its term, and how often it was written.
fn progress(lease: &Lease) -> (u64, u64) {
    (term(lease), annotation(lease, RENEWALS).unwrap_or_default())
}

impl Candidate {
    /// Looks at the Lease without asking for it, until it is not answered for too long. For who has to wait for something
    /// else of the API server before.
    pub async fn not_answered(&self, server: &ApiServer) -> NotAnswered {
        let api: Api<Lease> = Api::namespaced(server.client.clone(), &self.namespace);
        let mut answered = Answered::now();
        loop {
            match server.ask(api.get_metadata(&self.name)).await {
                Ok(_) => answered = Answered::now(),
                Err(error) => {
                    if let Err(ended) = answered.failed(&error, self.duration) {
                        return ended;
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until the Lease is this process's, or `stop`; `standby` says how it stands meanwhile.
    ///
    /// # Errors
    /// If what the API server has is older than what it had, or if it does not answer for too long.
    pub async fn acquire(
        self,
        server: ApiServer,
        standby: &watch::Sender<Standby>,
        stop: &CancellationToken,
    ) -> Result<Option<LeaseClaim>, WaitEnded> {
        let api: Api<Lease> = Api::namespaced(server.client.clone(), &self.namespace);
        let mut seen = Seen::default();
        let mut said: Option<(String, Duration)> = None;
        let mut answered = Answered::now();
        loop {
            let began = Instant::now();
            match self.try_once(&api, &server, &mut seen).await {
                Ok(Ok(claim)) => {
                    standby.send_modify(|standby| standby.leader = None);
                    tokio::spawn(claim.clone().keep());
                    return Ok(Some(claim));
                }
                Ok(Err(holder)) => {
                    said = None;
                    answered = Answered::now();
                    standby.send_modify(|standby| standby.looked(began, holder, self.duration));
                }
                Err(LeaseError::SetBack(error)) => return Err(error.into()),
                Err(error) => {
                    if let LeaseError::Api(error) = &error {
                        answered.failed(error, self.duration)?;
                    }
                    let text = error.to_string();
                    let again = said
                        .as_ref()
                        .is_none_or(|(before, at)| *before != text || now().saturating_sub(*at) >= SAY_AGAIN);
                    if again {
                        tracing::error!(
                            "cannot ask for the Lease {}/{}: {text}; it needs the verbs get, create and update on leases",
                            self.namespace,
                            self.name
                        );
                        said = Some((text, now()));
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// One try: the claim, or who else has it.
    async fn try_once(
        &self,
        api: &Api<Lease>,
        server: &ApiServer,
        seen: &mut Seen,
    ) -> Result<Result<LeaseClaim, Option<Leader>>, LeaseError> {
        let there = match server.ask(api.get(&self.name)).await {
            Ok(lease) => Some(lease),
            Err(ApiError::NotFound) => None,
            Err(error) => return Err(error.into()),
        };
        seen.goes_on(there.as_ref())?;
        if !seen.is_free(there.as_ref(), now(), self.duration) {
            return Ok(Err(seen.leader(there.as_ref(), self.duration)));
        }
        let before = there.as_ref().map_or(0, term);
        let term = wall_millis().max(before.saturating_add(1));
        let began = now();
        let lease = self.lease(there.as_ref(), term);
        let taken = match &there {
            Some(_) => server.ask(api.replace(&self.name, &PostParams::default(), &lease)).await,
            None => server.ask(api.create(&PostParams::default(), &lease)).await,
        };
        match taken {
            Ok(lease) => {
                let held = Held {
                    api: api.clone(),
                    server: server.clone(),
                    candidate: self.clone(),
                    lease: Mutex::new(lease),
                    until: AtomicU64::new(millis(self.until(began))),
                    term: AtomicU64::new(term),
                    lost: CancellationToken::new(),
                };
                Ok(Ok(LeaseClaim { held: Arc::new(held) }))
            }
            // Another candidate was faster, or somebody has deleted it.
            Err(ApiError::Conflict) => Ok(Err(None)),
            Err(ApiError::NotFound) if there.is_some() => Ok(Err(None)),
            Err(ApiError::NotFound) => {
                Err(ApiError::Refused(format!("there is no namespace {}; make it", self.namespace)).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// When a claim ends that was asked for then.
    fn until(&self, asked: Duration) -> Duration {
        asked + self.duration - self.duration / UNUSED_PART
    }

    /// The Lease as ours.
    fn lease(&self, before: Option<&Lease>, term: u64) -> Lease {
        let spec = before.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let mine = spec.holder_identity.as_deref() == Some(&self.identity);
        let wall = MicroTime(Timestamp::now());
        let changes = spec.lease_transitions.unwrap_or(0);
        let mut metadata = match before {
            Some(lease) => lease.metadata.clone(),
            None => ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
        };
        metadata.managed_fields = None;
        let annotations = metadata.annotations.get_or_insert_with(BTreeMap::new);
        annotations.insert(TERM.to_owned(), term.to_string());
        let renewals = before.map_or(0, |lease| progress(lease).1).saturating_add(1);
        annotations.insert(RENEWALS.to_owned(), renewals.to_string());
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.duration.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: if mine { spec.acquire_time } else { Some(wall.clone()) },
            renew_time: Some(wall),
            lease_transitions: Some(if mine { changes } else { changes.saturating_add(1) }),
            ..spec
        };
        Lease { metadata, spec: Some(spec) }
    }
}

impl LeaseClaim {
    /// The term: higher than that of any holder before.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.held.term.load(Ordering::Acquire)
    }

    /// Who holds it.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.held.candidate.identity
    }

    /// Whether the claim holds for so long still, whatever happens to the network from now on.
    #[must_use]
    pub fn outlives(&self, time: Duration) -> bool {
        !self.held.lost.is_cancelled()
            && millis(now().saturating_add(time)) < self.held.until.load(Ordering::Acquire)
    }

    /// Cancelled once the claim is lost.
    #[must_use]
    pub fn lost(&self) -> &CancellationToken {
        &self.held.lost
    }

    /// Raises the term to at least that, durably.
    ///
    /// # Errors
    /// If it is not known to be durable.
    pub async fn raise(&self, at_least: u64) -> Result<u64, LeaseError> {
        let term = self.term();
        if term >= at_least {
            return Ok(term);
        }
        self.write(at_least).await?;
        Ok(self.term())
    }

    /// Lets go, so that a standby need not wait. Nothing may be done under the claim any more.
    pub async fn release(self) {
        self.held.lost.cancel();
        let mut lease = self.held.lease.lock().await;
        lease.metadata.managed_fields = None;
        let term = self.term().to_string();
        lease.metadata.annotations.get_or_insert_default().insert(RELEASED.to_owned(), term);
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
        }
        let name = &self.held.candidate.name;
        let released =
            self.held.server.ask(self.held.api.replace(name, &PostParams::default(), &lease)).await;
        match released {
            Ok(_) => tracing::info!("let go of the Lease"),
            Err(error) => tracing::warn!("cannot let go of the Lease, so a standby waits it out: {error}"),
        }
    }

    /// Renews it until it is lost.
    async fn keep(self) {
        let duration = self.held.candidate.duration;
        let mut pause = duration / 3;
        loop {
            let left = Duration::from_millis(self.held.until.load(Ordering::Acquire)).saturating_sub(now());
            if left.is_zero() {
                tracing::error!("the Lease was not renewed in time");
                return self.held.lost.cancel();
            }
            tokio::select! {
                () = self.held.lost.cancelled() => return,
                () = tokio::time::sleep(pause.min(left)) => {}
            }
            pause = match self.write(0).await {
                Ok(()) => duration / 3,
                Err(LeaseError::Lost) => {
                    tracing::error!("the Lease is another's");
                    return self.held.lost.cancel();
                }
                Err(error @ LeaseError::SetBack(_)) => {
                    tracing::error!("{error}");
                    return self.held.lost.cancel();
                }
                Err(error) => {
                    tracing::warn!("cannot renew the Lease, which ends in {} ms: {error}", left.as_millis());
                    duration / 15
                }
            };
        }
    }

    /// Writes it as ours, under at least that term, and never under a lower one than before.
    async fn write(&self, at_least: u64) -> Result<(), LeaseError> {
        let Held { api, server, candidate, until, .. } = &*self.held;
        let mut lease = self.held.lease.lock().await;
        for _ in 0..2 {
            if self.held.lost.is_cancelled() {
                return Err(LeaseError::Lost);
            }
            let began = now();
            let left = Duration::from_millis(until.load(Ordering::Acquire)).saturating_sub(began);
            let stored = annotation(&lease, TERM).unwrap_or_default();
            let term = at_least.max(self.term()).max(stored);
            let ours = candidate.lease(Some(&lease), term);
            let (as_usual, within) = (PostParams::default(), left.min(candidate.duration / 3));
            match server.ask_within(within, api.replace(&candidate.name, &as_usual, &ours)).await {
                Ok(written) => {
                    *lease = written;
                    self.held.term.store(term, Ordering::Release);
                    until.store(millis(candidate.until(began)), Ordering::Release);
                    return Ok(());
                }
                // A renewal whose answer was lost, or somebody who has put a label on it: ours, if it still says so.
                Err(ApiError::Conflict) => {
                    let there = server.ask_within(left, api.get(&candidate.name)).await?;
                    if holder(&there) != Some(&candidate.identity) {
                        return Err(LeaseError::Lost);
                    }
                    if progress(&there) < progress(&lease) {
                        return Err(SetBack.into());
                    }
                    *lease = there;
                }
                Err(ApiError::NotFound) => return Err(LeaseError::Lost),
                Err(error) => return Err(error.into()),
            }
        }
        Err(ApiError::Conflict.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Duration = Duration::from_secs(10);

    fn lease(version: &str, holder: &str, seconds: i32) -> Lease {
        Lease {
            metadata: ObjectMeta { resource_version: Some(version.into()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.into()),
                lease_duration_seconds: Some(seconds),
                ..LeaseSpec::default()
            }),
        }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1000 + seconds)
    }

    #[test]
    fn a_lease_is_free_once_it_was_seen_unchanged_for_its_time() {
        let mut seen = Seen::default();
        assert!(!seen.is_free(Some(&lease("1", "a", 15)), at(0), OURS), "nobody knows how old it is");
        assert!(!seen.is_free(Some(&lease("1", "a", 15)), at(14), OURS));
        assert!(!seen.is_free(Some(&lease("2", "a", 15)), at(16), OURS), "it was renewed");
        assert!(!seen.is_free(Some(&lease("2", "a", 15)), at(30), OURS));
        assert!(seen.is_free(Some(&lease("2", "a", 15)), at(31), OURS));
    }

    #[test]
    fn a_leader_that_renews_no_more_is_named_until_its_claim_has_expired() {
        let mut seen = Seen::default();
        let first = lease("1", "a", 15);
        seen.is_free(Some(&first), at(0), OURS);
        let leader = seen.leader(Some(&first), OURS).expect("a leader");
        assert_eq!(leader.seen_at(at(14)), Some(("a", Duration::from_secs(14))));
        assert_eq!(leader.seen_at(at(15)), None, "it may be dead");
        let renewed = lease("2", "a", 15);
        seen.is_free(Some(&renewed), at(12), OURS);
        let leader = seen.leader(Some(&renewed), OURS).expect("a leader");
        assert_eq!(leader.seen_at(at(15)), Some(("a", Duration::from_secs(3))));
        assert_eq!(seen.leader(Some(&lease("3", "", 15)), OURS), None);
        assert_eq!(seen.leader(None, OURS), None);
    }

    #[test]
    fn the_longer_of_its_time_and_ours_counts() {
        for said in [1, -1] {
            let mut seen = Seen::default();
            assert!(!seen.is_free(Some(&lease("1", "a", said)), at(0), OURS));
            assert!(!seen.is_free(Some(&lease("1", "a", said)), at(9), OURS), "{said}");
            assert!(seen.is_free(Some(&lease("1", "a", said)), at(10), OURS), "{said}");
        }
    }

    fn with(mut lease: Lease, notes: &[(&str, u64)]) -> Lease {
        let notes = notes.iter().map(|(name, value)| ((*name).to_owned(), value.to_string()));
        lease.metadata.annotations = Some(notes.collect());
        lease
    }

    #[test]
    fn a_lease_whose_holder_let_go_of_it_is_free_at_once() {
        let held = with(lease("1", "a", 15), &[(TERM, 7)]);
        let let_go = with(lease("2", "", 15), &[(TERM, 7), (RELEASED, 7)]);
        let mut seen = Seen::default();
        assert!(!seen.is_free(Some(&held), at(0), OURS));
        assert!(seen.is_free(Some(&let_go), at(1), OURS));
        assert!(!Seen::default().is_free(Some(&let_go), at(1), OURS), "it may be of an older etcd");
    }

    #[test]
    fn a_lease_that_was_emptied_or_deleted_by_hand_is_waited_for() {
        let held = with(lease("1", "a", 15), &[(TERM, 7), (RELEASED, 6)]);
        let emptied = with(lease("2", "", 15), &[(TERM, 7), (RELEASED, 6)]);
        for (by_hand, least) in [(Some(&emptied), 15), (None, 10)] {
            let mut seen = Seen::default();
            assert!(!seen.is_free(Some(&held), at(0), OURS));
            assert!(!seen.is_free(by_hand, at(1), OURS));
            assert!(!seen.is_free(by_hand, at(least), OURS));
            assert!(seen.is_free(by_hand, at(least + 1), OURS));
        }
    }

    #[test]
    fn a_lease_that_is_older_than_it_was_is_of_a_store_set_back() {
        let candidate =
            Candidate { namespace: "n".into(), name: "l".into(), identity: "a".into(), duration: OURS };
        let taken = candidate.lease(Some(&lease("1", "b", 15)), 7);
        let renewed = candidate.lease(Some(&taken), 7);
        let raised = candidate.lease(Some(&renewed), 9);
        let mut labelled = renewed.clone();
        labelled.metadata.resource_version = Some("9".into());
        let made_again = candidate.lease(None, 10);
        for (before, later) in
            [(&taken, &renewed), (&renewed, &labelled), (&renewed, &raised), (&raised, &made_again)]
        {
            let mut seen = Seen::default();
            assert_eq!(seen.goes_on(Some(before)), Ok(()));
            assert_eq!(seen.goes_on(None), Ok(()), "somebody has deleted it");
            assert_eq!(seen.goes_on(Some(later)), Ok(()));
            if progress(before) != progress(later) {
                assert_eq!(seen.goes_on(Some(before)), Err(SetBack));
            }
        }
    }

    #[test]
    fn a_claim_ends_before_anybody_who_saw_it_late_may_take_it() {
        let candidate =
            Candidate { namespace: "n".into(), name: "l".into(), identity: "a".into(), duration: OURS };
        assert!(candidate.until(at(0)) < at(10));
        let taken = candidate.lease(Some(&lease("1", "b", 15)), 7);
        assert_eq!((holder(&taken), term(&taken)), (Some("a"), 7));
        assert_eq!(taken.spec.and_then(|spec| spec.lease_transitions), Some(1));
    }
}
