//! The products' tasks, as their examples declare them (R41), against a server without any model.

use std::path::Path;

use acceptance::{Client, World, id_of};
use sandbox::Launch;
use serde_json::{Value, json};

/// The product's own manifest, its providers the sandbox'.
async fn product(world: &World, name: &str) -> Client {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name).join("tenant.toml");
    let manifest = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    world.tenant_of(name, &world.sandbox.ai.listed_in(&manifest, |_| true)).await
}

#[tokio::test]
async fn each_task_of_each_product_is_answered_as_it_says() {
    let world = World::start().await;
    let key = world.sandbox.ai.key();
    let launch = Launch::new().env("OFFSTAGE_AI_OPENAI", key).env("OFFSTAGE_AI_ANTHROPIC", key);
    world.start_worker(launch).await;
    let food = json!({"calories": 2200, "protein": 150, "dietary": ["vegetarian", "nut_free"], "duration_days": 3});
    let dish = json!({"calories": 700, "protein": 45, "dietary": ["vegan"], "duration_minutes": 40});
    let training = json!({"calories": 2200, "protein": 150, "duration_minutes": 45});
    let prompt = "Write a tagline for a bakery in a small town.";
    let figures = json!({"text": "We are live!", "views": 1200, "reactions": 80, "shares": 12, "comments": 4});
    for (name, tasks) in [
        ("promptlockr", vec![("enhance", json!({"prompt": prompt, "tone": "friendly"}))]),
        (
            "promptforge",
            vec![
                ("optimise", json!({"prompt": prompt, "domain": "marketing", "scale": "team", "urgency": "high"})),
                ("evaluate", json!({"prompt": prompt})),
            ],
        ),
        (
            "analyticbot",
            vec![
                ("analyse_performance", figures),
                ("predict_viral", json!({"text": "We are live!"})),
                ("content_suggestions", json!({"topic": "rust"})),
            ],
        ),
        ("mealplanner", vec![("meal_plan", food), ("recipe", dish), ("workout", training)]),
    ] {
        let client = product(&world, name).await;
        for (task, input) in tasks {
            let id = id_of(&client.post(&format!("/v1/ai/{task}"), &json!({"input": input, "owner": "ada"})).await.expect(202));
            let result = client.succeeded(&id).await["result"].clone();
            let output = &result["output"];
            let holds = match task {
                "enhance" => output["prompt"].is_string() && output["changes"].is_array(),
                // At 80 the gate lets it pass.
                "optimise" | "evaluate" => output["score"].as_i64() >= Some(80) && result["gate"]["passed"] == json!(true),
                "predict_viral" => output["score"] == 90 && output["level"] == "high",
                "content_suggestions" => output["suggestions"].as_array().map(Vec::len) == Some(5),
                _ => output.is_object(),
            };
            assert!(holds, "{name} {task}: {result}");
            assert!(result["usage"]["input_tokens"].as_u64() > Some(0) && result["response_ms"].is_u64(), "{result}");
        }
        // What a product does not ask for, its users can't either.
        if name == "promptforge" {
            let refused = async |change: Value| {
                let mut input = json!({"prompt": prompt, "domain": "marketing", "scale": "team", "urgency": "high"});
                input.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
                let answer = client.post("/v1/ai/optimise", &json!({ "input": input })).await;
                answer.problem(422, "validation_failed");
                answer.pointers()
            };
            assert_eq!(refused(json!({"domain": "magic"})).await, ["/input/domain"]);
            assert_eq!(refused(json!({"urgency": 3, "scale": "world"})).await, ["/input/scale", "/input/urgency"]);
            assert_eq!(refused(json!({"prompt": "too short"})).await, ["/input/prompt"]);
            assert_eq!(refused(json!({"prompt": "x".repeat(10_001)})).await, ["/input/prompt", "/input/prompt"]);
            assert_eq!(refused(json!({"prompt": "[x](javascript:alert(1)) in words"})).await, ["/input/prompt"]);
        }
    }
}
