//! Migrations that come to another end, and what is left over of each, which is nothing.

use std::time::Duration;

use cleat_kubevirt::script::Step;
use tokio::time::sleep;

use super::Came;
use super::hand::{Hand, VOLUME};
use crate::faults::Kind;
use crate::world::{NodeIx, PORTALS};

const A: NodeIx = 0;
const B: NodeIx = 1;
const C: NodeIx = 2;

/// What the source was granted, and that it goes on under that.
async fn epoch_at_source(hand: &Hand) -> Result<(u64, u64), String> {
    let info = hand.volume(VOLUME).await?;
    let source = info.attachments.iter().find(|a| a.node_id == "node-a" && a.phase == "Ready");
    let epoch = source.and_then(|a| a.epoch).ok_or_else(|| format!("node-a is not ready: {info:?}"))?;
    Ok((epoch.term, epoch.seq))
}

pub(super) async fn a_target_that_never_gets_ready_is_a_failure(mut hand: Hand) -> Came {
    hand.vm_on(VOLUME, A).await?;
    let before = epoch_at_source(&hand).await?;
    hand.order(Kind::Unlink(B, [false; PORTALS]), true);
    hand.asks_to_move(0, B)?;
    for step in [Step::Accepted, Step::TargetMade, Step::TargetPlaced] {
        hand.play(0, &step)?;
    }
    hand.refused(VOLUME, B, 1).await?;
    hand.play(0, &Step::TargetDied)?;
    hand.unpublish(VOLUME, B).await;
    hand.ended(VOLUME, "failed", "target").await?;
    hand.only_on(VOLUME, Some(A)).await?;
    if epoch_at_source(&hand).await? != before {
        return Err("the source was granted it again".to_owned());
    }
    hand.counted(&[("failed", 1)], 0)
}

/// The attacher tries again while KubeVirt goes on with the migration, and says nothing new of it.
pub(super) async fn a_target_that_is_tried_again_is_a_failure_each_time(mut hand: Hand) -> Came {
    hand.vm_on(VOLUME, A).await?;
    hand.order(Kind::Unlink(B, [false; PORTALS]), true);
    hand.asks_to_move(0, B)?;
    for step in [Step::Accepted, Step::TargetMade, Step::TargetPlaced] {
        hand.play(0, &step)?;
    }
    // An agent gives up later than a request does, so not each try is another one.
    hand.refused(VOLUME, B, 6).await?;
    hand.unpublish(VOLUME, B).await;
    hand.ended(VOLUME, "failed", "target").await?;
    hand.play(0, &Step::TargetDied)?;
    hand.only_on(VOLUME, Some(A)).await?;
    let tries = hand.count("failed");
    if tries < 2 {
        return Err(format!("{tries} have failed: nothing was tried again"));
    }
    hand.counted(&[("failed", tries)], 0)
}

pub(super) async fn one_that_is_called_off_is_rolled_back(hand: Hand) -> Came {
    rolls_back(hand, &[Step::AbortAsked, Step::Aborted]).await
}

pub(super) async fn one_that_kubevirt_fails_to_do_is_rolled_back(hand: Hand) -> Came {
    rolls_back(hand, &[Step::Failed]).await
}

async fn rolls_back(mut hand: Hand, steps: &[Step]) -> Came {
    hand.vm_on(VOLUME, A).await?;
    let before = epoch_at_source(&hand).await?;
    hand.asks_to_move(0, B)?;
    hand.goes_on(0, (A, B), &Step::Began).await?;
    for step in steps {
        hand.play(0, step)?;
        sleep(Duration::from_millis(500)).await;
    }
    hand.unpublish(VOLUME, B).await;
    hand.ended(VOLUME, "rolled_back", "target").await?;
    hand.only_on(VOLUME, Some(A)).await?;
    if epoch_at_source(&hand).await? != before {
        return Err("the source was granted it again".to_owned());
    }
    hand.counted(&[("rolled_back", 1)], 0)
}

pub(super) async fn a_target_that_dies_is_fenced_and_rolled_back(mut hand: Hand) -> Came {
    hand.vm_on(VOLUME, A).await?;
    hand.asks_to_move(0, B)?;
    hand.goes_on(0, (A, B), &Step::Began).await?;
    hand.order(Kind::Destroy(B), true);
    sleep(Duration::from_secs(1)).await;
    hand.play(0, &Step::TargetDied)?;
    hand.unpublish(VOLUME, B).await;
    hand.ended(VOLUME, "rolled_back", "target").await?;
    hand.fenced(VOLUME, &[B]).await?;
    hand.only_on(VOLUME, Some(A)).await?;
    hand.counted(&[("rolled_back", 1)], 0)
}

