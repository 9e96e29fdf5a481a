//! Reservations: can the namespace be reserved, does losing its registration stop a host's writes, and does
//! preempt-and-abort wait for writes in flight?

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cleat_host::reservations::{ReservationKey, Reservations as _};
use cleat_rds::ProbedReservations as Worth;

use super::{Bench, fresh_stamp, landed, landed_after};
use crate::findings::Remarked;
use crate::node::{Device, NewHost};
use crate::trouble::QuestionError;
use crate::volley::{DrainVerdict, Ended, Seen, Volley};

/// Longest time of a reservation command; one that waits for writes takes as long as they do.
const COMMAND: Duration = Duration::from_secs(45);
/// After twice the usual time and this, no write of a volley is expected any more.
const SPARE: Duration = Duration::from_secs(3);
/// Longest time until the loser's next write is refused.
const REFUSED: Duration = Duration::from_secs(30);

pub(crate) async fn ask(bench: &Bench) -> Result<Remarked<Worth>, QuestionError> {
    let (victim, device, file) = bench.opened(&[]).await?;
    let block = bench.node.reservations();
    let abilities = block.abilities(device.dev, COMMAND).await?;
    if !abilities.any() {
        return Ok(Remarked::new(Worth::None, "the namespace says that it has none"));
    }
    if !abilities.write_exclusive_all_registrants() {
        let remark =
            format!("not of the kind Write Exclusive - All Registrants (RESCAP {:#04x})", abilities.rescap);
        return Ok(Remarked::new(Worth::None, remark));
    }
    let usual = bench.usual(&device, &file).await?;
    let (mine, successors) = (key(1)?, key(2)?);
    block.register(device.dev, None, mine, COMMAND).await?;
    block.reserve(device.dev, mine, COMMAND).await?;
    if !block.report(device.dev, COMMAND).await?.admits(victim.id, mine) {
        return Err(QuestionError::unclear("the namespace was reserved, and its report does not show it"));
    }

    // Sent while the victim's path is the only one of the device.
    let volley = Volley::send(&file, device.block_bytes, fresh_stamp())?;
    let successor = bench.node.fresh_host();
    bench.scratch.admit(&[&victim, &successor]).await?;
    bench.node.connect(&successor).await?;
    let path = bench.node.path_reservations(&successor, &device).await?;
    // A command that waits for nothing.
    let begun = Instant::now();
    path.register(successors, COMMAND).await?;
    let idle = begun.elapsed();
    let in_flight = volley.ended().is_empty();
    let begun = Instant::now();
    path.preempt_and_abort(successors, mine, COMMAND).await?;
    let waited = begun.elapsed();

    let landed_before = landed(bench, &device, &file, volley.stamp).await?;
    let first_read = volley.begun.elapsed();
    let gone = !block.report(device.dev, COMMAND).await?.has(mine);
    let watched = (volley.stamp, landed_before);
    let landed_after = landed_after(bench, &device, &file, watched, 2 * usual + SPARE).await?;
    let seen = Seen { usual, first_read, waited, idle, landed_before, landed_after };
    tracing::debug!(?seen, in_flight, "preempt-and-abort");
    if !gone || !refused(bench, &successor, &device, &file).await? {
        let remark = "a host that was preempted went on writing";
        return Ok(Remarked::new(Worth::None, remark));
    }
    Ok(worth(&seen, in_flight))
}

fn key(number: u64) -> Result<ReservationKey, QuestionError> {
    ReservationKey::new(number).ok_or_else(|| QuestionError::unclear("no key"))
}

/// Whether the victim's next write is refused: once its successor has gone, its path is the only one again.
async fn refused(
    bench: &Bench,
    successor: &NewHost,
    device: &Device,
    file: &Arc<File>,
) -> Result<bool, QuestionError> {
    bench.node.disconnect(successor).await?;
    let ended = Volley::send(file, device.block_bytes, fresh_stamp())?.all_ended(REFUSED).await?;
    Ok(ended.iter().all(|Ended { well, .. }| !well))
}

/// The answer that follows from what was seen. Pure.
fn worth(seen: &Seen, in_flight: bool) -> Remarked<Worth> {
    let held = |why: String| Remarked::new(Worth::Held, format!("they hold; {why}"));
    match seen.verdict() {
        DrainVerdict::LandedAfter(after) => held(format!(
            "but a write that was in flight landed {} ms after preempt-and-abort had answered",
            after.as_millis()
        )),
        DrainVerdict::Waited if in_flight => {
            let waited = seen.waited.as_millis();
            let remark =
                format!("they hold, and preempt-and-abort waited {waited} ms for the writes in flight");
            Remarked::new(Worth::AbortWaits, remark)
        }
        _ if !in_flight => held(format!(
            "whether preempt-and-abort waits could not be seen, because writes land within {} ms here",
            seen.usual.as_millis().max(1)
        )),
        DrainVerdict::Waited => held("whether preempt-and-abort waits could not be seen".to_owned()),
        DrainVerdict::Unclear(why) => {
            held(format!("whether preempt-and-abort waits could not be seen, because {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abort_waits_only_if_it_was_seen_to() {
        let ms = Duration::from_millis;
        let seen = Seen {
            usual: ms(4000),
            first_read: ms(4200),
            waited: ms(3000),
            idle: ms(10),
            landed_before: 16,
            landed_after: None,
        };
        assert_eq!(worth(&seen, true).is, Worth::AbortWaits);
        assert_eq!(worth(&seen, false).is, Worth::Held);
        let hasty = Seen { waited: ms(90), first_read: ms(1300), landed_before: 0, ..seen.clone() };
        assert_eq!(worth(&hasty, true).is, Worth::Held, "none landed");
        assert_eq!(worth(&Seen { landed_after: Some(ms(3000)), ..seen }, true).is, Worth::Held);
    }
}
