//! Exports: asked for over HTTP, downloaded through the link, read by another program, compared with the table.

mod formats;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use acceptance::{Client, PATIENCE, World, id_of, until};
use chrono::{DateTime, Utc};
use sandbox::{Fault, Rule};
use serde_json::{Value, json};

/// A world with the example product: its database filled, its manifest applied.
struct Product {
    world: World,
    /// The product's backend.
    backend: Client,
}

impl Product {
    async fn start() -> Self {
        let (world, _worker) = World::with_worker().await;
        let key = world.sandbox.promptlockr_key().await.unwrap();
        let backend = world.client.with_key(&key);
        Self { world, backend }
    }

    async fn with_prompts(rows: u64) -> Self {
        let product = Self::start().await;
        product.world.sandbox.load_promptlockr(rows).await.unwrap();
        product
    }

    /// Writes what the product's database says for a query, as its owner, and returns the file.
    fn dump(&self, name: &str, query: &str) -> PathBuf {
        let path = self.world.sandbox.directory().join(name);
        let mut psql = Command::new(self.world.sandbox.postgres.psql());
        psql.arg("--no-psqlrc").arg("--quiet").args(["--set", "ON_ERROR_STOP=1"]).args(["--output".as_ref(), path.as_os_str()]);
        for setting in ["DateStyle = 'ISO'", "TimeZone = 'UTC'", "IntervalStyle = 'iso_8601'", "bytea_output = 'hex'"] {
            psql.args(["--command", &format!("SET {setting}")]);
        }
        psql.args(["--command", &format!("COPY ({query}) TO STDOUT")]).arg(self.world.sandbox.postgres.product_url());
        let output = psql.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        path
    }

    /// Follows the link of a finished export and returns the bytes and the link's answer.
    async fn download(&self, client: &Client, id: &str) -> acceptance::Answer {
        let redirect = client.get(&format!("/v1/exports/{id}/download")).await;
        assert_eq!(redirect.status, 302, "{}", redirect.text());
        assert_eq!(redirect.header("cache-control"), "no-store");
        let link = redirect.header("location");
        assert!(link.starts_with(&self.world.sandbox.s3.endpoint()), "{link}");
        // As a browser would: the link itself is the right to it.
        self.world.client.without_key().get(link).await
    }

    /// Downloads an export into a file.
    async fn save(&self, client: &Client, id: &str) -> PathBuf {
        let path = self.world.sandbox.directory().join(format!("{id}.csv"));
        let answer = self.download(client, id).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        std::fs::write(&path, &answer.body).unwrap();
        path
    }
}

async fn export(client: &Client, body: &Value) -> String {
    id_of(&client.post("/v1/exports", body).await.expect(202))
}

async fn completed(client: &Client, id: &str) -> Value {
    client.ended(id).await;
    let export = client.get(&format!("/v1/exports/{id}")).await.expect(200);
    assert_eq!(export["state"], "completed", "{export}");
    export
}

/// What the judge counted.
fn judge(file: &Path, dump: &Path, columns: &[&str]) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/acceptance/judge.py");
    let output = Command::new("python3").arg(script).arg(file).arg(dump).args(columns).output().expect("python3, the judge");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

const PACKAGES: &[&str] = &[
    "package",
    "version",
    "architecture",
    "source",
    "section",
    "priority",
    "essential",
    "multi_arch",
    "maintainer",
    "installed_size",
    "size",
    "provides",
    "pre_depends",
    "depends",
    "recommends",
    "suggests",
    "enhances",
    "breaks",
    "conflicts",
    "replaces",
    "built_using",
    "tag",
    "homepage",
    "description",
    "description_md5",
    "filename",
    "md5sum",
    "sha256",
];

#[tokio::test]
async fn the_package_catalogue_equals_its_table_cell_by_cell() {
    let product = Product::start().await;
    let catalogue = product.world.sandbox.load_packages().await.unwrap().unwrap();
    let id = export(&product.backend, &json!({"dataset": "packages", "format": "csv", "filename": "catalogue"})).await;
    let done = completed(&product.backend, &id).await;

    let columns: Vec<String> =
        PACKAGES.iter().map(|column| if *column == "essential" { "essential::text".into() } else { (*column).to_owned() }).collect();
    let dump =
        product.dump("packages.copy", &format!("SELECT {} FROM packages ORDER BY package, architecture, version", columns.join(", ")));
    let answer = product.download(&product.backend, &id).await;
    let file = product.world.sandbox.directory().join("packages.csv");
    std::fs::write(&file, &answer.body).unwrap();
    let judged = judge(&file, &dump, PACKAGES);
    println!("{:?}: {judged}, {} bytes", catalogue.origin, answer.body.len());
    assert_eq!(judged["rows"], catalogue.rows);

    // What is told of the file is true of it.
    assert_eq!(done["file"]["rows"], catalogue.rows, "{done}");
    assert_eq!(done["file"]["size"], answer.body.len(), "{done}");
    assert_eq!(done["file"]["name"], "catalogue.csv", "{done}");
    assert_eq!(done["file"]["sha256"], sha256(&file), "{done}");
    assert_eq!(done["file"]["content_type"], answer.header("content-type"));
    assert!(answer.header("content-disposition").contains("catalogue.csv"), "{:?}", answer.headers);
    assert_eq!(product.world.sandbox.s3.unfinished_uploads().unwrap(), []);
    assert_eq!(product.world.sandbox.s3.objects().unwrap().len(), 1, "one object, the published one");
}

