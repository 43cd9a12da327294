//! Notifications: told to one, many or all of a role, once each, by the channels that users chose, asked when something is about to be sent.

mod gathered;
mod many;

use acceptance::{Client, SetClock, World, id_of, until};
use chrono::TimeDelta;
use sandbox::{Process, services::push::Browser};
use serde_json::{Value, json};

use crate::pushes::register;

const MANIFEST: &str = r#"
[tenant]
name = "community"
[sources.main]
url_env = "OFFSTAGE_SOURCE_PROMPTLOCKR_URL"
[datasets.words]
source = "main"
audience = "users"
sql = "SELECT 'a' AS word"
[mail]
server_env = "OFFSTAGE_SMTP_URL"
from = { email = "no-reply@community.example", name = "Community" }

[notifications.moderation]
channels = ["in_app", "email"]
[notifications.moderation.templates.default]
title = "Your post was {{ data.action }}"
message = "{{ data.notes }}"
subject = "About your post, {{ user.name }}"
email = """
# Hello {{ user.name }}

Your post was **{{ data.action }}**: {{ data.notes }}

[See the rules](https://community.example/rules)
"""
[notifications.moderation.templates.de]
title = "Dein Beitrag: {{ data.action }}"

[notifications.code]
category = "security"
channels = ["in_app", "push", "email"]
critical = true
urgency = "high"
[notifications.code.templates.default]
title = "Your code is {{ data.code }}"

[notifications.greeting]
channels = ["in_app"]
[notifications.greeting.templates.default]
title = "Hello{% if user.locale == 'xx' %} {{ user.name + '!' }}{% endif %}"

[notifications.reply]
[notifications.reply.digest]
window_minutes = 60
[notifications.reply.digest.templates.default]
title = "{{ count }} replies"

[notifications.brief]
channels = ["push"]
ttl_seconds = 600

[notifications.badge]
channels = ["in_app", "email"]
[notifications.badge.templates.default]
title = "A badge"
[notifications.badge.templates.de]
title = "Ein Abzeichen: {{ data.badge.name }}"

[notifications.nudge]
channels = ["push"]
[notifications.nudge.throttle]
most = 1
window_minutes = 60
"#;

/// An installation whose product `community` tells its users things, and whose time stands until it is moved; it begins now, since push
/// services look at our tokens' times by their own clocks.
pub struct Community {
    pub world: World,
    pub client: Client,
    pub clock: SetClock,
    pub worker: Process,
}

impl Community {
    pub async fn start() -> Self {
        let (world, clock) = World::start_now().await;
        let client = world.tenant_of("community", MANIFEST).await;
        let worker = world.start_worker(clock.launch()).await;
        Self { world, client, clock, worker }
    }

    pub async fn put(&self, user: &str, profile: Value) {
        let mut profile = profile;
        profile["email"] = json!(format!("{user}@example.com"));
        self.client.put(&format!("/v1/users/{user}"), &profile).await.expect(201);
    }

    /// Tells something and waits until everybody has been told; how it stands then.
    pub async fn tell(&self, notification: &Value) -> Value {
        let answer = self.client.post("/v1/notifications", notification).await;
        let id = id_of(&answer.expect(202));
        assert_eq!(answer.header("location"), format!("/v1/notifications/triggers/{id}"));
        self.told(&id).await
    }

    pub async fn told(&self, id: &str) -> Value {
        until("everybody has been told", async || {
            let trigger = self.client.get(&format!("/v1/notifications/triggers/{id}")).await.expect(200);
            if trigger["state"] == "told" { Ok(trigger) } else { Err(trigger) }
        })
        .await
    }

    pub async fn inbox(&self, user: &str) -> Value {
        self.client.acting_for(user).get("/v1/notifications?limit=200").await.expect(200)
    }

    /// What a browser was shown.
    pub fn shown(&self, browser: &Browser) -> Vec<Value> {
        let messages = self.world.sandbox.push.messages();
        let own = messages.iter().filter(|message| message.endpoint == browser.endpoint);
        own.map(|message| serde_json::from_slice(&message.payload).unwrap()).collect()
    }

    pub async fn shows(&self, browser: &Browser, count: usize) -> Vec<Value> {
        until("the browser shows it", async || {
            let shown = self.shown(browser);
            if shown.len() >= count { Ok(shown) } else { Err(shown) }
        })
        .await
    }

