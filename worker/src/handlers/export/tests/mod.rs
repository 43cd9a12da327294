//! Exports from a real database to a real object store, run as an engine runs them.

mod going_on;

use std::{io::Write as _, process::Stdio};

use sandbox::{Fault, Rule};
use serde_json::Value;
use shared::{job::FailureClass, kinds::ExportFormat};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::*;
use crate::handlers::workbench::{Workbench, wait};

const MANIFEST: &str = r#"
[tenant]
name = "tester"
[sources.main]
url_env = "OFFSTAGE_SOURCE_PROMPTLOCKR_URL"
[sources.missing]
url_env = "OFFSTAGE_SOURCE_NOT_SET"
[datasets.few]
source = "main"
sql = "SELECT n, :owner AS who, NULLIF(n, 2) AS gap FROM generate_series(1, :most) AS n"
[datasets.few.parameters]
owner = { type = "text", from = "owner" }
most = { type = "integer", default = 3 }
[datasets.large]
source = "main"
sql = "SELECT n, repeat(md5(n::text), 3000) AS text FROM generate_series(1, 180) AS n"
[datasets.slow]
source = "main"
sql = "SELECT n, pg_sleep(0.02) FROM generate_series(1, 100000) AS n"
[datasets.lonely]
source = "main"
sql = "SELECT NULLIF(n, 2) AS \"a, b\" FROM generate_series(1, 3) AS n"
[datasets.wrong]
source = "main"
sql = "SELECT 10 / (3 - n) FROM generate_series(1, 10) AS n"
[datasets.chars]
source = "main"
keyset = ["k"]
sql = "SELECT lpad(n::text, 7, '0')::char(9) AS k, repeat(md5(n::text), 1000) AS text FROM generate_series(1, 1500) AS n"
[datasets.bits]
source = "main"
keyset = ["k"]
sql = "SELECT n::bit(24) AS k, repeat(md5(n::text), 1000) AS text FROM generate_series(1, 1500) AS n"
[datasets.wide]
source = "main"
keyset = ["k"]
sql = "SELECT n AS k, repeat(md5(n::text), 1000) AS text, WIDE FROM generate_series(1, 1500) AS n"
[datasets.twins]
source = "main"
keyset = ["k"]
sql = "SELECT CASE n % 2 WHEN 0 THEN (n / 2)::numeric(9, 1) ELSE (n / 2)::numeric(9, 2) END AS k, repeat(md5(n::text), 1000) AS text FROM generate_series(1, 1500) AS n"
[datasets.unplugged]
source = "missing"
sql = "SELECT 1"
"#;

fn export(dataset: &str) -> ExportCreate {
    ExportCreate {
        dataset: Some(dataset.into()),
        kind: None,
        metric: None,
        view: None,
        format: ExportFormat::Csv,
        params: serde_json::Map::new(),
        filename: None,
        bom: false,
        escape_formulas: Some(false),
        notify: None,
    }
}

