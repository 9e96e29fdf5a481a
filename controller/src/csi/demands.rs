//! What a volume's owner demands of it: the parameters of a StorageClass, the volume's context (a PersistentVolume's
//! attributes), and what the volume's mark at the RDS keeps.
//!
//! In comes one of these forms, out goes another, or a spec. What always holds: where a caller can be answered, a value that
//! cannot be read is refused with the field, the value and the rule; where nobody can, it counts as the strongest demand.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

use cleat_core::{MinFence, VolumeSpec};
use cleat_ids::{
    MIGRATION_TIMEOUT_KEY, MIGRATION_TIMEOUT_PARAMETER, MIN_FENCE_KEY, MIN_FENCE_PARAMETER,
    REQUIRE_MIGRATION_KEY, REQUIRE_MIGRATION_PARAMETER,
};
use cleat_rds::VolumeParameters;

use super::status::Invalid;

/// All fences that a volume may ask for, weakest first.
const MIN_FENCES: [MinFence; 5] =
    [MinFence::NodeGone, MinFence::ExportOff, MinFence::Acl, MinFence::Secret, MinFence::Reservation];
/// How many seconds a live migration may be given.
const MIGRATION_TIMEOUT_S: RangeInclusive<u64> = 30..=3600;
/// Parameters that the provisioner adds by itself, and that say nothing to us.
const SIDECAR_PARAMETERS: &str = "csi.storage.k8s.io/";
/// Values in error messages are cut to this.
const SHOWN: usize = 300;

/// What each demand is called.
struct Names {
    min_fence: &'static str,
    migration_timeout: &'static str,
    require_migration: &'static str,
}

/// As parameters.
const PARAMETERS: Names = Names {
    min_fence: MIN_FENCE_PARAMETER,
    migration_timeout: MIGRATION_TIMEOUT_PARAMETER,
    require_migration: REQUIRE_MIGRATION_PARAMETER,
};
/// In a volume's context.
const KEYS: Names = Names {
    min_fence: MIN_FENCE_KEY,
    migration_timeout: MIGRATION_TIMEOUT_KEY,
    require_migration: REQUIRE_MIGRATION_KEY,
};

/// What the owner of a volume demands, where he has said it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct VolumeDemands {
    /// The weakest fence that suffices.
    pub(crate) min_fence: Option<MinFence>,
    /// How many seconds a live migration is to take at most.
    pub(crate) migration_timeout_s: Option<u64>,
    /// A second node is to get it only for a live migration that is known.
    pub(crate) require_migration: bool,
}

impl VolumeDemands {
    /// Checks that we know every parameter, and can read what it says.
    pub(super) fn of_parameters(field: &str, parameters: &HashMap<String, String>) -> Result<Self, Invalid> {
        let Names { min_fence, migration_timeout, require_migration } = PARAMETERS;
        let ours = [min_fence, migration_timeout, require_migration];
        let known = |key: &&String| ours.contains(&key.as_str()) || key.starts_with(SIDECAR_PARAMETERS);
        if let Some(key) = parameters.keys().filter(|key| !known(key)).min() {
            return Err(Invalid::new(format!("{field}[{key:?}]"), "not a parameter that this driver knows"));
        }
        Self::read(&PARAMETERS, field, parameters)
    }

    /// Checks that parameters demand nothing for which there is nobody to ask.
    pub(super) fn kept_to(self, field: &str, in_cluster: bool) -> Result<Self, Invalid> {
        if self.require_migration && !in_cluster {
            return Err(Invalid::new(
                format!("{field}[{REQUIRE_MIGRATION_PARAMETER:?}]"),
                "true is for a controller in a cluster (--store kubernetes): outside of one nobody says who migrates, so no \
                 second node could ever have the volume. Leave it out, or say false.",
            ));
        }
        Ok(self)
    }

    /// What a volume's context says. Nothing where it was made before there was such a thing, or by hand.
    pub(super) fn of_context(field: &str, context: &HashMap<String, String>) -> Result<Self, Invalid> {
        Self::read(&KEYS, field, context)
    }

