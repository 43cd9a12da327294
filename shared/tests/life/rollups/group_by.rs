//! Whatever comes late, twice or in another order, in any zone, and wherever somebody crashes: it is what `GROUP BY` gives.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use serde_json::Value;
use shared::{
    analytics::{
        Granularity, Labels, calendar,
        range::{Grain, Group, Question},
        state::{Aggregate, State},
    },
    ledger::{
        events::{NewEvent, Outcome},
        rollups::{
            compact::compact,
            read::{Wanted, read},
        },
    },
    random,
    schedule::Zone,
    tenant::Metric,
};
use sqlx::{AssertSqlSafe, Row};

use super::{Counted, Dice, MOMENTS, crash_after};

/// The zones that are read by.
const ZONES: [&str; 5] = ["UTC", "Asia/Kathmandu", "Australia/Lord_Howe", "Europe/Berlin", "America/Havana"];

impl Counted {
    /// What is read of a metric, with how many raw events there are in the same snapshot.
    async fn read(&self, metric: &Metric, zone: &Zone, granularity: Granularity, grouping: u8) -> (Vec<(String, Group)>, Vec<String>, i64) {
        let mut snapshot = self.ledger.engine.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
        let raw = sqlx::query_scalar("SELECT count(*) FROM event WHERE type = 'run' AND properties ->> 'status' IN ('ok', 'bad')");
        let raw: i64 = raw.fetch_one(&mut *snapshot).await.unwrap();
        let (mut groups, mut keys) = (BTreeMap::<String, Group>::new(), Vec::new());
        // Spans of a few days around each moment, as an answer has a bounded number of periods.
        let mut spans: Vec<(DateTime<Utc>, DateTime<Utc>)> = Vec::new();
        let mut moments: Vec<DateTime<Utc>> = MOMENTS.iter().map(|moment| moment.parse().unwrap()).collect();
        moments.sort_unstable();
        for moment in moments {
            let (from, to) = (moment - TimeDelta::hours(19), moment + TimeDelta::hours(19));
            match spans.last_mut() {
                Some((_, end)) if from - *end < TimeDelta::days(3) => *end = to,
                _ => spans.push((from, to)),
            }
        }
        for (from, to) in spans {
            let periods = calendar::periods(zone, granularity, from, to).unwrap();
            let buckets = (periods[0].first, periods.last().unwrap().end);
            let grain = Grain::of(periods.iter());
            let wanted = Wanted {
                tenant: self.ledger.tenant,
                series: metric.series(),
                grouping,
                buckets,
                grain: &grain,
                user: None,
                names_users: false,
            };
            let found = read(&mut snapshot, &wanted).await.unwrap().decode().unwrap();
            let question = Question { shape: metric.shape(), aggregate: metric.aggregate(), periods: &periods, grouping, top: 1_000 };
            keys.extend(periods.iter().map(|period| {
                let local = zone.local(period.start);
                match granularity {
                    Granularity::Hour => format!("{} {}", local.format("%F %H"), local.offset().local_minus_utc()),
                    _ => local.format("%F").to_string(),
                }
            }));
            for group in found.answer(&question, &|labels: &Labels| Some(labels.clone()), None).unwrap() {
                let key = group.labels.clone().unwrap().to_text();
                if let Some(there) = groups.get_mut(&key) {
                    there.periods.extend(group.periods);
                    there.total.merge(&group.total);
                } else {
                    let mut whole = group.clone();
                    let missing = keys.len() - group.periods.len();
                    whole.periods.splice(0..0, vec![State::empty(metric.shape()); missing]);
                    groups.insert(key, whole);
                }
            }
            for group in groups.values_mut() {
                group.periods.resize(keys.len(), State::empty(metric.shape()));
            }
        }
        (groups.into_iter().collect(), keys, raw)
    }

