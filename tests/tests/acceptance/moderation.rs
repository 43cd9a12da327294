//! Reports and moderation (R23): every moderator is told of a report, its user of what was done; suspensions end by themselves.

use acceptance::{Answer, Client, World, id_of, until};
use chrono::TimeDelta;
use reqwest::Method;
use serde_json::{Value, json};

use crate::notifications::Community;

async fn patch(client: &Client, report: &str, change: &Value) -> Answer {
    client.send(client.request(Method::PATCH, &format!("/v1/reports/{report}")).json(change)).await
}

async fn moderate(client: &Client, user: &str, action: &Value) -> Answer {
    client.post(&format!("/v1/users/{user}/moderation"), action).await
}

async fn standing(client: &Client, user: &str) -> Value {
    client.get(&format!("/v1/users/{user}/moderation")).await.expect(200)
}

/// What a user was told, newest first.
async fn titles(community: &Community, user: &str) -> Vec<String> {
    let inbox = community.inbox(user).await;
    inbox["items"].as_array().unwrap().iter().map(|item| item["title"].as_str().unwrap().to_owned()).collect()
}

async fn is_told(community: &Community, user: &str, title: &str) {
    until(title, async || {
        let titles = titles(community, user).await;
        if titles.first().is_some_and(|newest| newest == title) { Ok(()) } else { Err(titles) }
    })
    .await;
}

fn report(content: &str) -> Value {
    json!({"content": {"type": "post", "id": content}, "user": "bob", "reason": "spam", "details": " It sells <b>pills</b>. "})
}

/// Suspensions that a job is going to end.
const ENDS: &str = "SELECT count(*) FROM job_waiting w JOIN job j ON j.id = w.job_id WHERE j.kind = 'suspension.end'";

#[tokio::test]
async fn every_moderator_is_told_of_a_report_and_its_user_of_what_was_done() {
    let community = Community::start().await;
    let client = &community.client;
    for (user, roles) in [("mod-1", json!(["moderator"])), ("mod-2", json!(["moderator", "admin"])), ("bob", json!([])), ("ada", json!([]))]
    {
        community.put(user, json!({"roles": roles, "name": "Somebody"})).await;
    }
    let ada = client.acting_for("ada");
    let mut asked = report("7");
    asked["idempotency_key"] = json!("report-7");
    let answer = ada.post("/v1/reports", &asked).await;
    let made = answer.expect(201);
    let id = id_of(&made);
    assert_eq!(answer.header("location"), format!("/v1/reports/{id}"));
    assert_eq!((&made["status"], &made["reporter"], &made["user"]), (&json!("pending"), &json!("ada"), &json!("bob")), "{made}");
    assert_eq!((&made["reason"], &made["details"]), (&json!("spam"), &json!("It sells <b>pills</b>.")), "{made}");
    for moderator in ["mod-1", "mod-2"] {
        is_told(&community, moderator, "A post was reported: spam").await;
        let inbox = community.inbox(moderator).await;
        let item = &inbox["items"][0];
        assert_eq!((&item["type"], &item["data"]["report_id"]), (&json!("report"), &json!(id)));
        // An erasure looks for nobody in others' inboxes.
        assert!(!item.to_string().contains("ada") && !item.to_string().contains("bob"), "{item}");
    }
    // Once: the same request is the same report; another's of that key is another's.
    assert_eq!(id_of(&ada.post("/v1/reports", &asked).await.expect(200)), id);
    asked["reason"] = json!("copyright");
    ada.post("/v1/reports", &asked).await.problem(409, "idempotency_conflict");
    let other = id_of(&client.acting_for("eve").post("/v1/reports", &asked).await.expect(201));
    is_told(&community, "mod-1", "A post was reported: copyright").await;
    assert_eq!(titles(&community, "mod-1").await.len(), 2);

    // For moderators: newest first, by status, by user, page by page.
    let listed = async |query: &str| {
        let page = client.get(&format!("/v1/reports?{query}")).await.expect(200);
        (page["items"].as_array().unwrap().iter().map(id_of).collect::<Vec<_>>(), page["next_cursor"].as_str().map(str::to_owned))
    };
    assert_eq!(listed("").await.0, [other.as_str(), &id]);
    assert_eq!(listed("status=pending&user=bob").await.0, [other.as_str(), &id]);
    assert!(listed("user=ada").await.0.is_empty() && listed("status=resolved").await.0.is_empty());
    let (first, cursor) = listed("limit=1").await;
    assert_eq!(first, [other.as_str()]);
    assert_eq!(listed(&format!("limit=1&cursor={}", cursor.unwrap())).await, (vec![id.clone()], None));
    client.get("/v1/reports?status=new").await.problem(400, "query_invalid");

    // An action is kept, and told in the product and by mail; a repeat under its key is not done again.
    let flag = json!({"action": "flag", "notes": "Please *read* the rules.", "moderator": "mod-1"});
    for _ in 0..2 {
        let request = client.request(Method::PATCH, &format!("/v1/reports/{id}")).header("Idempotency-Key", "flag-7").json(&flag);
        let changed = client.send(request).await.expect(200);
        assert_eq!((&changed["status"], changed["history"].as_array().unwrap().len()), (&json!("reviewed"), 1), "{changed}");
        let done = &changed["history"][0];
        assert_eq!((&done["action"], &done["notes"], &done["moderator"]), (&flag["action"], &flag["notes"], &flag["moderator"]), "{done}");
    }
    let other_request = client.request(Method::PATCH, &format!("/v1/reports/{id}")).header("Idempotency-Key", "flag-7");
    client.send(other_request.json(&json!({"action": "ban"}))).await.problem(409, "idempotency_conflict");
    is_told(&community, "bob", "Your post was flagged").await;
    let mail = community.mailed("bob", 1).await.remove(0);
    assert!(mail.contains("<strong>flagged</strong>: Please *read* the rules."), "{mail}");
    // Without an action nobody is told.
    let changed = patch(client, &id, &json!({"status": "resolved"})).await.expect(200);
    assert_eq!((&changed["status"], &changed["history"][0]["action"]), (&json!("resolved"), &Value::Null), "{changed}");
    let changed = patch(client, &other, &json!({"action": "approve"})).await.expect(200);
    assert_eq!(changed["status"], "dismissed");
    is_told(&community, "bob", "Your post was approved").await;
    assert_eq!(titles(&community, "bob").await.len(), 2);
    let history = standing(client, "bob").await;
    assert_eq!((&history["state"], history["history"].as_array().unwrap().len()), (&json!("active"), 3), "{history}");
    assert_eq!((&history["history"][2]["report"], &history["history"][2]["content"]["id"]), (&json!(id), &json!("7")), "{history}");
    assert!(titles(&community, "ada").await.is_empty() && titles(&community, "eve").await.is_empty());
}

