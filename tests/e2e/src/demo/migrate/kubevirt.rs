//! KubeVirt's part, where it is played: its objects at each moment of QEMU's migration, and what has to be known of them.
//!
//! In come the moments of a scene; out go writes to the API server, and what the controller and `cleatctl` have to say of whose
//! migration it is. What always holds: without a cluster nothing of it happens; which UIDs are the right ones the API server
//! has said, and neither the controller nor whoever plays.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use cleat_kubevirt::cluster::Cluster as Kubectl;
use cleat_kubevirt::play::play_step;
use cleat_kubevirt::script::{self, Script, Step, VmPlan};
use cleat_proto::cleat::v1::MigrationInfo;
use serde_json::{Value, json};
use tokio::process::Command;

use super::scene::{Disk, NAME, Run, Scene};
use crate::world::{ApiServer, Attached, Look, Node, VMS, wait_for};

/// What KubeVirt says reaches the controller's record within this time: it compares all of it each 10 s.
const HEARD: Duration = Duration::from_secs(40);
/// From when the guest runs at the target until KubeVirt is done.
pub(super) const SWITCHED: [Step; 4] = [Step::Detected, Step::Switched, Step::Acknowledged, Step::Completed];

/// The VM as KubeVirt has it.
pub(super) struct PlayedVm {
    api: Kubectl,
    script: Script,
    /// Its migration, once somebody has asked for it.
    asked: Option<Asked>,
}

/// A migration's object and its VM's, as the API server has them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    name: String,
    uid: String,
    vm_uid: String,
}

impl PlayedVm {
    fn of(cluster: &ApiServer, disks: &[Disk]) -> Self {
        let disk = |(number, disk): (usize, &Disk)| script::Disk {
            claim: disk.volume.id.clone(),
            hotplugged: number > 0,
        };
        let disks = disks.iter().enumerate().map(disk).collect();
        let plan = VmPlan { namespace: VMS.to_owned(), name: NAME.to_owned(), disks };
        Self { api: cluster.kubectl().clone(), script: Script::new(plan), asked: None }
    }

    pub(super) async fn play(&mut self, steps: &[Step]) -> anyhow::Result<()> {
        for step in steps {
            let played = play_step(&self.api, &mut self.script, step).await;
            played.with_context(|| format!("KubeVirt's step {step:?} cannot be played"))?;
        }
        Ok(())
    }

    /// The memory is on its way. QEMU does not wait for who notes that.
    pub(super) async fn begins(mut self) -> anyhow::Result<Self> {
        self.play(&[Step::Began]).await?;
        Ok(self)
    }
}

