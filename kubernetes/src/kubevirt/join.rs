//! Which VM has a volume, and from which node to which it is moving, as KubeVirt says.
//!
//! In come the objects that are known at one moment, of watches that are behind each other by an unknown time; out goes, for
//! each volume of a VolumeAttachment, what they say together. What holds:
//! - **joined by UID.** VolumeAttachment, PersistentVolume and claim (whose UID the PersistentVolume knows), pods of that claim,
//!   the VM by the UID that they carry, its migration by the UID that its status or a target pod carries. A name only leads
//!   on inside of a namespace, from an object whose UID was matched to one whose UID is matched;
//! - a migration is what the VM's status says of it, and before that what its target pod says: at the Publish for the target
//!   there is no status yet. `completed` says that it is over, with `failed` that it has failed; an end's time says nothing;
//! - objects that cannot be true together are a contradiction, with its reason, and attribute nothing;
//! - this is for people, and for who waits for whom. Nothing here says who can write.

use std::collections::{BTreeMap, BTreeSet};

use super::mover::{MoveSeen, MoveStage, MoverSeen, stage};
use super::objects::{ClaimSeen, MigrationStateSeen, PodRole, PodSeen, VmMigrationSeen, VmSeen};
use crate::attachments::AllAttachments;

/// Everything that is known at one moment.
#[derive(Clone, Debug)]
pub struct Objects<'a> {
    /// VolumeAttachments and PersistentVolumes of our driver.
    pub attachments: &'a AllAttachments,
    /// All claims.
    pub claims: Vec<&'a ClaimSeen>,
    /// All pods that have disks of VMs.
    pub pods: Vec<&'a PodSeen>,
    /// All VMs.
    pub vms: Vec<&'a VmSeen>,
    /// All migrations.
    pub migrations: Vec<&'a VmMigrationSeen>,
}

/// Who has each volume that a VolumeAttachment is about, by its handle.
#[must_use]
pub fn movers(all: &Objects<'_>) -> BTreeMap<String, MoverSeen> {
    let index = Index::of(all);
    let mut volumes: BTreeMap<&str, BTreeSet<NameOf<'_>>> = BTreeMap::new();
    for attachment in &all.attachments.attachments {
        let (Some(handle), pv) = all.attachments.volume_of(attachment) else { continue };
        let claims = volumes.entry(handle).or_default();
        if let Some((namespace, name, uid)) = pv.and_then(|pv| pv.claim.as_ref())
            && index.claims.get(&(namespace.as_str(), name.as_str())) == Some(&uid.as_str())
        {
            claims.insert((namespace, name));
        }
    }
    let mover = |claims: &BTreeSet<NameOf<'_>>| {
        index.mover(claims).unwrap_or_else(|Contradiction(why)| MoverSeen::Contradiction { why })
    };
    volumes.iter().map(|(handle, claims)| ((*handle).to_owned(), mover(claims))).collect()
}

/// Namespace and name.
type NameOf<'a> = (&'a str, &'a str);

/// Why the objects cannot be true together.
#[derive(Debug)]
struct Contradiction(String);

/// The objects by what they are looked up by.
struct Index<'a> {
    /// Their UIDs.
    claims: BTreeMap<NameOf<'a>, &'a str>,
    pods: BTreeMap<&'a str, &'a PodSeen>,
    /// By claim.
    users: BTreeMap<NameOf<'a>, Vec<&'a PodSeen>>,
    /// By VM.
    launchers: BTreeMap<&'a str, Vec<&'a PodSeen>>,
    vms: BTreeMap<&'a str, &'a VmSeen>,
    migrations: BTreeMap<&'a str, &'a VmMigrationSeen>,
}

