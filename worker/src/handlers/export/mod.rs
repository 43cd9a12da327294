//! `export.create`: a dataset of the tenant's manifest becomes a file in object storage.
//!
//! ```text
//! manifest → dataset → source (one snapshot, a cursor) → format (bytes) → draft (upload and effects) → settle publishes
//! ```
//!
//! What must stay true: the file holds the rows of one moment, all of them, or there is no file; it becomes visible with the
//! settle of the claim that wrote it, since its key carries the claim's token; a run that ends otherwise leaves nothing, or
//! leaves in the effect ledger under which key something may be.

mod draft;
mod format;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use chrono::TimeDelta;
use serde_json::json;
use shared::{
    job::{Failure, PublishedFile, Success},
    kinds::{ExportCreate, Violation},
    tenant::{Dataset, Tenant, TenantError},
};
use std::sync::Arc;

use super::JobContext;
use crate::clients::{
    source::{NotText, Source, SourceError},
    upload::Receipt,
};
use draft::Draft;
use format::Writer;

/// R11: how long a file is kept after its export is done.
const KEPT: TimeDelta = TimeDelta::days(7);

/// How often the ledger hears how far an export is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// The longest that a note of progress may take; a ledger that is slow must not slow the export down.
const PROGRESS_WITHIN: Duration = Duration::from_secs(5);

/// The longest row, in bytes of the file. Longer ones would let a few exports at a time outgrow a small worker.
const LONGEST_ROW: usize = 64 * 1024 * 1024;

/// Runs an export.
pub(super) async fn run(payload: ExportCreate, context: JobContext) -> Result<Success, Failure> {
    let tenant = tenant(&context).await?;
    let export = Export::prepare(&payload, &tenant, &context)?;
    let mut draft =
        Draft::begin(context.clone(), format!("{}.{}", payload.dataset, payload.format.extension()), payload.format.content_type()).await?;
    let rows = AtomicU64::new(0);
    let written = tokio::select! {
        biased;
        () = context.cancelled.cancelled() => Err(Failure::transient("cancelled", "the export was cancelled")),
        failure = report(&context, &rows) => Err(failure),
        written = export.write(&mut draft, &rows) => written,
    };
    match written {
        Ok(receipt) => Ok(success(&payload, &context, draft.publish(), &receipt, rows.into_inner())),
        Err(failure) => {
            draft.discard().await;
            Err(failure)
        }
    }
}

/// What a payload asks for, looked up and bound.
struct Export<'a> {
    payload: &'a ExportCreate,
    dataset: &'a Dataset,
    values: Vec<Option<String>>,
    source: Source<'a>,
    context: &'a JobContext,
}

impl<'a> Export<'a> {
    fn prepare(payload: &'a ExportCreate, tenant: &'a Tenant, context: &'a JobContext) -> Result<Self, Failure> {
        let name = payload.dataset.as_str();
        let manifest = &tenant.manifest;
        let owner = context.job.owner.as_deref();
        // A user's export reads what is for users, also when that changed since the job was accepted.
        let open = |name: &str| manifest.datasets.get(name).filter(|dataset| dataset.is_open_to(owner));
        let dataset = open(name).ok_or_else(|| {
            let known = manifest.datasets.keys().map(String::as_str).filter(|name| open(name).is_some()).collect::<Vec<_>>().join(", ");
            Failure::permanent(
                "dataset_unknown",
                format!("the dataset `{name}` is not in the product's manifest any more; it has: {known}"),
            )
        })?;
        // Checked when the job was accepted; the manifest may have changed since.
        let values = dataset.bind(&payload.params, owner).map_err(|violations| bind_failure(name, &violations))?;
        let source = manifest.sources.get(&dataset.source).ok_or_else(|| {
            let message =
                format!("the dataset `{name}` names the source `{}`, which the product's manifest does not declare", dataset.source);
            Failure::permanent("source_unknown", message)
        })?;
        let url = context.services.sources.url(&source.url_env).ok_or_else(|| SourceError::address(&dataset.source, &source.url_env))?;
        let source = Source { name: &dataset.source, variable: &source.url_env, url, statement_timeout: source.statement_timeout };
        Ok(Self { payload, dataset, values, source, context })
    }

