//! Metering: what a plan limits is limited, whoever races and whatever crashes; what was not used is given back; the books balance.

mod lost;
mod race;
mod spend;

use acceptance::{Client, World, id_of, until};
use chrono::TimeDelta;
use sandbox::Launch;
use serde_json::{Value, json};

/// A product whose plans limit by the hour and by the month.
const MANIFEST: &str = r#"
[tenant]
name = "forge"
[plans.pilot]
limits.calls = { hour = 2, month = 5 }
[plans.pro]
limits.calls = { hour = 4, month = 1_000 }
[plans.pack]
limits.calls = { month = 3 }
[plans.open]
limits.calls = { month = "unlimited" }
[usage]
default_plan = "pilot"
time_zone = "Europe/Berlin"
product.tokens = { day = 100 }
each_user.tokens = { day = 60 }
"#;

/// A probe that is charged one call.
fn call(more: &Value) -> Value {
    let mut payload = json!({"meter": {"metric": "calls", "amount": 1}});
    payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"kind": "probe.run", "payload": payload})
}

/// One that reserves some tokens and uses fewer.
fn tokens(amount: u64, used: u64, outcome: &str) -> Value {
    json!({"kind": "probe.run", "payload": {"meter": {"metric": "tokens", "amount": amount, "used": used}, "outcome": outcome}})
}

/// What `GET /v1/usage` says of a metric in a period: used, and the limit.
async fn used(client: &Client, metric: &str, period: &str) -> (u64, Option<u64>) {
    let usage = client.get("/v1/usage").await.expect(200);
    let found = usage["metrics"].as_array().unwrap().iter().find(|one| one["metric"] == metric && one["period"] == period).cloned();
    let found = found.unwrap_or_else(|| panic!("{metric} by the {period} in {usage}"));
    (found["used"].as_u64().unwrap(), found["limit"].as_u64())
}

/// Every counter is what it must be, and nothing is reserved for what has ended.
async fn balances(world: &World) {
    assert_eq!(world.number("SELECT count(*) FROM usage_drift").await, 0, "drift");
    let outlived =
        "SELECT count(*) FROM usage_reservation r WHERE NOT EXISTS (SELECT FROM job_state s WHERE s.job_id = r.job_id AND s.state < 3)";
    assert_eq!(world.number(outlived).await, 0, "reservations without a job");
    let without = "SELECT count(*) FROM job j JOIN job_state s ON s.job_id = j.id WHERE s.state < 3 AND (j.options ->> 'metered')::boolean
                   AND NOT EXISTS (SELECT FROM usage_reservation r WHERE r.job_id = j.id)";
    assert_eq!(world.number(without).await, 0, "jobs without a reservation");
}

async fn forge(world: &World) -> (Client, Client) {
    let forge = world.tenant_of("forge", MANIFEST).await;
    let ada = forge.acting_for("ada");
    (forge, ada)
}

