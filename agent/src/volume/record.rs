//! The volume's place in the ledger.
//!
//! Comes in: an [`LedgerEntry`] to keep. Goes out: the entry that is in force.
//!
//! A grant is taken on only with its record on disk. A disk that is full, read-only or silent does not hold
//! up its end: the record is then owed ([`Record::owed`]), replaces what the disk has, and is written as soon
//! as possible. A record that cannot be read counts as "anything may have been there": what was deleted is
//! proven, but that nothing else was there before is not.
//!
//! Always holds: this process never returns to before an end that it has carried out.

use std::time::Duration;

use tokio::time::timeout;

use crate::ledger::{Deletion, LedgerEntry, LedgerError, STATE_UNKNOWN};
use crate::metrics;
use crate::name::Epoch;
use crate::volume::Volume;
use crate::volume::host::Host;

/// What this process knows of the record.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// The record as it was last read or written; nobody else writes it.
    last: Option<Option<LedgerEntry>>,
    /// An end that was carried out but is not on disk.
    owed: Option<LedgerEntry>,
    /// The record as it is reported: rulings never use it.
    read: Option<Result<Option<LedgerEntry>, String>>,
}

impl Record {
    /// The record as it was last read or written, or why that failed; `None` before that.
    pub(super) fn as_read(&self) -> Option<Result<Option<LedgerEntry>, String>> {
        self.read.clone()
    }

    /// The same, but a record that has not been read yet is an error too.
    pub(super) fn reported(&self) -> Result<Option<LedgerEntry>, String> {
        self.as_read().unwrap_or_else(|| Err("the ledger has not been read".to_owned()))
    }

    /// The entry, where there is one that could be read.
    pub(super) fn entry(&self) -> Option<&LedgerEntry> {
        self.read.as_ref()?.as_ref().ok()?.as_ref()
    }

    /// Whether it has not been read yet.
    pub(super) fn is_unread(&self) -> bool {
        self.read.is_none()
    }

    /// Whether it was read and there is none.
    pub(super) fn is_known_to_be_missing(&self) -> bool {
        matches!(self.read, Some(Ok(None)))
    }

    /// Notes that the record was removed.
    pub(super) fn let_go(&mut self) {
        self.read = Some(Ok(None));
    }

    /// Notes that nobody knows now what is on disk.
    pub(super) fn doubt(&mut self) {
        self.read = None;
    }
}

/// What is on record when a grant is about to end.
#[derive(Debug)]
pub(super) enum OnRecord {
    /// The record, or the fact that there is none.
    Known(Box<Option<LedgerEntry>>),
    /// The record cannot be read, and this process has never read it.
    Unreadable,
}

impl OnRecord {
    pub(super) fn entry(&self) -> Option<&LedgerEntry> {
        match self {
            Self::Known(entry) => entry.as_ref().as_ref(),
            Self::Unreadable => None,
        }
    }
}

impl<H: Host> Volume<H> {
    /// Reads the record. Only the operation that has the gate rules by it.
    pub(super) async fn record(&self) -> Result<Option<LedgerEntry>, LedgerError> {
        if let Some(owed) = self.owed() {
            // What the disk has is older.
            self.write_owed().await;
            return Ok(Some(owed));
        }
        let read = self.shared.ledger.load(&self.id).await.inspect_err(|_| metrics::ledger_error());
        let mut memory = self.memory();
        memory.record.read = Some(match &read {
            Ok(entry) => Ok(entry.clone()),
            Err(error) => Err(cleat_runtime::exit::Causes(error).to_string()),
        });
        if let Ok(entry) = &read {
            memory.record.last = Some(entry.clone());
        }
        read
    }

    /// Writes the record.
    pub(super) async fn keep(&self, entry: &LedgerEntry) -> Result<(), LedgerError> {
        let kept = self.shared.ledger.store(&self.id, entry).await.inspect_err(|_| metrics::ledger_error());
        let mut memory = self.memory();
        match &kept {
            Ok(()) => {
                let known = Some(entry.clone());
                memory.record = Record { last: Some(known.clone()), owed: None, read: Some(Ok(known)) };
            }
            // Nobody knows now what is on disk: the next ruling reads it again, or uses what is owed.
            Err(_) => memory.record.read = memory.record.owed.clone().map(|owed| Ok(Some(owed))),
        }
        kept
    }

