//! What becomes of ticks: jobs, skips, waits, notices.

use acceptance::{World, id_of, until};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::{Planned, outcomes};

#[tokio::test]
async fn a_tick_is_a_job_that_shows_where_it_comes_from() {
    let planned = Planned::at("2025-06-01T12:00:00Z").await;
    let worker = planned.worker().await;
    let client = planned.client();
    let id = planned.create(&json!({"name": "every_minute", "kind": "probe.run", "owner": "ada", "cron": "* * * * *"})).await;
    for minute in 1..=3 {
        planned.clock.advance(TimeDelta::minutes(1));
        planned
            .ticked(&id, "the tick's job has succeeded", |ticks| ticks.len() == minute && ticks[minute - 1]["job_state"] == "succeeded")
            .await;
    }
    let ticks = planned.history(&id).await;
    assert_eq!(outcomes(&ticks), ["job", "job", "job"]);
    let due: Vec<_> = ticks.iter().map(|tick| tick["due_at"].as_str().unwrap()).collect();
    assert_eq!(due, ["2025-06-01T12:01:00Z", "2025-06-01T12:02:00Z", "2025-06-01T12:03:00Z"]);
    let job = client.job(ticks[0]["job_id"].as_str().unwrap()).await;
    assert_eq!(job["schedule"], json!({"id": id, "name": "every_minute", "due_at": "2025-06-01T12:01:00Z"}), "{job}");
    assert_eq!((&job["owner"], &job["run_at"], &job["kind"]), (&json!("ada"), &json!("2025-06-01T12:01:00Z"), &json!("probe.run")));

    // Now, beside its ticks, and also while it is paused.
    client.post_nothing(&format!("/v1/schedules/{id}/pause")).await.expect(200);
    let answer = client.post_nothing(&format!("/v1/schedules/{id}/run")).await;
    let wished = answer.expect(202);
    assert_eq!(answer.header("location"), format!("/v1/jobs/{}", id_of(&wished)));
    client.succeeded(&id_of(&wished)).await;
    let ticks = planned.history(&id).await;
    assert_eq!((ticks.len(), &ticks[3]["manual"], &ticks[3]["job_id"]), (4, &json!(true), &wished["id"]));
    planned.clock.advance(TimeDelta::minutes(10));
    client.post_nothing(&format!("/v1/schedules/{id}/resume")).await.expect(200);
    planned.clock.advance(TimeDelta::minutes(1));
    let ticks = planned.ticked(&id, "it goes on", |ticks| ticks.len() > 4).await;
    assert_eq!((ticks.len(), &ticks[4]["due_at"]), (5, &json!("2025-06-01T12:14:00Z")), "what the pause covered does not exist");

    // Pages of it, latest first.
    let first = client.get(&format!("/v1/schedules/{id}/history?limit=3")).await.expect(200);
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = client.get(&format!("/v1/schedules/{id}/history?limit=3&cursor={cursor}")).await.expect(200);
    let both: Vec<Value> = [&first, &second].iter().flat_map(|page| page["items"].as_array().unwrap().clone()).collect();
    assert_eq!((both.len(), &second["next_cursor"]), (5, &Value::Null));
    assert!(planned.world.figure(&worker, "offstage_schedule_ticks_total", &["outcome=\"job\""]).await >= 4.0);
}

#[tokio::test]
async fn by_the_system_s_clock_too() {
    let (world, worker) = World::with_worker().await;
    let client = &world.client;
    let id = id_of(&client.post("/v1/schedules", &json!({"name": "often", "kind": "probe.run", "every_seconds": 1})).await.expect(201));
    let ticks = until("four ticks have succeeded", async || {
        let page = client.get(&format!("/v1/schedules/{id}/history")).await.expect(200);
        let ticks = page["items"].as_array().unwrap().clone();
        let done = ticks.iter().filter(|tick| tick["job_state"] == "succeeded").count();
        if done >= 4 { Ok(ticks) } else { Err(page) }
    })
    .await;
    let mut due: Vec<DateTime<Utc>> = ticks.iter().map(|tick| tick["due_at"].as_str().unwrap().parse().unwrap()).collect();
    due.sort_unstable();
    assert!(due.windows(2).all(|pair| pair[1] - pair[0] == TimeDelta::seconds(1)), "none is left out: {due:?}");
    let (late, counted) = (
        world.figure(&worker, "offstage_schedule_late_seconds_sum", &[]).await,
        world.figure(&worker, "offstage_schedule_late_seconds_count", &[]).await,
    );
    println!("ticks were {:.0} ms late at the mean", late / counted * 1_000.0);
}