impl Scene<'_> {
    /// Plays these steps, if KubeVirt is played.
    pub(super) async fn play(&mut self, steps: &[Step]) -> anyhow::Result<()> {
        match &mut self.kubevirt {
            Some(vm) => vm.play(steps).await,
            None => Ok(()),
        }
    }

    /// The VM and its claims are made.
    pub(super) async fn vm_made(&mut self, run: &Run) -> anyhow::Result<()> {
        let Some(cluster) = self.world.cluster() else { return Ok(()) };
        for disk in &run.disks {
            cluster.bound(&disk.volume)?;
        }
        self.kubevirt = Some(PlayedVm::of(cluster, &run.disks));
        self.play(&[Step::VmMade, Step::LauncherMade]).await
    }

    /// It runs on node-a, with what came later.
    pub(super) async fn vm_runs(&mut self, run: &Run) -> anyhow::Result<()> {
        self.play(&[Step::LauncherRuns { on: self.world.a().name().to_owned() }]).await?;
        if run.disks.len() > 1 { self.play(&[Step::Plugged]).await } else { Ok(()) }
    }

    /// Somebody asks for a migration, and its target is on node-b from now on.
    pub(super) async fn target_comes(&mut self) -> anyhow::Result<()> {
        let asked = Step::Asked { to: self.world.b().name().to_owned() };
        self.play(&[asked, Step::Accepted, Step::TargetMade, Step::TargetPlaced]).await?;
        let (Some(vm), Some(cluster)) = (&mut self.kubevirt, self.world.cluster()) else { return Ok(()) };
        let in_vms = |kind: &'static str| ["-n", VMS, "get", kind, "-o", "json"];
        let migrations = cluster.run(&in_vms("virtualmachineinstancemigrations"), None).await?;
        let vms = cluster.run(&in_vms("virtualmachineinstances"), None).await?;
        let asked = asked_for(&serde_json::from_str(&migrations)?, &serde_json::from_str(&vms)?)?;
        self.say.line(&format!("KubeVirt's {VMS}/{} moves VM {VMS}/{NAME} to node-b", asked.name));
        vm.asked = Some(asked);
        Ok(())
    }

    /// The volumes come to node-b, in the order in which KubeVirt's pods there need them.
    pub(super) async fn attach_target(&mut self, run: &Run, to: &Node) -> anyhow::Result<Vec<Attached>> {
        let (first, plugged) = run.disks.split_at(1);
        let mut at_target = self.attach(first, to).await?;
        self.play(&[Step::TargetRuns]).await?;
        if !plugged.is_empty() {
            self.play(&[Step::TargetPlugs]).await?;
            at_target.extend(self.attach(plugged, to).await?);
            self.play(&[Step::TargetPlugged]).await?;
        }
        self.play(&[Step::Scheduled, Step::HandedOver, Step::Preparing]).await?;
        Ok(at_target)
    }

    /// Waits until the controller has on record of each volume whose migration it is.
    pub(super) async fn wait_attributed(&mut self, run: &Run) -> anyhow::Result<()> {
        if self.kubevirt.is_none() {
            return Ok(());
        }
        let expected = self.whose();
        for disk in &run.disks {
            let what = format!("the record of {} to say whose migration it is: {expected:?}", disk.volume.id);
            wait_for(what, HEARD, async || {
                let recorded = self.world.controller.migrations().await?;
                let ours = recorded.into_iter().find(|one| one.volume_id == disk.volume.id);
                let knows = ours.as_ref().is_some_and(|ours| whose(ours) == expected);
                Ok(Look::holds(knows, format!("{ours:?}")))
            })
            .await?;
        }
        self.say.line(&format!("the controller has on record that {} moves it", expected[3]));
        Ok(())
    }

    /// Whose migration a record has to say it is: the VM's namespace, name and UID, the migration's object, and its UID.
    pub(super) fn whose(&self) -> [String; 5] {
        let asked = self.kubevirt.as_ref().and_then(|vm| vm.asked.clone());
        asked.map_or(["", "", "", "unattributed", ""].map(str::to_owned), |asked| {
            [VMS.to_owned(), NAME.to_owned(), asked.vm_uid, format!("{VMS}/{}", asked.name), asked.uid]
        })
    }

    /// What `cleatctl migration` draws of it is shown, and has to say the same as the record.
    pub(super) async fn drawn(&mut self, run: &Run) -> anyhow::Result<()> {
        if self.kubevirt.is_none() {
            return Ok(());
        }
        let vm = format!("{VMS}/{NAME}");
        let (text, document) =
            (self.cleatctl(&["migration", &vm]).await?, self.cleatctl(&["migration", &vm, "--json"]).await?);
        for line in text.lines() {
            self.say.detail(line);
        }
        let title = format!("VM {vm} from node node-a to node node-b");
        ensure!(text.contains(&title), "cleatctl migration does not begin with {title:?}: {text}");
        let document: Value =
            serde_json::from_str(&document).context("what cleatctl migration --json says")?;
        let [namespace, name, vm_uid, migration, uid] = self.whose();
        let expected = json!({
            "vm": {"namespace": namespace, "name": name, "uid": vm_uid},
            "migration": migration, "migration_uid": uid,
            "source_node_id": "node-a", "target_node_id": "node-b", "result": self.came.result,
        });
        let shown = said(&document, &expected);
        ensure!(shown == expected, "cleatctl migration --json says {shown}, and {expected} is so");
        let of_volumes = document["volumes"].as_array().map_or(0, Vec::len);
        ensure!(of_volumes == run.disks.len(), "cleatctl migration shows {of_volumes} volumes: {document}");
        Ok(())
    }

    /// Waits for the Event of its end beside the claim of each volume.
    pub(super) async fn noticed(&mut self, run: &Run, left: &str) -> anyhow::Result<()> {
        let Some(cluster) = self.world.cluster() else { return Ok(()) };
        let reason = if left == "source" { "MigrationCompleted" } else { "MigrationRolledBack" };
        for disk in &run.disks {
            let claim = disk.volume.id.as_str();
            let get = ["-n", VMS, "get", "pvc", claim, "-o", "jsonpath={.metadata.uid}"];
            let uid = cluster.run(&get, None).await?;
            let what = format!("the Event {reason} beside claim {VMS}/{claim}, UID {uid}");
            wait_for(what, HEARD, async || {
                let all =
                    cluster.run(&["-n", VMS, "get", "events.events.k8s.io", "-o", "json"], None).await?;
                let seen = reasons(&serde_json::from_str(&all)?, claim, &uid);
                Ok(Look::holds(seen.iter().any(|one| one == reason), format!("{seen:?}")))
            })
            .await?;
        }
        self.say.line(&format!("the Event {reason} stands beside the claim of each volume"));
        Ok(())
    }

    /// As a person calls it.
    async fn cleatctl(&self, words: &[&str]) -> anyhow::Result<String> {
        let program = cleat_rig::program("cleatctl")?;
        let mut command = Command::new(&program);
        command.args(self.world.controller.cleatctl_options()).args(words);
        let ended = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
        let ended = ended.with_context(|| format!("run {}", program.display()))?;
        let complaint = String::from_utf8_lossy(&ended.stderr);
        let line = words.join(" ");
        ensure!(ended.status.success(), "cleatctl {line} ends with {}: {}", ended.status, complaint.trim());
        Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
    }

    /// Claims and PersistentVolumes go.
    pub(super) fn unbind(&self, run: &Run) -> anyhow::Result<()> {
        let Some(cluster) = self.world.cluster() else { return Ok(()) };
        run.disks.iter().try_for_each(|disk| cluster.unbound(&disk.volume))
    }
}

