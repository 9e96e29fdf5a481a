//! From `--store` to records that can be believed, and a term that is this process's: what has to be there before anything
//! is decided.
//!
//! In a cluster that begins with waiting for the Lease. What holds: nothing is read before this process leads, so nothing
//! that an earlier leader has made durable is missed; and what is in the way is said, and tried again, as long as the claim
//! holds.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cleat_kubernetes::api::{ApiError, ApiServer, NoClient};
use cleat_kubernetes::attachments::Attachments;
use cleat_kubernetes::definitions;
use cleat_kubernetes::lease::{Candidate, LeaseClaim, WaitEnded};
use cleat_rds::secret::Keys;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::cluster::{self, AllDesired};
use crate::engine::{self, RecordError, Records};
use crate::leadership::Leadership;
use crate::store::{CommitError, FileStore, KubernetesStore, OpenError, Store};

/// Between two tries of what the API server did not do.
const AGAIN: Duration = Duration::from_millis(250);
/// So many tries between two lines in the log. A definition that was made a moment ago takes a few.
const SAY_EVERY: u32 = 100;

/// So many tries of a store that says "not now" before this process gives up.
const PATIENCE: u32 = 400;

/// An opened store.
pub struct Stored {
    /// Where records go.
    pub store: Arc<dyn Store>,
    /// What was there.
    pub records: Records,
    /// The term, higher than any before, and durable.
    pub term: u64,
    /// The cluster that the store is in, where it is in one.
    pub cluster: Option<InCluster>,
}

/// What a leader has of its cluster, beside the store.
pub struct InCluster {
    /// The API server.
    pub server: ApiServer,
    /// Who is to have what.
    pub attachments: Arc<Attachments>,
}

/// Where records are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreSettings {
    /// In that file.
    File(PathBuf),
    /// In the cluster.
    Kubernetes(ClusterSettings),
}

/// Where the cluster is, and as whom this process asks for its Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    /// A kubeconfig; `None`: as a pod finds it.
    pub kubeconfig: Option<PathBuf>,
    /// How long a call may take.
    pub api_timeout: Duration,
    /// Where the Lease and the ConfigMaps are.
    pub namespace: String,
    /// The Lease.
    pub lease: String,
    /// How long a claim holds.
    pub lease_duration: Duration,
    /// A name that no other process ever has.
    pub identity: String,
    /// Whose VolumeAttachments are ours.
    pub driver: String,
}