    fn mails(&self, user: &str) -> Vec<String> {
        let address = format!("{user}@example.com");
        let mails = self.world.sandbox.mail.mails().into_iter().filter(|mail| mail.to == [address.as_str()]);
        mails.map(|mail| String::from_utf8_lossy(&mail.bytes).replace("=\r\n", "")).collect()
    }

    pub async fn mailed(&self, user: &str, count: usize) -> Vec<String> {
        until("the mail has arrived", async || {
            let mails = self.mails(user);
            if mails.len() >= count { Ok(mails) } else { Err(mails) }
        })
        .await
    }

    /// A user's messages by a channel, newest first.
    pub async fn log(&self, user: &str, channel: &str) -> Vec<Value> {
        let page = self.client.get(&format!("/v1/deliveries?user={user}&limit=100")).await.expect(200);
        page["items"].as_array().unwrap().iter().filter(|item| item["channel"] == channel).cloned().collect()
    }

    /// Waits until the newest message of a user by a channel has this `why`.
    pub async fn logged(&self, user: &str, channel: &str, why: &str) -> Value {
        until(why, async || {
            let log = self.log(user, channel).await;
            log.first().filter(|item| item["why"] == why).cloned().ok_or(log)
        })
        .await
    }
}

#[tokio::test]
async fn one_user_is_told_by_the_channels_that_they_chose() {
    let community = Community::start().await;
    let (client, world) = (&community.client, &community.world);
    community.put("ada", json!({"name": "Ada", "locale": "de-AT"})).await;
    let (browser, _) = register(world, client, "ada").await;
    let ada = client.acting_for("ada");
    let mut live = ada.events("/v1/notifications/events", None).await;
    assert_eq!(live.must("how many are unread").await.name, "inbox");
    let comment = json!({"type": "comment", "to": {"user": "ada"}, "title": "Bob commented", "message": "Nice!", "url": "/prompts/1",
                         "data": {"prompt": 1}, "idempotency_key": "comment-1"});
    let told = community.tell(&comment).await;
    assert_eq!(
        (&told["recipients"], &told["in_app"], &told["pushes"], &told["emails"]),
        (&json!(1), &json!(1), &json!(1), &json!(0)),
        "{told}"
    );
    let again = client.post("/v1/notifications", &comment).await.expect(200);
    assert_eq!(again["id"], told["id"], "the same request is the same notification");
    let inbox = community.inbox("ada").await;
    let item = &inbox["items"][0];
    assert_eq!((&item["type"], &item["title"], &item["message"]), (&json!("comment"), &json!("Bob commented"), &json!("Nice!")));
    assert_eq!((&item["data"], &inbox["unread_count"]), (&json!({"prompt": 1, "url": "/prompts/1"}), &json!(1)));
    assert_eq!(live.must("the notification").await.data["id"], item["id"]);
    let shown = community.shows(&browser, 1).await;
    assert_eq!((&shown[0]["title"], &shown[0]["body"], &shown[0]["url"]), (&json!("Bob commented"), &json!("Nice!"), &json!("/prompts/1")));

    // A type of the product's own, in the user's language where it has words in it; what is filled in stays text.
    let moderation =
        json!({"type": "moderation", "to": {"user": "ada"}, "data": {"action": "flagged", "notes": "<b>[spam](https://evil.example)</b>"}});
    let told = community.tell(&moderation).await;
    assert_eq!((&told["in_app"], &told["pushes"], &told["emails"]), (&json!(1), &json!(0), &json!(1)), "{told}");
    assert_eq!(community.inbox("ada").await["items"][0]["title"], "Dein Beitrag: flagged");
    let mail = community.mailed("ada", 1).await.remove(0);
    assert!(mail.contains("Subject: About your post, Ada"), "{mail}");
    assert!(mail.contains("text/plain") && mail.contains("See the rules (https://community.example/rules)"), "{mail}");
    assert!(mail.contains("<h1>Hello Ada</h1>") && mail.contains("<strong>flagged</strong>"), "{mail}");
    let html = mail.split_once("text/html").unwrap().1;
    assert!(html.contains("&lt;b&gt;[spam](https://evil.example)&lt;/b&gt;") && !html.contains("<b>"), "{mail}");

    // What was chosen.
    ada.put("/v1/users/ada/preferences", &json!({"categories": {"comment": {"email": true, "push": false, "in_app": false}}}))
        .await
        .expect(200);
    let told = community.tell(&json!({"type": "comment", "to": {"user": "ada"}, "title": "Eve commented"})).await;
    assert_eq!((&told["in_app"], &told["emails"]), (&json!(0), &json!(1)), "{told}");
    community.mailed("ada", 2).await;
    community.logged("ada", "push", "preference").await;
    community.logged("ada", "in_app", "preference").await;
    assert_eq!(community.shown(&browser).len(), 1);
}

