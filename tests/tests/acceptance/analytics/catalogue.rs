//! Events made of Debian's package catalogue, in by HTTP; the numbers are those of `DuckDB` on the same rows. `ANALYTICS_EVENTS=1000000`
//! sends that many, which is the full size; otherwise 10,000.

use std::{fmt::Write as _, path::Path, time::Duration};

use acceptance::{Client, World, until_within};
use serde_json::{Value, json};
use sqlx::Connection;

use super::{gzip, packed};

const MANIFEST: &str = r#"
[tenant]
name = "debian"
[metrics.packages]
event = "package"
aggregate = "count"
dimensions = ["section"]
[metrics.bytes]
event = "package"
aggregate = "sum"
value = "size"
dimensions = ["section"]
[metrics.installed]
event = "package"
aggregate = "average"
value = "installed"
[metrics.smallest]
event = "package"
aggregate = "minimum"
value = "size"
dimensions = ["section"]
[metrics.largest]
event = "package"
aggregate = "maximum"
value = "size"
dimensions = ["section"]
[metrics.libraries]
event = "package"
aggregate = "success_rate"
success = { section = ["libs", "libdevel", "oldlibs"] }
[metrics.sizes]
event = "package"
aggregate = "percentiles"
value = "size"
dimensions = ["section"]
[metrics.maintainers]
event = "package"
aggregate = "uniques"
dimensions = ["section"]
[metrics.names]
event = "package"
aggregate = "uniques"
of = "name"
"#;

/// Name, section, maintainer, size and size when installed.
type Package = (String, Option<String>, Option<String>, Option<i64>, Option<i64>);

/// Each package as an event, again and again with other ids and times, until there are enough.
async fn rows(world: &World, count: u64) -> Vec<Value> {
    let packages: Vec<Package> = sqlx::query_as(
        "SELECT package, section, maintainer, size::bigint, installed_size::bigint FROM packages ORDER BY package, version, architecture",
    )
    .fetch_all(&mut sqlx::PgConnection::connect(&world.sandbox.postgres.product_url()).await.unwrap())
    .await
    .unwrap();
    (0..count)
        .map(|number| {
            let (package, section, maintainer, size, installed) = &packages[usize::try_from(number).unwrap() % packages.len()];
            let round = number / packages.len() as u64;
            // Every 3.7 minutes one, over two months; the rounds differ in their sizes.
            let at = chrono::DateTime::from_timestamp(1_790_000_000 + i64::try_from(number * 7_919 % 5_184_000).unwrap(), 0).unwrap();
            let user: String =
                maintainer.as_deref().unwrap_or("nobody").chars().filter(|c| !c.is_whitespace() && !c.is_control()).take(200).collect();
            json!({
                "id": format!("{number}"), "type": "package", "time": at, "user": user,
                "properties": {
                    "name": package, "section": section, "size": size.map(|size| size as f64 + round as f64 / 8.0), "installed": installed,
                },
            })
        })
        .collect()
}

async fn send_all(client: &Client, rows: &[Value]) {
    for (number, chunk) in rows.chunks(5_000).enumerate() {
        let mut lines = String::new();
        for row in chunk {
            writeln!(lines, "{row}").unwrap();
        }
        let body = gzip(lines.as_bytes());
        let taken = packed(client, "application/x-ndjson", "gzip", body.clone()).await.expect(200);
        assert_eq!((&taken["accepted"], &taken["rejected"]), (&json!(chunk.len()), &json!([])), "{number}");
        // Every tenth again: an answer may have been lost.
        if number % 10 == 0 {
            assert_eq!(packed(client, "application/x-ndjson", "gzip", body).await.expect(200)["duplicates"], chunk.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn totals_are_those_of_duckdb_on_the_same_rows() {
    let (world, clock) = World::start_at("2026-11-21T12:00:00Z", |api| api).await;
    let _worker = world.start_worker(clock.launch()).await;
    let client = world.tenant_of("debian", MANIFEST).await;
    world.sandbox.load_packages().await.unwrap();
    let count = std::env::var("ANALYTICS_EVENTS").ok().and_then(|count| count.parse().ok()).unwrap_or(10_000);
    let rows = rows(&world, count).await;
    let file = world.sandbox.directory().join("events.ndjson");
    let mut text = String::new();
    for row in &rows {
        let (flat, properties) = (row.clone(), row["properties"].clone());
        let mut flat = flat.as_object().unwrap().clone();
        flat.remove("properties");
        flat.extend(properties.as_object().unwrap().clone());
        writeln!(text, "{}", Value::Object(flat)).unwrap();
    }
    std::fs::write(&file, text).unwrap();
    send_all(&client, &rows).await;
    until_within(Duration::from_secs(120), "all is put together", async || {
        match world.number("SELECT count(*) FROM metric_partial").await {
            0 => Ok(()),
            left => Err(left),
        }
    })
    .await;
    let mut answers = serde_json::Map::new();
    for metric in ["packages", "bytes", "installed", "smallest", "largest", "libraries", "sizes", "maintainers", "names"] {
        let group = if ["installed", "libraries", "names"].contains(&metric) { "" } else { "&group_by=section&top=50" };
        for (name, query) in [("whole", format!("granularity=month{group}")), ("days", "granularity=day&tz=Asia/Kathmandu".to_owned())] {
            let path = format!("/v1/analytics/{metric}?from=2026-09-01&to=2026-11-22&{query}");
            answers.insert(format!("{metric} {name}"), client.get(&path).await.expect(200));
        }
    }
    let answers_file = world.sandbox.directory().join("answers.json");
    std::fs::write(&answers_file, Value::Object(answers).to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/acceptance/analytics/duck.py");
    let mut python = sandbox::judges::python(&["duckdb==1.4.2", "pytz==2025.2"]).unwrap();
    let output = python.arg(script).arg(&file).arg(&answers_file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    println!("{count} events: {}", String::from_utf8_lossy(&output.stdout));
}
