//! `make bench-exports`: a large dataset as a file, beside `psql \copy` of the same query on the same server in the same run.
//!
//! Ours runs as users run it: asked for through the API, read by a worker process, uploaded in parts. Once to an S3 that drops
//! what it gets (the [`sink`], the nearest there is to the `/dev/null` that `psql` writes to) and once to the sandbox's S3, which
//! shares the machine's cores and disk with everybody else. Every run has a worker of its own, whose memory is read at its
//! start and, as the peak that the kernel kept, at its end.

mod report;
mod sink;

use std::{
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use sandbox::{Launch, Options, Process, Sandbox};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::{process::Command, time::sleep};

use crate::{
    error::{Doing, Error, Result},
    http::Client,
    measure::processor::{Meter, Usage, Watched, calm},
    plan::DISTURBED,
};
pub use report::Report;
use sink::Sink;

/// The tenant that everything is done for.
const TENANT: &str = "bench";
/// Longer than any run.
const WITHIN: Duration = Duration::from_secs(1_800);
/// How often an export is asked whether it is done; the times come from the ledger, so this only has to be bearable.
const LOOK: Duration = Duration::from_millis(200);
/// Rows of the workbook: as many as fit on a sheet, nearly.
const WORKBOOK_ROWS: u64 = 1_000_000;

/// The dataset: the types that a product's tables have, about 190 bytes a row as CSV.
const TABLE: &str = r#"
CREATE UNLOGGED TABLE exported AS
SELECT n AS id,
       md5(n::text)::uuid AS account,
       'Prompt number ' || n || ' of its kind' AS title,
       CASE n % 8 WHEN 0 THEN 'He said "no", twice' WHEN 1 THEN NULL ELSE 'Some words that say what it is about' END AS note,
       (n * 7919 % 10000000)::numeric / 100 AS amount,
       n / 3.0::float8 AS ratio,
       n % 2 = 0 AS active,
       timestamptz '2020-01-01 00:00:00Z' + n * interval '1 second' AS created_at,
       jsonb_build_object('rank', n % 100) AS settings
FROM generate_series(1::bigint, ROWS) AS n
"#;

/// What is asked for, of all or of the first so many.
const QUERY: &str = "SELECT id, account, title, note, amount, ratio, active, created_at, settings FROM exported";

/// How much.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Rows of the table.
    pub rows: u64,
    /// Runs of each figure; medians count.
    pub rounds: usize,
    /// How long to wait for a calm machine before each run.
    pub patience: Duration,
}

/// Who wrote what where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// `psql \copy … TO /dev/null`.
    Copy,
    /// CSV to an S3 that drops it.
    CsvSink,
    /// CSV to the sandbox's S3.
    CsvS3,
    /// `psql \copy` of a million rows.
    CopyMillion,
    /// A workbook of a million rows to the sandbox's S3.
    Workbook,
}

/// One run.
#[derive(Debug, Clone)]
pub struct Run {
    /// What was run.
    pub figure: Figure,
    /// Rows written.
    pub rows: u64,
    /// From the start of the run to its end, by the ledger; of `psql` by the clock on the wall.
    pub elapsed: Duration,
    /// CPU time and what others used.
    pub usage: Usage,
    /// The worker's memory when it was ready, and its peak, in bytes; `None` of `psql` and where there is no `/proc`.
    pub memory: Option<(u64, u64)>,
}

/// Runs everything in `directory`.
pub async fn run(directory: &Path, date: String, plan: Plan) -> Result<Report> {
    let world = Sandbox::start(Options::lasting(directory)).await?;
    let manifest = directory.join("tenant.toml");
    let dataset = |name: &str, sql: &str| format!("[datasets.{name}]\nsource = \"main\"\ndescription = \"{name}\"\nsql = \"{sql}\"\n");
    let text = format!(
        "[tenant]\nname = \"{TENANT}\"\n[sources.main]\nurl_env = \"OFFSTAGE_SOURCE_PROMPTLOCKR_URL\"\nstatement_timeout_seconds = 3600\n{}{}",
        dataset("all", QUERY),
        dataset("million", &format!("{QUERY} LIMIT {WORKBOOK_ROWS}")),
    );
    fs::write(&manifest, text).doing("write the benchmark's manifest")?;
    world.apply_tenant(&manifest).await?;
    let key = world.create_key(TENANT, "bench", "*").await?;
    eprintln!("making {} rows", plan.rows);
    fill(&world, plan.rows).await?;
    let sink = Sink::start().await?;
    let api = world.start_api(Launch::new().once().env("OFFSTAGE_LOG", "warn")).await?;

    let contest = Contest { world: &world, sink: &sink, api: &api, key: &key };
    let mut runs = Vec::new();
    for round in 0..plan.rounds {
        let mut figures = [Figure::Copy, Figure::CsvSink, Figure::CsvS3, Figure::CopyMillion, Figure::Workbook];
        let places = figures.len();
        figures.rotate_left(round % places);
        for figure in figures {
            if !calm(DISTURBED, plan.patience).await {
                eprintln!("other programs are using this machine; going on");
            }
            let run = contest.turn(figure).await?;
            eprintln!("{} of {}: {}", round + 1, plan.rounds, report::one_line(&run));
            runs.push(run);
        }
    }
    let servers = format!("Postgres {}", world.postgres.version());
    drop(sink);
    world.stop().await?;
    Ok(Report { date, plan, servers, runs })
}

