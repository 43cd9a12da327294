//! `user.erase`: removes all that is left of a user, in the bounded steps of [`shared::ledger::people::erase`].
//!
//! What must stay true: it may end anywhere and be begun again; it is done only after a look that found nothing. What it has to wait for
//! (a run that was asked to stop, objects that the sweeper deletes) it waits for outside of a slot.

use std::time::{Duration, Instant};

use shared::{
    job::{Interrupt, Success},
    kinds::UserErase,
    ledger::people::erase,
};

use super::JobContext;

/// When it looks again after something was left: the sweeper comes every five seconds.
const AGAIN: Duration = Duration::from_secs(5);

/// After so long in one run it makes room for others, and goes on in the next.
const TURN: Duration = Duration::from_secs(300);

/// Erases a user.
pub(super) async fn run(_: UserErase, context: JobContext) -> Result<Success, Interrupt> {
    let (pool, clock) = (&context.services.pool, &context.services.clock);
    let (tenant, job) = (context.job.tenant, context.job.id);
    // Done before, by a run whose end was lost.
    let Some(user) = erase::whom(pool, tenant, job).await? else { return Ok(Success::default()) };
    let until = Instant::now() + TURN;
    let mut gone = 0;
    loop {
        let rows = erase::by_name(pool, tenant, &user).await?;
        let (mut after, mut left, mut removed) = (None, 0, 0);
        loop {
            let page = erase::jobs(pool, tenant, &user, after, clock.now()).await?;
            left += page.left;
            removed += u64::try_from(page.gone.len()).unwrap_or(u64::MAX);
            context.services.followers.forget(&page.gone).await;
            if Instant::now() > until || context.cancelled.is_cancelled() {
                return Err(Interrupt::Snoozed(Duration::ZERO));
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        gone += removed;
        // A courtesy to whoever follows the job; it is no news where it could not be told.
        let _told = context.progress(gone, None).await;
        if left > 0 {
            return Err(Interrupt::Snoozed(AGAIN));
        }
        if rows == 0 && removed == 0 {
            break;
        }
    }
    erase::finish(pool, tenant, job).await?;
    metrics::counter!("offstage_users_erased_total").increment(1);
    Ok(Success::default())
}
