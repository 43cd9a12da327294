//! The statements of step 7: one for outcomes of any kind, and a lean one for plain successes, which most outcomes are.
//!
//! What must stay true: a plain success is written as the statement for any outcome would write it.

use serde_json::{Value, json};
use sqlx::{PgConnection, PgExecutor, Row, postgres::PgRow};

use super::{Settled, Settlement};
use crate::{
    job::{JobId, PublishedFile, Reason, State},
    ledger::{LedgerError, files::page_token},
};

/// Writes a batch in the order of its jobs' ids.
///
/// A batch of both sorts is written by the one statement for all: two would take their locks in two orders.
pub(super) async fn outcomes(connection: &mut PgConnection, batch: &[&Settlement]) -> Result<Vec<Settled>, LedgerError> {
    if batch.iter().all(|settlement| settlement.is_plain_success()) {
        successes(connection, batch).await
    } else {
        of_any_kind(connection, batch).await
    }
}

fn column<'a, T>(batch: &[&'a Settlement], value: impl Fn(&'a Settlement) -> T) -> Vec<T> {
    batch.iter().map(|settlement| value(settlement)).collect()
}

async fn successes(executor: impl PgExecutor<'_>, batch: &[&Settlement]) -> Result<Vec<Settled>, LedgerError> {
    let rows = sqlx::query(
        "WITH settled AS (
            UPDATE job_state s
            SET state = 3, reason = 0, finished_at = o.finished_at, changed_at = o.finished_at, token = 0, version = s.version + 1
            FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::timestamptz[]) AS o (id, token, result, finished_at)
            WHERE s.job_id = ANY (ARRAY[o.id]) AND s.token = o.token AND s.state = 2
            RETURNING s.job_id, s.tenant_id, s.state, s.reason, s.run_at, o.result
        ), left_dispatched AS (
            DELETE FROM job_dispatched d USING settled s WHERE d.job_id = ANY (ARRAY[s.job_id])
        ), results AS (
            INSERT INTO job_result (job_id, tenant_id, result)
            SELECT job_id, tenant_id, result::jsonb FROM settled WHERE result IS NOT NULL
        )
        SELECT job_id, state, reason, run_at FROM settled",
    )
    .bind(column(batch, |settlement| settlement.claim.id.0))
    .bind(column(batch, |settlement| settlement.claim.token))
    .bind(column(batch, |settlement| settlement.result.as_ref().map(Value::to_string)))
    .bind(column(batch, |settlement| settlement.finished_at))
    .fetch_all(executor)
    .await?;

    rows.iter().map(|row| settled(row, batch)).collect()
}

