//! What survives what: processes killed, paused and restarted, Redis emptied, killed and away, Postgres crashed. Accepted
//! equals finished, once each. Times are printed and not judged.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use acceptance::{Call, Callbacks, Load, Loaded, PATIENCE, Spread, World, probe, until, until_within};
use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Method;
use sandbox::{Launch, Process};
use serde_json::{Value, json};

/// Takeovers need some seconds of silence, many jobs some of work.
const LONG: Duration = Duration::from_secs(120);

/// Posts `count` probes that run for `sleep`, and returns their ids once all have started.
async fn running(world: &World, callbacks: &Callbacks, count: usize, sleep: Duration) -> BTreeSet<String> {
    let sleep = u64::try_from(sleep.as_millis()).unwrap();
    let mut ids = BTreeSet::new();
    for _ in 0..count {
        ids.insert(world.client.create_id(&probe(&json!({"sleep_ms": sleep, "callback_url": callbacks.url()}))).await);
    }
    let started = callbacks.wait_for(PATIENCE, "started", None, count).await;
    assert_eq!(jobs_of(&started), ids);
    ids
}

fn jobs_of(calls: &[Call]) -> BTreeSet<String> {
    calls.iter().map(|call| call.job.clone()).collect()
}

/// Waits until every worker has been heard for long enough to judge others, as in an installation that has been up.
async fn all_may_judge(world: &World) {
    until("every worker has been up for 7 s", async || {
        match world.number("SELECT count(*) FROM worker WHERE started_at > now() - interval '7 s'").await {
            0 => Ok(()),
            young => Err(young),
        }
    })
    .await;
}

/// Every accepted job succeeded, each by one run that counted.
async fn every_job_succeeded_once(world: &World, loaded: &Loaded) {
    let jobs = i64::try_from(loaded.ids.len()).unwrap();
    until_within(LONG, "every job is at its end", async || match world.number("SELECT count(*) FROM job_state WHERE state < 3").await {
        0 => Ok(()),
        open => Err(format!("{open} are not")),
    })
    .await;
    assert_eq!(loaded.ids.iter().collect::<BTreeSet<_>>().len(), loaded.ids.len(), "each answer named a job of its own");
    assert_eq!(world.number("SELECT count(*) FROM job").await, jobs, "as many jobs as were accepted");
    assert_eq!(
        world.number("SELECT count(*) FROM job_state WHERE state = 3 AND attempt = 1").await,
        jobs,
        "every one succeeded at its first attempt"
    );
    // Only crashes and hand-backs give their attempt back, so a second success would be a second attempt. The record of what else was
    // run ends before it.
    let after_the_end = "SELECT count(*) FROM job_attempt a JOIN job_state s ON s.job_id = a.job_id WHERE a.run >= s.runs";
    assert_eq!(world.number(after_the_end).await, 0, "nothing ran after a success");
    assert_eq!(world.number("SELECT count(*) FROM job_run WHERE outcome = 'succeeded'").await, jobs, "one success a job");
    assert_eq!(
        world.number("SELECT count(*) FROM job_dispatched").await + world.number("SELECT count(*) FROM job_waiting").await,
        0,
        "nothing is left over"
    );
    let known = world.number(format!("SELECT count(*) FROM job WHERE id = ANY ('{{{}}}')", loaded.ids.join(","))).await;
    assert_eq!(known, i64::try_from(loaded.ids.len()).unwrap(), "every 202 is a job");
}

fn probes(count: usize, payload: &Value) -> Vec<Value> {
    vec![probe(payload); count]
}

