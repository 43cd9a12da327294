//! Multiplies finished jobs.

use std::time::{Duration, Instant};

use secrecy::SecretString;
use shared::{
    job::{JobId, Options, Priority},
    kinds::{Kind, ProbeRun},
    ledger::{
        self, Kept, Sessions,
        insert::{self, Arrival, Inserted, NewJob},
    },
    queue::Queue,
};
use sqlx::{AssertSqlSafe, Row, types::Uuid};
use tokio::time::sleep;

use super::super::{Offstage, WITHIN};
use crate::{
    error::{Error, Result},
    plan::{CONCURRENCY, payload},
};

/// Jobs that are multiplied: one of them failed, every other one belongs to an end user.
const TEMPLATES: usize = 100;
/// End users. Each gets whole rounds of the templates, so that all exist and have a failed job where there are a million rows or more.
const OWNERS: usize = 10_000;
/// The history goes back so far: within every retention.
const SPAN: Duration = Duration::from_secs(5 * 24 * 3_600);
/// From the newest of them to now.
const AGO: Duration = Duration::from_secs(60);

/// What one column of a copy says.
fn expression(column: &str, kind: &str) -> String {
    match (column, kind) {
        ("job_id", "uuid") => "n.id".to_owned(),
        ("owner", "text") => format!("CASE WHEN t.owner IS NOT NULL THEN 'owner-' || n.number / {TEMPLATES} % {OWNERS} END"),
        (column, "timestamp with time zone") => format!("t.{column} - n.age"),
        (column, _) => format!("t.{column}"),
    }
}

impl Offstage {
    /// Fills the empty ledger with so many finished jobs. Answers how long that took.
    pub async fn grow(&self, rows: usize) -> Result<Duration> {
        let begin = Instant::now();
        self.clear().await?;
        self.run_templates().await?;
        let tables = self.tables_with_jobs().await?;
        self.set("max_wal_size", Some("4GB")).await?;
        let indexes = self.drop_indexes(&tables).await?;
        self.make_templates(&tables, rows).await?;
        // Two at a time, the large ones beside each other: one core each.
        let (first, second): (Vec<_>, Vec<_>) = tables.iter().enumerate().partition(|(index, _)| index % 2 == 0);
        let copy = async |part: Vec<(usize, &String)>| {
            for (_, table) in part {
                self.multiply(table).await?;
            }
            Ok::<_, Error>(())
        };
        tokio::try_join!(copy(first), copy(second))?;
        for index in indexes {
            // A session of its own each time, so that the setting is at hand.
            let mut connection = self.superuser.acquire().await?;
            sqlx::query("SET maintenance_work_mem = '1GB'").execute(&mut *connection).await?;
            sqlx::query(AssertSqlSafe(index)).execute(&mut *connection).await?;
        }
        sqlx::query("DROP SCHEMA bench CASCADE").execute(&self.superuser).await?;
        for table in &tables {
            sqlx::query(AssertSqlSafe(format!("VACUUM (ANALYZE) {table}"))).execute(&self.superuser).await?;
        }
        let floor: Uuid = sqlx::query_scalar("SELECT id FROM job ORDER BY id DESC LIMIT 1").fetch_one(&self.superuser).await?;
        let found: i64 = sqlx::query_scalar("SELECT count(*) FROM job").fetch_one(&self.superuser).await?;
        if usize::try_from(found).ok() != Some(rows + TEMPLATES) {
            return Err(Error::Unexpected(format!("the ledger has {found} jobs where {rows} were to be loaded")));
        }
        self.floor.set(floor).map_err(|_| Error::Unexpected("the ledger was filled before".to_owned()))?;
        self.set("max_wal_size", None).await?;
        sqlx::query("CHECKPOINT").execute(&self.superuser).await?;
        Ok(begin.elapsed())
    }

