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
    /// KUBECONFIG, where that is set; else ~/.kube/config, where --tls-ca is not given]
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

impl ClusterArgs {
    /// The kubeconfig that these name, or kubectl's own.
    pub(crate) async fn kubectl(&self) -> Result<Kubectl, AskError> {
        cleat_runtime::tls::install_provider();
        Ok(Kubectl::read(self.kubeconfig.as_deref(), self.context.as_deref()).await?)
    }
}

/// What is sent with each call.
pub(crate) type Bearer = MetadataValue<Ascii>;

/// What says who we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Files,
    Kubeconfig,
}

/// Where kubectl looks without an option.
struct Usual {
    /// KUBECONFIG names a file.
    variable: bool,
    /// There is a ~/.kube/config.
    home: bool,
}

impl Usual {
    fn of_this_process() -> Self {
        Self {
            variable: std::env::var_os("KUBECONFIG").is_some_and(|file| !file.is_empty()),
            home: std::env::home_dir().is_some_and(|home| home.join(".kube/config").is_file()),
        }
    }
}

/// What was asked for, else what kubectl would take.
fn way(tls: &ClientTlsArgs, cluster: &ClusterArgs, usual: &Usual) -> Result<Way, AskError> {
    let by_files = tls.plaintext || tls.tls_cert.is_some() || tls.tls_key.is_some();
    let asked_for = cluster.kubeconfig.is_some() || cluster.context.is_some();
    match (by_files, asked_for || usual.variable) {
        (true, _) if asked_for => Err(AskError::TwoIdentities),
        (true, _) => Ok(Way::Files),
        (false, true) => Ok(Way::Kubeconfig),
        // A CA alone asks as nobody, as it does on a machine without a kubeconfig.
        (false, false) if tls.tls_ca.is_some() => Ok(Way::Files),
        (false, false) if usual.home => Ok(Way::Kubeconfig),
        (false, false) => Err(AskError::Nobody),
    }
}

/// What connects to the controller, and what each call carries.
pub(crate) async fn settle(
    tls: &ClientTlsArgs,
    cluster: &ClusterArgs,
    timeout: Duration,
) -> Result<(ClientTransport, Option<Bearer>), AskError> {
    if way(tls, cluster, &Usual::of_this_process())? == Way::Files {
        return Ok((tls.load()?, None));
    }
    let kubectl = cluster.kubectl().await?;
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn chosen(ca: bool, cert: bool, kubeconfig: bool, variable: bool, home: bool) -> Result<Way, String> {
        let file = |given: bool| given.then(|| PathBuf::from("file"));
        let tls = ClientTlsArgs {
            tls_ca: file(ca),
            tls_cert: file(cert),
            tls_key: file(cert),
            ..Default::default()
        };
        let cluster = ClusterArgs {
            kubeconfig: file(kubeconfig),
            context: None,
            namespace: "cleat-system".to_owned(),
            ca_configmap: "cleat-ca".to_owned(),
        };
        way(&tls, &cluster, &Usual { variable, home }).map_err(|error| error.to_string())
    }

    #[test]
    fn where_nothing_says_who_we_are_the_kubeconfig_of_kubectl_does() {
        assert_eq!(chosen(false, false, false, false, true), Ok(Way::Kubeconfig));
        assert_eq!(chosen(false, false, false, true, false), Ok(Way::Kubeconfig));
        assert_eq!(chosen(true, false, false, true, true), Ok(Way::Kubeconfig), "a CA names nobody");
        let nobody = chosen(false, false, false, false, false).unwrap_err();
        assert!(nobody.contains("--kubeconfig") && nobody.contains("--tls-cert"), "{nobody}");
    }

    #[test]
    fn a_kubeconfig_that_nobody_named_takes_no_place_of_tls_options() {
        assert_eq!(chosen(true, true, false, true, true), Ok(Way::Files));
        assert_eq!(chosen(true, false, false, false, true), Ok(Way::Files));
        assert!(chosen(true, true, true, false, false).unwrap_err().contains("choose one"));
    }
}