    /// What is on record, as far as the disk answers in time.
    pub(super) async fn record_within(&self, patience: Duration) -> OnRecord {
        let reason = match timeout(patience, self.record()).await {
            Ok(Ok(entry)) => return OnRecord::Known(Box::new(entry)),
            Ok(Err(error)) => cleat_runtime::exit::Causes(&error).to_string(),
            Err(_) => format!("the disk has not answered within {patience:?}"),
        };
        tracing::error!(volume = %self.id, reason, "cannot read the record; the grant ends without it");
        match self.memory().record.last.clone() {
            Some(entry) => OnRecord::Known(Box::new(entry)),
            None => OnRecord::Unreadable,
        }
    }

    /// The highest epoch among the records that were removed, as far as the disk answers in time; `None`
    /// where it does not. An end goes on then, for two reasons. First, a grant that is in force has a record,
    /// which shows that an older end belongs to the past; so where there is no record, a late end harms no
    /// later grant. Second, leaving a writer would be the worse mistake. But the record that this end leaves
    /// does not show what was seen before it, and says so: it must not admit an Attach that the old record
    /// refused.
    pub(super) async fn forgotten_within(&self, patience: Duration) -> Option<Option<Epoch>> {
        let reason = match timeout(patience, self.shared.ledger.forgotten()).await {
            Ok(Ok(highest)) => return Some(highest),
            Ok(Err(error)) => cleat_runtime::exit::Causes(&error).to_string(),
            Err(_) => format!("the disk has not answered within {patience:?}"),
        };
        tracing::error!(volume = %self.id, reason, "cannot tell an old directive from a new one; the grant ends");
        None
    }

    /// Writes the end of a grant, as far as the disk accepts it in time; false where it did not, and the end
    /// is owed.
    pub(super) async fn keep_end(&self, entry: &LedgerEntry, patience: Duration) -> bool {
        let reason = match timeout(patience, self.keep(entry)).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => cleat_runtime::exit::Causes(&error).to_string(),
            Err(_) => format!("the disk has not answered within {patience:?}"),
        };
        tracing::error!(
            volume = %self.id, epoch = %entry.epoch, reason,
            "cannot record that the grant has ended, which it has; recording it once the disk can be written"
        );
        let mut memory = self.memory();
        memory.record.owed = Some(entry.clone());
        memory.record.read = Some(Ok(Some(entry.clone())));
        false
    }

    fn owed(&self) -> Option<LedgerEntry> {
        self.memory().record.owed.clone()
    }

    /// Writes what is owed. The caller has the gate.
    pub(super) async fn write_owed(&self) {
        let Some(owed) = self.owed() else { return };
        match self.keep(&owed).await {
            Ok(()) => {
                tracing::info!(volume = %self.id, epoch = %owed.epoch, "recorded that the grant has ended")
            }
            Err(error) => {
                let error = cleat_runtime::exit::Causes(&error);
                tracing::warn!(volume = %self.id, %error, "still cannot record that the grant has ended");
            }
        }
    }

    /// The same, where no operation has the gate.
    pub(super) async fn write_owed_if_idle(&self) {
        if self.owed().is_some()
            && let Some(_pass) = self.gate.try_enter("recording that the grant has ended")
        {
            self.write_owed().await;
        }
    }
}

