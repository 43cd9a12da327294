//! The manifest: what a tenant is, declared in one `tenant.toml`.
//!
//! Applying is strict: an unknown name, an ill-typed value or a contradiction is refused with its line, all of them at
//! once. Loading what was applied is lenient towards names it does not know, since a newer program may have applied it;
//! everything else is checked again.

mod dataset;
mod lines;
mod refreshes;
mod schedule;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    admission::{self, KindDeclaration, LimitsDeclaration, NotEnabled},
    ai::{Ai, AiDeclaration, ModelChoice},
    completion::Completion,
    dataset::{Dataset, Source, built_in},
    mail::MailDeclaration,
    metric::{self, EventsDeclaration, Metric, MetricDeclaration, View},
    notification::{self, NotificationType},
    plan::{Period, Plan},
    retention::{Retention, RetentionDeclaration},
    statistic::StatisticSource,
    summary::Summary,
    usage::{Usage, UsageDeclaration},
    web::Web,
};
use crate::{kinds::Registry, notification::template::Renderer, schedule::Definition, usage::AI_COST};
use dataset::DatasetDeclaration;
use lines::Lines;

/// The longest manifest, in bytes.
const LONGEST: usize = 1024 * 1024;

/// The longest name of a tenant, a source, a dataset or a parameter.
const LONGEST_NAME: usize = 63;

/// What the variables of sources begin with. A manifest can name no other, or a tenant's dataset could be pointed at
/// Offstage's own database.
const SOURCE_VARIABLE: &str = "OFFSTAGE_SOURCE_";

/// A tenant's manifest, checked. The default declares nothing.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    /// The tenant's name.
    pub name: String,
    /// The databases that datasets are read from.
    pub sources: BTreeMap<String, Source>,
    /// What can be exported.
    pub datasets: BTreeMap<String, Dataset>,
    /// What the product's users may use, by plan.
    pub plans: BTreeMap<String, Plan>,
    /// How what they use is metered.
    pub usage: Usage,
    /// What it plans by the clock; of a manifest that was read from a file only, as it takes effect when that is applied.
    pub schedules: BTreeMap<String, Definition>,
    /// Where ends of jobs may be told.
    pub completion: Option<Completion>,
    /// From which pages browsers may call.
    pub web: Web,
    /// Whom its mail is from, and over which server it goes.
    pub mail: Option<MailDeclaration>,
    /// What it tells its users, by type.
    pub notifications: BTreeMap<String, NotificationType>,
    /// What it asks of models.
    pub ai: Ai,
    /// Numbers of other people's services, by name.
    pub stats: BTreeMap<String, StatisticSource>,
    /// Summaries of its own database, by name.
    pub summaries: BTreeMap<String, Summary>,
    /// What is counted of its events.
    pub metrics: BTreeMap<String, Metric>,
    /// What of that is shown together.
    pub views: BTreeMap<String, View>,
    /// How long events are kept.
    pub events: EventsDeclaration,
    declaration: Declaration,
}

impl Manifest {
    /// Reads a `tenant.toml`.
    ///
    /// # Errors
    /// All that is wrong with it, by line.
    pub fn from_toml(text: &str) -> Result<Self, ManifestError> {
        if text.len() > LONGEST {
            return Err(ManifestError::whole(format!("has {} bytes; {LONGEST} are the most", text.len())));
        }
        let lines = Lines::new(text);
        let mut unknown = Vec::new();
        let read = toml::Deserializer::parse(text).and_then(|deserializer| {
            serde_ignored::deserialize::<_, _, Declaration>(deserializer, |path| unknown.push(lines::path_of(&path)))
        });
        let declaration = read.map_err(|error| ManifestError {
            problems: vec![ManifestProblem {
                line: error.span().map(|span| lines.at(span.start)),
                path: String::new(),
                detail: error.message().to_owned(),
            }],
        })?;
        let mut faults: Vec<Fault> = unknown
            .into_iter()
            .map(|path| Fault { path, offset: 0, detail: "is not part of a manifest; check its spelling or remove it".into() })
            .collect();
        faults.extend(unknown_kinds(&declaration));
        let mut checked = Self::check(declaration, &mut faults);
        if let Some(manifest) = &mut checked {
            manifest.schedules = schedule::check(&manifest.declaration.schedules, manifest, &mut faults);
            manifest.schedules.extend(refreshes::schedules(manifest, &mut faults));
            // Here alone: what was stored before this was asked for goes on.
            check_budgets(manifest, &mut faults);
            let mut spans = Faults(Vec::new());
            metric::check_spans(&manifest.views, &mut spans);
            faults.append(&mut spans.0);
        }
        match checked {
            Some(manifest) if faults.is_empty() => Ok(manifest),
            _ => {
                let mut problems: Vec<_> = faults.into_iter().map(|fault| fault.into_problem(Some(&lines))).collect();
                problems.sort_by_key(|problem| problem.line);
                Err(ManifestError { problems })
            }
        }
    }

