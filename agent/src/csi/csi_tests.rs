//! The kubelet's calls over a Unix socket, on a kernel made of memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cleat_proto::csi::v1 as csi;
use cleat_proto::csi::v1::identity_client::IdentityClient;
use cleat_proto::csi::v1::node_client::NodeClient;
use csi::volume_capability::{AccessMode, AccessType, BlockVolume, access_mode::Mode};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::request::{EPOCH_KEY, NAMESPACE_KEY, SUBSYSTEM_KEY};
use super::*;
use crate::testing::agent::{Agent, BOOT, grant};
use crate::testing::kernel::{Kernel, UUID};
use crate::volume::host::AtTarget;

const TARGET: &str = "/pods/a/volumeDevices/v";

struct Served {
    agent: Agent,
    node: NodeClient<Channel>,
    identity: IdentityClient<Channel>,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Served {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kernel: Arc<Kernel> = Arc::default();
        let agent = Agent::start(&kernel, dir.path(), BOOT);
        let path = dir.path().join("csi.sock");
        let incoming = UnixIncoming::bind(&path).await.unwrap();
        let stop = CancellationToken::new();
        let node_id = NodeId::parse("node-a").unwrap();
        tokio::spawn(serve(incoming, "cleat.io".into(), node_id, 16, agent.fleet.clone(), stop.clone()));
        let channel = grpc::unix_endpoint(&path, Keepalive::default()).unwrap().connect().await.unwrap();
        let (node, identity) = (NodeClient::new(channel.clone()), IdentityClient::new(channel));
        Self { agent, node, identity, stop, _dir: dir }
    }

    async fn stage(&self, epoch: &str) -> Result<(), Status> {
        let request = csi::NodeStageVolumeRequest {
            volume_id: "v".into(),
            publish_context: context(epoch),
            staging_target_path: "/staging/v".into(),
            volume_capability: block(),
            ..Default::default()
        };
        self.node.clone().node_stage_volume(request).await.map(drop)
    }

    async fn publish(&self, target: &str, readonly: bool) -> Result<(), Status> {
        let request = csi::NodePublishVolumeRequest {
            volume_id: "v".into(),
            publish_context: context("1.1"),
            staging_target_path: "/staging/v".into(),
            target_path: target.into(),
            volume_capability: block(),
            readonly,
            ..Default::default()
        };
        self.node.clone().node_publish_volume(request).await.map(drop)
    }

    async fn unpublish(&self, target: &str) -> Result<(), Status> {
        let request = csi::NodeUnpublishVolumeRequest { volume_id: "v".into(), target_path: target.into() };
        self.node.clone().node_unpublish_volume(request).await.map(drop)
    }

    async fn unstage(&self) -> Result<(), Status> {
        let request =
            csi::NodeUnstageVolumeRequest { volume_id: "v".into(), staging_target_path: "/staging/v".into() };
        self.node.clone().node_unstage_volume(request).await.map(drop)
    }

    fn at_target(&self) -> Option<AtTarget> {
        self.agent.kernel.world().targets.get(std::path::Path::new(TARGET)).cloned()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn block() -> Option<csi::VolumeCapability> {
    Some(csi::VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        access_mode: Some(AccessMode { mode: Mode::MultiNodeMultiWriter.into() }),
    })
}

fn context(epoch: &str) -> HashMap<String, String> {
    HashMap::from([
        (EPOCH_KEY.to_owned(), epoch.to_owned()),
        (SUBSYSTEM_KEY.to_owned(), "nqn.2026-01.io.cleat:v".to_owned()),
        (NAMESPACE_KEY.to_owned(), UUID.to_owned()),
    ])
}

fn refused(result: Result<(), Status>, code: Code, said: &str) {
    let status = result.expect_err("refused");
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(said), "{status:?}");
}

