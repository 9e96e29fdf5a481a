//! Attach, hand off, detach: what callers see, and that it rests on what the agents proved.

use std::time::Duration;

use cleat_proto::csi::v1 as csi;
use tonic::Code;

use crate::agent::{Host, OnAttach, OnDetach};
use crate::world::{RWO, RWX, World, block, eventually, publish_request};

#[tokio::test]
async fn a_volume_lives_from_create_to_delete_and_each_call_may_be_repeated() {
    let (world, csi, [(host, _agent)]) = World::with_nodes(["node-a"]).await;
    for _ in 0..2 {
        let volume = csi.create("pvc-1").await.unwrap();
        assert_eq!((volume.volume_id.as_str(), volume.capacity_bytes), ("pvc-1", 1 << 20));
    }
    let first = csi.publish("pvc-1", "node-a", RWX).await.unwrap();
    assert_eq!(csi.publish("pvc-1", "node-a", RWX).await.unwrap(), first);
    assert!(host.holds("pvc-1"));
    assert_eq!(world.rds.hosts("pvc-1"), [host.nqn()].into());
    assert_eq!(host.attaches().len(), 1, "a repeat is not told to the agent");
    assert_eq!(host.attaches()[0].portals, ["10.0.1.100:4420"]);
    assert_eq!(csi.delete("pvc-1").await.unwrap_err().code(), Code::FailedPrecondition);
    for _ in 0..2 {
        csi.unpublish("pvc-1", "node-a").await.unwrap();
    }
    assert!(!host.holds("pvc-1") && world.rds.hosts("pvc-1").is_empty());
    let second = csi.publish("pvc-1", "node-a", RWX).await.unwrap();
    assert_ne!(first, second, "each grant has its own epoch");
    assert_eq!(host.attaches()[1].namespace_uuid.len(), 36, "the identity learned at first is pinned");
    csi.unpublish("pvc-1", "").await.unwrap();
    for _ in 0..2 {
        csi.delete("pvc-1").await.unwrap();
    }
    assert!(!world.rds.has("pvc-1"));
}

#[tokio::test]
async fn publish_waits_for_the_proof_and_a_repeat_finds_it() {
    let (world, csi, [(host, agent)]) = World::with_volume("pvc-1", ["node-a"]).await;
    *host.on_attach.lock().unwrap() = OnAttach::Hold;
    let mut request = tonic::Request::new(publish_request("pvc-1", "node-a", RWO));
    request.set_timeout(Duration::from_millis(500));
    let gave_up = csi.client.clone().controller_publish_volume(request).await.unwrap_err();
    assert!(matches!(gave_up.code(), Code::Cancelled | Code::DeadlineExceeded), "{gave_up:?}");
    let attach = agent.told_to_attach("pvc-1").await;
    let repeated = tokio::spawn({
        let csi = csi.clone();
        async move { csi.publish("pvc-1", "node-a", RWO).await }
    });
    eventually("the repeat waits", async || {
        let mut operator = world.operator().await;
        let request = cleat_proto::cleat::v1::GetVolumeRequest { volume_id: "pvc-1".into() };
        let volume = operator.get_volume(request).await.unwrap().into_inner();
        volume.waiting.len() == 2
    })
    .await;
    assert!(!repeated.is_finished());
    agent.answer_ready(&attach).await;
    let epoch = repeated.await.unwrap().unwrap();
    let granted = attach.epoch.unwrap();
    assert_eq!(epoch, format!("{}.{}", granted.term, granted.seq));
    assert_eq!(host.attaches().len(), 1, "one operation, whoever waits for it");
}

#[tokio::test]
async fn a_publish_that_an_unpublish_overtook_on_its_way_attaches_nothing() {
    let (world, csi, [(a, _one), (_, _two)]) = World::with_volume("pvc-1", ["node-a", "node-b"]).await;
    let looks = *world.rds.looks.borrow();
    world.rds.slow.send_replace(true);
    let early = tokio::spawn({
        let csi = csi.clone();
        async move { csi.publish("pvc-1", "node-a", RWO).await }
    });
    world.rds.looks.subscribe().wait_for(|now| *now > looks).await.unwrap();
    csi.unpublish("pvc-1", "node-a").await.unwrap();
    world.rds.slow.send_replace(false);
    let overtaken = early.await.unwrap().unwrap_err();
    assert_eq!(overtaken.code(), Code::Aborted, "{overtaken:?}");
    assert!(overtaken.message().contains("a detach was asked for"), "{overtaken:?}");
    csi.publish("pvc-1", "node-b", RWO).await.expect("nobody else has it");
    assert!(a.attaches().is_empty());
}

