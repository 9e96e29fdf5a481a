//! The epoch: a fencing token, one per grant.

use std::fmt;

use crate::IdError;
use crate::text::{decimal, reads_as_text};

/// A fencing token, one per grant; compared by term, then by seq. Written `TERM.SEQ`.
///
/// `term` rises with every start of a controller, `seq` with every grant within a term. An agent keeps the
/// highest that it has seen per volume on disk, and refuses anything lower.
///
/// Two numbers make an epoch, so whoever grants may set the fields. Anything from outside goes through
/// [`Epoch::new`] or [`Epoch::parse`], which refuse 0.0: a message without an epoch decodes to that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch {
    /// The term of the controller that granted.
    pub term: u64,
    /// The number of the grant within the term.
    pub seq: u64,
}

impl Epoch {
    /// How many low bits of a reservation key are the `seq`; the rest are the `term`, which is at most a wall
    /// clock in milliseconds (41 bits until the year 2039).
    const KEY_SEQ_BITS: u32 = 22;

    /// The epoch of a term and a number within it, as a message carries them.
    ///
    /// # Errors
    /// For 0.0.
    pub fn new(term: u64, seq: u64) -> Result<Self, IdError> {
        if term == 0 && seq == 0 {
            return Err(refused("0.0", "is zero"));
        }
        Ok(Self { term, seq })
    }

    /// Reads `TERM.SEQ`.
    ///
    /// # Errors
    /// Where it is not two decimal numbers with a dot between, or is 0.0.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let (term, seq) = text
            .split_once('.')
            .and_then(|(term, seq)| Some((decimal(term)?, decimal(seq)?)))
            .ok_or_else(|| refused(text, "is not TERM.SEQ, two decimal numbers"))?;
        Self::new(term, seq)
    }

    /// The error for a message that lacks an epoch.
    #[must_use]
    pub fn missing() -> IdError {
        refused("", "must be given")
    }

    /// The reservation key (NVMe Base Specification 2.0, section 8.19) under which the node of this grant
    /// registers. Never 0, which stands for "no key". Keys of one volume differ: only a term with 4 million
    /// grants could give two the same one.
    #[must_use]
    pub fn reservation_key(self) -> u64 {
        let seq = self.seq & ((1 << Self::KEY_SEQ_BITS) - 1);
        (self.term << Self::KEY_SEQ_BITS | seq).max(1)
    }
}

fn refused(value: &str, rule: &'static str) -> IdError {
    IdError::new(
        "epoch",
        value,
        rule,
        "use the epoch of the grant as the controller wrote it, such as 1763.2",
    )
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.seq)
    }
}

reads_as_text!(Epoch);

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(text: &str) -> Epoch {
        text.parse().expect(text)
    }

    #[test]
    fn epochs_are_ordered_by_term_then_seq() {
        assert!(epoch("1.9") < epoch("2.1"));
        assert!(epoch("2.1") < epoch("2.10"));
        assert_eq!(epoch("1763.2").to_string(), "1763.2");
    }

    #[test]
    fn zero_and_anything_but_two_numbers_are_refused() {
        for bad in ["", "1", "1.", ".1", "0.0", "1.2.3", "+1.2", "1.-2", "a.b", "1.18446744073709551616"] {
            let error = bad.parse::<Epoch>().expect_err(bad);
            assert!(error.to_string().contains("such as 1763.2"), "{error}");
        }
        assert!(Epoch::new(0, 0).is_err());
    }

    #[test]
    fn a_reservation_key_is_never_none_and_tells_term_and_seq() {
        assert_eq!(Epoch { term: 0, seq: 0 }.reservation_key(), 1);
        assert_eq!(Epoch { term: 2, seq: 3 }.reservation_key(), (2 << 22) | 3);
        let wall_clock = Epoch { term: 1_790_000_000_000, seq: 1 };
        assert_eq!(wall_clock.reservation_key() >> 22, wall_clock.term, "no bit is lost");
    }
}
