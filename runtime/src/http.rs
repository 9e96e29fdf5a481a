//! The metrics and health endpoint: `/metrics`, `/healthz`, `/readyz`.
//!
//! Comes in: the address, the tables of metrics and the readiness flags. Goes out: an HTTP listener. It is
//! bound before anything else starts, so that a wrong address ends the program at once, and it answers
//! `/healthz` as long as the process can run a task at all. Plain HTTP without secrets: it shows nothing but
//! volumes, nodes and counts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use clap::Args;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::hush::Hush;
use crate::listen::pause_after;
use crate::metrics::{BUILD_INFO, COMMON, Metric, describe};
use crate::readiness::Readiness;

/// Connections at a time, for scrapers and probes.
const CONNECTIONS: usize = 32;
/// How long the head of a request may take, and how large it may be.
const HEADER_TIME: Duration = Duration::from_secs(5);
const HEADER_BYTES: usize = 16 << 10;
/// How long one connection may last, whatever happens on it.
const CONNECTION_TIME: Duration = Duration::from_secs(300);
/// How often the recorder condenses what histograms have collected; otherwise they grow between scrapes.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Options of the endpoint.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Metrics and health")]
pub struct HttpArgs {
    /// Serve /metrics, /healthz and /readyz over plain HTTP on this address (port 0: any free one)
    #[arg(long, value_name = "ADDR", env = "CLEAT_METRICS_LISTEN")]
    pub metrics_listen: Option<SocketAddr>,
}

/// Why the endpoint could not start, or failed.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address cannot be bound.
    #[error(
        "cannot listen on {addr} (--metrics-listen); free the port, or name another address (0.0.0.0:PORT where this kernel has no IPv6)"
    )]
    Bind {
        /// The address that `--metrics-listen` names.
        addr: SocketAddr,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The recorder cannot be installed.
    #[error("cannot set up metrics")]
    Recorder(#[source] BuildError),
}

/// Builds the recorder with the buckets of these metrics.
fn builder<'m>(metrics: impl IntoIterator<Item = &'m Metric>) -> Result<PrometheusBuilder, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in metrics {
        if let Some(buckets) = metric.buckets() {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.into()), buckets)?;
        }
    }
    Ok(builder)
}

/// Installs the process-wide metrics recorder.
///
/// # Errors
/// Where a bucket list is empty, or a recorder is installed already.
pub fn install_recorder(tables: &[&[Metric]]) -> Result<PrometheusHandle, HttpError> {
    let described = || tables.iter().copied().flatten().chain(COMMON);
    let handle =
        builder(described()).and_then(PrometheusBuilder::install_recorder).map_err(HttpError::Recorder)?;
    describe(described());
    metrics::gauge!(BUILD_INFO.name, "version" => crate::VERSION, "tree" => crate::GIT_DESCRIBE.unwrap_or("unknown"))
        .set(1.0);
    Ok(handle)
}

/// The bound listener, which does not serve yet: connections queue in the kernel until it does.
#[derive(Debug)]
pub struct HttpListener {
    addr: SocketAddr,
    listener: TcpListener,
}

impl HttpListener {
    /// Binds the address.
    ///
    /// # Errors
    /// Where the kernel refuses the address; the error names it.
    pub async fn bind(addr: SocketAddr) -> Result<Self, HttpError> {
        let bind = async {
            let listener = TcpListener::bind(addr).await?;
            Ok((listener.local_addr()?, listener))
        };
        let (addr, listener) = bind.await.map_err(|source| HttpError::Bind { addr, source })?;
        Ok(Self { addr, listener })
    }

    /// The address it listens on, with the port that the kernel chose if that was left open.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `stop`, and keeps the recorder small meanwhile.
    ///
    /// # Errors
    /// If the listener fails.
    pub async fn serve(
        self,
        metrics: PrometheusHandle,
        readiness: Readiness,
        stop: CancellationToken,
    ) -> Result<(), HttpError> {
        let addr = self.addr;
        let upkeep = {
            let metrics = metrics.clone();
            async move {
                let mut tick = tokio::time::interval(UPKEEP_EVERY);
                loop {
                    tick.tick().await;
                    metrics.run_upkeep();
                }
            }
        };
        let app = axum::Router::new()
            .route("/metrics", get(serve_metrics))
            .with_state(metrics)
            .merge(axum::Router::new().route("/readyz", get(serve_readyz)).with_state(readiness))
            .route("/healthz", get(async || "ok\n"));
        tracing::debug!(%addr, "serving metrics and health");
        tokio::select! {
            () = upkeep => Ok(()),
            () = accept(self.listener, app) => Ok(()),
            () = stop.cancelled() => Ok(()),
        }
    }
}

