//! Tells recipients: their inboxes, and the jobs of their other messages, in the caller's transaction.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use shared::{
    job::{Failure, JobId, Priority},
    kinds::{EmailSend, LONGEST_MESSAGE, Mailbox, NotificationDigest, NotificationFanOut, PushSend, Told, a_day},
    ledger::{
        LedgerError,
        deliveries::Channel,
        insert::{NewJob, insert_within},
        notifications::{self, Counted, InboxRow, Item, Recipient, Unsent},
    },
    notification::template::{Renderer, TemplateError},
    tenant::{NotificationType, Tenant, Way},
};
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use super::{
    super::JobContext,
    new_id, new_job,
    words::{Letter, Speaker, Words},
};

/// Jobs that are stored together, and the bytes of their payloads.
const JOBS: usize = 500;
const BYTES: usize = 1024 * 1024;

/// Languages whose words a chunk remembers; a letter may have hundreds of kilobytes.
const LANGUAGES: usize = 30;

/// Something that is told.
pub(super) struct Telling<'a> {
    context: &'a JobContext,
    tenant: &'a Tenant,
    trigger: JobId,
    asked: &'a NotificationFanOut,
    sort: NotificationType,
    priority: Priority,
    renderer: Renderer,
    /// The address of the page of the export that it tells of.
    page: Option<String>,
}

/// What becomes of the recipients of a chunk.
#[derive(Default)]
struct Drafted {
    rows: Vec<InboxRow>,
    unsent: Vec<Unsent>,
    items: Vec<Item>,
    counted: Counted,
}

/// Jobs on their way into the ledger, some at a time.
#[derive(Default)]
pub(super) struct Outbox {
    jobs: Vec<NewJob>,
    bytes: usize,
}

impl Outbox {
    pub(super) async fn put(&mut self, connection: &mut PgConnection, job: NewJob, now: DateTime<Utc>) -> Result<(), LedgerError> {
        self.bytes += job.payload.len();
        self.jobs.push(job);
        if self.jobs.len() >= JOBS || self.bytes >= BYTES { self.store(connection, now).await } else { Ok(()) }
    }

    pub(super) async fn store(&mut self, connection: &mut PgConnection, now: DateTime<Utc>) -> Result<(), LedgerError> {
        if !self.jobs.is_empty() {
            insert_within(connection, now, &self.jobs).await?;
        }
        *self = Self::default();
        Ok(())
    }
}

impl<'a> Telling<'a> {
    pub(super) async fn new(
        context: &'a JobContext,
        connection: impl PgExecutor<'_>,
        tenant: &'a Tenant,
        trigger: JobId,
        asked: &'a NotificationFanOut,
        priority: Priority,
    ) -> Result<Self, Failure> {
        let sort = tenant.manifest.notification(&asked.sort).ok_or_else(|| {
            Failure::permanent("notification_type_unknown", format!("the product's manifest has no type `{}` any more", asked.sort))
        })?;
        let page = match asked.export {
            Some(export) => notifications::page_of(connection, tenant.id, export).await?,
            None => None,
        };
        let public = context.services.public_url.as_ref();
        let page = page.zip(public).map(|(token, public)| format!("{}/d/{token}", public.as_str().trim_end_matches('/')));
        let priority = if sort.critical { Priority::High } else { priority };
        Ok(Self { context, tenant, trigger, asked, sort, priority, renderer: Renderer::default(), page })
    }

