//! The judge of a sequence: pure, so that its tests can show that it finds each kind of damage.
//!
//! In: what each run said of itself ([`RunFacts`]), then every block that is not a hole. Out: a [`Report`]. What
//! always holds: seeing nothing is not success, and a finding is counted at least once, never averaged away.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Layout;
use super::record::{Block, Decoded, Name, Record};

/// Findings that are written out in words; the rest is in the counts.
const MAX_WORDS: usize = 20;

/// What a run of the writer said of itself, in the order of the runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFacts {
    /// The region that it owned.
    pub region: u32,
    /// The nonce of its `started` line.
    pub nonce: Uuid,
    /// The node that it ran on.
    pub node: Name,
    /// Its first number.
    pub start_sequence: u64,
    /// The last number it was told was written; `None` if there was none.
    pub last_acked: Option<u64>,
}

/// What the device holds, compared with what the runs said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whole records of the runs, each at its own place.
    pub writes: u64,
    /// Numbers from the first run's first to the last run's last acknowledged one that no run's region holds.
    pub gaps: u64,
    /// Numbers that are there more than once: how many too many.
    pub duplicates: u64,
    /// Records in the region of a run that has a successor, with a number past the run's last acknowledged one or
    /// one of the successor's: writes that landed when their source should have stopped.
    pub late_writes_by_source: u64,
    /// Blocks that hold something else than a whole record.
    pub checksum_errors: u64,
    /// Whole records that are not where their number belongs.
    pub misplaced: u64,
    /// Whole records of no run that was named, or of another volume.
    pub foreign: u64,
    /// Each run's own share.
    pub regions: Vec<RegionReport>,
    /// The first findings, in words.
    pub findings: Vec<String>,
}

/// What one region holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionReport {
    /// Which region.
    pub region: u32,
    /// The node whose run owned it.
    pub node: Name,
    /// Whole records at their place.
    pub writes: u64,
    /// The lowest number found.
    pub first: Option<u64>,
    /// The highest number found.
    pub last: Option<u64>,
    /// The last number that the run was told was written.
    pub last_acked: Option<u64>,
    /// Acknowledged numbers that are not there.
    pub gaps: u64,
    /// See [`Report::late_writes_by_source`].
    pub late: u64,
}

impl Report {
    /// Whether every acknowledged write is there, once, and nothing else is.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let faults = self.gaps
            + self.duplicates
            + self.late_writes_by_source
            + self.checksum_errors
            + self.misplaced
            + self.foreign;
        faults == 0 && self.writes > 0 && self.findings.is_empty()
    }
}

/// Reads blocks, in any order, and then judges.
#[derive(Debug)]
pub struct Checker {
    layout: Layout,
    volume: Name,
    runs: Vec<RunFacts>,
    /// Per number, the regions that hold it.
    found: BTreeMap<u64, Vec<u32>>,
    strays: BTreeMap<u64, u64>,
    report: Report,
}

/// Facts that cannot be of one sequence.
#[derive(Debug, thiserror::Error)]
pub enum BadFacts {
    /// There is nothing to compare with.
    #[error("no run is named: there is nothing to compare the device with")]
    NoRuns,
    /// Two runs in one region.
    #[error("two runs are said to own region {0}")]
    SharedRegion(u32),
    /// A run that began before the one before it.
    #[error("the run of {node} in region {region} begins at {start}, not after its predecessor's {before}")]
    Order {
        /// The node of the later run.
        node: Name,
        /// Its region.
        region: u32,
        /// Its first number.
        start: u64,
        /// The first number of the run before it.
        before: u64,
    },
}