/// Twenty probes run on `victim`; it is killed; how long until each runs again.
async fn killed_under_twenty(world: &World, callbacks: &Callbacks, victim: &Process, jobs: &BTreeSet<String>, how: &str) {
    let killed = Instant::now();
    victim.kill9().await.unwrap().unwrap();
    let again = callbacks.wait_for(Duration::from_secs(30), "started", Some(killed), jobs.len()).await;
    assert_eq!(&jobs_of(&again), jobs, "all of them, once each");
    println!(
        "kill -9 of a worker with {} probes running, {how}: running again after {}",
        jobs.len(),
        again.iter().map(|call| call.received - killed).collect::<Spread>()
    );
    assert!(again.iter().all(|call| call.attempt == 1), "a crash costs no attempt");
    for id in jobs {
        let job = world.client.job_with_attempts(id).await;
        assert_eq!((job["state"].as_str(), job["attempt"].as_i64()), (Some("running"), Some(1)), "{job}");
        let outcomes: Vec<_> = job["attempts"].as_array().unwrap().iter().map(|run| run["outcome"].as_str().unwrap()).collect();
        assert_eq!(outcomes, ["crashed"], "the lost run is told of: {job}");
    }
    // The new holder hears of wishes, so it holds them for good.
    for id in jobs {
        world.client.post_nothing(&format!("/v1/jobs/{id}/cancel")).await;
    }
    for id in jobs {
        assert_eq!(world.client.ended(id).await["state"], "cancelled");
    }
}

#[tokio::test]
async fn another_worker_takes_over_from_a_killed_one() {
    let (world, victim) = World::with_worker().await;
    let callbacks = Callbacks::listen().await;
    let jobs = running(&world, &callbacks, 20, Duration::from_secs(600)).await;
    victim.set_restart(false).await.unwrap();
    world.worker().await;
    all_may_judge(&world).await;
    killed_under_twenty(&world, &callbacks, &victim, &jobs, "another one there").await;
}

#[tokio::test]
async fn a_killed_worker_that_comes_back_takes_over_from_itself() {
    let (world, victim) = World::with_worker().await;
    let callbacks = Callbacks::listen().await;
    let jobs = running(&world, &callbacks, 20, Duration::from_secs(600)).await;
    killed_under_twenty(&world, &callbacks, &victim, &jobs, "the same restarted").await;
}

#[tokio::test]
async fn a_suspect_whose_worker_is_killed_again_and_again_is_innocent_until_proved() {
    let (world, worker) = World::with_worker().await;
    let callbacks = Callbacks::listen().await;
    let later = (world.now().await + TimeDelta::hours(1)).to_rfc3339();
    let suspect = json!({"kind": "probe.run", "run_at": later, "payload": {"sleep_ms": 3_000, "callback_url": callbacks.url()}});
    let id = world.client.create_id(&suspect).await;
    // As after three lost workers, and with as many more as would have failed it before.
    world.execute(format!("UPDATE job_state SET crashes = 3 WHERE job_id = '{id}'")).await;
    world.execute("UPDATE job_waiting SET run_at = now()").await;
    let mut since = None;
    for _ in 0..4 {
        callbacks.wait_for(Duration::from_secs(60), "started", since, 1).await;
        since = Some(Instant::now());
        worker.kill9().await.unwrap().unwrap();
    }
    let job = world.client.succeeded(&id).await;
    assert_eq!(job["attempt"], 1, "{job}");
    let (crashes, deaths) = (format!("SELECT crashes FROM job_state WHERE job_id = '{id}'"), "SELECT max(deaths) FROM job_state");
    assert_eq!((world.number(crashes).await, world.number(deaths).await), (7, 0));
    assert_eq!(callbacks.of_phase("finished").len(), 1, "no child outlived its worker");
}

#[tokio::test]
async fn an_api_that_is_killed_under_load_loses_nothing_it_accepted() {
    let (world, _worker) = World::with_worker().await;
    let load = Load::start(&world.client, probes(1_000, &json!({})), 64);
    until("a third is accepted", async || if load.accepted() >= 333 { Ok(()) } else { Err(load.accepted()) }).await;
    world.api.kill9().await.unwrap().unwrap();
    let loaded = load.finish().await;
    println!("kill -9 of the API during 1,000 POSTs over 64 connections: answers by status (0 is none) {:?}", loaded.answers);
    assert!(loaded.answers.get(&0).is_some_and(|unanswered| *unanswered > 0), "it was killed in the middle");
    every_job_succeeded_once(&world, &loaded).await;
    assert_eq!(world.api.starts(), 2);
}

