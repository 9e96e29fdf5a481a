//! What the RDS lists, held against what is on record. A store may be lost, or older than the last grants; so after a
//! start whoever may connect by the RDS's own lists counts as able to write until it is proven that it cannot.
//!
//! In come lists ([`Event::RdsListed`](crate::Event)); out go attachments of hosts that are on one and on no record.
//! They are `Stray`s like what a node's own inventory shows, and go the same way: proven absent by their agent, or
//! fenced. A host that no node is known to be gets a name of its own ([`unknown_host`]) until its node is heard. What
//! holds: nothing is granted, let in, or answered as done for a volume before it was looked at.

use std::collections::{BTreeMap, BTreeSet};

use super::requests::RequestKind;
use super::{Core, Desired, Transition};
use crate::volume::Pending;
use crate::{
    Attachment, DrainCause, FenceStep, HostNqn, ListDoubt, ListedVolume, NodeId, NodeIdentity, NodeRecord,
    NodeUid, Notice, OlderBy, Phase, PinHolds, Trouble, UnixMillis, VolumeId, VolumeRecord, Wait,
};

/// A list may lack a disk for a moment. That a volume is on none counts after this time, between two lists.
const ABSENT_FOR_MS: u64 = 10_000;
/// Who wants a host off that nobody here has let in, and why.
const LATE_REQUEST: (&str, &str) =
    ("cleat-controller", "the RDS lets its host in, and this controller has not asked for that");
/// What precedes the name of a host that no node is known to be. No node may call itself so.
const UNKNOWN_HOST: &str = "unknown-host.";

/// What a rebuilt core begins with.
#[derive(Debug, Clone, Default)]
pub struct Remembered {
    /// What was stored of each volume.
    pub volumes: Vec<VolumeRecord>,
    /// What was stored of each node.
    pub nodes: Vec<NodeRecord>,
    /// Who is to have what, whatever the records say.
    pub desired: Vec<Desired>,
    /// Nothing is granted or answered as done before the RDS's lists were read ([`crate::Event::RdsListed`]).
    pub lists_first: bool,
}

/// For those who know that nobody else is on any list.
impl From<Vec<VolumeRecord>> for Remembered {
    fn from(volumes: Vec<VolumeRecord>) -> Self {
        Self { volumes, ..Self::default() }
    }
}

/// What is known of the RDS's lists.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct RdsLists {
    /// They matter: else all is known.
    needed: bool,
    /// When the first and the last whole list came.
    first: Option<UnixMillis>,
    last: Option<UnixMillis>,
    /// Why the last try gave none.
    trouble: Option<String>,
    /// Volumes that were on one.
    seen: BTreeSet<VolumeId>,
    /// Volumes of which the list does not say who may write.
    doubts: BTreeMap<VolumeId, Doubt>,
    /// Volumes that were found off against their records, and that this process has not brought on by itself since.
    found_off: BTreeSet<VolumeId>,
    /// Nodes whose report is not waited for: a person has declared them gone, and they were not heard since.
    gone: BTreeSet<NodeId>,
}

/// Why a list does not say who may write.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Doubt {
    /// Off without a record. `listed`: hosts are kept on lists, and nobody is on this one.
    Off { listed: bool },
    /// The RDS keeps no list of hosts, and there is no record.
    NoList,
    /// On, and by its record it is off and nobody has it: the record is older than what was done.
    On,
    /// What it says cannot be understood.
    Unreadable(String),
}

impl RdsLists {
    pub(super) fn new(needed: bool) -> Self {
        Self { needed, ..Self::default() }
    }
}

/// The name under which a host is kept that no node is known to be.
pub(super) fn unknown_host(nqn: &HostNqn) -> Option<NodeId> {
    let mut name: String = nqn
        .as_str()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .take(180)
        .collect();
    while name.contains("..") {
        name = name.replace("..", ".-");
    }
    // FNV-1a: two NQNs whose names come out the same are kept apart.
    let hash = nqn
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    // Nobody is left out because of a name: where the NQN makes none, its hash does.
    NodeId::new(format!("{UNKNOWN_HOST}{name}-{hash:016x}"))
        .or_else(|_| NodeId::new(format!("{UNKNOWN_HOST}{hash:016x}")))
        .ok()
}

