//! Step 8's loops: finds what went missing between the ledger, the streams and a process, and puts it back.
//!
//! - every second: workers that are dead; their jobs are queued again and pushed;
//! - every 5 s, at each Redis reconnect and when a stream was found gone, one replica: entries that somebody read and never claimed, queued jobs that are in no
//!   stream, jobs of workers that left;
//! - every 5 s, each replica for itself: claims that the ledger says it holds and it does not.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use shared::{
    job::{JobId, State},
    ledger::{
        LedgerError, checkpoint, limits,
        recover::{self, Recovered},
    },
    queue::{
        Commands, Queue, QueueError,
        keys::Lane,
        push::{self, Handover},
        read,
        signal::Signal,
    },
};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Engine, announce::Announcement};

/// How often the dead are looked for.
const JUDGE_EVERY: Duration = Duration::from_secs(1);
/// How often streams and ledger are compared.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How long an entry may stay read and unclaimed before somebody else looks after it.
const UNCLAIMED_AFTER: Duration = Duration::from_secs(5);
/// How soon a sweep that was cut short is tried again.
const AFTER_FAULT: Duration = Duration::from_secs(1);
/// How long after Redis came back a second sweep follows: by then what was handed over just before counts as overdue.
const SECOND_LOOK: Duration = Duration::from_millis(2_500);
/// How often what has served its purpose is forgotten.
const TIDY_EVERY: Duration = Duration::from_secs(60);
/// How long a limiting key is remembered that no job names.
const KEYS_FORGOTTEN_AFTER: chrono::TimeDelta = chrono::TimeDelta::days(1);
/// Jobs of one statement.
const BATCH: usize = 1_000;

/// A fault that ends a sweep; the next one starts over.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// Recovers until `stop`; `signals` bring reconnects and others' wishes.
pub(super) async fn run(engine: Arc<Engine>, mut signals: mpsc::Receiver<Signal>, stop: CancellationToken, mut connection: Commands) {
    let mut ticks = tokio::time::interval(JUDGE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lease = engine.lease.watch();
    let mut next_sweep = Instant::now() + SWEEP_EVERY;
    let mut second_look: Option<Instant> = None;
    let mut suspected: Vec<(JobId, i64)> = Vec::new();
    loop {
        let outcome = tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {
                let judged = engine.bounded(judge(&engine, &mut connection)).await;
                if second_look.is_some_and(|at| at <= Instant::now()) {
                    second_look = None;
                    judged.and(engine.bounded(sweep(&engine, &mut connection, AT_ONCE)).await)
                } else if Instant::now() >= next_sweep {
                    // Neither waits for the other's servers: one of them being away is when they are needed.
                    let swept = engine.bounded(sweep(&engine, &mut connection, REGULAR)).await;
                    next_sweep = Instant::now() + if swept.is_ok() { SWEEP_EVERY } else { AFTER_FAULT };
                    let looked = engine.bounded(not_held(&engine, &mut connection, &mut suspected)).await;
                    judged.and(swept).and(looked)
                } else {
                    judged
                }
            }
            () = engine.emptied.notified() => {
                tracing::warn!("a stream or its group was gone: Redis may have been emptied; comparing with the ledger");
                second_look.get_or_insert(Instant::now() + SECOND_LOOK);
                engine.bounded(sweep(&engine, &mut connection, AT_ONCE)).await
            }
            // Back after a gap: what ran was dropped, so what the ledger says we hold is given back at once.
            Ok(()) = lease.changed() => {
                if *lease.borrow_and_update() { engine.bounded(give_all_back(&engine, &mut connection)).await } else { Ok(()) }
            }
            signal = signals.recv() => match signal {
                None => return,
                Some(Signal::Wake(queue)) => {
                    engine.dispatch.due(queue);
                    engine.limits.notify_one();
                    Ok(())
                }
                // Redis may have been emptied.
                Some(Signal::Subscribed) => {
                    second_look.get_or_insert(Instant::now() + SECOND_LOOK);
                    engine.bounded(sweep(&engine, &mut connection, AT_ONCE)).await
                }
                Some(Signal::Cancel(jobs)) => engine.bounded(cancels(&engine, &jobs)).await,
                Some(Signal::Changed(_) | Signal::Accepted(_) | Signal::Breaker(_) | Signal::Said(_)) => Ok(()),
            },
        };
        if let Err(error) = outcome {
            metrics::counter!("offstage_sweep_failures_total").increment(1);
            tracing::debug!(error = &error as &dyn std::error::Error, "a sweep was cut short; the next one starts over");
        }
    }
}

