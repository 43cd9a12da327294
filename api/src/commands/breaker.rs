//! `api breaker …`: shows circuit breakers, keeps them open, or lets them count and stop nothing (R40).

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde_json::json;
use shared::{
    byok::Vendor,
    ledger::{
        LedgerError,
        breakers::{self, Override, Standing},
    },
    tenant,
};

use super::{CommandError, Owner, complain, key::time, say, switch::check};

#[derive(Debug, Subcommand)]
pub(super) enum BreakerCommand {
    /// Show the breakers that have ever opened, and what is set.
    List {
        /// Print an object.
        #[arg(long)]
        json: bool,
    },
    /// Keep breakers open: no call goes through, jobs wait, no attempt used; a task with a fallback uses that.
    ForceOpen {
        #[command(flatten)]
        named: Named,
        /// Why, for whoever finds it so.
        #[arg(long)]
        reason: String,
        /// Who does this.
        #[arg(long, env = "USER", hide_env_values = true)]
        by: String,
    },
    /// Let breakers count and stop nothing.
    MetricsOnly {
        #[command(flatten)]
        named: Named,
        /// Why, for whoever finds it so.
        #[arg(long)]
        reason: String,
        /// Who does this.
        #[arg(long, env = "USER", hide_env_values = true)]
        by: String,
    },
    /// Lift what was set: breakers go by what they measure again.
    Auto {
        #[command(flatten)]
        named: Named,
        /// Who does this.
        #[arg(long, env = "USER", hide_env_values = true)]
        by: String,
    },
}

/// Which breakers: all of the installation unless it is narrowed.
#[derive(Debug, Args)]
pub(super) struct Named {
    /// Only those of this tenant's providers.
    #[arg(long)]
    tenant: Option<String>,
    /// Only those of this provider, as manifests call it.
    #[arg(long)]
    provider: Option<String>,
}

impl BreakerCommand {
    pub(super) async fn run(self, owner: &Owner) -> Result<(), CommandError> {
        match self {
            Self::List { json } => list(owner, json).await,
            Self::ForceOpen { named, reason, by } => set(owner, &named, Some("forced_open"), &by, &reason).await,
            Self::MetricsOnly { named, reason, by } => set(owner, &named, Some("metrics_only"), &by, &reason).await,
            Self::Auto { named, by } => set(owner, &named, None, &by, "lifted").await,
        }
    }
}

async fn set(owner: &Owner, named: &Named, mode: Option<&str>, by: &str, reason: &str) -> Result<(), CommandError> {
    check("--reason", reason)?;
    check("--by", by)?;
    let tenant = match &named.tenant {
        Some(tenant) => Some(owner.tenant(tenant).await?),
        None => None,
    };
    // What is set for a provider that is gone must be lifted all the same.
    if let (Some(provider), Some(_)) = (&named.provider, mode) {
        must_be_known(owner, tenant, named.tenant.as_deref(), provider).await?;
    }
    let of = (tenant, named.provider.as_deref());
    let changed = breakers::set(&owner.pool, of, mode, (by, reason), owner.clock.now()).await?;
    let what = told(named.tenant.as_deref(), named.provider.as_deref());
    say(match (mode, changed) {
        (Some("forced_open"), true) => format!("{what}: kept open; no call begins within some two seconds from now"),
        (Some(_), true) => format!("{what}: count and stop nothing, within some two seconds from now"),
        (None, true) => format!("{what}: go by what they measure again; what waited goes on within seconds"),
        (_, false) => format!("{what}: was so before; nothing was changed"),
    });
    Ok(())
}

/// The most providers that a refusal lists.
const MOST_LISTED: i64 = 20;

