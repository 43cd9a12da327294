//! What models say, held against what the task wants: only a whole answer that is what its schema says is a success.

use acceptance::id_of;
use sandbox::services::ai::{Answer, Trouble};
use serde_json::{Value, json};

use super::{Desk, main_model, manifest, says, task};

const SCORED: &str = "output = { type = \"object\", additionalProperties = false, required = [\"score\", \"why\"], properties = { \
                      score = { type = \"integer\", minimum = 0, maximum = 100 }, why = { type = \"string\", maxLength = 20 } } }";

#[tokio::test]
async fn an_answer_is_what_its_schema_says_or_is_repaired_once() {
    let tasks = [
        task("plain", &main_model("plain"), SCORED),
        task("claude", "{ provider = \"other\", model = \"claude\" }", SCORED),
        task("repaired", &main_model("repaired"), SCORED),
        task("wrong", &main_model("wrong"), SCORED),
        task("words", "{ provider = \"main\", model = \"words\", structured = false }", SCORED),
    ];
    let desk = Desk::start_with(&tasks.concat()).await;
    let ai = &desk.world.sandbox.ai;
    let asked = |model: &str| ai.calls().into_iter().filter(|call| call.body["model"] == model).map(|call| call.body).collect::<Vec<_>>();

    // Asked for by the schema itself, in either dialect.
    for (name, place) in [("plain", "/response_format/json_schema/schema/type"), ("claude", "/output_config/format/schema/type")] {
        let job = desk.shop.succeeded(&desk.ask(name, &json!({"prompt": "x"})).await).await;
        assert!(job["result"]["output"]["score"].is_u64() && job["result"]["output"]["why"].is_string(), "{job}");
        assert_eq!((&job["result"]["repaired"], asked(name)[0].pointer(place)), (&json!(false), Some(&json!("object"))));
    }

    // The model is shown its fault, and its second answer counts.
    ai.script(says("repaired", "{\"score\": 101, \"why\": \"x\"}"));
    ai.script(says("repaired", "{\"score\": 99, \"why\": \"x\"}"));
    let job = desk.shop.succeeded(&desk.ask("repaired", &json!({"prompt": "x"})).await).await;
    assert_eq!((&job["result"]["output"]["score"], &job["result"]["repaired"]), (&json!(99), &json!(true)), "{job}");
    let turns = asked("repaired")[1]["messages"].as_array().unwrap().clone();
    assert_eq!(turns.len(), 3);
    assert!(turns[1]["content"].as_str().unwrap().contains("101") && turns[2]["content"].as_str().unwrap().contains("/score"), "{turns:?}");
    // Both calls are charged.
    assert_eq!(job["result"]["calls"].as_array().map(Vec::len), Some(2));
    let sum: u64 = job["result"]["calls"].as_array().unwrap().iter().filter_map(|call| call["output_tokens"].as_u64()).sum();
    assert_eq!(job["result"]["usage"]["output_tokens"], sum);

    // Wrong twice: failed, and what it said is kept.
    ai.script(says("wrong", "I would rather not say."));
    ai.script(says("wrong", "{\"score\": \"many\"}"));
    let id = desk.ask("wrong", &json!({"prompt": "x"})).await;
    let job = desk.shop.ended(&id).await;
    assert_eq!((&job["state"], &job["error"]["code"], asked("wrong").len()), (&json!("failed"), &json!("ai_output_invalid"), 2), "{job}");
    assert!(!job.to_string().contains("rather not"));
    let mut events = desk.shop.events(&format!("/v1/jobs/{id}/stream"), None).await;
    let said = events.rest().await;
    assert_eq!(said[0].data, json!({"text": "{\"score\": \"many\"}"}), "{said:?}");
    assert_eq!((said[1].name.as_str(), &said[1].data["error"]["code"]), ("ended", &json!("ai_output_invalid")));

    // A model without schemas is told in words, and may put a fence around its answer.
    ai.script(says("words", "```json\n{\"score\": 1, \"why\": \"fenced\"}\n```"));
    let job = desk.shop.succeeded(&desk.ask("words", &json!({"prompt": "x"})).await).await;
    assert_eq!(job["result"]["output"], json!({"score": 1, "why": "fenced"}));
    let body = &asked("words")[0];
    assert!(body.get("response_format").is_none() && body["messages"][0]["content"].as_str().unwrap().contains("JSON Schema"), "{body}");
}

