//! A migration's steps.

use serde_json::{Value, json};

use crate::patch::Patch;
use crate::script::{Moving, Script, Step, Written};
use crate::stored::merge;

impl Script {
    pub(crate) fn migrate(&mut self, step: &Step, now: &str) -> Written {
        let moving = self.moving.take().ok_or("migration")?;
        let before = moving.clone();
        let written = self.step_of(step, moving, now);
        if written.is_err() {
            self.moving = Some(before);
        }
        written
    }

    fn step_of(&mut self, step: &Step, mut moving: Moving, now: &str) -> Written {
        let uid = moving.uid.clone().ok_or("migration with a UID")?;
        let job = Some((uid.as_str(), moving.name.as_str()));
        let written = match step {
            Step::Accepted => {
                let source = self.source.launcher.as_ref().ok_or("pod of the VM")?;
                let with = json!({"status": {"migrationState": {"sourcePod": source.name}}});
                vec![self.phase(&mut moving, "Pending", now).and(&with)]
            }
            Step::TargetMade => {
                if self.left.is_some() || self.missed.is_some() {
                    return Err("end of the VM's other pods");
                }
                let (named, (pod, object)) = self.new_launcher(job)?;
                moving.target.launcher = Some(pod);
                let made = Patch::Make(named, object);
                if self.plan.has_hotplugged() {
                    vec![made]
                } else {
                    vec![made, self.phase(&mut moving, "Scheduling", now)]
                }
            }
            Step::TargetPlaced => {
                let (pod, uid) = self.known(moving.target.launcher.as_ref(), "target pod")?;
                moving.target.node = Some(moving.to.clone());
                let active = self.vm_status(json!({"activePods": {uid: moving.to}}));
                vec![Patch::Place(pod, moving.to.clone()), active]
            }
            Step::TargetRuns => {
                moving.target.node.as_ref().ok_or("node of the target pod")?;
                let (pod, _) = self.known(moving.target.launcher.as_ref(), "target pod")?;
                vec![Patch::Status(pod, json!({"phase": "Running"}))]
            }
            Step::TargetPlugs => {
                let node = moving.target.node.clone().ok_or("node of the target pod")?;
                let (named, (pod, object)) = self.new_attachment(&moving.target, job)?;
                moving.target.attachment = Some(pod);
                vec![Patch::Make(named.clone(), object), Patch::Place(named, node)]
            }
            Step::TargetPlugged => {
                let (pod, _) = self.known(moving.target.attachment.as_ref(), "pod for hotplugged disks")?;
                let runs = Patch::Status(pod, json!({"phase": "Running"}));
                vec![runs, self.phase(&mut moving, "Scheduling", now)]
            }
            Step::Scheduled => vec![self.phase(&mut moving, "Scheduled", now)],
            Step::HandedOver => {
                let written = self.hand_over(&moving, &uid)?;
                moving.handed_over = true;
                written
            }
            end if !moving.handed_over => return self.ends_early(end, moving, now),
            Step::Preparing => vec![self.phase(&mut moving, "PreparingTarget", now)],
            Step::TargetReady => {
                let ready = self.state(json!({
                    "targetNodeAddress": "192.0.2.7", "targetDirectMigrationNodePorts": {"41237": 0, "33157": 49152},
                }));
                vec![ready, self.phase(&mut moving, "TargetReady", now)]
            }
            Step::Began => {
                let began = self.state(json!({"startTimestamp": now, "mode": "PreCopy"}));
                let mut written = vec![began, self.phase(&mut moving, "Running", now)];
                if moving.deleted {
                    written.push(self.state(json!({"abortRequested": true})));
                }
                written
            }
            Step::Detected => vec![self.state(json!({"targetNodeDomainDetected": true}))],
            Step::Switched => {
                let (pod, _) = self.known(moving.target.launcher.as_ref(), "target pod")?;
                let annotation = json!({"kubevirt.io/migration-target-ready-timestamp": as_go_prints(now)});
                let annotated = Patch::Merge(pod, json!({"metadata": {"annotations": annotation}}));
                vec![self.state(json!({"targetNodeDomainReadyTimestamp": now})), annotated]
            }
            Step::Acknowledged => {
                let with = json!({
                    "status": {"nodeName": moving.to, "evacuationNodeName": null},
                    "metadata": {"labels": {"kubevirt.io/nodeName": moving.to}},
                });
                vec![self.state(json!({"endTimestamp": now})).and(&with)]
            }
            Step::Completed => {
                let mut written = vec![self.state(json!({"completed": true})), self.no_target()];
                written.push(self.phase(&mut moving, "Succeeded", now));
                let left = self.source.launcher.as_ref().map(|pod| pod.name.clone());
                written.extend(self.closed(&moving, left));
                self.left = Some(std::mem::replace(&mut self.source, moving.target));
                return Ok(written);
            }
            end => return self.ends(end, moving, now),
        };
        self.moving = Some(moving);
        Ok(written)
    }

    fn hand_over(&mut self, moving: &Moving, uid: &str) -> Written {
        let (target, _) = self.known(moving.target.launcher.as_ref(), "target pod")?;
        let source = self.source.launcher.as_ref().ok_or("pod of the VM")?;
        let mut state = json!({
            "migrationUid": uid, "sourceNode": self.source.node, "sourcePod": source.name,
            "targetNode": moving.to, "targetPod": target.name,
        });
        if self.plan.has_hotplugged() {
            let (_, uid) = self.known(moving.target.attachment.as_ref(), "pod for hotplugged disks")?;
            state["targetAttachmentPodUID"] = json!(uid);
        }
        // Nothing of the migration before stays in it.
        for field in self.state.as_object().into_iter().flat_map(|before| before.keys()) {
            if state.get(field).is_none() {
                state[field] = Value::Null;
            }
        }
        let label = json!({"metadata": {"labels": {"kubevirt.io/migrationTargetNodeName": moving.to}}});
        Ok(vec![self.state(state).and(&label)])
    }

    pub(crate) fn no_target(&self) -> Patch {
        let none = json!({"metadata": {"labels": {"kubevirt.io/migrationTargetNodeName": null}}});
        Patch::Merge(self.vm(), none)
    }

    /// The VM's status says that of the migration.
    pub(crate) fn state(&mut self, changes: Value) -> Patch {
        merge(&mut self.state, &changes);
        self.vm_status(json!({ "migrationState": changes }))
    }
}

/// The steps of a migration that goes well, from when somebody has asked for it until it is over.
#[must_use]
pub fn migration_steps(with_hotplugged: bool) -> Vec<Step> {
    let hotplugged = |steps: [Step; 2]| steps.into_iter().filter(move |_| with_hotplugged);
    let first = [Step::Accepted, Step::TargetMade, Step::TargetPlaced, Step::TargetRuns];
    let then = [
        Step::Scheduled,
        Step::HandedOver,
        Step::Preparing,
        Step::TargetReady,
        Step::Began,
        Step::Detected,
        Step::Switched,
        Step::Acknowledged,
        Step::Completed,
    ];
    first.into_iter().chain(hotplugged([Step::TargetPlugs, Step::TargetPlugged])).chain(then).collect()
}

/// As virt-controller writes a time into an annotation, from one of RFC 3339 in whole seconds of UTC.
fn as_go_prints(time: &str) -> String {
    time.replace('T', " ").replace('Z', " +0000 UTC")
}
