//! Which cluster a disk belongs to: the mark that each volume has in the comment of its disk.
//!
//! Comes in: comments. Goes out: the cluster that made the volume, and what it was made with. Always holds:
//! only its owner may list, change, hide or delete a disk with a mark; nobody may touch a disk without one.

use std::fmt;

use cleat_ids::{MIGRATION_TIMEOUT_PARAMETER, MIN_FENCE_PARAMETER, REQUIRE_MIGRATION_PARAMETER};

/// What a mark begins with.
const MARK: &str = "cleat";
const CLUSTER: &str = "cluster";
const MIN_FENCE: &str = "min-fence";
const MIGRATION_TIMEOUT: &str = "migration-timeout-seconds";
const REQUIRE_MIGRATION: &str = "require-migration";
/// The owner of what a probe makes and removes again: no cluster may have this name.
const PROBES: &str = "cleat-probe";

/// The name of a cluster, which no other cluster on the same RDS has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterId(String);

/// Why a cluster id was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAClusterId {
    /// It has characters or a length that a mark cannot contain.
    #[error(
        "cluster id {0:?} is not valid: 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit"
    )]
    Form(String),
    /// The name is reserved for probes.
    #[error(
        "cluster id {PROBES:?} is not valid: it marks what cleatctl rds probe makes and removes; use another name"
    )]
    Probes,
}

impl ClusterId {
    /// The owner of what probes make.
    #[must_use]
    pub fn of_probes() -> Self {
        Self(PROBES.to_owned())
    }

    /// Checks its form. `FromStr`, which reads the option, also refuses the name of probes.
    ///
    /// # Errors
    /// The value and the rule that it breaks.
    pub fn new(id: &str) -> Result<Self, NotAClusterId> {
        let good = (1..=63).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !id.starts_with('-')
            && !id.ends_with('-');
        if good { Ok(Self(id.to_owned())) } else { Err(NotAClusterId::Form(id.to_owned())) }
    }
}

impl std::str::FromStr for ClusterId {
    type Err = NotAClusterId;

    fn from_str(id: &str) -> Result<Self, NotAClusterId> {
        if id == PROBES { Err(NotAClusterId::Probes) } else { Self::new(id) }
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The parameters that a volume is made with, as its mark keeps them: texts without blanks, and nothing where one was not
/// asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeParameters {
    /// The weakest fence that suffices for it.
    pub min_fence: Option<String>,
    /// How many seconds a live migration of it is to take at most.
    pub migration_timeout: Option<String>,
    /// `true` where a second node is to get it only for a live migration that is known.
    pub require_migration: Option<String>,
}

impl VolumeParameters {
    /// Each with its name for callers and its name in a mark.
    fn all(&self) -> [(&'static str, &'static str, Option<&str>); 3] {
        [
            (MIN_FENCE_PARAMETER, MIN_FENCE, self.min_fence.as_deref()),
            (MIGRATION_TIMEOUT_PARAMETER, MIGRATION_TIMEOUT, self.migration_timeout.as_deref()),
            (REQUIRE_MIGRATION_PARAMETER, REQUIRE_MIGRATION, self.require_migration.as_deref()),
        ]
    }

    /// The first in which a volume that was made with these is not what is asked for: its name for callers, what it was
    /// made with, what is asked for; `none` stands for nothing.
    #[must_use]
    pub fn difference<'a>(&'a self, asked: &'a Self) -> Option<(&'static str, &'a str, &'a str)> {
        let mut both = self.all().into_iter().zip(asked.all());
        let named = |value: Option<&'a str>| value.unwrap_or("none");
        both.find_map(|((name, _, made), (_, _, asked))| {
            (made != asked).then(|| (name, named(made), named(asked)))
        })
    }
}

/// What the comment of a volume's disk says, such as `cleat cluster=prod min-fence=acl`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) cluster: ClusterId,
    /// What the volume was made with.
    pub(super) parameters: VolumeParameters,
}

