//! Nodes that are cut off at the target, and people's words: what the RDS, agents, callers and operators see of it.

use std::collections::HashMap;
use std::sync::Arc;

use cleat_core::{ReservationAbility, TargetAbilities};
use cleat_proto::cleat::v1 as proto;
use cleat_proto::csi::v1 as csi;
use cleat_rds::Priority;
use cleat_rds::secret::{Keys, MasterKey};
use csi::volume_capability::access_mode::Mode;
use proto::to_agent::Kind;
use proto::volume_state::Phase;
use tonic::Code;

use crate::agent::{Agent, Host};
use crate::operators::{cleatctl, cleatctl_of};
use crate::world::{Csi, RWO, RWX, World, block, eventually, publish_request};

const ACL: TargetAbilities = TargetAbilities {
    probed: true,
    acl: true,
    export_cuts: true,
    export_drains: true,
    secret: false,
    reservations: ReservationAbility::None,
};

/// A controller that fences soon, at a target that can do this.
async fn world(target: TargetAbilities) -> World {
    let mut world = World::new();
    world.secure();
    world.core.target = target;
    world.core.fence_after_ms = 300;
    world.core.request_limit_ms = 4_000;
    world.start().await;
    world
}

/// Two nodes that are heard, and a volume on the first.
async fn attached(world: &World, csi: &Csi) -> [(Arc<Host>, Agent); 2] {
    let nodes = world.nodes(["node-a", "node-b"]).await;
    csi.create("vm-1").await.unwrap();
    csi.publish("vm-1", "node-a", RWX).await.unwrap();
    nodes
}

/// The same at a target that can do this.
async fn attached_at(target: TargetAbilities) -> (World, Csi, [(Arc<Host>, Agent); 2]) {
    let world = world(target).await;
    let csi = world.csi().await;
    let nodes = attached(&world, &csi).await;
    (world, csi, nodes)
}

fn changes(world: &World) -> Vec<String> {
    world.rds.log.lock().unwrap().clone()
}

#[tokio::test]
async fn a_silent_node_is_cut_and_drained_and_returns_by_its_inventory() {
    let (world, csi, [(a, gone), (_b, _two)]) = attached_at(ACL).await;
    drop(gone);
    csi.unpublish("vm-1", "node-a").await.unwrap();
    let asked: Vec<String> = changes(&world).into_iter().skip(1).collect();
    let deny = format!("deny vm-1 {}", a.nqn());
    assert_eq!(
        asked,
        [deny, "hide vm-1".into()],
        "first the list, then the cut, and nobody has it: {asked:?}"
    );

    let after = world.volume("vm-1").await;
    let proof = &after.past_evidence[0];
    assert_eq!((proof.source.as_str(), proof.verdict.as_str()), ("TargetCut", "Fenced"));
    assert!(proof.drained_by.contains("namespace"), "{proof:?}");
    assert!(proof.assumption.contains("waits for every write"), "{proof:?}");
    assert_eq!((after.fenced[0].node_id.as_str(), after.fenced[0].host_nqn.as_str()), ("node-a", &*a.nqn()));
    let quarantined = world.node("node-a").await;
    assert_eq!(quarantined.standing, "Quarantined");
    assert_eq!(quarantined.fenced[0].volume_id, "vm-1");
    csi.publish("vm-1", "node-b", RWX).await.expect("another node is free to have it");
    csi.unpublish("vm-1", "node-b").await.unwrap();
    assert_eq!(*world.rds.denied_as.lock().unwrap(), [Priority::Fence, Priority::Detach]);

    // It comes back from its partition with the volume in its kernel, and is told to give it up.
    let _one = world.agent(&a).await;
    eventually("readmitted", async || world.node("node-a").await.standing == "Admitted").await;
    let revoked = a.told(|kind| match kind {
        Kind::Revoke(revoke) => Some(revoke.volume_id.clone()),
        _ => None,
    });
    assert_eq!(revoked, ["vm-1"]);
    assert!(!a.holds("vm-1") && world.volume("vm-1").await.fenced.is_empty());
}

