//! Drift: what is where it should not be, or is not where it should be.
//!
//! In come the core's records, the agents' last reports and the keys of secrets; out go the differences between
//! them, for
//! people, as counts by kind, and as notices. Nothing here changes anything: a node that could write counts as a writer in the core
//! already. What always holds: of two looks at the same state, both find the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cleat_core::{Core, NodeId, ObservedPhase, Phase, SessionState, StorageAddress, VolumeId, VolumeRecord};
use cleat_proto::cleat::v1 as proto;
use cleat_rds::secret::{self, Keys};
use cleat_runtime::tls::renew::{Expiry, SOON};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::agents::{AgentReport, ReportNumber, Reports};
use crate::engine::{Engine, EngineEnded, LATE_WRITE, NoticeText, WatchedChange};
use crate::events::{ClusterEvent, EventReason};
use crate::{explain, metrics};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(5);
/// An agent that is turned away connects again within seconds. One that has not for so long is not there any more.
const TURNED_AWAY: Duration = Duration::from_secs(120);

/// The comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A node's kernel holds controllers of a volume that it is not granted.
    SessionWithoutGrant,
    /// A node is granted a volume, and its kernel does not hold it.
    GrantWithoutSession,
    /// What is staged as the volume is another device.
    StagingElsewhere,
    /// What a VM that has moved holds in the place of the volume is another device.
    HeldElsewhere,
    /// The source of a migration has written after the VM had moved.
    LateWrites,
    /// Two nodes say that they are the same host.
    DuplicateIdentity,
    /// Nodes say that they have the same storage address.
    SharedAddress,
    /// The certificate that a node's session rests on ends soon.
    CertificateExpires,
    /// The key is not there from which a volume's secret was made.
    KeyMissing,
    /// A volume's record cannot be read, or was changed by somebody else.
    RecordSetAside,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::SessionWithoutGrant,
        Self::GrantWithoutSession,
        Self::StagingElsewhere,
        Self::HeldElsewhere,
        Self::LateWrites,
        Self::DuplicateIdentity,
        Self::SharedAddress,
        Self::CertificateExpires,
        Self::KeyMissing,
        Self::RecordSetAside,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::SessionWithoutGrant => "session-without-grant",
            Self::GrantWithoutSession => "grant-without-session",
            Self::StagingElsewhere => "staging-elsewhere",
            Self::HeldElsewhere => "held-elsewhere",
            Self::LateWrites => "late-writes",
            Self::DuplicateIdentity => "duplicate-identity",
            Self::SharedAddress => "shared-address",
            Self::CertificateExpires => "certificate-expires",
            Self::KeyMissing => "key-missing",
            Self::RecordSetAside => "record-set-aside",
        }
    }

    /// As the reason of a notice.
    fn reason(self) -> &'static str {
        match self {
            Self::SessionWithoutGrant => "drift_session",
            Self::GrantWithoutSession => "drift_grant",
            Self::StagingElsewhere => "drift_staging",
            Self::HeldElsewhere => "drift_held",
            Self::LateWrites => "drift_late_writes",
            Self::DuplicateIdentity => "drift_identity",
            Self::SharedAddress => "drift_address",
            Self::CertificateExpires => "certificate_expires",
            Self::KeyMissing => "key_missing",
            Self::RecordSetAside => "record_set_aside",
        }
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Drift {
    kind: Kind,
    node: Option<NodeId>,
    volume: Option<VolumeId>,
    message: String,
}

impl Drift {
    pub(super) fn into_proto(self) -> proto::DriftInfo {
        proto::DriftInfo {
            kind: self.kind.name().to_owned(),
            node_id: self.node.map(String::from).unwrap_or_default(),
            volume_id: self.volume.map(String::from).unwrap_or_default(),
            message: self.message,
        }
    }
}

/// A certificate of this controller that ends soon: an outage to come.
pub(super) fn expires(expiry: Expiry) -> Option<proto::DriftInfo> {
    let message = expiry.complaint()?;
    Some(proto::DriftInfo { kind: "certificate-expires".to_owned(), message, ..Default::default() })
}

