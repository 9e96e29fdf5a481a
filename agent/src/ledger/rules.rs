//! The rules of the ledger: pure decisions over what is recorded and what is asked.
//!
//! Comes in: the recorded [`LedgerEntry`], if any, and the epoch of a directive. Goes out: the directive belongs to
//! the past, or it may go on once the entry returned here is on disk.
//!
//! Always holds: an entry returned here is never lower than the one that it replaces, and `ended` is never
//! undone.
//!
//! Crash points. *Recorded, not connected*: the same Attach finds the same epoch and goes on. *Ended, not
//! deleted*: the same Detach finds its own epoch ended and deletes what is left; an Attach of that epoch
//! belongs to the past. *Deleted, states not noted*: the entry says `unknown`, which proves nothing more than
//! it should.

use cleat_host::Portal;

use super::{Deletion, Grant, LedgerEntry, STATE_GONE, STATE_UNKNOWN};
use crate::name::Epoch;

/// A directive of an epoch that is over: lower than the highest seen, or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this node has seen epoch {highest}{} for the volume", if *ended { ", which has ended" } else { "" })]
pub struct Stale {
    /// The highest epoch seen for the volume.
    pub highest: Epoch,
    /// Whether a Detach or Revoke has ended that epoch.
    pub ended: bool,
}

impl Stale {
    fn of(entry: &LedgerEntry) -> Self {
        Self { highest: entry.epoch, ended: entry.ended }
    }
}

/// The ledger's ruling on an Attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttachRuling {
    /// Refuse: the grant is over.
    Stale(Stale),
    /// Refuse: the same epoch was granted for something else.
    Conflict(String),
    /// The same grant is recorded already; go on.
    Recorded,
    /// Write this entry, then go on.
    Record(Box<LedgerEntry>),
}

/// Rules on a directive about a volume without a record, or with an uncertain one. `forgotten` is the highest
/// epoch among the removed records, one of which may have been this volume's.
///
/// # Errors
/// [`Stale`] where the epoch may be one that has ended.
pub fn may_begin(known: Option<&LedgerEntry>, forgotten: Option<Epoch>, epoch: Epoch) -> Result<(), Stale> {
    match forgotten {
        Some(highest) if epoch <= highest && known.is_none_or(|entry| entry.uncertain) => {
            Err(Stale { highest, ended: true })
        }
        _ => Ok(()),
    }
}

/// Rules on an Attach of `epoch` for `grant`.
///
/// Within one epoch, the portals and the policy may change (how the device is reached), but not what the
/// device is or whether it may be written. `secret_generation` is that of the secret that came with the
/// Attach; the newest one under an epoch is kept.
pub fn on_attach(
    known: Option<&LedgerEntry>,
    epoch: Epoch,
    grant: &Grant,
    secret_generation: Option<Epoch>,
    boot_id: &str,
) -> AttachRuling {
    let mut written: Vec<Portal> = grant.portals.clone();
    if let Some(entry) = known {
        if epoch < entry.epoch || (epoch == entry.epoch && entry.ended) {
            return AttachRuling::Stale(Stale::of(entry));
        }
        if epoch == entry.epoch
            && let Some(before) = &entry.grant
            && let Some(conflict) = conflict(before, grant)
        {
            return AttachRuling::Conflict(format!("epoch {epoch} was granted with {conflict}"));
        }
        if !entry.ended && entry.boot_id == boot_id {
            written.extend(&entry.may_have_written);
        }
    }
    written.sort_unstable();
    written.dedup();
    let deletions = match known {
        Some(entry) if entry.epoch == epoch && entry.boot_id == boot_id => entry.deletions.clone(),
        _ => Vec::new(),
    };
    // Of this epoch, whatever the boot: a preempted node stays preempted when it restarts.
    let same = known.filter(|entry| entry.epoch == epoch);
    let entry = LedgerEntry {
        epoch,
        ended: false,
        boot_id: boot_id.to_owned(),
        grant: Some(grant.clone()),
        may_have_written: written,
        deletions,
        published: known.map(|entry| entry.published.clone()).unwrap_or_default(),
        registered: same.and_then(|entry| entry.registered),
        secret_generation: same.and_then(|entry| entry.secret_generation).max(secret_generation),
        // What the record lacks has been asked for before, or there would be no ruling.
        uncertain: false,
    };
    if known == Some(&entry) { AttachRuling::Recorded } else { AttachRuling::Record(Box::new(entry)) }
}

