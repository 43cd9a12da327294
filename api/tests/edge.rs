//! The edge, the keys and the reading of input, entered by HTTP through the program's own server, against a real database.
//! The routes behind them are this test's, so that each can misbehave.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use api::{
    app::App,
    auth::{Caller, ExportsWrite, JobsRead},
    edge,
    extract::{Json, Query},
    problem::{Code, Problem},
    routes, server,
};
use axum::{Router, extract::State, routing::get};
use chrono::TimeDelta;
use reqwest::{Client, RequestBuilder, StatusCode};
use sandbox::{Options, Sandbox};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    config::{ApiConfig, Variables},
    keys::{self, Scope, Scopes},
    shutdown::{Exit, Shutdown},
    telemetry::Metrics,
    tenant::{self, Manifest},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
};

#[derive(Deserialize)]
#[expect(dead_code, reason = "read by serde only")]
struct Order {
    item: String,
    count: Option<u8>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "read by serde only")]
struct Page {
    limit: Option<u32>,
}

struct Door {
    url: String,
    address: SocketAddr,
    client: Client,
    clock: Clock,
    shutdown: Shutdown,
    /// Told when a request to `/last`, which ends with the program, is inside.
    inside: Arc<Notify>,
    served: JoinHandle<Exit>,
}

fn metrics() -> Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| Metrics::start("api").unwrap()).clone()
}

impl Door {
    async fn open(world: &Sandbox) -> Self {
        let config = ApiConfig::read(&Variables::from_iter(world.env())).unwrap();
        let clock = Clock::at("2026-11-20T12:00:00Z".parse().unwrap());
        let shutdown = Shutdown::manual();
        let inside = Arc::new(Notify::new());
        let entered = inside.clone();
        let app = App::new(config, clock.clone(), metrics(), shutdown.clone()).unwrap();
        let routes = Router::new()
            .route(
                "/read",
                get(async |caller: Caller<JobsRead>| axum::Json(json!({"tenant": caller.tenant_name, "user": caller.acting_user}))),
            )
            .route("/export", get(async |_: Caller<ExportsWrite>| "exported"))
            .route(
                "/tenant",
                get(async |State(app): State<App>, caller: Caller<JobsRead>| -> Result<String, Problem> {
                    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
                    let names: Vec<String> = sqlx::query_scalar("SELECT name FROM tenant").fetch_all(&mut *transaction).await?;
                    let timeout: String = sqlx::query_scalar("SHOW statement_timeout").fetch_one(&mut *transaction).await?;
                    let datasets = app.tenants.get(caller.tenant).await?.map_or(0, |tenant| tenant.manifest.datasets.len());
                    Ok(format!("{} {timeout} {datasets}", names.join(",")))
                }),
            )
            .route("/order", get(async || "").post(async |Json(_): Json<Order>| "ordered"))
            .route("/small", axum::routing::post(async |Json(_): Json<Value, 64>| "read"))
            .route("/page", get(async |Query(_): Query<Page>| "page"))
            .route("/panic", get(async || -> String { panic!("as asked") }))
            .route("/fail", get(async || -> Result<String, Problem> { Err(Problem::internal(std::io::Error::other("secret place"))) }))
            .route(
                "/last",
                get(async move |State(app): State<App>| {
                    entered.notify_one();
                    app.shutdown.asked().cancelled().await;
                    "last"
                }),
            )
            .route("/large", get(async || "x".repeat(1_001)))
            .route("/medium", get(async || "x".repeat(1_000)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let dressed = routes::dress(routes, app, edge::DEADLINE);
        let stop = shutdown.clone();
        let served = tokio::spawn(async move { server::run(listener, dressed, &stop, Duration::from_secs(10), 100).await });
        #[expect(clippy::disallowed_methods, reason = "the test is the client")]
        let client = Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
        Self { url: format!("http://{address}"), address, client, clock, shutdown, inside, served }
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.url))
    }

