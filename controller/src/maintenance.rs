//! What `cleat-controller` does when it is asked for something else than to run: it moves the records of a store in a file to
//! a cluster, and says what keeps Cleat from being uninstalled.
//!
//! Comes in: a command line that begins with the command. Goes out: what was done, in the log and by the exit code.
//!
//! What holds: while records are moved nobody leads, neither at the file, which is locked, nor in the cluster, whose Lease
//! this process has. Records are read back before the file is set aside; until then nothing is changed that a second run
//! would not find as it is to be.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, Subcommand};
use cleat_ids::DEFAULT_DRIVER_NAME;
use cleat_kubernetes::api::{ApiError, ApiServer, NoClient};
use cleat_kubernetes::definitions;
use cleat_kubernetes::in_use::in_use;
use cleat_kubernetes::lease::{Candidate, Leader, LeaseClaim, Standby, WaitEnded};
use cleat_runtime::options::duration;
use cleat_runtime::{Common, Context, Failure, Program};
use tokio::sync::watch;

use crate::cli::{ConfigError, KubernetesOptions};
use crate::engine::{self, RecordError};
use crate::store::{
    CommitError, FileStore, Key, KubernetesStore, Loaded, OpenError, Store, StoreSpec, StoredRecord, Write,
    move_away,
};
use crate::stored::ClusterSettings;

/// The first word of each command.
pub const COMMANDS: &[&str] = &["migrate-store", "uninstall-check"];
/// Between two tries of what the API server did not do.
const AGAIN: Duration = Duration::from_millis(250);
/// So many tries.
const TRIES: u32 = 40;
/// Lines of what is in use that are shown.
const SHOWN: usize = 20;

/// Maintenance of Cleat's records
#[derive(Parser, Clone, Debug)]
#[command(name = "cleat-controller", version = cleat_runtime::VERSION)]
pub struct Maintenance {
    #[command(flatten)]
    common: Common,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    /// Moves the records of a store in a file into the cluster. No controller may run meanwhile, on either
    MigrateStore {
        /// The store that is left: file:PATH. Once all is moved, PATH is renamed to PATH.moved
        #[arg(long, value_name = "STORE")]
        from: StoreSpec,

        /// The store that is moved to: kubernetes
        #[arg(long, value_name = "STORE")]
        to: StoreSpec,

        /// How long to wait for the cluster's Lease
        #[arg(long, value_name = "DURATION", default_value = "1min", value_parser = duration)]
        wait: Duration,

        #[command(flatten)]
        kubernetes: KubernetesOptions,
    },
    /// Fails, naming them, while volumes are attached or nodes are kept out of one
    UninstallCheck {
        /// Name of the CSI driver
        #[arg(long, value_name = "NAME", default_value = DEFAULT_DRIVER_NAME)]
        driver_name: String,

        #[command(flatten)]
        kubernetes: KubernetesOptions,
    },
}

impl Program for Maintenance {
    const NAME: &'static str = "cleat-controller";

