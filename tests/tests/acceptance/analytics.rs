//! Events in by HTTP, numbers out: taken once, counted right, shown by the clocks of a zone, to whom they belong.

mod catalogue;
mod crowd;
mod examples;
mod exports;
mod overload;
mod turns;

use std::io::Write;

use acceptance::{Answer, Client, SetClock, World, id_of, until};
use flate2::{Compression, write::GzEncoder};
use reqwest::Method;
use serde_json::{Value, json};

const MANIFEST: &str = r#"
[tenant]
name = "forge"
[metrics.runs]
event = "run"
aggregate = "count"
dimensions = ["model", "user"]
audience = "users"
[metrics.tokens]
event = "run"
aggregate = "sum"
value = "tokens"
dimensions = ["model"]
[metrics.score]
event = "run"
aggregate = "average"
value = "score"
[metrics.success]
event = "run"
aggregate = "success_rate"
success = { status = "ok" }
[metrics.times]
event = "run"
aggregate = "percentiles"
value = "ms"
[metrics.people]
event = "run"
aggregate = "uniques"
[views.performance]
title = "Performance"
days = 3
compare = true
panels = [{ metric = "tokens", group_by = ["model"], top = 1 }, { metric = "times" }, { metric = "runs" }]
"#;

const NOW: &str = "2026-11-21T12:07:00Z";

async fn send(client: &Client, events: &[Value]) -> Value {
    client.post("/v1/events", &json!({"events": events})).await.expect(200)
}

fn run(id: usize, time: &str, user: &str, properties: &Value) -> Value {
    json!({"id": format!("e{id}"), "type": "run", "user": user, "time": time, "properties": properties})
}

fn values(answer: &Value, group: usize) -> Vec<Value> {
    answer["groups"][group]["points"].as_array().unwrap().iter().map(|point| point["value"].clone()).collect()
}

async fn packed(client: &Client, media: &str, encoding: &str, body: Vec<u8>) -> Answer {
    let request = client.request(Method::POST, "/v1/events").header("Content-Type", media).header("Content-Encoding", encoding);
    client.send(request.body(body)).await
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// One frame, one raw block (RFC 8878 §3.1.1): what every encoder may write.
fn zstd(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap();
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000];
    frame.extend(length.to_le_bytes());
    frame.extend(&((length << 3) | 1).to_le_bytes()[..3]);
    frame.extend(bytes);
    frame
}

