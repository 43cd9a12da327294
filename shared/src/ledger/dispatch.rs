//! Step 3, dispatch: due jobs leave the backlog for their queue's stream, as many as the window has room for. Every replica
//! may do it at once: each takes rows that nobody else holds.
//!
//! Tenants take turns. What must stay true: however many jobs a tenant has waiting, it gets the share that another gets, and who looks
//! reads only the rows that it takes and one probe of an index for each tenant that has any.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{PgExecutor, PgPool, Row};

use super::LedgerError;
use crate::{
    job::{JobId, Priority},
    queue::{Queue, keys::Lane, push::Handover},
};

/// Rows of one statement: bounds a transaction, not a round.
pub const BATCH: usize = 1_000;

/// Tenants that have their turn in one statement; the next one goes on behind them.
pub const TURNS: usize = 200;

/// How many of a tenant's jobs may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// The tenant.
    pub tenant: i32,
    /// Its jobs, at most.
    pub jobs: usize,
}

/// A priority of a queue's backlog, and whose turn was the last of it (-1 for nobody's).
pub type After = (Priority, i32);

/// The tenants with due jobs in a queue's backlog, priority by priority as they are asked for, in the order of their turns: up to [`TURNS`]
/// that come behind the last one, and then from the first one on.
///
/// # Errors
/// [`LedgerError`].
pub async fn turns<const N: usize>(
    executor: impl PgExecutor<'_>,
    queue: Queue,
    now: DateTime<Utc>,
    after: [After; N],
) -> Result<[Vec<i32>; N], LedgerError> {
    // From tenant to tenant by one probe each, past all that one of them has; and no further than as many as are asked for. None of the
    // probes is an EXISTS: where a plan takes that for a join, all that is due is read.
    let rows = sqlx::query(
        "SELECT p.place, t.tenant_id
         FROM unnest($2::smallint[], $3::integer[]) WITH ORDINALITY AS p (priority, after, place)
         CROSS JOIN (VALUES (0), (1)) AS lap (lap)
         CROSS JOIN LATERAL (
            WITH RECURSIVE tenants (tenant_id) AS (
                (SELECT w.tenant_id FROM job_waiting w
                 WHERE w.queue = $1 AND w.priority = p.priority AND w.tenant_id > CASE lap WHEN 0 THEN p.after ELSE -1 END
                 ORDER BY w.tenant_id LIMIT 1)
                UNION ALL
                SELECT n.tenant_id FROM tenants t CROSS JOIN LATERAL (
                    SELECT w.tenant_id FROM job_waiting w WHERE w.queue = $1 AND w.priority = p.priority AND w.tenant_id > t.tenant_id
                    ORDER BY w.tenant_id LIMIT 1
                ) n
            )
            SELECT t.tenant_id FROM tenants t CROSS JOIN LATERAL (
                SELECT FROM job_waiting w WHERE w.queue = $1 AND w.priority = p.priority AND w.tenant_id = t.tenant_id AND w.run_at <= $4
                ORDER BY w.run_at LIMIT 1
            ) due
            WHERE lap = 0 OR t.tenant_id <= p.after
            LIMIT $5
         ) t
         WHERE lap = 0 OR p.after >= 0
         ORDER BY p.place, lap, t.tenant_id",
    )
    .bind(queue.name())
    .bind(after.map(|(priority, _)| priority.code()))
    .bind(after.map(|(_, tenant)| tenant))
    .bind(now)
    .bind(i64::try_from(TURNS).unwrap_or(i64::MAX))
    .fetch_all(executor)
    .await?;
    let mut turns = [const { Vec::new() }; N];
    for row in rows {
        let place = usize::try_from(row.try_get::<i64, _>("place")?).unwrap_or_default();
        if let Some(tenants) = place.checked_sub(1).and_then(|place| turns.get_mut(place))
            && tenants.len() < TURNS
        {
            tenants.push(row.try_get("tenant_id")?);
        }
    }
    Ok(turns)
}

