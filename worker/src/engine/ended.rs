//! What follows the ends of jobs: taken from `job_ended` and acted upon in one transaction each time, so it happens once.
//!
//! Looks when this process settled such an end, and every [`FALLBACK`] for those of others. Any number of replicas may look.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use shared::{
    ledger::{
        LedgerError,
        batch::{self, Finished},
        completion,
        ended::{self, Ended},
        next::{self, Maker},
        schedule,
    },
    queue::Queue,
};
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Engine;

/// How often it looks without a reason: ends of jobs that were cancelled, that expired, whose settler died.
const FALLBACK: Duration = Duration::from_secs(2);
/// Ends of one transaction.
const BATCH: i64 = 100;
/// Batches of one look's transaction.
const BATCHES: i64 = 20;

/// Follows ends until `stop`.
pub(super) async fn run(engine: Arc<Engine>, stop: CancellationToken) {
    let mut batches_looked_at: Option<Instant> = None;
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
        if batches_looked_at.is_none_or(|at| at.elapsed() >= FALLBACK) {
            batches_looked_at = Some(Instant::now());
            if let Err(error) = engine.bounded(look_at_batches(&engine)).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "can't look at batches; trying again");
            }
        }
    }
}

/// What the engine makes jobs with that follow others.
fn maker(engine: &Engine) -> Maker<'_> {
    Maker { kinds: &engine.kinds, clock: &engine.services.clock }
}

/// Finishes batches that nobody told of, and removes those of which nothing is left.
async fn look_at_batches(engine: &Engine) -> Result<(), LedgerError> {
    loop {
        let mut transaction = engine.services.pool.begin().await?;
        let (finished, looked_at) = batch::look(&mut transaction, &maker(engine), engine.services.clock.now(), BATCHES).await?;
        transaction.commit().await?;
        tell_of_batches(engine, &finished);
        if i64::try_from(looked_at).unwrap_or(i64::MAX) < BATCHES {
            return Ok(());
        }
    }
}

fn tell_of_batches(engine: &Engine, finished: &[Finished]) {
    for Finished { batch, made } in finished {
        metrics::counter!("offstage_batches_finished_total").increment(1);
        metrics::counter!("offstage_jobs_followed_total", "after" => "batch").increment(made.jobs.len() as u64);
        tracing::debug!(%batch, follow_ups = made.jobs.len(), "a batch finished");
        made.queues.iter().for_each(|queue| engine.dispatch.due(*queue));
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

/// Acts upon up to `limit` ends; answers how many it acted upon.
async fn follow(engine: &Engine, limit: i64) -> Result<usize, LedgerError> {
    let mut transaction = engine.services.pool.begin().await?;
    let ends = ended::take(&mut transaction, limit).await?;
    let mut followed = Followed::default();
    let notices = schedule::follow::ended(&mut transaction, &ends, engine.services.clock.now()).await?;
    for end in &ends {
        act(engine, &mut transaction, end, &mut followed).await?;
    }
    let batches: Vec<_> = followed.batches.iter().copied().collect();
    let finished = batch::finish(&mut transaction, &maker(engine), &batches).await?;
    transaction.commit().await?;
    metrics::counter!("offstage_ends_followed_total").increment(followed.ends as u64);
    metrics::counter!("offstage_schedule_notices_total").increment(notices);
    metrics::counter!("offstage_jobs_followed_total", "after" => "job").increment(followed.jobs as u64);
    for queue in followed.due {
        engine.dispatch.due(queue);
    }
    tell_of_batches(engine, &finished);
    Ok(followed.ends)
}

/// What some ends led to.
#[derive(Debug, Default)]
struct Followed {
    /// Ends acted upon.
    ends: usize,
    /// Jobs made.
    jobs: usize,
    /// The queues that got work by it.
    due: BTreeSet<Queue>,
    /// The batches whose members they were: looked at together, in one order for all replicas.
    batches: BTreeSet<Uuid>,
}

/// What one end leads to.
async fn act(engine: &Engine, connection: &mut PgConnection, end: &Ended, followed: &mut Followed) -> Result<(), LedgerError> {
    let Some(made) = maker(engine).follow(connection, end).await? else {
        // A newer API accepted it: a newer worker follows it.
        tracing::warn!(job = %end.job, "what follows this job is of a kind that this version does not know; leaving it to others");
        return next::put_back(connection, end).await;
    };
    followed.ends += 1;
    followed.due.extend(completion::tell(connection, end, &engine.services.clock).await?);
    followed.jobs += made.jobs.len();
    followed.due.extend(made.queues);
    followed.batches.extend(end.options.batch);
    tracing::debug!(job = %end.job, state = end.state.word(), "a followed job ended");
    Ok(())
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
