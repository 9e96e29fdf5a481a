//! The controller in the world: the real core, what it has stored, what it has asked for, and its death.

use cleat_core::{
    Core, Drained, Effect, Event, NodeId, Notice, Refusal, Reply, RequestId, UnixMillis, VolumeId,
    VolumeRecord,
};

use super::World;
use super::names::kind;

impl World {
    pub(super) fn event(&mut self, event: Event) {
        let effects = self.core.step(UnixMillis(self.now), event);
        self.carry_out(effects);
    }

    pub(super) fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            if let Some(left) = &mut self.crash_after {
                if *left == 0 {
                    self.restart_controller();
                    return;
                }
                *left -= 1;
            }
            match effect {
                Effect::Persist(record) => {
                    // Through its stored form, as a restart sees it.
                    let json = serde_json::to_string(&record).expect("a record is JSON");
                    let record: VolumeRecord = serde_json::from_str(&json).expect("and reads back");
                    self.stored.insert(record.spec.id.clone(), record);
                }
                Effect::Forget(volume) => {
                    self.stored.remove(&volume);
                }
                Effect::Rds { operation, request } => self.rds.push_back((operation, request)),
                Effect::Direct { node, session, operation, directive } => {
                    let host = self.hosts.get_mut(&node).expect("a known host");
                    if let Some(stream) = host.stream.as_mut().filter(|s| s.id == session) {
                        stream.to_agent.push_back((operation, directive));
                    }
                }
                Effect::Reply { request, result } => self.answered(request, result),
                Effect::RefuseSession { session, .. } => {
                    for host in self.hosts.values_mut() {
                        if host.stream.as_ref().is_some_and(|s| s.id == session) {
                            host.stream = None;
                        }
                    }
                }
                Effect::Notice(notice) => self.noticed(&notice),
            }
        }
    }

    fn noticed(&mut self, notice: &Notice) {
        match notice {
            Notice::Detached { evidence, .. } => {
                self.seen.count(evidence.source.name());
                self.seen.count(match evidence.drained {
                    Drained::NeverHandedOut => "never handed out",
                    Drained::LiveDeletion => "live deletion",
                    Drained::Bound { .. } => "bound",
                    Drained::Barrier => "barrier",
                    Drained::Abort => "abort",
                });
            }
            Notice::Fence { rung, .. } => self.seen.count(rung.name()),
            Notice::Readmitted { .. } => self.seen.count("readmitted"),
            _ => {}
        }
    }

    fn answered(&mut self, request: RequestId, result: Result<Reply, Refusal>) {
        let Some((volume, about)) = self.open_requests.remove(&request) else {
            return self.violated(format!("{request:?} was answered twice"));
        };
        self.seen.count(kind(&result));
        match result {
            Ok(Reply::Unpublished | Reply::Fenced) => {
                let gone: Vec<NodeId> =
                    about.map_or_else(|| self.hosts.keys().cloned().collect(), |n| vec![n]);
                for node in gone {
                    self.handed_out.remove(&(volume.clone(), node.clone()));
                    if self.can_write(&volume, &node) {
                        self.violated(format!("{node} is said to be off {volume}, and can write to it"));
                    }
                    if !self.wanted.contains(&(volume.clone(), node.clone())) {
                        self.released.insert((volume.clone(), node));
                    }
                }
            }
            Ok(Reply::Published(grant)) => {
                let node = about.expect("a Publish names its node");
                let proof = (volume.clone(), node.clone(), grant.epoch);
                if !self.proven.contains(&proof) {
                    self.violated(format!("Publish({volume}, {node}) succeeded without a proof"));
                }
                self.handed_out.insert((volume, node));
            }
            Ok(Reply::MayDelete | Reply::Declared) | Err(_) => {}
        }
    }

    pub(super) fn restart_controller(&mut self) {
        self.crash_after = None;
        // Callers see their connection break; they will ask again or not.
        self.open_requests.clear();
        // What the RDS was asked may still be done by it, unheard.
        for (_, request) in std::mem::take(&mut self.rds) {
            self.rds_does(&request);
        }
        for host in self.hosts.values_mut() {
            if let Some(stream) = host.stream.take() {
                host.late.extend(stream.to_agent);
            }
            // Bounded, so that the state is.
            while host.late.len() > 2 {
                host.late.pop_front();
            }
        }
        self.term += 1;
        let records = self.stored.values().cloned().collect();
        let (core, effects) = Core::rebuild(self.config.clone(), self.term, records, UnixMillis(self.now));
        self.core = core;
        self.carry_out(effects);
    }

    pub(super) fn request(&mut self, volume: &VolumeId, about: Option<NodeId>) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.open_requests.insert(request, (volume.clone(), about));
        request
    }
}
