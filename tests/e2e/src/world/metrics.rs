//! Reading a part's `/metrics`, as far as tests and figures need it.

use std::collections::BTreeMap;

use anyhow::Context;

/// The samples of one scrape, by name and labels as they stand in the text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    samples: BTreeMap<String, f64>,
}

impl Metrics {
    /// Reads `http://ADDRESS/metrics`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn scrape(address: &str) -> anyhow::Result<Self> {
        let url = format!("http://{address}/metrics");
        let answer = reqwest::get(&url).await.and_then(reqwest::Response::error_for_status);
        let text = match answer {
            Ok(answer) => answer.text().await,
            Err(error) => Err(error),
        };
        Ok(Self::parse(&text.with_context(|| format!("read {url}"))?))
    }

    /// Takes the text apart. Lines that are no samples are left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self { samples: text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect() }
    }

    /// The sum of all samples of this name that carry all these labels.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.samples
            .iter()
            .filter(|(sample, _)| {
                let (own, of) = sample.split_once('{').unwrap_or((sample, ""));
                own == name && labels.iter().all(|(key, value)| of.contains(&format!("{key}=\"{value}\"")))
            })
            .map(|(_, value)| value)
            .sum()
    }

    /// Milliseconds that a histogram of seconds has taken in since `before`.
    #[must_use]
    pub fn ms_since(&self, before: &Self, histogram: &str, labels: &[(&str, &str)]) -> f64 {
        let name = format!("{histogram}_sum");
        (self.sum(&name, labels) - before.sum(&name, labels)) * 1000.0
    }

    /// Observations that a histogram has taken in since `before`.
    #[must_use]
    pub fn count_since(&self, before: &Self, histogram: &str, labels: &[(&str, &str)]) -> u64 {
        let name = format!("{histogram}_count");
        (self.sum(&name, labels) - before.sum(&name, labels)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_over_the_labels_that_are_not_named() {
        let text = "# HELP a\na_sum{phase=\"x\",ok=\"1\"} 1.5\na_sum{phase=\"x\",ok=\"0\"} 0.5\na_sum{phase=\"y\"} 9\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.sum("a_sum", &[("phase", "x")]), 2.0);
        assert_eq!(metrics.ms_since(&Metrics::default(), "a", &[("phase", "y")]), 9000.0);
    }
}
