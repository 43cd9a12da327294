//! A suspect's run in a process of its own: `worker trial`, a child that runs one job's handler and says what came of it.
//!
//! Workers are lost for many reasons (a killed pod, a machine that fails, a neighbour's crash), and none says which of the jobs in
//! them was to blame. A child's death while its parent lives does: nobody else was in it. So a job under which workers were lost
//! repeatedly runs like this, beside any number of others, and what kills its child is proved to be the job (docs/adr/0003).
//!
//! ```text
//!  parent → stdin   the claim, one line of JSON; later perhaps `cancel`; its end is the parent's end
//!  child  → stdout  `started`, then the verdict, one line of JSON
//! ```
//!
//! What must stay true: the parent holds the claim, the lease and the policy, and settles; a child never outlives its parent's
//! interest in it (killed when the run is dropped, and by the kernel when the parent dies); a child that could not even
//! start says nothing of its job; what ends all processes of a worker alike is no proof.

pub mod child;

use std::{
    collections::BTreeSet,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    pin::Pin,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use shared::{
    job::{Failure, FailureClass, Outcome, Success},
    ledger::claim::ClaimedJob,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::Command,
};
use tokio_util::sync::CancellationToken;

/// Children of one process at a time: each has a runtime and a connection of its own.
pub const AT_ONCE: usize = 8;
/// What a child may take to start, on top of its job's time.
pub const START_WITHIN: Duration = Duration::from_secs(5);
/// The pause before a trial that could not be started is tried again.
const START_AGAIN: Duration = Duration::from_secs(5);
/// The most that a child may say: twice the largest result.
const LONGEST_WORDS: u64 = 256 * 1024;
/// The exit code of a child whose handler kept its thread: `EX_TEMPFAIL` and 11, none of the worker's own.
const SPINNING: i32 = 86;

/// What a child says at the end.
#[derive(Debug, Serialize, Deserialize)]
enum Verdict {
    Succeeded(Success),
    Failed(Told),
    Snoozed(Duration),
    SwitchedOff,
    Paused,
    BreakerOpen(String),
    BreakerProbed(String),
    HandedBack,
}

/// A failure on its way from one process to another.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    class: FailureClass,
    code: String,
    message: String,
    for_owner: Option<String>,
    causes: Vec<String>,
    retry_after: Option<Duration>,
}

impl Verdict {
    fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Succeeded(success) => Self::Succeeded(success),
            Outcome::Failed(Failure { class, code, message, for_owner, causes, retry_after }) => {
                Self::Failed(Told { class, code: code.to_owned(), message, for_owner, causes, retry_after })
            }
            Outcome::Snoozed(pause) => Self::Snoozed(pause),
            Outcome::SwitchedOff => Self::SwitchedOff,
            Outcome::Paused => Self::Paused,
            Outcome::BreakerOpen(breaker) => Self::BreakerOpen(breaker),
            Outcome::BreakerProbed(breaker) => Self::BreakerProbed(breaker),
            // None of these is a handler's.
            _ => Self::HandedBack,
        }
    }

    fn outcome(self) -> Outcome {
        match self {
            Self::Succeeded(success) => Outcome::Succeeded(success),
            Self::Failed(Told { class, code, message, for_owner, causes, retry_after }) => {
                Outcome::Failed(Failure { class, code: known(code), message, for_owner, causes, retry_after })
            }
            Self::Snoozed(pause) => Outcome::Snoozed(pause),
            Self::SwitchedOff => Outcome::SwitchedOff,
            Self::Paused => Outcome::Paused,
            Self::BreakerOpen(breaker) => Outcome::BreakerOpen(breaker),
            Self::BreakerProbed(breaker) => Outcome::BreakerProbed(breaker),
            Self::HandedBack => Outcome::HandedBack,
        }
    }
}

/// The static text of a failure's code. Codes are a few words of ours; each is kept for good, once.
fn known(code: String) -> &'static str {
    const MOST: usize = 1_000;
    static CODES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut codes = CODES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = codes.get(code.as_str()) {
        return known;
    }
    if codes.len() >= MOST {
        return "failed";
    }
    let kept: &'static str = code.leak();
    codes.insert(kept);
    kept
}