#[tokio::test]
async fn jitter_moves_the_job_and_not_the_tick() {
    let planned = Planned::at("2025-06-01T12:00:00Z").await;
    let _worker = planned.worker().await;
    let id = planned.create(&json!({"name": "spread", "kind": "probe.run", "cron": "@hourly", "jitter_seconds": 1800})).await;
    let preview = planned.client().get(&format!("/v1/schedules/{id}/preview")).await.expect(200);
    planned.clock.set("2025-06-01T13:00:00Z".parse().unwrap());
    let ticks = planned.ticked(&id, "its job waits for its time", |ticks| ticks.len() == 1).await;
    let job = planned.client().job(ticks[0]["job_id"].as_str().unwrap()).await;
    assert_eq!(
        (&job["run_at"], &job["state"], &ticks[0]["due_at"]),
        (&preview["items"][0]["run_at"], &json!("waiting"), &json!("2025-06-01T13:00:00Z"))
    );
    planned.clock.set("2025-06-01T13:30:00Z".parse().unwrap());
    planned.ticked(&id, "it ran", |ticks| ticks[0]["job_state"] == "succeeded").await;
}

#[tokio::test]
async fn what_overlaps_goes_by_policy() {
    let planned = Planned::at("2025-06-01T12:00:00Z").await;
    let _worker = planned.worker().await;
    let client = planned.client();
    let mut ids = Vec::new();
    for overlap in ["allow", "skip", "queue"] {
        let schedule =
            json!({"name": overlap, "kind": "probe.run", "payload": {"sleep_ms": 3_600_000}, "cron": "* * * * *", "overlap": overlap});
        ids.push(planned.create(&schedule).await);
    }
    let running = |ticks: &[Value]| ticks.iter().filter(|tick| tick["job_state"] == "running").count();
    for minute in 1..=3 {
        planned.clock.advance(TimeDelta::minutes(1));
        for id in &ids {
            planned.ticked(id, "the tick was handled", |ticks| ticks.len() == minute && running(ticks) >= 1).await;
        }
    }
    let [allow, skip, queue] = ids.as_slice() else { panic!("three") };
    planned.ticked(allow, "all three run", |ticks| running(ticks) == 3).await;
    assert_eq!(outcomes(&planned.history(skip).await), ["job", "skipped_overlap", "skipped_overlap"]);
    let ticks = planned.history(queue).await;
    assert_eq!((outcomes(&ticks), planned.schedule(queue).await["queued"].as_i64()), (vec!["job", "queued", "queued"], Some(2)));
    // When the one before has ended, the next has its turn, one at a time.
    for (ended, left) in [(0, 1), (1, 0)] {
        let ticks = planned.history(queue).await;
        client.post_nothing(&format!("/v1/jobs/{}/cancel", ticks[ended]["job_id"].as_str().unwrap())).await;
        let ticks = planned.ticked(queue, "the next runs", |ticks| ticks[ended + 1]["job_state"] == "running").await;
        assert_eq!((running(&ticks), planned.schedule(queue).await["queued"].as_i64()), (1, Some(left)));
    }
    let ticks = planned.history(queue).await;
    assert_eq!(ticks[2]["due_at"], "2025-06-01T12:03:00Z");
    // And the one that skipped goes on once nothing is under way.
    let first = planned.history(skip).await[0]["job_id"].as_str().unwrap().to_owned();
    client.post_nothing(&format!("/v1/jobs/{first}/cancel")).await;
    client.wait_for(&first, "cancelled", |job| job["state"] == "cancelled").await;
    planned.clock.advance(TimeDelta::minutes(1));
    planned.ticked(skip, "it runs again", |ticks| ticks.len() == 4 && ticks[3]["outcome"] == "job").await;
}

