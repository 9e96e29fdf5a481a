//! Certificates of one run: the controller's, and one for each agent.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use cleat_runtime::tls::{ClientTlsArgs, ClientTransport};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

use crate::scale;

/// The name in the controller's certificate.
const SERVER: &str = "cleat.test";

/// Who signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

/// All that is signed.
pub(crate) struct Certificates {
    folder: PathBuf,
    servers: Authority,
    agents: Authority,
}

impl Authority {
    fn make(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let file = folder.join(format!("{name}.pem"));
        write(&file, &params.self_signed(&key)?.pem())?;
        Ok(Self { issuer: Issuer::new(params, key), file })
    }

    fn sign(&self, folder: &Path, name: &str, of: SanType) -> anyhow::Result<(PathBuf, PathBuf)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![])?;
        params.subject_alt_names = vec![of];
        let signed = params.signed_by(&key, &self.issuer)?;
        let files = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        write(&files.0, &signed.pem())?;
        write(&files.1, &key.serialize_pem())?;
        Ok(files)
    }
}

impl Certificates {
    pub(crate) fn make(folder: &Path) -> anyhow::Result<Self> {
        let (servers, agents) = (Authority::make(folder, "servers")?, Authority::make(folder, "agents")?);
        Ok(Self { folder: folder.to_owned(), servers, agents })
    }

    /// The controller's options.
    pub(crate) fn server(&self) -> anyhow::Result<Vec<String>> {
        let name = SanType::DnsName(SERVER.try_into()?);
        let (cert, key) = self.servers.sign(&self.folder, "controller", name)?;
        let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let (agents, operators) = (&self.agents.file, &self.servers.file);
        Ok(vec![
            option("tls-cert", &cert),
            option("tls-key", &key),
            option("agent-client-ca", agents),
            // Nobody is an operator here.
            option("operator-client-ca", operators),
        ])
    }

    /// As the agent of that node.
    pub(crate) fn agent(&self, node: usize) -> anyhow::Result<ClientTransport> {
        let name = scale::node(node);
        let uri = SanType::URI(format!("cleat://node/{name}").as_str().try_into()?);
        let (cert, key) = self.agents.sign(&self.folder, &name, uri)?;
        let options = ClientTlsArgs {
            tls_ca: Some(self.servers.file.clone()),
            tls_cert: Some(cert),
            tls_key: Some(key),
            tls_server_name: Some(SERVER.to_owned()),
            plaintext: false,
        };
        options.load().context("cannot use an agent's certificate")
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(())
}