    /// The same by `GROUP BY`: by period and group.
    async fn judge(&self, name: &str, zone: &Zone, granularity: Granularity, grouped: bool) -> BTreeMap<(String, String), Vec<Value>> {
        let local = format!("(e.time AT TIME ZONE '{}')", zone.name());
        let period = match granularity {
            Granularity::Hour => {
                format!("to_char({local}, 'YYYY-MM-DD HH24') || ' ' || extract(epoch FROM {local} - (e.time AT TIME ZONE 'UTC'))::int")
            }
            _ => format!("to_char({local}, 'YYYY-MM-DD')"),
        };
        let value = |path: &str| {
            format!(
                "CASE WHEN jsonb_typeof(e.properties #> '{path}') = 'number' AND abs((e.properties #>> '{path}')::numeric) <= 9e12 THEN round((e.properties #>> '{path}')::numeric, 6) END"
            )
        };
        let (tokens, ms) = (value("{usage,tokens}"), value("{ms}"));
        let (what, filter) = match name {
            "runs" => ("count(*)".to_owned(), "e.properties ->> 'status' IN ('ok', 'bad')".to_owned()),
            "tokens" => (format!("count({tokens}), sum({tokens}), min({tokens}), max({tokens})"), format!("({tokens}) IS NOT NULL")),
            "success" => ("count(*), count(*) FILTER (WHERE e.properties ->> 'status' = 'ok')".to_owned(), "true".to_owned()),
            "times" => (
                format!(
                    "count({ms}), percentile_disc(0.5) WITHIN GROUP (ORDER BY {ms}), percentile_disc(0.99) WITHIN GROUP (ORDER BY {ms})"
                ),
                format!("({ms}) IS NOT NULL"),
            ),
            _ => ("count(*), count(DISTINCT e.user_id)".to_owned(), "e.user_id IS NOT NULL".to_owned()),
        };
        let label = if grouped { "jsonb_build_array(e.properties ->> 'model')::text" } else { "'[]'" };
        let statement =
            format!("SELECT {period}, {label}, jsonb_build_array({what}) FROM event e WHERE e.type = 'run' AND {filter} GROUP BY 1, 2");
        let rows = sqlx::query(AssertSqlSafe(statement)).fetch_all(self.ledger.sandbox.pool()).await.unwrap();
        rows.iter().map(|row| ((row.get(0), row.get(1)), row.get::<Value, _>(2).as_array().unwrap().clone())).collect()
    }

    /// Compares a metric with its judge, by days and hours of all zones.
    async fn compare(&self, name: &str, context: &str) {
        let metric = &self.manifest.metrics[name];
        for zone in ZONES.map(|zone| Zone::find(zone).unwrap()) {
            for granularity in [Granularity::Day, Granularity::Hour] {
                for grouped in [false, true] {
                    if grouped && metric.dimensions().is_empty() {
                        continue;
                    }
                    let (groups, keys, _) = self.read(metric, &zone, granularity, u8::from(grouped)).await;
                    let judged = self.judge(name, &zone, granularity, grouped).await;
                    let mut found = 0;
                    for (labels, group) in &groups {
                        for (key, state) in keys.iter().zip(&group.periods) {
                            if state.count() == 0 {
                                continue;
                            }
                            found += 1;
                            let truth = judged.get(&(key.clone(), labels.clone()));
                            let truth = truth.unwrap_or_else(|| panic!("{context}: {name} {zone:?} {key} {labels}: {state:?} of nothing"));
                            hold(state, truth, &format!("{context}: {name} {zone:?} {granularity:?} {key} {labels}"));
                        }
                    }
                    assert_eq!(found, judged.len(), "{context}: {name} {zone:?} {granularity:?} {grouped}: nothing is missing");
                }
            }
        }
    }
}

