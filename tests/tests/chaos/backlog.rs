//! A million jobs wait: what that costs Redis, the dispatcher, and who comes new.

use std::time::Duration;

use acceptance::{Callbacks, World, until_within};
use sandbox::Process;
use serde_json::json;
use tokio::process::Command;

use crate::{
    arena::{LONG, program},
    report::Report,
    seed::{Seed, size},
};

/// Redis' memory for all of it, whatever waits (R9 gives it 256 MB).
const MOST_OF_REDIS: f64 = 32.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backlog() {
    let seed = Seed::of("backlog");
    let world = World::start_with(program()).await;
    let jobs: u64 = size(20_000, 1_000_000);
    let tenants = 50;
    for number in 0..tenants {
        let _ = world.tenant(&format!("tenant{number:02}")).await;
    }
    // Behind the doors, for they would take a while; as the doors leave them.
    let rows = |table: &str, columns: &str, values: &str| {
        format!(
            "INSERT INTO {table} ({columns}) SELECT {values} FROM (
                SELECT n, (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '7000' || '8000' || lpad(to_hex(n), 12, '0'))::uuid AS id,
                       (SELECT min(id) FROM tenant WHERE name LIKE 'tenant%') + n % {tenants} AS tenant
                FROM generate_series(1, {jobs}) AS n
             ) g"
        )
    };
    let job = rows(
        "job",
        "id, tenant_id, priority, max_attempts, created_at, kind, queue, payload",
        "id, tenant, 1, 3, now(), 'probe.run', 'analytics', '{\"sleep_ms\": 600000}'",
    );
    let state =
        rows("job_state", "job_id, tenant_id, run_at, changed_at, state, reason, attempts_allowed", "id, tenant, now(), now(), 0, 3, 3");
    let waiting = rows("job_waiting", "job_id, tenant_id, run_at, priority, reason, queue", "id, tenant, now(), 1, 3, 'analytics'");
    // One statement, so that all of it is of one moment.
    let one = format!("WITH jobs AS ({job} RETURNING 1), states AS ({state} RETURNING 1) {waiting}");
    assert_eq!(world.execute(one).await, jobs);
    world.execute("ANALYZE job_waiting").await;

    let memory = async || -> f64 {
        let text: String = world.sandbox.redis.command(redis::cmd("INFO").arg("memory")).await.expect("INFO");
        let used = text.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse::<f64>().ok());
        used.expect("used_memory") / 1_048_576.0
    };
    let idle = memory().await;
    let worker = world.start_worker(program()).await;
    until_within(LONG, "all slots are taken", async || match world.number("SELECT count(*) FROM job_state WHERE state = 2").await {
        running if running >= 64 => Ok(()),
        running => Err(running),
    })
    .await;
    let dispatched = "SELECT count(*) FROM job_dispatched";
    let before = (cpu(&worker).await, world.number(dispatched).await);
    let watched = size(Duration::from_secs(2), Duration::from_secs(30));
    tokio::time::sleep(watched).await;
    let after = (cpu(&worker).await, world.number(dispatched).await);
    let used = memory().await;

    // Who comes new, with nothing in hand, is served beside all that.
    let callbacks = Callbacks::listen().await;
    let elsewhere =
        world.client.create_id(&json!({"kind": "probe.run", "payload": {"callback_url": callbacks.url(), "queue": "email"}})).await;
    world.client.succeeded(&elsewhere).await;

    let mut report = Report::of("backlog", "A million jobs wait", &seed);
    report.line("jobs that wait, of 50 tenants", jobs);
    report.line("of them handed to Redis, after the first filling", after.1);
    report.line("memory of Redis, MiB: before, with them", format!("{idle:.1}, {used:.1}"));
    report.line("worker's CPU meanwhile", format!("{:.2} s in {} s", after.0 - before.0, watched.as_secs()));
    for (name, statement) in STATEMENTS {
        let plan = explain(&world, statement).await;
        let time = plan.iter().find(|line| line.contains("Execution Time")).cloned().unwrap_or_default();
        report.line(*name, time.trim());
        assert!(!plan.iter().any(|line| line.contains("Seq Scan on job_waiting") || line.contains("Seq Scan on job_state")), "{plan:#?}");
    }
    assert!(used < MOST_OF_REDIS, "{used:.1} MiB");
    assert!(after.1 < size(5_000, 20_000), "the lanes are bounded: {} of the jobs are in them", after.1);
}

/// The dispatcher's statements, as it asks them of such a backlog.
const STATEMENTS: &[(&str, &str)] = &[
    ("plan: the next due", "SELECT run_at FROM job_waiting WHERE queue = 'analytics' AND run_at < 'infinity' ORDER BY run_at LIMIT 1"),
    (
        "plan: whose turn it is",
        "WITH RECURSIVE tenants (tenant_id) AS (
            (SELECT w.tenant_id FROM job_waiting w WHERE w.queue = 'analytics' AND w.priority = 1 AND w.tenant_id > -1 ORDER BY w.tenant_id LIMIT 1)
            UNION ALL
            SELECT n.tenant_id FROM tenants t CROSS JOIN LATERAL (
                SELECT w.tenant_id FROM job_waiting w WHERE w.queue = 'analytics' AND w.priority = 1 AND w.tenant_id > t.tenant_id
                ORDER BY w.tenant_id LIMIT 1
            ) n
        )
        SELECT t.tenant_id FROM tenants t
        WHERE EXISTS (SELECT FROM job_waiting w WHERE w.queue = 'analytics' AND w.priority = 1 AND w.tenant_id = t.tenant_id AND w.run_at <= now())
        LIMIT 200",
    ),
    (
        "plan: 20 jobs of each of 50 tenants, locked and joined",
        "WITH due AS MATERIALIZED (
            SELECT d.job_id FROM (SELECT DISTINCT id AS tenant_id FROM tenant) turn CROSS JOIN LATERAL (
                SELECT w.job_id FROM job_waiting w
                WHERE w.queue = 'analytics' AND w.priority = 1 AND w.tenant_id = turn.tenant_id AND w.run_at <= now()
                ORDER BY w.run_at, w.job_id LIMIT 20 FOR UPDATE SKIP LOCKED
            ) d
        ) SELECT count(*) FROM due JOIN job_state s USING (job_id)",
    ),
];

async fn explain(world: &World, statement: &str) -> Vec<String> {
    let mut session = world.sandbox.pool().begin().await.expect("a session");
    let settings = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL jit = off";
    sqlx::raw_sql(settings).execute(&mut *session).await.expect("the engine's settings");
    let explained = format!("EXPLAIN (ANALYZE, BUFFERS) {statement}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(explained)).fetch_all(&mut *session).await.expect("a plan")
}

/// The CPU time that a process has used, in seconds.
async fn cpu(process: &Process) -> f64 {
    let output =
        Command::new("ps").args(["-o", "cputimes=", "-p", &process.pid().expect("it runs").to_string()]).output().await.expect("ps");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("seconds")
}