/// Finds every difference that there is now.
pub(super) async fn look(
    engine: &Engine,
    reports: &Reports,
    secrets: Option<Arc<Keys>>,
) -> Result<Vec<Drift>, EngineEnded> {
    let found = engine.view(move |core, _| (of_records(core, secrets.as_deref()), of_addresses(core)));
    let (found, mut drifts) = found.await?;
    drifts.extend(found.into_values().flatten());
    for (node, reports) in reports.all() {
        drifts.extend(of_volumes(&node, &reports));
    }
    drifts.extend(of_sessions(reports));
    drifts.extend(of_set_aside(engine.set_aside()));
    drifts.sort();
    Ok(drifts)
}

/// Looks again and again, counts what is there, and reports what was there twice in a row: between two steps of an
/// attach or a detach, the two sides differ for a moment.
pub async fn keep_looking(
    engine: Engine,
    reports: Reports,
    secrets: Option<Arc<Keys>>,
    stop: CancellationToken,
) {
    let (mut seen, mut announced) = (BTreeSet::new(), BTreeSet::new());
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut changes = engine.changes();
    let mut records = Records { secrets, ..Records::default() };
    let mut reported = Reported::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            change = changes.recv() => match change {
                Ok(change) => {
                    records.stale.note(change);
                    continue;
                }
                Err(RecvError::Lagged(_)) => {
                    records.stale = Stale::All;
                    continue;
                }
                Err(RecvError::Closed) => return,
            },
            _ = every.tick() => {}
        }
        if records.catch_up(&engine).await.is_err() {
            return;
        }
        reported.catch_up(&reports);
        let lasting =
            records.found.values().flatten().chain(&records.shared).chain(reported.found.values().flatten());
        let mut now: BTreeSet<Drift> = lasting.cloned().collect();
        now.extend(of_sessions(&reports));
        now.extend(of_set_aside(engine.set_aside()));
        for kind in Kind::ALL {
            metrics::drift(kind.name(), now.iter().filter(|drift| drift.kind == kind).count());
        }
        announced.retain(|drift| now.contains(drift));
        let lasting: Vec<Drift> = now.intersection(&seen).cloned().collect();
        for drift in lasting {
            if announced.insert(drift.clone()) {
                tell(&engine, drift);
            }
        }
        seen = now;
    }
}

/// What the records show, kept up to date by what changes: the core's task is not made to compare what is at rest.
#[derive(Default)]
struct Records {
    found: Found,
    /// Addresses that several nodes have.
    shared: Vec<Drift>,
    stale: Stale,
    secrets: Option<Arc<Keys>>,
}

/// What the agents' reports show, kept up to date as they come in.
#[derive(Default)]
struct Reported {
    /// Drift by the node whose agent's report shows it.
    found: BTreeMap<NodeId, Vec<Drift>>,
    until: ReportNumber,
}

impl Reported {
    /// Compares what was said since. Gives the nodes whose agents have said something.
    fn catch_up(&mut self, reports: &Reports) -> usize {
        let (until, since) = reports.since(self.until);
        self.until = until;
        for (node, reports) in &since {
            let drifts = of_volumes(node, reports);
            if drifts.is_empty() {
                self.found.remove(node);
            } else {
                self.found.insert(node.clone(), drifts);
            }
        }
        since.len()
    }
}

/// Drift by their volume, where there are any.
type Found = BTreeMap<VolumeId, Vec<Drift>>;

/// What has to be compared again.
enum Stale {
    All,
    Some { volumes: BTreeSet<VolumeId>, nodes: BTreeSet<NodeId> },
}

impl Default for Stale {
    /// All volumes: nothing was compared yet.
    fn default() -> Self {
        Self::All
    }
}

impl Stale {
    const NOTHING: Self = Self::Some { volumes: BTreeSet::new(), nodes: BTreeSet::new() };

    fn note(&mut self, change: WatchedChange) {
        if let Self::Some { volumes, nodes } = self {
            match change {
                WatchedChange::Volume(volume) => drop(volumes.insert(volume)),
                WatchedChange::Node(node) => drop(nodes.insert(node)),
                // It changes no record.
                WatchedChange::Notice(notice) if notice.reason == LATE_WRITE => {
                    volumes.extend(notice.volume.clone());
                }
                WatchedChange::Notice(_) => {}
            }
        }
    }
}

