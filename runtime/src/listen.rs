//! A TCP listener that strangers cannot exhaust: handshakes that end, and limits on everything that is held
//! open.
//!
//! Comes in: an address, a transport and [`Limits`]. Goes out: a stream of [`Connection`]s whose handshake is
//! over.
//!
//! Always holds: a client that has shown no certificate occupies a place for [`Limits::patience`] at most, or, where its calls
//! have to prove who it is, for [`Limits::admission`].
//! One address never takes all places. Running out of descriptors makes the loop pause, not spin. A
//! connection ends with the first certificate that proved it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::hush::Hush;
use crate::metrics::CONNECTIONS_REFUSED;
use crate::tls::{Peer, ServerTransport, Who};

/// How long an accept loop pauses when the process or the machine has run out of something.
pub(crate) const PAUSE: Duration = Duration::from_millis(200);
/// How often the wall clock is compared with the end of a certificate: somebody may set the clock.
const CLOCK: Duration = Duration::from_secs(30);
/// How long a service has to end a connection by itself, with a reason, once a certificate of it has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Connections whose handshake is over and that wait to be served.
const SHAKEN: usize = 16;

/// What one listener holds open at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all, from whatever address.
    pub connections: usize,
    /// Connections of one address (of one /64, where that is IPv6).
    pub per_address: usize,
    /// Connections in all whose handshake is not over.
    pub unproven: usize,
    /// The same for one address.
    pub unproven_per_address: usize,
    /// How long the handshake may take, and after it the first byte.
    pub patience: Duration,
    /// How long a client that shows no certificate has until one of its calls is admitted, where calls may prove who it is. The
    /// API server may be asked meanwhile.
    pub admission: Duration,
}

impl Limits {
    /// Limits that fit this process's descriptors: a listener takes an eighth of them, so that the store, the
    /// RDS, the CSI socket and the other listeners always find some.
    #[must_use]
    pub fn of_process() -> Self {
        let descriptors = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
            .map_or(1024, |(soft, _)| soft);
        Self::of(usize::try_from(descriptors).unwrap_or(usize::MAX))
    }

    fn of(descriptors: usize) -> Self {
        let connections = (descriptors / 8).clamp(8, 4096);
        let per_address = (connections / 2).clamp(4, 256);
        Self {
            connections,
            per_address,
            unproven: connections / 2,
            unproven_per_address: (per_address / 2).min(32),
            patience: Duration::from_secs(5),
            admission: Duration::from_secs(20),
        }
    }
}

/// A bound listener; connections queue in the kernel until it serves.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    address: SocketAddr,
    transport: ServerTransport,
    limits: Limits,
    name: &'static str,
}

impl Listener {
    /// Binds the address; `name` appears in logs and metrics.
    ///
    /// # Errors
    /// What the operating system said.
    pub async fn bind(
        name: &'static str,
        address: SocketAddr,
        transport: ServerTransport,
        limits: Limits,
    ) -> io::Result<Self> {
        let tcp = TcpListener::bind(address).await?;
        Ok(Self { address: tcp.local_addr()?, tcp, transport, limits, name })
    }

