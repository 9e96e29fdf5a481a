//! A VM's life with its migrations, step by step.
//!
//! In comes a [`Step`] and the time; out go the writes that KubeVirt's programs, the scheduler and the kubelet do then, in their
//! order. What holds: a step that needs what no earlier one has made is refused; no object carries a UID that the cluster has
//! not given.

use std::fmt;

use serde_json::{Value, json};

use crate::objects::{self, Job};
use crate::patch::{Kind, Named, Patch};

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

/// A disk of a VM.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The name of its claim, and its own.
    pub claim: String,
    /// It came while the VM ran, in a pod of its own.
    pub hotplugged: bool,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Somebody makes the VM.
    VmMade,
    /// virt-controller makes its pod.
    LauncherMade,
    /// The scheduler places it, the kubelet has it run, the VM runs.
    LauncherRuns {
        /// Where.
        on: String,
    },
    /// The hotplugged disks come.
    Plugged,
    /// Somebody asks for a migration.
    Asked {
        /// The node that the scheduler will choose.
        to: String,
    },
    /// virt-controller takes it on.
    Accepted,
    /// It makes the target pod.
    TargetMade,
    /// The scheduler places that: its volumes are published there from now on.
    TargetPlaced,
    /// The kubelet has it run.
    TargetRuns,
    /// virt-controller makes the pod with the hotplugged disks there: these are published from now on.
    TargetPlugs,
    /// The kubelet has it run.
    TargetPlugged,
    /// All pods of the target are ready.
    Scheduled,
    /// The VM's status speaks of the migration: the target's virt-handler begins.
    HandedOver,
    /// virt-controller has seen that.
    Preparing,
    /// The target says where it takes the VM.
    TargetReady,
    /// The source begins to copy the memory.
    Began,
    /// The target has seen the VM's domain.
    Detected,
    /// The VM runs at the target.
    Switched,
    /// The target has the VM: its node is another one.
    Acknowledged,
    /// It is over, and well.
    Completed,
    /// The source's pods end.
    SourceEnds,
    /// Somebody deletes the migration while it is under way.
    AbortAsked,
    /// The source has given it up for that.
    Aborted,
    /// The source has given it up.
    Failed,
    /// The target's pod dies.
    TargetDied,
    /// The source's pod dies with the VM in it.
    SourceDied,
    /// Somebody deletes the VM.
    VmDeleted,
}

/// A step that cannot come now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutOfOrder {
    step: Step,
    lacks: &'static str,
}

impl fmt::Display for OutOfOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot play {:?}: there is no {}; play what makes it first", self.step, self.lacks)
    }
}

impl std::error::Error for OutOfOrder {}

/// A VM, as far as it was played.
#[derive(Clone, Debug)]
pub struct Script {
    pub(crate) plan: VmPlan,
    vm_uid: Option<String>,
    /// Where the VM is.
    pub(crate) source: Side,
    pub(crate) moving: Option<Moving>,
    /// `status.migrationState` of the VM.
    pub(crate) state: Value,
    launchers: u32,
    migrations: u32,
}

/// Pods on one node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Side {
    pub(crate) node: Option<String>,
    pub(crate) launcher: Option<Pod>,
    pub(crate) attachment: Option<Pod>,
}

