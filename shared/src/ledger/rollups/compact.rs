//! Compaction: what commits added is put into the rows of days, and goes.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{compute, date, unreadable};
use crate::{
    analytics::{Bundle, DayBody, Labels, Unreadable, bundle::slot_of, day_of},
    ledger::LedgerError,
};

/// Rows of days that one statement writes.
const PAGE: usize = 2_000;

/// The most partials of a round.
pub const MOST_ROWS: i64 = 1_000;

/// And the most bytes of them.
const MOST_BYTES: i64 = 8 * 1024 * 1024;

/// When a round has so many rows of days to write it leaves the other partials to the next one.
const ROUND_ROWS: usize = 50_000;

/// The most rows of a day and metric that a rebuild holds, and the most buckets in them: some 500 MiB at the very most.
pub(super) const MOST_DAY_ROWS: usize = 100_000;
const MOST_DAY_BUCKETS: usize = 4_000_000;

/// A row of a day, by its key: the grouping, the day, the labels.
type Key = (u8, i64, Labels);

/// What is to be added to days.
#[derive(Debug, Default)]
pub(super) struct Additions {
    rows: BTreeMap<Key, DayBody>,
    buckets: usize,
}

impl Additions {
    /// Adds a bundle's states, once for each grouping. Those of `without` are left out.
    pub(super) fn add(&mut self, bundle: &Bundle, without: Option<i64>) {
        for (bucket, labels, state) in bundle.states() {
            let day = day_of(bucket);
            if Some(day) == without {
                continue;
            }
            for grouping in 0..1_u8 << labels.0.len() {
                let key = (grouping, day, labels.grouped(grouping));
                let body = self.rows.entry(key).or_insert_with(|| DayBody::new(bundle.shape()));
                let before = body.buckets();
                body.merge(slot_of(bucket), state);
                self.buckets += body.buckets() - before;
            }
        }
    }

    /// Whether there is more than a day may come to.
    pub(super) fn is_too_much(&self) -> bool {
        self.rows.len() > MOST_DAY_ROWS || self.buckets > MOST_DAY_BUCKETS
    }

    /// Writes them, page by page. With `fresh` no row of theirs can be there.
    pub(super) async fn write(
        self,
        connection: &mut PgConnection,
        tenant: i32,
        series: Uuid,
        user_place: Option<usize>,
        fresh: bool,
    ) -> Result<(), LedgerError> {
        let mut rows = self.rows.into_iter();
        loop {
            let page: Page = rows.by_ref().take(PAGE).collect();
            if page.is_empty() {
                return Ok(());
            }
            let groupings: Vec<i16> = page.iter().map(|((grouping, ..), _)| i16::from(*grouping)).collect();
            let days: Vec<NaiveDate> = page.iter().map(|((_, day, _), _)| date(*day)).collect();
            let labels: Vec<String> = page.iter().map(|((.., labels), _)| labels.to_text()).collect();
            let existing = if fresh { Vec::new() } else { existing(connection, tenant, series, (&groupings, &days, &labels)).await? };
            let (users, bodies) = compute(move || encode(page, existing, user_place)).await?.map_err(unreadable(series))?;
            let mut columns = (Vec::with_capacity(bodies.len()), Vec::with_capacity(bodies.len()), Vec::with_capacity(bodies.len()));
            for (body, coarser) in bodies {
                let (hours, whole) = coarser.unzip();
                columns.0.push(body);
                columns.1.push(hours);
                columns.2.push(whole);
            }
            sqlx::query(
                "INSERT INTO metric_day (tenant_id, series, grouping, day, labels, user_id, body, hours, whole)
                 SELECT $1, $2, d.grouping, d.day, d.labels, d.user_id, d.body, d.hours, d.whole
                 FROM unnest($3::smallint[], $4::date[], $5::text[], $6::text[], $7::bytea[], $8::bytea[], $9::bytea[])
                     AS d (grouping, day, labels, user_id, body, hours, whole)
                 ON CONFLICT (tenant_id, series, grouping, day, labels) DO UPDATE SET body = excluded.body, hours = excluded.hours, whole = excluded.whole",
            )
            .bind(tenant)
            .bind(series)
            .bind(groupings)
            .bind(days)
            .bind(labels)
            .bind(users)
            .bind(columns.0)
            .bind(columns.1)
            .bind(columns.2)
            .execute(&mut *connection)
            .await?;
        }
    }
}

