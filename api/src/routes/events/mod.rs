//! Events of products (R60): up to 5,000 a request, taken once each, answered when they are durable.
//!
//! What must stay true: a body is bounded before it is read, packed and unpacked; what is wrong with one event is said of that one, and the
//! others are taken; sending a request again, or a part of it, changes nothing.

mod body;
mod event;

use std::{sync::Arc, time::Duration};

use axum::{Json as Answer, Router, body::Body, extract::State, http::HeaderMap, routing::post};
use chrono::{DateTime, Utc};
use serde::Serialize;
use shared::{
    ledger::{
        LedgerError,
        events::{NewEvent, Outcome},
    },
    tenant::Tenant,
};
use utoipa::{OpenApi, ToSchema};

use crate::{
    app::App,
    auth::{Backend, EventsWrite},
    extract::when_sent,
    intake::Place,
    problem::{Code, Problem, ProblemBody},
};
use body::Packed;
use event::{Refused, Rules};

/// The most events of a request.
pub const MOST_EVENTS: usize = 5_000;

/// The largest body as it is sent, and unpacked, in bytes.
pub const BODY_LIMIT: usize = 8 * 1024 * 1024;
pub const UNPACKED_LIMIT: usize = 16 * 1024 * 1024;

/// When to come again where too much is under way.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(paths(create), components(schemas(event::EventBody)), tags((name = "analytics", description = "Events, and what is counted of them")))]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new().route("/v1/events", post(create))
}

/// Events, each once.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "for the contract; the door reads event by event")]
pub struct EventsBody {
    /// 1 to 5,000 events, each at most 16 KiB.
    #[schema(min_items = 1, max_items = 5_000)]
    events: Vec<event::EventBody>,
}

/// What became of a request's events.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventsTaken {
    /// Events that are stored and counted now.
    accepted: usize,
    /// Events whose id was taken before, by this request or another.
    duplicates: usize,
    /// Events that were not taken, in their order.
    rejected: Vec<Rejected>,
}

/// An event that was not taken.
#[derive(Debug, Serialize, ToSchema)]
pub struct Rejected {
    /// Its place in the request, from 0; of JSON lines the line, from 0.
    index: usize,
    /// Why, for programs: `invalid`, `too_large`, `time_too_old`, `time_in_future`, `user_being_erased`.
    #[schema(value_type = String)]
    code: &'static str,
    /// Why, and what to do.
    detail: String,
}

