//! Words that are followed while they come: each once, in order, whoever breaks off meanwhile.

use acceptance::{Event, id_of};
use sandbox::services::ai::{Answer, Trouble};
use serde_json::json;

use super::{Desk, main_model, says, task};

/// Words enough to be followed for a while.
fn long(name: &str) -> String {
    let words: Vec<String> = (0..40).map(|number| format!("{name}{number}")).collect();
    words.join(" ") + " grüße"
}

/// What a listener has after these events.
fn heard(events: &[Event]) -> String {
    let mut text = String::new();
    for event in events {
        match event.name.as_str() {
            "words" => text.push_str(event.data["text"].as_str().unwrap()),
            "restart" => text.clear(),
            "ended" => {}
            other => panic!("an unknown event {other}"),
        }
    }
    text
}

async fn ask(desk: &Desk, task: &str) -> String {
    id_of(&desk.shop.post(&format!("/v1/ai/{task}"), &json!({"input": {"prompt": "x"}, "stream": true})).await.expect(202))
}

#[tokio::test]
async fn words_are_heard_while_they_come_and_again_after_the_end() {
    let tasks = [
        task("slow", &main_model("slow"), "timeout_seconds = 60"),
        task("claude", "{ provider = \"other\", model = \"claude\" }", "timeout_seconds = 60"),
    ];
    let desk = Desk::start_with(&tasks.concat()).await;
    for (name, model) in [("slow", "slow"), ("claude", "claude")] {
        let text = long(name);
        desk.world.sandbox.ai.script(Answer { word_ms: 40, ..says(model, &text) });
        let id = ask(&desk, name).await;
        let path = format!("/v1/jobs/{id}/stream");
        let mut events = desk.shop.events(&path, None).await;
        let first = events.must("the first words").await;
        assert_eq!(first.name, "words", "{first:?}");
        assert_eq!(desk.shop.job(&id).await["state"], "running", "the words come before the end");
        let second = events.must("more words").await;
        // Somebody whose connection broke goes on where it was.
        let mut resumed = desk.shop.events(&path, Some(&second.id)).await;
        let (rest, others) = tokio::join!(events.rest(), resumed.rest());
        let all = [vec![first.clone(), second.clone()], rest.clone()].concat();
        assert_eq!(heard(&all), text, "{name}");
        assert_eq!(heard(&[vec![first, second.clone()], others].concat()), text, "{name}");
        let last = all.last().unwrap();
        assert_eq!((last.name.as_str(), last.id.as_str(), &last.data), ("ended", "end", &json!({"state": "succeeded"})));
        // After the end: all of it, the rest of it, nothing.
        assert_eq!(heard(&desk.shop.events(&path, None).await.rest().await), text);
        let after = desk.shop.events(&path, Some(&second.id)).await.rest().await;
        assert!(text.ends_with(&heard(&after)) && heard(&after).len() < text.len());
        let nothing = desk.shop.send(desk.shop.listen(&path, Some("end"))).await;
        assert_eq!(nothing.status, 204);
        // And as long as the job is there, from the ledger alone.
        let job = desk.shop.job(&id).await;
        assert_eq!(job["result"]["output"], text);
        assert!(job["result"]["usage"]["output_tokens"].as_u64() > Some(20), "a stream says its tokens: {job}");
        assert_eq!(job["result"]["usage"]["estimated"], false);
    }
    let other = id_of(&desk.shop.create(&acceptance::probe(&json!({}))).await);
    desk.shop.get(&format!("/v1/jobs/{other}/stream")).await.problem(404, "stream_not_found");
}

#[tokio::test]
async fn the_stream_of_a_job_that_failed_ends_with_what_failed() {
    let desk = Desk::start_with(&task("short", &main_model("short"), "timeout_seconds = 60")).await;
    desk.world.sandbox.ai.script(Answer { finish: Some("length".into()), ..says("short", "one two three") });
    let id = id_of(&desk.shop.acting_for("ada").post("/v1/ai/short", &json!({"input": {"prompt": "x"}, "stream": true})).await.expect(202));
    for reader in [desk.shop.clone(), desk.shop.acting_for("ada")] {
        let events = reader.events(&format!("/v1/jobs/{id}/stream"), None).await.rest().await;
        assert_eq!(heard(&events), "one two three", "what was said all the same");
        let last = events.last().unwrap();
        assert_eq!((last.name.as_str(), &last.data["state"]), ("ended", &json!("failed")));
        assert_eq!(last.data["error"]["code"], "ai_cut_short", "{last:?}");
        // To each reader as the job says it.
        assert_eq!(last.data["error"], reader.job(&id).await["error"]);
    }
}

