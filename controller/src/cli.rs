//! The command line of `cleat-controller`, and what is made of it.
//!
//! In comes text; out go checked [`Settings`], before any port is bound. Every option is named by what it is about,
//! and an error names the option and the value.

mod fencing;
mod trust;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use cleat_ids::{DEFAULT_DRIVER_NAME, DriverName, NqnPrefix, Portal};
use cleat_kubernetes::serving_ca::CertificateError;
use cleat_rds::{ClusterId, Endpoint, Fingerprint, HostAcl, Naming, NamingError, Trust, VolumePorts};
use cleat_runtime::metrics::Metric;
use cleat_runtime::options::duration;
use cleat_runtime::tls::{ClientKind, ServerTlsArgs, ServerTransport, TlsError};
use cleat_runtime::{Common, Program};
use humantime::format_duration;
use reqwest::Url;

use crate::agents::{self, PathPolicy};
use crate::csi::Serving;
use crate::store::StoreSpec;
use crate::stored::{ClusterSettings, StoreSettings};
use crate::trust::ClusterTrustSettings;
use crate::{metrics, store};
use fencing::{FenceOptions, Fencing};
use trust::TrustOptions;

pub use fencing::FencingError;
pub use trust::TrustBy;

/// CSI controller for NVMe/TCP volumes of a MikroTik ROSE Data Server: says "attached" when a node has proven that it
/// can use the device, and "detached" when it is proven that it cannot write to it any more
#[derive(Parser, Clone, Debug)]
#[command(name = "cleat-controller", version = cleat_runtime::VERSION)]
#[command(
    after_help = "Two commands of their own, each with --help: cleat-controller migrate-store, uninstall-check"
)]
pub struct Cli {
    #[command(flatten)]
    common: Common,

    /// Unix socket on which CSI Identity and Controller are served
    #[arg(long, value_name = "PATH", env = "CLEAT_CSI_SOCKET", help_heading = "Controller")]
    csi_socket: PathBuf,

    /// Address on which agents are served (port 0: any free one)
    #[arg(long, value_name = "ADDR:PORT", env = "CLEAT_AGENT_LISTEN", help_heading = "Controller")]
    agent_listen: SocketAddr,

    /// Address on which operators are served: cleatctl (port 0: any free one)
    #[arg(long, value_name = "ADDR:PORT", env = "CLEAT_OPERATOR_LISTEN", help_heading = "Controller")]
    operator_listen: SocketAddr,

    #[command(flatten)]
    tls: ServerTlsArgs,

    #[command(flatten)]
    trust: TrustOptions,

    /// Where attachments are recorded: file:PATH, on a disk that keeps what was synced; or kubernetes, as custom resources
    /// of the cluster, of which several replicas may run: one leads
    #[arg(long, value_name = "STORE", env = "CLEAT_STORE", help_heading = "Controller")]
    store: StoreSpec,

    #[command(flatten)]
    kubernetes: KubernetesOptions,

    /// Name of the CSI driver; the agents' must be the same
    #[arg(long, value_name = "NAME", default_value = DEFAULT_DRIVER_NAME, value_parser = driver_name, help_heading = "Controller")]
    driver_name: String,

    #[command(flatten)]
    rds: RdsOptions,

    #[command(flatten)]
    agents: AgentOptions,

    #[command(flatten)]
    times: TimeOptions,

    #[command(flatten)]
    fencing: FenceOptions,
}

/// Options for `--store kubernetes` and `--trust kubernetes`.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Kubernetes")]
pub struct KubernetesOptions {
    /// Kubeconfig of the cluster, one file; without it a pod's service account
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,

    /// Namespace of the Lease and of what else is kept beside the records
    #[arg(long, value_name = "NAME", default_value = "cleat-system", env = "CLEAT_NAMESPACE")]
    namespace: String,

    /// The Lease whose holder leads; all replicas name the same one
    #[arg(long, value_name = "NAME", default_value = "cleat-controller")]
    lease_name: String,

