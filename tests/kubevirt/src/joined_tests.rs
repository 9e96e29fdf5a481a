//! What the script writes, joined by what reads it: each checks the other.

use std::collections::BTreeMap;

use cleat_kubernetes::attachments::{AllAttachments, PersistentVolumeSeen, SaysWho, VolumeAttachmentSeen};
use cleat_kubernetes::kubevirt::join::{Objects, movers};
use cleat_kubernetes::kubevirt::mover::{MoveStage, MoverSeen};
use cleat_kubernetes::kubevirt::objects::{self, ClaimSeen, PodSeen, VmMigrationSeen, VmSeen};

use crate::patch::Kind;
use crate::script::{Disk, Script, Step, VmPlan};
use crate::stored::Stored;

/// A VM that is played, and everything that was ever stored.
struct Play {
    script: Script,
    stored: Stored,
    seconds: u64,
    node: String,
    /// Where each migration goes from and to, by its UID.
    sides: BTreeMap<String, (String, String)>,
    history: Vec<Stored>,
}

impl Play {
    fn of(disks: &[(&str, bool)]) -> Self {
        let disk = |&(claim, hotplugged): &(&str, bool)| Disk { claim: claim.into(), hotplugged };
        let plan =
            VmPlan { namespace: "vms".into(), name: "web".into(), disks: disks.iter().map(disk).collect() };
        Self {
            script: Script::new(plan),
            stored: Stored::default(),
            seconds: 0,
            node: String::new(),
            sides: BTreeMap::new(),
            history: Vec::new(),
        }
    }

    /// One that runs on A.
    fn running(disks: &[(&str, bool)]) -> Self {
        let mut play = Self::of(disks);
        play.steps(&[Step::VmMade, Step::LauncherMade, Step::LauncherRuns { on: "a".into() }]);
        if disks.iter().any(|&(_, hotplugged)| hotplugged) {
            play.step(&Step::Plugged);
        }
        play
    }

    fn steps(&mut self, steps: &[Step]) {
        steps.iter().for_each(|step| self.step(step));
    }

    fn step(&mut self, step: &Step) {
        self.seconds += 1;
        let now = format!("2026-11-30T09:{:02}:{:02}Z", self.seconds / 60, self.seconds % 60);
        for patch in self.script.next(step, &now).unwrap_or_else(|error| panic!("{error}")) {
            if let Some(uid) = self.stored.apply(&patch, &now) {
                self.script.made(patch.of(), &uid);
                if let Step::Asked { to } = step {
                    self.sides.insert(uid, (self.node.clone(), to.clone()));
                }
            }
            self.history.push(self.stored.clone());
        }
        match step {
            Step::LauncherRuns { on } => self.node.clone_from(on),
            Step::SourceEnds => {
                self.node = self.sides.values().last().map(|(_, to)| to.clone()).unwrap_or_default()
            }
            _ => {}
        }
    }

    /// To another node, up to and with a step.
    fn migrate(&mut self, to: &str, last: &Step) {
        let is_hotplug = |pod: &serde_json::Value| pod["metadata"]["labels"]["kubevirt.io"] == "hotplug-disk";
        let hotplug = self.stored.all(Kind::Pod).any(is_hotplug);
        for step in migration(to, hotplug) {
            self.step(&step);
            if step == *last {
                return;
            }
        }
        panic!("{last:?} is no step of a migration");
    }

    fn shown(&self, volume: &str) -> String {
        let view = View::of(&self.stored);
        show(&look(&view, &view, &view)[volume])
    }
}

