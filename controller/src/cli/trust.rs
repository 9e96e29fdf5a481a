//! How agents and operators are known: by certificates from files, or by the cluster that they live in.
//!
//! In come the options; out go the transports of both listeners, and what the cluster is asked with. What always holds: of
//! two ways that exclude each other one is chosen, and an option of the other one is named, not left unread.

use std::net::SocketAddr;
use std::time::Duration;

use cleat_kubernetes::serving_ca;
use cleat_runtime::tls::{ClientKind, IssuedTls, ServerTlsArgs, ServerTransport};

use super::{ConfigError, KubernetesOptions, at_least};
use crate::trust::{ClusterTrustSettings, ServingTimes};

/// How agents and operators are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum TrustBy {
    /// By certificates of two CAs that are given as files.
    #[default]
    Certificates,
    /// By the API server: agents by their service account's tokens, operators by their own identity in the cluster.
    Kubernetes,
}

/// Options for how agents and operators are known.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Who is who")]
pub(super) struct TrustOptions {
    /// How agents and operators are known. `kubernetes`: agents by projected tokens of their service account, each for the
    /// node that it was made for; operators by their token or client certificate of the cluster, and by its RBAC; the
    /// controller's own certificate comes from a CA that it keeps in a Secret. `certificates`: by --tls-cert and the
    /// other files
    #[arg(long, value_enum, default_value_t, value_name = "WAY", env = "CLEAT_TRUST")]
    trust: TrustBy,

    /// Secret of --namespace in which the CA of the controller's certificate is kept; it is made if it is not there
    #[arg(long, value_name = "NAME", default_value = "cleat-ca")]
    ca_secret: String,

    /// ConfigMap of --namespace in which that CA is published for agents and operators (key ca.crt)
    #[arg(long, value_name = "NAME", default_value = "cleat-ca")]
    ca_configmap: String,

    /// A name (or an address) that the controller's certificate is for; may be given more than once
    /// [default: cleat-controller.NAMESPACE.svc]
    #[arg(long = "serving-name", value_name = "NAME")]
    serving_names: Vec<String>,

    /// Audience of the agents' tokens
    #[arg(long, value_name = "AUDIENCE", default_value = "cleat.io")]
    token_audience: String,

    /// Service account of the agents, in --namespace: no other account's token speaks for a node
    #[arg(long, value_name = "NAME", default_value = "cleat-agent")]
    agent_service_account: String,
}

impl TrustOptions {
    pub(super) fn settings(
        self,
        cluster: &KubernetesOptions,
        tls: &ServerTlsArgs,
        listen: [(ClientKind, SocketAddr); 2],
    ) -> Result<([ServerTransport; 2], Option<ClusterTrustSettings>), ConfigError> {
        let Self { trust, ca_secret, ca_configmap, mut serving_names, token_audience, agent_service_account } =
            self;
        if trust == TrustBy::Certificates {
            let [agents, operators] = listen.map(|(kind, address)| tls.load(kind, address));
            return Ok(([agents?, operators?], None));
        }
        if let Some(option) = tls.given() {
            return Err(ConfigError::BothWays { option });
        }
        let KubernetesOptions { kubeconfig, namespace, api_timeout, .. } = cluster.clone();
        if serving_names.is_empty() {
            serving_names.push(format!("cleat-controller.{namespace}.svc"));
        }
        for name in &serving_names {
            let wrong = |source| ConfigError::ServingName { name: name.clone(), source };
            serving_ca::check_name(name).map_err(wrong)?;
        }
        at_least("--api-timeout", api_timeout, Duration::from_millis(100))?;
        let settings = ClusterTrustSettings {
            kubeconfig,
            api_timeout,
            namespace,
            ca_secret,
            ca_configmap,
            serving_names,
            token_audience,
            agent_service_account,
            times: ServingTimes::default(),
        };
        let [agents, operators] = [(); 2].map(|()| ServerTransport::Issued(IssuedTls::default()));
        Ok(([agents, operators], Some(settings)))
    }
}
