//! A workbook (ECMA-376, Office Open XML), written from front to back: a zip archive of XML, the sheets first and what lists
//! them last, so that neither memory nor a disk holds what was written.
//!
//! Cells are typed where Excel holds the value exactly, and texts where it does not: whole numbers below 2^53, decimals of up to 15
//! significant digits and finite floats within Excel's range are numbers; `date` from 1900-03-01 to 9999-12-31 is a date; moments are
//! texts (RFC 3339), since Excel's have no zone and round microseconds. NULL is no cell, the empty string an empty text.
//! Texts are texts, whatever they begin with: nothing becomes a formula. Characters that XML has no place for, and texts
//! that look like their escape, are written as `_xHHHH_` (ECMA-376-1 §22.9.2.19).
//!
//! Limits (<https://support.microsoft.com/en-us/office/excel-specifications-and-limits-1672b34d-7043-467e-8e27-269d656771c3>): after 1,048,576
//! rows, or before a sheet's XML reaches 4 GiB, the next sheet begins, with the header again. A cell holds 32,767 characters:
//! what a text has beyond them continues right of the last column, nothing is cut. There one cell says
//! `name continued in 2 cells`, and that many cells with the rest follow.

use std::fmt::Write as _;

use chrono::NaiveDate;

use super::{
    Cells, Unwritable,
    archive::{Archive, Size},
};
use crate::clients::source::{Column, Shape};

/// The most rows of a sheet, its header among them.
const MOST_ROWS: u32 = 1_048_576;

/// The longest text of a cell, in UTF-16 units.
const LONGEST_TEXT: usize = 32_767;

/// How large a sheet's XML may become: a row, which is at most 64 MiB, short of the 4 GiB that all readers of zip archives know.
const MOST_BYTES: u64 = 3_900 * 1024 * 1024;

/// XML that is compressed at a time.
const PIECE: usize = 64 * 1024;

const DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n";
const MAIN: &str = "http://schemas.openxmlformats.org/spreadsheetml/2006/main";
const RELATIONS: &str = "http://schemas.openxmlformats.org/officeDocument/2006/relationships";
const PACKAGE: &str = "http://schemas.openxmlformats.org/package/2006";

/// Writes a workbook.
pub(super) struct Xlsx {
    /// The first sheet's name; the others' are numbered.
    name: String,
    columns: Vec<Cell>,
    archive: Archive,
    /// XML that waits for the compressor.
    xml: Vec<u8>,
    sheets: u32,
    /// Rows of the sheet.
    rows: u32,
    /// Bytes of the sheet's XML that were compressed.
    bytes: u64,
    most_rows: u32,
    scratch: String,
}

struct Cell {
    name: String,
    shape: Shape,
    /// `A`, `B`, … `AA`.
    letters: String,
}

/// A name that Excel keeps for itself, and refuses a workbook for.
const RESERVED: &str = "history";

impl Xlsx {
    pub(super) fn new(name: &str, columns: &[Column]) -> Self {
        let cell =
            |(index, column): (usize, &Column)| Cell { name: column.name.clone(), shape: column.shape.clone(), letters: letters(index) };
        Self {
            name: if name == RESERVED { format!("{name} 1") } else { name.chars().take(25).collect() },
            columns: columns.iter().enumerate().map(cell).collect(),
            archive: Archive::new(),
            xml: Vec::new(),
            sheets: 0,
            rows: 0,
            bytes: 0,
            most_rows: MOST_ROWS,
            scratch: String::new(),
        }
    }

    pub(super) fn begin(&mut self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        self.begin_sheet(out)
    }

    fn begin_sheet(&mut self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        self.sheets += 1;
        (self.rows, self.bytes) = (1, 0);
        self.archive.begin(&format!("xl/worksheets/sheet{}.xml", self.sheets), Size::Small, out);
        let begin = format!(
            "{DECLARATION}<worksheet xmlns=\"{MAIN}\"><sheetViews><sheetView workbookViewId=\"0\"><pane ySplit=\"1\" topLeftCell=\"A2\" \
             activePane=\"bottomLeft\" state=\"frozen\"/></sheetView></sheetViews><sheetData><row r=\"1\">"
        );
        self.xml.extend_from_slice(begin.as_bytes());
        for Cell { name, letters, .. } in &self.columns {
            // Postgres' names have 63 bytes.
            let _ = text(name, Place { letters, row: "1", style: " s=\"1\"" }, &mut self.xml);
        }
        self.xml.extend_from_slice(b"</row>");
        self.flush(out)
    }

