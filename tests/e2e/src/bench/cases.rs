//! One thing measured in several cases, in turn: each case against the first.
//!
//! In: milliseconds, and what proved it. Out: lines for people and JSON. What always holds: every repetition is kept, and
//! a case is judged only where the first one's own times do not spread too far.

use std::collections::BTreeMap;

use serde::Serialize;

use super::figures::{median, spread};

/// The longest of the first case, by its shortest, above which nothing is compared with it.
const MOST_SPREAD: f64 = 2.0;

/// All cases of one bench.
#[derive(Debug, Clone, Serialize)]
pub struct Cases {
    bench: &'static str,
    /// Of the first case, at most so much.
    target: f64,
    cases: Vec<Case>,
}

#[derive(Debug, Clone, Serialize)]
struct Case {
    name: &'static str,
    /// The case that it is compared with; none for one that others are compared with.
    against: Option<&'static str>,
    ms: Vec<f64>,
    /// How often by what: what a detach's evidence says.
    proofs: BTreeMap<String, usize>,
}

impl Cases {
    /// Of that bench; each case may take so many times what the one takes that it is compared with.
    pub(super) fn new(bench: &'static str, target: f64) -> Self {
        Self { bench, target, cases: Vec::new() }
    }

    /// Notes one repetition.
    pub(super) fn add(
        &mut self,
        name: &'static str,
        against: Option<&'static str>,
        ms: f64,
        proofs: impl IntoIterator<Item = String>,
    ) {
        let known = self.cases.iter().position(|case| case.name == name);
        let at = known.unwrap_or_else(|| {
            self.cases.push(Case { name, against, ms: Vec::new(), proofs: BTreeMap::new() });
            self.cases.len() - 1
        });
        let case = &mut self.cases[at];
        case.ms.push((ms * 1000.0).round() / 1000.0);
        for proof in proofs {
            *case.proofs.entry(proof).or_default() += 1;
        }
    }

    fn case(&self, name: &str) -> Option<&Case> {
        self.cases.iter().find(|case| case.name == name)
    }

    /// The table, and what each case comes to.
    #[must_use]
    pub fn tell(&self) -> Vec<String> {
        let mut lines = vec![format!("{:<44}{:>8}{:>18}", "ms", "median", "spread")];
        for case in &self.cases {
            let (least, most) = spread(&case.ms);
            let middle = median(&case.ms).unwrap_or_default();
            lines.push(format!("  {:<42}{middle:>8.0}{least:>8.0} to {most:<8.0}", case.name));
            let proofs: Vec<String> =
                case.proofs.iter().map(|(proof, times)| format!("{times} x {proof}")).collect();
            if !proofs.is_empty() {
                lines.push(format!("    proven by {}", proofs.join("; ")));
            }
        }
        lines.extend(self.cases.iter().filter_map(|case| self.verdict(case)));
        lines
    }

    fn verdict(&self, case: &Case) -> Option<String> {
        let floor = self.case(case.against?)?;
        let (least, most) = spread(&floor.ms);
        if most > least * MOST_SPREAD {
            let (name, floor) = (case.name, floor.name);
            return Some(format!(
                "  NOT JUDGED   {name}: {floor} itself took {least:.0} to {most:.0} ms, which is no measure"
            ));
        }
        let ratio = median(&case.ms)? / median(&floor.ms)?;
        let word = if ratio <= self.target { "reached    " } else { "NOT reached" };
        Some(format!("  {word}  {}: {ratio:.2} <= {} x {}", case.name, self.target, floor.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cases(floor: [f64; 3]) -> Cases {
        let mut cases = Cases::new("restarts", 1.5);
        for ms in floor {
            cases.add("ordinary", None, ms, ["live".to_owned()]);
            cases.add("after", Some("ordinary"), 140.0, ["live".to_owned()]);
            cases.add("much later", Some("ordinary"), 60_000.0, ["the drain bound".to_owned()]);
        }
        cases
    }

    #[test]
    fn each_case_is_judged_by_the_one_it_is_compared_with() {
        let text = cases([100.0, 110.0, 90.0]).tell().join("\n");
        assert!(text.contains("reached      after: 1.40 <= 1.5 x ordinary"), "{text}");
        assert!(text.contains("NOT reached  much later: 600.00 <= 1.5 x ordinary"), "{text}");
        assert!(text.contains("proven by 3 x the drain bound"), "{text}");
    }

    #[test]
    fn where_the_measure_itself_spreads_nothing_is_judged() {
        let text = cases([100.0, 310.0, 90.0]).tell().join("\n");
        assert!(text.contains("NOT JUDGED   after: ordinary itself took 90 to 310 ms"), "{text}");
        assert!(!text.contains("reached"), "{text}");
    }

    #[test]
    fn every_repetition_and_proof_is_in_the_json() {
        let json = serde_json::to_value(cases([100.0, 110.0, 90.0])).expect("json");
        assert_eq!(json["bench"], "restarts");
        assert_eq!(json["cases"][0]["ms"], serde_json::json!([100.0, 110.0, 90.0]));
        assert_eq!(json["cases"][2]["proofs"]["the drain bound"], 3);
    }
}
