//! What calls of models cost: by the prices of their time, within budgets, shown by day, told of from elsewhere.

use acceptance::{Client, World, id_of};
use sandbox::services::ai::{Answer, Trouble};
use serde_json::{Value, json};

use super::{balances, used};

/// A shop whose questions go to the sandbox' models: one with a price, one without; a budget of 4,000 millionths a day for each user.
fn manifest(world: &World, more: &str) -> String {
    let task = |name: &str, model: &str, more: &str| {
        format!(
            "[ai.tasks.{name}]\nmodels = [{{ provider = \"main\", model = \"{model}\" }}]\nprompt = \"{{{{ input.prompt }}}}\"\n\
             input = {{ type = \"object\" }}\nmax_tokens = 100\ntimeout_seconds = 60\n{more}\n"
        )
    };
    let schema = "output = { type = \"object\", required = [\"score\"], properties = { score = { type = \"integer\" } } }";
    format!(
        "[tenant]\nname = \"shop\"\n[plans.free]\nlimits.answers = {{ month = 3 }}\n[usage]\ndefault_plan = \"free\"\n\
         each_user.ai_cost = {{ day = 4000 }}\n{more}\n\
         [ai.providers.main]\nkind = \"openai\"\nbase_url = \"{url}\"\nkey_env = \"OFFSTAGE_AI_SANDBOX\"\n\
         [[ai.prices]]\nmodel = \"sandbox-small\"\ninput = 1_000_000\noutput = 4_000_000\n\
         [[ai.prices]]\nmodel = \"sandbox-small\"\nvalid_from = \"2999-01-01\"\ninput = 9_000_000\noutput = 9_000_000\n{tasks}",
        url = world.sandbox.ai.url(),
        tasks = [
            task("answer", "sandbox-small", "metric = \"answers\""),
            task("rate", "sandbox-small", schema),
            task("kept", "sandbox-small", "metric = \"answers\"\ncache = { ttl_seconds = 3600 }"),
        ]
        .join("\n"),
    )
}

async fn shop(world: &World, more: &str) -> (Client, Client) {
    let shop = world.tenant_of("shop", &manifest(world, more)).await;
    let ada = shop.acting_for("ada");
    (shop, ada)
}

async fn ask(client: &Client, task: &str, prompt: &str) -> String {
    id_of(&client.post(&format!("/v1/ai/{task}"), &json!({"input": {"prompt": prompt}})).await.expect(202))
}

fn tokens(input: u64, output: u64) -> Answer {
    Answer { tokens: Some((input, output)), ..Answer::default() }
}

/// What `GET /v1/ai/usage` says of a model today.
async fn today(client: &Client, model: &str) -> Value {
    let usage = client.get("/v1/ai/usage").await.expect(200);
    usage["days"].as_array().unwrap().iter().find(|day| day["model"] == model).cloned().unwrap_or(Value::Null)
}

#[tokio::test]
async fn a_call_is_written_down_with_its_tokens_and_its_price() {
    let (world, _worker) = World::with_worker().await;
    let (shop, ada) = shop(&world, "").await;
    let ai = &world.sandbox.ai;
    ai.script(tokens(100, 50));
    let job = ask(&ada, "answer", "What is the sea?").await;
    ada.succeeded(&job).await;
    // 100 at 1, and 50 at 4 millionths of the currency.
    let day = today(&ada, "sandbox-small").await;
    assert_eq!((&day["calls"], &day["answered"], &day["unpriced_calls"]), (&json!(1), &json!(1), &json!(0)), "{day}");
    assert_eq!((&day["input_tokens"], &day["output_tokens"], &day["cost_micros"]), (&json!(100), &json!(50), &json!(300)), "{day}");
    assert_eq!((&day["provider"], &day["credential"]), (&json!("main"), &json!("product")));
    assert_eq!((used(&ada, "ai_cost", "day").await, used(&ada, "answers", "month").await), ((300, Some(4_000)), (1, Some(3))));
    let explained = ada.get(&format!("/v1/jobs/{job}/explain")).await.expect(200);
    assert_eq!(explained["usage"], json!([{"metric": "ai_cost", "charged": 300}, {"metric": "answers", "charged": 1}]), "{explained}");
    // A model without a price costs nobody knows what, which is not nothing.
    let unpriced = manifest(&world, "").replace("\"shop\"", "\"other\"").replace("each_user.ai_cost = { day = 4000 }\n", "");
    let other = world.tenant_of("other", &unpriced.replace("model = \"sandbox-small\" }]", "model = \"sandbox-large\" }]")).await;
    let eve = other.acting_for("eve");
    ai.script(tokens(10, 10));
    eve.succeeded(&ask(&eve, "answer", "How deep?").await).await;
    let day = today(&eve, "sandbox-large").await;
    assert_eq!((&day["cost_micros"], &day["unpriced_calls"]), (&Value::Null, &json!(1)), "{day}");
    // A failed answer costs, and is no answer of the plan's.
    ai.script(Answer { text: Some("no".into()), ..tokens(10, 10) });
    ai.script(Answer { text: Some("neither".into()), ..tokens(20, 10) });
    assert_eq!(ada.ended(&ask(&ada, "rate", "How good?").await).await["state"], "failed");
    assert_eq!(used(&ada, "ai_cost", "day").await.0, 300 + 50 + 60);
    assert_eq!(used(&ada, "answers", "month").await.0, 1);
    // Of a call whose answer can't be read, an estimate, marked so; the next one is made by the next attempt.
    ai.script(Answer { trouble: Some(Trouble::Malformed), ..Answer::default() });
    ai.script(tokens(1, 1));
    ada.succeeded(&ask(&ada, "answer", "And now?").await).await;
    let day = today(&ada, "sandbox-small").await;
    assert_eq!((&day["calls"], &day["answered"], &day["estimated_calls"]), (&json!(5), &json!(4), &json!(1)), "{day}");
    // Never below what it can have taken: all of its answer's 100 tokens.
    assert!(used(&ada, "ai_cost", "day").await.0 >= 410 + 400 + 5);
    assert_eq!(used(&ada, "answers", "month").await.0, 2, "one success is one answer");
    // Nobody else sees it, and the product sees all.
    assert_eq!(today(&shop.acting_for("eve"), "sandbox-small").await, Value::Null);
    assert_eq!(today(&shop, "sandbox-small").await["calls"], 5);
    balances(&world).await;
}

