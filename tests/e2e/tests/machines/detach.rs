//! Detach: never under a user, exactly what is ours, and only where it was asked for.

use std::time::Duration;

use anyhow::{Context, ensure};
use cleat_e2e::world::{Access, AgentStart, Node, World};
use cleat_proto::cleat::v1::AttachmentInfo;
use cleat_proto::csi::v1::ControllerUnpublishVolumeRequest;
use cleat_rig::Network;
use tonic::Code;

use crate::fixture::{
    self, SOON, attached, attachment, controllers, delete, holds_nothing, publish_until_done, refused,
    remove, stop_unharmed, take_off, unharmed, unpublish_until_done, until_done, wait_attachment, wait_live,
};

/// The caller's word that nobody uses the volume any more is not taken: Kubernetes' force detach says it of nodes
/// that it has lost sight of.
pub(crate) async fn is_refused_while_the_device_is_open_and_names_the_opener(
    world: &World,
) -> anyhow::Result<()> {
    let (volume, attached) = attached(world, "in-use", Access::RwoBlock, world.a()).await?;
    let kernel = wait_live(world.a(), &volume, 2).await?;
    let mut writer = fixture::writing(world.a(), &attached, 0, Some(1), 5).await?;

    let pid = writer.pid().to_string();
    let status = world.unpublish(&volume, world.a()).await;
    refused(status, Code::FailedPrecondition, &["node-a", &pid, "cleat-writer"])?;

    let now = controllers(world.a(), &volume).await?;
    ensure!(now == kernel, "the refused detach changed the controllers: {now:?}, before {kernel:?}");
    let still = attachment(world, &volume, world.a()).await?.context("the controller has forgotten it")?;
    ensure!(still.phase == "Ready" && still.may_write, "{still:?}");
    writer.wait_progress(10, SOON).await?;
    let again = world.publish(&volume, world.a()).await?;
    ensure!(again.value == attached.context, "another context after a refused detach");

    unharmed(world, &volume, &mut writer).await?;
    remove(world, &volume, world.a()).await
}

/// How long a kernel may be at it: seen are 2 s (6.1) and 60 s (6.12, for the shutdown) after the network is back.
const LETS_GO: Duration = Duration::from_secs(120);

/// A kernel whose target is gone does not let go of a connection for a minute and more. That is said with its age,
/// holds up nothing else, and ends when the kernel does.
pub(crate) async fn an_unfinished_kernel_call_shows_its_age_and_delays_nothing_else(
    world: &World,
) -> anyhow::Result<()> {
    let wedged = fixture::volume(world, "wedged", Access::RwoBlock).await?;
    let other = fixture::volume(world, "not-wedged", Access::RwoBlock).await?;
    publish_until_done(world, &wedged, world.a()).await?;
    wait_live(world.a(), &wedged, 2).await?;
    for network in Network::STORAGE {
        world.a().machine().cut_path(network)?;
    }
    let beside = async {
        let at_it = |a: &AttachmentInfo| a.phase == "Draining" && a.waits_for.contains("has been deleting");
        let told = wait_attachment(world, &wedged, world.a(), "told to be wedged", at_it).await?;
        ensure!(told.evidence.is_none() && told.may_write, "{told:?}");
        // The same agent is asked for another volume, and finds that it cannot reach it either; another one can.
        refused(world.publish(&other, world.a()).await, Code::Unavailable, &["node-a"])?;
        unpublish_until_done(world, &other, world.a()).await?;
        holds_nothing(world, &other, world.a()).await?;
        publish_until_done(world, &other, world.b()).await?;
        take_off(world, &other, world.b()).await?;
        world.wait_session(world.a(), SOON).await?;
        ensure!(
            !controllers(world.a(), &wedged).await?.is_empty(),
            "the kernel was done before it was looked at"
        );
        Ok(())
    };
    let (answer, beside) = tokio::join!(world.unpublish(&wedged, world.a()), beside);
    beside?;
    let status = answer.err().context("a volume that the kernel still holds was said to be detached")?;
    ensure!(status.message().contains("has been deleting"), "{status:?}");
    for network in Network::STORAGE {
        world.a().machine().restore_path(network)?;
    }
    let what = "ControllerUnpublishVolume once the network is back";
    until_done(what, LETS_GO, async || world.unpublish(&wedged, world.a()).await.map(drop)).await?;
    holds_nothing(world, &wedged, world.a()).await?;
    delete(world, &wedged).await?;
    delete(world, &other).await
}

/// Another subsystem over the same network, by the same host: a node may boot from NVMe/TCP.
const FOREIGN: &str = "nqn.2014-08.org.example:boot";

