//! Step 7's task: collects what runs ended with and writes it in batches, whatever arrived meanwhile.
//!
//! It outlives all runners, and a ledger that is away only makes it wait: outcomes are bounded by the credits they hold.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use shared::{
    job::{JobId, Reason, State},
    ledger::{
        Kept, LedgerError,
        settle::{self, Settled, Settlement},
    },
    queue::{Queue, read::reconnect_pause},
    random,
};
use sqlx::PgConnection;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Engine,
    announce::Announcement,
    canary::Stage,
    run::{Ended, Finished},
};

/// Outcomes of one statement.
const BATCH: usize = 500;

/// Settles until all runners are gone and all they left is written; `forced` gives up sooner.
pub(super) async fn run(engine: Arc<Engine>, mut outcomes: mpsc::Receiver<Finished>, forced: CancellationToken) {
    let mut received: Vec<Finished> = Vec::with_capacity(BATCH);
    let kept = Kept::of(engine.services.pool.clone(), 1);
    loop {
        if outcomes.recv_many(&mut received, BATCH).await == 0 {
            return;
        }
        let mut canaries = Vec::new();
        let mut batch: Vec<Ended> = Vec::with_capacity(received.len());
        for finished in received.drain(..) {
            match finished {
                Finished::Run(ended) => batch.push(ended),
                Finished::Canary(queue, sent) => canaries.push((queue, sent)),
            }
        }
        let mut settlements: Vec<Settlement> = batch.iter().map(|ended| ended.settlement.clone()).collect();
        if !canaries.is_empty() {
            // Our own id is no job's: the statement runs, and finds nothing to settle of it.
            settlements.push(Settlement::of_nothing(JobId(engine.worker)));
        }
        let Some(settled) = write_patiently(&engine, &kept, settlements, &forced).await else { return };
        for (queue, sent) in canaries {
            metrics::histogram!("offstage_queue_canary_seconds", "queue" => queue.name()).record(sent.elapsed().as_secs_f64());
            engine.health.reached(queue, Stage::Settled, sent);
        }
        if batch.is_empty() {
            continue;
        }
        metrics::counter!("offstage_settles_stale_total").increment((batch.len() - settled.len()) as u64);
        metrics::histogram!("offstage_settle_batch_jobs").record(batch.len() as f64);
        let by_job: HashMap<JobId, &Settled> = settled.iter().map(|settled| (settled.job, settled)).collect();
        let mut counted: HashMap<(Queue, &str, &'static str), u64> = HashMap::new();
        for finished in &batch {
            if let Some(settled) = by_job.get(&finished.job.id) {
                *counted.entry((finished.job.queue, &finished.job.kind, outcome(settled))).or_default() += 1;
                log(finished, settled);
                let options = finished.job.options.as_ref();
                if options.is_some_and(|options| options.is_followed()) {
                    engine.ended.notify_one();
                }
                if options.is_some_and(|options| options.limit.is_some()) {
                    engine.limits.notify_one();
                }
                // They make jobs of others: what comes of them need not wait until somebody looks.
                if finished.settlement.is_told() || finished.job.kind.starts_with("notification.") {
                    for queue in [Queue::Analytics, Queue::Push, Queue::Email] {
                        engine.dispatch.due(queue);
                    }
                }
                if settled.state == State::Waiting && !matches!(settled.reason, Reason::SwitchedOff | Reason::Paused | Reason::BreakerOpen)
                {
                    engine.dispatch.due(finished.job.queue);
                }
            }
        }
        for ((queue, kind, outcome), jobs) in counted {
            metrics::counter!("offstage_jobs_settled_total", "queue" => queue.name(), "kind" => kind.to_owned(), "outcome" => outcome)
                .increment(jobs);
        }
        engine.held.remove(batch.iter().map(|finished| (finished.job.id, finished.job.token)));
        engine.announcer.tell(Announcement {
            handovers: settled.iter().filter_map(|settled| settled.handover).collect(),
            changed: settled.iter().map(|settled| settled.job).collect(),
        });
        let queues: BTreeSet<Queue> = batch.iter().map(|finished| finished.job.queue).collect();
        // The credits go back here, all at once.
        drop(batch);
        for queue in queues {
            engine.dispatch.settled(queue);
        }
    }
}

/// The word for it in the figures.
const fn outcome(settled: &Settled) -> &'static str {
    match (settled.state, settled.reason) {
        (State::Waiting, Reason::Snoozed) => "snoozed",
        (State::Waiting, Reason::SwitchedOff) => "switched_off",
        (State::Waiting, Reason::Paused) => "paused",
        (State::Waiting, Reason::BreakerOpen) => "breaker_open",
        (State::Waiting, Reason::Limited) => "limited",
        (State::Waiting, _) => "retried",
        (state, _) => state.word(),
    }
}

