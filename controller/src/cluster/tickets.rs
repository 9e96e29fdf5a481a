//! Tickets of the cluster, handed to the core; and how each stands, written to its object.
//!
//! In come the objects of the watch; out go `TicketWanted`, `TicketRenewed` and `TicketGone`, and the
//! status of each object. What holds:
//! - the object is the truth: what the core or a record has of a ticket that is not there any more is withdrawn, also what a
//!   leader before was given;
//! - which volume a ticket is about is asked of the API server itself, and again from time to time;
//! - what could not be seen takes nothing away: no ticket is withdrawn for an answer that did not come, and none is lost
//!   before the API server itself has said, shortly before, that it was not renewed;
//! - a status that cannot be written costs nothing but that people see it later.
//!
//! | file | owns |
//! | --- | --- |
//! | `book` | what is known of each ticket, and what the core was given of it |
//! | `answer` | how a ticket stands, as its object says it |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cleat_core::{Access, Core, TicketId, UnixMillis, VolumeId};
use cleat_kubernetes::api::{ApiError, ApiServer};
use cleat_kubernetes::attachments::Attachments;
use cleat_kubernetes::tickets::{ClusterTickets, TicketSeen, TicketStatus, VolumeWanted};
use cleat_kubernetes::watch::Presence;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::agents::Reports;
use crate::csi::{NoSpec, TicketVolumes};
use crate::engine::{Engine, EngineEnded, TicketName};
use crate::leadership::Leadership;
use answer::{Naming, answer};
use book::{Book, Subject};

mod answer;
mod book;

/// Between two looks at how tickets stand.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What changes within this time is looked at once.
const TOGETHER: Duration = Duration::from_millis(200);
/// Between two comparisons of all of it with what the core has.
const ALL_AGAIN: Duration = Duration::from_secs(10);
/// A kind that is not there for so long has no objects: an API server that has just begun may know a kind a moment later.
const ABSENT_FOR: Duration = Duration::from_secs(60);
/// So many volumes are looked up, and so many objects answered, in one look.
const AT_ONCE: usize = 32;
/// No further volume is looked up after this time of one look.
const LOOK_UP_FOR_MS: u64 = 2_000;
/// An object that was answered is not answered again before the watch has brought that, or so much later.
const ANSWER_AGAIN_MS: u64 = 5_000;

/// What tickets are handed over with.
pub(crate) struct TicketSync {
    /// Who is asked for claims.
    pub(crate) attachments: Arc<Attachments>,
    /// The core.
    pub(crate) engine: Engine,
    /// What volumes are.
    pub(crate) volumes: TicketVolumes,
    /// Where devices are.
    pub(crate) reports: Reports,
    /// Whether this process is the one that may answer.
    pub(crate) leadership: Leadership,
}

/// Hands over until it is stopped.
pub(crate) async fn follow(server: ApiServer, sync: TicketSync, stop: CancellationToken) {
    let timeout = server.timeout();
    let tickets = ClusterTickets::watch(server);
    tokio::select! {
        // The engine has ended.
        _ = sync.hand_over(&tickets, timeout) => {}
        () = stop.cancelled() => {}
    }
}

/// Objects that were answered, as they were seen then, and when.
type Answered = BTreeMap<TicketId, (Arc<TicketSeen>, UnixMillis)>;

