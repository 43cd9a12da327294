//! Steps 4 and 5 for one queue: read entries for as many jobs as there are credits, claim them in one statement, hand them to
//! the apalis worker, and take the entries off their streams: from the claim on the ledger answers for the job.
//! This replica's own canaries come along, also while there is no room for jobs.

use std::{sync::Arc, time::Duration};

use shared::{
    job::JobId,
    ledger::{
        LedgerError,
        claim::{self, ClaimedJob},
    },
    queue::{
        Commands, Queue, canary,
        read::{self, Delivery, Found, Reader},
    },
    random,
};

use super::{Engine, canary::Stage, held::Asking, intake::Intake, run::Work};

/// How long a canary that Redis took may need to its reader, on a machine that is busy.
const ARRIVES_WITHIN: Duration = Duration::from_millis(1_500);

/// Fetches from the lanes by priority, or from that of those who go first, until the engine drains. Ending drops the feed, which
/// lets the apalis worker finish and end.
pub(super) async fn run(engine: Arc<Engine>, intake: Intake, mut connection: Commands) {
    let (queue, go_first) = (intake.queue, intake.goes_first);
    let make = if go_first { Reader::of_first } else { Reader::new };
    let mut reader = make(engine.redis.clone(), queue, engine.worker.to_string());
    let mut failures: u32 = 0;
    loop {
        let ready = async {
            engine.lease.held().await;
            intake.credits.room().await
        };
        let room = tokio::select! {
            biased;
            () = engine.draining.cancelled() => return,
            room = ready => Some(room),
            () = canary_sent(&engine, queue), if !go_first => None,
        };
        let reading = async {
            match room {
                Some(room) => reader.read(room).await,
                None => reader.read_canaries().await,
            }
        };
        let read = tokio::select! {
            () = engine.draining.cancelled() => return,
            read = reading => read,
            () = canary_overdue(&engine, queue), if room.is_some() && !go_first => {
                // Redis took it and this connection did not bring it: whatever was swallowed was on the way to it.
                tracing::warn!(queue = queue.name(), "a canary did not arrive where jobs do; connecting anew");
                if let Some(doubted) = engine.first_doubted.get(&queue) {
                    doubted.notify_one();
                }
                reader.disconnect();
                failures += 1;
                continue;
            }
            () = first_doubted(&engine, queue), if go_first => {
                reader.disconnect();
                failures += 1;
                continue;
            }
        };
        let Found { deliveries, canaries, emptied } = match read {
            Ok(found) => {
                if failures > 0 {
                    tracing::info!(queue = queue.name(), failures, "reads the queue again");
                    failures = 0;
                }
                found
            }
            Err(error) => {
                failures += 1;
                if failures.is_power_of_two() {
                    tracing::warn!(
                        queue = queue.name(),
                        error = &error as &dyn std::error::Error,
                        failures,
                        "can't read the queue; trying again"
                    );
                }
                pause(&engine, read::reconnect_pause(failures, random::fraction())).await;
                continue;
            }
        };
        if emptied {
            engine.emptied.notify_one();
        }
        if !canaries.is_empty() && !pass_on(&engine, &intake, &canaries).await {
            return;
        }
        if deliveries.is_empty() {
            acknowledge(&engine, &mut connection, queue, &canaries).await;
            continue;
        }
        // The read may have waited for seconds: what is claimed now belongs to the lease of now.
        let epoch = tokio::select! {
            () = engine.draining.cancelled() => return,
            epoch = engine.lease.held() => epoch,
        };
        let jobs: Vec<JobId> = deliveries.iter().filter_map(|delivery| delivery.job).collect();
        let Some((claimed, asking)) = claim_patiently(&engine, queue, &jobs).await else { return };
        metrics::counter!("offstage_claims_lost_total", "queue" => queue.name())
            .increment((jobs.len().saturating_sub(claimed.len())) as u64);
        let count = claimed.len();
        if intake.take_in(&engine, claimed, &epoch).await.is_err() {
            return;
        }
        drop(asking);
        remove(&engine, &mut connection, queue, &deliveries).await;
        acknowledge(&engine, &mut connection, queue, &canaries).await;
        engine.dispatch.drained(queue, count);
    }
}