/// Takes over what dead workers held.
async fn judge(engine: &Engine, connection: &mut Commands) -> Result<(), SweepError> {
    if !engine.lease.may_judge() {
        return Ok(());
    }
    let pool = &engine.services.pool;
    let mut dead = recover::dead_workers(pool).await?;
    dead.retain(|worker| *worker != engine.worker);
    if dead.is_empty() {
        return Ok(());
    }
    take_over(engine, connection, &dead).await?;
    recover::forget_workers(pool, &dead).await?;
    metrics::counter!("offstage_workers_lost_total").increment(dead.len() as u64);
    tracing::warn!(workers = dead.len(), "took over from dead workers");
    Ok(())
}

async fn take_over(engine: &Engine, connection: &mut Commands, dead: &[Uuid]) -> Result<(), SweepError> {
    loop {
        let limit = i64::try_from(BATCH).unwrap_or(i64::MAX);
        let recovered = recover::take_over(&engine.services.pool, dead, engine.services.clock.now(), limit).await?;
        let count = recovered.len();
        metrics::counter!("offstage_jobs_taken_over_total").increment(count as u64);
        for poisoned in recovered.iter().filter(|recovered| recovered.state == State::Failed) {
            tracing::error!(job = %poisoned.job, "failed as poison: worker after worker died under it");
        }
        put_back(engine, connection, recovered).await?;
        if count < BATCH {
            return Ok(());
        }
    }
}

/// Pushes what is queued again and tells of all of it. Recovered jobs have waited their turn, so they go first.
async fn put_back(engine: &Engine, connection: &mut Commands, recovered: Vec<Recovered>) -> Result<(), SweepError> {
    let changed = recovered.iter().map(|recovered| recovered.job).collect();
    let handovers: Vec<Handover> = recovered
        .into_iter()
        .filter_map(|recovered| recovered.handover)
        .map(|handover| Handover { lane: Lane::High, ..handover })
        .collect();
    engine.announcer.tell(Announcement { changed, ..Announcement::default() });
    push::push(connection, engine.redis.keys(), &handovers).await?;
    Ok(())
}

