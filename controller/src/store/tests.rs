//! The store against crashes, torn writes, damage and failing disks.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::journal::{Journal, Medium};
use super::*;

type Records = BTreeMap<String, Value>;

fn put(key: &str, value: Value) -> Change {
    Change::Put(key.into(), value)
}

fn store_path(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("store")
}

/// Opens, reads and closes.
fn load(path: &Path) -> Result<Loaded, OpenError> {
    Journal::open(path, 0).map(|(_, loaded)| loaded)
}

fn damage(path: &Path) -> Damage {
    match load(path) {
        Err(OpenError::Damaged { damage, .. }) => damage,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_was_committed_is_there_again_under_a_higher_term() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let (store, loaded) = FileStore::open(&path, 1000).unwrap();
    assert_eq!(loaded, Loaded { term: 1000, records: Records::new() });
    store.commit(vec![put("a", json!(1)), put("b", json!({"x": [1, null, "\n"]}))]).await.unwrap();
    store.commit(vec![Change::Delete("a".into())]).await.unwrap();
    drop(store);
    let (store, loaded) = FileStore::open(&path, 500).unwrap();
    assert_eq!(loaded.term, 1001, "the clock has gone back, the term has not");
    assert_eq!(loaded.records, Records::from([("b".into(), json!({"x": [1, null, "\n"]}))]));
    drop(store);
    assert_eq!(FileStore::open(&path, 5000).unwrap().1.term, 5000);
}

#[test]
fn two_controllers_cannot_share_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let (first, _) = FileStore::open(&path, 0).unwrap();
    let refused = FileStore::open(&path, 0).unwrap_err();
    let own_pid = format!("pid {}", std::process::id());
    assert!(matches!(&refused, OpenError::Locked { holder, .. } if *holder == own_pid), "{refused}");
    drop(first);
    FileStore::open(&path, 0).unwrap();
}

