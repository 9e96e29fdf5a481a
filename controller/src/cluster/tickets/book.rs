//! What is known of each ticket of the cluster, and what the core was given of it.
//!
//! In come objects and what was found of each; out go the events by which the core has the same. Pure: whoever has it asks and
//! sends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cleat_core::{Event, TicketId, UnixMillis, VolumeId, VolumeSpec};
use cleat_kubernetes::tickets::{Renewals, TicketObject, TicketSeen};

use super::Kept;

/// Of one namespace no more are handed over, the oldest first: what a peer makes us hold is bounded.
pub(super) const TICKETS_PER_NAMESPACE: usize = 64;
/// A volume that was found is asked for again after this time, and one that was not after that.
const FOUND_FOR_MS: u64 = 60_000;
const NOT_FOUND_FOR_MS: u64 = 5_000;

/// Which volume a ticket is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subject {
    /// Nobody has asked yet.
    NotAsked,
    /// It could not be found out.
    Unknown {
        /// Why.
        why: String,
    },
    /// None.
    None {
        /// Why, in one word.
        reason: &'static str,
        /// Why.
        why: String,
    },
    /// This one.
    Volume(Box<VolumeSpec>),
}

/// What the core was given of a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Given {
    spec: VolumeSpec,
    generation: u64,
    renewed: UnixMillis,
}

struct Known {
    /// What it wishes; of what cannot be used, nothing.
    ticket: Option<TicketObject>,
    subject: Subject,
    /// When the subject was asked for, and of which generation.
    asked: Option<(UnixMillis, u64)>,
    renewed: UnixMillis,
    /// When the API server was asked whether it was renewed.
    looked: Option<UnixMillis>,
    given: Option<Given>,
    /// The core has not kept what it was given, but may have said how that stands: it is given once more, and taken back if its
    /// object goes first.
    again: bool,
}

/// All tickets.
#[derive(Default)]
pub(super) struct Book {
    renewals: Renewals,
    known: BTreeMap<TicketId, Known>,
    /// The core was given them, and they are not there any more.
    gone: Vec<(VolumeId, TicketId)>,
}

impl Book {
    /// Takes note of all that there are.
    pub(super) fn see(&mut self, all: &[Arc<TicketSeen>], now: UnixMillis) {
        let there: BTreeSet<&TicketId> = all.iter().map(|seen| &seen.uid).collect();
        let Self { known, gone, .. } = self;
        known.retain(|id, known| {
            let stays = there.contains(id);
            if let (false, Some(given)) = (stays, known.given.take_if(|_| !stays)) {
                gone.push((given.spec.id, id.clone()));
            }
            stays
        });
        self.renewals.keep(|id| there.contains(id));
        let too_many = too_many(all);
        for seen in all {
            let ticket = seen.read.as_ref().ok();
            let renewed = ticket.map_or(now, |ticket| self.renewals.see(ticket, now));
            let known = self.known.entry(seen.uid.clone()).or_insert_with(|| Known {
                ticket: None,
                subject: Subject::NotAsked,
                asked: None,
                renewed,
                looked: None,
                given: None,
                again: false,
            });
            (known.ticket, known.renewed) = (ticket.cloned(), renewed);
            if let Err(unusable) = &seen.read {
                known.subject = Subject::None { reason: "Unusable", why: unusable.to_string() };
            } else if too_many.contains(&seen.uid) {
                let why = format!(
                    "another ticket of namespace {} to go: it has more than {TICKETS_PER_NAMESPACE}",
                    seen.namespace
                );
                (known.subject, known.asked) = (Subject::None { reason: "TooManyTickets", why }, None);
            }
        }
    }

