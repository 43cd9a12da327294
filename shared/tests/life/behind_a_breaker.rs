//! What waits for a circuit breaker.

use chrono::TimeDelta;
use shared::{
    job::{JobId, Outcome, Policy, Reason, State},
    ledger::{
        breakers::{self, Became, LONGEST_WAIT, Let},
        dispatch::next_due,
        switches,
    },
};

use super::{Ledger, QUEUE};

async fn release(ledger: &Ledger, which: Let<'_>) -> Vec<JobId> {
    breakers::release(&ledger.engine, QUEUE, which, ledger.now()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_breaker_is_never_due_and_goes_on_as_many_as_are_let_through() {
    let ledger = Ledger::start().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(ledger.accept(ledger.tenant, "ai.run").await);
    }
    let due = ledger.now();
    ledger.advance(10);
    for (number, job) in ledger.claim().await.iter().enumerate() {
        let breaker = if job.id == ids[4] { "1:other:platform" } else { "1:main:platform" };
        let settled = ledger.settle(job, &Policy::DEFAULT, Outcome::BreakerOpen(breaker.to_owned())).await;
        assert_eq!((settled.state, settled.reason, settled.run_at), (State::Waiting, Reason::BreakerOpen, due), "{number}");
    }
    ledger.advance(1_000);
    assert!(ledger.dispatch().await.handovers.is_empty());
    assert_eq!(next_due(&ledger.engine, QUEUE, ledger.now()).await.unwrap(), None, "nobody is woken for them");
    assert_eq!(switches::release(&ledger.engine, QUEUE, ledger.now()).await.unwrap(), [], "no switch concerns them");
    assert!(!switches::any_held(&ledger.engine).await.unwrap() && breakers::any_held(&ledger.engine).await.unwrap());
    assert_eq!(breakers::awaited(&ledger.engine, QUEUE).await.unwrap(), ["1:main:platform", "1:other:platform"]);
    assert_eq!(release(&ledger, Let::Through("1:main:platform", 0)).await, []);
    assert_eq!(release(&ledger, Let::Through("1:main:platform", 1)).await, [ids[0]], "the oldest");
    let probe = ledger.claim_one().await;
    assert_eq!((probe.id, probe.attempt, probe.runs, probe.snoozes), (ids[0], 1, 2, 0), "no attempt was used");
    assert_eq!(release(&ledger, Let::Through("1:main:platform", 1_000)).await, ids[1..4]);
    assert_eq!(ledger.claim().await.len(), 3);
    assert_eq!(breakers::held(&ledger.engine, QUEUE).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_probe_failed_goes_behind_the_others_and_it_is_counted() {
    let ledger = Ledger::start().await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(ledger.accept(ledger.tenant, "ai.run").await);
    }
    let breaker = || "1:main:platform".to_owned();
    for job in ledger.claim().await {
        ledger.settle(&job, &Policy::DEFAULT, Outcome::BreakerOpen(breaker())).await;
    }
    for expected in [ids[0], ids[1], ids[0], ids[1]] {
        assert_eq!(release(&ledger, Let::Through("1:main:platform", 1)).await, [expected], "each in its turn");
        let probe = ledger.claim_one().await;
        let settled = ledger.settle(&probe, &Policy::DEFAULT, Outcome::BreakerProbed(breaker())).await;
        assert_eq!((settled.state, settled.reason), (State::Waiting, Reason::BreakerOpen));
    }
    assert_eq!(release(&ledger, Let::Through("1:main:platform", 1)).await, [ids[0]]);
    let probe = ledger.claim_one().await;
    assert_eq!((probe.attempt, probe.snoozes), (1, 2), "counted, and no attempt was used");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_breaker_for_ever() {
    let ledger = Ledger::start().await;
    let id = ledger.accept(ledger.tenant, "ai.run").await;
    let open = || Outcome::BreakerOpen("1:main:platform".to_owned());
    let job = ledger.claim_one().await;
    ledger.settle(&job, &Policy::DEFAULT, open()).await;
    ledger.clock.advance(LONGEST_WAIT - TimeDelta::seconds(1));
    assert_eq!(release(&ledger, Let::GiveUp).await, []);
    ledger.advance(2);
    assert_eq!(release(&ledger, Let::GiveUp).await, [id]);
    let job = ledger.claim_one().await;
    let settled = ledger.settle(&job, &Policy::DEFAULT, open()).await;
    assert_eq!(settled.state, State::Failed);
    assert_eq!(ledger.error(id).await["code"], "provider_unavailable");
    assert!(!breakers::any_held(&ledger.engine).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_became_of_breakers_is_forgotten_when_nobody_used_them_for_long() {
    let ledger = Ledger::start().await;
    ledger.accept(ledger.tenant, "ai.run").await;
    let job = ledger.claim_one().await;
    ledger.settle(&job, &Policy::DEFAULT, Outcome::BreakerOpen("1:awaited:platform".to_owned())).await;
    for name in ["1:awaited:platform", "1:old:platform", "1:new:platform"] {
        let became = Became { name, tenant: 1, provider: "main", credential: "platform", phase: "closed", open_for: None, counts: [0; 3] };
        breakers::became(&ledger.engine, &became).await.unwrap();
    }
    assert_eq!(breakers::forget(&ledger.engine).await.unwrap(), 0);
    let aged = "UPDATE breaker SET since = since - interval '31 days' WHERE name <> '1:new:platform'";
    sqlx::query(aged).execute(&ledger.engine).await.unwrap();
    assert_eq!(breakers::forget(&ledger.engine).await.unwrap(), 1, "the one for which a job waits stays");
    let left: Vec<String> = breakers::list(&ledger.engine).await.unwrap().into_iter().map(|standing| standing.name).collect();
    assert!(left.contains(&"1:awaited:platform".to_owned()) && left.contains(&"1:new:platform".to_owned()) && left.len() == 2, "{left:?}");
}
