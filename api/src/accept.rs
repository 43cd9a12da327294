//! Steps 1 and 2: concurrent requests share inserts, and what is due goes to its queue's stream once it is committed.
//!
//! A request is answered when its job is durable in Postgres; Redis only ever hears of it afterwards, from a task of its own, so
//! a Redis that is away costs nobody a request: recovery and the dispatchers find what was not pushed.
//!
//! Batches form by themselves: while an insert is under way requests gather, and the next one takes them all. An idle API inserts
//! at once. One at a time, since an insert costs Postgres hardly more for fifty jobs than for ten (`docs/adr/0007`); but nobody waits long
//! for one that meets a lock.

mod room;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use shared::{
    clock::Clock,
    job::{JobId, Reason},
    ledger::{
        Kept, LedgerError,
        batch::store::{self, NewBatch, Stored},
        insert::{self, Arrival, Inserted, NewJob},
    },
    queue::{
        Commands, Queue, Redis,
        push::{self, Handover},
        signal,
    },
    usage,
};
use sqlx::PgPool;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

pub use room::Room;

/// Requests that may wait for an insert; further ones are told to come back.
const WAITING: usize = 8_192;
/// Jobs of one insert.
const BATCH: usize = 256;
/// Inserts under way at a time, at most: one, and beside it some that were held up.
const INSERTS: usize = 4;
/// How long the next insert waits for the one before it. Several times what one takes on a busy machine, so that none begins early that
/// would find half as many jobs; and not more than a request may lose to somebody else's lock.
const HELD_UP: Duration = Duration::from_millis(25);
/// Handovers that may wait for Redis; what is beyond is left to recovery.
const HANDOVERS: usize = 256;
/// Dispatchers look by themselves this often; a job due sooner is worth waking them for.
const DISPATCHER_LOOKS: TimeDelta = TimeDelta::seconds(5);

/// Why a job was not accepted. Nothing of it is stored, or nobody was told that it is.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// More requests wait than the database takes.
    #[error("more jobs are arriving than can be stored at the moment")]
    Overloaded,
    /// The ledger did not take it.
    #[error(transparent)]
    Ledger(Arc<LedgerError>),
}

struct Entry {
    job: NewJob,
    answer: oneshot::Sender<Result<(Inserted, Arrival), Arc<LedgerError>>>,
}

/// What is to be told to Redis after an insert.
#[derive(Debug)]
struct Told {
    handovers: Vec<Handover>,
    wake: Vec<Queue>,
    /// For who listens to all jobs.
    accepted: Vec<JobId>,
}

/// Takes jobs in. Cloned for each request.
#[derive(Debug, Clone)]
pub struct Acceptor {
    entries: mpsc::Sender<Entry>,
    /// Those that are metered gather by themselves: they lock counters, and nobody else is to wait for those.
    metered: mpsc::Sender<Entry>,
    gatherer: Arc<Gatherer>,
}

impl Acceptor {
    /// Starts the tasks behind it; they end, everything taken in stored and told, when the last clone is dropped. The handle
    /// waits for that.
    #[must_use]
    pub fn start(pool: PgPool, redis: &Redis, clock: Clock, room: Arc<Room>) -> (Self, JoinHandle<()>) {
        let (entries, waiting) = mpsc::channel(WAITING);
        let (metered, metered_waiting) = mpsc::channel(WAITING);
        let (tell, told) = mpsc::channel(HANDOVERS);
        let announcing = tokio::spawn(announce(redis.commands(), redis.clone(), Arc::clone(&room), told));
        let gatherer = Arc::new(Gatherer { is_metered: false, connections: Kept::of(pool.clone(), 1), pool, clock, room, tell });
        let of_metered = Arc::new(gatherer.for_metered());
        let gathering = Arc::clone(&gatherer);
        let handle = tokio::spawn(async move {
            tokio::join!(gathering.run(waiting), of_metered.run(metered_waiting));
            let _ = announcing.await;
        });
        (Self { entries, metered, gatherer }, handle)
    }

