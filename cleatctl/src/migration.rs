//! `cleatctl migration`: one migration, once or as it goes on.
//!
//! Comes in: the name of a VM or a volume. Goes out: its timeline on standard output, and as a page in a file. Always
//! holds: nothing is asked of any volume but those of the migration.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cleat_proto::cleat::v1::watch_event::Kind;
use cleat_proto::cleat::v1::{MigrationInfo, VolumeInfo};
use tokio::time::MissedTickBehavior;

use crate::client::{AskError, Controller};
use crate::output::Output;
use crate::page::harmless;
use crate::timeline::{self, NoMigration, Timeline, is_later, select};

/// How often a drawing of something that goes on is drawn again.
const TICK: Duration = Duration::from_secs(1);

/// Which migration, and how to show it.
#[derive(clap::Args, Debug)]
pub(crate) struct Migration {
    /// VM, as NAME or NAMESPACE/NAME, or id of a volume; or the migration object, as NAMESPACE/NAME, or a UID of either
    #[arg(value_name = "VM|VOLUME")]
    name: String,

    /// Draw it again with each change, until interrupted; also a migration that begins meanwhile
    #[arg(long)]
    watch: bool,

    /// The same as --output json; with --watch one line for each change
    #[arg(long)]
    pub(crate) json: bool,

    /// Also write it as one page for a browser, which needs no other file
    #[arg(long, value_name = "FILE", conflicts_with = "watch")]
    html: Option<PathBuf>,
}

impl Migration {
    pub(crate) async fn run(
        self,
        controller: &mut Controller,
        out: &mut Output<'_, '_>,
    ) -> Result<(), AskError> {
        if self.watch {
            return watch(controller, out, &self.name).await;
        }
        let records = controller.migrations().await?;
        let selected = select(&records.iter().collect::<Vec<_>>(), &self.name)?;
        let mut volumes = Vec::new();
        // What is over waits for nothing.
        if Timeline::new(&selected, &[], 0).goes_on() {
            let ids: BTreeSet<&str> =
                selected.records.iter().map(|record| record.volume_id.as_str()).collect();
            for id in ids {
                volumes.extend(controller.volume_if_tracked(id.to_owned()).await?);
            }
        }
        let timeline = Timeline::new(&selected, &volumes, unix_ms());
        if let Some(path) = &self.html {
            write_page(path, &timeline)?;
        }
        out.show(|| timeline::json(&timeline), |width| timeline::text(&timeline, width))
    }
}

fn write_page(path: &Path, timeline: &Timeline) -> Result<(), AskError> {
    std::fs::write(path, timeline::html(timeline))
        .map_err(|source| AskError::Page { path: path.to_owned(), source })
}

/// Our own clock.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Draws the newest migration of this name with each change, until the controller ends the stream, or an interrupt does.
async fn watch(controller: &mut Controller, out: &mut Output<'_, '_>, name: &str) -> Result<(), AskError> {
    let mut events = controller.watch().await?;
    let mut known = Known::default();
    let mut drawn = None;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            event = controller.next(&mut events) => Some(event?),
            _ = tick.tick(), if out.is_redrawn() => None,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let ticked = event.is_none();
        let changed = match event {
            Some(None) => return Ok(()),
            Some(Some(event)) => event.kind.is_some_and(|kind| known.hear(kind)),
            None => false,
        };
        // Until everything was heard, others of the name may be missing.
        if !known.all || !(ticked || changed) {
            continue;
        }
        // Without the time: whatever is the same then has not changed.
        let now = known.draw(name, 0);
        let goes_on = now.as_ref().is_ok_and(Timeline::goes_on);
        if drawn.as_ref() != Some(&now) || (ticked && goes_on) {
            show(out, &known.draw(name, unix_ms()))?;
            drawn = Some(now);
        }
    }
}

fn show(out: &mut Output<'_, '_>, drawing: &Result<Timeline, NoMigration>) -> Result<(), AskError> {
    match drawing {
        Ok(timeline) => out.redraw(|| timeline::json(timeline), |width| timeline::text(timeline, width)),
        Err(none) => out.redraw(|| serde_json::Value::Null, |_| harmless(&none.to_string())),
    }
}

/// What the controller has sent so far of volumes that have a migration on record.
#[derive(Debug, Default)]
struct Known {
    records: BTreeMap<String, MigrationInfo>,
    volumes: BTreeMap<String, VolumeInfo>,
    /// Of which something was heard since everything began to be sent, or since it was.
    heard: BTreeSet<String>,
    /// Whether everything that there was has been sent.
    all: bool,
}

impl Known {
    /// Takes an event in; says whether it may change a drawing.
    fn hear(&mut self, kind: Kind) -> bool {
        match kind {
            Kind::Volume(volume) => match &volume.migration {
                Some(record) => {
                    self.heard.insert(volume.volume_id.clone());
                    self.records.insert(volume.volume_id.clone(), record.clone());
                    self.volumes.insert(volume.volume_id.clone(), volume);
                    true
                }
                None => self.forget(&volume.volume_id),
            },
            Kind::VolumeGone(volume) => self.forget(&volume),
            // A volume is sent as it is, a migration as it was at its step: the volume may have come first.
            Kind::Migration(record) => {
                let later = self.records.get(&record.volume_id).is_none_or(|known| is_later(&record, known));
                if later {
                    self.records.insert(record.volume_id.clone(), record);
                }
                later
            }
            // Whoever fell behind is sent everything again: what went meanwhile is not among it.
            Kind::Synced(false) => {
                self.heard.clear();
                false
            }
            Kind::Synced(true) => {
                let heard = std::mem::take(&mut self.heard);
                self.records.retain(|volume, _| heard.contains(volume));
                self.volumes.retain(|volume, _| heard.contains(volume));
                self.all = true;
                true
            }
            Kind::Node(_) | Kind::Ticket(_) | Kind::TicketGone(_) | Kind::Notice(_) => false,
        }
    }

