//! What end users are told in the product: a line in their inbox (R12, R20). Other channels (push, mail) read it from there.
//!
//! What must stay true: a notification is written in the transaction of the change that it tells of, so there is exactly one
//! or the change did not happen; it is for a person, and holds neither causes nor secrets.

pub mod markdown;
pub mod template;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    job::{JobId, PublishedFile, State},
    kinds::{ExportCreate, Kind, NotificationFanOut, Recipients},
    ledger::insert::NewJob,
    tenant::{EXPORT_FAILED, EXPORT_READY},
};

/// The longest title, in characters (R20).
pub const LONGEST_TITLE: usize = 255;

/// Who is to be told how a job ended, and what it was about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addressee {
    job: JobId,
    owner: String,
    /// What was asked for, in a word or two.
    subject: String,
}

/// What of an export's payload matters here. Read on its own and leniently: a payload that the kind no longer reads fails its
/// job, and its owner is told of that too.
#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    notify: Option<bool>,
    #[serde(default)]
    filename: Option<String>,
    #[serde(default)]
    dataset: Option<String>,
    #[serde(default, rename = "type")]
    export_type: Option<String>,
}

impl Addressee {
    /// Who hears of a job's end: the owner of an export that was not asked for with `notify: false`. Nobody else's jobs have
    /// one yet.
    #[must_use]
    pub fn of(job: JobId, kind: &str, owner: Option<&str>, payload: &str) -> Option<Self> {
        let owner = owner?;
        if kind != ExportCreate::NAME && !ExportCreate::ALIASES.contains(&kind) {
            return None;
        }
        let asked: Asked = serde_json::from_str(payload).ok()?;
        if asked.notify == Some(false) {
            return None;
        }
        let subject = [asked.filename, asked.dataset, asked.export_type].into_iter().flatten().next().unwrap_or_default();
        Some(Self { job, owner: owner.to_owned(), subject })
    }

    /// The notification of an end; `None` for ends that nobody is told of. `error` is a failure as the ledger stores it.
    #[must_use]
    pub fn told(&self, state: State, file: Option<&PublishedFile>, error: Option<&Value>) -> Option<Value> {
        let (title, message, word) = match (state, file) {
            (State::Succeeded, Some(file)) => {
                let until = file.expires_at.format("%-d %B %Y, %H:%M UTC");
                ("Your export is ready", format!("{} can be downloaded until {until}.", file.file_name), "completed")
            }
            (State::Failed, _) => {
                let word = |field| error.and_then(|error| error.get(field)).and_then(Value::as_str);
                let why = word("for_owner").or_else(|| word("message"));
                let why = why.unwrap_or("Something went wrong; ask for it again.");
                ("Your export failed", format!("{}: {why}", self.subject), "failed")
            }
            _ => return None,
        };
        let data = json!({ "export_id": self.job, "state": word });
        Some(json!({ "owner": self.owner, "title": title, "message": message, "data": data }))
    }
}

/// The job that tells the owner of an export how it ended by the channels that they chose; their inbox has it already, from the same
/// transaction. `told` is that notification.
#[must_use]
pub fn reach_owner(tenant: i32, export: JobId, state: State, told: &Value, now: DateTime<Utc>) -> Option<NewJob> {
    let word = |field: &str| told.get(field).and_then(Value::as_str).map(str::to_owned);
    let owner = word("owner")?;
    let payload = NotificationFanOut {
        sort: if state == State::Succeeded { EXPORT_READY } else { EXPORT_FAILED }.to_owned(),
        to: Recipients::User(owner.clone()),
        title: word("title"),
        message: word("message"),
        url: None,
        data: told.get("data").and_then(Value::as_object).cloned().unwrap_or_default(),
        digest_key: None,
        send_by: None,
        export: Some(export),
    };
    let id = Uuid::new_v7(uuid::Timestamp::from_unix(
        uuid::NoContext,
        u64::try_from(now.timestamp()).unwrap_or_default(),
        now.timestamp_subsec_nanos(),
    ));
    // Housework, not for the lists of who asked for the export; it goes with them all the same.
    Some(NewJob { subject: Some(owner), ..NewJob::of(JobId(id), tenant, &payload, now) })
}

