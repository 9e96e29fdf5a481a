//! TLS for both sides of our gRPC: options, files, and the configurations made of them.
//!
//! In come file names; out goes a [`ServerTransport`] or [`ClientTransport`]. Plaintext is never a default:
//! it has to be asked for by name, and a command line that asks for neither is an error. Every file is read
//! and parsed here, so that a wrong one is named at start and not at the first connection.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::Args;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

/// Makes aws-lc-rs the process's rustls provider. May be called any number of times.
pub fn install_provider() {
    // An error means that one is installed; this workspace has no other.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Options for a TLS server.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "TLS")]
pub struct ServerTlsArgs {
    /// Certificate chain of this server, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of this server, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Admit only clients with a certificate signed by this CA, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,

    /// Serve without TLS: for tests and for networks that nobody else can reach
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_key", "tls_client_ca"])]
    pub plaintext: bool,
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

    /// Name that the server's certificate must carry, if it is not the host that is dialled
    #[arg(long, value_name = "NAME", requires = "tls_ca")]
    pub tls_server_name: Option<String>,

    /// Dial without TLS: for tests and for networks that nobody else can reach
    #[arg(long, conflicts_with_all = ["tls_ca", "tls_cert", "tls_key", "tls_server_name"])]
    pub plaintext: bool,
}

/// Why a TLS configuration cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Neither TLS nor plaintext was chosen.
    #[error("neither {tls} nor --plaintext is given: choose one")]
    NotChosen {
        /// The options that would choose TLS.
        tls: &'static str,
    },
    /// One of two options that belong together is missing.
    #[error("{given} needs {missing}")]
    Incomplete {
        /// The option that is there.
        given: &'static str,
        /// The option that is not.
        missing: &'static str,
    },
    /// A file cannot be read.
    #[error("cannot read {} ({option})", path.display())]
    Read {
        /// The option that names it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} ({option}) holds no usable PEM {what}", path.display())]
    Pem {
        /// The option that names it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The files are well-formed one by one but do not work together (say, a key of another certificate).
    #[error("TLS files do not work together ({files})")]
    Config {
        /// The options concerned.
        files: &'static str,
        /// What rustls or tonic said.
        #[source]
        source: tonic::transport::Error,
    },
}

/// How a server talks.
#[derive(Clone)]
pub enum ServerTransport {
    /// Without TLS.
    Plaintext,
    /// With TLS.
    Tls(Box<ServerTlsConfig>),
}

/// How a client talks.
#[derive(Clone)]
pub enum ClientTransport {
    /// Without TLS.
    Plaintext,
    /// With TLS.
    Tls(Box<ClientTlsConfig>),
}

impl ServerTlsArgs {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// If nothing was chosen, or a file is missing or wrong; the error names option and file.
    pub fn load(&self) -> Result<ServerTransport, TlsError> {
        let (cert, key) = match (self.plaintext, &self.tls_cert, &self.tls_key) {
            (true, ..) => return Ok(ServerTransport::Plaintext),
            (false, Some(cert), Some(key)) => (cert, key),
            (false, None, None) => {
                return Err(TlsError::NotChosen { tls: "--tls-cert and --tls-key" });
            }
            (false, Some(_), None) => return Err(incomplete("--tls-cert", "--tls-key")),
            (false, None, Some(_)) => return Err(incomplete("--tls-key", "--tls-cert")),
        };
        install_provider();
        let mut config = ServerTlsConfig::new().identity(identity(cert, key)?);
        if let Some(ca) = &self.tls_client_ca {
            config = config.client_ca_root(Certificate::from_pem(certificates("--tls-client-ca", ca)?));
        }
        // Only the finished configuration shows whether key and certificate belong together.
        tonic::transport::Server::builder()
            .tls_config(config.clone())
            .map_err(|source| TlsError::Config { files: "--tls-cert, --tls-key, --tls-client-ca", source })?;
        Ok(ServerTransport::Tls(Box::new(config)))
    }
}

impl ClientTlsArgs {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// If nothing was chosen, or a file is missing or wrong; the error names option and file.
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
            |source| TlsError::Config { files: "--tls-ca, --tls-cert, --tls-key, --tls-server-name", source },
        )?;
        Ok(ClientTransport::Tls(Box::new(config)))
    }
}

impl ClientTransport {
    /// The URI scheme that goes with it.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Plaintext => "http",
            Self::Tls(_) => "https",
        }
    }
}

// Keys must not reach a log by way of `{:?}`.
impl fmt::Debug for ServerTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Plaintext) { "Plaintext" } else { "Tls(..)" })
    }
}

impl fmt::Debug for ClientTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Plaintext) { "Plaintext" } else { "Tls(..)" })
    }
}

fn incomplete(given: &'static str, missing: &'static str) -> TlsError {
    TlsError::Incomplete { given, missing }
}

fn identity(cert: &Path, key: &Path) -> Result<Identity, TlsError> {
    let chain = certificates("--tls-cert", cert)?;
    let pem = read("--tls-key", key)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|source| TlsError::Pem {
        option: "--tls-key",
        path: key.to_owned(),
        what: "private key",
        source,
    })?;
    Ok(Identity::from_pem(chain, pem))
}

/// Reads a PEM file and makes sure that it holds at least one certificate and nothing broken.
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
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        tls: ServerTlsArgs,
    }

    fn write(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("write");
        path
    }

    #[test]
    fn plaintext_is_never_a_default_and_never_beside_tls() {
        let none = Cli::try_parse_from(["x"]).expect("parses").tls.load().expect_err("nothing chosen");
        assert!(none.to_string().contains("--plaintext"), "{none}");
        assert!(Cli::try_parse_from(["x", "--plaintext", "--tls-cert", "a", "--tls-key", "b"]).is_err());
        assert!(Cli::try_parse_from(["x", "--tls-cert", "a"]).is_err());
        let chosen = Cli::try_parse_from(["x", "--plaintext"]).expect("parses").tls.load();
        assert!(matches!(chosen, Ok(ServerTransport::Plaintext)));
    }

    #[test]
    fn a_wrong_file_is_named_with_its_option() {
        let dir = tempfile::tempdir().expect("dir");
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("certificate");
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("certificate");
        let cert = write(&dir, "cert.pem", &made.cert.pem());
        let key = write(&dir, "key.pem", &made.signing_key.serialize_pem());
        let foreign = write(&dir, "foreign.pem", &other.signing_key.serialize_pem());
        let junk = write(&dir, "junk.pem", "junk");
        let load = |cert: &Path, key: &Path, ca: Option<&Path>| {
            let args = ServerTlsArgs {
                tls_cert: Some(cert.into()),
                tls_key: Some(key.into()),
                tls_client_ca: ca.map(Into::into),
                plaintext: false,
            };
            args.load().map(drop).map_err(|error| error.to_string())
        };

        assert_eq!(load(&cert, &key, Some(&cert)), Ok(()));
        let missing = load(&dir.path().join("none.pem"), &key, None).expect_err("missing");
        assert!(missing.contains("none.pem") && missing.contains("--tls-cert"), "{missing}");
        assert!(load(&cert, &junk, None).expect_err("no key").contains("junk.pem"));
        assert!(load(&cert, &key, Some(&junk)).expect_err("no CA").contains("--tls-client-ca"));
        assert!(load(&cert, &foreign, None).is_err(), "a key of another certificate");
    }
}
