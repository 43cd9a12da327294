//! Two callers more: one that may be an end user's browser, and one that must be a backend.

use axum::{extract::FromRequestParts, http::request::Parts};

use super::{Caller, Identity, Needs};
use crate::{
    app::App,
    problem::{Code, Problem},
};

/// Who calls, with the scope `N`, and be it an end user by a token: for doors behind which a user finds what is their own and nothing
/// else. A handler that takes one shows, and changes, what is `acting_user`'s alone.
#[derive(Debug)]
pub struct CallerOrUser<N: Needs>(pub Caller<N>);

impl<N: Needs> FromRequestParts<App> for CallerOrUser<N> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        Identity::of(parts, app).await?.caller(parts, app).map(Self)
    }
}

/// A caller that acts for nobody but its backend.
#[derive(Debug)]
pub struct Backend<N: Needs>(pub Caller<N>);

impl<N: Needs> FromRequestParts<App> for Backend<N> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, app).await?;
        if caller.acting_user.is_some() {
            let detail = "This is for the product's backend, not for its users. Leave the header X-Acting-User out.";
            return Err(Problem::new(Code::BackendOnly, detail));
        }
        Ok(Self(caller))
    }
}
