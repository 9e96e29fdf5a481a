//! Names and numbers that identify things, checked once when they come in. They cannot be built wrong.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a name was not accepted. Names the kind of thing, the value and the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {rule}")]
pub struct IdError {
    /// What the value was meant to be, e.g. "volume id".
    pub what: &'static str,
    /// The value as it came.
    pub value: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

macro_rules! checked_string {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks the value.
            ///
            /// # Errors
            /// Names the value and the rule it breaks.
            pub fn new(value: impl Into<String>) -> Result<Self, IdError> {
                let value = value.into();
                let check: fn(&str) -> Result<(), &'static str> = $check;
                match check(&value) {
                    Ok(()) => Ok(Self(value)),
                    Err(rule) => Err(IdError { what: $what, value, rule }),
                }
            }

            /// The name itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(value: String) -> Result<Self, IdError> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_string!(
    /// A volume: the RDS disk's slot, and the last part of its subsystem NQN.
    ///
    /// 1 to 63 of `a-z 0-9 -`, beginning and ending with a letter or digit, so that it can stand in a slot, in a
    /// file name and in an NQN alike.
    VolumeId,
    "volume id",
    |v| label(v, 63)
);
checked_string!(
    /// A node, by the name the orchestrator knows it under (CSI node id; at most 253 bytes, a DNS subdomain).
    NodeId,
    "node id",
    |v| {
        if v.is_empty() || v.len() > 253 {
            return Err("1 to 253 bytes");
        }
        v.split('.').try_for_each(|part| label(part, 63))
    }
);
checked_string!(
    /// The NQN by which a host names itself to a target (NVMe Base Specification 2.0, section 4.5).
    HostNqn,
    "host NQN",
    |v| {
        if v.len() > 223 {
            return Err("at most 223 bytes");
        }
        if !v.starts_with("nqn.") || v.len() < 12 {
            return Err("begins with nqn.yyyy-mm. and a name");
        }
        if v.chars().any(|c| c.is_whitespace() || c.is_control() || c == ',') {
            return Err("no white space, control characters or commas");
        }
        Ok(())
    }
);
checked_string!(
    /// One agent session (one stream), as named by the shell. Never used twice.
    SessionId,
    "session id",
    |v| if v.is_empty() { Err("not empty") } else { Ok(()) }
);

fn label(value: &str, longest: usize) -> Result<(), &'static str> {
    if value.is_empty() || value.len() > longest {
        return Err("1 to 63 characters");
    }
    if !value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return Err("only a-z, 0-9 and -");
    }
    if value.starts_with('-') || value.ends_with('-') {
        return Err("begins and ends with a letter or digit");
    }
    Ok(())
}

/// A fencing token, one per grant; compared by term, then by seq.
///
/// `term` rises with every start of a controller, `seq` with every grant within a term. An agent keeps the highest
/// it has seen per volume on disk and refuses anything lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// The term of the controller that granted.
    pub term: u64,
    /// The number of the grant within the term.
    pub seq: u64,
}

impl Epoch {
    /// How many low bits of a reservation key hold the `seq`; the rest hold the `term`, which is a wall clock in
    /// milliseconds at most (41 bits until the year 2039).
    const KEY_SEQ_BITS: u32 = 22;

    /// The reservation key (NVMe Base Specification 2.0, section 8.19) under which the node of this grant registers.
    /// Never 0, which stands for "no key". Keys of one volume differ: a term of 4 million grants would be needed
    /// for two of them to meet.
    #[must_use]
    pub fn reservation_key(self) -> u64 {
        let seq = self.seq & ((1 << Self::KEY_SEQ_BITS) - 1);
        (self.term << Self::KEY_SEQ_BITS | seq).max(1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.seq)
    }
}

impl std::str::FromStr for Epoch {
    type Err = IdError;

    fn from_str(value: &str) -> Result<Self, IdError> {
        let parse = || {
            let (term, seq) = value.split_once('.')?;
            Some(Self { term: term.parse().ok()?, seq: seq.parse().ok()? })
        };
        parse().ok_or_else(|| IdError {
            what: "epoch",
            value: value.to_owned(),
            rule: "TERM.SEQ, two numbers",
        })
    }
}

/// A caller's request, as numbered by the shell. Never used twice within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// One operation that the core has asked for. Its answer carries the same number; an answer with any other number
/// than the one waited for changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OperationId {
    /// The term in which it was asked for.
    pub term: u64,
    /// Rises within the term.
    pub number: u64,
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "op-{}-{}", self.term, self.number)
    }
}

impl std::str::FromStr for OperationId {
    type Err = IdError;

    fn from_str(value: &str) -> Result<Self, IdError> {
        let parse = || {
            let (term, number) = value.strip_prefix("op-")?.split_once('-')?;
            Some(Self { term: term.parse().ok()?, number: number.parse().ok()? })
        };
        parse().ok_or_else(|| IdError {
            what: "operation id",
            value: value.to_owned(),
            rule: "op-TERM-NUMBER, two numbers",
        })
    }
}

/// Milliseconds since 1970, on a clock that never goes back: the shell takes the wall clock once at its start and
/// adds the monotonic time that has passed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// This time plus so many milliseconds.
    #[must_use]
    pub fn plus(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// Milliseconds from `earlier` until this; 0 if that is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_the_error_names_the_value_and_the_rule() {
        for good in ["pvc-0a1b", "a", "0"] {
            assert!(VolumeId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "Pvc", "a/b", "../x", "-a", "a-", "a b", &"x".repeat(64)] {
            let error = VolumeId::new(bad).expect_err(bad);
            assert_eq!(error.value, bad);
            assert!(error.to_string().contains("volume id"), "{error}");
        }
        assert!(NodeId::new("worker-1.example.org").is_ok());
        assert!(NodeId::new("worker_1").is_err());
        assert!(NodeId::new("a..b").is_err());
        assert!(HostNqn::new("nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000011").is_ok());
        assert!(
            HostNqn::new("nqn.2014-08.org,nqn.2014-08.com").is_err(),
            "a comma would be two entries of an ACL"
        );
        assert!(HostNqn::new("iqn.2014-08.org.example").is_err());
    }

    #[test]
    fn epochs_are_ordered_by_term_then_seq_and_read_back() {
        let low = Epoch { term: 1, seq: 9 };
        let high = Epoch { term: 2, seq: 1 };
        assert!(low < high);
        assert_eq!("2.1".parse::<Epoch>().expect("an epoch"), high);
        assert_eq!(high.to_string(), "2.1");
        assert!("2".parse::<Epoch>().is_err());
    }

    #[test]
    fn a_reservation_key_is_never_none_and_tells_term_and_seq() {
        assert_eq!(Epoch { term: 0, seq: 0 }.reservation_key(), 1);
        assert_eq!(Epoch { term: 2, seq: 3 }.reservation_key(), (2 << 22) | 3);
        let wall_clock = Epoch { term: 1_790_000_000_000, seq: 1 };
        assert_eq!(wall_clock.reservation_key() >> 22, wall_clock.term, "no bit is lost");
    }
}
