//! The certificates of one run: a CA that lives as long as the run does, and one certificate for each part.
//!
//! In: a folder. Out: PEM files in it. What always holds: nothing here is trusted by anything outside the run.

use std::path::{Path, PathBuf};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

/// Certificate and key of one part.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// Everything that the parts of a run need to trust each other.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// The CA's certificate, PEM.
    pub ca: PathBuf,
    /// For the controller's listener.
    pub controller: Pair,
    /// For the RDS's REST API.
    pub rds: Pair,
    /// For whoever dials the controller: agents, and operators.
    pub client: Pair,
}

impl Certificates {
    /// Makes them, for servers at these addresses.
    ///
    /// # Errors
    /// If a certificate cannot be made or a file not written.
    pub fn make(folder: &Path, controller: &str, rds: &str) -> anyhow::Result<Self> {
        let key = KeyPair::generate().context("make the CA's key")?;
        let mut params = params("cleat test CA", &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = folder.join("ca.pem");
        let cert = params.self_signed(&key).context("make the CA's certificate")?;
        write(&ca, &cert.pem())?;
        let issuer = Issuer::new(params, key);
        let pair = |name: &str, address: &[&str], usage| make_pair(folder, &issuer, name, address, usage);
        Ok(Self {
            controller: pair("controller", &[controller, "localhost"], ExtendedKeyUsagePurpose::ServerAuth)?,
            rds: pair("rds", &[rds], ExtendedKeyUsagePurpose::ServerAuth)?,
            client: pair("client", &["agent.cleat.test"], ExtendedKeyUsagePurpose::ClientAuth)?,
            ca,
        })
    }
}

fn params(name: &str, addresses: &[&str]) -> anyhow::Result<CertificateParams> {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(addresses).context("name a certificate's addresses")?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

fn make_pair(
    folder: &Path,
    issuer: &Issuer<'_, KeyPair>,
    name: &str,
    addresses: &[&str],
    usage: ExtendedKeyUsagePurpose,
) -> anyhow::Result<Pair> {
    let key = KeyPair::generate().with_context(|| format!("make the key of {name}"))?;
    let mut params = params(name, addresses)?;
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    let cert = params.signed_by(&key, issuer).with_context(|| format!("make the certificate of {name}"))?;
    let pair = Pair { cert: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}-key.pem")) };
    write(&pair.cert, &cert.pem())?;
    write(&pair.key, &key.serialize_pem())?;
    Ok(pair)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_are_made() {
        let folder = tempfile::tempdir().expect("folder");
        let made = Certificates::make(folder.path(), "10.77.3.254", "10.77.3.1").expect("certificates");
        for file in [&made.ca, &made.controller.key, &made.rds.cert, &made.client.cert] {
            assert!(std::fs::read_to_string(file).expect("file").starts_with("-----BEGIN"));
        }
    }
}
