//! A cluster of the fixtures, for the tests of the join.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::join::{Objects, movers};
use super::mover::{MoveSeen, MoveStage, MoverSeen};
use super::objects::{self, ClaimSeen};
use super::objects_tests::{JOB, fixture};
use crate::attachments::{AllAttachments, PersistentVolumeSeen, SaysWho, VolumeAttachmentSeen};

const A: &str = "6e1c1ff4-0d4f-4b6e-9d2a-0000000000c1";
pub(super) const B: &str = "6e1c1ff4-0d4f-4b6e-9d2a-0000000000c2";
pub(super) const LATER: &str = "6e1c1ff4-0d4f-4b6e-9d2a-0000000000a2";

/// What the cluster has at one moment: a VM with a disk `vol-0` and a hotplugged one, `vol-1`.
#[derive(Clone)]
pub(super) struct Cluster {
    pub(super) attachments: AllAttachments,
    pub(super) claims: Vec<ClaimSeen>,
    pub(super) pods: Vec<Value>,
    pub(super) vms: Vec<Value>,
    pub(super) migrations: Vec<Value>,
}

impl Cluster {
    pub(super) fn of(pods: &[Value], vm: Value, migrations: &[Value]) -> Self {
        let claim =
            |name: &str, uid: &str| ClaimSeen { namespace: "vms".into(), name: name.into(), uid: uid.into() };
        let pv = |handle: &str, name: &str, uid: &str| PersistentVolumeSeen {
            name: format!("pv-{handle}"),
            handle: handle.into(),
            shared_block: true,
            claim: Some(("vms".into(), name.into(), uid.into())),
            attributes: BTreeMap::new(),
            says: SaysWho::default(),
        };
        let volumes = [pv("vol-0", "disk-0", "e1"), pv("vol-1", "disk-1", "e2")];
        let attachment = |(index, pv): (usize, &PersistentVolumeSeen)| VolumeAttachmentSeen {
            name: format!("csi-{index}"),
            pv: Some(pv.name.clone()),
            volume: None,
            node: "node-a".into(),
            created_ms: 0,
            deleting: false,
            attached: true,
            metadata: BTreeMap::new(),
        };
        Self {
            attachments: AllAttachments {
                attachments: volumes.iter().enumerate().map(attachment).collect(),
                volumes: volumes.into_iter().map(|pv| (pv.name.clone(), pv)).collect(),
            },
            claims: vec![claim("disk-0", "e1"), claim("disk-1", "e2")],
            pods: pods.to_vec(),
            vms: vec![vm],
            migrations: migrations.to_vec(),
        }
    }

    pub(super) fn movers(&self) -> BTreeMap<String, MoverSeen> {
        let mut pods: Vec<_> = self.pods.iter().filter_map(objects::pod).collect();
        let mut vms: Vec<_> = self.vms.iter().filter_map(objects::instance).collect();
        let mut migrations: Vec<_> = self.migrations.iter().filter_map(objects::migration).collect();
        let mut seen = Vec::new();
        for _ in 0..2 {
            seen.push(movers(&Objects {
                attachments: &self.attachments,
                claims: self.claims.iter().collect(),
                pods: pods.iter().collect(),
                vms: vms.iter().collect(),
                migrations: migrations.iter().collect(),
            }));
            // Their order says nothing.
            pods.reverse();
            vms.reverse();
            migrations.reverse();
        }
        assert_eq!(seen[0], seen[1]);
        seen.swap_remove(0)
    }

    pub(super) fn of_disk(&self) -> MoverSeen {
        self.movers().remove("vol-0").expect("it has a VolumeAttachment")
    }

    pub(super) fn migration(&self) -> Option<MoveSeen> {
        match self.of_disk() {
            MoverSeen::Vm { migration, .. } => migration.map(|one| *one),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn contradiction(&self) -> String {
        match self.of_disk() {
            MoverSeen::Contradiction { why } => why,
            other => panic!("{other:?}"),
        }
    }
}

/// An object, with something else at these places; `null` takes away what is there.
pub(super) fn with(mut object: Value, changes: &[(&str, Value)]) -> Value {
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let parent = object.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object");
        let key = key.replace("~1", "/");
        match value {
            Value::Null => drop(parent.remove(&key)),
            value => drop(parent.insert(key, value.clone())),
        }
    }
    object
}

pub(super) const JOB_LABEL: &str = "/metadata/labels/kubevirt.io~1migrationJobUID";

/// The launcher of a later migration.
pub(super) fn later_launcher(node: &str, minutes: u64) -> Value {
    with(
        fixture!("target-launcher"),
        &[
            ("/metadata/name", json!("virt-launcher-web-ccccc")),
            ("/metadata/uid", json!("c3")),
            ("/metadata/creationTimestamp", json!(format!("2026-11-30T09:{minutes:02}:00Z"))),
            (JOB_LABEL, json!(LATER)),
            ("/spec/nodeName", json!(node)),
        ],
    )
}

/// A later migration, from the launcher of that name.
pub(super) fn later_migration(phase: &str, source: &str) -> Value {
    with(
        fixture!("migration-pending"),
        &[
            ("/metadata/name", json!("web-again")),
            ("/metadata/uid", json!(LATER)),
            ("/metadata/creationTimestamp", json!("2026-11-30T09:10:00Z")),
            ("/status/phase", json!(phase)),
            ("/status/migrationState/sourcePod", json!(format!("virt-launcher-web-{source}"))),
        ],
    )
}

pub(super) fn ended(pod: Value) -> Value {
    with(pod, &[("/status/phase", json!("Succeeded"))])
}

pub(super) fn seen(stage: MoveStage, switched_ms: Option<u64>) -> MoveSeen {
    MoveSeen {
        uid: JOB.into(),
        name: Some("web-to-b".into()),
        source: "node-a".into(),
        target: Some("node-b".into()),
        stage,
        switched_ms,
        source_launcher: Some(A.into()),
        target_launcher: Some(B.into()),
    }
}

pub(super) fn pair() -> [Value; 4] {
    [fixture!("launcher"), fixture!("attachment"), fixture!("target-launcher"), fixture!("target-attachment")]
}
