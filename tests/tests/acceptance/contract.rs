//! What other programs rely on: the contract, the figures, the probes of orchestrators.

use std::{collections::BTreeSet, path::Path, time::Instant};

use acceptance::{PATIENCE, World, probe, until, until_within};
use serde_json::json;

#[tokio::test]
async fn the_written_contract_is_the_served_one() {
    let world = World::start().await;
    let copy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let copy = std::fs::read_to_string(&copy).unwrap_or_else(|error| panic!("{}: {error}", copy.display()));
    let printed = world.sandbox.run_api(["openapi"]).await.unwrap();
    assert_eq!(String::from_utf8(printed.stdout).unwrap(), copy, "write `api openapi` to docs/openapi.json");
    assert_eq!(world.client.without_key().get("/openapi.json").await.text(), copy);
}

/// Metered doors refuse by their limits, and what they say then is in the contract: a generated client has a branch for it.
#[tokio::test]
async fn what_metered_doors_refuse_with_is_in_the_contract() {
    let world = World::start().await;
    let manifest = format!(
        "[tenant]\nname = \"shop\"\n[plans.none]\nlimits.answers = {{ month = 0 }}\n[usage]\ndefault_plan = \"none\"\n\
         [ai.providers.main]\nkind = \"openai\"\nbase_url = \"{}\"\nkey_env = \"OFFSTAGE_AI_SANDBOX\"\n[ai.tasks.ask]\n\
         models = [{{ provider = \"main\", model = \"sandbox-small\" }}]\nprompt = \"{{{{ input.text }}}}\"\n\
         input = {{ type = \"object\" }}\nmetric = \"answers\"\n",
        world.sandbox.ai.url()
    );
    let ada = world.tenant_of("shop", &manifest).await.acting_for("ada");
    let contract = world.client.without_key().get("/openapi.json").await.expect(200);
    let (run, payload) = (json!({"input": {"text": "x"}}), json!({"task": "ask", "input": {"text": "x"}}));
    let job = json!({"kind": "ai.run", "payload": payload});
    let answers = [
        ("/v1/jobs", ada.post("/v1/jobs", &job).await),
        ("/v1/jobs/batch", ada.post("/v1/jobs/batch", &json!({"jobs": [job]})).await),
        ("/v1/ai/{task}", ada.post("/v1/ai/ask", &run).await),
        ("/v1/ai/{task}/batch", ada.post("/v1/ai/ask/batch", &json!({"jobs": [run]})).await),
        ("/v1/ai/usage", ada.get("/v1/ai/usage?days=91").await),
        ("/v1/ai/usage", ada.get("/v1/ai/usage?days=many").await),
    ];
    for (path, answer) in answers {
        let code = answer.json()["code"].as_str().unwrap_or_default().to_owned();
        let expected =
            if path == "/v1/ai/usage" { ["query_invalid", "validation_failed"].contains(&code.as_str()) } else { answer.status == 429 };
        assert!(expected, "{path}: {}", answer.text());
        let method = if path == "/v1/ai/usage" { "get" } else { "post" };
        let listed = &contract["paths"][path][method]["responses"][answer.status.to_string()]["description"];
        assert!(
            listed.as_str().is_some_and(|said| said.contains(&code)),
            "{path} answers {} `{code}`; the contract: {listed}",
            answer.status
        );
    }
}

/// The figures that dashboards and alerts are built on, by program.
const OF_API: &[&str] = &[
    "offstage_build_info",
    "offstage_http_request_duration_seconds_count",
    "offstage_http_requests_under_way",
    "offstage_jobs_accepted_total",
    "offstage_database_connections",
];
const OF_WORKER: &[&str] = &[
    "offstage_build_info",
    "offstage_queue_stream_jobs",
    "offstage_queue_waiting_jobs",
    "offstage_queue_oldest_due_seconds",
    "offstage_queue_switched_off_jobs",
    "offstage_queue_breaker_jobs",
    "offstage_breakers",
    "offstage_jobs_settled_total",
    "offstage_job_run_seconds_count",
    "offstage_job_wait_seconds_count",
    "offstage_worker_jobs_held",
    "offstage_worker_loop_lag_seconds_count",
];

#[tokio::test]
async fn figures_are_there_and_count() {
    let (world, worker) = World::with_worker().await;
    for outcome in ["ok", "ok", "fail"] {
        world.client.ended(&world.client.create_id(&probe(&json!({"outcome": outcome}))).await).await;
    }
    for (process, names) in [(&world.api, OF_API), (&worker, OF_WORKER)] {
        // The first look at the queues may take a while on a busy machine.
        until(&format!("{} has all figures", process.name()), async || {
            let answer = world.client.without_key().get(&format!("{}/metrics", process.url())).await;
            assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"), "{:?}", answer.headers);
            let text = answer.text();
            match names.iter().find(|name| !text.lines().any(|line| line.starts_with(**name))) {
                None => Ok(()),
                Some(missing) => Err(*missing),
            }
        })
        .await;
    }
    for (process, name, labels, expected) in [
        (&world.api, "offstage_jobs_accepted_total", &["kind=\"probe.run\""][..], 3.0),
        (&worker, "offstage_jobs_settled_total", &["outcome=\"succeeded\"", "queue=\"analytics\""], 2.0),
        (&worker, "offstage_jobs_settled_total", &["outcome=\"failed\""], 1.0),
        (&worker, "offstage_job_run_seconds_count", &[], 3.0),
        (&world.api, "offstage_http_request_duration_seconds_count", &["method=\"POST\"", "route=\"/v1/jobs\"", "status=\"202\""], 3.0),
    ] {
        // A figure follows what it counts, and may be a moment behind.
        until(&format!("{name} {labels:?} counts {expected}"), async || match world.figure(process, name, labels).await {
            counted if (counted - expected).abs() < 0.1 => Ok(()),
            counted => Err(counted),
        })
        .await;
    }
}

