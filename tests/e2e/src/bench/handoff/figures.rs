//! What was measured of handoffs: kept, summed up, put into words.
//!
//! In: [`Handoff`]s, and the pauses beside them. Out: lines for people and JSON. What always holds: every repetition is kept; a
//! ratio is one of two medians, of migrations that were made in turn in the same run.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::super::figures::median;

/// The guest's pause may be so many times that of the same migration with both nodes attached by hand.
const TARGET: f64 = 1.1;
/// The steps of a migration, in their order.
const STEPS: [&str; 8] = [
    "target_connecting",
    "target_connected",
    "target_ready",
    "switchover",
    "releasing",
    "released",
    "evidence",
    "done",
];

/// One migration. Times are milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Handoff {
    pause_ms: f64,
    /// Of each volume, to node-b and from node-a.
    attach_ms: Vec<f64>,
    detach_ms: Vec<f64>,
    /// Of each step, the time of each volume since the step before.
    phases_ms: BTreeMap<String, Vec<f64>>,
}

impl Handoff {
    pub(super) fn new(pause_ms: f64, attach: Vec<Duration>, detach: Vec<Duration>) -> Self {
        let ms = |times: Vec<Duration>| times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
        Self { pause_ms, attach_ms: ms(attach), detach_ms: ms(detach), phases_ms: BTreeMap::new() }
    }

    /// Adds the steps of one volume.
    pub(super) fn phases(&mut self, phases: Vec<(String, f64)>) {
        for (step, ms) in phases {
            self.phases_ms.entry(step).or_default().push(ms);
        }
    }

    pub(super) fn in_words(&self) -> String {
        format!(
            "attached to node-b in {:.0} ms, pause {:.0} ms, detached from node-a in {:.0} ms (the slowest volume)",
            slowest(&self.attach_ms),
            self.pause_ms,
            slowest(&self.detach_ms)
        )
    }
}

fn slowest(times: &[f64]) -> f64 {
    times.iter().copied().fold(0.0, f64::max)
}

/// All that was measured with so many volumes.
#[derive(Debug, Clone, Serialize)]
struct OfCount {
    volumes: usize,
    /// With both nodes attached by hand.
    floor_pause_ms: Vec<f64>,
    /// The median pause over that of the floor, once there are both.
    ratio: Option<f64>,
    /// It is not above 1.1.
    reached: Option<bool>,
    handoffs: Vec<Handoff>,
}

impl OfCount {
    fn pauses(&self) -> Vec<f64> {
        self.handoffs.iter().map(|handoff| handoff.pause_ms).collect()
    }

    fn add(&mut self, floor_ms: f64, handoff: Handoff) {
        self.floor_pause_ms.push(floor_ms);
        self.handoffs.push(handoff);
        let medians = median(&self.pauses()).zip(median(&self.floor_pause_ms));
        self.ratio = medians.filter(|(_, floor)| *floor > 0.0).map(|(pause, floor)| pause / floor);
        self.reached = self.ratio.map(|ratio| ratio <= TARGET);
    }

    fn lines(&self) -> Vec<String> {
        let shown = |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| format!("{ms:.0} ms"));
        let verdict = match (self.ratio, self.reached) {
            (Some(ratio), Some(true)) => format!("{ratio:.2} x, target {TARGET}: reached"),
            (Some(ratio), _) => format!("{ratio:.2} x, target {TARGET}: NOT reached"),
            (None, _) => "no ratio".to_owned(),
        };
        let mut lines = vec![format!(
            "{} volumes: pause {}, by hand {} ({verdict})",
            self.volumes,
            shown(median(&self.pauses())),
            shown(median(&self.floor_pause_ms))
        )];
        let times = |of: fn(&Handoff) -> &Vec<f64>| {
            let all: Vec<f64> = self.handoffs.iter().flat_map(of).copied().collect();
            format!("{}, slowest {:.0} ms", shown(median(&all)), slowest(&all))
        };
        lines.push(format!("    {:<20}{}", "attach to node-b", times(|handoff| &handoff.attach_ms)));
        for step in STEPS {
            let of_step = self.handoffs.iter().filter_map(|handoff| handoff.phases_ms.get(step));
            let all: Vec<f64> = of_step.flatten().copied().collect();
            if !all.is_empty() {
                let (usual, slowest, count) = (shown(median(&all)), slowest(&all), all.len());
                lines.push(format!("    {step:<20}{usual}, slowest {slowest:.0} ms ({count} times)"));
            }
        }
        lines.push(format!("    {:<20}{}", "detach from node-a", times(|handoff| &handoff.detach_ms)));
        lines
    }
}

/// Everything, in the order in which it was measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct HandoffFigures {
    handoff: Vec<OfCount>,
}

impl HandoffFigures {
    pub(super) fn add(&mut self, volumes: usize, floor_ms: f64, handoff: Handoff) {
        let known = self.handoff.iter().position(|of| of.volumes == volumes);
        let at = known.unwrap_or_else(|| {
            let (floor_pause_ms, handoffs) = Default::default();
            self.handoff.push(OfCount { volumes, floor_pause_ms, ratio: None, reached: None, handoffs });
            self.handoff.len() - 1
        });
        if let Some(of_count) = self.handoff.get_mut(at) {
            of_count.add(floor_ms, handoff);
        }
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.handoff.iter().flat_map(OfCount::lines).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handoff(pause_ms: f64) -> Handoff {
        let seconds = |count: u64| (1..=count).map(Duration::from_secs).collect();
        let mut handoff = Handoff::new(pause_ms, seconds(2), seconds(2));
        for ready in [40.0, 60.0] {
            handoff.phases(vec![("target_ready".to_owned(), ready), ("done".to_owned(), 3.0)]);
        }
        handoff
    }

    #[test]
    fn the_ratio_is_that_of_the_medians_beside_each_other() {
        let mut figures = HandoffFigures::default();
        for (floor, pause) in [(100.0, 100.0), (100.0, 300.0), (100.0, 109.0)] {
            figures.add(8, floor, handoff(pause));
        }
        figures.add(1, 100.0, handoff(150.0));
        let json = serde_json::to_value(&figures).expect("json");
        assert_eq!(
            (&json["handoff"][0]["ratio"], &json["handoff"][0]["reached"]),
            (&1.09.into(), &true.into())
        );
        assert_eq!(json["handoff"][1]["reached"], false);
        let text = figures.lines().join("\n");
        for wanted in
            ["8 volumes: pause 109 ms, by hand 100 ms (1.09 x", "NOT reached", "slowest 60 ms (6 times)"]
        {
            assert!(text.contains(wanted), "{text}");
        }
    }
}
