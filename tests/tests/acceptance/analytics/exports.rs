//! Metrics and views as files: cell by cell what the reading door says, for whom it says it.

use acceptance::{Client, World, id_of};
use sandbox::Process;
use serde_json::{Value, json};

use super::{MANIFEST, NOW, run, send};

const SPAN: &str = "from=2026-11-15&to=2026-11-22&tz=Asia/Kathmandu";

fn params(more: &Value) -> Value {
    let mut all = json!({"from": "2026-11-15", "to": "2026-11-22", "tz": "Asia/Kathmandu"});
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    all
}

/// Makes an export and downloads its file; the result of its job beside it.
async fn made(world: &World, client: &Client, body: &Value) -> (Value, Vec<u8>) {
    let id = id_of(&client.post("/v1/exports", body).await.expect(202));
    let done = client.succeeded(&id).await;
    let export = client.get(&format!("/v1/exports/{id}")).await.expect(200);
    let named = body.get("metric").or(body.get("view")).unwrap();
    assert_eq!((&export["state"], &export["dataset"]), (&json!("completed"), named), "{export}");
    let redirect = client.get(&format!("/v1/exports/{id}/download")).await;
    let file = world.client.without_key().get(redirect.header("location")).await;
    assert_eq!(file.status, 200);
    (done["result"].clone(), file.body.to_vec())
}

/// What a file should hold: the points of an answer, a row each.
fn rows_of(answer: &Value) -> Vec<Value> {
    let mut rows = Vec::new();
    for group in answer["groups"].as_array().unwrap() {
        for point in group["points"].as_array().unwrap() {
            let mut row = json!({"at": point["at"], "value": point["value"], "count": point["count"]});
            let fields = row.as_object_mut().unwrap();
            if answer["aggregate"] == "percentiles" {
                for name in ["p50", "p90", "p95", "p99"] {
                    fields.insert(name.to_owned(), point["percentiles"].get(name).cloned().unwrap_or_default());
                }
            }
            for dimension in answer["group_by"].as_array().unwrap() {
                let dimension = dimension.as_str().unwrap();
                fields.insert(dimension.to_owned(), group["labels"].get(dimension).cloned().unwrap_or_default());
                fields.insert("other".to_owned(), group["other"].clone());
            }
            rows.push(row);
        }
    }
    rows
}

/// Numbers are equal whether they are written as `2` or as `2.0`.
fn plain(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64().unwrap()),
        Value::Object(fields) => {
            // The local time is looked at for itself.
            fields.iter().filter(|(name, _)| *name != "local").map(|(name, value)| (name.clone(), plain(value))).collect()
        }
        Value::Array(values) => values.iter().map(plain).collect(),
        other => other.clone(),
    }
}