#[tokio::test]
async fn a_volume_goes_up_and_down_and_every_call_may_come_twice() {
    let served = Served::start().await;
    served.agent.ready(1, &[1, 2]).await;
    for _ in 0..2 {
        served.stage("1.1").await.unwrap();
    }
    for _ in 0..2 {
        served.publish(TARGET, false).await.unwrap();
    }
    served.stage("1.1").await.expect("staging again while it is in use changes nothing");
    assert!(matches!(served.at_target(), Some(AtTarget::Device(_))));
    refused(served.unstage().await, Code::FailedPrecondition, TARGET);
    for _ in 0..2 {
        served.unpublish(TARGET).await.unwrap();
    }
    assert_eq!(served.at_target(), None);
    for _ in 0..2 {
        served.unstage().await.unwrap();
    }
    assert_eq!(
        served.agent.kernel.world().controllers.len(),
        2,
        "the device goes with the grant, not before"
    );
}

#[tokio::test]
async fn staging_waits_for_the_attach_and_says_what_it_waits_for() {
    let served = Served::start().await;
    refused(served.stage("1.1").await, Code::Unavailable, "Attach of epoch 1.1");
    let (staged, ()) = tokio::join!(served.stage("1.1"), async {
        served.agent.ready(1, &[1]).await;
    });
    staged.expect("the device came while it was waited for");
}

#[tokio::test]
async fn a_grant_that_is_over_cannot_be_staged_nor_published() {
    let served = Served::start().await;
    served.agent.ready(2, &[1]).await;
    refused(served.stage("1.1").await, Code::FailedPrecondition, "1.2");
    refused(served.publish(TARGET, false).await, Code::FailedPrecondition, "1.2");
    served.agent.detach(2).await;
    refused(served.stage("1.2").await, Code::FailedPrecondition, "has ended");
}

#[tokio::test]
async fn a_device_that_does_not_answer_is_not_handed_out() {
    let served = Served::start().await;
    served.agent.ready(1, &[1]).await;
    served.agent.kernel.change(|world| world.reads_fail = true);
    refused(served.stage("1.1").await, Code::Unavailable, "direct-read");
    refused(served.publish(TARGET, false).await, Code::Unavailable, "direct-read");
    assert_eq!(served.at_target(), None);
}

#[tokio::test]
async fn a_stale_node_at_the_target_is_replaced_unless_it_is_in_use() {
    let served = Served::start().await;
    served.agent.ready(1, &[1]).await;
    let stale = AtTarget::Device(cleat_host::DevT { major: 259, minor: 77 });
    served.agent.kernel.change(|world| {
        world.targets.insert(TARGET.into(), stale.clone());
        world.mounts_busy = true;
    });
    refused(served.publish(TARGET, false).await, Code::FailedPrecondition, "259:77");
    assert_eq!(served.at_target(), Some(stale.clone()));
    served.agent.kernel.change(|world| world.mounts_busy = false);
    served.publish(TARGET, false).await.unwrap();
    assert!(served.at_target().is_some_and(|found| found != stale));
}

#[tokio::test]
async fn a_node_that_a_crash_left_behind_is_replaced_and_removed() {
    let served = Served::start().await;
    served.agent.ready(1, &[1]).await;
    let leftover = AtTarget::Leftover(cleat_host::DevT { major: 259, minor: 0 });
    let leave = |world: &mut crate::testing::kernel::World| {
        world.targets.insert(TARGET.into(), leftover.clone());
    };
    served.agent.kernel.change(leave);
    served.publish(TARGET, false).await.unwrap();
    assert!(
        matches!(served.at_target(), Some(AtTarget::Device(_))),
        "even where its number is the right one"
    );
    served.agent.kernel.change(leave);
    served.unpublish(TARGET).await.unwrap();
    assert_eq!(served.at_target(), None);
}

#[tokio::test]
async fn what_is_not_ours_at_a_target_is_left_alone() {
    let served = Served::start().await;
    served.agent.ready(1, &[1]).await;
    let other = AtTarget::Other("a directory".into());
    served.agent.kernel.change(|world| drop(world.targets.insert(TARGET.into(), other.clone())));
    refused(served.publish(TARGET, false).await, Code::FailedPrecondition, "a directory");
    refused(served.unpublish(TARGET).await, Code::FailedPrecondition, "a directory");
    assert_eq!(served.at_target(), Some(other));
}