impl<'a> Index<'a> {
    fn of(all: &Objects<'a>) -> Self {
        let mut users: BTreeMap<NameOf<'a>, Vec<&'a PodSeen>> = BTreeMap::new();
        let mut launchers: BTreeMap<&'a str, Vec<&'a PodSeen>> = BTreeMap::new();
        for pod in all.pods.iter().copied() {
            for claim in &pod.claims {
                users.entry((&pod.namespace, claim)).or_default().push(pod);
            }
            if let (PodRole::Launcher, Ok(Some(vm))) = (pod.role, says_its_vm(pod)) {
                launchers.entry(vm).or_default().push(pod);
            }
        }
        Self {
            claims: all.claims.iter().map(|one| ((&*one.namespace, &*one.name), &*one.uid)).collect(),
            pods: all.pods.iter().map(|&pod| (&*pod.uid, pod)).collect(),
            users,
            launchers,
            vms: all.vms.iter().map(|&vm| (&*vm.uid, vm)).collect(),
            migrations: all.migrations.iter().map(|&one| (&*one.uid, one)).collect(),
        }
    }

    /// Who has these claims. Pods that have ended stay for long after, so they count only where no other is there.
    fn mover(&self, claims: &BTreeSet<NameOf<'_>>) -> Result<MoverSeen, Contradiction> {
        let pods = || claims.iter().filter_map(|claim| self.users.get(claim)).flatten().copied();
        let mut vms = self.vms_of(pods().filter(|pod| !pod.ended))?;
        if vms.is_empty() {
            vms = self.vms_of(pods())?;
        }
        if vms.len() > 1 {
            let named: Vec<_> = vms.into_iter().map(|uid| self.show_vm(uid)).collect();
            return Err(Contradiction(format!("{} have the volume at once", named.join(" and "))));
        }
        let Some(vm) = vms.first().and_then(|uid| self.vms.get(uid)).copied() else {
            return Ok(MoverSeen::Nobody);
        };
        if let Some((namespace, _)) = claims.iter().find(|(namespace, _)| *namespace != vm.namespace) {
            return Err(Contradiction(format!(
                "a pod of namespace {namespace} says that it is of {}, which is of another namespace",
                show(vm)
            )));
        }
        let (namespace, name, uid) = (vm.namespace.clone(), vm.name.clone(), vm.uid.clone());
        Ok(MoverSeen::Vm { namespace, name, uid, migration: self.migration(vm)?.map(Box::new) })
    }

