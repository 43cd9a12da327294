//! `email.send`: one mail to one person.
//!
//! What must stay true: whoever wants no such mail gets none, asked when it is about to be sent; a second copy has the same Message-ID, and
//! the ledger lists the effect as unknown before there can be one; what a server says of the mailbox is held against the mailbox, what it
//! says of us pauses the sender, and no mail of others is used up by it; whatever is not sent says why in the delivery log.
//!
//! | verdict ([`crate::clients::mail`]) | the job | the effect | besides |
//! |---|---|---|---|
//! | taken | succeeded | done | |
//! | retry | tried again on the mail schedule | struck out | |
//! | unknown | the same, under the same Message-ID | unknown, for good | |
//! | suppress | failed, `mail_mailbox_unknown` | struck out | no mail goes to that address any more |
//! | fail | failed, `mail_refused` | struck out | |
//! | pause sender | waits, no attempt used | struck out | the product's mail is paused for a while |
//!
//! What was listed as unknown before stays listed, whatever comes after.

use serde_json::json;
use shared::{
    job::{Failure, Interrupt, Success},
    kinds::{EmailSend, Kind, Mailbox},
    ledger::{
        deliveries::{self, Addressed, Attempted, Channel, Noted},
        effects::Intent,
        holds,
        suppressions::{self, NewSuppression, Obstacle, SuppressionReason},
    },
    mail::{RecipientHash, RecipientKey, Unsubscription},
    tenant::{MailDeclaration, Tenant},
};
use url::Url;
use uuid::Uuid;

use super::{
    JobContext, export,
    notification::{Wanted, wanted},
};
use crate::clients::mail::{Composed, Dkim, Mail, MailError, Party, SENDER_PAUSE, Stage, Verdict};

/// The effect's key in the ledger.
const EFFECT: &str = "mail";

/// What the texts of a mail may hold in the place of the address by which it is unsubscribed from.
const PLACEHOLDER: &str = "{{unsubscribe_url}}";

/// What the mail's owner is told, who knows nothing of servers.
const FOR_OWNER: &str = "The mail could not be sent.";

/// Sends a mail.
pub(super) async fn run(payload: EmailSend, context: JobContext) -> Result<Success, Interrupt> {
    let tenant = export::tenant(&context).await?;
    let delivery = Delivery::of(&payload, &context, &tenant)?;
    if let Some(told) = &payload.notification {
        let user = context.job.owner.as_deref().unwrap_or_default();
        match wanted(&context, &tenant, told, user, Channel::Email).await? {
            Wanted::Yes => {}
            Wanted::No(why, detail) => {
                delivery.note(Attempted::not_sent(why, detail).finally()).await?;
                return Ok(Success::with(json!({ "sent": false, "why": why })));
            }
            Wanted::Later(until) => {
                let detail = format!("the user's quiet hours last until {}", until.format("%FT%TZ"));
                delivery.note(Attempted::not_sent("quiet_hours", detail)).await?;
                return Err(Interrupt::Snoozed(Wanted::pause(until, context.services.clock.now())));
            }
        }
    }
    let composed = match delivery.compose() {
        Ok(composed) => composed,
        Err(failure) => return Err(delivery.failed(failure).await?.into()),
    };
    let intent = json!({ "server": delivery.declared.server_env, "message_id": composed.message_id() });
    let is_listed = match context.intend_outward(EFFECT, &intent).await? {
        Intent::Done { receipt } => {
            delivery.note(Attempted::sent(false)).await?;
            return Ok(Success::with(receipt));
        }
        Intent::Unknown => true,
        _ => false,
    };
    let services = &context.services;
    let what = (tenant.id, EmailSend::QUEUE, context.job.kind.as_str());
    if let Some(obstacle) = suppressions::obstacle(&services.pool, what, delivery.recipient, &payload.category).await? {
        delivery.never_happened(is_listed).await?;
        return Err(match obstacle {
            Obstacle::Paused => Interrupt::Paused,
            Obstacle::Suppressed(found) => delivery.failed(suppressed(&found)).await?.into(),
        });
    }
    match services.clients.mail.send(&delivery.declared.server_env, &composed).await {
        Ok(accepted) => {
            let receipt = json!({ "message_id": composed.message_id(), "code": accepted.code, "answer": accepted.text });
            context.taken(EFFECT, &receipt, delivery.noted(Attempted::sent(is_listed))).await?;
            Ok(Success::with(receipt))
        }
        Err(error) => Err(delivery.not_taken(error, is_listed).await?),
    }
}

