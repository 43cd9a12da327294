//! What users did, and feeds of it (R25): an activity stands once, and each feed that has it holds its id.
//!
//! What must stay true: a feed is read by its key in its order, newest first, so a page costs the same however long it is; a feed has an
//! activity once; the actor's own has it with the request, followers' by a job; of a user who is being erased nothing is shown, and nothing
//! gets into a feed behind an erasure.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{PgConnection, PgPool, Row, postgres::PgRow};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    LedgerError,
    insert::{NewJob, insert_within},
    people,
    repeat::Repeat,
};
use crate::{content::Content, job::JobId, kinds::ActivityFanOut};

/// How long an activity stands in feeds, in days.
pub const KEPT_DAYS: i64 = 90;

/// Followers whose feeds one transaction writes.
const PAGE: i64 = 5_000;

/// What somebody did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// They made something.
    Created,
    /// They like something.
    Liked,
    /// They follow somebody, or something.
    Followed,
    /// They shared something.
    Shared,
    /// They commented on something.
    Commented,
}

impl Verb {
    const ALL: [Self; 5] = [Self::Created, Self::Liked, Self::Followed, Self::Shared, Self::Commented];

    /// Its word in rows and answers.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Liked => "liked",
            Self::Followed => "followed",
            Self::Shared => "shared",
            Self::Commented => "commented",
        }
    }
}

/// Something that somebody did, about to be kept.
#[derive(Debug, Clone, Copy)]
pub struct NewActivity<'a> {
    /// Its id.
    pub id: Uuid,
    /// Who did it.
    pub actor: &'a str,
    /// Whose thing it was done to, where that is known.
    pub user: Option<&'a str>,
    /// What they did.
    pub verb: Verb,
    /// To what.
    pub object: &'a Content,
    /// In words.
    pub title: Option<&'a str>,
    /// What a click opens.
    pub url: Option<&'a str>,
    /// For programs; an object.
    pub data: &'a Value,
    /// Of the actor and the idempotency key, if there is one.
    pub key: Option<[u8; 32]>,
    /// Of what is asked for.
    pub body: [u8; 32],
}

/// Something that somebody did, as it stands in a feed.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Activity {
    /// Its id. Later ones are greater.
    pub id: Uuid,
    /// Who did it.
    pub actor: String,
    /// What they did.
    pub verb: Verb,
    /// To what.
    pub object: Content,
    /// Whose that is, where the product said so.
    #[schema(required)]
    pub user: Option<String>,
    /// In words.
    #[schema(required)]
    pub title: Option<String>,
    /// What a click opens.
    #[schema(required)]
    pub url: Option<String>,
    /// For programs.
    #[schema(value_type = Object)]
    pub data: Value,
    /// When it was told.
    pub created_at: DateTime<Utc>,
}

fn found(row: &PgRow) -> Result<Activity, LedgerError> {
    let verb: String = row.try_get("verb")?;
    let known = Verb::ALL.into_iter().find(|known| known.word() == verb);
    Ok(Activity {
        id: row.try_get("id")?,
        actor: row.try_get("actor")?,
        verb: known.ok_or(LedgerError::Unknown { what: "verb", value: verb })?,
        object: Content { sort: row.try_get("object_type")?, id: row.try_get("object_id")? },
        user: row.try_get("user_id")?,
        title: row.try_get("title")?,
        url: row.try_get("url")?,
        data: row.try_get("data")?,
        created_at: row.try_get("created_at")?,
    })
}

/// The columns that [`Activity`] reads, from `a`.
macro_rules! columns {
    () => {
        "a.id, a.actor, a.verb, a.object_type, a.object_id, a.user_id, a.title, a.url, a.data, a.created_at"
    };
}

/// Who holds a tenant's feeds, to the transaction's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Who writes into them: any number at a time.
    Among,
    /// Who begins an erasure: alone, so that what was being written is there by then, and what is written later knows of it.
    Alone,
}

