//! A VM's life with its migrations, step by step.
//!
//! In comes a [`Step`] and the time; out go the writes that KubeVirt's programs, the scheduler and the kubelet do then, in their
//! order. What holds: a step that needs what no earlier one has made is refused; no object carries a UID that the cluster has
//! not given; no write is of an object that is not there.

use std::collections::VecDeque;

use serde_json::{Value, json};

pub use crate::migrate::migration_steps;
use crate::objects;
use crate::patch::{Kind, Named, Patch};
use crate::pods::Side;
pub use crate::step::{OutOfOrder, Step};

/// What a VM is made of.
#[derive(Clone, Debug)]
pub struct VmPlan {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its disks.
    pub disks: Vec<Disk>,
}

impl VmPlan {
    /// Some of its disks came while it ran.
    #[must_use]
    pub fn has_hotplugged(&self) -> bool {
        self.disks.iter().any(|disk| disk.hotplugged)
    }
}

/// A disk of a VM.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The name of its claim, and its own.
    pub claim: String,
    /// It came while the VM ran, in a pod of its own.
    pub hotplugged: bool,
}

/// A VM, as far as it was played.
#[derive(Clone, Debug)]
pub struct Script {
    pub(crate) plan: VmPlan,
    pub(crate) vm_uid: Option<String>,
    /// Where the VM is.
    pub(crate) source: Side,
    pub(crate) moving: Option<Moving>,
    /// Where the VM was before its last migration, while pods are there still.
    pub(crate) left: Option<Side>,
    /// Where the VM has never come to, while pods are there still.
    pub(crate) missed: Option<Missed>,
    /// `status.migrationState` of the VM.
    pub(crate) state: Value,
    /// Migrations that are over and still there, the oldest first.
    pub(crate) past: VecDeque<Past>,
    /// Pods that have ended and are still there.
    pub(crate) remains: Vec<String>,
    pub(crate) launchers: u32,
    migrations: u32,
}

/// A migration that is not over.
#[derive(Clone, Debug)]
pub(crate) struct Moving {
    pub(crate) name: String,
    pub(crate) uid: Option<String>,
    pub(crate) to: String,
    pub(crate) target: Side,
    pub(crate) phase: &'static str,
    transitions: Vec<Value>,
    pub(crate) handed_over: bool,
    /// Somebody has deleted it.
    pub(crate) deleted: bool,
}

/// A target that was none in the end.
#[derive(Clone, Debug)]
pub(crate) struct Missed {
    pub(crate) side: Side,
    /// virt-controller has deleted its pod.
    pub(crate) deleted: bool,
}

/// A migration that is over.
#[derive(Clone, Debug)]
pub(crate) struct Past {
    pub(crate) name: String,
    /// The pod that goes with it.
    pub(crate) pod: Option<String>,
}

/// What there is to write, or what is not there yet that it needs.
pub(crate) type Written = Result<Vec<Patch>, &'static str>;

impl Script {
    /// Nothing of it is there yet.
    #[must_use]
    pub fn new(plan: VmPlan) -> Self {
        Self {
            plan,
            vm_uid: None,
            source: Side::default(),
            moving: None,
            left: None,
            missed: None,
            state: json!({}),
            past: VecDeque::new(),
            remains: Vec::new(),
            launchers: 0,
            migrations: 0,
        }
    }

    /// Of which VM.
    #[must_use]
    pub fn plan(&self) -> &VmPlan {
        &self.plan
    }

    /// What is written at that step, at that time.
    ///
    /// # Errors
    /// The step cannot come now.
    pub fn next(&mut self, step: &Step, now: &str) -> Result<Vec<Patch>, OutOfOrder> {
        self.write(step, now).map_err(|lacks| OutOfOrder { step: step.clone(), lacks })
    }

    fn write(&mut self, step: &Step, now: &str) -> Written {
        match step {
            Step::VmMade => Ok(vec![Patch::Make(self.vm(), objects::vm(&self.plan))]),
            Step::LauncherMade => self.launcher_made(),
            Step::LauncherRuns { on } => self.launcher_runs(on),
            Step::Plugged => self.plugged(),
            Step::Asked { to } => self.asked(to, false),
            Step::Evicted { to } => self.asked(to, true),
            Step::SourceEnds => self.source_ends(),
            Step::TargetEnds => self.target_ends(),
            Step::VmDeleted => Ok(self.vm_deleted(now)),
            migration => self.migrate(migration, now),
        }
    }

    /// The cluster has made an object and gave it that UID.
    pub fn made(&mut self, named: &Named, uid: &str) {
        let uid = Some(uid.to_owned());
        match named.kind {
            Kind::VirtualMachineInstance => self.vm_uid = uid,
            Kind::VirtualMachineInstanceMigration => {
                if let Some(moving) = self.moving.as_mut().filter(|moving| moving.name == named.name) {
                    moving.uid = uid;
                }
            }
            Kind::Pod => {
                let sides = [Some(&mut self.source), self.moving.as_mut().map(|moving| &mut moving.target)];
                let mut pods = sides.into_iter().flatten().flat_map(Side::pods_mut).flatten();
                if let Some(pod) = pods.find(|pod| pod.name == named.name) {
                    pod.uid = uid;
                }
            }
        }
    }

