//! Providers that fail, whatever they do: the job comes to the end that is right for it, and no call is made once too often.

use acceptance::id_of;
use futures_util::future::join_all;
use sandbox::{
    Fault, Rule,
    services::ai::{Answer, Trouble},
};
use serde_json::json;

use super::{Desk, main_model, says, task};

fn error(status: u16, code: Option<&str>, headers: &[(&str, &str)]) -> Trouble {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Trouble::Error { status, code: code.map(str::to_owned), headers }
}

/// What becomes of a job whose first call goes wrong and whose second would be answered.
struct Case {
    name: &'static str,
    trouble: Trouble,
    /// Succeeded at this attempt, or failed with this code.
    ends: Result<u64, &'static str>,
    /// Whether the ledger lists the call as unknown.
    unknown: bool,
}

fn cases() -> Vec<Case> {
    let case = |name, trouble, ends, unknown| Case { name, trouble, ends, unknown };
    vec![
        // A fault of the provider uses no attempt either, so often as its circuit breaker may need to find out.
        case("fault", error(500, None, &[]), Ok(1), false),
        // So does one that takes no more calls, with a time or without.
        case("overloaded", error(529, None, &[]), Ok(1), false),
        // Put off as asked, at no attempt's cost.
        case("seconds", error(429, None, &[("retry-after", "1")]), Ok(1), false),
        case("milliseconds", error(429, None, &[("retry-after-ms", "700"), ("retry-after", "3000")]), Ok(1), false),
        case("azure", error(429, None, &[("x-ms-retry-after-ms", "700")]), Ok(1), false),
        case("date", error(429, None, &[("retry-after", "Fri, 20 Nov 2020 12:00:00 GMT")]), Ok(1), false),
        case("busy", error(429, None, &[]), Ok(1), false),
        case("quota", error(429, Some("insufficient_quota"), &[("retry-after", "1")]), Err("ai_quota_exhausted"), false),
        case("key", error(401, None, &[]), Err("ai_key_refused"), false),
        case("forbidden", error(403, None, &[]), Err("ai_key_refused"), false),
        case("bad", error(400, None, &[]), Err("ai_refused"), false),
        case("redirect", error(302, None, &[("location", "http://127.0.0.1:1/")]), Err("ai_refused"), false),
        case("malformed", Trouble::Malformed, Ok(1), true),
        case("cut", Trouble::Cut { after_words: 2 }, Ok(1), true),
        case("stalled", Trouble::Stall { after_words: 2 }, Ok(1), true),
    ]
}

#[tokio::test]
async fn each_fault_of_a_provider_leads_where_it_should() {
    let cases = cases();
    let both = ["main", "other"];
    let tasks = cases.iter().flat_map(|Case { name, .. }| {
        both.map(|provider| {
            let model = format!("{{ provider = \"{provider}\", model = \"{name}-{provider}\" }}");
            task(&format!("{name}_{provider}"), &model, "timeout_seconds = 5")
        })
    });
    let desk = Desk::start_with(&tasks.collect::<String>()).await;
    for Case { name, trouble, .. } in &cases {
        for provider in both {
            desk.world.sandbox.ai.script(Answer {
                model: Some(format!("{name}-{provider}")),
                trouble: Some(trouble.clone()),
                ..Answer::default()
            });
        }
    }
    let asked = cases.iter().flat_map(|case| both.map(|provider| (case, provider)));
    join_all(asked.map(async |(Case { name, ends, unknown, .. }, provider)| {
        let what = format!("{name} of {provider}");
        let id = desk.ask(&format!("{name}_{provider}"), &json!({"prompt": "private words"})).await;
        let job = desk.shop.ended(&id).await;
        let model = format!("{name}-{provider}");
        match ends {
            Ok(attempt) => {
                assert_eq!((&job["state"], &job["attempt"]), (&json!("succeeded"), &json!(attempt)), "{what}: {job}");
                assert_eq!(desk.calls_of(&model), 2, "{what}");
                assert_eq!(desk.effects(&id).await, if *unknown { "ai:1=2 ai:1:2=1" } else { "ai:1=1" }, "{what}");
            }
            Err(code) => {
                assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!(code)), "{what}: {job}");
                assert_eq!(desk.calls_of(&model), 1, "{what}");
                assert_eq!(desk.effects(&id).await, "", "{what}");
            }
        }
        let told = job.to_string();
        assert!(!told.contains(desk.world.sandbox.ai.key()), "{what}: {told}");
    }))
    .await;
    let log = desk.worker.log();
    assert!(!log.contains(desk.world.sandbox.ai.key()) && !log.contains("private words"));
}

