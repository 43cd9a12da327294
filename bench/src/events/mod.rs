//! `make bench-events`: how fast events are taken and put together, and how fast views of them are read; beside plain rows in a table
//! and `GROUP BY`, on the same server in the same run.
//!
//! What must stay true: everybody gets the same events; ours run as users run them, through the API and with a worker beside; what is taken
//! has been answered; a request that was refused counts as refused and is not sent again.

mod report;
mod views;

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::try_join_all;
use sandbox::{Launch, Options, Process, Sandbox};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::time::sleep;

use crate::{
    error::{Doing, Error, Result},
    http::Client,
    measure::{
        Latencies,
        memory::{peak, resident},
        processor::{Meter, Usage, Watched},
    },
};
pub use report::Report;

/// The tenant that everything is done for.
pub const TENANT: &str = "bench";

/// What it counts: five metrics, as a product's dashboard has.
const METRICS: &str = r#"
[events]
keep_days = 400
[metrics.runs]
event = "run"
aggregate = "count"
dimensions = ["model"]
[metrics.tokens]
event = "run"
aggregate = "sum"
value = "tokens"
dimensions = ["model"]
[metrics.success]
event = "run"
aggregate = "success_rate"
success = { status = "ok" }
[metrics.response_time]
event = "run"
aggregate = "percentiles"
value = "ms"
[metrics.people]
event = "run"
aggregate = "uniques"
"#;

/// Events of a request, and connections that send.
const TOGETHER: u64 = 1_000;
const CONNECTIONS: u64 = 6;

/// How much.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Seconds at the sustained rate; a burst takes a third of that, at most ten.
    pub seconds: u64,
}

/// What came of sending at a rate.
#[derive(Debug)]
pub struct Sent {
    /// What it was.
    pub label: &'static str,
    /// Events a second that were asked for; `None`: as fast as it goes.
    pub asked: Option<u64>,
    /// Events that were taken.
    pub taken: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// From the first to the last answer.
    pub elapsed: Duration,
    /// Of requests.
    pub latencies: Latencies,
    /// CPU time.
    pub usage: Option<Usage>,
}

/// All that is measured.
#[derive(Debug)]
pub struct Results {
    /// Ours, by phase, and plain rows.
    pub sent: Vec<Sent>,
    /// From sending an event to reading its number, in milliseconds, while events come at the sustained rate.
    pub fresh: Latencies,
    /// Events in partials that were put together, in how long, from how many partials.
    pub compacted: (u64, u64, Duration),
    /// `GROUP BY` over the plain rows, and the same as a view of ours; milliseconds.
    pub grouped: (f64, f64),
    /// 90 days over a year of buckets, by metric.
    pub views: Vec<(&'static str, Latencies)>,
    /// The API's memory before and its peak, in MiB.
    pub memory: (Option<f64>, Option<f64>),
}

/// Runs everything in `directory`.
pub async fn run(directory: &Path, date: String, plan: Plan) -> Result<Report> {
    let world = Sandbox::start(Options::lasting(directory)).await?;
    let manifest = directory.join("tenant.toml");
    fs::write(&manifest, format!("[tenant]\nname = \"{TENANT}\"\n{METRICS}")).doing("write the benchmark's manifest")?;
    world.apply_tenant(&manifest).await?;
    let key = world.create_key(TENANT, "bench", "*").await?;
    let api = world.start_api(Launch::new().once().env("OFFSTAGE_LOG", "warn")).await?;
    let bench = Bench { world: &world, api: &api, key: &key, number: AtomicU64::new(0) };
    let idle = api.pid().and_then(resident);

    let worker = world.start_worker(Launch::new().once().env("OFFSTAGE_LOG", "warn")).await?;
    let mut sent = vec![bench.send("warm-up", Some(5_000), Duration::from_secs(5), None).await?];
    sent.clear();
    let watched = [bench.watch("api", &api), bench.watch("worker", &worker), bench.postgres()];
    let (sustained, fresh) = tokio::try_join!(
        bench.send("20,000/s sustained", Some(20_000), Duration::from_secs(plan.seconds), Some(&watched)),
        bench.freshness(plan.seconds)
    )?;
    sent.push(sustained);
    let burst = Duration::from_secs((plan.seconds / 3).clamp(2, 10));
    sent.push(bench.send("50,000/s burst", Some(50_000), burst, Some(&watched)).await?);
    sent.push(bench.send("as fast as it goes", None, burst, Some(&watched)).await?);
    bench.put_together().await?;
    worker.stop().await?;

    sent.push(bench.send("the same without a worker", None, burst, Some(&[bench.watch("api", &api), bench.postgres()])).await?);
    let partials: i64 = sqlx::query_scalar("SELECT count(*) FROM metric_partial").fetch_one(world.pool()).await?;
    let waiting = sent.last().map_or(0, |sent| sent.taken);
    let begin = Instant::now();
    let worker = world.start_worker(Launch::new().once().env("OFFSTAGE_LOG", "warn")).await?;
    bench.put_together().await?;
    let compacted = (waiting, u64::try_from(partials).unwrap_or(0), begin.elapsed());
    worker.stop().await?;
    let peak = api.pid().and_then(peak);

    let (rows, grouped) = bench.plain(burst).await?;
    sent.push(rows);
    let views = views::run(&bench).await?;
    let servers = format!("Postgres {}", world.postgres.version());
    let report = Report { date, servers, plan, results: Results { sent, fresh, compacted, grouped, views, memory: (idle, peak) } };
    world.stop().await?;
    Ok(report)
}

/// The world, and what numbers events so that none is sent twice.
pub struct Bench<'a> {
    world: &'a Sandbox,
    api: &'a Process,
    key: &'a str,
    number: AtomicU64,
}