    /// The address, with the port that the kernel chose if that was left open.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`, on a task of its own.
    pub fn incoming(self, stop: CancellationToken) -> Incoming {
        let (shaken, connections) = mpsc::channel(SHAKEN);
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.accept(shaken) => {}
            }
        });
        Incoming(connections)
    }

    async fn accept(self, shaken: mpsc::Sender<Connection>) {
        let places = Places::new(self.limits);
        let hush = Arc::new(Hush::default());
        loop {
            let (stream, address) = match self.tcp.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    refused(self.name, "accept");
                    hush.warn(|skipped| {
                        tracing::warn!(listener = self.name, %error, skipped, "cannot accept a connection");
                    });
                    pause_after(&error).await;
                    continue;
                }
            };
            let secret = !matches!(self.transport, ServerTransport::Plaintext);
            let place = match places.take(address.ip(), secret) {
                Ok(place) => place,
                Err(limit) => {
                    refused(self.name, limit.word());
                    hush.warn(|skipped| {
                        tracing::warn!(
                            listener = self.name, %address, skipped, limits = ?self.limits,
                            "connection closed: {}", limit.words()
                        );
                    });
                    continue;
                }
            };
            let (transport, shaken, hush) = (self.transport.clone(), shaken.clone(), Arc::clone(&hush));
            let (name, limits) = (self.name, self.limits);
            tokio::spawn(async move {
                match shake(stream, address, &transport, place, limits).await {
                    // The send fails only where nobody serves any more.
                    Ok(connection) => drop(shaken.send(connection).await),
                    Err(error) => {
                        refused(name, "handshake");
                        hush.warn(|skipped| {
                            tracing::warn!(listener = name, %address, %error, skipped, "no TLS handshake");
                        });
                    }
                }
            });
        }
    }
}

async fn shake(
    stream: TcpStream,
    address: SocketAddr,
    transport: &ServerTransport,
    mut place: Place,
    limits: Limits,
) -> io::Result<Connection> {
    let patience = limits.patience;
    stream.set_nodelay(true)?;
    let late = || {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!("not done within {}", humantime::format_duration(patience)),
        )
    };
    let (io, who, until) = match transport {
        ServerTransport::Plaintext => (Io::Plain(stream), Who::Anybody, None),
        ServerTransport::Tls(tls) => {
            let (stream, who, until) =
                tokio::time::timeout(patience, tls.accept(stream)).await.map_err(|_| late())??;
            (Io::Tls(Box::new(stream)), who, until)
        }
        ServerTransport::Issued(tls) => {
            let (stream, who, until) =
                tokio::time::timeout(patience, tls.accept(stream)).await.map_err(|_| late())??;
            (Io::Tls(Box::new(stream)), who, until)
        }
    };
    let stranger = (who == Who::Unproven).then(|| Box::pin(sleep(limits.admission)));
    if stranger.is_none() {
        place.proven();
    }
    let peer = Peer { address, who, until, admitted: Arc::default() };
    let first = Some(Box::pin(sleep(patience)));
    let until = until.map(|until| until + LAST_WORDS);
    let ends = until.map(|until| Box::pin(sleep(next_look(until))));
    Ok(Connection { io, peer, first, stranger, ends, until, place })
}

fn refused(listener: &'static str, why: &'static str) {
    metrics::counter!(CONNECTIONS_REFUSED.name, "listener" => listener, "why" => why).increment(1);
}

/// Pauses, unless the error is about one connection alone.
pub(crate) async fn pause_after(error: &io::Error) {
    if is_shortage(error) {
        sleep(PAUSE).await;
    }
}

/// Whether the next try would fail at once too: no descriptors, no memory.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// Connections in order of arrival, for tonic.
#[derive(Debug)]
pub struct Incoming(mpsc::Receiver<Connection>);

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|next| next.map(Ok))
    }
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection whose other end is known, as far as it can be.
#[derive(Debug)]
pub struct Connection {
    io: Io,
    peer: Peer,
    /// Runs until the first byte has come: a client that is admitted and sends nothing holds nothing.
    first: Option<Pin<Box<Sleep>>>,
    /// Runs until a call was admitted, where the handshake proves nothing.
    stranger: Option<Pin<Box<Sleep>>>,
    ends: Option<Pin<Box<Sleep>>>,
    until: Option<SystemTime>,
    place: Place,
}

/// How long until the clock has to be read again.
fn next_look(until: SystemTime) -> Duration {
    until.duration_since(SystemTime::now()).unwrap_or_default().min(CLOCK)
}

