//! The controller: a process on the host's side of the run's network, its CSI socket and its operators' service.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context, bail};
use cleat_proto::cleat::v1::operator_client::OperatorClient;
use cleat_proto::cleat::v1::{
    GetVolumeRequest, ListMigrationsRequest, ListNodesRequest, ListTicketsRequest, ListVolumesRequest,
    MigrationInfo, NodeInfo, TicketInfo, VolumeInfo, WatchRequest,
};
use cleat_proto::csi::v1::ProbeRequest;
use cleat_proto::csi::v1::controller_client::ControllerClient;
use cleat_proto::csi::v1::identity_client::IdentityClient;
use cleat_rig::Network;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::certificates::Certificates;
use super::rds::{BASE_PATH, CLUSTER, PASSWORD, USER};
use super::{
    ApiServer, Look, Metrics, NQN_PREFIX, RDS_NUMBER, START, TargetView, Watch, WorldOptions, wait_for,
};

/// Where the controller serves agents, on the management network.
pub const AGENT_PORT: u16 = 7000;
const OPERATOR_PORT: u16 = 7001;
const METRICS_PORT: u16 = 9101;
/// A signal that nothing survives has its effect within this time.
const DYING: Duration = Duration::from_secs(10);

/// The controller, whether it runs or not. Its state folder outlives its process.
#[derive(Debug)]
pub struct Controller {
    arguments: Vec<String>,
    folder: PathBuf,
    /// What it is told of the target, as arguments.
    target: std::sync::Mutex<Vec<String>>,
    socket: PathBuf,
    log: PathBuf,
    cleatctl: Vec<String>,
    child: Mutex<Option<Child>>,
    csi: Channel,
    operator: Channel,
}

impl Controller {
    pub(super) fn new(
        sockets: &Path,
        folder: &Path,
        certificates: Certificates,
        options: &WorldOptions,
        cluster: Option<&ApiServer>,
    ) -> anyhow::Result<Self> {
        // In the run's own folder and not the world's: a Unix socket's path is at most 107 bytes long.
        let socket = sockets.join(format!("csi-{}.sock", &uuid::Uuid::new_v4().simple().to_string()[..8]));
        let password = folder.join("rds-password");
        std::fs::write(&password, PASSWORD).with_context(|| format!("write {}", password.display()))?;
        let mut arguments = arguments(&socket, &password, &certificates, options);
        arguments.extend(store(folder, cluster));
        let csi = Endpoint::from_shared(format!("unix://{}", socket.display()))?.connect_lazy();
        let operator = operator_endpoint(&certificates)?.connect_lazy();
        let (log, child) = (folder.join("controller.log"), Mutex::new(None));
        let cleatctl = vec![
            format!("--controller={}", address(OPERATOR_PORT)),
            format!("--tls-ca={}", certificates.ca.display()),
            format!("--tls-cert={}", certificates.operator.cert.display()),
            format!("--tls-key={}", certificates.operator.key.display()),
        ];
        let target = std::sync::Mutex::new(options.target.controller_args(folder)?);
        let folder = folder.to_owned();
        Ok(Self { arguments, folder, target, socket, log, cleatctl, child, csi, operator })
    }

    /// Starts it and waits until it answers on its CSI socket and its TLS port.
    ///
    /// # Errors
    /// If it runs already, or does not answer: then with the end of its log.
    pub async fn start(&self) -> anyhow::Result<()> {
        self.spawn().await?;
        let up = wait_for("the controller to answer", START, async || {
            if let Some(status) = self.ended().await {
                bail!("it ended at once ({status})");
            }
            IdentityClient::new(self.csi.clone()).probe(ProbeRequest {}).await?;
            self.nodes().await?;
            Ok(Look::Yes(()))
        })
        .await;
        up.map_err(|error| anyhow::Error::from(error).context(self.log_end()))
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    /// If it runs already or is not built.
    pub async fn spawn(&self) -> anyhow::Result<()> {
        let mut child = self.child.lock().await;
        if let Some(running) = child.as_mut().and_then(|child| child.try_wait().ok()).filter(Option::is_none)
        {
            bail!("the controller runs already ({running:?})");
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log: File = log.with_context(|| format!("open {}", self.log.display()))?;
        let program = cleat_rig::program("cleat-controller")?;
        let started = Command::new(&program)
            .args(self.target.lock().unwrap_or_else(PoisonError::into_inner).iter())
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .process_group(0)
            .spawn();
        *child = Some(started.with_context(|| format!("start {}", program.display()))?);
        Ok(())
    }

    /// Kills it with -9 and waits until it is gone.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn kill(&self) -> anyhow::Result<()> {
        let mut child = self.child.lock().await.take().context("the controller does not run")?;
        child.start_kill().context("kill the controller")?;
        tokio::time::timeout(DYING, child.wait()).await.context("the controller does not die")?.map(drop)?;
        Ok(())
    }

    /// Has it think of the target so from its next start on.
    ///
    /// # Errors
    /// If the files that tell it cannot be written.
    pub fn view(&self, target: &TargetView) -> anyhow::Result<()> {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = target.controller_args(&self.folder)?;
        Ok(())
    }

    pub(super) async fn stop_if_running(&self) -> anyhow::Result<()> {
        let runs = self.child.lock().await.is_some();
        if runs { self.kill().await } else { Ok(()) }
    }

    /// Kills it with -9 and starts it again over the same state.
    ///
    /// # Errors
    /// As [`Controller::kill`] and [`Controller::start`].
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.kill().await?;
        self.start().await
    }

