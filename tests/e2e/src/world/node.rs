//! A node machine: the agent in it, its CSI socket, and what a pod on it would do.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use cleat_proto::csi::v1::NodeGetInfoRequest;
use cleat_proto::csi::v1::node_client::NodeClient;
use cleat_rig::{Command, Daemon, Forward, Machine, Network};
use tonic::transport::{Channel, Endpoint};

use super::certificates::{Certificates, Pair};
use super::writer::Writer;
use super::{
    AGENT_PORT, Attached, Look, Metrics, NQN_PREFIX, START, Volume, WorldOptions, blocking, record_name,
    wait_for,
};
use crate::writer::WriteArgs;

/// The agent's log in its machine.
pub(super) const LOG: &str = "/run/cleat-agent.log";
const METRICS_PORT: u16 = 9100;
const KUBELET: &str = "/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices";

/// How an agent is started.
#[derive(Debug, Clone, Default)]
pub struct AgentStart {
    /// Arguments for this start only, after all others.
    pub arguments: Vec<String>,
}

/// A node: its machine and the agent in it. Ledger and identity lie on its disk and outlive agent and machine.
#[derive(Debug)]
pub struct Node {
    name: String,
    machine: Arc<Machine>,
    /// The CA of the controller's certificate.
    ca: PathBuf,
    pair: Pair,
    arguments: Vec<String>,
    daemon: Mutex<Option<Daemon>>,
    // Held for as long as the channel may dial it.
    _forward: Forward,
    csi: Channel,
}

impl Node {
    /// The agent's CSI socket, in its machine.
    pub const CSI_SOCKET: &str = "/run/cleat/csi.sock";

    pub(super) fn new(
        name: String,
        machine: Arc<Machine>,
        certificates: &Certificates,
        pair: Pair,
        options: &WorldOptions,
    ) -> anyhow::Result<Self> {
        let forward = machine.forward_unix(Self::CSI_SOCKET)?;
        let csi = Endpoint::from_shared(format!("unix://{}", forward.path().display()))?.connect_lazy();
        let mut arguments = vec!["--log-filter".to_owned(), options.log_filter.clone()];
        arguments.extend(options.agent_args.iter().cloned());
        let (ca, daemon) = (certificates.ca.clone(), Mutex::new(None));
        Ok(Self { name, machine, ca, pair, arguments, daemon, _forward: forward, csi })
    }

    /// Its name, which is its CSI node id.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The machine, for commands and trouble.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The machine, for calls from a blocking task.
    #[must_use]
    pub fn shared_machine(&self) -> Arc<Machine> {
        Arc::clone(&self.machine)
    }

    pub(super) fn into_machine(self) -> anyhow::Result<Machine> {
        let name = self.name.clone();
        Arc::try_unwrap(self.machine).map_err(|_| anyhow::anyhow!("the machine of {name} is still in use"))
    }

    /// Runs a shell script in the machine that must succeed; what it printed.
    ///
    /// # Errors
    /// If it fails.
    pub async fn sh(&self, script: &str) -> anyhow::Result<String> {
        let (machine, script) = (Arc::clone(&self.machine), script.to_owned());
        blocking(move || machine.sh(&script)).await
    }

    /// Starts the agent and waits until it answers on its CSI socket. Whether it has a session is another question:
    /// see [`super::World::wait_session`].
    ///
    /// # Errors
    /// With the end of its log if it does not answer.
    pub async fn start_agent(&self, how: AgentStart) -> anyhow::Result<()> {
        let read =
            |path: &std::path::Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
        let files = [
            ("/etc/cleat/ca.pem", read(&self.ca)?),
            ("/etc/cleat/client.pem", read(&self.pair.cert)?),
            ("/etc/cleat/client-key.pem", read(&self.pair.key)?),
        ];
        let (machine, command) = (Arc::clone(&self.machine), self.command(&how));
        let daemon = blocking(move || {
            for (path, content) in files {
                machine.upload(path, &content, 0o600)?;
            }
            machine.sh("mkdir -p /data/cleat /data/nvme")?;
            machine.daemon(&command, LOG)
        })
        .await?;
        *self.daemon.lock().unwrap_or_else(PoisonError::into_inner) = Some(daemon.clone());
        let up = wait_for(format!("the agent of {} to answer", self.name), START, async || {
            let daemon = daemon.clone();
            if let Some(exit) = blocking(move || daemon.exit()).await? {
                return Ok(Look::Not(format!("it ended: {exit}")));
            }
            self.csi().node_get_info(NodeGetInfoRequest {}).await?;
            Ok(Look::Yes(()))
        })
        .await;
        match up {
            Ok(()) => Ok(()),
            Err(error) => Err(anyhow::Error::from(error).context(self.log_end().await)),
        }
    }

    fn command(&self, how: &AgentStart) -> Command {
        let mut command = Command::new("cleat-agent")
            .args(["--node-id", &self.name, "--csi-socket", Self::CSI_SOCKET])
            .args(["--controller", &format!("{}:{AGENT_PORT}", Network::Management.host_address())])
            .args(["--tls-ca", "/etc/cleat/ca.pem", "--tls-cert", "/etc/cleat/client.pem"])
            .args(["--tls-key", "/etc/cleat/client-key.pem"])
            .args(["--state-dir", "/data/cleat", "--nvme-dir", "/data/nvme", "--nqn-prefix", NQN_PREFIX])
            .args(["--metrics-listen", &format!("0.0.0.0:{METRICS_PORT}")]);
        for network in Network::STORAGE {
            command =
                command.args(["--storage-address".to_owned(), self.machine.address(network).to_string()]);
        }
        command.args(self.arguments.iter().chain(&how.arguments).cloned())
    }

