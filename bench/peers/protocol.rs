//! What the Rust peers say to the harness, and how (`README.md` beside this file). Each includes it, for each is a workspace of its own.
#![allow(dead_code)]

use std::{
    io::{BufRead, Write, stdin, stdout},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

/// Jobs of one bulk call.
pub const BULK: usize = 1_000;
/// How often a worker says how far it is.
const REPORT: Duration = Duration::from_millis(10);

/// A command and its numbers.
pub struct Command {
    pub name: String,
    numbers: Vec<usize>,
}

impl Command {
    pub fn of_process() -> Self {
        let mut arguments = std::env::args().skip(1);
        let name = arguments.next().expect("a command");
        Self { name, numbers: arguments.map(|number| number.parse().expect("a number")).collect() }
    }

    pub fn number(&self, index: usize) -> usize {
        self.numbers[index]
    }
}

pub fn redis_url() -> String {
    std::env::var("BENCH_REDIS_URL").expect("BENCH_REDIS_URL")
}

/// The wall clock in milliseconds since 1970, with a fraction.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs_f64() * 1e3
}

pub fn say(event: &Value) {
    let mut out = stdout().lock();
    writeln!(out, "{event}").expect("somebody listens");
    out.flush().expect("somebody listens");
}

pub fn say_versions(text: &str) {
    say(&json!({"event": "versions", "text": text}));
}

pub fn say_begun() {
    say(&json!({"event": "begun", "at": now()}));
}

pub fn say_done() {
    say(&json!({"event": "done", "at": now()}));
}

pub fn line() {
    stdin().lock().read_line(&mut String::new()).expect("a line");
}

/// Says that it is ready and waits for a line.
pub fn gate() {
    say(&json!({"event": "ready"}));
    line();
}

/// A payload's `pad`, so that the JSON object is so large.
pub fn pad(bytes: usize) -> String {
    "x".repeat(bytes - r#"{"pad":""}"#.len())
}

/// What a worker did so far.
#[derive(Default)]
pub struct Tally {
    completed: AtomicU64,
    /// Microseconds since 1970; 0 for never.
    begun: AtomicU64,
    last: AtomicU64,
}

impl Tally {
    pub const fn new() -> Self {
        Self { completed: AtomicU64::new(0), begun: AtomicU64::new(0), last: AtomicU64::new(0) }
    }

    /// A job starts.
    pub fn begin(&self) {
        if self.begun.load(Ordering::Relaxed) == 0 {
            let _ = self.begun.compare_exchange(0, micros(), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// A job is completed.
    pub fn complete(&self) {
        self.last.fetch_max(micros(), Ordering::Relaxed);
        self.completed.fetch_add(1, Ordering::Relaxed);
    }

    /// Says how far it is until it is told to stop, then when it began and ended, and ends the program.
    pub fn report(&'static self) {
        thread::spawn(|| {
            line();
            say(&json!({"event": "begun", "at": millis(&self.begun)}));
            say(&json!({"event": "done", "at": millis(&self.last)}));
            std::process::exit(0);
        });
        thread::spawn(|| {
            let mut said = 0;
            loop {
                let completed = self.completed.load(Ordering::Relaxed);
                if completed != said {
                    said = completed;
                    say(&json!({"event": "count", "jobs": completed}));
                }
                thread::sleep(REPORT);
            }
        });
    }
}

fn micros() -> u64 {
    (now() * 1e3) as u64
}

fn millis(time: &AtomicU64) -> f64 {
    time.load(Ordering::Relaxed) as f64 / 1e3
}

/// How long jobs waited for their start.
#[derive(Default)]
pub struct Waits(Mutex<Vec<f64>>);

impl Waits {
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// A job that was sent then starts now; with the last one the program says so and ends.
    pub fn started(&self, sent: f64, jobs: usize) {
        let waited = now() - sent;
        let mut waits = self.0.lock().expect("no panic");
        waits.push(waited);
        if waits.len() == jobs {
            say(&json!({"event": "done", "at": now(), "latencies": *waits}));
            std::process::exit(0);
        }
    }
}

/// When each of so many a second is due.
pub async fn pace<F: Future<Output = ()> + Send + 'static>(jobs: usize, rate: usize, add: impl Fn(f64) -> F) {
    let begin = tokio::time::Instant::now();
    let mut adding = Vec::new();
    say_begun();
    for number in 0..jobs {
        tokio::time::sleep_until(begin + Duration::from_secs_f64(number as f64 / rate as f64)).await;
        adding.push(tokio::spawn(add(now())));
    }
    for added in adding {
        added.await.expect("it was added");
    }
    say_done();
}

/// Calls `step` until it answers false, so many at a time.
pub async fn repeat<F: Future<Output = ()> + Send + 'static>(
    jobs: usize,
    each: usize,
    in_flight: usize,
    step: impl Fn(usize) -> F + Clone + Send + Sync + 'static,
) {
    let left = std::sync::Arc::new(AtomicU64::new(jobs as u64));
    say_begun();
    let loops: Vec<_> = (0..in_flight)
        .map(|_| {
            let (left, step) = (left.clone(), step.clone());
            tokio::spawn(async move {
                loop {
                    let before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(each as u64)));
                    let count = (before.unwrap_or(0) as usize).min(each);
                    if count == 0 {
                        return;
                    }
                    step(count).await;
                }
            })
        })
        .collect();
    for one in loops {
        one.await.expect("it was added");
    }
    say_done();
}
