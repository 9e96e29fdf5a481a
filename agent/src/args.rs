//! The command line, and the configuration made of it.
//!
//! Comes in: flags and environment. Goes out: a [`Config`] whose every value was checked, before any port is bound.
//!
//! Always holds: [`Args`] is destructured by name, so that an option that nobody reads does not compile. A
//! wrong value is reported with its option and ends the program with 64.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use cleat_host::fabrics::{Choice, ConnectOptions, LossTimeout};
use cleat_ids::{DEFAULT_DRIVER_NAME, DriverName, IdError, StorageAddress};
use cleat_runtime::grpc::{ChannelError, Keepalive, Renewing};
use cleat_runtime::metrics::Metric;
use cleat_runtime::options::{duration, duration_within, whole_seconds};
use cleat_runtime::program::Common;
use cleat_runtime::tls::ClientTlsArgs;
use cleat_runtime::{Failure, Program};

use crate::metrics;
use crate::name::{NodeId, NqnPrefix};
use crate::session::token::TokenFile;

const DAY_S: u64 = 86_400;
const SWEEP: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);

/// The node agent of Cleat: connects, proves and disconnects NVMe/TCP volumes
#[derive(Parser, Debug)]
#[command(name = "cleat-agent", version = cleat_runtime::VERSION)]
pub struct Args {
    #[command(flatten)]
    common: Common,

    #[command(flatten)]
    tls: ClientTlsArgs,

    /// Name of this node, as the orchestrator knows it
    #[arg(long, value_name = "NAME", env = "CLEAT_NODE_ID")]
    node_id: NodeId,

    /// Unix socket of the CSI services
    #[arg(long, value_name = "PATH", default_value = "/csi/csi.sock", value_parser = absolute)]
    csi_socket: PathBuf,

    /// Name of the CSI driver; must be the controller's
    #[arg(long, value_name = "NAME", default_value = DEFAULT_DRIVER_NAME, value_parser = driver_name)]
    driver_name: String,

    /// File with the token by which a controller with --trust kubernetes knows this agent (a projected service account
    /// token), instead of a certificate; read again when it changes
    #[arg(long, value_name = "PATH", env = "CLEAT_TOKEN_FILE", requires = "tls_ca", conflicts_with_all = ["tls_cert", "plaintext"], help_heading = "TLS")]
    token_file: Option<PathBuf>,

