//! The products of `examples/`, as `make run` applies them: each metric and each view that a manifest names counts what its backend sends, and
//! each source of statistics is measured.

use std::{collections::BTreeSet, path::Path};

use acceptance::{Client, World, until};
use serde_json::{Value, json};

/// A product's name, its events, by type with their properties, and its views.
type Product = (&'static str, Vec<(&'static str, Value)>, &'static [&'static str]);

/// The products that have metrics: what their manifests' comments say that their backends send, of two users, and the views that issue 9 and R61
/// name.
fn products() -> [Product; 3] {
    let run =
        json!({"model": "m", "plan": "pro", "domain": "software", "status": "ok", "score": 81.5, "tokens": 1_200, "response_ms": 812});
    [
        (
            "promptforge",
            vec![
                ("prompt_run", run),
                ("prompt_evaluated", json!({"domain": "software", "passed": true})),
                ("user_signed_up", json!({"plan": "pilot"})),
                ("plan_changed", json!({"plan": "pro"})),
                ("user_seen", json!({"plan": "pro"})),
                ("payment", json!({"plan": "pro", "amount": 9.99})),
            ],
            &["business", "performance", "user"],
        ),
        (
            "mealplanner",
            vec![
                ("customer_added", json!({})),
                ("plan_assigned", json!({"diet": "vegan", "calories": 2_100})),
                ("workout_logged", json!({"minutes": 45})),
                ("progress_logged", json!({"customer": "c1", "kilograms": -0.4})),
                ("generation", json!({"sort": "recipe", "status": "ok", "tokens": 900})),
            ],
            &["operations", "trainer"],
        ),
        (
            "community",
            vec![
                ("joined", json!({"channel": "discord"})),
                ("visited", json!({"page": "/"})),
                ("posted", json!({"sort": "question", "length": 300})),
                ("answered", json!({"minutes": 12, "is_helpful": true})),
                ("inquiry", json!({"channel": "mail", "budget": 5_000})),
            ],
            &["business", "performance", "user"],
        ),
    ]
}

async fn product(world: &World, name: &str) -> Client {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name).join("tenant.toml");
    world.sandbox.apply_tenant(&manifest).await.unwrap();
    world.client.with_key(&world.sandbox.create_key(name, "test", "*").await.unwrap())
}

/// Whether each group of an answer, and each of the periods before where it has such, is of something.
fn is_of_something(answer: &Value) -> bool {
    answer["groups"]
        .as_array()
        .unwrap()
        .iter()
        .all(|group| group["total"]["count"].as_u64() > Some(0) && group["total"]["value"].is_number())
}

#[tokio::test]
async fn each_metric_view_and_source_of_the_examples_is_read_with_something_in_it() {
    let (world, clock) = World::start_now().await;
    let _worker = world.start_worker(clock.launch()).await;
    for (name, sent, views) in products() {
        let client = product(&world, name).await;
        let events: Vec<Value> = sent
            .iter()
            .flat_map(|(sort, properties)| {
                ["ada", "bob"].map(|user| json!({"id": format!("{sort} {user}"), "type": sort, "user": user, "properties": properties}))
            })
            .collect();
        let taken = client.post("/v1/events", &json!({"events": events})).await.expect(200);
        assert_eq!((&taken["accepted"], &taken["rejected"]), (&json!(events.len()), &json!([])), "{name}: {taken}");

        let catalogue = client.get("/v1/analytics").await.expect(200);
        let metrics = catalogue["metrics"].as_array().unwrap();
        for metric in metrics {
            let metric_name = metric["name"].as_str().unwrap();
            let plain = client.get(&format!("/v1/analytics/{metric_name}")).await.expect(200);
            assert!(is_of_something(&plain), "{name}: {plain}");
            for dimension in metric["dimensions"].as_array().unwrap() {
                let grouped =
                    client.get(&format!("/v1/analytics/{metric_name}?group_by={}", dimension.as_str().unwrap())).await.expect(200);
                // What is told of each event stands there: no dimension is misspelt.
                let groups = grouped["groups"].as_array().unwrap();
                let is_named = groups.iter().all(|group| group["labels"].as_object().unwrap().values().all(Value::is_string));
                assert!(is_of_something(&grouped) && is_named, "{name}: {grouped}");
            }
        }
        let found: Vec<_> = catalogue["views"].as_array().unwrap().iter().map(|view| view["name"].as_str().unwrap()).collect();
        assert_eq!(found, views, "{name}");
        let mut shown = BTreeSet::new();
        for view in views {
            let view = client.get(&format!("/v1/analytics/views/{view}")).await.expect(200);
            for panel in view["panels"].as_array().unwrap() {
                assert!(is_of_something(panel), "{name}: {panel}");
                shown.insert(panel["metric"].as_str().unwrap().to_owned());
            }
        }
        // A metric that no dashboard has is there to be asked for itself.
        assert!(shown.len() <= metrics.len() && shown.len() * 3 >= metrics.len() * 2, "{name}: {shown:?}");
        // Users read what is for them, of themselves: a trainer's dashboard is theirs.
        let own = client.acting_for("ada").get("/v1/analytics").await.expect(200);
        for view in own["views"].as_array().unwrap() {
            let view = client.acting_for("ada").get(&format!("/v1/analytics/views/{}", view["name"].as_str().unwrap())).await.expect(200);
            for panel in view["panels"].as_array().unwrap() {
                let counts: Vec<_> = panel["groups"].as_array().unwrap().iter().map(|group| group["total"]["count"].clone()).collect();
                assert_eq!(counts, [json!(1)], "{name}: {panel}");
            }
        }
        let sources = client.get("/v1/stats").await.expect(200)["items"].as_array().unwrap().len();
        assert_eq!(sources, if name == "community" { 6 } else { 0 });
        until("each source is measured", async || {
            let all = client.get("/v1/stats").await.expect(200);
            let is_measured = |one: &Value| one["state"] == "measured" && one["figures"]["members"].as_u64() > Some(0);
            if all["items"].as_array().unwrap().iter().all(is_measured) { Ok(()) } else { Err(all) }
        })
        .await;
    }
    // The others can be applied too, and have none.
    for name in ["promptlockr", "analyticbot"] {
        assert_eq!(product(&world, name).await.get("/v1/analytics").await.expect(200)["metrics"], json!([]));
    }
}
