//! The catalogue of Debian packages in a table: some 60,000 records of real, messy text.
//!
//! It comes from this machine's own `apt-cache dumpavail`. Where that is absent or next to empty, as on macOS or before the
//! first `apt-get update`, generated records of the same form take its place; both go through the same parser.

mod generated;
mod stanza;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use sqlx::{Connection, PgConnection};
use tokio::sync::mpsc;

use crate::error::{Doing, Error, Result};
use stanza::{COLUMNS, Stanzas};

/// Fewer records than this are no catalogue but what is installed, all that apt knows before its first update.
const FEWEST: u64 = 5_000;
/// Text sent to Postgres at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// Where the records come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// This machine's `apt-cache dumpavail`.
    Apt,
    /// Made up, in the same form.
    Generated,
}

/// What was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Catalogue {
    /// Where it comes from.
    pub origin: Origin,
    /// How many records.
    pub rows: u64,
}

/// Fills the empty table `packages` in one transaction.
pub(super) async fn load(connection: &mut PgConnection) -> Result<Catalogue> {
    for origin in [Origin::Apt, Origin::Generated] {
        let mut transaction = connection.begin().await.doing(|| "begin to load the package catalogue".to_owned())?;
        let rows = copy(&mut transaction, origin).await?;
        if rows >= FEWEST {
            transaction.commit().await.doing(|| "finish loading the package catalogue".to_owned())?;
            // Now rather than when autovacuum finds the time: a plan made without statistics may sort 60,000 wide rows.
            sqlx::query("ANALYZE packages").execute(connection).await.doing(|| "analyse the package catalogue".to_owned())?;
            return Ok(Catalogue { origin, rows });
        }
        transaction.rollback().await.doing(|| "take back a catalogue of too few packages".to_owned())?;
    }
    Err(Error::Invalid(format!("fewer than {FEWEST} package records were generated: that is a mistake in the sandbox")))
}

async fn copy(connection: &mut PgConnection, origin: Origin) -> Result<u64> {
    // Reading and parsing block; Postgres is fed from here.
    let (chunks, mut received) = mpsc::channel::<Vec<u8>>(4);
    let reading = tokio::task::spawn_blocking(move || match origin {
        Origin::Apt => read_apt(&chunks),
        Origin::Generated => send(Stanzas::new(generated::Reader::new()), &chunks),
    });
    let statement = format!("COPY packages ({}) FROM STDIN", COLUMNS.map(|(column, _)| column).join(", "));
    let failed = || "copy the package catalogue into its table".to_owned();
    let mut sink = connection.copy_in_raw(&statement).await.doing(failed)?;
    while let Some(chunk) = received.recv().await {
        sink.send(chunk).await.doing(failed)?;
    }
    let rows = sink.finish().await.doing(failed)?;
    reading.await.map_err(|_| Error::Stopping)?.doing(|| "read `apt-cache dumpavail`".to_owned())?;
    Ok(rows)
}

/// Without apt there are no records, which is no error.
fn read_apt(chunks: &mpsc::Sender<Vec<u8>>) -> std::io::Result<()> {
    let command = Command::new("apt-cache").arg("dumpavail").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = match command {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let sent = child.stdout.take().map_or(Ok(()), |output| send(Stanzas::new(BufReader::with_capacity(1 << 20, output)), chunks));
    // When we stopped reading, it ends by a broken pipe.
    child.wait()?;
    sent
}

/// Sends rows in COPY's text format. Ends early when nobody takes them any more, who then says why.
fn send(mut stanzas: Stanzas<impl BufRead>, chunks: &mpsc::Sender<Vec<u8>>) -> std::io::Result<()> {
    let mut chunk = Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 4);
    while stanzas.next_row(&mut chunk)? {
        if chunk.len() >= CHUNK_BYTES
            && chunks.blocking_send(std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 4))).is_err()
        {
            return Ok(());
        }
    }
    // The last one: when it is not taken, the reason is reported on the other side.
    let _ = chunks.blocking_send(chunk);
    Ok(())
}
