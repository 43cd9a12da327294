//! `stats.refresh`: asks for a statistic where it comes from, once for everybody who wants it now.
//!
//! What must stay true: one run at a time asks for a statistic, in the whole fleet (the lease), and whoever comes while it does gets what it
//! brings; each call is taken from the vendor's budget first, and what the answer says of that is written down before anything else;
//! a vendor that is away, gone, or tells what can't be believed takes no good figure away.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use shared::{
    job::{Failure, Interrupt, Success},
    kinds::StatsRefresh,
    ledger::{
        statistics::{self, Held, Outcome, Standing, figures_json},
        vendors::{self, Taken},
    },
    random,
    statistic::{activity, implausible},
    tenant::{StatisticSource, Tenant},
};
use tokio::time::{Instant, sleep};
use url::Url;
use uuid::Uuid;

use super::{JobContext, export};
use crate::clients::vendors::{Question, Reply, Said, Tags};

/// How long a run may hold a statistic: longer than a run may last.
const LEASE: Duration = Duration::from_secs(150);

/// Redirects, and tokens made anew, of one run.
const MOST_CALLS: usize = 5;

/// How long a run waits for another that asks for the same, or asks the same vendor, before it makes room.
const TURN_WITHIN: Duration = Duration::from_secs(5);

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// When to look again for what another run holds.
const HELD_FOR: Duration = Duration::from_secs(2);

/// By so much of a wait, and so many seconds at most, those who waited together are spread.
const SPREAD: f64 = 0.1;
const WIDEST_SPREAD: f64 = 30.0;

/// Refreshes a statistic.
pub(super) async fn run(payload: StatsRefresh, context: JobContext) -> Result<Success, Interrupt> {
    let tenant = export::tenant(&context).await?;
    let Some(source) = tenant.manifest.stats.get(&payload.source) else {
        let message = format!("the product's manifest has no statistic `{}` any more", payload.source);
        return Err(Failure::permanent("statistic_undeclared", message).into());
    };
    let services = &context.services;
    // The job's own: whoever takes it over after a crash goes on where it was, and waits for nobody who is dead.
    let lease = context.job.id.0;
    let until = Instant::now() + TURN_WITHIN;
    let held = loop {
        let now = services.clock.now();
        match statistics::lease(&services.pool, tenant.id, &payload.source, lease, LEASE, now).await? {
            Some(held) => break held,
            None if Instant::now() >= until => return Err(Interrupt::Snoozed(spread(HELD_FOR))),
            None => sleep(LOOK_EVERY.mul_f64(0.5 + random::fraction())).await,
        }
    };
    let refresh = Refresh { context: &context, tenant: &tenant, name: &payload.source, source, held };
    if let Some(measured_at) = refresh.held.measured_at.filter(|at| *at > context.job.counted_from) {
        // Somebody else brought it since this one was due.
        statistics::release(&services.pool, tenant.id, &payload.source, lease).await?;
        return Ok(Success::with(json!({ "outcome": "joined", "measured_at": measured_at })));
    }
    let done = refresh.run().await;
    if let Err(Interrupt::Failed(failure)) = &done {
        let outcome = Outcome::Failed { code: failure.code, message: failure.message.clone() };
        refresh.keep(&outcome).await?;
    }
    done
}

struct Refresh<'a> {
    context: &'a JobContext,
    tenant: &'a Tenant,
    name: &'a str,
    source: &'a StatisticSource,
    held: Held,
}

