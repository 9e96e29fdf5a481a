//! All volumes of this node.
//!
//! Comes in: calls of the kubelet, readings of the kernel, directives (`execute` carries them out). Goes out:
//! states for the board.
//!
//! Always holds: every operation runs in a task of its own. A caller that goes away neither stops nor repeats
//! it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cleat_host::sysfs::{SubsystemView, SysfsError, Topology};
use cleat_host::{ControllerName, DevT, SubsystemNqn};
use cleat_runtime::exit::Causes;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::link::Link;
use crate::metrics;
use crate::name::VolumeId;
use crate::volume::carry_over::Noting;
use crate::volume::count::{CountRequest, Counted};
use crate::volume::host::Host;
use crate::volume::outcome::Results;
use crate::volume::publish::request::{Publish, Stage, Unpublish, Unstage};
use crate::volume::state::VolumeState;
use crate::volume::{
    Observation, PublishError, StageError, UnpublishError, UnstageError, Volume, VolumeContext,
};

/// All volumes of this node. Cheap to clone.
#[derive(Debug)]
pub struct Fleet<H> {
    inner: Arc<Inner<H>>,
}

impl<H> Clone for Fleet<H> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

#[derive(Debug)]
struct Inner<H> {
    shared: Arc<VolumeContext<H>>,
    volumes: Mutex<BTreeMap<VolumeId, Arc<Volume<H>>>>,
    results: Arc<dyn Results>,
    link: watch::Receiver<Link>,
    tasks: TaskTracker,
    /// Whether the volumes of the ledger have been listed.
    listed: AtomicBool,
    /// What is noted for the process after this one.
    noting: tokio::sync::Mutex<Noting>,
}

impl<H: Host> Fleet<H> {
    /// A fleet without any volume yet.
    pub fn new(
        shared: Arc<VolumeContext<H>>,
        results: Arc<dyn Results>,
        link: watch::Receiver<Link>,
    ) -> Self {
        let (volumes, tasks) = (Mutex::default(), TaskTracker::new());
        Self {
            inner: Arc::new(Inner {
                shared,
                volumes,
                results,
                link,
                tasks,
                listed: AtomicBool::new(false),
                noting: Default::default(),
            }),
        }
    }

    /// The context that all volumes share.
    pub fn shared(&self) -> &Arc<VolumeContext<H>> {
        &self.inner.shared
    }

    /// Whether a session with the controller is up.
    pub fn link(&self) -> Link {
        *self.inner.link.borrow()
    }

    /// The session's state at any later moment.
    pub(super) fn link_now(&self) -> &watch::Receiver<Link> {
        &self.inner.link
    }

    /// Learns of every volume in the ledger. Where the ledger cannot be listed, the sweeps try again;
    /// meanwhile only what the kernel has is reported. A damaged record is logged, and refused when it is
    /// needed.
    pub fn load(&self) {
        match self.inner.shared.ledger.volumes() {
            Ok(volumes) => {
                volumes.iter().for_each(|volume| drop(self.volume(volume)));
                self.inner.listed.store(true, Ordering::Release);
            }
            Err(error) => {
                metrics::ledger_error();
                tracing::error!(error = %Causes(&error), "cannot read the ledger; volumes that only it has \
                                                          are not reported");
            }
        }
    }

    /// Waits until no operation is running, at most for `patience`.
    pub async fn settle(&self, patience: Duration) {
        self.inner.tasks.close();
        if tokio::time::timeout(patience, self.inner.tasks.wait()).await.is_err() {
            tracing::warn!(
                operations = self.inner.tasks.len(),
                "operations are still running; the kernel finishes what it was asked"
            );
        }
    }

