//! A writer in a node machine, followed live from here.
//!
//! In: its JSON lines. Out: what it has said so far, with the host's time of it. What always holds: a time is on
//! the host's one monotonic clock, so that what two machines did can be compared; it is the time at which the line
//! came in, less the age that the writer itself gave to what the line speaks of.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cleat_rig::{Command, Input, Machine, Process};
use tokio::sync::watch;

use super::blocking;
use crate::sequence::RunFacts;
use crate::writer::event::Counts;
use crate::writer::{Event, StopReason, WriteArgs};

/// A writer runs for at most this long: no test does.
const LIFETIME: Duration = Duration::from_secs(3600);
/// To start and open a device.
const ARMING: Duration = Duration::from_secs(30);
/// To stop: a write that is in flight over a lost path has to end first.
const STOPPING: Duration = Duration::from_secs(60);
/// Failed writes that are kept in words.
const MAX_ERRORS: usize = 50;

/// What a writer has said so far.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Its device is open.
    pub armed: bool,
    /// Who it is; `last_acked` is as of the last line.
    pub facts: Option<RunFacts>,
    /// The host's time of its first acknowledged write.
    pub first_ack_at: Option<Instant>,
    /// The last counts.
    pub counts: Counts,
    /// The host's time of the last acknowledged write that the counts speak of.
    pub last_ack_at: Option<Instant>,
    /// Failed writes, in words.
    pub errors: Vec<String>,
    /// Why it stopped by itself or was stopped.
    pub stopped: Option<StopReason>,
    /// Its process has ended; what it said on standard error, and its exit code.
    pub ended: Option<String>,
}

/// A run that is over.
#[derive(Debug, Clone)]
pub struct Stopped {
    /// What the judge needs to know of it.
    pub facts: RunFacts,
    /// Why it ended.
    pub reason: StopReason,
    /// Its final counts.
    pub counts: Counts,
    /// Failed writes, in words.
    pub errors: Vec<String>,
    /// The host's time of its last acknowledged write.
    pub last_ack_at: Option<Instant>,
}

/// A writer. Dropping it kills it.
#[derive(Debug)]
pub struct Writer {
    name: String,
    seen: watch::Receiver<Seen>,
    input: Arc<Mutex<Input>>,
    pid: u32,
    machine: Arc<Machine>,
    done: bool,
}

impl Writer {
    pub(super) async fn start(machine: Arc<Machine>, args: &WriteArgs) -> anyhow::Result<Self> {
        let command = Command::new("cleat-writer").args(args.argv()).deadline(LIFETIME);
        let spawning = Arc::clone(&machine);
        let process = blocking(move || spawning.spawn(&command)).await?;
        let (sender, seen) = watch::channel(Seen::default());
        let (input, pid) = (Arc::new(Mutex::new(process.input()?)), process.pid());
        std::thread::spawn(move || follow(process, &sender));
        let name = format!("the writer on {}", machine.name());
        let mut writer = Self { name, seen, input, pid, machine, done: false };
        let begun = |seen: &Seen| seen.armed || seen.facts.is_some() || seen.ended.is_some();
        let seen = writer.wait("to open its device", ARMING, begun).await?;
        match seen.ended {
            Some(how) => bail!("{}: {how}", writer.name),
            None => Ok(writer),
        }
    }

    /// What it has said so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Its process id in the machine.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until what it has said satisfies `condition`.
    ///
    /// # Errors
    /// If it does not in time, or the writer ends first; with what was seen last.
    pub async fn wait(
        &mut self,
        what: &str,
        limit: Duration,
        condition: impl Fn(&Seen) -> bool,
    ) -> anyhow::Result<Seen> {
        let mut seen = self.seen.clone();
        let waited = tokio::time::timeout(limit, seen.wait_for(|seen| condition(seen))).await;
        let waited = waited.map(|seen| seen.map(|seen| seen.clone()));
        match waited {
            Ok(Ok(seen)) => Ok(seen),
            Ok(Err(_)) => bail!("{} ended while it was waited for {what}: {:?}", self.name, self.seen()),
            Err(_) => bail!("{}: {what}: not within {limit:?}; last seen: {:?}", self.name, self.seen()),
        }
    }

    /// Waits until this many writes are acknowledged.
    ///
    /// # Errors
    /// If they are not in time.
    pub async fn wait_writes(&mut self, writes: u64, limit: Duration) -> anyhow::Result<Seen> {
        let what = format!("{writes} writes");
        self.wait(&what, limit, |seen| seen.counts.writes >= writes || seen.ended.is_some()).await.and_then(
            |seen| match &seen.ended {
                Some(how) if seen.counts.writes < writes => bail!("{} ended before {what}: {how}", self.name),
                _ => Ok(seen),
            },
        )
    }

    /// Waits until it has acknowledged some more writes than now: it is alive and its device answers.
    ///
    /// # Errors
    /// If they are not in time.
    pub async fn wait_progress(&mut self, more: u64, limit: Duration) -> anyhow::Result<Seen> {
        let target = self.seen().counts.writes + more;
        self.wait_writes(target, limit).await
    }

