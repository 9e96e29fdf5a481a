//! The RDS: requests, as it carries them out, and what they do to hosts.
//!
//! In come requests; out go changes of the target and of the hosts' connections.

use cleat_core::RdsRequest;

use crate::host::Path;
use crate::names::{NODES, P, PORTALS, V, host_of, volume_of};
use crate::world::World;

impl World {
    /// The RDS carries a request out. `heard`: whoever asked waits until it is done with all of it.
    pub(crate) fn rds_does(&mut self, request: &RdsRequest, heard: bool) {
        match request {
            RdsRequest::Allow { volume, host_nqn } => {
                let (v, n) = (volume_of(volume), host_of(host_nqn));
                self.check_allow(v, n);
                self.export(v).allowed[n] = true;
            }
            RdsRequest::Deny { volume, host_nqn, .. } => {
                self.export(volume_of(volume)).allowed[host_of(host_nqn)] = false;
            }
            RdsRequest::Hide { volume } => self.hides(volume_of(volume), heard),
            RdsRequest::Show { volume } => self.export(volume_of(volume)).on = [true; PORTALS],
            RdsRequest::SetSecret { volume, generation } => {
                self.export(volume_of(volume)).secret = Some(*generation);
            }
        }
    }

    /// The RDS comes only as far as the first portal with a request that is about all of them.
    pub(crate) fn rds_does_half(&mut self, request: &RdsRequest) {
        match request {
            RdsRequest::Hide { volume } => {
                let v = volume_of(volume);
                self.cuts(v, |p| p == 0);
                self.export(v).on[0] = false;
            }
            RdsRequest::Show { volume } => self.export(volume_of(volume)).on[0] = true,
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
        if !self.exports[v].on.contains(&true) {
            return;
        }
        self.cuts(v, |_| true);
        // Off in part already: whoever did that may have taken the waiting with it.
        let drains = self.setup.truth.drains && heard && !self.exports[v].on.contains(&false);
        let export = self.export(v);
        export.on = [false; PORTALS];
        if drains {
            (export.lands_until, export.aborted_until) = ([0; NODES], [0; NODES]);
        }
    }

    /// The target starts anew: every session ends, registrations are forgotten, lists and secrets are not.
    pub(crate) fn target_restarts(&mut self) {
        for v in 0..self.setup.access.len() {
            for n in 0..NODES {
                self.paths_die(v, n, |_| true, Path::Down);
            }
            let export = self.export(v);
            (export.keys, export.reserved) = ([None; NODES], false);
            export.restarts += 1;
        }
    }
}