#[tokio::test]
async fn another_model_answers_at_once_where_the_first_can_not() {
    let two = |first: &str| format!("{}, {{ provider = \"other\", model = \"second\" }}", main_model(first));
    let tasks = [
        task("fails", &two("fails"), ""),
        task("limited", &two("limited"), ""),
        task("hangs", &two("hangs"), "timeout_seconds = 1"),
        task("unreached", "{ provider = \"nowhere\", model = \"m\" }, { provider = \"other\", model = \"second\" }", ""),
        task("keyless", "{ provider = \"keyless\", model = \"m\" }, { provider = \"other\", model = \"second\" }", ""),
        task("refused", &two("refused"), ""),
        "[ai.providers.nowhere]\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:1/v1\"\n".to_owned(),
        "[ai.providers.keyless]\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:1/v1\"\nkey_env = \"OFFSTAGE_AI_NOBODY_SET\"\n"
            .to_owned(),
    ];
    let desk = Desk::start_with(&tasks.concat()).await;
    let ai = &desk.world.sandbox.ai;
    let trouble = |model: &str, trouble| Answer { model: Some(model.to_owned()), trouble: Some(trouble), ..Answer::default() };
    ai.script(trouble("fails", error(503, None, &[])));
    ai.script(trouble("limited", error(429, None, &[("retry-after", "3600")])));
    ai.script(trouble("hangs", Trouble::Stall { after_words: 0 }));
    ai.script(trouble("refused", error(400, None, &[])));
    for name in ["fails", "limited", "hangs", "unreached", "keyless"] {
        let id = desk.ask(name, &json!({"prompt": name})).await;
        let job = desk.shop.succeeded(&id).await;
        let by = (job["result"]["provider"].as_str(), job["result"]["model"].as_str(), job["attempt"].as_u64());
        assert_eq!(by, (Some("other"), Some("second"), Some(1)), "{name}: {job}");
    }
    // Where the question is at fault, no other model is asked.
    let before = desk.calls_of("second");
    let id = desk.ask("refused", &json!({"prompt": "x"})).await;
    assert_eq!(desk.shop.ended(&id).await["error"]["code"], "ai_refused");
    assert_eq!(desk.calls_of("second"), before);
}

/// Rounds, so that there is a call that was answered and one under way when the worker dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_is_paid_for_twice_that_is_there_and_what_nobody_knows_is_listed() {
    let more = "timeout_seconds = 120\ngate = { field = \"score\", at_least = 80, rounds = 2 }\n\
                output = { type = \"object\", required = [\"score\"], properties = { score = { type = \"integer\" } } }";
    let desk = Desk::start_with(&task("rounds", &main_model("rounds"), more)).await;
    let ai = &desk.world.sandbox.ai;
    ai.script(says("rounds", "{\"score\": 10}"));
    ai.script(Answer { trouble: Some(Trouble::Stall { after_words: 0 }), ..says("rounds", "{\"score\": 20}") });
    ai.script(says("rounds", "{\"score\": 90}"));
    let id = id_of(&desk.shop.post("/v1/ai/rounds", &json!({"input": {"prompt": "x"}})).await.expect(202));
    acceptance::until("the second call is under way", async || match desk.calls_of("rounds") {
        2 => Ok(()),
        other => Err(other),
    })
    .await;
    desk.worker.kill9().await.unwrap().unwrap();
    let job = desk.shop.succeeded(&id).await;
    assert_eq!(job["result"]["output"]["score"], 90, "{job}");
    assert_eq!(desk.calls_of("rounds"), 3, "the first round's answer was there");
    assert_eq!(desk.effects(&id).await, "ai:1=1 ai:2=2 ai:2:2=1");
    assert_eq!(job["result"]["calls"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn a_provider_that_is_away_costs_no_attempt_and_no_job() {
    let desk = Desk::start_with(&task("alone", &main_model("alone"), "")).await;
    let ai = &desk.world.sandbox.ai;
    ai.faults().add(Rule::from(Fault::LoseAnswer).on("chat.completions").times(1));
    let id = desk.ask("alone", &json!({"prompt": "x"})).await;
    let job = desk.shop.succeeded(&id).await;
    assert_eq!((&job["attempt"], desk.effects(&id).await.as_str()), (&json!(1), "ai:1=2 ai:1:2=1"), "{job}");
    ai.stop();
    let id = desk.ask("alone", &json!({"prompt": "y"})).await;
    desk.shop.wait_for(&id, "put off", |job| job["reason"] == "snoozed").await;
    acceptance::until("the server listens again", async || ai.start().await).await;
    assert_eq!(desk.shop.succeeded(&id).await["state"], "succeeded");
}
