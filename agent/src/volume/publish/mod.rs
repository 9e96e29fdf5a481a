//! What the kubelet asks for: stage, publish, and back.
//!
//! Comes in: checked requests. Goes out: success only for what was verified.
//!
//! Always holds:
//! - Nothing here connects or disconnects: the device comes and goes with the controller's grants.
//! - A device is handed out only while the whole predicate holds under exactly the epoch of PublishContext.
//! - The mount of the node says read-only; the container's device cgroup enforces it, which the container
//!   runtime derives from the mount. The device itself is never made read-only: other pods and the other side
//!   of a migration share it.
//! - A target is removed by unmount and unlink, never by anything that could reach into what is mounted.

pub(super) mod errors;
pub mod request;
pub(super) mod staging;

use std::future::Future;
use std::time::Duration;

use cleat_host::NamespaceIdentity;
use cleat_host::readiness::ReadyFacts;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::ledger::rules::Stale;
use crate::ledger::{Grant, LedgerEntry};
use crate::link::Link;
use crate::name::Epoch;
use crate::volume::gate::Pass;
use crate::volume::host::{AtTarget, Host};
use crate::volume::publish::request::{Granted, Publish, Stage, Unpublish};
use crate::volume::{PublishError, StageError, UnpublishError, UnstageError, Volume, clause};

/// What a call waits for.
enum Waits {
    /// The controller's Attach.
    Grant { seen: String },
    /// A clause of the predicate.
    Device { clause: String, message: String },
}

/// How the record compares with the grant in PublishContext.
enum Standing<'a> {
    Granted(&'a Grant),
    Wait(Waits),
}

impl<H: Host> Volume<H> {
    /// NodeStageVolume of a block volume: proves that the device can be used, and changes nothing.
    pub(super) async fn stage(&self, request: &Stage, link: Link) -> Result<(), StageError> {
        self.usable("NodeStageVolume", &request.granted, self.shared.times.stage, link).await.map(drop)
    }

    /// NodeUnstageVolume of a block volume: staging did nothing, so there is nothing to undo; but no
    /// publication may be left.
    pub(super) async fn unstage(&self) -> Result<(), UnstageError> {
        let until = Instant::now() + self.shared.times.turn;
        let _pass = self.gate.enter_by("NodeUnstageVolume", until).await?;
        let view = self.observe().await?;
        let mut left = Vec::new();
        for namespace in &view.namespaces {
            let published = self.shared.host.publications(namespace.dev);
            left.extend(self.unless_revoked(None, published).await??);
        }
        left.sort_unstable();
        if left.is_empty() { Ok(()) } else { Err(UnstageError::Published(left)) }
    }

    /// NodePublishVolume: the verified device node at the target.
    pub(super) async fn publish(&self, request: &Publish, link: Link) -> Result<(), PublishError> {
        let (_pass, facts) =
            self.usable("NodePublishVolume", &request.granted, self.shared.times.turn, link).await?;
        let (host, target, dev) = (&self.shared.host, request.target.as_path(), facts.selected.dev);
        let epoch = request.granted.epoch;
        match self.for_pod(epoch, host.at_target(target)).await?? {
            AtTarget::Device(found) if found == dev => {
                let read_only = self.for_pod(epoch, host.is_read_only(target)).await??;
                if read_only == request.read_only {
                    // Changes nothing, and checks whether the machine sees the mount: the process that made
                    // it may have died before.
                    self.for_pod(epoch, host.publish(&facts.node, dev, target, read_only)).await??;
                    self.note_published(target).await;
                    return Ok(());
                }
                if self.is_noted(target).await {
                    return Err(PublishError::OtherMode { target: target.to_owned(), read_only });
                }
                // Left by a process that died before it had reported the mount.
                self.for_pod(epoch, host.unpublish(target)).await??;
            }
            AtTarget::Device(found) | AtTarget::Leftover(found) => {
                // The node of a device that has gone, and whose number may be another disk's by now: never
                // handed on. An unmount that is not forced fails while somebody has it open.
                tracing::warn!(volume = %self.id, target = %target.display(), %found, expected = %dev,
                    "replacing a stale device at the target");
                let gone = self.for_pod(epoch, host.unpublish(target)).await?;
                gone.map_err(|source| PublishError::OtherDevice {
                    target: target.to_owned(),
                    found: found.to_string(),
                    source,
                })?;
            }
            AtTarget::Nothing | AtTarget::Placeholder => {}
            AtTarget::Other(found) => {
                return Err(PublishError::Occupied { target: target.to_owned(), found });
            }
        }
        self.for_pod(epoch, host.publish(&facts.node, dev, target, request.read_only)).await??;
        match self.for_pod(epoch, host.at_target(target)).await?? {
            AtTarget::Device(found) if found == dev => {
                self.note_published(target).await;
                Ok(())
            }
            other => Err(PublishError::Occupied { target: target.to_owned(), found: format!("{other:?}") }),
        }
    }