impl Bench<'_> {
    fn watch(&self, name: &'static str, process: &Process) -> Watched {
        let _ = self;
        Watched::family(name, process.pid().unwrap_or_default())
    }

    fn postgres(&self) -> Watched {
        Watched::family("postgres", self.world.postgres.process().pid().unwrap_or_default())
    }

    async fn client(&self) -> Result<Client> {
        let address = self.api.address().ok_or_else(|| Error::Unexpected("the API has no address".to_owned()))?;
        Client::connect(address, self.key).await
    }

    async fn now(&self) -> Result<DateTime<Utc>> {
        Ok(sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(self.world.pool()).await?)
    }

    /// A request's events.
    fn body(&self, base: DateTime<Utc>) -> String {
        let first = self.number.fetch_add(TOGETHER, Ordering::Relaxed);
        let mut body = String::with_capacity(240 * 1_000);
        body.push_str("{\"events\":[");
        for number in first..first + TOGETHER {
            let at = base - TimeDelta::milliseconds(i64::try_from(number % 60_000).unwrap_or(0));
            let separator = if number == first { "" } else { "," };
            // Ids that grow, as UUIDs of version 7 do.
            let _ = write!(
                body,
                "{separator}{{\"id\":\"0197a1b2-{:04x}-7000-8000-{:012x}\",\"type\":\"run\",\"user\":\"user-{}\",\"time\":\"{}\",\"properties\":{{\"model\":\"m{}\",\"status\":\"{}\",\"tokens\":{},\"ms\":{}.{}}}}}",
                (number >> 16) & 0xffff,
                number,
                number.wrapping_mul(7_919) % 5_000,
                at.format("%FT%T%.3fZ"),
                number % 5,
                if number % 10 == 0 { "bad" } else { "ok" },
                number % 3_000,
                number.wrapping_mul(31) % 4_000,
                number % 10,
            );
        }
        body.push_str("]}");
        body
    }

    /// Sends for a while, at a rate or as fast as it goes.
    async fn send(&self, label: &'static str, asked: Option<u64>, during: Duration, watched: Option<&[Watched]>) -> Result<Sent> {
        let base = self.now().await?;
        let meter = watched.map(Meter::start);
        let (taken, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let begin = Instant::now();
        let senders = (0..CONNECTIONS).map(|sender| {
            let (taken, refused) = (Arc::clone(&taken), Arc::clone(&refused));
            async move {
                let mut client = self.client().await?;
                let mut latencies = Vec::new();
                // Each its turn: requests are evenly spread.
                let every = asked.map(|rate| Duration::from_secs_f64(TOGETHER as f64 * CONNECTIONS as f64 / rate as f64));
                let mut due = begin + every.map_or(Duration::ZERO, |every| every.mul_f64(sender as f64 / CONNECTIONS as f64));
                while begin.elapsed() < during {
                    let body = self.body(base);
                    if let Some(every) = every {
                        sleep(due.saturating_duration_since(Instant::now())).await;
                        due += every;
                    }
                    let sent = Instant::now();
                    let (status, answer) = client.post("/v1/events", body).await?;
                    latencies.push(sent.elapsed().as_secs_f64() * 1_000.0);
                    if status == 429 {
                        refused.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
                    let accepted = answer.get("accepted").and_then(Value::as_u64);
                    let Some(accepted) = accepted.filter(|_| status == 200) else {
                        return Err(Error::Unexpected(format!("{status}: {answer}")));
                    };
                    taken.fetch_add(accepted, Ordering::Relaxed);
                }
                Ok::<_, Error>(latencies)
            }
        });
        let latencies = try_join_all(senders).await?.into_iter().flatten().collect();
        let sent = Sent {
            label,
            asked,
            taken: taken.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
            elapsed: begin.elapsed(),
            latencies,
            usage: meter.map(Meter::stop),
        };
        eprintln!("{}", report::one_line(&sent));
        Ok(sent)
    }

    /// From sending an event to reading its number, again and again.
    async fn freshness(&self, seconds: u64) -> Result<Latencies> {
        let mut client = self.client().await?;
        let mut found = Vec::new();
        let begin = Instant::now();
        let count = async |client: &mut Client, model: &str| {
            let (_, answer) = client.get("/v1/analytics/runs?granularity=hour&group_by=model&top=50").await?;
            let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
            let groups = answer.get("groups").and_then(Value::as_array).cloned().unwrap_or_default();
            let group = groups.iter().find(|group| group.pointer("/labels/model").and_then(Value::as_str) == Some(model));
            Ok::<_, Error>(group.is_some())
        };
        let mut number = 0;
        while begin.elapsed() < Duration::from_secs(seconds) {
            number += 1;
            // A label of its own, which is among those that are shown as long as there are few.
            let model = format!("probe-{}", number % 40);
            let body = format!("{{\"events\":[{{\"id\":\"probe-{number}\",\"type\":\"run\",\"properties\":{{\"model\":\"{model}\"}}}}]}}");
            let sent = Instant::now();
            client.post("/v1/events", body).await?;
            while !count(&mut client, &model).await? {
                if sent.elapsed() > Duration::from_secs(30) {
                    return Err(Error::Unexpected("an event was not seen within 30 s".to_owned()));
                }
                sleep(Duration::from_millis(20)).await;
            }
            if number <= 40 {
                found.push(sent.elapsed().as_secs_f64() * 1_000.0);
            }
            sleep(Duration::from_millis(500)).await;
        }
        Ok(found.into_iter().collect())
    }

    /// Until nothing waits to be put together.
    async fn put_together(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(600);
        while Instant::now() < deadline {
            let left: i64 = sqlx::query_scalar("SELECT count(*) FROM metric_partial").fetch_one(self.world.pool()).await?;
            if left == 0 {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err(Error::Unexpected("partials were not put together within 10 minutes".to_owned()))
    }

    /// The same events as rows of a table with a unique id, a request's by one statement, and `GROUP BY` over them; as many as fit the time.
    async fn plain(&self, during: Duration) -> Result<(Sent, (f64, f64))> {
        let mut owner = PgConnection::connect(&self.world.postgres.product_url()).await?;
        for statement in [
            "DROP TABLE IF EXISTS plain_event",
            "CREATE TABLE plain_event (id uuid PRIMARY KEY, type text NOT NULL, user_id text, time timestamptz NOT NULL, properties jsonb NOT NULL)",
            "CREATE INDEX ON plain_event (time)",
        ] {
            owner.execute(AssertSqlSafe(statement.to_owned())).await?;
        }
        let base = self.now().await?;
        let watched = [self.postgres()];
        let meter = Meter::start(&watched);
        let begin = Instant::now();
        let senders = (0..CONNECTIONS).map(|_| async {
            let mut connection = PgConnection::connect(&self.world.postgres.product_url()).await?;
            let (mut taken, mut latencies) = (0, Vec::new());
            while begin.elapsed() < during {
                let body = self.body(base);
                let sent = Instant::now();
                let done = sqlx::query(
                    "INSERT INTO plain_event SELECT (e ->> 'id')::uuid, e ->> 'type', e ->> 'user', (e ->> 'time')::timestamptz, e -> 'properties'
                     FROM jsonb_array_elements($1::jsonb -> 'events') AS e ON CONFLICT DO NOTHING",
                );
                taken += done.bind(body).execute(&mut connection).await?.rows_affected();
                latencies.push(sent.elapsed().as_secs_f64() * 1_000.0);
            }
            Ok::<_, Error>((taken, latencies))
        });
        let done = try_join_all(senders).await?;
        let sent = Sent {
            label: "plain rows, `INSERT` of 1,000",
            asked: None,
            taken: done.iter().map(|(taken, _)| taken).sum(),
            refused: 0,
            elapsed: begin.elapsed(),
            latencies: done.into_iter().flat_map(|(_, latencies)| latencies).collect(),
            usage: Some(meter.stop()),
        };
        eprintln!("{}", report::one_line(&sent));
        owner.execute(AssertSqlSafe("ANALYZE plain_event".to_owned())).await?;
        let mut grouped = Vec::new();
        let mut read = Vec::new();
        let mut client = self.client().await?;
        for _ in 0..5 {
            let begin = Instant::now();
            sqlx::query("SELECT date_trunc('hour', time) AS hour, properties ->> 'model' AS model, count(*), sum((properties ->> 'tokens')::numeric) FROM plain_event GROUP BY 1, 2")
                .fetch_all(&mut owner)
                .await?;
            grouped.push(begin.elapsed().as_secs_f64() * 1_000.0);
            let begin = Instant::now();
            client.get("/v1/analytics/tokens?granularity=hour&group_by=model").await?;
            read.push(begin.elapsed().as_secs_f64() * 1_000.0);
        }
        let median = |values: Vec<f64>| values.into_iter().collect::<Latencies>().percentile(50);
        Ok((sent, (median(grouped), median(read))))
    }
}
