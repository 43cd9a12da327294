//! Who is being erased.

use std::pin::pin;

use serde_json::json;
use shared::{
    analytics::{Granularity, calendar, range::Grain},
    ledger::{
        events::NewEvent,
        rollups::read::{Wanted, read},
    },
    schedule::Zone,
};

use super::{Counted, crash_after};

#[tokio::test]
async fn who_is_being_erased_is_shown_in_no_moment_of_it() {
    let counted = Counted::start().await;
    let metric = &counted.manifest.metrics["runs"];
    let pool = counted.ledger.sandbox.pool();
    let periods = calendar::periods(
        &Zone::find("UTC").unwrap(),
        Granularity::Day,
        "2026-11-20T00:00:00Z".parse().unwrap(),
        "2026-11-21T00:00:00Z".parse().unwrap(),
    )
    .unwrap();
    let wanted_grain = Grain::of(periods.iter());
    let buckets = (periods[0].first, periods[0].end);
    for steps in 0..40 {
        let user = format!("user-{steps}");
        let event = NewEvent {
            id: format!("erased-{steps}"),
            sort: "run".into(),
            user: Some(user.clone()),
            time: "2026-11-20T12:00:00Z".parse().unwrap(),
            properties: json!({"status": "ok"}).as_object().unwrap().clone(),
        };
        while counted.take(std::slice::from_ref(&event)).await.is_none() {}
        counted.compact_all().await;
        let begin = sqlx::query("INSERT INTO erasure (job_id, tenant_id, user_id, requested_at) VALUES (gen_random_uuid(), $1, $2, now())");
        begin.bind(counted.ledger.tenant).bind(&user).execute(pool).await.unwrap();
        let mut connection = counted.ledger.engine.acquire().await.unwrap();
        let wanted = Wanted {
            tenant: counted.ledger.tenant,
            series: metric.series(),
            grouping: 0b10,
            buckets,
            grain: &wanted_grain,
            user: None,
            names_users: true,
        };
        let mut reading = pin!(read(&mut connection, &wanted));
        let early = crash_after(steps, reading.as_mut()).await;
        // The erasure ends while it reads.
        sqlx::query("DELETE FROM metric_day WHERE user_id = $1").bind(&user).execute(pool).await.unwrap();
        sqlx::query("DELETE FROM erasure WHERE user_id = $1").bind(&user).execute(pool).await.unwrap();
        let found = match early {
            Some(found) => found,
            None => reading.await,
        }
        .unwrap();
        let erased = found.erased.clone();
        let is_there = found.decode().unwrap().days.iter().any(|(_, labels, _)| labels.0.contains(&Some(user.clone())));
        assert!(!is_there || erased.contains(&user), "after {steps} steps");
    }
}
