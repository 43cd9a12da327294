//! Reserving: the SQL function `reserve_usage`, and what must be known before it.

use std::{collections::HashMap, fmt};

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, Row};

use super::{Charge, Line, PRODUCT, Standing, amount_of, code_of, line, lines, own_keys};
use crate::{
    job::JobId,
    ledger::{LedgerError, insert::NewJob},
    tenant::{Manifest, Period},
};

/// What must be known of a request before anything is reserved for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Before {
    /// The plan that the user was put on.
    pub(super) plan: Option<String>,
    /// What was added to it.
    pub(super) add_ons: Vec<String>,
    /// Whether it was accepted before, by its idempotency key or its unique key, as far as a look can tell.
    pub(super) is_repeat: bool,
}

/// A counter of a tenant: scope, metric, period, and when that began.
type CounterKey<'a> = (&'a str, &'a str, i16, DateTime<Utc>);

impl Line {
    fn key(&self) -> CounterKey<'_> {
        (&self.scope, &self.metric, code_of(self.period), self.span.starts_at)
    }
}

/// Looks up what must be known before; in the order of the jobs.
pub(super) async fn before(connection: &mut PgConnection, now: DateTime<Utc>, jobs: &[&NewJob]) -> Result<Vec<Before>, LedgerError> {
    let rows = sqlx::query("SELECT plan, add_ons, is_repeat FROM before_usage($1, $2, $3, $4, $5, $6)")
        .bind(now)
        .bind(jobs.iter().map(|job| job.tenant).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.owner.as_deref()).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.kind).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.idempotency.as_ref().map(|key| key.key.as_str())).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.options.unique.as_ref().map(|unique| unique.key.as_str())).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    rows.into_iter()
        .map(|row| {
            let add_ons: Option<Vec<String>> = row.try_get("add_ons")?;
            Ok(Before { plan: row.try_get("plan")?, add_ons: add_ons.unwrap_or_default(), is_repeat: row.try_get("is_repeat")? })
        })
        .collect()
}

/// What one job is to have reserved.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) job: JobId,
    pub(super) tenant: i32,
    pub(super) lines: Vec<Line>,
    /// When its counters may be forgotten.
    pub(super) until: DateTime<Utc>,
}

impl Wanted {
    pub(super) fn of(
        job: JobId,
        tenant: i32,
        manifest: &Manifest,
        standing: &Standing<'_>,
        charges: &[Charge],
        now: DateTime<Utc>,
    ) -> Self {
        Self { job, tenant, lines: lines(manifest, standing, charges, now), until: line::until(manifest, now) }
    }
}

/// A limit that leaves no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The metric.
    pub metric: String,
    /// Whether it is the product's limit as a whole, and not the user's.
    pub of_product: bool,
    /// The period.
    pub period: Period,
    /// The most that may be used in it.
    pub limit: u64,
    /// What is used, with what is under way.
    pub used: u64,
    /// Of that, what was reserved beside it, by the same statement.
    pub beside: u64,
    /// What was asked for.
    pub amount: u64,
    /// When the next period begins; `None`: never, or it has none either, since the limit is 0.
    pub resets_at: Option<DateTime<Utc>>,
}

impl Refused {
    /// The same where what was reserved beside it is given back, because it was asked for together: that was not used, it was asked for too.
    #[must_use]
    pub fn together(self) -> Self {
        Self { used: self.used.saturating_sub(self.beside), amount: self.amount.saturating_add(self.beside), beside: 0, ..self }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { metric, of_product, period, limit, used, amount, resets_at, .. } = self;
        match (limit, of_product) {
            (0, true) => return write!(f, "the product may use no `{metric}`, its limit is 0."),
            (0, false) => return write!(f, "the user's plan has no `{metric}`, its limit is 0; a larger plan may have some."),
            _ => {}
        }
        let whose = if *of_product { "the product" } else { "the user" };
        match period {
            Period::Total => write!(f, "{whose} has used {used} of {limit} `{metric}`")?,
            period => write!(f, "{whose} has used {used} of {limit} `{metric}` in this {}", period.word())?,
        }
        write!(f, ", jobs that have not ended included, and this may use {amount}. ")?;
        match resets_at {
            _ if amount > limit => f.write_str("That would never fit; ask for less, or for a larger plan."),
            Some(at) => write!(f, "It begins anew at {}.", at.format("%FT%TZ")),
            None => f.write_str("It does not begin anew; a larger plan has more."),
        }
    }
}

