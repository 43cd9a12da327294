//! Reading: a series' days and what is not compacted yet, as one statement sees both.

use std::collections::{BTreeSet, HashSet};

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

/// The most that is read for one answer, in bytes: of days, and of what is not put together yet.
const MOST_BYTES: usize = 32 * 1024 * 1024;

/// And the most rows of days.
const MOST_ROWS: usize = 250_000;

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
    /// Whether the metric has the dimension `user`.
    pub names_users: bool,
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
    /// More is waiting to be put together than one answer is made of: compaction is behind. In a while it is not.
    #[error("more is waiting to be put together than one answer is made of")]
    Behind,
    /// As many answers are computed as may be at a time. In a moment they are not.
    #[error("as many answers are computed as may be at a time")]
    Busy,
}

impl From<sqlx::Error> for ReadError {
    fn from(error: sqlx::Error) -> Self {
        Self::Ledger(error.into())
    }
}

/// What was found, as it is stored.
#[derive(Debug)]
pub struct Stored {
    series: Uuid,
    days: Vec<(i64, String, Vec<u8>)>,
    partials: Vec<Vec<u8>>,
    /// Whether events that were there before the metric are counted too.
    pub is_whole: bool,
    /// Users who are being erased, where the metric names any. Of the same moment as all else: what is of them is there with their name, or
    /// gone.
    pub erased: HashSet<String>,
}

impl Stored {
    /// What it says. This computes for long where there is much.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn decode(self) -> Result<Read, ReadError> {
        let labelled = |(day, labels, body): (i64, String, Vec<u8>)| Ok((day, Labels::from_text(&labels)?, body));
        let days = self.days.into_iter().map(labelled).collect::<Result<_, _>>().map_err(unreadable(self.series))?;
        let bundles = self.partials.iter().map(|body| Bundle::decode(body)).collect::<Result<_, _>>().map_err(unreadable(self.series))?;
        Ok(Read { days, bundles })
    }
}

/// Reads it, in one statement.
///
/// # Errors
/// [`ReadError`].
pub async fn read(connection: &mut PgConnection, wanted: &Wanted<'_>) -> Result<Stored, ReadError> {
    let (first, end) = wanted.buckets;
    let dates = |days: &BTreeSet<i64>| days.iter().map(|day| date(*day)).collect::<Vec<_>>();
    let (from, to): (NaiveDate, NaiveDate) = (date(day_of(first)), date(day_of(end - 1)));
    let mut rows = sqlx::query(
        "SELECT 0::smallint, NULL::date, NULL::text, NULL::bytea,
             s.is_whole AND NOT EXISTS (SELECT FROM metric_left l WHERE l.tenant_id = s.tenant_id AND l.series = s.series)
         FROM metric_series s WHERE s.tenant_id = $1 AND s.series = $2 AND s.retired_at IS NULL
         UNION ALL
         SELECT 1::smallint, d.day, d.labels, CASE WHEN d.whole IS NULL THEN d.body WHEN d.day = ANY ($7) THEN d.whole WHEN d.day <> ALL ($8) THEN d.hours ELSE d.body END, NULL
         FROM metric_day d
         WHERE d.tenant_id = $1 AND d.series = $2 AND d.grouping = $3 AND d.day BETWEEN $4 AND $5 AND ($6::text IS NULL OR d.user_id = $6)
         UNION ALL
         SELECT 2::smallint, NULL, NULL, p.body, NULL FROM metric_partial p WHERE p.tenant_id = $1 AND p.series = $2
         UNION ALL
         SELECT 3::smallint, NULL, e.user_id, NULL, NULL FROM erasure e
         WHERE e.tenant_id = $1 AND $9",
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
    .bind(wanted.names_users)
    .fetch(connection);
    let mut found = Stored { series: wanted.series, days: Vec::new(), partials: Vec::new(), is_whole: false, erased: HashSet::new() };
    let (mut of_days, mut of_partials) = (0, 0);
    while let Some(row) = rows.try_next().await? {
        match row.try_get::<i16, _>(0)? {
            0 => found.is_whole = row.try_get(4)?,
            1 => {
                let (day, labels, body): (NaiveDate, String, Vec<u8>) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
                of_days += body.len() + labels.len();
                if of_days > MOST_BYTES || found.days.len() >= MOST_ROWS {
                    return Err(ReadError::TooMuch);
                }
                found.days.push(((day - bucket_start(0).date_naive()).num_days(), labels, body));
            }
            2 => {
                let body: Vec<u8> = row.try_get(3)?;
                of_partials += body.len();
                if of_partials > MOST_BYTES {
                    return Err(ReadError::Behind);
                }
                found.partials.push(body);
            }
            _ => {
                found.erased.insert(row.try_get(2)?);
            }
        }
    }
    Ok(found)
}