    fn vms_of(&self, pods: impl Iterator<Item = &'a PodSeen>) -> Result<BTreeSet<&'a str>, Contradiction> {
        let mut found = BTreeSet::new();
        for pod in pods {
            found.extend(self.vm_of(pod)?);
        }
        Ok(found)
    }

    /// The UID of the VM that a pod is of: by what it says, and by who owns it.
    fn vm_of(&self, pod: &'a PodSeen) -> Result<Option<&'a str>, Contradiction> {
        let says = says_its_vm(pod)?;
        let owner = pod.owner_pod_uid.as_deref().and_then(|uid| self.pods.get(uid)).copied();
        let Some(launcher) = owner.filter(|owner| owner.role == PodRole::Launcher) else {
            return Ok(says);
        };
        match (says, says_its_vm(launcher)?) {
            (Some(says), Some(owner)) if says != owner => Err(Contradiction(format!(
                "pod {} says that it is of {}, and the pod that owns it of {}",
                pod.name,
                self.show_vm(says),
                self.show_vm(owner)
            ))),
            (says, owner) => Ok(says.or(owner)),
        }
    }

    /// The newest migration of a VM.
    fn migration(&self, vm: &'a VmSeen) -> Result<Option<MoveSeen>, Contradiction> {
        let last = vm.state.as_ref().and_then(|state| Some((state, state.uid.as_deref()?)));
        match (self.prepared(vm, last)?, last) {
            (None, Some((state, uid))) => self.handed_over(vm, state, uid),
            (prepared, _) => Ok(prepared),
        }
    }

    /// The migration that the VM's status speaks of: its target pod has been handed over.
    fn handed_over(
        &self,
        vm: &VmSeen,
        state: &MigrationStateSeen,
        uid: &str,
    ) -> Result<Option<MoveSeen>, Contradiction> {
        let object = self.object(vm, uid)?;
        if state.elsewhere || object.is_some_and(|object| object.elsewhere) {
            return Ok(None);
        }
        let Some(source) = state.source_node.as_ref() else { return Ok(None) };
        let target = state.target_node.as_ref();
        if target == Some(source) {
            return Err(Contradiction(format!("{} is said to migrate from {source} to {source}", show(vm))));
        }
        let at_target = |pod: &PodSeen| pod.ended || pod.node.is_none() || pod.node.as_ref() == target;
        let fits = |pod: &PodSeen| {
            let is_target = pod.job_uid.as_deref() == Some(uid);
            let is_named = |name: &Option<String>| name.as_ref() == Some(&pod.name);
            (!is_target || at_target(pod))
                && (!is_named(&state.target_pod) || is_target)
                && (!is_named(&state.source_pod) || pod.node.as_ref().is_none_or(|node| node == source))
        };
        let attachment = state.target_attachment_uid.as_deref().and_then(|uid| self.pods.get(uid)).copied();
        let odd = self.launchers_of(vm).find(|pod| !fits(pod));
        if let Some(pod) = odd.or_else(|| attachment.filter(|pod| !at_target(pod))) {
            return Err(Contradiction(format!(
                "the status of {} says that it migrates from {source} to {}, and its pod {} does not fit that",
                show(vm),
                target.map_or("an unknown node", String::as_str),
                pod.name
            )));
        }
        let stage = stage(Some(state), object);
        Ok(Some(self.found(vm, uid, source.clone(), target.cloned(), stage, state.ready_ms)))
    }

    /// The migration whose target pod is there and that the VM's status, which may be behind, does not speak of.
    ///
    /// Who was the target of an earlier migration carries its UID for ever. So only a pod that is newer than what the status
    /// speaks of counts, and not on the node that runs the VM.
    fn prepared(
        &self,
        vm: &VmSeen,
        last: Option<(&MigrationStateSeen, &str)>,
    ) -> Result<Option<MoveSeen>, Contradiction> {
        let not_before = last.map_or(0, |(state, uid)| self.began(vm, state, uid));
        let is_of_last = |pod: &PodSeen| {
            last.is_some_and(|(state, uid)| {
                let named = [state.source_pod.as_ref(), state.target_pod.as_ref()];
                pod.job_uid.as_deref() == Some(uid) || named.contains(&Some(&pod.name))
            })
        };
        let mut pods: Vec<_> = self
            .launchers_of(vm)
            .filter(|pod| pod.created_ms >= not_before && !is_of_last(pod))
            .filter_map(|pod| Some((pod.created_ms, pod.job_uid.as_deref()?, pod)))
            .collect();
        pods.sort_by_key(|&(created, job, pod)| (created, job, &pod.uid));
        let Some((_, job, target)) = pods.pop() else { return Ok(None) };
        if target.node.is_some() && target.node == vm.node {
            return Ok(None);
        }
        let object = self.object(vm, job)?;
        if object.is_some_and(|object| object.elsewhere) {
            return Ok(None);
        }
        // One that KubeVirt has not accepted has no pod: that was taken from a later view.
        let goes_on = |job: &str| {
            let object = self.migrations.get(job).filter(|object| !object.phase.is_empty());
            object.is_some_and(|object| !stage(None, Some(object)).is_over())
        };
        let is_rival =
            |&&(_, other, pod): &&(u64, &str, &PodSeen)| other != job && !pod.ended && goes_on(other);
        if goes_on(job)
            && let Some((_, other, _)) = pods.iter().find(is_rival)
        {
            let vm = show(vm);
            return Err(Contradiction(format!(
                "two migrations of {vm} have a target at once: {job} and {other}"
            )));
        }
        let stage = match object {
            // It was deleted before it was handed over, and KubeVirt deletes the pod then.
            None if target.deleted => MoveStage::Aborted,
            None if target.ended => MoveStage::Failed,
            object => stage(None, object),
        };
        let source = self.source_of(vm, target, object);
        Ok(source.map(|source| self.found(vm, job, source, target.node.clone(), stage, None)))
    }

    /// The node that runs the VM while that pod is made ready to take it over: of the pod that its migration names, or of the
    /// one other pod that lives. KubeVirt makes no target while there are two, and who has that pod knows of the others what is
    /// as new; the VM's status may be of a time before its last migration.
    fn source_of(&self, vm: &VmSeen, target: &PodSeen, object: Option<&VmMigrationSeen>) -> Option<String> {
        let named = object.and_then(|object| object.source_pod.as_ref());
        if let Some(pod) = self.launchers_of(vm).find(|pod| named == Some(&pod.name)) {
            return pod.node.clone();
        }
        let mut others = self.launchers_of(vm).filter(|pod| !pod.ended && pod.job_uid != target.job_uid);
        let source = others.next()?.node.clone();
        others.next().is_none().then_some(source).flatten()
    }

    /// When the migration that the VM's status speaks of began. The API server's own times first: they have one clock.
    fn began(&self, vm: &VmSeen, state: &MigrationStateSeen, uid: &str) -> u64 {
        let target = self.launchers_of(vm).filter(|pod| pod.job_uid.as_deref() == Some(uid));
        let object = self.migrations.get(uid).map(|object| object.created_ms);
        let times = [target.map(|pod| pod.created_ms).max(), object, state.started_ms, state.ended_ms];
        // Of a time that nobody knows, nothing is known to be later.
        times.into_iter().flatten().next().unwrap_or(u64::MAX)
    }

    fn found(
        &self,
        vm: &VmSeen,
        uid: &str,
        source: String,
        target: Option<String>,
        stage: MoveStage,
        switched_ms: Option<u64>,
    ) -> MoveSeen {
        // One that lives before one that has ended, and the newest.
        let launcher = |on: Option<&String>, is_target: bool| {
            let there = |pod: &&PodSeen| {
                on.is_some() && pod.node.as_ref() == on && (pod.job_uid.as_deref() == Some(uid)) == is_target
            };
            let best = self.launchers_of(vm).filter(there).max_by_key(|pod| (!pod.ended, pod.created_ms));
            best.map(|pod| pod.uid.clone())
        };
        let name = self.migrations.get(uid).map(|object| object.name.clone());
        let (source_launcher, target_launcher) =
            (launcher(Some(&source), false), launcher(target.as_ref(), true));
        MoveSeen {
            uid: uid.to_owned(),
            name,
            source,
            target,
            stage,
            switched_ms,
            source_launcher,
            target_launcher,
        }
    }

    /// The object of a migration whose UID the VM's status or its pod carries.
    fn object(&self, vm: &VmSeen, uid: &str) -> Result<Option<&'a VmMigrationSeen>, Contradiction> {
        let object = self.migrations.get(uid).copied();
        match object.filter(|object| object.namespace != vm.namespace || object.vmi_name != vm.name) {
            None => Ok(object),
            Some(other) => Err(Contradiction(format!(
                "{} is said to migrate by {}, which is of VM {}/{}",
                show(vm),
                other.name,
                other.namespace,
                other.vmi_name
            ))),
        }
    }

    fn launchers_of(&self, vm: &VmSeen) -> impl Iterator<Item = &'a PodSeen> {
        let there = self.launchers.get(vm.uid.as_str()).into_iter().flatten().copied();
        let namespace = vm.namespace.clone();
        there.filter(move |pod| pod.namespace == namespace)
    }

    fn show_vm(&self, uid: &str) -> String {
        self.vms.get(uid).map_or_else(|| format!("VM {uid}"), |vm| show(vm))
    }
}

fn show(vm: &VmSeen) -> String {
    format!("VM {}/{}", vm.namespace, vm.name)
}

/// The UID of the VM that a pod says it is of, where that and its owner are not two.
fn says_its_vm(pod: &PodSeen) -> Result<Option<&str>, Contradiction> {
    match (pod.vmi_uid.as_deref(), pod.owner_vmi_uid.as_deref()) {
        (Some(says), Some(owner)) if says != owner => Err(Contradiction(format!(
            "pod {} says that it is of VM {says}, and VM {owner} owns it",
            pod.name
        ))),
        (says, owner) => Ok(says.or(owner)),
    }
}