pub(super) fn is_unknown_host(node: &NodeId) -> bool {
    node.as_str().starts_with(UNKNOWN_HOST)
}

impl Core {
    /// Whether the RDS's lists were read since the start. Before, a node may have a volume of which nothing is on record.
    #[must_use]
    pub fn has_read_lists(&self) -> bool {
        !self.lists.needed || self.lists.first.is_some()
    }

    /// Whether what is kept under `holder` may be this node.
    pub(super) fn may_be(&self, holder: &NodeId, node: &NodeId) -> bool {
        // Of a node that was heard it is known which host it is; what is kept of another may be older than its host.
        holder == node || (is_unknown_host(holder) && !self.nodes.contains_key(node))
    }

    /// What a request waits for before anything about the volume can be granted or answered as done.
    pub(super) fn awaits_lists(
        &self,
        volume: &VolumeId,
        kind: &RequestKind,
        now: UnixMillis,
    ) -> Option<Wait> {
        self.awaits_list(volume, kind, now).or_else(|| self.awaits_unheard(volume, kind, now))
    }

    fn awaits_list(&self, volume: &VolumeId, kind: &RequestKind, now: UnixMillis) -> Option<Wait> {
        let lists = &self.lists;
        if !lists.needed {
            return None;
        }
        let last = lists.trouble.clone();
        let Some(first) = lists.first else {
            return Some(Wait::FirstList { since: self.began, last });
        };
        if !lists.seen.contains(volume) {
            let listed_for_ms = lists.last.unwrap_or(first).since(first);
            return (listed_for_ms < ABSENT_FOR_MS).then(|| Wait::ListOf {
                volume: volume.clone(),
                lacked_for_ms: ABSENT_FOR_MS,
                last,
            });
        }
        let doubt = lists.doubts.get(volume)?;
        // A node's report speaks for itself alone; a grant needs those of all.
        let about = match kind {
            RequestKind::Unpublish { node: Some(node) } | RequestKind::Fence { node } => Some(node),
            RequestKind::Unpublish { node: None } | RequestKind::Publish { .. } => None,
        };
        let held = |node: &NodeId| {
            self.volumes.get(volume).is_some_and(|r| r.attachments.iter().any(|a| self.may_be(&a.node, node)))
        };
        if about.is_some_and(held) && !matches!(doubt, Doubt::Unreadable(_)) {
            // It has to be proven gone first, which says more.
            return None;
        }
        let listed = match doubt {
            Doubt::Unreadable(problem) => {
                return Some(Wait::ReadableList { volume: volume.clone(), problem: problem.clone() });
            }
            Doubt::Off { .. } => ListDoubt::FoundOff,
            Doubt::On => ListDoubt::FoundOn,
            Doubt::NoList => ListDoubt::NoList,
        };
        let heard = |node: &NodeId| self.nodes.get(node).is_some_and(|n| n.ready_session().is_some());
        let unheard: Vec<NodeId> = match about {
            Some(node) => {
                (!heard(node) && !lists.gone.contains(node)).then_some(node.clone()).into_iter().collect()
            }
            None => self.registry.keys().filter(|node| !heard(node)).cloned().collect(),
        };
        let (cut, until) = (self.is_cut(doubt), self.lands_until());
        // All sessions have ended, or all have said what they hold: what is left is what was on its way.
        let (volume, doubt) = (volume.clone(), listed);
        if cut || unheard.is_empty() {
            return (now < until).then_some(Wait::ListDrainBound { volume, until, doubt });
        }
        Some(Wait::Reports { volume, nodes: unheard, doubt })
    }

    /// Nobody is on its list, and that it is off has ended all sessions.
    fn is_cut(&self, doubt: &Doubt) -> bool {
        let target = &self.config.target;
        *doubt == (Doubt::Off { listed: true }) && target.acl && target.export_cuts
    }

