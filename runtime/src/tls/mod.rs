//! TLS for both sides of our gRPC: options, files, and the configurations made of them.
//!
//! Comes in: file names. Goes out: a [`ServerTransport`] for each listener, or a [`ClientTransport`].
//! Plaintext is never a default: it has to be asked for by name, and a command line that asks for neither is
//! an error. Every file is read and parsed here, so that a wrong one is reported at start and not at the
//! first connection.

mod issued;
mod peer;
pub mod renew;
mod server;

use std::fmt;
use std::io::Read as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use zeroize::Zeroizing;

pub use issued::{IssueError, IssuedTls};
pub use peer::{ClientKind, Peer, Subject, Who};
pub use server::{ServerFiles, ServerTls};

/// Permissions that a private key's file may not have: anything for others, and writing for the group (which
/// may read, as where the kubelet gives a Secret to a group).
const TOO_OPEN: u32 = 0o027;

/// Makes aws-lc-rs the process's rustls provider. May be called any number of times.
pub fn install_provider() {
    // An error means that one is installed already; this workspace has no other.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Options for the two TLS listeners.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "TLS")]
pub struct ServerTlsArgs {
    /// Certificate chain of this server, PEM; read again when it changes, as all these files are
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of this server, PEM; only its owner may write it, and only owner and group may read it
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// CA of the agents' certificates, PEM: an agent is the node that its certificate names (cleat://node/NAME)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub agent_client_ca: Option<PathBuf>,

    /// CA of the operators' certificates, PEM, not the agents': an operator is who its certificate names
    /// (cleat://operator/NAME)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub operator_client_ca: Option<PathBuf>,

    /// Serve without TLS, for tests: any client can claim to be any node or operator. Only on
    /// loopback addresses
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_key", "agent_client_ca", "operator_client_ca"])]
    pub plaintext: bool,

    /// With --plaintext: on any address. Whoever reaches it can read, attach and destroy every volume
    #[arg(long, requires = "plaintext")]
    pub insecure_any_address: bool,
}

/// Options for a TLS client.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "TLS")]
pub struct ClientTlsArgs {
    /// CA that signed the server's certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,

    /// Certificate chain of this client, PEM
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    pub tls_cert: Option<PathBuf>,

    /// Private key of this client, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Name that the server's certificate must carry, if it is not the host of the address
    #[arg(long, value_name = "NAME")]
    pub tls_server_name: Option<String>,

    /// Connect without TLS: for tests, and for networks that nobody else can reach
    #[arg(long, conflicts_with_all = ["tls_ca", "tls_cert", "tls_key", "tls_server_name"])]
    pub plaintext: bool,
}

/// Why a TLS configuration cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Neither TLS nor plaintext was chosen.
    #[error(
        "cannot choose between TLS and plaintext: neither {tls} nor --plaintext is given; give one of the two"
    )]
    NotChosen {
        /// The options that would choose TLS.
        tls: &'static str,
    },
    /// One of two options that belong together is missing.
    #[error("cannot use {given} without {missing}; give both")]
    Incomplete {
        /// The option that was given.
        given: &'static str,
        /// The option that has to be given with it.
        missing: &'static str,
    },
    /// A file cannot be read.
    #[error("cannot read {} ({option})", path.display())]
    Read {
        /// The option that names the file.
        option: &'static str,
        /// The file that could not be read.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A file does not contain what it should.
    #[error("cannot use {} ({option}): it holds no usable PEM {what}", path.display())]
    Pem {
        /// The option that names the file.
        option: &'static str,
        /// The file with the wrong content.
        path: PathBuf,
        /// What it should contain, such as `certificate`.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// Each file is well-formed, but they do not work together (such as a key of another certificate).
    #[error("cannot use the TLS files together ({files})")]
    Config {
        /// The options that name the files.
        files: &'static str,
        /// What rustls found wrong.
        #[source]
        source: rustls::Error,
    },
    /// The same for a client.
    #[error("cannot use the TLS files together ({files})")]
    ClientConfig {
        /// The options that name the files.
        files: &'static str,
        /// What tonic found wrong.
        #[source]
        source: tonic::transport::Error,
    },
    /// Others than its owner can read or change a private key.
    #[error(
        "cannot use private key {} ({option}): it has mode {mode:04o}, so others may read or change it; do \
         chmod 600",
        path.display()
    )]
    Open {
        /// The option that names the file.
        option: &'static str,
        /// The file of the private key.
        path: PathBuf,
        /// The file's permission bits.
        mode: u32,
    },
    /// One CA could sign for both agents and operators, so nothing would tell them apart.
    #[error(
        "cannot use --agent-client-ca {} with --operator-client-ca {}: they share a certificate; give each its own CA, or \
         whoever issues agents' certificates could issue operators'",
        agents.display(), operators.display()
    )]
    SameCa {
        /// The file of `--agent-client-ca`.
        agents: PathBuf,
        /// The file of `--operator-client-ca`.
        operators: PathBuf,
    },
    /// A listener without TLS has an address that others can reach.
    #[error(
        "cannot use --plaintext with {option} {address}: without TLS whoever reaches it is every node and every operator; give \
         --tls-cert, --tls-key, --agent-client-ca and --operator-client-ca, a loopback address, or \
         --insecure-any-address"
    )]
    PlaintextBeyondLoopback {
        /// The option that names the address.
        option: &'static str,
        /// The address that the option gives.
        address: SocketAddr,
    },
}

