//! A cluster, by kubectl: with kubelets that run what is made, or without any.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::patch::{Kind, Named, Patch};
use crate::play::Api;

/// A pod that does not come up within this time is not waited for.
const UP: &str = "--timeout=180s";
/// Nor one that does not end.
const DOWN: &str = "--timeout=60s";

/// A cluster that kubectl knows.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// kubectl.
    pub kubectl: PathBuf,
    /// Where the cluster is; without it, where kubectl finds it.
    pub kubeconfig: Option<PathBuf>,
    /// What pods run. Without it nothing does, and what kubelets would say of them is played, too.
    pub container: Option<Container>,
}

/// What runs in a pod in the place of a VM.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its image.
    pub image: String,
    /// Its command; without one, the image's own.
    pub command: Vec<String>,
}

impl Container {
    /// The pod, with it. No scheduler but whoever plays the script places it.
    fn in_pod(&self, pod: &Value) -> Value {
        let mut pod = pod.clone();
        let container = &mut pod["spec"]["containers"][0];
        container["image"] = json!(self.image);
        if !self.command.is_empty() {
            container["command"] = json!(self.command);
        }
        pod["spec"]["schedulerName"] = json!("cleat-kubevirt-player");
        pod["spec"]["terminationGracePeriodSeconds"] = json!(2);
        pod
    }
}

/// What is done where kubelets run pods.
#[derive(Debug, PartialEq)]
enum Instead {
    Write(Patch),
    WaitForUp(Named),
    /// A pod's end is its deletion: nobody else ends what runs in it.
    End(Named),
}

impl Cluster {
    fn instead(container: &Container, patch: &Patch) -> Instead {
        let runs = |status: &Value| status.get("phase").and_then(Value::as_str) == Some("Running");
        match patch {
            Patch::Make(named, object) if named.kind == Kind::Pod => {
                Instead::Write(Patch::Make(named.clone(), container.in_pod(object)))
            }
            Patch::Status(named, status) if runs(status) => Instead::WaitForUp(named.clone()),
            Patch::Status(named, _) => Instead::End(named.clone()),
            other => Instead::Write(other.clone()),
        }
    }

    /// Runs kubectl. What it prints.
    ///
    /// # Errors
    /// It cannot be run, or the cluster refuses.
    pub async fn run(&self, arguments: &[String], input: Option<&Value>) -> anyhow::Result<String> {
        let mut command = Command::new(&self.kubectl);
        if let Some(kubeconfig) = &self.kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}; name kubectl with --kubectl", self.kubectl.display()))?;
        let mut stdin = child.stdin.take().context("kubectl has no input")?;
        let given = input.map(Value::to_string).unwrap_or_default();
        // One that refuses early reads nothing; why, it says itself.
        let _ = stdin.write_all(given.as_bytes()).await;
        drop(stdin);
        let done = child.wait_with_output().await.context("cannot hear of kubectl's end")?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "cannot do kubectl {}: {}", arguments.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
    }

    async fn pod(&self, named: &Named, arguments: &[&str]) -> anyhow::Result<()> {
        let namespace = ["-n", &named.namespace];
        let all = namespace.iter().chain(arguments).map(|&one| one.to_owned());
        self.run(&all.collect::<Vec<_>>(), None).await.map(drop)
    }
}

impl Api for Cluster {
    async fn write(&self, patch: &Patch) -> anyhow::Result<Option<String>> {
        let instead = match &self.container {
            Some(container) => Self::instead(container, patch),
            None => Instead::Write(patch.clone()),
        };
        match instead {
            Instead::Write(patch) => {
                let call = patch.kubectl("-");
                let printed = self.run(&call.arguments, call.input.as_ref()).await?;
                Ok(matches!(patch, Patch::Make(..)).then_some(printed))
            }
            Instead::WaitForUp(named) => {
                let pod = format!("pod/{}", named.name);
                self.pod(&named, &["wait", "--for=jsonpath={.status.phase}=Running", &pod, UP]).await?;
                Ok(None)
            }
            Instead::End(named) => {
                self.pod(&named, &["delete", "pod", &named.name, "--ignore-not-found", DOWN]).await?;
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_kubelets_run_pods_what_they_say_is_waited_for() {
        let container = Container { image: "i:1".into(), command: vec!["sleep".into()] };
        let pod = Named { kind: Kind::Pod, namespace: "vms".into(), name: "p".into() };
        let vm = Named { kind: Kind::VirtualMachineInstance, ..pod.clone() };
        let instead = |patch: &Patch| Cluster::instead(&container, patch);
        let status = |phase: &str| Patch::Status(pod.clone(), json!({"phase": phase}));
        assert_eq!(instead(&status("Running")), Instead::WaitForUp(pod.clone()));
        assert_eq!(instead(&status("Succeeded")), Instead::End(pod.clone()));
        let made = json!({"spec": {"containers": [{"name": "compute", "image": "none"}]}});
        let Instead::Write(Patch::Make(_, with)) = instead(&Patch::Make(pod.clone(), made.clone())) else {
            panic!("it is made");
        };
        let expected = json!({"name": "compute", "image": "i:1", "command": ["sleep"]});
        assert_eq!(with["spec"]["containers"], json!([expected]));
        for same in [Patch::Make(vm.clone(), made), Patch::Place(pod, "a".into()), Patch::Delete(vm)] {
            assert_eq!(instead(&same), Instead::Write(same));
        }
    }

    #[tokio::test]
    async fn what_kubectl_refuses_is_said_as_it_says_it() {
        let cluster = |kubectl: &str| Cluster { kubectl: kubectl.into(), kubeconfig: None, container: None };
        let refused = cluster("false").run(&["get".into(), "pods".into()], None).await.expect_err("refused");
        assert_eq!(refused.to_string(), "cannot do kubectl get pods: ");
        let absent = cluster("/there/is/none").run(&[], None).await.expect_err("absent");
        assert!(absent.to_string().contains("name kubectl with --kubectl"), "{absent}");
        let echoed = cluster("cat").run(&[], Some(&json!({"a": 1}))).await.unwrap_or_default();
        assert_eq!(echoed, r#"{"a":1}"#);
    }
}