/// Whose migration a record says it is, as [`Scene::whose`].
pub(super) fn whose(record: &MigrationInfo) -> [String; 5] {
    let MigrationInfo { vm_namespace, vm_name, vm_uid, attributed_to, migration_uid, .. } = record;
    [vm_namespace, vm_name, vm_uid, attributed_to, migration_uid].map(String::clone)
}

/// The one migration and the one VM of two lists.
fn asked_for(migrations: &Value, vms: &Value) -> anyhow::Result<Asked> {
    let only = |list: &Value| match list["items"].as_array().map(Vec::as_slice) {
        Some([one]) => one["metadata"]["name"].as_str().zip(one["metadata"]["uid"].as_str()).map(owned),
        _ => None,
    };
    let one = |list: &Value| only(list).with_context(|| format!("not one object with name and UID: {list}"));
    let ((name, uid), (_, vm_uid)) = (one(migrations)?, one(vms)?);
    Ok(Asked { name, uid, vm_uid })
}

fn owned((name, uid): (&str, &str)) -> (String, String) {
    (name.to_owned(), uid.to_owned())
}

/// The reasons of a list's Events about that claim.
fn reasons(events: &Value, claim: &str, uid: &str) -> Vec<String> {
    let of_claim = |event: &&Value| {
        let about = &event["regarding"];
        about["kind"] == "PersistentVolumeClaim" && about["name"] == claim && about["uid"] == uid
    };
    let all = events["items"].as_array().into_iter().flatten().filter(of_claim);
    all.filter_map(|event| event["reason"].as_str().map(str::to_owned)).collect()
}

/// Of a document what stands there under the names of another one.
fn said(document: &Value, names: &Value) -> Value {
    let named = names.as_object().into_iter().flatten();
    named.map(|(name, _)| (name.clone(), document[name].clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(objects: &[(&str, &str)]) -> Value {
        let object = |(name, uid): &(&str, &str)| json!({"metadata": {"name": name, "uid": uid}});
        json!({ "items": objects.iter().map(object).collect::<Vec<_>>() })
    }

    #[test]
    fn the_only_migration_is_the_one_that_was_asked_for() {
        let vms = list(&[("vm-demo", "u-1")]);
        let asked = asked_for(&list(&[("vm-demo-1", "u-2")]), &vms).expect("one");
        assert_eq!(asked, Asked { name: "vm-demo-1".into(), uid: "u-2".into(), vm_uid: "u-1".into() });
        for wrong in [list(&[]), list(&[("a", "u-2"), ("b", "u-3")]), json!({})] {
            let refused = asked_for(&wrong, &vms).expect_err("not one").to_string();
            assert!(refused.starts_with("not one object with name and UID"), "{refused}");
        }
    }

    #[test]
    fn an_event_about_an_earlier_claim_of_the_name_is_another_one() {
        let event = |kind: &str, uid: &str, reason: &str| {
            json!({
                "regarding": {"kind": kind, "name": "vm-demo", "uid": uid}, "reason": reason,
            })
        };
        let events = json!({"items": [
            event("PersistentVolumeClaim", "u-8", "MigrationCompleted"),
            event("PersistentVolume", "u-9", "VolumeAttached"),
            event("PersistentVolumeClaim", "u-9", "MigrationStarted"),
        ]});
        assert_eq!(reasons(&events, "vm-demo", "u-9"), ["MigrationStarted"]);
        assert!(reasons(&events, "vm-other", "u-9").is_empty());
    }

    #[test]
    fn of_a_document_what_is_expected_by_name_is_compared() {
        let document = json!({"result": "completed", "migration_uid": "u-2", "began_unix_ms": 7});
        let same = json!({"result": "completed", "migration_uid": "u-2"});
        assert_eq!(said(&document, &same), same);
        let other = json!({"result": "completed", "migration": "vms/vm-demo-1"});
        assert_eq!(said(&document, &other), json!({"result": "completed", "migration": null}));
    }
}
