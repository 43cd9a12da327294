//! Keys that users bring: put, checked by their provider, used in the place of the product's, and seen by nobody.

mod expense;

use std::{collections::BTreeSet, process::Command};

use acceptance::{Client, World, id_of, until};
use sandbox::{Fault, Launch, Process, Rule, services::ai::Answer};
use serde_json::{Value, json};

/// An installation whose product `shop` takes users' keys, and its worker.
struct Desk {
    world: World,
    worker: Process,
    shop: Client,
    ada: Client,
}

fn manifest(world: &World) -> String {
    let url = world.sandbox.ai.url();
    let provider = |name: &str, more: &str| {
        format!("[ai.providers.{name}]\nkind = \"openai\"\nbase_url = \"{url}\"\nkey_env = \"OFFSTAGE_AI_SANDBOX\"\n{more}\n")
    };
    let task = |name: &str, providers: &str, more: &str| {
        format!(
            "[ai.tasks.{name}]\nmodels = [{providers}]\nprompt = \"{{{{ input.text }}}}\"\ninput = {{ type = \"object\" }}\ntimeout_seconds = 20\n{more}\n"
        )
    };
    let (main, other) = ("{ provider = \"main\", model = \"sandbox-small\" }", "{ provider = \"other\", model = \"sandbox-large\" }");
    format!(
        "[tenant]\nname = \"shop\"\n{}{}{}{}{}",
        provider("main", "byok = \"openai\"\nbreaker = { open_seconds = 8 }"),
        provider("other", ""),
        task("ask", &format!("{main}, {other}"), ""),
        task("house", main, "own_keys = false"),
        task("lone", main, ""),
    )
}

impl Desk {
    async fn start(launch: impl Fn() -> Launch) -> Self {
        let world = World::start_with(launch()).await;
        let shop = world.tenant_of("shop", &manifest(&world)).await;
        let worker = world.start_worker(launch()).await;
        let ada = shop.acting_for("ada");
        Self { world, worker, shop, ada }
    }

    async fn ask(client: &Client, task: &str) -> Value {
        let id = id_of(&client.post(&format!("/v1/ai/{task}"), &json!({"input": {"text": "Say something."}})).await.expect(202));
        client.ended(&id).await
    }

    /// The keys that the provider was called with since the last time.
    fn keys_used(&self, since: &mut usize) -> BTreeSet<String> {
        let calls = self.world.sandbox.ai.calls();
        let used = calls.iter().skip(*since).map(|call| call.key.clone()).collect();
        *since = calls.len();
        used
    }
}

/// A key that no other test has, as a provider would give it.
fn new_key(name: &str) -> String {
    format!("sk-MARKED-{name}-{:x}", rand())
}

fn rand() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

