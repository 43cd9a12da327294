//! The source client on a real Postgres: every type's text, one snapshot, nothing written, faults sorted.

use std::time::Instant;

use sandbox::{Options, Sandbox};
use shared::job::FailureClass;
use sqlx::PgPool;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(30);

struct World {
    sandbox: Sandbox,
    url: SecretString,
    sources: Sources,
}

impl World {
    async fn start() -> Self {
        let sandbox = Sandbox::start(Options::test().without_migrations()).await.unwrap();
        let url = SecretString::from(sandbox.postgres.source_url());
        Self { sandbox, url, sources: Sources::default() }
    }

    async fn open(&self) -> Result<Snapshot, SourceError> {
        self.sources.open(&source(&self.url, TIMEOUT)).await
    }

    /// The product's own connection, which may write.
    async fn product(&self) -> PgPool {
        PgPool::connect(&self.sandbox.postgres.product_url()).await.unwrap()
    }

    /// All rows of a statement, as plain texts.
    async fn rows(&self, sql: &str, values: &[&str]) -> Result<Vec<Vec<Option<String>>>, SourceError> {
        let mut snapshot = self.open().await?;
        let values: Vec<_> = values.iter().map(|value| Some((*value).to_owned())).collect();
        let mut cursor = snapshot.read("test", sql, &values).await?;
        let rows = all(&mut cursor).await?;
        snapshot.close().await;
        Ok(rows)
    }

    async fn fault(&self, sql: &str) -> SourceError {
        match self.rows(sql, &[]).await {
            Ok(rows) => panic!("{sql}: {rows:?}"),
            Err(error) => error,
        }
    }
}

fn source(url: &SecretString, statement_timeout: Duration) -> Source<'_> {
    Source { name: "main", variable: "OFFSTAGE_SOURCE_TEST", url, statement_timeout, tenant: None }
}

async fn all(cursor: &mut Cursor<'_>) -> Result<Vec<Vec<Option<String>>>, SourceError> {
    let shapes: Vec<Shape> = cursor.columns().iter().map(|column| column.shape.clone()).collect();
    let mut rows = Vec::new();
    loop {
        let before = rows.len();
        let mut batch = cursor.fetch(3);
        while let Some(row) = batch.next().await? {
            let mut scratch = String::new();
            let cell = |(index, shape): (usize, &Shape)| row.cell(index).unwrap().map(|raw| shape.plain(raw, &mut scratch).to_owned());
            rows.push(shapes.iter().enumerate().map(cell).collect());
        }
        if rows.len() - before < 3 {
            return Ok(rows);
        }
    }
}