impl Records {
    async fn catch_up(&mut self, engine: &Engine) -> Result<(), EngineEnded> {
        match std::mem::replace(&mut self.stale, Stale::NOTHING) {
            Stale::All => {
                let secrets = self.secrets.clone();
                let all = move |core: &Core, _| (of_records(core, secrets.as_deref()), of_addresses(core));
                (self.found, self.shared) = engine.view(all).await?;
            }
            Stale::Some { volumes, nodes } if volumes.is_empty() && nodes.is_empty() => {}
            Stale::Some { volumes, nodes } => {
                let secrets = self.secrets.clone();
                let compared = move |core: &Core, _| {
                    let shared = (!nodes.is_empty()).then(|| of_addresses(core));
                    (of_changed(core, volumes, &nodes, secrets.as_deref()), shared)
                };
                let (compared, shared) = engine.view(compared).await?;
                self.take(compared);
                self.shared = shared.unwrap_or(std::mem::take(&mut self.shared));
            }
        }
        Ok(())
    }

    fn take(&mut self, compared: Vec<(VolumeId, Vec<Drift>)>) {
        for (volume, drifts) in compared {
            if drifts.is_empty() {
                self.found.remove(&volume);
            } else {
                self.found.insert(volume, drifts);
            }
        }
    }
}

fn tell(engine: &Engine, drift: Drift) {
    let Drift { kind, node, volume, message } = drift;
    let (about, at_node) = (volume.as_ref().map(VolumeId::as_str), node.as_ref().map(NodeId::as_str));
    tracing::warn!(node = at_node, volume = about, kind = kind.name(), "{message}");
    let (at, reason) = (engine.now(), kind.reason());
    let events = vec![ClusterEvent { reason: EventReason::DriftFound, note: message.clone() }];
    engine.tell(NoticeText { at, reason, volume, node, message, migration: None, events });
}

/// Addresses that more than one node that is heard has. They refuse nobody: only a host NQN and a host id distinguish hosts.
fn of_addresses(core: &Core) -> Vec<Drift> {
    let heard = core.nodes().iter().filter(|(_, known)| matches!(known.session, SessionState::Up { .. }));
    let mut having: BTreeMap<StorageAddress, BTreeSet<&NodeId>> = BTreeMap::new();
    for (node, known) in heard {
        for address in &known.identity.storage_addresses {
            having.entry(*address).or_default().insert(node);
        }
    }
    let shared = having.into_iter().filter_map(|(address, nodes)| {
        let [first, others @ ..] = &*nodes.into_iter().collect::<Vec<_>>() else { return None };
        let others: Vec<&str> = others.iter().map(|other| other.as_str()).collect();
        let message = format!(
            "nodes {first} and {} say that they have the storage address {address}: give each host its own",
            others.join(", ")
        );
        let node = Some((*first).clone());
        (!others.is_empty()).then_some(Drift { kind: Kind::SharedAddress, node, volume: None, message })
    });
    shared.collect()
}

/// Compares every record with what nodes and the RDS show.
fn of_records(core: &Core, secrets: Option<&Keys>) -> Found {
    let compare = |record: &VolumeRecord| (record.spec.id.clone(), of_record(core, record, secrets));
    let compared = core.volumes().values().map(compare);
    compared.filter(|(_, drifts)| !drifts.is_empty()).collect()
}

/// Compares these volumes, and those that the nodes have or were cut off from. A volume that is gone has no drift.
fn of_changed(
    core: &Core,
    mut volumes: BTreeSet<VolumeId>,
    nodes: &BTreeSet<NodeId>,
    secrets: Option<&Keys>,
) -> Vec<(VolumeId, Vec<Drift>)> {
    let theirs = nodes.iter().flat_map(|node| core.volumes_of(node));
    volumes.extend(theirs.map(|record| record.spec.id.clone()));
    let drifts = |id: &VolumeId| core.volumes().get(id).map(|record| of_record(core, record, secrets));
    let compared = volumes.into_iter().map(|id| {
        let drifts = drifts(&id).unwrap_or_default();
        (id, drifts)
    });
    compared.collect()
}

