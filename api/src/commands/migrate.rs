//! `api migrate`.

use super::{CommandError, Owner, say};
use crate::schema;

/// Applies what the database lacks and says what that was.
pub(super) async fn migrate(owner: &Owner) -> Result<(), CommandError> {
    let applied = schema::migrate(&owner.pool).await?;
    if applied.is_empty() {
        say("the schema is up to date");
    }
    for migration in applied {
        say(format!("applied {} {}", migration.version, migration.description));
    }
    Ok(())
}
