//! `cleatctl ticket run` on a node: what the command gets, what it cannot do, and who else notices.
//!
//! What next.md asked of a kernel is answered here: a loop device over a multipath head is read-only and reads past the page
//! cache while the head is written to; it claims the head from nobody, and is kept off it by nobody's claim.

use anyhow::{Context, ensure};
use cleat_e2e::world::{Access, Look, Node, Volume, World, wait_for};
use cleat_rig::{Command, Daemon};

use crate::fixture::{
    LATER, SOON, attachment, delete, holds_nothing, publish_until_done, take_off, unharmed,
    unpublish_until_done, volume, wait_attachment, wait_gone, writing,
};
use crate::in_use::{device, guest, kill};

/// What the command has found out, a line each; it goes on until `/run/reading` is gone, and has an exit code of its own.
const LOOK: &str = r#"
d=${CLEAT_DEVICE##*/}; s=/sys/block/$d
echo consistency=$CLEAT_CONSISTENCY ro=$(cat $s/ro) dio=$(cat $s/loop/dio) autoclear=$(cat $s/loop/autoclear)
echo size=$(cat $s/size)
echo backing=$(cat $s/loop/backing_file)
if dd if=/dev/zero of=$CLEAT_DEVICE bs=4096 count=1 conv=fsync 2>/dev/null; then echo it wrote; else echo a write failed; fi
dd if=$CLEAT_DEVICE of=/dev/null bs=1048576 count=8 2>/dev/null && echo it reads
touch /run/reading
while [ -e /run/reading ]; do sleep 0.1; done
exit 7
"#;
/// As `--grace` of the command, where that is to end in time.
const GRACE: &str = "5s";

const UNREACHED: &str = "cannot reach controller";

/// A backup on a node.
struct Backup<'w> {
    node: &'w Node,
    daemon: Daemon,
}

impl<'w> Backup<'w> {
    /// Starts it.
    async fn start(
        world: &World,
        node: &'w Node,
        volume: &Volume,
        grace: &str,
        script: &str,
    ) -> anyhow::Result<Self> {
        let machine = node.shared_machine();
        let mut command = Command::new("cleatctl");
        for option in world.controller.cleatctl_options() {
            // The files are the host's.
            let word = match option.split_once('=') {
                Some((name, file)) if name != "--controller" => {
                    let content = std::fs::read(file).with_context(|| format!("read {file}"))?;
                    let there = format!("/run/operator{}.pem", name.replace('-', "_"));
                    tokio::task::block_in_place(|| machine.upload(&there, &content, 0o600))?;
                    format!("{name}={there}")
                }
                _ => option.clone(),
            };
            command = command.arg(word);
        }
        let command = command
            .args(["ticket", "run", "--type", "backup", "--wait", "30s", "--grace", grace, &volume.id])
            .args(["--", "sh", "-c", script]);
        // Where a kubelet runs, it is there already.
        node.sh("modprobe loop; rm -f /run/reading /run/ticket-run.log").await?;
        let daemon = tokio::task::block_in_place(|| machine.daemon(&command, "/run/ticket-run.log"))?;
        Ok(Self { node, daemon })
    }

    /// As [`Backup::start`], once the command reads.
    async fn reading(
        world: &World,
        node: &'w Node,
        volume: &Volume,
        grace: &str,
        trap: &str,
    ) -> anyhow::Result<Self> {
        // An emulated machine that is busy may take longer for a handshake than a listener waits.
        for _ in 0..3 {
            let backup = Self::start(world, node, volume, grace, &format!("{trap}{LOOK}")).await?;
            wait_for("the command to read", LATER, async || {
                let said = backup.said().await?;
                Ok(Look::holds(backup.is_reading().await? || said.contains(UNREACHED), said))
            })
            .await?;
            if backup.is_reading().await? {
                return Ok(backup);
            }
        }
        anyhow::bail!("the command never reached the controller")
    }

    async fn is_reading(&self) -> anyhow::Result<bool> {
        Ok(self.node.sh("ls /run/reading 2>/dev/null || true").await?.contains("reading"))
    }

    async fn said(&self) -> anyhow::Result<String> {
        Ok(tokio::task::block_in_place(|| self.daemon.log())?)
    }

    async fn has_said(&self, words: &[&str]) -> anyhow::Result<()> {
        let said = self.said().await?;
        for word in words {
            ensure!(said.contains(word), "the command did not say {word:?}: {said}");
        }
        Ok(())
    }

    /// Lets the command end by itself.
    async fn let_go(&self) -> anyhow::Result<()> {
        self.node.sh("rm -f /run/reading").await.map(drop)
    }

    /// That it ends with this exit code, and leaves neither a loop device nor a folder nor a ticket.
    async fn ends(self, world: &World, code: i32) -> anyhow::Result<()> {
        let exit = tokio::task::block_in_place(|| self.daemon.wait(LATER))?;
        let said = self.said().await?;
        ensure!(
            exit.to_string() == format!("exit code {code}"),
            "it ended with {exit}, not with {code}: {said}"
        );
        let left =
            self.node.sh("cat /sys/block/loop*/loop/backing_file 2>/dev/null; ls /run/cleat/tickets").await?;
        ensure!(left.trim().is_empty(), "it left {left:?}");
        let tickets = world.controller.tickets().await.context("ListTickets")?;
        ensure!(tickets.is_empty(), "it left {tickets:?}");
        Ok(())
    }
}

/// The controllers, the volume's users and its readiness are as they would be without it.
async fn nobody_minds(world: &World, volume: &Volume) -> anyhow::Result<()> {
    let verified = attachment(world, volume, world.a()).await?.context("it is attached")?;
    ensure!(verified.phase == "Ready", "it is {}", verified.phase);
    let unready = verified.reported.and_then(|state| state.unready).unwrap_or_default();
    ensure!(unready.clause.is_empty(), "the agent says {unready:?}");
    Ok(())
}

