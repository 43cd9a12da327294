//! Jobs into the ledger: over HTTP, one by one or in bulk, or straight by the API's statements where only the backlog matters.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Instant,
};

use futures_util::future::try_join_all;
use secrecy::SecretString;
use shared::{
    job::{JobId, Priority, Reason},
    kinds::{Kind, ProbeRun},
    ledger::{
        self, Kept, Sessions,
        insert::{self, Arrival, Inserted, NewJob},
    },
    queue::{
        Queue,
        push::{self, Handover},
    },
};
use tokio::sync::mpsc;

use super::Offstage;
use crate::{
    error::{Error, Result},
    flood::flood,
    measure::{Meter, Run, Watched, memory},
    plan::{BULK, BULK_IN_FLIGHT, SINGLE_IN_FLIGHT, payload},
};

/// The API sends due jobs straight to a lane of the streams up to four a slot of a worker (`api/src/accept/room.rs`); the rest waits in the
/// ledger. The few that would go before them, in a lane of their own, are left out.
const STRAIGHT: u64 = 4 * Queue::Analytics.default_concurrency() as u64;

/// What waits.
pub(super) struct Backlog<'a> {
    pub(super) kind: &'static str,
    pub(super) queue: Queue,
    /// As the kind's policy has it.
    pub(super) attempts: u16,
    /// Each job's owner and payload, by its number.
    pub(super) of: &'a (dyn Fn(usize) -> (Option<String>, String) + Sync),
}

impl Offstage {
    /// Inserts batches of 1,000 as the API's role and pushes what is due, as the API does: a backlog of single jobs, made in a moment.
    pub async fn prepare(&self, jobs: usize, payload: &str) -> Result<Run> {
        let backlog = Backlog {
            kind: ProbeRun::NAME,
            queue: Queue::Analytics,
            attempts: ProbeRun::POLICY.attempts,
            of: &|_| (None, payload.to_owned()),
        };
        self.prepare_backlog(jobs, &backlog).await
    }

    /// The same of any kind.
    pub(super) async fn prepare_backlog(&self, jobs: usize, backlog: &Backlog<'_>) -> Result<Run> {
        let url = SecretString::from(self.world.postgres.api_url());
        let pool = ledger::pool("OFFSTAGE_API_DATABASE_URL", &url, Sessions::Plain, 3)?;
        let connections = Kept::of(pool.clone(), BULK_IN_FLIGHT);
        try_join_all((0..BULK_IN_FLIGHT).map(|_| sqlx::query("SELECT 1").execute(&pool))).await?;
        let (tell, told) = mpsc::channel(64);
        let left = AtomicUsize::new(jobs);
        let straight = AtomicU64::new(0);

        let mut watched = vec![Watched::us("producer")];
        watched.extend(self.watched_servers());
        let meter = Meter::start(&watched);
        let begin = Instant::now();
        let inserting = async {
            let inserters = (0..BULK_IN_FLIGHT).map(|_| self.insert_batches(&connections, backlog, &left, &straight, tell.clone()));
            let inserted = try_join_all(inserters).await.map(drop);
            drop(tell);
            inserted
        };
        let (inserted, pushed) = tokio::join!(inserting, self.push_batches(told));
        let elapsed = begin.elapsed();
        let usage = meter.stop();
        inserted.and(pushed)?;
        self.check(jobs, 0).await?;
        Ok(Run::new(jobs, elapsed, usage))
    }

    async fn insert_batches(
        &self,
        connections: &Kept,
        backlog: &Backlog<'_>,
        left: &AtomicUsize,
        straight: &AtomicU64,
        tell: mpsc::Sender<Vec<Handover>>,
    ) -> Result<()> {
        loop {
            let count = take(left, BULK);
            if count == 0 {
                return Ok(());
            }
            let now = self.clock.now();
            let batch: Vec<NewJob> = (0..count)
                .map(|_| {
                    let number = straight.fetch_add(1, Ordering::Relaxed);
                    let (owner, payload) = (backlog.of)(usize::try_from(number).unwrap_or_default());
                    NewJob {
                        id: JobId(self.clock.new_id()),
                        tenant: self.tenant,
                        owner,
                        subject: None,
                        kind: backlog.kind,
                        queue: backlog.queue,
                        priority: Priority::Normal,
                        payload,
                        attempts: backlog.attempts,
                        created_at: now,
                        run_at: now,
                        start_by: None,
                        state: if number < STRAIGHT { Arrival::Queued } else { Arrival::Waiting(Reason::Window) },
                        idempotency: None,
                        options: shared::job::Options::default(),
                        meter: None,
                    }
                })
                .collect();
            for outcome in insert::insert(connections, now, &batch).await {
                if !matches!(outcome, Ok(Inserted::Accepted)) {
                    return Err(Error::Unexpected(format!("the ledger did not accept a job: {outcome:?}")));
                }
            }
            // Who can't be told is gone because of an error of its own, which is reported.
            let _ = tell.send(batch.iter().filter_map(NewJob::handover).collect()).await;
        }
    }

    async fn push_batches(&self, mut told: mpsc::Receiver<Vec<Handover>>) -> Result<()> {
        let mut connection = self.commands();
        while let Some(handovers) = told.recv().await {
            if !handovers.is_empty() {
                push::push(&mut connection, self.redis.keys(), &handovers).await?;
            }
        }
        Ok(())
    }

    /// `POST /v1/jobs` on 64 connections, each request after the answer to the one before.
    pub async fn enqueue_http(&self, jobs: usize) -> Result<Run> {
        self.flood("/v1/jobs", &job(&payload()), SINGLE_IN_FLIGHT, jobs, 1).await
    }

    /// `POST /v1/jobs/batch` with 1,000 jobs each.
    pub async fn enqueue_batches(&self, jobs: usize) -> Result<Run> {
        // What is left over of the last thousand would need a request of its own.
        let jobs = if jobs > BULK { jobs - jobs % BULK } else { jobs };
        let each = jobs.min(BULK);
        let body = format!(r#"{{"jobs":[{}]}}"#, vec![job(&payload()); each].join(","));
        self.flood("/v1/jobs/batch", &body, BULK_IN_FLIGHT, jobs, each).await
    }

    async fn flood(&self, path: &str, body: &str, connections: usize, jobs: usize, each: usize) -> Result<Run> {
        let api = self.api().await?;
        let pid = api.pid().unwrap_or_default();
        let idle = memory::resident(pid);
        let mut watched = vec![Watched::family("api", pid)];
        watched.extend(self.watched_servers());
        watched.push(Watched::us("load generator"));
        let meter = Meter::start(&watched);
        let flooded = flood(Self::address_of(&api)?, path, &self.key, body, connections, jobs, each).await;
        let usage = meter.stop();
        let memory = memory::peak(pid);
        api.stop().await?;
        let flooded = flooded?;
        self.check(jobs, 0).await?;
        let run = Run::new(jobs, flooded.elapsed, usage).latencies(flooded.latencies);
        Ok(run.extra("API RSS MiB", memory).extra("API RSS at its start, MiB", idle))
    }
}

/// A request for a probe with that payload.
pub(super) fn job(payload: &str) -> String {
    format!(r#"{{"kind":"probe.run","payload":{payload}}}"#)
}

/// Takes up to `most` of what is left.
fn take(left: &AtomicUsize, most: usize) -> usize {
    let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left - left.min(most)));
    taken.unwrap_or_default().min(most)
}