fn lines(file: &[u8]) -> Vec<Value> {
    std::str::from_utf8(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn same(file: &[Value], answer: &Value) {
    assert_eq!(file.iter().map(plain).collect::<Vec<_>>(), rows_of(answer).iter().map(plain).collect::<Vec<_>>(), "{answer}");
}

async fn filled() -> (World, Client, Process) {
    let (world, clock) = World::start_at(NOW, |api| api).await;
    let client = world.tenant_of("forge", MANIFEST).await;
    let worker = world.start_worker(clock.launch()).await;
    let events: Vec<Value> = (0..400)
        .map(|number| {
            let time = chrono::DateTime::from_timestamp(1_794_744_000 + number * 1_117, 0).unwrap().to_rfc3339();
            let model = ["a", "b", "=1+1", "c"][usize::try_from(number % 4).unwrap()];
            let status = if number % 3 == 0 { "ok" } else { "bad" };
            let user = ["ada", "bob"][usize::try_from(number % 2).unwrap()];
            let properties = json!({"model": model, "tokens": f64::from(i32::try_from(number).unwrap()) / 8.0, "score": number, "status": status, "ms": number + 1});
            run(usize::try_from(number).unwrap(), &time, user, &properties)
        })
        .collect();
    assert_eq!(send(&client, &events).await["accepted"], 400);
    (world, client, worker)
}

#[tokio::test]
async fn a_metrics_file_has_what_the_reading_door_says() {
    let (world, client, _worker) = filled().await;
    let read = async |path: &str| client.get(&format!("/v1/analytics/{path}")).await.expect(200);
    // Of every aggregate, with groups and without.
    for (metric, query, more) in [
        ("runs", "", json!({})),
        ("runs", "&group_by=model,user&granularity=hour&top=3", json!({"group_by": ["model", "user"], "granularity": "hour", "top": 3})),
        ("tokens", "&group_by=model&top=2", json!({"group_by": "model", "top": 2})),
        ("score", "&granularity=quarter_hour", json!({"granularity": "quarter_hour"})),
        ("success", "&granularity=week", json!({"granularity": "week"})),
        ("times", "&granularity=month", json!({"granularity": "month"})),
        ("times", "&granularity=hour", json!({"granularity": "hour"})),
        ("people", "", json!({})),
    ] {
        let answer = read(&format!("{metric}?{SPAN}{query}")).await;
        let body = json!({"metric": metric, "format": "jsonl", "params": params(&more)});
        let (result, file) = made(&world, &client, &body).await;
        let file = lines(&file);
        same(&file, &answer);
        assert_eq!(
            (&result["rows"], &result["filename"], &result["is_whole"]),
            (&json!(file.len()), &json!(format!("{metric}.jsonl")), &answer["is_whole"]),
            "{result}"
        );
    }
    // The clocks of the zone stand beside it.
    let (_, file) = made(
        &world,
        &client,
        &json!({"metric": "runs", "format": "csv", "params": params(&json!({"group_by": ["model"], "granularity": "week"}))}),
    )
    .await;
    let csv = String::from_utf8(file).unwrap();
    assert!(csv.starts_with("at,local,model,other,value,count\r\n2026-11-08T18:15:00Z,2026-11-09T00:00:00,"), "{csv}");
    assert!(csv.contains(",'=1+1,false,"), "{csv}");
    // A workbook, as another program reads it.
    let answer = read(&format!("times?{SPAN}")).await;
    let (_, file) = made(&world, &client, &json!({"metric": "times", "format": "xlsx", "params": params(&json!({}))})).await;
    let script = "import json, sys, openpyxl; print(json.dumps(list(openpyxl.load_workbook(sys.argv[1]).active.values)))";
    let sheet = python(&world, "times.xlsx", &file, script, &["openpyxl==3.1.5"]);
    let (names, cells) = sheet.as_array().unwrap().split_first().unwrap();
    let row = |cells: &Value| {
        names.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).zip(cells.as_array().unwrap().clone()).collect()
    };
    same(&cells.iter().map(row).map(Value::Object).collect::<Vec<_>>(), &answer);
}

/// What a script says of a file, in JSON.
fn python(world: &World, name: &str, file: &[u8], script: &str, packages: &[&str]) -> Value {
    let path = world.sandbox.directory().join(name);
    std::fs::write(&path, file).unwrap();
    let output = sandbox::judges::python(packages).unwrap().arg("-c").arg(script).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn a_view_is_one_file_and_a_user_gets_their_own() {
    let (world, client, _worker) = filled().await;
    let span = json!({"from": "2026-11-15", "to": "2026-11-22"});
    let view = client.get("/v1/analytics/views/performance?from=2026-11-15&to=2026-11-22").await.expect(200);
    let (result, file) = made(&world, &client, &json!({"view": "performance", "format": "json", "params": span})).await;
    let document: Value = serde_json::from_slice(&file).unwrap();
    for panel in view["panels"].as_array().unwrap() {
        same(document["datasets"][panel["metric"].as_str().unwrap()].as_array().unwrap(), panel);
    }
    assert_eq!(result["datasets"].as_object().unwrap().len(), 3, "{result}");
    let (_, file) = made(&world, &client, &json!({"view": "performance", "format": "csv", "params": span})).await;
    let script = "import json, sys, zipfile; print(json.dumps(zipfile.ZipFile(sys.argv[1]).namelist()))";
    let names = python(&world, "view.zip", &file, script, &["openpyxl==3.1.5"]);
    assert_eq!(names, json!(["tokens.csv", "times.csv", "runs.csv", "manifest.json"]));

    // A user: of themselves, and of what is for users.
    let ada = client.acting_for("ada");
    let own = ada.get(&format!("/v1/analytics/runs?{SPAN}&group_by=user,model")).await.expect(200);
    let body = json!({"metric": "runs", "format": "jsonl", "params": params(&json!({"group_by": ["user", "model"]}))});
    let (_, file) = made(&world, &ada, &body).await;
    same(&lines(&file), &own);
    assert!(!String::from_utf8(file).unwrap().contains("bob"));
    let (result, _) = made(&world, &ada, &json!({"view": "performance", "format": "json", "params": span})).await;
    assert_eq!(result["datasets"].as_object().unwrap().keys().collect::<Vec<_>>(), ["runs"]);
    let wrong = async |client: &Client, body: Value, pointer: &str| {
        let answer = client.post("/v1/exports", &body).await;
        answer.problem(422, "validation_failed");
        assert_eq!(answer.pointers(), [pointer]);
    };
    wrong(&ada, json!({"metric": "tokens", "format": "csv"}), "/metric").await;
    wrong(&client, json!({"metric": "nothing", "format": "csv"}), "/metric").await;
    wrong(&client, json!({"view": "nothing", "format": "csv"}), "/view").await;
    wrong(&client, json!({"metric": "runs", "format": "csv", "params": {"group_by": ["colour"]}}), "/params/group_by").await;
    wrong(&client, json!({"metric": "runs", "view": "performance", "format": "csv"}), "/view").await;
    assert_eq!(world.number("SELECT count(*) FROM job WHERE kind = 'export.create'").await, 4);

    // Who may make exports but not read metrics gets no file of them, by whichever door.
    let scopes = "exports:write,exports:read,jobs:write,schedules:write,ai:write";
    let narrow = client.with_key(&world.sandbox.create_key("forge", "narrow", scopes).await.unwrap());
    let payload = json!({"metric": "runs", "format": "csv"});
    let job = json!({"kind": "export.create", "payload": payload});
    let harmless = json!({"kind": "probe.run", "payload": {"sleep_ms": 1}, "then": [{"kind": "probe.run", "payload": {"sleep_ms": 1}, "then": [job]}]});
    for (door, body) in [
        ("/v1/exports", payload.clone()),
        ("/v1/jobs", job.clone()),
        ("/v1/jobs", harmless.clone()),
        ("/v1/jobs/batch", json!({"jobs": [harmless]})),
        ("/v1/jobs/batch", json!({"jobs": [{"kind": "probe.run", "payload": {"sleep_ms": 1}}], "then": [job]})),
        ("/v1/schedules", json!({"name": "numbers", "kind": "export.create", "payload": payload, "every_seconds": 3600})),
    ] {
        narrow.post(door, &body).await.problem(403, "scope_missing");
    }
}
