//! JSON (RFC 8259): one array of objects, a line each; or JSON Lines, the objects alone.
//!
//! A value keeps its exactness whatever reads it: integers beyond 2^53 − 1 and decimals beyond 15 significant digits are
//! strings, since many readers hold numbers as doubles (RFC 8259 §6), and so are `NaN` and the infinities, which JSON has no
//! numbers for. Arrays are arrays, `json` and `jsonb` stand as they are stored, booleans and NULL are JSON's own, all others
//! are strings. A name that several columns have is numbered from the second on (`id`, `id_2`): readers keep one of equals.

use std::collections::HashSet;

use crate::clients::source::{Column, Shape};

use super::{Cells, Unwritable};

/// Writes JSON.
pub(super) struct Json {
    columns: Vec<Member>,
    /// No array around the objects.
    lines: bool,
    /// Whether a row was written.
    begun: bool,
    scratch: String,
}

struct Member {
    /// `{"name":` or `,"name":`.
    lead: Vec<u8>,
    shape: Shape,
}

impl Json {
    /// One array.
    pub(super) fn array(columns: &[Column]) -> Self {
        Self::new(columns, false)
    }

    /// An object a line.
    pub(super) fn lines(columns: &[Column]) -> Self {
        Self::new(columns, true)
    }

    fn new(columns: &[Column], lines: bool) -> Self {
        let names = unique(columns.iter().map(|column| column.name.as_str()));
        let columns = columns.iter().zip(names).enumerate().map(|(index, (column, name))| {
            let mut lead = vec![if index == 0 { b'{' } else { b',' }];
            string(&name, &mut lead);
            lead.push(b':');
            Member { lead, shape: column.shape.clone() }
        });
        Self { columns: columns.collect(), lines, begun: false, scratch: String::new() }
    }

    pub(super) fn begin(&mut self, out: &mut Vec<u8>) {
        if !self.lines {
            out.push(b'[');
        }
    }

    pub(super) fn row(&mut self, row: &(impl Cells + ?Sized), out: &mut Vec<u8>) -> Result<(), Unwritable> {
        if !self.lines {
            out.extend_from_slice(if self.begun { b",\n" } else { b"\n" });
        }
        self.begun = true;
        if self.columns.is_empty() {
            out.push(b'{');
        }
        for (index, Member { lead, shape }) in self.columns.iter().enumerate() {
            out.extend_from_slice(lead);
            match row.cell(index)? {
                Some(raw) => value(shape, raw, &mut self.scratch, out),
                None => out.extend_from_slice(b"null"),
            }
        }
        out.extend_from_slice(if self.lines { b"}\n" } else { b"}" });
        Ok(())
    }

    pub(super) fn end(&mut self, out: &mut Vec<u8>) {
        if !self.lines {
            out.extend_from_slice(b"\n]\n");
        }
    }
}

/// Names in their order, each once.
fn unique<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Vec<String> {
    let mut taken: HashSet<String> = names.clone().map(str::to_owned).collect();
    let mut seen = HashSet::new();
    names
        .map(|name| {
            if seen.insert(name) {
                return name.to_owned();
            }
            let free = (2..=u32::MAX).map(|number| format!("{name}_{number}")).find(|name| taken.insert(name.clone()));
            free.unwrap_or_else(|| name.to_owned())
        })
        .collect()
}

fn value(shape: &Shape, raw: &str, scratch: &mut String, out: &mut Vec<u8>) {
    match shape {
        Shape::Text => string(raw, out),
        Shape::Integer | Shape::Numeric | Shape::Float if shape.is_exact_number(raw) => out.extend_from_slice(raw.as_bytes()),
        Shape::Boolean => out.extend_from_slice(shape.plain(raw, scratch).as_bytes()),
        Shape::Json => one_line(raw, out),
        Shape::Array { .. } => one_line(shape.plain(raw, scratch), out),
        _ => string(shape.plain(raw, scratch), out),
    }
}

/// JSON with its line ends, which can only stand between tokens, as spaces: a row is a line.
fn one_line(json: &str, out: &mut Vec<u8>) {
    let from = out.len();
    out.extend_from_slice(json.as_bytes());
    for byte in out.iter_mut().skip(from) {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
}

/// A JSON string.
pub(super) fn string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for block in text.as_bytes().chunks(256) {
        if block.iter().fold(false, |found, &byte| found | is_special(byte)) {
            escape(block, out);
        } else {
            out.extend_from_slice(block);
        }
    }
    out.push(b'"');
}

const fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for &byte in bytes {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 => {
                let digit = |half: u8| DIGITS.get(usize::from(half)).copied().unwrap_or(b'0');
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 15)]);
            }
            plain => out.push(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::sample::{HARD, column},
        *,
    };

    fn written(mut json: Json, rows: &[&[Option<&str>]]) -> String {
        let mut out = Vec::new();
        json.begin(&mut out);
        for row in rows {
            json.row(*row, &mut out).unwrap();
        }
        json.end(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_text_reads_back() {
        let long = "x\u{1}\"é".repeat(1_000);
        let texts: Vec<&str> = HARD.iter().copied().chain([long.as_str()]).collect();
        let rows: Vec<[Option<&str>; 2]> = texts.iter().map(|text| [Some(*text), None]).collect();
        let rows: Vec<&[Option<&str>]> = rows.iter().map(|row| &row[..]).collect();
        let columns = [column("a\"", Shape::Text), column("b", Shape::Text)];
        let expected: Vec<Value> = texts.iter().map(|text| json!({"a\"": text, "b": null})).collect();
        assert_eq!(serde_json::from_str::<Vec<Value>>(&written(Json::array(&columns), &rows)).unwrap(), expected);
        let lines = written(Json::lines(&columns), &rows);
        let read: Vec<Value> = lines.split_terminator('\n').map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn values_are_of_their_types() {
        let list = Shape::Array { element: Box::new(Shape::Integer), delimiter: ',' };
        let columns = [
            column("id", Shape::Integer),
            column("id", Shape::Integer),
            column("id_2", Shape::Boolean),
            column("n", Shape::Numeric),
            column("f", Shape::Float),
            column("j", Shape::Json),
            column("l", list),
            column("d", Shape::TimestampWithZone),
        ];
        let row = ["9007199254740993", "-5", "t", "-12.50", "NaN", "{\"a\":\r\n 1.10}", "{1,NULL}", "2026-11-20 10:00:00+00"].map(Some);
        assert_eq!(
            written(Json::lines(&columns), &[&row]),
            "{\"id\":\"9007199254740993\",\"id_3\":-5,\"id_2\":true,\"n\":-12.50,\"f\":\"NaN\",\"j\":{\"a\":   1.10},\"l\":[1,null],\"d\":\"2026-11-20T10:00:00Z\"}\n"
        );
        assert_eq!(written(Json::array(&columns), &[]), "[\n]\n");
        assert_eq!(written(Json::lines(&[]), &[&[], &[]]), "{}\n{}\n");
    }
}