/// How a server's listener protects its connections.
#[derive(Clone, Debug)]
pub enum ServerTransport {
    /// No TLS: any client can claim to be anybody. For tests.
    Plaintext,
    /// TLS in which every client shows a certificate.
    Tls(ServerTls),
    /// TLS with a certificate that is made in memory; the calls say who a client is.
    Issued(IssuedTls),
}

/// How a client protects its connections.
#[derive(Clone)]
pub enum ClientTransport {
    /// No TLS: for tests, and for networks that nobody else can reach.
    Plaintext,
    /// TLS that checks the server, and shows our certificate where there is one.
    Tls(Box<ClientTlsConfig>),
}

impl ServerTlsArgs {
    /// The first of these options that is given.
    #[must_use]
    pub fn given(&self) -> Option<&'static str> {
        let Self { tls_cert, tls_key, agent_client_ca, operator_client_ca, plaintext, insecure_any_address } =
            self;
        let all = [
            ("--plaintext", *plaintext),
            ("--insecure-any-address", *insecure_any_address),
            ("--tls-cert", tls_cert.is_some()),
            ("--tls-key", tls_key.is_some()),
            ("--agent-client-ca", agent_client_ca.is_some()),
            ("--operator-client-ca", operator_client_ca.is_some()),
        ];
        all.into_iter().find(|(_, given)| *given).map(|(option, _)| option)
    }

    /// Reads and checks the files, for the listener of one kind at `address`.
    ///
    /// # Errors
    /// Where nothing was chosen, where a file is missing or wrong, or where a listener without TLS could be
    /// reached by others; the error names option and file.
    pub fn load(&self, kind: ClientKind, address: SocketAddr) -> Result<ServerTransport, TlsError> {
        if self.plaintext {
            return if address.ip().is_loopback() || self.insecure_any_address {
                Ok(ServerTransport::Plaintext)
            } else {
                Err(TlsError::PlaintextBeyondLoopback { option: kind.listen_option(), address })
            };
        }
        let given = [
            ("--tls-cert", &self.tls_cert),
            ("--tls-key", &self.tls_key),
            ("--agent-client-ca", &self.agent_client_ca),
            ("--operator-client-ca", &self.operator_client_ca),
        ];
        let Some((first, _)) = given.iter().find(|(_, file)| file.is_some()) else {
            let tls = "--tls-cert, --tls-key, --agent-client-ca and --operator-client-ca";
            return Err(TlsError::NotChosen { tls });
        };
        let file = |at: usize| {
            let (missing, file) = given[at];
            file.clone().ok_or_else(|| incomplete(first, missing))
        };
        let files = ServerFiles { cert: file(0)?, key: file(1)?, agent_ca: file(2)?, operator_ca: file(3)? };
        Ok(ServerTransport::Tls(ServerTls::load(kind, files)?))
    }
}

