//! Migrations that come to the end that was meant, whatever dies meanwhile that is not a node.

use std::time::Duration;

use cleat_kubevirt::script::{Step, migration_steps};
use tokio::time::sleep;

use super::Came;
use super::hand::{Hand, VOLUME};
use crate::faults::Kind;
use crate::machines::Program;
use crate::world::{NodeIx, volume_id};

const A: NodeIx = 0;
const B: NodeIx = 1;
const C: NodeIx = 2;

pub(super) async fn one_that_goes_well_is_completed(mut hand: Hand) -> Came {
    hand.vm_on(VOLUME, A).await?;
    hand.moves(0, (A, B)).await?;
    hand.ended(VOLUME, "completed", "source").await?;
    let ours = hand.migration(VOLUME).await?;
    let sides = (ours.source_node_id.as_str(), ours.target_node_id.as_str(), ours.vm_name.as_str());
    if sides != ("node-a", "node-b", "vm-1") {
        return Err(format!("another migration: {ours:?}"));
    }
    let missing = ["granted", "target_ready", "switchover", "releasing", "evidence", "done"]
        .into_iter()
        .find(|wanted| !ours.steps.iter().any(|step| step.name == *wanted));
    if let Some(missing) = missing {
        return Err(format!("{missing} is not on record: {ours:?}"));
    }
    hand.only_on(VOLUME, Some(B)).await?;
    hand.counted(&[("completed", 1)], 0)
}

/// The VM is to move on before its first node has let go of it: the third node waits for that, and no longer than a request may.
pub(super) async fn a_second_at_once_waits_for_the_first_ones_source(mut hand: Hand) -> Came {
    hand.vm_on(VOLUME, A).await?;
    hand.asks_to_move(0, B)?;
    hand.goes_on(0, (A, B), &Step::Completed).await?;
    hand.play(0, &Step::Asked { to: "node-c".into() })?;
    hand.will_come(0);
    hand.play(0, &Step::Accepted)?;
    hand.play(0, &Step::SourceEnds)?;
    let other = hand.other();
    let lets_go = async {
        sleep(Duration::from_millis(1_500)).await;
        other.unpublish(VOLUME, A).await;
    };
    let goes_on = async {
        hand.skip(0, 1);
        hand.goes_on(0, (B, C), &Step::Completed).await
    };
    let ((), went) = tokio::join!(lets_go, goes_on);
    went?;
    hand.play(0, &Step::SourceEnds)?;
    hand.unpublish(VOLUME, B).await;
    hand.ended(VOLUME, "completed", "source").await?;
    hand.only_on(VOLUME, Some(C)).await?;
    hand.counted(&[("completed", 2)], 0)
}

pub(super) async fn there_and_back_is_two_with_the_sides_swapped(mut hand: Hand) -> Came {
    hand.vm_on(VOLUME, A).await?;
    hand.moves(0, (A, B)).await?;
    hand.moves(0, (B, A)).await?;
    hand.ended(VOLUME, "completed", "source").await?;
    let ours = hand.migration(VOLUME).await?;
    if (ours.source_node_id.as_str(), ours.target_node_id.as_str()) != ("node-b", "node-a") {
        return Err(format!("the sides are not swapped: {ours:?}"));
    }
    hand.only_on(VOLUME, Some(A)).await?;
    hand.counted(&[("completed", 2)], 0)
}

/// The attacher has not got to unpublish the source when the VM comes back to it: no call says that another one has begun.
pub(super) async fn back_before_the_source_has_let_go_is_a_second_one(mut hand: Hand) -> Came {
    hand.vm_on(VOLUME, A).await?;
    hand.asks_to_move(0, B)?;
    hand.goes_on(0, (A, B), &Step::Completed).await?;
    hand.play(0, &Step::SourceEnds)?;
    hand.asks_to_move(0, A)?;
    hand.goes_on(0, (B, A), &Step::Completed).await?;
    hand.play(0, &Step::SourceEnds)?;
    hand.unpublish(VOLUME, B).await;
    hand.ended(VOLUME, "completed", "source").await?;
    let ours = hand.migration(VOLUME).await?;
    if ours.source_node_id != "node-b" {
        return Err(format!("the sides are not swapped: {ours:?}"));
    }
    hand.only_on(VOLUME, Some(A)).await?;
    hand.counted(&[("completed", 2)], 0)
}