#[tokio::test]
async fn the_same_publish_twice_at_once_is_one_attachment() {
    let (_world, csi, [(host, _agent)]) = World::with_volume("pvc-1", ["node-a"]).await;
    let (one, two) = tokio::join!(csi.publish("pvc-1", "node-a", RWO), csi.publish("pvc-1", "node-a", RWO));
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(host.attaches().len(), 1);
}

#[tokio::test]
async fn a_third_node_and_a_second_of_rwo_are_refused_with_the_holders_named() {
    let world = World::started().await;
    let hosts = [Host::new("node-a", 1), Host::new("node-b", 2), Host::new("node-c", 3)];
    let mut agents = Vec::new();
    for host in &hosts {
        agents.push(world.agent(host).await);
    }
    let csi = world.csi().await;
    csi.create("vm-1").await.unwrap();
    csi.create("pvc-1").await.unwrap();
    csi.publish("vm-1", "node-a", RWX).await.unwrap();
    csi.publish("vm-1", "node-b", RWX).await.unwrap();
    let third = csi.publish("vm-1", "node-c", RWX).await.unwrap_err();
    assert_eq!(third.code(), Code::FailedPrecondition);
    assert_eq!(
        third.message(),
        "Volume vm-1 already attached to 2 nodes (migration limit). Wait for migration to complete. Attached \
         nodes: node-a, node-b"
    );
    let granted = csi.publish("pvc-1", "node-a", RWO).await.unwrap();
    let second = csi.publish("pvc-1", "node-b", RWO).await.unwrap_err();
    assert_eq!(second.code(), Code::FailedPrecondition);
    assert_eq!(
        second.message(),
        "Volume pvc-1 already attached to node node-a. For multi-node access, use RWX with block volumes."
    );
    let other = csi.publish("pvc-1", "node-a", RWX).await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists, "{other:?}");
    let reading =
        csi::ControllerPublishVolumeRequest { readonly: true, ..publish_request("pvc-1", "node-a", RWO) };
    let other = world.csi().await.client.controller_publish_volume(reading).await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists, "{other:?}");
    assert!(other.message().contains("pvc-1") && other.message().contains("node-a"), "{other:?}");
    assert_eq!(csi.publish("pvc-1", "node-a", RWO).await.unwrap(), granted, "it changed nothing");
    assert!(!hosts[2].holds("vm-1") && !hosts[1].holds("pvc-1"));
    assert!(hosts[2].attaches().is_empty(), "a refused node is told nothing");
}

#[tokio::test]
async fn a_handoff_is_recorded_from_grant_to_evidence() {
    let (world, csi, [(_, _one), (b, _two)]) = World::with_volume("vm-1", ["node-a", "node-b"]).await;
    csi.publish("vm-1", "node-a", RWX).await.unwrap();
    csi.publish("vm-1", "node-b", RWX).await.unwrap();
    csi.unpublish("vm-1", "node-a").await.unwrap();
    assert_eq!(world.rds.hosts("vm-1"), [b.nqn()].into());
    let all = world.migrations().await;
    let [migration] = &all[..] else { panic!("{all:?}") };
    assert_eq!(
        (migration.source_node_id.as_str(), migration.target_node_id.as_str(), migration.result.as_str()),
        ("node-a", "node-b", "unattributed")
    );
    assert_eq!((migration.left.as_str(), migration.attributed_to.as_str()), ("source", "unattributed"));
    let steps: Vec<&str> = migration.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(steps.first(), Some(&"granted"));
    assert_eq!(steps.last(), Some(&"done"));
    assert!(steps.contains(&"target_ready") && steps.contains(&"evidence"), "{steps:?}");
}

