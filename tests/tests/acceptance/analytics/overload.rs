//! More events than the door takes at a time: each request is taken or told to come back, what is under way stays bounded, and nothing that
//! was taken is lost or counted twice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use acceptance::{Client, World, until};
use bytes::Bytes;
use reqwest::Method;
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{NOW, run, send};

/// One metric: what is counted is not what this is about.
const MANIFEST: &str = "[tenant]\nname = \"flood\"\n[metrics.runs]\nevent = \"run\"\naggregate = \"count\"\n";

/// Different bodies, of so many events of a good kilobyte each, and how many clients send each of them.
const BODIES: usize = 8;
const EVENTS: usize = 5_000;
const CLIENTS_OF_BODY: usize = 6;

/// As documented: what may be under way, and what it may take beside what the program has at rest. Bodies are read into some five times as much,
/// and freed memory is not given back at once.
const UNDER_WAY: f64 = 48.0 * 1024.0 * 1024.0;
const MOST_KILOBYTES: u64 = 700 * 1024;

#[derive(Debug, Default)]
struct Answers {
    taken: AtomicU64,
    accepted: AtomicU64,
    refused: AtomicU64,
    /// Connections that broke off: a refusal may come before the body was read, and find nobody who listens.
    broken: AtomicU64,
}

fn body(number: usize) -> Bytes {
    let filler = "x".repeat(1_000);
    let lines = (0..EVENTS).map(|event| {
        let event = run(number * EVENTS + event, "2026-11-21T12:00:00Z", "ada", &json!({"filler": filler}));
        format!("{event}\n")
    });
    Bytes::from(lines.collect::<String>())
}

/// Sends a body until it is taken.
async fn until_taken(client: Client, body: Bytes, answers: Arc<Answers>) {
    for _ in 0..2_000 {
        let request = client.request(Method::POST, "/v1/events").header("Content-Type", "application/x-ndjson").body(body.clone());
        let Ok(answer) = client.try_send(request).await else {
            answers.broken.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if answer.status == 200 {
            let said = answer.json();
            assert_eq!(said["accepted"].as_u64().unwrap() + said["duplicates"].as_u64().unwrap(), EVENTS as u64, "{said}");
            answers.taken.fetch_add(1, Ordering::Relaxed);
            answers.accepted.fetch_add(said["accepted"].as_u64().unwrap(), Ordering::Relaxed);
            return;
        }
        answer.problem(429, "ingest_overloaded");
        let seconds: u64 = answer.header("retry-after").parse().unwrap();
        assert!((1..=30).contains(&seconds), "{seconds}");
        answers.refused.fetch_add(1, Ordering::Relaxed);
        // Sooner than it was told to: what a bad client does is borne too.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("a body was never taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_refused_before_it_is_too_much_and_what_is_taken_counts_once() {
    let (world, clock) = World::start_at(NOW, |api| api).await;
    let client = world.tenant_of("flood", MANIFEST).await;
    let answers = Arc::new(Answers::default());
    let clients: Vec<_> = (0..BODIES)
        .map(body)
        .flat_map(|body| std::iter::repeat_n(body, CLIENTS_OF_BODY))
        .map(|body| tokio::spawn(until_taken(client.clone(), body, Arc::clone(&answers))))
        .collect();
    let over = Arc::new(AtomicBool::new(false));
    let most = async {
        let mut most = 0.0_f64;
        while !over.load(Ordering::Relaxed) {
            most = most.max(world.figure(&world.api, "offstage_events_bytes_under_way", &[]).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        most
    };
    let flood = async {
        for client in clients {
            client.await.unwrap();
        }
        over.store(true, Ordering::Relaxed);
    };
    let (most, ()) = tokio::join!(most, flood);
    let [taken, accepted, refused, broken] =
        [&answers.taken, &answers.accepted, &answers.refused, &answers.broken].map(|count| count.load(Ordering::Relaxed));
    println!("{taken} bodies taken, {refused} refused, {broken} broken off; at most {most} bytes under way");
    assert_eq!(taken, (BODIES * CLIENTS_OF_BODY) as u64);
    assert!(refused > 0, "it is a flood");
    assert!(most > 0.0 && most <= UNDER_WAY, "{most}");
    assert!(accepted <= (BODIES * EVENTS) as u64, "{accepted}: none was told twice to be new");
    if cfg!(target_os = "linux") {
        let status = std::fs::read_to_string(format!("/proc/{}/status", world.api.pid().unwrap())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        println!("the API's memory was at most {} MiB", peak / 1024);
        assert!(peak < MOST_KILOBYTES, "{peak} kB");
    }
    assert_eq!(world.api.starts(), 1, "it did not end");

    // Each is there and counted once; and the door is open.
    let all = (BODIES * EVENTS) as u64;
    assert_eq!(world.number("SELECT count(*) FROM event").await, i64::try_from(all).unwrap());
    let _worker = world.start_worker(clock.launch()).await;
    assert_eq!(client.get("/v1/analytics/runs").await.expect(200)["groups"][0]["total"]["count"], all);
    assert_eq!(send(&client, &[run(1_000_000, NOW, "ada", &json!({}))]).await["accepted"], 1);
    assert_eq!(client.get("/v1/analytics/runs").await.expect(200)["groups"][0]["total"]["count"], all + 1);
    assert!(world.figure(&world.api, "offstage_events_refused_total", &[]).await >= refused as f64);
}

#[tokio::test]
async fn who_sends_slowly_holds_up_nobody() {
    let (world, _clock) = World::start_at(NOW, |api| api).await;
    let slow = world.tenant_of("flood", MANIFEST).await;
    let other = world.tenant_of("other", &MANIFEST.replace("flood", "other")).await;
    let url = world.api.url();
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let mut connections = Vec::new();
    // As much as there may be is announced, or nothing is, and next to nothing comes.
    for (length, first) in [("Content-Length: 8388608", "{"), ("Transfer-Encoding: chunked", "1\r\n{\r\n")] {
        for _ in 0..8 {
            let mut connection = TcpStream::connect(address).await.unwrap();
            let head = format!(
                "POST /v1/events HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n{length}\r\n\r\n{first}",
                slow.key()
            );
            connection.write_all(head.as_bytes()).await.unwrap();
            connections.push(connection);
        }
    }
    let under_way = async || world.figure(&world.api, "offstage_events_bytes_under_way", &[]).await;
    until("all of them are under way", async || match under_way().await {
        bytes if bytes >= 16.0 * 1024.0 => Ok(()),
        bytes => Err(bytes),
    })
    .await;
    for (number, client) in [other, slow].iter().enumerate() {
        assert_eq!(send(client, &[run(number, NOW, "ada", &json!({}))]).await["accepted"], 1);
    }
    drop(connections);
    until("none of them is", async || match under_way().await {
        0.0 => Ok(()),
        bytes => Err(bytes),
    })
    .await;
}
