//! What is counted of events is what `GROUP BY` over the raw events gives: always, whatever comes late, twice or in another order, in any
//! zone, and wherever somebody crashes. `ROLLUPS_SEED=…` repeats a run.

use std::{collections::BTreeMap, pin::pin, task::Poll, time::Duration};

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use serde_json::{Value, json};
use shared::{
    analytics::{
        Granularity, Labels, calendar,
        range::{Grain, Group, Question},
        state::{Aggregate, State},
    },
    ledger::{
        events::{NewEvent, Outcome, Prepared, drop_partitions, forget, horizon, take},
        rollups::{
            ask::turn,
            compact::{compact, pending},
            read::{ReadError, Wanted, read},
            rebuild::{self, RebuildError},
            series,
        },
    },
    random,
    schedule::Zone,
    tenant::{self, Manifest, Metric},
};
use sqlx::{AssertSqlSafe, Row};

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

/// The zones, and around which moments events happen: both changes of each zone's clocks, and the present.
const ZONES: [&str; 5] = ["UTC", "Asia/Kathmandu", "Australia/Lord_Howe", "Europe/Berlin", "America/Havana"];
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
        let mut properties = json!({
            "status": self.of(&["ok", "bad", "skipped"]), "model": self.of(&["a", "b", "ü,\"c"]),
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
        let label = if grouped { "jsonb_build_array(e.properties -> 'model')::text" } else { "'[]'" };
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
    let days: std::collections::BTreeSet<NaiveDate> = events.iter().map(|event| event.time.date_naive()).collect();
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

#[tokio::test]
async fn answers_are_computed_some_at_a_time() {
    let mut turns = Vec::new();
    while let Ok(one) = turn(Duration::ZERO).await {
        turns.push(one);
        assert!(turns.len() <= 1_024);
    }
    assert!(turns.len() >= 2);
    assert!(matches!(turn(Duration::from_millis(20)).await, Err(ReadError::Busy)));
    turns.pop();
    turn(Duration::from_secs(60)).await.unwrap();
}

#[tokio::test]
async fn an_id_counts_once_across_weeks_and_is_free_again_after_two() {
    let counted = Counted::start().await;
    let mut dice = Dice(1);
    let event = NewEvent { sort: "run".into(), ..dice.event(1) };
    let at = async |time: &str| {
        counted.ledger.clock.set(time.parse().unwrap());
        counted.take(std::slice::from_ref(&event)).await.unwrap()[0]
    };
    // The last moments of a week; and while another program still is in it.
    assert_eq!(at("2026-11-22T23:59:59Z").await, Outcome::Taken);
    assert_eq!(at("2026-11-23T00:00:01Z").await, Outcome::Duplicate);
    assert_eq!(at("2026-11-22T23:59:58Z").await, Outcome::Duplicate);
    assert_eq!(at("2026-11-29T23:59:59Z").await, Outcome::Duplicate);
    assert_eq!(at("2026-11-30T00:10:00Z").await, Outcome::Taken, "it was seen two weeks before");
    // Two at once, to either side of the week's end, as clocks are: one of them takes it.
    let other = NewEvent { id: "other".into(), ..event.clone() };
    for (first, second) in [("2026-12-06T23:59:59Z", "2026-12-07T00:00:01Z"), ("2026-12-14T00:05:00Z", "2026-12-13T23:59:00Z")] {
        let twin = NewEvent { id: format!("{}{first}", other.id), ..other.clone() };
        let metrics: Vec<&Metric> = counted.manifest.metrics.values().collect();
        let take = |time: &str| {
            let now = time.parse().unwrap();
            take(&counted.ledger.api, &counted.prepared, counted.ledger.tenant, &metrics, std::slice::from_ref(&twin), now)
        };
        let (one, two) = tokio::join!(take(first), take(second));
        let outcomes = [one.unwrap()[0], two.unwrap()[0]];
        assert_eq!(outcomes.iter().filter(|outcome| **outcome == Outcome::Taken).count(), 1, "{outcomes:?}");
    }
}
