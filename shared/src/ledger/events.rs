//! Events of products: taken once each, kept by day, and counted in the transaction that takes them.
//!
//! What must stay true:
//! - an id counts once, whichever process it comes to and however often: its row in `event_seen` is unique, and only events whose row this
//!   transaction made are kept and counted. Ids are remembered from the Monday of their arrival to the end of the next week, so for
//!   [`REMEMBERED`] at least;
//! - also where the week changes: within [`OVERLAP`] of that an id is written to the old week too, where it meets whoever still writes
//!   there. Clocks of processes may differ by that much;
//! - an event and what it adds to metrics are one transaction: both or neither;
//! - of a user who is being erased nothing is taken.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::digest;
use chrono::{DateTime, Datelike, Days, NaiveDate, TimeDelta, Utc};
use serde_json::{Map, Value};
use sqlx::{PgConnection, PgExecutor, PgPool};
use uuid::{Builder, Uuid};

use super::{LedgerError, feeds, rollups};
use crate::{
    analytics::EventFacts,
    tenant::{Metric, lookup},
};

/// For how long an id is remembered at least.
pub const REMEMBERED: TimeDelta = TimeDelta::days(7);

/// How long after a week's end ids are written to both.
const OVERLAP: TimeDelta = TimeDelta::minutes(10);

/// The most that an event's time may be ahead of its arrival: clocks differ. It then counts as of its arrival.
pub const AHEAD: TimeDelta = TimeDelta::minutes(10);

/// SQLSTATE of a row that no partition takes.
const NO_PARTITION: &str = "23514";

/// An event, about to be taken.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    /// Its id, the product's.
    pub id: String,
    /// Its type.
    pub sort: String,
    /// Whose it is.
    pub user: Option<String>,
    /// When it happened.
    pub time: DateTime<Utc>,
    /// What it says.
    pub properties: Map<String, Value>,
}

impl NewEvent {
    /// By what it is known: its id if that is a UUID in its usual form, in small letters (RFC 9562 §4), else one made of its hash. (Ids that
    /// grow with time are then found and written beside each other, which hashes are not.) Texts that differ are different ids.
    fn key(&self) -> Uuid {
        if let Ok(id) = Uuid::try_parse(&self.id)
            && *id.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == *self.id
        {
            return id;
        }
        let mut bytes = [0; 16];
        let hash = digest::digest(&digest::SHA256, self.id.as_bytes());
        bytes.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
        Builder::from_custom_bytes(bytes).into_uuid()
    }

    /// What metrics ask of it.
    #[must_use]
    pub fn facts(&self) -> EventFacts<'_> {
        EventFacts { sort: &self.sort, user: self.user.as_deref(), properties: &self.properties }
    }
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is kept and counted.
    Taken,
    /// It was before.
    Duplicate,
    /// Its user is being erased.
    UserBeingErased,
}

/// Partitions that are known to be there. One for a process.
#[derive(Debug, Default)]
pub struct Prepared {
    known: Mutex<HashSet<(bool, NaiveDate)>>,
}

