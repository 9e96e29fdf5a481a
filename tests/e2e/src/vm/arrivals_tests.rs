//! The fixtures are in the kernel's own form, cut short: by nodes that had the controllers 1 and 2, and 3 and 4.

use super::*;

const MOVED: &str = include_str!("fixtures/moved.trace");
const SOURCE_GOES_ON: &str = include_str!("fixtures/source-goes-on.trace");
const PATH_LOST: &str = include_str!("fixtures/path-lost.trace");

fn sides() -> (BTreeSet<u32>, BTreeSet<u32>) {
    (BTreeSet::from([1, 2]), BTreeSet::from([3, 4]))
}

fn judged(trace: &str) -> ArrivalVerdict {
    let (source, target) = sides();
    judge(&parse(trace).expect("a trace"), &source, &target)
}

/// The trace with these lines in place of the ones that `wanted` picks.
fn edited(trace: &str, wanted: impl Fn(&str) -> bool, put: impl Fn(&str) -> String) -> String {
    let line = |line: &str| if wanted(line) { put(line) } else { format!("{line}\n") };
    trace.lines().map(line).collect()
}

#[test]
fn a_line_is_read_as_the_kernel_writes_it() {
    let line = " kworker/0:1H-48      [000] .....    61.004117: nvmet_req_init: nvmet12: disk=/dev/nullb0, qid=2, \
                cmdid=4096, nsid=1, flags=0x40, meta=0x0, cmd=(nvme_cmd_write, slba=64, len=7, ctrl=0x0, dsmgmt=0, reftag=0)";
    let arrival = Arrival {
        at_us: 61_004_117,
        controller: 12,
        disk: "/dev/nullb0".to_owned(),
        first_lba: 64,
        blocks: 8,
    };
    assert_eq!(parse(line).expect("a trace"), [arrival]);
}

#[test]
fn names_with_anything_in_them_do_not_confuse_it() {
    let line = "a: nvmet_req_init-7 [000] ..... 1.000002: nvmet_req_init: nvmet1: disk=/a, qid=9, cmd=(x)\u{1}, qid=1, \
                cmdid=1, nsid=1, flags=0x40, meta=0x0, cmd=(nvme_cmd_write, slba=8, len=0, ctrl=0x0, dsmgmt=0, reftag=0)";
    let arrivals = parse(line).expect("a trace");
    assert_eq!((arrivals[0].at_us, arrivals[0].first_lba), (1_000_002, 8));
    assert_eq!(arrivals[0].disk, "/a, qid=9, cmd=(x)");
}

#[test]
fn reads_and_other_events_are_left_out() {
    let other = edited(MOVED, |l| l.contains("slba=8,"), |l| l.replace("cmd_write", "cmd_read") + "\n");
    let with_more = other + "  sh-9 [000] ..... 99.000001: sched_switch: prev_comm=nvmet\n";
    assert_eq!(parse(&with_more).expect("a trace").len(), parse(MOVED).expect("a trace").len() - 1);
}

#[test]
fn a_trace_that_lost_events_is_no_trace() {
    let overrun = MOVED.replace("entries-written: 48/48", "entries-written: 48/51");
    let error = parse(&overrun).expect_err("events are missing").to_string();
    assert!(error.contains("48 of 51"), "{error}");
    let lost = edited(MOVED, |l| l.contains("slba=9,"), |l| format!("CPU:0 [LOST 3 EVENTS]\n{l}\n"));
    assert!(parse(&lost).expect_err("events are missing").to_string().contains("LOST 3"));
}

#[test]
fn what_is_not_understood_is_an_error_and_not_passed_over() {
    for (from, to) in [
        ("nvme_cmd_write,", "nvme_cmd_dsm,"),
        ("slba=9,", "slba=0x9,"),
        ("len=0,", "count=0,"),
        ("nvmet1:", "nvmet_:"),
        (" 61.", " 61:"),
    ] {
        let broken = MOVED.replace(from, to);
        assert!(parse(&broken).is_err(), "{from} as {to} was taken");
    }
    let back = edited(MOVED, |l| l.contains("slba=20,"), |l| l.replace("  61.", "   2.") + "\n");
    assert!(parse(&back).expect_err("time goes back").to_string().contains("go back"));
}

#[test]
fn a_move_without_a_late_write_is_clean() {
    let verdict = judged(MOVED);
    assert!(verdict.is_clean(), "{verdict:?}");
    assert_eq!((verdict.from_source, verdict.from_target, verdict.repeats), (24, 24, 0));
    assert_eq!(verdict.switch_gap_us, Some(238_700));
    assert!(verdict.longest_source_gap_us < Some(45_000), "{verdict:?}");
}

#[test]
fn a_source_that_goes_on_is_caught() {
    let verdict = judged(SOURCE_GOES_ON);
    assert!(!verdict.is_clean());
    assert_eq!(verdict.late_writes, 10);
    assert!(verdict.switch_gap_us < Some(0), "they overlap: {verdict:?}");
    assert!(verdict.gaps > 0, "two writers are not one sequence: {verdict:?}");
}