/// Returns when a canary of ours has been sent since this returned last.
async fn canary_sent(engine: &Engine, queue: Queue) {
    match engine.canary_waits.get(&queue) {
        Some(sent) => sent.notified().await,
        None => std::future::pending().await,
    }
}

/// Returns when the other reader of the queue lost its connection without a word: this one's may have gone the same way.
async fn first_doubted(engine: &Engine, queue: Queue) {
    match engine.first_doubted.get(&queue) {
        Some(doubted) => doubted.notified().await,
        None => std::future::pending().await,
    }
}

/// Returns when a canary has been sent and, for [`ARRIVES_WITHIN`], not read.
async fn canary_overdue(engine: &Engine, queue: Queue) {
    loop {
        canary_sent(engine, queue).await;
        tokio::time::sleep(ARRIVES_WITHIN).await;
        if engine.health.is_under_way(queue, ARRIVES_WITHIN) {
            return;
        }
    }
}

/// Sends canaries on their way, through the statement that claims jobs to the apalis worker. False when the engine drains.
async fn pass_on(engine: &Engine, intake: &Intake, canaries: &[canary::Canary]) -> bool {
    let newest = canaries.iter().filter_map(|canary| engine.canaries.sent(canary.mark?)).max();
    if let Some(sent) = newest {
        engine.health.reached(intake.queue, Stage::Read, sent);
        // As a claim of a job that is not there: our own id is none's.
        if claim_patiently(engine, intake.queue, &[JobId(engine.worker)]).await.is_none() {
            return false;
        }
        engine.health.reached(intake.queue, Stage::Claimed, sent);
        return intake.pass_on(Work::Canary(sent)).await.is_ok();
    }
    true
}

async fn acknowledge(engine: &Engine, connection: &mut Commands, queue: Queue, canaries: &[canary::Canary]) {
    if canaries.is_empty() {
        return;
    }
    if let Err(error) = canary::acknowledge(connection, engine.redis.keys(), queue, &engine.worker.to_string(), canaries).await {
        tracing::debug!(queue = queue.name(), error = &error as &dyn std::error::Error, "a canary stays unacknowledged");
    }
}

async fn pause(engine: &Engine, pause: Duration) {
    tokio::select! {
        () = engine.draining.cancelled() => {}
        () = tokio::time::sleep(pause) => {}
    }
}

/// Claims, and tries again while the ledger is away: the entries stay ours in the stream meanwhile. `None` when draining.
async fn claim_patiently<'a>(engine: &'a Engine, queue: Queue, jobs: &[JobId]) -> Option<(Vec<ClaimedJob>, Asking<'a>)> {
    let mut failures: u32 = 0;
    loop {
        let (asking, now) = (engine.held.asking(engine.worker), engine.services.clock.now());
        let claiming = engine.claims.on(async |connection| claim::claim(connection, jobs, asking.by, now).await);
        let error: LedgerError = match engine.bounded(claiming).await {
            Ok(claimed) => return Some((claimed, asking)),
            Err(error) => error,
        };
        drop(asking);
        failures += 1;
        if failures.is_power_of_two() {
            tracing::warn!(queue = queue.name(), error = &error as &dyn std::error::Error, failures, "can't claim; trying again");
        }
        pause(engine, read::reconnect_pause(failures, random::fraction())).await;
        if engine.draining.is_cancelled() {
            return None;
        }
    }
}

async fn remove(engine: &Engine, connection: &mut Commands, queue: Queue, deliveries: &[Delivery]) {
    if let Err(error) = read::remove(connection, engine.redis.keys(), queue, deliveries).await {
        // They lose at the next claim, so this costs a delivery and nothing else.
        tracing::debug!(
            queue = queue.name(),
            error = &error as &dyn std::error::Error,
            "entries of claimed jobs stay in their stream for now"
        );
    }
}
