//! Single steps of this crate on a real kernel, for looking at what it sees and does there.
//!
//! `look topology | openers MAJOR:MINOR | watch SECONDS | bind NODE TARGET | release TARGET |
//! connect NQN ADDRESS:PORT MILLISECONDS [SECRET] | rekey NQN SECRET | disconnect NQN MILLISECONDS |
//! flush MAJOR:MINOR`
//!
//! A secret on a command line is for tests only.

// A tool for a terminal.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use cleat_host::fabrics::{ConnectOptions, ConnectRequest, DhchapSecret, Fabrics, KernelFabrics, Target};
use cleat_host::identity::IdentitySource;
use cleat_host::mounts::Mounts;
use cleat_host::openers::Openers;
use cleat_host::sysfs::Sysfs;
use cleat_host::uevents::Uevents;
use cleat_host::work::Workers;
use cleat_host::{DevT, Portal, SubsystemNqn};

const DEADLINE: Duration = Duration::from_secs(10);

fn milliseconds(text: &str) -> Result<Duration, Box<dyn Error>> {
    Ok(Duration::from_millis(text.parse()?))
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let since = Instant::now();
    match run(&arguments).await {
        Ok(()) => println!("ok after {} ms", since.elapsed().as_millis()),
        Err(error) => println!("failed after {} ms: {}", since.elapsed().as_millis(), chain(error.as_ref())),
    }
}

async fn run(arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let sysfs = Sysfs::default();
    let workers = Workers::new();
    match arguments {
        ["topology"] => println!("{}", serde_json::to_string_pretty(&sysfs.read(DEADLINE).await?)?),
        ["openers", dev] => {
            let report = Openers::new(sysfs, workers).look(DevT::parse(dev)?, DEADLINE).await;
            println!("{:?}: {report}\n{report:#?}", report.verdict());
        }
        ["watch", seconds] => watch(Duration::from_secs(seconds.parse()?)).await?,
        ["bind", node, target] => {
            let dev = DevT::from_raw(std::fs::metadata(node)?.rdev());
            let mounts = Mounts::new(workers, "/");
            mounts.bind_device(Path::new(node), dev, Path::new(target), false, DEADLINE).await?;
            println!("{:?}", mounts.state(Path::new(target), DEADLINE).await?);
        }
        ["release", target] => {
            Mounts::new(workers, "/").release_device(Path::new(target), None, DEADLINE).await?;
        }
        ["flush", dev] => {
            let dev = DevT::parse(dev)?;
            cleat_host::blockio::flush(&workers, &sysfs, Path::new("/dev"), dev, DEADLINE).await?;
        }
        ["connect", nqn, portal, deadline] => {
            let (nqn, portal) = (SubsystemNqn::parse(nqn)?, Portal::parse(portal)?);
            connect(&sysfs, &nqn, portal, milliseconds(deadline)?, None).await?;
        }
        ["connect", nqn, portal, deadline, secret] => {
            let (nqn, portal) = (SubsystemNqn::parse(nqn)?, Portal::parse(portal)?);
            let secret = Some(DhchapSecret::parse(secret)?);
            connect(&sysfs, &nqn, portal, milliseconds(deadline)?, secret).await?;
        }
        ["rekey", nqn, secret] => {
            rekey(&sysfs, &SubsystemNqn::parse(nqn)?, &DhchapSecret::parse(secret)?).await?;
        }
        ["disconnect", nqn, deadline] => {
            disconnect(&sysfs, &SubsystemNqn::parse(nqn)?, milliseconds(deadline)?).await?;
        }
        _ => return Err("see the head of this example for its arguments".into()),
    }
    Ok(())
}

async fn watch(time: Duration) -> Result<(), Box<dyn Error>> {
    let uevents = Uevents::start()?;
    let mut listener = uevents.listen();
    let since = Instant::now();
    let listening = async {
        while let Some(event) = listener.next().await {
            println!("{} ms: {event:?}", since.elapsed().as_millis());
        }
    };
    let _ = tokio::time::timeout(time, listening).await;
    Ok(())
}

async fn connect(
    sysfs: &Sysfs,
    nqn: &SubsystemNqn,
    portal: Portal,
    deadline: Duration,
    secret: Option<DhchapSecret>,
) -> Result<(), Box<dyn Error>> {
    let identity = IdentitySource::default().load_or_make()?;
    let request = ConnectRequest {
        subsystem: nqn.clone(),
        portal,
        host_nqn: identity.host_nqn,
        host_id: identity.host_id,
        options: ConnectOptions { nr_io_queues: Some(1), ..ConnectOptions::default() },
        secret,
    };
    let fabrics = KernelFabrics::new("/dev/nvme-fabrics", sysfs.clone());
    let result = fabrics.connect(&request, deadline).await;
    if let Err(error) = &result {
        println!("{}; about authentication: {}", chain(error), error.is_authentication());
    }
    println!("{:?}", result.as_ref().map(|connected| (&connected.controller.name, connected.adopted)));
    if result.is_err() {
        // Whatever comes late is taken away again; wait for its end.
        let again = fabrics.connect(&request, Duration::from_secs(120)).await;
        println!(
            "again: {}",
            again.map_or_else(|error| chain(&error), |done| format!("{:?}", done.controller.name))
        );
    }
    Ok(())
}

async fn rekey(sysfs: &Sysfs, nqn: &SubsystemNqn, secret: &DhchapSecret) -> Result<(), Box<dyn Error>> {
    let identity = IdentitySource::default().load_or_make()?;
    let fabrics = KernelFabrics::new("/dev/nvme-fabrics", sysfs.clone());
    println!("authenticates: {}", fabrics.authenticates());
    for controller in sysfs.view(nqn, DEADLINE).await?.controllers {
        let Some(target) = Target::of(&controller, nqn, &identity.host_nqn) else {
            println!("{} is not ours", controller.name);
            continue;
        };
        let began = Instant::now();
        match fabrics.rekey(&target, secret, DEADLINE).await {
            Ok(()) => println!("{} took it in {} ms", controller.name, began.elapsed().as_millis()),
            Err(error) => println!("{}", chain(&error)),
        }
    }
    Ok(())
}

async fn disconnect(sysfs: &Sysfs, nqn: &SubsystemNqn, deadline: Duration) -> Result<(), Box<dyn Error>> {
    let identity = IdentitySource::default().load_or_make()?;
    let fabrics = KernelFabrics::new("/dev/nvme-fabrics", sysfs.clone());
    for controller in sysfs.view(nqn, DEADLINE).await?.controllers {
        let Some(target) = Target::of(&controller, nqn, &identity.host_nqn) else {
            println!("{} is not ours", controller.name);
            continue;
        };
        let mut result = fabrics.disconnect(&target, deadline).await;
        if let Err(error) = &result {
            println!("{}", chain(error));
            result = fabrics.disconnect(&target, Duration::from_secs(120)).await;
        }
        println!("{:?}, drained {}", result, result.as_ref().is_ok_and(|gone| gone.drained()));
    }
    println!("absent {}", sysfs.view(nqn, DEADLINE).await?.is_proven_absent());
    Ok(())
}
