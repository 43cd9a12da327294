//! Web push, as far as the door and the sender must agree on it: a browser's subscription, and the keys by which we are known to push
//! services (VAPID, RFC 8292).
//!
//! What must stay true: a subscription is read to the letter before it is kept, since its keys come from a stranger; a private key and a
//! subscription's secret are in no log and no `Debug`; a subscription belongs to the key it was made with, so keys that were
//! replaced stay readable for as long as subscriptions of theirs live.

mod keys;
mod subscription;

pub use keys::{KeyId, VapidKey, VapidKeys};
pub use subscription::{Subscription, SubscriptionError};

/// The length of an uncompressed point of P-256 (SEC 1, section 2.3.3): 4, then both coordinates.
pub const PUBLIC_KEY: usize = 65;
