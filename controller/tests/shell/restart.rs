//! The controller killed and started again on its store: nothing granted twice, nothing forgotten.

use std::collections::HashMap;
use std::time::Duration;

use cleat_controller::clock::Clock;
use cleat_controller::stored::Stored;
use cleat_proto::csi::v1 as csi;
use tonic::Code;

use crate::agent::{Host, OnAttach, OnDetach};
use crate::world::{RWO, RWX, World, block, eventually, publish_request};

#[tokio::test]
async fn killed_in_the_middle_of_an_attach_it_goes_on_under_the_same_epoch() {
    let (mut world, csi, [(host, agent)]) = World::with_volume("pvc-1", ["node-a"]).await;
    *host.on_attach.lock().unwrap() = OnAttach::Hold;
    let waiting = tokio::spawn(async move { csi.publish("pvc-1", "node-a", RWO).await });
    let first = agent.told_to_attach("pvc-1").await;
    let term = agent.welcome.borrow().clone().unwrap().term;
    world.kill();
    assert!(waiting.await.unwrap().is_err(), "what was not proven is not said");
    drop(agent.ended().await);

    world.start().await;
    let stranger = Host::new("node-b", 2);
    let _other = world.agent(&stranger).await;
    let csi = world.csi().await;
    let refused = csi.publish("pvc-1", "node-b", RWO).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "the grant is not forgotten: {refused:?}");
    *host.on_attach.lock().unwrap() = OnAttach::Ready;
    let agent = world.agent(&host).await;
    assert!(agent.welcome.borrow().clone().unwrap().term > term, "each start has a higher term");
    let epoch = csi.publish("pvc-1", "node-a", RWO).await.unwrap();
    let granted = first.epoch.unwrap();
    assert_eq!(epoch, format!("{}.{}", granted.term, granted.seq), "nothing was granted twice");
    assert!(stranger.attaches().is_empty());
}

#[tokio::test]
async fn killed_in_the_middle_of_a_handoff_it_completes_it() {
    let (mut world, csi, [(a, one), (b, two)]) = World::with_volume("vm-1", ["node-a", "node-b"]).await;
    let epochs = [
        csi.publish("vm-1", "node-a", RWX).await.unwrap(),
        csi.publish("vm-1", "node-b", RWX).await.unwrap(),
    ];
    *a.on_detach.lock().unwrap() = OnDetach::Hold;
    let waiting = tokio::spawn(async move { csi.unpublish("vm-1", "node-a").await });
    let detaching = |kind: &cleat_proto::cleat::v1::to_agent::Kind| {
        matches!(kind, cleat_proto::cleat::v1::to_agent::Kind::Detach(_))
    };
    eventually("a Detach", async || a.directives.lock().unwrap().iter().any(detaching)).await;
    world.kill();
    assert!(waiting.await.unwrap().is_err());
    drop((one.ended().await, two.ended().await));

    world.start().await;
    let third = Host::new("node-c", 3);
    let _three = world.agent(&third).await;
    let csi = world.csi().await;
    let two = world.agent(&b).await;
    let refused = csi.publish("vm-1", "node-a", RWX).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "node-a is not heard: {refused:?}");
    *a.on_detach.lock().unwrap() = OnDetach::Absent("live");
    let _one = world.agent(&a).await;
    csi.unpublish("vm-1", "node-a").await.unwrap();
    assert!(!a.holds("vm-1") && b.holds("vm-1"));
    assert_eq!(csi.publish("vm-1", "node-b", RWX).await.unwrap(), epochs[1], "the target keeps its grant");
    let all = world.migrations().await;
    assert_eq!((all[0].result.as_str(), all[0].left.as_str()), ("unattributed", "source"));
    drop(two);
}