impl Connection {
    fn over(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let over = |what: &str| Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, what.to_owned()));
        if let Some(first) = &mut self.first
            && first.as_mut().poll(cx).is_ready()
        {
            return over("nothing was said after the handshake");
        }
        if let Some(stranger) = &mut self.stranger {
            if self.peer.admitted.load(Ordering::Relaxed) {
                self.stranger = None;
                self.place.proven();
            } else if stranger.as_mut().poll(cx).is_ready() {
                return over("no call of this client was admitted");
            }
        }
        if let (Some(ends), Some(until)) = (&mut self.ends, self.until) {
            while ends.as_mut().poll(cx).is_ready() {
                if until <= SystemTime::now() {
                    return over("a certificate of this connection has expired");
                }
                ends.as_mut().reset(Instant::now() + next_look(until));
            }
        }
        Poll::Pending
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.over(cx) {
            return Poll::Ready(Err(error));
        }
        let result = ready!(match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buffer),
            Io::Tls(io) => Pin::new(io.as_mut()).poll_read(cx, buffer),
        });
        self.first = None;
        Poll::Ready(result)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, bytes),
            Io::Tls(io) => Pin::new(io.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io.as_mut()).poll_shutdown(cx),
        }
    }
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Connections,
    PerAddress,
    Unproven,
    UnprovenPerAddress,
}

impl Limit {
    fn word(self) -> &'static str {
        match self {
            Self::Connections => "all",
            Self::PerAddress => "address",
            Self::Unproven => "unproven",
            Self::UnprovenPerAddress => "address-unproven",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Connections => {
                "as many are open as this listener holds; raise the process's limit of descriptors"
            }
            Self::PerAddress => {
                "as many are open from this address as one may have; see what connects from there"
            }
            Self::Unproven => {
                "too many are open that have not shaken hands; see who connects, and keep strangers off"
            }
            Self::UnprovenPerAddress => {
                "too many are open from this address that have not shaken hands; see what connects from there"
            }
        }
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    open: usize,
    unproven: usize,
}

#[derive(Debug, Default)]
struct Table {
    all: Count,
    addresses: HashMap<IpAddr, Count>,
}

/// The places of a listener, as connections take them.
#[derive(Clone, Debug)]
struct Places {
    limits: Limits,
    table: Arc<Mutex<Table>>,
}

/// One connection's place; dropping it gives it back.
#[derive(Debug)]
struct Place {
    places: Places,
    address: IpAddr,
    unproven: bool,
}