    fn launcher_made(&mut self) -> Written {
        let (named, (pod, object)) = self.new_launcher(None)?;
        self.source = Side { launcher: Some(pod), ..Side::default() };
        Ok(vec![Patch::Make(named, object), self.vm_status(json!({"phase": "Scheduling"}))])
    }

    fn launcher_runs(&mut self, on: &str) -> Written {
        let (pod, uid) = self.known(self.source.launcher.as_ref(), "pod of the VM")?;
        self.source.node = Some(on.to_owned());
        let scheduled = json!({
            "metadata": {"labels": {"kubevirt.io/nodeName": on}},
            "status": {"phase": "Scheduled", "nodeName": on, "activePods": {uid: on}},
        });
        Ok(vec![
            Patch::Place(pod.clone(), on.to_owned()),
            Patch::Status(pod, json!({"phase": "Running"})),
            Patch::Merge(self.vm(), scheduled),
            self.vm_status(json!({"phase": "Running"})),
        ])
    }

    fn plugged(&mut self) -> Written {
        let node = self.source.node.clone().ok_or("node of the VM")?;
        let (named, (pod, object)) = self.new_attachment(&self.source, None)?;
        self.source.attachment = Some(pod);
        Ok(vec![
            Patch::Make(named.clone(), object),
            Patch::Place(named.clone(), node),
            Patch::Status(named, json!({"phase": "Running"})),
        ])
    }

    fn asked(&mut self, to: &str, drained: bool) -> Written {
        let node = self.source.node.clone().ok_or("node of the VM")?;
        if self.moving.is_some() {
            return Err("end of the migration before");
        }
        self.migrations += 1;
        let by = if drained { "kubevirt-evacuation-" } else { "" };
        let moving = Moving {
            name: format!("{by}{}-{}", self.plan.name, self.migrations),
            uid: None,
            to: to.to_owned(),
            target: Side::default(),
            phase: "",
            transitions: Vec::new(),
            handed_over: false,
            deleted: false,
        };
        let from = drained.then_some(node.as_str());
        let made = Patch::Make(self.object(&moving), objects::migration(&self.plan, from));
        let marked = from.map(|node| self.vm_status(json!({"evacuationNodeName": node})));
        self.moving = Some(moving);
        Ok(marked.into_iter().chain([made]).collect())
    }

    fn vm_deleted(&mut self, now: &str) -> Vec<Patch> {
        let moving = self.moving.take();
        let target = moving.as_ref().map(|moving| moving.target.clone());
        let missed = self.missed.take().map(|missed| missed.side);
        let sides = [Some(std::mem::take(&mut self.source)), target, self.left.take(), missed];
        let sides: Vec<_> = sides.into_iter().flatten().collect();
        let mut written = vec![Patch::Delete(self.vm())];
        written.extend(sides.iter().filter_map(|side| self.leaves(side)));
        written.push(self.vm_status(json!({"phase": "Succeeded"})));
        if let Some(mut moving) = moving {
            written.push(self.phase(&mut moving, "Failed", now));
            written.extend(self.closed(&moving, None));
        }
        written.extend(sides.iter().flat_map(|side| self.gone(side)));
        let pods = std::mem::take(&mut self.remains);
        written.extend(pods.iter().map(|name| Patch::Delete(self.named(Kind::Pod, name))));
        written.push(Patch::Merge(self.vm(), json!({"metadata": {"finalizers": null}})));
        let past = std::mem::take(&mut self.past);
        let migration = Kind::VirtualMachineInstanceMigration;
        written.extend(past.iter().map(|past| Patch::Delete(self.named(migration, &past.name))));
        written
    }

    pub(crate) fn vm(&self) -> Named {
        self.named(Kind::VirtualMachineInstance, &self.plan.name)
    }

    pub(crate) fn named(&self, kind: Kind, name: &str) -> Named {
        Named { kind, namespace: self.plan.namespace.clone(), name: name.to_owned() }
    }

    pub(crate) fn vm_status(&self, status: Value) -> Patch {
        Patch::Merge(self.vm(), json!({ "status": status }))
    }

    /// The migration comes to a phase.
    pub(crate) fn phase(&self, moving: &mut Moving, phase: &'static str, now: &str) -> Patch {
        moving.phase = phase;
        moving.transitions.push(json!({"phase": phase, "phaseTransitionTimestamp": now}));
        let status = json!({"phase": phase, "phaseTransitionTimestamps": moving.transitions});
        Patch::Merge(self.object(moving), json!({ "status": status }))
    }

    pub(crate) fn object(&self, moving: &Moving) -> Named {
        self.named(Kind::VirtualMachineInstanceMigration, &moving.name)
    }
}