impl Checker {
    /// A judge of these runs, named in their order.
    ///
    /// # Errors
    /// If the runs cannot be of one sequence.
    pub fn new(layout: Layout, volume: Name, runs: Vec<RunFacts>) -> Result<Self, BadFacts> {
        if runs.is_empty() {
            return Err(BadFacts::NoRuns);
        }
        for (index, run) in runs.iter().enumerate() {
            if runs[..index].iter().any(|other| other.region == run.region) {
                return Err(BadFacts::SharedRegion(run.region));
            }
            if let Some(before) = index.checked_sub(1).map(|i| &runs[i])
                && run.start_sequence < before.start_sequence
            {
                return Err(BadFacts::Order {
                    node: run.node.clone(),
                    region: run.region,
                    start: run.start_sequence,
                    before: before.start_sequence,
                });
            }
        }
        let (found, strays) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { layout, volume, runs, found, strays, report: Report::default() })
    }

    /// Takes one block. Each block of the device that is not known to be a hole is given once.
    pub fn block(&mut self, number: u64, bytes: &Block) {
        match Record::decode(bytes) {
            Decoded::Blank => {}
            Decoded::Damaged(why) => {
                self.report.checksum_errors += 1;
                self.word(|| format!("block {number} is damaged: {why}"));
            }
            Decoded::Record(record) => self.record(number, &record),
        }
    }

    fn record(&mut self, number: u64, record: &Record) {
        let known = self.runs.iter().find(|run| run.nonce == record.nonce);
        let own = known.filter(|run| run.node == record.node && record.volume == self.volume);
        let Some(run) = own else {
            self.report.foreign += 1;
            self.word(|| {
                format!(
                    "block {number} holds number {} of volume {} by {}, run {}, which is none of ours",
                    record.sequence, record.volume, record.node, record.nonce
                )
            });
            return;
        };
        let index = record.sequence.checked_sub(run.start_sequence);
        let place = index.map(|index| self.layout.block(run.region, index));
        let within = index.is_some_and(|index| index < self.layout.region_blocks());
        if record.region == run.region && within && place == Some(number) {
            self.report.writes += 1;
            self.found.entry(record.sequence).or_default().push(run.region);
        } else {
            self.report.misplaced += 1;
            *self.strays.entry(record.sequence).or_default() += 1;
            let (node, sequence) = (record.node.clone(), record.sequence);
            self.word(|| format!("block {number} holds {node}'s number {sequence}, which belongs elsewhere"));
        }
    }

    /// The verdict.
    #[must_use]
    pub fn finish(mut self) -> Report {
        self.judge_regions();
        self.judge_numbers();
        if self.report.writes == 0 {
            self.word(|| "the device holds no record at all".to_owned());
        }
        self.report
    }

    fn judge_regions(&mut self) {
        for index in 0..self.runs.len() {
            let run = self.runs[index].clone();
            let successor = self.runs.get(index + 1).map(|next| next.start_sequence);
            let numbers: Vec<u64> = self
                .found
                .iter()
                .filter(|(_, regions)| regions.contains(&run.region))
                .map(|(number, _)| *number)
                .collect();
            let is_late = |number: &u64| {
                successor
                    .is_some_and(|next| *number >= next || run.last_acked.is_none_or(|acked| *number > acked))
            };
            let late = numbers.iter().filter(|n| is_late(n)).count() as u64;
            let acked = run.last_acked.map_or(0, |last| (last + 1).saturating_sub(run.start_sequence));
            let there =
                numbers.iter().filter(|n| run.last_acked.is_some_and(|last| **n <= last)).count() as u64;
            let gaps = acked.saturating_sub(there);
            if let Some(first) = numbers.iter().find(|n| is_late(n)) {
                self.word(|| {
                    let acked = run.last_acked.map_or("nothing".to_owned(), |n| n.to_string());
                    format!("{}: {late} late, the first is {first}; its run ended at {acked}", run.node)
                });
            }
            self.report.late_writes_by_source += late;
            self.report.regions.push(RegionReport {
                region: run.region,
                node: run.node,
                writes: numbers.len() as u64,
                first: numbers.first().copied(),
                last: numbers.last().copied(),
                last_acked: run.last_acked,
                gaps,
                late,
            });
        }
    }

    fn judge_numbers(&mut self) {
        let mut times = std::mem::take(&mut self.strays);
        for (number, regions) in &self.found {
            *times.entry(*number).or_default() += regions.len() as u64;
        }
        let doubled: Vec<(u64, u64)> = times.into_iter().filter(|(_, times)| *times > 1).collect();
        self.report.duplicates = doubled.iter().map(|(_, times)| times - 1).sum();
        for range in doubled.chunk_by(|(a, _), (b, _)| a + 1 == *b) {
            let (from, to) = (range[0].0, range[range.len() - 1].0);
            self.word(|| format!("{} more than once on the device", range_is(from, to)));
        }
        let first = self.runs[0].start_sequence;
        let Some(last) = self.runs.iter().filter_map(|run| run.last_acked).max() else {
            return;
        };
        let mut expected = first;
        let numbers: Vec<u64> = self.found.range(first..=last).map(|(number, _)| *number).collect();
        for number in numbers.into_iter().chain([last + 1]) {
            if number > expected {
                self.report.gaps += number - expected;
                let (from, to) = (expected, number - 1);
                self.word(|| format!("{} missing", range_is(from, to)));
            }
            expected = number + 1;
        }
        // A number that its own run was told was written, and that only another run's region holds.
        let lost: u64 = self.report.regions.iter().map(|region| region.gaps).sum();
        if lost > self.report.gaps {
            self.report.gaps = lost;
            self.word(|| {
                format!("{lost} acknowledged writes are not in the region of the run that made them")
            });
        }
    }

    fn word(&mut self, text: impl FnOnce() -> String) {
        if self.report.findings.len() < MAX_WORDS {
            self.report.findings.push(text());
        }
    }
}

