//! `POST /v1/tokens`: tokens by which a browser reads what is its user's own.
//!
//! What must stay true: a token may do what its key may do and less; it names one user; it lives minutes, an hour at most, and ends with
//! its key; it is shown this once and kept nowhere.

use axum::{Json as Answer, Router, extract::State, http::StatusCode, routing::post};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use shared::{
    keys::{Scope, Scopes},
    kinds::Violation,
    tenant::check_user,
    tokens::UserToken,
};
use utoipa::{OpenApi, ToSchema};

use crate::{
    app::App,
    auth::{Backend, TokensWrite},
    extract::Json,
    problem::{Code, Problem, ProblemBody},
};

/// How long a token lives unless told otherwise, in seconds.
const LIFE: u32 = 900;

/// The longest that one may: an hour.
const LONGEST_LIFE: u32 = 3_600;

/// The shortest: less would be over before a page has loaded.
const SHORTEST_LIFE: u32 = 60;

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(paths(create), tags((name = "tokens", description = "For browsers: one user's own jobs, exports and inbox")))]
pub struct Contract;

/// The door.
pub fn routes() -> Router<App> {
    Router::new().route("/v1/tokens", post(create))
}

/// What a token is to be like.
#[derive(Debug, Deserialize, ToSchema)]
pub struct NewToken {
    /// The end user; the only one whose things exist for the token.
    #[schema(min_length = 1, max_length = 255, example = "user-42")]
    user: String,
    /// What it may do: some of `jobs:read`, `exports:read`, `notifications:read`, `notifications:write`, as far as the key may do so too;
    /// all of those when absent.
    #[schema(value_type = Option<Vec<Scope>>, example = json!(["notifications:read", "notifications:write"]))]
    scopes: Option<Vec<String>>,
    /// For how long, in seconds; a quarter of an hour when absent, an hour at most.
    #[schema(minimum = 60, maximum = 3_600)]
    expires_in_seconds: Option<u32>,
}

/// A token.
#[derive(Serialize, ToSchema)]
#[schema(as = Token)]
pub struct Made {
    /// To be sent as `Authorization: Bearer …`, never in an address: a secret, shown this once.
    token: String,
    /// The end user.
    user: String,
    /// What it may do.
    scopes: Scopes,
    /// When it ends.
    expires_at: DateTime<Utc>,
}

