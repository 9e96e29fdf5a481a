//! The cluster around a controller: who is to have a volume by its VolumeAttachments, which nodes are marked as out of
//! service, and records that are lost, or set back, while all of that stays.
//!
//! In comes what callers ask and are answered; out goes what the shipped shell hands to a core at its start and later
//! (`controller/src/cluster`, `controller/src/nodes.rs`, `controller/src/engine/list_volumes.rs`). What always holds: who
//! could write is asked of kernels and target alone, whatever the cluster says. Nobody can know of a node that stands on
//! no record, no list and no VolumeAttachment, and whose agent is silent: that is the fault of whoever lost the records.

use std::collections::{BTreeMap, BTreeSet};

use cleat_core::{
    Attachment, Desired, Epoch, Event, ListedVolume, NodeId, NodeRecord, Phase, Remembered, UnixMillis,
    VolumeId, VolumeRecord,
};

use crate::kinds::{Action, Lost};
use crate::names::{N, NODES, V, VOLUMES, host_nqn, node_id, node_of, volume_id, volume_of};
use crate::records::attachment_of;
use crate::shell::reread;
use crate::target::List;
use crate::world::{Ask, EPOCH_MS, MIGRATION_TIMEOUT_MS, Setup, World};

/// That a volume is to be on a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VolumeAttachment {
    /// Its Publish was answered, under this grant.
    pub attached: Option<Epoch>,
    /// It goes as soon as its Unpublish is answered.
    pub deleting: bool,
    /// A start cannot say which volume it is about.
    pub nameless: bool,
}

/// Records as somebody has copied them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    volumes: BTreeMap<VolumeId, VolumeRecord>,
    nodes: BTreeMap<NodeId, NodeRecord>,
}

/// What there is in a cluster beside the records of volumes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cluster {
    /// Who is to have what.
    pub attachments: [[Option<VolumeAttachment>; NODES]; VOLUMES],
    /// Nodes that a person has marked.
    pub out_of_service: [bool; NODES],
    /// What is stored of nodes.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// What records can be set back to.
    pub copy: Option<Copied>,
    /// What was stored of a node's part in a volume was lost, and nothing is stored of it since.
    pub lost: [[bool; NODES]; VOLUMES],
    /// And nothing else said at a start that it may have the volume: until it cannot write any more.
    pub unknown: [[bool; NODES]; VOLUMES],
    /// The newest leader has had the RDS's lists.
    pub listed: bool,
}

impl Setup {
    /// Controllers begin as in a cluster: the RDS's lists first, VolumeAttachments against records.
    #[must_use]
    pub fn in_cluster(&self) -> bool {
        let dangers = self.dangers;
        dangers.records_lost
            || dangers.records_older
            || dangers.attachments_vanish
            || dangers.names_lost
            || dangers.marks
    }
}

impl World {
    /// The first leader of all has made the volumes, which are not exported before somebody has them, and read the lists.
    pub(crate) fn begins_in_a_cluster(&mut self) {
        for v in 0..self.setup.access.len() {
            self.export(v).volume.hide();
            self.event(0, Event::RdsMade { volume: volume_id(v) });
        }
        self.lists();
    }

