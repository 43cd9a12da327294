//! `api key …` (R52).

use chrono::{DateTime, Utc};
use clap::Subcommand;
use serde_json::json;
use shared::keys::{self, DEFAULT_LIFE_DAYS, LONGEST_LIFE_DAYS, ListedKey, Revoked, Scope, Scopes};
use uuid::Uuid;

use super::{CommandError, Owner, complain, say};

/// The longest name of a key, in characters.
const LONGEST_NAME: usize = 100;

/// The help of `--scopes`.
fn scopes() -> String {
    format!("What it may do, separated by commas: {}, or * for all", Scope::ALL.map(Scope::word).join(", "))
}

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Make a key. It is shown this once and can't be read again.
    Create {
        /// The tenant's name.
        #[arg(long)]
        tenant: String,
        /// What the key is for, to know it by later.
        #[arg(long)]
        name: String,
        // Of the list itself, so that none is forgotten.
        #[arg(long, help = scopes())]
        scopes: String,
        /// After how many days it ends.
        #[arg(long, default_value_t = DEFAULT_LIFE_DAYS, value_parser = clap::value_parser!(u32).range(1..=i64::from(LONGEST_LIFE_DAYS)))]
        expires_in_days: u32,
        /// Print an object with the key and all about it.
        #[arg(long)]
        json: bool,
    },
    /// List a tenant's keys, newest first.
    List {
        /// The tenant's name.
        #[arg(long)]
        tenant: String,
        /// Print a list of objects.
        #[arg(long)]
        json: bool,
    },
    /// End a key. Every API process refuses it within five seconds.
    Revoke {
        /// The key's id, as `list` shows it.
        id: Uuid,
    },
}

impl KeyCommand {
    pub(super) async fn run(self, owner: &Owner) -> Result<(), CommandError> {
        match self {
            Self::Create { tenant, name, scopes, expires_in_days, json } => {
                create(owner, &tenant, &name, &scopes, expires_in_days, json).await
            }
            Self::List { tenant, json } => list(owner, &tenant, json).await,
            Self::Revoke { id } => revoke(owner, id).await,
        }
    }
}

async fn create(owner: &Owner, tenant: &str, name: &str, scopes: &str, days: u32, as_json: bool) -> Result<(), CommandError> {
    let length = name.chars().count();
    if !(1..=LONGEST_NAME).contains(&length) || name.chars().any(char::is_control) {
        return Err(CommandError::Argument(format!("--name must have 1 to {LONGEST_NAME} characters on one line")));
    }
    let words = scopes.split(',').map(str::trim).filter(|word| !word.is_empty());
    let scopes: Scopes = words.map(str::parse::<Scope>).collect::<Result<_, _>>()?;
    if scopes.is_empty() {
        return Err(CommandError::Argument("--scopes names no scope; a key without one could do nothing".into()));
    }
    let number = owner.tenant(tenant).await?;
    let key = keys::create(&owner.pool, &owner.clock, number, name, &scopes, days).await?;
    if as_json {
        say(json!({
            "id": key.id, "key": key.reveal(), "tenant": tenant, "name": name, "scopes": scopes.words(), "expires_at": time(key.expires_at),
        }));
    } else {
        // The key alone on standard output, so that `KEY=$(api key create …)` works.
        complain(&format!(
            "made key {} of tenant {tenant}, may do {scopes}, ends {}; this is the only time it is shown:",
            key.id,
            time(key.expires_at)
        ));
        say(key.reveal());
    }
    Ok(())
}

async fn list(owner: &Owner, tenant: &str, as_json: bool) -> Result<(), CommandError> {
    let number = owner.tenant(tenant).await?;
    let listed = keys::list(&owner.pool, number).await?;
    if as_json {
        say(json!(listed));
        return Ok(());
    }
    let now = owner.clock.now();
    if listed.is_empty() {
        complain(&format!("tenant {tenant} has no keys"));
    }
    for key in listed {
        let state = state(&key, now);
        let used = key.last_used_at.map_or_else(|| "never used".to_owned(), |at| format!("used {}", time(at)));
        say(format!("{}  …{}  {state}  {used}  {}  {}", key.id, key.last_four, key.scopes.join(","), key.name));
    }
    Ok(())
}

fn state(key: &ListedKey, now: DateTime<Utc>) -> String {
    match key.revoked_at {
        Some(at) => format!("revoked {}", time(at)),
        None if key.expires_at <= now => format!("expired {}", time(key.expires_at)),
        None => format!("ends {}", time(key.expires_at)),
    }
}

async fn revoke(owner: &Owner, id: Uuid) -> Result<(), CommandError> {
    match keys::revoke(&owner.pool, id, owner.clock.now()).await? {
        Revoked::Now => say(format!("key {id} is revoked; within five seconds nobody takes it any more")),
        Revoked::Before(at) => say(format!("key {id} was revoked before, at {}", time(at))),
        Revoked::Unknown => return Err(CommandError::NoKey(id)),
    }
    Ok(())
}

pub(super) fn time(at: DateTime<Utc>) -> String {
    at.format("%FT%TZ").to_string()
}