    /// Stores a job durably, unless its idempotency key says that it was asked for before. `state` is decided here, and told
    /// beside what became of the job.
    ///
    /// # Errors
    /// [`AcceptError`].
    pub async fn accept(&self, job: NewJob) -> Result<(Inserted, Arrival), AcceptError> {
        let (answer, answered) = oneshot::channel();
        let entries = if job.meter.is_some() { &self.metered } else { &self.entries };
        entries.try_send(Entry { job, answer }).map_err(|_| AcceptError::Overloaded)?;
        match answered.await {
            Ok(answer) => answer.map_err(AcceptError::Ledger),
            // The task is gone: the process is stopping, or a batch was lost to a panic.
            Err(_) => Err(AcceptError::Overloaded),
        }
    }

    /// Stores a batch with its jobs, each with its place in the request, in an insert of its own. How each arrives is decided here.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn accept_batch(&self, batch: &NewBatch, jobs: &mut [NewJob], places: &[usize]) -> Result<Stored, LedgerError> {
        let Gatherer { pool, clock, .. } = &*self.gatherer;
        let now = clock.now();
        for job in &mut *jobs {
            job.options.batch = Some(batch.id);
            job.state = self.gatherer.arrival(job, now);
        }
        let began = Instant::now();
        let stored = store::store(pool, now, batch, jobs, places).await?;
        metrics::histogram!("offstage_batch_store_seconds").record(began.elapsed().as_secs_f64());
        let outcomes = if let Stored::Accepted(outcomes) = &stored { outcomes.as_slice() } else { &[] };
        let is_in = |place: usize| outcomes.get(place) == Some(&Inserted::Accepted);
        let not_first = jobs.iter().enumerate().filter(|(place, job)| job.state == Arrival::First && !is_in(*place));
        self.gatherer.room.left(not_first.map(|(_, job)| job.id));
        if !outcomes.is_empty() {
            let mut told = Told { handovers: Vec::new(), wake: Vec::new(), accepted: Vec::new() };
            jobs.iter().enumerate().filter(|(place, _)| is_in(*place)).for_each(|(_, job)| told.add(job, now));
            self.gatherer.tell(told);
        }
        Ok(stored)
    }
}

impl Told {
    /// What must be told of a job that was stored.
    fn add(&mut self, job: &NewJob, now: DateTime<Utc>) {
        metrics::counter!("offstage_jobs_accepted_total", "queue" => job.queue.name(), "kind" => job.kind).increment(1);
        self.accepted.push(job.id);
        if let Some(handover) = job.handover() {
            self.handovers.push(handover);
        } else if job.run_at - now < DISPATCHER_LOOKS && !self.wake.contains(&job.queue) {
            self.wake.push(job.queue);
        }
    }
}

#[derive(Debug)]
struct Gatherer {
    /// Whether its jobs reserve what they may use.
    is_metered: bool,
    pool: PgPool,
    /// For inserts, which follow each other closely on a busy API.
    connections: Kept,
    clock: Clock,
    room: Arc<Room>,
    tell: mpsc::Sender<Told>,
}

impl Gatherer {
    /// Another one beside it, for what is metered.
    fn for_metered(&self) -> Self {
        let (pool, clock, room, tell) = (self.pool.clone(), self.clock.clone(), Arc::clone(&self.room), self.tell.clone());
        Self { is_metered: true, connections: Kept::of(pool.clone(), 1), pool, clock, room, tell }
    }

    async fn run(self: Arc<Self>, mut waiting: mpsc::Receiver<Entry>) {
        let inserts = Arc::new(Semaphore::new(INSERTS));
        loop {
            let Ok(turn) = Arc::clone(&inserts).acquire_owned().await else { return };
            let mut batch = Vec::new();
            if waiting.recv_many(&mut batch, BATCH).await == 0 {
                break;
            }
            let gatherer = Arc::clone(&self);
            let storing = tokio::spawn(async move {
                gatherer.store(batch).await;
                drop(turn);
            });
            // Held up or lost to a panic: it goes on or is over without us.
            let _ = timeout(HELD_UP, storing).await;
        }
        // All permits back means that every insert is done.
        let _ = inserts.acquire_many(u32::try_from(INSERTS).unwrap_or(1)).await;
    }

