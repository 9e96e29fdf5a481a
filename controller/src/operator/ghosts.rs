//! Ghosts: what is where it should not be, or is not where it should be.
//!
//! In come the core's records and the agents' last words; out go the differences between them, for people, as counts
//! by kind, and as notices. Nothing here changes anything: a ghost that could write counts as a writer in the core
//! already. What always holds: of two looks at the same state, both find the same.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use cleat_core::{Core, NodeId, ObservedPhase, Phase, Session, VolumeId, VolumeRecord};
use cleat_proto::cleat::v1 as wire;
use cleat_runtime::tls::renew::{Expiry, SOON};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::agents::{LastWords, Words};
use crate::engine::{Ended, Engine, Told};
use crate::metrics;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(5);
/// An agent that is turned away dials again within seconds. One that has not for so long is not there any more.
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
    /// Two nodes say that they are the same host.
    DuplicateIdentity,
    /// The certificate that a node's session rests on ends soon.
    CertificateExpires,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::SessionWithoutGrant,
        Self::GrantWithoutSession,
        Self::StagingElsewhere,
        Self::DuplicateIdentity,
        Self::CertificateExpires,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::SessionWithoutGrant => "session-without-grant",
            Self::GrantWithoutSession => "grant-without-session",
            Self::StagingElsewhere => "staging-elsewhere",
            Self::DuplicateIdentity => "duplicate-identity",
            Self::CertificateExpires => "certificate-expires",
        }
    }

    /// As the reason of a notice.
    fn reason(self) -> &'static str {
        match self {
            Self::SessionWithoutGrant => "ghost_session",
            Self::GrantWithoutSession => "ghost_grant",
            Self::StagingElsewhere => "ghost_staging",
            Self::DuplicateIdentity => "ghost_identity",
            Self::CertificateExpires => "certificate_expires",
        }
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ghost {
    kind: Kind,
    node: NodeId,
    volume: Option<VolumeId>,
    message: String,
}

impl Ghost {
    pub(super) fn into_wire(self) -> wire::GhostInfo {
        wire::GhostInfo {
            kind: self.kind.name().to_owned(),
            node_id: self.node.to_string(),
            volume_id: self.volume.map(String::from).unwrap_or_default(),
            message: self.message,
        }
    }
}

/// A certificate of this controller that ends soon: an outage that is not one yet.
pub(super) fn expires(expiry: Expiry) -> Option<wire::GhostInfo> {
    let message = expiry.complaint()?;
    Some(wire::GhostInfo { kind: "certificate-expires".to_owned(), message, ..Default::default() })
}

/// All there are now.
pub(super) async fn look(engine: &Engine, words: &LastWords) -> Result<Vec<Ghost>, Ended> {
    let mut ghosts = engine.view(|core, _| of_records(core)).await?;
    for (node, words) in words.all() {
        of_words(&node, &words, &mut ghosts);
    }
    ghosts.sort();
    Ok(ghosts)
}

/// Looks again and again, counts what is there, and tells what was there twice in a row: between two steps of an attach
/// or a detach, the two sides differ for a moment.
pub async fn keep_looking(engine: Engine, words: LastWords, stop: CancellationToken) {
    let (mut seen, mut told) = (BTreeSet::new(), BTreeSet::new());
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        let Ok(ghosts) = look(&engine, &words).await else { return };
        let now: BTreeSet<Ghost> = ghosts.into_iter().collect();
        for kind in Kind::ALL {
            metrics::ghosts(kind.name(), now.iter().filter(|ghost| ghost.kind == kind).count());
        }
        told.retain(|ghost| now.contains(ghost));
        let lasting: Vec<Ghost> = now.intersection(&seen).cloned().collect();
        for ghost in lasting {
            if told.insert(ghost.clone()) {
                tell(&engine, ghost);
            }
        }
        seen = now;
    }
}

fn tell(engine: &Engine, ghost: Ghost) {
    let Ghost { kind, node, volume, message } = ghost;
    let about = volume.as_ref().map(VolumeId::as_str);
    tracing::warn!(%node, volume = about, kind = kind.name(), "{message}");
    let (at, reason) = (engine.now(), kind.reason());
    engine.tell(Told { at, reason, volume, node: Some(node), message, migration: None });
}

fn of_records(core: &Core) -> Vec<Ghost> {
    let mut ghosts = Vec::new();
    for (id, record) in core.volumes() {
        for (node, known) in core.nodes() {
            let heard = matches!(known.session, Session::Up { inventoried: true, .. });
            let observed = known.observed.get(id).map_or(ObservedPhase::Absent, |observed| observed.phase);
            if let Some((kind, message)) = compare(record, node, observed, heard) {
                ghosts.push(Ghost { kind, node: node.clone(), volume: Some(id.clone()), message });
            }
        }
    }
    ghosts
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
             is told to give them up as soon as it is heard",
            fenced.epoch,
            fenced.evidence.source.name()
        );
        return Some((Kind::SessionWithoutGrant, message));
    }
    let attachment = attachment?;
    match &attachment.phase {
        Phase::Ghost => Some((
            Kind::SessionWithoutGrant,
            format!(
                "node {node} holds volume {volume} without a grant, and counts as writing to it: publish it there, or \
                 unpublish it from there"
            ),
        )),
        // The core has its agent connect it again. Where that is done at once, nobody sees it here twice.
        Phase::Ready | Phase::Connecting if attachment.proven && heard && !held => {
            let trouble =
                attachment.trouble().map(|trouble| format!(" (last: {trouble})")).unwrap_or_default();
            Some((
                Kind::GrantWithoutSession,
                format!(
                    "volume {volume} is granted to node {node}, whose kernel holds no controller of it{trouble}: its \
                     agent is told to connect it again; repair what keeps it from that, or unpublish it from there"
                ),
            ))
        }
        _ => None,
    }
}

fn of_words(node: &NodeId, words: &Words, ghosts: &mut Vec<Ghost>) {
    if let Some(left) =
        words.proven_until.map(|until| until.duration_since(SystemTime::now()).unwrap_or_default())
        && left < SOON
    {
        let left = humantime::format_duration(Duration::from_secs(left.as_secs() / 3600 * 3600));
        let message = format!(
            "the session of node {node} came with a certificate, its own or the controller's, that ends in {left} or \
             less than an hour more: renew it (--tls-cert)"
        );
        ghosts.push(Ghost { kind: Kind::CertificateExpires, node: node.clone(), volume: None, message });
    }
    for (volume, state) in &words.volumes {
        for staging in state.staging.iter().filter(|staging| !staging.same) {
            let message = format!(
                "what is staged as volume {volume} at {} on node {node} is another device ({}): stop what uses it, and \
                 unstage it there",
                staging.path, staging.device
            );
            let (node, volume) = (node.clone(), Some(volume.clone()));
            ghosts.push(Ghost { kind: Kind::StagingElsewhere, node, volume, message });
        }
    }
    if let Some((at, reason)) = &words.refused
        && at.elapsed() < TURNED_AWAY
    {
        let message = format!("an agent that calls itself node {node} is turned away: {reason}");
        ghosts.push(Ghost { kind: Kind::DuplicateIdentity, node: node.clone(), volume: None, message });
    }
}