#[tokio::test]
async fn what_is_wrong_is_said_at_the_door() {
    let world = World::start().await;
    let client = world.tenant_of("community", MANIFEST).await;
    for (wrong, pointer) in [
        (json!({"type": "sale", "to": {"user": "ada"}, "title": "x"}), "/type"),
        (json!({"type": "comment", "to": {"user": "ada"}}), "/title"),
        (json!({"type": "comment", "to": {"users": []}, "title": "x"}), "/to/users"),
        (json!({"type": "comment", "to": {"users": ["ada", "ada"]}, "title": "x"}), "/to/users/1"),
        (json!({"type": "comment", "to": {"role": "Moderators"}, "title": "x"}), "/to/role"),
        (json!({"type": "comment", "to": {"user": "ada"}, "title": "x", "url": "javascript:alert(1)"}), "/url"),
        (json!({"type": "comment", "to": {"user": "ada"}, "title": "x", "data": {"url": "javascript:alert(1)"}}), "/data/url"),
    ] {
        let answer = client.post("/v1/notifications", &wrong).await;
        answer.problem(422, "validation_failed");
        assert_eq!(answer.pointers(), [pointer], "{wrong}");
    }
    for to in [json!({}), json!({"user": "ada", "role": "moderator"}), json!({"everybody": true})] {
        let answer = client.post("/v1/notifications", &json!({"type": "comment", "to": to, "title": "x"})).await;
        answer.problem(422, "validation_failed");
        assert!(answer.pointers()[0].starts_with("/to"), "{to}");
    }
    let fine = json!({"type": "comment", "to": {"user": "ada"}, "title": "x"});
    client.acting_for("ada").post("/v1/notifications", &fine).await.problem(403, "backend_only");
    let job = json!({"kind": "notification.tell", "payload": {"trigger": "01a1fec9-0260-7bfb-bfbe-6904ae4fad2e", "chunk": 1}});
    client.post("/v1/jobs", &job).await.problem(422, "validation_failed");
}

#[tokio::test]
async fn preferences_are_asked_when_it_is_sent_and_nobody_mutes_what_is_critical() {
    let community = Community::start().await;
    let client = &community.client;
    community.put("ada", json!({})).await;
    let (browser, _) = register(&community.world, client, "ada").await;
    client.pause("push").await;
    community.tell(&json!({"type": "comment", "to": {"user": "ada"}, "title": "Bob commented"})).await;
    let ada = client.acting_for("ada");
    // Said after it was accepted.
    let said = json!({"categories": {"comment": {"push": false}, "security": {"push": false, "email": false, "in_app": false}}});
    ada.put("/v1/users/ada/preferences", &said).await.expect(200);
    client.post("/v1/queues/push/resume", &json!({})).await.expect(200);
    community.logged("ada", "push", "preference").await;
    // Their switch for all pushes, and quiet hours: neither holds a code back.
    let now = community.clock.now();
    let hours = json!({"from": (now - TimeDelta::hours(1)).format("%H:%M").to_string(), "to": (now + TimeDelta::hours(1)).format("%H:%M").to_string()});
    let mut quiet = said;
    quiet["quiet_hours"] = hours;
    ada.put("/v1/users/ada/preferences", &quiet).await.expect(200);
    client.put("/v1/users/ada", &json!({"email": "ada@example.com", "channels": {"push": false, "email": false}})).await.expect(200);
    community.tell(&json!({"type": "code", "to": {"user": "ada"}, "data": {"code": "1234"}})).await;
    assert_eq!(community.shows(&browser, 1).await[0]["title"], "Your code is 1234");
    community.mailed("ada", 1).await;
    assert_eq!(community.inbox("ada").await["items"][0]["title"], "Your code is 1234");
    community.tell(&json!({"type": "like", "to": {"user": "ada"}, "title": "Eve likes it"})).await;
    community.logged("ada", "push", "channel_off").await;
    assert_eq!(community.shown(&browser).len(), 1);
}