    /// What was on its way at the start lands until then.
    fn lands_until(&self) -> UnixMillis {
        self.began.plus(self.config.drain_bound_ms)
    }

    /// Whether to take the export off waits for what the target has received: it was on before, or this process has heard
    /// it go off.
    pub(super) fn is_seen_to_drain(&self, volume: &VolumeId) -> bool {
        let found_off = self.lists.found_off.contains(volume);
        self.volumes.get(volume).is_some_and(|r| r.hidden_heard || !(r.hidden || found_off))
    }

    /// Whether a node is known by name: heard, kept, or asked about.
    pub(super) fn knows_of(&self, node: &NodeId) -> bool {
        let asked_about = |kind: &RequestKind| match kind {
            RequestKind::Unpublish { node: about } => about.as_ref() == Some(node),
            RequestKind::Publish { .. } | RequestKind::Fence { .. } => false,
        };
        self.nodes.contains_key(node)
            || self.registry.contains_key(node)
            || self.is_to_have(node).is_some()
            || self.waiters.values().flat_map(|waiting| waiting.values()).any(|w| asked_about(&w.kind))
    }

    /// Who has a host NQN, as far as it is known.
    fn owner(&self, record: Option<&VolumeRecord>, nqn: &HostNqn) -> Option<NodeId> {
        let fenced = record.into_iter().flat_map(|r| &r.fenced);
        let heard = self.nodes.iter().find(|(_, n)| n.identity.host_nqn == *nqn).map(|(id, _)| id);
        let mut kept = self.registry.iter().filter(|(_, n)| n.identity.host_nqn == *nqn).map(|(id, _)| id);
        let kept = kept.next().filter(|_| kept.next().is_none());
        heard.or(kept).or_else(|| fenced.filter(|f| f.host_nqn == *nqn).map(|f| &f.node).next()).cloned()
    }
}