    pub(super) fn noting(&self) -> &tokio::sync::Mutex<Noting> {
        &self.inner.noting
    }

    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.inner.tasks
    }

    pub(super) fn results(&self) -> &dyn Results {
        self.inner.results.as_ref()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Arc<Volume<H>>>> {
        self.inner.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn volume(&self, id: &VolumeId) -> Arc<Volume<H>> {
        let mut volumes = self.lock();
        let new = || Arc::new(Volume::new(id.clone(), self.inner.shared.clone()));
        volumes.entry(id.clone()).or_insert_with(new).clone()
    }

    pub(super) fn volumes(&self) -> Vec<Arc<Volume<H>>> {
        self.lock().values().cloned().collect()
    }

    /// Reads the kernel and puts the state of every volume on the board.
    ///
    /// # Errors
    /// If sysfs cannot be read.
    pub async fn sweep(&self) -> Result<(), SysfsError> {
        self.look_at_all().await.map(drop)
    }

    /// The same; gives what was read.
    pub(super) async fn look_at_all(&self) -> Result<Topology, SysfsError> {
        if !self.inner.listed.load(Ordering::Acquire) {
            self.load();
        }
        // Before the reading: a connect that ends in the middle of it may or may not be in it.
        let connecting: BTreeSet<VolumeId> = self
            .volumes()
            .iter()
            .filter(|volume| volume.connects.are_running())
            .map(|volume| volume.id.clone())
            .collect();
        let disconnects = &self.inner.shared.disconnects;
        let mut began = disconnects.reading_begins();
        let (mut number, mut topology) = self.topology().await?;
        if !topology.unreadable.is_empty() {
            // Anything that could not be read makes every volume doubtful, so it is read once more.
            began = disconnects.reading_begins();
            (number, topology) = self.topology().await?;
        }
        let ended = self.inner.shared.observations.next();
        disconnects.belong(began, &topology.controllers);
        for id in self.in_kernel(&topology) {
            self.volume(&id);
        }
        let volumes = self.volumes();
        // In parallel: each waits for its own record where the disk does not answer.
        join_all(volumes.iter().map(|volume| volume.known_before_report())).await;
        for volume in volumes {
            let view = Arc::new(topology.view(&volume.subsystem));
            let connecting = connecting.contains(&volume.id);
            let observation = Observation { number, ended, of_all: true, view, connecting };
            if volume.is_blank(&observation) {
                self.forget(volume);
            } else {
                volume.report(&observation);
            }
        }
        Ok(topology)
    }

    /// Reads the kernel again and returns the state of every volume.
    ///
    /// # Errors
    /// If sysfs cannot be read.
    pub async fn inventory(&self) -> Result<Vec<VolumeState>, SysfsError> {
        self.sweep().await?;
        Ok(self.inner.shared.board.all())
    }

    /// All of sysfs, and the number of the observation.
    async fn topology(&self) -> Result<(u64, Topology), SysfsError> {
        let shared = &self.inner.shared;
        let number = shared.observations.next();
        let topology = shared.host.topology().await.inspect_err(|_| metrics::observation_error())?;
        Ok((number, topology))
    }

    /// Something has happened to a controller: every volume that has it among its paths reads its
    /// registration again.
    pub(super) fn doubt_registration(&self, controller: &str) {
        if controller.parse::<ControllerName>().is_err() {
            return;
        }
        let has = |state: &VolumeState| state.paths.iter().any(|path| path.controller == controller);
        for volume in self.volumes() {
            if volume.reported_state().as_ref().is_some_and(has) {
                volume.doubt_registration();
            }
        }
    }

    /// The devices of these volumes, as they were seen last.
    pub(super) fn devices_of(&self, ids: &BTreeSet<VolumeId>) -> BTreeSet<DevT> {
        let known: Vec<_> = ids.iter().filter_map(|id| self.lock().get(id).cloned()).collect();
        known.iter().filter_map(|volume| volume.memory().dead.number()).collect()
    }

    /// Removes a volume that neither the kernel nor the ledger has: somebody only asked about it.
    fn forget(&self, volume: Arc<Volume<H>>) {
        let mut volumes = self.lock();
        // Two references: the table's and ours. Another one means that somebody is about to use it.
        if Arc::strong_count(&volume) == 2 {
            volumes.remove(&volume.id);
            self.inner.shared.board.remove(&volume.id);
        }
    }

    fn in_kernel(&self, topology: &Topology) -> BTreeSet<VolumeId> {
        let ours = |nqn: &&str| {
            let nqn = SubsystemNqn::parse(nqn).ok()?;
            self.inner.shared.identity.prefix.volume(&nqn)
        };
        topology.subsystem_nqns().iter().filter_map(ours).collect()
    }

    /// Carries out NodeStageVolume: waits until the device is proven usable under the request's grant.
    ///
    /// # Errors
    /// [`StageError`].
    pub async fn stage(&self, request: Stage) -> Result<(), StageError> {
        let (volume, link) = (self.volume(&request.volume), self.link());
        let epoch = request.granted.epoch;
        let span = tracing::info_span!("NodeStageVolume", volume = %request.volume, %epoch);
        let work = async move { volume.stage(&request, link).await };
        self.detached(work.instrument(span)).await.unwrap_or(Err(StageError::Lost))
    }

    /// Carries out NodeUnstageVolume: succeeds once the volume is published nowhere.
    ///
    /// # Errors
    /// [`UnstageError`].
    pub async fn unstage(&self, request: Unstage) -> Result<(), UnstageError> {
        let volume = self.volume(&request.volume);
        let span = tracing::info_span!("NodeUnstageVolume", volume = %request.volume);
        let work = async move { volume.unstage().await };
        self.detached(work.instrument(span)).await.unwrap_or(Err(UnstageError::Lost))
    }

    /// Carries out NodePublishVolume: the proven device appears at the target.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn publish(&self, request: Publish) -> Result<(), PublishError> {
        let (volume, link) = (self.volume(&request.volume), self.link());
        let (epoch, target) = (request.granted.epoch, request.target.display());
        let span = tracing::info_span!("NodePublishVolume", volume = %request.volume, %epoch, %target);
        let work = async move { volume.publish(&request, link).await };
        self.detached(work.instrument(span)).await.unwrap_or(Err(StageError::Lost.into()))
    }

    /// Carries out NodeUnpublishVolume: the device disappears from the target.
    ///
    /// # Errors
    /// [`UnpublishError`].
    pub async fn unpublish(&self, request: Unpublish) -> Result<(), UnpublishError> {
        let volume = self.volume(&request.volume);
        let target = request.target.display();
        let span = tracing::info_span!("NodeUnpublishVolume", volume = %request.volume, %target);
        let work = async move { volume.unpublish(&request).await };
        self.detached(work.instrument(span)).await.unwrap_or(Err(UnpublishError::Lost))
    }

    /// Counts the writes of a volume that this node has, to the end of the time that is asked for.
    pub fn count(
        &self,
        asked: CountRequest,
        report: impl FnMut(Counted) + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let volume = self.lock().get(&asked.volume).cloned();
        async move {
            if let Some(volume) = volume {
                volume.count_writes(asked.epoch, asked.pace, report).await;
            }
        }
    }

    /// Runs work in a task of its own: a caller's deadline drops the future that waits, not the work. `None`
    /// if the work panicked.
    async fn detached<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        self.inner.tasks.spawn(work).await.ok()
    }
}

impl<H: Host> Volume<H> {
    /// Whether there is nothing to report of the volume.
    fn is_blank(&self, view: &SubsystemView) -> bool {
        let unrecorded = self.memory().record.is_known_to_be_missing();
        unrecorded
            && view.controllers.is_empty()
            && view.namespaces.is_empty()
            && self.gate.holder().is_none()
            && self.arrivals.newest_attach().is_none()
            && !self.connects.are_running()
    }

    /// Reads the record where it has not been read: a report without it would be incomplete.
    async fn known_before_report(&self) {
        let unknown = self.memory().record.is_unread();
        if unknown
            && let Some(_pass) = self.gate.try_enter("reading of the ledger")
            && let Err(error) = self.record().await
        {
            tracing::error!(volume = %self.id, error = %Causes(&error), "grants for this volume are refused");
        }
    }
}
