//! Who calls: an API key as a bearer token (RFC 6750), and the end user that a backend acts for; or an end user's browser, by a token
//! that the backend had made for it ([`shared::tokens`]).
//!
//! What must stay true: a handler gets a [`Caller`] only with the scope it names, so none can forget to ask; a revoked key
//! is refused within five seconds by every process, and so are the tokens that were made by it; what the tenant's backend says about its
//! user (`X-Acting-User`) narrows what is seen and never widens it; a token acts for its own user and nobody else, and enters by the
//! doors alone that take a [`CallerOrUser`].

mod cache;
mod users;

use std::{
    marker::PhantomData,
    sync::{Arc, OnceLock},
};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, header, request::Parts},
};
use chrono::{DateTime, Utc};
use serde_json::Value;
use shared::{
    keys::{FoundKey, KeyHash, Scope, Scopes},
    kinds::Registry,
    tokens::{TokenError, UserToken},
};
use uuid::Uuid;

pub use cache::KeyCache;
pub use shared::tenant::check_user;
pub use users::{Backend, CallerOrUser};

use crate::{
    app::App,
    events::Authority,
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
    /// Needs `users:read`.
    UsersRead;
    /// Needs `users:write`.
    UsersWrite;
    /// Needs `notifications:read`.
    NotificationsRead;
    /// Needs `notifications:write`.
    NotificationsWrite;
    /// Needs `tokens:write`.
    TokensWrite;
    /// Needs `emails:read`.
    EmailsRead;
    /// Needs `emails:write`.
    EmailsWrite;
    /// Needs `pushes:read`.
    PushesRead;
    /// Needs `pushes:write`.
    PushesWrite;
    /// Needs `hooks:write`.
    HooksWrite;
    /// Needs `reports:write`.
    ReportsWrite;
    /// Needs `moderation:read`.
    ModerationRead;
    /// Needs `moderation:write`.
    ModerationWrite;
    /// Needs `feeds:read`.
    FeedsRead;
    /// Needs `feeds:write`.
    FeedsWrite;
    /// Needs `byok:read`.
    ByokRead;
    /// Needs `byok:write`.
    ByokWrite;
    /// Needs `ai:write`.
    AiWrite;
    /// Needs `stats:read`.
    StatsRead;
    /// Needs `stats:write`.
    StatsWrite;
    /// Needs `events:write`.
    EventsWrite;
    /// Needs `analytics:read`.
    AnalyticsRead;
    /// Needs `analytics:write`.
    AnalyticsWrite;
    /// Needs `usage:read`.
    UsageRead;
    /// Needs `usage:write`.
    UsageWrite;
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
    /// The end user the backend acts for, or whose token it is; then only that user's things exist.
    pub acting_user: Option<String>,
    /// When the user's token ends, where it is one.
    pub token_ends_at: Option<DateTime<Utc>>,
    needs: PhantomData<N>,
}

impl<N: Needs> Caller<N> {
    /// By what right it would go on listening.
    #[must_use]
    pub const fn authority(&self) -> Authority {
        match self.token_ends_at {
            None => Authority::Key(self.hash),
            Some(expires_at) => Authority::Token { key: self.hash, expires_at },
        }
    }
}

impl<N: Needs> FromRequestParts<App> for Caller<N> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let identity = Identity::of(parts, app).await?;
        if identity.token.is_some() {
            return Err(not_for_tokens());
        }
        identity.caller(parts, app)
    }
}

/// Where the middleware of origins (`crate::origin`) learns whose request it was.
#[derive(Debug, Clone, Default)]
pub struct TenantOfRequest(pub Arc<OnceLock<i32>>);

/// Whose credentials a request has.
struct Identity {
    key: Arc<FoundKey>,
    hash: KeyHash,
    token: Option<UserToken>,
}

/// What was presented.
#[derive(Debug, PartialEq, Eq)]
enum Credentials<'a> {
    Key(KeyHash),
    Token(&'a str),
}

impl Identity {
    /// Finds out, and refuses what counts for nothing.
    async fn of(parts: &Parts, app: &App) -> Result<Self, Problem> {
        let (hash, token) = match presented(&parts.headers)? {
            Credentials::Key(hash) => (hash, None),
            Credentials::Token(text) => {
                let token = read_token(text, app)?;
                (token.key, Some(token))
            }
        };
        let whose = if token.is_some() { "The key that this token was made by" } else { "The key" };
        let Some(key) = app.keys.find(hash).await?.filter(|key| token.as_ref().is_none_or(|token| token.tenant == key.tenant)) else {
            return Err(refused(
                Code::KeyUnknown,
                "This installation has no such key. Check that it is this installation's, or make one with `api key create`.",
            ));
        };
        if let Some(tenant) = parts.extensions.get::<TenantOfRequest>() {
            // Set once a request; a second extractor finds the same.
            let _known = tenant.0.set(key.tenant);
        }
        if let Some(revoked_at) = key.revoked_at {
            return Err(refused(
                Code::KeyRevoked,
                format!("{whose} was revoked at {}. Make another with `api key create`.", revoked_at.format("%FT%TZ")),
            ));
        }
        if key.expires_at <= app.clock.now() {
            return Err(refused(
                Code::KeyExpired,
                format!("{whose} expired at {}. Make another with `api key create`.", key.expires_at.format("%FT%TZ")),
            ));
        }
        Ok(Self { key, hash, token })
    }

