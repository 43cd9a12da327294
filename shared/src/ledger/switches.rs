//! Switches: an operator stops all outward effects of the installation, of a tenant or of a kind. The jobs that would have them
//! wait, and go on when the switch is on again.
//!
//! What must stay true:
//! - after a switch went off no outward step begins: a run asks before it starts, and each step asks in the statement that
//!   writes its intent down ([`super::effects::intend`]);
//! - nothing is lost by it and no attempt used: the job stands in the backlog, never due, and in `job_held`;
//! - however many wait, nobody comes by them until their switch is on: the dispatcher reads due jobs only, and the release
//!   asks once for each tenant and kind that has any;
//! - a job that was held by somebody who had not heard yet that the switch is on again is found by the next look, since each
//!   looks at what is held, not at what was switched.

use chrono::{DateTime, Utc};
use sqlx::{PgPool, Row};
use uuid::Uuid;

use super::LedgerError;
use crate::{job::JobId, queue::Queue};

/// Jobs released by one statement.
pub const BATCH: i64 = 1_000;

/// What a switch stops: everything where both are `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Only this tenant's.
    pub tenant: Option<i32>,
    /// Only this kind's.
    pub kind: Option<String>,
}

/// A switch that is off: what workers compare their jobs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Off {
    tenant: Option<i32>,
    /// The kind's names; `None` for every kind.
    names: Option<Vec<String>>,
}

impl Off {
    /// Whether it stops outward effects of this tenant's jobs of this kind.
    #[must_use]
    pub fn stops(&self, tenant: i32, kind: &str) -> bool {
        self.tenant.is_none_or(|stopped| stopped == tenant) && self.names.as_ref().is_none_or(|names| names.iter().any(|name| name == kind))
    }
}

/// The switches that are off.
///
/// # Errors
/// [`LedgerError`].
pub async fn off(pool: &PgPool) -> Result<Vec<Off>, LedgerError> {
    let rows = sqlx::query("SELECT tenant_id, names FROM outward_switch WHERE on_at IS NULL").fetch_all(pool).await?;
    rows.into_iter().map(|row| Ok(Off { tenant: row.try_get("tenant_id")?, names: row.try_get("names")? })).collect()
}

/// A switch as an operator sees it.
#[derive(Debug, Clone)]
pub struct Switch {
    /// Whose effects; `None` for every tenant's.
    pub tenant: Option<String>,
    /// Which kind's; `None` for every kind.
    pub kind: Option<String>,
    /// When it was turned off.
    pub off_at: DateTime<Utc>,
    /// By whom.
    pub off_by: String,
    /// Why.
    pub reason: String,
    /// When it was turned on again.
    pub on_at: Option<DateTime<Utc>>,
    /// By whom.
    pub on_by: Option<String>,
}

/// Turns a switch off. Answers false, and changes nothing, where it is off already. `names` are the kind's name and its former
/// ones, as jobs may carry them.
///
/// # Errors
/// [`LedgerError`].
pub async fn turn_off(
    pool: &PgPool,
    scope: &Scope,
    names: Option<&[&str]>,
    by: &str,
    reason: &str,
    now: DateTime<Utc>,
) -> Result<bool, LedgerError> {
    let turned = sqlx::query(
        "INSERT INTO outward_switch (tenant_id, kind, names, off_at, off_by, reason) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (coalesce(tenant_id, 0), coalesce(kind, '')) WHERE on_at IS NULL DO NOTHING",
    )
    .bind(scope.tenant)
    .bind(scope.kind.as_deref())
    .bind(names)
    .bind(now)
    .bind(by)
    .bind(reason)
    .execute(pool)
    .await?;
    Ok(turned.rows_affected() == 1)
}

/// Turns a switch on again; workers release what waited within seconds. Answers false where it was not off.
///
/// # Errors
/// [`LedgerError`].
pub async fn turn_on(pool: &PgPool, scope: &Scope, by: &str, now: DateTime<Utc>) -> Result<bool, LedgerError> {
    let turned = sqlx::query(
        "UPDATE outward_switch SET on_at = $3, on_by = $4
         WHERE on_at IS NULL AND tenant_id IS NOT DISTINCT FROM $1 AND kind IS NOT DISTINCT FROM $2",
    )
    .bind(scope.tenant)
    .bind(scope.kind.as_deref())
    .bind(now)
    .bind(by)
    .execute(pool)
    .await?;
    Ok(turned.rows_affected() == 1)
}

/// The switches that are off, and with `all` those that were, newest first, at most 1,000.
///
/// # Errors
/// [`LedgerError`].
pub async fn list(pool: &PgPool, all: bool) -> Result<Vec<Switch>, LedgerError> {
    let rows = sqlx::query(
        "SELECT t.name AS tenant, w.kind, w.off_at, w.off_by, w.reason, w.on_at, w.on_by
         FROM outward_switch w LEFT JOIN tenant t ON t.id = w.tenant_id WHERE w.on_at IS NULL OR $1 ORDER BY w.id DESC LIMIT 1000",
    )
    .bind(all)
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Switch {
                tenant: row.try_get("tenant")?,
                kind: row.try_get("kind")?,
                off_at: row.try_get("off_at")?,
                off_by: row.try_get("off_by")?,
                reason: row.try_get("reason")?,
                on_at: row.try_get("on_at")?,
                on_by: row.try_get("on_by")?,
            })
        })
        .collect()
}

