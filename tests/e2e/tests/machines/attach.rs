//! Attach: what "attached" means on the node, at the target and in the controller, and that saying it again is free.

use anyhow::{Context, ensure};
use cleat_e2e::world::{Access, AgentStart, NQN_PREFIX, World};

use crate::fixture::{
    self, SOON, attached, attachment, controllers, delete, epoch_of, remove, stop_unharmed, take_off,
    unharmed, wait_attachment, wait_live,
};

/// Two live paths to one device, the right host list, and one epoch in the PublishContext, in the controller and in
/// the agent's ledger.
pub(crate) async fn both_paths_are_live_and_everybody_says_the_same(world: &World) -> anyhow::Result<()> {
    let (volume, attached) = attached(world, "both-paths", Access::RwxBlock, world.a()).await?;

    let kernel = wait_live(world.a(), &volume, 2).await?;
    for (portal, seen) in ["traddr=10.77.1.1,", "traddr=10.77.2.1,"].iter().zip(by_address(&kernel)) {
        ensure!(seen.starts_with(portal), "{portal} is not among {kernel:?}");
    }
    let heads = heads(world, &volume.id).await?;
    ensure!(heads.len() == 1, "one multipath head is wanted: {heads:?}");
    let own = world.a().host_nqn().await?;
    let said = world.a().sh(&format!("cat /sys/class/nvme/{}/hostnqn", kernel[0].name)).await?;
    ensure!(said == own, "connected as {said}, not as {own}");
    ensure!(world.rds.allowed_hosts(&volume.id).await? == [own], "the host list has others too");

    let live = |path: &&cleat_proto::cleat::v1::Path| path.state == "live";
    let seen = wait_attachment(world, &volume, world.a(), "ready on two paths", |a| {
        let paths = a.reported.as_ref().map_or(0, |state| state.paths.iter().filter(live).count());
        a.phase == "Ready" && a.may_write && paths == 2
    })
    .await?;
    let epoch = attached.context.get(fixture::EPOCH_KEY).context("no epoch in the PublishContext")?;
    let reported = seen.reported.clone().unwrap_or_default();
    let in_ledger = reported.epoch.map(|epoch| format!("{}.{}", epoch.term, epoch.seq)).unwrap_or_default();
    ensure!(epoch_of(&seen) == *epoch && in_ledger == *epoch, "{epoch} is not that of {seen:?}");
    let nqn = format!("{NQN_PREFIX}{}", volume.id);
    ensure!(attached.context.get("cleat.io/subsystem-nqn") == Some(&nqn), "{:?}", attached.context);
    let uuid = world.rds.disk(&volume.id).await?.uuid.to_string();
    ensure!(attached.context.get("cleat.io/namespace-uuid") == Some(&uuid), "{:?}", attached.context);
    ensure!(reported.identity.is_some_and(|identity| identity.namespace_uuid == uuid), "{seen:?}");
    ensure!(heads.contains(&reported.device), "the agent means {}, the kernel {heads:?}", reported.device);

    let mut writer = fixture::writing(world.a(), &attached, 0, Some(1), 20).await?;
    unharmed(world, &volume, &mut writer).await?;
    remove(world, &volume, world.a()).await
}

fn by_address(controllers: &[fixture::KernelController]) -> Vec<&str> {
    let mut addresses: Vec<&str> = controllers.iter().map(|one| one.address.as_str()).collect();
    addresses.sort_unstable();
    addresses
}

/// The multipath heads of a volume's subsystem on node-a.
async fn heads(world: &World, volume_id: &str) -> anyhow::Result<Vec<String>> {
    let script = format!(
        "for s in /sys/class/nvme-subsystem/*; do [ \"$(cat $s/subsysnqn)\" = {NQN_PREFIX}{volume_id} ] || continue; \
         for h in $s/nvme*n*; do case ${{h##*/}} in *c*n*) ;; *) echo ${{h##*/}};; esac; done; done"
    );
    Ok(world.a().sh(&script).await?.lines().map(str::to_owned).collect())
}