    fn post(&self, path: &str, body: &str) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).header("content-type", "application/json").body(body.to_owned())
    }

    /// Sends bytes as they are and answers with what comes back until the other side closes or the text is complete.
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        String::from_utf8(answer).unwrap()
    }
}

struct Answer {
    status: StatusCode,
    headers: reqwest::header::HeaderMap,
    body: Value,
}

async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let text = response.text().await.unwrap();
    Answer { status, headers, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
}

/// An answer that must be a problem of this code; checks what all problems have in common.
async fn problem(request: RequestBuilder, code: Code) -> Answer {
    let answer = answer(request).await;
    assert_eq!(answer.body["code"], code.word(), "{}", answer.body);
    assert_eq!(answer.status.as_u16(), code.status().as_u16());
    assert_eq!(answer.body["status"], code.status().as_u16());
    assert_eq!(answer.body["type"], format!("urn:offstage:problem:{}", code.word()));
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    assert_eq!(answer.body["request_id"], answer.headers["x-request-id"].to_str().unwrap());
    assert!(answer.body["detail"].as_str().unwrap().len() > 10 && !answer.body["title"].as_str().unwrap().is_empty());
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_leaves_as_a_problem() {
    let world = Sandbox::start(Options::test()).await.unwrap();
    let door = Door::open(&world).await;

    problem(door.get("/nowhere"), Code::RouteNotFound).await;
    let refused = problem(door.client.delete(format!("{}/order", door.url)), Code::MethodNotAllowed).await;
    assert_eq!(refused.headers["allow"], "GET,HEAD,POST");
    problem(door.get("/panic"), Code::Internal).await;
    let failed = problem(door.get("/fail"), Code::Internal).await;
    assert!(!failed.body.to_string().contains("secret place"));

    // Bodies: the type, the size, the form, the fields.
    let typed = |kind: &str| door.client.post(format!("{}/order", door.url)).header("content-type", kind).body("{}");
    problem(typed("text/plain"), Code::ContentTypeUnsupported).await;
    problem(door.client.post(format!("{}/order", door.url)).body("{}"), Code::ContentTypeUnsupported).await;
    problem(door.post("/order", "{}").header("content-encoding", "gzip"), Code::ContentTypeUnsupported).await;
    problem(door.post("/order", "{\"item\": "), Code::JsonMalformed).await;
    let invalid = problem(door.post("/order", r#"{"count": 300, "colour": "red"}"#), Code::ValidationFailed).await;
    let pointers: Vec<_> = invalid.body["errors"].as_array().unwrap().iter().map(|error| error["pointer"].as_str().unwrap()).collect();
    assert_eq!(pointers, ["/count"]);
    let invalid = problem(door.post("/order", r#"{"item": "a", "colour": "red", "size": 1}"#), Code::ValidationFailed).await;
    assert_eq!(invalid.body["errors"].as_array().unwrap().len(), 2);
    assert_eq!(answer(door.post("/order", r#"{"item": "a"}"#)).await.body, "ordered");
    problem(door.post("/small", &format!("{{\"a\":\"{}\"}}", "x".repeat(57))), Code::BodyTooLarge).await;
    assert_eq!(answer(door.post("/small", &format!("{{\"a\":\"{}\"}}", "x".repeat(56)))).await.status, 200);
    // Without a length beforehand the limit holds all the same.
    let chunked = format!(
        "POST /small HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n50\r\n\"{}\"\r\n0\r\n\r\n",
        "x".repeat(78)
    );
    assert!(door.raw(&chunked).await.contains("\"code\":\"body_too_large\""));
    // A length beyond the limit is refused before the body is sent.
    let announced =
        "POST /small HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\nconnection: close\r\n\r\n";
    assert!(door.raw(announced).await.contains("\"code\":\"body_too_large\""));
    problem(door.get("/page?limit=many"), Code::QueryInvalid).await;
    problem(door.get("/page?lmit=1"), Code::QueryInvalid).await;

    // Headers beyond their bound end the connection with an answer.
    let huge = format!("GET /page HTTP/1.1\r\nhost: a\r\nx-a: {}\r\n\r\n", "a".repeat(20_000));
    assert!(door.raw(&huge).await.starts_with("HTTP/1.1 431"));

    door.shutdown.ask();
    assert_eq!(door.served.await.unwrap(), Exit::Finished);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_dressed() {
    let world = Sandbox::start(Options::test()).await.unwrap();
    let door = Door::open(&world).await;
    let plain = answer(door.get("/medium")).await;
    assert_eq!(plain.headers["x-content-type-options"], "nosniff");
    assert_eq!(plain.headers["cache-control"], "no-store");
    assert!(plain.headers.contains_key("content-security-policy") && plain.headers.contains_key("strict-transport-security"));
    assert!(uuid::Uuid::try_parse(plain.headers["x-request-id"].to_str().unwrap()).is_ok());
    // A decent id of the caller's is kept, an odd one replaced.
    assert_eq!(answer(door.get("/medium").header("x-request-id", "abc-1.2")).await.headers["x-request-id"], "abc-1.2");
    assert_ne!(answer(door.get("/medium").header("x-request-id", "a b\"")).await.headers["x-request-id"], "a b\"");
    // R6: over 1,000 bytes, compressed.
    let compressible = |path: &str| door.get(path).header("accept-encoding", "gzip");
    assert_eq!(answer(compressible("/large")).await.headers["content-encoding"], "gzip");
    assert!(!answer(compressible("/medium")).await.headers.contains_key("content-encoding"));
    assert!(!answer(door.get("/large")).await.headers.contains_key("content-encoding"));
    // Figures by the route's pattern and not by what a caller typed.
    answer(door.get("/made-up-path-1")).await;
    let figures = metrics().render();
    assert!(
        figures.contains("offstage_http_request_duration_seconds_count{route=\"unmatched\",method=\"GET\",status=\"404\"}"),
        "{figures}"
    );
    assert!(!figures.contains("made-up-path"));
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_open_what_their_scopes_say() {
    let world = Sandbox::start(Options::test()).await.unwrap();
    let door = Door::open(&world).await;
    let now = door.clock.now();
    let shop = Manifest::from_toml("[tenant]\nname = \"shop\"\n").unwrap();
    let other = Manifest::from_toml("[tenant]\nname = \"other\"\n").unwrap();
    let shop = tenant::apply(world.pool(), &shop, now, false).await.unwrap().tenant.unwrap();
    tenant::apply(world.pool(), &other, now, false).await.unwrap();
    let make = async |scopes: &[Scope], days| {
        let scopes: Scopes = scopes.iter().copied().collect();
        keys::create(world.pool(), &door.clock, shop, "test", &scopes, days).await.unwrap()
    };
    let reader = make(&[Scope::JobsRead], 90).await;
    let bearer = |path: &str, key: &str| door.get(path).bearer_auth(key);

    let missing = problem(door.get("/read"), Code::KeyMissing).await;
    assert_eq!(missing.headers["www-authenticate"], "Bearer realm=\"offstage\"");
    let malformed = problem(bearer("/read", "pk_short"), Code::KeyMalformed).await;
    assert!(malformed.headers["www-authenticate"].to_str().unwrap().contains("error=\"invalid_token\""));
    problem(door.get("/read").basic_auth("a", Some("b")), Code::KeyMalformed).await;
    problem(bearer("/read", &format!("pk_{}", "a".repeat(32))), Code::KeyUnknown).await;
    let read = answer(bearer("/read", reader.reveal())).await;
    assert_eq!((read.status, read.body), (StatusCode::OK, json!({"tenant": "shop", "user": null})));
    let lacking = problem(bearer("/export", reader.reveal()), Code::ScopeMissing).await;
    assert!(lacking.headers["www-authenticate"].to_str().unwrap().contains("scope=\"exports:write\""));
    assert!(lacking.body["detail"].as_str().unwrap().contains("jobs:read"));
    let all = make(&[Scope::All], 90).await;
    assert_eq!(answer(bearer("/export", all.reveal())).await.body, "exported");

    // The end user a backend acts for.
    let acting = |user: &str| bearer("/read", reader.reveal()).header("x-acting-user", user);
    assert_eq!(answer(acting("user-7")).await.body["user"], "user-7");
    problem(acting("two words"), Code::HeaderInvalid).await;
    problem(acting(""), Code::HeaderInvalid).await;

    // Row-level security: the API's role sees its tenant only, within a bounded time.
    assert_eq!(answer(bearer("/tenant", reader.reveal())).await.body, "shop 30s 0");

    // Business time decides on expiry, at once.
    let short = make(&[Scope::All], 1).await;
    assert_eq!(answer(bearer("/read", short.reveal())).await.status, 200);
    door.clock.advance(TimeDelta::days(1));
    problem(bearer("/read", short.reveal()), Code::KeyExpired).await;

    // The last use is written down.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let listed = keys::list(world.pool(), shop).await.unwrap();
        if listed.iter().any(|key| key.id == reader.id && key.last_used_at.is_some()) {
            break;
        }
        assert!(Instant::now() < deadline, "the use was not written down");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // Revoked within five seconds, under constant use.
    keys::revoke(world.pool(), reader.id, door.clock.now()).await.unwrap();
    let revoked = Instant::now();
    while answer(bearer("/read", reader.reveal())).await.status == 200 {
        assert!(revoked.elapsed() < Duration::from_secs(5), "a revoked key still works after five seconds");
    }
    problem(bearer("/read", reader.reveal()), Code::KeyRevoked).await;
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_database_callers_are_told_to_come_back() {
    let world = Sandbox::start(Options::test()).await.unwrap();
    let door = Door::open(&world).await;
    world.postgres.stop().await.unwrap();
    let away = problem(door.get("/read").bearer_auth(format!("pk_{}", "b".repeat(32))), Code::DatabaseUnavailable).await;
    assert_eq!(away.headers["retry-after"], "2");
    world.postgres.start().await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while answer(door.get("/read").bearer_auth(format!("pk_{}", "b".repeat(32)))).await.status != 401 {
        assert!(Instant::now() < deadline, "the API did not find the database again");
    }
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_lets_requests_finish_and_takes_no_new_ones() {
    let world = Sandbox::start(Options::test()).await.unwrap();
    let door = Door::open(&world).await;
    let under_way = tokio::spawn(answer(door.get("/last")));
    tokio::time::timeout(Duration::from_secs(10), door.inside.notified()).await.unwrap();
    door.shutdown.ask();
    assert_eq!(under_way.await.unwrap().body, "last");
    assert_eq!(door.served.await.unwrap(), Exit::Finished);
    assert!(TcpStream::connect(door.address).await.is_err());
    world.stop().await.unwrap();
}

#[tokio::test]
async fn an_endless_request_is_ended() {
    use tower::ServiceExt;
    let variables = [
        ("OFFSTAGE_API_DATABASE_URL", "postgres://nobody@127.0.0.1:1/none"),
        ("OFFSTAGE_REDIS_URL", "redis://127.0.0.1:1"),
        ("OFFSTAGE_S3_BUCKET", "none"),
        ("OFFSTAGE_S3_ACCESS_KEY_ID", "none"),
        ("OFFSTAGE_S3_SECRET_ACCESS_KEY", "none"),
    ];
    let config = ApiConfig::read(&Variables::from_iter(variables)).unwrap();
    let app = App::new(config, Clock::system(), metrics(), Shutdown::manual()).unwrap();
    let routes = Router::new().route("/endless", get(async || std::future::pending::<String>().await));
    let request = axum::http::Request::get("/endless").body(axum::body::Body::empty()).unwrap();
    let response = routes::dress(routes, app, Duration::from_millis(20)).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "5");
}
