//! Where a process' output goes, and its last lines for messages.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::error::{Doing, Result};

/// How much of a log's end is looked at for its last lines.
const TAIL_BYTES: u64 = 16 * 1024;

/// Puts an earlier run's log aside as `NAME.log.previous`, so that a log starts with its run and old ones don't pile up.
pub(super) fn put_aside(path: &Path) -> Result<()> {
    let previous = path.with_added_extension("previous");
    match std::fs::rename(path, previous) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
    .doing(|| format!("put the old log {} aside", path.display()))
}

/// Opens the log to add to it.
pub(super) fn open(path: &Path) -> Result<File> {
    File::options().create(true).append(true).open(path).doing(|| format!("open the log {}", path.display()))
}

/// The last `lines` lines, or as many as there are.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // A log that can't be read has nothing to show; the message that quotes it names its path.
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

/// Adds what a finished command wrote.
pub(crate) fn add(path: &Path, texts: &[&[u8]]) -> Result<()> {
    let mut file = open(path)?;
    texts.iter().try_for_each(|text| file.write_all(text)).doing(|| format!("write the log {}", path.display()))
}
