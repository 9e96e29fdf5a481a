//! gRPC transport: servers and endpoints with HTTP/2 keepalive on both sides, over TCP with TLS or a Unix
//! socket.
//!
//! Comes in: transport and keepalive times. Goes out: tonic's builders, configured. A channel without
//! keepalive can stay dead after a network partition for as long as TCP takes (about 15 minutes), and neither
//! side would notice: so each of our connections has it.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint, Server};

use crate::tls::{ClientTlsArgs, ClientTransport, TlsError};

/// How long a connect may take; a caller's own deadline is usually shorter.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Calls that one connection may have under way: a sidecar has some, one for each volume that moves.
const STREAMS: u32 = 1024;
/// Size of all headers of one call.
const HEADER_BYTES: u32 = 16 << 10;

/// HTTP/2 keepalive: a ping each `interval`, even while nothing is under way; the connection is dropped when
/// a ping is not answered within `timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Time from one ping to the next.
    pub interval: Duration,
    /// Longest time from a ping to its answer.
    pub timeout: Duration,
}

impl Default for Keepalive {
    /// A dead peer is noticed within 8 seconds: well inside the attacher's RPC timeout of 15 s.
    fn default() -> Self {
        Self { interval: Duration::from_secs(4), timeout: Duration::from_secs(4) }
    }
}

/// Connects to one server: an [`Endpoint`] over the network, or a simulation's substitute for the network.
pub trait Connector: Send + Sync {
    /// Opens one connection; the caller tries again after a failure.
    fn open_channel(&self) -> PendingChannel<'_>;
}

/// A boxed future of a connect.
pub type PendingChannel<'a> = Pin<Box<dyn Future<Output = Result<Channel, ChannelError>> + Send + 'a>>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The files of our own side cannot be used (any more).
    #[error("cannot use our own certificates")]
    Tls(#[from] TlsError),
    /// The files can be read, but do not make a configuration.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The server's name means nothing now.
    #[error("cannot find an address of {address}")]
    NoAddress {
        /// The name, with its port.
        address: String,
        /// What the resolver said.
        #[source]
        source: io::Error,
    },
    /// The server cannot be reached, or is not the one that it should be.
    #[error(transparent)]
    Connect(#[from] tonic::transport::Error),
}

impl ChannelError {
    /// Whether nobody was there to take the connection, so that no server had anything to do with it. One that took it and
    /// is not the one that it should be, or says nothing, was there.
    #[must_use]
    pub fn found_nobody(&self) -> bool {
        match self {
            Self::Tls(_) | Self::Transport(_) => false,
            Self::NoAddress { .. } => true,
            Self::Connect(error) => matches!(
                io_kind(error),
                Some(
                    io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::HostUnreachable
                        | io::ErrorKind::NetworkUnreachable
                        | io::ErrorKind::NetworkDown
                        // Of the TCP connect: whoever waits for a handshake gives up before the operating system does.
                        | io::ErrorKind::TimedOut
                )
            ),
        }
    }
}

/// What the operating system has said, where it is the cause.
fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let mut causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind)
}

impl Connector for Endpoint {
    fn open_channel(&self) -> PendingChannel<'_> {
        Box::pin(async { Ok(self.connect().await?) })
    }
}

/// An endpoint that reads its certificates again for each connection, since they may have been renewed. No
/// TLS session is resumed by a later connection.
#[derive(Clone, Debug)]
pub struct Renewing {
    address: String,
    /// Which of the address's meanings to connect to; `None`: any.
    at: Option<SocketAddr>,
    tls: ClientTlsArgs,
    keepalive: Keepalive,
}

impl Renewing {
    /// For the server at `address`, which is `HOST:PORT`.
    ///
    /// # Errors
    /// Where the address or the TLS files cannot be used now.
    pub fn new(address: &str, tls: &ClientTlsArgs, keepalive: Keepalive) -> Result<Self, ChannelError> {
        let own = Self { address: address.to_owned(), at: None, tls: tls.clone(), keepalive };
        own.endpoint()?;
        Ok(own)
    }

    /// The files that are read for each connection; `None` for plaintext.
    #[must_use]
    pub fn files(&self) -> Option<ClientTlsArgs> {
        (!self.tls.plaintext).then(|| self.tls.clone())
    }

    /// All addresses that its name means now.
    ///
    /// # Errors
    /// The resolver's.
    pub async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host(&self.address).await?.collect())
    }

    /// The same server, at one of its addresses alone: the name that its certificate must carry stays.
    #[must_use]
    pub fn at(&self, address: SocketAddr) -> Self {
        Self { at: Some(address), ..self.clone() }
    }

    fn endpoint(&self) -> Result<Endpoint, ChannelError> {
        let Some(at) = self.at else {
            return Ok(endpoint(&self.address, &self.tls.load()?, self.keepalive)?);
        };
        let mut tls = self.tls.clone();
        if !tls.plaintext && tls.tls_server_name.is_none() {
            tls.tls_server_name = Some(host(&self.address).to_owned());
        }
        Ok(endpoint(&at.to_string(), &tls.load()?, self.keepalive)?)
    }
}

impl fmt::Display for Renewing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some(at) => write!(f, "{} ({at})", self.address),
            None => f.write_str(&self.address),
        }
    }
}

impl Connector for Renewing {
    fn open_channel(&self) -> PendingChannel<'_> {
        Box::pin(async {
            if self.at.is_none() {
                let unknown = |source| ChannelError::NoAddress { address: self.address.clone(), source };
                self.addresses().await.map_err(unknown)?;
            }
            let own = self.clone();
            let read = tokio::task::spawn_blocking(move || own.endpoint()).await;
            // The task can only have panicked; try again here.
            let endpoint = read.unwrap_or_else(|_| self.endpoint())?;
            Ok(endpoint.connect().await?)
        })
    }
}