/// Reserves for some jobs, each wholly or not at all, in the order in which they stand. Answers for each why not, where not.
///
/// The caller's transaction holds their counters from here on, so it should end soon.
///
/// # Errors
/// [`LedgerError`]: the transaction is of no use any more.
pub(super) async fn reserve(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    wanted: &[Wanted],
) -> Result<Vec<Option<Refused>>, LedgerError> {
    fn column<'a, T>(lines: &[(usize, &'a Wanted, &'a Line)], value: impl Fn(&'a Wanted, &'a Line) -> T) -> Vec<T> {
        lines.iter().map(|(_, wanted, line)| value(wanted, line)).collect()
    }
    let lines: Vec<(usize, &Wanted, &Line)> =
        wanted.iter().enumerate().flat_map(|(place, wanted)| wanted.lines.iter().map(move |line| (place, wanted, line))).collect();
    let mut refused: Vec<Option<Refused>> = vec![None; wanted.len()];
    if lines.is_empty() {
        return Ok(refused);
    }
    let rows = sqlx::query("SELECT refused_line, refused_used FROM reserve_usage($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)")
        .bind(now)
        .bind(column(&lines, |wanted, _| wanted.job.0))
        .bind(column(&lines, |wanted, _| wanted.tenant))
        .bind(column(&lines, |_, line| line.scope.as_str()))
        .bind(column(&lines, |_, line| line.metric.as_str()))
        .bind(column(&lines, |_, line| amount_of(line.amount)))
        .bind(column(&lines, |_, line| line.incurred))
        .bind(column(&lines, |_, line| code_of(line.period)))
        .bind(column(&lines, |_, line| line.span.starts_at))
        .bind(column(&lines, |wanted, line| if line.period == Period::Total { forever() } else { wanted.until }))
        .bind(column(&lines, |_, line| line.limit.map_or(-1, amount_of)))
        .fetch_all(connection)
        .await?;
    let mut over: Vec<Option<(&Line, u64)>> = vec![None; wanted.len()];
    for row in rows {
        let (number, used): (i32, i64) = (row.try_get("refused_line")?, row.try_get("refused_used")?);
        let found = usize::try_from(number).ok().and_then(|number| lines.get(number.checked_sub(1)?));
        if let Some((place, _, line)) = found
            && let Some(over) = over.get_mut(*place)
        {
            *over = Some((line, u64::try_from(used).unwrap_or_default()));
        }
    }
    // What each counter has given to those before, in the order in which they were admitted.
    let mut given: HashMap<(i32, CounterKey<'_>), u64> = HashMap::new();
    for ((wanted, over), refused) in wanted.iter().zip(over).zip(&mut refused) {
        let Some((line, used)) = over else {
            for line in &wanted.lines {
                let given = given.entry((wanted.tenant, line.key())).or_default();
                *given = given.saturating_add(line.amount);
            }
            continue;
        };
        let limit = line.limit.unwrap_or_default();
        *refused = Some(Refused {
            metric: line.metric.clone(),
            of_product: line.scope == PRODUCT,
            period: line.period,
            limit,
            used,
            beside: given.get(&(wanted.tenant, line.key())).copied().unwrap_or_default(),
            amount: line.amount,
            // There is no more of it then either.
            resets_at: line.span.ends_at.filter(|_| limit > 0),
        });
    }
    Ok(refused)
}

