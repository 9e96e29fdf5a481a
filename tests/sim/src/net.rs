//! Machines' network: gRPC over the simulated network, for clients directly, for programs through their machine.
//!
//! A program's connections belong to its machine: the machine accepts, acknowledges and keeps what has arrived while
//! the program stands still, and ends them when it dies. So a [`Nic`] runs in the simulated network for each machine,
//! and hands its programs pipes.
//!
//! Always holds: what a frozen program was sent waits for it, and what it has sent before goes out.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use cleat_runtime::grpc::{Connector, PendingChannel};
use futures_util::{Stream, stream};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, copy_bidirectional, duplex};
use tokio::sync::{mpsc, oneshot};
use tonic::codegen::http::Uri;
use tonic::transport::Endpoint;
use tonic::transport::server::{Connected, TcpConnectInfo};
use turmoil::net::{TcpListener, TcpStream};

/// What a machine keeps for a program that does not read, in bytes.
const BUFFER: usize = 1 << 20;

/// One machine's way into the network.
#[derive(Debug, Clone, Default)]
pub struct Nic(Arc<Mutex<Sockets>>);

#[derive(Debug, Default)]
struct Sockets {
    listening: BTreeMap<u16, mpsc::UnboundedSender<Accepted>>,
    dialled: Option<mpsc::UnboundedSender<Dialled>>,
}

/// A dial of a program.
#[derive(Debug)]
struct Dialled {
    host: &'static str,
    port: u16,
    answer: oneshot::Sender<io::Result<DuplexStream>>,
}

impl Nic {
    fn lock(&self) -> MutexGuard<'_, Sockets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the machine does in the simulated network while it is on.
    ///
    /// # Errors
    /// If a port is taken.
    pub async fn run(self, ports: &'static [u16]) -> turmoil::Result {
        for port in ports {
            let listener = TcpListener::bind(("0.0.0.0", *port)).await?;
            tokio::spawn(self.clone().accept(*port, listener));
        }
        let (dial, mut dials) = mpsc::unbounded_channel();
        self.lock().dialled = Some(dial);
        while let Some(dialled) = dials.recv().await {
            tokio::spawn(connect(dialled));
        }
        Ok(())
    }

    async fn accept(self, port: u16, listener: TcpListener) {
        while let Ok((mut network, peer)) = listener.accept().await {
            let (theirs, mut ours) = duplex(BUFFER);
            let info = TcpConnectInfo { local_addr: network.local_addr().ok(), remote_addr: Some(peer) };
            let accepted = Accepted { pipe: theirs, info };
            let handed = self.lock().listening.get(&port).map(|program| program.send(accepted));
            // Nobody listens: the connection ends at once.
            if let Some(Ok(())) = handed {
                tokio::spawn(async move { copy_bidirectional(&mut network, &mut ours).await });
            }
        }
    }

    /// Connections to a port of the machine, as they come, for the program that asked last.
    pub fn listen(&self, port: u16) -> impl Stream<Item = io::Result<Accepted>> + Send + 'static {
        let (program, accepted) = mpsc::unbounded_channel();
        self.lock().listening.insert(port, program);
        stream::unfold(accepted, |mut accepted| async move {
            let next = accepted.recv().await?;
            Some((Ok(next), accepted))
        })
    }

    async fn dial(self, host: &'static str, port: u16) -> io::Result<DuplexStream> {
        let gone = || io::Error::from(io::ErrorKind::NetworkDown);
        let dial = self.lock().dialled.clone().ok_or_else(gone)?;
        let (answer, answered) = oneshot::channel();
        dial.send(Dialled { host, port, answer }).map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }
}

async fn connect(dialled: Dialled) {
    match TcpStream::connect((dialled.host, dialled.port)).await {
        Err(error) => drop(dialled.answer.send(Err(error))),
        Ok(mut network) => {
            let (theirs, mut ours) = duplex(BUFFER);
            if dialled.answer.send(Ok(theirs)).is_ok() {
                // However it ends, both sides see it.
                let _ = copy_bidirectional(&mut network, &mut ours).await;
            }
        }
    }
}

/// An accepted connection, as a program has it.
#[derive(Debug)]
pub struct Accepted {
    pipe: DuplexStream,
    info: TcpConnectInfo,
}

impl Connected for Accepted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.info.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

/// Dials a port of a simulated host.
#[derive(Debug, Clone)]
pub struct Dialler {
    endpoint: Endpoint,
    /// Through which machine; a client is its own.
    through: Option<Nic>,
    host: &'static str,
    port: u16,
}

impl Dialler {
    /// A client's: dials `host` at `port`, with what `endpoint` says of keepalive and time limits.
    #[must_use]
    pub fn new(endpoint: Endpoint, host: &'static str, port: u16) -> Self {
        Self { endpoint, through: None, host, port }
    }

    /// A program's, through its machine.
    #[must_use]
    pub fn through(nic: Nic, endpoint: Endpoint, host: &'static str, port: u16) -> Self {
        Self { endpoint, through: Some(nic), host, port }
    }
}

impl Connector for Dialler {
    fn open_channel(&self) -> PendingChannel<'_> {
        let (host, port) = (self.host, self.port);
        match self.through.clone() {
            None => {
                let connector = tower::service_fn(move |_: Uri| async move {
                    TcpStream::connect((host, port)).await.map(TokioIo::new)
                });
                Box::pin(async move { Ok(self.endpoint.connect_with_connector(connector).await?) })
            }
            Some(nic) => {
                let connector = tower::service_fn(move |_: Uri| {
                    let nic = nic.clone();
                    async move { nic.dial(host, port).await.map(TokioIo::new) }
                });
                Box::pin(async move { Ok(self.endpoint.connect_with_connector(connector).await?) })
            }
        }
    }
}
