//! A fence that rests on the export alone: what callers are told while it is off, and that nothing brings it back early.

use cleat_core::TargetAbilities;
use tonic::Code;

use crate::world::{RWX, World, eventually};

#[tokio::test]
async fn a_second_node_knows_what_it_waits_for_and_keeps_the_export_off() {
    let mut world = World::new();
    world.core.target =
        TargetAbilities { export_cuts: true, export_drains: true, ..TargetAbilities::default() };
    (world.core.fence_after_ms, world.core.detach_grace_ms) = (300, 500);
    world.start().await;
    let csi = world.csi().await;
    let [(a, gone), (b, _two)] = world.nodes(["node-a", "node-b"]).await;
    csi.create("vm-1").await.unwrap();
    csi.publish("vm-1", "node-a", RWX).await.unwrap();
    let asked = |line: String| world.rds.log.lock().unwrap().contains(&line);

    drop(gone);
    world.rds.stuck.send_replace(true);
    let unpublishing = tokio::spawn({
        let csi = csi.clone();
        async move { csi.unpublish("vm-1", "node-a").await }
    });
    eventually("the export goes off", async || asked("hide vm-1".into())).await;
    let waits = csi.publish("vm-1", "node-b", RWX).await.unwrap_err();
    assert_eq!(waits.code(), Code::Aborted);
    for words in ["volume vm-1", "node-a", "rung export-off", "the RDS to take the export off"] {
        assert!(waits.message().contains(words), "{words} is not in {}", waits.message());
    }
    world.rds.stuck.send_replace(false);
    unpublishing.await.unwrap().unwrap();
    let refused = csi.publish("vm-1", "node-b", RWX).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    for words in ["vm-1 is not exported", "node-a was fenced by that alone", "declare-gone node-a"] {
        assert!(refused.message().contains(words), "{words} is not in {}", refused.message());
    }
    assert!(!asked(format!("allow vm-1 {}", b.nqn())) && !asked("show vm-1".into()));

    let _one = world.agent(&a).await;
    eventually("readmitted", async || world.node("node-a").await.standing == "Admitted").await;
    csi.publish("vm-1", "node-b", RWX).await.expect("the export is back");
    assert!(asked(format!("allow vm-1 {}", b.nqn())), "which brings it back");
}
