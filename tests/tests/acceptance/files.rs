//! The life of an export's file: published once whatever dies, shown on its page, deleted at its time or at its owner's wish,
//! and told of.

use std::time::Duration;

use acceptance::{Client, PATIENCE, World, id_of, is_terminal, until, until_within};
use reqwest::Method;
use sandbox::{Fault, Process, Rule};
use serde_json::{Value, json};

/// Some 16 MB, two parts and more of an upload; and a dataset that its source refuses.
const MANIFEST: &str = r#"
[tenant]
name = "initech"
[sources.main]
url_env = "OFFSTAGE_SOURCE_PROMPTLOCKR_URL"
[datasets.reports]
source = "main"
audience = "users"
sql = "SELECT number, repeat(md5(number::text), 8) AS content FROM generate_series(1, 60000) AS number"
[datasets.words]
source = "main"
audience = "users"
sql = "SELECT 'a' AS word"
[datasets.broken]
source = "main"
audience = "users"
sql = "SELECT 1 / length('') AS nothing"
"#;

struct Office {
    world: World,
    ada: Client,
}

impl Office {
    async fn open() -> (Self, Process) {
        let (world, worker) = World::with_worker().await;
        let ada = world.tenant_of("initech", MANIFEST).await.acting_for("ada");
        (Self { world, ada }, worker)
    }

    async fn ask(&self, body: &Value) -> String {
        id_of(&self.ada.post("/v1/exports", body).await.expect(202))
    }

    async fn completed(&self, dataset: &str) -> (String, Value) {
        let id = self.ask(&json!({"dataset": dataset, "format": "csv", "filename": "R\u{e9}sum\u{e9} <1>"})).await;
        self.ada.succeeded(&id).await;
        let export = self.show(&id).await;
        assert_eq!(export["state"], "completed", "{export}");
        (id, export)
    }

    async fn show(&self, id: &str) -> Value {
        self.ada.get(&format!("/v1/exports/{id}")).await.expect(200)
    }

    /// Somebody with a browser and no key.
    async fn visit(&self, method: Method, path: &str) -> acceptance::Answer {
        let visitor = self.world.client.without_key();
        visitor.send(visitor.request(method, path)).await
    }

    /// Objects and unfinished uploads.
    fn stored(&self) -> (usize, usize) {
        let s3 = &self.world.sandbox.s3;
        (s3.objects().unwrap().len(), s3.unfinished_uploads().unwrap().len())
    }

    async fn until_stored(&self, expected: (usize, usize)) {
        until(&format!("objects and unfinished uploads are {expected:?}"), async || match self.stored() {
            stored if stored == expected => Ok(()),
            stored => Err(stored),
        })
        .await;
    }

    /// Begins an export and waits until it stands in the middle of its upload.
    async fn begin(&self) -> String {
        let faults = self.world.sandbox.s3.faults();
        faults.add(Rule::from(Fault::Hang).on("UploadPart").skip(1));
        let id = self.ask(&json!({"dataset": "reports", "format": "csv"})).await;
        faults
            .wait_for(PATIENCE, |requests| requests.iter().filter(|one| one.request.operation == "UploadPart").count() >= 2)
            .await
            .unwrap();
        assert_eq!(self.stored(), (0, 1), "in the middle");
        id
    }

