//! gRPC transport: servers and endpoints with HTTP/2 keepalive on both sides, over TCP with TLS or a Unix
//! socket.
//!
//! In come transport and keepalive times; out go tonic's builders, configured. A channel without keepalive
//! can stay dead after a network partition for as long as TCP likes (about 15 minutes), and neither side
//! would know: so no connection of ours is made without it.

use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint, Server};

use crate::tls::{ClientTransport, ServerTransport};

/// How long a connect may take; a caller's own deadline is usually shorter.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// HTTP/2 keepalive: a ping each `interval`, also while nothing is under way; the connection is dropped when
/// one is not answered within `timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// From one ping to the next.
    pub interval: Duration,
    /// From a ping to its answer.
    pub timeout: Duration,
}

impl Default for Keepalive {
    /// A dead peer is noticed within 8 seconds: well inside the attacher's RPC timeout of 15 s.
    fn default() -> Self {
        Self { interval: Duration::from_secs(4), timeout: Duration::from_secs(4) }
    }
}

/// Connects to one server: an [`Endpoint`] over the network, or what stands for the network in a simulation.
pub trait Dial: Send + Sync {
    /// Connects once.
    fn dial(&self) -> Dialling<'_>;
}

/// A connect under way.
pub type Dialling<'a> = Pin<Box<dyn Future<Output = Result<Channel, tonic::transport::Error>> + Send + 'a>>;

impl Dial for Endpoint {
    fn dial(&self) -> Dialling<'_> {
        Box::pin(self.connect())
    }
}

/// Why a server or endpoint cannot be configured.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The TLS configuration does not work.
    #[error("TLS cannot be set up")]
    Tls(#[source] tonic::transport::Error),
    /// The address is not one.
    #[error("{address:?} cannot be dialled: give HOST:PORT")]
    Address {
        /// The address as given.
        address: String,
        /// What is wrong with it.
        #[source]
        source: tonic::transport::Error,
    },
    /// The socket's path cannot be written as a URI.
    #[error("Unix socket {path:?} cannot be dialled: its path must be absolute, and UTF-8")]
    SocketPath {
        /// The path as given.
        path: std::path::PathBuf,
    },
}

/// A server with keepalive. Requests of one connection do not wait for each other.
///
/// # Errors
/// If the TLS configuration does not work.
pub fn server(transport: &ServerTransport, keepalive: Keepalive) -> Result<Server, TransportError> {
    let server = Server::builder()
        .http2_keepalive_interval(Some(keepalive.interval))
        .http2_keepalive_timeout(Some(keepalive.timeout))
        .tcp_nodelay(true);
    match transport {
        ServerTransport::Plaintext => Ok(server),
        ServerTransport::Tls(config) => {
            server.tls_config(config.as_ref().clone()).map_err(TransportError::Tls)
        }
    }
}

/// An endpoint with keepalive for `address`, which is `HOST:PORT`.
///
/// # Errors
/// If the address or the TLS configuration does not work.
pub fn endpoint(
    address: &str,
    transport: &ClientTransport,
    keepalive: Keepalive,
) -> Result<Endpoint, TransportError> {
    let uri = format!("{}://{address}", transport.scheme());
    let endpoint = Endpoint::from_shared(uri)
        .map_err(|source| TransportError::Address { address: address.to_owned(), source })?;
    let endpoint = with_keepalive(endpoint, keepalive);
    match transport {
        ClientTransport::Plaintext => Ok(endpoint),
        ClientTransport::Tls(config) => {
            endpoint.tls_config(config.as_ref().clone()).map_err(TransportError::Tls)
        }
    }
}

/// An endpoint with keepalive for a Unix socket.
///
/// # Errors
/// If the path is not absolute or not UTF-8.
pub fn unix_endpoint(path: &Path, keepalive: Keepalive) -> Result<Endpoint, TransportError> {
    let wrong = || TransportError::SocketPath { path: path.to_owned() };
    let text = path.to_str().filter(|_| path.is_absolute()).ok_or_else(wrong)?;
    let endpoint = Endpoint::from_shared(format!("unix://{text}")).map_err(|_| wrong())?;
    Ok(with_keepalive(endpoint, keepalive))
}

fn with_keepalive(endpoint: Endpoint, keepalive: Keepalive) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(keepalive.interval)
        .keep_alive_timeout(keepalive.timeout)
        .keep_alive_while_idle(true)
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;
    use crate::tls::{ClientTlsArgs, ServerTlsArgs};
    use crate::unix::UnixIncoming;

    async fn answers(endpoint: Endpoint) -> bool {
        let channel = endpoint.connect().await.expect("connects");
        HealthClient::new(channel).check(HealthCheckRequest::default()).await.is_ok()
    }

    #[tokio::test]
    async fn a_unix_socket_is_served_dialled_and_removed_at_stop() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("csi.sock");
        let incoming = UnixIncoming::bind(&path).await.expect("bind");
        let stop = CancellationToken::new();
        let (_, health) = tonic_health::server::health_reporter();
        let serving = tokio::spawn(
            server(&ServerTransport::Plaintext, Keepalive::default())
                .expect("server")
                .add_service(health)
                .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()),
        );
        assert!(answers(unix_endpoint(&path, Keepalive::default()).expect("endpoint")).await);
        stop.cancel();
        serving.await.expect("no panic").expect("stops cleanly");
        assert!(!path.exists());
        assert!(unix_endpoint(Path::new("relative.sock"), Keepalive::default()).is_err());
    }

    #[tokio::test]
    async fn mutual_tls_admits_only_a_client_with_a_certificate() {
        let dir = tempfile::tempdir().expect("dir");
        let made = rcgen::generate_simple_self_signed(["cleat.test".to_owned()]).expect("certificate");
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        std::fs::write(&cert, made.cert.pem()).expect("write");
        std::fs::write(&key, made.signing_key.serialize_pem()).expect("write");
        let tls = ServerTlsArgs {
            tls_cert: Some(cert.clone()),
            tls_key: Some(key.clone()),
            tls_client_ca: Some(cert.clone()),
            plaintext: false,
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        let (_, health) = tonic_health::server::health_reporter();
        let serving = tokio::spawn(
            server(&tls.load().expect("files"), Keepalive::default())
                .expect("server")
                .add_service(health)
                .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)),
        );
        let mut client = ClientTlsArgs {
            tls_ca: Some(cert.clone()),
            tls_cert: Some(cert),
            tls_key: Some(key),
            tls_server_name: Some("cleat.test".into()),
            plaintext: false,
        };
        let with = endpoint(&address, &client.load().expect("files"), Keepalive::default());
        assert!(answers(with.expect("endpoint")).await);
        (client.tls_cert, client.tls_key) = (None, None);
        let without = endpoint(&address, &client.load().expect("files"), Keepalive::default());
        let refused = match without.expect("endpoint").connect().await {
            Err(_) => true,
            Ok(channel) => HealthClient::new(channel).check(HealthCheckRequest::default()).await.is_err(),
        };
        assert!(refused);
        serving.abort();
    }
}
