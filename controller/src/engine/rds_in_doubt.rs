//! Volumes of which the RDS may still be carrying out something that it was asked and has not answered.
//!
//! In come requests as they begin and as they are answered; out go marks in the store, and for a process that begins,
//! what its proofs have to wait for. A request whose answer was lost may take effect late, as long as the RDS goes on
//! with a request (`settle`). Within a process the RDS's client remembers those. But a process that dies leaves
//! requests on their way, and to one of them what its successor reads back can say nothing: a list that lets a host in
//! lands after it was read without that host. So a mark is made durable *with* the step that asks, before it asks; it
//! is taken away some time after the answer; and where one is found at the start, nothing that was asked before can
//! land once `settle` has passed: until then what is read back is not taken for proof.
//!
//! What holds: no request is on its way for a volume without a mark in the store.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cleat_core::{RdsFailure, RdsRequest, VolumeId};
use tokio::time::Instant;

/// The marks, and what is behind each. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct RdsInDoubt {
    marked: Arc<Mutex<Marked>>,
    /// No request of the process before takes effect after this.
    began_settled: Instant,
    /// How long the mark stays after an answer that leaves open what was done.
    lingers: Duration,
}

#[derive(Debug, Default)]
struct Marked {
    volumes: HashMap<VolumeId, Mark>,
    /// Marked at some time since [`RdsInDoubt::look`] began.
    since_look: HashSet<VolumeId>,
}

/// Why a volume is marked.
#[derive(Debug, Default)]
struct Mark {
    /// An earlier process has left it.
    inherited: bool,
    /// Requests without an answer.
    under_way: usize,
    /// What was done is not known, and may come late.
    lingers_until: Option<Instant>,
}

impl RdsInDoubt {
    /// `settle`: how long the RDS may go on with a request; `deadline`: how long this process may.
    pub(super) fn new(
        inherited: impl IntoIterator<Item = VolumeId>,
        settle: Duration,
        deadline: Duration,
    ) -> Self {
        let marks = inherited.into_iter().map(|volume| (volume, Mark { inherited: true, ..Mark::default() }));
        Self {
            marked: Arc::new(Mutex::new(Marked { volumes: marks.collect(), ..Marked::default() })),
            began_settled: Instant::now() + settle,
            lingers: settle + deadline,
        }
    }

    /// Something is to be asked about a volume, and counts as under way from here on. Whether its mark has to be made
    /// durable before.
    pub(super) fn asking(&self, volume: &VolumeId) -> bool {
        let mut marked = self.lock();
        let unmarked = !marked.volumes.contains_key(volume);
        marked.since_look.insert(volume.clone());
        marked.volumes.entry(volume.clone()).or_default().under_way += 1;
        unmarked
    }

    /// Somebody begins to read what the RDS has. One at a time.
    pub(super) fn look(&self) {
        let mut marked = self.lock();
        marked.since_look = marked.volumes.keys().cloned().collect();
    }

    /// Whether a volume had no mark all the time since then. To be asked right before what was read is handed on.
    pub(super) fn is_at_rest(&self, volume: &VolumeId) -> bool {
        !self.lock().since_look.contains(volume)
    }

    /// One of them was answered; `certain`: it is known what was done.
    pub(super) fn answered(&self, volume: &VolumeId, certain: bool) {
        let lingers_until = Instant::now() + self.lingers;
        if let Some(mark) = self.lock().volumes.get_mut(volume) {
            mark.under_way = mark.under_way.saturating_sub(1);
            if !certain {
                mark.lingers_until = Some(lingers_until);
            }
        }
    }

    /// Volumes whose mark nothing is behind any more. They count as unmarked from here on.
    pub(super) fn settled(&self) -> Vec<VolumeId> {
        let now = Instant::now();
        let mut settled = Vec::new();
        self.lock().volumes.retain(|volume, mark| {
            let still = mark.under_way > 0
                || mark.lingers_until.is_some_and(|until| now < until)
                || (mark.inherited && now < self.began_settled);
            if !still {
                settled.push(volume.clone());
            }
            still
        });
        settled
    }

