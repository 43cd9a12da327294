//! What is counted of events is what `GROUP BY` over the raw events gives: always, whatever comes late, twice or in another order, in any
//! zone, and wherever somebody crashes. `ROLLUPS_SEED=…` repeats a run.

mod bounds;
mod comeback;
mod erasure;
mod group_by;
mod horizon;
mod once;

use std::{pin::pin, task::Poll};

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use serde_json::json;
use shared::{
    ledger::{
        events::{NewEvent, Outcome, Prepared, take},
        rollups::{
            compact::{compact, pending},
            rebuild, series,
        },
    },
    tenant::{self, Manifest, Metric},
};
use sqlx::Row;

use super::Ledger;

const MANIFEST: &str = r#"
[tenant]
name = "acme"
[metrics.runs]
event = "run"
aggregate = "count"
filter = { status = ["ok", "bad"] }
dimensions = ["model", "user"]
[metrics.tokens]
event = "run"
aggregate = "sum"
value = "usage.tokens"
dimensions = ["model"]
[metrics.success]
event = "run"
aggregate = "success_rate"
success = { status = "ok" }
[metrics.times]
event = "run"
aggregate = "percentiles"
value = "ms"
[metrics.people]
event = "run"
aggregate = "uniques"
dimensions = ["model"]
"#;

/// Around which moments events happen: both changes of each zone's clocks, and the present.
const MOMENTS: [&str; 8] = [
    "2026-04-04T15:00:00Z",
    "2026-10-03T15:30:00Z",
    "2026-03-29T01:00:00Z",
    "2026-10-25T01:00:00Z",
    "2026-03-08T05:00:00Z",
    "2026-11-01T05:00:00Z",
    "2026-11-20T18:15:00Z",
    "2026-11-22T23:50:00Z",
];

/// A small generator, so that a seed repeats a run's choices.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let place = usize::try_from(self.roll(all.len() as u64)).unwrap();
        &all[place]
    }

    fn event(&mut self, number: usize) -> NewEvent {
        let around: DateTime<Utc> = self.of(&MOMENTS).parse().unwrap();
        let off = i64::try_from(self.roll(36 * 3_600)).unwrap() - 18 * 3_600;
        // Ids that are numbers too, of more than a float holds.
        let models =
            [json!("a"), json!("b"), json!("ü,\"c"), json!(1_184_467_440_737_095_516_u64), json!(1_184_467_440_737_095_517_u64), json!(2)];
        let mut properties = json!({
            "status": self.of(&["ok", "bad", "skipped"]), "model": self.of(&models),
            "ms": self.roll(10_000_000) as f64 / 1_000.0, "usage": {"tokens": self.roll(1_000_000) as f64 / 10_000_000.0},
        });
        for field in ["status", "model", "ms", "usage"] {
            if self.roll(10) == 0 {
                properties.as_object_mut().unwrap().remove(field);
            }
        }
        if self.roll(10) == 0 {
            properties["ms"] = self.of(&[json!("12"), json!(null), json!(0), json!(-3), json!(1e-6), json!(9.1e12)]).clone();
        }
        let user = (self.roll(5) > 0).then(|| format!("user-{}", self.roll(40)));
        NewEvent {
            id: format!("event-{number}"),
            sort: (*self.of(&["run", "run", "run", "other"])).to_owned(),
            user,
            time: around + TimeDelta::seconds(off) + TimeDelta::microseconds(i64::try_from(self.roll(1_000_000)).unwrap()),
            properties: properties.as_object().unwrap().clone(),
        }
    }
}

/// Lets something go on for so many steps, and then drops it where it is: its connection takes back what was not committed.
async fn crash_after<T>(steps: u64, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut left = steps;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        work.as_mut().poll(context).map(Some)
    })
    .await
}

struct Counted {
    ledger: Ledger,
    manifest: Manifest,
    prepared: Prepared,
}

impl Counted {
    async fn start() -> Self {
        let ledger = Ledger::start().await;
        let manifest = Manifest::from_toml(MANIFEST).unwrap_or_else(|error| panic!("{error}"));
        tenant::apply(ledger.sandbox.pool(), &manifest, ledger.now(), false).await.unwrap();
        series::declare(&ledger.engine, ledger.tenant, &manifest.metrics, &ledger.clock).await.unwrap();
        Self { ledger, manifest, prepared: Prepared::default() }
    }

    async fn take(&self, events: &[NewEvent]) -> Option<Vec<Outcome>> {
        let metrics: Vec<&Metric> = self.manifest.metrics.values().collect();
        let taken = take(&self.ledger.api, &self.prepared, self.ledger.tenant, &metrics, events, self.ledger.now()).await;
        // Two who make the same partition at once, or a connection that was dropped: it is sent again.
        taken.ok()
    }

    async fn compact_all(&self) {
        loop {
            let pending = pending(&self.ledger.engine).await.unwrap();
            if pending.is_empty() {
                return;
            }
            for (tenant, series) in pending.into_keys() {
                compact(&self.ledger.engine, tenant, series).await.unwrap();
            }
        }
    }

    async fn rebuild(&self, metric: &Metric, day: NaiveDate) -> bool {
        rebuild::day(&self.ledger.engine, self.ledger.tenant, metric, day).await.is_ok()
    }

    /// Rows of days, byte by byte.
    async fn days(&self) -> Vec<(String, Vec<u8>)> {
        let rows = sqlx::query(
            "SELECT concat_ws(' ', series, grouping, day, labels, user_id) AS key, body || coalesce(hours || whole, '') FROM metric_day ORDER BY series, grouping, day, labels",
        );
        let rows = rows.fetch_all(self.ledger.sandbox.pool()).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }
}