pub(crate) async fn a_backup_reads_under_a_writer_and_cannot_write(world: &World) -> anyhow::Result<()> {
    let volume = volume(world, "backed-up", Access::RwoBlock).await?;
    let attached = world.attach(&volume, world.a()).await?;
    let mut writer = writing(world.a(), &attached, 0, Some(1), 20).await?;
    let backup = Backup::reading(world, world.a(), &volume, GRACE, "").await?;
    backup.has_said(&["consistency=crash ro=1 dio=1 autoclear=1", "a write failed", "it reads"]).await?;
    backup.has_said(&["backing=/run/cleat/tickets/run.", "/device"]).await?;
    // The loop device is none of the holders that readiness minds: an agent that begins again finds the volume as it was.
    world.a().restart_agent().await?;
    world.wait_session(world.a(), LATER).await?;
    wait_attachment(world, &volume, world.a(), "Ready", |a| a.phase == "Ready").await?;
    nobody_minds(world, &volume).await?;
    backup.let_go().await?;
    backup.ends(world, 7).await?;
    unharmed(world, &volume, &mut writer).await?;
    take_off(world, &volume, world.a()).await?;
    delete(world, &volume).await
}

pub(crate) async fn a_backup_and_an_exclusive_user_keep_each_other_from_nothing(
    world: &World,
) -> anyhow::Result<()> {
    let volume = volume(world, "claimed", Access::RwoBlock).await?;
    world.attach(&volume, world.a()).await?;
    let head = device(world.a(), &volume).await?;
    // Somebody who opens exclusively before the backup, and one who does while it runs.
    let before = guest(world.a(), "claim", &head).await.context("open exclusively before the backup")?;
    let backup = Backup::reading(world, world.a(), &volume, GRACE, "").await?;
    kill(&before)?;
    world.a().sh("rm -f /run/use-guest-claim.log").await?;
    let beside = guest(world.a(), "claim", &head).await.context("open exclusively beside the backup")?;
    backup.has_said(&["ro=1 dio=1", "a write failed", "it reads"]).await?;
    kill(&beside)?;
    backup.let_go().await?;
    backup.ends(world, 7).await?;
    take_off(world, &volume, world.a()).await?;
    delete(world, &volume).await
}

pub(crate) async fn a_volume_that_is_attached_nowhere_is_there_for_the_command_alone(
    world: &World,
) -> anyhow::Result<()> {
    let (volume, attached) = crate::fixture::attached(world, "alone", Access::RwoBlock, world.a()).await?;
    let mut writer = writing(world.a(), &attached, 0, Some(1), 20).await?;
    unharmed(world, &volume, &mut writer).await?;
    take_off(world, &volume, world.a()).await?;
    let backup = Backup::reading(world, world.a(), &volume, GRACE, "").await?;
    backup.let_go().await?;
    backup.ends(world, 7).await?;
    wait_gone(world.a(), &volume).await?;
    wait_for("the detach to be proven", SOON, async || {
        let gone = holds_nothing(world, &volume, world.a()).await;
        Ok(Look::holds(gone.is_ok(), format!("{gone:?}")))
    })
    .await?;
    delete(world, &volume).await
}

pub(crate) async fn an_unpublish_interrupts_the_backup_and_waits_until_it_is_gone(
    world: &World,
) -> anyhow::Result<()> {
    let volume = volume(world, "let-go", Access::RwoBlock).await?;
    world.attach(&volume, world.a()).await?;
    let backup = Backup::reading(world, world.a(), &volume, GRACE, "").await?;
    world.a().unpublish(&volume).await.context("NodeUnpublishVolume")?;
    world.a().unstage(&volume).await.context("NodeUnstageVolume")?;
    unpublish_until_done(world, &volume, world.a()).await?;
    // Answered, so it is gone: the loop device was over it.
    holds_nothing(world, &volume, world.a()).await?;
    backup.ends(world, 75).await?;
    delete(world, &volume).await
}

pub(crate) async fn a_backup_that_does_not_end_when_asked_is_cut_off(world: &World) -> anyhow::Result<()> {
    let volume = volume(world, "cut-off", Access::RwoBlock).await?;
    world.attach(&volume, world.a()).await?;
    // It has the device open all the time, and ends by nothing that can be ignored.
    let trap = "trap '' TERM; exec 3<$CLEAT_DEVICE\n";
    let backup = Backup::reading(world, world.a(), &volume, "10min", trap).await?;
    world.a().unpublish(&volume).await.context("NodeUnpublishVolume")?;
    world.a().unstage(&volume).await.context("NodeUnstageVolume")?;
    unpublish_until_done(world, &volume, world.a()).await?;
    holds_nothing(world, &volume, world.a()).await?;
    backup.ends(world, 75).await?;
    delete(world, &volume).await
}

pub(crate) async fn a_publish_elsewhere_interrupts_the_backup_and_is_granted(
    world: &World,
) -> anyhow::Result<()> {
    let (volume, _) = crate::fixture::attached(world, "moves", Access::RwoBlock, world.a()).await?;
    take_off(world, &volume, world.a()).await?;
    let backup = Backup::reading(world, world.a(), &volume, GRACE, "").await?;
    publish_until_done(world, &volume, world.b()).await?;
    // B has it, so A is proven to have nothing of it.
    holds_nothing(world, &volume, world.a()).await?;
    backup.ends(world, 75).await?;
    unpublish_until_done(world, &volume, world.b()).await?;
    delete(world, &volume).await
}