    /// How long a replica leads without renewing the Lease, in whole seconds; so long nobody leads after one was killed
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration)]
    lease_duration: Duration,

    /// How long one call of the API server may take
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = duration)]
    api_timeout: Duration,

    /// The name of this replica, as its Lease and what standbys answer have it
    #[arg(long, value_name = "NAME", default_value = "cleat-controller", env = "CLEAT_POD_NAME")]
    pod_name: String,
}

impl KubernetesOptions {
    /// Where the cluster is, and as whom this process asks for its Lease.
    ///
    /// # Errors
    /// The first option that cannot be used, with its value.
    pub fn settings(self, rds_timeout: Duration, driver: &str) -> Result<ClusterSettings, ConfigError> {
        let Self { kubeconfig, namespace, lease_name, lease_duration, api_timeout, pod_name } = self;
        at_least("--api-timeout", api_timeout, Duration::from_millis(100))?;
        // A Lease says its time in seconds, and is renewed when a third of it has passed; what is sent right before that has
        // to arrive while it holds.
        let longest = rds_timeout.max(api_timeout);
        let least = longest * 2 + Duration::from_secs(1);
        at_least("--lease-duration", lease_duration, Duration::from_secs(least.as_secs()))?;
        at_most("--lease-duration", lease_duration, Duration::from_secs(600))?;
        if lease_duration.subsec_nanos() != 0 {
            let (value, rule) =
                (format_duration(lease_duration).to_string(), "it has to be whole seconds".to_owned());
            return Err(ConfigError::Value { option: "--lease-duration", value, rule });
        }
        Ok(ClusterSettings {
            kubeconfig,
            api_timeout,
            namespace,
            lease: lease_name,
            lease_duration,
            identity: format!("{pod_name}_{}", uuid::Uuid::new_v4()),
            driver: driver.to_owned(),
        })
    }
}

/// Options for the RDS.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "RDS")]
struct RdsOptions {
    /// REST address of the RDS, `https://HOST[:PORT]`
    #[arg(long, value_name = "URL", env = "CLEAT_RDS_URL")]
    rds_url: Url,

    /// RouterOS user
    #[arg(long, value_name = "NAME", default_value = "cleat", env = "CLEAT_RDS_USER")]
    rds_user: String,

    /// File that holds the user's password; read again when the RDS does not accept it
    #[arg(long, value_name = "FILE", env = "CLEAT_RDS_PASSWORD_FILE")]
    rds_password_file: PathBuf,

    /// CA that signed the RDS's certificate, PEM
    #[arg(long, value_name = "FILE", conflicts_with = "rds_fingerprint")]
    rds_ca: Option<PathBuf>,

    /// SHA-256 fingerprint of the RDS's own certificate, instead of a CA
    #[arg(long, value_name = "HEX")]
    rds_fingerprint: Option<Fingerprint>,

    /// How long one request to the RDS may take
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    rds_timeout: Duration,

    /// How long a write without an answer may still take effect once the RDS has received it (RouterOS gives up a REST
    /// command after 60 s); what was not received within --rds-timeout is dropped by the kernel
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    rds_settle: Duration,

    /// Directory on the RDS for the volumes' files; nothing outside of it is touched
    #[arg(long, value_name = "PATH", env = "CLEAT_RDS_FILES")]
    rds_files: String,

    /// The name of this cluster, which no other cluster on the same RDS may have. Each volume that is made is marked with
    /// it on the RDS, and no other is listed, changed or deleted. It must stay the same: under another name the
    /// volumes would be somebody else's
    #[arg(long, value_name = "ID", env = "CLEAT_CLUSTER_ID")]
    cluster_id: ClusterId,

    /// Address and port at which the RDS serves volumes to hosts; once for each path. A volume is exported at one
    /// port on all addresses, so the ports must be the same
    #[arg(long = "rds-portal", value_name = "ADDR:PORT", required = true, value_parser = Portal::parse)]
    rds_portals: Vec<Portal>,

    /// Ports of which each volume that is made gets one for itself; without, all are exported at the portals' port.
    /// A fence takes a volume's export off for a moment, and a node that goes on using the volume keeps it over that
    /// only where nothing else is exported at the same port: else kernels from 6.10 on are asked not to come back, and
    /// the node gets I/O errors
    #[arg(long, value_name = "FIRST-LAST")]
    rds_volume_ports: Option<VolumePorts>,

