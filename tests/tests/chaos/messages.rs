//! Issue 7, show 5: `kill -9` of workers in the middle of mails and pushes. None is lost; what came twice came in the window between the
//! sending and its receipt, as the same message (one Message-ID and the same bytes, one Topic and one id), and is listed as `unknown`.

use std::collections::{BTreeMap, BTreeSet};

use acceptance::{World, id_of, until_within};
use futures_util::{StreamExt, stream};
use sandbox::{Launch, services::mail::Mail};
use serde_json::{Value, json};

use crate::{
    arena::LONG,
    report::Report,
    seed::{Seed, size},
};

/// Requests at a time while the messages are being asked for.
const AT_ONCE: usize = 8;

/// What is not at its end, and why it was not before.
const OPEN: &str = "SELECT coalesce(string_agg(format('%s: state %s, reason %s, attempt %s, run %s, crashes %s, due %s, %s', j.kind, s.state, s.reason, s.attempt,
                            s.runs, s.crashes, s.run_at, (SELECT string_agg(a::text, ' ') FROM job_attempt a WHERE a.job_id = s.job_id)), E'\n'), '')
                    FROM job_state s JOIN job j ON j.id = s.job_id WHERE s.state < 3";

const MANIFEST: &str = "[tenant]\nname = \"shop\"\n[mail]\nserver_env = \"OFFSTAGE_SMTP_URL\"\n\
                        from = { email = \"no-reply@shop.example\", name = \"The Shop\" }\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages() {
    let seed = Seed::of("messages");
    let mut chance = seed.chance(1);
    let (count, kills) = (size(40, 5_000), size(3, 40));
    let world = World::start().await;
    let shop = world.tenant_of("shop", MANIFEST).await;
    let key = shop.get("/v1/push/key").await.expect(200)["key"].as_str().expect("a key").to_owned();

    // All of it waits before a worker is there.
    let asked: Vec<(String, String)> = stream::iter(0..count)
        .map(|number| {
            let (world, shop, key) = (&world, &shop, &key);
            async move {
                let mail = json!({"to": {"email": format!("person-{number}@example.com")}, "subject": "Your order", "text": "On its way.", "category": "orders"});
                let mail = id_of(&shop.post("/v1/emails", &mail).await.expect(202));
                let user = format!("user-{number}");
                let browser = world.sandbox.push.subscribe(Some(key)).expect("a browser");
                let subscription = json!({"endpoint": browser.endpoint, "keys": {"p256dh": browser.p256dh, "auth": browser.auth}});
                shop.acting_for(&user).post("/v1/push/subscriptions", &subscription).await.expect(200);
                let push = json!({"user": user, "title": "On its way", "tag": "order"});
                (mail, id_of(&shop.post("/v1/pushes", &push).await.expect(202)))
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let (mails, pushes): (BTreeSet<String>, BTreeSet<String>) = asked.into_iter().unzip();

    // Few at a time where there are few, or all would be on their way at once.
    let slots = size("email=4,push=4", "email=32,push=64");
    let worker = async || world.start_worker(Launch::new().env("OFFSTAGE_CONCURRENCY", slots)).await;
    let workers = [worker().await, worker().await];
    let mut hits = 0;
    let arrived = || world.sandbox.mail.mails().len() + world.sandbox.push.messages().len();
    for kill in 1..=kills {
        // Spread over what there is to send, the last one before its end.
        let due = 2 * count * kill / (kills + 1);
        until_within(LONG, "as many have arrived", async || if arrived() >= due { Ok(()) } else { Err(arrived()) }).await;
        tokio::time::sleep(chance.milliseconds(0..=30)).await;
        let victim = chance.choose(&workers);
        until_within(LONG, "who was killed before runs again", async || victim.pid().ok_or("not yet")).await;
        hits += usize::from(victim.kill9().await.expect("a kill").is_some());
    }
    // A mail that was not taken is tried again after five minutes, so one of many may need them.
    let patience = size(LONG, 3 * LONG);
    until_within(patience, "every job is at its end", async || match world.text(OPEN).await {
        none if none.is_empty() => Ok(()),
        open => Err(open),
    })
    .await;

    let mut report = Report::of("messages", "kill -9 in the middle of mails and pushes", &seed);
    report.line("mails, pushes", format!("{count}, {count}"));
    report.line("kills of two workers", hits);
    let succeeded = world.number("SELECT count(*) FROM job_state WHERE state = 3").await;
    report.line("jobs that succeeded", succeeded);
    assert_eq!(succeeded, i64::try_from(2 * count).expect("a count"), "every one");
    assert_eq!(hits, kills, "every kill hit");
    let listed = world.text("SELECT coalesce(string_agg(DISTINCT job_id::text, ','), '') FROM effect WHERE state = 2").await;
    let listed: BTreeSet<String> = listed.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect();

    let mut copies: BTreeMap<String, Vec<Mail>> = BTreeMap::new();
    for mail in world.sandbox.mail.mails() {
        copies.entry(job_of(&mail)).or_default().push(mail);
    }
    for (job, mails) in &copies {
        assert!(mails.iter().all(|mail| mail.bytes == mails[0].bytes), "{job}: a second copy differs");
    }
    judge("mails", &mails, &copies, &listed, &mut report);
    let mut copies: BTreeMap<String, Vec<Option<String>>> = BTreeMap::new();
    for message in world.sandbox.push.messages() {
        let said: Value = serde_json::from_slice(&message.payload).expect("what a browser reads");
        copies.entry(id_of(&said)).or_default().push(message.topic);
    }
    for (job, topics) in &copies {
        assert!(
            topics.iter().all(|topic| topic.is_some() && *topic == topics[0]),
            "{job}: a second copy stands beside the first: {topics:?}"
        );
    }
    judge("pushes", &pushes, &copies, &listed, &mut report);
}

/// Each arrived, and what did so twice is listed.
fn judge<C>(what: &str, asked: &BTreeSet<String>, copies: &BTreeMap<String, Vec<C>>, listed: &BTreeSet<String>, report: &mut Report) {
    let lost: Vec<_> = asked.iter().filter(|job| !copies.contains_key(*job)).collect();
    let strange: Vec<_> = copies.keys().filter(|job| !asked.contains(*job)).collect();
    let doubled: BTreeSet<_> = copies.iter().filter(|(_, copies)| copies.len() > 1).map(|(job, _)| job.clone()).collect();
    let unlisted: Vec<_> = doubled.difference(listed).collect();
    report.line(format!("{what} lost"), lost.len());
    report.line(
        format!("{what} that came twice, of them not listed as unknown; listed"),
        format!("{}, {}; {}", doubled.len(), unlisted.len(), asked.intersection(listed).count()),
    );
    assert!(lost.is_empty() && strange.is_empty(), "{what}: lost {lost:?}, never asked for {strange:?}");
    assert!(unlisted.is_empty(), "{what}: came twice and are not listed: {unlisted:?}");
}

/// The job that a mail's Message-ID names.
fn job_of(mail: &Mail) -> String {
    let text = String::from_utf8_lossy(&mail.bytes);
    let line = text.lines().find_map(|line| line.strip_prefix("Message-ID: <")).expect("a Message-ID");
    line.split('@').next().expect("its first part").to_owned()
}
