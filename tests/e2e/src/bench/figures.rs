//! What was measured: kept, summed up, judged against the targets, and told.
//!
//! In: milliseconds. Out: lines for people and JSON. What always holds: every repetition is kept, and a target is
//! judged on the median of the ratios of measurements that were taken in the same round. Where what everything is compared
//! with spreads too far by itself, nothing is judged.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::directives::Parts;

/// A way to attach and detach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// The kernel alone.
    Floor,
    /// Bare nvme-cli.
    NvmeCli,
    /// The agent, from a directive to its result.
    Agent,
    /// CSI at the controller's socket.
    Csi,
}

impl Way {
    /// All of them.
    pub(super) const ALL: [Self; 4] = [Self::Floor, Self::NvmeCli, Self::Agent, Self::Csi];

    /// In words.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Floor => "(a) /dev/nvme-fabrics",
            Self::NvmeCli => "(b) nvme-cli",
            Self::Agent => "(c) agent",
            Self::Csi => "(d) CSI",
        }
    }

    /// Of (a), at most so much, with so many volumes at once.
    fn target(self, volumes: usize, direction: usize) -> Option<f64> {
        match (self, direction) {
            (Self::Agent, _) if volumes == 1 => Some(1.3),
            (Self::Agent, 0) => Some(1.15),
            (Self::Agent, _) => Some(1.5),
            (Self::Csi, 0) => Some(1.6),
            (Self::Csi, _) => Some(2.0),
            (Self::Floor | Self::NvmeCli, _) => None,
        }
    }

    fn fields(self) -> [&'static str; 2] {
        match self {
            Self::Floor => ["floor_connect_ms", "floor_delete_ms"],
            Self::NvmeCli => ["nvme_cli_connect_ms", "nvme_cli_disconnect_ms"],
            Self::Agent => ["agent_ready_ms", "agent_detach_ms"],
            Self::Csi => ["csi_publish_ms", "csi_unpublish_ms"],
        }
    }
}

/// The repetitions with one number of volumes.
#[derive(Debug, Clone, Default)]
pub struct Series {
    times: BTreeMap<Way, [Vec<f64>; 2]>,
    /// Commands of nvme-cli that failed, or volumes that were not there after it.
    pub(super) nvme_cli_failures: u32,
    /// What they said.
    pub(super) nvme_cli_errors: Vec<String>,
    /// The agent's attach and detach as seen from the other end of its session.
    pub(super) agent_seen_ms: Vec<(f64, f64)>,
    /// Where the agent's time went.
    pub(super) attach_parts: Vec<Parts>,
    /// Where the agent's time went.
    pub(super) detach_parts: Vec<Parts>,
    /// Unpublishes that waited for the drain bound, because a path had been lost.
    pub(super) drain_waits: usize,
    /// What the host lists took of a Publish and an Unpublish.
    pub(super) rds_ms: Vec<(f64, f64)>,
}

/// Everything, by number of volumes.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    volumes: BTreeMap<usize, Series>,
}

/// The two directions of a way, as they stand in [`Series::times`].
const DIRECTIONS: [&str; 2] = ["attach", "detach"];
/// The longest of (a) in a run, by its shortest, above which nothing is compared with it.
const MOST_SPREAD: f64 = 2.0;

impl Series {
    /// Notes one repetition of a way.
    pub(super) fn add(&mut self, way: Way, attach_ms: f64, detach_ms: f64) {
        let [attach, detach] = self.times.entry(way).or_default();
        attach.push(attach_ms);
        detach.push(detach_ms);
    }

    /// The last repetition in a few words: attach and detach of (a) to (d).
    pub(super) fn latest(&self) -> String {
        let direction = |direction: usize| {
            let last = |way| self.of(way, direction).last().map_or("-".to_owned(), |ms| format!("{ms:.0}"));
            format!("{} {} ms", DIRECTIONS[direction], Way::ALL.map(last).join(" / "))
        };
        format!("{}, {}", direction(0), direction(1))
    }

    fn of(&self, way: Way, direction: usize) -> &[f64] {
        self.times.get(&way).map_or(&[], |times| &times[direction])
    }

    fn median(&self, way: Way, direction: usize) -> Option<f64> {
        median(self.of(way, direction))
    }

