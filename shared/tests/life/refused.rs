//! Ends that the database does not take as they are, and sums that it could not hold.

use shared::{
    job::{Failure, JobId, Outcome, Policy, State},
    ledger::settle::{Settlement, settle, settle_alone},
};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::Ledger;

/// A reservation of `ai_cost` that came to `actual`, and its counter.
async fn reserved(ledger: &Ledger, job: Uuid, actual: i64) {
    let statement = format!(
        "INSERT INTO usage_counter (tenant_id, scope, metric, period, starts_at, until, used) VALUES ({tenant}, 'ada', 'ai_cost', 3, 'epoch', 'infinity', 5)
         ON CONFLICT (tenant_id, scope, metric, period, starts_at) DO UPDATE SET used = usage_counter.used + 5;
         INSERT INTO usage_reservation (job_id, tenant_id, scope, metric, amount, actual, incurred, periods, starts, until, reserved_at)
         VALUES ('{job}', {tenant}, 'ada', 'ai_cost', 5, {actual}, true, '{{3}}', '{{epoch}}', 'infinity', now())",
        tenant = ledger.tenant,
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(ledger.sandbox.pool()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_was_used_can_be_added_up() {
    let ledger = Ledger::start().await;
    let jobs: Vec<Uuid> = (0..5).map(|_| ledger.clock.new_id()).collect();
    for job in &jobs {
        reserved(&ledger, *job, i64::MAX).await;
    }
    let ended: i64 =
        sqlx::query_scalar("SELECT settle_usage($1, $2)").bind(&jobs).bind(ledger.now()).fetch_one(&ledger.engine).await.unwrap();
    assert_eq!(ended, 5);
    assert_eq!(ledger.number("SELECT used FROM usage_counter").await, 4_000_000_000_000_000_000);
    assert_eq!(ledger.number("SELECT count(*) FROM usage_drift").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_end_is_refused_again_ends_without_what_was_refused_of_it() {
    let ledger = Ledger::start().await;
    let id = ledger.accept(ledger.tenant, "ai.run").await;
    sqlx::query("UPDATE job SET options = '{\"metered\": true}' WHERE id = $1").bind(id.0).execute(ledger.sandbox.pool()).await.unwrap();
    reserved(&ledger, id.0, 7).await;
    let refusing = "CREATE FUNCTION refusing() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'bigint out of range' USING ERRCODE = '22003'; END $$;
         CREATE TRIGGER refusing BEFORE INSERT ON usage_charge FOR EACH ROW EXECUTE FUNCTION refusing()";
    sqlx::raw_sql(refusing).execute(ledger.sandbox.pool()).await.unwrap();
    let job = ledger.claim_one().await;
    let failure = Failure::permanent("ai_refused", "no");
    let settlement = Settlement::decide(&job, &Policy::DEFAULT, Outcome::Failed(failure), ledger.now()).refused();
    let mut connection = ledger.engine.acquire().await.unwrap();
    assert!(settle(&mut connection, std::slice::from_ref(&settlement)).await.unwrap_err().is_about_data());
    let (settled, refused) = settle_alone(&mut connection, &settlement).await.unwrap();
    assert_eq!(settled.iter().map(|settled| (settled.job, settled.state)).collect::<Vec<(JobId, State)>>(), [(id, State::Failed)]);
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(ledger.number("SELECT count(*) FROM usage_reservation").await, 1, "the sweep finds it");
}