/// `number 7 is` or `numbers 7 to 9 are`.
fn range_is(from: u64, to: u64) -> String {
    if from == to { format!("number {from} is") } else { format!("numbers {from} to {to} are") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::record::{BLOCK_BYTES, tests::record};
    use super::*;

    const REGION_BLOCKS: u64 = 64;

    /// A device in memory and the runs that wrote it.
    #[derive(Debug, Clone)]
    struct Device {
        blocks: BTreeMap<u64, Block>,
        runs: Vec<RunFacts>,
    }

    fn layout() -> Layout {
        Layout::new(REGION_BLOCKS * BLOCK_BYTES as u64).expect("layout")
    }

    /// A handoff through regions 0, 1, 2, ... with this many writes in each.
    fn handoff(writes: &[u64]) -> Device {
        let mut device = Device { blocks: BTreeMap::new(), runs: Vec::new() };
        let mut next = 1;
        for (region, count) in writes.iter().enumerate() {
            let region = region as u32;
            let run = RunFacts {
                region,
                nonce: Uuid::from_u128(u128::from(region) + 100),
                node: "node-a".parse().expect("name"),
                start_sequence: next,
                last_acked: count.checked_sub(1).map(|last| next + last),
            };
            for index in 0..*count {
                let made = record(run.nonce.as_u128(), region, next + index);
                device.blocks.insert(layout().block(region, index), made.encode());
            }
            next += count;
            device.runs.push(run);
        }
        device
    }

    fn judged(device: &Device) -> Report {
        let mut checker =
            Checker::new(layout(), "pvc-1".parse().expect("name"), device.runs.clone()).expect("facts");
        for (number, block) in &device.blocks {
            checker.block(*number, block);
        }
        checker.finish()
    }

    #[test]
    fn a_device_without_records_is_not_clean() {
        assert!(!judged(&handoff(&[0])).is_clean());
        assert!(Checker::new(layout(), "pvc-1".parse().expect("name"), Vec::new()).is_err());
    }

    #[test]
    fn runs_that_share_a_region_or_run_backwards_are_refused() {
        let mut device = handoff(&[3, 3]);
        device.runs[1].region = 0;
        assert!(matches!(
            Checker::new(layout(), "pvc-1".parse().expect("name"), device.runs.clone()),
            Err(BadFacts::SharedRegion(0))
        ));
        device.runs[1].region = 1;
        device.runs.swap(0, 1);
        assert!(matches!(
            Checker::new(layout(), "pvc-1".parse().expect("name"), device.runs),
            Err(BadFacts::Order { start: 1, before: 4, .. })
        ));
    }

    #[test]
    fn a_write_of_the_source_after_the_switchover_is_late_and_a_duplicate() {
        let mut device = handoff(&[10, 5]);
        let late = record(100, 0, 11).encode();
        device.blocks.insert(10, late);
        let report = judged(&device);
        assert_eq!((report.late_writes_by_source, report.duplicates, report.gaps), (1, 1, 0));
        assert_eq!(report.regions[0].late, 1);
        assert!(!report.is_clean());
    }

    #[test]
    fn a_write_past_the_end_of_the_last_run_is_no_fault() {
        // Its own writer may have died before it could say so.
        let mut device = handoff(&[10, 5]);
        device.blocks.insert(layout().block(1, 5), record(101, 1, 16).encode());
        assert!(judged(&device).is_clean());
    }

    #[test]
    fn a_lost_tail_is_a_gap() {
        let mut device = handoff(&[10, 5]);
        device.blocks.remove(&layout().block(1, 4));
        assert_eq!(judged(&device).gaps, 1);
        // The number is there, but not where the run that was told so wrote it.
        let mut device = handoff(&[10, 5]);
        device.blocks.remove(&9);
        device.runs[1].start_sequence = 10;
        for index in 0..6 {
            device.blocks.insert(layout().block(1, index), record(101, 1, 10 + index).encode());
        }
        assert_eq!(judged(&device).gaps, 1);
    }

    #[test]
    fn records_of_another_run_or_volume_are_foreign() {
        let mut device = handoff(&[10]);
        device.blocks.insert(40, record(7, 0, 41).encode());
        let mut other = record(100, 0, 42);
        other.volume = "pvc-2".parse().expect("name");
        device.blocks.insert(41, other.encode());
        assert_eq!(judged(&device).foreign, 2);
    }

    proptest! {
        #[test]
        fn an_undamaged_handoff_is_clean(writes in prop::collection::vec(0..=REGION_BLOCKS, 1..6)) {
            prop_assume!(writes.iter().sum::<u64>() > 0);
            let report = judged(&handoff(&writes));
            prop_assert!(report.is_clean(), "{:?}", report);
            prop_assert_eq!(report.writes, writes.iter().sum::<u64>());
        }

        #[test]
        fn each_kind_of_damage_is_found(
            writes in prop::collection::vec(2..REGION_BLOCKS - 1, 2..5),
            which: prop::sample::Index,
            kind in 0..6,
            bit in 0..BLOCK_BYTES * 8,
        ) {
            let mut device = handoff(&writes);
            let numbers: Vec<u64> = device.blocks.keys().copied().collect();
            let victim = *which.get(&numbers);
            let block = device.blocks[&victim];
            let (region, _) = layout().place(victim);
            let run = device.runs[region as usize].clone();
            let next = run.last_acked.expect("acked") + 1;
            let free = layout().block(run.region, next - run.start_sequence);
            match kind {
                0 => { device.blocks.remove(&victim); }
                1 => { device.blocks.get_mut(&victim).expect("there")[bit / 8] ^= 1 << (bit % 8); }
                2 => { device.blocks.insert(free, block); }
                3 if run.region as usize + 1 < writes.len() => {
                    device.blocks.insert(free, record(run.nonce.as_u128(), run.region, next).encode());
                }
                4 => {
                    let other = numbers[(numbers.iter().position(|n| *n == victim).expect("there") + 1) % numbers.len()];
                    let swapped = device.blocks[&other];
                    device.blocks.insert(victim, swapped);
                    device.blocks.insert(other, block);
                }
                _ => { device.blocks.insert(victim, record(9, run.region, run.start_sequence).encode()); }
            }
            let report = judged(&device);
            prop_assert!(!report.is_clean(), "{:?}", report);
            let counted = match kind {
                0 => report.gaps,
                1 => report.checksum_errors,
                2 => report.duplicates,
                3 if run.region as usize + 1 < writes.len() => report.late_writes_by_source,
                4 => report.misplaced,
                _ => report.foreign,
            };
            prop_assert!(counted > 0, "{:?}", report);
        }
    }
}
