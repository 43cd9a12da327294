//! Many recipients: by role, by whom they follow, by a list; once each, whatever is killed.

use std::time::Duration;

use acceptance::{World, id_of, until, until_within};
use serde_json::json;

use super::{Community, MANIFEST};

/// Takeovers need some seconds of silence each.
const LONG: Duration = Duration::from_secs(180);

/// As many users, all of a role and followers of `ada`.
async fn crowd(world: &World, users: usize) {
    for statement in [
        "INSERT INTO end_user (tenant_id, id, email, push, mail, created_at, updated_at)
         SELECT t.id, 'u' || n, 'u' || n || '@example.com', true, true, now(), now() FROM tenant t, generate_series(1, {n}) AS n WHERE t.name = 'community'",
        "INSERT INTO end_user_role (tenant_id, role, user_id) SELECT tenant_id, 'member', id FROM end_user",
        "INSERT INTO follow (tenant_id, followed, follower, created_at) SELECT tenant_id, 'ada', id, now() FROM end_user",
    ] {
        world.execute(statement.replace("{n}", &users.to_string())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_of_a_role_is_told_once_whatever_is_killed() {
    let users: usize = std::env::var("TOLD_USERS").ok().and_then(|number| number.parse().ok()).unwrap_or(12_345);
    let world = World::start().await;
    let client = world.tenant_of("community", MANIFEST).await;
    crowd(&world, users).await;
    let worker = world.worker().await;
    let id =
        id_of(&client.post("/v1/notifications", &json!({"type": "system", "to": {"role": "member"}, "title": "Hello"})).await.expect(202));
    let expected = i64::try_from(users).unwrap();
    for part in [1, expected / 4, expected / 2] {
        until_within(LONG, "some have been told", async || match world.number("SELECT count(*) FROM notification").await {
            told if told >= part => Ok(()),
            told => Err(told),
        })
        .await;
        worker.kill9().await.unwrap();
    }
    let told = until_within(LONG, "all have been told", async || {
        let trigger = client.get(&format!("/v1/notifications/triggers/{id}")).await.expect(200);
        if trigger["state"] == "told" { Ok(trigger) } else { Err(trigger) }
    })
    .await;
    assert_eq!((&told["recipients"], &told["told"], &told["in_app"]), (&json!(users), &json!(users), &json!(users)), "{told}");
    assert_eq!(world.number("SELECT count(DISTINCT owner) FROM notification").await, expected, "each");
    assert_eq!(world.number("SELECT count(*) FROM notification").await, expected, "once");
    // Nobody has a browser: that is said, once each.
    assert_eq!(world.number("SELECT count(*) FROM delivery WHERE why = 'no_browser'").await, expected);
    assert_eq!(world.number("SELECT count(*) FROM notification_recipient").await, 0, "no names stay behind");
    assert_eq!(world.text("SELECT string_agg(DISTINCT after, ',') FROM notification_trigger").await, "");
}

#[tokio::test]
async fn followers_and_lists_are_told() {
    let community = Community::start().await;
    for user in ["ada", "bob", "eve"] {
        community.put(user, json!({})).await;
    }
    for follower in ["bob", "eve"] {
        let path = format!("/v1/users/{follower}/follows/ada");
        let put = community.client.send(community.client.request(reqwest::Method::PUT, &path)).await;
        assert_eq!(put.status, 204);
    }
    let told = community.tell(&json!({"type": "share", "to": {"followers_of": "ada"}, "title": "Ada shared"})).await;
    assert_eq!((&told["recipients"], &told["in_app"]), (&json!(2), &json!(2)), "{told}");
    let told = community.tell(&json!({"type": "share", "to": {"users": ["bob", "ada", "nobody"]}, "title": "Listed"})).await;
    assert_eq!(told["in_app"], 3, "who is not known has an inbox too: {told}");
    let titles = async |user: &str| {
        let inbox = community.inbox(user).await;
        inbox["items"].as_array().unwrap().iter().map(|item| item["title"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(titles("ada").await, ["Listed"]);
    assert_eq!(titles("bob").await, ["Listed", "Ada shared"]);
    assert_eq!(titles("eve").await, ["Ada shared"]);
    let nobody = community.tell(&json!({"type": "share", "to": {"role": "nobody_has_it"}, "title": "x"})).await;
    assert_eq!(nobody["recipients"], 0, "{nobody}");
}

#[tokio::test]
async fn who_could_not_be_told_is_counted_and_told_when_that_is_tried_again() {
    let (world, _worker) = World::with_worker().await;
    let client = world.tenant_of("community", MANIFEST).await;
    crowd(&world, 1_500).await;
    // The template fails for the whole second chunk, who have no names.
    let second = "UPDATE end_user SET locale = 'xx' WHERE id IN (SELECT id FROM end_user ORDER BY id COLLATE \"C\" DESC LIMIT 500)";
    assert_eq!(world.execute(second).await, 500);
    let asked = json!({"type": "greeting", "to": {"role": "member"}});
    let id = id_of(&client.post("/v1/notifications", &asked).await.expect(202));
    let over = async |told: i64| {
        until("nothing more is under way", async || {
            let trigger = client.get(&format!("/v1/notifications/triggers/{id}")).await.expect(200);
            if trigger["state"] == "told" && trigger["told"] == told { Ok(trigger) } else { Err(trigger) }
        })
        .await
    };
    let trigger = over(1_000).await;
    assert_eq!(
        (&trigger["recipients"], &trigger["not_told"], &trigger["in_app"]),
        (&json!(1_500), &json!(500), &json!(1_000)),
        "{trigger}"
    );
    assert_eq!(trigger["error"]["code"], "notification_template_failed", "{trigger}");
    let chunk = trigger["ended_job"].as_str().unwrap();
    assert_eq!(client.job(chunk).await["state"], "failed");
    // One of them is erased meanwhile, and the others are given names.
    let erasure = id_of(&client.delete("/v1/users/u998").await.expect(202));
    client.succeeded(&erasure).await;
    world.execute("UPDATE end_user SET name = 'Grace' WHERE locale = 'xx'").await;
    client.post_nothing(&format!("/v1/jobs/{chunk}/retry")).await.expect(202);
    let trigger = over(1_500).await;
    assert_eq!((&trigger["not_told"], &trigger["in_app"]), (&json!(0), &json!(1_499)), "{trigger}");
    assert!(trigger["error"].is_null() && trigger["ended_job"].is_null(), "{trigger}");
    assert_eq!(client.acting_for("u999").get("/v1/notifications").await.expect(200)["items"][0]["title"], "Hello Grace!");
    assert_eq!(world.number("SELECT count(*) FROM notification_recipient").await, 0, "no names stay behind");
    assert_eq!(world.number("SELECT count(*) FROM notification_chunk").await, 0);
}