    /// What can happen to what the cluster has.
    pub(crate) fn of_cluster(&self, all: &mut Vec<Action>) {
        let dangers = self.setup.dangers;
        let volumes = 0..self.setup.access.len();
        let everywhere = || volumes.clone().flat_map(|v| self.nodes().map(move |n| (v, n)));
        if !self.cluster.listed {
            all.push(Action::Lists);
        }
        let missing = everywhere().filter(|(v, n)| self.is_missing(*v, *n));
        all.extend(missing.map(|(v, n)| Action::NobodyAsks(v, n)));
        if self.budget.requests > 0 {
            let marked = |n: &N| self.cluster.out_of_service[*n] || self.is_fresh(*n);
            let unmarked = self.nodes().filter(|n| dangers.marks && !marked(n));
            all.extend(unmarked.map(Action::OutOfService));
            if dangers.records_older && self.cluster.copy.is_none() && !self.stored.is_empty() {
                all.push(Action::CopyRecords);
            }
        }
        if self.budget.faults == 0 {
            return;
        }
        if dangers.attachments_vanish {
            let there = everywhere().filter(|(v, n)| self.cluster.attachments[*v][*n].is_some());
            all.extend(there.map(|(v, n)| Action::Vanishes(v, n)));
        }
        if dangers.names_lost {
            let named = |v: V, n: N| self.cluster.attachments[v][n].as_ref().is_some_and(|a| !a.nameless);
            all.extend(everywhere().filter(|(v, n)| named(*v, *n)).map(|(v, n)| Action::LosesName(v, n)));
        }
        let stored = volumes.filter(|v| self.stored.contains_key(&volume_id(*v)));
        let mut losses: Vec<Lost> = stored.map(Lost::Volume).filter(|_| dangers.records_lost).collect();
        losses.extend((dangers.records_lost && !losses.is_empty()).then_some(Lost::All));
        losses.extend((dangers.records_older && self.cluster.copy.is_some()).then_some(Lost::Later));
        let starts = losses.into_iter().flat_map(|lost| [false, true].map(|old_lives| (lost, old_lives)));
        all.extend(starts.map(|(lost, old_lives)| Action::StartWithout { lost, old_lives }));
    }

    /// A node that has a volume, and nobody asks for it there: what the shell looks for.
    fn is_missing(&self, v: V, n: N) -> bool {
        let asked = || self.open.values().any(|open| *open == (v, Some(n), Ask::Unpublish));
        let record = self.leaders[0].core.volumes().get(&volume_id(v));
        let held = record.and_then(|r| r.attachment(&node_id(n)));
        let is_known = |a: &Attachment| {
            a.phase != Phase::Stray || self.leaders[0].core.nodes().contains_key(&node_id(n))
        };
        self.cluster.attachments[v][n].is_none()
            && held.is_some_and(|a| !matches!(a.phase, Phase::Draining { .. }) && is_known(a))
            && !asked()
    }

    /// The newest leader is given the RDS's lists.
    pub(crate) fn lists(&mut self) {
        let listed = |v: V| {
            let export = &self.exports[v].volume;
            let hosts = match &export.list {
                List::Only(hosts) if self.setup.truth.acl => hosts.iter().map(|n| host_nqn(*n)).collect(),
                _ => Vec::new(),
            };
            let (volume, exported, keeps_list) = (volume_id(v), export.is_on(), self.setup.truth.acl);
            let under_way = self.leaders[0].asked.iter().any(|asked| crate::act::lane(&asked.request) == v);
            let at_rest = !under_way && self.exports[v].late.is_empty();
            ListedVolume { volume, hosts, exported, keeps_list, problem: None, at_rest }
        };
        let there = (0..self.setup.access.len()).filter(|v| !self.exports[*v].lacking);
        let volumes = there.map(listed).collect();
        self.cluster().listed = true;
        self.event(0, Event::RdsListed { volumes, whole: true });
    }

    /// It is to be there from now on.
    pub(crate) fn is_to_be_on(&mut self, v: V, n: N) {
        if self.setup.in_cluster() && self.cluster.attachments[v][n].is_none() {
            self.cluster().attachments[v][n] = Some(VolumeAttachment::default());
        }
    }

    /// It is not to be there any more (`None`: anywhere).
    pub(crate) fn is_to_go_from(&mut self, v: V, about: Option<N>) {
        for n in about.map_or(0..NODES, |n| n..n + 1) {
            if self.cluster.attachments[v][n].is_some()
                && let Some(attachment) = &mut self.cluster().attachments[v][n]
            {
                attachment.deleting = true;
            }
        }
    }