impl Prepared {
    /// Sees to it that days and weeks have their partitions.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn prepare(&self, pool: &PgPool, days: &BTreeSet<NaiveDate>, weeks: &BTreeSet<NaiveDate>) -> Result<(), LedgerError> {
        let missing = |is_week: bool, all: &BTreeSet<NaiveDate>| {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().copied().filter(|day| !known.contains(&(is_week, *day))).collect::<Vec<_>>()
        };
        let (days, weeks) = (missing(false, days), missing(true, weeks));
        if days.is_empty() && weeks.is_empty() {
            return Ok(());
        }
        sqlx::query("SELECT prepare_events($1, $2)").bind(&days).bind(&weeks).execute(pool).await?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(days.into_iter().map(|day| (false, day)).chain(weeks.into_iter().map(|week| (true, week))));
        Ok(())
    }

    /// Forgets what is known: something was dropped.
    fn forget(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// The Monday of a moment's week, in UTC.
#[must_use]
pub fn week_of(now: DateTime<Utc>) -> NaiveDate {
    let day = now.date_naive();
    day.checked_sub_days(Days::new(u64::from(day.weekday().num_days_from_monday()))).unwrap_or(day)
}

/// Takes events of one tenant, in one transaction; answers what became of each. When it returns they are durable.
///
/// # Errors
/// [`LedgerError`]: none was taken, unless the answer to the commit was lost; sending them again is harmless.
pub async fn take(
    pool: &PgPool,
    prepared: &Prepared,
    tenant: i32,
    metrics: &[&Metric],
    events: &[NewEvent],
    now: DateTime<Utc>,
) -> Result<Vec<Outcome>, LedgerError> {
    match take_once(pool, prepared, tenant, metrics, events, now).await {
        // A partition that was there is gone: days that were over are kept longer again.
        Err(LedgerError::Refused(sqlx::Error::Database(error))) if error.code().as_deref() == Some(NO_PARTITION) => {
            prepared.forget();
            take_once(pool, prepared, tenant, metrics, events, now).await
        }
        taken => taken,
    }
}

async fn take_once(
    pool: &PgPool,
    prepared: &Prepared,
    tenant: i32,
    metrics: &[&Metric],
    events: &[NewEvent],
    now: DateTime<Utc>,
) -> Result<Vec<Outcome>, LedgerError> {
    let week = week_of(now);
    let last_week = week - TimeDelta::days(7);
    let days = events.iter().map(|event| event.time.date_naive()).collect();
    prepared.prepare(pool, &days, &BTreeSet::from([last_week, week])).await?;
    let mut outcomes = vec![Outcome::Duplicate; events.len()];
    let mut transaction = lookup(pool, tenant).await?;
    let erased = erased(&mut transaction, tenant, events).await?;
    let mut first: HashMap<Uuid, usize> = HashMap::with_capacity(events.len());
    for ((index, event), outcome) in events.iter().enumerate().zip(&mut outcomes) {
        if event.user.as_ref().is_some_and(|user| erased.contains(user)) {
            *outcome = Outcome::UserBeingErased;
        } else {
            first.entry(event.key()).or_insert(index);
        }
    }
    let mut keys: Vec<Uuid> = first.keys().copied().collect();
    // In one order, so that two who bring the same ids wait for each other and not in a circle.
    keys.sort_unstable();
    let is_overlap = now.date_naive() == week && now - week.and_time(chrono::NaiveTime::MIN).and_utc() < OVERLAP;
    let keys = if is_overlap {
        let old = see(&mut transaction, tenant, &keys, last_week, last_week - TimeDelta::days(7)).await?;
        see(&mut transaction, tenant, &old, week, week).await?
    } else {
        see(&mut transaction, tenant, &keys, week, last_week).await?
    };
    let mut taken: Vec<(usize, &NewEvent)> =
        keys.iter().filter_map(|key| first.get(key)).filter_map(|index| Some((*index, events.get(*index)?))).collect();
    // As they came, so that neighbours in time are neighbours on disk.
    taken.sort_unstable_by_key(|(index, _)| *index);
    for (index, _) in &taken {
        if let Some(outcome) = outcomes.get_mut(*index) {
            *outcome = Outcome::Taken;
        }
    }
    let taken: Vec<&NewEvent> = taken.into_iter().map(|(_, event)| event).collect();
    if !taken.is_empty() {
        keep(&mut transaction, tenant, &taken, now).await?;
        rollups::add(&mut transaction, tenant, metrics, &taken, now).await?;
    }
    transaction.commit().await?;
    Ok(outcomes)
}

/// Which of their users are being erased. What is asked for later waits for this transaction.
async fn erased(connection: &mut PgConnection, tenant: i32, events: &[NewEvent]) -> Result<HashSet<String>, LedgerError> {
    let users: BTreeSet<&str> = events.iter().filter_map(|event| event.user.as_deref()).collect();
    if users.is_empty() {
        return Ok(HashSet::new());
    }
    feeds::hold(connection, tenant, feeds::Hold::Among).await?;
    let users: Vec<&str> = users.into_iter().collect();
    let erased: Vec<String> = sqlx::query_scalar("SELECT user_id FROM erasure WHERE tenant_id = $1 AND user_id = ANY ($2)")
        .bind(tenant)
        .bind(users)
        .fetch_all(connection)
        .await?;
    Ok(erased.into_iter().collect())
}

/// Notes ids in a week's partition; answers those that were in neither that nor the week before.
async fn see(
    connection: &mut PgConnection,
    tenant: i32,
    ids: &[Uuid],
    week: NaiveDate,
    before: NaiveDate,
) -> Result<Vec<Uuid>, LedgerError> {
    let seen = sqlx::query_scalar(
        "INSERT INTO event_seen (tenant_id, id, week)
         SELECT $1, u.id, $3 FROM unnest($2::uuid[]) AS u (id)
         WHERE $4 = $3 OR NOT EXISTS (SELECT FROM event_seen s WHERE s.tenant_id = $1 AND s.id = u.id AND s.week = $4)
         ON CONFLICT DO NOTHING RETURNING id",
    );
    Ok(seen.bind(tenant).bind(ids).bind(week).bind(before).fetch_all(connection).await?)
}

async fn keep(connection: &mut PgConnection, tenant: i32, events: &[&NewEvent], now: DateTime<Utc>) -> Result<(), LedgerError> {
    let column = |of: fn(&NewEvent) -> &str| events.iter().map(|event| of(event)).collect::<Vec<_>>();
    // A map of texts to values that were read from JSON: there is nothing in it that is none.
    let properties: Vec<String> = events.iter().map(|event| serde_json::to_string(&event.properties).unwrap_or_default()).collect();
    sqlx::query(
        "INSERT INTO event (tenant_id, id, type, user_id, time, taken_at, properties)
         SELECT $1, e.id, e.type, e.user_id, e.time, $2, e.properties::jsonb
         FROM unnest($3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[]) AS e (id, type, user_id, time, properties)",
    )
    .bind(tenant)
    .bind(now)
    .bind(column(|event| &event.id))
    .bind(column(|event| &event.sort))
    .bind(events.iter().map(|event| event.user.as_deref()).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.time).collect::<Vec<_>>())
    .bind(properties)
    .execute(connection)
    .await?;
    Ok(())
}

