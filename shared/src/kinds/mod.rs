//! The kinds of jobs: what each is, the same for whoever creates one and whoever runs one.
//!
//! A kind is one file here (payload, validation, queue, policy, estimate: the wire contract), one file of the same name in
//! the worker's `handlers/` (how it is done) and, where clients get a door of its own, one in the API's `routes/`. Names
//! are dotted and permanent; a renamed kind keeps its old name as an alias. A payload evolves by added fields with
//! defaults: whoever creates a job is held to the letter (unknown fields are refused), whoever runs one reads what it knows.
//!
//! To add a kind: its file, a `mod` line and a line in [`Registry::new`]; then its handler (a test fails without it).

mod activity;
mod ai;
mod byok;
mod completion;
mod email;
mod export;
mod metric;
mod notification;
mod probe;
mod push;
mod stats;
mod summary;
mod suspension;
mod user;
mod violation;

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

pub use activity::ActivityFanOut;
pub use ai::AiRun;
pub use byok::ByokCheck;
pub use completion::CompletionNotify;
pub use email::{EmailSend, Mailbox};
pub use export::{DAYS_OF_METRIC, ExportCreate, ExportFormat, Numbers, NumbersTable, Selected, Wanted};
pub use metric::MetricRebuild;
pub use notification::{LONGEST_NOTIFICATION, NotificationDigest, NotificationFanOut, NotificationTell, Recipients, Told};
pub use probe::{ProbeMeter, ProbeOutcome, ProbeRun};
pub use push::{LONGEST_MESSAGE, PushSend, PushUrgency, a_day, is_link};
pub use stats::StatsRefresh;
pub use summary::SummaryRefresh;
pub use suspension::SuspensionEnd;
pub use user::UserErase;
pub use violation::{Violation, pointer_of_ignored, pointer_token};

use crate::{job::Policy, keys::Scope, queue::Queue, tenant::Manifest, usage::Charge};

/// The largest payload, in bytes of JSON (design §3).
pub const PAYLOAD_LIMIT: usize = 256 * 1024;

/// A kind of job, by its payload.
pub trait Kind: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The permanent, dotted name.
    const NAME: &'static str;
    /// Former names that still arrive.
    const ALIASES: &'static [&'static str] = &[];
    /// The queue it runs in unless the payload says otherwise.
    const QUEUE: Queue;
    /// Whether its jobs may have effects outside the installation that nobody can take back: a mail, a push, a call that costs
    /// money. Those are what the switches stop (`crate::ledger::switches`); every kind says so for itself.
    const OUTWARD: bool;
    /// The scope of the kind's own door. Who has not that can't have such jobs by the doors for all kinds either.
    const SCOPE: Option<Scope> = None;
    /// The scope, beside [`Self::SCOPE`], without which nobody may have what a job with such a payload brings. By all doors, too.
    const READS: fn(&Value) -> Option<Scope> = |_| None;
    /// The one door that its jobs are asked for by, as method and path, where that limits them as the doors for all kinds could not. Those
    /// refuse the kind and name this door; what a manifest declares and what the system asks for itself goes on.
    const DOOR: Option<&'static str> = None;
    /// Whether payload and result are for the product's backend alone: what a user is told by another way (a one-time code in a mail) is
    /// not to be read by whoever sits before that user's page.
    const CONFIDENTIAL: bool = false;
    /// How often and how patiently it is tried.
    const POLICY: Policy = Policy::DEFAULT;
    /// How long an idempotency key of its jobs is remembered; as long as the installation says when `None`. A tenant's manifest goes
    /// before this.
    const IDEMPOTENCY: Option<Duration> = None;
    /// How long it is thought to take from acceptance to result, before anything was measured (R3).
    const ESTIMATE: Duration;

    /// The queue of this very job.
    fn queue(&self) -> Queue {
        Self::QUEUE
    }

    /// The longest that one attempt of this very job may run.
    fn timeout(&self) -> Duration {
        Self::POLICY.timeout
    }

    /// Whether this very job has such effects.
    fn is_outward(&self) -> bool {
        Self::OUTWARD
    }

    /// What is wrong with the payload by itself. Pointers are relative to the payload.
    fn violations(&self) -> Vec<Violation> {
        Vec::new()
    }

    /// What is wrong with the payload for this tenant and owner.
    fn violations_for(&self, _tenant: &Manifest, _owner: Option<&str>) -> Vec<Violation> {
        Vec::new()
    }

    /// Whether what this very job uses is metered.
    fn is_metered(&self) -> bool {
        false
    }

    /// What this very job may use at most, by metric, at the prices of a time; nothing that is metered of most kinds.
    fn charges(&self, _tenant: &Manifest, _owner: Option<&str>, _now: DateTime<Utc>) -> Vec<Charge> {
        Vec::new()
    }

    /// A payload that uses every field, for the tests that hold all kinds to the contract.
    fn sample() -> Self;
}

