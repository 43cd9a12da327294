//! Bring your own key (R45): whose keys users may bring, and what a key looks like.
//!
//! What must stay true: where a key is sent follows from this table or from the product's manifest, never from what a user wrote; of a key
//! nothing is shown but its last four characters.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A provider whose keys users may bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    /// `OpenAI`.
    OpenAi,
    /// Anthropic.
    Anthropic,
    /// Google (Gemini, by its door that speaks `OpenAI`'s).
    Google,
    /// Hugging Face (its router, which speaks `OpenAI`'s).
    HuggingFace,
}

impl Vendor {
    /// Every provider.
    pub const ALL: [Self; 4] = [Self::OpenAi, Self::Anthropic, Self::Google, Self::HuggingFace];

    /// Its word in addresses, rows and manifests.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::Google => "google",
            Self::HuggingFace => "huggingface",
        }
    }

    /// The provider of a word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|vendor| vendor.word() == word)
    }

    /// Its name, for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "OpenAI",
            Self::Anthropic => "Anthropic",
            Self::Google => "Google",
            Self::HuggingFace => "Hugging Face",
        }
    }

    /// Where a key is checked when the manifest names no provider of this vendor: a GET that only who has a valid key may make, and that
    /// costs nothing. <https://platform.openai.com/docs/api-reference/models/list>, <https://docs.anthropic.com/en/api/models-list>,
    /// <https://ai.google.dev/gemini-api/docs/openai>, <https://huggingface.co/docs/hub/api> (the router's list of models is open to all).
    #[must_use]
    pub const fn check_address(self) -> &'static str {
        match self {
            Self::OpenAi => "https://api.openai.com/v1/models",
            Self::Anthropic => "https://api.anthropic.com/v1/models",
            Self::Google => "https://generativelanguage.googleapis.com/v1beta/openai/models",
            Self::HuggingFace => "https://huggingface.co/api/whoami-v2",
        }
    }
}

/// How long a key may be, in characters. The shortest known are 37 (Hugging Face); of less than 20, four would be too much to show.
const LENGTH: std::ops::RangeInclusive<usize> = 20..=500;

/// What is wrong with a key by itself; its text is in no message.
#[must_use]
pub fn wrong(key: &SecretString) -> Option<String> {
    let key = key.expose_secret();
    if !LENGTH.contains(&key.len()) {
        return Some(format!("must have {} to {} characters", LENGTH.start(), LENGTH.end()));
    }
    // It goes into a header.
    (!key.bytes().all(|byte| byte.is_ascii_graphic())).then(|| "must be letters, digits and signs of ASCII, without spaces".to_owned())
}

/// The last four characters of a key that is not [wrong].
#[must_use]
pub fn last_four(key: &SecretString) -> String {
    let key = key.expose_secret();
    key.get(key.len().saturating_sub(4)..).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_lead_back_and_keys_are_looked_at() {
        for vendor in Vendor::ALL {
            assert_eq!(Vendor::from_word(vendor.word()), Some(vendor));
            assert_eq!(serde_json::to_value(vendor).unwrap(), vendor.word());
            assert!(url::Url::parse(vendor.check_address()).is_ok_and(|url| url.scheme() == "https"));
        }
        let wrong = |key: &str| wrong(&SecretString::from(key));
        assert_eq!(wrong("sk-0123456789abcdefghij"), None);
        for key in ["", "sk-short", "sk-0123456789abcdef ghij", "sk-0123456789abcdef\nghij", "sk-0123456789äbcdefghij"] {
            assert!(wrong(key).is_some_and(|detail| key.is_empty() || !detail.contains(key)), "{key}");
        }
        assert_eq!(last_four(&SecretString::from("sk-0123456789abcdefghij")), "ghij");
    }
}
