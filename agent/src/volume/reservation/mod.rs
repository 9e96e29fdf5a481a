//! The reservation of a volume: taken before Ready is reported, maintained while the grant is in force, given
//! back at its end, and used to remove others' registrations.
//!
//! Comes in: the key of a grant. Goes out: what the target's report shows afterwards.
//!
//! Always holds:
//! - A registration that this node had under an epoch, and that is gone, is made again only where the target
//!   has forgotten everybody's (its generation went back, as at a restart). Otherwise somebody has preempted
//!   it: this node has been fenced, whatever a message may say, since a message can be old.
//! - Without a directive it is made again only while the session with the controller is up, before and after.
//! - Without a directive the namespace is reserved again only once everybody has had time to register again:
//!   from that moment on, writes of a node that is not registered are refused, and its users get errors.
//!   Nobody can know who everybody is: another node may have registered after the last report that this one
//!   has read.
//! - What could not be read is neither "held" nor "gone".

pub(super) mod preempt;

use std::time::Duration;

use cleat_host::reservations::{ReservationError, ReservationKey, ReservationKind, ReservationReport};
use cleat_host::sysfs::SubsystemView;
use cleat_host::{DevT, HostId};
use cleat_runtime::exit::Causes;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::ledger::{Grant, LedgerEntry};
use crate::link::Link;
use crate::metrics::{self, Reassertion};
use crate::name::Epoch;
use crate::volume::clause::FailedClause;
use crate::volume::host::Host;
use crate::volume::observe::judge::device;
use crate::volume::supersede::Superseded;
use crate::volume::{Volume, clause};

/// Longest that a command may take that does not wait for anybody's writes.
const COMMAND: Duration = Duration::from_secs(5);
/// Longest that giving back a registration may hold up the end of a grant: the target may not answer.
const GIVING_BACK: Duration = Duration::from_secs(3);
/// Longest that making one again without a directive may take, from reading the session's state to the proof:
/// past it this process may have been stopped in between, and the session's state says nothing any more.
const UNINTERRUPTED: Duration = Duration::from_secs(4);
/// How long others may take to register again after a restart of the target, before this node reserves the
/// namespace. Their kernels try once a second, and their agents react at once. No fence depends on
/// registrations alone, so waiting loses nothing.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often the report is read and acted upon before it gives up: others may act in between.
const ROUNDS: u32 = 4;

/// This node's registration under the grant, as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Registration {
    /// Why it was not in place when last read; `None` if it was.
    missing: Option<String>,
    /// Something has happened to a controller since it was last read.
    doubtful: bool,
    /// When it was last read.
    looked: Option<Instant>,
    /// Since when this node has been registered again while others may not be yet.
    waiting: Option<Instant>,
}

impl Registration {
    /// Why it was not in place when last read; `None` if it was.
    pub(super) fn missing(&self) -> Option<String> {
        self.missing.clone()
    }

    /// Whether this node waits for others before it reserves the namespace.
    pub(super) fn waits(&self) -> bool {
        self.waiting.is_some()
    }
}

/// How a registration stands after reading it.
enum Stands {
    /// The report shows it, and the namespace reserved.
    Held(ReservationReport),
    /// The report of this generation shows it. The namespace is not reserved until others had time to
    /// register.
    Joined(u32),
    /// It was there again, and this node removed it itself: nobody has preempted it.
    TakenBack(String),
    /// It is not there; the text says why.
    Missing(String),
}

/// What a report means for a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// This node is registered, and the namespace is reserved for the registrants.
    Held,
    /// It may register: it never was registered under this epoch, or the target has forgotten everybody.
    MayRegister,
    /// It was registered, and somebody has removed that.
    Preempted,
}

/// Judges a report. `registered` is the generation of the last report that showed this node under the epoch.
/// Removing a registration raises the generation (base specification, "Reservation Report", field GEN; seen
/// with Linux 6.18); a target that restarts begins at 0 again.
pub(super) fn standing(
    report: &ReservationReport,
    host: HostId,
    key: ReservationKey,
    registered: Option<u32>,
) -> Standing {
    if report.admits(host, key) {
        return Standing::Held;
    }
    match registered {
        // Registered still, but the reservation is gone: it was released, and everybody's registration left
        // alone.
        Some(_) if report.key_of(host) == Some(key) => Standing::MayRegister,
        Some(generation) if report.generation > generation => Standing::Preempted,
        Some(_) | None => Standing::MayRegister,
    }
}

