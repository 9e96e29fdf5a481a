//! KubeVirt's kinds on a real API server: absent, there with a VM that migrates, and absent again.

use std::time::Duration;

use cleat_api_server::{PATIENCE, Shared, shared};
use cleat_kubernetes::attachments::Attachments;
use cleat_kubernetes::kubevirt::KubeVirt;
use cleat_kubernetes::kubevirt::live::mover_now;
use cleat_kubernetes::kubevirt::mover::{MoveStage, MoverSeen};
use cleat_kubernetes::watch::Presence;
use cleat_kubevirt::definitions::definitions;
use cleat_kubevirt::script::{Disk, Script, Step, VmPlan};
use serde_json::{Value, json};

const DRIVER: &str = "kubevirt.cleat.test";
const NAMESPACE: &str = "kubevirt-test";
/// An absent kind is looked for every 30 s.
const LOOKED_FOR: Duration = Duration::from_secs(30);

struct Player {
    cluster: &'static Shared,
    folder: tempfile::TempDir,
    script: Script,
}

impl Player {
    fn with_file(&self, input: &Value, arguments: &[&str]) -> String {
        let file = self.folder.path().join("object.json");
        std::fs::write(&file, input.to_string()).unwrap();
        let file = file.display().to_string();
        let filled: Vec<_> =
            arguments.iter().map(|one| if *one == "FILE" { file.as_str() } else { *one }).collect();
        self.cluster.kubectl(&filled)
    }

    fn make(&self, object: &Value) -> String {
        self.with_file(object, &["create", "-f", "FILE", "-o", "jsonpath={.metadata.uid}"])
    }

    fn play(&mut self, steps: &[Step]) {
        for step in steps {
            for patch in self.script.next(step, "2026-11-30T09:00:00Z").unwrap() {
                let call = patch.kubectl("FILE");
                let arguments: Vec<_> = call.arguments.iter().map(String::as_str).collect();
                let printed = self.with_file(&call.input.unwrap_or_default(), &arguments);
                if matches!(patch, cleat_kubevirt::patch::Patch::Make(..)) {
                    self.script.made(patch.of(), &printed);
                }
            }
        }
    }

    /// What there is of a volume that is wanted on both nodes.
    fn volume(&self) {
        let claim = self.make(&json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "root", "namespace": NAMESPACE},
            "spec": {
                "accessModes": ["ReadWriteMany"], "volumeMode": "Block", "storageClassName": "", "volumeName": "kubevirt-root",
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }));
        self.make(&json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "kubevirt-root"},
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "volumeMode": "Block",
                "csi": {"driver": DRIVER, "volumeHandle": "vol-root"},
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": NAMESPACE, "name": "root", "uid": claim},
            },
        }));
        for node in ["node-a", "node-b"] {
            self.make(&json!({
                "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment",
                "metadata": {"name": format!("kubevirt-{node}")},
                "spec": {"attacher": DRIVER, "nodeName": node, "source": {"persistentVolumeName": "kubevirt-root"}},
            }));
        }
    }
}

async fn until(kubevirt: &KubeVirt, what: &str, holds: impl Fn() -> bool) {
    let mut changes = kubevirt.changes();
    let held = async {
        while !holds() {
            assert!(changes.next().await);
        }
    };
    tokio::time::timeout(PATIENCE + LOOKED_FOR, held).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn kubevirt_comes_moves_a_vm_and_goes_without_a_restart() {
    let cluster = shared();
    let server = cluster.server().await;
    let plan = VmPlan {
        namespace: NAMESPACE.into(),
        name: "web".into(),
        disks: vec![Disk { claim: "root".into(), hotplugged: false }],
    };
    let mut player = Player { cluster, folder: tempfile::tempdir().unwrap(), script: Script::new(plan) };
    cluster.kubectl(&["create", "namespace", NAMESPACE]);
    cluster.kubectl(&["-n", NAMESPACE, "create", "serviceaccount", "default"]);
    player.volume();
    let watched = Attachments::watch(server.clone(), DRIVER);
    watched.whole().await;
    let attachments = watched.all_now().await.unwrap();
    assert_eq!(attachments.attachments.len(), 2);
    // No watch is waited for: what was written a moment ago is there.
    let now = async || mover_now(&watched, "vol-root", "node-b").await.unwrap().mover;
    assert_eq!(now().await, None, "there is no KubeVirt");

    let kubevirt = KubeVirt::watch(&server);
    until(&kubevirt, "absent", || {
        kubevirt.presence() == Presence::Absent && kubevirt.movers(&attachments).is_some()
    })
    .await;
    let mover = || kubevirt.movers(&attachments).and_then(|mut all| all.remove("vol-root"));
    assert_eq!(mover(), Some(MoverSeen::Nobody));

    player.with_file(&definitions(), &["apply", "-f", "FILE"]);
    let kinds =
        ["crd/virtualmachineinstances.kubevirt.io", "crd/virtualmachineinstancemigrations.kubevirt.io"];
    cluster.kubectl(&[&["wait", "--for=condition=Established"][..], &kinds].concat());
    assert_eq!(now().await, Some(MoverSeen::Nobody));
    until(&kubevirt, "there", || kubevirt.presence() == Presence::There).await;

    let moves = |mover| match mover {
        MoverSeen::Vm { migration, .. } => migration,
        _ => None,
    };
    player.play(&[
        Step::VmMade,
        Step::LauncherMade,
        Step::LauncherRuns { on: "node-a".into() },
        Step::Asked { to: "node-b".into() },
        Step::Accepted,
    ]);
    let stays = now().await.unwrap();
    assert!(matches!(&stays, MoverSeen::Vm { migration: None, .. }), "{stays:?}");
    player.play(&[Step::TargetMade, Step::TargetPlaced]);
    let prepared = now().await.and_then(moves).expect("it is published on the target from now on");
    assert_eq!((prepared.source.as_str(), prepared.target.as_deref()), ("node-a", Some("node-b")));
    assert!(prepared.stage == MoveStage::Preparing && prepared.name.is_some(), "{prepared:?}");
    let is_at = |stage| {
        mover().and_then(moves).is_some_and(|seen| {
            seen.stage == stage && seen.source == "node-a" && seen.target.as_deref() == Some("node-b")
        })
    };
    until(&kubevirt, "prepared", || is_at(MoveStage::Preparing)).await;
    player.play(&[
        Step::TargetRuns,
        Step::Scheduled,
        Step::HandedOver,
        Step::Preparing,
        Step::TargetReady,
        Step::Began,
    ]);
    until(&kubevirt, "running", || is_at(MoveStage::Running)).await;
    player.play(&[Step::Detected, Step::Switched, Step::Acknowledged, Step::Completed, Step::SourceEnds]);
    assert_eq!(now().await.and_then(moves).map(|seen| seen.stage), Some(MoveStage::Completed));
    until(&kubevirt, "completed", || is_at(MoveStage::Completed)).await;

    // A kind stays while one of it has finalizers.
    player.play(&[Step::VmDeleted]);
    until(&kubevirt, "deleted", || mover() == Some(MoverSeen::Nobody)).await;
    cluster.kubectl(&[&["delete"][..], &kinds].concat());
    until(&kubevirt, "gone", || kubevirt.presence() == Presence::Absent).await;
    assert_eq!(mover(), Some(MoverSeen::Nobody));
    assert_eq!(now().await, None);
}
