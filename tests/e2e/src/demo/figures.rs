//! The demo's figures: how long each part of the job took, and where the time went.
//!
//! In: times of calls as the caller saw them, and the controller's own account of their parts (its metrics). Out: a
//! table and JSON. What always holds: `other` is what is left of the caller's time, so parts always add up to it,
//! and a part that was not measured is not there rather than zero.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::outcome::round_ms;
use super::say::Say;
use crate::world::{AttachTimes, DetachTimes, Metrics};

/// What parts of a figure are called, in the order of the table. `disconnect` is a detach's deletion of controllers,
/// `node` what the kubelet asks of the node (Stage and Publish, and back), `other` what is left: the controller's own
/// time, its store and the messages between the parts.
const PARTS: [&str; 8] = ["rds", "connect", "device", "checks", "flush", "disconnect", "node", "other"];

/// One figure, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figure {
    total: f64,
    parts: BTreeMap<&'static str, f64>,
}

impl Figure {
    /// A figure without parts.
    #[must_use]
    pub fn whole(total: Duration) -> Self {
        Self { total: ms(total), parts: BTreeMap::new() }
    }

    /// With these parts, and `other` as what is left.
    #[must_use]
    pub fn with_parts(total: Duration, parts: BTreeMap<&'static str, f64>) -> Self {
        let mut figure = Self { parts, ..Self::whole(total) };
        let other = figure.total - figure.parts.values().sum::<f64>();
        // Parts are measured by another clock reading than the total: never less than nothing.
        figure.parts.insert("other", other.max(0.0));
        figure
    }

    fn of_parts(parts: BTreeMap<&'static str, f64>) -> Self {
        Self { total: parts.values().sum(), parts }
    }
}

impl Serialize for Figure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let all = [("total", self.total)].into_iter().chain(self.parts.iter().map(|(name, ms)| (*name, *ms)));
        serializer.collect_map(all.map(|(name, ms)| (name, round_ms(ms))))
    }
}

/// All figures of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    /// ControllerPublish to NodePublish: from nothing to a device that a pod can use.
    pub attach: Figure,
    /// The agent's share of it: from the directive to the proof that the device can be used.
    pub ready: Figure,
    /// From the source's last acknowledged write to the target's first.
    pub switchover: Figure,
    /// NodeUnpublish to ControllerUnpublish: to the proof that the node cannot write.
    pub detach: Figure,
}

impl Figures {
    /// Takes the attach's figures from what the caller saw and from the controller's account before and after.
    pub(super) fn attached(&mut self, times: AttachTimes, before: &Metrics, after: &Metrics) {
        let mut parts =
            parts(before, after, "cleat_controller_attach_seconds", &["rds", "connect", "device", "checks"]);
        let agent: BTreeMap<&str, f64> =
            parts.iter().filter(|(name, _)| **name != "rds").map(|(name, ms)| (*name, *ms)).collect();
        self.ready = Figure::of_parts(agent);
        parts.insert("node", ms(times.stage + times.node_publish));
        self.attach = Figure::with_parts(times.total(), parts);
    }

    /// The same of the detach.
    pub(super) fn detached(&mut self, times: DetachTimes, before: &Metrics, after: &Metrics) {
        let mut parts =
            parts(before, after, "cleat_controller_detach_seconds", &["rds", "checks", "flush", "delete"]);
        if let Some(ms) = parts.remove("delete") {
            parts.insert("disconnect", ms);
        }
        parts.insert("node", ms(times.node_unpublish + times.unstage));
        self.detach = Figure::with_parts(times.total(), parts);
    }

    /// Prints the table.
    pub(super) fn tell(&self, say: &mut Say) {
        let rows = [
            ("attach", &self.attach),
            ("ready", &self.ready),
            ("switchover gap", &self.switchover),
            ("detach", &self.detach),
        ];
        say.plain("");
        let heads: String =
            PARTS.iter().map(|part| format!("{:>11}", if *part == "rds" { "RDS" } else { part })).collect();
        say.plain(&format!("{:<16}{:>9}{heads}", "milliseconds", "total"));
        for (name, figure) in rows {
            let cells: String = PARTS.iter().map(|part| cell(figure, part)).collect();
            say.plain(format!("{name:<16}{:>9.0}{cells}", figure.total).trim_end());
        }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// A part in milliseconds and as a share of its figure.
fn cell(figure: &Figure, part: &str) -> String {
    match figure.parts.get(part) {
        Some(ms) if figure.total > 0.0 => format!("{:>6.0} {:>3.0}%", ms, ms / figure.total * 100.0),
        _ => " ".repeat(11),
    }
}

fn parts<'a>(
    before: &Metrics,
    after: &Metrics,
    histogram: &str,
    names: &[&'a str],
) -> BTreeMap<&'a str, f64> {
    let seen = names.iter().filter(|name| after.count_since(before, histogram, &[("part", name)]) > 0);
    seen.map(|name| (*name, after.ms_since(before, histogram, &[("part", name)]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_to_the_total_and_what_was_not_measured_is_left_out() {
        let sample = |part: &str, sum: f64| {
            format!(
                "cleat_controller_attach_seconds_sum{{part=\"{part}\"}} {sum}\ncleat_controller_attach_seconds_count{{part=\"{part}\"}} 1\n"
            )
        };
        let after = Metrics::parse(&(sample("rds", 0.01) + &sample("connect", 0.06)));
        let mut figures = Figures::default();
        let part = Duration::from_millis;
        let times = AttachTimes { publish: part(80), stage: part(15), node_publish: part(5) };
        figures.attached(times, &Metrics::default(), &after);
        let json = serde_json::to_value(&figures.attach).expect("json");
        assert_eq!(
            json,
            serde_json::json!({"total": 100.0, "rds": 10.0, "connect": 60.0, "node": 20.0, "other": 10.0})
        );
        assert_eq!(figures.ready.total, 60.0);
    }
}
