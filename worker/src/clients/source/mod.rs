//! A product's own Postgres, read for a dataset: one connection, one snapshot, one cursor, row by row.
//!
//! What must stay true:
//! - **nothing is written there**: `READ ONLY`, and a warning when the role could write all the same;
//! - **one moment**: all rows come from one `REPEATABLE READ` snapshot, however long reading takes;
//! - **exact**: parameters are bound, never pasted; values arrive in Postgres' own text form, which loses nothing, under
//!   settings that don't depend on the server ([`SETTINGS`]), and [`Shape`] says what each text is;
//! - **bounded**: at most [`SLOTS`] connections a source and process, rows stream (a row at a time is held), every wait has
//!   a deadline, and the server ends what we walked away from.
//!
//! Each export has a connection of its own, closed at its end: nothing a dataset did to its session meets another tenant's, and a
//! product's database, whose connections are scarce, holds none for us while nothing is exported. A snapshot that is
//! dropped half way just closes its socket; from Postgres 14 on the server notices within half a second and stops the query.
//!
//! The statement is described by name (`sqlx_s_…`), so a transaction pooler in between must know prepared statements, as
//! `PgBouncer` does from 1.21 on.

mod array;
mod error;
mod shape;
mod time;

use std::{
    collections::{HashMap, HashSet},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream::BoxStream};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    AssertSqlSafe, Column as _, ConnectOptions, Connection, Either, Executor, PgConnection, Postgres, Row as _, ValueRef,
    postgres::{PgArguments, PgConnectOptions, PgQueryResult, PgRow, types::Oid},
    query::Query,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use error::SourceError;
use error::Step;
pub use shape::Shape;

/// The most connections to one source from one process. R6's budgets are small, and the product itself comes first.
const SLOTS: usize = 4;

/// The longest that connecting may take, authentication included.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// What is waited for beyond the server's own statement timeout before the server counts as gone.
const GRACE: Duration = Duration::from_secs(15);

/// How long the server keeps a transaction of ours in which nothing happens: longer than the longest stall of an upload,
/// shorter than a product wants to wait for its vacuum after our machine was cut off.
const IDLE: Duration = Duration::from_secs(900);

/// What makes the text of values the same from every server, role and database.
///
/// `IntervalStyle iso_8601` writes durations as ISO 8601 does (`P1DT2H`), the one form that other programs read.
/// `extra_float_digits 3` writes floats so that they read back as the same number, on every version of Postgres.
/// `cursor_tuple_fraction 1` has the planner plan for all rows; by default it would plan for the first tenth.
const SETTINGS: &str = "SET LOCAL DateStyle = 'ISO, YMD'; SET LOCAL TimeZone = 'UTC'; SET LOCAL IntervalStyle = 'iso_8601'; \
     SET LOCAL extra_float_digits = 3; SET LOCAL bytea_output = 'hex'; SET LOCAL lc_monetary = 'C'; \
     SET LOCAL cursor_tuple_fraction = 1; \
     SELECT set_config(name, '500', true) FROM pg_settings WHERE name = 'client_connection_check_interval'; \
     SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";

/// A source, as the manifest and the worker's settings know it.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Its name in the manifest.
    pub name: &'a str,
    /// The variable that holds its URL.
    pub variable: &'a str,
    /// Its URL.
    pub url: &'a SecretString,
    /// The longest one statement may run there.
    pub statement_timeout: Duration,
    /// Of our own database: whose rows are read.
    pub tenant: Option<i32>,
}

/// The sources of this process, by the variable that holds the URL. Operators declare those, so their number is bounded.
#[derive(Debug, Default)]
pub struct Sources {
    slots: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Whose role was looked at.
    examined: Mutex<HashSet<String>>,
}