/// A duty of the ledger: its name, and for how long who takes it has it.
type Duty = (&'static str, Duration);

/// The sweep that comes by itself. A little shorter than [`SWEEP_EVERY`], so that who comes next in time finds it free.
const REGULAR: Duty = ("sweep", Duration::from_millis(4_500));
/// The sweep for which there is a reason. A duty of its own: the regular one may just have been done, and found nothing or no
/// Redis. One a second is plenty, however many replicas reconnect.
const AT_ONCE: Duty = ("sweep_at_once", Duration::from_secs(1));

/// Compares streams and ledger, if this replica gets the duty.
async fn sweep(engine: &Engine, connection: &mut Commands, (duty, period): Duty) -> Result<(), SweepError> {
    let pool = &engine.services.pool;
    if engine.lease.epoch().is_none() || !recover::take_duty(pool, duty, engine.worker, period).await? {
        return Ok(());
    }
    let swept = sweep_all(engine, connection).await;
    if swept.is_err() {
        // It is tried again soon, by us or by whoever is sooner.
        recover::lay_down_duty(pool, duty, engine.worker).await?;
    }
    swept
}

async fn sweep_all(engine: &Engine, connection: &mut Commands) -> Result<(), SweepError> {
    let pool = &engine.services.pool;
    let vanished = recover::vanished_workers(pool).await?;
    if !vanished.is_empty() && engine.lease.may_judge() {
        take_over(engine, connection, &vanished).await?;
    }
    for queue in Queue::EVERY {
        sweep_queue(engine, connection, queue).await?;
    }
    if recover::take_duty(pool, "tidy", engine.worker, TIDY_EVERY).await? {
        let alive: Vec<String> = recover::living_workers(pool).await?.iter().map(Uuid::to_string).collect();
        for queue in Queue::EVERY {
            read::forget_consumers(connection, engine.redis.keys(), queue, &alive).await?;
        }
        recover::tidy(pool, engine.services.clock.now()).await?;
        checkpoint::tidy(pool).await?;
        limits::tidy(pool, engine.services.clock.now() - KEYS_FORGOTTEN_AFTER).await?;
    }
    Ok(())
}

async fn sweep_queue(engine: &Engine, connection: &mut Commands, queue: Queue) -> Result<(), SweepError> {
    let keys = engine.redis.keys();
    // Entries whose reader died before it claimed: off the stream, and what is queued of them is found missing below.
    let abandoned = read::take_abandoned(connection, keys, queue, &engine.worker.to_string(), UNCLAIMED_AFTER, BATCH).await?;
    if !abandoned.is_empty() {
        metrics::counter!("offstage_entries_abandoned_total", "queue" => queue.name()).increment(abandoned.len() as u64);
        read::remove(connection, keys, queue, &abandoned).await?;
    }
    // The ledger before the stream: what is pushed in between is in the stream, and a job in neither look is not old enough.
    let handed_over = recover::handed_over(&engine.services.pool, queue).await?;
    if handed_over.is_empty() {
        return Ok(());
    }
    let streamed: HashSet<JobId> = read::jobs_in_streams(connection, keys, queue).await?.into_iter().collect();
    let unseen: Vec<JobId> = handed_over.into_iter().filter(|job| !streamed.contains(job)).collect();
    for chunk in unseen.chunks(BATCH) {
        let missing = recover::missing(&engine.services.pool, chunk).await?;
        if !missing.is_empty() {
            metrics::counter!("offstage_jobs_pushed_again_total", "queue" => queue.name()).increment(missing.len() as u64);
            tracing::warn!(queue = queue.name(), jobs = missing.len(), "queued jobs were in no stream: pushed again");
            push::push(connection, keys, &missing).await?;
            recover::pushed(&engine.services.pool, &missing).await?;
        }
    }
    Ok(())
}

/// Gives back claims that the ledger says we hold and we do not, seen so at two looks: between the moment in which a claim's answer is given
/// up and that in which the ledger is through with it one look proves nothing.
async fn not_held(engine: &Engine, connection: &mut Commands, suspected: &mut Vec<(JobId, i64)>) -> Result<(), SweepError> {
    let claims = recover::claims_of(&engine.services.pool, engine.worker).await?;
    let now_suspected = engine.held.not_held(&claims);
    let lost: Vec<(JobId, i64)> = now_suspected.iter().filter(|claim| suspected.contains(claim)).copied().collect();
    *suspected = now_suspected;
    give_back(engine, connection, &lost).await
}

async fn give_all_back(engine: &Engine, connection: &mut Commands) -> Result<(), SweepError> {
    let claims = recover::claims_of(&engine.services.pool, engine.worker).await?;
    give_back(engine, connection, &engine.held.not_held(&claims)).await
}

async fn give_back(engine: &Engine, connection: &mut Commands, lost: &[(JobId, i64)]) -> Result<(), SweepError> {
    if lost.is_empty() {
        return Ok(());
    }
    let mut ledger = engine.services.pool.acquire().await.map_err(LedgerError::from)?;
    let returned = recover::give_back(&mut ledger, lost, engine.services.clock.now()).await?;
    drop(ledger);
    metrics::counter!("offstage_claims_given_back_total").increment(returned.len() as u64);
    tracing::warn!(jobs = returned.len(), "gave back claims whose answer was lost");
    put_back(engine, connection, returned).await
}

/// Somebody wants running jobs cancelled; what the ledger says of it counts.
async fn cancels(engine: &Engine, jobs: &[JobId]) -> Result<(), SweepError> {
    if engine.held.holds_any(jobs) {
        let wished = recover::cancels(&engine.services.pool, engine.worker).await?;
        engine.held.cancel(&wished);
    }
    Ok(())
}
