//! What a call costs of which nobody hears the end, or whose provider counts what can't be: its worker is killed, its job is cancelled, its
//! stream is cut. Never nothing, and once.

use acceptance::{Client, World, id_of, until, until_within};
use sandbox::{
    Process,
    services::ai::{Answer, Trouble},
};
use serde_json::{Value, json};
use std::time::Duration;

use super::{balances, used};

/// What an answer of 100 tokens costs, the most that the task allows.
const ANSWER: u64 = 400;

/// A shop with a price, a budget with room for some calls, and its worker.
struct Shop {
    world: World,
    worker: Process,
    backend: Client,
    ada: Client,
}

impl Shop {
    async fn open() -> Self {
        let (world, worker) = World::with_worker().await;
        let task = |name: &str, provider: &str, more: &str| {
            format!(
                "[ai.tasks.{name}]\nmodels = [{{ provider = \"{provider}\", model = \"sandbox-small\" }}]\nprompt = \"{{{{ input.prompt }}}}\"\n\
                 input = {{ type = \"object\" }}\nmax_tokens = 100\ntimeout_seconds = 120\n{more}\n"
            )
        };
        let provider = |name: &str, kind: &str| {
            let url = world.sandbox.ai.url();
            format!("[ai.providers.{name}]\nkind = \"{kind}\"\nbase_url = \"{url}\"\nkey_env = \"OFFSTAGE_AI_SANDBOX\"\n")
        };
        let manifest = format!(
            "[tenant]\nname = \"shop\"\n[usage]\neach_user.ai_cost = {{ day = 10_000 }}\n{}{}\
             [[ai.prices]]\nmodel = \"sandbox-small\"\ninput = 1_000_000\noutput = 4_000_000\n\
             [[ai.prices]]\nmodel = \"sandbox-large\"\ninput = 1_000_000\noutput = 4_000_000\n{}{}{}",
            provider("main", "openai"),
            provider("other", "anthropic"),
            task("ask", "main", ""),
            task("ask_other", "other", ""),
            task("ask_either", "main", "").replace(" }]", " }, { provider = \"other\", model = \"sandbox-large\" }]"),
        );
        let backend = world.tenant_of("shop", &manifest).await;
        let ada = backend.acting_for("ada");
        Self { world, worker, backend, ada }
    }

    async fn ask(&self, task: &str, stream: bool) -> String {
        let asked = json!({"input": {"prompt": "What is the sea?"}, "stream": stream});
        id_of(&self.ada.post(&format!("/v1/ai/{task}"), &asked).await.expect(202))
    }

    /// Waits until the provider has had so many calls.
    async fn called(&self, calls: usize) {
        until_within(Duration::from_secs(120), "the call is under way", async || match self.world.sandbox.ai.calls().len() {
            made if made >= calls => Ok(()),
            made => Err(made),
        })
        .await;
    }

    async fn spent(&self) -> u64 {
        used(&self.ada, "ai_cost", "day").await.0
    }

    /// What the provider bills.
    fn billed(&self) -> u64 {
        self.world.sandbox.ai.calls().iter().map(|call| call.billed.0 + 4 * call.billed.1).sum()
    }

    /// What `GET /v1/ai/usage` tells the user of a model: calls, those that were answered, those that are estimates, what they cost.
    async fn told_of(&self, model: &str) -> [u64; 4] {
        let usage = self.ada.get("/v1/ai/usage").await.expect(200);
        let day = usage["days"].as_array().unwrap().iter().find(|day| day["model"] == model).cloned().unwrap_or_default();
        ["calls", "answered", "estimated_calls", "cost_micros"].map(|field| day[field].as_u64().unwrap_or_default())
    }

    async fn calls(&self, of: &str) -> i64 {
        self.world.number(format!("SELECT count(*) FROM ai_call WHERE {of}")).await
    }

