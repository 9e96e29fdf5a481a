//! What went wrong with an attachment. Each text goes after "last:", and is a notice by itself.

use cleat_core::{DeviceDifference, DeviceIdentity, NodeTrouble, OlderBy, RdsTask, Trouble};

use super::node::later_term;

/// What went wrong.
pub(crate) fn trouble(trouble: &Trouble) -> String {
    match trouble {
        Trouble::Rds { task, error } => format!("the RDS did not {}: {error}", rds_task(*task)),
        Trouble::Unready(why) => unready(why),
        Trouble::Progress(message) => message.clone(),
        Trouble::InUse { holders } => format!("in use: {}", holders.join("; ")),
        Trouble::UnexpectedOutcome(outcome) => {
            format!("the agent's outcome does not belong to its directive: {outcome:?}")
        }
        Trouble::RungFailed { rung, result } => format!("fencing by {} failed: {result}", rung.name()),
        Trouble::ProofOlderThanList => {
            "the record of its end may be older than the RDS's list, which its host is on".to_owned()
        }
        Trouble::RecordOlder(OlderBy::NotListed) => {
            "the record is out of date: its host is not on the RDS's list any more".to_owned()
        }
        Trouble::RecordOlder(OlderBy::LaterGrant) => {
            "the record is out of date: the node has had a later grant of it".to_owned()
        }
        Trouble::DesiredWithoutRecord => {
            "a VolumeAttachment says that it is attached there, and no record does".to_owned()
        }
        Trouble::ListedWithoutRecord => "its host is on the RDS's list without a record".to_owned(),
        Trouble::KeptOut => {
            "somebody else has taken its host off the RDS's list; it is put there again".to_owned()
        }
        Trouble::HeldWithoutGrant => "held without a grant".to_owned(),
        Trouble::ClaimsTooMuch => {
            "it reports that it holds the volume, but the RDS has ended all sessions since and not let it in"
                .to_owned()
        }
        Trouble::FenceAsked { by, reason } => format!("{by} asked for a fence: {reason}"),
        Trouble::DeclaredGone { by, reason } => format!("{by} declared the node gone: {reason}"),
        Trouble::HeardThoughGone { session, may_write_again } => {
            let again = if *may_write_again { ": it counts as able to write again" } else { "" };
            format!("declared gone, and connected again on session {session}{again}")
        }
    }
}

/// Why a node cannot use a volume: the clause, then the facts.
pub(super) fn unready(unready: &NodeTrouble) -> String {
    let clause = unready.clause();
    match unready {
        NodeTrouble::Clause { message, .. } => format!("{clause}: {message}"),
        NodeTrouble::OtherNamespace { found, pinned } => format!(
            "{clause}: the namespace is not the one that was attached before: found {}, expected {}",
            namespace(found),
            namespace(pinned)
        ),
        NodeTrouble::OtherDevice { node, difference } => {
            let (here, there) = devices(*difference);
            format!("{clause}: the device {here} here, and {there} on node {node}, which has the volume, too")
        }
        NodeTrouble::OtherEpoch { highest, ended, granted } => {
            let ended = if *ended { ", which has ended" } else { "" };
            format!("{clause}: the node has seen epoch {highest}{ended}, not {granted}")
        }
        NodeTrouble::LaterTerm(later) => format!("{clause}: {}", later_term(later)),
        NodeTrouble::Lost { unready: Some(unready) } => format!("{clause}: {unready}"),
        NodeTrouble::Lost { unready: None } => format!("{clause}: the agent does not list it"),
    }
}

fn namespace(DeviceIdentity { namespace_uuid, nguid }: &DeviceIdentity) -> String {
    let nguid = nguid.map_or_else(|| "no NGUID".to_owned(), |nguid| format!("NGUID {nguid}"));
    format!("UUID {namespace_uuid}, {nguid}")
}

/// What a device is like, and the other node's.
fn devices(difference: DeviceDifference) -> (String, String) {
    let written = |read_only| if read_only { "is read-only" } else { "is writable" };
    match difference {
        DeviceDifference::Size { found, other } => (format!("has {found} bytes"), format!("has {other}")),
        DeviceDifference::ReadOnly { found } => (written(found).to_owned(), written(!found).to_owned()),
        DeviceDifference::BlockSize { found, other } => {
            (format!("has blocks of {found} bytes"), format!("has blocks of {other}"))
        }
    }
}

fn rds_task(task: RdsTask) -> &'static str {
    match task {
        RdsTask::Allow => "allow the host",
        RdsTask::Deny => "take the host off its list",
        RdsTask::ExportOff => "take the export off",
        RdsTask::ExportOn => "bring the export back",
        RdsTask::SetSecret => "put the secret in force",
    }
}
