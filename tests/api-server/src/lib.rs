//! A real API server for tests, with a real etcd behind it, and what a person does to it.
//!
//! Needs `CLEAT_KUBERNETES`: the folder that `hack/kubernetes-programs --only apiserver` prints.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod fill;
mod identities;
mod volumes;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use cleat_kubernetes::api::ApiServer;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The driver whose objects these are.
pub const DRIVER: &str = "cleat.io";
pub use fill::at_once;
pub use identities::Identities;

/// What deploy/ deploys, as plain manifests.
pub const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/manifests/cleat.yaml");

const SERVER_LOG: &str = "server.err";
const ETCD_LOG: &str = "etcd.err";

/// Long enough for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// One that a test has for itself, and may hurt. It ends when this is dropped, and with the thread that has started it.
#[derive(Debug)]
pub struct Cluster {
    folder: tempfile::TempDir,
    kubectl: PathBuf,
    at: String,
    server: Child,
    etcd: Child,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in [&mut self.server, &mut self.etcd] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// For tests that only use it. Statics are not dropped, so its programs end with the thread that started them.
static SHARED: LazyLock<Shared> = LazyLock::new(|| {
    let programs = programs().unwrap();
    let (send, started) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let cluster = Cluster::start(&programs).unwrap();
        let identities = cluster.identities();
        let _ = send.send(Shared {
            kubectl: cluster.kubectl.clone(),
            kubeconfig: cluster.kubeconfig(),
            identities,
        });
        loop {
            std::thread::park();
        }
    });
    started.recv().expect("the API server starts")
});

fn programs() -> Result<PathBuf, String> {
    let named = std::env::var_os("CLEAT_KUBERNETES").map(PathBuf::from);
    named.filter(|folder| folder.join("kube-apiserver").is_file()).ok_or_else(|| {
        "cannot find kube-apiserver: CLEAT_KUBERNETES names no folder with it; set it to what hack/kubernetes-programs --only \
         apiserver prints"
            .to_owned()
    })
}

