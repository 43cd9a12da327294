//! `GET /v1/jobs/{id}`, at once or when there is news.

use std::time::Duration;

use axum::{
    Json as Answer,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use shared::{
    job::JobId,
    ledger::{
        LedgerError,
        find::{self, FoundJob},
    },
    tenant,
};
use tokio::time::{Instant, timeout_at};
use utoipa::ToSchema;

use super::{
    Asked, IdOfPath, missing,
    view::{Job, Reader},
    view_of,
};
use crate::{
    app::App,
    auth::{CallerOrUser, JobsRead},
    extract::Query,
    follow::Watch,
    problem::{Code, Problem, ProblemBody},
};

/// The longest that a request may wait for news, in seconds; within the deadline of every request.
const LONGEST_WAIT: u64 = 30;

/// When those who found too many waiting should come again.
const COME_AGAIN: Duration = Duration::from_secs(2);

/// How a job is asked for.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ReadQuery {
    /// Waits up to so many seconds for news, at most 30.
    #[param(maximum = 30, example = 20)]
    wait: Option<u64>,
    /// The version the caller knows: news is a higher one. Without it, news is what happens from now on, and a job that has
    /// ended is answered at once.
    since: Option<i32>,
    /// What else to show.
    include: Option<Include>,
}

/// What can be shown beside a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Include {
    /// Its runs.
    Attempts,
}

/// Shows a job, at once or when there is news of it.
///
/// `GET /v1/jobs/{id}?wait=20&since=3` answers as soon as the job's `version` is above 3, or after 20 s as it stands then.
/// `If-None-Match` with the `ETag` is answered with 304 while nothing changed.
#[utoipa::path(
    get, path = "/v1/jobs/{id}", tag = "jobs", operation_id = "read_job",
    params(
        ("id" = String, Path, description = "The job's id"),
        ReadQuery,
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of an earlier answer"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 200, body = Job, headers(("ETag" = String, description = "Weak, of the version: `W/\"3\"`"))),
        (status = 304, description = "Nothing changed"),
        (status = 404, body = ProblemBody<'static>, description = "`job_not_found`: it never was, or is another's"),
        (status = 410, body = ProblemBody<'static>, description = "`job_gone`: it was removed at `gone_at`"),
        (status = 503, body = ProblemBody<'static>, description = "`overloaded`: too many requests wait; ask without `wait`"),
    ),
)]
pub async fn read(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<JobsRead>,
    id: IdOfPath,
    Query(query): Query<ReadQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let asked = Asked { tenant: caller.tenant, owner: caller.acting_user.as_deref(), id: id.job()? };
    let reader = Reader::acting_for(asked.owner);
    let held = held_versions(&headers, reader);
    let wait = query.wait.unwrap_or(0);
    if wait > LONGEST_WAIT {
        return Err(Problem::new(Code::QueryInvalid, format!("wait: is {wait}; {LONGEST_WAIT} s are the longest.")));
    }
    if wait > 0 {
        let deadline = Instant::now() + Duration::from_secs(wait);
        let since = query.since.or(held.iter().copied().max());
        wait_for_news(&app, asked, since, deadline).await?;
    }
    let mut transaction = tenant::lookup(&app.pool, asked.tenant).await?;
    if !held.is_empty() {
        let Some(version) = find::version(&mut transaction, asked.tenant, asked.owner, asked.id).await? else {
            drop(transaction);
            return Err(missing(&app, asked).await);
        };
        if held.contains(&version) {
            return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag(version, reader))]).into_response());
        }
    }
    let Some(found) = find::job(&mut transaction, asked.tenant, asked.owner, asked.id).await? else {
        drop(transaction);
        return Err(missing(&app, asked).await);
    };
    let mut attempts = None;
    if query.include == Some(Include::Attempts) {
        attempts = Some(find::attempts(&mut transaction, asked.tenant, asked.id).await?);
    }
    // Nothing was written: the connection goes back to its pool and is cleaned there, while the answer leaves.
    drop(transaction);
    let tag = tag(found.version, reader);
    let job = view_of(&app, asked.tenant, found, attempts, reader);
    Ok(([(header::ETAG, tag)], Answer(job)).into_response())
}

/// Reads a job for another door.
pub async fn find(app: &App, asked: Asked<'_>) -> Result<Option<FoundJob>, LedgerError> {
    let mut transaction = tenant::lookup(&app.pool, asked.tenant).await?;
    find::job(&mut transaction, asked.tenant, asked.owner, asked.id).await
}

