//! A real API server for tests, with a real etcd behind it, and what a person does to it.
//!
//! Needs `CLEAT_KUBERNETES`: the folder that `hack/kubernetes-programs api-server` prints.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod fill;
mod identities;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use cleat_kubernetes::api::ApiServer;
use cleat_kubernetes::attachments::usual_name;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The driver whose objects these are.
pub const DRIVER: &str = "cleat.io";
pub use fill::at_once;
pub use identities::Identities;

/// What deploy/ deploys, as plain manifests.
pub const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/manifests/cleat.yaml");

/// Long enough for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// One that a test has for itself, and may hurt. It ends when this is dropped.
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
    let programs = programs();
    let (send, started) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let cluster = Cluster::start(programs);
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

fn programs() -> PathBuf {
    std::env::var_os("CLEAT_KUBERNETES").expect("CLEAT_KUBERNETES says where kube-apiserver is").into()
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
        Self::start(programs())
    }

    fn start(programs: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
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
            .stderr(log("etcd.err"))
            .spawn()
            .expect("etcd is installed: hack/setup");
        let key = state("sa.key");
        let made = Command::new("openssl").args(["genrsa", "-out", &key, "2048"]).output().unwrap();
        assert!(made.status.success());
        identities::make_client_ca(folder.path());
        std::fs::write(state("tokens.csv"), "admin-token,admin,1,\"system:masters\"\n").unwrap();
        let server = ends_with_us(&programs.join("kube-apiserver"))
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
            .stderr(log("server.err"))
            .spawn()
            .unwrap();
        let at = format!("https://127.0.0.1:{secure}");
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\n\
             clusters: [{{name: c, cluster: {{server: '{at}', insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: admin, user: {{token: admin-token}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: admin}}}}]\ncurrent-context: c\n"
        );
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig).unwrap();
        let cluster = Self { folder, kubectl: programs.join("kubectl"), at, server, etcd };
        let deadline = Instant::now() + PATIENCE;
        while !cluster.try_kubectl(&["get", "--raw", "/readyz"]).is_ok_and(|answer| answer == "ok") {
            assert!(Instant::now() < deadline, "the API server is not ready: {}", cluster.complaints());
            std::thread::park_timeout(Duration::from_millis(300));
        }
        cluster
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

    /// What deploy/ deploys is in it from now on, and runs nowhere. Gives a kubeconfig of the controller's account: with the
    /// rights that are deployed, and no others.
    #[must_use]
    pub fn deployed(&self) -> PathBuf {
        self.kubectl(&["apply", "--server-side", "--validate=strict", "-f", MANIFESTS]);
        let identities = self.identities();
        identities.with_token(&identities.account_token("cleat-system", "cleat-controller"))
    }

    fn complaints(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("server.err")).unwrap_or_default();
        text.lines().rev().take(20).collect::<Vec<_>>().join("\n")
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

    /// What the attach/detach controller writes for a pod that is to run there, and the volume that it names: as
    /// ReadWriteMany (`shared`) or ReadWriteOnce.
    pub fn wants(&self, volume: &str, node: &str, shared: bool) {
        let mode = if shared { "ReadWriteMany" } else { "ReadWriteOnce" };
        let name = usual_name(volume, DRIVER, node);
        let apply = |what: &str, objects: String| {
            let file = self.folder.path().join(format!("{name}-{what}.yaml"));
            std::fs::write(&file, objects).unwrap();
            self.kubectl(&["apply", "-f", &file.display().to_string()]);
        };
        // One that a test has made itself stays as it is.
        if self.try_kubectl(&["get", "pv", &format!("pv-{volume}")]).is_err() {
            apply(
                "pv",
                format!(
                    "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: pv-{volume}}}\n\
                     spec: {{capacity: {{storage: 1Gi}}, accessModes: [{mode}], volumeMode: Block, \
                     persistentVolumeReclaimPolicy: Retain, csi: {{driver: {DRIVER}, volumeHandle: {volume}}}}}\n"
                ),
            );
        }
        apply(
            "va",
            format!(
                "apiVersion: storage.k8s.io/v1\nkind: VolumeAttachment\nmetadata: {{name: {name}}}\n\
                 spec: {{attacher: {DRIVER}, nodeName: {node}, source: {{persistentVolumeName: pv-{volume}}}}}\n"
            ),
        );
    }

    /// What the attacher writes when its Publish was answered.
    pub fn attached(&self, volume: &str, node: &str, epoch: &str) {
        let status = format!(
            r#"{{"status": {{"attached": true, "attachmentMetadata": {{"cleat.io/epoch": "{epoch}"}}}}}}"#
        );
        let name = usual_name(volume, DRIVER, node);
        self.kubectl(&[
            "patch",
            "volumeattachment",
            &name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ]);
    }

    /// The VolumeAttachment goes.
    pub fn wants_no_more(&self, volume: &str, node: &str) {
        self.kubectl(&["delete", "volumeattachment", &usual_name(volume, DRIVER, node)]);
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
    let output = Command::new(program).arg("--kubeconfig").arg(kubeconfig).args(arguments).output().unwrap();
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
