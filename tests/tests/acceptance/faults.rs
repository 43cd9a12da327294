//! Servers that are there and not well: blackholed, full, demoted, locked. A worker that can't consume says so and says why, one
//! that is only busy does not; and when the fault passes, work goes on. Times are printed and not judged.

use std::time::{Duration, Instant};

use acceptance::{Callbacks, PATIENCE, World, probe, until, until_within};
use chrono::TimeDelta;
use sandbox::{Launch, Process, faults::tcp::Mode};
use serde_json::{Value, json};

/// A worker needs twelve seconds without a canary to call itself unready.
const LONG: Duration = Duration::from_secs(90);

async fn readiness(world: &World, process: &Process) -> (u16, Value) {
    let answer = world.client.without_key().get(&format!("{}/health/ready", process.url())).await;
    (answer.status, answer.json())
}

/// Waits until a worker doubts its queue of probes; what it says, and how long it took. Queues come to it one by one.
async fn doubts(world: &World, worker: &Process) -> (Value, Duration) {
    let began = Instant::now();
    let said = until_within(LONG, "the queue is in doubt", async || match readiness(world, worker).await {
        (503, said) if said["queues"]["analytics"]["reason"].is_string() => Ok(said),
        other => Err(other),
    })
    .await;
    (said, began.elapsed())
}

/// Waits until a process calls itself ready or not; its words, and how long it took.
async fn becomes(world: &World, process: &Process, status: u16) -> (Value, Duration) {
    let began = Instant::now();
    let said = until_within(LONG, &format!("{} answers {status}", process.name()), async || match readiness(world, process).await {
        (answered, said) if answered == status => Ok(said),
        other => Err(other),
    })
    .await;
    (said, began.elapsed())
}

async fn post_and_finish(world: &World, jobs: usize) -> Duration {
    let began = Instant::now();
    for id in post(world, jobs).await {
        world.client.succeeded(&id).await;
    }
    began.elapsed()
}

async fn post(world: &World, jobs: usize) -> Vec<String> {
    let mut ids = Vec::with_capacity(jobs);
    for _ in 0..jobs {
        ids.push(world.client.create_id(&probe(&json!({}))).await);
    }
    ids
}

async fn all_finished(world: &World, ids: &[String]) {
    for id in ids {
        assert_eq!(world.client.succeeded(id).await["attempt"], 1);
    }
}

#[tokio::test]
async fn a_worker_behind_a_swallowing_network_says_so_and_goes_on_afterwards() {
    let world = World::start().await;
    let sandbox = &world.sandbox;
    let proxy = sandbox.proxy(sandbox.redis.address().unwrap()).unwrap();
    let worker = world.start_worker(Launch::new().envs(sandbox.redis.environment_at(proxy.address()))).await;
    post_and_finish(&world, 3).await;
    proxy.set(Mode::Blackhole);
    let (said, after) = doubts(&world, &worker).await;
    assert!(said["queues"]["analytics"]["reason"].as_str().unwrap().contains("no canary came through for"), "{said}");
    println!("Redis blackholed: unready after {:.1} s", after.as_secs_f64());
    let ids = post(&world, 20).await;
    proxy.set(Mode::Pass);
    let back = Instant::now();
    all_finished(&world, &ids).await;
    println!("blackhole over: 20 jobs finished {:.1} s later", back.elapsed().as_secs_f64());
    let (_, ready) = becomes(&world, &worker, 200).await;
    println!("ready {:.1} s after those", ready.as_secs_f64());
    assert_eq!(worker.exits(), []);
}

#[tokio::test]
async fn connections_to_redis_that_are_killed_come_back() {
    let (world, worker) = World::with_worker().await;
    for kind in ["normal", "pubsub"] {
        world.sandbox.redis.command::<i64>(redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg(kind)).await.unwrap();
    }
    println!("every connection to Redis killed: 20 jobs posted and finished in {:.1} s", post_and_finish(&world, 20).await.as_secs_f64());
    assert_eq!(worker.exits(), []);
}