/// Makes a token for a user.
///
/// With it a browser reads its user's jobs, exports and inbox, live too, and marks what is in the inbox; every other door answers 403
/// `token_not_allowed`. It can't be taken back by itself: it ends at its time, and with the key it was made by. Pages on other origins
/// than the API's must be listed in the product's manifest (`[web]`).
#[utoipa::path(
    post, path = "/v1/tokens", tag = "tokens", operation_id = "create_token", request_body = NewToken,
    responses(
        (status = 201, body = Made),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`; `tokens_not_enabled`: the installation has no key to sign with"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    Backend(caller): Backend<TokensWrite>,
    Json(new): Json<NewToken>,
) -> Result<(StatusCode, Answer<Made>), Problem> {
    let Some(keys) = &app.config.token_keys else {
        let detail = "This installation has no key to sign tokens with. Its operator sets OFFSTAGE_TOKEN_KEYS.";
        return Err(Problem::new(Code::TokensNotEnabled, detail));
    };
    let mut wrong = Vec::new();
    if let Err(detail) = check_user(&new.user) {
        wrong.push(Violation::new("/user", detail));
    }
    let scopes = scopes_of(new.scopes.as_deref(), &caller.scopes).unwrap_or_else(|violations| {
        wrong.extend(violations);
        Scopes::default()
    });
    let life = new.expires_in_seconds.unwrap_or(LIFE);
    if !(SHORTEST_LIFE..=LONGEST_LIFE).contains(&life) {
        let detail = format!("is {life}; {SHORTEST_LIFE} to {LONGEST_LIFE} are allowed");
        wrong.push(Violation::new("/expires_in_seconds", detail));
    }
    if !wrong.is_empty() {
        return Err(Problem::invalid(wrong));
    }
    let now = app.clock.now();
    // A token's times are whole seconds.
    let issued_at = DateTime::from_timestamp(now.timestamp(), 0).unwrap_or(now);
    let expires_at = issued_at + TimeDelta::seconds(life.into());
    let token = UserToken { tenant: caller.tenant, user: new.user, key: caller.hash, scopes, issued_at, expires_at };
    let signed = keys.sign(&token, app.clock.new_id()).map_err(Problem::internal)?;
    let UserToken { user, scopes, .. } = token;
    Ok((StatusCode::CREATED, Answer(Made { token: signed, user, scopes, expires_at })))
}

/// What a token may do: what was asked for, where that is for tokens and the key may do it too; or all of that.
fn scopes_of(asked: Option<&[String]>, of_key: &Scopes) -> Result<Scopes, Vec<Violation>> {
    let words = || Scope::OF_TOKENS.map(Scope::word).join(", ");
    let Some(asked) = asked else {
        let all: Scopes = Scope::OF_TOKENS.into_iter().filter(|scope| of_key.allow(*scope)).collect();
        if all.is_empty() {
            let detail = format!("the key may do nothing that a token may do; make one that has some of {}", words());
            return Err(vec![Violation::new("/scopes", detail)]);
        }
        return Ok(all);
    };
    let mut scopes = Vec::new();
    let mut wrong = Vec::new();
    for (place, word) in asked.iter().enumerate().take(Scope::ALL.len()) {
        match word.parse::<Scope>() {
            Ok(scope) if !Scope::OF_TOKENS.contains(&scope) => {
                wrong.push(Violation::new(format!("/scopes/{place}"), format!("`{scope}` is not for tokens; some of {} are", words())));
            }
            Ok(scope) if !of_key.allow(scope) => {
                let detail = format!("the key has no `{scope}` itself; it has: {of_key}");
                wrong.push(Violation::new(format!("/scopes/{place}"), detail));
            }
            Ok(scope) => scopes.push(scope),
            Err(_) => {
                wrong.push(Violation::new(format!("/scopes/{place}"), format!("there is no such scope; for tokens there are {}", words())));
            }
        }
    }
    if asked.is_empty() {
        wrong.push(Violation::new("/scopes", "names nothing; leave it out for all that there is"));
    }
    if asked.len() > Scope::ALL.len() {
        wrong.push(Violation::new("/scopes", format!("names {} scopes; there are not so many", asked.len())));
    }
    if wrong.is_empty() { Ok(scopes.into_iter().collect()) } else { Err(wrong) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_may_do_what_its_key_may_and_less() {
        let words = |asked: Option<&[&str]>, of_key: &[Scope]| {
            let asked: Option<Vec<String>> = asked.map(|words| words.iter().map(|word| (*word).to_owned()).collect());
            scopes_of(asked.as_deref(), &of_key.iter().copied().collect())
                .map(|scopes| scopes.to_string())
                .map_err(|wrong| wrong.into_iter().map(|violation| violation.pointer).collect::<Vec<_>>())
        };
        let all = "jobs:read,exports:read,notifications:read,notifications:write,pushes:read,pushes:write,feeds:read,\
                   byok:read,byok:write,analytics:read,usage:read";
        assert_eq!(words(None, &[Scope::All]).as_deref(), Ok(all));
        assert_eq!(words(None, &[Scope::JobsRead, Scope::JobsWrite, Scope::TokensWrite]).as_deref(), Ok("jobs:read"));
        assert_eq!(words(Some(&["exports:read"]), &[Scope::All]).as_deref(), Ok("exports:read"));
        assert_eq!(words(None, &[Scope::TokensWrite]), Err(vec!["/scopes".to_owned()]));
        assert_eq!(words(Some(&[]), &[Scope::All]), Err(vec!["/scopes".to_owned()]));
        for wrong in ["*", "jobs:write", "users:read", "tokens:write", "", "made up"] {
            assert_eq!(words(Some(&["jobs:read", wrong]), &[Scope::All]), Err(vec!["/scopes/1".to_owned()]), "{wrong}");
        }
        assert_eq!(words(Some(&["exports:read"]), &[Scope::JobsRead]), Err(vec!["/scopes/0".to_owned()]));
    }
}
