//! What ends a live session: taking its host off the list, or switching the export off; and whether the
//! namespace is the same one when the export is back.
//!
//! Writes go on all the time. The kernel shows a cut: no connection is live any more. Writes show that there
//! is none: they began after the RDS had confirmed the step, and succeeded.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::{Bench, Writer};
use crate::findings::{Cut, Remarked};
use crate::trouble::{QuestionError, until};

/// Twice the keep-alive time, and some more: a session that has lost its other end has noticed by then.
const NOTICED: Duration = Duration::from_secs(12);
/// Longest time until it is clear what happens to a session.
const CLEAR: Duration = Duration::from_secs(30);
/// A host that lost its sessions tries again each second.
const TRIED_AGAIN: Duration = Duration::from_secs(4);
/// A host that is back reads the namespace again, and drops it if it is another one: writes count after that.
const SETTLED: Duration = Duration::from_secs(4);
/// Longest time from the export's return to the host's.
const BACK: Duration = Duration::from_secs(40);

/// Takes a writing host off the list; returns whether that ends its session.
pub(crate) async fn removal(bench: &Bench) -> Result<bool, QuestionError> {
    let writer = bench.writer().await?;
    let begun = Instant::now();
    bench.scratch.admit(&[]).await?;
    let confirmed = OnceLock::from(Instant::now());
    Ok(matches!(session(bench, &writer, begun, &confirmed).await?, Cut::After(_)))
}

/// Switches the export off under a writing host, and on again.
pub(crate) async fn export(
    bench: &Bench,
) -> Result<(Cut, Result<Remarked<bool>, QuestionError>), QuestionError> {
    let writer = bench.writer().await?;
    let (begun, confirmed) = (Instant::now(), OnceLock::new());
    let hide = async {
        let hidden = bench.scratch.hide().await;
        confirmed.get_or_init(Instant::now);
        hidden
    };
    let (hidden, cut) = tokio::join!(hide, session(bench, &writer, begun, &confirmed));
    hidden?;
    let cut = cut?;
    let identity = identity(bench, &writer).await;
    if let Cut::After(_) = cut {
        stays_out(bench).await?;
    }
    Ok((cut, identity))
}

/// Switches the export off once more, and checks whether the host stays out: sessions may have ended for
/// another reason, and a host that is back while the export is off was not cut.
async fn stays_out(bench: &Bench) -> Result<(), QuestionError> {
    bench.clear().await?;
    let writer = bench.writer().await?;
    bench.scratch.hide().await?;
    let hidden = Instant::now();
    until("the end of the session, at the second time", CLEAR, async || {
        Ok((bench.node.live(&writer.host).await?.0 == 0).then_some(()))
    })
    .await?;
    until("a host to stay out", CLEAR, async || match bench.node.live(&writer.host).await? {
        (0, _) => Ok((hidden.elapsed() > TRIED_AGAIN).then_some(())),
        _ => Err(QuestionError::unclear("its session ended, but a host was back while the export was off")),
    })
    .await
}

/// Waits until it is clear whether the session ends. `confirmed` is when the RDS had shown that the step was
/// done.
async fn session(
    bench: &Bench,
    writer: &Writer,
    begun: Instant,
    confirmed: &OnceLock<Instant>,
) -> Result<Cut, QuestionError> {
    // The step itself has its own limit; from its confirmation on it has to become clear.
    let limit = CLEAR + Duration::from_secs(90);
    until("an end of the session, or a write after it should have ended", limit, async || {
        let (live, _) = bench.node.live(&writer.host).await?;
        if live == 0 {
            return Ok(Some(Cut::After(begun.elapsed())));
        }
        let Some(confirmed) = confirmed.get() else { return Ok(None) };
        let beats = writer.pulse.beats();
        if live == bench.node.paths() && beats.written_since(*confirmed + NOTICED) {
            return Ok(Some(Cut::Stays));
        }
        if confirmed.elapsed() > CLEAR {
            let why = beats.failed.unwrap_or_else(|| "writes neither failed nor went through".to_owned());
            let paths = bench.node.paths();
            return Err(QuestionError::unclear(format!(
                "{live} of {paths} connections stayed live, and {why}"
            )));
        }
        Ok(None)
    })
    .await
}

/// Switches the export on again; returns whether the namespace is the same one, and what happened to the
/// host.
async fn identity(bench: &Bench, writer: &Writer) -> Result<Remarked<bool>, QuestionError> {
    let shown = Instant::now();
    bench.scratch.show().await?;
    let back = until("the connected host", BACK, async || {
        let (live, all) = bench.node.live(&writer.host).await?;
        let beats = writer.pulse.beats();
        if let Some(error) = beats.failed {
            return Ok(Some(format!("the host that was connected got an error ({error})")));
        }
        if all == 0 {
            return Ok(Some("the host that was connected gave up".to_owned()));
        }
        let back = live == bench.node.paths() && beats.written_since(shown + SETTLED);
        Ok(back.then(|| {
            format!(
                "the host that was connected went on by itself without an error, after {} ms at the longest",
                beats.longest.as_millis()
            )
        }))
    })
    .await;
    let back = match back {
        Ok(words) => words,
        Err(QuestionError::InVain { limit, .. }) => {
            format!("the host that was connected was not back after {} s", limit.as_secs())
        }
        Err(trouble) => return Err(trouble),
    };
    bench.node.disconnect(&writer.host).await?;
    let after = bench.node.connect(&writer.host).await?;
    let before = &writer.device.identity;
    if before.uuid.is_none() {
        return Ok(Remarked::new(false, format!("the namespace has no UUID; {back}")));
    }
    Ok(Remarked::new(before.uuid == after.identity.uuid, back))
}
