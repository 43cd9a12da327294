//! The file: one dataset, or all of them with a manifest that says what they are.
//!
//! | asked for | file |
//! |---|---|
//! | a dataset | the table alone |
//! | `full`, `json` | `{"datasets": {"name": [row, …], …}, "manifest": {…}}` |
//! | `full`, `markdown` | a heading and a table a dataset, then the manifest as one more |
//! | `full`, others | a zip archive: `name.csv` …, then `manifest.json` |
//!
//! The manifest has each dataset's rows, columns, moment and the SHA-256 of its bytes: those of its file in the archive, of its
//! array from `[` to `]` and the line's end, or of its table's lines.

use aws_lc_rs::digest::{self, SHA256};
use serde_json::{Value, json};
use shared::kinds::ExportFormat;

use super::{
    Cells, Style, Table, Unwritable,
    archive::{Archive, Size},
    json::string,
    markdown,
};
use crate::clients::source::Column;

/// How much of a dataset is hashed and passed on at a time.
const PIECE: usize = 64 * 1024;

/// Writes the file, by appending to a buffer that somebody else empties.
pub(in crate::handlers::export) struct Document {
    style: Style,
    layout: Layout,
    parts: Vec<Part>,
    open: Option<Open>,
}

enum Layout {
    /// One dataset.
    Alone,
    Json,
    Markdown,
    Archive(Box<Archive>),
}

/// A dataset in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::handlers::export) struct Part {
    pub(in crate::handlers::export) name: String,
    pub(in crate::handlers::export) rows: u64,
    bytes: u64,
    /// In hexadecimal.
    sha256: String,
    /// Names and types.
    columns: Vec<(String, String)>,
    /// The moment whose rows these are, RFC 3339.
    pub(in crate::handlers::export) read_at: String,
}

struct Open {
    table: Table,
    part: Part,
    digest: digest::Context,
    /// What waits to be hashed and passed on; in a file of one dataset nothing does.
    plain: Vec<u8>,
}

impl Document {
    /// One dataset.
    pub(in crate::handlers::export) const fn alone(style: Style) -> Self {
        Self { style, layout: Layout::Alone, parts: Vec::new(), open: None }
    }

    /// All datasets.
    pub(in crate::handlers::export) fn full(style: Style) -> Self {
        let layout = match style.format {
            ExportFormat::Json => Layout::Json,
            ExportFormat::Markdown => Layout::Markdown,
            ExportFormat::Csv | ExportFormat::Jsonl | ExportFormat::Xlsx => Layout::Archive(Box::new(Archive::new())),
        };
        Self { style, layout, parts: Vec::new(), open: None }
    }

    /// Begins a dataset.
    pub(in crate::handlers::export) fn begin(
        &mut self,
        name: &str,
        columns: &[Column],
        read_at: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), Unwritable> {
        match &mut self.layout {
            Layout::Alone => {}
            Layout::Json => {
                out.extend_from_slice(if self.parts.is_empty() { b"{\"datasets\":{\n" } else { b",\n" });
                string(name, out);
                out.push(b':');
            }
            Layout::Markdown => {
                out.extend_from_slice(b"# ");
                markdown::cell(name, out);
                out.extend_from_slice(b"\n\n");
            }
            Layout::Archive(archive) => archive.begin(&format!("{name}.{}", self.style.format.extension()), Size::Any, out),
        }
        let part = Part {
            name: name.to_owned(),
            rows: 0,
            bytes: 0,
            sha256: String::new(),
            columns: columns.iter().map(|column| (column.name.clone(), column.type_name.clone())).collect(),
            read_at: read_at.to_owned(),
        };
        let mut open =
            Open { table: Table::new(self.style, name, columns), part, digest: digest::Context::new(&SHA256), plain: Vec::new() };
        open.table.begin(if matches!(self.layout, Layout::Alone) { out } else { &mut open.plain })?;
        self.open = Some(open);
        Ok(())
    }

    /// The dataset that was begun has so many rows already.
    pub(in crate::handlers::export) fn go_on(&mut self, rows: u64) {
        if let Some(open) = &mut self.open {
            open.part.rows = rows;
        }
    }

    /// One row. Answers its length, before any compression.
    pub(in crate::handlers::export) fn row(&mut self, row: &(impl Cells + ?Sized), out: &mut Vec<u8>) -> Result<usize, Unwritable> {
        let Some(open) = &mut self.open else { return Ok(0) };
        open.part.rows += 1;
        if matches!(self.layout, Layout::Alone) {
            return open.table.row(row, out);
        }
        let length = open.table.row(row, &mut open.plain)?;
        if open.plain.len() >= PIECE {
            open.pass_on(&mut self.layout, out)?;
        }
        Ok(length)
    }

    /// Ends the dataset that was begun.
    pub(in crate::handlers::export) fn end(&mut self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        if matches!(self.layout, Layout::Alone) {
            open.table.end(out)?;
        } else {
            open.table.end(&mut open.plain)?;
            open.pass_on(&mut self.layout, out)?;
            open.part.sha256 = hex::encode(open.digest.finish().as_ref());
        }
        match &mut self.layout {
            Layout::Archive(archive) => archive.end(out)?,
            Layout::Markdown => out.push(b'\n'),
            Layout::Alone | Layout::Json => {}
        }
        self.parts.push(open.part);
        Ok(())
    }