#[tokio::test]
async fn a_user_calls_by_their_own_key_or_not_at_all() {
    let desk = Desk::start(Launch::new).await;
    let (ai, mut since) = (&desk.world.sandbox.ai, 0);
    let none = desk.ada.get("/v1/byok").await.expect(200);
    let statuses: BTreeSet<_> =
        none.as_array().unwrap().iter().map(|key| (key["provider"].as_str().unwrap(), key["status"].as_str().unwrap())).collect();
    let expected = ["anthropic", "google", "huggingface", "openai"].map(|provider| (provider, "not_configured"));
    assert_eq!(statuses, BTreeSet::from(expected));

    // One that the provider does not know is kept, not used, and quoted by nobody.
    let (wrong, right) = (new_key("wrong"), new_key("right"));
    let answer = desk.ada.put("/v1/byok/openai", &json!({ "key": wrong })).await;
    let put = answer.expect(200);
    assert_eq!((put["status"].as_str(), put["last_four"].as_str()), (Some("invalid"), wrong.get(wrong.len() - 4..)), "{put}");
    assert!(put["reason"].as_str().is_some_and(|reason| reason.contains("401")), "{put}");
    let refused = Desk::ask(&desk.ada, "ask").await;
    assert_eq!((refused["state"].as_str(), refused["error"]["code"].as_str()), (Some("failed"), Some("ai_own_key_invalid")), "{refused}");
    assert_eq!(desk.keys_used(&mut since), BTreeSet::new(), "neither by that key nor at the product's expense");

    ai.take_key(&right);
    let put = desk.ada.put("/v1/byok/openai", &json!({ "key": right })).await.expect(200);
    assert_eq!((put["status"].as_str(), put.get("reason"), put.get("key")), (Some("active"), None, None), "{put}");
    assert!(desk.ada.get("/v1/byok/openai").await.expect(200)["checked_at"].is_string());
    assert_eq!(Desk::ask(&desk.ada, "ask").await["state"], "succeeded");
    assert_eq!(desk.keys_used(&mut since), BTreeSet::from([right.clone()]), "by the user's own");
    // A task that takes none, another user, and the backend itself call by the product's.
    for (client, task) in [(&desk.ada, "house"), (&desk.shop.acting_for("eve"), "ask"), (&desk.shop, "ask")] {
        assert_eq!(Desk::ask(client, task).await["state"], "succeeded");
        assert_eq!(desk.keys_used(&mut since), BTreeSet::from([ai.key().to_owned()]), "by the product's");
    }
    let eve = desk.shop.acting_for("eve").get("/v1/byok/openai").await.expect(200);
    assert_eq!(eve["status"], "not_configured", "nobody else's");

    // In use it is taken no more: its owner is told, once, and what it could not do is not done by the product's key.
    ai.revoke_key(&right);
    for code in ["ai_key_refused", "ai_own_key_invalid"] {
        let job = Desk::ask(&desk.ada, "ask").await;
        assert_eq!((job["state"].as_str(), job["error"]["code"].as_str()), (Some("failed"), Some(code)), "{job}");
    }
    assert_eq!(desk.keys_used(&mut since), BTreeSet::new(), "calls with a wrong key are not recorded, and there was no other");
    assert_eq!(desk.ada.get("/v1/byok/openai").await.expect(200)["status"], "invalid");
    let inbox = desk.ada.get("/v1/notifications").await.expect(200);
    let told: Vec<_> = inbox["items"].as_array().unwrap().iter().filter(|item| item["data"]["byok"] == "openai").collect();
    assert_eq!(told.len(), 1, "{inbox}");
    assert!(told[0]["message"].as_str().is_some_and(|text| text.contains(right.get(right.len() - 4..).unwrap())), "{inbox}");

    // It works again, which a test finds out; then it is deleted, and the product's key serves.
    ai.take_key(&right);
    assert_eq!(desk.ada.post_nothing("/v1/byok/openai/test").await.expect(200)["status"], "active");
    assert_eq!(desk.ada.delete("/v1/byok/openai").await.status, 204);
    desk.ada.delete("/v1/byok/openai").await.problem(404, "byok_key_not_found");
    assert_eq!(Desk::ask(&desk.ada, "ask").await["state"], "succeeded");
    assert_eq!(desk.keys_used(&mut since), BTreeSet::from([ai.key().to_owned()]));
}

#[tokio::test]
async fn keys_are_checked_five_times_an_hour_and_what_is_wrong_is_said_without_them() {
    let desk = Desk::start(Launch::new).await;
    let key = new_key("limit");
    desk.world.sandbox.ai.take_key(&key);
    for (body, pointer) in [(json!({}), ""), (json!({"key": "short"}), "/key"), (json!({"key": format!("{key} x")}), "/key")] {
        let answer = desk.ada.put("/v1/byok/openai", &body).await;
        answer.problem(422, "validation_failed");
        assert!(answer.pointers().iter().any(|found| found == pointer || pointer.is_empty()), "{}", answer.text());
        assert!(!answer.text().contains(&key));
    }
    desk.ada.put("/v1/byok/other", &json!({ "key": key })).await.problem(404, "byok_provider_unknown");
    desk.shop.put("/v1/byok/openai", &json!({ "key": key })).await.problem(400, "header_invalid");
    desk.ada.post_nothing("/v1/byok/openai/test").await.problem(404, "byok_key_not_found");
    let kind = json!({"kind": "byok.check", "payload": {"provider": "openai", "version": 1}});
    desk.ada.post("/v1/jobs", &kind).await.problem(422, "validation_failed");
    // None of those counted; five race now, and one comes behind them.
    desk.ada.put("/v1/byok/openai", &json!({ "key": key })).await.expect(200);
    let body = json!({ "key": key });
    let racing =
        futures_util::future::join_all(
            (0..8).map(|number| {
                let (ada, body) = (desk.ada.clone(), body.clone());
                async move {
                    if number % 2 == 0 { ada.put("/v1/byok/openai", &body).await } else { ada.post_nothing("/v1/byok/openai/test").await }
                }
            }),
        );
    let statuses: Vec<u16> = racing.await.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 4, "{statuses:?}");
    let answer = desk.ada.put("/v1/byok/anthropic", &body).await;
    answer.problem(429, "byok_limit_exceeded");
    assert!(answer.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 3_000), "{:?}", answer.headers);
    assert_eq!(desk.ada.get("/v1/byok/anthropic").await.expect(200)["status"], "not_configured", "what was refused changed nothing");
    desk.shop.acting_for("eve").put("/v1/byok/openai", &body).await.expect(200);
}

