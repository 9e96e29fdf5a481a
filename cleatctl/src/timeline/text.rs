//! A timeline for a terminal: sentences, then a bar of letters for each volume.
//!
//! Goes out: a text with marked state words that fits the width. Always holds: a bar is true to time: each letter is the
//! phase that took most of its span, and what is shorter than a letter stands in numbers below it alone.

use super::{Timeline, VolumeLine, sentences};
use crate::format::lasting;
use crate::page::Page;

/// Where there is no terminal.
const USUAL_WIDTH: usize = 80;
/// Letters of a bar.
const FEWEST: usize = 20;
const MOST: usize = 120;

/// The whole timeline.
pub(crate) fn text(timeline: &Timeline, width: Option<usize>) -> String {
    let mut page = Page::new(width);
    let cells = width.unwrap_or(USUAL_WIDTH).saturating_sub(4).clamp(FEWEST, MOST);
    page.state(0, &format!("{}: ", sentences::title(timeline)), timeline.result(), "");
    for sentence in sentences::summary(timeline) {
        page.line(2, sentence);
    }
    for line in &timeline.volumes {
        volume(&mut page, timeline, line, cells);
    }
    page.blank();
    let span = timeline.until.saturating_sub(timeline.began);
    page.line(0, format!("One letter of a bar is {}.", lasting(span.div_ceil(cells as u64))));
    for phase in sentences::legend(timeline) {
        page.line(2, format!("{}  {}: {}", phase.letter(), phase.name(), phase.words()));
    }
    if timeline.volumes.iter().any(|line| line.timed_out_at.is_some()) {
        page.line(2, "!  here its time limit ended");
    }
    if timeline.goes_on() {
        page.line(2, ">  it goes on");
    }
    if !timeline.others.is_empty() {
        page.blank();
        page.line(0, "Others of this name");
        timeline.others.iter().for_each(|other| page.line(2, sentences::other(other)));
    }
    page.text()
}

fn volume(page: &mut Page, timeline: &Timeline, line: &VolumeLine, cells: usize) {
    let after = format!("{}{}", sentences::took(line, timeline.until), sentences::own_nodes(timeline, line));
    page.blank();
    page.state(0, &format!("{}: ", line.volume), line.result(), &after);
    if let Some(outcome) = sentences::own_outcome(timeline, line) {
        page.line(2, outcome);
    }
    page.line(2, format!("|{}|", bar(timeline, line, cells)));
    page.line(2, sentences::phases(line, timeline.until));
    for waits in sentences::waits(timeline, line) {
        page.line(2, waits);
    }
}

/// Letters over the whole time of the migration; dots where this volume is not part of it yet, or no more.
pub(super) fn bar(timeline: &Timeline, line: &VolumeLine, cells: usize) -> String {
    let Timeline { began, until, .. } = *timeline;
    let span = u128::from(until.saturating_sub(began)).max(1);
    // Microseconds, so that several letters of one millisecond are apart.
    let edge = |cell: usize| span * 1000 * cell as u128 / cells as u128;
    let since = |moment: u64| u128::from(moment.saturating_sub(began)) * 1000;
    let mut bar: Vec<char> = (0..cells)
        .map(|cell| {
            let (left, right) = (edge(cell), edge(cell + 1));
            let share = |from: u64, to: u64| since(to).min(right).saturating_sub(since(from).max(left));
            let shares = line.phases.iter().map(|p| (share(p.from, p.to.unwrap_or(until)), p.letter()));
            shares
                .rev()
                .max_by_key(|(share, _)| *share)
                .filter(|(share, _)| *share > 0)
                .map_or('.', |(_, l)| l)
        })
        .collect();
    if line.ended.is_none()
        && let Some(last) = bar.last_mut()
    {
        *last = '>';
    }
    if let Some(at) = line.timed_out_at {
        let cell = (since(at) * cells as u128 / (span * 1000)) as usize;
        bar[cell.min(cells - 1)] = '!';
    }
    bar.into_iter().collect()
}
