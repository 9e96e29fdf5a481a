//! One node: its kernel, and its agent with the ledger on disk.
//!
//! In come directives and what befalls the node; out go the agent's answers. The ledger rules are those of
//! `agent/src/ledger/rules.rs`: an epoch never goes down, an ended one is never taken up again, and what vanished by
//! itself is named as gone when the grant ends. What always holds: a node does nothing for a directive that its
//! ledger calls stale.

use cleat_core::{
    Absence, Deleted, DeviceShown, Directive, Epoch, Event, Observed, ObservedPhase, OperationId, Outcome,
    SessionId,
};

use crate::names::{P, PORTALS, V, VOLUMES, namespace, volume_id};

/// One path of a volume: the controller to one portal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Path {
    /// The target has no such portal.
    #[default]
    Unused,
    /// Connected to the target.
    Live,
    /// Not connected, and the target knows; the kernel goes on trying.
    Down,
    /// Not connected, and the target does not know: what the host's socket still holds may yet reach it.
    HalfOpen,
    /// The kernel has no controller for it (any more).
    Gone,
}

/// A volume in a node's kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its controllers, by portal. While one is live, the kernel repeats on it what broke off on another; while none
    /// is, it keeps what its users wrote, for as long as it goes on trying.
    pub paths: [Path; PORTALS],
    /// The last look found the device usable.
    pub ready: bool,
    /// Somebody has connected it by hand, without a grant.
    pub stray: bool,
    /// A caller was told of it: from then on somebody may be writing.
    pub used: bool,
    /// Somebody has the device open.
    pub open: bool,
    /// The highest grant under which this device was made or confirmed.
    pub epoch: Epoch,
    /// Writes wait in the kernel for the connection to come back.
    pub queued: bool,
    /// The secret that the kernel uses when it connects.
    pub secret: Option<Epoch>,
    /// The agent was told to register at the target.
    pub reserve: bool,
    /// A deletion that the kernel has not come to the end of, and what it answers.
    pub ending: Option<OperationId>,
}

impl Held {
    /// A device as it is right after it was connected.
    #[must_use]
    pub fn new(paths: [Path; PORTALS], epoch: Epoch) -> Self {
        let (ready, stray, used, open, queued, reserve) = (true, false, false, false, false, false);
        let (secret, ending) = (None, None);
        Self { paths, ready, stray, used, open, epoch, queued, secret, reserve, ending }
    }

    /// Some path is connected.
    #[must_use]
    pub fn live(&self) -> bool {
        self.paths.contains(&Path::Live)
    }

    /// Every path that there is.
    #[must_use]
    pub fn whole(&self) -> bool {
        self.paths.iter().all(|path| matches!(path, Path::Unused | Path::Live))
    }

    /// The target takes what comes from it on some path.
    #[must_use]
    pub fn reaches(&self) -> bool {
        self.live() || self.paths.contains(&Path::HalfOpen)
    }

    /// The portals to which the kernel, or the agent's repair, would connect again by itself.
    pub fn broken(&self) -> impl Iterator<Item = P> {
        let broken = |path| matches!(path, Path::Down | Path::HalfOpen | Path::Gone);
        self.paths.into_iter().enumerate().filter(move |(_, path)| broken(*path)).map(|(p, _)| p)
    }
}

/// What the agent's disk knows of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger {
    /// The highest epoch seen.
    pub epoch: Option<Epoch>,
    /// It has ended.
    pub ended: bool,
    /// The boot under which this was written.
    pub boot: u8,
    /// The node can have written under it.
    pub may_have_written: bool,
    /// It was registered under it, at the target as it was after so many restarts.
    pub registered: Option<u8>,
    /// States of what was deleted since the grant began.
    pub deletions: Vec<&'static str>,
}