/// A payload that was found right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// The queue the job goes to.
    pub queue: Queue,
    /// Whether what it uses is metered.
    pub is_metered: bool,
}

/// Checks a payload for a tenant and owner.
type Check = fn(&Value, &Manifest, Option<&str>) -> Result<Checked, Vec<Violation>>;

/// What a stored payload may use; nothing where it can't be read, and then its run fails of that.
type Charges = fn(&str, &Manifest, Option<&str>, DateTime<Utc>) -> Vec<Charge>;

/// What is known of a kind without its type.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The permanent name.
    pub name: &'static str,
    /// Former names.
    pub aliases: &'static [&'static str],
    /// The default queue.
    pub queue: Queue,
    /// Whether its jobs may have effects outside the installation.
    pub outward: bool,
    /// The scope of its own door, which the doors for all kinds ask for too.
    pub scope: Option<Scope>,
    /// The scope without which nobody may have what a job with such a payload brings.
    pub reads: fn(&Value) -> Option<Scope>,
    /// The one door that its jobs are asked for by, where the doors for all kinds refuse it.
    pub door: Option<&'static str>,
    /// Whether payload and result are for the product's backend alone.
    pub confidential: bool,
    /// The policy.
    pub policy: Policy,
    /// How long an idempotency key is remembered, where the kind says so.
    pub idempotency: Option<Duration>,
    /// The estimate before anything was measured.
    pub estimate: Duration,
    /// Checks a payload as its creator sent it.
    pub check: Check,
    /// Whether a job with this payload is metered.
    pub is_metered: fn(&Value) -> bool,
    /// What a job with this stored payload may use.
    pub charges: Charges,
    /// A payload that uses every field.
    pub sample: fn() -> Value,
}

impl Entry {
    fn of<K: Kind>() -> Self {
        Self {
            name: K::NAME,
            aliases: K::ALIASES,
            queue: K::QUEUE,
            outward: K::OUTWARD,
            scope: K::SCOPE,
            reads: K::READS,
            door: K::DOOR,
            confidential: K::CONFIDENTIAL,
            policy: K::POLICY,
            idempotency: K::IDEMPOTENCY,
            estimate: K::ESTIMATE,
            check: check::<K>,
            is_metered: |payload| K::deserialize(payload).is_ok_and(|payload| payload.is_metered()),
            charges: |payload, tenant, owner, now| {
                serde_json::from_str::<K>(payload).map(|payload| payload.charges(tenant, owner, now)).unwrap_or_default()
            },
            sample: || serde_json::to_value(K::sample()).unwrap_or_default(),
        }
    }

    /// Why a door for all kinds does not take this one, where it has a door that alone may ask for it.
    #[must_use]
    pub fn other_door(&self) -> Option<String> {
        self.door.map(|door| format!("jobs of the kind `{}` are asked for by {door} alone, which limits them; ask there", self.name))
    }
}

/// The kinds that this installation knows, by name and alias.
#[derive(Debug, Clone)]
pub struct Registry {
    entries: Vec<Entry>,
    by_name: HashMap<&'static str, usize>,
}

impl Registry {
    /// All kinds; `probe.run` only where the installation allows it.
    #[must_use]
    pub fn new(probe: bool) -> Self {
        let mut entries = vec![
            Entry::of::<ActivityFanOut>(),
            Entry::of::<AiRun>(),
            Entry::of::<ByokCheck>(),
            Entry::of::<CompletionNotify>(),
            Entry::of::<EmailSend>(),
            Entry::of::<ExportCreate>(),
            Entry::of::<MetricRebuild>(),
            Entry::of::<NotificationDigest>(),
            Entry::of::<NotificationFanOut>(),
            Entry::of::<NotificationTell>(),
            Entry::of::<PushSend>(),
            Entry::of::<StatsRefresh>(),
            Entry::of::<SummaryRefresh>(),
            Entry::of::<SuspensionEnd>(),
            Entry::of::<UserErase>(),
        ];
        if probe {
            entries.push(Entry::of::<ProbeRun>());
        }
        let mut by_name = HashMap::new();
        for (index, entry) in entries.iter().enumerate() {
            for name in entry.aliases.iter().chain([&entry.name]) {
                by_name.entry(*name).or_insert(index);
            }
        }
        Self { entries, by_name }
    }

    /// The kind of a name or a former name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.get(*self.by_name.get(name)?)
    }

    /// All kinds.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }
}

/// The most unknown fields that one answer names.
const MOST_UNKNOWN: usize = 50;

