//! Texts of others, made safe to show to people.
//!
//! Comes in: what nodes, processes and the RDS say. Goes out: the same, without anything that a terminal
//! would act on or that turns a line around.

/// Whether a terminal would act on this character instead of showing it.
#[must_use]
pub fn is_harmful(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with such characters made visible (`\u{1b}`), except for those in `kept`.
#[must_use]
pub fn harmless(text: &str, kept: &[char]) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) && !kept.contains(&c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_shown_and_not_done() {
        assert_eq!(harmless("a\u{1b}[2J\n\u{202e}b ü", &['\n']), "a\\u{1b}[2J\n\\u{202e}b ü");
        assert_eq!(harmless("a\nb", &[]), "a\\nb");
    }
}