    /// Counters, charges and calls tell the same.
    async fn agrees(&self) {
        balances(&self.world).await;
        let charged = self.world.number("SELECT coalesce(sum(amount), 0)::bigint FROM usage_charge WHERE scope = 'ada'").await;
        let calls = self.world.number("SELECT coalesce(sum(cost), 0)::bigint FROM ai_call").await;
        let days = self.world.number("SELECT coalesce(sum(cost), 0)::bigint FROM ai_usage_day WHERE scope = ''").await;
        assert_eq!((charged, days), (calls, calls), "charges, days and calls");
        assert_eq!(self.spent().await, u64::try_from(charged).unwrap());
    }
}

fn slow() -> Answer {
    Answer { delay_ms: 60_000, tokens: Some((20, 100)), ..Answer::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_call_that_died_with_its_worker_is_charged_once_as_all_that_it_can_have_taken() {
    let shop = Shop::open().await;
    let ai = &shop.world.sandbox.ai;
    ai.script(slow());
    ai.script(slow());
    ai.script(Answer { tokens: Some((20, 10)), ..Answer::default() });
    let job = shop.ask("ask", false).await;
    for calls in 1..=2 {
        shop.called(calls).await;
        shop.worker.kill9().await.unwrap().unwrap();
    }
    shop.ada.succeeded(&job).await;
    assert_eq!(ai.calls().len(), 3);
    assert_eq!((shop.calls("outcome = 'lost' AND estimated").await, shop.calls("outcome = 'answered'").await), (2, 1));
    // The question as it was reserved for, a token for each byte at the most, and the longest answer: no less than what is billed.
    let spent = shop.spent().await;
    assert!(spent > 2 * ANSWER + 60 && spent >= shop.billed(), "{spent} of {}", shop.billed());
    let listed =
        shop.world.text(format!("SELECT string_agg(key || '=' || state, ' ' ORDER BY key) FROM effect WHERE job_id = '{job}'")).await;
    assert_eq!(listed, "ai:1=2 ai:1:2=2 ai:1:3=1", "each call is an effect of its own");
    shop.agrees().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_job_never_runs_again_is_charged_too() {
    let shop = Shop::open().await;
    shop.world.sandbox.ai.script(slow());
    let job = shop.ask("ask", false).await;
    shop.called(1).await;
    shop.worker.set_restart(false).await.unwrap();
    shop.worker.kill9().await.unwrap().unwrap();
    shop.ada.post_nothing(&format!("/v1/jobs/{job}/cancel")).await.expect(202);
    // Whoever finds that its worker has died ends it.
    let _worker = shop.world.worker().await;
    assert_eq!(shop.ada.ended(&job).await["state"], "cancelled");
    assert_eq!(shop.calls("outcome = 'lost'").await, 1);
    assert!(shop.spent().await >= shop.billed() && shop.billed() > ANSWER, "{} of {}", shop.spent().await, shop.billed());
    assert_eq!(shop.world.sandbox.ai.calls().len(), 1, "and it is not made again");
    shop.agrees().await;
}

/// Nothing was reserved for it, and the product is billed all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_no_limit_counts_is_told_in_the_usage_when_its_job_never_runs_again() {
    let shop = Shop::open().await;
    shop.world.sandbox.ai.script(slow());
    let job = id_of(&shop.backend.post("/v1/ai/ask", &json!({"input": {"prompt": "What is the sea?"}})).await.expect(202));
    shop.called(1).await;
    shop.worker.set_restart(false).await.unwrap();
    shop.worker.kill9().await.unwrap().unwrap();
    shop.backend.post_nothing(&format!("/v1/jobs/{job}/cancel")).await.expect(202);
    let _worker = shop.world.worker().await;
    assert_eq!(shop.backend.ended(&job).await["state"], "cancelled");
    assert_eq!(shop.calls("outcome = 'lost' AND estimated").await, 1);
    let usage = shop.backend.get("/v1/ai/usage").await.expect(200);
    let told = usage["days"][0]["cost_micros"].as_u64().unwrap();
    assert!(told >= shop.billed() && shop.billed() > ANSWER, "{usage}");
}

/// Nobody knows what it costs, which is neither nothing nor all there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_has_no_price_is_lost_without_one() {
    let shop = Shop::open().await;
    let manifest = format!(
        "[tenant]\nname = \"free\"\n[ai.providers.main]\nkind = \"openai\"\nbase_url = \"{}\"\nkey_env = \"OFFSTAGE_AI_SANDBOX\"\n\
         [ai.tasks.ask]\nmodels = [{{ provider = \"main\", model = \"sandbox-small\" }}]\nprompt = \"{{{{ input.prompt }}}}\"\n\
         input = {{ type = \"object\" }}\nmax_tokens = 100\ntimeout_seconds = 120\n",
        shop.world.sandbox.ai.url()
    );
    let free = shop.world.tenant_of("free", &manifest).await;
    shop.world.sandbox.ai.script(slow());
    let job = id_of(&free.post("/v1/ai/ask", &json!({"input": {"prompt": "What is the sea?"}})).await.expect(202));
    shop.called(1).await;
    shop.worker.kill9().await.unwrap().unwrap();
    free.succeeded(&job).await;
    let usage = free.get("/v1/ai/usage").await.expect(200);
    let day = &usage["days"][0];
    assert_eq!((&day["calls"], &day["answered"], &day["estimated_calls"]), (&json!(2), &json!(1), &json!(1)), "{usage}");
    assert_eq!((&day["cost_micros"], &day["unpriced_calls"]), (&Value::Null, &json!(2)), "{usage}");
}

#[tokio::test]
async fn a_stream_that_ends_too_soon_is_charged_what_was_heard_of_it() {
    let shop = Shop::open().await;
    let ai = &shop.world.sandbox.ai;
    let text = "one two three four five six seven eight nine ten eleven twelve";
    let begun =
        |trouble| Answer { trouble: Some(trouble), text: Some(text.into()), tokens: Some((20, 12)), word_ms: 20, ..Answer::default() };
    // Cancelled while it speaks, in either dialect: what it said is charged, and not all that it might have said.
    for (number, task) in [(1, "ask"), (2, "ask_other")] {
        let before = shop.spent().await;
        ai.script(begun(Trouble::Stall { after_words: 6 }));
        let job = shop.ask(task, true).await;
        shop.called(number).await;
        until("six words were sent", async || match ai.calls()[number - 1].billed {
            (20, 6) => Ok(()),
            other => Err(other),
        })
        .await;
        shop.ada.post_nothing(&format!("/v1/jobs/{job}/cancel")).await.expect(202);
        assert_eq!(shop.ada.ended(&job).await["state"], "cancelled");
        let spent = shop.spent().await - before;
        assert!((6 * 4..ANSWER).contains(&spent), "{task}: {spent}");
    }
    assert_eq!(shop.calls("outcome = 'ai_given_up' AND estimated").await, 2);
    // Cut by the provider, then answered: what Anthropic counted at its beginning is not what it came to.
    let before = shop.spent().await;
    ai.script(begun(Trouble::Cut { after_words: 6 }));
    ai.script(Answer { tokens: Some((20, 10)), ..Answer::default() });
    let job = shop.ask("ask_other", true).await;
    shop.ada.succeeded(&job).await;
    let (spent, cut) = (shop.spent().await - before, shop.calls("outcome = 'ai_cut' AND estimated AND output_tokens >= 6").await);
    assert!(cut == 1 && (60 + 20 + 6 * 4..60 + ANSWER).contains(&spent), "{spent}");
    shop.agrees().await;
    let explained = shop.ada.get(&format!("/v1/jobs/{job}/explain")).await.expect(200);
    assert_eq!(explained["usage"], json!([{"metric": "ai_cost", "charged": spent}]), "{explained}");
    assert_eq!(explained.get("usage").and_then(Value::as_array).map(Vec::len), Some(1));
}

/// The first model's call has failed, and is written down; the second's is under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_within_its_second_models_call_has_each_call_charged_once() {
    let shop = Shop::open().await;
    let ai = &shop.world.sandbox.ai;
    let first = |trouble| Answer { model: Some("sandbox-small".into()), trouble: Some(trouble), ..Answer::default() };
    // One whose call may have been made, and one that says that it was not: that one costs nothing.
    for (killed, trouble, effects) in [
        (1, Trouble::Malformed, "ai:1=2 ai:1:2=2 ai:1:3=1"),
        (2, Trouble::Error { status: 500, code: None, headers: Vec::new() }, "ai:1=2 ai:1:2=1"),
    ] {
        ai.script(first(trouble));
        ai.script(Answer { model: Some("sandbox-large".into()), ..slow() });
        ai.script(Answer { model: Some("sandbox-small".into()), tokens: Some((20, 10)), ..Answer::default() });
        let made = ai.calls().len();
        let ([small, answered, estimated, cost], large) = (shop.told_of("sandbox-small").await, shop.told_of("sandbox-large").await);
        let job = shop.ask("ask_either", false).await;
        shop.called(made + 2).await;
        shop.worker.kill9().await.unwrap().unwrap();
        let job_then = shop.ada.succeeded(&job).await;
        assert_eq!((&job_then["result"]["model"], ai.calls().len() - made), (&json!("sandbox-small"), 3), "{job_then}");
        let listed =
            shop.world.text(format!("SELECT string_agg(key || '=' || state, ' ' ORDER BY key) FROM effect WHERE job_id = '{job}'")).await;
        assert_eq!(listed, effects);
        // Each of the three once, with its model: what failed, what was lost, what was answered.
        let calls =
            shop.world.text(format!("SELECT string_agg(model || ' ' || outcome, ', ' ORDER BY at) FROM ai_call WHERE job_id = '{job}'"));
        let failed = if killed == 1 { "ai_unreadable" } else { "ai_unavailable" };
        assert_eq!(calls.await, format!("sandbox-small {failed}, sandbox-large lost, sandbox-small answered"));
        let lost = shop.told_of("sandbox-large").await;
        assert_eq!([lost[0] - large[0], lost[1] - large[1], lost[2] - large[2]], [1, 0, 1]);
        assert!(lost[3] - large[3] > ANSWER, "all that it can have taken: {lost:?}");
        // The first call's answer was paid for where it came; what a provider refused is counted, and free.
        let now = shop.told_of("sandbox-small").await;
        let guessed = u64::from(killed == 1);
        assert_eq!([now[0] - small, now[1] - answered, now[2] - estimated], [2, 1, guessed], "{now:?}");
        let paid = now[3] - cost;
        assert!(if killed == 1 { paid > ANSWER + 60 } else { paid == 60 }, "{paid}");
        shop.agrees().await;
    }
    assert!(shop.spent().await >= shop.billed(), "{} of {}", shop.spent().await, shop.billed());
}