/// Compares a volume's record with each node that it names: no other node can differ from it. And with the keys.
fn of_record(core: &Core, record: &VolumeRecord, secrets: Option<&Keys>) -> Vec<Drift> {
    let attached = record.attachments.iter().map(|attachment| &attachment.node);
    let named: BTreeSet<&NodeId> = attached.chain(record.fenced.iter().map(|fenced| &fenced.node)).collect();
    let id = &record.spec.id;
    let drift = |node: &NodeId| {
        let known = core.nodes().get(node)?;
        let heard = matches!(known.session, SessionState::Up { inventoried: true, .. });
        let observed = known.observed.get(id).map_or(ObservedPhase::Absent, |observed| observed.phase);
        let (kind, message) = compare(record, node, observed, heard)?;
        Some(Drift { kind, node: Some(node.clone()), volume: Some(id.clone()), message })
    };
    named.into_iter().filter_map(drift).chain(late(record)).chain(without_its_key(record, secrets)).collect()
}

/// The source of the migration under way, if it has written since the VM moved.
fn late(record: &VolumeRecord) -> Option<Drift> {
    let migration = record.migration.as_ref()?;
    record.attachment(&migration.source).filter(|source| source.writes_late())?;
    let (volume, node) = (record.spec.id.clone(), migration.source.clone());
    let message = explain::late_write(&volume, &node, &migration.target);
    Some(Drift { kind: Kind::LateWrites, node: Some(node), volume: Some(volume), message })
}

/// Volumes of which nobody knows who may write to them, whatever else is shown.
fn of_set_aside(all: BTreeMap<VolumeId, String>) -> impl Iterator<Item = Drift> {
    all.into_iter().map(|(volume, why)| {
        let message = format!(
            "nobody knows who may write to it: it was set aside: {why}; see that its record says what is true, then \
             restart the controller that leads"
        );
        Drift { kind: Kind::RecordSetAside, node: None, volume: Some(volume), message }
    })
}

/// A volume whose secret cannot be made any more: whoever has it keeps it, and nobody else gets it. With keys and
/// without attachments it needs none, for its next grant brings another secret.
fn without_its_key(record: &VolumeRecord, secrets: Option<&Keys>) -> Option<Drift> {
    let generation = record.secret.as_ref()?.generation;
    if record.attachments.is_empty() && secrets.is_some() {
        return None;
    }
    let missing = secret::secret(secrets, &record.spec.id, generation).err()?;
    let message = format!("{missing}. Until then no other node gets it");
    Some(Drift { kind: Kind::KeyMissing, node: None, volume: Some(record.spec.id.clone()), message })
}

/// What a volume's record says of a node, against what the node's kernel holds.
fn compare(
    record: &VolumeRecord,
    node: &NodeId,
    observed: ObservedPhase,
    heard: bool,
) -> Option<(Kind, String)> {
    let volume = &record.spec.id;
    let held = observed != ObservedPhase::Absent;
    let attachment = record.attachment(node);
    if let Some(fenced) = record.fenced.iter().find(|fenced| fenced.node == *node)
        && attachment.is_none()
        && held
    {
        let message = format!(
            "node {node} was fenced from volume {volume} (epoch {}, {}), and its kernel still holds controllers of it: it \
             will be revoked as soon as its agent connects",
            fenced.epoch,
            fenced.evidence.source.name()
        );
        return Some((Kind::SessionWithoutGrant, message));
    }
    let attachment = attachment?;
    match &attachment.phase {
        Phase::Stray => Some((
            Kind::SessionWithoutGrant,
            format!(
                "node {node} holds volume {volume} without a grant, and counts as writing to it: publish it there, or \
                 unpublish it from there"
            ),
        )),
        // The core has its agent connect it again. Where that is done at once, nobody sees it here twice.
        Phase::Ready | Phase::Connecting if attachment.proven && heard && !held => {
            let trouble = attachment
                .trouble()
                .map(|last| format!(" (last: {})", explain::trouble(last)))
                .unwrap_or_default();
            Some((
                Kind::GrantWithoutSession,
                format!(
                    "volume {volume} is granted to node {node}, whose kernel holds no controller of it{trouble}: its \
                     agent is sent an Attach again; repair what keeps it from that, or unpublish it from there"
                ),
            ))
        }
        _ => None,
    }
}

