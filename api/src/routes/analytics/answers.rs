//! Answers about a time that is over, for a while: what a dashboard asks for again and again.
//!
//! What must stay true: the key has the tenant and the user; nothing is kept longer than five minutes; so late events show after that at the
//! latest.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::auth::{AnalyticsRead, Caller};

/// How long an answer is kept (R62).
const KEPT: Duration = Duration::from_secs(300);

/// The most answers, and the largest of them in bytes: 64 MiB at the very most.
const MOST: usize = 256;
const LARGEST: usize = 256 * 1024;

/// Answers that are kept. One for a process.
#[derive(Debug, Default)]
pub struct Answers(Mutex<HashMap<String, Kept>>);

#[derive(Debug)]
struct Kept {
    at: Instant,
    tag: String,
    body: Bytes,
}

/// Under what an answer is kept: by whom it was asked, and what.
pub(super) fn key(caller: &Caller<AnalyticsRead>, asked: &Value) -> String {
    json!([super::reader(caller), asked]).to_string()
}

impl Answers {
    /// What is kept, with its tag.
    pub(super) fn find(&self, key: &str) -> Option<(String, Bytes)> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = answers.get(key).filter(|kept| kept.at.elapsed() < KEPT)?;
        Some((kept.tag.clone(), kept.body.clone()))
    }

    /// Keeps an answer, in the place of the oldest where there are many.
    pub(super) fn keep(&self, key: String, tag: &str, body: &Bytes) {
        if body.len() > LARGEST {
            return;
        }
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MOST {
            answers.retain(|_, kept| kept.at.elapsed() < KEPT);
        }
        if answers.len() >= MOST
            && let Some(oldest) = answers.iter().min_by_key(|(_, kept)| kept.at).map(|(key, _)| key.clone())
        {
            answers.remove(&oldest);
        }
        answers.insert(key, Kept { at: Instant::now(), tag: tag.to_owned(), body: body.clone() });
    }
}
