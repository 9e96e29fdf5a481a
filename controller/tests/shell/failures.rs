//! What is not there, not reached, or broken: each told apart, and never success.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cleat_controller::app::AppError;
use cleat_controller::clock::Clock;
use cleat_controller::engine::{EngineError, Records};
use cleat_controller::store::{CommitError, Store, Version, Write};
use cleat_controller::stored::Stored;
use cleat_rds::secret::{Era, KeyId};
use cleat_runtime::tls::ClientTransport;
use tonic::{Code, Status};

use crate::agent::Host;
use crate::world::{Csi, RWO, RWX, World, block, dial, eventually, publish_request};

#[tokio::test]
async fn absent_and_unreachable_are_two_things() {
    let (world, csi, [(_, _agent)]) = World::with_volume("pvc-1", ["node-a"]).await;
    csi.publish("pvc-1", "node-a", RWO).await.unwrap();
    csi.create("pvc-2").await.unwrap();
    let absent = csi.publish("pvc-3", "node-a", RWO).await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound, "{absent:?}");
    // A list may lack a volume for a moment, so that it is gone is not taken from one.
    eventually("it is taken for absent", async || csi.delete("pvc-3").await.is_ok()).await;
    csi.unpublish("pvc-3", "node-a").await.expect("nothing is there to be taken away");

    world.rds.away.send_replace(true);
    for (what, result) in [
        ("publish", csi.publish("pvc-3", "node-a", RWO).await.map(drop)),
        ("publish of one that is there", csi.publish("pvc-2", "node-a", RWO).await.map(drop)),
        ("create", csi.create("pvc-4").await.map(drop)),
        ("delete", csi.delete("pvc-2").await),
    ] {
        let error = result.expect_err(what);
        assert_eq!(error.code(), Code::Unavailable, "{what}: {error:?}");
        assert!(error.message().contains("unreachable"), "{what}: {error:?}");
    }
    csi.publish("pvc-1", "node-a", RWO).await.expect("a repeat finds its attachment without the RDS");
    let detach = csi.unpublish("pvc-1", "node-a").await.unwrap_err();
    assert_eq!(detach.code(), Code::Unavailable, "the host list is not known to be right: {detach:?}");

    world.rds.away.send_replace(false);
    csi.unpublish("pvc-1", "node-a").await.unwrap();
    assert!(world.rds.has("pvc-2"), "a deletion that failed deleted nothing");
    csi.delete("pvc-2").await.unwrap();
    assert!(!world.rds.has("pvc-2"));
}

#[tokio::test]
async fn a_node_never_heard_of_is_not_found_and_a_silent_one_unavailable() {
    let (world, csi) = World::served().await;
    csi.create("pvc-1").await.unwrap();
    let never = csi.publish("pvc-1", "node-a", RWO).await.unwrap_err();
    assert_eq!(never.code(), Code::NotFound);
    assert!(never.message().contains("node node-a is unknown"), "{never:?}");
    let host = Host::new("node-a", 1);
    let agent = world.agent(&host).await;
    csi.publish("pvc-1", "node-a", RWO).await.unwrap();
    drop(agent);
    eventually("silence", async || {
        csi.publish("pvc-1", "node-a", RWO).await.is_err_and(|error| {
            error.code() == Code::Unavailable
                && error.message().contains("node-a has no session with the controller since 20")
        })
    })
    .await;
}

#[tokio::test]
async fn a_wrong_size_and_a_full_rds_have_their_own_codes() {
    let (world, csi) = World::served().await;
    let made = csi.create_sized("pvc-1", 5000).await.unwrap();
    assert_eq!(made.capacity_bytes, 8192, "whole blocks of 4096 bytes");
    assert_eq!(csi.create_sized("pvc-1", 8000).await.unwrap(), made, "the same volume again");
    let larger = csi.create_sized("pvc-1", 8193).await.unwrap_err();
    assert_eq!(larger.code(), Code::AlreadyExists, "{larger:?}");
    world.rds.full.send_replace(true);
    let full = csi.create_sized("pvc-2", 4096).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted, "{full:?}");
}

