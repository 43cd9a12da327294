//! Who goes first: a tenant with hardly anything in hand does not feel another's flood, and tenants with backlogs get equal shares.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use acceptance::{Callbacks, Client, Load, World, until_within};
use serde_json::{Value, json};

use crate::{
    arena::{LONG, program},
    report::{Report, spread},
    seed::{Seed, full, size},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood() {
    let seed = Seed::of("fairness::flood");
    let world = World::start_with(program()).await;
    // In the small size few slots, so that a small flood is one.
    let launch = || if full() { program() } else { program().env("OFFSTAGE_CONCURRENCY", "analytics=4") };
    let _workers = [world.start_worker(launch()).await, world.start_worker(launch()).await];
    let quiet = world.tenant("globex").await;
    let callbacks = Callbacks::listen().await;
    let samples = size(20, 400);
    let idle = pick_ups(&quiet, &callbacks, samples).await;

    // What a product's background work is as a rule: it waits for somebody else.
    let flood: Vec<Value> = (0..size(2_500, 200_000)).map(|_| json!({"kind": "probe.run", "payload": {"sleep_ms": 100}})).collect();
    let count = flood.len();
    let load = Load::start(&world.client, flood, 16);
    let backlog = "SELECT count(*) FROM (SELECT FROM job_waiting WHERE run_at < 'infinity' LIMIT 100000) w";
    let least = size(300, 20_000);
    until_within(LONG, "a backlog", async || match world.number(backlog).await {
        waiting if waiting >= least => Ok(()),
        waiting => Err(waiting),
    })
    .await;
    let posting = pick_ups(&quiet, &callbacks, samples).await;
    drop(load.finish().await);
    let working = pick_ups(&quiet, &callbacks, samples).await;
    let left = world.number(backlog).await;

    let mut report = Report::of("fairness-flood", "One tenant's pick-up beside another's flood", &seed);
    report.line("pick-up (post sent to handler's first call), idle", spread(&idle));
    report.line(format!("while another posts {count} jobs over 16 connections"), spread(&posting));
    report.line("while those are worked off", spread(&working));
    report.line("of the flood still waiting then", left);
    assert!(left > 0, "the flood was over before the other was through: it proves nothing");
}

/// How long each of so many jobs, one after the other, took from being posted to its handler's first call.
async fn pick_ups(client: &Client, callbacks: &Callbacks, samples: usize) -> Vec<Duration> {
    let mut times = Vec::with_capacity(samples);
    for _ in 0..samples {
        let sent = Instant::now();
        let id = client.create_id(&json!({"kind": "probe.run", "payload": {"callback_url": callbacks.url()}})).await;
        let call = until_within(LONG, "its handler's call", async || {
            tokio::time::sleep(Duration::from_millis(1)).await;
            callbacks.calls().into_iter().rev().take(4).find(|call| call.job == id && call.phase == "started").ok_or(())
        })
        .await;
        times.push(call.received.duration_since(sent));
        client.succeeded(&id).await;
    }
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares() {
    let seed = Seed::of("fairness::shares");
    let world = World::start_with(program()).await;
    let tenants = size(4, 20);
    let each = size(500, 4_000);
    for number in 0..tenants {
        let client = world.tenant(&format!("tenant{number:02}")).await;
        // Unequal backlogs, posted one tenant after the other: neither buys anything.
        let jobs = each + each * number / tenants;
        let jobs: Vec<Value> = (0..jobs).map(|_| json!({"kind": "probe.run", "payload": {"sleep_ms": size(30, 10)}})).collect();
        drop(Load::start(&client, jobs, 16).finish().await);
    }
    let _worker = world.start_worker(program()).await;
    let finished = "SELECT count(*) FROM job_state WHERE state = 3";
    let reached = async |wanted: i64| {
        until_within(LONG, "so many finished", async || match world.number(finished).await {
            done if done >= wanted => Ok(done),
            done => Err(done),
        })
        .await
    };
    let total = i64::from(each * tenants);
    // What went straight to the lanes before there was a worker is through.
    let _ = reached(total / 3).await;
    let before = by_tenant(&world).await;
    let _ = reached(total * 2 / 3).await;
    let after = by_tenant(&world).await;
    let shares: Vec<f64> = after.iter().map(|(tenant, done)| (*done - before.get(tenant).copied().unwrap_or(0)) as f64).collect();
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    let worst = shares.iter().map(|share| (share / mean - 1.0).abs()).fold(0.0, f64::max);
    let mut report = Report::of("fairness-shares", "Equal shares of tenants with backlogs", &seed);
    report.line("tenants, finished of each meanwhile", format!("{tenants}, {mean:.0} on average"));
    report.line("the furthest from its equal share", format!("{:.1} %", worst * 100.0));
    // The small size ends before its shares have evened out; served one after the other, tenants would be apart by all they have.
    let allowed = if full() { 0.10 } else { 0.50 };
    assert!(worst <= allowed, "{shares:?}");
}

async fn by_tenant(world: &World) -> BTreeMap<i32, i64> {
    let rows: Vec<(i32, i64)> = sqlx::query_as("SELECT tenant_id, count(*) FROM job_state WHERE state = 3 GROUP BY tenant_id")
        .fetch_all(world.sandbox.pool())
        .await
        .expect("the counts");
    rows.into_iter().collect()
}
