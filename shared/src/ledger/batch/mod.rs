//! Batches: jobs that are accepted together, shown together, cancelled together, and followed when all of them have ended.
//!
//! What must stay true:
//! - a batch, its members and its idempotency key are stored in one transaction: all of it or nothing ([`store`]);
//! - what follows is made in the transaction that marks the batch as finished, under the batch's row lock: once, whatever crashes
//!   and however many look; a member that is redriven later does not bring it again ([`finish`]);
//! - no row is written by every member's end: whether a batch has ended is found by looking at its members' states. So that this is
//!   cheap, the batch remembers one that had not ended, its witness: while that has not, nothing else is looked at;
//! - what nobody told of (a member that was there before the batch, a crash) is found by the sweep ([`look`]).

pub mod change;
pub mod find;
mod finish;
pub mod store;

pub use finish::{Finished, finish, look};