impl Transition<'_> {
    /// The RDS has listed volumes: `whole`: all that it has.
    pub(super) fn rds_listed(&mut self, volumes: Vec<ListedVolume>, whole: bool) {
        let asked: BTreeSet<VolumeId> =
            self.core.operations.values().map(|(volume, _)| volume.clone()).collect();
        for listed in volumes {
            self.compare(listed, &asked);
        }
        if whole {
            let lists = &mut self.core.lists;
            if lists.first.is_none() {
                lists.first = Some(self.now);
                self.touched.extend(self.core.volumes.keys().cloned());
            }
            (lists.last, lists.trouble) = (Some(self.now), None);
            self.touched.extend(self.core.waiters.keys().cloned());
        }
    }

    /// A volume was made: nobody is on its list. Where there are no lists that is kept, for nothing else would say so to
    /// whoever comes after this process.
    pub(super) fn rds_made(&mut self, volume: VolumeId) {
        if let Some(record) = self.core.volumes.get_mut(&volume) {
            // What was deleted under this name was another one; who was cut off from that is still to be sent a Revoke.
            if std::mem::take(&mut record.deleted) {
                self.dirty.insert(volume);
            }
            return;
        }
        let lists = &mut self.core.lists;
        lists.doubts.remove(&volume);
        lists.found_off.remove(&volume);
        lists.seen.insert(volume.clone());
        if !self.core.config.target.acl {
            self.core.volumes.insert(volume.clone(), VolumeRecord::unknown(volume.clone()));
            self.dirty.insert(volume.clone());
        }
        self.touched.insert(volume);
    }

    /// The RDS has not listed its volumes.
    pub(super) fn rds_not_listed(&mut self, error: String) {
        self.core.lists.trouble = Some(error);
    }

    /// `asked`: the RDS has not answered yet what it was asked of them.
    fn compare(&mut self, listed: ListedVolume, asked: &BTreeSet<VolumeId>) {
        let lists = &mut self.core.lists;
        if !lists.needed {
            return;
        }
        // What was seen once is what this process has changed itself since, but for what comes late of others.
        if lists.seen.contains(&listed.volume) && !lists.doubts.contains_key(&listed.volume) {
            let asks = asked.contains(&listed.volume);
            if listed.at_rest && listed.problem.is_none() && !asks {
                self.undone_by_others(listed);
            }
            return;
        }
        let ListedVolume { volume, hosts, exported, keeps_list, problem, .. } = listed;
        self.touched.insert(volume.clone());
        let known = self.core.volumes.get(&volume);
        let readable = problem.is_none();
        let found_off = readable && !exported && known.is_none_or(|r| !r.hidden);
        let off_without_record = !exported && known.is_none_or(|r| !r.hidden && r.attachments.is_empty());
        let doubt = match problem {
            Some(problem) => Some(Doubt::Unreadable(problem)),
            None if exported && known.is_some_and(|r| r.hidden && r.attachments.is_empty()) => {
                Some(Doubt::On)
            }
            None if off_without_record => Some(Doubt::Off { listed: keeps_list }),
            None if !keeps_list && known.is_none() => Some(Doubt::NoList),
            None => None,
        };
        let listed_hosts: BTreeSet<HostNqn> = hosts.into_iter().collect();
        let unknown =
            |nqn: &&HostNqn| known.is_none_or(|r| r.attachments.iter().all(|a| a.host_nqn != **nqn));
        let strangers: Vec<HostNqn> = listed_hosts.iter().filter(unknown).cloned().collect();
        let lists = &mut self.core.lists;
        match doubt {
            Some(doubt) => drop(lists.doubts.insert(volume.clone(), doubt)),
            // A doubt about everybody is not settled by a record about one node.
            None if (keeps_list && exported)
                || matches!(lists.doubts.get(&volume), Some(Doubt::Unreadable(_))) =>
            {
                drop(lists.doubts.remove(&volume));
            }
            None => {}
        }
        lists.seen.insert(volume.clone());
        if found_off {
            lists.found_off.insert(volume.clone());
        }
        if keeps_list {
            self.not_on_its_list(&volume, &listed_hosts);
        }
        if readable {
            self.proven_of_another_time(&volume, |a| {
                exported && (!keeps_list || listed_hosts.contains(&a.host_nqn))
            });
        }
        for nqn in strangers {
            let _ = self.adopt(&volume, nqn);
        }
    }

    /// What the list says otherwise than the record of a volume that was looked at before was done by others. A controller
    /// whose machine stood still does not know it and goes on where it was: the RDS takes what it asks for, however late that
    /// is. So who was let in counts as able to write, and what was taken away is asked for again.
    fn undone_by_others(&mut self, listed: ListedVolume) {
        let ListedVolume { volume, hosts, exported, keeps_list, .. } = listed;
        let listed: BTreeSet<HostNqn> = hosts.into_iter().collect();
        let Some(record) = self.core.volumes.get_mut(&volume) else {
            return listed.into_iter().for_each(|nqn| drop(self.adopt(&volume, nqn)));
        };
        if let Some(let_in) = &mut record.let_in {
            let_in.extend(listed.iter().cloned());
        }
        let has = |nqn: &HostNqn| record.attachments.iter().any(|a| a.host_nqn == *nqn);
        let strangers: Vec<HostNqn> = listed.iter().filter(|nqn| !has(nqn)).cloned().collect();
        let kept_out = |a: &&Attachment| {
            matches!(a.phase, Phase::Connecting | Phase::Ready) && keeps_list && !listed.contains(&a.host_nqn)
        };
        let kept_out: Vec<NodeId> =
            record.attachments.iter().filter(kept_out).map(|a| a.node.clone()).collect();
        if exported != record.hidden {
            // As the record says.
        } else if !exported && record.needs_the_export() {
            (record.hidden, record.hidden_heard) = (true, false);
            self.dirty.insert(volume.clone());
            self.touched.insert(volume.clone());
        } else if exported && record.attachments.is_empty() {
            self.core.lists.doubts.insert(volume.clone(), Doubt::On);
        } else if exported {
            (record.hidden, record.hidden_heard) = (false, false);
            self.dirty.insert(volume.clone());
        }
        self.proofs_undone(&volume, exported, |host| exported && (!keeps_list || listed.contains(host)));
        for nqn in strangers {
            let Some(node) = self.adopt(&volume, nqn) else {
                continue;
            };
            // Nobody here has let it in. Of a host that no node is known to be a person has to say who that is.
            if !is_unknown_host(&node) {
                let (by, reason) = (LATE_REQUEST.0.to_owned(), LATE_REQUEST.1.to_owned());
                self.begin_drain(&volume, &node, DrainCause::Forced { by, reason });
            }
        }
        for node in kept_out {
            if self.attachment_mut(&volume, &node).is_some_and(|a| a.pending == Pending::Nothing) {
                self.trouble(&volume, &node, Trouble::KeptOut);
                self.allow(&volume, &node);
            }
        }
    }

    /// Proofs that rest on what others have undone since prove nothing.
    fn proofs_undone(&mut self, volume: &VolumeId, exported: bool, may_connect: impl Fn(&HostNqn) -> bool) {
        let may_land_until = Some(self.now.plus(self.core.config.drain_bound_ms));
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        for a in &mut record.attachments {
            let by_the_export = a.is_fenced_by_export() && exported;
            let connects = may_connect(&a.host_nqn);
            let Phase::Draining { evidence, fence, .. } = &mut a.phase else {
                continue;
            };
            let off_the_list = fence.as_ref().is_some_and(|f| f.denied)
                || evidence.as_ref().is_some_and(|e| e.source.took_the_host_off_the_list());
            if by_the_export || (off_the_list && connects) {
                (*evidence, *fence) = (None, None);
                (a.used_since, a.may_land_until) = (true, may_land_until);
                a.trouble = Some(Trouble::ProofOlderThanList);
                self.dirty.insert(volume.clone());
                self.touched.insert(volume.clone());
            }
        }
    }

    /// Who was let in by its record and is not on the list: its grant was ended after that record.
    fn not_on_its_list(&mut self, volume: &VolumeId, listed: &BTreeSet<HostNqn>) {
        let attachments = self.core.volumes.get(volume).into_iter().flat_map(|r| &r.attachments);
        let let_in = attachments.filter(|a| matches!(a.phase, Phase::Connecting | Phase::Ready));
        let off: Vec<NodeId> =
            let_in.filter(|a| !listed.contains(&a.host_nqn)).map(|a| a.node.clone()).collect();
        for node in off {
            self.record_is_older(volume, &node, OlderBy::NotListed);
        }
    }

    /// Proofs, and fences half done, are on a record from before this process. Of a host that may connect they may tell
    /// of an earlier grant: it was let in again since, and they start over.
    fn proven_of_another_time(&mut self, volume: &VolumeId, may_connect: impl Fn(&Attachment) -> bool) {
        let may_land_until = Some(self.now.plus(self.core.config.drain_bound_ms));
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        for a in &mut record.attachments {
            let old = std::mem::take(&mut a.old_proof);
            let connects = may_connect(a);
            let Phase::Draining { evidence, fence, .. } = &mut a.phase else {
                continue;
            };
            let begun =
                fence.as_ref().is_some_and(|f| f.old && f.pending.is_none() && f.step != FenceStep::Deny);
            if !connects || !(old || begun) {
                continue;
            }
            (*evidence, *fence) = (None, None);
            (a.used_since, a.may_land_until) = (true, may_land_until);
            a.trouble = Some(Trouble::ProofOlderThanList);
            self.dirty.insert(volume.clone());
        }
    }

    /// An attachment is on a record that is older than what was done since: the grant that it shows is over, and
    /// nobody knows what came after. The node counts as able to write until it is proven that it cannot; a Publish
    /// grants again.
    pub(super) fn record_is_older(&mut self, volume: &VolumeId, node: &NodeId, by: OlderBy) {
        let epoch = self.next_epoch();
        let now = self.now;
        let may_land_until = Some(now.plus(self.core.config.drain_bound_ms));
        let Some(a) = self.core.volumes.get_mut(volume).and_then(|v| v.attachment_mut(node)) else {
            return;
        };
        a.enter(Phase::Stray, now);
        (a.epoch, a.stray, a.proven, a.directed) = (epoch, true, true, true);
        (a.may_land_until, a.trouble) = (may_land_until, Some(Trouble::RecordOlder(by)));
        self.dirty.insert(volume.clone());
        self.touched.insert(volume.clone());
        self.notice(Notice::StrayFound { volume: volume.clone(), node: node.clone() });
    }

    /// A host is on the list, and on no record: from now on it counts as able to write. Gives the node that it counts as.
    fn adopt(&mut self, volume: &VolumeId, host_nqn: HostNqn) -> Option<NodeId> {
        let record = self.core.volumes.get(volume);
        let has_another = |node: &NodeId| record.is_some_and(|r| r.attachment(node).is_some());
        let owner = self.core.owner(record, &host_nqn).filter(|node| !has_another(node));
        let node = owner.or_else(|| unknown_host(&host_nqn))?;
        let epoch = self.next_epoch();
        let now = self.now;
        let found = self.core.found_volume(volume);
        let record = self.core.volumes.entry(volume.clone()).or_insert(found);
        let mut stray = Attachment::found(node.clone(), host_nqn, epoch, Phase::Stray, now);
        // Nobody knows since when it is there: a path may have broken before it was heard of, and come back.
        stray.may_land_until = Some(now.plus(self.core.config.drain_bound_ms));
        stray.stray = true;
        stray.trouble = Some(Trouble::ListedWithoutRecord);
        record.join(stray);
        self.dirty.insert(volume.clone());
        self.touched.insert(volume.clone());
        self.notice(Notice::StrayFound { volume: volume.clone(), node: node.clone() });
        if self.core.nodes.get(&node).is_some_and(|n| n.ready_session().is_some()) {
            self.reconcile(volume, &node);
        }
        self.drain_if_wanted_off(volume, &node);
        Some(node)
    }

    /// This process has brought it on by itself.
    pub(super) fn brought_on(&mut self, volume: &VolumeId) {
        self.core.lists.found_off.remove(volume);
    }

    /// It was granted, and from here on its record says who may write; or it was deleted, and nobody may.
    pub(super) fn no_doubt(&mut self, volume: &VolumeId) {
        self.core.lists.doubts.remove(volume);
    }

    /// A node is heard whose host was known by its NQN alone: what was kept of the host is the node's.
    pub(super) fn recognise(&mut self, node: &NodeId, identity: &NodeIdentity) {
        let Some(unknown) = unknown_host(&identity.host_nqn) else {
            return;
        };
        for id in self.on_record(&unknown) {
            let Some(record) = self.core.volumes.get_mut(&id).filter(|r| r.attachment(node).is_none()) else {
                continue;
            };
            for attachment in record.attachments.iter_mut().filter(|a| a.node == unknown) {
                attachment.node = node.clone();
                if let Phase::Draining { evidence: Some(evidence), .. } = &mut attachment.phase {
                    evidence.node = node.clone();
                }
            }
            for entry in record.fenced.iter_mut().filter(|f| f.node == unknown) {
                entry.node = node.clone();
                entry.evidence.node = node.clone();
            }
            if let Some(migration) = &mut record.migration {
                migration.rename(&unknown, node);
            }
            self.dirty.insert(id.clone());
            self.touched.insert(id);
        }
        for (_, about) in self.core.operations.values_mut() {
            if about.as_ref() == Some(&unknown) {
                *about = Some(node.clone());
            }
        }
        // Whoever waits for the host waits for the node from now on.
        for waiter in self.core.waiters.values_mut().flat_map(|waiting| waiting.values_mut()) {
            match &mut waiter.kind {
                RequestKind::Unpublish { node: Some(about) } | RequestKind::Fence { node: about }
                    if *about == unknown =>
                {
                    *about = node.clone();
                }
                _ => {}
            }
        }
    }

    /// Keeps who a node is, so that it can be recognised on a list when it is not heard. A host that has another name now
    /// is forgotten under the old one: it is the same boot of one kernel, or it would have been refused.
    pub(super) fn register(&mut self, node: &NodeId, identity: &NodeIdentity, uid: Option<NodeUid>) {
        self.core.lists.gone.remove(node);
        let registry = &mut self.core.registry;
        let renamed: Vec<NodeId> = registry
            .iter()
            .filter(|(id, known)| *id != node && known.identity.host_nqn == identity.host_nqn)
            .map(|(id, _)| id.clone())
            .collect();
        for old in renamed {
            registry.remove(&old);
            self.forgotten_nodes.insert(old);
        }
        let kept = registry.get(node).filter(|kept| kept.identity.is_same_host(identity));
        // Which Node another host had says nothing of this one's.
        let uid = uid.or_else(|| kept.and_then(|kept| kept.uid.clone()));
        let record = NodeRecord { node: node.clone(), identity: identity.clone(), uid };
        if registry.get(node) != Some(&record) {
            registry.insert(node.clone(), record);
            self.dirty_nodes.insert(node.clone());
        }
    }

    /// Where no record says whether a host with this NQN may write, and that is not over.
    pub(super) fn in_doubt(&self, nqn: &HostNqn) -> Option<PinHolds> {
        if !self.core.has_read_lists() {
            return Some(PinHolds::InDoubt { volume: None });
        }
        let is_over = |doubt: &Doubt| self.core.is_cut(doubt) && self.now >= self.core.lands_until();
        let mut doubts = self.core.lists.doubts.iter().filter(|(_, doubt)| !is_over(doubt));
        let unknown = unknown_host(nqn).filter(|_| self.core.lists.needed);
        let listed = || unknown.and_then(|host| self.on_record(&host).into_iter().next());
        let volume = doubts.next().map(|(volume, _)| volume.clone()).or_else(listed)?;
        Some(PinHolds::InDoubt { volume: Some(volume) })
    }

    /// A person has declared the node gone: nobody waits for its report any more. It is kept again once it is heard.
    pub(super) fn forget_node(&mut self, node: &NodeId, by: &str, reason: &str) {
        if self.core.registry.remove(node).is_some() {
            self.forgotten_nodes.insert(node.clone());
        }
        self.core.lists.gone.insert(node.clone());
        self.desired_gone(node, by, reason);
        self.touched.extend(self.core.waiters.keys().cloned());
    }

    /// Whether it is known what the RDS lists of the volume: a list had it, or lists went on lacking it.
    pub(super) fn was_looked_up(&self, volume: &VolumeId) -> bool {
        let lists = &self.core.lists;
        let readable = !matches!(lists.doubts.get(volume), Some(Doubt::Unreadable(_)));
        let lacked_for_ms = lists.first.zip(lists.last).map(|(first, last)| last.since(first));
        let lacked = lacked_for_ms.is_some_and(|ms| ms >= ABSENT_FOR_MS);
        !lists.needed || (readable && (lists.seen.contains(volume) || lacked))
    }

    /// Whether one that is granted may go on to the device: not before the lists were read, and not beside more of those
    /// who may write than the volume allows.
    pub(super) fn may_go_on(&self, record: &VolumeRecord) -> bool {
        let lists = &self.core.lists;
        let readable = !matches!(lists.doubts.get(&record.spec.id), Some(Doubt::Unreadable(_)));
        let looked =
            !lists.needed || (lists.first.is_some() && lists.seen.contains(&record.spec.id) && readable);
        let may_write = record.attachments.len() + self.core.unheard_of(&record.spec.id);
        looked && may_write <= record.spec.access.limit()
    }
}

#[cfg(test)]
#[path = "rds_lists_tests.rs"]
mod tests;