    /// A Publish was answered.
    pub(crate) fn is_attached(&mut self, v: V, n: N, epoch: Epoch) {
        if self.cluster.attachments[v][n].is_some()
            && let Some(attachment) = &mut self.cluster().attachments[v][n]
        {
            attachment.attached = Some(epoch);
        }
    }

    /// An Unpublish was answered.
    pub(crate) fn is_off(&mut self, v: V, n: N) {
        if self.cluster.attachments[v][n].as_ref().is_some_and(|attachment| attachment.deleting) {
            self.cluster().attachments[v][n] = None;
        }
    }

    /// What a core begins with. `goes_on`: an older leader, which lives, has it for that node and may tell it yet.
    pub(crate) fn remembered(&mut self, goes_on: impl Fn(V, N) -> bool) -> Remembered {
        let volumes: Vec<VolumeRecord> = self.stored.values().map(reread).collect();
        if !self.setup.in_cluster() {
            return volumes.into();
        }
        self.forget_whom_nobody_can_know(goes_on);
        self.cluster().listed = false;
        let nodes = self.cluster.nodes.values().cloned().collect();
        Remembered { volumes, nodes, desired: self.desired(), lists_first: true }
    }

    fn desired(&self) -> Vec<Desired> {
        let one = |v: V, n: N| {
            let attachment = self.cluster.attachments[v][n].as_ref().filter(|a| !a.nameless)?;
            Some(Desired {
                volume: volume_id(v),
                node: node_id(n),
                access: self.setup.access[v],
                min_fence: self.setup.min_fence,
                migration_timeout_ms: MIGRATION_TIMEOUT_MS,
                require_migration: false,
                since: UnixMillis(EPOCH_MS),
                attached: attachment.attached.is_some(),
                epoch: attachment.attached,
            })
        };
        let all = (0..self.setup.access.len()).flat_map(|v| self.nodes().map(move |n| (v, n)));
        all.filter_map(|(v, n)| one(v, n)).collect()
    }

    /// The newest leader begins, and is given whose VolumeAttachments nobody can name.
    pub(crate) fn begins_with_unclear(&mut self) {
        let is_nameless = |v: V, n: N| self.cluster.attachments[v][n].as_ref().is_some_and(|a| a.nameless);
        let is_unclear = |n: &N| (0..self.setup.access.len()).any(|v| is_nameless(v, *n));
        let nodes: BTreeSet<NodeId> = self.nodes().filter(is_unclear).map(node_id).collect();
        if !nodes.is_empty() {
            self.event(0, Event::DesiredUnclear { nodes });
        }
    }

    /// Records are not what they were when the next leader reads them.
    pub(crate) fn loses(&mut self, lost: Lost) {
        let volumes = match lost {
            Lost::Volume(v) => v..v + 1,
            Lost::All | Lost::Later => 0..self.setup.access.len(),
        };
        for v in volumes {
            self.cluster().lost[v] = [true; NODES];
            // What was asked and answered since is not on the records that are read: that is the fault of whoever set them
            // back.
            self.asks_off(v, None);
        }
        match lost {
            Lost::Volume(v) => drop(std::sync::Arc::make_mut(&mut self.stored).remove(&volume_id(v))),
            Lost::All => {
                self.stored = std::sync::Arc::default();
                self.cluster().nodes.clear();
            }
            Lost::Later => {
                if let Some(Copied { volumes, nodes }) = self.cluster.copy.clone() {
                    self.stored = std::sync::Arc::new(volumes);
                    self.cluster().nodes = nodes;
                    self.grant_goes_on_by_the_copy();
                }
            }
        }
    }