    fn end_sheet(&mut self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        self.xml.extend_from_slice(b"</sheetData></worksheet>");
        self.flush(out)?;
        self.archive.end(out)
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        self.archive.write(&self.xml, out)?;
        self.bytes += self.xml.len() as u64;
        self.xml.clear();
        Ok(())
    }

    /// One row. Answers its length as XML.
    pub(super) fn row(&mut self, row: &(impl Cells + ?Sized), out: &mut Vec<u8>) -> Result<usize, Unwritable> {
        if self.rows >= self.most_rows || self.bytes >= MOST_BYTES {
            self.end_sheet(out)?;
            self.begin_sheet(out)?;
        }
        self.rows += 1;
        let number = self.rows.to_string();
        let from = self.xml.len();
        for piece in [b"<row r=\"", number.as_bytes(), b"\">"] {
            self.xml.extend_from_slice(piece);
        }
        let mut long = Vec::new();
        for (index, Cell { name, shape, letters }) in self.columns.iter().enumerate() {
            if let Some(raw) = row.cell(index)? {
                let rest = cell(shape, raw, Place { letters, row: &number, style: "" }, &mut self.scratch, &mut self.xml);
                long.extend(rest.map(|rest| (name, rest)));
            }
        }
        let mut index = self.columns.len();
        let mut next = |content: &str, xml: &mut Vec<u8>| {
            let letters = letters(index);
            index += 1;
            let _ = text(content, Place { letters: &letters, row: &number, style: "" }, xml);
        };
        for (name, rest) in long {
            let pieces = pieces(&rest);
            let cells = if pieces.len() == 1 { "cell" } else { "cells" };
            next(&format!("{name} continued in {} {cells}", pieces.len()), &mut self.xml);
            for piece in pieces {
                next(piece, &mut self.xml);
            }
        }
        self.xml.extend_from_slice(b"</row>");
        let length = self.xml.len() - from;
        if self.xml.len() >= PIECE {
            self.flush(out)?;
        }
        Ok(length)
    }

    pub(super) fn end(&mut self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        self.end_sheet(out)?;
        let (mut sheets, mut relations, mut contents) = (String::new(), String::new(), String::new());
        for number in 1..=self.sheets {
            let name = if number == 1 { self.name.clone() } else { format!("{} {number}", self.name) };
            let mut escaped = Vec::new();
            escape(&name, &mut escaped);
            let name = String::from_utf8_lossy(&escaped).replace('"', "&quot;");
            _ = write!(sheets, "<sheet name=\"{name}\" sheetId=\"{number}\" r:id=\"rId{number}\"/>");
            _ = write!(
                relations,
                "<Relationship Id=\"rId{number}\" Type=\"{RELATIONS}/worksheet\" Target=\"worksheets/sheet{number}.xml\"/>"
            );
            _ = write!(
                contents,
                "<Override PartName=\"/xl/worksheets/sheet{number}.xml\" ContentType=\"application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml\"/>"
            );
        }
        let styles_id = self.sheets + 1;
        for (name, content) in [
            (
                "xl/styles.xml",
                // 0: plain; 1: the header, bold; 2: a date, as the reader's country writes it (number format 14).
                format!(
                    "<styleSheet xmlns=\"{MAIN}\"><fonts count=\"2\"><font><sz val=\"11\"/><name val=\"Calibri\"/></font><font><b/><sz val=\"11\"/>\
                     <name val=\"Calibri\"/></font></fonts><fills count=\"2\"><fill><patternFill patternType=\"none\"/></fill><fill>\
                     <patternFill patternType=\"gray125\"/></fill></fills><borders count=\"1\"><border><left/><right/><top/><bottom/><diagonal/></border></borders>\
                     <cellStyleXfs count=\"1\"><xf numFmtId=\"0\" fontId=\"0\" fillId=\"0\" borderId=\"0\"/></cellStyleXfs><cellXfs count=\"3\">\
                     <xf numFmtId=\"0\" fontId=\"0\" fillId=\"0\" borderId=\"0\" xfId=\"0\"/>\
                     <xf numFmtId=\"0\" fontId=\"1\" fillId=\"0\" borderId=\"0\" xfId=\"0\" applyFont=\"1\"/>\
                     <xf numFmtId=\"14\" fontId=\"0\" fillId=\"0\" borderId=\"0\" xfId=\"0\" applyNumberFormat=\"1\"/></cellXfs>\
                     <cellStyles count=\"1\"><cellStyle name=\"Normal\" xfId=\"0\" builtinId=\"0\"/></cellStyles></styleSheet>"
                ),
            ),
            ("xl/workbook.xml", format!("<workbook xmlns=\"{MAIN}\" xmlns:r=\"{RELATIONS}\"><sheets>{sheets}</sheets></workbook>")),
            (
                "xl/_rels/workbook.xml.rels",
                format!(
                    "<Relationships xmlns=\"{PACKAGE}/relationships\">{relations}<Relationship Id=\"rId{styles_id}\" Type=\"{RELATIONS}/styles\" Target=\"styles.xml\"/></Relationships>"
                ),
            ),
            (
                "_rels/.rels",
                format!(
                    "<Relationships xmlns=\"{PACKAGE}/relationships\"><Relationship Id=\"rId1\" Type=\"{RELATIONS}/officeDocument\" Target=\"xl/workbook.xml\"/></Relationships>"
                ),
            ),
            (
                "[Content_Types].xml",
                format!(
                    "<Types xmlns=\"{PACKAGE}/content-types\"><Default Extension=\"rels\" ContentType=\"application/vnd.openxmlformats-package.relationships+xml\"/>\
                     <Default Extension=\"xml\" ContentType=\"application/xml\"/><Override PartName=\"/xl/workbook.xml\" \
                     ContentType=\"application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml\"/>{contents}<Override PartName=\"/xl/styles.xml\" \
                     ContentType=\"application/vnd.openxmlformats-officedocument.spreadsheetml.styles+xml\"/></Types>"
                ),
            ),
        ] {
            self.archive.begin(name, Size::Small, out);
            self.archive.write(DECLARATION.as_bytes(), out)?;
            self.archive.write(content.as_bytes(), out)?;
            self.archive.end(out)?;
        }
        self.archive.finish(out);
        Ok(())
    }
}