async fn of_any_kind(executor: impl PgExecutor<'_>, batch: &[&Settlement]) -> Result<Vec<Settled>, LedgerError> {
    let rows = sqlx::query(
        "WITH outcome AS (
            SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::smallint[], $4::smallint[], $5::timestamptz[], $6::text[], $7::text[], $8::text[],
                                 $9::text[], $10::timestamptz[], $11::text[], $12::smallint[], $13::smallint[], $14::text[],
                                 $15::integer[], $16::smallint[], $17::smallint[], $18::text[], $19::timestamptz[])
                AS o (id, token, state, gives_back, run_at, outcome, error, result, file, finished_at, queue, priority, reason, notification, snoozed, crashes, died, breaker, gives_up_at)
        ), settled AS (
            UPDATE job_state s
            SET state = CASE WHEN s.cancel_requested AND o.state IN (0, 1) THEN 5 ELSE o.state END,
                reason = CASE WHEN s.cancel_requested THEN 0 ELSE o.reason END,
                attempt = s.attempt - o.gives_back,
                run_at = coalesce(o.run_at, s.run_at),
                finished_at = CASE WHEN o.state > 2 OR s.cancel_requested THEN o.finished_at END,
                changed_at = o.finished_at,
                -- What expired on its way to a slot has not begun: the latest run is the one before, if any.
                started_at = CASE WHEN o.state = 6 THEN (SELECT max(a.started_at) FROM job_attempt a WHERE a.job_id = s.job_id) ELSE s.started_at END,
                -- Of a job that was never put off before, `run_at` still says when it was due.
                counted_from = CASE WHEN o.state = 0 THEN coalesce(s.counted_from, s.run_at) ELSE s.counted_from END,
                snoozes = s.snoozes + (o.snoozed IS NOT NULL)::integer,
                snoozed_seconds = s.snoozed_seconds + coalesce(o.snoozed, 0),
                crashes = s.crashes + o.crashes,
                deaths = s.deaths + o.died,
                token = 0,
                version = s.version + 1
            FROM outcome o
            WHERE s.job_id = ANY (ARRAY[o.id]) AND s.token = o.token AND s.state = 2
            RETURNING s.job_id, s.tenant_id, s.state, s.reason, s.run_at, s.runs, s.attempt, s.snoozes, s.started_at, s.worker,
                      o.outcome, o.error, o.result, o.file, o.finished_at, o.queue, o.priority, o.notification, o.breaker, o.gives_up_at
        ), attempts AS (
            INSERT INTO job_attempt (job_id, run, attempt, tenant_id, started_at, finished_at, worker, outcome, error)
            SELECT job_id, runs, attempt, tenant_id, started_at, finished_at, worker, outcome, error::jsonb FROM settled WHERE outcome IS NOT NULL
        ), left_dispatched AS (
            DELETE FROM job_dispatched d USING settled s WHERE d.job_id = ANY (ARRAY[s.job_id]) AND s.state <> 1
        ), to_waiting AS (
            INSERT INTO job_waiting (job_id, tenant_id, run_at, priority, reason, queue)
            -- What is switched off or paused, or waits for a breaker, is never due: the dispatcher does not come by it, however many there are.
            SELECT job_id, tenant_id, CASE WHEN reason IN (5, 7, 8) THEN 'infinity' ELSE run_at END, priority, reason, queue FROM settled WHERE state = 0
        ), held AS (
            INSERT INTO job_held (job_id, tenant_id, kind, queue, breaker, gives_up_at, tried)
            SELECT s.job_id, s.tenant_id, j.kind, s.queue, s.breaker, s.gives_up_at, CASE s.reason WHEN 8 THEN s.snoozes ELSE 0 END
            FROM settled s JOIN job j ON j.id = ANY (ARRAY[s.job_id]) WHERE s.state = 0 AND s.reason IN (5, 7, 8)
        ), results AS (
            INSERT INTO job_result (job_id, tenant_id, result)
            SELECT job_id, tenant_id, result::jsonb FROM settled WHERE state = 3 AND result IS NOT NULL
        ), files AS (
            INSERT INTO job_file (job_id, tenant_id, object_key, file_name, content_type, bytes, sha256, completed_at, expires_at, page_token)
            SELECT s.job_id, s.tenant_id, f.object_key, f.file_name, f.content_type, f.bytes, decode(f.sha256, 'hex'), s.finished_at, f.expires_at,
                   convert_to(f.page_token, 'UTF8')
            FROM settled s,
                 jsonb_to_record(s.file::jsonb) AS f (object_key text, file_name text, content_type text, bytes bigint, sha256 text,
                                                      expires_at timestamptz, page_token text)
            WHERE s.state = 3 AND s.file IS NOT NULL
        ), notifications AS (
            INSERT INTO notification (tenant_id, owner, type, title, message, data, created_at)
            SELECT s.tenant_id, n.owner, 'system', n.title, n.message, n.data, s.finished_at
            FROM settled s, jsonb_to_record(s.notification::jsonb) AS n (owner text, title text, message text, data jsonb)
            -- A cancelled job's owner knows.
            WHERE s.state IN (3, 4) AND s.notification IS NOT NULL
        ), unsuccessful AS (
            INSERT INTO job_unsuccessful (job_id, tenant_id, state, kind, queue, error_code, ended_at)
            SELECT s.job_id, s.tenant_id, s.state, j.kind, s.queue, CASE WHEN s.state = 4 THEN s.error::jsonb ->> 'code' END, s.finished_at
            FROM settled s JOIN job j ON j.id = ANY (ARRAY[s.job_id]) WHERE s.state > 3
        )
        SELECT job_id, state, reason, run_at FROM settled",
    )
    .bind(column(batch, |settlement| settlement.claim.id.0))
    .bind(column(batch, |settlement| settlement.claim.token))
    .bind(column(batch, |settlement| settlement.state.code()))
    .bind(column(batch, |settlement| settlement.gives_back))
    .bind(column(batch, |settlement| settlement.run_at))
    .bind(column(batch, |settlement| settlement.outcome))
    .bind(column(batch, |settlement| settlement.error.as_ref().map(Value::to_string)))
    .bind(column(batch, |settlement| settlement.result.as_ref().map(Value::to_string)))
    .bind(column(batch, |settlement| settlement.file.as_ref().map(file_json)))
    .bind(column(batch, |settlement| settlement.finished_at))
    .bind(column(batch, |settlement| settlement.claim.handover.queue.name()))
    .bind(column(batch, |settlement| settlement.claim.priority.code()))
    .bind(column(batch, |settlement| settlement.reason.code()))
    .bind(column(batch, |settlement| settlement.notification().map(|notification| notification.to_string())))
    .bind(column(batch, |settlement| settlement.snoozed))
    .bind(column(batch, |settlement| settlement.crashes))
    .bind(column(batch, |settlement| settlement.died))
    .bind(column(batch, |settlement| settlement.breaker.as_ref().map(|(breaker, _)| breaker.as_str())))
    .bind(column(batch, |settlement| settlement.breaker.as_ref().map(|(_, gives_up)| *gives_up)))
    .fetch_all(executor)
    .await?;

    rows.iter().map(|row| settled(row, batch)).collect()
}

fn settled(row: &PgRow, batch: &[&Settlement]) -> Result<Settled, LedgerError> {
    let job = JobId(row.try_get("job_id")?);
    let code: i16 = row.try_get("state")?;
    let state = State::from_code(code).ok_or(LedgerError::Unknown { what: "state", value: code.to_string() })?;
    let code: i16 = row.try_get("reason")?;
    let reason = Reason::from_code(code).ok_or(LedgerError::Unknown { what: "reason", value: code.to_string() })?;
    let handover = batch
        .binary_search_by_key(&job, |settlement| settlement.claim.id)
        .ok()
        .and_then(|index| batch.get(index))
        .map(|settlement| settlement.claim.handover)
        .filter(|_| state == State::Queued);
    Ok(Settled { job, state, reason, run_at: row.try_get("run_at")?, handover })
}

fn file_json(file: &PublishedFile) -> String {
    json!({
        "object_key": file.object_key,
        "file_name": file.file_name,
        "content_type": file.content_type,
        "bytes": file.bytes,
        "sha256": hex::encode(file.sha256),
        "expires_at": file.expires_at,
        "page_token": page_token(),
    })
    .to_string()
}
