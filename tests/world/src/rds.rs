//! The RDS: requests, as it carries them out, and what they do to hosts.
//!
//! In come requests; out go changes of the target and of the hosts' connections.

use std::collections::BTreeSet;

use cleat_core::{Event, RdsRequest};

use crate::check::Violation;
use crate::export::{Export, Late, VolumeDeletion};
use crate::host::Path;
use crate::kinds::Answer;
use crate::names::{N, NODES, P, V, host_of, volume_id, volume_of};
use crate::target::List;
use crate::world::{Ask, QUANTUM_MS, World};

impl World {
    /// The RDS carries a request out. `heard`: whoever asked waits until it is done with all of it.
    pub(crate) fn rds_does(&mut self, request: &RdsRequest, heard: bool) {
        match request {
            RdsRequest::Allow { volume, host_nqn } => {
                let (v, n) = (volume_of(volume), host_of(host_nqn));
                self.check_allow(v, n);
                let export = self.export(v);
                export.set_listed(n, true);
                // Whoever is allowed is to get in: an export that is off goes on.
                export.volume.show();
            }
            RdsRequest::Deny { volume, host_nqn, .. } => {
                self.export(volume_of(volume)).set_listed(host_of(host_nqn), false);
            }
            RdsRequest::Close { volume, host_nqn } => {
                self.export(volume_of(volume)).set_listed(host_of(host_nqn), false);
                self.hides(volume_of(volume), heard);
            }
            RdsRequest::Hide { volume } => self.hides(volume_of(volume), heard),
            RdsRequest::Show { volume } => self.export(volume_of(volume)).volume.show(),
            RdsRequest::SetSecret { volume, generation } => {
                self.export(volume_of(volume)).volume.secret = Some(*generation);
            }
        }
    }

    /// The RDS comes only as far as the first portal with a request that is about all of them.
    pub(crate) fn rds_does_half(&mut self, request: &RdsRequest) {
        match request {
            RdsRequest::Hide { volume } | RdsRequest::Close { volume, .. } => {
                let v = volume_of(volume);
                self.cuts(v, |p| p == 0);
                self.export(v).volume.on[0] = false;
            }
            RdsRequest::Show { volume } => self.export(volume_of(volume)).volume.on[0] = true,
            RdsRequest::Allow { .. } | RdsRequest::Deny { .. } | RdsRequest::SetSecret { .. } => {}
        }
    }

    /// Sessions of everybody end, at these portals, as far as this target does that.
    fn cuts(&mut self, v: V, at: impl Fn(P) -> bool) {
        if self.setup.truth.cuts {
            for n in 0..NODES {
                self.paths_die(v, n, &at, Path::Down);
            }
        }
    }

    /// Export off: sessions end and received writes land, as far as this target does that.
    /// To take off what is off already waits for nothing.
    fn hides(&mut self, v: V, heard: bool) {
        if !self.exports[v].volume.is_on() {
            return;
        }
        self.cuts(v, |_| true);
        // Off in part already: whoever did that may have taken the waiting with it.
        let drains = self.setup.truth.drains && heard && !self.exports[v].volume.on.contains(&false);
        let export = self.export(v);
        export.volume.hide();
        if drains {
            export.volume.received.clear();
        }
    }

    /// Whoever has asked for this has given up, and it is on its way still.
    pub(crate) fn may_land_late(&mut self, request: &RdsRequest) {
        if !self.setup.dangers.requests_land_late {
            return;
        }
        let v = crate::act::lane(request);
        let hosts = |n: Option<(N, bool)>| {
            let mut hosts = match &self.exports[v].volume.list {
                List::Only(hosts) => hosts.clone(),
                List::Everybody => BTreeSet::new(),
            };
            if let Some((n, listed)) = n {
                if listed {
                    hosts.insert(n)
                } else {
                    hosts.remove(&n)
                };
            }
            Some(hosts)
        };
        let (hosts, on, secret) = match request {
            RdsRequest::Allow { host_nqn, .. } => (hosts(Some((host_of(host_nqn), true))), Some(true), None),
            RdsRequest::Deny { host_nqn, .. } => (hosts(Some((host_of(host_nqn), false))), None, None),
            RdsRequest::Close { host_nqn, .. } => {
                (hosts(Some((host_of(host_nqn), false))), Some(false), None)
            }
            RdsRequest::Hide { .. } => (None, Some(false), None),
            RdsRequest::Show { .. } => (None, Some(true), None),
            RdsRequest::SetSecret { generation, .. } => (None, None, Some(*generation)),
        };
        let until = self.now + QUANTUM_MS;
        self.export(v).late.push(Late { hosts, on, secret, until });
    }

