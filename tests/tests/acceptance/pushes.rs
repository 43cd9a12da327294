//! Web push: to every browser of a user once, and what becomes of each whatever its push service says.

use acceptance::{Client, SetClock, World, id_of};
use chrono::TimeDelta;
use reqwest::Method;
use sandbox::{Fault, Process, Rule, services::push::Browser};
use serde_json::{Value, json};

fn subscription(browser: &Browser) -> Value {
    json!({"endpoint": browser.endpoint, "expirationTime": null, "keys": {"p256dh": browser.p256dh, "auth": browser.auth}})
}

/// A browser subscribes and its page registers it for a user.
pub async fn register(world: &World, client: &Client, user: &str) -> (Browser, String) {
    let user = client.acting_for(user);
    let key = user.get("/v1/push/key").await.expect(200);
    let browser = world.sandbox.push.subscribe(key["key"].as_str()).unwrap();
    let registered = user.post("/v1/push/subscriptions", &subscription(&browser)).await.expect(200);
    (browser, id_of(&registered))
}

/// An installation whose time stands until it is moved; it begins now, since push services look at our tokens' times by their own clocks.
struct Pushing {
    world: World,
    worker: Process,
    clock: SetClock,
}

impl Pushing {
    async fn start() -> Self {
        let (world, clock) = World::start_now().await;
        let worker = world.start_worker(clock.launch()).await;
        Self { world, worker, clock }
    }

    async fn push(&self, push: &Value) -> String {
        id_of(&self.world.client.post("/v1/pushes", push).await.expect(202))
    }

    /// What is known of a job's message to a browser.
    async fn delivery(&self, job: &str, browser: &str) -> Value {
        let page = self.world.client.get(&format!("/v1/deliveries?job={job}")).await.expect(200);
        let found = page["items"].as_array().unwrap().iter().find(|item| item["browser"] == browser);
        found.unwrap_or_else(|| panic!("{browser}: {page}")).clone()
    }

    /// What a browser was shown.
    fn shown(&self, browser: &Browser) -> Vec<Value> {
        let messages = self.world.sandbox.push.messages();
        let own = messages.iter().filter(|message| message.endpoint == browser.endpoint);
        own.map(|message| serde_json::from_slice(&message.payload).unwrap()).collect()
    }

    async fn is_kept(&self, browser: &str) -> bool {
        self.world.number(format!("SELECT count(*) FROM push_subscription WHERE id = '{browser}'")).await == 1
    }

    fn fault(&self, browser: &Browser, fault: Fault) {
        let path = browser.endpoint.rsplit('/').next().unwrap();
        self.world.sandbox.push.faults().add(Rule::from(fault).on("Push").path_contains(path).times(1));
    }
}