/// Holds a tenant's feeds. To be called in a statement before the one that reads whom to write to, which then sees what came before.
///
/// # Errors
/// [`LedgerError`].
pub async fn hold(connection: &mut PgConnection, tenant: i32, hold: Hold) -> Result<(), LedgerError> {
    let statement = match hold {
        Hold::Among => "SELECT pg_advisory_xact_lock_shared(hashtext('feeds'), $1)",
        Hold::Alone => "SELECT pg_advisory_xact_lock(hashtext('feeds'), $1)",
    };
    sqlx::query(statement).bind(tenant).execute(connection).await?;
    Ok(())
}

/// Keeps what somebody did, puts it into their own feed, and makes the job `job` that puts it into their followers', in the caller's
/// transaction. `None` where one of those whom it names is being erased.
///
/// # Errors
/// [`LedgerError`].
pub async fn add(
    connection: &mut PgConnection,
    tenant: i32,
    job: JobId,
    activity: &NewActivity<'_>,
    now: DateTime<Utc>,
) -> Result<Option<Repeat>, LedgerError> {
    if !people::are_here(connection, tenant, [Some(activity.actor), activity.user].into_iter().flatten().collect()).await? {
        return Ok(None);
    }
    let key = activity.key.map(|key| key.to_vec());
    let added = sqlx::query(
        "INSERT INTO activity (id, tenant_id, actor, user_id, verb, object_type, object_id, title, url, data, key_hash, body_hash, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
         ON CONFLICT (tenant_id, key_hash) WHERE key_hash IS NOT NULL DO NOTHING",
    )
    .bind(activity.id)
    .bind(tenant)
    .bind(activity.actor)
    .bind(activity.user)
    .bind(activity.verb.word())
    .bind(&activity.object.sort)
    .bind(&activity.object.id)
    .bind(activity.title)
    .bind(activity.url)
    .bind(activity.data)
    .bind(&key)
    .bind(activity.body.as_slice())
    .bind(now)
    .execute(&mut *connection)
    .await?;
    if added.rows_affected() == 0 {
        let held: Option<(Uuid, Vec<u8>)> = sqlx::query_as("SELECT id, body_hash FROM activity WHERE tenant_id = $1 AND key_hash = $2")
            .bind(tenant)
            .bind(&key)
            .fetch_optional(connection)
            .await?;
        return Ok(held.map(|held| Repeat::by(held, activity.body)));
    }
    sqlx::query("INSERT INTO feed_entry (tenant_id, owner, activity_id) VALUES ($1, $2, $3)")
        .bind(tenant)
        .bind(activity.actor)
        .bind(activity.id)
        .execute(&mut *connection)
        .await?;
    // In no user's list, it goes with whose doing it tells.
    let payload = ActivityFanOut { activity: activity.id };
    let job = NewJob { subject: Some(activity.actor.to_owned()), ..NewJob::of(job, tenant, &payload, now) };
    insert_within(connection, now, &[job]).await?;
    Ok(Some(Repeat::New))
}

/// Puts an activity into the feeds of a page of the actor's followers, in the caller's transaction; answers whether all have it, or it is
/// gone. Whoever follows later does not get it.
///
/// # Errors
/// [`LedgerError`].
pub async fn fan_out(connection: &mut PgConnection, tenant: i32, activity: Uuid) -> Result<bool, LedgerError> {
    hold(connection, tenant, Hold::Among).await?;
    let row = sqlx::query(
        "SELECT a.actor, a.after FROM activity a
         WHERE a.id = $1 AND a.tenant_id = $2 AND NOT a.is_fanned_out
           AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = a.tenant_id AND e.user_id = a.actor)
         FOR UPDATE OF a",
    )
    .bind(activity)
    .bind(tenant)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(true) };
    let (actor, after): (String, String) = (row.try_get("actor")?, row.try_get("after")?);
    // By the key of `follow` in its order, as `people::audience` reads it. Who is being erased has no row of a user any more.
    let (read, last): (i64, Option<String>) = sqlx::query_as(
        "WITH page AS MATERIALIZED (
            SELECT f.follower FROM follow f
            WHERE f.tenant_id = $1 AND f.followed >= $2 AND f.followed <= $2 AND f.follower > $3
            ORDER BY f.tenant_id, f.followed, f.follower LIMIT $5
         ), written AS (
            INSERT INTO feed_entry (tenant_id, owner, activity_id)
            SELECT $1, p.follower, $4 FROM page p
            WHERE EXISTS (SELECT FROM end_user u WHERE u.tenant_id = $1 AND u.id = p.follower)
            ON CONFLICT DO NOTHING
         )
         SELECT count(*), max(follower) FROM page",
    )
    .bind(tenant)
    .bind(&actor)
    .bind(&after)
    .bind(activity)
    .bind(PAGE)
    .fetch_one(&mut *connection)
    .await?;
    let is_done = read < PAGE;
    sqlx::query("UPDATE activity SET after = $2, is_fanned_out = $3 WHERE id = $1")
        .bind(activity)
        .bind(last.filter(|_| !is_done).unwrap_or_default())
        .bind(is_done)
        .execute(connection)
        .await?;
    Ok(is_done)
}

