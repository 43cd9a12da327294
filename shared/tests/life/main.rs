//! A job's life on a real Postgres: put off, held, dead, redriven, gone. Time is a set clock's; nothing waits.

mod behind_a_breaker;
mod dead;
mod kept;
mod people;
mod plans;
mod put_off;
mod refused;
mod retention;
mod rollups;
mod schedules;
mod switched_off;

use chrono::{DateTime, TimeDelta, Utc};
use sandbox::{Options, Sandbox};
use secrecy::SecretString;
use serde_json::Value;
use shared::{
    clock::Clock,
    job::{JobId, Outcome, Policy, Priority},
    ledger::{
        self, Kept, Sessions,
        claim::{ClaimedJob, claim},
        dispatch::{self, Dispatched},
        insert::{Arrival, Inserted, NewJob, insert},
        settle::{Settled, Settlement, settle},
    },
    queue::Queue,
    tenant::{self, Manifest},
};
use sqlx::{AssertSqlSafe, PgPool};

const QUEUE: Queue = Queue::Email;

/// A ledger, entered as the engine and as the API enter it.
struct Ledger {
    sandbox: Sandbox,
    engine: PgPool,
    api: PgPool,
    clock: Clock,
    tenant: i32,
}

impl Ledger {
    async fn start() -> Self {
        let sandbox = Sandbox::start(Options::test()).await.unwrap();
        let open = |url: String, sessions| {
            ledger::pool("OFFSTAGE_TEST", &SecretString::from(url), sessions, 4).unwrap_or_else(|error| panic!("{error}"))
        };
        let (engine, api) = (open(sandbox.postgres.engine_url(), Sessions::Engine), open(sandbox.postgres.api_url(), Sessions::Plain));
        let clock = Clock::at("2026-11-20T12:00:00Z".parse().unwrap());
        let tenant = apply(&sandbox, "acme", &clock).await;
        Self { sandbox, engine, api, clock, tenant }
    }

    fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    fn advance(&self, seconds: i64) {
        self.clock.advance(TimeDelta::seconds(seconds));
    }

    /// A job that waits to be dispatched, due now.
    async fn accept(&self, tenant: i32, kind: &'static str) -> JobId {
        let id = JobId(self.clock.new_id());
        let now = self.now();
        let job = NewJob {
            id,
            tenant,
            owner: Some("ada".into()),
            subject: None,
            kind,
            queue: QUEUE,
            priority: Priority::Normal,
            payload: "{}".into(),
            attempts: 3,
            created_at: now,
            run_at: now,
            start_by: None,
            state: Arrival::Waiting(shared::job::Reason::Window),
            idempotency: None,
            options: shared::job::Options::default(),
            meter: None,
        };
        assert_eq!(insert(&Kept::of(self.engine.clone(), 1), now, &[job]).await.remove(0).unwrap(), Inserted::Accepted);
        id
    }

    async fn dispatch(&self) -> Dispatched {
        let [tenants] = dispatch::turns(&self.engine, QUEUE, self.now(), [(Priority::Normal, -1)]).await.unwrap();
        let turns = dispatch::divide(1_000, &tenants);
        dispatch::dispatch(&self.engine, QUEUE, Priority::Normal, self.now(), &turns).await.unwrap()
    }

    /// Whatever is due, dispatched and claimed.
    async fn claim(&self) -> Vec<ClaimedJob> {
        let jobs: Vec<JobId> = self.dispatch().await.handovers.iter().map(|handover| handover.job).collect();
        claim(&self.engine, &jobs, self.clock.new_id(), self.now()).await.unwrap()
    }

    /// The only job that is due, dispatched and claimed.
    async fn claim_one(&self) -> ClaimedJob {
        let mut claimed = self.claim().await;
        assert_eq!(claimed.len(), 1, "{claimed:?}");
        claimed.remove(0)
    }

    async fn settle(&self, job: &ClaimedJob, policy: &Policy, outcome: Outcome) -> Settled {
        let settlement = Settlement::decide(job, policy, outcome, self.now());
        settle(&mut self.engine.acquire().await.unwrap(), &[settlement]).await.unwrap().remove(0)
    }

    /// The latest run's error.
    async fn error(&self, job: JobId) -> Value {
        sqlx::query_scalar("SELECT error FROM job_attempt WHERE job_id = $1 ORDER BY run DESC LIMIT 1")
            .bind(job.0)
            .fetch_one(&self.engine)
            .await
            .unwrap()
    }

    async fn number(&self, statement: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(format!("SELECT ({statement})::bigint"))).fetch_one(self.sandbox.pool()).await.unwrap()
    }
}

async fn apply(sandbox: &Sandbox, name: &str, clock: &Clock) -> i32 {
    let manifest = Manifest::from_toml(&format!("[tenant]\nname = \"{name}\"\n")).unwrap();
    tenant::apply(sandbox.pool(), &manifest, clock.now(), false).await.unwrap().tenant.unwrap()
}