/// All tenants: what any of them keeps is not dropped.
///
/// # Errors
/// [`LedgerError`].
pub async fn tenants(pool: &PgPool) -> Result<Vec<i32>, LedgerError> {
    Ok(sqlx::query_scalar("SELECT id FROM tenant ORDER BY id").fetch_all(pool).await?)
}

/// Deletes events of a tenant of days before `day`, up to 5,000, and notes that they are gone; answers how many.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget(pool: &PgPool, tenant: i32, day: NaiveDate) -> Result<u64, LedgerError> {
    let before = day.and_time(chrono::NaiveTime::MIN).and_utc();
    let mut transaction = pool.begin().await?;
    // The condition twice: of a table in partitions a place is none by itself.
    let done = sqlx::query(
        "DELETE FROM event WHERE tenant_id = $1 AND time < $2
         AND ctid = ANY (ARRAY (SELECT ctid FROM event WHERE tenant_id = $1 AND time < $2 LIMIT 5000))",
    );
    let done = done.bind(tenant).bind(before).execute(&mut *transaction).await?.rows_affected();
    if done > 0 {
        gone(&mut transaction, &[tenant], day).await?;
    }
    transaction.commit().await?;
    Ok(done)
}

/// Notes that raw events of days before `day` are gone.
async fn gone(connection: &mut PgConnection, tenants: &[i32], day: NaiveDate) -> Result<(), LedgerError> {
    sqlx::query(
        "INSERT INTO event_horizon AS h (tenant_id, gone_before) SELECT t.id, $2 FROM unnest($1::integer[]) AS t (id)
         ON CONFLICT (tenant_id) DO UPDATE SET gone_before = greatest(h.gone_before, excluded.gone_before)",
    )
    .bind(tenants)
    .bind(day)
    .execute(connection)
    .await?;
    Ok(())
}

/// The first day of which all of a tenant's raw events may still be there; `None` where none were deleted for their age.
///
/// # Errors
/// [`LedgerError`].
pub async fn horizon(connection: impl PgExecutor<'_>, tenant: i32) -> Result<Option<NaiveDate>, LedgerError> {
    Ok(sqlx::query_scalar("SELECT gone_before FROM event_horizon WHERE tenant_id = $1").bind(tenant).fetch_optional(connection).await?)
}