/// Where a cell stands and how it looks.
#[derive(Clone, Copy)]
struct Place<'a> {
    letters: &'a str,
    row: &'a str,
    style: &'a str,
}

impl Place<'_> {
    /// `<c r="A1"`, up to what says its type.
    fn open(self, out: &mut Vec<u8>) {
        for piece in ["<c r=\"", self.letters, self.row, "\"", self.style] {
            out.extend_from_slice(piece.as_bytes());
        }
    }
}

/// Writes a cell. Answers what of it did not fit.
fn cell(shape: &Shape, raw: &str, place: Place<'_>, scratch: &mut String, out: &mut Vec<u8>) -> Option<String> {
    let number = match shape {
        Shape::Integer | Shape::Numeric => shape.is_exact_number(raw),
        Shape::Float => is_excel_number(raw),
        _ => false,
    };
    let value = |kind: &str, value: &str, place: Place<'_>, out: &mut Vec<u8>| {
        place.open(out);
        for piece in [kind, "><v>", value, "</v></c>"] {
            out.extend_from_slice(piece.as_bytes());
        }
    };
    match shape {
        _ if number => value("", raw, place, out),
        Shape::Boolean if matches!(raw, "t" | "f") => value(" t=\"b\"", if raw == "t" { "1" } else { "0" }, place, out),
        Shape::Date => match serial(raw) {
            Some(days) => value("", &days.to_string(), Place { style: " s=\"2\"", ..place }, out),
            None => return text(shape.plain(raw, scratch), place, out),
        },
        _ => return text(shape.plain(raw, scratch), place, out),
    }
    None
}

/// Finite, and neither denormal nor beyond what Excel holds, 9.99999999999999E+307.
fn is_excel_number(raw: &str) -> bool {
    raw.parse::<f64>().is_ok_and(|number| number == 0.0 || (f64::MIN_POSITIVE..=9.999_999_999_999_99e307).contains(&number.abs()))
}

/// Excel's number of a day. Before March 1900 it counts a day that never was.
fn serial(raw: &str) -> Option<i64> {
    if raw.len() != 10 {
        return None;
    }
    let day: NaiveDate = raw.parse().ok()?;
    let days = day.signed_duration_since(NaiveDate::from_ymd_opt(1899, 12, 30)?).num_days();
    (days > 60).then_some(days)
}

/// A text cut where a cell ends.
fn split(text: &str) -> (&str, &str) {
    // Never more units than bytes.
    if text.len() <= LONGEST_TEXT {
        return (text, "");
    }
    let mut units = 0;
    let end = text.char_indices().find(|(_, character)| {
        units += character.len_utf16();
        units > LONGEST_TEXT
    });
    end.and_then(|(end, _)| text.split_at_checked(end)).unwrap_or((text, ""))
}

