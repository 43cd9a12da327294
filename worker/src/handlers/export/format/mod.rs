//! The formats a file can have: each turns columns and rows into bytes, and knows nothing of where rows come from or where
//! bytes go.
//!
//! A [`Document`] is the file; a [`Table`] in it is one dataset in one format. What must stay true: every cell can be told
//! from every other, so that a program that knows the format (and what docs/exports.md says of it) reads back what the
//! table holds; and memory does not grow with the rows.

mod archive;
mod csv;
mod document;
mod json;
mod markdown;
mod xlsx;

use shared::kinds::ExportFormat;

use crate::clients::source::{Column, NotText, Row};

pub(super) use document::{Document, Part};

/// The cells of a row, in Postgres' text form.
pub(super) trait Cells {
    /// The cell of a column; `None` is NULL.
    fn cell(&self, index: usize) -> Result<Option<&str>, NotText>;
}

impl Cells for Row {
    fn cell(&self, index: usize) -> Result<Option<&str>, NotText> {
        Row::cell(self, index)
    }
}

/// Why a row can't be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unwritable {
    /// A value is no text.
    #[error(transparent)]
    NotText(#[from] NotText),
    /// The compressor failed, which it has no reason to.
    #[error("compressing the file failed")]
    Compression,
}

/// How a table is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) format: ExportFormat,
    /// CSV: whether a byte order mark comes first.
    pub(super) bom: bool,
    /// CSV: whether texts that look like formulas are escaped.
    pub(super) escape_formulas: bool,
}

/// One dataset in one format, written by appending to a buffer that somebody else empties.
enum Table {
    Csv(csv::Csv),
    Json(json::Json),
    Markdown(markdown::Markdown),
    Xlsx(Box<xlsx::Xlsx>),
}

impl Table {
    fn new(style: Style, name: &str, columns: &[Column]) -> Self {
        match style.format {
            ExportFormat::Csv => Self::Csv(csv::Csv::new(columns, style.bom, style.escape_formulas)),
            ExportFormat::Json => Self::Json(json::Json::array(columns)),
            ExportFormat::Jsonl => Self::Json(json::Json::lines(columns)),
            ExportFormat::Markdown => Self::Markdown(markdown::Markdown::new(columns)),
            ExportFormat::Xlsx => Self::Xlsx(Box::new(xlsx::Xlsx::new(name, columns))),
        }
    }

    /// What stands before the first row.
    fn begin(&mut self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        match self {
            Self::Csv(csv) => csv.begin(out),
            Self::Json(json) => json.begin(out),
            Self::Markdown(markdown) => markdown.begin(out),
            Self::Xlsx(xlsx) => return xlsx.begin(out),
        }
        Ok(())
    }

    /// One row. Answers its length, before any compression.
    fn row(&mut self, row: &(impl Cells + ?Sized), out: &mut Vec<u8>) -> Result<usize, Unwritable> {
        let before = out.len();
        match self {
            Self::Csv(csv) => csv.row(row, out)?,
            Self::Json(json) => json.row(row, out)?,
            Self::Markdown(markdown) => markdown.row(row, out)?,
            Self::Xlsx(xlsx) => return xlsx.row(row, out),
        }
        Ok(out.len() - before)
    }

    /// What stands after the last row.
    fn end(&mut self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        match self {
            Self::Json(json) => json.end(out),
            Self::Xlsx(xlsx) => return xlsx.end(out),
            Self::Csv(_) | Self::Markdown(_) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod sample {
    //! Rows and columns without a database.

    use super::Cells;
    use crate::clients::source::{Column, NotText, Shape};

    impl Cells for [Option<&str>] {
        fn cell(&self, index: usize) -> Result<Option<&str>, NotText> {
            self.get(index).copied().ok_or(NotText)
        }
    }

    impl<const N: usize> Cells for [Option<&str>; N] {
        fn cell(&self, index: usize) -> Result<Option<&str>, NotText> {
            self.get(index).copied().ok_or(NotText)
        }
    }

    pub(super) fn column(name: &str, shape: Shape) -> Column {
        Column { name: name.into(), type_name: "text".into(), shape }
    }

    /// Texts that formats stumble over.
    pub(super) const HARD: &[&str] = &[
        "",
        " ",
        "  two  spaces  ",
        "plain",
        "a|b",
        "\\|",
        "\\\\|",
        "|",
        "\\",
        "a\\",
        "`code`",
        "``",
        "`a|b`",
        "*a* _b_ **c**",
        "<b>x</b>",
        "&amp; &lt; &#124;",
        "[a](b)",
        "![i](u)",
        "~~gone~~",
        "one\ntwo",
        "one\r\ntwo",
        "\n",
        "\r",
        "\ttab\t",
        "=1+1",
        "+1",
        "-1",
        "@a",
        "＝1",
        "'=1",
        "''",
        "# no heading",
        "- no list",
        "1. no list",
        "---",
        "| a | b |",
        "https://example.com/a_b_c?x=1&y=2",
        "$x$ ^y^ ==z==",
        "\u{1f680} é \u{202e}rtl\u{202c} שלום",
        "\u{a0}nbsp\u{a0}",
        "\u{2028}",
        "\u{feff}",
        "_x0041_",
        "\"quoted\"",
        "NULL",
        "*NULL*",
        "<!-- c -->",
        "]]>",
        "a,b",
        "\\.",
        ":smile:",
        "\u{c}",
        "trailing\\",
    ];
}
