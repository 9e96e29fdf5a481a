//! The store against crashes, full disks, damage, other programs' files and other hands.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cleat_rds::secret::{Era, MasterKey};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::database::Database;
use cleat_core::Verdict;

use super::opening::MIGRATIONS;
use super::*;
use crate::engine::read_records;

fn store_path(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("store")
}

fn write(name: &str, expected: Option<u64>, value: impl Into<Option<Value>>) -> Write {
    Write { key: Key::volume(name), expected: expected.map(Version), value: value.into() }
}

/// Opens, reads and closes.
fn load(path: &Path) -> Result<Loaded, OpenError> {
    Database::open(path).map(|(_, loaded)| loaded)
}

fn by_name(loaded: &Loaded) -> BTreeMap<&str, (u64, &Value)> {
    loaded.entries.iter().map(|e| (e.key.name.as_str(), (e.version.0, &e.value))).collect()
}

fn opened(path: &Path) -> Database {
    let (mut database, _) = Database::open(path).unwrap();
    database.take_term(1).unwrap();
    database
}

fn committed(database: &mut Database, write: Write) -> Version {
    database.commit(&[write]).remove(0).unwrap()
}

#[tokio::test]
async fn what_was_committed_is_there_again_under_a_higher_term() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let (store, loaded) = FileStore::open(&path).unwrap();
    assert_eq!(loaded, Loaded::default());
    assert_eq!(store.take_term(1000).await, Ok(1000));
    let both = vec![write("a", None, json!(1)), write("b", None, json!({"x": [1, null, "\n", "ü"]}))];
    assert_eq!(store.commit(both).await, [Ok(Version(1)), Ok(Version(1))]);
    assert_eq!(store.commit(vec![write("a", Some(1), None)]).await, [Ok(Version(2))]);
    let node = Write { key: Key::node("b"), expected: None, value: Some(json!("a node")) };
    assert_eq!(store.commit(vec![node]).await, [Ok(Version(1))], "a node may have a volume's name");
    drop(store);
    let (store, loaded) = FileStore::open(&path).unwrap();
    assert_eq!(loaded.term, 1000);
    assert_eq!(loaded.entries.len(), 2);
    assert_eq!(loaded.entries[0].value, json!({"x": [1, null, "\n", "ü"]}));
    assert_eq!(store.take_term(500).await, Ok(1001), "the clock has gone back, the term has not");
}

#[test]
fn a_store_that_was_moved_away_is_refused_and_lies_whole_beside_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let mut database = opened(&path);
    committed(&mut database, write("a", None, json!(1)));
    move_away(&path).unwrap();
    drop(database);
    let refused = load(&path).unwrap_err();
    let refused = cleat_runtime::exit::Causes(&refused).to_string();
    assert!(refused.contains("its records were moved to a cluster"), "{refused}");
    let kept = load(&dir.path().join("store.moved")).unwrap();
    assert_eq!(by_name(&kept), BTreeMap::from([("a", (1, &json!(1)))]));
}

#[test]
fn two_controllers_cannot_share_a_store_and_the_holder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let (first, _) = FileStore::open(&path).unwrap();
    let refused = FileStore::open(&path).unwrap_err();
    let own_pid = format!("pid {} on ", std::process::id());
    assert!(
        matches!(&refused, OpenError::Locked { holder, .. } if holder.starts_with(&own_pid)),
        "{refused}"
    );
    drop(first);
    FileStore::open(&path).unwrap();
}

#[test]
fn what_is_not_a_store_of_ours_is_refused_by_name_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let other = dir.path().join("other");
    let foreign = rusqlite::Connection::open(&other).unwrap();
    foreign.execute_batch("CREATE TABLE t (x)").unwrap();
    foreign.close().unwrap();
    let newer = dir.path().join("newer");
    load(&newer).unwrap();
    let connection = rusqlite::Connection::open(&newer).unwrap();
    connection.pragma_update(None, "user_version", 77).unwrap();
    connection.pragma_update(None, "journal_mode", "DELETE").unwrap();
    connection.close().unwrap();
    for (bytes, words) in [
        (b"cleat-store 1 6f9619ff-8b86-d011-b42d-00c04fc964ff\n".to_vec(), "journal of a version before"),
        (Vec::new(), "it is empty"),
        (b"#!/bin/sh\n".to_vec(), "does not begin like a SQLite database"),
        (std::fs::read(&other).unwrap(), "another program's"),
        (std::fs::read(&newer).unwrap(), "schema version 77, and this program knows versions up to 4"),
    ] {
        std::fs::write(&path, &bytes).unwrap();
        let error = load(&path).unwrap_err();
        let message = cleat_runtime::exit::Causes(&error).to_string();
        assert!(message.contains(words), "{message}");
        assert!(message.contains(&path.display().to_string()), "{message}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "left alone");
        assert!(!message.contains("backup"), "a backup forgets what was granted after it: {message}");
    }
}