    /// The tickets whose volume is to be asked for, those first that were not asked for the longest.
    pub(super) fn due(&self, all: &[Arc<TicketSeen>], now: UnixMillis) -> Vec<Arc<TicketSeen>> {
        let too_many = too_many(all);
        let mut due: Vec<(UnixMillis, &Arc<TicketSeen>)> = Vec::new();
        for seen in all.iter().filter(|seen| seen.read.is_ok() && !too_many.contains(&seen.uid)) {
            let Some(known) = self.known.get(&seen.uid) else { continue };
            let kept_ms = match known.subject {
                Subject::Volume(_) => FOUND_FOR_MS,
                _ => NOT_FOUND_FOR_MS,
            };
            match known.asked {
                Some((at, generation)) if generation == seen.generation && now.since(at) < kept_ms => {}
                Some((at, generation)) if generation == seen.generation => due.push((at, seen)),
                _ => due.push((UnixMillis(0), seen)),
            }
        }
        due.sort_by_key(|(at, _)| *at);
        due.into_iter().map(|(_, seen)| Arc::clone(seen)).collect()
    }

    /// What was found of one. What could not be found out leaves it as it was, if it was known before.
    pub(super) fn looked_up(&mut self, id: &TicketId, subject: Subject, now: UnixMillis) {
        let Some(known) = self.known.get_mut(id) else { return };
        let generation = known.ticket.as_ref().map_or(0, |ticket| ticket.generation);
        let found_before = matches!(known.subject, Subject::Volume(_));
        if !(found_before && matches!(subject, Subject::Unknown { .. })) {
            known.subject = subject;
        }
        known.asked = Some((now, generation));
    }

    /// The tickets that the core has for lost soon, if nothing is heard of them.
    pub(super) fn about_to_be_lost(&self, all: &[Arc<TicketSeen>], now: UnixMillis) -> Vec<Arc<TicketSeen>> {
        let soon = |seen: &&Arc<TicketSeen>| {
            let Some(Known { ticket: Some(ticket), renewed, looked, given: Some(_), .. }) =
                self.known.get(&seen.uid)
            else {
                return false;
            };
            let (time, passed) = (renew_ms(ticket), now.since(*renewed));
            // Once it is lost, the watch brings a renewal soon enough.
            let asks = ticket.spec.kind.is_interruptible() && passed >= time / 3 * 2 && passed <= time * 2;
            asks && looked.is_none_or(|at| now.since(at) >= time / 10)
        };
        all.iter().filter(soon).cloned().collect()
    }

    /// How one of them is now, if it is there; `None`: that could not be seen, so it counts as renewed.
    pub(super) fn looked_at(&mut self, seen: &TicketSeen, is: Option<Option<&TicketSeen>>, now: UnixMillis) {
        let Some(known) = self.known.get_mut(&seen.uid) else { return };
        known.looked = Some(now);
        let Ok(ticket) = &seen.read else { return };
        known.renewed = match is {
            None => {
                self.renewals.excuse(ticket, now);
                now
            }
            // That it is gone the watch says.
            Some(there) => match there.and_then(|there| there.read.as_ref().ok()) {
                Some(there) => self.renewals.see(there, now),
                None => known.renewed,
            },
        };
    }

    /// Nothing can be seen of any: each that the core has counts as renewed.
    pub(super) fn excused(&mut self, now: UnixMillis) -> Vec<Event> {
        for known in self.known.values_mut() {
            let Some(ticket) = &known.ticket else { continue };
            if known.given.is_some() && now.since(known.renewed) >= renew_ms(ticket) / 3 {
                self.renewals.excuse(ticket, now);
                known.renewed = now;
            }
        }
        self.events(now)
    }