/// Divides room among tenants: as evenly as it goes, the first ones one more, and none more than there is room for.
#[must_use]
pub fn divide(room: usize, tenants: &[i32]) -> Vec<Turn> {
    let (each, over) = (room / tenants.len().max(1), room % tenants.len().max(1));
    let jobs = |place: usize| each + usize::from(place < over);
    tenants.iter().enumerate().map(|(place, tenant)| Turn { tenant: *tenant, jobs: jobs(place) }).filter(|turn| turn.jobs > 0).collect()
}

/// What one look at a queue's backlog brought.
#[derive(Debug, Default)]
pub struct Dispatched {
    /// Jobs that are queued now and must be pushed.
    pub handovers: Vec<Handover>,
    /// Jobs whose `start_by` had passed: expired now.
    pub expired: Vec<JobId>,
}

/// Moves due jobs of a priority from a queue's backlog to `queued`: of each tenant as many as its turn allows, oldest due time
/// first.
///
/// # Errors
/// [`LedgerError`].
pub async fn dispatch(
    pool: &PgPool,
    queue: Queue,
    priority: Priority,
    now: DateTime<Utc>,
    turns: &[Turn],
) -> Result<Dispatched, LedgerError> {
    let mut transaction = pool.begin().await?;
    let rows = sqlx::query(
        "WITH due AS MATERIALIZED (
            SELECT d.place FROM unnest($3::integer[], $4::bigint[]) AS turn (tenant_id, jobs) CROSS JOIN LATERAL (
                SELECT w.ctid AS place FROM job_waiting w
                WHERE w.queue = $1 AND w.priority = $5 AND w.tenant_id = turn.tenant_id AND w.run_at <= $2
                ORDER BY w.run_at, w.job_id LIMIT turn.jobs FOR UPDATE SKIP LOCKED
            ) d
        ), taken AS (
            -- A row that is locked stays where it is.
            DELETE FROM job_waiting w USING due WHERE w.ctid = due.place RETURNING w.job_id, w.tenant_id, w.priority, w.run_at
        ), moved AS (
            UPDATE job_state s
            SET state = CASE WHEN j.start_by < $2 THEN 6 ELSE 1 END,
                finished_at = CASE WHEN j.start_by < $2 THEN $2 END,
                reason = 0, changed_at = $2, version = s.version + 1
            FROM taken t JOIN job j ON j.id = ANY (ARRAY[t.job_id])
            WHERE s.job_id = ANY (ARRAY[t.job_id]) AND s.state = 0
            RETURNING s.job_id, s.state, t.tenant_id, t.priority, t.run_at
        ), dispatched AS (
            INSERT INTO job_dispatched (job_id, tenant_id, dispatched_at, priority, queue)
            SELECT job_id, tenant_id, now(), priority, $1 FROM moved WHERE state = 1
        ), unsuccessful AS (
            INSERT INTO job_unsuccessful (job_id, tenant_id, state, kind, queue, ended_at)
            SELECT m.job_id, m.tenant_id, m.state, j.kind, $1, $2 FROM moved m JOIN job j ON j.id = ANY (ARRAY[m.job_id]) WHERE m.state = 6
        )
        SELECT job_id, tenant_id, run_at, state FROM moved",
    )
    .bind(queue.name())
    .bind(now)
    .bind(turns.iter().map(|turn| turn.tenant).collect::<Vec<_>>())
    .bind(turns.iter().map(|turn| i64::try_from(turn.jobs).unwrap_or(0)).collect::<Vec<_>>())
    .bind(priority.code())
    .fetch_all(&mut *transaction)
    .await?;

    let mut dispatched = Dispatched::default();
    let mut by_tenant: BTreeMap<i32, Vec<(DateTime<Utc>, JobId)>> = BTreeMap::new();
    for row in rows {
        let job = JobId(row.try_get("job_id")?);
        let state: i16 = row.try_get("state")?;
        if state == 1 {
            by_tenant.entry(row.try_get("tenant_id")?).or_default().push((row.try_get("run_at")?, job));
        } else {
            dispatched.expired.push(job);
        }
    }
    dispatched.handovers = in_turns(by_tenant).into_iter().map(|job| Handover { job, queue, lane: Lane::of(priority) }).collect();
    super::leave_unrun(&mut transaction, dispatched.expired.iter().map(|job| job.0).collect(), now).await?;
    transaction.commit().await?;
    Ok(dispatched)
}

