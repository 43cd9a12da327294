//! Repeats of requests that make no job by themselves, by their idempotency key (`shared::ledger::repeat`).

use serde_json::{Value, json};
use shared::ledger::repeat::Repeat;
use uuid::Uuid;

use super::{jobs::hash_of, users::being_erased};
use crate::problem::{Code, Problem};

/// By what a repeat is known: the idempotency key, of whom or what it is about.
pub fn key_of(about: &Value, key: Option<&str>) -> Option<[u8; 32]> {
    key.map(|key| hash_of(&json!([about, key])))
}

/// Of what was kept: what is new, or was so before; a key that was used for something else is refused.
///
/// # Errors
/// [`Code::IdempotencyConflict`]; [`Code::UserBeingErased`] where nothing may be kept.
pub fn settled(asked: Option<Repeat>, new: Uuid) -> Result<(Uuid, bool), Problem> {
    match asked {
        None => Err(being_erased()),
        Some(Repeat::New) => Ok((new, true)),
        Some(Repeat::Before(id)) => Ok((id, false)),
        Some(Repeat::Conflict(_)) => {
            let detail = "This idempotency key was used for another request. Use a new key, or repeat the request as it was.";
            Err(Problem::new(Code::IdempotencyConflict, detail))
        }
    }
}