    /// By what the core comes to have the same.
    pub(super) fn events(&mut self, now: UnixMillis) -> Vec<Event> {
        let gone = std::mem::take(&mut self.gone).into_iter();
        let mut events: Vec<Event> =
            gone.map(|(volume, ticket)| Event::TicketGone { volume, ticket }).collect();
        for (id, known) in &mut self.known {
            let withdraw = |given: Given| Event::TicketGone { volume: given.spec.id, ticket: id.clone() };
            match (&known.subject, &known.ticket) {
                (Subject::None { .. }, _) => events.extend(known.given.take().map(withdraw)),
                (Subject::Volume(spec), Some(ticket)) => {
                    if known.given.as_ref().is_some_and(|given| given.spec.id != spec.id) {
                        events.extend(known.given.take().map(withdraw));
                    }
                    let wish = match ticket.wish(known.renewed, now) {
                        Ok(wish) => wish,
                        Err(error) => {
                            known.subject =
                                Subject::None { reason: "Unusable", why: format!("its node: {error}") };
                            events.extend(known.given.take().map(withdraw));
                            continue;
                        }
                    };
                    let given = Given {
                        spec: (**spec).clone(),
                        generation: ticket.generation,
                        renewed: known.renewed,
                    };
                    let same_wish =
                        |before: &Given| before.generation == given.generation && before.spec == given.spec;
                    match known.given.as_ref().filter(|_| !known.again) {
                        Some(before) if *before == given => continue,
                        Some(before) if same_wish(before) => events
                            .push(Event::TicketRenewed { volume: given.spec.id.clone(), ticket: id.clone() }),
                        _ => events
                            .push(Event::TicketWanted { spec: given.spec.clone(), ticket: Box::new(wish) }),
                    }
                    (known.given, known.again) = (Some(given), false);
                }
                // What could not be found out takes nothing away.
                (Subject::NotAsked | Subject::Unknown { .. } | Subject::Volume(_), _) => {}
            }
        }
        events
    }

    /// What the core has otherwise: after a start, or because it has not kept what it was given.
    pub(super) fn differences(&mut self, kept: &Kept) -> Vec<Event> {
        let mut events = Vec::new();
        for (volume, id) in kept.known.union(&kept.attached) {
            let ticket = id.clone();
            match self.known.get(id) {
                None => events.push(Event::TicketGone { volume: volume.clone(), ticket }),
                Some(known) => match (&known.given, &known.subject) {
                    (Some(given), _) if given.spec.id == *volume => {}
                    (Some(_), _) | (None, Subject::None { .. }) => {
                        events.push(Event::TicketGone { volume: volume.clone(), ticket });
                    }
                    // Its object is there: until its volume was asked for, it is not to be lost.
                    (None, _) => events.push(Event::TicketRenewed { volume: volume.clone(), ticket }),
                },
            }
        }
        for (id, known) in &mut self.known {
            let is_kept = |given: &Given| kept.known.contains(&(given.spec.id.clone(), id.clone()));
            if known.given.as_ref().is_some_and(|given| !is_kept(given)) {
                known.again = true;
            }
        }
        events
    }

    /// What one is about, and what of it the core has: the volume, and the generation.
    pub(super) fn about(&self, id: &TicketId) -> Option<(&Subject, Option<(&VolumeId, u64)>)> {
        let known = self.known.get(id)?;
        Some((&known.subject, known.given.as_ref().map(|given| (&given.spec.id, given.generation))))
    }
}

fn renew_ms(ticket: &TicketObject) -> u64 {
    u64::from(ticket.spec.renew_seconds.unwrap_or(cleat_kubernetes::tickets::RENEW_SECONDS)) * 1000
}

/// Those that their namespaces have too many of.
fn too_many(all: &[Arc<TicketSeen>]) -> BTreeSet<TicketId> {
    let mut of: BTreeMap<&str, Vec<(u64, &TicketId)>> = BTreeMap::new();
    for seen in all {
        if let Ok(ticket) = &seen.read {
            of.entry(&seen.namespace).or_default().push((ticket.created_ms, &seen.uid));
        }
    }
    let later = of.into_values().flat_map(|mut of| {
        of.sort();
        of.into_iter().skip(TICKETS_PER_NAMESPACE)
    });
    later.map(|(_, id)| id.clone()).collect()
}
