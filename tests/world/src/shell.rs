//! The controllers' shell: carries the effects of a core's step out, as the engine is held to.
//!
//! In come events for a leader; out goes what its effects do to the world, when they may go out (`records`). What always
//! holds: effects go in their order; only the newest leader's records are stored, only its answers are heard and only
//! its requests reach the RDS.

use std::sync::Arc;

use cleat_core::{
    Attachment, Core, Directive, Drained, Effect, Event, MigrationStep, Notice, Refusal, Reply, RequestId,
    UnixMillis, VolumeRecord,
};

use crate::check::{Violation, kind};
use crate::export::VolumeDeletion;
use crate::host::Stream;
use crate::kinds::Lost;
use crate::names::{N, NODES, V, VOLUMES, node_of, volume_id, volume_of};
use crate::records::attachment_of;
use crate::world::{Ask, Asked, Leader, World};

impl World {
    /// A leader takes in an event, and its effects are carried out.
    pub(crate) fn event(&mut self, which: usize, event: Event) {
        let now = self.now_of(which);
        let words = self.told_in_words.is_some().then(|| format!("{event:?}"));
        let leader = Arc::make_mut(&mut self.leaders[which]);
        let effects = leader.core.step(now, event);
        let process = leader.process;
        if let (Some(told), Some(words)) = (&mut self.told_in_words, words) {
            told.push(format!("  leader {process} <- {words}"));
            let effects = effects.iter().filter(|e| !matches!(e, Effect::Notice(_)));
            told.extend(effects.map(|e| format!("  leader {process} -> {}", in_words(e))));
        }
        let core = &self.leaders[which].core;
        if which == 0 && core.nodes().values().any(|known| !known.ahead.is_empty()) {
            self.breaks(Violation::NewestIsBehind);
        }
        self.carry_out(process, effects);
    }

    fn carry_out(&mut self, process: u64, effects: Vec<Effect>) {
        for effect in effects {
            let Some(which) = self.leader_of(process) else {
                return;
            };
            if self.goes_out(which, &effect) && !self.carries_out(process, effect) {
                return;
            }
        }
    }

    /// Carries out one effect; `false` if its leader is no more.
    pub(crate) fn carries_out(&mut self, process: u64, effect: Effect) -> bool {
        let Some(which) = self.leader_of(process) else {
            return false;
        };
        if let Some(left) = &mut Arc::make_mut(&mut self.leaders[which]).dies_after {
            if *left == 0 {
                self.take_over(false, true, self.leaders[which].ahead, None);
                return false;
            }
            *left -= 1;
        }
        let has_claim = which == 0;
        match effect {
            // Outside of a cluster nothing is read of the store but volumes.
            Effect::PersistNode(_) | Effect::ForgetNode(_) if !self.setup.in_cluster() => {}
            Effect::Persist(_) | Effect::Forget(_) | Effect::PersistNode(_) | Effect::ForgetNode(_)
                if !has_claim =>
            {
                self.leaders.remove(which);
                self.drop_streams(|stream| stream.process == process);
                return false;
            }
            Effect::Persist(record) => self.persist(*record),
            Effect::Forget(volume) => {
                Arc::make_mut(&mut self.stored).remove(&volume);
            }
            Effect::Rds { operation, request } if has_claim => {
                self.check_request(&request);
                self.check_tickets_request(&request);
                let asked = Asked { operation, request, done: false };
                Arc::make_mut(&mut self.leaders[which]).asked.push(asked);
            }
            // They change nothing anywhere, and the agents of this world do not answer them.
            Effect::Direct { directive: Directive::Count { .. } | Directive::Verify { .. }, .. } => {}
            Effect::Direct { node, session, operation, directive } => {
                if has_claim {
                    self.check_directive(node_of(&node), &directive);
                    self.check_tickets_directive(node_of(&node), &directive);
                }
                let stream = self.host(node_of(&node)).stream.as_mut();
                if let Some(stream) = stream.filter(|s| s.id == session && s.process == process) {
                    stream.to_agent.push((operation, directive));
                }
            }
            Effect::Reply { request, result } if has_claim => self.answered(request, result),
            Effect::RefuseSession { session, .. } => {
                self.drop_streams(|s| s.id == session && s.process == process);
            }
            Effect::PersistNode(record) => drop(self.cluster().nodes.insert(record.node.clone(), *record)),
            Effect::ForgetNode(node) => drop(self.cluster().nodes.remove(&node)),
            Effect::Notice(notice) => self.noticed(&notice),
            Effect::Ticket { volume, ticket, standing } if has_claim => {
                self.ticket_stands(&ticket, volume_of(&volume), standing.as_deref());
            }
            Effect::Rds { .. } | Effect::Reply { .. } | Effect::Ticket { .. } => {}
        }
        true
    }