    /// Whether something on its way could undo what was asked for: then that is not answered as done.
    pub(crate) fn is_in_doubt(&self, request: &RdsRequest) -> bool {
        self.exports[crate::act::lane(request)].late.iter().any(|late| {
            let admits = |n: N| late.hosts.as_ref().is_some_and(|hosts| hosts.contains(&n));
            match request {
                RdsRequest::Deny { host_nqn, .. } => admits(host_of(host_nqn)),
                RdsRequest::Close { host_nqn, .. } => admits(host_of(host_nqn)) || late.on == Some(true),
                RdsRequest::Hide { .. } => late.on == Some(true),
                RdsRequest::Allow { .. } | RdsRequest::Show { .. } => late.on == Some(false),
                RdsRequest::SetSecret { generation, .. } => {
                    late.secret.is_some_and(|late| late != *generation)
                }
            }
        })
    }

    /// The oldest request that nobody waits for is carried out.
    pub(crate) fn lands_late(&mut self, v: V) {
        if self.exports[v].late.is_empty() {
            return;
        }
        let Late { hosts, on, secret, .. } = self.export(v).late.remove(0);
        if let Some(hosts) = hosts {
            for n in self.nodes() {
                self.export(v).set_listed(n, hosts.contains(&n));
            }
        }
        if secret.is_some() {
            self.export(v).volume.secret = secret;
        }
        match on {
            Some(true) => self.export(v).volume.show(),
            Some(false) => self.hides(v, false),
            None => {}
        }
    }

    /// A caller wants a volume deleted.
    pub(crate) fn delete(&mut self, v: V) {
        let request = self.request(v, None, Ask::Delete);
        self.event(0, Event::DeleteBegins { request, volume: volume_id(v) });
    }

    /// The RDS answers the DELETE of the newest leader.
    pub(crate) fn delete_answered(&mut self, v: V, answer: Answer) {
        let lacking = self.exports[v].lacking;
        self.export(v).deletion = match answer {
            Answer::Done | Answer::Refused | Answer::HalfRefused => None,
            Answer::DoneUnheard | Answer::UndoneUnheard | Answer::HalfUnheard => Some(VolumeDeletion::Late),
        };
        if answer == Answer::Done && !lacking {
            self.is_deleted(v);
        }
        let deletion = match answer {
            Answer::Done if !lacking => cleat_core::VolumeDeletion::Done,
            Answer::Refused | Answer::HalfRefused => cleat_core::VolumeDeletion::NotDone,
            // What a list lacks for a while is not known to be gone.
            _ => cleat_core::VolumeDeletion::Unknown,
        };
        self.event(0, Event::DeleteEnded { volume: volume_id(v), deletion });
    }

    /// The volume is gone. Somebody makes another of the same name at once, which is not exported before somebody has it.
    pub(crate) fn is_deleted(&mut self, v: V) {
        let user = self.nodes().find(|n| self.could_send(v, *n) && !self.told.by_hand[v][*n]);
        if let Some(n) = user {
            self.breaks(Violation::DeletedUnderUser { v, n });
        }
        // Whatever a kernel still has of it is a device of nothing.
        for n in self.nodes() {
            self.host(n).held[v] = None;
        }
        let restarts = self.exports[v].restarts + 1;
        *self.export(v) = Export { restarts, ..Export::default() };
        self.export(v).volume.hide();
    }

    /// The target starts anew: every session ends, registrations are forgotten, lists and secrets are not.
    pub(crate) fn target_restarts(&mut self) {
        for v in 0..self.setup.access.len() {
            for n in 0..NODES {
                self.paths_die(v, n, |_| true, Path::Down);
            }
            let export = self.export(v);
            export.volume.restart();
            export.restarts += 1;
        }
    }
}
