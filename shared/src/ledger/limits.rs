//! Limiting keys: how many jobs that share a key may run at a time, and how many may start in a time.
//!
//! A job with a key is admitted before it is dispatched, and holds its place until it is neither queued nor running any more. What
//! must stay true:
//! - never more than the key allows are admitted: they are counted under the lock of the key's row, and a place comes back in the
//!   transaction that ends or puts off its job (`leave_jobs`);
//! - a key at its limit costs nobody anything, however many jobs wait for it: it is looked at when something changed (`look_at`,
//!   set by whoever changed it, in the same transaction), or when its rate allows the next start;
//! - its jobs wait in the backlog, never due, so that no dispatcher comes by them; admitted, they wait for their tenant's turn like any other.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgPool, Row};

use super::LedgerError;
use crate::queue::Queue;

/// Keys of one look.
const KEYS: i64 = 100;

/// What a look at the keys brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admitted {
    /// The queues that have due jobs by it, each once.
    pub queues: Vec<Queue>,
    /// How many jobs were admitted.
    pub jobs: u64,
    /// How many keys were looked at; as many as one look takes, and there may be more.
    pub keys: i64,
}

impl Admitted {
    /// Whether there may be more to do at once.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.keys >= KEYS
    }
}

/// Looks at keys of which something changed, and admits what they allow.
///
/// # Errors
/// [`LedgerError`].
pub async fn admit(pool: &PgPool, now: DateTime<Utc>) -> Result<Admitted, LedgerError> {
    let mut transaction = pool.begin().await?;
    let row = sqlx::query(
        // Emission interval and burst as in GCRA (ITU-T I.371, \"virtual scheduling\"): `next_start` is when the next start is due if they are
        // evenly spread; a start may come so much before that as the burst allows.
        "WITH picked AS MATERIALIZED (
            SELECT k.id, k.running, k.rate_burst, k.rate_seconds / k.rate_jobs AS every,
                   greatest(k.next_start, clock_timestamp()) AS next_start, clock_timestamp() AS at
            FROM limit_key k WHERE k.look_at <= $1 ORDER BY k.look_at LIMIT $2 FOR UPDATE SKIP LOCKED
        ), roomy AS MATERIALIZED (
            SELECT p.*, r.places, r.starts, greatest(0, least(r.places, r.starts)) AS room
            FROM picked p CROSS JOIN LATERAL (
                SELECT CASE WHEN p.running IS NULL THEN 1000
                            ELSE p.running - (SELECT count(*) FROM job_limited l WHERE l.key_id = p.id AND l.admitted) END AS places,
                       CASE WHEN p.every IS NULL THEN 1000
                            ELSE floor(extract(epoch FROM p.at - p.next_start)::float8 / p.every + p.rate_burst + 1e-6) END AS starts
            ) r
        ), chosen AS MATERIALIZED (
            SELECT c.job_id, c.run_at, c.queue, r.id AS key_id
            FROM roomy r CROSS JOIN LATERAL (
                SELECT l.job_id, l.run_at, w.queue
                FROM job_limited l JOIN job_waiting w ON w.job_id = l.job_id
                WHERE l.key_id = r.id AND NOT l.admitted AND l.run_at <= $1 AND w.run_at = 'infinity'
                ORDER BY l.turn_at, l.job_id LIMIT r.room::bigint FOR UPDATE OF l, w SKIP LOCKED
            ) c
        ), admitted AS (
            UPDATE job_limited l SET admitted = true FROM chosen c WHERE l.job_id = c.job_id
        ), due AS (
            UPDATE job_waiting w SET run_at = c.run_at FROM chosen c WHERE w.job_id = c.job_id
        ), counted AS (
            SELECT r.*, (SELECT count(*) FROM chosen c WHERE c.key_id = r.id) AS went,
                   (SELECT min(l.run_at) FROM job_limited l
                    WHERE l.key_id = r.id AND NOT l.admitted AND NOT EXISTS (SELECT FROM chosen c WHERE c.job_id = l.job_id)) AS next_due
            FROM roomy r
        ), looked AS (
            UPDATE limit_key k
            SET next_start = CASE WHEN c.every IS NULL THEN k.next_start ELSE c.next_start + make_interval(secs => c.every * c.went) END,
                look_at = CASE
                    -- Nothing waits, or all places are taken: whoever changes that says so.
                    WHEN c.next_due IS NULL OR c.places <= c.went THEN 'infinity'
                    -- The rate's next start, as far ahead as it is by Postgres' clock.
                    WHEN c.starts <= c.went THEN greatest(c.next_due, $1 + greatest(interval '1 millisecond',
                        c.next_start + make_interval(secs => c.every * (c.went + 1 - c.rate_burst)) - c.at))
                    -- What is due and was not taken is in somebody's hands just now.
                    ELSE greatest(c.next_due, $1 + interval '100 milliseconds')
                END
            FROM counted c WHERE k.id = c.id
        )
        SELECT (SELECT count(*) FROM picked) AS keys, (SELECT count(*) FROM chosen) AS jobs,
               coalesce((SELECT array_agg(DISTINCT queue) FROM chosen), '{}') AS queues",
    )
    .bind(now)
    .bind(KEYS)
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    let queues: Vec<String> = row.try_get("queues")?;
    let jobs: i64 = row.try_get("jobs")?;
    Ok(Admitted {
        queues: queues.iter().filter_map(|queue| Queue::from_name(queue)).collect(),
        jobs: u64::try_from(jobs).unwrap_or_default(),
        keys: row.try_get("keys")?,
    })
}

/// How long until the next key is to be looked at; `None` when none is.
///
/// # Errors
/// [`LedgerError`].
pub async fn next_look(pool: &PgPool, now: DateTime<Utc>) -> Result<Option<Duration>, LedgerError> {
    let at: Option<DateTime<Utc>> = sqlx::query_scalar("SELECT look_at FROM limit_key WHERE look_at < 'infinity' ORDER BY look_at LIMIT 1")
        .fetch_optional(pool)
        .await?;
    Ok(at.map(|at| (at - now).to_std().unwrap_or_default()))
}

/// Forgets up to 1,000 keys that no job has named since then and none has now.
///
/// # Errors
/// [`LedgerError`].
pub async fn tidy(pool: &PgPool, unused_since: DateTime<Utc>) -> Result<u64, LedgerError> {
    let forgotten = sqlx::query(
        "DELETE FROM limit_key k USING (
            SELECT id FROM limit_key u
            WHERE u.used_at < $1 AND u.look_at = 'infinity' AND NOT EXISTS (SELECT FROM job_limited l WHERE l.key_id = u.id)
            LIMIT 1000 FOR UPDATE SKIP LOCKED
         ) u WHERE k.id = u.id",
    )
    .bind(unused_since)
    .execute(pool)
    .await?;
    Ok(forgotten.rows_affected())
}