#[tokio::test]
async fn an_api_that_is_asked_to_stop_answers_what_it_took() {
    let (world, _worker) = World::with_worker().await;
    let load = Load::start(&world.client, probes(1_000, &json!({})), 16);
    until("a third is accepted", async || if load.accepted() >= 333 { Ok(()) } else { Err(load.accepted()) }).await;
    world.api.terminate().await.unwrap();
    let asked = Instant::now();
    let exit = world.api.wait_exit(PATIENCE).await.unwrap();
    println!("SIGTERM to the API under load: it ended after {:.2} s", asked.elapsed().as_secs_f64());
    assert_eq!(exit.code, Some(0), "{exit}\n{}", world.api.log());
    world.api.start().await.unwrap();
    let loaded = load.finish().await;
    // Without an answer are only those that came while nobody listened; what was taken was answered, so nothing was sent twice.
    assert!(loaded.answers.keys().all(|status| [0, 202].contains(status)), "{:?}", loaded.answers);
    every_job_succeeded_once(&world, &loaded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_jobs_outlive_an_emptied_redis() {
    const JOBS: usize = 20_000;
    let world = World::start().await;
    let began = Instant::now();
    let loaded = Load::start(&world.client, probes(JOBS, &json!({})), 64).finish().await;
    let accepted = began.elapsed();
    assert_eq!(loaded.answers.keys().collect::<Vec<_>>(), [&202], "{:?}", loaded.answers);

    let began = Instant::now();
    let _worker = world.worker().await;
    let succeeded = async || world.number("SELECT count(*) FROM job_state WHERE state = 3").await;
    until_within(LONG, "a quarter is done", async || match succeeded().await {
        done if done >= 5_000 => Ok(()),
        done => Err(done),
    })
    .await;
    world.sandbox.redis.flushall().await.unwrap();
    let at_flush = succeeded().await;
    every_job_succeeded_once(&world, &loaded).await;
    println!(
        "{JOBS} jobs accepted without a worker in {:.1} s, worked off in {:.1} s with a FLUSHALL after {at_flush}",
        accepted.as_secs_f64(),
        began.elapsed().as_secs_f64(),
    );
    assert_eq!(world.number("SELECT max(runs) FROM job_state").await, 1, "none ran twice");
    assert!(at_flush < 20_000, "emptied in the middle");
}

#[tokio::test]
async fn a_redis_that_dies_and_comes_back_empty_delays_and_loses_nothing() {
    let (world, _worker) = World::with_worker().await;
    let load = Load::start(&world.client, probes(2_000, &json!({"sleep_ms": 5})), 16);
    until("some are accepted", async || if load.accepted() >= 500 { Ok(()) } else { Err(load.accepted()) }).await;
    world.sandbox.redis.kill9().await.unwrap().unwrap();
    // Redis is away, and jobs are accepted as before.
    let while_away = load.accepted() + 500;
    until("more are accepted without Redis", async || if load.accepted() >= while_away { Ok(()) } else { Err(load.accepted()) }).await;
    world.sandbox.redis.start().await.unwrap();
    let back = Instant::now();
    let loaded = load.finish().await;
    assert_eq!(loaded.answers.keys().collect::<Vec<_>>(), [&202], "nobody was turned away: {:?}", loaded.answers);
    every_job_succeeded_once(&world, &loaded).await;
    println!(
        "2,000 jobs around a Redis that died and came back empty: all finished {:.1} s after it came back",
        back.elapsed().as_secs_f64()
    );
}

#[tokio::test]
async fn a_stream_that_repeats_itself_or_talks_nonsense_makes_nothing_run_twice() {
    let (world, worker) = World::with_worker().await;
    let callbacks = Callbacks::listen().await;
    let jobs = running(&world, &callbacks, 1, Duration::from_secs(2)).await;
    let id = jobs.first().unwrap();
    let bytes = |hex: &str| -> Vec<u8> {
        hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    };
    let real = bytes(&id.replace('-', ""));
    let add = async |field: &str, value: &[u8]| {
        let mut command = redis::cmd("XADD");
        command.arg("{offstage:analytics}:normal").arg("*").arg(field).arg(value);
        world.sandbox.redis.command::<String>(&command).await.unwrap();
    };
    let nobody = bytes("0197c2a45b6c7d8e9f0123456789abcd");
    for (field, value) in [("j", &real[..]), ("j", &real), ("j", &nobody), ("j", b"x"), ("j", b""), ("k", &real), ("j", &real)] {
        add(field, value).await;
    }
    // Behind all that the queue goes on.
    world.client.succeeded(&world.client.create_id(&probe(&json!({}))).await).await;
    world.client.succeeded(id).await;
    add("j", &real).await;
    world.client.succeeded(&world.client.create_id(&probe(&json!({}))).await).await;
    assert_eq!(callbacks.calls().len(), 2, "started once and finished once: {:?}", callbacks.calls());
    assert_eq!(world.client.job(id).await["attempt"], 1);
    assert_eq!(worker.exits().len(), 0);
    until("nonsense is taken off the stream as well", async || {
        match world.sandbox.redis.command::<i64>(redis::cmd("XLEN").arg("{offstage:analytics}:normal")).await.unwrap() {
            0 => Ok(()),
            left => Err(left),
        }
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_hangs_holds_nobody_up_who_posts() {
    let (world, _worker) = World::with_worker().await;
    world.sandbox.redis.pause().await.unwrap();
    let loaded = Load::start(&world.client, probes(200, &json!({})), 8).finish().await;
    assert_eq!(loaded.answers.keys().collect::<Vec<_>>(), [&202], "{:?}", loaded.answers);
    world.sandbox.redis.resume().await.unwrap();
    every_job_succeeded_once(&world, &loaded).await;
}

#[tokio::test]
async fn a_postgres_that_crashes_under_load_loses_nothing_it_confirmed() {
    let (world, _worker) = World::with_worker().await;
    let load = Load::start(&world.client, probes(1_500, &json!({"sleep_ms": 20})), 16);
    until("some are accepted", async || if load.accepted() >= 400 { Ok(()) } else { Err(load.accepted()) }).await;
    world.sandbox.postgres.kill9().await.unwrap().unwrap();
    world.sandbox.postgres.start().await.unwrap();
    let back = Instant::now();
    let loaded = load.finish().await;
    let known: Vec<_> = loaded.answers.keys().copied().collect();
    assert!(
        known.iter().all(|status| [200, 202, 503].contains(status)),
        "every request was answered, and told to come back where need be: {:?}",
        loaded.answers
    );
    every_job_succeeded_once(&world, &loaded).await;
    println!(
        "crash of Postgres under load: answers {:?}; all finished {:.1} s after it was back",
        loaded.answers,
        back.elapsed().as_secs_f64()
    );
}

#[tokio::test]
async fn programs_that_start_before_their_servers_wait_for_them() {
    let world = World::start().await;
    let sandbox = &world.sandbox;
    sandbox.redis.kill9().await.unwrap().unwrap();
    sandbox.postgres.kill9().await.unwrap().unwrap();
    // Left down if they end: they are to bear it.
    let programs = async { tokio::join!(sandbox.start_api(Launch::new().once()), sandbox.start_worker(Launch::new().once())) };
    let servers = async {
        until("both have been started", async || {
            let started: Vec<_> =
                sandbox.processes().into_iter().filter(|process| process.starts() > 0).map(|process| process.name().to_owned()).collect();
            if started.len() == 3 { Ok(()) } else { Err(started) }
        })
        .await;
        let worker = sandbox.processes().into_iter().find(|process| process.name() == "worker-1").unwrap();
        until("the worker says that it does not consume", async || {
            let anonymous = world.client.without_key();
            match anonymous.try_send(anonymous.request(Method::GET, &format!("{}/health/ready", worker.url()))).await {
                Ok(answer) if answer.status == 503 => Ok(()),
                other => Err(other.map(|answer| answer.status)),
            }
        })
        .await;
        sandbox.redis.start().await.unwrap();
        sandbox.postgres.start().await.unwrap();
    };
    let ((api, worker), ()) = tokio::join!(programs, servers);
    let client = world.client.at(api.unwrap().url());
    client.succeeded(&client.create_id(&probe(&json!({}))).await).await;
    assert_eq!(worker.unwrap().exits(), []);
}

#[tokio::test]
async fn a_paused_worker_loses_its_jobs_and_its_late_word_changes_nothing() {
    let (world, paused) = World::with_worker().await;
    let callbacks = Callbacks::listen().await;
    // Over while it is paused: it goes on with finished jobs in its hands.
    let jobs = running(&world, &callbacks, 5, Duration::from_secs(4)).await;
    paused.pause().await.unwrap();
    let _other = world.worker().await;
    let again = callbacks.wait_for(PATIENCE, "started", Some(Instant::now()), jobs.len()).await;
    assert_eq!(jobs_of(&again), jobs);
    paused.resume().await.unwrap();
    let done: Vec<Value> = {
        let mut done = Vec::new();
        for id in &jobs {
            done.push(world.client.succeeded(id).await);
        }
        done
    };
    // It notices, stops, and begins anew: from here on it works again.
    until("the paused worker noticed", async || match world.figure(&paused, "offstage_worker_fenced_total", &[]).await {
        noticed if noticed >= 1.0 => Ok(()),
        none => Err(none),
    })
    .await;
    until("both workers are known", async || match world.number("SELECT count(*) FROM worker").await {
        2 => Ok(()),
        count => Err(count),
    })
    .await;
    for before in done {
        let after = world.client.job_with_attempts(before["id"].as_str().unwrap()).await;
        assert_eq!(
            (after["version"].as_i64(), &after["state"], after["attempt"].as_i64()),
            (before["version"].as_i64(), &before["state"], Some(1)),
            "{after}"
        );
        let mut outcomes: Vec<_> = after["attempts"].as_array().unwrap().iter().map(|run| run["outcome"].as_str().unwrap()).collect();
        outcomes.sort_unstable();
        assert_eq!(outcomes, ["crashed", "succeeded"], "{after}");
        // The success is the second run's, which slept as long as it was told: not the first one's late word.
        let time = |field: &str| after[field].as_str().unwrap().parse::<DateTime<Utc>>().unwrap();
        assert!(time("finished_at") - time("started_at") >= TimeDelta::seconds(4), "{after}");
    }
    assert_eq!(paused.exits().len(), 0, "it was not restarted");
}

#[tokio::test]
async fn an_outcome_that_comes_after_the_claim_was_lost_changes_nothing() {
    let (world, worker) = World::with_worker().await;
    // Long enough that the row is locked before the outcome comes, on a machine that is slow as well. Without callbacks: the lock
    // would keep those from being written down.
    let id = &world.client.create_id(&probe(&json!({"sleep_ms": 5_000}))).await;
    world.client.wait_for(id, "running", |job| job["state"] == "running").await;
    // The outcome is on its way and has to wait, and meanwhile somebody else gets the job.
    let mut transaction = world.sandbox.pool().begin().await.unwrap();
    let state: i16 = sqlx::query_scalar("SELECT state FROM job_state FOR UPDATE").fetch_one(&mut *transaction).await.unwrap();
    assert_eq!(state, 2, "it still runs");
    until("the outcome waits for its row", async || match world.number("SELECT count(*) FROM pg_locks WHERE NOT granted").await {
        0 => Err("nothing waits"),
        _ => Ok(()),
    })
    .await;
    let taken = "UPDATE job_state SET token = token + 1, worker = gen_random_uuid(), runs = runs + 1, version = version + 1";
    assert_eq!(sqlx::query(taken).execute(&mut *transaction).await.unwrap().rows_affected(), 1);
    transaction.commit().await.unwrap();
    until("the outcome was told to be stale", async || match world.figure(&worker, "offstage_settles_stale_total", &[]).await {
        one if one >= 1.0 => Ok(()),
        none => Err(none),
    })
    .await;
    // Who has the job now never was a worker, so it is taken from him and runs again, and that run counts.
    let job = world.client.succeeded(id).await;
    assert_eq!(job["attempt"], 1, "{job}");
    assert_eq!(world.number("SELECT sum(run) FROM job_run WHERE outcome = 'succeeded'").await, 3, "the third run, which was ours");
}

#[tokio::test]
async fn a_worker_that_is_asked_to_stop_finishes_what_runs() {
    let (world, worker) = World::with_worker().await;
    let callbacks = Callbacks::listen().await;
    let jobs = running(&world, &callbacks, 8, Duration::from_secs(2)).await;
    worker.terminate().await.unwrap();
    let exit = worker.wait_exit(PATIENCE).await.unwrap();
    assert_eq!(exit.code, Some(0), "all it held was finished: {exit}\n{}", worker.log());
    for id in &jobs {
        let job = world.client.job(id).await;
        assert_eq!(
            (job["state"].as_str(), job["attempt"].as_i64()),
            (Some("succeeded"), Some(1)),
            "finished before the process ended: {job}"
        );
    }
    assert_eq!(world.number("SELECT count(*) FROM worker").await, 0, "it left in good order");
}

#[tokio::test]
async fn a_worker_out_of_grace_hands_back_what_still_runs() {
    let world = World::start().await;
    let worker = world.start_worker(Launch::new().env("OFFSTAGE_SHUTDOWN_GRACE_SECONDS", "1")).await;
    let callbacks = Callbacks::listen().await;
    let jobs = running(&world, &callbacks, 8, Duration::from_secs(5)).await;
    worker.terminate().await.unwrap();
    let exit = worker.wait_exit(PATIENCE).await.unwrap();
    assert_eq!(exit.code, Some(3), "it handed back: {exit}\n{}", worker.log());
    for id in &jobs {
        let job = world.client.job(id).await;
        assert_eq!((job["state"].as_str(), job["attempt"].as_i64()), (Some("queued"), Some(0)), "handed back, and no attempt used: {job}");
    }
    let stopped = Instant::now();
    let _other = world.worker().await;
    let again = callbacks.wait_for(PATIENCE, "started", Some(stopped), jobs.len()).await;
    println!(
        "handed back by a shutdown, running on another worker {} after that was started",
        again.iter().map(|call| call.received - stopped).collect::<Spread>()
    );
    for id in &jobs {
        assert_eq!(world.client.succeeded(id).await["attempt"], 1);
    }
}

#[tokio::test]
async fn workers_restarted_one_after_the_other_under_load_lose_nothing() {
    let world = World::start().await;
    let first = world.worker().await;
    let second = world.worker().await;
    let load = Load::start(&world.client, probes(3_000, &json!({"sleep_ms": 10})), 16);
    for worker in [&first, &second] {
        let seen = load.accepted() + 300;
        until("the load goes on", async || if load.accepted() >= seen.min(3_000) { Ok(()) } else { Err(load.accepted()) }).await;
        worker.terminate().await.unwrap();
        let exit = worker.wait_exit(PATIENCE).await.unwrap();
        assert!([Some(0), Some(3)].contains(&exit.code), "{exit}\n{}", worker.log());
        worker.start().await.unwrap();
        worker.wait_ready(PATIENCE).await.unwrap();
    }
    let loaded = load.finish().await;
    assert_eq!(loaded.answers.keys().collect::<Vec<_>>(), [&202], "{:?}", loaded.answers);
    every_job_succeeded_once(&world, &loaded).await;
    assert_eq!(world.number("SELECT count(*) FROM job_attempt WHERE outcome <> 'succeeded'").await, 0, "no run was lost");
}
