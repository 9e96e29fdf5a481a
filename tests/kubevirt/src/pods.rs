//! The pods of a VM: on the node that runs it, and on one that is to take it over.

use serde_json::{Value, json};

use crate::objects::{self, Job};
use crate::patch::{Kind, Named, Patch};
use crate::script::{Script, Written};

/// Pods on one node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Side {
    pub(crate) node: Option<String>,
    pub(crate) launcher: Option<Pod>,
    pub(crate) attachment: Option<Pod>,
}

impl Side {
    pub(crate) fn pods_mut(&mut self) -> [Option<&mut Pod>; 2] {
        [self.launcher.as_mut(), self.attachment.as_mut()]
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) uid: Option<String>,
}

impl Script {
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
        if !self.plan.has_hotplugged() {
            return Err("hotplugged disk");
        }
        let (launcher, uid) = self.known(side.launcher.as_ref(), "pod of the VM")?;
        let name = format!("hp-volume-{}", launcher.name);
        let object = objects::attachment(&self.plan, vm_uid, (&uid, &launcher.name), job);
        Ok((self.named(Kind::Pod, &name), (Pod { name, uid: None }, object)))
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

    /// The pod of one side is deleted, and has its time to end. One without a node goes at once.
    pub(crate) fn leaves(&self, side: &Side) -> Option<Patch> {
        side.node.as_ref()?;
        let pod = side.launcher.as_ref()?;
        Some(Patch::Leave(self.named(Kind::Pod, &pod.name)))
    }

    /// The pods of one side are no more. An attachment gets no time to end.
    pub(crate) fn gone(&self, side: &Side) -> Vec<Patch> {
        let pods = [&side.attachment, &side.launcher].into_iter().flatten();
        pods.map(|pod| Patch::Delete(self.named(Kind::Pod, &pod.name))).collect()
    }

    /// The pod of one side ends, and stays. Its attachment goes, since virt-controller finds it without an owner that lives.
    pub(crate) fn ended(&mut self, side: &Side, phase: &str) -> Vec<Patch> {
        let named = |pod: &Pod| self.named(Kind::Pod, &pod.name);
        let launcher = side.launcher.as_ref().map(|pod| Patch::Status(named(pod), json!({"phase": phase})));
        let attachment = side.attachment.as_ref().map(|pod| Patch::Delete(named(pod)));
        let written = launcher.into_iter().chain(attachment).collect();
        self.remains.extend(side.launcher.iter().map(|pod| pod.name.clone()));
        written
    }

    /// What the VM has left ends by itself.
    pub(crate) fn source_ends(&mut self) -> Written {
        let side = self.left.take().ok_or("pod that the VM has left")?;
        Ok(self.ended(&side, "Succeeded"))
    }

    /// So does what it has never come to; one that was deleted is no more then.
    pub(crate) fn target_ends(&mut self) -> Written {
        let missed = self.missed.take().ok_or("pod that the VM has not come to")?;
        if !missed.deleted {
            return Ok(self.ended(&missed.side, "Failed"));
        }
        let launcher = missed.side.launcher.as_ref().ok_or("pod that the VM has not come to")?;
        let ended = Patch::Status(self.named(Kind::Pod, &launcher.name), json!({"phase": "Failed"}));
        Ok([ended].into_iter().chain(self.gone(&missed.side)).collect())
    }
}
