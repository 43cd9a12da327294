//! The worker's clients for push and mail as a contestant by themselves: what libraries without a queue are. It speaks the peers' language
//! (`bench/peers/README.md`), and its process is measured as theirs are.
//!
//! What must stay true: it makes, seals, signs and sends each message as the handlers of `push.send` and `email.send` have these clients do
//! it, and does nothing of what the engine does around that.

use std::{
    collections::BTreeMap,
    io::{Write, stdin, stdout},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    config,
    mail::SmtpServer,
    outbound::Guard,
    push::{Subscription, VapidKeys},
    random,
};
use worker::clients::{
    mail::{Mail, Mailer, Party},
    outbound::Outbound,
    push::{Message, Push, Topic, Urgency},
};

#[path = "../texts.rs"]
mod texts;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A browser's secret, that of RFC 8291's example: 16 bytes like any other.
const SECRET: &str = "BTBZMqHH6r4Tts7J_aSIgg";

/// The name of the one server, as settings name it.
const SERVER: &str = "OFFSTAGE_SMTP_URL";

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-clients: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let numbers = arguments.map(|number| number.parse()).collect::<Result<Vec<usize>, _>>()?;
    match (command.as_str(), numbers.as_slice()) {
        ("versions", _) => say(&json!({"event": "versions", "text": env!("CARGO_PKG_VERSION")})),
        ("push", [messages, browsers, in_flight]) => push(*messages, *browsers, *in_flight).await,
        // The client keeps as many connections as it does by default.
        ("mail", [messages, _, in_flight]) => mail(*messages, *in_flight).await,
        _ => Err(format!("unknown command {command}; there are versions, push, mail, with their numbers").into()),
    }
}

/// Pushes so many messages to so many browsers in turn.
async fn push(messages: usize, browsers: usize, in_flight: usize) -> Outcome<()> {
    let sink = sink()?;
    let keys = Arc::new(key()?);
    let contact = Some("mailto:operator@offstage.example".to_owned());
    let client = Arc::new(Push::new(Some(Arc::clone(&keys)), contact, Arc::new(Outbound::new(Guard::read("loopback")?))));
    let browser = |number| -> Outcome<_> {
        let to = Subscription::read(&format!("{sink}/push/{number}"), &key()?.current().public(), SECRET)?;
        let topic = Topic::of("export", &to);
        Ok((to, topic))
    };
    let all = Arc::new((0..browsers).map(browser).collect::<Outcome<Vec<_>>>()?);
    let payload = json!({"id": uuid(), "title": texts::PUSH_TITLE, "body": texts::PUSH_BODY, "url": texts::PUSH_URL}).to_string();
    let payload = Arc::new(payload);
    repeat(messages, in_flight, move |number| {
        let (client, keys, all, payload) = (Arc::clone(&client), Arc::clone(&keys), Arc::clone(&all), Arc::clone(&payload));
        async move {
            let (to, topic) = all.get(number % all.len().max(1)).ok_or("there is no browser")?;
            let ttl = Duration::from_secs(86_400);
            let message = Message { payload: payload.as_bytes(), ttl, urgency: Urgency::Normal, topic: Some(topic) };
            client.send(to, keys.current().id(), &message, Clock::system().now()).await?;
            Ok(())
        }
    })
    .await
}

/// Mails so many messages.
async fn mail(messages: usize, in_flight: usize) -> Outcome<()> {
    let server = SmtpServer::read(&format!("{}?tls=none", sink()?))?;
    let config = config::Mail {
        servers: BTreeMap::from([(SERVER.to_owned(), server)]),
        dkim: BTreeMap::new(),
        authorities: None,
        hello: None,
        redirect: None,
        recipient_key: None,
    };
    let client = Arc::new(Mailer::new(&config));
    repeat(messages, in_flight, move |number| {
        let client = Arc::clone(&client);
        async move {
            let to = format!("person-{number}@example.com");
            let id = uuid();
            let mail = Mail {
                id: &id,
                from: Party { name: None, address: "no-reply@bench.example" },
                to: Party { name: None, address: &to },
                reply_to: None,
                subject: texts::MAIL_SUBJECT,
                text: texts::MAIL_TEXT,
                html: Some(texts::MAIL_HTML),
                date: Clock::system().now(),
                unsubscribe: None,
                headers: &BTreeMap::new(),
                dkim: None,
            };
            client.send(SERVER, &client.compose(&mail)?).await?;
            Ok(())
        }
    })
    .await
}

/// Calls `step` for each of so many messages, so many at a time, once the harness says go.
async fn repeat<F>(messages: usize, in_flight: usize, step: impl Fn(usize) -> F + Clone + Send + 'static) -> Outcome<()>
where
    F: Future<Output = Outcome<()>> + Send + 'static,
{
    say(&json!({"event": "ready"}))?;
    tokio::task::spawn_blocking(|| stdin().read_line(&mut String::new())).await??;
    let taken = Arc::new(AtomicUsize::new(0));
    say(&json!({"event": "begun", "at": now()}))?;
    let loops = (0..in_flight).map(|_| {
        let (taken, step) = (Arc::clone(&taken), step.clone());
        tokio::spawn(async move {
            loop {
                let number = taken.fetch_add(1, Ordering::Relaxed);
                if number >= messages {
                    return Ok::<_, Box<dyn std::error::Error + Send + Sync>>(());
                }
                step(number).await?;
            }
        })
    });
    for ended in try_join_all(loops).await? {
        ended?;
    }
    say(&json!({"event": "done", "at": now()}))
}

fn key() -> Outcome<VapidKeys> {
    let number: [u8; 32] = random::bytes();
    Ok(VapidKeys::read(&BASE64_URL_SAFE_NO_PAD.encode(number)).ok_or("no key could be made")?)
}

fn uuid() -> String {
    Clock::system().new_id().to_string()
}

fn sink() -> Outcome<String> {
    Ok(std::env::var("BENCH_SINK_URL")?)
}

/// The wall clock in milliseconds since 1970, as the harness compares it.
fn now() -> f64 {
    Clock::system().now().timestamp_micros() as f64 / 1e3
}

fn say(event: &Value) -> Outcome<()> {
    let mut out = stdout().lock();
    writeln!(out, "{event}")?;
    Ok(out.flush()?)
}