/// The agent's stream to a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Its name.
    pub id: SessionId,
    /// The controller at its other end.
    pub process: u64,
    /// Directives on their way, in order.
    pub to_agent: Vec<(OperationId, Directive)>,
    /// Events on their way, in order.
    pub to_controller: Vec<Event>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Host {
    /// How often it has booted.
    pub boot: u8,
    /// It has no power.
    pub off: bool,
    /// It cannot reach the target.
    pub cut: bool,
    /// Its kernel does not come to the end of deletions.
    pub wedged: bool,
    /// What its kernel holds.
    pub held: [Option<Held>; VOLUMES],
    /// Some connection of the volume has broken or gone otherwise than by a deletion that waited. Its agent does not forget it:
    /// the real one does when no target can hold anything of it any more.
    pub broke: [bool; VOLUMES],
    /// What its agent's disk knows.
    pub ledger: [Ledger; VOLUMES],
    /// The grant and the boot under which its agent last proved that it can use the volume.
    pub proven: [Option<(Epoch, u8)>; VOLUMES],
    /// The stream, if there is one.
    pub stream: Option<Stream>,
    /// The highest term of a leader that its agent had a stream to. It goes with the agent.
    pub term: u64,
    /// Directives of streams that are over, which may still be carried out.
    pub late: Vec<(OperationId, Directive)>,
    /// Events of streams that are over, which may still be heard, with the controller that may hear them.
    pub late_events: Vec<(u64, Event)>,
    /// The last directive that was carried out.
    pub heard: Option<(OperationId, Directive)>,
    /// The last answer.
    pub answered: Option<(OperationId, V, Epoch, Outcome)>,
}

/// What the target lets a host do at this moment.
#[derive(Debug, Clone, Copy)]
pub struct Reach {
    /// What becomes of a new connection to each portal, given this secret generation.
    pub paths: [Path; PORTALS],
    /// The generation of the secret that the agent brings.
    pub secret: Option<Epoch>,
    /// It is to register.
    pub reserve: bool,
    /// A caller was told of this grant before.
    pub used: bool,
}

/// What every device of this world is like.
const DEVICE: DeviceShown = DeviceShown { size_bytes: 4096, block_size_bytes: Some(512), read_only: false };

/// The answer of an agent that could not do it.
pub(crate) fn failed(clause: &str, nothing_left: bool) -> Outcome {
    Outcome::Failed { clause: clause.into(), message: String::new(), nothing_left }
}

impl Host {
    /// What the agent says of a volume.
    #[must_use]
    pub fn observe(&self, v: V) -> Observed {
        let phase = match &self.held[v] {
            None => ObservedPhase::Absent,
            Some(held) if held.ending.is_some() => ObservedPhase::Detaching,
            Some(held) if held.live() && held.ready && held.whole() => ObservedPhase::Ready,
            Some(held) if held.live() && held.ready => ObservedPhase::Degraded,
            Some(held) if held.live() => ObservedPhase::Connecting,
            Some(_) => ObservedPhase::Lost,
        };
        let live_paths = match (&self.held[v], phase) {
            (Some(held), ObservedPhase::Ready | ObservedPhase::Degraded) => {
                held.paths.iter().filter(|path| **path == Path::Live).count()
            }
            _ => 0,
        };
        let (epoch, ended, phase) = match self.coming(v) {
            Some(coming) if Some(coming) > self.ledger[v].epoch => {
                let gone = matches!(phase, ObservedPhase::Absent | ObservedPhase::Detaching);
                (Some(coming), false, if gone { ObservedPhase::Connecting } else { phase })
            }
            _ => (self.ledger[v].epoch, self.ledger[v].ended, phase),
        };
        Observed {
            volume: volume_id(v),
            epoch,
            ended,
            phase,
            live_paths: u32::try_from(live_paths).unwrap_or(u32::MAX),
            unready: String::new(),
            // It never changes, so what was proven says it.
            shown: None,
            unbroken: phase == ObservedPhase::Ready && !self.broke[v],
        }
    }

    /// The newest grant of which an Attach waits, of a stream that is over: agents name it.
    fn coming(&self, v: V) -> Option<Epoch> {
        let of_it = |(_, directive): &(OperationId, Directive)| match directive {
            Directive::Attach { grant } if grant.spec.id == volume_id(v) => Some(grant.epoch),
            _ => None,
        };
        self.late.iter().filter_map(of_it).max()
    }

