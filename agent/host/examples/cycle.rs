//! Connects volumes over all portals side by side, waits until each is ready, and takes them down again;
//! prints what the kernel said and how long each part took. For trying the crate on a real kernel.
//!
//! `cycle [--cli] [--hold SECONDS] NQN[,NQN…] ADDRESS:PORT[,…]`

// A tool for a terminal.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cleat_host::fabrics::{ConnectOptions, ConnectRequest, Fabrics, KernelFabrics, NvmeCli, Target};
use cleat_host::identity::IdentitySource;
use cleat_host::openers::Openers;
use cleat_host::readiness::{Checker, Expectation, PathPolicy};
use cleat_host::sysfs::Sysfs;
use cleat_host::uevents::{HostEvent, Uevents};
use cleat_host::work::Workers;
use cleat_host::{Portal, SubsystemNqn};

const DEADLINE: Duration = Duration::from_secs(60);

struct Host {
    sysfs: Sysfs,
    fabrics: Arc<dyn Fabrics>,
    checker: Checker,
    openers: Openers,
    uevents: Uevents,
    identity: cleat_host::identity::HostIdentity,
    portals: Vec<Portal>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let cli = arguments.first().is_some_and(|argument| argument == "--cli");
    if cli {
        arguments.remove(0);
    }
    let mut hold = Duration::ZERO;
    if arguments.first().is_some_and(|argument| argument == "--hold") {
        hold = Duration::from_secs(arguments[1].parse()?);
        arguments.drain(..2);
    }
    let [nqns, portals] = &arguments[..] else { return Err("NQN[,NQN…] ADDRESS:PORT[,…]".into()) };
    let nqns = nqns.split(',').map(SubsystemNqn::parse).collect::<Result<Vec<_>, _>>()?;
    let portals = portals.split(',').map(Portal::parse).collect::<Result<Vec<_>, _>>()?;
    let sysfs = Sysfs::default();
    let modprobe = std::path::Path::new("modprobe");
    cleat_host::modules::ensure_nvme_tcp(&sysfs, "/dev/nvme-fabrics".as_ref(), modprobe).await?;
    let fabrics: Arc<dyn Fabrics> = match cli {
        true => Arc::new(NvmeCli::new("nvme", sysfs.clone())),
        false => Arc::new(KernelFabrics::new("/dev/nvme-fabrics", sysfs.clone())),
    };
    let workers = Workers::new();
    let openers = Openers::new(sysfs.clone(), workers.clone());
    let checker = Checker::new(sysfs.clone(), workers, openers.clone());
    let identity = IdentitySource::default().load_or_make()?;
    println!("{} as {} on {}", fabrics.name(), identity.host_nqn, identity.kernel_release);
    let uevents = Uevents::start()?;
    let mut listener = uevents.listen();
    let host = Arc::new(Host { sysfs, fabrics, checker, openers, uevents, identity, portals });
    let since = Instant::now();
    let tasks: Vec<_> = nqns
        .into_iter()
        .map(|nqn| {
            let host = Arc::clone(&host);
            tokio::spawn(async move { cycle(&host, nqn, hold).await.map_err(|error| error.to_string()) })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    println!("all in {} ms", since.elapsed().as_millis());
    let mut counts = std::collections::BTreeMap::new();
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(100), listener.next()).await {
        let text = match event {
            HostEvent::Device(event) => format!("{:?} {:?}", event.kind, event.action),
            HostEvent::Overrun => "overrun".to_owned(),
        };
        *counts.entry(text).or_insert(0_u32) += 1;
    }
    println!("events: {counts:?}");
    Ok(())
}

async fn cycle(host: &Host, nqn: SubsystemNqn, hold: Duration) -> Result<(), Box<dyn Error>> {
    let since = Instant::now();
    let requests: Vec<_> = host.portals.iter().map(|portal| request(host, &nqn, *portal)).collect();
    let connects: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let fabrics = Arc::clone(&host.fabrics);
            tokio::spawn(async move { fabrics.connect(&request, DEADLINE).await })
        })
        .collect();
    let mut listener = host.uevents.listen();
    for connect in connects {
        let connected = connect.await??;
        println!("{nqn}: {} in {} ms", connected.controller.name, connected.took.as_millis());
    }
    let expectation = Expectation {
        subsystem: nqn.clone(),
        identity: None,
        size_bytes: None,
        read_only: false,
        host_nqn: host.identity.host_nqn.clone(),
        portals: host.portals.clone(),
        paths: PathPolicy::All,
        asked_holders: Vec::new(),
    };
    let ready = host.checker.wait(&expectation, &mut listener, DEADLINE).await;
    println!("{nqn}: {ready:?} after {} ms", since.elapsed().as_millis());
    if let Ok(ready) = ready {
        let report = host.openers.look(ready.selected.dev, DEADLINE).await;
        println!("{nqn}: openers {:?}: {report}", report.verdict());
    }
    tokio::time::sleep(hold).await;
    detach(host, &nqn).await
}

async fn detach(host: &Host, nqn: &SubsystemNqn) -> Result<(), Box<dyn Error>> {
    let since = Instant::now();
    let view = host.sysfs.view(nqn, DEADLINE).await?;
    let deletions: Vec<_> = view
        .controllers
        .iter()
        .filter_map(|controller| Target::of(controller, nqn, &host.identity.host_nqn))
        .map(|target| {
            let fabrics = Arc::clone(&host.fabrics);
            tokio::spawn(async move { fabrics.disconnect(&target, DEADLINE).await })
        })
        .collect();
    for deletion in deletions {
        let gone = deletion.await??;
        println!("{nqn}: {gone:?}, drained {}", gone.drained());
    }
    let absent = host.sysfs.view(nqn, DEADLINE).await?.is_proven_absent();
    println!("{nqn}: absent {absent} after {} ms", since.elapsed().as_millis());
    Ok(())
}

fn request(host: &Host, nqn: &SubsystemNqn, portal: Portal) -> ConnectRequest {
    ConnectRequest {
        subsystem: nqn.clone(),
        portal,
        host_nqn: host.identity.host_nqn.clone(),
        host_id: host.identity.host_id,
        options: ConnectOptions { nr_io_queues: Some(2), ..ConnectOptions::default() },
        secret: None,
    }
}
