//! VMs that are played, and what the join makes of what was written.

use std::collections::BTreeMap;

use cleat_kubernetes::attachments::{AllAttachments, PersistentVolumeSeen, SaysWho, VolumeAttachmentSeen};
use cleat_kubernetes::kubevirt::join::{Objects, movers};
use cleat_kubernetes::kubevirt::mover::MoverSeen;
use cleat_kubernetes::kubevirt::objects::{self, ClaimSeen, PodSeen, VmMigrationSeen, VmSeen};

use crate::patch::{Kind, Patch};
use crate::scenes::{Cue, Scene};
use crate::script::{Disk, Script, Step, VmPlan, migration_steps};
use crate::stored::Stored;

/// All volumes that there are VolumeAttachments of; their claims have their names.
const VOLUMES: [&str; 3] = ["root", "data", "root-2"];

/// VMs that are played, and everything that was ever stored.
pub(crate) struct Play {
    pub(crate) scripts: Vec<Script>,
    pub(crate) stored: Stored,
    seconds: u64,
    /// Where each VM runs.
    nodes: Vec<String>,
    /// Where each migration goes from and to, by its UID.
    pub(crate) sides: BTreeMap<String, (String, String)>,
    pub(crate) history: Vec<Stored>,
}

impl Play {
    pub(crate) fn of(vms: &[VmPlan]) -> Self {
        Self {
            scripts: vms.iter().cloned().map(Script::new).collect(),
            stored: Stored::default(),
            seconds: 0,
            nodes: vec![String::new(); vms.len()],
            sides: BTreeMap::new(),
            history: Vec::new(),
        }
    }

    /// One that runs on A.
    pub(crate) fn running(disks: &[(&str, bool)]) -> Self {
        let vm = vm("web", disks);
        let mut play = Self::of(std::slice::from_ref(&vm));
        play.steps(&[Step::VmMade, Step::LauncherMade, Step::LauncherRuns { on: "a".into() }]);
        if vm.has_hotplugged() {
            play.step(&Step::Plugged);
        }
        play
    }

    /// A scene, on the nodes A, B and C.
    pub(crate) fn scene(scene: Scene, vms: &[VmPlan]) -> Self {
        let nodes = ["a", "b", "c"].map(str::to_owned);
        let cues = scene.cues(vms, &nodes).unwrap_or_else(|error| panic!("{error}"));
        let mut play = Self::of(vms);
        for Cue { vm, step, .. } in cues {
            play.step_of(vm, &step);
        }
        play
    }

    pub(crate) fn steps(&mut self, steps: &[Step]) {
        steps.iter().for_each(|step| self.step(step));
    }

    pub(crate) fn step(&mut self, step: &Step) {
        self.step_of(0, step);
    }

    pub(crate) fn step_of(&mut self, vm: usize, step: &Step) {
        self.seconds += 1;
        let now = format!("2026-11-30T09:{:02}:{:02}Z", self.seconds / 60, self.seconds % 60);
        for patch in self.scripts[vm].next(step, &now).unwrap_or_else(|error| panic!("{error}")) {
            let is_new = matches!(patch, Patch::Make(..));
            assert_eq!(self.stored.get(patch.of()).is_none(), is_new, "{step:?}: {patch:?}");
            if let Some(uid) = self.stored.apply(&patch, &now) {
                self.scripts[vm].made(patch.of(), &uid);
                if let Step::Asked { to } | Step::Evicted { to } = step {
                    self.sides.insert(uid, (self.nodes[vm].clone(), to.clone()));
                }
            }
            self.history.push(self.stored.clone());
        }
        match step {
            Step::LauncherRuns { on } => self.nodes[vm].clone_from(on),
            Step::Completed => self.nodes[vm] = self.moved_to(vm),
            _ => {}
        }
    }

    fn moved_to(&self, vm: usize) -> String {
        let object = self.stored.get(&self.scripts[vm].vm()).expect("the VM");
        object["status"]["nodeName"].as_str().expect("its node").to_owned()
    }

