//! As whom the controller is asked: by a certificate from files, or as the user of a kubeconfig.
//!
//! In come options; out go the transport to the controller, and the token that each call carries, where there is one. What
//! holds: of two identities that were asked for none is left out, and a token goes over TLS alone, to who shows a
//! certificate of the controller's CA.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use cleat_kubernetes::identity::{Kubectl, Person};
use cleat_runtime::tls::{ClientTlsArgs, ClientTransport};
use tonic::metadata::{Ascii, MetadataValue};

use crate::client::AskError;

/// Options for who the cluster says that we are.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Kubernetes")]
pub(crate) struct ClusterArgs {
    /// Kubeconfig whose user you are, instead of --tls-cert and --tls-key, for a controller with --trust kubernetes [default:
    /// KUBECONFIG, where that is set]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,

    /// Namespace of the controller, where its CA is read
    #[arg(long, value_name = "NAME", default_value = "cleat-system", env = "CLEAT_NAMESPACE")]
    namespace: String,

    /// ConfigMap of that namespace with the controller's CA; not read with --tls-ca
    #[arg(long, value_name = "NAME", default_value = "cleat-ca")]
    ca_configmap: String,
}

/// What is sent with each call.
pub(crate) type Bearer = MetadataValue<Ascii>;

/// What connects to the controller, and what each call carries.
pub(crate) async fn settle(
    tls: &ClientTlsArgs,
    cluster: &ClusterArgs,
    timeout: Duration,
) -> Result<(ClientTransport, Option<Bearer>), AskError> {
    let by_files = tls.plaintext || tls.tls_cert.is_some() || tls.tls_key.is_some();
    let asked_for = cluster.kubeconfig.is_some() || cluster.context.is_some();
    if asked_for && by_files {
        return Err(AskError::TwoIdentities);
    }
    let usual = || std::env::var_os("KUBECONFIG").is_some_and(|file| !file.is_empty());
    if by_files || !(asked_for || usual()) {
        return Ok((tls.load()?, None));
    }
    cleat_runtime::tls::install_provider();
    let kubectl = Kubectl::read(cluster.kubeconfig.as_deref(), cluster.context.as_deref()).await?;
    let ca = match &tls.tls_ca {
        Some(file) => {
            std::fs::read_to_string(file).map_err(|source| AskError::Ca { path: file.clone(), source })?
        }
        None => kubectl.controller_ca(&cluster.namespace, &cluster.ca_configmap, timeout).await?,
    };
    let person = kubectl.person().await?;
    let (own, token) = match &person {
        Person::Token(token) => (None, Some(token)),
        Person::Certificate { certificate, key } => (Some((certificate.as_str(), key.as_str())), None),
    };
    let transport =
        ClientTransport::of(&ca, own, tls.tls_server_name.as_deref()).map_err(AskError::Identity)?;
    let bearer = token.map(|token| {
        let mut value: Bearer = format!("Bearer {token}").parse().map_err(|_| AskError::NoToken)?;
        value.set_sensitive(true);
        Ok::<_, AskError>(value)
    });
    Ok((transport, bearer.transpose()?))
}