#[tokio::test]
async fn an_unanswered_key_is_not_used_and_the_vaults_key_changes_under_way() {
    let old = "1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let both = format!("2:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8= {old}");
    let desk = Desk::start(|| Launch::new().env("OFFSTAGE_VAULT_KEYS", old)).await;
    let (ai, key) = (&desk.world.sandbox.ai, new_key("vault"));
    ai.take_key(&key);
    ai.faults().add(Rule::from(Fault::Status(500)).on("models"));
    let put = desk.ada.put("/v1/byok/openai", &json!({ "key": key })).await.expect(202);
    assert_eq!(put["status"], "unchecked");
    let job = id_of(&desk.ada.post("/v1/ai/lone", &json!({"input": {"text": "x"}})).await.expect(202));
    desk.ada.wait_for(&job, "put off", |job| job["error"]["code"] == "ai_own_key_unchecked").await;
    assert!(ai.calls().is_empty(), "not before its provider took it, and not by another");
    ai.faults().clear();
    desk.ada.succeeded(&job).await;

    // By hand what `api vault rotate` is told: the new key first.
    let wrapped = "SELECT count(*) FROM own_key WHERE wrapped_by = 2";
    assert_eq!(desk.world.number(wrapped).await, 0);
    let rotate = || desk.world.sandbox.run_api_with(["vault", "rotate"], [("OFFSTAGE_VAULT_KEYS", both.as_str())]);
    let said = String::from_utf8(rotate().await.unwrap().stdout).unwrap();
    assert!(said.starts_with("1 wrapped by version 2"), "{said}");
    assert!(String::from_utf8(rotate().await.unwrap().stdout).unwrap().starts_with("0 wrapped"), "again there is nothing to do");
    assert_eq!(desk.world.number(wrapped).await, 1);
    // Another key of the same version opens nothing of it, which is said, and wraps nothing anew.
    desk.shop.acting_for("eve").put("/v1/byok/openai", &json!({ "key": key })).await.expect(200);
    let wrong = format!("2:MzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzM= {old}");
    let said = desk.world.sandbox.run_api_with(["vault", "rotate"], [("OFFSTAGE_VAULT_KEYS", wrong.as_str())]).await;
    let said = said.expect_err("this key opens nothing of version 2").to_string();
    assert!(said.contains("does not open what version 2 wraps") && !said.contains("none is left"), "{said}");
    assert!(!said.contains("MzMz") && !said.contains(&key), "{said}");
    assert_eq!(desk.world.number(wrapped).await, 1, "nothing more was wrapped by it");
    assert!(String::from_utf8(rotate().await.unwrap().stdout).unwrap().starts_with("1 wrapped"), "the right one goes on");
    // One row that nobody opens, beside others that are as they should be, is named; and no zero is answered for it.
    let id = desk.world.text("SELECT id::text FROM own_key WHERE user_id = 'eve'").await;
    desk.world.execute("UPDATE own_key SET sealed = set_byte(sealed, 20, get_byte(sealed, 20) # 1) WHERE user_id = 'eve'").await;
    let said = rotate().await.expect_err("one of them can't be opened").to_string();
    assert!(said.contains(&id) && said.contains("1 can't be opened"), "{said}");
    // The one that has the old key alone says what is missing, and asks no other model at the product's expense; one with both reads it.
    let job = id_of(&desk.ada.post("/v1/ai/ask", &json!({"input": {"text": "x"}})).await.expect(202));
    desk.ada.wait_for(&job, "put off", |job| job["error"]["code"] == "vault_not_opened").await;
    let _newer = desk.world.start_worker(Launch::new().env("OFFSTAGE_VAULT_KEYS", &both)).await;
    desk.worker.stop().await.unwrap();
    desk.ada.succeeded(&job).await;
    assert_eq!(ai.calls().iter().map(|call| call.key.clone()).collect::<BTreeSet<_>>(), BTreeSet::from([key]));
}

