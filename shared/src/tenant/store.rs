//! Tenants in the database: applied by the owner, read by the API and by workers.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, PgPool, Postgres, Row, Transaction};

use super::manifest::{Manifest, ManifestError};
use crate::ledger::{
    LOCK_TIMEOUT, LedgerError, STATEMENT_TIMEOUT,
    rollups::series,
    schedule::declare::{DeclareError, declare},
};

/// Begins a transaction that sees one tenant's rows: row-level security compares `offstage.tenant` with every row. Also
/// bounds each of its statements in time and keeps Postgres from compiling them (short reads, all of them), since a session
/// behind a transaction pooler can't be told beforehand. One round trip.
///
/// # Errors
/// [`LedgerError::Unavailable`] where no connection is to be had.
pub async fn transaction(pool: &PgPool, tenant: i32) -> Result<Transaction<'static, Postgres>, LedgerError> {
    begin(pool, tenant, "").await
}

/// Begins a [`transaction`] whose statements do nothing but look rows up by their keys. Each of them is planned once a connection, and
/// not at each use, which costs more than the statement itself (338 beside 124 µs by the server's log, on a busy machine, of jobs that
/// are followed).
/// Not for lists: what is best for them depends on what is asked.
///
/// # Errors
/// [`LedgerError::Unavailable`] where no connection is to be had.
pub async fn lookup(pool: &PgPool, tenant: i32) -> Result<Transaction<'static, Postgres>, LedgerError> {
    begin(
        pool,
        tenant,
        // A plan that is kept must not be the one of an empty table.
        "; SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off",
    )
    .await
}

async fn begin(pool: &PgPool, tenant: i32, more: &'static str) -> Result<Transaction<'static, Postgres>, LedgerError> {
    let (timeout, locks) = (STATEMENT_TIMEOUT.as_millis(), LOCK_TIMEOUT.as_millis());
    // Numbers of ours, both of them: nothing in here can be more than a number.
    let begin = format!(
        "BEGIN; SET LOCAL offstage.tenant = '{tenant}'; SET LOCAL statement_timeout = {timeout}; SET LOCAL lock_timeout = {locks}; SET LOCAL jit = off{more}"
    );
    Ok(pool.begin_with(AssertSqlSafe(begin)).await?)
}

/// A tenant and what it declares.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Its number, which rows carry.
    pub id: i32,
    /// Its name.
    pub name: String,
    /// What it declares.
    pub manifest: Manifest,
    digest: Vec<u8>,
}

/// A tenant could not be read or applied.
#[derive(Debug, thiserror::Error)]
pub enum TenantError {
    /// The database.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The stored manifest is beyond this program: a newer one applied it.
    #[error("the stored manifest of tenant `{tenant}` can't be used by this version; apply it again, or upgrade")]
    Manifest {
        /// The tenant's name.
        tenant: String,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
}

impl From<sqlx::Error> for TenantError {
    fn from(error: sqlx::Error) -> Self {
        Self::Ledger(error.into())
    }
}

impl TenantError {
    /// Whether trying the same again later may work.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Ledger(error) => error.is_transient(),
            // A rolling upgrade brings a program that can.
            Self::Manifest { .. } => true,
        }
    }
}

/// How long a tenant is used as it was read. An operator who applied a manifest waits this long for all processes.
const FRESH: Duration = Duration::from_secs(3);

/// How long one is used at most while it can't be read again: what runs should not stop because of a short absence of the
/// database.
const USABLE: Duration = Duration::from_mins(1);

/// How long a reading is waited for by others before they read themselves.
const READING: Duration = Duration::from_secs(2);

/// Tenants by number, remembered for [`FRESH`]. Operators make tenants, callers don't, so their number needs no bound here.
/// While one request reads a tenant again, the others go on with what is known.
#[derive(Debug)]
pub struct Tenants {
    pool: PgPool,
    known: Mutex<HashMap<i32, Known>>,
}

#[derive(Debug)]
struct Known {
    tenant: Arc<Tenant>,
    read_at: Instant,
    reading_since: Option<Instant>,
}