/// A program that the kernel ends with the thread that starts it.
fn ends_with_us(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Cluster {
    /// One of its own, for a test that hurts it.
    #[must_use]
    pub fn own() -> Self {
        Self::try_own().unwrap()
    }

    /// The same, for whoever has to say what failed.
    ///
    /// # Errors
    /// Which program is not there or does not get ready, with what it said last.
    pub fn try_own() -> Result<Self, String> {
        Self::start(&programs()?)
    }

    fn start(programs: &Path) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| format!("cannot make a folder: {error}"))?;
        let (client, peer, secure) = (free_port(), free_port(), free_port());
        let at = |port| format!("http://127.0.0.1:{port}");
        let state = |name: &str| folder.path().join(name).display().to_string();
        let log = |name: &str| Stdio::from(std::fs::File::create(folder.path().join(name)).unwrap());
        let etcd = ends_with_us("etcd".as_ref())
            .args(["--unsafe-no-fsync", "--data-dir", &state("etcd"), "--listen-client-urls", &at(client)])
            .args(["--advertise-client-urls", &at(client), "--listen-peer-urls", &at(peer)])
            .args([
                "--initial-advertise-peer-urls",
                &at(peer),
                "--initial-cluster",
                &format!("default={}", at(peer)),
            ])
            .stdin(Stdio::null())
            .stdout(log("etcd.out"))
            .stderr(log(ETCD_LOG))
            .spawn()
            .map_err(|error| format!("cannot start etcd: {error}; hack/setup etcd brings it"))?;
        let key = state("sa.key");
        let made = Command::new("openssl").args(["genrsa", "-out", &key, "2048"]).output();
        let made = made.map_err(|error| format!("cannot run openssl: {error}; install it"))?;
        if !made.status.success() {
            return Err(format!("openssl makes no key: {}", String::from_utf8_lossy(&made.stderr).trim()));
        }
        identities::make_client_ca(folder.path());
        std::fs::write(state("tokens.csv"), "admin-token,admin,1,\"system:masters\"\n").unwrap();
        let program = programs.join("kube-apiserver");
        let server = ends_with_us(&program)
            .args([&format!("--etcd-servers={}", at(client)), "--bind-address=127.0.0.1"])
            .args([&format!("--secure-port={secure}"), &format!("--cert-dir={}", state("certs"))])
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC"])
            // What deploy/ deploys has privileged containers.
            .arg("--allow-privileged")
            .args([
                "--service-account-issuer=https://kubernetes.default.svc",
                "--advertise-address=127.0.0.1",
            ])
            .args([
                &format!("--service-account-key-file={key}"),
                &format!("--service-account-signing-key-file={key}"),
            ])
            .args([
                format!("--token-auth-file={}", state("tokens.csv")),
                format!("--client-ca-file={}", state(identities::CLIENT_CA)),
            ])
            .stdin(Stdio::null())
            .stdout(log("server.out"))
            .stderr(log(SERVER_LOG))
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let at = format!("https://127.0.0.1:{secure}");
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\n\
             clusters: [{{name: c, cluster: {{server: '{at}', insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: admin, user: {{token: admin-token}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: admin}}}}]\ncurrent-context: c\n"
        );
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig).unwrap();
        let mut cluster = Self { folder, kubectl: programs.join("kubectl"), at, server, etcd };
        cluster.wait_ready()?;
        Ok(cluster)
    }

    fn wait_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.try_kubectl(&["get", "--raw", "/readyz"]);
            if answer.as_deref() == Ok("ok") {
                return Ok(());
            }
            let children = [("etcd", &mut self.etcd), ("the API server", &mut self.server)];
            let ended = children.into_iter().find_map(|(what, child)| Some((what, child.try_wait().ok()??)));
            if let Some((what, status)) = ended {
                return Err(format!("{what} has ended at once ({status}): {}", self.complaints()));
            }
            if Instant::now() > deadline {
                return Err(format!("the API server is not ready: {answer:?}; {}", self.complaints()));
            }
            std::thread::park_timeout(Duration::from_millis(300));
        }
    }

    /// As its administrator.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Who else there is.
    #[must_use]
    pub fn identities(&self) -> Identities {
        Identities::new(self.folder.path(), &self.kubectl, &self.at)
    }

    /// kubectl.
    #[must_use]
    pub fn kubectl_program(&self) -> &Path {
        &self.kubectl
    }

    /// What its programs log.
    #[must_use]
    pub fn logs(&self) -> [PathBuf; 2] {
        [SERVER_LOG, ETCD_LOG].map(|name| self.folder.path().join(name))
    }

    /// What deploy/ deploys is in it from now on, and runs nowhere. Gives a kubeconfig of the controller's account: with the
    /// rights that are deployed, and no others.
    #[must_use]
    pub fn deployed(&self) -> PathBuf {
        self.try_deployed().unwrap()
    }

    /// The same, for whoever has to say what failed.
    ///
    /// # Errors
    /// What kubectl says then.
    pub fn try_deployed(&self) -> Result<PathBuf, String> {
        self.try_kubectl(&["apply", "--server-side", "--validate=strict", "-f", MANIFESTS])?;
        let identities = self.identities();
        let token = identities.try_account_token("cleat-system", "cleat-controller")?;
        Ok(identities.with_token(&token))
    }

    fn complaints(&self) -> String {
        let last = |file: &PathBuf| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            text.lines().rev().take(20).collect::<Vec<_>>().join("\n")
        };
        self.logs().each_ref().map(last).join("\n")
    }

    /// The API server answers nothing until it is let go.
    pub fn freeze(&self, frozen: bool) {
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        kill(Pid::from_raw(self.server.id().cast_signed()), signal).unwrap();
    }

    /// What a person says with kubectl.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap()
    }

    /// The same, where it may be refused.
    ///
    /// # Errors
    /// What kubectl says then.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        kubectl(&self.kubectl, &self.kubeconfig(), arguments)
    }
}

fn kubectl(program: &Path, kubeconfig: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).arg("--kubeconfig").arg(kubeconfig).args(arguments).output();
    let output = output.map_err(|error| format!("cannot run {}: {error}", program.display()))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The shared cluster as a test sees it.
pub struct Shared {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    identities: Identities,
}

/// One for all tests of a process that do not hurt it.
#[must_use]
pub fn shared() -> &'static Shared {
    &SHARED
}

impl Shared {
    /// As its administrator.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// What a person says with kubectl.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap()
    }

    /// The same, where it may be refused.
    ///
    /// # Errors
    /// What kubectl says then.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        kubectl(&self.kubectl, &self.kubeconfig, arguments)
    }

    /// Who else there is.
    #[must_use]
    pub fn identities(&self) -> &Identities {
        &self.identities
    }

    /// A client of its administrator.
    pub async fn server(&self) -> ApiServer {
        connect(&self.kubeconfig, Duration::from_secs(20)).await
    }
}

/// A client.
pub async fn connect(kubeconfig: &Path, timeout: Duration) -> ApiServer {
    ApiServer::connect(Some(kubeconfig), timeout).await.unwrap()
}
