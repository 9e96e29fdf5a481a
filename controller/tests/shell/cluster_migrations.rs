//! Who migrates, as KubeVirt's objects on a real API server say it: absent kinds, kinds that come later, and what follows.

use std::time::{Duration, Instant};

use cleat_api_server::Cluster;
use cleat_kubevirt::definitions::definitions;
use cleat_kubevirt::patch::Patch;
use cleat_kubevirt::script::{Disk, Script, Step, VmPlan};
use cleat_proto::cleat::v1::MigrationInfo;
use cleat_proto::csi::v1 as csi;
use serde_json::Value;
use tonic::{Code, Status};

use crate::agent::Host;
use crate::cluster::leads;
use crate::world::{Csi, RWX, World, block, eventually, publish_request};

const NAMESPACE: &str = "vms";
/// An absent kind is looked for each 30 s, and what the core lacks is handed over again each 10 s.
const PATIENCE: Duration = Duration::from_secs(90);

/// Whoever writes KubeVirt's objects.
struct Player {
    cluster: Cluster,
    folder: tempfile::TempDir,
    script: Script,
}

impl Player {
    fn new() -> Self {
        let plan = VmPlan {
            namespace: NAMESPACE.into(),
            name: "web".into(),
            disks: vec![Disk { claim: "root".into(), hotplugged: false }],
        };
        let folder = tempfile::tempdir().unwrap();
        let player = Self { cluster: Cluster::own(), folder, script: Script::new(plan) };
        player.cluster.kubectl(&["create", "namespace", NAMESPACE]);
        player.cluster.kubectl(&["-n", NAMESPACE, "create", "serviceaccount", "default"]);
        player
    }

    fn with_file(&self, input: &Value, arguments: &[&str]) -> String {
        let file = self.folder.path().join("object.json");
        std::fs::write(&file, input.to_string()).unwrap();
        let file = file.display().to_string();
        let filled: Vec<_> =
            arguments.iter().map(|one| if *one == "FILE" { file.as_str() } else { *one }).collect();
        self.cluster.kubectl(&filled)
    }

    /// The claim, and the PersistentVolume that is bound to it.
    fn volume(&self) {
        self.cluster.try_bound("vm-1", NAMESPACE, "root").unwrap();
    }

    fn kubevirt_comes(&self) {
        self.with_file(&definitions(), &["apply", "-f", "FILE"]);
        self.cluster.kubectl(&[
            "wait",
            "--for=condition=Established",
            "crd/virtualmachineinstances.kubevirt.io",
            "crd/virtualmachineinstancemigrations.kubevirt.io",
        ]);
    }

    fn play(&mut self, steps: &[Step]) {
        for step in steps {
            for patch in self.script.next(step, "2026-11-30T09:00:00Z").unwrap() {
                let call = patch.kubectl("FILE");
                let arguments: Vec<_> = call.arguments.iter().map(String::as_str).collect();
                let printed = self.with_file(&call.input.unwrap_or_default(), &arguments);
                if matches!(patch, Patch::Make(..)) {
                    self.script.made(patch.of(), &printed);
                }
            }
        }
    }
}