/// Rows that one statement writes.
type Page = Vec<(Key, DayBody)>;

/// A row's bytes: by quarter hours; by hours and as a whole, where those are kept.
type Stored = (Vec<u8>, Option<(Vec<u8>, Vec<u8>)>);

/// Adds what is there to a page; its users and bytes.
fn encode(
    mut page: Page,
    existing: Vec<(usize, Vec<u8>)>,
    user_place: Option<usize>,
) -> Result<(Vec<Option<String>>, Vec<Stored>), Unreadable> {
    for (place, body) in existing {
        if let Some((_, addition)) = page.get_mut(place) {
            DayBody::each(&body, |slot, state| addition.merge(slot, &state))?;
        }
    }
    let users = page.iter().map(|((grouping, _, labels), _)| user_of(*grouping, labels, user_place).map(str::to_owned)).collect();
    Ok((users, page.iter().map(|(_, body)| (body.encode(), body.coarser().map(Into::into))).collect()))
}

/// The keys of a page, by column.
type Columns<'a> = (&'a [i16], &'a [NaiveDate], &'a [String]);

/// What stands in the rows of a page already, by place in it.
async fn existing(
    connection: &mut PgConnection,
    tenant: i32,
    series: Uuid,
    (groupings, days, labels): Columns<'_>,
) -> Result<Vec<(usize, Vec<u8>)>, LedgerError> {
    // By `LIMIT 1` each key is looked up by itself: a plain join would, while there are no statistics, go through all days of the series for
    // each of a page's keys.
    let found: Vec<(i64, Vec<u8>)> = sqlx::query_as(
        "SELECT k.place, d.body
         FROM unnest($3::smallint[], $4::date[], $5::text[]) WITH ORDINALITY AS k (grouping, day, labels, place)
         CROSS JOIN LATERAL (
            SELECT m.body FROM metric_day m
            WHERE m.tenant_id = $1 AND m.series = $2 AND m.grouping = k.grouping AND m.day = k.day AND m.labels = k.labels LIMIT 1
         ) d",
    )
    .bind(tenant)
    .bind(series)
    .bind(groupings)
    .bind(days)
    .bind(labels)
    .fetch_all(connection)
    .await?;
    Ok(found.into_iter().map(|(place, body)| (usize::try_from(place - 1).unwrap_or(usize::MAX), body)).collect())
}

/// The label of the dimension `user` among those of a grouping.
fn user_of(grouping: u8, labels: &Labels, user_place: Option<usize>) -> Option<&str> {
    let place = user_place.filter(|place| grouping & (1 << place) != 0)?;
    // Those before it that the grouping has too.
    let index = (grouping & ((1 << place) - 1)).count_ones() as usize;
    labels.0.get(index)?.as_deref()
}

/// What came of a round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Partials that are put together.
    pub partials: u64,
    /// Rows of days that were written.
    pub rows: u64,
    /// When the oldest of them was taken.
    pub oldest: Option<DateTime<Utc>>,
}

/// Series that have something to put together, with when the oldest of that was taken.
///
/// # Errors
/// [`LedgerError`].
pub async fn pending(pool: &PgPool) -> Result<HashMap<(i32, Uuid), DateTime<Utc>>, LedgerError> {
    let rows: Vec<(i32, Uuid, DateTime<Utc>)> =
        sqlx::query_as("SELECT tenant_id, series, min(taken_at) FROM metric_partial GROUP BY tenant_id, series").fetch_all(pool).await?;
    Ok(rows.into_iter().map(|(tenant, series, oldest)| ((tenant, series), oldest)).collect())
}

/// Takes the turn of a series until the transaction's end: whoever read its days before must read again. Answers where its user label is;
/// `None` where somebody else has the turn, or it is not known (yet).
pub(super) async fn turn(connection: &mut PgConnection, tenant: i32, series: Uuid) -> Result<Option<Option<usize>>, LedgerError> {
    let held: Option<Option<i16>> = sqlx::query_scalar(
        "UPDATE metric_series SET version = version + 1
         WHERE tenant_id = $1 AND series = (SELECT series FROM metric_series WHERE tenant_id = $1 AND series = $2 FOR UPDATE SKIP LOCKED)
         RETURNING user_place",
    )
    .bind(tenant)
    .bind(series)
    .fetch_optional(connection)
    .await?;
    Ok(held.map(|place| place.and_then(|place| usize::try_from(place).ok())))
}

