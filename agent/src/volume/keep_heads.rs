//! A head stays for a while without a path, so that a device that comes back is the one that its user has open.
//!
//! Comes in: a device that was just proven, or is used as it is; the end of a grant. Goes out: for how long the kernel
//! keeps the head without a path.
//!
//! How long (`Times::stay`, docs/decisions/0012) is the operator's to say: writes wait for that long before they fail,
//! and a device that has lost its last path is not absent before.
//!
//! Always holds: a head stays only under a grant that stands. What ends a grant takes that back before it deletes
//! anything, and whoever sets it holds the volume's gate, so that no end can be under way.

use std::time::Duration;

use cleat_host::DevT;
use cleat_host::sysfs::{NamespaceKind, SubsystemView};

use crate::volume::Volume;
use crate::volume::host::Host;

/// Heads that stay for a while without a path.
#[derive(Debug, Default)]
pub(super) struct Staying(Vec<DevT>);

impl<H: Host> Volume<H> {
    /// Has the heads of a granted volume stay without a path for a while. The caller holds the gate.
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
        // Tried once for each device: it can be done without.
        self.memory().staying.0 = heads;
    }

    /// The same for a volume that this process has found granted; not while an operation has it.
    pub(super) async fn let_found_heads_stay(&self, view: &SubsystemView) {
        if heads(view).eq(self.memory().staying.0.iter().copied()) {
            return;
        }
        let Some(_pass) = self.gate.try_enter("setting how long the device stays without a path") else {
            return;
        };
        // Its grant may have ended since it was looked at, and the number may be another device's.
        if self.granted().await.is_some()
            && let Ok(view) = self.observe().await
        {
            self.let_heads_stay(&view).await;
        }
    }

    /// Has heads go with their last path; for how long one may be there yet, which had lost its last path before:
    /// nothing cuts that short. Where it fails the controllers are deleted all the same, and a head that stays keeps
    /// the volume from being absent.
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
