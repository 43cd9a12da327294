//! By whose key a call is made.
//!
//! What must stay true: a call is made by the key that was found for it and by no other; what a user's key could not do is not done by the
//! product's: a user who has brought a key for a provider calls it by that key, or not at all until it is deleted; and what was asked for
//! while there was one is never done by the product's, also when it is deleted before that.

use secrecy::SecretString;
use shared::{
    byok::Vendor,
    job::Failure,
    ledger::own_keys::{self, ForCall, Status},
    tenant::Provider,
};
use uuid::Uuid;

use crate::{
    clients::{ai::AiError, breaker},
    handlers::{JobContext, byok},
};

/// A key, and whose it is.
#[derive(Debug, Clone)]
pub(super) enum Credential {
    /// The product's own; none where the provider takes calls without.
    Platform(Option<SecretString>),
    /// One that the job's owner brought.
    User(OwnKey),
}

/// Why there is no key for a call.
#[derive(Debug)]
pub(super) enum Missing {
    /// The product has none here: another provider's may do.
    OfProduct(Failure),
    /// The user's own can't be used, or can't be looked for: nobody else pays.
    OfUser(Failure),
}

/// A key that a user brought.
#[derive(Debug, Clone)]
pub(super) struct OwnKey {
    key: SecretString,
    vendor: Vendor,
    row: Uuid,
    version: i32,
}

impl Credential {
    /// The key.
    pub(super) const fn key(&self) -> Option<&SecretString> {
        match self {
            Self::Platform(key) => key.as_ref(),
            Self::User(own) => Some(&own.key),
        }
    }

    /// Whether it is the job's owner's.
    pub(super) const fn is_of_user(&self) -> bool {
        matches!(self, Self::User(_))
    }

    /// What its circuit breaker is known by.
    pub(super) const fn of_breaker(&self) -> breaker::Credential {
        match self {
            Self::Platform(_) => breaker::Credential::Platform,
            Self::User(own) => breaker::Credential::Own(own.row),
        }
    }
}

/// Finds the key for calls of a provider; `own_keys` is whether the task takes users' keys.
///
/// # Errors
/// [`Missing`]: the operator has to set one first, or the user.
pub(super) async fn credential(context: &JobContext, name: &str, provider: &Provider, own_keys: bool) -> Result<Credential, Missing> {
    if let (true, Some(vendor), Some(user)) = (own_keys, provider.byok, context.job.owner.as_deref())
        && let Some(key) = of_user(context, vendor, user).await.map_err(Missing::OfUser)?
    {
        return Ok(Credential::User(key));
    }
    platform(context, name, provider).map_err(Missing::OfProduct)
}

/// The user's own key; `None` of one who has none.
async fn of_user(context: &JobContext, vendor: Vendor, user: &str) -> Result<Option<OwnKey>, Failure> {
    match own_keys::for_call(&context.services.pool, context.job.tenant, user, vendor, context.job.created_at).await? {
        ForCall::None => Ok(None),
        ForCall::Deleted => {
            let message = format!("the user deleted their key for {} after this was asked for; they ask again", vendor.name());
            let words = format!("You have deleted your {} key since you asked for this. Ask again.", vendor.name());
            Err(Failure::permanent("ai_own_key_deleted", message).for_owner(words))
        }
        ForCall::Own(found) => match found.status {
            Status::Active => {
                let key = byok::opened(context, user, vendor, &found.sealed)?;
                Ok(Some(OwnKey { key, vendor, row: found.id, version: found.version }))
            }
            Status::Unchecked => {
                let message = format!("the user's key for {} has not been checked yet", vendor.name());
                Err(Failure::transient("ai_own_key_unchecked", message)
                    .for_owner(format!("Your {} key is still being checked.", vendor.name())))
            }
            Status::Invalid => {
                let message = format!("the user's key for {} is not valid; they put in another, or delete it", vendor.name());
                let words = format!("Your {} key does not work. Put in another one, or delete it.", vendor.name());
                Err(Failure::permanent("ai_own_key_invalid", message).for_owner(words))
            }
        },
    }
}

/// The product's own key.
fn platform(context: &JobContext, name: &str, provider: &Provider) -> Result<Credential, Failure> {
    let Some(variable) = &provider.key_env else { return Ok(Credential::Platform(None)) };
    let Some(key) = context.services.ai_keys.get(variable) else {
        let message = format!("this worker has no key for the provider `{name}`: set {variable}, and start it anew");
        return Err(Failure::transient("ai_key_missing", message));
    };
    Ok(Credential::Platform(Some(key.clone())))
}

/// Notes that a provider does not take a user's key any more, where that is what it said; its owner is told.
///
/// # Errors
/// A transient [`Failure`] when the ledger does not answer.
pub(super) async fn refused(context: &JobContext, credential: &Credential, error: &AiError) -> Result<(), Failure> {
    let (Credential::User(own), true) = (credential, is_of_the_key(error)) else { return Ok(()) };
    let of = (own.row, own.version);
    let now = context.services.clock.now();
    if own_keys::checked(&context.services.pool, (context.job.tenant, own.vendor), of, Some(&error.to_string()), now).await? {
        metrics::counter!("offstage_byok_keys_refused_total", "provider" => own.vendor.word()).increment(1);
        tracing::info!(tenant = context.job.tenant, provider = own.vendor.word(), "a user's key is not taken any more: its owner is told");
    }
    Ok(())
}

/// By 401 a key is not known; by 403 it may be known and not allowed this model or from here, which its words tell.
fn is_of_the_key(error: &AiError) -> bool {
    match error {
        AiError::KeyUnusable => true,
        AiError::KeyRefused { status, words } => status.as_u16() == 401 || words.as_deref().is_some_and(speak_of_the_key),
        _ => false,
    }
}

/// Whether the words of a 403 say that the key itself is no good. A "token" is as often one of text, and credentials that lack a right are
/// good ones.
fn speak_of_the_key(words: &str) -> bool {
    let words = words.to_lowercase().replace(['_', '-'], " ");
    let key = words.contains("api key") || words.contains("access token");
    let no_good = ["invalid", "not valid", "incorrect", "expired", "revoked", "disabled", "deactivated", "leaked", "unknown", "not found"];
    key && no_good.iter().any(|word| words.contains(word))
}

#[cfg(test)]
mod tests {
    use super::speak_of_the_key;

    #[test]
    fn only_words_of_a_bad_key_invalidate_it() {
        for words in
            ["API key not valid. Please pass a valid API key.", "invalid_api_key", "Your API-key was revoked", "access token expired"]
        {
            assert!(speak_of_the_key(words), "{words}");
        }
        for words in [
            "You exceeded your token budget for this model",
            "max_tokens is not allowed on your tier",
            "These credentials lack the permission aiplatform.endpoints.predict",
            "Your API key has no access to this model",
            "Country, region, or territory not supported",
        ] {
            assert!(!speak_of_the_key(words), "{words}");
        }
    }
}
