//! How many calls vendors still grant, counted for the fleet: whoever wants to call takes one from here first.
//!
//! What must stay true: of what a vendor grants, a tenth is never used ([`RESERVE`]): somebody else may call with the same credential, or from the same
//! address. One call at a time is under way for a key, so that what a vendor says remains is what remains. Redis may vanish, so it stands in
//! Postgres; business time counts windows, Postgres' clock frees a call whose process died.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgPool, Row, postgres::PgRow};
use uuid::Uuid;

use super::LedgerError;

/// The share of what is granted that is left alone: one in so many.
pub const RESERVE: i32 = 10;

/// How long a call may be under way before its place is somebody else's: longer than any call's deadline.
const CALL_WITHIN: f64 = 30.0;

/// The first pause after a limit that says nothing of when to come back, and the longest. At least a minute, then exponentially longer
/// (<https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api>).
const FIRST_PAUSE: TimeDelta = TimeDelta::minutes(1);
const LONGEST_PAUSE: TimeDelta = TimeDelta::hours(1);

/// Answers that count towards a ban (401, 403, 429), and in which time: Discord shuts an address out for 10,000 in ten minutes
/// (<https://docs.discord.com/developers/topics/rate-limits#invalid-request-limit>); we stop at a tenth of that.
const MOST_INVALID: i32 = 1_000;
const INVALID_WITHIN: TimeDelta = TimeDelta::minutes(10);

/// How long what is not used any more is remembered.
const REMEMBERED: TimeDelta = TimeDelta::days(7);

/// A budget that a call is taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// The vendor and what tells its budgets apart.
    pub key: String,
    /// What is documented to be granted, and in which time; what the vendor says goes before it. Without limits of its own when `None`: it
    /// can be blocked all the same.
    pub granted: Option<(i32, Duration)>,
}

/// What became of a wish to call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// It may be made now.
    Go,
    /// Another call is under way.
    Busy,
    /// Not before then.
    Wait(DateTime<Utc>),
}

/// What an answer says of a budget.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Told {
    /// The budget.
    pub key: String,
    /// Calls of a window.
    pub most: Option<i32>,
    /// What remains of them.
    pub remaining: Option<i32>,
    /// In how long the window ends.
    pub resets_in: Option<Duration>,
    /// For how long nobody may call.
    pub blocked_for: Option<Duration>,
    /// A limit was met that says nothing of when to come back.
    pub is_unexplained: bool,
    /// The answer counts towards a ban.
    pub is_invalid: bool,
    /// Of a route: whose limits are its own.
    pub bucket: Option<String>,
}

/// A budget's row.
#[derive(Debug, Clone, Default, PartialEq)]
struct Account {
    most: Option<i32>,
    remaining: Option<i32>,
    resets_at: Option<DateTime<Utc>>,
    blocked_until: Option<DateTime<Utc>>,
    invalid: i32,
    invalid_from: Option<DateTime<Utc>>,
    is_taken: bool,
}

impl Account {
    fn of(row: &PgRow) -> Result<Self, LedgerError> {
        Ok(Self {
            most: row.try_get("most")?,
            remaining: row.try_get("remaining")?,
            resets_at: row.try_get("resets_at")?,
            blocked_until: row.try_get("blocked_until")?,
            invalid: row.try_get("invalid")?,
            invalid_from: row.try_get("invalid_from")?,
            is_taken: row.try_get("is_taken")?,
        })
    }

    /// Takes a call, if there is one.
    fn take(&mut self, granted: Option<(i32, Duration)>, now: DateTime<Utc>) -> Taken {
        if self.is_taken {
            return Taken::Busy;
        }
        if let Some(until) = self.blocked_until.filter(|until| *until > now) {
            return Taken::Wait(until);
        }
        if let Some(from) = self.invalid_from.filter(|from| self.invalid >= MOST_INVALID && now - *from < INVALID_WITHIN) {
            return Taken::Wait(from + INVALID_WITHIN);
        }
        let Some((documented, window)) = granted.or_else(|| Some((self.most?, Duration::from_secs(60)))) else { return Taken::Go };
        let most = self.most.unwrap_or(documented).max(0);
        let resets_at = match self.resets_at.filter(|at| *at > now) {
            Some(at) if self.remaining.is_some() => at,
            _ => {
                // A window that nobody has told of yet.
                self.remaining = Some(most);
                now + TimeDelta::from_std(window).unwrap_or(LONGEST_PAUSE)
            }
        };
        self.resets_at = Some(resets_at);
        let left = self.remaining.unwrap_or(most) - 1;
        if left < reserve(most) {
            return Taken::Wait(resets_at);
        }
        self.remaining = Some(left);
        Taken::Go
    }
}

