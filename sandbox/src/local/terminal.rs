//! What a person sees.

use std::path::Path;

use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::Local;
use crate::process::Event;
use crate::services::postgres::Postgres;
use crate::services::redis::Redis;
use crate::services::s3::S3;

/// A line for the terminal. A terminal that has gone is no reason to fall over: what runs is then ended in order.
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}
pub(super) use say;

/// A process that dies this often in a row has a trouble that its log tells; a single death may have been a drill.
const TROUBLE: u32 = 2;

/// The services as they came up.
pub(super) fn services(
    directory: &Path,
    postgres: Option<&Postgres>,
    redis: Option<&Redis>,
    s3: Option<&S3>,
) {
    let directory = shown(directory);
    match postgres {
        Some(postgres) => {
            let address = postgres
                .process()
                .address()
                .map(|address| address.to_string())
                .unwrap_or_default();
            say!(
                "  Postgres   {address} (version {}, data in {directory}/postgres)",
                postgres.version()
            );
        }
        None => say!("  Postgres   the one of OFFSTAGE_DATABASE_URL"),
    }
    match redis {
        Some(redis) => {
            let address = redis
                .process()
                .address()
                .map(|address| address.to_string())
                .unwrap_or_default();
            say!("  Redis      {address} (data in {directory}/redis)");
        }
        None => say!("  Redis      the one of OFFSTAGE_REDIS_URL"),
    }
    match s3 {
        Some(s3) => say!("  S3         {} (objects in {directory}/s3)", s3.endpoint()),
        None => say!("  S3         the bucket of OFFSTAGE_S3_BUCKET"),
    }
}

/// A path as short as it can be said from here.
pub(super) fn shown(path: &Path) -> String {
    let here = std::env::current_dir()
        .and_then(|here| here.canonicalize())
        .unwrap_or_default();
    path.strip_prefix(here)
        .unwrap_or(path)
        .display()
        .to_string()
}

impl Local {
    /// The addresses, the key and three lines to try.
    pub fn announce(&self) {
        for process in self.fleet.processes() {
            say!("  {:<10} {}", process.name(), process.url());
        }
        let (url, key) = (&self.demo.url, &self.demo.key);
        let caller = format!("-H 'Authorization: Bearer {key}' -H 'X-Acting-User: demo'");
        say!(
            "
Offstage runs: {url}  (metrics at {url}/metrics, the interface at {url}/openapi.json)
Demo key:      {key}  (product promptlockr, all scopes)

Try it. Make an export of the user demo's prompts, wait for it, download it:

  ID=$(curl -sS {url}/v1/exports {caller} -H 'Content-Type: application/json' -d '{{\"dataset\":\"prompts\",\"format\":\"csv\"}}' | grep -o '\"id\":\"[^\"]*' | head -n 1 | cut -d '\"' -f 4); echo \"export $ID\"

  until curl -sS {url}/v1/exports/$ID {caller} | tee /dev/stderr | grep -qE '\"(completed|failed|cancelled|expired)\"'; do sleep 1; done

  curl -sS -o prompts.csv \"$(curl -sS -o /dev/null -w '%{{redirect_url}}' {url}/v1/exports/$ID/download {caller})\" && ls -l prompts.csv
",
        );
        say!(
            "Logs are in {}. For scripts: {}.",
            shown(&self.directory.logs()),
            shown(&self.demo.file)
        );
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
                say!("({missed} deaths and restarts came too fast to show)")
            }
            Err(RecvError::Closed) => return,
        }
    }
}

fn report(event: &Event) {
    match event {
        Event::Restarted { name, pid } => say!("{name} runs again, process {pid}"),
        Event::Died {
            name,
            exit,
            in_a_row,
            again_in,
            tail,
        } => {
            let next = match again_in {
                Some(pause) => format!("starting it again in {:.1} s", pause.as_secs_f64()),
                None => "it stays down".to_owned(),
            };
            say!(
                "{name} ended with {exit} after {:.1} s; {next}",
                exit.lived.as_secs_f64()
            );
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