#[tokio::test]
async fn events_are_taken_once_in_any_form_and_what_is_wrong_is_named() {
    let (world, _clock) = World::start_at(NOW, |api| api).await;
    let client = world.tenant_of("forge", MANIFEST).await;
    let events = json!([
        run(1, "2026-11-21T12:00:00Z", "ada", &json!({"model": "a", "tokens": 1.5})),
        run(1, "2026-11-21T12:00:00Z", "ada", &json!({"model": "a", "tokens": 1.5})),
        {"id": "e2"},
        run(3, "2026-11-21T12:18:00Z", "ada", &json!({})),
        run(4, "2026-08-22T00:00:00Z", "ada", &json!({})),
        run(5, "2026-11-21T12:16:00Z", "ada", &json!({"model": "b", "tokens": 2})),
        "nonsense",
    ]);
    let taken = send(&client, events.as_array().unwrap()).await;
    assert_eq!((&taken["accepted"], &taken["duplicates"]), (&json!(2), &json!(1)), "{taken}");
    let rejected: Vec<_> = taken["rejected"].as_array().unwrap().iter().map(|one| (one["index"].clone(), one["code"].clone())).collect();
    let expected = [(2, "invalid"), (3, "time_in_future"), (4, "time_too_old"), (6, "invalid")];
    assert_eq!(rejected, expected.map(|(index, code)| (json!(index), json!(code))), "{taken}");
    // Again, as lines, packed: they are known.
    let lines: String =
        [&events[0], &events[5], &run(6, "2026-11-21T12:00:00Z", "bob", &json!({}))].map(|event| format!("{event}\n")).concat();
    for (encoding, body, accepted) in
        [("gzip", gzip(lines.as_bytes()), 1), ("zstd", zstd(lines.as_bytes()), 0), ("identity", lines.clone().into_bytes(), 0)]
    {
        let taken = packed(&client, "application/x-ndjson", encoding, body).await.expect(200);
        assert_eq!(
            (&taken["accepted"], &taken["duplicates"], &taken["rejected"]),
            (&json!(accepted), &json!(3 - accepted), &json!([])),
            "{encoding}"
        );
    }
    // As editors and exports write lines: a byte order mark, blank ones anywhere. Places are those of the lines.
    let spaced = format!("\u{feff}{}\r\n\n  \n{{}}\n\n", events[0]);
    let taken = packed(&client, "application/x-ndjson", "identity", spaced.into_bytes()).await.expect(200);
    assert_eq!((&taken["duplicates"], &taken["rejected"][0]["index"], &taken["rejected"][1]), (&json!(1), &json!(3), &json!(null)));
    // A sender whose clock is a day behind.
    let request = client.request(Method::POST, "/v1/events").header("X-Sent-At", "2026-11-20T12:07:00Z");
    let late = json!({"events": [run(7, "2026-11-20T12:06:00Z", "bob", &json!({}))]});
    assert_eq!(client.send(request.json(&late)).await.expect(200)["accepted"], 1);
    let answer = client.get("/v1/analytics/runs?from=2026-11-21&granularity=hour").await.expect(200);
    assert_eq!(answer["groups"][0]["total"]["count"], 4, "{answer}");
    assert_eq!(answer["groups"][0]["points"][12]["value"], 4.0, "{answer}");
    for (media, encoding, body, status, code) in [
        ("text/plain", "identity", b"{}".to_vec(), 415, "content_type_unsupported"),
        ("application/json", "br", b"{}".to_vec(), 415, "content_type_unsupported"),
        ("application/json", "gzip", b"{}".to_vec(), 400, "body_incomplete"),
        ("application/json", "gzip", gzip(&vec![b' '; 20_000_000]), 413, "body_too_large"),
        ("application/json", "identity", b"{\"events\": []}".to_vec(), 422, "validation_failed"),
        ("application/json", "identity", b"{\"events\": [".to_vec(), 400, "json_malformed"),
        ("application/json", "identity", vec![b' '; 9_000_000], 413, "body_too_large"),
        ("application/x-ndjson", "gzip", gzip("{}\n".repeat(5_001).as_bytes()), 422, "validation_failed"),
    ] {
        packed(&client, media, encoding, body).await.problem(status, code);
    }
    assert_eq!(world.number("SELECT count(*) FROM event").await, 4);
}

