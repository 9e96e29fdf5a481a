//! The migration demo in pods: QEMU in containers of two pods, on two kubelets of a cluster that is up, the disk a block volume of
//! Cleat's StorageClass, and KubeVirt's objects written around them as its own programs write them.
//!
//! In: [`PodsOptions`], the cluster of `hack/kubernetes`. Out: lines for people and a [`MigrateOutcome`] for machines. What always
//! holds: the order of writes is the target's own, judged as in [`super::migrate`]; the record of the migration is the
//! cluster's, and has the UID of the migration object; what broke off leaves what the cluster says of it in a folder.

mod cluster;
mod node;
mod scene;

use std::path::PathBuf;

use cleat_rig::Attachment;

pub use super::migrate::MigrateOutcome;
use super::say::{Say, duration};
use cluster::PodCluster;
use scene::Scene;

/// Which cluster, and what runs in it.
#[derive(Debug, Clone, clap::Args)]
pub struct PodsOptions {
    /// The rig's run that the cluster is part of.
    #[arg(long, value_name = "RUN")]
    pub run: String,
    /// kubectl.
    #[arg(long, value_name = "FILE")]
    pub kubectl: PathBuf,
    /// Who talks to the cluster.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// The image with QEMU in it, which both nodes have.
    #[arg(long, value_name = "NAME")]
    pub image: String,
    /// Where the trace goes, what QEMU wrote, and what the cluster says if it fails.
    #[arg(long, value_name = "FOLDER")]
    pub logs: PathBuf,
}

/// Moves a virtual machine from a pod on node-a to one on node-b, in the run that this process has joined.
///
/// # Errors
/// Only if the folder of logs cannot be made: what goes wrong in the demo is in the outcome.
pub async fn run(attachment: &Attachment, options: &PodsOptions) -> anyhow::Result<MigrateOutcome> {
    std::fs::create_dir_all(&options.logs)?;
    let mut say = Say::new();
    say.plain("Cleat demo: live migration of a virtual machine of a real QEMU, from pod to pod");
    say.plain("");
    let cluster = PodCluster::new(options);
    let mut scene = Scene::new(&cluster, &options.logs, &mut say);
    let done = match attachment.machine("rds") {
        Ok(rds) => scene.all(&rds).await,
        Err(error) => Err(error.into()),
    };
    let migration = scene.into_outcome();
    let outcome = MigrateOutcome { ok: done.is_ok(), migrations: vec![migration] };
    if let Err(error) = done {
        say.failure(&format!("{error:#}"));
        cluster.tell_all(&options.logs).await;
        say.plain(&format!("what the cluster says of it: {}", options.logs.display()));
        return Ok(outcome);
    }
    say.plain("");
    for migration in &outcome.migrations {
        let ms = |time: Option<f64>| time.map_or("unknown".to_owned(), |time| format!("{time:.0} ms"));
        say.plain(&format!(
            "{}: {}, a pause of {} between the last write of the source and the first of the target, {} of it not between \
             QEMU's stop and its go, which is the most that storage can have of it",
            migration.vm,
            migration.result.as_deref().unwrap_or("no result"),
            ms(migration.pause_ms),
            ms(migration.storage_ms)
        ));
    }
    say.plain(&format!("ok: no write lost, doubled or late ({})", duration(say.elapsed())));
    Ok(outcome)
}
