//! Calls of models, written down one by one and added up by day; and what they cost, noted beside the reservation of their job. Those that
//! were made elsewhere are told to us, and count in no limit: they have been made.

use std::collections::HashSet;

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::{
    FromRow, PgConnection, PgExecutor, PgPool, Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::QueryScalar,
};
use uuid::Uuid;

use super::{PRODUCT, amount_of};
use crate::{job::JobId, ledger::LedgerError, schedule::Zone};

/// How long single calls are kept; their days are kept for longer.
const CALLS_KEPT: TimeDelta = TimeDelta::days(90);

/// How long days are kept.
const DAYS_KEPT: TimeDelta = TimeDelta::days(400);

/// Rows that one statement forgets.
const PAGE: i64 = 5_000;

/// By whose key a call was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payer {
    /// The product's: what it costs counts in budgets.
    Product,
    /// One that the user brought.
    User,
    /// Nobody's here: it was made outside of our workers.
    Elsewhere,
}

impl Payer {
    /// The word in rows and answers.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Product => "product",
            Self::User => "user",
            Self::Elsewhere => "elsewhere",
        }
    }
}

/// The outcome of a call that was answered; others have their error's code.
pub const ANSWERED: &str = "answered";

/// A call that was made.
#[derive(Debug, Clone)]
pub struct MadeCall {
    /// Its id: of a job's call the one that it was begun under ([`Begun`]).
    pub id: Uuid,
    /// Whose product.
    pub tenant: i32,
    /// For which job.
    pub job: Option<JobId>,
    /// For which user.
    pub owner: Option<String>,
    /// Which of its job's calls, by the key of its effect.
    pub step: Option<String>,
    /// For which task.
    pub task: Option<String>,
    /// Whose model.
    pub provider: String,
    /// Which model.
    pub model: String,
    /// By whose key.
    pub payer: Payer,
    /// [`ANSWERED`], or why not.
    pub outcome: String,
    /// Tokens of the question.
    pub input_tokens: u64,
    /// Tokens of the answer.
    pub output_tokens: u64,
    /// Whether the tokens are an estimate.
    pub estimated: bool,
    /// How long it took, in milliseconds.
    pub took_ms: Option<u64>,
    /// What it cost, in millionths of the product's currency; `None`: nobody knows.
    pub cost: Option<u64>,
    /// When it was answered.
    pub at: DateTime<Utc>,
    /// The day by the product's clocks.
    pub day: NaiveDate,
    /// The teller's own id for it.
    pub reported: Option<String>,
}

/// The day that a moment is in, by a zone's clocks.
#[must_use]
pub fn day_of(zone: &Zone, at: DateTime<Utc>) -> NaiveDate {
    zone.local(at).date_naive()
}

/// A call, and what it said: the receipt of its step, where it was answered.
#[derive(Debug, Clone)]
pub struct Spent {
    /// The call, of a step of a job.
    pub made: MadeCall,
    /// What the ledger of effects keeps of the answer.
    pub answer: Option<Value>,
}

/// Writes some down in one statement; answers which of them are new: whose id, or whose teller's id, is not known.
///
/// # Errors
/// [`LedgerError`]: nothing of it is written.
pub async fn record(executor: impl PgExecutor<'_>, calls: &[MadeCall]) -> Result<HashSet<Uuid>, LedgerError> {
    let statement =
        "SELECT id FROM record_ai_calls($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) AS new (id)";
    let calls: Vec<&MadeCall> = calls.iter().collect();
    Ok(with_columns(statement, &calls).fetch_all(executor).await?.into_iter().collect())
}

/// Writes down calls of jobs and, of those that were answered, the receipts of their effects: both or neither, in one statement.
///
/// It does not wait for the disk. What a server that goes down takes with it was never followed by a settle or by the intention of
/// another call, since those wait for all that was written before them: the effect is then found without a receipt, listed as unknown, and
/// charged as much as it can have cost, as where the answer itself was lost.
///
/// # Errors
/// [`LedgerError`]: nothing of it is written.
pub async fn spend(executor: impl PgExecutor<'_>, all: &[Spent], now: DateTime<Utc>) -> Result<(), LedgerError> {
    let statement = "WITH receipts AS (
            -- What was listed as unknown stays so: it may have happened before as well.
            UPDATE effect e SET state = CASE e.state WHEN 2 THEN 2 ELSE 1 END, receipt = a.answer::jsonb, finished_at = $20
            FROM unnest($3, $5, $21::text[]) AS a (job_id, step, answer)
            WHERE a.answer IS NOT NULL AND e.job_id = ANY (ARRAY[a.job_id]) AND e.key = a.step
        )
        SELECT set_config('synchronous_commit', 'off', true)
        FROM record_ai_calls($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) AS new (id)";
    let calls: Vec<&MadeCall> = all.iter().map(|spent| &spent.made).collect();
    let answers: Vec<Option<String>> = all.iter().map(|spent| spent.answer.as_ref().map(Value::to_string)).collect();
    with_columns::<String>(statement, &calls).bind(now).bind(answers).fetch_all(executor).await?;
    Ok(())
}