    /// NodeUnpublishVolume: afterwards nothing is at the target.
    pub(super) async fn unpublish(&self, request: &Unpublish) -> Result<(), UnpublishError> {
        let until = Instant::now() + self.shared.times.turn;
        let _pass = self.gate.enter_by("NodeUnpublishVolume", until).await?;
        let (host, target) = (&self.shared.host, request.target.as_path());
        match self.unless_revoked(None, host.at_target(target)).await?? {
            AtTarget::Nothing => {
                self.note_unpublished(target).await;
                return Ok(());
            }
            AtTarget::Placeholder | AtTarget::Device(_) | AtTarget::Leftover(_) => {}
            AtTarget::Other(found) => {
                return Err(UnpublishError::Occupied { target: target.to_owned(), found });
            }
        }
        self.unless_revoked(None, host.unpublish(target)).await??;
        match self.unless_revoked(None, host.at_target(target)).await?? {
            AtTarget::Nothing => {
                self.note_unpublished(target).await;
                Ok(())
            }
            other => Err(UnpublishError::Left { target: target.to_owned(), found: format!("{other:?}") }),
        }
    }

    /// Waits for work at a pod's target, until the volume is revoked. Work that has begun ends by itself, and
    /// is checked when the kubelet asks again.
    async fn for_pod<T>(&self, epoch: Epoch, work: impl Future<Output = T>) -> Result<T, PublishError> {
        self.unless_revoked(Some(epoch), work).await.map_err(|revoked| StageError::from(revoked).into())
    }

    /// Waits, at most for `patience`, until the whole predicate holds under the grant. Nothing else happens
    /// to the volume while the pass lives.
    async fn usable(
        &self,
        what: &'static str,
        granted: &Granted,
        patience: Duration,
        link: Link,
    ) -> Result<(Pass, ReadyFacts), StageError> {
        let began = Instant::now();
        let until = began + patience;
        let mut changes = self.shared.board.changes();
        loop {
            changes.mark_unchanged();
            // An attach that is under way is what it waits for; that counts as in progress only once patience
            // has run out.
            let pass = self.gate.enter_by(what, until).await?;
            let waits = match self.stands(granted).await? {
                Ok(facts) => return Ok((pass, facts)),
                Err(waits) => waits,
            };
            drop(pass);
            let now = Instant::now();
            if now >= until {
                return Err(waits.error(granted, began.elapsed(), link));
            }
            tokio::select! {
                () = self.news(&mut changes) => {}
                () = sleep_until((now + self.shared.times.poll).min(until)) => {}
            }
        }
    }

    /// Waits until this volume's state changes.
    async fn news(&self, changes: &mut watch::Receiver<u64>) {
        let before = self.reported_state();
        while changes.changed().await.is_ok() {
            if self.reported_state() != before {
                return;
            }
        }
    }

    /// Judges once whether the device can be used under the grant, or what to wait for.
    async fn stands(&self, granted: &Granted) -> Result<Result<ReadyFacts, Waits>, StageError> {
        let entry = self.record().await?;
        let grant = match standing(entry.as_ref(), granted)? {
            Standing::Granted(grant) => grant,
            Standing::Wait(waits) => return Ok(Err(waits)),
        };
        let mut expectation = self.expectation(grant);
        let nguid = expectation.identity.and_then(|identity| identity.nguid);
        expectation.identity = Some(NamespaceIdentity { uuid: Some(granted.namespace), nguid });
        if let Some(why) = self.memory().registration.missing().filter(|_| grant.reserve.is_some()) {
            return Ok(Err(Waits::Device { clause: clause::RESERVATION.to_owned(), message: why }));
        }
        let check = self.check(&expectation, self.shared.times.check);
        match self.unless_revoked(Some(granted.epoch), check).await? {
            Ok(Ok(facts)) => Ok(Ok(facts)),
            Ok(Err(unready)) => {
                let clause = unready.clause.as_str().to_owned();
                Ok(Err(Waits::Device { clause, message: unready.facts }))
            }
            Err(error) => Ok(Err(Waits::Device { clause: clause::LOOK.to_owned(), message: error.line() })),
        }
    }
}

/// Compares the record with PublishContext.
fn standing<'a>(entry: Option<&'a LedgerEntry>, granted: &Granted) -> Result<Standing<'a>, StageError> {
    let wait = |seen: String| Ok(Standing::Wait(Waits::Grant { seen }));
    let Some(entry) = entry else { return wait("none".to_owned()) };
    if entry.epoch < granted.epoch {
        return wait(entry.epoch.to_string());
    }
    if entry.epoch > granted.epoch || entry.ended {
        let stale = Stale { highest: entry.epoch, ended: entry.ended };
        return Err(StageError::Over { asked: granted.epoch, stale });
    }
    let Some(grant) = &entry.grant else { return wait(entry.epoch.to_string()) };
    match grant.identity.uuid {
        Some(uuid) if uuid != granted.namespace => {
            Err(StageError::OtherNamespace { asked: granted.namespace, epoch: granted.epoch, granted: uuid })
        }
        _ => Ok(Standing::Granted(grant)),
    }
}

impl Waits {
    fn error(self, granted: &Granted, waited: Duration, link: Link) -> StageError {
        let session = match link {
            Link::Up => "up",
            Link::Down => "down",
        };
        match self {
            Self::Grant { seen } => StageError::NotGranted { asked: granted.epoch, seen, session, waited },
            Self::Device { clause, message } => StageError::NotReady { clause, message, waited },
        }
    }
}
