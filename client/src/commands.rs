//! What each command does.

use std::{
    io::{Read, Write},
    time::Duration,
};

use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::{
    arguments::{Arguments, Command, Create, Jobs, List, Queues, Schedules},
    connection::Connection,
    error::Error,
    follow::{self, Output},
    show,
};

/// Items that the API gives at a time, at most.
const PAGE: usize = 200;

/// The largest payload that is read from a file; the API takes 256 KiB.
const MOST_PAYLOAD: u64 = 1024 * 1024;

/// Carries a command out; answers the exit code.
pub async fn run(connection: &Connection, arguments: &Arguments) -> Result<u8, Error> {
    let out = Out { json: arguments.json };
    match &arguments.command {
        Command::Jobs(command) => jobs(connection, &out, command).await,
        Command::Schedules(command) => schedules(connection, &out, command).await,
        Command::Queues(command) => queues(connection, &out, command).await,
    }
}

/// Where answers are written.
struct Out {
    json: bool,
}

impl Out {
    fn write(&self, value: &Value, words: impl Fn(&Value) -> String) -> Result<(), Error> {
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{value}")?;
        } else {
            writeln!(out, "{}", words(value))?;
        }
        Ok(out.flush()?)
    }
}

async fn jobs(connection: &Connection, out: &Out, command: &Jobs) -> Result<u8, Error> {
    match command {
        Jobs::Create(create) => return self::create(connection, out, create).await,
        Jobs::Get { id, attempts } => {
            let query = if *attempts { vec![("include", "attempts".to_owned())] } else { Vec::new() };
            let job = connection.send(connection.get(&["v1", "jobs", id], &query)?).await?;
            out.write(&job, |job| serde_json::to_string_pretty(job).unwrap_or_default())?;
        }
        Jobs::Follow { id, timeout } => {
            let output = Output::of_follow(out.json);
            let job = follow::to_the_end(connection, id, Duration::from_secs(*timeout), output).await?;
            return Ok(code_of(&job));
        }
        Jobs::Cancel { id } => {
            let job = connection.send(connection.request(Method::POST, &["v1", "jobs", id, "cancel"])?).await?;
            out.write(&job, show::job)?;
        }
        Jobs::Retry { id } => {
            let job = connection.send(connection.request(Method::POST, &["v1", "jobs", id, "retry"])?).await?;
            out.write(&job, show::job)?;
        }
        Jobs::Explain { id } => {
            let why = connection.send(connection.get(&["v1", "jobs", id, "explain"], &[])?).await?;
            out.write(&why, |why| serde_json::to_string_pretty(why).unwrap_or_default())?;
        }
        Jobs::Ls(list) => self::list(connection, out, list).await?,
    }
    Ok(0)
}

async fn create(connection: &Connection, out: &Out, create: &Create) -> Result<u8, Error> {
    let mut body = Map::new();
    body.insert("kind".into(), create.kind.as_str().into());
    body.insert("payload".into(), payload(&create.payload)?);
    let priority = create.priority.map(|priority| priority.word().to_owned());
    for (field, value) in [
        ("run_at", &create.run_at),
        ("start_by", &create.start_by),
        ("priority", &priority),
        ("owner", &create.owner),
        ("completion_url", &create.completion_url),
    ] {
        if let Some(value) = value {
            body.insert(field.into(), value.as_str().into());
        }
    }
    // With a key of its own where none was given: so the request can be sent again when its answer was lost.
    let key = create.key.clone().unwrap_or_else(random_key);
    let request = connection.request(Method::POST, &["v1", "jobs"])?.header("Idempotency-Key", key).json(&body);
    let job = connection.send(request).await?;
    ended_or_id(connection, out, job, create.wait.then_some(create.timeout)).await
}

/// Waits for a new job's end where that is wanted; else writes its id.
async fn ended_or_id(connection: &Connection, out: &Out, job: Value, wait: Option<u64>) -> Result<u8, Error> {
    let id = show::text(&job, "id").to_owned();
    let Some(seconds) = wait else {
        out.write(&job, |job| show::text(job, "id").to_owned())?;
        return Ok(0);
    };
    let output = Output::of_wait(out.json);
    let job = follow::to_the_end(connection, &id, Duration::from_secs(seconds), output).await?;
    if output == Output::Nothing {
        out.write(&job, show::job)?;
    }
    Ok(code_of(&job))
}

fn random_key() -> String {
    #[expect(clippy::disallowed_methods, reason = "a program of its own, without the server's rooms")]
    let key = uuid::Uuid::new_v4();
    format!("offstage-{key}")
}

