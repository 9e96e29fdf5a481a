//! The CA's certificates, and what is signed by them.
//!
//! In come PEM texts and times; out go CAs, and certificates that a server shows. What holds: a text that is no CA with its
//! own key is refused with what is wrong with it; nothing that is signed outlives its CA.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData as _,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How far the clocks of two machines may be apart.
const CLOCKS: Duration = Duration::from_secs(300);

/// Why a text is no CA, or nothing can be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not what it should be.
    #[error("{key}: {problem}")]
    Content {
        /// Under which key of the Secret.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The library could not do it.
    #[error("cannot make a certificate: {0}")]
    Make(String),
}

/// A certificate of a CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CaCertificate {
    pub(super) pem: String,
    pub(super) der: CertificateDer<'static>,
    pub(super) until: SystemTime,
}

/// A CA that can sign.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Ca {
    pub(super) certificate: CaCertificate,
    pub(super) key: String,
}

/// What a server shows, and until when it may.
pub struct ServingCertificate {
    /// Its certificate.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of it.
    pub key: PrivateKeyDer<'static>,
    /// When it ends.
    pub until: SystemTime,
}

fn made<T>(result: Result<T, rcgen::Error>) -> Result<T, CertificateError> {
    result.map_err(|error| CertificateError::Make(error.to_string()))
}

impl CaCertificate {
    pub(super) fn parse(key: &'static str, pem: &str) -> Result<Self, CertificateError> {
        let wrong = |problem: &str| CertificateError::Content { key, problem: problem.to_owned() };
        let mut all = CertificateDer::pem_slice_iter(pem.as_bytes());
        let (Some(Ok(der)), None) = (all.next(), all.next()) else {
            return Err(wrong("this is not one certificate in PEM"));
        };
        let Ok((_, parsed)) = X509Certificate::from_der(&der) else {
            return Err(wrong("this certificate cannot be read"));
        };
        if !parsed.is_ca() {
            return Err(wrong("this is no certificate of a CA"));
        }
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let until = UNIX_EPOCH + Duration::from_secs(seconds);
        Ok(Self { pem: pem.to_owned(), der: der.clone(), until })
    }

    pub(super) fn ended(&self, now: SystemTime) -> bool {
        self.until <= now
    }
}

impl Ca {
    /// Makes one.
    pub(super) fn make(now: SystemTime, lifetime: Duration) -> Result<Self, CertificateError> {
        let key = made(KeyPair::generate())?;
        let mut params = CertificateParams::default();
        let since = humantime::format_rfc3339_seconds(now).to_string();
        params.distinguished_name = name(&format!("cleat {since}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - CLOCKS).into();
        params.not_after = (now + lifetime).into();
        let pem = made(params.self_signed(&key))?.pem();
        Ok(Self { certificate: CaCertificate::parse("ca.crt", &pem)?, key: key.serialize_pem() })
    }

    pub(super) fn parse(
        [certificate_key, key_key]: [&'static str; 2],
        certificate: &str,
        key: &str,
    ) -> Result<Self, CertificateError> {
        let certificate = CaCertificate::parse(certificate_key, certificate)?;
        let wrong = |problem: &str| CertificateError::Content { key: key_key, problem: problem.to_owned() };
        let pair = KeyPair::from_pem(key).map_err(|_| wrong("this is no private key in PEM"))?;
        let Ok((_, parsed)) = X509Certificate::from_der(&certificate.der) else {
            return Err(wrong("its certificate cannot be read"));
        };
        if parsed.public_key().raw != pair.subject_public_key_info() {
            return Err(wrong("this is the key of another certificate"));
        }
        Ok(Self { certificate, key: key.to_owned() })
    }

    /// Signs a certificate for a server of these names.
    pub(super) fn issue(
        &self,
        names: &[String],
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<ServingCertificate, CertificateError> {
        let signer = made(KeyPair::from_pem(&self.key))?;
        let issuer = made(Issuer::from_ca_cert_der(&self.certificate.der, signer))?;
        let key = made(KeyPair::generate())?;
        let mut params = made(CertificateParams::new(names))?;
        params.distinguished_name = name("cleat-controller");
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let until = (now + lifetime).min(self.certificate.until);
        params.not_before = (now - CLOCKS).into();
        params.not_after = until.into();
        let signed = made(params.signed_by(&key, &issuer))?;
        Ok(ServingCertificate {
            chain: vec![signed.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            until,
        })
    }
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// Whether such a name can stand in a certificate.
///
/// # Errors
/// What the library says of it.
pub fn check_name(name: &str) -> Result<(), CertificateError> {
    if name.is_empty() || name.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
        return Err(CertificateError::Make("a name has letters, and no blanks".into()));
    }
    made(CertificateParams::new([name.to_owned()])).map(drop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn what_is_signed_ends_no_later_than_its_ca() {
        let now = SystemTime::now();
        let ca = Ca::make(now, DAY * 2).unwrap();
        let names = ["cleat.test".to_owned(), "10.0.0.1".to_owned()];
        assert!(ca.issue(&names, now, DAY).unwrap().until <= now + DAY);
        let last = ca.issue(&names, now + DAY + DAY / 2, DAY).unwrap();
        assert_eq!(last.until, ca.certificate.until);
        let (_, parsed) = X509Certificate::from_der(&last.chain[0]).unwrap();
        let (_, by) = X509Certificate::from_der(&ca.certificate.der).unwrap();
        assert!(parsed.validity().not_after <= by.validity().not_after);
        parsed.verify_signature(Some(by.public_key())).unwrap();
    }

    #[test]
    fn a_text_that_is_no_ca_with_its_key_is_refused_by_its_name() {
        let now = SystemTime::now();
        let (ca, other) = (Ca::make(now, DAY).unwrap(), Ca::make(now, DAY).unwrap());
        let names = ["ca.crt", "ca.key"];
        let parse = |certificate: &str, key: &str| Ca::parse(names, certificate, key).map(drop);
        parse(&ca.certificate.pem, &ca.key).unwrap();
        let leaf = ca.issue(&["a.test".into()], now, DAY).unwrap();
        let leaf = pem("CERTIFICATE", &leaf.chain[0]);
        let twice = format!("{}{}", ca.certificate.pem, other.certificate.pem);
        for (certificate, key, of) in [
            ("junk", &*ca.key, "ca.crt"),
            (&twice, &ca.key, "ca.crt"),
            (&leaf, &ca.key, "ca.crt: this is no certificate of a CA"),
            (&ca.certificate.pem, "junk", "ca.key"),
            (&ca.certificate.pem, &other.key, "ca.key: this is the key of another"),
        ] {
            let refused = parse(certificate, key).unwrap_err().to_string();
            assert!(refused.starts_with(of), "{refused}");
        }
    }

    fn pem(label: &str, der: &[u8]) -> String {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    }

    #[test]
    fn a_name_that_no_certificate_can_carry_is_refused() {
        for good in ["cleat-controller.cleat-system.svc", "10.0.0.1", "::1"] {
            check_name(good).unwrap();
        }
        for bad in ["", "two words", "caf\u{e9}"] {
            check_name(bad).unwrap_err();
        }
    }
}