    /// Streams the rows into the draft; `rows` counts them.
    async fn write(&self, draft: &mut Draft, rows: &AtomicU64) -> Result<Receipt, Failure> {
        let name = self.payload.dataset.as_str();
        let mut snapshot = self.context.services.clients.sources.open(&self.source).await?;
        let mut cursor = snapshot.read(name, self.dataset.sql(), &self.values).await?;
        let mut writer = Writer::new(self.payload.format, cursor.columns());
        writer.begin(draft.buffer());
        let mut pace = Pace::default();
        loop {
            let (mut read, before) = (0, draft.bytes());
            let mut batch = cursor.fetch(pace.rows);
            while let Some(row) = batch.next().await? {
                let start = draft.bytes();
                writer.row(&row, draft.buffer()).map_err(|error| unreadable(name, rows, error))?;
                let length = usize::try_from(draft.bytes() - start).unwrap_or(usize::MAX);
                if length > LONGEST_ROW {
                    return Err(too_long(name, rows, length));
                }
                rows.fetch_add(1, Ordering::Relaxed);
                read += 1;
                // Between fetches if it can wait: the server's statement timeout must not count the time that S3 takes.
                draft.send_if_overfull().await?;
            }
            drop(batch);
            if read < pace.rows {
                break;
            }
            pace.learn(read, draft.bytes() - before);
            draft.send_if_full().await?;
        }
        drop(cursor);
        snapshot.close().await;
        writer.end(draft.buffer());
        draft.finish().await
    }
}

/// How many rows to ask for at a time: about as many as make [`Pace::TARGET`] bytes, so that a fetch is soon done however
/// long its rows are.
struct Pace {
    rows: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { rows: 100 }
    }
}

impl Pace {
    const TARGET: u64 = 1024 * 1024;
    const MOST: u64 = 10_000;

    fn learn(&mut self, rows: u32, bytes: u64) {
        let a_row = (bytes / u64::from(rows.max(1))).max(1);
        // Rows that were short so far prove little: grow in steps.
        let next = (Self::TARGET / a_row).clamp(1, Self::MOST).min(u64::from(rows) * 10);
        self.rows = u32::try_from(next).unwrap_or(rows).max(1);
    }
}

/// The tenant of the job, with its manifest.
async fn tenant(context: &JobContext) -> Result<Arc<Tenant>, Failure> {
    let found = context.services.tenants.get(context.job.tenant).await.map_err(|error: TenantError| {
        let new = if error.is_transient() { Failure::transient } else { Failure::permanent };
        new("manifest_unavailable", "the product's manifest could not be read from the job database").caused_by(&error)
    })?;
    found.ok_or_else(|| Failure::permanent("tenant_unknown", "the product that this job belongs to does not exist any more"))
}

/// Tells the ledger how far the export is, for as long as it is polled; ends when the claim is gone.
async fn report(context: &JobContext, rows: &AtomicU64) -> Failure {
    let mut told = 0;
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = rows.load(Ordering::Relaxed);
        if now == told {
            continue;
        }
        match tokio::time::timeout(PROGRESS_WITHIN, context.progress(now, None)).await {
            Ok(Ok(true)) => told = now,
            Ok(Ok(false)) => return Failure::transient("claim_lost", "another worker took this job over; this run stops"),
            // A courtesy: the next one may get through.
            Ok(Err(failure)) => tracing::debug!(job = %context.job.id, code = failure.code, "progress was not noted"),
            Err(_) => tracing::debug!(job = %context.job.id, "progress was not noted in time"),
        }
    }
}

fn success(payload: &ExportCreate, context: &JobContext, object_key: String, receipt: &Receipt, rows: u64) -> Success {
    let name = payload.filename.as_deref().unwrap_or(&payload.dataset);
    let file_name = format!("{name}.{}", payload.format.extension());
    let content_type = payload.format.content_type();
    let result = json!({
        "rows": rows,
        "bytes": receipt.bytes,
        "sha256": hex::encode(receipt.sha256),
        "content_type": content_type,
        "filename": file_name,
    });
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

fn unreadable(dataset: &str, rows: &AtomicU64, error: NotText) -> Failure {
    let row = rows.load(Ordering::Relaxed) + 1;
    let message = format!(
        "row {row} of the dataset `{dataset}` has bytes that are no UTF-8 text; give the source's database an encoding, or convert the column in the dataset's SQL"
    );
    Failure::permanent("dataset_not_text", message).caused_by(&error)
}

fn too_long(dataset: &str, rows: &AtomicU64, length: usize) -> Failure {
    let row = rows.load(Ordering::Relaxed) + 1;
    let (length, most) = (length / 1024 / 1024, LONGEST_ROW / 1024 / 1024);
    Failure::permanent(
        "row_too_long",
        format!("row {row} of the dataset `{dataset}` takes {length} MiB; {most} MiB are the most, so leave its largest columns out"),
    )
}

#[cfg(test)]
mod tests;
