//! The table: at which stage of SMTP what goes wrong, and what it does to the job, to the effect, to the recipient and to the sender.

use acceptance::{id_of, until};
use chrono::TimeDelta;
use sandbox::{Fault, Rule};
use serde_json::{Value, json};

use super::{Post, parsed, to};

/// What must come of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Retry,
    Unknown,
    Suppress,
    Fail,
    Pause,
}

const DROP: Fault = Fault::Drop { after_bytes: 0 };

const fn reply(code: u16, enhanced: [u16; 3]) -> Fault {
    Fault::Reply { code, enhanced }
}

/// A server that hangs is late at its stage, which takes minutes here: the client's own tests have that, with deadlines of their own, and
/// say that it means the same as a connection that is cut.
const TABLE: &[(&str, Fault, Verdict)] = &[
    ("greeting", Fault::Status(421), Verdict::Retry),
    ("greeting", Fault::Status(554), Verdict::Pause),
    ("greeting", DROP, Verdict::Retry),
    ("EHLO", reply(421, [4, 3, 2]), Verdict::Retry),
    ("EHLO", reply(550, [5, 7, 1]), Verdict::Pause),
    ("EHLO", DROP, Verdict::Retry),
    ("STARTTLS", reply(454, [4, 7, 0]), Verdict::Retry),
    ("STARTTLS", reply(554, [5, 7, 3]), Verdict::Pause),
    ("STARTTLS", DROP, Verdict::Retry),
    ("AUTH", reply(454, [4, 7, 0]), Verdict::Retry),
    ("AUTH", reply(535, [5, 7, 8]), Verdict::Pause),
    ("AUTH", DROP, Verdict::Retry),
    ("MAIL", reply(451, [4, 3, 0]), Verdict::Retry),
    ("MAIL", reply(550, [5, 7, 1]), Verdict::Pause),
    ("RCPT", reply(450, [4, 2, 0]), Verdict::Retry),
    ("RCPT", reply(421, [4, 3, 2]), Verdict::Retry),
    ("RCPT", reply(550, [5, 1, 1]), Verdict::Suppress),
    ("RCPT", Fault::Status(550), Verdict::Suppress),
    ("RCPT", reply(552, [5, 2, 2]), Verdict::Fail),
    ("RCPT", reply(554, [5, 7, 1]), Verdict::Pause),
    ("RCPT", DROP, Verdict::Retry),
    ("DATA", reply(451, [4, 3, 0]), Verdict::Retry),
    ("DATA", reply(554, [5, 6, 0]), Verdict::Fail),
    ("DATA", reply(554, [5, 7, 1]), Verdict::Pause),
    ("DATA", DROP, Verdict::Retry),
    ("message", reply(451, [4, 3, 0]), Verdict::Retry),
    ("message", reply(554, [5, 6, 0]), Verdict::Fail),
    ("message", reply(550, [5, 7, 1]), Verdict::Pause),
    ("message", DROP, Verdict::Unknown),
    ("message", Fault::LoseAnswer, Verdict::Unknown),
];

#[tokio::test]
async fn a_server_that_does_not_let_us_in() {
    every_failure_has_its_verdict(&["greeting", "EHLO"]).await;
}

#[tokio::test]
async fn a_server_that_does_not_trust_us() {
    every_failure_has_its_verdict(&["STARTTLS", "AUTH"]).await;
}

#[tokio::test]
async fn a_server_that_does_not_take_the_envelope() {
    every_failure_has_its_verdict(&["MAIL", "RCPT"]).await;
}

#[tokio::test]
async fn a_server_that_does_not_take_the_message() {
    every_failure_has_its_verdict(&["DATA", "message"]).await;
}

async fn every_failure_has_its_verdict(stages: &[&str]) {
    let post = Post::start().await;
    let mut pauses = 0;
    for (number, (stage, fault, verdict)) in TABLE.iter().enumerate().filter(|(_, (stage, ..))| stages.contains(stage)) {
        let address = format!("row-{number}@example.com");
        let context = format!("{stage}, {fault:?}");
        println!("{context}: {verdict:?}");
        post.cut_connections().await;
        let faults = post.world.sandbox.mail.faults();
        faults.add(Rule::from(*fault).on(*stage).times(1));
        let id = post.mail(&to(&address)).await;
        match verdict {
            Verdict::Retry => retried(&post, &id, &address, &context).await,
            Verdict::Unknown => doubted(&post, &id, &address, *fault == Fault::LoseAnswer, &context).await,
            Verdict::Suppress => suppressed(&post, &id, &address, &context).await,
            Verdict::Fail => refused(&post, &id, &address, &context).await,
            Verdict::Pause => {
                pauses += 1;
                paused(&post, &id, &address, &context).await;
                let counted = post.world.figure(&post.worker, "offstage_mail_sender_pauses_total", &[]).await;
                assert!((counted - f64::from(pauses)).abs() < 0.5, "{context}: {counted} pauses");
            }
        }
        assert!(faults.rules().is_empty(), "{context}: the fault was met");
    }
}

