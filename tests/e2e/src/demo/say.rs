//! How the demo talks: short lines, each with the time since the start.

use std::io::Write;
use std::time::{Duration, Instant};

/// A person's view of the run.
#[derive(Debug)]
pub(super) struct Say {
    began: Instant,
}

impl Say {
    pub(super) fn new() -> Self {
        Self { began: Instant::now() }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The headline of a step.
    pub(super) fn step(&mut self, number: usize, title: &str) {
        self.plain("");
        self.plain(&format!("{number}. {title}"));
    }

    /// Something that has just happened.
    pub(super) fn line(&mut self, text: &str) {
        let seconds = self.began.elapsed().as_secs_f64();
        self.plain(&format!("{seconds:7.1} s  {text}"));
    }

    /// Something that has just happened, and how long it took.
    pub(super) fn took(&mut self, text: &str, time: Duration) {
        self.line(&format!("{text} ({})", duration(time)));
    }

    /// More about the line before.
    pub(super) fn detail(&mut self, text: &str) {
        self.plain(&format!("           {text}"));
    }

    /// Why it ended.
    pub(super) fn failure(&mut self, reason: &str) {
        self.plain("");
        self.plain(&format!("FAILED: {reason}"));
    }

    /// A line without a time.
    pub(super) fn plain(&mut self, text: &str) {
        let mut out = std::io::stdout().lock();
        // Whoever reads it may have gone; the run's result is its exit code.
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }
}

/// A time as a person reads it.
pub(super) fn duration(time: Duration) -> String {
    if time >= Duration::from_secs(10) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} ms", time.as_millis())
    }
}