#[test]
fn a_log_without_its_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    std::fs::write(dir.path().join("store-wal"), "left").unwrap();
    assert!(load(&path).unwrap_err().to_string().contains("its log"));
    assert!(!path.exists());
}

#[test]
fn an_older_schema_is_migrated_and_keeps_its_records() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    committed(&mut opened(&path), write("v", None, json!(1)));
    let next = ["", "", "", "", "ALTER TABLE volumes ADD COLUMN note TEXT NOT NULL DEFAULT 'new'"];
    let (database, loaded) = Database::open_with(&path, &next).unwrap();
    assert_eq!(by_name(&loaded), BTreeMap::from([("v", (1, &json!(1)))]));
    drop(database);
    assert!(matches!(
        load(&path).unwrap_err(),
        OpenError::Damaged { damage: Damage::Newer { found: 5, known: 4 }, .. }
    ));
    // A migration that fails changes nothing.
    let broken = ["", "", "", "", "", "CREATE TABLE half (x); SELECT nonsense"];
    assert!(Database::open_with(&path, &broken).is_err());
    Database::open_with(&path, &next).unwrap();
}

#[tokio::test]
async fn the_term_from_which_a_key_makes_secrets_is_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let [a, b] = [1, 2].map(|key| MasterKey::passing(&[key; 32]).id());
    let era = |first_term, key| Era { first_term, key };
    let mut expected = vec![era(0, a)];
    for (term, key, before) in [(10, a, a), (20, b, a), (30, b, a), (40, a, b)] {
        let (store, _) = FileStore::open(&path).unwrap();
        assert_eq!(store.take_term(term).await, Ok(term));
        if expected.last().unwrap().key != key {
            expected.push(era(term, key));
        }
        assert_eq!(store.take_key(key, before).await, Ok(expected.clone()));
    }
    let unmarked = dir.path().join("unmarked");
    let (store, _) = FileStore::open(&unmarked).unwrap();
    store.take_term(10).await.unwrap();
    let noted = store.take_key(b, a).await;
    assert_eq!(noted, Ok(vec![era(0, a), era(10, b)]), "what there was before was made with the old one");
}

#[test]
fn a_store_from_before_keys_were_noted_is_migrated() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let (mut database, _) = Database::open_with(&path, &MIGRATIONS[..1]).unwrap();
    database.take_term(1).unwrap();
    committed(&mut database, write("v", None, json!(1)));
    drop(database);
    let (mut database, loaded) = Database::open(&path).unwrap();
    assert_eq!(by_name(&loaded), BTreeMap::from([("v", (1, &json!(1)))]));
    let key = MasterKey::passing(&[1; 32]).id();
    database.take_term(2).unwrap();
    assert_eq!(database.take_key(key, key), Ok(vec![Era { first_term: 0, key }]));
}