#[tokio::test]
async fn a_redis_that_was_demoted_and_promoted_again_loses_nothing() {
    let (world, worker) = World::with_worker().await;
    let replica_of = |host: &'static str, port: &'static str| {
        let mut command = redis::cmd("REPLICAOF");
        command.arg(host).arg(port);
        command
    };
    // A replica of a master that is not there: it goes on serving what it has, and takes no writes.
    world.sandbox.redis.command::<()>(&replica_of("127.0.0.1", "1")).await.unwrap();
    let ids = post(&world, 20).await;
    let (said, after) = doubts(&world, &worker).await;
    println!("Redis demoted: unready after {:.1} s: {}", after.as_secs_f64(), said["queues"]["analytics"]["reason"]);
    world.sandbox.redis.command::<()>(&replica_of("NO", "ONE")).await.unwrap();
    let back = Instant::now();
    all_finished(&world, &ids).await;
    println!("promoted again: 20 jobs finished {:.1} s later", back.elapsed().as_secs_f64());
    becomes(&world, &worker, 200).await;
}

#[tokio::test]
async fn a_full_redis_holds_jobs_up_and_loses_none() {
    let (world, worker) = World::with_worker().await;
    let memory = async |bytes: &str| {
        world.sandbox.redis.command::<()>(redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes)).await.unwrap();
    };
    memory("1").await;
    let ids = post(&world, 50).await;
    let (said, after) = doubts(&world, &worker).await;
    println!("Redis full: unready after {:.1} s: {}", after.as_secs_f64(), said["queues"]["analytics"]["reason"]);
    assert!(said["queues"]["analytics"]["reason"].as_str().unwrap().contains("it can't be sent"), "{said}");
    memory("0").await;
    let back = Instant::now();
    all_finished(&world, &ids).await;
    println!("room again: 50 jobs finished {:.1} s later", back.elapsed().as_secs_f64());
    becomes(&world, &worker, 200).await;
}

#[tokio::test]
async fn a_backlog_stays_where_it_is_while_redis_is_full() {
    const BACKLOG: i64 = 3_000;
    let (world, worker) = World::with_worker().await;
    let memory = async |bytes: &str| {
        world.sandbox.redis.command::<()>(redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes)).await.unwrap();
    };
    memory("1").await;
    // Jobs of an hour from now, made due together.
    let later = (world.now().await + TimeDelta::hours(1)).to_rfc3339();
    let template = world.client.create_id(&json!({"kind": "probe.run", "payload": {}, "run_at": later})).await;
    world
        .execute(format!(
            "WITH more AS (SELECT gen_random_uuid() AS id FROM generate_series(2, {BACKLOG})),
             jobs AS (INSERT INTO job SELECT (j).* FROM (SELECT jsonb_populate_record(job, jsonb_build_object('id', more.id)) AS j FROM job, more WHERE job.id = '{template}') x),
             states AS (INSERT INTO job_state SELECT (s).* FROM (SELECT jsonb_populate_record(job_state, jsonb_build_object('job_id', more.id)) AS s FROM job_state, more WHERE job_id = '{template}') x)
             INSERT INTO job_waiting SELECT (w).* FROM (SELECT jsonb_populate_record(job_waiting, jsonb_build_object('job_id', more.id)) AS w FROM job_waiting, more WHERE job_id = '{template}') x"
        ))
        .await;
    world.execute("UPDATE job_waiting SET run_at = now() - interval '1 s'").await;
    until("the dispatcher tries", async || match world.number("SELECT count(*) FROM job_dispatched").await {
        0 => Err(0),
        _ => Ok(()),
    })
    .await;
    becomes(&world, &worker, 503).await;
    let moved = world.number("SELECT count(*) FROM job_dispatched").await;
    assert!(moved <= 1_000, "one batch left the backlog, and no more while it can't be pushed: {moved}");
    memory("0").await;
    until_within(LONG, "all are done", async || match world.number("SELECT count(*) FROM job_state WHERE state = 3").await {
        BACKLOG => Ok(()),
        done => Err(done),
    })
    .await;
    assert_eq!(world.number("SELECT max(runs) FROM job_state").await, 1);
}