/// What differs between two grants of one epoch and may not; `None` if nothing does.
fn conflict(before: &Grant, now: &Grant) -> Option<String> {
    if before.read_only != now.read_only {
        return Some(format!("read_only {}, now {}", before.read_only, now.read_only));
    }
    if !before.identity.is_empty()
        && !now.identity.is_empty()
        && let Some(what) = before.identity.contradiction(&now.identity)
    {
        return Some(format!("another namespace identity: {what}"));
    }
    if let (Some(before), Some(now)) = (before.reserve, now.reserve)
        && before != now
    {
        return Some(format!("reservation key {before}, now {now}"));
    }
    if now.size_bytes != 0 && now.size_bytes < before.size_bytes {
        return Some(format!("size {} bytes, now {} bytes", before.size_bytes, now.size_bytes));
    }
    None
}

/// Rules on a Detach or Revoke of `epoch`: whether it may end what this node has.
///
/// # Errors
/// [`Stale`] when a higher epoch is known.
pub fn may_end(known: Option<&LedgerEntry>, epoch: Epoch) -> Result<(), Stale> {
    match known {
        Some(entry) if epoch < entry.epoch => Err(Stale::of(entry)),
        _ => Ok(()),
    }
}

/// One controller that is in the kernel at the moment a grant ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// The controller's kernel name, such as `nvme3`.
    pub controller: String,
    /// Its portal, as sysfs shows it.
    pub portal: String,
}

/// The entry to write before `present` is deleted: the epoch ended, each deletion with its state not known
/// yet, and whatever has vanished by itself as gone.
pub fn ending(known: Option<&LedgerEntry>, epoch: Epoch, present: &[Present], boot_id: &str) -> LedgerEntry {
    let here = |portal: &str| present.iter().any(|one| one.portal == portal);
    let this_boot = known.filter(|entry| entry.boot_id == boot_id);
    let mut deletions: Vec<Deletion> = this_boot
        .filter(|entry| entry.epoch == epoch)
        .map(|entry| entry.deletions.clone())
        .unwrap_or_default();
    // A deletion that began earlier while its controller is still there: it is deleted now, and its state
    // will be known.
    deletions.retain(|deletion| deletion.state != STATE_UNKNOWN || !here(&deletion.portal));
    let open = this_boot.filter(|entry| !entry.ended);
    for portal in open.into_iter().flat_map(|entry| &entry.may_have_written) {
        let portal = portal.to_string();
        if !here(&portal) && !deletions.iter().any(|deletion| deletion.portal == portal) {
            deletions.push(Deletion { controller: String::new(), portal, state: STATE_GONE.to_owned() });
        }
    }
    deletions.extend(present.iter().map(|one| Deletion {
        controller: one.controller.clone(),
        portal: one.portal.clone(),
        state: STATE_UNKNOWN.to_owned(),
    }));
    LedgerEntry {
        epoch,
        ended: true,
        boot_id: boot_id.to_owned(),
        grant: known.filter(|entry| entry.epoch == epoch).and_then(|entry| entry.grant.clone()),
        may_have_written: Vec::new(),
        deletions,
        published: known.map(|entry| entry.published.clone()).unwrap_or_default(),
        registered: None,
        secret_generation: None,
        uncertain: known.is_some_and(|entry| entry.uncertain),
    }
}

/// Records the state that a controller had when its deletion was written.
pub fn note_deleted(entry: &mut LedgerEntry, deleted: &Deletion) {
    let pending = entry.deletions.iter_mut().find(|deletion| {
        deletion.state == STATE_UNKNOWN
            && deletion.portal == deleted.portal
            && deletion.controller == deleted.controller
    });
    match pending {
        Some(deletion) => deletion.state.clone_from(&deleted.state),
        // A controller that appeared between the observation and the deletion.
        None => entry.deletions.push(deleted.clone()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "rules_tests.rs"]
mod tests;
