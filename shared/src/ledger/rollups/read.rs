//! Reading: a series' days and what is not compacted yet, as one statement sees both.

use std::collections::BTreeSet;

use chrono::NaiveDate;
use futures_util::TryStreamExt;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::{date, unreadable};
use crate::{
    analytics::{
        Bundle, Labels, bucket_start, day_of,
        range::{Grain, Read},
    },
    ledger::LedgerError,
};

/// The most that is read for one answer, in bytes.
const MOST_BYTES: usize = 32 * 1024 * 1024;

/// What is read.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Whose.
    pub tenant: i32,
    /// Of which metric.
    pub series: Uuid,
    /// By which dimensions, as bits.
    pub grouping: u8,
    /// The first bucket, and the one behind the last.
    pub buckets: (i64, i64),
    /// How finely days are asked for.
    pub grain: &'a Grain,
    /// Of one user alone: `grouping` has the dimension then.
    pub user: Option<&'a str>,
}

/// A read that came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The database.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// There are more groups in the span than an answer is made of.
    #[error("there is more to add up than one answer is made of")]
    TooMuch,
}

impl From<sqlx::Error> for ReadError {
    fn from(error: sqlx::Error) -> Self {
        Self::Ledger(error.into())
    }
}

/// Reads it; and whether events that were there before the metric are counted too.
///
/// # Errors
/// [`ReadError`].
pub async fn read(connection: &mut PgConnection, wanted: &Wanted<'_>) -> Result<(Read, bool), ReadError> {
    let (first, end) = wanted.buckets;
    let dates = |days: &BTreeSet<i64>| days.iter().map(|day| date(*day)).collect::<Vec<_>>();
    let (from, to): (NaiveDate, NaiveDate) = (date(day_of(first)), date(day_of(end - 1)));
    let mut rows = sqlx::query(
        "SELECT 0::smallint, NULL::date, NULL::text, NULL::bytea, s.is_whole
         FROM metric_series s WHERE s.tenant_id = $1 AND s.series = $2 AND s.retired_at IS NULL
         UNION ALL
         SELECT 1::smallint, d.day, d.labels, CASE WHEN d.whole IS NULL THEN d.body WHEN d.day = ANY ($7) THEN d.whole WHEN d.day <> ALL ($8) THEN d.hours ELSE d.body END, NULL
         FROM metric_day d
         WHERE d.tenant_id = $1 AND d.series = $2 AND d.grouping = $3 AND d.day BETWEEN $4 AND $5 AND ($6::text IS NULL OR d.user_id = $6)
         UNION ALL
         SELECT 2::smallint, NULL, NULL, p.body, NULL FROM metric_partial p WHERE p.tenant_id = $1 AND p.series = $2",
    )
    .persistent(false)
    .bind(wanted.tenant)
    .bind(wanted.series)
    .bind(i16::from(wanted.grouping))
    .bind(from)
    .bind(to)
    .bind(wanted.user)
    .bind(dates(&wanted.grain.whole))
    .bind(dates(&wanted.grain.fine))
    .fetch(connection);
    let (mut read, mut is_whole, mut bytes) = (Read::default(), false, 0);
    while let Some(row) = rows.try_next().await? {
        let sort: i16 = row.try_get(0)?;
        if sort == 0 {
            is_whole = row.try_get(4)?;
            continue;
        }
        let body: Vec<u8> = row.try_get(3)?;
        bytes += body.len();
        if bytes > MOST_BYTES {
            return Err(ReadError::TooMuch);
        }
        if sort == 1 {
            let (day, labels): (NaiveDate, String) = (row.try_get(1)?, row.try_get(2)?);
            bytes += labels.len();
            let day = (day - bucket_start(0).date_naive()).num_days();
            read.days.push((day, Labels::from_text(&labels).map_err(unreadable(wanted.series))?, body));
        } else {
            read.bundles.push(Bundle::decode(&body).map_err(unreadable(wanted.series))?);
        }
    }
    Ok((read, is_whole))
}