    /// What precedes the volume id in a subsystem NQN; nothing else is ever touched. The agents' must be the same
    #[arg(long, value_name = "NQN", default_value = "nqn.2026-01.io.cleat:", value_parser = NqnPrefix::parse)]
    nqn_prefix: NqnPrefix,

    /// How the RDS limits which hosts may connect to a volume. `list` keeps the host NQNs of the volume's nodes on its
    /// disk; but whether RouterOS takes more than one there, and compares them with the host NQN, is not known until
    /// it has been probed on the device, and a list that is understood otherwise keeps the right nodes out. So the
    /// default is what --rds-abilities say, and `none` without: then whoever reaches a portal may connect, and the
    /// networks have to keep others away
    #[arg(long, value_enum)]
    host_acl: Option<HostAcl>,
}

/// Options for agents.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Agents")]
struct AgentOptions {
    /// How many portals must have a live path for a volume to be ready. With `any`, a VM starts, and moves, while one
    /// of two storage networks is down, which is what the second network is for; the loss is reported as Degraded
    #[arg(long, value_enum, default_value_t)]
    path_policy: PathPolicy,

    /// How long an agent may take to connect a volume and prove that it can be used
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = duration)]
    attach_deadline: Duration,

    /// How long an agent may take to detach a volume before it says what it waits for (it goes on)
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    detach_deadline: Duration,

    /// A session on which nothing was heard for so long is lost
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    silence_deadline: Duration,

    /// Between two heartbeats, both ways
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    heartbeat_interval: Duration,
}

/// Options for times and limits.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Decisions")]
struct TimeOptions {
    /// How long a Publish waits for a detach elsewhere that is under way, instead of being refused
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    detach_grace_period: Duration,

    /// How long the holder of a backup or a snapshot has to let go of a volume, once a workload wants it elsewhere or it is
    /// to be detached, at most half of --request-limit [default: 30s, or that half]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    interrupt_grace: Option<Duration>,

    /// The longest that the RDS may hold a write that it has received before it lands, at most 5min: waited out where
    /// nothing better proves that nothing is on its way any more
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    drain_bound: Duration,

    /// How long any call may wait before it is refused naming what it waits for (that goes on, and a repeat joins it)
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    request_limit: Duration,

    /// Between two tries of something that failed
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    retry_interval: Duration,
}

/// Everything that was asked for, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where CSI is served.
    pub csi_socket: PathBuf,
    /// Where agents are served.
    pub agent_listen: SocketAddr,
    /// How agents talk to us.
    pub agent_transport: ServerTransport,
    /// Where operators are served.
    pub operator_listen: SocketAddr,
    /// How operators talk to us.
    pub operator_transport: ServerTransport,
    /// What the cluster is asked with about both, where it is asked.
    pub trust: Option<ClusterTrustSettings>,
    /// Where records are kept.
    pub store: StoreSettings,
    /// Name of the CSI driver.
    pub driver_name: String,
    /// The RDS.
    pub rds: cleat_rds::Config,
    /// Ports of which each volume gets its own.
    pub volume_ports: Option<VolumePorts>,
    /// How volumes are served to hosts.
    pub serving: Serving,
    /// What agents are sent.
    pub agents: agents::AgentSettings,
    /// Times that decide.
    pub core: cleat_core::Config,
    /// How long a change of a host list may take, with all its requests and their turns.
    pub rds_deadline: Duration,
}

/// Why a command line makes no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that cannot be used.
    #[error("cannot use {option} {value}: {rule}")]
    Value {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// The rule that it breaks.
        rule: String,
    },
    /// What fencing rests on.
    #[error(transparent)]
    Fencing(#[from] FencingError),
    /// Nothing says how to know the RDS.
    #[error("cannot know the RDS: neither --rds-ca nor --rds-fingerprint is given; choose one")]
    NoTrust,
    /// The directory on the RDS, or the NQN prefix.
    #[error("cannot use --rds-files or --nqn-prefix")]
    Naming(#[from] NamingError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Certificates from files, and those of the cluster.
    #[error(
        "cannot use {option} with --trust kubernetes: that makes its own certificate, and asks the API server about everybody; leave out one of the two"
    )]
    BothWays {
        /// What was given too.
        option: &'static str,
    },
    /// No certificate can carry that name.
    #[error("cannot use --serving-name {name}")]
    ServingName {
        /// The name.
        name: String,
        /// What is wrong with it.
        #[source]
        source: CertificateError,
    },
}