#[tokio::test]
async fn numbers_are_shown_by_period_and_group_beside_those_before() {
    let (world, clock) = World::start_at(NOW, |api| api).await;
    let client = world.tenant_of("forge", MANIFEST).await;
    let stranger = world.tenant_of("globex", &MANIFEST.replace("forge", "globex")).await;
    let mut events = Vec::new();
    for (number, (time, user, model, tokens, score, status, ms)) in [
        // In Kathmandu the 20th begins at 18:15 of the 19th.
        ("2026-11-19T18:14:59Z", "ada", "a", 10.0, 80.0, "ok", 100.0),
        ("2026-11-19T18:15:00Z", "ada", "a", 20.5, 90.0, "ok", 200.0),
        ("2026-11-20T05:00:00Z", "bob", "b", 1.0, 50.5, "bad", 300.0),
        ("2026-11-21T12:00:00Z", "bob", "c", 2.0, 60.0, "ok", 400.0),
        ("2026-11-16T12:00:00Z", "eve", "a", 61.0, 10.0, "ok", 50.0),
    ]
    .into_iter()
    .enumerate()
    {
        events.push(run(number, time, user, &json!({"model": model, "tokens": tokens, "score": score, "status": status, "ms": ms})));
    }
    assert_eq!(send(&client, &events).await["accepted"], 5);
    let read = async |path: &str| client.get(&format!("/v1/analytics/{path}")).await.expect(200);
    let days = "from=2026-11-18&to=2026-11-22&tz=Asia/Kathmandu";
    for _ in 0..2 {
        let runs = read(&format!("runs?{days}")).await;
        assert_eq!(values(&runs, 0), [0, 1, 2, 1].map(|count| json!(f64::from(count))), "{runs}");
        assert_eq!(
            (&runs["time_zone"], &runs["from"], &runs["granularity"]),
            (&json!("Asia/Kathmandu"), &json!("2026-11-17T18:15:00Z"), &json!("day"))
        );
        assert_eq!(runs["as_of"], "2026-11-21T12:07:00Z");
        assert_eq!(values(&read(&format!("score?{days}")).await, 0), [json!(null), json!(80.0), json!(70.25), json!(60.0)]);
        assert_eq!(values(&read(&format!("success?{days}")).await, 0), [json!(null), json!(1.0), json!(0.5), json!(1.0)]);
        let people = read(&format!("people?{days}")).await;
        assert_eq!(
            (values(&people, 0), &people["groups"][0]["total"]["value"]),
            ([0, 1, 2, 1].map(|count| json!(f64::from(count))).to_vec(), &json!(2.0))
        );
        let times = read(&format!("times?{days}")).await;
        let p99 = times["groups"][0]["total"]["percentiles"]["p99"].as_f64().unwrap();
        assert!((p99 - 400.0).abs() <= 4.0, "{times}");
        let grouped = read(&format!("tokens?{days}&group_by=model&top=1&compare=previous")).await;
        let groups = grouped["groups"].as_array().unwrap();
        assert_eq!(
            (groups.len(), &groups[0]["labels"], &groups[0]["total"]["value"]),
            (2, &json!({"model": "a"}), &json!(30.5)),
            "{grouped}"
        );
        assert_eq!(
            (&groups[1]["other"], &groups[1]["total"]["value"], values(&grouped, 1)),
            (&json!(true), &json!(3.0), [0.0, 0.0, 1.0, 2.0].map(|v| json!(v)).to_vec())
        );
        assert_eq!((&groups[0]["change"], &grouped["previous"]["groups"][0]["total"]["value"]), (&json!(-0.5), &json!(61.0)), "{grouped}");
        assert_eq!(grouped["previous"]["from"], "2026-11-13T18:15:00Z");
        let both = read(&format!("runs?{days}&group_by=user,model")).await;
        assert_eq!(both["groups"][0]["labels"], json!({"user": "ada", "model": "a"}), "{both}");
        let week = read("tokens?from=2026-11-16&to=2026-11-22&granularity=week").await;
        assert_eq!(values(&week, 0), [json!(94.5)]);
        // Again, put together.
        let _worker = world.start_worker(clock.launch()).await;
        until("it is put together", async || match world.number("SELECT count(*) FROM metric_partial").await {
            0 => Ok(()),
            left => Err(left),
        })
        .await;
    }
    let view = client.get("/v1/analytics/views/performance?to=2026-11-22").await.expect(200);
    let panels: Vec<_> = view["panels"].as_array().unwrap().iter().map(|panel| panel["metric"].as_str().unwrap()).collect();
    assert_eq!((panels, &view["title"]), (vec!["tokens", "times", "runs"], &json!("Performance")));
    assert_eq!(
        (view["panels"][0]["groups"].as_array().unwrap().len(), view["panels"][2]["groups"][0]["points"].as_array().unwrap().len()),
        (2, 3),
        "{view}"
    );
    assert!(view["panels"][0]["previous"].is_object());

    // Whoever has it is told so. What is over may be five minutes old; what has the present in it is not.
    let answer = client.get(&format!("/v1/analytics/runs?{days}")).await;
    let tag = answer.header("etag").to_owned();
    let again = async |path: &str, tag: &str| client.send(client.request(Method::GET, path).header("If-None-Match", tag)).await;
    let path = format!("/v1/analytics/runs?{days}");
    assert_eq!(again(&path, &tag).await.status, 304);
    let over = "/v1/analytics/runs?from=2026-11-18&to=2026-11-20";
    // What is not whole is not kept: in a moment it is another.
    assert_eq!(client.get(over).await.expect(200)["is_whole"], false);
    world.execute("UPDATE metric_series SET is_whole = true").await;
    let kept = client.get(over).await;
    let said = kept.expect(200);
    assert_eq!((&said["groups"][0]["total"]["value"], &said["is_whole"]), (&json!(2.0), &json!(true)));
    send(&client, &[run(90, "2026-11-21T12:05:00Z", "ada", &json!({})), run(91, "2026-11-19T12:00:00Z", "ada", &json!({}))]).await;
    assert_eq!(again(&path, &tag).await.expect(200)["groups"][0]["total"]["count"], 6);
    assert_eq!(again(over, kept.header("etag")).await.status, 304);

    // Each sees its own.
    let theirs = stranger.get(over).await.expect(200);
    assert_eq!(theirs["groups"][0]["total"]["value"], 0.0);
    let ada = client.acting_for("ada");
    assert_eq!(ada.get(&path).await.expect(200)["groups"][0]["total"]["count"], 4);
    ada.get("/v1/analytics/tokens").await.problem(404, "metric_not_found");
    let token = client.post("/v1/tokens", &json!({"user": "bob"})).await.expect(201)["token"].as_str().unwrap().to_owned();
    let bob = client.with_key(&token);
    let own = bob.get(&format!("{path}&group_by=user,model")).await.expect(200);
    assert!(
        own["groups"].as_array().unwrap().iter().all(|group| group["labels"]["user"] == "bob") && !own.to_string().contains("ada"),
        "{own}"
    );
    let catalogue = bob.get("/v1/analytics").await.expect(200);
    assert_eq!((catalogue["metrics"].as_array().unwrap().len(), &catalogue["views"][0]["metrics"]), (1, &json!(["runs"])), "{catalogue}");
    assert_eq!(bob.get("/v1/analytics/views/performance").await.expect(200)["panels"].as_array().unwrap().len(), 1);
    bob.post("/v1/events", &json!({"events": []})).await.problem(403, "token_not_allowed");
}

