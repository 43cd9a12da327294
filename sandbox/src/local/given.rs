//! Services and settings that the environment names.

use std::path::Path;

use sqlx::Connection;

use super::demo;
use super::terminal::line;
use crate::error::{Doing, Error, Result};
use crate::fleet::Environment;
use crate::secrets::Secrets;
use crate::services::postgres::{PRODUCT, close_to_writers, connect, ensure_database, ensure_role, open_logins};

/// Set for scripts that talk to the demonstration, of no meaning to the programs; and what the sandbox decides itself.
const OURS: [&str; 10] = [
    "OFFSTAGE_URL",
    "OFFSTAGE_KEY",
    "OFFSTAGE_CONTROL_URL",
    "OFFSTAGE_WEB_URL",
    "OFFSTAGE_MAIL_PAGE_URL",
    "OFFSTAGE_PUSH_SERVICE_URL",
    "OFFSTAGE_MODELS_URL",
    "OFFSTAGE_MODELS_KEY",
    "OFFSTAGE_LISTEN",
    "OFFSTAGE_WORKER_LISTEN",
];

/// The `OFFSTAGE_*` of our own environment, to be handed on.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) environment: Environment,
}

impl Given {
    /// What `demo_file` of an earlier run set is ours and not given: somebody may have sourced it in this very shell.
    pub(super) fn from_environment(demo_file: &Path) -> Self {
        let earlier = demo::read(demo_file);
        let environment = std::env::vars()
            .filter(|(name, value)| name.starts_with("OFFSTAGE_") && !OURS.contains(&name.as_str()) && !value.is_empty())
            .filter(|(name, value)| earlier.get(name) != Some(value))
            .collect();
        Self { environment }
    }

    pub(super) fn has_database(&self) -> bool {
        self.environment.contains_key("OFFSTAGE_DATABASE_URL")
    }

    pub(super) fn has_redis(&self) -> bool {
        self.environment.contains_key("OFFSTAGE_REDIS_URL")
    }

    /// A mail server of the caller's own: its mails leave the machine.
    pub(super) fn has_mail(&self) -> bool {
        self.environment.keys().any(|name| name.starts_with("OFFSTAGE_SMTP_"))
    }

    /// Vendors that are asked at their own doors, or elsewhere.
    pub(super) fn has_vendors(&self) -> bool {
        self.environment.keys().any(|name| name == "OFFSTAGE_VENDORS_URL" || name.starts_with("OFFSTAGE_STATS_"))
    }

    pub(super) fn has_push_keys(&self) -> bool {
        self.environment.contains_key("OFFSTAGE_PUSH_KEYS")
    }

    pub(super) fn has_token_keys(&self) -> bool {
        self.environment.contains_key("OFFSTAGE_TOKEN_KEYS")
    }

    pub(super) fn has_vault_keys(&self) -> bool {
        self.environment.contains_key("OFFSTAGE_VAULT_KEYS")
    }

    pub(super) fn has_recipient_key(&self) -> bool {
        self.environment.contains_key("OFFSTAGE_RECIPIENT_KEY")
    }

    pub(super) fn has_s3(&self) -> bool {
        self.environment.contains_key("OFFSTAGE_S3_BUCKET")
    }
}

/// Fills in what is missing to work with a database that was given: logins for the two roles that the migrations made, and
/// the example's database in the same cluster. Returns the example's address for its owner, or `None` when
/// `OFFSTAGE_SOURCE_PROMPTLOCKR_URL` was given too: then it is somebody else's to fill.
pub(super) async fn provision(owner_url: &str, secrets: &Secrets, environment: &mut Environment) -> Result<Option<String>> {
    let mut connection = connect(owner_url).await.doing(|| "connect to OFFSTAGE_DATABASE_URL".to_owned())?;
    let roles =
        [("OFFSTAGE_API_DATABASE_URL", "offstage_api", &secrets.api), ("OFFSTAGE_ENGINE_DATABASE_URL", "offstage_engine", &secrets.engine)];
    if roles.iter().any(|(variable, ..)| !environment.contains_key(*variable)) {
        if roles.iter().any(|(variable, ..)| environment.contains_key(*variable)) {
            return Err(Error::Invalid("set both OFFSTAGE_API_DATABASE_URL and OFFSTAGE_ENGINE_DATABASE_URL, or neither".to_owned()));
        }
        open_logins(&mut connection, secrets).await?;
        for (variable, role, password) in roles {
            environment.insert(variable.to_owned(), as_other(owner_url, role, password, None)?);
        }
        line("database", "gave the roles offstage_api and offstage_engine passwords of their own");
    }
    let mut example = None;
    if !environment.contains_key("OFFSTAGE_SOURCE_PROMPTLOCKR_URL") {
        ensure_role(&mut connection, "offstage_source", "LOGIN", &secrets.source).await?;
        if ensure_database(&mut connection, PRODUCT, None).await? {
            line("database", &format!("made the database {PRODUCT} for the example"));
        }
        close_to_writers(&mut connection).await?;
        let reader = as_other(owner_url, "offstage_source", &secrets.source, Some(PRODUCT))?;
        environment.insert("OFFSTAGE_SOURCE_PROMPTLOCKR_URL".to_owned(), reader);
        example = Some(with_database(owner_url, PRODUCT)?);
    }
    connection.close().await.doing(|| "close a connection to OFFSTAGE_DATABASE_URL".to_owned())?;
    Ok(example)
}

/// A database URL for another account, and another database when one is named.
fn as_other(url: &str, user: &str, password: &str, database: Option<&str>) -> Result<String> {
    let url = match database {
        Some(database) => with_database(url, database)?,
        None => url.to_owned(),
    };
    let (scheme, rest) = url.split_once("://").ok_or_else(odd)?;
    let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    Ok(format!("{scheme}://{user}:{password}@{place}"))
}

/// A database URL with another database.
fn with_database(url: &str, database: &str) -> Result<String> {
    let (address, query) = url.split_once('?').map_or((url, None), |(address, query)| (address, Some(query)));
    let (scheme, rest) = address.split_once("://").ok_or_else(odd)?;
    let place = rest.split_once('/').map_or(rest, |(place, _)| place);
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    Ok(format!("{scheme}://{place}/{database}{query}"))
}

fn odd() -> Error {
    Error::Invalid("OFFSTAGE_DATABASE_URL must look like postgres://user:password@host:port/database".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_change_account_and_database() {
        let url = "postgres://owner:p%40ss@host:5433/offstage?sslmode=require";
        assert_eq!(as_other(url, "offstage_api", "x", None).unwrap(), "postgres://offstage_api:x@host:5433/offstage?sslmode=require");
        assert_eq!(as_other(url, "r", "x", Some("other")).unwrap(), "postgres://r:x@host:5433/other?sslmode=require");
        assert_eq!(with_database("postgres://u:p@h", "d").unwrap(), "postgres://u:p@h/d");
        assert!(as_other("host=here", "a", "b", None).is_err());
    }
}