#[tokio::test]
async fn what_nobody_handled_in_time_goes_by_policy_and_is_told() {
    let planned = Planned::at("2025-06-01T12:00:00Z").await;
    let worker = planned.worker().await;
    let mut ids = Vec::new();
    for missed in ["skip", "latest", "all"] {
        ids.push(
            planned.create(&json!({"name": missed, "kind": "probe.run", "owner": "ada", "cron": "0 * * * *", "missed": missed})).await,
        );
    }
    ids.push(
        planned
            .create(&json!({"name": "late", "kind": "probe.run", "cron": "0 * * * *", "missed": "all", "start_by_seconds": 7_200}))
            .await,
    );
    planned.clock.set("2025-06-01T13:00:00Z".parse().unwrap());
    for id in &ids {
        planned.ticked(id, "in time", |ticks| ticks.len() == 1 && ticks[0]["job_state"] == "succeeded").await;
    }
    worker.stop().await.unwrap();
    planned.clock.set("2025-06-01T18:30:00Z".parse().unwrap());
    worker.start().await.unwrap();
    let told = |ticks: &[Value]| {
        ticks
            .iter()
            .skip(1)
            .map(|tick| format!("{} {} {}", tick["outcome"].as_str().unwrap(), tick["ticks"], &tick["due_at"].as_str().unwrap()[11..16]))
            .collect::<Vec<_>>()
    };
    for (id, expected) in ids.iter().zip([
        &["skipped_missed 5 18:00"][..],
        &["skipped_missed 4 17:00", "job 1 18:00"],
        &["job 1 14:00", "job 1 15:00", "job 1 16:00", "job 1 17:00", "job 1 18:00"],
        &["too_late 1 14:00", "too_late 1 15:00", "too_late 1 16:00", "job 1 17:00", "job 1 18:00"],
    ]) {
        let ticks = planned.ticked(id, "handled", |ticks| told(ticks).len() == expected.len()).await;
        assert_eq!(told(&ticks), expected);
        // It skipped from the first one missed on.
        if ticks[1]["outcome"] == "skipped_missed" {
            assert_eq!(ticks[1]["first_due_at"], "2025-06-01T14:00:00Z");
        }
    }
    let notices = "SELECT count(*) FROM notification WHERE data ->> 'trouble' = 'missed'";
    assert_eq!(
        (
            planned.world.number(format!("{notices} AND owner = 'ada'")).await,
            planned.world.number(format!("{notices} AND owner = ''")).await
        ),
        (3, 1)
    );
    // The next ones are in time, whatever became of those.
    planned.clock.set("2025-06-01T19:00:30Z".parse().unwrap());
    for id in &ids {
        planned
            .ticked(id, "in time again", |ticks| {
                ticks.last().is_some_and(|tick| tick["due_at"] == "2025-06-01T19:00:00Z" && tick["outcome"] == "job")
            })
            .await;
    }
}

#[tokio::test]
async fn failures_in_a_row_are_told_once_until_it_succeeds_again() {
    let planned = Planned::at("2025-06-01T12:00:00Z").await;
    let _worker = planned.worker().await;
    let client = planned.client();
    let id = planned
        .create(&json!({"name": "shaky", "kind": "probe.run", "payload": {"outcome": "fail"}, "owner": "ada", "cron": "* * * * *", "notify_after_failures": 2}))
        .await;
    let notices =
        async || planned.world.number("SELECT count(*) FROM notification WHERE owner = 'ada' AND data ->> 'trouble' = 'failing'").await;
    let mut seen = 0;
    let mut next = async |state: &str| {
        planned.clock.advance(TimeDelta::minutes(1));
        seen += 1;
        planned.ticked(&id, "the job has ended", |ticks| ticks.len() == seen && ticks[seen - 1]["job_state"] == state).await;
        // What follows the end is a step of its own.
        until("its end was counted", async || match planned.world.number("SELECT count(*) FROM schedule_tick WHERE open").await {
            0 => Ok(()),
            open => Err(open),
        })
        .await;
        (planned.schedule(&id).await["failures"].as_i64().unwrap(), notices().await)
    };
    assert_eq!(next("failed").await, (1, 0));
    assert_eq!(next("failed").await, (2, 1));
    assert_eq!(next("failed").await, (3, 1), "told once");
    let change = |outcome: &str| {
        client.request(reqwest::Method::PATCH, &format!("/v1/schedules/{id}")).json(&json!({"payload": {"outcome": outcome}}))
    };
    client.send(change("ok")).await.expect(200);
    assert_eq!(next("succeeded").await, (0, 1));
    client.send(change("fail")).await.expect(200);
    assert_eq!(next("failed").await, (1, 1));
    assert_eq!(next("failed").await, (2, 2));
}
