//! The doors of the API, as somebody knocks who goes from one to the next. One that is missing here fails the walk.

use acceptance::{Client, probe};
use reqwest::RequestBuilder;
use serde_json::json;

/// What a door is to somebody whose it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    /// Open to everybody; there is nobody's data behind it.
    Open,
    /// One job: another's does not exist.
    Job,
    /// One export: another's does not exist.
    Export,
    /// One batch: another's does not exist.
    Batch,
    /// A list: it holds only the caller's.
    List,
    /// A stream without end: it tells only of the caller's.
    Stream,
    /// Makes something, which is the caller's.
    Make,
    /// One notification: another's does not exist.
    Notification,
    /// A stream of notifications: it tells only of the caller's.
    Inbox,
    /// A user's preferences: another's do not exist for who acts for a user.
    Preferences,
    /// Open to whoever has the address, and to nobody else.
    Address,
    /// Takes what is the caller's own, and shows nothing.
    Own,
    /// Open to whoever signs, and to nobody else.
    Signed,
    /// Something that a tenant's manifest names: another's does not exist.
    Declared,
    /// For a tenant's backend, about what is its own: whoever acts for a user is turned away.
    Backend,
}

/// Every door of the API, what is behind it, and the scope it takes. A door that is not here fails the walk.
pub const DOORS: &[(&str, &str, Walk, &str)] = &[
    ("get", "/health/live", Walk::Open, ""),
    ("get", "/health/ready", Walk::Open, ""),
    ("get", "/metrics", Walk::Open, ""),
    ("get", "/openapi.json", Walk::Open, ""),
    ("post", "/v1/jobs", Walk::Make, "jobs:write"),
    ("get", "/v1/jobs", Walk::List, "jobs:read"),
    ("get", "/v1/jobs/{id}", Walk::Job, "jobs:read"),
    ("get", "/v1/jobs/{id}/events", Walk::Job, "jobs:read"),
    ("get", "/v1/events", Walk::Stream, "jobs:read"),
    ("post", "/v1/jobs/{id}/links", Walk::Job, "jobs:write"),
    ("delete", "/v1/jobs/{id}/links", Walk::Job, "jobs:write"),
    ("get", "/j/{token}", Walk::Address, ""),
    ("get", "/j/{token}/events", Walk::Address, ""),
    ("get", "/v1/jobs/{id}/explain", Walk::Job, "jobs:read"),
    ("post", "/v1/jobs/{id}/cancel", Walk::Job, "jobs:write"),
    ("post", "/v1/jobs/{id}/retry", Walk::Job, "jobs:write"),
    ("post", "/v1/jobs/{id}/discard", Walk::Job, "jobs:write"),
    ("post", "/v1/jobs/retry", Walk::List, "jobs:write"),
    ("post", "/v1/jobs/discard", Walk::List, "jobs:write"),
    ("post", "/v1/jobs/batch", Walk::Make, "jobs:write"),
    ("get", "/v1/batches", Walk::List, "jobs:read"),
    ("get", "/v1/batches/{id}", Walk::Batch, "jobs:read"),
    ("get", "/v1/batches/{id}/jobs", Walk::Batch, "jobs:read"),
    ("post", "/v1/batches/{id}/cancel", Walk::Batch, "jobs:write"),
    ("post", "/v1/exports", Walk::Make, "exports:write"),
    ("get", "/v1/exports", Walk::List, "exports:read"),
    ("get", "/v1/exports/{id}", Walk::Export, "exports:read"),
    ("delete", "/v1/exports/{id}", Walk::Export, "exports:write"),
    ("get", "/v1/exports/{id}/download", Walk::Export, "exports:read"),
    ("post", "/v1/exports/{id}/page", Walk::Export, "exports:write"),
    ("delete", "/v1/exports/{id}/page", Walk::Export, "exports:write"),
    ("post", "/v1/schedules", Walk::Backend, "schedules:write"),
    ("get", "/v1/schedules", Walk::Backend, "schedules:read"),
    ("get", "/v1/schedules/{id}", Walk::Backend, "schedules:read"),
    ("patch", "/v1/schedules/{id}", Walk::Backend, "schedules:write"),
    ("delete", "/v1/schedules/{id}", Walk::Backend, "schedules:write"),
    ("post", "/v1/schedules/{id}/pause", Walk::Backend, "schedules:write"),
    ("post", "/v1/schedules/{id}/resume", Walk::Backend, "schedules:write"),
    ("post", "/v1/schedules/{id}/run", Walk::Backend, "schedules:write"),
    ("get", "/v1/schedules/{id}/preview", Walk::Backend, "schedules:read"),
    ("get", "/v1/schedules/{id}/history", Walk::Backend, "schedules:read"),
    ("get", "/v1/queues", Walk::Backend, "jobs:read"),
    ("post", "/v1/queues/{queue}/pause", Walk::Backend, "jobs:write"),
    ("post", "/v1/queues/{queue}/resume", Walk::Backend, "jobs:write"),
    ("put", "/v1/users/{id}", Walk::Backend, "users:write"),
    ("get", "/v1/users/{id}", Walk::Backend, "users:read"),
    ("delete", "/v1/users/{id}", Walk::Backend, "users:write"),
    ("get", "/v1/users/{id}/preferences", Walk::Preferences, "notifications:read"),
    ("put", "/v1/users/{id}/preferences", Walk::Preferences, "notifications:write"),
    ("put", "/v1/users/{id}/follows/{other}", Walk::Backend, "users:write"),
    ("delete", "/v1/users/{id}/follows/{other}", Walk::Backend, "users:write"),
    ("post", "/v1/tokens", Walk::Backend, "tokens:write"),
    ("get", "/v1/notifications", Walk::List, "notifications:read"),
    ("post", "/v1/notifications", Walk::Backend, "notifications:write"),
    ("get", "/v1/notifications/triggers/{id}", Walk::Backend, "notifications:read"),
    ("get", "/v1/notifications/events", Walk::Inbox, "notifications:read"),
    ("post", "/v1/notifications/read", Walk::List, "notifications:write"),
    ("post", "/v1/notifications/{id}/read", Walk::Notification, "notifications:write"),
    ("post", "/v1/notifications/{id}/clicked", Walk::Notification, "notifications:write"),
    ("post", "/v1/notifications/{id}/archived", Walk::Notification, "notifications:write"),
    ("post", "/v1/emails", Walk::Make, "emails:write"),
    ("post", "/v1/ai/{task}", Walk::Make, "ai:write"),
    ("post", "/v1/ai/{task}/batch", Walk::Make, "ai:write"),
    ("get", "/v1/jobs/{id}/stream", Walk::Job, "jobs:read"),
    ("get", "/v1/byok", Walk::Own, "byok:read"),
    ("get", "/v1/byok/{provider}", Walk::Own, "byok:read"),
    ("put", "/v1/byok/{provider}", Walk::Own, "byok:write"),
    ("delete", "/v1/byok/{provider}", Walk::Own, "byok:write"),
    ("post", "/v1/byok/{provider}/test", Walk::Own, "byok:write"),
    ("post", "/v1/inquiries", Walk::Own, "emails:write"),
    ("post", "/v1/reports", Walk::Own, "reports:write"),
    ("get", "/v1/reports", Walk::Backend, "moderation:read"),
    ("get", "/v1/reports/{id}", Walk::Backend, "moderation:read"),
    ("patch", "/v1/reports/{id}", Walk::Backend, "moderation:write"),
    ("get", "/v1/users/{id}/moderation", Walk::Backend, "moderation:read"),
    ("post", "/v1/users/{id}/moderation", Walk::Backend, "moderation:write"),
    ("post", "/v1/activities", Walk::Backend, "feeds:write"),
    ("get", "/v1/feed", Walk::List, "feeds:read"),
    ("get", "/v1/stats", Walk::Backend, "stats:read"),
    ("get", "/v1/stats/{source}", Walk::Backend, "stats:read"),
    ("get", "/v1/stats/{source}/history", Walk::Backend, "stats:read"),
    ("post", "/v1/stats/{source}/refresh", Walk::Backend, "stats:write"),
    ("post", "/v1/stats/{source}/accept", Walk::Backend, "stats:write"),
    ("get", "/v1/summaries", Walk::Backend, "stats:read"),
    ("post", "/v1/events", Walk::Backend, "events:write"),
    ("get", "/v1/analytics", Walk::List, "analytics:read"),
    ("get", "/v1/analytics/{metric}", Walk::Declared, "analytics:read"),
    ("get", "/v1/analytics/views/{view}", Walk::Declared, "analytics:read"),
    ("post", "/v1/analytics/{metric}/rebuild", Walk::Backend, "analytics:write"),
    ("get", "/v1/suppressions", Walk::Backend, "emails:read"),
    ("post", "/v1/suppressions", Walk::Backend, "emails:write"),
    ("delete", "/v1/suppressions/{id}", Walk::Backend, "emails:write"),
    ("get", "/u/{token}", Walk::Address, ""),
    ("post", "/u/{token}", Walk::Address, ""),
    ("post", "/v1/hooks/mail/signed/{tenant}", Walk::Signed, ""),
    ("post", "/v1/hooks/mail/postmark", Walk::Own, "hooks:write"),
    ("post", "/v1/pushes", Walk::Make, "pushes:write"),
    ("get", "/v1/push/key", Walk::List, "pushes:read"),
    ("post", "/v1/push/subscriptions", Walk::Own, "pushes:write"),
    ("delete", "/v1/push/subscriptions", Walk::Own, "pushes:write"),
    ("get", "/v1/deliveries", Walk::List, "jobs:read"),
    ("get", "/v1/usage", Walk::List, "usage:read"),
    ("get", "/v1/ai/usage", Walk::List, "usage:read"),
    ("post", "/v1/ai/usage", Walk::Backend, "usage:write"),
    ("get", "/d/{token}", Walk::Address, ""),
    ("get", "/d/{token}/file", Walk::Address, ""),
];