    /// A grant that has ended since may go on under its epoch, where no agent was ever sent it: nothing of it is anywhere.
    fn grant_goes_on_by_the_copy(&mut self) {
        let granting = |(id, record): (&VolumeId, &VolumeRecord)| {
            let of = record.attachments.iter().filter(|a| a.phase == Phase::Granting);
            let v = volume_of(id);
            of.map(move |a| (v, node_of(&a.node), a.epoch)).collect::<Vec<_>>()
        };
        for (v, n, epoch) in self.stored.iter().flat_map(granting).collect::<Vec<_>>() {
            let sent = self.hosts[n].ledger[v].epoch >= Some(epoch) || self.is_told_to_attach(v, n);
            if !sent && self.told.over[v][n] == Some(epoch) {
                let told = self.told();
                (told.over[v][n], told.released[v][n]) = (None, false);
                std::sync::Arc::make_mut(&mut self.durable).remove(&epoch);
            }
        }
    }

    pub(crate) fn copy_records(&mut self) {
        let (volumes, nodes) = ((*self.stored).clone(), self.cluster.nodes.clone());
        self.cluster().copy = Some(Copied { volumes, nodes });
    }

    /// At a start nobody is heard. Who stands on nothing that is read then can be known only once it is.
    fn forget_whom_nobody_can_know(&mut self, goes_on: impl Fn(V, N) -> bool) {
        let truth = self.setup.truth;
        for v in 0..self.setup.access.len() {
            for n in self.nodes() {
                let (record, export) = (self.stored.get(&volume_id(v)), &self.exports[v]);
                let recorded = record.is_some_and(|r| attachment_of(r, n).is_some());
                let listed = truth.acl && export.volume.is_listed(truth, &n);
                // Without a record, and where the list does not say it, every node that is on record is waited for: its agent
                // also names an Attach that has come and has not begun, and follows no older leader any more.
                let asked = record.is_none()
                    && self.cluster.nodes.contains_key(&node_id(n))
                    && !(truth.acl && export.volume.is_on());
                // One that has no name keeps those volumes closed that no record describes.
                let wanted = |a: &VolumeAttachment| !a.nameless || record.is_none();
                let wanted = self.cluster.attachments[v][n].as_ref().is_some_and(wanted);
                let said = recorded || listed || asked || wanted;
                let comes = || self.is_told_to_attach(v, n) || goes_on(v, n);
                if self.cluster.lost[v][n] && !said && (self.can_write(v, n) || comes()) {
                    self.cluster().unknown[v][n] = true;
                    let told = self.told();
                    (told.by_hand[v][n], told.unheard_stray[v][n]) = (true, Some(0));
                    told.released[v][n] = false;
                }
            }
        }
    }

    /// The newest leader sees the marks. It sees them again and again.
    pub(crate) fn sees_marks(&mut self) {
        for n in self.nodes().filter(|n| self.cluster.out_of_service[*n]).collect::<Vec<_>>() {
            let (by, reason) = ("the mark".into(), "out of service".into());
            self.event(0, Event::OutOfService { node: node_id(n), by, reason });
        }
    }

    /// A person marks a node. Where a fence is possible that begins one, and says nothing of what the node can do.
    pub(crate) fn marks(&mut self, n: N) {
        self.cluster().out_of_service[n] = true;
        self.asks_off_all(n);
        if self.can_fence() {
            self.sees_marks();
        }
    }

    fn can_fence(&self) -> bool {
        // Each rung needs it.
        self.setup.truth.cuts
    }

    /// Where no fence is possible a mark says of a node that is silent for a quantum that it is gone; that it lives is the
    /// fault of whoever has marked it then.
    pub(crate) fn marks_are_statements(&mut self) {
        if self.can_fence() {
            return;
        }
        let newest = self.leaders[0].process;
        let heard = |n: N| self.hosts[n].stream.as_ref().is_some_and(|s| s.process == newest);
        let meant = |n: &N| self.cluster.out_of_service[*n] && !self.told.said_gone[*n] && !heard(*n);
        for n in self.nodes().filter(meant).collect::<Vec<_>>() {
            let told = self.told();
            (told.said_gone[n], told.gone[n]) = (true, true);
            if !self.hosts[n].off {
                self.said_wrongly(n);
            }
        }
    }
}
