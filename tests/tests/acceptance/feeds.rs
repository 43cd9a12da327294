//! Feeds (R25): what users did comes to those who follow them and to themselves, newest first, polled by conditional requests.

use std::time::Duration;

use acceptance::{Client, World, id_of, until, until_within};
use reqwest::Method;
use serde_json::{Value, json};

/// Takeovers need some seconds of silence each.
const LONG: Duration = Duration::from_secs(180);

async fn did(client: &Client, actor: &str, verb: &str, object: &str) -> String {
    let activity =
        json!({"actor": actor, "verb": verb, "object": {"type": "prompt", "id": object}, "title": format!("{actor} {verb} {object}")});
    id_of(&client.post("/v1/activities", &activity).await.expect(202))
}

async fn feed(client: &Client, user: &str) -> Vec<String> {
    let page = client.acting_for(user).get("/v1/feed").await.expect(200);
    page["items"].as_array().unwrap().iter().map(id_of).collect()
}

async fn has(client: &Client, user: &str, expected: &[&String]) {
    until("the feed has it", async || {
        let feed = feed(client, user).await;
        if feed.iter().collect::<Vec<_>>() == expected { Ok(()) } else { Err(feed) }
    })
    .await;
}

async fn follows(client: &Client, user: &str, other: &str) {
    let put = client.send(client.request(Method::PUT, &format!("/v1/users/{user}/follows/{other}"))).await;
    assert_eq!(put.status, 204);
}

