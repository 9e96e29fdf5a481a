//! Does a file disk grow under a connected host?

use std::time::Duration;

use cleat_rds::RdsError;

use super::Bench;
use crate::findings::Remarked;
use crate::trouble::{QuestionError, until};

/// How much it grows: enough that no rounding hides it.
const MORE_BYTES: u64 = 16 << 20;
/// Longest time from the RDS's answer until the host sees it.
const NOTICED: Duration = Duration::from_secs(15);

pub(crate) async fn ask(bench: &Bench) -> Result<Remarked<bool>, QuestionError> {
    let writer = bench.writer().await?;
    let wanted = bench.scratch.size_bytes() + MORE_BYTES;
    match bench.scratch.grow_to(wanted).await {
        Ok(()) => {}
        Err(refused @ RdsError::Refused { .. }) => return Ok(Remarked::new(false, refused.to_string())),
        Err(error) => return Err(error.into()),
    }
    let seen = until("the new size", NOTICED, async || {
        let view = bench.node.view().await?;
        let grown = view.namespaces.first().is_some_and(|namespace| namespace.size_bytes >= wanted);
        Ok(grown.then_some(()))
    })
    .await;
    match (seen, writer.pulse.beats().failed) {
        (_, Some(error)) => Ok(Remarked::new(false, format!("a write failed meanwhile ({error})"))),
        (Ok(()), None) => Ok(Remarked::new(true, "")),
        (Err(QuestionError::InVain { limit, .. }), None) => {
            let remark = format!("the RDS took it, and the host did not see it within {} s", limit.as_secs());
            Ok(Remarked::new(false, remark))
        }
        (Err(trouble), None) => Err(trouble),
    }
}