/// The steps of a migration that goes well.
fn migration(to: &str, with_hotplugged: bool) -> Vec<Step> {
    let mut steps = vec![
        Step::Asked { to: to.into() },
        Step::Accepted,
        Step::TargetMade,
        Step::TargetPlaced,
        Step::TargetRuns,
    ];
    if with_hotplugged {
        steps.extend([Step::TargetPlugs, Step::TargetPlugged]);
    }
    steps.extend([
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
    steps
}

/// What a watch of each kind has at one moment.
#[derive(Clone, PartialEq)]
struct View {
    pods: Vec<PodSeen>,
    vms: Vec<VmSeen>,
    migrations: Vec<VmMigrationSeen>,
}

impl View {
    fn of(stored: &Stored) -> Self {
        Self {
            pods: stored.all(Kind::Pod).filter_map(objects::pod).collect(),
            vms: stored.all(Kind::VirtualMachineInstance).filter_map(objects::instance).collect(),
            migrations: stored
                .all(Kind::VirtualMachineInstanceMigration)
                .filter_map(objects::migration)
                .collect(),
        }
    }
}

thread_local! {
    static ATTACHMENTS: AllAttachments = attachments();
}

/// Who has the volumes `root` and `data`, by views that need not be of one moment.
fn look(pods: &View, vms: &View, migrations: &View) -> BTreeMap<String, MoverSeen> {
    let claim =
        |name: &&str| ClaimSeen { namespace: "vms".into(), name: (*name).into(), uid: (*name).into() };
    let claims: Vec<_> = ["root", "data"].iter().map(claim).collect();
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
    let volumes = ["root", "data"];
    AllAttachments {
        attachments: volumes.iter().map(attachment).collect(),
        volumes: volumes.iter().map(|name| ((*name).into(), pv(name))).collect(),
    }
}

fn show(mover: &MoverSeen) -> String {
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

#[test]
fn each_step_of_a_migration_is_seen_as_what_it_is() {
    let mut play = Play::of(&[("root", false), ("data", true)]);
    let on_a = Step::LauncherRuns { on: "a".into() };
    for (step, root, data) in [
        (Step::VmMade, "nobody", "nobody"),
        (Step::LauncherMade, "stays", "nobody"),
        (on_a, "stays", "nobody"),
        (Step::Plugged, "stays", "stays"),
        (Step::Asked { to: "b".into() }, "stays", "stays"),
        (Step::Accepted, "stays", "stays"),
        (Step::TargetMade, "a>? Preparing", "a>? Preparing"),
        // Here its Publish comes: the VM's status does not speak of it.
        (Step::TargetPlaced, "a>b Preparing", "a>b Preparing"),
        (Step::TargetRuns, "a>b Preparing", "a>b Preparing"),
        (Step::TargetPlugs, "a>b Preparing", "a>b Preparing"),
        (Step::TargetPlugged, "a>b Preparing", "a>b Preparing"),
        (Step::Scheduled, "a>b Preparing", "a>b Preparing"),
        (Step::HandedOver, "a>b Preparing", "a>b Preparing"),
        (Step::Preparing, "a>b Preparing", "a>b Preparing"),
        (Step::TargetReady, "a>b Preparing", "a>b Preparing"),
        (Step::Began, "a>b Running", "a>b Running"),
        (Step::Detected, "a>b Running", "a>b Running"),
        (Step::Switched, "a>b Running, switched", "a>b Running, switched"),
        (Step::Acknowledged, "a>b Running, switched", "a>b Running, switched"),
        (Step::Completed, "a>b Completed, switched", "a>b Completed, switched"),
        (Step::SourceEnds, "a>b Completed, switched", "a>b Completed, switched"),
        (Step::Asked { to: "a".into() }, "a>b Completed, switched", "a>b Completed, switched"),
        (Step::Accepted, "a>b Completed, switched", "a>b Completed, switched"),
        (Step::TargetMade, "b>? Preparing", "b>? Preparing"),
        (Step::TargetPlaced, "b>a Preparing", "b>a Preparing"),
    ] {
        play.step(&step);
        let shown = (play.shown("root"), play.shown("data"));
        assert_eq!((shown.0.as_str(), shown.1.as_str()), (root, data), "{step:?}");
    }
}

#[test]
fn however_it_ends_it_is_seen_as_that() {
    let (early, running) = (Step::TargetPlaced, Step::Began);
    for (last, ends, shown) in [
        (&early, &[Step::AbortAsked][..], "stays"),
        (&early, &[Step::TargetDied], "a>b Failed"),
        // Before the handover only the source's pod says where it was: without it nothing is attributed.
        (&early, &[Step::SourceDied], "stays"),
        (&early, &[Step::VmDeleted], "nobody"),
        (&Step::HandedOver, &[Step::TargetDied], "a>b Failed"),
        (&Step::HandedOver, &[Step::AbortAsked], "a>b Preparing"),
        (&running, &[Step::AbortAsked], "a>b Running"),
        (&running, &[Step::AbortAsked, Step::Aborted], "a>b Aborted"),
        (&running, &[Step::Failed], "a>b Failed"),
        (&running, &[Step::TargetDied], "a>b Failed"),
        (&running, &[Step::SourceDied], "a>b Failed"),
        (&running, &[Step::VmDeleted], "nobody"),
        (&Step::Switched, &[Step::SourceDied], "a>b Failed, switched"),
    ] {
        let mut play = Play::running(&[("root", false)]);
        play.migrate("b", last);
        play.steps(ends);
        assert_eq!(play.shown("root"), shown, "{last:?}, {ends:?}");
    }
}

/// A long life of a VM: there and back, an abort at each end, a failure, a third node.
fn long_life() -> Play {
    let mut play = Play::running(&[("root", false), ("data", true)]);
    play.migrate("b", &Step::SourceEnds);
    play.migrate("a", &Step::SourceEnds);
    play.migrate("b", &Step::TargetPlaced);
    play.step(&Step::AbortAsked);
    play.migrate("c", &Step::Began);
    play.steps(&[Step::AbortAsked, Step::Aborted]);
    play.migrate("b", &Step::Detected);
    play.step(&Step::Failed);
    play.migrate("c", &Step::SourceEnds);
    play.migrate("a", &Step::TargetRuns);
    play.step(&Step::TargetDied);
    play.migrate("b", &Step::SourceEnds);
    play
}

#[test]
fn no_write_in_between_takes_a_migration_back_or_contradicts() {
    let play = long_life();
    let mut stages: BTreeMap<String, MoveStage> = BTreeMap::new();
    let mut newest = Vec::new();
    for stored in &play.history {
        let view = View::of(stored);
        let mover = look(&view, &view, &view).remove("root").expect("it has a VolumeAttachment");
        let MoverSeen::Vm { migration, .. } = mover else {
            assert_eq!(mover, MoverSeen::Nobody, "{}", show(&mover));
            continue;
        };
        let Some(seen) = migration else { continue };
        let before = stages.insert(seen.uid.clone(), seen.stage);
        assert!(before.is_none_or(|before| before <= seen.stage), "{before:?}, then {seen:?}");
        assert!(
            before.is_none_or(|before| !before.is_over() || before == seen.stage),
            "{before:?}, then {seen:?}"
        );
        if newest.last() != Some(&seen.uid) {
            newest.push(seen.uid);
        }
    }
    // One that was aborted before its target was handed over leaves nothing, so the one before it is the newest again.
    let ended: Vec<_> = play.sides.keys().map(|uid| stages[uid]).collect();
    let (done, failed, aborted) = (MoveStage::Completed, MoveStage::Failed, MoveStage::Aborted);
    assert_eq!(ended, [done, done, MoveStage::Preparing, aborted, failed, done, failed, done]);
    let order: Vec<_> = play.sides.keys().collect();
    let mut expected = order.clone();
    expected.insert(3, order[1]);
    assert_eq!(newest.iter().collect::<Vec<_>>(), expected);
}

#[test]
fn watches_that_are_behind_each_other_never_swap_sides() {
    let play = long_life();
    let mut views: [Vec<View>; 3] = Default::default();
    for stored in &play.history {
        let view = View::of(stored);
        let [pods, vms, migrations] = &mut views;
        let differs =
            |last: Option<&View>, same: fn(&View, &View) -> bool| !last.is_some_and(|last| same(last, &view));
        if differs(pods.last(), |a, b| a.pods == b.pods) {
            pods.push(view.clone());
        }
        if differs(vms.last(), |a, b| a.vms == b.vms) {
            vms.push(view.clone());
        }
        if differs(migrations.last(), |a, b| a.migrations == b.migrations) {
            migrations.push(view.clone());
        }
    }
    let [pods, vms, migrations] = &views;
    let (mut looks, mut moving) = (0, 0);
    for pods in pods {
        for vms in vms {
            for migrations in migrations {
                looks += 1;
                for mover in look(pods, vms, migrations).into_values() {
                    let MoverSeen::Vm { migration, .. } = mover else {
                        assert_eq!(mover, MoverSeen::Nobody, "{}", show(&mover));
                        continue;
                    };
                    let Some(seen) = migration else { continue };
                    moving += 1;
                    let (source, target) = &play.sides[&seen.uid];
                    assert_eq!(&seen.source, source, "{seen:?}");
                    assert!(seen.target.as_ref().is_none_or(|to| to == target), "{seen:?}");
                }
            }
        }
    }
    assert!(looks > 10_000 && moving > looks, "{looks} looks, {moving} migrations");
}
