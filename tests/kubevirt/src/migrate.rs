//! A migration's steps, and how it ends otherwise.

use serde_json::{Value, json};

use crate::patch::Patch;
use crate::script::{Moving, Script, Step, Written};
use crate::stored::merge;

/// What of an earlier migration is not part of the next one's state.
const OF_ONE_MIGRATION: [&str; 12] = [
    "startTimestamp",
    "endTimestamp",
    "targetNodeDomainReadyTimestamp",
    "targetNodeDomainDetected",
    "targetNodeAddress",
    "targetAttachmentPodUID",
    "completed",
    "failed",
    "abortRequested",
    "abortStatus",
    "failureReason",
    "mode",
];

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
                let (named, (pod, object)) = self.new_launcher(job)?;
                moving.target.launcher = Some(pod);
                let made = Patch::Make(named, object);
                if self.has_hotplugged() {
                    vec![made]
                } else {
                    vec![made, self.phase(&mut moving, "Scheduling", now)]
                }
            }
            Step::TargetPlaced => {
                let (pod, _) = self.known(moving.target.launcher.as_ref(), "target pod")?;
                moving.target.node = Some(moving.to.clone());
                vec![Patch::Place(pod, moving.to.clone())]
            }
            Step::TargetRuns => {
                moving.target.node.as_ref().ok_or("node of the target pod")?;
                let (pod, uid) = self.known(moving.target.launcher.as_ref(), "target pod")?;
                let active = self.vm_status(json!({"activePods": {uid: moving.to}}));
                vec![Patch::Status(pod, json!({"phase": "Running"})), active]
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
                let ready = self.state(json!({"targetNodeAddress": "192.0.2.7"}));
                vec![ready, self.phase(&mut moving, "TargetReady", now)]
            }
            Step::Began => {
                moving.began = true;
                let began = self.state(json!({"startTimestamp": now, "mode": "PreCopy"}));
                vec![began, self.phase(&mut moving, "Running", now)]
            }
            Step::Detected => vec![self.state(json!({"targetNodeDomainDetected": true}))],
            Step::Switched => {
                let (pod, _) = self.known(moving.target.launcher.as_ref(), "target pod")?;
                let annotation = json!({"kubevirt.io/migration-target-ready-timestamp": now});
                let annotated = Patch::Merge(pod, json!({"metadata": {"annotations": annotation}}));
                vec![self.state(json!({"targetNodeDomainReadyTimestamp": now})), annotated]
            }
            Step::Acknowledged => {
                let labels = json!({"kubevirt.io/nodeName": moving.to});
                let with = json!({"status": {"nodeName": moving.to}, "metadata": {"labels": labels}});
                vec![self.state(json!({"endTimestamp": now})).and(&with)]
            }
            Step::Completed => {
                let completed = vec![self.state(json!({"completed": true})), self.no_target()];
                let succeeded = [self.phase(&mut moving, "Succeeded", now)];
                completed.into_iter().chain(succeeded).chain(self.closed(&moving)).collect()
            }
            Step::SourceEnds => {
                let source = std::mem::replace(&mut self.source, moving.target);
                return Ok(self.ended(&source, "Succeeded"));
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
        for field in OF_ONE_MIGRATION {
            state[field] = Value::Null;
        }
        if self.has_hotplugged() {
            let (_, uid) = self.known(moving.target.attachment.as_ref(), "pod for hotplugged disks")?;
            state["targetAttachmentPodUID"] = json!(uid);
        }
        let label = json!({"metadata": {"labels": {"kubevirt.io/migrationTargetNodeName": moving.to}}});
        Ok(vec![self.state(state).and(&label)])
    }

    /// How it ends before it was handed over: virt-controller alone knows of it.
    fn ends_early(&mut self, step: &Step, mut moving: Moving, now: &str) -> Written {
        let mut written = match step {
            Step::AbortAsked => {
                let deleted = [Patch::Delete(self.object(&moving))];
                let failed = self.phase(&mut moving, "Failed", now).and(&abort_requested(now));
                deleted.into_iter().chain(self.gone(&moving.target)).chain([failed]).collect()
            }
            Step::TargetDied => {
                let mut written = self.ended(&moving.target, "Failed");
                written.push(self.phase(&mut moving, "Failed", now));
                written
            }
            Step::SourceDied => return Ok(self.source_died(moving, now)),
            _ => return Err("handover"),
        };
        written.extend(self.closed(&moving));
        Ok(written)
    }

    /// How it ends after that.
    fn ends(&mut self, step: &Step, mut moving: Moving, now: &str) -> Written {
        let mut written = Vec::new();
        match step {
            Step::AbortAsked => {
                let named = self.object(&moving);
                written.push(Patch::Delete(named.clone()));
                written.push(Patch::Merge(named, abort_requested(now)));
                if moving.began {
                    written.push(self.state(json!({"abortRequested": true})));
                }
                self.moving = Some(moving);
                return Ok(written);
            }
            Step::Aborted | Step::Failed => {
                let mut state = json!({"failed": true, "completed": true, "endTimestamp": now});
                if *step == Step::Aborted {
                    state["abortStatus"] = json!("Succeeded");
                    state["failureReason"] = json!("Live migration aborted");
                } else {
                    state["failureReason"] = json!("Live migration stuck");
                }
                written.push(self.state(state));
                written.push(self.phase(&mut moving, "Failed", now));
                written.push(self.no_target());
                written.extend(self.ended(&moving.target, "Failed"));
            }
            Step::TargetDied => {
                written.extend(self.ended(&moving.target, "Failed"));
                written.push(self.phase(&mut moving, "Failed", now));
                written.push(self.marked_failed(now));
                written.push(self.no_target());
            }
            Step::SourceDied => return Ok(self.source_died(moving, now)),
            _ => return Err("VM that is not there yet"),
        }
        written.extend(self.closed(&moving));
        Ok(written)
    }

    fn source_died(&mut self, mut moving: Moving, now: &str) -> Vec<Patch> {
        let source = std::mem::take(&mut self.source);
        let mut written = self.ended(&source, "Failed");
        written.push(self.vm_status(json!({"phase": "Failed"})));
        written.push(self.phase(&mut moving, "Failed", now));
        if moving.handed_over {
            written.push(self.marked_failed(now));
        }
        written.extend(self.gone(&moving.target));
        written.extend(self.closed(&moving));
        written
    }

    /// virt-controller says for the handlers that it has failed.
    fn marked_failed(&mut self, now: &str) -> Patch {
        let mut state = json!({"failed": true, "completed": true, "endTimestamp": now});
        for (field, value) in [("startTimestamp", now), ("failureReason", "Target pod is down")] {
            if self.state.get(field).is_none() {
                state[field] = json!(value);
            }
        }
        self.state(state)
    }

    fn no_target(&self) -> Patch {
        let none = json!({"metadata": {"labels": {"kubevirt.io/migrationTargetNodeName": null}}});
        Patch::Merge(self.vm(), none)
    }

    /// virt-controller lets go of a migration that is over, and keeps in it what the VM's status says.
    fn closed(&self, moving: &Moving) -> Vec<Patch> {
        let named = self.object(moving);
        let state = json!({"status": {"migrationState": self.state}});
        let kept = moving.handed_over.then(|| Patch::Merge(named.clone(), state));
        let free = Patch::Merge(named, json!({"metadata": {"finalizers": null}}));
        kept.into_iter().chain([free]).collect()
    }

    /// The VM's status says that of the migration.
    fn state(&mut self, changes: Value) -> Patch {
        merge(&mut self.state, &changes);
        self.vm_status(json!({ "migrationState": changes }))
    }
}

fn abort_requested(now: &str) -> Value {
    let condition = json!({"type": "migrationAbortRequested", "status": "True", "lastProbeTime": now});
    json!({"status": {"conditions": [condition]}})
}
