//! Certificates of one test: a CA for servers, one for agents, one for operators, and whatever is asked of them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cleat_runtime::tls::{ClientTlsArgs, ClientTransport, ServerTlsArgs};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

/// The name that the controller's certificate has.
pub const SERVER: &str = "cleat.test";

pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub file: PathBuf,
}

impl Ca {
    pub fn make(folder: &Path, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let file = folder.join(format!("{name}.pem"));
        write(&file, &params.self_signed(&key).unwrap().pem());
        Self { issuer: Issuer::new(params, key), file }
    }

    /// A certificate for these names, valid for so long, in files of this name.
    pub fn sign(
        &self,
        folder: &Path,
        file: &str,
        names: Vec<SanType>,
        valid: Duration,
    ) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.subject_alt_names = names;
        params.not_before = (SystemTime::now() - Duration::from_secs(3600)).into();
        params.not_after = (SystemTime::now() + valid).into();
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        let (cert, key_file) = (folder.join(format!("{file}.pem")), folder.join(format!("{file}.key")));
        write(&cert, &signed.pem());
        write(&key_file, &key.serialize_pem());
        (cert, key_file)
    }
}

pub struct Certificates {
    pub folder: PathBuf,
    pub servers: Ca,
    pub agents: Ca,
    pub operators: Ca,
}

pub const LONG: Duration = Duration::from_secs(30 * 86_400);

pub fn uri(uri: &str) -> Vec<SanType> {
    vec![SanType::URI(uri.try_into().unwrap())]
}

impl Certificates {
    pub fn make(folder: &Path) -> Self {
        let ca = |name: &str| Ca::make(folder, name);
        Self {
            folder: folder.into(),
            servers: ca("servers"),
            agents: ca("agents"),
            operators: ca("operators"),
        }
    }

    /// What the controller is told.
    pub fn server(&self) -> ServerTlsArgs {
        let names = vec![SanType::DnsName(SERVER.try_into().unwrap())];
        let (cert, key) = self.servers.sign(&self.folder, "controller", names, LONG);
        ServerTlsArgs {
            tls_cert: Some(cert),
            tls_key: Some(key),
            agent_client_ca: Some(self.agents.file.clone()),
            operator_client_ca: Some(self.operators.file.clone()),
            ..Default::default()
        }
    }

    /// What a client is told that has this certificate.
    pub fn options(&self, pair: Option<(PathBuf, PathBuf)>) -> ClientTlsArgs {
        let (cert, key) = pair.unzip();
        ClientTlsArgs {
            tls_ca: Some(self.servers.file.clone()),
            tls_cert: cert,
            tls_key: key,
            tls_server_name: Some(SERVER.into()),
            plaintext: false,
        }
    }

    fn client(&self, ca: &Ca, file: &str, names: Vec<SanType>) -> ClientTransport {
        self.options(Some(ca.sign(&self.folder, file, names, LONG))).load().unwrap()
    }

    /// Dials as that node's agent.
    pub fn node(&self, name: &str) -> ClientTransport {
        self.client(&self.agents, name, uri(&format!("cleat://node/{name}")))
    }

    /// Dials as that operator.
    pub fn operator(&self, name: &str) -> ClientTransport {
        self.client(&self.operators, name, uri(&format!("cleat://operator/{name}")))
    }

    /// Dials with a certificate of this CA, for these names.
    pub fn odd(&self, ca: &Ca, names: Vec<SanType>) -> ClientTransport {
        self.client(ca, "odd", names)
    }

    /// Dials without any.
    pub fn stranger(&self) -> ClientTransport {
        self.options(None).load().unwrap()
    }

    /// The options with which `cleatctl` is that operator.
    pub fn cleatctl(&self, name: &str) -> Vec<String> {
        let names = uri(&format!("cleat://operator/{name}"));
        let (cert, key) = self.operators.sign(&self.folder, name, names, LONG);
        let option = |name: &str, path: &Path| format!("--tls-{name}={}", path.display());
        let files = [option("ca", &self.servers.file), option("cert", &cert), option("key", &key)];
        files.into_iter().chain([format!("--tls-server-name={SERVER}")]).collect()
    }
}

pub fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}