/// The RDS may do what a controller has asked after that controller has died, and after the next one has looked.
#[tokio::test]
async fn a_killed_controllers_rds_request_undoes_no_later_proof() {
    let (mut world, csi, [(a, one), (b, two)]) = World::with_nodes(["node-a", "node-b"]).await;
    for volume in ["vm-1", "vm-2"] {
        csi.create(volume).await.unwrap();
        csi.publish(volume, "node-a", RWX).await.unwrap();
    }
    world.rds.late.send_replace(true);
    let waiting = tokio::spawn(async move { csi.publish("vm-1", "node-b", RWX).await });
    let asked = format!("allow vm-1 {}", b.nqn());
    eventually("the RDS has it", async || world.rds.log.lock().unwrap().contains(&asked)).await;
    world.kill();
    assert!(waiting.await.unwrap().is_err());
    drop((one.ended().await, two.ended().await));
    world.rds.late.send_replace(false);
    *world.rds.settle.lock().unwrap() = Duration::from_secs(3);

    world.start().await;
    let (_one, _two) = (world.agent(&a).await, world.agent(&b).await);
    let csi = world.csi().await;
    csi.unpublish("vm-2", "node-a").await.expect("nothing was on its way for this one");
    let refused = csi.unpublish("vm-1", "node-b").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    for words in
        ["vm-1", "node-b", "change confirmed", "a request of the previous controller", "ask again in"]
    {
        assert!(refused.message().contains(words), "{words} is not in {}", refused.message());
    }
    assert!(!world.rds.hosts("vm-1").contains(&b.nqn()), "although it was read without the host");
    world.rds.land();
    assert!(world.rds.hosts("vm-1").contains(&b.nqn()));
    eventually("it is proven", async || csi.unpublish("vm-1", "node-b").await.is_ok()).await;
    assert!(!world.rds.hosts("vm-1").contains(&b.nqn()));
}

#[tokio::test]
async fn a_damaged_store_is_refused_with_the_file_named() {
    let mut world = World::started().await;
    world.stop().await.unwrap();
    std::fs::write(world.store(), "not a store\n").unwrap();
    let clock = Clock::start();
    let opened = Stored::in_file(world.store(), clock).await;
    let Err(error) = opened else { panic!("opened") };
    let text = cleat_runtime::exit::Causes(&error).to_string();
    assert!(text.contains(&world.store().display().to_string()), "{text}");
}

