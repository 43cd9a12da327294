//! `export.create`: datasets of the tenant's manifest, or its metrics and views, become a file in object storage.
//!
//! ```text
//! manifest → datasets → source (one snapshot, a cursor) → format (bytes) → draft (upload and effects) → settle publishes
//!          → metrics  → rollups (one snapshot)          ↗
//! ```
//!
//! What must stay true: the file holds the rows of one moment (of each source's own, where a full export reads several), all of them, or there is no file; it becomes visible with the
//! settle of the claim that wrote it, since its key carries the claim's token; a run that ends otherwise leaves nothing, or
//! leaves in the effect ledger under which key something may be.

mod draft;
mod format;
mod numbers;
mod progress;
mod trail;

use std::{sync::atomic::Ordering, time::Duration};

use chrono::TimeDelta;
use serde_json::json;
use shared::{
    job::{Failure, FailureClass, PublishedFile, Success},
    kinds::{ExportCreate, Numbers, Selected, Violation, Wanted},
    tenant::{OWN_SOURCE, Tenant, TenantError},
};
use std::sync::Arc;

use super::JobContext;
use crate::clients::{
    source::{Snapshot, Source, SourceError},
    upload::Receipt,
};
use draft::Draft;
use format::{Document, Part, Style, Unwritable};
use progress::{Pace, Progress, report};
use trail::{BEGIN_ANEW, Trail};

/// The longest one statement may run on our own database, for a dataset that every product has.
const OWN_TIMEOUT: Duration = Duration::from_secs(60);

/// R11: how long a file is kept after its export is done.
const KEPT: TimeDelta = TimeDelta::days(7);

/// The longest row, in bytes of the file. Longer ones would let a few exports at a time outgrow a small worker.
const LONGEST_ROW: usize = 64 * 1024 * 1024;

/// From here on, in bytes, writing a row may take so long that other tasks should not wait for it.
const HEAVY_ROW: usize = 256 * 1024;

/// How long a cancelled export's owner waits for its file to be removed; what takes longer is done behind their back.
const DISCARD_WITHIN: Duration = Duration::from_millis(500);

/// Runs an export.
pub(super) async fn run(payload: ExportCreate, context: JobContext) -> Result<Success, Failure> {
    let tenant = tenant(&context).await?;
    let export = Export::prepare(&payload, &tenant, &context)?;
    let name = format!("{}.{}", payload.subject(), payload.extension());
    let mut trail = match export.only() {
        Some(selected) => Trail::find(&payload, selected, &context).await?,
        None => None,
    };
    let mut draft = draft(&context, name, payload.content_type(), trail.as_mut()).await?;
    let progress = Progress::new(trail.as_ref().map_or(0, Trail::rows), export.only().is_some());
    let written = tokio::select! {
        biased;
        () = context.cancelled.cancelled() => Err(Failure::transient("cancelled", "the export was cancelled")),
        failure = report(&context, &progress) => Err(failure),
        written = export.write(&mut draft, &progress, trail.as_mut()) => written,
    };
    match written {
        Ok(written) => Ok(success(&payload, &context, draft.publish(), &written, trail.as_ref())),
        Err(failure) => {
            give_up(&context, draft, &failure).await;
            Err(failure)
        }
    }
}

/// The file: an earlier attempt's to go on with, or a new one.
async fn draft(context: &JobContext, name: String, content_type: &'static str, trail: Option<&mut Trail>) -> Result<Draft, Failure> {
    if let Some(trail) = trail
        && let Some(stop) = trail.stop()
    {
        if let Some(draft) = Draft::resume(context.clone(), stop, content_type).await? {
            tracing::info!(job = %context.job.id, rows = trail.rows(), part = stop.part, "going on with an earlier attempt's file");
            return Ok(draft);
        }
        tracing::info!(job = %context.job.id, "the earlier attempt's file can't be gone on with; beginning anew");
        trail.begin_anew();
        context.forget_checkpoint().await?;
    }
    Draft::begin(context.clone(), name, content_type).await
}