/// Why the namespace is not reserved for this node.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReserveError {
    #[error(transparent)]
    Command(#[from] ReservationError),
    #[error(
        "cannot hold the namespace Write Exclusive - All Registrants (RESCAP {0:#04x}): the target does not \
         offer it; probe the RDS again"
    )]
    Incapable(u8),
    #[error("the namespace is held as {0}, which Cleat did not ask for")]
    OtherKind(ReservationKind),
    #[error("this node has been preempted: its registration under {0} is gone, and those of others are not")]
    Preempted(ReservationKey),
    #[error("registrations kept changing; gave up after {ROUNDS} attempts")]
    Restless,
}

impl ReserveError {
    /// Whether it may heal by itself.
    pub(super) fn may_heal(&self) -> bool {
        match self {
            Self::Command(error) => !error.is_unsupported(),
            Self::Restless => true,
            Self::Incapable(_) | Self::OtherKind(_) | Self::Preempted(_) => false,
        }
    }
}

impl<H: Host> Volume<H> {
    pub(super) fn host_id(&self) -> HostId {
        self.shared.identity.host_id
    }

    /// Registers the key and reserves the namespace, unless the report shows both; returns the report that
    /// shows them.
    pub(super) async fn hold(
        &self,
        dev: DevT,
        key: ReservationKey,
        registered: Option<u32>,
    ) -> Result<ReservationReport, ReserveError> {
        let (target, host) = (self.shared.host.reservations(), self.host_id());
        let mut asked_abilities = registered.is_some();
        for _ in 0..ROUNDS {
            if !asked_abilities {
                let abilities = target.abilities(dev, COMMAND).await?;
                if !abilities.write_exclusive_all_registrants() {
                    return Err(ReserveError::Incapable(abilities.rescap));
                }
                asked_abilities = true;
            }
            let report = target.report(dev, COMMAND).await?;
            match standing(&report, host, key, registered) {
                Standing::Held => return Ok(report),
                Standing::Preempted => return Err(ReserveError::Preempted(key)),
                Standing::MayRegister => {}
            }
            if let Some(kind) = report.kind
                && !report.is_held()
            {
                return Err(ReserveError::OtherKind(kind));
            }
            let own = report.key_of(host);
            let done = if own == Some(key) {
                target.reserve(dev, key, COMMAND).await
            } else {
                target.register(dev, own, key, COMMAND).await
            };
            match done {
                // A conflict means that the report is old; the next one shows what happened.
                Err(error) if !error.is_conflict() => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
        }
        let report = target.report(dev, COMMAND).await?;
        if report.admits(host, key) { Ok(report) } else { Err(ReserveError::Restless) }
    }

    /// Registers the key where the target has forgotten it, and reserves the namespace once others have had
    /// their time.
    async fn rejoin(
        &self,
        dev: DevT,
        key: ReservationKey,
        registered: Option<u32>,
    ) -> Result<Stands, ReserveError> {
        let (target, host) = (self.shared.host.reservations(), self.host_id());
        let mut report = target.report(dev, COMMAND).await?;
        if standing(&report, host, key, registered) == Standing::MayRegister && !report.is_held() {
            let own = report.key_of(host);
            if own != Some(key) {
                // The target has forgotten the others since then, whatever this node waited for.
                self.memory().registration.waiting = None;
                match target.register(dev, own, key, COMMAND).await {
                    // A conflict means that the report is old; the next one shows what happened.
                    Err(error) if !error.is_conflict() => return Err(error.into()),
                    Ok(()) | Err(_) => report = target.report(dev, COMMAND).await?,
                }
            }
            if report.key_of(host) == Some(key) && !report.is_held() && self.waits_for_others() {
                return Ok(Stands::Joined(report.generation));
            }
        }
        self.hold(dev, key, registered).await.map(Stands::Held)
    }

    /// Whether others still have time to register again.
    fn waits_for_others(&self) -> bool {
        self.memory().registration.waiting.get_or_insert_with(Instant::now).elapsed() < PATIENCE
    }

    /// Remembers that the report shows this node.
    pub(super) fn note_held(&self) {
        let registration = &mut self.memory().registration;
        *registration = Registration { looked: Some(Instant::now()), ..Registration::default() };
    }

    /// Gives back this node's registration, whatever its key, where the grant had one and the target can be
    /// reached. A failure is only logged: the deletion that follows ends the grant. True where this very call
    /// removed a registration.
    pub(super) async fn give_back(&self, grant: Option<&Grant>, view: &SubsystemView) -> bool {
        let reserved = grant.is_some_and(|grant| grant.reserve.is_some());
        let live = view.controllers.iter().any(|one| one.state.is_live());
        let (true, true, Some(namespace)) = (reserved, live, device(view)) else { return false };
        let (target, dev) = (self.shared.host.reservations(), namespace.dev);
        let work = async {
            let report = target.report(dev, GIVING_BACK).await?;
            match report.key_of(self.host_id()) {
                Some(key) => target.unregister(dev, key, GIVING_BACK).await.map(|()| true),
                None => Ok(false),
            }
        };
        let given_back = match timeout(GIVING_BACK, work).await {
            Ok(Ok(given_back)) => given_back,
            Ok(Err(error)) if error.is_conflict() => false,
            Ok(Err(error)) => {
                tracing::warn!(volume = %self.id, error = %Causes(&error), "cannot give back this node's \
                    registration");
                false
            }
            Err(_) => {
                tracing::warn!(volume = %self.id, "this node's registration was not given back in time");
                false
            }
        };
        self.memory().registration = Registration::default();
        given_back
    }

    /// Something has happened to a controller: the target may have been restarted.
    pub(super) fn doubt_registration(&self) {
        self.memory().registration.doubtful = true;
    }

    /// Whether something has happened to a controller since the registration was read.
    pub(super) fn registration_is_doubtful(&self) -> bool {
        let memory = self.memory();
        let grant = memory.record.entry().and_then(|entry| entry.grant.as_ref());
        memory.registration.doubtful && grant.is_some_and(|grant| grant.reserve.is_some())
    }

    /// Whether to read the registration: now and then, and after anything that happened to a controller.
    pub(super) fn registration_is_due(&self, every: Duration) -> bool {
        let memory = self.memory();
        let looked = memory.registration.looked;
        memory.registration.doubtful || looked.is_none_or(|looked| looked.elapsed() >= every)
    }

    /// Maintains the registration of a grant in force: reads the report, and registers again where the target
    /// has forgotten it and the session with the controller is up. Does nothing while an operation has the
    /// volume.
    pub(super) async fn look_after_registration(&self, link: &watch::Receiver<Link>) {
        let Some(_pass) = self.gate.try_enter("look at the reservation") else { return };
        let Ok(Some(entry)) = self.record().await else { return };
        let Some(key) = standing_key(&entry, self.boot_id()) else { return };
        let Ok(view) = self.observe().await else { return };
        let live = view.controllers.iter().any(|one| one.state.is_live());
        let (true, Some(namespace)) = (live, device(&view)) else { return };
        // Anything that happens from here on makes it doubtful again.
        self.memory().registration.doubtful = false;
        let (epoch, dev) = (entry.epoch, namespace.dev);
        let Some(stands) = self.registration(epoch, dev, key, entry.registered, link).await else {
            // Neither held nor gone. A target that cannot be reached shows in the paths.
            self.doubt_registration();
            return;
        };
        let joined = matches!(stands, Stands::Joined(_));
        let missing = match stands {
            Stands::Held(report) => {
                self.note_generation(entry, report.generation).await;
                None
            }
            Stands::Joined(generation) => {
                // From now on, removing it is a preemption. It is read again soon.
                self.note_generation(entry, generation).await;
                self.doubt_registration();
                None
            }
            Stands::TakenBack(missing) => {
                self.note_registered(entry, None).await;
                self.doubt_registration();
                Some(missing)
            }
            Stands::Missing(missing) => Some(missing),
        };
        let before = {
            let mut memory = self.memory();
            memory.registration.looked = Some(Instant::now());
            if !joined {
                memory.registration.waiting = None;
            }
            std::mem::replace(&mut memory.registration.missing, missing.clone())
        };
        if before != missing {
            match &missing {
                Some(missing) => {
                    tracing::error!(volume = %self.id, %key, missing, "cannot keep the reservation")
                }
                None => tracing::info!(volume = %self.id, %key, joined, "this node is registered"),
            }
        }
        self.report(&view);
    }

    /// How this node's registration stands, made again where that is allowed. `None` where it could not be
    /// read, or where a directive came that ends the grant.
    async fn registration(
        &self,
        epoch: Epoch,
        dev: DevT,
        key: ReservationKey,
        registered: Option<u32>,
        link: &watch::Receiver<Link>,
    ) -> Option<Stands> {
        let look = async {
            let report = self.shared.host.reservations().report(dev, COMMAND).await?;
            Ok::<_, ReservationError>(match standing(&report, self.host_id(), key, registered) {
                Standing::Held => Stands::Held(report),
                Standing::MayRegister => self.assert_again(dev, key, registered, link).await,
                Standing::Preempted => Stands::Missing(ReserveError::Preempted(key).to_string()),
            })
        };
        match self.unless_superseded(epoch, look).await {
            Ok(Ok(stands)) => Some(stands),
            Ok(Err(error)) => {
                tracing::warn!(volume = %self.id, error = %Causes(&error), "cannot read the reservation");
                None
            }
            Err(Superseded) => None,
        }
    }

    /// Registers again, and reserves.
    async fn assert_again(
        &self,
        dev: DevT,
        key: ReservationKey,
        registered: Option<u32>,
        link: &watch::Receiver<Link>,
    ) -> Stands {
        let up = || *link.borrow() == Link::Up;
        if !up() {
            return Stands::Missing(
                "the target has forgotten this node's registration; not registering again without a session \
                 with the controller, since the grant may have ended"
                    .to_owned(),
            );
        }
        let began = Instant::now();
        let held = self.rejoin(dev, key, registered).await;
        let took = began.elapsed();
        match held {
            Ok(joined @ Stands::Joined(_)) if up() && took <= UNINTERRUPTED => joined,
            Ok(held) if up() && took <= UNINTERRUPTED => {
                tracing::warn!(volume = %self.id, %key, "the target lost this node's registration; \
                                                         registered again");
                metrics::reassertion(Reassertion::Done);
                held
            }
            Ok(_) => {
                // The session may have ended before the command went out, and the grant with it.
                metrics::reassertion(Reassertion::TakenBack);
                let back = self.shared.host.reservations().unregister(dev, key, COMMAND).await;
                let stands = if back.is_ok() { Stands::TakenBack } else { Stands::Missing };
                let result = back.err().map(|error| Causes(&error).to_string());
                tracing::error!(volume = %self.id, %key, ?took, ?result, "took back a registration that came late");
                stands(
                    "registered too late after the check of the session; took the registration back"
                        .to_owned(),
                )
            }
            Err(error) => {
                metrics::reassertion(Reassertion::Failed);
                Stands::Missing(Causes(&error).to_string())
            }
        }
    }

    /// Records the generation at which this node was last seen registered.
    async fn note_generation(&self, entry: LedgerEntry, generation: u32) {
        self.note_registered(entry, Some(generation)).await;
    }

    async fn note_registered(&self, mut entry: LedgerEntry, registered: Option<u32>) {
        if entry.registered == registered {
            return;
        }
        entry.registered = registered;
        if let Err(error) = self.keep(&entry).await {
            tracing::error!(volume = %self.id, error = %Causes(&error), "cannot note that this node is registered");
        }
    }
}

/// The reservation key of a grant in force.
fn standing_key(entry: &LedgerEntry, boot_id: &str) -> Option<ReservationKey> {
    let grant = entry.grant.as_ref().filter(|_| !entry.ended && entry.boot_id == boot_id)?;
    grant.reserve
}

/// The failed clause for an error, with all its causes.
pub(super) fn unready(error: &ReserveError) -> FailedClause {
    clause::failed(clause::RESERVATION, Causes(error))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "reservation_tests.rs"]
mod tests;