/// The names in the table of docs/operations.md.
fn figures_of_the_handbook() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (_, figures) = text.split_once("\n## Figures\n").expect("a chapter about figures");
    let figures = figures.split_once("\n## ").map_or(figures, |(figures, _)| figures);
    let rows = figures.lines().filter(|line| line.starts_with("| `"));
    let names = rows.flat_map(|row| row.split('|').nth(1).unwrap_or_default().split('`').skip(1).step_by(2));
    names.map(|name| name.split('{').next().unwrap_or_default().to_owned()).filter(|name| !name.is_empty()).collect()
}

#[tokio::test]
async fn every_figure_that_operators_read_of_is_served_and_none_else() {
    let (world, worker) = World::with_worker().await;
    world.client.succeeded(&world.client.create_id(&probe(&json!({}))).await).await;
    let told = figures_of_the_handbook();
    assert!(told.len() > 40, "the table was found: {told:?}");
    let served = async || {
        let mut names = BTreeSet::new();
        for process in [&world.api, &worker] {
            let text = world.client.without_key().get(&format!("{}/metrics", process.url())).await.text();
            names.extend(text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned)));
        }
        names
    };
    // Some are taken every ten seconds.
    until("every figure is served", async || {
        let missing: Vec<String> = told.difference(&served().await).cloned().collect();
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    })
    .await;
    let untold: Vec<String> = served().await.difference(&told).cloned().collect();
    assert!(untold.is_empty(), "docs/operations.md tells of every figure: {untold:?}");
}

#[tokio::test]
async fn a_worker_without_redis_says_that_it_does_not_consume() {
    let (world, worker) = World::with_worker().await;
    let ready = async |url: String, expected: u16| {
        until_within(PATIENCE, &format!("{url} answers {expected}"), async || {
            let answer = world.client.without_key().get(&format!("{url}/health/ready")).await;
            if answer.status == expected { Ok(answer.json()) } else { Err(answer.text()) }
        })
        .await
    };
    world.sandbox.redis.kill9().await.unwrap();
    let body = ready(worker.url(), 503).await;
    // Whichever queue was proved longest ago is the first.
    assert!(body.to_string().contains("it can't be sent"), "it says what is missing: {body}");
    // Alive all the time: restarting it would help nobody. And the API accepts, so it is ready, and says what it lacks.
    assert_eq!(world.client.without_key().get(&format!("{}/health/live", worker.url())).await.status, 200);
    let body = ready(world.api.url(), 200).await;
    assert_eq!(body["status"], "degraded", "{body}");
    world.sandbox.redis.start().await.unwrap();
    ready(worker.url(), 200).await;
    world.client.succeeded(&world.client.create_id(&probe(&json!({}))).await).await;
}

#[tokio::test]
async fn an_api_without_postgres_is_not_ready_and_says_when_to_come_again() {
    let world = World::start().await;
    world.sandbox.postgres.kill9().await.unwrap();
    let answer = world.client.post("/v1/jobs", &probe(&json!({}))).await;
    answer.problem(503, "database_unavailable");
    assert!(answer.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 0), "{:?}", answer.headers);
    let anonymous = world.client.without_key();
    until_within(PATIENCE, "unready", async || match anonymous.get("/health/ready").await.status {
        503 => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(anonymous.get("/health/live").await.status, 200);
    world.sandbox.postgres.start().await.unwrap();
    world.api.wait_ready(PATIENCE).await.unwrap();
    world.client.create(&probe(&json!({}))).await;
}

#[tokio::test]
async fn an_idle_worker_on_all_queues_asks_little_of_redis() {
    let (world, worker) = World::with_worker().await;
    let asked = async || {
        let stats: String = world.sandbox.redis.command(redis::cmd("INFO").arg("stats")).await.unwrap();
        let line = stats.lines().find_map(|line| line.strip_prefix("total_commands_processed:")).expect("a count of commands");
        line.trim().parse::<f64>().unwrap()
    };
    let canaries = async || world.figure(&worker, "offstage_queue_canary_seconds_count", &["analytics"]).await;
    // Its start is over: groups are made, the first canaries are through.
    until("a second canary is through", async || match canaries().await {
        through if through >= 2.0 => Ok(()),
        through => Err(through),
    })
    .await;
    // What a busy machine adds (canaries sent anew, readers that reconnect) passes; what an idle worker does by itself stays.
    let mut calmest = f64::INFINITY;
    for _ in 0..3 {
        let (began, before, first) = (Instant::now(), asked().await, canaries().await);
        until("four more", async || match canaries().await - first {
            more if more >= 4.0 => Ok(()),
            more => Err(more),
        })
        .await;
        calmest = calmest.min((asked().await - before) / began.elapsed().as_secs_f64());
        if calmest <= 20.0 {
            break;
        }
    }
    println!("an idle worker on all queues: {calmest:.1} commands to Redis a second");
    assert!(calmest <= 20.0, "{calmest:.1} commands a second");
}
