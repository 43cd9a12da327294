//! GitHub: <https://docs.github.com/en/rest>.

use std::time::Duration;

use serde_json::Value;
use shared::statistic::MEMBERS;

use super::{Read, figures, limits::Limits, time};
use crate::clients::outbound::Answer;

/// Where it is.
pub(super) const BASE: &str = "https://api.github.com/";

/// What is asked for. A tag is of this representation (`Vary: Accept`).
pub(super) const ACCEPT: &str = "application/vnd.github+json";

/// The version of the interface.
pub(super) const VERSION: &str = "2022-11-28";

/// Calls in an hour: <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api>.
pub(super) const fn granted(has_credential: bool) -> (i32, Duration) {
    (if has_credential { 5_000 } else { 60 }, Duration::from_secs(3_600))
}

/// Whether a 403 is a limit and no refusal: by its headers, or by its words, which are all that secondary limits may have.
pub(super) fn is_limit(answer: &Answer, limits: &Limits) -> bool {
    let says_so = || {
        let text = String::from_utf8_lossy(&answer.body).to_lowercase();
        text.contains("rate limit") || text.contains("abuse detection")
    };
    limits.retry_after.is_some() || limits.remaining == Some(0) || says_so()
}

/// `GET /repos/{owner}/{repo}`. `watchers_count` there is the stars once more; who watches is `subscribers_count`.
pub(super) fn repository(document: &Value) -> Read {
    let places = [
        (MEMBERS, "/stargazers_count"),
        ("forks", "/forks_count"),
        ("watchers", "/subscribers_count"),
        ("open_issues", "/open_issues_count"),
    ];
    Ok((figures(document, places)?, time(document, "/pushed_at")))
}

/// `GET /orgs/{org}`.
pub(super) fn organisation(document: &Value) -> Read {
    Ok((figures(document, [(MEMBERS, "/followers"), ("repositories", "/public_repos")])?, None))
}
