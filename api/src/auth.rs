//! Who calls: an API key as a bearer token (RFC 6750), and the end user that a backend acts for.
//!
//! What must stay true: a handler gets a [`Caller`] only with the scope it names, so none can forget to ask; a revoked key
//! is refused within five seconds by every process; what the tenant's backend says about its user (`X-Acting-User`) narrows
//! what is seen and never widens it.

mod cache;

use std::marker::PhantomData;

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, header, request::Parts},
};
use shared::keys::{FoundKey, KeyHash, Scope, Scopes};
use uuid::Uuid;

pub use cache::KeyCache;
pub use shared::tenant::check_user;

use crate::{
    app::App,
    problem::{Code, Problem},
};

/// The header by which a backend names the end user it acts for.
pub const ACTING_USER: &str = "x-acting-user";

/// A scope as a type, so that a handler's signature says what it needs.
pub trait Needs: Send + Sync + 'static {
    /// The scope.
    const SCOPE: Scope;
}

macro_rules! needs {
    ($($(#[$doc:meta])* $name:ident;)+) => {
        $($(#[$doc])* #[derive(Debug)] pub struct $name; impl Needs for $name { const SCOPE: Scope = Scope::$name; })+
    };
}

needs! {
    /// Needs `jobs:read`.
    JobsRead;
    /// Needs `jobs:write`.
    JobsWrite;
    /// Needs `exports:read`.
    ExportsRead;
    /// Needs `exports:write`.
    ExportsWrite;
    /// Needs `schedules:read`.
    SchedulesRead;
    /// Needs `schedules:write`.
    SchedulesWrite;
}

/// Who calls, with the scope `N`. A handler that takes one is closed to everybody else.
#[derive(Debug)]
pub struct Caller<N: Needs> {
    /// The tenant's number.
    pub tenant: i32,
    /// The tenant's name.
    pub tenant_name: String,
    /// The key's id, for logs and audits.
    pub key: Uuid,
    /// By which the key is looked up again, for what lasts longer than a request.
    pub hash: KeyHash,
    /// All that the key may do.
    pub scopes: Scopes,
    /// The end user the backend acts for; then only that user's things exist.
    pub acting_user: Option<String>,
    needs: PhantomData<N>,
}

impl<N: Needs> FromRequestParts<App> for Caller<N> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let hash = presented_key(&parts.headers)?;
        let Some(key) = app.keys.find(hash).await? else {
            return Err(refused(
                Code::KeyUnknown,
                "This installation has no such key. Check that it is this installation's, or make one with `api key create`.",
            ));
        };
        if let Some(revoked_at) = key.revoked_at {
            return Err(refused(
                Code::KeyRevoked,
                format!("The key was revoked at {}. Make another with `api key create`.", revoked_at.format("%FT%TZ")),
            ));
        }
        if key.expires_at <= app.clock.now() {
            return Err(refused(
                Code::KeyExpired,
                format!("The key expired at {}. Make another with `api key create`.", key.expires_at.format("%FT%TZ")),
            ));
        }
        if !key.scopes.allow(N::SCOPE) {
            return Err(lacking(&key, N::SCOPE));
        }
        let acting_user = acting_user(&parts.headers)?;
        app.keys.note_use(hash);
        Ok(Self {
            tenant: key.tenant,
            tenant_name: key.tenant_name.clone(),
            key: key.id,
            hash,
            scopes: key.scopes.clone(),
            acting_user,
            needs: PhantomData,
        })
    }
}

fn presented_key(headers: &HeaderMap) -> Result<KeyHash, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        // RFC 6750 §3.1: who sent no credentials is told the scheme and nothing of errors.
        return Err(Problem::new(Code::KeyMissing, "Send an API key with the header `Authorization: Bearer pk_…`.")
            .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"offstage\"")));
    };
    if values.next().is_some() {
        return Err(refused(Code::KeyMalformed, "There are several Authorization headers; send one."));
    }
    let credentials = value.to_str().ok().and_then(|text| text.split_once(' '));
    let key = credentials.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, key)| key.trim());
    key.and_then(KeyHash::of).ok_or_else(|| {
        refused(Code::KeyMalformed, "The Authorization header must be `Bearer`, a space, and a key: `pk_` and 32 letters and digits.")
    })
}

fn refused(code: Code, detail: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::new(code, detail)
        .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"offstage\", error=\"invalid_token\""))
}

fn lacking(key: &FoundKey, scope: Scope) -> Problem {
    let detail = format!("This needs the scope `{scope}`; the key has: {}. Make a key with it by `api key create`.", key.scopes);
    let challenge = format!("Bearer realm=\"offstage\", error=\"insufficient_scope\", scope=\"{scope}\"");
    let problem = Problem::new(Code::ScopeMissing, detail);
    match HeaderValue::try_from(challenge) {
        Ok(challenge) => problem.with_header(header::WWW_AUTHENTICATE, challenge),
        Err(_) => problem,
    }
}

fn acting_user(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(ACTING_USER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let invalid = |detail: &str| Problem::new(Code::HeaderInvalid, format!("X-Acting-User {detail}."));
    if values.next().is_some() {
        return Err(invalid("is there several times; send it once"));
    }
    // Names are UTF-8, although HTTP promises ASCII only.
    let Ok(user) = std::str::from_utf8(value.as_bytes()) else { return Err(invalid("is not UTF-8 text")) };
    match check_user(user) {
        Ok(()) => Ok(Some(user.to_owned())),
        Err(detail) => Err(invalid(&detail)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap()))
            .collect::<Vec<_>>()
            .into_iter()
            .fold(HeaderMap::new(), |mut headers, (name, value): (header::HeaderName, _)| {
                headers.append(name, value);
                headers
            })
    }

    #[test]
    fn keys_are_taken_from_the_header() {
        let key = format!("pk_{}", "aB3x".repeat(8));
        for value in [format!("Bearer {key}"), format!("bearer  {key} ")] {
            assert_eq!(presented_key(&headers(&[("authorization", &value)])).unwrap(), KeyHash::of(&key).unwrap());
        }
        let code = |pairs: &[(&'static str, &str)]| presented_key(&headers(pairs)).unwrap_err().code();
        assert_eq!(code(&[]), Code::KeyMissing);
        for value in ["", "Bearer", "Bearer pk_", &key, &format!("Basic {key}"), &format!("Bearer {key}x"), "Bearer pk_é"] {
            assert_eq!(code(&[("authorization", value)]), Code::KeyMalformed, "{value}");
        }
        let value = format!("Bearer {key}");
        assert_eq!(code(&[("authorization", &value), ("authorization", &value)]), Code::KeyMalformed);
    }

    #[test]
    fn acting_users_are_checked() {
        let of = |value: &str| acting_user(&headers(&[(ACTING_USER, value)])).map_err(|problem| problem.code());
        assert_eq!(acting_user(&HeaderMap::new()).unwrap(), None);
        assert_eq!(of("user-1|ada@example.com").unwrap().unwrap(), "user-1|ada@example.com");
        assert_eq!(of("zoë").unwrap().unwrap(), "zoë");
        assert_eq!(of(&"é".repeat(255)).unwrap().unwrap().chars().count(), 255);
        for wrong in ["", "a b", "a\tb", &"a".repeat(256), "a\u{a0}b", "a\u{85}"] {
            assert_eq!(of(wrong), Err(Code::HeaderInvalid), "{wrong:?}");
        }
        assert!(acting_user(&headers(&[(ACTING_USER, "a"), (ACTING_USER, "b")])).is_err());
    }
}
