//! ListVolumes and ControllerGetVolume: what is published where, how it is, and pages that stay good.

use cleat_core::VolumeId;
use cleat_proto::cleat::v1::volume_state::Phase;
use cleat_proto::csi::v1 as csi;
use tonic::Code;

use crate::agent::OnDetach;
use crate::world::{Csi, RWO, World, eventually};

async fn page(csi: &Csi, most: i32, token: &str) -> csi::ListVolumesResponse {
    let request = csi::ListVolumesRequest { max_entries: most, starting_token: token.into() };
    csi.client.clone().list_volumes(request).await.unwrap().into_inner()
}

async fn get(csi: &Csi, volume: &str) -> Result<csi::ControllerGetVolumeResponse, tonic::Status> {
    let request = csi::ControllerGetVolumeRequest { volume_id: volume.into() };
    Ok(csi.client.clone().controller_get_volume(request).await?.into_inner())
}

/// Each volume with its nodes.
async fn listed(csi: &Csi) -> Vec<(String, Vec<String>)> {
    let all = page(csi, 0, "").await;
    assert_eq!(all.next_token, "");
    let of = |entry: csi::list_volumes_response::Entry| {
        (entry.volume.unwrap().volume_id, entry.status.unwrap().published_node_ids)
    };
    all.entries.into_iter().map(of).collect()
}

async fn condition(csi: &Csi, volume: &str) -> csi::VolumeCondition {
    get(csi, volume).await.unwrap().status.unwrap().volume_condition.unwrap()
}

fn at(volume: &str, nodes: &[&str]) -> (String, Vec<String>) {
    (volume.into(), nodes.iter().map(ToString::to_string).collect())
}

#[tokio::test]
async fn a_node_is_listed_from_its_publish_to_the_evidence() {
    let (mut world, csi, [(host, _agent)]) = World::with_volume("pvc-1", ["node-a"]).await;
    csi.create("pvc-0").await.unwrap();
    assert_eq!(listed(&csi).await, [at("pvc-0", &[]), at("pvc-1", &[])]);
    csi.publish("pvc-1", "node-a", RWO).await.unwrap();
    assert_eq!(listed(&csi).await, [at("pvc-0", &[]), at("pvc-1", &["node-a"])]);
    *host.on_detach.lock().unwrap() = OnDetach::Hold;
    let leaving = tokio::spawn({
        let csi = csi.clone();
        async move { csi.unpublish("pvc-1", "node-a").await }
    });
    eventually("it is being detached", async || {
        world.volume("pvc-1").await.attachments.iter().any(|a| a.phase == "Draining")
    })
    .await;
    assert_eq!(listed(&csi).await[1], at("pvc-1", &["node-a"]), "it may still write");
    world.kill();
    leaving.await.unwrap().unwrap_err();
    world.start().await;
    let csi = world.csi().await;
    eventually("the RDS was listed", async || get(&csi, "pvc-1").await.is_ok()).await;
    assert_eq!(listed(&csi).await[1], at("pvc-1", &["node-a"]), "also by the next controller");
    let status = get(&csi, "pvc-1").await.unwrap().status.unwrap();
    assert_eq!(status.published_node_ids, ["node-a"]);
    *host.on_detach.lock().unwrap() = OnDetach::Absent("live");
    let _agent = world.agent(&host).await;
    csi.unpublish("pvc-1", "node-a").await.unwrap();
    assert_eq!(listed(&csi).await[1], at("pvc-1", &[]));
}

#[tokio::test]
async fn pages_stay_good_while_volumes_come_and_go() {
    let (_world, csi) = World::served().await;
    for name in ["b", "d", "f", "h"] {
        csi.create(name).await.unwrap();
    }
    let first = page(&csi, 2, "").await;
    let names = |page: &csi::ListVolumesResponse| {
        page.entries.iter().map(|e| e.volume.clone().unwrap().volume_id).collect::<Vec<_>>()
    };
    assert_eq!(names(&first), ["b", "d"]);
    csi.delete("d").await.unwrap();
    for name in ["a", "e"] {
        csi.create(name).await.unwrap();
    }
    let second = page(&csi, 2, &first.next_token).await;
    assert_eq!(names(&second), ["e", "f"]);
    let last = page(&csi, 2, &second.next_token).await;
    assert_eq!((names(&last), last.next_token.as_str()), (vec!["h".to_owned()], ""));
    let refused = |most, token: &str| {
        let request = csi::ListVolumesRequest { max_entries: most, starting_token: token.into() };
        let mut client = csi.client.clone();
        async move { client.list_volumes(request).await.unwrap_err().code() }
    };
    assert_eq!(refused(0, "invalid-token").await, Code::Aborted);
    assert_eq!(refused(-1, "").await, Code::InvalidArgument);
}