#[tokio::test]
async fn what_is_wrong_is_said_at_the_doors() {
    let world = World::start().await;
    let client = &world.client;
    for (field, value, pointer) in [
        ("reason", json!("dull"), "/reason"),
        ("content", json!({"type": "Post", "id": "7"}), "/content/type"),
        ("content", json!({"type": "post", "id": ""}), "/content/id"),
        ("user", json!("a b"), "/user"),
        ("details", json!("x".repeat(2_001)), "/details"),
        ("reporter", json!("eve"), "/reporter"),
    ] {
        let mut wrong = report("7");
        wrong[field] = value;
        let answer = client.acting_for("ada").post("/v1/reports", &wrong).await;
        answer.problem(422, "validation_failed");
        assert_eq!(answer.pointers(), [pointer]);
    }
    let mut nobodys = report("7");
    nobodys.as_object_mut().unwrap().remove("user");
    nobodys["reporter"] = json!("eve");
    let made = client.post("/v1/reports", &nobodys).await.expect(201);
    assert_eq!(made["reporter"], "eve");
    let (id, now) = (id_of(&made), world.now().await);
    for (wrong, pointer) in [
        (json!({}), ""),
        (json!({"notes": "so"}), ""),
        (json!({"action": "lift"}), "/action"),
        (json!({"action": "end"}), "/action"),
        (json!({"action": "ban"}), "/action"),
        (json!({"action": "approve", "until": now + TimeDelta::days(1)}), "/until"),
        (json!({"status": "new"}), "/status"),
        (json!({"status": "resolved", "moderator": ""}), "/moderator"),
    ] {
        let answer = patch(client, &id, &wrong).await;
        answer.problem(422, "validation_failed");
        assert_eq!(answer.pointers(), [pointer], "{wrong}");
    }
    for (wrong, pointer) in [
        (json!({"action": "suspend"}), "/until"),
        (json!({"action": "suspend", "until": now - TimeDelta::days(1)}), "/until"),
        (json!({"action": "suspend", "until": now + TimeDelta::days(3_700)}), "/until"),
        (json!({"action": "reject"}), "/content"),
        (json!({"action": "end"}), "/action"),
    ] {
        let answer = moderate(client, "bob", &wrong).await;
        answer.problem(422, "validation_failed");
        assert_eq!(answer.pointers(), [pointer], "{wrong}");
    }
    moderate(client, "bob", &json!({"action": "lift"})).await.problem(409, "user_not_suspended");
    assert_eq!(standing(client, "bob").await["history"], json!([]), "what was refused is in no history");
    client.acting_for("ada").get(&format!("/v1/reports/{id}")).await.problem(403, "backend_only");
    let end = json!({"kind": "suspension.end", "payload": {"suspension": id}});
    client.post("/v1/jobs", &end).await.problem(422, "validation_failed");
}