    /// Empties the ledger of what came after the history, and tidies up.
    pub(in crate::offstage) async fn clear_above(&self, floor: Uuid) -> Result<()> {
        let holding = self.tables_with_jobs().await?;
        for table in &holding {
            let key = key_of(table);
            sqlx::query(AssertSqlSafe(format!("DELETE FROM {table} WHERE {key} > $1"))).bind(floor).execute(&self.superuser).await?;
            sqlx::query(AssertSqlSafe(format!("VACUUM {table}"))).execute(&self.superuser).await?;
        }
        let all: Vec<String> = sqlx::query_scalar(
            "SELECT quote_ident(tablename) FROM pg_tables
             WHERE schemaname = 'public' AND tablename NOT IN ('tenant', 'api_key', '_sqlx_migrations')",
        )
        .fetch_all(&self.superuser)
        .await?;
        let others: Vec<String> = all.into_iter().filter(|table| !holding.contains(table)).collect();
        sqlx::query(AssertSqlSafe(format!("TRUNCATE {}", others.join(", ")))).execute(&self.superuser).await?;
        Ok(())
    }

    /// Jobs as any others, run by a worker to their ends.
    async fn run_templates(&self) -> Result<()> {
        let url = SecretString::from(self.world.postgres.api_url());
        let pool = ledger::pool("OFFSTAGE_API_DATABASE_URL", &url, Sessions::Plain, 1)?;
        let now = self.clock.now();
        let batch: Vec<NewJob> = (0..TEMPLATES)
            .map(|number| NewJob {
                id: JobId(self.clock.new_id()),
                tenant: self.tenant,
                owner: (number % 2 == 0).then(|| "owner-0".to_owned()),
                subject: None,
                kind: ProbeRun::NAME,
                queue: Queue::Analytics,
                priority: Priority::Normal,
                payload: if number == 0 { r#"{"outcome":"fail"}"#.to_owned() } else { payload() },
                attempts: ProbeRun::POLICY.attempts,
                created_at: now,
                run_at: now,
                start_by: None,
                state: Arrival::Waiting(shared::job::Reason::Window),
                idempotency: None,
                options: Options::default(),
                meter: None,
            })
            .collect();
        for outcome in insert::insert(&Kept::of(pool.clone(), 1), now, &batch).await {
            if !matches!(outcome, Ok(Inserted::Accepted)) {
                return Err(Error::Unexpected(format!("the ledger did not accept a job: {outcome:?}")));
            }
        }
        let worker = self.worker(CONCURRENCY).await?;
        let deadline = Instant::now() + WITHIN;
        let ended = "SELECT count(*) FROM job_state WHERE state > 2";
        while sqlx::query_scalar::<_, i64>(ended).fetch_one(&self.superuser).await? < i64::try_from(TEMPLATES).unwrap_or(i64::MAX) {
            if Instant::now() > deadline {
                return Err(Error::Unexpected("the jobs to be multiplied did not end".to_owned()));
            }
            sleep(Duration::from_millis(50)).await;
        }
        worker.stop().await?;
        Ok(())
    }

    /// The tables in which a job's rows stand after its end; `job` first, then the larger ones.
    async fn tables_with_jobs(&self) -> Result<Vec<String>> {
        let candidates: Vec<String> = sqlx::query_scalar(
            "SELECT c.relname::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
             WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attname = 'job_id' AND NOT a.attisdropped
             ORDER BY c.relname",
        )
        .fetch_all(&self.superuser)
        .await?;
        let mut found = vec!["job".to_owned()];
        for table in candidates {
            let holds: bool =
                sqlx::query_scalar(AssertSqlSafe(format!("SELECT EXISTS (SELECT FROM {table})"))).fetch_one(&self.superuser).await?;
            if holds {
                found.push(table);
            }
        }
        Ok(found)
    }

    /// Drops the indexes but the keys', and answers how they are made again: at once that is quicker than row by row.
    async fn drop_indexes(&self, tables: &[String]) -> Result<Vec<String>> {
        let rows = sqlx::query(
            "SELECT i.indexrelid::regclass::text AS name, pg_get_indexdef(i.indexrelid) AS definition FROM pg_index i
             JOIN pg_class c ON c.oid = i.indrelid WHERE c.relname = ANY ($1) AND c.relnamespace = 'public'::regnamespace
               AND NOT i.indisprimary AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid)",
        )
        .bind(tables)
        .fetch_all(&self.superuser)
        .await?;
        let mut definitions = Vec::new();
        for row in rows {
            sqlx::query(AssertSqlSafe(format!("DROP INDEX {}", row.try_get::<String, _>("name")?))).execute(&self.superuser).await?;
            definitions.push(row.try_get("definition")?);
        }
        Ok(definitions)
    }

