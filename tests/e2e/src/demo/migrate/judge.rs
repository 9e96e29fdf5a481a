//! What the target saw of a migration, and what the volumes hold after it.

use std::time::Duration;

use anyhow::{Context, ensure};
use cleat_rig::Command;
use tokio::task::block_in_place;

use super::super::say::{Say, duration};
use super::MigrateFault;
use super::faults::FENCED;
use super::scene::{Disk, ON_PLUGGED, Run, Scene};
use crate::vm::arrivals::{self, Arrival, ArrivalVerdict};
use crate::vm::records::RecordVerdict;
use crate::vm::{qemu, records, trace};
use crate::world::{Attached, Node};

impl Scene<'_> {
    /// What the target saw, and what the disks hold, read through the node that has them at the end.
    pub(super) fn judge(&mut self, run: &Run, node: &Node, at: &[Attached]) -> anyhow::Result<()> {
        let noted = block_in_place(|| trace::end(self.world.rds.machine()))?;
        let file = self.world.folder().join("arrivals.trace");
        std::fs::write(&file, &noted).with_context(|| format!("write {}", file.display()))?;
        let judged = self.judge_trace(&noted, run, node, at);
        judged.with_context(|| format!("the trace of what arrived is in {}", file.display()))
    }

    fn judge_trace(&mut self, noted: &str, run: &Run, node: &Node, at: &[Attached]) -> anyhow::Result<()> {
        let mut arrived = arrivals::parse(noted)?;
        for (number, disk) in run.disks.iter().enumerate().skip(1) {
            let (of_disk, others): (Vec<Arrival>, Vec<Arrival>) =
                arrived.into_iter().partition(|arrival| has(disk, arrival.controller));
            arrived = others;
            let place = at.get(number).context("a disk is attached nowhere")?;
            self.judge_plugged(&of_disk, disk, node, place)?;
        }
        let disk = run.first()?;
        let mut targets = disk.target.clone();
        if !disk.target_again.is_empty() {
            // The target has cut everybody, and gave its numbers again to whoever was let in.
            let since = arrivals::marked(noted, FENCED)?;
            targets.extend(arrivals::given_again(&mut arrived, since, &disk.target_again));
        }
        let order = arrivals::judge(&arrived, &disk.source, &targets);
        self.came.late_writes = Some(order.late_writes);
        let program = &run.program;
        let last = arrivals::last_record(&arrived, program.first_byte)?.context("nothing arrived")?;
        ensure!(last < u64::from(program.room), "record {last} arrived, which the volume has no room for");
        let path = &at.first().context("the first disk is attached nowhere")?.target_path;
        let read = || qemu::read_records(node.machine(), path, program, last + 1);
        let data = records::judge(&block_in_place(read)?, program.nonce, program.first_byte, last);
        self.came.judged(&order, &data);
        tell_judged(self.say, &order, &data);
        whole(&order, &data, self.fault)?;
        ensure!(
            last + 1 >= run.acknowledged,
            "{} records were acknowledged to the guest, and {} have arrived",
            run.acknowledged,
            last + 1
        );
        Ok(())
    }

    /// The disk that came later: QEMU has written to it on either node.
    fn judge_plugged(
        &mut self,
        arrived: &[Arrival],
        disk: &Disk,
        node: &Node,
        at: &Attached,
    ) -> anyhow::Result<()> {
        let order = arrivals::judge(arrived, &disk.source, &disk.target);
        let both = order.from_source > 0 && order.from_target > 0;
        ensure!(both && order.late_writes == 0, "the order of arrivals of {}: {order:?}", disk.volume.id);
        for (block, byte) in ON_PLUGGED {
            let words = [format!("if={}", at.target_path), format!("skip={block}")];
            let read = Command::new("dd").args(words).args(["bs=4096", "count=1", "iflag=direct"]);
            let found = block_in_place(|| node.machine().exec(&read))?.stdout;
            let is_whole = found.len() == 4096 && found.iter().all(|one| *one == byte);
            ensure!(is_whole, "block {block} of {} is not what was written to it", disk.volume.id);
        }
        self.say.line(&format!(
            "the disk that came later has what was written to it: {} writes from node-a, {} from node-b",
            order.from_source, order.from_target
        ));
        Ok(())
    }
}

fn has(disk: &Disk, controller: u32) -> bool {
    disk.source.contains(&controller) || disk.target.contains(&controller)
}

/// Says what arrived, and what of it lies on the volume.
pub(in crate::demo) fn tell_judged(say: &mut Say, order: &ArrivalVerdict, data: &RecordVerdict) {
    say.line(&format!(
        "{} writes arrived from node-a, {} from node-b, {} of them twice; {} records are whole on the volume",
        order.from_source, order.from_target, order.repeats, data.whole
    ));
    let longest = |gap: Option<u64>| duration(Duration::from_micros(gap.unwrap_or_default()));
    say.detail(&format!(
        "longest time between two writes: {} on node-a, {} on node-b",
        longest(order.longest_source_gap_us),
        longest(order.longest_target_gap_us)
    ));
}

/// Whether all of it arrived in order, none of it late, and is there, as far as it may in a migration in which that goes wrong.
pub(in crate::demo) fn whole(
    order: &ArrivalVerdict,
    data: &RecordVerdict,
    fault: Option<MigrateFault>,
) -> anyhow::Result<()> {
    ensure!(order.late_writes == 0, "{} writes of node-a arrived after node-b's first", order.late_writes);
    let is_clean = match fault {
        Some(MigrateFault::Cancel) => order.stayed(),
        _ => order.is_clean(),
    };
    ensure!(is_clean, "the order of arrivals: {order:?}");
    ensure!(data.is_clean(), "the records: {data:?}");
    ensure!(data.guest_errors == 0, "the guest saw {} writes fail", data.guest_errors);
    // Where a path is lost, what was on it is sent again.
    let loses_paths = matches!(fault, Some(MigrateFault::CutPath | MigrateFault::FreezeSource));
    ensure!(loses_paths || order.repeats == 0, "{} writes arrived twice", order.repeats);
    Ok(())
}
