//! `notification.digest`: what was gathered for a user is sent, once: the digest is taken away in the transaction that makes the messages.

use std::collections::BTreeMap;

use serde_json::json;
use shared::{
    job::{Failure, Success},
    kinds::{NotificationDigest, Told},
    ledger::{
        LedgerError,
        deliveries::Channel,
        notifications::{self, Closed, Unsent},
    },
    notification::template::{Renderer, TemplateError},
    tenant::{Digest, NotificationType, Texts, Way},
};

use super::{
    super::{JobContext, export},
    new_id, new_job,
    tell::{Outbox, can_unsubscribe, mail_of, push_of},
    words::Speaker,
};

/// What a digest says where its type has no words for one.
const TITLE: &str = "{{ count }} {{ 'notification' if count == 1 else 'notifications' }}";
const MESSAGE: &str = "{% for item in items %}{{ item.title }}\n{% endfor %}{% if count > items|length %}…{% endif %}";
const MAIL: &str = "{% for item in items %}- **{{ item.title }}**{% if item.message %}: {{ item.message }}{% endif %}\n{% endfor %}\
                    {% if count > items|length %}\n{{ count - items|length }} more{% endif %}";

/// Closes a digest.
pub(in super::super) async fn run(payload: NotificationDigest, context: JobContext) -> Result<Success, Failure> {
    let (services, job) = (&context.services, &context.job);
    let tenant = export::tenant(&context).await?;
    let mut transaction = services.pool.begin().await.map_err(LedgerError::from)?;
    // Closed before, or its user is being erased.
    let Some(closed) = notifications::close(&mut transaction, job.tenant, payload.digest).await? else { return Ok(Success::default()) };
    // A type that is gone has nothing to say any more.
    let Some(sort) = tenant.manifest.notification(&closed.sort) else {
        transaction.commit().await.map_err(LedgerError::from)?;
        return Ok(Success::with(json!({ "items": closed.count, "why": "type_unknown" })));
    };
    let now = services.clock.now();
    let (renderer, category) = (Renderer::default(), sort.category(&closed.sort));
    let templates = templates(sort.digest.as_ref());
    let users = [closed.user.clone()];
    let mut outbox = Outbox::default();
    for recipient in notifications::recipients(&mut transaction, job.tenant, &users, category, now).await? {
        let speaker = Speaker { renderer: &renderer, templates: &templates, values: values(&closed, &tenant.manifest.name) };
        let user = json!({ "id": recipient.id, "name": recipient.name, "locale": recipient.locale });
        let locale = recipient.locale.as_deref();
        let words = speaker.words(locale, &user).map_err(|error| wordless(&closed, &error))?;
        let told = Told { sort: closed.sort.clone(), trigger: job.id.0, send_by: None };
        let by_push = goes_by(&sort, Way::Push, recipient.push);
        let by_mail = goes_by(&sort, Way::Email, recipient.mail) && tenant.manifest.mail.is_some();
        let unsent = |channel, why, detail: &str| Unsent {
            id: new_id(&context),
            owner: recipient.id.clone(),
            channel,
            why,
            detail: detail.to_owned(),
        };
        let mut missing = Vec::new();
        if by_push && !recipient.has_browser {
            missing.push(unsent(Channel::Push, "no_browser", "the user has no browser that can be pushed to"));
        }
        if by_mail && recipient.email.is_none() {
            missing.push(unsent(Channel::Email, "no_address", "the user has no address for mail"));
        }
        notifications::log_unsent(&mut transaction, (job.tenant, job.id, category), &missing, now).await?;
        if by_push && recipient.has_browser {
            let push = push_of(&recipient.id, &words, &sort, told.clone());
            outbox.put(&mut transaction, new_job(&context, Some(&recipient.id), job.priority, &push), now).await?;
        }
        if by_mail && recipient.email.is_some() {
            let unsubscribe = can_unsubscribe(&context, &sort);
            let letter = speaker.letter(locale, &user, &words, unsubscribe).map_err(|error| wordless(&closed, &error))?;
            let mail = mail_of(&recipient, letter, category, unsubscribe, told);
            outbox.put(&mut transaction, new_job(&context, Some(&recipient.id), job.priority, &mail), now).await?;
        }
    }
    outbox.store(&mut transaction, now).await?;
    transaction.commit().await.map_err(LedgerError::from)?;
    Ok(Success::with(json!({ "items": closed.count })))
}

fn goes_by(sort: &NotificationType, way: Way, said: Option<bool>) -> bool {
    // What they don't want is asked when it is sent.
    sort.goes_by(way, said.filter(|said| *said))
}

fn values(closed: &Closed, product: &str) -> serde_json::Value {
    let url = closed.items.get(0).and_then(|item| item.get("url")).filter(|_| closed.count == 1);
    json!({
        "type": closed.sort, "key": closed.key, "items": closed.items, "count": closed.count, "product": product, "data": {}, "url": url,
    })
}

/// The type's, and where `default` leaves something out, ours.
fn templates(digest: Option<&Digest>) -> BTreeMap<String, Texts> {
    let mut templates = digest.map(|digest| digest.templates.clone()).unwrap_or_default();
    let default = templates.entry("default".to_owned()).or_default();
    default.title.get_or_insert_with(|| TITLE.to_owned());
    default.message.get_or_insert_with(|| MESSAGE.to_owned());
    default.email.get_or_insert_with(|| MAIL.to_owned());
    templates
}

fn wordless(closed: &Closed, error: &TemplateError) -> Failure {
    let message = format!("a digest's template of the type `{}` makes no text: {error}; change the product's manifest", closed.sort);
    Failure::permanent("notification_template_failed", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_without_words_of_its_own_lists_its_items() {
        let closed = |count: i32| Closed {
            user: "ada".into(),
            sort: "comment".into(),
            key: String::new(),
            items: json!([{"title": "a_b", "message": "", "url": null}, {"title": "c", "message": "*d*", "url": "/x"}]),
            count,
        };
        let (renderer, templates) = (Renderer::default(), templates(None));
        let speaker = Speaker { renderer: &renderer, templates: &templates, values: values(&closed(5), "acme") };
        let words = speaker.words(None, &json!({})).unwrap();
        assert_eq!((words.title.as_str(), words.message.as_str(), words.url), ("5 notifications", "a_b\nc\n…", None));
        let letter = speaker.letter(None, &json!({}), &speaker.words(None, &json!({})).unwrap(), false).unwrap();
        assert_eq!(letter.text, "- a_b\n- c: *d*\n\n3 more");
    }
}
