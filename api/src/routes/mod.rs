//! The doors, one file a resource, and the table that says which address leads where.

mod ai;
mod analytics;
mod batches;
mod byok;
mod conditional;
mod content;
mod deliveries;
mod downloads;
mod emails;
mod events;
mod exports;
mod feeds;
mod health;
mod hooks;
mod inquiries;
mod jobs;
mod links;
mod moderation;
mod moment;
mod notifications;
mod openapi;
mod page;
mod pushes;
mod queues;
mod repeat;
mod schedules;
mod stats;
mod summaries;
mod suppressions;
mod tokens;
mod unsubscribe;
mod usage;
mod users;

use std::time::Duration;

use axum::{
    Router,
    http::{Extensions, HeaderMap, StatusCode, Version},
    middleware,
    routing::get,
};
use tower_http::compression::{
    CompressionLayer, CompressionLevel,
    predicate::{NotForContentType, Predicate, SizeAbove},
};

pub use analytics::Answers;
pub use health::Health;
pub use openapi::document;

use crate::{
    app::App,
    edge, origin,
    problem::{Code, Problem},
};

/// Answers of more bytes than this are compressed (R6), where the client takes it.
const COMPRESS_ABOVE: u64 = 1_000;

/// Every address of the program.
pub fn router(app: App) -> Router {
    let routes = Router::new()
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route("/openapi.json", get(openapi::serve))
        .merge(jobs::routes())
        .merge(links::routes())
        .merge(batches::routes())
        .merge(exports::routes())
        .merge(schedules::routes())
        .merge(users::routes())
        .merge(tokens::routes())
        .merge(notifications::routes())
        .merge(queues::routes())
        .merge(downloads::routes())
        .merge(emails::routes())
        .merge(ai::routes())
        .merge(inquiries::routes())
        .merge(moderation::routes())
        .merge(feeds::routes())
        .merge(stats::routes())
        .merge(summaries::routes())
        .merge(events::routes())
        .merge(analytics::routes())
        .merge(byok::routes())
        .merge(suppressions::routes())
        .merge(unsubscribe::routes())
        .merge(hooks::routes())
        .merge(pushes::routes())
        .merge(deliveries::routes())
        .merge(usage::routes());
    dress(routes, app, edge::DEADLINE)
}

/// Puts the edge around routes: what is unknown or goes wrong in them leaves as a problem, what is large compressed, and
/// what has not begun to answer within `deadline` is answered for.
pub fn dress(routes: Router<App>, app: App, deadline: Duration) -> Router {
    // Streams of events must not wait in a compressor's buffer; files are links to elsewhere.
    let worth = SizeAbove::new(COMPRESS_ABOVE + 1).and(NotForContentType::const_new("text/event-stream"));
    let worth = worth.and(|status: StatusCode, _: Version, _: &HeaderMap, _: &Extensions| status != StatusCode::NO_CONTENT);
    routes
        .fallback(async || Problem::new(Code::RouteNotFound, "There is nothing here; the addresses are listed at /openapi.json."))
        .method_not_allowed_fallback(async || Problem::new(Code::MethodNotAllowed, "Use a method that the header Allow names."))
        .layer(middleware::from_fn_with_state(app.clone(), origin::origins))
        .layer(middleware::from_fn_with_state((app.clone(), deadline), edge::edge))
        .layer(CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(worth))
        .with_state(app)
}
