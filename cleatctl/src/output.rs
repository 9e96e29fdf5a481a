//! Standard output: a screen for people, or JSON or YAML for scripts.
//!
//! Comes in: an answer in both forms. Goes out: the form that was asked for. Always holds: in no form does a
//! terminal act on anything that nodes, processes or the RDS say.

use serde_json::Value;

use crate::Console;
use crate::client::AskError;
use crate::page::painted;

/// How to show an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Tables and plain words
    #[default]
    Table,
    /// JSON; one line for each event of `watch`
    Json,
    /// YAML; one document for each event of `watch`
    Yaml,
}

pub(crate) struct Output<'a, 'b> {
    format: Format,
    color: bool,
    console: &'a mut Console<'b>,
}

impl<'a, 'b> Output<'a, 'b> {
    pub(crate) fn new(format: Format, color: bool, console: &'a mut Console<'b>) -> Self {
        Self { format, color, console }
    }

    /// Shows one answer; a screen gets the terminal's width.
    pub(crate) fn show(
        &mut self,
        document: impl FnOnce() -> Value,
        screen: impl FnOnce(Option<usize>) -> String,
    ) -> Result<(), AskError> {
        let text = match self.format {
            Format::Table => painted(&screen(self.console.width), self.color),
            Format::Json => json(&document(), true),
            Format::Yaml => yaml(document()),
        };
        self.write(&text)
    }

    /// Shows one event of many.
    pub(crate) fn event(
        &mut self,
        document: impl FnOnce() -> Value,
        line: impl FnOnce() -> Option<String>,
    ) -> Result<(), AskError> {
        let text = match self.format {
            Format::Table => line().map(|line| painted(&line, self.color)),
            Format::Json => Some(json(&document(), false)),
            Format::Yaml => Some(format!("---\n{}", yaml(document()))),
        };
        text.map_or(Ok(()), |text| self.write(&text))
    }

    /// Whether a screen is shown in the place of the one before, so that it may change with time alone.
    pub(crate) fn is_redrawn(&self) -> bool {
        self.format == Format::Table && self.console.width.is_some()
    }

    /// Shows how something stands now: on a terminal in the place of how it stood before, else below it. What the terminal
    /// has no lines for is left out and counted.
    pub(crate) fn redraw(
        &mut self,
        document: impl FnOnce() -> Value,
        screen: impl FnOnce(Option<usize>) -> String,
    ) -> Result<(), AskError> {
        let width = self.console.width;
        if !self.is_redrawn() {
            return self.event(document, || Some(format!("{}\n--", screen(width).trim_end())));
        }
        let text = painted(&screen(width), self.color);
        let text = in_place(&text, self.console.height);
        let out = &mut *self.console.out;
        write!(out, "{text}").and_then(|()| out.flush()).map_err(AskError::Output)
    }

    fn write(&mut self, text: &str) -> Result<(), AskError> {
        let out = &mut *self.console.out;
        let written = writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush());
        written.map_err(AskError::Output)
    }
}

/// The text from the terminal's first line on, over what stands there, and nothing below it.
fn in_place(text: &str, height: Option<usize>) -> String {
    let lines: Vec<&str> = text.trim_end_matches('\n').lines().collect();
    // One line stays free for the cursor.
    let room = height.map_or(lines.len(), |height| height.saturating_sub(1).max(1));
    let shown = if lines.len() > room { room - 1 } else { lines.len() };
    let mut drawn = String::from("\u{1b}[H");
    for line in &lines[..shown] {
        drawn.push_str(&format!("{line}\u{1b}[K\n"));
    }
    if shown < lines.len() {
        drawn.push_str(&format!("({} more lines; make the terminal taller)\u{1b}[K\n", lines.len() - shown));
    }
    drawn + "\u{1b}[J"
}

/// JSON in which characters that a terminal acts on are escaped; the value stays the same.
fn json(value: &Value, pretty: bool) -> String {
    let text = if pretty { format!("{value:#}") } else { value.to_string() };
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if cleat_runtime::text::is_harmful(c) && c != '\n' {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// YAML in which such characters are written as their numbers: YAML has no escape for some of them.
fn yaml(mut value: Value) -> String {
    disarm(&mut value);
    // A tree of strings, numbers and truth values always has a YAML form.
    serde_saphyr::to_string(&value).unwrap_or_default()
}

fn disarm(value: &mut Value) {
    match value {
        Value::String(text) => *text = cleat_runtime::text::harmless(text, &['\n']),
        Value::Array(items) => items.iter_mut().for_each(disarm),
        Value::Object(fields) => fields.values_mut().for_each(disarm),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn a_redrawn_screen_covers_the_one_before_and_fits_its_lines() {
        let drawn = |height| super::in_place("a\nb\nc\n", height).replace('\u{1b}', "^");
        assert_eq!(drawn(None), "^[Ha^[K\nb^[K\nc^[K\n^[J");
        assert_eq!(drawn(Some(4)), drawn(None));
        assert_eq!(drawn(Some(3)), "^[Ha^[K\n(2 more lines; make the terminal taller)^[K\n^[J");
        assert_eq!(drawn(Some(0)), "^[H(3 more lines; make the terminal taller)^[K\n^[J");
    }

    #[test]
    fn json_escapes_what_a_terminal_acts_on_and_keeps_the_value() {
        let value = json!({"holder": "pid 7 \u{1b}[2J \u{9b}x \u{202e}"});
        let text = super::json(&value, false);
        assert_eq!(text, r#"{"holder":"pid 7 \u001b[2J \u009bx \u202e"}"#);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON"), value);
    }

    #[test]
    fn yaml_shows_what_a_terminal_acts_on_and_keeps_types() {
        let value = json!({"a": ["on", 7, true, null], "b": "x\u{1b}[2J\u{202e}", "c": "k: v # n", "d": {}});
        let expected = "a:\n- \"on\"\n- 7\n- true\n- null\nb: x\\u{1b}[2J\\u{202e}\nc: \"k: v # n\"\nd: {}\n";
        assert_eq!(super::yaml(value), expected);
    }
}
