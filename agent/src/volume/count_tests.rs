#![allow(clippy::unwrap_used)]

use std::cell::RefCell;

use cleat_host::ControllerName;
use cleat_host::sysfs::{NamespaceKind, NamespacePath};
use proptest::prelude::*;

use super::*;
use crate::testing::agent::{Agent, Machine, epoch, volume};
use crate::testing::kernel::view;

const EVERY: Duration = Duration::from_millis(20);

fn counters(device: &[(&str, u64)], paths: &[(&str, u64)]) -> WriteCounters {
    let counts =
        |all: &[(&str, u64)]| all.iter().map(|(name, writes)| ((*name).to_owned(), *writes)).collect();
    WriteCounters { device: counts(device), paths: counts(paths) }
}

fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

/// Looks every 20 ms at a device whose writes are a function of the time; gives what is reported, and when.
fn watched(lasts: Duration, writes_at: impl Fn(Duration) -> u64) -> Vec<(Duration, Counted)> {
    let began = Instant::now();
    let mut counting = WriteCount::begin(began);
    let (mut reports, mut at) = (Vec::new(), Duration::ZERO);
    while at <= lasts {
        let now = counters(&[("nvme0n1", writes_at(at))], &[]);
        reports.extend(counting.look(now, true, began + at).map(|counted| (at, counted)));
        at += EVERY;
    }
    reports
}

fn counted(writes: u64, age_ms: u64) -> Counted {
    Counted { writes, last_write_age: ms(age_ms), open: true }
}

#[test]
fn the_first_look_the_first_write_and_the_end_of_writing_are_reported() {
    // From 100 ms to 1 s there is a write with each look.
    let writes_at = |at: Duration| 1000 + (at.clamp(ms(80), ms(1000)) - ms(80)).as_millis() as u64 / 20;
    let reports = watched(ms(3000), writes_at);
    let expected = [(Duration::ZERO, counted(0, 0)), (ms(100), counted(1, 0)), (ms(1260), counted(46, 260))];
    assert_eq!(reports, expected, "what it had written before is not counted");
}

#[test]
fn a_single_write_after_the_end_of_writing_is_reported() {
    let reports = watched(ms(3000), |at| u64::from(at >= ms(100)) + u64::from(at >= ms(2000)));
    let after: Vec<_> = reports.into_iter().filter(|(at, _)| *at > ms(400)).collect();
    assert_eq!(after, [(ms(2000), counted(2, 0)), (ms(2260), counted(2, 260))]);
}

#[test]
fn a_write_right_after_a_report_is_reported_later_with_its_age() {
    // Writing has ended at 360 ms, which is reported; one more write comes at 400 ms.
    let reports = watched(ms(3000), |at| u64::from(at >= ms(100)) + u64::from(at >= ms(400)));
    let last = reports.last().unwrap();
    assert_eq!((last.1.writes, last.0 - last.1.last_write_age), (2, ms(400)), "{reports:?}");
}

#[test]
fn whoever_writes_now_and_then_is_reported_at_most_four_times_a_second() {
    for pause in [30, 70, 200, 260, 300, 500] {
        let reports = watched(ms(10_000), |at| at.as_millis() as u64 / pause);
        let times: Vec<_> = reports.iter().map(|(at, _)| *at).collect();
        // The first look and the first write are reported as they come.
        let close = times.windows(2).skip(1).filter(|two| two[1] - two[0] < BETWEEN).count();
        assert!(times.len() >= 2 && close == 0, "a write every {pause} ms: {times:?}");
    }
}

#[test]
fn a_path_or_device_that_goes_comes_or_is_made_again_is_no_write() {
    let mut seen = WriteCounters::default();
    let both = |one, two| counters(&[("nvme0n1", 0)], &[("nvme0c0n1", one), ("nvme0c1n1", two)]);
    for (now, added, what) in [
        (counters(&[], &[]), 0, "no device"),
        (both(700, 300), 0, "a device"),
        (both(703, 302), 5, "writes on both"),
        (counters(&[("nvme0n1", 0)], &[("nvme0c1n1", 304)]), 2, "one path, and writes on it"),
        (both(1, 304), 0, "the other path, made again"),
        (both(3, 304), 2, "writes on it"),
        (counters(&[("nvme0n1", 0)], &[]), 0, "what could not be read"),
        (both(4, 305), 2, "and was written meanwhile"),
        (counters(&[("nvme1n1", 9)], &[("nvme1c4n1", 9)]), 0, "another device"),
        (counters(&[("nvme1n1", 12)], &[("nvme1c4n1", 11)]), 3, "a head that counts"),
        (counters(&[], &[]), 0, "no device"),
    ] {
        assert_eq!(seen.advance(now), added, "{what}");
    }
}