#[tokio::test]
async fn a_push_reaches_every_browser_of_its_user_and_no_other() {
    let pushing = Pushing::start().await;
    let (world, client) = (&pushing.world, &pushing.world.client);
    let (first, _) = register(world, client, "ada").await;
    let (second, second_id) = register(world, client, "ada").await;
    let (other, _) = register(world, client, "eve").await;
    let push = json!({
        "user": "ada", "title": "Your export is ready", "body": "prompts.csv", "url": "/exports/1", "tag": "export-1", "ttl": 600, "urgency": "high",
    });
    let id = pushing.push(&push).await;
    let job = client.succeeded(&id).await;
    assert_eq!((&job["owner"], &job["result"]), (&json!("ada"), &json!({"sent": 2, "gone": 0, "refused": 0})), "{job}");
    for browser in [&first, &second] {
        let expected = json!({"id": id, "title": "Your export is ready", "body": "prompts.csv", "url": "/exports/1", "tag": "export-1"});
        assert_eq!(pushing.shown(browser), [expected]);
    }
    assert!(pushing.shown(&other).is_empty());
    let message = world.sandbox.push.messages().into_iter().next().unwrap();
    assert!((1..=600).contains(&message.ttl) && message.urgency == "high" && message.topic.is_some(), "{message:?}");
    assert_eq!(message.contact.as_deref(), Some("mailto:operator@offstage.example"));
    assert_eq!(pushing.delivery(&id, &second_id).await["state"], "sent");
    // Users see their own.
    let own = client.acting_for("ada").get("/v1/deliveries").await.expect(200);
    assert_eq!(own["items"].as_array().unwrap().len(), 2, "{own}");
    client.acting_for("eve").post("/v1/pushes", &push).await.problem(422, "validation_failed");

    // Nobody there is no failure.
    let nobody = client.succeeded(&pushing.push(&json!({"user": "nobody", "title": "Hello"})).await).await;
    assert_eq!(nobody["result"]["sent"], 0);
    let page = client.get(&format!("/v1/deliveries?job={}", id_of(&nobody))).await.expect(200);
    assert_eq!((&page["items"][0]["state"], &page["items"][0]["why"]), (&json!("not_sent"), &json!("no_browser")), "{page}");
    // No endpoint is told to anybody, nor written down elsewhere.
    let path = first.endpoint.rsplit('/').next().unwrap();
    for (what, text) in [("the worker's log", pushing.worker.log()), ("the API's log", world.api.log()), ("the answer", own.to_string())] {
        assert!(!text.contains(path), "{what}");
    }
    for table in ["delivery", "effect", "job", "job_attempt"] {
        assert_eq!(world.number(format!("SELECT count(*) FROM {table} t WHERE t::text LIKE '%{path}%'")).await, 0, "{table}");
    }
}

/// What must come of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Done,
    Remove,
    Fail,
    Wait,
}

#[tokio::test]
async fn every_answer_of_a_push_service_has_its_action() {
    let pushing = Pushing::start().await;
    let (world, client) = (&pushing.world, &pushing.world.client);
    for (number, (fault, action, code)) in [
        (None, Action::Done, ""),
        (Some(Fault::Status(201)), Action::Done, ""),
        (Some(Fault::Status(404)), Action::Remove, "push_subscription_gone"),
        (Some(Fault::Status(410)), Action::Remove, "push_subscription_gone"),
        (Some(Fault::Status(413)), Action::Fail, "push_too_large"),
        (Some(Fault::Status(400)), Action::Fail, "push_refused"),
        (Some(Fault::Status(401)), Action::Wait, "push_unauthorised"),
        (Some(Fault::Status(403)), Action::Wait, "push_unauthorised"),
        (Some(Fault::Status(429)), Action::Wait, "push_later"),
        (Some(Fault::Busy { status: 429, retry_after: 120 }), Action::Wait, "push_later"),
        (Some(Fault::Status(500)), Action::Wait, "push_later"),
        (Some(Fault::Busy { status: 503, retry_after: 120 }), Action::Wait, "push_later"),
        (Some(Fault::LoseAnswer), Action::Wait, "push_unanswered"),
    ]
    .into_iter()
    .enumerate()
    {
        let context = format!("{fault:?}");
        println!("{context}: {action:?}");
        let user = format!("user-{number}");
        let (browser, browser_id) = register(world, client, &user).await;
        if let Some(fault) = fault {
            pushing.fault(&browser, fault);
        }
        let id = pushing.push(&json!({"user": user, "title": "Hello"})).await;
        match action {
            Action::Done => {
                client.succeeded(&id).await;
                assert_eq!(pushing.delivery(&id, &browser_id).await["state"], "sent", "{context}");
            }
            Action::Remove => {
                let job = client.succeeded(&id).await;
                assert_eq!(job["result"]["gone"], 1, "{context}: {job}");
                assert_eq!(pushing.delivery(&id, &browser_id).await["why"], code, "{context}");
            }
            Action::Fail => {
                let job = client.ended(&id).await;
                assert_eq!(
                    (&job["state"], &job["error"]["code"], &job["attempt"]),
                    (&json!("failed"), &json!(code), &json!(1)),
                    "{context}: {job}"
                );
            }
            Action::Wait => {
                let job = client.wait_for(&id, "put off", |job| job["state"] == "waiting" && job["reason"] == "backing_off").await;
                assert_eq!(job["error"]["code"], code, "{context}: {job}");
                let delivery = pushing.delivery(&id, &browser_id).await;
                let state = if fault == Some(Fault::LoseAnswer) { "unknown" } else { "not_sent" };
                assert_eq!((&delivery["state"], &delivery["final"]), (&json!(state), &json!(false)), "{context}: {delivery}");
                if let Some(Fault::Busy { retry_after, .. }) = fault {
                    let at: chrono::DateTime<chrono::Utc> = job["run_at"].as_str().unwrap().parse().unwrap();
                    assert!(at >= pushing.clock.now() + TimeDelta::seconds(retry_after.into()), "{context}: as it was told: {job}");
                }
                pushing.clock.advance(TimeDelta::minutes(20));
                let job = client.succeeded(&id).await;
                assert_eq!(job["attempt"], 2, "{context}: {job}");
            }
        }
        assert_eq!(pushing.is_kept(&browser_id).await, action != Action::Remove, "{context}");
        // What is gone for a browser is a new one's chance: it registers once more.
        if action == Action::Remove {
            client.acting_for(&user).post("/v1/push/subscriptions", &subscription(&browser)).await.expect(200);
            client.succeeded(&pushing.push(&json!({"user": user, "title": "Again"})).await).await;
            assert_eq!(pushing.shown(&browser).last().unwrap()["title"], "Again", "{context}");
        }
    }
}

