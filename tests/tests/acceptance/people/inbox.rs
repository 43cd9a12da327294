//! Inboxes: listed, counted, marked, followed live.

use std::{collections::BTreeSet, ops::Range};

use acceptance::{Client, World, id_of, until};
use serde_json::{Value, json};

/// Puts notifications with these numbers into an inbox as the engine would, each in a transaction of its own.
async fn tell(world: &World, owner: &str, numbers: Range<i64>) {
    for number in numbers {
        world
            .execute(format!(
                "INSERT INTO notification (tenant_id, owner, type, title, message, data, created_at)
                 SELECT id, '{owner}', 'mention', 'Number {number}', 'A message', '{{\"n\": {number}}}', clock_timestamp() FROM tenant WHERE name = 'acme'"
            ))
            .await;
    }
}

async fn page(client: &Client, query: &str) -> Value {
    client.get(&format!("/v1/notifications{query}")).await.expect(200)
}

fn numbers(page: &Value) -> Vec<i64> {
    page["items"].as_array().unwrap().iter().map(|item| item["data"]["n"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn an_inbox_is_listed_and_marked() {
    let world = World::start().await;
    let ada = world.client.acting_for("ada");
    let empty = page(&ada, "").await;
    assert_eq!(empty, json!({"items": [], "unread_count": 0, "has_more": false}));
    tell(&world, "ada", 0..25).await;
    tell(&world, "eve", 0..3).await;
    let first = page(&ada, "").await;
    assert_eq!((numbers(&first), &first["unread_count"], &first["has_more"]), ((5..25).rev().collect(), &json!(25), &json!(true)));
    let rest = page(&ada, "?offset=20").await;
    assert_eq!((numbers(&rest), &rest["has_more"]), ((0..5).rev().collect(), &json!(false)));
    assert_eq!(page(&ada, "?limit=5&offset=20").await["has_more"], false);
    let beyond = page(&ada, "?offset=100").await;
    assert_eq!((beyond["items"].as_array().unwrap().len(), &beyond["unread_count"]), (0, &json!(25)), "the count is of the whole");
    for wrong in ["?limit=0", "?limit=201", "?offset=10001", "?offset=-1", "?unread=true"] {
        ada.get(&format!("/v1/notifications{wrong}")).await.problem(400, "query_invalid");
    }

    let id = |n: usize| id_of(&first["items"][n]);
    let mark = async |n: usize, how: &str| ada.post_nothing(&format!("/v1/notifications/{}/{how}", id(n))).await.expect(200);
    let read = mark(0, "read").await;
    assert!(read["read_at"].is_string() && read["clicked_at"].is_null(), "{read}");
    assert_eq!(mark(0, "read").await["read_at"], read["read_at"], "once");
    let clicked = mark(1, "clicked").await;
    assert!(clicked["read_at"].is_string() && clicked["clicked_at"].is_string(), "{clicked}");
    let archived = mark(2, "archived").await;
    assert!(archived["read_at"].is_null() && archived["archived_at"].is_string(), "{archived}");
    let unread = page(&ada, "?unread_only=true&limit=200").await;
    assert_eq!((numbers(&unread), &unread["unread_count"]), ((0..22).rev().collect(), &json!(22)));
    assert_eq!(page(&ada, "?limit=200").await["items"].as_array().unwrap().len(), 24, "what is archived is not listed");

    // Some, another's among them, which stays.
    let hers = world.text("SELECT id::text FROM notification WHERE owner = 'eve' LIMIT 1").await;
    let some = ada.post("/v1/notifications/read", &json!({"ids": [id(0), id(3), id(4), hers]})).await.expect(200);
    assert_eq!(some, json!({"marked": 2, "unread_count": 20}));
    ada.post_nothing(&format!("/v1/notifications/{hers}/read")).await.problem(404, "notification_not_found");
    let all = ada.post("/v1/notifications/read", &json!({"ids": []})).await.expect(200);
    assert_eq!(all, json!({"marked": 20, "unread_count": 0}));
    assert_eq!(ada.post_nothing("/v1/notifications/read").await.expect(200), json!({"marked": 0, "unread_count": 0}));
    assert_eq!(page(&world.client.acting_for("eve"), "").await["unread_count"], 3);
    for wrong in ["x", "00000000-0000-0000-0000-000000000000"] {
        ada.post_nothing(&format!("/v1/notifications/{wrong}/read")).await.problem(404, "notification_not_found");
    }
    // A backend that acts for nobody has an inbox of its own.
    assert_eq!(page(&world.client, "").await["items"], json!([]));
    tell(&world, "", 0..1).await;
    assert_eq!(page(&world.client, "").await["unread_count"], 1);
}

/// Whatever is done at the same time, what is counted is what is there.
#[tokio::test]
async fn the_unread_count_never_drifts() {
    let world = World::start().await;
    let ada = world.client.acting_for("ada");
    tell(&world, "ada", 0..60).await;
    let ids: Vec<String> = page(&ada, "?limit=200").await["items"].as_array().unwrap().iter().map(id_of).collect();
    let one_by_one = async |ids: &[String], how: &str| {
        for id in ids {
            ada.post_nothing(&format!("/v1/notifications/{id}/{how}")).await.expect(200);
        }
    };
    let at_once = async |ids: &[String]| {
        for ids in ids.chunks(7) {
            ada.post("/v1/notifications/read", &json!({ "ids": ids })).await.expect(200);
        }
    };
    let looking = async || {
        for _ in 0..30 {
            let page = page(&ada, "?limit=200").await;
            let unread = page["items"].as_array().unwrap().iter().filter(|item| item["read_at"].is_null()).count();
            assert_eq!(page["unread_count"], unread, "the count and the page are of one moment");
        }
    };
    let reversed: Vec<String> = ids.iter().rev().cloned().collect();
    tokio::join!(
        one_by_one(&ids[..40], "read"),
        one_by_one(&reversed[..40], "clicked"),
        one_by_one(&ids[20..50], "archived"),
        at_once(&ids[10..50]),
        at_once(&reversed[10..40]),
        looking(),
        tell(&world, "ada", 0..10)
    );
    let end = page(&ada, "?unread_only=true&limit=200").await;
    let there = world.number("SELECT count(*) FROM notification WHERE owner = 'ada' AND read_at IS NULL AND archived_at IS NULL").await;
    assert_eq!((&end["unread_count"], end["items"].as_array().unwrap().len()), (&json!(there), usize::try_from(there).unwrap()));
    assert_eq!(there, 10, "those that came meanwhile");
}

#[tokio::test]
async fn new_ones_come_live_and_none_is_missed() {
    let world = World::start().await;
    let ada = world.client.acting_for("ada");
    tell(&world, "ada", 0..2).await;
    let mut stream = ada.events("/v1/notifications/events", None).await;
    let begin = stream.must("the beginning").await;
    assert_eq!((begin.name.as_str(), &begin.data["unread_count"]), ("inbox", &json!(2)));
    tell(&world, "ada", 0..3).await;
    tell(&world, "eve", 0..1).await;
    let mut last = begin.id;
    for n in 0..3 {
        let event = stream.must("a new one").await;
        assert_eq!((event.name.as_str(), &event.data["data"]["n"]), ("notification", &json!(n)));
        assert!(event.data["title"].is_string() && event.data["read_at"].is_null(), "{event:?}");
        last = event.id;
    }
    drop(stream);
    // What comes while nobody listens is told to who comes back, in order; of what was told before, at most what an older transaction
    // was under way with.
    tell(&world, "ada", 10..14).await;
    let mut stream = ada.events("/v1/notifications/events", Some(&last)).await;
    let mut came = Vec::new();
    while came.last() != Some(&13) {
        let event = stream.must("what came meanwhile").await;
        assert_eq!(event.name, "notification");
        came.push(event.data["data"]["n"].as_i64().unwrap());
    }
    assert!(came.ends_with(&[10, 11, 12, 13]) && came.len() <= 7, "{came:?}");
    drop(stream);
    // A mark of another database, or none: from now on.
    for mark in ["9223372036854775807", "-1", "x"] {
        let event = ada.events("/v1/notifications/events", Some(mark)).await.must("the beginning").await;
        assert_eq!((event.name.as_str(), &event.data["unread_count"]), ("inbox", &json!(9)), "{mark}");
    }
    // More than is told one by one.
    world
        .execute(
            "INSERT INTO notification (tenant_id, owner, type, title, message, created_at)
             SELECT t.id, 'ada', 'system', 'Many', 'A message', clock_timestamp() FROM tenant t, generate_series(1, 250) WHERE t.name = 'acme'",
        )
        .await;
    let event = ada.events("/v1/notifications/events", Some(&last)).await.must("the beginning").await;
    assert_eq!((event.name.as_str(), &event.data["unread_count"]), ("inbox", &json!(259)));
}

/// A transaction that began earlier and commits later writes below the newest mark; it is told all the same.
#[tokio::test]
async fn what_an_older_transaction_wrote_is_told_when_it_commits() {
    let world = World::start().await;
    let ada = world.client.acting_for("ada");
    let mut stream = ada.events("/v1/notifications/events", None).await;
    let begin = stream.must("the beginning").await;
    let mut slow = world.sandbox.pool().begin().await.unwrap();
    let insert = "INSERT INTO notification (tenant_id, owner, type, title, message, data, created_at)
                  SELECT id, 'ada', 'mention', 'Slow', 'A message', '{\"n\": 100}', clock_timestamp() FROM tenant WHERE name = 'acme'";
    sqlx::query(insert).execute(&mut *slow).await.unwrap();
    tell(&world, "ada", 0..2).await;
    for n in 0..2 {
        assert_eq!(stream.must("those that committed").await.data["data"]["n"], json!(n));
    }
    slow.commit().await.unwrap();
    assert_eq!(stream.must("the slow one").await.data["data"]["n"], 100);
    drop(stream);
    // And by who comes back with the mark from before.
    let mut stream = ada.events("/v1/notifications/events", Some(&begin.id)).await;
    let mut told = BTreeSet::new();
    for _ in 0..3 {
        told.insert(stream.must("all three").await.data["data"]["n"].as_i64().unwrap());
    }
    assert_eq!(told, [0, 1, 100].into());
}

#[tokio::test]
async fn an_exports_end_comes_into_its_owners_browser() {
    let (world, _worker) = World::with_worker().await;
    let manifest = "[tenant]\nname = \"initech\"\n[sources.main]\nurl_env = \"OFFSTAGE_SOURCE_PROMPTLOCKR_URL\"\n\
                    [datasets.words]\nsource = \"main\"\naudience = \"users\"\nsql = \"SELECT 'a' AS word\"\n";
    let initech = world.tenant_of("initech", manifest).await;
    let token = initech.post("/v1/tokens", &json!({"user": "ada"})).await.expect(201)["token"].as_str().unwrap().to_owned();
    let browser = initech.with_key(&token);
    let mut stream = browser.events("/v1/notifications/events", None).await;
    stream.must("the beginning").await;
    let export = id_of(&initech.acting_for("ada").post("/v1/exports", &json!({"dataset": "words", "format": "csv"})).await.expect(202));
    let event = stream.must("the export's end").await;
    assert_eq!((&event.data["data"]["export_id"], &event.data["data"]["state"]), (&json!(export), &json!("completed")));
    // One door further: read, and gone from what is unread.
    browser.post_nothing(&format!("/v1/notifications/{}/clicked", id_of(&event.data))).await.expect(200);
    until("nothing is unread", async || match page(&browser, "").await["unread_count"].as_i64() {
        Some(0) => Ok(()),
        other => Err(other),
    })
    .await;
}