#[tokio::test]
async fn what_is_no_whole_answer_is_no_success() {
    let cases = [
        ("length", "main", Answer { finish: Some("length".into()), ..Answer::default() }, "ai_cut_short"),
        ("filtered", "main", Answer { finish: Some("content_filter".into()), ..Answer::default() }, "ai_content_filtered"),
        ("refused", "main", Answer { refusal: true, ..Answer::default() }, "ai_model_refused"),
        ("tools", "main", Answer { finish: Some("tool_calls".into()), ..Answer::default() }, "ai_unfinished"),
        ("max", "other", Answer { finish: Some("max_tokens".into()), ..Answer::default() }, "ai_cut_short"),
        ("claude_refused", "other", Answer { finish: Some("refusal".into()), ..Answer::default() }, "ai_model_refused"),
    ];
    let tasks = cases.iter().map(|(name, provider, ..)| task(name, &format!("{{ provider = \"{provider}\", model = \"{name}\" }}"), ""));
    let desk = Desk::start_with(&tasks.collect::<String>()).await;
    for (name, _, answer, code) in cases {
        desk.world.sandbox.ai.script(Answer { model: Some(name.to_owned()), text: Some("half of".to_owned()), ..answer });
        let id = desk.ask(name, &json!({"prompt": "x"})).await;
        let job = desk.shop.ended(&id).await;
        assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!(code)), "{name}: {job}");
        assert_eq!((desk.calls_of(name), desk.effects(&id).await.as_str()), (1, "ai:1=1"), "{name}");
        let said = desk.shop.events(&format!("/v1/jobs/{id}/stream"), None).await.rest().await;
        assert_eq!(said[0].data, json!({"text": "half of"}), "{name}");
    }
}

#[tokio::test]
async fn a_gate_asks_again_and_the_best_answer_counts() {
    let gate = format!("{SCORED}\ngate = {{ field = \"score\", at_least = 80, rounds = 3 }}\n");
    let levels = "levels = { of = \"score\", into = \"level\", else = \"low\", steps = [{ above = 70, is = \"high\" }, { above = 40, is = \"medium\" }] }";
    let tasks = [
        task("passes", &main_model("passes"), &gate),
        task("never", &main_model("never"), &gate),
        task("stuck", &main_model("stuck"), &gate),
        task("levels", &main_model("levels"), &format!("{SCORED}\n{levels}\n")),
    ];
    let desk = Desk::start_with(&tasks.concat()).await;
    let score = |model: &str, score: u32| desk.world.sandbox.ai.script(says(model, &json!({"score": score, "why": "x"}).to_string()));
    let run = async |name: &str| desk.shop.succeeded(&desk.ask(name, &json!({"prompt": "x"})).await).await["result"].clone();

    score("passes", 79);
    score("passes", 80);
    let result = run("passes").await;
    assert_eq!((&result["output"]["score"], &result["gate"]), (&json!(80), &json!({"passed": true, "round": 2, "rounds": 2})), "{result}");
    for low in [30, 70, 50] {
        score("never", low);
    }
    let id = desk.ask("never", &json!({"prompt": "x"})).await;
    let result = desk.shop.succeeded(&id).await["result"].clone();
    assert_eq!((&result["output"]["score"], &result["gate"]), (&json!(70), &json!({"passed": false, "round": 2, "rounds": 3})), "{result}");
    assert_eq!(desk.calls_of("never"), 3);
    // Who reads the words afterwards reads those of the answer.
    let said = desk.shop.events(&format!("/v1/jobs/{id}/stream"), None).await.rest().await;
    assert!(said[0].data["text"].as_str().is_some_and(|text| text.contains("70")), "{said:?}");
    // What was answered counts, also where another round comes to nothing.
    score("stuck", 50);
    for words in ["no", "neither"] {
        desk.world.sandbox.ai.script(says("stuck", words));
    }
    let result = run("stuck").await;
    assert_eq!((&result["output"]["score"], &result["gate"]), (&json!(50), &json!({"passed": false, "round": 1, "rounds": 1})), "{result}");
    assert_eq!((desk.calls_of("stuck"), result["calls"].as_array().map(Vec::len)), (3, Some(3)), "and all are told");
    for (said, level) in [(71, "high"), (70, "medium"), (40, "low")] {
        score("levels", said);
        assert_eq!(run("levels").await["output"]["level"], level, "{said}");
    }
}

#[tokio::test]
async fn who_asks_the_same_again_is_answered_from_what_was_said() {
    let more = task("kept", &main_model("kept"), "cache = { ttl_seconds = 3600 }");
    let desk = Desk::start_with(&more).await;
    let run = async |client: &acceptance::Client, prompt: &str| {
        let id = id_of(&client.post("/v1/ai/kept", &json!({"input": {"prompt": prompt}})).await.expect(202));
        client.succeeded(&id).await["result"].clone()
    };
    let first = run(&desk.shop.acting_for("ada"), "marked question").await;
    let again = run(&desk.shop.acting_for("eve"), "marked question").await;
    assert_eq!((&first["cached"], &again["cached"], &first["output"]), (&json!(false), &json!(true), &again["output"]), "{again}");
    assert_eq!(again["usage"], json!({"input_tokens": 0, "output_tokens": 0, "estimated": false}));
    assert_eq!((desk.calls_of("kept"), &again["calls"]), (1, &json!([])));
    // Another question, another product: nothing is shared.
    assert_eq!(run(&desk.shop, "another question").await["cached"], json!(false));
    let other = desk.world.tenant_of("other", &manifest(&desk.world, "other", &more)).await;
    assert_eq!(run(&other, "marked question").await["cached"], json!(false));
    assert_eq!(desk.calls_of("kept"), 3);
    // Nor is another server behind the same name.
    let moved = manifest(&desk.world, "other", &more).replace("127.0.0.1", "localhost");
    desk.world.tenant_of("other", &moved).await;
    acceptance::until("the change is known", async || match run(&other, "marked question").await["cached"].as_bool() {
        Some(false) => Ok(()),
        still => Err(still),
    })
    .await;
    assert_eq!(desk.calls_of("kept"), 4);
    // It goes with whom it came from.
    desk.shop.delete("/v1/users/ada").await.expect(202);
    acceptance::until("nothing is kept of ada", async || {
        match desk.world.number("SELECT count(*) FROM ai_cache WHERE owner = 'ada'").await {
            0 => Ok(()),
            left => Err(left),
        }
    })
    .await;
    assert_eq!(run(&desk.shop, "marked question").await["cached"], Value::Bool(false));
}

