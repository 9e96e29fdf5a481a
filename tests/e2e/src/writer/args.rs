//! The options of `cleat-writer`, and the same as a command line for whoever starts it in a guest.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::sequence::{Layout, Name, RunFacts};

/// Each run's region, if nothing else is said: 16384 writes.
pub const DEFAULT_REGION_BYTES: u64 = 64 << 20;

/// `cleat-writer write`.
#[derive(Debug, Clone, Args)]
pub struct WriteArgs {
    /// Block device (or file) to write to
    #[arg(long, value_name = "PATH")]
    pub device: PathBuf,
    /// Volume name for the records
    #[arg(long, value_name = "NAME")]
    pub volume: Name,
    /// Node name for the records
    #[arg(long, value_name = "NAME")]
    pub node: Name,
    /// Number of the first record; without it the writer opens the device, says `armed`, and waits for a line
    /// `go NUMBER` on standard input
    #[arg(long, value_name = "NUMBER")]
    pub start_seq: Option<u64>,
    /// The region of the device that this run owns; no other run may have had it
    #[arg(long, value_name = "INDEX")]
    pub region: u32,
    /// Size of every region, the same for all runs on a device
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_REGION_BYTES)]
    pub region_bytes: u64,
    /// Least time from the start of one write to the start of the next, in microseconds
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    pub interval_us: u64,
    /// Writes in flight at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub queue_depth: u16,
    /// Ends after this many writes
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// What to do when a write fails
    #[arg(long, value_enum, default_value_t = OnError::Stop)]
    pub on_error: OnError,
    /// From one `progress` line to the next, in milliseconds
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 250)]
    pub progress_ms: u64,
    /// Damages the sequence on purpose, to show that the check finds it
    #[arg(long, value_name = "MODE", hide = true)]
    pub sabotage: Option<Sabotage>,
}

/// What a failed write leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnError {
    /// The run ends.
    Stop,
    /// The same number is written again, until it succeeds or the run is stopped.
    Retry,
    /// The number is left out, which the check will call a gap.
    Skip,
}

/// A way to damage a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sabotage {
    /// The tenth write is called acknowledged and is never made.
    SkipBlock,
}

/// `cleat-writer verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// The target's backing file, or a device
    #[arg(long, visible_alias = "device", value_name = "PATH")]
    pub file: PathBuf,
    /// Volume that the records must name
    #[arg(long, value_name = "NAME")]
    pub volume: Name,
    /// Size of every region
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_REGION_BYTES)]
    pub region_bytes: u64,
    /// What a run said of itself, as JSON; once for each run, in their order
    #[arg(long = "run", value_name = "JSON", required = true, value_parser = run_facts)]
    pub runs: Vec<RunFacts>,
}

/// `cleat-writer census`.
#[derive(Debug, Clone, Args)]
pub struct CensusArgs {
    /// The target's backing file, or a device
    #[arg(long, visible_alias = "device", value_name = "PATH")]
    pub file: PathBuf,
}

fn run_facts(text: &str) -> Result<RunFacts, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

impl WriteArgs {
    /// Options for a paced writer with one write in flight that ends at the first error.
    #[must_use]
    pub fn new(device: impl Into<PathBuf>, volume: Name, node: Name, region: u32) -> Self {
        Self {
            device: device.into(),
            volume,
            node,
            start_seq: None,
            region,
            region_bytes: DEFAULT_REGION_BYTES,
            interval_us: 2000,
            queue_depth: 1,
            count: None,
            on_error: OnError::Stop,
            progress_ms: 100,
            sabotage: None,
        }
    }

    /// The command line, without the program's name, that these options come from.
    #[must_use]
    pub fn argv(&self) -> Vec<String> {
        let mut argv: Vec<String> = vec!["write".into()];
        let mut put = |name: &str, value: String| argv.extend([format!("--{name}"), value]);
        put("device", self.device.display().to_string());
        put("volume", self.volume.to_string());
        put("node", self.node.to_string());
        if let Some(number) = self.start_seq {
            put("start-seq", number.to_string());
        }
        put("region", self.region.to_string());
        put("region-bytes", self.region_bytes.to_string());
        put("interval-us", self.interval_us.to_string());
        put("queue-depth", self.queue_depth.to_string());
        if let Some(count) = self.count {
            put("count", count.to_string());
        }
        put("on-error", value_name(self.on_error));
        put("progress-ms", self.progress_ms.to_string());
        if let Some(mode) = self.sabotage {
            put("sabotage", value_name(mode));
        }
        argv
    }

    /// Where the records lie.
    ///
    /// # Errors
    /// If the region's size is none.
    pub fn layout(&self) -> Result<Layout, crate::sequence::BadRegion> {
        Layout::new(self.region_bytes)
    }

    /// See [`WriteArgs::interval_us`].
    #[must_use]
    pub fn interval(&self) -> Duration {
        Duration::from_micros(self.interval_us)
    }
}

fn value_name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    #[derive(clap::Subcommand)]
    enum Command {
        Write(WriteArgs),
    }

    #[test]
    fn a_command_line_leads_back_to_its_options() {
        let mut args =
            WriteArgs::new("/dev/x", "pvc-1".parse().expect("name"), "node-b".parse().expect("name"), 3);
        (args.start_seq, args.count) = (Some(9), Some(4));
        (args.on_error, args.sabotage) = (OnError::Retry, Some(Sabotage::SkipBlock));
        let line = std::iter::once("cleat-writer".to_owned()).chain(args.argv());
        let Command::Write(parsed) = Cli::try_parse_from(line).expect("parses").command;
        assert_eq!(format!("{parsed:?}"), format!("{args:?}"));
    }
}