fn suppressed(found: &suppressions::FoundSuppression) -> Failure {
    let of = found.category.as_ref().map_or_else(String::new, |category| format!(" of the category `{category}`"));
    let (why, since) = (found.reason.word(), found.created_at.format("%FT%TZ"));
    let message = format!(
        "no mail{of} goes to this address since {since} ({why}); GET /v1/suppressions shows it, DELETE /v1/suppressions/{} lifts it",
        found.id
    );
    Failure::permanent("recipient_suppressed", message).for_owner("This address gets no such mail any more.")
}

/// One mail on its way.
struct Delivery<'a> {
    payload: &'a EmailSend,
    context: &'a JobContext,
    declared: &'a MailDeclaration,
    key: &'a RecipientKey,
    tenant: i32,
    recipient: RecipientHash,
}

impl<'a> Delivery<'a> {
    fn of(payload: &'a EmailSend, context: &'a JobContext, tenant: &'a Tenant) -> Result<Self, Failure> {
        let no_mail = || Failure::permanent("mail_not_declared", "the product's manifest has no [mail] any more").for_owner(FOR_OWNER);
        let declared = tenant.manifest.mail.as_ref().ok_or_else(no_mail)?;
        let no_key = || not_set_up("this worker has no OFFSTAGE_RECIPIENT_KEY: set it, the same as the API's, and start it anew");
        let key = context.services.recipient_key.as_ref().ok_or_else(no_key)?;
        let no_address = || Failure::permanent("mail_address_invalid", "the mail's `to` is not an address that mail can be sent to");
        let recipient = key.hash(tenant.id, &payload.to.email).ok_or_else(no_address)?;
        Ok(Self { payload, context, declared, key, tenant: tenant.id, recipient })
    }

    /// The mail's bytes: the same at each attempt, while the manifest is the same.
    fn compose(&self) -> Result<Composed, Failure> {
        let Self { payload, context, declared, .. } = self;
        let unsubscribe = if payload.unsubscribe { Some(self.unsubscribe_url()?) } else { None };
        let filled = |text: &str| match &unsubscribe {
            Some(url) => text.replace(PLACEHOLDER, url.as_str()),
            None => text.to_owned(),
        };
        let (text, html) = (filled(&payload.text), payload.html.as_deref().map(filled));
        let party = |mailbox: &'a Mailbox| Party { name: mailbox.name.as_deref(), address: &mailbox.email };
        let own = Party { name: declared.from.name.as_deref(), address: &declared.from.email };
        // The manifest may have changed since it was accepted.
        let from = payload.from.as_ref().filter(|from| declared.may_be_from(&from.email)).map_or(own, party);
        let id = context.job.id.to_string();
        let mail = Mail {
            id: &id,
            from,
            to: party(&payload.to),
            reply_to: payload.reply_to.as_ref().map(party),
            subject: &payload.subject,
            text: &text,
            html: html.as_deref(),
            date: context.job.created_at,
            unsubscribe: unsubscribe.as_ref(),
            headers: &payload.headers,
            dkim: declared.dkim.as_ref().map(|dkim| Dkim { domain: &dkim.domain, selector: &dkim.selector, key: &dkim.key_env }),
        };
        Ok(context.services.clients.mail.compose(&mail)?)
    }

    /// Where one click ends such mails for this recipient.
    fn unsubscribe_url(&self) -> Result<Url, Failure> {
        // RFC 8058, section 3.1: an HTTPS URI.
        let public = self.context.services.public_url.as_ref().filter(|url| url.scheme() == "https");
        let missing = || not_set_up("a mail with `unsubscribe` needs OFFSTAGE_PUBLIC_URL to be the https address of the API");
        let public = public.ok_or_else(missing)?;
        let said = Unsubscription { tenant: self.tenant, recipient: self.recipient, category: self.payload.category.clone() };
        let url = format!("{}/u/{}", public.as_str().trim_end_matches('/'), self.key.token(&said));
        Url::parse(&url).map_err(|_| missing())
    }

    fn is_last(&self) -> bool {
        self.context.job.attempt >= self.context.job.attempts_allowed
    }

    fn noted(&self, attempted: Attempted) -> Noted {
        let (services, job) = (&self.context.services, &self.context.job);
        let to = Addressed {
            channel: Channel::Email,
            device: Uuid::nil(),
            owner: job.owner.clone(),
            recipient: Some(self.recipient),
            category: Some(self.payload.category.clone()),
        };
        Noted { id: services.clock.new_id(), job: job.id, tenant: job.tenant, to, attempted, receipt: None }
    }

