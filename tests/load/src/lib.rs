//! What very many volumes and agents cost one controller: its CPU at rest, a Publish's decision while others go on, a
//! restart, its memory.
//!
//! In comes how much there is to be; out go figures. The controller is the program that ships, in a process of its own, with
//! its store in a file and mutual TLS; agents are sessions without kernels behind them ([`agents`]), the RDS is one in memory
//! ([`rds`]). The store is filled by the controller's own store, as one that has granted everything leaves it ([`store`]):
//! a hundred thousand attaches by calls would take longer than all that is measured.

#![allow(rustdoc::private_intra_doc_links)]

mod agents;
mod attaches;
mod certificates;
mod controller;
mod figures;
mod rds;
mod scale;
mod store;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::task::JoinSet;

use agents::Fleet;
use certificates::Certificates;
use cleat_proto::csi::v1::controller_client::ControllerClient;
use controller::{Controller, Start};
use figures::percentile_ms;
pub use figures::{AgentPoint, Figures, Point};
use rds::LoadRds;
pub use scale::Scale;
use tonic::transport::Channel;

/// Between two looks.
const SOON: Duration = Duration::from_millis(10);
/// Between two tries of a call that is answered otherwise.
const AGAIN: Duration = Duration::from_millis(200);
/// Lists are read more often right after a start, and after the drain bound each record is written that said of it: nothing is
/// at rest before.
const CALM: Duration = Duration::from_secs(65);
/// Descriptors for each agent: a listener takes an eighth of a process's for connections, and some are not agents'.
const DESCRIPTORS_EACH: usize = 10;
/// And for everything else.
const DESCRIPTORS: usize = 4_096;

/// How long things are measured.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// At rest.
    pub rest: Duration,
    /// Publishes in a second.
    pub a_second: u32,
    /// What anything may take before it counts as not reached.
    pub patience: Duration,
}

/// Measures one number of volumes; `say` gets a line for each step. What cannot be measured is left out, and said.
///
/// # Errors
/// Where nothing can be measured at all.
pub async fn measure(
    program: &Path,
    scale: Scale,
    times: Times,
    say: &mut dyn FnMut(String),
) -> anyhow::Result<Point> {
    raise_descriptors(DESCRIPTORS + scale.agents * DESCRIPTORS_EACH)?;
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let certificates = Certificates::make(folder.path()).context("cannot make certificates")?;
    let rds = LoadRds::serve(&scale).await?;
    let start = Start::new(program, folder.path(), &rds, certificates.server()?)?;
    let filling = Instant::now();
    store::fill(&start.store(), &scale).await?;
    let fleet = Arc::new(Fleet::start(&scale, &certificates)?);
    say(format!("{} records written by the controller's own store in {} ms", scale.all().len(), ms(filling)));

    let mut point = Point { volumes: scale.volumes, agents: scale.agents, ..Point::default() };
    let measured = run(&start, &scale, times, &fleet, &rds, &mut point, say).await;
    if let Err(error) = measured {
        say(format!("cannot go on: {error:#}"));
    }
    Ok(point)
}

