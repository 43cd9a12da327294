//! Datasets on a real Postgres: what the scanner takes for a parameter is one to Postgres, what it leaves alone means what
//! it meant, and every type's values arrive as they were sent.

use sandbox::{Options, Sandbox};
use serde_json::{Map, Value, json};
use shared::tenant::{Dataset, Manifest};
use sqlx::{AssertSqlSafe, PgPool, Row};

fn dataset(sql: &str, parameters: &str) -> Dataset {
    let manifest = format!(
        "[tenant]\nname = \"a\"\n[sources.main]\nurl_env = \"OFFSTAGE_SOURCE_A\"\n[datasets.one]\nsource = \"main\"\nsql = {}\n[datasets.one.parameters]\n{parameters}\n",
        json!(sql)
    );
    let mut manifest = Manifest::from_toml(&manifest).unwrap_or_else(|error| panic!("{sql}: {error}"));
    manifest.datasets.remove("one").unwrap()
}

/// The only row's only column, as text, read as an export reads: through a cursor.
async fn run(pool: &PgPool, dataset: &Dataset, params: Value) -> Result<Option<String>, sqlx::Error> {
    let Value::Object(params) = params else { panic!("{params}") };
    let values = dataset.bind(&params, None).unwrap_or_else(|violations| panic!("{violations:?}"));
    let mut transaction = pool.begin().await?;
    let declare = format!("DECLARE one NO SCROLL CURSOR FOR {}", dataset.sql());
    let mut query = sqlx::query(AssertSqlSafe(declare));
    for value in values {
        query = query.bind(value);
    }
    query.execute(&mut *transaction).await?;
    let row = sqlx::query("FETCH 1 FROM one").fetch_one(&mut *transaction).await?;
    row.try_get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_agrees_with_the_scanner() {
    let world = Sandbox::start(Options::test().without_migrations()).await.unwrap();
    let pool = world.pool();

    // Each selects one text; `:a` stands for "A" where it is a parameter.
    for (sql, expected) in [
        ("SELECT ':a'", ":a"),
        ("SELECT 'it''s :a'", "it's :a"),
        (r"SELECT '\' || ':a'", r"\:a"),
        (r"SELECT E'\':a\\'", r"':a\"),
        ("SELECT E'x' -- ' :a\n  '\\':a'", "x':a"),
        ("SELECT 'x'\r'\\' || ':a'", r"x\:a"),
        ("SELECT E'x' /* c */\n || '\\'", "x\\"),
        ("SELECT \":a\" FROM (SELECT 'named'::text AS \":a\") AS x", "named"),
        ("SELECT $$ :a $x$ :b $$", " :a $x$ :b "),
        ("SELECT $tag$ $$ :c $tag $tag$", " $$ :c $tag "),
        ("SELECT $é$ :a $é$", " :a "),
        ("SELECT a$b$ FROM (SELECT 'odd'::text AS a$b$) AS x -- :a $b$", "odd"),
        ("SELECT 'b' -- :a\r || 'c'", "bc"),
        ("SELECT /* :a /* :b */ :c */ 'd'", "d"),
        ("SELECT /* ' */ 'e' /* \" */", "e"),
        ("SELECT '2026-02-28'::date::text", "2026-02-28"),
        ("SELECT (ARRAY['x','y','z'])[1:2]::text", "{x,y}"),
        ("SELECT (ARRAY['x','y','z'])[:2]::text || (ARRAY['x','y'])[2:]::text || (ARRAY['x','y'])[:]::text", "{x,y}{y}{x,y}"),
        ("SELECT concat(make_interval(days := 3))", "3 days"),
        (r"SELECT U&'d\0061t\+000061 :a'", "data :a"),
        ("SELECT '{\"a\": \":b\"}'::jsonb ->> 'a'", ":b"),
        ("SELECT :a || ':a' || :a::text", "A:aA"),
        ("SELECT ':x'||:a||':y'--:a\n/*:a*/", ":xA:y"),
        ("SELECT E'a'\n'\\' || :no' || :a", "a' || :noA"),
        (" -- of \n WITH x AS (SELECT :a AS y) TABLE x ; -- done\n", "A"),
        ("VALUES (:a)", "A"),
        ("(SELECT :a)", "A"),
    ] {
        let parameters = if sql.replace(":a'", "").contains(":a") && expected.contains('A') { "a = { type = \"text\" }" } else { "" };
        let params = if parameters.is_empty() { json!({}) } else { json!({"a": "A"}) };
        let found = run(pool, &dataset(sql, parameters), params).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!(found.as_deref(), Some(expected), "{sql}");
    }
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn values_arrive_as_sent() {
    let world = Sandbox::start(Options::test().without_migrations()).await.unwrap();
    let pool = world.pool();
    for (kind, sql, value, expected) in [
        ("text", "SELECT :a", json!("'; DROP TABLE x; -- é\n\\"), "'; DROP TABLE x; -- é\n\\"),
        ("integer", "SELECT (:a + 1)::text", json!(-2_147_483_648_i64), "-2147483647"),
        ("bigint", "SELECT (:a - 1)::text", json!("9223372036854775807"), "9223372036854775806"),
        ("numeric", "SELECT (:a * 3)::text", json!("0.1000"), "0.3000"),
        ("numeric", "SELECT (:a)::text", json!(1e21), "1000000000000000000000"),
        ("boolean", "SELECT (NOT :a)::text", json!(true), "false"),
        ("date", "SELECT (:a + 1)::text", json!("2024-02-29"), "2024-03-01"),
        (
            "timestamptz",
            "SELECT to_char(:a AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')",
            json!("2026-02-28T13:00:00.123456+01:00"),
            "2026-02-28 12:00:00.123456",
        ),
        ("uuid", "SELECT (:a)::text", json!("0197C2A4-5B6C-7D8E-9F01-23456789ABCD"), "0197c2a4-5b6c-7d8e-9f01-23456789abcd"),
        (
            "text[]",
            "SELECT array_to_string(:a, '|', 'null') || cardinality(:a)",
            json!(["a,b", "q\"\\", "", "NULL", "{x}", "é\n "]),
            "a,b|q\"\\||NULL|{x}|é\n 6",
        ),
        ("text[]", "SELECT cardinality(:a)::text", json!([]), "0"),
        ("text[]", "SELECT (:a[2] || (:a)[1])", json!(["x", "y"]), "yx"),
    ] {
        let mut params = Map::new();
        params.insert("a".into(), value);
        let found = run(pool, &dataset(sql, &format!("a = {{ type = \"{kind}\" }}")), Value::Object(params)).await;
        assert_eq!(found.unwrap_or_else(|error| panic!("{kind} {sql}: {error}")).as_deref(), Some(expected), "{kind} {sql}");
    }
    // A server with other habits reads the same: values don't depend on the session's date style or time zone.
    for setting in ["SET datestyle = 'German, DMY'", "SET timezone = 'Asia/Kathmandu'", "SET standard_conforming_strings = on"] {
        let moment = dataset("SELECT extract(epoch FROM :a)::bigint::text", "a = { type = \"timestamptz\" }");
        let mut connection = pool.acquire().await.unwrap();
        sqlx::query(setting).execute(&mut *connection).await.unwrap();
        let params = json!({"a": "2026-03-04T00:00:00Z"});
        let values = moment.bind(params.as_object().unwrap(), None).unwrap();
        let found: String = sqlx::query_scalar(AssertSqlSafe(moment.sql())).bind(&values[0]).fetch_one(&mut *connection).await.unwrap();
        assert_eq!(found, "1772582400", "{setting}");
        connection.close().await.unwrap();
    }
    world.stop().await.unwrap();
}
