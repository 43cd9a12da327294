//! Discord: <https://docs.discord.com/developers/resources/invite#get-invite>, limits
//! <https://docs.discord.com/developers/topics/rate-limits>.
//!
//! Limits are never written down here: a route's answer names its bucket, and what that grants.

use serde_json::Value;
use shared::{
    ledger::vendors::Told,
    statistic::{ACTIVE, MEMBERS},
};

use super::{Question, Read, figures, limits::Limits};
use crate::clients::outbound::Answer;

/// Where it is.
pub(super) const BASE: &str = "https://discord.com/api/v10/";

/// As its reference wants it: `DiscordBot ($url, $versionNumber)`.
pub(super) const USER_AGENT: &str = concat!("DiscordBot (https://offstage.example, ", env!("CARGO_PKG_VERSION"), ")");

/// The budget of our address, which is what a ban is of.
pub(super) const ADDRESS: &str = "discord address";

/// `GET /invites/{code}?with_counts=true`.
pub(super) fn invite(document: &Value) -> Read {
    Ok((figures(document, [(MEMBERS, "/approximate_member_count"), (ACTIVE, "/approximate_presence_count")])?, None))
}

/// What an answer says of the three budgets.
pub(super) fn told(question: &Question, limits: &Limits, answer: &Answer) -> Vec<Told> {
    let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok());
    let scope = header("x-ratelimit-scope");
    let is_limit = answer.status.as_u16() == 429;
    let is_global = is_limit && (header("x-ratelimit-global").is_some() || scope == Some("global"));
    // A limit that many share is nobody's fault.
    let is_invalid = matches!(answer.status.as_u16(), 401 | 403) || (is_limit && scope != Some("shared"));
    let route = question.route().unwrap_or_default();
    // A name of theirs, which becomes part of a key.
    let bucket = header("x-ratelimit-bucket").filter(|bucket| bucket.len() <= 100 && bucket.bytes().all(|byte| byte.is_ascii_graphic()));
    let own = bucket.map_or_else(|| route.clone(), |bucket| question.bucket_key(bucket));
    let pause = limits.told(&own, is_limit);
    let mut told = vec![
        Told { key: ADDRESS.to_owned(), is_invalid, ..Told::default() },
        Told {
            key: question.key.clone(),
            blocked_for: pause.blocked_for.filter(|_| is_global),
            is_unexplained: is_global && pause.is_unexplained,
            ..Told::default()
        },
    ];
    if let Some(bucket) = bucket {
        told.push(Told { key: route, bucket: Some(bucket.to_owned()), ..Told::default() });
    }
    told.push(pause);
    told
}