    fn read(names: &Names, field: &str, values: &HashMap<String, String>) -> Result<Self, Invalid> {
        let fences = format!("none of {}", MIN_FENCES.map(MinFence::name).join(", "));
        let range = MIGRATION_TIMEOUT_S;
        let seconds = format!("not a number of seconds from {} to {}", range.start(), range.end());
        let value = |name: &'static str| Value { field, name, text: values.get(name).map(String::as_str) };
        Ok(Self {
            min_fence: value(names.min_fence).read(fence_named, &fences)?,
            migration_timeout_s: value(names.migration_timeout).read(timeout_named, &seconds)?,
            require_migration: value(names.require_migration)
                .read(truth_named, "neither true nor false")?
                .unwrap_or_default(),
        })
    }

    /// What a PersistentVolume's attributes say, where nobody can be answered; `None`: there is no such object. On any doubt
    /// the strongest fence, a migration that is known, and the usual time.
    pub(crate) fn presumed(attributes: Option<&BTreeMap<String, String>>) -> Self {
        let strongest = MinFence::Reservation;
        let Some(attributes) = attributes else {
            return Self { min_fence: Some(strongest), migration_timeout_s: None, require_migration: true };
        };
        let text = |key: &str| attributes.get(key).map(String::as_str);
        Self {
            min_fence: text(KEYS.min_fence).map(|name| fence_named(name).unwrap_or(strongest)),
            migration_timeout_s: text(KEYS.migration_timeout).and_then(timeout_named),
            require_migration: text(KEYS.require_migration)
                .is_some_and(|text| truth_named(text) != Some(false)),
        }
    }

    /// As the volume's mark keeps them.
    pub(super) fn at_the_rds(&self) -> VolumeParameters {
        VolumeParameters {
            min_fence: self.min_fence.map(|fence| fence.name().to_owned()),
            migration_timeout: self.migration_timeout_s.map(|seconds| seconds.to_string()),
            require_migration: self.require_migration.then(|| true.to_string()),
        }
    }

    /// The weakest fence that suffices.
    pub(crate) fn min_fence(&self) -> MinFence {
        self.min_fence.unwrap_or_default()
    }

    /// How long a live migration is to take at most.
    pub(crate) fn migration_timeout_ms(&self) -> u64 {
        self.migration_timeout_s.map_or(VolumeSpec::DEFAULT_MIGRATION_TIMEOUT_MS, |seconds| seconds * 1000)
    }

    /// The volume, with what is demanded of it.
    pub(super) fn put_into(&self, spec: VolumeSpec) -> VolumeSpec {
        VolumeSpec {
            min_fence: self.min_fence(),
            migration_timeout_ms: self.migration_timeout_ms(),
            require_migration: self.require_migration,
            ..spec
        }
    }
}

/// A value of one field of a request, where it was given.
struct Value<'a> {
    field: &'a str,
    name: &'static str,
    text: Option<&'a str>,
}

impl Value<'_> {
    fn read<T>(self, read: fn(&str) -> Option<T>, rule: &str) -> Result<Option<T>, Invalid> {
        let Self { field, name, text } = self;
        let Some(text) = text else { return Ok(None) };
        let invalid = || Invalid::new(format!("{field}[{name:?}]"), format!("{:?} is {rule}", shown(text)));
        read(text).map(Some).ok_or_else(invalid)
    }
}

/// The context of a volume that was made with these.
pub(super) fn volume_context(made_with: &VolumeParameters) -> HashMap<String, String> {
    let VolumeParameters { min_fence, migration_timeout, require_migration } = made_with.clone();
    let all = [
        (KEYS.min_fence, min_fence),
        (KEYS.migration_timeout, migration_timeout),
        (KEYS.require_migration, require_migration),
    ];
    all.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

fn fence_named(name: &str) -> Option<MinFence> {
    MIN_FENCES.into_iter().find(|fence| fence.name() == name)
}

fn timeout_named(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse::<u64>().ok().filter(|seconds| digits && MIGRATION_TIMEOUT_S.contains(seconds))
}

fn truth_named(text: &str) -> Option<bool> {
    text.parse().ok()
}

/// A value as an error may show it. A longer one is refused for its length in any case.
pub(super) fn shown(value: &str) -> String {
    value.chars().take(SHOWN).collect()
}

#[cfg(test)]
#[path = "demands_tests.rs"]
mod tests;