#[tokio::test]
async fn a_budget_is_reserved_at_its_worst_and_kept() {
    let (world, _worker) = World::with_worker().await;
    let (shop, ada) = shop(&world, "product.ai_cost = { month = 1_000_000 }").await;
    let ai = &world.sandbox.ai;
    // Each may cost 400 for its answer and some hundreds for its question: six at once are too much for a budget of 4,000.
    ai.usually(Answer { delay_ms: 1_500, text: Some("no".into()), ..tokens(10, 100) });
    let mut accepted = Vec::new();
    let mut refused = 0;
    for number in 0..6 {
        let answer = ada.post("/v1/ai/rate", &json!({"input": {"prompt": format!("Number {number}?")}})).await;
        if answer.status == 202 {
            accepted.push(id_of(&answer.json()));
        } else {
            let problem = answer.problem(429, "USAGE_LIMIT_EXCEEDED");
            assert_eq!((&problem["metric"], &problem["scope"], &problem["limit"]), (&json!("ai_cost"), &json!("user"), &json!(4_000)));
            refused += 1;
        }
    }
    assert!(!accepted.is_empty() && refused > 0, "{accepted:?}");
    for id in &accepted {
        // What is said is no JSON: asked twice, each reserved before it is made, or not made.
        assert_eq!(ada.ended(id).await["state"], "failed");
    }
    let spent = used(&ada, "ai_cost", "day").await.0;
    assert!(spent > 0 && spent <= 4_000, "{spent}");
    assert_eq!(used(&shop, "ai_cost", "month").await.0, spent, "the product's counter has the same");
    let billed: i64 = i64::try_from(ai.calls().len()).unwrap() * 410;
    assert_eq!(world.number("SELECT sum(cost) FROM ai_call").await, billed, "what the provider will ask for");
    assert_eq!(i64::try_from(spent).unwrap(), billed);
    balances(&world).await;
}

/// Of a call that was not foreseen when its job was accepted.
#[tokio::test]
async fn a_repair_that_the_budget_has_no_room_for_is_not_made() {
    let (world, _worker) = World::with_worker().await;
    let (_, ada) = shop(&world, "").await;
    let ai = &world.sandbox.ai;
    let asked = json!({"input": {"prompt": "How good?"}});
    let mut later = asked.clone();
    later["run_at"] = json!(world.now().await + chrono::TimeDelta::hours(1));
    let waiting = id_of(&ada.post("/v1/ai/rate", &later).await.expect(202));
    let reserved = used(&ada, "ai_cost", "day").await.0;
    ada.post_nothing(&format!("/v1/jobs/{waiting}/cancel")).await.expect(200);
    // Room for one such call, and for what is left of that by one that was made.
    ai.script(tokens(4_000 - reserved - 200, 0));
    ada.succeeded(&ask(&ada, "answer", "What is the sea?").await).await;
    ai.script(Answer { text: Some("no".into()), ..tokens(10, 100) });
    let job = ada.ended(&id_of(&ada.post("/v1/ai/rate", &asked).await.expect(202))).await;
    assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("USAGE_LIMIT_EXCEEDED")), "{job}");
    assert_eq!(ai.calls().len(), 2, "one of either job");
    assert_eq!(used(&ada, "ai_cost", "day").await, (4_000 - reserved - 200 + 410, Some(4_000)), "and both are charged");
    balances(&world).await;
}

