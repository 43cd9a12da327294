//! Waiting for something to become true.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

/// How long anything may take before a test says that it never will. Far beyond what it takes on a busy machine: a
/// deadline here is no measurement.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks again and again until `look` answers `Ok`, at most [`PATIENCE`] long. The `Err` of the last look says what was
/// missing.
pub async fn until<T, E: Debug>(what: &str, look: impl AsyncFnMut() -> Result<T, E>) -> T {
    until_within(PATIENCE, what, look).await
}

/// As [`until`], with a patience of one's own.
pub async fn until_within<T, E: Debug>(patience: Duration, what: &str, mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let began = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(missing) if began.elapsed() > patience => panic!("{what}: not after {} s; last seen: {missing:?}", patience.as_secs()),
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}
