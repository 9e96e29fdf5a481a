//! The judge of order: the writes as the target saw them arrive, on one clock.
//!
//! In: the text of a kernel's trace with the events `nvmet_req_init`, and which NVMe controllers were the source's and
//! which the target node's. Out: [`Arrival`]s, and an [`ArrivalVerdict`] over them. What always holds: a trace that has lost events,
//! or that has one that changes the disk and is no write, is an error and no verdict; a write of a controller that is
//! neither side's, or of one that is both sides', makes a verdict that is not clean.

use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};

use super::guest::RECORD_BYTES;

/// The event, as a line of the trace names it.
const EVENT: &str = " nvmet_req_init: ";
/// What precedes a name that was noted among them.
const MARK: &str = " tracing_mark_write: ";
/// What changes nothing on the disk.
const HARMLESS: [&str; 4] = ["nvme_cmd_read", "nvme_cmd_flush", "nvme_cmd_compare", "nvme_cmd_verify"];

/// A write that the target has received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// When, microseconds on the target's clock.
    pub at_us: u64,
    /// The id of the NVMe controller that it came by. The kernel's target counts them over all its volumes, so it names the
    /// volume, too.
    pub controller: u32,
    /// The backing file or device, of which the kernel keeps the first 32 bytes; empty if it names none.
    pub disk: String,
    /// The first block, in blocks of the target.
    pub first_lba: u64,
    /// Blocks.
    pub blocks: u32,
}

impl Arrival {
    fn end(&self) -> u64 {
        self.first_lba + u64::from(self.blocks)
    }

    fn is_same_place(&self, other: &Self) -> bool {
        (self.first_lba, self.blocks) == (other.first_lba, other.blocks)
    }
}

/// Reads a trace, as the kernel's file `trace` has it.
///
/// # Errors
/// If events were lost, if their times go back, or if a line about the target is not understood.
pub fn parse(trace: &str) -> anyhow::Result<Vec<Arrival>> {
    let mut arrivals: Vec<Arrival> = Vec::new();
    for line in trace.lines() {
        if line.starts_with('#') {
            nothing_lost(line)?;
            continue;
        }
        ensure!(!line.contains("[LOST "), "the trace has lost events: {line}; give it a larger buffer");
        let Some((before, event)) = line.split_once(EVENT) else { continue };
        let read =
            arrival(before, event).with_context(|| format!("cannot understand the trace's {line:?}"))?;
        let Some(arrival) = read else { continue };
        if let Some(last) = arrivals.last() {
            ensure!(last.at_us <= arrival.at_us, "the trace's times go back at {line:?}");
        }
        arrivals.push(arrival);
    }
    Ok(arrivals)
}

/// `# entries-in-buffer/entries-written: 12/12   #P:1`: a buffer that was full has thrown the oldest away.
fn nothing_lost(header: &str) -> anyhow::Result<()> {
    let Some((_, counts)) = header.split_once("entries-in-buffer/entries-written:") else { return Ok(()) };
    let counts = counts.split_whitespace().next().and_then(|counts| counts.split_once('/'));
    let (kept, written) = counts.with_context(|| format!("cannot understand the trace's {header:?}"))?;
    ensure!(kept == written, "the trace has {kept} of {written} events; give it a larger buffer");
    Ok(())
}

/// `before` ends with the time, `event` is `nvmet3: disk=…, qid=1, …, cmd=(nvme_cmd_write, slba=64, len=7, …)`.
fn arrival(before: &str, event: &str) -> anyhow::Result<Option<Arrival>> {
    // The disk's name comes first and may be anything: what follows is looked for from the end.
    let (head, command) = event.rsplit_once(" cmd=(").context("it has no command")?;
    let mut words = command.trim_end().trim_end_matches(')').split(", ");
    let name = words.next().unwrap_or_default();
    let harmless = ["nvme_fabrics_", "nvme_admin_", "nvme_cmd_resv_"];
    if HARMLESS.contains(&name) || harmless.iter().any(|start| name.starts_with(start)) {
        return Ok(None);
    }
    if name != "nvme_cmd_write" {
        bail!("{name} may change the disk, and is no write");
    }
    let mut number = |key: &str| -> anyhow::Result<u64> {
        let value = words.next().and_then(|word| word.strip_prefix(key)?.strip_prefix('='));
        value.and_then(|value| value.parse().ok()).with_context(|| format!("it has no {key}"))
    };
    let (first_lba, length) = (number("slba")?, number("len")?);
    let (controller, rest) =
        head.strip_prefix("nvmet").and_then(|head| head.split_once(':')).context("it has no controller")?;
    let disk =
        rest.split_once("disk=").and_then(|(_, rest)| rest.rsplit_once(", qid=")).map(|(disk, _)| disk);
    Ok(Some(Arrival {
        at_us: microseconds(time_of(before)?)?,
        controller: controller.parse().context("its controller has no number")?,
        // Where the name is longer than what is kept, old kernels print what lies behind it.
        disk: disk.unwrap_or_default().chars().filter(|c| !c.is_control()).take(32).collect(),
        first_lba,
        // The protocol counts from 0.
        blocks: u32::try_from(length + 1).context("its length is beyond the protocol's")?,
    }))
}

/// `cat-77 [000] ..... 60.123456:`
fn time_of(before: &str) -> anyhow::Result<&str> {
    before.trim_end_matches(':').split_whitespace().next_back().context("it has no time")
}

/// `60.123456`
fn microseconds(time: &str) -> anyhow::Result<u64> {
    let (whole, part) = time.split_once('.').with_context(|| format!("{time:?} is no time"))?;
    ensure!(part.len() == 6, "{time:?} is no time in microseconds");
    let (whole, part): (u64, u64) = (whole.parse()?, part.parse()?);
    Ok(whole * 1_000_000 + part)
}