    fn caller<N: Needs>(self, parts: &Parts, app: &App) -> Result<Caller<N>, Problem> {
        let Self { key, hash, token } = self;
        if !key.scopes.allow(N::SCOPE) {
            return Err(lacking("the key", &key.scopes, N::SCOPE));
        }
        let named = acting_user(&parts.headers)?;
        let (acting_user, token_ends_at) = match token {
            None => (named, None),
            Some(token) if !token.scopes.allow(N::SCOPE) => return Err(lacking("the token", &token.scopes, N::SCOPE)),
            Some(token) if named.as_ref().is_some_and(|named| *named != token.user) => {
                let detail = "A user's token acts for its own user and nobody else. Leave the header X-Acting-User out.";
                return Err(Problem::new(Code::TokenNotAllowed, detail));
            }
            Some(token) => (Some(token.user), Some(token.expires_at)),
        };
        app.keys.note_use(hash);
        Ok(Caller {
            tenant: key.tenant,
            tenant_name: key.tenant_name.clone(),
            key: key.id,
            hash,
            scopes: key.scopes.clone(),
            acting_user,
            token_ends_at,
            needs: PhantomData,
        })
    }
}

impl<N: Needs> Caller<N> {
    /// Turns away who may not make jobs of these kinds and payloads: what has a door of its own needs the scope of that door, and what brings
    /// what another door reads the scope of that one, by whichever it comes.
    ///
    /// # Errors
    /// [`Code::ScopeMissing`].
    pub fn may_make<'k>(&self, known: &Registry, jobs: impl IntoIterator<Item = (&'k str, &'k Value)>) -> Result<(), Problem> {
        let needs = jobs.into_iter().filter_map(|(kind, payload)| known.find(kind).map(|entry| [entry.scope, (entry.reads)(payload)]));
        let lacks = needs.flatten().flatten().find(|scope| !self.scopes.allow(*scope));
        lacks.map_or(Ok(()), |scope| Err(lacking("the key", &self.scopes, scope)))
    }

    /// Turns away whose key has not another scope beside the door's own, for a part of what the door does.
    ///
    /// # Errors
    /// [`Code::ScopeMissing`].
    pub fn must_have(&self, scope: Scope) -> Result<(), Problem> {
        if self.scopes.allow(scope) { Ok(()) } else { Err(lacking("the key", &self.scopes, scope)) }
    }

    /// Turns away whoever acts for an end user: the door is for the product's backend. `what` it is about, in the plural.
    ///
    /// # Errors
    /// [`Code::BackendOnly`].
    pub fn for_the_backend(&self, what: &str) -> Result<(), Problem> {
        match self.acting_user {
            None => Ok(()),
            Some(_) => Err(Problem::new(Code::BackendOnly, format!("{what} are for the product's backend: leave out X-Acting-User."))),
        }
    }
}

fn not_for_tokens() -> Problem {
    let detail = "A user's token does not open this. It is for the product's backend, with an API key.";
    Problem::new(Code::TokenNotAllowed, detail)
}

fn read_token(text: &str, app: &App) -> Result<UserToken, Problem> {
    let invalid = || {
        refused(
            Code::TokenInvalid,
            "This is no token of this installation, or the key that signed it is no longer in use. Ask your backend for a new one.",
        )
    };
    let keys = app.config.token_keys.as_ref().ok_or_else(invalid)?;
    keys.verify(text, app.clock.now()).map_err(|error| match error {
        TokenError::Invalid => invalid(),
        TokenError::Expired(at) => {
            refused(Code::TokenExpired, format!("The token expired at {}. Ask your backend for a new one.", at.format("%FT%TZ")))
        }
    })
}

fn presented(headers: &HeaderMap) -> Result<Credentials<'_>, Problem> {
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
    let text = credentials.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, text)| text.trim());
    match text {
        // A key has no dot; a token has two (RFC 7515, section 3.1).
        Some(text) if text.bytes().filter(|byte| *byte == b'.').count() == 2 => Ok(Credentials::Token(text)),
        text => text.and_then(KeyHash::of).map(Credentials::Key).ok_or_else(|| {
            let detail =
                "The Authorization header must be `Bearer`, a space, and a key (`pk_` and 32 letters and digits) or a user's token.";
            refused(Code::KeyMalformed, detail)
        }),
    }
}

fn refused(code: Code, detail: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::new(code, detail)
        .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"offstage\", error=\"invalid_token\""))
}

fn lacking(what: &str, scopes: &Scopes, scope: Scope) -> Problem {
    let detail = format!("This needs the scope `{scope}`; {what} has: {scopes}. Make a key with it by `api key create`.");
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
            assert_eq!(presented(&headers(&[("authorization", &value)])).unwrap(), Credentials::Key(KeyHash::of(&key).unwrap()));
        }
        assert_eq!(presented(&headers(&[("authorization", "Bearer a.b.c")])).unwrap(), Credentials::Token("a.b.c"));
        let code = |pairs: &[(&'static str, &str)]| presented(&headers(pairs)).unwrap_err().code();
        assert_eq!(code(&[]), Code::KeyMissing);
        for value in ["", "Bearer", "Bearer pk_", &key, &format!("Basic {key}"), &format!("Bearer {key}x"), "Bearer pk_é", "Bearer a.b"] {
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