impl Sources {
    /// Waits for one of the source's slots, connects, and begins the snapshot. The wait has no end of its own: who calls
    /// has a deadline, and those before it in the queue have one too.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn open(&self, source: &Source<'_>) -> Result<Snapshot, SourceError> {
        let options = PgConnectOptions::from_str(source.url.expose_secret())
            .map_err(|_| SourceError::address(source.name, source.variable))?
            .application_name("offstage export")
            .disable_statement_logging();
        let slots = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry(source.variable.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(SLOTS))))
        };
        // Never closed, so never an error.
        let slot = slots.acquire_owned().await.ok();
        let fault = |step| move |error| SourceError::of(step, source.name, source.statement_timeout, error);
        let connection = tokio::time::timeout(CONNECT_WITHIN, PgConnection::connect_with(&options))
            .await
            .map_err(|_| SourceError::silent(source.name, CONNECT_WITHIN))?
            .map_err(fault(Step::Connect))?;
        let mut snapshot = Snapshot {
            connection,
            name: source.name.to_owned(),
            statement_timeout: source.statement_timeout,
            taken_at: String::new(),
            tenant: source.tenant,
            opened: false,
            _slot: slot,
        };
        snapshot.begin().await?;
        if source.tenant.is_none() {
            self.examine(source, &mut snapshot).await?;
        }
        Ok(snapshot)
    }

    /// Warns, once, of a role that could write: the transaction can't, but the manifest's author meant a role that can't either.
    async fn examine(&self, source: &Source<'_>, snapshot: &mut Snapshot) -> Result<(), SourceError> {
        if !self.examined.lock().unwrap_or_else(PoisonError::into_inner).insert(source.variable.to_owned()) {
            return Ok(());
        }
        let could_write = "SELECT current_setting('is_superuser')::boolean OR EXISTS (
                SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^(pg_|information_schema$)'
                  AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE'))";
        let fetch = sqlx::query_scalar::<_, bool>(could_write).persistent(false).fetch_one(&mut snapshot.connection);
        let answer = tokio::time::timeout(source.statement_timeout + GRACE, fetch).await;
        let could_write = answer
            .map_err(|_| SourceError::silent(source.name, source.statement_timeout + GRACE))?
            .map_err(|error| SourceError::of(Step::Begin, source.name, source.statement_timeout, error))?;
        if could_write {
            tracing::warn!(
                source = source.name,
                variable = source.variable,
                "the role of this source can write; exports read in a read-only transaction, but give it a role that can't"
            );
        }
        Ok(())
    }
}

/// One moment of a source's data, and the connection that holds it.
#[derive(Debug)]
pub struct Snapshot {
    connection: PgConnection,
    name: String,
    statement_timeout: Duration,
    /// The server's time when the snapshot was taken.
    taken_at: String,
    tenant: Option<i32>,
    /// Whether a cursor was opened before.
    opened: bool,
    _slot: Option<OwnedSemaphorePermit>,
}

