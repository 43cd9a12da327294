//! Users' preferences: put and shown one user at a time, read for many when something is sent.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row, postgres::PgRow};

use super::{hold, is_being_erased};
use crate::{
    ledger::LedgerError,
    people::{Minute, Preferences, QuietHours, Wishes},
};

fn wishes(row: &PgRow) -> Result<Wishes, LedgerError> {
    Ok(Wishes { in_app: row.try_get("in_app")?, push: row.try_get("push")?, email: row.try_get("mail")? })
}

/// What a user said, of all categories.
///
/// # Errors
/// [`LedgerError`].
pub async fn find(connection: &mut PgConnection, tenant: i32, user: &str) -> Result<Preferences, LedgerError> {
    let rows = sqlx::query("SELECT category, in_app, push, mail FROM preference WHERE tenant_id = $1 AND user_id = $2 ORDER BY category")
        .bind(tenant)
        .bind(user)
        .fetch_all(&mut *connection)
        .await?;
    let categories = rows.iter().map(|row| Ok((row.try_get("category")?, wishes(row)?))).collect::<Result<_, LedgerError>>()?;
    let quiet: Option<(i16, i16)> = sqlx::query_as("SELECT begins, ends FROM quiet_hours WHERE tenant_id = $1 AND user_id = $2")
        .bind(tenant)
        .bind(user)
        .fetch_optional(connection)
        .await?;
    let quiet = quiet.and_then(|(from, to)| Minute::new(from).zip(Minute::new(to)));
    Ok(Preferences { categories, quiet_hours: quiet.map(|(from, to)| QuietHours { from, to }) })
}

/// Puts what a user says in the place of what they said before; `false` where a user of this name is being erased.
///
/// # Errors
/// [`LedgerError`].
pub async fn put(
    connection: &mut PgConnection,
    tenant: i32,
    user: &str,
    preferences: &Preferences,
    now: DateTime<Utc>,
) -> Result<bool, LedgerError> {
    hold(connection, tenant, user).await?;
    if is_being_erased(connection, tenant, user).await? {
        return Ok(false);
    }
    let categories: Vec<&str> = preferences.categories.keys().map(String::as_str).collect();
    let of = |wish: fn(&Wishes) -> Option<bool>| preferences.categories.values().map(wish).collect::<Vec<_>>();
    sqlx::query("DELETE FROM preference WHERE tenant_id = $1 AND user_id = $2 AND category <> ALL ($3)")
        .bind(tenant)
        .bind(user)
        .bind(&categories)
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "INSERT INTO preference (tenant_id, user_id, category, in_app, push, mail, updated_at)
         SELECT $1, $2, c.category, c.in_app, c.push, c.mail, $7
         FROM unnest($3::text[], $4::boolean[], $5::boolean[], $6::boolean[]) AS c (category, in_app, push, mail)
         ON CONFLICT (tenant_id, user_id, category) DO UPDATE
            SET in_app = excluded.in_app, push = excluded.push, mail = excluded.mail, updated_at = excluded.updated_at",
    )
    .bind(tenant)
    .bind(user)
    .bind(&categories)
    .bind(of(|wishes| wishes.in_app))
    .bind(of(|wishes| wishes.push))
    .bind(of(|wishes| wishes.email))
    .bind(now)
    .execute(&mut *connection)
    .await?;
    let quiet = match preferences.quiet_hours {
        None => sqlx::query("DELETE FROM quiet_hours WHERE tenant_id = $1 AND user_id = $2").bind(tenant).bind(user),
        Some(hours) => sqlx::query(
            "INSERT INTO quiet_hours (tenant_id, user_id, begins, ends) VALUES ($1, $2, $3, $4)
             ON CONFLICT (tenant_id, user_id) DO UPDATE SET begins = excluded.begins, ends = excluded.ends",
        )
        .bind(tenant)
        .bind(user)
        .bind(hours.from.minutes())
        .bind(hours.to.minutes()),
    };
    quiet.execute(connection).await?;
    Ok(true)
}

/// What some users said of one category, by their ids; who said nothing of it is left out. To be asked when something is sent.
///
/// # Errors
/// [`LedgerError`].
pub async fn of_category(
    connection: &mut PgConnection,
    tenant: i32,
    users: &[String],
    category: &str,
) -> Result<BTreeMap<String, Wishes>, LedgerError> {
    let rows =
        sqlx::query("SELECT user_id, in_app, push, mail FROM preference WHERE tenant_id = $1 AND user_id = ANY ($2) AND category = $3")
            .bind(tenant)
            .bind(users)
            .bind(category)
            .fetch_all(connection)
            .await?;
    rows.iter().map(|row| Ok((row.try_get("user_id")?, wishes(row)?))).collect()
}