/// A number that the store has for a question, once nobody else has it open.
async fn asked(world: &World, question: &str) -> i64 {
    let ask = || rusqlite::Connection::open(world.store())?.query_row(question, [], |row| row.get(0));
    let asking = async {
        loop {
            match ask() {
                Ok(number) => break number,
                Err(error) => assert!(error.to_string().contains("locked"), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), asking).await.expect("it is unlocked")
}

#[tokio::test]
async fn a_field_of_a_later_version_stays_in_the_file_and_stops_one_volume() {
    let (mut world, csi, [(host, agent)]) = World::with_nodes(["node-a"]).await;
    for volume in ["pvc-1", "pvc-2"] {
        csi.create(volume).await.unwrap();
        csi.publish(volume, "node-a", RWO).await.unwrap();
    }
    world.stop().await.unwrap();
    drop(agent.ended().await);
    let field = "json_extract(record, '$.record.spec.ofTomorrow')";
    let later = format!(
        "UPDATE volumes SET record = json_set(record, '$.record.spec.ofTomorrow', 7) WHERE name = 'pvc-1' RETURNING {field}"
    );
    assert_eq!(asked(&world, &later).await, 7);

    world.start().await;
    let _agent = world.agent(&host).await;
    let csi = world.csi().await;
    let refused = csi.unpublish("pvc-1", "node-a").await.unwrap_err();
    assert!(refused.message().contains("does not know its field record.spec.ofTomorrow"), "{refused:?}");
    csi.unpublish("pvc-2", "node-a").await.unwrap();
    assert!(host.holds("pvc-1"), "nobody has touched it");
    world.stop().await.unwrap();
    assert_eq!(asked(&world, &format!("SELECT {field} FROM volumes WHERE name = 'pvc-1'")).await, 7);
}

#[tokio::test]
async fn the_time_for_a_migration_is_in_lists_and_in_the_volumes_record() {
    let (mut world, csi, [(_host, _agent)]) = World::with_nodes(["node-a"]).await;
    let request = csi::CreateVolumeRequest {
        name: "vm-1".into(),
        volume_capabilities: vec![block(RWX)],
        parameters: HashMap::from([("migrationTimeoutSeconds".to_owned(), "120".to_owned())]),
        ..Default::default()
    };
    let made = csi.client.clone().create_volume(request).await.unwrap().into_inner().volume.unwrap();
    let context = HashMap::from([("cleat.io/migration-timeout-seconds".to_owned(), "120".to_owned())]);
    assert_eq!(made.volume_context, context);
    let all = csi.client.clone().list_volumes(csi::ListVolumesRequest::default()).await.unwrap().into_inner();
    assert_eq!(all.entries[0].volume.as_ref().unwrap().volume_context, context);
    let publish = csi::ControllerPublishVolumeRequest {
        volume_context: context,
        ..publish_request("vm-1", "node-a", RWX)
    };
    csi.client.clone().controller_publish_volume(publish).await.unwrap();
    world.stop().await.unwrap();
    // Its store is unlocked as soon as its last task is gone.
    let opening = async {
        loop {
            match Stored::in_file(world.store(), Clock::start()).await {
                Ok(stored) => break stored,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let stored = tokio::time::timeout(Duration::from_secs(10), opening).await.expect("it is unlocked");
    let timeouts: Vec<_> = stored.records.volumes.iter().map(|r| r.spec.migration_timeout_ms).collect();
    assert_eq!(timeouts, [120_000]);
}

/// One node has the volume and is not heard; the controller begins with a store that does not know of that.
async fn forgotten(rolled_back: bool) -> (World, std::sync::Arc<Host>) {
    let (mut world, csi, [(a, one), (b, _two)]) = World::with_volume("vm-1", ["node-a", "node-b"]).await;
    let files = ["records", "records-wal"].map(|name| world.dir.path().join(name));
    if rolled_back {
        // At rest on record, and no grant of node-a after that.
        csi.publish("vm-1", "node-b", RWO).await.unwrap();
        csi.unpublish("vm-1", "node-b").await.unwrap();
        world.stop().await.unwrap();
        for file in files.iter().filter(|file| file.exists()) {
            std::fs::copy(file, file.with_extension("backup")).unwrap();
        }
        world.start().await;
        drop(one);
        let one = world.agent(&a).await;
        world.csi().await.publish("vm-1", "node-a", RWO).await.unwrap();
        drop(one);
    } else {
        csi.publish("vm-1", "node-a", RWO).await.unwrap();
        drop(one);
    }
    assert!(world.rds.hosts("vm-1").contains(&a.nqn()) && a.holds("vm-1"));
    world.stop().await.unwrap();
    for file in files.iter().filter(|file| file.exists()) {
        std::fs::remove_file(file).unwrap();
        if file.with_extension("backup").exists() {
            std::fs::rename(file.with_extension("backup"), file).unwrap();
        }
    }
    world.core.request_limit_ms = 1_000;
    world.start().await;
    (world, b)
}

#[tokio::test]
async fn a_store_set_aside_or_rolled_back_lets_no_second_writer_in() {
    for rolled_back in [false, true] {
        let (world, b) = forgotten(rolled_back).await;
        let _two = world.agent(&b).await;
        let csi = world.csi().await;
        let unpublish =
            csi.unpublish("vm-1", "node-a").await.expect_err("node-a may write, and is not heard");
        assert_ne!(unpublish.code(), Code::NotFound, "{unpublish:?}");
        let publish = csi.publish("vm-1", "node-b", RWO).await.expect_err("node-a may write");
        assert_ne!(publish.code(), Code::NotFound, "{publish:?}");
        assert!(!b.holds("vm-1"), "{rolled_back}");
    }
}

#[tokio::test]
async fn while_the_rds_is_away_a_start_answers_nothing_as_done() {
    let mut world = World::started().await;
    world.stop().await.unwrap();
    world.core.request_limit_ms = 500;
    world.rds.away.send_replace(true);
    world.start().await;
    let host = Host::new("node-a", 1);
    let _agent = world.agent(&host).await;
    let csi = world.csi().await;
    let unpublish = csi.unpublish("vm-1", "node-a").await.unwrap_err();
    assert_eq!(unpublish.code(), Code::Unavailable, "{unpublish:?}");
}
