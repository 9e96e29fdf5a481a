//! The answers, and what the controller may rely on.
//!
//! Comes in: answers, each found or not. Goes out: [`Abilities`]. Always holds: what was not found out is
//! never a yes.

use std::time::Duration;

use cleat_rds::{Abilities, ProbedAcl, ProbedDrain, ProbedReservations};

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding<T> {
    /// The probe saw this.
    Found(T),
    /// The probe could not find out; the text says why.
    Unknown(String),
}

impl<T> Finding<T> {
    /// What was seen; `None` if the probe could not find out.
    pub fn found(&self) -> Option<&T> {
        match self {
            Self::Found(found) => Some(found),
            Self::Unknown(_) => None,
        }
    }
}

/// An answer with a remark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remarked<T> {
    /// What was seen.
    pub is: T,
    /// A remark without a full stop; may be empty.
    pub remark: String,
}

impl<T> Remarked<T> {
    /// Adds a remark to an answer.
    pub fn new(is: T, remark: impl Into<String>) -> Self {
        Self { is, remark: remark.into() }
    }
}

/// What happens to live sessions when the export is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All of them end; the last one this long after the request.
    After(Duration),
    /// They stay, and writes go on.
    Stays,
}

/// Everything that was found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    /// What the list of hosts does.
    pub host_acl: Finding<Remarked<ProbedAcl>>,
    /// Whether taking a host off the list ends its live session.
    pub removal_cuts: Finding<bool>,
    /// What switching the export off does to live sessions.
    pub cut: Finding<Cut>,
    /// Whether the namespace keeps its UUID; the remark says what happened to the connected host.
    pub uuid_kept: Finding<Remarked<bool>>,
    /// Whether switching the export off waits for writes in flight.
    pub drains: Finding<Remarked<bool>>,
    /// How far reservations can be relied on.
    pub reservations: Finding<Remarked<ProbedReservations>>,
    /// Whether a disk grows under a connected host.
    pub grow_online: Finding<Remarked<bool>>,
    /// Whether a disk accepts a password.
    pub password: Finding<Remarked<bool>>,
    /// Whether hosts have to authenticate with that password.
    pub in_band_auth: Finding<Remarked<bool>>,
}

impl Default for Findings {
    fn default() -> Self {
        Self {
            host_acl: not_asked(),
            removal_cuts: not_asked(),
            cut: not_asked(),
            uuid_kept: not_asked(),
            drains: not_asked(),
            reservations: not_asked(),
            grow_online: not_asked(),
            password: not_asked(),
            in_band_auth: not_asked(),
        }
    }
}

fn not_asked<T>() -> Finding<T> {
    Finding::Unknown("it was not asked".to_owned())
}

impl Findings {
    /// What the controller may rely on at the device `rds`, probed at `at` (RFC 3339).
    #[must_use]
    pub fn abilities(&self, rds: String, at: String, assume_drains: bool) -> Abilities {
        let yes = |answer: &Finding<Remarked<bool>>| answer.found().is_some_and(|found| found.is);
        let mut abilities = Abilities::nothing(rds, at);
        if let Some(acl) = self.host_acl.found() {
            abilities.host_acl = acl.is;
        }
        if let Some(Cut::After(time)) = self.cut.found() {
            abilities.export_cuts = true;
            abilities.export_cut_ms = Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        }
        abilities.export_drains = self.probed_drain(assume_drains);
        abilities.uuid_kept = yes(&self.uuid_kept);
        abilities.password = yes(&self.password);
        abilities.in_band_auth = yes(&self.in_band_auth);
        if let Some(reservations) = self.reservations.found() {
            abilities.reservations = reservations.is;
        }
        abilities.grow_online = yes(&self.grow_online);
        abilities
    }

    /// What is proven about the drain, with what may be assumed.
    #[must_use]
    pub fn probed_drain(&self, assume_drains: bool) -> ProbedDrain {
        match (&self.drains, &self.cut) {
            (Finding::Found(Remarked { is: true, .. }), _) => ProbedDrain::Seen,
            (Finding::Found(_), _) => ProbedDrain::No,
            // A namespace that does not even go away waits for nothing.
            (Finding::Unknown(_), Finding::Found(Cut::After(_))) if assume_drains => ProbedDrain::Assumed,
            (Finding::Unknown(_), _) => ProbedDrain::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn abilities(findings: &Findings, assume: bool) -> Abilities {
        findings.abilities("https://rds".into(), "2026-11-21T00:00:00Z".into(), assume)
    }

    #[test]
    fn what_is_not_known_is_never_a_yes() {
        let nothing = Abilities::nothing("https://rds".into(), "2026-11-21T00:00:00Z".into());
        assert_eq!(abilities(&Findings::default(), false), nothing);
        assert_eq!(
            abilities(&Findings::default(), true),
            nothing,
            "no assumption without a cut that was seen"
        );
    }

    #[test]
    fn the_drain_is_assumed_only_on_request_and_uncontradicted() {
        let cut = Finding::Found(Cut::After(Duration::from_millis(40)));
        let mut findings = Findings { cut, ..Findings::default() };
        assert_eq!(abilities(&findings, false).export_drains, ProbedDrain::Unknown);
        assert_eq!(abilities(&findings, true).export_drains, ProbedDrain::Assumed);
        findings.drains = Finding::Found(Remarked::new(false, "a write landed later"));
        assert_eq!(abilities(&findings, true).export_drains, ProbedDrain::No);
        findings.drains = Finding::Found(Remarked::new(true, ""));
        assert_eq!(abilities(&findings, false).export_drains, ProbedDrain::Seen);
        findings.cut = Finding::Found(Cut::Stays);
        assert_eq!(abilities(&findings, false).export_cut_ms, None);
    }
}
