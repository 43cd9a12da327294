//! Whom something is told, by the hundred thousand; and erasure, step by step.

use std::collections::BTreeSet;

use serde_json::json;
use shared::{
    job::{JobId, Outcome, Policy, Success},
    ledger::{
        LedgerError,
        people::{
            EndUser, audience,
            erase::{self, JOBS},
            keep::{self, Followed, Kept},
        },
    },
    people::Profile,
    tenant,
};

use super::{Ledger, apply};

impl Ledger {
    /// In a transaction of the API's, for one tenant.
    async fn put(&self, id: &str, profile: serde_json::Value) -> Kept {
        let profile: Profile = serde_json::from_value(profile).unwrap();
        let mut transaction = tenant::transaction(&self.api, self.tenant).await.unwrap();
        let kept = keep::put(&mut transaction, self.tenant, id, profile.checked().unwrap(), self.now()).await.unwrap();
        transaction.commit().await.unwrap();
        kept
    }

    async fn execute(&self, statement: String) {
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(self.sandbox.pool()).await.unwrap();
    }

    /// All pages of a list, of so many each.
    async fn pages(&self, limit: i64, page: impl AsyncFn(Option<String>, i64) -> Result<Vec<String>, LedgerError>) -> Vec<Vec<String>> {
        let (mut pages, mut after) = (Vec::new(), None);
        loop {
            let read = page(after.clone(), limit).await.unwrap();
            let Some(last) = read.last() else { return pages };
            after = Some(last.clone());
            pages.push(read);
        }
    }
}

#[tokio::test]
async fn a_hundred_thousand_are_read_page_by_page() {
    const USERS: i64 = 100_000;
    let ledger = Ledger::start().await;
    let tenant = ledger.tenant;
    let other = apply(&ledger.sandbox, "globex", &ledger.clock).await;
    for tenant in [tenant, other] {
        ledger
            .execute(format!(
                "INSERT INTO end_user (tenant_id, id, push, mail, created_at, updated_at)
                 SELECT {tenant}, 'u' || n, true, true, now(), now() FROM generate_series(1, {USERS}) AS n"
            ))
            .await;
        ledger
            .execute(format!(
                "INSERT INTO end_user_role (tenant_id, role, user_id)
                 SELECT {tenant}, role, 'u' || n FROM generate_series(1, {USERS}) AS n, unnest(ARRAY['author', 'moderator']) AS role
                 WHERE role = 'author' OR n % 1000 = 0"
            ))
            .await;
    }
    ledger
        .execute(format!("INSERT INTO follow (tenant_id, followed, follower, created_at) SELECT {tenant}, 'u1', 'u' || n, now() FROM generate_series(2, {USERS}) AS n"))
        .await;
    // One who is not here any more, and one who was never put.
    ledger.execute(format!("INSERT INTO follow (tenant_id, followed, follower, created_at) VALUES ({tenant}, 'u1', 'gone', now())")).await;
    ledger.execute("ANALYZE end_user, end_user_role, follow".to_owned()).await;

    let role = |role: &'static str| {
        let ledger = &ledger;
        async move |after: Option<String>, limit: i64| {
            let mut transaction = ledger.engine.begin().await.unwrap();
            audience::users_with_role(&mut transaction, tenant, role, after.as_deref(), limit).await
        }
    };
    let followers = async |after: Option<String>, limit: i64| {
        let mut transaction = tenant::transaction(&ledger.api, tenant).await?;
        audience::followers_of(&mut transaction, tenant, "u1", after.as_deref(), limit).await
    };
    for (pages, expected) in [
        (ledger.pages(1_000, role("author")).await, 100),
        (ledger.pages(1_000_000, role("author")).await, 20),
        (ledger.pages(1_000, followers).await, 100),
    ] {
        assert_eq!(pages.len(), expected);
        let all: Vec<&String> = pages.iter().flatten().collect();
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "in one order, nobody twice");
        assert!(all.len() >= 99_999 && !all.iter().any(|id| *id == "gone"), "{}", all.len());
    }
    let moderators = ledger.pages(30, role("moderator")).await;
    assert_eq!(moderators.iter().map(Vec::len).collect::<Vec<_>>(), [30, 30, 30, 10]);
    assert!(ledger.pages(10, role("nobody")).await.is_empty());

    let wanted: Vec<String> = ["u7", "u5", "nobody", "u5"].map(str::to_owned).to_vec();
    let mut transaction = tenant::transaction(&ledger.api, tenant).await.unwrap();
    let found: Vec<EndUser> = audience::users_by_id(&mut transaction, tenant, &wanted).await.unwrap();
    assert_eq!(found.iter().map(|user| user.id.as_str()).collect::<Vec<_>>(), ["u5", "u7"]);
    assert_eq!(found[0].profile.roles, BTreeSet::from(["author".to_owned()]));
    // As another tenant nobody of this one is here.
    let mut transaction = tenant::transaction(&ledger.api, other).await.unwrap();
    assert!(audience::users_by_id(&mut transaction, tenant, &wanted).await.unwrap().is_empty());

    // Each page by the key, wherever it begins: no list is read through.
    let plan: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
        "EXPLAIN SELECT r.user_id FROM end_user_role r WHERE r.tenant_id = {tenant} AND r.role >= 'author' AND r.role <= 'author' AND r.user_id > 'u9'
         ORDER BY r.tenant_id, r.role, r.user_id LIMIT 1000"
    )))
    .fetch_all(&ledger.engine)
    .await
    .unwrap();
    let plan = plan.join("\n");
    assert!(plan.contains("end_user_role_pkey") && !plan.contains("Seq Scan") && !plan.contains("Sort"), "{plan}");
}

