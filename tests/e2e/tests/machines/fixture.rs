//! What several tests do: volumes, refusals, what a node's kernel shows, programs that are frozen.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use cleat_e2e::world::{
    AGENT_PORT, Access, Attached, Look, NQN_PREFIX, Node, PublishContext, Stopped, Volume, World, Writer,
    wait_for,
};
use cleat_e2e::writer::WriteArgs;
use cleat_proto::cleat::v1::AttachmentInfo;
use cleat_rig::Network;
use tonic::{Code, Status};

/// Large enough for three regions of a writer; the RDS keeps it sparse.
pub(crate) const VOLUME_BYTES: u64 = 192 << 20;
/// For what should take a second or two, on a machine that is busy with four emulated ones.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// For what waits for a keep-alive, a silence deadline or a reconnect.
pub(crate) const LATER: Duration = Duration::from_secs(45);
/// In a PublishContext: the epoch of the grant.
pub(crate) const EPOCH_KEY: &str = "cleat.io/epoch";

/// Whether what is repeated is to be repeated in full, not as a sample.
pub(crate) fn all_rounds() -> bool {
    std::env::var_os("CLEAT_MATRIX").is_some_and(|value| value == "full")
}

/// What a test lacks that is left out of the sample, as one that takes minutes or is one of many like it.
pub(crate) fn sampled() -> Option<&'static str> {
    (!all_rounds()).then_some("CLEAT_MATRIX=full, as hack/test --full has it")
}

/// Makes a volume of the usual size.
pub(crate) async fn volume(world: &World, name: &str, access: Access) -> anyhow::Result<Volume> {
    let made = world.create_volume(name, access, VOLUME_BYTES).await;
    Ok(made.with_context(|| format!("CreateVolume {name}"))?.value)
}

/// Makes a volume of the usual size, and attaches it to a node.
pub(crate) async fn attached(
    world: &World,
    name: &str,
    access: Access,
    node: &Node,
) -> anyhow::Result<(Volume, Attached)> {
    let volume = volume(world, name, access).await?;
    let attached = world.attach(&volume, node).await?;
    Ok((volume, attached))
}

/// Takes a volume off a node as a kubelet would, and shows that the node has nothing of it any more.
pub(crate) async fn take_off(world: &World, volume: &Volume, node: &Node) -> anyhow::Result<()> {
    let on = |call: &str| format!("{call} of {} on {}", volume.id, node.name());
    node.unpublish(volume).await.with_context(|| on("NodeUnpublishVolume"))?;
    node.unstage(volume).await.with_context(|| on("NodeUnstageVolume"))?;
    world.unpublish(volume, node).await.with_context(|| on("ControllerUnpublishVolume"))?;
    holds_nothing(world, volume, node).await
}

/// That neither the node's kernel nor the RDS's list nor the controller knows of the volume on this node.
pub(crate) async fn holds_nothing(world: &World, volume: &Volume, node: &Node) -> anyhow::Result<()> {
    let controllers = controllers(node, volume).await?;
    ensure!(controllers.is_empty(), "{} still has {controllers:?}", node.name());
    let allowed = world.rds.allowed_hosts(&volume.id).await?;
    let host = node.host_nqn().await?;
    ensure!(!allowed.contains(&host), "{} may still connect: {allowed:?}", node.name());
    let attachment = attachment(world, volume, node).await?;
    ensure!(attachment.is_none(), "the controller still has {attachment:?}");
    Ok(())
}

/// Deletes a volume that nobody has any more.
pub(crate) async fn delete(world: &World, volume: &Volume) -> anyhow::Result<()> {
    world.delete_volume(volume).await.with_context(|| format!("DeleteVolume {}", volume.id))?;
    Ok(())
}

/// Takes a volume off the one node that has it, and deletes it.
pub(crate) async fn remove(world: &World, volume: &Volume, node: &Node) -> anyhow::Result<()> {
    take_off(world, volume, node).await?;
    delete(world, volume).await
}

/// Repeats a call while it answers that something is under way or away, as a sidecar does.
pub(crate) async fn until_done<T>(
    what: &str,
    limit: Duration,
    mut call: impl AsyncFnMut() -> Result<T, Status>,
) -> anyhow::Result<T> {
    let done = wait_for(what, limit, async || match call().await {
        Ok(value) => Ok(Look::Yes(Ok(value))),
        Err(status) => match status.code() {
            Code::Aborted | Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
                Ok(Look::Not(format!("{:?}: {}", status.code(), status.message())))
            }
            _ => Ok(Look::Yes(Err(status))),
        },
    })
    .await?;
    done.with_context(|| format!("{what} was refused for good"))
}

