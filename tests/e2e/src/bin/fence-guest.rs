//! `fence-guest`: the raw commands of a fence, timed in the machine where they are run: the floor under every figure
//! of `hack/bench fence`.
//!
//! Runs in the RDS machine (the kernel target's configfs) and in the survivor's (its controllers' secret, the block
//! layer's reservation ioctl). In: a subsystem and what to take away. Out: one JSON object with the time of each
//! step. What always holds: nothing is read back, asked twice or written down, which is what makes it a floor and no
//! fence; the first step that fails ends it with an error.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Parser, Subcommand};
use cleat_host::DevT;
use cleat_host::reservations::{BlockReservations, ReservationKey, Reservations};
use cleat_host::sysfs::Sysfs;
use cleat_host::work::Workers;

/// Runs raw commands of a fence and says how long each took.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// On the target: take a host off a subsystem's list
    Deny {
        #[arg(long)]
        nqn: String,
        #[arg(long)]
        host: String,
    },
    /// On the target: give hosts another secret
    Secret {
        #[arg(long = "host", required = true)]
        hosts: Vec<String>,
        #[arg(long)]
        secret: String,
    },
    /// On the target: take the subsystem off all ports, then its namespace down; up again and linked, unless told not to
    Cut {
        #[arg(long)]
        nqn: String,
        #[arg(long)]
        stay_off: bool,
    },
    /// On a host: give the subsystem's controllers another secret, side by side
    Rekey {
        #[arg(long)]
        nqn: String,
        #[arg(long)]
        secret: String,
    },
    /// On a host: take another's registration away and abort its commands
    Preempt {
        #[arg(long)]
        device: PathBuf,
        #[arg(long)]
        key: u64,
        #[arg(long)]
        victim: u64,
    },
}

/// Milliseconds by step.
type Steps = BTreeMap<&'static str, f64>;

const NVMET: &str = "/sys/kernel/config/nvmet";
/// No command takes nearly as long unless the target hangs.
const LONG: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    let done = ran(&Cli::parse().what).and_then(|steps| {
        let line = serde_json::to_string(&steps)?;
        Ok(writeln!(io::stdout(), "{line}")?)
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "fence-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ran(what: &What) -> anyhow::Result<Steps> {
    let mut steps = Steps::new();
    match what {
        What::Deny { nqn, host } => {
            let entry = subsystem(nqn).join("allowed_hosts").join(host);
            timed(&mut steps, "deny", || {
                fs::remove_file(&entry).with_context(|| format!("unlink {}", entry.display()))
            })?;
        }
        What::Secret { hosts, secret } => timed(&mut steps, "set_secret", || {
            let key = |host: &String| Path::new(NVMET).join("hosts").join(host).join("dhchap_key");
            hosts.iter().try_for_each(|host| write(&key(host), secret))
        })?,
        What::Cut { nqn, stay_off } => cut(nqn, *stay_off, &mut steps)?,
        What::Rekey { nqn, secret } => rekey(nqn, secret, &mut steps)?,
        What::Preempt { device, key, victim } => preempt(device, *key, *victim, &mut steps)?,
    }
    Ok(steps)
}

fn timed(
    steps: &mut Steps,
    name: &'static str,
    step: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    step()?;
    steps.insert(name, begun.elapsed().as_secs_f64() * 1000.0);
    Ok(())
}

fn subsystem(nqn: &str) -> PathBuf {
    Path::new(NVMET).join("subsystems").join(nqn)
}

/// One write, to a file that is there.
fn write(path: &Path, value: &str) -> anyhow::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path);
    // What is written may be a secret: the path alone is said.
    let written = file.and_then(|mut file| file.write_all(value.as_bytes()));
    written.with_context(|| format!("write to {}", path.display()))
}

fn cut(nqn: &str, stay_off: bool, steps: &mut Steps) -> anyhow::Result<()> {
    let subsystem = subsystem(nqn);
    let enable = subsystem.join("namespaces/1/enable");
    let mut links = Vec::new();
    for port in fs::read_dir(Path::new(NVMET).join("ports")).context("list the ports")? {
        let link = port.context("list the ports")?.path().join("subsystems").join(nqn);
        if link.symlink_metadata().is_ok() {
            links.push(link);
        }
    }
    ensure!(!links.is_empty(), "{nqn} is linked to no port");
    timed(steps, "unlink", || {
        let unlink = |link: &PathBuf| fs::remove_file(link).context("unlink a port");
        links.iter().try_for_each(unlink)
    })?;
    timed(steps, "disable", || write(&enable, "0"))?;
    if stay_off {
        return Ok(());
    }
    timed(steps, "enable", || write(&enable, "1"))?;
    timed(steps, "link", || {
        links.iter().try_for_each(|link| symlink(&subsystem, link).context("link a port"))
    })
}

fn rekey(nqn: &str, secret: &str, steps: &mut Steps) -> anyhow::Result<()> {
    let mut controllers = Vec::new();
    for entry in fs::read_dir("/sys/class/nvme").context("list the controllers")? {
        let path = entry.context("list the controllers")?.path();
        // One that goes away while we look is not there.
        if fs::read_to_string(path.join("subsysnqn")).is_ok_and(|text| text.trim_end() == nqn) {
            controllers.push(path.join("dhchap_secret"));
        }
    }
    ensure!(!controllers.is_empty(), "no controller of {nqn}");
    timed(steps, "rekey", || {
        std::thread::scope(|scope| {
            let job = |path: &Path| write(path, secret).and_then(|()| authenticated(path));
            let writing: Vec<_> = controllers.iter().map(|path| scope.spawn(move || job(path))).collect();
            // All are waited for, whatever the first says.
            let done: Vec<_> = writing.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            done.into_iter().try_for_each(|one| one.unwrap_or_else(|_| bail!("a thread panicked")))
        })
    })
}

/// Waits until a controller's authentication is over, which writing its secret has begun: one that is cut off in the
/// middle of it is not connected again (seen on Linux 6.18). Writing what is no secret waits for it, and changes
/// nothing (`nvme_ctrl_dhchap_secret_store` in drivers/nvme/host/sysfs.c).
fn authenticated(path: &Path) -> anyhow::Result<()> {
    match fs::OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(b"DHHC-1:")) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => bail!("{}: no secret was answered with {other:?}", path.display()),
    }
}

fn preempt(device: &Path, key: u64, victim: u64, steps: &mut Steps) -> anyhow::Result<()> {
    let metadata = fs::metadata(device).with_context(|| format!("look at {}", device.display()))?;
    let dev = DevT::from_raw(metadata.rdev());
    let keys = ReservationKey::new(key).zip(ReservationKey::new(victim));
    let (key, victim) = keys.context("0 is no key")?;
    // One ioctl on the opened device: the one piece of the agent's code here, since unsafe code has no other place.
    let reservations = BlockReservations::at("/dev", Sysfs::default(), Workers::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().context("tokio")?;
    timed(steps, "preempt", || {
        runtime.block_on(reservations.preempt_and_abort(dev, key, victim, LONG)).map_err(Into::into)
    })
}