#[tokio::test]
async fn a_volume_deleted_behind_a_fence_is_shown_as_deleted() {
    let (world, csi, [(_a, gone), _b]) = attached_at(ACL).await;
    drop(gone);
    csi.unpublish("vm-1", "node-a").await.unwrap();
    let (_, volumes, _) = cleatctl(&world, &["volumes"]).await;
    assert!(volumes.contains("fenced") && !volumes.contains("deleted"), "{volumes}");
    csi.delete("vm-1").await.unwrap();
    let (_, volumes, _) = cleatctl(&world, &["volumes"]).await;
    assert!(volumes.contains("fenced") && volumes.contains("the volume is deleted"), "{volumes}");
    let (_, shown, _) = cleatctl(&world, &["explain", "vm-1", "-o", "json"]).await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap()["deleted"], true);
}

#[tokio::test]
async fn where_nothing_was_probed_a_silent_node_is_refused_with_a_remedy() {
    let (world, csi, [(_a, gone), _b]) = attached_at(TargetAbilities::default()).await;
    drop(gone);
    let refused = csi.unpublish("vm-1", "node-a").await.unwrap_err();
    for words in ["node-a", "cleatctl node declare-gone node-a", "out-of-service", "acl", "export-off"] {
        assert!(refused.message().contains(words), "{words} is not in {}", refused.message());
    }
    let (_, explained, _) = cleatctl(&world, &["explain", "vm-1"]).await;
    for words in [
        "all fencing methods failed",
        "tried acl: the target has no list",
        "Only node node-a may write to it",
    ] {
        assert!(explained.contains(words), "{words:?} is not in:\n{explained}");
    }
    let (_, volumes, _) = cleatctl(&world, &["volumes"]).await;
    assert!(volumes.contains("Draining  failed"), "{volumes}");

    let declare = ["node", "declare-gone", "node-a", "--reason", "rack 4 burnt"];
    let (code, said, complaint) = cleatctl(&world, &declare).await;
    assert_eq!(code, 0, "{said}{complaint}");
    csi.unpublish("vm-1", "node-a").await.unwrap();
    let proof = world.volume("vm-1").await.past_evidence[0].clone();
    assert_eq!((proof.source.as_str(), proof.by.as_str()), ("NodeGone", "alice"));
    assert_eq!(proof.reason, "rack 4 burnt");
    let (_, explained, _) = cleatctl(&world, &["explain", "vm-1"]).await;
    assert!(explained.contains("declared gone by alice: rack 4 burnt"), "{explained}");
}