/// Makes the table anew, and lets the source's role read it.
async fn fill(world: &Sandbox, rows: u64) -> Result<()> {
    let mut product = PgConnection::connect(&world.postgres.product_url()).await?;
    for statement in [
        "DROP TABLE IF EXISTS exported".to_owned(),
        TABLE.replace("ROWS", &rows.to_string()),
        "VACUUM (ANALYZE) exported".to_owned(),
        "GRANT USAGE ON SCHEMA public TO offstage_source".to_owned(),
        "GRANT SELECT ON exported TO offstage_source".to_owned(),
    ] {
        product.execute(AssertSqlSafe(statement)).await?;
    }
    Ok(())
}

struct Contest<'a> {
    world: &'a Sandbox,
    sink: &'a Sink,
    api: &'a Process,
    key: &'a str,
}

impl Contest<'_> {
    async fn turn(&self, figure: Figure) -> Result<Run> {
        match figure {
            Figure::Copy => self.copy(figure, QUERY).await,
            Figure::CopyMillion => self.copy(figure, &format!("{QUERY} LIMIT {WORKBOOK_ROWS}")).await,
            Figure::CsvSink => self.export(figure, "all", "csv", Some(self.sink.endpoint())).await,
            Figure::CsvS3 => self.export(figure, "all", "csv", None).await,
            Figure::Workbook => self.export(figure, "million", "xlsx", None).await,
        }
    }

    fn postgres(&self) -> Watched {
        Watched::family("postgres", self.world.postgres.process().pid().unwrap_or_default())
    }

    async fn copy(&self, figure: Figure, query: &str) -> Result<Run> {
        let meter = Meter::start(&[self.postgres()]);
        let begin = Instant::now();
        let output = Command::new(self.world.postgres.psql())
            .args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--command"])
            .arg(format!("\\copy ({query}) TO '/dev/null' WITH (FORMAT csv, HEADER)"))
            .arg(self.world.postgres.source_url())
            .env("PGTZ", "UTC")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .doing("run psql")?;
        if !output.status.success() {
            return Err(Error::Unexpected(format!("psql: {}", String::from_utf8_lossy(&output.stderr).trim())));
        }
        let elapsed = begin.elapsed();
        let rows = self.rows(query).await?;
        Ok(Run { figure, rows, elapsed, usage: meter.stop(), memory: None })
    }

    /// How many rows the query has: counted apart, since psql tells only a terminal.
    async fn rows(&self, query: &str) -> Result<u64> {
        let mut source = PgConnection::connect(&self.world.postgres.source_url()).await?;
        let rows: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM ({query}) AS q"))).fetch_one(&mut source).await?;
        Ok(u64::try_from(rows).unwrap_or_default())
    }

    async fn export(&self, figure: Figure, dataset: &str, format: &str, endpoint: Option<String>) -> Result<Run> {
        let mut launch = Launch::new().once().arg("--queues").arg("exports").env("OFFSTAGE_LOG", "warn");
        if let Some(endpoint) = endpoint {
            launch = launch.env("OFFSTAGE_S3_ENDPOINT", endpoint);
        }
        let worker = self.world.start_worker(launch).await?;
        let pid = worker.pid().unwrap_or_default();
        let idle = memory(pid, "VmRSS:");
        let meter = Meter::start(&[Watched::family("worker", pid), self.postgres()]);
        let (id, rows) = self.finished(dataset, format).await?;
        let usage = meter.stop();
        let peak = memory(pid, "VmHWM:");
        worker.stop().await?;
        let elapsed: f64 = sqlx::query_scalar(
            "SELECT extract(epoch FROM finished_at - started_at)::float8 FROM job_run WHERE job_id = $1::uuid AND outcome = 'succeeded'",
        )
        .bind(id)
        .fetch_one(self.world.pool())
        .await?;
        Ok(Run { figure, rows, elapsed: Duration::from_secs_f64(elapsed.max(0.0)), usage, memory: idle.zip(peak) })
    }

    /// Asks for an export and waits for its end.
    async fn finished(&self, dataset: &str, format: &str) -> Result<(String, u64)> {
        let address = self.api.address().ok_or_else(|| Error::Unexpected("the API has no address".to_owned()))?;
        let mut client = Client::connect(address, self.key).await?;
        let body = json!({"dataset": dataset, "format": format}).to_string();
        let (status, answer) = client.post("/v1/exports", body).await?;
        let unexpected = |answer: &[u8]| Error::Unexpected(format!("{status}: {}", String::from_utf8_lossy(answer)));
        let asked: Value = serde_json::from_slice(&answer).map_err(|_| unexpected(&answer))?;
        let id = asked.get("id").and_then(Value::as_str).ok_or_else(|| unexpected(&answer))?;
        let deadline = Instant::now() + WITHIN;
        while Instant::now() < deadline {
            sleep(LOOK).await;
            let (_, answer) = client.get(&format!("/v1/exports/{id}")).await?;
            let export: Value = serde_json::from_slice(&answer).map_err(|_| unexpected(&answer))?;
            match export.get("state").and_then(Value::as_str) {
                Some("completed") => {
                    let rows = export.pointer("/file/rows").and_then(Value::as_u64).unwrap_or_default();
                    return Ok((id.to_owned(), rows));
                }
                Some("pending" | "processing") => {}
                _ => return Err(unexpected(&answer)),
            }
        }
        Err(Error::Unexpected(format!("an export was not finished in {} s", WITHIN.as_secs())))
    }
}

/// A line of `/proc/PID/status`, in bytes.
fn memory(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}