    /// Attach: the ledger first, then the kernel. `mishap`: it connects, but does not become ready.
    pub fn attach(&mut self, v: V, epoch: Epoch, reach: Reach, mishap: bool) -> Outcome {
        let boot = self.boot;
        let ledger = &mut self.ledger[v];
        match ledger.epoch {
            Some(highest) if epoch < highest || (epoch == highest && ledger.ended) => {
                return Outcome::Stale { highest, ended: ledger.ended };
            }
            Some(highest) if epoch == highest && ledger.boot == boot => {}
            _ => {
                *ledger = Ledger { epoch: Some(epoch), boot, may_have_written: true, ..Ledger::default() };
            }
        }
        match &mut self.held[v] {
            Some(held) if held.ending.is_some() => return failed("detaching", false),
            Some(held) => {
                (held.epoch, held.secret, held.reserve) = (epoch, reach.secret, reach.reserve);
                (held.ready, held.stray) = (!mishap, false);
                if !held.live() {
                    return failed("paths", false);
                }
            }
            // Any path will do: of the policies that there are, the one under which the most can happen.
            None if reach.paths.contains(&Path::Live) => {
                let Reach { secret, reserve, used, paths } = reach;
                let held = Held { ready: !mishap, used, secret, reserve, ..Held::new(paths, epoch) };
                self.held[v] = Some(held);
            }
            None => return failed("paths", true),
        }
        if mishap {
            return failed("direct-read", false);
        }
        Outcome::Ready { identity: namespace(v), shown: Some(DEVICE) }
    }

    /// Detach (`force`: Revoke, which takes it from under its user). Says what was deleted before it was live.
    pub fn detach(&mut self, v: V, operation: OperationId, epoch: Epoch, force: bool) -> Outcome {
        let ledger = &self.ledger[v];
        if let Some(highest) = ledger.epoch.filter(|highest| epoch < *highest) {
            return Outcome::Stale { highest, ended: ledger.ended };
        }
        if !force && self.held[v].as_ref().is_some_and(|h| h.open) {
            return Outcome::Busy { holders: Vec::new() };
        }
        self.record_end(v, epoch);
        if self.wedged
            && let Some(held) = &mut self.held[v]
        {
            held.ending = Some(operation);
            return Outcome::Pending { message: String::new() };
        }
        self.held[v] = None;
        self.absent(v)
    }

    /// Whether a directive under this epoch may change what this node has; the answer if not.
    pub(crate) fn speaks_for(&self, v: V, epoch: Epoch) -> Option<Outcome> {
        let ledger = &self.ledger[v];
        let highest = ledger.epoch?;
        if epoch < highest || (epoch == highest && ledger.ended) {
            return Some(Outcome::Stale { highest, ended: ledger.ended });
        }
        (epoch != highest || self.held[v].is_none()).then(|| failed("attached", self.held[v].is_none()))
    }

    /// Rekey: the kernel uses another secret from now on.
    pub fn rekey(&mut self, v: V, epoch: Epoch, generation: Epoch) -> Outcome {
        if let Some(refused) = self.speaks_for(v, epoch) {
            return refused;
        }
        if let Some(held) = &mut self.held[v] {
            held.secret = Some(generation);
        }
        Outcome::Rekeyed
    }

    fn record_end(&mut self, v: V, epoch: Epoch) {
        let boot = self.boot;
        let present = self.held[v].as_ref().filter(|h| h.ending.is_none());
        let ledger = &mut self.ledger[v];
        let this_boot = ledger.epoch.is_some() && ledger.boot == boot;
        let mut deletions = Vec::new();
        if this_boot && ledger.epoch == Some(epoch) {
            deletions.append(&mut ledger.deletions);
        }
        let vanished = this_boot && !ledger.ended && ledger.may_have_written;
        match present {
            Some(held) => deletions.extend(held.paths.iter().filter_map(|path| match path {
                Path::Live => Some("live"),
                Path::Down | Path::HalfOpen => Some("connecting"),
                Path::Gone => vanished.then_some("gone"),
                Path::Unused => None,
            })),
            None if vanished && deletions.is_empty() => deletions.push("gone"),
            None => {}
        }
        *ledger = Ledger { epoch: Some(epoch), ended: true, boot, deletions, ..Ledger::default() };
    }

    /// The proof that nothing of a volume is left.
    #[must_use]
    pub fn absent(&self, v: V) -> Outcome {
        let deleted = |state: &&str| Deleted { controller: "nvme0".into(), state: (*state).into() };
        Outcome::Absent(Absence { deleted: self.ledger[v].deletions.iter().map(deleted).collect() })
    }

    /// All that its agent says at the beginning of a stream.
    #[must_use]
    pub fn inventory(&self) -> Vec<Observed> {
        let known =
            |v: &V| self.held[*v].is_some() || self.ledger[*v].epoch.is_some() || self.coming(*v).is_some();
        (0..VOLUMES).filter(known).map(|v| self.observe(v)).collect()
    }
}