pub(super) async fn a_target_that_dies_before_it_is_ready_is_a_failure(mut hand: Hand) -> Came {
    hand.vm_on(VOLUME, A).await?;
    hand.order(Kind::Unlink(B, [false; PORTALS]), true);
    hand.asks_to_move(0, B)?;
    for step in [Step::Accepted, Step::TargetMade, Step::TargetPlaced] {
        hand.play(0, &step)?;
    }
    // Its agent is at it then.
    let dies = async {
        sleep(Duration::from_millis(1_500)).await;
        hand.order(Kind::Destroy(B), true);
    };
    let (said, ()) = tokio::join!(hand.refused(VOLUME, B, 1), dies);
    said?;
    hand.play(0, &Step::TargetDied)?;
    hand.unpublish(VOLUME, B).await;
    hand.ended(VOLUME, "failed", "target").await?;
    hand.fenced(VOLUME, &[B]).await?;
    hand.only_on(VOLUME, Some(A)).await?;
    hand.counted(&[("failed", 1)], 0)
}

/// The target keeps the volume until KubeVirt has come to an end of its own.
pub(super) async fn a_source_that_dies_before_the_switchover_is_a_failure(mut hand: Hand) -> Came {
    hand.vm_on(VOLUME, A).await?;
    hand.asks_to_move(0, B)?;
    hand.goes_on(0, (A, B), &Step::Began).await?;
    hand.order(Kind::Destroy(A), true);
    sleep(Duration::from_secs(1)).await;
    hand.play(0, &Step::SourceDied)?;
    hand.unpublish(VOLUME, A).await;
    hand.ended(VOLUME, "failed", "source").await?;
    hand.fenced(VOLUME, &[A]).await?;
    hand.only_on(VOLUME, Some(B)).await?;
    hand.counted(&[("failed", 1)], 0)
}

pub(super) async fn a_source_that_freezes_after_the_switchover_completes(mut hand: Hand) -> Came {
    hand.vm_on(VOLUME, A).await?;
    hand.asks_to_move(0, B)?;
    hand.goes_on(0, (A, B), &Step::Switched).await?;
    hand.order(Kind::FreezeMachine(A), true);
    hand.goes_on(0, (A, B), &Step::Completed).await?;
    hand.unpublish(VOLUME, A).await;
    hand.ended(VOLUME, "completed", "source").await?;
    hand.fenced(VOLUME, &[A]).await?;
    hand.counted(&[("completed", 1)], 0)?;
    hand.order(Kind::FreezeMachine(A), false);
    // Once it is heard, and has shown that it holds nothing, it is a node like any other.
    hand.fenced(VOLUME, &[]).await?;
    hand.only_on(VOLUME, Some(B)).await?;
    hand.counted(&[("completed", 1)], 0)
}

pub(super) async fn both_that_die_are_one_failure_and_nothing_is_left(mut hand: Hand) -> Came {
    hand.vm_on(VOLUME, A).await?;
    hand.asks_to_move(0, B)?;
    hand.goes_on(0, (A, B), &Step::Began).await?;
    hand.order(Kind::Destroy(A), true);
    hand.order(Kind::Destroy(B), true);
    sleep(Duration::from_secs(1)).await;
    hand.play(0, &Step::SourceDied)?;
    // The source's is proven first: by then the other has nobody to be a side with.
    hand.unpublish(VOLUME, A).await;
    hand.unpublish(VOLUME, B).await;
    hand.ended(VOLUME, "failed", "source").await?;
    hand.fenced(VOLUME, &[A, B]).await?;
    hand.only_on(VOLUME, None).await?;
    hand.counted(&[("failed", 1)], 0)
}

/// Waits until the time of 30 s is over, and sees that nobody is cut off for it.
async fn times_out(hand: &Hand) -> Came {
    let before = epoch_at_source(hand).await?;
    hand.until("the time-out", 45_000, async |hand| {
        let ours = hand.migration(VOLUME).await?;
        match ours.result == "timed_out" && ours.overdue && ours.left.is_empty() {
            true => Ok(()),
            false => Err(format!("{ours:?}")),
        }
    })
    .await?;
    hand.counted(&[("timed_out", 1)], 1)?;
    let info = hand.volume(VOLUME).await?;
    match info.attachments.len() == 2 && epoch_at_source(hand).await? == before {
        true => Ok(()),
        false => Err(format!("somebody was cut off: {info:?}")),
    }
}

