//! What the RDS is made to do, and what the controller is told that it was probed to do.
//!
//! In: a choice, such as a [`Rung`] of the ladder of fences. Out: arguments of rds-sim and of the controller, and the
//! file that `cleatctl rds probe` would have written. What always holds: both ends are of one choice, and a volume
//! made with its rung's parameters is fenced by nothing weaker, so a test fences on the rung that it means to.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use cleat_rig::Network;
use serde_json::{Value, json};

use super::{RDS_NUMBER, WorldOptions};

/// The key of all secrets in a test: 32 bytes.
const SECRET_KEY: &[u8; 32] = b"a key for tests, of thirty-two b";

/// What the target does, and is known to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetView {
    /// Portals, 1 or 2.
    pub portals: usize,
    /// Further arguments of rds-sim.
    pub rds_args: Vec<String>,
    /// What it was probed to do, but for its address; nothing was, and it keeps to lists, if `None`.
    pub abilities: Option<Value>,
}

impl Default for TargetView {
    /// Two portals, host lists by the operator's word, nothing probed.
    fn default() -> Self {
        Self { portals: Network::STORAGE.len(), rds_args: Vec::new(), abilities: None }
    }
}

impl TargetView {
    /// The same over so many portals, 1 or 2.
    #[must_use]
    pub fn over_portals(self, portals: usize) -> Self {
        Self { portals, ..self }
    }

    /// The portals, `ADDRESS:PORT`.
    pub(super) fn portal_names(&self) -> impl Iterator<Item = String> {
        Network::STORAGE
            .into_iter()
            .take(self.portals)
            .map(|network| format!("{}:4420", network.address(RDS_NUMBER)))
    }

    /// The controller's part; writes the files that it names.
    pub(super) fn controller_args(&self, folder: &Path) -> anyhow::Result<Vec<String>> {
        let mut words: Vec<String> =
            self.portal_names().flat_map(|portal| ["--rds-portal".to_owned(), portal]).collect();
        let Some(abilities) = &self.abilities else {
            words.extend(["--host-acl", "list"].map(str::to_owned));
            return Ok(words);
        };
        let mut abilities = abilities.clone();
        abilities["version"] = json!(1);
        abilities["rds"] = json!(format!("https://{}", Network::Management.address(RDS_NUMBER)));
        abilities["probed_at"] = json!("2026-11-20T10:00:00Z");
        let (file, key) = (folder.join("rds-abilities.json"), folder.join("secret-key"));
        fs::write(&file, abilities.to_string()).with_context(|| format!("write {}", file.display()))?;
        fs::write(&key, SECRET_KEY).with_context(|| format!("write {}", key.display()))?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))
            .with_context(|| format!("close {}", key.display()))?;
        words.extend(["--rds-abilities".to_owned(), file.display().to_string()]);
        words.extend(["--secret-key-file".to_owned(), key.display().to_string()]);
        Ok(words)
    }
}

/// A kernel's version, such as `(6, 18)`.
pub type KernelVersion = (u32, u32);

/// nvmet and the host have in-band authentication; Debian's cloud kernels before this one were built without.
const HAS_AUTHENTICATION: KernelVersion = (6, 12);
/// nvmet has reservations.
const HAS_RESERVATIONS: KernelVersion = (6, 13);
/// nvmet's preempt-and-abort waits for what it aborts: seen of this one, and of 6.18 that it does not.
const ABORT_WAITS: KernelVersion = (7, 2);

/// The kernels of a world's machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernels {
    /// Of the nodes.
    pub nodes: KernelVersion,
    /// Of the RDS.
    pub target: KernelVersion,
}

impl Kernels {
    /// Of the world that these options ask for.
    ///
    /// # Errors
    /// If a version is not two numbers with a dot between.
    pub fn of(options: &WorldOptions) -> anyhow::Result<Self> {
        let numbers = |version: &str| {
            let numbers = version.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            numbers.with_context(|| format!("kernel {version:?} is not a version such as 6.12"))
        };
        let nodes = numbers(&options.kernel)?;
        let target = options.rds_kernel.as_deref().map_or(Ok(nodes), numbers)?;
        Ok(Self { nodes, target })
    }

    /// Whether the target's preempt-and-abort answers only when what it aborts has landed; `None` where it has no
    /// reservations.
    #[must_use]
    pub fn abort_waits(self) -> Option<bool> {
        (self.target >= HAS_RESERVATIONS).then_some(self.target >= ABORT_WAITS)
    }
}

