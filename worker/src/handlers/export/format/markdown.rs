//! A Markdown table (GitHub Flavored Markdown §4.10, <https://github.github.com/gfm/#tables-extension->).
//!
//! What must stay true: a `CommonMark` parser that knows tables reads back the same cells, as text and nothing else. So all
//! that could be markup is escaped with a backslash, except what parsers disagree about in tables, or what ends a line or is trimmed:
//! that is written as a character reference (`CommonMark` §2.5), which is never markup. A backslash is one of these, so
//! that no escaped pipe ever stands behind another backslash.
//!
//! NULL is an emphasised `*NULL*`, which no value can be; the empty string is an empty cell. Columns of numbers are aligned to the right.

use crate::clients::source::{Column, Shape};

use super::{Cells, Unwritable};

/// Writes a Markdown table.
pub(super) struct Markdown {
    columns: Vec<Column>,
    scratch: String,
}

impl Markdown {
    pub(super) fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), scratch: String::new() }
    }

    /// The header and what tells it from a line with pipes.
    pub(super) fn begin(&mut self, out: &mut Vec<u8>) {
        for column in &self.columns {
            out.extend_from_slice(b"| ");
            cell(&column.name, out);
            out.push(b' ');
        }
        out.extend_from_slice(b"|\n");
        for column in &self.columns {
            let is_number = matches!(column.shape, Shape::Integer | Shape::Numeric | Shape::Float);
            out.extend_from_slice(if is_number { b"| ---: " } else { b"| --- " });
        }
        out.extend_from_slice(b"|\n");
    }

    pub(super) fn row(&mut self, row: &(impl Cells + ?Sized), out: &mut Vec<u8>) -> Result<(), Unwritable> {
        for (index, column) in self.columns.iter().enumerate() {
            out.extend_from_slice(b"| ");
            match row.cell(index)? {
                Some(raw) => cell(column.shape.plain(raw, &mut self.scratch), out),
                None => out.extend_from_slice(b"*NULL*"),
            }
            out.push(b' ');
        }
        out.extend_from_slice(b"|\n");
        Ok(())
    }
}

/// A text as the content of a cell.
pub(super) fn cell(text: &str, out: &mut Vec<u8>) {
    let inner = text.trim();
    let edges = text.split_once(inner).filter(|_| !inner.is_empty());
    let (before, after) = edges.unwrap_or((text, ""));
    blank(before, out);
    for character in if edges.is_some() { inner.chars() } else { "".chars() } {
        match character {
            '\\' | '\n' | '\r' | '\t' | '\u{c}' | '\u{2028}' | '\u{2029}' => reference(character, out),
            '&' => out.extend_from_slice(b"&amp;"),
            '<' => out.extend_from_slice(b"&lt;"),
            '>' => out.extend_from_slice(b"&gt;"),
            '|' | '`' | '*' | '_' | '[' | ']' | '~' | '$' | '^' | '=' | '!' => out.extend_from_slice(&[b'\\', character as u8]),
            other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    blank(after, out);
}

/// White space at an edge, which parsers trim unless it is referred to.
fn blank(text: &str, out: &mut Vec<u8>) {
    for character in text.chars() {
        match character {
            // References to these are read as other characters, or as none (HTML §13.2.5.80).
            '\u{b}' | '\u{85}' => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            other => reference(other, out),
        }
    }
}

fn reference(character: char, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("&#{};", u32::from(character)).as_bytes());
}

#[cfg(test)]
mod tests {
    use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

    use super::{
        super::sample::{HARD, column},
        *,
    };

    /// The cells of the only table, row by row; an emphasised text in underscores.
    fn read(markdown: &str) -> Vec<Vec<String>> {
        let (mut rows, mut row, mut text) = (Vec::new(), Vec::new(), String::new());
        for event in Parser::new_ext(markdown, Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_MATH) {
            match event {
                Event::Start(Tag::TableCell) => text.clear(),
                Event::Text(piece) => text.push_str(&piece),
                Event::Start(Tag::Emphasis) => text.push('_'),
                Event::End(TagEnd::Emphasis) => text.push_str("_!"),
                Event::End(TagEnd::TableCell) => row.push(std::mem::take(&mut text)),
                Event::End(TagEnd::TableRow | TagEnd::TableHead) => rows.push(std::mem::take(&mut row)),
                Event::Start(Tag::Table(_) | Tag::TableHead | Tag::TableRow) | Event::End(TagEnd::Table) => {}
                other => panic!("{other:?} in {markdown}"),
            }
        }
        rows
    }

    #[test]
    fn a_parser_reads_the_same_cells() {
        for text in HARD.iter().copied().chain(["a\\|b\\", "\u{2003}em\u{2003}", "x\ty", "\\\\\\|", "&#32;"]) {
            let mut table = Markdown::new(&[
                column(if text.trim().is_empty() { "x" } else { text }, Shape::Text),
                column("n", Shape::Integer),
                column("z", Shape::Text),
            ]);
            let mut out = Vec::new();
            table.begin(&mut out);
            table.row(&[Some(text), Some("-5"), None], &mut out).unwrap();
            table.row(&[None, None, Some(text)], &mut out).unwrap();
            let rows = read(&String::from_utf8(out).unwrap());
            assert_eq!(rows.len(), 3, "{text:?}");
            assert_eq!(rows[1], [text, "-5", "_NULL_!"], "{text:?}");
            assert_eq!(rows[2], ["_NULL_!", "_NULL_!", text], "{text:?}");
            if !text.trim().is_empty() {
                assert_eq!(rows[0], [text, "n", "z"]);
            }
        }
    }
}
