//! The example product, promptlockr: its database made and filled, so that there is something to export.
//!
//! The SQL is `examples/promptlockr`'s. Every step is one transaction and is left out when its work stands already, so an
//! interrupted load goes on where it was.

pub mod packages;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::error::{Doing, Error, Result};
use crate::host::Host;
use crate::process::Spec;
use crate::services::postgres::connect;
pub use packages::{Catalogue, Origin};

/// A million rows take a minute or two.
const LOAD_WITHIN: Duration = Duration::from_hours(1);

/// Where the example's files are, and by what they are run.
#[derive(Debug)]
pub(crate) struct Example<'a> {
    pub(crate) host: &'a Host,
    pub(crate) psql: PathBuf,
    /// The example's database, as the role that owns it.
    pub(crate) url: String,
    pub(crate) log: PathBuf,
}

/// `examples/promptlockr` of the source tree that this was built from.
pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/promptlockr")
}

/// Its manifest, for `api tenant apply`.
pub(crate) fn manifest() -> PathBuf {
    manifest_of(PROMPTLOCKR)
}

/// The product with tables and a page.
pub(crate) const PROMPTLOCKR: &str = "promptlockr";

/// The products of `examples/`.
pub(crate) const PRODUCTS: [&str; 5] = [PROMPTLOCKR, "analyticbot", "community", "mealplanner", "promptforge"];

/// A product's manifest.
pub(crate) fn manifest_of(product: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(product).join("tenant.toml")
}

impl Example<'_> {
    /// Makes the product's tables and, when they are empty, `rows` prompts with all that goes with them. False when they
    /// were there.
    pub(crate) async fn load(&self, rows: u64) -> Result<bool> {
        let mut connection = self.connect().await?;
        if !exists(&mut connection, "prompts").await? {
            self.psql(&["--single-transaction".into(), "--file".into(), directory().join("schema.sql").into()]).await?;
        }
        let empty = is_empty(&mut connection, "users").await?;
        if empty {
            self.psql(&["--set".into(), format!("rows={rows}").into(), "--file".into(), directory().join("generate.sql").into()]).await?;
        }
        close(connection).await?;
        Ok(empty)
    }

    /// Makes the table of the package catalogue and fills it when it is empty. `None` when it was filled before.
    pub(crate) async fn load_packages(&self) -> Result<Option<Catalogue>> {
        let mut connection = self.connect().await?;
        if !exists(&mut connection, "packages").await? {
            self.psql(&["--single-transaction".into(), "--file".into(), directory().join("packages.sql").into()]).await?;
        }
        let loaded = if is_empty(&mut connection, "packages").await? { Some(packages::load(&mut connection).await?) } else { None };
        close(connection).await?;
        Ok(loaded)
    }

    async fn connect(&self) -> Result<PgConnection> {
        connect(&self.url).await.doing(|| "connect to the example's database".to_owned())
    }

    async fn psql(&self, arguments: &[OsString]) -> Result<()> {
        let (url, password) = without_password(&self.url)?;
        let mut spec = Spec::new("psql", self.psql.clone(), self.log.clone());
        spec.arguments = ["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname"].map(OsString::from).into();
        spec.arguments.push(url.into());
        spec.arguments.extend_from_slice(arguments);
        spec.environment.insert("PGPASSWORD".to_owned(), password);
        spec.environment.insert("PGCLIENTENCODING".to_owned(), "UTF8".to_owned());
        self.host.run(spec, LOAD_WITHIN).await.map(drop)
    }
}

/// A URL without its password, and the password: arguments can be read by everybody on the machine.
fn without_password(url: &str) -> Result<(String, String)> {
    let parts = || {
        let (scheme, rest) = url.split_once("://")?;
        // The password may hold `@` in a URL that is not quite right; the host can't.
        let (account, place) = rest.rsplit_once('@')?;
        let (user, password) = account.split_once(':')?;
        Some((format!("{scheme}://{user}@{place}"), password))
    };
    match parts() {
        Some((url, password)) => Ok((url, decode(password))),
        None if url.contains("://") => Ok((url.to_owned(), String::new())),
        None => Err(Error::Invalid("a database's address must look like postgres://user:password@host:port/database".to_owned())),
    }
}

/// Undoes percent encoding.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = (*first == b'%').then(|| after.get(..2)).flatten().and_then(|two| std::str::from_utf8(two).ok());
        if let Some(byte) = hex.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            bytes.push(byte);
            rest = after.get(2..).unwrap_or_default();
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn exists(connection: &mut PgConnection, table: &str) -> Result<bool> {
    sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(table)
        .fetch_one(connection)
        .await
        .doing(|| format!("look for the table {table}"))
}

async fn is_empty(connection: &mut PgConnection, table: &'static str) -> Result<bool> {
    let query = AssertSqlSafe(format!("SELECT NOT EXISTS (SELECT FROM {table})"));
    sqlx::query_scalar(query).fetch_one(connection).await.doing(|| format!("look into the table {table}"))
}

async fn close(connection: PgConnection) -> Result<()> {
    connection.close().await.doing(|| "close a connection to the example's database".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_leave_the_url() {
        let split = |url| without_password(url).unwrap();
        let expected = ("postgres://u@h:1/d?sslmode=disable".to_owned(), "p@s%".to_owned());
        assert_eq!(split("postgres://u:p%40s%25@h:1/d?sslmode=disable"), expected);
        assert_eq!(split("postgres://u@h/d"), ("postgres://u@h/d".to_owned(), String::new()));
        assert!(without_password("somewhere").is_err());
    }
}
