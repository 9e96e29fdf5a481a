//! What a metric is: name, kind, help and buckets. Each crate that records any lists its own in one table.
//!
//! Comes in: the tables of a program. Goes out: the recorder's descriptions and buckets.
//!
//! Always holds: a name begins with its owner (`cleat_agent_`, `cleat_controller_`, `cleat_rds_`,
//! `cleat_store_`, and `cleat_` for what all programs have). Labels come from enums, never from volumes,
//! nodes or messages.

use metrics::{describe_counter, describe_gauge, describe_histogram};

/// Buckets, in seconds, of every histogram without its own: from a local call to a fencing drain.
pub const DEFAULT_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0];

/// A metric as the tables list it; a metric without help fails a test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// Its name, which begins with its owner and ends with its unit.
    pub name: &'static str,
    kind: Kind,
    help: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Counter,
    Gauge,
    Histogram(&'static [f64]),
}

impl Metric {
    /// A number that only rises.
    #[must_use]
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Counter, help }
    }

    /// A number that rises and falls.
    #[must_use]
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Gauge, help }
    }

    /// Times, in [`DEFAULT_SECONDS`].
    #[must_use]
    pub const fn histogram(name: &'static str, help: &'static str) -> Self {
        Self::histogram_in(DEFAULT_SECONDS, name, help)
    }

    /// Times or sizes, in these buckets.
    #[must_use]
    pub const fn histogram_in(buckets: &'static [f64], name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Histogram(buckets), help }
    }

    /// Its row in docs/metrics.md.
    #[must_use]
    pub fn row(&self) -> String {
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        format!("| `{}` | {kind} | {} |", self.name, self.help)
    }

    /// Its buckets; `None` where it is no histogram.
    pub(crate) fn buckets(&self) -> Option<&'static [f64]> {
        match self.kind {
            Kind::Histogram(buckets) => Some(buckets),
            Kind::Counter | Kind::Gauge => None,
        }
    }
}

pub(crate) const BUILD_INFO: Metric =
    Metric::gauge("cleat_build_info", "Always 1; version and tree of this program");
pub(crate) const CERTIFICATE_EXPIRY: Metric = Metric::gauge(
    "cleat_certificate_expiry_timestamp_seconds",
    "When a certificate in use expires, in seconds since 1970, by its use",
);
pub(crate) const CONNECTIONS_REFUSED: Metric =
    Metric::counter("cleat_connections_refused_total", "Connections refused, by listener and reason");

/// Metrics that every program has.
pub const COMMON: &[Metric] = &[BUILD_INFO, CERTIFICATE_EXPIRY, CONNECTIONS_REFUSED];

/// Describes these metrics to the current recorder.
pub fn describe<'m>(metrics: impl IntoIterator<Item = &'m Metric>) {
    for Metric { name, kind, help } in metrics {
        match kind {
            Kind::Counter => describe_counter!(*name, *help),
            Kind::Gauge => describe_gauge!(*name, *help),
            Kind::Histogram(_) => describe_histogram!(*name, *help),
        }
    }
}

/// Rows that docs/metrics.md lacks, of a program with these tables.
#[must_use]
pub fn undocumented(tables: &[&[Metric]], document: &str) -> Vec<String> {
    let rows = tables.iter().copied().flatten().chain(COMMON).map(Metric::row);
    rows.filter(|row| !document.lines().any(|line| line == row)).collect()
}

/// Names in a text of the exposition format that have no help.
#[must_use]
pub fn undescribed(text: &str) -> Vec<&str> {
    let names =
        |word: &'static str| text.lines().filter_map(move |line| line.strip_prefix(word)?.split(' ').next());
    let described: Vec<&str> = names("# HELP ").collect();
    names("# TYPE ").filter(|name| !described.contains(name)).collect()
}

/// A gRPC code by its name in the specification: the value of each label `code`.
#[must_use]
pub fn code_name(code: tonic::Code) -> &'static str {
    match code {
        tonic::Code::Ok => "OK",
        tonic::Code::Cancelled => "CANCELLED",
        tonic::Code::Unknown => "UNKNOWN",
        tonic::Code::InvalidArgument => "INVALID_ARGUMENT",
        tonic::Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        tonic::Code::NotFound => "NOT_FOUND",
        tonic::Code::AlreadyExists => "ALREADY_EXISTS",
        tonic::Code::PermissionDenied => "PERMISSION_DENIED",
        tonic::Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        tonic::Code::FailedPrecondition => "FAILED_PRECONDITION",
        tonic::Code::Aborted => "ABORTED",
        tonic::Code::OutOfRange => "OUT_OF_RANGE",
        tonic::Code::Unimplemented => "UNIMPLEMENTED",
        tonic::Code::Internal => "INTERNAL",
        tonic::Code::Unavailable => "UNAVAILABLE",
        tonic::Code::DataLoss => "DATA_LOSS",
        tonic::Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
