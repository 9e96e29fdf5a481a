//! What only one rung has: a secret that holds by itself, registrations that a target forgets, an abort that drains.

use std::time::{Duration, Instant};

use anyhow::ensure;
use cleat_e2e::world::{Access, Look, Node, Rung, Volume, World, wait_for};
use cleat_rig::Network;
use rds_sim::pretend::Pretend;
use serde_json::json;

use crate::figures::figure;
use crate::reservations::{Registrant, report};
use crate::scene::{Silence, Survivor, Target, Writing, make};

/// A kernel that is refused over its secret gives its controllers up at its next attempt; it may not have noticed yet
/// that it was cut off.
const GIVEN_UP: Duration = Duration::from_secs(40);
/// After a restart of the target: the connections are back, and the agents have looked.
const ASSERTED: Duration = Duration::from_secs(30);

/// Whom the list would let in, the secret keeps out: node-a stays on it, finds its way back before its agent does,
/// and its kernel gives up by itself.
pub(crate) async fn the_old_secret_lets_nobody_back_in(world: &World) -> anyhow::Result<()> {
    let mut target = Target::of(world, Rung::Secret, 2);
    if let Some(abilities) = &mut target.view.abilities {
        abilities["host_acl"] = json!("ignored");
    }
    target.view.rds_args.extend(["--acl", "ignored"].map(str::to_owned));
    let what = "secret alone, partition";
    world.view_target(&target.view).await?;
    let volume = make(world, "fence-secret-alone", Access::RwxBlock, Rung::Secret).await?;
    // nvmet asks for secrets only where it has a list, so everybody is put on it, once and for all.
    let hosts = [world.a().host_nqn().await?, world.b().host_nqn().await?];
    world.rds.set_allowed_hosts(&volume.id, &hosts).await?;
    let mut writing = Writing::begin_on(world, volume, target).await?;
    let mut survivor = Survivor::begin(&writing).await?;
    writing.silence(Silence::Partition).await?;
    let then = writing.fenced(what).await?;
    survivor.goes_on().await?;

    let a = world.a();
    a.freeze_agent().await?;
    for network in Network::STORAGE {
        a.machine().restore_path(network)?;
    }
    let begun = Instant::now();
    wait_for("node-a's kernel to give its controllers up", GIVEN_UP, async || {
        let left = a.nvme_controllers().await?;
        Ok(Look::holds(left.is_empty(), format!("{left:?}")))
    })
    .await?;
    figure("the loser's kernel gives up: secret alone", begun.elapsed(), "(after the network is back)");
    let kernel = a.sh("dmesg | tail -n 30").await?;
    ensure!(kernel.contains("authentication failed"), "not over its secret, as its kernel tells: {kernel}");
    let allowed = world.rds.allowed_hosts(&writing.volume.id).await?;
    ensure!(allowed.contains(&hosts[0]), "the list would have kept it out: {allowed:?}");

    a.thaw_agent().await?;
    Silence::Partition.end(world).await?;
    writing.readmitted().await?;
    writing.nothing_landed_since(&then).await?;
    survivor.end(what).await?;
    writing.again().await?;
    writing.end().await
}

/// A target that has been restarted knows no registration; whoever holds the volume asserts its own again, and a
/// fence after that holds.
pub(crate) async fn a_reservation_that_the_target_forgot_is_asserted_again(
    world: &World,
) -> anyhow::Result<()> {
    let (silence, what) = (Silence::Partition, "reservation, partition, target restarted before");
    let target = Target::of(world, Rung::Reservation, 2);
    let mut writing = Writing::begin(world, "fence-restart", Access::RwxBlock, target).await?;
    let mut survivor = Survivor::begin(&writing).await?;
    let before = registrants(world.b(), &writing.volume).await?;
    ensure!(before.len() == 2, "node-a and node-b should be registered: {before:?}");

    // To the namespace, off and on is what a restart is (nvmet keeps no registration through it: ptpls is 0).
    world.rds.set_export(&writing.volume.id, false).await?;
    world.rds.set_export(&writing.volume.id, true).await?;
    let begun = Instant::now();
    let after = wait_for("both to be registered again", ASSERTED, async || {
        let now = registrants(world.b(), &writing.volume).await?;
        Ok(Look::some(Some(now.clone()).filter(|now| *now == before), format!("{now:?}, not {before:?}")))
    })
    .await?;
    figure(
        "registered again: after a restart of the target",
        begun.elapsed(),
        format!("({} hosts)", after.len()),
    );
    writing.goes_on().await?;
    survivor.goes_on().await?;

    writing.silence(silence).await?;
    let then = writing.fenced(what).await?;
    survivor.goes_on().await?;
    // The fence's own cut has made the target forget once more.
    let own = world.b().host_id().await?.replace('-', "").to_lowercase();
    wait_for("node-b alone to be registered", ASSERTED, async || {
        let now = registrants(world.b(), &writing.volume).await?;
        Ok(Look::holds(now.len() == 1 && now[0].host_id == own, format!("{now:?}")))
    })
    .await?;
    silence.end(world).await?;
    writing.readmitted().await?;
    writing.nothing_landed_since(&then).await?;
    survivor.end(what).await?;
    writing.again().await?;
    writing.end().await
}

/// Where the target's abort waits, nothing else has to: its export off is seen not to, and is not believed to.
pub(crate) async fn an_abort_that_waits_drains(world: &World) -> anyhow::Result<()> {
    let (silence, what) = (Silence::AgentStopped, "reservation, agent-stopped, drained by the abort");
    let mut target = Target::of(world, Rung::Reservation, 2);
    if let Some(abilities) = &mut target.view.abilities {
        abilities["export_drains"] = json!("no");
    }
    let mut writing = Writing::begin(world, "fence-abort", Access::RwxBlock, target).await?;
    world.rds.pretend(Pretend::Drain).await?;
    let mut survivor = Survivor::begin(&writing).await?;
    writing.silence(silence).await?;
    let then = writing.fenced(what).await?;
    survivor.goes_on().await?;
    silence.end(world).await?;
    writing.readmitted().await?;
    writing.nothing_landed_since(&then).await?;
    survivor.end(what).await?;
    writing.again().await?;
    writing.end().await
}

/// What the target's report says, as one of its hosts reads it: in the order of the host ids.
async fn registrants(node: &Node, volume: &Volume) -> anyhow::Result<Vec<Registrant>> {
    let mut found = report(node, &node.target_path(volume)).await?.registrants;
    found.sort();
    Ok(found)
}