#[test]
fn records_from_before_their_words_changed_are_migrated() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let (mut database, _) = Database::open_with(&path, &MIGRATIONS[..2]).unwrap();
    // As schema 2 had it: what was found on a node that is called like the word, of a volume that nobody published.
    let before = json!({"unsettled": false, "record": {
        "spec": {"id": "v", "access": "RWO", "subsystem_nqn": "", "portals": [], "size_bytes": 0, "min_fence": "node-gone"},
        "identity": {"namespace_uuid": "00000000-0000-0000-0000-000000000001", "nguid": ""},
        "attachments": [{
            "node": "Ghost", "host_nqn": "nqn.2026-01.test:a", "epoch": "1.1", "role": "primary", "read_only": false,
            "phase": "ghost", "since": 0, "proven": true, "boot_id": null, "may_land_until": null, "secret": null,
            "ghost": true,
        }, {
            "node": "b", "host_nqn": "nqn.2026-01.test:b", "epoch": "1.2", "role": "migration-target", "read_only": false,
            "phase": {"draining": {
                "cause": {"forced": {"by": "alice", "reason": "it hangs"}}, "fence": null, "evidence": {
                    "node": "b", "epoch": "1.2", "source": {"target-cut": {"acl": true, "secret": "1.3"}},
                    "drained": {"bound": {"until": 70}}, "at": 10, "word": {"by": "alice", "reason": "it hangs"},
                },
            }},
            "since": 0, "proven": true, "boot_id": null, "may_land_until": null, "secret": null,
        }],
        "migration": {
            "source": "Ghost", "source_epoch": "1.1", "target": "b", "target_epoch": "1.2", "result": "running",
            "steps": [["granted", 1], ["target-ready", 2]],
        },
        "fenced": [], "hidden": false, "secret": null, "deleting": false, "deleted": false,
        "past_evidence": [],
    }});
    committed(&mut database, write("v", None, before));
    drop(database);
    let records = read_records(load(&path).unwrap().entries).unwrap();
    let record = &records.volumes[0];
    assert_eq!((record.spec.subsystem_nqn.as_ref(), record.identity.as_ref().unwrap().nguid), (None, None));
    let attachment = &record.attachments[0];
    assert_eq!(
        (attachment.node.as_str(), attachment.phase.name(), attachment.stray),
        ("Ghost", "Stray", true)
    );
    let proof = record.attachments[1].evidence().unwrap();
    assert_eq!(
        (proof.source.name(), proof.verdict(cleat_core::UnixMillis(69))),
        ("TargetCut", Verdict::Unknown)
    );
    assert_eq!(proof.statement.as_ref().unwrap().by, "alice");
    let migration = record.migration.as_ref().unwrap();
    assert_eq!((migration.source.as_str(), migration.steps.len()), ("Ghost", 2));
}

#[test]
fn a_nodes_record_from_before_their_words_changed_is_migrated() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let (mut database, _) = Database::open_with(&path, &MIGRATIONS[..3]).unwrap();
    // The boot id is one of the words that changed, and a node may be called like a field.
    let before = json!({"node": "boot_id", "identity": {
        "host_nqn": "nqn.2026-01.test:a", "host_id": "00000000-0000-0000-0000-000000000001",
        "storage_addresses": ["10.0.1.7", "fd00::7"], "boot_id": "drained",
    }});
    committed(&mut database, Write { key: Key::node("boot_id"), expected: None, value: Some(before) });
    drop(database);
    let entries = load(&path).unwrap().entries;
    let node: cleat_core::NodeRecord = serde_json::from_value(entries[0].value.clone()).unwrap();
    assert_eq!((node.node.as_str(), node.identity.boot_id.as_str()), ("boot_id", "drained"));
    assert_eq!(node.identity.storage_addresses.len(), 2);
    assert_eq!(serde_json::to_value(&node).unwrap(), entries[0].value, "as it is written today");
    assert!(read_records(entries).is_ok());
}

