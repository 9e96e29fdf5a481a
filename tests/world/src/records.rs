//! Records: when each becomes durable, and what waits until then.
//!
//! In come a leader's effects as its core decides on them; out they go to be carried out. In most worlds a record is
//! durable at once. Where records become durable in any order, what always holds is what a store has to keep
//! ([`Effect`]): what is about a volume goes out in its order, after every earlier record of that volume, and
//! waits for no other; the answer to a person's word about a node is about no single volume, and waits for all earlier
//! records. Whoever dies, or finds that another one has written, does not make good what was not durable.

use std::collections::BTreeSet;
use std::sync::Arc;

use cleat_core::{Attachment, Effect, Phase, RequestId, VolumeRecord};

use crate::names::{N, V, node_of, volume_of};
use crate::world::{Ask, Leader, World};

/// What an effect waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaitsFor {
    Nothing,
    /// The earlier records of a volume.
    Volume(V),
    /// All earlier records.
    All,
}

fn is_record(effect: &Effect) -> bool {
    matches!(effect, Effect::Persist(_) | Effect::Forget(_))
}

/// What a record says of a node, under whatever name it knows its host by.
pub(crate) fn attachment_of(record: &VolumeRecord, n: N) -> Option<&Attachment> {
    record.attachments.iter().find(|a| node_of(&a.node) == n)
}

impl World {
    /// A core has decided on an effect. Whether it can be carried out now; else it waits.
    pub(crate) fn goes_out(&mut self, which: usize, effect: &Effect) -> bool {
        match effect {
            Effect::Persist(record) => self.decided(which, record),
            Effect::Reply { request, result } if which == 0 => self.check_answer(*request, result),
            _ => {}
        }
        if !self.setup.dangers.records_in_any_order {
            return true;
        }
        let outbox = &self.leaders[which].outbox;
        let waits = match self.waits_for(effect) {
            WaitsFor::Nothing => false,
            WaitsFor::Volume(v) => {
                is_record(effect) || outbox.iter().any(|e| self.waits_for(e) == WaitsFor::Volume(v))
            }
            WaitsFor::All => !outbox.is_empty(),
        };
        if waits {
            Arc::make_mut(&mut self.leaders[which]).outbox.push(effect.clone());
        }
        !waits
    }

    fn waits_for(&self, effect: &Effect) -> WaitsFor {
        match effect {
            Effect::Persist(record) => WaitsFor::Volume(volume_of(&record.spec.id)),
            Effect::Forget(volume) => WaitsFor::Volume(volume_of(volume)),
            Effect::Rds { request, .. } => WaitsFor::Volume(crate::act::lane(request)),
            Effect::Direct { directive, .. } => WaitsFor::Volume(volume_of(directive.volume())),
            Effect::Reply { request, .. } => match self.open.get(request) {
                Some((_, _, Ask::Gone)) => WaitsFor::All,
                Some((v, ..)) => WaitsFor::Volume(*v),
                None => WaitsFor::Nothing,
            },
            Effect::Ticket { volume, .. } => WaitsFor::Volume(volume_of(volume)),
            Effect::RefuseSession { .. }
            | Effect::Notice(_)
            | Effect::PersistNode(_)
            | Effect::ForgetNode(_) => WaitsFor::Nothing,
        }
    }

    /// A leader has a record of a volume that is not durable yet.
    pub(crate) fn waits_for_its_record(&self, which: usize, v: V) -> bool {
        let outbox = self.leaders.get(which).map_or(&[][..], |leader| &leader.outbox);
        outbox.iter().any(|effect| self.waits_for(effect) == WaitsFor::Volume(v))
    }

    /// The next record of a volume becomes durable, or is refused because another one has written; then what waited for
    /// it alone goes out.
    pub(crate) fn becomes_durable(&mut self, which: usize, v: V) {
        let Some(process) = self.leaders.get(which).map(|leader| leader.process) else {
            return;
        };
        let mut its_record = false;
        while let Some(which) = self.leader_of(process) {
            let outbox = &self.leaders[which].outbox;
            let of_it = outbox.iter().position(|effect| self.waits_for(effect) == WaitsFor::Volume(v));
            let of_it = of_it.filter(|at| !its_record || !is_record(&outbox[*at]));
            // What waits for all has waited long enough when it is the oldest.
            let of_all = outbox.first().is_some_and(|effect| self.waits_for(effect) == WaitsFor::All);
            let Some(at) = of_it.or(of_all.then_some(0)) else {
                return;
            };
            let effect = Arc::make_mut(&mut self.leaders[which]).outbox.remove(at);
            its_record |= is_record(&effect);
            if !self.carries_out(process, effect) {
                return;
            }
        }
    }

    /// Requests whose answer waits for a record alone.
    pub(crate) fn decided_requests(&self) -> BTreeSet<RequestId> {
        let answers = |leader: &Arc<Leader>| -> Vec<RequestId> {
            let request = |effect: &Effect| match effect {
                Effect::Reply { request, .. } => Some(*request),
                _ => None,
            };
            leader.outbox.iter().filter_map(request).collect()
        };
        self.leaders.first().map(answers).unwrap_or_default().into_iter().collect()
    }

    /// What a core has decided on is looked at with what it could know then.
    fn decided(&mut self, which: usize, record: &VolumeRecord) {
        let v = volume_of(&record.spec.id);
        for attachment in &record.attachments {
            if self.epochs.contains_key(&attachment.epoch) {
                continue;
            }
            Arc::make_mut(&mut self.epochs).insert(attachment.epoch, v);
            if which == 0 && attachment.phase == Phase::Granting {
                self.check_grant(v, node_of(&attachment.node));
                self.check_ticket_grant(v, node_of(&attachment.node));
            }
        }
        // A secret's generation is an epoch, too.
        for generation in record.secret.iter().map(|s| s.generation) {
            if !self.epochs.contains_key(&generation) {
                Arc::make_mut(&mut self.epochs).insert(generation, v);
            }
        }
    }

    /// A record is durable.
    pub(crate) fn persist(&mut self, record: VolumeRecord) {
        let v = volume_of(&record.spec.id);
        for attachment in &record.attachments {
            let (n, epoch) = (node_of(&attachment.node), attachment.epoch);
            if self.cluster.lost[v][n] {
                self.cluster().lost[v][n] = false;
            }
            if !Arc::make_mut(&mut self.durable).insert(epoch) {
                continue;
            }
            let told = self.told();
            let granted = &mut told.granted[v][n];
            granted.push(epoch);
            let older = granted.len().saturating_sub(2);
            granted.drain(..older);
            match attachment.phase {
                Phase::Granting => (told.released[v][n], told.specified[v]) = (false, true),
                Phase::Stray => told.released[v][n] = false,
                Phase::Connecting | Phase::Ready | Phase::Draining { .. } => {}
            }
        }
        Arc::make_mut(&mut self.stored).insert(record.spec.id.clone(), record);
    }
}