    /// Tells users. The caller counts what came of it, and commits.
    pub(super) async fn tell(&self, connection: &mut PgConnection, users: &[String]) -> Result<Counted, Failure> {
        let now = self.context.services.clock.now();
        let category = self.sort.category(&self.asked.sort);
        let recipients = notifications::recipients(connection, self.tenant.id, users, category, now).await?;
        let mut drafted = Drafted { counted: Counted { told: users.len() as u64, ..Counted::default() }, ..Drafted::default() };
        let mut outbox = Outbox::default();
        let is_late = self.asked.send_by.is_some_and(|by| now > by);
        let speaker = self.speaker();
        let mut cache: HashMap<Option<String>, (Words, Option<Letter>)> = HashMap::new();
        let is_for_all = speaker.is_for_all();
        let (mut worded, mut wordless) = (0, None);
        for (place, recipient) in recipients.iter().enumerate() {
            if is_late {
                self.not_told(recipient, "too_late", "its `send_by` had passed before it could be told", &mut drafted);
                continue;
            }
            if place % 50 == 49 {
                tokio::task::yield_now().await;
            }
            let wants_mail = self.goes_by(Way::Email, recipient) && recipient.email.is_some() && self.tenant.manifest.mail.is_some();
            let cached = cache.get(&recipient.locale).filter(|(_, letter)| is_for_all && (letter.is_some() || !wants_mail));
            let (words, letter) = if let Some(said) = cached {
                said.clone()
            } else {
                let said = match self.say(&speaker, recipient, wants_mail) {
                    Ok(said) => said,
                    // The values of one of many may be such that a template has no words for them: that is nobody else's fault.
                    Err(error) => {
                        let detail = self.wordless(&error).message;
                        self.not_told(recipient, "template_failed", &detail, &mut drafted);
                        wordless = wordless.or(Some(error));
                        continue;
                    }
                };
                worded += 1;
                if is_for_all && cache.len() < LANGUAGES {
                    cache.insert(recipient.locale.clone(), said.clone());
                }
                said
            };
            for job in self.draft(recipient, words, letter.filter(|_| wants_mail), &mut drafted) {
                outbox.put(connection, job, now).await?;
            }
        }
        if let Some(error) = wordless.filter(|_| worded == 0) {
            return Err(self.wordless(&error));
        }
        outbox.store(connection, now).await?;
        let (tenant, sort) = (self.tenant.id, self.asked.sort.as_str());
        drafted.counted.in_app = notifications::write_inboxes(connection, (tenant, self.trigger, sort), &drafted.rows, now).await?;
        notifications::log_unsent(connection, (tenant, self.trigger, category), &drafted.unsent, now).await?;
        self.gather(connection, &drafted.items, now).await?;
        Ok(drafted.counted)
    }

    fn speaker(&self) -> Speaker<'_> {
        let asked = self.asked;
        let url = self.page.as_ref().or(asked.url.as_ref());
        let mut data = Value::Object(asked.data.clone());
        if let Some(page) = &self.page {
            data["page_url"] = json!(page);
        }
        let values = json!({
            "type": asked.sort, "title": asked.title, "message": asked.message, "url": url, "data": data, "product": self.tenant.manifest.name,
        });
        Speaker { renderer: &self.renderer, templates: &self.sort.templates, values }
    }

    fn say(&self, speaker: &Speaker<'_>, recipient: &Recipient, wants_mail: bool) -> Result<(Words, Option<Letter>), TemplateError> {
        let user = json!({ "id": recipient.id, "name": recipient.name, "locale": recipient.locale });
        let locale = recipient.locale.as_deref();
        let words = speaker.words(locale, &user)?;
        let letter = wants_mail.then(|| speaker.letter(locale, &user, &words, self.can_unsubscribe())).transpose()?;
        Ok((words, letter))
    }

    fn wordless(&self, error: &TemplateError) -> Failure {
        let message = format!("a template of the type `{}` makes no text: {error}; change the product's manifest", self.asked.sort);
        Failure::permanent("notification_template_failed", message)
    }

    fn can_unsubscribe(&self) -> bool {
        can_unsubscribe(self.context, &self.sort)
    }

    fn goes_by(&self, way: Way, recipient: &Recipient) -> bool {
        // What was said now decides only what a user had to choose; what they don't want is asked when it is sent.
        let said = match way {
            Way::InApp => recipient.in_app,
            Way::Push => recipient.push.filter(|said| *said),
            Way::Email => recipient.mail.filter(|said| *said),
        };
        self.sort.goes_by(way, said)
    }

    fn is_gathered(&self) -> bool {
        self.sort.digest.is_some() && !self.sort.critical && self.asked.send_by.is_none()
    }

    fn not_told(&self, recipient: &Recipient, why: &'static str, detail: &str, drafted: &mut Drafted) {
        for (way, channel) in [(Way::InApp, Channel::InApp), (Way::Push, Channel::Push), (Way::Email, Channel::Email)] {
            if self.goes_by(way, recipient) {
                drafted.unsent.push(self.unsent(recipient, channel, why, detail));
            }
        }
    }

    fn unsent(&self, recipient: &Recipient, channel: Channel, why: &'static str, detail: &str) -> Unsent {
        Unsent { id: new_id(self.context), owner: recipient.id.clone(), channel, why, detail: detail.to_owned() }
    }

    /// What one recipient is told; the jobs of it.
    fn draft(&self, recipient: &Recipient, words: Words, letter: Option<Letter>, drafted: &mut Drafted) -> Vec<NewJob> {
        let mut jobs = Vec::new();
        let by_push = self.goes_by(Way::Push, recipient);
        let by_mail = self.goes_by(Way::Email, recipient);
        if self.is_gathered() && (by_push || by_mail) {
            let item = json!({ "title": words.title, "message": words.message.chars().take(200).collect::<String>(), "url": words.url });
            drafted.items.push(Item { digest: new_id(self.context), user: recipient.id.clone(), item });
            drafted.counted.gathered += 1;
        } else {
            if by_push && recipient.has_browser {
                let push = push_of(&recipient.id, &words, &self.sort, self.told());
                jobs.push(new_job(self.context, Some(&recipient.id), self.priority, &push));
                drafted.counted.pushes += 1;
            } else if by_push {
                let detail = "the user has no browser that can be pushed to";
                drafted.unsent.push(self.unsent(recipient, Channel::Push, "no_browser", detail));
            }
            match letter {
                Some(letter) if by_mail => {
                    let category = self.sort.category(&self.asked.sort);
                    let mail = mail_of(recipient, letter, category, self.can_unsubscribe(), self.told());
                    jobs.push(new_job(self.context, Some(&recipient.id), self.priority, &mail));
                    drafted.counted.emails += 1;
                }
                _ if by_mail && recipient.email.is_none() => {
                    drafted.unsent.push(self.unsent(recipient, Channel::Email, "no_address", "the user has no address for mail"));
                }
                _ if by_mail => {
                    let detail = "the product's manifest has no [mail]";
                    drafted.unsent.push(self.unsent(recipient, Channel::Email, "mail_not_declared", detail));
                }
                _ => {}
            }
        }
        self.draft_inbox(recipient, words, drafted);
        jobs
    }

    fn draft_inbox(&self, recipient: &Recipient, words: Words, drafted: &mut Drafted) {
        // It is there already.
        if self.asked.export.is_some() {
            return;
        }
        if !self.goes_by(Way::InApp, recipient) {
            if self.sort.channels.contains(&Way::InApp) {
                drafted.unsent.push(self.unsent(recipient, Channel::InApp, "preference", "the user wants no such notification"));
            }
            return;
        }
        let mut data = self.asked.data.clone();
        if let Some(url) = words.url {
            data.insert("url".to_owned(), json!(url));
        }
        drafted.rows.push(InboxRow {
            id: new_id(self.context),
            owner: recipient.id.clone(),
            title: words.title,
            message: words.message,
            data: Value::Object(data),
        });
    }

    fn told(&self) -> Told {
        Told { sort: self.asked.sort.clone(), trigger: self.trigger.0, send_by: self.asked.send_by }
    }

    /// Puts what is gathered into its digests; one that this opens is closed by a job of its own.
    async fn gather(&self, connection: &mut PgConnection, items: &[Item], now: DateTime<Utc>) -> Result<(), Failure> {
        let Some(digest) = self.sort.digest.as_ref().filter(|_| !items.is_empty()) else { return Ok(()) };
        let closes_at = now + TimeDelta::minutes(digest.window_minutes.into());
        let key = self.asked.digest_key.as_deref().unwrap_or_default();
        let opened = notifications::gather(connection, (self.tenant.id, &self.asked.sort, key), items, now, closes_at).await?;
        let mut outbox = Outbox::default();
        for (digest, user) in opened {
            let job = new_job(self.context, None, self.priority, &NotificationDigest { digest });
            let job = NewJob { subject: Some(user), ..job }.due_at(closes_at);
            outbox.put(connection, job, now).await?;
        }
        Ok(outbox.store(connection, now).await?)
    }
}

