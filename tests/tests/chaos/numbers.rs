//! Numbers of events while programs die: `kill -9` of APIs and workers at random moments, while events come late, twice and in any order, are
//! put together and counted anew. In the end what is read is what `GROUP BY` over the raw events gives, each event that was sent is there
//! once, and counting all anew comes to the same bytes.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use acceptance::{Client, World, id_of, until_within};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row};

use crate::{
    arena::{Arena, LONG, program},
    report::Report,
    seed::{Chance, Seed, size},
};

const MANIFEST: &str = r#"
[tenant]
name = "counted"
[events]
keep_days = 400
[metrics.runs]
event = "run"
aggregate = "count"
filter = { status = ["ok", "bad"] }
dimensions = ["model", "user"]
[metrics.tokens]
event = "run"
aggregate = "sum"
value = "tokens"
dimensions = ["model"]
[metrics.score]
event = "run"
aggregate = "average"
value = "tokens"
[metrics.least]
event = "run"
aggregate = "minimum"
value = "tokens"
[metrics.most]
event = "run"
aggregate = "maximum"
value = "tokens"
dimensions = ["model"]
[metrics.success]
event = "run"
aggregate = "success_rate"
success = { status = "ok" }
[metrics.times]
event = "run"
aggregate = "percentiles"
value = "ms"
dimensions = ["model"]
[metrics.people]
event = "run"
aggregate = "uniques"
dimensions = ["model"]
"#;

/// Each metric: what `GROUP BY` is asked for (count first), of which rows, and whether it is grouped by model too.
const JUDGES: [(&str, &str, &str, bool); 8] = [
    ("runs", "count(*), count(*)", "properties ->> 'status' IN ('ok', 'bad')", true),
    ("tokens", "count(*), sum((properties ->> 'tokens')::numeric)", "properties ? 'tokens'", true),
    ("score", "count(*), avg((properties ->> 'tokens')::numeric)", "properties ? 'tokens'", false),
    ("least", "count(*), min((properties ->> 'tokens')::numeric)", "properties ? 'tokens'", false),
    ("most", "count(*), max((properties ->> 'tokens')::numeric)", "properties ? 'tokens'", true),
    ("success", "count(*), avg((properties ->> 'status' = 'ok')::int)", "true", false),
    ("times", "count(*), percentile_disc(0.5) WITHIN GROUP (ORDER BY (properties ->> 'ms')::numeric)", "true", true),
    ("people", "count(*), count(DISTINCT user_id)", "user_id IS NOT NULL", true),
];

/// Zones of all kinds of offsets. What their midnights are, Postgres and the product agree on; where a midnight comes twice, they need not.
const ZONES: [&str; 4] = ["UTC", "Asia/Kathmandu", "Australia/Lord_Howe", "Europe/Berlin"];

/// The longest batch that a sender sends.
const BATCH: u64 = 400;

/// All events, made before the first is sent: half of them of the last days, the others of all the year (in the small size of seven weeks).
fn events(chance: &mut Chance, count: u64, now: chrono::DateTime<chrono::Utc>) -> Vec<Value> {
    (0..count)
        .map(|number| {
            let days = if chance.number(0..=1) == 0 { 3 } else { size(50, 360) };
            let age = chrono::TimeDelta::milliseconds(i64::try_from(chance.number(0..=days * 86_400_000)).expect("an age"));
            let mut properties = json!({
                "status": chance.choose(&["ok", "bad", "skipped"]),
                "model": chance.choose(&["a", "b", "ü,\"c"]),
                "ms": chance.number(1..=9_999_999) as f64 / 1_000.0,
            });
            if chance.number(0..=3) > 0 {
                properties["tokens"] = json!(chance.number(0..=999_999_999) as f64 / 1_000_000.0);
            }
            let mut event = json!({"id": format!("e{number}"), "type": "run", "time": now - age, "properties": properties});
            if chance.number(0..=4) > 0 {
                // Fewer than 257 in any group, where sets of them are exact.
                event["user"] = json!(format!("u{}", chance.number(0..=200)));
            }
            event
        })
        .collect()
}

/// What senders went through.
#[derive(Debug, Default)]
struct Sent {
    /// Events in batches that were answered with 200.
    answered: AtomicU64,
    /// Of them, those that were told to be new.
    accepted: AtomicU64,
    /// Batches that broke off, were refused, or were answered 429 or 503.
    again: AtomicU64,
}