#[test]
fn damage_in_the_database_is_refused_and_not_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let mut database = opened(&path);
    for n in 0..200 {
        committed(&mut database, write(&format!("v{n}"), None, json!("x".repeat(100))));
    }
    drop(database);
    // Folded into the database when it is opened.
    load(&path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let page = 4096 * 3;
    bytes[page..page + 64].fill(0xa5);
    std::fs::write(&path, &bytes).unwrap();
    let error = load(&path).unwrap_err();
    assert!(matches!(&error, OpenError::Damaged { damage: Damage::Corrupt { .. }, .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_write_against_another_version_is_a_conflict_of_its_own_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = opened(&store_path(&dir));
    committed(&mut database, write("a", None, json!(1)));
    let answers = database.commit(&[
        write("a", None, json!(2)),
        write("b", None, json!(2)),
        write("c", Some(5), None),
        write("a2", Some(1), json!(2)),
    ]);
    let conflict = |name: &str, expected: Option<u64>, found: Option<u64>| {
        let (key, expected, found) = (Key::volume(name), expected.map(Version), found.map(Version));
        Err(CommitError::Conflict { key, expected, found })
    };
    assert_eq!(answers[0], conflict("a", None, Some(1)));
    assert_eq!(answers[1], Ok(Version(1)), "the others are written");
    assert_eq!(answers[3], conflict("a2", Some(1), None));
    assert_eq!(answers[2], Ok(Version(6)), "gone is gone");
    assert_eq!(committed(&mut database, write("a", Some(1), json!(3))), Version(2));
}

#[test]
fn a_write_whose_answer_was_lost_is_the_same_write_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = opened(&store_path(&dir));
    for again in 0..2 {
        assert_eq!(committed(&mut database, write("a", None, json!(1))), Version(1), "{again}");
    }
    for again in 0..2 {
        assert_eq!(committed(&mut database, write("a", Some(1), json!(2))), Version(2), "{again}");
    }
    for again in 0..2 {
        assert_eq!(committed(&mut database, write("a", Some(2), None)), Version(3), "{again}");
    }
}

#[test]
fn after_another_took_a_term_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let mut database = opened(&path);
    database.break_connection();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute("UPDATE claim SET term = 9", []).unwrap();
    other.close().unwrap();
    let answers = database.commit(&[write("a", None, json!(1))]);
    assert!(
        matches!(&answers[0], Err(CommitError::LostClaim { reason }) if reason.contains("term 9")),
        "{answers:?}"
    );
    drop(database);
    assert_eq!(load(&path).unwrap().entries, []);
}

#[test]
fn terms_end_where_sqlite_has_no_higher_number() {
    let dir = tempfile::tempdir().unwrap();
    let (mut database, _) = Database::open(&store_path(&dir)).unwrap();
    assert_eq!(database.take_term(i64::MAX as u64), Ok(i64::MAX as u64));
    assert!(
        matches!(database.take_term(1), Err(CommitError::Fatal { reason }) if reason.contains("no higher one"))
    );
}

#[test]
fn after_an_io_error_it_is_read_again_and_goes_on_if_all_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = opened(&store_path(&dir));
    committed(&mut database, write("a", None, json!(1)));
    database.break_connection();
    assert_eq!(committed(&mut database, write("a", Some(1), json!(2))), Version(2));
}

#[test]
fn what_was_acknowledged_and_is_gone_after_an_io_error_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let mut database = opened(&path);
    committed(&mut database, write("a", None, json!(1)));
    database.break_connection();
    // As a disk would that had not kept what it synced.
    std::fs::remove_file(dir.path().join("store-wal")).unwrap();
    let answers = database.commit(&[write("b", None, json!(2))]);
    let lost = "version 1 of the record of volume a was acknowledged as durable and is not there";
    assert!(
        matches!(&answers[0], Err(CommitError::Fatal { reason }) if reason.contains(lost)),
        "{answers:?}"
    );
}

#[test]
fn commits_that_wait_share_a_transaction_but_never_two_of_one_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let database = opened(&path);
    let (send, asked) = mpsc::channel(64);
    let mut answers = Vec::new();
    let mut commit = |write| {
        let (done, answer) = oneshot::channel();
        assert!(send.try_send(file::StoreRequest::Commit { writes: vec![write], done }).is_ok());
        answers.push(answer);
    };
    for n in 0..30 {
        commit(write(&format!("v{n}"), None, json!(n)));
    }
    commit(write("v0", Some(1), json!("again")));
    drop(send);
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || file::write_all(database, asked));
    for (n, mut answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.try_recv().unwrap(), [Ok(Version(if n < 30 { 1 } else { 2 }))], "{n}");
    }
    let text = recorder.handle().render();
    for line in ["cleat_store_group_commits_sum 31", "cleat_store_group_commits_count 2"] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert_eq!(load(&path).unwrap().entries.len(), 30);
}

// Processes of their own: killed in the middle, or with a disk that is full.

const CHILD: &str = "CLEAT_STORE_TEST_CHILD";

/// What a child of this test program does with the store: its role, and where.
fn child() -> Option<(String, PathBuf)> {
    let text = std::env::var(CHILD).ok()?;
    let (role, path) = text.split_once('=')?;
    Some((role.to_owned(), path.into()))
}

