//! `api pause …`, `api resume …`, `api throttle …`, `api holds`: stops jobs from starting, or bounds how many start in a time.

use clap::Args;
use serde_json::json;
use shared::{
    job::Rate,
    kinds::Registry,
    ledger::{
        LedgerError,
        holds::{self, Pause, Scope, Throttle},
    },
    queue::Queue,
};

use super::{CommandError, Owner, complain, key::time, say, switch::check};

#[derive(Debug, Args)]
pub(super) struct PauseArguments {
    #[command(flatten)]
    scope: Named,
    /// Why, for whoever finds it paused.
    #[arg(long)]
    reason: String,
    /// Who does this.
    #[arg(long, env = "USER", hide_env_values = true)]
    by: String,
}

#[derive(Debug, Args)]
pub(super) struct ResumeArguments {
    #[command(flatten)]
    scope: Named,
    /// Who does this.
    #[arg(long, env = "USER", hide_env_values = true)]
    by: String,
}

#[derive(Debug, Args)]
pub(super) struct ThrottleArguments {
    /// Only this tenant's jobs; all tenants' together when left out.
    #[arg(long)]
    tenant: Option<String>,
    /// Only this queue's; all queues' together when left out.
    #[arg(long, value_parser = super::jobs::queue)]
    queue: Option<Queue>,
    /// Starts in the time.
    #[arg(long, required_unless_present = "off", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    jobs: Option<u32>,
    /// The time in seconds.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Starts at once after a pause.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    burst: u32,
    /// Lift it.
    #[arg(long, conflicts_with = "jobs")]
    off: bool,
    /// Who does this.
    #[arg(long, env = "USER", hide_env_values = true)]
    by: String,
}

#[derive(Debug, Args)]
pub(super) struct HoldsArguments {
    /// Print an object.
    #[arg(long)]
    json: bool,
}

/// What a pause is for: every job of the installation unless it is narrowed.
#[derive(Debug, Args)]
struct Named {
    /// Only this tenant's jobs.
    #[arg(long)]
    tenant: Option<String>,
    /// Only this queue's.
    #[arg(long, value_parser = super::jobs::queue)]
    queue: Option<Queue>,
    /// Only this kind's.
    #[arg(long)]
    kind: Option<String>,
}

pub(super) async fn pause(arguments: PauseArguments, owner: &Owner) -> Result<(), CommandError> {
    check("--reason", &arguments.reason)?;
    check("--by", &arguments.by)?;
    let (scope, names) = scope(owner, &arguments.scope).await?;
    let mut connection = owner.pool.acquire().await.map_err(LedgerError::from)?;
    let paused = holds::pause(&mut connection, &scope, names.as_deref(), &arguments.by, &arguments.reason, owner.clock.now()).await?;
    let what = told(&arguments.scope);
    say(if paused {
        format!("{what}: paused; none starts within a second from now, what runs goes on")
    } else {
        format!("{what}: was paused before; nothing was changed")
    });
    Ok(())
}

pub(super) async fn resume(arguments: ResumeArguments, owner: &Owner) -> Result<(), CommandError> {
    check("--by", &arguments.by)?;
    let (scope, _) = scope(owner, &arguments.scope).await?;
    let mut connection = owner.pool.acquire().await.map_err(LedgerError::from)?;
    let resumed = holds::resume(&mut connection, &scope, &arguments.by, owner.clock.now()).await?;
    let what = told(&arguments.scope);
    say(if resumed {
        format!("{what}: resumed; what waited goes on within seconds")
    } else {
        format!("{what}: was not paused; nothing was changed")
    });
    let left = holds::read(&mut connection).await?.pauses;
    if !left.is_empty() {
        complain("still paused:");
        for pause in &left {
            complain(&pause_line(pause));
        }
    }
    Ok(())
}

