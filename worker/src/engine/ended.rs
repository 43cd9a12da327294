//! What follows the ends of jobs: taken from `job_ended` and acted upon in one transaction each time, so it happens once.
//!
//! Looks when this process settled such an end, and every [`FALLBACK`] for those of others. Any number of replicas may look.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use shared::{
    ledger::{
        LedgerError, completion,
        ended::{self, Ended},
    },
    queue::Queue,
};
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use super::Engine;

/// How often it looks without a reason: ends of jobs that were cancelled, that expired, whose settler died.
const FALLBACK: Duration = Duration::from_secs(2);
/// Ends of one transaction.
const BATCH: i64 = 100;

/// Follows ends until `stop`.
pub(super) async fn run(engine: Arc<Engine>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = engine.ended.notified() => {}
            () = tokio::time::sleep(FALLBACK) => {}
        }
        if engine.lease.epoch().is_none() {
            continue;
        }
        if let Err(error) = engine.bounded(follow_all(&engine)).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "can't act upon the ends of jobs; trying again");
        }
    }
}

async fn follow_all(engine: &Engine) -> Result<(), LedgerError> {
    while ended::any(&engine.services.pool).await? {
        match follow(engine, BATCH).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.is_transient() => return Err(error),
            // One of them can't be acted upon: it goes by itself, so that it does not hold up the others.
            Err(_) => match follow(engine, 1).await {
                Ok(_) => {}
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => give_up(engine, &error).await?,
            },
        }
    }
    Ok(())
}

/// Acts upon up to `limit` ends; answers how many there were.
async fn follow(engine: &Engine, limit: i64) -> Result<usize, LedgerError> {
    let mut transaction = engine.services.pool.begin().await?;
    let ends = ended::take(&mut transaction, limit).await?;
    let mut due = BTreeSet::new();
    for end in &ends {
        due.extend(act(engine, &mut transaction, end).await?);
    }
    transaction.commit().await?;
    metrics::counter!("offstage_ends_followed_total").increment(ends.len() as u64);
    due.into_iter().for_each(|queue| engine.dispatch.due(queue));
    Ok(ends.len())
}

/// What one end leads to; answers the queues that got work by it.
async fn act(engine: &Engine, connection: &mut PgConnection, end: &Ended) -> Result<Vec<Queue>, LedgerError> {
    tracing::debug!(job = %end.job, state = end.state.word(), "a followed job ended");
    let clock = &engine.services.clock;
    Ok(completion::tell(connection, end, clock).await?.into_iter().collect())
}

/// Lets go of an end that the database won't have acted upon: that is a fault of ours, and is shown.
async fn give_up(engine: &Engine, error: &LedgerError) -> Result<(), LedgerError> {
    let mut transaction = engine.services.pool.begin().await?;
    let ends = ended::take(&mut transaction, 1).await?;
    transaction.commit().await?;
    for end in ends {
        metrics::counter!("offstage_ends_given_up_total").increment(1);
        tracing::error!(job = %end.job, error = error as &dyn std::error::Error, "what was to follow this job's end did not: report this");
    }
    Ok(())
}