fn spawn(role: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{}::child_process", module()), "--nocapture"])
        .env(CHILD, format!("{role}={}", path.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Lines that the child says for us.
fn said(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("> ").map(str::to_owned))
}

fn say(text: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "> {text}").unwrap();
    out.flush().unwrap();
}

/// Not a test of its own: what the tests below start as a process.
#[test]
fn child_process() {
    let Some((role, path)) = child() else { return };
    match role.as_str() {
        "commit" => commit_until_killed(&path),
        "fill" => fill_the_disk(&path),
        other => panic!("{other}"),
    }
}

const TRANSACTIONS: u64 = 1_000;

/// Each transaction writes two records with the same number, and goes on from what is there.
fn commit_until_killed(path: &Path) {
    let (mut database, loaded) = Database::open(path).unwrap();
    database.take_term(1).unwrap();
    let there: Vec<(u64, u64)> =
        loaded.entries.iter().map(|e| (e.version.0, e.value["n"].as_u64().unwrap())).collect();
    let mut version = there.first().map(|(version, _)| *version);
    let first = there.first().map_or(0, |(_, n)| *n);
    for n in first + 1..=first + TRANSACTIONS {
        let value = |pad: usize| json!({"n": n, "pad": "x".repeat(pad)});
        let both = [write("a", version, value(700)), write("b", version, value(n as usize % 5_000))];
        let answers = database.commit(&both);
        version = Some(answers[0].clone().unwrap().0);
        assert_eq!(answers[0], answers[1]);
        say(&n.to_string());
    }
    say("all");
}

#[test]
fn a_process_killed_anywhere_in_1000_commits_loses_nothing_acknowledged() {
    let seed = std::env::var("CLEAT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1_u64);
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let mut before = 0;
    for round in 0..12_u64 {
        let (after, micros) = (next(300), next(3_000));
        let mut child = spawn("commit", &path);
        let mut acknowledged = before;
        for line in said(&mut child) {
            let n: u64 = line.parse().unwrap_or_else(|_| panic!("seed {seed}: it said {line:?}"));
            acknowledged = n;
            if n == before + 1 + after {
                // Anywhere in what comes next, an opening of the log included.
                let until = std::time::Instant::now() + std::time::Duration::from_micros(micros);
                while std::time::Instant::now() < until {
                    std::hint::spin_loop();
                }
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let loaded = load(&path).unwrap();
        let there = by_name(&loaded);
        let n = there["a"].1["n"].as_u64().unwrap();
        assert!(
            n >= acknowledged,
            "seed {seed}, round {round}: {acknowledged} was acknowledged, {n} is there"
        );
        assert!(n <= acknowledged + 1, "seed {seed}, round {round}: one was under way");
        assert_eq!(there["b"].1["n"], n, "seed {seed}, round {round}: all or none");
        assert_eq!((there["a"].0, there["b"].0), (n, n), "seed {seed}, round {round}");
        assert_eq!(loaded.term, round + 1, "one term for each run");
        before = n;
    }
}

/// In a namespace of its own, with a disk of 1 MiB: writes until it is full, goes on trying, and says what it is told.
fn fill_the_disk(path: &Path) {
    let ballast = path.with_file_name("ballast");
    let mut database = opened(path);
    let mut version = None;
    let mut written = 0;
    let mut full = 0;
    for n in 0..10_000_u64 {
        let value = json!({"n": n, "pad": "x".repeat(9_000)});
        match database.commit(&[write(&format!("v{written}"), None, value)]).remove(0) {
            Ok(made) => {
                version = Some(made);
                written += 1;
                if full > 0 {
                    break;
                }
                if written == 3 {
                    // Somebody else takes most of what is left.
                    std::fs::write(&ballast, vec![1; 500 << 10]).unwrap();
                }
            }
            Err(CommitError::Retry { reason }) => {
                assert!(reason.contains("no room") || reason.contains("check the disk"), "{reason}");
                full += 1;
                if full == 20 {
                    say(&format!("full: {reason}"));
                    std::fs::remove_file(&ballast).unwrap();
                }
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(full >= 20 && version.is_some(), "{full}");
    drop(database);
    assert_eq!(load(path).unwrap().entries.len(), written);
    say("it ended by itself");
}

#[test]
fn a_full_disk_refuses_until_there_is_room_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let program = std::env::current_exe().unwrap();
    let script = format!(
        "mount -t tmpfs -o size=1m none '{dir}' && exec '{program}' --exact {module}::child_process --nocapture",
        dir = dir.path().display(),
        program = program.display(),
        module = module()
    );
    let mut child = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .env(CHILD, format!("fill={}", store_path(&dir).display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: Vec<String> = said(&mut child).collect();
    assert!(child.wait().unwrap().success(), "{lines:?}");
    assert!(lines[0].starts_with("full: no room on the disk"), "{lines:?}");
    assert_eq!(lines[1], "it ended by itself");
}

/// This module's path as the test runner knows it: without the crate.
fn module() -> &'static str {
    module_path!().split_once("::").unwrap().1
}
