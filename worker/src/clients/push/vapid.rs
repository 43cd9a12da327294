//! Who we are, for push services (RFC 8292): a short token, signed once for each push service and key and used for hours.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use shared::push::{KeyId, VapidKeys};
use url::Url;

use super::PushError;

/// How long a token is valid; 24 h are the most (RFC 8292, section 2), and clocks differ.
const VALID: TimeDelta = TimeDelta::hours(12);

/// A token is replaced this long before it ends, by either side's clock.
const RENEWED_BEFORE: TimeDelta = TimeDelta::hours(1);

/// Origins whose tokens are kept; the vendors are a handful, and a stranger may name any number.
const MOST_ORIGINS: usize = 256;

/// Signs, and remembers what it signed.
#[derive(Debug)]
pub(super) struct Signer {
    keys: Arc<VapidKeys>,
    contact: Option<String>,
    tokens: Mutex<HashMap<(String, KeyId), Token>>,
}

#[derive(Debug)]
struct Token {
    authorization: String,
    ends_at: DateTime<Utc>,
}

impl Signer {
    pub(super) fn new(keys: Arc<VapidKeys>, contact: Option<String>) -> Self {
        Self { keys, contact, tokens: Mutex::default() }
    }

    /// The header `Authorization` for an endpoint.
    pub(super) fn authorization(&self, endpoint: &Url, key: &KeyId, now: DateTime<Utc>) -> Result<String, PushError> {
        let origin = origin(endpoint);
        let slot = (origin, key.clone());
        // Not held while signing.
        if let Some(token) = self.tokens().get(&slot).filter(|token| token.serves_at(now)) {
            return Ok(token.authorization.clone());
        }
        let key = self.keys.find(key).ok_or(PushError::KeyGone)?;
        let ends_at = now + VALID;
        let mut claims = json!({ "aud": slot.0, "exp": ends_at.timestamp() });
        if let (Some(claims), Some(contact)) = (claims.as_object_mut(), &self.contact) {
            claims.insert("sub".to_owned(), json!(contact));
        }
        let part = |value: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(value);
        let signed = format!("{}.{}", part(br#"{"typ":"JWT","alg":"ES256"}"#), part(claims.to_string().as_bytes()));
        let signature = key.sign(signed.as_bytes()).ok_or(PushError::Crypto)?;
        // Without a space behind the comma, where some readers don't expect one.
        let authorization = format!("vapid t={signed}.{},k={}", part(&signature), key.public());
        let mut tokens = self.tokens();
        if tokens.len() >= MOST_ORIGINS {
            tokens.retain(|_, token| token.serves_at(now));
            if tokens.len() >= MOST_ORIGINS {
                tokens.clear();
            }
        }
        tokens.insert(slot, Token { authorization: authorization.clone(), ends_at });
        Ok(authorization)
    }

    /// Signs anew next time.
    pub(super) fn forget(&self, endpoint: &Url) {
        let origin = origin(endpoint);
        self.tokens().retain(|(of, _), _| *of != origin);
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, HashMap<(String, KeyId), Token>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Token {
    /// Neither near its end nor, after the clock was set back, further from it than a fresh one.
    fn serves_at(&self, now: DateTime<Utc>) -> bool {
        (RENEWED_BEFORE..=VALID).contains(&(self.ends_at - now))
    }
}

/// Scheme, host and port, the port where it is not the scheme's own (RFC 6454, section 6.2): push services compare all of it.
fn origin(endpoint: &Url) -> String {
    endpoint.origin().ascii_serialization()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &str = "q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94 yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw";

    fn claims(authorization: &str) -> serde_json::Value {
        let part = authorization.split('.').nth(1).unwrap();
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    }

    #[test]
    fn one_token_an_origin_and_key_until_it_ends() {
        let keys = Arc::new(VapidKeys::read(KEYS).unwrap());
        let signer = Signer::new(Arc::clone(&keys), Some("mailto:ops@example.com".into()));
        let now: DateTime<Utc> = "2026-11-20T12:00:00Z".parse().unwrap();
        let key = keys.current().id();
        let token = |url: &str, hours: i64| signer.authorization(&url.parse().unwrap(), key, now + TimeDelta::hours(hours)).unwrap();

        let first = token("https://push.example.net/a", 0);
        assert_eq!(claims(&first), json!({"aud": "https://push.example.net", "exp": 1_795_219_200, "sub": "mailto:ops@example.com"}));
        assert!(first.ends_with(&format!(",k={}", keys.current().public())));
        // Signatures differ each time, so the same text was remembered.
        assert_eq!(token("https://push.example.net:443/b?c", 11), first);
        assert_ne!(token("https://push.example.net/a", 12), first);
        assert_eq!(claims(&token("https://push.example.net:8443/a", 0))["aud"], "https://push.example.net:8443");
        assert_eq!(claims(&token("http://127.0.0.1:9000/a", 0))["aud"], "http://127.0.0.1:9000");

        let renewed = token("https://push.example.net/a", 12);
        signer.forget(&"https://push.example.net/z".parse().unwrap());
        assert_ne!(token("https://push.example.net/a", 12), renewed);
        for number in 0..2 * MOST_ORIGINS {
            token(&format!("https://{number}.example.net/"), 0);
        }
        assert!(signer.tokens().len() <= MOST_ORIGINS);
        let gone = signer.authorization(&"https://push.example.net/".parse().unwrap(), &KeyId::from_kept("gone"), now);
        assert!(matches!(gone, Err(PushError::KeyGone)));
    }
}