/// Lets up to [`BATCH`] of a queue's jobs go on whose switches are on and that nobody has paused: they are due as they were before, and the time that they
/// were held does not count towards their deadline. Fewer than that: there are no more now.
///
/// # Errors
/// [`LedgerError`].
pub async fn release(pool: &PgPool, queue: Queue, now: DateTime<Utc>) -> Result<Vec<JobId>, LedgerError> {
    let mut transaction = pool.begin().await?;
    let rows: Vec<Uuid> = sqlx::query_scalar(
        // One probe of the index for each tenant and kind that has jobs here, however many they are.
        "WITH RECURSIVE sorts (tenant_id, kind) AS (
            (SELECT h.tenant_id, h.kind FROM job_held h WHERE h.breaker IS NULL AND h.queue = $1 ORDER BY h.tenant_id, h.kind LIMIT 1)
            UNION ALL
            SELECT n.tenant_id, n.kind FROM sorts s CROSS JOIN LATERAL (
                SELECT h.tenant_id, h.kind FROM job_held h
                WHERE h.breaker IS NULL AND h.queue = $1 AND (h.tenant_id, h.kind) > (s.tenant_id, s.kind) ORDER BY h.tenant_id, h.kind LIMIT 1
            ) n
        ), free AS MATERIALIZED (
            SELECT h.job_id FROM (SELECT * FROM sorts WHERE NOT outward_is_off(tenant_id, kind) AND NOT is_paused(tenant_id, $1, kind)) s CROSS JOIN LATERAL (
                SELECT job_id FROM job_held h WHERE h.breaker IS NULL AND h.queue = $1 AND h.tenant_id = s.tenant_id AND h.kind = s.kind
                ORDER BY h.job_id LIMIT $3 FOR UPDATE SKIP LOCKED
            ) h LIMIT $3
        ), waiting AS MATERIALIZED (
            -- The backlog's row before the state's, as dispatch and cancel take them.
            SELECT w.job_id FROM job_waiting w JOIN free f ON f.job_id = w.job_id WHERE w.run_at = 'infinity' ORDER BY w.job_id FOR UPDATE OF w
        ), gone AS (
            DELETE FROM job_held h USING free f WHERE h.job_id = f.job_id
        ), released AS (
            UPDATE job_state s
            SET reason = 3, changed_at = $2, version = s.version + 1, counted_from = coalesce(s.counted_from, s.run_at) + ($2 - s.changed_at)
            FROM waiting w WHERE s.job_id = w.job_id AND s.state = 0 AND s.reason IN (5, 7)
            RETURNING s.job_id, s.run_at
        ), due AS (
            UPDATE job_waiting w SET run_at = r.run_at, reason = 3 FROM released r WHERE w.job_id = r.job_id
        )
        SELECT job_id FROM released",
    )
    .bind(queue.name())
    .bind(now)
    .bind(BATCH)
    .fetch_all(&mut *transaction)
    .await?;
    super::limit(&mut transaction, rows.clone(), now).await?;
    transaction.commit().await?;
    Ok(rows.into_iter().map(JobId).collect())
}

/// Whether any job waits for a switch.
///
/// # Errors
/// [`LedgerError`].
pub async fn any_held(pool: &PgPool) -> Result<bool, LedgerError> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT FROM job_held WHERE breaker IS NULL)").fetch_one(pool).await?)
}

/// Where counting what is held stops.
pub const COUNTED: i64 = 100_000;

/// How many of a queue's jobs wait for a switch, counted up to [`COUNTED`].
///
/// # Errors
/// [`LedgerError`].
pub async fn held(pool: &PgPool, queue: Queue) -> Result<i64, LedgerError> {
    let count = sqlx::query_scalar("SELECT count(*) FROM (SELECT FROM job_held WHERE breaker IS NULL AND queue = $1 LIMIT $2) h");
    Ok(count.bind(queue.name()).bind(COUNTED).fetch_one(pool).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_stops_what_it_names() {
        let off = |tenant, kind: Option<&str>| Off { tenant, names: kind.map(|kind| vec![kind.to_owned(), "old.name".to_owned()]) };
        assert!(off(None, None).stops(1, "email.send"));
        assert!(off(Some(1), None).stops(1, "email.send") && !off(Some(2), None).stops(1, "email.send"));
        assert!(off(None, Some("email.send")).stops(1, "email.send") && off(None, Some("email.send")).stops(1, "old.name"));
        assert!(!off(None, Some("email.send")).stops(1, "ai.run") && !off(Some(2), Some("email.send")).stops(1, "email.send"));
    }
}