/// Controllers are found by subsystem and host NQN, never by number or by address.
pub(crate) async fn removes_its_own_controllers_and_leaves_a_foreign_connection_alone(
    world: &World,
) -> anyhow::Result<()> {
    export_foreign(world).await?;
    let (host, id) = (world.a().host_nqn().await?, world.a().host_id().await?);
    let connect =
        format!("nvme connect -t tcp -a 10.77.1.1 -s 4421 -n {FOREIGN} --hostnqn {host} --hostid {id}");
    let (staying, going) = (
        fixture::volume(world, "staying", Access::RwoBlock).await?,
        fixture::volume(world, "going", Access::RwoBlock).await?,
    );
    world.attach(&going, world.a()).await?;
    world.a().sh(&connect).await?;
    let stays = world.attach(&staying, world.a()).await?;
    let (foreign, kept) = (foreign(world.a()).await?, wait_live(world.a(), &staying, 2).await?);
    ensure!(foreign.len() == 1 && foreign[0].ends_with("live"), "{foreign:?}");
    let mut writer = fixture::writing(world.a(), &stays, 0, Some(1), 5).await?;

    take_off(world, &going, world.a()).await?;
    ensure!(self::foreign(world.a()).await? == foreign, "the foreign connection was touched");
    ensure!(controllers(world.a(), &staying).await? == kept, "the other volume's connections were touched");
    writer.wait_progress(5, SOON).await?;
    // A start of the agent looks at everything that is there.
    world.a().kill_agent().await?;
    world.a().start_agent(AgentStart::default()).await?;
    world.wait_session(world.a(), fixture::LATER).await?;
    let nodes = world.controller.nodes().await?;
    let listed = nodes.iter().find(|info| info.node_id == world.a().name()).context("no node-a")?;
    ensure!(!format!("{listed:?}").contains(FOREIGN), "the agent lists it: {listed:?}");
    stop_unharmed(&mut writer).await?;
    take_off(world, &staying, world.a()).await?;
    ensure!(self::foreign(world.a()).await? == foreign, "the foreign connection was touched");

    world.a().sh(&format!("nvme disconnect -n {FOREIGN}")).await?;
    withdraw_foreign(world).await?;
    delete(world, &going).await?;
    delete(world, &staying).await
}

async fn foreign(node: &Node) -> anyhow::Result<Vec<String>> {
    let all = node.nvme_controllers().await?;
    let foreign = all.into_iter().filter(|(_, nqn, ..)| nqn == FOREIGN);
    Ok(foreign.map(|(name, _, address, state)| format!("{name} {address} {state}")).collect())
}

async fn export_foreign(world: &World) -> anyhow::Result<()> {
    let script = format!(
        "modprobe null_blk nr_devices=0 2>/dev/null; set -e; cd /sys/kernel/config
        mkdir nullb/boot; echo 64 >nullb/boot/size; echo 1 >nullb/boot/memory_backed; echo 1 >nullb/boot/power
        s=/sys/kernel/config/nvmet/subsystems/{FOREIGN}; mkdir $s; echo 1 >$s/attr_allow_any_host
        mkdir $s/namespaces/1; echo -n /dev/$(ls -d /sys/block/nullb* /sys/block/boot 2>/dev/null | \
            sed 's#.*/##' | tail -n 1) >$s/namespaces/1/device_path
        echo 5b0c2e3e-5bd1-4f8e-8a5c-5ac4dbf3ad2e >$s/namespaces/1/device_uuid; echo 1 >$s/namespaces/1/enable
        p=/sys/kernel/config/nvmet/ports/4421; mkdir $p; echo tcp >$p/addr_trtype; echo ipv4 >$p/addr_adrfam
        echo 10.77.1.1 >$p/addr_traddr; echo 4421 >$p/addr_trsvcid; ln -s $s $p/subsystems/"
    );
    on_rds(world, script).await.context("export a foreign subsystem")
}

async fn withdraw_foreign(world: &World) -> anyhow::Result<()> {
    let script = format!(
        "set -e; cd /sys/kernel/config/nvmet; rm ports/4421/subsystems/{FOREIGN}; rmdir ports/4421
        echo 0 >subsystems/{FOREIGN}/namespaces/1/enable; rmdir subsystems/{FOREIGN}/namespaces/1
        rmdir subsystems/{FOREIGN}; echo 0 >../nullb/boot/power; rmdir ../nullb/boot"
    );
    on_rds(world, script).await.context("withdraw the foreign subsystem")
}

async fn on_rds(world: &World, script: String) -> anyhow::Result<()> {
    tokio::task::block_in_place(|| world.rds.machine().sh(&script))?;
    Ok(())
}

/// CSI: an Unpublish without a node means all of them.
pub(crate) async fn without_a_node_id_takes_the_volume_off_all_nodes(world: &World) -> anyhow::Result<()> {
    let volume = fixture::volume(world, "off-all", Access::RwxBlock).await?;
    for node in [world.a(), world.b()] {
        world.attach(&volume, node).await?;
        node.unpublish(&volume).await?;
        node.unstage(&volume).await?;
    }
    let request = ControllerUnpublishVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
    world.controller.csi().controller_unpublish_volume(request).await.context("Unpublish of all nodes")?;
    for node in [world.a(), world.b()] {
        holds_nothing(world, &volume, node).await?;
    }
    delete(world, &volume).await
}

/// A late Unpublish of an old node must not take down the new one.
pub(crate) async fn of_a_node_that_holds_nothing_succeeds_and_changes_nothing(
    world: &World,
) -> anyhow::Result<()> {
    let (volume, attached) = attached(world, "not-yours", Access::RwoBlock, world.a()).await?;
    let kernel = wait_live(world.a(), &volume, 2).await?;
    let mut writer = fixture::writing(world.a(), &attached, 0, Some(1), 5).await?;

    world.unpublish(&volume, world.b()).await.context("Unpublish of a node that holds nothing")?;
    ensure!(controllers(world.a(), &volume).await? == kernel, "the holder's connections were touched");
    let epoch = world.publish(&volume, world.a()).await?;
    ensure!(epoch.value == attached.context, "the holder's grant was touched");
    writer.wait_progress(5, SOON).await?;

    unharmed(world, &volume, &mut writer).await?;
    take_off(world, &volume, world.a()).await?;
    world.unpublish(&volume, world.a()).await.context("the same Unpublish again")?;
    delete(world, &volume).await?;
    world.unpublish(&volume, world.a()).await.context("Unpublish of a volume that is gone")?;
    Ok(())
}
