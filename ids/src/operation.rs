//! Ids of what a caller asks of the controller, and of what the controller asks of others.

use std::fmt;

use crate::IdError;
use crate::text::{decimal, reads_as_text};

/// A caller's request, as the controller numbers it. Never used twice within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// One operation that the controller has asked for, written `op-TERM-NUMBER`.
///
/// Its answer has the same id. An answer with any other id than the expected one changes nothing. An agent
/// recognises a repeated directive by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId {
    /// The term in which the controller asked for it.
    pub term: u64,
    /// Its number, which rises within the term.
    pub number: u64,
}

impl OperationId {
    /// Reads `op-TERM-NUMBER`.
    ///
    /// # Errors
    /// Where it is anything else.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let parsed = text
            .strip_prefix("op-")
            .and_then(|numbers| numbers.split_once('-'))
            .and_then(|(term, number)| Some(Self { term: decimal(term)?, number: decimal(number)? }));
        parsed.ok_or_else(|| {
            IdError::new(
                "operation id",
                text,
                "is not op-TERM-NUMBER with two decimal numbers",
                "use the id of the directive as the controller wrote it",
            )
        })
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "op-{}-{}", self.term, self.number)
    }
}

reads_as_text!(OperationId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_controllers_form_is_an_operation_id() {
        assert_eq!(OperationId::parse("op-7-12"), Ok(OperationId { term: 7, number: 12 }));
        for bad in ["", "op", "op-1", "op-1-", "op--1", "op-1-2-3", "op-+1-2", "op-a-b", "1-2", "op 1-2"] {
            assert!(OperationId::parse(bad).is_err(), "{bad}");
        }
    }
}