#[tokio::test]
async fn a_kept_answer_and_a_repeat_are_charged_nothing() {
    let (world, _worker) = World::with_worker().await;
    let (_, ada) = shop(&world, "").await;
    for _ in 0..5 {
        let job = ask(&ada, "kept", "What is the sea?").await;
        ada.succeeded(&job).await;
    }
    assert_eq!(world.sandbox.ai.calls().len(), 1);
    assert_eq!(used(&ada, "answers", "month").await, (1, Some(3)));
    balances(&world).await;
}

#[tokio::test]
async fn use_made_elsewhere_is_told_once_shown_to_its_user_alone_and_exported() {
    let (world, _worker) = World::with_worker().await;
    let (shop, ada) = shop(&world, "").await;
    let call = |id: &str, user: &str| json!({"id": id, "user": user, "provider": "openai", "model": "sandbox-small", "input_tokens": 1_000, "output_tokens": 100});
    let told = json!({"calls": [call("1", "ada"), call("2", "eve"), call("2", "eve"), {"id": "3", "provider": "own", "model": "m", "cost_micros": 7}]});
    assert_eq!(shop.post("/v1/ai/usage", &told).await.expect(200), json!({"accepted": 3, "known": 1}));
    assert_eq!(shop.post("/v1/ai/usage", &told).await.expect(200), json!({"accepted": 0, "known": 4}));
    let day = today(&ada, "sandbox-small").await;
    assert_eq!((&day["calls"], &day["credential"], &day["cost_micros"]), (&json!(1), &json!("elsewhere"), &json!(1_400)), "{day}");
    // It has been made: no budget counts it.
    assert_eq!(used(&ada, "ai_cost", "day").await.0, 0);
    let all = shop.get("/v1/ai/usage?days=1").await.expect(200);
    assert_eq!(
        (&all["total"]["calls"], &all["total"]["cost_micros"], &all["currency"]),
        (&json!(3), &json!(2_807), &json!("USD")),
        "{all}"
    );
    ada.post("/v1/ai/usage", &told).await.problem(403, "backend_only");
    let wrong = json!({"calls": [
        {"id": "", "provider": "a", "model": "b"}, {"id": "x", "provider": "a\n", "model": "b", "user": "a b", "input_tokens": 10_000_000_000_u64},
        {"id": "y", "provider": "a", "model": "b", "at": "2020-01-01T00:00:00Z"},
    ]});
    let refused = shop.post("/v1/ai/usage", &wrong).await;
    refused.problem(422, "validation_failed");
    assert_eq!(refused.pointers(), ["/calls/0/id", "/calls/1/input_tokens", "/calls/1/provider", "/calls/1/user", "/calls/2/at"]);
    shop.get("/v1/ai/usage?days=91").await.problem(422, "validation_failed");
    // As a file: a user's own, and the product's.
    for (client, dataset, rows) in [(&ada, "ai_usage", 1), (&shop, "all_ai_usage", 2)] {
        let id = id_of(&client.post("/v1/exports", &json!({"dataset": dataset, "format": "csv"})).await.expect(202));
        client.succeeded(&id).await;
        let link = client.get(&format!("/v1/exports/{id}/download")).await.header("location").to_owned();
        let file = shop.without_key().get(&link).await.text();
        assert_eq!(file.lines().count(), 1 + rows, "{file}");
        assert!(file.contains(",openai,sandbox-small,elsewhere,") && file.contains("day,provider,model"), "{file}");
    }
    let wanted = json!({"dataset": "all_ai_usage", "format": "csv"});
    ada.post("/v1/exports", &wanted).await.problem(422, "validation_failed");
    balances(&world).await;
}

/// What was reserved when it was accepted is not enough any more: there is room for the rest, or it does not run.
#[tokio::test]
async fn a_price_that_rises_while_jobs_wait_takes_no_budget_beyond_its_end() {
    let world = World::start().await;
    let (_shop, ada) = shop(&world, "").await;
    world.sandbox.ai.usually(tokens(20, 100));
    let mut jobs = Vec::new();
    for number in 0..3 {
        jobs.push(ask(&ada, "answer", &format!("Question {number}?")).await);
    }
    let reserved = used(&ada, "ai_cost", "day").await.0;
    assert!((2_000..4_000).contains(&reserved), "{reserved}");
    let dearer = manifest(&world, "").replace("input = 1_000_000\noutput = 4_000_000", "input = 4_000_000\noutput = 16_000_000");
    world.tenant_of("shop", &dearer).await;
    let _worker = world.worker().await;
    let mut refused = 0;
    for job in &jobs {
        let ended = ada.ended(job).await;
        assert!(ended["state"] == "succeeded" || ended["error"]["code"] == "USAGE_LIMIT_EXCEEDED", "{ended}");
        refused += usize::from(ended["state"] == "failed");
    }
    // There is room for one, where those before it have given theirs back.
    assert!(refused >= 2, "{refused}");
    assert_eq!(world.sandbox.ai.calls().len(), 3 - refused);
    let spent = used(&ada, "ai_cost", "day").await.0;
    assert!(spent <= 4_000, "{spent}");
    balances(&world).await;
}