/// Sends a batch until it is answered, now here, now there.
async fn send(replicas: &[Client], chance: &mut Chance, batch: &[&Value], sent: &Sent) {
    let mut lines = String::new();
    for event in batch {
        writeln!(lines, "{event}").expect("a text takes all");
    }
    let began = Instant::now();
    loop {
        let client = chance.choose(replicas);
        let request = client.request(Method::POST, "/v1/events").header("Content-Type", "application/x-ndjson").body(lines.clone());
        match client.try_send(request).await {
            Ok(answer) if answer.status == 200 => {
                let said = answer.json();
                let (accepted, duplicates) = (said["accepted"].as_u64().unwrap_or(0), said["duplicates"].as_u64().unwrap_or(0));
                assert_eq!((accepted + duplicates, &said["rejected"]), (batch.len() as u64, &json!([])), "{said}");
                sent.answered.fetch_add(batch.len() as u64, Ordering::Relaxed);
                sent.accepted.fetch_add(accepted, Ordering::Relaxed);
                return;
            }
            Ok(answer) => assert!(matches!(answer.status, 429 | 503), "{} {}", answer.status, answer.text()),
            Err(_) => {}
        }
        sent.again.fetch_add(1, Ordering::Relaxed);
        assert!(began.elapsed() < LONG, "a batch was not answered within {LONG:?}");
        tokio::time::sleep(chance.milliseconds(20..=200)).await;
    }
}

/// A sender: its own events in its own order, each some time, with many of anybody's between them.
async fn sender(replicas: Vec<Client>, mut chance: Chance, events: Arc<Vec<Value>>, own: Vec<usize>, sent: Arc<Sent>) {
    let mut left = own;
    while !left.is_empty() {
        let mut batch = Vec::new();
        for _ in 0..=chance.number(0..=BATCH) {
            if chance.number(0..=3) == 0 {
                batch.push(chance.choose(&events));
            } else if !left.is_empty() {
                let place = usize::try_from(chance.number(0..=left.len() as u64 - 1)).expect("a place");
                batch.push(&events[left.swap_remove(place)]);
            }
        }
        if !batch.is_empty() {
            send(&replicas, &mut chance, &batch, &sent).await;
        }
    }
}

/// Asks for rebuilds of anything, until it is told to stop; the jobs.
async fn rebuilder(replicas: Vec<Client>, mut chance: Chance, days: Vec<String>, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut jobs = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let (metric, ..) = chance.choose(&JUDGES);
        // A week's days: many short ones are interrupted in more places than few long ones.
        let first = usize::try_from(chance.number(0..=days.len() as u64 - 7)).expect("a place");
        let body = json!({"from": days[first + 6], "to": days[first]});
        let client = chance.choose(&replicas);
        let asked = client.request(Method::POST, &format!("/v1/analytics/{metric}/rebuild")).json(&body);
        if let Ok(answer) = client.try_send(asked).await
            && answer.status == 202
        {
            jobs.push(id_of(&answer.json()));
        }
        tokio::time::sleep(chance.milliseconds(200..=1_500)).await;
    }
    jobs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers() {
    let seed = Seed::of("numbers");
    let mut report = Report::of("numbers", "kill -9 of APIs and workers while events are counted", &seed);
    let arena = Arena::start_on(World::start_with(program()).await, 2, 2, program).await;
    let client = arena.world.tenant_of("counted", MANIFEST).await;
    let now = arena.world.now().await;
    let mut chance = seed.chance(1);
    let events = Arc::new(events(&mut chance, size(6_000, 300_000), now));
    let replicas: Vec<Client> = arena.replicas.iter().map(|replica| replica.with_key(client.key())).collect();

    let (sent, stop) = (Arc::new(Sent::default()), Arc::new(AtomicBool::new(false)));
    let senders = 4;
    let senders: Vec<_> = (0..senders)
        .map(|number| {
            let own = (number..events.len()).step_by(senders).collect();
            tokio::spawn(sender(replicas.clone(), seed.chance(10 + number as u64), events.clone(), own, sent.clone()))
        })
        .collect();
    let days = (0..size(50, 360)).map(|age| (now - chrono::TimeDelta::days(age)).format("%F").to_string()).collect();
    let rebuilds = tokio::spawn(rebuilder(replicas, seed.chance(2), days, stop.clone()));

    let (programs, kills, began) = (arena.programs(), size(8, 120), Instant::now());
    let mut killed = 0;
    // As long as it is sent, and as often as is promised: the last kills find what was sent being put together and counted anew.
    while killed < kills || senders.iter().any(|sender| !sender.is_finished()) {
        tokio::time::sleep(chance.milliseconds(size(50..=900, 50..=2_500))).await;
        let victim = chance.choose(&programs);
        if victim.pid().is_some() {
            victim.kill9().await.expect("a kill");
            killed += 1;
        }
    }
    for sender in senders {
        sender.await.expect("a sender");
    }
    stop.store(true, Ordering::Relaxed);
    let jobs = rebuilds.await.expect("the rebuilder");
    report.line("kills", format!("{killed} of {} processes in {:.0} s", programs.len(), began.elapsed().as_secs_f64()));
    for program in &programs {
        arena.back(program).await;
    }
    let (answered, accepted) = (sent.answered.load(Ordering::Relaxed), sent.accepted.load(Ordering::Relaxed));
    report.line("events", format!("{} sent until answered, {answered} with those sent again", events.len()));
    report.line("batches sent again", sent.again.load(Ordering::Relaxed));
    report.line("accepted in answers that were lost", events.len() as u64 - accepted);

    // Each event is there, once.
    assert_eq!(arena.world.number("SELECT count(*) FROM event").await, i64::try_from(events.len()).expect("a number"));
    assert_eq!(arena.world.number("SELECT count(DISTINCT id) FROM event").await, i64::try_from(events.len()).expect("a number"));
    for job in &jobs {
        let job = client.wait_for_within(LONG, job, "its end", acceptance::is_terminal).await;
        assert_eq!(job["state"], "succeeded", "{job}");
    }
    put_together(&arena.world).await;
    let mut compared = 0;
    for judge in &JUDGES {
        compared += compare(&arena.world, &client, judge, now).await;
    }
    report.line("periods and groups equal to GROUP BY", compared);
    report.line("rebuilds under kills", jobs.len());

    let counted = days_of(&arena.world).await;
    for (metric, ..) in &JUDGES {
        let job = id_of(&client.post(&format!("/v1/analytics/{metric}/rebuild"), &json!({})).await.expect(202));
        client.wait_for_within(Duration::from_secs(600), &job, "its end", |job| job["state"] == "succeeded").await;
    }
    put_together(&arena.world).await;
    assert!(days_of(&arena.world).await == counted, "counted anew it is the same, byte by byte");
    report.line("rows of days equal to those counted anew, byte by byte", counted.len());
}