/// Whether a mail carries what one click unsubscribes by: that address must be https (RFC 8058).
pub(super) fn can_unsubscribe(context: &JobContext, sort: &NotificationType) -> bool {
    !sort.critical && context.services.public_url.as_ref().is_some_and(|url| url.scheme() == "https")
}

/// A push of what is said; of a long message as much as fits.
pub(super) fn push_of(user: &str, words: &Words, sort: &NotificationType, told: Told) -> PushSend {
    let mut push = PushSend {
        user: user.to_owned(),
        title: words.title.clone(),
        body: words.message.clone(),
        url: words.url.clone(),
        icon: None,
        tag: None,
        ttl: sort.ttl_seconds.unwrap_or(a_day()),
        urgency: sort.urgency.unwrap_or_default(),
        notification: Some(told),
    };
    let id = Uuid::nil().to_string();
    let mut characters = push.body.chars().count();
    while push.message(&id).to_string().len() > LONGEST_MESSAGE && characters > 0 {
        characters = characters * 3 / 4;
        push.body = words.message.chars().take(characters).chain(['…']).collect();
    }
    push
}

/// A mail of what is said.
pub(super) fn mail_of(recipient: &Recipient, letter: Letter, category: &str, unsubscribe: bool, told: Told) -> EmailSend {
    EmailSend {
        to: Mailbox { email: recipient.email.clone().unwrap_or_default(), name: recipient.name.clone() },
        from: None,
        reply_to: None,
        subject: letter.subject,
        text: letter.text,
        html: Some(letter.html),
        category: category.to_owned(),
        headers: std::collections::BTreeMap::new(),
        unsubscribe,
        notification: Some(told),
    }
}
