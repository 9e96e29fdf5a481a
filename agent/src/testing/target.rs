//! The reservations of a target made of memory: one namespace, kept by `cleat_world::reservations`.

use cleat_host::HostId;
use cleat_host::reservations::{Command, Registrant, ReservationKey, ReservationKind, ReservationReport};

pub(crate) const OTHER_HOST: &str = "22222222-2222-2222-2222-222222222222";

pub(crate) fn key(number: u64) -> ReservationKey {
    ReservationKey::new(number).unwrap()
}

pub(crate) fn host(id: &str) -> HostId {
    HostId::parse(id).unwrap()
}

#[derive(Debug, Default)]
pub(crate) struct Reservation {
    /// Who is registered, by the rules that every target of a test keeps.
    pub(crate) kept: Kept,
    /// The target knows no reservations.
    pub(crate) incapable: bool,
    /// Commands wait until this is false.
    pub(crate) hangs: bool,
    /// Commands that changed something, in order.
    pub(crate) done: Vec<Command>,
    /// What happens to the target right after a report was read, once.
    pub(crate) interferes: Option<fn(&mut Reservation)>,
}

impl Reservation {
    /// Another host registers, and takes the reservation if nobody has it.
    pub(crate) fn join(&mut self, id: &str, number: u64) {
        self.join_without_holding(id, number);
        if !self.kept.is_held() {
            self.kept.reserve(host(id), number).expect("it is registered");
        }
    }

    /// Another host registers, and leaves it at that.
    pub(crate) fn join_without_holding(&mut self, id: &str, number: u64) {
        self.kept.register(host(id), None, number).expect("it is not registered");
    }

    /// Takes a registration away, as another host's preemption does.
    pub(crate) fn lose(&mut self, number: u64) {
        let registered = self.kept.registrants().iter();
        let by = registered.copied().find(|(_, key)| *key != number);
        let of = self.kept.registrants().iter().copied().find(|(_, key)| *key == number);
        match (by, of) {
            (Some((by, key)), _) => drop(self.kept.preempt(by, key, number)),
            (None, Some((last, key))) => drop(self.kept.unregister(last, key)),
            (None, None) => {}
        }
    }

    /// The target restarts: everything is forgotten.
    pub(crate) fn forget(&mut self) {
        self.kept.forget();
    }

    pub(crate) fn keys(&self) -> Vec<u64> {
        self.kept.registrants().iter().map(|(_, key)| *key).collect()
    }

    pub(crate) fn report(&self) -> ReservationReport {
        let registrants = self.kept.registrants().iter();
        let holds = self.kept.is_held();
        ReservationReport {
            generation: self.kept.generation(),
            kind: holds.then_some(ReservationKind::WriteExclusiveAllRegistrants),
            persists: false,
            registrants: registrants
                .map(|(host, key)| Registrant { key: *key, host: Some(*host), holds })
                .collect(),
        }
    }
}

type Kept = cleat_world::reservations::Reservations<HostId>;
