//! Debian's control format, as `apt-cache dumpavail` prints it, into rows of COPY's text format.
//!
//! deb-control(5): stanzas are separated by empty lines; a field is `Name: value`, its name in any case; a line that begins
//! with a space or a tab continues the field before.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::BufRead;

/// The table's columns, each with its field and how its text becomes a value.
pub(super) const COLUMNS: [(&str, Value); 28] = [
    ("package", Value::Text),
    ("version", Value::Text),
    ("architecture", Value::Text),
    ("source", Value::Text),
    ("section", Value::Text),
    ("priority", Value::Text),
    ("essential", Value::YesNo),
    ("multi_arch", Value::Text),
    ("maintainer", Value::Text),
    ("installed_size", Value::Number),
    ("size", Value::Number),
    ("provides", Value::Text),
    ("pre_depends", Value::Text),
    ("depends", Value::Text),
    ("recommends", Value::Text),
    ("suggests", Value::Text),
    ("enhances", Value::Text),
    ("breaks", Value::Text),
    ("conflicts", Value::Text),
    ("replaces", Value::Text),
    ("built_using", Value::Text),
    ("tag", Value::Text),
    ("homepage", Value::Text),
    ("description", Value::Text),
    ("description_md5", Value::Text),
    ("filename", Value::Text),
    ("md5sum", Value::Text),
    ("sha256", Value::Text),
];

/// What a field's text stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    Text,
    /// Decimal; anything else is no value.
    Number,
    /// `yes` is true.
    YesNo,
}

/// Reads stanzas one by one, in constant memory but for the keys seen.
pub(super) struct Stanzas<R> {
    input: R,
    line: Vec<u8>,
    fields: [Option<String>; COLUMNS.len()],
    /// The field that a continuation line belongs to; `None` when it is not among the columns.
    current: Option<usize>,
    /// Hashes of the primary keys so far: a package that two archives offer in one version is listed twice.
    seen: HashSet<u64>,
}

impl<R: BufRead> Stanzas<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, line: Vec::new(), fields: Default::default(), current: None, seen: HashSet::new() }
    }

    /// Adds the next record to `rows`. False at the end.
    pub(super) fn next_row(&mut self, rows: &mut Vec<u8>) -> std::io::Result<bool> {
        loop {
            if !self.read_stanza()? {
                return Ok(false);
            }
            if self.is_new() {
                self.write(rows);
                return Ok(true);
            }
        }
    }

    /// Fills `fields`; false when the input has ended.
    fn read_stanza(&mut self) -> std::io::Result<bool> {
        self.fields = Default::default();
        self.current = None;
        let mut any = false;
        loop {
            self.line.clear();
            if self.input.read_until(b'\n', &mut self.line)? == 0 {
                return Ok(any);
            }
            if self.line.last() == Some(&b'\n') {
                self.line.pop();
            }
            // Debian's lists are UTF-8; a byte that is not could not be stored as text anyway, nor could NUL.
            let line = String::from_utf8_lossy(&self.line).replace('\0', "\u{fffd}");
            if line.trim().is_empty() {
                if any {
                    return Ok(true);
                }
                continue;
            }
            any = true;
            self.take(&line);
        }
    }

    fn take(&mut self, line: &str) {
        if line.starts_with([' ', '\t']) {
            if let Some(value) = self.current.and_then(|index| self.fields.get_mut(index)).and_then(Option::as_mut) {
                value.push('\n');
                value.push_str(line);
            }
            return;
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let column = name.to_ascii_lowercase().replace('-', "_");
        self.current = COLUMNS.iter().position(|(known, _)| *known == column);
        if let Some(field) = self.current.and_then(|index| self.fields.get_mut(index)) {
            *field = Some(value.strip_prefix(' ').unwrap_or(value).to_owned());
        }
    }

    /// Whether the record has a whole key that was not there before.
    fn is_new(&mut self) -> bool {
        let [Some(package), Some(version), Some(architecture), ..] = &self.fields else {
            return false;
        };
        let mut hasher = DefaultHasher::new();
        (package, version, architecture).hash(&mut hasher);
        self.seen.insert(hasher.finish())
    }

    fn write(&self, rows: &mut Vec<u8>) {
        for (index, ((_, value), field)) in COLUMNS.iter().zip(&self.fields).enumerate() {
            if index > 0 {
                rows.push(b'\t');
            }
            match (value, field.as_deref()) {
                (Value::Text, Some(text)) => escape(text, rows),
                (Value::Number, Some(text)) if text.parse::<i64>().is_ok() => {
                    rows.extend_from_slice(text.as_bytes());
                }
                (Value::YesNo, Some(text)) => rows.push(if text == "yes" { b't' } else { b'f' }),
                _ => rows.extend_from_slice(b"\\N"),
            }
        }
        rows.push(b'\n');
    }
}

/// COPY's text format: <https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.2>.
fn escape(text: &str, rows: &mut Vec<u8>) {
    for byte in text.bytes() {
        match byte {
            b'\\' => rows.extend_from_slice(b"\\\\"),
            b'\t' => rows.extend_from_slice(b"\\t"),
            b'\n' => rows.extend_from_slice(b"\\n"),
            b'\r' => rows.extend_from_slice(b"\\r"),
            other => rows.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows of a text, as name and value of what is not NULL.
    fn rows(text: &str) -> Vec<Vec<(&'static str, String)>> {
        let mut stanzas = Stanzas::new(text.as_bytes());
        let mut bytes = Vec::new();
        while stanzas.next_row(&mut bytes).unwrap() {}
        let text = String::from_utf8(bytes).unwrap();
        let row = |line: &str| {
            let cells = line.split('\t').zip(COLUMNS).filter(|(cell, _)| *cell != "\\N");
            cells.map(|(cell, (name, _))| (name, cell.to_owned())).collect()
        };
        text.lines().map(row).collect()
    }

    #[test]
    fn fields_keep_their_text_and_continuation_lines_their_space() {
        let text = "\n\nPackage: a\nVersion: 1:2~3\nArchitecture: all\nGhc-Package: x\n dropped with it\nTag: one,\n two,\n\tthree\n\
                    INSTALLED-SIZE: 12\nSize: many\nEssential: yes\nHomepage:  two spaces\nDescription: tab\there, \\ and: colon\n .\n end\n\n\
                    Package: b\nVersion: 1\nArchitecture: amd64\nSection:";
        let expected = |pairs: &[(&'static str, &str)]| pairs.iter().map(|(name, value)| (*name, (*value).to_owned())).collect::<Vec<_>>();
        assert_eq!(
            rows(text),
            [
                expected(&[
                    ("package", "a"),
                    ("version", "1:2~3"),
                    ("architecture", "all"),
                    ("essential", "t"),
                    ("installed_size", "12"),
                    ("tag", "one,\\n two,\\n\\tthree"),
                    ("homepage", " two spaces"),
                    ("description", "tab\\there, \\\\ and: colon\\n .\\n end"),
                ]),
                expected(&[("package", "b"), ("version", "1"), ("architecture", "amd64"), ("section", "")]),
            ]
        );
    }

    #[test]
    fn records_without_a_key_or_with_one_seen_before_are_left_out() {
        let one = "Package: a\nVersion: 1\nArchitecture: all\nSection: first\n\n";
        let again = "Package: a\nVersion: 1\nArchitecture: all\nSection: second\n\n";
        let other = "Package: a\nVersion: 2\nArchitecture: all\n\n";
        let found = rows(&format!("{one}Package: c\n\n{again}{other}"));
        assert_eq!(found.len(), 2);
        assert!(found[0].contains(&("section", "first".to_owned())));
    }
}
