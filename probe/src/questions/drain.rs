//! Does switching the export off wait for writes that the RDS has received?
//!
//! This shows only where a write takes long: then it is still on its way when the export goes off. Its host's
//! connections are deleted before the export is back, so that nothing is sent again. Another host reads what
//! has landed.

use std::time::{Duration, Instant};

use super::{Bench, fresh_stamp, landed, landed_after};
use crate::findings::Remarked;
use crate::node::NewHost;
use crate::trouble::{QuestionError, until};
use crate::volley::{DrainVerdict, Seen, Volley, WRITES};

/// Longest wait for the end of the sessions. An export that waits while its sessions live takes as long as
/// the writes.
const CUT: Duration = Duration::from_secs(90);
/// After twice the usual time and this, no write of a volley is expected any more.
const SPARE: Duration = Duration::from_secs(3);

pub(crate) async fn ask(bench: &Bench) -> Result<Remarked<bool>, QuestionError> {
    let (idler, ..) = bench.opened(&[]).await?;
    let idle = off_and_on(bench, &idler).await?;
    let (writer, device, file) = bench.opened(&[]).await?;
    let usual = bench.slow_enough(&device, &file).await?;
    let volley = Volley::send(&file, device.block_bytes, fresh_stamp())?;
    drop(file);
    // Received, but far from landed.
    tokio::time::sleep(usual / 4).await;
    if !volley.ended().is_empty() {
        return Err(QuestionError::unclear("a write went through faster than those before"));
    }
    let waited = off_and_on(bench, &writer).await?;
    let (_, device, file) = bench.opened(&[]).await?;
    let landed_before = landed(bench, &device, &file, volley.stamp).await?;
    let first_read = volley.begun.elapsed();
    let late = 2 * usual + SPARE;
    let landed_after = landed_after(bench, &device, &file, (volley.stamp, landed_before), late).await?;
    let seen = Seen { usual, first_read, waited, idle, landed_before, landed_after };
    tracing::debug!(?seen, "taking the export off under writes in flight");
    answer(&seen)
}

/// Switches the export off, disconnects the host and switches the export on; returns how long the two
/// requests took.
async fn off_and_on(bench: &Bench, host: &NewHost) -> Result<Duration, QuestionError> {
    let hidden = async {
        let begun = Instant::now();
        bench.scratch.hide().await.map(|()| begun.elapsed())
    };
    let (hide_took, taken_away) = tokio::join!(hidden, take_away(bench, host));
    let hide_took = hide_took?;
    taken_away?;
    let shown = Instant::now();
    bench.scratch.show().await?;
    Ok(hide_took + shown.elapsed())
}

/// Waits for the end of the host's sessions, and deletes its connections: what they have not sent is never
/// sent.
async fn take_away(bench: &Bench, writer: &NewHost) -> Result<(), QuestionError> {
    until("the end of the sessions", CUT, async || {
        let (live, _) = bench.node.live(writer).await?;
        Ok((live == 0).then_some(()))
    })
    .await?;
    bench.node.disconnect(writer).await
}

fn answer(seen: &Seen) -> Result<Remarked<bool>, QuestionError> {
    match seen.verdict() {
        DrainVerdict::Waited => {
            let remark = format!(
                "writes that take {} ms were on their way; it took {} ms ({} ms without them), and {} of \
                 {WRITES} had landed by then and none later",
                seen.usual.as_millis(),
                seen.waited.as_millis(),
                seen.idle.as_millis(),
                seen.landed_before
            );
            Ok(Remarked::new(true, remark))
        }
        DrainVerdict::LandedAfter(after) => {
            let remark = format!(
                "a write that was on its way landed {} ms after the export was back and another host had read",
                after.as_millis()
            );
            Ok(Remarked::new(false, remark))
        }
        DrainVerdict::Unclear(why) => Err(QuestionError::unclear(why)),
    }
}
