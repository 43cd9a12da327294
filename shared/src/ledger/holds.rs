//! Pauses and throttles: what an operator, or a tenant for its own jobs, holds up.
//!
//! A pause stops the jobs that it names from starting; what runs goes on. A throttle bounds how many of a queue or of a tenant start
//! in a time. What must stay true: nothing is lost by either and no attempt used; however many jobs wait for one, nobody comes by
//! them: the dispatchers pass a paused queue or tenant over, and what was dispatched already waits as for a [switch](super::switches).

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, Row, postgres::PgRow};

use super::LedgerError;
use crate::{job::Rate, queue::Queue};

/// What a pause or a throttle is for: everything where all are `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Only this tenant's jobs.
    pub tenant: Option<i32>,
    /// Only this queue's.
    pub queue: Option<Queue>,
    /// Only this kind's; throttles have none.
    pub kind: Option<String>,
}

/// A pause in force: what workers compare their jobs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// Whose jobs; `None` for every tenant's.
    pub tenant: Option<i32>,
    /// Which queue's, by name; `None` for every queue's.
    pub queue: Option<String>,
    /// Which kind's; `None` for every kind's.
    pub kind: Option<String>,
    /// The kind's names; `None` for every kind.
    names: Option<Vec<String>>,
    /// Since when.
    pub at: DateTime<Utc>,
    /// By whom.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When it ends by itself; when somebody resumes it where `None`.
    pub until: Option<DateTime<Utc>>,
}

impl Pause {
    /// Whether it stops a tenant's jobs of a kind in a queue.
    #[must_use]
    pub fn stops(&self, tenant: i32, queue: Queue, kind: &str) -> bool {
        self.stops_all_of(tenant, queue) || {
            let names_it = self.names.as_ref().is_some_and(|names| names.iter().any(|name| name == kind));
            names_it && self.reaches(tenant, queue)
        }
    }

    /// Whether it stops all of a tenant's jobs in a queue.
    #[must_use]
    pub fn stops_all_of(&self, tenant: i32, queue: Queue) -> bool {
        self.names.is_none() && self.reaches(tenant, queue)
    }

    /// Whether it stops a queue for everybody.
    #[must_use]
    pub fn stops_queue(&self, queue: Queue) -> bool {
        self.names.is_none() && self.tenant.is_none() && self.queue.as_ref().is_none_or(|stopped| stopped == queue.name())
    }

    fn reaches(&self, tenant: i32, queue: Queue) -> bool {
        self.tenant.is_none_or(|stopped| stopped == tenant) && self.queue.as_ref().is_none_or(|stopped| stopped == queue.name())
    }
}

/// A throttle: jobs that it names share its rate.
#[derive(Debug, Clone, PartialEq)]
pub struct Throttle {
    /// Whose jobs; `None` for every tenant's together.
    pub tenant: Option<i32>,
    /// Which queue's, by name; `None` for every queue's together.
    pub queue: Option<String>,
    /// How many start in a time.
    pub rate: Rate,
    /// Since when.
    pub at: DateTime<Utc>,
    /// By whom.
    pub by: String,
}

impl Throttle {
    /// Whether it bounds a tenant's jobs in a queue.
    #[must_use]
    pub fn bounds(&self, tenant: i32, queue: Queue) -> bool {
        self.tenant.is_none_or(|bound| bound == tenant) && self.queue.as_ref().is_none_or(|bound| bound == queue.name())
    }

    /// The name under which its starts are counted.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}:{}", self.tenant.map_or_else(|| "*".to_owned(), |tenant| tenant.to_string()), self.queue.as_deref().unwrap_or("*"))
    }
}

/// What holds jobs up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Holds {
    /// The pauses in force.
    pub pauses: Vec<Pause>,
    /// The throttles.
    pub throttles: Vec<Throttle>,
}

/// The longest reason of a pause that the product makes itself, in characters.
const LONGEST_REASON: usize = 500;

/// The most pauses and the most throttles in force; they are for people to set.
const MOST: i64 = 10_000;

fn pause_of(row: &PgRow) -> Result<Pause, LedgerError> {
    Ok(Pause {
        tenant: row.try_get("tenant_id")?,
        queue: row.try_get("queue")?,
        kind: row.try_get("kind")?,
        names: row.try_get("names")?,
        at: row.try_get("paused_at")?,
        by: row.try_get("paused_by")?,
        reason: row.try_get("reason")?,
        until: row.try_get("until")?,
    })
}

fn throttle_of(row: &PgRow) -> Result<Throttle, LedgerError> {
    let count = |column: &str| row.try_get::<i32, _>(column).map(|count| u32::try_from(count).unwrap_or(1));
    Ok(Throttle {
        tenant: row.try_get("tenant_id")?,
        queue: row.try_get("queue")?,
        rate: Rate { jobs: count("rate_jobs")?, seconds: count("rate_seconds")?, burst: count("rate_burst")? },
        at: row.try_get("set_at")?,
        by: row.try_get("set_by")?,
    })
}

