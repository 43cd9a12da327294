//! What was counted of events that are gone.

use serde_json::json;
use shared::ledger::{
    events::{NewEvent, days, drop_partitions, forget, horizon},
    rollups::rebuild::{self, RebuildError},
};

use super::Counted;

#[tokio::test]
async fn what_was_counted_of_events_that_are_gone_stays() {
    let counted = Counted::start().await;
    let event = NewEvent {
        id: "old".into(),
        sort: "run".into(),
        user: None,
        time: "2026-11-01T12:00:00Z".parse().unwrap(),
        properties: json!({"status": "ok", "model": "a"}).as_object().unwrap().clone(),
    };
    for (id, time) in [("old", "2026-11-01T12:00:00Z"), ("older", "2026-10-01T12:00:00Z"), ("new", "2026-11-20T12:00:00Z")] {
        let one = NewEvent { id: id.into(), time: time.parse().unwrap(), ..event.clone() };
        while counted.take(std::slice::from_ref(&one)).await.is_none() {}
    }
    counted.compact_all().await;
    let before = counted.days().await;
    let (pool, tenant) = (&counted.ledger.engine, counted.ledger.tenant);
    let within = async |from: &str, to: &str| {
        let found = days(pool, tenant, (from.parse().unwrap(), to.parse().unwrap())).await.unwrap();
        found.map(|(first, last)| (first.to_string(), last.to_string()))
    };
    let pair = |first: &str, last: &str| Some((first.to_owned(), last.to_owned()));
    assert_eq!(within("2020-01-01", "2030-01-01").await, pair("2026-10-01", "2026-11-20"));
    assert_eq!(within("2026-10-02", "2026-11-20").await, pair("2026-11-01", "2026-11-20"));
    assert_eq!(within("2026-10-01", "2026-11-19").await, pair("2026-10-01", "2026-11-01"));
    assert_eq!(within("2026-10-02", "2026-10-31").await, None);
    // By the day, and with the partition; whatever the manifest says by then.
    assert_eq!(horizon(pool, tenant).await.unwrap(), None);
    assert!(drop_partitions(pool, "2026-10-15".parse().unwrap(), counted.ledger.now()).await.unwrap() > 0);
    assert_eq!(horizon(pool, tenant).await.unwrap(), "2026-10-15".parse().ok());
    assert_eq!(forget(pool, tenant, "2026-11-02".parse().unwrap()).await.unwrap(), 1);
    let metric = &counted.manifest.metrics["runs"];
    for day in ["2026-10-01", "2026-11-01"] {
        let refused = rebuild::day(pool, tenant, metric, day.parse().unwrap()).await;
        assert!(matches!(refused, Err(RebuildError::Gone(_))), "{refused:?}");
    }
    assert_eq!(rebuild::day(pool, tenant, metric, "2026-11-20".parse().unwrap()).await.unwrap(), 1);
    assert!(counted.days().await == before);
}
