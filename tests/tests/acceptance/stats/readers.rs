//! What readers get, however many they are and whatever the vendors do.

use acceptance::{World, until};
use chrono::TimeDelta;
use futures_util::{StreamExt, stream};
use reqwest::Method;
use serde_json::{Value, json};

use super::{community, measured, refreshed, repository, statistic};

#[tokio::test]
async fn a_thousand_readers_of_a_cold_statistic_make_one_call() {
    let (world, clock) = World::start_now().await;
    let client = community(&world).await;
    let other = world.sandbox.start_api(clock.launch().env("OFFSTAGE_API_POOL", "8")).await.unwrap();
    for _ in 0..2 {
        world.start_worker(clock.launch()).await;
    }
    let clients = [client.clone(), client.at(other.url())];
    let reading = |paths: &'static str| {
        let clients = &clients;
        stream::iter(0..1_000_usize).map(move |number| clients[number % 2].get(paths)).buffer_unordered(1_000).collect::<Vec<_>>()
    };
    for answer in reading("/v1/stats/tools").await {
        let found = answer.expect(200);
        assert!(found["state"] == "pending" || found["figures"]["members"] == 1_000, "{found}");
    }
    let found = measured(&client, "tools").await;
    assert_eq!(
        (&found["figures"], &found["age"], &found["stale"]),
        (&json!({"members": 1_000, "forks": 3, "watchers": 7, "open_issues": 0}), &json!(0), &json!(false))
    );
    assert_eq!(world.sandbox.vendors.calls("github").len(), 1, "{:?}", world.sandbox.vendors.calls("github"));
    assert_eq!(world.number("SELECT count(*) FROM job WHERE kind = 'stats.refresh'").await, 1);
    // Fresh for five minutes: nobody is asked.
    clock.advance(TimeDelta::seconds(299));
    for answer in reading("/v1/stats/tools").await {
        assert_eq!((answer.expect(200)["age"].as_i64(), &answer.json()["stale"]), (Some(299), &json!(false)));
    }
    assert_eq!(world.number("SELECT count(*) FROM job WHERE kind = 'stats.refresh'").await, 1);
    // Then it is told all the same, and asked for once more.
    clock.advance(TimeDelta::seconds(2));
    for answer in reading("/v1/stats/tools").await {
        assert_eq!(answer.expect(200)["figures"]["members"], 1_000);
    }
    until("it is asked for again", async || {
        let calls = world.sandbox.vendors.calls("github");
        if calls.len() == 2 { Ok(()) } else { Err(calls) }
    })
    .await;
    assert_eq!(world.number("SELECT count(*) FROM job WHERE kind = 'stats.refresh'").await, 2);
    // The list has all of them, by name, and asks for those that are cold.
    let all = client.get("/v1/stats").await.expect(200);
    let names: Vec<_> = all["items"].as_array().unwrap().iter().map(|item| item["source"].as_str().unwrap()).collect();
    assert_eq!(names, ["any", "chat", "makers", "model", "open", "tools"]);
    for name in names {
        measured(&client, name).await;
    }
    let level = async |name| statistic(&client, name).await["activity"].clone();
    assert_eq!([level("chat").await, level("makers").await, level("model").await, level("any").await], ["high", "high", "low", "unknown"]);
    assert_eq!(statistic(&client, "any").await["figures"], json!({"members": 5}));
}

#[tokio::test]
async fn what_is_known_is_told_while_a_vendor_is_down_for_a_day() {
    let (world, clock) = World::start_now().await;
    let client = community(&world).await;
    world.start_worker(clock.launch()).await;
    refreshed(&client, "tools").await;
    let vendors = &world.sandbox.vendors;
    vendors.stop();
    let began = clock.now();
    let mut failures = 0;
    for _ in 0..4 {
        clock.advance(TimeDelta::hours(6));
        failures = until("another attempt failed", async || {
            let found = statistic(&client, "tools").await;
            let now = world.number("SELECT failures FROM statistic WHERE source = 'tools'").await;
            if found["failing"]["code"] == "vendor_unanswered" && now > failures { Ok(now) } else { Err(found) }
        })
        .await;
    }
    let found = statistic(&client, "tools").await;
    assert_eq!((&found["state"], &found["stale"], &found["figures"]["members"]), (&json!("measured"), &json!(true), &json!(1_000)));
    assert_eq!(found["age"], 24 * 3_600);
    assert!(found["failing"]["since"].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap() > began);
    // And once it is back.
    vendors.start().await.unwrap();
    vendors.put("/github/repos/acme/tools", &repository(1_001));
    until("it is up to date again", async || {
        clock.advance(TimeDelta::minutes(11));
        let found = statistic(&client, "tools").await;
        if found["figures"]["members"] == 1_001 && found["failing"] == Value::Null { Ok(()) } else { Err(found) }
    })
    .await;
}

#[tokio::test]
async fn nothing_new_is_answered_with_304_and_history_is_kept() {
    let (world, clock) = World::start_now().await;
    let client = community(&world).await;
    world.start_worker(clock.launch()).await;
    refreshed(&client, "tools").await;
    let first = client.get("/v1/stats/tools").await;
    let tag = first.header("etag").to_owned();
    assert!(tag.starts_with("W/\"") && first.header("cache-control") == "private, no-cache");
    let conditional = async |tag: &str| client.send(client.request(Method::GET, "/v1/stats/tools").header("If-None-Match", tag)).await;
    clock.advance(TimeDelta::seconds(30));
    let unchanged = conditional(&tag).await;
    assert_eq!((unchanged.status, unchanged.body.len(), unchanged.header("etag")), (304, 0, tag.as_str()), "the age alone changed");
    for (named, status) in
        [(format!("\"other\", {tag}"), 304), (tag.replace("W/", ""), 304), ("*".to_owned(), 304), ("\"other\"".to_owned(), 200)]
    {
        assert_eq!(conditional(&named).await.status, status, "{named}");
    }
    let mut stars = 1_000;
    for _ in 0..5 {
        clock.advance(TimeDelta::hours(1));
        stars += 1;
        world.sandbox.vendors.put("/github/repos/acme/tools", &repository(stars));
        refreshed(&client, "tools").await;
        // The second time nothing changed, and no reading more is kept.
        refreshed(&client, "tools").await;
    }
    assert_eq!(conditional(&tag).await.status, 200);
    let history = async |query: &str| client.get(&format!("/v1/stats/tools/history{query}")).await.expect(200);
    let all = history("").await;
    let told: Vec<_> = all["items"].as_array().unwrap().iter().map(|item| item["figures"]["members"].as_i64().unwrap()).collect();
    assert_eq!((told, &all["has_more"]), (vec![1_005, 1_004, 1_003, 1_002, 1_001, 1_000], &json!(false)));
    let page = history("?limit=2").await;
    assert_eq!((page["items"].as_array().unwrap().len(), &page["has_more"]), (2, &json!(true)));
    let before = page["items"][1]["measured_at"].as_str().unwrap().replace('+', "%2B");
    assert_eq!(history(&format!("?limit=1&to={before}")).await["items"][0]["figures"]["members"], 1_003);
    for wrong in ["?limit=0", "?limit=1001", "?from=x", "?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "?colour=red"] {
        client.get(&format!("/v1/stats/tools/history{wrong}")).await.problem(400, "query_invalid");
    }
}