    /// Puts the rows to be multiplied aside, and says how often and with which ids.
    async fn make_templates(&self, tables: &[String], rows: usize) -> Result<()> {
        sqlx::query("CREATE SCHEMA IF NOT EXISTS bench").execute(&self.superuser).await?;
        let which = "SELECT id, row_number() OVER (ORDER BY id) - 1 AS number FROM job";
        for table in tables {
            let statement = format!(
                "CREATE UNLOGGED TABLE bench.{table} AS SELECT w.number AS template, t.* FROM {table} t JOIN ({which}) w ON w.id = t.{}",
                key_of(table)
            );
            sqlx::query(AssertSqlSafe(statement)).execute(&self.superuser).await?;
            sqlx::query(AssertSqlSafe(format!("ANALYZE bench.{table}"))).execute(&self.superuser).await?;
        }
        // UUIDv7 (RFC 9562, 5.7): 48 bits of milliseconds, version 7, variant 2, and the rest by chance, here from the number.
        let (span, ago, templates) = (SPAN.as_millis(), AGO.as_millis(), TEMPLATES);
        let statement = format!(
            "CREATE VIEW bench.numbers AS
             SELECT number, number % {templates} AS template, age * interval '1 millisecond' AS age,
                    (lpad(to_hex(began - age), 12, '0') || '7' || substr(hash, 1, 3) || '8' || substr(hash, 4, 15))::uuid AS id
             FROM (SELECT number, md5(number::text) AS hash, {ago} + ({rows} - number) * {span} / {rows} AS age,
                          {now} AS began
                   FROM generate_series(1::bigint, {rows}::bigint) AS number) AS n",
            now = self.clock.now().timestamp_millis(),
        );
        sqlx::query(AssertSqlSafe(statement)).execute(&self.superuser).await?;
        Ok(())
    }

    /// Writes one table's rows anew for each number.
    async fn multiply(&self, table: &str) -> Result<()> {
        let columns = sqlx::query(
            "SELECT quote_ident(attname) AS name, format_type(atttypid, NULL) AS kind FROM pg_attribute
             WHERE attrelid = ('public.' || $1)::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''",
        )
        .bind(table)
        .fetch_all(&self.superuser)
        .await?;
        let (mut names, mut values) = (Vec::new(), Vec::new());
        for column in columns {
            let (name, kind): (String, String) = (column.try_get("name")?, column.try_get("kind")?);
            values.push(if table == "job" && name == "id" { "n.id".to_owned() } else { expression(&name, &kind) });
            names.push(name);
        }
        let statement = format!(
            "INSERT INTO public.{table} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM bench.numbers n JOIN bench.{table} t USING (template)",
            names.join(", "),
            values.join(", ")
        );
        let mut connection = self.superuser.acquire().await?;
        sqlx::query("SET synchronous_commit = off").execute(&mut *connection).await?;
        // In the numbers' order, so that keys grow at their end: a hash of the few templates keeps it.
        sqlx::query("SET enable_mergejoin = off").execute(&mut *connection).await?;
        sqlx::query(AssertSqlSafe(statement)).execute(&mut *connection).await?;
        sqlx::query("RESET ALL").execute(&mut *connection).await?;
        Ok(())
    }

    /// A server's setting, for everybody, or its default again.
    async fn set(&self, name: &str, value: Option<&str>) -> Result<()> {
        let statement = match value {
            Some(value) => format!("ALTER SYSTEM SET {name} = '{value}'"),
            None => format!("ALTER SYSTEM RESET {name}"),
        };
        sqlx::query(AssertSqlSafe(statement)).execute(&self.superuser).await?;
        sqlx::query("SELECT pg_reload_conf()").execute(&self.superuser).await?;
        Ok(())
    }
}

/// By which column a table knows its job.
fn key_of(table: &str) -> &'static str {
    if table == "job" { "id" } else { "job_id" }
}
