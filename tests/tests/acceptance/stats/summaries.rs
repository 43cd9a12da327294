//! Summaries of a product's own database: refreshed on schedule beside their readers, never two at once, failures shown.

use std::time::Duration;

use acceptance::{Client, SetClock, World, until};
use chrono::TimeDelta;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

/// The example's database with a trainer and two plans, and the product.
async fn mealplanner(world: &World) -> (Client, PgConnection) {
    let mut database = PgConnection::connect(&world.sandbox.postgres.product_url()).await.unwrap();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/mealplanner");
    let schema = std::fs::read_to_string(format!("{example}/summaries.sql")).unwrap();
    run(&mut database, &schema).await;
    run(&mut database, "INSERT INTO trainers (name) VALUES ('Ada'); INSERT INTO meal_plans (trainer_id) VALUES (1), (1)").await;
    let manifest = std::fs::read_to_string(format!("{example}/tenant.toml")).unwrap();
    let more = "\n[summaries.slow]\nsource = \"reporting\"\nfunction = \"slow\"\nevery_seconds = 86400\ntimeout_seconds = 20\n\
                [summaries.endless]\nsource = \"reporting\"\nfunction = \"endless\"\nevery_seconds = 86400\ntimeout_seconds = 1\n\
                [summaries.bare]\nsource = \"reporting\"\nview = \"bare\"\nevery_seconds = 86400\n\
                [summaries.missing]\nsource = \"reporting\"\nview = \"nowhere\"\nevery_seconds = 86400\n";
    run(
        &mut database,
        "CREATE TABLE runs (id bigserial, began timestamptz, ended timestamptz);
         CREATE FUNCTION slow() RETURNS void LANGUAGE plpgsql AS $$ DECLARE began timestamptz := clock_timestamp(); BEGIN
            PERFORM pg_sleep(0.4); INSERT INTO runs (began, ended) VALUES (began, clock_timestamp()); END $$;
         CREATE FUNCTION endless() RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(3600)';
         CREATE MATERIALIZED VIEW bare AS SELECT 1 AS one",
    )
    .await;
    (world.tenant_of("mealplanner", &(manifest + more)).await, database)
}