#[tokio::test]
async fn a_disk_may_be_larger_than_requested_and_not_smaller() {
    let (world, csi, [(a, _one), (b, _two)]) = World::with_nodes(["node-a", "node-b"]).await;
    csi.create_sized("vm-1", 1 << 20).await.unwrap();
    world.rds.tamper("vm-1", |v| v.size.0 += 1 << 20);
    assert_eq!(csi.create_sized("vm-1", 1 << 20).await.unwrap().capacity_bytes, 2 << 20);
    csi.publish("vm-1", "node-a", RWX).await.unwrap();
    world.rds.tamper("vm-1", |v| v.size.0 += 1 << 20);
    csi.publish("vm-1", "node-a", RWX).await.expect("a repeat");
    csi.publish("vm-1", "node-b", RWX).await.expect("a migration target");
    assert_eq!((a.attaches()[0].size_bytes, b.attaches()[0].size_bytes), (2 << 20, 3 << 20));
    let smaller = csi.create_sized("vm-1", 4 << 20).await.unwrap_err();
    assert_eq!(smaller.code(), Code::AlreadyExists, "{smaller:?}");
}

#[tokio::test]
async fn a_name_that_is_made_again_with_other_parameters_is_refused_naming_them() {
    let (_world, csi) = World::served().await;
    let create = async |parameters: &[(&str, &str)]| {
        let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let request = cleat_proto::csi::v1::CreateVolumeRequest {
            name: "pvc-1".into(),
            volume_capabilities: vec![block(RWX)],
            parameters: parameters.collect(),
            ..Default::default()
        };
        csi.client.clone().create_volume(request).await.map(drop)
    };
    let (fence, timeout) = (("minFence", "node-gone"), ("migrationTimeoutSeconds", "120"));
    create(&[fence, timeout]).await.unwrap();
    create(&[fence, timeout, ("requireMigration", "false")]).await.expect("the same again");
    for (asked, words) in [
        (vec![timeout], r#"parameters["minFence"]: it was made with node-gone, asked for none"#),
        (vec![fence], r#"parameters["migrationTimeoutSeconds"]: it was made with 120, asked for none"#),
        (
            vec![fence, ("migrationTimeoutSeconds", "60")],
            r#"parameters["migrationTimeoutSeconds"]: it was made with 120, asked for 60"#,
        ),
    ] {
        let other = create(&asked).await.unwrap_err();
        assert_eq!(other.code(), Code::AlreadyExists, "{other:?}");
        assert!(other.message().contains(words), "{other:?}");
    }
}

/// As the attacher does it for a volume whose StorageClass demands a migration for a second node.
async fn publish_demanding(csi: &Csi, node: &str) -> Result<(), Status> {
    let request = cleat_proto::csi::v1::ControllerPublishVolumeRequest {
        volume_context: [("cleat.io/require-migration".to_owned(), "true".to_owned())].into(),
        ..publish_request("vm-1", node, RWX)
    };
    csi.client.clone().controller_publish_volume(request).await.map(drop)
}

#[tokio::test]
async fn outside_a_cluster_no_migration_can_be_required() {
    let (_world, csi, [(_a, _one), (b, _two)]) = World::with_nodes(["node-a", "node-b"]).await;
    let request = cleat_proto::csi::v1::CreateVolumeRequest {
        name: "vm-1".into(),
        volume_capabilities: vec![block(RWX)],
        parameters: [("requireMigration".to_owned(), "true".to_owned())].into(),
        ..Default::default()
    };
    let refused = csi.client.clone().create_volume(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains(r#"parameters["requireMigration"]: true is for"#), "{refused:?}");

    // One that was made in a cluster.
    csi.create("vm-1").await.unwrap();
    publish_demanding(&csi, "node-a").await.unwrap();
    let refused = publish_demanding(&csi, "node-b").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("outside a cluster"), "{refused:?}");
    assert!(b.attaches().is_empty(), "it was sent nothing");
    publish_demanding(&csi, "node-a").await.expect("who has it keeps it");
    csi.unpublish("vm-1", "node-a").await.unwrap();
    publish_demanding(&csi, "node-b").await.expect("it is the only one");
}

#[tokio::test]
async fn of_two_first_nodes_at_once_one_is_a_second_where_that_counts() {
    let (_world, csi, [(a, _one), (b, _two)]) = World::with_volume("vm-1", ["node-a", "node-b"]).await;
    let both = tokio::join!(publish_demanding(&csi, "node-a"), publish_demanding(&csi, "node-b"));
    let refused: Vec<_> = [both.0, both.1].into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].message().contains("(requireMigration)"), "{refused:?}");
    assert!(a.holds("vm-1") != b.holds("vm-1"));
}

#[tokio::test]
async fn any_name_that_csi_allows_is_made_found_and_deleted_by_its_id() {
    let (world, csi) = World::served().await;
    let long = "a".repeat(128);
    let mut ids = std::collections::BTreeSet::new();
    for name in ["pvc-1", "sanity-node-full-A0A8FFE4-C3567D97", &long, "Über vol/1"] {
        let made = csi.create(name).await.unwrap().volume_id;
        assert_eq!(csi.create(name).await.unwrap().volume_id, made, "the same on repetition");
        assert!(world.rds.has(&made));
        ids.insert(made);
    }
    let hashed = ids.iter().find(|id| id.starts_with("hashed-")).unwrap().clone();
    assert!(
        ids.insert(csi.create(&hashed).await.unwrap().volume_id),
        "a name like a hashed id is another volume"
    );
    assert_eq!(ids.len(), 5);
    for id in &ids {
        csi.delete(id).await.unwrap();
        assert!(!world.rds.has(id));
    }
}

#[tokio::test]
async fn a_volume_that_somebody_changed_on_the_rds_is_not_attached() {
    let (world, csi, [(host, _agent)]) = World::with_nodes(["node-a"]).await;
    type Tamper = fn(&mut cleat_rds::RdsVolume);
    let cases: [(&str, Tamper, &str); 2] = [
        ("pvc-1", |v| v.nqn = "nqn.2000-02.com.mikrotik:x".into(), "nqn.2000-02.com.mikrotik:x"),
        ("pvc-3", |v| v.mountable = true, "mount-filesystem=no"),
    ];
    for (volume, tamper, words) in cases {
        csi.create(volume).await.unwrap();
        world.rds.tamper(volume, tamper);
        let refused = csi.publish(volume, "node-a", RWO).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains(words), "{refused:?}");
    }
    assert!(host.attaches().is_empty());
    // A port is not a mistake: a volume may have its own, and hosts are sent there.
    csi.create("pvc-2").await.unwrap();
    world.rds.tamper("pvc-2", |v| v.port = Some(4421));
    csi.publish("pvc-2", "node-a", RWO).await.unwrap();
    assert_eq!(host.attaches()[0].portals, ["10.0.1.100:4421"]);
}