    /// Reads a manifest as it was stored when it was applied.
    ///
    /// # Errors
    /// All that this program can't work with, by path.
    pub fn from_stored(stored: Value) -> Result<Self, ManifestError> {
        let declaration: Declaration =
            serde_json::from_value(stored).map_err(|error| ManifestError::whole(format!("can't be read as stored: {error}")))?;
        let mut faults = Vec::new();
        match Self::check(declaration, &mut faults) {
            Some(manifest) if faults.is_empty() => Ok(manifest),
            _ => Err(ManifestError { problems: faults.into_iter().map(|fault| fault.into_problem(None)).collect() }),
        }
    }

    /// The manifest as it is stored.
    #[must_use]
    pub fn to_stored(&self) -> Value {
        // A tree of strings, numbers and maps with string keys: nothing in it that JSON can't hold.
        serde_json::to_value(&self.declaration).unwrap_or_default()
    }

    /// SHA-256 of the stored form, by which an unchanged manifest is recognised. Comments and the order of tables don't
    /// count; maps are sorted and fields stand in the order of the code.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let text = serde_json::to_vec(&self.declaration).unwrap_or_default();
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, &text).as_ref());
        bytes
    }

    /// A dataset: of its own, or one that every product has.
    #[must_use]
    pub fn dataset(&self, name: &str) -> Option<(&str, &Dataset)> {
        self.datasets.get_key_value(name).map(|(name, dataset)| (name.as_str(), dataset)).or_else(|| built_in(name))
    }

    /// How long finished jobs of a kind are kept, where `installation` holds for what the manifest leaves out.
    #[must_use]
    pub fn retention(&self, kind: &str, installation: Retention) -> Retention {
        self.declaration.retention.as_ref().map_or(installation, |declared| declared.of(kind, installation))
    }

    /// Whether jobs of a kind may be asked for, for an owner.
    ///
    /// # Errors
    /// [`NotEnabled`]: why not.
    pub fn allows(&self, kind: &str, owner: Option<&str>) -> Result<(), NotEnabled> {
        admission::is_on(&self.declaration.kinds, kind, owner)
    }

    /// How many of the tenant's jobs may wait, where `installation` holds for what the manifest leaves out.
    #[must_use]
    pub fn backlog(&self, installation: u64) -> u64 {
        self.declaration.limits.and_then(|limits| limits.backlog).unwrap_or(installation)
    }

    /// A type of what it tells its users: of its own, or built in.
    #[must_use]
    pub fn notification(&self, name: &str) -> Option<NotificationType> {
        self.notifications.get(name).cloned().or_else(|| NotificationType::built_in(name))
    }

    /// Whether batches may be asked for.
    #[must_use]
    pub fn allows_batches(&self) -> bool {
        self.declaration.limits.and_then(|limits| limits.batches).unwrap_or(true)
    }

    /// How long an idempotency key of a kind is remembered; `None` where the manifest says nothing of it.
    #[must_use]
    pub fn idempotency(&self, kind: &str) -> Option<Duration> {
        self.declaration.kinds.get(kind)?.idempotency_hours.map(|hours| Duration::from_secs(hours * 3_600))
    }

    /// The plan that holds for a user: the one they were put on, or the default where there is none, or none of that name any more.
    #[must_use]
    pub fn plan_of<'a>(&'a self, plan: Option<&str>) -> Option<(&'a str, &'a Plan)> {
        let named = |name: &str| self.plans.get_key_value(name).map(|(name, plan)| (name.as_str(), plan));
        plan.and_then(named).or_else(|| self.usage.default_plan().and_then(named))
    }

    /// The periods over which a metric of users is counted: those that some plan limits, and always the month.
    #[must_use]
    pub fn periods_of(&self, metric: &str) -> BTreeSet<Period> {
        let of_plans = self.plans.values().filter_map(|plan| plan.limits.get(metric)).flat_map(|limits| limits.keys().copied());
        of_plans.chain(self.usage.periods_of_users(metric)).chain([Period::Month]).collect()
    }

    /// The metrics of which something is said anywhere.
    #[must_use]
    pub fn metrics(&self) -> BTreeSet<&str> {
        let of_plans = self.plans.values().flat_map(|plan| plan.limits.keys().map(String::as_str));
        of_plans.chain(self.usage.metrics()).collect()
    }

    fn check(declaration: Declaration, faults: &mut Vec<Fault>) -> Option<Self> {
        let name = declaration.tenant.name.clone();
        check_name(&name, &["tenant", "name"], faults);
        for (path, detail) in declaration.retention.iter().flat_map(RetentionDeclaration::faults) {
            let path = [vec!["retention".to_owned()], path].concat();
            faults.push(Fault { path, offset: 0, detail });
        }
        for (field, detail) in declaration.limits.into_iter().flat_map(LimitsDeclaration::faults) {
            faults.push(Fault::new(&["limits", field], detail));
        }
        for (kind, declared) in &declaration.kinds {
            for (field, detail) in declared.faults() {
                faults.push(Fault::new(&["kinds", kind, field], detail));
            }
        }
        let mut sources = BTreeMap::new();
        for (key, source) in &declaration.sources {
            check_name(key, &["sources", key], faults);
            sources.insert(key.clone(), source.check(key, faults));
        }
        let mut datasets = BTreeMap::new();
        for (key, dataset) in &declaration.datasets {
            check_name(key, &["datasets", key], faults);
            if !declaration.sources.contains_key(&dataset.source) {
                let known: Vec<_> = declaration.sources.keys().map(String::as_str).collect();
                let detail = match known.as_slice() {
                    [] => format!("there is no source `{}`; declare it as [sources.{}]", dataset.source, dataset.source),
                    known => format!("there is no source `{}`; there are: {}", dataset.source, known.join(", ")),
                };
                faults.push(Fault::new(&["datasets", key, "source"], detail));
            }
            if let Some(checked) = dataset.check(key, faults) {
                datasets.insert(key.clone(), checked);
            }
        }
        for (key, plan) in &declaration.plans {
            check_name(key, &["plans", key], faults);
            for (path, detail) in plan.faults() {
                let path: Vec<_> = ["plans", key].into_iter().chain(path.iter().map(String::as_str)).collect();
                faults.push(Fault::new(&path, detail));
            }
        }
        for (field, detail) in declaration.completion.iter().flat_map(Completion::faults) {
            faults.push(Fault::new(&["completion", field], detail));
        }
        for (field, detail) in declaration.web.iter().flat_map(Web::faults) {
            faults.push(Fault::new(&["web", field], detail));
        }
        let completion = declaration.completion.clone();
        let web = declaration.web.clone().unwrap_or_default();
        for (field, detail) in declaration.mail.iter().flat_map(MailDeclaration::faults) {
            faults.push(Fault::new(&[&["mail"], field].concat(), detail));
        }
        let mail = declaration.mail.clone();
        let notifications = declaration.notifications.clone();
        check_notifications(&notifications, faults);
        let ai = check_ai(declaration.ai.as_ref(), faults);
        refreshes::check(&declaration, faults);
        let (stats, summaries) = (declaration.stats.clone(), declaration.summaries.clone());
        let plans = declaration.plans.clone();
        let mut found = Faults(Vec::new());
        for (section, key) in
            declaration.metrics.keys().map(|key| ("metrics", key)).chain(declaration.views.keys().map(|key| ("views", key)))
        {
            check_name(key, &[section, key], &mut found.0);
        }
        let metrics = metric::check_all(&name, &declaration.metrics, &mut found);
        metric::check_views(&declaration.views, &declaration.metrics, &mut found);
        for (field, detail) in declaration.events.into_iter().flat_map(EventsDeclaration::faults) {
            found.add(&["events", field], detail);
        }
        faults.append(&mut found.0);
        let (views, events) = (declaration.views.clone(), declaration.events.unwrap_or_default());
        for (path, detail) in declaration.usage.iter().flat_map(|usage| usage.faults(&plans)) {
            let path = [vec!["usage".to_owned()], path].concat();
            faults.push(Fault { path, offset: 0, detail });
        }
        let usage = declaration.usage.as_ref().map(UsageDeclaration::checked).unwrap_or_default();
        (datasets.len() == declaration.datasets.len()).then_some(Self {
            name,
            sources,
            datasets,
            plans,
            usage,
            completion,
            web,
            mail,
            notifications,
            ai,
            stats,
            summaries,
            metrics,
            views,
            events,
            schedules: BTreeMap::new(),
            declaration,
        })
    }
}