#[test]
fn another_version_and_another_file_are_refused_by_name_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    load(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap().replacen("cleat-store 1", "cleat-store 2", 1);
    for (text, expected) in [
        (text.as_str(), Damage::OtherVersion { found: 2 }),
        ("", Damage::NotAStore),
        ("#!/bin/sh\n", Damage::NotAStore),
        ("cleat-store 1 nonsense\n", Damage::NotAStore),
    ] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(damage(&path), expected);
        let message = cleat_runtime::exit::Causes(&load(&path).unwrap_err()).to_string();
        assert!(message.contains(&path.display().to_string()), "{message}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}

/// A journal of three commits: its bytes, and where each of its lines begins.
fn three_commits(path: &Path) -> (Vec<u8>, Vec<usize>) {
    let (mut journal, _) = Journal::open(path, 7).unwrap();
    for n in 0..3 {
        journal.commit(vec![put(&format!("k{n}"), json!({"n": n, "text": "x".repeat(20)}))]).unwrap();
    }
    drop(journal);
    let bytes = std::fs::read(path).unwrap();
    let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let begins = std::iter::once(0).chain(ends).filter(|at| *at < bytes.len()).collect();
    (bytes, begins)
}

#[test]
fn damage_anywhere_in_what_was_durable_is_refused_with_its_offset() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let (bytes, begins) = three_commits(&path);
    let last = bytes.len() - 1;
    for at in 0..last {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x41;
        if damaged[at] == 0 {
            continue; // a hole, which is another case
        }
        std::fs::write(&path, &damaged).unwrap();
        let line = begins.iter().rev().find(|begin| **begin <= at).copied().unwrap();
        match damage(&path) {
            Damage::Corrupt { offset, .. } => assert_eq!(offset, line as u64, "byte {at}"),
            Damage::NotAStore | Damage::OtherVersion { .. } => assert_eq!(line, 0, "byte {at}"),
        }
        assert_eq!(std::fs::read(&path).unwrap(), damaged, "left alone");
    }
    // A line that is missing, and one that is there twice.
    let (second, third) = (begins[2], begins[3]);
    let missing = [&bytes[..second], &bytes[third..]].concat();
    let twice = [&bytes[..third], &bytes[second..third], &bytes[third..]].concat();
    for (damaged, at) in [(missing, second), (twice, third)] {
        std::fs::write(&path, damaged).unwrap();
        assert!(matches!(damage(&path), Damage::Corrupt { offset, .. } if offset == at as u64));
    }
}

#[test]
fn holes_are_a_torn_write_at_the_end_and_damage_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let (bytes, begins) = three_commits(&path);
    let last = *begins.last().unwrap();
    let mut torn = bytes.clone();
    torn[last..last + 16].fill(0);
    let zeros = [bytes.as_slice(), &[0; 512]].concat();
    for (tail, expected) in [(torn, 2), (zeros, 3)] {
        std::fs::write(&path, tail).unwrap();
        assert_eq!(load(&path).unwrap().records.len(), expected);
        assert_eq!(load(&path).unwrap().records.len(), expected, "and it can be appended to");
    }
    let mut holed = bytes.clone();
    holed[begins[2]..begins[2] + 16].fill(0);
    std::fs::write(&path, holed).unwrap();
    assert!(matches!(damage(&path), Damage::Corrupt { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever was committed, and wherever the file is cut off: what is read is a prefix of the commits, whole.
    #[test]
    fn a_file_cut_anywhere_holds_a_prefix_of_the_commits(
        commits in prop::collection::vec(prop::collection::vec(change(), 1..4), 1..8),
        compact in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = store_path(&dir);
        let (mut journal, _) = Journal::open(&path, 7).unwrap();
        if compact {
            journal.set_compact_at(400);
        }
        let mut history = vec![Records::new()];
        for commit in &commits {
            journal.commit(commit.clone()).unwrap();
            let mut state = history.last().unwrap().clone();
            commit.iter().for_each(|change| record::apply(&mut state, change.clone()));
            history.push(state);
        }
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        prop_assert_eq!(&load(&path).unwrap().records, history.last().unwrap());
        if compact {
            return Ok(()); // a compacted journal begins with a state, not with the first commit
        }
        let header = record::scan(&whole).map(|scan| record::header(scan.id).len()).unwrap();
        let mut seen = 0;
        for cut in header..=whole.len() {
            let scan = record::scan(&whole[..cut]).unwrap();
            // States may repeat, so the longest prefix that fits is not told apart from a shorter one by its state.
            let at = (seen..history.len()).find(|at| history[*at] == scan.records);
            prop_assert!(at.is_some(), "cut at {} of {}", cut, whole.len());
            seen = at.unwrap();
            prop_assert!(scan.valid_bytes <= cut as u64);
        }
        prop_assert_eq!(&record::scan(&whole).unwrap().records, history.last().unwrap());
    }
}

fn change() -> impl Strategy<Value = Change> {
    let key = prop::sample::select(vec!["a", "b", "volume/pvc-1", "ü\n\""]);
    prop_oneof![
        3 => (key.clone(), any::<i64>(), ".{0,12}").prop_map(|(key, n, text)| put(key, json!({"n": n, "t": text}))),
        1 => key.prop_map(|key| Change::Delete(key.into())),
    ]
}

#[test]
fn a_journal_that_is_mostly_history_is_rewritten_and_keeps_state_and_term() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let (mut journal, loaded) = Journal::open(&path, 42).unwrap();
    let mut largest = 0;
    for n in 0..600 {
        journal.commit(vec![put("k", json!({"n": n, "pad": "x".repeat(1000)}))]).unwrap();
        largest = largest.max(std::fs::metadata(&path).unwrap().len());
    }
    drop(journal);
    assert!(largest < 300 << 10, "{largest}");
    let again = load(&path).unwrap();
    assert_eq!(again.records["k"]["n"], 599);
    assert_eq!(again.term, loaded.term + 1);
    assert!(!dir.path().join("store.new").exists());
}

#[test]
fn what_a_crash_left_beside_the_store_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    three_commits(&path);
    std::fs::write(dir.path().join("store.new"), "half a rewr").unwrap();
    assert_eq!(load(&path).unwrap().records.len(), 3);
    assert!(!dir.path().join("store.new").exists());
}

/// Counts syncs, fails from the given one on, and may wait in its first.
struct Faulty {
    syncs: Arc<AtomicUsize>,
    good: usize,
    hold: Option<mpsc::Receiver<()>>,
}

impl Write for Faulty {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Medium for Faulty {
    fn sync(&mut self) -> io::Result<()> {
        if let Some(hold) = self.hold.take() {
            hold.recv().unwrap();
        }
        let before = self.syncs.fetch_add(1, Ordering::SeqCst);
        if before < self.good { Ok(()) } else { Err(io::Error::from_raw_os_error(5)) }
    }
}

fn faulty(
    dir: &tempfile::TempDir,
    good: usize,
    hold: Option<mpsc::Receiver<()>>,
) -> (FileStore, Arc<AtomicUsize>) {
    let (mut journal, _) = Journal::open(&store_path(dir), 0).unwrap();
    let syncs = Arc::new(AtomicUsize::new(0));
    journal.set_medium(Box::new(Faulty { syncs: Arc::clone(&syncs), good, hold }));
    (FileStore::start(journal), syncs)
}

#[tokio::test]
async fn after_one_failed_fsync_nothing_more_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (store, syncs) = faulty(&dir, 1, None);
    store.commit(vec![put("a", json!(1))]).await.unwrap();
    assert!(!store.failed().is_cancelled());
    for _ in 0..3 {
        let error = store.commit(vec![put("a", json!(2))]).await.unwrap_err();
        let text = cleat_runtime::exit::Causes(&error).to_string();
        assert!(text.contains("fsync") && text.contains("store"), "{text}");
    }
    assert_eq!(syncs.load(Ordering::SeqCst), 2);
    assert!(store.failed().is_cancelled());
}

#[tokio::test]
async fn commits_at_once_share_fsyncs() {
    let dir = tempfile::tempdir().unwrap();
    let (release, hold) = mpsc::channel();
    let (store, syncs) = faulty(&dir, usize::MAX, Some(hold));
    let commit = |n: u32| {
        let store = store.clone();
        async move { store.commit(vec![put(&format!("k{n}"), json!(n))]).await }
    };
    // Few enough that one poll queues them all: tokio makes a task yield after 128 operations.
    let mut all = Box::pin(futures_util::future::join_all((0..30).map(commit)));
    assert!(futures_util::poll!(&mut all).is_pending(), "all are queued while the first fsync is under way");
    release.send(()).unwrap();
    for result in all.await {
        result.unwrap();
    }
    // The first takes what has come until then, the next all the rest.
    let syncs = syncs.load(Ordering::SeqCst);
    assert!(syncs <= 2, "{syncs}");
}

const CHILD: &str = "CLEAT_STORE_TEST_CHILD";

/// Not a test of its own: the process that `a_killed_process_loses_nothing_it_was_told_is_durable` kills.
#[test]
fn child_that_commits_until_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let (store, _) = FileStore::open(Path::new(&path), 0).unwrap();
    let mut out = io::stdout();
    for n in 0..u64::MAX {
        store.commit_blocking(vec![put("n", json!(n)), put("twin", json!(n))]).unwrap();
        writeln!(out, "durable {n}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn a_killed_process_loses_nothing_it_was_told_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    for round in 0..3u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("{}::child_that_commits_until_killed", module()), "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut acknowledged = None;
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for line in lines.map_while(Result::ok) {
            let Some(n) = line.strip_prefix("durable ").and_then(|n| n.parse::<u64>().ok()) else { continue };
            if n == 20 * (round + 1) {
                child.kill().unwrap();
            }
            acknowledged = Some(n);
        }
        child.wait().unwrap();
        let loaded = load(&path).unwrap();
        let n = loaded.records["n"].as_u64().unwrap();
        assert!(Some(n) >= acknowledged, "{acknowledged:?} was acknowledged, {n} is there");
        assert_eq!(loaded.records["n"], loaded.records["twin"], "all or none");
        assert_eq!(loaded.term, 2 * round + 2, "one term for each run");
    }
}

/// This module's path as the test runner knows it: without the crate.
fn module() -> &'static str {
    module_path!().split_once("::").unwrap().1
}