async fn put_together(world: &World) {
    until_within(LONG, "all is put together", async || match world.number("SELECT count(*) FROM metric_partial").await {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
}

/// Rows of days, byte by byte.
async fn days_of(world: &World) -> Vec<(String, Vec<u8>)> {
    let rows = sqlx::query(
        "SELECT concat_ws(' ', series, grouping, day, labels, user_id) AS key, body FROM metric_day ORDER BY series, grouping, day, labels",
    );
    let rows = rows.fetch_all(world.sandbox.pool()).await.expect("the rows of days");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Holds what the reading door says of a metric to `GROUP BY` over the raw events, by the days of each zone, and by model.
async fn compare(world: &World, client: &Client, judge: &(&str, &str, &str, bool), now: chrono::DateTime<chrono::Utc>) -> usize {
    let (metric, what, filter, is_grouped) = judge;
    let (from, to) = (now - chrono::TimeDelta::days(365), now + chrono::TimeDelta::days(2));
    let mut compared = 0;
    for zone in ZONES {
        for grouped in [false, true] {
            if grouped && !is_grouped {
                continue;
            }
            let label = if grouped { "properties ->> 'model'" } else { "NULL" };
            let statement = format!(
                "SELECT extract(epoch FROM date_trunc('day', time, '{zone}'))::bigint, {label}, jsonb_build_array({what})
                 FROM event WHERE type = 'run' AND {filter} GROUP BY 1, 2"
            );
            let rows = sqlx::query(AssertSqlSafe(statement)).fetch_all(world.sandbox.pool()).await.expect("the judge");
            let mut truth: BTreeMap<(i64, Option<String>), Value> =
                rows.iter().map(|row| ((row.get(0), row.get(1)), row.get::<Value, _>(2))).collect();
            let group = if grouped { "&group_by=model" } else { "" };
            let path = format!("/v1/analytics/{metric}?from={}&to={}&tz={zone}{group}", from.format("%F"), to.format("%F"));
            let answer = client.get(&path).await.expect(200);
            for group in answer["groups"].as_array().expect("groups") {
                let model = group["labels"].get("model").and_then(Value::as_str).map(str::to_owned);
                for point in group["points"].as_array().expect("points") {
                    if point["count"] == 0 {
                        continue;
                    }
                    let at: chrono::DateTime<chrono::Utc> = point["at"].as_str().expect("a time").parse().expect("a time");
                    let right = truth.remove(&(at.timestamp(), model.clone()));
                    let context = format!("{metric} {zone} {at} {model:?}: {point}");
                    let right = right.unwrap_or_else(|| panic!("{context}: of nothing"));
                    assert_eq!(point["count"], right[0], "{context}");
                    let (value, right) = (point["value"].as_f64().expect("a value"), right[1].as_f64().expect("a number"));
                    let most = match *metric {
                        // The bound that the documentation states.
                        "times" => 0.010_001 * right,
                        "score" | "success" => 1e-9 * right.max(1.0),
                        _ => 0.0,
                    };
                    assert!((value - right).abs() <= most, "{context}: {right} is right");
                    compared += 1;
                }
            }
            assert!(truth.is_empty(), "{metric} {zone}: nothing is missing, but {truth:?} is");
        }
    }
    compared
}