fn check_ai(declared: Option<&AiDeclaration>, faults: &mut Vec<Fault>) -> Ai {
    let Some(declared) = declared else { return Ai::default() };
    for (name, path) in declared.names() {
        check_name(name, &path, faults);
    }
    let mut wrong = Vec::new();
    let ai = declared.check(&mut wrong);
    let placed = |(path, detail): (Vec<String>, String)| Fault { path: [vec!["ai".to_owned()], path].concat(), offset: 0, detail };
    faults.extend(wrong.into_iter().map(placed));
    ai
}

/// A limit of cost bounds nothing where a model has no price.
fn check_budgets(manifest: &Manifest, faults: &mut Vec<Fault>) {
    let is_limited = manifest.plans.values().filter_map(|plan| plan.limits.get(AI_COST)).flatten().any(|(_, limit)| limit.most().is_some())
        || manifest.usage.limits(AI_COST);
    if !is_limited {
        return;
    }
    for (name, task) in &manifest.ai.tasks {
        for choice in task.models.iter().filter(|choice| !manifest.ai.has_price(&choice.provider, &choice.model)) {
            let ModelChoice { provider, model, .. } = choice;
            let detail = format!(
                "the model `{model}` of `{provider}` has no price, and `{AI_COST}` is limited: nobody would know when it is used up; \
                 add [[ai.prices]] with model = \"{model}\""
            );
            faults.push(Fault::new(&["ai", "tasks", name, "models"], detail));
        }
    }
}

