//! Schedules as people keep them: made, found, listed, changed, paused, removed. All of it runs in the caller's transaction for one
//! tenant.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{FoundSchedule, LedgerError, found, schedule_columns, stored};
use crate::schedule::{Definition, MOST_SCHEDULES};

/// Why a schedule could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The tenant has one of that name.
    #[error("there is a schedule of this name")]
    NameTaken,
    /// The tenant has as many as it may.
    #[error("the tenant has {MOST_SCHEDULES} schedules, which are as many as it may have; delete one")]
    TooMany,
    /// The manifest declares it.
    #[error("the tenant's manifest declares this schedule; change it there")]
    Declared,
    /// There is no such schedule.
    #[error("there is no such schedule")]
    Missing,
}

impl From<sqlx::Error> for ScheduleError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(cause) if cause.constraint() == Some("schedule_tenant_id_name_key") => Self::NameTaken,
            _ => Self::Ledger(error.into()),
        }
    }
}

/// One at a time for a tenant's number of schedules, until the transaction ends.
pub(super) async fn hold_count(connection: &mut PgConnection, tenant: i32) -> Result<i64, LedgerError> {
    // "schedule", so that no other advisory lock is meant.
    sqlx::query("SELECT pg_advisory_xact_lock(hashtext('schedule'), $1)").bind(tenant).execute(&mut *connection).await?;
    Ok(sqlx::query_scalar("SELECT count(*) FROM schedule WHERE tenant_id = $1").bind(tenant).fetch_one(connection).await?)
}

/// A schedule about to be made, found right.
#[derive(Debug, Clone)]
pub struct NewSchedule {
    /// Its id, made by the caller's clock.
    pub id: Uuid,
    /// Whose product.
    pub tenant: i32,
    /// Its name.
    pub name: String,
    /// Whether the manifest declares it.
    pub declared: bool,
    /// What it says.
    pub definition: Definition,
    /// The name of its kind, not a former one.
    pub kind: &'static str,
}

/// Makes a schedule in the caller's transaction.
///
/// # Errors
/// [`ScheduleError`].
pub async fn create(connection: &mut PgConnection, new: &NewSchedule, now: DateTime<Utc>) -> Result<FoundSchedule, ScheduleError> {
    if hold_count(connection, new.tenant).await? >= MOST_SCHEDULES {
        return Err(ScheduleError::TooMany);
    }
    let next = new.definition.timing(now).ok().and_then(|timing| timing.next(now));
    let row = sqlx::query(concat!(
        "INSERT INTO schedule AS s (id, tenant_id, declared, anchor, next_at, created_at, updated_at, name, kind, definition)
         VALUES ($1, $2, $3, $4, $5, $4, $4, $6, $7, $8) RETURNING ",
        schedule_columns!()
    ))
    .bind(new.id)
    .bind(new.tenant)
    .bind(new.declared)
    .bind(now)
    .bind(next)
    .bind(&new.name)
    .bind(new.kind)
    .bind(stored(&new.definition))
    .fetch_one(connection)
    .await?;
    Ok(found(&row)?)
}

/// One schedule of a tenant.
///
/// # Errors
/// [`LedgerError`].
pub async fn find(connection: &mut PgConnection, tenant: i32, id: Uuid) -> Result<Option<FoundSchedule>, LedgerError> {
    let row = sqlx::query(concat!("SELECT ", schedule_columns!(), " FROM schedule s WHERE s.id = $1 AND s.tenant_id = $2"))
        .bind(id)
        .bind(tenant)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(found).transpose()
}

/// One schedule of a tenant, held until the caller's transaction ends.
///
/// # Errors
/// [`ScheduleError::Missing`], [`ScheduleError::Ledger`].
pub async fn hold(connection: &mut PgConnection, tenant: i32, id: Uuid) -> Result<FoundSchedule, ScheduleError> {
    let row = sqlx::query(concat!("SELECT ", schedule_columns!(), " FROM schedule s WHERE s.id = $1 AND s.tenant_id = $2 FOR UPDATE"))
        .bind(id)
        .bind(tenant)
        .fetch_optional(connection)
        .await?;
    Ok(found(&row.ok_or(ScheduleError::Missing)?)?)
}

