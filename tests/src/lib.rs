//! The clients' room: what a user, a backend and an operator have at hand, for tests that enter as they do.
//!
//! A [`World`] is an installation of one's own: Postgres, Redis, S3, a real `api` and as many real `worker` processes as a
//! test starts. A [`Client`] speaks HTTP to it with an API key. [`Callbacks`] is a receiver that probes call. What must stay
//! true here: nothing of the product's code is linked, so a test sees what a user sees; nothing waits for time to pass, only
//! for something to become true ([`until`]); a deadline says "never" and not "slow".
//!
//! These functions panic where the world is not as it should be, with what they saw: they are called by tests alone.
#![expect(clippy::missing_panics_doc, reason = "every one of them panics when the product or the sandbox fails, and says what it saw")]

mod callbacks;
mod client;
mod clock;
mod events;
mod figures;
mod load;
mod wait;
mod world;

pub use callbacks::{Call, Callbacks};
pub use client::{Answer, Client, id_of, is_terminal, probe};
pub use clock::SetClock;
pub use events::{Event, Events};
pub use figures::Spread;
pub use load::{Load, Loaded};
pub use wait::{PATIENCE, until, until_within};
pub use world::World;
