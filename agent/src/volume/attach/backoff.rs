//! When a missing path may be connected again.
//!
//! Comes in: what each observation shows of a grant's portals, and attempts. Goes out: whether it is time for
//! an attempt.
//!
//! Always holds: each portal has a pause of its own. It grows with every attempt, up to a bound, so that a
//! target that refuses, or accepts a connection only to drop it, is not flooded. It starts short again once
//! the path has been live for a while, and not before: a successful connect alone shows little.

use std::collections::BTreeMap;
use std::time::Duration;

use cleat_host::Portal;
use tokio::time::Instant;

/// First and longest pause between two attempts for a portal.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// How long a path has to be live so that its next loss counts as a new one. A path that is lost sooner each
/// time is then connected at most once in twice that time, whatever happens to it.
const STANDS: Duration = Duration::from_secs(5);

/// What an observation shows of a portal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::volume) enum Sight {
    /// The portal has a live controller.
    Live,
    /// Its controller is being set up, or the kernel is getting its connection back.
    Pending,
    /// The portal has no controller, or only one that is being deleted.
    Missing,
}

/// When the next attempt for each portal may be made.
#[derive(Debug, Default, Clone)]
pub(in crate::volume) struct Backoff {
    portals: BTreeMap<Portal, Wait>,
}

#[derive(Debug, Clone, Copy)]
struct Wait {
    /// The earliest moment of the next attempt.
    at: Instant,
    /// The pause after the next attempt is twice as long.
    pause: Duration,
    /// Since when the path has been live again; `None` while it is not.
    live: Option<Instant>,
}

impl Wait {
    /// The first observation of a missing path only starts the pause: a path that has just gone may come back
    /// by itself.
    fn new(now: Instant) -> Self {
        Self { at: now + PAUSE.0, pause: PAUSE.0, live: None }
    }

    fn stood(&self, now: Instant) -> bool {
        self.live.is_some_and(|since| now.saturating_duration_since(since) >= STANDS)
    }
}

impl Backoff {
    /// Takes note of an observation: what it shows of every portal of the grant.
    pub(in crate::volume) fn observe(&mut self, now: Instant, seen: &BTreeMap<Portal, Sight>) {
        self.portals.retain(|portal, wait| {
            let live = seen.get(portal) == Some(&Sight::Live);
            seen.contains_key(portal) && !(live && wait.stood(now))
        });
        for (portal, sight) in seen {
            let Some(wait) = self.portals.get_mut(portal) else {
                if *sight == Sight::Missing {
                    self.portals.insert(*portal, Wait::new(now));
                }
                continue;
            };
            match sight {
                Sight::Live => wait.live = wait.live.or(Some(now)),
                Sight::Pending if wait.stood(now) => {}
                Sight::Pending => wait.live = None,
                Sight::Missing if wait.stood(now) => *wait = Wait::new(now),
                Sight::Missing if wait.live.is_some() => {
                    *wait = Wait { at: wait.at.max(now + PAUSE.0), live: None, ..*wait };
                }
                Sight::Missing => {}
            }
        }
    }

    /// Whether a missing path may be connected now. If so, the pause before the next attempt is longer.
    pub(in crate::volume) fn due(&mut self, now: Instant, portal: Portal) -> bool {
        let wait = self.portals.entry(portal).or_insert_with(|| Wait::new(now));
        if now < wait.at {
            return false;
        }
        wait.pause = (wait.pause * 2).min(PAUSE.1);
        wait.at = now + wait.pause;
        true
    }

    /// The pauses of these portals start again with the next observation that misses them.
    pub(in crate::volume) fn forget(&mut self, portals: &[Portal]) {
        self.portals.retain(|portal, _| !portals.contains(portal));
    }

    /// A portal whose time has come, for tests.
    #[cfg(test)]
    pub(in crate::volume) fn overdue(portals: impl IntoIterator<Item = Portal>) -> Self {
        let wait = Wait { at: Instant::now(), pause: PAUSE.0, live: None };
        Self { portals: portals.into_iter().map(|portal| (portal, wait)).collect() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::kernel::portal;

    /// Seconds at which attempts are made for the first portal, by an observation each second.
    async fn attempts(seconds: u64, mut look: impl FnMut(u64, &[u64]) -> Sight) -> Vec<u64> {
        let (mut backoff, mut made) = (Backoff::default(), Vec::new());
        for second in 0..seconds {
            let sight = look(second, &made);
            backoff.observe(Instant::now(), &BTreeMap::from([(portal(1), sight)]));
            if sight == Sight::Missing && backoff.due(Instant::now(), portal(1)) {
                made.push(second);
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        made
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_become_rarer_and_begin_late() {
        assert_eq!(attempts(300, |_, _| Sight::Missing).await, [5, 15, 35, 75, 135, 195, 255]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_path_that_stood_and_is_lost_again_is_tried_after_the_first_pause() {
        // Each attempt succeeds; the path is lost 6 s later, again and again.
        let made = attempts(60, |now, made| match made.last() {
            Some(last) if now - last <= 6 => Sight::Live,
            _ => Sight::Missing,
        });
        assert_eq!(made.await, [5, 17, 29, 41, 53]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_path_that_is_lost_at_once_is_tried_less_and_less_often() {
        for (sight, lives) in [(Sight::Live, 3), (Sight::Pending, 30)] {
            let made = attempts(400, |now, made| match made.last() {
                Some(last) if (1..=lives).contains(&(now - last)) => sight,
                _ => Sight::Missing,
            });
            let made = made.await;
            let pauses: Vec<u64> = made.windows(2).map(|two| two[1] - two[0]).collect();
            assert!(pauses.is_sorted() && pauses.last() == Some(&60), "{sight:?}: {pauses:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_portal_has_a_pause_of_its_own() {
        let mut backoff = Backoff::default();
        let (one, two) = (portal(1), portal(2));
        let look = |second| BTreeMap::from([(one, Sight::Missing), (two, second)]);
        for _ in 0..100 {
            backoff.observe(Instant::now(), &look(Sight::Live));
            backoff.due(Instant::now(), one);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        backoff.observe(Instant::now(), &look(Sight::Missing));
        tokio::time::advance(PAUSE.0).await;
        assert!(backoff.due(Instant::now(), two), "the first loss of it");
        assert!(!backoff.due(Instant::now(), one), "its last attempt was at 75 s");
        backoff.forget(&[one]);
        backoff.observe(Instant::now(), &look(Sight::Missing));
        tokio::time::advance(PAUSE.0).await;
        assert!(backoff.due(Instant::now(), one));
    }
}