/// The UTC days within some of which a tenant has raw events, the first and the last; `None` where it has none there.
///
/// Asked day by day from both ends, as days have partitions: to look through all of them costs as much as counting them all.
///
/// # Errors
/// [`LedgerError`].
pub async fn days(pool: &PgPool, tenant: i32, within: (NaiveDate, NaiveDate)) -> Result<Option<(NaiveDate, NaiveDate)>, LedgerError> {
    let prefix = "event_d";
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'public.event'::regclass ORDER BY 1",
    )
    .fetch_all(pool)
    .await?;
    let days: Vec<NaiveDate> = names
        .iter()
        .filter_map(|name| NaiveDate::parse_from_str(name.strip_prefix(prefix)?, "%Y%m%d").ok())
        .filter(|day| (within.0..=within.1).contains(day))
        .collect();
    let Some(first) = first_with_events(pool, tenant, days.iter()).await? else { return Ok(None) };
    let last = first_with_events(pool, tenant, days.iter().rev()).await?;
    Ok(Some((first, last.unwrap_or(first))))
}

async fn first_with_events(pool: &PgPool, tenant: i32, days: impl Iterator<Item = &NaiveDate>) -> Result<Option<NaiveDate>, LedgerError> {
    for day in days {
        let from = day.and_time(chrono::NaiveTime::MIN).and_utc();
        let any = sqlx::query_scalar("SELECT EXISTS (SELECT FROM event WHERE tenant_id = $1 AND time >= $2 AND time < $3)");
        if any.bind(tenant).bind(from).bind(from + TimeDelta::days(1)).fetch_one(pool).await? {
            return Ok(Some(*day));
        }
    }
    Ok(None)
}

/// Drops what no tenant keeps: events of days before `day`, and ids of weeks before last week. Answers how many partitions.
///
/// # Errors
/// [`LedgerError`]; a lock that was not to be had is one too, and no reason to worry.
pub async fn drop_partitions(pool: &PgPool, day: NaiveDate, now: DateTime<Utc>) -> Result<u64, LedgerError> {
    let mut dropped = 0;
    // Noted before it is done: nobody counts anew what goes in a moment.
    let mut transaction = pool.begin_with("BEGIN; SET LOCAL statement_timeout = '1min'").await?;
    let losing: Vec<i32> = sqlx::query_scalar("SELECT DISTINCT tenant_id FROM event WHERE time < $1")
        .bind(day.and_time(chrono::NaiveTime::MIN).and_utc())
        .fetch_all(&mut *transaction)
        .await?;
    if !losing.is_empty() {
        gone(&mut transaction, &losing, day).await?;
    }
    transaction.commit().await?;
    loop {
        let done: i32 =
            sqlx::query_scalar("SELECT drop_events($1, $2)").bind(day).bind(week_of(now) - TimeDelta::days(7)).fetch_one(pool).await?;
        if done == 0 {
            return Ok(dropped);
        }
        dropped += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_themselves_or_their_hash() {
        let of =
            |id: &str| NewEvent { id: id.into(), sort: "a".into(), user: None, time: DateTime::UNIX_EPOCH, properties: Map::new() }.key();
        let uuid = "01970000-0000-7000-8000-00000000000a";
        assert_eq!(of(uuid).to_string(), uuid);
        assert_ne!(of("a"), of("b"));
        assert_eq!(of("a").get_version_num(), 8);
        // A UUID written otherwise is another text.
        assert_eq!(of(&uuid.to_uppercase()).get_version_num(), 8);
        assert_eq!(of(&uuid.replace('-', "")).get_version_num(), 8);
    }

    #[test]
    fn weeks_begin_on_monday() {
        for (moment, monday) in [("2026-11-22T23:59:59Z", "2026-11-16"), ("2026-11-23T00:00:00Z", "2026-11-23")] {
            assert_eq!(week_of(moment.parse().unwrap()).to_string(), monday);
        }
    }
}