    async fn store(&self, mut batch: Vec<Entry>) {
        let now = self.clock.now();
        for entry in &mut batch {
            entry.job.state = self.arrival(&entry.job, now);
        }
        let (jobs, answers): (Vec<NewJob>, Vec<_>) = batch.into_iter().map(|entry| (entry.job, entry.answer)).unzip();
        metrics::histogram!("offstage_accept_batch_jobs").record(jobs.len() as f64);
        let began = Instant::now();
        let outcomes = if self.is_metered {
            let outcomes = usage::accept::insert(&self.connections, now, &jobs).await;
            metrics::histogram!("offstage_accept_metered_seconds").record(began.elapsed().as_secs_f64());
            outcomes
        } else {
            let outcomes = insert::insert(&self.connections, now, &jobs).await;
            metrics::histogram!("offstage_accept_insert_seconds").record(began.elapsed().as_secs_f64());
            outcomes
        };

        let mut told = Told { handovers: Vec::new(), wake: Vec::new(), accepted: Vec::new() };
        for ((job, outcome), answer) in jobs.iter().zip(outcomes).zip(answers) {
            if matches!(outcome, Ok(Inserted::Accepted)) {
                told.add(job, now);
            }
            if job.state == Arrival::First && !matches!(outcome, Ok(Inserted::Accepted)) {
                self.room.left([job.id]);
            }
            // Who went away keeps an accepted job all the same.
            let _ = answer.send(outcome.map(|inserted| (inserted, job.state)));
        }
        self.tell(told);
    }

    /// How a job enters the ledger.
    fn arrival(&self, job: &NewJob, now: DateTime<Utc>) -> Arrival {
        if job.run_at > now {
            Arrival::Waiting(Reason::NotDue)
        } else if job.options.limit.is_some() {
            // Its key is asked by those who dispatch.
            Arrival::Waiting(Reason::Limited)
        } else {
            self.room.admit(job.id, job.tenant, job.queue, job.priority)
        }
    }

    fn tell(&self, told: Told) {
        if self.tell.try_send(told).is_err() {
            metrics::counter!("offstage_handovers_dropped_total").increment(1);
        }
    }
}

/// Tells Redis what was committed, and learns from it how deep the queues are.
async fn announce(mut connection: Commands, redis: Redis, room: Arc<Room>, mut told: mpsc::Receiver<Told>) {
    let keys = redis.keys();
    let mut batch = Vec::new();
    while told.recv_many(&mut batch, HANDOVERS).await > 0 {
        let mut handovers = Vec::new();
        let mut wake: Vec<Queue> = Vec::new();
        let mut accepted = Vec::new();
        for one in batch.drain(..) {
            handovers.extend(one.handovers);
            wake.extend(one.wake);
            accepted.extend(one.accepted);
        }
        wake.sort_unstable();
        wake.dedup();
        match push::push(&mut connection, keys, &handovers).await {
            Ok(now) => now.into_iter().for_each(|(queue, jobs)| room.learn(queue, Some(jobs))),
            Err(error) => {
                metrics::counter!("offstage_handovers_dropped_total").increment(handovers.len() as u64);
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    jobs = handovers.len(),
                    "accepted jobs could not be pushed; recovery will"
                );
                room.not_pushed(&handovers);
            }
        }
        for queue in wake {
            if let Err(error) = signal::wake(&mut connection, keys, queue).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "could not wake the dispatchers; they look by themselves");
            }
        }
        if let Err(error) = signal::accepted(&mut connection, keys, accepted).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "could not tell of new jobs; listeners look by themselves");
        }
        for queue in room.stale() {
            room.learn(queue, push::depth(&mut connection, keys, queue).await.ok());
        }
    }
}