/// Beyond all months that end: the last second of the year 9999.
fn forever() -> DateTime<Utc> {
    DateTime::from_timestamp(253_402_300_799, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// What is reserved for a job that is about to run, beside what it has used: for the next step, at least so much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ensured {
    /// It is there.
    Yes,
    /// Some limit leaves no room.
    No(Refused),
}

/// Sees to it that a job that runs has a reservation: one that the house made (a chain's, a schedule's), or that was redriven with many
/// others, reserves when it starts. What an incurred metric can come to may have grown since it was reserved (a price, a prompt, a model was
/// changed): before its first run the rest is reserved, too. Before a later one nobody knows yet what it still needs ([`extend`]).
///
/// # Errors
/// [`LedgerError`].
pub async fn ensure(
    pool: &PgPool,
    manifest: &Manifest,
    job: (JobId, i32, Option<&str>),
    charges: &[Charge],
    is_first_run: bool,
    now: DateTime<Utc>,
) -> Result<Ensured, LedgerError> {
    if charges.is_empty() {
        return Ok(Ensured::Yes);
    }
    let left = left(pool, job.0).await?;
    let missing: Vec<Charge> = if left.is_empty() {
        charges.to_vec()
    } else {
        let grows = |charge: &&Charge| is_first_run && charge.incurred && left.contains_key(&charge.metric);
        charges.iter().filter(grows).filter_map(|charge| beyond(charge, &left)).collect()
    };
    if missing.is_empty() { Ok(Ensured::Yes) } else { more(pool, manifest, job, &missing, now).await }
}

/// Sees to it that so much of an incurred metric is reserved beyond what a job has used: before a step that was not foreseen when it was
/// accepted.
///
/// # Errors
/// [`LedgerError`].
pub async fn extend(
    pool: &PgPool,
    manifest: &Manifest,
    job: (JobId, i32, Option<&str>),
    charge: &Charge,
    now: DateTime<Utc>,
) -> Result<Ensured, LedgerError> {
    match beyond(charge, &left(pool, job.0).await?) {
        Some(missing) => more(pool, manifest, job, &[missing], now).await,
        None => Ok(Ensured::Yes),
    }
}

/// What a job has reserved and not used, by metric: the least of any of its scopes.
async fn left(pool: &PgPool, job: JobId) -> Result<HashMap<String, i64>, LedgerError> {
    let left: Vec<(String, i64)> = sqlx::query_as(
        "SELECT metric, min(left_over)::bigint FROM (
            SELECT metric, sum(amount - coalesce(actual, 0)) AS left_over FROM usage_reservation WHERE job_id = $1 GROUP BY scope, metric
         ) AS scopes GROUP BY metric",
    )
    .bind(job.0)
    .fetch_all(pool)
    .await?;
    Ok(left.into_iter().collect())
}

/// What a charge is beyond what is left; `None` where that is enough.
fn beyond(charge: &Charge, left: &HashMap<String, i64>) -> Option<Charge> {
    let left = left.get(&charge.metric).copied().unwrap_or_default().max(0);
    let missing = u64::try_from(amount_of(charge.amount) - left).ok().filter(|missing| *missing > 0)?;
    Some(Charge { amount: missing, ..charge.clone() })
}

/// Reserves for one job, all of it or nothing.
async fn more(
    pool: &PgPool,
    manifest: &Manifest,
    job: (JobId, i32, Option<&str>),
    charges: &[Charge],
    now: DateTime<Utc>,
) -> Result<Ensured, LedgerError> {
    let mut transaction = pool.begin().await?;
    let ensured = again(&mut transaction, manifest, job, charges, now).await?;
    match ensured {
        Ensured::Yes => transaction.commit().await?,
        Ensured::No(_) => transaction.rollback().await?,
    }
    Ok(ensured)
}

/// Reserves for one job of a tenant, in a transaction of the caller's, beside what it may have reserved.
///
/// # Errors
/// [`LedgerError`]: the transaction is of no use any more.
pub async fn again(
    connection: &mut PgConnection,
    manifest: &Manifest,
    (job, tenant, owner): (JobId, i32, Option<&str>),
    charges: &[Charge],
    now: DateTime<Utc>,
) -> Result<Ensured, LedgerError> {
    let charges = own_keys::without(connection, &[(tenant, owner, charges)]).await?.concat();
    let found = plan_of(connection, tenant, owner).await?;
    let (plan, add_ons) = found.unwrap_or_default();
    let standing = Standing { owner, plan: plan.as_deref(), add_ons: &add_ons };
    let wanted = Wanted::of(job, tenant, manifest, &standing, &charges, now);
    let refused = reserve(connection, now, &[wanted]).await?;
    Ok(refused.into_iter().next().flatten().map_or(Ensured::Yes, Ensured::No))
}

/// The plan that a user was put on, with what was added to it; `None` of whom nothing is known.
///
/// # Errors
/// [`LedgerError`].
pub async fn plan_of(
    connection: &mut PgConnection,
    tenant: i32,
    owner: Option<&str>,
) -> Result<Option<(Option<String>, Vec<String>)>, LedgerError> {
    let row = sqlx::query("SELECT plan, coalesce(add_ons, '{}') AS add_ons FROM end_user WHERE tenant_id = $1 AND id = $2")
        .bind(tenant)
        .bind(owner)
        .fetch_optional(connection)
        .await?;
    row.map(|row| Ok((row.try_get("plan")?, row.try_get("add_ons")?))).transpose()
}
