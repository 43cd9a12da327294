//! Pages of jobs, newest first, by any filter.
//!
//! What must stay true: whatever is asked for, the rows are found by an index, and no plan of [`list`] is kept.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{FoundJob, found};
use crate::{
    job::{JobId, State},
    ledger::LedgerError,
    queue::Queue,
};

/// Which jobs a list shows. Newest first.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this kind's.
    pub kind: Option<String>,
    /// Only in this state.
    pub state: Option<State>,
    /// Only this owner's.
    pub owner: Option<String>,
    /// Accepted at or after.
    pub created_from: Option<DateTime<Utc>>,
    /// Accepted before.
    pub created_before: Option<DateTime<Utc>>,
    /// Only this queue's.
    pub queue: Option<Queue>,
    /// Only those whose last run failed of this; with [`State::Failed`].
    pub error_code: Option<String>,
    /// Ended at or after; with a state that is a dead letter's.
    pub ended_from: Option<DateTime<Utc>>,
    /// Ended before; likewise.
    pub ended_before: Option<DateTime<Utc>>,
    /// Only those before this job in the list's order: the last of the page before.
    pub after: Option<JobId>,
}

/// What every list filters by: `$1` tenant, `$2` kind, `$3` state, `$4` owner, `$5` lowest id, `$6` id below which, `$7` and `$8`
/// the exact times, `$9` how many, `$10` queue, `$11` error code, `$12` and `$13` when it ended.
macro_rules! list_conditions {
    () => {
        "j.tenant_id = $1 AND ($3::smallint IS NULL OR s.state = $3) AND j.id >= $5 AND j.id < $6 AND j.created_at >= $7 AND j.created_at < $8
         AND ($10::text IS NULL OR j.queue = $10)
         AND ($12::timestamptz IS NULL OR s.finished_at >= $12) AND ($13::timestamptz IS NULL OR s.finished_at < $13)"
    };
    // Asked of the dead letter's own row, so that those which don't match are passed over without their job.
    (dead) => {
        concat!(
            "($2::text IS NULL OR f.kind = $2) AND ($10::text IS NULL OR f.queue = $10)
             AND ($12::timestamptz IS NULL OR f.ended_at >= $12) AND ($13::timestamptz IS NULL OR f.ended_at < $13) AND ",
            list_conditions!()
        )
    };
    (and_any_code) => {
        concat!(list_conditions!(and_kind), " AND $11::text IS NULL")
    };
    (and_kind) => {
        concat!("($2::text IS NULL OR j.kind = $2) AND ", list_conditions!())
    };
}

