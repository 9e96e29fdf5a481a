//! What one agent can make us keep, and which of its texts people may see.
//!
//! In come messages as they were sent; out they go no larger than the limits here, and with nothing in them that a
//! terminal would act on. What always holds: a list that is too long is refused with its name, its length and the limit;
//! a text for people is cut and escaped, since no length of it is worth a session.

use std::time::Duration;

use cleat_proto::cleat::v1 as proto;
use cleat_runtime::text::is_harmful;
use tokio::time::Instant;

use super::malformed::Malformed;

/// The largest message: an inventory of [`VOLUMES`] volumes with four paths each.
pub(crate) const MESSAGE_BYTES: usize = 1 << 20;
/// Addresses of a node on storage networks.
pub(super) const STORAGE_ADDRESSES: usize = 16;
/// Volumes that a node's kernel may hold at once.
pub(super) const VOLUMES: usize = 1024;
/// How many volumes of one node we keep reports of, those that it no longer holds included.
pub(super) const KEPT_VOLUMES: usize = 4096;
/// How many nodes we keep reports of; where there are certificates, they limit the number already.
pub(super) const KEPT_NODES: usize = 4096;
/// Paths, stagings, deleted controllers of a volume.
const PARTS: usize = 64;
/// Users of a device that are named; the rest is a number.
const OPENERS: usize = 64;
/// A name, a state, one user of a device.
const NAME_BYTES: usize = 256;
/// A sentence, a path.
const TEXT_BYTES: usize = 1024;

fn few(field: &'static str, found: usize, most: usize) -> Result<(), Malformed> {
    if found <= most { Ok(()) } else { Err(Malformed::TooMany { field, found, most }) }
}

/// A text as it may be shown: without anything that a terminal acts on or that turns a line around, and not longer than
/// `most` bytes.
fn tidy(text: &mut String, most: usize) {
    if text.len() <= most && !text.contains(is_harmful) {
        return;
    }
    let mut shown = String::new();
    for c in text.chars() {
        let at = shown.len();
        if is_harmful(c) {
            shown.extend(c.escape_default())
        } else {
            shown.push(c)
        }
        if shown.len() > most {
            shown.truncate(at);
            shown.push('…');
            break;
        }
    }
    *text = shown;
}

/// The same for a name, a state, one user of a device.
pub(super) fn name(text: &mut String) {
    tidy(text, NAME_BYTES);
}

fn names<'a>(texts: impl IntoIterator<Item = &'a mut String>) {
    for text in texts {
        name(text);
    }
}

/// Users of a device: enough of them to know what to stop.
fn users(openers: &mut Vec<String>) {
    let more = openers.len().saturating_sub(OPENERS);
    openers.truncate(OPENERS);
    names(openers.iter_mut());
    if more > 0 {
        openers.push(format!("and {more} more"));
    }
}

pub(super) fn hello(hello: &mut proto::Hello) -> Result<(), Malformed> {
    names([&mut hello.agent_version]);
    if let Some(identity) = &hello.identity {
        few("hello.identity.storage_addresses", identity.storage_addresses.len(), STORAGE_ADDRESSES)?;
    }
    if let Some(capabilities) = &mut hello.capabilities {
        names([&mut capabilities.kernel_release, &mut capabilities.fabrics]);
    }
    Ok(())
}

pub(super) fn inventory(inventory: &mut proto::Inventory) -> Result<(), Malformed> {
    use proto::volume_state::Phase;
    let held = inventory.volumes.iter().filter(|state| state.phase() != Phase::Absent).count();
    few("inventory.volumes (held)", held, VOLUMES)?;
    few("inventory.volumes", inventory.volumes.len(), KEPT_VOLUMES)?;
    inventory.volumes.iter_mut().try_for_each(state)
}

pub(super) fn state(state: &mut proto::VolumeState) -> Result<(), Malformed> {
    few("paths", state.paths.len(), PARTS)?;
    few("staging", state.staging.len(), PARTS)?;
    for path in &mut state.paths {
        names([&mut path.portal, &mut path.controller, &mut path.state, &mut path.ana_state]);
    }
    for staging in &mut state.staging {
        tidy(&mut staging.path, TEXT_BYTES);
        names([&mut staging.device]);
    }
    if let Some(identity) = &mut state.identity {
        names([&mut identity.namespace_uuid, &mut identity.nguid]);
    }
    if let Some(said) = &mut state.unready {
        unready(said);
    }
    if let Some(said) = &mut state.absence {
        absence(said)?;
    }
    users(&mut state.openers);
    users(&mut state.held_elsewhere);
    names([&mut state.device]);
    Ok(())
}