#[test]
fn one_late_write_that_leaves_no_gap_is_caught() {
    let (source, target) = sides();
    let mut arrivals = parse(MOVED).expect("a trace");
    let again = Arrival { controller: 2, ..arrivals[30].clone() };
    arrivals.insert(31, again);
    let verdict = judge(&arrivals, &source, &target);
    assert_eq!((verdict.gaps, verdict.repeats, verdict.late_writes), (0, 1, 1));
    assert!(!verdict.is_clean());
}

#[test]
fn a_write_sent_again_over_another_path_is_no_gap() {
    let verdict = judged(PATH_LOST);
    assert!(verdict.is_clean(), "{verdict:?}");
    assert_eq!(verdict.repeats, 1);
    assert_eq!(verdict.longest_target_gap_us, Some(6_009_900));
}

#[test]
fn a_write_that_is_missing_is_a_gap() {
    let missing = edited(MOVED, |l| l.contains("slba=40,"), |_| String::new());
    assert_eq!(judged(&missing).gaps, 1);
    assert!(!judged(&missing).is_clean());
}

#[test]
fn controllers_of_neither_or_both_make_no_clean_verdict() {
    let arrivals = parse(MOVED).expect("a trace");
    let (source, target) = sides();
    let stranger = judge(&arrivals, &BTreeSet::from([2]), &target);
    assert_eq!((stranger.strangers, stranger.from_source), (24, 0));
    assert!(!stranger.is_clean());
    let both: BTreeSet<u32> = source.union(&target).copied().collect();
    let shared = judge(&arrivals, &source, &both);
    assert_eq!(shared.shared, source);
    assert!(!shared.is_clean());
}

#[test]
fn who_has_not_written_has_not_moved() {
    let (source, target) = sides();
    let half: Vec<Arrival> = parse(MOVED).expect("a trace").into_iter().take(20).collect();
    assert!(!judge(&half, &source, &target).is_clean());
    assert!(!judge(&[], &source, &target).is_clean());
}

#[test]
fn the_last_record_is_known_in_blocks_of_either_size() {
    let arrivals = parse(MOVED).expect("a trace");
    assert_eq!(last_record(&arrivals, 32 << 10).expect("records"), Some(47));
    let small =
        |arrival: &Arrival| Arrival { first_lba: arrival.first_lba * 8, blocks: 8, ..arrival.clone() };
    let small: Vec<Arrival> = arrivals.iter().map(small).collect();
    assert_eq!(last_record(&small, 32 << 10).expect("records"), Some(47));
    assert_eq!(last_record(&[], 32 << 10).expect("nothing"), None);
}

#[test]
fn a_write_that_is_no_record_is_named() {
    let arrivals = parse(MOVED).expect("a trace");
    let odd = |edit: fn(&mut Arrival)| {
        let mut arrivals = arrivals.clone();
        edit(&mut arrivals[5]);
        last_record(&arrivals, 32 << 10)
    };
    assert!(odd(|arrival| arrival.blocks = 2).is_err());
    assert!(odd(|arrival| arrival.first_lba = 0).is_err());
}

#[test]
fn an_id_that_was_given_again_is_another_controller() {
    // The source had 1 and 2. After the mark the target node has them.
    let mark = "  sh-9 [000] ..... 50.000000: tracing_mark_write: cut\n";
    let arrival = |at_us, controller, first_lba| Arrival {
        at_us,
        controller,
        disk: String::new(),
        first_lba,
        blocks: 1,
    };
    let mut all = vec![arrival(49_000_000, 1, 0), arrival(49_500_000, 3, 1), arrival(51_000_000, 1, 2)];
    assert!(!judge(&all, &BTreeSet::from([1, 2]), &BTreeSet::from([1, 3])).is_clean());
    let since = marked(&(MOVED.to_owned() + mark), "cut").expect("a mark");
    assert_eq!(since, 50_000_000);
    let again = given_again(&mut all, since, &BTreeSet::from([1]));
    let target: BTreeSet<u32> = again.into_iter().chain([3]).collect();
    let verdict = judge(&all, &BTreeSet::from([1, 2]), &target);
    assert!(verdict.is_clean() && verdict.from_target == 2, "{verdict:?}");
    assert!(marked(MOVED, "cut").is_err());
}

#[test]
fn a_source_that_writes_on_alone_has_stayed() {
    let (source, target) = sides();
    let all = parse(MOVED).expect("a trace");
    let alone: Vec<Arrival> = all.iter().filter(|a| source.contains(&a.controller)).cloned().collect();
    assert!(judge(&alone, &source, &target).stayed());
    assert!(!judge(&all, &source, &target).stayed());
    assert!(!judge(&[], &source, &target).stayed());
}
