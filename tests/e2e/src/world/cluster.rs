//! A cluster of an API server alone, for a controller that keeps its records there: with what deploy/ deploys, and KubeVirt's
//! kinds.
//!
//! In comes who is to have which volume; out go the objects that a provisioner and the attach/detach controller write for that.
//! What always holds: it runs beside the controller, in the run's own network, and no machine reaches it; the controller has
//! the rights that are deployed, and no others.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use cleat_kubevirt::cluster::Cluster as Kubectl;
use cleat_kubevirt::definitions::definitions;
use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::{Access, Node, Volume};

/// Where VMs and claims are.
pub const VMS: &str = "vms";

/// An API server and its etcd.
#[derive(Debug)]
pub struct ApiServer {
    server: cleat_api_server::Cluster,
    kubectl: Kubectl,
    controller: PathBuf,
}

impl ApiServer {
    /// Starts one. It ends with the thread that does so, which therefore has to be the program's first one.
    pub(super) async fn start() -> anyhow::Result<Self> {
        let server = block_in_place(cleat_api_server::Cluster::try_own).map_err(anyhow::Error::msg)?;
        let controller = block_in_place(|| server.try_deployed()).map_err(anyhow::Error::msg);
        let controller = controller.context("deploy what deploy/ has")?;
        let (kubectl, kubeconfig) = (server.kubectl_program().to_owned(), Some(server.kubeconfig()));
        let kubectl = Kubectl { kubectl, kubeconfig, container: None };
        let cluster = Self { server, kubectl, controller };
        cluster.prepare().await.context("make the API server one of a cluster with KubeVirt")?;
        Ok(cluster)
    }

    /// KubeVirt's kinds, and what a namespace has that controllers make, of which there are none.
    async fn prepare(&self) -> anyhow::Result<()> {
        self.run(&["apply", "-f", "-"], Some(&definitions())).await?;
        let wait = ["wait", "--for=condition=Established", "--timeout=60s"];
        let kinds =
            ["crd/virtualmachineinstances.kubevirt.io", "crd/virtualmachineinstancemigrations.kubevirt.io"];
        self.run(&[&wait[..], &kinds].concat(), None).await?;
        let made = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": VMS}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": VMS}},
        ]});
        self.run(&["create", "-f", "-"], Some(&made)).await.map(drop)
    }

    /// What kubectl prints.
    ///
    /// # Errors
    /// What it says where it is refused.
    pub async fn run(&self, arguments: &[&str], input: Option<&Value>) -> anyhow::Result<String> {
        let arguments: Vec<String> = arguments.iter().map(|&one| one.to_owned()).collect();
        self.kubectl.run(&arguments, input).await
    }

    /// As whoever plays KubeVirt reaches it.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// As the controller reaches it.
    pub(super) fn controllers_kubeconfig(&self) -> &Path {
        &self.controller
    }

    /// What its programs log.
    pub(super) fn logs(&self) -> [PathBuf; 2] {
        self.server.logs()
    }

    /// The volume's claim in [`VMS`], which has the volume's id as its name, and the PersistentVolume that is bound to it.
    ///
    /// # Errors
    /// What kubectl says where it is refused.
    pub fn bound(&self, volume: &Volume) -> anyhow::Result<()> {
        refused("bind", volume, block_in_place(|| self.server.try_bound(&volume.id, VMS, &volume.id)))
    }

    /// Both go.
    ///
    /// # Errors
    /// What kubectl says where it is refused.
    pub fn unbound(&self, volume: &Volume) -> anyhow::Result<()> {
        refused("unbind", volume, block_in_place(|| self.server.try_unbound(&volume.id, VMS, &volume.id)))
    }

    /// A VolumeAttachment asks for it there.
    pub(super) fn wanted(&self, volume: &Volume, node: &Node) -> anyhow::Result<()> {
        let shared = volume.access == Access::RwxBlock;
        let wanted = block_in_place(|| self.server.try_wants(&volume.id, node.name(), shared));
        refused("make the VolumeAttachment", volume, wanted)
    }

    /// None does any more.
    pub(super) fn unwanted(&self, volume: &Volume, node: &Node) -> anyhow::Result<()> {
        let unwanted = block_in_place(|| self.server.try_wants_no_more(&volume.id, node.name()));
        refused("delete the VolumeAttachment", volume, unwanted)
    }
}

fn refused(what: &str, volume: &Volume, came: Result<(), String>) -> anyhow::Result<()> {
    came.map_err(|why| anyhow!("cannot {what} of {} in the cluster: {why}", volume.id))
}