impl Snapshot {
    async fn begin(&mut self) -> Result<(), SourceError> {
        let (timeout, idle) = (self.statement_timeout.as_millis(), IDLE.as_millis());
        let tenant = self.tenant.map_or_else(String::new, |tenant| format!("SET LOCAL offstage.tenant = '{tenant}'; "));
        // Numbers and constants of ours: nothing in here can be more than a number.
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = {timeout}; \
             SET LOCAL idle_in_transaction_session_timeout = {idle}; {tenant}{SETTINGS}"
        );
        let ran = tokio::time::timeout(CONNECT_WITHIN, self.connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(begin)))).await;
        let answers = ran.map_err(|_| SourceError::silent(&self.name, CONNECT_WITHIN))?.map_err(|error| self.fault(Step::Begin, error))?;
        let last = answers.into_iter().last().map(|row| Row { row });
        last.and_then(|row| row.cell(0).ok().flatten().map(str::to_owned)).unwrap_or_default().clone_into(&mut self.taken_at);
        Ok(())
    }

    /// The server's time when the snapshot was taken, RFC 3339: what was committed by then is in it.
    #[must_use]
    pub fn taken_at(&self) -> &str {
        &self.taken_at
    }

    /// Opens a cursor over a dataset's statement, in the place of any opened before; `values` are those of `$1` … `$n`, all of them text.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn read(&mut self, dataset: &str, sql: &str, values: &[Option<String>]) -> Result<Cursor<'_>, SourceError> {
        let patience = self.statement_timeout + GRACE;
        let step = Step::Dataset(dataset.to_owned());
        let columns = tokio::time::timeout(patience, self.describe(sql, values))
            .await
            .map_err(|_| SourceError::silent(&self.name, patience))?
            .map_err(|error| self.fault(step.clone(), error))?;
        let query = bound(format!("DECLARE {CURSOR} NO SCROLL CURSOR FOR {sql}"), values);
        let opened = std::mem::replace(&mut self.opened, true);
        let open = async {
            if opened {
                self.connection.execute(sqlx::raw_sql("CLOSE ALL")).await?;
            }
            query.execute(&mut self.connection).await
        };
        tokio::time::timeout(patience, open)
            .await
            .map_err(|_| SourceError::silent(&self.name, patience))?
            .map_err(|error| self.fault(step.clone(), error))?;
        Ok(Cursor { snapshot: self, columns, step })
    }

    /// The one value of a statement that brings one.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn value(&mut self, dataset: &str, sql: &str, values: &[Option<String>]) -> Result<Option<String>, SourceError> {
        let mut cursor = self.read(dataset, sql, values).await?;
        let mut batch = cursor.fetch(1);
        Ok(batch.next().await?.and_then(|row| row.cell(0).ok().flatten().map(str::to_owned)))
    }

    /// How many rows the planner expects of a statement: cheap, and as good as the statistics of its tables. `None` where it does not say, which is
    /// nothing to fail of.
    pub async fn estimate(&mut self, sql: &str, values: &[Option<String>]) -> Option<u64> {
        // A refused statement would end the transaction with it, so the plan is asked for in one that can be taken back.
        let query = bound(format!("EXPLAIN (FORMAT JSON) {sql}"), values);
        let explain = async {
            self.connection.execute("SAVEPOINT offstage_estimate").await?;
            let plan = query.fetch_one(&mut self.connection).await;
            self.connection.execute("ROLLBACK TO SAVEPOINT offstage_estimate").await?;
            plan
        };
        let plan = tokio::time::timeout(self.statement_timeout + GRACE, explain).await.ok()?.ok()?;
        let plan: serde_json::Value = plan.try_get(0).ok()?;
        let rows = plan.pointer("/0/Plan/Plan Rows")?.as_u64()?;
        // What a planner says that knows nothing of a table or a function.
        (rows > 1).then_some(rows)
    }

    /// The columns of a statement, which are known though it may yield no row: joined to one row that matches none of its rows, which
    /// the planner sees and does not run it. `sqlx` has a description of its own; it fails on types that it does not know (multiranges).
    async fn describe(&mut self, sql: &str, values: &[Option<String>]) -> sqlx::Result<Vec<Column>> {
        let joined = format!("SELECT dataset.* FROM (SELECT) AS one LEFT JOIN (\n{sql}\n) AS dataset ON false");
        bound(format!("DECLARE {COLUMNS} NO SCROLL CURSOR FOR {joined}"), values).execute(&mut self.connection).await?;
        let row = self.connection.fetch_one(sqlx::raw_sql(AssertSqlSafe(format!("FETCH 1 FROM {COLUMNS}")))).await?;
        self.connection.execute(sqlx::raw_sql(AssertSqlSafe(format!("CLOSE {COLUMNS}")))).await?;
        let named: Vec<_> =
            row.columns().iter().map(|column| (column.name().to_owned(), column.type_info().oid().unwrap_or_default())).collect();
        let types: HashMap<Oid, shape::Type> = shape::types(&mut self.connection, named.iter().map(|(_, oid)| *oid)).await?;
        let column = |(name, oid): (String, Oid)| Column {
            name,
            type_name: types.get(&oid).map_or_else(|| "unknown".to_owned(), |kind| kind.name.clone()),
            shape: shape::resolve(oid, &types),
        };
        Ok(named.into_iter().map(column).collect())
    }

    fn fault(&self, step: Step, error: sqlx::Error) -> SourceError {
        SourceError::of(step, &self.name, self.statement_timeout, error)
    }

    /// Says goodbye in good order. Nothing hangs on it: what was read stays right, and the server cleans up by itself.
    pub async fn close(self) {
        let _ = tokio::time::timeout(Duration::from_secs(2), self.connection.close()).await;
    }
}

