//! Views over a year of buckets: 96 a day, five groups, written as the worker writes them.

use std::time::{Duration, Instant};

use shared::{
    analytics::{BUCKETS_OF_DAY, DayBody, Labels, Shape, bucket_of, bucket_start, day_of, observe::Observation, state::State},
    tenant::Manifest,
};

use super::{Bench, METRICS, TENANT};
use crate::{
    error::{Error, Result},
    measure::Latencies,
};

/// Days that are written, and events a bucket of each group.
const DAYS: i64 = 365;
const EVENTS: u64 = 40;

/// Times that each view is read.
const READS: usize = 100;

/// A day of so many events in each bucket.
fn body(shape: Shape, day: u64, events: u64) -> DayBody {
    let mut body = DayBody::new(shape);
    for slot in 0..u8::try_from(BUCKETS_OF_DAY).unwrap_or(96) {
        let mut state = State::empty(shape);
        for event in 0..events {
            let mixed = (event + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(slot) << 40).wrapping_add(day << 20);
            let value = i64::try_from(mixed.rotate_left(17) % 4_000_000_000).unwrap_or(0);
            state.add(match shape {
                Shape::Count => Observation::Event,
                Shape::Rate => Observation::Success(event % 10 > 0),
                // Of 5,000 users.
                Shape::Uniques => Observation::Member((mixed.rotate_left(31) % 5_000).wrapping_mul(0x2545_f491_4f6c_dd1d)),
                Shape::Numbers | Shape::Histogram => Observation::Value(value),
            });
        }
        body.merge(slot, &state);
    }
    body
}

/// Writes the year and reads 90 days of it, by day and with today in them, so that nothing is kept of an answer.
pub async fn run(bench: &Bench<'_>) -> Result<Vec<(&'static str, Latencies)>> {
    let manifest =
        Manifest::from_toml(&format!("[tenant]\nname = \"{TENANT}\"\n{METRICS}")).map_err(|error| Error::Unexpected(error.to_string()))?;
    let pool = bench.world.pool();
    let tenant: i32 = sqlx::query_scalar("SELECT id FROM tenant WHERE name = $1").bind(TENANT).fetch_one(pool).await?;
    let today = day_of(bucket_of(bench.now().await?));
    for metric in manifest.metrics.values() {
        let is_grouped = !metric.dimensions().is_empty();
        let groups: Vec<(i16, Labels)> = std::iter::once((0, Labels::default()))
            .chain((0..5).filter(|_| is_grouped).map(|model| (1, Labels(vec![Some(format!("m{model}"))]))))
            .collect();
        for (grouping, labels) in &groups {
            // A week's bodies, again and again.
            let bodies: Vec<_> = (0..7)
                .map(|day| body(metric.shape(), day, if *grouping == 0 { EVENTS * 5 } else { EVENTS }))
                .map(|body| (body.encode(), body.coarser()))
                .collect();
            for (day, (body, coarser)) in (today - DAYS..today).zip(bodies.iter().cycle()) {
                sqlx::query(
                    "INSERT INTO metric_day (tenant_id, series, grouping, day, labels, body, hours, whole) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
                )
                .bind(tenant)
                .bind(metric.series())
                .bind(*grouping)
                .bind(bucket_start(day * BUCKETS_OF_DAY).date_naive())
                .bind(labels.to_text())
                .bind(body)
                .bind(coarser.as_ref().map(|[hours, _]| hours))
                .bind(coarser.as_ref().map(|[_, whole]| whole))
                .execute(pool)
                .await?;
            }
        }
    }
    sqlx::query("VACUUM ANALYZE metric_day").execute(pool).await?;
    let mut client = bench.client().await?;
    let mut found = Vec::new();
    for (label, query) in [
        ("count by model", "runs?group_by=model"),
        ("sum", "tokens?"),
        ("success rate", "success?"),
        ("percentiles", "response_time?"),
        ("uniques", "people?"),
    ] {
        let from = bucket_start((today - 89) * BUCKETS_OF_DAY).format("%F");
        let path = format!("/v1/analytics/{query}&from={from}&tz=Europe/Berlin");
        let mut latencies = Vec::new();
        for read in 0..READS + 10 {
            let begin = Instant::now();
            let (status, answer) = client.get(&path).await?;
            if status != 200 {
                return Err(Error::Unexpected(format!("{status}: {}", String::from_utf8_lossy(&answer))));
            }
            if read >= 10 {
                latencies.push(begin.elapsed().as_secs_f64() * 1_000.0);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let latencies: Latencies = latencies.into_iter().collect();
        eprintln!("90 days, {label}: p50 {:.1} ms, p95 {:.1} ms", latencies.percentile(50), latencies.percentile(95));
        found.push((label, latencies));
    }
    Ok(found)
}
