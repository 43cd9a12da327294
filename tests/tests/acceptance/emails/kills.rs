//! `kill -9` in the middle of mails and pushes: none is lost, and what came twice is known as one, and listed. A few here; thousands are the
//! same by `KILLED_MESSAGES=5000`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use acceptance::{World, id_of, until_within};
use base64::{Engine, prelude::BASE64_STANDARD};
use sandbox::Process;
use serde_json::{Value, json};

use super::{judge, manifest};

/// Takeovers need some seconds of silence each.
const LONG: Duration = Duration::from_secs(180);

fn messages() -> usize {
    std::env::var("KILLED_MESSAGES").ok().and_then(|number| number.parse().ok()).unwrap_or(60)
}

/// The jobs whose effects the ledger lists as unknown.
async fn listed(world: &World) -> BTreeSet<String> {
    let listed = world.text("SELECT coalesce(string_agg(DISTINCT job_id::text, ','), '') FROM effect WHERE state = 2").await;
    listed.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect()
}

/// Kills the worker once so many have arrived; the one that follows it, where it had just gone.
async fn killed_at(worker: &Process, part: usize, arrived: impl Fn() -> usize) {
    until_within(LONG, "some have arrived, and a worker is killed", async || match arrived() {
        few if few < part => Err(format!("{few} of {part} have arrived")),
        _ => worker.kill9().await.unwrap().map(drop).ok_or_else(|| "no worker runs just now".to_owned()),
    })
    .await;
}

async fn all_succeeded(world: &World, count: usize) {
    const OPEN: &str = "SELECT coalesce(string_agg(s.job_id || ': state ' || s.state || ', ' || coalesce(
            (SELECT string_agg(concat_ws(' ', a.outcome, a.error), '; ' ORDER BY a.run) FROM job_attempt a WHERE a.job_id = s.job_id),
            'no run'), chr(10)), '')
        FROM job_state s WHERE s.state < 3";
    until_within(LONG, "every job is at its end", async || match world.text(OPEN).await {
        none if none.is_empty() => Ok(()),
        open => Err(open),
    })
    .await;
    assert_eq!(world.number("SELECT count(*) FROM job_state WHERE state = 3").await, i64::try_from(count).unwrap(), "every one succeeded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mails_outlive_kills_and_what_came_twice_is_listed() {
    let count = messages();
    let world = World::start_with(super::environment(sandbox::Launch::new())).await;
    let shop = world.tenant_of("shop", &manifest("shop")).await;
    let mut ids = BTreeSet::new();
    for number in 0..count {
        let mut email = super::to(&format!("person-{number}@example.com"));
        email["run_at"] = json!(world.now().await + chrono::TimeDelta::seconds(2));
        ids.insert(id_of(&shop.post("/v1/emails", &email).await.expect(202)));
    }
    let worker = world.start_worker(super::environment(sandbox::Launch::new())).await;
    let server = &world.sandbox.mail;
    for part in [count / 4, count / 2] {
        killed_at(&worker, part, || server.mails().len()).await;
    }
    all_succeeded(&world, count).await;

    // Which mail is which, by Python.
    let script = "import base64, email, email.policy, sys\n\
        for line in sys.stdin:\n\
        \tmail = email.message_from_bytes(base64.b64decode(line), policy=email.policy.default)\n\
        \tprint(mail['message-id'])";
    let mails: Vec<String> = server.mails().iter().map(|mail| BASE64_STANDARD.encode(&mail.bytes)).collect();
    let mut copies: BTreeMap<String, usize> = BTreeMap::new();
    for message_id in String::from_utf8(judge(&[], script, &[], mails.join("\n").as_bytes())).unwrap().lines() {
        let id = message_id.trim_start_matches('<').split('@').next().unwrap().to_owned();
        *copies.entry(id).or_default() += 1;
    }
    assert_eq!(copies.keys().cloned().collect::<BTreeSet<_>>(), ids, "none is lost, and none is anybody else's");
    let twice: BTreeSet<_> = copies.into_iter().filter(|(_, copies)| *copies > 1).map(|(id, _)| id).collect();
    let listed = listed(&world).await;
    println!("{count} mails, two kills: {} came twice, {} are listed as unknown", twice.len(), listed.len());
    assert!(twice.is_subset(&listed), "{twice:?} {listed:?}");
    let repeated = "SELECT count(*) FROM delivery WHERE state = 'sent' AND repeated";
    assert!(world.number(repeated).await >= i64::try_from(twice.len()).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_outlive_kills_and_what_came_twice_is_listed() {
    let count = messages();
    let world = World::start().await;
    let client = &world.client;
    let mut ids = BTreeSet::new();
    for number in 0..count {
        let user = format!("user-{number}");
        crate::pushes::register(&world, client, &user).await;
        let push = json!({"user": user, "title": "Hello", "run_at": world.now().await + chrono::TimeDelta::seconds(2)});
        ids.insert(id_of(&client.post("/v1/pushes", &push).await.expect(202)));
    }
    let worker = world.worker().await;
    let service = &world.sandbox.push;
    for part in [count / 4, count / 2] {
        killed_at(&worker, part, || service.messages().len()).await;
    }
    all_succeeded(&world, count).await;
    let mut copies: BTreeMap<String, usize> = BTreeMap::new();
    let mut topics: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for message in service.messages() {
        let said: Value = serde_json::from_slice(&message.payload).unwrap();
        *copies.entry(id_of(&said)).or_default() += 1;
        topics.entry(id_of(&said)).or_default().insert(message.topic.expect("a topic"));
    }
    assert!(topics.values().all(|topics| topics.len() == 1), "a second copy takes the place of one that was not fetched yet");
    assert_eq!(copies.keys().cloned().collect::<BTreeSet<_>>(), ids, "none is lost, and none is anybody else's");
    let twice: BTreeSet<_> = copies.into_iter().filter(|(_, copies)| *copies > 1).map(|(id, _)| id).collect();
    let listed = listed(&world).await;
    println!("{count} pushes, two kills: {} came twice, {} are listed as unknown", twice.len(), listed.len());
    assert!(twice.is_subset(&listed), "{twice:?} {listed:?}");
}
