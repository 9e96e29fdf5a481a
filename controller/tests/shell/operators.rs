//! What operators see, over the service and with `cleatctl` itself.

use std::ffi::OsString;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cleat_proto::cleat::v1 as proto;
use proto::volume_state::Phase;
use proto::watch_event::Kind;
use tonic::{Code, Streaming};

use crate::agent::OnAttach;
use crate::world::{RWO, World, eventually};

async fn next(events: &mut Streaming<proto::WatchEvent>) -> Kind {
    let event = tokio::time::timeout(Duration::from_secs(20), events.message()).await.expect("an event");
    event.unwrap().unwrap().kind.unwrap()
}

async fn notice(events: &mut Streaming<proto::WatchEvent>, reason: &str) -> proto::Notice {
    loop {
        if let Kind::Notice(notice) = next(events).await
            && notice.reason == reason
        {
            return notice;
        }
    }
}

#[tokio::test]
async fn a_watcher_sees_everything_as_it_is_and_then_what_changes() {
    let (mut world, csi, [(_, agent)]) = World::with_volume("pvc-1", ["node-a"]).await;
    csi.publish("pvc-1", "node-a", RWO).await.unwrap();
    let mut events = world.operator().await.watch(proto::WatchRequest {}).await.unwrap().into_inner();
    let Kind::Volume(volume) = next(&mut events).await else { panic!("the volume first") };
    assert_eq!(volume.attachments[0].phase, "Ready");
    assert_eq!(volume.attachments[0].reported.as_ref().unwrap().paths.len(), 2);
    let Kind::Node(node) = next(&mut events).await else { panic!("then the node") };
    assert_eq!((node.session.as_str(), node.standing.as_str()), ("connected", "Admitted"));
    assert_eq!(next(&mut events).await, Kind::Synced(true));

    agent.delta("pvc-1", Phase::Degraded, 1).await;
    let degraded = notice(&mut events, "volume_degraded").await;
    assert_eq!((degraded.volume_id.as_str(), degraded.node_id.as_str()), ("pvc-1", "node-a"));
    assert!(degraded.message.contains("live paths: 1"), "{degraded:?}");
    agent.delta("pvc-1", Phase::Ready, 2).await;
    notice(&mut events, "volume_recovered").await;
    let refused = csi.publish("pvc-1", "node-b", RWO).await.unwrap_err();
    assert_eq!(notice(&mut events, "refused").await.message, refused.message());
    csi.unpublish("pvc-1", "node-a").await.unwrap();
    notice(&mut events, "detached").await;
    csi.delete("pvc-1").await.unwrap();
    loop {
        if let Kind::VolumeGone(volume) = next(&mut events).await {
            assert_eq!(volume, "pvc-1");
            break;
        }
    }
    world.stop().await.unwrap();
    let end = loop {
        match events.message().await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert_eq!(end.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_watcher_that_fell_behind_is_sent_everything_again() {
    let (world, csi, [(_, agent)]) = World::with_volume("pvc-1", ["node-a"]).await;
    csi.publish("pvc-1", "node-a", RWO).await.unwrap();
    let mut events = world.operator().await.watch(proto::WatchRequest {}).await.unwrap().into_inner();
    while next(&mut events).await != Kind::Synced(true) {}
    // More than what is held for a watcher that does not read, and than what fits into its connection (2 MiB).
    for _ in 0..6000 {
        agent.delta("pvc-1", Phase::Degraded, 1).await;
        agent.delta("pvc-1", Phase::Ready, 2).await;
    }
    agent.delta("pvc-1", Phase::Lost, 0).await;
    eventually("everything is heard", async || {
        let request = proto::GetVolumeRequest { volume_id: "pvc-1".into() };
        let volume = world.operator().await.get_volume(request).await.unwrap().into_inner();
        volume.attachments[0].reported.as_ref().is_some_and(|reported| reported.phase() == Phase::Lost)
    })
    .await;
    while next(&mut events).await != Kind::Synced(false) {}
    // It may have fallen behind before the last change, and once more by then.
    let mut synced_with = None;
    while synced_with != Some(Phase::Lost) {
        match next(&mut events).await {
            Kind::Volume(volume) => {
                synced_with = Some(volume.attachments[0].reported.as_ref().unwrap().phase())
            }
            Kind::Synced(whole) => assert!(!whole || synced_with.is_some(), "the volume first"),
            _ => {}
        }
    }
    while next(&mut events).await != Kind::Synced(true) {}
}

#[tokio::test]
async fn what_is_not_known_is_said_so() {
    let world = World::started().await;
    let mut operator = world.operator().await;
    let volume = |id: &str| proto::GetVolumeRequest { volume_id: id.into() };
    assert_eq!(operator.get_volume(volume("pvc-1")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(operator.get_volume(volume("../x")).await.unwrap_err().code(), Code::InvalidArgument);
    let node = proto::GetNodeRequest { node_id: "node-a".into() };
    assert_eq!(operator.get_node(node).await.unwrap_err().code(), Code::NotFound);
    let tickets =
        operator.list_tickets(proto::ListTicketsRequest::default()).await.unwrap().into_inner().tickets;
    assert_eq!(tickets, [], "there are none");
}

/// Runs all of `cleatctl` but its `main` against the world; gives exit code, standard output and standard error.
pub async fn cleatctl(world: &World, words: &[&str]) -> (u8, String, String) {
    cleatctl_of(world, "alice", words).await
}

/// The same as this operator, where there is TLS.
pub async fn cleatctl_of(world: &World, name: &str, given: &[&str]) -> (u8, String, String) {
    let certificates = world.certificates.as_ref();
    let tls = certificates.map_or_else(|| vec!["--plaintext".to_owned()], |made| made.cleatctl(name));
    cleatctl_with(world, tls, given).await
}

/// The same with these options for who asks.
pub async fn cleatctl_with(world: &World, who: Vec<String>, given: &[&str]) -> (u8, String, String) {
    let words = command_line(world, who, given);
    let run = tokio::task::spawn_blocking(|| {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = cleatctl::run(
            words,
            &mut cleatctl::Console { out: &mut out, err: &mut err, width: None, height: None, color: false },
        );
        (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    });
    tokio::time::timeout(Duration::from_secs(20), run).await.expect("it ends").unwrap()
}

fn command_line(world: &World, tls: Vec<String>, given: &[&str]) -> Vec<OsString> {
    let words = ["cleatctl", "--controller", &world.operators_at().to_string()].map(str::to_owned);
    words.into_iter().chain(tls).chain(given.iter().map(ToString::to_string)).map(OsString::from).collect()
}

#[tokio::test]
async fn completion_offers_the_volumes_and_nodes_of_the_controller() {
    let (world, csi, [(_, _agent)]) = World::with_volume("vm-1", ["node-a"]).await;
    csi.publish("vm-1", "node-a", RWO).await.unwrap();
    let offered = async |given: &[&str]| {
        let words = command_line(&world, vec!["--plaintext".to_owned()], given);
        tokio::task::spawn_blocking(|| cleatctl::completions(words)).await.unwrap()
    };
    // A busy machine may take longer than somebody who has pressed a key waits.
    eventually("volumes", async || offered(&["explain", ""]).await == ["vm-1"]).await;
    eventually("nodes", async || offered(&["fence", "vm-1", "n"]).await == ["node-a"]).await;
    eventually("nodes", async || offered(&["node", "declare-gone", ""]).await == ["node-a"]).await;
    assert!(offered(&["explain", "x"]).await.is_empty());
}

#[tokio::test]
async fn cleatctl_tells_what_is_and_what_waits() {
    let (world, csi, [(_, _one), (b, two)]) = World::with_volume("vm-1", ["node-a", "node-b"]).await;
    csi.publish("vm-1", "node-a", crate::world::RWX).await.unwrap();
    *b.on_attach.lock().unwrap() = OnAttach::Hold;
    let publishing = tokio::spawn({
        let csi = csi.clone();
        async move { csi.publish("vm-1", "node-b", crate::world::RWX).await }
    });
    two.told_to_attach("vm-1").await;

    let (code, volumes, _) = cleatctl(&world, &["volumes"]).await;
    assert_eq!(code, 0);
    assert!(volumes.starts_with("VOLUME  ACCESS     SIZE"), "{volumes}");
    assert!(volumes.contains("node-a  primary") && volumes.contains("node-b  migration-target"), "{volumes}");
    let (_, nodes, _) = cleatctl(&world, &["nodes"]).await;
    assert!(nodes.contains("node-b  connected") && nodes.contains("10.0.1.2,10.0.2.2"), "{nodes}");
    let (_, migrations, _) = cleatctl(&world, &["migrations"]).await;
    assert!(migrations.contains("vm-1    node-a  node-b  running"), "{migrations}");
    let (_, drawn, _) = cleatctl(&world, &["migration", "vm-1"]).await;
    assert!(drawn.starts_with("Volume vm-1 from node node-a to node node-b: running\n"), "{drawn}");
    let waits =
        "  node node-b (Connecting) waits for the agent of node node-b to connect and prove that it can use";
    assert!(drawn.contains(waits), "{drawn}");
    let (_, explained, _) = cleatctl(&world, &["explain", "vm-1"]).await;
    for words in [
        "Volume vm-1 (RWX block)",
        "Only nodes node-a and node-b may write to it.",
        "Node node-b (migration-target): Connecting since 20",
        "waits for the agent of node node-b to connect and prove that it can use the device",
        "path 10.0.1.100:4420 (nvme1): live, optimized",
        "publish for node node-b since 20",
    ] {
        assert!(explained.contains(words), "{words:?} is not in:\n{explained}");
    }
    let (_, json, _) = cleatctl(&world, &["explain", "vm-1", "--output", "json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["attachments"][1]["phase"], "Connecting");
    assert_eq!(json["waiting"][0]["request"], "publish");
    let (_, yaml, _) = cleatctl(&world, &["-o", "yaml", "migrations"]).await;
    assert!(yaml.contains("result: running\n") && yaml.contains("target_node_id: node-b\n"), "{yaml}");
    let (_, colored, _) = cleatctl(&world, &["volumes", "--color", "always"]).await;
    assert!(colored.contains("\u{1b}[32mReady\u{1b}[0m"), "{colored}");

    let (code, _, complaint) = cleatctl(&world, &["migration", "vm-2"]).await;
    assert_eq!(code, 1);
    assert!(complaint.starts_with("cleatctl: cannot show a migration of vm-2: "), "{complaint}");
    let (code, _, complaint) = cleatctl(&world, &["explain", "vm-2"]).await;
    assert_eq!(code, 1);
    assert!(complaint.contains("volume vm-2 is not tracked"), "{complaint}");
    let (code, _, complaint) = cleatctl(&world, &["explain", "vm-1", "--tls-ca", "/none"]).await;
    assert_eq!(code, 64, "{complaint}");
    publishing.abort();
}

/// Standard output that a test reads while the program still runs.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    /// The document in its last line.
    fn last(&self) -> serde_json::Value {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let whole = text.rsplit_once('\n').map(|(whole, _)| whole).unwrap_or_default();
        whole.lines().last().map(|line| serde_json::from_str(line).unwrap()).unwrap_or_default()
    }
}

impl std::io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_migration_that_is_watched_is_drawn_with_each_change() {
    let (mut world, csi, [(_, _one), (_, _two)]) = World::with_volume("vm-1", ["node-a", "node-b"]).await;
    let out = Shared::default();
    let watching = tokio::task::spawn_blocking({
        let words = ["migration", "vm-1", "--watch", "--json"];
        let words = command_line(&world, vec!["--plaintext".to_owned()], &words);
        let mut out = out.clone();
        move || {
            let mut err = Vec::new();
            let mut console =
                cleatctl::Console { out: &mut out, err: &mut err, width: None, height: None, color: false };
            let code = cleatctl::run(words, &mut console);
            (code, String::from_utf8(err).unwrap())
        }
    });
    eventually("nothing yet", async || !out.0.lock().unwrap().is_empty()).await;
    assert!(out.last().is_null(), "{}", out.last());
    csi.publish("vm-1", "node-a", crate::world::RWX).await.unwrap();
    csi.publish("vm-1", "node-b", crate::world::RWX).await.unwrap();
    eventually("both", async || out.last()["result"] == "running").await;
    csi.unpublish("vm-1", "node-a").await.unwrap();
    eventually("the end", async || out.last()["ended_unix_ms"].is_u64()).await;
    world.stop().await.unwrap();
    let (code, complaint) = watching.await.unwrap();
    assert_eq!(code, 1, "a controller that stops is an error: {complaint}");
    let last = out.last();
    assert_eq!((&last["source_node_id"], &last["target_node_id"]), (&"node-a".into(), &"node-b".into()));
}