/// One of each tenant's at a time, oldest due time first: in a lane nobody's turn is behind somebody else's whole batch.
fn in_turns(by_tenant: BTreeMap<i32, Vec<(DateTime<Utc>, JobId)>>) -> Vec<JobId> {
    let mut placed: Vec<(usize, i32, JobId)> = Vec::with_capacity(by_tenant.values().map(Vec::len).sum());
    for (tenant, mut jobs) in by_tenant {
        jobs.sort_unstable();
        placed.extend(jobs.into_iter().enumerate().map(|(place, (_, job))| (place, tenant, job)));
    }
    placed.sort_unstable();
    placed.into_iter().map(|(.., job)| job).collect()
}

/// How long until a queue's next waiting job is due: zero when one is, `None` when none waits.
///
/// # Errors
/// [`LedgerError`].
pub async fn next_due(pool: &PgPool, queue: Queue, now: DateTime<Utc>) -> Result<Option<Duration>, LedgerError> {
    let due: Option<DateTime<Utc>> =
        sqlx::query_scalar("SELECT run_at FROM job_waiting WHERE queue = $1 AND run_at < 'infinity' ORDER BY run_at LIMIT 1")
            .bind(queue.name())
            .fetch_optional(pool)
            .await?;
    Ok(due.map(|due| (due - now).to_std().unwrap_or_default()))
}

/// A queue's backlog, in figures.
#[derive(Debug, Clone, Copy, Default)]
pub struct Backlog {
    /// Jobs that wait, due or not; counted up to [`COUNTED`].
    pub waiting: i64,
    /// How long the oldest due job has been due.
    pub oldest_due: Duration,
}

/// Where counting a backlog stops.
pub const COUNTED: i64 = 100_000;

/// Takes a queue's figures.
///
/// # Errors
/// [`LedgerError`].
pub async fn backlog(pool: &PgPool, queue: Queue, now: DateTime<Utc>) -> Result<Backlog, LedgerError> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM (SELECT FROM job_waiting WHERE queue = $1 LIMIT $2) w) AS waiting,
                (SELECT run_at FROM job_waiting WHERE queue = $1 AND run_at < 'infinity' ORDER BY run_at LIMIT 1) AS oldest",
    )
    .bind(queue.name())
    .bind(COUNTED)
    .fetch_one(pool)
    .await?;
    let oldest: Option<DateTime<Utc>> = row.try_get("oldest")?;
    let oldest_due = oldest.and_then(|oldest| (now - oldest).to_std().ok()).unwrap_or_default();
    Ok(Backlog { waiting: row.try_get("waiting")?, oldest_due })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_divided_evenly_and_used_up() {
        let tenants: Vec<i32> = (1..=7).collect();
        for room in 0..100 {
            let turns = divide(room, &tenants);
            assert_eq!(turns.iter().map(|turn| turn.jobs).sum::<usize>(), room);
            let jobs = || turns.iter().map(|turn| turn.jobs);
            assert!(jobs().max().unwrap_or(0) - jobs().min().unwrap_or(0) <= 1, "{turns:?}");
        }
        assert!(divide(10, &[]).is_empty());
    }

    #[test]
    fn a_batch_goes_in_turns() {
        let (at, job) = (DateTime::UNIX_EPOCH, |number| JobId(uuid::Uuid::from_u128(number)));
        let mut by_tenant = BTreeMap::new();
        by_tenant.insert(1, (0..4).rev().map(|number| (at, job(number))).collect());
        by_tenant.insert(2, vec![(at, job(10)), (at, job(11))]);
        assert_eq!(in_turns(by_tenant), [0, 10, 1, 11, 2, 3].map(job));
    }
}
