//! CSV after RFC 4180: CRLF, a header line, UTF-8, quotes only where they are needed.
//!
//! NULL is nothing at all and the empty string is `""`, as Postgres' own `COPY … CSV` tells them apart and reads them back.
//! In a file of one column a NULL would be an empty line, which most readers skip: there it is `""` too, so that no row gets
//! lost. What other types look like stands with [`Shape`](crate::clients::source::Shape).

use crate::clients::source::{Column, NotText, Row, Shape};

/// Writes CSV.
pub(in super::super) struct Csv {
    columns: Vec<(String, Shape)>,
    scratch: String,
}

impl Csv {
    pub(super) fn new(columns: &[Column]) -> Self {
        let columns = columns.iter().map(|column| (column.name.clone(), column.shape.clone())).collect();
        Self { columns, scratch: String::new() }
    }

    /// The header.
    pub(super) fn begin(&mut self, out: &mut Vec<u8>) {
        for (index, (name, _)) in self.columns.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            field(name, out);
        }
        out.extend_from_slice(b"\r\n");
    }

    pub(super) fn row(&mut self, row: &Row, out: &mut Vec<u8>) -> Result<(), NotText> {
        let alone = self.columns.len() == 1;
        for (index, (_, shape)) in self.columns.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            match row.cell(index)? {
                // Cells that a spreadsheet would run as formulas are to be escaped here, where the shape tells texts from
                // numbers.
                Some(raw) => field(shape.plain(raw, &mut self.scratch), out),
                None if alone => field("", out),
                None => {}
            }
        }
        out.extend_from_slice(b"\r\n");
        Ok(())
    }
}

/// A field, quoted where the text would otherwise be read as something else.
fn field(text: &str, out: &mut Vec<u8>) {
    // A lone `\.` ends the data for older versions of `COPY`.
    if text.is_empty() || text == "\\." || has_special(text.as_bytes()) {
        out.push(b'"');
        for (index, piece) in text.split('"').enumerate() {
            if index > 0 {
                out.extend_from_slice(b"\"\"");
            }
            out.extend_from_slice(piece.as_bytes());
        }
        out.push(b'"');
    } else {
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
    use super::*;

    fn written(text: &str) -> String {
        let mut out = Vec::new();
        field(text, &mut out);
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
        Csv::new(&[column("id"), column("?column?"), column("a,b"), column("Größe \"m\""), column("id")]).begin(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "id,?column?,\"a,b\",\"Größe \"\"m\"\"\",id\r\n");
    }
}
