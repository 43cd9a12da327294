//! What waits for a switch.

use serde_json::json;
use shared::{
    job::{JobId, Outcome, Policy, Reason, State},
    ledger::{
        change::{self, Change},
        dispatch::next_due,
        effects::{self, Intent, Reach},
        switches::{self, Scope},
    },
    tenant,
};

use super::{Ledger, QUEUE, apply};

async fn off(ledger: &Ledger, tenant: Option<i32>, kind: Option<&str>) -> bool {
    let names = kind.map(|kind| vec![kind, "mail.old"]);
    let scope = Scope { tenant, kind: kind.map(str::to_owned) };
    switches::turn_off(&ledger.engine, &scope, names.as_deref(), "ops", "a test", ledger.now()).await.unwrap()
}

async fn on(ledger: &Ledger, tenant: Option<i32>, kind: Option<&str>) -> bool {
    let scope = Scope { tenant, kind: kind.map(str::to_owned) };
    switches::turn_on(&ledger.engine, &scope, "ops", ledger.now()).await.unwrap()
}

async fn release(ledger: &Ledger) -> Vec<JobId> {
    switches::release(&ledger.engine, QUEUE, ledger.now()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_never_due_and_goes_on_as_it_was() {
    let ledger = Ledger::start().await;
    let other = apply(&ledger.sandbox, "globex", &ledger.clock).await;
    let (mail, call) = (ledger.accept(ledger.tenant, "email.send").await, ledger.accept(ledger.tenant, "ai.run").await);
    let theirs = ledger.accept(other, "email.send").await;
    let due = ledger.now();
    ledger.advance(10);
    for job in ledger.claim().await {
        let settled = ledger.settle(&job, &Policy::DEFAULT, Outcome::SwitchedOff).await;
        assert_eq!((settled.state, settled.reason, settled.run_at), (State::Waiting, Reason::SwitchedOff, due));
    }
    assert!(off(&ledger, Some(ledger.tenant), None).await && off(&ledger, None, Some("email.send")).await);
    assert!(!off(&ledger, Some(ledger.tenant), None).await, "it is off already");
    ledger.advance(100_000);
    assert!(ledger.dispatch().await.handovers.is_empty());
    assert_eq!(next_due(&ledger.engine, QUEUE, ledger.now()).await.unwrap(), None, "nobody is woken for them");
    assert_eq!(release(&ledger).await, [], "all are stopped by one switch or the other");

    // The tenant's other kinds go on; mail waits on, the tenant's too.
    assert!(on(&ledger, Some(ledger.tenant), None).await);
    assert_eq!(release(&ledger).await, [call]);
    assert_eq!(release(&ledger).await, []);
    let job = ledger.claim_one().await;
    assert_eq!((job.id, job.attempt, job.snoozes, job.run_at), (call, 1, 0, due));
    assert_eq!(job.counted_from, due + chrono::TimeDelta::seconds(100_000), "the time it was held does not count towards its deadline");
    assert!(on(&ledger, None, Some("email.send")).await);
    assert!(!on(&ledger, None, Some("email.send")).await, "it is on already");
    assert_eq!(release(&ledger).await, [mail, theirs]);
    assert_eq!(ledger.claim().await.len(), 2);
    assert_eq!(ledger.number("SELECT count(*) FROM job_held").await, 0);
    let list = switches::list(&ledger.engine, true).await.unwrap();
    let told: Vec<_> = list.iter().map(|one| (one.tenant.as_deref(), one.kind.as_deref(), one.on_by.as_deref())).collect();
    assert_eq!(told, [(None, Some("email.send"), Some("ops")), (Some("acme"), None, Some("ops"))], "the refused one left nothing");
    assert!(switches::list(&ledger.engine, false).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_can_be_cancelled() {
    let ledger = Ledger::start().await;
    let id = ledger.accept(ledger.tenant, "email.send").await;
    let job = ledger.claim_one().await;
    ledger.settle(&job, &Policy::DEFAULT, Outcome::SwitchedOff).await;
    let mut transaction = tenant::transaction(&ledger.api, ledger.tenant).await.unwrap();
    assert_eq!(change::cancel(&mut transaction, ledger.tenant, id, ledger.now()).await.unwrap(), Change::Done);
    transaction.commit().await.unwrap();
    assert_eq!(ledger.number("SELECT (SELECT count(*) FROM job_held) + (SELECT count(*) FROM job_waiting)").await, 0);
    assert_eq!(release(&ledger).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_outside_asks_the_switch_and_a_step_of_ours_does_not() {
    let ledger = Ledger::start().await;
    ledger.accept(ledger.tenant, "email.send").await;
    let job = ledger.claim_one().await;
    let intend = async |key: &str, reach| effects::intend(&ledger.engine, &job, key, &json!({}), reach, ledger.now()).await.unwrap();
    assert_eq!(intend("sent", Reach::Outward).await, Intent::New);
    effects::receipt(&ledger.engine, job.id, "sent", &json!({"id": 1}), ledger.now()).await.unwrap();
    assert_eq!(intend("begun", Reach::Outward).await, Intent::New);
    for (tenant, kind) in [(None, None), (Some(ledger.tenant), None), (None, Some("email.send")), (Some(ledger.tenant), Some("email.send"))]
    {
        off(&ledger, tenant, kind).await;
        assert_eq!(intend("message", Reach::Outward).await, Intent::SwitchedOff);
        assert_eq!(intend("begun", Reach::Outward).await, Intent::SwitchedOff, "it can't be known to be done");
        assert_eq!(intend("sent", Reach::Outward).await, Intent::Done { receipt: json!({"id": 1}) }, "done is done");
        assert_eq!(intend(&format!("object:{tenant:?}{kind:?}"), Reach::Ours).await, Intent::New);
        on(&ledger, tenant, kind).await;
    }
    for (tenant, kind) in [(Some(ledger.tenant + 1), None), (None, Some("ai.run")), (Some(ledger.tenant + 1), Some("email.send"))] {
        off(&ledger, tenant, kind).await;
    }
    assert_eq!(intend("message", Reach::Outward).await, Intent::New, "other switches stop others");
}