#[tokio::test]
async fn a_browser_that_has_it_is_not_pushed_to_again_for_another_s_sake() {
    let pushing = Pushing::start().await;
    let (world, client) = (&pushing.world, &pushing.world.client);
    let (ready, ready_id) = register(world, client, "ada").await;
    let (busy, busy_id) = register(world, client, "ada").await;
    let (gone, gone_id) = register(world, client, "ada").await;
    pushing.fault(&busy, Fault::Status(503));
    world.sandbox.push.unsubscribe(&gone);
    let id = pushing.push(&json!({"user": "ada", "title": "Hello", "ttl": 3_600})).await;
    client.wait_for(&id, "put off", |job| job["reason"] == "backing_off").await;
    assert_eq!((pushing.shown(&ready).len(), pushing.shown(&busy).len()), (1, 0));
    assert!(!pushing.is_kept(&gone_id).await);
    pushing.clock.advance(TimeDelta::minutes(2));
    let job = client.succeeded(&id).await;
    assert_eq!(job["result"]["sent"], 2, "{job}");
    assert_eq!((pushing.shown(&ready).len(), pushing.shown(&busy).len()), (1, 1));
    for (browser, attempts) in [(&ready_id, 1), (&busy_id, 2)] {
        assert_eq!(pushing.delivery(&id, browser).await["attempts"], attempts);
    }
    // What is left of its time is what the push service is told.
    let ttl: Vec<_> = world.sandbox.push.messages().iter().map(|message| message.ttl).collect();
    assert_eq!(ttl, [3_600, 3_480]);

    // And when that is over, nothing is pushed any more.
    pushing.fault(&busy, Fault::Status(503));
    let late = pushing.push(&json!({"user": "ada", "title": "Hello", "ttl": 60})).await;
    client.wait_for(&late, "put off", |job| job["reason"] == "backing_off").await;
    pushing.clock.advance(TimeDelta::minutes(2));
    assert_eq!(client.ended(&late).await["error"]["code"], "push_too_late");
    assert_eq!(pushing.delivery(&late, &busy_id).await["final"], true, "nobody tries it again");
    assert_eq!(pushing.shown(&busy).len(), 1);
}