/// What an agent says of its volumes.
fn of_volumes(node: &NodeId, reports: &AgentReport) -> Vec<Drift> {
    let others = |(volume, state): (&VolumeId, &proto::VolumeState)| {
        let others = state.staging.iter().filter(|staging| !staging.same).map(|staging| {
            let message = format!(
                "what is staged as volume {volume} at {} on node {node} is another device ({}): stop what uses it, and \
                 unstage it there",
                staging.path, staging.device
            );
            let (node, volume) = (Some(node.clone()), Some(volume.clone()));
            Drift { kind: Kind::StagingElsewhere, node, volume, message }
        });
        let held = state.held_elsewhere.iter().map(|held| {
            let message = format!(
                "what a pod has open on node {node} in the place of volume {volume} is another device ({held}): it does not \
                 read and write the volume; stop the VM, and see what is at that path in its pod"
            );
            let (node, volume) = (Some(node.clone()), Some(volume.clone()));
            Drift { kind: Kind::HeldElsewhere, node, volume, message }
        });
        others.chain(held).collect::<Vec<_>>()
    };
    reports.volumes.iter().flat_map(others).collect()
}

/// Drift about sessions: it depends on the time, also where nobody reports anything.
fn of_sessions(reports: &Reports) -> Vec<Drift> {
    let mut drifts = Vec::new();
    reports.each(|node, reports| {
        let mut found = |kind, message| drifts.push(Drift { kind, node: Some(node.clone()), volume: None, message });
        let left = reports.proven_until.map(|until| until.duration_since(SystemTime::now()).unwrap_or_default());
        if let Some(left) = left.filter(|left| *left < SOON) {
            let left = humantime::format_duration(Duration::from_secs(left.as_secs() / 3600 * 3600));
            let message = format!(
                "the session of node {node} came with a certificate, its own or the controller's, that ends in {left} or \
                 less than an hour more: renew it (--tls-cert)"
            );
            found(Kind::CertificateExpires, message);
        }
        if let Some((at, reason)) = &reports.refused
            && at.elapsed() < TURNED_AWAY
        {
            let message = format!("an agent that calls itself node {node} is turned away: {reason}");
            found(Kind::DuplicateIdentity, message);
        }
    });
    drifts
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use cleat_core::{Config, Epoch, Event, HostNqn, NodeIdentity, Observed, SessionId, UnixMillis};
    use serde_json::json;

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn volume(n: usize) -> VolumeId {
        VolumeId::new(format!("v{n}")).unwrap()
    }

    /// Each volume is granted to one of ten nodes, and proven there.
    fn record(n: usize) -> VolumeRecord {
        let node = format!("node{}", n % 10);
        serde_json::from_value(json!({
            "spec": {"id": format!("v{n}"), "access": "RWO", "subsystemNqn": null, "portals": [], "sizeBytes": 4096},
            "identity": null, "migration": null, "fenced": [], "pastEvidence": [], "attachments": [{
                "node": node, "hostNqn": format!("nqn.2026-01.test:{node}"), "epoch": "1.1", "role": "primary",
                "since": 0, "proven": true, "readOnly": false, "bootId": "b", "mayLandUntil": null,
                "phase": {"type": "ready"},
            }],
        }))
        .unwrap()
    }

    fn core_of(volumes: usize) -> Core {
        let records: Vec<VolumeRecord> = (0..volumes).map(record).collect();
        Core::rebuild(Config::default(), 2, records, UnixMillis(1)).0
    }

    /// Its agent says that it holds these, and nothing else.
    fn hear(core: &mut Core, name: &str, holds: &[usize]) {
        let session = SessionId::new(format!("{name}-{}", holds.len())).unwrap();
        let number = name.bytes().fold(1_u128, |number, byte| number << 8 | u128::from(byte));
        let identity = NodeIdentity {
            host_nqn: HostNqn::new(format!("nqn.2026-01.test:{name}")).unwrap(),
            host_id: cleat_core::HostId::from_bytes(number.to_be_bytes()).unwrap(),
            storage_addresses: vec![StorageAddress::parse("192.0.2.1").unwrap()],
            boot_id: cleat_core::BootId::new("b").unwrap(),
        };
        let observed = |n: &usize| Observed {
            volume: volume(*n),
            epoch: Some(Epoch { term: 1, seq: 1 }),
            ended: false,
            phase: ObservedPhase::Ready,
            live_paths: 2,
            unready: String::new(),
            shown: None,
            unbroken: false,
        };
        let volumes = holds.iter().map(observed).collect();
        let (id, up) = (node(name), session.clone());
        let (max_volumes, seen) = (None, cleat_core::NodeSeen::default());
        core.step(UnixMillis(2), Event::SessionUp { node: id, session: up, identity, max_volumes, seen });
        core.step(UnixMillis(3), Event::Inventory { node: node(name), session, volumes });
    }

    #[test]
    fn a_volume_that_was_set_aside_is_drift_with_the_reason() {
        let drifts: Vec<Drift> =
            of_set_aside([(volume(1), "somebody else wrote it".into())].into()).collect();
        let shown = drifts[0].clone().into_proto();
        assert_eq!((drifts.len(), &*shown.kind, &*shown.volume_id), (1, "record-set-aside", "v1"));
        assert!(shown.message.contains("somebody else wrote it; see that its record"), "{}", shown.message);
    }

    #[test]
    fn what_is_compared_again_is_what_has_changed_and_the_rest_stays_true() {
        let mut core = core_of(1_000);
        let mut records =
            Records { found: of_records(&core, None), stale: Stale::NOTHING, ..Records::default() };
        assert!(records.found.is_empty(), "nobody was heard");
        for name in ["node0", "node1"] {
            hear(&mut core, name, &[]);
            let compared = of_changed(&core, BTreeSet::new(), &BTreeSet::from([node(name)]), None);
            assert_eq!(compared.len(), 100, "those of the node, of a thousand");
            records.take(compared);
            assert_eq!(records.found, of_records(&core, None));
        }
        assert!(records.found.values().flatten().all(|drift| drift.kind == Kind::GrantWithoutSession));
        assert_eq!(records.found.len(), 200);
        let all: Vec<usize> = (0..100).map(|n| 10 * n).collect();
        hear(&mut core, "node0", &all);
        for n in all {
            let compared = of_changed(&core, BTreeSet::from([volume(n)]), &BTreeSet::new(), None);
            assert_eq!(compared.len(), 1);
            records.take(compared);
        }
        assert_eq!(records.found, of_records(&core, None));
        assert_eq!(records.found.len(), 100);
    }

    #[test]
    fn an_address_of_two_nodes_is_found_once_with_both_names() {
        let mut core = core_of(1);
        hear(&mut core, "a", &[]);
        assert_eq!(of_addresses(&core), []);
        hear(&mut core, "b", &[]);
        let [Drift { kind: Kind::SharedAddress, node: Some(first), volume: None, message }] =
            &*of_addresses(&core)
        else {
            panic!("not one")
        };
        assert!(first.as_str() == "a" && message.contains("nodes a and b") && message.contains("192.0.2.1"));
    }

    /// Staged there, and another device.
    fn elsewhere(name: &str, staged: bool) -> proto::VolumeState {
        let staging = proto::Staging { path: "/staging".into(), device: "8:16".into(), same: false };
        let staging = if staged { vec![staging] } else { Vec::new() };
        proto::VolumeState { volume_id: name.into(), staging, ..Default::default() }
    }

    #[test]
    fn a_pod_that_holds_another_device_is_drift_of_its_own_kind() {
        let held_elsewhere =
            vec!["process 7 (qemu-kvm) of pod p has block device 259:7 open as /dev/disk".into()];
        let state = proto::VolumeState { volume_id: "v1".into(), held_elsewhere, ..Default::default() };
        let reports = AgentReport { volumes: BTreeMap::from([(volume(1), state)]), ..Default::default() };
        let [drift] = &of_volumes(&node("a"), &reports)[..] else { panic!("not one") };
        let shown = drift.clone().into_proto();
        assert_eq!((&*shown.kind, &*shown.node_id, &*shown.volume_id), ("held-elsewhere", "a", "v1"));
        assert!(shown.message.contains("259:7 open as /dev/disk"), "{}", shown.message);
        // An agent that does not know of pods says nothing.
        let silent = BTreeMap::from([(volume(1), proto::VolumeState::default())]);
        assert!(of_volumes(&node("a"), &AgentReport { volumes: silent, ..Default::default() }).is_empty());
    }

    #[test]
    fn of_the_words_of_a_thousand_agents_only_what_is_new_is_compared() {
        let reports = Reports::default();
        let mut reported = Reported::default();
        let of = |n: usize| NodeId::new(format!("node{n}")).unwrap();
        for n in 0..1_000 {
            reports.inventory(&of(n), BTreeMap::from([(volume(n), elsewhere("v", n == 7))]));
        }
        let all =
            |reports: &Reports| reports.all().iter().flat_map(|(n, w)| of_volumes(n, w)).collect::<Vec<_>>();
        assert_eq!(reported.catch_up(&reports), 1_000);
        assert_eq!(reported.catch_up(&reports), 0, "nobody has reported anything since");
        let found = |reported: &Reported| reported.found.values().flatten().cloned().collect::<Vec<_>>();
        assert_eq!((found(&reported).len(), found(&reported)), (1, all(&reports)));
        // Said twice between two looks, it is compared once, as it was said last.
        reports.inventory(&of(3), BTreeMap::from([(volume(3), elsewhere("v", false))]));
        reports.inventory(&of(3), BTreeMap::from([(volume(3), elsewhere("v", true))]));
        reports.inventory(&of(7), BTreeMap::new());
        assert_eq!(reported.catch_up(&reports), 2);
        assert_eq!((found(&reported).len(), found(&reported)), (1, all(&reports)));
    }

    #[test]
    fn a_key_is_missed_as_long_as_a_secret_of_it_is_needed() {
        let key = |byte| secret::MasterKey::passing(&[byte; 32]);
        let mut needs = record(0);
        needs.secret =
            Some(cleat_core::SecretState { generation: Epoch { term: 1, seq: 1 }, in_force: true });
        let keys = |today, old: Option<u8>| {
            let eras = [(0, 1), (2, today)]
                .map(|(first_term, byte)| secret::Era { first_term, key: key(byte).id() });
            Keys::new(key(today), old.map(key)).in_eras(eras.to_vec())
        };
        let (there, gone) = (keys(2, Some(1)), keys(2, None));
        assert_eq!(without_its_key(&needs, Some(&there)), None);
        let missing = without_its_key(&needs, Some(&gone)).unwrap();
        let reported = format!("{} {:?}", missing.message, missing.volume);
        assert!(reported.contains(&key(1).id().to_string()) && reported.contains("v0"), "{reported}");
        assert!(without_its_key(&needs, None).unwrap().message.contains("--secret-key-file"));
        needs.attachments.clear();
        assert_eq!(without_its_key(&needs, Some(&gone)), None, "its next grant brings another");
        assert!(without_its_key(&needs, None).is_some(), "but not without any key");
    }

    #[test]
    fn a_change_is_noted_once_and_not_where_all_is_compared_anyway() {
        let mut stale = Stale::All;
        stale.note(WatchedChange::Volume(volume(1)));
        assert!(matches!(stale, Stale::All));
        let mut stale = Stale::NOTHING;
        for _ in 0..3 {
            stale.note(WatchedChange::Volume(volume(1)));
            stale.note(WatchedChange::Node(node("a")));
        }
        assert!(matches!(stale, Stale::Some { volumes, nodes } if volumes.len() == 1 && nodes.len() == 1));
    }
}
