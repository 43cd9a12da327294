//! The operator's commands, run as an operator runs them, against a database of their own.

use std::{
    path::Path,
    process::{Command, Output},
};

use sandbox::{Options, Sandbox};
use serde_json::Value;

struct Operator<'a>(&'a Sandbox);

struct Answer {
    code: i32,
    out: String,
    err: String,
}

impl Operator<'_> {
    fn run(&self, arguments: &[&str]) -> Answer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_api"));
        command.args(arguments).env_clear().envs(self.0.env()).env("OFFSTAGE_LOG", "warn");
        answer(command.output().unwrap())
    }

    fn done(&self, arguments: &[&str]) -> String {
        let answer = self.run(arguments);
        assert_eq!(answer.code, 0, "{arguments:?}: {}{}", answer.out, answer.err);
        answer.out
    }
}

fn answer(output: Output) -> Answer {
    Answer {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn manifest(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

const SHOP: &str = r#"
[tenant]
name = "shop"
[sources.main]
url_env = "OFFSTAGE_SOURCE_SHOP_URL"
[datasets.orders]
source = "main"
sql = "SELECT * FROM orders WHERE owner = :owner"
parameters = { owner = { type = "text", from = "owner" } }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn tenants_and_keys() {
    let world = Sandbox::start(Options::test()).await.unwrap();
    let operator = Operator(&world);
    let files = tempfile::tempdir().unwrap();
    assert_eq!(operator.done(&["migrate"]), "the schema is up to date\n");

    // A dry run shows and writes nothing; applying twice changes nothing.
    let shop = manifest(files.path(), "shop.toml", SHOP);
    let planned = operator.done(&["tenant", "apply", &shop, "--dry-run"]);
    assert_eq!(planned, "tenant shop would be created\n  + dataset orders\n  + source main\n");
    assert_eq!(operator.done(&["tenant", "apply", &shop]), planned.replace("would be ", ""));
    let applied: chrono::DateTime<chrono::Utc> = sqlx::query_scalar("SELECT applied_at FROM tenant").fetch_one(world.pool()).await.unwrap();
    assert_eq!(operator.done(&["tenant", "apply", &shop]), "tenant shop is as the manifest says: nothing to change\n");
    let again: chrono::DateTime<chrono::Utc> = sqlx::query_scalar("SELECT applied_at FROM tenant").fetch_one(world.pool()).await.unwrap();
    assert_eq!(applied, again);
    let changed = manifest(files.path(), "changed.toml", &SHOP.replace("datasets.orders", "datasets.bills").replace("_SHOP_", "_STORE_"));
    assert_eq!(
        operator.done(&["tenant", "apply", &changed]),
        "tenant shop changed\n  + dataset bills\n  - dataset orders\n  ~ source main (url_env)\n"
    );

    // Nonsense is refused with its line, and changes nothing.
    let wrong = manifest(files.path(), "wrong.toml", &SHOP.replace(":owner", ":onwer"));
    let refused = operator.run(&["tenant", "apply", &wrong]);
    assert_eq!(refused.code, 2);
    assert!(
        refused.err.contains("wrong.toml: the manifest can't be used:\n  line 8: datasets.orders.sql: `:onwer` is not declared"),
        "{}",
        refused.err
    );
    assert_eq!(operator.run(&["tenant", "apply", "/nowhere.toml"]).code, 2);

    // A key is shown once, stored as a hash, listed by its end.
    let made: Value = serde_json::from_str(&operator.done(&[
        "key",
        "create",
        "--tenant",
        "shop",
        "--name",
        "backend",
        "--scopes",
        "jobs:read, jobs:write",
        "--json",
    ]))
    .unwrap();
    let key = made["key"].as_str().unwrap();
    let random = key.strip_prefix("pk_").unwrap();
    assert!(random.len() == 32 && random.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{key}");
    assert_eq!(made["scopes"], serde_json::json!(["jobs:read", "jobs:write"]));
    let stored: (Vec<u8>, String, f64) =
        sqlx::query_as("SELECT hash, last_four, extract(epoch FROM expires_at - created_at)::float8 / 86400 FROM api_key")
            .fetch_one(world.pool())
            .await
            .unwrap();
    assert_eq!(stored.0, shared::keys::KeyHash::of(key).unwrap().0);
    assert_eq!((stored.1.as_str(), stored.2), (&random[28..], 90.0));
    let plain = operator.run(&["key", "create", "--tenant", "shop", "--name", "second", "--scopes", "*", "--expires-in-days", "1"]);
    assert!(plain.out.trim_end().len() == 35 && plain.out.starts_with("pk_"), "{}", plain.out);
    let listed = operator.done(&["key", "list", "--tenant", "shop"]);
    let lines: Vec<_> = listed.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].contains("second") && lines[1].contains(&format!("…{}", &random[28..])), "{listed}");
    assert!(!listed.contains(random));

    // Revoking is final and says what it found.
    let id = made["id"].as_str().unwrap();
    assert!(operator.done(&["key", "revoke", id]).contains("is revoked"));
    assert!(operator.done(&["key", "revoke", id]).contains("was revoked before"));
    assert!(operator.done(&["key", "list", "--tenant", "shop"]).contains("revoked 20"));

    // What can't be is refused with an exit code that says trying again is no use.
    for arguments in [
        &["key", "create", "--tenant", "nobody", "--name", "a", "--scopes", "*"][..],
        &["key", "create", "--tenant", "shop", "--name", "a", "--scopes", "everything"],
        &["key", "create", "--tenant", "shop", "--name", "a", "--scopes", ","],
        &["key", "create", "--tenant", "shop", "--name", "", "--scopes", "*"],
        &["key", "create", "--tenant", "shop", "--name", "a", "--scopes", "*", "--expires-in-days", "0"],
        &["key", "revoke", "0197c2a4-5b6c-7d8e-9f01-23456789abcd"],
        &["key", "list", "--tenant", "nobody"],
        &["frobnicate"],
    ] {
        let refused = operator.run(arguments);
        assert_eq!((refused.code, refused.out.as_str()), (2, ""), "{arguments:?}: {}", refused.err);
        assert!(!refused.err.is_empty());
    }
    let keys: i64 = sqlx::query_scalar("SELECT count(*) FROM api_key").fetch_one(world.pool()).await.unwrap();
    assert_eq!(keys, 2);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_database_is_migrated_once_by_many() {
    let world = Sandbox::start(Options::test().without_migrations()).await.unwrap();
    let outputs = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| Operator(&world).run(&["migrate"]))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect::<Vec<_>>()
    });
    for output in &outputs {
        assert_eq!(output.code, 0, "{}", output.err);
    }
    assert!(outputs.iter().any(|output| output.out.contains("roles") && output.out.starts_with("applied ")));
    assert_eq!(Operator(&world).done(&["migrate"]), "the schema is up to date\n");
    world.stop().await.unwrap();
}