impl Refresh<'_> {
    async fn run(&self) -> Result<Success, Interrupt> {
        let vendors = &self.context.services.clients.vendors;
        let question = vendors.question(&self.tenant.name, self.source)?;
        // What was learned of another question is nothing worth.
        let is_same = self.held.asked.as_deref() == Some(question.asked.as_slice());
        // Whoever told us how often it wants to be asked this (`x-poll-interval`) is asked no sooner, whoever wishes it.
        let now = self.context.services.clock.now();
        if let Some(until) = self.held.not_before.filter(|until| is_same && *until > now) {
            return Err(self.put_off(until, now).await?);
        }
        let tags = if is_same && self.held.figures.is_some() {
            Tags { etag: self.held.etag.clone(), last_modified: self.held.last_modified.clone() }
        } else {
            Tags::default()
        };
        let remembered = self.held.moved_to.as_deref().filter(|_| is_same).and_then(|place| Url::parse(place).ok());
        let mut moved_to = remembered.filter(|place| question.may_go_to(place));
        let mut place = moved_to.clone().unwrap_or_else(|| question.url.clone());
        let mut went_back = false;
        for _ in 0..MOST_CALLS {
            let reply = self.call(&question, &place, &tags).await?;
            let now = self.context.services.clock.now();
            let not_before = reply.poll_after.and_then(|pause| now.checked_add_signed(chrono::TimeDelta::from_std(pause).ok()?));
            let standing = |activity, worked_at, moved_to: Option<&Url>| Standing {
                asked: question.asked.clone(),
                moved_to: moved_to.map(Url::to_string),
                activity,
                worked_at,
                not_before,
                keep_days: self.source.keep_days(),
            };
            let before = self.held.before.as_ref().map(|(figures, at)| (figures, *at));
            match reply.said {
                Said::Moved { to, is_permanent } => {
                    // Behind a passing redirect a lasting one says nothing of our question.
                    if is_permanent && (place == question.url || moved_to.as_ref() == Some(&place)) {
                        moved_to = Some(to.clone());
                    }
                    place = to;
                }
                // Of what was moved, the place where it was moved to is gone: it may be back at the first one.
                // Once: where the first one leads there again, it is gone.
                Said::Gone if !went_back && moved_to.take().is_some() => {
                    went_back = true;
                    place.clone_from(&question.url);
                }
                Said::Gone => {
                    self.keep(&Outcome::Gone).await?;
                    return Ok(Success::with(json!({ "outcome": "gone" })));
                }
                // What it said of when stands in its budget, which the next call asks.
                Said::Limited | Said::Again => {}
                Said::Unchanged => {
                    let Some(figures) = &self.held.figures else {
                        return Err(malformed("it says that nothing changed, and was not told of anything").into());
                    };
                    let level = activity(self.source.about, figures, self.held.worked_at, before, now);
                    self.keep(&Outcome::Unchanged(standing(level, self.held.worked_at, moved_to.as_ref()))).await?;
                    return Ok(Success::with(json!({ "outcome": "unchanged", "figures": figures_json(figures) })));
                }
                Said::Figures { figures, worked_at, etag, last_modified } => {
                    let level = activity(self.source.about, &figures, worked_at, before, now);
                    let shown = figures_json(&figures);
                    // Of another question's figures nothing can be said.
                    let known = self.held.figures.as_ref().filter(|_| is_same);
                    if let Some(why) = known.and_then(|known| implausible(self.source, known, &figures)) {
                        metrics::counter!("offstage_statistic_flagged_total", "vendor" => question.vendor.word()).increment(1);
                        let result = json!({ "outcome": "flagged", "figures": shown, "why": why });
                        self.keep(&Outcome::Flagged { figures, activity: level, why }).await?;
                        return Ok(Success::with(result));
                    }
                    let standing = standing(level, worked_at, moved_to.as_ref());
                    self.keep(&Outcome::Measured { standing, figures, etag, last_modified }).await?;
                    return Ok(Success::with(json!({ "outcome": "measured", "figures": shown })));
                }
                Said::Refused { status, excerpt } => {
                    let said = excerpt.map(|text| format!(": {text}")).unwrap_or_default();
                    let message = format!("`{}` answered {status}{said}; see the credential, and what the manifest asks for", host(&place));
                    return Err(Failure::permanent("vendor_refused", message).into());
                }
                Said::Down(status) => {
                    return Err(
                        Failure::transient("vendor_down", format!("`{}` answered {status}; it is asked again", host(&place))).into()
                    );
                }
                Said::Malformed(what) => return Err(malformed(&what).into()),
            }
        }
        Err(malformed("it redirects again and again, or takes no token").into())
    }

    /// One call, taken from the vendor's budgets.
    async fn call(&self, question: &Question, place: &Url, tags: &Tags) -> Result<Reply, Interrupt> {
        let services = &self.context.services;
        let vendor = question.vendor.word();
        let call = services.clock.new_id();
        self.take(question, call).await?;
        let asked = services.clients.vendors.ask(question, place, tags, services.clock.now()).await;
        let now = services.clock.now();
        let (told, outcome) = match &asked {
            Ok(reply) => (reply.told.as_slice(), reply.said.word()),
            Err(_) => (&[][..], "unanswered"),
        };
        vendors::settle(&services.pool, vendor, call, told, now).await?;
        metrics::counter!("offstage_vendor_calls_total", "vendor" => vendor, "outcome" => outcome).increment(1);
        Ok(asked?)
    }

    /// Waits for a call's turn; puts the job off where there is none for longer.
    async fn take(&self, question: &Question, call: Uuid) -> Result<(), Interrupt> {
        let services = &self.context.services;
        let until = Instant::now() + TURN_WITHIN;
        loop {
            // Looked up each time: who had the turn before may have been told of it.
            let bucket = match question.route() {
                Some(route) => vendors::bucket(&services.pool, &route).await?,
                None => None,
            };
            let budgets = question.budgets(bucket.as_deref());
            let now = services.clock.now();
            match vendors::take(&services.pool, question.vendor.word(), &budgets, call, now).await? {
                Taken::Go => return Ok(()),
                Taken::Wait(until) => return Err(self.put_off(until, now).await?),
                Taken::Busy if Instant::now() >= until => {
                    statistics::release(&services.pool, self.tenant.id, self.name, self.held.lease).await?;
                    return Err(Interrupt::Snoozed(spread(HELD_FOR)));
                }
                Taken::Busy => sleep(LOOK_EVERY.mul_f64(0.5 + random::fraction())).await,
            }
        }
    }

    async fn put_off(&self, until: DateTime<Utc>, now: DateTime<Utc>) -> Result<Interrupt, Failure> {
        metrics::counter!("offstage_statistic_put_off_total", "vendor" => self.source.about.vendor().word()).increment(1);
        self.keep(&Outcome::PutOff(until)).await?;
        Ok(Interrupt::Snoozed(spread((until - now).to_std().unwrap_or_default())))
    }

    /// Writes down what came of it; a run whose lease is another's by now stops there.
    async fn keep(&self, outcome: &Outcome) -> Result<(), Failure> {
        let services = &self.context.services;
        let now = services.clock.now();
        if statistics::keep(&services.pool, self.tenant.id, self.name, self.held.lease, outcome, now).await? {
            return Ok(());
        }
        Err(Failure::transient("lease_lost", "another run has this statistic by now; this one stops"))
    }
}

/// A little longer, so that those who wait for one moment do not come at one moment.
fn spread(pause: Duration) -> Duration {
    let widest = (pause.as_secs_f64() * SPREAD).clamp(0.5, WIDEST_SPREAD);
    pause + Duration::from_secs_f64(widest * random::fraction())
}

fn malformed(what: &str) -> Failure {
    Failure::transient("vendor_malformed", format!("what the vendor says can't be understood: {what}"))
}

fn host(place: &Url) -> &str {
    place.host_str().unwrap_or_default()
}