#[tokio::test]
async fn a_detach_of_a_device_in_use_is_refused_naming_its_user() {
    let (world, csi, [(host, _agent)]) = World::with_volume("pvc-1", ["node-a"]).await;
    let epoch = csi.publish("pvc-1", "node-a", RWO).await.unwrap();
    *host.on_detach.lock().unwrap() = OnDetach::Busy("pid 312 (qemu-system-x86) has /dev/nvme0n1 open");
    let refused = csi.unpublish("pvc-1", "node-a").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("pid 312 (qemu-system-x86)"), "{refused:?}");
    assert_eq!(csi.publish("pvc-1", "node-a", RWO).await.unwrap(), epoch);
    assert_eq!(world.rds.hosts("pvc-1"), [host.nqn()].into());
}

#[tokio::test]
async fn a_detach_that_was_not_drained_waits_for_the_drain_bound() {
    let (world, csi, [(host, _agent)]) = World::with_volume("pvc-1", ["node-a"]).await;
    *host.on_detach.lock().unwrap() = OnDetach::Absent("connecting");
    csi.publish("pvc-1", "node-a", RWO).await.unwrap();
    let began = std::time::Instant::now();
    csi.unpublish("pvc-1", "node-a").await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(world.core.drain_bound_ms));
    let volume = world.volume("pvc-1").await;
    assert!(volume.past_evidence[0].assumption.contains("drain bound"), "{:?}", volume.past_evidence);
}

#[tokio::test]
async fn what_the_agent_could_not_do_has_its_clause_and_a_retry_is_free() {
    let (_world, csi, [(host, _agent)]) = World::with_volume("pvc-1", ["node-a"]).await;
    for (clause, code) in
        [("live-paths", Code::Unavailable), ("namespace-identity", Code::FailedPrecondition)]
    {
        *host.on_attach.lock().unwrap() = OnAttach::Fail(clause);
        let failed = csi.publish("pvc-1", "node-a", RWO).await.unwrap_err();
        assert_eq!(failed.code(), code, "{failed:?}");
        assert!(failed.message().contains(clause) && failed.message().contains("the facts"), "{failed:?}");
    }
    *host.on_attach.lock().unwrap() = OnAttach::Ready;
    csi.publish("pvc-1", "node-a", RWO).await.unwrap();
}

#[tokio::test]
async fn many_volumes_at_once_all_come_through() {
    let (world, csi, [(host, _agent)]) = World::with_nodes(["node-a"]).await;
    let names: Vec<String> = (0..32).map(|number| format!("pvc-{number}")).collect();
    let each = |name: &String| {
        let (csi, name) = (csi.clone(), name.clone());
        tokio::spawn(async move {
            csi.create(&name).await.unwrap();
            csi.publish(&name, "node-a", RWO).await.unwrap();
            csi.unpublish(&name, "node-a").await.unwrap();
            csi.delete(&name).await.unwrap();
        })
    };
    let all: Vec<_> = names.iter().map(each).collect();
    for one in all {
        one.await.unwrap();
    }
    assert!(names.iter().all(|name| !host.holds(name) && !world.rds.has(name)));
}

#[tokio::test]
async fn capabilities_are_confirmed_or_refused_with_the_reason() {
    let (_world, csi) = World::served().await;
    csi.create("pvc-1").await.unwrap();
    let ask = async |volume: &str, capabilities: Vec<csi::VolumeCapability>| {
        let request = csi::ValidateVolumeCapabilitiesRequest {
            volume_id: volume.into(),
            volume_capabilities: capabilities,
            ..Default::default()
        };
        csi.client.clone().validate_volume_capabilities(request).await.map(tonic::Response::into_inner)
    };
    assert!(ask("pvc-1", vec![block(RWX)]).await.unwrap().confirmed.is_some());
    let mut mount = block(RWX);
    mount.access_type = Some(csi::volume_capability::AccessType::Mount(Default::default()));
    let refused = ask("pvc-1", vec![mount]).await.unwrap();
    assert!(refused.confirmed.is_none());
    assert!(refused.message.contains("use RWX with block volumes"), "{}", refused.message);
    assert_eq!(ask("pvc-2", vec![block(RWX)]).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(ask("pvc-1", vec![]).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(ask("", vec![block(RWX)]).await.unwrap_err().code(), Code::InvalidArgument);
}