#[tokio::test]
async fn quiet_hours_put_off_and_a_late_code_is_not_sent() {
    let community = Community::start().await;
    let client = &community.client;
    community.put("ada", json!({"time_zone": "Asia/Kathmandu"})).await;
    let (browser, _) = register(&community.world, client, "ada").await;
    let ada = client.acting_for("ada");
    let now = community.clock.now();
    let there = |at: chrono::DateTime<chrono::Utc>| (at + TimeDelta::minutes(5 * 60 + 45)).format("%H:%M").to_string();
    let hours = json!({"from": there(now - TimeDelta::minutes(90)), "to": there(now + TimeDelta::minutes(90))});
    let put = ada.put("/v1/users/ada/preferences", &json!({"categories": {}, "quiet_hours": hours})).await.expect(200);
    assert_eq!(put["quiet_hours"], hours);
    assert_eq!(ada.get("/v1/users/ada/preferences").await.expect(200)["quiet_hours"], hours);
    // Its ten minutes begin in the morning.
    community.tell(&json!({"type": "brief", "to": {"user": "ada"}, "title": "In brief"})).await;
    community.logged("ada", "push", "quiet_hours").await;
    community.clock.advance(TimeDelta::minutes(11));
    community.tell(&json!({"type": "comment", "to": {"user": "ada"}, "title": "At night"})).await;
    let log = community.logged("ada", "push", "quiet_hours").await;
    assert_eq!((&log["final"], &log["state"]), (&json!(false), &json!("not_sent")), "{log}");
    assert!(community.shown(&browser).is_empty());
    community.clock.advance(TimeDelta::minutes(81));
    let mut shown: Vec<_> = community.shows(&browser, 2).await.iter().map(|shown| shown["title"].to_string()).collect();
    shown.sort();
    assert_eq!(shown, ["\"At night\"", "\"In brief\""]);
    until("the log has one row of each", async || {
        let log = community.log("ada", "push").await;
        if log.len() == 2 && log.iter().all(|row| row["state"] == "sent") { Ok(()) } else { Err(log) }
    })
    .await;

    client.pause("push").await;
    let by = community.clock.now() + TimeDelta::minutes(5);
    community.tell(&json!({"type": "code", "to": {"user": "ada"}, "data": {"code": "1234"}, "send_by": by})).await;
    community.clock.advance(TimeDelta::minutes(6));
    client.post("/v1/queues/push/resume", &json!({})).await.expect(200);
    let log = community.logged("ada", "push", "too_late").await;
    assert_eq!((&log["final"], &log["state"]), (&json!(true), &json!("not_sent")), "{log}");
    assert_eq!(community.shown(&browser).len(), 2);
    // One that could not even be told in time.
    let late = json!({"type": "code", "to": {"user": "ada"}, "data": {"code": "5678"}, "send_by": by});
    assert_eq!(community.tell(&late).await["in_app"], 0);
    community.logged("ada", "in_app", "too_late").await;
}

#[tokio::test]
async fn what_waits_goes_when_its_user_is_awake_however_often_they_change_their_mind() {
    let community = Community::start().await;
    community.put("ada", json!({})).await;
    let ada = community.client.acting_for("ada");
    let rest = async |from: i64, to: i64| {
        let at = |minutes: i64| (community.clock.now() + TimeDelta::minutes(minutes)).format("%H:%M").to_string();
        let hours = json!({"from": at(from), "to": at(to)});
        ada.put("/v1/users/ada/preferences", &json!({"categories": {}, "quiet_hours": hours})).await.expect(200);
    };
    rest(-5, -10).await;
    community.tell(&json!({"type": "badge", "to": {"user": "ada"}})).await;
    community.logged("ada", "email", "quiet_hours").await;
    community.clock.advance(TimeDelta::minutes(24 * 60 - 30));
    rest(-10, 10 * 60).await;
    community.clock.advance(TimeDelta::minutes(25));
    until("it waits anew", async || {
        let log = community.log("ada", "email").await;
        if log[0]["attempts"] == 2 { Ok(()) } else { Err(log) }
    })
    .await;
    assert_eq!(community.log("ada", "email").await[0]["final"], false);
    community.clock.advance(TimeDelta::hours(11));
    assert!(community.mailed("ada", 1).await[0].contains("Subject: A badge"));
}