impl Side {
    fn pods_mut(&mut self) -> [Option<&mut Pod>; 2] {
        [self.launcher.as_mut(), self.attachment.as_mut()]
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    uid: Option<String>,
}

/// A migration that is not over.
#[derive(Clone, Debug)]
pub(crate) struct Moving {
    pub(crate) name: String,
    pub(crate) uid: Option<String>,
    pub(crate) to: String,
    pub(crate) target: Side,
    transitions: Vec<Value>,
    pub(crate) handed_over: bool,
    pub(crate) began: bool,
}

/// What there is to write, or what is not there yet that it needs.
pub(crate) type Written = Result<Vec<Patch>, &'static str>;

impl Script {
    /// Nothing of it is there yet.
    #[must_use]
    pub fn new(plan: VmPlan) -> Self {
        let (source, state) = (Side::default(), json!({}));
        Self { plan, vm_uid: None, source, moving: None, state, launchers: 0, migrations: 0 }
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
            Step::Asked { to } => self.asked(to),
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
        let labels = json!({"metadata": {"labels": {"kubevirt.io/nodeName": on}}});
        Ok(vec![
            Patch::Place(pod.clone(), on.to_owned()),
            Patch::Status(pod, json!({"phase": "Running"})),
            Patch::Merge(self.vm(), labels),
            self.vm_status(json!({"phase": "Scheduled", "nodeName": on, "activePods": {uid: on}})),
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

    fn asked(&mut self, to: &str) -> Written {
        self.source.node.as_ref().ok_or("node of the VM")?;
        if self.moving.is_some() {
            return Err("end of the migration before");
        }
        self.migrations += 1;
        let moving = Moving {
            name: format!("{}-{}", self.plan.name, self.migrations),
            uid: None,
            to: to.to_owned(),
            target: Side::default(),
            transitions: Vec::new(),
            handed_over: false,
            began: false,
        };
        let made = Patch::Make(self.object(&moving), objects::migration(&self.plan));
        self.moving = Some(moving);
        Ok(vec![made])
    }

    fn vm_deleted(&mut self, now: &str) -> Vec<Patch> {
        let mut written: Vec<_> = self.gone(&self.source).collect();
        written.push(Patch::Delete(self.vm()));
        if let Some(mut moving) = self.moving.take() {
            written.extend(self.gone(&moving.target));
            written.push(self.phase(&mut moving, "Failed", now));
        }
        self.source = Side::default();
        written
    }

    /// A pod that runs the VM or is to take it over, under a name that no other had.
    pub(crate) fn new_launcher(&mut self, job: Job<'_>) -> Result<(Named, (Pod, Value)), &'static str> {
        let vm_uid = self.vm_uid.as_ref().ok_or("VM with a UID")?;
        self.launchers += 1;
        let name = format!("virt-launcher-{}-{}", self.plan.name, self.launchers);
        let object = objects::launcher(&self.plan, vm_uid, job);
        Ok((self.named(Kind::Pod, &name), (Pod { name, uid: None }, object)))
    }

    /// The pod for the hotplugged disks beside a launcher.
    pub(crate) fn new_attachment(
        &self,
        side: &Side,
        job: Job<'_>,
    ) -> Result<(Named, (Pod, Value)), &'static str> {
        let vm_uid = self.vm_uid.as_ref().ok_or("VM with a UID")?;
        if !self.has_hotplugged() {
            return Err("hotplugged disk");
        }
        let (launcher, uid) = self.known(side.launcher.as_ref(), "pod of the VM")?;
        let name = format!("hp-volume-{}", launcher.name);
        let object = objects::attachment(&self.plan, vm_uid, (&uid, &launcher.name), job);
        Ok((self.named(Kind::Pod, &name), (Pod { name, uid: None }, object)))
    }

    pub(crate) fn has_hotplugged(&self) -> bool {
        self.plan.disks.iter().any(|disk| disk.hotplugged)
    }

    /// A pod and its UID.
    pub(crate) fn known(
        &self,
        pod: Option<&Pod>,
        what: &'static str,
    ) -> Result<(Named, String), &'static str> {
        let pod = pod.ok_or(what)?;
        let uid = pod.uid.clone().ok_or("pod with a UID")?;
        Ok((self.named(Kind::Pod, &pod.name), uid))
    }

    /// The pods of one side go; the attachment goes with its owner.
    pub(crate) fn gone(&self, side: &Side) -> impl Iterator<Item = Patch> {
        let pods = [&side.launcher, &side.attachment].map(|pod| pod.as_ref().map(|pod| pod.name.clone()));
        let namespace = self.plan.namespace.clone();
        let named = move |name| Named { kind: Kind::Pod, namespace: namespace.clone(), name };
        pods.into_iter().flatten().map(move |name| Patch::Delete(named(name)))
    }

    /// The pod of one side ends, and stays; the attachment goes.
    pub(crate) fn ended(&self, side: &Side, phase: &str) -> Vec<Patch> {
        let named = |pod: &Pod| self.named(Kind::Pod, &pod.name);
        let launcher = side.launcher.as_ref().map(|pod| Patch::Status(named(pod), json!({"phase": phase})));
        let attachment = side.attachment.as_ref().map(|pod| Patch::Delete(named(pod)));
        launcher.into_iter().chain(attachment).collect()
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
    pub(crate) fn phase(&self, moving: &mut Moving, phase: &str, now: &str) -> Patch {
        moving.transitions.push(json!({"phase": phase, "phaseTransitionTimestamp": now}));
        let status = json!({"phase": phase, "phaseTransitionTimestamps": moving.transitions});
        Patch::Merge(self.object(moving), json!({ "status": status }))
    }

    pub(crate) fn object(&self, moving: &Moving) -> Named {
        self.named(Kind::VirtualMachineInstanceMigration, &moving.name)
    }
}
