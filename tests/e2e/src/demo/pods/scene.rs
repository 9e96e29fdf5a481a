//! One migration from pod to pod, with KubeVirt's steps beside QEMU's moments.
//!
//! In: a cluster with a claim that two nodes may have. Out: lines, and what came of it, also where it broke off. What always holds:
//! KubeVirt says that the VM runs at the target only once it does; the pod at the source ends after its QEMU has; what arrived
//! at the target is noted from before the guest's first write to after the source's node has let go.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use cleat_kubevirt::cluster::Cluster;
use cleat_kubevirt::play::play_step;
use cleat_kubevirt::script::{Disk, Script, Step, VmPlan};
use cleat_rig::Machine;
use serde_json::Value;
use tokio::task::block_in_place;

use super::super::migrate::{MigrationOutcome, tell_judged, whole};
use super::super::say::{Say, duration};
use super::cluster::PodCluster;
use super::node::PodNode;
use crate::vm::guest::GuestProgram;
use crate::vm::in_pods::{self, CLAIM, PodVm};
use crate::vm::migrate::{self, MigrateEnd, MigrateSettings, Migrated};
use crate::vm::qemu::Entry;
use crate::vm::{arrivals, on_nodes, records, trace};
use crate::world::{Look, wait_for};

/// The VM, and its first migration as the player calls it.
const NAME: &str = "vm-in-pods";
const MIGRATION: &str = "vm-in-pods-1";
const NAMESPACE: &str = "default";
/// Writes on either side, in dots of 64.
const SOME_DOTS: usize = 1;
/// A BIOS and its guest in an emulator, on an emulated node that runs a kubelet and Cleat beside it.
const PATIENCE: Duration = Duration::from_secs(180);
/// What agents count reaches the controller, and its record the API server.
const COUNTED: Duration = Duration::from_secs(60);
/// A pod's end, its volume's unstaging, and the detach that Kubernetes asks for after it.
const LET_GO: Duration = Duration::from_secs(240);

/// What is known of the disk on both nodes.
struct Disk0 {
    volume: String,
    program: GuestProgram,
    source: BTreeSet<u32>,
    target: BTreeSet<u32>,
    /// Records of which the guest has said on either node that they were acknowledged.
    acknowledged: u64,
}

/// A migration under way.
pub(super) struct Scene<'s> {
    cluster: &'s PodCluster,
    logs: &'s Path,
    say: &'s mut Say,
    script: Script,
    came: MigrationOutcome,
    /// What was not as it should be, and kept nothing else from being looked at.
    amiss: Vec<String>,
}

impl<'s> Scene<'s> {
    pub(super) fn new(cluster: &'s PodCluster, logs: &'s Path, say: &'s mut Say) -> Self {
        let disks = vec![Disk { claim: CLAIM.to_owned(), hotplugged: false }];
        let plan = VmPlan { namespace: NAMESPACE.to_owned(), name: NAME.to_owned(), disks };
        Self {
            cluster,
            logs,
            say,
            script: Script::new(plan),
            came: MigrationOutcome::of(NAME),
            amiss: Vec::new(),
        }
    }

    pub(super) fn into_outcome(self) -> MigrationOutcome {
        self.came
    }

    pub(super) async fn all(&mut self, rds: &Machine) -> anyhow::Result<()> {
        let (a, b) = (self.cluster.node("node-a").await?, self.cluster.node("node-b").await?);
        let at_source = self.cluster.running(in_pods::command(NAME, Entry::Boot));
        let at_target = self.cluster.running(in_pods::command(NAME, Entry::Incoming));

        let runs = Step::LauncherRuns { on: a.name.to_owned() };
        self.play(&at_source, [Step::VmMade, Step::LauncherMade, runs]).await?;
        let source = self.connect(&a).await?;
        let mut disk = self.boot(rds, &source, &a).await?;
        self.say.line("a guest of QEMU in a pod on node-a writes records as fast as it can");

        let asked = Step::Asked { to: b.name.to_owned() };
        let made = [asked, Step::Accepted, Step::TargetMade, Step::TargetPlaced, Step::TargetRuns];
        self.play(&at_target, made).await?;
        let target = self.connect(&b).await?;
        let ready = [Step::Scheduled, Step::HandedOver, Step::Preparing, Step::TargetReady];
        self.play(&at_target, ready).await?;
        source.writes_on(SOME_DOTS, PATIENCE).await.context("with the volume on both nodes")?;
        note_controllers(&mut disk, &a, &b)?;
        // Its write takes longer than the migration, whose pause is not to have it in it.
        self.play(&at_target, [Step::Began]).await?;
        self.migrate(&source, &target)?;

        target.writes_on(SOME_DOTS, PATIENCE).await?;
        self.say.line("the guest writes in the pod on node-b");
        let moved = [Step::Detected, Step::Switched, Step::Acknowledged, Step::Completed];
        self.play(&at_target, moved).await?;
        self.wait_switchover(&disk.volume).await;
        note_controllers(&mut disk, &a, &b)?;
        disk.acknowledged += block_in_place(|| source.said())?.acknowledged();
        block_in_place(|| source.qmp().quit())?;
        self.cluster.keep_log(&source.pod, self.logs).await?;
        self.play(&at_target, [Step::SourceEnds]).await?;
        self.recorded(&disk.volume).await?;

        target.writes_on(SOME_DOTS, PATIENCE).await.context("with the volume on node-b alone")?;
        block_in_place(|| target.qmp().execute("stop", serde_json::json!({})))?;
        disk.acknowledged += block_in_place(|| target.said())?.acknowledged();
        self.cluster.keep_log(&target.pod, self.logs).await?;
        block_in_place(|| self.judge(rds, &disk, &b))?;
        self.shown(&disk.volume).await;
        ensure!(self.amiss.is_empty(), "{}", self.amiss.join("; "));
        Ok(())
    }

