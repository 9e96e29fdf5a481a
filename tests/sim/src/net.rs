//! gRPC over the simulated network: streams that tonic can serve, and dialling that it can use.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use cleat_runtime::grpc::{Dial, Dialling};
use futures_util::Stream;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::codegen::http::Uri;
use tonic::transport::Endpoint;
use tonic::transport::server::{Connected, TcpConnectInfo};
use turmoil::net::{TcpListener, TcpStream};

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted(TcpStream);

impl Connected for Accepted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo { local_addr: self.0.local_addr().ok(), remote_addr: self.0.peer_addr().ok() }
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Connections to a port of the present host, as they come.
///
/// # Errors
/// If the port is taken.
pub async fn listen(port: u16) -> io::Result<impl Stream<Item = io::Result<Accepted>>> {
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    Ok(futures_util::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| Accepted(stream));
        Some((accepted, listener))
    }))
}

/// Dials a port of a simulated host.
#[derive(Debug, Clone)]
pub struct Dialler {
    endpoint: Endpoint,
    host: &'static str,
    port: u16,
}

impl Dialler {
    /// Dials `host` at `port`, with what `endpoint` says of keepalive and time limits.
    #[must_use]
    pub fn new(endpoint: Endpoint, host: &'static str, port: u16) -> Self {
        Self { endpoint, host, port }
    }
}

impl Dial for Dialler {
    fn dial(&self) -> Dialling<'_> {
        let (host, port) = (self.host, self.port);
        let connector = tower::service_fn(move |_: Uri| async move {
            TcpStream::connect((host, port)).await.map(TokioIo::new)
        });
        Box::pin(self.endpoint.connect_with_connector(connector))
    }
}