    async fn ended(&self) -> Option<std::process::ExitStatus> {
        self.child.lock().await.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// Leaves the process to the run.
    pub(super) fn release(self) {
        std::mem::forget(self);
    }

    /// Its log on the host, of all its processes one after the other.
    #[must_use]
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    fn log_end(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("the controller said last: {}", lines[lines.len().saturating_sub(5)..].join(" | "))
    }

    /// The options with which `cleatctl` reaches it from the run's network.
    #[must_use]
    pub fn cleatctl_options(&self) -> &[String] {
        &self.cleatctl
    }

    /// Its CSI socket on the host.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The address at which agents dial it.
    #[must_use]
    pub fn address(&self) -> String {
        address(AGENT_PORT)
    }

    /// A CSI Controller client. It connects again by itself after a restart.
    #[must_use]
    pub fn csi(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.csi.clone())
    }

    /// A CSI Identity client.
    #[must_use]
    pub fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.csi.clone())
    }

    /// A client of the operators' service.
    #[must_use]
    pub fn operator(&self) -> OperatorClient<Channel> {
        OperatorClient::new(self.operator.clone())
    }

    /// One volume with its evidence and what it waits for.
    ///
    /// # Errors
    /// The operators' service's own.
    pub async fn volume(&self, volume_id: &str) -> Result<VolumeInfo, tonic::Status> {
        let request = GetVolumeRequest { volume_id: volume_id.to_owned() };
        Ok(self.operator().get_volume(request).await?.into_inner())
    }

    /// All volumes.
    ///
    /// # Errors
    /// The operators' service's own.
    pub async fn volumes(&self) -> Result<Vec<VolumeInfo>, tonic::Status> {
        Ok(self.operator().list_volumes(ListVolumesRequest {}).await?.into_inner().volumes)
    }

    /// All nodes.
    ///
    /// # Errors
    /// The operators' service's own.
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, tonic::Status> {
        Ok(self.operator().list_nodes(ListNodesRequest {}).await?.into_inner().nodes)
    }

    /// All migrations, running and done.
    ///
    /// # Errors
    /// The operators' service's own.
    pub async fn migrations(&self) -> Result<Vec<MigrationInfo>, tonic::Status> {
        Ok(self.operator().list_migrations(ListMigrationsRequest {}).await?.into_inner().migrations)
    }

    /// All tickets.
    ///
    /// # Errors
    /// The operators' service's own.
    pub async fn tickets(&self) -> Result<Vec<TicketInfo>, tonic::Status> {
        Ok(self.operator().list_tickets(ListTicketsRequest::default()).await?.into_inner().tickets)
    }

    /// Begins to watch everything; what is heard is kept with its time.
    ///
    /// # Errors
    /// If the watch cannot be opened, or its first state does not come.
    pub async fn watch(&self) -> anyhow::Result<Watch> {
        let stream =
            self.operator().watch(WatchRequest {}).await.context("watch the controller")?.into_inner();
        Watch::begin(stream).await
    }

    /// Its metrics.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn metrics(&self) -> anyhow::Result<Metrics> {
        Metrics::scrape(&format!("{}:{METRICS_PORT}", Network::Management.host_address())).await
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Some(child) = self.child.get_mut() {
            // Gone already is as good.
            let _ = child.start_kill();
        }
    }
}

fn address(port: u16) -> String {
    format!("{}:{port}", Network::Management.host_address())
}

fn operator_endpoint(certificates: &Certificates) -> anyhow::Result<Endpoint> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    // The process has one provider of cryptography; a second installation is refused and changes nothing.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read(&certificates.ca)?))
        .identity(Identity::from_pem(read(&certificates.operator.cert)?, read(&certificates.operator.key)?));
    let endpoint = Endpoint::from_shared(format!("https://{}", address(OPERATOR_PORT)))?.tls_config(tls)?;
    Ok(endpoint
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(4))
        .keep_alive_timeout(Duration::from_secs(4))
        .keep_alive_while_idle(true))
}

/// Where its records are.
fn store(folder: &Path, cluster: Option<&ApiServer>) -> Vec<String> {
    match cluster {
        None => vec![format!("--store=file:{}", folder.join("controller-state").display())],
        Some(cluster) => vec![
            "--store=kubernetes".to_owned(),
            format!("--kubeconfig={}", cluster.controllers_kubeconfig().display()),
            // Beside machines that are emulated an API server may be seconds late. A claim outlives a controller that is killed.
            "--lease-duration=40s".to_owned(),
            "--api-timeout=10s".to_owned(),
        ],
    }
}

fn arguments(
    socket: &Path,
    password: &Path,
    certificates: &Certificates,
    options: &WorldOptions,
) -> Vec<String> {
    let mut words = Vec::new();
    let mut put = |name: &str, value: String| words.extend([format!("--{name}"), value]);
    let path = |path: &Path| path.display().to_string();
    put("csi-socket", path(socket));
    put("agent-listen", address(AGENT_PORT));
    put("operator-listen", address(OPERATOR_PORT));
    put("tls-cert", path(&certificates.controller.cert));
    put("tls-key", path(&certificates.controller.key));
    put("agent-client-ca", path(&certificates.agent_ca));
    put("operator-client-ca", path(&certificates.operator_ca));
    put("rds-url", format!("https://{}", Network::Management.address(RDS_NUMBER)));
    put("rds-user", USER.to_owned());
    put("rds-password-file", path(password));
    put("rds-ca", path(&certificates.ca));
    put("rds-files", BASE_PATH.to_owned());
    put("cluster-id", CLUSTER.to_owned());
    put("nqn-prefix", NQN_PREFIX.to_owned());
    put("metrics-listen", format!("{}:{METRICS_PORT}", Network::Management.host_address()));
    put("log-filter", options.log_filter.clone());
    words.extend(options.controller_args.iter().cloned());
    words
}
