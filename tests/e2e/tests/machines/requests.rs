//! Requests that cannot be served: the code that a sidecar acts on, and the words that a person needs.

use std::collections::HashMap;

use anyhow::ensure;
use cleat_e2e::world::{Access, NQN_PREFIX, Volume, World};
use cleat_proto::csi::v1 as csi;
use tonic::{Code, Status};

use crate::fixture::{self, delete, refused, take_off};

/// NotFound only because the RDS itself has said that there is no such volume.
pub(crate) async fn an_unknown_volume_is_not_found(world: &World) -> anyhow::Result<()> {
    let nobody = Volume {
        id: "pvc-nobody".to_owned(),
        access: Access::RwoBlock,
        size_bytes: 0,
        context: HashMap::new(),
    };
    refused(world.publish(&nobody, world.a()).await, Code::NotFound, &["pvc-nobody"])?;
    // Nothing is there to be taken away: both succeed.
    world.unpublish(&nobody, world.a()).await?;
    world.delete_volume(&nobody).await?;
    Ok(())
}

/// AlreadyExists: the same name or the same attachment, and not the same thing.
pub(crate) async fn other_arguments_for_what_exists_already_are_refused(world: &World) -> anyhow::Result<()> {
    let volume = fixture::volume(world, "other-arguments", Access::RwoBlock).await?;
    let larger = world.create_volume("other-arguments", Access::RwoBlock, 2 * fixture::VOLUME_BYTES).await;
    refused(larger, Code::AlreadyExists, &["other-arguments"])?;
    let same = world.create_volume("other-arguments", Access::RwoBlock, fixture::VOLUME_BYTES).await?;
    ensure!(same.value == volume, "{:?}, before {volume:?}", same.value);

    let attached = world.attach(&volume, world.a()).await?;
    let request = csi::ControllerPublishVolumeRequest {
        volume_id: volume.id.clone(),
        node_id: world.a().name().to_owned(),
        volume_capability: Some(volume.access.capability()),
        readonly: true,
        ..Default::default()
    };
    let answer = world.controller.csi().controller_publish_volume(request).await;
    refused(answer, Code::AlreadyExists, &[&volume.id, "node-a"])?;
    ensure!(
        world.publish(&volume, world.a()).await?.value == attached.context,
        "the refusal changed something"
    );
    take_off(world, &volume, world.a()).await?;
    delete(world, &volume).await
}

/// InvalidArgument, with the field and the value: at the controller and at the node.
pub(crate) async fn what_is_wrong_with_a_request_is_named_with_its_value(
    world: &World,
) -> anyhow::Result<()> {
    for (spoil, words) in creations() {
        let mut request = creation();
        spoil(&mut request);
        let answer = world.controller.csi().create_volume(request).await;
        refused(answer, Code::InvalidArgument, &words).map_err(|e| e.context(format!("create {words:?}")))?;
    }
    for (spoil, words) in publications() {
        let mut request = csi::ControllerPublishVolumeRequest {
            volume_id: "pvc-1".into(),
            node_id: "node-a".into(),
            volume_capability: Some(Access::RwoBlock.capability()),
            ..Default::default()
        };
        spoil(&mut request);
        let answer = world.controller.csi().controller_publish_volume(request).await;
        refused(answer, Code::InvalidArgument, &words)
            .map_err(|e| e.context(format!("publish {words:?}")))?;
    }
    for (spoil, words) in stagings() {
        let mut request = csi::NodeStageVolumeRequest {
            volume_id: "pvc-1".into(),
            staging_target_path: "/run/staging".into(),
            volume_capability: Some(Access::RwoBlock.capability()),
            publish_context: HashMap::from([
                ("cleat.io/epoch".into(), "1.1".into()),
                ("cleat.io/subsystem-nqn".into(), format!("{NQN_PREFIX}pvc-1")),
                ("cleat.io/namespace-uuid".into(), "01234567-89ab-cdef-0123-456789abcdef".into()),
            ]),
            ..Default::default()
        };
        spoil(&mut request);
        let answer: Result<_, Status> = world.a().csi().node_stage_volume(request).await;
        refused(answer, Code::InvalidArgument, &words).map_err(|e| e.context(format!("stage {words:?}")))?;
    }
    let unpublish = csi::ControllerUnpublishVolumeRequest {
        volume_id: "pvc/../1".into(),
        node_id: "node-a".into(),
        ..Default::default()
    };
    let answer = world.controller.csi().controller_unpublish_volume(unpublish).await;
    refused(answer, Code::InvalidArgument, &["volume_id", "pvc/../1"])?;
    Ok(())
}

fn creation() -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: "pvc-1".into(),
        capacity_range: Some(csi::CapacityRange { required_bytes: 1 << 20, limit_bytes: 0 }),
        volume_capabilities: vec![Access::RwoBlock.capability()],
        ..Default::default()
    }
}

/// A way to spoil a request, and the words that its refusal must have.
type Case<T> = (fn(&mut T), Vec<&'static str>);

fn creations() -> Vec<Case<csi::CreateVolumeRequest>> {
    vec![
        (|r| r.name = String::new(), vec!["name"]),
        (|r| r.name = "a\u{7}b".into(), vec!["name", "control character"]),
        (|r| r.capacity_range = Some(csi::CapacityRange { required_bytes: -5, limit_bytes: 0 }), vec!["-5"]),
        (|r| r.volume_capabilities.clear(), vec!["volume_capabilities"]),
        (|r| r.volume_capabilities = vec![Access::RwxFilesystem.capability()], vec!["volume_capabilities"]),
        (|r| _ = r.parameters.insert("colour".into(), "blue".into()), vec!["colour"]),
    ]
}

fn publications() -> Vec<Case<csi::ControllerPublishVolumeRequest>> {
    vec![
        (|r| r.volume_id = String::new(), vec!["volume_id"]),
        (|r| r.volume_id = "a b".into(), vec!["volume_id", "a b"]),
        (|r| r.node_id = String::new(), vec!["node_id"]),
        (|r| r.node_id = "node/a".into(), vec!["node_id", "node/a"]),
        (|r| r.volume_capability = None, vec!["volume_capability"]),
        (|r| r.volume_capability = Some(Access::RwxFilesystem.capability()), vec!["volume_capability"]),
    ]
}

fn stagings() -> Vec<Case<csi::NodeStageVolumeRequest>> {
    vec![
        (|r| r.volume_id = "a/b".into(), vec!["volume_id", "a/b"]),
        (|r| r.staging_target_path = "run/../x".into(), vec!["staging_target_path", "run/../x"]),
        (|r| r.volume_capability = Some(Access::RwoFilesystem.capability()), vec!["volume_capability"]),
        (|r| _ = r.publish_context.remove("cleat.io/epoch"), vec!["cleat.io/epoch"]),
        (|r| _ = r.publish_context.insert("cleat.io/epoch".into(), "x".into()), vec!["cleat.io/epoch", "x"]),
        (
            |r| {
                _ = r.publish_context.insert("cleat.io/subsystem-nqn".into(), "nqn.2014-08.org.boot:x".into())
            },
            vec!["cleat.io/subsystem-nqn", "nqn.2014-08.org.boot:x"],
        ),
    ]
}
