//! KubeVirt: VMs that `tests/kubevirt` plays, and what a controller's watches would have of their objects.
//!
//! Comes in: the next step of a VM. Goes out: who has each volume, joined by the code that ships. Always holds: nothing is
//! written that KubeVirt would not write at that step; while it does not answer, nothing is seen.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use cleat_controller::app::Movers;
use cleat_kubernetes::attachments::{AllAttachments, PersistentVolumeSeen, SaysWho, VolumeAttachmentSeen};
use cleat_kubernetes::kubevirt::join::{Objects, movers};
use cleat_kubernetes::kubevirt::mover::MoverSeen;
use cleat_kubernetes::kubevirt::objects::{self, ClaimSeen};
use cleat_kubevirt::patch::Kind;
use cleat_kubevirt::script::{Disk, Script, Step, VmPlan};
use cleat_kubevirt::stored::Stored;
use futures_util::stream;

use crate::world::{EPOCH_MS, NODES, Universe, VolumeIx, volume_id};

/// Between two looks of a controller.
const LOOK: Duration = Duration::from_millis(200);
const NAMESPACE: &str = "vms";

/// All VMs, each with one volume.
#[derive(Debug, Default)]
pub struct KubeVirt {
    /// It is there.
    pub begun: bool,
    /// The API server does not answer for now.
    pub is_silent: bool,
    vms: Vec<(VolumeIx, Script)>,
    stored: Stored,
}

impl KubeVirt {
    /// Another VM, of which nothing was played yet. Gives its number.
    pub fn add(&mut self, volume: VolumeIx) -> usize {
        self.begun = true;
        let disks = vec![Disk { claim: volume_id(volume), hotplugged: false }];
        let name = format!("vm-{volume}");
        self.vms.push((volume, Script::new(VmPlan { namespace: NAMESPACE.into(), name, disks })));
        self.vms.len() - 1
    }

    /// Plays a VM's next step.
    ///
    /// # Errors
    /// That it cannot come now.
    pub fn play(&mut self, vm: usize, step: &Step, now_ms: u64) -> Result<(), String> {
        let now = UNIX_EPOCH + Duration::from_millis(EPOCH_MS + now_ms);
        let now = humantime::format_rfc3339_seconds(now).to_string();
        let (_, script) = self.vms.get_mut(vm).ok_or("there is no such VM")?;
        for patch in script.next(step, &now).map_err(|error| error.to_string())? {
            if let Some(uid) = self.stored.apply(&patch, &now) {
                script.made(patch.of(), &uid);
            }
        }
        Ok(())
    }

    fn movers(&self) -> BTreeMap<String, MoverSeen> {
        let claims: Vec<_> = self.vms.iter().map(|(volume, _)| claim(*volume)).collect();
        let attachments = attachments(&claims);
        let all = |kind| self.stored.all(kind);
        let pods: Vec<_> = all(Kind::Pod).filter_map(objects::pod).collect();
        let vms: Vec<_> = all(Kind::VirtualMachineInstance).filter_map(objects::instance).collect();
        let migrations: Vec<_> =
            all(Kind::VirtualMachineInstanceMigration).filter_map(objects::migration).collect();
        movers(&Objects {
            attachments: &attachments,
            claims: claims.iter().collect(),
            pods: pods.iter().collect(),
            vms: vms.iter().collect(),
            migrations: migrations.iter().collect(),
        })
    }
}

fn claim(volume: VolumeIx) -> ClaimSeen {
    let id = volume_id(volume);
    ClaimSeen { namespace: NAMESPACE.into(), uid: format!("uid-of-{id}"), name: id }
}

/// Each volume has a PersistentVolume of its claim, and somebody wants it somewhere.
fn attachments(claims: &[ClaimSeen]) -> AllAttachments {
    let pv = |claim: &ClaimSeen| PersistentVolumeSeen {
        name: claim.name.clone(),
        handle: claim.name.clone(),
        shared_block: true,
        claim: Some((claim.namespace.clone(), claim.name.clone(), claim.uid.clone())),
        attributes: BTreeMap::new(),
        says: SaysWho::default(),
    };
    let wanted = |claim: &ClaimSeen| VolumeAttachmentSeen {
        name: claim.name.clone(),
        pv: Some(claim.name.clone()),
        volume: None,
        node: NODES[0].into(),
        created_ms: 0,
        deleting: false,
        attached: true,
        metadata: BTreeMap::new(),
    };
    AllAttachments {
        attachments: claims.iter().map(wanted).collect(),
        volumes: claims.iter().map(|claim| (claim.name.clone(), pv(claim))).collect(),
    }
}

/// What a controller sees, look after look.
#[must_use]
pub fn looks(universe: Universe) -> Movers {
    Box::pin(stream::unfold(universe, |universe| async move {
        loop {
            tokio::time::sleep(LOOK).await;
            let seen = {
                let world = universe.lock();
                (!world.kubevirt.is_silent).then(|| world.kubevirt.movers())
            };
            if let Some(seen) = seen {
                return Some((seen, universe));
            }
        }
    }))
}