/// One activity.
///
/// # Errors
/// [`LedgerError`].
pub async fn find(connection: &mut PgConnection, tenant: i32, id: Uuid) -> Result<Option<Activity>, LedgerError> {
    let row = sqlx::query(concat!("SELECT ", columns!(), " FROM activity a WHERE a.id = $1 AND a.tenant_id = $2"));
    row.bind(id).bind(tenant).fetch_optional(connection).await?.as_ref().map(found).transpose()
}

/// A page of somebody's feed, newest first; of all that was done where `owner` is `None`.
///
/// # Errors
/// [`LedgerError`].
pub async fn page(
    connection: &mut PgConnection,
    tenant: i32,
    owner: Option<&str>,
    below: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Activity>, LedgerError> {
    // Asked for by ranges of one and by the index's own order, as lists are (`crate::ledger::find`).
    let query = match owner {
        Some(_) => sqlx::query(concat!(
            "SELECT ",
            columns!(),
            " FROM feed_entry f JOIN activity a ON a.id = f.activity_id
              WHERE f.tenant_id = $1 AND f.owner >= $4 AND (f.owner, f.activity_id) < ($4, $2)
              ORDER BY f.tenant_id DESC, f.owner DESC, f.activity_id DESC LIMIT $3"
        )),
        None => sqlx::query(concat!(
            "SELECT ",
            columns!(),
            " FROM activity a WHERE a.tenant_id >= $1 AND (a.tenant_id, a.id) < ($1, $2) AND $4::text IS NULL ORDER BY a.tenant_id DESC, a.id DESC LIMIT $3"
        )),
    };
    let query = query.persistent(false).bind(tenant).bind(below.unwrap_or(Uuid::max())).bind(limit).bind(owner);
    query.fetch_all(connection).await?.iter().map(found).collect()
}

/// Forgets what has had its time, up to 5,000 activities and as many entries of feeds.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget(pool: &PgPool, now: DateTime<Utc>) -> Result<u64, LedgerError> {
    let oldest = first_id_at(now - TimeDelta::days(KEPT_DAYS));
    let entries = sqlx::query(
        "DELETE FROM feed_entry WHERE ctid = ANY (ARRAY (SELECT ctid FROM feed_entry WHERE activity_id < $1 ORDER BY activity_id LIMIT 5000))",
    );
    let entries = entries.bind(oldest).execute(pool).await?.rows_affected();
    let activities =
        sqlx::query("DELETE FROM activity WHERE id = ANY (ARRAY (SELECT id FROM activity WHERE id < $1 ORDER BY id LIMIT 5000))");
    Ok(entries + activities.bind(oldest).execute(pool).await?.rows_affected())
}

/// An id below all that are made at a moment or later: they begin with the milliseconds since 1970 (RFC 9562, section 5.7).
fn first_id_at(moment: DateTime<Utc>) -> Uuid {
    Uuid::from_u128(u128::try_from(moment.timestamp_millis()).unwrap_or_default() << 80)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn ids_are_told_from_older_ones_by_their_time() {
        let noon: DateTime<Utc> = "2026-02-28T12:00:00Z".parse().unwrap();
        let id = Clock::at(noon).new_id();
        assert!(first_id_at(noon) <= id && id < first_id_at(noon + TimeDelta::milliseconds(2)));
    }
}