pub(super) async fn throttle(arguments: ThrottleArguments, owner: &Owner) -> Result<(), CommandError> {
    check("--by", &arguments.by)?;
    let asked = Named { tenant: arguments.tenant, queue: arguments.queue, kind: None };
    let (scope, _) = scope(owner, &asked).await?;
    let rate = arguments.jobs.map(|jobs| Rate { jobs, seconds: arguments.seconds, burst: arguments.burst });
    let done = holds::throttle(&owner.pool, &scope, rate, &arguments.by, owner.clock.now()).await?;
    let what = told(&asked);
    say(match (rate, done) {
        (Some(rate), _) => format!("{what}: {} starts in {} s, {} at once", rate.jobs, rate.seconds, rate.burst),
        (None, true) => format!("{what}: not throttled any more"),
        (None, false) => format!("{what}: was not throttled; nothing was changed"),
    });
    Ok(())
}

pub(super) async fn list(arguments: &HoldsArguments, owner: &Owner) -> Result<(), CommandError> {
    let mut connection = owner.pool.acquire().await.map_err(LedgerError::from)?;
    let holds = holds::read(&mut connection).await?;
    if arguments.json {
        let pauses: Vec<_> = holds.pauses.iter().map(|pause| {
            json!({"tenant_id": pause.tenant, "queue": pause.queue, "kind": pause.kind, "since": pause.at, "by": pause.by, "reason": pause.reason, "until": pause.until})
        }).collect();
        let throttles: Vec<_> = holds.throttles.iter().map(|throttle| {
            json!({"tenant_id": throttle.tenant, "queue": throttle.queue, "rate": throttle.rate, "since": throttle.at, "by": throttle.by})
        }).collect();
        say(json!({"pauses": pauses, "throttles": throttles}));
        return Ok(());
    }
    if holds.pauses.is_empty() && holds.throttles.is_empty() {
        complain("nothing is paused or throttled");
    }
    holds.pauses.iter().for_each(|pause| say(pause_line(pause)));
    holds.throttles.iter().for_each(|throttle| say(throttle_line(throttle)));
    Ok(())
}

fn pause_line(pause: &Pause) -> String {
    let what = words(pause.tenant.map(|tenant| tenant.to_string()).as_deref(), pause.queue.as_deref(), pause.kind.as_deref());
    let until = pause.until.map_or_else(String::new, |until| format!(" until {}", time(until)));
    format!("{what}  paused {}{until} by {}  {}", time(pause.at), pause.by, pause.reason)
}

fn throttle_line(throttle: &Throttle) -> String {
    let what = words(throttle.tenant.map(|tenant| tenant.to_string()).as_deref(), throttle.queue.as_deref(), None);
    let rate = throttle.rate;
    format!("{what}  {} starts in {} s, {} at once, set {} by {}", rate.jobs, rate.seconds, rate.burst, time(throttle.at), throttle.by)
}

fn told(asked: &Named) -> String {
    words(asked.tenant.as_deref(), asked.queue.map(Queue::name), asked.kind.as_deref())
}

fn words(tenant: Option<&str>, queue: Option<&str>, kind: Option<&str>) -> String {
    let named: Vec<String> = [("tenant", tenant), ("queue", queue), ("kind", kind)]
        .into_iter()
        .filter_map(|(what, name)| Some(format!("{what} {}", name?)))
        .collect();
    if named.is_empty() { "the whole installation".to_owned() } else { named.join(", ") }
}

/// The scope, and the names that jobs of its kind carry.
async fn scope(owner: &Owner, asked: &Named) -> Result<(Scope, Option<Vec<&'static str>>), CommandError> {
    let tenant = match &asked.tenant {
        Some(tenant) => Some(owner.tenant(tenant).await?),
        None => None,
    };
    let Some(kind) = &asked.kind else { return Ok((Scope { tenant, queue: asked.queue, kind: None }, None)) };
    let registry = Registry::new(true);
    let Some(entry) = registry.find(kind) else {
        let known: Vec<_> = registry.entries().map(|entry| entry.name).collect();
        return Err(CommandError::Argument(format!("there is no kind `{kind}`; there are: {}", known.join(", "))));
    };
    let names = entry.aliases.iter().copied().chain([entry.name]).collect();
    Ok((Scope { tenant, queue: asked.queue, kind: Some(entry.name.to_owned()) }, Some(names)))
}