fn log(finished: &Ended, settled: &Settled) {
    match settled.state {
        State::Failed => {
            // With its causes: they are for operators, and stand nowhere else but in the ledger.
            let error = finished.settlement.error().map(ToString::to_string).unwrap_or_default();
            tracing::warn!(job = %settled.job, kind = finished.job.kind, attempt = finished.job.attempt, error, "job failed");
        }
        state => {
            tracing::debug!(job = %settled.job, kind = finished.job.kind, attempt = finished.job.attempt, state = state.word(), "job settled");
        }
    }
}

/// How a part of a batch is written, after all that was refused of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// As it is.
    Whole,
    /// As a failure, in place of an outcome that was refused.
    Failure,
    /// As a failure that may mean less to others than it should.
    Alone,
}

/// Writes a batch, for as long as it takes. A batch refused for its data is written one by one; a member that is refused alone fails its job
/// instead, and one whose failure is refused too is written without what was refused of it, or not at all: none holds the others up. `None`
/// when forced to stop.
async fn write_patiently(engine: &Engine, kept: &Kept, settlements: Vec<Settlement>, forced: &CancellationToken) -> Option<Vec<Settled>> {
    let mut failures: u32 = 0;
    let mut parts: Vec<(Vec<Settlement>, Step)> = vec![(settlements, Step::Whole)];
    let mut settled = Vec::new();
    while let Some((part, step)) = parts.pop() {
        let error = match engine.bounded(kept.on(async |connection| write(connection, &part, step).await)).await {
            Ok(written) => {
                settled.extend(written);
                continue;
            }
            Err(error) => error,
        };
        failures += 1;
        if failures.is_power_of_two() {
            tracing::warn!(error = &error as &dyn std::error::Error, failures, jobs = part.len(), "can't settle; trying again");
        }
        if error.is_about_data() {
            match step {
                Step::Whole if part.len() > 1 => parts.extend(part.into_iter().map(|settlement| (vec![settlement], Step::Whole))),
                Step::Whole => parts.push((part.into_iter().map(Settlement::refused).collect(), Step::Failure)),
                Step::Failure => parts.push((part, Step::Alone)),
                // Its claim lapses with its lease: then recovery takes it, which has bounds of its own.
                Step::Alone => {
                    metrics::counter!("offstage_settles_refused_total").increment(part.len() as u64);
                    for settlement in part {
                        let (job, error) = (settlement.job(), &error as &dyn std::error::Error);
                        tracing::error!(%job, error, "the database takes no end of this job: it is left to recovery");
                    }
                }
            }
            continue;
        }
        parts.push((part, step));
        let pause = reconnect_pause(failures, random::fraction()).min(Duration::from_secs(1));
        tokio::select! {
            () = forced.cancelled() => return None,
            () = tokio::time::sleep(pause) => {}
        }
    }
    Some(settled)
}

async fn write(connection: &mut PgConnection, part: &[Settlement], step: Step) -> Result<Vec<Settled>, LedgerError> {
    if step != Step::Alone {
        return settle::settle(connection, part).await;
    }
    let mut all = Vec::new();
    for settlement in part {
        let (settled, refused) = settle::settle_alone(connection, settlement).await?;
        metrics::counter!("offstage_settles_refused_total").increment(refused.len() as u64);
        for error in refused {
            let (job, error) = (settlement.job(), &error as &dyn std::error::Error);
            tracing::error!(%job, error, "a job has failed, and the database refused what that means to others: look at its usage");
        }
        all.extend(settled);
    }
    Ok(all)
}