/// A text cell by cell.
fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (piece, after) = split(rest);
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// A text, in the cell itself: a table of shared strings would have to be kept. Answers what did not fit.
fn text(text: &str, place: Place<'_>, out: &mut Vec<u8>) -> Option<String> {
    let (text, rest) = split(text);
    place.open(out);
    out.extend_from_slice(b" t=\"inlineStr\"><is><t");
    if text.trim().len() != text.len() || text.contains('\n') {
        out.extend_from_slice(b" xml:space=\"preserve\"");
    }
    out.push(b'>');
    escape(text, out);
    out.extend_from_slice(b"</t></is></c>");
    (!rest.is_empty()).then(|| rest.to_owned())
}

/// A text as XML.
fn escape(text: &str, out: &mut Vec<u8>) {
    // 0xEF begins U+FFFE and U+FFFF, which XML leaves out.
    let special = |byte: u8| byte < 0x20 || matches!(byte, b'&' | b'<' | b'>' | b'_' | 0xEF);
    if !text.bytes().fold(false, |found, byte| found | special(byte)) {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    for (index, character) in text.char_indices() {
        match character {
            '&' => out.extend_from_slice(b"&amp;"),
            '<' => out.extend_from_slice(b"&lt;"),
            '>' => out.extend_from_slice(b"&gt;"),
            // As it is, an XML reader would take it for a line feed.
            '\r' => out.extend_from_slice(b"&#13;"),
            '\t' | '\n' => out.push(character as u8),
            '\0'..' ' | '\u{fffe}' | '\u{ffff}' => out.extend_from_slice(format!("_x{:04X}_", u32::from(character)).as_bytes()),
            '_' if looks_escaped(text.as_bytes().get(index..).unwrap_or_default()) => out.extend_from_slice(b"_x005F_"),
            other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Whether it begins with something like `_x0041_`.
fn looks_escaped(bytes: &[u8]) -> bool {
    matches!(bytes, [b'_', b'x', a, b, c, d, b'_', ..] if [a, b, c, d].iter().all(|digit| digit.is_ascii_hexdigit()))
}

/// The letters of a column, from 0.
fn letters(index: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = index + 1;
    while rest > 0 {
        letters.push(char::from(b'A' + u8::try_from((rest - 1) % 26).unwrap_or_default()));
        rest = (rest - 1) / 26;
    }
    letters.into_iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::{
            archive::tests::python,
            sample::{HARD, column},
        },
        *,
    };

    /// Reads the sheets with Python's own zip and XML readers: name, and rows of cells as type, value and style.
    const READER: &str = "import io, json, re, sys, zipfile, xml.etree.ElementTree as ET\n\
        M = '{http://schemas.openxmlformats.org/spreadsheetml/2006/main}'\n\
        z = zipfile.ZipFile(io.BytesIO(sys.stdin.buffer.read()))\n\
        assert z.testzip() is None\n\
        for name in z.namelist(): ET.fromstring(z.read(name))\n\
        undo = lambda t: re.sub('_x([0-9A-Fa-f]{4})_', lambda m: chr(int(m[1], 16)), t)\n\
        def cell(c):\n\
        \x20 t = c.get('t')\n\
        \x20 return [c.get('r'), t, undo(c.find(M + 'is').find(M + 't').text or '') if t == 'inlineStr' else c.find(M + 'v').text]\n\
        sheets = [s.get('name') for s in ET.fromstring(z.read('xl/workbook.xml')).find(M + 'sheets')]\n\
        json.dump([[name, [[cell(c) for c in row] for row in ET.fromstring(z.read(f'xl/worksheets/sheet{n}.xml')).find(M + 'sheetData')]]\n\
        \x20 for n, name in enumerate(sheets, 1)], sys.stdout)\n";

    fn workbook(mut xlsx: Xlsx, rows: &[Vec<Option<&str>>]) -> serde_json::Value {
        let mut out = Vec::new();
        xlsx.begin(&mut out).unwrap();
        for row in rows {
            xlsx.row(row.as_slice(), &mut out).unwrap();
        }
        xlsx.end(&mut out).unwrap();
        python(READER, &out)
    }

    #[test]
    fn texts_read_back_and_sheets_are_split() {
        let odd = ["\u{1}\u{b}\u{1f}", "\u{fffe}x\u{ffff}", "_x000A_", "__x005F_x_", "_x12_"];
        let texts: Vec<&str> = HARD.iter().copied().chain(odd).collect();
        let mut xlsx = Xlsx::new("prompts", &[column("a <b>", Shape::Text), column("b", Shape::Text)]);
        xlsx.most_rows = 11;
        let rows: Vec<_> = texts.iter().map(|text| vec![Some(*text), None]).collect();
        let read = workbook(xlsx, &rows);
        let mut found = Vec::new();
        for (number, sheet) in read.as_array().unwrap().iter().enumerate() {
            assert_eq!(sheet[0], if number == 0 { "prompts".to_owned() } else { format!("prompts {}", number + 1) });
            let rows = sheet[1].as_array().unwrap();
            assert!(rows.len() <= 11);
            assert_eq!(rows[0], json!([["A1", "inlineStr", "a <b>"], ["B1", "inlineStr", "b"]]));
            found.extend(rows.iter().skip(1).map(|row| row[0][2].as_str().unwrap().to_owned()));
        }
        assert_eq!(found, texts);
    }

    #[test]
    fn cells_are_typed_where_excel_is_exact() {
        let shapes = [Shape::Integer, Shape::Numeric, Shape::Float, Shape::Boolean, Shape::Date, Shape::TimestampWithZone];
        let columns: Vec<_> = shapes.into_iter().map(|shape| column("c", shape)).collect();
        let rows = [
            ["-9007199254740991", "-12.50", "1e+21", "t", "2026-11-20", "2026-11-20 10:00:00.123456+00"],
            ["9007199254740993", "1234567890.123456789", "NaN", "f", "0044-03-15 BC", "infinity"],
            ["0", "NaN", "5e-324", "t", "1900-02-28", "2026-11-20 10:00:00+00"],
            ["1", "0", "1.7976931348623157e+308", "t", "infinity", "2026-11-20 10:00:00+00"],
        ];
        let rows: Vec<Vec<_>> = rows.iter().map(|row| row.iter().copied().map(Some).collect()).collect();
        let read = workbook(Xlsx::new("x", &columns), &rows);
        let row = |number: usize| -> Vec<(bool, String)> {
            let cells = read[0][1][number].as_array().unwrap();
            cells.iter().map(|cell| (cell[1] == "inlineStr", cell[2].as_str().unwrap().to_owned())).collect()
        };
        let number = |text: &str| (false, text.to_owned());
        let text = |text: &str| (true, text.to_owned());
        assert_eq!(
            row(1),
            [
                number("-9007199254740991"),
                number("-12.50"),
                number("1e+21"),
                number("1"),
                number("46346"),
                text("2026-11-20T10:00:00.123456Z")
            ]
        );
        assert_eq!(
            row(2),
            [text("9007199254740993"), text("1234567890.123456789"), text("NaN"), number("0"), text("-000043-03-15"), text("infinity")]
        );
        assert_eq!(row(3)[1..5], [text("NaN"), text("5e-324"), number("1"), text("1900-02-28")]);
        assert_eq!(row(4)[2..5], [text("1.7976931348623157e+308"), number("1"), text("infinity")]);
    }

    #[test]
    fn a_text_that_does_not_fit_continues_at_the_rows_end() {
        let fits = "é".repeat(LONGEST_TEXT);
        let long = "\u{1f680}".repeat(LONGEST_TEXT);
        let read = workbook(
            Xlsx::new("x", &[column("a", Shape::Text), column("b", Shape::Text)]),
            &[vec![Some(&fits), Some("b")], vec![Some(&long), Some("b")]],
        );
        let rows = read[0][1].as_array().unwrap();
        assert_eq!(rows[1], json!([["A2", "inlineStr", fits], ["B2", "inlineStr", "b"]]));
        let cells: Vec<&str> = rows[2].as_array().unwrap().iter().map(|cell| cell[2].as_str().unwrap()).collect();
        assert_eq!((cells[1], cells[2], cells.len()), ("b", "a continued in 2 cells", 5));
        assert!(cells.iter().all(|cell| cell.encode_utf16().count() <= LONGEST_TEXT));
        assert_eq!([cells[0], cells[3], cells[4]].concat(), long);
        assert_eq!(rows[2][4][0], "E3");
    }

    #[test]
    fn columns_are_lettered() {
        assert_eq!([0, 25, 26, 701, 702, 1_663].map(letters), ["A", "Z", "AA", "ZZ", "AAA", "BKZ"]);
    }
}
