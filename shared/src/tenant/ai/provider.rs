//! `[ai.providers.NAME]`: a server with models.

use serde::{Deserialize, Serialize};
use url::Url;

use crate::{byok::Vendor, tenant::BreakerSettings};

/// What the variables of providers' keys begin with. A manifest can name no other.
pub const AI_VARIABLE: &str = "OFFSTAGE_AI_";

/// What a provider speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// Chat completions: `OpenAI` and whoever speaks the same (Google, Hugging Face, vLLM, Ollama …).
    OpenAi,
    /// Anthropic's messages.
    Anthropic,
}

impl ProviderKind {
    /// Its word in manifests and figures.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
        }
    }

    /// Where it is when the manifest does not say.
    const fn address(self) -> &'static str {
        match self {
            Self::OpenAi => "https://api.openai.com/v1",
            Self::Anthropic => "https://api.anthropic.com/v1",
        }
    }
}

/// A server with models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// What it speaks.
    pub kind: ProviderKind,
    /// What its addresses begin with, without a slash at the end: `https://api.openai.com/v1`.
    pub base_url: Url,
    /// The worker's variable that holds the product's key; the product has none where it is absent.
    pub key_env: Option<String>,
    /// Whether it may have a private address: a model's server of one's own.
    pub private: bool,
    /// Whose keys users may bring for it; none where absent.
    pub byok: Option<Vendor>,
    /// How its circuit breaker is set.
    pub breaker: BreakerSettings,
}

/// The same as it is written and stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ProviderDeclaration {
    kind: ProviderKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base_url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_env: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    private: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    byok: Option<Vendor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    breaker: Option<BreakerSettings>,
}

impl ProviderDeclaration {
    pub(super) fn check(&self, faults: &mut Vec<(&'static str, String)>) -> Option<Provider> {
        let legal = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
        let is_variable = |name: &str| {
            name.strip_prefix(AI_VARIABLE).is_some_and(|rest| !rest.is_empty() && rest.len() <= 100 && rest.bytes().all(legal))
        };
        if self.key_env.as_deref().is_some_and(|name| !is_variable(name)) {
            // Not repeated: it may be the key itself.
            let detail = format!(
                "must name the variable that holds the key, {AI_VARIABLE} and then capital letters, digits or `_`; write for example \"{AI_VARIABLE}OPENAI\""
            );
            faults.push(("key_env", detail));
        }
        let text = self.base_url.as_deref().unwrap_or(self.kind.address());
        let base_url = Url::parse(text.trim_end_matches('/')).ok().filter(|url| {
            let is_plain = url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
            ["http", "https"].contains(&url.scheme()) && url.has_host() && is_plain
        });
        if base_url.is_none() {
            // Not repeated: it may hold a password.
            let detail = format!(
                "must be an http(s) address without user, password, query and fragment; write for example \"{}\"",
                self.kind.address()
            );
            faults.push(("base_url", detail));
        }
        let breaker = self.breaker.unwrap_or_default();
        if let Some((field, detail)) = breaker.wrong() {
            faults.push(("breaker", format!("{field} {detail}")));
        }
        Some(Provider {
            kind: self.kind,
            base_url: base_url?,
            key_env: self.key_env.clone(),
            private: self.private,
            byok: self.byok,
            breaker,
        })
    }
}