    /// Address at which a controller serves agents; may be given more than once, and a name may mean several addresses: each
    /// is asked until the one that leads is found
    #[arg(
        long = "controller",
        value_name = "HOST:PORT",
        env = "CLEAT_CONTROLLER",
        required = true,
        value_delimiter = ','
    )]
    controllers: Vec<String>,

    /// Directory of the ledger; must survive a restart of this node
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cleat", value_parser = absolute)]
    state_dir: PathBuf,

    /// Directory of this host's NVMe identity (hostnqn, hostid), which is made there if missing
    #[arg(long, value_name = "DIR", default_value = "/etc/nvme", value_parser = absolute)]
    nvme_dir: PathBuf,

    /// Where the kubelet keeps its pods' volumes (its --root-dir): volumes are published only below it
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet", value_parser = absolute)]
    kubelet_dir: PathBuf,

    /// Where the kubelet looks for plug-ins (plugins_registry in its --root-dir): the agent registers itself there. Without
    /// it, something else has to
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    kubelet_registration_dir: Option<PathBuf>,

    /// Which interface makes connections
    #[arg(long, value_name = "kernel|nvme-cli|auto", default_value = "auto")]
    fabrics: Choice,

    /// Prefix of subsystem NQNs; nothing else is ever touched. Must be the controller's
    #[arg(long, value_name = "NQN", default_value = "nqn.2026-01.io.cleat:", value_parser = NqnPrefix::parse)]
    nqn_prefix: NqnPrefix,

    /// Address of this node on a storage network; may be given more than once [default: what the host's interfaces
    /// show]
    #[arg(long, value_name = "IP", value_parser = storage_address)]
    storage_address: Vec<IpAddr>,

    /// How long the kernel tries to get a connection back before it gives it up, in whole seconds, or `never`
    ///
    /// Queued writes are replayed when a network returns: `never` is safe only where every fence is made at the
    /// target.
    #[arg(long, value_name = "DURATION", default_value = "600s", value_parser = loss_timeout)]
    ctrl_loss_timeout: LossTimeout,

    /// Time between two attempts of the kernel to restore a connection, in whole seconds
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = whole_seconds(1..=DAY_S))]
    reconnect_delay: Duration,

    /// How long a connection may be silent before the kernel counts it as lost, in whole seconds
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = whole_seconds(1..=DAY_S))]
    keep_alive: Duration,

    /// Reset a path that is dead by two independent signs before its keep-alive has run out, while another one is live
    ///
    /// A write that waits goes on after a second or so, not after ten. The target may still carry out what it had received
    /// on the dead path, after later writes: read docs/operating.md, "A path that is dead", before you set this.
    #[arg(long)]
    early_path_reset: bool,

    /// How long a device stays that has lost its last path, in whole seconds (kernels from about 6.16)
    ///
    /// Writes wait for that long before they fail, and a detach that follows takes that much longer. 0s: it goes at
    /// once.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = whole_seconds(0..=3600))]
    lost_device_stay: Duration,

    /// I/O queues of each path; each is a TCP connection and adds to the time of a connect
    #[arg(long, value_name = "NUMBER", default_value = "4", value_parser = clap::value_parser!(u32).range(1..=128))]
    nr_io_queues: u32,

    /// How many volumes this node may have at once; 0: no limit but the 1024 that a node may have in any case
    ///
    /// The orchestrator's scheduler goes by it, and the controller grants no more than that. What is being detached counts
    /// until it is gone.
    #[arg(long, value_name = "NUMBER", default_value = "0", value_parser = clap::value_parser!(u32).range(0..=1024))]
    max_volumes: u32,

    /// Time between two full reads of the kernel's state, which do not rely on its events
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration_within(SWEEP))]
    sweep_interval: Duration,

    /// How long NodeStageVolume waits for the device before it answers Unavailable
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    stage_wait: Duration,

    /// Root of the sysfs tree, for tests
    #[arg(long, value_name = "DIR", default_value = "/sys", hide = true, value_parser = absolute)]
    sysfs_root: PathBuf,

    /// Root of the proc tree, for tests
    #[arg(long, value_name = "DIR", default_value = "/proc", hide = true, value_parser = absolute)]
    proc_root: PathBuf,

    /// Root of the device nodes, for tests
    #[arg(long, value_name = "DIR", default_value = "/dev", hide = true, value_parser = absolute)]
    dev_root: PathBuf,
}

impl Program for Args {
    const NAME: &'static str = "cleat-agent";
    const METRICS: &'static [&'static [Metric]] = &[metrics::METRICS];

    fn common(&self) -> &Common {
        &self.common
    }
}

/// Where the kernel's trees are mounted.
#[derive(Debug, Clone)]
pub struct Roots {
    /// The sysfs tree, usually `/sys`.
    pub sysfs: PathBuf,
    /// The proc tree, usually `/proc`.
    pub proc: PathBuf,
    /// The device nodes, usually `/dev`.
    pub dev: PathBuf,
}

/// Every option of the agent, checked.
#[derive(Debug)]
pub struct Config {
    /// This node's name, as the orchestrator knows it.
    pub node_id: NodeId,
    /// Path of the Unix socket on which CSI is served.
    pub csi_socket: PathBuf,
    /// Name of the CSI driver, the same as the controller's.
    pub driver_name: String,
    /// How to connect to each controller; TLS files are read again for each connection.
    pub controllers: Vec<Renewing>,
    /// What says who this agent is, where no certificate does.
    pub token: Option<TokenFile>,
    /// Directory of the ledger; it survives a restart of the node.
    pub state_dir: PathBuf,
    /// Directory of `hostnqn` and `hostid`.
    pub nvme_dir: PathBuf,
    /// The kubelet's root directory: volumes are published only below it.
    pub kubelet_dir: PathBuf,
    /// Where the kubelet looks for plug-ins; `None`: the agent does not register itself.
    pub registration_dir: Option<PathBuf>,
    /// Which interface makes connections.
    pub fabrics: Choice,
    /// The beginning of our subsystems' NQNs, which tells them from others.
    pub prefix: NqnPrefix,
    /// Addresses on the storage networks; empty where they have to be found.
    pub storage_addresses: Vec<IpAddr>,
    /// The kernel's settings for connections.
    pub connect: ConnectOptions,
    /// How many volumes this node may have at once; zero: no limit.
    pub max_volumes: u32,
    /// Time between two sweeps, which trust no event.
    pub sweep_interval: Duration,
    /// How long NodeStageVolume waits for the device.
    pub stage_wait: Duration,
    /// How long a device stays after losing its last path; zero: it goes at once.
    pub lost_device_stay: Duration,
    /// Whether a path that is dead is reset before its keep-alive has run out.
    pub early_path_reset: bool,
    /// Where the kernel's trees are mounted.
    pub roots: Roots,
}

