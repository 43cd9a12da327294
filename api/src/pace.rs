//! How long each kind's jobs take, as its tenant's latest show: what estimates and the advice when to poll go by.
//!
//! What must stay true: no request waits for this. What is known is used, what has grown old is read anew beside the requests, and
//! where nothing is known the kind's own estimate stands.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use shared::{ledger::LedgerError, tenant};
use sqlx::PgPool;

/// How long what was read is used before it is read anew.
const FRESH: Duration = Duration::from_secs(30);

/// Jobs that a figure is taken of.
const LATEST: i64 = 50;

/// The fewest that tell anything.
const FEWEST: usize = 3;

/// The most figures remembered: tenants by kinds, generously.
const MOST: usize = 100_000;

/// The longest that a reading may take.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// What is known, of each tenant's kinds.
#[derive(Debug, Clone)]
pub struct Paces {
    pool: PgPool,
    known: Arc<Mutex<HashMap<(i32, String), Known>>>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    takes: Option<Duration>,
    read_at: Instant,
}

impl Paces {
    /// Reads through `pool`, as the API's role.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool, known: Arc::default() }
    }

    /// The median run of a kind's latest jobs, if it is known; has it read where it is not, or not any more. Needs a Tokio runtime.
    #[must_use]
    pub fn of(&self, tenant: i32, kind: &str) -> Option<Duration> {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get_mut(&(tenant, kind.to_owned())) {
            if known.read_at.elapsed() >= FRESH {
                // Whoever asks meanwhile uses what is known.
                known.read_at = Instant::now();
                self.read(tenant, kind.to_owned());
            }
            return known.takes;
        }
        if all.len() >= MOST {
            all.clear();
        }
        all.insert((tenant, kind.to_owned()), Known { takes: None, read_at: Instant::now() });
        self.read(tenant, kind.to_owned());
        None
    }

    fn read(&self, tenant: i32, kind: String) {
        let paces = self.clone();
        tokio::spawn(async move {
            match tokio::time::timeout(READ_WITHIN, median(&paces.pool, tenant, &kind)).await {
                Ok(Ok(takes)) => {
                    let mut all = paces.known.lock().unwrap_or_else(PoisonError::into_inner);
                    all.insert((tenant, kind), Known { takes, read_at: Instant::now() });
                }
                Ok(Err(error)) => tracing::debug!(error = crate::problem::chain(&error), "how long jobs take could not be read"),
                Err(_) => tracing::debug!("how long jobs take could not be read in time"),
            }
        });
    }
}

/// The median run of those of a kind's latest jobs that succeeded: as many index entries, whatever the history.
async fn median(pool: &PgPool, tenant: i32, kind: &str) -> Result<Option<Duration>, LedgerError> {
    let mut transaction = tenant::transaction(pool, tenant).await?;
    let mut runs: Vec<f64> = sqlx::query_scalar(
        "SELECT extract(epoch FROM s.finished_at - s.started_at)::float8
         FROM (
            SELECT l.id FROM queues_of($1, $2) AS q (queue) CROSS JOIN LATERAL (
                SELECT id FROM job WHERE tenant_id = $1 AND (kind, queue) >= ($2, q.queue) AND (kind, queue) <= ($2, q.queue)
                ORDER BY kind DESC, queue DESC, id DESC LIMIT $3
            ) l ORDER BY l.id DESC LIMIT $3
         ) j
         JOIN job_state s ON s.job_id = j.id WHERE s.state = 3 AND s.finished_at >= s.started_at",
    )
    .bind(tenant)
    .bind(kind)
    .bind(LATEST)
    .fetch_all(&mut *transaction)
    .await?;
    runs.sort_unstable_by(f64::total_cmp);
    Ok((runs.len() >= FEWEST).then(|| runs.get(runs.len() / 2).copied()).flatten().and_then(|run| Duration::try_from_secs_f64(run).ok()))
}