/// The first model's word is what the cache promises; and one that passed, where there is a gate.
#[tokio::test]
async fn what_another_model_said_or_what_did_not_pass_is_not_kept() {
    let cache = "cache = { ttl_seconds = 3600 }";
    let gate = format!("{SCORED}\ngate = {{ field = \"score\", at_least = 80, rounds = 1 }}\n{cache}");
    let either = format!("{}, {{ provider = \"other\", model = \"second\" }}", main_model("first"));
    let desk = Desk::start_with(&(task("either", &either, cache) + &task("gated", &main_model("gated"), &gate))).await;
    let ai = &desk.world.sandbox.ai;
    let run = async |name: &str| desk.shop.succeeded(&desk.ask(name, &json!({"prompt": "x"})).await).await["result"].clone();
    let trouble = Trouble::Error { status: 503, code: None, headers: Vec::new() };
    ai.script(Answer { model: Some("first".into()), trouble: Some(trouble), ..Answer::default() });
    let cached = |result: &Value| (result["model"].as_str().unwrap().to_owned(), result["cached"].as_bool().unwrap());
    for expected in [("second", false), ("first", false), ("first", true)] {
        let result = run("either").await;
        assert_eq!(cached(&result), (expected.0.to_owned(), expected.1), "{result}");
    }
    for (score, passed, is_cached) in [(30, false, false), (90, true, false), (10, true, true)] {
        ai.script(says("gated", &json!({"score": score, "why": "x"}).to_string()));
        let result = run("gated").await;
        assert_eq!((&result["gate"]["passed"], &result["cached"]), (&json!(passed), &json!(is_cached)), "{score}: {result}");
    }
    assert_eq!((desk.calls_of("first"), desk.calls_of("second"), desk.calls_of("gated")), (2, 1, 2));
}

/// Postgres stores none, so an answer with one could not be written down, and was asked for and paid for again.
#[tokio::test]
async fn an_answer_with_a_nul_is_asked_for_once_and_charged_once() {
    let tasks = ["main", "other"].map(|provider| {
        let model = |name: &str| format!("{{ provider = \"{provider}\", model = \"{name}-{provider}\" }}");
        task(&format!("words_{provider}"), &model("words"), "") + &task(&format!("fields_{provider}"), &model("fields"), SCORED)
    });
    let desk = Desk::start_with(&tasks.concat()).await;
    let (spoken, whole) = ("grüße\0one two\0 three four\0", "grüße\u{fffd}one two\u{fffd} three four\u{fffd}");
    for provider in ["main", "other"] {
        for stream in [false, true] {
            let run = async |name: &str, says_so: &str| {
                let model = format!("{name}-{provider}");
                let before = desk.calls_of(&model);
                desk.world.sandbox.ai.script(Answer { word_ms: 150, ..says(&model, says_so) });
                let asked = json!({"input": {"prompt": "x"}, "stream": stream});
                let id = id_of(&desk.shop.post(&format!("/v1/ai/{name}_{provider}"), &asked).await.expect(202));
                // Who follows it meanwhile hears what the job has in the end, and nothing twice.
                let events = desk.shop.events(&format!("/v1/jobs/{id}/stream"), None).await.rest().await;
                let heard: String = events.iter().filter_map(|event| event.data["text"].as_str()).collect();
                let job = desk.shop.succeeded(&id).await;
                let charged = desk.world.number(format!("SELECT count(*) FROM ai_call WHERE job_id = '{id}'")).await;
                assert_eq!((desk.calls_of(&model) - before, charged, &job["attempt"]), (1, 1, &json!(1)), "{model}, {stream}: {job}");
                (heard, job["result"]["output"].clone())
            };
            let (heard, output) = run("words", spoken).await;
            assert_eq!((heard.as_str(), output.as_str()), (whole, Some(whole)), "{provider}, {stream}");
            // Within JSON it is written with an escape, in a name too.
            let (_, output) = run("fields", "{\"score\": 1, \"why\": \"a\\u0000b\"}").await;
            assert_eq!(output, json!({"score": 1, "why": "a\u{fffd}b"}), "{provider}, {stream}");
        }
    }
}
