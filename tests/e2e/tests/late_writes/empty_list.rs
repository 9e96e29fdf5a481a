//! An RDS whose list of disks is empty for a while, in the middle of a fence: it is evidence of nothing.

use std::time::Duration;

use anyhow::ensure;
use cleat_e2e::world::{Access, Rung, World};
use rds_sim::faults::{Action, Fault};

use crate::scene::{Target, Writing};

/// Several times what a fence takes here.
const LIE: Duration = Duration::from_secs(12);
/// One call in that time.
const CALL: Duration = Duration::from_secs(3);

/// node-a writes and is not heard. While the list is empty it can be neither proven nor replaced, whatever is called;
/// afterwards it is fenced as any other.
pub(crate) async fn is_no_proof_against_a_silent_writer(world: &World) -> anyhow::Result<()> {
    let target = Target::of(world, Rung::Acl, 2);
    let mut writing = Writing::begin(world, "fence-empty-list", Access::RwoBlock, target).await?;
    world.a().freeze_agent().await?;
    // The disk itself is shown to whoever asks for it by its number.
    world.rds.add_fault(&Fault::all(Action::Slow { delay_ms: 0 }).only("GET", "/rest/disk/")).await?;
    let empty = Action::Fail { status: 200, body: serde_json::json!([]) };
    world.rds.add_fault(&Fault::all(empty).only("GET", "/rest/disk").lasting(LIE)).await?;
    let mut looks = 0;
    loop {
        writing.goes_on().await?;
        let detached = world.unpublish_within(&writing.volume, world.a(), CALL).await.is_ok();
        let moved = world.publish_within(&writing.volume, world.b(), CALL).await.is_ok();
        let proofs = world.controller.volume(&writing.volume.id).await?.past_evidence;
        let allowed = world.rds.allowed_hosts(&writing.volume.id).await?;
        // What came after the lie is not about it.
        if !world.rds.state().await?.faults.iter().any(|fault| fault.for_ms.is_some()) {
            break;
        }
        looks += 1;
        ensure!(!detached, "node-a was detached on an empty list");
        ensure!(!moved, "node-b got the volume on an empty list");
        ensure!(proofs.is_empty(), "an empty list was made evidence: {proofs:?}");
        ensure!(allowed == [world.a().host_nqn().await?], "the host list was changed: {allowed:?}");
    }
    ensure!(looks > 0, "nothing was called while the list was empty");
    world.rds.clear_faults().await?;
    let then = writing.fenced("acl, asked again after an empty list").await?;
    world.a().thaw_agent().await?;
    writing.readmitted().await?;
    writing.nothing_landed_since(&then).await?;
    writing.end().await
}