#[tokio::test]
async fn over_the_limit_is_429_with_usage_limit_and_reset_and_a_repeat_is_charged_nothing() {
    let (world, clock) = World::start_at("2026-11-22T10:20:00Z", |api| api).await;
    let (forge, ada) = forge(&world).await;
    let mut first = call(&json!({}));
    first["idempotency_key"] = json!("one");
    let id = ada.create_id(&first).await;
    ada.create(&call(&json!({}))).await;
    let refused = ada.post("/v1/jobs", &call(&json!({}))).await;
    let problem = refused.problem(429, "USAGE_LIMIT_EXCEEDED");
    let told = |field: &str| problem[field].clone();
    assert_eq!((told("metric"), told("scope"), told("period")), (json!("calls"), json!("user"), json!("hour")));
    assert_eq!((told("usage"), told("limit"), told("resets_at")), (json!(2), json!(2), json!("2026-11-22T11:00:00Z")));
    assert_eq!(refused.header("retry-after"), "2400");
    // Who repeats an accepted request gets its job, also now.
    assert_eq!(id_of(&ada.post("/v1/jobs", &first).await.expect(200)), id);
    assert_eq!(used(&ada, "calls", "hour").await, (2, Some(2)));
    // Others have their own, and what is not metered is not limited.
    forge.acting_for("eve").create(&call(&json!({}))).await;
    ada.create(&json!({"kind": "probe.run", "payload": {}})).await;
    assert_eq!(world.number("SELECT count(*) FROM job").await, 4);
    // Reading uses nothing, and tells of the month by the product's clocks.
    let usage = ada.get("/v1/usage").await.expect(200);
    assert_eq!((&usage["user"], &usage["plan"], &usage["time_zone"]), (&json!("ada"), &json!("pilot"), &json!("Europe/Berlin")));
    let month =
        usage["metrics"].as_array().unwrap().iter().find(|one| one["metric"] == "calls" && one["period"] == "month").unwrap().clone();
    assert_eq!((&month["used"], &month["limit"], &month["remaining"]), (&json!(2), &json!(5), &json!(3)));
    assert_eq!((&month["starts_at"], &month["resets_at"]), (&json!("2026-10-31T23:00:00Z"), &json!("2026-11-30T23:00:00Z")));
    // The next hour has room until the month has none.
    for hour in 0..2 {
        clock.advance(TimeDelta::hours(1));
        for _ in 0..2 - hour {
            ada.create(&call(&json!({}))).await;
        }
    }
    let problem = ada.post("/v1/jobs", &call(&json!({}))).await.problem(429, "USAGE_LIMIT_EXCEEDED");
    assert_eq!(
        (&problem["period"], &problem["usage"], &problem["resets_at"]),
        (&json!("month"), &json!(5), &json!("2026-11-30T23:00:00Z"))
    );
    clock.advance(TimeDelta::days(9));
    ada.create(&call(&json!({}))).await;
    balances(&world).await;
}

#[tokio::test]
async fn users_are_put_on_plans_and_what_is_unlimited_is() {
    let world = World::start().await;
    let (forge, ada) = forge(&world).await;
    let answer = forge.put("/v1/users/ada", &json!({"plan": "gold", "add_ons": ["pack", "silver"]})).await;
    answer.problem(422, "validation_failed");
    assert_eq!(answer.pointers(), ["/add_ons/1", "/plan"]);
    let limit = async |body: Value| {
        forge.put("/v1/users/ada", &body).await;
        (used(&ada, "calls", "hour").await.1, used(&ada, "calls", "month").await.1)
    };
    assert_eq!(limit(json!({"plan": "pro"})).await, (Some(4), Some(1_000)));
    // An add-on stands in the plan's place for what it names.
    assert_eq!(limit(json!({"plan": "pro", "add_ons": ["pack"]})).await, (None, Some(3)));
    assert_eq!(limit(json!({})).await, (Some(2), Some(5)));
    assert_eq!(limit(json!({"plan": "open"})).await, (None, None));
    assert_eq!(forge.get("/v1/users/ada").await.expect(200)["plan"], "open");
    for _ in 0..12 {
        ada.create(&call(&json!({}))).await;
    }
    assert_eq!(used(&ada, "calls", "month").await, (12, None));
    // Whoever comes back to a plan that limits has used what they used.
    forge.put("/v1/users/ada", &json!({"plan": "pilot"})).await.expect(200);
    ada.post("/v1/jobs", &call(&json!({}))).await.problem(429, "USAGE_LIMIT_EXCEEDED");
    balances(&world).await;
}