    /// Ends the file. Answers what is in it.
    pub(in crate::handlers::export) fn finish(mut self, out: &mut Vec<u8>) -> Result<Vec<Part>, Unwritable> {
        match &mut self.layout {
            Layout::Alone => {}
            Layout::Json => {
                out.extend_from_slice(if self.parts.is_empty() { b"{\"datasets\":{\n},\n\"manifest\":" } else { b"},\n\"manifest\":" });
                out.extend_from_slice(manifest(&self.parts, None).to_string().as_bytes());
                out.extend_from_slice(b"}\n");
            }
            Layout::Markdown => list(&self.parts, out),
            Layout::Archive(archive) => {
                archive.begin("manifest.json", Size::Small, out);
                let manifest = manifest(&self.parts, Some(self.style.format.extension()));
                archive.write(format!("{manifest:#}\n").as_bytes(), out)?;
                archive.end(out)?;
                archive.finish(out);
            }
        }
        Ok(self.parts)
    }
}

impl Open {
    fn pass_on(&mut self, layout: &mut Layout, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        self.digest.update(&self.plain);
        self.part.bytes += self.plain.len() as u64;
        match layout {
            Layout::Archive(archive) => archive.write(&self.plain, out)?,
            _ => out.extend_from_slice(&self.plain),
        }
        self.plain.clear();
        Ok(())
    }
}

fn manifest(parts: &[Part], extension: Option<&str>) -> Value {
    let dataset = |part: &Part| {
        let columns: Vec<_> = part.columns.iter().map(|(name, kind)| json!({"name": name, "type": kind})).collect();
        let mut said = json!({
            "name": part.name, "rows": part.rows, "bytes": part.bytes, "sha256": part.sha256, "read_at": part.read_at, "columns": columns,
        });
        if let (Some(extension), Some(said)) = (extension, said.as_object_mut()) {
            said.insert("file".into(), format!("{}.{extension}", part.name).into());
        }
        said
    };
    json!({"datasets": parts.iter().map(dataset).collect::<Vec<_>>()})
}

/// The manifest as a table.
fn list(parts: &[Part], out: &mut Vec<u8>) {
    out.extend_from_slice(
        b"# manifest\n\n| dataset | rows | bytes | SHA-256 | read at | columns |\n| --- | ---: | ---: | --- | --- | --- |\n",
    );
    for part in parts {
        let columns: Vec<_> = part.columns.iter().map(|(name, kind)| format!("{name} {kind}")).collect();
        for text in [&part.name, &part.rows.to_string(), &part.bytes.to_string(), &part.sha256, &part.read_at, &columns.join(", ")] {
            out.extend_from_slice(b"| ");
            markdown::cell(text, out);
            out.push(b' ');
        }
        out.extend_from_slice(b"|\n");
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{archive::tests::python, sample::column},
        *,
    };
    use crate::clients::source::Shape;

    fn full(format: ExportFormat) -> Vec<u8> {
        let mut document = Document::full(Style { format, bom: false, escape_formulas: true });
        let mut out = Vec::new();
        for (name, rows) in [("none", 0), ("many", 20_000)] {
            document.begin(name, &[column("n", Shape::Integer), column("t", Shape::Text)], "2026-11-20T00:00:00Z", &mut out).unwrap();
            for n in 0..rows {
                document.row(&[Some(n.to_string().as_str()), Some("a|\"b")], &mut out).unwrap();
            }
            document.end(&mut out).unwrap();
        }
        let parts = document.finish(&mut out).unwrap();
        assert_eq!(parts.iter().map(|part| part.rows).collect::<Vec<_>>(), [0, 20_000]);
        out
    }

    #[test]
    fn a_full_json_document_is_one_value_and_tells_what_is_in_it() {
        let script = "import hashlib, json, re, sys\n\
            raw = sys.stdin.buffer.read()\n\
            d = json.loads(raw)\n\
            m = {p['name']: p for p in d['manifest']['datasets']}\n\
            many = raw[raw.index(b'\"many\":') + 7:raw.index(b'},\\n\"manifest\"')]\n\
            json.dump([[len(d['datasets'][n]), m[n]['rows']] for n in m] + [hashlib.sha256(many).hexdigest() == m['many']['sha256'], len(many) == m['many']['bytes']], sys.stdout)";
        assert_eq!(python(script, &full(ExportFormat::Json)), json!([[0, 0], [20_000, 20_000], true, true]));
    }

    #[test]
    fn a_full_archive_holds_every_dataset_and_its_manifest_is_true() {
        for format in [ExportFormat::Csv, ExportFormat::Jsonl, ExportFormat::Xlsx] {
            let script = "import hashlib, io, json, sys, zipfile\n\
                z = zipfile.ZipFile(io.BytesIO(sys.stdin.buffer.read()))\n\
                assert z.testzip() is None\n\
                m = json.loads(z.read('manifest.json'))['datasets']\n\
                json.dump([z.namelist(), [[p['rows'], hashlib.sha256(z.read(p['file'])).hexdigest() == p['sha256'], len(z.read(p['file'])) == p['bytes']] for p in m]], sys.stdout)";
            let end = format.extension();
            assert_eq!(
                python(script, &full(format)),
                json!([[format!("none.{end}"), format!("many.{end}"), "manifest.json"], [[0, true, true], [20_000, true, true]]])
            );
        }
    }

    #[test]
    fn a_full_markdown_document_has_a_heading_a_dataset() {
        let text = String::from_utf8(full(ExportFormat::Markdown)).unwrap();
        assert!(
            text.starts_with("# none\n\n| n | t |\n| ---: | --- |\n\n# many\n\n| n | t |\n"),
            "{}",
            text.chars().take(100).collect::<String>()
        );
        assert_eq!(text.lines().filter(|line| line.starts_with("| ")).count(), 2 + 2 + 20_000 + 2 + 2);
        assert!(text.contains("\n# manifest\n\n"));
    }
}
