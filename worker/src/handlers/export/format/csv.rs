//! CSV after RFC 4180: CRLF, a header line, UTF-8, quotes only where they are needed.
//!
//! NULL is nothing at all and the empty string is `""`, as Postgres' own `COPY … CSV` tells them apart and reads them back.
//! In a file of one column a NULL would be an empty line, which most readers skip: there it is `""` too, so that no row gets
//! lost. What other types look like stands with [`Shape`](crate::clients::source::Shape).
//!
//! Formulas: spreadsheets run a cell that begins with one of [`TRIGGERS`] (OWASP ASVS 5.0 §1.2.10, and the full-width forms
//! that Excel takes for the same), quoted or not. Such cells get an apostrophe before them, where the column is one of texts:
//! numbers, dates, JSON and the like can't say anything to a spreadsheet, and negative numbers stay numbers. So that a reader can
//! undo it, cells that begin with apostrophes and then a trigger get one more: whoever removes one apostrophe from each
//! cell that begins with apostrophes and then a trigger has the table, to the byte.

use crate::clients::source::{Column, Shape};

use super::{Cells, Unwritable};

/// What a formula can begin with.
const TRIGGERS: [char; 12] = ['=', '+', '-', '@', '\t', '\r', '\n', '\0', '＝', '＋', '－', '＠'];

/// What Excel takes for UTF-8: a byte order mark.
const MARK: &[u8] = "\u{feff}".as_bytes();

/// Writes CSV.
pub(super) struct Csv {
    columns: Vec<Field>,
    bom: bool,
    scratch: String,
}

struct Field {
    name: String,
    shape: Shape,
    /// Whether formulas in it are escaped.
    escaped: bool,
}

impl Csv {
    pub(super) fn new(columns: &[Column], bom: bool, escape_formulas: bool) -> Self {
        let columns = columns.iter().map(|column| {
            // Money is a number that Postgres writes with a sign and a symbol; nobody's words.
            let escaped = escape_formulas && column.shape == Shape::Text && column.type_name != "money";
            Field { name: column.name.clone(), shape: column.shape.clone(), escaped }
        });
        Self { columns: columns.collect(), bom, scratch: String::new() }
    }

    /// The header. Its names are the manifest's, so no formulas.
    pub(super) fn begin(&mut self, out: &mut Vec<u8>) {
        if self.bom {
            out.extend_from_slice(MARK);
        }
        for (index, Field { name, .. }) in self.columns.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            field(name, false, out);
        }
        out.extend_from_slice(b"\r\n");
    }

    pub(super) fn row(&mut self, row: &(impl Cells + ?Sized), out: &mut Vec<u8>) -> Result<(), Unwritable> {
        let alone = self.columns.len() == 1;
        for (index, Field { shape, escaped, .. }) in self.columns.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            match row.cell(index)? {
                Some(raw) => field(shape.plain(raw, &mut self.scratch), *escaped, out),
                None if alone => field("", false, out),
                None => {}
            }
        }
        out.extend_from_slice(b"\r\n");
        Ok(())
    }
}

/// Whether a spreadsheet could run it, or an escaped cell could be taken for it.
fn looks_like_formula(text: &str) -> bool {
    match text.as_bytes().first() {
        // Letters and digits, mostly: no formula begins so. 0xEF begins the full-width forms.
        Some(b'=' | b'+' | b'-' | b'@' | b'\t' | b'\r' | b'\n' | b'\0' | b'\'' | 0xEF) => {
            text.trim_start_matches('\'').starts_with(TRIGGERS)
        }
        _ => false,
    }
}

/// A field, quoted where the text would otherwise be read as something else.
fn field(text: &str, escaped: bool, out: &mut Vec<u8>) {
    let apostrophe: &[u8] = if escaped && looks_like_formula(text) { b"'" } else { b"" };
    // A lone `\.` ends the data for older versions of `COPY`.
    if text.is_empty() || text == "\\." || has_special(text.as_bytes()) {
        out.push(b'"');
        out.extend_from_slice(apostrophe);
        for (index, piece) in text.split('"').enumerate() {
            if index > 0 {
                out.extend_from_slice(b"\"\"");
            }
            out.extend_from_slice(piece.as_bytes());
        }
        out.push(b'"');
    } else {
        out.extend_from_slice(apostrophe);
        out.extend_from_slice(text.as_bytes());
    }
}

