//! What proves that a server is the RDS: a CA's signature, or the fingerprint of one certificate.
//!
//! Comes in: a PEM file or a SHA-256 fingerprint. Goes out: a rustls configuration, and how long the RDS's
//! certificate is valid. A pinned certificate needs no signature, no matching name and no valid dates: it is
//! the known one. But the handshake's signature is verified all the same, for a certificate is public, and
//! only its private key proves who is there.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use cleat_runtime::tls::renew::Expiry;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};

/// The SHA-256 of a certificate in DER.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// The error for a text that is no fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fingerprint {0:?} is not 64 hexadecimal digits (colons allowed)")]
pub struct NotAFingerprint(String);

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        let wrong = || NotAFingerprint(text.to_owned());
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl Fingerprint {
    /// The fingerprint of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate.as_ref()).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What proves that a server is the RDS.
#[derive(Clone, Debug)]
pub enum Trust {
    /// A certificate for the name that is connected to, from a CA in this PEM file.
    Ca(PathBuf),
    /// The private key of this certificate.
    Pinned(Fingerprint),
    /// Nothing, and no encryption: for tests on the loopback.
    Plaintext,
}

/// Why no TLS configuration can be made.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The CA file cannot be read or has no certificate.
    #[error("cannot use CA file {}", path.display())]
    File {
        /// The file of `--rds-ca`.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A certificate in the CA file cannot be a root, or rustls does not accept the configuration.
    #[error("cannot set up TLS to the RDS")]
    Config(#[from] rustls::Error),
    /// The CA file is empty.
    #[error("CA file {} holds no certificate", path.display())]
    Empty {
        /// The file of `--rds-ca`.
        path: PathBuf,
    },
}

impl Trust {
    /// The CAs in the file; none where there is no file.
    pub(super) fn read(&self) -> Result<Vec<CertificateDer<'static>>, TrustError> {
        let Self::Ca(path) = self else { return Ok(Vec::new()) };
        let unusable = |source| TrustError::File { path: path.to_owned(), source };
        let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(unusable)?.collect();
        let cas = read.map_err(unusable)?;
        if cas.is_empty() { Err(TrustError::Empty { path: path.to_owned() }) } else { Ok(cas) }
    }

    /// The TLS configuration with these CAs; `None` for plaintext. It notes in `shown` which certificates it
    /// accepts.
    pub(super) fn tls_config(
        &self,
        cas: &[CertificateDer<'static>],
        shown: &Arc<Shown>,
    ) -> Result<Option<ClientConfig>, TrustError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let mut config = match self {
            Self::Plaintext => return Ok(None),
            Self::Ca(_) => {
                let of_ca = verifier(cas, provider)?;
                let verifier = Noting { of_ca, shown: Arc::clone(shown) };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
            Self::Pinned(fingerprint) => {
                let verifier = PinnedVerifier { fingerprint: *fingerprint, provider };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
        }
        .with_no_client_auth();
        // A resumed session shows no certificate, and would outlive it.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(config))
    }
}

fn verifier(
    cas: &[CertificateDer<'static>],
    provider: Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TrustError> {
    let mut roots = RootCertStore::empty();
    for certificate in cas {
        roots.add(certificate.clone())?;
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| TrustError::Config(rustls::Error::General(error.to_string())))
}

/// How long the certificate is valid that the RDS showed last and that a CA's signature proved. A pinned one
/// needs no valid dates.
#[derive(Debug, Default)]
pub(super) struct Shown(Mutex<Option<SystemTime>>);

impl Shown {
    pub(super) fn until(&self) -> Option<SystemTime> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Verifies a CA's signature, and notes the certificate that it accepted.
#[derive(Debug)]
struct Noting {
    of_ca: Arc<WebPkiServerVerifier>,
    shown: Arc<Shown>,
}

impl ServerCertVerifier for Noting {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.of_ca.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        // Only the RDS's own: the verified way to the CA need not use the other certificates of the chain.
        let until = Expiry::of_chain("rds", "", std::slice::from_ref(end_entity));
        *self.shown.0.lock().unwrap_or_else(PoisonError::into_inner) = until.map(|expiry| expiry.at);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.of_ca.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.of_ca.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.of_ca.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct PinnedVerifier {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = Fingerprint::of(end_entity);
        if found == self.fingerprint {
            return Ok(ServerCertVerified::assertion());
        }
        tracing::warn!(expected = %self.fingerprint, %found, "the RDS's certificate is not the pinned one");
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_with_and_without_colons() {
        let made = rcgen::generate_simple_self_signed(["rds".to_owned()]).unwrap();
        let fingerprint = Fingerprint::of(made.cert.der());
        let plain = fingerprint.to_string();
        let pairs: Vec<&str> = (0..32).map(|i| &plain[2 * i..2 * i + 2]).collect();
        assert_eq!(pairs.join(":").to_uppercase().parse::<Fingerprint>().unwrap(), fingerprint);
        assert_eq!(plain.parse::<Fingerprint>().unwrap(), fingerprint);
        assert!(plain[1..].parse::<Fingerprint>().is_err());
        assert!("é".repeat(32).parse::<Fingerprint>().is_err());
    }

    #[test]
    fn a_ca_file_without_a_certificate_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        for text in [None, Some("junk")] {
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
            }
            let error = Trust::Ca(path.clone()).read().expect_err("unusable").to_string();
            assert!(error.contains("ca.pem"), "{error}");
        }
    }
}