#[tokio::test]
async fn a_browser_is_its_last_users_until_they_log_out() {
    let pushing = Pushing::start().await;
    let (world, client) = (&pushing.world, &pushing.world.client);
    let (browser, first) = register(world, client, "ada").await;
    let (ada, eve) = (client.acting_for("ada"), client.acting_for("eve"));
    let of = async |user: &Client| user.post("/v1/push/subscriptions", &subscription(&browser)).await;
    let to =
        async |user: &str| client.succeeded(&pushing.push(&json!({"user": user, "title": "Hello"})).await).await["result"]["sent"].clone();
    assert_eq!(id_of(&of(&ada).await.expect(200)), first, "once more changes nothing");
    assert_eq!(to("ada").await, 1);
    // Somebody else signs in at the same machine.
    assert_ne!(id_of(&of(&eve).await.expect(200)), first);
    assert_eq!((to("ada").await, to("eve").await), (json!(0), json!(1)));
    let forget =
        |user: &Client, endpoint: &str| user.request(Method::DELETE, "/v1/push/subscriptions").json(&json!({"endpoint": endpoint}));
    ada.send(forget(&ada, &browser.endpoint)).await.problem(404, "subscription_not_found");
    assert_eq!(eve.send(forget(&eve, &browser.endpoint)).await.status, 204);
    assert_eq!(to("eve").await, 0);

    // The browser's subscription is renewed: the new one takes the old one's place, said twice or not.
    let (old, id) = register(world, client, "ada").await;
    let renewed = world.sandbox.push.subscribe(None).unwrap();
    world.sandbox.push.unsubscribe(&old);
    let mut said = subscription(&renewed);
    said["oldEndpoint"] = json!(old.endpoint);
    for _ in 0..2 {
        assert_eq!(id_of(&ada.post("/v1/push/subscriptions", &said).await.expect(200)), id);
    }
    assert_eq!((to("ada").await, pushing.shown(&renewed).len()), (json!(1), 1));
    // Somebody else's is not taken over by naming it.
    let (eves, _) = register(world, client, "eve").await;
    let mine = world.sandbox.push.subscribe(None).unwrap();
    let mut said = subscription(&mine);
    said["oldEndpoint"] = json!(eves.endpoint);
    ada.post("/v1/push/subscriptions", &said).await.expect(200);
    assert_eq!(to("eve").await, 1);

    // More than twenty are not kept: the one that was registered longest ago gives way.
    for _ in 0..22 {
        register(world, client, "many").await;
    }
    assert_eq!(world.number("SELECT count(*) FROM push_subscription WHERE owner = 'many'").await, 20);
    assert_eq!(world.client.get("/v1/push/key").await.expect(200)["key"].as_str().map(str::len), Some(87));

    let user = client.acting_for("ada");
    let refused = async |change: Value| {
        let mut said = subscription(&mine);
        said.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let answer = user.post("/v1/push/subscriptions", &said).await;
        answer.problem(422, "validation_failed");
        answer.pointers()
    };
    assert_eq!(refused(json!({"endpoint": "http://10.0.0.1/push/x"})).await, ["/endpoint"]);
    assert_eq!(refused(json!({"endpoint": "https://169.254.169.254/latest"})).await, ["/endpoint"]);
    assert_eq!(refused(json!({"keys": {"p256dh": "AAAA", "auth": mine.auth}})).await, ["/keys/p256dh"]);
    assert_eq!(refused(json!({"applicationServerKey": mine.p256dh})).await, ["/applicationServerKey"]);
    client.post("/v1/push/subscriptions", &subscription(&mine)).await.problem(400, "header_invalid");
}

#[tokio::test]
async fn nobody_gets_a_browser_while_they_are_erased() {
    let world = World::start().await;
    register(&world, &world.client, "ada").await;
    world.client.delete("/v1/users/ada").await.expect(202);
    let ada = world.client.acting_for("ada");
    let key = ada.get("/v1/push/key").await.expect(200);
    let browser = world.sandbox.push.subscribe(key["key"].as_str()).unwrap();
    ada.post("/v1/push/subscriptions", &subscription(&browser)).await.problem(409, "user_being_erased");
}