impl Tenants {
    /// Reads through `pool`, as the API's role or the engine's.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool, known: Mutex::default() }
    }

    /// The tenant of a number; `None` where there is none.
    ///
    /// # Errors
    /// [`TenantError`], unless the tenant was read less than a minute ago: then that is used.
    pub async fn get(&self, id: i32) -> Result<Option<Arc<Tenant>>, TenantError> {
        let known = match self.known_or_due(id) {
            Ok(tenant) => return Ok(Some(tenant)),
            Err(known) => known,
        };
        match self.read(id, known.as_ref().map(|(tenant, _)| tenant)).await {
            Ok(Some(tenant)) => {
                let read = Known { tenant: tenant.clone(), read_at: Instant::now(), reading_since: None };
                self.lock().insert(id, read);
                Ok(Some(tenant))
            }
            Ok(None) => {
                self.lock().remove(&id);
                Ok(None)
            }
            Err(error) => match known {
                Some((tenant, read_at)) if error.is_transient() && read_at.elapsed() < USABLE => {
                    tracing::warn!(tenant = id, error = &error as &dyn std::error::Error, "using the tenant as last read");
                    Ok(Some(tenant))
                }
                _ => Err(error),
            },
        }
    }

    /// The tenant, if it may be used as it is; otherwise it is this caller's turn to read it.
    fn known_or_due(&self, id: i32) -> Result<Arc<Tenant>, Option<(Arc<Tenant>, Instant)>> {
        let mut known = self.lock();
        let Some(entry) = known.get_mut(&id) else { return Err(None) };
        let age = entry.read_at.elapsed();
        let is_being_read = entry.reading_since.is_some_and(|since| since.elapsed() < READING);
        if age < FRESH || (is_being_read && age < USABLE) {
            return Ok(entry.tenant.clone());
        }
        entry.reading_since = Some(Instant::now());
        Err(Some((entry.tenant.clone(), entry.read_at)))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a tenant; the manifest only travels when it changed.
    async fn read(&self, id: i32, known: Option<&Arc<Tenant>>) -> Result<Option<Arc<Tenant>>, TenantError> {
        let mut transaction = transaction(&self.pool, id).await?;
        let row = sqlx::query("SELECT name, digest, CASE WHEN digest = $2 THEN NULL ELSE manifest END FROM tenant WHERE id = $1")
            .bind(id)
            .bind(known.map(|tenant| tenant.digest.as_slice()))
            .fetch_optional(&mut *transaction)
            .await?;
        transaction.rollback().await?;
        let Some(row) = row else { return Ok(None) };
        let (name, digest, stored): (String, Vec<u8>, Option<Value>) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        match (stored, known) {
            (None, Some(tenant)) => Ok(Some(tenant.clone())),
            (stored, _) => {
                let manifest = Manifest::from_stored(stored.unwrap_or_default());
                let manifest = manifest.map_err(|source| TenantError::Manifest { tenant: name.clone(), source })?;
                Ok(Some(Arc::new(Tenant { id, name, manifest, digest })))
            }
        }
    }
}

/// The number of a tenant, for the owner's commands.
///
/// # Errors
/// [`LedgerError`].
pub async fn find_by_name(pool: &PgPool, name: &str) -> Result<Option<i32>, LedgerError> {
    Ok(sqlx::query_scalar("SELECT id FROM tenant WHERE name = $1").bind(name).fetch_optional(pool).await?)
}

/// The names of these tenants, for the owner's commands; of one that is gone none.
///
/// # Errors
/// [`LedgerError`].
pub async fn names(pool: &PgPool, tenants: &[i32]) -> Result<BTreeMap<i32, String>, LedgerError> {
    let rows: Vec<(i32, String)> = sqlx::query_as("SELECT id, name FROM tenant WHERE id = ANY ($1)").bind(tenants).fetch_all(pool).await?;
    Ok(rows.into_iter().collect())
}