/// Serves all clients, within limits: no request is large, and a slow client holds nothing for long.
async fn accept(listener: TcpListener, app: axum::Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let hush = Hush::default();
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                hush.warn(|skipped| tracing::warn!(%error, skipped, "cannot accept a request for metrics"));
                pause_after(&error).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            hush.warn(|skipped| {
                tracing::warn!(%from, skipped, "more than {CONNECTIONS} connections for metrics; closing \
                                                this one");
            });
            continue;
        };
        let service = TowerToHyperService::new(app.clone());
        tokio::spawn(async move {
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIME)
                .max_buf_size(HEADER_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            // Whatever ends it, the connection is over.
            let _ = tokio::time::timeout(CONNECTION_TIME, serving).await;
            drop(place);
        });
    }
}

async fn serve_metrics(State(metrics): State<PrometheusHandle>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}

async fn serve_readyz(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let missing = readiness.missing();
    if missing.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::metrics::undescribed;

    const X: Metric = Metric::histogram_in(&[0.5], "cleat_x_seconds", "Time of x");
    const Y: Metric = Metric::histogram("cleat_y_seconds", "Time of y");

    async fn get(addr: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(addr).await.expect("connect");
        let request = format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("receive");
        answer
    }

    #[tokio::test]
    async fn the_endpoint_tells_metrics_life_and_what_is_not_ready() {
        let recorder = builder(&[X, Y]).expect("buckets").build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe([&X, &Y]);
            metrics::histogram!(X.name).record(0.2);
            metrics::histogram!(Y.name).record(0.2);
        });
        let readiness = Readiness::default();
        let flag = readiness.flag("rds");
        let stop = CancellationToken::new();
        let listener = HttpListener::bind(([127, 0, 0, 1], 0).into()).await.expect("bind");
        let addr = listener.addr();
        let serving = tokio::spawn(listener.serve(recorder.handle(), readiness, stop.clone()));

        assert!(get(addr, "/healthz").await.starts_with("HTTP/1.1 200"));
        let answer = get(addr, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("not ready: rds\n"), "{answer}");
        flag.set(true);
        assert!(get(addr, "/readyz").await.starts_with("HTTP/1.1 200"));
        let answer = get(addr, "/metrics").await;
        assert!(answer.contains("cleat_x_seconds_bucket{le=\"0.5\"} 1"), "{answer}");
        assert!(answer.contains("cleat_y_seconds_bucket{le=\"0.25\"} 1"), "{answer}");
        assert!(answer.contains("# HELP cleat_x_seconds Time of x"), "{answer}");
        assert_eq!(undescribed(&answer), Vec::<&str>::new());

        stop.cancel();
        serving.await.expect("no panic").expect("stops cleanly");
    }

    #[tokio::test]
    async fn whoever_says_nothing_is_cut_off_and_the_next_is_served() {
        let recorder = builder(&[]).expect("buckets").build_recorder();
        let listener = HttpListener::bind(([127, 0, 0, 1], 0).into()).await.expect("bind");
        let addr = listener.addr();
        let stop = CancellationToken::new();
        tokio::spawn(listener.serve(recorder.handle(), Readiness::default(), stop));
        let mut mute = Vec::new();
        for _ in 0..2 * CONNECTIONS {
            mute.push(tokio::net::TcpStream::connect(addr).await.expect("connect"));
        }
        for mut stream in mute {
            let mut said = Vec::new();
            // Reset or closed.
            let _ = stream.read_to_end(&mut said).await;
        }
        assert!(get(addr, "/healthz").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let first = HttpListener::bind(([127, 0, 0, 1], 0).into()).await.expect("bind");
        let error = HttpListener::bind(first.addr()).await.expect_err("in use");
        assert!(error.to_string().contains(&first.addr().to_string()), "{error}");
    }
}