/// How a run ended, which it must within twenty seconds.
async fn ended(running: tokio::task::JoinHandle<Result<Success, Failure>>) -> Result<Success, Failure> {
    tokio::time::timeout(Duration::from_secs(20), running).await.expect("the run ends").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_becomes_a_file() {
    let bench = Workbench::start(&MANIFEST.replace("WIDE", "1")).await;
    let mut payload = export("few");
    payload.params.insert("most".into(), Value::from(4));
    payload.filename = Some("Größe".into());
    let context = bench.claimed(&payload, Some("o'brien, \"ann\"")).await;
    let success = run(payload, context.clone()).await.unwrap();

    let file = success.file.unwrap();
    let bytes = bench.sandbox.s3.object(&file.object_key).unwrap();
    let who = "\"o'brien, \"\"ann\"\"\"";
    assert_eq!(String::from_utf8(bytes.clone()).unwrap(), format!("n,who,gap\r\n1,{who},1\r\n2,{who},\r\n3,{who},3\r\n4,{who},4\r\n"));
    assert_eq!(file.object_key, format!("{}/{}/{:016x}/few.csv", context.job.tenant, context.job.id, context.job.token));
    assert_eq!((file.file_name.as_str(), file.content_type.as_str()), ("Größe.csv", "text/csv; charset=utf-8; header=present"));
    assert_eq!(file.bytes, bytes.len() as u64);
    assert_eq!(file.sha256.as_slice(), aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes).as_ref());
    assert_eq!(file.expires_at, Workbench::noon() + TimeDelta::days(7));
    let result = json!({
        "rows": 4, "bytes": bytes.len(), "sha256": hex::encode(file.sha256), "content_type": file.content_type, "filename": "Größe.csv",
        "read_at": success.result.as_ref().unwrap()["read_at"],
    });
    assert_eq!(success.result, Some(result));
    assert_eq!(bench.effects(context.job.id).await, [(format!("object:{:016x}", context.job.token), 1)]);

    // A NULL alone in its line stays a line.
    let context = bench.claimed(&export("lonely"), None).await;
    let file = run(export("lonely"), context).await.unwrap().file.unwrap();
    assert_eq!(bench.sandbox.s3.object(&file.object_key).unwrap(), b"\"a, b\"\r\n1\r\n\"\"\r\n3\r\n");
    // No rows are a file too.
    let mut payload = export("few");
    payload.params.insert("most".into(), Value::from(0));
    let context = bench.claimed(&payload, Some("x")).await;
    let file = run(payload, context).await.unwrap().file.unwrap();
    assert_eq!(bench.sandbox.s3.object(&file.object_key).unwrap(), b"n,who,gap\r\n");

    // Parts: 17 MB arrive in one piece, and only the object's effect is left.
    let context = bench.claimed(&export("large"), None).await;
    let file = run(export("large"), context.clone()).await.unwrap().file.unwrap();
    let bytes = bench.sandbox.s3.object(&file.object_key).unwrap();
    assert_eq!(bytes.len() as u64, file.bytes);
    assert_eq!(String::from_utf8(bytes).unwrap().matches("\r\n").count(), 181);
    assert!(bench.sandbox.s3.faults().count("UploadPart") >= 2);
    assert_eq!(bench.effects(context.job.id).await, [(format!("object:{:016x}", context.job.token), 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_exported_says_why_and_leaves_nothing() {
    let bench = Workbench::start(&MANIFEST.replace("WIDE", "1")).await;
    for (payload, owner, code, says) in [
        (export("gone"), None, "dataset_unknown", "`gone` is not in the product's manifest any more; it has: bits, chars, few, large"),
        (export("wrong"), Some("ada"), "dataset_unknown", "`wrong` is not in the product's manifest any more; it has: few"),
        (export("few"), None, "params_invalid", "/params/owner needs the job's owner"),
        (export("unplugged"), None, "source_unknown", "set OFFSTAGE_SOURCE_NOT_SET to a Postgres URL"),
        (export("wrong"), None, "dataset_refused", "`wrong`: division by zero (SQLSTATE 22012)"),
    ] {
        let context = bench.claimed(&payload, owner).await;
        let failure = run(payload, context.clone()).await.unwrap_err();
        assert_eq!((failure.class, failure.code), (FailureClass::Permanent, code), "{failure:?}");
        assert!(failure.message.contains(says), "{}", failure.message);
        assert_eq!(bench.effects(context.job.id).await, []);
    }
    for (fault, class, code) in [
        (Fault::Status(503), FailureClass::Transient, "storage_unavailable"),
        (Fault::Status(403), FailureClass::Permanent, "storage_access_denied"),
        (Fault::Status(404), FailureClass::Permanent, "storage_bucket_missing"),
    ] {
        bench.sandbox.s3.faults().add(Rule::from(fault).on("PutObject"));
        let context = bench.claimed(&export("few"), Some("x")).await;
        let failure = run(export("few"), context.clone()).await.unwrap_err();
        assert_eq!((failure.class, failure.code), (class, code), "{failure:?}");
        bench.sandbox.s3.faults().clear();
        bench.wait_until_nothing_is_left(context.job.id).await;
    }
    bench.sandbox.postgres.kill9().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_shows_and_a_cancelled_export_stops() {
    let bench = Workbench::start(&MANIFEST.replace("WIDE", "1")).await;
    let context = bench.claimed(&export("slow"), None).await;
    let running = tokio::spawn(run(export("slow"), context.clone()));
    wait("progress shows", async || {
        let done: Option<i64> = sqlx::query_scalar("SELECT progress_done FROM job_state WHERE job_id = $1")
            .bind(context.job.id.0)
            .fetch_one(&bench.services.pool)
            .await
            .unwrap();
        done.is_some_and(|done| done > 0)
    })
    .await;
    assert_eq!(bench.effects(context.job.id).await.len(), 1);
    context.cancelled.cancel();
    let failure = ended(running).await.unwrap_err();
    assert_eq!(failure.code, "cancelled");
    bench.wait_until_nothing_is_left(context.job.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_dropped_leaves_nothing() {
    let bench = Workbench::start(&MANIFEST.replace("WIDE", "1")).await;
    // In the middle of its parts.
    bench.sandbox.s3.faults().add(Rule::from(Fault::Hang).on("UploadPart").skip(1));
    let context = bench.claimed(&export("large"), None).await;
    let running = tokio::spawn(run(export("large"), context.clone()));
    wait("a part hangs", async || bench.sandbox.s3.faults().count("UploadPart") == 2).await;
    let token = context.job.token;
    assert_eq!(bench.effects(context.job.id).await, [(format!("object:{token:016x}"), 0), (format!("upload:{token:016x}"), 0)]);
    running.abort();
    bench.wait_until_nothing_is_left(context.job.id).await;
    bench.sandbox.s3.faults().clear();

    // While its only request waits for an answer.
    bench.sandbox.s3.pause();
    let context = bench.claimed(&export("few"), Some("x")).await;
    let running = tokio::spawn(run(export("few"), context.clone()));
    let before = bench.sandbox.s3.faults().count("PutObject");
    wait("the file is put", async || bench.sandbox.s3.faults().count("PutObject") > before.saturating_sub(1)).await;
    running.abort();
    bench.sandbox.s3.resume();
    bench.wait_until_nothing_is_left(context.job.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_claim_is_gone_stops_before_it_does_harm() {
    let bench = Workbench::start(&MANIFEST.replace("WIDE", "1")).await;
    let lose = async |context: &JobContext| {
        let taken_over = "UPDATE job_state SET token = token + 1 WHERE job_id = $1";
        sqlx::query(taken_over).bind(context.job.id.0).execute(bench.sandbox.pool()).await.unwrap();
    };
    let context = bench.claimed(&export("few"), Some("x")).await;
    lose(&context).await;
    let failure = run(export("few"), context.clone()).await.unwrap_err();
    assert_eq!((failure.class, failure.code), (FailureClass::Transient, "claim_lost"));
    assert_eq!(bench.sandbox.s3.faults().requests().len(), 0, "nothing was sent");

    // While it runs: progress finds out.
    let context = bench.claimed(&export("slow"), None).await;
    let running = tokio::spawn(run(export("slow"), context.clone()));
    wait("it has begun", async || bench.effects(context.job.id).await.len() == 1).await;
    lose(&context).await;
    assert_eq!(ended(running).await.unwrap_err().code, "claim_lost");
    bench.wait_until_nothing_is_left(context.job.id).await;

    // Before the first part: the ledger fences the upload that was just begun.
    bench.sandbox.s3.pause();
    let context = bench.claimed(&export("large"), None).await;
    let running = tokio::spawn(run(export("large"), context.clone()));
    wait("an upload is begun", async || bench.sandbox.s3.faults().count("CreateMultipartUpload") == 1).await;
    lose(&context).await;
    bench.sandbox.s3.resume();
    assert_eq!(ended(running).await.unwrap_err().code, "claim_lost");
    assert_eq!(bench.sandbox.s3.faults().count("UploadPart"), 0);
    bench.wait_until_nothing_is_left(context.job.id).await;
}

/// The rows of a CSV file as Python reads them.
fn read_by_python(csv: &[u8]) -> Vec<Vec<String>> {
    let script = "import csv, io, json, sys\n\
        csv.field_size_limit(2**30)\n\
        text = io.TextIOWrapper(sys.stdin.buffer, encoding='utf-8', errors='strict', newline='')\n\
        json.dump(list(csv.reader(text, strict=True)), sys.stdout)\n";
    let mut python =
        std::process::Command::new("python3").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = python.stdin.take().unwrap();
    let csv = csv.to_owned();
    let writing = std::thread::spawn(move || stdin.write_all(&csv));
    let output = python.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Puts the file's cells into a table of texts, as Postgres' own CSV reader reads them.
async fn load(product: &mut PgConnection, table: &str, columns: &[String], csv: &[u8]) {
    let quoted: Vec<_> = columns.iter().map(|column| format!("\"{column}\"")).collect();
    let (declared, listed) = (quoted.join(" text, "), quoted.join(", "));
    let create = format!("CREATE TEMPORARY TABLE {table} (line bigint GENERATED ALWAYS AS IDENTITY, {declared} text)");
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *product).await.unwrap();
    let mut copy = product.copy_in_raw(&format!("COPY {table} ({listed}) FROM STDIN (FORMAT csv, HEADER match)")).await.unwrap();
    for piece in csv.chunks(1 << 20) {
        copy.send(piece).await.unwrap();
    }
    copy.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_of_promptlockr_reads_back_as_it_was() {
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/promptlockr/tenant.toml")).unwrap();
    let bench = Workbench::start(&manifest).await;
    bench.sandbox.load_promptlockr(1_000).await.unwrap();
    let mut product = PgConnection::connect(&bench.sandbox.postgres.product_url()).await.unwrap();
    // How a cell is read back as its type. RFC 3339 and plain values need nothing but a cast; years beyond it and arrays
    // need a line each.
    sqlx::raw_sql(
        "SET TimeZone = 'UTC';
         CREATE FUNCTION pg_temp.moment(cell text) RETURNS text LANGUAGE sql RETURN CASE
             WHEN cell LIKE '0000-%' THEN '0001' || substr(cell, 5) || ' BC'
             WHEN cell ~ '^-\\d{6}-' THEN to_char(1 + substr(cell, 2, 6)::int, 'FM0000') || substr(cell, 8) || ' BC'
             WHEN cell ~ '^\\+\\d{6,7}-' THEN ltrim(split_part(cell, '-', 1), '+0') || substr(cell, strpos(cell, '-'))
             ELSE cell END;
         CREATE FUNCTION pg_temp.elements(cell text) RETURNS text[] LANGUAGE sql RETURN
             CASE WHEN cell IS NOT NULL THEN (SELECT coalesce(array_agg(e ORDER BY n), '{}') FROM jsonb_array_elements_text(cell::jsonb) WITH ORDINALITY AS x (e, n)) END;",
    )
    .execute(&mut product)
    .await
    .unwrap();

    for (dataset, query) in [
        (
            "prompts",
            "SELECT p.*, (SELECT count(*) FROM likes WHERE prompt_id = p.id) AS like_count
             FROM prompts AS p WHERE owner_id = (SELECT id FROM users WHERE name = 'demo')",
        ),
        ("all_prompts", "SELECT * FROM prompts"),
        (
            "collections",
            "SELECT c.*, cardinality(titles) AS prompt_count, titles AS prompt_titles, items
             FROM collections AS c, LATERAL (
                 SELECT coalesce(array_agg(p.title::text ORDER BY m.position), '{}') AS titles,
                        coalesce(jsonb_agg(jsonb_build_object('position', m.position, 'prompt', p.id, 'note', m.note) ORDER BY m.position), '[]') AS items
                 FROM collection_prompts AS m JOIN prompts AS p ON p.id = m.prompt_id
                 WHERE m.collection_id = c.id AND (p.visibility <> 'private' OR p.owner_id = c.owner_id)) AS content
             WHERE owner_id = (SELECT id FROM users WHERE name = 'demo')",
        ),
    ] {
        let payload = export(dataset);
        // What is for the backend alone has no owner.
        let owner = (dataset != "all_prompts").then_some("demo");
        let context = bench.claimed(&payload, owner).await;
        let success = run(payload, context).await.unwrap();
        let csv = bench.sandbox.s3.object(&success.file.unwrap().object_key).unwrap();

        let mut rows = read_by_python(&csv);
        let header = rows.remove(0);
        let table = format!("exported_{dataset}");
        load(&mut product, &table, &header, &csv).await;
        assert_eq!(success.result.unwrap()["rows"], rows.len());

        // Two readers that know nothing of each other see the same cells.
        let cells = header.iter().map(|column| format!("coalesce(\"{column}\", '')")).collect::<Vec<_>>().join(", ");
        let order = format!("SELECT to_json(ARRAY[{cells}])::text FROM {table} ORDER BY line");
        let loaded: Vec<String> = sqlx::query_scalar(AssertSqlSafe(order)).fetch_all(&mut product).await.unwrap();
        assert_eq!(loaded.len(), rows.len());
        for (loaded, row) in loaded.iter().zip(&rows) {
            assert_eq!(&serde_json::from_str::<Vec<String>>(loaded).unwrap(), row);
        }

        // And each cell, read as its column's type, is the value itself.
        let original: String = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*)::text FROM ({query}) AS original"))).fetch_one(&mut product).await.unwrap();
        assert_eq!(original, rows.len().to_string());
        assert!(rows.len() >= 20, "{dataset}: {}", rows.len());
        sqlx::raw_sql(AssertSqlSafe(format!("CREATE TEMPORARY VIEW original AS {query}"))).execute(&mut product).await.unwrap();
        for column in &header {
            let kind: String = sqlx::query_scalar(
                "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'original'::regclass AND attname = $1",
            )
            .persistent(false)
            .bind(column)
            .fetch_one(&mut product)
            .await
            .unwrap();
            let value = match kind.as_str() {
                "date" | "timestamp with time zone" | "timestamp without time zone" => format!("pg_temp.moment(l.\"{column}\")::{kind}"),
                array if array.ends_with("[]") => format!("pg_temp.elements(l.\"{column}\")::{array}"),
                // Has no equality of its own; its text is what it is.
                "json" => format!("l.\"{column}\""),
                other => format!("l.\"{column}\"::{other}"),
            };
            let own = if kind == "json" { format!("o.\"{column}\"::text") } else { format!("o.\"{column}\"") };
            let differing = format!(
                "SELECT count(*)::text || ' of ' || coalesce(min(l.\"{column}\"), 'NULL') FROM original AS o
                 LEFT JOIN {table} AS l ON l.id::uuid = o.id WHERE ({value}) IS DISTINCT FROM ({own}) OR (l.\"{column}\" = '') IS DISTINCT FROM (o.\"{column}\"::text = '')"
            );
            let found: String = sqlx::query_scalar(AssertSqlSafe(differing)).persistent(false).fetch_one(&mut product).await.unwrap_or_else(|error| panic!("{dataset}.{column} {kind}: {error}"));
            assert_eq!(found, "0 of NULL", "{dataset}.{column} {kind}");
        }
        sqlx::raw_sql("DROP VIEW original").execute(&mut product).await.unwrap();
    }
}

#[test]
fn the_pace_follows_the_rows() {
    let mut pace = Pace::default();
    pace.learn(100, 100 * 100);
    assert_eq!(pace.rows, 1_000, "ten times at most");
    pace.learn(1_000, 1_000 * 100);
    assert_eq!(pace.rows, 10_000, "ten thousand at most");
    pace.learn(10_000, 10_000 * 100_000);
    assert_eq!(pace.rows, 10);
    pace.learn(10, 10 * 50_000_000);
    assert_eq!(pace.rows, 1);
    pace.learn(1, 0);
    assert_eq!(pace.rows, 10);
}

#[tokio::test]
async fn a_manifest_that_the_ledger_does_not_give_out_is_not_the_jobs_fault() {
    let bench = Workbench::start(&MANIFEST.replace("WIDE", "1")).await;
    let context = bench.claimed(&export("few"), Some("ada")).await;
    bench.services.pool.close().await;
    let failure = run(export("few"), context).await.unwrap_err();
    // By this word the engine knows it.
    assert_eq!((failure.code, failure.class), (shared::ledger::UNAVAILABLE, FailureClass::Transient), "{failure:?}");
}
