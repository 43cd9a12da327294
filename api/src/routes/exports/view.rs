//! An export as clients see it.

use std::time::Duration;

use aws_lc_rs::digest;
use chrono::{DateTime, Utc};
use serde::Serialize;
use shared::{
    job::{JobId, State},
    kinds::{ExportCreate, Kind},
};
use url::Url;
use utoipa::ToSchema;

use super::{
    address,
    find::{FoundExport, FoundFile},
};
use crate::routes::{
    downloads,
    jobs::{Duplicate, Outlook, Progress, Reader, Trouble, job_address},
};

/// How an export stands (R11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExportState {
    /// Accepted, not started.
    Pending,
    /// Being written.
    Processing,
    /// The file is there.
    Completed,
    /// There will be no file.
    Failed,
    /// Cancelled before it was done.
    Cancelled,
    /// The file has been deleted, after its time or because its owner asked for it, or the export was not started in time.
    Expired,
}

impl ExportState {
    /// The word that clients see.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

impl FoundExport {
    /// How it stands at a time.
    pub fn state_at(&self, now: DateTime<Utc>) -> ExportState {
        match self.state {
            State::Waiting | State::Queued => ExportState::Pending,
            State::Running => ExportState::Processing,
            State::Succeeded if self.file.as_ref().is_some_and(|file| file.is_there(now)) => ExportState::Completed,
            State::Succeeded | State::Expired => ExportState::Expired,
            State::Failed => ExportState::Failed,
            State::Cancelled => ExportState::Cancelled,
        }
    }

    /// When to look at it again, and what to expect.
    pub fn outlook(&self, now: DateTime<Utc>) -> Outlook {
        self.outlook_by(None, now)
    }

    /// The same by what exports took lately, where that is known.
    pub fn outlook_by(&self, takes: Option<Duration>, now: DateTime<Utc>) -> Outlook {
        Outlook::of(self.state, self.reason, self.run_at, self.started_at, takes.unwrap_or(ExportCreate::ESTIMATE), now)
    }
}

/// An export.
#[derive(Debug, Serialize, ToSchema)]
pub struct Export {
    /// Its id, which is its job's.
    id: JobId,
    /// In the answer to a request that asked for it again: by what that was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Duplicate, required = false)]
    duplicate: Option<Duplicate>,
    /// How it stands.
    state: ExportState,
    /// What is exported: a dataset, `full`, a metric or a view.
    dataset: String,
    /// The file's format.
    format: String,
    /// The name that was asked for.
    #[schema(required)]
    filename: Option<String>,
    /// The end user whose export it is.
    #[schema(required)]
    owner: Option<String>,
    /// When it was accepted.
    created_at: DateTime<Utc>,
    /// When its latest run began.
    #[schema(required)]
    started_at: Option<DateTime<Utc>>,
    /// When it ended, well or not.
    #[schema(required)]
    completed_at: Option<DateTime<Utc>>,
    /// When the file is deleted.
    #[schema(required)]
    expires_at: Option<DateTime<Utc>>,
    /// How many rows are written.
    #[schema(required)]
    progress: Option<Progress>,
    /// Why there is no file.
    #[schema(required)]
    error: Option<Trouble>,
    /// The file, from when it is complete; also told of one that has been deleted.
    #[schema(required)]
    file: Option<File>,
    /// How many links to the file were handed out.
    downloads: i32,
    /// When the file's object was deleted, after its time or at its owner's wish.
    #[schema(required)]
    deleted_at: Option<DateTime<Utc>>,
    /// Where to download the file, while it is there.
    #[schema(required)]
    download_url: Option<String>,
    /// A page to download the file from that needs no key, while it is there: for mails, and to pass on. Whoever has the address
    /// has the file; `DELETE /v1/exports/{id}/page` takes it back.
    #[schema(required)]
    page_url: Option<String>,
    /// When to expect something of it.
    #[serde(flatten)]
    outlook: Outlook,
    /// Where to go from here.
    links: Links,
}

/// A file.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExportFile)]
pub struct File {
    /// The name it is saved under.
    name: String,
    /// Its length in bytes.
    size: i64,
    /// Its media type.
    content_type: String,
    /// The SHA-256 of its bytes, in hexadecimal.
    sha256: String,
    /// How many rows it holds.
    #[schema(required)]
    rows: Option<i64>,
}

/// Where to go from an export.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExportLinks)]
pub struct Links {
    /// The export itself.
    #[serde(rename = "self")]
    this: String,
    /// The job that makes it: to wait for, to cancel, to try again.
    job: String,
}

impl Export {
    /// The same, told as what was there before a request for it.
    #[must_use]
    pub fn found_by(self, duplicate: Option<Duplicate>) -> Self {
        Self { duplicate, ..self }
    }

