//! What is gathered to a digest, sent once; and what is not sent because there has been enough.

use acceptance::until;
use chrono::TimeDelta;
use serde_json::{Value, json};

use super::Community;
use crate::pushes::register;

fn reply(number: usize) -> Value {
    json!({"type": "reply", "to": {"user": "ada"}, "title": format!("Reply {number}"), "digest_key": "post-1"})
}

#[tokio::test]
async fn a_digest_is_sent_once_when_its_window_closes() {
    let community = Community::start().await;
    let (client, world) = (&community.client, &community.world);
    community.put("ada", json!({})).await;
    let (browser, _) = register(world, client, "ada").await;
    for number in 0..3 {
        let told = community.tell(&reply(number)).await;
        assert_eq!((&told["gathered"], &told["pushes"], &told["in_app"]), (&json!(1), &json!(0), &json!(1)), "{told}");
        community.clock.advance(TimeDelta::minutes(10));
    }
    assert!(community.shown(&browser).is_empty());
    assert_eq!(world.number("SELECT count FROM notification_digest").await, 3);
    community.clock.advance(TimeDelta::minutes(31));
    let shown = community.shows(&browser, 1).await;
    assert_eq!((&shown[0]["title"], &shown[0]["body"]), (&json!("3 replies"), &json!("Reply 0\nReply 1\nReply 2")));
    // What comes later begins another.
    community.tell(&reply(3)).await;
    community.clock.advance(TimeDelta::minutes(61));
    assert_eq!(community.shows(&browser, 2).await[1]["title"], "1 replies");
    assert_eq!(world.number("SELECT count(*) FROM notification_digest").await, 0);
}

/// Items that come while digests are closed, and closed by two workers: each is in one digest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_item_is_in_one_digest_however_they_race() {
    const ITEMS: usize = 60;
    let community = Community::start().await;
    let (client, world) = (&community.client, &community.world);
    community.put("ada", json!({})).await;
    register(world, client, "ada").await;
    let _second = world.start_worker(community.clock.launch()).await;
    let telling = async {
        for number in 0..ITEMS {
            client.post("/v1/notifications", &reply(number)).await.expect(202);
            if number % 10 == 9 {
                // Digests fall due in the middle of it.
                community.clock.advance(TimeDelta::minutes(61));
            }
        }
    };
    telling.await;
    let ended = async |kinds: &str| {
        let open = format!("SELECT count(*) FROM job j JOIN job_state s ON s.job_id = j.id WHERE s.state < 3 AND j.kind LIKE '{kinds}'");
        until("all have ended", async || match world.number(open.as_str()).await {
            0 => Ok(()),
            open => Err(open),
        })
        .await;
    };
    ended("notification.fan_out").await;
    community.clock.advance(TimeDelta::minutes(61));
    ended("%").await;
    let items = "SELECT coalesce(sum((r.result ->> 'items')::int), 0) FROM job j JOIN job_result r ON r.job_id = j.id WHERE j.kind = 'notification.digest'";
    assert_eq!(world.number(items).await, i64::try_from(ITEMS).unwrap());
    let digests = "SELECT count(*) FROM job WHERE kind = 'notification.digest'";
    let pushes = "SELECT count(*) FROM job WHERE kind = 'push.send'";
    assert_eq!(world.number(digests).await, world.number(pushes).await, "each is sent once");
    assert_eq!(world.number("SELECT count(*) FROM notification WHERE owner = 'ada'").await, i64::try_from(ITEMS).unwrap());
}

#[tokio::test]
async fn no_more_is_sent_than_the_type_allows() {
    let community = Community::start().await;
    community.put("ada", json!({})).await;
    let (browser, _) = register(&community.world, &community.client, "ada").await;
    let nudge = json!({"type": "nudge", "to": {"user": "ada"}, "title": "Come back"});
    community.tell(&nudge).await;
    community.shows(&browser, 1).await;
    community.tell(&nudge).await;
    community.logged("ada", "push", "throttled").await;
    community.clock.advance(TimeDelta::minutes(61));
    community.tell(&nudge).await;
    community.shows(&browser, 2).await;
    assert_eq!(community.inbox("ada").await["items"], json!([]), "a type that is pushed alone");
}