#[tokio::test]
async fn a_person_who_fences_a_node_in_use_is_named_with_the_reason() {
    let (world, _csi, [(a, _one), _b]) = attached_at(ACL).await;
    *a.on_detach.lock().unwrap() = crate::agent::OnDetach::Busy("pid 7 (qemu)");
    let fence = ["fence", "vm-1", "node-a", "--reason", "its guest hangs"];
    let (code, said, complaint) = cleatctl_of(&world, "bob", &fence).await;
    assert_eq!(code, 0, "{said}{complaint}");
    assert!(said.contains("Proven: node node-a cannot write to volume vm-1."), "{said}");
    // And afterwards, by the record.
    let proof = world.volume("vm-1").await.past_evidence[0].clone();
    assert_eq!((proof.wanted_by.as_str(), proof.wanted_because.as_str()), ("bob", "its guest hangs"));
    let (_, explained, _) = cleatctl(&world, &["explain", "vm-1"]).await;
    assert!(explained.contains("forced by bob: its guest hangs"), "{explained}");
    let (code, _, complaint) = cleatctl(&world, &["fence", "vm-2", "node-a", "--reason", "x"]).await;
    assert_eq!(code, 1, "{complaint}");
    assert!(complaint.contains("there is nothing to fence"), "{complaint}");
    let request =
        proto::FenceRequest { volume_id: "vm-1".into(), node_id: "node-a".into(), ..Default::default() };
    let nameless = world.operator().await.fence(request).await.unwrap_err();
    assert_eq!(nameless.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_node_that_is_heard_is_not_gone() {
    let (world, _csi, _nodes) = attached_at(ACL).await;
    let declare = ["node", "declare-gone", "node-a", "--reason", "so I heard"];
    let (code, _, complaint) = cleatctl(&world, &declare).await;
    assert_eq!(code, 1);
    assert!(complaint.contains("cannot declare node node-a gone"), "{complaint}");
    assert!(world.volume("vm-1").await.attachments[0].may_write);
}

#[tokio::test]
async fn a_secret_goes_to_the_rds_and_the_agents_and_changes_under_the_survivor() {
    let mut world = World::new();
    world.agents.secrets = Some(Arc::new(Keys::new(MasterKey::passing(&[7; 32]), None)));
    world.core.target = TargetAbilities { secret: true, acl: false, ..ACL };
    world.core.fence_after_ms = 300;
    world.start().await;
    let csi = world.csi().await;
    let [(a, gone), (b, _two)] = attached(&world, &csi).await;
    csi.publish("vm-1", "node-b", RWX).await.unwrap();
    let at_rds = || world.rds.secrets.lock().unwrap().values().next().cloned().unwrap();
    let first = at_rds();
    assert!(first.starts_with("DHHC-1:00:") && first.ends_with(':'), "the form that hosts take");
    assert_eq!(a.attaches()[0].dhchap_secret, first);
    assert_eq!(b.attaches()[0].dhchap_secret, first);

    drop(gone);
    csi.unpublish("vm-1", "node-a").await.unwrap();
    let second = at_rds();
    assert_ne!(second, first);
    let told = b.told(|kind| match kind {
        Kind::Rekey(rekey) => Some(rekey.dhchap_secret.clone()),
        _ => None,
    });
    assert_eq!(told, std::slice::from_ref(&second), "the survivor was told, once");
    let asked = changes(&world);
    let place = |line: &str| asked.iter().rposition(|asked| asked == line).unwrap();
    assert!(place("set the secret of vm-1") < place("hide vm-1"), "{asked:?}");
    let proof = world.volume("vm-1").await.past_evidence[0].clone();
    assert!(proof.assumption.contains("without the secret"), "{proof:?}");
    // No secret is in what is stored, nor in what operators see.
    let stored = stored(&world);
    let (_, shown, _) = cleatctl(&world, &["explain", "vm-1", "-o", "json"]).await;
    assert!(![&first, &second].iter().any(|secret| stored.contains(*secret) || shown.contains(*secret)));
}

#[tokio::test]
async fn an_attached_volume_keeps_its_secret_when_the_master_key_changes() {
    let [before, today] = [[7; 32], [8; 32]].map(|key| MasterKey::passing(&key));
    let mut world = World::new();
    world.agents.secrets = Some(Arc::new(Keys::new(before.clone(), None)));
    world.core.target = TargetAbilities { secret: true, acl: false, ..ACL };
    world.start().await;
    let csi = world.csi().await;
    let [(a, one), (b, two)] = attached(&world, &csi).await;
    let told = |host: &Host| {
        let attach = host.attaches().last().cloned().unwrap();
        let said = attach.secret_generation.unwrap();
        (attach.dhchap_secret, cleat_core::Epoch { term: said.term, seq: said.seq })
    };
    let (first, generation) = told(&a);
    let vm = cleat_core::VolumeId::new("vm-1").unwrap();
    assert_eq!(first, before.secret(&vm, generation).reveal());

    // Changed, and changed again by a restart that changes nothing.
    for _ in 0..2 {
        world.stop().await.unwrap();
        world.agents.secrets = Some(Arc::new(Keys::new(today.clone(), Some(before.clone()))));
        world.start().await;
    }
    drop((one, two));
    let _agents = [world.agent(&a).await, world.agent(&b).await];
    let csi = world.csi().await;
    csi.publish("vm-1", "node-b", RWX).await.unwrap();
    assert_eq!(told(&b), (first.clone(), generation), "as node-a and the RDS have it");
    csi.unpublish("vm-1", "node-a").await.unwrap();
    csi.unpublish("vm-1", "node-b").await.unwrap();
    csi.publish("vm-1", "node-a", RWX).await.unwrap();
    let (second, generation) = told(&a);
    assert_eq!(second, today.secret(&vm, generation).reveal(), "and with nobody left, of the key of today");
    assert_eq!(world.rds.secrets.lock().unwrap().values().next(), Some(&second));
    assert_ne!(second, first);
}

#[tokio::test]
async fn a_grant_whose_key_is_missing_is_refused_by_that_key_and_others_go_on() {
    let [lost, today] = [[7; 32], [8; 32]].map(|key| MasterKey::passing(&key));
    let mut world = World::new();
    world.secure();
    world.agents.secrets = Some(Arc::new(Keys::new(lost.clone(), None)));
    world.core.target = TargetAbilities { secret: true, ..ACL };
    world.start().await;
    let csi = world.csi().await;
    let [(a, one), (b, two)] = attached(&world, &csi).await;
    world.stop().await.unwrap();
    world.agents.secrets = Some(Arc::new(Keys::new(today.clone(), None)));
    world.start().await;
    drop((one, two));
    let _agents = [world.agent(&a).await, world.agent(&b).await];
    let csi = world.csi().await;

    let key = lost.id().to_string();
    let parts = ["vm-1", key.as_str(), "--old-secret-key-file", "secret"];
    for _ in 0..2 {
        let refused = csi.publish("vm-1", "node-b", RWX).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(parts.iter().all(|part| refused.message().contains(part)), "{refused:?}");
    }
    let told_of = |volume: &str| b.attaches().iter().filter(|attach| attach.volume_id == volume).count();
    assert_eq!(told_of("vm-1"), 0, "told to connect without the secret");
    // The one that has it keeps it, and other volumes are nothing of it.
    csi.publish("vm-1", "node-a", RWX).await.expect("the grant stands");
    csi.create("vm-2").await.unwrap();
    csi.publish("vm-2", "node-b", RWX).await.expect("another volume");
    assert!(b.attaches().iter().all(|attach| !attach.dhchap_secret.is_empty()));
    let (code, said, _) = cleatctl(&world, &["doctor"]).await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("key-missing") && parts[..3].iter().all(|part| said.contains(part)), "{said}");

    csi.unpublish("vm-1", "node-b").await.unwrap();
    csi.unpublish("vm-1", "node-a").await.unwrap();
    let (code, said, _) = cleatctl(&world, &["doctor"]).await;
    assert_eq!(code, 0, "nobody needs that key any more: {said}");
    csi.publish("vm-1", "node-b", RWX).await.expect("with a secret of today's key");
    assert_eq!(told_of("vm-1"), 1);
}

/// All that the store has on disk, its log of changes included.
fn stored(world: &World) -> String {
    let store = world.store();
    let files = std::fs::read_dir(store.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let name = store.file_name().unwrap().to_string_lossy().into_owned();
    let ours = files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&name));
    let text: String =
        ours.map(|path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()).collect();
    assert!(text.contains("vm-1"), "the store's files are not where they are looked for");
    text
}

