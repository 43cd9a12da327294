//! Statistics as they stand and as they were (R63), and who asks for them.
//!
//! What must stay true: one run at a time asks for a statistic, by a lease that Postgres' clock ends; what a run writes it writes by its
//! lease alone, so one that lost it changes nothing; the last figures that were believed stay, whatever becomes of the vendor.

mod ask;
mod keep;

use chrono::{DateTime, Utc};
use serde_json::{Number, Value};
use sqlx::{PgConnection, Row, postgres::PgRow};

use super::LedgerError;
use crate::statistic::{Activity, Figures};

pub use ask::{Asked, By, accept, ask};
pub use keep::{Held, Outcome, Standing, ages, forget_undeclared, keep, lease, release, tenants};

/// A statistic as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundStatistic {
    /// Its name in the manifest.
    pub source: String,
    /// Grows with whatever a reader would see.
    pub version: i64,
    /// The last figures that were believed.
    pub figures: Option<Figures>,
    /// How active it is.
    pub activity: Activity,
    /// When something was last done there.
    pub worked_at: Option<DateTime<Utc>>,
    /// When the vendor last said that the figures are so.
    pub measured_at: Option<DateTime<Utc>>,
    /// When it first said so.
    pub changed_at: Option<DateTime<Utc>>,
    /// When an attempt last ended.
    pub checked_at: Option<DateTime<Utc>>,
    /// Since when the vendor says that there is no such thing.
    pub gone_at: Option<DateTime<Utc>>,
    /// Since when no attempt brought anything.
    pub failing_since: Option<DateTime<Utc>>,
    /// By which fault.
    pub failure_code: Option<String>,
    /// The same in words.
    pub failure: Option<String>,
    /// When the vendor may be asked again.
    pub not_before: Option<DateTime<Utc>>,
    /// A reading that was not believed, and why.
    pub flagged: Option<Flagged>,
    /// When a reader last had it refreshed.
    pub read_ahead_at: Option<DateTime<Utc>>,
}

/// A reading that was not believed.
#[derive(Debug, Clone, PartialEq)]
pub struct Flagged {
    /// What was read.
    pub figures: Figures,
    /// When it was last read.
    pub at: DateTime<Utc>,
    /// Why it was not believed.
    pub why: String,
}

/// What was believed at a time.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// When.
    pub measured_at: DateTime<Utc>,
    /// What.
    pub figures: Figures,
    /// How active it was.
    pub activity: Activity,
    /// Whether a person accepted it although it was flagged.
    pub accepted: bool,
}

/// The columns that [`found`] reads.
macro_rules! columns {
    () => {
        "source, version, figures, activity, worked_at, measured_at, changed_at, checked_at, gone_at, failing_since, failure_code, failure, not_before, flagged, flagged_at, flagged_why, read_ahead_at"
    };
}

/// A tenant's statistics, by name.
///
/// # Errors
/// [`LedgerError`].
pub async fn list(connection: &mut PgConnection, tenant: i32) -> Result<Vec<FoundStatistic>, LedgerError> {
    let rows = sqlx::query(concat!("SELECT ", columns!(), " FROM statistic WHERE tenant_id = $1 ORDER BY source"))
        .bind(tenant)
        .persistent(false)
        .fetch_all(connection)
        .await?;
    rows.iter().map(found).collect()
}

/// One statistic; `None` where nobody asked for it yet.
///
/// # Errors
/// [`LedgerError`].
pub async fn find(connection: &mut PgConnection, tenant: i32, source: &str) -> Result<Option<FoundStatistic>, LedgerError> {
    let row = sqlx::query(concat!("SELECT ", columns!(), " FROM statistic WHERE tenant_id = $1 AND source = $2"))
        .bind(tenant)
        .bind(source)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(found).transpose()
}

/// What was believed in a range, newest first, at most `most`.
///
/// # Errors
/// [`LedgerError`].
pub async fn history(
    connection: &mut PgConnection,
    tenant: i32,
    source: &str,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    most: i64,
) -> Result<Vec<Reading>, LedgerError> {
    let rows = sqlx::query(
        "SELECT measured_at, figures, activity, accepted FROM statistic_reading
         WHERE tenant_id = $1 AND source = $2 AND measured_at >= $3 AND measured_at < $4 ORDER BY measured_at DESC LIMIT $5",
    )
    .bind(tenant)
    .bind(source)
    .bind(from)
    .bind(to)
    .bind(most)
    .persistent(false)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Reading {
                measured_at: row.try_get("measured_at")?,
                figures: figures_of(row.try_get("figures")?),
                activity: Activity::of_word(row.try_get("activity")?),
                accepted: row.try_get("accepted")?,
            })
        })
        .collect()
}

fn found(row: &PgRow) -> Result<FoundStatistic, LedgerError> {
    let figures: Option<Value> = row.try_get("figures")?;
    let activity: Option<&str> = row.try_get("activity")?;
    let flagged: (Option<Value>, Option<DateTime<Utc>>, Option<String>) =
        (row.try_get("flagged")?, row.try_get("flagged_at")?, row.try_get("flagged_why")?);
    Ok(FoundStatistic {
        source: row.try_get("source")?,
        version: row.try_get("version")?,
        figures: figures.map(figures_of),
        activity: Activity::of_word(activity.unwrap_or_default()),
        worked_at: row.try_get("worked_at")?,
        measured_at: row.try_get("measured_at")?,
        changed_at: row.try_get("changed_at")?,
        checked_at: row.try_get("checked_at")?,
        gone_at: row.try_get("gone_at")?,
        failing_since: row.try_get("failing_since")?,
        failure_code: row.try_get("failure_code")?,
        failure: row.try_get("failure")?,
        not_before: row.try_get("not_before")?,
        flagged: match flagged {
            (Some(mut flagged), Some(at), why) => {
                let figures = flagged.get_mut("figures").map(Value::take).unwrap_or_default();
                Some(Flagged { figures: figures_of(figures), at, why: why.unwrap_or_default() })
            }
            _ => None,
        },
        read_ahead_at: row.try_get("read_ahead_at")?,
    })
}

/// Figures as rows have them.
fn figures_of(value: Value) -> Figures {
    let Value::Object(fields) = value else { return Figures::new() };
    fields.into_iter().filter_map(|(name, value)| Some((name, value.as_f64()?))).collect()
}

/// Figures as rows and answers have them: whole numbers without a point.
#[must_use]
pub fn figures_json(figures: &Figures) -> Value {
    // Whole up to where floats stop telling neighbours apart.
    let exact = 2f64.powi(53);
    let number = |value: f64| {
        if value.fract() == 0.0 && value.abs() <= exact {
            #[expect(clippy::cast_possible_truncation, reason = "whole, and within 2^53")]
            let whole = value as i64;
            return Some(Number::from(whole));
        }
        Number::from_f64(value)
    };
    figures
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), Value::Number(number(*value)?))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