/// What is wrong with a command line although each of its values is valid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The controller's address or the TLS files cannot be used.
    #[error("cannot use --controller")]
    Channel(#[from] ChannelError),
    /// The controller's address has no port.
    #[error("cannot use --controller {0:?}: give HOST:PORT")]
    Controller(String),
    /// The kernel would give up a connection before it tries to restore it.
    #[error(
        "cannot use --ctrl-loss-timeout {loss:?}: it is shorter than --reconnect-delay {delay:?}; give a longer one"
    )]
    Loss {
        /// The value of `--ctrl-loss-timeout`.
        loss: Duration,
        /// The value of `--reconnect-delay`.
        delay: Duration,
    },
}

impl Args {
    /// Checks what single values cannot show, and reads the files that the options name.
    ///
    /// # Errors
    /// [`ConfigError`], as a failure that ends the program with 64.
    pub fn into_config(self) -> Result<Config, Failure> {
        self.check().map_err(Failure::config)
    }

    fn check(self) -> Result<Config, ConfigError> {
        let Self {
            // The runtime has read these before this program starts.
            common: Common { logs: _, http: _, shutdown_timeout: _ },
            tls,
            node_id,
            csi_socket,
            driver_name,
            token_file,
            controllers,
            state_dir,
            nvme_dir,
            kubelet_dir,
            kubelet_registration_dir: registration_dir,
            fabrics,
            nqn_prefix: prefix,
            storage_address: storage_addresses,
            ctrl_loss_timeout,
            reconnect_delay,
            keep_alive,
            early_path_reset,
            nr_io_queues,
            max_volumes,
            sweep_interval,
            stage_wait,
            lost_device_stay,
            sysfs_root,
            proc_root,
            dev_root,
        } = self;
        for controller in &controllers {
            let port = controller.rsplit_once(':').and_then(|(host, port)| {
                (!host.is_empty()).then(|| port.parse::<u16>().ok().filter(|port| *port != 0)).flatten()
            });
            if port.is_none() {
                return Err(ConfigError::Controller(controller.clone()));
            }
        }
        if let LossTimeout::After(loss) = ctrl_loss_timeout
            && loss < reconnect_delay
        {
            return Err(ConfigError::Loss { loss, delay: reconnect_delay });
        }
        let named = controllers.iter().map(|name| Renewing::new(name, &tls, Keepalive::default()));
        let controllers = named.collect::<Result<_, _>>()?;
        Ok(Config {
            node_id,
            csi_socket,
            driver_name,
            controllers,
            token: token_file.map(TokenFile),
            state_dir,
            nvme_dir,
            kubelet_dir,
            registration_dir,
            fabrics,
            prefix,
            storage_addresses,
            connect: ConnectOptions {
                nr_io_queues: Some(nr_io_queues),
                reconnect_delay: Some(reconnect_delay),
                ctrl_loss_tmo: Some(ctrl_loss_timeout),
                keep_alive_tmo: Some(keep_alive),
                fast_io_fail_tmo: None,
            },
            max_volumes,
            sweep_interval,
            stage_wait,
            lost_device_stay,
            early_path_reset,
            roots: Roots { sysfs: sysfs_root, proc: proc_root, dev: dev_root },
        })
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("not an absolute path".into()) }
}

fn driver_name(text: &str) -> Result<String, String> {
    DriverName::parse(text).map(String::from).map_err(|error| format!("it {}; {}", error.rule, error.action))
}

fn loss_timeout(text: &str) -> Result<LossTimeout, String> {
    match text {
        "never" => Ok(LossTimeout::Never),
        _ => whole_seconds(1..=DAY_S)(text)
            .map(LossTimeout::After)
            .map_err(|error| format!("{error}, or never")),
    }
}

