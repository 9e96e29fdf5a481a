//! How a migration ends otherwise than well, and what stays of it.

use serde_json::{Value, json};

use crate::patch::{Kind, Patch};
use crate::script::{Missed, Moving, Past, Script, Step, Written};

/// So many migrations of a VM that are over does virt-controller keep.
const KEPT: usize = 5;

impl Script {
    /// How it ends before it was handed over: virt-controller alone knows of it.
    pub(crate) fn ends_early(&mut self, step: &Step, mut moving: Moving, now: &str) -> Written {
        let mut written = match step {
            Step::AbortAsked => {
                moving.deleted = true;
                let deleted = Patch::Delete(self.object(&moving));
                let failed = self.phase(&mut moving, "Failed", now).and(&abort_requested(now));
                let mut written = vec![deleted];
                let side = std::mem::take(&mut moving.target);
                match self.leaves(&side) {
                    Some(leaves) => {
                        written.push(leaves);
                        self.missed = Some(Missed { side, deleted: true });
                    }
                    None => written.extend(self.gone(&side)),
                }
                written.push(failed);
                written
            }
            Step::TargetDied => {
                let target = moving.target.clone();
                let mut written = self.ended(&target, "Failed");
                written.push(self.phase(&mut moving, "Failed", now));
                written
            }
            Step::SourceDied => return Ok(self.source_died(moving, now)),
            _ => return Err("handover"),
        };
        written.extend(self.closed(&moving, None));
        Ok(written)
    }

    /// How it ends after that.
    pub(crate) fn ends(&mut self, step: &Step, mut moving: Moving, now: &str) -> Written {
        let end = json!({"failed": true, "completed": true, "endTimestamp": now});
        let because = |status: Option<&str>, reason: &str| {
            let mut state = end.clone();
            state["failureReason"] = json!(reason);
            if let Some(status) = status {
                state["abortStatus"] = json!(status);
            }
            state
        };
        let state = match step {
            Step::AbortAsked => return Ok(self.abort_asked(moving, now)),
            Step::TargetDied => return Ok(self.target_died(moving, now)),
            Step::SourceDied => return Ok(self.source_died(moving, now)),
            Step::Aborted if !moving.deleted => return Err("wish to abort it"),
            Step::AbortSeenAtTarget if !moving.deleted => return Err("wish to abort it"),
            Step::Aborted | Step::GivenUp => because(Some("Succeeded"), "Live migration has been aborted"),
            Step::AbortSeenAtTarget => end,
            Step::Failed => because(None, "Live migration failed"),
            _ => return Err("VM that is not there yet"),
        };
        let mut written = vec![self.state(state), self.phase(&mut moving, "Failed", now), self.no_target()];
        written.extend(self.ended(&moving.target, "Failed"));
        written.extend(self.closed(&moving, name_of_target(&moving)));
        Ok(written)
    }

    /// virt-controller says so in the VM's status only once the migration runs; before that it waits for it to run.
    fn abort_asked(&mut self, mut moving: Moving, now: &str) -> Vec<Patch> {
        moving.deleted = true;
        let mut written = vec![Patch::Delete(self.object(&moving))];
        if moving.phase == "Running" {
            written.push(self.state(json!({"abortRequested": true})));
        }
        written.push(Patch::Merge(self.object(&moving), abort_requested(now)));
        self.moving = Some(moving);
        written
    }

    fn target_died(&mut self, mut moving: Moving, now: &str) -> Vec<Patch> {
        let is_looked_after = matches!(moving.phase, "PreparingTarget" | "TargetReady");
        let mut written = self.ended(&moving.target, "Failed");
        let mut failed = vec![self.phase(&mut moving, "Failed", now), self.marked_failed(now)];
        if is_looked_after {
            failed.reverse();
        }
        written.extend(failed);
        written.push(self.no_target());
        written.extend(self.closed(&moving, name_of_target(&moving)));
        written
    }

    /// Nobody deletes the target's pod before somebody deletes the VM.
    pub(crate) fn source_died(&mut self, mut moving: Moving, now: &str) -> Vec<Patch> {
        let source = std::mem::take(&mut self.source);
        let mut written = self.ended(&source, "Failed");
        written.push(self.vm_status(json!({"phase": "Failed"})));
        written.push(self.phase(&mut moving, "Failed", now));
        let mut target = None;
        if moving.handed_over {
            written.push(self.marked_failed(now));
            target = name_of_target(&moving);
        }
        written.extend(self.closed(&moving, target));
        let has_target = moving.target.launcher.is_some();
        self.missed = has_target.then_some(Missed { side: moving.target, deleted: false });
        written
    }

    /// virt-controller says for the handlers that it has failed.
    fn marked_failed(&mut self, now: &str) -> Patch {
        let mut state = json!({"failed": true, "completed": true});
        for (field, value) in
            [("endTimestamp", now), ("startTimestamp", now), ("failureReason", "Target pod is down")]
        {
            if self.state.get(field).is_none() {
                state[field] = json!(value);
            }
        }
        self.state(state)
    }

    /// virt-controller keeps in a migration that is over what the VM's status says, lets go of it, and deletes the oldest ones
    /// with the pod that they are the reason for.
    pub(crate) fn closed(&mut self, moving: &Moving, pod: Option<String>) -> Vec<Patch> {
        let named = self.object(moving);
        let state = json!({"status": {"migrationState": self.state}});
        let kept = moving.handed_over.then(|| Patch::Merge(named.clone(), state));
        let free = Patch::Merge(named, json!({"metadata": {"finalizers": null}}));
        let mut written: Vec<_> = kept.into_iter().chain([free]).collect();
        if moving.deleted {
            return written;
        }
        self.past.push_back(Past { name: moving.name.clone(), pod });
        while self.past.len() > KEPT {
            let Some(oldest) = self.past.pop_front() else { break };
            let pod = oldest.pod.filter(|pod| self.remains.contains(pod));
            self.remains.retain(|name| Some(name) != pod.as_ref());
            written.extend(pod.map(|name| Patch::Delete(self.named(Kind::Pod, &name))));
            let of = Kind::VirtualMachineInstanceMigration;
            written.push(Patch::Delete(self.named(of, &oldest.name)));
        }
        written
    }
}

fn name_of_target(moving: &Moving) -> Option<String> {
    moving.target.launcher.as_ref().map(|pod| pod.name.clone())
}

fn abort_requested(now: &str) -> Value {
    let condition = json!({"type": "migrationAbortRequested", "status": "True", "lastProbeTime": now});
    json!({"status": {"conditions": [condition]}})
}