/// Removes what a failed run sent, unless the next attempt can go on with it.
async fn give_up(context: &JobContext, draft: Draft, failure: &Failure) {
    let lost = [BEGIN_ANEW, "storage_upload_lost"].contains(&failure.code);
    let again = failure.class != FailureClass::Permanent
        && context.job.attempt < context.job.attempts_allowed
        && !context.cancelled.is_cancelled()
        && !lost;
    // Another run may be going on with it by now: only a live claim may take it away.
    if draft.is_kept() && (again || !matches!(context.forget_checkpoint().await, Ok(true))) {
        draft.leave();
    } else if context.cancelled.is_cancelled() {
        // In a task of its own, which goes on when the wait is over.
        let _ = tokio::time::timeout(DISCARD_WITHIN, tokio::spawn(draft.discard())).await;
    } else {
        draft.discard().await;
    }
}

/// What stands in the store.
struct Written {
    receipt: Receipt,
    parts: Vec<Part>,
    /// Of metrics: whether events from before they were declared are all counted.
    is_whole: Option<bool>,
}

/// What a payload asks for, looked up and bound.
struct Export<'a> {
    payload: &'a ExportCreate,
    /// By source.
    groups: Vec<(Source<'a>, Vec<Selected<'a>>)>,
    /// Metrics, where it is of such; there are no datasets then.
    numbers: Option<Numbers<'a>>,
    context: &'a JobContext,
}

impl<'a> Export<'a> {
    fn prepare(payload: &'a ExportCreate, tenant: &'a Tenant, context: &'a JobContext) -> Result<Self, Failure> {
        let manifest = &tenant.manifest;
        let owner = context.job.owner.as_deref();
        if payload.is_of_metrics() {
            let numbers = payload.numbers(manifest, owner).map_err(|violations| numbers::refused(payload.subject(), &violations))?;
            return Ok(Self { payload, groups: Vec::new(), numbers: Some(numbers), context });
        }
        // A user's export reads what is for users, also when that changed since the job was accepted.
        let is_open = |name: &str| manifest.dataset(name).is_some_and(|(_, dataset)| dataset.is_open_to(owner));
        if let Some(Wanted::Dataset(name)) = payload.wanted()
            && !is_open(name)
        {
            let known = manifest.datasets.keys().map(String::as_str).filter(|name| is_open(name)).collect::<Vec<_>>().join(", ");
            let message = format!("the dataset `{name}` is not in the product's manifest any more; it has: {known}");
            return Err(Failure::permanent("dataset_unknown", message));
        }
        // Checked when the job was accepted; the manifest may have changed since.
        let selected = payload.select(manifest, owner).map_err(|violations| bind_failure(payload.subject(), &violations))?;
        let mut groups: Vec<(Source<'a>, Vec<Selected<'a>>)> = Vec::new();
        for one in selected {
            let name = one.dataset.source.as_str();
            if let Some((_, group)) = groups.iter_mut().find(|(source, _)| source.name == name) {
                group.push(one);
                continue;
            }
            if name == OWN_SOURCE {
                let url = context
                    .services
                    .sources
                    .own()
                    .ok_or_else(|| Failure::permanent("source_unknown", "this worker reads no datasets of its own database"))?;
                let variable = "OFFSTAGE_ENGINE_DATABASE_URL";
                let source = Source { name, variable, url, statement_timeout: OWN_TIMEOUT, tenant: Some(context.job.tenant) };
                groups.push((source, vec![one]));
                continue;
            }
            let source = manifest.sources.get(name).ok_or_else(|| {
                let message =
                    format!("the dataset `{}` names the source `{name}`, which the product's manifest does not declare", one.name);
                Failure::permanent("source_unknown", message)
            })?;
            let url = context.services.sources.url(&source.url_env).ok_or_else(|| SourceError::address(name, &source.url_env))?;
            let source = Source { name, variable: &source.url_env, url, statement_timeout: source.statement_timeout, tenant: None };
            groups.push((source, vec![one]));
        }
        Ok(Self { payload, groups, numbers: None, context })
    }

