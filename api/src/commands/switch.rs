//! `api switch …`: stops all outward effects, and lets them go on (R82).

use clap::{Args, Subcommand};
use serde_json::json;
use shared::{
    kinds::Registry,
    ledger::switches::{self, Scope, Switch},
};

use super::{CommandError, Owner, complain, key::time, say};

/// The longest reason or name, in characters.
const LONGEST: usize = 500;

#[derive(Debug, Subcommand)]
pub(super) enum SwitchCommand {
    /// Stop outward effects: jobs that would have any wait, no attempt used. What is on its way already is not called back.
    Off {
        #[command(flatten)]
        scope: Named,
        /// Why, for whoever finds it off.
        #[arg(long)]
        reason: String,
        /// Who does this.
        #[arg(long, env = "USER", hide_env_values = true)]
        by: String,
    },
    /// Let them go on: what waited runs within seconds.
    On {
        #[command(flatten)]
        scope: Named,
        /// Who does this.
        #[arg(long, env = "USER", hide_env_values = true)]
        by: String,
    },
    /// Show the switches that are off.
    List {
        /// Also those that are on again, newest first.
        #[arg(long)]
        all: bool,
        /// Print a list of objects.
        #[arg(long)]
        json: bool,
    },
}

/// What a switch is for: all outward effects of the installation unless it is narrowed.
#[derive(Debug, Args)]
pub(super) struct Named {
    /// Only this tenant's effects.
    #[arg(long)]
    tenant: Option<String>,
    /// Only this kind's.
    #[arg(long)]
    kind: Option<String>,
}

impl SwitchCommand {
    pub(super) async fn run(self, owner: &Owner) -> Result<(), CommandError> {
        match self {
            Self::Off { scope, reason, by } => off(owner, &scope, &reason, &by).await,
            Self::On { scope, by } => on(owner, &scope, &by).await,
            Self::List { all, json } => list(owner, all, json).await,
        }
    }
}

async fn off(owner: &Owner, asked: &Named, reason: &str, by: &str) -> Result<(), CommandError> {
    check("--reason", reason)?;
    check("--by", by)?;
    let (scope, names) = scope(owner, asked).await?;
    let turned = switches::turn_off(&owner.pool, &scope, names.as_deref(), by, reason, owner.clock.now()).await?;
    if turned {
        say(format!("outward effects of {} are off; jobs that would have any wait from now on", told(asked)));
    } else {
        say(format!("outward effects of {} were off before; nothing was changed", told(asked)));
    }
    Ok(())
}

async fn on(owner: &Owner, asked: &Named, by: &str) -> Result<(), CommandError> {
    check("--by", by)?;
    let (scope, _) = scope(owner, asked).await?;
    if switches::turn_on(&owner.pool, &scope, by, owner.clock.now()).await? {
        say(format!("outward effects of {} are on again; what waited goes on within seconds", told(asked)));
    } else {
        say(format!("the switch for {} was not off; nothing was changed", told(asked)));
    }
    let others = switches::list(&owner.pool, false).await?;
    if !others.is_empty() {
        complain("still off, and stopping what they name:");
        for switch in &others {
            complain(&line(switch));
        }
    }
    Ok(())
}

async fn list(owner: &Owner, all: bool, as_json: bool) -> Result<(), CommandError> {
    let switches = switches::list(&owner.pool, all).await?;
    if as_json {
        let objects: Vec<_> = switches
            .iter()
            .map(|switch| {
                let Switch { tenant, kind, off_at, off_by, reason, on_at, on_by } = switch;
                json!({"tenant": tenant, "kind": kind, "off_at": off_at, "off_by": off_by, "reason": reason, "on_at": on_at, "on_by": on_by})
            })
            .collect();
        say(json!(objects));
        return Ok(());
    }
    if switches.is_empty() {
        complain("no switch is off: outward effects are on");
    }
    for switch in &switches {
        say(line(switch));
    }
    Ok(())
}

fn line(switch: &Switch) -> String {
    let asked = Named { tenant: switch.tenant.clone(), kind: switch.kind.clone() };
    let on = match (switch.on_at, &switch.on_by) {
        (Some(at), by) => format!("  on {} by {}", time(at), by.as_deref().unwrap_or("somebody")),
        (None, _) => String::new(),
    };
    format!("{}  off {} by {}{on}  {}", told(&asked), time(switch.off_at), switch.off_by, switch.reason)
}

fn told(asked: &Named) -> String {
    match (&asked.tenant, &asked.kind) {
        (None, None) => "the whole installation".to_owned(),
        (Some(tenant), None) => format!("tenant {tenant}"),
        (None, Some(kind)) => format!("kind {kind}"),
        (Some(tenant), Some(kind)) => format!("tenant {tenant}, kind {kind}"),
    }
}

/// The scope, and the names that jobs of its kind carry.
async fn scope(owner: &Owner, asked: &Named) -> Result<(Scope, Option<Vec<&'static str>>), CommandError> {
    let tenant = match &asked.tenant {
        Some(tenant) => Some(owner.tenant(tenant).await?),
        None => None,
    };
    let Some(kind) = &asked.kind else { return Ok((Scope { tenant, kind: None }, None)) };
    let registry = Registry::new(true);
    let Some(entry) = registry.find(kind) else {
        let known: Vec<_> = registry.entries().filter(|entry| entry.outward).map(|entry| entry.name).collect();
        return Err(CommandError::Argument(format!("there is no kind `{kind}`; those with outward effects are: {}", known.join(", "))));
    };
    if !entry.outward {
        complain(&format!("{} has no outward effects: this switch stops nothing", entry.name));
    }
    let names = entry.aliases.iter().copied().chain([entry.name]).collect();
    Ok((Scope { tenant, kind: Some(entry.name.to_owned()) }, Some(names)))
}

pub(super) fn check(argument: &str, text: &str) -> Result<(), CommandError> {
    let length = text.trim().chars().count();
    if !(1..=LONGEST).contains(&length) || text.chars().any(char::is_control) {
        return Err(CommandError::Argument(format!("{argument} must have 1 to {LONGEST} characters on one line")));
    }
    Ok(())
}