/// When a moment of this name was noted, microseconds on the target's clock.
///
/// # Errors
/// If none was.
pub fn marked(trace: &str, name: &str) -> anyhow::Result<u64> {
    let lines = trace.lines().filter_map(|line| line.split_once(MARK));
    let found = lines.filter(|(_, said)| said.trim() == name).map(|(before, _)| before).next_back();
    let before = found.with_context(|| format!("the trace has no mark {name:?}"))?;
    microseconds(time_of(before)?)
}

/// From this moment on the target has given these ids again. What came by them since is another controller's: it gets a
/// number that the target gives to nobody. Which numbers those are.
pub fn given_again(all: &mut [Arrival], since_us: u64, ids: &BTreeSet<u32>) -> BTreeSet<u32> {
    let another = |id: u32| id | (1 << 16);
    for arrival in all.iter_mut().filter(|arrival| arrival.at_us >= since_us) {
        if ids.contains(&arrival.controller) {
            arrival.controller = another(arrival.controller);
        }
    }
    ids.iter().map(|id| another(*id)).collect()
}

/// What the order of arrivals shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArrivalVerdict {
    /// Writes of the source.
    pub from_source: u64,
    /// Writes of the target node.
    pub from_target: u64,
    /// Writes of controllers that are neither's.
    pub strangers: u64,
    /// Controllers that were said to be both's: whose a write is cannot be said then.
    pub shared: BTreeSet<u32>,
    /// Writes that do not begin where the one before ended, and do not repeat it.
    pub gaps: u64,
    /// Writes that repeat the one before: sent again over another path, or by the target node after the switch.
    pub repeats: u64,
    /// Writes of the source that arrived after the target node's first.
    pub late_writes: u64,
    /// From the source's last write to the target node's first; negative by as much as they overlap; none if either has
    /// written nothing.
    pub switch_gap_us: Option<i64>,
    /// The longest time between two writes of the source.
    pub longest_source_gap_us: Option<u64>,
    /// The longest time between two writes of the target node.
    pub longest_target_gap_us: Option<u64>,
}

impl ArrivalVerdict {
    /// Whether both have written, one after the other, each place after the one before.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let both = self.from_source > 0 && self.from_target > 0;
        both && self.is_in_order()
    }

    /// Whether the source alone has written, each place after the one before.
    #[must_use]
    pub fn stayed(&self) -> bool {
        self.from_source > 0 && self.from_target == 0 && self.is_in_order()
    }

    fn is_in_order(&self) -> bool {
        self.strangers == 0 && self.shared.is_empty() && self.gaps == 0 && self.late_writes == 0
    }
}

/// Judges the writes of one disk; `source` and `target` are the controllers of either node.
#[must_use]
pub fn judge(all: &[Arrival], source: &BTreeSet<u32>, target: &BTreeSet<u32>) -> ArrivalVerdict {
    let of = |side: &BTreeSet<u32>| {
        all.iter().filter(|arrival| side.contains(&arrival.controller)).collect::<Vec<&Arrival>>()
    };
    let (from_source, from_target) = (of(source), of(target));
    let is_ours =
        |arrival: &&Arrival| source.contains(&arrival.controller) || target.contains(&arrival.controller);
    let ours: Vec<&Arrival> = all.iter().filter(is_ours).collect();
    let steps = || ours.windows(2).filter_map(|pair| Some((pair.first()?, pair.get(1)?)));
    let repeats = steps().filter(|(before, after)| after.is_same_place(before)).count();
    let follows = steps().filter(|(before, after)| after.first_lba == before.end()).count();
    // By place in the trace and not by time: two events may have one time.
    let first_of_target = all.iter().position(|arrival| target.contains(&arrival.controller));
    let after_it = first_of_target.and_then(|first| all.get(first..)).unwrap_or_default();
    let late = after_it.iter().filter(|arrival| source.contains(&arrival.controller)).count();
    let switch = from_source.last().zip(from_target.first());
    ArrivalVerdict {
        from_source: from_source.len() as u64,
        from_target: from_target.len() as u64,
        strangers: (all.len() - ours.len()) as u64,
        shared: source.intersection(target).copied().collect(),
        gaps: (steps().count() - repeats - follows) as u64,
        repeats: repeats as u64,
        late_writes: late as u64,
        switch_gap_us: switch.map(|(last, first)| first.at_us as i64 - last.at_us as i64),
        longest_source_gap_us: longest_gap(&from_source),
        longest_target_gap_us: longest_gap(&from_target),
    }
}

/// The number of the last record that arrived, of those whose first lies at this byte of the disk; none if nothing did.
///
/// # Errors
/// If a write is no record: of another size than the others, or not where one can lie.
pub fn last_record(all: &[Arrival], first_byte: u32) -> anyhow::Result<Option<u64>> {
    let Some(blocks) = all.first().map(|arrival| u64::from(arrival.blocks)) else { return Ok(None) };
    let mut last = None;
    for arrival in all {
        let fits = u64::from(arrival.blocks) == blocks && arrival.first_lba.is_multiple_of(blocks);
        let number = (arrival.first_lba / blocks).checked_sub(u64::from(first_byte) / RECORD_BYTES);
        let number = number.filter(|_| fits).with_context(|| format!("{arrival:?} is no record"))?;
        last = last.max(Some(number));
    }
    Ok(last)
}

fn longest_gap(side: &[&Arrival]) -> Option<u64> {
    let gaps = side.windows(2).filter_map(|pair| Some(pair.get(1)?.at_us - pair.first()?.at_us));
    gaps.max()
}

#[cfg(test)]
#[path = "arrivals_tests.rs"]
mod tests;