    /// The dataset, where it is one.
    fn only(&self) -> Option<&Selected<'a>> {
        match self.groups.as_slice() {
            [(_, group)] => group.first().filter(|_| group.len() == 1),
            _ => None,
        }
    }

    /// Streams the rows into the draft; `progress` counts them.
    async fn write(&self, draft: &mut Draft, progress: &Progress, mut trail: Option<&mut Trail>) -> Result<Written, Failure> {
        let style =
            Style { format: self.payload.format, bom: self.payload.bom, escape_formulas: self.payload.escape_formulas.unwrap_or(true) };
        let mut document = match self.payload.wanted() {
            Some(Wanted::Full | Wanted::View(_)) => Document::full(style),
            _ => Document::alone(style),
        };
        for (source, group) in &self.groups {
            let mut snapshot = self.context.services.clients.sources.open(source).await?;
            for selected in group {
                table(&mut snapshot, selected, &mut document, draft, progress, trail.as_deref_mut()).await?;
            }
            snapshot.close().await;
        }
        let is_whole = match &self.numbers {
            Some(numbers) => Some(numbers::write(numbers, self.context, &mut document, draft, progress).await?),
            None => None,
        };
        let parts = document.finish(draft.buffer()).map_err(|error| unwritable(self.payload.subject(), 0, &error))?;
        Ok(Written { receipt: draft.finish().await?, parts, is_whole })
    }
}

/// Streams a dataset into the document.
async fn table(
    snapshot: &mut Snapshot,
    selected: &Selected<'_>,
    document: &mut Document,
    draft: &mut Draft,
    progress: &Progress,
    mut trail: Option<&mut Trail>,
) -> Result<(), Failure> {
    let (name, taken_at) = (selected.name, snapshot.taken_at().to_owned());
    let mut rows = trail.as_ref().map_or(0, |trail| trail.rows());
    if let Some((sql, values)) = trail.as_ref().and_then(|trail| trail.twins(selected))
        && matches!(snapshot.value(name, &sql, &values).await?.as_deref(), Some(count) if count != "0" && count != "1")
    {
        return Err(trail::twins_found(name));
    }
    let (sql, values) = match &trail {
        Some(trail) => trail.statement(selected),
        // In the order of its keys in every format, so that a dataset has one order.
        None if !selected.dataset.keyset.is_empty() => (selected.dataset.sql_after(None), selected.values.clone()),
        None => (selected.dataset.sql().to_owned(), selected.values.clone()),
    };
    if progress.is_of_one_dataset {
        progress.expect_more(snapshot.estimate(&sql, &values).await);
    }
    let mut cursor = snapshot.read(name, &sql, &values).await?;
    if let Some(trail) = &mut trail {
        trail.open(name, cursor.columns(), &taken_at)?;
    }
    // A file that is gone on with has its beginning already.
    let mut begun = Vec::new();
    let beginning = if rows > 0 { &mut begun } else { draft.buffer() };
    document.begin(name, cursor.columns(), &taken_at, beginning).map_err(|error| unwritable(name, rows, &error))?;
    document.go_on(rows);
    let mut pace = Pace::default();
    loop {
        let (mut read, mut bytes) = (0, 0);
        let mut batch = cursor.fetch(pace.rows);
        while let Some(row) = batch.next().await? {
            rows += 1;
            if let Some(trail) = &mut trail {
                trail.pass(name, rows, &row)?;
            }
            let written =
                if row.is_heavy(HEAVY_ROW) { aside(|| document.row(&row, draft.buffer())) } else { document.row(&row, draft.buffer()) };
            let length = written.map_err(|error| unwritable(name, rows, &error))?;
            if length > LONGEST_ROW {
                return Err(too_long(name, rows, length));
            }
            progress.done.fetch_add(1, Ordering::Relaxed);
            read += 1;
            bytes += length as u64;
            // Between fetches if it can wait: the server's statement timeout must not count the time that S3 takes.
            if draft.send_if_overfull().await?
                && let Some(trail) = &mut trail
            {
                trail.sent(draft, rows).await?;
            }
        }
        drop(batch);
        if read < pace.rows {
            break;
        }
        pace.learn(read, bytes);
        if draft.send_if_full().await?
            && let Some(trail) = &mut trail
        {
            trail.sent(draft, rows).await?;
        }
    }
    document.end(draft.buffer()).map_err(|error| unwritable(name, rows, &error))
}

/// Computes something long without holding up the other tasks of this thread; they move to another one.
fn aside<T>(compute: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(compute),
        _ => compute(),
    }
}