/// Which schedules a list shows.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this kind's.
    pub kind: Option<String>,
    /// Only the one of this name.
    pub name: Option<String>,
    /// Only those that are paused, or that are not.
    pub paused: Option<bool>,
    /// Only those before this one in the list's order.
    pub after: Option<Uuid>,
}

/// A page of a tenant's schedules, newest first.
///
/// # Errors
/// [`LedgerError`].
pub async fn list(connection: &mut PgConnection, tenant: i32, filter: &Filter, limit: i64) -> Result<Vec<FoundSchedule>, LedgerError> {
    // A tenant has a bounded number of them, so what does not match is passed over.
    let rows = sqlx::query(concat!(
        "SELECT ",
        schedule_columns!(),
        " FROM schedule s WHERE s.tenant_id = $1 AND s.id < $2 AND ($3::text IS NULL OR s.kind = $3) AND ($4::text IS NULL OR s.name = $4)
          AND ($5::boolean IS NULL OR (s.paused_at IS NOT NULL) = $5)
          ORDER BY s.tenant_id DESC, s.id DESC LIMIT $6"
    ))
    .bind(tenant)
    .bind(filter.after.unwrap_or(Uuid::max()))
    .bind(filter.kind.as_deref())
    .bind(filter.name.as_deref())
    .bind(filter.paused)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(found).collect()
}

/// Gives a schedule another name and definition, in the transaction that [holds](hold) it. Its next tick moves where its timing changed.
///
/// # Errors
/// [`ScheduleError`].
pub async fn change(
    connection: &mut PgConnection,
    held: &FoundSchedule,
    name: &str,
    definition: Definition,
    kind: &str,
    now: DateTime<Utc>,
) -> Result<FoundSchedule, ScheduleError> {
    let before = &held.definition;
    let same_timing = (&before.cron, &before.time_zone, before.every_seconds, before.starts_at)
        == (&definition.cron, &definition.time_zone, definition.every_seconds, definition.starts_at);
    let (anchor, next) = if same_timing {
        (held.anchor, held.next_at)
    } else {
        // A new interval counts from the change, as a new schedule would.
        let anew = FoundSchedule { definition: definition.clone(), anchor: now, ..held.clone() };
        (now, anew.coming(now))
    };
    let row = sqlx::query(concat!(
        "UPDATE schedule s SET name = $2, kind = $3, definition = $4, anchor = $5, next_at = $6, updated_at = $7, version = s.version + 1
         WHERE s.id = $1 RETURNING ",
        schedule_columns!()
    ))
    .bind(held.id)
    .bind(name)
    .bind(kind)
    .bind(stored(&definition))
    .bind(anchor)
    .bind(next)
    .bind(now)
    .fetch_one(connection)
    .await?;
    Ok(found(&row)?)
}

/// Removes a schedule with its history; jobs that it made stay.
///
/// # Errors
/// [`LedgerError`].
pub async fn delete(connection: &mut PgConnection, held: &FoundSchedule) -> Result<(), LedgerError> {
    sqlx::query("DELETE FROM schedule WHERE id = $1").bind(held.id).execute(connection).await?;
    Ok(())
}

/// Pauses a schedule (`by` whom) or lets it go on (`None`), in the transaction that [holds](hold) it. What comes due in a pause is not
/// missed: it does not exist. Done again, it changes nothing.
///
/// # Errors
/// [`ScheduleError`].
pub async fn pause(
    connection: &mut PgConnection,
    held: &FoundSchedule,
    by: Option<&str>,
    now: DateTime<Utc>,
) -> Result<FoundSchedule, ScheduleError> {
    if held.paused_at.is_some() == by.is_some() {
        return Ok(held.clone());
    }
    let next = by.map_or_else(|| FoundSchedule { paused_at: None, ..held.clone() }.coming(now), |_| None);
    let row = sqlx::query(concat!(
        "UPDATE schedule s SET paused_at = CASE WHEN $2::text IS NOT NULL THEN $4::timestamptz END, paused_by = $2, next_at = $3,
                               updated_at = $4, version = s.version + 1
         WHERE s.id = $1 RETURNING ",
        schedule_columns!()
    ))
    .bind(held.id)
    .bind(by)
    .bind(next)
    .bind(now)
    .fetch_one(connection)
    .await?;
    Ok(found(&row)?)
}
