//! What was measured of fences: kept, summed up, told.
//!
//! In: [`Sample`]s. Out: lines for people and JSON. What always holds: every repetition is kept; a ratio is one of two
//! medians of the same rung, taken in turn in the same run; a rung that was left out says why.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::super::figures::median;
use crate::world::Rung;

/// Milliseconds by step.
pub(super) type Steps = BTreeMap<String, f64>;

/// A way to fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// The commands alone.
    Raw,
    /// Cleat, asked by an operator.
    Cleat,
}

impl Way {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw commands",
            Self::Cleat => "Cleat",
        }
    }
}

/// One fence. Times are milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    /// From the request to the proof, or what the commands took together.
    pub(super) proof_ms: f64,
    /// The survivor's longest time without an acknowledged write; null where there is no survivor.
    pub(super) stall_ms: Option<f64>,
    /// The same before the fence.
    pub(super) rest_ms: Option<f64>,
    /// The commands, or Cleat's calls of the RDS and what else there is of its time, each by its name.
    pub(super) steps: Steps,
}

impl Serialize for Sample {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shape<'a> {
            proof_ms: f64,
            stall_ms: Option<f64>,
            rest_ms: Option<f64>,
            steps: BTreeMap<&'a str, f64>,
        }
        // To the microsecond: the rest is the clock's.
        let round = |ms: f64| (ms * 1000.0).round() / 1000.0;
        let steps = self.steps.iter().map(|(name, ms)| (name.as_str(), round(*ms))).collect();
        let [stall_ms, rest_ms] = [self.stall_ms, self.rest_ms].map(|ms| ms.map(round));
        Shape { proof_ms: round(self.proof_ms), stall_ms, rest_ms, steps }.serialize(serializer)
    }
}

impl Sample {
    pub(super) fn in_words(&self) -> String {
        let mut words = format!("proof {:>6.0} ms", self.proof_ms);
        if let (Some(stall), Some(rest)) = (self.stall_ms, self.rest_ms) {
            words += &format!(", survivor's stall {stall:>5.0} ms ({rest:.0} at rest)");
        }
        let steps: Vec<String> = self.steps.iter().map(|(name, ms)| format!("{name} {ms:.0}")).collect();
        format!("{words}; {}", steps.join(", "))
    }
}

/// The repetitions of one rung with one kind of store.
#[derive(Debug, Clone, Default)]
struct Series(BTreeMap<Way, Vec<Sample>>);

/// All of one rung.
#[derive(Debug, Clone)]
struct OfRung {
    rung: Rung,
    left_out: Option<String>,
    /// With a store that holds nothing, and with one that does.
    series: [Series; 2],
}

/// Everything, in the order in which it was measured.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    rungs: Vec<OfRung>,
}

/// One of a sample's times.
type Time = fn(&Sample) -> Option<f64>;

const PROOF: Time = |sample| Some(sample.proof_ms);
const STALL: Time = |sample| sample.stall_ms;
const REST: Time = |sample| sample.rest_ms;

impl Series {
    fn times(&self, way: Way, time: Time) -> Vec<f64> {
        self.0.get(&way).into_iter().flatten().filter_map(time).collect()
    }

    /// Median and spread of both ways, and the ratio; `None` where there is nothing.
    fn row(&self, time: Time) -> Option<String> {
        let (raw, cleat) = (self.times(Way::Raw, time), self.times(Way::Cleat, time));
        let (floor, ours) = (median(&raw)?, median(&cleat)?);
        let ratio = if floor > 0.0 { format!("{:.2}", ours / floor) } else { "-".to_owned() };
        Some(format!("{}  {}{ratio:>9}", cell(floor, &raw), cell(ours, &cleat)))
    }

    /// The medians of one way's steps.
    fn steps(&self, way: Way) -> String {
        let samples = self.0.get(&way).map(Vec::as_slice).unwrap_or_default();
        let names: Vec<&String> =
            samples.first().map(|first| first.steps.keys().collect()).unwrap_or_default();
        let words = names.into_iter().filter_map(|name| {
            let times: Vec<f64> = samples.iter().filter_map(|s| s.steps.get(name).copied()).collect();
            Some(format!("{name} {:.0}", median(&times)?))
        });
        words.collect::<Vec<_>>().join(", ")
    }
}

fn cell(median: f64, times: &[f64]) -> String {
    let (least, most) = times.iter().fold((f64::MAX, 0_f64), |(a, b), t| (a.min(*t), b.max(*t)));
    format!("{median:>8.0} ({least:>5.0} to {most:>5.0})")
}

impl Figures {
    /// Notes one measurement.
    pub(super) fn add(&mut self, rung: Rung, way: Way, held: bool, sample: Sample) {
        self.of(rung).series[usize::from(held)].0.entry(way).or_default().push(sample);
    }

    /// Notes that a rung cannot be measured here, and why.
    pub(super) fn left_out(&mut self, rung: Rung, why: String) {
        self.of(rung).left_out = Some(why);
    }

    fn of(&mut self, rung: Rung) -> &mut OfRung {
        let index = match self.rungs.iter().position(|of| of.rung == rung) {
            Some(index) => index,
            None => {
                self.rungs.push(OfRung { rung, left_out: None, series: Default::default() });
                self.rungs.len() - 1
            }
        };
        &mut self.rungs[index]
    }

