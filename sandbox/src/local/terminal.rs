//! What a person sees.

use std::path::Path;

use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::Local;
use super::services::Services;
use crate::process::{Event, Process};

/// A line for the terminal. A terminal that has gone is no reason to fall over: what runs is then ended in order.
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}

/// A process that dies this often in a row has a trouble that its log tells; a single death may have been a drill.
const TROUBLE: u32 = 2;

/// Before anything else.
pub(super) fn begin() {
    say!("Starting Offstage and what it needs:");
}

/// The services as they came up.
pub(super) fn services(directory: &Path, services: &Services) {
    let directory = shown(directory);
    let address = |process: &Process| process.address().map(|address| address.to_string()).unwrap_or_default();
    let postgres = services.postgres.as_ref().map_or_else(
        || "the one of OFFSTAGE_DATABASE_URL".to_owned(),
        |postgres| {
            let address = address(postgres.process());
            format!("{address} (version {}, data in {directory}/postgres)", postgres.version())
        },
    );
    let redis = services.redis.as_ref().map_or_else(
        || "the one of OFFSTAGE_REDIS_URL".to_owned(),
        |redis| format!("{} (data in {directory}/redis)", address(redis.process())),
    );
    let s3 = services
        .s3
        .as_ref()
        .map_or_else(|| "the bucket of OFFSTAGE_S3_BUCKET".to_owned(), |s3| format!("{} (objects in {directory}/s3)", s3.endpoint()));
    line("Postgres", &postgres);
    line("Redis", &redis);
    line("S3", &s3);
    let mail = if services.mail_stays() {
        format!("{} (shows what was sent; nothing leaves this machine)", services.mail.page())
    } else {
        "the servers of OFFSTAGE_SMTP_…: mails leave this machine".to_owned()
    };
    line("Mail", &mail);
    let real: Vec<_> = [("OpenAI", "OFFSTAGE_AI_OPENAI"), ("Anthropic", "OFFSTAGE_AI_ANTHROPIC")]
        .into_iter()
        .filter(|(_, variable)| !services.answers_for(variable))
        .map(|(name, _)| name)
        .collect();
    let models = match real.as_slice() {
        [] => "(answers without any model; set OFFSTAGE_AI_OPENAI or OFFSTAGE_AI_ANTHROPIC to a key for real ones)".to_owned(),
        real => format!("(answers without any model, but for {}: calls with your keys leave this machine)", real.join(" and ")),
    };
    line("Models", &format!("{} {models}", services.ai.url()));
    line("Push", &format!("{} (stands in for browsers' push services)", services.push.url()));
}

/// One thing that stands.
pub(super) fn line(name: &str, text: &str) {
    say!("  {name:<10} {text}");
}

/// A path as short as it can be said from here.
pub(super) fn shown(path: &Path) -> String {
    let here = std::env::current_dir().and_then(|here| here.canonicalize()).unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

impl Local {
    /// The addresses, the key and three lines to try.
    pub fn announce(&self) {
        for process in self.fleet.processes() {
            line(process.name(), &process.url());
        }
        let (url, key, page) = (&self.demo.url, &self.demo.key, self.web.url());
        let caller = format!("-H 'Authorization: Bearer {key}' -H 'X-Acting-User: demo'");
        say!(
            "
Offstage runs: {url}  (metrics at {url}/metrics, the interface at {url}/openapi.json)
Example page:  {page}  (sign in as demo: exports and inbox live, web push; examples/web)
Demo key:      {key}  (product promptlockr, all scopes)

Try it. Make an export of the user demo's prompts, wait for it, download it:

  ID=$(curl -sS {url}/v1/exports {caller} -H 'Content-Type: application/json' -d '{{\"dataset\":\"prompts\",\"format\":\"csv\"}}' | grep -o '\"id\":\"[^\"]*' | head -n 1 | cut -d '\"' -f 4); echo \"export $ID\"

  until curl -sS -w '\\n' {url}/v1/exports/$ID {caller} | tee /dev/stderr | grep -qE '\"(completed|failed|cancelled|expired|request_id)\"'; do sleep 1; done

  curl -sS -o prompts.csv \"$(curl -sS -o /dev/null -w '%{{redirect_url}}' {url}/v1/exports/$ID/download {caller})\" && ls -l prompts.csv

Put a task to a model, and watch its words come:

  ID=$(curl -sS {url}/v1/ai/enhance {caller} -H 'Content-Type: application/json' -d '{{\"input\":{{\"prompt\":\"Write a poem about the sea.\"}},\"stream\":true}}' | grep -o '\"id\":\"[^\"]*' | head -n 1 | cut -d '\"' -f 4); curl -sSN {url}/v1/jobs/$ID/stream {caller}
",
        );
        say!("Logs are in {}. For scripts: {}.", shown(&self.directory.logs()), shown(&self.demo.file));
        say!("Ctrl-C stops everything.");
    }

    /// Deaths and restarts from now on.
    #[must_use]
    pub fn events(&self) -> Receiver<Event> {
        self.host.events()
    }
}

/// Reports deaths and restarts, as long as there are any to come.
pub async fn watch(mut events: Receiver<Event>) {
    loop {
        match events.recv().await {
            Ok(event) => report(&event),
            Err(RecvError::Lagged(missed)) => {
                say!("({missed} deaths and restarts came too fast to show)");
            }
            Err(RecvError::Closed) => return,
        }
    }
}

fn report(event: &Event) {
    match event {
        Event::Restarted { name, pid } => say!("{name} runs again, process {pid}"),
        Event::Died { name, exit, in_a_row, again_in, tail } => {
            let next = match again_in {
                Some(pause) => format!("starting it again in {:.1} s", pause.as_secs_f64()),
                None => "it stays down".to_owned(),
            };
            say!("{name} ended with {exit} after {:.1} s; {next}", exit.lived.as_secs_f64());
            // A few times, then now and then: the terminal is not the log.
            if *in_a_row >= TROUBLE && (*in_a_row <= TROUBLE + 1 || in_a_row % 20 == 0) {
                say!("  {name} has now ended {in_a_row} times in a row. Its log ends:");
                for line in tail.lines() {
                    say!("    {line}");
                }
            }
        }
    }
}