#[tokio::test]
async fn who_there_are_no_words_for_keeps_nobody_else_from_being_told() {
    let community = Community::start().await;
    community.put("ada", json!({})).await;
    community.put("hans", json!({"locale": "de"})).await;
    let told = community.tell(&json!({"type": "badge", "to": {"users": ["ada", "hans"]}})).await;
    assert_eq!((&told["told"], &told["in_app"], &told["emails"]), (&json!(2), &json!(1), &json!(1)), "{told}");
    community.mailed("ada", 1).await;
    for channel in ["in_app", "email"] {
        let log = community.logged("hans", channel, "template_failed").await;
        assert!(log["detail"].as_str().unwrap().contains("`badge`") && log["final"] == true, "{log}");
    }
    // There is nobody else: it is the notification that failed.
    let alone = id_of(&community.client.post("/v1/notifications", &json!({"type": "badge", "to": {"user": "hans"}})).await.expect(202));
    let trigger = until("it failed", async || {
        let trigger = community.client.get(&format!("/v1/notifications/triggers/{alone}")).await.expect(200);
        if trigger["state"] == "failed" { Ok(trigger) } else { Err(trigger) }
    })
    .await;
    assert_eq!(trigger["error"]["code"], "notification_template_failed");
}

#[tokio::test]
async fn what_is_told_by_mail_and_push_is_not_read_from_the_page() {
    let community = Community::start().await;
    let client = &community.client;
    community.put("ada", json!({})).await;
    register(&community.world, client, "ada").await;
    community.tell(&json!({"type": "code", "to": {"user": "ada"}, "data": {"code": "493201"}})).await;
    community.mailed("ada", 1).await;
    let ada = client.acting_for("ada");
    for kind in ["email.send", "push.send", "notification.fan_out"] {
        let jobs = client.get(&format!("/v1/jobs?kind={kind}")).await.expect(200);
        let id = id_of(&jobs["items"][0]);
        let job = client.succeeded(&id).await;
        assert!(job["payload"].to_string().contains("493201"), "{job}");
        let seen = ada.get(&format!("/v1/jobs/{id}?include=attempts")).await.expect(200);
        assert!(seen["state"] == "succeeded" && !seen.to_string().contains("493201"), "{seen}");
        assert_eq!((seen.get("payload"), seen.get("result")), (None, None), "{kind}");
    }
}

#[tokio::test]
async fn an_export_s_owner_hears_of_it_with_a_link_that_works() {
    let community = Community::start().await;
    let client = &community.client;
    community.put("ada", json!({})).await;
    let (browser, _) = register(&community.world, client, "ada").await;
    let ada = client.acting_for("ada");
    ada.put("/v1/users/ada/preferences", &json!({"categories": {"exports": {"email": true}}})).await.expect(200);
    let export = id_of(&ada.post("/v1/exports", &json!({"dataset": "words", "format": "csv"})).await.expect(202));
    ada.succeeded(&export).await;
    let shown = community.shows(&browser, 1).await;
    assert_eq!(shown[0]["title"], "Your export is ready");
    let mail = community.mailed("ada", 1).await.remove(0);
    assert!(mail.contains("Subject: Your export is ready") && mail.contains("words"), "{mail}");
    let inbox = community.inbox("ada").await;
    assert_eq!((inbox["items"].as_array().unwrap().len(), &inbox["items"][0]["type"]), (1, &json!("system")), "once: {inbox}");
    // As long as the file is there, and no longer.
    let page = ada.get(&format!("/v1/exports/{export}")).await.expect(200)["page_url"].as_str().unwrap().to_owned();
    assert_eq!(client.without_key().get(&page).await.status, 200);
    community.clock.advance(TimeDelta::days(6));
    assert_eq!(client.without_key().get(&page).await.status, 200);
}