/// What is left alone of so many calls.
#[must_use]
pub const fn reserve(most: i32) -> i32 {
    most / RESERVE + if most % RESERVE > 0 { 1 } else { 0 }
}

/// The pause after so many limits in a row that said nothing of when to come back.
fn unexplained_pause(refusals: i32) -> TimeDelta {
    let doublings = u32::try_from(refusals.saturating_sub(1)).unwrap_or(0).min(10);
    FIRST_PAUSE.checked_mul(1 << doublings).unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE)
}

/// Takes a call from all of some budgets, or from none of them.
///
/// # Errors
/// [`LedgerError`].
pub async fn take(pool: &PgPool, vendor: &str, budgets: &[Budget], call: Uuid, now: DateTime<Utc>) -> Result<Taken, LedgerError> {
    let mut budgets: Vec<&Budget> = budgets.iter().collect();
    // Everybody locks in one order.
    budgets.sort_by(|left, right| left.key.cmp(&right.key));
    budgets.dedup_by(|left, right| left.key == right.key);
    let keys: Vec<&str> = budgets.iter().map(|budget| budget.key.as_str()).collect();
    let mut transaction = pool.begin().await?;
    sqlx::query("INSERT INTO vendor_budget (key, vendor, changed_at) SELECT key, $2, $3 FROM unnest($1::text[]) AS t (key) ORDER BY key ON CONFLICT DO NOTHING")
        .bind(&keys)
        .bind(vendor)
        .bind(now)
        .execute(&mut *transaction)
        .await?;
    sqlx::query("SELECT key FROM vendor_budget WHERE key = ANY ($1) ORDER BY key FOR UPDATE")
        .bind(&keys)
        .execute(&mut *transaction)
        .await?;
    let mut accounts = Vec::with_capacity(budgets.len());
    for budget in budgets {
        let row = sqlx::query(
            "SELECT most, remaining, resets_at, blocked_until, invalid, invalid_from,
                    -- A route whose bucket has been told of meanwhile has its limits there: it is looked up again.
                    coalesce(taken_until > clock_timestamp(), false) OR bucket IS NOT NULL AS is_taken
             FROM vendor_budget WHERE key = $1",
        )
        .bind(&budget.key)
        .fetch_one(&mut *transaction)
        .await?;
        let mut account = Account::of(&row)?;
        match account.take(budget.granted, now) {
            Taken::Go => accounts.push((budget, account)),
            refused => return Ok(refused),
        }
    }
    for (budget, account) in accounts {
        sqlx::query(
            "UPDATE vendor_budget SET most = $2, remaining = $3, resets_at = $4, taken_by = $5,
                    taken_until = clock_timestamp() + make_interval(secs => $6), changed_at = $7
             WHERE key = $1",
        )
        .bind(&budget.key)
        .bind(account.most)
        .bind(account.remaining)
        .bind(account.resets_at)
        .bind(call)
        .bind(CALL_WITHIN)
        .bind(now)
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    Ok(Taken::Go)
}

/// The bucket of a route, as an answer told it.
///
/// # Errors
/// [`LedgerError`].
pub async fn bucket(pool: &PgPool, route: &str) -> Result<Option<String>, LedgerError> {
    let bucket: Option<Option<String>> =
        sqlx::query_scalar("SELECT bucket FROM vendor_budget WHERE key = $1").bind(route).fetch_optional(pool).await?;
    Ok(bucket.flatten())
}

/// Writes down what an answer says, and ends the call. What it says nothing of stays as it was counted.
///
/// # Errors
/// [`LedgerError`].
pub async fn settle(pool: &PgPool, vendor: &str, call: Uuid, told: &[Told], now: DateTime<Utc>) -> Result<(), LedgerError> {
    let mut told: Vec<&Told> = told.iter().collect();
    told.sort_by(|left, right| left.key.cmp(&right.key));
    let mut transaction = pool.begin().await?;
    for told in told {
        sqlx::query("INSERT INTO vendor_budget (key, vendor, changed_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
            .bind(&told.key)
            .bind(vendor)
            .bind(now)
            .execute(&mut *transaction)
            .await?;
        let row = sqlx::query("SELECT refusals, blocked_until, invalid, invalid_from FROM vendor_budget WHERE key = $1 FOR UPDATE")
            .bind(&told.key)
            .fetch_one(&mut *transaction)
            .await?;
        let (refusals, blocked_until): (i32, Option<DateTime<Utc>>) = (row.try_get("refusals")?, row.try_get("blocked_until")?);
        let (invalid, invalid_from): (i32, Option<DateTime<Utc>>) = (row.try_get("invalid")?, row.try_get("invalid_from")?);
        let refusals = if told.is_unexplained { refusals.saturating_add(1) } else { 0 };
        let span = |pause: Duration| TimeDelta::from_std(pause).unwrap_or(LONGEST_PAUSE);
        let pause = told.blocked_for.map(span).or(told.is_unexplained.then(|| unexplained_pause(refusals)));
        let blocked_until = blocked_until.max(pause.map(|pause| now + pause));
        let (invalid, invalid_from) = match (told.is_invalid, invalid_from) {
            (true, Some(from)) if now - from < INVALID_WITHIN => (invalid.saturating_add(1), Some(from)),
            (true, _) => (1, Some(now)),
            (false, from) => (invalid, from),
        };
        sqlx::query(
            "UPDATE vendor_budget SET most = coalesce($2, most), remaining = coalesce($3, remaining), resets_at = coalesce($4, resets_at),
                    blocked_until = $5, refusals = $6, invalid = $7, invalid_from = $8, bucket = coalesce($9, bucket), changed_at = $10
             WHERE key = $1",
        )
        .bind(&told.key)
        .bind(told.most)
        .bind(told.remaining)
        .bind(told.resets_in.map(|pause| now + span(pause)))
        .bind(blocked_until)
        .bind(refusals)
        .bind(invalid)
        .bind(invalid_from)
        .bind(&told.bucket)
        .bind(now)
        .execute(&mut *transaction)
        .await?;
    }
    sqlx::query("UPDATE vendor_budget SET taken_by = NULL, taken_until = NULL WHERE taken_by = $1")
        .bind(call)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(())
}

/// What is left of each window that is known: vendor, calls beyond the reserve. The least, where a vendor has several.
///
/// # Errors
/// [`LedgerError`].
pub async fn left(pool: &PgPool, now: DateTime<Utc>) -> Result<Vec<(String, i64)>, LedgerError> {
    Ok(sqlx::query_as(
        "SELECT vendor, min(greatest(remaining - (most + $2 - 1) / $2, 0))::bigint FROM vendor_budget
         WHERE remaining IS NOT NULL AND most IS NOT NULL AND resets_at > $1 GROUP BY vendor",
    )
    .bind(now)
    .bind(RESERVE)
    .fetch_all(pool)
    .await?)
}

/// Forgets budgets that nobody has used for long.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget(pool: &PgPool, now: DateTime<Utc>) -> Result<u64, LedgerError> {
    let gone = sqlx::query("DELETE FROM vendor_budget WHERE changed_at < $1 AND (blocked_until IS NULL OR blocked_until < $2)")
        .bind(now - REMEMBERED)
        .bind(now)
        .execute(pool)
        .await?;
    Ok(gone.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn a_tenth_is_never_used_whatever_the_limit() {
        let now = DateTime::UNIX_EPOCH;
        for most in [1, 2, 5, 10, 59, 60, 5_000] {
            let mut account = Account::default();
            let mut calls = 0;
            while account.take(Some((most, HOUR)), now) == Taken::Go {
                calls += 1;
                assert!(account.remaining.unwrap() * RESERVE >= most, "{account:?}");
            }
            assert_eq!(calls, most - reserve(most), "{most}");
            assert_eq!(account.take(Some((most, HOUR)), now), Taken::Wait(now + HOUR));
            if most > 1 {
                assert_eq!(account.take(Some((most, HOUR)), now + HOUR), Taken::Go, "a new window");
            }
        }
    }

    #[test]
    fn blocks_calls_under_way_and_bans_come_first() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(1);
        let mut account = Account { blocked_until: Some(now + TimeDelta::seconds(1)), ..Account::default() };
        assert_eq!(account.take(None, now), Taken::Wait(now + TimeDelta::seconds(1)));
        assert_eq!(account.take(None, now + TimeDelta::seconds(1)), Taken::Go);
        let mut account = Account { is_taken: true, ..Account::default() };
        assert_eq!(account.take(Some((60, HOUR)), now), Taken::Busy);
        let mut account = Account { invalid: MOST_INVALID, invalid_from: Some(now), ..Account::default() };
        assert_eq!(account.take(None, now), Taken::Wait(now + INVALID_WITHIN));
        assert_eq!(account.take(None, now + INVALID_WITHIN), Taken::Go);
    }

    #[test]
    fn what_says_nothing_waits_a_minute_and_then_ever_longer() {
        let minutes: Vec<_> = (1..=8).map(|refusals| unexplained_pause(refusals).num_minutes()).collect();
        assert_eq!(minutes, [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