#[tokio::test]
async fn a_tag_is_named_in_a_list_weak_or_not_or_by_whatever_there_is() {
    let (_world, _clock, client) = forge().await;
    assert_eq!(send(&client, &[run(1, NOW, "ada", &json!({}))]).await["accepted"], 1);
    let path = "/v1/analytics/runs";
    let tag = client.get(path).await.header("etag").to_owned();
    let again = async |path: &str, tag: &str| client.send(client.request(Method::GET, path).header("If-None-Match", tag)).await;
    // RFC 9110 §13.1.2; there is nothing of what is not there.
    let strong = tag.strip_prefix("W/").unwrap().to_owned();
    for (named, status) in [
        (format!("\"other\", {tag}"), 304),
        (format!("\"oth,er\",{strong} , W/\"more\""), 304),
        ("*".to_owned(), 304),
        ("\"other\", W/\"more\"".to_owned(), 200),
        (strong.replace('"', ""), 200),
    ] {
        let answer = again(path, &named).await;
        assert_eq!((answer.status, answer.header("etag")), (status, tag.as_str()), "{named}");
    }
    assert_eq!(again("/v1/analytics/nothing", "*").await.status, 404);
}

#[tokio::test]
async fn what_can_not_be_read_is_said() {
    let (_world, _clock, client) = forge().await;
    for (query, code) in [
        ("runs?tz=Mars", "query_invalid"),
        ("runs?group_by=colour", "query_invalid"),
        ("runs?top=0", "query_invalid"),
        ("runs?from=2026-11-22&to=2026-11-21", "query_invalid"),
        ("runs?from=2026-01-01&granularity=quarter_hour", "query_invalid"),
        ("views/performance?top=3", "query_invalid"),
    ] {
        client.get(&format!("/v1/analytics/{query}")).await.problem(400, code);
    }
    client.get("/v1/analytics/nothing").await.problem(404, "metric_not_found");
    client.get("/v1/analytics/views/nothing").await.problem(404, "view_not_found");
}

/// A metric of the last 30 days, today among them.
async fn total(client: &Client, metric: &str) -> Value {
    client.get(&format!("/v1/analytics/{metric}")).await.expect(200)["groups"][0]["total"]["value"].clone()
}