    /// The tables.
    #[must_use]
    pub fn tell(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let titles = ["", ", writes of the fenced host held by the store"];
        for (held, title) in titles.into_iter().enumerate() {
            self.table(&format!("request to proof{title}"), held, PROOF, &mut lines);
            self.table(&format!("survivor's longest stall{title}"), held, STALL, &mut lines);
        }
        self.explain(&mut lines);
        for of in &self.rungs {
            lines.extend(of.left_out.as_ref().map(|why| format!("{} is left out: {why}", of.rung.name())));
        }
        lines
    }

    fn table(&self, title: &str, held: usize, time: Time, lines: &mut Vec<String>) {
        let row = |of: &OfRung| Some(format!("  {:<12}{}", of.rung.name(), of.series[held].row(time)?));
        let rows: Vec<String> = self.rungs.iter().filter_map(row).collect();
        if rows.is_empty() {
            return;
        }
        lines.extend([String::new(), format!("{title}, ms: median (spread)")]);
        lines.push(format!("  {:<12}{:>25}{:>27}{:>9}", "rung", "raw commands", "Cleat", "x raw"));
        lines.extend(rows);
    }

    /// Where the time goes, and what is in no figure.
    fn explain(&self, lines: &mut Vec<String>) {
        lines.push(String::new());
        for of in self.rungs.iter().filter(|of| of.left_out.is_none()) {
            let series = &of.series[0];
            let rest: Vec<f64> =
                [Way::Raw, Way::Cleat].iter().flat_map(|way| series.times(*way, REST)).collect();
            lines.push(format!("{}: medians of its steps, ms", of.rung.name()));
            lines.push(format!("  raw commands: {}", series.steps(Way::Raw)));
            lines.push(format!("  Cleat, by its calls of the RDS: {}", series.steps(Way::Cleat)));
            lines.extend(median(&rest).map(|ms| format!("  survivor's longest stall at rest: {ms:.0}")));
        }
        let words = [
            "",
            "raw: what the commands take where they run, to the namespace being down (for the stall: everything brought",
            "back, too); not read back, asked over no network, written down nowhere. Cleat: from the operator's Fence to",
            "its answer. Neither has a wait in it: an Unpublish of a silent node waits for --fence-after before its fence",
            "(20 s unless set otherwise), which is policy; then it costs the same. Cleat's \"elsewhere\" is the survivor's",
            "agent (preempting, or taking another secret), the messages, and the controller with its store.",
        ];
        lines.extend(words.map(str::to_owned));
    }
}

impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shape<'a> {
            bench: &'a str,
            rungs: Vec<OneRung<'a>>,
        }
        #[derive(Serialize)]
        struct OneRung<'a> {
            name: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            left_out: Option<&'a str>,
            raw: &'a [Sample],
            cleat: &'a [Sample],
            raw_held: &'a [Sample],
            cleat_held: &'a [Sample],
        }
        let rungs = self.rungs.iter().map(|of| {
            let samples =
                |held: usize, way| of.series[held].0.get(&way).map(Vec::as_slice).unwrap_or_default();
            OneRung {
                name: of.rung.name(),
                left_out: of.left_out.as_deref(),
                raw: samples(0, Way::Raw),
                cleat: samples(0, Way::Cleat),
                raw_held: samples(1, Way::Raw),
                cleat_held: samples(1, Way::Cleat),
            }
        });
        Shape { bench: "fence", rungs: rungs.collect() }.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(proof_ms: f64, stall_ms: Option<f64>) -> Sample {
        let steps = [("hide".to_owned(), proof_ms / 2.0)].into();
        Sample { proof_ms, stall_ms, rest_ms: stall_ms.map(|_| 12.0), steps }
    }

    fn figures() -> Figures {
        let mut figures = Figures::default();
        figures.left_out(Rung::Reservation, "this kernel has none".to_owned());
        for jitter in [0.0, 20.0, 10.0] {
            figures.add(Rung::Acl, Way::Raw, false, sample(40.0 + jitter, Some(1000.0)));
            figures.add(Rung::Acl, Way::Cleat, false, sample(90.0 + jitter, Some(1100.0)));
        }
        figures.add(Rung::ExportOff, Way::Raw, true, sample(2000.0, None));
        figures.add(Rung::ExportOff, Way::Cleat, true, sample(2100.0, None));
        figures
    }

    #[test]
    fn a_ratio_is_of_medians_and_what_cannot_be_measured_is_named() {
        let text = figures().tell().join("\n");
        let line = |begin: &str| text.lines().find(|line| line.starts_with(begin)).unwrap_or_default();
        assert!(line("  acl").ends_with("2.00") && line("  acl").contains("100 (   90 to   110)"), "{text}");
        assert!(text.contains("writes of the fenced host held"), "{text}");
        assert!(text.contains("reservation is left out: this kernel has none"), "{text}");
        // Where nobody survives there is no stall to tell.
        let stalls = text.split("survivor's longest stall, ms").nth(1).expect("a table of stalls");
        let table = stalls.split("\n\n").next().expect("its rows");
        assert!(table.contains("acl") && !table.contains("export-off"), "{table}");
    }

    #[test]
    fn every_repetition_is_in_the_json() {
        let json = serde_json::to_value(figures()).expect("json");
        assert_eq!(json["bench"], "fence");
        assert_eq!(json["rungs"][0]["left_out"], "this kernel has none");
        assert_eq!(json["rungs"][1]["name"], "acl");
        assert_eq!(json["rungs"][1]["cleat"].as_array().map(Vec::len), Some(3));
        assert_eq!(json["rungs"][2]["raw_held"][0]["proof_ms"], 2000.0);
        assert_eq!(json["rungs"][2]["raw_held"][0]["stall_ms"], serde_json::Value::Null);
    }
}