    fn drop_streams(&mut self, which: impl Fn(&Stream) -> bool) {
        for n in 0..NODES {
            if self.hosts[n].stream.as_ref().is_some_and(&which) {
                self.drop_stream(n);
            }
        }
    }

    /// What the newest core has decided to answer is looked at with what it could know then: what comes to be known while
    /// the answer waits for a record is as late as if the answer were on its way.
    pub(crate) fn check_answer(&mut self, request: RequestId, result: &Result<Reply, Refusal>) {
        let Some((v, about, _)) = self.open.get(&request).copied() else {
            return self.breaks(Violation::AnsweredTwice);
        };
        self.check_reason(result);
        match result {
            Ok(Reply::Unpublished | Reply::Fenced) => {
                let nodes = about.map_or(0..NODES, |n| n..n + 1);
                let can = |n: &N| self.can_write(v, *n) && self.told.unheard_stray[v][*n].is_none();
                if let Some(n) = nodes.into_iter().find(can) {
                    self.breaks(Violation::UnpublishedCanWrite { v, n });
                }
            }
            Ok(Reply::Published(grant)) => {
                let n = about.expect("a Publish names its node");
                // Of a boot that has been followed by another one *that it has heard of*, nothing counts any more.
                let host = &self.hosts[n];
                let heard = host.stream.as_ref().is_some_and(|s| s.process == self.leaders[0].process);
                let counts = |(epoch, boot)| epoch == grant.epoch && (boot == host.boot || !heard);
                // What was connected by hand under a grant that goes on is watched, and found ready, like any other.
                if !host.proven[v].is_some_and(counts) && !self.told.by_hand[v][n] {
                    self.breaks(Violation::PublishedWithoutProof { v, n });
                }
            }
            Ok(Reply::Declared | Reply::MayDelete) | Err(_) => {}
        }
    }

    fn answered(&mut self, request: RequestId, result: Result<Reply, Refusal>) {
        let Some((v, about, ask)) = Arc::make_mut(&mut self.open).remove(&request) else {
            return self.breaks(Violation::AnsweredTwice);
        };
        self.saw(kind(&result));
        match result {
            Ok(Reply::Unpublished | Reply::Fenced) => {
                for n in about.map_or(0..NODES, |n| n..n + 1) {
                    self.released(v, n, request);
                    if ask == Ask::Unpublish {
                        self.is_off(v, n);
                    }
                }
            }
            Ok(Reply::Published(grant)) => {
                let n = about.expect("a Publish names its node");
                self.is_handed_out(v, n, grant.epoch);
                self.is_attached(v, n, grant.epoch);
                if let Some(held) = &mut self.host(n).held[v] {
                    held.used = true;
                }
            }
            Ok(Reply::Declared) => {
                let n = about.expect("a declaration names its node");
                self.told().gone[n] = true;
            }
            Ok(Reply::MayDelete) => self.export(v).deletion = Some(VolumeDeletion::Asked),
            Err(_) => {}
        }
    }

    /// Counts proofs, so that a rung that is never climbed does not go unnoticed.
    fn noticed(&mut self, notice: &Notice) {
        match notice {
            Notice::Fence { rung, .. } => self.saw(rung_name(rung.name())),
            Notice::Readmitted { .. } => self.saw("readmitted"),
            Notice::Unsettled { volume } => panic!("volume {volume} does not settle"),
            Notice::Migration { migration, step: MigrationStep::TimedOut | MigrationStep::Done, .. } => {
                self.saw(migration.result.name());
            }
            _ => {}
        }
        if let Notice::Detached { evidence, .. } = notice {
            self.saw(evidence.source.name());
            self.saw(match evidence.drained {
                Drained::NeverHandedOut => "drained: never handed out",
                Drained::LiveDeletion => "drained: live deletion",
                Drained::Bound { .. } => "drained: bound",
                Drained::Barrier => "drained: barrier",
                Drained::Abort => "drained: abort",
            });
        }
    }