#[tokio::test]
async fn locked_tables_are_waited_out_and_nobody_dies_of_it() {
    let (world, worker) = World::with_worker().await;
    let callbacks = Callbacks::listen().await;
    let running = world.client.create_id(&probe(&json!({"sleep_ms": 3_000, "callback_url": callbacks.url()}))).await;
    callbacks.wait_for(PATIENCE, "started", None, 1).await;
    let known = world.text("SELECT id::text FROM worker").await;
    let mut lock = world.sandbox.pool().begin().await.unwrap();
    sqlx::query("LOCK TABLE job, job_state, job_waiting, job_dispatched, job_attempt, job_cancel IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *lock)
        .await
        .unwrap();
    let answer = world.client.post("/v1/jobs", &probe(&json!({}))).await;
    answer.problem(503, "database_unavailable");
    assert!(answer.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 0), "{:?}", answer.headers);
    let (said, after) = doubts(&world, &worker).await;
    println!("job tables locked: worker unready after {:.1} s: {}", after.as_secs_f64(), said["queues"]["analytics"]["reason"]);
    assert_eq!(said["ledger"], "heard", "a lock on the jobs' tables is no reason to lose the lease: {said}");
    assert!(said["queues"]["analytics"]["reason"].as_str().unwrap().contains("Postgres takes no"), "{said}");
    becomes(&world, &world.api, 503).await;
    lock.rollback().await.unwrap();
    let back = Instant::now();
    let job = world.client.job_with_attempts(world.client.succeeded(&running).await["id"].as_str().unwrap()).await;
    assert_eq!(job["attempts"].as_array().unwrap().len(), 1, "it ran on, and once: {job}");
    post_and_finish(&world, 5).await;
    println!("lock gone: a running job and five more finished {:.1} s later", back.elapsed().as_secs_f64());
    becomes(&world, &worker, 200).await;
    becomes(&world, &world.api, 200).await;
    assert_eq!(world.text("SELECT id::text FROM worker").await, known);
    assert!(world.figure(&worker, "offstage_worker_fenced_total", &[]).await < 0.5, "nobody was fenced");
}

#[tokio::test]
async fn a_worker_cut_off_from_postgres_without_a_word_comes_back() {
    let world = World::start().await;
    let sandbox = &world.sandbox;
    let proxy = sandbox.proxy(sandbox.postgres.address().unwrap()).unwrap();
    let through_proxy = sandbox.postgres.environment_at(proxy.address());
    let worker = world.start_worker(Launch::new().envs(through_proxy)).await;
    post_and_finish(&world, 3).await;
    proxy.set(Mode::Blackhole);
    let (said, after) = becomes(&world, &worker, 503).await;
    println!("Postgres blackholed: worker unready after {:.1} s: {}", after.as_secs_f64(), said["ledger"]);
    let ids = post(&world, 20).await;
    // Until its statements under way have been given up, too.
    until("its heartbeats fail", async || match world.figure(&worker, "offstage_worker_heartbeat_failures_total", &[]).await {
        failed if failed >= 2.0 => Ok(()),
        failed => Err(failed),
    })
    .await;
    proxy.set(Mode::Pass);
    let back = Instant::now();
    all_finished(&world, &ids).await;
    println!("blackhole over: 20 jobs finished {:.1} s later", back.elapsed().as_secs_f64());
    becomes(&world, &worker, 200).await;
    assert_eq!(worker.exits(), []);
}

#[tokio::test]
async fn a_queue_full_of_long_jobs_is_ready() {
    let world = World::start().await;
    let worker = world.start_worker(Launch::new().env("OFFSTAGE_CONCURRENCY", "analytics=1")).await;
    let callbacks = Callbacks::listen().await;
    let long = world.client.create_id(&probe(&json!({"sleep_ms": 600_000, "callback_url": callbacks.url()}))).await;
    callbacks.wait_for(PATIENCE, "started", None, 1).await;
    post(&world, 3).await;
    // Canaries that came through since, each sent while the queue was full.
    let passed = async || world.figure(&worker, "offstage_queue_canary_seconds_count", &["analytics"]).await;
    let before = passed().await;
    until("three more canaries", async || match passed().await - before {
        more if more >= 3.0 => Ok(()),
        more => Err(more),
    })
    .await;
    let (status, said) = readiness(&world, &worker).await;
    assert_eq!((status, world.client.job(&long).await["state"].as_str()), (200, Some("running")), "{said}");
}
