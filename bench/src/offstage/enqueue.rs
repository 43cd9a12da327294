//! Jobs into the ledger: in bulk, by the same statements that the API uses, or one by one over HTTP.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Instant,
};

use futures_util::future::try_join_all;
use hyper::StatusCode;
use secrecy::SecretString;
use shared::{
    job::{JobId, Priority, Reason},
    kinds::{Kind, ProbeRun},
    ledger::{
        self, Sessions,
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
    http::Client,
    measure::{Meter, Run, Watched},
    plan::{BULK, IN_FLIGHT_BULK, IN_FLIGHT_SINGLE, payload},
};

/// The API sends due jobs straight to the streams up to half of the window (10,000 by default); the rest waits in the ledger.
const STRAIGHT: u64 = 5_000;

impl Offstage {
    /// Inserts batches of 1,000 as the API's role and pushes what is due, as the API would behind a batch route; there is no
    /// HTTP and no validation in it.
    pub async fn enqueue_bulk(&self, jobs: usize) -> Result<Run> {
        let url = SecretString::from(self.world.postgres.api_url());
        let pool = ledger::pool("OFFSTAGE_API_DATABASE_URL", &url, Sessions::Plain, 3)?;
        try_join_all((0..IN_FLIGHT_BULK).map(|_| sqlx::query("SELECT 1").execute(&pool))).await?;
        let (tell, told) = mpsc::channel(64);
        let left = AtomicUsize::new(jobs);
        let straight = AtomicU64::new(0);

        let mut watched = vec![Watched::us("producer")];
        watched.extend(self.watched_servers());
        let meter = Meter::start(&watched);
        let begin = Instant::now();
        let inserting = async {
            let inserters = (0..IN_FLIGHT_BULK).map(|_| self.insert_batches(&pool, &left, &straight, tell.clone()));
            let inserted = try_join_all(inserters).await.map(drop);
            drop(tell);
            inserted
        };
        let (inserted, pushed) = tokio::join!(inserting, self.push_batches(told));
        let elapsed = begin.elapsed();
        let usage = meter.stop();
        inserted.and(pushed)?;
        self.check(jobs, 0).await?;
        Ok(Run { jobs, elapsed, costs: usage.costs, others: usage.others, latencies: None })
    }

    async fn insert_batches(
        &self,
        pool: &sqlx::PgPool,
        left: &AtomicUsize,
        straight: &AtomicU64,
        tell: mpsc::Sender<Vec<Handover>>,
    ) -> Result<()> {
        let payload = payload();
        loop {
            let count = take(left, BULK);
            if count == 0 {
                return Ok(());
            }
            let now = self.clock.now();
            let batch: Vec<NewJob> = (0..count)
                .map(|_| NewJob {
                    id: JobId(self.clock.new_id()),
                    tenant: self.tenant,
                    owner: None,
                    subject: None,
                    kind: ProbeRun::NAME,
                    queue: Queue::Analytics,
                    priority: Priority::Normal,
                    payload: payload.clone(),
                    attempts: ProbeRun::POLICY.attempts,
                    created_at: now,
                    run_at: now,
                    start_by: None,
                    state: if straight.fetch_add(1, Ordering::Relaxed) < STRAIGHT {
                        Arrival::Queued
                    } else {
                        Arrival::Waiting(Reason::Window)
                    },
                    idempotency: None,
                    options: shared::job::Options::default(),
                })
                .collect();
            for outcome in insert::insert(pool, now, &batch).await {
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
        let api = self.api().await?;
        let address = api.address().ok_or_else(|| Error::Unexpected("the API has no address".to_owned()))?;
        let mut clients = Vec::with_capacity(IN_FLIGHT_SINGLE);
        for _ in 0..IN_FLIGHT_SINGLE {
            clients.push(Client::connect(address, &self.key).await?);
        }
        let body = format!(r#"{{"kind":"probe.run","payload":{}}}"#, payload());
        let left = AtomicUsize::new(jobs);

        let mut watched = vec![Watched::family("api", api.pid().unwrap_or_default())];
        watched.extend(self.watched_servers());
        watched.push(Watched::us("load generator"));
        let meter = Meter::start(&watched);
        let begin = Instant::now();
        let posting = clients.iter_mut().map(async |client| -> Result<()> {
            while take(&left, 1) == 1 {
                let (status, answer) = client.post("/v1/jobs", body.clone()).await?;
                if status != StatusCode::ACCEPTED {
                    return Err(Error::Unexpected(format!("POST /v1/jobs answered {status}: {}", String::from_utf8_lossy(&answer))));
                }
            }
            Ok(())
        });
        let posted = try_join_all(posting).await;
        let elapsed = begin.elapsed();
        let usage = meter.stop();
        drop(clients);
        api.stop().await?;
        posted?;
        self.check(jobs, 0).await?;
        Ok(Run { jobs, elapsed, costs: usage.costs, others: usage.others, latencies: None })
    }
}

/// Takes up to `most` of what is left.
fn take(left: &AtomicUsize, most: usize) -> usize {
    let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left - left.min(most)));
    taken.unwrap_or_default().min(most)
}
