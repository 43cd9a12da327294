//! Outages with real workers: what comes of the jobs that wait behind an open circuit breaker.

use std::time::Duration;

use acceptance::{id_of, until_within};
use futures_util::future::join_all;
use sandbox::services::ai::{Answer, Trouble};
use serde_json::{Value, json};

use super::{Desk, main_model, task};

fn failing(model: Option<&str>) -> Answer {
    let trouble = Trouble::Error { status: 500, code: None, headers: Vec::new() };
    Answer { model: model.map(str::to_owned), trouble: Some(trouble), ..Answer::default() }
}

/// Long enough for a breaker that opens again, and for what a job may be put off.
const PATIENCE: Duration = Duration::from_secs(120);

/// One question under which the provider fails, and ten that it could answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_question_under_which_its_provider_fails_keeps_nobody_waiting() {
    let tasks = [task("bad", &main_model("bad"), ""), task("good", &main_model("good"), "")];
    let quick = "[ai.providers.main.breaker]\nopen_seconds = 1\n";
    let desk = Desk::start_with(&(tasks.concat() + quick)).await;
    let second = desk.world.worker().await;
    let ai = &desk.world.sandbox.ai;
    // It fails under the one question whenever it is asked, and for now under every other.
    (0..500).for_each(|_| ai.script(failing(Some("bad"))));
    ai.usually(failing(None));
    let ask = async |name: &str| id_of(&desk.shop.post(&format!("/v1/ai/{name}"), &json!({"input": {"prompt": "x"}})).await.expect(202));
    // The oldest of them all: it is the first to be the probe.
    let bad = ask("bad").await;
    let mut good = Vec::new();
    for _ in 0..10 {
        good.push(ask("good").await);
    }
    let waits = async |id: &String| {
        desk.shop.wait_for_within(PATIENCE, id, "waiting for the breaker", |job| job["reason"] == "breaker_open").await;
    };
    join_all(good.iter().chain([&bad]).map(waits)).await;
    // Tried, and open again: by that one call, as whoever looks is told.
    let listed = async |arguments: &[&str]| {
        let output = desk.world.sandbox.run_api(["breaker", "list"].iter().chain(arguments).copied()).await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let breaker = async || serde_json::from_str::<Value>(&listed(&["--json"]).await).unwrap()["breakers"][0].clone();
    let again = until_within(PATIENCE, "a probe has failed", async || {
        let breaker = breaker().await;
        if breaker["opened"].as_u64() > Some(1) && breaker["phase"] == "open" { Ok(breaker) } else { Err(breaker) }
    })
    .await;
    assert_eq!((&again["calls"], &again["failures"], &again["slow"]), (&json!(1), &json!(1), &json!(0)), "{again}");
    let lines = listed(&[]).await;
    assert!(lines.starts_with("shop  ") && lines.contains("last with 1 failed and 0 slow of 1 calls"), "{lines}");
    until_within(PATIENCE, "it is explained so", async || {
        let why = desk.shop.get(&format!("/v1/jobs/{}/explain", good[0])).await.expect(200);
        assert!(!why.to_string().contains("0 of 0"), "{why}");
        if why.to_string().contains("1 of 1 calls had failed") { Ok(()) } else { Err(why) }
    })
    .await;
    let logs = desk.worker.log() + &second.log();
    let opened: Vec<&str> = logs.lines().filter(|line| line.contains("the circuit breaker opened")).collect();
    assert!(opened.len() > 1 && opened.iter().all(|line| !line.replace(['"', ' '], "").contains("calls:0,")), "{opened:?}");
    let calls = (desk.calls_of("bad"), desk.calls_of("good"));
    ai.usually(Answer::default());

    let ends = async |id: &String| desk.shop.wait_for_within(PATIENCE, id, "its end", acceptance::is_terminal).await;
    for job in join_all(good.iter().map(ends)).await {
        assert_eq!((&job["state"], &job["attempt"]), (&json!("succeeded"), &json!(1)), "{job}");
    }
    assert!(desk.calls_of("bad") > calls.0, "the bad one was tried too");
    assert!(desk.calls_of("good") >= calls.1 + 10);
    // With what else is asked, as ever, it closes.
    until_within(PATIENCE, "the breaker is closed", async || {
        // Some at once: one after the other would be as many as the bad one's tries, which is half of the stage's calls.
        let more = join_all((0..8).map(|_| ask("good"))).await;
        for job in join_all(more.iter().map(ends)).await {
            assert_eq!(job["state"], "succeeded", "{job}");
        }
        let breaker = breaker().await;
        if breaker["phase"] == "closed" { Ok(()) } else { Err(breaker) }
    })
    .await;
    // And the bad one comes to the end that its own tries bring it to, not at the end of the day.
    let job = ends(&bad).await;
    assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("ai_unavailable")), "{job}");
    assert_eq!(job["attempt"], 4, "{job}");
    assert_eq!(desk.effects(&bad).await, "", "none of its calls was answered");
    let charged = desk.world.number(format!("SELECT coalesce(sum(input_tokens + output_tokens), 0) FROM ai_call WHERE job_id = '{bad}'"));
    assert_eq!(charged.await, 0);
}

