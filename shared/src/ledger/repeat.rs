//! Repeats of what makes no job by itself: tables that keep an idempotency key of their own.

use uuid::Uuid;

/// What became of something that was asked for under an idempotency key, or without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// It is new, under its own id.
    New,
    /// The same was asked for before: that one stands.
    Before(Uuid),
    /// Something else was asked for before under this key.
    Conflict(Uuid),
}

impl Repeat {
    /// Of a row that holds the key, with the hash of what it was asked for with.
    pub(super) fn by((id, body): (Uuid, Vec<u8>), asked: [u8; 32]) -> Self {
        if body == asked { Self::Before(id) } else { Self::Conflict(id) }
    }
}