/// Accepts only an address that the controller accepts too.
fn storage_address(text: &str) -> Result<IpAddr, IdError> {
    StorageAddress::parse(text).map(|address| address.ip())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    const GOOD: [&str; 6] =
        ["cleat-agent", "--node-id", "node-a", "--controller", "10.0.0.1:7000", "--plaintext"];

    fn parse(more: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(GOOD.iter().chain(more))
    }

    #[tokio::test]
    async fn a_plain_command_line_gives_a_whole_configuration() {
        let config = parse(&["--ctrl-loss-timeout", "never"]).unwrap().into_config().unwrap();
        assert_eq!(config.node_id.as_str(), "node-a");
        assert_eq!(config.connect.ctrl_loss_tmo, Some(LossTimeout::Never));
        assert_eq!(config.connect.nr_io_queues, Some(4));
        assert_eq!(config.max_volumes, 0);
        assert!(!config.early_path_reset, "off unless it is asked for");
        assert_eq!(config.lost_device_stay, Duration::from_secs(30));
        assert_eq!(config.prefix.as_str(), "nqn.2026-01.io.cleat:");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_flag() {
        for (flag, value) in [
            ("--csi-socket", "csi.sock"),
            ("--kubelet-dir", "kubelet"),
            ("--kubelet-registration-dir", "plugins_registry"),
            ("--nqn-prefix", "nqn.2026-01.io.cleat"),
            ("--storage-address", "eth0"),
            ("--storage-address", "0.0.0.0"),
            ("--fabrics", "magic"),
            ("--ctrl-loss-timeout", "600"),
            ("--reconnect-delay", "0s"),
            ("--lost-device-stay", "1500ms"),
            ("--lost-device-stay", "3601s"),
            ("--nr-io-queues", "0"),
            ("--max-volumes", "1025"),
            ("--sweep-interval", "50ms"),
            ("--driver-name", "cleat io"),
        ] {
            let error = parse(&[&format!("{flag}={value}")]).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(flag) && text.contains(value), "{text}");
        }
    }

    /// The arguments of our container in a file of `deploy`, by whatever template they are made.
    fn deployed(file: &str) -> Vec<String> {
        let path = format!("{}/../deploy/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let container = text.split("- name: agent\n          image:").nth(1).unwrap();
        let args = container.split_once("args:\n").unwrap().1.split_once("\n          env:").unwrap().0;
        let args = args.lines().filter_map(|line| line.trim_start().strip_prefix("- --"));
        args.map(|arg| format!("--{}", arg.replace(['$', '(', ')'], ""))).collect()
    }

    #[test]
    fn every_argument_that_is_deployed_is_known_and_what_is_needed_is_there() {
        let known = Args::command();
        let known: Vec<&str> = known.get_arguments().filter_map(clap::Arg::get_long).collect();
        let all = deployed("chart/templates/agent.yaml");
        assert!(all.len() > 9, "{all:?}");
        for arg in all {
            let name = arg.trim_start_matches("--").split('=').next().unwrap();
            assert!(known.contains(&name), "the chart gives --{name}, which is no option");
        }
        let args = deployed("manifests/cleat.yaml");
        Args::try_parse_from(std::iter::once("agent".to_owned()).chain(args)).unwrap();
    }

    #[tokio::test]
    async fn what_only_shows_together_is_named_too_and_ends_with_64() {
        let base = ["cleat-agent", "--node-id", "node-a"];
        for (more, said) in [
            (&["--controller", "c:7000"][..], "--plaintext"),
            (&["--controller", "c", "--plaintext"][..], "\"c\""),
            (&["--controller", ":7000", "--plaintext"][..], "HOST:PORT"),
            (
                &[
                    "--controller",
                    "c:1",
                    "--plaintext",
                    "--reconnect-delay",
                    "9s",
                    "--ctrl-loss-timeout",
                    "8s",
                ][..],
                "--ctrl-loss-timeout",
            ),
        ] {
            let args = Args::try_parse_from(base.iter().chain(more)).unwrap();
            let failure = args.into_config().unwrap_err();
            assert_eq!(failure.code(), 64);
            assert!(failure.to_string().contains(said), "{failure}");
        }
    }
}
