//! Whom a leader may cut: a node that was answered that it has a volume keeps it until somebody asks for the node to be
//! off, or its own ledger says that the grant is over. No timer and no report of anybody else ends that.
//!
//! In come a leader's directives and requests as they go out; out goes the first one that takes a volume from under a node
//! unasked. What counts as asking is what callers and persons of this world did ([`World::asks_off`]), never what the core
//! makes of it.

use cleat_core::{Attachment, Directive, Epoch, Phase, RdsRequest};

use crate::check::Violation;
use crate::names::{N, NODES, V, host_of, volume_id, volume_of};
use crate::records::attachment_of;
use crate::world::{Ask, World};

impl World {
    /// Somebody asks for a node (`None`: every node) to be off a volume.
    pub(crate) fn asks_off(&mut self, v: V, about: Option<N>) {
        for n in about.map_or(0..NODES, |n| n..n + 1) {
            if self.told.handed_out[v][n].is_some() && !self.told.asked_off[v][n] {
                self.told().asked_off[v][n] = true;
            }
        }
    }

    /// Somebody asks for a node to be off all that it has.
    pub(crate) fn asks_off_all(&mut self, n: N) {
        for v in 0..self.setup.access.len() {
            self.asks_off(v, Some(n));
            self.tickets_are_cut(v, n);
        }
    }

    /// A caller is answered that a node has a volume. What was asked before of it is over, unless it is open still.
    pub(crate) fn is_handed_out(&mut self, v: V, n: N, epoch: Epoch) {
        let about_it = |(of, about, ask): &(V, Option<N>, Ask)| match ask {
            Ask::Unpublish | Ask::Fence => *of == v && about.is_none_or(|about| about == n),
            Ask::Gone => *about == Some(n),
            Ask::Publish | Ask::Delete => false,
        };
        let asked = self.cluster.out_of_service[n] || self.open.values().any(about_it);
        let told = self.told();
        (told.handed_out[v][n], told.asked_off[v][n]) = (Some(epoch), asked);
    }

    fn on_record(&self, v: V, n: N) -> Option<&Attachment> {
        self.stored.get(&volume_id(v)).and_then(|record| attachment_of(record, n))
    }

    /// The grant that a node was answered, as long as it is the one on record.
    fn keeps(&self, v: V, n: N) -> Option<Epoch> {
        let on_record = self.on_record(v, n);
        self.told.handed_out[v][n].filter(|epoch| on_record.is_some_and(|a| a.epoch == *epoch))
    }

    /// It has a volume rightly, and nobody has asked for it to be off.
    fn is_to_keep(&self, v: V, n: N) -> bool {
        self.keeps(v, n).is_some_and(|epoch| {
            let ledger = &self.hosts[n].ledger[v];
            let over = ledger.epoch > Some(epoch) || (ledger.epoch == Some(epoch) && ledger.ended);
            !(over || self.told.asked_off[v][n] || self.told.by_hand[v][n])
        })
    }

    /// The export may go off because of it, and comes back for who goes on: it has the volume on record, and has been asked
    /// off, has it by hand, or its own ledger says that it is over. Who was never answered that it has the volume has to be on
    /// its way out: one that is just let in is no reason to take the volume from under another one.
    fn may_be_cut(&self, v: V, n: N) -> bool {
        let Some(held) = self.on_record(v, n) else { return false };
        let leaves = match self.keeps(v, n) {
            Some(_) => !self.is_to_keep(v, n),
            None => matches!(held.phase, Phase::Draining { .. }),
        };
        leaves || self.told.by_hand[v][n]
    }

    /// The newest leader directs an agent.
    pub(crate) fn check_directive(&mut self, n: N, directive: &Directive) {
        let (Directive::Detach { volume, epoch, .. } | Directive::Revoke { volume, epoch }) = directive
        else {
            return;
        };
        let v = volume_of(volume);
        if self.is_to_keep(v, n) && self.keeps(v, n) <= Some(*epoch) {
            self.breaks(Violation::CutUnasked { v, n });
        }
    }

    /// The newest leader asks the RDS.
    pub(crate) fn check_request(&mut self, request: &RdsRequest) {
        let cut = match request {
            RdsRequest::Deny { volume, host_nqn, .. } | RdsRequest::Close { volume, host_nqn } => {
                let (v, n) = (volume_of(volume), host_of(host_nqn));
                self.is_to_keep(v, n).then_some((v, n))
            }
            RdsRequest::Hide { volume } => {
                let v = volume_of(volume);
                // A fence of another one.
                let for_another = self.nodes().any(|m| self.may_be_cut(v, m));
                self.nodes().find(|n| !for_another && self.is_to_keep(v, *n)).map(|n| (v, n))
            }
            RdsRequest::Allow { .. } | RdsRequest::Show { .. } | RdsRequest::SetSecret { .. } => None,
        };
        if let Some((v, n)) = cut {
            self.breaks(Violation::CutUnasked { v, n });
        }
    }
}
