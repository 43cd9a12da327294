//! Finished history that has had its time goes, page by page, oldest first; a tombstone tells its owner.
//!
//! What must stay true: only what has ended goes, and as a whole (the SQL function `bury_jobs`); a job whose file still
//! stands is kept until that is gone; nobody waits for a row that this holds, and this waits for nobody's; each statement reads
//! and removes a bounded number of jobs.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgPool, Row};
use uuid::Uuid;

use super::{
    LedgerError,
    find::{first_id, first_id_after},
};
use crate::{
    job::JobId,
    tenant::{Keep, Retention},
};

/// Jobs that one statement looks at, and removes at most.
pub const PAGE: i64 = 500;

/// Jobs that one statement counts.
const COUNTED_PAGE: i64 = 5_000;

/// What ended within this time stays, whatever the counts say: whoever waits for it should come by it.
pub const STAYS_FOR: TimeDelta = TimeDelta::hours(1);

/// How long a job's owner is told that it is gone, rather than that there is no such job.
pub const TOMBSTONES_STAND_FOR: TimeDelta = TimeDelta::days(90);

/// The tenants and kinds that have jobs.
///
/// # Errors
/// [`LedgerError`].
pub async fn kinds(pool: &PgPool) -> Result<Vec<(i32, String)>, LedgerError> {
    let rows = sqlx::query_as(
        "WITH RECURSIVE sorts (tenant_id, kind) AS (
            (SELECT j.tenant_id, j.kind FROM job j ORDER BY j.tenant_id, j.kind LIMIT 1)
            UNION ALL
            SELECT n.tenant_id, n.kind FROM sorts s CROSS JOIN LATERAL (
                SELECT j.tenant_id, j.kind FROM job j WHERE (j.tenant_id, j.kind) > (s.tenant_id, s.kind) ORDER BY j.tenant_id, j.kind LIMIT 1
            ) n
         )
         SELECT tenant_id, kind FROM sorts",
    );
    Ok(rows.fetch_all(pool).await?)
}

/// What of a tenant's kind has had its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    succeeded: Side,
    unsuccessful: Side,
    now: DateTime<Utc>,
}

/// Of the succeeded, or of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Side {
    /// What ended before.
    ended_before: DateTime<Utc>,
    /// This one and older ones are more than are kept.
    over_count: Option<Uuid>,
}

impl Cut {
    /// Finds what is beyond a retention, counting as far as it must.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn find(pool: &PgPool, tenant: i32, kind: &str, retention: Retention, now: DateTime<Utc>) -> Result<Self, LedgerError> {
        let side = |keep: Keep, over_count| Side { ended_before: now - TimeDelta::days(i64::from(keep.days)), over_count };
        let Retention { succeeded, unsuccessful } = retention;
        let over = match succeeded.count {
            Some(count) => over_count(pool, tenant, kind, Class::Succeeded, count).await?,
            None => None,
        };
        let unsuccessful_over = match unsuccessful.count {
            Some(count) => over_count(pool, tenant, kind, Class::Unsuccessful, count).await?,
            None => None,
        };
        Ok(Self { succeeded: side(succeeded, over), unsuccessful: side(unsuccessful, unsuccessful_over), now })
    }

    /// Above every id of what has had its time: a job that ended before a moment was made before it.
    fn below(&self) -> Uuid {
        let of = |side: Side| side.over_count.unwrap_or(Uuid::nil()).max(first_id_after(side.ended_before));
        // The one that is over the count is among those that go.
        let below = of(self.succeeded).max(of(self.unsuccessful));
        Uuid::from_u128(below.as_u128().saturating_add(1)).min(first_id(self.now - STAYS_FOR))
    }
}

#[derive(Clone, Copy)]
enum Class {
    Succeeded,
    Unsuccessful,
}