/// Whether there is a comma, a quote or a line's end. Looks at blocks without leaving them early, which the compiler turns
/// into a few wide instructions.
fn has_special(bytes: &[u8]) -> bool {
    bytes.chunks(256).any(|block| block.iter().fold(false, |found, byte| found | matches!(byte, b',' | b'"' | b'\r' | b'\n')))
}

#[cfg(test)]
mod tests {
    use super::{super::sample, *};

    fn written(text: &str) -> String {
        let mut out = Vec::new();
        field(text, false, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn fields_are_quoted_where_needed() {
        for (text, expected) in [
            ("plain", "plain"),
            ("", "\"\""),
            (" leading and trailing ", " leading and trailing "),
            ("a,b", "\"a,b\""),
            ("say \"when\"", "\"say \"\"when\"\"\""),
            ("\"", "\"\"\"\""),
            ("one\r\ntwo", "\"one\r\ntwo\""),
            ("one\rtwo", "\"one\rtwo\""),
            ("one\ntwo", "\"one\ntwo\""),
            ("\\.", "\"\\.\""),
            ("a\\.", "a\\."),
            ("\t;|", "\t;|"),
            ("🚀é\u{2028}\u{feff}", "🚀é\u{2028}\u{feff}"),
        ] {
            assert_eq!(written(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_special_character_is_found_wherever_it_stands() {
        for length in [1, 15, 16, 255, 256, 257, 1_000] {
            for special in [",", "\"", "\r", "\n"] {
                for place in 0..length {
                    let text = format!("{}{special}{}", "x".repeat(place), "x".repeat(length - place - 1));
                    assert!(has_special(text.as_bytes()), "{special:?} at {place} of {length}");
                }
            }
            assert!(!has_special("x".repeat(length).as_bytes()));
        }
    }

    #[test]
    fn a_header_is_quoted_like_any_field() {
        let column = |name: &str| Column { name: name.into(), type_name: "text".into(), shape: Shape::Text };
        let mut out = Vec::new();
        Csv::new(&[column("id"), column("?column?"), column("a,b"), column("Größe \"m\""), column("id")], false, true).begin(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "id,?column?,\"a,b\",\"Größe \"\"m\"\"\",id\r\n");
    }

    #[test]
    fn formulas_of_texts_are_escaped_numbers_not_and_a_reader_can_undo_it() {
        let columns = [sample::column("text", Shape::Text), sample::column("number", Shape::Numeric), sample::column("json", Shape::Json)];
        let line = |escape, text: &str| {
            let mut out = Vec::new();
            Csv::new(&columns, false, escape).row(&[Some(text), Some("-1.5"), Some("-1")], &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        for (text, expected) in [
            ("=1+1", "'=1+1"),
            ("-1", "'-1"),
            ("+", "'+"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\tx", "'\tx"),
            ("\r", "\"'\r\""),
            ("\n=", "\"'\n=\""),
            ("＝1", "'＝1"),
            ("－1", "'－1"),
            ("'=1", "''=1"),
            ("''=1", "'''=1"),
            ("'tis", "'tis"),
            ("''", "''"),
            ("a=1", "a=1"),
            (" =1", " =1"),
            ("\u{feff}=", "\u{feff}="),
        ] {
            assert_eq!(line(true, text), format!("{expected},-1.5,-1\r\n"), "{text:?}");
            let quote = if text.contains(['\r', '\n']) { "\"" } else { "" };
            assert_eq!(line(false, text), format!("{quote}{text}{quote},-1.5,-1\r\n"), "{text:?}");
        }
    }

    #[test]
    fn the_mark_comes_first() {
        let mut out = Vec::new();
        Csv::new(&[sample::column("a", Shape::Text)], true, true).begin(&mut out);
        assert_eq!(out, b"\xEF\xBB\xBFa\r\n");
    }
}
