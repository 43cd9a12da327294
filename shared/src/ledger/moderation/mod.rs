//! Moderation (R23): reports on content, what moderators did about them, and who is suspended by it.
//!
//! What must stay true: history is added to and never changed; a user's standing is what the latest suspension, ban or lifting made it,
//! and a suspension is over at its moment, whether its job has come to it or not; a job ends the one suspension that it names and no other;
//! what is done and who is told of it are one transaction; of a user who is being erased nothing is shown.

mod actions;
mod reports;
mod standing;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sqlx::PgConnection;
use utoipa::ToSchema;

pub use actions::{FoundAction, NewAction, act, history_of_report, history_of_user, was_done};
pub use reports::{FoundReport, Listed, NewReport, add, change_status, find, list};
pub use standing::{Ended, Standing, ban, end, lift, standing, suspend};

use super::{
    LedgerError,
    insert::{NewJob, insert_within},
};
use crate::{
    content::Content,
    job::JobId,
    kinds::{NotificationFanOut, Recipients},
};

/// The longest suspension, in days: ten years. What is meant to last longer is a ban.
pub const LONGEST_SUSPENSION_DAYS: i64 = 3_652;

/// The type by which moderators are told of a report, unless the manifest declares it anew.
pub const REPORT_TYPE: &str = "report";

/// The type by which users are told what was done.
pub const ACTION_TYPE: &str = "moderation";

/// The role of those who are told of reports.
pub const MODERATORS: &str = "moderator";

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal, $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($(#[$variant_doc])* $variant),+
        }

        impl $name {
            /// Its word in rows and answers.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }

            fn from_word(word: &str) -> Result<Self, LedgerError> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    other => Err(LedgerError::Unknown { what: $what, value: other.to_owned() }),
                }
            }
        }
    };
}

words! {
    /// Why content was reported.
    ReportReason, "reason of a report",
    /// It advertises, or is sent in masses.
    Spam = "spam",
    /// It offends, or breaks the product's rules.
    Inappropriate = "inappropriate",
    /// It is somebody else's.
    Copyright = "copyright",
    /// Something else, as `details` say.
    Other = "other",
}

words! {
    /// How far a report is.
    ReportStatus, "status of a report",
    /// Nobody has looked at it.
    Pending = "pending",
    /// A moderator has looked at it; it is not decided.
    Reviewed = "reviewed",
    /// Something was done about it.
    Resolved = "resolved",
    /// There was nothing to be done.
    Dismissed = "dismissed",
}

words! {
    /// What was done.
    ModerationAction, "action of moderation",
    /// The content may stay.
    Approve = "approve",
    /// The content may not.
    Reject = "reject",
    /// The content is marked, to be looked at again.
    Flag = "flag",
    /// The user is suspended until a moment.
    Suspend = "suspend",
    /// The user is suspended for good.
    Ban = "ban",
    /// A suspension or ban was ended by a moderator.
    Lift = "lift",
    /// A suspension's time was over. By the house alone.
    End = "end",
}

impl ModerationAction {
    /// What a report becomes by it, unless its moderator says otherwise.
    #[must_use]
    pub const fn status(self) -> ReportStatus {
        match self {
            Self::Approve => ReportStatus::Dismissed,
            Self::Flag => ReportStatus::Reviewed,
            Self::Reject | Self::Suspend | Self::Ban | Self::Lift | Self::End => ReportStatus::Resolved,
        }
    }

    /// What the content, or its user, is then.
    const fn done(self) -> &'static str {
        match self {
            Self::Approve => "approved",
            Self::Reject => "rejected",
            Self::Flag => "flagged",
            Self::Suspend => "suspended",
            Self::Ban => "banned",
            Self::Lift => "lifted",
            Self::End => "ended",
        }
    }
}

/// The latest moment until which somebody may be suspended.
#[must_use]
pub fn latest_end(now: DateTime<Utc>) -> DateTime<Utc> {
    now + TimeDelta::days(LONGEST_SUSPENSION_DAYS)
}

/// Tells moderators of a report, in the caller's transaction; answers the job that does. It names nobody: what it says stands in moderators'
/// inboxes, where an erasure does not look for others.
///
/// # Errors
/// [`LedgerError`].
pub async fn tell_moderators(
    connection: &mut PgConnection,
    tenant: i32,
    job: JobId,
    report: &NewReport<'_>,
    now: DateTime<Utc>,
) -> Result<(), LedgerError> {
    let title = format!("A {} was reported: {}", report.content.sort.replace('_', " "), report.reason.word());
    let data = json!({ "report_id": report.id, "reason": report.reason.word(), "content_type": report.content.sort });
    let told = told(REPORT_TYPE, Recipients::Role(MODERATORS.to_owned()), title, None, &data);
    store(connection, NewJob::of(job, tenant, &told, now), now).await
}

/// What a user is told of.
#[derive(Debug, Clone, Copy)]
pub struct Notice<'a> {
    /// The user.
    pub user: &'a str,
    /// What was done.
    pub action: ModerationAction,
    /// To what content.
    pub content: Option<&'a Content>,
    /// Of a suspension: until when.
    pub until: Option<DateTime<Utc>>,
    /// The moderator's words.
    pub notes: Option<&'a str>,
}

/// Tells a user what was done, in the caller's transaction, by a job of this id.
///
/// # Errors
/// [`LedgerError`].
pub async fn tell_user(
    connection: &mut PgConnection,
    tenant: i32,
    job: JobId,
    notice: Notice<'_>,
    now: DateTime<Utc>,
) -> Result<(), LedgerError> {
    let Notice { user, action, content, until, notes } = notice;
    let what = content.map_or_else(|| "content".to_owned(), |content| content.sort.replace('_', " "));
    let title = match (action, until) {
        (ModerationAction::Suspend, Some(until)) => format!("Your account is suspended until {}", until.format("%-d %B %Y, %H:%M UTC")),
        (ModerationAction::Suspend, None) => "Your account is suspended".to_owned(),
        (ModerationAction::Ban, _) => "Your account is banned".to_owned(),
        (ModerationAction::Lift, _) => "Your suspension was lifted".to_owned(),
        (ModerationAction::End, _) => "Your suspension has ended".to_owned(),
        (ModerationAction::Approve | ModerationAction::Reject | ModerationAction::Flag, _) => {
            format!("Your {what} was {}", action.done())
        }
    };
    let mut data = json!({ "action": action.done() });
    for (field, value) in [
        ("notes", notes.map(str::to_owned)),
        ("until", until.map(|until| until.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))),
        ("content_type", content.map(|content| content.sort.clone())),
        ("content_id", content.map(|content| content.id.clone())),
    ] {
        if let Some(value) = value {
            data[field] = json!(value);
        }
    }
    let told = told(ACTION_TYPE, Recipients::User(user.to_owned()), title, notes.map(str::to_owned), &data);
    let job = NewJob { subject: Some(user.to_owned()), ..NewJob::of(job, tenant, &told, now) };
    store(connection, job, now).await
}

fn told(sort: &str, to: Recipients, title: String, message: Option<String>, data: &Value) -> NotificationFanOut {
    NotificationFanOut {
        sort: sort.to_owned(),
        to,
        title: Some(title),
        message,
        url: None,
        data: data.as_object().cloned().unwrap_or_else(Map::new),
        digest_key: None,
        send_by: None,
        export: None,
    }
}

async fn store(connection: &mut PgConnection, job: NewJob, now: DateTime<Utc>) -> Result<(), LedgerError> {
    insert_within(connection, now, &[job]).await.map(drop)
}