/// Everything that is kept or told, read for keys: those that are marked must be nowhere.
#[tokio::test]
async fn no_key_is_in_any_log_error_column_or_dump() {
    let launch = || Launch::new().env("OFFSTAGE_LOG", "trace,hyper=trace,sqlx=trace,reqwest=trace,rustls=debug,h2=debug");
    let desk = Desk::start(launch).await;
    let (ai, mut said) = (&desk.world.sandbox.ai, Vec::new());
    let (good, bad, other) = (new_key("good"), new_key("bad"), new_key("other"));
    ai.take_key(&good);
    said.push(desk.ada.put("/v1/byok/openai", &json!({ "key": bad })).await);
    said.push(desk.ada.put("/v1/byok/openai", &json!({ "key": good })).await);
    said.push(desk.ada.put("/v1/byok/anthropic", &json!({ "key": other, "more": other })).await);
    said.push(desk.ada.put("/v1/byok/openai", &json!({ "key": [other] })).await);
    let broken = desk
        .ada
        .request(reqwest::Method::PUT, "/v1/byok/openai")
        .header("content-type", "application/json")
        .body(format!("{{\"key\": \"{other}"));
    said.push(desk.ada.send(broken).await);
    said.push(desk.ada.get("/v1/byok").await);
    let mut jobs = Vec::new();
    for (client, status) in
        [(&desk.ada, 200), (&desk.ada, 500), (&desk.ada, 400), (&desk.shop, 200), (&desk.shop, 401), (&desk.shop, 429), (&desk.shop, 500)]
    {
        if status != 200 {
            ai.faults().add(Rule::from(Fault::Status(status)).on("chat.completions").times(2));
        }
        let job = Desk::ask(client, "lone").await;
        jobs.push(job["state"].to_string());
        said.push(client.get(&format!("/v1/jobs/{}?include=attempts", job["id"].as_str().unwrap())).await);
        said.push(client.get(&format!("/v1/jobs/{}/explain", job["id"].as_str().unwrap())).await);
    }
    ai.revoke_key(&good);
    let job = Desk::ask(&desk.ada, "lone").await;
    said.push(desk.ada.get(&format!("/v1/jobs/{}?include=attempts", job["id"].as_str().unwrap())).await);
    said.push(desk.ada.post_nothing("/v1/byok/openai/test").await);
    said.push(desk.ada.get("/v1/notifications").await);
    for process in [&desk.world.api, &desk.worker] {
        said.push(desk.shop.without_key().get(&format!("{}/metrics", process.url())).await);
    }
    assert!(jobs.contains(&"\"succeeded\"".to_owned()) && jobs.contains(&"\"failed\"".to_owned()), "{jobs:?}");

    let wrapping = desk.world.sandbox.env()["OFFSTAGE_VAULT_KEYS"].clone();
    let wrapping = wrapping.strip_prefix("1:").unwrap().to_owned();
    let raw = base64(&wrapping);
    let secrets: Vec<(&str, Vec<u8>)> = vec![
        ("the product's key", ai.key().as_bytes().to_vec()),
        ("the user's key", good.clone().into_bytes()),
        ("a key that was refused", bad.into_bytes()),
        ("a key that was not taken in", other.into_bytes()),
        ("the vault's key", wrapping.into_bytes()),
        ("the vault's key's bytes", raw),
    ];
    let mut places: Vec<(String, Vec<u8>)> =
        said.iter().enumerate().map(|(number, answer)| (format!("answer {number}"), answer.body.to_vec())).collect();
    for file in std::fs::read_dir(desk.world.sandbox.logs()).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            places.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
    let postgres = &desk.world.sandbox.postgres;
    let (owner, superuser) = (postgres.owner_url(), postgres.superuser_url());
    let url = format!("{}/{}", superuser.rsplit_once('/').unwrap().0, owner.rsplit_once('/').unwrap().1);
    let dump = Command::new(postgres.psql().with_file_name("pg_dump")).arg(url).output().unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    places.push(("the database's dump".to_owned(), dump.stdout));
    let redis = &desk.world.sandbox.redis;
    let () = redis.command(redis::cmd("CONFIG").arg("SET").arg("rdbcompression").arg("no")).await.unwrap();
    let keys: Vec<Vec<u8>> = redis.command(redis::cmd("KEYS").arg("*")).await.unwrap();
    for key in keys {
        let value: Option<Vec<u8>> = redis.command(redis::cmd("DUMP").arg(&key)).await.unwrap();
        places.push((format!("Redis: {}", String::from_utf8_lossy(&key)), [key, value.unwrap_or_default()].concat()));
    }
    let holds = |bytes: &[u8], text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    for (what, secret) in &secrets {
        let hex = secret.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        for (place, bytes) in &places {
            assert!(!holds(bytes, secret) && !holds(bytes, hex.as_bytes()), "{what} is in {place}");
        }
    }
    // What is looked through is what there is: of each key four characters may be found, and are, in the dump and in an answer.
    let four = good.get(good.len() - 4..).unwrap().as_bytes();
    let found: Vec<_> = places.iter().filter(|(_, bytes)| holds(bytes, four)).map(|(place, _)| place.as_str()).collect();
    assert!(found.contains(&"the database's dump") && found.iter().any(|place| place.starts_with("answer")), "{found:?}");
    let logs: usize =
        places.iter().filter(|(place, _)| place.contains("worker") || place.contains("api")).map(|(_, bytes)| bytes.len()).sum();
    assert!(logs > 100_000, "the logs tell everything: {logs} bytes");
    assert!(places.iter().any(|(place, _)| place.contains("breaker")), "Redis' keys are read, a breaker's among them");
}

