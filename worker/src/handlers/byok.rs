//! `byok.check`: asks a provider whether it takes the key that a user brought.
//!
//! What must stay true: where the key is sent to the manifest or our own table says; what the provider said of this key is noted of this key
//! alone; that nobody answered says nothing of it, so it stands as it did.

use std::time::Duration;

use secrecy::SecretString;
use serde_json::json;
use shared::{
    byok::Vendor,
    job::{Failure, Interrupt, Success},
    kinds::ByokCheck,
    ledger::own_keys,
    tenant::{BreakerSettings, Manifest, ProviderKind},
    vault::Binding,
};
use url::Url;

use super::{JobContext, ai, export};
use crate::clients::{
    ai::AiError,
    breaker::{BreakerKey, Call, Credential},
};

/// The longest that a provider may take.
const WITHIN: Duration = Duration::from_secs(6);

/// What the job's owner is told, who knows nothing of servers.
const FOR_OWNER: &str = "The key could not be checked.";

/// Checks a key.
pub(super) async fn run(payload: ByokCheck, context: JobContext) -> Result<Success, Interrupt> {
    let (services, job) = (&context.services, &context.job);
    let Some(user) = job.owner.as_deref() else {
        return Err(Failure::permanent("payload_invalid", "a key belongs to an end user, and this job has no owner").into());
    };
    let tenant = export::tenant(&context).await?;
    let vendor = payload.provider;
    let found = own_keys::sealed(&services.pool, job.tenant, user, vendor).await?.filter(|key| key.version == payload.version);
    // Deleted, or another took its place and has a check of its own.
    let Some(found) = found else { return Ok(Success::with(json!({ "checked": false }))) };
    let key = opened(&context, user, vendor, &found.sealed)?;
    let place = Place::of(&tenant.manifest, vendor)?;
    let now = services.clock.now();
    // A provider that is left alone is not asked this either; the key stands as it did, and the job waits.
    let breaker = BreakerKey { tenant: job.tenant, provider: place.name, credential: Credential::Own(found.id) };
    let call = Call { key: &breaker, settings: place.settings, deadline: WITHIN };
    let permit = services.clients.breakers.admit(&call).await.map_err(|refused| Interrupt::BreakerOpen(refused.breaker))?;
    let said = services.clients.models.check(place.kind, place.url, place.private, &key, WITHIN, now).await;
    let waits_for = ai::tell_breaker(permit, &said).await;
    let refused = match said {
        // It has no money left, so it is known.
        Ok(()) | Err(AiError::NoQuota { .. }) => None,
        Err(error @ AiError::KeyRefused { .. }) => Some(error.to_string()),
        Err(error) => {
            return Err(waits_for
                .map_or_else(|| Failure::from(error).for_owner(FOR_OWNER).into(), |refused| Interrupt::BreakerOpen(refused.breaker)));
        }
    };
    let of = (found.id, found.version);
    let noted = own_keys::checked(&services.pool, (job.tenant, vendor), of, refused.as_deref(), now).await?;
    let status = if refused.is_none() { "active" } else { "invalid" };
    metrics::counter!("offstage_byok_checks_total", "provider" => vendor.word(), "status" => status).increment(1);
    Ok(Success::with(json!({ "checked": noted, "status": status })))
}

/// Opens a key that was sealed for its user and provider.
///
/// # Errors
/// A [`Failure`]: this worker has not the installation's keys, or the row is not what was written.
pub(super) fn opened(context: &JobContext, user: &str, vendor: Vendor, sealed: &[u8]) -> Result<SecretString, Failure> {
    let keys = context.services.vault_keys.as_ref().ok_or_else(|| {
        Failure::transient("vault_not_set_up", "this worker has no OFFSTAGE_VAULT_KEYS: set it, the same as the API's, and start it anew")
            .for_owner(FOR_OWNER)
    })?;
    let binding = Binding { tenant: context.job.tenant, user, provider: vendor.word() };
    keys.open(&binding, sealed).map_err(|error| {
        tracing::error!(tenant = context.job.tenant, provider = vendor.word(), error = %error, "a user's key can't be opened");
        Failure::transient("vault_not_opened", error.to_string()).for_owner(FOR_OWNER)
    })
}

/// Where a key is checked.
struct Place {
    /// What its breaker calls it.
    name: String,
    /// How that one is set.
    settings: BreakerSettings,
    kind: ProviderKind,
    url: Url,
    private: bool,
}

impl Place {
    /// Where the product's manifest sends such keys, or where the vendor is.
    fn of(manifest: &Manifest, vendor: Vendor) -> Result<Self, Failure> {
        let own = Url::parse(vendor.check_address())
            .map_err(|_| Failure::permanent("byok_address_invalid", "the vendor's address is none; this is a fault in the product"))?;
        let declared = manifest.ai.providers.iter().find(|(_, provider)| provider.byok == Some(vendor));
        let kind = if vendor == Vendor::Anthropic { ProviderKind::Anthropic } else { ProviderKind::OpenAi };
        let Some((name, provider)) = declared else {
            return Ok(Self { name: vendor.word().to_owned(), settings: BreakerSettings::DEFAULT, kind, url: own, private: false });
        };
        let (name, settings) = (name.clone(), provider.breaker);
        // Hugging Face's list of models is open to all, and proves no key.
        if vendor == Vendor::HuggingFace && provider.base_url.domain().is_some_and(|host| host.ends_with("huggingface.co")) {
            return Ok(Self { name, settings, kind, url: own, private: false });
        }
        let mut url = provider.base_url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("models");
        }
        Ok(Self { name, settings, kind: provider.kind, url, private: provider.private })
    }
}
