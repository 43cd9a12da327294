//! The formats a file can have: each turns columns and rows into bytes, and knows nothing of where rows come from or where
//! bytes go.

mod csv;

use shared::kinds::ExportFormat;

use crate::clients::source::{Column, NotText, Row};

/// Writes a file of one format, by appending to a buffer that somebody else empties.
pub(super) enum Writer {
    Csv(csv::Csv),
}

impl Writer {
    pub(super) fn new(format: ExportFormat, columns: &[Column]) -> Self {
        match format {
            ExportFormat::Csv => Self::Csv(csv::Csv::new(columns)),
        }
    }

    /// What stands before the first row.
    pub(super) fn begin(&mut self, out: &mut Vec<u8>) {
        match self {
            Self::Csv(csv) => csv.begin(out),
        }
    }

    /// One row.
    pub(super) fn row(&mut self, row: &Row, out: &mut Vec<u8>) -> Result<(), NotText> {
        match self {
            Self::Csv(csv) => csv.row(row, out),
        }
    }

    /// What stands after the last row.
    pub(super) fn end(&mut self, _out: &mut Vec<u8>) {
        match self {
            Self::Csv(_) => {}
        }
    }
}