fn unready(unready: &mut proto::Unready) {
    names([&mut unready.clause]);
    tidy(&mut unready.message, TEXT_BYTES);
}

fn absence(absent: &mut proto::AbsentOutcome) -> Result<(), Malformed> {
    few("absent.deleted", absent.deleted.len(), PARTS)?;
    for deleted in &mut absent.deleted {
        names([&mut deleted.controller, &mut deleted.portal, &mut deleted.state_at_deletion]);
    }
    Ok(())
}

pub(super) fn result(result: &mut proto::DirectiveResult) -> Result<(), Malformed> {
    use proto::directive_result::Outcome;
    match &mut result.outcome {
        Some(Outcome::Ready(ready)) => ready.state.as_mut().map_or(Ok(()), state),
        Some(Outcome::Absent(absent)) => absence(absent),
        Some(Outcome::Busy(busy)) => {
            users(&mut busy.holders);
            Ok(())
        }
        Some(Outcome::Failed(failed)) => {
            failed.unready.as_mut().map(unready);
            Ok(())
        }
        Some(Outcome::Pending(pending)) => {
            tidy(&mut pending.message, TEXT_BYTES);
            Ok(())
        }
        Some(Outcome::Preempted(preempted)) => few("preempted.left_keys", preempted.left_keys.len(), VOLUMES),
        Some(Outcome::StaleEpoch(_) | Outcome::Rekeyed(_)) | None => Ok(()),
    }
}

/// How fast an agent may report: whoever reports faster is read more slowly, and nothing is lost.
#[derive(Debug)]
pub(super) struct Pace {
    left: f64,
    at: Instant,
}

impl Pace {
    /// All volumes of a node at once, twice over.
    const BURST: f64 = 2.0 * VOLUMES as f64;
    /// All volumes of a node every five seconds, which is how often an agent reports counters, and as much again.
    const A_SECOND: f64 = 2.0 * VOLUMES as f64 / 5.0;

    pub(super) fn new() -> Self {
        Self { left: Self::BURST, at: Instant::now() }
    }

    /// Takes one, and says how long to wait before the next is read.
    pub(super) fn take(&mut self) -> Duration {
        let now = Instant::now();
        let gained = now.duration_since(self.at).as_secs_f64() * Self::A_SECOND;
        (self.left, self.at) = ((self.left + gained).min(Self::BURST) - 1.0, now);
        Duration::from_secs_f64((-self.left / Self::A_SECOND).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_shown_and_not_done() {
        let mut state = proto::VolumeState {
            openers: vec!["pid 7 (\u{1b}[2J)".into(), "pid 8 (\u{202e}x)".into()],
            unready: Some(proto::Unready { clause: "a\nb".into(), message: "x".repeat(5000) }),
            ..Default::default()
        };
        super::state(&mut state).expect("within the limits");
        assert_eq!(state.openers, ["pid 7 (\\u{1b}[2J)", "pid 8 (\\u{202e}x)"]);
        let unready = state.unready.expect("there");
        assert_eq!(unready.clause, "a\\nb");
        assert!(unready.message.ends_with('…') && unready.message.len() < 1030);
    }

    #[test]
    fn lists_that_are_too_long_are_refused_or_cut_to_what_people_need() {
        let mut many = proto::VolumeState { openers: vec!["pid 1".into(); 100], ..Default::default() };
        state(&mut many).expect("cut");
        assert_eq!((many.openers.len(), many.openers[64].as_str()), (65, "and 36 more"));
        let mut paths = proto::VolumeState { paths: vec![proto::Path::default(); 65], ..Default::default() };
        let refused = state(&mut paths).expect_err("too many").to_string();
        assert!(refused.contains("paths") && refused.contains("65") && refused.contains("64"), "{refused}");
        let held = proto::VolumeState { phase: 3, ..Default::default() };
        let mut all = proto::Inventory { volumes: vec![held; 1025] };
        let refused = inventory(&mut all).expect_err("too many").to_string();
        assert!(refused.contains("1025") && refused.contains("1024"), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_tells_too_fast_is_read_more_slowly() {
        let mut pace = Pace::new();
        for _ in 0..2 * VOLUMES {
            assert_eq!(pace.take(), Duration::ZERO);
        }
        assert!(pace.take() > Duration::ZERO);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(pace.take(), Duration::ZERO);
    }
}
