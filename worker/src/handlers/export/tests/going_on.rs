//! Exports that go on where an earlier attempt stopped.

use super::*;

/// The run after one that was lost in the middle of its upload, with something saved.
async fn gone_on(bench: &Workbench, dataset: &'static str) -> (JobContext, Result<Success, Failure>) {
    let faults = bench.sandbox.s3.faults();
    faults.add(Rule::from(Fault::Hang).on("UploadPart").path_contains(dataset).skip(3));
    let context = bench.claimed(&export(dataset), None).await;
    let lost = tokio::spawn(run(export(dataset), context.clone()));
    wait("a checkpoint", async || {
        let saved = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM job_checkpoint WHERE job_id = $1").bind(context.job.id.0);
        saved.fetch_one(&bench.services.pool).await.unwrap() == 1
    })
    .await;
    lost.abort();
    assert!(lost.await.unwrap_err().is_cancelled());
    faults.clear();
    let next = bench.taken_over(&context).await;
    (next.clone(), run(export(dataset), next).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_goes_on_behind_keys_of_any_type() {
    // Names and types that together are longer than a checkpoint may be.
    let wide: Vec<String> = (0..1_200).map(|number| format!("NULL::timestamptz AS a_column_with_a_name_of_some_length_{number}")).collect();
    let bench = Workbench::start(&MANIFEST.replace("WIDE", &wide.join(", "))).await;
    for dataset in ["chars", "bits", "wide"] {
        let (_, ended) = gone_on(&bench, dataset).await;
        let success = ended.unwrap();
        let result = success.result.unwrap();
        assert_eq!((result["rows"].as_u64(), result["snapshots"].as_array().map(Vec::len)), (Some(1_500), Some(2)), "{dataset}: {result}");
        let bytes = bench.sandbox.s3.object(&success.file.unwrap().object_key).unwrap();
        let mut keys: Vec<&[u8]> =
            bytes.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b',').next().unwrap()).collect();
        keys.dedup();
        assert_eq!(keys.len(), 1_502, "{dataset}: a header, every row once, and the end");
    }
    assert_eq!(bench.sandbox.s3.unfinished_uploads().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_dropped_while_it_saves_removes_nothing() {
    let bench = Workbench::start(&MANIFEST.replace("WIDE", "1")).await;
    let pool = &bench.services.pool;
    let context = bench.claimed(&export("bits"), None).await;
    // Saving waits in the middle for as long as the test holds a lock.
    let gate = "CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END $$;
                CREATE TRIGGER gate BEFORE INSERT ON job_checkpoint FOR EACH ROW EXECUTE FUNCTION gate()";
    sqlx::raw_sql(gate).execute(bench.sandbox.pool()).await.unwrap();
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock(7)").execute(&mut *lock).await.unwrap();
    let lost = tokio::spawn(run(export("bits"), context.clone()));
    wait("a checkpoint that waits", async || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(pool).await.unwrap() == 1
    })
    .await;
    lost.abort();
    assert!(lost.await.unwrap_err().is_cancelled());
    lock.rollback().await.unwrap();
    wait("a checkpoint", async || {
        let saved = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM job_checkpoint WHERE job_id = $1").bind(context.job.id.0);
        saved.fetch_one(pool).await.unwrap() == 1
    })
    .await;
    let result = run(export("bits"), bench.taken_over(&context).await).await.unwrap().result.unwrap();
    assert_eq!(result["snapshots"].as_array().map(Vec::len), Some(2), "{result}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_postgres_takes_for_the_same_lose_no_row() {
    let bench = Workbench::start(&MANIFEST.replace("WIDE", "1")).await;
    let (context, ended) = gone_on(&bench, "twins").await;
    let failure = ended.unwrap_err();
    assert_eq!((failure.class, failure.code), (FailureClass::Permanent, "keyset_not_unique"), "{failure:?}");
    assert_eq!(bench.sandbox.s3.unfinished_uploads().unwrap(), []);
    assert_eq!(
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM job_checkpoint WHERE job_id = $1")
            .bind(context.job.id.0)
            .fetch_one(&bench.services.pool)
            .await
            .unwrap(),
        0
    );
}