    /// What the RDS has said to this request, as far as it is proof already.
    pub(super) fn proven(
        &self,
        request: &RdsRequest,
        result: Result<(), RdsFailure>,
    ) -> Result<(), RdsFailure> {
        // Who was let in and is kept out again fails to connect, and says so. Everything else is relied on unseen.
        if matches!(request, RdsRequest::Allow { .. }) || result.is_err() {
            return result;
        }
        let left = self.began_settled.saturating_duration_since(Instant::now());
        let inherited = self.lock().volumes.get(request.volume()).is_some_and(|mark| mark.inherited);
        if !inherited || left.is_zero() {
            return result;
        }
        Err(RdsFailure::Unreachable(format!(
            "change confirmed, but a request of the previous controller may still take effect; ask again in {} s",
            left.as_secs() + 1
        )))
    }

    fn lock(&self) -> MutexGuard<'_, Marked> {
        // Each change under this lock is whole by itself.
        self.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use cleat_core::HostNqn;

    use super::*;

    const SETTLE: Duration = Duration::from_secs(60);
    const DEADLINE: Duration = Duration::from_secs(20);

    fn v(name: &str) -> VolumeId {
        VolumeId::new(name).unwrap()
    }

    fn hide(volume: &str) -> RdsRequest {
        RdsRequest::Hide { volume: v(volume) }
    }

    fn asking(all: &RdsInDoubt, volumes: &[&str]) -> Vec<VolumeId> {
        volumes.iter().map(|volume| v(volume)).filter(|volume| all.asking(volume)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_is_at_rest_that_had_no_mark_all_the_time() {
        let all = RdsInDoubt::new([v("inherited")], SETTLE, DEADLINE);
        asking(&all, &["before"]);
        all.look();
        all.answered(&v("before"), true);
        asking(&all, &["meanwhile"]);
        all.answered(&v("meanwhile"), true);
        let _ = all.settled();
        for (volume, rests) in
            [("inherited", false), ("before", false), ("meanwhile", false), ("other", true)]
        {
            assert_eq!(all.is_at_rest(&v(volume)), rests, "{volume}");
        }
        asking(&all, &["other"]);
        assert!(
            !all.is_at_rest(&v("other")),
            "what is asked while parts are handed on counts for those to come"
        );
        all.look();
        assert!(all.is_at_rest(&v("meanwhile")), "its answer was certain, and its mark is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_mark_precedes_the_request_and_goes_after_the_last_sure_answer() {
        let all = RdsInDoubt::new([], SETTLE, DEADLINE);
        assert_eq!(asking(&all, &["a", "b", "a"]), [v("a"), v("b")]);
        all.answered(&v("a"), true);
        all.answered(&v("b"), true);
        assert_eq!(all.settled(), [v("b")], "one more about a is under way");
        assert_eq!(asking(&all, &["a"]), [], "it is marked");
        all.answered(&v("a"), true);
        all.answered(&v("a"), true);
        assert_eq!(all.settled(), [v("a")]);
        assert_eq!(asking(&all, &["a"]), [v("a")]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unclear_answer_keeps_the_mark_while_something_may_come_of_it() {
        let all = RdsInDoubt::new([], SETTLE, DEADLINE);
        asking(&all, &["a", "a"]);
        all.answered(&v("a"), false);
        all.answered(&v("a"), true);
        assert_eq!(all.settled(), []);
        tokio::time::advance(SETTLE + DEADLINE).await;
        assert_eq!(all.settled(), [v("a")]);
    }

    #[tokio::test(start_paused = true)]
    async fn where_a_mark_was_found_nothing_is_proven_before_it_has_settled() {
        let all = RdsInDoubt::new([v("a")], SETTLE, DEADLINE);
        let refused = all.proven(&hide("a"), Ok(())).unwrap_err().to_string();
        assert!(
            refused.contains("request of the previous controller") && refused.contains("ask again in 61 s"),
            "{refused}"
        );
        assert_eq!(all.proven(&hide("b"), Ok(())), Ok(()), "of this one nothing was on its way");
        let gone = || Err(RdsFailure::NotFound("no such volume".into()));
        assert_eq!(all.proven(&hide("a"), gone()), gone());
        let host_nqn = HostNqn::new("nqn.2026-01.test:a").unwrap();
        assert_eq!(all.proven(&RdsRequest::Allow { volume: v("a"), host_nqn }, Ok(())), Ok(()));
        assert_eq!(all.settled(), []);
        tokio::time::advance(SETTLE).await;
        assert_eq!(all.proven(&hide("a"), Ok(())), Ok(()));
        assert_eq!(all.settled(), [v("a")]);
    }
}
