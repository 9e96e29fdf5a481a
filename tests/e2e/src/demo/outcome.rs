//! The demo's result for machines: one JSON object of a shape that others rely on.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::Figures;

/// `{"ok":bool,"steps":[…],"writer":{…},"phases_ms":{…}}`
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Whether all steps were, and the sequence is whole.
    pub ok: bool,
    /// The steps in their order, up to the first that failed.
    pub steps: Vec<StepOutcome>,
    /// What became of the writes.
    pub writer: WriterOutcome,
    /// Figures with their shares by phase, milliseconds.
    #[serde(rename = "phases_ms")]
    pub figures: Figures,
}

/// A step.
#[derive(Debug, Clone, Serialize)]
pub struct StepOutcome {
    /// Its name.
    pub name: &'static str,
    /// Whether its checks held.
    pub ok: bool,
    /// How long it took.
    pub ms: u64,
}

/// What the target holds, and what the writers met.
#[derive(Debug, Clone, Default, Serialize)]
pub struct WriterOutcome {
    /// Records that the target holds.
    pub writes: u64,
    /// Acknowledged records that it does not hold.
    pub gaps: u64,
    /// Numbers that it holds more than once.
    pub duplicates: u64,
    /// Records that a source wrote after its switchover.
    pub late_writes_by_source: u64,
    /// Writes that failed, and blocks that are no whole record of ours.
    pub errors: u64,
    /// The longest time between two acknowledged writes of one writer.
    #[serde(serialize_with = "ms")]
    pub max_gap_ms: Duration,
    /// From the source's last acknowledged write to the target's first.
    #[serde(serialize_with = "ms")]
    pub switchover_gap_ms: Duration,
}

impl Outcome {
    /// Of a run whose machines or parts did not come up.
    pub(super) fn not_begun(after: Duration) -> Self {
        let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        Self {
            ok: false,
            steps: vec![StepOutcome { name: "boot", ok: false, ms }],
            writer: WriterOutcome::default(),
            figures: Figures::default(),
        }
    }
}

/// Milliseconds with three places.
pub(super) fn ms<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(round_ms(time.as_secs_f64() * 1000.0))
}

pub(super) fn round_ms(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_the_one_that_others_rely_on() {
        let text = serde_json::to_string(&Outcome::not_begun(Duration::from_millis(7))).expect("json");
        let start = r#"{"ok":false,"steps":[{"name":"boot","ok":false,"ms":7}],"writer":{"writes":0,"gaps":0,"duplicates":0,"late_writes_by_source":0,"errors":0,"max_gap_ms":0.0,"switchover_gap_ms":0.0},"phases_ms":{"#;
        assert!(text.starts_with(start), "{text}");
    }
}
