//! The agent's own names: volume, node, operation, epoch.
//!
//! Comes in: text and numbers from the controller, the kubelet or a file. Goes out: a type that cannot hold an
//! invalid value, or [`NameError`] with the value and the rule.
//!
//! Always holds: a volume id can stand in a file name, a metric, a log line and an NQN without changing their
//! meaning.

use std::fmt;
use std::str::FromStr;

use cleat_host::SubsystemNqn;
use cleat_proto::cleat::v1 as wire;
use serde::{Deserialize, Serialize};

/// Why a name was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {rule}")]
pub struct NameError {
    /// What the value was meant to be, such as "volume id".
    pub what: &'static str,
    /// The value as it came, cut to 300 characters.
    pub value: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

impl NameError {
    fn new(what: &'static str, value: &str, rule: &'static str) -> Self {
        Self { what, value: value.chars().take(300).collect(), rule }
    }
}

macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks the value.
            ///
            /// # Errors
            /// [`NameError`] with the value and the rule it breaks.
            pub fn parse(value: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> Result<(), &'static str> = $check;
                check(value).map_err(|rule| NameError::new($what, value, rule))?;
                Ok(Self(value.to_owned()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(value: String) -> Result<Self, NameError> {
                Self::parse(&value)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(value: &str) -> Result<Self, NameError> {
                Self::parse(value)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_text!(
    /// A volume: the last part of its subsystem NQN, after the prefix.
    ///
    /// 1 to 63 of `a-z 0-9 -`, beginning and ending with a letter or digit.
    VolumeId,
    "volume id",
    label
);
checked_text!(
    /// This node, by the name that the orchestrator knows it under (CSI node id): a DNS subdomain.
    NodeId,
    "node id",
    |value| {
        if value.is_empty() || value.len() > 192 {
            // The CSI specification allows 192 bytes for a node id, fewer than DNS does.
            return Err("1 to 192 bytes");
        }
        value.split('.').try_for_each(label)
    }
);
checked_text!(
    /// One operation of the controller's, by which a repeated directive is recognised.
    OperationId,
    "operation id",
    |value| {
        if value.is_empty() || value.len() > 128 {
            return Err("1 to 128 bytes");
        }
        if !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("only printable ASCII without spaces");
        }
        Ok(())
    }
);

fn label(value: &str) -> Result<(), &'static str> {
    if value.is_empty() || value.len() > 63 {
        return Err("1 to 63 characters");
    }
    if !value.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        return Err("only a-z, 0-9 and -");
    }
    if value.starts_with('-') || value.ends_with('-') {
        return Err("begins and ends with a letter or digit");
    }
    Ok(())
}

/// The part of every subsystem NQN that comes before the volume id. Only subsystems under it are ever touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NqnPrefix(String);

impl NqnPrefix {
    /// Checks the value: with the longest volume id appended it must be a subsystem NQN, and it must end in
    /// `:` so that no other name can begin with it by chance.
    ///
    /// # Errors
    /// [`NameError`] with the rule it breaks.
    pub fn parse(value: &str) -> Result<Self, NameError> {
        let broken = |rule| Err(NameError::new("NQN prefix", value, rule));
        if !value.ends_with(':') {
            return broken("ends with a colon");
        }
        if SubsystemNqn::parse(&format!("{value}{}", "x".repeat(63))).is_err() {
            return broken(
                "with a volume id of 63 characters it must be an NQN (nqn.yyyy-mm.domain:…, 223 bytes)",
            );
        }
        Ok(Self(value.to_owned()))
    }

    /// The prefix as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The subsystem of a volume.
    pub fn subsystem(&self, volume: &VolumeId) -> SubsystemNqn {
        // Both parts were checked so that this cannot fail: see `parse`.
        SubsystemNqn::parse(&format!("{}{volume}", self.0)).unwrap_or_else(|error| unreachable!("{error}"))
    }

    /// The volume of a subsystem; `None` where the subsystem is not one of ours.
    pub fn volume(&self, subsystem: &SubsystemNqn) -> Option<VolumeId> {
        VolumeId::parse(subsystem.as_str().strip_prefix(&self.0)?).ok()
    }
}

impl fmt::Display for NqnPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A fencing token, one per grant; compared by term, then by seq. Never zero in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Epoch {
    term: u64,
    seq: u64,
}

impl Epoch {
    /// The epoch of a term and a number within it.
    ///
    /// # Errors
    /// [`NameError`] for 0.0, which is what a message without an epoch decodes to.
    pub fn new(term: u64, seq: u64) -> Result<Self, NameError> {
        if term == 0 && seq == 0 {
            return Err(NameError::new("epoch", "0.0", "not zero"));
        }
        Ok(Self { term, seq })
    }

    /// Reads the epoch of a message, where a missing one is an error.
    ///
    /// # Errors
    /// [`NameError`] when it is missing or zero.
    pub fn from_wire(epoch: Option<wire::Epoch>) -> Result<Self, NameError> {
        let epoch = epoch.ok_or_else(|| NameError::new("epoch", "", "must be given"))?;
        Self::new(epoch.term, epoch.seq)
    }

    /// The epoch as the wire has it.
    pub fn to_wire(self) -> wire::Epoch {
        wire::Epoch { term: self.term, seq: self.seq }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.seq)
    }
}

impl FromStr for Epoch {
    type Err = NameError;

    fn from_str(value: &str) -> Result<Self, NameError> {
        let number =
            |part: &str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten();
        let (term, seq) = value
            .split_once('.')
            .and_then(|(term, seq)| Some((number(term)?, number(seq)?)))
            .ok_or_else(|| NameError::new("epoch", value, "TERM.SEQ, two decimal numbers"))?;
        Self::new(term, seq)
    }
}

impl TryFrom<String> for Epoch {
    type Error = NameError;
    fn try_from(value: String) -> Result<Self, NameError> {
        value.parse()
    }
}

impl From<Epoch> for String {
    fn from(value: Epoch) -> Self {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_the_value_and_the_rule_they_break() {
        for good in ["pvc-0a1b", "a", "0"] {
            assert!(VolumeId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "Pvc", "a/b", "../x", "-a", "a-", "a b", ".", &"x".repeat(64)] {
            let error = VolumeId::parse(bad).expect_err(bad);
            assert_eq!(error.value, bad);
        }
        assert!(NodeId::parse("worker-1.example.org").is_ok());
        assert!(NodeId::parse("a..b").is_err());
        assert!(OperationId::parse("op-1-2").is_ok());
        assert!(OperationId::parse("op 1").is_err());
    }

    #[test]
    fn volume_and_subsystem_lead_to_each_other_and_foreign_subsystems_lead_nowhere() {
        let prefix = NqnPrefix::parse("nqn.2026-01.io.cleat:").expect("a prefix");
        let volume = VolumeId::parse("pvc-1").expect("a volume");
        assert_eq!(prefix.subsystem(&volume).as_str(), "nqn.2026-01.io.cleat:pvc-1");
        assert_eq!(prefix.volume(&prefix.subsystem(&volume)), Some(volume));
        for foreign in [
            "nqn.2026-01.io.cleat2:pvc-1",
            "nqn.2026-01.io.cleat:a:b",
            "nqn.2014-08.org.nvmexpress.discovery",
        ] {
            let foreign = SubsystemNqn::parse(foreign).expect("an NQN");
            assert_eq!(prefix.volume(&foreign), None, "{foreign}");
        }
        for bad in ["nqn.2026-01.io.cleat", "cleat:", "nqn.2026-01.io.cleat,x:", ":"] {
            assert!(NqnPrefix::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn epochs_are_ordered_by_term_then_seq_and_zero_is_none() {
        let epoch = |text: &str| text.parse::<Epoch>().expect(text);
        assert!(epoch("1.9") < epoch("2.1"));
        assert!(epoch("2.1") < epoch("2.10"));
        assert_eq!(epoch("1763.2").to_string(), "1763.2");
        for bad in ["", "1", "1.", ".1", "0.0", "1.2.3", "+1.2", "1.-2", "a.b"] {
            assert!(bad.parse::<Epoch>().is_err(), "{bad}");
        }
        assert!(Epoch::from_wire(None).is_err());
        assert_eq!(Epoch::from_wire(Some(epoch("3.4").to_wire())), Ok(epoch("3.4")));
    }
}
