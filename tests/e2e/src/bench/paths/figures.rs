//! What was measured of cut paths: kept, summed up, told.
//!
//! In: measurements. Out: lines for people and JSON. What always holds: every repetition is kept; what failed is named.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::super::figures::median;
use super::cut::Felt;
use crate::writer::Overwritten;

/// What is to be reached: the median of the longest writes, milliseconds.
const REACH_MS: f64 = 2000.0;

/// Who has the kernel give a dead path up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The kernel's keep-alive, alone.
    KeepAlive,
    /// Cleat, before that.
    Cleat,
}

impl Way {
    pub(super) const ALL: [Self; 2] = [Self::KeepAlive, Self::Cleat];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep-alive alone",
            Self::Cleat => "Cleat",
        }
    }

    pub(super) fn arguments(self) -> Vec<String> {
        match self {
            Self::KeepAlive => Vec::new(),
            Self::Cleat => vec!["--early-path-reset".to_owned()],
        }
    }
}

/// Everything, in the order in which it was measured.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    release: String,
    hold: Duration,
    cuts: [Vec<Felt>; 2],
    flaps: Vec<Felt>,
    held: [Vec<Overwritten>; 2],
    failures: Vec<String>,
}

impl Figures {
    pub(super) fn new(release: &str, hold: Duration) -> Self {
        Self { release: release.trim().to_owned(), hold, ..Self::default() }
    }

    pub(super) fn cut(&mut self, way: Way, felt: Felt) {
        self.cuts[way as usize].push(felt);
    }

    pub(super) fn flap(&mut self, felt: Felt) {
        self.flaps.push(felt);
    }

    pub(super) fn held(&mut self, way: Way, found: Overwritten) {
        self.held[way as usize].push(found);
    }

    pub(super) fn failed(&mut self, what: String) {
        self.failures.push(what);
    }

    /// What could not be measured, and why.
    #[must_use]
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    fn longest(&self, way: Way) -> Vec<f64> {
        self.cuts[way as usize].iter().map(|felt| felt.longest_ms).collect()
    }

    /// Writes that failed, and paths that were reset, for interruptions of 200 ms.
    fn flap_errors(&self) -> u64 {
        self.flaps.iter().map(|felt| felt.errors + felt.resets).sum()
    }

    /// The table.
    #[must_use]
    pub fn tell(&self) -> Vec<String> {
        let mut lines =
            vec![String::new(), "longest write while the path in use is cut, ms: median (spread)".to_owned()];
        for way in Way::ALL {
            let times = self.longest(way);
            if let Some(median) = median(&times) {
                let (least, most) = times.iter().fold((f64::MAX, 0_f64), |(a, b), t| (a.min(*t), b.max(*t)));
                let resets: u64 = self.cuts[way as usize].iter().map(|felt| felt.resets).sum();
                lines.push(format!(
                    "  {:<17}{median:>7.0} ({least:>6.0} to {most:>6.0}), {} cuts, {resets} resets",
                    way.name(),
                    times.len()
                ));
            }
        }
        if let Some(ours) = median(&self.longest(Way::Cleat)) {
            let word = if ours <= REACH_MS { "reached    " } else { "NOT reached" };
            lines.push(format!("  {word}  {ours:.0} <= {REACH_MS:.0} ms in the median"));
        }
        if !self.flaps.is_empty() {
            let longest = self.flaps.iter().map(|felt| felt.longest_ms).fold(0_f64, f64::max);
            let word = if self.flap_errors() == 0 { "reached    " } else { "NOT reached" };
            lines.push(format!(
                "  {word}  {} interruptions of 200 ms: {} errors and resets; longest write {longest:.0} ms",
                self.flaps.len(),
                self.flap_errors()
            ));
        }
        for way in Way::ALL {
            let runs = &self.held[way as usize];
            if !runs.is_empty() {
                let stale: u32 = runs.iter().map(|run| run.stale).sum();
                let with = runs.iter().filter(|run| run.stale > 0).count();
                lines.push(format!(
                    "  held for {:?}, {:<17} {stale} stale overwrites, in {with} of {} cuts",
                    self.hold,
                    way.name(),
                    runs.len()
                ));
            }
        }
        lines.extend(self.failures.iter().map(|failure| format!("FAILED: {failure}")));
        lines
    }
}

impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shape<'a> {
            bench: &'a str,
            keep_alive_only_ms: Vec<f64>,
            cleat_ms: Vec<f64>,
            flap_errors: u64,
            flaps: usize,
            kernel: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            held: Option<Held>,
            #[serde(skip_serializing_if = "<[String]>::is_empty")]
            failures: &'a [String],
        }
        #[derive(Serialize)]
        struct Held {
            hold_ms: u128,
            keep_alive_only_stale: Vec<u32>,
            cleat_stale: Vec<u32>,
        }
        let rounded =
            |way| self.longest(way).into_iter().map(|ms| (ms * 1000.0).round() / 1000.0).collect::<Vec<_>>();
        let stale = |way: Way| self.held[way as usize].iter().map(|run| run.stale).collect::<Vec<_>>();
        let held = self.held.iter().any(|runs| !runs.is_empty()).then(|| Held {
            hold_ms: self.hold.as_millis(),
            keep_alive_only_stale: stale(Way::KeepAlive),
            cleat_stale: stale(Way::Cleat),
        });
        Shape {
            bench: "paths",
            keep_alive_only_ms: rounded(Way::KeepAlive),
            cleat_ms: rounded(Way::Cleat),
            flap_errors: self.flap_errors(),
            flaps: self.flaps.len(),
            kernel: &self.release,
            held,
            failures: &self.failures,
        }
        .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(cleat_ms: f64) -> Figures {
        let mut figures = Figures::new("6.1.0-test\n", Duration::from_secs(4));
        for jitter in [0.0, 100.0, 50.0] {
            figures.cut(Way::KeepAlive, Felt::of(13_800.0 + jitter, 0, 0));
            figures.cut(Way::Cleat, Felt::of(cleat_ms + jitter, 0, 1));
        }
        figures.flap(Felt::of(410.0, 0, 0));
        figures.flap(Felt::of(420.0, 1, 1));
        figures
    }

    #[test]
    fn the_reach_is_the_medians_and_a_flap_that_cost_anything_is_counted() {
        let text = figures(1100.0).tell().join("\n");
        assert!(
            text.contains("reached      1150 <= 2000 ms") && !text.contains("NOT reached  1150"),
            "{text}"
        );
        assert!(text.contains("NOT reached  2 interruptions of 200 ms: 2 errors and resets"), "{text}");
        assert!(figures(2500.0).tell().join("\n").contains("NOT reached  2550 <= 2000 ms"));
    }

    #[test]
    fn every_repetition_is_in_the_json_and_what_was_not_asked_for_is_not() {
        let mut figures = figures(1100.0);
        let json = serde_json::to_value(&figures).expect("json");
        assert_eq!(json["bench"], "paths");
        assert_eq!(json["cleat_ms"], serde_json::json!([1100.0, 1200.0, 1150.0]));
        assert_eq!(json["flap_errors"], 2);
        assert!(json.get("held").is_none() && json.get("failures").is_none(), "{json}");
        figures.held(Way::Cleat, Overwritten { stale: 3, stalled: 16, ..Overwritten::default() });
        figures.failed("measurement 7: the writer goes on: not within 150 s".to_owned());
        let json = serde_json::to_value(&figures).expect("json");
        assert_eq!(json["held"]["cleat_stale"], serde_json::json!([3]));
        assert_eq!(json["failures"].as_array().map(Vec::len), Some(1));
    }
}