/// What keeps a trial from saying anything about its job.
#[derive(Debug, thiserror::Error)]
enum TrialError {
    #[error("the child could not be started")]
    Start(#[source] std::io::Error),
    #[error("the claim could not be written down for the child")]
    Encode(#[source] serde_json::Error),
    #[error("the child could not be talked to")]
    Talk(#[source] std::io::Error),
    #[error("the child ended before it began the job: {0}")]
    NeverStarted(ExitStatus),
    #[error("the child said something that is no verdict")]
    Decode(#[source] serde_json::Error),
}

/// Runs a job in a child. Dropping it kills the child.
#[must_use]
pub fn run(
    job: Arc<ClaimedJob>,
    cancelled: CancellationToken,
    draining: CancellationToken,
) -> Pin<Box<dyn Future<Output = Outcome> + Send>> {
    Box::pin(async move {
        metrics::counter!("offstage_trials_total", "kind" => job.kind.clone()).increment(1);
        match converse(&job, &cancelled, &draining).await {
            Ok(outcome) => {
                if let Outcome::Died(how) = &outcome {
                    metrics::counter!("offstage_trials_died_total", "kind" => job.kind.clone()).increment(1);
                    tracing::error!(job = %job.id, kind = job.kind, deaths = job.deaths + 1, how, "a job's own process died under it");
                }
                outcome
            }
            Err(error) => {
                tracing::error!(job = %job.id, error = &error as &dyn std::error::Error, "a trial said nothing of its job; it comes again");
                Outcome::Deferred(START_AGAIN)
            }
        }
    })
}

async fn converse(job: &ClaimedJob, cancelled: &CancellationToken, draining: &CancellationToken) -> Result<Outcome, TrialError> {
    let mut claim = serde_json::to_vec(job).map_err(TrialError::Encode)?;
    claim.push(b'\n');
    let mut child = Command::new(program())
        .arg("trial")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        // A Ctrl-C at the terminal is for the parent, who decides what becomes of its runs.
        .process_group(0)
        .spawn()
        .map_err(TrialError::Start)?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(TrialError::Start(std::io::ErrorKind::BrokenPipe.into()));
    };
    // A child that is gone already shows below, by how it ended.
    let _ = stdin.write_all(&claim).await;
    let mut lines = BufReader::new(stdout.take(LONGEST_WORDS)).lines();
    let (mut started, mut asked, mut verdict) = (false, false, None);
    loop {
        tokio::select! {
            line = lines.next_line() => match line.map_err(TrialError::Talk)? {
                None => break,
                Some(line) if line == child::STARTED => started = true,
                Some(line) => verdict = Some(serde_json::from_str::<Verdict>(&line).map_err(TrialError::Decode)?),
            },
            () = cancelled.cancelled(), if !asked => {
                asked = true;
                let _ = stdin.write_all(child::CANCEL.as_bytes()).await;
            }
        }
    }
    let status = child.wait().await.map_err(TrialError::Talk)?;
    if let Some(verdict) = verdict {
        return Ok(verdict.outcome());
    }
    if !started {
        return Err(TrialError::NeverStarted(status));
    }
    if draining.is_cancelled() && status.signal().is_some() {
        // Whoever stops the worker may well send its children the same.
        return Ok(Outcome::HandedBack);
    }
    Ok(Outcome::Died(words(status)))
}

/// How a child ended, for a person.
fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(SPINNING), _) => "it computed for too long without letting its thread go".to_owned(),
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(6)) => "it was aborted (SIGABRT: out of memory, a stack overflow, or a panic in a panic)".to_owned(),
        (None, Some(9)) => "it was killed (SIGKILL: mostly for want of memory)".to_owned(),
        (None, Some(11)) => "it broke its memory (SIGSEGV)".to_owned(),
        (None, signal) => format!("a signal ended it ({})", signal.unwrap_or_default()),
    }
}

/// This very program, also where its file has been replaced by a newer one meanwhile.
fn program() -> PathBuf {
    let ourselves = PathBuf::from("/proc/self/exe");
    if ourselves.exists() { ourselves } else { std::env::current_exe().unwrap_or_else(|_| PathBuf::from("worker")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_arrive_as_they_were_spoken() {
        let pause = Duration::from_millis(1_500);
        let spoken = [
            Outcome::Succeeded(Success::with(serde_json::json!({"rows": 3}))),
            Outcome::Failed(Failure::limited("slow_down", "come back", pause).caused_by(&std::io::Error::other("why"))),
            Outcome::Snoozed(pause),
            Outcome::SwitchedOff,
            Outcome::Paused,
        ];
        for outcome in spoken {
            let text = serde_json::to_string(&Verdict::of(outcome.clone())).unwrap();
            assert!(!text.contains('\n'), "one line: {text}");
            let heard = serde_json::from_str::<Verdict>(&text).unwrap().outcome();
            assert_eq!(format!("{heard:?}"), format!("{outcome:?}"));
        }
    }
}
