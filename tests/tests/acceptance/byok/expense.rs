//! At whose expense a call is made: who has brought a key pays themselves, always, and needs nothing of the product's budget.

use std::collections::BTreeSet;

use acceptance::{id_of, until};
use sandbox::{
    Launch,
    services::ai::{Answer, Trouble},
};
use serde_json::{Value, json};

use super::{Desk, manifest, new_key};

/// What was asked for while a user had a key is done by that key or not at all: whatever happens to the key, or to its provider.
#[tokio::test]
async fn what_a_users_key_could_not_do_is_never_done_by_the_products() {
    let desk = Desk::start(Launch::new).await;
    let (ai, ours) = (&desk.world.sandbox.ai, desk.world.sandbox.ai.key().to_owned());
    let key = new_key("own");
    ai.take_key(&key);
    desk.ada.put("/v1/byok/openai", &json!({ "key": key })).await.expect(200);
    let answers = |status: u16, code: Option<&str>, headers: &[(&str, &str)]| Answer {
        trouble: Some(Trouble::Error {
            status,
            code: code.map(str::to_owned),
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        }),
        ..Answer::default()
    };
    let by_whom = || ai.calls().iter().map(|call| call.key.clone()).collect::<BTreeSet<_>>();
    // Its provider fails, paces, has no quota for it, cuts its answer: the task has another model, at the product's expense, which is not asked.
    for (answer, code) in [
        (answers(402, None, &[]), Some("ai_quota_exhausted")),
        (answers(403, None, &[]), Some("ai_key_refused")),
        (answers(400, None, &[]), Some("ai_refused")),
        (answers(500, None, &[]), None),
        (answers(429, None, &[("retry-after-ms", "600")]), None),
        (Answer { trouble: Some(Trouble::Cut { after_words: 1 }), ..Answer::default() }, None),
        (Answer { trouble: Some(Trouble::Malformed), ..Answer::default() }, None),
    ] {
        ai.script(answer.clone());
        let job = Desk::ask(&desk.ada, "ask").await;
        let expected = if code.is_some() { "failed" } else { "succeeded" };
        assert_eq!((job["state"].as_str(), job["error"]["code"].as_str()), (Some(expected), code), "{answer:?}: {job}");
        assert_eq!(by_whom(), BTreeSet::from([key.clone()]), "{answer:?}");
    }
    // Away, with its breaker open in the end: the jobs wait.
    let calls = ai.calls().len();
    ai.usually(answers(503, None, &[]));
    let ids: Vec<String> = {
        let mut ids = Vec::new();
        for _ in 0..12 {
            ids.push(id_of(&desk.ada.post("/v1/ai/ask", &json!({"input": {"text": "Say something."}})).await.expect(202)));
        }
        ids
    };
    for id in &ids {
        desk.ada.wait_for(id, "waiting for the breaker", |job| job["reason"] == "breaker_open").await;
    }
    assert!(ai.calls().len() > calls && by_whom() == BTreeSet::from([key.clone()]));
    // It is her key's breaker, and stops nobody who calls by another.
    let listed = desk.world.sandbox.run_api(["breaker", "list", "--json"]).await.unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let whose: BTreeSet<_> = listed["breakers"].as_array().unwrap().iter().map(|breaker| breaker["credential"].as_str()).collect();
    assert_eq!(whose, BTreeSet::from([Some("own")]), "{listed}");
    // A test of the key is no way around it. Kept open by an operator, so that no probe comes between.
    let breaker = async |arguments: &[&str]| desk.world.sandbox.run_api(["breaker"].iter().chain(arguments).copied()).await.unwrap();
    breaker(&["force-open", "--tenant", "shop", "--provider", "main", "--reason", "a look at it", "--by", "ops"]).await;
    until("its worker has heard of it", async || {
        if desk.worker.log().contains("what operators set of circuit breakers has changed") { Ok(()) } else { Err("not yet") }
    })
    .await;
    let before = ai.faults().requests().len();
    assert_eq!(desk.ada.post_nothing("/v1/byok/openai/test").await.expect(202)["status"], "active", "it stands as it did");
    assert_eq!(ai.faults().requests().len(), before, "its provider is left alone");
    breaker(&["auto", "--tenant", "shop", "--provider", "main", "--by", "ops"]).await;
    // Deleted while they wait: they fail, and what is asked for from then on is the product's affair.
    ai.usually(Answer::default());
    assert_eq!(desk.ada.delete("/v1/byok/openai").await.status, 204);
    for id in &ids {
        let job = desk.ada.ended(id).await;
        assert_eq!((job["state"].as_str(), job["error"]["code"].as_str()), (Some("failed"), Some("ai_own_key_deleted")), "{job}");
    }
    assert_eq!(by_whom(), BTreeSet::from([key.clone()]), "not at the product's expense");
    assert_eq!(Desk::ask(&desk.ada, "ask").await["state"], "succeeded");
    assert_eq!(by_whom(), BTreeSet::from([key, ours]));
}

/// Who pays themselves needs no room in the product's budget, and takes none.
#[tokio::test]
async fn an_exhausted_budget_stops_nobody_who_calls_by_their_own_key() {
    let desk = Desk::start(Launch::new).await;
    let (ai, key) = (&desk.world.sandbox.ai, new_key("payer"));
    let budget = "[usage]\neach_user.ai_cost = { day = 1 }\n[[ai.prices]]\nmodel = \"sandbox-small\"\ninput = 1_000_000\noutput = 4_000_000\n\
                  [[ai.prices]]\nmodel = \"sandbox-large\"\ninput = 1_000_000\noutput = 4_000_000\n";
    desk.world.tenant_of("shop", &format!("{}{budget}", manifest(&desk.world))).await;
    let asked = json!({"input": {"text": "Say something."}});
    until("the budget is known", async || match desk.ada.post("/v1/ai/ask", &asked).await.status {
        429 => Ok(()),
        other => Err(other),
    })
    .await;
    ai.take_key(&key);
    desk.ada.put("/v1/byok/openai", &json!({ "key": key })).await.expect(200);
    let before = ai.calls().len();
    let job = Desk::ask(&desk.ada, "ask").await;
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!(ai.calls().iter().skip(before).map(|call| call.key.clone()).collect::<Vec<_>>(), [key]);
    // A batch of it goes the same way; what takes no users' keys, and who has none, does not.
    let batch = desk.ada.post("/v1/ai/ask/batch", &json!({"jobs": [asked, asked]})).await;
    assert_eq!(batch.status, 202, "{}", batch.text());
    desk.ada.post("/v1/ai/house", &asked).await.problem(429, "USAGE_LIMIT_EXCEEDED");
    desk.shop.acting_for("eve").post("/v1/ai/ask", &asked).await.problem(429, "USAGE_LIMIT_EXCEEDED");
    assert_eq!(desk.world.number("SELECT coalesce(sum(amount), 0)::bigint FROM usage_charge").await, 0);
    assert_eq!(desk.world.number("SELECT count(*) FROM usage_drift").await, 0);
}