#[test]
fn who_opens_the_device_is_reported_although_nobody_writes() {
    let began = Instant::now();
    let mut counting = WriteCount::begin(began);
    let mut look = |at: u64, open: bool| counting.look(WriteCounters::default(), open, began + ms(at));
    let counted = |age: u64, open: bool| Some(Counted { writes: 0, last_write_age: ms(age), open });
    assert_eq!(look(0, false), counted(0, false));
    assert_eq!(look(500, false), None);
    assert_eq!(look(520, true), counted(520, true), "since when no write was seen");
    assert_eq!(look(540, false), None, "too soon");
    assert_eq!(look(560, true), None, "as it was reported");
    assert_eq!(look(780, false), counted(780, false));
}

#[test]
fn counters_are_those_of_the_device_and_its_paths() {
    let writes = |writes| Some(IoCounters { writes, ..IoCounters::default() });
    let mut view = view(vec![crate::testing::kernel::controller(0, 1, "live")]);
    assert!(!view.namespaces.is_empty(), "a device");
    let path = |name: &str, counters| NamespacePath {
        name: name.into(),
        controller: ControllerName::parse("nvme0").unwrap(),
        ana_state: None,
        size_bytes: None,
        counters,
    };
    let device = &mut view.namespaces[0];
    device.counters = writes(5);
    device.kind = NamespaceKind::Head { paths: vec![path("nvme0c0n1", writes(3)), path("nvme0c1n1", None)] };
    let name = device.name.clone();
    assert_eq!(WriteCounters::of(&view), counters(&[(&name, 5)], &[("nvme0c0n1", 3)]));
    view.namespaces.clear();
    assert_eq!(WriteCounters::of(&view), WriteCounters::default());
}

#[test]
fn a_pace_is_kept_within_bounds() {
    let pace = |every, lasts| CountPace::within_bounds(every, lasts);
    assert_eq!(pace(EVERY, ms(300_000)), CountPace { every: EVERY, lasts: ms(300_000) });
    assert_eq!(pace(Duration::ZERO, Duration::ZERO), CountPace { every: ms(10), lasts: Duration::ZERO });
    let most = CountPace { every: Duration::from_secs(1), lasts: Duration::from_secs(3600) };
    assert_eq!(pace(Duration::MAX, Duration::MAX), most);
}

/// Counts by a clock that jumps, at a device that has so many writes at the number of each look; gives what was reported
/// since the beginning, and the looks.
async fn counting(
    lasts: Duration,
    writes_at: impl Fn(u64) -> Option<u64>,
) -> (Vec<(Duration, Counted)>, u64) {
    let (began, looks, reports) = (Instant::now(), RefCell::new(0), RefCell::new(Vec::new()));
    let look = || async {
        *looks.borrow_mut() += 1;
        let writes = writes_at(*looks.borrow());
        writes.map(|writes| (counters(&[("nvme0n1", writes)], &[]), true))
    };
    let report = |counted| reports.borrow_mut().push((began.elapsed(), counted));
    count(CountPace::within_bounds(EVERY, lasts), look, report).await;
    (reports.into_inner(), looks.into_inner())
}

#[tokio::test(start_paused = true)]
async fn counting_ends_by_itself_and_says_what_was_left_to_say() {
    let (reports, looks) = counting(ms(1010), |look| Some(look / 2)).await;
    assert_eq!(looks, 51);
    let expected = [(Duration::ZERO, counted(0, 0)), (EVERY, counted(1, 0)), (ms(1010), counted(25, 30))];
    assert_eq!(reports, expected, "whoever still writes at the end has written so much");
    let (reports, _) = counting(ms(1010), |_| Some(7)).await;
    assert_eq!(reports, [(Duration::ZERO, counted(0, 0))], "nothing is left to say");
}

#[tokio::test(start_paused = true)]
async fn a_look_that_could_not_be_made_is_neither_a_write_nor_a_standstill() {
    let failing = |look: u64| (!(10..40).contains(&look)).then_some(if look < 40 { 5 } else { 6 });
    let (reports, _) = counting(ms(1000), failing).await;
    assert_eq!(reports[..2], [(Duration::ZERO, counted(0, 0)), (ms(780), counted(1, 0))]);
    let (reports, looks) = counting(ms(1000), |_| None).await;
    assert_eq!((reports.len(), looks > 40), (0, true), "nothing is known");
}