    /// The ratio of each round.
    fn ratios(&self, way: Way, direction: usize) -> Vec<f64> {
        let rounds = self.of(way, direction).iter().zip(self.of(Way::Floor, direction));
        rounds.map(|(took, floor)| took / floor).collect()
    }

    fn ratio(&self, way: Way, direction: usize) -> Option<f64> {
        median(&self.ratios(way, direction))
    }

    fn table(&self, direction: usize) -> Vec<String> {
        let row = |way: Way| {
            let (least, most) = spread(self.of(way, direction));
            let (lowest, highest) = spread(&self.ratios(way, direction));
            let mut line = format!(
                "  {:<8}{:<24}{:>8.0}{:>8.0} to {:<8.0}{:>6.2}  ({lowest:.2} to {highest:.2})",
                DIRECTIONS[direction],
                way.name(),
                self.median(way, direction)?,
                least,
                most,
                self.ratio(way, direction)?
            );
            if way == Way::NvmeCli && self.nvme_cli_failures > 0 && direction == 1 {
                line.push_str(&format!("   {} failures in both directions", self.nvme_cli_failures));
            }
            Some(line)
        };
        Way::ALL.into_iter().filter_map(row).collect()
    }

    /// Whether the targets of one direction are reached, each with where the time goes if not.
    fn verdicts(&self, volumes: usize, direction: usize) -> Vec<String> {
        let (least, most) = spread(self.of(Way::Floor, direction));
        if most > least * MOST_SPREAD {
            let what = DIRECTIONS[direction];
            return vec![format!(
                "  NOT JUDGED   {what}: (a) itself took {least:.0} to {most:.0} ms, which is no measure; let nothing else run"
            )];
        }
        let judge = |way: Way| {
            let (ratio, target) = (self.ratio(way, direction)?, way.target(volumes, direction)?);
            let below = self.median(way, direction)? < self.median(Way::NvmeCli, direction)?;
            let word = if ratio <= target { "reached    " } else { "NOT reached" };
            let cli = if below { "below (b)" } else { "NOT below (b)" };
            let mut line = format!(
                "  {word}  {} {} {ratio:.2} <= {target} x (a), {cli}",
                DIRECTIONS[direction],
                way.name()
            );
            if ratio > target || !below {
                line.push_str(&format!("; {}", self.whereabouts(way, direction)));
            }
            Some(line)
        };
        [Way::Agent, Way::Csi].into_iter().filter_map(judge).collect()
    }

    fn whereabouts(&self, way: Way, direction: usize) -> String {
        let all = if direction == 0 { &self.attach_parts } else { &self.detach_parts };
        let names: Vec<&str> = all.first().map(|parts| parts.keys().copied().collect()).unwrap_or_default();
        let mut words: Vec<String> = Vec::new();
        if way == Way::Csi {
            let rds: Vec<f64> =
                self.rds_ms.iter().map(|(a, d)| if direction == 0 { *a } else { *d }).collect();
            words.extend(median(&rds).map(|ms| format!("RDS {ms:.0} ms")));
        }
        for name in names {
            let times: Vec<f64> = all.iter().filter_map(|parts| parts.get(name).copied()).collect();
            words.extend(median(&times).map(|ms| format!("{name} {ms:.0} ms")));
        }
        format!("mean of a volume: {}", words.join(", "))
    }
}

impl Figures {
    /// The series of so many volumes.
    pub(super) fn of(&mut self, volumes: usize) -> &mut Series {
        self.volumes.entry(volumes).or_default()
    }

    /// The table and the targets.
    #[must_use]
    pub fn tell(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (volumes, series) in &self.volumes {
            let plural = if *volumes == 1 { "volume" } else { "volumes at once" };
            lines.push(String::new());
            lines.push(format!(
                "{:<34}{:>8}{:>14}{:>12}",
                format!("{volumes} {plural}, ms"),
                "median",
                "spread",
                "x (a)"
            ));
            for direction in [0, 1] {
                lines.extend(series.table(direction));
            }
            for direction in [0, 1] {
                lines.extend(series.verdicts(*volumes, direction));
            }
            let seen: (Vec<f64>, Vec<f64>) = series.agent_seen_ms.iter().copied().unzip();
            if let (Some(attach), Some(detach)) = (median(&seen.0), median(&seen.1)) {
                lines.push(format!(
                    "  (c) from outside, first directive sent to last result: {attach:.0} and {detach:.0} ms"
                ));
            }
            if series.drain_waits > 0 {
                lines.push(format!(
                    "  (d) {} Unpublishes waited for the drain bound: a path had been reported lost, so writes might still land",
                    series.drain_waits
                ));
            }
            if let Some(error) = series.nvme_cli_errors.first() {
                lines.push(format!("  nvme-cli, for example: {error}"));
            }
        }
        lines
    }
}

impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shape<'a> {
            bench: &'a str,
            volumes: BTreeMap<String, serde_json::Map<String, serde_json::Value>>,
        }
        // Keys are numbers as text, so their order in the object is that of the text.
        let series = |series: &Series| {
            let lists = Way::ALL.into_iter().flat_map(|way| [(way, 0), (way, 1)]);
            let list = |(way, direction): (Way, usize)| {
                let rounded: Vec<f64> =
                    series.of(way, direction).iter().map(|ms| (ms * 1000.0).round() / 1000.0).collect();
                (way.fields()[direction].to_owned(), rounded.into())
            };
            lists.map(list).collect()
        };
        let volumes = self.volumes.iter().map(|(count, of)| (count.to_string(), series(of))).collect();
        Shape { bench: "attach", volumes }.serialize(serializer)
    }
}

/// The least and the most of these.
pub(super) fn spread(all: &[f64]) -> (f64, f64) {
    all.iter().fold((f64::MAX, 0_f64), |(least, most), one| (least.min(*one), most.max(*one)))
}

/// The middle of these times, or the mean of the two in the middle.
pub(super) fn median(times: &[f64]) -> Option<f64> {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(agent: f64) -> Figures {
        let mut figures = Figures::default();
        let series = figures.of(1);
        for jitter in [0.0, 10.0, 5.0] {
            series.add(Way::Floor, 100.0 + jitter, 50.0);
            series.add(Way::NvmeCli, 400.0 + jitter, 200.0);
            series.add(Way::Agent, agent + jitter, 55.0);
            series.add(Way::Csi, 130.0 + jitter, 60.0);
            series.attach_parts.push(Parts::from([("connect", 90.0), ("checks", 60.0)]));
        }
        figures
    }

    #[test]
    fn a_target_that_is_missed_says_where_the_time_goes() {
        let text = figures(150.0).tell().join("\n");
        assert!(text.contains("NOT reached  attach (c) agent 1.48 <= 1.3 x (a), below (b); mean of a volume: checks 60 ms, connect 90 ms"), "{text}");
        assert!(text.contains("reached      attach (d) CSI 1.29 <= 1.6 x (a), below (b)"), "{text}");
        assert!(!figures(110.0).tell().join("\n").contains("NOT"));
    }

    #[test]
    fn the_more_volumes_there_are_the_nearer_an_attach_has_to_be() {
        let targets = |way: Way, volumes| [way.target(volumes, 0), way.target(volumes, 1)];
        assert_eq!(targets(Way::Agent, 1), [Some(1.3), Some(1.3)]);
        assert_eq!(targets(Way::Agent, 8), [Some(1.15), Some(1.5)]);
        assert_eq!(targets(Way::Csi, 32), [Some(1.6), Some(2.0)]);
    }

    #[test]
    fn a_floor_that_spreads_too_far_is_no_measure() {
        let mut figures = figures(110.0);
        figures.of(1).add(Way::Floor, 210.0, 50.0);
        let text = figures.tell().join("\n");
        assert!(text.contains("NOT JUDGED   attach: (a) itself took 100 to 210 ms"), "{text}");
        assert!(!text.contains("reached      attach") && text.contains("reached      detach"), "{text}");
    }

    #[test]
    fn every_repetition_is_in_the_json() {
        let json = serde_json::to_value(figures(110.0)).expect("json");
        assert_eq!(json["bench"], "attach");
        assert_eq!(json["volumes"]["1"]["floor_connect_ms"], serde_json::json!([100.0, 110.0, 105.0]));
        assert_eq!(json["volumes"]["1"].as_object().expect("object").len(), 8);
    }
}