/// What is wrong with a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleTrouble {
    /// So many of its ticks in a row have failed.
    Failing {
        /// How many.
        failures: i32,
    },
    /// Nobody was there when it came round.
    Missed {
        /// When that was, the first time.
        due_at: DateTime<Utc>,
    },
}

/// A notice about a schedule, in words. It is for its owner; of a schedule without one for the tenant's backend, whose name in the
/// inbox is the empty text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleTold {
    /// The title.
    pub title: String,
    /// The message.
    pub message: String,
    /// For programs.
    pub data: Value,
}

impl ScheduleTrouble {
    /// The notice.
    #[must_use]
    pub fn told(self, schedule: Uuid, name: &str) -> ScheduleTold {
        let (title, message, word) = match self {
            Self::Failing { failures: 1 } => {
                (format!("Schedule {name} fails"), "Its last run failed; see its history.".to_owned(), "failing")
            }
            Self::Failing { failures } => {
                (format!("Schedule {name} fails"), format!("Its last {failures} runs failed; see its history."), "failing")
            }
            Self::Missed { due_at } => {
                let due = due_at.format("%-d %B %Y, %H:%M:%S UTC");
                (
                    format!("Schedule {name} was missed"),
                    format!("It did not run in time at {due}; its history tells what became of it."),
                    "missed",
                )
            }
        };
        ScheduleTold { title, message, data: json!({ "schedule_id": schedule, "schedule": name, "trouble": word }) }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;

    fn of(owner: Option<&str>, kind: &str, payload: &str) -> Option<Addressee> {
        Addressee::of(JobId(Uuid::nil()), kind, owner, payload)
    }

    #[test]
    fn owners_hear_of_their_exports_unless_they_would_rather_not() {
        assert!(of(Some("ada"), "export.create", r#"{"dataset": "prompts", "notify": true}"#).is_some());
        assert!(of(Some("ada"), "export.create", r#"{"dataset": "prompts", "format": "csv", "new": 1}"#).is_some());
        assert_eq!(of(Some("ada"), "export.create", r#"{"dataset": "prompts", "notify": false}"#), None);
        assert_eq!(of(None, "export.create", r#"{"dataset": "prompts"}"#), None);
        assert_eq!(of(Some("ada"), "probe.run", "{}"), None);
    }

    #[test]
    fn what_they_hear() {
        let ada = of(Some("ada"), "export.create", r#"{"type": "full"}"#).unwrap();
        let file = PublishedFile {
            object_key: "1/secret".into(),
            file_name: "full.zip".into(),
            content_type: "application/zip".into(),
            bytes: 1,
            sha256: [0; 32],
            expires_at: DateTime::from_timestamp(1_767_225_600, 0).unwrap(),
        };
        let ready = ada.told(State::Succeeded, Some(&file), None).unwrap();
        assert_eq!(
            ready,
            json!({
                "owner": "ada", "title": "Your export is ready", "message": "full.zip can be downloaded until 1 January 2026, 00:00 UTC.",
                "data": {"export_id": Uuid::nil(), "state": "completed"},
            })
        );
        let error = json!({"code": "source_denied", "message": "The source denied it.", "causes": ["10.0.0.7"]});
        let failed = ada.told(State::Failed, None, Some(&error)).unwrap();
        assert_eq!((failed["message"].as_str(), failed["data"]["state"].as_str()), (Some("full: The source denied it."), Some("failed")));
        assert!(!failed.to_string().contains("10.0.0.7"));
        let error = json!({"code": "c", "message": "bucket `files` at 10.0.0.7", "for_owner": "The file could not be stored."});
        let failed = ada.told(State::Failed, None, Some(&error)).unwrap();
        assert_eq!(failed["message"], "full: The file could not be stored.");
        for state in [State::Waiting, State::Queued, State::Running, State::Cancelled, State::Expired] {
            assert_eq!(ada.told(state, Some(&file), Some(&error)), None, "{state:?}");
        }
    }
}
