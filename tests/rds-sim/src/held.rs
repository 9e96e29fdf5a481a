//! Backing stores that hold writes: what a target does with a write that it has received, slowed down to be seen.
//!
//! In: a disk's backing file, and how long writes to its first bytes are to be held. Out: a block device over the
//! file: a loop device, on it device mapper (`linear`, or `delay` while writes are held), and on that, if asked for,
//! a second loop device that takes only a few requests at a time, so that a target with more to write does not even
//! take it out of its sockets. What always holds: a held write lands when its time is over, whatever has happened to
//! whoever sent it; reads are never held; the file holds what the device holds.
//!
//! Needs `losetup` (util-linux), `dmsetup`, and the modules `loop`, `dm-mod` and `dm-delay`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::target::TargetError;

/// The unit of device mapper's tables.
const SECTOR_BYTES: u64 = 512;

/// How writes to a disk are held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// The disk's slot.
    pub slot: String,
    /// How long a write is held, milliseconds; 0 lets all go.
    pub write_ms: u32,
    /// Only writes to so many first bytes are held; all if absent.
    #[serde(default)]
    pub first_bytes: Option<u64>,
}

/// The devices over the files.
#[derive(Debug)]
pub struct HeldStores {
    /// Requests that a device takes at a time; any number if `None`.
    depth: Option<u32>,
    devices: BTreeMap<String, Device>,
}

#[derive(Debug, Clone)]
struct Device {
    loop_device: PathBuf,
    sectors: u64,
    /// What the target opens.
    top: PathBuf,
}

impl HeldStores {
    /// No devices yet.
    pub fn new(depth: Option<u32>) -> Self {
        Self { depth, devices: BTreeMap::new() }
    }

    /// The device of a slot, if it is there.
    pub fn device(&self, slot: &str) -> Option<&Path> {
        self.devices.get(slot).map(|device| device.top.as_path())
    }

    /// Makes the device of a slot over its file, or finds it made by a predecessor of this program.
    pub fn bring_up(&mut self, slot: &str, file: &Path, size_bytes: u64) -> Result<(), TargetError> {
        if self.devices.contains_key(slot) {
            return Ok(());
        }
        let loop_device = loop_over(file, &[])?;
        let sectors = size_bytes / SECTOR_BYTES;
        let mapped = mapped(slot);
        if !mapped.exists() {
            let table = format!("0 {sectors} linear {} 0", loop_device.display());
            dmsetup(&["create", &name(slot), "--table", &table])?;
        }
        let top = match self.depth {
            None => mapped,
            Some(depth) => limited(&mapped, depth)?,
        };
        self.devices.insert(slot.to_owned(), Device { loop_device, sectors, top });
        Ok(())
    }

    /// Takes the device of a slot away; what it holds lands first.
    pub fn take_down(&mut self, slot: &str) -> Result<(), TargetError> {
        let Some(device) = self.devices.remove(slot) else {
            return Ok(());
        };
        if device.top != mapped(slot) {
            run("losetup", &["-d", &device.top.to_string_lossy()])?;
        }
        // A loop device lets go of what it is over in the background.
        dmsetup(&["remove", "--retry", &name(slot)])?;
        run("losetup", &["-d", &device.loop_device.to_string_lossy()]).map(drop)
    }

    /// Holds writes from now on, or lets them go. What is held at this moment lands at once.
    pub fn hold(&self, hold: &Hold) -> Result<(), TargetError> {
        let device = self.devices.get(&hold.slot).ok_or_else(|| TargetError::Backing {
            command: format!("hold writes of {}", hold.slot),
            outcome: "it has no such device: is --backing held given, and the disk exported?".to_owned(),
        })?;
        let held =
            hold.first_bytes.map_or(device.sectors, |bytes| (bytes / SECTOR_BYTES).min(device.sectors));
        let held = if hold.write_ms == 0 { 0 } else { held };
        let (below, name) = (device.loop_device.display(), name(&hold.slot));
        let mut table = String::new();
        if held > 0 {
            table += &format!("0 {held} delay {below} 0 0 {below} 0 {}\n", hold.write_ms);
        }
        if held < device.sectors {
            table += &format!("{held} {} linear {below} {held}\n", device.sectors - held);
        }
        // A table with several lines is read from a file: one whose name nobody has guessed, for this runs as root.
        let file = tempfile::NamedTempFile::new().and_then(|mut file| {
            file.write_all(table.as_bytes())?;
            Ok(file)
        });
        let file = file.map_err(|source| TargetError::Configfs {
            action: "write a table in".to_owned(),
            path: std::env::temp_dir(),
            source,
        })?;
        dmsetup(&["reload", &name, &file.path().to_string_lossy()])?;
        dmsetup(&["suspend", "--nolockfs", &name])?;
        dmsetup(&["resume", &name])
    }
}

/// The name that device mapper knows a slot's device by.
fn name(slot: &str) -> String {
    let plain: String =
        slot.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    format!("rds-{plain}")
}

fn mapped(slot: &str) -> PathBuf {
    Path::new("/dev/mapper").join(name(slot))
}

/// A loop device over `mapped` that takes `depth` requests at a time.
fn limited(mapped: &Path, depth: u32) -> Result<PathBuf, TargetError> {
    let top = loop_over(mapped, &["--direct-io=on"])?;
    let device = top.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let limit = Path::new("/sys/block").join(device).join("queue/nr_requests");
    fs::write(&limit, depth.to_string()).map_err(|source| TargetError::Configfs {
        action: format!("write {depth} to"),
        path: limit,
        source,
    })?;
    Ok(top)
}

/// The loop device over a file: the one that is there, or a new one.
fn loop_over(file: &Path, options: &[&str]) -> Result<PathBuf, TargetError> {
    let path = file.to_string_lossy().into_owned();
    let there = run("losetup", &["--associated", &path, "--noheadings", "--output", "NAME"])?;
    if let Some(device) = there.lines().map(str::trim).find(|line| !line.is_empty()) {
        return Ok(device.into());
    }
    let words: Vec<&str> =
        ["--find", "--show"].into_iter().chain(options.iter().copied()).chain([&*path]).collect();
    Ok(run("losetup", &words)?.trim().into())
}

fn dmsetup(words: &[&str]) -> Result<(), TargetError> {
    run("dmsetup", words).map(drop)
}

fn run(program: &str, words: &[&str]) -> Result<String, TargetError> {
    let failed =
        |outcome: String| TargetError::Backing { command: format!("{program} {}", words.join(" ")), outcome };
    // No udev is waited for: the machines that this runs in have none, and dmsetup makes its nodes itself.
    let output = Command::new(program).args(words).env("DM_DISABLE_UDEV", "1").output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed(format!("{}: {errors}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