pub(super) async fn twenty_in_a_row_are_twenty_and_the_record_stays_small(mut hand: Hand) -> Came {
    const IN_A_ROW: u64 = 20;
    /// More is not kept, whatever a record has been through.
    const LARGEST: usize = 24 << 10;
    hand.vm_on(VOLUME, A).await?;
    for number in 0..IN_A_ROW {
        let sides = if number % 2 == 0 { (A, B) } else { (B, A) };
        hand.moves(0, sides).await?;
        hand.ended(VOLUME, "completed", "source").await?;
        hand.counted(&[("completed", number + 1)], 0)?;
    }
    hand.only_on(VOLUME, Some(A)).await?;
    let record = hand.universe.lock().disk.record(&volume_id(VOLUME)).ok_or("it is not on record")?;
    let size = serde_json::to_vec(&record).map_err(|error| error.to_string())?.len();
    if record.past_migrations.len() > 4 || size > LARGEST {
        return Err(format!("{} migrations are kept, in {size} bytes", record.past_migrations.len()));
    }
    Ok(())
}

/// Dead before each step in turn, and back a second later.
pub(super) async fn a_controller_killed_at_each_step_changes_no_result(mut hand: Hand) -> Came {
    hand.vm_on(VOLUME, A).await?;
    let mut done = 0;
    for (number, at) in migration_steps(false).into_iter().enumerate() {
        let (from, to) = if number % 2 == 0 { (A, B) } else { (B, A) };
        hand.asks_to_move(0, to)?;
        if let Some(before) = migration_steps(false).get(number.wrapping_sub(1)) {
            hand.goes_on(0, (from, to), before).await?;
        }
        hand.order(Kind::Kill(Program::Controller), true);
        let other = hand.other();
        let comes_back = async {
            sleep(Duration::from_secs(1)).await;
            other.order(Kind::Kill(Program::Controller), false);
        };
        let ((), went) = tokio::join!(comes_back, hand.goes_on(0, (from, to), &at));
        went?;
        if at != Step::Completed {
            hand.goes_on(0, (from, to), &Step::Completed).await?;
        }
        hand.play(0, &Step::SourceEnds)?;
        hand.unpublish(VOLUME, from).await;
        hand.ended(VOLUME, "completed", "source")
            .await
            .map_err(|why| format!("killed before {at:?}: {why}"))?;
        done += 1;
        let counted = hand.completed_at_most(done);
        counted.map_err(|why| format!("killed before {at:?}: {why}"))?;
    }
    let last = if done % 2 == 0 { A } else { B };
    hand.only_on(VOLUME, Some(last)).await
}

pub(super) async fn an_agent_killed_and_a_session_cut_change_no_result(mut hand: Hand) -> Came {
    hand.vm_on(VOLUME, A).await?;
    hand.asks_to_move(0, B)?;
    hand.goes_on(0, (A, B), &Step::TargetReady).await?;
    for kind in [Kind::Kill(Program::Agent(B)), Kind::Kill(Program::Agent(A)), Kind::Cut(B)] {
        hand.order(kind, true);
        sleep(Duration::from_millis(1_200)).await;
        hand.order(kind, false);
        sleep(Duration::from_millis(1_500)).await;
    }
    hand.goes_on(0, (A, B), &Step::Completed).await?;
    hand.play(0, &Step::SourceEnds)?;
    hand.unpublish(VOLUME, A).await;
    hand.ended(VOLUME, "completed", "source").await?;
    hand.only_on(VOLUME, Some(B)).await?;
    hand.counted(&[("completed", 1)], 0)
}

/// From when the memory is on its way until after the end: what was reported last is what is known.
pub(super) async fn an_api_server_that_is_away_ends_nothing(mut hand: Hand) -> Came {
    hand.vm_on(VOLUME, A).await?;
    hand.asks_to_move(0, B)?;
    hand.goes_on(0, (A, B), &Step::Began).await?;
    sleep(Duration::from_secs(1)).await;
    hand.universe.lock().kubevirt.is_silent = true;
    hand.goes_on(0, (A, B), &Step::Completed).await?;
    sleep(Duration::from_secs(5)).await;
    hand.counted(&[], 0)?;
    hand.universe.lock().kubevirt.is_silent = false;
    sleep(Duration::from_secs(1)).await;
    hand.play(0, &Step::SourceEnds)?;
    hand.unpublish(VOLUME, A).await;
    hand.ended(VOLUME, "completed", "source").await?;
    hand.only_on(VOLUME, Some(B)).await?;
    hand.counted(&[("completed", 1)], 0)
}
