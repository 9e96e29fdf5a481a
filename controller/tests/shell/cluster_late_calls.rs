//! Calls that wait for the RDS while what the cluster asks for changes: they are held against it once more before they count.

use cleat_api_server::Cluster;
use tonic::Code;

use crate::agent::Host;
use crate::cluster::one;
use crate::world::{RWO, World};

/// The RDS answers no look-up; done once a call waits for one.
async fn waits_for_the_rds(world: &World, looks: u64) {
    world.rds.looks.subscribe().wait_for(|now| *now > looks).await.unwrap();
}

fn holds_up_look_ups(world: &World) -> u64 {
    world.rds.slow.send_replace(true);
    *world.rds.looks.borrow()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn an_unpublish_that_waits_while_it_is_asked_for_again_is_late() {
    let cluster = Cluster::own();
    let world = one(&cluster).await;
    let csi = world.csi().await;
    let looks = holds_up_look_ups(&world);
    let late = tokio::spawn({
        let csi = csi.clone();
        // Of a volume without a record: the RDS is asked.
        async move { csi.unpublish("pvc-1", "node-a").await }
    });
    waits_for_the_rds(&world, looks).await;
    cluster.wants("pvc-1", "node-a", false);
    world.rds.slow.send_replace(false);
    let late = late.await.unwrap().unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition, "{late:?}");
    assert!(late.message().contains("this Unpublish is a late one"), "{late:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn a_publish_that_waits_while_nobody_asks_any_more_attaches_nothing() {
    let cluster = Cluster::own();
    let world = one(&cluster).await;
    let host = Host::new("node-a", 1);
    let _agent = world.agent(&host).await;
    let csi = world.csi().await;
    csi.create("pvc-1").await.unwrap();
    cluster.wants("pvc-1", "node-a", false);
    let looks = holds_up_look_ups(&world);
    let late = tokio::spawn({
        let csi = csi.clone();
        async move { csi.publish("pvc-1", "node-a", RWO).await }
    });
    waits_for_the_rds(&world, looks).await;
    // Its finalizer was taken off: no Unpublish follows.
    cluster.wants_no_more("pvc-1", "node-a");
    world.rds.slow.send_replace(false);
    let late = late.await.unwrap().unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition, "{late:?}");
    assert!(late.message().contains("no VolumeAttachment asks for it"), "{late:?}");
    assert!(host.attaches().is_empty());
}
