//! How much a day may come to, and how many answers are computed at a time.

use std::time::Duration;

use serde_json::json;
use shared::{
    ledger::{
        self, Sessions,
        events::NewEvent,
        rollups::{
            ask::Turns,
            read::ReadError,
            rebuild::{self, RebuildError},
            series,
        },
    },
    tenant::{self, Manifest},
};

use super::Counted;

#[tokio::test]
async fn a_day_of_too_many_groups_stays_as_it_is_and_alone() {
    let mut counted = Counted::start().await;
    let fine = "[metrics.fine]\nevent = \"run\"\naggregate = \"count\"\ndimensions = [\"a\", \"b\", \"c\"]\n";
    counted.manifest = Manifest::from_toml(&format!("[tenant]\nname = \"acme\"\n{fine}")).unwrap();
    tenant::apply(counted.ledger.sandbox.pool(), &counted.manifest, counted.ledger.now(), false).await.unwrap();
    series::declare(&counted.ledger.engine, counted.ledger.tenant, &counted.manifest.metrics, &counted.ledger.clock).await.unwrap();
    let event = |number: usize, time: &str| NewEvent {
        id: format!("fine-{number}"),
        sort: "run".into(),
        user: None,
        time: time.parse().unwrap(),
        properties: json!({"a": number, "b": number, "c": number}).as_object().unwrap().clone(),
    };
    let events: Vec<NewEvent> = (0..15_000).map(|number| event(number, "2026-11-20T12:00:00Z")).collect();
    for batch in events.chunks(5_000) {
        while counted.take(batch).await.is_none() {}
    }
    while counted.take(&[event(15_000, "2026-11-19T12:00:00Z")]).await.is_none() {}
    counted.compact_all().await;
    let before = counted.days().await;
    assert!(before.len() > 100_000);
    let metric = counted.manifest.metrics["fine"].clone();
    let rebuild = async |day: &str| rebuild::day(&counted.ledger.engine, counted.ledger.tenant, &metric, day.parse().unwrap()).await;
    let refused = rebuild("2026-11-20").await;
    assert!(matches!(refused, Err(RebuildError::TooManyGroups(_))), "{refused:?}");
    assert_eq!(rebuild("2026-11-19").await.unwrap(), 1);
    assert!(counted.days().await == before, "neither lost anything");

    // Its job comes to nothing: after some hours there is another one, and not before.
    let job = "SELECT count(DISTINCT rebuild) FROM metric_series WHERE metric = 'fine'";
    assert_eq!(counted.ledger.number(job).await, 1);
    let jobs = "SELECT count(*) FROM job WHERE kind = 'metric.rebuild' AND payload ->> 'metric' = 'fine'";
    let declare = async || {
        series::declare(&counted.ledger.engine, counted.ledger.tenant, &counted.manifest.metrics, &counted.ledger.clock).await.unwrap();
        counted.ledger.number(jobs).await
    };
    assert_eq!(declare().await, 1);
    let ended = sqlx::query("UPDATE job_state SET finished_at = $1 WHERE job_id IN (SELECT rebuild FROM metric_series)");
    ended.bind(counted.ledger.now()).execute(counted.ledger.sandbox.pool()).await.unwrap();
    assert_eq!(declare().await, 1);
    counted.ledger.advance(7 * 3_600);
    assert_eq!((declare().await, declare().await), (2, 2));
}

#[tokio::test]
async fn answers_are_computed_some_at_a_time() {
    let turns = Turns::default();
    let mut taken = Vec::new();
    while let Ok(one) = turns.take(Duration::ZERO).await {
        taken.push(one);
        assert!(taken.len() <= 1_024);
    }
    assert!(taken.len() >= 2);
    assert!(matches!(turns.take(Duration::from_millis(20)).await, Err(ReadError::Busy)));
    taken.pop();
    turns.take(Duration::from_secs(60)).await.unwrap();
}

#[tokio::test]
async fn a_day_is_counted_anew_by_one_connection() {
    let counted = Counted::start().await;
    let event = NewEvent {
        id: "one".into(),
        sort: "run".into(),
        user: None,
        time: "2026-11-20T12:00:00Z".parse().unwrap(),
        properties: json!({"status": "ok"}).as_object().unwrap().clone(),
    };
    while counted.take(std::slice::from_ref(&event)).await.is_none() {}
    // As many as a trial's handler has beside its notes; who held one and asked for another would wait for itself.
    let url = counted.ledger.sandbox.postgres.engine_url().into();
    let pool = ledger::pool("OFFSTAGE_TEST", &url, Sessions::Engine, 1).unwrap();
    let metric = &counted.manifest.metrics["runs"];
    assert_eq!(rebuild::day(&pool, counted.ledger.tenant, metric, "2026-11-20".parse().unwrap()).await.unwrap(), 1);
}
