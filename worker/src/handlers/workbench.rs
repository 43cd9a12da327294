//! What tests of handlers stand on: real services, a tenant, and jobs that are claimed as an engine claims them.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sandbox::{Options, Sandbox};
use shared::{
    clock::Clock,
    config::{Variables, WorkerConfig},
    job::{JobId, Priority},
    kinds::Kind,
    ledger::{
        self, Kept, Sessions,
        claim::{ClaimedJob, claim},
        insert::{Arrival, NewJob, insert},
        rollups::ask::Turns,
    },
    queue::Redis,
    tenant::{Manifest, Tenants, apply},
};
use tokio_util::sync::CancellationToken;

use super::{Followers, JobContext, Messages, Rebuilds, Services};
use crate::clients::Clients;

/// A sandbox with a worker's services in this very process.
pub(crate) struct Workbench {
    pub(crate) sandbox: Sandbox,
    pub(crate) services: Arc<Services>,
    tenant: i32,
}

impl Workbench {
    /// Everything started and migrated, and the tenant of a manifest applied.
    pub(crate) async fn start(manifest: &str) -> Self {
        let sandbox = Sandbox::start(Options::test()).await.unwrap();
        let config = WorkerConfig::read(&Variables::from_iter(sandbox.env()), None).unwrap();
        let pool = ledger::pool("OFFSTAGE_ENGINE_DATABASE_URL", &config.database.url, Sessions::Engine, 8).unwrap();
        let clock = Clock::at(Self::noon());
        let services = Services {
            pool: pool.clone(),
            gathered: Messages::start(&pool, &clock),
            clock,
            tenants: Tenants::new(pool),
            clients: Clients::new(&config),
            vault_keys: config.vault_keys.clone(),
            recipient_key: config.mail.recipient_key.clone(),
            public_url: config.public_url.clone(),
            ai_keys: config.ai.keys,
            followers: Followers::new(&Redis::new(&config.redis.url, &config.redis.prefix).unwrap()),
            turns: Turns::default(),
            rebuilds: Rebuilds::default(),
            sources: config.sources.with_own(config.database.url.clone()),
            probe: config.probe,
        };
        let manifest = Manifest::from_toml(manifest).unwrap_or_else(|error| panic!("{error}"));
        let tenant = apply(sandbox.pool(), &manifest, Self::noon(), false).await.unwrap().tenant.unwrap();
        Self { sandbox, services: Arc::new(services), tenant }
    }

    /// The time on the set clock.
    pub(crate) fn noon() -> DateTime<Utc> {
        "2026-11-20T12:00:00Z".parse().unwrap()
    }

    /// A job of the tenant, accepted and claimed.
    pub(crate) async fn claimed<K: Kind>(&self, payload: &K, owner: Option<&str>) -> JobContext {
        let id = JobId(self.services.clock.new_id());
        let job = NewJob {
            id,
            tenant: self.tenant,
            owner: owner.map(str::to_owned),
            subject: None,
            kind: K::NAME,
            queue: payload.queue(),
            priority: Priority::Normal,
            payload: serde_json::to_string(payload).unwrap(),
            attempts: 3,
            created_at: Self::noon(),
            run_at: Self::noon(),
            start_by: None,
            state: Arrival::Queued,
            idempotency: None,
            options: shared::job::Options::default(),
            meter: None,
        };
        insert(&Kept::of(self.services.pool.clone(), 1), Self::noon(), &[job]).await.remove(0).unwrap();
        let job = claim(&self.services.pool, &[id], self.services.clock.new_id(), Self::noon()).await.unwrap().remove(0);
        self.context(job)
    }

    /// The same job as another worker has it that took it over.
    pub(crate) async fn taken_over(&self, lost: &JobContext) -> JobContext {
        sqlx::query("UPDATE job_state SET state = 1, token = 0, attempt = attempt - 1, crashes = crashes + 1 WHERE job_id = $1")
            .bind(lost.job.id.0)
            .execute(&self.services.pool)
            .await
            .unwrap();
        let job = claim(&self.services.pool, &[lost.job.id], self.services.clock.new_id(), Self::noon()).await.unwrap().remove(0);
        self.context(job)
    }

    fn context(&self, job: ClaimedJob) -> JobContext {
        JobContext { job: Arc::new(job), services: Arc::clone(&self.services), cancelled: CancellationToken::new() }
    }

    /// The effects of a job that stand in the ledger: key and state.
    pub(crate) async fn effects(&self, job: JobId) -> Vec<(String, i16)> {
        sqlx::query_as("SELECT key, state FROM effect WHERE job_id = $1 ORDER BY key")
            .bind(job.0)
            .fetch_all(&self.services.pool)
            .await
            .unwrap()
    }

    /// Waits until neither storage nor the effect ledger has anything left of a job, or fails after ten seconds.
    pub(crate) async fn wait_until_nothing_is_left(&self, job: JobId) {
        wait("nothing is left", async || {
            let (uploads, objects) = (self.sandbox.s3.unfinished_uploads().unwrap(), self.sandbox.s3.objects().unwrap());
            uploads.is_empty() && objects.is_empty() && self.effects(job).await.is_empty()
        })
        .await;
    }
}

/// Waits until something holds, or fails after ten seconds.
pub(crate) async fn wait(what: &str, holds: impl AsyncFn() -> bool) {
    let reached = tokio::time::timeout(Duration::from_secs(10), async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(reached.await.is_ok(), "not within ten seconds: {what}");
}