/// Waits until `sql` answers true, or fails after ten seconds.
async fn wait_until(pool: &PgPool, sql: &'static str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !sqlx::query_scalar::<_, bool>(sql).fetch_one(pool).await.unwrap() {
        assert!(Instant::now() < deadline, "not within ten seconds: {sql}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn every_type_has_its_text() {
    let world = World::start().await;
    let product = world.product().await;
    // The database's own settings must not show.
    sqlx::raw_sql(
        "CREATE TYPE tier AS ENUM ('free', 'pro, plus');
         CREATE TYPE pair AS (a integer, b text);
         CREATE DOMAIN handle AS text;
         CREATE DOMAIN handles AS handle[];
         CREATE DOMAIN truth AS boolean;
         DO $$ DECLARE setting text; BEGIN
             FOREACH setting IN ARRAY ARRAY['DateStyle = ''SQL, DMY''', 'TimeZone = ''Asia/Kolkata''', 'IntervalStyle = ''postgres_verbose''',
                 'bytea_output = ''escape''', 'extra_float_digits = -5', 'idle_in_transaction_session_timeout = 1'] LOOP
                 EXECUTE format('ALTER DATABASE %I SET %s', current_database(), setting);
             END LOOP;
         END $$;",
    )
    .execute(&product)
    .await
    .unwrap();
    let mut snapshot = world.open().await.unwrap();
    for (expression, expected, type_name) in [
        ("NULL::text", None, "text"),
        ("''", Some(""), "text"),
        ("'a\u{1f680}'::varchar(9)", Some("a\u{1f680}"), "character varying"),
        ("'ab'::char(4)", Some("ab  "), "character"),
        ("'{[1,2),[5,9)}'::int4multirange", Some("{[1,2),[5,9)}"), "int4multirange"),
        ("true", Some("true"), "boolean"),
        ("false::truth", Some("false"), "boolean"),
        ("9223372036854775807", Some("9223372036854775807"), "bigint"),
        ("'-9007199254740993.000000000000000001'::numeric", Some("-9007199254740993.000000000000000001"), "numeric"),
        ("1.10::numeric(12,6)", Some("1.100000"), "numeric"),
        ("'NaN'::numeric", Some("NaN"), "numeric"),
        ("'-Infinity'::numeric", Some("-Infinity"), "numeric"),
        ("0.1::float8 + 0.2", Some("0.30000000000000004"), "double precision"),
        ("'5e-324'::float8", Some("5e-324"), "double precision"),
        ("'-0'::float8", Some("-0"), "double precision"),
        ("'NaN'::float8", Some("NaN"), "double precision"),
        ("0.1::float4", Some("0.1"), "real"),
        ("16777217::float4", Some("1.6777216e+07"), "real"),
        ("'2026-11-20 19:21:05.123456+01'::timestamptz", Some("2026-11-20T18:21:05.123456Z"), "timestamp with time zone"),
        ("'0044-03-15 12:00+00 BC'::timestamptz", Some("-000043-03-15T12:00:00Z"), "timestamp with time zone"),
        ("'infinity'::timestamptz", Some("infinity"), "timestamp with time zone"),
        ("'294276-12-31 23:59:59.999999+00'::timestamptz", Some("+294276-12-31T23:59:59.999999Z"), "timestamp with time zone"),
        ("'2026-11-20 19:21:05.5'::timestamp", Some("2026-11-20T19:21:05.5"), "timestamp without time zone"),
        ("'0001-12-31 BC'::date", Some("0000-12-31"), "date"),
        ("'-infinity'::date", Some("-infinity"), "date"),
        ("'10000-01-01'::date", Some("+010000-01-01"), "date"),
        ("'24:00:00'::time", Some("24:00:00"), "time without time zone"),
        ("'12:00:00-03:30'::timetz", Some("12:00:00-03:30"), "time with time zone"),
        ("'1 year 2 mons -3 days 04:05:06.7'::interval", Some("P1Y2M-3DT4H5M6.7S"), "interval"),
        ("'\\x00ff22'::bytea", Some("\\x00ff22"), "bytea"),
        ("'{\"b\": 1.10, \"a\": [1, null]}'::jsonb", Some("{\"a\": [1, null], \"b\": 1.10}"), "jsonb"),
        ("'{\"a\": 1,  \"a\": 2}'::json", Some("{\"a\": 1,  \"a\": 2}"), "json"),
        ("'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'::uuid", Some("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"), "uuid"),
        ("'pro, plus'::tier", Some("pro, plus"), "tier"),
        ("'2001:db8::1/64'::inet", Some("2001:db8::1/64"), "inet"),
        ("B'101'", Some("101"), "bit"),
        ("ROW(1, 'x y')::pair", Some("(1,\"x y\")"), "pair"),
        ("int4range(1, 5)", Some("[1,5)"), "int4range"),
        ("'12.5'::money", Some("$12.50"), "money"),
        (
            "ARRAY['a', NULL, 'NULL', '', 'b,\"c\"', '\u{1f680}']",
            Some("[\"a\",null,\"NULL\",\"\",\"b,\\\"c\\\"\",\"\u{1f680}\"]"),
            "text[]",
        ),
        ("'{}'::text[]", Some("[]"), "text[]"),
        ("ARRAY[[1, 2], [3, NULL]]", Some("[[1,2],[3,null]]"), "integer[]"),
        ("'[0:1]={9007199254740993,1}'::bigint[]", Some("[\"9007199254740993\",1]"), "bigint[]"),
        ("ARRAY[true, false]", Some("[true,false]"), "boolean[]"),
        ("ARRAY['NaN', '0.1']::float8[]", Some("[\"NaN\",0.1]"), "double precision[]"),
        (
            "ARRAY['2026-11-20 00:00+00', 'infinity']::timestamptz[]",
            Some("[\"2026-11-20T00:00:00Z\",\"infinity\"]"),
            "timestamp with time zone[]",
        ),
        ("ARRAY['{\"a\": \"}\"}', 'null']::jsonb[]", Some("[{\"a\": \"}\"},null]"), "jsonb[]"),
        ("ARRAY['free', 'pro, plus']::tier[]", Some("[\"free\",\"pro, plus\"]"), "tier[]"),
        ("ARRAY['a', 'b']::handles", Some("[\"a\",\"b\"]"), "handle[]"),
        ("ARRAY['\\x00', '\\xff']::bytea[]", Some("[\"\\\\x00\",\"\\\\xff\"]"), "bytea[]"),
        ("ARRAY['(1,1),(0,0)', '(2,2),(1,1)']::box[]", Some("[\"(1,1),(0,0)\",\"(2,2),(1,1)\"]"), "box[]"),
        ("'1 2 3'::int2vector", Some("1 2 3"), "int2vector"),
    ] {
        let sql = format!("SELECT {expression} AS value");
        let mut cursor = snapshot.read("test", &sql, &[]).await.unwrap_or_else(|error| panic!("{expression}: {error}"));
        assert_eq!((cursor.columns()[0].name.as_str(), cursor.columns()[0].type_name.as_str()), ("value", type_name), "{expression}");
        let rows = all(&mut cursor).await.unwrap_or_else(|error| panic!("{expression}: {error}"));
        assert_eq!(rows, [[expected.map(str::to_owned)]], "{expression}");
    }
}

#[tokio::test]
async fn values_are_bound_and_columns_known_without_rows() {
    let world = World::start().await;
    let rows = world.rows("SELECT ($1::text), ($2::text)::bigint + 1, ($1::text)", &["'; DROP TABLE prompts; --", "41"]).await.unwrap();
    assert_eq!(rows, [["'; DROP TABLE prompts; --", "42", "'; DROP TABLE prompts; --"].map(|text| Some(text.to_owned()))]);

    let rows = world.rows("SELECT n FROM generate_series(1, ($1::text)::int) AS n", &["7"]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row[0].clone().unwrap()).collect::<Vec<_>>(), ["1", "2", "3", "4", "5", "6", "7"]);

    let mut snapshot = world.open().await.unwrap();
    let mut cursor = snapshot.read("test", "SELECT 1 AS a, ARRAY[now()] AS b, 'x' AS a WHERE false", &[]).await.unwrap();
    let named: Vec<_> = cursor.columns().iter().map(|column| (column.name.as_str(), column.type_name.as_str())).collect();
    assert_eq!(named, [("a", "integer"), ("b", "timestamp with time zone[]"), ("a", "text")]);
    assert_eq!(cursor.columns()[1].shape, Shape::Array { element: Box::new(Shape::TimestampWithZone), delimiter: ',' });
    assert!(all(&mut cursor).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_snapshot_is_one_moment_and_writes_nothing() {
    let world = World::start().await;
    let product = world.product().await;
    sqlx::raw_sql(
        "CREATE TABLE item (id integer PRIMARY KEY, name text);
         INSERT INTO item SELECT n, 'old' FROM generate_series(1, 10) AS n;
         CREATE SEQUENCE number;
         CREATE FUNCTION write() RETURNS integer LANGUAGE sql SECURITY DEFINER AS 'INSERT INTO item VALUES (99, $$written$$) RETURNING id';
         GRANT SELECT ON item TO offstage_source;
         GRANT USAGE ON SEQUENCE number TO offstage_source;",
    )
    .execute(&product)
    .await
    .unwrap();
    // The role itself reads only by default: that is another's doing, and must not be what keeps us from writing.
    let superuser = PgPool::connect(&world.sandbox.postgres.superuser_url()).await.unwrap();
    sqlx::raw_sql("ALTER ROLE offstage_source RESET default_transaction_read_only").execute(&superuser).await.unwrap();
    let mut snapshot = world.open().await.unwrap();
    let mut cursor = snapshot.read("test", "SELECT name FROM item ORDER BY id", &[]).await.unwrap();
    let mut batch = cursor.fetch(2);
    while batch.next().await.unwrap().is_some() {}
    drop(batch);
    sqlx::raw_sql("UPDATE item SET name = 'new'; DELETE FROM item WHERE id > 5").execute(&product).await.unwrap();
    let rest = all(&mut cursor).await.unwrap();
    assert_eq!(rest, vec![vec![Some("old".to_owned())]; 8]);
    // A second statement sees the moment of the first.
    let mut cursor = snapshot.read("test", "SELECT count(*) FROM item WHERE name = 'old'", &[]).await.unwrap();
    assert_eq!(all(&mut cursor).await.unwrap(), [[Some("10".to_owned())]]);

    for sql in ["SELECT write()", "SELECT nextval('number')"] {
        let error = world.fault(sql).await;
        assert!(matches!(error, SourceError::Refused { .. }), "{sql}: {error:?}");
        assert!(error.to_string().contains("SQLSTATE 25006"), "{error}");
    }
    assert_eq!(sqlx::query_scalar::<_, i64>("SELECT count(*) FROM item WHERE name = 'written'").fetch_one(&product).await.unwrap(), 0);
}

#[tokio::test]
async fn faults_are_sorted_by_what_helps() {
    let world = World::start().await;
    let product = world.product().await;
    sqlx::raw_sql("CREATE TABLE secret (id integer); REVOKE ALL ON secret FROM PUBLIC, offstage_source").execute(&product).await.unwrap();
    for (sql, code, says) in [
        ("SELECT FROM WHERE", "dataset_refused", "syntax error"),
        ("SELECT * FROM nothing_here", "dataset_refused", "relation \"nothing_here\" does not exist (SQLSTATE 42P01)"),
        ("SELECT nothing_here", "dataset_refused", "SQLSTATE 42703"),
        ("SELECT * FROM secret", "dataset_refused", "permission denied for table secret (SQLSTATE 42501)"),
        // Only while rows are fetched, behind some that are fine.
        ("SELECT 10 / (5 - n) FROM generate_series(1, 10) AS n", "dataset_refused", "division by zero (SQLSTATE 22012)"),
        ("SELECT 'x'::text::uuid", "dataset_refused", "SQLSTATE 22P02"),
        ("SELECT ('a value of somebody' || n)::integer FROM generate_series(1, 2) AS n", "dataset_refused", "SQLSTATE 22P02"),
    ] {
        let failure = shared::job::Failure::from(world.fault(sql).await);
        assert_eq!((failure.class, failure.code), (FailureClass::Permanent, code), "{sql}: {failure:?}");
        assert!(failure.message.contains("`test`"), "{sql}: {}", failure.message);
        let (operator, author) = (failure.causes.join("; "), &failure.message);
        let code = says.split("SQLSTATE ").nth(1).map_or("", |code| code.trim_end_matches(')'));
        assert!(operator.contains(says.split(" (SQLSTATE").next().unwrap()) || says.starts_with("SQLSTATE"), "{sql}: {operator}");
        assert!(author.contains(code), "{sql}: {author}");
        let owner = failure.for_owner.as_deref().unwrap();
        assert!(!author.contains("somebody") && !owner.contains("somebody") && !owner.contains("SQLSTATE"), "{author}; {owner}");
    }

    let slow = source(&world.url, Duration::from_millis(200));
    let mut snapshot = world.sources.open(&slow).await.unwrap();
    let mut cursor = snapshot.read("test", "SELECT pg_sleep(60)", &[]).await.unwrap();
    let error = all(&mut cursor).await.unwrap_err();
    assert!(matches!(error, SourceError::StatementTimeout { .. }) && !error.is_transient(), "{error:?}");
    drop(snapshot);

    // Ended from outside while it reads.
    let mut snapshot = world.open().await.unwrap();
    let mut cursor = snapshot.read("test", "SELECT pg_sleep(60)", &[]).await.unwrap();
    let superuser = PgPool::connect(&world.sandbox.postgres.superuser_url()).await.unwrap();
    let kill = async {
        wait_until(&superuser, "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'FETCH%' AND state = 'active'").await;
        sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'FETCH%'").execute(&superuser).await.unwrap();
    };
    let (ended, ()) = tokio::join!(all(&mut cursor), kill);
    let error = ended.unwrap_err();
    assert!(matches!(error, SourceError::Unavailable { .. }) && error.is_transient(), "{error:?}");
    drop(snapshot);

    for (url, expected) in [
        (world.sandbox.postgres.source_url().replace("offstage_source:", "offstage_source:x"), "source_login_refused"),
        (world.sandbox.postgres.source_url().replace("/promptlockr", "/nowhere"), "source_login_refused"),
        ("postgres://offstage_source:hush-hush@127.0.0.1:1/promptlockr".into(), "source_unavailable"),
    ] {
        let url = SecretString::from(url);
        let error = world.sources.open(&source(&url, TIMEOUT)).await.unwrap_err();
        let failure = shared::job::Failure::from(error);
        assert_eq!(failure.code, expected);
        let said = format!("{failure:?}");
        assert!(!said.contains("hush-hush") && !said.contains(&world.url.expose_secret()[30..50]), "{said}");
    }

    world.sandbox.postgres.kill9().await.unwrap();
    let error = world.open().await.unwrap_err();
    assert!(matches!(error, SourceError::Unavailable { .. }) && error.is_transient(), "{error:?}");
}

#[tokio::test]
async fn the_planner_is_asked_how_many_and_a_refusal_harms_nothing() {
    let world = World::start().await;
    let mut snapshot = world.open().await.unwrap();
    let least = Some("1".to_owned());
    assert_eq!(snapshot.estimate("SELECT n FROM generate_series(1, 180) AS n", &[]).await, Some(180));
    assert!(snapshot.estimate("SELECT n FROM generate_series(1, 180) AS n WHERE n > ($1::text)::integer", &[least]).await.is_some());
    assert_eq!(snapshot.estimate("SELECT nothing_here", &[]).await, None);
    let mut cursor = snapshot.read("test", "SELECT 'still there'", &[]).await.unwrap();
    assert_eq!(all(&mut cursor).await.unwrap(), [[Some("still there".to_owned())]]);
}

#[tokio::test]
async fn a_dropped_snapshot_ends_its_query_and_frees_its_slot() {
    let world = World::start().await;
    let superuser = PgPool::connect(&world.sandbox.postgres.superuser_url()).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..SLOTS {
        held.push(world.open().await.unwrap());
    }
    assert!(world.open().now_or_never().is_none(), "no slot is free");
    let mut busy = held.pop().unwrap();
    {
        let mut cursor = busy.read("test", "SELECT pg_sleep(600)", &[]).await.unwrap();
        let mut batch = cursor.fetch(1);
        let reading = async {
            let _ = batch.next().await;
        };
        tokio::select! {
            () = reading => panic!("600 seconds are over"),
            () = wait_until(&superuser, "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'FETCH%' AND state = 'active'") => {}
        }
    }
    drop(busy);
    world.open().await.unwrap().close().await;
    wait_until(&superuser, "SELECT count(*) = 0 FROM pg_stat_activity WHERE query LIKE 'FETCH%'").await;
}