/// No answer came to its end, so the ledger has none.
#[tokio::test]
async fn the_stream_of_a_job_that_was_cancelled_ends_at_once_behind_what_was_said() {
    let tasks =
        [task("begun", &main_model("begun"), "timeout_seconds = 600"), task("silent", &main_model("silent"), "timeout_seconds = 600")];
    let desk = Desk::start_with(&tasks.concat()).await;
    let cancelled = json!({"state": "cancelled"});
    for (name, after_words, said) in [("begun", 3, "one two three "), ("silent", 0, "")] {
        let stalls = Trouble::Stall { after_words };
        desk.world.sandbox.ai.script(Answer { trouble: Some(stalls), ..says(name, "one two three four five") });
        let id = ask(&desk, name).await;
        let path = format!("/v1/jobs/{id}/stream");
        let mut live = desk.shop.events(&path, None).await;
        acceptance::until("it is asked", async || if desk.calls_of(name) == 1 { Ok(()) } else { Err("not yet") }).await;
        let mut before = Vec::new();
        while heard(&before) != said {
            before.push(live.must("what was said").await);
        }
        desk.shop.post_nothing(&format!("/v1/jobs/{id}/cancel")).await.expect(202);
        assert_eq!(desk.shop.ended(&id).await["state"], "cancelled");
        let rest = live.rest().await;
        assert_eq!((rest.len(), rest[0].name.as_str(), &rest[0].data), (1, "ended", &cancelled), "{rest:?}");
        // Who comes afterwards hears the same; who has some of it the rest; and then it is over.
        let after = desk.shop.events(&path, None).await.rest().await;
        assert_eq!((heard(&after).as_str(), &after.last().unwrap().data), (said, &cancelled), "{name}: {after:?}");
        if let Some(first) = before.iter().find(|event| event.name == "words") {
            let rest = desk.shop.events(&path, Some(&first.id)).await.rest().await;
            assert_eq!(first.data["text"].as_str().unwrap().to_owned() + &heard(&rest), said, "{rest:?}");
        }
        let last = after.last().map(|event| event.id.clone());
        assert_eq!(desk.shop.send(desk.shop.listen(&path, last.as_deref())).await.status, 204);
    }
    // Redis need not have it: the end is told all the same.
    let id = desk.world.text("SELECT id::text FROM job ORDER BY id LIMIT 1").await;
    desk.world.sandbox.redis.flushall().await.unwrap();
    let events = desk.shop.events(&format!("/v1/jobs/{id}/stream"), None).await.rest().await;
    assert_eq!((events.len(), &events[0].data), (1, &cancelled), "{events:?}");
}

#[tokio::test]
async fn two_answers_are_never_put_together() {
    let tasks = [
        task("cut", &main_model("cut"), "timeout_seconds = 60"),
        task("told", "{ provider = \"other\", model = \"told\" }", "timeout_seconds = 60"),
    ];
    let desk = Desk::start_with(&tasks.concat()).await;
    for (name, trouble) in [("cut", Trouble::Cut { after_words: 5 }), ("told", Trouble::ErrorInStream { after_words: 5 })] {
        let (first, second) = (long("first"), long("second"));
        desk.world.sandbox.ai.script(Answer { word_ms: 40, trouble: Some(trouble), ..says(name, &first) });
        desk.world.sandbox.ai.script(Answer { word_ms: 10, ..says(name, &second) });
        let id = ask(&desk, name).await;
        let mut events = desk.shop.events(&format!("/v1/jobs/{id}/stream"), None).await;
        let before = events.must("the first words").await;
        let all = [vec![before.clone()], events.rest().await].concat();
        assert!(all.iter().any(|event| event.name == "restart"), "{all:?}");
        assert_eq!(heard(&all), second, "{name}");
        // Who had words of the first answer is told that they are void.
        let late = desk.shop.events(&format!("/v1/jobs/{id}/stream"), Some(&before.id)).await.rest().await;
        assert_eq!((late[0].name.as_str(), heard(&late)), ("restart", second));
        assert_eq!(desk.shop.job(&id).await["attempt"], 1);
    }
}

#[tokio::test]
async fn an_answer_with_a_schema_is_followed_too_and_a_repair_begins_anew() {
    let schema = "output = { type = \"object\", required = [\"a\"], properties = { a = { type = \"string\" } } }\ntimeout_seconds = 60";
    let desk = Desk::start_with(&task("schema", &main_model("schema"), schema)).await;
    desk.world.sandbox.ai.script(Answer { word_ms: 40, ..says("schema", "{\"b\": \"one two three four five\"}") });
    desk.world.sandbox.ai.script(Answer { word_ms: 40, ..says("schema", "{\"a\": \"one two three four five\"}") });
    let id = ask(&desk, "schema").await;
    let events = desk.shop.events(&format!("/v1/jobs/{id}/stream"), None).await.rest().await;
    assert!(events.iter().any(|event| event.name == "restart"), "{events:?}");
    assert_eq!(heard(&events), "{\"a\": \"one two three four five\"}");
    assert_eq!(desk.shop.job(&id).await["result"]["output"]["a"], "one two three four five");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_the_words_come_at_the_end_and_the_job_is_done() {
    let desk = Desk::start_with(&task("slow", &main_model("slow"), "timeout_seconds = 60")).await;
    let text = long("word");
    desk.world.sandbox.ai.script(Answer { word_ms: 100, ..says("slow", &text) });
    let id = ask(&desk, "slow").await;
    let mut events = desk.shop.events(&format!("/v1/jobs/{id}/stream"), None).await;
    let first = events.must("the first words").await;
    desk.world.sandbox.redis.kill9().await.unwrap();
    let all = [vec![first], events.rest().await].concat();
    assert_eq!(heard(&all), text);
    assert_eq!(all.last().map(|event| event.name.as_str()), Some("ended"));
}