    async fn note(&self, attempted: Attempted) -> Result<(), Failure> {
        self.context.note(self.noted(attempted)).await
    }

    /// Strikes the effect out, unless it may have happened before.
    async fn never_happened(&self, is_listed: bool) -> Result<(), Failure> {
        if is_listed { Ok(()) } else { self.context.forget_effect(EFFECT).await }
    }

    /// Notes why it is not sent, and that nothing more is tried.
    async fn failed(&self, failure: Failure) -> Result<Failure, Failure> {
        self.note(Attempted::not_sent(failure.code, failure.message.clone()).finally()).await?;
        Ok(failure)
    }

    /// Does what the verdict on a mail that was not taken asks for.
    async fn not_taken(&self, error: MailError, is_listed: bool) -> Result<Interrupt, Failure> {
        let verdict = match error.verdict() {
            // What the server says of a staging installation's address says nothing of whom the mail was for.
            Verdict::Suppress if self.context.services.clients.mail.redirects() => Verdict::Fail,
            verdict => verdict,
        };
        let failure = Failure::from(error.clone()).for_owner(FOR_OWNER);
        let (code, words) = (failure.code, failure.message.clone());
        if verdict == Verdict::Unknown {
            self.context.unknown(EFFECT).await?;
            self.note(Attempted::unknown(code, words).finally_if(self.is_last())).await?;
            return Ok(failure.into());
        }
        self.never_happened(is_listed).await?;
        match verdict {
            Verdict::Retry | Verdict::Unknown => {
                self.note(Attempted::not_sent(code, words).finally_if(self.is_last())).await?;
                Ok(failure.into())
            }
            Verdict::Fail => Ok(self.failed(failure).await?.into()),
            Verdict::Suppress => {
                self.suppress(&failure).await?;
                Ok(self.failed(failure).await?.into())
            }
            Verdict::PauseSender => self.refused(&error, failure).await,
        }
    }

    async fn suppress(&self, failure: &Failure) -> Result<(), Failure> {
        let services = &self.context.services;
        let suppression = NewSuppression {
            tenant: self.tenant,
            recipient: self.recipient,
            category: None,
            reason: SuppressionReason::Bounce,
            detail: Some(&failure.message),
        };
        suppressions::add(&services.pool, services.clock.new_id(), &suppression, services.clock.now()).await?;
        Ok(())
    }

    /// Pauses the sender, which is the product's mail: it has one server. A mail that is refused for our standing once more when the pause is
    /// over is at fault itself: it fails, or one text that a filter dislikes would hold up all others for ever.
    async fn refused(&self, error: &MailError, failure: Failure) -> Result<Interrupt, Failure> {
        let (services, job) = (&self.context.services, &self.context.job);
        let of_the_mail = matches!(error, MailError::At { stage: Stage::Rcpt | Stage::Data | Stage::Message, .. });
        if of_the_mail && deliveries::refusals(&services.pool, job.id).await? > 0 {
            let message = format!("the mail was refused again after the sender had been paused for it: {}", failure.message);
            return Ok(self.failed(Failure::permanent("mail_refused_by_policy", message).for_owner(FOR_OWNER)).await?.into());
        }
        self.note(Attempted::not_sent(failure.code, failure.message.clone()).refused()).await?;
        let names: Vec<&str> = EmailSend::ALIASES.iter().copied().chain([EmailSend::NAME]).collect();
        let now = services.clock.now();
        let what = (self.tenant, EmailSend::QUEUE, names.as_slice());
        if holds::pause_for_a_while(&services.pool, what, "the mail server", &failure.message, now + SENDER_PAUSE, now).await? {
            metrics::counter!("offstage_mail_sender_pauses_total").increment(1);
            tracing::error!(
                tenant = self.tenant,
                server = self.declared.server_env,
                reason = failure.message,
                minutes = SENDER_PAUSE.as_secs() / 60,
                "the product's mail is paused: its server refuses us; `api holds` shows it, `api resume` ends it sooner"
            );
        }
        Ok(Interrupt::Paused)
    }
}

/// The operator has to set something first.
fn not_set_up(message: &str) -> Failure {
    Failure::limited("mail_not_set_up", message, SENDER_PAUSE).for_owner(FOR_OWNER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::mail::Deadlines;

    /// A run that is cut when it takes too long does not know whether its mail was sent.
    #[test]
    fn no_mail_is_cut_that_may_still_be_answered() {
        assert!(EmailSend::POLICY.timeout > 2 * Deadlines::DEFAULT.total());
    }
}