    /// The view of an export as found, at a time; `public` is the address under which people reach this API.
    pub fn of(found: FoundExport, now: DateTime<Utc>, public: Option<&Url>, reader: Reader) -> Self {
        let state = found.state_at(now);
        let this = address(found.id);
        let error = trouble(&found, state, reader);
        Self {
            id: found.id,
            duplicate: None,
            state,
            outlook: found.outlook(now),
            created_at: found.created_at,
            started_at: found.started_at,
            completed_at: found.finished_at,
            expires_at: found.file.as_ref().map(|file| file.expires_at),
            progress: Progress::of(found.progress_done, found.progress_total),
            error,
            downloads: found.file.as_ref().map_or(0, |file| file.downloads),
            deleted_at: found.file.as_ref().and_then(|file| file.deleted_at),
            download_url: (state == ExportState::Completed).then(|| format!("{this}/download")),
            page_url: page_token(&found, state).map(|token| downloads::address(public, token)),
            dataset: found.dataset,
            format: found.format,
            filename: found.filename,
            owner: found.owner,
            file: found.file.map(File::of),
            links: Links { this, job: job_address(found.id) },
        }
    }
}

impl Export {
    /// With an outlook by what exports took lately.
    pub fn paced(mut self, outlook: Outlook) -> Self {
        self.outlook = outlook;
        self
    }