/// So many tokens are more than all that counters have room for; nobody has asked or answered so much.
#[tokio::test]
async fn a_provider_that_counts_what_cant_be_stops_nobody() {
    let shop = Shop::open().await;
    let ai = &shop.world.sandbox.ai;
    let eve = shop.ada.acting_for("eve");
    for (number, (task, stream)) in [("ask", false), ("ask", true), ("ask_other", false), ("ask_other", true)].into_iter().enumerate() {
        let before = shop.spent().await;
        ai.script(Answer { tokens: Some((1_000_000_000_000_000_000, 10)), ..Answer::default() });
        let job = shop.ask(task, stream).await;
        let result = shop.ada.succeeded(&job).await["result"].clone();
        // It said nothing, then: what it can have taken is charged, and no more.
        assert_eq!(result["usage"]["estimated"], true, "{task}, {stream}: {result}");
        let spent = shop.spent().await - before;
        assert!((1..2 * ANSWER).contains(&spent), "{task}, {stream}: {spent}");
        // The pages of usage answer, and whoever comes next is charged as ever.
        let number = u64::try_from(number).unwrap();
        let main = shop.told_of("sandbox-small").await;
        assert!(main[0] > 0 && main[2] == main[0], "{main:?}");
        ai.script(Answer { tokens: Some((20, 10)), ..Answer::default() });
        let asked = json!({"input": {"prompt": "What is the sea?"}});
        let others = id_of(&eve.post(&format!("/v1/ai/{task}"), &asked).await.expect(202));
        eve.succeeded(&others).await;
        assert_eq!(used(&eve, "ai_cost", "day").await.0, (number + 1) * 60);
    }
    balances(&shop.world).await;
}
