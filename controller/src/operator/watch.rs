//! One watcher: first everything as it is, then `synced`, then each change.
//!
//! What holds: the changes are listened to before everything is read, so that none falls between; a watcher that
//! fell too far behind is sent `synced` false and everything again; each volume or node is sent as it is when it is sent.

use cleat_core::{Core, NodeId, UnixMillis, VolumeId};
use cleat_proto::cleat::v1 as proto;
use proto::watch_event::Kind;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::info;
use crate::agents::Reports;
use crate::engine::{Engine, EngineEnded, WatchedChange};

pub(super) struct Watch {
    engine: Engine,
    reports: Reports,
    out: mpsc::Sender<Result<proto::WatchEvent, Status>>,
}

/// Why a watch is over.
enum Over {
    /// The watcher has gone.
    Gone,
    Failed(Status),
}

impl From<EngineEnded> for Over {
    fn from(ended: EngineEnded) -> Self {
        Self::Failed(ended.into())
    }
}

impl Watch {
    pub(super) fn new(
        engine: Engine,
        reports: Reports,
        out: mpsc::Sender<Result<proto::WatchEvent, Status>>,
    ) -> Self {
        Self { engine, reports, out }
    }

    pub(super) async fn run(self, stop: CancellationToken) {
        let over = tokio::select! {
            () = stop.cancelled() => Over::Failed(Status::unavailable("the controller is stopping")),
            () = self.out.closed() => Over::Gone,
            over = self.watch() => over,
        };
        if let Over::Failed(status) = over {
            // A watcher that does not read gets no reason.
            let _ = self.out.try_send(Err(status));
        }
    }

    async fn watch(&self) -> Over {
        loop {
            let mut changes = self.engine.changes();
            match self.sync().await {
                Ok(()) => {}
                Err(over) => return over,
            }
            if let Err(over) = self.follow(&mut changes).await {
                return over;
            }
        }
    }

    /// Sends everything.
    async fn sync(&self) -> Result<(), Over> {
        let look = |core: &Core, now: UnixMillis| {
            (info::volumes(core, now), info::nodes(core, now), info::migrations(core))
        };
        let (volumes, nodes, migrations) = self.engine.view(look).await?;
        for volume in volumes {
            self.send(Kind::Volume(info::with_reports(volume, &self.reports))).await?;
        }
        for node in nodes {
            self.send(Kind::Node(info::node_with_report(node, &self.reports))).await?;
        }
        for migration in migrations {
            self.send(Kind::Migration(migration)).await?;
        }
        self.send(Kind::Synced(true)).await
    }

    /// Sends changes. `Ok` if too many were missed.
    async fn follow(&self, changes: &mut broadcast::Receiver<WatchedChange>) -> Result<(), Over> {
        loop {
            match changes.recv().await {
                Ok(WatchedChange::Volume(id)) => self.volume(id).await?,
                Ok(WatchedChange::Node(id)) => self.node(id).await?,
                Ok(WatchedChange::Notice(notice)) => {
                    self.send(Kind::Notice(info::notice(&notice))).await?;
                    if let (Some(migration), Some(volume)) = (&notice.migration, &notice.volume) {
                        self.send(Kind::Migration(info::migration(volume, migration))).await?;
                    }
                }
                Err(RecvError::Lagged(missed)) => {
                    tracing::debug!(missed, "a watcher fell behind: sending everything again");
                    return self.send(Kind::Synced(false)).await;
                }
                Err(RecvError::Closed) => return Err(EngineEnded.into()),
            }
        }
    }

    async fn volume(&self, id: VolumeId) -> Result<(), Over> {
        let name = id.to_string();
        let now = self.engine.view_of(id.clone(), move |core, now| info::volume(core, &id, now)).await?;
        self.send(match now {
            Some(volume) => Kind::Volume(info::with_reports(volume, &self.reports)),
            None => Kind::VolumeGone(name),
        })
        .await
    }

    async fn node(&self, id: NodeId) -> Result<(), Over> {
        let now = self.engine.view(move |core, now| info::node(core, &id, now));
        match now.await? {
            Some(node) => self.send(Kind::Node(info::node_with_report(node, &self.reports))).await,
            // A node that was refused; there is nothing to show.
            None => Ok(()),
        }
    }

    async fn send(&self, kind: Kind) -> Result<(), Over> {
        self.out.send(Ok(proto::WatchEvent { kind: Some(kind) })).await.map_err(|_| Over::Gone)
    }
}