/// The newest of a class that is more than `count`; `None` where there are not so many.
async fn over_count(pool: &PgPool, tenant: i32, kind: &str, class: Class, count: u32) -> Result<Option<Uuid>, LedgerError> {
    // The index has all that is asked for; for anything else the planner likes to walk the primary key (`find::list`). By equality: a
    // range of kinds has no end at an id, and the whole of the kind would be read.
    let page = match class {
        Class::Succeeded => {
            "WITH page AS MATERIALIZED (
                SELECT j.id FROM queues_of($1, $2) AS q (queue) CROSS JOIN LATERAL (
                    SELECT id FROM job WHERE tenant_id = $1 AND kind = $2 AND queue = q.queue AND id < $3 ORDER BY id DESC LIMIT $4
                ) j ORDER BY j.id DESC LIMIT $4
             )
             SELECT p.id, s.state = 3 AS counts FROM page p JOIN job_state s ON s.job_id = p.id ORDER BY p.id DESC"
        }
        Class::Unsuccessful => {
            "SELECT job_id AS id, true AS counts FROM job_unsuccessful
             WHERE tenant_id = $1 AND kind >= $2 AND (kind, job_id) < ($2, $3) ORDER BY tenant_id DESC, kind DESC, job_id DESC LIMIT $4"
        }
    };
    let (mut below, mut left) = (Uuid::max(), i64::from(count));
    loop {
        let rows: Vec<(Uuid, bool)> = sqlx::query_as(page).bind(tenant).bind(kind).bind(below).bind(COUNTED_PAGE).fetch_all(pool).await?;
        let Some((last, _)) = rows.last() else { return Ok(None) };
        below = *last;
        for (id, counts) in rows {
            if !counts {
                continue;
            }
            if left == 0 {
                return Ok(Some(id));
            }
            left -= 1;
        }
    }
}

/// What a page brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    /// Jobs that are gone.
    pub gone: u64,
    /// Where the next page begins; `None` at the end.
    pub next: Option<JobId>,
}

/// Looks at the next [`PAGE`] jobs of a tenant's kind after `after`, oldest first, and removes what has had its time.
///
/// # Errors
/// [`LedgerError`].
pub async fn prune(pool: &PgPool, tenant: i32, kind: &str, cut: &Cut, after: Option<JobId>) -> Result<Pruned, LedgerError> {
    let row = sqlx::query(
        "WITH page AS MATERIALIZED (
            SELECT j.id FROM queues_of($1, $2) AS q (queue) CROSS JOIN LATERAL (
                SELECT id FROM job WHERE tenant_id = $1 AND kind = $2 AND queue = q.queue AND id > $3 AND id < $4 ORDER BY id LIMIT $5
            ) j ORDER BY j.id LIMIT $5
         )
         SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM page) AS looked_at,
                (SELECT count(*) FROM bury_jobs($1, ARRAY (
                    SELECT p.id FROM page p JOIN job_state s ON s.job_id = p.id
                    WHERE s.finished_at < $6
                      AND CASE s.state WHEN 3 THEN s.finished_at < $7 OR p.id <= $8
                          ELSE s.state IN (4, 5, 6) AND (s.finished_at < $9 OR p.id <= $10) END
                ), false, $11)) AS gone",
    )
    .bind(tenant)
    .bind(kind)
    .bind(after.map_or(Uuid::nil(), |after| after.0))
    .bind(cut.below())
    .bind(PAGE)
    .bind(cut.now - STAYS_FOR)
    .bind(cut.succeeded.ended_before)
    .bind(cut.succeeded.over_count.unwrap_or(Uuid::nil()))
    .bind(cut.unsuccessful.ended_before)
    .bind(cut.unsuccessful.over_count.unwrap_or(Uuid::nil()))
    .bind(cut.now)
    .fetch_one(pool)
    .await?;
    let (last, looked_at, gone): (Option<Uuid>, i64, i64) = (row.try_get("last")?, row.try_get("looked_at")?, row.try_get("gone")?);
    let next = last.filter(|_| looked_at == PAGE).map(JobId);
    Ok(Pruned { gone: u64::try_from(gone).unwrap_or(0), next })
}

/// Removes tombstones that have stood long enough, up to 5,000.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget_tombstones(pool: &PgPool, now: DateTime<Utc>) -> Result<u64, LedgerError> {
    let forgotten = sqlx::query(
        "DELETE FROM job_tombstone t
         USING (SELECT job_id FROM job_tombstone WHERE gone_at < $1 ORDER BY gone_at LIMIT 5000 FOR UPDATE SKIP LOCKED) old
         WHERE t.job_id = old.job_id",
    );
    Ok(forgotten.bind(now - TOMBSTONES_STAND_FOR).execute(pool).await?.rows_affected())
}