/// Puts some of a series together; nothing where somebody else does. Call again until there is nothing left.
///
/// # Errors
/// [`LedgerError`]; nothing has changed then.
pub async fn compact(pool: &PgPool, tenant: i32, series: Uuid) -> Result<Compacted, LedgerError> {
    let mut transaction = pool.begin().await?;
    let Some(user_place) = turn(&mut transaction, tenant, series).await? else { return Ok(Compacted::default()) };
    // A statement of its own, which sees what was committed before the turn was ours. Locked, so that what is read is what goes.
    let rows: Vec<(i64, DateTime<Utc>, Vec<u8>)> = sqlx::query_as(
        "SELECT id, taken_at, body FROM metric_partial WHERE tenant_id = $1 AND series = $2 AND id = ANY (ARRAY (
            SELECT p.id FROM (
                SELECT q.id, sum(octet_length(q.body)) OVER (ORDER BY q.id) - octet_length(q.body) AS before
                FROM (SELECT id, body FROM metric_partial WHERE tenant_id = $1 AND series = $2 ORDER BY tenant_id, series, id LIMIT $3) q
            ) p WHERE p.before < $4))
         ORDER BY id FOR UPDATE",
    )
    .bind(tenant)
    .bind(series)
    .bind(MOST_ROWS)
    .bind(MOST_BYTES)
    .fetch_all(&mut *transaction)
    .await?;
    if rows.is_empty() {
        // Dropped, it would keep the turn until the pool has taken it back.
        transaction.rollback().await?;
        return Ok(Compacted::default());
    }
    let work = move || {
        let (mut additions, mut compacted, mut done) = (Additions::default(), Compacted::default(), Vec::with_capacity(rows.len()));
        for (id, taken_at, body) in rows {
            compacted.oldest = Some(compacted.oldest.map_or(taken_at, |oldest| oldest.min(taken_at)));
            additions.add(&Bundle::decode(&body)?, None);
            done.push(id);
            if additions.rows.len() > ROUND_ROWS {
                break;
            }
        }
        compacted.partials = done.len() as u64;
        compacted.rows = additions.rows.len() as u64;
        Ok::<_, Unreadable>((additions, compacted, done))
    };
    let (additions, compacted, done) = compute(work).await?.map_err(unreadable(series))?;
    sqlx::query("DELETE FROM metric_partial WHERE tenant_id = $1 AND series = $2 AND id = ANY ($3)")
        .bind(tenant)
        .bind(series)
        .bind(done)
        .execute(&mut *transaction)
        .await?;
    additions.write(&mut transaction, tenant, series, user_place, false).await?;
    transaction.commit().await?;
    Ok(compacted)
}

/// Puts all of a tenant's together that name users, so that what names one is found by it.
///
/// # Errors
/// [`LedgerError`].
pub async fn compact_users(pool: &PgPool, tenant: i32) -> Result<bool, LedgerError> {
    let series: Vec<Uuid> = sqlx::query_scalar(
        "SELECT s.series FROM metric_series s WHERE s.tenant_id = $1 AND s.user_place IS NOT NULL
           AND EXISTS (SELECT FROM metric_partial p WHERE p.tenant_id = s.tenant_id AND p.series = s.series)",
    )
    .bind(tenant)
    .fetch_all(pool)
    .await?;
    for one in &series {
        compact(pool, tenant, *one).await?;
    }
    Ok(series.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_found_among_the_labels_of_a_grouping() {
        let labels = |texts: &[&str]| Labels(texts.iter().map(|text| Some((*text).to_owned())).collect());
        assert_eq!(user_of(0b111, &labels(&["a", "ada", "b"]), Some(1)), Some("ada"));
        assert_eq!(user_of(0b110, &labels(&["ada", "b"]), Some(1)), Some("ada"));
        assert_eq!(user_of(0b101, &labels(&["a", "b"]), Some(1)), None);
        assert_eq!(user_of(0b1, &labels(&["a"]), None), None);
        assert_eq!(user_of(0b1, &Labels(vec![None]), Some(0)), None);
    }
}
