//! Which migration a name means.
//!
//! Comes in: every record that the controller lists, and what a person typed: a volume's id, a VM as `NAMESPACE/NAME` or
//! by its name alone, its migration object as `NAMESPACE/NAME`, or the UID of either. Goes out: the records of the newest migration that it
//! means, one a volume, and one record of each other that it could mean. Always holds: volumes belong together by the
//! UIDs of VM and migration, never by a name; a volume whose migration nobody names stands alone.

use std::collections::BTreeMap;

use cleat_proto::cleat::v1::{Epoch, MigrationInfo};

use super::DONE;

/// The records of one migration, the volumes in their order.
#[derive(Debug)]
pub(crate) struct Selected<'a> {
    pub(crate) records: Vec<&'a MigrationInfo>,
    /// One record of each other migration that the name means, newest first.
    pub(crate) others: Vec<&'a MigrationInfo>,
}

/// Why a name means no migration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoMigration {
    #[error(
        "cannot show a migration of {0}: no volume and no VM of that name has one on record; see cleatctl migrations for \
         those that have"
    )]
    Unrecorded(String),
    #[error("cannot show a migration of {name}: VMs {} have one; name the VM with its namespace", .vms.join(" and "))]
    SeveralVms { name: String, vms: Vec<String> },
}

/// What makes two records parts of one migration.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Whose<'a> {
    Vm { uid: &'a str, migration: &'a str },
    Volume { id: &'a str, term: u64, seq: u64 },
}

fn whose(record: &MigrationInfo) -> Whose<'_> {
    if is_attributed(record) {
        return Whose::Vm { uid: &record.vm_uid, migration: &record.migration_uid };
    }
    let Epoch { term, seq } = record.target_epoch.unwrap_or_default();
    Whose::Volume { id: &record.volume_id, term, seq }
}

/// Whether a migration object names its VM.
pub(super) fn is_attributed(record: &MigrationInfo) -> bool {
    !record.vm_uid.is_empty() || !record.migration_uid.is_empty()
}

/// That migration object, as `NAMESPACE/NAME`.
pub(super) fn migration(record: &MigrationInfo) -> &str {
    if is_attributed(record) && record.attributed_to != "unattributed" { &record.attributed_to } else { "" }
}

fn full_name(record: &MigrationInfo) -> String {
    if is_attributed(record) { format!("{}/{}", record.vm_namespace, record.vm_name) } else { String::new() }
}

/// When it began; where no step is on record, when its time limit began.
fn began(record: &MigrationInfo) -> u64 {
    record.steps.first().map_or(record.granted_at_unix_ms, |step| step.at_unix_ms)
}

/// The newest migration that a name means.
pub(crate) fn select<'a>(records: &[&'a MigrationInfo], name: &str) -> Result<Selected<'a>, NoMigration> {
    let meant = meant(records, name)?;
    // Each migration with the moment at which its last volume joined it.
    let mut migrations: BTreeMap<Whose<'a>, &'a MigrationInfo> = BTreeMap::new();
    for record in meant {
        let newest = migrations.entry(whose(record)).or_insert(record);
        if began(record) > began(newest) {
            *newest = record;
        }
    }
    let mut newest_first: Vec<&MigrationInfo> = migrations.into_values().collect();
    newest_first.sort_by_key(|record| std::cmp::Reverse((began(record), epoch(record))));
    let mut newest_first = newest_first.into_iter();
    let first = newest_first.next().ok_or_else(|| NoMigration::Unrecorded(name.to_owned()))?;
    let mut together: Vec<&MigrationInfo> =
        records.iter().copied().filter(|record| whose(record) == whose(first)).collect();
    together.sort_by(|a, b| (&a.volume_id, began(a)).cmp(&(&b.volume_id, began(b))));
    Ok(Selected { records: together, others: newest_first.collect() })
}

fn epoch(record: &MigrationInfo) -> (u64, u64) {
    record.target_epoch.map(|epoch| (epoch.term, epoch.seq)).unwrap_or_default()
}

/// Whether a record of a volume says more than another one of it: of one migration the one with more steps, of two the one
/// that began later.
pub(crate) fn is_later(record: &MigrationInfo, known: &MigrationInfo) -> bool {
    if is_same(record, known) {
        return record.steps.len() > known.steps.len();
    }
    // That one is over is said after the next one has begun; and the clock may have been set back between them.
    let is_over = record.steps.iter().any(|step| step.name == DONE);
    !is_over && (began(record), epoch(record)) > (began(known), epoch(known))
}

/// Whether both are of one migration. A migration object may have been reported later than it began.
fn is_same(record: &MigrationInfo, known: &MigrationInfo) -> bool {
    let sides = |of: &MigrationInfo| (of.source_node_id.clone(), of.target_node_id.clone(), epoch(of));
    let [one, other] = [&record.migration_uid, &known.migration_uid];
    sides(record) == sides(known) && (one == other || one.is_empty() || other.is_empty())
}

/// The records that a name means: by the first of these ways by which it means any.
fn meant<'a>(records: &[&'a MigrationInfo], name: &str) -> Result<Vec<&'a MigrationInfo>, NoMigration> {
    let ways: [fn(&MigrationInfo, &str) -> bool; 4] = [
        |record, name| record.volume_id == name,
        |record, name| full_name(record) == name || record.vm_uid == name || record.migration_uid == name,
        |record, name| migration(record) == name,
        |record, name| record.vm_name == name,
    ];
    let by = |way: &fn(&MigrationInfo, &str) -> bool| -> Vec<&'a MigrationInfo> {
        records.iter().copied().filter(|record| !name.is_empty() && way(record, name)).collect()
    };
    let meant = ways.iter().map(by).find(|meant| !meant.is_empty()).unwrap_or_default();
    // By its name alone a VM may be one of several.
    let mut vms: Vec<String> =
        meant.iter().filter(|record| record.vm_name == name).map(|record| full_name(record)).collect();
    vms.sort();
    vms.dedup();
    if vms.len() > 1 {
        return Err(NoMigration::SeveralVms { name: name.to_owned(), vms });
    }
    Ok(meant)
}
