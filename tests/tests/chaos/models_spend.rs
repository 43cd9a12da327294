//! Issue 8's second show, its last words: overspend at most 1 %. Workers are killed in the middle of calls, jobs are cancelled, streams are
//! cut, while a product spends its budget to the end; then what its provider bills, by its own record of calls, is held against what was
//! charged and against the budget.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use acceptance::{World, id_of, until_within};
use futures_util::{StreamExt, stream};
use sandbox::{
    Launch,
    services::ai::{Answer, Trouble},
};
use serde_json::json;

use crate::{
    arena::LONG,
    report::{Report, seconds},
    seed::{Seed, size},
};

/// Requests at a time.
const AT_ONCE: usize = 16;

/// Millionths for a token of a question, and of an answer.
const PRICES: (u64, u64) = (1, 4);

/// Tokens that an answer may have, and has at the most. The provider counts four bytes to a token, as our estimate of a stream that was cut
/// does: how good that guess is for other texts is not what is shown here.
const MOST: u64 = 50;

/// How long a request is tried again for which there is no room: others that hold what they may use end meanwhile. After one that was in
/// vain the budget is spent.
const PATIENCE: Duration = Duration::from_secs(10);

/// A product with a budget, whose models have prices.
fn manifest(url: &str, budget: u64) -> String {
    format!(
        "[tenant]\nname = \"shop\"\n[usage]\nproduct.ai_cost = {{ month = {budget} }}\n\
         [ai.providers.main]\nkind = \"openai\"\nbase_url = \"{}\"\nkey_env = \"OFFSTAGE_AI_SANDBOX\"\n\
         [[ai.prices]]\nmodel = \"sandbox-small\"\ninput = {}\noutput = {}\n\
         [ai.tasks.ask]\nmodels = [{{ provider = \"main\", model = \"sandbox-small\" }}]\nprompt = \"{{{{ input.text }}}}\"\n\
         input = {{ type = \"object\" }}\ntimeout_seconds = 120\nmax_tokens = {MOST}\n",
        url,
        PRICES.0 * 1_000_000,
        PRICES.1 * 1_000_000,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_spend() {
    let (workers, kills, asked) = size((2_usize, 4, 120), (4, 60, 3_000));
    // Less than all of them cost, with what is charged for calls that the kills lose.
    let budget: u64 = size(12_000, 300_000);
    let seed = Seed::of("models_spend");
    let mut chance = seed.chance(1);
    let mut report = Report::of("models_spend", "A budget, and kills in the middle of calls", &seed);
    let world = World::start_with(Launch::new()).await;
    let ai = &world.sandbox.ai;
    let shop = world.tenant_of("shop", &manifest(&ai.url(), budget)).await;
    // What each call says, how long it takes and whether it is cut, in no order that anybody knows.
    for _ in 0..2 * asked {
        // Of five bytes each.
        let words = chance.number(5..=MOST * 4 / 5);
        let trouble = (chance.number(1..=20) == 1).then_some(Trouble::Cut { after_words: 3 });
        let text = "word ".repeat(usize::try_from(words).expect("some words"));
        ai.script(Answer { text: Some(text), delay_ms: chance.number(50..=900), word_ms: 10, trouble, ..Answer::default() });
    }
    let mut running = Vec::new();
    for _ in 0..workers {
        // Four with the default, and the API, are more than the server's hundred connections.
        let launch = Launch::new().env("OFFSTAGE_QUEUES", "ai").env("OFFSTAGE_CONCURRENCY", "ai=16").env("OFFSTAGE_ENGINE_POOL", "12");
        running.push(world.start_worker(launch).await);
    }
    let cancels: Vec<bool> = (0..asked).map(|_| chance.number(1..=25) == 1).collect();
    let (is_spent, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    let posting = stream::iter(0..asked)
        .map(|number| {
            let (shop, cancels, is_spent) = (&shop, &cancels, &is_spent);
            async move {
                let job = json!({"input": {"text": format!("number {number}")}, "stream": number % 2 == 0});
                let began = Instant::now();
                while !is_spent.load(Ordering::Relaxed) && began.elapsed() < PATIENCE {
                    let answer = shop.post("/v1/ai/ask", &job).await;
                    if answer.status == 202 {
                        let id = id_of(&answer.json());
                        if cancels.get(number).is_some_and(|cancel| *cancel) {
                            tokio::time::sleep(Duration::from_millis(300)).await;
                            shop.post_nothing(&format!("/v1/jobs/{id}/cancel")).await;
                        }
                        return 1_usize;
                    }
                    answer.problem(429, "USAGE_LIMIT_EXCEEDED");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                is_spent.store(true, Ordering::Relaxed);
                0
            }
        })
        .buffer_unordered(AT_ONCE)
        .fold(0, async |sum, one| sum + one);
    let killing = async {
        let mut hits = 0;
        for _ in 0..kills {
            until_within(LONG, "a call is under way", async || {
                match world.number("SELECT count(*) FROM job_state WHERE state = 2").await {
                    0 if !is_over.load(Ordering::Relaxed) => Err(0),
                    _ => Ok(()),
                }
            })
            .await;
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            tokio::time::sleep(chance.milliseconds(size(300..=1_200, 500..=2_500))).await;
            hits += usize::from(chance.choose(&running).kill9().await.expect("a kill").is_some());
        }
        hits
    };
    let began = Instant::now();
    let posting = async {
        let accepted = posting.await;
        is_over.store(true, Ordering::Relaxed);
        accepted
    };
    let (accepted, hits) = tokio::join!(posting, killing);
    until_within(LONG, "every job is at its end", async || match world.number("SELECT count(*) FROM job_state WHERE state < 3").await {
        0 => Ok(()),
        open => Err(open),
    })
    .await;

    let calls = ai.calls();
    let billed: u64 = calls.iter().map(|call| call.billed.0 * PRICES.0 + call.billed.1 * PRICES.1).sum();
    let number = async |statement: &str| u64::try_from(world.number(statement).await).expect("no less than nothing");
    let charged = number("SELECT coalesce(sum(amount), 0)::bigint FROM usage_charge WHERE scope = '' AND metric = 'ai_cost'").await;
    let written = number("SELECT coalesce(sum(cost), 0)::bigint FROM ai_call").await;
    let lost = number("SELECT count(*) FROM ai_call WHERE outcome = 'lost'").await;
    report.line("kills of the workers, in", format!("{hits}, {}", seconds(began.elapsed())));
    report.line("jobs asked for, accepted", format!("{asked}, {accepted}"));
    report.line("calls that the provider had; of those nobody heard the end", format!("{}; {lost}", calls.len()));
    report.line("budget", budget);
    report.line("billed by the provider's record", billed);
    report.line("charged", charged);
    let percent = |part: u64, of: u64| format!("{:.2} %", 100.0 * part as f64 / of as f64);
    report.line("overspend: billed beyond the budget", percent(billed.saturating_sub(budget), budget));
    report.line("billed and not charged", percent(billed.saturating_sub(charged), billed));
    report.line("charged beyond what was billed, for calls whose answers were lost", percent(charged.saturating_sub(billed), billed));
    assert!(hits > 0 && lost > 0, "the kills hit calls");
    assert!(billed.saturating_sub(budget) * 100 <= budget, "overspend of more than 1 %: {billed} of {budget}");
    assert!(billed.saturating_sub(charged) * 100 <= billed, "more than 1 % was billed and not charged: {billed}, {charged}");
    assert_eq!(charged, written, "what was charged is what the calls cost");
    assert_eq!(number("SELECT count(*) FROM usage_drift").await, 0, "drift");
    assert_eq!(number("SELECT count(*) FROM usage_reservation").await, 0, "what is reserved for nobody");
}