async fn run(
    start: &Start,
    scale: &Scale,
    times: Times,
    fleet: &Arc<Fleet>,
    rds: &LoadRds,
    point: &mut Point,
    say: &mut dyn FnMut(String),
) -> anyhow::Result<()> {
    let mut controller = start.exec()?;
    let (csi, _) = all_back(&mut controller, scale, times, fleet, say).await.context("first start")?;
    point.rss_mib = Some(controller.most_memory_mib()?);

    tokio::time::sleep(CALM).await;
    rds.take_asked();
    let (before, began) = (controller.cpu()?, Instant::now());
    tokio::time::sleep(times.rest).await;
    let used = controller.cpu()?.saturating_sub(before);
    let percent = 100.0 * used.as_secs_f64() / began.elapsed().as_secs_f64();
    point.idle_cpu_percent = Some((percent * 100.0).round() / 100.0);
    ensure!(fleet.up() == scale.agents, "only {} of {} sessions are up at rest", fleet.up(), scale.agents);
    let asked = rds.take_asked();
    say(format!(
        "at rest for {} s: {} ms of CPU, {} lists of {} KiB together",
        times.rest.as_secs(),
        used.as_millis(),
        asked.lists,
        asked.listed_bytes / 1024
    ));

    let before = controller.cpu()?;
    let began = Instant::now();
    let attaches = attaches::attach_all(&csi, scale, times.a_second, fleet).await;
    let (took, used, asked) = (began.elapsed(), controller.cpu()?.saturating_sub(before), rds.take_asked());
    point.publish_p50_ms = percentile_ms(&attaches.decided, 50);
    point.publish_p99_ms = percentile_ms(&attaches.decided, 99);
    say(format!(
        "{} attaches, {} a second, in {} ms: answers p50 {} ms, p99 {} ms; {} ms of CPU; the RDS: {} lists ({} KiB), \
         {} questions, {} changes",
        attaches.answered.len(),
        times.a_second,
        took.as_millis(),
        percentile_ms(&attaches.answered, 50).unwrap_or_default(),
        percentile_ms(&attaches.answered, 99).unwrap_or_default(),
        used.as_millis(),
        asked.lists,
        asked.listed_bytes / 1024,
        asked.questions,
        asked.changes,
    ));
    if let Some(failed) = attaches.failed.first() {
        (point.publish_p50_ms, point.publish_p99_ms) = (None, None);
        say(format!("{} Publishes were answered otherwise; the first: {failed}", attaches.failed.len()));
    }
    point.rss_mib = point.rss_mib.max(Some(controller.most_memory_mib()?));

    controller.kill();
    let ended = Instant::now() + times.patience;
    while fleet.up() > 0 {
        ensure!(Instant::now() < ended, "{} sessions outlive the controller", fleet.up());
        tokio::time::sleep(SOON).await;
    }
    let mut controller = start.exec()?;
    let (_, took) = all_back(&mut controller, scale, times, fleet, say).await.context("restart")?;
    point.restart_ms = u64::try_from(took.as_millis()).ok();
    point.rss_mib = point.rss_mib.max(Some(controller.most_memory_mib()?));
    Ok(())
}

/// Waits until every volume is answered for: each agent has a session, and a Publish of a volume that its node has is answered
/// with what its inventory says, once that is durable. An inventory is taken in as a whole, so one volume of each stands for all.
async fn all_back(
    controller: &mut Controller,
    scale: &Scale,
    times: Times,
    fleet: &Fleet,
    say: &mut dyn FnMut(String),
) -> anyhow::Result<(ControllerClient<Channel>, Duration)> {
    let deadline = controller.began + times.patience;
    fleet.connect_to(controller.agents_at(deadline).await?);
    let csi = controller.csi(deadline).await?;
    let served = controller.began.elapsed();
    while fleet.up() < scale.agents {
        controller.runs(deadline, "all agents have a session")?;
        tokio::time::sleep(SOON).await;
    }
    let up = controller.began.elapsed();
    let mut answers = JoinSet::new();
    for node in 0..scale.agents {
        let (csi, scale) = (csi.clone(), *scale);
        let Some(last) = scale.held_by(node).last() else { continue };
        answers.spawn(async move {
            while attaches::ask(&csi, &scale, last).await.is_err() {
                tokio::time::sleep(AGAIN).await;
            }
        });
    }
    let mut first = None;
    while !answers.is_empty() {
        match tokio::time::timeout(AGAIN, answers.join_next()).await {
            Ok(_) => first = first.or_else(|| Some(controller.began.elapsed())),
            Err(_) => controller.runs(deadline, "all volumes are answered for")?,
        }
    }
    let took = controller.began.elapsed();
    say(format!(
        "from exec: served after {} ms, all inventories sent after {} ms, the first volume answered for after {} ms, all \
         after {} ms; {} ms of CPU",
        served.as_millis(),
        up.as_millis(),
        first.unwrap_or(took).as_millis(),
        took.as_millis(),
        controller.cpu()?.as_millis(),
    ));
    Ok((csi, took))
}

fn ms(since: Instant) -> u128 {
    since.elapsed().as_millis()
}

/// As the controller is to have them, which inherits them.
fn raise_descriptors(least: usize) -> anyhow::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(hard >= least as u64, "the limit of open files is {hard}: raise it to {least} (ulimit -Hn)");
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(1 << 16).max(least as u64), hard)?;
    Ok(())
}
