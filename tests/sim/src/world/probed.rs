//! What the controller was told that the target can do: one of the profiles that real targets have.
//!
//! It is the truth unless something is planted.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use cleat_controller::secret::MasterKey;
use cleat_core::{Reservations, Target};

use super::Planted;
use super::target::Abilities;
use crate::chance::Chance;

/// A profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    /// A list of hosts, and nothing else is known: no fence but a node's own proof.
    Nothing,
    /// A list, and an export that cuts and waits.
    List,
    /// A list, and an export that cuts and does not wait: the bound.
    ListWithoutDrain,
    /// No list but secrets.
    Secrets,
    /// Only the export.
    ExportOnly,
    /// Reservations whose abort waits, and a list.
    Abort,
    /// The same, with an export that does not wait: only the abort does.
    AbortWithoutDrain,
    /// Reservations whose abort does not wait, and a list.
    Held,
}

impl Probed {
    /// By chance, or the one that a planted fault needs.
    pub(super) fn of(chance: &mut Chance, planted: Option<Planted>) -> Self {
        use Probed::{Abort, AbortWithoutDrain, ExportOnly, Held, List, ListWithoutDrain, Nothing, Secrets};
        let by_chance = [
            Nothing,
            List,
            List,
            List,
            ListWithoutDrain,
            Secrets,
            ExportOnly,
            Abort,
            AbortWithoutDrain,
            Held,
        ][chance.index(10)];
        match planted {
            Some(Planted::AclIgnored | Planted::DrainPretended | Planted::CutPretended) => List,
            Some(Planted::AbortPretended) => AbortWithoutDrain,
            _ => by_chance,
        }
    }

    /// As the controller is told.
    #[must_use]
    pub fn target(self) -> Target {
        let exports = !matches!(self, Self::Nothing);
        Target {
            acl: !matches!(self, Self::Secrets | Self::ExportOnly),
            export_cuts: exports,
            export_drains: exports && !self.lacks_drain(),
            secret: self == Self::Secrets,
            reservations: match self {
                Self::Abort | Self::AbortWithoutDrain => Reservations::AbortWaits,
                Self::Held => Reservations::Held,
                _ => Reservations::None,
            },
        }
    }

    /// Whether taking the export away waits for nothing, and is known not to.
    fn lacks_drain(self) -> bool {
        matches!(self, Self::ListWithoutDrain | Self::AbortWithoutDrain)
    }

    /// As the target is.
    pub(super) fn true_abilities(self, planted: Option<Planted>) -> Abilities {
        let told = self.target();
        Abilities {
            acl: told.acl && planted != Some(Planted::AclIgnored),
            cuts: planted != Some(Planted::CutPretended),
            drains: !self.lacks_drain() && planted != Some(Planted::DrainPretended),
            asks_secret: told.secret,
            reservations: told.reservations != Reservations::None,
            abort_waits: told.reservations == Reservations::AbortWaits
                && planted != Some(Planted::AbortPretended),
        }
    }

    /// The key of the secrets, where there are any.
    ///
    /// # Errors
    /// If its file cannot be written or read.
    pub fn key(self) -> Result<Option<Arc<MasterKey>>, Box<dyn std::error::Error>> {
        if self != Self::Secrets {
            return Ok(None);
        }
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(&[7; 32])?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o600))?;
        Ok(Some(Arc::new(MasterKey::load(file.path())?)))
    }
}
