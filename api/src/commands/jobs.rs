//! `api jobs …`: dead letters, as operators see them, with all that lay beneath an error.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use shared::{
    job::{JobId, State},
    ledger::{
        LedgerError,
        dead::{self, Filter, Purpose},
        find,
    },
    queue::Queue,
    tenant,
};
use uuid::Uuid;

use super::{CommandError, Owner, complain, key::time, say};

/// Where a dry run stops counting.
const MOST_COUNTED: i64 = 1_000_000;

#[derive(Debug, Subcommand)]
pub(super) enum JobsCommand {
    /// Show a job with its runs and the causes of their errors.
    Show {
        /// The job's id.
        id: Uuid,
        /// The tenant's name.
        #[arg(long)]
        tenant: String,
    },
    /// Run all dead letters again that match, in small batches.
    Redrive(Many),
    /// Remove all dead letters for good that match, in small batches.
    Discard(Many),
}

#[derive(Debug, Args)]
pub(super) struct Many {
    /// The tenant's name.
    #[arg(long)]
    tenant: String,
    /// The state they are in.
    #[arg(long, value_enum, default_value_t = Dead::Failed)]
    state: Dead,
    /// Only this kind's.
    #[arg(long)]
    kind: Option<String>,
    /// Only this queue's.
    #[arg(long, value_parser = queue)]
    queue: Option<Queue>,
    /// Only those whose last run failed with this code.
    #[arg(long)]
    error_code: Option<String>,
    /// Only this end user's.
    #[arg(long)]
    owner: Option<String>,
    /// Only those that ended then or later, such as 2026-02-28T12:00:00Z.
    #[arg(long)]
    ended_from: Option<DateTime<Utc>>,
    /// Only those that ended before; now when left out.
    #[arg(long)]
    ended_before: Option<DateTime<Utc>>,
    /// Only tell how many they are.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dead {
    Failed,
    Cancelled,
    Expired,
}

pub(super) fn queue(name: &str) -> Result<Queue, String> {
    Queue::from_name(name).ok_or_else(|| format!("there are {}", Queue::ALL.map(Queue::name).join(", ")))
}

impl JobsCommand {
    pub(super) async fn run(self, owner: &Owner) -> Result<(), CommandError> {
        match self {
            Self::Show { id, tenant } => show(owner, JobId(id), &tenant).await,
            Self::Redrive(many) => change(owner, many, Purpose::Redrive).await,
            Self::Discard(many) => change(owner, many, Purpose::Discard).await,
        }
    }
}

async fn show(owner: &Owner, id: JobId, name: &str) -> Result<(), CommandError> {
    let number = owner.tenant(name).await?;
    let mut transaction = tenant::transaction(&owner.pool, number).await?;
    let Some(job) = find::job(&mut transaction, number, None, id).await? else {
        return Err(CommandError::NoJob(id, name.to_owned()));
    };
    let attempts = find::attempts(&mut transaction, number, id).await?;
    let runs: Vec<Value> = attempts
        .into_iter()
        .map(|run| {
            json!({
                "run": run.run, "attempt": run.attempt, "outcome": run.outcome, "started_at": time(run.started_at),
                "finished_at": time(run.finished_at), "error": run.error,
            })
        })
        .collect();
    let shown = json!({
        "id": id, "tenant": name, "kind": job.kind, "queue": job.queue, "owner": job.owner, "state": job.state.word(),
        "reason": (job.state == State::Waiting).then(|| job.reason.word()), "attempt": job.attempt,
        "attempts_allowed": job.attempts_allowed, "created_at": time(job.created_at), "run_at": time(job.run_at),
        "finished_at": job.finished_at.map(time), "runs": runs,
    });
    say(format!("{shown:#}"));
    Ok(())
}

async fn change(owner: &Owner, many: Many, purpose: Purpose) -> Result<(), CommandError> {
    let number = owner.tenant(&many.tenant).await?;
    let now = owner.clock.now();
    let filter = Filter {
        state: match many.state {
            Dead::Failed => State::Failed,
            Dead::Cancelled => State::Cancelled,
            Dead::Expired => State::Expired,
        },
        kind: many.kind,
        queue: many.queue,
        error_code: many.error_code,
        owner: many.owner,
        ended_from: many.ended_from,
        ended_before: many.ended_before.unwrap_or(now),
    };
    if many.dry_run {
        let mut transaction = tenant::transaction(&owner.pool, number).await?;
        let count = dead::count(&mut transaction, number, &filter, purpose, now, MOST_COUNTED).await?;
        let more = if count == MOST_COUNTED { " or more" } else { "" };
        say(format!("{count}{more} match; nothing was changed"));
        return Ok(());
    }
    let mut changed = 0;
    loop {
        let now = owner.clock.now();
        let mut transaction = tenant::transaction(&owner.pool, number).await?;
        let batch = match purpose {
            Purpose::Redrive => dead::redrive(&mut transaction, number, &filter, now, dead::BATCH).await?.len(),
            Purpose::Discard => dead::discard(&mut transaction, number, &filter, now, dead::BATCH).await?.len(),
        };
        transaction.commit().await.map_err(LedgerError::from)?;
        if batch == 0 {
            break;
        }
        changed += batch;
        if changed % 10_000 == 0 {
            complain(&format!("{changed} so far"));
        }
    }
    match purpose {
        Purpose::Redrive => say(format!("{changed} wait to run again; dispatchers find them within 5 s")),
        Purpose::Discard => say(format!("{changed} are gone for good")),
    }
    Ok(())
}