#[tokio::test]
async fn another_node_preempts_the_registration_of_a_silent_one() {
    let (world, csi, [(a, gone), (b, _two)]) =
        attached_at(TargetAbilities { reservations: ReservationAbility::AbortWaits, ..ACL }).await;
    csi.publish("vm-1", "node-b", RWX).await.unwrap();
    let (first, second) = (&a.attaches()[0], &b.attaches()[0]);
    assert!(first.reserve && second.reserve);
    let epoch = first.epoch.unwrap();
    assert_eq!(first.reservation_key, epoch.term << 22 | epoch.seq);
    *b.registered.lock().unwrap() = vec![first.reservation_key, second.reservation_key];
    drop(gone);
    csi.unpublish("vm-1", "node-a").await.unwrap();
    let preempts = b.told(|kind| match kind {
        Kind::Preempt(preempt) => Some((preempt.reservation_key, preempt.victim_keys.clone())),
        _ => None,
    });
    assert_eq!(preempts, [(second.reservation_key, vec![first.reservation_key])]);
    let proof = world.volume("vm-1").await.past_evidence[0].clone();
    assert_eq!(proof.source, "Reservation", "{proof:?}");
    let changes = changes(&world);
    assert!(
        changes.contains(&"hide vm-1".to_owned()),
        "it would write again once nobody is registered: {changes:?}"
    );
}