    fn forget(&mut self, volume: &str) -> bool {
        self.heard.remove(volume);
        self.volumes.remove(volume);
        self.records.remove(volume).is_some()
    }

    fn draw(&self, name: &str, now: u64) -> Result<Timeline, NoMigration> {
        let records: Vec<&MigrationInfo> = self.records.values().collect();
        let selected = select(&records, name)?;
        let volumes =
            selected.records.iter().filter_map(|record| self.volumes.get(&record.volume_id)).cloned();
        Ok(Timeline::new(&selected, &volumes.collect::<Vec<_>>(), now))
    }
}

#[cfg(test)]
mod tests {
    use cleat_proto::cleat::v1::{Epoch, MigrationStep};

    use super::*;

    fn record(seq: u64, steps: usize) -> MigrationInfo {
        let step = |at: usize| MigrationStep {
            name: format!("step-{at}"),
            at_unix_ms: at as u64,
            ..Default::default()
        };
        MigrationInfo {
            volume_id: "vm-1".into(),
            target_epoch: Some(Epoch { term: 1, seq }),
            result: "running".into(),
            steps: (0..steps).map(step).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_step_that_is_heard_after_its_volume_takes_nothing_back() {
        let mut known = Known::default();
        let volume =
            VolumeInfo { volume_id: "vm-1".into(), migration: Some(record(2, 3)), ..Default::default() };
        known.hear(Kind::Volume(volume));
        for older in [record(2, 2), record(2, 3), record(1, 9)] {
            assert!(!known.hear(Kind::Migration(older)));
            assert_eq!(known.records["vm-1"], record(2, 3));
        }
        for newer in [record(2, 4), record(3, 1)] {
            assert!(known.hear(Kind::Migration(newer.clone())));
            assert_eq!(known.records["vm-1"], newer);
        }
    }

    /// The record of a VM's migration between two nodes, with these steps.
    fn of_vm(uid: &str, [source, target]: [&str; 2], seq: u64, steps: &[(&str, u64)]) -> MigrationInfo {
        let step = |(name, at): &(&str, u64)| MigrationStep {
            name: (*name).into(),
            at_unix_ms: *at,
            ..Default::default()
        };
        MigrationInfo {
            source_node_id: source.into(),
            target_node_id: target.into(),
            migration_uid: uid.into(),
            steps: steps.iter().map(step).collect(),
            ..record(seq, 0)
        }
    }

    #[test]
    fn the_end_of_a_migration_does_not_hide_the_next_one() {
        let end = [("granted", 100), ("target_ready", 110), ("switchover", 120), ("done", 200)];
        // Without a Publish between them: no grant is a new one. The last clock was set back.
        for (sides, seq, began) in [(["b", "a"], 1, 200), (["a", "b"], 2, 200), (["b", "a"], 1, 50)] {
            let mut known = Known::default();
            let first = of_vm("uid-1", ["a", "b"], 2, &end);
            let next = of_vm("uid-2", sides, seq, &[("granted", began), ("target_ready", began)]);
            let volume = |record: &MigrationInfo| {
                let (volume_id, migration) = ("vm-1".into(), Some(record.clone()));
                Kind::Volume(VolumeInfo { volume_id, migration, ..Default::default() })
            };
            known.hear(volume(&of_vm("uid-1", ["a", "b"], 2, &end[..3])));
            // In this order the controller sends it.
            known.hear(volume(&next));
            known.hear(Kind::Migration(first));
            known.hear(Kind::Migration(next.clone()));
            assert_eq!(known.records["vm-1"], next, "{sides:?} {began}");
        }
    }

    #[test]
    fn a_volume_that_went_unseen_is_gone_when_all_was_sent_again() {
        let volume = |id: &str| {
            let migration = Some(MigrationInfo { volume_id: id.into(), ..record(1, 1) });
            Kind::Volume(VolumeInfo { volume_id: id.into(), migration, ..Default::default() })
        };
        let mut known = Known::default();
        for kind in [volume("vm-1"), volume("vm-2"), Kind::Synced(true), volume("vm-1")] {
            known.hear(kind);
        }
        assert!(known.draw("vm-1", 0).is_ok(), "it is there");
        // What is sent again is whole only at its end.
        known.hear(Kind::Synced(false));
        known.hear(volume("vm-2"));
        assert!(known.draw("vm-1", 0).is_ok());
        assert!(known.hear(Kind::Synced(true)));
        assert_eq!(known.draw("vm-1", 0), Err(NoMigration::Unrecorded("vm-1".into())));
        assert!(known.draw("vm-2", 0).is_ok());
        // A controller of before says nothing at the beginning.
        known.hear(volume("vm-3"));
        known.hear(Kind::Synced(true));
        assert_eq!(known.records.keys().collect::<Vec<_>>(), ["vm-3"]);
    }

    #[test]
    fn a_volume_without_a_migration_or_that_is_gone_is_forgotten() {
        let mut known = Known::default();
        let volume = |migration| VolumeInfo { volume_id: "vm-1".into(), migration, ..Default::default() };
        known.hear(Kind::Volume(volume(Some(record(1, 1)))));
        assert!(known.draw("vm-1", 0).is_ok());
        known.hear(Kind::Volume(volume(None)));
        assert_eq!(known.draw("vm-1", 0), Err(NoMigration::Unrecorded("vm-1".into())));
        known.hear(Kind::Volume(volume(Some(record(1, 1)))));
        known.hear(Kind::VolumeGone("vm-1".into()));
        assert_eq!(known.draw("vm-1", 0), Err(NoMigration::Unrecorded("vm-1".into())));
    }
}