/// The same epoch, the same controllers, the same device: however often each call is repeated.
pub(crate) async fn a_repeated_attach_changes_nothing(world: &World) -> anyhow::Result<()> {
    let (volume, first) = attached(world, "repeated", Access::RwoBlock, world.a()).await?;
    let kernel = wait_live(world.a(), &volume, 2).await?;
    let target = |node: &cleat_e2e::world::Node| format!("stat -c '%t:%T %i' {}", node.target_path(&volume));
    let device = world.a().sh(&target(world.a())).await?;

    // The attacher can send the same call twice at once.
    let (one, two) = tokio::join!(world.publish(&volume, world.a()), world.publish(&volume, world.a()));
    ensure!(one?.value == first.context && two?.value == first.context, "another context than the first");
    let again = world.attach(&volume, world.a()).await?;
    ensure!(again.context == first.context, "{:?} and before {:?}", again.context, first.context);

    let now = controllers(world.a(), &volume).await?;
    ensure!(now == kernel, "the controllers changed: {now:?}, before {kernel:?}");
    let device_now = world.a().sh(&target(world.a())).await?;
    ensure!(device_now == device, "the target changed: {device_now}, before {device}");
    ensure!(world.rds.allowed_hosts(&volume.id).await?.len() == 1, "the host list changed");
    remove(world, &volume, world.a()).await
}

/// A kubelet that has restarted stages and publishes again what is in use.
pub(crate) async fn staging_again_while_in_use_changes_nothing(world: &World) -> anyhow::Result<()> {
    let (volume, attached) = attached(world, "staged-again", Access::RwxBlock, world.a()).await?;
    let kernel = wait_live(world.a(), &volume, 2).await?;
    let mut writer = fixture::writing(world.a(), &attached, 0, Some(1), 5).await?;
    for _ in 0..3 {
        world.a().stage(&volume, &attached.context).await.context("NodeStageVolume, again")?;
        world.a().publish(&volume, &attached.context).await.context("NodePublishVolume, again")?;
        writer.wait_progress(5, SOON).await?;
    }
    let now = controllers(world.a(), &volume).await?;
    ensure!(now == kernel, "the controllers changed: {now:?}, before {kernel:?}");
    let mounts = world.a().sh(&format!("grep -c ' {} ' /proc/mounts || true", attached.target_path)).await?;
    ensure!(mounts == "1" || mounts == "0", "published {mounts} times over itself");
    unharmed(world, &volume, &mut writer).await?;
    remove(world, &volume, world.a()).await
}

/// `--fabrics nvme-cli`: another way to the same kernel, and the same outcome.
pub(crate) async fn nvme_cli_does_the_same_as_the_kernels_interface(world: &World) -> anyhow::Result<()> {
    let node = world.a();
    node.kill_agent().await?;
    node.start_agent(AgentStart { arguments: vec!["--fabrics".into(), "nvme-cli".into()] }).await?;
    world.wait_session(node, fixture::LATER).await?;
    let known = world.controller.nodes().await?;
    let fabrics = known.iter().find(|info| info.node_id == node.name());
    let fabrics = fabrics.and_then(|info| info.capabilities.as_ref()).map(|c| c.fabrics.as_str());
    ensure!(fabrics == Some("nvme-cli"), "it connects by {fabrics:?}");

    let (volume, attached) = attached(world, "by-nvme-cli", Access::RwoBlock, node).await?;
    let kernel = wait_live(node, &volume, 2).await?;
    let said = node.sh(&format!("cat /sys/class/nvme/{}/hostnqn", kernel[0].name)).await?;
    ensure!(said == node.host_nqn().await?, "connected as {said}");
    let mut writer = fixture::writing(node, &attached, 0, Some(1), 10).await?;
    stop_unharmed(&mut writer).await?;
    take_off(world, &volume, node).await?;
    ensure!(attachment(world, &volume, node).await?.is_none());
    delete(world, &volume).await?;
    node.restart_agent().await
}
