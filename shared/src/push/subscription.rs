//! What a browser hands out for being pushed to (`PushSubscription.toJSON()`, <https://www.w3.org/TR/push-api/>).

use std::fmt;

use aws_lc_rs::agreement::{ECDH_P256, ParsedPublicKey, UnparsedPublicKey};
use base64::{
    Engine,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use url::Url;

use super::PUBLIC_KEY;

/// The length of a subscription's authentication secret (RFC 8291, section 3.2).
const SECRET: usize = 16;

/// The longest endpoint, in bytes; the vendors' have some hundreds.
const LONGEST_ENDPOINT: usize = 2_000;

/// Browsers write base64url without padding; libraries in between may have added it.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&URL_SAFE, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// Where one browser can be pushed to, and by which keys its messages are sealed.
#[derive(Clone, PartialEq, Eq)]
pub struct Subscription {
    endpoint: Url,
    p256dh: [u8; PUBLIC_KEY],
    auth: [u8; SECRET],
}

/// What is wrong with a subscription, by its field in the browser's JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubscriptionError {
    /// No URL.
    #[error("`endpoint` must be the URL that the browser gave, of at most {LONGEST_ENDPOINT} bytes")]
    Endpoint,
    /// No point of the curve.
    #[error("`keys.p256dh` must be the browser's public key: a point of P-256, 65 bytes in base64url")]
    PublicKey,
    /// Another length.
    #[error("`keys.auth` must be the browser's secret: 16 bytes in base64url")]
    Secret,
}

impl Subscription {
    /// Reads the three values as the browser writes them. Whether the endpoint may be called is the
    /// [guard](crate::outbound::Guard)'s affair.
    ///
    /// # Errors
    /// [`SubscriptionError`]: the first that is wrong.
    pub fn read(endpoint: &str, p256dh: &str, auth: &str) -> Result<Self, SubscriptionError> {
        let endpoint = Some(endpoint).filter(|endpoint| endpoint.len() <= LONGEST_ENDPOINT);
        let endpoint = endpoint.and_then(|endpoint| Url::parse(endpoint).ok()).filter(Url::has_host).ok_or(SubscriptionError::Endpoint)?;
        let p256dh: [u8; PUBLIC_KEY] = decode(p256dh).ok_or(SubscriptionError::PublicKey)?;
        // The point must lie on the curve, or what is agreed on tells something about our key.
        ParsedPublicKey::try_from(UnparsedPublicKey::new(&ECDH_P256, p256dh)).map_err(|_| SubscriptionError::PublicKey)?;
        let auth = decode(auth).ok_or(SubscriptionError::Secret)?;
        Ok(Self { endpoint, p256dh, auth })
    }

    /// Reads one as it was kept.
    ///
    /// # Errors
    /// [`SubscriptionError`]: it was not us who kept it.
    pub fn kept(endpoint: &str, p256dh: &[u8], auth: &[u8]) -> Result<Self, SubscriptionError> {
        Ok(Self {
            endpoint: Url::parse(endpoint).map_err(|_| SubscriptionError::Endpoint)?,
            p256dh: p256dh.try_into().map_err(|_| SubscriptionError::PublicKey)?,
            auth: auth.try_into().map_err(|_| SubscriptionError::Secret)?,
        })
    }

    /// The push service's address of this browser. Whoever knows it and the keys can push: as good as a secret.
    #[must_use]
    pub fn endpoint(&self) -> &Url {
        &self.endpoint
    }

    /// The browser's public key, an uncompressed point.
    #[must_use]
    pub fn p256dh(&self) -> &[u8; PUBLIC_KEY] {
        &self.p256dh
    }

    /// The secret that the browser shares with us.
    #[must_use]
    pub fn auth(&self) -> &[u8; SECRET] {
        &self.auth
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("host", &self.endpoint.host_str()).finish_non_exhaustive()
    }
}

fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    // As long as `N` bytes can be, padding included; more is not even decoded.
    if text.len() > N.div_ceil(3) * 4 {
        return None;
    }
    BASE64.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 8291, section 5.
    const P256DH: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
    const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";
    const ENDPOINT: &str = "https://push.example.net/push/JzLQ3raZJfFBR0aqvOMsLrt54w4rJUsV";

    #[test]
    fn a_browsers_own_is_read_with_padding_or_without() {
        let subscription = Subscription::read(ENDPOINT, P256DH, AUTH).unwrap();
        assert_eq!(subscription.endpoint().as_str(), ENDPOINT);
        assert_eq!(Subscription::read(ENDPOINT, &format!("{P256DH}="), &format!("{AUTH}==")), Ok(subscription.clone()));
        assert_eq!(Subscription::kept(ENDPOINT, subscription.p256dh(), subscription.auth()), Ok(subscription.clone()));
        let shown = format!("{subscription:?}");
        assert!(shown.contains("push.example.net") && !shown.contains("JzLQ3") && !shown.contains("37, 113"), "{shown}");
    }

    #[test]
    fn what_a_stranger_made_up_is_refused() {
        for endpoint in ["", "push", "https:", "mailto:a@example.net", &format!("https://push.example.net/{}", "a".repeat(2_000))] {
            assert_eq!(Subscription::read(endpoint, P256DH, AUTH), Err(SubscriptionError::Endpoint), "{endpoint}");
        }
        // Too short, too long, compressed, off the curve, at infinity, another alphabet.
        let off = format!("{}x5", &P256DH[..85]);
        for key in ["", "BCVx", &P256DH[..86], &"A".repeat(10_000), &off, &"A".repeat(87), &P256DH.replace('_', "/")] {
            assert_eq!(Subscription::read(ENDPOINT, key, AUTH), Err(SubscriptionError::PublicKey), "{key}");
        }
        for secret in ["", "BTBZ", &format!("{AUTH}AAAA"), "!TBZMqHH6r4Tts7J_aSIgg"] {
            assert_eq!(Subscription::read(ENDPOINT, P256DH, secret), Err(SubscriptionError::Secret), "{secret}");
        }
    }
}