#[tokio::test]
async fn an_rds_that_never_answers_is_unreachable_after_its_deadline() {
    let (world, csi, [(_, _agent)]) = World::with_volume("pvc-1", ["node-a"]).await;
    world.rds.stuck.send_replace(true);
    let hung = csi.publish("pvc-1", "node-a", RWO).await.unwrap_err();
    assert_eq!(hung.code(), Code::Unavailable);
    assert!(hung.message().contains("no answer within 5s"), "{hung:?}");
    world.rds.stuck.send_replace(false);
    csi.publish("pvc-1", "node-a", RWO).await.unwrap();
}

#[tokio::test]
async fn readiness_waits_for_the_rds() {
    let mut world = World::new();
    world.rds.away.send_replace(true);
    world.start().await;
    eventually("the socket", async || tokio::net::UnixStream::connect(world.socket()).await.is_ok()).await;
    assert!(!world.probe().await);
    world.rds.away.send_replace(false);
    eventually("ready", async || world.probe().await).await;
}

/// A store that takes everything while it works, and else nothing, for this reason.
struct FailingStore {
    works: Arc<AtomicBool>,
    error: CommitError,
}

#[tonic::async_trait]
impl Store for FailingStore {
    async fn take_key(&self, _: KeyId, before: KeyId) -> Result<Vec<Era>, CommitError> {
        Ok(vec![Era { first_term: 0, key: before }])
    }

