//! Keys as last read, so that a busy key costs one look at the database every two seconds and not one a request.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use shared::{
    clock::Clock,
    keys::{self, FoundKey, KeyHash},
    ledger::LedgerError,
};
use sqlx::PgPool;
use tokio::sync::mpsc;

/// How long what was read is simply used.
const FRESH: Duration = Duration::from_secs(2);

/// How long it is used at most, while another request reads it again. A revoked key ends within five seconds; this leaves
/// one of them to the clocks and the reading.
const USABLE: Duration = Duration::from_secs(4);

/// The most keys remembered, and as many unknown ones. Apart, so that guessing can't push real keys out.
const MOST: usize = 10_000;

/// How often a key's use is written down at most.
const USE_EVERY: Duration = Duration::from_mins(1);

/// The most uses that wait to be written down; more are forgotten, the next use will tell.
const MOST_USES: usize = 1_024;

/// Finds keys, remembering for a moment what it found and what it didn't.
#[derive(Debug)]
pub struct KeyCache {
    pool: PgPool,
    known: Mutex<Memory<Known>>,
    unknown: Mutex<Memory<Unknown>>,
    uses: mpsc::Sender<uuid::Uuid>,
}

#[derive(Debug)]
struct Known {
    key: Arc<FoundKey>,
    read_at: Instant,
    reading: bool,
    used_at: Option<Instant>,
}

#[derive(Debug)]
struct Unknown {
    read_at: Instant,
}

/// What is known of a hash.
enum Remembered {
    Known(Arc<FoundKey>),
    Unknown,
    /// Nothing that may be used: it is this caller's turn to read.
    ToRead,
}

impl KeyCache {
    /// Reads through `pool`, as the API's role. Starts the task that writes uses down; it ends with the cache.
    #[must_use]
    pub fn new(pool: PgPool, clock: Clock) -> Self {
        let (uses, mut noted) = mpsc::channel(MOST_USES);
        let writer = pool.clone();
        tokio::spawn(async move {
            while let Some(id) = noted.recv().await {
                if let Err(error) = keys::touch(&writer, id, clock.now()).await {
                    tracing::debug!(key = %id, error = crate::problem::chain(&error), "a key's use was not written down");
                }
            }
        });
        Self { pool, known: Mutex::new(Memory::new(MOST)), unknown: Mutex::new(Memory::new(MOST)), uses }
    }

    /// The key of a hash.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn find(&self, hash: KeyHash) -> Result<Option<Arc<FoundKey>>, LedgerError> {
        match self.remembered(hash) {
            Remembered::Known(key) => return Ok(Some(key)),
            Remembered::Unknown => return Ok(None),
            Remembered::ToRead => {}
        }
        // The answer's age counts from before the question: what is revoked meanwhile is not missed.
        let read_at = Instant::now();
        let mut found = keys::find(&self.pool, hash).await;
        if matches!(found, Err(LedgerError::Unavailable(sqlx::Error::Io(_)))) {
            // A connection that died while it lay idle costs one question, and asking changes nothing.
            found = keys::find(&self.pool, hash).await;
        }
        let found = match found {
            // Better an answer of some seconds ago than none, for as long as a revoked key may still work. What the request asks of
            // the database beyond that, the database answers for.
            Err(error) if error.is_transient() => return self.still_usable(hash).map(Some).ok_or(error),
            found => found?,
        };
        let found = found.map(Arc::new);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = &found {
            let used_at = known.get_mut(&hash).and_then(|known| known.used_at);
            known.insert(hash, Known { key: key.clone(), read_at, reading: false, used_at }, |known| known.read_at.elapsed() < USABLE);
        } else {
            known.remove(&hash);
            drop(known);
            let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
            unknown.insert(hash, Unknown { read_at }, |unknown| unknown.read_at.elapsed() < FRESH);
        }
        Ok(found)
    }

    fn remembered(&self, hash: KeyHash) -> Remembered {
        {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = known.get_mut(&hash) {
                let age = known.read_at.elapsed();
                if age < FRESH || (known.reading && age < USABLE) {
                    return Remembered::Known(known.key.clone());
                }
                known.reading = true;
                return Remembered::ToRead;
            }
        }
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = unknown.get_mut(&hash).is_some_and(|unknown| unknown.read_at.elapsed() < FRESH);
        if is_fresh { Remembered::Unknown } else { Remembered::ToRead }
    }

    /// What was read of a key, while it may be used at all.
    fn still_usable(&self, hash: KeyHash) -> Option<Arc<FoundKey>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get_mut(&hash).filter(|known| known.read_at.elapsed() < USABLE).map(|known| known.key.clone())
    }

    /// Notes that a key was used; it is written down in the background, once a minute.
    pub fn note_use(&self, hash: KeyHash) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = known.get_mut(&hash) else { return };
        if known.used_at.is_none_or(|used_at| used_at.elapsed() >= USE_EVERY) {
            known.used_at = Some(Instant::now());
            // Full: the writer is behind, and a later use is as good as this one.
            _ = self.uses.try_send(known.key.id);
        }
    }
}

/// A map with a bound. Where it is full, what is no longer of use goes; where all is of use, all goes, which costs each
/// key one look at the database.
#[derive(Debug)]
struct Memory<V> {
    most: usize,
    entries: HashMap<KeyHash, V>,
}

impl<V> Memory<V>
where
    KeyHash: Hash + Eq,
{
    fn new(most: usize) -> Self {
        Self { most, entries: HashMap::new() }
    }

    fn get_mut(&mut self, hash: &KeyHash) -> Option<&mut V> {
        self.entries.get_mut(hash)
    }

    fn insert(&mut self, hash: KeyHash, value: V, mut of_use: impl FnMut(&V) -> bool) {
        if self.entries.len() >= self.most && !self.entries.contains_key(&hash) {
            self.entries.retain(|_, value| of_use(value));
            if self.entries.len() >= self.most {
                self.entries.clear();
            }
        }
        self.entries.insert(hash, value);
    }

    fn remove(&mut self, hash: &KeyHash) {
        self.entries.remove(hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_stays_within_its_bound() {
        let hash = |number: u8| KeyHash([number; 32]);
        let mut memory = Memory::new(3);
        for number in 0..3 {
            memory.insert(hash(number), number, |_| true);
        }
        memory.insert(hash(1), 11, |_| true);
        assert_eq!((memory.entries.len(), memory.get_mut(&hash(1)).copied()), (3, Some(11)), "replacing pushes nothing out");
        memory.insert(hash(3), 3, |value| *value == 11);
        assert_eq!(memory.entries.len(), 2, "what is of use stays");
        memory.insert(hash(4), 4, |_| true);
        memory.insert(hash(5), 5, |_| true);
        assert_eq!(memory.entries.len(), 1, "all of use: all goes");
    }
}
