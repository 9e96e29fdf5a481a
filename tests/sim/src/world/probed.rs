//! What the controller was told that the target can do: one of the profiles that real targets have.
//!
//! It is the truth unless something is planted.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use cleat_core::{MinFence, ReservationAbility, TargetAbilities};
use cleat_rds::secret::{Keys, MasterKey};
use cleat_world::target::Abilities;

use super::Planted;
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
    /// The same, with an export that does not wait: the bound.
    HeldWithoutDrain,
}

/// How often each is met, in a hundred seeds. Those with more rungs have more that can go wrong.
const WEIGHTS: [(Probed, u64); 9] = [
    (Probed::Nothing, 8),
    (Probed::List, 18),
    (Probed::ListWithoutDrain, 9),
    (Probed::Secrets, 16),
    (Probed::ExportOnly, 12),
    (Probed::Abort, 13),
    (Probed::AbortWithoutDrain, 8),
    (Probed::Held, 10),
    (Probed::HeldWithoutDrain, 6),
];

impl Probed {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::List => "list",
            Self::ListWithoutDrain => "list, no drain",
            Self::Secrets => "secrets",
            Self::ExportOnly => "export only",
            Self::Abort => "reservations, abort waits",
            Self::AbortWithoutDrain => "reservations, abort waits, no drain",
            Self::Held => "reservations held",
            Self::HeldWithoutDrain => "reservations held, no drain",
        }
    }

    /// By chance, or the one that a planted fault needs.
    pub(super) fn of(chance: &mut Chance, planted: Option<Planted>) -> Self {
        let mut at = chance.below(WEIGHTS.iter().map(|(_, weight)| weight).sum());
        let by_chance = WEIGHTS.iter().find(|(_, weight)| {
            let found = at < *weight;
            at = at.saturating_sub(*weight);
            found
        });
        match planted {
            Some(
                Planted::AclIgnored | Planted::DrainPretended | Planted::CutPretended | Planted::LandsTooLate,
            ) => Self::List,
            Some(Planted::AbortPretended) => Self::AbortWithoutDrain,
            Some(Planted::SecretIgnored) => Self::Secrets,
            // Nothing but the bound tells when a write that was cut off has landed.
            Some(Planted::HeldTooLong) => Self::ListWithoutDrain,
            // Whom the word wrongly calls gone is on no list to be kept off it.
            Some(Planted::WordFalse) => Self::ExportOnly,
            // Reservations are forgotten at a restart anyway: what is left is the list.
            Some(Planted::RestartForgets) => Self::Abort,
            _ => by_chance.map_or(Self::List, |(probed, _)| *probed),
        }
    }

    /// As the controller is told.
    #[must_use]
    pub fn target(self) -> TargetAbilities {
        let exports = !matches!(self, Self::Nothing);
        TargetAbilities {
            probed: true,
            acl: !matches!(self, Self::Secrets | Self::ExportOnly),
            export_cuts: exports,
            export_drains: exports && !self.lacks_drain(),
            secret: self == Self::Secrets,
            reservations: match self {
                Self::Abort | Self::AbortWithoutDrain => ReservationAbility::AbortWaits,
                Self::Held | Self::HeldWithoutDrain => ReservationAbility::Held,
                _ => ReservationAbility::None,
            },
        }
    }

    /// Whether taking the export away waits for nothing, and is known not to.
    fn lacks_drain(self) -> bool {
        matches!(self, Self::ListWithoutDrain | Self::AbortWithoutDrain | Self::HeldWithoutDrain)
    }

    /// A volume's least fence: mostly the least there is, else one that this target can do by itself.
    pub(super) fn min_fence(self, chance: &mut Chance) -> MinFence {
        match self {
            _ if chance.percent(75) => MinFence::NodeGone,
            Self::Nothing | Self::ExportOnly => MinFence::NodeGone,
            Self::Secrets => MinFence::Secret,
            _ => MinFence::Acl,
        }
    }

    /// As the target is.
    pub(super) fn true_abilities(self, planted: Option<Planted>) -> Abilities {
        let told = self.target();
        Abilities {
            acl: told.acl && planted != Some(Planted::AclIgnored),
            cuts: planted != Some(Planted::CutPretended),
            drains: !self.lacks_drain() && planted != Some(Planted::DrainPretended),
            secret: told.secret && planted != Some(Planted::SecretIgnored),
            reservations: told.reservations != ReservationAbility::None,
            abort_waits: told.reservations == ReservationAbility::AbortWaits
                && planted != Some(Planted::AbortPretended),
        }
    }

    /// The key of the secrets, where there are any.
    ///
    /// # Errors
    /// If its file cannot be written or read.
    pub fn key(self) -> Result<Option<Arc<Keys>>, Box<dyn std::error::Error + Send + Sync>> {
        if self != Self::Secrets {
            return Ok(None);
        }
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(&[7; 32])?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o600))?;
        Ok(Some(Arc::new(Keys::new(MasterKey::load(file.path())?, None))))
    }
}