/// A rung of the ladder by which Cleat fences, and the target on which it is the one that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// A survivor preempts the node's registration; the host is off the list, its sessions cut.
    Reservation,
    /// The host is off the list, its sessions cut, the namespace taken down.
    Acl,
    /// The host is off the list, another secret is in force, the survivors know it, sessions are cut, the namespace
    /// taken down.
    Secret,
    /// The export is off until the node has shown that it holds nothing.
    ExportOff,
}

impl Rung {
    /// All of them, strongest first.
    pub const ALL: [Self; 4] = [Self::Reservation, Self::Acl, Self::Secret, Self::ExportOff];

    /// Its name, as `minFence` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Reservation => "reservation",
            Self::Acl => "acl",
            Self::Secret => "secret",
            Self::ExportOff => "export-off",
        }
    }

    /// Whether these kernels can do it.
    #[must_use]
    pub fn runs_on(self, kernels: Kernels) -> bool {
        match self {
            Self::Reservation => kernels.abort_waits().is_some(),
            Self::Secret => kernels.nodes >= HAS_AUTHENTICATION && kernels.target >= HAS_AUTHENTICATION,
            Self::Acl | Self::ExportOff => true,
        }
    }

    /// The `source` of the evidence that it ends with.
    #[must_use]
    pub fn source(self) -> &'static str {
        match self {
            Self::Reservation => "Reservation",
            Self::Acl | Self::Secret => "TargetCut",
            Self::ExportOff => "ExportOff",
        }
    }

    /// A target on which Cleat fences so, over two portals, whose stores can be told to hold writes.
    ///
    /// nvmet keeps one secret to a host, not one to a volume: with [`Rung::Secret`] a node may have one volume at a
    /// time.
    #[must_use]
    pub fn view(self, kernels: Kernels) -> TargetView {
        let host_acl = if self == Self::ExportOff { "ignored" } else { "list" };
        let reservations = match (self, kernels.abort_waits()) {
            (Self::Reservation, Some(true)) => "abort-waits",
            (Self::Reservation, Some(false)) => "held",
            _ => "none",
        };
        let secret = self == Self::Secret;
        let abilities = json!({
            "host_acl": host_acl, "export_cuts": true, "export_cut_ms": 100, "export_drains": "assumed",
            "uuid_kept": true, "password": secret, "in_band_auth": secret, "reservations": reservations,
            "grow_online": false,
        });
        let answers: &[&str] = match self {
            Self::Reservation => &["--reservations"],
            Self::Acl => &[],
            Self::Secret => &["--in-band-auth"],
            Self::ExportOff => &["--acl", "ignored"],
        };
        let rds_args = ["--backing", "held"].iter().chain(answers).map(|word| (*word).to_owned()).collect();
        TargetView { abilities: Some(abilities), rds_args, ..TargetView::default() }
    }

    /// CreateVolume's parameters of a volume that is to be fenced so, or stronger.
    #[must_use]
    pub fn volume_parameters(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Reservation => &[("minFence", "reservation")],
            Self::Acl => &[("minFence", "acl")],
            Self::Secret => &[("minFence", "secret")],
            Self::ExportOff => &[("minFence", "export-off")],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rung_needs_kernels_that_can_and_the_target_as_described() {
        let all = |nodes, target| {
            let kernels = Kernels { nodes, target };
            Rung::ALL.map(|rung| rung.runs_on(kernels))
        };
        assert_eq!(all((6, 1), (6, 1)), [false, true, false, true]);
        assert_eq!(all((6, 12), (6, 12)), [false, true, true, true]);
        assert_eq!(all((6, 1), (6, 18)), [true, true, false, true]);
        assert_eq!(all((7, 2), (7, 2)), [true; 4]);
        for (target, worth) in [((6, 18), "held"), ((7, 2), "abort-waits")] {
            let view = Rung::Reservation.view(Kernels { nodes: target, target });
            assert_eq!(view.abilities.expect("abilities")["reservations"], worth);
            assert!(view.rds_args.contains(&"--reservations".to_owned()));
        }
    }

    #[test]
    fn kernels_are_the_options() {
        let mut options = WorldOptions::on_kernel("6.18");
        assert_eq!(Kernels::of(&options).expect("6.18"), Kernels { nodes: (6, 18), target: (6, 18) });
        options.rds_kernel = Some("7.2".to_owned());
        assert_eq!(Kernels::of(&options).expect("7.2").target, (7, 2));
        options.kernel = "six".to_owned();
        assert!(Kernels::of(&options).is_err());
    }
}