impl Mark {
    /// `None` where the comment is no mark. Words that this version does not know belong to a newer one.
    pub(super) fn read(comment: &str) -> Option<Self> {
        let mut words = comment.split_ascii_whitespace();
        if words.next() != Some(MARK) {
            return None;
        }
        let values: Vec<(&str, &str)> = words.filter_map(|word| word.split_once('=')).collect();
        let value = |name: &str| values.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        let cluster = ClusterId::new(value(CLUSTER)?).ok()?;
        let parameter = |name: &str| value(name).map(str::to_owned);
        let parameters = VolumeParameters {
            min_fence: parameter(MIN_FENCE),
            migration_timeout: parameter(MIGRATION_TIMEOUT),
            require_migration: parameter(REQUIRE_MIGRATION),
        };
        Some(Self { cluster, parameters })
    }

    /// The comment, as the RDS keeps it.
    pub(super) fn comment(&self) -> String {
        let asked_for = self.parameters.all().into_iter().filter_map(|(_, word, value)| Some((word, value?)));
        let words: String = asked_for.map(|(word, value)| format!(" {word}={value}")).collect();
        format!("{MARK} {CLUSTER}={}{words}", self.cluster)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let cluster = ClusterId::new("prod-1").unwrap();
        let text = |text: &str| Some(text.to_owned());
        let none = VolumeParameters::default();
        let fence = VolumeParameters { min_fence: text("acl"), ..none.clone() };
        let all = VolumeParameters {
            migration_timeout: text("120"),
            require_migration: text("true"),
            ..fence.clone()
        };
        for (parameters, comment) in [
            (none.clone(), "cleat cluster=prod-1"),
            (fence, "cleat cluster=prod-1 min-fence=acl"),
            (all, "cleat cluster=prod-1 min-fence=acl migration-timeout-seconds=120 require-migration=true"),
        ] {
            let mark = Mark { cluster: cluster.clone(), parameters };
            assert_eq!(mark.comment(), comment);
            assert_eq!(Mark::read(comment), Some(mark));
        }
        let newer = Mark::read("cleat cluster=prod-1 colour=blue bare").unwrap();
        assert_eq!(newer, Mark { cluster, parameters: none });
    }

    #[test]
    fn what_a_volume_was_made_with_differs_by_the_name_for_callers() {
        let with = |seconds: Option<&str>, require: Option<&str>| VolumeParameters {
            min_fence: Some("acl".to_owned()),
            migration_timeout: seconds.map(str::to_owned),
            require_migration: require.map(str::to_owned),
        };
        let made = with(Some("120"), None);
        assert_eq!(made.difference(&made.clone()), None);
        let asked = [with(None, None), with(Some("60"), Some("true")), with(Some("120"), Some("true"))];
        let differences: Vec<_> = asked.iter().map(|asked| made.difference(asked).unwrap()).collect();
        assert_eq!(
            differences,
            [
                ("migrationTimeoutSeconds", "120", "none"),
                ("migrationTimeoutSeconds", "120", "60"),
                ("requireMigration", "none", "true")
            ]
        );
    }

    #[test]
    fn a_comment_that_is_no_mark_is_none() {
        for comment in [
            "",
            "cleat",
            "my disk",
            "cleat cluster=",
            "cleat cluster=A",
            "x cleat cluster=a",
            "cleat:cluster=a",
        ] {
            assert_eq!(Mark::read(comment), None, "{comment:?}");
        }
    }

    #[test]
    fn a_cluster_id_that_cannot_be_used_is_named_with_the_rule() {
        for bad in ["", "A", "a b", "-a", "a-", "a=b", &"a".repeat(64)] {
            let error = ClusterId::new(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")) && error.contains("a-z"), "{error}");
        }
        let probes = "cleat-probe".parse::<ClusterId>().unwrap_err().to_string();
        assert!(probes.contains("\"cleat-probe\"") && probes.contains("cleatctl rds probe"), "{probes}");
    }
}