async fn known(post: &Post, id: &str) -> (String, String, Value) {
    let delivery = post.delivery(id).await;
    let word = |field: &str| delivery[field].as_str().unwrap_or_default().to_owned();
    (word("state"), word("why"), delivery["final"].clone())
}

async fn retried(post: &Post, id: &str, address: &str, context: &str) {
    let job = post.shop.wait_for(id, "put off", |job| job["state"] == "waiting" && job["reason"] == "backing_off").await;
    assert_eq!((&job["attempt"], &job["error"]["code"]), (&json!(1), &json!("mail_deferred")), "{context}: {job}");
    assert_eq!(post.effect(id).await, -1, "{context}: it did not happen");
    assert_eq!(known(post, id).await, ("not_sent".into(), "mail_deferred".into(), json!(false)), "{context}");
    post.later();
    let job = post.shop.succeeded(id).await;
    assert_eq!((&job["attempt"], post.effect(id).await), (&json!(2), 1), "{context}: {job}");
    assert_eq!(post.arrived(address).len(), 1, "{context}");
    assert_eq!(post.delivery(id).await["repeated"], false, "{context}");
}

async fn doubted(post: &Post, id: &str, address: &str, was_taken: bool, context: &str) {
    let job = post.shop.wait_for(id, "put off", |job| job["state"] == "waiting" && job["reason"] == "backing_off").await;
    assert_eq!(job["error"]["code"], "mail_unknown", "{context}: {job}");
    assert_eq!(post.effect(id).await, 2, "{context}: it is listed");
    assert_eq!(known(post, id).await, ("unknown".into(), "mail_unknown".into(), json!(false)), "{context}");
    post.later();
    post.shop.succeeded(id).await;
    assert_eq!(post.effect(id).await, 2, "{context}: it stays listed");
    let delivery = post.delivery(id).await;
    assert_eq!((&delivery["state"], &delivery["repeated"]), (&json!("sent"), &json!(true)), "{context}: {delivery}");
    let copies = post.arrived(address);
    assert_eq!(copies.len(), if was_taken { 2 } else { 1 }, "{context}");
    for copy in &copies {
        assert_eq!(parsed(copy)["headers"]["message-id"], format!("<{id}@shop.example>"), "{context}");
        assert_eq!(copy.bytes, copies[0].bytes, "{context}");
    }
}

async fn suppressed(post: &Post, id: &str, address: &str, context: &str) {
    let job = post.shop.ended(id).await;
    assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("mail_mailbox_unknown")), "{context}: {job}");
    assert_eq!(known(post, id).await, ("not_sent".into(), "mail_mailbox_unknown".into(), json!(true)), "{context}");
    // The next one does not even reach the server; accepting it says nothing wrong.
    let asked = post.world.sandbox.mail.faults().count("RCPT");
    let next = post.mail(&to(address)).await;
    let job = post.shop.ended(&next).await;
    assert_eq!(job["error"]["code"], "recipient_suppressed", "{context}: {job}");
    assert_eq!((post.world.sandbox.mail.faults().count("RCPT"), post.effect(&next).await), (asked, -1), "{context}");
    assert_eq!(known(post, &next).await, ("not_sent".into(), "recipient_suppressed".into(), json!(true)), "{context}");
    let found = post.shop.get(&format!("/v1/suppressions?email={address}")).await.expect(200);
    let found = &found["items"][0];
    assert_eq!((&found["reason"], &found["category"]), (&json!("bounce"), &Value::Null), "{context}: {found}");
    assert!(!found.to_string().contains('@'), "{context}: {found}");
    let lift = post.shop.request(reqwest::Method::DELETE, &format!("/v1/suppressions/{}", id_of(found)));
    assert_eq!(post.shop.send(lift).await.status, 204);
    post.shop.succeeded(&post.mail(&to(address)).await).await;
    assert_eq!(post.arrived(address).len(), 1, "{context}");
}

async fn refused(post: &Post, id: &str, address: &str, context: &str) {
    let job = post.shop.ended(id).await;
    assert_eq!(
        (&job["state"], &job["error"]["code"], &job["attempt"]),
        (&json!("failed"), &json!("mail_refused"), &json!(1)),
        "{context}: {job}"
    );
    assert_eq!(known(post, id).await, ("not_sent".into(), "mail_refused".into(), json!(true)), "{context}");
    assert_eq!(post.effect(id).await, -1, "{context}");
    let found = post.shop.get(&format!("/v1/suppressions?email={address}")).await.expect(200);
    assert_eq!(found["items"], json!([]), "{context}: the recipient is not to blame");
}