/// Publishes, as the attacher does: again and again until it is answered for good.
pub(crate) async fn publish_until_done(
    world: &World,
    volume: &Volume,
    node: &Node,
) -> anyhow::Result<PublishContext> {
    let what = format!("ControllerPublishVolume of {} on {}", volume.id, node.name());
    until_done(&what, LATER, async || world.publish(volume, node).await.map(|done| done.value)).await
}

/// Unpublishes, as the attacher does: again and again until it is answered for good.
pub(crate) async fn unpublish_until_done(world: &World, volume: &Volume, node: &Node) -> anyhow::Result<()> {
    let what = format!("ControllerUnpublishVolume of {} on {}", volume.id, node.name());
    until_done(&what, LATER, async || world.unpublish(volume, node).await.map(drop)).await
}

/// That a call was refused with this code, and that the message has all these words.
pub(crate) fn refused<T>(result: Result<T, Status>, code: Code, words: &[&str]) -> anyhow::Result<Status> {
    let Err(status) = result else { bail!("it succeeded, and {code:?} was expected") };
    let (found, message) = (status.code(), status.message());
    ensure!(found == code, "refused with {found:?} and not with {code:?}: {message}");
    for word in words {
        ensure!(message.contains(word), "the message lacks {word:?}: {message}");
    }
    Ok(status)
}

/// One NVMe controller in a node's kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KernelController {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) state: String,
}

/// The controllers of a volume's subsystem in a node's kernel, by name.
pub(crate) async fn controllers(node: &Node, volume: &Volume) -> anyhow::Result<Vec<KernelController>> {
    let nqn = format!("{NQN_PREFIX}{}", volume.id);
    let mut found: Vec<KernelController> = node
        .nvme_controllers()
        .await?
        .into_iter()
        .filter(|(_, subsystem, ..)| *subsystem == nqn)
        .map(|(name, _, address, state)| KernelController { name, address, state })
        .collect();
    found.sort();
    Ok(found)
}

/// Waits until so many controllers of the volume are live on the node, and no others are there.
pub(crate) async fn wait_live(
    node: &Node,
    volume: &Volume,
    count: usize,
) -> anyhow::Result<Vec<KernelController>> {
    let what = format!("{count} live controllers of {} on {}", volume.id, node.name());
    wait_for(what, LATER, async || {
        let found = controllers(node, volume).await?;
        let live = found.len() == count && found.iter().all(|one| one.state == "live");
        let seen = format!("{found:?}");
        Ok(Look::some(live.then_some(found), seen))
    })
    .await
    .map_err(Into::into)
}

/// Waits until the node's kernel has no controller of the volume.
pub(crate) async fn wait_gone(node: &Node, volume: &Volume) -> anyhow::Result<()> {
    let what = format!("the end of {} on {}", volume.id, node.name());
    wait_for(what, SOON, async || {
        let found = controllers(node, volume).await?;
        Ok(Look::holds(found.is_empty(), format!("{found:?}")))
    })
    .await
    .map_err(Into::into)
}

/// The attachment of a volume to a node, as operators see it.
pub(crate) async fn attachment(
    world: &World,
    volume: &Volume,
    node: &Node,
) -> anyhow::Result<Option<AttachmentInfo>> {
    match world.controller.volume(&volume.id).await {
        Ok(info) => Ok(info.attachments.into_iter().find(|a| a.node_id == node.name())),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status).context("GetVolume"),
    }
}

/// Waits until the attachment of a volume to a node satisfies a condition.
pub(crate) async fn wait_attachment(
    world: &World,
    volume: &Volume,
    node: &Node,
    what: &str,
    condition: impl Fn(&AttachmentInfo) -> bool,
) -> anyhow::Result<AttachmentInfo> {
    let waited = format!("{} on {}: {what}", volume.id, node.name());
    wait_for(waited, LATER, async || {
        let found = attachment(world, volume, node).await?;
        let seen = format!("{found:?}");
        Ok(Look::some(found.filter(|attachment| condition(attachment)), seen))
    })
    .await
    .map_err(Into::into)
}

/// An epoch as PublishContext has it.
pub(crate) fn epoch_of(attachment: &AttachmentInfo) -> String {
    attachment.epoch.map(|epoch| format!("{}.{}", epoch.term, epoch.seq)).unwrap_or_default()
}

/// The epoch in a PublishContext.
pub(crate) fn epoch_in(context: &PublishContext) -> anyhow::Result<(u64, u64)> {
    let text = context.get(EPOCH_KEY).context("no epoch in the PublishContext")?;
    let (term, seq) = text.split_once('.').with_context(|| format!("epoch {text:?}"))?;
    Ok((term.parse()?, seq.parse()?))
}

