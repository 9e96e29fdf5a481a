//! The certificates of one run: CAs that live as long as the run does, and one certificate for each part.
//!
//! In: a folder. Out: PEM files in it. What always holds: nothing here is trusted by anything outside the run.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

/// The name of the operator that the run's own calls are made by.
const OPERATOR: &str = "rig";

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
    /// The certificate of the servers' CA, PEM.
    pub ca: PathBuf,
    /// That of the agents' CA.
    pub agent_ca: PathBuf,
    /// That of the operators' CA.
    pub operator_ca: PathBuf,
    /// For the controller's listener.
    pub controller: Pair,
    /// For the RDS's REST API.
    pub rds: Pair,
    /// For the agents, by the number of their node.
    pub nodes: Vec<Pair>,
    /// For an operator, by the name that the tests give.
    pub operator: Pair,
}

impl Certificates {
    /// Makes them, for servers at these addresses and nodes of these names.
    ///
    /// # Errors
    /// If a certificate cannot be made or a file not written.
    pub fn make(folder: &Path, controller: &str, rds: &str, nodes: &[&str]) -> anyhow::Result<Self> {
        let (ca, servers) = make_ca(folder, "ca")?;
        let (agent_ca, agents) = make_ca(folder, "agent-ca")?;
        let (operator_ca, operators) = make_ca(folder, "operator-ca")?;
        let server = |name: &str, addresses: &[&str]| {
            make_pair(folder, &servers, name, addresses, None, ExtendedKeyUsagePurpose::ServerAuth)
        };
        let client = |issuer, name: &str, uri: &str| {
            make_pair(folder, issuer, name, &[], Some(uri), ExtendedKeyUsagePurpose::ClientAuth)
        };
        let nodes = nodes.iter().map(|node| client(&agents, node, &format!("cleat://node/{node}")));
        Ok(Self {
            controller: server("controller", &[controller, "localhost"])?,
            rds: server("rds", &[rds])?,
            nodes: nodes.collect::<anyhow::Result<_>>()?,
            operator: client(&operators, "operator", &format!("cleat://operator/{OPERATOR}"))?,
            ca,
            agent_ca,
            operator_ca,
        })
    }
}

fn make_ca(folder: &Path, name: &str) -> anyhow::Result<(PathBuf, Issuer<'static, KeyPair>)> {
    let key = KeyPair::generate().with_context(|| format!("make the key of {name}"))?;
    let mut params = params(&format!("cleat test {name}"), &[])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let file = folder.join(format!("{name}.pem"));
    let cert = params.self_signed(&key).with_context(|| format!("make the certificate of {name}"))?;
    write(&file, &cert.pem())?;
    Ok((file, Issuer::new(params, key)))
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
    uri: Option<&str>,
    usage: ExtendedKeyUsagePurpose,
) -> anyhow::Result<Pair> {
    let key = KeyPair::generate().with_context(|| format!("make the key of {name}"))?;
    let mut params = params(name, addresses)?;
    if let Some(uri) = uri {
        let uri = uri.try_into().with_context(|| format!("name {uri} in a certificate"))?;
        params.subject_alt_names.push(SanType::URI(uri));
    }
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    let cert = params.signed_by(&key, issuer).with_context(|| format!("make the certificate of {name}"))?;
    let pair = Pair { cert: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}-key.pem")) };
    write(&pair.cert, &cert.pem())?;
    write(&pair.key, &key.serialize_pem())?;
    Ok(pair)
}

/// Nobody else may read it: what reads a key checks that.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let open = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    open.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_are_made() {
        let folder = tempfile::tempdir().expect("folder");
        let made =
            Certificates::make(folder.path(), "10.77.3.254", "10.77.3.1", &["node-1"]).expect("certificates");
        for file in [&made.ca, &made.controller.key, &made.rds.cert, &made.nodes[0].cert] {
            assert!(std::fs::read_to_string(file).expect("file").starts_with("-----BEGIN"));
        }
    }
}
