//! The certificate: given, or made once and kept, so that clients can pin it.
//!
//! In: PEM files, or a directory to keep `cert.pem`, `key.pem` and `fingerprint` in. Out: a rustls configuration
//! (aws-lc-rs, HTTP/1.1 as RouterOS speaks it) and the SHA-256 fingerprint. What always holds: a certificate that
//! was made is never made again while its files are there; the key is readable by its owner alone.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

use crate::files::IoError;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The certificate could not be made.
    #[error("make a certificate")]
    Make(#[from] rcgen::Error),
    /// A PEM text has not what it should.
    #[error("certificate or key is no PEM")]
    Pem(#[from] pem::Error),
    /// No certificate in the PEM text.
    #[error("the certificate file has no certificate")]
    Empty,
    /// Certificate and key do not make a server.
    #[error("certificate and key")]
    Config(#[from] rustls::Error),
}

/// A server's certificate and key.
#[derive(Clone)]
pub struct Identity {
    certificate_pem: String,
    key_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

impl Identity {
    /// A new self-signed certificate for these names and addresses.
    pub fn make(names: Vec<String>) -> Result<Self, TlsError> {
        let key = rcgen::KeyPair::generate()?;
        let mut parameters = rcgen::CertificateParams::new(names)?;
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "rds-sim");
        let certificate = parameters.self_signed(&key)?;
        Ok(Self { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// The certificate and key in these PEM files.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        Ok(Self { certificate_pem: read(certificate)?, key_pem: read(key)? })
    }

    /// The certificate kept in this directory; made for these names if there is none yet. Writes the fingerprint
    /// beside it.
    pub fn keep(directory: &Path, names: Vec<String>) -> Result<Self, TlsError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| IoError { action, path, source }
        };
        fs::create_dir_all(directory).map_err(io("create", directory))?;
        let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
        let identity = if certificate.exists() && key.exists() {
            Self::load(&certificate, &key)?
        } else {
            let identity = Self::make(names)?;
            // The certificate comes last: with it there, the pair is whole.
            write(&key, &identity.key_pem, 0o600).map_err(io("write", &key))?;
            write(&certificate, &identity.certificate_pem, 0o644).map_err(io("write", &certificate))?;
            identity
        };
        let fingerprint = directory.join("fingerprint");
        write(&fingerprint, &format!("{}\n", identity.fingerprint()?), 0o644)
            .map_err(io("write", &fingerprint))?;
        Ok(identity)
    }

    /// The certificate in PEM, for clients to pin or to trust.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// SHA-256 of the certificate (DER), in lower-case hex.
    pub fn fingerprint(&self) -> Result<String, TlsError> {
        let chain = self.chain()?;
        let certificate = chain.first().ok_or(TlsError::Empty)?;
        let digest = Sha256::digest(certificate);
        Ok(digest.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
            text
        }))
    }

    /// A server's configuration.
    pub fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())?;
        // The provider is named here, so that a test process with another default is not disturbed.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(self.chain()?, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(self.certificate_pem.as_bytes()).collect::<Result<_, _>>()?;
        if chain.is_empty() { Err(TlsError::Empty) } else { Ok(chain) }
    }
}

fn read(path: &Path) -> Result<String, TlsError> {
    Ok(fs::read_to_string(path).map_err(|source| IoError {
        action: "read",
        path: path.to_owned(),
        source,
    })?)
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_certificate_is_made_once_and_kept_with_its_fingerprint() {
        let directory = tempfile::tempdir().unwrap();
        let made = Identity::keep(directory.path(), vec!["127.0.0.1".into(), "rds".into()]).unwrap();
        let kept = Identity::keep(directory.path(), vec!["other".into()]).unwrap();
        assert_eq!(made.certificate_pem(), kept.certificate_pem());
        let fingerprint = fs::read_to_string(directory.path().join("fingerprint")).unwrap();
        assert_eq!(fingerprint.trim(), kept.fingerprint().unwrap());
        assert_eq!(fingerprint.trim().len(), 64);
        let key = fs::metadata(directory.path().join("key.pem")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        kept.server_config().unwrap();
    }
}