#[tokio::test(start_paused = true)]
async fn a_look_that_never_ends_does_not_outlast_the_counting() {
    let began = Instant::now();
    let look = std::future::pending;
    count(CountPace::within_bounds(EVERY, ms(500)), look, |_| ()).await;
    assert_eq!(began.elapsed(), ms(500));
}

#[tokio::test(start_paused = true)]
async fn writes_are_counted_under_the_grant_that_is_asked_for_alone() {
    let machine = Machine::new();
    let agent = Agent::with_stopped_clock(&machine.kernel, machine.dir.path());
    machine.kernel.change(|world| world.writes = 1000);
    agent.ready(1, &[1]).await;
    let begin = |seq: u64| {
        let (sender, reports) = tokio::sync::mpsc::unbounded_channel();
        let operation = OperationId::parse("op-1-99").unwrap();
        let pace = CountPace::within_bounds(ms(100), ms(60_000));
        let asked = CountRequest { operation, volume: volume(), epoch: epoch(seq), pace };
        let counting = agent.fleet.count(asked, move |counted| {
            let _ = sender.send(counted);
        });
        tokio::spawn(counting);
        reports
    };
    let (mut reports, mut of_another) = (begin(1), begin(2));
    assert_eq!(reports.recv().await.unwrap(), Counted { open: false, ..counted(0, 0) });
    machine.kernel.change(|world| world.writes = 1003);
    let first = reports.recv().await.unwrap();
    assert_eq!((first.writes, first.last_write_age, first.open), (3, Duration::ZERO, false));
    let rest = reports.recv().await.unwrap();
    assert!(rest.writes == 3 && rest.last_write_age > STANDSTILL, "{rest:?}");
    machine.kernel.change(|world| world.users = vec!["process 7 (qemu)".into()]);
    assert!(reports.recv().await.unwrap().open);
    assert!(of_another.try_recv().is_err(), "nothing can be said of that grant");
    // The time is over.
    while reports.recv().await.is_some() {}
    assert!(of_another.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn while_a_volume_is_written_nobody_searches_for_who_has_it_open() {
    let machine = Machine::new();
    let agent = Agent::with_stopped_clock(&machine.kernel, machine.dir.path());
    agent.ready(1, &[1]).await;
    let operation = OperationId::parse("op-1-99").unwrap();
    let pace = CountPace::within_bounds(ms(100), ms(60_000));
    let asked = CountRequest { operation, volume: volume(), epoch: epoch(1), pace };
    let (sender, mut reports) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(agent.fleet.count(asked, move |counted| {
        let _ = sender.send(counted);
    }));
    assert!(!reports.recv().await.unwrap().open);
    // A search would find nobody.
    let until = Instant::now() + ms(6000);
    while Instant::now() < until {
        machine.kernel.change(|world| world.writes += 1);
        tokio::time::sleep(ms(50)).await;
    }
    let mut last = false;
    while let Ok(report) = reports.try_recv() {
        last = report.open;
    }
    assert!(last, "whoever writes has it open");
    // Writing has ended: from then on a search says it.
    while last {
        last = reports.recv().await.unwrap().open;
    }
}

proptest! {
    /// Whatever is written when: each write that a look shows is reported by the end, and ages are true.
    #[test]
    fn all_writes_are_reported_by_the_end(steps in prop::collection::vec((1_u64..400, 0_u64..3), 1..60)) {
        let began = Instant::now();
        let mut counting = WriteCount::begin(began);
        let (mut at, mut writes, mut last_write, mut last) = (0, 40, None, None);
        for (pause, added) in steps {
            at += pause;
            writes += added;
            // The first look has nothing to compare with.
            if added > 0 && last.is_some() {
                last_write = Some(at);
            }
            let report = counting.look(counters(&[("nvme0n1", writes)], &[]), false, began + ms(at));
            if let Some(report) = report {
                prop_assert_eq!(report.last_write_age, ms(at - last_write.unwrap_or(0)));
                last = Some(report.writes);
            }
        }
        let total = counting.writes;
        let end = counting.end(false, began + ms(at + 1));
        prop_assert_eq!(end.map(|report| report.writes).or(last), Some(total));
    }
}