/// Says that unknown controllers may have been there before. Its state is not "live", so the whole does not
/// count as drained.
pub(super) fn anything_before() -> Deletion {
    Deletion { controller: String::new(), portal: String::new(), state: STATE_UNKNOWN.to_owned() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use crate::volume::outcome::Outcome;
    use crate::volume::state::VolumePhase;

    use super::*;
    use crate::testing::agent::{Machine, grant};

    /// No record of volume `v` can be written.
    fn fill(dir: &Path) {
        let ledger = dir.join("ledger");
        std::fs::create_dir(ledger.join(".v.json.tmp")).unwrap();
        let _ = std::fs::remove_file(ledger.join(".v.json.room"));
        std::fs::create_dir(ledger.join(".v.json.room")).unwrap();
    }

    fn make_room(dir: &Path) {
        std::fs::remove_dir(dir.join("ledger/.v.json.tmp")).unwrap();
        std::fs::remove_dir(dir.join("ledger/.v.json.room")).unwrap();
    }

    fn states(outcome: &Outcome) -> Vec<&str> {
        let Outcome::Absent(absent) = outcome else { panic!("not absent: {outcome:?}") };
        absent.deleted.iter().map(|one| one.state.as_str()).collect()
    }

    #[tokio::test]
    async fn a_full_disk_keeps_no_grant_from_ending() {
        for revoke in [false, true] {
            let (machine, agent) = Machine::holding(4, &[1, 2]).await;
            fill(machine.dir.path());
            let outcome = if revoke { agent.revoke(4).await } else { agent.detach(4).await };
            let states = states(&outcome);
            assert!(states.len() == 2 && states.iter().all(|one| one.contains("not recorded")), "{states:?}");
            assert!(machine.kernel.world().of("v").is_empty());
            assert_eq!(agent.state().await.phase, VolumePhase::Absent);
            assert!(agent.state().await.epoch_ended);
        }
    }

    #[tokio::test]
    async fn an_end_that_is_not_recorded_is_not_gone_behind() {
        let (machine, agent) = Machine::holding(4, &[1]).await;
        fill(machine.dir.path());
        agent.revoke(4).await;
        let late = agent.attach(4, grant(&[1])).await;
        assert!(matches!(late, Outcome::StaleEpoch(_)), "{late:?}");
        let next = agent.attach(5, grant(&[1])).await;
        assert!(matches!(next, Outcome::Failed(_)), "a grant needs the disk: {next:?}");
        assert!(machine.kernel.world().of("v").is_empty() && !agent.entry().await.unwrap().ended);
    }

    #[tokio::test]
    async fn an_end_is_recorded_once_the_disk_has_room_again() {
        let (machine, agent) = Machine::holding(4, &[1]).await;
        fill(machine.dir.path());
        agent.detach(4).await;
        make_room(machine.dir.path());
        for volume in agent.fleet.volumes() {
            volume.retire(Duration::from_secs(3600)).await;
        }
        assert!(agent.entry().await.unwrap().ended);
        agent.ready(5, &[1]).await;
    }

    #[tokio::test]
    async fn with_the_room_that_was_kept_the_end_is_recorded_on_a_full_disk() {
        let (machine, agent) = Machine::holding(4, &[1]).await;
        std::fs::create_dir(machine.dir.path().join("ledger/.v.json.tmp")).unwrap();
        assert!(matches!(agent.revoke(4).await, Outcome::Absent(_)));
        assert!(agent.entry().await.unwrap().ended);
    }

    #[tokio::test]
    async fn an_emptied_record_costs_the_proof_and_not_the_detach() {
        let (machine, agent) = Machine::holding(4, &[1, 2]).await;
        drop(agent);
        std::fs::write(machine.dir.path().join("ledger/v.json"), "").unwrap();
        let agent = machine.agent();
        let refused = agent.attach(4, grant(&[1, 2])).await;
        assert!(matches!(refused, Outcome::Failed(_)), "{refused:?}");
        machine.kernel.change(|world| world.users = vec!["pid 312 (qemu) has it open".into()]);
        assert!(matches!(agent.detach(4).await, Outcome::Busy(_)), "a user counts as ever");
        machine.kernel.change(|world| world.users.clear());
        let outcome = agent.detach(4).await;
        let mut states = states(&outcome);
        states.sort_unstable();
        assert_eq!(states, ["live", "live", STATE_UNKNOWN], "what was before is not known");
        // From now on there is a record again.
        assert!(agent.entry().await.unwrap().ended);
        assert!(matches!(agent.attach(4, grant(&[1])).await, Outcome::StaleEpoch(_)));
        agent.ready(5, &[1]).await;
    }

    #[tokio::test]
    async fn an_end_that_cannot_tell_what_was_seen_before_lets_no_old_attach_in() {
        let (machine, agent) = Machine::holding(4, &[1]).await;
        agent.detach(4).await;
        agent.fleet.volumes().remove(0).retire(Duration::ZERO).await;
        assert_eq!(agent.entry().await, None);
        drop(agent);
        let file = machine.dir.path().join("forgotten.json");
        let kept = std::fs::read(&file).unwrap();
        std::fs::write(&file, "").unwrap();
        let agent = machine.agent();
        assert!(matches!(agent.revoke(2).await, Outcome::Absent(_)), "it only takes a writer away");
        let late = agent.attach(4, grant(&[1])).await;
        assert!(matches!(late, Outcome::Failed(_)), "epoch 4 has ended, which cannot be read: {late:?}");
        assert_eq!(machine.kernel.world().connects.len(), 1);
        // Also a later end, and a later process.
        assert!(matches!(agent.detach(3).await, Outcome::Absent(_)));
        drop(agent);
        std::fs::write(&file, kept).unwrap();
        let agent = machine.agent();
        let late = agent.attach(4, grant(&[1])).await;
        assert!(matches!(late, Outcome::StaleEpoch(_)), "{late:?}");
        assert!(matches!(agent.revoke(3).await, Outcome::Absent(_)), "what is on record can be ended again");
        agent.ready(5, &[1]).await;
        assert!(!agent.entry().await.unwrap().uncertain);
    }

    #[tokio::test]
    async fn an_old_end_ends_no_later_grant_whatever_of_the_past_cannot_be_read() {
        let (machine, agent) = Machine::holding(6, &[1]).await;
        drop(agent);
        std::fs::write(machine.dir.path().join("forgotten.json"), "").unwrap();
        let agent = machine.agent();
        for late in [agent.revoke(5).await, agent.detach(5).await] {
            assert!(matches!(late, Outcome::StaleEpoch(_)), "{late:?}");
        }
        assert_eq!(machine.kernel.world().of("v").len(), 1);
        assert!(matches!(agent.detach(6).await, Outcome::Absent(_)));
    }

    #[tokio::test]
    async fn damaged_state_keeps_no_agent_from_telling_and_detaching() {
        let (machine, agent) = Machine::holding(4, &[1, 2]).await;
        drop(agent);
        // Nothing of the state directory can be read or written.
        std::fs::remove_dir_all(machine.dir.path().join("ledger")).unwrap();
        std::fs::write(machine.dir.path().join("ledger"), "in the way").unwrap();
        std::fs::write(machine.dir.path().join("forgotten.json"), "").unwrap();
        let agent = machine.agent();
        let reported = agent.state().await;
        assert!(reported.paths.len() == 2, "{reported:?}");
        let refused = agent.attach(5, grant(&[1, 2])).await;
        assert!(matches!(refused, Outcome::Failed(_)), "{refused:?}");
        let outcome = agent.detach(4).await;
        assert!(states(&outcome).iter().all(|one| one.contains("not recorded")), "{outcome:?}");
        assert!(machine.kernel.world().of("v").is_empty());
        drop(agent);
        // Now there is a place for records, and still nothing tells an old grant from a new one.
        std::fs::remove_file(machine.dir.path().join("ledger")).unwrap();
        let agent = machine.agent();
        let Outcome::Failed(refused) = agent.attach(5, grant(&[1])).await else { panic!("attached") };
        let said = refused.unready.message;
        assert!(said.contains("forgotten.json") && said.contains("restore"), "{said}");
        std::fs::remove_file(machine.dir.path().join("forgotten.json")).unwrap();
        agent.ready(5, &[1]).await;
    }
}