#[tokio::test]
async fn a_fence_goes_on_where_a_killed_controller_left_it() {
    let (mut world, csi, [(_a, gone), _b]) = attached_at(ACL).await;
    drop(gone);
    world.rds.stuck.send_replace(true);
    let asking = csi.clone();
    let waiting = tokio::spawn(async move { asking.unpublish("vm-1", "node-a").await });
    eventually("the fence has begun", async || changes(&world).iter().any(|line| line.starts_with("deny")))
        .await;
    world.kill();
    assert!(waiting.await.unwrap().is_err());
    world.rds.stuck.send_replace(false);
    world.start().await;
    world.csi().await.unpublish("vm-1", "node-a").await.unwrap();
    assert_eq!(world.volume("vm-1").await.past_evidence[0].source, "TargetCut");
}

fn create_request(min_fence: &str, mode: Mode) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: "vm-1".into(),
        volume_capabilities: vec![block(mode)],
        parameters: HashMap::from([("minFence".to_owned(), min_fence.to_owned())]),
        ..Default::default()
    }
}

#[tokio::test]
async fn what_must_suffice_travels_from_create_to_the_fence() {
    let mut world = world(ACL).await;
    let csi = world.csi().await;
    let made = csi.client.clone().create_volume(create_request("acl", RWO)).await.unwrap().into_inner();
    let made = made.volume.unwrap();
    assert_eq!(made.volume_context["cleat.io/min-fence"], "acl");
    // The RDS is set up anew, or exchanged: it keeps to no lists any more.
    world.kill();
    world.core.target.acl = false;
    world.start().await;
    let csi = world.csi().await;
    let host = Host::new("node-a", 1);
    let agent = world.agent(&host).await;
    let publish = csi::ControllerPublishVolumeRequest {
        volume_context: made.volume_context,
        ..publish_request("vm-1", "node-a", RWO)
    };
    csi.client.clone().controller_publish_volume(publish).await.unwrap();
    assert_eq!(world.volume("vm-1").await.min_fence, "acl");
    drop(agent);
    let refused = csi.unpublish("vm-1", "node-a").await.unwrap_err();
    assert!(refused.message().contains("weaker than the volume's minFence, acl"), "{}", refused.message());
    assert!(!changes(&world).contains(&"hide vm-1".to_owned()));
}

