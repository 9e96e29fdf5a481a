//! The floor: a rung's own commands at the target and on the survivor, with nothing of Cleat.
//!
//! What always holds: each command is timed where it is run, so neither the network nor this program's way into the
//! machines is in a figure; the proof's floor ends where the namespace is down, which is all that a proof needs, and
//! the survivor's stall is with everything brought back at once.

use std::time::Duration;

use anyhow::Context;
use cleat_rig::{Command, Machine};
use rds_sim::secret::Secret;

use super::figures::{Sample, Steps};
use super::load::{Load, Seat, VOLUME_BYTES, hold};
use super::{Round, Scene};
use crate::world::{Connect, RawHost, RawVolume, Rung};

/// The agent's own default, so that both ways' hosts notice alike.
const KEEP_ALIVE_S: u32 = 5;
const LONG: Duration = Duration::from_secs(120);
const FENCED_KEY: u64 = 0xa;
const SURVIVOR_KEY: u64 = 0xb;
/// Steps that come after the point at which the fenced host can write no more.
const AFTERWARDS: [&str; 2] = ["enable", "link"];

impl Scene<'_> {
    pub(super) async fn raw(&self, round: Round) -> anyhow::Result<Sample> {
        let world = self.world;
        let (fenced, survivor) = (RawHost::on(world.a()), RawHost::on(world.b()));
        let slot = format!("raw-{}", round.number);
        let volume =
            RawVolume::make(&world.rds, &slot, VOLUME_BYTES, &[fenced.nqn(), survivor.nqn()]).await?;
        let secret = |word: &str| Secret::of_password(&format!("{word} of {slot}")).reveal().to_owned();
        let first = (self.rung == Rung::Secret).then(|| secret("first"));
        if let Some(first) = &first {
            world.rds.set_password(&slot, first).await?;
        }
        let how = Connect { secret: first, keep_alive: Some(KEEP_ALIVE_S) };
        let seat = Seat { node: world.a(), device: connect(&fenced, &volume, &how).await? };
        let other = match self.survives() {
            true => Some(Seat { node: world.b(), device: connect(&survivor, &volume, &how).await? }),
            false => None,
        };
        if let (Rung::Reservation, Some(other)) = (self.rung, &other) {
            fenced.register(&seat.device, FENCED_KEY).await?;
            survivor.register(&other.device, SURVIVOR_KEY).await?;
            fenced.reserve(&seat.device, FENCED_KEY).await?;
        }
        let mut load = Load::begin(&slot, &seat, other.as_ref()).await?;
        if round.held {
            hold(&world.rds, &slot).await?;
        }
        let rest_ms = load.stall_ms();
        let steps = self.commands(&volume, &fenced, &survivor, other.as_ref(), &secret("second"))?;
        let stall_ms = load.survived().await?;
        for host in [&fenced, &survivor] {
            host.delete_controllers(&volume).await?;
        }
        load.end().await;
        world.rds.remove_disk(&slot).await?;
        // rds-sim knows nothing of what was done past it: a host that is left here would keep its secret.
        for host in [&fenced, &survivor] {
            world
                .rds
                .sh(&format!("rmdir /sys/kernel/config/nvmet/hosts/{} 2>/dev/null; true", host.nqn()))
                .await?;
        }
        let proof_ms =
            steps.iter().filter(|(name, _)| !AFTERWARDS.contains(&name.as_str())).map(|(_, ms)| ms).sum();
        Ok(Sample { proof_ms, stall_ms, rest_ms, steps })
    }

    /// The same steps as Cleat's on this rung, in the same order.
    fn commands(
        &self,
        volume: &RawVolume,
        fenced: &RawHost<'_>,
        survivor: &RawHost<'_>,
        other: Option<&Seat<'_>>,
        secret: &str,
    ) -> anyhow::Result<Steps> {
        let (target, host) = (self.world.rds.machine(), survivor.node().machine());
        let (a, b, nqn) = (fenced.nqn(), survivor.nqn(), volume.nqn.as_str());
        let mut steps = Steps::new();
        match (self.rung, other) {
            (Rung::Reservation, Some(other)) => {
                steps.extend(run(target, &["deny", "--nqn", nqn, "--host", &a])?);
                let (key, victim) = (SURVIVOR_KEY.to_string(), FENCED_KEY.to_string());
                let words = ["preempt", "--device", &other.device, "--key", &key, "--victim", &victim];
                steps.extend(run(host, &words)?);
            }
            (Rung::Acl, _) => steps.extend(run(target, &["deny", "--nqn", nqn, "--host", &a])?),
            (Rung::Secret, _) => {
                steps.extend(run(target, &["deny", "--nqn", nqn, "--host", &a])?);
                steps.extend(run(target, &["secret", "--host", &b, "--secret", secret])?);
                steps.extend(run(host, &["rekey", "--nqn", nqn, "--secret", secret])?);
            }
            (Rung::Reservation | Rung::ExportOff, _) => {}
        }
        let mut words = vec!["cut", "--nqn", nqn];
        if self.rung == Rung::ExportOff {
            words.push("--stay-off");
        }
        steps.extend(run(target, &words)?);
        Ok(steps)
    }
}

/// Connects with the kernel's own choice among paths, which the agent leaves as it is, too.
async fn connect(host: &RawHost<'_>, volume: &RawVolume, how: &Connect) -> anyhow::Result<String> {
    let device = host.connect(volume, how).await?;
    let script = "for s in /sys/class/nvme-subsystem/*/iopolicy; do echo numa >$s; done";
    host.node().sh(script).await?;
    Ok(device)
}

/// Runs commands in a machine, and waits: nothing else is to happen meanwhile.
fn run(machine: &Machine, words: &[&str]) -> anyhow::Result<Steps> {
    let command = Command::new("fence-guest").args(words.iter().copied()).deadline(LONG);
    let text = tokio::task::block_in_place(|| machine.run(&command))?;
    serde_json::from_str(&text).with_context(|| format!("understand fence-guest {}: {text}", words[0]))
}
