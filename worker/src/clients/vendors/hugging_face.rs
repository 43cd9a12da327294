//! Hugging Face: <https://huggingface.co/docs/hub/api>, limits <https://huggingface.co/docs/hub/rate-limits>.

use std::time::Duration;

use serde_json::Value;
use shared::statistic::MEMBERS;

use super::{Read, figures, time};

/// Where it is.
pub(super) const BASE: &str = "https://huggingface.co/";

/// What is wanted of a model: without it comes a list of all its files.
pub(super) const EXPAND: &str = "expand%5B%5D=likes&expand%5B%5D=downloads&expand%5B%5D=lastModified";

/// Calls in a window of five minutes.
pub(super) const fn granted(has_credential: bool) -> (i32, Duration) {
    (if has_credential { 1_000 } else { 500 }, Duration::from_secs(300))
}

/// `GET /api/models/{id}`. Downloads are those of the last 30 days.
pub(super) fn model(document: &Value) -> Read {
    Ok((figures(document, [(MEMBERS, "/likes"), ("downloads", "/downloads")])?, time(document, "/lastModified")))
}

/// `GET /api/organizations/{name}/overview`.
pub(super) fn organisation(document: &Value) -> Read {
    Ok((figures(document, [(MEMBERS, "/numFollowers"), ("people", "/numUsers"), ("models", "/numModels")])?, None))
}