async fn forge() -> (World, SetClock, Client) {
    let (world, clock) = World::start_at(NOW, |api| api).await;
    let client = world.tenant_of("forge", MANIFEST).await;
    (world, clock, client)
}

#[tokio::test]
async fn a_new_metric_counts_what_was_before_and_a_rebuild_repairs() {
    let (world, clock, client) = forge().await;
    let _worker = world.start_worker(clock.launch()).await;
    let events: Vec<Value> =
        (0..500).map(|n| run(n, &format!("2026-11-{:02}T10:00:00Z", 1 + n % 20), "ada", &json!({"tokens": n, "size": 3}))).collect();
    assert_eq!(send(&client, &events).await["accepted"], 500);
    // A name that is a word of addresses too.
    let more = "\n[metrics.size]\nevent = \"run\"\naggregate = \"sum\"\nvalue = \"size\"\n[metrics.views]\nevent = \"run\"\naggregate = \"count\"\n";
    world.tenant_of("forge", &format!("{MANIFEST}{more}")).await;
    until("the new metric is known", async || match client.get("/v1/analytics/size").await {
        answer if answer.status == 200 => Ok(()),
        answer => Err(answer.status),
    })
    .await;
    until("a job is to count its past", async || {
        match world.number("SELECT count(*) FROM metric_series WHERE metric = 'size' AND rebuild IS NOT NULL").await {
            1 => Ok(()),
            none => Err(none),
        }
    })
    .await;
    assert_eq!(client.get("/v1/analytics/size").await.expect(200)["is_whole"], false);
    assert_eq!(send(&client, &[run(501, NOW, "ada", &json!({"size": 3}))]).await["accepted"], 1);
    clock.advance(chrono::TimeDelta::seconds(100));
    until("its past is counted", async || {
        let answer = client.get("/v1/analytics/size").await.expect(200);
        if answer["is_whole"] == true { Ok(()) } else { Err(answer["groups"][0]["total"].clone()) }
    })
    .await;
    assert_eq!(total(&client, "size").await, 1_503.0);

    // Somebody broke it; nothing else knows of it but the raw events.
    until("the past of all metrics is counted", async || {
        match world.number("SELECT count(*) FROM metric_series WHERE NOT is_whole").await {
            0 => Ok(()),
            left => Err(left),
        }
    })
    .await;
    until("all is put together", async || match world.number("SELECT count(*) FROM metric_partial").await {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
    assert!(world.execute("DELETE FROM metric_day WHERE day > '2026-11-05'").await > 0);
    assert_ne!(total(&client, "tokens").await, 124_750.0);
    let job = client.post("/v1/analytics/tokens/rebuild", &json!({"from": "2026-11-03", "to": "2026-11-30"})).await.expect(202);
    let done = client.succeeded(&id_of(&job)).await;
    assert_eq!((&done["result"]["days"], &done["result"]["events"]), (&json!(19), &json!(450)), "{done}");
    assert_eq!(total(&client, "tokens").await, 124_750.0);
    let views = id_of(&client.post("/v1/analytics/views/rebuild", &json!({"from": "2026-11-03", "to": "2026-11-03"})).await.expect(202));
    assert_eq!(client.succeeded(&views).await["result"]["events"], 25);
    client.get("/v1/analytics/views/rebuild").await.problem(404, "view_not_found");
    client.post("/v1/analytics/nothing/rebuild", &json!({})).await.problem(404, "metric_not_found");
    client.post("/v1/analytics/tokens/rebuild", &json!({"from": "2026-11-03", "to": "2026-11-02"})).await.problem(422, "validation_failed");
    client.acting_for("ada").post("/v1/analytics/tokens/rebuild", &json!({})).await.problem(403, "backend_only");
}

#[tokio::test]
async fn of_who_is_erased_nothing_is_left_but_what_all_came_to() {
    let (world, clock, client) = forge().await;
    let events = [
        run(1, NOW, "ada", &json!({"model": "a"})),
        run(2, NOW, "bob", &json!({"model": "a"})),
        run(3, "2026-11-01T00:00:00Z", "ada", &json!({})),
    ];
    assert_eq!(send(&client, &events).await["accepted"], 3);
    // Of a time that is over too: answers of which others are kept for a while.
    let over = "/v1/analytics/runs?from=2026-11-01&to=2026-11-03";
    let grouped_over = format!("{over}&group_by=user");
    assert!(client.get(&grouped_over).await.text().contains("ada"));
    let ada = client.acting_for("ada");
    assert_eq!(ada.get(over).await.expect(200)["groups"][0]["total"]["count"], 1);
    let erasure = id_of(&client.delete("/v1/users/ada").await.expect(202));
    // From now on: neither shown, though nothing is put together yet, nor taken.
    let grouped = "/v1/analytics/runs?group_by=user";
    assert!(!client.get(grouped).await.text().contains("ada"));
    assert!(!client.get(&grouped_over).await.text().contains("ada"));
    let own = ada.get(over).await;
    assert!(own.status != 200 || own.json()["groups"][0]["total"]["count"] == 0, "{}", own.text());
    let more = send(&client, &[run(4, NOW, "ada", &json!({})), run(5, NOW, "bob", &json!({}))]).await;
    assert_eq!(
        (&more["accepted"], &more["rejected"][0]["code"], &more["rejected"][0]["index"]),
        (&json!(1), &json!("user_being_erased"), &json!(0))
    );
    let _worker = world.start_worker(clock.launch()).await;
    client.succeeded(&erasure).await;
    for statement in [
        "SELECT count(*) FROM event WHERE user_id = 'ada'",
        "SELECT count(*) FROM metric_day WHERE user_id = 'ada' OR labels LIKE '%ada%' OR position('ada'::bytea IN body) > 0",
        "SELECT count(*) FROM metric_partial WHERE position('ada'::bytea IN body) > 0",
    ] {
        assert_eq!(world.number(statement).await, 0, "{statement}");
    }
    assert_eq!(world.number("SELECT count(*) FROM event").await, 2);
    assert_eq!(total(&client, "runs").await, 4.0, "what all came to names nobody");
}

#[tokio::test]
async fn a_backlog_of_what_is_put_together_passes() {
    let (world, _clock, client) = forge().await;
    assert_eq!(send(&client, &[run(1, NOW, "ada", &json!({"tokens": 3}))]).await["accepted"], 1);
    let more = "INSERT INTO metric_partial (tenant_id, series, taken_at, body)
        SELECT tenant_id, series, taken_at, convert_to(repeat('x', 1048576), 'UTF8') FROM metric_partial, generate_series(1, 33)";
    world.execute(more).await;
    let refused = client.get("/v1/analytics/tokens").await;
    refused.problem(503, "overloaded");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() > 0);
    world.execute("DELETE FROM metric_partial WHERE octet_length(body) = 1048576").await;
    assert_eq!(total(&client, "tokens").await, 3.0);
}

#[tokio::test]
async fn what_has_had_its_time_goes_and_what_others_keep_stays() {
    let (world, clock, client) = forge().await;
    let short = world
        .tenant_of(
            "brief",
            &MANIFEST.replace("forge", "brief").replace("[metrics.runs]", "[events]\nkeep_days = 2\nkeep_rollups_days = 2\n[metrics.runs]"),
        )
        .await;
    for (id, (client, day)) in
        [(&client, "2026-11-18"), (&client, "2026-11-19"), (&short, "2026-11-20"), (&short, "2026-11-19")].into_iter().enumerate()
    {
        assert_eq!(send(client, &[run(id, &format!("{day}T01:00:00Z"), "ada", &json!({}))]).await["accepted"], 1);
    }
    clock.advance(chrono::TimeDelta::days(1));
    let _worker = world.start_worker(clock.launch()).await;
    let events_of = |name: &str| format!("SELECT count(*) FROM event e JOIN tenant t ON t.id = e.tenant_id WHERE t.name = '{name}'");
    until("what the brief one keeps no longer is gone", async || match world.number(events_of("brief")).await {
        1 => Ok(()),
        left => Err(left),
    })
    .await;
    assert_eq!(world.number(events_of("forge")).await, 2);
    let partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'event'::regclass";
    until("days are made ahead", async || match world.number(partitions).await {
        many if many >= 8 => Ok(()),
        few => Err(few),
    })
    .await;
}
