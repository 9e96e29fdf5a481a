//! The machine, its disks, and the store that commits to them.
//!
//! In come what a test wants of a disk; out go lines of the store, in their order, and what is there afterwards. What
//! holds: whatever was acknowledged before or after trouble began is counted, if it was said before the store's end.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use cleat_rig::{Command, Initramfs, KernelImage, Machine, MachineSpec, Namespace, Process, program};
use serde_json::Value;

/// An emulated machine on a busy host is slow; one that does nothing for so long hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

pub(crate) struct Scene {
    pub(crate) machine: Machine,
    pub(crate) seed: u64,
    /// How often what can strike at any point strikes.
    pub(crate) rounds: u32,
    random: AtomicU64,
    disks: AtomicU32,
}

impl Scene {
    pub(crate) fn boot(run: &Namespace) -> anyhow::Result<Self> {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let kernel = std::env::var("CLEAT_KERNEL").unwrap_or_else(|_| "6.1".to_owned());
        let kernel = KernelImage::find(&kernel)?;
        let image = Initramfs::for_kernel(&kernel).program(program("store-guest")?).build()?;
        let machine = run.boot(&MachineSpec::new("store", 11, &kernel, &image).disk_mib(128))?;
        let seed = number("CLEAT_SEED").unwrap_or(1);
        let rounds = u32::try_from(number("CLEAT_CRASHES").unwrap_or(3))?;
        let random = AtomicU64::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        Ok(Self { machine, seed, rounds, random, disks: AtomicU32::new(0) })
    }

    /// A number below `below`, another one each time, the same ones with the same seed.
    pub(crate) fn random(&self, below: u64) -> u64 {
        let mut next = self.random.load(Ordering::Relaxed);
        next ^= next << 13;
        next ^= next >> 7;
        next ^= next << 17;
        self.random.store(next, Ordering::Relaxed);
        next % below
    }

    /// A disk in the machine's memory. With a cache it is one that keeps what it was not told to flush only as long as
    /// it has power.
    pub(crate) fn disk(&self, size_mib: u32, cache_mib: u32) -> anyhow::Result<Disk<'_>> {
        let name = format!("disk{}", self.disks.fetch_add(1, Ordering::Relaxed));
        self.machine.sh(&format!(
            "set -e; modprobe null_blk nr_devices=0; cd /sys/kernel/config/nullb; mkdir {name}; cd {name}; \
             echo {size_mib} >size; echo 1 >memory_backed; [ {cache_mib} = 0 ] || echo {cache_mib} >cache_size; \
             echo 1 >power; [ -b /dev/{name} ]"
        ))?;
        let (device, place) = (format!("/dev/{name}"), format!("/mnt/{name}"));
        Ok(Disk { machine: &self.machine, name, device, place })
    }
}

/// A disk of its own for a test. It is gone with the machine.
pub(crate) struct Disk<'m> {
    pub(crate) machine: &'m Machine,
    name: String,
    pub(crate) device: String,
    place: String,
}

impl Disk<'_> {
    /// Makes a file system.
    pub(crate) fn format(&self, options: &str) -> anyhow::Result<()> {
        let (device, place) = (&self.device, &self.place);
        self.machine
            .sh(&format!("mkdir -p {place} && /usr/sbin/mke2fs -q -t ext4 -F -m 0 {options} {device}"))?;
        Ok(())
    }

    pub(crate) fn mount(&self) -> anyhow::Result<()> {
        self.machine.sh(&format!("mount -t ext4 {} {}", self.device, self.place))?;
        Ok(())
    }

    /// Nothing of it stays in the machine's memory afterwards.
    pub(crate) fn unmount(&self) -> anyhow::Result<()> {
        self.machine.sh(&format!("umount {}", self.place))?;
        Ok(())
    }

    /// Where the store is.
    pub(crate) fn store(&self) -> String {
        format!("{}/store", self.place)
    }

    pub(crate) fn power(&self, on: bool) -> anyhow::Result<()> {
        let power = u8::from(on);
        self.machine.sh(&format!("echo {power} >/sys/kernel/config/nullb/{}/power", self.name))?;
        Ok(())
    }

    /// Puts a layer between file system and disk that can fail.
    pub(crate) fn layer(&mut self) -> anyhow::Result<()> {
        let (name, table) = (&self.name, self.table(false));
        self.device = self.machine.sh(&format!(
            "set -e; modprobe dm-mod; modprobe dm-flakey; {table} | dmsetup create --noudevsync {name} >/dev/null; \
             echo /dev/dm-$(dmsetup info -c --noheadings -o minor {name})"
        ))?;
        Ok(())
    }

    /// From now on every write and every flush fails, or none does. Reads go on.
    pub(crate) fn fail_writes(&self, failing: bool) -> anyhow::Result<()> {
        let (name, table) = (&self.name, self.table(failing));
        self.machine.sh(&format!(
            "set -e; {table} | dmsetup load --noudevsync {name}; \
             dmsetup suspend --noflush --nolockfs --noudevsync {name}; dmsetup resume --noudevsync {name}"
        ))?;
        Ok(())
    }

    /// A command that writes the layer's table.
    fn table(&self, failing: bool) -> String {
        let name = &self.name;
        let (kind, end) = if failing { ("flakey", " 0 3600 1 error_writes") } else { ("linear", "") };
        format!("echo \"0 $(cat /sys/class/block/{name}/size) {kind} /dev/{name} 0{end}\"")
    }
}

