//! Tickets over gRPC and with `cleatctl`: put, satisfied, interrupted for a workload, renewed after a restart, ended.

use cleat_proto::cleat::v1 as proto;
use proto::operator_client::OperatorClient;
use tonic::Code;
use tonic::transport::Channel;

use crate::operators::cleatctl;
use crate::world::{RWO, RWX, World, eventually};

fn backup(node: &str) -> proto::PutTicketRequest {
    proto::PutTicketRequest {
        id: "nightly".into(),
        volume_id: "pvc-1".into(),
        kind: "backup".into(),
        node_id: node.into(),
        holder: "velero".into(),
        generation: 1,
        ..Default::default()
    }
}

async fn ticket(operator: &OperatorClient<Channel>, id: &str) -> Result<proto::TicketInfo, tonic::Status> {
    let request = proto::GetTicketRequest { id: id.into() };
    Ok(operator.clone().get_ticket(request).await?.into_inner())
}

async fn is_satisfied_on(operator: &OperatorClient<Channel>, node: &str) -> bool {
    let stands = ticket(operator, "nightly").await.unwrap();
    stands.satisfied && stands.satisfied_generation == stands.generation && stands.node_id == node
}

#[tokio::test]
async fn a_backup_gives_way_to_a_workload_and_is_satisfied_beside_it() {
    let mut world = World::new();
    world.core.interrupt_grace_ms = 1_500;
    world.start().await;
    let csi = world.csi().await;
    let [(_a, _one), (_b, _two)] = world.nodes(["node-a", "node-b"]).await;
    csi.create("pvc-1").await.unwrap();
    let mut operator = world.operator().await;
    let put = operator.put_ticket(backup("node-a")).await.unwrap().into_inner();
    assert_eq!((&*put.id, &*put.kind, put.priority, &*put.holder), ("nightly", "backup", 800, "velero"));
    eventually("the backup has it", async || is_satisfied_on(&operator, "node-a").await).await;
    let volume = world.volume("pvc-1").await;
    assert_eq!((volume.attachments.len(), &*volume.attachments[0].node_id), (1, "node-a"));

    let publishing = tokio::spawn({
        let csi = csi.clone();
        async move { csi.publish("pvc-1", "node-b", RWO).await }
    });
    eventually("its holder is shown until when", async || {
        let stands = ticket(&operator, "nightly").await.unwrap();
        stands.interrupted_until_unix_ms > 0 && stands.waits_on == "ticket csi.node-b"
    })
    .await;
    publishing.await.unwrap().unwrap();
    eventually("it is satisfied again", async || is_satisfied_on(&operator, "node-b").await).await;

    let ended = operator.delete_ticket(proto::DeleteTicketRequest { id: "nightly".into() }).await;
    ended.unwrap();
    assert_eq!(ticket(&operator, "nightly").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(world.volume("pvc-1").await.attachments[0].phase, "Ready", "the workload keeps it");
    csi.unpublish("pvc-1", "node-b").await.unwrap();
}

#[tokio::test]
async fn a_ticket_that_was_attached_before_a_restart_is_renewed_after_it() {
    let (mut world, _csi, [(host, agent)]) = World::with_volume("pvc-1", ["node-a"]).await;
    let operator = world.operator().await;
    operator.clone().put_ticket(backup("")).await.unwrap();
    let waits = ticket(&operator, "nightly").await.unwrap();
    assert_eq!((waits.satisfied, &*waits.waits_for), (false, "any node to have the volume: it names none"));
    operator.clone().put_ticket(proto::PutTicketRequest { generation: 2, ..backup("node-a") }).await.unwrap();
    eventually("the backup has it", async || is_satisfied_on(&operator, "node-a").await).await;
    world.stop().await.unwrap();
    drop(agent);

    world.start().await;
    let _agent = world.agent(&host).await;
    let mut operator = world.operator().await;
    let kept = ticket(&operator, "nightly").await.unwrap();
    assert_eq!((kept.satisfied, kept.generation, &*kept.node_id), (false, 2, "node-a"));
    assert!(kept.waits_for.starts_with("its holder to renew it"), "{kept:?}");
    operator.renew_ticket(proto::RenewTicketRequest { id: "nightly".into() }).await.unwrap();
    eventually("it is satisfied again", async || is_satisfied_on(&operator, "node-a").await).await;
    let unknown = operator.renew_ticket(proto::RenewTicketRequest { id: "other".into() }).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
    operator.delete_ticket(proto::DeleteTicketRequest { id: "nightly".into() }).await.unwrap();
    eventually("the last ticket takes the volume along", async || {
        world.volume("pvc-1").await.attachments.is_empty()
    })
    .await;
    operator.delete_ticket(proto::DeleteTicketRequest { id: "nightly".into() }).await.unwrap();
}

#[tokio::test]
async fn a_publish_beside_a_ticket_says_how_many_may_have_the_volume() {
    let (world, csi, [(_a, _one), (_b, _two)]) = World::with_volume("pvc-1", ["node-a", "node-b"]).await;
    let operator = world.operator().await;
    operator.clone().put_ticket(backup("node-a")).await.unwrap();
    eventually("the backup has it", async || is_satisfied_on(&operator, "node-a").await).await;
    csi.publish("pvc-1", "node-a", RWX).await.unwrap();
    csi.publish("pvc-1", "node-b", RWX).await.unwrap();
    assert_eq!(world.volume("pvc-1").await.attachments.len(), 2);
}

#[tokio::test]
async fn a_ticket_that_cannot_be_is_refused_by_what_it_asks_for() {
    let (world, _csi, []) = World::with_volume("pvc-1", []).await;
    let put = async |wish: proto::PutTicketRequest| {
        world.operator().await.put_ticket(wish).await.map(drop).map_err(|s| s.code())
    };
    assert_eq!(
        put(proto::PutTicketRequest { kind: "csi".into(), ..backup("") }).await,
        Err(Code::InvalidArgument)
    );
    let elsewhere = || proto::PutTicketRequest { volume_id: "pvc-2".into(), ..backup("") };
    assert_eq!(put(elsewhere()).await, Err(Code::NotFound), "the RDS has no such volume");
    assert_eq!(put(backup("")).await, Ok(()));
    assert_eq!(put(elsewhere()).await, Err(Code::AlreadyExists), "an id names one ticket");
    for number in 1..32 {
        assert_eq!(put(proto::PutTicketRequest { id: format!("t{number}"), ..backup("") }).await, Ok(()));
    }
    let more = proto::PutTicketRequest { id: "more".into(), ..backup("") };
    assert_eq!(put(more).await, Err(Code::ResourceExhausted));
    let of = |volume: &str| proto::ListTicketsRequest { volume_id: volume.into() };
    let mut operator = world.operator().await;
    assert_eq!(operator.list_tickets(of("pvc-1")).await.unwrap().into_inner().tickets.len(), 32);
    assert_eq!(operator.list_tickets(of("pvc-2")).await.unwrap().into_inner().tickets.len(), 0);
}

#[tokio::test]
async fn cleatctl_makes_shows_and_ends_a_ticket() {
    let (world, _csi, [(_a, _one)]) = World::with_volume("pvc-1", ["node-a"]).await;
    let (code, _, complaint) = cleatctl(
        &world,
        &["ticket", "create", "pvc-1", "--type", "backup", "--node", "node-a", "--holder", "velero"],
    )
    .await;
    assert_eq!(code, 0, "{complaint}");
    let show = ["ticket", "show", "backup.pvc-1"];
    eventually("it is there", async || cleatctl(&world, &show).await.1.contains("satisfied")).await;
    let (_, shown, _) = cleatctl(&world, &show).await;
    assert!(
        shown.starts_with("Ticket backup.pvc-1 (backup) for volume pvc-1: satisfied since 20"),
        "{shown}"
    );
    assert!(shown.contains("on node node-a"), "{shown}");
    let (_, listed, _) = cleatctl(&world, &["ticket", "ls", "pvc-1"]).await;
    assert!(listed.contains("pvc-1   backup.pvc-1  backup  800       node-a  satisfied"), "{listed}");
    let (_, json, _) = cleatctl(&world, &["ticket", "ls", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json[0]["id"], &json[0]["satisfied_generation"]), (&"backup.pvc-1".into(), &1.into()));
    let (code, _, complaint) = cleatctl(&world, &["ticket", "renew", "backup.pvc-1"]).await;
    assert_eq!(code, 0, "{complaint}");
    let (_, ended, _) = cleatctl(&world, &["ticket", "delete", "backup.pvc-1"]).await;
    assert_eq!(ended, "Ticket backup.pvc-1 has ended.\n");
    let (code, _, complaint) = cleatctl(&world, &["ticket", "show", "shop/nightly"]).await;
    assert_eq!(code, 1);
    assert!(complaint.starts_with("cleatctl: cannot find ticket shop/nightly: "), "{complaint}");
    let (_, none, _) = cleatctl(&world, &["ticket", "ls"]).await;
    assert_eq!(none, "There are no tickets.\n");
}