    /// Lets an armed writer begin at this number.
    ///
    /// # Errors
    /// If its machine is gone.
    pub async fn go(&self, start: u64) -> anyhow::Result<()> {
        self.say(format!("go {start}\n")).await
    }

    /// Stops it after the write in flight and waits for its last words.
    ///
    /// # Errors
    /// If it never began, does not stop, or is gone without a last word.
    pub async fn stop(&mut self) -> anyhow::Result<Stopped> {
        self.say("stop\n".to_owned()).await?;
        self.stopped().await
    }

    /// Waits for its end, for example after [`WriteArgs::count`] writes.
    ///
    /// # Errors
    /// As [`Writer::stop`].
    pub async fn stopped(&mut self) -> anyhow::Result<Stopped> {
        let seen =
            self.wait("its end", STOPPING, |seen| seen.stopped.is_some() || seen.ended.is_some()).await?;
        let (Some(facts), Some(reason)) = (seen.facts, seen.stopped) else {
            bail!("{} ended without a last word: {:?}", self.name, seen.ended);
        };
        // Its process, too: while it lives the device is open.
        self.wait("its process's end", STOPPING, |seen| seen.ended.is_some()).await?;
        self.done = true;
        Ok(Stopped { facts, reason, counts: seen.counts, errors: seen.errors, last_ack_at: seen.last_ack_at })
    }

    async fn say(&self, text: String) -> anyhow::Result<()> {
        let input = Arc::clone(&self.input);
        blocking(move || input.lock().unwrap_or_else(PoisonError::into_inner).write(text.as_bytes())).await
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.done && self.seen.borrow().ended.is_none() {
            let (machine, pid) = (Arc::clone(&self.machine), self.pid);
            // Not waited for: the machine may be frozen. It may also be gone, and the writer with it.
            std::thread::spawn(move || machine.kill(pid, 9));
        }
    }
}

/// Reads lines until the process ends, and says so.
fn follow(mut process: Process, seen: &watch::Sender<Seen>) {
    let ended = loop {
        match process.next_line(LIFETIME) {
            Ok(Some(line)) => {
                let at = Instant::now();
                match serde_json::from_str(&line) {
                    Ok(event) => seen.send_modify(|seen| seen.take(at, event)),
                    Err(_) => seen.send_modify(|seen| seen.errors.push(format!("not an event: {line}"))),
                }
            }
            Ok(None) => {
                break match process.wait() {
                    Ok(output) => format!("{}: {}", output.exit, output.stderr_text().trim()),
                    Err(error) => error.to_string(),
                };
            }
            Err(error) => break error.to_string(),
        }
    };
    seen.send_modify(|seen| seen.ended = Some(ended));
}

impl Seen {
    fn take(&mut self, at: Instant, event: Event) {
        match event {
            Event::Armed { .. } => self.armed = true,
            Event::Started { nonce, node, region, start_sequence, .. } => {
                self.facts = Some(RunFacts { region, nonce, node, start_sequence, last_acked: None });
            }
            Event::FirstAck { age_us, sequence, .. } => {
                let when = ago(at, age_us);
                (self.first_ack_at, self.last_ack_at) = (Some(when), Some(when));
                self.counts.writes = self.counts.writes.max(1);
                self.counts.last_acked = self.counts.last_acked.max(Some(sequence));
            }
            Event::Progress(counts) => self.count(at, counts),
            Event::Error { sequence, message, .. } if self.errors.len() < MAX_ERRORS => {
                self.errors.push(format!("number {sequence}: {message}"));
            }
            Event::Error { .. } => {}
            Event::Stopped { reason, counts } => {
                self.count(at, counts);
                self.stopped = Some(reason);
            }
        }
    }

    fn count(&mut self, at: Instant, counts: Counts) {
        if counts.writes > 0 {
            self.last_ack_at = Some(ago(at, counts.age_us));
        }
        if let Some(facts) = &mut self.facts {
            facts.last_acked = counts.last_acked;
        }
        self.counts = counts;
    }
}

fn ago(at: Instant, age_us: u64) -> Instant {
    at.checked_sub(Duration::from_micros(age_us)).unwrap_or(at)
}

/// The time between the last acknowledged write of one run and the first of the next, on the host's clock.
///
/// # Errors
/// If either has none.
pub fn gap(before: &Stopped, after: &Seen) -> anyhow::Result<Duration> {
    let last = before.last_ack_at.context("the run before acknowledged nothing")?;
    let first = after.first_ack_at.context("the run after acknowledged nothing")?;
    Ok(first.saturating_duration_since(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_of_the_writes_and_not_of_the_lines() {
        let mut seen = Seen::default();
        let at = Instant::now();
        let counts = Counts { writes: 5, last_acked: Some(5), age_us: 4000, ..Counts::default() };
        seen.take(at, Event::Stopped { reason: StopReason::Asked, counts });
        assert_eq!(at - seen.last_ack_at.expect("a time"), Duration::from_millis(4));
        assert_eq!(seen.stopped, Some(StopReason::Asked));
    }
}