impl ClientTlsArgs {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// Where nothing was chosen, or where a file is missing or wrong; the error names option and file.
    pub fn load(&self) -> Result<ClientTransport, TlsError> {
        let ca = match (self.plaintext, &self.tls_ca) {
            (true, _) => return Ok(ClientTransport::Plaintext),
            (false, Some(ca)) => ca,
            (false, None) => return Err(TlsError::NotChosen { tls: "--tls-ca" }),
        };
        install_provider();
        let ca = Certificate::from_pem(certificates("--tls-ca", ca)?);
        let mut config = ClientTlsConfig::new().ca_certificate(ca);
        match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => config = config.identity(identity(cert, key)?),
            (None, None) => {}
            (Some(_), None) => return Err(incomplete("--tls-cert", "--tls-key")),
            (None, Some(_)) => return Err(incomplete("--tls-key", "--tls-cert")),
        }
        if let Some(name) = &self.tls_server_name {
            config = config.domain_name(name);
        }
        tonic::transport::Endpoint::from_static("https://localhost").tls_config(config.clone()).map_err(
            |source| TlsError::ClientConfig {
                files: "--tls-ca, --tls-cert, --tls-key, --tls-server-name",
                source,
            },
        )?;
        Ok(ClientTransport::Tls(Box::new(config)))
    }
}

impl ClientTransport {
    /// TLS that trusts this CA alone, shows this certificate with its key where there is one, and expects this name where it
    /// is not the address's host. All in PEM.
    ///
    /// # Errors
    /// Where they make no configuration.
    pub fn of(
        ca: &str,
        own: Option<(&str, &str)>,
        server_name: Option<&str>,
    ) -> Result<Self, tonic::transport::Error> {
        install_provider();
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        if let Some((certificate, key)) = own {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        if let Some(name) = server_name {
            config = config.domain_name(name);
        }
        tonic::transport::Endpoint::from_static("https://localhost").tls_config(config.clone())?;
        Ok(Self::Tls(Box::new(config)))
    }
}

impl ServerTransport {
    /// Its TLS by files; `None` where there are none.
    #[must_use]
    pub fn tls(&self) -> Option<&ServerTls> {
        match self {
            Self::Plaintext | Self::Issued(_) => None,
            Self::Tls(tls) => Some(tls),
        }
    }
}

impl ClientTransport {
    /// The URI scheme: `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Plaintext => "http",
            Self::Tls(_) => "https",
        }
    }
}

// Keys must not reach a log by way of `{:?}`.
impl fmt::Debug for ClientTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Plaintext) { "Plaintext" } else { "Tls(..)" })
    }
}

fn incomplete(given: &'static str, missing: &'static str) -> TlsError {
    TlsError::Incomplete { given, missing }
}

fn identity(cert: &Path, key_file: &Path) -> Result<Identity, TlsError> {
    let chain = certificates("--tls-cert", cert)?;
    let hidden = key(key_file)?;
    hidden.parsed(key_file)?;
    Ok(Identity::from_pem(chain, &*hidden.0))
}

/// The content of a private key's file, which is never shown and is wiped from memory.
#[derive(PartialEq)]
struct Hidden(Zeroizing<Vec<u8>>);

impl Hidden {
    fn parsed(&self, path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(&self.0).map_err(|source| TlsError::Pem {
            option: "--tls-key",
            path: path.to_owned(),
            what: "private key",
            source,
        })
    }
}

/// Reads a private key's file, if nobody else can.
fn key(path: &Path) -> Result<Hidden, TlsError> {
    let option = "--tls-key";
    let failed = |source| TlsError::Read { option, path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    // From the open file: what is checked is what is read.
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & TOO_OPEN != 0 {
        return Err(TlsError::Open { option, path: path.to_owned(), mode });
    }
    let mut pem = Zeroizing::new(Vec::new());
    file.read_to_end(&mut pem).map_err(failed)?;
    Ok(Hidden(pem))
}

/// The certificates in a PEM text; `None` if one of them is broken.
#[must_use]
pub fn certificates_of(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().ok()
}

/// The certificates in a file that has been checked.
fn parsed(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect()
}

/// Reads a PEM file and checks that it has at least one certificate and nothing broken.
fn certificates(option: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let pem = read(option, path)?;
    let wrong = |source| TlsError::Pem { option, path: path.to_owned(), what: "certificate", source };
    CertificateDer::from_pem_slice(&pem).map_err(wrong)?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        certificate.map_err(wrong)?;
    }
    Ok(pem)
}

fn read(option: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { option, path: path.to_owned(), source })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "tests.rs"]
mod tests;
