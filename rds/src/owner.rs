//! Which cluster a disk belongs to: the mark that each volume has in the comment of its disk.
//!
//! Comes in: comments. Goes out: the cluster that made the volume, and what it was made with. Always holds:
//! only its owner may list, change, hide or delete a disk with a mark; nobody may touch a disk without one.

use std::fmt;

/// What a mark begins with.
const MARK: &str = "cleat";
const CLUSTER: &str = "cluster";
const MIN_FENCE: &str = "min-fence";
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

/// What the comment of a volume's disk says, such as `cleat cluster=prod min-fence=acl`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) cluster: ClusterId,
    /// The parameter that the volume was made with, if any.
    pub(super) min_fence: Option<String>,
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
        Some(Self { cluster, min_fence: value(MIN_FENCE).map(str::to_owned) })
    }

    /// The comment, as the RDS keeps it.
    pub(super) fn comment(&self) -> String {
        let min_fence = self.min_fence.as_ref().map(|fence| format!(" {MIN_FENCE}={fence}"));
        format!("{MARK} {CLUSTER}={}{}", self.cluster, min_fence.unwrap_or_default())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let cluster = ClusterId::new("prod-1").unwrap();
        for min_fence in [None, Some("acl".to_owned())] {
            let mark = Mark { cluster: cluster.clone(), min_fence };
            assert_eq!(Mark::read(&mark.comment()), Some(mark));
        }
        let newer = Mark::read("cleat cluster=prod-1 colour=blue bare").unwrap();
        assert_eq!(newer.cluster, cluster);
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
