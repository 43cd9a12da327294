//! One task for many inputs.

use acceptance::id_of;
use serde_json::json;

use super::Desk;

#[tokio::test]
async fn many_inputs_are_a_batch_of_one_task() {
    let desk = Desk::start().await;
    let input = |number: usize| json!({"input": {"prompt": format!("Write poem number {number}.")}, "owner": "ada"});
    let body = json!({"jobs": (0..5).map(input).collect::<Vec<_>>(), "name": "poems", "idempotency_key": "poems-1"});
    let accepted = desk.shop.post("/v1/ai/enhance/batch", &body).await.expect(202);
    assert_eq!(accepted["items"].as_array().map(Vec::len), Some(5), "{accepted}");
    for item in accepted["items"].as_array().unwrap() {
        let job = desk.shop.succeeded(item["job"].as_str().unwrap_or_else(|| panic!("{item}"))).await;
        assert_eq!((&job["kind"], &job["owner"]), (&json!("ai.run"), &json!("ada")));
    }
    assert_eq!(id_of(&desk.shop.post("/v1/ai/enhance/batch", &body).await.expect(200)), id_of(&accepted));
    assert_eq!(desk.world.sandbox.ai.calls().len(), 5);

    let wrong = json!({"jobs": [input(1), {"input": {"prompt": "short"}}, {"input": {"prompt": "long enough"}, "kind": "probe.run"}, 7]});
    let answer = desk.shop.post("/v1/ai/enhance/batch", &wrong).await;
    answer.problem(422, "validation_failed");
    assert_eq!(answer.pointers(), ["/jobs/1/input/prompt", "/jobs/2/kind", "/jobs/3"]);
    desk.shop.post("/v1/ai/other/batch", &json!({"jobs": [input(1)]})).await.problem(404, "ai_task_not_found");
    assert_eq!(desk.world.number("SELECT count(*) FROM job").await, 5);
}