#[tokio::test]
async fn an_erasure_is_cut_off_anywhere_and_comes_to_its_end() {
    let ledger = Ledger::start().await;
    let tenant = ledger.tenant;
    for user in ["ada", "bob"] {
        assert!(matches!(ledger.put(user, json!({"roles": ["author"]})).await, Kept::Created(_)));
    }
    for _ in 0..JOBS + 50 {
        ledger.accept(tenant, "probe.run").await;
    }
    // One that runs, and one that succeeded.
    ledger.execute("UPDATE job_waiting SET run_at = 'infinity'".to_owned()).await;
    let finished = ledger.accept(tenant, "probe.run").await;
    let job = ledger.claim_one().await;
    assert_eq!(job.id, finished);
    ledger.settle(&job, &Policy::DEFAULT, Outcome::Succeeded(Success::with(json!({"who": "ada"})))).await;
    ledger.accept(tenant, "probe.run").await;
    let running = ledger.claim_one().await;

    let request = async || {
        let mut transaction = tenant::transaction(&ledger.api, tenant).await.unwrap();
        let job = erase::request(&mut transaction, tenant, "ada", &ledger.clock).await.unwrap();
        transaction.commit().await.unwrap();
        job
    };
    let erasure = request().await;
    assert_eq!(request().await, erasure, "one at a time");
    assert_eq!(ledger.put("ada", json!({})).await, Kept::BeingErased);
    assert_eq!(erase::whom(&ledger.engine, tenant, erasure).await.unwrap().as_deref(), Some("ada"));
    let mut transaction = tenant::transaction(&ledger.api, tenant).await.unwrap();
    let seen: i64 = sqlx::query_scalar("SELECT count(*) FROM job WHERE owner = 'ada'").fetch_one(&mut *transaction).await.unwrap();
    assert_eq!(seen, 0, "nothing of it is seen from the request on");
    assert_eq!(keep::follow(&mut transaction, tenant, "bob", "ada", ledger.now()).await.unwrap(), Followed::Missing);
    drop(transaction);

    // A first page, and then nobody for a while.
    let page = erase::jobs(&ledger.engine, tenant, "ada", None, ledger.now()).await.unwrap();
    assert_eq!((page.gone.len(), page.left, page.next.is_some()), (usize::try_from(JOBS).unwrap(), 0, true));
    // From the beginning again: what is gone is not met again.
    let mut after: Option<JobId> = None;
    let (mut gone, mut left) = (0, 0);
    loop {
        let page = erase::jobs(&ledger.engine, tenant, "ada", after, ledger.now()).await.unwrap();
        gone += page.gone.len();
        left += page.left;
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!((gone, left), (51, 1), "all but what runs");
    assert_eq!(ledger.number("SELECT count(*) FROM job_tombstone WHERE owner IS NOT NULL").await, 0);
    // It was asked to stop, and ends; somebody else did not wait for that.
    ledger.settle(&running, &Policy::DEFAULT, Outcome::Cancelled).await;
    let page = erase::jobs(&ledger.engine, tenant, "ada", None, ledger.now()).await.unwrap();
    assert_eq!((page.gone.len(), page.left, page.next), (1, 0, None));
    while erase::by_name(&ledger.engine, tenant, "ada").await.unwrap() > 0 {}
    erase::finish(&ledger.engine, tenant, erasure).await.unwrap();
    erase::finish(&ledger.engine, tenant, erasure).await.unwrap();
    assert_eq!(erase::whom(&ledger.engine, tenant, erasure).await.unwrap(), None);
    assert_eq!(ledger.number("SELECT count(*) FROM job WHERE owner = 'ada' OR subject = 'ada'").await, 0);
    assert_eq!(ledger.number("SELECT count(*) FROM erasure").await, 0);
    assert!(matches!(ledger.put("ada", json!({})).await, Kept::Created(_)), "the name is free");
    assert!(matches!(ledger.put("bob", json!({})).await, Kept::Updated(_)), "others are as they were");
}
