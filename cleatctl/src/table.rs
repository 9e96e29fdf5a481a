//! Rows under a head, without lines between them: for people, and for grep and awk.
//!
//! Comes in: cells and a width. Goes out: a text that fits it. Without a width (no terminal) every column is
//! there, each row is one line, and two or more blanks separate its cells. With a width, columns without a
//! value go first, then the least important ones, which are named below the table. The last column wraps, or
//! goes below its row where there is no room beside it. Ids are never broken.

use comfy_table::{ContentArrangement, presets};
use textwrap::core::display_width;

use crate::page::{harmless, state, wrap};

/// Blanks between two columns.
const GAP: usize = 2;
/// Below this width, a wrapping column is no help.
const NARROWEST_TEXT: usize = 24;

/// A column's name, and how dispensable it is: 0 means never; otherwise the higher number goes first.
pub(crate) type Column = (&'static str, u8);

/// One cell, harmless. An empty one appears as a dash.
pub(crate) struct Cell(String);

impl Cell {
    pub(crate) fn state(word: &str) -> Self {
        Self(state(word))
    }

    fn shown(&self) -> &str {
        if self.0.is_empty() { "-" } else { &self.0 }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self(harmless(text.as_ref()))
    }
}

/// A table of N columns, and a last one of free text.
pub(crate) struct Table<const N: usize> {
    columns: [Column; N],
    text: &'static str,
    rows: Vec<([Cell; N], Cell)>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(columns: [Column; N], text: &'static str) -> Self {
        Self { columns, text, rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: [Cell; N], text: impl Into<Cell>) {
        self.rows.push((cells, text.into()));
    }

    pub(crate) fn render(&self, width: Option<usize>) -> String {
        let mut kept: Vec<usize> = (0..N).collect();
        let has_text = width.is_none() || self.rows.iter().any(|(_, text)| !text.0.is_empty());
        let mut left_out = Vec::new();
        if let Some(width) = width {
            kept.retain(|&column| self.columns[column].1 == 0 || self.has_values(column));
            while self.width_of(&kept) > width {
                let Some(&goes) = kept.iter().max_by_key(|&&c| self.columns[c].1) else { break };
                let (name, rank) = self.columns[goes];
                if rank == 0 {
                    break;
                }
                kept.retain(|&column| column != goes);
                left_out.push(name);
            }
        }
        let room = width.map(|width| width.saturating_sub(self.width_of(&kept) + GAP));
        let widest = self.rows.iter().map(|(_, text)| display_width(&text.0)).max().unwrap_or_default();
        let beside =
            has_text && room.is_none_or(|room| room >= NARROWEST_TEXT.min(widest.max(self.text.len())));
        let mut lines = self.laid_out(&kept, beside.then_some(room));
        if has_text && !beside {
            lines = self.with_text_below(lines, width);
        }
        if !left_out.is_empty() {
            let note = format!(
                "Left out to fit {} columns: {}. Use a wider terminal or -o json.",
                width.unwrap_or_default(),
                left_out.join(", ")
            );
            lines.push(String::new());
            lines.extend(wrap(&note, 0, width));
        }
        lines.join("\n")
    }

    fn has_values(&self, column: usize) -> bool {
        self.rows.iter().any(|(cells, _)| !cells[column].0.is_empty())
    }

    fn width_of(&self, kept: &[usize]) -> usize {
        let widest = |&column: &usize| {
            let cells = self.rows.iter().map(|(cells, _)| display_width(cells[column].shown()));
            cells.chain([self.columns[column].0.len()]).max().unwrap_or_default()
        };
        kept.iter().map(widest).sum::<usize>() + GAP * kept.len().saturating_sub(1)
    }

    /// The lines of these columns, and of the text column where there is room for it beside them.
    fn laid_out(&self, kept: &[usize], text: Option<Option<usize>>) -> Vec<String> {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        let head = kept.iter().map(|&column| self.columns[column].0);
        table.set_header(head.chain(text.map(|_| self.text)));
        for (cells, last) in &self.rows {
            let row = kept.iter().map(|&column| cells[column].shown().to_owned());
            let last = text.map(|room| match room {
                Some(_) => wrap(last.shown(), 0, room).join("\n"),
                None => last.shown().to_owned(),
            });
            table.add_row(row.chain(last));
        }
        table.column_iter_mut().for_each(|column| {
            column.set_padding((0, GAP as u16));
        });
        table.lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// The head's line, and each row's line with its text below it.
    fn with_text_below(&self, lines: Vec<String>, width: Option<usize>) -> Vec<String> {
        let mut lines = lines.into_iter();
        let mut all: Vec<String> = lines.by_ref().take(1).collect();
        for (line, (_, text)) in lines.zip(&self.rows) {
            all.push(line);
            if !text.0.is_empty() {
                let text = format!("{}: {}", self.text.to_lowercase(), text.0);
                all.extend(wrap(&text, 4, width));
            }
        }
        all
    }
}