/// Why a server or endpoint cannot be configured.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The TLS configuration does not work.
    #[error("cannot set up TLS")]
    Tls(#[source] tonic::transport::Error),
    /// The address has another form than `HOST:PORT`.
    #[error("cannot connect to {address:?}: give HOST:PORT")]
    Address {
        /// The address that was given.
        address: String,
        /// What is wrong with it.
        #[source]
        source: tonic::transport::Error,
    },
    /// The socket's path cannot be written as a URI.
    #[error("cannot connect to Unix socket {path:?}: its path must be absolute, and UTF-8")]
    SocketPath {
        /// The path that was given.
        path: std::path::PathBuf,
    },
}

/// A server with keepalive, and with limits on what one connection can occupy. Requests of one connection do
/// not wait for each other. TLS, where there is any, belongs to the listener (see [`crate::listen`]).
#[must_use]
pub fn server(keepalive: Keepalive) -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(keepalive.interval))
        .http2_keepalive_timeout(Some(keepalive.timeout))
        .http2_max_header_list_size(HEADER_BYTES)
        .max_concurrent_streams(STREAMS)
}

/// An endpoint with keepalive for `address`, which is `HOST:PORT`.
///
/// # Errors
/// Where the address or the TLS configuration cannot be used.
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

/// The same for each address that the name means now, as a server which shows a certificate of that name, or of
/// `server_name`.
///
/// # Errors
/// Where the address or the TLS configuration cannot be used. A name that means nothing now has one endpoint, which says so.
pub async fn endpoints(
    address: &str,
    transport: &ClientTransport,
    server_name: Option<&str>,
    keepalive: Keepalive,
) -> Result<Vec<Endpoint>, TransportError> {
    let any = endpoint(address, transport, keepalive)?;
    let found = tokio::net::lookup_host(address).await.map(Vec::from_iter).unwrap_or_default();
    if found.len() < 2 {
        return Ok(vec![any]);
    }
    let transport = match transport {
        ClientTransport::Plaintext => ClientTransport::Plaintext,
        ClientTransport::Tls(config) => {
            let name = server_name.unwrap_or_else(|| host(address));
            ClientTransport::Tls(Box::new(config.as_ref().clone().domain_name(name)))
        }
    };
    found.into_iter().map(|found| endpoint(&found.to_string(), &transport, keepalive)).collect()
}

/// The host of `HOST:PORT`.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// An endpoint with keepalive for a Unix socket.
///
/// # Errors
/// Where the path is not absolute or not UTF-8.
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
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;
    use tonic::transport::ClientTlsConfig;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;
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
            server(Keepalive::default())
                .add_service(health)
                .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()),
        );
        assert!(answers(unix_endpoint(&path, Keepalive::default()).expect("endpoint")).await);
        stop.cancel();
        serving.await.expect("no panic").expect("stops cleanly");
        assert!(!path.exists());
        assert!(unix_endpoint(Path::new("relative.sock"), Keepalive::default()).is_err());
    }

    /// Whether nobody was there, after a connect that has failed.
    async fn found_nobody(at: &dyn Connector) -> bool {
        at.open_channel().await.expect_err("it fails").found_nobody()
    }

    fn at(address: SocketAddr, transport: &ClientTransport) -> Endpoint {
        endpoint(&address.to_string(), transport, Keepalive::default()).expect("endpoint")
    }

    #[tokio::test]
    async fn who_takes_the_connection_and_fails_was_there() {
        let closed = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let refuses = closed.local_addr().expect("an address");
        drop(closed);
        let tls = ClientTransport::Tls(Box::new(ClientTlsConfig::new()));
        for transport in [&ClientTransport::Plaintext, &tls] {
            assert!(found_nobody(&at(refuses, transport)).await, "{refuses}");
        }
        // No name has a part as long as this.
        let plaintext = ClientTlsArgs { plaintext: true, ..ClientTlsArgs::default() };
        let address = format!("{}:7443", "x".repeat(64));
        let unknown = Renewing::new(&address, &plaintext, Keepalive::default()).expect("an address");
        assert!(found_nobody(&unknown).await, "{unknown}");

        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let takes = listener.local_addr().expect("an address");
        let taking = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        assert!(!found_nobody(&at(takes, &tls)).await, "it has taken the connection");
        taking.abort();
        let unchosen = ChannelError::from(TlsError::NotChosen { tls: "--tls-ca" });
        assert!(!unchosen.found_nobody());
    }

    #[tokio::test]
    async fn what_the_operating_system_says_tells_whether_somebody_was_there() {
        use io::ErrorKind as Kind;
        for (kind, nobody) in [
            (Kind::ConnectionRefused, true),
            (Kind::HostUnreachable, true),
            (Kind::NetworkUnreachable, true),
            (Kind::NetworkDown, true),
            (Kind::TimedOut, true),
            (Kind::ConnectionReset, false),
            (Kind::UnexpectedEof, false),
            // As a certificate that is not the server's comes.
            (Kind::InvalidData, false),
        ] {
            let connector = tower::service_fn(move |_: axum::http::Uri| async move {
                Err::<hyper_util::rt::TokioIo<tokio::net::TcpStream>, _>(io::Error::from(kind))
            });
            let endpoint = at(([127, 0, 0, 1], 1).into(), &ClientTransport::Plaintext);
            let failed = endpoint.connect_with_connector(connector).await.expect_err("it fails");
            assert_eq!(ChannelError::from(failed).found_nobody(), nobody, "{kind:?}");
        }
    }
}
