//! Every format, read back by another program's reader and compared with the table, cell by cell.

use super::*;

/// What the judge of a format counted.
fn judge_format(format: &str, file: &Path, dump: &Path, columns: &[String]) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/acceptance/exports/formats.py");
    // What Python has of its own reads neither Markdown nor workbooks.
    let mut python = sandbox::judges::python(&["openpyxl==3.1.5", "markdown-it-py==4.3.0"]).unwrap();
    let output = python.arg(script).arg(format).arg(file).arg(dump).args(columns).output().unwrap();
    assert!(output.status.success(), "{format}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The columns with how their cells are compared.
fn kinds(columns: &[&str], numbers: &[&str]) -> Vec<String> {
    columns.iter().map(|column| if numbers.contains(column) { format!("{column}:number") } else { (*column).to_owned() }).collect()
}

/// The whole catalogue in a format.
async fn catalogue_equals_its_table(format: &str) {
    let product = Product::start().await;
    let catalogue = product.world.sandbox.load_packages().await.unwrap().unwrap();
    let columns: Vec<String> =
        PACKAGES.iter().map(|column| if *column == "essential" { "essential::text".into() } else { (*column).to_owned() }).collect();
    let query = format!("SELECT {} FROM packages ORDER BY package, architecture, version", columns.join(", "));
    let dump = product.dump("packages.copy", &query);
    let id = export(&product.backend, &json!({"dataset": "packages", "format": format})).await;
    let done = completed(&product.backend, &id).await;
    let file = product.save(&product.backend, &id).await;
    assert_eq!(done["file"]["sha256"], sha256(&file), "{done}");
    let judged = judge_format(format, &file, &dump, &kinds(PACKAGES, &["installed_size", "size"]));
    println!("{format}: {judged}, {} bytes", done["file"]["size"]);
    assert_eq!((&judged["rows"], &done["file"]["rows"]), (&json!(catalogue.rows), &json!(catalogue.rows)));
}

#[tokio::test]
async fn the_package_catalogue_as_json_equals_its_table() {
    catalogue_equals_its_table("json").await;
}

#[tokio::test]
async fn the_package_catalogue_as_json_lines_equals_its_table() {
    catalogue_equals_its_table("jsonl").await;
}

#[tokio::test]
async fn the_package_catalogue_as_markdown_equals_its_table() {
    catalogue_equals_its_table("markdown").await;
}

#[tokio::test]
async fn the_package_catalogue_as_a_workbook_equals_its_table() {
    catalogue_equals_its_table("xlsx").await;
}

#[tokio::test]
async fn hard_content_survives_every_format() {
    let product = Product::with_prompts(1_000).await;
    let demo = product.backend.acting_for("demo");
    let numbers = ["use_count", "like_count", "estimated_cost", "quality_score", "success_rate", "external_id"];
    let columns = kinds(PROMPTS, &numbers).into_iter().map(|column| match column.as_str() {
        "variables" | "settings" => format!("{column}:json"),
        _ => column,
    });
    let columns: Vec<String> = columns.collect();
    let dump = product.dump("demo.copy", &prompts_of("demo"));
    for format in ["json", "jsonl", "markdown", "xlsx"] {
        let id = export(&demo, &json!({"type": "prompts", "format": format})).await;
        completed(&demo, &id).await;
        let judged = judge_format(format, &product.save(&demo, &id).await, &dump, &columns);
        assert!(judged["rows"].as_i64().unwrap() >= 500, "{judged}");
    }
}

#[tokio::test]
async fn full_holds_what_the_caller_may_read() {
    let product = Product::with_prompts(100).await;
    product.world.sandbox.load_packages().await.unwrap();
    let demo = product.backend.acting_for("demo");
    let id = export(&demo, &json!({"type": "full", "format": "json", "filename": "everything"})).await;
    let done = completed(&demo, &id).await;
    assert_eq!((done["file"]["name"].as_str(), done["dataset"].as_str()), (Some("everything.json"), Some("full")), "{done}");
    // By Python: a stored JSON number may be beyond what a double holds.
    let script = "import json, sys\n\
        d = json.load(open(sys.argv[1], encoding='utf-8'))\n\
        m = d['manifest']['datasets']\n\
        assert all(len(d['datasets'][p['name']]) == p['rows'] for p in m)\n\
        print(json.dumps([list(d['datasets']), len({p['read_at'] for p in m})]))";
    let output = Command::new("python3").args(["-c", script]).arg(product.save(&demo, &id).await).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said, json!([["collections", "packages", "prompts"], 1]), "what is for users, all_prompts is not; in one snapshot");

    let id = export(&demo, &json!({"type": "full", "format": "csv", "bom": true})).await;
    let done = completed(&demo, &id).await;
    assert_eq!(
        (done["file"]["name"].as_str(), done["file"]["content_type"].as_str()),
        (Some("full.zip"), Some("application/zip")),
        "{done}"
    );
    let script = "import hashlib, json, sys, zipfile\n\
        z = zipfile.ZipFile(sys.argv[1])\n\
        m = json.loads(z.read('manifest.json'))['datasets']\n\
        assert z.testzip() is None and all(hashlib.sha256(z.read(p['file'])).hexdigest() == p['sha256'] for p in m)\n\
        assert all(z.read(p['file']).startswith(b'\\xef\\xbb\\xbf') for p in m)\n\
        print(json.dumps([z.namelist(), sum(p['rows'] for p in m)]))";
    let output = Command::new("python3").args(["-c", script]).arg(product.save(&demo, &id).await).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said, json!([["collections.csv", "packages.csv", "prompts.csv", "manifest.json"], done["file"]["rows"]]));
}

#[tokio::test]
async fn what_formats_do_not_know_is_refused() {
    let product = Product::start().await;
    for (body, pointer) in [
        (json!({"dataset": "packages", "type": "full", "format": "csv"}), "/type"),
        (json!({"type": "secrets", "format": "csv"}), "/type"),
        (json!({"dataset": "packages", "format": "json", "bom": true}), "/bom"),
        (json!({"dataset": "packages", "format": "xlsx", "escape_formulas": true}), "/escape_formulas"),
        (json!({"type": "full", "format": "csv", "params": {"colour": 1}}), "/params/colour"),
    ] {
        let answer = product.backend.post("/v1/exports", &body).await;
        answer.problem(422, "validation_failed");
        assert_eq!(answer.pointers(), [pointer], "{body}");
    }
    let answer = product.backend.post("/v1/exports", &json!({"dataset": "packages", "format": "docx"})).await.text();
    assert!(["csv", "json", "jsonl", "markdown", "xlsx"].iter().all(|format| answer.contains(format)), "it names the formats: {answer}");
}
