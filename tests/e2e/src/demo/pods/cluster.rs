//! What is asked of the cluster: its pods, the record of the migration, and what `cleatctl` shows of it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use cleat_kubevirt::cluster::{Cluster, Container};
use serde_json::Value;
use tokio::process::Command;

use super::PodsOptions;
use super::node::PodNode;

/// What the controllers call themselves to operators.
const OPERATORS: &str = "cleat-operators.cleat-system.svc";
const OPERATORS_PORT: u16 = 7444;
/// From one look at the cluster to the next: each costs CPU that emulated machines need.
const LOOK: Duration = Duration::from_secs(1);

/// The cluster, by kubectl.
#[derive(Debug)]
pub(super) struct PodCluster {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    image: String,
}

impl PodCluster {
    pub(super) fn new(options: &PodsOptions) -> Self {
        let PodsOptions { kubectl, kubeconfig, image, .. } = options.clone();
        Self { kubectl, kubeconfig, image }
    }

    /// Where KubeVirt's objects go, with pods that run this.
    pub(super) fn running(&self, command: Vec<String>) -> Cluster {
        let container = Some(Container { image: self.image.clone(), command });
        Cluster { kubectl: self.kubectl.clone(), kubeconfig: Some(self.kubeconfig.clone()), container }
    }

    async fn kubectl(&self, words: &[&str]) -> anyhow::Result<String> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        self.running(Vec::new()).run(&words, None).await
    }

    async fn object(&self, kind: &str, name: &str) -> anyhow::Result<Value> {
        let text = self.kubectl(&["get", kind, name, "-o", "json"]).await?;
        serde_json::from_str(&text).with_context(|| format!("kubectl's JSON of {kind} {name}"))
    }

    pub(super) async fn node(&self, name: &'static str) -> anyhow::Result<PodNode> {
        let path = "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
        let said = self.kubectl(&["get", "node", name, "-o", path]).await?;
        let address = said.parse().with_context(|| format!("node {name} has the address {said:?}"))?;
        Ok(PodNode { name, address })
    }

    /// The volume of a claim.
    pub(super) async fn volume(&self, claim: &str) -> anyhow::Result<String> {
        let volume = self.kubectl(&["get", "pvc", claim, "-o", "jsonpath={.spec.volumeName}"]).await?;
        ensure!(!volume.is_empty(), "the claim {claim} has no volume");
        Ok(volume)
    }

    /// The name and the address of the VM's pod that runs on a node.
    pub(super) async fn launcher(&self, vm: &str, node: &PodNode) -> anyhow::Result<(String, IpAddr)> {
        let label = format!("vm.kubevirt.io/name={vm}");
        let field = format!("spec.nodeName={},status.phase=Running", node.name);
        let path = "jsonpath={range .items[*]}{.metadata.name} {.status.podIP}{\"\\n\"}{end}";
        let all = ["get", "pods", "-l", &label, "--field-selector", &field, "-o", path];
        let said = self.kubectl(&all).await?;
        let one = said.lines().next().and_then(|line| line.split_once(' '));
        let (pod, address) =
            one.with_context(|| format!("no pod of {vm} runs on {}: {said:?}", node.name))?;
        let address = address.parse().with_context(|| format!("pod {pod} has the address {address:?}"))?;
        Ok((pod.to_owned(), address))
    }

    /// The UID of a migration object.
    pub(super) async fn migration_uid(&self, name: &str) -> anyhow::Result<String> {
        let kind = "virtualmachineinstancemigrations.kubevirt.io";
        self.kubectl(&["get", kind, name, "-o", "jsonpath={.metadata.uid}"]).await
    }

    /// The record of a volume.
    pub(super) async fn record(&self, volume: &str) -> anyhow::Result<Value> {
        tokio::time::sleep(LOOK).await;
        Ok(self.object("cleatvolumes.cleat.io", volume).await?["spec"]["record"].take())
    }

    /// What a container wrote goes to a file.
    pub(super) async fn keep_log(&self, pod: &str, folder: &Path) -> anyhow::Result<()> {
        let log = self.kubectl(&["logs", pod]).await?;
        std::fs::write(folder.join(format!("{pod}.log")), log).context("write the pod's log")
    }

    /// What `cleatctl migration` says of a volume: as it draws it, and as JSON.
    pub(super) async fn cleatctl(&self, volume: &str) -> anyhow::Result<(String, Value)> {
        let system = ["-n", "cleat-system", "get"];
        let lease =
            [&system[..], &["lease", "cleat-controller", "-o", "jsonpath={.spec.holderIdentity}"]].concat();
        let holder = self.kubectl(&lease).await?;
        let leader = holder.split('_').next().unwrap_or_default();
        let pod = [&system[..], &["pod", leader, "-o", "jsonpath={.status.podIP}"]].concat();
        let controller = format!("{}:{OPERATORS_PORT}", self.kubectl(&pod).await?);
        let ask = async |more: &[&str]| {
            let mut command = Command::new(cleat_rig::program("cleatctl")?);
            command.args(["--controller", &controller, "--tls-server-name", OPERATORS, "--kubeconfig"]);
            command.arg(&self.kubeconfig).args(["migration", volume]).args(more).stdin(Stdio::null());
            let done = command.kill_on_drop(true).output().await.context("run cleatctl")?;
            let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
            ensure!(done.status.success(), "cleatctl migration {volume}: {said}");
            anyhow::Ok(String::from_utf8_lossy(&done.stdout).into_owned())
        };
        let drawn = ask(&[]).await?;
        let json = ask(&["--json"]).await?;
        Ok((drawn, serde_json::from_str(&json).context("the JSON of cleatctl migration")?))
    }

    /// What the cluster says of all that may be to blame goes to files. What cannot be had is in its file, too.
    pub(super) async fn tell_all(&self, folder: &Path) {
        let kubevirt = "virtualmachineinstances.kubevirt.io,virtualmachineinstancemigrations.kubevirt.io";
        let asks: [(&str, &[&str]); 6] = [
            ("pods", &["describe", "pods", "-l", "kubevirt.io"]),
            ("pod-logs", &["logs", "-l", "kubevirt.io", "--tail=100", "--prefix"]),
            ("kubevirt", &["get", kubevirt, "-o", "yaml"]),
            ("volumes", &["get", "pvc,pv,volumeattachments,cleatvolumes", "-o", "yaml"]),
            ("events", &["get", "events", "-A", "--sort-by=.lastTimestamp"]),
            (
                "controllers",
                &[
                    "-n",
                    "cleat-system",
                    "logs",
                    "-l",
                    "app.kubernetes.io/name=cleat",
                    "--all-containers",
                    "--tail=2000",
                    "--prefix",
                ],
            ),
        ];
        for (name, words) in asks {
            let said = self.kubectl(words).await.unwrap_or_else(|error| format!("{error:#}"));
            // As far as it can be had: the run has failed already.
            let _ = std::fs::write(folder.join(format!("{name}.txt")), said);
        }
    }
}
