//! By whose key a call is made.
//!
//! What must stay true: a call is made by the key that was found for it and by no other; what a user's key could not do is not done by the
//! product's.

use secrecy::SecretString;
use shared::{job::Failure, tenant::Provider};

use crate::handlers::JobContext;

/// A key, and whose it is.
#[derive(Debug, Clone)]
pub(super) enum Credential {
    /// The product's own; none where the provider takes calls without.
    Platform(Option<SecretString>),
    /// One that the job's owner brought.
    #[expect(dead_code, reason = "users bring keys once there is a vault for them")]
    User(SecretString),
}

impl Credential {
    /// The key.
    pub(super) const fn key(&self) -> Option<&SecretString> {
        match self {
            Self::Platform(key) => key.as_ref(),
            Self::User(key) => Some(key),
        }
    }

    /// Whether it is the job's owner's.
    pub(super) const fn is_of_user(&self) -> bool {
        matches!(self, Self::User(_))
    }
}

/// Finds the key for calls of a provider.
///
/// # Errors
/// A [`Failure`]: the operator has to set one first.
pub(super) async fn credential(context: &JobContext, name: &str, provider: &Provider) -> Result<Credential, Failure> {
    let Some(variable) = &provider.key_env else { return Ok(Credential::Platform(None)) };
    let Some(key) = context.services.ai_keys.get(variable) else {
        let message = format!("this worker has no key for the provider `{name}`: set {variable}, and start it anew");
        return Err(Failure::transient("ai_key_missing", message));
    };
    Ok(Credential::Platform(Some(key.clone())))
}