#[tokio::test]
async fn a_volume_is_not_made_for_a_fence_that_nobody_could_do() {
    let world = world(ACL).await;
    let csi = world.csi().await;
    let refused = async |min_fence: &str, mode: Mode, code: Code, words: &[&str]| {
        let request = create_request(min_fence, mode);
        let refused = csi.client.clone().create_volume(request).await.unwrap_err();
        assert_eq!(refused.code(), code);
        for word in words {
            assert!(refused.message().contains(word), "{word} is not in {}", refused.message());
        }
    };
    let names = "node-gone, export-off, acl, secret, reservation";
    refused("strong", RWO, Code::InvalidArgument, &["minFence", "strong", names]).await;
    refused("reservation", RWO, Code::InvalidArgument, &["minFence", "two nodes", "Use acl or secret"]).await;
    let asks_none = "secret (the target asks for no secret)";
    refused("secret", RWO, Code::FailedPrecondition, &["minFence", asks_none, "cleatctl rds probe"]).await;
    refused("reservation", RWX, Code::FailedPrecondition, &["reservation (the target has no reservations)"])
        .await;
    let made = || world.rds.volumes.lock().unwrap().len();
    assert_eq!(made(), 0, "refused, and made all the same");
    for met in ["node-gone", "export-off", "acl"] {
        csi.client.clone().create_volume(create_request(met, RWO)).await.unwrap();
        assert_eq!(made(), 1);
        csi.delete("vm-1").await.unwrap();
    }
}

#[tokio::test]
async fn doctor_names_what_is_not_where_it_should_be() {
    let world = world(ACL).await;
    let csi = world.csi().await;
    let (code, said, _) = cleatctl(&world, &["doctor"]).await;
    assert_eq!((code, said.trim()), (0, "No problems found."));
    let [(a, _one), (b, two)] = attached(&world, &csi).await;
    // Another device staged, a session without a grant, and two hosts of one identity.
    csi.create("vm-2").await.unwrap();
    let mut elsewhere = b.hold("vm-2", proto::Epoch { term: 1, seq: 1 }, Phase::Ready);
    let staging = proto::Staging { path: "/staging/vm-2".into(), device: "8:16".into(), same: false };
    elsewhere.staging.push(staging);
    two.say(proto::from_agent::Kind::Delta(elsewhere)).await;
    let twin = Host::new("node-c", 1);
    let turned_away = world.dial(&twin).await.ended().await;
    assert_eq!(turned_away.code(), Code::FailedPrecondition);
    let expected = [
        ("session-without-grant", "node-b"),
        ("staging-elsewhere", "node-b"),
        ("duplicate-identity", "node-c"),
    ];
    eventually("the drift are seen", async || {
        let drift = world.drift().await;
        expected.iter().all(|(kind, node)| drift.iter().any(|g| g.kind == *kind && g.node_id == *node))
    })
    .await;
    let (code, said, complaint) = cleatctl(&world, &["doctor"]).await;
    assert_eq!(code, 1, "{complaint}");
    assert!(said.contains("/staging/vm-2") && said.contains("8:16") && said.contains(&a.nqn()), "{said}");
}

#[tokio::test]
async fn doctor_names_a_grant_whose_node_holds_nothing_and_cannot_get_it_back() {
    let (world, csi, [(a, one), _b]) = attached_at(ACL).await;
    // Its kernel has lost the device, and does not get it again.
    *a.on_attach.lock().unwrap() = crate::agent::OnAttach::Fail("connect");
    let mut gone = a.hold("vm-1", a.attaches()[0].epoch.unwrap(), Phase::Connecting);
    gone.set_phase(Phase::Absent);
    one.say(proto::from_agent::Kind::Delta(gone)).await;
    eventually("it is seen", async || !world.drift().await.is_empty()).await;
    let found = &world.drift().await[0];
    let named = (found.kind.as_str(), found.node_id.as_str(), found.volume_id.as_str());
    assert_eq!(named, ("grant-without-session", "node-a", "vm-1"));
    let (code, said, _) = cleatctl(&world, &["doctor"]).await;
    assert_eq!(code, 1);
    assert!(said.contains("whose kernel holds no controller of it"), "{said}");
    assert!(said.contains("connect: the facts"), "and why it does not get it: {said}");
    // It is the agent's to have it again, and then nothing is wrong.
    *a.on_attach.lock().unwrap() = crate::agent::OnAttach::Ready;
    eventually("it is there again", async || world.drift().await.is_empty()).await;
    csi.publish("vm-1", "node-a", RWX).await.expect("the grant stands");
}