    async fn take_term(&self, at_least: u64) -> Result<u64, CommitError> {
        Ok(at_least)
    }

    async fn commit(&self, writes: Vec<Write>) -> Vec<Result<Version, CommitError>> {
        let answer = |write: &Write| match self.works.load(Ordering::SeqCst) {
            true => Ok(Version(write.expected.map_or(1, |version| version.0 + 1))),
            false => Err(self.error.clone()),
        };
        writes.iter().map(answer).collect()
    }
}

#[tokio::test]
async fn a_full_disk_fails_calls_by_name_and_ends_by_itself_when_there_is_room() {
    let mut world = World::new();
    let room = Arc::new(AtomicBool::new(true));
    let error = CommitError::Retry { reason: "no room on the disk of store x".into() };
    let store = FailingStore { works: Arc::clone(&room), error };
    let stored = Stored { store: Arc::new(store), records: Records::default(), term: 1, cluster: None };
    world.start_with(stored, Clock::start()).await;
    let host = Host::new("node-a", 1);
    let _agent = world.agent(&host).await;
    let csi = world.csi().await;
    csi.create("pvc-1").await.unwrap();
    room.store(false, Ordering::SeqCst);
    for _ in 0..2 {
        let failed = csi.publish("pvc-1", "node-a", RWO).await.unwrap_err();
        assert_eq!(failed.code(), Code::Unavailable);
        for words in ["no room on the disk of store x", "repeat the call"] {
            assert!(failed.message().contains(words), "{failed:?}");
        }
    }
    assert!(!world.probe().await, "not ready");
    assert!(world.rds.log.lock().unwrap().is_empty(), "the RDS was asked for nothing");
    room.store(true, Ordering::SeqCst);
    eventually("room", async || csi.publish("pvc-1", "node-a", RWO).await.is_ok()).await;
    eventually("ready", async || world.probe().await).await;
}

#[tokio::test]
async fn a_store_that_fails_ends_the_controller_and_nothing_is_done_or_promised() {
    let mut world = World::new();
    let works = Arc::new(AtomicBool::new(true));
    let error = CommitError::Fatal { reason: "the disk is gone".into() };
    let store = Arc::new(FailingStore { works: Arc::clone(&works), error });
    let stored = Stored { store, records: Records::default(), term: 1, cluster: None };
    world.start_with(stored, Clock::start()).await;
    let host = Host::new("node-a", 1);
    let _agent = world.agent(&host).await;
    let csi = world.csi().await;
    csi.create("pvc-1").await.unwrap();
    works.store(false, Ordering::SeqCst);
    let failed = csi.publish("pvc-1", "node-a", RWO).await.unwrap_err();
    assert!(matches!(failed.code(), Code::Unavailable | Code::Cancelled | Code::Unknown), "{failed:?}");
    let ended = world.end().await.unwrap_err();
    assert!(matches!(ended, AppError::Engine(EngineError::Store(_))), "{ended:?}");
    assert!(world.rds.log.lock().unwrap().is_empty(), "the RDS was asked for nothing");
    assert!(host.attaches().is_empty(), "the agent was told nothing");
}

#[tokio::test]
async fn a_stop_answers_those_who_wait_and_ends_in_time() {
    let (mut world, csi, [(host, agent)]) = World::with_volume("pvc-1", ["node-a"]).await;
    *host.on_attach.lock().unwrap() = crate::agent::OnAttach::Hold;
    let waiting = tokio::spawn(async move { csi.publish("pvc-1", "node-a", RWO).await });
    agent.told_to_attach("pvc-1").await;
    // As a load balancer would: a stream that nobody of ours ends.
    let mut health = tonic_health::pb::health_client::HealthClient::new(
        dial(world.operators_at(), &ClientTransport::Plaintext).await,
    );
    let request = tonic_health::pb::HealthCheckRequest::default();
    let mut watch = health.watch(request).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    let began = std::time::Instant::now();
    world.stop().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(8));
    assert_eq!(waiting.await.unwrap().unwrap_err().code(), Code::Unavailable);
    assert_eq!(agent.ended().await.code(), Code::Unavailable);
    assert!(!world.socket().exists());
}