    async fn play(&mut self, cluster: &Cluster, steps: impl IntoIterator<Item = Step>) -> anyhow::Result<()> {
        for step in steps {
            let played = play_step(cluster, &mut self.script, &step).await;
            played.with_context(|| format!("KubeVirt's step {step:?}"))?;
            self.say.line(&format!("KubeVirt: {step:?}"));
        }
        Ok(())
    }

    async fn connect(&self, node: &PodNode) -> anyhow::Result<PodVm> {
        let (pod, address) = self.cluster.launcher(NAME, node).await?;
        block_in_place(|| PodVm::connect(&pod, address))
    }

    /// Puts the guest on the disk and boots it; its writes are noted at the target from the first on.
    async fn boot(&self, rds: &Machine, vm: &PodVm, node: &PodNode) -> anyhow::Result<Disk0> {
        let volume = self.cluster.volume(CLAIM).await?;
        let program = block_in_place(|| {
            let device = node.device(&volume)?;
            let program = on_nodes::program(node.size(&device)?);
            // QEMU has it open, and its guest is halted.
            node.install(&device, &program)?;
            trace::begin(rds)?;
            vm.qmp().execute("cont", serde_json::json!({}))?;
            anyhow::Ok(program)
        })?;
        vm.writes_on(1, PATIENCE).await.context("the guest does not come to write")?;
        Ok(Disk0 { volume, program, source: BTreeSet::new(), target: BTreeSet::new(), acknowledged: 0 })
    }

    fn migrate(&mut self, source: &PodVm, target: &PodVm) -> anyhow::Result<()> {
        let settings = MigrateSettings::default();
        let came =
            block_in_place(|| migrate::migrate(source.qmp(), target.qmp(), target.listens_at(), &settings))?;
        match &came.end {
            MigrateEnd::Completed => {}
            MigrateEnd::Failed(why) => bail!("QEMU's migration failed: {why}"),
            MigrateEnd::Cancelled => bail!("QEMU's migration was cancelled"),
        }
        self.say.took("QEMU has migrated the guest to node-b", came.began.elapsed());
        let shown = |time: Option<Duration>| time.map_or("unknown".to_owned(), duration);
        let (own, whole) = (shown(came.downtime), shown(came.pause()));
        self.say.detail(&format!("its own pause: {own}; from the source's stop to the target's go: {whole}"));
        // The other part of it is subtracted from that of the target's trace, once this is known.
        self.came.storage_ms = halted_ms(&came);
        Ok(())
    }

    /// What agents count is to show the switchover. That it does not is said at the end.
    async fn wait_switchover(&mut self, volume: &str) {
        let seen = wait_for("the switchover on record", COUNTED, async || {
            let record = self.cluster.record(volume).await?;
            let steps = record["migration"]["steps"].as_array().cloned().unwrap_or_default();
            let step = steps.into_iter().find(|step| step["step"] == "switchover");
            Ok(Look::some(step, &record["migration"]))
        })
        .await;
        match seen {
            Ok(step) => self.say.line(&format!("the switchover is on record, by {}", step["by"])),
            Err(error) => {
                self.say.line(&format!("NOT SEEN: {error}"));
                self.amiss.push(error.to_string());
            }
        }
    }

    /// Waits until node-b has the volume alone: the record has ended then, well, and as that of KubeVirt's migration.
    async fn recorded(&mut self, volume: &str) -> anyhow::Result<()> {
        let uid = self.cluster.migration_uid(MIGRATION).await?;
        let record = wait_for("node-b alone with the volume", LET_GO, async || {
            let record = self.cluster.record(volume).await?;
            let result = &record["migration"]["result"];
            let is_over = attached(&record) == ["node-b"] && result != "running";
            let seen = format!("{:?}, and the record is {result}", attached(&record));
            Ok(Look::some(is_over.then_some(record), seen))
        })
        .await?;
        let migration = &record["migration"];
        self.came.result = migration["result"].as_str().map(str::to_owned);
        self.say.line(&format!("node-b alone has the volume, and the record is {}", migration["result"]));
        ended_well(migration, &uid)
    }

