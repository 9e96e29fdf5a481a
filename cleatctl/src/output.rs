//! Standard output: a text for people, or one JSON document.

use crate::Console;
use crate::client::AskError;

/// How to show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For scripts.
    Json,
}

pub(crate) struct Output<'a, 'b> {
    format: Format,
    console: &'a mut Console<'b>,
}

impl<'a, 'b> Output<'a, 'b> {
    pub(crate) fn new(format: Format, console: &'a mut Console<'b>) -> Self {
        Self { format, console }
    }

    /// Shows one answer in the form that was asked for.
    pub(crate) fn show(
        &mut self,
        json: impl FnOnce() -> serde_json::Value,
        text: impl FnOnce() -> String,
    ) -> Result<(), AskError> {
        match self.format {
            Format::Table => self.line(&text()),
            Format::Json => self.line(&format!("{:#}", json())),
        }
    }

    /// Shows one event of many: one line.
    pub(crate) fn event(
        &mut self,
        json: impl FnOnce() -> serde_json::Value,
        text: impl FnOnce() -> Option<String>,
    ) -> Result<(), AskError> {
        match self.format {
            Format::Table => text().map_or(Ok(()), |text| self.line(&text)),
            Format::Json => self.line(&json().to_string()),
        }
    }

    fn line(&mut self, text: &str) -> Result<(), AskError> {
        let out = &mut *self.console.out;
        let written = writeln!(out, "{}", harmless(text.trim_end_matches('\n'))).and_then(|()| out.flush());
        written.map_err(AskError::Output)
    }
}

/// A text without anything that a terminal would act on but the ends of lines: what nodes, processes and the RDS say is
/// shown to people, and not carried out by their terminals.
pub(crate) fn harmless(text: &str) -> String {
    cleat_runtime::text::harmless(text, &['\n'])
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn a_terminal_is_told_nothing_by_what_is_shown() {
        assert_eq!(harmless("pid 7 (\u{1b}[2J)\nß\u{9b}x"), "pid 7 (\\u{1b}[2J)\nß\\u{9b}x");
        assert_eq!(harmless("a\u{202e}b"), "a\\u{202e}b");
    }
}