    /// Waits until an export's first checkpoint.
    async fn until_saved(&self, id: &str) {
        until_within(Duration::from_secs(60), "a checkpoint", async || {
            match self.world.number(format!("SELECT count(*) FROM job_checkpoint WHERE job_id = '{id}'")).await {
                1 => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }

    /// What ada was told of an export.
    async fn told(&self, id: &str) -> Value {
        let told = self
            .world
            .text(format!(
                "SELECT coalesce(json_agg(json_build_array(owner, type, title, data ->> 'state') ORDER BY created_at), '[]')::text
                 FROM notification WHERE data ->> 'export_id' = '{id}'"
            ))
            .await;
        serde_json::from_str(&told).unwrap()
    }
}

#[tokio::test]
async fn after_a_kill_in_the_middle_there_is_one_right_file_and_nothing_else() {
    let (office, worker) = Office::open().await;
    let id = office.begin().await;
    worker.kill9().await.unwrap().unwrap();
    office.world.sandbox.s3.faults().clear();
    let job = office.ada.wait_for_within(Duration::from_secs(120), &id, "at its end", is_terminal).await;
    assert_eq!((job["state"].as_str(), job["attempt"].as_i64()), (Some("succeeded"), Some(1)), "{job}");
    office.until_stored((1, 0)).await;
    let export = office.show(&id).await;
    let [object] = <[_; 1]>::try_from(office.world.sandbox.s3.objects().unwrap()).unwrap();
    let path = office.world.sandbox.directory().join("downloaded.csv");
    let bytes = office.world.sandbox.s3.object(&object.key).unwrap();
    assert_eq!(bytes.split(|byte| *byte == b'\n').count(), 60_002, "every row and the header");
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(export["file"]["sha256"], super::exports::sha256(&path), "{export}");
    assert_eq!((export["file"]["size"].as_u64(), export["file"]["rows"].as_i64()), (Some(bytes.len() as u64), Some(60_000)));
    assert_eq!(office.told(&id).await.as_array().unwrap().len(), 1, "told once, though it was run twice");
}

#[tokio::test]
async fn a_cancel_in_the_middle_leaves_nothing() {
    let (office, _worker) = Office::open().await;
    let id = office.begin().await;
    let view = office.ada.send(office.ada.request(Method::DELETE, &format!("/v1/exports/{id}"))).await.expect(202);
    assert_eq!(view["state"], "processing", "asked to stop: {view}");
    assert_eq!(office.ada.ended(&id).await["state"], "cancelled");
    office.world.sandbox.s3.faults().clear();
    office.until_stored((0, 0)).await;
    assert_eq!(office.show(&id).await["state"], "cancelled");
    assert_eq!(office.told(&id).await, json!([]), "who cancels knows");
    // Once more changes nothing, and so with one that has not begun.
    let view = office.ada.send(office.ada.request(Method::DELETE, &format!("/v1/exports/{id}"))).await.expect(200);
    assert_eq!(view["state"], "cancelled", "{view}");
    let later = office.world.now().await + chrono::TimeDelta::hours(1);
    let waiting = office.ask(&json!({"dataset": "words", "format": "csv", "run_at": later})).await;
    let view = office.ada.send(office.ada.request(Method::DELETE, &format!("/v1/exports/{waiting}"))).await.expect(200);
    assert_eq!(view["state"], "cancelled", "{view}");
    let probe = office.ada.create_id(&json!({"kind": "probe.run", "payload": {}, "run_at": later})).await;
    office.ada.send(office.ada.request(Method::DELETE, &format!("/v1/exports/{probe}"))).await.problem(404, "export_not_found");
    assert_eq!(office.ada.job(&probe).await["state"], "waiting", "a job of another kind is no export");
}

#[tokio::test]
async fn a_page_opens_to_whoever_has_its_address_until_that_is_taken_back() {
    let (office, _worker) = Office::open().await;
    let (id, export) = office.completed("words").await;
    let page = export["page_url"].as_str().unwrap().to_owned();
    let answer = office.visit(Method::GET, &page).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/html; charset=utf-8"));
    for (name, value) in [("cache-control", "no-store"), ("referrer-policy", "no-referrer"), ("x-content-type-options", "nosniff")] {
        assert_eq!(answer.header(name), value, "{name}");
    }
    assert!(answer.header("x-robots-tag").contains("noindex") && answer.header("content-security-policy").contains("default-src 'none'"));
    let html = answer.text();
    assert!(html.contains("R\u{e9}sum\u{e9} &lt;1&gt;.csv") && html.contains("initech"), "{html}");
    let token = page.strip_prefix("/d/").unwrap();
    assert!(token.len() >= 22 && html.contains(&format!("href=\"{token}/file\"")), "{html}");
    assert!(!html.contains(&id), "who has the address learns no id: {html}");

    // The link leads to the file; only following it counts.
    let file = format!("{page}/file");
    assert_eq!(office.visit(Method::HEAD, &page).await.status, 200);
    assert_eq!(office.visit(Method::HEAD, &file).await.status, 302);
    assert_eq!(office.show(&id).await["downloads"], 0);
    let link = office.visit(Method::GET, &file).await;
    assert_eq!(link.status, 302, "{}", link.text());
    let bytes = office.visit(Method::GET, link.header("location")).await;
    assert_eq!((bytes.status, bytes.text().as_str()), (200, "word\r\na\r\n"));
    assert!(bytes.header("content-disposition").contains("filename*=UTF-8''R%C3%A9sum%C3%A9"), "{:?}", bytes.headers);
    assert_eq!(office.show(&id).await["downloads"], 1);

    // Another address ends the first; taken back, there is none; the export stays.
    let renewed = office.ada.post(&format!("/v1/exports/{id}/page"), &json!({})).await.expect(200);
    let next = renewed["page_url"].as_str().unwrap().to_owned();
    assert_ne!(next, page);
    assert_eq!(office.visit(Method::GET, &page).await.status, 404);
    assert_eq!(office.visit(Method::GET, &file).await.status, 404);
    assert_eq!(office.visit(Method::GET, &next).await.status, 200);
    let revoked = office.ada.send(office.ada.request(Method::DELETE, &format!("/v1/exports/{id}/page"))).await.expect(200);
    assert_eq!((revoked["state"].as_str(), &revoked["page_url"]), (Some("completed"), &Value::Null), "{revoked}");
    assert_eq!(office.visit(Method::GET, &next).await.status, 404);
    assert_eq!(office.ada.get(&format!("/v1/exports/{id}/download")).await.status, 302);
    for log in [office.world.api.log(), office.world.client.without_key().get("/metrics").await.text()] {
        assert!(!log.contains(token) && !log.contains(next.strip_prefix("/d/").unwrap()), "an address is as good as the file");
    }
}

#[tokio::test]
async fn a_file_goes_at_its_time_or_at_its_owners_wish_and_says_so() {
    let (office, worker) = Office::open().await;
    let (removed, export) = office.completed("words").await;
    let (expired, other) = office.completed("words").await;
    let (kept, _) = office.completed("words").await;
    assert_eq!(office.stored(), (3, 0));
    let page = |export: &Value| export["page_url"].as_str().unwrap().to_owned();

    let view = office.ada.send(office.ada.request(Method::DELETE, &format!("/v1/exports/{removed}"))).await.expect(200);
    assert_eq!((view["state"].as_str(), view["error"]["code"].as_str()), (Some("expired"), Some("file_deleted")), "{view}");
    assert!(view["download_url"].is_null() && view["page_url"].is_null(), "{view}");
    office.ada.get(&format!("/v1/exports/{removed}/download")).await.problem(410, "export_expired");
    let gone = office.visit(Method::GET, &page(&export)).await;
    assert!(gone.status == 410 && gone.text().contains("deleted by its owner"), "{}", gone.text());
    assert_eq!(office.visit(Method::GET, &format!("{}/file", page(&export))).await.status, 410);
    office.until_stored((2, 0)).await;

    // Seven days later.
    office.world.execute(format!("UPDATE job_file SET expires_at = now() - interval '1 second' WHERE job_id = '{expired}'")).await;
    office.until_stored((1, 0)).await;
    for (id, code) in [(&removed, "file_deleted"), (&expired, "file_expired")] {
        let view = until("it says when it went", async || {
            let view = office.show(id).await;
            if view["deleted_at"].is_string() { Ok(view) } else { Err(view) }
        })
        .await;
        assert_eq!((view["state"].as_str(), view["error"]["code"].as_str()), (Some("expired"), Some(code)), "{view}");
    }
    let gone = office.visit(Method::GET, &page(&other)).await;
    assert!(gone.status == 410 && gone.text().contains("was kept until"), "{}", gone.text());
    assert_eq!(office.ada.get(&format!("/v1/exports/{kept}/download")).await.status, 302, "the third stays");
    for reason in ["reason=\"removed\"", "reason=\"expired\""] {
        let counted = office.world.figure(&worker, "offstage_files_deleted_total", &[reason]).await;
        assert!((counted - 1.0).abs() < 0.1, "{reason}: {counted}");
    }
}

#[tokio::test]
async fn owners_are_told_once_of_what_became_of_their_exports() {
    let (office, _worker) = Office::open().await;
    let (ready, _) = office.completed("words").await;
    let failed = office.ask(&json!({"dataset": "broken", "format": "csv"})).await;
    assert_eq!(office.ada.ended(&failed).await["state"], "failed");
    assert_eq!(office.told(&ready).await, json!([["ada", "system", "Your export is ready", "completed"]]));
    assert_eq!(office.told(&failed).await, json!([["ada", "system", "Your export failed", "failed"]]));
    let quiet = office.ask(&json!({"dataset": "words", "format": "csv", "notify": false})).await;
    office.ada.succeeded(&quiet).await;
    assert_eq!(office.told(&quiet).await, json!([]), "who would rather not is not told");
    // A job that nobody owns, or that is no export, is told to nobody.
    let backend = office.world.tenant_of("initech", MANIFEST).await;
    let unowned = id_of(&backend.post("/v1/exports", &json!({"dataset": "words", "format": "csv"})).await.expect(202));
    backend.succeeded(&unowned).await;
    office.ada.succeeded(&office.ada.create_id(&acceptance::probe(&json!({}))).await).await;
    assert_eq!(office.world.number("SELECT count(*) FROM notification").await, 2);
}

#[tokio::test]
async fn a_store_that_can_not_delete_is_asked_again_and_shows() {
    let (office, worker) = Office::open().await;
    let (id, _) = office.completed("words").await;
    let faults = office.world.sandbox.s3.faults();
    faults.add(Rule::from(Fault::Status(503)).on("DeleteObject"));
    office.ada.send(office.ada.request(Method::DELETE, &format!("/v1/exports/{id}"))).await.expect(200);
    until_within(PATIENCE, "the failure shows", async || {
        let failed = office.world.figure(&worker, "offstage_file_deletions_failed_total", &[]).await;
        let overdue = office.world.figure(&worker, "offstage_files_overdue", &[]).await;
        if failed > 0.5 && overdue > 0.5 { Ok(()) } else { Err((failed, overdue)) }
    })
    .await;
    assert_eq!(office.stored(), (1, 0));
    faults.clear();
    // Its pause is over.
    office.world.execute(format!("UPDATE job_file SET retry_at = now() WHERE job_id = '{id}'")).await;
    office.until_stored((0, 0)).await;
}

/// Some 48 MB in the order of their numbers, six parts.
const LEDGER: &str = r#"
[tenant]
name = "hooli"
[sources.main]
url_env = "OFFSTAGE_SOURCE_PROMPTLOCKR_URL"
[datasets.entries]
source = "main"
audience = "users"
keyset = ["day", "number"]
sql = "SELECT number / 1000 AS day, number::bigint AS number, repeat(md5(number::text), 8) AS content FROM generate_series(1, 180000) AS number"
[datasets.twins]
source = "main"
audience = "users"
keyset = ["day"]
sql = "SELECT number / 2 AS day FROM generate_series(1, 5) AS number"
[datasets.gaps]
source = "main"
audience = "users"
keyset = ["day"]
sql = "SELECT nullif(number, 3) AS day FROM generate_series(1, 5) AS number"
"#;

#[tokio::test]
async fn an_export_that_was_killed_goes_on_behind_its_last_part() {
    let (world, worker) = World::with_worker().await;
    let ada = world.tenant_of("hooli", LEDGER).await.acting_for("ada");
    let office = Office { world, ada };
    let s3 = &office.world.sandbox.s3;
    s3.faults().add(Rule::from(Fault::Hang).on("UploadPart").path_contains(".csv").skip(3));
    s3.faults().add(Rule::from(Fault::Hang).on("UploadPart").path_contains(".jsonl").skip(3));
    let mut exports = Vec::new();
    for format in ["csv", "jsonl"] {
        exports.push((format, office.ask(&json!({"dataset": "entries", "format": format})).await));
    }
    for (_, id) in &exports {
        office.until_saved(id).await;
    }
    worker.kill9().await.unwrap().unwrap();
    s3.faults().clear();
    let mut parts = 0;
    for (format, id) in &exports {
        let job = office.ada.wait_for_within(Duration::from_secs(120), id, "at its end", is_terminal).await;
        assert_eq!((job["state"].as_str(), job["attempt"].as_i64()), (Some("succeeded"), Some(1)), "{job}");

        // Two snapshots, all rows.
        let snapshots = job["result"]["snapshots"].as_array().unwrap_or_else(|| panic!("{job}"));
        let rows: Vec<u64> = snapshots.iter().map(|one| one["rows"].as_u64().unwrap()).collect();
        assert!(rows.len() == 2 && rows[0] > 20_000 && rows[1] > 0 && rows.iter().sum::<u64>() == 180_000, "{job}");
        assert_ne!(snapshots[0]["read_at"], snapshots[1]["read_at"]);
        assert_eq!(job["result"]["read_at"], snapshots[0]["read_at"]);
        parts += usize::try_from(job["result"]["bytes"].as_u64().unwrap().div_ceil(8 << 20)).unwrap();

        let export = office.show(id).await;
        let key = office.world.text(format!("SELECT object_key FROM job_file WHERE job_id = '{id}'")).await;
        let bytes = s3.object(&key).unwrap();
        let path = office.world.sandbox.directory().join("downloaded");
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(export["file"]["sha256"], super::exports::sha256(&path), "{export}");
        let text = String::from_utf8(bytes).unwrap();
        let mut numbers = text.lines().skip(usize::from(*format == "csv")).map(|line| match *format {
            "csv" => line.split(',').nth(1).unwrap().parse().unwrap(),
            _ => serde_json::from_str::<Value>(line).unwrap()["number"].as_u64().unwrap(),
        });
        assert!(numbers.by_ref().eq(1..=180_000), "every row once, in order");
    }
    // The parts before the kill were not sent again: at most those that were on their way, of either file.
    let sent = s3.faults().count("UploadPart");
    assert!(sent <= parts + 8, "{sent} parts were sent for files of {parts}");
    office.until_stored((2, 0)).await;
}

#[tokio::test]
async fn an_export_whose_upload_is_gone_begins_anew_and_one_that_is_cancelled_keeps_nothing() {
    let (world, worker) = World::with_worker().await;
    let ada = world.tenant_of("hooli", LEDGER).await.acting_for("ada");
    let office = Office { world, ada };
    let s3 = &office.world.sandbox.s3;
    s3.faults().add(Rule::from(Fault::Hang).on("UploadPart").skip(3));
    let id = office.ask(&json!({"dataset": "entries", "format": "csv"})).await;
    office.until_saved(&id).await;
    worker.kill9().await.unwrap().unwrap();
    // Somebody's lifecycle rule took it.
    s3.faults().clear();
    s3.faults().add(Rule::from(Fault::Status(404)).on("ListParts").times(1));
    let job = office.ada.wait_for_within(Duration::from_secs(120), &id, "at its end", is_terminal).await;
    assert_eq!((job["state"].as_str(), &job["result"]["snapshots"]), (Some("succeeded"), &Value::Null), "{job}");
    assert_eq!(job["result"]["rows"], 180_000);
    office.until_stored((1, 0)).await;

    s3.faults().add(Rule::from(Fault::Hang).on("UploadPart").skip(3));
    let id = office.ask(&json!({"dataset": "entries", "format": "csv"})).await;
    office.until_saved(&id).await;
    office.ada.send(office.ada.request(Method::DELETE, &format!("/v1/exports/{id}"))).await.expect(202);
    assert_eq!(office.ada.ended(&id).await["state"], "cancelled");
    s3.faults().clear();
    office.until_stored((1, 0)).await;
    assert_eq!(office.world.number(format!("SELECT count(*) FROM job_checkpoint WHERE job_id = '{id}'")).await, 0);
}

#[tokio::test]
async fn a_keyset_that_does_not_tell_rows_apart_is_refused() {
    let (world, _worker) = World::with_worker().await;
    let ada = world.tenant_of("hooli", LEDGER).await.acting_for("ada");
    for (dataset, code) in [("twins", "keyset_not_unique"), ("gaps", "keyset_null")] {
        let id = id_of(&ada.post("/v1/exports", &json!({"dataset": dataset, "format": "csv"})).await.expect(202));
        let job = ada.ended(&id).await;
        assert_eq!((job["state"].as_str(), job["error"]["code"].as_str()), (Some("failed"), Some(code)), "{job}");
        // Other formats can't be gone on with, so nobody asks.
        let id = id_of(&ada.post("/v1/exports", &json!({"dataset": dataset, "format": "json"})).await.expect(202));
        assert_eq!(ada.ended(&id).await["state"], "succeeded");
    }
}
