//! The schedules that a manifest declares: made, changed and removed with it. Those made over the API are left alone.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};

use super::{FoundSchedule, LedgerError, NewSchedule, ScheduleError, change, create, delete, found, hold_count, schedule_columns};
use crate::{clock::Clock, kinds::Registry, schedule::Definition};

/// Why a manifest's schedules could not be declared.
#[derive(Debug, thiserror::Error)]
pub enum DeclareError {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A schedule of that name was made over the API.
    #[error(
        "schedules.{name}: there is a schedule of this name that was made over the API; delete that one, or declare it by another name"
    )]
    NameTaken {
        /// The name.
        name: String,
    },
    /// There would be more schedules than a tenant may have.
    #[error("schedules: {source}")]
    Refused {
        /// Why.
        #[source]
        source: ScheduleError,
    },
}

impl From<sqlx::Error> for DeclareError {
    fn from(error: sqlx::Error) -> Self {
        Self::Ledger(error.into())
    }
}

impl From<ScheduleError> for DeclareError {
    fn from(error: ScheduleError) -> Self {
        match error {
            ScheduleError::Ledger(error) => Self::Ledger(error),
            source => Self::Refused { source },
        }
    }
}

/// Makes a tenant's declared schedules these, in the transaction that applies its manifest.
///
/// # Errors
/// [`DeclareError`].
pub async fn declare(
    connection: &mut PgConnection,
    tenant: i32,
    declared: &BTreeMap<String, Definition>,
    now: DateTime<Utc>,
) -> Result<(), DeclareError> {
    let kinds = Registry::new(true);
    let clock = Clock::at(now);
    hold_count(connection, tenant).await?;
    let rows = sqlx::query(concat!("SELECT ", schedule_columns!(), " FROM schedule s WHERE s.tenant_id = $1 ORDER BY s.id FOR UPDATE"))
        .bind(tenant)
        .fetch_all(&mut *connection)
        .await?;
    let mut standing: BTreeMap<String, FoundSchedule> = BTreeMap::new();
    for row in &rows {
        let (name, is_declared): (String, bool) = (row.try_get("name")?, row.try_get("declared")?);
        if is_declared {
            standing.insert(name, found(row)?);
        } else if declared.contains_key(&name) {
            return Err(DeclareError::NameTaken { name });
        }
    }
    for (name, schedule) in &standing {
        if !declared.contains_key(name) {
            delete(connection, schedule).await?;
        }
    }
    for (name, definition) in declared {
        // The manifest was checked: each kind is known.
        let Some(entry) = kinds.find(&definition.kind) else { continue };
        match standing.get(name) {
            Some(held) if held.definition == *definition => {}
            Some(held) => _ = change(connection, held, name, definition.clone(), entry.name, now).await?,
            None => {
                let new = NewSchedule {
                    id: clock.new_id(),
                    tenant,
                    name: name.clone(),
                    declared: true,
                    definition: definition.clone(),
                    kind: entry.name,
                };
                create(connection, &new, now).await?;
            }
        }
    }
    Ok(())
}
