//! What KubeVirt reports of migrations, rightly or not: any two nodes, any stage, at any moment.
//!
//! In comes nothing of what VMs do, for this world has none; out go reports to the newest leader. What always holds: two
//! reports of one direction are of one migration, which never comes a second time.

use cleat_core::{Event, MigrationUid, VmMigration, VmRef, VmStage};

use crate::kinds::Action;
use crate::names::{N, V, node_id, volume_id};
use crate::world::World;

/// Stages that something is decided by. A core takes the others as one of these.
const STAGES: [VmStage; 3] = [VmStage::Running, VmStage::Completed, VmStage::Aborted];

impl World {
    /// Every report of a volume that somebody has, or had.
    pub(crate) fn of_kubevirt(&self, all: &mut Vec<Action>) {
        let known = (0..self.setup.access.len()).filter(|v| self.stored.contains_key(&volume_id(*v)));
        for v in known {
            all.push(Action::Reported(v, None, VmStage::Preparing));
            let ways = self.nodes().flat_map(|s| self.nodes().map(move |t| (s, t))).filter(|(s, t)| s != t);
            for way in ways {
                all.extend(STAGES.map(|stage| Action::Reported(v, Some(way), stage)));
            }
        }
    }

    /// KubeVirt reports that a volume's VM goes from one node to another, or (`None`) that it does not move.
    pub(crate) fn reported(&mut self, v: V, way: Option<(N, N)>, stage: VmStage) {
        let vm = way.map(|(source, target)| {
            Box::new(VmMigration {
                uid: MigrationUid::new(format!("{v}-from-{source}-to-{target}")).expect("a UID"),
                name: "move".into(),
                vm: VmRef { namespace: "vms".into(), name: "vm".into(), uid: "vm".into() },
                source: node_id(source),
                target: Some(node_id(target)),
                stage,
                switched_at: None,
                target_pod: None,
            })
        });
        self.event(0, Event::MigrationSeen { volume: volume_id(v), vm });
    }
}