    async fn log_end(&self) -> String {
        let tail = self.sh(&format!("tail -n 5 {LOG}")).await.unwrap_or_else(|error| format!("{error:#}"));
        format!("the agent of {} said last: {tail}", self.name)
    }

    /// The agent's log so far, of all its processes.
    ///
    /// # Errors
    /// If the machine does not answer.
    pub async fn agent_log(&self) -> anyhow::Result<String> {
        let machine = Arc::clone(&self.machine);
        let bytes = blocking(move || machine.download(LOG)).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether the agent was started and has not ended.
    pub async fn agent_runs(&self) -> bool {
        let daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(daemon) = daemon else { return false };
        matches!(blocking(move || daemon.exit()).await, Ok(None))
    }

    /// Kills the agent with -9 and waits until it is gone. Connections and I/O are the kernel's and go on.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn kill_agent(&self) -> anyhow::Result<()> {
        let daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner).take();
        let daemon = daemon.with_context(|| format!("the agent of {} was not started", self.name))?;
        blocking(move || {
            daemon.kill(9)?;
            daemon.wait(Duration::from_secs(10)).map(drop)
        })
        .await
    }

    /// Kills the agent with -9 and starts it again over the same state.
    ///
    /// # Errors
    /// As [`Node::kill_agent`] and [`Node::start_agent`].
    pub async fn restart_agent(&self) -> anyhow::Result<()> {
        self.kill_agent().await?;
        self.start_agent(AgentStart::default()).await
    }

    /// A CSI Node client. It connects again by itself after a restart of the agent.
    #[must_use]
    pub fn csi(&self) -> NodeClient<Channel> {
        NodeClient::new(self.csi.clone())
    }

    /// The agent's metrics.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn metrics(&self) -> anyhow::Result<Metrics> {
        Metrics::scrape(&format!("{}:{METRICS_PORT}", self.machine.address(Network::Management))).await
    }

    /// The host NQN that this node connects with.
    ///
    /// # Errors
    /// If the agent has not made it yet.
    pub async fn host_nqn(&self) -> anyhow::Result<String> {
        self.sh("cat /data/nvme/hostnqn").await
    }

    /// The host id that this node connects with.
    ///
    /// # Errors
    /// If the agent has not made it yet.
    pub async fn host_id(&self) -> anyhow::Result<String> {
        self.sh("cat /data/nvme/hostid").await
    }

    /// Every NVMe controller in the node's sysfs: `(name, subsystem NQN, address, state)`. The address is taken from
    /// `uevent`: reading the attribute `address` while a controller goes can panic the kernel.
    ///
    /// # Errors
    /// If the machine does not answer.
    pub async fn nvme_controllers(&self) -> anyhow::Result<Vec<(String, String, String, String)>> {
        let script = "for c in /sys/class/nvme/nvme*; do [ -e $c/subsysnqn ] || continue; \
                      a=$(sed -n 's/^NVME_TRADDR=/traddr=/p;s/^NVME_TRSVCID=/,trsvcid=/p' $c/uevent | tr -d '\n'); \
                      echo ${c##*/}'|'$(cat $c/subsysnqn)'|'$a'|'$(cat $c/state); done";
        let text = self.sh(script).await?;
        let row = |line: &str| {
            let mut parts = line.splitn(4, '|').map(str::to_owned);
            Some((parts.next()?, parts.next()?, parts.next()?, parts.next()?))
        };
        Ok(text.lines().filter_map(row).collect())
    }

    /// The ids that the target has given to this node's controllers of a subsystem.
    ///
    /// # Errors
    /// If the machine does not answer.
    pub async fn controller_ids(&self, subsystem_nqn: &str) -> anyhow::Result<BTreeSet<u32>> {
        let script = format!(
            "for c in /sys/class/nvme/nvme*; do [ \"$(cat $c/subsysnqn 2>/dev/null)\" = '{subsystem_nqn}' ] || continue; \
             cat $c/cntlid; done"
        );
        let text = self.sh(&script).await?;
        let number = |word: &str| word.parse().with_context(|| format!("{word:?} is no controller's id"));
        text.split_whitespace().map(number).collect()
    }

    /// Where the kubelet stages this volume.
    #[must_use]
    pub fn staging_path(&self, volume: &Volume) -> String {
        format!("{KUBELET}/staging/{}", volume.id)
    }

    /// Where a pod's view of this volume is.
    #[must_use]
    pub fn target_path(&self, volume: &Volume) -> String {
        format!("{KUBELET}/publish/{}/pod", volume.id)
    }

    /// Makes what the kubelet makes: the staging folder, and the target's parent.
    pub(super) async fn make_folders(&self, volume: &Volume) -> anyhow::Result<()> {
        let parent = format!("{KUBELET}/publish/{}", volume.id);
        self.sh(&format!("mkdir -p {} {parent}", self.staging_path(volume))).await.map(drop)
    }

    /// Starts a paced writer on a published volume, in a region of its own; without `start` it opens the device and
    /// waits for [`Writer::go`].
    ///
    /// # Errors
    /// If the writer cannot be started or the device not be opened.
    pub async fn write(
        &self,
        attached: &Attached,
        region: u32,
        start: Option<u64>,
    ) -> anyhow::Result<Writer> {
        let (volume, node) = (record_name(&attached.volume.id)?, record_name(&self.name)?);
        let mut args = WriteArgs::new(&attached.target_path, volume, node, region);
        args.start_seq = start;
        self.write_with(&args).await
    }

    /// Starts a writer with options of the caller's.
    ///
    /// # Errors
    /// As [`Node::write`].
    pub async fn write_with(&self, args: &WriteArgs) -> anyhow::Result<Writer> {
        Writer::start(Arc::clone(&self.machine), args).await
    }
}