/// The names of the models' providers that manifests have, for the owner's commands: a tenant's, or everybody's; sorted, each once, and no
/// more than `most`.
///
/// # Errors
/// [`LedgerError`].
pub async fn provider_names(pool: &PgPool, tenant: Option<i32>, most: i64) -> Result<Vec<String>, LedgerError> {
    Ok(sqlx::query_scalar(
        "SELECT DISTINCT p.name FROM tenant t CROSS JOIN LATERAL jsonb_object_keys(t.manifest #> '{ai,providers}') AS p (name)
         WHERE ($1::integer IS NULL OR t.id = $1) AND jsonb_typeof(t.manifest #> '{ai,providers}') = 'object' ORDER BY p.name LIMIT $2",
    )
    .bind(tenant)
    .bind(most)
    .fetch_all(pool)
    .await?)
}

/// Whether a manifest has a provider of models by this name: a tenant's, or anybody's.
///
/// # Errors
/// [`LedgerError`].
pub async fn has_provider(pool: &PgPool, tenant: Option<i32>, provider: &str) -> Result<bool, LedgerError> {
    Ok(sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM tenant WHERE ($1::integer IS NULL OR id = $1) AND manifest #> '{ai,providers}' ? $2)",
    )
    .bind(tenant)
    .bind(provider)
    .fetch_one(pool)
    .await?)
}

/// What applying a manifest did, or would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The tenant's number; `None` for one that a dry run would create.
    pub tenant: Option<i32>,
    /// Whether the tenant is new.
    pub created: bool,
    /// What differs from before; empty where nothing does.
    pub changes: Vec<Change>,
    /// The zone by whose clocks its usage was counted, and the one by which it is from now on, where they are two.
    pub zones: Option<(String, String)>,
}

/// One difference between two manifests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was not there before.
    Added(String),
    /// It is not there any more.
    Removed(String),
    /// It is there and says something else.
    Changed(String, Vec<String>),
}

impl fmt::Display for Change {
    /// As a line of a list of changes: `+ dataset prompts`, `~ dataset prompts (sql)`, `- source main`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added(what) => write!(f, "+ {what}"),
            Self::Removed(what) => write!(f, "- {what}"),
            Self::Changed(what, fields) => write!(f, "~ {what} ({})", fields.join(", ")),
        }
    }
}

/// Applies a manifest as the database's owner: makes the tenant or replaces what it declared. The same manifest again
/// changes nothing, not even a time. With `dry_run` nothing is written.
///
/// # Errors
/// [`DeclareError`]: the database, or a schedule whose name somebody took over the API.
pub async fn apply(pool: &PgPool, manifest: &Manifest, now: DateTime<Utc>, dry_run: bool) -> Result<Applied, DeclareError> {
    let timeout = STATEMENT_TIMEOUT.as_millis();
    let mut transaction = pool.begin_with(AssertSqlSafe(format!("BEGIN; SET LOCAL statement_timeout = {timeout}"))).await?;
    // One at a time: two that create the same tenant would otherwise race to its insert.
    sqlx::query("LOCK TABLE tenant IN SHARE ROW EXCLUSIVE MODE").execute(&mut *transaction).await?;
    let before: Option<(i32, Value, Vec<u8>)> = sqlx::query_as("SELECT id, manifest, digest FROM tenant WHERE name = $1")
        .bind(&manifest.name)
        .fetch_optional(&mut *transaction)
        .await?;
    let (stored, digest) = (manifest.to_stored(), manifest.digest());
    let applied = match before {
        Some((id, _, known)) if known == digest => Applied { tenant: Some(id), created: false, changes: Vec::new(), zones: None },
        Some((id, old, _)) => {
            if !dry_run {
                sqlx::query("UPDATE tenant SET manifest = $2, digest = $3, applied_at = $4 WHERE id = $1")
                    .bind(id)
                    .bind(&stored)
                    .bind(digest.as_slice())
                    .bind(now)
                    .execute(&mut *transaction)
                    .await?;
            }
            let (changes, zones) = (differences(&old, &stored), zones(&old, &stored));
            // Where this program can't read what stood there, all that is declared now counts as new.
            let declared = Manifest::from_stored(old).map(|old| old.metrics).unwrap_or_default();
            series::changed(&mut transaction, id, &declared, &manifest.metrics).await?;
            Applied { tenant: Some(id), created: false, changes, zones }
        }
        None => {
            let mut id = None;
            if !dry_run {
                let insert = "INSERT INTO tenant (name, manifest, digest, created_at, applied_at) VALUES ($1, $2, $3, $4, $4) RETURNING id";
                id = Some(
                    sqlx::query_scalar(insert)
                        .bind(&manifest.name)
                        .bind(&stored)
                        .bind(digest.as_slice())
                        .bind(now)
                        .fetch_one(&mut *transaction)
                        .await?,
                );
            }
            Applied { tenant: id, created: true, changes: differences(&Value::Null, &stored), zones: None }
        }
    };
    if let Some(tenant) = applied.tenant.filter(|_| !applied.changes.is_empty() || applied.created) {
        // In a dry run too, so that what stands in the way shows; it is rolled back.
        declare(&mut transaction, tenant, &manifest.schedules, now).await?;
    }
    if dry_run {
        transaction.rollback().await?;
    } else {
        transaction.commit().await?;
    }
    Ok(applied)
}

