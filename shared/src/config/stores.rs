//! The three stores: Postgres, Redis, S3.

use std::{str::FromStr, time::Duration};

use redis::IntoConnectionInfo;
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgConnectOptions;
use url::Url;

use super::variables::Reader;

/// A Postgres connection for one role.
#[derive(Clone, Debug)]
pub struct Database {
    /// A `postgres://` URL with user and password in it.
    pub url: SecretString,
    /// The most connections this process opens.
    pub pool: u32,
}

impl Database {
    pub(super) fn read(reader: &mut Reader<'_>, variable: &str, pool: Option<(&str, u32)>) -> Option<Self> {
        const EXAMPLE: &str = "postgres://user:password@host:5432/offstage";
        let url = reader.required_secret(variable, EXAMPLE);
        // R6 budgets 50 connections an API process and 100 in all; 500 only stops a slip of the hand.
        let pool = pool.map_or(2, |(variable, default)| reader.number_in(variable, default, 2..=500));
        let url = url?;
        if !is_postgres_url(url.expose_secret()) {
            // The parser's own message may quote the URL, password included.
            reader.problem(variable, format!("is not a Postgres URL; write {EXAMPLE}, with special characters of the password as %XX"));
            return None;
        }
        Some(Self { url, pool })
    }
}

/// Whether a text can be used as a Postgres URL.
pub(super) fn is_postgres_url(text: &str) -> bool {
    (text.starts_with("postgres://") || text.starts_with("postgresql://")) && PgConnectOptions::from_str(text).is_ok()
}

/// Warns where a program is given the owner's own URL: the owner is a member of the engine's role, and row-level security
/// would then guard nothing.
pub(super) fn warn_of_shared_role(reader: &mut Reader<'_>, variable: &str, role: &str) {
    let owner = reader.optional("OFFSTAGE_DATABASE_URL");
    if owner.is_some() && owner == reader.optional(variable) {
        reader.warn(format!(
            "{variable} equals OFFSTAGE_DATABASE_URL: the program would run with the owner's rights; give it a role that has only {role}"
        ));
    }
}

/// Redis.
#[derive(Clone, Debug)]
pub struct Redis {
    /// A `redis://` URL, which may hold a password.
    pub url: SecretString,
    /// What all keys begin with, so that installations can share a server.
    pub prefix: String,
}

impl Redis {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        const EXAMPLE: &str = "redis://user:password@host:6379/0";
        let prefix = reader.optional("OFFSTAGE_REDIS_PREFIX").unwrap_or("offstage").to_owned();
        // Braces would move the hash tag that keeps a queue's keys on one node of a cluster.
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
        if prefix.len() > 64 || !prefix.chars().all(legal) {
            reader.problem("OFFSTAGE_REDIS_PREFIX", format!("`{prefix}` must be 1 to 64 letters, digits, `_`, `-`, `.` or `:`"));
        }
        let url = reader.required_secret("OFFSTAGE_REDIS_URL", EXAMPLE)?;
        if url.expose_secret().into_connection_info().is_err() {
            reader.problem(
                "OFFSTAGE_REDIS_URL",
                format!("is not a Redis URL; write {EXAMPLE}, with special characters of the password as %XX"),
            );
            return None;
        }
        Some(Self { url, prefix })
    }
}

/// Object storage that speaks S3.
#[derive(Clone, Debug)]
pub struct S3 {
    /// The server; AWS' own for the region when absent.
    pub endpoint: Option<Url>,
    /// The server as clients reach it: what presigned links name. [`S3::endpoint`] when absent.
    pub public_endpoint: Option<Url>,
    /// The region that requests are signed for.
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// The access key's id, which is no secret.
    pub access_key_id: String,
    /// The access key.
    pub secret_access_key: SecretString,
    /// The token of temporary credentials.
    pub session_token: Option<SecretString>,
    /// Whether the bucket stands in the path (`host/bucket/key`) and not in the host's name.
    pub path_style: bool,
    /// The longest that a call may take, besides the time that its body needs at the slowest (`OFFSTAGE_S3_CALL_SECONDS`).
    pub call: Duration,
}

impl S3 {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let endpoint = endpoint(reader, "OFFSTAGE_S3_ENDPOINT");
        let public_endpoint = endpoint_of_clients(reader, endpoint.is_some());
        let region = reader.optional("OFFSTAGE_S3_REGION").unwrap_or("us-east-1").to_owned();
        let path_style = reader.word("OFFSTAGE_S3_PATH_STYLE", endpoint.is_some(), &[("true", true), ("false", false)]);
        let call = Duration::from_secs(reader.number("OFFSTAGE_S3_CALL_SECONDS", 30, 1, 600));
        let bucket = reader.required("OFFSTAGE_S3_BUCKET", "offstage-files");
        let access_key_id = reader.required("OFFSTAGE_S3_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE");
        let secret_access_key = reader.required_secret("OFFSTAGE_S3_SECRET_ACCESS_KEY", "the access key's secret part");
        let session_token = reader.optional("OFFSTAGE_S3_SESSION_TOKEN").map(SecretString::from);
        // https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
        if let Some(bucket) = bucket
            && !((3..=63).contains(&bucket.len()) && bucket.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.')))
        {
            reader.problem("OFFSTAGE_S3_BUCKET", format!("`{bucket}` must be 3 to 63 lower-case letters, digits, `-` or `.`"));
        }
        Some(Self {
            endpoint,
            public_endpoint,
            region,
            bucket: bucket?.to_owned(),
            access_key_id: access_key_id?.to_owned(),
            secret_access_key: secret_access_key?,
            session_token,
            path_style,
            call,
        })
    }
}

pub(super) fn endpoint(reader: &mut Reader<'_>, variable: &str) -> Option<Url> {
    let value = reader.optional(variable)?;
    match Url::parse(value) {
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            reader.problem(
                variable,
                "must not hold a user or password; those of S3 stand in OFFSTAGE_S3_ACCESS_KEY_ID and OFFSTAGE_S3_SECRET_ACCESS_KEY",
            );
            None
        }
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none() => Some(url),
        _ => {
            reader.problem(variable, format!("`{value}` is not an http or https URL; write for example https://s3.example.com"));
            None
        }
    }
}

fn endpoint_of_clients(reader: &mut Reader<'_>, has_endpoint: bool) -> Option<Url> {
    let url = endpoint(reader, "OFFSTAGE_S3_PUBLIC_ENDPOINT");
    if url.is_some() && !has_endpoint {
        reader.warn(
            "OFFSTAGE_S3_PUBLIC_ENDPOINT is set without OFFSTAGE_S3_ENDPOINT: files are written to AWS, but links name another server",
        );
    }
    url
}