pub const SCOPES: [&str; 31] = [
    "jobs:read",
    "jobs:write",
    "exports:read",
    "exports:write",
    "schedules:read",
    "schedules:write",
    "users:read",
    "users:write",
    "notifications:read",
    "notifications:write",
    "tokens:write",
    "emails:read",
    "emails:write",
    "pushes:read",
    "pushes:write",
    "hooks:write",
    "reports:write",
    "moderation:read",
    "moderation:write",
    "feeds:read",
    "feeds:write",
    "ai:write",
    "stats:read",
    "stats:write",
    "events:write",
    "analytics:read",
    "analytics:write",
    "usage:read",
    "usage:write",
    "byok:read",
    "byok:write",
];

/// A request to a door, about the job or export `id` where it is about one.
pub fn knock(client: &Client, method: &str, path: &str, walk: Walk, id: &str) -> RequestBuilder {
    let address = path
        .replace("{source}", "walk")
        .replace("{id}", id)
        .replace("{token}", id)
        .replace("{queue}", "media")
        .replace("{other}", "eve")
        .replace("{tenant}", "acme")
        .replace("{provider}", "openai")
        .replace("{task}", "walk");
    let address = address.replace("{metric}", "walk").replace("{view}", "walk");
    let address = match (method, path) {
        ("get", "/v1/suppressions") => format!("{address}?email=walk@example.com"),
        (_, "/v1/deliveries") => format!("{address}?job={id}"),
        _ => address,
    };
    let request = client.request(method.to_uppercase().parse().unwrap(), &address);
    match (walk, path) {
        (Walk::Make, "/v1/jobs") => request.json(&probe(&json!({}))),
        (Walk::Make, "/v1/jobs/batch") => request.json(&json!({"jobs": [probe(&json!({}))]})),
        (Walk::Make, "/v1/exports") => request.json(&json!({"dataset": "words", "format": "csv"})),
        (Walk::List, "/v1/jobs/retry" | "/v1/jobs/discard") => request.json(&json!({"filter": {}})),
        (Walk::Backend, "/v1/schedules") if method == "post" => {
            request.json(&json!({"name": "walk", "kind": "probe.run", "payload": {}, "every_seconds": 86_400}))
        }
        (Walk::Backend, "/v1/schedules/{id}") if method == "patch" => request.json(&json!({"jitter_seconds": 1})),
        (Walk::Preferences, _) if method == "put" => request.json(&json!({"categories": {}})),
        (Walk::Backend, "/v1/users/{id}") if method == "put" => request.json(&json!({})),
        (Walk::Backend, "/v1/notifications") => request.json(&json!({"type": "system", "to": {"user": "walk"}, "title": "Walk"})),
        (Walk::Backend, "/v1/reports/{id}") if method == "patch" => request.json(&json!({"status": "reviewed"})),
        (Walk::Backend, "/v1/users/{id}/moderation") if method == "post" => request.json(&json!({"action": "ban"})),
        (Walk::Backend, "/v1/activities") => {
            request.json(&json!({"actor": "walk", "verb": "created", "object": {"type": "prompt", "id": "1"}}))
        }
        (Walk::Backend, "/v1/stats/{source}/accept") => request.json(&json!({"flagged_at": "2026-01-01T00:00:00Z"})),
        (Walk::Backend, "/v1/events") => request.json(&json!({"events": [{"id": "walk", "type": "walk"}]})),
        (Walk::Backend, "/v1/ai/usage") => request.json(&json!({"calls": [{"id": "walk", "provider": "a", "model": "b"}]})),
        (Walk::Backend, "/v1/tokens") => request.json(&json!({"user": "ada"})),
        (Walk::Make, "/v1/emails") => request.json(&json!({
            "to": {"email": "walk@example.com"}, "subject": "Walk", "text": "A walk.", "category": "walk",
        })),
        (Walk::Make, "/v1/ai/{task}/batch") => request.json(&json!({"jobs": [{"input": {}}]})),
        (Walk::Make, "/v1/ai/{task}") => request.json(&json!({"input": {}})),
        (Walk::Make, "/v1/pushes") => request.json(&json!({"user": client.acting_user().unwrap_or("ada"), "title": "Walk"})),
        (Walk::Backend, "/v1/suppressions") if method == "post" => request.json(&json!({"email": "walk@example.com", "category": "none"})),
        (Walk::Own, "/v1/push/subscriptions") => request.json(&json!({"endpoint": "https://push.example.net/walk"})),
        (Walk::Backend, "/v1/queues/{queue}/pause" | "/v1/queues/{queue}/resume") | (Walk::Own | Walk::Signed, _) => {
            request.json(&json!({}))
        }
        (Walk::Make, other) => panic!("say here what to send to {other}"),
        _ => request,
    }
}