/// A line of the store.
#[derive(Debug, PartialEq)]
pub(crate) enum Said {
    Acknowledged(u64),
    Retry(String),
}

/// A store that commits.
pub(crate) struct Committing {
    process: Process,
    /// The highest number that was acknowledged.
    pub(crate) acknowledged: u64,
}

impl Committing {
    pub(crate) fn start(machine: &Machine, store: &str) -> anyhow::Result<Self> {
        let command = Command::new("store-guest").args(["commit", store]).deadline(2 * LIMIT);
        let process = machine.spawn(&command)?;
        Ok(Self { process, acknowledged: 0 })
    }

    pub(crate) fn next(&mut self) -> anyhow::Result<Said> {
        let line = self.process.next_line(LIMIT)?.context("the store has ended without a word")?;
        match said(&line)? {
            Said::Acknowledged(n) => {
                self.acknowledged = n;
                Ok(Said::Acknowledged(n))
            }
            other => Ok(other),
        }
    }

    /// Waits for so many acknowledgements more, and for the store to take what it has refused.
    pub(crate) fn acknowledge(&mut self, count: u64) -> anyhow::Result<()> {
        let until = Instant::now() + LIMIT;
        let mut left = count;
        while left > 0 {
            let said = self.next()?;
            left -= u64::from(matches!(said, Said::Acknowledged(_)));
            ensure!(Instant::now() < until, "no {count} commits within {LIMIT:?}; last: {said:?}");
        }
        Ok(())
    }

    /// Waits until the store says that it cannot write, and that it goes on saying so and acknowledges nothing.
    pub(crate) fn refuse(&mut self) -> anyhow::Result<String> {
        let until = Instant::now() + LIMIT;
        while !matches!(self.next()?, Said::Retry(_)) {
            ensure!(Instant::now() < until, "it goes on acknowledging");
        }
        let mut last = String::new();
        for _ in 0..10 {
            match self.next()? {
                Said::Retry(reason) => last = reason,
                Said::Acknowledged(n) => bail!("commit {n} was acknowledged, and nothing can be written"),
            }
        }
        Ok(last)
    }

    /// Kills it, and gives the highest number that it has acknowledged.
    pub(crate) fn kill(self) -> anyhow::Result<u64> {
        let output = self.process.kill()?.stdout_text();
        Ok(highest(output.lines(), self.acknowledged))
    }

    /// What it has still said before its machine was reset.
    pub(crate) fn lost(mut self) -> u64 {
        let mut lines = Vec::new();
        while let Ok(Some(line)) = self.process.next_line(Duration::from_secs(1)) {
            lines.push(line);
        }
        highest(lines.iter().map(String::as_str), self.acknowledged)
    }
}

/// Of lines of which the last may be cut off.
fn highest<'l>(lines: impl Iterator<Item = &'l str>, before: u64) -> u64 {
    let numbers = lines.filter_map(|line| match said(line) {
        Ok(Said::Acknowledged(n)) => Some(n),
        _ => None,
    });
    numbers.max().unwrap_or(0).max(before)
}

fn said(line: &str) -> anyhow::Result<Said> {
    let said: Value = serde_json::from_str(line).with_context(|| format!("the store says {line:?}"))?;
    if let Some(n) = said["acknowledged"].as_u64() {
        return Ok(Said::Acknowledged(n));
    }
    match said["retry"].as_str() {
        Some(reason) => Ok(Said::Retry(reason.to_owned())),
        None => bail!("the store says {line}"),
    }
}

/// Looks that what was acknowledged is there, at most the commit that was under way beside it, and nothing by halves.
pub(crate) fn all_is_there(machine: &Machine, store: &str, acknowledged: u64) -> anyhow::Result<()> {
    let line = machine.run(&Command::new("store-guest").args(["read", store]))?;
    let there: Value = serde_json::from_str(&line)?;
    let n = there["a"][0].as_u64().unwrap_or(0);
    ensure!(n >= acknowledged, "{acknowledged} commits were acknowledged, and there is {there}");
    ensure!(n <= acknowledged + 1, "{acknowledged} commits were acknowledged, one was under way: {there}");
    ensure!(there["a"] == there["b"] && (n == 0 || there["a"][1] == n), "not whole: {there}");
    Ok(())
}