#[tokio::test]
async fn without_the_list_of_the_rds_there_is_no_answer() {
    let (world, csi, [(_, _agent)]) = World::with_volume("pvc-1", ["node-a"]).await;
    csi.publish("pvc-1", "node-a", RWO).await.unwrap();
    world.rds.away.send_replace(true);
    let listing = csi.client.clone().list_volumes(csi::ListVolumesRequest::default()).await;
    assert_eq!(listing.unwrap_err().code(), Code::Unavailable);
    assert_eq!(get(&csi, "pvc-1").await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn what_one_side_alone_knows_is_listed_as_long_as_somebody_has_it() {
    let (world, csi, [(_, _agent)]) = World::with_volume("pvc-1", ["node-a"]).await;
    csi.publish("pvc-1", "node-a", RWO).await.unwrap();
    let there = world.rds.volumes.lock().unwrap().remove(&VolumeId::new("pvc-1").unwrap());
    assert_eq!(listed(&csi).await, [at("pvc-1", &["node-a"])]);
    let condition_of = condition(&csi, "pvc-1").await;
    assert!(condition_of.abnormal && condition_of.message.contains("no such volume"), "{condition_of:?}");
    csi.unpublish("pvc-1", "node-a").await.unwrap();
    assert_eq!(listed(&csi).await, [], "nobody has it, and the RDS lacks it");
    assert_eq!(get(&csi, "pvc-1").await.unwrap_err().code(), Code::NotFound);
    world.rds.volumes.lock().unwrap().extend(there.map(|volume| (volume.id.clone(), volume)));
    assert_eq!(listed(&csi).await, [at("pvc-1", &[])]);
}

#[tokio::test]
async fn a_lost_path_is_the_condition_of_the_volume_and_a_silent_agent() {
    let (world, csi, [(_, agent)]) = World::with_volume("pvc-1", ["node-a"]).await;
    csi.publish("pvc-1", "node-a", RWO).await.unwrap();
    assert!(!condition(&csi, "pvc-1").await.abnormal);
    agent.delta("pvc-1", Phase::Degraded, 1).await;
    eventually("it is degraded", async || condition(&csi, "pvc-1").await.abnormal).await;
    let said = condition(&csi, "pvc-1").await.message;
    assert!(said.contains("node-a") && said.contains("1 live path"), "{said}");
    let listed = page(&csi, 0, "").await.entries;
    assert!(listed[0].status.clone().unwrap().volume_condition.unwrap().abnormal);
    drop(agent);
    eventually("its agent is silent", async || {
        condition(&csi, "pvc-1").await.message.contains("the agent of node node-a is not heard")
    })
    .await;
    assert_eq!(world.volume("pvc-1").await.attachments.len(), 1);
}

#[tokio::test]
async fn a_publish_beyond_the_limit_that_the_agent_sets_is_exhausted() {
    let (world, csi) = World::served().await;
    let host = crate::agent::Host::new("node-a", 1);
    host.hello.lock().unwrap().max_volumes = 1;
    let _agent = world.agent(&host).await;
    for name in ["pvc-1", "pvc-2"] {
        csi.create(name).await.unwrap();
    }
    csi.publish("pvc-1", "node-a", RWO).await.unwrap();
    let full = csi.publish("pvc-2", "node-a", RWO).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted, "{full:?}");
    assert!(full.message().contains("--max-volumes"), "{full:?}");
    csi.unpublish("pvc-1", "node-a").await.unwrap();
    csi.publish("pvc-2", "node-a", RWO).await.unwrap();
}
