//! The contract, from the code: `OpenAPI` 3.1. `docs/openapi.json` is a copy; a test compares the two.

use std::sync::LazyLock;

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};

use crate::problem::{Code, ProblemBody};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Offstage",
        description = "Background jobs: accepted durably, done once, shown while they run. Errors are RFC 9457 problems with a permanent `code`; times are RFC 3339 in UTC.",
        license(name = "proprietary"),
    ),
    paths(super::health::live, super::health::ready, super::health::metrics, serve),
    components(schemas(ProblemBody<'static>, Code)),
    tags((name = "health", description = "For operators and load balancers; no key needed")),
    security(("api_key" = [])),
    modifiers(&ApiKey),
)]
struct Contract;

struct ApiKey;

impl Modify for ApiKey {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("pk_ and 32 letters and digits")
            .description(Some(
                "An API key. A backend that acts for one of its users adds the header `X-Acting-User`; then only that user's things exist. A user's browser sends a token of `POST /v1/tokens` in the key's place; doors that are not open to it answer 403 `token_not_allowed`.",
            ))
            .build();
        document.components.get_or_insert_default().add_security_scheme("api_key", SecurityScheme::Http(scheme));
    }
}

/// The contract as indented JSON with a final line's end: what `api openapi` prints and `docs/openapi.json` holds.
#[must_use]
pub fn document() -> String {
    let mut document = Contract::openapi()
        .merge_from(super::jobs::Contract::openapi())
        .merge_from(super::links::Contract::openapi())
        .merge_from(super::batches::Contract::openapi())
        .merge_from(super::exports::Contract::openapi())
        .merge_from(super::schedules::Contract::openapi())
        .merge_from(super::users::Contract::openapi())
        .merge_from(super::tokens::Contract::openapi())
        .merge_from(super::notifications::Contract::openapi())
        .merge_from(super::queues::Contract::openapi())
        .merge_from(super::downloads::Contract::openapi())
        .merge_from(super::emails::Contract::openapi())
        .merge_from(super::ai::Contract::openapi())
        .merge_from(super::inquiries::Contract::openapi())
        .merge_from(super::moderation::Contract::openapi())
        .merge_from(super::feeds::Contract::openapi())
        .merge_from(super::stats::Contract::openapi())
        .merge_from(super::summaries::Contract::openapi())
        .merge_from(super::events::Contract::openapi())
        .merge_from(super::analytics::Contract::openapi())
        .merge_from(super::byok::Contract::openapi())
        .merge_from(super::suppressions::Contract::openapi())
        .merge_from(super::unsubscribe::Contract::openapi())
        .merge_from(super::hooks::Contract::openapi())
        .merge_from(super::pushes::Contract::openapi())
        .merge_from(super::deliveries::Contract::openapi())
        .merge_from(super::usage::Contract::openapi());
    // The contract's version is the API's (`/v1`), not the program's: it changes when the contract does.
    "1".clone_into(&mut document.info.version);
    // Strings and maps with string keys: there is nothing in it that JSON can't hold.
    document.to_pretty_json().unwrap_or_default() + "\n"
}

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| document().into());

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "health", security(()), responses((status = 200, content_type = "application/json")))]
pub async fn serve() -> Response {
    // The same for everybody, and it changes with a release only.
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "public, max-age=300")], DOCUMENT.clone()).into_response()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use shared::kinds::Registry;

    use super::*;

    #[test]
    fn a_door_that_a_kind_names_is_there() {
        let document: Value = serde_json::from_str(&document()).unwrap();
        let registry = Registry::new(true);
        let doors: Vec<_> = registry.entries().filter_map(|entry| entry.door).collect();
        assert!(!doors.is_empty());
        for door in doors {
            let (method, path) = door.split_once(' ').unwrap();
            assert!(document["paths"][path][method.to_lowercase()].is_object(), "{door}");
        }
    }
}