/// Reads a payload to the letter: every unknown field and the first ill-typed one is named by its pointer.
fn check<K: Kind>(payload: &Value, tenant: &Manifest, owner: Option<&str>) -> Result<Checked, Vec<Violation>> {
    // Serde would read a list as the fields in their order.
    if !payload.is_object() {
        return Err(vec![Violation::new("", format!("must be an object, the payload of `{}`", K::NAME))]);
    }
    let mut violations = nul_characters(payload);
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(payload, &mut track);
    let typed: Result<K, _> = serde_ignored::deserialize(tracked, |path| {
        if unknown.len() < MOST_UNKNOWN {
            unknown.push(Violation::new(
                pointer_of_ignored(&path),
                format!("is not a field of `{}`; check its spelling or remove it", K::NAME),
            ));
        }
    });
    violations.append(&mut unknown);
    match typed {
        Err(error) => {
            violations.push(Violation::unreadable(&track.path(), &error.to_string()));
            Err(violations)
        }
        Ok(typed) => {
            violations.extend(typed.violations());
            if violations.is_empty() {
                violations.extend(typed.violations_for(tenant, owner));
            }
            if !violations.is_empty() {
                return Err(violations);
            }
            Ok(Checked { queue: typed.queue(), is_metered: typed.is_metered() })
        }
    }
}

/// Postgres stores no NUL character in text or JSON, so none is accepted.
fn nul_characters(value: &Value) -> Vec<Violation> {
    fn walk(value: &Value, pointer: &str, found: &mut Vec<Violation>) {
        match value {
            Value::String(text) if text.contains('\0') => {
                found.push(Violation::new(pointer, "contains a NUL character (\\u0000), which can't be stored; remove it"));
            }
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(index, item)| walk(item, &format!("{pointer}/{index}"), found));
            }
            Value::Object(fields) => {
                for (name, field) in fields {
                    if name.contains('\0') {
                        found.push(Violation::new(pointer, "a field's name contains a NUL character (\\u0000); remove it"));
                    }
                    walk(field, &(pointer.to_owned() + &pointer_token(name)), found);
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(value, "", &mut found);
    found
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn survives<K: Kind>() {
        let before = serde_json::to_string(&K::sample()).unwrap();
        let typed: K = serde_json::from_str(&before).unwrap();
        assert_eq!(serde_json::to_string(&typed).unwrap(), before, "{}", K::NAME);
    }

    #[test]
    fn names_are_unique_dotted_and_samples_survive_json() {
        let registry = Registry::new(true);
        let mut seen = HashSet::new();
        for entry in registry.entries() {
            for name in entry.aliases.iter().chain([&entry.name]) {
                assert!(seen.insert(*name), "{name} names two kinds");
                let parts: Vec<_> = name.split('.').collect();
                assert!(
                    parts.len() == 2
                        && parts.iter().all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
                );
            }
        }
        survives::<ActivityFanOut>();
        survives::<AiRun>();
        survives::<CompletionNotify>();
        survives::<EmailSend>();
        survives::<ExportCreate>();
        survives::<MetricRebuild>();
        survives::<NotificationDigest>();
        survives::<NotificationFanOut>();
        survives::<NotificationTell>();
        survives::<PushSend>();
        survives::<ProbeRun>();
        survives::<StatsRefresh>();
        survives::<SummaryRefresh>();
        survives::<SuspensionEnd>();
        survives::<UserErase>();
    }

    #[test]
    fn unknown_and_ill_typed_fields_are_named() {
        let registry = Registry::new(true);
        let probe = registry.find("probe.run").unwrap();
        let manifest = Manifest::default();
        let wrong = (probe.check)(&serde_json::json!({"sleep_ms": "long", "colour": 1}), &manifest, None).unwrap_err();
        assert!(wrong.iter().any(|violation| violation.pointer == "/sleep_ms"), "{wrong:?}");
        let wrong = (probe.check)(&serde_json::json!({"colour": 1, "pad": "a\u{0}b"}), &manifest, None).unwrap_err();
        assert_eq!(wrong.iter().map(|violation| violation.pointer.as_str()).collect::<Vec<_>>(), ["/pad", "/colour"]);
        for payload in [serde_json::json!([]), serde_json::json!(null), serde_json::json!("{}"), serde_json::json!(["email", 5])] {
            let wrong = (probe.check)(&payload, &manifest, None).unwrap_err();
            assert_eq!((wrong[0].pointer.as_str(), wrong.len()), ("", 1), "{payload}");
        }
        let export = registry.find("export.create").unwrap();
        let wrong = (export.check)(&serde_json::json!({"format": "csv", "a/b.c": {"d": 1}}), &manifest, None).unwrap_err();
        let places: Vec<_> = wrong.iter().map(|violation| (violation.pointer.as_str(), violation.detail.as_str())).collect();
        assert_eq!(
            places,
            [
                ("/a~1b.c", "is not a field of `export.create`; check its spelling or remove it"),
                ("/dataset", "is missing; name a dataset, or send `\"type\": \"full\"` for all of them")
            ]
        );
        for no_object in [serde_json::json!(["prompts", "csv", {}, null]), serde_json::json!("csv"), Value::Null] {
            let wrong = (export.check)(&no_object, &manifest, None).unwrap_err();
            assert_eq!((wrong.len(), wrong[0].pointer.as_str()), (1, ""), "{wrong:?}");
        }
    }
}