    fn judge(&mut self, rds: &Machine, disk: &Disk0, node: &PodNode) -> anyhow::Result<()> {
        let noted = trace::end(rds)?;
        let file = self.logs.join("arrivals.trace");
        std::fs::write(&file, &noted).with_context(|| format!("write {}", file.display()))?;
        let judged = self.judge_trace(&noted, disk, node);
        judged.with_context(|| format!("the trace of what arrived is in {}", file.display()))
    }

    fn judge_trace(&mut self, noted: &str, disk: &Disk0, node: &PodNode) -> anyhow::Result<()> {
        let arrived = arrivals::parse(noted)?;
        let order = arrivals::judge(&arrived, &disk.source, &disk.target);
        self.came.late_writes = Some(order.late_writes);
        let program = &disk.program;
        let last = arrivals::last_record(&arrived, program.first_byte)?.context("nothing arrived")?;
        ensure!(last < u64::from(program.room), "record {last} arrived, which the volume has no room for");
        let bytes = node.read_records(&node.device(&disk.volume)?, program, last + 1)?;
        let data = records::judge(&bytes, program.nonce, program.first_byte, last);
        self.came.judged(&order, &data);
        let halted = self.came.storage_ms.take();
        self.came.storage_ms = self.came.pause_ms.zip(halted).map(|(pause, halted)| pause - halted);
        tell_judged(self.say, &order, &data);
        whole(&order, &data, None)?;
        let (said, came) = (disk.acknowledged, last + 1);
        ensure!(came >= said, "{said} records were acknowledged to the guest, and {came} have arrived");
        Ok(())
    }

    /// What people are shown of it. That it is not so is said at the end.
    async fn shown(&mut self, volume: &str) {
        let looked = async {
            let uid = self.cluster.migration_uid(MIGRATION).await?;
            let (drawn, json) = self.cluster.cleatctl(volume).await?;
            self.say.plain(drawn.trim_end());
            let text = |field: &str| json[field].as_str().map(str::to_owned);
            (self.came.attributed_to, self.came.migration_uid) =
                (text("attributed_to"), text("migration_uid"));
            let is_shown = json["result"] == "completed" && json["migration_uid"] == uid;
            ensure!(is_shown, "cleatctl migration shows another one than {uid}, completed: {json}");
            anyhow::Ok(())
        };
        if let Err(error) = looked.await {
            self.say.line(&format!("NOT SHOWN: {error:#}"));
            self.amiss.push(format!("{error:#}"));
        }
    }
}

/// Adds the controllers that either node has now: a path that was made again has another one.
fn note_controllers(disk: &mut Disk0, a: &PodNode, b: &PodNode) -> anyhow::Result<()> {
    for (node, known) in [(a, &mut disk.source), (b, &mut disk.target)] {
        let now = block_in_place(|| node.controllers(&disk.volume))?;
        ensure!(!now.is_empty(), "{} has no controller of {}", node.name, disk.volume);
        known.extend(now);
    }
    Ok(())
}

fn halted_ms(came: &Migrated) -> Option<f64> {
    came.pause().map(|pause| pause.as_secs_f64() * 1000.0)
}

fn attached(record: &Value) -> Vec<&str> {
    let all = record["attachments"].as_array().into_iter().flatten();
    all.filter_map(|attachment| attachment["node"].as_str()).collect()
}

/// Whether the record of a migration is that of the object with this UID, from node-a to node-b, and has ended well.
fn ended_well(migration: &Value, uid: &str) -> anyhow::Result<()> {
    ensure!(migration["result"] == "completed", "the record of the migration has not completed: {migration}");
    let is_ours = migration["vm"]["uid"] == uid;
    ensure!(is_ours, "the record of the migration is not of the migration object {uid}: {migration}");
    let sides = (&migration["source"], &migration["target"], &migration["left"]);
    let is_so = sides.0 == "node-a" && sides.1 == "node-b" && sides.2 == "source";
    ensure!(is_so, "the record of the migration has other sides: {migration}");
    let steps: Vec<String> =
        migration["steps"].as_array().into_iter().flatten().map(|step| step["step"].to_string()).collect();
    let once: BTreeSet<&String> = steps.iter().collect();
    ensure!(once.len() == steps.len(), "a step is on record twice: {}", steps.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_of_another_migration_or_end_is_refused_by_name() {
        let record = json!({
            "source": "node-a", "target": "node-b", "result": "completed", "left": "source", "vm": {"uid": "u-1"},
            "steps": [{"step": "granted"}, {"step": "done"}],
        });
        ended_well(&record, "u-1").expect("it is as it should be");
        let with = |field: &str, value: Value| {
            let mut other = record.clone();
            other[field] = value;
            ended_well(&other, "u-1").map_err(|error| error.to_string()).expect_err(field)
        };
        assert!(ended_well(&record, "u-2").is_err());
        assert!(with("vm", Value::Null).contains("not of the migration object u-1"));
        assert!(with("result", json!("unattributed")).contains("has not completed"));
        assert!(with("left", json!("target")).contains("other sides"));
        assert!(with("steps", json!([{"step": "done"}, {"step": "done"}])).contains("twice"));
    }
}
