//! Pushes and mails through the real engine: jobs of `push.send` and `email.send` wait in the ledger, one worker process works them off with
//! its own clients, and the messages arrive at a [`Sink`]. So each has its claim, its effect written down before and after, its delivery in
//! the log and its finished row; a peer's has none of that.

use std::net::SocketAddr;

use hyper::StatusCode;
use sandbox::Launch;
use serde_json::json;
use shared::{
    kinds::{EmailSend, Kind, PushSend},
    queue::Queue,
};

use super::{Offstage, TENANT, enqueue::Backlog};
use crate::{
    error::{Error, Result},
    http::Client,
    measure::Run,
    plan::{BROWSERS, BROWSERS_OF_ONE, CONCURRENCY},
    sink::{Sink, Speech},
    texts::{MAIL_HTML, MAIL_SUBJECT, MAIL_TEXT, PUSH_BODY, PUSH_TITLE, PUSH_URL},
};

impl Offstage {
    /// Pushes so many messages, one a job, to [`BROWSERS`] users with a browser each; or, for `crowded`, [`BROWSERS_OF_ONE`] a job to users
    /// with that many browsers: what the engine does for a job is then shared by them.
    pub async fn push(&self, messages: usize, crowded: bool) -> Result<Run> {
        let sink = Sink::open(Speech::Http).await?;
        let each = if crowded { BROWSERS_OF_ONE } else { 1 };
        let users = BROWSERS / each;
        self.subscribe(sink.address(), users, each).await?;
        let jobs = messages.div_ceil(each);
        let backlog = Backlog {
            kind: PushSend::NAME,
            queue: Queue::Push,
            attempts: PushSend::POLICY.attempts,
            of: &|number| {
                let user = user(number % users);
                let payload = json!({"user": user, "title": PUSH_TITLE, "body": PUSH_BODY, "url": PUSH_URL});
                (Some(user), payload.to_string())
            },
        };
        self.prepare_backlog(jobs, &backlog).await?;
        let run = self.drain_queue(Queue::Push, jobs, 1, CONCURRENCY, Launch::new()).await?;
        arrived(&sink, jobs * each)?;
        Ok(Run { jobs: jobs * each, ..run })
    }

    /// Mails so many messages over one server.
    pub async fn mail(&self, messages: usize) -> Result<Run> {
        let sink = Sink::open(Speech::Smtp).await?;
        let backlog = Backlog {
            kind: EmailSend::NAME,
            queue: Queue::Email,
            attempts: EmailSend::POLICY.attempts,
            of: &|number| {
                let to = json!({"email": format!("person-{number}@example.com")});
                let payload = json!({"to": to, "subject": MAIL_SUBJECT, "text": MAIL_TEXT, "html": MAIL_HTML, "category": "digest"});
                (None, payload.to_string())
            },
        };
        self.prepare_backlog(messages, &backlog).await?;
        let launch = Launch::new().env("OFFSTAGE_SMTP_URL", format!("smtp://{}?tls=none", sink.address()));
        let run = self.drain_queue(Queue::Email, messages, 1, CONCURRENCY, launch).await?;
        arrived(&sink, messages)?;
        Ok(run)
    }

    /// Registers browsers, whose keys the sandbox's push service makes and whose addresses are the sink's.
    async fn subscribe(&self, sink: SocketAddr, users: usize, each: usize) -> Result<()> {
        let api = self.api().await?;
        let mut client = Client::connect(Self::address_of(&api)?, &self.key).await?;
        for number in 0..users * each {
            let browser = self.world.push.subscribe(None)?;
            let endpoint = format!("http://{sink}/push/{number}");
            let body = json!({"endpoint": endpoint, "keys": {"p256dh": browser.p256dh, "auth": browser.auth}}).to_string();
            let (status, text) = client.post_as(&user(number / each), "/v1/push/subscriptions", body).await?;
            if status != StatusCode::OK {
                return Err(Error::Unexpected(format!("a browser was refused with {status}: {}", String::from_utf8_lossy(&text))));
            }
        }
        api.stop().await?;
        Ok(())
    }
}

fn user(number: usize) -> String {
    format!("user-{number}")
}

fn arrived(sink: &Sink, messages: usize) -> Result<()> {
    let taken = sink.taken();
    if taken == messages { Ok(()) } else { Err(Error::Unexpected(format!("{taken} messages arrived of {messages}"))) }
}

/// The benchmark's product: it sends mail.
pub(super) fn manifest() -> String {
    format!("[tenant]\nname = \"{TENANT}\"\n[mail]\nserver_env = \"OFFSTAGE_SMTP_URL\"\nfrom = {{ email = \"no-reply@bench.example\" }}\n")
}
