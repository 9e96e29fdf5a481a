//! Agents that come, go, lie, or fall silent.

use std::time::Duration;

use cleat_proto::SESSION_PROTOCOL;
use cleat_proto::cleat::v1 as proto;
use proto::volume_state::Phase;
use tonic::Code;

use crate::agent::{Host, OnDetach};
use crate::world::{RWO, World, eventually};

async fn node(world: &World, name: &str) -> Option<proto::NodeInfo> {
    let nodes =
        world.operator().await.list_nodes(proto::ListNodesRequest {}).await.unwrap().into_inner().nodes;
    nodes.into_iter().find(|node| node.node_id == name)
}

#[tokio::test]
async fn an_agent_that_does_not_fit_is_refused_with_the_reason() {
    let world = World::started().await;
    type Spoil = fn(&mut proto::Hello);
    let cases: [(Spoil, Code, &[&str]); 4] = [
        (
            |h| h.protocol = 9,
            Code::FailedPrecondition,
            &["session protocol 9", "this controller speaks 3 and works with 2 to 4: upgrade the controller"],
        ),
        (
            |h| h.capabilities.as_mut().unwrap().nqn_prefix = "nqn.2020-01.org.other:".into(),
            Code::FailedPrecondition,
            &["nqn.2020-01.org.other:", "nqn.2026-01.io.cleat:"],
        ),
        (|h| h.node_id = "Node A".into(), Code::InvalidArgument, &["hello.node_id", "Node A"]),
        (|h| h.identity = None, Code::InvalidArgument, &["hello.identity is missing"]),
    ];
    for (spoil, code, words) in cases {
        let host = Host::new("node-a", 1);
        spoil(&mut host.hello.lock().unwrap());
        let status = world.dial(&host).await.ended().await;
        assert_eq!(status.code(), code, "{status:?}");
        for word in words {
            assert!(status.message().contains(word), "{status:?} should say {word}");
        }
    }
    assert!(node(&world, "node-a").await.is_none());
}

#[tokio::test]
async fn two_nodes_with_one_identity_are_refused_by_name() {
    let world = World::started().await;
    let _first = world.agent(&Host::new("node-a", 1)).await;
    let second = world.dial(&Host::new("node-b", 1)).await.ended().await;
    assert_eq!(second.code(), Code::FailedPrecondition);
    assert!(second.message().contains("node-a") && second.message().contains("node-b"), "{second:?}");
}

#[tokio::test]
async fn a_malformed_message_ends_the_session_with_the_field_and_nothing_else() {
    let world = World::started().await;
    let other = world.agent(&Host::new("node-b", 2)).await;
    let bad_state = proto::VolumeState { volume_id: "../x".into(), phase: 1, ..Default::default() };
    let no_outcome =
        proto::DirectiveResult { operation_id: "op-1-1".into(), volume_id: "v".into(), ..Default::default() };
    let cases = [
        (proto::from_agent::Kind::Delta(bad_state), "../x"),
        (proto::from_agent::Kind::Result(no_outcome), "result.outcome"),
        (proto::from_agent::Kind::Hello(proto::Hello::default()), "second Hello"),
    ];
    for (message, words) in cases {
        let agent = world.agent(&Host::new("node-a", 1)).await;
        agent.say(message).await;
        let status = agent.ended().await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(words), "{status:?}");
    }
    assert_eq!(world.node("node-b").await.session, "connected");
    drop(other);
}

#[tokio::test]
async fn an_agent_of_a_version_one_apart_attaches_and_detaches() {
    let (world, csi) = World::served().await;
    csi.create("pvc-1").await.unwrap();
    for protocol in [SESSION_PROTOCOL - 1, SESSION_PROTOCOL + 1] {
        let host = Host::new("node-a", 1);
        host.hello.lock().unwrap().protocol = protocol;
        let agent = world.agent(&host).await;
        assert_eq!(agent.welcome.borrow().as_ref().unwrap().protocol, SESSION_PROTOCOL);
        csi.publish("pvc-1", "node-a", RWO).await.unwrap();
        csi.unpublish("pvc-1", "node-a").await.unwrap();
    }
}