fn base64(text: &str) -> Vec<u8> {
    use std::io::Write;
    let mut python = Command::new("python3");
    let code = "import base64, sys; sys.stdout.buffer.write(base64.b64decode(sys.stdin.read()))";
    let mut python = python.args(["-c", code]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    python.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    python.wait_with_output().unwrap().stdout
}

/// Breakers as their operators and their jobs' owners see them.
#[tokio::test]
async fn an_open_breaker_is_seen_waited_for_and_passed_by() {
    let desk = Desk::start(Launch::new).await;
    let breaker = async |arguments: &[&str]| {
        let output = desk.world.sandbox.run_api(["breaker"].iter().chain(arguments).copied()).await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let said = breaker(&["force-open", "--tenant", "shop", "--provider", "main", "--by", "ops", "--reason", "they asked us to"]).await;
    assert!(said.contains("kept open"), "{said}");
    // The next model at once, once the worker has heard of it.
    until("the fallback is used", async || {
        let job = Desk::ask(&desk.shop, "ask").await;
        if job["result"]["provider"] == "other" { Ok(()) } else { Err(job) }
    })
    .await;
    let before = desk.world.sandbox.ai.calls().len();
    let id = id_of(&desk.shop.post("/v1/ai/lone", &json!({"input": {"text": "x"}})).await.expect(202));
    let job = desk.shop.wait_for(&id, "waiting for the breaker", |job| job["reason"] == "breaker_open").await;
    assert_eq!((job["state"].as_str(), job["attempt"].as_i64()), (Some("waiting"), Some(0)), "{job}");
    let why = desk.shop.get(&format!("/v1/jobs/{id}/explain")).await.expect(200);
    assert_eq!((why["reasons"][0]["code"].as_str(), why.get("expected_at")), (Some("breaker_open"), None), "{why}");
    let summary = why["summary"].as_str().unwrap_or_default();
    assert!(summary.contains("An operator keeps the circuit breaker of the provider `main` open since"), "{why}");
    assert!(summary.contains("they asked us to") && why["reasons"][0]["by"] == "ops", "{why}");
    assert_eq!(desk.world.sandbox.ai.calls().len(), before);
    assert!(breaker(&["auto", "--tenant", "shop", "--provider", "main", "--by", "ops"]).await.contains("go by what they measure"));
    desk.shop.succeeded(&id).await;

    // And by itself: ten failures, and whoever comes then waits.
    desk.world.sandbox.ai.faults().add(Rule::from(Fault::Status(500)).on("chat.completions"));
    let ids: Vec<String> = {
        let mut ids = Vec::new();
        for _ in 0..12 {
            ids.push(id_of(&desk.shop.post("/v1/ai/lone", &json!({"input": {"text": "x"}})).await.expect(202)));
        }
        ids
    };
    for id in &ids {
        desk.shop.wait_for(id, "waiting for the breaker", |job| job["reason"] == "breaker_open").await;
    }
    until("it says why and until when", async || {
        let why = desk.shop.get(&format!("/v1/jobs/{}/explain", ids[0])).await.expect(200);
        let summary = why["summary"].as_str().unwrap_or_default();
        if summary.contains("`main` with the platform's key is open") && why["expected_at"].is_string() { Ok(()) } else { Err(why) }
    })
    .await;
    let listed = breaker(&["list"]).await;
    assert!(listed.contains("shop  ") && listed.contains(":main:platform  open since") && listed.contains("opened 1 times"), "{listed}");
    assert!(desk.world.figure(&desk.worker, "offstage_breaker_transitions_total", &["to=\"open\"", "provider=\"main\""]).await > 0.5);
    assert!(desk.worker.log().contains("the circuit breaker opened"), "it is logged");
    // Nothing that waits is held for ever: cancelled, it is gone.
    desk.shop.post_nothing(&format!("/v1/jobs/{}/cancel", ids[0])).await.expect(200);
    assert_eq!(desk.world.number(format!("SELECT count(*) FROM job_held WHERE job_id = '{}'", ids[0])).await, 0);
    assert_eq!(desk.world.number("SELECT count(*) FROM job_state WHERE attempt > 1").await, 0, "no attempt was used");
}

/// A worker that dies with the one probe of the fleet in its hands is replaced soon, however long its call may take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_place_of_a_probe_whose_worker_died_is_free_soon() {
    let world = World::start().await;
    let ai = &world.sandbox.ai;
    let manifest = format!(
        "[tenant]\nname = \"shop\"\n[ai.providers.main]\nkind = \"openai\"\nbase_url = \"{}\"\nkey_env = \"OFFSTAGE_AI_SANDBOX\"\n\
         breaker = {{ minimum_calls = 2, open_seconds = 1 }}\n[ai.tasks.ask]\n\
         models = [{{ provider = \"main\", model = \"sandbox-small\" }}]\nprompt = \"{{{{ input.text }}}}\"\ninput = {{ type = \"object\" }}\n\
         timeout_seconds = 900\n",
        ai.url()
    );
    let shop = world.tenant_of("shop", &manifest).await;
    let dying = world.worker().await;
    ai.faults().add(Rule::from(Fault::Status(500)).on("chat.completions"));
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(id_of(&shop.post("/v1/ai/ask", &json!({"input": {"text": "x"}})).await.expect(202)));
    }
    for id in &ids {
        shop.wait_for(id, "waiting for the breaker", |job| job["reason"] == "breaker_open").await;
    }
    ai.usually(Answer { delay_ms: 800_000, ..Answer::default() });
    ai.faults().clear();
    until("one call is tried", async || match ai.calls().len() {
        1 => Ok(()),
        other => Err(other),
    })
    .await;
    dying.set_restart(false).await.unwrap();
    dying.kill9().await.unwrap().unwrap();
    ai.usually(Answer::default());
    let _other = world.worker().await;
    for id in &ids {
        shop.succeeded(id).await;
    }
}