/// By another program than ours.
pub fn sha256(file: &Path) -> String {
    let script = "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())";
    let output = Command::new("python3").args(["-c", script]).arg(file).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

const PROMPTS: &[&str] = &[
    "id",
    "title",
    "description",
    "content",
    "category",
    "visibility",
    "tags:json",
    "variables",
    "settings",
    "model",
    "is_template",
    "is_approved",
    "use_count",
    "like_count",
    "estimated_cost",
    "quality_score",
    "success_rate",
    "recent_scores:json",
    "average_response",
    "external_id",
    "imported_at:time",
    "source_published_on:time",
    "available_until:time",
    "content_sha256",
    "attachment",
    "created_at:time",
    "updated_at:time",
];

fn prompts_of(user: &str) -> String {
    format!(
        "SELECT p.id, p.title, p.description, p.content, p.category, p.visibility, to_json(p.tags), p.variables, p.settings, p.model, p.is_template::text,
                p.is_approved::text, p.use_count, (SELECT count(*) FROM likes l WHERE l.prompt_id = p.id), p.estimated_cost, p.quality_score, p.success_rate,
                to_json(p.recent_scores), p.average_response, p.external_id, p.imported_at, p.source_published_on, p.available_until, p.content_sha256,
                p.attachment, p.created_at, p.updated_at
         FROM prompts p JOIN users u ON u.id = p.owner_id WHERE u.name = '{user}' ORDER BY p.created_at, p.id"
    )
}

#[tokio::test]
async fn hard_content_of_every_type_comes_out_right_and_only_the_owners() {
    let product = Product::with_prompts(1_000).await;
    for (user, at_least) in [("demo", 500), ("user_3", 1), ("newcomer", 0)] {
        let client = product.backend.acting_for(user);
        let id = export(&client, &json!({"dataset": "prompts", "format": "csv"})).await;
        let done = completed(&client, &id).await;
        assert_eq!(done["file"]["name"], "prompts.csv", "{done}");
        let file = product.save(&client, &id).await;
        let judged = judge(&file, &product.dump(&format!("{user}.copy"), &prompts_of(user)), PROMPTS);
        println!("{user}: {judged}");
        assert!(judged["rows"].as_i64().unwrap() >= at_least, "{user}: {judged}");
        assert_eq!(done["file"]["rows"], judged["rows"]);
        if user == "demo" {
            assert!(judged["nulls"].as_i64().unwrap() > 0 && judged["empty"].as_i64().unwrap() > 0, "both kinds of nothing: {judged}");
        }
    }
    // The backend names the owner where it acts for none.
    let id = export(&product.backend, &json!({"dataset": "prompts", "format": "csv", "owner": "user_3"})).await;
    completed(&product.backend, &id).await;
    judge(&product.save(&product.backend, &id).await, &product.dump("again.copy", &prompts_of("user_3")), PROMPTS);
    // Parameters narrow what is exported.
    let since = "2024-12-15T00:00:00Z";
    let client = product.backend.acting_for("demo");
    let id = export(&client, &json!({"dataset": "prompts", "format": "csv", "params": {"since": since}})).await;
    completed(&client, &id).await;
    let narrowed = prompts_of("demo").replace(" ORDER BY", &format!(" AND p.created_at >= '{since}' ORDER BY"));
    let judged = judge(&product.save(&client, &id).await, &product.dump("narrowed.copy", &narrowed), PROMPTS);
    assert!((1..500).contains(&judged["rows"].as_i64().unwrap()), "{judged}");
}

#[tokio::test]
async fn an_export_tells_how_it_stands_from_first_to_last() {
    let product = Product::with_prompts(10).await;
    let demo = product.backend.acting_for("demo");
    let answer = demo.post("/v1/exports", &json!({"dataset": "prompts", "format": "csv"})).await;
    let pending = answer.expect(202);
    let id = id_of(&pending);
    assert_eq!(answer.header("location"), format!("/v1/exports/{id}"));
    assert_eq!(
        (pending["state"].as_str(), pending["dataset"].as_str(), pending["format"].as_str()),
        (Some("pending"), Some("prompts"), Some("csv")),
        "{pending}"
    );
    assert!(pending["file"].is_null() && pending["download_url"].is_null(), "{pending}");
    let done = completed(&demo, &id).await;
    let time = |field: &str| -> DateTime<Utc> { done[field].as_str().unwrap_or_else(|| panic!("{field} in {done}")).parse().unwrap() };
    assert!(time("created_at") <= time("started_at") && time("started_at") <= time("completed_at"), "{done}");
    assert_eq!((time("expires_at") - time("completed_at")).num_hours() + 1, 7 * 24, "R11, seven days: {done}");
    assert_eq!(done["downloads"], 0);
    assert!(done["download_url"].as_str().is_some_and(|url| url.ends_with(&format!("/v1/exports/{id}/download"))), "{done}");

    // Downloads are counted; the link lives minutes and needs no key; the file is saved under its name.
    for count in 1..=2 {
        let answer = product.download(&demo, &id).await;
        assert_eq!(answer.status, 200);
        assert!(answer.header("content-disposition").starts_with("attachment"), "{:?}", answer.headers);
        let export = demo.get(&format!("/v1/exports/{id}")).await.expect(200);
        assert_eq!(export["downloads"], count);
    }
    // Another user's, and another's list.
    let eve = product.backend.acting_for("user_3");
    eve.get(&format!("/v1/exports/{id}")).await.problem(404, "export_not_found");
    eve.get(&format!("/v1/exports/{id}/download")).await.problem(404, "export_not_found");
    assert_eq!(eve.get("/v1/exports").await.expect(200)["items"], json!([]));
    assert_eq!(id_of(&demo.get("/v1/exports").await.expect(200)["items"][0]), id);

    // After seven days it is gone, and says so.
    product.world.execute(format!("UPDATE job_file SET expires_at = now() - interval '1 second' WHERE job_id = '{id}'")).await;
    demo.get(&format!("/v1/exports/{id}/download")).await.problem(410, "export_expired");
    let expired = demo.get(&format!("/v1/exports/{id}")).await.expect(200);
    assert_eq!(expired["state"], "expired", "{expired}");
    assert!(expired["download_url"].is_null(), "{expired}");
    assert_eq!(expired["downloads"], 2);
}

#[tokio::test]
async fn bad_exports_are_refused_by_name() {
    let product = Product::start().await;
    let demo = product.backend.acting_for("demo");
    for (client, body, pointers) in [
        (&demo, json!({"dataset": "secrets", "format": "csv"}), &["/dataset"][..]),
        (&demo, json!({"dataset": "all_prompts", "format": "csv"}), &["/dataset"]),
        (&demo, json!({"dataset": "prompts", "format": "docx"}), &["/format"]),
        (&demo, json!({"dataset": "prompts"}), &["/format"]),
        (&demo, json!({"format": "csv"}), &["/dataset"]),
        (&demo, json!({"dataset": "prompts", "format": "csv", "colour": 1}), &["/colour"]),
        (&demo, json!({"dataset": "prompts", "format": "csv", "params": {"colour": 1}}), &["/params/colour"]),
        (&demo, json!({"dataset": "prompts", "format": "csv", "params": {"since": "yesterday"}}), &["/params/since"]),
        (&demo, json!({"dataset": "prompts", "format": "csv", "params": {"owner": "user_3"}}), &["/params/owner"]),
        (&demo, json!({"dataset": "prompts", "format": "csv", "owner": "user_3"}), &["/owner"]),
        (&demo, json!({"dataset": "prompts", "format": "csv", "filename": "../../etc/passwd"}), &["/filename"]),
        (&demo, json!({"dataset": "prompts", "format": "csv", "filename": ""}), &["/filename"]),
        (&product.backend, json!({"dataset": "prompts", "format": "csv"}), &["/params/owner"]),
        (&product.backend, json!({"dataset": "all_prompts", "format": "csv", "params": {"limit": "many"}}), &["/params/limit"]),
    ] {
        let answer = client.post("/v1/exports", &body).await;
        let problem = answer.problem(422, "validation_failed");
        assert_eq!(answer.pointers(), pointers, "{body}: {problem}");
    }
    let unknown = demo.post("/v1/exports", &json!({"dataset": "secrets", "format": "csv"})).await.text();
    assert!(
        unknown.contains("collections") && unknown.contains("prompts") && !unknown.contains("all_prompts"),
        "it names what there is for a user: {unknown}"
    );
    assert_eq!(product.world.number("SELECT count(*) FROM job").await, 0);
    assert_eq!(product.world.sandbox.s3.objects().unwrap(), []);
}

#[tokio::test]
async fn a_store_that_fails_for_a_while_delays_an_export() {
    let product = Product::with_prompts(10).await;
    let demo = product.backend.acting_for("demo");
    let faults = product.world.sandbox.s3.faults();
    faults.add(Rule::from(Fault::Status(503)));
    let id = export(&demo, &json!({"dataset": "prompts", "format": "csv"})).await;
    let waiting = demo.wait_for(&id, "backing off", |job| job["reason"] == "backing_off").await;
    assert!(waiting["error"]["message"].as_str().is_some_and(|message| !message.contains("secret")), "{waiting}");
    let view = demo.get(&format!("/v1/exports/{id}")).await.expect(200);
    assert!(["pending", "processing"].contains(&view["state"].as_str().unwrap()), "it is tried again: {view}");
    demo.get(&format!("/v1/exports/{id}/download")).await.problem(409, "export_not_completed");
    faults.clear();
    completed(&demo, &id).await;
    let job = demo.job(&id).await;
    assert!(job["attempt"].as_i64() > Some(1), "{job}");
    let file = product.save(&demo, &id).await;
    judge(&file, &product.dump("demo.copy", &prompts_of("demo")), PROMPTS);
    assert_eq!((product.world.sandbox.s3.objects().unwrap().len(), product.world.sandbox.s3.unfinished_uploads().unwrap().len()), (1, 0));
}

#[tokio::test]
async fn a_store_that_denies_fails_an_export_and_nothing_is_left() {
    let product = Product::start().await;
    product.world.sandbox.load_packages().await.unwrap();
    let s3 = &product.world.sandbox.s3;
    // Once parts are on their way.
    s3.faults().add(Rule::from(Fault::Status(403)).on("UploadPart").skip(1));
    let id = export(&product.backend, &json!({"dataset": "packages", "format": "csv"})).await;
    let job = product.backend.ended(&id).await;
    assert_eq!((job["state"].as_str(), job["attempt"].as_i64()), (Some("failed"), Some(1)), "trying again can't help: {job}");
    let view = product.backend.get(&format!("/v1/exports/{id}")).await.expect(200);
    assert_eq!(view["state"], "failed");
    let message = view["error"]["message"].as_str().unwrap();
    assert!(message.contains("offstage"), "it names the bucket: {message}");
    let (key_id, secret) = s3.credentials();
    assert!(!message.contains(key_id) && !message.contains(secret), "{message}");
    product.backend.get(&format!("/v1/exports/{id}/download")).await.problem(409, "export_not_completed");
    until("no upload is left unfinished", async || match s3.unfinished_uploads().unwrap() {
        none if none.is_empty() => Ok(()),
        left => Err(left),
    })
    .await;
    assert_eq!(s3.objects().unwrap(), []);
    assert!(s3.faults().count("AbortMultipartUpload") > 0, "it was aborted");
}

#[tokio::test]
async fn a_worker_that_dies_in_the_middle_of_an_export_leaves_one_right_file() {
    let product = Product::with_prompts(100).await;
    let demo = product.backend.acting_for("demo");
    let s3 = &product.world.sandbox.s3;
    // Held up on its way out, so that it is killed with the file in its hands.
    s3.faults().add(Rule::from(Fault::Hang).on("PutObject").times(1));
    let id = export(&demo, &json!({"dataset": "prompts", "format": "csv"})).await;
    s3.faults().wait_for(PATIENCE, |requests| requests.iter().any(|request| request.request.operation == "PutObject")).await.unwrap();
    let view = demo.get(&format!("/v1/exports/{id}")).await.expect(200);
    assert_eq!(view["state"], "processing", "{view}");
    let worker = product.world.sandbox.processes().into_iter().find(|process| process.name().starts_with("worker")).unwrap();
    worker.kill9().await.unwrap().unwrap();
    let done = completed(&demo, &id).await;
    assert_eq!(demo.job(&id).await["attempt"], 1, "a crash costs no attempt");
    let judged = judge(&product.save(&demo, &id).await, &product.dump("demo.copy", &prompts_of("demo")), PROMPTS);
    assert_eq!(judged["rows"], done["file"]["rows"]);
    assert_eq!(s3.objects().unwrap().len(), 1, "one object, the published one");
}
