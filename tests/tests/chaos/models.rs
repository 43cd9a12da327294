//! Issue 8's second show: four workers with 200 calls in flight, and their provider goes down. Counted at the provider: from the trip of the
//! circuit breaker on it is asked by probes alone; nobody's attempt is used, and when it is back all finish.
//!
//! The provider is a server of the sandbox that cuts every connection: those under way when it goes down, and each that comes while it is.

use std::time::{Duration, Instant};

use acceptance::{World, until_within};
use sandbox::{Fault, Launch};
use serde_json::json;

use crate::{
    arena::LONG,
    report::{Report, seconds},
    seed::{Seed, size},
};

/// Workers, which serve nothing but models.
const WORKERS: usize = 4;

/// A replica has heard of a trip by then, or it is at fault: what it still calls is counted against it from then on.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models() {
    // Slots of a worker: 200 calls in flight in the full size.
    let slots = size(16_usize, 50);
    let seed = Seed::of("models");
    let mut report = Report::of("models", "A provider of models goes down", &seed);
    let world = World::start_with(Launch::new()).await;
    let ai = &world.sandbox.ai;
    let open_seconds = size(3, 30);
    let manifest = format!(
        "[tenant]\nname = \"shop\"\n[ai.providers.main]\nkind = \"openai\"\nbase_url = \"{}\"\nkey_env = \"OFFSTAGE_AI_SANDBOX\"\n\
         breaker = {{ open_seconds = {open_seconds} }}\n\
         [ai.tasks.ask]\nmodels = [{{ provider = \"main\", model = \"sandbox-small\" }}]\nprompt = \"{{{{ input.text }}}}\"\n\
         input = {{ type = \"object\" }}\ntimeout_seconds = 300\n",
        ai.url()
    );
    let shop = world.tenant_of("shop", &manifest).await;
    // Nothing is answered before the outage: every slot has a call in flight then.
    ai.usually(sandbox::services::ai::Answer { delay_ms: 240_000, ..Default::default() });
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        workers.push(
            world
                .start_worker(
                    Launch::new()
                        .env("OFFSTAGE_QUEUES", "ai")
                        .env("OFFSTAGE_CONCURRENCY", format!("ai={slots}"))
                        .env("OFFSTAGE_ENGINE_POOL", "8"),
                )
                .await,
        );
    }
    let jobs = size(150, 2_000);
    for first in (0..jobs).step_by(100) {
        let members: Vec<_> = (first..jobs.min(first + 100))
            .map(|number| json!({"kind": "ai.run", "payload": {"task": "ask", "input": {"text": format!("number {number}")}}}))
            .collect();
        shop.post("/v1/jobs/batch", &json!({"jobs": members})).await.expect(202);
    }
    let all = i64::try_from(WORKERS * slots).expect("a number");
    // Some slots of each worker are kept for those who go first.
    let running = "SELECT count(*) FROM job_state WHERE state = 2";
    let most = all - i64::try_from(WORKERS * (slots / 16)).expect("a number");
    until_within(LONG, "every slot has a call in flight", async || match world.number(running).await {
        found if found >= most => Ok(()),
        found => Err(found),
    })
    .await;

    ai.faults().add(Fault::Drop { after_bytes: 0 });
    let down = Instant::now();
    ai.stop();
    ai.start().await.expect("its address is still its own");
    let opened = "SELECT coalesce(sum(opened), 0) FROM breaker";
    until_within(LONG, "the breaker opens", async || match world.number(opened).await {
        0 => Err(0),
        opened => Ok(opened),
    })
    .await;
    let tripped = Instant::now() + HEARD_WITHIN;
    tokio::time::sleep(Duration::from_secs(size(10, 60)).saturating_sub(down.elapsed())).await;
    let failed_probes = world.number(opened).await;
    let waiting = world.number("SELECT count(*) FROM job_held WHERE breaker IS NOT NULL").await;
    let back = Instant::now();
    ai.usually(sandbox::services::ai::Answer::default());
    ai.faults().clear();

    let calls = ai.faults().requests();
    let between = |from: Instant, to: Instant| calls.iter().filter(|call| call.at > from && call.at <= to).count();
    let (before, after) = (between(down, tripped), between(tripped, back));
    report.line("calls in flight when it went down", world.number(running).await.max(most));
    report.line("calls that began between the outage and the trip, one second for hearing of it included", before);
    report.line("outage", seconds(back - down));
    report.line("calls from then on to its end", after);
    report.line("probes that failed", failed_probes - 1);
    report.line("jobs that waited at its end", waiting);
    // The one that is under way when it ends is cut too, and not counted as a reopening yet.
    let probes = usize::try_from(failed_probes).expect("a number");
    assert!(after <= probes, "{after} calls were made while the breaker was open, {probes} of them by leave");
    assert!(waiting > 0, "nobody waits for the breaker: the load was too small");

    let ended = Instant::now();
    until_within(LONG, "all have finished", async || {
        match world.number("SELECT count(*) FROM job_state s JOIN job j ON j.id = s.job_id WHERE j.kind = 'ai.run' AND s.state <> 3").await
        {
            0 => Ok(()),
            left => Err((
                left,
                world.text("SELECT coalesce(string_agg(DISTINCT state || ' ' || reason, ', '), '') FROM job_state WHERE state <> 3").await,
            )),
        }
    })
    .await;
    report.line("all finished after its return in", seconds(ended.elapsed()));
    let burned = world.number("SELECT count(*) FROM job_state WHERE attempt <> 1").await;
    let retried = world.number("SELECT count(*) FROM job_attempt WHERE outcome IN ('retry', 'failed')").await;
    report.line("jobs, attempts used beyond the first", format!("{jobs}, {retried}"));
    assert_eq!((burned, retried), (0, 0), "no attempt is used by a provider's outage");
    assert_eq!(world.number("SELECT count(*) FROM job_held").await, 0);
    assert!(workers.iter().all(|worker| worker.exits().is_empty()), "nobody ended by it");
}
