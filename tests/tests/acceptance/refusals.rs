//! Bad input is told what is wrong with it and where, and changes nothing.

use std::time::Duration;

use acceptance::{Answer, World};
use chrono::{DateTime, TimeDelta, Utc};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Every table that a request could write to, counted together.
const ROWS: &str = "SELECT (SELECT count(*) FROM job) + (SELECT count(*) FROM job_state) + (SELECT count(*) FROM job_waiting)
    + (SELECT count(*) FROM job_dispatched) + (SELECT count(*) FROM idempotency_key) + (SELECT count(*) FROM job_cancel)
    + (SELECT count(*) FROM job_unsuccessful)";

/// A request that is refused, and how.
struct Refused {
    what: &'static str,
    request: RequestBuilder,
    status: u16,
    code: &'static str,
    pointers: Vec<&'static str>,
}

impl Refused {
    fn check(&self, answer: &Answer) {
        assert_eq!(answer.status, self.status, "{}: {}", self.what, answer.text());
        let problem = answer.problem(self.status, self.code);
        assert_eq!(answer.pointers(), self.pointers, "{}: {problem}", self.what);
        assert!(!answer.text().contains("panicked") && !answer.text().contains("sqlx"), "{}: {problem}", self.what);
    }
}

#[tokio::test]
async fn bad_jobs_are_refused_and_nothing_is_stored() {
    let world = World::start().await;
    let client = &world.client;
    let now: DateTime<Utc> = world.now().await;
    let post = |body: Value| client.request(Method::POST, "/v1/jobs").json(&body);
    let raw = |content_type: &str, body: &str| {
        client.request(Method::POST, "/v1/jobs").header("Content-Type", content_type).body(body.to_owned())
    };
    let probe = |payload: Value| json!({"kind": "probe.run", "payload": payload});
    let with = |field: &str, value: Value| {
        let mut body = probe(json!({}));
        body[field] = value;
        post(body)
    };
    let invalid = |what, request, pointers: &[&'static str]| Refused {
        what,
        request,
        status: 422,
        code: "validation_failed",
        pointers: pointers.to_vec(),
    };
    let other = |what, request, status, code| Refused { what, request, status, code, pointers: Vec::new() };

    let refused = [
        invalid("an unknown kind", post(json!({"kind": "probe.walk", "payload": {}})), &["/kind"]),
        invalid("no kind", post(json!({"payload": {}})), &["/kind"]),
        invalid("a kind that is no text", post(json!({"kind": 7, "payload": {}})), &["/kind"]),
        invalid("no payload", post(json!({"kind": "probe.run"})), &["/payload"]),
        invalid("an unknown field", with("colour", json!("red")), &["/colour"]),
        invalid("an unknown field of the payload", post(probe(json!({"colour": 1}))), &["/payload/colour"]),
        invalid("an ill-typed field of the payload", post(probe(json!({"sleep_ms": "long"}))), &["/payload/sleep_ms"]),
        invalid("a negative number", post(probe(json!({"sleep_ms": -1}))), &["/payload/sleep_ms"]),
        invalid("a word that means nothing", post(probe(json!({"outcome": "perhaps"}))), &["/payload/outcome"]),
        invalid("a queue that is none", post(probe(json!({"queue": "parcels"}))), &["/payload/queue"]),
        invalid("a sleep of days", post(probe(json!({"sleep_ms": 100_000_000}))), &["/payload/sleep_ms"]),
        invalid(
            "several things at once",
            post(probe(json!({"sleep_ms": 100_000_000, "callback_url": "ftp://x", "a": 1, "b/c": 2}))),
            &["/payload/a", "/payload/b~1c", "/payload/callback_url", "/payload/sleep_ms"],
        ),
        invalid("a NUL in a text", post(probe(json!({"pad": "a\u{0}b"}))), &["/payload/pad"]),
        invalid("a payload that is a list", post(json!({"kind": "probe.run", "payload": []})), &["/payload"]),
        invalid("a time without an offset", with("run_at", json!("2026-02-28T12:00:00")), &["/run_at"]),
        invalid("a time that is a number", with("run_at", json!(1_767_225_600)), &["/run_at"]),
        invalid("more than a year ahead", with("run_at", json!(now + TimeDelta::days(400))), &["/run_at"]),
        invalid("too late already", with("start_by", json!(now - TimeDelta::hours(1))), &["/start_by"]),
        invalid(
            "too late before it is due",
            post(json!({"kind": "probe.run", "payload": {}, "run_at": now + TimeDelta::hours(2), "start_by": now + TimeDelta::hours(1)})),
            &["/start_by"],
        ),
        invalid("an unknown priority", with("priority", json!("urgent")), &["/priority"]),
        invalid("an empty owner", with("owner", json!("")), &["/owner"]),
        invalid("an owner of a book's length", with("owner", json!("x".repeat(300))), &["/owner"]),
        invalid("an owner with a NUL", with("owner", json!("a\u{0}")), &["/owner"]),
        invalid("an empty key", with("idempotency_key", json!("")), &["/idempotency_key"]),
        invalid("a key with a space", with("idempotency_key", json!("a b")), &["/idempotency_key"]),
        invalid(
            "two keys",
            post(json!({"kind": "probe.run", "payload": {}, "idempotency_key": "a"})).header("Idempotency-Key", "b"),
            &["/idempotency_key"],
        ),
        other("an endless key", post(probe(json!({}))).header("Idempotency-Key", "k".repeat(256)), 400, "header_invalid"),
        other("an ill-formed user", post(probe(json!({}))).header("X-Acting-User", "a b"), 400, "header_invalid"),
        other("a payload of 300 KiB", post(probe(json!({"pad": "x".repeat(300 * 1024)}))), 413, "payload_too_large"),
        other("a body of 2 MiB", post(probe(json!({"pad": "x".repeat(2 * 1024 * 1024)}))), 413, "body_too_large"),
        other("a form", raw("application/x-www-form-urlencoded", "kind=probe.run"), 415, "content_type_unsupported"),
        other("text", raw("text/plain", r#"{"kind": "probe.run", "payload": {}}"#), 415, "content_type_unsupported"),
        other(
            "no type at all",
            client.request(Method::POST, "/v1/jobs").body(r#"{"kind": "probe.run", "payload": {}}"#),
            415,
            "content_type_unsupported",
        ),
        other("half a body", raw("application/json", r#"{"kind": "probe.run", "#), 400, "json_malformed"),
        other("nothing", raw("application/json", ""), 400, "json_malformed"),
        other("two bodies", raw("application/json", r#"{"kind": "probe.run", "payload": {}} {}"#), 400, "json_malformed"),
        other("a pit of brackets", raw("application/json", &"[".repeat(100_000)), 400, "json_malformed"),
        other(
            "no text",
            client.request(Method::POST, "/v1/jobs").header("Content-Type", "application/json").body(b"{\"kind\": \"\xff\"}".to_vec()),
            400,
            "json_malformed",
        ),
    ];
    let before = world.number(ROWS).await;
    for refused in refused {
        let request = refused.request.try_clone().unwrap();
        refused.check(&client.send(request).await);
        assert_eq!(world.number(ROWS).await, before, "{}: something was stored", refused.what);
    }
    // The same keys are free, since nothing was accepted under them.
    let accepted = client.send(post(probe(json!({}))).header("Idempotency-Key", "a")).await;
    let _ = accepted.expect(202);
}

#[tokio::test]
async fn an_unknown_kind_is_answered_with_those_there_are() {
    let world = World::start().await;
    let answer = world.client.post("/v1/jobs", &json!({"kind": "probe.walk", "payload": {}})).await;
    let problem = answer.problem(422, "validation_failed").to_string();
    assert!(problem.contains("probe.walk") && problem.contains("probe.run") && problem.contains("export.create"), "{problem}");
}

#[tokio::test]
async fn bad_questions_are_refused() {
    let world = World::start().await;
    let client = &world.client;
    for query in [
        "limit=0",
        "limit=201",
        "limit=-1",
        "limit=many",
        "limit=1&limit=2",
        "cursor=x",
        "cursor=",
        "cursor=AAAAAAAAAAAAAAAAAAAAAAA",
        "state=asleep",
        "colour=red",
        "created_from=yesterday",
        "created_before=2026-02-30T00:00:00Z",
        "owner=%00",
        "kind=a%00b",
        "state=failed&error_code=%00",
    ] {
        client.get(&format!("/v1/jobs?{query}")).await.problem(400, "query_invalid");
    }
    for path in ["/v1/exports?owner=%00", "/v1/schedules?name=%00", "/v1/schedules?kind=%00", "/v1/events?kind=%00"] {
        client.get(path).await.problem(400, "query_invalid");
    }
    for field in ["owner", "kind", "error_code"] {
        for change in ["retry", "discard"] {
            let all = json!({"filter": {field: "\0"}, "dry_run": true});
            let answer = client.post(&format!("/v1/jobs/{change}"), &all).await;
            answer.problem(422, "validation_failed");
            assert_eq!(answer.pointers(), [format!("/filter/{field}")]);
        }
    }
    let id = client.create_id(&acceptance::probe(&json!({}))).await;
    for query in ["wait=31", "wait=-1", "wait=soon", "since=x", "include=everything", "colour=red"] {
        client.get(&format!("/v1/jobs/{id}?{query}")).await.problem(400, "query_invalid");
    }
    let nobody = "0197c2a4-5b6c-7d8e-9f01-23456789abcd";
    for id in [nobody, "x", "1", "0197c2a4", "%00", "%F0%9F%9A%80", "..%2F..%2Fetc", &"a".repeat(2_000)] {
        client.get(&format!("/v1/jobs/{id}")).await.problem(404, "job_not_found");
        for change in ["cancel", "retry"] {
            client.post_nothing(&format!("/v1/jobs/{id}/{change}")).await.problem(404, "job_not_found");
        }
    }
    client.get("/v1/nothing").await.problem(404, "route_not_found");
    client.get("/").await.problem(404, "route_not_found");
    let wrong = client.send(client.request(Method::DELETE, "/v1/jobs")).await;
    wrong.problem(405, "method_not_allowed");
    assert!(wrong.header("allow").contains("POST"), "{:?}", wrong.headers);
    // Whose mistake it was can be told to the operator.
    let problem = client.get("/v1/nothing").await;
    assert_eq!(problem.json()["request_id"], problem.header("x-request-id"));
}

#[tokio::test]
async fn a_body_that_is_refused_unread_costs_no_other_request() {
    let world = World::start().await;
    let client = &world.client;
    let large = json!({"kind": "probe.run", "payload": {"pad": "x".repeat(2 * 1024 * 1024)}}).to_string();
    for _ in 0..20 {
        let request = client.request(Method::POST, "/v1/jobs").header("Content-Type", "application/json").body(large.clone());
        let refused = client.send(request).await;
        refused.problem(413, "body_too_large");
        assert_eq!(refused.header("connection"), "", "it was dropped, and the next request may come: {:?}", refused.headers);
        client.post("/v1/jobs", &json!({"kind": "probe.walk", "payload": {}})).await.problem(422, "validation_failed");
    }
}

#[tokio::test]
async fn whoever_sends_all_before_listening_hears_why_it_was_refused() {
    let world = World::start().await;
    let mut connection = connect(&world).await;
    let body = vec![b'x'; 12 * 1024 * 1024];
    // Twice through the same connection: nothing of the first is left in the way of the second.
    for _ in 0..2 {
        connection.write_all(&head(&world, body.len(), "")).await.expect("a head is sent");
        connection.write_all(&body).await.expect("a body is sent to its end");
        let answer = read_head(&mut connection).await;
        assert!(answer.starts_with("http/1.1 413 ") && !answer.contains("connection: close"), "{answer}");
        assert_eq!(read_problem(&mut connection, &answer).await["code"], "body_too_large");
    }
}

#[tokio::test]
async fn what_is_too_much_to_drop_closes_the_connection_and_says_so() {
    let world = World::start().await;
    // RFC 9112 §9.6: who is about to close a connection says so, or the next request is sent into it and lost.
    let mut connection = connect(&world).await;
    connection.write_all(&head(&world, 1 << 30, "")).await.expect("a head is sent");
    let answer = read_head(&mut connection).await;
    assert!(answer.starts_with("http/1.1 413 ") && answer.contains("connection: close"), "{answer}");
    // RFC 9110 §10.1.1: a refusal spares whoever asks first the sending.
    let mut connection = connect(&world).await;
    connection.write_all(&head(&world, 2 << 20, "Expect: 100-continue\r\n")).await.expect("a head is sent");
    let answer = read_head(&mut connection).await;
    assert!(answer.starts_with("http/1.1 413 ") && answer.contains("connection: close"), "{answer}");
}

async fn connect(world: &World) -> TcpStream {
    let request = world.client.request(Method::GET, "/").build().expect("a request");
    let url = request.url();
    let address = (url.host_str().expect("a host"), url.port().expect("a port"));
    TcpStream::connect(address).await.expect("the API listens")
}

fn head(world: &World, length: usize, more: &str) -> Vec<u8> {
    let key = world.client.key();
    format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n{more}\r\n"
    )
    .into_bytes()
}

/// An answer's head, in small letters.
async fn read_head(connection: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let all = async {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(connection.read_u8().await.expect("an answer"));
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.expect("an answer in time");
    String::from_utf8(head).expect("text").to_lowercase()
}

async fn read_problem(connection: &mut TcpStream, head: &str) -> Value {
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    connection.read_exact(&mut body).await.expect("a body");
    serde_json::from_slice(&body).expect("a problem")
}
