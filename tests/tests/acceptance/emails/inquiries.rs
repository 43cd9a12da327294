//! Inquiries: mailed to the product, answered to who asked, three of one address a day (R31).

use acceptance::{World, id_of, until};
use chrono::TimeDelta;
use serde_json::json;

use super::{Post, parsed};

fn inquiry(email: &str, number: usize) -> serde_json::Value {
    json!({
        "name": "Grace *Hopper*", "email": email, "subject": "A compiler", "message": "Hello,\n\n<b>how</b> much is [it](https://evil.example)?",
        "budget": "10 k", "timeline": "this year", "idempotency_key": format!("inquiry-{number}"),
    })
}

#[tokio::test]
async fn an_inquiry_is_mailed_and_its_answer_reaches_who_asked() {
    let post = Post::start().await;
    let asked = inquiry("grace@navy.example", 1);
    let id = id_of(&post.shop.post("/v1/inquiries", &asked).await.expect(202));
    post.shop.succeeded(&id).await;
    let mail = until("the mail has arrived", async || post.arrived("sales@shop.example").into_iter().next().ok_or(())).await;
    let said = parsed(&mail);
    assert_eq!(said["headers"]["subject"], "Inquiry: A compiler");
    assert!(said["headers"]["reply-to"].as_str().unwrap().contains("grace@navy.example"), "{said}");
    let (text, html) = (said["texts"][0].as_str().unwrap(), said["texts"][1].as_str().unwrap());
    assert!(text.contains("<b>how</b> much is [it](https://evil.example)?") && text.contains("Budget: 10 k"), "{text}");
    assert!(text.contains("From: Grace *Hopper*, grace@navy.example"), "{text}");
    assert!(html.contains("&lt;b&gt;how&lt;/b&gt; much is [it](https://evil.example)?") && !html.contains("<a "), "{html}");
    for (field, value) in [("email", json!("a@b.example, c@d.example")), ("name", json!("a\r\nBcc: x@y.example")), ("message", json!(" "))]
    {
        let mut wrong = inquiry("grace@navy.example", 2);
        wrong[field] = value;
        let answer = post.shop.post("/v1/inquiries", &wrong).await;
        answer.problem(422, "validation_failed");
        assert_eq!(answer.pointers(), [format!("/{field}")]);
    }
}

#[tokio::test]
async fn three_of_one_address_are_taken_in_a_day_however_they_race() {
    let post = Post::start().await;
    let answers = futures_util::future::join_all((0..12).map(async |number| {
        // The same address, however it is written.
        let email = if number < 6 { "grace@navy.example" } else { "grace@NAVY.example" };
        post.shop.post("/v1/inquiries", &inquiry(email, number)).await
    }))
    .await;
    let taken: Vec<usize> = answers.iter().enumerate().filter(|(_, answer)| answer.status == 202).map(|(number, _)| number).collect();
    assert_eq!(taken.len(), 3, "{:?}", answers.iter().map(|answer| answer.status).collect::<Vec<_>>());
    let refused = answers.iter().find(|answer| answer.status != 202).unwrap();
    refused.problem(429, "inquiry_limit_exceeded");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() > 80_000);
    // Asked again under its key, one of them is what it was; another's inquiry is another's.
    let email = if taken[0] < 6 { "grace@navy.example" } else { "grace@NAVY.example" };
    post.shop.post("/v1/inquiries", &inquiry(email, taken[0])).await.expect(200);
    post.shop.post("/v1/inquiries", &inquiry("ada@navy.example", 100)).await.expect(202);
    post.clock.advance(TimeDelta::hours(25));
    post.shop.post("/v1/inquiries", &inquiry("grace@navy.example", 101)).await.expect(202);
    assert!(!post.world.text("SELECT coalesce(string_agg(i::text, ','), '') FROM inquiry i").await.contains("navy"));
}

#[tokio::test]
async fn a_product_that_names_nobody_takes_none() {
    let world = World::start().await;
    world.client.post("/v1/inquiries", &inquiry("grace@navy.example", 1)).await.problem(422, "validation_failed");
}