/// A statement with the columns of calls as its first 19 parameters.
fn with_columns<'a, O>(statement: &'static str, calls: &'a [&MadeCall]) -> QueryScalar<'a, Postgres, O, PgArguments>
where
    (O,): for<'r> FromRow<'r, PgRow>,
{
    fn column<'a, T>(calls: &[&'a MadeCall], value: impl Fn(&'a MadeCall) -> T) -> Vec<T> {
        calls.iter().map(|call| value(call)).collect()
    }
    sqlx::query_scalar(statement)
        .bind(column(calls, |call| call.id))
        .bind(column(calls, |call| call.tenant))
        .bind(column(calls, |call| call.job.map(|job| job.0)))
        .bind(column(calls, |call| call.owner.as_deref()))
        .bind(column(calls, |call| call.step.as_deref()))
        .bind(column(calls, |call| call.task.as_deref()))
        .bind(column(calls, |call| call.provider.as_str()))
        .bind(column(calls, |call| call.model.as_str()))
        .bind(column(calls, |call| call.payer.word()))
        .bind(column(calls, |call| call.outcome.as_str()))
        .bind(column(calls, |call| amount_of(call.input_tokens)))
        .bind(column(calls, |call| amount_of(call.output_tokens)))
        .bind(column(calls, |call| call.estimated))
        .bind(column(calls, |call| call.took_ms.map(amount_of)))
        .bind(column(calls, |call| call.cost.map(amount_of)))
        .bind(column(calls, |call| call.at))
        .bind(column(calls, |call| call.day))
        .bind(column(calls, |call| call.reported.as_deref()))
        .bind(column(calls, |call| call.payer == Payer::Product))
}

/// A call that is about to be made, as its intention in the effect ledger has it: all that is needed to charge it should nobody hear what
/// became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Begun {
    /// The id under which it is written down, by whoever does so first.
    pub call: Uuid,
    /// For which task.
    pub task: String,
    /// Whose model.
    pub provider: String,
    /// Which model.
    pub model: String,
    /// By whose key: see [`Payer::word`].
    pub payer: &'static str,
    /// The most tokens that its question can have.
    pub input_tokens: u64,
    /// The most tokens that its answer can have.
    pub output_tokens: u64,
    /// What those cost, in millionths of the product's currency; `None`: nobody knows.
    pub cost: Option<u64>,
    /// The day by the product's clocks.
    pub day: NaiveDate,
}

/// Charges those calls of a job that are listed as unknown and were not written down, each as all that it can have taken ([`Begun`]); answers
/// how many. What ends a job does so too (`settle_usage`).
///
/// # Errors
/// [`LedgerError`].
pub async fn charge_lost(pool: &PgPool, job: JobId, now: DateTime<Utc>) -> Result<i64, LedgerError> {
    Ok(sqlx::query_scalar("SELECT charge_lost_calls(ARRAY[$1::uuid], $2)").bind(job.0).bind(now).fetch_one(pool).await?)
}

/// What a model was used for on a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DayOfModel {
    /// The day, by the product's clocks.
    pub day: NaiveDate,
    /// Whose model.
    pub provider: String,
    /// Which one.
    pub model: String,
    /// By whose key: see [`Payer::word`].
    pub credential: String,
    /// Calls.
    pub calls: i64,
    /// Those that were answered.
    pub answered: i64,
    /// Those whose tokens are an estimate.
    pub estimated: i64,
    /// Those of which nobody knows what they cost.
    pub unpriced: i64,
    /// Tokens of questions.
    pub input_tokens: i64,
    /// Tokens of answers.
    pub output_tokens: i64,
    /// What the others cost.
    pub cost: i64,
}

/// The last `days` days up to today, of a user or of the product as a whole; the newest first.
///
/// # Errors
/// [`LedgerError`].
pub async fn by_day(
    connection: &mut PgConnection,
    tenant: i32,
    owner: Option<&str>,
    today: NaiveDate,
    days: u32,
) -> Result<Vec<DayOfModel>, LedgerError> {
    let from = today.checked_sub_days(Days::new(u64::from(days.saturating_sub(1)))).unwrap_or(today);
    let rows = sqlx::query(
        "SELECT day, provider, model, credential, calls, answered, estimated, unpriced, input_tokens, output_tokens, cost
         FROM ai_usage_day WHERE tenant_id = $1 AND scope = $2 AND day >= $3 AND day <= $4
         ORDER BY day DESC, provider, model, credential LIMIT 10000",
    )
    .persistent(false)
    .bind(tenant)
    .bind(owner.unwrap_or(PRODUCT))
    .bind(from)
    .bind(today)
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(DayOfModel {
                day: row.try_get("day")?,
                provider: row.try_get("provider")?,
                model: row.try_get("model")?,
                credential: row.try_get("credential")?,
                calls: row.try_get("calls")?,
                answered: row.try_get("answered")?,
                estimated: row.try_get("estimated")?,
                unpriced: row.try_get("unpriced")?,
                input_tokens: row.try_get("input_tokens")?,
                output_tokens: row.try_get("output_tokens")?,
                cost: row.try_get("cost")?,
            })
        })
        .collect()
}

/// Forgets calls, and days, that are old; answers how many: call again until none.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget(pool: &PgPool, now: DateTime<Utc>) -> Result<u64, LedgerError> {
    let calls = sqlx::query("DELETE FROM ai_call WHERE id = ANY (ARRAY (SELECT id FROM ai_call WHERE at < $1 ORDER BY at LIMIT $2))")
        .bind(now - CALLS_KEPT)
        .bind(PAGE)
        .execute(pool)
        .await?;
    // By day alone there is no index: there are few rows, and this is rare.
    let days = sqlx::query("DELETE FROM ai_usage_day WHERE ctid = ANY (ARRAY (SELECT ctid FROM ai_usage_day WHERE day < $1 LIMIT $2))")
        .bind((now - DAYS_KEPT).date_naive())
        .bind(PAGE)
        .execute(pool)
        .await?;
    Ok(calls.rows_affected() + days.rows_affected())
}