async fn paused(post: &Post, id: &str, address: &str, context: &str) {
    let job = post.shop.wait_for(id, "held up", |job| job["state"] == "waiting" && job["reason"] == "paused").await;
    assert_eq!((&job["attempt"], post.effect(id).await), (&json!(0), -1), "{context}: no attempt is used: {job}");
    assert_eq!(known(post, id).await, ("not_sent".into(), "mail_sender_refused".into(), json!(false)), "{context}");
    let why = post.shop.get(&format!("/v1/jobs/{id}/explain")).await.expect(200);
    let reason = &why["reasons"][0];
    assert_eq!((&reason["code"], &reason["by"]), (&json!("paused"), &json!("the mail server")), "{context}: {why}");
    assert!(reason["message"].as_str().unwrap().contains("mail server localhost") && reason["until"].is_string(), "{context}: {why}");
    let next = post.mail(&to(&format!("next-{address}"))).await;
    post.shop.wait_for(&next, "held up too", |job| job["reason"] == "paused").await;
    // Ended sooner by the product; the other way is the test below.
    post.shop.post("/v1/queues/email/resume", &json!({"kind": "email.send"})).await.expect(200);
    let job = post.shop.succeeded(id).await;
    assert_eq!(job["attempt"], 1, "{context}: {job}");
    post.shop.succeeded(&next).await;
    assert_eq!(post.arrived(address).len(), 1, "{context}");
}

#[tokio::test]
async fn a_pause_ends_by_itself_and_the_mail_at_fault_does_not_hold_the_others_up_again() {
    let post = Post::start().await;
    let faults = post.world.sandbox.mail.faults();
    // A filter that dislikes what one mail says, each time.
    faults.add(Rule::from(reply(550, [5, 7, 1])).on("message").path_contains("spam@example.com"));
    let spam = post.mail(&to("spam@example.com")).await;
    post.shop.wait_for(&spam, "held up", |job| job["reason"] == "paused").await;
    let good = post.mail(&to("good@example.com")).await;
    post.shop.wait_for(&good, "held up too", |job| job["reason"] == "paused").await;
    // Another product's mail goes on.
    let other = post.world.tenant_of("other", &super::manifest("other")).await;
    other.succeeded(&id_of(&other.post("/v1/emails", &to("other@example.com")).await.expect(202))).await;
    let listed = String::from_utf8(post.world.sandbox.run_api(["holds"]).await.unwrap().stdout).unwrap();
    assert!(listed.contains("email.send") && listed.contains("the mail server"), "{listed}");
    until("the figure tells of it", async || match post.world.figure(&post.worker, "offstage_pauses_by_itself", &[]).await {
        some if some > 0.5 => Ok(()),
        none => Err(none),
    })
    .await;

    post.clock.advance(TimeDelta::minutes(31));
    let job = post.shop.ended(&spam).await;
    assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("mail_refused_by_policy")), "{job}");
    post.shop.succeeded(&good).await;
    assert_eq!(post.world.number("SELECT count(*) FROM pause WHERE resumed_at IS NULL").await, 0, "and nothing is paused again");
}

#[tokio::test]
async fn what_may_have_been_sent_stays_listed_whatever_comes_after() {
    let post = Post::start().await;
    let faults = post.world.sandbox.mail.faults();
    faults.add(Rule::from(Fault::LoseAnswer).on("message").times(1));
    let id = post.mail(&to("ada@example.com")).await;
    post.shop.wait_for(&id, "put off", |job| job["error"]["code"] == "mail_unknown").await;
    // Put off, and refused for our standing: neither says that the first copy did not arrive.
    faults.add(Rule::from(reply(450, [4, 2, 0])).on("RCPT").times(1));
    post.later();
    post.shop.wait_for(&id, "put off again", |job| job["error"]["code"] == "mail_deferred").await;
    assert_eq!((post.effect(&id).await, known(&post, &id).await.0.as_str()), (2, "unknown"));
    faults.add(Rule::from(reply(535, [5, 7, 8])).on("MAIL").times(1));
    post.clock.advance(TimeDelta::minutes(20));
    post.shop.wait_for(&id, "held up", |job| job["reason"] == "paused").await;
    assert_eq!((post.effect(&id).await, known(&post, &id).await.0.as_str()), (2, "unknown"));
    post.clock.advance(TimeDelta::minutes(31));
    post.shop.succeeded(&id).await;
    let delivery = post.delivery(&id).await;
    assert_eq!((post.effect(&id).await, &delivery["state"], &delivery["repeated"]), (2, &json!("sent"), &json!(true)), "{delivery}");
    assert_eq!((post.arrived("ada@example.com").len(), &delivery["attempts"]), (2, &json!(4)), "{delivery}");

    // Nor does it when the recipient wants no more of it meanwhile.
    faults.add(Rule::from(Fault::LoseAnswer).on("message").times(1));
    let id = post.mail(&to("eve@example.com")).await;
    post.shop.wait_for(&id, "put off", |job| job["error"]["code"] == "mail_unknown").await;
    post.shop.post("/v1/suppressions", &json!({"email": "eve@example.com"})).await.expect(201);
    post.later();
    assert_eq!(post.shop.ended(&id).await["error"]["code"], "recipient_suppressed");
    assert_eq!(known(&post, &id).await, ("unknown".into(), "recipient_suppressed".into(), json!(true)));
    assert_eq!((post.effect(&id).await, post.arrived("eve@example.com").len()), (2, 1));
}
