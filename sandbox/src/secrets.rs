//! The passwords of one sandbox: random, in a file that its owner alone may read.

use std::path::Path;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

use crate::directory::write_secret;
use crate::error::{Doing, Error, Result};
use crate::random;
use crate::services::push;

/// Made once for a directory and found there again. No `Debug`: they are for connection URLs and nothing else.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Secrets {
    /// Of the cluster's superuser, `postgres`.
    pub(crate) superuser: String,
    /// Of `offstage`, which owns the product's database and runs its migrations.
    pub(crate) owner: String,
    /// Of `offstage_api`.
    pub(crate) api: String,
    /// Of `offstage_engine`.
    pub(crate) engine: String,
    /// Of `offstage_source`, which may read the example's tables.
    pub(crate) source: String,
    /// Of `promptlockr`, which owns the example's database.
    pub(crate) product: String,
    pub(crate) redis: String,
    pub(crate) s3_key_id: String,
    pub(crate) s3_secret: String,
    /// Signs pushes (VAPID): 32 bytes in base64url. Empty in what was kept before there were any.
    #[serde(default)]
    pub(crate) push_key: String,
    /// Signs user tokens: its name, a colon, 33 bytes in base64url. Empty in what was kept before there were any.
    #[serde(default)]
    pub(crate) token_key: String,
    /// By which recipients of mail are known: 32 bytes in base64. Empty in what was kept before there was any.
    #[serde(default)]
    pub(crate) recipient_key: String,
    /// Wraps what users entrust: its version, a colon, 32 bytes in base64. Empty in what was kept before there was any.
    #[serde(default)]
    pub(crate) vault_key: String,
}

impl Secrets {
    pub(crate) fn new() -> Result<Self> {
        let password = || random::characters(32);
        Ok(Self {
            superuser: password()?,
            owner: password()?,
            api: password()?,
            engine: password()?,
            source: password()?,
            product: password()?,
            redis: password()?,
            s3_key_id: random::characters(20)?,
            s3_secret: random::characters(40)?,
            push_key: push::new_key()?,
            token_key: token_key()?,
            recipient_key: recipient_key()?,
            vault_key: vault_key()?,
        })
    }

    /// Those kept in `path`, or new ones that are then kept there.
    pub(crate) fn kept_in(path: &Path) -> Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let mut secrets: Self = serde_json::from_str(&text).map_err(|error| {
                    Error::Invalid(format!(
                        "{} is not what the sandbox wrote ({error}): restore it, or remove its whole directory to start anew",
                        path.display()
                    ))
                })?;
                if [&secrets.push_key, &secrets.token_key, &secrets.recipient_key, &secrets.vault_key].iter().any(|key| key.is_empty()) {
                    if secrets.push_key.is_empty() {
                        secrets.push_key = push::new_key()?;
                    }
                    if secrets.token_key.is_empty() {
                        secrets.token_key = token_key()?;
                    }
                    if secrets.recipient_key.is_empty() {
                        secrets.recipient_key = recipient_key()?;
                    }
                    if secrets.vault_key.is_empty() {
                        secrets.vault_key = vault_key()?;
                    }
                    secrets.keep_in(path)?;
                }
                Ok(secrets)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let secrets = Self::new()?;
                secrets.keep_in(path)?;
                Ok(secrets)
            }
            Err(error) => Err(error).doing(|| format!("read {}", path.display())),
        }
    }

    pub(crate) fn keep_in(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|error| Error::Invalid(error.to_string()))?;
        write_secret(path, &text)
    }
}

/// A key for user tokens, as the product's settings take it. Four letters and digits of base64url are three bytes, whichever they are.
fn token_key() -> Result<String> {
    Ok(format!("sandbox:{}", random::characters(44)?))
}

/// As the product's settings take it.
fn recipient_key() -> Result<String> {
    Ok(BASE64_STANDARD.encode(random::characters(32)?))
}

/// As the product's settings take it.
fn vault_key() -> Result<String> {
    Ok(format!("1:{}", recipient_key()?))
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secrets")
    }
}
