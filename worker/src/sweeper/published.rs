//! Published files whose time is over, or whose owner wants them gone.

use futures_util::{StreamExt, stream};
use shared::{
    ledger::files::{self, DueFile},
    storage::StorageError,
};

use super::{AT_ONCE, BATCH, Sweep, SweepError, is_away, retry_at};

/// Files are counted as overdue up to this many: more tells an operator nothing more.
const MOST_COUNTED: i64 = 10_000;

impl Sweep<'_> {
    /// Deletes their objects, and tells how many are left.
    pub(super) async fn published(&self) -> Result<(), SweepError> {
        let deleted = self.delete_due().await;
        let overdue = files::overdue(&self.services.pool, self.now(), MOST_COUNTED).await?;
        metrics::gauge!("offstage_files_overdue").set(overdue as f64);
        deleted
    }

    async fn delete_due(&self) -> Result<(), SweepError> {
        let pool = &self.services.pool;
        while !self.is_over() {
            let due = files::due(pool, self.now(), BATCH).await?;
            let last = due.len() < usize::try_from(BATCH).unwrap_or(usize::MAX);
            let answers: Vec<(DueFile, Result<(), StorageError>)> = stream::iter(due)
                .map(|file| async move {
                    let answer = self.storage.delete(&file.object_key).await;
                    (file, answer)
                })
                .buffer_unordered(AT_ONCE)
                .collect()
                .await;
            let gone: Vec<_> = answers.iter().filter(|(_, answer)| answer.is_ok()).map(|(file, _)| file.job).collect();
            files::deleted(pool, &gone, self.now()).await?;
            let mut away = None;
            for (file, answer) in answers {
                let reason = if file.removed { "removed" } else { "expired" };
                match answer {
                    Ok(()) => metrics::counter!("offstage_files_deleted_total", "reason" => reason).increment(1),
                    Err(error) => {
                        metrics::counter!("offstage_file_deletions_failed_total").increment(1);
                        tracing::warn!(job = %file.job, reason, failures = file.failures + 1, error = &error as &dyn std::error::Error,
                            "a file could not be deleted; trying again later");
                        files::not_deleted(pool, file.job, retry_at(self.now(), file.failures)).await?;
                        if is_away(&error) {
                            away = Some(error);
                        }
                    }
                }
            }
            if let Some(error) = away {
                return Err(error.into());
            }
            if last {
                break;
            }
        }
        Ok(())
    }
}