/// A statement with its values, which is not kept prepared: it runs once.
fn bound(sql: String, values: &[Option<String>]) -> Query<'_, Postgres, PgArguments> {
    values.iter().fold(sqlx::query(AssertSqlSafe(sql)).persistent(false), Query::bind)
}

/// The cursors' names in the session, which is ours alone.
const CURSOR: &str = "offstage_export";
const COLUMNS: &str = "offstage_columns";

/// A column of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name, as the statement gives it; two columns may have the same.
    pub name: String,
    /// Its type as Postgres writes it: `numeric`, `text[]`, `plan_tier`. A domain is named by what it is based on.
    pub type_name: String,
    /// What its texts are.
    pub shape: Shape,
}

/// A dataset that is being read.
#[derive(Debug)]
pub struct Cursor<'a> {
    snapshot: &'a mut Snapshot,
    columns: Vec<Column>,
    step: Step,
}

impl Cursor<'_> {
    /// The columns, from left to right.
    #[must_use]
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Asks for the next rows, at most so many; fewer mean that there are no more.
    pub fn fetch(&mut self, rows: u32) -> Batch<'_> {
        let Snapshot { connection, name, statement_timeout, .. } = &mut *self.snapshot;
        // The simple protocol: every type in its text form. FETCH takes no parameters anyway.
        let fetch = sqlx::raw_sql(AssertSqlSafe(format!("FETCH {rows} FROM {CURSOR}")));
        Batch { stream: fetch.fetch_many(connection), name, statement_timeout: *statement_timeout, step: &self.step }
    }
}

/// The rows of one `FETCH`, on their way.
pub struct Batch<'a> {
    stream: BoxStream<'a, sqlx::Result<Either<PgQueryResult, PgRow>>>,
    name: &'a str,
    statement_timeout: Duration,
    step: &'a Step,
}

impl Batch<'_> {
    /// The next row; `None` at the end of the batch.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn next(&mut self) -> Result<Option<Row>, SourceError> {
        loop {
            // Most rows are there already: no timer for those.
            let item = if let Some(item) = self.stream.next().now_or_never() {
                item
            } else {
                let patience = self.statement_timeout + GRACE;
                let waited = tokio::time::timeout(patience, self.stream.next()).await;
                waited.map_err(|_| SourceError::silent(self.name, patience))?
            };
            match item {
                Some(Ok(Either::Right(row))) => return Ok(Some(Row { row })),
                Some(Ok(Either::Left(_))) => {}
                Some(Err(error)) => return Err(SourceError::of(self.step.clone(), self.name, self.statement_timeout, error)),
                None => return Ok(None),
            }
        }
    }
}

/// A row.
pub struct Row {
    row: PgRow,
}

impl Row {
    /// Whether its cells have more than so many bytes together.
    #[must_use]
    pub fn is_heavy(&self, bytes: usize) -> bool {
        let mut left = bytes;
        (0..self.row.len()).any(|index| {
            // As bytes: whoever writes the row reads it as text.
            let length = self.row.try_get_raw(index).ok().and_then(|value| value.as_bytes().ok().map(<[u8]>::len)).unwrap_or(0);
            left = left.saturating_sub(length);
            left == 0
        })
    }

    /// A cell as Postgres writes it; `None` is NULL.
    ///
    /// # Errors
    /// [`NotText`]: the database has no encoding (`SQL_ASCII`) and the value is not UTF-8. A column that is not there counts so too.
    pub fn cell(&self, index: usize) -> Result<Option<&str>, NotText> {
        let value = self.row.try_get_raw(index).map_err(|_| NotText)?;
        if value.is_null() {
            return Ok(None);
        }
        value.as_str().map(Some).map_err(|_| NotText)
    }
}

/// A value is not UTF-8 text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a value is not UTF-8 text")]
pub struct NotText;

#[cfg(test)]
mod tests;
