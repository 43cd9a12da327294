//! The count: what was accepted against what was finished, and what arrived outside against what the ledger says of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use acceptance::until_within;
use sqlx::Row;

use crate::{arena::Arena, report::Report, traffic::Sent};

/// How long nothing at all may finish before the rest counts as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(90);
/// For streams to be tidy after the last job.
const TIDY_WITHIN: Duration = Duration::from_secs(60);

/// Waits until every job has ended.
pub async fn settled(arena: &Arena) {
    let mut best = i64::MAX;
    let mut since = Instant::now();
    loop {
        let open: Result<i64, _> =
            sqlx::query_scalar("SELECT count(*) FROM job_state WHERE state < 3").fetch_one(arena.world.sandbox.pool()).await;
        if let Ok(open) = open {
            if open == 0 {
                return;
            }
            if open < best {
                (best, since) = (open, Instant::now());
            }
        }
        if since.elapsed() > STUCK_AFTER {
            let rows = sqlx::query(
                "SELECT format('%s %s queue=%s state=%s reason=%s attempt=%s runs=%s crashes=%s run_at=%s changed=%s dispatched=%s waiting=%s',
                               j.id, j.kind, j.queue, s.state, s.reason, s.attempt, s.runs, s.crashes, s.run_at, s.changed_at,
                               EXISTS (SELECT FROM job_dispatched d WHERE d.job_id = j.id), EXISTS (SELECT FROM job_waiting w WHERE w.job_id = j.id))
                 FROM job_state s JOIN job j ON j.id = s.job_id WHERE s.state < 3 LIMIT 10",
            )
            .fetch_all(arena.world.sandbox.pool())
            .await;
            let stuck: Vec<String> = rows.into_iter().flatten().filter_map(|row| row.try_get(0).ok()).collect();
            panic!("{best} jobs are stuck for {} s, such as {stuck:#?}", STUCK_AFTER.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Every accepted job succeeded, each effect arrived, once or listed as unknown; nothing is left over anywhere.
pub async fn every_job_succeeded(arena: &Arena, sent: &Sent, report: &mut Report) {
    let world = &arena.world;
    settled(arena).await;
    report.line("accepted", sent.accepted.len());
    report.line("answers by status", format!("{:?}", sent.answers));
    report.line("connections refused, and broken before an answer", format!("{}, {}", sent.refused, sent.broken));
    report.line("longest until a job was accepted", crate::report::seconds(sent.longest_offer));

    let rows: Vec<(String, i16, i16, i32, i16, Option<String>)> = sqlx::query_as(
        "SELECT s.job_id::text, s.state, s.attempt, s.runs, s.crashes, (SELECT a.error::text FROM job_attempt a WHERE a.job_id = s.job_id AND a.outcome <> 'succeeded' ORDER BY a.run DESC LIMIT 1)
         FROM job_state s JOIN tenant t ON t.id = s.tenant_id WHERE t.name = 'acme'",
    )
    .fetch_all(world.sandbox.pool())
    .await
    .expect("the ledger");
    let rows: Vec<_> = rows.into_iter().filter(|row| !sent.apart.contains(&row.0)).collect();
    let known: BTreeSet<&String> = rows.iter().map(|row| &row.0).collect();
    let lost: Vec<_> = sent.accepted.iter().filter(|id| !known.contains(id)).collect();
    assert!(lost.is_empty(), "accepted, and the ledger has never heard of them: {lost:?}");
    let nobodys: Vec<_> = known.iter().filter(|id| !sent.accepted.contains(**id)).collect();
    assert!(nobodys.is_empty(), "in the ledger, and nobody was told that they were accepted: {nobodys:?}");
    let wrong: Vec<_> = rows.iter().filter(|row| row.1 != 3).collect();
    assert!(wrong.is_empty(), "{} of {} did not succeed: {:#?}", wrong.len(), rows.len(), &wrong[..wrong.len().min(5)]);
    // A receiver that a paused or starved process did not hear in time is the one reason for another attempt.
    let unheard = |row: &&(_, _, _, _, _, Option<String>)| row.5.as_ref().is_some_and(|error| error.contains("\"callback_failed\""));
    let (unheard, again): (Vec<_>, Vec<_>) = rows.iter().filter(|row| row.2 != 1).partition(unheard);
    report.line("jobs that needed another attempt because the receiver's answer came too late", unheard.len());
    assert!(
        again.is_empty(),
        "{} of {} needed another attempt (none of this is the job's fault): {:#?}",
        again.len(),
        rows.len(),
        &again[..again.len().min(5)]
    );
    // An attempt is a recorded retry, or the success: of a job that succeeded twice there would be one too many.
    let twice = "SELECT count(*) FROM job_state s JOIN tenant t ON t.id = s.tenant_id WHERE t.name = 'acme' AND s.state = 3
                 AND s.attempt <> 1 + (SELECT count(*) FROM job_attempt a WHERE a.job_id = s.job_id AND a.outcome = 'retry')";
    assert_eq!(world.number(twice).await, 0, "no job succeeded twice");
    report.line("finished", rows.len());
    report.line("runs that crashed, most crashes of one job", {
        let crashes: i64 = rows.iter().map(|row| i64::from(row.4)).sum();
        format!("{crashes}, {}", rows.iter().map(|row| row.4).max().unwrap_or_default())
    });

    effects(arena, &sent.accepted, report).await;
    nothing_left(arena).await;
}

/// Each job's effects as they arrived, against the ledger's list.
pub async fn effects(arena: &Arena, succeeded: &BTreeSet<String>, report: &mut Report) {
    let rows: Vec<(String, String, i64, i64)> = sqlx::query_as(
        "SELECT job_id::text, split_part(key, ':', 2), count(*), count(*) FILTER (WHERE state = 2) FROM effect WHERE key LIKE 'callback:%' GROUP BY 1, 2",
    )
    .fetch_all(arena.world.sandbox.pool())
    .await
    .expect("the effect ledger");
    let ledger: BTreeMap<(&str, &str), (i64, i64)> =
        rows.iter().map(|(job, phase, all, unknown)| ((job.as_str(), phase.as_str()), (*all, *unknown))).collect();
    let arrived = arena.effects.arrived();
    let mut doubled = 0;
    let mut unexplained = Vec::new();
    for (job, calls) in &arrived {
        for (phase, count) in [("started", calls.started.len()), ("finished", calls.finished.len())] {
            let (intended, unknown) = ledger.get(&(job.as_str(), phase)).copied().unwrap_or_default();
            let count = i64::try_from(count).expect("a count");
            if count > intended {
                doubled += 1;
                if unknown == 0 {
                    unexplained.push(format!("{job} {phase}: arrived {count} times, {intended} intended"));
                }
            }
        }
    }
    let missing: Vec<_> = succeeded.iter().filter(|job| arrived.get(*job).is_none_or(|calls| calls.finished.is_empty())).collect();
    let unknown = usize::try_from(rows.iter().map(|row| row.3).sum::<i64>()).expect("a count");
    report.line("effects doubled, of them unexplained", format!("{doubled}, {}", unexplained.len()));
    report.line("effects that the ledger lists as unknown", unknown);
    report.line("jobs that succeeded without their effect", missing.len());
    assert!(unexplained.is_empty(), "doubled, and not listed as unknown: {unexplained:#?}");
    assert!(missing.is_empty(), "succeeded, and their effect never arrived: {missing:?}");
}

/// The small tables and the streams are empty.
pub async fn nothing_left(arena: &Arena) {
    let world = &arena.world;
    for table in ["job_waiting", "job_dispatched"] {
        assert_eq!(world.number(format!("SELECT count(*) FROM {table}")).await, 0, "{table} is empty");
    }
    until_within(TIDY_WITHIN, "the streams are empty", async || {
        let mut left = Vec::new();
        let keys: Vec<String> =
            world.sandbox.redis.command(redis::cmd("KEYS").arg("{offstage:*")).await.map_err(|error| error.to_string())?;
        // A canary's stream always holds the latest proof that its replica consumes.
        for key in keys.into_iter().filter(|key| !key.contains(":canary:")) {
            // What is no stream of jobs answers with an error and has no length.
            match world.sandbox.redis.command::<i64>(redis::cmd("XLEN").arg(&key)).await {
                Ok(0) | Err(_) => {}
                Ok(length) => left.push(format!("{key} {length}")),
            }
        }
        if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
    })
    .await;
}