async fn run(database: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(database).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn worker(world: &World, clock: &SetClock) -> sandbox::Process {
    let launch = clock.launch().env("OFFSTAGE_SOURCE_MEALPLANNER_REPORTING_URL", world.sandbox.postgres.product_url());
    world.start_worker(launch).await
}

async fn refresh(client: &Client, summary: &str) -> String {
    client.create_id(&json!({"kind": "summary.refresh", "payload": {"summary": summary}})).await
}

async fn summary(client: &Client, name: &str) -> Value {
    let all = client.get("/v1/summaries").await.expect(200);
    all["items"].as_array().unwrap().iter().find(|item| item["name"] == name).unwrap_or_else(|| panic!("{all}")).clone()
}

#[tokio::test]
async fn a_trainers_summary_is_refreshed_on_schedule_beside_its_readers() {
    let (world, clock) = World::start_now().await;
    let (client, mut database) = mealplanner(&world).await;
    worker(&world, &clock).await;
    assert_eq!(summary(&client, "trainers").await["refreshed_at"], Value::Null);
    let first = client.succeeded(&refresh(&client, "trainers").await).await;
    assert_eq!(first["result"]["concurrently"], false, "nobody can read what was never filled");
    let plans: i64 =
        sqlx::query_scalar("SELECT plans FROM reporting.trainer_summary WHERE trainer_id = 1").fetch_one(&mut database).await.unwrap();
    assert_eq!(plans, 2);
    // A reader's transaction that is open all the while is in nobody's way.
    let mut reader = database.begin().await.unwrap();
    sqlx::query("SELECT * FROM reporting.trainer_summary").fetch_all(&mut *reader).await.unwrap();
    clock.advance(TimeDelta::seconds(400));
    let found = until("the clock had it refreshed", async || {
        let found = summary(&client, "trainers").await;
        if found["concurrently"] == true { Ok(found) } else { Err(found) }
    })
    .await;
    assert!(found["took_ms"].as_i64().unwrap() >= 0 && found["age"].as_i64().unwrap() < 400 && found["failing"].is_null(), "{found}");
    assert_eq!(found["of"], "reporting.trainer_summary");
    reader.rollback().await.unwrap();
    // The table that a function writes.
    client.succeeded(&refresh(&client, "trainer_days").await).await;
    let days: i64 =
        sqlx::query_scalar("SELECT plans FROM reporting.trainer_day WHERE trainer_id = 1").fetch_one(&mut database).await.unwrap();
    assert_eq!(days, 2);
    client.acting_for("ada").get("/v1/summaries").await.problem(403, "backend_only");
    let undeclared = json!({"kind": "summary.refresh", "payload": {"summary": "x"}});
    assert_eq!(client.post("/v1/jobs", &undeclared).await.pointers(), ["/payload/summary"]);
    assert_eq!(world.client.get("/v1/summaries").await.expect(200)["items"], json!([]));
}

#[tokio::test]
async fn never_two_at_once_whoever_dies() {
    let (world, clock) = World::start_now().await;
    let (client, mut database) = mealplanner(&world).await;
    let (first, _second) = (worker(&world, &clock).await, worker(&world, &clock).await);
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(refresh(&client, "slow").await);
    }
    first.kill9().await.unwrap();
    // Whose turn it is not looks again after some seconds of business time.
    until("all are done", async || {
        clock.advance(TimeDelta::seconds(6));
        let left = world
            .number("SELECT count(*) FROM job_state s JOIN job j ON j.id = s.job_id WHERE j.kind = 'summary.refresh' AND s.state <> 3")
            .await;
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    for job in &jobs {
        client.succeeded(job).await;
    }
    let overlapping: i64 =
        sqlx::query_scalar("SELECT count(*) FROM runs a JOIN runs b ON a.id < b.id AND a.began < b.ended AND b.began < a.ended")
            .fetch_one(&mut database)
            .await
            .unwrap();
    let runs: i64 = sqlx::query_scalar("SELECT count(*) FROM runs").fetch_one(&mut database).await.unwrap();
    assert!(overlapping == 0 && runs >= 4, "{overlapping} of {runs} overlap");
    // Who holds the lock is waited for, without an attempt lost.
    sqlx::query("SELECT pg_advisory_lock(hashtextextended('offstage summary mealplanner.trainers', 0))")
        .execute(&mut database)
        .await
        .unwrap();
    let job = refresh(&client, "trainers").await;
    let waiting = client.wait_for(&job, "put off", |job| job["state"] == "waiting" && job["reason"] != "window").await;
    assert_eq!(waiting["attempt"], 0, "{waiting}");
    sqlx::query("SELECT pg_advisory_unlock_all()").execute(&mut database).await.unwrap();
    // Its schedule may have come round meanwhile and be before it.
    until("its turn came", async || {
        clock.advance(TimeDelta::seconds(6));
        let job = client.job(&job).await;
        if job["state"] == "succeeded" { Ok(()) } else { Err(job) }
    })
    .await;
}

#[tokio::test]
async fn what_fails_is_shown() {
    let (world, clock) = World::start_now().await;
    let (client, _database) = mealplanner(&world).await;
    worker(&world, &clock).await;
    for (name, code, says) in [
        ("endless", "summary_timeout", "timeout_seconds"),
        ("bare", "summary_index_missing", "CREATE UNIQUE INDEX ON bare"),
        ("missing", "summary_missing", "nowhere"),
    ] {
        let failed =
            client.wait_for_within(Duration::from_secs(60), &refresh(&client, name).await, "failed", |job| job["state"] == "failed").await;
        assert_eq!(failed["error"]["code"], code, "{failed}");
        let found = summary(&client, name).await;
        assert_eq!((&found["failing"]["code"], &found["refreshed_at"]), (&json!(code), &Value::Null));
        assert!(found["failing"]["detail"].as_str().unwrap().contains(says), "{found}");
    }
}