    fn common(&self) -> &Common {
        &self.common
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    /// There is no client for the cluster.
    #[error("cannot reach the cluster")]
    Connect(#[from] NoClient),
    /// Nobody waits for the Lease any more.
    #[error(transparent)]
    WaitEnded(#[from] WaitEnded),
    /// What is in use is not known.
    #[error(
        "cannot read what is in use, so it counts as in use; this needs get and list on cleatvolumes, cleatnodes and volumeattachments"
    )]
    Unknown(#[source] ApiError),
    /// Something is in use.
    #[error(
        "cannot uninstall: {count} in use: {shown}; delete the pods and wait until they are detached (cleatctl volumes)"
    )]
    InUse {
        /// How many.
        count: usize,
        /// The first of them.
        shown: String,
    },
    /// There is nothing to move.
    #[error("cannot move {}: there is no such file", .0.display())]
    NoFile(PathBuf),
    /// An earlier move has left its file there.
    #[error("cannot move the store: {} is there from an earlier move; move it away first", .0.display())]
    InTheWay(PathBuf),
    /// The file cannot be opened.
    #[error("cannot move the store")]
    Open(#[from] OpenError),
    /// A record cannot be read.
    #[error("cannot move the store: the controller would not read it")]
    Record(#[from] RecordError),
    /// Somebody leads in the cluster.
    #[error(
        "cannot move the store: {0} leads in the cluster; stop the controllers there (replicas: 0) and repeat this"
    )]
    Leads(String),
    /// The Lease cannot be had.
    #[error("cannot move the store: the cluster's Lease was not to be had in time; the log says why")]
    NoLease,
    /// The cluster does not do its part.
    #[error("cannot move the store: cannot {step}; the file is as it was, repeat this")]
    Cluster {
        /// What was tried.
        step: &'static str,
        /// What came of it.
        #[source]
        source: ApiError,
    },
    /// The cluster has other records.
    #[error(
        "cannot move the store: the cluster has a record of {0} that says something else; it has been in use with records of \
         its own: leave the file where it is, and start no controller with it"
    )]
    Other(Key),
    /// A record was not written.
    #[error("cannot move the store: a record was not written; the file is as it was, repeat this")]
    Write(#[from] CommitError),
    /// What is in the cluster is not what was written.
    #[error(
        "cannot move the store: the record of {0} reads back otherwise than it was written; the file is as it was"
    )]
    ReadBack(Key),
    /// The file is still there under its name.
    #[error("all records were moved, but {} cannot be renamed; move it away by hand before anything else", path.display())]
    Rename {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The task that opens it panicked.
    #[error("opening the store ended without an answer")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Does what the command line says.
///
/// # Errors
/// What was in the way, with the exit code that belongs to it.
pub async fn run(maintenance: Maintenance, context: Context) -> Result<(), Failure> {
    let Maintenance { common: _, command } = maintenance;
    // A Lease that is renewed in time for a call of the API server alone: the RDS is not asked for anything.
    let settings = |kubernetes: KubernetesOptions, driver: &str| {
        kubernetes.settings(Duration::ZERO, driver).map_err(Failure::config)
    };
    match command {
        Command::UninstallCheck { driver_name, kubernetes } => {
            check(settings(kubernetes, &driver_name)?, &driver_name).await.map_err(Failure::failed)
        }
        Command::MigrateStore { from, to, wait, kubernetes } => {
            let (StoreSpec::File(from), StoreSpec::Kubernetes) = (from, to) else {
                let rule = "records are moved --from file:PATH --to kubernetes".to_owned();
                return Err(Failure::config(ConfigError::Value {
                    option: "--from",
                    value: String::new(),
                    rule,
                }));
            };
            let moving = migrate(&from, settings(kubernetes, DEFAULT_DRIVER_NAME)?, wait, &context);
            moving.await.map_err(Failure::failed)
        }
    }
}

async fn check(settings: ClusterSettings, driver_name: &str) -> Result<(), MaintenanceError> {
    let server = ApiServer::connect(settings.kubeconfig.as_deref(), settings.api_timeout).await?;
    let mut tries = 1;
    let found = loop {
        match in_use(&server, driver_name).await {
            // One slow answer is no reason to begin an uninstall again.
            Err(ApiError::Unanswered(_)) if tries < TRIES => tries += 1,
            answer => break answer.map_err(MaintenanceError::Unknown)?,
        }
        tokio::time::sleep(AGAIN).await;
    };
    if found.is_empty() {
        tracing::info!("no volume is in use");
        return Ok(());
    }
    let shown = found.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    Err(MaintenanceError::InUse { count: found.len(), shown })
}

/// Moves the records of a file into a cluster. After an error the file is as it was, and the same may be done again.
async fn migrate(
    from: &Path,
    settings: ClusterSettings,
    wait: Duration,
    context: &Context,
) -> Result<(), MaintenanceError> {
    if !from.exists() {
        return Err(MaintenanceError::NoFile(from.to_owned()));
    }
    let moved_before = PathBuf::from(format!("{}.moved", from.display()));
    if moved_before.exists() {
        return Err(MaintenanceError::InTheWay(moved_before));
    }
    let path = from.to_owned();
    let (file, loaded) = tokio::task::spawn_blocking(move || FileStore::open(&path)).await??;
    engine::read_records(loaded.entries.clone())?;
    let eras = file.eras().await?;
    let server = ApiServer::connect(settings.kubeconfig.as_deref(), settings.api_timeout).await?;
    let claim = claim(&server, &settings, wait, context).await?;
    let moved = move_all(&server, &settings, &claim, loaded, &eras).await;
    // While this process has both: nobody begins with the file, and nobody leads in the cluster beside it.
    let moved = moved.and_then(|records| {
        move_away(from).map_err(|source| MaintenanceError::Rename { path: from.to_owned(), source })?;
        Ok(records)
    });
    drop(file);
    claim.release().await;
    let records = moved?;
    tracing::info!(
        records,
        "all records are in the cluster; {} was renamed to {}.moved, and a mark stands in its place",
        from.display(),
        from.display()
    );
    Ok(())
}

/// The cluster's Lease: nobody else leads there while this process has it.
async fn claim(
    server: &ApiServer,
    settings: &ClusterSettings,
    wait: Duration,
    context: &Context,
) -> Result<LeaseClaim, MaintenanceError> {
    let (standby, stands) = watch::channel(Standby::default());
    let candidate = Candidate {
        namespace: settings.namespace.clone(),
        name: settings.lease.clone(),
        identity: settings.identity.clone(),
        duration: settings.lease_duration,
    };
    tracing::info!(lease = format!("{}/{}", settings.namespace, settings.lease), "asking for the Lease");
    let asking = candidate.acquire(server.clone(), &standby, &context.stop);
    match tokio::time::timeout(wait, asking).await {
        Ok(Ok(Some(claim))) => Ok(claim),
        Ok(Err(error)) => Err(error.into()),
        _ => Err(match stands.borrow().leader.as_ref().and_then(Leader::seen) {
            Some((leader, _)) => MaintenanceError::Leads(leader.to_owned()),
            None => MaintenanceError::NoLease,
        }),
    }
}

async fn move_all(
    server: &ApiServer,
    settings: &ClusterSettings,
    claim: &LeaseClaim,
    loaded: Loaded,
    eras: &[cleat_rds::secret::Era],
) -> Result<usize, MaintenanceError> {
    if let Err((name, error)) = definitions::install(server).await {
        tracing::warn!("cannot bring the definition {name} to this version: {error}");
    }
    let (store, there) = open(server, settings, claim).await?;
    let said = |key: &Key, there: &[StoredRecord]| {
        there.iter().find(|record| record.key == *key).map(|record| record.value.clone())
    };
    let mut writes = Vec::new();
    for StoredRecord { key, value, .. } in &loaded.entries {
        match said(key, &there.entries) {
            None => writes.push(Write { key: key.clone(), expected: None, value: Some(value.clone()) }),
            Some(found) if found == *value => {}
            Some(_) => return Err(MaintenanceError::Other(key.clone())),
        }
    }
    let known = |key: &Key| loaded.entries.iter().any(|record| record.key == *key);
    if let Some(other) = there.entries.iter().find(|record| !known(&record.key)) {
        return Err(MaintenanceError::Other(other.key.clone()));
    }
    // Whoever leads next grants under a later term than any that was granted under here.
    let term = insist(|| store.take_term(loaded.term.max(there.term).saturating_add(1))).await?;
    insist(|| store.note_eras(eras)).await?;
    tracing::info!(term, records = writes.len(), "writing the records");
    for write in &writes {
        insist(|| async { store.commit(vec![write.clone()]).await.pop().unwrap_or_else(|| Err(nothing())) })
            .await?;
    }
    drop(store);
    let (_, there) = open(server, settings, claim).await?;
    for StoredRecord { key, value, .. } in &loaded.entries {
        if said(key, &there.entries).as_ref() != Some(value) {
            return Err(MaintenanceError::ReadBack(key.clone()));
        }
    }
    Ok(loaded.entries.len())
}

fn nothing() -> CommitError {
    CommitError::Fatal { reason: "the store has not answered".into() }
}

async fn open(
    server: &ApiServer,
    settings: &ClusterSettings,
    claim: &LeaseClaim,
) -> Result<(KubernetesStore, Loaded), MaintenanceError> {
    let mut tries = 0;
    loop {
        match KubernetesStore::open(server, &settings.namespace, claim.clone()).await {
            Ok(opened) => return Ok(opened),
            // A definition that was made a moment ago is not there at once.
            Err(source) if tries == TRIES => {
                return Err(MaintenanceError::Cluster { step: "read the records", source });
            }
            Err(_) => tries += 1,
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn insist<T, F: Future<Output = Result<T, CommitError>>>(
    ask: impl Fn() -> F,
) -> Result<T, CommitError> {
    for _ in 0..TRIES {
        match ask().await {
            Err(CommitError::Retry { .. }) => tokio::time::sleep(AGAIN).await,
            answer => return answer,
        }
    }
    ask().await
}