#[tokio::test]
async fn what_is_not_known_of_a_newer_agent_proves_nothing() {
    let (world, csi) = World::served().await;
    let host = Host::new("node-a", 1);
    host.hello.lock().unwrap().protocol = SESSION_PROTOCOL + 1;
    let agent = world.agent(&host).await;
    csi.create("pvc-1").await.unwrap();
    csi.publish("pvc-1", "node-a", RWO).await.unwrap();
    *host.on_detach.lock().unwrap() = OnDetach::Hold;
    let detaching = tokio::spawn({
        let csi = csi.clone();
        async move { csi.unpublish("pvc-1", "node-a").await }
    });
    let sent = || {
        host.directives.lock().unwrap().iter().find_map(|kind| match kind {
            proto::to_agent::Kind::Detach(detach) => Some(detach.clone()),
            _ => None,
        })
    };
    eventually("a Detach", async || sent().is_some()).await;
    let proto::Detach { operation_id, volume_id, epoch, .. } = sent().unwrap();
    // As a report, and an outcome, of a later version come out of the decoder.
    agent.send(proto::FromAgent::default()).await;
    let result = proto::DirectiveResult { operation_id, volume_id, epoch, outcome: None };
    agent.say(proto::from_agent::Kind::Result(result)).await;
    let refused = detaching.await.unwrap().unwrap_err();
    assert!(refused.message().contains("upgrade the controller"), "{refused:?}");
    let attachment = world.volume("pvc-1").await.attachments.remove(0);
    assert!(attachment.may_write, "{attachment:?}");
    *host.on_detach.lock().unwrap() = OnDetach::Absent("live");
    eventually("its own report proves it", async || csi.unpublish("pvc-1", "node-a").await.is_ok()).await;
    assert_eq!(world.node("node-a").await.session, "connected");
}

#[tokio::test]
async fn a_new_session_takes_the_place_of_the_old_one() {
    let world = World::started().await;
    let host = Host::new("node-a", 1);
    let old = world.agent(&host).await;
    let new = world.agent(&host).await;
    let (first, second) = (old.welcome.borrow().clone(), new.welcome.borrow().clone());
    assert_ne!(first.unwrap().session_id, second.unwrap().session_id);
    let status = old.ended().await;
    assert!(status.message().contains("new session"), "{status:?}");
    let csi = world.csi().await;
    csi.create("pvc-1").await.unwrap();
    csi.publish("pvc-1", "node-a", RWO).await.unwrap();
    assert_eq!(host.attaches().len(), 1);
    drop(new);
}

#[tokio::test]
async fn a_silent_agent_is_taken_for_lost_and_one_that_went_at_once() {
    let mut world = World::new();
    world.agents.silence_deadline = Duration::from_millis(700);
    world.start().await;
    let agent = world.agent(&Host::new("node-a", 1)).await;
    assert_eq!(world.node("node-a").await.session, "connected");
    agent.beating.send_replace(false);
    let status = agent.ended().await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("nothing heard for 700ms"), "{status:?}");
    eventually("silent", async || world.node("node-a").await.session == "silent").await;

    let agent = world.agent(&Host::new("node-b", 2)).await;
    drop(agent);
    eventually("silent", async || world.node("node-b").await.session == "silent").await;
}

#[tokio::test]
async fn a_volume_that_nobody_granted_is_a_stray_that_keeps_others_out() {
    let world = World::started().await;
    let (a, b) = (Host::new("node-a", 1), Host::new("node-b", 2));
    a.hold("pvc-1", proto::Epoch { term: 1, seq: 1 }, Phase::Ready);
    let (_one, _two) = (world.agent(&a).await, world.agent(&b).await);
    let csi = world.csi().await;
    csi.create("pvc-2").await.unwrap();
    csi.publish("pvc-2", "node-b", RWO).await.unwrap();
    let stray = world.volume("pvc-1").await;
    assert_eq!(stray.attachments[0].phase, "Stray");
    assert!(stray.attachments[0].may_write);
    let created = csi.create("pvc-1").await.unwrap_err();
    assert_eq!(created.code(), Code::FailedPrecondition, "{created:?}");
    assert!(created.message().contains("node-a"), "{created:?}");
}
