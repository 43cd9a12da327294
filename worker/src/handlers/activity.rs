//! `activity.fan_out`: what a user did comes into the feeds of who follows them, page by page.
//!
//! What must stay true: a feed has an activity once, whatever is killed; what one step takes has a bound, however many follow.

use std::time::{Duration, Instant};

use shared::{
    job::{Interrupt, Success},
    kinds::ActivityFanOut,
    ledger::{LedgerError, feeds},
};

use super::JobContext;

/// After so long in one run it makes room for others, and goes on in the next.
const TURN: Duration = Duration::from_secs(60);

/// Puts an activity into feeds.
pub(super) async fn run(payload: ActivityFanOut, context: JobContext) -> Result<Success, Interrupt> {
    let until = Instant::now() + TURN;
    loop {
        let mut transaction = context.services.pool.begin().await.map_err(LedgerError::from)?;
        let is_done = feeds::fan_out(&mut transaction, context.job.tenant, payload.activity).await?;
        transaction.commit().await.map_err(LedgerError::from)?;
        if is_done {
            return Ok(Success::default());
        }
        if Instant::now() > until {
            return Err(Interrupt::Snoozed(Duration::ZERO));
        }
    }
}
