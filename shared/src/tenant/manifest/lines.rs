//! Where in the file a part of the manifest stands.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// A TOML text whose parts know their lines.
pub(super) struct Lines<'a> {
    text: &'a str,
    tree: Option<Spanned<DeTable<'a>>>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, tree: DeTable::parse(text).ok() }
    }

    /// The line of a byte, from 1.
    pub(super) fn at(&self, offset: usize) -> usize {
        self.text.get(..offset).unwrap_or(self.text).split('\n').count()
    }

    /// The line of a part of the tree, or of the nearest part above it that stands in the file. `offset` counts within the
    /// part's own text.
    pub(super) fn of(&self, path: &[String], offset: usize) -> Option<usize> {
        let mut table = self.tree.as_ref()?.get_ref();
        let mut found = None;
        for (index, part) in path.iter().enumerate() {
            let Some((key, value)) = table.get_key_value(part.as_str()) else { break };
            found = Some(self.at(key.span().start));
            match value.get_ref() {
                DeValue::Table(inner) => table = inner,
                DeValue::String(string) if index + 1 == path.len() => return Some(self.within(value.span().start, string, offset)),
                _ => break,
            }
        }
        found
    }

    /// The line of a place in a string that is written over several lines and as it is. One with escapes in it reads
    /// otherwise than it is written, and then its first line must do.
    fn within(&self, start: usize, string: &str, offset: usize) -> usize {
        let written = self.text.get(start..).unwrap_or_default();
        let Some(body) = written.strip_prefix("\"\"\"").or_else(|| written.strip_prefix("'''")) else { return self.at(start) };
        let body = body.strip_prefix("\r\n").or_else(|| body.strip_prefix('\n')).unwrap_or(body);
        if body.starts_with(string) { self.at(self.text.len() - body.len() + offset) } else { self.at(start) }
    }
}

/// The parts of a path that `serde_ignored` reports.
pub(super) fn path_of(path: &serde_ignored::Path<'_>) -> Vec<String> {
    use serde_ignored::Path;
    match path {
        Path::Root => Vec::new(),
        Path::Map { parent, key } => {
            let mut parts = path_of(parent);
            parts.push(key.clone());
            parts
        }
        Path::Seq { parent, .. } | Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            path_of(parent)
        }
    }
}
