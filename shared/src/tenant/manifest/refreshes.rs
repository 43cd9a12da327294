//! The sections `[stats.NAME]` and `[summaries.NAME]`, and the schedules that they bring: each is refreshed by the clock, by a schedule that
//! is made, changed and removed with the manifest. Its name has a dot (`stats.tools`), so that nobody else's can be the same.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Declaration, Fault, Manifest, check_name};
use crate::{
    kinds::Registry,
    schedule::{Definition, Missed, Overlap},
    tenant::{
        statistic::{MOST_STATISTICS, StatisticSource},
        summary::{MOST_SUMMARIES, Summary},
    },
};

/// Checks both sections.
pub(super) fn check(declaration: &Declaration, faults: &mut Vec<Fault>) {
    for (section, count, most) in
        [("stats", declaration.stats.len(), MOST_STATISTICS), ("summaries", declaration.summaries.len(), MOST_SUMMARIES)]
    {
        if count > most {
            faults.push(Fault::new(&[section], format!("has {count} of them; {most} are the most")));
        }
    }
    for (name, source) in &declaration.stats {
        check_name(name, &["stats", name], faults);
        faults.extend(source.faults().into_iter().map(|(field, detail)| Fault::new(&["stats", name, field], detail)));
    }
    for (name, summary) in &declaration.summaries {
        check_name(name, &["summaries", name], faults);
        faults.extend(summary.faults().into_iter().map(|(field, detail)| Fault::new(&["summaries", name, field], detail)));
        if !declaration.sources.contains_key(&summary.source) {
            let detail = format!("there is no source `{0}`; declare it as [sources.{0}]", summary.source);
            faults.push(Fault::new(&["summaries", name, "source"], detail));
        }
    }
}

/// The schedules of both; checked as those are that a manifest writes itself.
pub(super) fn schedules(manifest: &Manifest, faults: &mut Vec<Fault>) -> BTreeMap<String, Definition> {
    let kinds = Registry::new(true);
    let stats = manifest.stats.iter().map(|(name, source)| ("stats", name, of_statistic(name, source)));
    let summaries = manifest.summaries.iter().map(|(name, summary): (_, &Summary)| ("summaries", name, summary.schedule(name)));
    let mut schedules = BTreeMap::new();
    for (section, name, definition) in stats.chain(summaries) {
        for violation in definition.violations(&kinds, manifest) {
            let field = violation.pointer.trim_start_matches('/').split('/').next().unwrap_or_default().to_owned();
            faults.push(Fault::new(&[section, name, &field], violation.detail));
        }
        schedules.insert(format!("{section}.{name}"), definition);
    }
    schedules
}

fn of_statistic(name: &str, source: &StatisticSource) -> Definition {
    Definition {
        every_seconds: Some(source.every_seconds()),
        jitter_seconds: source.jitter_seconds(),
        missed: Missed::Latest,
        overlap: Overlap::Skip,
        ..Definition::of("stats.refresh", json!({ "source": name }))
    }
}