/// One change of a host list is a read, at most two writes each read back, and each may wait its turn three times as
/// long as it may take; one that takes an export off may be answered as late as the RDS still carries it out. The RDS
/// client keeps to this by itself; this is the fence behind it.
const REQUESTS_OF_A_CHANGE: u32 = 5 * 4;
/// Between two denials of a volume that the RDS's list lacks, of which it takes three: a list that is rebuilt is not
/// wrong for as long.
const ABSENCE_PAUSE: Duration = Duration::from_secs(2);

impl Cli {
    /// Checks what was asked for.
    ///
    /// # Errors
    /// The first option that cannot be used, with its value.
    pub fn settings(self) -> Result<Settings, ConfigError> {
        let Self {
            common: _,
            csi_socket,
            agent_listen,
            operator_listen,
            tls,
            trust: known_by,
            store,
            kubernetes,
            driver_name,
            rds,
            agents,
            times,
            fencing,
        } = self;
        let RdsOptions {
            rds_url,
            rds_user,
            rds_password_file,
            rds_ca,
            rds_fingerprint,
            rds_timeout,
            rds_settle,
            rds_files,
            cluster_id,
            rds_portals,
            rds_volume_ports,
            nqn_prefix,
            host_acl,
        } = rds;
        let trust = match (rds_ca, rds_fingerprint) {
            (Some(ca), _) => Trust::Ca(ca),
            (None, Some(fingerprint)) => Trust::Pinned(fingerprint),
            (None, None) => return Err(ConfigError::NoTrust),
        };
        at_least("--rds-timeout", rds_timeout, Duration::from_millis(10))?;
        let of_cluster = kubernetes.clone();
        let store = match store {
            StoreSpec::File(path) => StoreSettings::File(path),
            StoreSpec::Kubernetes => {
                StoreSettings::Kubernetes(kubernetes.settings(rds_timeout, &driver_name)?)
            }
        };
        let port = common_port(&rds_portals)?;
        let endpoint = Endpoint {
            url: rds_url,
            user: rds_user,
            password_file: rds_password_file,
            trust,
            timeout: rds_timeout,
        };
        let naming = Naming::new(&rds_files, nqn_prefix.as_str(), cluster_id)?;
        let listen = [(ClientKind::Node, agent_listen), (ClientKind::Operator, operator_listen)];
        let ([agent_transport, operator_transport], trust_by) =
            known_by.settings(&of_cluster, &tls, listen)?;
        let Fencing { host_acl, target, fence_after_ms, fence_heard_after_ms, secrets } =
            fencing.settings(&endpoint.url, host_acl, &agent_transport)?;
        let rds = cleat_rds::Config {
            endpoint,
            naming,
            port,
            host_acl,
            settle: rds_settle,
            absence_pause: ABSENCE_PAUSE,
        };
        Ok(Settings {
            csi_socket,
            agent_listen,
            agent_transport,
            operator_listen,
            operator_transport,
            trust: trust_by,
            store,
            driver_name,
            rds,
            volume_ports: rds_volume_ports,
            serving: Serving { nqn_prefix: nqn_prefix.clone(), portals: rds_portals },
            agents: agents::AgentSettings { secrets, ..agents.settings(nqn_prefix)? },
            core: cleat_core::Config { target, fence_after_ms, fence_heard_after_ms, ..times.config()? },
            rds_deadline: rds_timeout * REQUESTS_OF_A_CHANGE + rds_settle,
        })
    }
}