fn check_notifications(notifications: &BTreeMap<String, NotificationType>, faults: &mut Vec<Fault>) {
    if let Some(detail) = notification::too_many(notifications) {
        faults.push(Fault::new(&["notifications"], detail));
    }
    let renderer = Renderer::default();
    for (key, sort) in notifications {
        check_name(key, &["notifications", key], faults);
        for (path, detail) in sort.faults(&renderer) {
            let path = [vec!["notifications".to_owned(), key.clone()], path].concat();
            faults.push(Fault { path, offset: 0, detail });
        }
    }
}

/// Kinds that the manifest names and this program does not know. Asked when it is applied only: of a stored one a newer program may
/// know more.
fn unknown_kinds(declaration: &Declaration) -> Vec<Fault> {
    let registry = Registry::new(true);
    let retained = declaration.retention.iter().flat_map(RetentionDeclaration::kinds).map(|kind| (vec!["retention", "kinds", kind], kind));
    let switched = declaration.kinds.keys().map(|kind| (vec!["kinds", kind.as_str()], kind.as_str()));
    retained
        .chain(switched)
        .filter(|(_, kind)| registry.find(kind).is_none_or(|entry| entry.name != *kind))
        .map(|(path, kind)| {
            let known: Vec<_> = registry.entries().map(|entry| entry.name).collect();
            Fault::new(&path, format!("there is no kind `{kind}`; there are: {}", known.join(", ")))
        })
        .collect()
}

