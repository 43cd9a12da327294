//! How deep and how old the queues are, for `/metrics`. Each replica tells of the queues it serves; the figures are the whole
//! installation's, so take the maximum over replicas, not the sum.

use std::{sync::Arc, time::Duration};

use shared::{
    byok::Vendor,
    kinds::Registry,
    ledger::{LedgerError, breakers, dispatch, switches},
    queue::{Commands, Queue, push},
    schedule::TickOutcome,
    tenant::ProviderKind,
};
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::clients;

/// How often they are taken.
const EVERY: Duration = Duration::from_secs(10);

/// Counters that are there from the start, so that an alert on one finds it before the first event. Those with labels that only the event
/// knows (a kind) begin with it.
const FROM_THE_START: &[&str] = &[
    "offstage_ai_words_lost_total",
    "offstage_announcements_dropped_total",
    "offstage_breaker_redis_failures_total",
    "offstage_batches_finished_total",
    "offstage_claims_given_back_total",
    "offstage_ends_followed_total",
    "offstage_ends_given_up_total",
    "offstage_file_deletions_failed_total",
    "offstage_file_sweep_failures_total",
    "offstage_jobs_taken_over_total",
    "offstage_leftovers_swept_total",
    "offstage_limited_jobs_admitted_total",
    "offstage_mail_sender_pauses_total",
    "offstage_prune_failures_total",
    "offstage_runs_stuck_total",
    "offstage_schedule_failures_total",
    "offstage_schedule_notices_total",
    "offstage_schedule_ticks_pruned_total",
    "offstage_settles_stale_total",
    "offstage_settles_refused_total",
    "offstage_sweep_failures_total",
    "offstage_uploads_aborted_total",
    "offstage_usage_lapsed_total",
    "offstage_users_erased_total",
    "offstage_worker_fenced_total",
    "offstage_worker_heartbeat_failures_total",
    "offstage_workers_lost_total",
];

/// Counters of a queue that are there from the start.
const FROM_THE_START_BY_QUEUE: &[&str] = &[
    "offstage_breaker_jobs_released_total",
    "offstage_claims_lost_total",
    "offstage_dispatched_total",
    "offstage_entries_abandoned_total",
    "offstage_jobs_pushed_again_total",
    "offstage_jobs_released_total",
];

/// Counters of a kind that are there from the start.
const FROM_THE_START_BY_KIND: &[&str] =
    &["offstage_effects_unknown_total", "offstage_jobs_pruned_total", "offstage_trials_died_total", "offstage_trials_total"];

/// Puts all counters at their beginning.
pub(super) fn begin(queues: &[Queue], probe: bool) {
    for name in FROM_THE_START {
        metrics::counter!(*name).increment(0);
    }
    for outcome in ["delivered", "not_delivered"] {
        metrics::counter!("offstage_completions_total", "outcome" => outcome).increment(0);
    }
    for outcome in clients::push::OUTCOMES {
        metrics::counter!("offstage_pushes_total", "outcome" => outcome).increment(0);
    }
    for kind in [ProviderKind::OpenAi, ProviderKind::Anthropic] {
        for outcome in clients::ai::OUTCOMES {
            metrics::counter!("offstage_ai_calls_total", "kind" => kind.word(), "outcome" => outcome).increment(0);
        }
        let _registered = metrics::histogram!("offstage_ai_call_seconds", "kind" => kind.word());
    }
    for outcome in ["hit", "miss"] {
        metrics::counter!("offstage_ai_cache_total", "outcome" => outcome).increment(0);
    }
    for outcome in clients::mail::OUTCOMES {
        metrics::counter!("offstage_mails_total", "outcome" => outcome).increment(0);
    }
    // Providers are known with their first call; until then these have none.
    for credential in ["platform", "own"] {
        for outcome in clients::breaker::OUTCOMES {
            metrics::counter!("offstage_breaker_calls_total", "provider" => "", "credential" => credential, "outcome" => outcome)
                .increment(0);
        }
        for to in clients::breaker::Phase::ALL {
            metrics::counter!("offstage_breaker_transitions_total", "provider" => "", "credential" => credential, "to" => to.word())
                .increment(0);
        }
    }
    for vendor in Vendor::ALL {
        metrics::counter!("offstage_byok_keys_refused_total", "provider" => vendor.word()).increment(0);
        for status in ["active", "invalid"] {
            metrics::counter!("offstage_byok_checks_total", "provider" => vendor.word(), "status" => status).increment(0);
        }
    }
    for queue in queues {
        for name in FROM_THE_START_BY_QUEUE {
            metrics::counter!(*name, "queue" => queue.name()).increment(0);
        }
        let _registered = metrics::histogram!("offstage_recovery_seconds", "queue" => queue.name());
    }
    for kind in Registry::new(probe).entries() {
        for name in FROM_THE_START_BY_KIND {
            metrics::counter!(*name, "kind" => kind.name).increment(0);
        }
    }
    for outcome in TickOutcome::ALL {
        metrics::counter!("offstage_schedule_ticks_total", "outcome" => outcome.word()).increment(0);
    }
    let _registered = metrics::histogram!("offstage_schedule_late_seconds");
    for after in ["batch", "job"] {
        metrics::counter!("offstage_jobs_followed_total", "after" => after).increment(0);
    }
    for reason in ["expired", "removed"] {
        metrics::counter!("offstage_files_deleted_total", "reason" => reason).increment(0);
    }
}

/// Tells until `stop`.
pub(super) async fn run(engine: Arc<Engine>, queues: Vec<Queue>, stop: CancellationToken, mut connection: Commands) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        metrics::gauge!("offstage_worker_jobs_held").set(engine.held.len() as f64);
        for queue in &queues {
            if let Err(error) = engine.bounded(backlog(&engine, *queue)).await {
                tracing::debug!(queue = queue.name(), error = &error as &dyn std::error::Error, "could not take a queue's figures");
            }
            match push::depth(&mut connection, engine.redis.keys(), *queue).await {
                Ok(depth) => metrics::gauge!("offstage_queue_stream_jobs", "queue" => queue.name()).set(depth.total() as f64),
                Err(error) => tracing::debug!(queue = queue.name(), error = &error as &dyn std::error::Error, "could not measure a queue"),
            }
        }
    }
}

async fn backlog(engine: &Engine, queue: Queue) -> Result<(), LedgerError> {
    let backlog = dispatch::backlog(&engine.services.pool, queue, engine.services.clock.now()).await?;
    // Told up to the bound: counting millions every ten seconds would cost more than the figure is worth.
    metrics::gauge!("offstage_queue_waiting_jobs", "queue" => queue.name()).set(backlog.waiting as f64);
    metrics::gauge!("offstage_queue_oldest_due_seconds", "queue" => queue.name()).set(backlog.oldest_due.as_secs_f64());
    let held = switches::held(&engine.services.pool, queue).await?;
    metrics::gauge!("offstage_queue_switched_off_jobs", "queue" => queue.name()).set(held as f64);
    let held = breakers::held(&engine.services.pool, queue).await?;
    metrics::gauge!("offstage_queue_breaker_jobs", "queue" => queue.name()).set(held as f64);
    Ok(())
}