/// The tenant of the job, with its manifest.
pub(super) async fn tenant(context: &JobContext) -> Result<Arc<Tenant>, Failure> {
    let found = context.services.tenants.get(context.job.tenant).await.map_err(|error| match error {
        // Not the job's fault: the engine counts no attempt for it, and does not wait as long as for the outside.
        TenantError::Ledger(error) => Failure::from(error),
        TenantError::Manifest { .. } => {
            Failure::transient("manifest_unavailable", "the product's manifest could not be read from the job database").caused_by(&error)
        }
    })?;
    found.ok_or_else(|| Failure::permanent("tenant_unknown", "the product that this job belongs to does not exist any more"))
}

fn success(payload: &ExportCreate, context: &JobContext, object_key: String, written: &Written, trail: Option<&Trail>) -> Success {
    let Written { receipt, parts, is_whole } = written;
    let name = payload.filename.as_deref().unwrap_or(payload.subject());
    let extension = payload.extension();
    // Who gives the ending too does not want it twice.
    let given = name.len() > extension.len() && name.to_ascii_lowercase().ends_with(&format!(".{extension}"));
    let file_name = if given { name.to_owned() } else { format!("{name}.{extension}") };
    let content_type = payload.content_type();
    let mut result = json!({
        "rows": parts.iter().map(|part| part.rows).sum::<u64>(),
        "bytes": receipt.bytes,
        "sha256": hex::encode(receipt.sha256),
        "content_type": content_type,
        "filename": file_name,
    });
    if let Some(said) = result.as_object_mut() {
        // The moment that the file shows: the first, where a full export read several sources.
        if let Some(part) = parts.iter().min_by(|one, other| one.read_at.cmp(&other.read_at)) {
            said.insert("read_at".into(), part.read_at.as_str().into());
        }
        let snapshots = trail.map(|trail| trail.snapshots(parts.iter().map(|part| part.rows).sum())).unwrap_or_default();
        if let [first, _, ..] = snapshots.as_slice() {
            said.insert("read_at".into(), first.get("read_at").cloned().unwrap_or_default());
            said.insert("snapshots".into(), snapshots.into());
        }
        if matches!(payload.wanted(), Some(Wanted::Full | Wanted::View(_))) {
            let datasets = parts.iter().map(|part| (part.name.clone(), part.rows.into())).collect::<serde_json::Map<_, _>>();
            said.insert("datasets".into(), datasets.into());
        }
        if let Some(is_whole) = is_whole {
            said.insert("is_whole".into(), (*is_whole).into());
        }
    }
    let file = PublishedFile {
        object_key,
        file_name,
        content_type: content_type.to_owned(),
        bytes: receipt.bytes,
        sha256: receipt.sha256,
        expires_at: context.services.clock.now() + KEPT,
    };
    Success { result: Some(result), file: Some(file) }
}

fn bind_failure(dataset: &str, violations: &[Violation]) -> Failure {
    let details: Vec<_> = violations.iter().map(|violation| format!("{} {}", violation.pointer, violation.detail)).collect();
    Failure::permanent(
        "params_invalid",
        format!("the dataset `{dataset}` does not take these parameters (any more): {}", details.join("; ")),
    )
}

fn unwritable(dataset: &str, row: u64, error: &Unwritable) -> Failure {
    match error {
        Unwritable::NotText(_) => Failure::permanent(
            "dataset_not_text",
            format!(
                "row {row} of the dataset `{dataset}` has bytes that are no UTF-8 text; give the source's database an encoding, or convert the column in the dataset's SQL"
            ),
        ),
        Unwritable::Compression => {
            Failure::permanent("file_not_written", format!("row {row} of the dataset `{dataset}`: {error}; this is a fault in the product"))
        }
    }
}

fn too_long(dataset: &str, row: u64, length: usize) -> Failure {
    let (length, most) = (length / 1024 / 1024, LONGEST_ROW / 1024 / 1024);
    Failure::permanent(
        "row_too_long",
        format!("row {row} of the dataset `{dataset}` takes {length} MiB; {most} MiB are the most, so leave its largest columns out"),
    )
}

#[cfg(test)]
mod tests;
