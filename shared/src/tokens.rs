//! User tokens: what a browser calls with, for one end user and some minutes. A JSON Web Token (RFC 7519), signed with HMAC-SHA-256
//! (RFC 7518, section 3.2) by a key of the installation's settings, named by its `kid`: the first key signs, all of them verify, so keys
//! change without anybody noticing.
//!
//! What must stay true: a token names its algorithm and nobody asks it; it is bound to the API key that it was made by, ends with that
//! key, and may do no more; times are business time; keys are in no log and no `Debug`.

use std::fmt;

use base64::{
    Engine,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
    prelude::BASE64_URL_SAFE_NO_PAD,
};
use chrono::{DateTime, TimeDelta, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode, errors::ErrorKind};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    keys::{KeyHash, Scopes},
    tenant::check_user,
};

/// The most keys at a time.
const MOST_KEYS: usize = 8;

/// The fewest and the most bytes of a key: at least as many as the hash has (RFC 7518, section 3.2), at most its block.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 32..=64;

/// The longest name of a key.
const LONGEST_KID: usize = 32;

/// The longest token that is looked at, in bytes. A user's name may have 255 characters of four bytes; the rest is some hundreds.
const LONGEST_TOKEN: usize = 4_096;

/// Whom tokens are for: this program, and none that happens to have the same key.
const AUDIENCE: &str = "offstage";

/// How far in the future a token may have been issued: the clocks of two replicas.
const SKEW: TimeDelta = TimeDelta::seconds(60);

const BASE64: GeneralPurpose =
    GeneralPurpose::new(&URL_SAFE, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// The keys that sign tokens: one, or several while one takes another's place.
#[derive(Clone)]
pub struct TokenKeys(Vec<TokenKey>);

#[derive(Clone)]
struct TokenKey {
    id: String,
    sign: EncodingKey,
    verify: DecodingKey,
}

impl fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.id)).finish()
    }
}

/// What a token says, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserToken {
    /// The product.
    pub tenant: i32,
    /// The end user, the only one whose things exist.
    pub user: String,
    /// The API key that it was made by.
    pub key: KeyHash,
    /// What it may do, where its key may do so too.
    pub scopes: Scopes,
    /// When it was made, to the second.
    pub issued_at: DateTime<Utc>,
    /// When it ends, to the second.
    pub expires_at: DateTime<Utc>,
}

/// Why a text is no token that counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is none of this installation's: ill-formed, changed, or signed by a key that it has not, or no longer.
    #[error("is not a token of this installation")]
    Invalid,
    /// Its time is over.
    #[error("expired at {}", .0.format("%FT%TZ"))]
    Expired(DateTime<Utc>),
}

/// The claims as they stand in a token (RFC 7519, section 4.1, and three of ours).
#[derive(Serialize, Deserialize)]
struct Claims {
    aud: String,
    sub: String,
    iat: i64,
    exp: i64,
    jti: Uuid,
    tenant: i32,
    /// The hash of the API key, which opens nothing: who presents a key is known by it, who presents its hash is not.
    key: String,
    scopes: Vec<String>,
}