#[tokio::test]
async fn what_fails_or_is_cancelled_is_given_back_and_what_was_used_is_charged() {
    let (world, _worker) = World::with_worker().await;
    let (forge, ada) = forge(&world).await;
    let failed = ada.create_id(&call(&json!({"outcome": "fail"}))).await;
    assert_eq!(ada.ended(&failed).await["state"], "failed");
    let mut later = call(&json!({}));
    later["run_at"] = json!(world.now().await + TimeDelta::hours(1));
    let waiting = ada.create_id(&later).await;
    assert_eq!(used(&ada, "calls", "hour").await.0, 1, "what waits is reserved");
    ada.post_nothing(&format!("/v1/jobs/{waiting}/cancel")).await.expect(200);
    assert_eq!(used(&ada, "calls", "hour").await.0, 0);
    let done = ada.create_id(&call(&json!({}))).await;
    ada.succeeded(&done).await;
    assert_eq!(used(&ada, "calls", "hour").await.0, 1, "a success is charged");
    // A cost: reserved at its worst, charged as it was, however the job ends.
    let spent = ada.create_id(&tokens(50, 7, "ok")).await;
    ada.succeeded(&spent).await;
    let wasted = ada.create_id(&tokens(50, 5, "fail")).await;
    assert_eq!(ada.ended(&wasted).await["state"], "failed");
    assert_eq!(used(&ada, "tokens", "day").await, (12, Some(60)));
    assert_eq!(used(&forge, "tokens", "day").await, (12, Some(100)), "the product's too");
    // Worst cases bound what is under way; the product's limit bounds all together.
    let problem = ada.post("/v1/jobs", &tokens(49, 1, "ok")).await.problem(429, "USAGE_LIMIT_EXCEEDED");
    assert_eq!((&problem["scope"], &problem["usage"], &problem["limit"]), (&json!("user"), &json!(12), &json!(60)));
    let mut held = tokens(60, 1, "ok");
    held["run_at"] = json!(world.now().await + TimeDelta::hours(1));
    let held = forge.acting_for("eve").create_id(&held).await;
    let problem = forge.acting_for("bob").post("/v1/jobs", &tokens(40, 1, "ok")).await.problem(429, "USAGE_LIMIT_EXCEEDED");
    assert_eq!((&problem["scope"], &problem["usage"], &problem["limit"]), (&json!("product"), &json!(72), &json!(100)));
    forge.post_nothing(&format!("/v1/jobs/{held}/cancel")).await.expect(200);
    // A job that failed and is tried again reserves again.
    ada.post_nothing(&format!("/v1/jobs/{failed}/retry")).await.expect(202);
    assert_eq!(ada.ended(&failed).await["state"], "failed");
    let explained = ada.get(&format!("/v1/jobs/{spent}/explain")).await.expect(200);
    assert_eq!(explained["usage"], json!([{"metric": "tokens", "charged": 7}]));
    let explained = ada.get(&format!("/v1/jobs/{failed}/explain")).await.expect(200);
    assert_eq!(explained["usage"], Value::Null, "{explained}");
    balances(&world).await;
}