#[test]
fn wrong_settings_are_named_all_at_once() {
    let output = Command::new(env!("CARGO_BIN_EXE_api")).arg("serve").env_clear().env("OFFSTAGE_LISTEN", "x").output().unwrap();
    let answer = answer(output);
    assert_eq!(answer.code, 2);
    for name in [
        "OFFSTAGE_API_DATABASE_URL: is not set",
        "OFFSTAGE_REDIS_URL: is not set",
        "OFFSTAGE_S3_BUCKET: is not set",
        "OFFSTAGE_LISTEN: `x`",
    ] {
        assert!(answer.err.contains(name), "{}", answer.err);
    }
}

/// The checked-in contract is the code's. After a change: `cargo run -p api -- openapi > docs/openapi.json`.
#[test]
fn the_contract_on_file_is_the_codes() {
    let output = Command::new(env!("CARGO_BIN_EXE_api")).arg("openapi").env_clear().output().unwrap();
    let answer = answer(output);
    assert_eq!(answer.code, 0, "{}", answer.err);
    let on_file = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json")).unwrap_or_default();
    assert!(answer.out == on_file, "docs/openapi.json is not what the code says; run: cargo run -p api -- openapi > docs/openapi.json");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metric_is_counted_anew_by_the_job_that_its_manifest_would_make() {
    let world = Sandbox::start(Options::test()).await.unwrap();
    let operator = Operator(&world);
    let files = tempfile::tempdir().unwrap();
    let text = format!("{SHOP}\n[metrics.orders]\nevent = \"order\"\naggregate = \"count\"\n");
    operator.done(&["tenant", "apply", &manifest(files.path(), "shop.toml", &text)]);
    let printed = operator.done(&["metric", "rebuild", "shop", "orders", "--from", "2026-11-01", "--to", "2026-11-05"]);
    operator.done(&["metric", "rebuild", "shop", "orders"]);
    let jobs: Vec<(String, String, Value)> =
        sqlx::query_as("SELECT id::text, kind, payload FROM job ORDER BY id").fetch_all(world.pool()).await.unwrap();
    assert_eq!(jobs.len(), 2);
    let whole = serde_json::json!({"metric": "orders"});
    let days = serde_json::json!({"metric": "orders", "from": "2026-11-01", "to": "2026-11-05"});
    assert_eq!(jobs[0], (printed.trim().to_owned(), "metric.rebuild".to_owned(), days));
    assert_eq!((&jobs[1].1, &jobs[1].2), (&"metric.rebuild".to_owned(), &whole));
    for (arguments, says) in [
        (&["metric", "rebuild", "nobody", "orders"][..], "no tenant `nobody`"),
        (&["metric", "rebuild", "shop", "bills"], "it has: orders"),
        (&["metric", "rebuild", "shop", "orders", "--from", "2026-11-05", "--to", "2026-11-01"], "is before `from`"),
        (&["metric", "rebuild", "shop", "orders", "--from", "yesterday"], "yesterday"),
    ] {
        let refused = operator.run(arguments);
        assert_eq!((refused.code, refused.out.as_str()), (2, ""), "{arguments:?}: {}", refused.err);
        assert!(refused.err.contains(says), "{}", refused.err);
    }
    assert_eq!(sqlx::query_scalar::<_, i64>("SELECT count(*) FROM job").fetch_one(world.pool()).await.unwrap(), 2);
    world.stop().await.unwrap();
}