impl TicketSync {
    async fn hand_over(&self, tickets: &ClusterTickets, timeout: Duration) -> Result<(), EngineEnded> {
        let mut changes = tickets.changes();
        let (mut every, mut all_again) =
            (tokio::time::interval(LOOK_EVERY), tokio::time::interval(ALL_AGAIN));
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        all_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut book, mut answered, mut absent) = (Book::default(), Answered::new(), Absent::default());
        loop {
            let compare = tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    tokio::time::sleep(TOGETHER).await;
                    false
                }
                _ = every.tick() => false,
                _ = all_again.tick() => true,
            };
            changes.borrow_and_update();
            let now = self.engine.now();
            // Before all of it was listed nothing is known, and nothing is withdrawn.
            let Some(all) = tickets.all() else { continue };
            if absent.is_in_doubt(tickets.presence(), now) {
                for event in book.excused(now) {
                    self.engine.submit(event).await?;
                }
                continue;
            }
            book.see(&all, now);
            self.engine.tickets().name(all.iter().map(|seen| (seen.uid.clone(), name(seen))).collect());
            // Renewals first: a volume may take long to be looked up.
            self.look_for_renewals(tickets, &mut book, &all).await;
            for event in book.events(now) {
                self.engine.submit(event).await?;
            }
            self.look_up(tickets, &mut book, &all).await;
            for event in book.events(self.engine.now()) {
                self.engine.submit(event).await?;
            }
            if compare {
                let kept = self.engine.view(|core, _| kept(core)).await?;
                for event in book.differences(&kept) {
                    self.engine.submit(event).await?;
                }
            }
            self.answer(tickets, &book, &all, (&mut answered, timeout)).await;
        }
    }

    /// Which volume tickets are about: of those where that is not known, or was asked for long ago.
    async fn look_up(&self, tickets: &ClusterTickets, book: &mut Book, all: &[Arc<TicketSeen>]) {
        let began = self.engine.now();
        for seen in book.due(all, began).into_iter().take(AT_ONCE) {
            if self.engine.now().since(began) >= LOOK_UP_FOR_MS {
                break;
            }
            let Ok(ticket) = &seen.read else { continue };
            let subject = match tickets.volume_of(ticket, &self.attachments).await {
                Ok(Ok(wanted)) => self.subject(wanted).await,
                Ok(Err(none)) => Subject::None { reason: none.reason(), why: none.to_string() },
                Err(error) => Subject::Unknown { why: error.to_string() },
            };
            let unanswered = matches!(subject, Subject::Unknown { .. });
            book.looked_up(&seen.uid, subject, self.engine.now());
            // It is the same for the others, each for as long as a call may take.
            if unanswered {
                break;
            }
        }
    }

    async fn subject(&self, wanted: VolumeWanted) -> Subject {
        let Ok(volume) = VolumeId::new(&wanted.handle) else {
            let why = format!("volume {:?}: Cleat gives no volume such a name", wanted.handle);
            return Subject::None { reason: "Unusable", why };
        };
        let access = if wanted.shared_block { Access::RwxBlock } else { Access::Rwo };
        match self.volumes.spec_of_claim(&volume, access, &wanted.attributes).await {
            Ok(spec) => Subject::Volume(Box::new(spec)),
            Err(NoSpec::Unusable(why)) => Subject::None { reason: "NoVolume", why },
            Err(NoSpec::Unknown(why)) => Subject::Unknown { why },
        }
    }

    /// Asks the API server itself for the tickets that are about to be lost.
    async fn look_for_renewals(&self, tickets: &ClusterTickets, book: &mut Book, all: &[Arc<TicketSeen>]) {
        let mut answers = true;
        for seen in book.about_to_be_lost(all, self.engine.now()).into_iter().take(AT_ONCE) {
            let now = if answers { tickets.now(&seen).await.ok() } else { None };
            answers = now.is_some();
            book.looked_at(&seen, now.as_ref().map(Option::as_ref), self.engine.now());
        }
    }

    /// Writes how tickets stand, where their objects say otherwise.
    async fn answer(
        &self,
        tickets: &ClusterTickets,
        book: &Book,
        all: &[Arc<TicketSeen>],
        (answered, timeout): (&mut Answered, Duration),
    ) {
        let board = self.engine.tickets().all();
        let names: Naming = all.iter().map(|seen| (seen.uid.clone(), seen)).collect();
        answered.retain(|id, _| names.contains_key(id));
        let mut written = 0;
        for seen in all {
            let now = self.engine.now();
            let tried = answered.get(&seen.uid);
            if tried.is_some_and(|(then, at)| then == seen && now.since(*at) < ANSWER_AGAIN_MS) {
                continue;
            }
            let Some(status) = answer(seen, book, &board, &names, &self.reports, now) else { continue };
            if seen.status.as_ref() == Some(&status) {
                continue;
            }
            if written == AT_ONCE || !self.leadership.outlives(timeout) {
                break;
            }
            written += 1;
            answered.insert(seen.uid.clone(), (Arc::clone(seen), now));
            if !write(tickets, seen, &status).await {
                break;
            }
        }
    }
}

/// Writes a status. `false`: it is the same for the others, each for as long as a call may take.
async fn write(tickets: &ClusterTickets, seen: &TicketSeen, status: &TicketStatus) -> bool {
    match tickets.answer(seen, status).await {
        // The watch brings what it is now.
        Ok(()) | Err(ApiError::Conflict | ApiError::NotFound) => true,
        Err(error) => {
            let TicketSeen { namespace, name, .. } = seen;
            tracing::debug!(
                namespace,
                name,
                "how a ticket stands is not written: {error}; trying again later"
            );
            !matches!(error, ApiError::Unanswered(_) | ApiError::Forbidden(_))
        }
    }
}

/// As people know it.
fn name(seen: &TicketSeen) -> TicketName {
    let claim = seen.read.as_ref().ok().and_then(|ticket| ticket.spec.claim.clone()).unwrap_or_default();
    TicketName { namespace: seen.namespace.clone(), name: seen.name.clone(), claim }
}

/// Since when the cluster is without the kind.
#[derive(Default)]
struct Absent(Option<UnixMillis>);

impl Absent {
    /// Whether that there are no tickets is not to be relied on.
    fn is_in_doubt(&mut self, presence: Presence, now: UnixMillis) -> bool {
        if presence != Presence::Absent {
            self.0 = None;
            return false;
        }
        let since = *self.0.get_or_insert(now);
        u128::from(now.since(since)) < ABSENT_FOR.as_millis()
    }
}

/// The tickets that the core knows, and those that attachments are there for.
fn kept(core: &Core) -> Kept {
    let known = core.tickets().map(|(volume, ticket, _)| (volume.clone(), ticket.id.clone())).collect();
    let attachments = core.volumes().values().flat_map(|record| {
        record.attachments.iter().map(move |attachment| (&record.spec.id, &attachment.wanted.tickets))
    });
    let attached = attachments
        .flat_map(|(volume, tickets)| tickets.iter().map(move |ticket| (volume.clone(), ticket.id.clone())))
        .collect();
    Kept { known, attached }
}

/// Tickets as the core has them.
#[derive(Debug, Default)]
struct Kept {
    /// What it was given in this process.
    known: BTreeSet<(VolumeId, TicketId)>,
    /// What attachments are there for, as records say.
    attached: BTreeSet<(VolumeId, TicketId)>,
}

#[cfg(test)]
#[path = "tickets_tests.rs"]
mod tests;
