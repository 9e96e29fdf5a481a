//! The listeners: HTTPS for the REST API, plain HTTP for the test control.
//!
//! In: bound sockets, the device, its faults. Out: served until the token is cancelled. What always holds: sockets
//! are bound by the caller, so that nothing is half started when an address is taken; a request that hangs by a
//! fault does not hold the shutdown longer than [`GRACE`].

use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tower::service_fn;

use crate::control;
use crate::faults::{FaultGate, Faults};
use crate::rds::Rds;
use crate::rest::{self, Credentials};

/// How long a shutdown waits for requests under way.
pub const GRACE: Duration = Duration::from_secs(2);

/// Serves the REST API.
pub async fn serve_rest(
    listener: TcpListener,
    tls: ServerConfig,
    rds: Arc<Mutex<Rds>>,
    credentials: Credentials,
    faults: Arc<Faults>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let router = rest::router(rds, credentials);
    let gate = service_fn(move |from: SocketAddr| {
        ready(Ok::<_, Infallible>(FaultGate::new(router.clone(), Arc::clone(&faults), from.ip())))
    });
    let server = axum_server::from_tcp_rustls(listener, RustlsConfig::from_config(Arc::new(tls)))?;
    server.handle(ended_by(shutdown)).serve(gate).await
}

/// Serves the test control.
pub async fn serve_control(
    listener: TcpListener,
    rds: Arc<Mutex<Rds>>,
    faults: Arc<Faults>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let router = control::router(rds, faults);
    axum_server::from_tcp(listener)?.handle(ended_by(shutdown)).serve(router.into_make_service()).await
}

fn ended_by(shutdown: CancellationToken) -> Handle<SocketAddr> {
    let handle = Handle::new();
    let ended = handle.clone();
    tokio::spawn(async move {
        shutdown.cancelled().await;
        ended.graceful_shutdown(Some(GRACE));
    });
    handle
}