/// Waits for the end of a job that another door made; false where it has not ended by `deadline`.
///
/// # Errors
/// `overloaded` where too many wait already.
pub async fn ended_within(app: &App, tenant: i32, id: JobId, deadline: Instant) -> Result<bool, Problem> {
    let asked = Asked { tenant, owner: None, id };
    let mut since = None;
    loop {
        wait_for_news(app, asked, since, deadline).await?;
        let Some(found) = find(app, asked).await? else { return Ok(true) };
        if found.state.is_terminal() {
            return Ok(true);
        }
        if Instant::now() >= deadline || app.shutdown.asked().is_cancelled() {
            return Ok(false);
        }
        since = Some(found.version);
    }
}

/// Returns when the job's version is above `since`, or `deadline` has come, or the program is ending. Holds no connection
/// to the database meanwhile.
async fn wait_for_news(app: &App, asked: Asked<'_>, since: Option<i32>, deadline: Instant) -> Result<(), Problem> {
    // Before the first reading, or a change between the two would go unheard.
    let watch = app.follow.watch(asked.tenant, asked.id).ok_or_else(|| {
        let detail = "Too many requests are waiting for news here just now. Ask without `wait`, or again in a moment.";
        Problem::new(Code::Overloaded, detail).retry_after(COME_AGAIN)
    })?;
    let since = if let Some(since) = since {
        since
    } else {
        let Some(found) = find(app, asked).await? else { return Err(missing(app, asked).await) };
        watch.saw(found.version);
        if found.state.is_terminal() || !has_news(app, &watch, deadline).await {
            return Ok(());
        }
        found.version
    };
    loop {
        let Some(version) = version(app, asked).await? else { return Err(missing(app, asked).await) };
        watch.saw(version);
        if version > since || !has_news(app, &watch, deadline).await {
            return Ok(());
        }
    }
}

/// Waits for a hint; false when there is no more time for one.
async fn has_news(app: &App, watch: &Watch, deadline: Instant) -> bool {
    tokio::select! {
        () = app.shutdown.asked().cancelled() => false,
        news = timeout_at(deadline, watch.news()) => news.is_ok(),
    }
}

async fn version(app: &App, asked: Asked<'_>) -> Result<Option<i32>, LedgerError> {
    let mut transaction = tenant::lookup(&app.pool, asked.tenant).await?;
    find::version(&mut transaction, asked.tenant, asked.owner, asked.id).await
}

/// Weak, since answers of one version differ in their advice on when to ask again (RFC 9110 §8.8.1). Users read other words than
/// backends do, so theirs is another.
pub fn tag(version: i32, reader: Reader) -> String {
    format!("W/\"{version}{}\"", sort(reader))
}

const fn sort(reader: Reader) -> &'static str {
    match reader {
        Reader::Backend => "",
        Reader::User => "u",
    }
}

/// The versions that `If-None-Match` names, compared weakly (RFC 9110 §13.1.2). What can't be ours matches nothing.
pub fn held_versions(headers: &HeaderMap, reader: Reader) -> Vec<i32> {
    let tags = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let version = |tag: &str| {
        let tag = tag.trim();
        tag.strip_prefix("W/").unwrap_or(tag).strip_prefix('"')?.strip_suffix('"')?.strip_suffix(sort(reader))?.parse().ok()
    };
    tags.filter_map(version).take(10).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_versions_are_read_weakly() {
        let of = |values: &[&str]| {
            let headers = values.iter().map(|value| (header::IF_NONE_MATCH, value.parse().unwrap()));
            let mut all = HeaderMap::new();
            headers.for_each(|(name, value): (_, header::HeaderValue)| _ = all.append(name, value));
            held_versions(&all, Reader::Backend)
        };
        assert_eq!(of(&[&tag(7, Reader::Backend)]), [7]);
        assert_eq!(of(&[&tag(7, Reader::User)]), Vec::<i32>::new(), "a user's is not a backend's");
        assert_eq!(of(&["\"7\", W/\"8\"", "\"9\""]), [7, 8, 9]);
        assert_eq!(of(&[]), Vec::<i32>::new());
        for other in ["*", "7", "W/7", "\"", "\"x\"", "\"99999999999\"", "w/\"7\""] {
            assert_eq!(of(&[other]), Vec::<i32>::new(), "{other}");
        }
    }
}