#[tokio::test]
async fn a_pod_that_only_reads_gets_a_device_that_was_granted_for_writing() {
    let served = Served::start().await;
    served.agent.ready(1, &[1]).await;
    for _ in 0..2 {
        served.publish(TARGET, true).await.unwrap();
    }
    assert!(served.agent.kernel.world().read_only_targets.contains(std::path::Path::new(TARGET)));
    refused(served.publish(TARGET, false).await, Code::AlreadyExists, "readonly true, asked for false");
    let beside = "/pods/b/volumeDevices/v";
    served.publish(beside, false).await.expect("another pod may write");
    refused(served.publish(beside, true).await, Code::AlreadyExists, "readonly false, asked for true");
    served.unpublish(TARGET).await.unwrap();
    served.publish(TARGET, false).await.expect("as another publication");
}

#[tokio::test]
async fn an_unfinished_publication_takes_the_mode_of_the_next_call() {
    let served = Served::start().await;
    served.agent.ready(1, &[1]).await;
    served.publish(TARGET, false).await.unwrap();
    let mounted = served.at_target().unwrap();
    served.unpublish(TARGET).await.unwrap();
    served.agent.kernel.change(|world| drop(world.targets.insert(TARGET.into(), mounted)));
    served.publish(TARGET, true).await.unwrap();
    assert!(served.agent.kernel.world().read_only_targets.contains(std::path::Path::new(TARGET)));
}

#[tokio::test]
async fn a_single_reader_of_a_read_only_grant_is_published() {
    let served = Served::start().await;
    let granted = crate::ledger::Grant { read_only: true, ..grant(&[1]) };
    let outcome = served.agent.attach(1, granted).await;
    assert!(matches!(outcome, crate::volume::outcome::Outcome::Ready(_)), "{outcome:?}");
    served.stage("1.1").await.unwrap();
    served.publish(TARGET, true).await.unwrap();
    assert!(matches!(served.at_target(), Some(AtTarget::Device(_))));
}

#[tokio::test]
async fn an_operation_under_way_is_named() {
    let served = Served::start().await;
    served.agent.ready(1, &[1]).await;
    served.agent.kernel.change(|world| world.deletions_hang = true);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let revoke = served.agent.directive(1, crate::volume::directive::Ask::Revoke { deadline });
    served.agent.submit(&revoke);
    let mut changes = served.agent.fleet.shared().board.changes();
    while served.agent.state().await.phase != crate::volume::state::VolumePhase::Detaching {
        changes.changed().await.unwrap();
    }
    refused(served.unpublish(TARGET).await, Code::Aborted, "revoke op-1-1 has been in progress for");
    served.agent.kernel.change(|world| world.deletions_hang = false);
}

#[tokio::test]
async fn a_caller_that_gives_up_does_not_end_the_operation() {
    let served = Served::start().await;
    let mut request = tonic::Request::new(csi::NodeStageVolumeRequest {
        volume_id: "v".into(),
        publish_context: context("1.1"),
        staging_target_path: "/staging/v".into(),
        volume_capability: block(),
        ..Default::default()
    });
    request.set_timeout(Duration::from_millis(20));
    served.node.clone().node_stage_volume(request).await.expect_err("its deadline is shorter than the wait");
    let outcome = served.agent.attach(1, grant(&[1])).await;
    assert!(matches!(outcome, crate::volume::outcome::Outcome::Ready(_)), "{outcome:?}");
    served.stage("1.1").await.expect("the gate was given back");
}

#[tokio::test]
async fn the_plug_in_says_who_and_where_it_is() {
    let mut served = Served::start().await;
    let info = served.identity.get_plugin_info(csi::GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.name, "cleat.io");
    let ready = served.identity.probe(csi::ProbeRequest {}).await.unwrap().into_inner().ready;
    assert_eq!(ready, Some(true));
    let node = served.node.node_get_info(csi::NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((node.node_id.as_str(), node.max_volumes_per_node), ("node-a", 16));
    let capabilities =
        served.node.node_get_capabilities(csi::NodeGetCapabilitiesRequest {}).await.unwrap().into_inner();
    assert_eq!(capabilities.capabilities.len(), 1);
    let empty = csi::NodeStageVolumeRequest::default();
    let status = served.node.node_stage_volume(empty).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "volume_id must be given"));
}