/// Why what was stored cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// The store cannot be opened.
    #[error("cannot open the store (--store)")]
    Open(#[from] OpenError),
    /// A record cannot be read.
    #[error("cannot read the store (--store {store})")]
    Record {
        /// The store.
        store: String,
        /// Which, and what is wrong with it.
        #[source]
        source: RecordError,
    },
    /// It does not give a term.
    #[error("cannot take a term in the store (--store {store})")]
    Term {
        /// The store.
        store: String,
        /// What is in the way.
        #[source]
        source: CommitError,
    },
    /// It does not take the key of secrets.
    #[error("cannot note in the store which key secrets are made with")]
    Key(#[source] CommitError),
    /// The task that opens it panicked.
    #[error("opening the store ended without an answer")]
    Panicked(#[from] tokio::task::JoinError),
    /// There is no client for the cluster.
    #[error("cannot ask the cluster (--store kubernetes)")]
    Connect(#[from] NoClient),
    /// Nobody waits for the Lease any more.
    #[error(transparent)]
    WaitEnded(#[from] WaitEnded),
    /// The claim ended while the store was being opened.
    #[error("cannot lead: the Lease was lost before the records were read; the next start tries again")]
    Lost,
}

impl Stored {
    /// Opens a store in a file, and takes a term in it: higher than any of those before, that of any grant on record
    /// included, and not below the wall clock in milliseconds, so that it rises even if the store was lost in between.
    ///
    /// # Errors
    /// What is in the way, with the file.
    pub async fn in_file(path: PathBuf, clock: Clock) -> Result<Self, StoredError> {
        let name = format!("file:{}", path.display());
        let (store, loaded) = tokio::task::spawn_blocking(move || FileStore::open(&path)).await??;
        let records = engine::read_records(loaded.entries)
            .map_err(|source| StoredError::Record { store: name.clone(), source })?;
        Self::under_a_term(Arc::new(store), records, loaded.term, name, clock).await
    }

    async fn under_a_term(
        store: Arc<dyn Store>,
        records: Records,
        highest: u64,
        name: String,
        clock: Clock,
    ) -> Result<Self, StoredError> {
        let before = records.highest_term().max(highest);
        let least = clock.now().0.max(before.saturating_add(1));
        let term = insist(|| store.take_term(least)).await;
        let term = term.map_err(|source| StoredError::Term { store: name, source })?;
        Ok(Self { store, records, term, cluster: None })
    }

    /// Waits until this process leads, then reads the cluster's records. `None`: it was to stop before.
    ///
    /// # Errors
    /// What is in the way and will not go away.
    pub async fn in_cluster(
        settings: ClusterSettings,
        clock: Clock,
        leadership: &Leadership,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, StoredError> {
        let ClusterSettings { kubeconfig, api_timeout, namespace, lease, lease_duration, identity, driver } =
            settings;
        let server = ApiServer::connect(kubeconfig.as_deref(), api_timeout).await?;
        let Some(standby) = leadership.standby() else { return Ok(None) };
        let lease_name = format!("{namespace}/{lease}");
        let candidate =
            Candidate { namespace: namespace.clone(), name: lease, identity, duration: lease_duration };
        let attachments = Arc::new(Attachments::watch(server.clone(), &driver));
        // Who cannot see what is to be where is none that could take over.
        tokio::select! {
            () = attachments.whole() => {}
            ended = candidate.not_answered(&server) => return Err(WaitEnded::from(ended).into()),
            () = stop.cancelled() => return Ok(None),
        }
        tracing::info!(lease = lease_name, identity = candidate.identity, "asking for the Lease");
        let Some(claim) = candidate.acquire(server.clone(), standby, stop).await? else { return Ok(None) };
        tracing::info!(term = claim.term(), "this replica leads");
        leadership.begin(claim.clone());
        let opening = async {
            let said = Arc::new(AtomicBool::new(false));
            // Both after the claim: whatever an earlier leader has answered is in them. Of thousands each takes seconds.
            let all = until_done("list VolumeAttachments", &claim, || attachments.all_now());
            let opened = until_done("read the records", &claim, || {
                let (server, namespace, claim) = (server.clone(), namespace.clone(), claim.clone());
                let said = Arc::clone(&said);
                async move {
                    define(&server, &said).await;
                    KubernetesStore::open(&server, &namespace, claim).await
                }
            });
            let (all, (store, loaded)) = tokio::try_join!(all, opened)?;
            let AllDesired { desired, unclear, term: answered } = cluster::desired(&all);
            // A person may change any record, and nobody else is to wait for that.
            let mut records = engine::read_what_can_be(loaded.entries);
            (records.desired, records.unclear) = (desired, unclear);
            let (store, name, highest) =
                (Arc::new(store), "kubernetes".to_owned(), loaded.term.max(answered));
            let stored = Self::under_a_term(store, records, highest, name, clock).await?;
            let cluster = InCluster { server, attachments: Arc::clone(&attachments) };
            Ok(Some(Self { cluster: Some(cluster), ..stored }))
        };
        tokio::select! {
            opened = opening => opened,
            () = stop.cancelled() => Ok(None),
        }
    }

    /// Notes in the store what secrets are made with from now on, and says which volumes have secrets of another key.
    ///
    /// # Errors
    /// What is in the way.
    pub async fn take_key(&self, keys: &Keys) -> Result<Keys, StoredError> {
        let noted = insist(|| self.store.take_key(keys.current(), keys.before())).await;
        let keys = keys.clone().in_eras(noted.map_err(StoredError::Key)?);
        let mut old = 0_u32;
        for record in &self.records.volumes {
            let Some(secret) = &record.secret else { continue };
            old += u32::from(keys.is_old(secret.generation));
            if let Err(missing) = keys.secret(&record.spec.id, secret.generation) {
                tracing::error!("{missing}");
            }
        }
        tracing::info!(key = %keys.current(), volumes_of_older_keys = old, "new secrets use this key");
        Ok(keys)
    }
}

/// Makes the cluster know our resources. Where that is not ours to do, whoever installed Cleat has done it; a record that
/// the cluster does not know whole is refused when it is written.
async fn define(server: &ApiServer, said: &AtomicBool) {
    if let Err((name, error)) = definitions::install(server).await
        && !said.swap(true, Ordering::Relaxed)
    {
        tracing::warn!("cannot bring the definition {name} to this version: {error}");
    }
}

/// Asks again for as long as the answer is "not now". A claim that has ended ends it.
async fn insist<T, F: Future<Output = Result<T, CommitError>>>(
    ask: impl Fn() -> F,
) -> Result<T, CommitError> {
    for tries in 0..PATIENCE {
        match ask().await {
            Err(CommitError::Retry { reason }) => {
                if tries % SAY_EVERY == 0 {
                    tracing::error!("the store takes nothing now: {reason}");
                }
            }
            answer => return answer,
        }
        tokio::time::sleep(AGAIN).await;
    }
    ask().await
}

async fn until_done<T, F: Future<Output = Result<T, ApiError>>>(
    what: &str,
    claim: &LeaseClaim,
    ask: impl Fn() -> F,
) -> Result<T, StoredError> {
    let began = Instant::now();
    for tries in 0_u32.. {
        if claim.lost().is_cancelled() {
            break;
        }
        match ask().await {
            Ok(done) => {
                tracing::info!(tries, duration_ms = began.elapsed().as_millis(), "{what}: done");
                return Ok(done);
            }
            Err(error) if tries % SAY_EVERY == 9 => tracing::error!("cannot {what}: {error}"),
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
    Err(StoredError::Lost)
}