/// By whose clocks two stored manifests count usage, where that differs.
fn zones(old: &Value, new: &Value) -> Option<(String, String)> {
    let of = |manifest: &Value| manifest.pointer("/usage/time_zone").and_then(Value::as_str).unwrap_or("UTC").to_owned();
    let (old, new) = (of(old), of(new));
    (old != new).then_some((old, new))
}

/// What differs between two stored manifests, by section and name.
fn differences(old: &Value, new: &Value) -> Vec<Change> {
    let nothing = Map::new();
    let (old, new) = (old.as_object().unwrap_or(&nothing), new.as_object().unwrap_or(&nothing));
    let mut changes = Vec::new();
    for section in keys_of_both(old, new) {
        let table = |manifest: &Map<String, Value>| manifest.get(section).and_then(Value::as_object).cloned().unwrap_or_default();
        let (old, new) = (table(old), table(new));
        // These are one thing each; every other section holds things by name.
        if ["tenant", "retention", "limits", "completion", "web", "mail", "events", "usage"].contains(&section) {
            let fields = changed_fields(&old, &new);
            // A tenant has one from the start; a manifest may leave the other out.
            let was_there = section == "tenant" && old.is_empty();
            if !was_there && !fields.is_empty() {
                changes.push(Change::Changed(section.to_owned(), fields));
            }
            continue;
        }
        let singular = match section {
            "summaries" => "summary",
            section => section.strip_suffix('s').unwrap_or(section),
        };
        for name in keys_of_both(&old, &new) {
            let what = format!("{singular} {name}");
            match (old.get(name), new.get(name)) {
                (None, _) => changes.push(Change::Added(what)),
                (_, None) => changes.push(Change::Removed(what)),
                (Some(old), Some(new)) if old != new => {
                    let fields = changed_fields(old.as_object().unwrap_or(&nothing), new.as_object().unwrap_or(&nothing));
                    changes.push(Change::Changed(what, fields));
                }
                _ => {}
            }
        }
    }
    changes
}

fn changed_fields(old: &Map<String, Value>, new: &Map<String, Value>) -> Vec<String> {
    keys_of_both(old, new).into_iter().filter(|key| old.get(*key) != new.get(*key)).map(str::to_owned).collect()
}

fn keys_of_both<'a>(old: &'a Map<String, Value>, new: &'a Map<String, Value>) -> Vec<&'a str> {
    let mut keys: Vec<_> = old.keys().chain(new.keys()).map(String::as_str).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_name_what_changed() {
        let old = json!({
            "tenant": {"name": "a"},
            "sources": {"main": {"url_env": "OFFSTAGE_SOURCE_A"}, "old": {"url_env": "OFFSTAGE_SOURCE_B"}},
            "datasets": {"same": {"sql": "SELECT 1"}, "other": {"sql": "SELECT 1", "source": "main"}},
        });
        let new = json!({
            "tenant": {"name": "a"},
            "sources": {"main": {"url_env": "OFFSTAGE_SOURCE_A"}},
            "datasets": {"same": {"sql": "SELECT 1"}, "other": {"sql": "SELECT 2", "source": "main", "description": "x"}, "new": {}},
        });
        let lines: Vec<_> = differences(&old, &new).iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["+ dataset new", "~ dataset other (description, sql)", "- source old"]);
        assert_eq!(differences(&old, &old), []);
        let created: Vec<_> = differences(&Value::Null, &old).iter().map(ToString::to_string).collect();
        assert_eq!(created, ["+ dataset other", "+ dataset same", "+ source main", "+ source old"]);
        let kept = json!({"tenant": {"name": "a"}, "retention": {"keep_days": 3, "kinds": {"email.send": {"keep_days": 1}}}});
        let lines: Vec<_> = differences(&json!({"tenant": {"name": "a"}}), &kept).iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["~ retention (keep_days, kinds)"]);
    }
}