/// A name that nothing has would be set, and hold back nothing: whoever mistypes one while a provider burns has to learn it.
async fn must_be_known(owner: &Owner, tenant: Option<i32>, tenant_name: Option<&str>, provider: &str) -> Result<(), CommandError> {
    // Keys that users bring are checked at their vendor's, whether or not a manifest has it: that breaker goes by the vendor's word.
    if Vendor::from_word(provider).is_some() || tenant::has_provider(&owner.pool, tenant, provider).await? {
        return Ok(());
    }
    let listed = tenant::provider_names(&owner.pool, tenant, MOST_LISTED).await?;
    let has = match listed.as_slice() {
        [] => "there is none at all".to_owned(),
        names => format!("there is {}", names.join(", ")),
    };
    let whose = tenant_name.map_or_else(|| "no manifest has".to_owned(), |name| format!("the manifest of tenant {name} does not have"));
    Err(CommandError::Argument(format!("{whose} the provider `{provider}`, so nothing was set; {has}")))
}

/// The names of the tenants whose breakers or settings these are.
async fn tenants(owner: &Owner, standings: &[Standing], set: &[Override]) -> Result<BTreeMap<i32, String>, LedgerError> {
    let mut tenants: Vec<i32> = standings.iter().map(|standing| standing.tenant).chain(set.iter().filter_map(|set| set.tenant)).collect();
    tenants.sort_unstable();
    tenants.dedup();
    tenant::names(&owner.pool, &tenants).await
}

async fn list(owner: &Owner, as_json: bool) -> Result<(), CommandError> {
    let (standings, set) = (breakers::list(&owner.pool).await?, breakers::overrides(&owner.pool).await?);
    let tenants = tenants(owner, &standings, &set).await?;
    if as_json {
        let standings: Vec<_> = standings
            .iter()
            .map(|standing| {
                let Standing { name, tenant, provider, credential, phase, since, until, calls, failures, slow, opened, forced } = standing;
                json!({
                    "name": name, "tenant": tenants.get(tenant), "tenant_id": tenant, "provider": provider, "credential": credential, "phase": phase, "since": since,
                    "until": until, "calls": calls, "failures": failures, "slow": slow, "opened": opened, "forced": forced,
                })
            })
            .collect();
        let set: Vec<_> = set
            .iter()
            .map(|set| {
                let Override { tenant, provider, mode, at, by, reason } = set;
                let name = tenant.and_then(|tenant| tenants.get(&tenant));
                json!({"tenant": name, "tenant_id": tenant, "provider": provider, "mode": mode, "since": at, "by": by, "reason": reason})
            })
            .collect();
        say(json!({"breakers": standings, "set": set}));
        return Ok(());
    }
    if standings.is_empty() && set.is_empty() {
        complain("no circuit breaker has ever opened, and none is set");
    }
    for standing in &standings {
        let Standing { name, tenant, phase, since, until, calls, failures, slow, opened, forced, .. } = standing;
        let tenant = tenants.get(tenant).map_or("-", String::as_str);
        let until = until.filter(|_| phase == "open").map_or_else(String::new, |until| format!(", tried again {}", time(until)));
        let forced = if *forced { ", kept open by an operator" } else { "" };
        say(format!(
            "{tenant}  {name}  {phase} since {}{until}{forced}; opened {opened} times, last with {failures} failed and {slow} slow of {calls} calls",
            time(*since)
        ));
    }
    for Override { tenant, provider, mode, at, by, reason } in &set {
        let tenant = tenant.map(|tenant| tenants.get(&tenant).cloned().unwrap_or_else(|| tenant.to_string()));
        say(format!("{}  {mode} since {} by {by}  {reason}", told(tenant.as_deref(), provider.as_deref()), time(*at)));
    }
    Ok(())
}

fn told(tenant: Option<&str>, provider: Option<&str>) -> String {
    match (tenant, provider) {
        (None, None) => "all circuit breakers".to_owned(),
        (Some(tenant), None) => format!("circuit breakers of tenant {tenant}"),
        (None, Some(provider)) => format!("circuit breakers of provider {provider}"),
        (Some(tenant), Some(provider)) => format!("circuit breakers of tenant {tenant}, provider {provider}"),
    }
}
