//! Users, one at a time: put, found, followed. In the caller's transaction for one tenant.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row, postgres::PgRow};

use super::{hold, is_being_erased};
use crate::{
    ledger::LedgerError,
    people::{Channels, Profile},
};

/// A user as kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndUser {
    /// What `owner` is elsewhere.
    pub id: String,
    /// What the product tells of them.
    pub profile: Profile,
    /// When they were first put here.
    pub created_at: DateTime<Utc>,
    /// When something last changed.
    pub updated_at: DateTime<Utc>,
}

/// What became of a user who was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// They are new.
    Created(EndUser),
    /// They were here.
    Updated(EndUser),
    /// A user of this name is being erased; until that is done there is none.
    BeingErased,
}

/// What became of a wish to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Followed {
    /// They follow, from now on or before.
    Yes,
    /// One of the two is not here.
    Missing,
}

/// Puts a user in the place of what was known of them.
///
/// # Errors
/// [`LedgerError`].
pub async fn put(connection: &mut PgConnection, tenant: i32, id: &str, profile: Profile, now: DateTime<Utc>) -> Result<Kept, LedgerError> {
    hold(connection, tenant, id).await?;
    if is_being_erased(connection, tenant, id).await? {
        return Ok(Kept::BeingErased);
    }
    let row = sqlx::query(
        "INSERT INTO end_user AS u (tenant_id, id, email, name, time_zone, locale, push, mail, created_at, updated_at, plan, add_ons)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, $10, nullif($11, '{}'::text[]))
         ON CONFLICT (tenant_id, id) DO UPDATE
            SET email = excluded.email, name = excluded.name, time_zone = excluded.time_zone, locale = excluded.locale,
                push = excluded.push, mail = excluded.mail, updated_at = excluded.updated_at, plan = excluded.plan, add_ons = excluded.add_ons
         RETURNING created_at, updated_at, xmax = 0 AS created",
    )
    .bind(tenant)
    .bind(id)
    .bind(profile.email.as_deref())
    .bind(profile.name.as_deref())
    .bind(profile.time_zone.as_deref())
    .bind(profile.locale.as_deref())
    .bind(profile.channels.push)
    .bind(profile.channels.email)
    .bind(now)
    .bind(profile.plan.as_deref())
    .bind(&profile.add_ons)
    .fetch_one(&mut *connection)
    .await?;
    let roles: Vec<&str> = profile.roles.iter().map(String::as_str).collect();
    sqlx::query("DELETE FROM end_user_role WHERE tenant_id = $1 AND user_id = $2 AND role <> ALL ($3)")
        .bind(tenant)
        .bind(id)
        .bind(&roles)
        .execute(&mut *connection)
        .await?;
    sqlx::query("INSERT INTO end_user_role (tenant_id, role, user_id) SELECT $1, r.role, $2 FROM unnest($3::text[]) AS r (role) ON CONFLICT DO NOTHING")
        .bind(tenant)
        .bind(id)
        .bind(&roles)
        .execute(connection)
        .await?;
    let user = EndUser { id: id.to_owned(), created_at: row.try_get("created_at")?, updated_at: row.try_get("updated_at")?, profile };
    Ok(if row.try_get("created")? { Kept::Created(user) } else { Kept::Updated(user) })
}

/// The columns that [`EndUser`] reads, from `u`.
macro_rules! user_columns {
    () => {
        "u.id, u.email, u.name, u.time_zone, u.locale, u.push, u.mail, u.created_at, u.updated_at, u.plan, coalesce(u.add_ons, '{}') AS add_ons,
         ARRAY (SELECT r.role FROM end_user_role r WHERE r.tenant_id = u.tenant_id AND r.user_id = u.id) AS roles"
    };
}
pub(super) use user_columns;

/// A user of a tenant.
///
/// # Errors
/// [`LedgerError`].
pub async fn find(connection: &mut PgConnection, tenant: i32, id: &str) -> Result<Option<EndUser>, LedgerError> {
    let row = sqlx::query(concat!("SELECT ", user_columns!(), " FROM end_user u WHERE u.tenant_id = $1 AND u.id = $2"))
        .bind(tenant)
        .bind(id)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(found).transpose()
}

pub(super) fn found(row: &PgRow) -> Result<EndUser, LedgerError> {
    let roles: Vec<String> = row.try_get("roles")?;
    Ok(EndUser {
        id: row.try_get("id")?,
        profile: Profile {
            email: row.try_get("email")?,
            name: row.try_get("name")?,
            time_zone: row.try_get("time_zone")?,
            locale: row.try_get("locale")?,
            roles: roles.into_iter().collect(),
            channels: Channels { push: row.try_get("push")?, email: row.try_get("mail")? },
            plan: row.try_get("plan")?,
            add_ons: row.try_get("add_ons")?,
        },
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

/// Lets one user follow another, both of whom must be here.
///
/// # Errors
/// [`LedgerError`].
pub async fn follow(
    connection: &mut PgConnection,
    tenant: i32,
    user: &str,
    other: &str,
    now: DateTime<Utc>,
) -> Result<Followed, LedgerError> {
    // Held against a `DELETE` that comes at the same moment: what it erases must not get a new row behind it.
    let there: Vec<String> =
        sqlx::query_scalar("SELECT id FROM end_user WHERE tenant_id = $1 AND id IN ($2, $3) ORDER BY id FOR KEY SHARE")
            .bind(tenant)
            .bind(user)
            .bind(other)
            .fetch_all(&mut *connection)
            .await?;
    if there.len() < 2 {
        return Ok(Followed::Missing);
    }
    sqlx::query("INSERT INTO follow (tenant_id, followed, follower, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING")
        .bind(tenant)
        .bind(other)
        .bind(user)
        .bind(now)
        .execute(connection)
        .await?;
    Ok(Followed::Yes)
}

/// Ends that; nothing happens where there was nothing.
///
/// # Errors
/// [`LedgerError`].
pub async fn unfollow(connection: &mut PgConnection, tenant: i32, user: &str, other: &str) -> Result<(), LedgerError> {
    sqlx::query("DELETE FROM follow WHERE tenant_id = $1 AND followed = $2 AND follower = $3")
        .bind(tenant)
        .bind(other)
        .bind(user)
        .execute(connection)
        .await?;
    Ok(())
}
