//! TLS of one listener: its own certificate, and which ones it admits. Both are read again when their files
//! change.
//!
//! Comes in: file names and the kind of client that the listener is for. Goes out: for each connection, a
//! stream and its [`Peer`](peer::Peer).
//!
//! Always holds: a client without a certificate of a given CA fails in the handshake. No session is resumed,
//! so that no connection outlives what proved it. Files that cannot be used change nothing, and are
//! complained about until they can.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::peer::{self, ClientKind, Who};
use super::renew::Expiry;
use super::{TlsError, certificates, key};

/// The files of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// Our certificate chain, PEM.
    pub cert: PathBuf,
    /// The private key of that certificate, PEM.
    pub key: PathBuf,
    /// The CA that signs agents' certificates, PEM.
    pub agent_ca: PathBuf,
    /// The CA that signs operators' certificates, PEM.
    pub operator_ca: PathBuf,
}

/// TLS of one listener. Cheap to clone.
#[derive(Clone)]
pub struct ServerTls {
    kind: ClientKind,
    files: Arc<ServerFiles>,
    current: Arc<Mutex<Arc<Loaded>>>,
}

/// What was made of the files when they were last read.
struct Loaded {
    read: Read,
    config: Arc<ServerConfig>,
    own: Arc<dyn ClientCertVerifier>,
    until: Option<SystemTime>,
}

/// The content of the files.
#[derive(PartialEq)]
struct Read {
    cert: Vec<u8>,
    key: super::Hidden,
    agent_ca: Vec<u8>,
    operator_ca: Vec<u8>,
}

impl ServerTls {
    /// Reads and checks the files, for the listener of one kind.
    ///
    /// # Errors
    /// Where a file is missing, wrong, or readable by others; the error names option and file.
    pub fn load(kind: ClientKind, files: ServerFiles) -> Result<Self, TlsError> {
        super::install_provider();
        let loaded = Loaded::make(kind, &files, Read::from(&files)?)?;
        Ok(Self { kind, files: Arc::new(files), current: Arc::new(Mutex::new(Arc::new(loaded))) })
    }

    /// Reads the files again; true if anything was new. Blocks for as long as the disk does.
    ///
    /// # Errors
    /// As [`ServerTls::load`]; what was read before stays then.
    pub fn refresh(&self) -> Result<bool, TlsError> {
        let read = Read::from(&self.files)?;
        if self.current().read == read {
            return Ok(false);
        }
        let loaded = Arc::new(Loaded::make(self.kind, &self.files, read)?);
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(true)
    }

    /// When our own certificate ends.
    #[must_use]
    pub fn until(&self) -> Option<SystemTime> {
        self.current().until
    }

    /// When the CAs of clients end.
    pub(super) fn cas(&self) -> Vec<Expiry> {
        let current = self.current();
        let files = [
            ("agent-ca", ClientKind::Node.ca_option(), &current.read.agent_ca),
            ("operator-ca", ClientKind::Operator.ca_option(), &current.read.operator_ca),
        ];
        let ends =
            files.into_iter().filter_map(|(of, option, pem)| Expiry::of_cas(of, option, &super::parsed(pem)));
        ends.collect()
    }

    fn current(&self) -> Arc<Loaded> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does the handshake. Returns the stream, who is there, and until when that is proven.
    ///
    /// # Errors
    /// What went wrong, as rustls says it.
    pub(crate) async fn accept<S>(
        &self,
        stream: S,
    ) -> std::io::Result<(TlsStream<S>, Who, Option<SystemTime>)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let loaded = self.current();
        let stream = TlsAcceptor::from(Arc::clone(&loaded.config)).accept(stream).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let Some((end_entity, intermediates)) = chain.split_first() else {
            // The verifier makes certificates mandatory, so this cannot happen; if it does, the client is
            // nobody.
            return Ok((stream, Who::Refused("no certificate was shown".into()), None));
        };
        let ours = loaded.own.verify_client_cert(end_entity, intermediates, UnixTime::now()).is_ok();
        let who = peer::judge(self.kind, ours, end_entity);
        let until = [peer::until(chain), loaded.until].into_iter().flatten().min();
        Ok((stream, who, until))
    }
}

impl Read {
    fn from(files: &ServerFiles) -> Result<Self, TlsError> {
        Ok(Self {
            cert: certificates("--tls-cert", &files.cert)?,
            key: key(&files.key)?,
            agent_ca: certificates(ClientKind::Node.ca_option(), &files.agent_ca)?,
            operator_ca: certificates(ClientKind::Operator.ca_option(), &files.operator_ca)?,
        })
    }
}

impl Loaded {
    fn make(kind: ClientKind, files: &ServerFiles, read: Read) -> Result<Self, TlsError> {
        let [agents, operators] = [&read.agent_ca, &read.operator_ca].map(|pem| super::parsed(pem));
        if agents.iter().any(|ca| operators.contains(ca)) {
            return Err(TlsError::SameCa {
                agents: files.agent_ca.clone(),
                operators: files.operator_ca.clone(),
            });
        }
        let agents = verifier(ClientKind::Node, agents)?;
        let operators = verifier(ClientKind::Operator, operators)?;
        let (own, other) = match kind {
            ClientKind::Node => (agents, operators),
            ClientKind::Operator => (operators, agents),
        };
        let either = Arc::new(Either { own: Arc::clone(&own), other });
        let chain = super::parsed(&read.cert);
        let until = peer::until(&chain);
        let mut config = ServerConfig::builder()
            .with_client_cert_verifier(either)
            .with_single_cert(chain, read.key.parsed(&files.key)?)
            .map_err(|source| TlsError::Config { files: "--tls-cert, --tls-key", source })?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session shows no certificate, and would outlive it.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { read, config: Arc::new(config), own, until })
    }
}

fn verifier(
    kind: ClientKind,
    ca: Vec<CertificateDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let wrong = |source| TlsError::Config { files: kind.ca_option(), source };
    let mut roots = RootCertStore::empty();
    for certificate in ca {
        roots.add(certificate).map_err(wrong)?;
    }
    WebPkiClientVerifier::builder(Arc::new(roots))
        .build()
        .map_err(|error| wrong(rustls::Error::General(error.to_string())))
}

/// Lets both kinds through the handshake, so that a client at the wrong listener gets a readable refusal.
/// What it may do is decided afterwards, by this kind's own CA alone.
#[derive(Debug)]
struct Either {
    own: Arc<dyn ClientCertVerifier>,
    other: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for Either {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // None: a client with a single certificate shows that one.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.own
            .verify_client_cert(end_entity, intermediates, now)
            .or_else(|error| self.other.verify_client_cert(end_entity, intermediates, now).map_err(|_| error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.own.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.own.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.own.supported_verify_schemes()
    }
}

// Keys must not reach a log by way of `{:?}`.
impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(..)")
    }
}