/// As many as would open it were they failures: it answered, and is well.
#[tokio::test]
async fn a_provider_that_paces_its_callers_or_refuses_what_they_ask_is_not_left_alone() {
    let desk = Desk::start_with(&(task("paced", &main_model("paced"), "") + &task("refused", &main_model("refused"), ""))).await;
    let ai = &desk.world.sandbox.ai;
    let mut jobs = Vec::new();
    for (name, status, state) in [("paced", 429, "succeeded"), ("refused", 400, "failed")] {
        for _ in 0..12 {
            let headers = vec![("retry-after-ms".to_owned(), "700".to_owned())];
            let trouble = Trouble::Error { status, code: None, headers };
            ai.script(Answer { model: Some(name.to_owned()), trouble: Some(trouble), ..Answer::default() });
        }
        for _ in 0..12 {
            jobs.push((id_of(&desk.shop.post(&format!("/v1/ai/{name}"), &json!({"input": {"prompt": "x"}})).await.expect(202)), state));
        }
    }
    for (id, state) in &jobs {
        let job = desk.shop.ended(id).await;
        assert_eq!((&job["state"], &job["attempt"]), (&json!(state), &json!(1)), "{job}");
    }
    assert_eq!((desk.calls_of("paced"), desk.calls_of("refused")), (24, 12), "each refused once");
    assert_eq!(desk.world.number("SELECT count(*) FROM breaker").await, 0, "no breaker has ever opened");
}

/// Whoever mistypes a name while a provider burns has to learn it.
#[tokio::test]
async fn a_breaker_of_what_no_manifest_has_is_not_set_and_what_is_set_is_listed_by_name() {
    let desk = Desk::start().await;
    let run = async |arguments: &str| {
        let output = desk.world.sandbox.run_api(["breaker"].into_iter().chain(arguments.split(' '))).await;
        output.map(|output| String::from_utf8(output.stdout).unwrap()).map_err(|error| error.to_string())
    };
    let why = "--reason test --by ops";
    for mode in ["force-open", "metrics-only"] {
        let refused = run(&format!("{mode} --tenant shop --provider mian {why}")).await.unwrap_err();
        let words = "the manifest of tenant shop does not have the provider `mian`, so nothing was set; there is main, other";
        assert!(refused.contains(words), "{refused}");
        let refused = run(&format!("{mode} --provider mian {why}")).await.unwrap_err();
        assert!(refused.contains("no manifest has the provider `mian`"), "{refused}");
    }
    // Another tenant's is no more than none.
    desk.world.tenant("bare").await;
    let refused = run(&format!("force-open --tenant bare --provider main {why}")).await.unwrap_err();
    assert!(refused.contains("there is none at all"), "{refused}");
    assert_eq!(desk.world.number("SELECT count(*) FROM breaker_override").await, 0);
    // What users' keys are checked by, and all providers together, need no manifest; and what is set can be lifted, whatever became of it.
    for named in ["--provider other", "--tenant shop --provider main", "--tenant shop", "--tenant bare --provider openai"] {
        let said = run(&format!("force-open {named} {why}")).await.unwrap();
        assert!(said.contains("kept open"), "{said}");
    }
    let listed = run("list").await.unwrap();
    for line in
        ["circuit breakers of provider other  forced_open", "of tenant shop, provider main  forced_open", "of tenant bare, provider openai"]
    {
        assert!(listed.contains(line), "{listed}");
    }
    let listed: Value = serde_json::from_str(&run("list --json").await.unwrap()).unwrap();
    let tenants: Vec<_> = listed["set"].as_array().unwrap().iter().map(|set| set["tenant"].as_str()).collect();
    assert_eq!(tenants, [None, Some("shop"), Some("shop"), Some("bare")], "{listed}");
    assert!(run("auto --provider mian --by ops").await.unwrap().contains("was so before"));
}