/// Holds a state to what `GROUP BY` says.
fn hold(state: &State, truth: &[Value], context: &str) {
    let number = |place: usize| truth[place].as_f64().unwrap();
    assert_eq!(state.count(), truth[0].as_u64().unwrap(), "{context}");
    match state {
        State::Count(_) => {}
        State::Numbers { .. } => {
            for (place, aggregate) in [(1, Aggregate::Sum), (2, Aggregate::Minimum), (3, Aggregate::Maximum)] {
                assert_eq!(state.value(aggregate), Some(number(place)), "{context}");
            }
        }
        State::Rate { successes, .. } => assert_eq!(*successes, truth[1].as_u64().unwrap(), "{context}"),
        State::Histogram(_) => {
            let percentiles = state.percentiles().unwrap();
            for (place, name) in [(1, "p50"), (2, "p99")] {
                let (read, truth) = (percentiles[name], number(place));
                assert!((read - truth).abs() <= 0.010_001 * truth.abs() + 1e-6, "{context}: {read} for {truth}");
            }
        }
        State::Uniques { uniques, .. } => assert_eq!(uniques.count(), truth[1].as_u64().unwrap(), "{context}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_counted_is_what_group_by_gives_whatever_happens() {
    let seed = std::env::var("ROLLUPS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| random::token().unsigned_abs());
    println!("ROLLUPS_SEED={seed}");
    let mut dice = Dice(seed);
    let counted = Counted::start().await;
    let mut events: Vec<NewEvent> = (0..1_200).map(|number| dice.event(number)).collect();
    // Some arrive in the week that ends, some in its last minutes, some in the first of the next.
    counted.ledger.clock.set("2026-11-22T23:40:00Z".parse().unwrap());
    let metrics: Vec<&Metric> = counted.manifest.metrics.values().collect();
    let (mut crashed, mut conflicts) = (0, 0);
    for round in 0..60 {
        if round % 6 == 5 {
            counted.ledger.advance(300);
        }
        // Any events, in any order, some of them twice and some that were sent long ago.
        let batch: Vec<NewEvent> = (0..=dice.roll(80)).map(|_| dice.of(&events).clone()).collect();
        let other: Vec<NewEvent> = (0..=dice.roll(80)).map(|_| dice.of(&events).clone()).collect();
        let (metric, rebuilt) = (*dice.of(&metrics), *dice.of(&metrics));
        let day = dice.of(&events).time.date_naive();
        // A transaction takes some ten steps, more on a busy machine.
        let mut steps = || if dice.roll(2) == 0 { dice.roll(12) } else { 1_000_000 };
        let (first, second, third, fourth) = (steps(), steps(), steps(), steps());
        let done = tokio::join!(
            crash_after(first, counted.take(&batch)),
            crash_after(second, counted.take(&other)),
            crash_after(third, compact(&counted.ledger.engine, counted.ledger.tenant, metric.series())),
            crash_after(fourth, counted.rebuild(rebuilt, day)),
        );
        crashed += [done.0.is_none(), done.1.is_none(), done.2.is_none(), done.3.is_none()].iter().filter(|crashed| **crashed).count();
        conflicts += usize::from(done.3 == Some(false));
        // In the midst of it: what is read is what is there.
        let (groups, _, raw) = counted.read(&counted.manifest.metrics["runs"], &Zone::find("UTC").unwrap(), Granularity::Day, 0).await;
        let read: u64 = groups.iter().map(|(_, group)| group.total.count()).sum();
        assert_eq!(i64::try_from(read).unwrap(), raw, "round {round}");
    }
    assert!(crashed > 10, "{crashed} crashed, {conflicts} had to be tried again");
    for name in counted.manifest.metrics.keys() {
        counted.compare(name, "with partials").await;
    }
    // Senders go on until they are answered; then each event is there, once.
    events.reverse();
    for batch in events.chunks(100) {
        while counted.take(batch).await.is_none() {}
    }
    assert_eq!(counted.ledger.number("SELECT count(*) FROM event").await, 1_200);
    assert_eq!(counted.ledger.number("SELECT count(DISTINCT id) FROM event").await, 1_200);
    assert!(counted.take(&events[..500]).await.unwrap().iter().all(|outcome| *outcome == Outcome::Duplicate));
    counted.compact_all().await;
    for name in counted.manifest.metrics.keys() {
        counted.compare(name, "compacted").await;
    }
    // Counted anew it is the same, byte by byte.
    let before = counted.days().await;
    let days: BTreeSet<NaiveDate> = events.iter().map(|event| event.time.date_naive()).collect();
    for metric in &metrics {
        for day in &days {
            assert!(counted.rebuild(metric, *day).await);
        }
    }
    assert!(before.len() > 500 && counted.days().await == before, "{} rows", before.len());
    // A program of before there were hours and whole days leaves none behind that are not what the day came to.
    assert!(counted.ledger.number("SELECT count(*) FROM metric_day WHERE hours IS NOT NULL AND whole IS NOT NULL").await > 50);
    sqlx::query("UPDATE metric_day SET body = body").execute(counted.ledger.sandbox.pool()).await.unwrap();
    assert_eq!(counted.ledger.number("SELECT count(*) FROM metric_day WHERE hours IS NOT NULL OR whole IS NOT NULL").await, 0);
    for name in counted.manifest.metrics.keys() {
        counted.compare(name, "without hours").await;
    }
}
