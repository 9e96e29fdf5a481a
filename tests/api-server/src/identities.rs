//! Who else there is in a test's cluster: service accounts with pods on nodes, their tokens, and people with certificates.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair,
};
use serde_json::{Value, json};

/// The CA of the cluster's client certificates.
pub(super) const CLIENT_CA: &str = "client-ca.crt";
const CLIENT_CA_KEY: &str = "client-ca.key";

pub(super) fn make_client_ca(folder: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name = named(&[(DnType::CommonName, "clients")]);
    std::fs::write(folder.join(CLIENT_CA), params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(folder.join(CLIENT_CA_KEY), key.serialize_pem()).unwrap();
}

fn named(names: &[(DnType, &str)]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (kind, text) in names {
        name.push(kind.clone(), *text);
    }
    name
}

/// Makes identities in one cluster.
#[derive(Clone, Debug)]
pub struct Identities {
    folder: PathBuf,
    kubectl: PathBuf,
    at: String,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Identities {
    pub(super) fn new(folder: &Path, kubectl: &Path, at: &str) -> Self {
        Self { folder: folder.to_owned(), kubectl: kubectl.to_owned(), at: at.to_owned() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap()
    }

    fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        super::kubectl(&self.kubectl, &self.folder.join("kubeconfig"), arguments)
    }

    /// Makes these objects, or makes them so. Tests share some, and make them at once.
    pub fn apply(&self, objects: &Value) {
        self.try_apply(objects).unwrap();
    }

    /// The same, where it may be refused.
    ///
    /// # Errors
    /// What kubectl says then.
    pub fn try_apply(&self, objects: &Value) -> Result<String, String> {
        let file = self.file("objects.json");
        std::fs::write(&file, json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())
            .unwrap();
        self.try_kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file.display().to_string()])
    }

    /// A pod of that account which runs on that node, as far as the API server knows; and the node, and the account.
    pub fn pod(&self, namespace: &str, account: &str, node: &str) {
        let meta = |name: &str| json!({"name": name, "namespace": namespace});
        self.apply(&json!([
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta(account)},
        ]));
        self.apply(&json!([{
            "apiVersion": "v1", "kind": "Pod", "metadata": meta(&format!("{account}-{node}")),
            "spec": {"serviceAccountName": account, "nodeName": node, "containers": [{"name": "c", "image": "none"}]},
        }]));
    }

    /// A token of that pod, as the kubelet asks for it.
    #[must_use]
    pub fn token(&self, namespace: &str, account: &str, node: &str, audience: &str) -> String {
        self.kubectl(&[
            "create",
            "token",
            account,
            "--namespace",
            namespace,
            "--audience",
            audience,
            "--duration",
            "600s",
            "--bound-object-kind",
            "Pod",
            "--bound-object-name",
            &format!("{account}-{node}"),
        ])
    }

    /// A token of an account, and of no pod, for the API server itself.
    #[must_use]
    pub fn account_token(&self, namespace: &str, account: &str) -> String {
        self.try_account_token(namespace, account).unwrap()
    }

    pub(super) fn try_account_token(&self, namespace: &str, account: &str) -> Result<String, String> {
        self.try_kubectl(&["create", "token", account, "--namespace", namespace])
    }

    /// The same token, for another time: signed by the cluster's own key. Nobody asks an API server for less than ten
    /// minutes.
    #[must_use]
    pub fn lasting(&self, token: &str, seconds_from_now: i64) -> String {
        let part = |at: usize| token.split('.').nth(at).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part(1)).unwrap()).unwrap();
        claims["exp"] = json!(now.saturating_add_signed(seconds_from_now));
        let from = now.saturating_add_signed(seconds_from_now.min(0)) - 60;
        claims["iat"] = json!(from);
        claims["nbf"] = json!(from);
        let text = format!("{}.{}", part(0), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let file = self.file("claims");
        std::fs::write(&file, &text).unwrap();
        let signed = Command::new("openssl")
            .args(["dgst", "-sha256", "-sign"])
            .arg(self.folder.join("sa.key"))
            .arg(&file)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(signed.status.success(), "{signed:?}");
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signed.stdout))
    }

    fn kubeconfig(&self, user: &Value) -> PathBuf {
        let file = self.file("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": self.at, "insecure-skip-tls-verify": true}}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(&file, config.to_string()).unwrap();
        file
    }

    /// Somebody with this token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> PathBuf {
        self.kubeconfig(&json!({"token": token}))
    }

    /// Somebody with a client certificate of this cluster.
    #[must_use]
    pub fn with_certificate(&self, user: &str, group: &str) -> PathBuf {
        let read = |name: &str| std::fs::read_to_string(self.folder.join(name)).unwrap();
        let ca_key = KeyPair::from_pem(&read(CLIENT_CA_KEY)).unwrap();
        let mut ca = CertificateParams::default();
        ca.distinguished_name = named(&[(DnType::CommonName, "clients")]);
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&[(DnType::OrganizationName, group), (DnType::CommonName, user)]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let made = params.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        let data = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
        self.kubeconfig(&json!({
            "client-certificate-data": data(made.pem()), "client-key-data": data(key.serialize_pem()),
        }))
    }
}