/// Sends events.
///
/// As JSON (`{"events": […]}`), or JSON lines (`application/x-ndjson`), as they are or packed (`Content-Encoding: gzip` or `zstd`); at most
/// 8 MiB as sent and 16 MiB unpacked. When the answer comes they are durable. An id counts once: what is sent again within 7 days is a
/// duplicate and changes nothing, so a request whose answer was lost is sent again as it is. An event that can't be taken is named in
/// `rejected`, and the others are taken all the same.
///
/// An event's time may be at most 10 minutes ahead of ours, and then counts as now; further ahead it is rejected, and so is one that is older
/// than the manifest's `[events] keep_days`. With `X-Sent-At`, the sender's clock at sending, all times are corrected by the difference if
/// that is a minute or more.
#[utoipa::path(
    post, path = "/v1/events", tag = "analytics", operation_id = "send_events", request_body = EventsBody,
    params(
        ("Content-Encoding" = Option<String>, Header, description = "`gzip` or `zstd`"),
        ("X-Sent-At" = Option<String>, Header, description = "What the sender's clock shows (RFC 3339)"),
    ),
    responses(
        (status = 200, body = EventsTaken, description = "What became of them"),
        (status = 400, body = ProblemBody<'static>, description = "`json_malformed`, `body_incomplete`, `header_invalid`"),
        (status = 413, body = ProblemBody<'static>, description = "`body_too_large`: as sent or unpacked"),
        (status = 415, body = ProblemBody<'static>, description = "`content_type_unsupported`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: there is none, or there are too many"),
        (status = 429, body = ProblemBody<'static>, description = "`ingest_overloaded`: nothing was taken; again after `Retry-After`"),
        (status = 503, body = ProblemBody<'static>, description = "`database_unavailable`: send it again after `Retry-After`"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    Backend(caller): Backend<EventsWrite>,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer<EventsTaken>, Problem> {
    let packed = Packed::of(&headers)?;
    let sent_at = when_sent(&headers)?;
    let mut place = app.intake.enter(caller.tenant, packed.announced).ok_or_else(too_fast)?;
    let tenant = app.tenants.get(caller.tenant).await?.ok_or_else(Problem::unexplained)?;
    let bytes = packed.read(&headers, body, |bytes| if place.grow_to(bytes) { Ok(()) } else { Err(too_fast()) }).await?;
    let now = app.clock.now();
    let turn = app.intake.turn().await;
    let (read, _place) = parse(packed, bytes, place, &tenant, now, sent_at).await?;
    drop(turn);
    let taken = store(&app, tenant, read).await?;
    for (outcome, count) in [("taken", taken.accepted), ("duplicate", taken.duplicates), ("rejected", taken.rejected.len())] {
        metrics::counter!("offstage_events_total", "outcome" => outcome).increment(count as u64);
    }
    Ok(Answer(taken))
}

/// What a request's events are, in their order, each with its place.
type Read = Vec<(usize, Result<NewEvent, Refused>)>;

/// Unpacks and reads a body on a thread for such things: some ten milliseconds of computing.
async fn parse(
    packed: Packed,
    bytes: bytes::Bytes,
    mut place: Place,
    tenant: &Arc<Tenant>,
    now: DateTime<Utc>,
    sent_at: Option<DateTime<Utc>>,
) -> Result<(Read, Place), Problem> {
    let rules = Rules::new(tenant.manifest.events, now, sent_at);
    let reading = tokio::task::spawn_blocking(move || {
        let bytes = packed.unpack(bytes)?;
        if !place.grow_to(bytes.len()) {
            return Err(too_fast());
        }
        Ok::<_, Problem>((event::read_all(&bytes, packed.form, &rules)?, place))
    });
    reading.await.map_err(Problem::internal)?
}

async fn store(app: &App, tenant: Arc<Tenant>, read: Read) -> Result<EventsTaken, Problem> {
    let mut taken = EventsTaken { accepted: 0, duplicates: 0, rejected: Vec::new() };
    let (mut events, mut places) = (Vec::with_capacity(read.len()), Vec::with_capacity(read.len()));
    for (index, one) in read {
        match one {
            Ok(event) => {
                events.push(event);
                places.push(index);
            }
            Err(Refused { code, detail }) => taken.rejected.push(Rejected { index, code, detail }),
        }
    }
    if events.is_empty() {
        return Ok(taken);
    }
    let outcomes = app.intake.take(tenant, events).await.map_err(of_ledger)?;
    for (index, outcome) in places.into_iter().zip(outcomes) {
        match outcome {
            Outcome::Taken => taken.accepted += 1,
            Outcome::Duplicate => taken.duplicates += 1,
            Outcome::UserBeingErased => {
                let detail = "its user is being erased; leave such events out".to_owned();
                taken.rejected.push(Rejected { index, code: "user_being_erased", detail });
            }
        }
    }
    taken.rejected.sort_by_key(|rejected| rejected.index);
    Ok(taken)
}

fn too_fast() -> Problem {
    metrics::counter!("offstage_events_refused_total").increment(1);
    let detail = "As many events are under way as this server takes at a time. None of these was taken; send them again after Retry-After.";
    Problem::new(Code::IngestOverloaded, detail).retry_after(AGAIN_AFTER)
}

/// An error that others share.
fn of_ledger(error: Arc<LedgerError>) -> Problem {
    match Arc::try_unwrap(error) {
        Ok(error) => error.into(),
        Err(error) if error.is_transient() => {
            let detail = "The database does not answer. Send the same request again in a moment: what was taken counts once.";
            Problem::new(Code::DatabaseUnavailable, detail).retry_after(Duration::from_secs(2)).because(error)
        }
        Err(error) => Problem::internal(error),
    }
}