fn payload(text: &str) -> Result<Value, Error> {
    let unreadable = |what: &str, error: &dyn std::fmt::Display| Error::Usage(format!("--payload: {what} can't be read: {error}"));
    let mut read = String::new();
    let (what, json) = if text == "-" {
        std::io::stdin().take(MOST_PAYLOAD).read_to_string(&mut read).map_err(|error| unreadable("standard input", &error))?;
        ("standard input", read.as_str())
    } else if let Some(path) = text.strip_prefix('@') {
        let file = std::fs::File::open(path).map_err(|error| unreadable(path, &error))?;
        file.take(MOST_PAYLOAD).read_to_string(&mut read).map_err(|error| unreadable(path, &error))?;
        (path, read.as_str())
    } else {
        ("it", text)
    };
    serde_json::from_str(json).map_err(|error| Error::Usage(format!("--payload: {what} is not JSON: {error}")))
}

async fn list(connection: &Connection, out: &Out, list: &List) -> Result<(), Error> {
    let mut query: Vec<(&str, String)> = Vec::new();
    for (name, value) in [
        ("kind", &list.kind),
        ("state", &list.state),
        ("owner", &list.owner),
        ("queue", &list.queue),
        ("error_code", &list.error_code),
        ("created_from", &list.created_from),
    ] {
        query.extend(value.clone().map(|value| (name, value)));
    }
    let (mut left, mut cursor) = (list.limit, list.cursor.clone());
    while left > 0 {
        let mut query = query.clone();
        query.push(("limit", left.min(PAGE).to_string()));
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let page = connection.send(connection.get(&["v1", "jobs"], &query)?).await?;
        let items = items(&page);
        for job in items {
            out.write(job, show::job)?;
        }
        left = left.saturating_sub(items.len());
        cursor = page.get("next_cursor").and_then(Value::as_str).map(str::to_owned);
        if cursor.is_none() || items.is_empty() {
            return Ok(());
        }
    }
    if let Some(cursor) = cursor {
        eprintln!("offstage: there are more; go on with --cursor {cursor}");
    }
    Ok(())
}

fn items(page: &Value) -> &[Value] {
    page.get("items").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

async fn schedules(connection: &Connection, out: &Out, command: &Schedules) -> Result<u8, Error> {
    let (schedule, action, wait) = match command {
        Schedules::Ls => {
            for schedule in all_schedules(connection).await? {
                out.write(&schedule, show::schedule)?;
            }
            return Ok(0);
        }
        Schedules::Run { schedule, wait, timeout } => (schedule, "run", wait.then_some(*timeout)),
        Schedules::Pause { schedule } => (schedule, "pause", None),
        Schedules::Resume { schedule } => (schedule, "resume", None),
    };
    let id = id_of_schedule(connection, schedule).await?;
    let request = connection.request(Method::POST, &["v1", "schedules", &id, action])?;
    // A run that was not answered may have made its job: only what can be repeated is.
    let answer = if action == "run" { connection.send_once(request).await? } else { connection.send(request).await? };
    if action == "run" {
        return ended_or_id(connection, out, answer, wait).await;
    }
    out.write(&answer, show::schedule)?;
    Ok(0)
}

async fn all_schedules(connection: &Connection) -> Result<Vec<Value>, Error> {
    let mut all = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let query: Vec<_> = cursor.take().map(|cursor| ("cursor", cursor)).into_iter().collect();
        let page = connection.send(connection.get(&["v1", "schedules"], &query)?).await?;
        all.extend_from_slice(items(&page));
        cursor = page.get("next_cursor").and_then(Value::as_str).map(str::to_owned);
        if cursor.is_none() || items(&page).is_empty() {
            return Ok(all);
        }
    }
}

/// A schedule's id, by its name or as it stands.
async fn id_of_schedule(connection: &Connection, schedule: &str) -> Result<String, Error> {
    if uuid::Uuid::try_parse(schedule).is_ok() {
        return Ok(schedule.to_owned());
    }
    let named = all_schedules(connection).await?.into_iter().find(|found| show::text(found, "name") == schedule);
    let named = named.map(|found| show::text(&found, "id").to_owned());
    named.ok_or_else(|| Error::Refused {
        status: 404,
        problem: json!({"detail": format!("There is no schedule `{schedule}`; `offstage schedules ls` lists them."), "code": "schedule_not_found"}),
    })
}

async fn queues(connection: &Connection, out: &Out, command: &Queues) -> Result<u8, Error> {
    let (queue, action, body) = match command {
        Queues::Ls => {
            let page = connection.send(connection.get(&["v1", "queues"], &[])?).await?;
            for queue in items(&page) {
                out.write(queue, show::queue)?;
            }
            return Ok(0);
        }
        Queues::Pause { queue, kind, reason } => (queue, "pause", json!({"kind": kind, "reason": reason})),
        Queues::Resume { queue, kind } => (queue, "resume", json!({"kind": kind})),
    };
    let request = connection.request(Method::POST, &["v1", "queues", queue, action])?.json(&body);
    let answer = connection.send(request).await?;
    out.write(&answer, show::queue)?;
    Ok(0)
}

/// What a job's end means to whoever waits for it.
fn code_of(job: &Value) -> u8 {
    if show::text(job, "state") == "succeeded" { 0 } else { Error::FAILED }
}