impl AgentOptions {
    fn settings(self, nqn_prefix: NqnPrefix) -> Result<agents::AgentSettings, ConfigError> {
        let Self { path_policy, attach_deadline, detach_deadline, silence_deadline, heartbeat_interval } =
            self;
        at_least("--attach-deadline", attach_deadline, Duration::from_millis(100))?;
        at_least("--detach-deadline", detach_deadline, Duration::from_millis(100))?;
        at_least("--heartbeat-interval", heartbeat_interval, Duration::from_millis(20))?;
        at_most("--heartbeat-interval", heartbeat_interval, Duration::from_secs(60))?;
        at_most("--attach-deadline", attach_deadline, Duration::from_secs(3600))?;
        at_most("--detach-deadline", detach_deadline, Duration::from_secs(3600))?;
        // One heartbeat may be late; a silence that a single lost one makes would end sessions for nothing.
        at_least("--silence-deadline", silence_deadline, heartbeat_interval * 2)?;
        Ok(agents::AgentSettings {
            nqn_prefix,
            path_policy,
            attach_deadline,
            detach_deadline,
            heartbeat_interval,
            silence_deadline,
            secrets: None,
        })
    }
}

impl TimeOptions {
    fn config(self) -> Result<cleat_core::Config, ConfigError> {
        let Self { detach_grace_period, interrupt_grace, drain_bound, request_limit, retry_interval } = self;
        at_least("--request-limit", request_limit, Duration::from_secs(1))?;
        // Who waits for the interrupted has to be there still when their time is over.
        let longest_grace = request_limit / 2;
        let interrupt_grace = interrupt_grace.unwrap_or(longest_grace.min(Duration::from_secs(30)));
        at_most("--interrupt-grace", interrupt_grace, longest_grace)?;
        // For so long an agent remembers that a connection had broken (`agent/src/volume/observe/disconnects.rs`).
        at_most("--drain-bound", drain_bound, Duration::from_secs(300))?;
        at_least("--retry-interval", retry_interval, Duration::from_millis(100))?;
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Ok(cleat_core::Config {
            detach_grace_ms: millis(detach_grace_period),
            request_limit_ms: millis(request_limit),
            interrupt_grace_ms: millis(interrupt_grace),
            drain_bound_ms: millis(drain_bound),
            retry_ms: millis(retry_interval),
            ..cleat_core::Config::default()
        })
    }
}

fn at_least(option: &'static str, value: Duration, least: Duration) -> Result<(), ConfigError> {
    if value >= least {
        return Ok(());
    }
    let rule = format!("it has to be at least {}", format_duration(least));
    Err(ConfigError::Value { option, value: format_duration(value).to_string(), rule })
}

fn at_most(option: &'static str, value: Duration, most: Duration) -> Result<(), ConfigError> {
    if value <= most {
        return Ok(());
    }
    let rule = format!("it has to be at most {}", format_duration(most));
    Err(ConfigError::Value { option, value: format_duration(value).to_string(), rule })
}

/// The one port of all portals.
fn common_port(portals: &[Portal]) -> Result<u16, ConfigError> {
    let wrong = |portal: &Portal, rule: &str| {
        Err(ConfigError::Value { option: "--rds-portal", value: portal.to_string(), rule: rule.to_owned() })
    };
    let mut seen = BTreeSet::new();
    let mut port = None;
    for portal in portals {
        if !seen.insert(portal) {
            return wrong(portal, "it is given twice; leave one out");
        }
        if port.is_some_and(|port| port != portal.port()) {
            return wrong(
                portal,
                "its port differs from the portal's before; the RDS exports a volume at one port",
            );
        }
        port = Some(portal.port());
    }
    match port {
        Some(port) => Ok(port),
        None => Err(ConfigError::Value {
            option: "--rds-portal",
            value: "(none)".to_owned(),
            rule: "give at least one".to_owned(),
        }),
    }
}

fn driver_name(name: &str) -> Result<String, String> {
    DriverName::parse(name).map(String::from).map_err(|error| format!("it {}; {}", error.rule, error.action))
}

impl Program for Cli {
    const NAME: &'static str = "cleat-controller";
    const METRICS: &'static [&'static [Metric]] = &[metrics::METRICS, store::METRICS, cleat_rds::METRICS];

    fn common(&self) -> &Common {
        &self.common
    }
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