/// A page of a tenant's jobs, newest first, at most `limit`. Payloads and results are left out: a page of them could be
/// tens of megabytes.
///
/// The way to the rows is chosen by what narrows most: an owner's index, a state's small table, or the index of each kind in each queue, merged.
/// The index is asked for by a range of its rows and by its own order: told `kind = … ORDER BY id`, the planner likes to walk the
/// primary key from its end, past every job of the other kinds; told a range of kinds and one of ids, Postgres reads the kind's part of
/// the index from its beginning, past every page before the one that is asked for. Ranges of ids alone are told beside: they are what the
/// planner knows the size of.
///
/// # Errors
/// [`LedgerError`].
pub async fn list(connection: &mut PgConnection, tenant: i32, filter: &Filter, limit: i64) -> Result<Vec<FoundJob>, LedgerError> {
    let query = if filter.owner.is_some() {
        sqlx::query(concat!(
            "SELECT ",
            job_columns!(listed),
            " FROM job j JOIN job_state s ON s.job_id = j.id
             WHERE j.owner IS NOT NULL AND (j.owner, j.id) >= ($4, $5) AND (j.owner, j.id) < ($4, $6)
               AND ($11::text IS NULL OR EXISTS (SELECT FROM job_unsuccessful f WHERE f.job_id = j.id AND f.error_code = $11)) AND ",
            list_conditions!(and_kind),
            " ORDER BY j.owner DESC, j.id DESC LIMIT $9"
        ))
    } else {
        match filter.state {
            Some(State::Waiting) => sqlx::query(concat!(
                "SELECT ",
                job_columns!(listed),
                " FROM job_waiting f JOIN job j ON j.id = f.job_id JOIN job_state s ON s.job_id = f.job_id
                 WHERE f.tenant_id = $1 AND $4::text IS NULL AND f.job_id >= $5 AND f.job_id < $6 AND ",
                list_conditions!(and_any_code),
                " ORDER BY f.job_id DESC LIMIT $9"
            )),
            Some(State::Queued | State::Running) => sqlx::query(concat!(
                "SELECT ",
                job_columns!(listed),
                " FROM job_dispatched f JOIN job j ON j.id = f.job_id JOIN job_state s ON s.job_id = f.job_id
                 WHERE f.tenant_id = $1 AND $4::text IS NULL AND f.job_id >= $5 AND f.job_id < $6 AND ",
                list_conditions!(and_any_code),
                " ORDER BY f.job_id DESC LIMIT $9"
            )),
            Some(State::Failed | State::Cancelled | State::Expired) if filter.error_code.is_some() => sqlx::query(concat!(
                "SELECT ",
                job_columns!(listed),
                " FROM job_unsuccessful f JOIN job j ON j.id = f.job_id JOIN job_state s ON s.job_id = f.job_id
                 WHERE f.tenant_id = $1 AND (f.state, f.error_code, f.job_id) >= ($3, $11, $5)
                   AND (f.state, f.error_code, f.job_id) < ($3, $11, $6) AND f.job_id >= $5 AND f.job_id < $6 AND $4::text IS NULL AND ",
                list_conditions!(dead),
                " ORDER BY f.tenant_id DESC, f.state DESC, f.error_code DESC, f.job_id DESC LIMIT $9"
            )),
            Some(State::Failed | State::Cancelled | State::Expired) => sqlx::query(concat!(
                "SELECT ",
                job_columns!(listed),
                " FROM job_unsuccessful f JOIN job j ON j.id = f.job_id JOIN job_state s ON s.job_id = f.job_id
                 WHERE f.tenant_id = $1 AND (f.state, f.job_id) >= ($3, $5) AND (f.state, f.job_id) < ($3, $6)
                   AND f.job_id >= $5 AND f.job_id < $6 AND $4::text IS NULL AND $11::text IS NULL AND ",
                list_conditions!(dead),
                " ORDER BY f.tenant_id DESC, f.state DESC, f.job_id DESC LIMIT $9"
            )),
            Some(State::Succeeded) | None => sqlx::query(concat!(
                "WITH RECURSIVE sorts (kind, queue) AS (
                    (SELECT kind, queue FROM job WHERE tenant_id = $1 ORDER BY kind, queue LIMIT 1)
                    UNION ALL
                    SELECT n.kind, n.queue FROM sorts k CROSS JOIN LATERAL (
                        SELECT j.kind, j.queue FROM job j
                        WHERE j.tenant_id = $1 AND (j.kind, j.queue) > (k.kind, k.queue) ORDER BY j.kind, j.queue LIMIT 1
                    ) n
                 )
                 SELECT p.* FROM sorts k CROSS JOIN LATERAL (
                    SELECT ",
                job_columns!(listed),
                "   FROM job j JOIN job_state s ON s.job_id = j.id
                    WHERE (j.kind, j.queue, j.id) >= (k.kind, k.queue, $5) AND (j.kind, j.queue, j.id) < (k.kind, k.queue, $6) AND ",
                list_conditions!(),
                "   ORDER BY j.kind DESC, j.queue DESC, j.id DESC LIMIT $9
                 ) p WHERE ($2::text IS NULL OR k.kind = $2) AND ($10::text IS NULL OR k.queue = $10) AND $4::text IS NULL AND $11::text IS NULL ORDER BY p.id DESC LIMIT $9"
            )),
        }
    };
    let from = filter.created_from.unwrap_or(DateTime::<Utc>::MIN_UTC);
    let before = filter.created_before.unwrap_or(DateTime::<Utc>::MAX_UTC);
    let below = first_id_after(before).min(filter.after.map_or(Uuid::max(), |id| id.0));
    // Postgres' timestamps end before chrono's.
    let earliest = from.max(DateTime::UNIX_EPOCH);
    let latest = before.min(DateTime::from_timestamp(253_402_300_799, 0).unwrap_or(DateTime::<Utc>::MAX_UTC));
    let rows = query
        // Kept, the statement would get one plan for all that may be asked, after a few uses; see `shared/tests/life/plans.rs`.
        .persistent(false)
        .bind(tenant)
        .bind(filter.kind.as_deref())
        .bind(filter.state.map(State::code))
        .bind(filter.owner.as_deref())
        .bind(first_id(from.checked_sub_signed(LONGEST_ACCEPTANCE).unwrap_or(from)))
        .bind(below)
        .bind(earliest)
        .bind(latest)
        .bind(limit)
        .bind(filter.queue.map(Queue::name))
        .bind(filter.error_code.as_deref())
        .bind(filter.ended_from)
        .bind(filter.ended_before)
        .fetch_all(connection)
        .await?;
    rows.iter().map(found).collect()
}

/// A page of a batch's jobs, newest first, at most `limit`; only those in a state where one is given.
///
/// # Errors
/// [`LedgerError`].
pub async fn of_batch(
    connection: &mut PgConnection,
    tenant: i32,
    batch: Uuid,
    state: Option<State>,
    after: Option<JobId>,
    limit: i64,
) -> Result<Vec<FoundJob>, LedgerError> {
    let rows = sqlx::query(concat!(
        "SELECT ",
        job_columns!(listed),
        " FROM batch_member m JOIN job j ON j.id = m.job_id JOIN job_state s ON s.job_id = m.job_id
         WHERE m.batch_id = $1 AND m.tenant_id = $2 AND m.job_id < $3 AND ($4::smallint IS NULL OR s.state = $4)
         ORDER BY m.job_id DESC LIMIT $5"
    ))
    .bind(batch)
    .bind(tenant)
    .bind(after.map_or(Uuid::max(), |job| job.0))
    .bind(state.map(State::code))
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(found).collect()
}

/// The longest between the making of a job's id and its acceptance, generously: a request that takes longer has been given
/// up. A list from a time on looks for ids from that much before it.
const LONGEST_ACCEPTANCE: TimeDelta = TimeDelta::minutes(2);

/// The lowest `UUIDv7` of a time's millisecond (RFC 9562 §5.7: 48 bits of Unix milliseconds lead).
pub(in crate::ledger) fn first_id(time: DateTime<Utc>) -> Uuid {
    let millis = u64::try_from(time.timestamp_millis()).unwrap_or(0).min((1 << 48) - 1);
    Uuid::from_u128(u128::from(millis) << 80)
}

/// Higher than every id of a time's millisecond.
pub(in crate::ledger) fn first_id_after(time: DateTime<Utc>) -> Uuid {
    let millis = u64::try_from(time.timestamp_millis()).unwrap_or(0).saturating_add(1);
    if millis >= 1 << 48 { Uuid::max() } else { Uuid::from_u128(u128::from(millis) << 80) }
}
