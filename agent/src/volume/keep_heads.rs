//! A head stays for a while without a path, so that a device that comes back is the one that its user has
//! open.
//!
//! Comes in: a device that was just proven, or is used as it is; the end of a grant. Goes out: how long the
//! kernel keeps the head without a path.
//!
//! The operator chooses how long (`Times::stay`, docs/decisions/0012): writes wait for that long before they
//! fail, and a device that has lost its last path is not absent before.
//!
//! Always holds: a head stays only under a grant that is in force. The end of a grant sets the time to zero
//! before it deletes anything. The time is set only under the volume's gate, so that no end can be under way.

use std::time::Duration;

use cleat_host::DevT;
use cleat_host::sysfs::{NamespaceKind, SubsystemView};

use crate::volume::Volume;
use crate::volume::host::Host;

/// Heads that this process has set to stay for a while without a path.
#[derive(Debug, Default)]
pub(super) struct Staying(Vec<DevT>);

impl<H: Host> Volume<H> {
    /// Sets the heads of a granted volume to stay without a path for a while. The caller has the gate.
    pub(super) async fn let_heads_stay(&self, view: &SubsystemView) {
        let (heads, stay): (Vec<DevT>, _) = (heads(view).collect(), self.shared.times.stay);
        if heads == self.memory().staying.0 {
            return;
        }
        for head in &heads {
            if let Err(error) = self.shared.host.stay_without_paths(*head, stay).await {
                tracing::warn!(volume = %self.id, device = %head, error = error.line(),
                    "a device that loses its last path will not come back as the same one");
            }
        }
        // Tried once for each device: it is not essential.
        self.memory().staying.0 = heads;
    }

    /// The same for a volume that this process found granted; not while an operation has it.
    pub(super) async fn let_found_heads_stay(&self, view: &SubsystemView) {
        if heads(view).eq(self.memory().staying.0.iter().copied()) {
            return;
        }
        let Some(_pass) = self.gate.try_enter("setting how long the device stays without a path") else {
            return;
        };
        // Its grant may have ended since the observation, and the number may be another device's.
        if self.granted().await.is_some()
            && let Ok(view) = self.observe().await
        {
            self.let_heads_stay(&view).await;
        }
    }

    /// Sets heads to go with their last path. Returns how long one may still stay that had already lost its
    /// last path: nothing shortens that. Where this fails the controllers are deleted all the same, and a
    /// head that stays keeps the volume from being absent.
    pub(super) async fn let_heads_go(&self, view: &SubsystemView) -> Duration {
        self.memory().staying.0.clear();
        let mut yet = Duration::ZERO;
        for namespace in &view.namespaces {
            match self.shared.host.stay_without_paths(namespace.dev, Duration::ZERO).await {
                // An end that was tried before has set it to zero.
                Ok(Some(before)) => yet = yet.max(before).max(self.shared.times.stay),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(
                        volume = %self.id, device = namespace.name, error = error.line(),
                        "deleting the controllers anyway"
                    );
                }
            }
        }
        yet
    }
}

fn heads(view: &SubsystemView) -> impl Iterator<Item = DevT> {
    let head = |kind: &NamespaceKind| matches!(kind, NamespaceKind::Head { .. });
    view.namespaces.iter().filter(move |one| head(&one.kind)).map(|one| one.dev)
}