/// The manifest as it is written and stored, not yet checked. A field that is absent is not stored, so that a program
/// which knows more fields makes the same digest.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Declaration {
    tenant: TenantDeclaration,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    sources: BTreeMap<String, SourceDeclaration>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    datasets: BTreeMap<String, DatasetDeclaration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retention: Option<RetentionDeclaration>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    plans: BTreeMap<String, Plan>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    usage: Option<UsageDeclaration>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "schedule::section")]
    schedules: BTreeMap<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    completion: Option<Completion>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    web: Option<Web>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mail: Option<MailDeclaration>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    notifications: BTreeMap<String, NotificationType>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    stats: BTreeMap<String, StatisticSource>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    summaries: BTreeMap<String, Summary>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ai: Option<AiDeclaration>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    metrics: BTreeMap<String, MetricDeclaration>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    views: BTreeMap<String, View>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    events: Option<EventsDeclaration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limits: Option<LimitsDeclaration>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    kinds: BTreeMap<String, KindDeclaration>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct TenantDeclaration {
    name: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SourceDeclaration {
    url_env: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    statement_timeout_seconds: Option<u64>,
}

impl SourceDeclaration {
    fn check(&self, key: &str, faults: &mut Vec<Fault>) -> Source {
        let rest = self.url_env.strip_prefix(SOURCE_VARIABLE);
        let legal = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
        if !rest.is_some_and(|rest| !rest.is_empty() && rest.len() <= 100 && rest.bytes().all(legal)) {
            let detail = if self.url_env.contains("://") {
                // Not repeated: it may hold a password.
                format!("must name the variable that holds the URL, not the URL itself; write for example \"{SOURCE_VARIABLE}MAIN_URL\"")
            } else {
                format!(
                    "`{}` must be {SOURCE_VARIABLE} and then capital letters, digits or `_`; write for example \"{SOURCE_VARIABLE}MAIN_URL\"",
                    self.url_env
                )
            };
            faults.push(Fault::new(&["sources", key, "url_env"], detail));
        }
        // An hour is as long as an export may take, and long enough to hold back a database's vacuum.
        let seconds = self.statement_timeout_seconds.unwrap_or(600);
        if !(1..=3_600).contains(&seconds) {
            faults.push(Fault::new(&["sources", key, "statement_timeout_seconds"], format!("is {seconds}; 1 to 3600 are allowed")));
        }
        Source { url_env: self.url_env.clone(), statement_timeout: Duration::from_secs(seconds) }
    }
}

fn check_name(name: &str, path: &[&str], faults: &mut Vec<Fault>) {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    if !begins || name.len() > LONGEST_NAME || !name.bytes().all(legal) {
        let detail = format!(
            "`{name}` must begin with a lower-case letter and have only lower-case letters, digits and `_`, at most {LONGEST_NAME}"
        );
        faults.push(Fault::new(path, detail));
    }
}

/// Something wrong at a place of the manifest's tree.
struct Fault {
    path: Vec<String>,
    /// Bytes from the start of the value's text: where in the SQL it is.
    offset: usize,
    detail: String,
}

impl Fault {
    fn new(path: &[&str], detail: impl Into<String>) -> Self {
        Self { path: path.iter().map(|part| (*part).to_owned()).collect(), offset: 0, detail: detail.into() }
    }

    fn into_problem(self, lines: Option<&Lines<'_>>) -> ManifestProblem {
        ManifestProblem { line: lines.and_then(|lines| lines.of(&self.path, self.offset)), path: self.path.join("."), detail: self.detail }
    }
}

/// All that is found wrong by sections that have files of their own.
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    /// Something at a place.
    pub(super) fn add(&mut self, path: &[&str], detail: String) {
        self.0.push(Fault::new(path, detail));
    }

    /// Something at a place within another.
    pub(super) fn add_owned(&mut self, within: [String; 2], path: Vec<String>, detail: String) {
        self.0.push(Fault { path: within.into_iter().chain(path).collect(), offset: 0, detail });
    }
}

/// One thing that is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestProblem {
    /// The line, counted from 1, where the manifest is a file.
    pub line: Option<usize>,
    /// The place in the tree, such as `datasets.prompts.sql`; empty where the file is no TOML at all.
    pub path: String,
    /// What is wrong and what to write instead.
    pub detail: String,
}

/// All that is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ManifestError {
    /// Each problem, by line.
    pub problems: Vec<ManifestProblem>,
}

impl ManifestError {
    fn whole(detail: String) -> Self {
        Self { problems: vec![ManifestProblem { line: None, path: String::new(), detail }] }
    }
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the manifest can't be used:")?;
        for ManifestProblem { line, path, detail } in &self.problems {
            f.write_str("\n  ")?;
            if let Some(line) = line {
                write!(f, "line {line}: ")?;
            }
            if !path.is_empty() {
                write!(f, "{path}: ")?;
            }
            f.write_str(detail)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