#[tokio::test]
async fn what_the_house_makes_or_redrives_reserves_before_it_runs() {
    let (world, _worker) = World::with_worker().await;
    let (_, ada) = forge(&world).await;
    let chain = json!({"kind": "probe.run", "payload": {}, "then": [call(&json!({})), call(&json!({})), call(&json!({}))]});
    let parent = ada.create_id(&chain).await;
    ada.succeeded(&parent).await;
    until("all that follow have ended", async || match world.number("SELECT count(*) FROM job_state WHERE state > 2").await {
        4 => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(world.number("SELECT count(*) FROM job_state WHERE state = 3").await, 3, "two of the three, and what they followed");
    let refused = world.text("SELECT job_id::text FROM job_state WHERE state = 4").await;
    assert_eq!(ada.job(&refused).await["error"]["code"], "USAGE_LIMIT_EXCEEDED");
    assert_eq!(used(&ada, "calls", "hour").await, (2, Some(2)));
    // Redriven while there is no room it is refused at the door; once there is, it runs.
    ada.post_nothing(&format!("/v1/jobs/{refused}/retry")).await.problem(429, "USAGE_LIMIT_EXCEEDED");
    assert_eq!(ada.job(&refused).await["state"], "failed");
    balances(&world).await;
}

#[tokio::test]
async fn a_batch_is_refused_as_a_whole_or_one_by_one() {
    let world = World::start().await;
    let (_, ada) = forge(&world).await;
    let jobs = json!([call(&json!({})), {"kind": "probe.run", "payload": {}}, call(&json!({})), call(&json!({}))]);
    let refused = ada.post("/v1/jobs/batch", &json!({ "jobs": jobs })).await;
    // Those before it were given back with it: none of them is used, all of them were asked for, which never fits.
    let problem = refused.problem(429, "USAGE_LIMIT_EXCEEDED");
    assert_eq!((refused.pointers(), &problem["usage"], &problem["limit"]), (vec!["/jobs/3".to_owned()], &json!(0), &json!(2)), "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("0 of 2") && detail.contains("may use 3") && detail.contains("never fit"), "{detail}");
    assert_eq!(refused.header("retry-after"), "", "there is no use in coming again");
    assert_eq!(world.number("SELECT count(*) FROM job").await, 0);
    assert_eq!(used(&ada, "calls", "hour").await.0, 0);
    let body = json!({"jobs": jobs, "mode": "per_item", "idempotency_key": "all"});
    let accepted = ada.post("/v1/jobs/batch", &body).await.expect(202);
    let outcomes: Vec<_> = accepted["items"].as_array().unwrap().iter().map(|item| item["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["accepted", "accepted", "accepted", "refused"], "{accepted}");
    // What is said of an item is true beside those that were accepted.
    let said = accepted["items"][3].to_string();
    assert!(said.contains("the user has used 2 of 2 `calls`") && !said.contains("Nothing was accepted"), "{said}");
    ada.post("/v1/jobs/batch", &body).await.expect(200);
    assert_eq!(used(&ada, "calls", "hour").await, (2, Some(2)));
    balances(&world).await;
}

#[tokio::test]
async fn a_batch_is_told_what_was_used_before_it() {
    let world = World::start().await;
    let (_, ada) = forge(&world).await;
    ada.create_id(&call(&json!({}))).await;
    let jobs = json!([call(&json!({})), call(&json!({}))]);
    let refused = ada.post("/v1/jobs/batch", &json!({ "jobs": jobs })).await;
    let problem = refused.problem(429, "USAGE_LIMIT_EXCEEDED");
    assert_eq!((&problem["usage"], &problem["limit"]), (&json!(1), &json!(2)), "{problem}");
    // Two fit into an hour, so it may come again then.
    assert!(problem["resets_at"].is_string() && !refused.header("retry-after").is_empty(), "{problem}");
    // Where some are accepted, they are used for those that are not.
    let body = json!({"jobs": jobs, "mode": "per_item"});
    let items = ada.post("/v1/jobs/batch", &body).await.expect(202)["items"].clone();
    assert_eq!((&items[0]["outcome"], &items[1]["outcome"]), (&json!("accepted"), &json!("refused")), "{items}");
    assert!(items[1].to_string().contains("2 of 2"), "{items}");
    balances(&world).await;
}

#[tokio::test]
async fn what_a_plan_has_none_of_is_said_so() {
    let world = World::start().await;
    let manifest = MANIFEST
        .replace("limits.calls = { hour = 2, month = 5 }", "limits.calls = { month = 0 }")
        .replace("product.tokens = { day = 100 }\neach_user.tokens = { day = 60 }", "product.tokens = { day = 0 }");
    let ada = world.tenant_of("forge", &manifest).await.acting_for("ada");
    for (job, scope, words) in
        [(call(&json!({})), "user", "the user's plan has no `calls`"), (tokens(5, 1, "ok"), "product", "the product may use no `tokens`")]
    {
        let refused = ada.post("/v1/jobs", &job).await;
        let problem = refused.problem(429, "USAGE_LIMIT_EXCEEDED");
        assert_eq!((&problem["scope"], &problem["usage"], &problem["limit"]), (&json!(scope), &json!(0), &json!(0)), "{problem}");
        // The next period has none either.
        assert_eq!((problem.get("resets_at"), refused.header("retry-after")), (None, ""), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
    }
    assert_eq!(world.number("SELECT count(*) FROM job").await, 0);
}

#[tokio::test]
async fn a_reservation_that_outlives_its_job_lapses_and_the_check_sees_what_is_wrong() {
    let world = World::start().await;
    let (_, ada) = forge(&world).await;
    let check = async || {
        let output = world.sandbox.run_api(["usage", "check"]).await;
        output.map_or_else(|error| error.to_string(), |output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    ada.create_id(&call(&json!({}))).await;
    let lost = ada.create_id(&call(&json!({}))).await;
    assert!(check().await.contains("drift: none"), "{}", check().await);
    // As a program of before would end it.
    world.execute(format!("DELETE FROM job_waiting WHERE job_id = '{lost}'")).await;
    world.execute(format!("DELETE FROM job_dispatched WHERE job_id = '{lost}'")).await;
    world.execute(format!("UPDATE job_state SET state = 5, finished_at = now() WHERE job_id = '{lost}'")).await;
    assert!(check().await.contains("1 have outlived their jobs"), "{}", check().await);
    let _worker = world.start_worker(Launch::new()).await;
    until("it lapses", async || match world.number("SELECT count(*) FROM usage_reservation").await {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
    until("one of the two is charged", async || match used(&ada, "calls", "hour").await {
        (1, _) => Ok(()),
        other => Err(other),
    })
    .await;
    balances(&world).await;
    world.execute("UPDATE usage_counter SET used = used + 1 WHERE period = 0").await;
    assert!(check().await.contains("calls"), "{}", check().await);
}

/// What is counted is counted in the periods of a zone: another zone begins others, of which whoever applies it is warned.
#[tokio::test]
async fn another_time_zone_begins_other_periods_and_is_warned_of() {
    let (world, _clock) = World::start_at("2026-11-22T10:20:00Z", |api| api).await;
    let (_, ada) = forge(&world).await;
    ada.create(&call(&json!({}))).await;
    let path = world.sandbox.directory().join("forge.toml");
    let apply = async |manifest: &str, more: &[&str]| {
        std::fs::write(&path, manifest).unwrap();
        let path = path.display().to_string();
        let done = world.sandbox.run_api(["tenant", "apply", path.as_str()].iter().chain(more).copied()).await.unwrap();
        String::from_utf8([done.stdout, done.stderr].concat()).unwrap()
    };
    let zone = "time_zone = \"Europe/Berlin\"\n";
    let tokyo = MANIFEST.replace("Europe/Berlin", "Asia/Tokyo");
    for more in [&["--dry-run"][..], &[]] {
        let said = apply(&tokyo, more).await;
        assert!(said.contains("~ usage (time_zone)"), "{said}");
        assert!(said.contains("warning: days and months begin by the clocks of Asia/Tokyo and no more of Europe/Berlin"), "{said}");
    }
    until("the new zone is heard of", async || match used(&ada, "calls", "month").await.0 {
        0 => Ok(()),
        other => Err(other),
    })
    .await;
    let said = apply(MANIFEST, &[]).await;
    assert!(said.contains("warning: days and months begin by the clocks of Europe/Berlin"), "{said}");
    until("what was counted by the old one is found again", async || match used(&ada, "calls", "month").await.0 {
        1 => Ok(()),
        other => Err(other),
    })
    .await;
    // What is no other zone, or no change of it, is no warning.
    apply(&MANIFEST.replace(zone, ""), &[]).await;
    for manifest in
        [MANIFEST.replace(zone, "time_zone = \"UTC\"\n"), MANIFEST.replace(zone, "time_zone = \"UTC\"\n").replace("= 100", "= 90")]
    {
        let said = apply(&manifest, &[]).await;
        assert!(said.contains("~ usage") && !said.contains("warning"), "{said}");
    }
    balances(&world).await;
}