/// With the agent frozen: lets a directive that has made the attachment's phase be in its socket, cuts the agent off
/// the controller, and lets it work.
pub(crate) async fn cut_off_with_a_directive(
    world: &World,
    volume: &Volume,
    node: &Node,
    phase: &str,
) -> anyhow::Result<()> {
    wait_attachment(world, volume, node, phase, |a| a.phase == phase).await?;
    // The phase is seen once the directive is on its way. What was sent before it may come first; the one after that,
    // a heartbeat at the latest, comes behind it.
    let mut waiting = unread(node).await?;
    for _ in 0..2 {
        waiting = wait_for(format!("the controller's next words to {}", node.name()), SOON, async || {
            let now = unread(node).await?;
            Ok(Look::some((now > waiting).then_some(now), format!("{now} bytes that nobody has read")))
        })
        .await?;
    }
    node.machine().cut_path(Network::Management)?;
    node.thaw_agent().await
}

/// Bytes from the controller that wait in the sockets of a node's agent.
async fn unread(node: &Node) -> anyhow::Result<u64> {
    let port = format!("{AGENT_PORT:04X}");
    let table = node.sh("cat /proc/net/tcp").await?;
    let sockets = table.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(2);
        let (remote, _state, queues) = (fields.next()?, fields.next()?, fields.next()?);
        let to_controller = remote.split_once(':').is_some_and(|(_, found)| found == port);
        to_controller.then(|| queues.split_once(':').map(|(_, unread)| unread.to_owned()))?
    });
    sockets.map(|bytes| Ok(u64::from_str_radix(&bytes, 16)?)).sum()
}

/// Waits until a request to the RDS's REST API of this kind has come in since `before`.
pub(crate) async fn wait_request(world: &World, kind: &str, before: u64) -> anyhow::Result<()> {
    wait_for(format!("a request {kind}"), SOON, async || {
        let count = requests(world, kind).await?;
        Ok(Look::holds(count > before, format!("{count} so far")))
    })
    .await
    .map_err(Into::into)
}

/// How many requests of this kind (such as `PATCH /rest/disk/*`) have come in.
pub(crate) async fn requests(world: &World, kind: &str) -> anyhow::Result<u64> {
    Ok(world.rds.state().await?.requests.by_path.get(kind).copied().unwrap_or(0))
}

/// Starts a writer at a pace that leaves an emulated CPU to the programs under test.
pub(crate) async fn writer(
    node: &Node,
    attached: &Attached,
    region: u32,
    start: Option<u64>,
) -> anyhow::Result<Writer> {
    let (volume, name) = (attached.volume.id.parse()?, node.name().parse()?);
    let mut options = WriteArgs::new(&attached.target_path, volume, name, region);
    (options.start_seq, options.interval_us) = (start, 10_000);
    node.write_with(&options).await
}

/// As [`writer`], once it was acknowledged so many writes.
pub(crate) async fn writing(
    node: &Node,
    attached: &Attached,
    region: u32,
    start: Option<u64>,
    writes: u64,
) -> anyhow::Result<Writer> {
    let mut writer = writer(node, attached, region, start).await?;
    writer.wait_writes(writes, SOON).await?;
    Ok(writer)
}

/// Stops a writer that must not have seen a failed write.
pub(crate) async fn stop_unharmed(writer: &mut Writer) -> anyhow::Result<Stopped> {
    let stopped = writer.stop().await?;
    ensure!(stopped.counts.errors == 0, "writes failed: {:?}", stopped.errors);
    Ok(stopped)
}

/// That the volume holds exactly what these runs were told was written.
pub(crate) async fn verified(world: &World, volume: &Volume, runs: &[&Stopped]) -> anyhow::Result<()> {
    let facts: Vec<_> = runs.iter().map(|run| run.facts.clone()).collect();
    let report = world.verify(volume, &facts).await?;
    ensure!(report.is_clean(), "the volume does not hold what was written: {report:?}");
    Ok(())
}

/// Stops the only writer that a volume has had: no write failed, and the volume holds what it wrote.
pub(crate) async fn unharmed(world: &World, volume: &Volume, writer: &mut Writer) -> anyhow::Result<Stopped> {
    let stopped = stop_unharmed(writer).await?;
    verified(world, volume, &[&stopped]).await?;
    Ok(stopped)
}

/// Waits until a request about a node stands among those that the volume's operators see waiting.
pub(crate) async fn wait_waiting(world: &World, volume: &Volume, node: &Node) -> anyhow::Result<()> {
    let what = format!("a request about {} on {} that waits", volume.id, node.name());
    wait_for(what, SOON, async || {
        let info = world.controller.volume(&volume.id).await?;
        let waits = info.waiting.iter().any(|wait| wait.node_id == node.name());
        Ok(Look::holds(waits, format!("{info:?}")))
    })
    .await
    .map_err(Into::into)
}
