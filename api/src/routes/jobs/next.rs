//! Jobs that are to follow: as a request names them, and as the ledger keeps them once they are found right.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::{
    job::{DEEPEST, MOST_NEXT, MOST_NEXT_IN_ALL, Next, Priority},
    kinds::{PAYLOAD_LIMIT, Violation},
    tenant::Tenant,
};
use utoipa::ToSchema;

use super::admission::{self, Refusal};
use crate::app::App;

/// The longest that a job may be put off after what it follows, in seconds: 30 days.
const LONGEST_DELAY: u32 = 30 * 24 * 3_600;

/// A job to be made when what it follows has ended.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NextJob {
    /// What kind of work.
    #[schema(example = "email.send")]
    kind: String,
    /// What to do, as the kind wants it. The payloads of all jobs that follow may have 256 KiB together.
    #[schema(value_type = Object)]
    payload: Value,
    /// Which jobs of its queue it goes before; `normal` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<Priority>,
    /// The end user whose job it is; that of what it follows when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255)]
    owner: Option<String>,
    /// How long after that it is due, in seconds, at most 30 days; at once when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 2_592_000)]
    delay_seconds: Option<u32>,
    /// Jobs to be made when this one succeeds, at most 10; nested at most 5 deep, 50 in all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(no_recursion, max_items = 10)]
    then: Vec<Self>,
}

impl NextJob {
    /// The kinds and payloads of it and of all that follow it.
    pub fn all(&self) -> Vec<(&str, &Value)> {
        std::iter::once((self.kind.as_str(), &self.payload)).chain(self.then.iter().flat_map(Self::all)).collect()
    }
}

/// Finds out what is wrong with jobs that are to follow, while it turns them into what is kept.
pub struct Check<'a> {
    /// The kinds.
    pub app: &'a App,
    /// For whom.
    pub tenant: &'a Tenant,
    /// The user that a backend acts for.
    pub acting_user: Option<&'a str>,
    /// What is wrong.
    pub refusal: &'a mut Refusal,
    jobs: usize,
    bytes: usize,
}

impl<'a> Check<'a> {
    /// Adds to `refusal` whatever is wrong.
    pub fn new(app: &'a App, tenant: &'a Tenant, acting_user: Option<&'a str>, refusal: &'a mut Refusal) -> Self {
        Self { app, tenant, acting_user, refusal, jobs: 0, bytes: 0 }
    }

    /// The jobs at `at` that are to follow, `owner`'s where they don't say. Only of use where nothing was found wrong.
    pub fn all(mut self, wishes: &[NextJob], owner: Option<&str>, at: &str) -> Vec<Next> {
        let next = self.level(wishes, owner, at, 1);
        if self.jobs > MOST_NEXT_IN_ALL {
            self.wrong(at, format!("leads to {} jobs in all; {MOST_NEXT_IN_ALL} are allowed", self.jobs));
        }
        if self.bytes > PAYLOAD_LIMIT {
            let detail =
                format!("the payloads of the jobs that follow have {} bytes of JSON together; {PAYLOAD_LIMIT} are allowed", self.bytes);
            self.wrong(at, detail);
        }
        next
    }

    fn wrong(&mut self, at: impl Into<String>, detail: impl Into<String>) {
        self.refusal.violations.push(Violation::new(at, detail));
    }

    fn level(&mut self, wishes: &[NextJob], owner: Option<&str>, at: &str, depth: usize) -> Vec<Next> {
        if wishes.len() > MOST_NEXT {
            self.wrong(at, format!("names {} jobs; {MOST_NEXT} are allowed", wishes.len()));
            return Vec::new();
        }
        if depth > DEEPEST && !wishes.is_empty() {
            self.wrong(at, format!("is nested more than {DEEPEST} deep"));
            return Vec::new();
        }
        self.jobs += wishes.len();
        if self.jobs > MOST_NEXT_IN_ALL {
            return Vec::new();
        }
        wishes.iter().enumerate().filter_map(|(place, wish)| self.one(wish, owner, &format!("{at}/{place}"), depth)).collect()
    }

    fn one(&mut self, wish: &NextJob, owner: Option<&str>, at: &str, depth: usize) -> Option<Next> {
        let own = match admission::owner(self.acting_user, wish.owner.as_deref()) {
            Ok(own) => own,
            Err(violation) => {
                self.wrong(format!("{at}{}", violation.pointer), violation.detail);
                wish.owner.as_deref()
            }
        };
        let owner = own.or(owner);
        self.bytes = self.bytes.saturating_add(wish.payload.to_string().len());
        if let Some(delay) = wish.delay_seconds.filter(|delay| *delay > LONGEST_DELAY) {
            self.wrong(format!("{at}/delay_seconds"), format!("is {delay}; {LONGEST_DELAY} are the most"));
        }
        let then = self.level(&wish.then, owner, &format!("{at}/then"), depth + 1);
        let Some(entry) = self.app.kinds.find(&wish.kind) else {
            let violation = admission::unknown_kind(self.app, &wish.kind);
            self.wrong(format!("{at}{}", violation.pointer), violation.detail);
            return None;
        };
        if let Err(why) = self.tenant.manifest.allows(entry.name, owner) {
            self.refusal.not_enabled(entry.name, why, &format!("{at}/kind"));
        }
        if let Some(door) = entry.other_door() {
            self.wrong(format!("{at}/kind"), door);
            return None;
        }
        match (entry.check)(&wish.payload, &self.tenant.manifest, owner) {
            Ok(checked) => Some(Next {
                kind: entry.name.to_owned(),
                queue: checked.queue,
                priority: wish.priority.unwrap_or(Priority::Normal),
                payload: wish.payload.clone(),
                owner: owner.map(str::to_owned),
                delay_seconds: wish.delay_seconds.unwrap_or(0),
                then,
            }),
            Err(violations) => {
                for violation in violations {
                    self.wrong(format!("{at}/payload{}", violation.pointer), violation.detail);
                }
                None
            }
        }
    }
}