pub(super) async fn past_its_time_it_is_timed_out_once_and_nobody_is_cut(mut hand: Hand) -> Came {
    hand.universe.lock().migration_timeout_s = Some(30);
    hand.vm_on(VOLUME, A).await?;
    hand.asks_to_move(0, B)?;
    hand.goes_on(0, (A, B), &Step::Began).await?;
    times_out(&hand).await?;
    let said = hand.refused(VOLUME, C, 1).await?;
    if !["node-a", "node-b", "30 s"].iter().all(|word| said.contains(word)) {
        return Err(format!("the third is refused for something else: {said}"));
    }
    // It comes to its end all the same.
    hand.goes_on(0, (A, B), &Step::Completed).await?;
    hand.play(0, &Step::SourceEnds)?;
    hand.unpublish(VOLUME, A).await;
    hand.ended(VOLUME, "timed_out", "source").await?;
    hand.only_on(VOLUME, Some(B)).await?;
    hand.counted(&[("timed_out", 1)], 0)?;
    hand.moves(0, (B, C)).await?;
    hand.ended(VOLUME, "completed", "source").await?;
    hand.counted(&[("timed_out", 1), ("completed", 1)], 0)
}

/// What KubeVirt has begun goes on counting, whatever becomes of it meanwhile.
pub(super) async fn an_api_server_that_is_away_stops_no_time_limit(mut hand: Hand) -> Came {
    hand.universe.lock().migration_timeout_s = Some(30);
    hand.vm_on(VOLUME, A).await?;
    hand.asks_to_move(0, B)?;
    hand.goes_on(0, (A, B), &Step::Began).await?;
    sleep(Duration::from_secs(1)).await;
    hand.universe.lock().kubevirt.is_silent = true;
    hand.goes_on(0, (A, B), &Step::Completed).await?;
    times_out(&hand).await?;
    hand.universe.lock().kubevirt.is_silent = false;
    hand.play(0, &Step::SourceEnds)?;
    hand.unpublish(VOLUME, A).await;
    hand.ended(VOLUME, "timed_out", "source").await?;
    hand.only_on(VOLUME, Some(B)).await?;
    hand.counted(&[("timed_out", 1)], 0)
}

pub(super) async fn without_kubevirt_it_is_unattributed_and_never_overdue(mut hand: Hand) -> Came {
    {
        let mut world = hand.universe.lock();
        world.migration_timeout_s = Some(30);
        world.kubevirt.is_silent = true;
    }
    hand.vm_on(VOLUME, A).await?;
    hand.publish(VOLUME, B).await?;
    sleep(Duration::from_secs(40)).await;
    let ours = hand.migration(VOLUME).await?;
    if ours.result != "running" || ours.overdue {
        return Err(format!("nobody has said that it migrates: {ours:?}"));
    }
    hand.universe.lock().close(A, VOLUME);
    hand.unpublish(VOLUME, A).await;
    hand.ended(VOLUME, "unattributed", "source").await?;
    hand.publish(VOLUME, A).await?;
    hand.unpublish(VOLUME, A).await;
    hand.ended(VOLUME, "unattributed", "target").await?;
    hand.only_on(VOLUME, Some(B)).await?;
    hand.counted(&[("unattributed", 2)], 0)
}

pub(super) async fn a_third_node_while_two_have_it_is_refused(mut hand: Hand) -> Came {
    hand.vm_on(VOLUME, A).await?;
    hand.asks_to_move(0, B)?;
    hand.goes_on(0, (A, B), &Step::Began).await?;
    let said = hand.refused(VOLUME, C, 2).await?;
    if !["node-a", "node-b"].iter().all(|word| said.contains(word)) {
        return Err(format!("it is not said who has it: {said}"));
    }
    hand.unpublish(VOLUME, C).await;
    hand.goes_on(0, (A, B), &Step::Completed).await?;
    hand.play(0, &Step::SourceEnds)?;
    hand.unpublish(VOLUME, A).await;
    hand.ended(VOLUME, "completed", "source").await?;
    hand.only_on(VOLUME, Some(B)).await?;
    hand.counted(&[("completed", 1)], 0)
}
