//! What agents count of writes, and what the controller makes of it.

use std::sync::Arc;

use cleat_proto::SESSION_PROTOCOL;
use cleat_proto::cleat::v1 as proto;

use crate::agent::Host;
use crate::world::{RWX, World, eventually};

/// What a host was asked to count.
fn counts(host: &Host) -> Vec<proto::Count> {
    host.told(|kind| match kind {
        proto::to_agent::Kind::Count(count) => Some(count.clone()),
        _ => None,
    })
}

#[tokio::test]
async fn agents_are_asked_to_count_and_older_ones_are_not() {
    for (protocol, asked) in
        [(SESSION_PROTOCOL - 1, false), (SESSION_PROTOCOL, true), (SESSION_PROTOCOL + 1, true)]
    {
        let (world, csi) = World::served().await;
        let hosts = [Host::new("node-a", 1), Host::new("node-b", 2)];
        let mut agents = Vec::new();
        for host in &hosts {
            host.hello.lock().unwrap().protocol = protocol;
            agents.push(world.agent(host).await);
        }
        csi.create("vm-1").await.unwrap();
        for node in ["node-a", "node-b"] {
            csi.publish("vm-1", node, RWX).await.unwrap();
        }
        // A detach comes after it on the same stream.
        for node in ["node-a", "node-b"] {
            csi.unpublish("vm-1", node).await.unwrap();
        }
        for host in &hosts {
            assert_eq!(!counts(host).is_empty(), asked, "protocol {protocol}");
        }
    }
}

#[tokio::test]
async fn the_targets_first_write_is_a_step_of_the_migration() {
    let (world, csi, [(a, one), (b, two)]) = World::with_volume("vm-1", ["node-a", "node-b"]).await;
    for node in ["node-a", "node-b"] {
        csi.publish("vm-1", node, RWX).await.unwrap();
    }
    let asked = async |host: &Arc<Host>| {
        eventually("a Count", async || !counts(host).is_empty()).await;
        counts(host).remove(0)
    };
    let (of_a, of_b) = (asked(&a).await, asked(&b).await);
    assert!(of_b.every_ms > 0 && of_b.for_ms >= 30_000, "{of_b:?}");
    let said = |of: &proto::Count, writes| {
        let proto::Count { operation_id, volume_id, epoch, .. } = of.clone();
        let (last_write_age_us, open) = (1_000, true);
        proto::from_agent::Kind::Writes(proto::WritesCounted {
            operation_id,
            volume_id,
            epoch,
            writes,
            last_write_age_us,
            open,
        })
    };
    // What another was asked, and what nobody was.
    two.say(said(&of_a, 1)).await;
    two.say(said(&proto::Count { volume_id: "vm-2".into(), ..of_b.clone() }, 1)).await;
    one.say(said(&of_a, 5)).await;
    two.say(said(&of_b, 0)).await;
    two.say(said(&of_b, 3)).await;
    let by = async || {
        let migration = world.migrations().await.remove(0);
        migration.steps.into_iter().find(|step| step.name == "switchover").map(|step| step.by)
    };
    eventually("the switchover", async || by().await.as_deref() == Some("counters")).await;
    for node in ["node-a", "node-b"] {
        assert_eq!(world.node(node).await.session, "connected");
    }
}