async fn until(world: &World, what: &str, holds: impl Fn(&MigrationInfo) -> bool) -> MigrationInfo {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let all = world.migrations().await;
        if let Some(found) = all.iter().find(|found| holds(found)) {
            return found.clone();
        }
        assert!(Instant::now() < deadline, "{what}: {all:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn a_migration_is_attributed_as_soon_as_kubevirt_comes_without_a_restart() {
    let (mut player, mut world) = (Player::new(), World::new());
    world.join(&player.cluster.kubeconfig(), "cleat", "one").await;
    leads(&world).await;
    let (source, target) = (Host::new("node-a", 1), Host::new("node-b", 2));
    let (_source, _target) = (world.agent(&source).await, world.agent(&target).await);
    let csi = world.csi().await;
    csi.create("vm-1").await.unwrap();
    player.volume();
    for node in ["node-a", "node-b"] {
        player.cluster.wants("vm-1", node, true);
        csi.publish("vm-1", node, RWX).await.unwrap();
    }
    let began = until(&world, "a migration", |_| true).await;
    assert_eq!((began.attributed_to.as_str(), began.result.as_str()), ("unattributed", "running"));
    assert_eq!(
        (began.source_node_id.as_str(), began.timeout_ms),
        ("node-a", 300_000),
        "by age, and the usual time"
    );
    let sent = (source.attaches().len(), target.attaches().len());

    // The VM goes the other way than who had the volume first has it.
    player.kubevirt_comes();
    player.play(&[
        Step::VmMade,
        Step::LauncherMade,
        Step::LauncherRuns { on: "node-b".into() },
        Step::Asked { to: "node-a".into() },
        Step::Accepted,
        Step::TargetMade,
        Step::TargetPlaced,
    ]);
    let seen = until(&world, "attributed", |found| !found.migration_uid.is_empty()).await;
    assert_eq!((seen.source_node_id.as_str(), seen.target_node_id.as_str()), ("node-b", "node-a"));
    assert_eq!((seen.vm_namespace.as_str(), seen.vm_name.as_str()), (NAMESPACE, "web"));
    assert_eq!((seen.attributed_to.as_str(), seen.result.as_str()), ("vms/web-1", "running"));
    let roles: Vec<_> =
        world.volume("vm-1").await.attachments.into_iter().map(|a| (a.node_id, a.role)).collect();
    assert!(roles.contains(&("node-b".into(), "primary".into())), "{roles:?}");

    player.play(&[
        Step::TargetRuns,
        Step::Scheduled,
        Step::HandedOver,
        Step::Preparing,
        Step::TargetReady,
        Step::Began,
        Step::Detected,
        Step::Switched,
        Step::Acknowledged,
        Step::Completed,
        Step::SourceEnds,
    ]);
    until(&world, "the switchover", |found| found.steps.iter().any(|step| step.name == "switchover")).await;
    // KubeVirt is done: nobody is let go for that, and nobody was sent anything.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(source.holds("vm-1") && target.holds("vm-1"));
    assert_eq!((source.attaches().len(), target.attaches().len()), sent);
    let both = world.volume("vm-1").await.attachments;
    assert!(both.len() == 2 && both.iter().all(|a| a.phase == "Ready" && a.may_write), "{both:?}");

    player.cluster.wants_no_more("vm-1", "node-b");
    csi.unpublish("vm-1", "node-b").await.unwrap();
    let ended = until(&world, "its end", |found| found.result != "running").await;
    assert_eq!((ended.result.as_str(), ended.left.as_str()), ("completed", "source"));
}

/// As the attacher does it for a volume whose StorageClass gives a migration so long.
async fn publish_within(csi: &Csi, node: &str, seconds: &str) {
    let volume_context = [("cleat.io/migration-timeout-seconds".to_owned(), seconds.to_owned())].into();
    let request =
        csi::ControllerPublishVolumeRequest { volume_context, ..publish_request("vm-1", node, RWX) };
    csi.client.clone().controller_publish_volume(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn a_migration_past_its_time_is_shown_and_nobody_is_cut() {
    let (mut player, mut world) = (Player::new(), World::new());
    player.kubevirt_comes();
    player.volume();
    world.join(&player.cluster.kubeconfig(), "cleat", "one").await;
    leads(&world).await;
    let (source, target, third) = (Host::new("node-a", 1), Host::new("node-b", 2), Host::new("node-c", 3));
    let (_source, _target) = (world.agent(&source).await, world.agent(&target).await);
    let _third = world.agent(&third).await;
    let csi = world.csi().await;
    csi.create("vm-1").await.unwrap();
    for node in ["node-a", "node-b"] {
        player.cluster.wants("vm-1", node, true);
        publish_within(&csi, node, "30").await;
    }
    player.play(&[
        Step::VmMade,
        Step::LauncherMade,
        Step::LauncherRuns { on: "node-a".into() },
        Step::Asked { to: "node-b".into() },
        Step::Accepted,
        Step::TargetMade,
        Step::TargetPlaced,
    ]);
    let began = until(&world, "attributed", |found| !found.migration_uid.is_empty()).await;
    assert_eq!((began.result.as_str(), began.timeout_ms), ("running", 30_000));
    let late = until(&world, "overdue", |found| found.overdue).await;
    assert_eq!((late.result.as_str(), late.left.as_str()), ("timed_out", ""));
    let condition = async || {
        let request = csi::ControllerGetVolumeRequest { volume_id: "vm-1".into() };
        let got = csi.client.clone().controller_get_volume(request).await;
        got.unwrap().into_inner().status.unwrap().volume_condition.unwrap()
    };
    let said = condition().await;
    assert!(said.abnormal && said.message.contains("longer than the 30 s"), "{said:?}");
    eventually("an Event beside the claim", async || {
        let path = r#"jsonpath={range .items[*]}{.regarding.kind}/{.regarding.name}/{.reason}{"\n"}{end}"#;
        let all = player.cluster.kubectl(&["get", "events.events.k8s.io", "-A", "-o", path]);
        all.lines().any(|line| line == "PersistentVolumeClaim/root/MigrationTimedOut")
    })
    .await;
    player.cluster.wants("vm-1", "node-c", true);
    let refused = csi.publish("vm-1", "node-c", RWX).await.unwrap_err();
    assert!(refused.message().contains("longer than the 30 s"), "{refused:?}");
    assert!(source.holds("vm-1") && target.holds("vm-1") && !third.holds("vm-1"));

    player.cluster.wants_no_more("vm-1", "node-a");
    csi.unpublish("vm-1", "node-a").await.unwrap();
    let ended = until(&world, "its end", |found| !found.left.is_empty()).await;
    assert_eq!((ended.result.as_str(), ended.left.as_str(), ended.overdue), ("timed_out", "source", false));
    assert!(!condition().await.abnormal);
    publish_within(&csi, "node-c", "30").await;
}

/// As the attacher does it for a volume whose StorageClass demands a migration for a second node.
async fn publish_demanding(csi: &Csi, node: &str) -> Result<(), Status> {
    let volume_context = [("cleat.io/require-migration".to_owned(), "true".to_owned())].into();
    let request =
        csi::ControllerPublishVolumeRequest { volume_context, ..publish_request("vm-1", node, RWX) };
    csi.client.clone().controller_publish_volume(request).await.map(drop)
}

async fn refused(csi: &Csi, node: &str, why: &str) {
    let refused = publish_demanding(csi, node).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains(why), "{why}: {refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn where_a_migration_is_required_a_second_node_needs_its_object() {
    let (mut player, mut world) = (Player::new(), World::new());
    player.volume();
    world.join(&player.cluster.kubeconfig(), "cleat", "one").await;
    leads(&world).await;
    let (source, target) = (Host::new("node-a", 1), Host::new("node-b", 2));
    let agents = [world.agent(&source).await, world.agent(&target).await];
    let csi = world.csi().await;
    let create = csi::CreateVolumeRequest {
        name: "vm-1".into(),
        volume_capabilities: vec![block(RWX)],
        parameters: [("requireMigration".to_owned(), "true".to_owned())].into(),
        ..Default::default()
    };
    let made = csi.client.clone().create_volume(create).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(made.volume_context["cleat.io/require-migration"], "true");
    for node in ["node-a", "node-b"] {
        player.cluster.wants("vm-1", node, true);
    }
    publish_demanding(&csi, "node-a").await.expect("the first node needs none");
    refused(&csi, "node-b", "the cluster has no KubeVirt").await;
    player.kubevirt_comes();
    refused(&csi, "node-b", "no pod of a KubeVirt VM has the volume's claim").await;
    player.play(&[Step::VmMade, Step::LauncherMade, Step::LauncherRuns { on: "node-a".into() }]);
    refused(&csi, "node-b", "VM vms/web has it, and has no").await;

    world.stop().await.unwrap();
    for agent in agents {
        drop(agent.ended().await);
    }
    world.join(&player.cluster.kubeconfig(), "cleat", "two").await;
    leads(&world).await;
    let _agents = [world.agent(&source).await, world.agent(&target).await];
    let csi = world.csi().await;
    refused(&csi, "node-b", "VM vms/web has it, and has no").await;
    assert!(target.attaches().is_empty(), "it was sent nothing");
    publish_demanding(&csi, "node-a").await.expect("who has it keeps it");

    player.play(&[Step::Asked { to: "node-b".into() }, Step::Accepted, Step::TargetMade, Step::TargetPlaced]);
    // Read live: no watch is waited for.
    publish_demanding(&csi, "node-b").await.unwrap();
    player.play(&[
        Step::TargetRuns,
        Step::Scheduled,
        Step::HandedOver,
        Step::Preparing,
        Step::TargetReady,
        Step::Began,
        Step::Detected,
        Step::Switched,
        Step::Acknowledged,
        Step::Completed,
        Step::SourceEnds,
    ]);
    player.cluster.wants_no_more("vm-1", "node-a");
    csi.unpublish("vm-1", "node-a").await.unwrap();
    player.cluster.wants("vm-1", "node-a", true);
    refused(&csi, "node-a", "has completed, and there is no later one").await;
    publish_demanding(&csi, "node-b").await.expect("who has it keeps it");
    assert!(target.holds("vm-1") && !source.holds("vm-1"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn a_third_node_waits_for_the_side_that_the_vm_has_left() {
    let (mut player, mut world) = (Player::new(), World::new());
    player.kubevirt_comes();
    player.volume();
    world.join(&player.cluster.kubeconfig(), "cleat", "one").await;
    leads(&world).await;
    let (source, target, third) = (Host::new("node-a", 1), Host::new("node-b", 2), Host::new("node-c", 3));
    let (_source, _target) = (world.agent(&source).await, world.agent(&target).await);
    let _third = world.agent(&third).await;
    let csi = world.csi().await;
    csi.create("vm-1").await.unwrap();
    for node in ["node-a", "node-b"] {
        player.cluster.wants("vm-1", node, true);
        csi.publish("vm-1", node, RWX).await.unwrap();
    }
    player.play(&[
        Step::VmMade,
        Step::LauncherMade,
        Step::LauncherRuns { on: "node-a".into() },
        Step::Asked { to: "node-b".into() },
        Step::Accepted,
        Step::TargetMade,
        Step::TargetPlaced,
    ]);
    until(&world, "attributed", |found| !found.migration_uid.is_empty()).await;
    player.cluster.wants("vm-1", "node-c", true);
    let refused = csi.publish("vm-1", "node-c", RWX).await.unwrap_err();
    assert!(refused.message().contains("migration limit"), "the VM moves: {refused:?}");
    player.play(&[
        Step::TargetRuns,
        Step::Scheduled,
        Step::HandedOver,
        Step::Preparing,
        Step::TargetReady,
        Step::Began,
        Step::Detected,
        Step::Switched,
        Step::Acknowledged,
        Step::Completed,
    ]);

    // What KubeVirt says is heard of a moment later: until then the call is refused.
    let deadline = Instant::now() + PATIENCE;
    let granted = loop {
        let csi = world.csi().await;
        let mut call = tokio::spawn(async move { csi.publish("vm-1", "node-c", RWX).await });
        match tokio::time::timeout(Duration::from_secs(2), &mut call).await {
            Err(_) => break call,
            Ok(ended) => {
                let refused = ended.unwrap().unwrap_err();
                assert!(refused.message().contains("migration limit"), "{refused:?}");
                assert!(Instant::now() < deadline, "{refused:?}");
            }
        }
    };
    let waiting = world.volume("vm-1").await.waiting;
    let named = "node node-a to be detached, where VM vms/web does not need it any more";
    assert!(waiting.iter().any(|wait| wait.waits_for.contains(named)), "{waiting:?}");
    assert!(source.holds("vm-1") && target.holds("vm-1") && !third.holds("vm-1"));

    player.cluster.wants_no_more("vm-1", "node-a");
    csi.unpublish("vm-1", "node-a").await.unwrap();
    granted.await.unwrap().unwrap();
    assert!(!source.holds("vm-1") && target.holds("vm-1") && third.holds("vm-1"));
}