    /// To another node, up to and with a step.
    pub(crate) fn migrate(&mut self, to: &str, last: &Step) {
        self.step(&Step::Asked { to: to.into() });
        for step in migration_steps(self.scripts[0].plan().has_hotplugged()) {
            self.step(&step);
            if step == *last {
                return;
            }
        }
        panic!("{last:?} is no step of a migration");
    }

    pub(crate) fn moves(&mut self, to: &str) {
        self.migrate(to, &Step::Completed);
        self.step(&Step::SourceEnds);
    }

    pub(crate) fn shown(&self, volume: &str) -> String {
        shown_at(&self.stored, volume)
    }

    /// What was seen of a volume from the first write to the last.
    pub(crate) fn course(&self, volume: &str) -> Vec<String> {
        let mut all: Vec<_> = self.history.iter().map(|stored| shown_at(stored, volume)).collect();
        all.dedup();
        all
    }
}

pub(crate) fn vm(name: &str, disks: &[(&str, bool)]) -> VmPlan {
    let disk = |&(claim, hotplugged): &(&str, bool)| Disk { claim: claim.into(), hotplugged };
    VmPlan { namespace: "vms".into(), name: name.into(), disks: disks.iter().map(disk).collect() }
}

/// What a watch of each kind has at one moment.
#[derive(Clone, PartialEq)]
pub(crate) struct View {
    pub(crate) pods: Vec<PodSeen>,
    pub(crate) vms: Vec<VmSeen>,
    pub(crate) migrations: Vec<VmMigrationSeen>,
}

impl View {
    pub(crate) fn of(stored: &Stored) -> Self {
        let migration = Kind::VirtualMachineInstanceMigration;
        Self {
            pods: stored.all(Kind::Pod).filter_map(objects::pod).collect(),
            vms: stored.all(Kind::VirtualMachineInstance).filter_map(objects::instance).collect(),
            migrations: stored.all(migration).filter_map(objects::migration).collect(),
        }
    }
}

thread_local! {
    static ATTACHMENTS: AllAttachments = attachments();
}

/// Who has each volume, by views that need not be of one moment.
pub(crate) fn look(pods: &View, vms: &View, migrations: &View) -> BTreeMap<String, MoverSeen> {
    let claim =
        |name: &&str| ClaimSeen { namespace: "vms".into(), name: (*name).into(), uid: (*name).into() };
    let claims: Vec<_> = VOLUMES.iter().map(claim).collect();
    ATTACHMENTS.with(|attachments| {
        movers(&Objects {
            attachments,
            claims: claims.iter().collect(),
            pods: pods.pods.iter().collect(),
            vms: vms.vms.iter().collect(),
            migrations: migrations.migrations.iter().collect(),
        })
    })
}

fn attachments() -> AllAttachments {
    let pv = |name: &&str| PersistentVolumeSeen {
        name: (*name).into(),
        handle: (*name).into(),
        shared_block: true,
        claim: Some(("vms".into(), (*name).into(), (*name).into())),
        attributes: BTreeMap::new(),
        says: SaysWho::default(),
    };
    let attachment = |name: &&str| VolumeAttachmentSeen {
        name: (*name).into(),
        pv: Some((*name).into()),
        volume: None,
        node: "a".into(),
        created_ms: 0,
        deleting: false,
        attached: true,
        metadata: BTreeMap::new(),
    };
    AllAttachments {
        attachments: VOLUMES.iter().map(attachment).collect(),
        volumes: VOLUMES.iter().map(|name| ((*name).into(), pv(name))).collect(),
    }
}

fn shown_at(stored: &Stored, volume: &str) -> String {
    let view = View::of(stored);
    show(&look(&view, &view, &view)[volume])
}

pub(crate) fn show(mover: &MoverSeen) -> String {
    match mover {
        MoverSeen::Nobody => "nobody".into(),
        MoverSeen::Contradiction { why } => format!("contradiction: {why}"),
        MoverSeen::Vm { migration: None, .. } => "stays".into(),
        MoverSeen::Vm { migration: Some(one), .. } => {
            let (to, switched) =
                (one.target.as_deref().unwrap_or("?"), one.switched_ms.map_or("", |_| ", switched"));
            format!("{}>{to} {:?}{switched}", one.source, one.stage)
        }
    }
}