    /// A caller hears that a node cannot write. A later Publish may have been granted in the very same step.
    fn released(&mut self, v: V, n: N, request: RequestId) {
        // One that was connected by hand, and heard of while the answer waited for its record, is nobody's fault.
        let waited = self.setup.dangers.records_in_any_order && self.told.by_hand[v][n];
        let can_write = self.can_write(v, n);
        if can_write && self.told.unheard_stray[v][n].is_none() && !waited {
            self.breaks(Violation::UnpublishedCanWrite { v, n });
        }
        let by_hand = can_write && waited;
        let wanted_again = self.open.range(request..).any(|(_, asked)| *asked == (v, Some(n), Ask::Publish));
        let current = self.stored.get(&volume_id(v)).and_then(|r| attachment_of(r, n)).map(|a| a.epoch);
        let told = self.told();
        (told.handed_out[v][n], told.asked_off[v][n]) = (None, false);
        // Of what was connected by hand, and not heard of, nothing was promised.
        told.released[v][n] = current.is_none() && told.unheard_stray[v][n].is_none() && !by_hand;
        let over = told.granted[v][n].iter().rev().find(|e| !wanted_again || Some(**e) != current).copied();
        told.over[v][n] = told.over[v][n].max(over);
    }

    /// Another leader begins from what is stored: because the one before has died, or (`old_lives`) without its
    /// knowledge. What the one before had asked of the RDS was carried out (`rds_done`), or never will be.
    /// Its clock is so many ms ahead. Records are `lost` before it reads them.
    pub(crate) fn take_over(&mut self, old_lives: bool, rds_done: bool, ahead: i64, lost: Option<Lost>) {
        self.leaders.truncate(1);
        let mut old = self.leaders.remove(0);
        Arc::make_mut(&mut self.open).clear();
        let pending = std::mem::take(&mut Arc::make_mut(&mut old).asked);
        let (mut kept, mut late) = (Vec::new(), [false; VOLUMES]);
        for asked in pending {
            if rds_done && !asked.done {
                self.rds_does(&asked.request, false);
                kept.push(Asked { done: true, ..asked });
            } else if !asked.done && !late[crate::act::lane(&asked.request)] {
                // One at a time: those behind it were not sent.
                late[crate::act::lane(&asked.request)] = true;
                self.may_land_late(&asked.request);
            }
        }
        // The store keeps the term by itself: also where the clock was set back and no record tells of it any more.
        let term = old.core.term() + 1;
        let process = old.process + 1;
        self.drop_streams(|s| !old_lives || s.process + 1 != process);
        // What the one before had asked to be deleted may be gone at any time now.
        for v in 0..self.setup.access.len() {
            if self.exports[v].deletion == Some(VolumeDeletion::Asked) {
                self.export(v).deletion = Some(VolumeDeletion::Late);
            }
        }
        if let Some(lost) = lost {
            self.loses(lost);
        }
        let remembered = self.remembered(|v, n| old_lives && old.has(v, n));
        let at = UnixMillis(self.now.saturating_add_signed(ahead));
        let (core, effects) = Core::rebuild(self.setup.config(), term, remembered, at);
        self.check_rebuilt(&core, at);
        self.leaders.push(Arc::new(Leader::new(process, core, ahead)));
        if old_lives {
            Arc::make_mut(&mut old).asked = kept;
            Arc::make_mut(&mut old).dies_after = None;
            // Nobody hears its answers.
            Arc::make_mut(&mut old).outbox.retain(|effect| !matches!(effect, Effect::Reply { .. }));
            self.leaders.push(old);
        }
        self.carry_out(process, effects);
        self.begins_with_unclear();
    }
}

fn rung_name(name: &str) -> &'static str {
    match name {
        "reservation" => "rung: reservation",
        "acl" => "rung: acl",
        "secret" => "rung: secret",
        "export-off" => "rung: export-off",
        "node-gone" => "rung: node-gone",
        _ => "rung: barrier",
    }
}

fn in_words(effect: &Effect) -> String {
    let Effect::Persist(record) = effect else {
        return format!("{effect:?}");
    };
    let attachment = |a: &Attachment| format!("{} {} {:?}", a.node, a.epoch, a.phase);
    let attachments: Vec<String> = record.attachments.iter().map(attachment).collect();
    let fenced: Vec<String> = record.fenced.iter().map(|f| format!("{} {}", f.node, f.epoch)).collect();
    let VolumeRecord { hidden, secret, .. } = &**record;
    format!("persist {}: {attachments:?} fenced {fenced:?} hidden {hidden} {secret:?}", record.spec.id)
}

/// A record as a restart reads it: through its stored form.
pub(crate) fn reread(record: &VolumeRecord) -> VolumeRecord {
    let json = serde_json::to_string(record).expect("a record is JSON");
    serde_json::from_str(&json).expect("and reads back")
}