    /// The `ETag`: weak, of all that it says but for when to ask again. What a file's time does to it changes no version of its job.
    pub fn tag(&self) -> String {
        let lasting = serde_json::to_value(self).map(|mut export| {
            if let Some(fields) = export.as_object_mut() {
                fields.retain(|name, _| !["estimate_seconds", "poll_after_ms"].contains(&name.as_str()));
            }
            export.to_string()
        });
        let hash = digest::digest(&digest::SHA256, lasting.unwrap_or_default().as_bytes());
        format!("W/\"{}\"", hex::encode(hash.as_ref().get(..12).unwrap_or_default()))
    }
}

/// What opens the file's page, while there is something to see on it.
fn page_token(found: &FoundExport, state: ExportState) -> Option<&str> {
    let file = found.file.as_ref().filter(|_| state == ExportState::Completed)?;
    file.page_token.as_deref()
}

/// Why there is no file.
fn trouble(found: &FoundExport, state: ExportState, reader: Reader) -> Option<Trouble> {
    let says = |code: &str, message: String| Some(Trouble { code: code.to_owned(), message });
    let day = |time: DateTime<Utc>| time.format("%FT%TZ");
    match (state, &found.file, found.start_by) {
        (ExportState::Failed, ..) => found.error.as_ref().map(|error| Trouble::of(error, reader)),
        (ExportState::Expired, Some(FoundFile { removed_at: Some(removed_at), .. }), _) => {
            says("file_deleted", format!("The file was deleted at its owner's wish at {}. Ask for the export again.", day(*removed_at)))
        }
        (ExportState::Expired, Some(file), _) => {
            says("file_expired", format!("The file was kept until {}. Ask for the export again.", day(file.expires_at)))
        }
        (ExportState::Expired, None, Some(start_by)) if found.state == State::Expired => {
            says("not_started_in_time", format!("The export was not started by {}. Ask for it again, with more time.", day(start_by)))
        }
        (ExportState::Expired, None, _) => says("file_missing", "The file is not there any more. Ask for the export again.".to_owned()),
        _ => None,
    }
}

impl File {
    fn of(found: FoundFile) -> Self {
        let FoundFile { name, content_type, bytes, sha256, rows, .. } = found;
        Self { name, size: bytes, content_type, sha256: hex::encode(sha256), rows }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use shared::job::Reason;
    use uuid::Uuid;

    use super::*;

    fn found(state: State, now: DateTime<Utc>) -> FoundExport {
        FoundExport {
            id: JobId(Uuid::nil()),
            dataset: "prompts".into(),
            format: "csv".into(),
            filename: None,
            owner: None,
            state,
            reason: Reason::None,
            created_at: now,
            run_at: now,
            start_by: Some(now),
            started_at: None,
            finished_at: None,
            progress_done: None,
            progress_total: None,
            error: Some(serde_json::json!({"code": "source_unavailable", "message": "m", "causes": ["c"]})),
            file: None,
        }
    }

    fn file(now: DateTime<Utc>) -> FoundFile {
        FoundFile {
            object_key: "secret/key".into(),
            name: "prompts.csv".into(),
            content_type: "text/csv".into(),
            bytes: 3,
            sha256: vec![0, 255],
            rows: Some(1),
            expires_at: now + TimeDelta::days(7),
            removed_at: None,
            deleted_at: None,
            downloads: 2,
            page_token: Some("a token".into()),
        }
    }

    #[test]
    fn states_are_those_of_the_requirement() {
        let now = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
        for (state, word, error) in [
            (State::Waiting, "pending", None),
            (State::Queued, "pending", None),
            (State::Running, "processing", None),
            (State::Failed, "failed", Some("source_unavailable")),
            (State::Cancelled, "cancelled", None),
            (State::Expired, "expired", Some("not_started_in_time")),
            (State::Succeeded, "expired", Some("file_missing")),
        ] {
            let view = Export::of(found(state, now), now, None, Reader::Backend);
            assert_eq!((view.state.word(), view.error.as_ref().map(|error| error.code.as_str())), (word, error), "{state:?}");
            assert_eq!(serde_json::to_value(view.state).unwrap(), word);
            assert_eq!((view.download_url, view.downloads), (None, 0));
        }
    }

    #[test]
    fn a_file_is_there_until_it_expires_or_is_deleted() {
        let now = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
        let succeeded = || FoundExport { file: Some(file(now)), ..found(State::Succeeded, now) };
        let there = serde_json::to_value(Export::of(succeeded(), now, None, Reader::Backend)).unwrap();
        assert_eq!(there["state"], "completed");
        assert_eq!(there["download_url"], format!("/v1/exports/{}/download", Uuid::nil()));
        assert_eq!(there["page_url"], "/d/a token");
        assert_eq!(
            there["file"],
            serde_json::json!({"name": "prompts.csv", "size": 3, "content_type": "text/csv", "sha256": "00ff", "rows": 1})
        );
        assert!(!there.to_string().contains("secret"));
        let later = Export::of(succeeded(), now + TimeDelta::days(7), None, Reader::Backend);
        assert_eq!((later.state, later.download_url.as_ref(), later.downloads), (ExportState::Expired, None, 2));
        assert_eq!((later.error.unwrap().code.as_str(), later.page_url), ("file_expired", None));
        let mut deleted = succeeded();
        deleted.file.as_mut().unwrap().deleted_at = Some(now);
        assert_eq!(Export::of(deleted, now, None, Reader::Backend).state, ExportState::Expired);
        let mut removed = succeeded();
        removed.file.as_mut().unwrap().removed_at = Some(now);
        let removed = Export::of(removed, now, None, Reader::Backend);
        assert_eq!((removed.state, removed.error.unwrap().code.as_str()), (ExportState::Expired, "file_deleted"));
        assert_eq!((removed.download_url, removed.page_url), (None, None));
    }
}