impl Places {
    fn new(limits: Limits) -> Self {
        Self { limits, table: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // The table is consistent after every operation on it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, address: IpAddr, unproven: bool) -> Result<Place, Limit> {
        let address = network(address);
        let mut table = self.lock();
        let (all, own) = (table.all, table.addresses.get(&address).copied().unwrap_or_default());
        for (reached, limit) in [
            (unproven && own.unproven >= self.limits.unproven_per_address, Limit::UnprovenPerAddress),
            (own.open >= self.limits.per_address, Limit::PerAddress),
            (unproven && all.unproven >= self.limits.unproven, Limit::Unproven),
            (all.open >= self.limits.connections, Limit::Connections),
        ] {
            if reached {
                return Err(limit);
            }
        }
        table.change(address, |count| {
            count.open += 1;
            count.unproven += usize::from(unproven);
        });
        Ok(Place { places: self.clone(), address, unproven })
    }
}

impl Table {
    fn change(&mut self, address: IpAddr, change: impl Fn(&mut Count)) {
        change(&mut self.all);
        let own = self.addresses.entry(address).or_default();
        change(own);
        if own.open == 0 {
            self.addresses.remove(&address);
        }
    }
}

impl Place {
    fn proven(&mut self) {
        if std::mem::take(&mut self.unproven) {
            self.places.lock().change(self.address, |count| count.unproven -= 1);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let unproven = usize::from(self.unproven);
        self.places.lock().change(self.address, |count| {
            count.open -= 1;
            count.unproven -= unproven;
        });
    }
}

/// What counts as one address: whoever has one IPv6 address has the whole /64.
#[must_use]
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() >> 64 << 64)),
        four => four,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { connections: 6, per_address: 3, unproven: 4, unproven_per_address: 2, ..Limits::of(1024) }
    }

    #[test]
    fn no_address_takes_all_places_and_places_come_back() {
        let places = Places::new(limits());
        let [one, two, three] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        let mut held = vec![places.take(one, true).unwrap(), places.take(one, true).unwrap()];
        assert_eq!(places.take(one, true).err(), Some(Limit::UnprovenPerAddress));
        held.iter_mut().for_each(Place::proven);
        held.push(places.take(one, true).unwrap());
        assert_eq!(places.take(one, true).err(), Some(Limit::PerAddress));
        held.extend([places.take(two, true).unwrap(), places.take(two, true).unwrap()]);
        held.push(places.take(three, true).unwrap());
        assert_eq!(places.take(three, true).err(), Some(Limit::Unproven));
        held.iter_mut().for_each(Place::proven);
        assert_eq!(places.take(three, true).err(), Some(Limit::Connections));
        drop(held);
        let table = places.lock();
        assert_eq!((table.all.open, table.all.unproven, table.addresses.len()), (0, 0, 0));
    }

    #[test]
    fn an_ipv6_network_counts_as_one_address() {
        let places = Places::new(limits());
        let address = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]);
        let _held = [places.take(address(1), true).unwrap(), places.take(address(2), true).unwrap()];
        assert_eq!(places.take(address(3), true).err(), Some(Limit::UnprovenPerAddress));
        assert!(places.take(IpAddr::from([0x2001, 0xdb8, 0, 2, 0, 0, 0, 1]), true).is_ok());
    }

    #[tokio::test]
    async fn a_client_of_which_nothing_is_proven_is_cut_unless_a_call_is_admitted() {
        use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        use tokio_stream::StreamExt as _;

        use crate::tls::IssuedTls;

        let key = rcgen::KeyPair::generate().unwrap();
        let made = rcgen::CertificateParams::new(vec!["cleat.test".to_owned()]).unwrap();
        let made = made.self_signed(&key).unwrap();
        let tls = IssuedTls::default();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        tls.serve(vec![made.der().clone()], key, &[]).unwrap();
        let limits = Limits { admission: Duration::from_millis(300), ..limits() };
        let loopback = ([127, 0, 0, 1], 0).into();
        let listener = Listener::bind("test", loopback, ServerTransport::Issued(tls.clone()), limits);
        let listener = listener.await.unwrap();
        let address = listener.address();
        let mut incoming = listener.incoming(CancellationToken::new());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.der().clone()).unwrap();
        let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let connect = async || {
            let name = ServerName::try_from("cleat.test").unwrap();
            let stream = TcpStream::connect(address).await.unwrap();
            let mut stream = connector.connect(name, stream).await?;
            stream.write_all(b"x").await?;
            io::Result::Ok(stream)
        };
        let _clients = [connect().await.unwrap(), connect().await.unwrap()];
        let mut stranger = incoming.next().await.unwrap().unwrap();
        let mut known = incoming.next().await.unwrap().unwrap();
        known.connect_info().admitted.store(true, Ordering::Relaxed);
        let mut byte = [0];
        for connection in [&mut stranger, &mut known] {
            connection.read_exact(&mut byte).await.unwrap();
        }
        let cut = stranger.read_exact(&mut byte).await.unwrap_err();
        assert!(cut.to_string().contains("admitted"), "{cut}");
        let waits = tokio::time::timeout(Duration::from_millis(600), known.read_exact(&mut byte)).await;
        assert!(waits.is_err(), "it stays: {waits:?}");
        tls.withdraw();
        assert!(connect().await.is_err(), "nothing is served without a certificate");
    }

    #[test]
    fn the_limits_leave_descriptors_for_everything_else() {
        for descriptors in [100, 256, 1024, 1 << 20] {
            let limits = Limits::of(descriptors);
            assert!(limits.connections * 2 <= descriptors / 2, "{limits:?} of {descriptors}");
            assert!(limits.per_address < limits.connections && limits.unproven < limits.connections);
        }
    }
}
