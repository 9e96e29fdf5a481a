//! What was measured, and whether it is what it is to be.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What one number of volumes costs. `None`: it did not come to that.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Point {
    /// Volumes that are Ready.
    pub volumes: usize,
    /// Agents with a session.
    pub agents: usize,
    /// CPU time of the controller at rest, in percent of one core.
    pub idle_cpu_percent: Option<f64>,
    /// From a Publish's call until its directive has reached the agent; the median.
    pub publish_p50_ms: Option<f64>,
    /// The same of all but one in a hundred.
    pub publish_p99_ms: Option<f64>,
    /// From exec until every volume is answered for again.
    pub restart_ms: Option<u64>,
    /// The most memory that any of its processes had.
    pub rss_mib: Option<u64>,
}

/// What an agent costs, as `cleat-bench at-rest` says it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AgentPoint {
    /// Volumes that it holds.
    pub volumes: usize,
    /// Processes beside it.
    pub processes: usize,
    /// CPU time of the agent at rest, in percent of one core.
    pub idle_cpu_percent: f64,
    /// Its memory.
    pub rss_mib: u64,
}

/// All of it, as the last line has it.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Always `scale`.
    pub bench: &'static str,
    /// One for each number of volumes.
    pub points: Vec<Point>,
    /// `None`: not measured in this run.
    pub agent: Option<AgentPoint>,
}

/// What each is to stay below.
const GOALS: [Goal; 4] = [
    Goal { what: "CPU at rest", below: 5.0, unit: "%", of: |point| point.idle_cpu_percent },
    Goal { what: "Publish, p99", below: 50.0, unit: "ms", of: |point| point.publish_p99_ms },
    Goal { what: "restart", below: 15_000.0, unit: "ms", of: |point| point.restart_ms.map(|ms| ms as f64) },
    Goal { what: "memory", below: 1536.0, unit: "MiB", of: |point| point.rss_mib.map(|mib| mib as f64) },
];

struct Goal {
    what: &'static str,
    below: f64,
    unit: &'static str,
    of: fn(&Point) -> Option<f64>,
}

impl Point {
    /// A line for each goal.
    #[must_use]
    pub fn judged(&self) -> Vec<String> {
        let line = |Goal { what, below, unit, of }: &Goal| match of(self) {
            None => format!("{what}: not measured; goal below {below} {unit}: missed"),
            Some(is) => {
                let verdict = if is < *below { "reached" } else { "missed" };
                format!("{what}: {is:.1} {unit}; goal below {below} {unit}: {verdict}")
            }
        };
        GOALS.iter().map(line).collect()
    }
}

/// So many percent of all are at most this, in ms; none of none.
pub(crate) fn percentile_ms(times: &[Duration], percent: usize) -> Option<f64> {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = (times.len() * percent).div_ceil(100).saturating_sub(1);
    times.get(at).map(|time| (time.as_secs_f64() * 10_000.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_times() {
        let times: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile_ms(&times, 50), Some(100.0));
        assert_eq!(percentile_ms(&times, 99), Some(198.0));
        assert_eq!(percentile_ms(&times[..1], 99), Some(200.0));
        assert_eq!(percentile_ms(&[], 50), None);
    }

    #[test]
    fn what_was_not_measured_is_no_goal_that_was_reached() {
        let point = Point { volumes: 1, agents: 1, restart_ms: Some(20), ..Point::default() };
        let judged = point.judged();
        let reached = judged.iter().filter(|line| line.ends_with("reached"));
        assert_eq!(reached.collect::<Vec<_>>(), ["restart: 20.0 ms; goal below 15000 ms: reached"]);
    }
}
