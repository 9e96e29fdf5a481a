use std::sync::{Arc, Mutex};

use super::super::scripted::{Script, Scripted};
use super::*;

/// A source and a target node, and what both were asked, in one order.
struct Pair {
    asked: Arc<Mutex<Vec<String>>>,
    target_status: Arc<Mutex<&'static str>>,
}

fn event(status: &str) -> Value {
    json!({ "event": "MIGRATION", "data": { "status": status } })
}

impl Pair {
    fn new() -> Self {
        Self { asked: Arc::default(), target_status: Arc::new(Mutex::new("inmigrate")) }
    }

    /// A target node that has the guest after `looks` looks.
    fn target(&self, looks: usize) -> Scripted {
        let (status, mut left) = (Arc::clone(&self.target_status), looks);
        let script: Script = Box::new(move |command, _| match command {
            "query-status" => {
                let now = *status.lock().expect("no panic");
                let loading = now == "loading" && left > 0;
                left -= usize::from(loading);
                let said = match (now, loading) {
                    ("loading", true) => "inmigrate",
                    ("loading", false) => "paused",
                    (other, _) => other,
                };
                vec![json!({ "return": { "status": said } })]
            }
            "cont" => vec![json!({ "event": "RESUME" }), json!({ "return": {} })],
            _ => vec![json!({ "return": {} })],
        });
        Scripted::serve("target", &self.asked, script)
    }

    /// A source whose migration ends so.
    fn source(&self, end: &'static str) -> Scripted {
        let (status, mut looks) = (Arc::clone(&self.target_status), 0);
        let script: Script = Box::new(move |command, _| match command {
            "migrate" => {
                *status.lock().expect("no panic") = "loading";
                vec![
                    json!({ "return": {} }),
                    event("setup"),
                    event("active"),
                    json!({ "event": "STOP" }),
                    event(end),
                ]
            }
            "migrate-continue" => vec![json!({ "return": {} }), event("device"), event("completed")],
            "query-migrate" => {
                looks += 1;
                // As QEMU 7.2 was seen to do it: done, and no figures yet.
                let total = if looks > 1 { 261 } else { 0 };
                let status = if end == "pre-switchover" { "completed" } else { end };
                let why = "Unable to write to socket: Broken pipe";
                vec![json!({ "return":
                    { "status": status, "total-time": total, "downtime": 39, "error-desc": why } })]
            }
            _ => vec![json!({ "return": {} })],
        });
        Scripted::serve("source", &self.asked, script)
    }
}

fn listen() -> SocketAddr {
    ([10, 77, 3, 12], 4445).into()
}

#[test]
fn the_target_node_goes_on_only_when_the_source_is_done() {
    let pair = Pair::new();
    let (source, target) = (pair.source("completed"), pair.target(3));
    let came = migrate(&source.connect(), &target.connect(), listen(), &MigrateSettings::default());
    let came = came.expect("a migration");
    assert_eq!(came.end, MigrateEnd::Completed);
    assert_eq!(came.downtime, Some(Duration::from_millis(39)));
    assert!(came.pause().is_some(), "{came:?}");
    assert_eq!(
        source.asked(),
        [
            "source: migrate-set-capabilities",
            "source: migrate-set-parameters",
            "target: migrate-set-capabilities",
            "target: migrate-set-parameters",
            "target: migrate-incoming",
            "source: migrate",
            "source: query-migrate",
            "source: query-migrate",
            "target: cont",
        ]
    );
}

#[test]
fn a_migration_that_fails_lets_nothing_run_on_the_target_node() {
    for (status, end) in [
        ("failed", MigrateEnd::Failed("Unable to write to socket: Broken pipe".to_owned())),
        ("cancelled", MigrateEnd::Cancelled),
    ] {
        let pair = Pair::new();
        let (source, target) = (pair.source(status), pair.target(0));
        let came = migrate(&source.connect(), &target.connect(), listen(), &MigrateSettings::default());
        let came = came.expect("an end");
        assert_eq!((&came.end, came.resumed), (&end, None));
        assert!(!source.asked().contains(&"target: cont".to_owned()));
    }
}

#[test]
fn what_is_done_meanwhile_comes_once_after_it_began() {
    let pair = Pair::new();
    let (source, target) = (pair.source("cancelled"), pair.target(0));
    let (from, to) = (source.connect(), target.connect());
    let cancel = || from.execute("migrate_cancel", json!({})).map(drop);
    let came = migrate_with(&from, &to, listen(), &MigrateSettings::default(), cancel).expect("an end");
    assert_eq!(came.end, MigrateEnd::Cancelled);
    let asked = source.asked();
    let place = |command: &str| asked.iter().position(|asked| asked.ends_with(command));
    assert!(place(": migrate") < place("migrate_cancel") && place("migrate_cancel").is_some(), "{asked:?}");
    assert_eq!(asked.iter().filter(|asked| asked.ends_with("migrate_cancel")).count(), 1);
}

#[test]
fn a_pause_before_the_switchover_is_ended_once() {
    let pair = Pair::new();
    let (source, target) = (pair.source("pre-switchover"), pair.target(0));
    let settings = MigrateSettings { pause_before_switchover: true, ..MigrateSettings::default() };
    let came = migrate(&source.connect(), &target.connect(), listen(), &settings).expect("a migration");
    assert_eq!(came.end, MigrateEnd::Completed);
    let continued = source.asked().iter().filter(|asked| asked.ends_with("migrate-continue")).count();
    assert_eq!(continued, 1);
}

#[test]
fn a_target_node_that_waits_for_nothing_is_refused() {
    let pair = Pair::new();
    *pair.target_status.lock().expect("no panic") = "running";
    let (source, target) = (pair.source("completed"), pair.target(0));
    let error = migrate(&source.connect(), &target.connect(), listen(), &MigrateSettings::default());
    assert!(error.expect_err("it runs").to_string().contains("is running and waits for no migration"));
    assert!(source.asked().is_empty());
}