impl TokenKeys {
    /// Reads keys that are parted by spaces: a name, a colon, 32 to 64 random bytes in base64url.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let key = |text: &str| {
            let (id, secret) = text.split_once(':')?;
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            let named = (1..=LONGEST_KID).contains(&id.len()) && id.bytes().all(legal);
            let secret = BASE64.decode(secret).ok().filter(|bytes| named && KEY_BYTES.contains(&bytes.len()))?;
            Some(TokenKey { id: id.to_owned(), sign: EncodingKey::from_secret(&secret), verify: DecodingKey::from_secret(&secret) })
        };
        let keys: Vec<TokenKey> = text.split_ascii_whitespace().map(key).collect::<Option<_>>()?;
        let distinct = keys.iter().enumerate().all(|(place, key)| keys.iter().take(place).all(|other| other.id != key.id));
        ((1..=MOST_KEYS).contains(&keys.len()) && distinct).then_some(Self(keys))
    }

    /// Signs a token, by the first key. `id` is its own, for whoever wants to tell two apart.
    ///
    /// # Errors
    /// The library's, of which none is known for such claims and keys.
    pub fn sign(&self, token: &UserToken, id: Uuid) -> Result<String, jsonwebtoken::errors::Error> {
        let Some(key) = self.0.first() else { return Err(ErrorKind::InvalidKeyFormat.into()) };
        let claims = Claims {
            aud: AUDIENCE.to_owned(),
            sub: token.user.clone(),
            iat: token.issued_at.timestamp(),
            exp: token.expires_at.timestamp(),
            jti: id,
            tenant: token.tenant,
            key: BASE64_URL_SAFE_NO_PAD.encode(token.key.0),
            scopes: token.scopes.words(),
        };
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(key.id.clone());
        encode(&header, &claims, &key.sign)
    }

    /// Reads a token.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn verify(&self, text: &str, now: DateTime<Utc>) -> Result<UserToken, TokenError> {
        if text.len() > LONGEST_TOKEN {
            return Err(TokenError::Invalid);
        }
        let kid = decode_header(text).ok().and_then(|header| header.kid).ok_or(TokenError::Invalid)?;
        let key = self.0.iter().find(|key| key.id == kid).ok_or(TokenError::Invalid)?;
        // One algorithm, whatever the header says. The library's times are the operating system's; ours are asked below.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "aud", "sub"]);
        validation.validate_exp = false;
        let claims = decode::<Claims>(text, &key.verify, &validation).map_err(|_| TokenError::Invalid)?.claims;
        let moment = |seconds| DateTime::from_timestamp(seconds, 0).ok_or(TokenError::Invalid);
        let (issued_at, expires_at) = (moment(claims.iat)?, moment(claims.exp)?);
        let key = BASE64_URL_SAFE_NO_PAD.decode(&claims.key).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(TokenError::Invalid)?;
        if issued_at > now + SKEW || check_user(&claims.sub).is_err() {
            return Err(TokenError::Invalid);
        }
        if expires_at <= now {
            return Err(TokenError::Expired(expires_at));
        }
        let scopes = Scopes::from_words(&claims.scopes);
        Ok(UserToken { tenant: claims.tenant, user: claims.sub, key: KeyHash(key), scopes, issued_at, expires_at })
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::hmac;
    use serde_json::{Value, json};

    use super::*;
    use crate::keys::Scope;

    const OLD: &str = "2025:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    const NEW: &str = "2026:Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA";

    fn now() -> DateTime<Utc> {
        "2026-11-20T12:00:00Z".parse().unwrap()
    }

    fn token() -> UserToken {
        let scopes = [Scope::JobsRead, Scope::ExportsRead].into_iter().collect();
        UserToken {
            tenant: 7,
            user: "zoë".into(),
            key: KeyHash([9; 32]),
            scopes,
            issued_at: now(),
            expires_at: now() + TimeDelta::minutes(15),
        }
    }

    #[test]
    fn keys_take_turns() {
        let old = TokenKeys::read(OLD).unwrap();
        let signed = old.sign(&token(), Uuid::nil()).unwrap();
        assert_eq!(old.verify(&signed, now()), Ok(token()));
        let both = TokenKeys::read(&format!("{NEW} {OLD}")).unwrap();
        assert_eq!(both.verify(&signed, now()), Ok(token()), "what the former key signed counts until it is taken away");
        let signed_anew = both.sign(&token(), Uuid::nil()).unwrap();
        assert_eq!(decode_header(&signed_anew).unwrap().kid.as_deref(), Some("2026"));
        assert_eq!(old.verify(&signed_anew, now()), Err(TokenError::Invalid));
        let new = TokenKeys::read(NEW).unwrap();
        assert_eq!((new.verify(&signed, now()), new.verify(&signed_anew, now())), (Err(TokenError::Invalid), Ok(token())));
    }

    #[test]
    fn it_ends_by_the_business_clock() {
        let keys = TokenKeys::read(OLD).unwrap();
        let signed = keys.sign(&token(), Uuid::nil()).unwrap();
        let end = token().expires_at;
        assert!(keys.verify(&signed, end - TimeDelta::seconds(1)).is_ok());
        assert_eq!(keys.verify(&signed, end), Err(TokenError::Expired(end)));
        assert_eq!(keys.verify(&signed, now() - TimeDelta::seconds(61)), Err(TokenError::Invalid), "of a clock that is far ahead");
    }

    /// A token as a stranger who has the key would make it.
    fn made(header: &Value, claims: &Value, secret: &[u8]) -> String {
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(tag))
    }

    #[test]
    fn forgeries() {
        let keys = TokenKeys::read(OLD).unwrap();
        let secret: Vec<u8> = (0..32).collect();
        let header = json!({"alg": "HS256", "typ": "JWT", "kid": "2025"});
        let claims = json!({
            "aud": "offstage", "sub": "ada", "iat": now().timestamp(), "exp": now().timestamp() + 60, "jti": Uuid::nil(), "tenant": 1,
            "key": BASE64_URL_SAFE_NO_PAD.encode([9; 32]), "scopes": ["*", "jobs:read", "made up"],
        });
        assert_eq!(keys.verify(&made(&header, &claims, &secret), now()).unwrap().user, "ada", "RFC 7519 by hand");
        let other_header = |field: &str, value: Value| {
            let mut header = header.clone();
            header[field] = value;
            made(&header, &claims, &secret)
        };
        let other_claim = |field: &str, value: Value| {
            let mut claims = claims.clone();
            claims[field] = value;
            made(&header, &claims, &secret)
        };
        for forged in [
            made(&header, &claims, &[0; 32]),
            other_header("alg", json!("none")),
            other_header("alg", json!("HS384")),
            other_header("alg", json!("RS256")),
            other_header("kid", json!("2024")),
            other_header("kid", Value::Null),
            other_claim("aud", json!("elsewhere")),
            other_claim("aud", Value::Null),
            other_claim("sub", json!("a b")),
            other_claim("sub", json!("")),
            other_claim("exp", Value::Null),
            other_claim("exp", json!(i64::MAX)),
            other_claim("key", json!("")),
            other_claim("tenant", json!("1")),
            made(&header, &claims, &secret).trim_end_matches(|_: char| true).to_owned(),
            "a.b.c".to_owned(),
            "..".to_owned(),
            format!("{}.", made(&header, &claims, &secret)),
            "e".repeat(5_000),
        ] {
            assert_eq!(keys.verify(&forged, now()), Err(TokenError::Invalid), "{forged}");
        }
    }

    #[test]
    fn settings_are_read_to_the_letter_and_never_shown() {
        for wrong in [
            "",
            " ",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
            ":AAEC",
            "a:AAEC",
            &format!("{OLD} {OLD}"),
            &format!("é{OLD}"),
            &format!("{OLD}!"),
        ] {
            assert!(TokenKeys::read(wrong).is_none(), "{wrong}");
        }
        assert!(TokenKeys::read(&format!("{OLD}=")).is_some(), "padding does no harm");
        assert_eq!(format!("{:?}", TokenKeys::read(&format!("{NEW} {OLD}")).unwrap()), r#"["2026", "2025"]"#);
    }
}