#[tokio::test]
async fn what_is_done_comes_to_followers_newest_first_and_nothing_new_costs_nothing() {
    let (world, _worker) = World::with_worker().await;
    let client = &world.client;
    for user in ["ada", "bob", "eve"] {
        client.put(&format!("/v1/users/{user}"), &json!({})).await.expect(201);
    }
    follows(client, "bob", "ada").await;
    let first = did(client, "ada", "created", "1").await;
    assert_eq!(feed(client, "ada").await, [first.as_str()], "the actor's own has it at once");
    has(client, "bob", &[&first]).await;
    let second = did(client, "bob", "liked", "1").await;
    let third = did(client, "ada", "shared", "2").await;
    has(client, "bob", &[&third, &second, &first]).await;
    has(client, "ada", &[&third, &first]).await;
    assert!(feed(client, "eve").await.is_empty());
    // Whoever follows later gets what comes later.
    follows(client, "eve", "ada").await;
    let fourth = did(client, "ada", "commented", "3").await;
    has(client, "eve", &[&fourth]).await;
    has(client, "bob", &[&fourth, &third, &second, &first]).await;
    let all = client.get("/v1/feed").await.expect(200);
    assert_eq!(all["items"].as_array().unwrap().iter().map(id_of).collect::<Vec<_>>(), [fourth.as_str(), &third, &second, &first]);

    // By a user's token, and conditionally.
    let token = client.post("/v1/tokens", &json!({"user": "bob"})).await.expect(201)["token"].as_str().unwrap().to_owned();
    let bob = client.with_key(&token);
    let answer = bob.get("/v1/feed").await;
    let page = answer.expect(200);
    assert_eq!((&page["poll_after_ms"], &page["next_cursor"]), (&json!(120_000), &Value::Null));
    let newest = &page["items"][0];
    assert_eq!(
        (&newest["actor"], &newest["verb"], &newest["object"], &newest["title"]),
        (&json!("ada"), &json!("commented"), &json!({"type": "prompt", "id": "3"}), &json!("ada commented 3"))
    );
    let tag = answer.header("etag").to_owned();
    assert!(tag.starts_with("W/\"") && answer.header("cache-control") == "private, no-cache", "{:?}", answer.headers);
    let conditional = async |tag: &str| bob.send(bob.request(Method::GET, "/v1/feed").header("If-None-Match", tag)).await;
    let unchanged = conditional(&format!("\"other\", {tag}")).await;
    assert_eq!((unchanged.status, unchanged.body.len(), unchanged.header("etag")), (304, 0, tag.as_str()));
    assert_eq!(unchanged.header("cache-control"), "private, no-cache");
    conditional("W/\"other\"").await.expect(200);
    let fifth = did(client, "ada", "followed", "4").await;
    has(client, "bob", &[&fifth, &fourth, &third, &second, &first]).await;
    let changed = conditional(&tag).await;
    assert_eq!(changed.expect(200)["items"][0]["id"], fifth.as_str());
    assert_ne!(changed.header("etag"), tag);
    bob.post("/v1/activities", &json!({})).await.problem(403, "token_not_allowed");

    // Page by page; what is new shifts nothing.
    let mut walked = Vec::new();
    let mut path = "/v1/feed?limit=2".to_owned();
    loop {
        let page = bob.get(&path).await.expect(200);
        walked.extend(page["items"].as_array().unwrap().iter().map(id_of));
        did(client, "bob", "created", "9").await;
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/v1/feed?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(walked, [fifth.as_str(), &fourth, &third, &second, &first]);
    // Of who is erased nothing is shown, in nobody's feed; nor what was done to what is theirs.
    let liked = json!({"actor": "eve", "verb": "followed", "object": {"type": "user", "id": "ada"}});
    let liked = id_of(&client.post("/v1/activities", &liked).await.expect(202));
    assert_eq!(feed(client, "eve").await[0], liked);
    let erasure = id_of(&client.delete("/v1/users/ada").await.expect(202));
    assert!(feed(client, "eve").await.is_empty());
    client.succeeded(&erasure).await;
    assert!(feed(client, "eve").await.is_empty());
    assert_eq!(world.number("SELECT count(*) FROM activity WHERE 'ada' IN (actor, user_id)").await, 0);
}

#[tokio::test]
async fn the_same_request_is_the_same_activity_and_what_is_wrong_is_said() {
    let world = World::start().await;
    let client = &world.client;
    let mut activity = json!({"actor": "ada", "verb": "created", "object": {"type": "prompt", "id": "1"}, "idempotency_key": "a-1"});
    let first = id_of(&client.post("/v1/activities", &activity).await.expect(202));
    let racing = futures_util::future::join_all((0..8).map(|_| client.post("/v1/activities", &activity))).await;
    assert!(racing.iter().all(|answer| id_of(&answer.expect(200)) == first));
    activity["verb"] = json!("liked");
    client.post("/v1/activities", &activity).await.problem(409, "idempotency_conflict");
    activity["actor"] = json!("bob");
    client.post("/v1/activities", &activity).await.expect(202);
    for (field, value, pointer) in [
        ("actor", json!(""), "/actor"),
        ("verb", json!("hated"), "/verb"),
        ("object", json!({"type": "A", "id": "1"}), "/object/type"),
        ("title", json!("a\nb"), "/title"),
        ("url", json!("javascript:alert(1)"), "/url"),
        ("data", json!({"a": "x".repeat(5_000)}), "/data"),
        ("data", json!({"a": "\u{0}"}), "/data"),
    ] {
        let mut wrong = activity.clone();
        wrong[field] = value;
        let answer = client.post("/v1/activities", &wrong).await;
        answer.problem(422, "validation_failed");
        assert_eq!(answer.pointers(), [pointer]);
    }
    client.get("/v1/feed?limit=0").await.problem(400, "query_invalid");
    client.get("/v1/feed?cursor=nonsense").await.problem(400, "query_invalid");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_followers_feed_has_it_once_whatever_is_killed() {
    let world = World::start().await;
    let client = &world.client;
    for statement in [
        "INSERT INTO end_user (tenant_id, id, push, mail, created_at, updated_at)
         SELECT t.id, 'u' || n, true, true, now(), now() FROM tenant t, generate_series(1, 22345) AS n WHERE t.name = 'acme'",
        "INSERT INTO follow (tenant_id, followed, follower, created_at) SELECT tenant_id, 'ada', id, now() FROM end_user",
    ] {
        world.execute(statement).await;
    }
    let worker = world.worker().await;
    let mut done = Vec::new();
    for number in 0..4 {
        done.push(did(client, "ada", "created", &number.to_string()).await);
        let entries = format!("SELECT count(*) FROM feed_entry WHERE activity_id = '{}'", done[number]);
        until_within(LONG, "some have it", async || match world.number(entries.as_str()).await {
            some if some > 1 => Ok(()),
            some => Err(some),
        })
        .await;
        worker.kill9().await.unwrap();
    }
    until_within(LONG, "all have all", async || match world.number("SELECT count(*) FROM activity WHERE NOT is_fanned_out").await {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
    assert_eq!(world.number("SELECT count(*) FROM feed_entry").await, 4 * 22_346, "each once, and the actor");
    assert_eq!(world.text("SELECT string_agg(DISTINCT after, ',') FROM activity").await, "", "no names stay behind");
    done.reverse();
    assert_eq!(feed(client, "u22345").await, done);
}
