//! A node: its kernel's connections, its agent's ledger, and the agent's rules.

use std::collections::{BTreeMap, VecDeque};

use cleat_core::{
    Absence, Deleted, Directive, Epoch, Event, Grant, Identity, Observed, ObservedPhase, OperationId,
    Outcome, SessionId, VolumeId,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Ledger {
    pub(crate) epoch: Option<Epoch>,
    pub(crate) ended: bool,
    pub(crate) deleted: Vec<Deleted>,
    /// The target's generation at which this node registered under the epoch. One that is gone within the same
    /// generation was preempted, and is not asserted again.
    pub(crate) registered: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Connection {
    /// Its session at the target is up, as far as this kernel knows.
    pub(crate) live: bool,
    pub(crate) open: bool,
    /// Deleting it blocks.
    pub(crate) wedged: bool,
    pub(crate) secret: Option<Epoch>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Stream {
    pub(crate) id: SessionId,
    pub(crate) to_agent: VecDeque<(OperationId, Directive)>,
    pub(crate) to_controller: VecDeque<Event>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Host {
    pub(crate) boot: u32,
    pub(crate) off: bool,
    pub(crate) cut: bool,
    pub(crate) mute: bool,
    pub(crate) kernel: BTreeMap<VolumeId, Connection>,
    pub(crate) ledger: BTreeMap<VolumeId, Ledger>,
    pub(crate) stream: Option<Stream>,
    /// The last two directives, for those that come twice.
    pub(crate) heard: VecDeque<(OperationId, Directive)>,
    /// What a controller that died had sent.
    pub(crate) late: VecDeque<(OperationId, Directive)>,
    pub(crate) answered: Option<(OperationId, VolumeId, Epoch, Outcome)>,
    /// Deletions that block.
    pub(crate) stuck: Vec<(OperationId, Directive)>,
}

impl Host {
    pub(crate) fn observe(&self, volume: &VolumeId) -> Observed {
        let ledger = self.ledger.get(volume);
        let phase = match self.kernel.get(volume) {
            None => ObservedPhase::Absent,
            Some(c) if c.live => ObservedPhase::Ready,
            Some(_) => ObservedPhase::Lost,
        };
        Observed {
            volume: volume.clone(),
            epoch: ledger.and_then(|l| l.epoch),
            ended: ledger.is_some_and(|l| l.ended),
            phase,
            live_paths: u32::from(phase == ObservedPhase::Ready),
            unready: String::new(),
        }
    }

    /// Attach, by the rules that agents are held to. `admitted`: the target would let it connect.
    pub(crate) fn attach(&mut self, grant: &Grant, admitted: bool) -> Outcome {
        let (volume, epoch) = (&grant.spec.id, grant.epoch);
        let ledger = self.ledger.entry(volume.clone()).or_default();
        match ledger.epoch {
            Some(highest) if epoch < highest || (epoch == highest && ledger.ended) => {
                return Outcome::Stale { highest, ended: ledger.ended };
            }
            Some(highest) if epoch == highest => {}
            _ => *ledger = Ledger { epoch: Some(epoch), ..Ledger::default() },
        }
        match self.kernel.get_mut(volume) {
            Some(c) if c.live => {}
            Some(c) => {
                c.secret = grant.secret.max(c.secret);
                return failed("no live path", false);
            }
            None if admitted && !self.cut => {
                let secret = grant.secret;
                self.kernel
                    .insert(volume.clone(), Connection { live: true, secret, ..Connection::default() });
            }
            None => return failed("no live path", true),
        }
        let identity = Identity { namespace_uuid: format!("uuid-{volume}"), nguid: String::new() };
        Outcome::Ready { identity }
    }

    /// Detach, or Revoke if `force`.
    pub(crate) fn detach(&mut self, volume: &VolumeId, epoch: Epoch, force: bool) -> Outcome {
        let ledger = self.ledger.entry(volume.clone()).or_default();
        if let Some(highest) = ledger.epoch.filter(|highest| epoch < *highest) {
            return Outcome::Stale { highest, ended: ledger.ended };
        }
        if !force && self.kernel.get(volume).is_some_and(|c| c.open) {
            return Outcome::Busy { holders: vec!["pid 1".into()] };
        }
        (ledger.epoch, ledger.ended) = (Some(epoch), true);
        if self.kernel.get(volume).is_some_and(|c| c.wedged) {
            return Outcome::Pending { message: "the kernel deletes it".into() };
        }
        if let Some(c) = self.kernel.remove(volume) {
            let state = if c.live { "live" } else { "connecting" }.into();
            ledger.deleted.push(Deleted { controller: "nvme0".into(), state });
        }
        Outcome::Absent(Absence { deleted: ledger.deleted.clone() })
    }

    /// A new secret for what is connected. One that is older than what the node knows changes nothing.
    pub(crate) fn rekey(&mut self, volume: &VolumeId, generation: Epoch) -> Outcome {
        match self.kernel.get_mut(volume) {
            None => failed("nothing is connected", true),
            Some(c) => {
                c.secret = c.secret.max(Some(generation));
                Outcome::Rekeyed
            }
        }
    }
}

pub(crate) fn failed(message: &str, nothing_left: bool) -> Outcome {
    Outcome::Failed { clause: "paths".into(), message: message.into(), nothing_left }
}

/// Which volume a directive is about, and under which epoch.
pub(crate) fn about(directive: &Directive) -> (VolumeId, Epoch) {
    match directive {
        Directive::Attach { grant } => (grant.spec.id.clone(), grant.epoch),
        Directive::Detach { volume, epoch }
        | Directive::Revoke { volume, epoch }
        | Directive::Preempt { volume, epoch, .. }
        | Directive::Rekey { volume, epoch, .. } => (volume.clone(), *epoch),
    }
}