#[tokio::test]
async fn a_suspension_ends_by_itself_once_whatever_became_of_those_before_it() {
    let community = Community::start().await;
    let (client, world, clock) = (&community.client, &community.world, &community.clock);
    community.put("bob", json!({})).await;
    let begun = clock.now();
    let suspend = async |days: i64| {
        let until = begun + TimeDelta::days(days);
        let after = moderate(client, "bob", &json!({"action": "suspend", "until": until, "notes": "Spam"})).await.expect(201);
        assert_eq!(after["state"], "suspended", "{after}");
        assert_eq!(after["until"].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap(), until);
        assert_eq!(world.number(ENDS).await, 1, "one job ends it, whatever was before");
    };
    suspend(2).await;
    is_told(&community, "bob", "Your post was suspended").await;
    suspend(5).await;
    community.worker.kill9().await.unwrap();
    clock.set(begun + TimeDelta::days(3));
    assert_eq!(standing(client, "bob").await["state"], "suspended");
    // Made shorter, and over while no job can run: it is over.
    suspend(4).await;
    until("all of that was told", async || match titles(&community, "bob").await.len() {
        3 => Ok(()),
        other => Err(other),
    })
    .await;
    client.pause("analytics").await;
    clock.set(begun + TimeDelta::days(4));
    let over = standing(client, "bob").await;
    assert_eq!(
        (&over["state"], &over["until"], &over["history"][0]["action"]),
        (&json!("active"), &Value::Null, &json!("suspend")),
        "{over}"
    );
    client.post("/v1/queues/analytics/resume", &json!({})).await.expect(200);
    is_told(&community, "bob", "Your post was ended").await;
    clock.set(begun + TimeDelta::days(6));
    let history = standing(client, "bob").await;
    let actions: Vec<&str> = history["history"].as_array().unwrap().iter().map(|done| done["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["end", "suspend", "suspend", "suspend"], "{history}");
    community.mailed("bob", 4).await;

    // Lifted, it does not end; and a ban has no end.
    let until_day_eight = json!({"action": "suspend", "until": begun + TimeDelta::days(8)});
    moderate(client, "bob", &until_day_eight).await.expect(201);
    let lifted = moderate(client, "bob", &json!({"action": "lift", "moderator": "eve"})).await.expect(201);
    assert_eq!((&lifted["state"], world.number(ENDS).await), (&json!("active"), 0), "{lifted}");
    moderate(client, "bob", &until_day_eight).await.expect(201);
    let banned = moderate(client, "bob", &json!({"action": "ban"})).await.expect(201);
    assert_eq!((&banned["state"], &banned["until"], world.number(ENDS).await), (&json!("banned"), &Value::Null, 0), "{banned}");
    clock.set(begun + TimeDelta::days(9));
    is_told(&community, "bob", "Your post was banned").await;
    assert_eq!(standing(client, "bob").await["history"][0]["action"], "ban");
    // However they race, what is in the end is one of them, and the job is that one's.
    let racing = (0..12).map(async |number: i64| {
        let until = begun + TimeDelta::days(20 + number);
        let action = if number % 3 == 0 { json!({"action": "ban"}) } else { json!({"action": "suspend", "until": until}) };
        moderate(client, "bob", &action).await.expect(201);
    });
    futures_util::future::join_all(racing).await;
    let left = world.number("SELECT count(*) FROM suspension WHERE until IS NOT NULL").await;
    assert_eq!((world.number(ENDS).await, world.number("SELECT count(*) FROM suspension").await), (left, 1));
    assert_eq!(
        world.number("SELECT count(*) FROM suspension s JOIN job_waiting w ON w.job_id = s.job_id AND w.run_at = s.until").await,
        left
    );
}
