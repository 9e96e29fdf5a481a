//! Text for a terminal: others' words made harmless, state words coloured, lines that fit.
//!
//! Comes in: words of nodes, processes and the RDS. Goes out: lines in which only our own colours act on the
//! terminal. Always holds: a colour is marked by characters that [`harmless`] allows nobody else. The last
//! step turns the marks into colours or drops them, so that every layout counts a word as wide as it looks.

use anstyle::{AnsiColor, Style};
use textwrap::{Options, WordSplitter};

const GOOD: char = '\u{2066}';
const BUSY: char = '\u{2067}';
const BAD: char = '\u{2068}';
const END: char = '\u{2069}';

/// One line of others' words, without anything that a terminal acts on.
pub(crate) fn harmless(text: &str) -> String {
    cleat_runtime::text::harmless(text, &[])
}

/// A state word, marked with its colour. Words that are neither good nor bad have none.
pub(crate) fn state(word: &str) -> String {
    let mark = match word.to_ascii_lowercase().as_str() {
        "ready" | "connected" | "admitted" | "completed" => GOOD,
        "degraded" | "granting" | "connecting" | "draining" | "detaching" | "running" | "rolled_back" => BUSY,
        "overdue" | "lost" | "fenced" | "stray" | "silent" | "quarantined" | "deleted" | "failed"
        | "timed_out" => BAD,
        _ => return harmless(word),
    };
    format!("{mark}{word}{END}")
}

/// The text with its marks turned into colours, or dropped.
pub(crate) fn painted(text: &str, color: bool) -> String {
    let mut painted = String::with_capacity(text.len());
    for c in text.chars() {
        let style = match c {
            GOOD => AnsiColor::Green.on_default(),
            BUSY => AnsiColor::Yellow.on_default(),
            BAD => AnsiColor::Red.on_default(),
            END => Style::new(),
            c => {
                painted.push(c);
                continue;
            }
        };
        match color {
            true if c == END => painted.push_str(&anstyle::Reset.render().to_string()),
            true => painted.push_str(&style.render().to_string()),
            false => {}
        }
    }
    painted
}

/// Harmless lines, indented, that break between words where there is a width.
pub(crate) struct Page {
    width: Option<usize>,
    text: String,
}

impl Page {
    pub(crate) fn new(width: Option<usize>) -> Self {
        Self { width, text: String::new() }
    }

    pub(crate) fn blank(&mut self) {
        self.text.push('\n');
    }

    pub(crate) fn line(&mut self, indent: usize, text: impl AsRef<str>) {
        self.wrapped(indent, &harmless(text.as_ref()));
    }

    /// A line that contains a state word.
    pub(crate) fn state(&mut self, indent: usize, before: &str, word: &str, after: &str) {
        self.wrapped(indent, &format!("{}{}{}", harmless(before), state(word), harmless(after)));
    }

    fn wrapped(&mut self, indent: usize, text: &str) {
        for line in wrap(text, indent, self.width) {
            self.text.push_str(&line);
            self.text.push('\n');
        }
    }

    pub(crate) fn text(self) -> String {
        self.text
    }
}

/// A harmless text in lines of at most this width, indented, and by two more from the second line on. Words
/// stay whole, so that ids can be copied.
pub(crate) fn wrap(text: &str, indent: usize, width: Option<usize>) -> Vec<String> {
    let (first, more) = (" ".repeat(indent), " ".repeat(indent + 2));
    let options = Options::new(width.unwrap_or(usize::MAX))
        .break_words(false)
        .word_splitter(WordSplitter::NoHyphenation)
        .initial_indent(&first)
        .subsequent_indent(&more);
    textwrap::wrap(text, options).into_iter().map(std::borrow::Cow::into_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_neither_colour_nor_command_a_terminal() {
        let mut page = Page::new(None);
        page.line(0, "a\u{1b}[2J\u{2066}b\nc");
        page.state(2, "", "\u{1b}[31mReady", "\u{2069}");
        let expected = "a\\u{1b}[2J\\u{2066}b\\nc\n  \\u{1b}[31mReady\\u{2069}\n";
        assert_eq!(painted(&page.text(), true), expected);
    }

    #[test]
    fn colour_off_leaves_the_same_text_without_colours() {
        let text =
            format!("{} {} {} {}", state("Ready"), state("Draining"), state("fenced"), state("detached"));
        assert_eq!(painted(&text, false), "Ready Draining fenced detached");
        let expected =
            "\u{1b}[32mReady\u{1b}[0m \u{1b}[33mDraining\u{1b}[0m \u{1b}[31mfenced\u{1b}[0m detached";
        assert_eq!(painted(&text, true), expected);
    }

    #[test]
    fn a_line_breaks_between_words_and_never_inside_an_id() {
        let lines = wrap("waits for node-with-a-long-name to be heard", 2, Some(16));
        assert_eq!(lines, ["  waits for", "    node-with-a-long-name", "    to be heard"]);
    }
}