/// What holds jobs up: all of it, or where the session acts for a tenant, what concerns that one.
///
/// # Errors
/// [`LedgerError`].
pub async fn read(connection: &mut PgConnection) -> Result<Holds, LedgerError> {
    let pauses = sqlx::query(
        "SELECT tenant_id, queue, kind, names, paused_at, paused_by, reason, until FROM pause WHERE resumed_at IS NULL ORDER BY id LIMIT $1",
    )
    .bind(MOST)
    .fetch_all(&mut *connection)
    .await?;
    let throttles =
        sqlx::query("SELECT tenant_id, queue, rate_jobs, rate_seconds, rate_burst, set_at, set_by FROM throttle ORDER BY id LIMIT $1")
            .bind(MOST)
            .fetch_all(connection)
            .await?;
    Ok(Holds {
        pauses: pauses.iter().map(pause_of).collect::<Result<_, _>>()?,
        throttles: throttles.iter().map(throttle_of).collect::<Result<_, _>>()?,
    })
}

/// Pauses. Answers false, and changes nothing, where that is paused already. `names` are the kind's name and its former ones.
///
/// # Errors
/// [`LedgerError`].
pub async fn pause(
    connection: &mut PgConnection,
    scope: &Scope,
    names: Option<&[&str]>,
    by: &str,
    reason: &str,
    now: DateTime<Utc>,
) -> Result<bool, LedgerError> {
    let paused = sqlx::query(
        "INSERT INTO pause (tenant_id, queue, kind, names, paused_at, paused_by, reason) VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (coalesce(tenant_id, -1), coalesce(queue, ''), coalesce(kind, '')) WHERE resumed_at IS NULL DO NOTHING",
    )
    .bind(scope.tenant)
    .bind(scope.queue.map(Queue::name))
    .bind(scope.kind.as_deref())
    .bind(names)
    .bind(now)
    .bind(by)
    .bind(reason)
    .execute(connection)
    .await?;
    Ok(paused.rows_affected() == 1)
}

/// Pauses a tenant's jobs of a kind in a queue for a while, because of what the outside said. Answers false, and changes nothing, where they
/// are paused already.
///
/// # Errors
/// [`LedgerError`].
pub async fn pause_for_a_while(
    pool: &PgPool,
    (tenant, queue, names): (i32, Queue, &[&str]),
    by: &str,
    reason: &str,
    until: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<bool, LedgerError> {
    let reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_REASON).collect();
    let paused = sqlx::query(
        "INSERT INTO pause (tenant_id, queue, kind, names, paused_at, paused_by, reason, until) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (coalesce(tenant_id, -1), coalesce(queue, ''), coalesce(kind, '')) WHERE resumed_at IS NULL DO NOTHING",
    )
    .bind(tenant)
    .bind(queue.name())
    // The kind's name goes behind its former ones.
    .bind(names.last().copied())
    .bind(names)
    .bind(now)
    .bind(by)
    .bind(reason)
    .bind(until)
    .execute(pool)
    .await?;
    Ok(paused.rows_affected() == 1)
}

/// Ends the pauses whose time is over; how many.
///
/// # Errors
/// [`LedgerError`].
pub async fn end_those_over(connection: &mut PgConnection, now: DateTime<Utc>) -> Result<u64, LedgerError> {
    let ended = sqlx::query("UPDATE pause SET resumed_at = $1, resumed_by = 'its time was over' WHERE resumed_at IS NULL AND until <= $1");
    Ok(ended.bind(now).execute(connection).await?.rows_affected())
}

/// Resumes: what waited goes on within seconds. Answers false where that was not paused.
///
/// # Errors
/// [`LedgerError`].
pub async fn resume(connection: &mut PgConnection, scope: &Scope, by: &str, now: DateTime<Utc>) -> Result<bool, LedgerError> {
    let resumed = sqlx::query(
        "UPDATE pause SET resumed_at = $4, resumed_by = $5
         WHERE resumed_at IS NULL AND tenant_id IS NOT DISTINCT FROM $1 AND queue IS NOT DISTINCT FROM $2 AND kind IS NOT DISTINCT FROM $3",
    )
    .bind(scope.tenant)
    .bind(scope.queue.map(Queue::name))
    .bind(scope.kind.as_deref())
    .bind(now)
    .bind(by)
    .execute(connection)
    .await?;
    Ok(resumed.rows_affected() == 1)
}

/// Sets a throttle, in the place of one for the same; `None` lifts it. Answers false where there was none to lift.
///
/// # Errors
/// [`LedgerError`].
pub async fn throttle(pool: &PgPool, scope: &Scope, rate: Option<Rate>, by: &str, now: DateTime<Utc>) -> Result<bool, LedgerError> {
    let Some(rate) = rate else {
        let lifted = sqlx::query("DELETE FROM throttle WHERE tenant_id IS NOT DISTINCT FROM $1 AND queue IS NOT DISTINCT FROM $2")
            .bind(scope.tenant)
            .bind(scope.queue.map(Queue::name))
            .execute(pool)
            .await?;
        return Ok(lifted.rows_affected() == 1);
    };
    let count = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    sqlx::query(
        "INSERT INTO throttle (tenant_id, queue, rate_jobs, rate_seconds, rate_burst, set_at, set_by) VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (coalesce(tenant_id, -1), coalesce(queue, '')) DO UPDATE
         SET rate_jobs = excluded.rate_jobs, rate_seconds = excluded.rate_seconds, rate_burst = excluded.rate_burst,
             set_at = excluded.set_at, set_by = excluded.set_by",
    )
    .bind(scope.tenant)
    .bind(scope.queue.map(Queue::name))
    .bind(count(rate.jobs))
    .bind(count(rate.seconds))
    .bind(count(rate.burst))
    .bind(now)
    .bind(by)
    .execute(pool)
    .await?;
    Ok(true)
}
