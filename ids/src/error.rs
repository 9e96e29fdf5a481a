//! Why a value is not the identifier that it should be.

/// How much of a refused value an error repeats, in characters.
const SHOWN: usize = 300;

/// A value that was refused: what it should be, the rule that it breaks, and what to use instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: it {rule}; {action}")]
pub struct IdError {
    /// What the value should be, such as "volume id".
    pub what: &'static str,
    /// The value as it came, cut to 300 characters.
    pub value: String,
    /// The rule that it breaks, as the end of a sentence about the value: "is empty".
    pub rule: &'static str,
    /// What to do about it, such as "use MAJOR:MINOR, two decimal numbers".
    pub action: &'static str,
}

impl IdError {
    /// An error about a value.
    #[must_use]
    pub fn new(what: &'static str, value: &str, rule: &'static str, action: &'static str) -> Self {
        Self { what, value: value.chars().take(SHOWN).collect(), rule, action }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_which_value_which_rule_and_what_to_do() {
        let error = IdError::new("volume id", "a\u{1b}b", "is odd", "use another");
        assert_eq!(error.to_string(), r#"volume id "a\u{1b}b" is not valid: it is odd; use another"#);
    }

    #[test]
    fn a_long_value_is_cut() {
        assert_eq!(IdError::new("volume id", &"ü".repeat(400), "", "").value, "ü".repeat(300));
    }
}
