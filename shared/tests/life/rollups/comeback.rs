//! Metrics that a manifest ceases to declare, and declares again before any worker looked.

use serde_json::json;
use shared::{
    job::JobId,
    ledger::{
        events::{NewEvent, take},
        rollups::{rebuild, series},
    },
    tenant::{self, Manifest, Metric},
};
use uuid::Uuid;

use super::{Counted, MANIFEST};

const TENANT: &str = "[tenant]\nname = \"acme\"\n";

impl Counted {
    async fn apply(&self, manifest: &Manifest) {
        tenant::apply(self.ledger.sandbox.pool(), manifest, self.ledger.now(), false).await.unwrap();
    }

    async fn declare(&self, manifest: &Manifest) {
        series::declare(&self.ledger.engine, self.ledger.tenant, &manifest.metrics, &self.ledger.clock).await.unwrap();
    }

    /// Whether readers are told that all of `runs` is counted.
    async fn is_told_whole(&self) -> bool {
        let whole = "SELECT count(*) FROM metric_series s WHERE metric = 'runs' AND is_whole AND retired_at IS NULL
                     AND NOT EXISTS (SELECT FROM metric_left l WHERE l.series = s.series)";
        self.ledger.number(whole).await == 1
    }

    /// What a job does at the end: the one that is to count the metric's past, or another one that was asked for.
    async fn count_past(&self, is_its_own: bool) {
        let runs = &self.manifest.metrics["runs"];
        rebuild::day(&self.ledger.engine, self.ledger.tenant, runs, "2026-11-20".parse().unwrap()).await.unwrap();
        let own = "SELECT rebuild FROM metric_series WHERE metric = 'runs' AND series = $1";
        let own: Option<Uuid> = sqlx::query_scalar(own).bind(runs.series()).fetch_one(self.ledger.sandbox.pool()).await.unwrap();
        let job = own.filter(|_| is_its_own).unwrap_or_else(|| self.ledger.clock.new_id());
        series::is_whole(&self.ledger.engine, self.ledger.tenant, runs.series(), JobId(job)).await.unwrap();
    }
}

fn event(id: &str) -> NewEvent {
    NewEvent {
        id: id.into(),
        sort: "run".into(),
        user: None,
        time: "2026-11-20T12:00:00Z".parse().unwrap(),
        properties: json!({"status": "ok", "model": "a"}).as_object().unwrap().clone(),
    }
}

#[tokio::test]
async fn a_metric_that_was_away_between_two_looks_is_not_whole_until_it_is_counted() {
    let counted = Counted::start().await;
    let (with, without) = (Manifest::from_toml(MANIFEST).unwrap(), Manifest::from_toml(TENANT).unwrap());
    let other = Manifest::from_toml(&MANIFEST.replacen("event = \"run\"", "event = \"walk\"", 1)).unwrap();
    counted.count_past(true).await;
    assert!(counted.is_told_whole().await);
    // Also where all else that was done changes nothing of it.
    counted.apply(&with).await;
    counted.declare(&with).await;
    assert!(counted.is_told_whole().await);

    for between in [&without, &other] {
        let before = counted.ledger.number("SELECT count(*) FROM job WHERE payload ->> 'metric' = 'runs'").await;
        counted.apply(between).await;
        let none: Vec<&Metric> = Vec::new();
        let id = if between.metrics.is_empty() { "lost" } else { "lost-too" };
        take(&counted.ledger.api, &counted.prepared, counted.ledger.tenant, &none, &[event(id)], counted.ledger.now()).await.unwrap();
        counted.apply(&with).await;
        assert!(!counted.is_told_whole().await, "from the first moment");
        // A job that began before it came back says nothing of what is to be counted.
        counted.count_past(false).await;
        assert!(!counted.is_told_whole().await);
        counted.declare(&with).await;
        assert!(!counted.is_told_whole().await);
        assert_eq!(counted.ledger.number("SELECT count(*) FROM job WHERE payload ->> 'metric' = 'runs'").await, before + 1);
        let delay = "SELECT extract(epoch FROM max(s.run_at))::bigint - extract(epoch FROM max(j.created_at))::bigint
                     FROM job j JOIN job_state s ON s.job_id = j.id WHERE j.id = (SELECT rebuild FROM metric_series WHERE metric = 'runs' AND retired_at IS NULL)";
        assert_eq!(counted.ledger.number(delay).await, 90, "when every program knows of it");
        counted.count_past(false).await;
        assert!(!counted.is_told_whole().await, "the job that is to count has not ended");
        counted.count_past(true).await;
        assert!(counted.is_told_whole().await);
    }
}

#[tokio::test]
async fn a_worker_that_looks_with_the_manifest_of_before_hides_nothing() {
    let counted = Counted::start().await;
    let (with, without) = (Manifest::from_toml(MANIFEST).unwrap(), Manifest::from_toml(TENANT).unwrap());
    counted.count_past(true).await;
    counted.apply(&without).await;
    counted.declare(&with).await;
    counted.ledger.advance(85);
    counted.apply(&with).await;
    counted.declare(&with).await;
    // The job of the look in between would come too early for those who have not heard of it.
    let due =
        "SELECT extract(epoch FROM run_at)::bigint FROM job_state WHERE job_id = (SELECT rebuild FROM metric_series WHERE metric = 'runs')";
    assert_eq!(counted.ledger.number(due).await, counted.ledger.now().timestamp() + 90);
    counted.count_past(false).await;
    assert!(!counted.is_told_whole().await);
}
